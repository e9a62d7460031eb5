"""Grid, k-space and decay laws."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_sodium.core.constants import RELAXATION
from bids_sodium.core.data import Grid, KSpace, Trajectory, Volume
from bids_sodium.core.errors import DataError, GeometryError, SodiumError


def test_world_and_index_are_inverse() -> None:
    rng = np.random.default_rng(1)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * [3.0, 2.0, 1.5]
    affine[:3, 3] = rng.normal(size=3) * 40
    grid = Grid((10, 12, 14), affine)
    index = rng.uniform(0, 9, (50, 3))
    assert np.allclose(grid.index(grid.world(index)), index)
    assert grid.voxel_mm == pytest.approx((3.0, 2.0, 1.5))
    assert grid.voxel_ml == pytest.approx(0.009)


@given(st.floats(0.7, 5.0), st.integers(8, 40))
def test_finer_grid_keeps_its_fourier_centre_and_covers_the_field(voxel_mm: float, n: int) -> None:
    grid = Grid.centred((n, n + 1, n + 2), 4.0)
    fine = grid.with_voxel(voxel_mm)
    assert np.allclose(fine.origin_mm, grid.origin_mm)
    assert all(a >= b - 1e-6 for a, b in zip(fine.fov_mm, grid.fov_mm, strict=True))
    assert fine.voxel_mm == pytest.approx((voxel_mm,) * 3)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0])])
def test_bad_affine_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError, match="singular"):
        Grid((4, 4, 4), affine)


def test_data_must_fit_its_grid() -> None:
    with pytest.raises(GeometryError, match="shape"):
        Volume(np.zeros((3, 3, 3)), Grid.centred((4, 4, 4), 1.0))


def _trajectory(shots: int, samples: int) -> Trajectory:
    return Trajectory(np.zeros((shots, samples, 3)), np.arange(samples, dtype=float))


def test_kspace_and_trajectory_must_agree() -> None:
    with pytest.raises(DataError, match="4 shots x 5 samples but a trajectory of 4 x 6"):
        KSpace(np.zeros((1, 4, 5), complex), _trajectory(4, 6), Grid.centred((4, 4, 4), 4.0))


def test_kspace_refuses_nan() -> None:
    samples = np.zeros((1, 4, 6), complex)
    samples[0, 1, 2] = np.nan
    with pytest.raises(DataError, match="1 of 24 k-space samples"):
        KSpace(samples, _trajectory(4, 6), Grid.centred((4, 4, 4), 4.0))


def test_signal_fraction_is_the_ernst_equation() -> None:
    csf = RELAXATION["CSF"]
    expected = (1 - np.exp(-100 / csf.t1_ms)) * np.exp(-0.2 / 55.0)
    assert csf.signal_fraction(te_ms=0.2, tr_ms=100.0, flip_deg=90.0) == pytest.approx(expected)


def test_errors_are_one_line_and_survive_a_process_boundary() -> None:
    error = DataError("two\nlines", where="a.json", hint="fix it")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert isinstance(copy, DataError)
    assert str(copy) == str(error) == "a.json: two lines (try: fix it)"
    codes = {kind.__name__: kind.exit_code for kind in SodiumError.__subclasses__()}
    assert codes == {
        "UsageError": 2,
        "DataError": 65,
        "EstimationError": 69,
        "InternalError": 70,
        "LockedError": 75,
        "ConfigError": 78,
    }


def test_a_box_of_voxels_stays_at_its_place() -> None:
    affine = np.array([[0.0, -2.0, 0.0, 5.0], [1.5, 0.0, 0.0, -3.0], [0.0, 0.0, 1.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
    whole = Volume(np.arange(6 * 7 * 8.0).reshape(6, 7, 8), Grid((6, 7, 8), affine), "1")
    part = whole.cropped((slice(1, 5), slice(None), slice(2, 8)))
    assert part.unit == "1"
    assert part.grid.shape == part.data.shape == (4, 7, 6)
    at = np.array([2.0, 3.0, 1.0])
    index = tuple(np.round(whole.grid.index(part.grid.world(at))).astype(int))
    assert part.data[2, 3, 1] == whole.data[index]
