"""The whole app on a simulated stroke patient: three visits, regions of two raters, ADC, resume and group tables."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_sodium.bidsio.files import read_transform
from bids_sodium.bidsio.validator import run_validator
from bids_sodium.core.tables import GROUP_RESULT, GROUP_TSC, QC, ROI_TSC, TISSUE_TSC

pytestmark = pytest.mark.slow

EARLY = ("ses-acute", "ses-subacute")
REFERENCE = "ses-m3"
REGIONS = ("ionic", "cytotoxic", "necrosis")
EXPRESSIONS = (
    "ionic&necrosis",
    "necrosis-ionic",
    "ionic-necrosis",
    "cytotoxic&necrosis",
    "necrosis-cytotoxic",
    "cytotoxic-necrosis",
)


@pytest.fixture(scope="module")
def study(demo: Any) -> Any:
    """Return the dataset and the output of the demo's stroke patient."""
    found = demo.study("stroke")
    assert (found.output / "sub-01.html").is_file(), demo.done.err[-2000:]
    return found


@pytest.fixture
def copy(study: Any) -> Iterator[Path]:
    """Return a copy of the output, under the same name elsewhere, that a test may change."""
    place = study.output.parent / "copy" / study.output.name
    shutil.copytree(study.output, place)
    yield place
    shutil.rmtree(place.parent)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def header_of(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text().partition("\n")[0].split("\t"))


def truth(study: Any, session: str) -> dict[str, Any]:
    path = study.bids / f"derivatives/truth/sub-01/{session}/anat/sub-01_{session}_truth.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def anat(study: Any, session: str, name: str) -> Path:
    found: Path = study.output / "sub-01" / session / "anat" / f"sub-01_{session}_{name}"
    return found


@pytest.mark.parametrize("session", EARLY)
def test_every_file_of_an_early_visit_is_there(study: Any, session: str) -> None:
    images = [
        "acq-23Na_desc-recon_PDw",
        "acq-23Na_desc-denoised_PDw",
        "acq-23Na_TSCmap",
        "acq-23Na_space-T1w_TSCmap",
        "acq-23Na_label-phantom40_mask",
        "acq-23Na_label-phantom80_mask",
        *(f"acq-23Na_label-{name}_desc-psf_probseg" for name in ("CGM", "DGM", "NAWM", "CSF")),
        *(f"label-{name}_desc-consensus_mask" for name in ("ionic", "cytotoxic")),
        *(f"label-{name}_desc-contralateral_mask" for name in REGIONS),
    ]
    names = [*(f"{name}.nii.gz" for name in images), "from-23Na_to-T1w_mode-image_xfm.txt"]
    names += ["from-dwi_to-T1w_mode-image_xfm.txt"]
    names += [f"acq-23Na_desc-{kind}_tsc.tsv" for kind in ("tissue", "roi", "qc")]
    paths = [anat(study, session, name) for name in names]
    dwi = study.output / "sub-01" / session / "dwi"
    paths += [dwi / f"sub-01_{session}_ADC.nii.gz", dwi / f"sub-01_{session}_space-T1w_ADC.nii.gz"]
    assert [path.name for path in paths if not path.is_file()] == []
    sidecars = [path.with_name(path.name.partition(".")[0] + ".json") for path in paths]
    assert [path.name for path in sidecars if not path.is_file()] == []
    for path in paths[-2:]:
        assert json.loads(path.with_name(path.name.partition(".")[0] + ".json").read_text())["Units"] == "mm2/s"


def test_the_last_visit_is_the_anatomy_of_all(study: Any) -> None:
    names = [*(f"label-{name}_probseg.nii.gz" for name in ("CGM", "DGM", "NAWM", "CSF")), "desc-preproc_T1w.nii.gz"]
    names += ["desc-brain_mask.nii.gz", "seg-tissue_dseg.nii.gz", "seg-tissue_dseg.tsv"]
    names += ["from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5", "label-necrosis_desc-consensus_mask.nii.gz"]
    assert [name for name in names if not anat(study, REFERENCE, name).is_file()] == []
    for session in EARLY:
        assert not anat(study, session, "label-CGM_probseg.nii.gz").exists()
    assert not anat(study, REFERENCE, "acq-23Na_TSCmap.nii.gz").exists()
    notes = [row["note"] for row in rows_of(anat(study, REFERENCE, "acq-23Na_desc-qc_tsc.tsv"))]
    assert any("the session has no sodium scan" in note for note in notes)


def test_tables_have_the_columns_of_their_schema(study: Any) -> None:
    for session in EARLY:
        for kind, schema in (("tissue", TISSUE_TSC), ("roi", ROI_TSC), ("qc", QC)):
            path = anat(study, session, f"acq-23Na_desc-{kind}_tsc.tsv")
            assert header_of(path) == schema.names
            assert {row["session_id"] for row in rows_of(path)} == {session}
            assert set(schema.names) <= set(json.loads(path.with_suffix(".json").read_text()))
        rows = rows_of(anat(study, session, "acq-23Na_desc-roi_tsc.tsv"))
        assert {row["roi"] for row in rows} == {*REGIONS, *EXPRESSIONS}
        assert {row["contrast"] for row in rows} == {"na", "tsc", "adc"}
        for row in rows:
            assert row["kept"] in {"0", "1"}
            assert (row["kept"] == "0") == (row["reason"] != "n/a")
            assert row["kept"] == "0" or float(row["volume_ml"]) >= 1.0


def test_time_since_onset_is_that_of_the_sessions_table(study: Any) -> None:
    given = {
        row["session_id"]: float(row["onset_to_scan_h"]) for row in rows_of(study.bids / "sub-01/sub-01_sessions.tsv")
    }
    for session in EARLY:
        found = {float(row["onset_to_scan_h"]) for row in rows_of(anat(study, session, "acq-23Na_desc-roi_tsc.tsv"))}
        assert found == {given[session]}


def test_no_output_names_a_folder_of_the_machine(demo: Any, study: Any) -> None:
    folders = [str(demo.folder).encode(), str(Path(__file__).resolve().parents[2]).encode()]
    for path in sorted(study.output.rglob("*")):
        if path.is_file() and ".bids_sodium" not in path.parts:
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            assert not any(folder in data for folder in folders), path


def test_sources_are_uris_of_files_that_exist(study: Any) -> None:
    roots = {"": study.output, "raw": study.bids, "rois": study.bids / "derivatives" / "rois"}
    count = 0
    for path in sorted((study.output / "sub-01").rglob("*.json")):
        for uri in json.loads(path.read_text()).get("Sources", []):
            scheme, name, place = uri.split(":", 2)
            assert scheme == "bids", uri
            assert (roots[name] / place).is_file(), uri
            count += 1
    assert count > 100


def test_the_output_is_a_valid_bids_dataset(study: Any) -> None:
    found = run_validator(study.output)
    if not found.ran:
        pytest.skip("bids-validator-deno is not installed")
    assert found.errors == ()


@pytest.mark.parametrize("session", EARLY)
def test_sodium_is_placed_on_the_anatomy(study: Any, session: str) -> None:
    known = truth(study, session)
    na_from_t1w = np.linalg.inv(np.array(known["t1w_from_na"]))
    in_sodium = np.array(known["Landmarks"]["T1w"]) @ na_from_t1w[:3, :3].T + na_from_t1w[:3, 3]
    # The same points of the brain in the T1w image of the last visit, which is the anatomy.
    points = np.array(truth(study, REFERENCE)["Landmarks"]["T1w"])
    estimated = read_transform(anat(study, session, "from-23Na_to-T1w_mode-image_xfm.txt"), "T1w", "23Na")
    assert np.linalg.norm(estimated.apply(in_sodium) - points, axis=1).mean() < 2.0


@pytest.mark.parametrize("session", EARLY)
@pytest.mark.parametrize("tissue", ["CGM", "NAWM"])
def test_concentration_of_tissue(study: Any, session: str, tissue: str) -> None:
    table = rows_of(anat(study, session, "acq-23Na_desc-tissue_tsc.tsv"))
    (row,) = (row for row in table if (row["tissue"], row["method"]) == (tissue, "glm"))
    # Lesions are no class of this table, so that their sodium is part of the tissue they lie in.
    assert float(row["tsc_mmol_l"]) == pytest.approx(truth(study, session)["Concentrations"][tissue], abs=6.0)


@pytest.mark.parametrize("session", EARLY)
def test_regions_rise_in_sodium_and_fall_in_diffusion(study: Any, session: str) -> None:
    table = rows_of(anat(study, session, "acq-23Na_desc-roi_tsc.tsv"))
    rows = {(row["roi"], row["contrast"]): row for row in table if row["method"] == "raw"}
    for roi in ("ionic", "cytotoxic", "necrosis"):
        assert float(rows[roi, "tsc"]["percent_change"]) > 5.0
        assert float(rows[roi, "adc"]["percent_change"]) < -5.0
        # One image is the other times a constant.
        sodium, concentration = (float(rows[roi, contrast]["percent_change"]) for contrast in ("na", "tsc"))
        assert sodium == pytest.approx(concentration, rel=1e-3)
    parts = [float(rows[roi, "tsc"]["volume_ml"]) for roi in ("ionic&necrosis", "ionic-necrosis")]
    assert sum(parts) == pytest.approx(float(rows["ionic", "tsc"]["volume_ml"]), rel=1e-3)


@pytest.mark.parametrize("session", EARLY)
def test_partial_volume_correction_brings_regions_nearer_to_their_truth(study: Any, session: str) -> None:
    known = study.bids / "derivatives/truth/truth_roi.tsv"
    true = {
        row["roi"]: float(row["tsc_percent_change"])
        for row in rows_of(known)
        if row["session_id"] == session and row["participant_id"] == "sub-01"
    }
    table = rows_of(anat(study, session, "acq-23Na_desc-roi_tsc.tsv"))
    miss = {"raw": 0.0, "gtm": 0.0}
    for row in table:
        if row["contrast"] == "tsc" and row["roi"] in {"ionic", "cytotoxic"}:
            assert float(row["percent_se"]) > 0
            miss[row["method"]] += abs(float(row["percent_change"]) - true[row["roi"]])
    assert miss["gtm"] < miss["raw"]


@pytest.mark.parametrize("session", EARLY)
def test_cells_tell_what_became_of_the_tissue(study: Any, session: str) -> None:
    rows = rows_of(anat(study, session, "acq-23Na_desc-fate_tsc.tsv"))
    assert len(rows) > 20
    shares = [float(row["necrosis_share"]) for row in rows]
    assert min(shares) == 0.0
    assert max(shares) > 0.9
    inside = [float(row["na_percent"]) for row in rows if float(row["lesion_share"]) > 0.9]
    outside = [float(row["na_percent"]) for row in rows if float(row["lesion_share"]) == 0.0]
    assert np.median(inside) > np.median(outside) + 10.0


def test_raters_are_compared(study: Any) -> None:
    rows = rows_of(study.output / "group_raters.tsv")
    assert {row["label"] for row in rows} == set(REGIONS)
    assert all(0.5 < float(row["dice"]) <= 1.0 for row in rows)


def test_nothing_is_done_twice(
    study: Any, copy: Path, command: Callable[..., Any], contents: Callable[..., Any], times: Callable[..., Any]
) -> None:
    def steps_only(files: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in files.items() if "/anat/" in name or "/dwi/" in name}

    raw, when = contents(study.bids), steps_only(times(copy))
    words = ["--preset", "stroke", "-d", study.rois, "--n-procs", "2"]
    code, _, err = command(study.bids, copy, "participant", *words)
    assert code == 0, err
    assert "1 of 1 participants complete; 0 steps done, " in err
    assert steps_only(times(copy)) == when
    assert contents(study.bids) == raw


def test_group_tables_have_their_schema(study: Any) -> None:
    assert set(GROUP_TSC.names) <= set(header_of(study.output / "group_tsc.tsv"))
    rows = rows_of(study.output / "group_tsc.tsv")
    assert {row["session_id"] for row in rows} == set(EARLY)
    assert {row["roi"] for row in rows} >= set(REGIONS)
    index = json.loads((study.output / "group_analyses.json").read_text())
    assert index["Study"] == "stroke"
    done = [entry["Name"] for entry in index["Analyses"] if not entry["LeftOut"]]
    assert "regions" in done
    for name in done:
        assert header_of(study.output / f"group_{name}.tsv") == GROUP_RESULT.names
    assert all(entry["Reason"] for entry in index["LeftOut"])


def test_group_tsc_alone_gives_the_same_results(study: Any, tmp_path: Path, command: Callable[..., Any]) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("tsc", "fate", "raters"):
        for path in study.output.glob(f"group_{name}.*"):
            shutil.copy(path, tables / path.name)
    code, _, err = command(tables, tmp_path / "out", "group", "--preset", "stroke", "--study", "stroke")
    assert code == 0, err
    names = sorted(path.name for path in study.output.glob("group_*.tsv"))
    assert len(names) > 3
    for name in names:
        assert (tmp_path / "out" / name).read_text() == (study.output / name).read_text(), name
