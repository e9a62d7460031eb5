"""What a whole acquisition recovers of a known object: gain, noise, resolution and tissue concentrations."""

import numpy as np
import pytest

from bids_sodium.core.constants import relaxation_of
from bids_sodium.core.data import Grid, KSpace, Trajectory, Volume
from bids_sodium.recon.columns import mtf_columns, operator_columns
from bids_sodium.recon.density import filter_response
from bids_sodium.recon.psf import point_spread
from bids_sodium.recon.solvers import Linear, ReconstructionParams, phase_corrected_real, reconstruct
from bids_sodium.recon.trajectory import cones_3d, density_adapted_radial

SMALL = (
    density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0),
    Grid.centred((32, 32, 32), 8.0),
)
STROKE = (
    density_adapted_radial(6000, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0),
    Grid.centred((64, 64, 64), 4.0),
)
CONES = (cones_3d(fov_mm=240.0, voxel_mm=3.0, readout_ms=20.0), Grid.centred((80, 80, 80), 3.0))
SCANS = pytest.mark.parametrize("scan", [SMALL, STROKE, CONES], ids=["small", "stroke", "cones"])


def radius(grid: Grid) -> np.ndarray:
    axes = [(np.arange(n) - n // 2) * step for n, step in zip(grid.shape, grid.voxel_mm, strict=True)]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))


def ball_samples(trajectory: Trajectory, radius_mm: float) -> np.ndarray:
    """The integral over a ball of value one, in closed form."""
    k = np.linalg.norm(trajectory.k_per_mm.astype(float), axis=-1)
    x = np.maximum(2 * np.pi * k * radius_mm, 1e-2)
    return 4 * np.pi * radius_mm**3 * (np.sin(x) - x * np.cos(x)) / x**3


@SCANS
@pytest.mark.parametrize("mode", ["recommended", "paper"])
def test_a_head_sized_ball_has_value_one(scan: tuple[Trajectory, Grid], mode: str) -> None:
    trajectory, grid = scan
    image = Linear(trajectory, grid, ReconstructionParams(mode=mode))(ball_samples(trajectory, 95.0))
    core = radius(grid) < 71.0
    assert image[core].real.mean() == pytest.approx(1.0, abs=0.005)
    assert abs(image[core].imag.mean()) < 0.005


@SCANS
@pytest.mark.parametrize("mode", ["recommended", "paper"])
def test_stated_noise_is_the_noise_seen(scan: tuple[Trajectory, Grid], mode: str) -> None:
    trajectory, grid = scan
    rng = np.random.default_rng(1)
    signal = 40.0 * ball_samples(trajectory, 95.0)
    sigma_k = 40.0 / 20.0 / np.sqrt((Linear(trajectory, grid).weights ** 2).sum())
    noise = sigma_k * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))
    operator = Linear(trajectory, grid, ReconstructionParams(mode=mode))
    solution = reconstruct(KSpace((signal + noise)[None], trajectory, grid), operator=operator)
    assert solution.sigma_k[0] == pytest.approx(sigma_k, rel=0.01)
    inside = radius(grid) < 95.0
    shape = (7 if scan is SMALL else 1, 2, *signal.shape)
    draws = [noise, *(sigma_k * (real + 1j * imaginary) for real, imaginary in rng.standard_normal(shape))]
    seen = np.sqrt(np.mean([np.mean(np.abs(operator(draw)[inside]) ** 2) / 2.0 for draw in draws]))
    assert operator.noise_gain * sigma_k == pytest.approx(seen, rel=0.01)


def test_point_spread_is_that_of_the_image() -> None:
    """A decaying point at the centre, reconstructed, against the analytic profile."""
    trajectory, grid = STROKE
    decay = relaxation_of("NAWM").decay
    samples = np.broadcast_to(decay.at(trajectory.t_ms) * 64.0, (trajectory.n_shots, trajectory.n_samples))
    image = Linear(trajectory, grid, ReconstructionParams(mode="paper"))(samples.astype(np.complex64)).real
    spread = point_spread(trajectory, decay=decay)
    line = image[32:45, 32, 32] / image[32, 32, 32]
    assert line == pytest.approx(np.interp(4.0 * np.arange(13), spread.r_mm, spread.profile), abs=0.01)


def tissue_maps(fine: Grid, rng: np.random.Generator) -> dict[str, Volume]:
    """A ball of folded grey matter over white matter, with cerebrospinal fluid between and inside."""
    axes = [(np.arange(n) - n // 2) * step for n, step in zip(fine.shape, fine.voxel_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    r = radius(fine) + 6.0 * np.cos(x / 9.0 + rng.uniform(0, 6)) * np.cos(y / 8.0) * np.cos(z / 10.0)
    labels = np.select([r < 16, r < 62, r < 72, r < 80], [3, 1, 2, 3], 0)
    labels[(np.sqrt((x - 35) ** 2 + y**2 + z**2) < 9)] = 4
    names = ("NAWM", "CGM", "CSF", "T2lesion")
    return {name: Volume((labels == i).astype(np.float32), fine) for i, name in enumerate(names, start=1)}


def test_operator_columns_recover_every_tissue() -> None:
    """Undersampled, decaying, noisy: the columns know of all of it but the noise."""
    trajectory, grid = SMALL
    rng = np.random.default_rng(2)
    maps = tissue_maps(grid.with_voxel(4.0), rng)
    decays = {name: relaxation_of(name).decay for name in maps}
    truth = np.array([32.0, 40.0, 140.0, 50.0])
    operator = Linear(trajectory, grid)
    columns = operator_columns(maps, grid, trajectory, decays, te_ms=0.5, operator=operator, keep_samples=True)
    assert columns.samples is not None
    samples = np.tensordot(truth, columns.samples, axes=1) * np.exp(0.7j)
    sigma_k = 40.0 / 20.0 / np.sqrt((operator.weights**2).sum())
    noise = sigma_k * (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape))
    image = reconstruct(KSpace((samples + noise)[None], trajectory, grid), operator=operator).image
    design = columns.images.reshape(4, -1).T
    found = np.linalg.lstsq(design, phase_corrected_real(image, grid).ravel(), rcond=None)[0]
    assert found[:2] == pytest.approx(truth[:2], abs=0.3)
    assert found[2:] == pytest.approx(truth[2:], abs=2.0)

    spreads = {name: point_spread(trajectory, decay=decays[name], te_ms=0.5, filter="gaussian") for name in maps}
    analytic = mtf_columns(maps, grid, spreads).images.reshape(4, -1).T
    rough = np.linalg.lstsq(analytic, phase_corrected_real(image, grid).ravel(), rcond=None)[0]
    assert rough[:2] == pytest.approx(truth[:2], abs=1.5)


def test_the_filter_is_the_one_asked_for() -> None:
    """A plane wave comes out multiplied by the filter at its frequency."""
    trajectory, grid = SMALL
    k = 5.0 / 256.0
    x = (np.arange(32) - 16) * 8.0
    wave = np.broadcast_to(np.cos(2 * np.pi * k * x)[:, None, None], grid.shape) * np.exp(-((radius(grid) / 60.0) ** 2))
    plain = Linear(trajectory, grid, ReconstructionParams(filter="none"))
    smooth = Linear(trajectory, grid, ReconstructionParams(filter="gaussian", filter_width=0.5))
    samples = plain.nufft.forward(wave)
    ratio = smooth(samples)[16, 16, 16].real / plain(samples)[16, 16, 16].real
    expected = filter_response(np.array(k / trajectory.k_max_per_mm), "gaussian", 0.5)
    assert ratio == pytest.approx(float(expected), rel=0.03)
