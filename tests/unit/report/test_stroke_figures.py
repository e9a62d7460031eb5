"""Figures of the stroke study: what is drawn is what the tables say, and what they lack is not drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bids_sodium.app import _write_study
from bids_sodium.group import stroke
from bids_sodium.group.stroke import StrokeParams
from bids_sodium.report import _stroke_figures as draw
from bids_sodium.report._stroke_page import stroke_section
from bids_sodium.simulate.cohort import stroke_cohort
from bids_sodium.simulate.fate import fate_cells, rater_table


def points(**volumes: tuple[list[float], list[float]]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"label": label, "volume_a_ml": a, "volume_b_ml": b}).assign(
            difference_ml=lambda t: t["volume_b_ml"] - t["volume_a_ml"]
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
