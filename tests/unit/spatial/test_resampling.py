"""Resampling: kinds, edges, frames, an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine, Warp, rigid_from_parameters

STILL = Affine.identity("a", "a")


def _image(seed: int, grid: Grid) -> Volume:
    noise = np.random.default_rng(seed).normal(size=grid.shape)
    return Volume((5.0 + 20.0 * ndimage.gaussian_filter(noise, 2.0)).astype(np.float32), grid)


@pytest.mark.parametrize("order", [1, 3])
def test_agrees_with_scipy_inside(order: int) -> None:
    grid = Grid((30, 32, 28), np.diag([2.0, 2.5, 3.0, 1.0]))
    image = _image(0, grid)
    pose = rigid_from_parameters((5.0, -8.0, 12.0), (3.0, 2.0, -4.0), target="a", source="b", centre_mm=(30, 40, 40))
    target = Grid((20, 21, 22), np.diag([2.0, 2.0, 2.0, 1.0]) + np.eye(4, k=3) * 8.0)
    out = resample(image, target, pose, order=order, average=False)  # type: ignore[arg-type]
    index = grid.index(pose.apply(target.world(np.moveaxis(np.indices(target.shape, dtype=float), 0, -1))))
    expected = ndimage.map_coordinates(image.data.astype(float), np.moveaxis(index, -1, 0), order=order, mode="mirror")
    inside = ((index > 1) & (index < np.array(grid.shape) - 2)).all(axis=-1)
    assert inside.sum() > 3000
    assert np.allclose(out.data[inside], expected[inside], atol=2e-3)


def test_beyond_half_a_voxel_is_outside() -> None:
    grid = Grid.centred((5, 5, 5), 2.0)
    line = Grid((9, 1, 1), np.diag([1.0, 1.0, 1.0, 1.0]) + np.outer([1, 0, 0, 0], [0, 0, 0, -5.6]))
    out = resample(Volume(np.ones((5, 5, 5)), grid), line, STILL, fill=-1.0).data[:, 0, 0]
    # Voxel centres lie at -4 ... 4 mm, so that the image ends at -5 mm.
    assert out.tolist() == [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_labels_are_never_mixed() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(np.array([0, 7, 1035], dtype=np.int32), (20, 20, 20))
    pose = rigid_from_parameters((7.0, 3.0, -9.0), (0.4, 0.2, 0.1), target="a", source="b")
    grid = Grid.centred((20, 20, 20), 1.0)
    for target in (Grid.centred((18, 18, 18), 0.7), Grid.centred((6, 6, 6), 3.0)):
        out = resample(Volume(labels, grid), target, pose, "label").data
        assert out.dtype == np.int32
        assert set(np.unique(out)) <= {0, 7, 1035}


def test_a_larger_voxel_takes_the_commonest_label() -> None:
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    labels[:4] = 3
    labels[0, 0, 0] = 9
    out = resample(Volume(labels, Grid.centred((8, 8, 8), 1.0)), Grid.centred((2, 2, 2), 4.0), STILL, "label").data
    # The two grids' middle voxels lie at the origin, so that a coarse voxel spans fine voxels -2.5 ... 1.5.
    assert out[0, 1, 1] == 3
    assert out[1, 1, 1] == 0


def test_masks_stay_masks() -> None:
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[2:4, 2:4, 2:4] = True
    grid = Grid.centred((6, 6, 6), 2.0)
    assert resample(Volume(mask, grid), grid, STILL, "label").data.dtype == np.bool_
    fraction = resample(Volume(mask, grid), grid, STILL, "probability")
    assert fraction.data.dtype == np.float32
    assert np.array_equal(fraction.data > 0.5, mask)


def test_probabilities_stay_between_zero_and_one() -> None:
    grid = Grid.centred((10, 10, 10), 2.0)
    data = np.random.default_rng(2).uniform(-0.2, 1.2, grid.shape)
    out = resample(Volume(data, grid), grid.with_voxel(1.3), STILL, "probability", order=3).data
    assert out.min() == 0.0
    assert out.max() == 1.0


def test_frames_and_complex_values_are_resampled_one_by_one() -> None:
    grid, target = Grid.centred((12, 12, 12), 2.0), Grid.centred((7, 7, 7), 2.5)
    real, imaginary = _image(3, grid), _image(4, grid)
    pose = rigid_from_parameters((0.0, 10.0, 0.0), (1.0, 0.0, 0.0), target="a", source="b")
    both = Volume(np.stack([real.data + 1j * imaginary.data, 2.0 * real.data], axis=-1), grid, unit="mmol/L")
    out = resample(both, target, pose)
    assert out.unit == "mmol/L"
    assert out.data.shape == (7, 7, 7, 2)
    assert np.allclose(out.data[..., 0].imag, resample(imaginary, target, pose).data, atol=1e-5)
    assert np.allclose(out.data[..., 1], 2.0 * resample(real, target, pose).data, atol=1e-5)


def test_large_averages_are_cut_into_slabs_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, target = Grid.centred((40, 40, 40), 1.0), Grid.centred((10, 10, 10), 3.7)
    image = _image(5, grid)
    pose = rigid_from_parameters((3.0, 4.0, 5.0), (1.0, 0.0, 0.0), target="a", source="b")
    whole = resample(image, target, pose).data
    monkeypatch.setattr("bids_sodium.spatial.resampling._LARGEST_BLOCK", 20_000)
    assert np.allclose(resample(image, target, pose).data, whole, atol=1e-5)


def test_averaging_lowers_noise_as_the_mean_does() -> None:
    grid = Grid.centred((48, 48, 48), 1.0)
    noise = Volume(np.random.default_rng(6).normal(size=grid.shape).astype(np.float32), grid)
    out = resample(noise, Grid.centred((10, 10, 10), 4.0), STILL)
    # 64 sub-samples half-way between voxels take in 5 x 5 x 5 of them, the outer ones by half.
    assert float(out.data.std()) == pytest.approx((np.sqrt(3.5) / 4.0) ** 3, rel=0.1)


def test_a_grid_elsewhere_is_refused_with_numbers() -> None:
    grid = Grid.centred((8, 8, 8), 2.0)
    away = rigid_from_parameters((0.0, 0.0, 0.0), (200.0, 0.0, 0.0), target="t1w", source="na")
    with pytest.raises(GeometryError, match=r"do not overlap.*19\d\.0.*t1w_from_na"):
        resample(Volume(np.ones((8, 8, 8)), grid), grid, away)


@pytest.mark.parametrize(
    ("data", "kind", "order", "words"),
    [
        (np.ones((2, 2, 2)), "label", 1, "not integers"),
        (np.ones((2, 2, 2)), "mask", 1, "no kind"),
        (np.ones((2, 2, 2)), "intensity", 2, "order 2"),
        (np.ones((2, 2, 2), dtype=complex), "probability", 1, "not real"),
    ],
)
def test_wrong_requests_are_refused(data: np.ndarray, kind: str, order: int, words: str) -> None:
    grid = Grid.centred((2, 2, 2), 2.0)
    with pytest.raises(DataError, match=words):
        resample(Volume(data, grid), grid, STILL, kind, order=order)  # type: ignore[arg-type]


def test_a_warp_moves_the_image_against_its_displacement() -> None:
    grid = Grid.centred((21, 21, 21), 2.0)
    image = np.zeros(grid.shape, dtype=np.float32)
    image[10, 10, 10] = 1.0
    field = np.zeros((*grid.shape, 3))
    field[..., 0] = 4.0
    out = resample(Volume(image, grid), grid, Warp(field, grid, "a", "b")).data
    assert np.argwhere(out > 0.5).tolist() == [[8, 10, 10]]
