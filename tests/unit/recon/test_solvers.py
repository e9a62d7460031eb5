import dataclasses

import numpy as np
import pytest

from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.core.errors import ConfigError, DataError, GeometryError
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.solvers import Linear, ReconstructionParams, coverage, linear, reconstruct
from bids_sodium.recon.trajectory import cartesian, density_adapted_radial

SPOKES = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
GRID = Grid.centred((32, 32, 32), 8.0)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    x, y, z = np.meshgrid(*[(np.arange(32) - 16) * 8.0] * 3, indexing="ij")
    return Nufft(SPOKES, GRID).forward(((x / 75) ** 2 + (y / 90) ** 2 + (z / 70) ** 2 < 1) * 40.0)


@pytest.fixture(scope="module")
def scan(clean: np.ndarray) -> KSpace:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, *clean.shape)) * 1e6
    return KSpace((clean + noise[0] + 1j * noise[1])[None], SPOKES, GRID)


def test_image_shows_the_object(scan: KSpace) -> None:
    assert reconstruct(scan).image[16, 16, 16].real == pytest.approx(40.0, rel=0.1)
    solution = reconstruct(scan, params=ReconstructionParams(method="cg"))
    assert solution.image[16, 16, 16].real == pytest.approx(40.0, rel=0.1)
    assert solution.image.dtype == np.complex64
    assert solution.converged
    assert solution.iterations == 5
    assert solution.residuals[-1] < solution.residuals[0] < 1.0
    assert solution.gain == pytest.approx(1.0, abs=0.005)


def test_paper_mode_is_the_weighted_adjoint(scan: KSpace) -> None:
    paper = reconstruct(scan, params=ReconstructionParams(mode="paper"))
    plain = reconstruct(scan, params=ReconstructionParams(method="adjoint", filter="none"))
    np.testing.assert_array_equal(paper.image, plain.image)
    assert paper.iterations == 0
    assert paper.sigma > reconstruct(scan).sigma


def test_an_operator_can_be_used_again(scan: KSpace) -> None:
    operator = Linear(SPOKES, GRID)
    first, second = reconstruct(scan, operator=operator), reconstruct(scan, operator=operator)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(linear(scan.samples[0], operator), first.image)
    assert reconstruct(scan).sigma == first.sigma


def test_channels_are_whitened_and_combined(scan: KSpace, clean: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    sensitivity = np.array([1.0, 2.0j, -0.5])
    level = 1e6 * np.array([1.0, 3.0, 0.5])
    seen = []
    for _ in range(2):
        noise = rng.standard_normal((2, 3, 1500, 128)) * level[:, None, None]
        samples = sensitivity[:, None, None] * clean + noise[0] + 1j * noise[1]
        seen.append(reconstruct(dataclasses.replace(scan, samples=samples)))
    assert seen[0].sigma_k[0] == pytest.approx(1e6, rel=0.01)
    core = (slice(10, 22),) * 3
    difference = (np.abs(seen[0].image) - np.abs(seen[1].image))[core]
    assert seen[0].sigma == pytest.approx(difference.std() / np.sqrt(2.0), rel=0.15)


def test_coverage_counts_cells() -> None:
    few = dataclasses.replace(SPOKES, k_per_mm=SPOKES.k_per_mm[::100], solid_angle_sr=None)
    assert coverage(few, GRID) < 0.1
    assert coverage(SPOKES, GRID) > 0.8
    lattice = cartesian((32, 32, 32), voxel_mm=8.0, readout_ms=5.0)
    assert coverage(lattice, GRID) > 0.99


def with_samples(scan: KSpace, samples: np.ndarray) -> KSpace:
    """A scan whose samples were changed after it was made, as a NaN made in memory would be."""
    broken = dataclasses.replace(scan)
    object.__setattr__(broken, "samples", samples)
    return broken


def test_bad_samples_are_refused(scan: KSpace) -> None:
    bad = scan.samples.copy()
    bad[0, 3, 5] = np.nan
    with pytest.raises(DataError, match="1 k-space samples are NaN"):
        reconstruct(with_samples(scan, bad))
    with pytest.raises(DataError, match="zero"):
        reconstruct(with_samples(scan, np.zeros_like(bad)))


def test_too_few_shots_are_refused(scan: KSpace) -> None:
    few = Trajectory(SPOKES.k_per_mm[::100], SPOKES.t_ms)
    with pytest.raises(DataError, match="15 shots of 128 samples reach"):
        reconstruct(KSpace(scan.samples[:, ::100], few, GRID))


@pytest.mark.parametrize(
    ("factor", "unit"),
    [
        (1000.0, "cycles/m"),
        (2 * np.pi, "rad/mm"),
        (2000 * np.pi, "rad/m"),
        (10.0, "cycles/cm"),
        (8.0, "units of the matrix"),
    ],
)
def test_wrong_units_are_named(scan: KSpace, factor: float, unit: str) -> None:
    scaled = dataclasses.replace(SPOKES, k_per_mm=SPOKES.k_per_mm * factor)
    with pytest.raises(DataError, match="the trajectory reaches") as caught:
        reconstruct(dataclasses.replace(scan, trajectory=scaled))
    assert f"look like {unit}" in str(caught.value)


def test_too_small_a_trajectory_is_refused(scan: KSpace) -> None:
    scaled = dataclasses.replace(SPOKES, k_per_mm=SPOKES.k_per_mm / 1000.0)
    with pytest.raises(DataError, match="check unit"):
        reconstruct(dataclasses.replace(scan, trajectory=scaled))


def test_other_axes_are_refused(scan: KSpace) -> None:
    with pytest.raises(GeometryError, match="other axes"):
        reconstruct(scan, Grid(GRID.shape, GRID.affine[[1, 0, 2, 3]]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "best"},
        {"method": "l1"},
        {"filter": "box"},
        {"coils": "mean"},
        {"iterations": 0},
        {"filter_width": 0.0},
    ],
)
def test_unknown_choices_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        ReconstructionParams(**wrong)
