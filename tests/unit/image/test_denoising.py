"""Denoising: what is refused, what each method does, and the flags of the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, DataError, GeometryError
from bids_sodium.image.denoising import DenoisingParams, denoise
from bids_sodium.image.magnitude import correct_noise_floor

GRID = Grid.centred((10, 10, 10), 4.0)


def volume(fill: float = 10.0) -> Volume:
    return Volume(np.full(GRID.shape, fill), GRID)


def series(n: int = 8) -> Volume:
    rng = np.random.default_rng(0)
    truth = np.broadcast_to(40.0 * np.exp(-np.arange(n) / n), (*GRID.shape, n))
    return Volume(np.abs(truth + rng.normal(0, 2, truth.shape) + 1j * rng.normal(0, 2, truth.shape)), GRID)


def noisy(seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    truth = np.full(GRID.shape, 30.0)
    truth[5:] = 60.0
    return Volume(np.abs(truth + rng.normal(0, 3, truth.shape) + 1j * rng.normal(0, 3, truth.shape)), GRID)


def test_off_changes_nothing() -> None:
    result = denoise(volume(), DenoisingParams(method="off"), sigma=2.0)
    assert np.array_equal(result.image.data, volume().data)
    assert (result.floor_removed, result.sigma, result.sigma_source) == (False, 2.0, "given")


def test_noise_of_zero_changes_nothing() -> None:
    assert np.array_equal(denoise(volume(), sigma=0.0).image.data, volume().data)


@pytest.mark.parametrize(("keep_means", "inside"), [(False, 100 - 2 * 4), (True, 100 - 4)])
def test_outside_the_mask_only_the_floor_goes(keep_means: bool, inside: float) -> None:
    """Non-local means is the root of a mean square, which loses two sigma squared; what it moved is given back."""
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[:5] = True
    result = denoise(volume(), DenoisingParams(keep_means=keep_means), sigma=2.0, mask=mask)
    assert np.asarray(result.image.data)[2, 5, 5] == pytest.approx(
        np.sqrt(inside), rel=1e-4 if not keep_means else 2e-3
    )
    assert np.asarray(result.image.data)[8, 5, 5] == pytest.approx(np.sqrt(100 - 4), rel=2e-3)
    assert result.floor_removed


def test_recommended_suits_the_axes() -> None:
    assert denoise(noisy(), sigma=3.0).method == "nlm"
    assert denoise(series(), sigma=2.0).method == "mppca"


def test_recommended_is_non_local_means_and_paper_its_published_radii() -> None:
    image = noisy()

    def result(**settings: Any) -> np.ndarray:
        return np.asarray(denoise(image, DenoisingParams(**settings), sigma=3.0).image.data)

    assert np.array_equal(result(), result(method="nlm"))
    assert np.array_equal(result(method="paper", block_radius=2), result(method="nlm", block_radius=5))
    assert not np.array_equal(result(method="paper"), result(method="nlm"))


def test_paper_without_kept_means_is_the_filter_of_the_library() -> None:
    from dipy.denoise.nlmeans import nlmeans

    image = noisy()
    expected = nlmeans(image.data, 3.0, patch_radius=1, block_radius=5, rician=True, num_threads=1, method="classic")
    found = denoise(image, DenoisingParams(method="paper", keep_means=False), sigma=3.0).image.data
    assert np.asarray(found) == pytest.approx(np.asarray(expected), abs=1e-3)


def test_more_weight_of_total_variation_smooths_more() -> None:
    image = noisy()
    spread = []
    for weight in (0.1, 0.5, 2.0):
        params = DenoisingParams(method="tv", tv_weight=weight, keep_means=False)
        spread.append(float(np.std(np.asarray(denoise(image, params, sigma=3.0).image.data)[6:])))
    assert spread == sorted(spread, reverse=True)


def test_noise_of_a_series_is_found_in_itself() -> None:
    rng = np.random.default_rng(0)
    grid = Grid.centred((14, 14, 14), 4.0)
    data = 40.0 + rng.normal(0, 2, (*grid.shape, 12)) + 1j * rng.normal(0, 2, (*grid.shape, 12))
    result = denoise(Volume(data, grid))
    assert (result.method, result.sigma_source, result.floor_removed) == ("mppca", "series", False)
    assert result.sigma == pytest.approx(2.0, rel=0.05)
    assert result.image.data.dtype == np.complex64


def test_outside_the_mask_a_series_only_loses_its_floor() -> None:
    mask = np.ones(GRID.shape, dtype=bool)
    mask[:, :2] = False
    image = series()
    found = np.asarray(denoise(image, sigma=2.0, mask=mask).image.data)
    plain = np.asarray(correct_noise_floor(image, 2.0).data)
    assert found[:, 0] == pytest.approx(plain[:, 0], abs=0.5)
    assert np.std(found[:, 4:] - plain[:, 4:]) > 1.0


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "blockwise"},
        {"patch_radius": 0},
        {"block_radius": 0},
        {"series_radius": 0},
        {"tv_weight": 0.0},
        {"tv_weight": float("nan")},
    ],
)
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
    with pytest.raises(DataError, match="0 channels"):
        denoise(volume(), sigma=1.0, order=0)
    with pytest.raises(GeometryError):
        denoise(volume(), sigma=1.0, mask=np.ones((2, 2, 2), dtype=bool))


def test_methods_say_what_they_need() -> None:
    with pytest.raises(DataError, match=r"no series.*choose nlm"):
        denoise(volume(), DenoisingParams(method="mppca"), sigma=1.0)
    with pytest.raises(DataError, match=r"three axes.*mppca"):
        denoise(series(), DenoisingParams(method="tv"), sigma=1.0)
    with pytest.raises(DataError, match="too thin"):
        denoise(Volume(series().data[:, :, :4], Grid((10, 10, 4), GRID.affine)), sigma=1.0)
    with pytest.raises(DataError, match="NaN"):
        denoise(Volume(np.full((*GRID.shape, 8), np.nan + 1j), GRID), sigma=1.0)
