"""Regions of a stroke and their mirror images: which enter, and what is said of those that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps import extract
from bids_sodium.steps._parts import _part_maps
from bids_sodium.steps._regions import _raw_rows, _verdict
from bids_sodium.steps._scene import Scene
from bids_sodium.steps._tissues import _taken_out

GRID = Grid.centred((20, 12, 12), 4.0)
PARAMS = extract.Params(participant_id="sub-01")
Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def box(low: int, high: int) -> Mask:
    """Return 6 x 6 voxels between two planes from left to right; a plane of them is 2.3 mL."""
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[low:high, 3:9, 3:9] = True
    return mask


def scene(csf: Mask | None = None, **masks: Mask) -> Scene:
    """Return a scene whose mirror is the middle plane of the grid."""
    fluid = np.zeros(GRID.shape, np.float32) if csf is None else csf.astype(np.float32)
    every = np.logical_or.reduce(list(masks.values()))
    return Scene(
        whole=GRID,
        box=(slice(None), slice(None), slice(None)),
        masks=masks,
        mirrored={name: mask[::-1] for name, mask in masks.items()},
        lesion=every,
        csf=fluid,
        csf_there=fluid[::-1],
        mirror=Affine(np.diag([-1.0, 1.0, 1.0, 1.0]), "T1w", "T1w"),
    )


def rows_of(place: Scene, name: str) -> list[dict[str, object]]:
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


def test_tissue_that_only_later_images_show_as_lesion_decays_and_leans_like_the_other_side() -> None:
    """An early scan is read with the final necrosis: what of it no oedema covers is not a lesion yet."""
    place = replace(scene(ionic=box(2, 4), necrosis=box(3, 6)), other_times=frozenset({"necrosis"}))
    maps, parts, made_of = _part_maps(place, shown(place.lesion), {})
    own = {names: mine for names, (mine, _) in parts.items()}
    assert own[("necrosis",)].startswith("WM:")  # the other side is white
    assert own[("ionic",)].startswith("lesion:")
    assert own[("ionic", "necrosis")].startswith("lesion:")
    mirrored = {names: theirs for names, (_, theirs) in parts.items()}
    assert set(made_of) == {*mirrored.values(), own[("necrosis",)]}
    assert set(maps) >= {*own.values(), *mirrored.values()}
    np.testing.assert_array_equal(np.asarray(maps[own[("necrosis",)]].data) > 0, box(4, 6))


def test_oedema_holds_the_tissue_that_the_t1w_image_shows_and_necrosis_that_of_the_other_side() -> None:
    """The T1w image is of a time when only the necrosis is left; three quarters of the oedema's voxels are tissue."""
    place = scene(ionic=box(2, 4), necrosis=box(4, 6))
    place = replace(place, csf_there=np.where(box(4, 6), np.float32(0.4), np.float32(0.0)))
    wet = np.where(box(2, 3), np.float32(0.25), np.float32(0.0))
    maps, parts, _ = _part_maps(place, shown(box(4, 6), csf=wet), {})
    ionic, necrosis = (np.asarray(maps[parts[(name,)][0]].data) for name in ("ionic", "necrosis"))
    assert (ionic[box(2, 3)] == 0.75).all()
    assert (ionic[box(3, 4)] == 1.0).all()
    np.testing.assert_allclose(necrosis[box(4, 6)], 0.6, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(maps["CSF"].data)[box(2, 3)], 0.25)
    total = np.sum([np.asarray(volume.data) for volume in maps.values()], axis=0)
    np.testing.assert_allclose(total[1:19, 2:10, 2:10], 1.0, rtol=1e-5)


def test_parts_hold_sodium_as_the_tissues_below_do() -> None:
    """Cortex in one plane of an oedema, white matter in the other: its concentration is the mean of what both hold."""
    place = scene(ionic=box(2, 4))
    tissues = shown(np.zeros(GRID.shape, dtype=bool))
    grey = np.asarray(tissues["CGM"].data)
    tissues["NAWM"] = tissues["NAWM"].with_data(np.asarray(tissues["NAWM"].data) + np.where(box(2, 3), grey, 0.0))
    tissues["CGM"] = tissues["CGM"].with_data(np.where(box(2, 3), np.float32(0.0), grey))
    maps, parts, _ = _part_maps(place, tissues, {"CGM": 45.0, "NAWM": 30.0})
    ionic = np.asarray(maps[parts[("ionic",)][0]].data)
    np.testing.assert_allclose(ionic[box(2, 3)], 30.0 / 37.5, rtol=1e-5)
    np.testing.assert_allclose(ionic[box(3, 4)], 45.0 / 37.5, rtol=1e-5)


def test_what_was_drawn_is_taken_out_of_the_tissues_at_the_time_of_the_scan() -> None:
    wet = np.where(box(2, 3), np.float32(0.25), np.float32(0.0))
    maps = shown(box(4, 6), csf=wet)
    found = {**maps, **_taken_out(maps, box(2, 5), maps["L"])}
    lesion = np.asarray(found["L"].data)
    assert (lesion[box(2, 3)] == 0.75).all()
    assert (lesion[box(3, 6)] == 1.0).all()
    assert not np.asarray(found["CGM"].data)[box(2, 6)].any()
    before, after = (np.sum([volume.data for volume in several.values()], axis=0) for several in (maps, found))
    np.testing.assert_allclose(after, before)
    bare = np.zeros(GRID.shape, dtype=bool)
    assert "L" not in _taken_out(maps, bare, maps["L"].with_data(np.zeros(GRID.shape, np.float32)))


def shown(lesion: Mask, csf: Mask | None = None) -> dict[str, Volume]:
    """Return what a T1w image shows: cortex on the left, white matter on the right, and the lesion."""
    brain = np.zeros(GRID.shape, dtype=np.float32)
    brain[1:19, 2:10, 2:10] = 1.0
    fluid = np.zeros(GRID.shape, dtype=np.float32) if csf is None else csf.astype(np.float32)
    tissue = np.where(lesion, np.float32(0.0), brain - fluid)
    left = np.arange(20)[:, None, None] < 10
    maps = {"CGM": tissue * left, "NAWM": tissue * ~left, "CSF": fluid, "L": lesion.astype(np.float32)}
    return {name: Volume(data, GRID, "1") for name, data in maps.items()}
