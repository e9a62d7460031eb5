"""The whole participant level at paper size recovers the simulated truth, with everything estimated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bids_sodium.bidsio.files import read_json, read_table, read_transform
from bids_sodium.cli import main
from bids_sodium.simulate.dataset import write

pytestmark = pytest.mark.paper_size

PEOPLE = ("sub-01", "sub-02")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("ms")
    data = write(root / "bids", study="ms", n_participants=len(PEOPLE), seed=7, snr=20.0)
    out = root / "out"
    command = [str(data), str(out), "participant", "--preset", "ms", "-d", f"rois={data}/derivatives/rois"]
    assert main([*command, "--n-procs", "1"]) == 0
    return data, out


def _errors(study: tuple[Path, Path], method: str) -> pd.DataFrame:
    data, out = study
    truth = read_table(data / "derivatives" / "truth" / "truth_tissue.tsv").set_index(["participant_id", "tissue"])
    found = pd.concat(read_table(out / person / "anat" / f"{person}_acq-23Na_desc-tissue_tsc.tsv") for person in PEOPLE)
    found = found[found["method"] == method].set_index(["participant_id", "tissue"])
    shared = found.index.intersection(truth.index)
    return pd.DataFrame({"error": found.loc[shared, "tsc_mmol_l"] - truth.loc[shared, "tsc_mmol_l"]}).reset_index()


@pytest.mark.parametrize("tissue", ["CGM", "DGM", "NAWM"])
def test_tissue_concentrations_are_unbiased(study: tuple[Path, Path], tissue: str) -> None:
    errors = _errors(study, "glm")
    mine = errors[errors["tissue"] == tissue]["error"]
    assert len(mine) == len(PEOPLE)
    assert abs(mine.mean()) < 2.0


def test_csf_is_estimated_near_truth(study: tuple[Path, Path]) -> None:
    errors = _errors(study, "glm")
    assert (errors[errors["tissue"] == "CSF"]["error"].abs() < 7.0).all()


def test_without_correction_csf_spoils_cortex(study: tuple[Path, Path]) -> None:
    raw, corrected = (
        _errors(study, method).set_index(["participant_id", "tissue"])["error"] for method in ("raw", "glm")
    )
    for person in PEOPLE:
        assert raw[person, "CGM"] > 3.0
        assert abs(corrected[person, "CGM"]) < abs(raw[person, "CGM"])


def test_sodium_meets_anatomy_within_a_millimetre(study: tuple[Path, Path]) -> None:
    data, out = study
    for person in PEOPLE:
        truth = read_json(data / "derivatives" / "truth" / person / "anat" / f"{person}_truth.json")
        t1w_from_na = np.array(truth["t1w_from_na"])
        found = read_transform(out / person / "anat" / f"{person}_from-23Na_to-T1w_mode-image_xfm.txt", "T1w", "23Na")
        points = np.array(truth["Landmarks"]["T1w"], dtype=float)
        na = (points - t1w_from_na[:3, 3]) @ np.linalg.inv(t1w_from_na[:3, :3]).T
        assert float(np.linalg.norm(found.apply(na) - points, axis=-1).mean()) < 1.0
