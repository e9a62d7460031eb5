import numpy as np
import pytest

from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.errors import DataError
from bids_sodium.recon.gradients import from_angles, from_directions, from_gradients, impulse_response_filtered
from bids_sodium.recon.trajectory import directions

RNG = np.random.default_rng(0)
WAVES = RNG.normal(0.0, 5.0, (3, 40, 3))
HALF_KHZ = np.array([0.0, 20.0, 50.0])
FLAT = np.ones((3, 3), dtype=complex)


def fine_integral(values: np.ndarray, first: float, until: float) -> float:
    """Midpoint sums of the straight lines through values at first, first + 1 ... and beyond their ends."""
    x = (np.arange(200_000) + 0.5) * (until / 200_000)
    at = np.arange(values.size) + first
    line = np.interp(x, at, values)
    before, after = x < at[0], x > at[-1]
    line[before] = values[0] + (values[1] - values[0]) * (x[before] - at[0])
    line[after] = values[-1] + (values[-1] - values[-2]) * (x[after] - at[-1])
    return float(line.sum() * (until / 200_000))


@pytest.mark.parametrize(("point", "first"), [("centre", 0.5), ("start", 0.0)])
def test_k_is_the_integral_of_straight_lines(point: str, first: float) -> None:
    t = np.array([0.001, 0.0049, 0.005, 0.0051, 0.2, 0.3999, 0.4])
    found = from_gradients(WAVES, raster_ms=0.01, t_ms=t, raster_point=point).k_per_mm
    for shot, axis, sample in ((0, 0, 0), (1, 2, 1), (2, 1, 3), (0, 2, 4), (1, 0, 5), (2, 2, 6)):
        area = fine_integral(WAVES[shot, :, axis], first, t[sample] / 0.01) * 0.01
        assert found[shot, sample, axis] == pytest.approx(GAMMA_BAR_MHZ_T / 1000.0 * area, rel=1e-4, abs=2e-7)


def test_constant_gradient_moves_evenly_and_begins_at_the_centre() -> None:
    t = np.array([-0.1, 0.0, 0.1, 0.2])
    line = from_gradients(np.full((1, 30, 3), 4.6), raster_ms=0.01, t_ms=t)
    expected = GAMMA_BAR_MHZ_T * 4.6e-3 * np.array([0.0, 0.0, 0.1, 0.2])
    assert line.k_per_mm[0, :, 1] == pytest.approx(expected, abs=1e-9)
    assert line.solid_angle_sr is None
    assert line.kind == "imported"


def test_a_delay_is_a_shift_in_time() -> None:
    late = from_gradients(WAVES, raster_ms=0.01, t_ms=np.linspace(0.02, 0.4, 9), delay_ms=0.013)
    early = from_gradients(WAVES, raster_ms=0.01, t_ms=np.linspace(0.02, 0.4, 9) - 0.013)
    np.testing.assert_allclose(late.k_per_mm, early.k_per_mm, atol=1e-9)


def test_directions_times_a_table() -> None:
    spokes = directions(20)
    k = np.linspace(0.0, 0.125, 7) ** 2
    made = from_directions(spokes.round(3), k, np.arange(7.0))
    assert made.kind == "radial"
    np.testing.assert_allclose(made.k_per_mm, spokes[:, None, :] * k[None, :, None], atol=1e-5)
    assert np.linalg.norm(made.k_per_mm, axis=-1) == pytest.approx(np.broadcast_to(k, (20, 7)), abs=1e-7)


def test_angles_are_measured_from_the_third_and_the_first_axis() -> None:
    found = from_angles([0.0, 180.0, 90.0, 90.0, 45.0], [33.0, 0.0, 0.0, 90.0, -90.0])
    root = np.sqrt(0.5)
    expected = [[0, 0, 1], [0, 0, -1], [1, 0, 0], [0, 1, 0], [0, -root, root]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_response_is_interpolated_and_stays_beyond_its_end() -> None:
    """A wave of 25 kHz lies a sixth of the way from 20 to 50 kHz, one of 45 beyond a table that ends at 30."""
    t = (np.arange(4000) + 0.5) * 0.01
    for frequency, table, expected in ((25.0, HALF_KHZ, 1.0 + 1.0 / 6.0), (45.0, np.array([0.0, 20.0, 30.0]), 2.0)):
        wave = np.repeat(np.cos(2 * np.pi * frequency * t)[None, :, None], 3, axis=2)
        response = np.repeat(np.array([1.0, 1.0, 2.0], dtype=complex)[:, None], 3, axis=1)
        played = impulse_response_filtered(wave, 0.01, table, response)[0, 1000:3000, 0]
        assert played == pytest.approx(expected * wave[0, 1000:3000, 0], abs=2e-3)


def test_axes_have_responses_of_their_own() -> None:
    response = np.stack([np.full(3, 1.0), np.full(3, 0.5), np.full(3, 2.0)], axis=1).astype(complex)
    played = impulse_response_filtered(WAVES, 0.01, HALF_KHZ, response)
    np.testing.assert_allclose(played, WAVES * [1.0, 0.5, 2.0], atol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_gradients(WAVES[0], raster_ms=0.01, t_ms=np.array([0.1])), "shape"),
        (lambda: from_gradients(WAVES, raster_ms=0.0, t_ms=np.array([0.1])), "raster time of 0"),
        (lambda: from_gradients(WAVES, raster_ms=0.01, t_ms=np.array([0.41])), "gradients of 0.4 ms"),
        (lambda: from_gradients(WAVES, raster_ms=0.01, t_ms=np.array([[0.1]])), "sample times"),
        (lambda: from_gradients(WAVES * np.nan, raster_ms=0.01, t_ms=np.array([0.1])), "NaN"),
        (lambda: from_gradients(WAVES, raster_ms=0.01, t_ms=np.array([0.1]), raster_point="end"), "'end'"),
        (lambda: from_directions(2.0 * np.eye(3), np.zeros(2), np.zeros(2)), "length 2"),
        (lambda: from_directions(np.eye(3), np.zeros(2), np.zeros(3)), "values of k"),
        (lambda: from_directions(np.eye(2), np.zeros(2), np.zeros(2)), "shape"),
        (lambda: from_directions(np.eye(3), np.array([0.0, np.inf]), np.zeros(2)), "infinite"),
        (lambda: from_angles([0.0, 200.0], [0.0, 0.0]), "to 200 degrees"),
        (lambda: from_angles([0.0, 90.0], [0.0]), "azimuthal"),
        (lambda: impulse_response_filtered(WAVES, 0.01, HALF_KHZ, FLAT[:, :2]), "three axes"),
        (lambda: impulse_response_filtered(WAVES, 0.01, HALF_KHZ[::-1], FLAT), "do not rise"),
        (lambda: impulse_response_filtered(WAVES, 0.01, HALF_KHZ + 1.0, FLAT), "from 1 to 51 kHz"),
    ],
)
def test_impossible_requests_are_refused(call, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()
