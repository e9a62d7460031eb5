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


BALLS = (
    # Centre and radius in mm, value; the last one stands for fluid.
    ((0.0, 0.0, 0.0), 30.0, 40.0),
    ((45.0, 20.0, -20.0), 22.0, 30.0),
    ((-40.0, 30.0, 25.0), 25.0, 45.0),
    ((5.0, -55.0, 30.0), 24.0, 35.0),
    ((-30.0, -35.0, -35.0), 20.0, 50.0),
    ((20.0, 45.0, 45.0), 18.0, 140.0),
)


def balls(trajectory: Trajectory, offsets_hz: np.ndarray | float) -> np.ndarray:
    """Samples of balls that decay as white matter does, each off-resonant by its own offset, in closed form."""
    k, t_ms = trajectory.k_per_mm.astype(float), trajectory.t_ms
    samples = np.zeros(k.shape[:2], complex)
    for (centre, size, value), offset_hz in zip(BALLS, np.broadcast_to(offsets_hz, len(BALLS)), strict=True):
        turn = np.exp(-2j * np.pi * (k @ np.array(centre)) + 2e-3j * np.pi * offset_hz * t_ms)
        samples += value * ball_samples(trajectory, size) * turn
    return samples * relaxation_of("NAWM").decay.at(t_ms)


def distances(grid: Grid) -> np.ndarray:
    """How far every voxel is from the centre of every ball, in radii."""
    points = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    return np.array([np.linalg.norm(points - centre, axis=-1) / size for centre, size, _ in BALLS])


def off_resonance_errors(field_hz: np.ndarray | None, offsets_hz: np.ndarray | float, **choice: object):
    """Root mean square difference in the balls from the image without off-resonance, over the signal, and the scan.

    There is hardly any noise, which demodulation would make another noise of.
    """
    trajectory, grid = SMALL
    operator = Linear(trajectory, grid)
    sigma_k = 40.0 / 2000.0 / np.sqrt((operator.weights**2).sum())
    rng = np.random.default_rng(4)
    noise = sigma_k * (rng.standard_normal((2, *operator.weights.shape)).T @ np.array([1.0, 1j])).T
    inside = (distances(grid) < 1.0).any(axis=0)
    still = reconstruct(KSpace((balls(trajectory, 0.0) + noise)[None], trajectory, grid), operator=operator)
    scan = KSpace((balls(trajectory, offsets_hz) + noise)[None], trajectory, grid)
    found = reconstruct(scan, params=ReconstructionParams(**choice), field_hz=field_hz)
    images = [phase_corrected_real(one.image, grid)[inside] for one in (found, still)]
    return np.linalg.norm(images[0] - images[1]) / np.linalg.norm(images[1]), found


@pytest.mark.parametrize("offset_hz", [20.0, -60.0])
def test_centre_frequency_is_taken_off(offset_hz: float) -> None:
    wrong, _ = off_resonance_errors(None, offset_hz, centre_frequency="off")
    right, found = off_resonance_errors(None, offset_hz)
    assert found.offset_hz == pytest.approx(offset_hz, abs=1.0)
    assert right < 0.005
    assert wrong > 8.0 * right


def test_field_map_undoes_its_field() -> None:
    """A field of up to 40 Hz that varies smoothly from ball to ball, and 15 Hz that the map does not know."""
    grid = SMALL[1]
    centres = np.array([centre for centre, _, _ in BALLS])
    offsets_hz = 40.0 * np.sin(centres @ np.array([0.02, 0.015, -0.025]))
    assert np.ptp(offsets_hz) > 60.0
    field_hz = offsets_hz[distances(grid).argmin(axis=0)]
    wrong, _ = off_resonance_errors(None, offsets_hz)
    right, found = off_resonance_errors(field_hz, offsets_hz)
    assert found.offset_hz == 0.0
    assert right < 0.015
    assert wrong > 2.5 * right
    more, found = off_resonance_errors(field_hz, offsets_hz + 15.0)
    assert found.offset_hz == pytest.approx(15.0, abs=1.0)
    assert more < 0.015


@pytest.fixture(scope="module")
def lesion_images() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images of balls in a head at SNR 20, without and with a lesion, by each method."""
    trajectory, grid = SMALL
    operator = Linear(trajectory, grid)
    sigma_k = 40.0 / 20.0 / np.sqrt((operator.weights**2).sum())
    rng = np.random.default_rng(6)
    noise = sigma_k * (rng.standard_normal((2, *operator.weights.shape)).T @ np.array([1.0, 1j])).T
    head = 40.0 * ball_samples(trajectory, 90.0) + balls(trajectory, 0.0)
    lesion = 20.0 * ball_samples(trajectory, 24.0) * np.exp(-2j * np.pi * (trajectory.k_per_mm @ LESION_MM))
    prior = np.where(radius(grid) < 90.0, 1000.0, 0.0)
    prior[(distances(grid) < 1.0).any(axis=0)] = 500.0

    def solve(samples: np.ndarray, params: ReconstructionParams) -> np.ndarray:
        scan = KSpace((samples + noise)[None], trajectory, grid)
        return reconstruct(scan, params=params, prior=prior, operator=operator).image.real

    methods = {"none": {"filter": "none"}, "default": {}, "tv": {"method": "tv"}, "dtv": {"method": "dtv"}}
    found = {}
    for name, choice in methods.items():
        params = ReconstructionParams(centre_frequency="off", **choice)
        if name == "none":
            plain = Linear(trajectory, grid, params)
            found[name] = tuple(plain(one + noise).real for one in (head, head + lesion))
        else:
            found[name] = (solve(head, params), solve(head + lesion, params))
    return found


LESION_MM = np.array([-20.0, -10.0, 60.0])


def test_less_variation_less_error(lesion_images) -> None:
    grid = SMALL[1]
    truth = np.where(radius(grid) < 90.0, 40.0, 0.0)
    apart = (radius(grid) < 75.0) & (distances(grid) > 1.5).all(axis=0)
    errors = {name: np.sqrt(np.mean((pair[0] - truth)[apart] ** 2)) for name, pair in lesion_images.items()}
    assert errors["tv"] < 0.6 * errors["none"]
    assert errors["dtv"] < 0.6 * errors["none"]


def test_lesion_that_the_prior_does_not_show_keeps_most_of_its_contrast(lesion_images) -> None:
    points = SMALL[1].world(np.moveaxis(np.indices(SMALL[1].shape), 0, -1))
    inside = np.linalg.norm(points - LESION_MM, axis=-1) < 18.0
    kept = {name: (pair[1] - pair[0])[inside].mean() / 20.0 for name, pair in lesion_images.items()}
    assert kept["none"] > 0.85
    assert kept["default"] > 0.8
    assert 0.6 < kept["tv"] < kept["none"]
    assert 0.6 < kept["dtv"] < kept["none"]
