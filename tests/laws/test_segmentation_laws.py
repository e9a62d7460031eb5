"""Segmentation does not depend on how an image is stored: axes, handedness, obliquity, scale, type, field of view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_sodium.core.data import Grid, HeadTemplate, Volume
from bids_sodium.spatial.transforms import rigid_from_parameters
from bids_sodium.tissue.segmentation import Segmentation, SegmentationParams, segment

SHAPE, VOXEL_MM = (60, 64, 60), 3.0
GRID = Grid.centred(SHAPE, VOXEL_MM)
PARAMS = SegmentationParams(brain_mask="template", bias_voxel_mm=6.0)
# an egg: no axis is like another
X, Y, Z = np.moveaxis(GRID.world(np.moveaxis(np.indices(SHAPE), 0, -1).astype(float)), -1, 0)
R = np.sqrt((X / 0.9) ** 2 + (Y / 1.1) ** 2 + Z**2) + 0.08 * X
DEEP = (R >= 24) & (R < 44) & (np.abs(X - 4) < 12)
CSF, CGM, NAWM = (R < 24) | ((R >= 66) & (R < 72)), (R >= 58) & (R < 66), (R >= 24) & (R < 58) & ~DEEP


def scene() -> tuple[Volume, HeadTemplate]:
    clean = np.select([CSF, CGM, DEEP, NAWM, R < 80, R < 86], [250.0, 600.0, 660.0, 850.0, 60.0, 1100.0], 5.0)
    clean = clean * np.exp(0.1 * np.sin(X / 60.0) + 0.05 * Z / 60.0)
    image = np.abs(clean + np.random.default_rng(0).normal(0, 12, SHAPE)).astype(np.float32)
    maps = {"gm": CGM | DEEP, "wm": NAWM, "csf": CSF, "deep": DEEP}
    prior = HeadTemplate(GRID, image, brain=R < 72, **{k: v.astype(np.float32) for k, v in maps.items()})
    return Volume(image, GRID), prior


@pytest.fixture(scope="module")
def found() -> Segmentation:
    return segment(*scene(), PARAMS)


def turned(volume: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.transpose(volume, order)[tuple(slice(None, None, s) for s in signs)])


def stored(order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[Volume, HeadTemplate]:
    """Return the same head with other array axes; the world stays."""
    image, prior = scene()
    index = np.zeros((4, 4))
    index[3, 3] = 1.0
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        index[old, new] = sign
        index[old, 3] = 0.0 if sign > 0 else SHAPE[old] - 1.0
    shape = tuple(SHAPE[axis] for axis in order)
    grid = Grid((shape[0], shape[1], shape[2]), GRID.affine @ index)
    arrays = {k: turned(getattr(prior, k), order, signs) for k in ("t1", "gm", "wm", "csf", "deep", "brain")}
    return Volume(turned(image.data, order, signs), grid), HeadTemplate(grid, **arrays)


def same(first: Segmentation, second: Segmentation, *, rel: float) -> None:
    for name, ml in second.volume_ml.items():
        assert first.volume_ml[name] == pytest.approx(ml, rel=rel), name
    for name in ("bpf", "gmf", "wmf"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=rel)


@pytest.mark.parametrize(("order", "signs"), [((0, 1, 2), (-1, 1, 1)), ((2, 0, 1), (1, 1, -1))])
def test_axes_and_handedness(found: Segmentation, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    image, prior = stored(order, signs)
    assert np.linalg.det(image.grid.affine[:3, :3]) < 0
    other = segment(image, prior, PARAMS)
    same(other, found, rel=0.005)
    for name, share in found.fractions.items():
        assert np.abs(other.fractions[name] - turned(share, order, signs)).mean() < 0.003


def test_obliquity(found: Segmentation) -> None:
    image, prior = scene()
    turn = rigid_from_parameters((20.0, -15.0, 30.0), (50.0, -20.0, 10.0), target="w", source="i").matrix
    grid = Grid(SHAPE, turn @ GRID.affine)
    other = segment(Volume(image.data, grid), replace(prior, grid=grid), PARAMS)
    # the box round the brain may differ by a slice
    same(other, found, rel=2e-3)


def test_scale(found: Segmentation) -> None:
    image, prior = scene()
    other = segment(image.with_data(image.data * np.float32(0.004)), prior, PARAMS)
    same(other, found, rel=0.002)
    assert other.modes["WM"] == pytest.approx(0.004 * found.modes["WM"], rel=0.01)


def test_bytes(found: Segmentation) -> None:
    image, prior = scene()
    small = np.clip(np.rint(image.data * (255.0 / 1400.0)), 0, 255).astype(np.uint8)
    same(segment(image.with_data(small), prior, PARAMS), found, rel=0.01)


def test_thick_slices(found: Segmentation) -> None:
    def halved(data: np.ndarray) -> np.ndarray:
        return np.asarray(data, np.float32).reshape(SHAPE[0], SHAPE[1], SHAPE[2] // 2, 2).mean(-1)

    image, prior = scene()
    affine = GRID.affine @ np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] += 0.5 * GRID.affine[:3, 2]
    grid = Grid((SHAPE[0], SHAPE[1], SHAPE[2] // 2), affine)
    maps = {k: halved(getattr(prior, k)) for k in ("t1", "gm", "wm", "csf", "deep")}
    thick = HeadTemplate(grid, **maps, brain=halved(prior.brain) >= 0.5)
    other = segment(Volume(halved(image.data), grid), thick, PARAMS)
    for name in ("CGM", "DGM", "NAWM"):
        assert other.volume_ml[name] == pytest.approx(found.volume_ml[name], rel=0.06), name
    assert other.tiv_ml == pytest.approx(found.tiv_ml, rel=0.06)


def test_image_that_cuts_the_brain_says_so_and_the_rest_stays(found: Segmentation) -> None:
    image, prior = scene()
    keep = slice(0, 44)
    grid = Grid((SHAPE[0], SHAPE[1], 44), GRID.affine)
    arrays = {k: np.ascontiguousarray(getattr(prior, k)[..., keep]) for k in ("t1", "gm", "wm", "csf", "deep", "brain")}
    part = segment(Volume(np.ascontiguousarray(image.data[..., keep]), grid), HeadTemplate(grid, **arrays), PARAMS)
    assert any("cuts the brain" in note for note in part.notes)
    assert not any("cuts the brain" in note for note in found.notes)
    inside = (slice(None), slice(None), slice(0, 36))
    for name, share in found.fractions.items():
        assert np.abs(part.fractions[name][inside] - share[inside]).mean() < 0.01
