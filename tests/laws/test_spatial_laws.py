"""Group laws of transforms, and what resampling must conserve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_sodium.core.data import Grid, Volume
from bids_sodium.spatial.mirror import contralateral, mirror_transform
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine, Chain, Transform, Warp, distance_mm, rigid_from_parameters

SEEDS = st.integers(0, 2**32 - 1)


def _affine(rng: np.random.Generator, target: str, source: str) -> Affine:
    turn = rigid_from_parameters(rng.uniform(-40, 40, 3), rng.uniform(-50, 50, 3), target=target, source=source)
    stretch = np.eye(4)
    stretch[:3, :3] += rng.uniform(-0.15, 0.15, (3, 3))
    return Affine(turn.matrix @ stretch, target, source)


def _warp(rng: np.random.Generator, target: str, source: str) -> Warp:
    grid = Grid.centred((34, 36, 34), 4.0)
    place = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    field = np.zeros((*grid.shape, 3))
    for _ in range(4):
        bell = np.exp(-((place - rng.uniform(-15, 15, 3)) ** 2).sum(axis=-1) / (2 * 11.0**2))
        field += bell[..., None] * rng.uniform(-3, 3, 3)
    return Warp(field, grid, target, source).with_inverse()


def _smooth(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    place = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    wave = rng.uniform(-0.08, 0.08, 3)
    return np.asarray(2.0 + np.sin(place @ wave)).astype(np.float32)


@given(SEEDS)
def test_the_inverse_undoes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    step, points = _affine(rng, "b", "a"), rng.uniform(-80, 80, (20, 3))
    assert np.allclose(step.inverse().apply(step.apply(points)), points, atol=1e-9)
    back = step.inverse()
    assert np.allclose((back @ step).matrix, np.eye(4), atol=1e-12)
    assert np.allclose(back.inverse().matrix, step.matrix, atol=1e-10)


@given(SEEDS)
@settings(max_examples=30)
def test_composition_is_associative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = _affine(rng, "d", "c"), _warp(rng, "c", "b"), _affine(rng, "b", "a")
    points = rng.uniform(-60, 60, (20, 3))
    left, right = (a @ b) @ c, a @ (b @ c)
    assert distance_mm(left, right, points).max() < 1e-9
    assert np.allclose(left.apply(points), a.apply(b.apply(c.apply(points))))


@given(SEEDS)
@settings(max_examples=30)
def test_the_inverse_of_a_product_is_the_product_of_inverses(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = _warp(rng, "c", "b"), _affine(rng, "b", "a")
    points = rng.uniform(-60, 60, (20, 3))
    assert distance_mm((a @ b).inverse(), b.inverse() @ a.inverse(), points).max() < 1e-9


@given(SEEDS)
@settings(max_examples=20)
def test_a_warp_and_its_inverse_meet_within_a_tenth_of_a_voxel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bend = _warp(rng, "b", "a")
    points = rng.uniform(-45, 45, (200, 3))
    miss_mm = np.linalg.norm(bend.inverse().apply(bend.apply(points)) - points, axis=1)
    assert miss_mm.max() < 0.4
    assert miss_mm.mean() < 0.05


@given(SEEDS)
def test_half_the_way_twice_is_the_whole(seed: int) -> None:
    whole = _affine(np.random.default_rng(seed), "b", "a")
    half = whole.sqrt("midway")
    assert (half.target, half.source) == ("midway", "a")
    assert np.allclose(half.matrix @ half.matrix, whole.matrix, atol=1e-8)


@given(SEEDS, st.sampled_from(["intensity", "probability", "label"]))
@settings(max_examples=20)
def test_resampling_onto_itself_changes_nothing(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid((9, 8, 7), _affine(rng, "w", "i").matrix * np.array([2.0, 3.0, 1.5, 1.0]))
    data = rng.integers(0, 5, grid.shape) if kind == "label" else rng.random(grid.shape).astype(np.float32)
    again = resample(Volume(data, grid), grid, Affine.identity("a", "a"), kind)  # type: ignore[arg-type]
    assert np.allclose(again.data, data, atol=1e-5)


@given(SEEDS)
@settings(max_examples=15)
def test_one_interpolation_through_the_chain_is_the_function_of_the_mapped_points(seed: int) -> None:
    # A linear image is interpolated exactly, so the resampled image is known at every voxel.
    rng = np.random.default_rng(seed)
    source = Grid.centred((60, 60, 60), 4.0)
    slope = rng.uniform(-1, 1, 3)
    image = Volume((source.world(np.moveaxis(np.indices(source.shape), 0, -1)) @ slope).astype(np.float32), source)
    chain: Transform = _affine(rng, "c", "b") @ (_warp(rng, "b", "a") @ _affine(rng, "a", "t"))
    assert isinstance(chain, Chain)
    target = Grid.centred((10, 11, 12), 3.0)
    places = chain.apply(target.world(np.moveaxis(np.indices(target.shape, dtype=float), 0, -1)))
    inside = (np.abs(places) < 115.0).all(axis=-1)
    out = resample(image, target, chain, average=False).data
    assert np.allclose(out[inside], (places @ slope)[inside], atol=2e-3)


@given(SEEDS)
@settings(max_examples=10)
def test_averaging_keeps_volumes_and_fractions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fine = Grid.centred((64, 64, 64), 1.0)
    place = fine.world(np.moveaxis(np.indices(fine.shape), 0, -1)) - rng.uniform(-3, 3, 3)
    ball = np.linalg.norm(place, axis=-1) < 15.0
    pose = rigid_from_parameters(rng.uniform(-30, 30, 3), rng.uniform(-4, 4, 3), target="t1w", source="na")
    coarse = Grid.centred((16, 16, 16), 4.0)
    fraction = resample(Volume(ball, fine), coarse, pose, "probability")
    assert float(fraction.data.sum()) * coarse.voxel_ml == pytest.approx(ball.sum() * fine.voxel_ml, rel=0.01)


@given(SEEDS)
@settings(max_examples=15)
def test_the_mirror_is_its_own_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mirror = mirror_transform(_warp(rng, "mni", "aligned") @ _affine(rng, "aligned", "t1w"))
    assert (mirror.target, mirror.source) == ("t1w", "t1w")
    points = rng.uniform(-40, 40, (50, 3))
    assert np.linalg.norm(mirror.apply(mirror.apply(points)) - points, axis=1).mean() < 0.1


@given(SEEDS)
@settings(max_examples=15)
def test_the_other_side_has_the_same_volume_and_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid.centred((40, 40, 40), 2.0)
    place = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    mask = np.linalg.norm(place - [18.0, *rng.uniform(-8, 8, 2)], axis=-1) < 11.0
    pose = rigid_from_parameters(rng.uniform(-8, 8, 3), rng.uniform(-4, 4, 3), target="mni", source="t1w")
    mirror = mirror_transform(pose)
    other = contralateral(mask, grid, mirror)
    assert other.sum() == pytest.approx(mask.sum(), rel=0.06)
    assert not (other & mask).any()
    again = contralateral(other, grid, mirror)
    assert 2 * (again & mask).sum() / (again.sum() + mask.sum()) > 0.9
