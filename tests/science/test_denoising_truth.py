"""Denoising and noise estimates against phantoms of known noise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.image.denoising import DenoisingParams, background_sigma, correct_noise_floor, denoise

GRID = Grid.centred((44, 44, 44), 5.0)


def phantom() -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
    radius = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - 22, axis=-1)
    mmol = np.zeros(GRID.shape)
    for edge, value in ((19, 40.0), (14, 32.0), (5, 140.0)):
        mmol[radius < edge] = value
    regions = {"GM": (radius < 18) & (radius > 15), "WM": (radius < 13) & (radius > 6), "CSF": radius < 4}
    return mmol, regions


def rician(mmol: NDArray[np.float64], sigma: float, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.abs(mmol + rng.normal(0, sigma, mmol.shape) + 1j * rng.normal(0, sigma, mmol.shape))


@pytest.mark.parametrize("sigma", [2.0, 4.0, 8.0])  # SNR 20, 10, 5 in grey matter
def test_no_tissue_mean_moves_by_more_than_one_percent(sigma: float) -> None:
    mmol, regions = phantom()
    noisy = rician(mmol, sigma)
    clean = denoise(Volume(noisy, GRID), sigma=sigma).image.data
    for name, mask in regions.items():
        assert clean[mask].mean() == pytest.approx(mmol[mask].mean(), rel=0.01), name
        assert (clean - mmol)[mask].std() < 0.6 * (noisy - mmol)[mask].std(), name


def test_image_without_noise_is_left_as_it_is() -> None:
    mmol, _ = phantom()
    assert np.abs(denoise(Volume(mmol, GRID), sigma=0.01).image.data - mmol).max() < 0.02


def test_real_part_is_denoised_without_a_floor() -> None:
    mmol, regions = phantom()
    real = mmol + np.random.default_rng(0).normal(0, 4, mmol.shape)
    result = denoise(Volume(real, GRID), DenoisingParams(rician=False), sigma=4.0)
    assert not result.floor_removed
    for mask in regions.values():
        assert result.image.data[mask].mean() == pytest.approx(mmol[mask].mean(), rel=0.015)


@pytest.mark.parametrize("order", [1, 4, 16])
def test_noise_floor_of_a_mean_magnitude_is_taken_off_exactly(order: int) -> None:
    rng = np.random.default_rng(3)
    shape = (order, 2, 400_000)
    for signal in (0.5, 1.0, 2.0, 5.0, 15.0, 60.0):
        noise = rng.normal(0, 1, shape)
        noise[0, 0] += signal
        mean = np.sqrt((noise**2).sum((0, 1))).mean()
        volume = Volume(np.full((1, 1, 1), mean), Grid.centred((1, 1, 1), 4.0))
        tolerance = 0.02 * order / min(signal, 1.0)
        assert correct_noise_floor(volume, 1.0, order=order).data.item() == pytest.approx(signal, abs=tolerance)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 30.0])
@pytest.mark.parametrize("integers", [False, True])
def test_background_sigma_is_right_with_a_head_in_the_image(sigma: float, integers: bool) -> None:
    mmol, _ = phantom()
    noisy = rician(10 * mmol, sigma)
    noisy[:3], noisy[:, -2:] = 0, 0  # padding of the field of view
    data = np.rint(noisy).astype(np.int16) if integers else noisy
    assert background_sigma(Volume(data, GRID)) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("order", [4, 32])
def test_background_sigma_of_a_sum_of_squares(order: int) -> None:
    rng = np.random.default_rng(4)
    mmol, _ = phantom()
    square = (10 * mmol + rng.normal(0, 5, mmol.shape)) ** 2 + rng.normal(0, 5, mmol.shape) ** 2
    square += 25 * rng.chisquare(2 * (order - 1), mmol.shape)
    volume = Volume(np.sqrt(square), GRID)
    assert background_sigma(volume, order=order) == pytest.approx(5, rel=0.03)
    assert background_sigma(volume, order=None) == pytest.approx(5, rel=0.12)


def test_sigma_is_estimated_where_it_is_not_given() -> None:
    mmol, _ = phantom()
    result = denoise(Volume(rician(mmol, 3.0), GRID), DenoisingParams(method="off"))
    assert result.sigma == pytest.approx(3.0, rel=0.03)
    assert result.sigma_source == "background"
