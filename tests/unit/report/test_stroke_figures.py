"""Figures of the stroke study: what is drawn is what the tables say, and what they lack is not drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bids_sodium.app import _write_study
from bids_sodium.bidsio.files import read_json, write_volume
from bids_sodium.core.data import Grid, Volume
from bids_sodium.group import stroke
from bids_sodium.group.stroke import StrokeParams
from bids_sodium.report import _stroke_figures as draw
from bids_sodium.report import _stroke_sections as beside
from bids_sodium.report._stroke_page import _images, stroke_section
from bids_sodium.report.groups import GROUP_INDEX, group_page
from bids_sodium.simulate.cohort import stroke_cohort
from bids_sodium.simulate.fate import fate_cells, rater_table


def points(**volumes: tuple[list[float], list[float]]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"label": label, "volume_a_ml": a, "volume_b_ml": b}).assign(
            volume_difference_ml=lambda t: t["volume_b_ml"] - t["volume_a_ml"]
        )
        for label, (a, b) in volumes.items()
    ]
    return pd.concat(parts, ignore_index=True)


def levels(figure: Figure, panel: int) -> list[float]:
    """Return the heights of the horizontal lines of a panel."""
    lines = figure.axes[panel].get_lines()
    return [float(np.asarray(line.get_ydata())[0]) for line in lines if line.get_linestyle() != "None"]


def test_differences_of_raters_show_bias_and_limits() -> None:
    table = points(ionic=([10.0, 20.0, 30.0], [11.0, 20.0, 34.0]), cytotoxic=([5.0], [7.0]))
    figure = draw.rater_differences(table)
    assert [axis.get_title() for axis in figure.axes] == ["ionic", "cytotoxic"]
    gap = np.array([1.0, 0.0, 4.0])
    mean, sd = gap.mean(), gap.std(ddof=1)
    assert levels(figure, 0) == pytest.approx([mean, mean - 1.96 * sd, mean + 1.96 * sd])
    dots = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(np.asarray(dots.get_xydata()), [[10.5, 1.0], [20.0, 0.0], [32.0, 4.0]])
    # one scan has no spread
    assert levels(figure, 1) == [2.0, 2.0, 2.0]


def test_volumes_that_are_predicted_stand_beside_those_observed() -> None:
    rows = pd.DataFrame(
        {"model": ["sodium", "sodium", "ADC"], "observed_ml": [4.0, 9.0, 4.0], "predicted_ml": [5.0, 8.0, np.nan]}
    )
    figure = draw.predicted_volumes(rows)
    assert figure is not None
    drawn = {line.get_label(): np.asarray(line.get_xydata()) for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(drawn["sodium"], [[4.0, 5.0], [9.0, 8.0]])
    assert draw.predicted_volumes(rows.assign(predicted_ml=np.nan)) is None


def test_images_are_one_row_a_patient_with_the_outline_of_the_lesion() -> None:
    section = np.linspace(0.0, 100.0, 80).reshape(8, 10)
    mask = np.zeros((8, 10), dtype=bool)
    mask[3:6, 4:7] = True
    columns = [("TSC", "viridis", (0.0, 120.0)), ("ADC", "gray", (0.0, 2.0))]
    figure = draw.patients_images(
        [("01", [(section, mask), None]), ("02", [(section, None), (section, mask)])], columns
    )
    assert len(figure.axes) == 4
    assert [len(axis.images) for axis in figure.axes] == [1, 0, 1, 1]
    assert [bool(axis.collections) for axis in figure.axes] == [True, False, False, True]
    assert [text.get_text() for text in figure.axes[1].texts] == ["n/a"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the group tables of a small cohort."""
    place = tmp_path_factory.mktemp("out")
    cohort = stroke_cohort(np.random.default_rng(3), 8)
    study = stroke.analyse(
        cohort.table,
        StrokeParams(n_resamples=50, second_effects=()),
        np.random.default_rng(0),
        cells=fate_cells(np.random.default_rng(5), cohort),
        raters=rater_table(np.random.default_rng(1), cohort),
    )
    _write_study(place, study, settings={})
    return place


def test_every_figure_of_the_paper_is_vector_and_pixels(output: Path) -> None:
    _, _, text = stroke_section(output)
    drawn = {path.name for path in (output / "group_figures").iterdir()}
    names = ("figure2", "figure3", "figure4", "figure5", "residuals", "prognosis", "forecast", "raters")
    assert drawn == {f"paper_{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert all(f"group_figures/paper_{name}.svg" in text for name in names)
    assert "figure1" not in text  # no image of a participant is there


def test_what_the_tables_lack_is_not_drawn(output: Path, tmp_path: Path) -> None:
    for name in ("volumes_points", "exclusions_scans"):
        (tmp_path / f"group_{name}.tsv").write_text((output / f"group_{name}.tsv").read_text())
    _, _, text = stroke_section(tmp_path)
    assert {path.name for path in (tmp_path / "group_figures").iterdir()} == {"paper_figure4.svg", "paper_figure4.png"}
    assert "paper_raters" not in text


def test_every_section_has_its_figure_in_both_forms(output: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    shutil.copytree(output, place, ignore=shutil.ignore_patterns("group_figures"))
    page = group_page(place).read_text()
    drawn = {path.name for path in (place / "group_figures").iterdir()}
    assert {Path(name).stem for name in drawn if name.endswith(".svg")} == {
        Path(name).stem for name in drawn if name.endswith(".png")
    }
    for analysis in read_json(output / GROUP_INDEX)["Analyses"]:
        assert not analysis["LeftOut"]
        name = analysis["Name"]
        assert any(f"{name}_{key}.svg" in drawn for key, _, _ in beside.FIGURES[name]), name
        assert f"group_figures/{name}_" in page
    assert "Every region that does not enter, and why" in page


def frames(output: Path, name: str) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    table = pd.read_csv(output / f"group_{name}.tsv", sep="\t", na_values="n/a", keep_default_na=False)
    parts = output.glob(f"group_{name}_*.tsv")
    return {p.stem.removeprefix(f"group_{name}_"): pd.read_csv(p, sep="\t", na_values="n/a") for p in parts}, table


def test_every_region_of_every_contrast_is_shown_with_both_windows(output: Path) -> None:
    data, results = frames(output, "regions")
    figure = beside.region_changes(data, results)
    assert figure is not None
    assert [axis.get_xlabel() for axis in figure.axes] == list(dict.fromkeys(results["outcome"]))
    places = {label.get_text(): tick for tick, label in enumerate(figure.axes[0].get_yticklabels())}
    for axis, outcome in zip(figure.axes, dict.fromkeys(results["outcome"]), strict=True):
        dots = {line.get_label(): np.asarray(line.get_xydata()) for line in axis.get_lines()}
        for window in ("early window", "late window"):
            rows = results[(results["outcome"] == outcome) & (results["subset"] == window)]
            np.testing.assert_allclose(dots[window][:, 0], rows["estimate"])
            np.testing.assert_array_equal(np.rint(dots[window][:, 1]), [places[roi] for roi in rows["term"]])


def test_the_plateau_is_that_of_the_table(output: Path) -> None:
    data, results = frames(output, "adc")
    figure = beside.plateau(data, results)
    assert figure is not None
    level = results.loc[results["term"] == "plateau (%)", "estimate"].item()
    heights = [np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[0].get_lines()]
    assert any(y.size > 10 and np.allclose(y, level) for y in heights)
    assert beside.plateau({}, results) is None


def test_scans_stand_at_their_times() -> None:
    scans = pd.DataFrame(
        {
            "participant_id": ["sub-01", "sub-01", "sub-02", "sub-03"],
            "session_id": ["a", "b", "a", "a"],
            "t_h": [6.0, 40.0, 20.0, np.nan],
            "window": ["early", "late", "early", ""],
        }
    )
    figure = beside.scan_times({"scans": scans}, scans)
    assert figure is not None
    dots = {line.get_label(): np.asarray(line.get_xydata()) for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(sorted(dots["early window"][:, 0]), [6.0, 20.0])
    np.testing.assert_allclose(dots["late window"], [[40.0, 1.0]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["02", "01"]
    assert beside.scan_times({"scans": scans.assign(t_h=np.nan)}, scans) is None


def test_sizes_of_trials_are_those_of_the_lowest_power(output: Path) -> None:
    data, results = frames(output, "planning")
    figure = beside.trial_sizes(data, results)
    assert figure is not None
    first = results[results["term"].str.endswith("power 80 %") & (results["outcome"] == figure.axes[0].get_title())]
    dots = {line.get_label(): np.asarray(line.get_xdata(), dtype=float) for line in figure.axes[0].get_lines()}
    for effect in ("5", "10", "20"):
        rows = first[first["term"].str.startswith(f"effect of {effect} points")]
        np.testing.assert_allclose(dots[f"effect of {effect} points"], rows["estimate"])


def test_the_follow_up_shows_the_anatomy_and_the_final_necrosis(output: Path, tmp_path: Path) -> None:
    for name in ("volumes_points", "exclusions_scans"):
        (tmp_path / f"group_{name}.tsv").write_text((output / f"group_{name}.tsv").read_text())
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = -80.0
    grid = Grid((20, 20, 20), affine)
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[5:9, 5:9, 8:12] = 1
    folder = tmp_path / "sub-01" / "ses-m3" / "anat"
    folder.mkdir(parents=True)
    image = np.random.default_rng(0).uniform(100.0, 900.0, grid.shape).astype(np.float32)
    write_volume(folder / "sub-01_ses-m3_desc-preproc_T1w.nii.gz", Volume(image, grid))
    write_volume(folder / "sub-01_ses-m3_label-necrosis_desc-consensus_mask.nii.gz", Volume(mask, grid))
    figure = _images(tmp_path)
    assert figure is not None
    *others, last = figure.axes
    assert last.get_title() == "T1w, follow-up"
    assert len(last.images) == 1
    assert len(last.collections) == 1
    assert all(not axis.images for axis in others)
    shown = np.asarray(last.images[0].get_array())
    assert 0.5 < shown.max() < 1.2


def test_every_column_behind_a_figure_has_its_meaning(output: Path) -> None:
    for analysis in read_json(output / GROUP_INDEX)["Analyses"]:
        for key in analysis["Data"]:
            entries = read_json(output / f"group_{analysis['Name']}_{key}.json")
            told = {name: entry["Description"] for name, entry in entries.items() if isinstance(entry, dict)}
            assert told
            assert not [name for name, words in told.items() if words == name], (analysis["Name"], key)
