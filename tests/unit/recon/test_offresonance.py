import numpy as np
import pytest

from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.recon.frequency import CentreFrequency, centre_frequency
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.offresonance import FieldNufft, field_at, sodium_field_hz, time_segments
from bids_sodium.recon.solvers import Linear, ReconstructionParams, reconstruct
from bids_sodium.recon.trajectory import cartesian, density_adapted_radial

SPOKES = density_adapted_radial(300, 64, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=16.0)
GRID = Grid.centred((16, 16, 16), 16.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def complex_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def smooth_field(amplitude_hz: float) -> np.ndarray:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    shape = np.sin(2 * x + y) + 0.5 * z * x
    return amplitude_hz * shape / np.abs(shape).max()


def test_protons_turn_faster() -> None:
    assert sodium_field_hz(np.array([100.0]))[0] == pytest.approx(26.45)


@pytest.mark.parametrize("limit_hz", [0.0, 3.0, 40.0, 80.0, 150.0])
def test_segments_are_exact_within_their_range(limit_hz: float) -> None:
    t_ms = np.linspace(-2.0, 20.0, 300)
    segments = time_segments(limit_hz, t_ms)
    frequency = np.random.default_rng(1).uniform(-limit_hz, limit_hz, 500)[:, None]
    exact = np.exp(2e-3j * np.pi * frequency * t_ms)
    found = np.exp(2e-3j * np.pi * frequency * segments.tau_ms) @ segments.weights
    assert np.abs(found - exact).max() < 1e-3
    assert segments.error < 5e-4
    # Two segments a cycle of the whole range, and a few for the ends.
    assert len(segments.tau_ms) <= 2 * limit_hz * 0.022 * 2 + 5


def test_transform_in_a_field_is_the_sum(rng) -> None:
    field_hz = smooth_field(40.0) + 25.0
    image = complex_noise(rng, GRID.shape)
    axes = [(np.arange(16) - 8) * 16.0] * 3
    r = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    few = Trajectory(SPOKES.k_per_mm[::50], SPOKES.t_ms)
    waves = np.exp(-2j * np.pi * few.k_per_mm.astype(float).reshape(-1, 3) @ r.T).reshape(6, 64, -1)
    waves = waves * np.exp(2e-3j * np.pi * few.t_ms[:, None] * field_hz.ravel())
    exact = waves @ image.ravel().astype(complex) * 16.0**3
    found = FieldNufft(Nufft(few, GRID), field_hz).forward(image)
    assert np.linalg.norm(found - exact) < 1e-3 * np.linalg.norm(exact)


def test_adjoint_in_a_field_is_the_conjugate_transpose(rng) -> None:
    operator = FieldNufft(Nufft(SPOKES, GRID), smooth_field(40.0))
    image, samples = complex_noise(rng, GRID.shape), complex_noise(rng, (300, 64))
    seen = operator.forward(image)
    left, right = np.vdot(samples, seen), np.vdot(operator.adjoint(samples), image)
    assert abs(left - right) < 1e-4 * np.linalg.norm(samples) * np.linalg.norm(seen)


def test_normal_operator_in_a_field_is_both_transforms(rng) -> None:
    operator = FieldNufft(Nufft(SPOKES, GRID), smooth_field(40.0) - 10.0)
    weights = Linear(SPOKES, GRID).weights
    image = complex_noise(rng, GRID.shape)
    direct = operator.gridded(weights * operator.forward(image))
    assert np.linalg.norm(operator.toeplitz(weights)(image) - direct) < 1e-3 * np.linalg.norm(direct)


def test_even_field_is_a_demodulation(rng) -> None:
    image, plain = complex_noise(rng, GRID.shape), Nufft(SPOKES, GRID)
    turned = plain.forward(image) * np.exp(2e-3j * np.pi * 30.0 * SPOKES.t_ms)
    found = FieldNufft(plain, np.full(GRID.shape, 30.0)).forward(image)
    assert np.linalg.norm(found - turned) < 1e-5 * np.linalg.norm(turned)


def test_field_is_read_between_voxels() -> None:
    field_hz = np.broadcast_to(np.arange(16.0)[:, None, None], GRID.shape)
    points = GRID.world(np.array([[2.5, 7.0, 7.0], [15.0, 3.0, 4.0], [99.0, 0.0, 0.0]]))
    assert field_at(field_hz, GRID, points) == pytest.approx([2.5, 15.0, 15.0])


def test_bad_maps_are_refused(rng) -> None:
    with pytest.raises(DataError, match=r"field map of shape \(4, 4, 4\)"):
        Linear(SPOKES, GRID, field_hz=np.zeros((4, 4, 4)))
    with pytest.raises(DataError, match="NaN"):
        Linear(SPOKES, GRID, field_hz=np.full(GRID.shape, np.nan))
    with pytest.raises(DataError, match="more than 48 segments"):
        Linear(SPOKES, GRID, field_hz=100.0 * smooth_field(40.0))
    scan = KSpace(complex_noise(rng, (1, 300, 64)), SPOKES, GRID)
    with pytest.raises(ConfigError, match="operator without one"):
        reconstruct(scan, operator=Linear(SPOKES, GRID), field_hz=smooth_field(1.0))


def brain(offset_hz: float, phase: np.ndarray | float = 1.0) -> np.ndarray:
    """Samples of a ball with balls in it, which decay and are off-resonant."""
    x, y, z = np.meshgrid(*[(np.arange(32) - 16) * 8.0] * 3, indexing="ij")
    head = ((x / 75) ** 2 + (y / 90) ** 2 + (z / 70) ** 2 < 1) * 40.0
    fluid = 100.0 * (np.abs(x) + np.abs(y - 10) + np.abs(z) < 40)
    t_ms = HEAD_SPOKES.t_ms
    decays = ((head, 0.6 * np.exp(-t_ms / 3.4) + 0.4 * np.exp(-t_ms / 23.5)), (fluid, np.exp(-t_ms / 55.0)))
    operator = Nufft(HEAD_SPOKES, HEAD)
    return sum(operator.forward(part * phase) * left for part, left in decays) * np.exp(
        2e-3j * np.pi * offset_hz * t_ms
    )


HEAD_SPOKES = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
HEAD = Grid.centred((32, 32, 32), 8.0)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return Linear(HEAD_SPOKES, HEAD).weights


def estimate(samples: np.ndarray, weights: np.ndarray, snr: float, seed: int = 0) -> CentreFrequency:
    sigma_k = 40.0 / snr / np.sqrt((weights**2).sum())
    noise = complex_noise(np.random.default_rng(seed), samples.shape)
    return centre_frequency((samples + sigma_k * noise)[None], HEAD_SPOKES, HEAD, weights, sigma_k=sigma_k)


@pytest.mark.parametrize("offset_hz", [-60.0, -7.0, 0.0, 20.0, 60.0])
def test_centre_frequency_is_found(weights: np.ndarray, offset_hz: float) -> None:
    found = estimate(brain(offset_hz), weights, snr=20.0)
    assert found.offset_hz == pytest.approx(offset_hz, abs=1.0)
    assert found.se_hz < 0.5
    assert found.significant == (offset_hz != 0.0)


@pytest.mark.parametrize("offset_hz", [-130.0, 90.0, 130.0])
def test_far_off_the_stated_error_grows_with_the_error(weights: np.ndarray, offset_hz: float) -> None:
    found = estimate(brain(offset_hz), weights, snr=20.0)
    assert abs(found.offset_hz - offset_hz) < 2.0 * found.se_hz < 4.0
    assert found.significant


def test_phase_of_the_coil_is_no_frequency(weights: np.ndarray) -> None:
    x, y, z = np.meshgrid(*[(np.arange(32) - 16) * 8.0] * 3, indexing="ij")
    phase = np.exp(1j * (0.5 + 0.008 * x - 0.01 * y + 1e-4 * x**2 - 0.8e-4 * z**2))
    assert estimate(brain(0.0, phase), weights, snr=20.0).offset_hz == pytest.approx(0.0, abs=1.0)
    assert estimate(brain(-35.0, phase), weights, snr=20.0).offset_hz == pytest.approx(-35.0, abs=1.0)


def test_stated_error_covers_the_error(weights: np.ndarray) -> None:
    samples = brain(13.0)
    found = [estimate(samples, weights, snr=6.0, seed=seed) for seed in range(8)]
    errors = np.array([one.offset_hz - 13.0 for one in found])
    assert np.sqrt(np.mean(errors**2)) < 2.0 * np.mean([one.se_hz for one in found])
    assert np.abs(errors).max() < 1.0


def test_known_field_is_left_out(weights: np.ndarray) -> None:
    """A field that varies over the head is known, 9 Hz are not; without the map both count."""
    head = np.where(np.linalg.norm(np.indices(HEAD.shape) - 16, axis=0) < 10, 40.0, 0.0)
    head[12:16, 14:20, 13:17] += 80.0
    across = np.broadcast_to(((np.arange(32) - 16) / 16.0)[:, None, None], HEAD.shape)
    for field_hz, without in ((30.0 * across + 12.0, None), (np.full(HEAD.shape, 12.0), 21.0)):
        samples = FieldNufft(Nufft(HEAD_SPOKES, HEAD), field_hz).forward(head)
        more = (samples * np.exp(2e-3j * np.pi * 9.0 * HEAD_SPOKES.t_ms))[None]
        found = centre_frequency(more, HEAD_SPOKES, HEAD, weights, sigma_k=1e3, field_hz=field_hz)
        assert found.offset_hz == pytest.approx(9.0, abs=0.5)
        if without is not None:
            whole = centre_frequency(more, HEAD_SPOKES, HEAD, weights, sigma_k=1e3)
            assert whole.offset_hz == pytest.approx(without, abs=0.5)


def test_nothing_is_estimated_from_noise_or_a_lattice(weights: np.ndarray, rng) -> None:
    noise = complex_noise(rng, (1, 1500, 128))
    empty = centre_frequency(noise, HEAD_SPOKES, HEAD, weights, sigma_k=1.0)
    assert np.isnan(empty.offset_hz)
    assert not empty.significant
    lattice = cartesian((8, 8, 8), voxel_mm=8.0, readout_ms=5.0)
    flat = centre_frequency(
        complex_noise(rng, (1, 64, 8)), lattice, Grid.centred((8, 8, 8), 8.0), np.ones((64, 8)), sigma_k=1.0
    )
    assert np.isnan(flat.offset_hz)


def test_offset_is_taken_off_and_reported(weights: np.ndarray) -> None:
    sigma_k = 40.0 / 20.0 / np.sqrt((weights**2).sum())
    noise = sigma_k * complex_noise(np.random.default_rng(3), (1500, 128))
    operator = Linear(HEAD_SPOKES, HEAD)

    def solve(turned_hz: float, **choice: object):
        params = ReconstructionParams(**choice)
        return reconstruct(
            KSpace((brain(turned_hz) + noise)[None], HEAD_SPOKES, HEAD), params=params, operator=operator
        )

    clean = solve(0.0, centre_frequency="off")
    auto = solve(0.0)
    np.testing.assert_array_equal(auto.image, clean.image)
    assert auto.offset_hz == 0.0
    assert 0.0 < auto.offset_se_hz < 1.0
    assert np.isnan(clean.offset_se_hz)

    inside = operator.inside
    size = np.abs(clean.image[inside]).mean()
    found = solve(40.0)
    assert found.offset_hz == pytest.approx(40.0, abs=1.0)
    # The noise was demodulated too: its images differ.
    assert np.abs(found.image - clean.image)[inside].mean() < 2.0 * clean.sigma
    assert np.abs(solve(40.0, centre_frequency="off").image - clean.image)[inside].mean() > 0.1 * size
    given = solve(40.0, offset_hz=40.0)
    assert given.offset_hz == 40.0
    assert np.isnan(given.offset_se_hz)
    assert np.abs(given.image - found.image)[inside].mean() < 0.01 * size
