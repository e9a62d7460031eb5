"""Inputs that registration refuses, the head mask, and small sure cases."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.spatial.registration import RegistrationParams, head_mask, register, register_deformable
from bids_sodium.spatial.transforms import Affine, rigid_from_parameters

GRID = Grid.centred((32, 36, 32), 6.0)

QUICK = RegistrationParams(levels_mm=(16.0, 8.0), rings_mm=(20.0, 8.0), points=(1500, 4000), classes=(6, 8))


def _head(grid: Grid = GRID, pose: Affine | None = None) -> Volume:
    place = grid.world(np.moveaxis(np.indices(grid.shape, dtype=float), 0, -1))
    x, y, z = np.moveaxis(place if pose is None else pose.apply(place), -1, 0)
    edge = np.exp(-((x / 60) ** 8) - ((y / 75) ** 8) - ((z / 65) ** 8))
    return Volume(edge * (3 + np.sin(x / 15 + 0.4) + np.cos(y / 19 + z / 23) + 0.5 * np.sin(z / 13)), grid)


def test_the_pose_comes_back_and_is_the_same_twice() -> None:
    pose = rigid_from_parameters((6.0, -8.0, 10.0), (8.0, -6.0, 12.0), target="a", source="b")
    first, second = (register(_head(), _head(pose=pose), fixed_name="a", moving_name="b") for _ in range(2))
    assert (first.transform.target, first.transform.source) == ("a", "b")
    points = np.random.default_rng(0).uniform(-50, 50, (50, 3))
    assert np.linalg.norm(first.transform.apply(points) - pose.apply(points), axis=1).mean() < 0.3
    assert isinstance(first.transform, Affine)
    assert isinstance(second.transform, Affine)
    assert np.array_equal(first.transform.matrix, second.transform.matrix)
    assert first.n_starts == 14
    assert first.overlap == 1.0
    assert first.metric < 0.05


def test_units_of_the_images_do_not_matter() -> None:
    pose = rigid_from_parameters((3.0, 0.0, 5.0), (5.0, 4.0, 0.0), target="a", source="b")
    moving = _head(pose=pose)
    one = register(_head(), moving).transform
    other = register(_head().with_data(_head().data * 1e4), moving.with_data(moving.data * 1e-3)).transform
    assert np.allclose(one.apply(np.eye(3) * 50), other.apply(np.eye(3) * 50), atol=1e-3)


@pytest.mark.parametrize("stored", ["left-handed", "other axes", "oblique", "bytes", "thick slices"])
def test_how_an_image_is_stored_does_not_matter(stored: str) -> None:
    pose = rigid_from_parameters((3.0, -4.0, 5.0), (5.0, 4.0, -6.0), target="a", source="b")
    fine = Grid.centred((68, 76, 68), 3.0)
    moving = _head(fine, pose)
    data, affine = np.asarray(moving.data), fine.affine
    if stored == "left-handed":
        turned = affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
        turned[:3, 3] = affine[:3, 3] + affine[:3, 0] * (fine.shape[0] - 1)
        moving = Volume(data[::-1], Grid(fine.shape, turned))
        assert np.linalg.det(moving.grid.affine[:3, :3]) < 0
    elif stored == "other axes":
        shape = (fine.shape[1], fine.shape[2], fine.shape[0])
        moving = Volume(data.transpose(1, 2, 0), Grid(shape, affine[:, [1, 2, 0, 3]]))
    elif stored == "oblique":
        lattice = rigid_from_parameters((25.0, -10.0, 15.0), (0.0, 0.0, 0.0), target="w", source="i").matrix
        moving = _head(Grid(fine.shape, lattice @ affine), pose)
    elif stored == "bytes":
        moving = moving.with_data(np.rint(40.0 * data).astype(np.uint8))
    else:
        thick = np.diag([1.5, 1.5, 5.0, 1.0])
        thick[:3, 3] = [-102.0, -114.0, -105.0]
        moving = _head(Grid((136, 152, 42), thick), pose)
    found = register(_head(fine), moving, QUICK, fixed_name="a", moving_name="b").transform
    points = np.random.default_rng(0).uniform(-50, 50, (50, 3))
    assert np.linalg.norm(found.apply(points) - pose.apply(points), axis=1).mean() < 0.5


def test_series_and_complex_images_use_their_first_magnitude() -> None:
    pose = rigid_from_parameters((3.0, 0.0, 5.0), (5.0, 4.0, 0.0), target="a", source="b")
    moving = _head(pose=pose)
    series = moving.with_data(np.stack([moving.data * np.exp(0.7j), np.zeros_like(moving.data)], axis=-1))
    one, other = register(_head(), moving).transform, register(_head(), series).transform
    assert np.allclose(one.apply(np.eye(3) * 50), other.apply(np.eye(3) * 50), atol=1e-3)


@pytest.mark.parametrize(
    ("fixed", "moving", "error", "words"),
    [
        (_head(), _head().with_data(np.full(GRID.shape, 3.0)), EstimationError, "na: every voxel has the value 3"),
        (_head().with_data(np.zeros(GRID.shape)), _head(), EstimationError, "t1w: every voxel has the value 0"),
        (_head(), _head().with_data(np.full(GRID.shape, np.nan)), DataError, "na: 36864 voxels are NaN"),
    ],
)
def test_empty_and_broken_images_are_refused(fixed: Volume, moving: Volume, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        register(fixed, moving, fixed_name="t1w", moving_name="na")


def test_masks_and_first_guesses_must_fit() -> None:
    with pytest.raises(GeometryError, match="mask of shape"):
        register(_head(), _head(), fixed_mask=np.ones((3, 3, 3), dtype=bool))
    with pytest.raises(EstimationError, match="mask of the fixed image is empty"):
        register(_head(), _head(), fixed_mask=np.zeros(GRID.shape, dtype=bool))
    with pytest.raises(GeometryError, match="na_from_t1w, not t1w_from_na"):
        register(_head(), _head(), fixed_name="t1w", moving_name="na", initial=Affine.identity("na", "t1w"))
    with pytest.raises(GeometryError, match="mask of shape"):
        register_deformable(_head(), _head(), moving_mask=np.ones((3, 3, 3), dtype=bool))


def test_a_first_guess_that_misses_is_refused() -> None:
    away = rigid_from_parameters((0.0, 0.0, 0.0), (400.0, 0.0, 0.0), target="fixed", source="moving")
    with pytest.raises(EstimationError, match=r"0 % of the mask lies within it, after 1 start"):
        register(_head(), _head(), initial=away)


def test_the_head_has_no_holes_and_no_vials() -> None:
    image = np.array(_head().data)
    image[14:18, 16:20, 14:18] = 0.0
    image[0:2, 16:20, 10:20] = 3.0
    mask = head_mask(_head().with_data(image))
    assert mask[16, 18, 16]
    assert not mask[0:2].any()
    with pytest.raises(EstimationError, match="empty"):
        head_mask(_head().with_data(np.zeros(GRID.shape)))


def test_levels_can_be_left_out() -> None:
    pose = rigid_from_parameters((2.0, 0.0, 3.0), (4.0, 3.0, 0.0), target="fixed", source="moving")
    one = RegistrationParams(levels_mm=(12.0,), rings_mm=(12.0,), points=(4000,), classes=(8,))
    found = register(_head(), _head(pose=pose), one).transform
    assert np.allclose(found.apply([0.0, 0.0, 0.0]), pose.apply([0.0, 0.0, 0.0]), atol=1.0)


def test_levels_must_have_one_value_each() -> None:
    with pytest.raises(ConfigError, match="levels_mm 2, rings_mm 3"):
        RegistrationParams(levels_mm=(10.0, 5.0))
    with pytest.raises(ConfigError, match="demons_levels_mm 0"):
        RegistrationParams(demons_levels_mm=(), demons_iterations=())
