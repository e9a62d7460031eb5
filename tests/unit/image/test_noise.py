"""Noise estimates: what is refused, and which source is taken."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image.magnitude import correct_noise_floor, mean_magnitude, sd_magnitude, signal_of_mean
from bids_sodium.image.noise import (
    Noise,
    background_noise,
    background_sigma,
    estimate_noise,
    quiet_noise,
    repeated_noise,
    series_noise,
)
from bids_sodium.image.variation import total_variation

GRID = Grid.centred((10, 10, 10), 4.0)
LARGE = Grid.centred((40, 40, 40), 4.0)


def volume(fill: float = 10.0) -> Volume:
    return Volume(np.full(GRID.shape, fill), GRID)


def head(sigma: float = 4.0, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    truth = np.zeros(LARGE.shape)
    truth[6:34, 6:34, 6:34] = 60.0
    return Volume(np.abs(truth + rng.normal(0, sigma, truth.shape) + 1j * rng.normal(0, sigma, truth.shape)), LARGE)


def test_a_background_that_is_not_there_is_refused() -> None:
    with pytest.raises(EstimationError, match="only 0 of 1000 voxels"):
        background_sigma(volume(0.0))
    with pytest.raises(DataError, match="negative"):
        background_sigma(volume(-1.0))


def test_a_noise_floor_needs_magnitudes() -> None:
    with pytest.raises(DataError, match="negative"):
        correct_noise_floor(volume(-1.0), 1.0)
    with pytest.raises(DataError):
        correct_noise_floor(volume(), -1.0)


def test_the_best_source_is_taken() -> None:
    one, two = head(seed=1), head(seed=2)
    background = estimate_noise(one)
    assert background.source == "background"
    assert set(background.estimates) == {"background", "quiet"}
    assert estimate_noise(one, repeated=two).source == "repeated"
    masked = np.where(np.asarray(one.data) > 30.0, one.data, 0.0)
    quiet = estimate_noise(Volume(masked, LARGE))
    assert quiet.source == "quiet"
    assert quiet.relative_error > estimate_noise(one, repeated=two).relative_error
    rng = np.random.default_rng(0)
    echoes = np.asarray(one.data)[..., None] + rng.normal(0, 1, (*LARGE.shape, 8))
    assert estimate_noise(Volume(echoes[:16, :16, :16], Grid((16, 16, 16), LARGE.affine))).source == "series"


def test_a_given_mask_is_the_head() -> None:
    mask = np.zeros(LARGE.shape, dtype=bool)
    mask[10:30, 10:30, 10:30] = True
    assert quiet_noise(head(), mask=mask).sigma == pytest.approx(4.0, rel=0.2)
    assert repeated_noise(head(seed=1), head(seed=2), mask=mask).sigma == pytest.approx(4.0, rel=0.03)
    with pytest.raises(GeometryError, match="mask of shape"):
        quiet_noise(head(), mask=mask[:3])


def test_disagreement_is_the_ratio_of_the_estimates() -> None:
    noise = Noise(sigma=2.0, order=1, source="quiet", relative_error=0.3, estimates={"quiet": 2.0, "background": 7.0})
    assert noise.disagreement == 3.5
    assert Noise(sigma=2.0, order=1, source="series", relative_error=0.1).disagreement == 1.0


def test_an_image_that_tells_nothing_is_refused() -> None:
    with pytest.raises(EstimationError, match="does not vary"):
        quiet_noise(Volume(np.full(LARGE.shape, 5.0), LARGE))
    tiny = np.zeros(GRID.shape)
    tiny[4:6, 4:6, 4:6] = 10.0
    with pytest.raises(EstimationError, match="too small"):
        quiet_noise(Volume(tiny, GRID))
    with pytest.raises(EstimationError, match="only 8 of 1000 voxels"):
        estimate_noise(Volume(tiny, GRID))
    with pytest.raises(DataError, match="three axes"):
        quiet_noise(Volume(np.zeros((*GRID.shape, 2)), GRID))


def test_scans_that_are_no_repetition_are_refused() -> None:
    with pytest.raises(GeometryError, match="no repetition"):
        repeated_noise(head(), volume())
    with pytest.raises(GeometryError, match="no repetition"):
        repeated_noise(head(), head().with_data(np.asarray(head().data) + 0j))
    four = Volume(np.ones((*GRID.shape, 2)), GRID)
    with pytest.raises(DataError, match="three axes"):
        repeated_noise(four, four)


def test_a_series_needs_volumes_and_room() -> None:
    with pytest.raises(DataError, match="8 or more volumes"):
        series_noise(Volume(np.ones((*GRID.shape, 7)), GRID))
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[:, :, 0] = True
    with pytest.raises(EstimationError, match="head of 100 voxels"):
        series_noise(Volume(np.ones((*GRID.shape, 8)), GRID), mask=mask)


def test_orders_of_the_air_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    air = np.sqrt(9.0 * rng.chisquare(2 * 12, LARGE.shape))
    found = background_noise(Volume(air, LARGE))
    assert 10 <= found.order <= 14
    assert found.sigma == pytest.approx(3.0, rel=0.1)


def test_without_noise_a_magnitude_is_its_signal() -> None:
    signal = np.array([0.0, 1.0, 7.0])
    assert np.array_equal(mean_magnitude(signal, 0.0), signal)
    assert np.array_equal(signal_of_mean(signal, 0.0), signal)
    assert np.array_equal(sd_magnitude(signal, 0.0), np.zeros(3))


def test_total_variation_refuses_a_negative_weight_and_does_nothing_without_one() -> None:
    data = np.random.default_rng(0).normal(0, 1, (4, 5, 6)).astype(np.float32)
    assert np.array_equal(total_variation(data, 0.0), data)
    with pytest.raises(DataError, match="weight"):
        total_variation(data, -1.0)
    with pytest.raises(EstimationError, match="not converged"):
        total_variation(data, 5.0, tolerance=1e-12)
