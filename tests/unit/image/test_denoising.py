"""Denoising: what is refused, and the flags of the result."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.image.denoising import DenoisingParams, background_sigma, correct_noise_floor, denoise

GRID = Grid.centred((10, 10, 10), 4.0)


def volume(fill: float = 10.0) -> Volume:
    return Volume(np.full(GRID.shape, fill), GRID)


def test_off_changes_nothing() -> None:
    result = denoise(volume(), DenoisingParams(method="off"), sigma=2.0)
    assert np.array_equal(result.image.data, volume().data)
    assert (result.floor_removed, result.sigma, result.sigma_source) == (False, 2.0, "given")


def test_noise_of_zero_changes_nothing() -> None:
    assert np.array_equal(denoise(volume(), sigma=0.0).image.data, volume().data)


def test_outside_the_mask_only_the_floor_goes() -> None:
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[:5] = True
    result = denoise(volume(), sigma=2.0, mask=mask)
    assert np.asarray(result.image.data)[2, 5, 5] == pytest.approx(np.sqrt(100 - 2 * 4), rel=1e-4)
    assert np.asarray(result.image.data)[8, 5, 5] == pytest.approx(np.sqrt(100 - 4), rel=2e-3)
    assert result.floor_removed


@pytest.mark.parametrize("bad", [{"method": "blockwise"}, {"patch_radius": 0}, {"block_radius": 0}])
def test_unknown_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DenoisingParams(**bad)


def test_images_that_cannot_be_denoised_are_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        denoise(volume(float("nan")), sigma=1.0)
    with pytest.raises(DataError, match="three axes"):
        denoise(Volume(np.zeros((*GRID.shape, 2)), GRID), sigma=1.0)
    with pytest.raises(DataError, match="complex"):
        denoise(Volume(np.zeros(GRID.shape, complex), GRID), sigma=1.0)
    with pytest.raises(DataError, match="noise level"):
        denoise(volume(), sigma=-1.0)
    with pytest.raises(GeometryError):
        denoise(volume(), sigma=1.0, mask=np.ones((2, 2, 2), dtype=bool))


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
