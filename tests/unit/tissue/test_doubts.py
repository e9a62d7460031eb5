"""Doubts are the changes that moving and redrawing the maps really makes."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.simulate.brain import rigid
from bids_sodium.tissue.doubts import OUTSIDE, boundary_doubts, placing_doubts, rigid_covariance, varied

SIGNAL = {"CGM": 40.0, "CSF": 140.0}


def tilted(shape: tuple[int, int, int] = (40, 44, 36)) -> Grid:
    affine = rigid(np.array([10.0, -20.0, 30.0]), np.array([5.0, -3.0, 2.0])) @ np.diag([1.5, 2.0, 1.8, 1.0])
    affine[:3, 3] -= affine[:3, :3] @ (np.array(shape) / 2)
    return Grid(shape, affine)


def blob(grid: Grid, moved_mm: np.ndarray | None = None, edge_mm: float = 2.5) -> dict[str, Volume]:
    """Return a smooth body and its shell, seen from points moved the other way.

    The edges are wide enough for the central differences of a lattice of 2 mm.
    """
    points = grid.world(np.indices(grid.shape).transpose(1, 2, 3, 0).astype(float))
    points = points if moved_mm is None else points @ np.linalg.inv(moved_mm)[:3, :3].T + np.linalg.inv(moved_mm)[:3, 3]
    r = np.sqrt((points**2 * [1.0, 0.6, 1.4]).sum(-1))
    core = 1 / (1 + np.exp((r - 7.0) / edge_mm))
    shell = 1 / (1 + np.exp((r - 16.0) / edge_mm)) - core
    return {"CGM": Volume(core, grid), "CSF": Volume(shell, grid)}


@pytest.mark.parametrize("which", range(6))
def test_a_motion_changes_the_signal_as_stated(which: int) -> None:
    grid = tilted()
    step = np.zeros(6)
    step[which] = 0.1 if which < 3 else 0.01
    (change,) = placing_doubts(blob(grid), SIGNAL, covariance=np.outer(step, step))
    # the turn is about the mean of the tissue's voxels, which is the middle of the body to a tenth of a voxel or two
    there, back = (blob(grid, rigid(np.rad2deg(sign * step[3:]), sign * step[:3])) for sign in (1.0, -1.0))
    seen = sum(SIGNAL[n] * (np.asarray(there[n].data) - np.asarray(back[n].data)) / 2 for n in SIGNAL)
    error = np.minimum(np.abs(change.data - seen).max(), np.abs(change.data + seen).max())
    assert error < 0.15 * np.abs(seen).max()


def test_motions_are_as_many_as_are_uncertain_and_share_the_error() -> None:
    grid = tilted()
    points = grid.world(np.argwhere(np.asarray(blob(grid)["CGM"].data) > 0.5).astype(float))
    C = rigid_covariance(0.5, points)
    arm = points - points.mean(axis=0)
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal(np.zeros(6), C, size=400)
    error = [np.mean(np.sum((d[:3] + np.cross(d[3:], arm)) ** 2, axis=1)) for d in draws]
    assert np.sqrt(np.mean(error)) == pytest.approx(0.5, rel=0.05)
    assert len(placing_doubts(blob(grid), SIGNAL, target_error_mm=0.5)) == 6
    assert placing_doubts(blob(grid), SIGNAL, target_error_mm=0.0) == []


def test_a_moved_boundary_changes_the_signal_as_stated() -> None:
    grid = tilted((80, 84, 72))
    change = boundary_doubts(blob(grid, edge_mm=0.8), SIGNAL, 0.1)
    assert set(change) == {("CGM", "CSF"), ("CSF", OUTSIDE)}
    # the body's surface is where r, a stretched distance, is 9 mm: along an axis of stretch s it moves by 1 / sqrt(s)
    ball = {"CGM": Volume(1 / (1 + np.exp(distance(grid) - 12.0)), grid)}
    grown = 1 / (1 + np.exp(distance(grid) - 12.1))
    (own,) = boundary_doubts(ball, SIGNAL, 0.1).values()
    assert float(own.data.sum()) == pytest.approx(40.0 * float((grown - np.asarray(ball["CGM"].data)).sum()), rel=0.03)


def distance(grid: Grid) -> np.ndarray:
    return np.sqrt((grid.world(np.indices(grid.shape).transpose(1, 2, 3, 0).astype(float)) ** 2).sum(-1))


def test_boundaries_know_their_tissues() -> None:
    grid = tilted()
    one = boundary_doubts(blob(grid), SIGNAL, {"CSF": 0.2, "CGM": 0.1})
    two = boundary_doubts(blob(grid), {**SIGNAL, "CGM": float("nan")}, 0.2)
    np.testing.assert_allclose(one["CGM", "CSF"].data / (40.0 - 140.0), two["CGM", "CSF"].data / -140.0, rtol=1e-4)
    assert boundary_doubts(blob(grid), SIGNAL, 0.1, least_cm2=1e4) == {}


def test_what_is_no_doubt_is_refused() -> None:
    grid = tilted()
    other = Volume(np.zeros((4, 4, 4)), Grid.centred((4, 4, 4), 2.0))
    with pytest.raises(GeometryError, match="do not share a lattice"):
        placing_doubts({**blob(grid), "L": other}, SIGNAL, target_error_mm=0.1)
    with pytest.raises(DataError, match="not stated"):
        placing_doubts(blob(grid), SIGNAL)
    with pytest.raises(GeometryError, match="6 x 6"):
        placing_doubts(blob(grid), SIGNAL, covariance=np.eye(3))
    with pytest.raises(DataError, match="empty"):
        boundary_doubts({"L": other}, SIGNAL, 0.1)
    with pytest.raises(DataError, match="no tissue"):
        placing_doubts({"L": other.with_data(np.full((4, 4, 4), 0.1))}, SIGNAL, target_error_mm=0.1)
    with pytest.raises(DataError, match="registration error of -1"):
        rigid_covariance(-1.0, np.eye(3))
    with pytest.raises(DataError, match="one place"):
        rigid_covariance(1.0, np.ones((4, 3)))


def parts_of_a_ball(grid: Grid) -> dict[str, Volume]:
    points = grid.world(np.indices(grid.shape).transpose(1, 2, 3, 0).astype(float))
    ball = np.linalg.norm(points, axis=-1) < 18.0
    side = points[..., 0] > 6.0
    return {"core": Volume((ball & ~side).astype(float), grid), "rim": Volume((ball & side).astype(float), grid)}


def test_a_smooth_field_varies_between_regions_as_its_covariance_says() -> None:
    regions, sd, length = parts_of_a_ball(tilted((28, 26, 24))), 7.0, 12.0
    found = varied(regions, np.random.default_rng(0), sd_mmol_l=sd, length_mm=length)
    held = {
        name: region.grid.world(np.argwhere(np.asarray(region.data) > 0).astype(float))[::3]
        for name, region in regions.items()
    }
    for i, a in enumerate(held.values()):
        for j, b in enumerate(held.values()):
            d2 = ((a[:, None] - b[None]) ** 2).sum(-1)
            assert found.covariance[i, j] == pytest.approx(sd**2 * np.exp(-d2 / length**2).mean(), rel=0.02)


def test_what_varies_within_regions_leaves_their_means() -> None:
    regions = parts_of_a_ball(tilted((28, 26, 24)))
    found = varied(regions, np.random.default_rng(1), sd_mmol_l=7.0, length_mm=12.0, n_draws=400)
    together = np.sqrt(np.sum([np.asarray(change.data) ** 2 for change in found.within], axis=0))
    for change in found.within[:5]:
        for name, region in regions.items():
            share = np.asarray(region.data)[tuple(slice(*span) for span in spans(region, change))]
            assert abs(float((share * np.asarray(change.data)).sum())) < 1e-3 * share.sum(), name
    # about the means less is left than the whole standard deviation
    assert 2.0 < together[together > 0].mean() < 7.0


def spans(region: Volume, change: Volume) -> list[tuple[int, int]]:
    first = np.round(region.grid.index(change.grid.affine[:3, 3])).astype(int)
    return [(int(a), int(a) + n) for a, n in zip(first, change.grid.shape, strict=True)]
