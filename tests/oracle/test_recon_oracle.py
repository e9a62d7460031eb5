"""The fast transforms against the sums that define them, written out."""

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.recon.nufft import Nufft


@pytest.fixture
def problem() -> tuple[Trajectory, Grid, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    grid = Grid((12, 9, 10), np.diag([4.0, 5.0, 6.0, 1.0]))
    k = (rng.random((13, 17, 3)) - 0.5) / np.array(grid.voxel_mm)
    trajectory = Trajectory(k, np.arange(17) + 0.5)
    image = rng.standard_normal(grid.shape) + 1j * rng.standard_normal(grid.shape)
    return trajectory, grid, image, rng.standard_normal((13, 17)) + 1j * rng.standard_normal((13, 17))


def waves(trajectory: Trajectory, grid: Grid) -> np.ndarray:
    """exp(-2 pi i k . r) for every sample and voxel, r from voxel n // 2."""
    axes = [(np.arange(n) - n // 2) * step for n, step in zip(grid.shape, grid.voxel_mm, strict=True)]
    r = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.exp(-2j * np.pi * trajectory.k_per_mm.reshape(-1, 3) @ r.T)


@pytest.mark.parametrize(("eps", "tolerance"), [(1e-5, 1e-5), (1e-9, 1e-8)])
def test_forward_is_the_integral(problem, eps: float, tolerance: float) -> None:
    trajectory, grid, image, _ = problem
    exact = (waves(trajectory, grid) @ image.ravel()).reshape(13, 17) * (4.0 * 5.0 * 6.0)
    found = Nufft(trajectory, grid, eps).forward(image)
    assert np.linalg.norm(found - exact) < tolerance * np.linalg.norm(exact)


@pytest.mark.parametrize(("eps", "tolerance"), [(1e-5, 1e-5), (1e-9, 1e-8)])
def test_gridding_is_the_sum(problem, eps: float, tolerance: float) -> None:
    trajectory, grid, _, samples = problem
    exact = (waves(trajectory, grid).conj().T @ samples.ravel()).reshape(grid.shape)
    found = Nufft(trajectory, grid, eps).gridded(samples)
    assert np.linalg.norm(found - exact) < tolerance * np.linalg.norm(exact)


def test_normal_operator_is_the_matrix(problem) -> None:
    trajectory, grid, image, samples = problem
    weights = np.abs(samples)
    matrix = waves(trajectory, grid)
    exact = (matrix.conj().T @ (weights.ravel() * (matrix @ image.ravel()))).reshape(grid.shape) * 120.0
    found = Nufft(trajectory, grid).toeplitz(weights)(image.astype(np.complex64))
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)
