"""The fast transforms against the sums that define them, written out."""

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.recon.coils import sensitivities
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.regularised import edge_direction, least_variation


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


def test_main_eigenvectors_are_those_of_lapack() -> None:
    from scipy.ndimage import uniform_filter

    rng = np.random.default_rng(1)
    images = rng.standard_normal((4, 9, 8, 7)) + 1j * rng.standard_normal((4, 9, 8, 7))
    images += 6.0 * np.array([1.0, 1j, -0.5, 0.2])[:, None, None, None]
    products = images[:, None] * images[None].conj()
    size = (1, 1, 5, 5, 5)
    covariance = uniform_filter(products.real, size) + 1j * uniform_filter(products.imag, size)
    exact = np.linalg.eigh(np.moveaxis(covariance, (0, 1), (-2, -1)))[1][..., -1]
    agreement = np.abs((sensitivities(images).conj() * np.moveaxis(exact, -1, 0)).sum(axis=0))
    assert agreement.min() > 1.0 - 1e-5


def primal_dual(matrix: np.ndarray, data: np.ndarray, weight: float, shape: tuple[int, ...], xi: np.ndarray | None):
    """The minimum of 1/2 |A x - s|^2 + weight TV(x) by Chambolle and Pock's algorithm on a dense matrix, slowly."""
    n = matrix.shape[1]
    rows = []
    for axis in range(3):
        step = np.eye(shape[axis], k=1) - np.eye(shape[axis])
        step[-1] = 0.0
        parts = [np.eye(m) for m in shape]
        parts[axis] = step
        rows.append(np.kron(np.kron(parts[0], parts[1]), parts[2]))
    difference = np.stack(rows)
    if xi is not None:
        flat = xi.reshape(3, -1)
        difference = difference - flat[:, :, None] * np.einsum("av,avw->vw", flat, difference)
    stacked = np.concatenate([matrix, difference.reshape(-1, n)])
    step = 0.99 / np.linalg.norm(stacked, 2)
    x = np.zeros(n, complex)
    ahead, p, q = x, np.zeros_like(data), np.zeros((3, n), complex)
    for _ in range(4000):
        p = (p + step * (matrix @ ahead - data)) / (1.0 + step)
        q = q + step * (difference @ ahead)
        q /= np.maximum(1.0, np.linalg.norm(q, axis=0) / weight)
        before, x = x, x - step * (matrix.conj().T @ p + np.einsum("avw,av->w", difference, q))
        ahead = 2.0 * x - before
    fit = 0.5 * np.linalg.norm(matrix @ x - data) ** 2
    return x, fit + weight * np.linalg.norm(difference @ x, axis=0).sum()


@pytest.mark.parametrize("directional", [False, True])
def test_least_variation_is_that_of_another_algorithm(directional: bool) -> None:
    rng = np.random.default_rng(2)
    shape = (6, 5, 4)
    matrix = rng.standard_normal((150, 120)) + 1j * rng.standard_normal((150, 120))
    matrix *= np.geomspace(1.0, 0.05, 150)[:, None] / 12.0
    truth = np.zeros(shape, complex)
    truth[2:5, 1:4] = 3.0 + 1j
    data = matrix @ truth.ravel() + 0.1 * (rng.standard_normal(150) + 1j * rng.standard_normal(150))
    prior = np.abs(truth) + 0.1 * rng.random(shape)
    xi = edge_direction(prior, (2.0, 2.0, 2.0)) if directional else None
    exact, least = primal_dual(matrix, data, 0.3, shape, xi)

    square = matrix.conj().T @ matrix
    found = least_variation(
        lambda image: (square @ image.ravel()).reshape(shape),
        (matrix.conj().T @ data).reshape(shape),
        0.3,
        unit=0.1,
        voxel_mm=(2.0, 2.0, 2.0),
        direction=xi,
        iterations=3000,
        tolerance=1e-6,
    )
    constant = 0.5 * np.linalg.norm(data) ** 2
    assert found.objective[-1] + constant == pytest.approx(least, rel=1e-3)
    assert np.linalg.norm(found.image.ravel() - exact) < 0.02 * np.linalg.norm(exact)
