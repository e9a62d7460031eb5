"""Regions of a stroke and their mirror images: which enter, and what is said of those that do not."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps import extract
from bids_sodium.steps._regions import _raw_rows, _Scene, _verdict

GRID = Grid.centred((20, 12, 12), 4.0)
PARAMS = extract.Params(participant_id="sub-01")
Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def box(low: int, high: int) -> Mask:
    """Return 6 x 6 voxels between two planes from left to right; a plane of them is 2.3 mL."""
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[low:high, 3:9, 3:9] = True
    return mask


def scene(csf: Mask | None = None, **masks: Mask) -> _Scene:
    """Return a scene whose mirror is the middle plane of the grid."""
    fluid = np.zeros(GRID.shape, np.float32) if csf is None else csf.astype(np.float32)
    every = np.logical_or.reduce(list(masks.values()))
    return _Scene(
        whole=GRID,
        box=(slice(None), slice(None), slice(None)),
        masks=masks,
        mirrored={name: mask[::-1] for name, mask in masks.items()},
        lesion=every,
        csf=fluid,
        csf_there=fluid[::-1],
        mirror=Affine(np.diag([-1.0, 1.0, 1.0, 1.0]), "T1w", "T1w"),
    )


def rows_of(place: _Scene, name: str) -> list[dict[str, object]]:
    images = {"na": np.where(place.lesion, 150.0, 100.0), "adc": np.where(place.lesion, 0.5, 1.0)}
    return _raw_rows(place, name, name, _verdict(place, name, PARAMS), images, {"na": 0.2, "adc": 0.01})


def test_a_change_is_against_the_mirror_image() -> None:
    for row, percent in zip(rows_of(scene(ionic=box(2, 6)), "ionic"), (50.0, -50.0), strict=True):
        assert (row["kept"], row["reason"]) == (1, "")
        assert row["percent_change"] == pytest.approx(percent)
        assert row["volume_ml"] == pytest.approx(4 * 36 * 0.064)


def test_the_mirror_image_avoids_lesions_and_csf() -> None:
    """A small second lesion and a ventricle on the other side: what is left of the mirror image is compared."""
    fluid = box(17, 18)
    place = scene(csf=fluid, ionic=box(2, 6), necrosis=box(14, 15))
    verdict = _verdict(place, "ionic", PARAMS)
    assert verdict.kept
    np.testing.assert_array_equal(verdict.contra, box(15, 17))
    assert not (verdict.contra & (place.lesion | fluid)).any()


def test_a_bilateral_lesion_has_no_percentage_and_says_so() -> None:
    place = scene(ionic=box(2, 6) | box(14, 18), necrosis=box(2, 6))
    for name in ("ionic", "necrosis", "ionic&necrosis"):
        for row in rows_of(place, name):
            assert row["kept"] == 0
            assert "keeps 0 % outside lesions and CSF: a bilateral lesion has no contralateral side" in str(
                row["reason"]
            )
            assert np.isnan([row["percent_change"], row["percent_se"]]).all()
            assert row["volume_ml"] > 1.0
    assert rows_of(place, "ionic")[0]["ipsi"] == 150.0


def test_an_empty_intersection_and_a_small_region_are_named() -> None:
    small = np.zeros(GRID.shape, dtype=bool)
    small[3, 3:6, 3:6] = True  # nine voxels of 0.064 mL
    place = scene(ionic=box(2, 4), necrosis=box(5, 8), cytotoxic=small)
    for row in rows_of(place, "ionic&necrosis"):
        assert (row["kept"], row["reason"], row["volume_ml"]) == (0, "the region is empty", 0.0)
        assert np.isnan([row["ipsi"], row["percent_change"]]).all()
    for row in rows_of(place, "cytotoxic"):
        assert (row["kept"], row["reason"]) == (0, "volume 0.576 mL is below 1 mL")
        assert np.isfinite([row["percent_change"]]).all()  # it is told, but does not enter
