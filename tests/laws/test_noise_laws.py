"""Laws of noise: floors and their inverse, and what every method of denoising must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_sodium.core.data import Grid, Volume
from bids_sodium.image.components import principal_components
from bids_sodium.image.denoising import Denoised, DenoisingParams, denoise
from bids_sodium.image.magnitude import correct_noise_floor, mean_magnitude, sd_magnitude, signal_of_mean
from bids_sodium.image.noise import estimate_noise, repeated_noise
from bids_sodium.image.variation import total_variation

GRID = Grid.centred((20, 20, 20), 4.0)
IMAGE_METHODS = ("recommended", "paper", "nlm", "tv")
METHODS = (*IMAGE_METHODS, "mppca")


def signal(method: str, level: float = 40.0) -> np.ndarray:
    """A uniform image, or a series of 10 echoes of one."""
    one = np.full(GRID.shape, level)
    return one if method != "mppca" else one[..., None] * np.exp(-np.arange(10) / 10.0)


def noisy(truth: np.ndarray, sigma: float, order: int = 1, seed: int = 0) -> np.ndarray:
    """A root sum of squares over channels, the signal in the first."""
    rng = np.random.default_rng(seed)
    square = (truth + rng.normal(0, sigma, truth.shape)) ** 2 + rng.normal(0, sigma, truth.shape) ** 2
    return np.sqrt(square + sigma**2 * (rng.chisquare(2 * order - 2, truth.shape) if order > 1 else 0.0))


def clean(data: np.ndarray, method: str, sigma: float | None, *, order: int = 1, keep_means: bool = True) -> Denoised:
    params = DenoisingParams(method=method, keep_means=keep_means)
    return denoise(Volume(data, GRID), params, sigma=sigma, order=order)


@settings(deadline=None)
@given(st.floats(0, 300), st.floats(0.01, 100), st.integers(1, 64))
def test_the_floor_is_taken_off_exactly(level: float, sigma: float, order: int) -> None:
    mean = mean_magnitude(np.array(level), sigma, order=order)
    found = float(signal_of_mean(mean, sigma, order=order))
    # at zero signal the mean is flat, and the table's step of 0.005 sigma shows
    assert found == pytest.approx(level, abs=2e-3 * sigma, rel=1e-5)
    assert float(mean_magnitude(np.array(found), sigma, order=order)) == pytest.approx(float(mean), rel=1e-4)


@settings(deadline=None)
@given(st.floats(0, 100), st.integers(1, 64))
def test_mean_and_spread_of_a_magnitude_add_up_to_its_mean_square(level: float, order: int) -> None:
    """E[M^2] = A^2 + 2 L sigma^2."""
    mean = float(mean_magnitude(np.array(level), 1.0, order=order))
    spread = float(sd_magnitude(np.array(level), 1.0, order=order))
    assert mean**2 + spread**2 == pytest.approx(level**2 + 2 * order, rel=2e-5)
    assert 0.65 < spread <= 1.0 + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 64))
def test_mean_magnitude_grows_with_signal_and_channels(order: int) -> None:
    levels = np.linspace(0, 40, 4001)
    mean = mean_magnitude(levels, 1.0, order=order)
    assert (np.diff(mean) > 0).all()
    assert (mean_magnitude(levels, 1.0, order=order + 1) > mean).all()
    assert (mean > levels).all()


@pytest.mark.parametrize(("snr", "order"), [(5.0, 1), (20.0, 1), (20.0, 8)])
@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_a_uniform_image_stays(method: str, snr: float, order: int) -> None:
    truth, sigma = signal(method), 40.0 / snr
    data = noisy(truth, sigma, order)
    result = clean(data, method, sigma, order=order)
    assert result.floor_removed
    found = np.asarray(result.image.data, dtype=float).reshape(-1, truth[0, 0, 0].size)
    # four standard errors of the mean of the noise itself
    chance = 4 * sigma / np.sqrt(GRID.shape[0] ** 3)
    assert np.abs(found.mean(axis=0) - truth[0, 0, 0]).max() < 0.005 * 40 + chance
    assert (found - truth.reshape(found.shape)).std() < (data - mean_magnitude(truth, sigma, order=order)).std()


@pytest.mark.parametrize("data", [noisy(signal("nlm"), 5.0), noisy(signal("mppca"), 5.0), 1j * signal("mppca")])
def test_off_is_the_identity(data: np.ndarray) -> None:
    result = clean(data, "off", 5.0)
    assert np.array_equal(result.image.data, data.astype(result.image.data.dtype))
    assert (result.method, result.floor_removed) == ("off", False)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_without_noise_is_left_alone(method: str) -> None:
    rng = np.random.default_rng(0)
    shape = GRID.shape if method != "mppca" else (*GRID.shape, 10)
    data = np.abs(rng.normal(40, 10, shape)).astype(np.float32)
    assert np.array_equal(clean(data, method, 0.0).image.data, data)
    if method != "mppca":
        assert np.asarray(clean(data, method, 1e-3).image.data) == pytest.approx(data, abs=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-4, 3.0, 1e5])
def test_denoising_does_not_know_the_unit(method: str, factor: float) -> None:
    data = noisy(signal(method), 5.0)
    one = np.asarray(clean(data, method, 5.0).image.data)
    other = np.asarray(clean(factor * data, method, 5.0 * factor).image.data)
    assert other / factor == pytest.approx(one, abs=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_denoising_does_not_know_left_from_right(method: str) -> None:
    data = noisy(signal(method), 5.0)
    data[:12] += 20.0
    one, other = clean(data, method, 5.0).image.data, clean(data[::-1], method, 5.0).image.data
    different = np.sqrt(np.mean((np.asarray(other)[::-1] - np.asarray(one)) ** 2))
    # forward differences look ahead, so that total variation differs by a fraction of the noise
    assert different < (0.1 * 5.0 if method == "tv" else 1e-3 * 5.0)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_lies_between_the_image_and_the_filter(method: str) -> None:
    """Giving back never removes more than the filter did."""
    truth = signal(method)
    truth[8:12] += 15.0
    data = noisy(truth, 5.0)
    kept = np.asarray(clean(data, method, 5.0).image.data, dtype=float)
    pure = np.asarray(clean(data, method, 5.0, keep_means=False).image.data, dtype=float)
    plain = np.asarray(correct_noise_floor(Volume(data, GRID), 5.0).data)
    assert np.square(kept - plain).mean() < np.square(pure - plain).mean()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_total_variation_keeps_the_mean_and_never_leaves_the_range(seed: int, weight: float) -> None:
    data = np.random.default_rng(seed).normal(10, 5, (8, 9, 10))
    found = total_variation(data, weight, voxel_mm=(2.0, 3.0, 2.0))
    assert found.mean() == pytest.approx(data.mean(), abs=1e-4)
    assert data.min() - 0.05 * weight <= found.min() <= found.max() <= data.max() + 0.05 * weight
    further = total_variation(data, 2.0 * weight, voxel_mm=(2.0, 3.0, 2.0))
    assert further.std() <= found.std() + 0.05 * weight


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_total_variation_of_a_step_is_known(axis: int) -> None:
    """Each side of a step moves towards the other by weight over its width."""
    step = np.repeat([10.0, 50.0], [4, 12])
    data = np.moveaxis(np.broadcast_to(step[:, None, None], (16, 6, 5)), 0, axis)
    found = np.moveaxis(total_variation(data, 3.0, tolerance=1e-3), axis, 0)
    assert found[:4] == pytest.approx(10.0 + 3.0 / 4.0, abs=0.01)
    assert found[4:] == pytest.approx(50.0 - 3.0 / 12.0, abs=0.01)


def test_components_of_a_real_series_and_of_the_same_turned_in_phase_agree() -> None:
    rng = np.random.default_rng(1)
    shape = (12, 12, 12, 10)
    data = signal("mppca")[:12, :12, :12] + rng.normal(0, 3, shape) + 1j * rng.normal(0, 3, shape)
    everywhere = np.ones(shape[:3], dtype=bool)
    one = principal_components(data, everywhere)
    other = principal_components(data * np.exp(0.5j * np.pi), everywhere)
    assert other.data * np.exp(-0.5j * np.pi) == pytest.approx(one.data, abs=1e-6)
    assert other.sigma == pytest.approx(one.sigma, rel=1e-6)


def test_two_scans_and_one_estimate_the_same_noise_in_any_order_and_unit() -> None:
    truth = np.zeros(GRID.shape)
    truth[4:16, 4:16, 4:16] = 60.0
    one, two = Volume(noisy(truth, 4.0, seed=1), GRID), Volume(noisy(truth, 4.0, seed=2), GRID)
    found = repeated_noise(one, two).sigma
    assert found == pytest.approx(4.0, rel=0.05)
    assert repeated_noise(two, one).sigma == pytest.approx(found, rel=0.01)
    thousand = repeated_noise(one.with_data(1000 * one.data), two.with_data(1000 * two.data)).sigma
    assert thousand == pytest.approx(1000 * found, rel=1e-3)
    single = estimate_noise(one)
    assert estimate_noise(one.with_data(1000 * one.data)).sigma == pytest.approx(1000 * single.sigma, rel=1e-3)
