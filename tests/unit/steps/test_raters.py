"""What several raters drew of one region becomes one row a pair, with numbers that follow from the masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_sodium.bidsio.files import read_table, write_table
from bids_sodium.core.tables import RATERS
from bids_sodium.steps._raters import rater_names, rater_rows

VOXEL = (2.0, 1.0, 1.0)


def box(start: int, stop: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return 10 x 10 voxels between two sections of the first axis."""
    mask = np.zeros((30, 20, 20), dtype=bool)
    mask[start:stop, 5:15, 5:15] = True
    return mask


def paths(*names: str) -> list[Path]:
    return [Path(f"sub-01_ses-acute_label-ionic_{name}mask.nii.gz") for name in names]


def test_every_pair_of_three_raters_has_its_row() -> None:
    masks = [box(5, 15), box(5, 15), box(7, 19)]
    rows = rater_rows("ionic", "sub-01_ses-acute", paths("desc-b_", "desc-a_", "desc-c_"), masks, VOXEL)
    assert [(row["rater_a"], row["rater_b"]) for row in rows] == [("b", "a"), ("b", "c"), ("a", "c")]
    same, *other = rows
    assert (same["dice"], same["hausdorff95_mm"], same["volume_difference_ml"]) == (1.0, 0.0, 0.0)
    for row in other:
        # 10 and 12 sections of 100 voxels of 2 mm3, 8 of them in common; outlines 2 and 4 sections of 2 mm apart
        assert row["dice"] == pytest.approx(2 * 8 / (10 + 12))
        assert (row["volume_a_ml"], row["volume_b_ml"]) == pytest.approx((2.0, 2.4))
        assert row["volume_difference_ml"] == pytest.approx(0.4)
        assert 4.0 <= float(str(row["hausdorff95_mm"])) <= 8.0
    assert {(row["participant_id"], row["session_id"], row["label"]) for row in rows} == {
        ("sub-01", "ses-acute", "ionic")
    }


def test_one_rater_has_no_row_and_a_dataset_may_have_no_sessions() -> None:
    assert rater_rows("ionic", "sub-01", paths("desc-a_"), [box(5, 15)], VOXEL) == []
    (row,) = rater_rows("ionic", "sub-01", paths("", ""), [box(5, 15), box(5, 15)], VOXEL)
    assert (row["participant_id"], row["session_id"]) == ("sub-01", None)
    assert (row["rater_a"], row["rater_b"]) == ("rater1", "rater2")


def test_names_that_do_not_tell_raters_apart_become_numbers() -> None:
    assert rater_names(paths("desc-a_", "desc-a_")) == ("rater1", "rater2")
    assert rater_names(paths("desc-a_", "")) == ("rater1", "rater2")


def test_an_empty_mask_agrees_with_nothing(tmp_path: Path) -> None:
    rows = rater_rows("ionic", "sub-01_ses-acute", paths("desc-a_", "desc-b_"), [box(5, 15), box(5, 5)], VOXEL)
    assert rows[0]["dice"] == 0.0
    write_table(tmp_path / "raters.tsv", rows, RATERS)
    read = read_table(tmp_path / "raters.tsv", schema=RATERS)
    assert tuple(read.columns) == RATERS.names
    assert read["hausdorff95_mm"].isna().all()
    assert read["volume_b_ml"].tolist() == [0.0]
