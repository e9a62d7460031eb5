"""Partial-volume correction: what it refuses, leaves out and puts together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.tissue.partialvolume import (
    METHODS,
    PartialVolumeParams,
    correct,
    fit_samples,
    local,
    muller_gartner,
    noise_autocorrelation,
    pooled,
    region_voxel,
    regional,
)

NAMES = ("CGM", "NAWM", "CSF")
TRUTH = np.array([40.0, 32.0, 140.0])


def columns(n: int = 16) -> np.ndarray:
    x, y, _ = np.meshgrid(*[np.linspace(0, 3, n)] * 3, indexing="ij")
    raw = np.stack([np.exp(-((x - 1) ** 2) * 3), np.exp(-((x - 2) ** 2) * 3), np.exp(-((y - 1.5) ** 2) * 9)])
    return raw / raw.sum(axis=0)


def image() -> np.ndarray:
    return np.tensordot(TRUTH, columns(), axes=1)


@pytest.mark.parametrize("method", ["gtm", "glm", "local"])
def test_noise_free_model_is_solved_exactly(method: str) -> None:
    fit = regional(image(), columns(), NAMES, method=method, voxel_mm=(4, 4, 4))  # type: ignore[arg-type]
    np.testing.assert_allclose(fit.mmol_l, TRUTH, rtol=1e-9)
    assert fit.method == method
    assert np.abs(fit.residual).max() < 1e-8
    assert (fit.n_voxels > 0).all()


def test_csf_partition_of_tissue_and_csf_is_exact_whatever_the_share() -> None:
    q = np.random.default_rng(0).random((12, 12, 12))
    fit = regional(40 * (1 - q) + 140 * q, np.stack([1 - q, q]), ("CGM", "CSF"), method="csf")
    assert fit.of("CGM")[0] == pytest.approx(40.0)
    cells = 1 - q
    assert fit.csf_excluded_fraction[0] == pytest.approx(
        1 - cells[(q < 0.5)].sum() / cells[cells >= 0.1 * cells.max()].sum(), rel=1e-9
    )


def test_raw_is_the_weighted_mean() -> None:
    f = columns()
    fit = regional(image(), f, NAMES, PartialVolumeParams(weight_threshold=0.0), method="raw")
    np.testing.assert_allclose(fit.mmol_l, (f * image()).sum(axis=(1, 2, 3)) / f.sum(axis=(1, 2, 3)))
    assert fit.residual.size == 0


@pytest.mark.parametrize("method", METHODS)
def test_empty_tissue_is_left_out(method: str) -> None:
    f = np.concatenate([columns(), np.zeros((1, 16, 16, 16))])
    fit = regional(image(), f, (*NAMES, "L"), method=method, voxel_mm=(4, 4, 4))  # type: ignore[arg-type]
    alone = regional(image(), columns(), NAMES, method=method, voxel_mm=(4, 4, 4))  # type: ignore[arg-type]
    np.testing.assert_allclose(fit.mmol_l[:3], alone.mmol_l)
    assert np.isnan(fit.mmol_l[3])
    assert np.isnan(fit.se[3])
    assert np.isnan(fit.covariance[3]).all()
    assert fit.n_voxels[3] == 0


def test_column_that_is_the_sum_of_others_is_left_out() -> None:
    f = np.concatenate([columns(), columns()[:2].sum(axis=0, keepdims=True)])
    fit = regional(image(), f, (*NAMES, "brain"), method="glm")
    np.testing.assert_allclose(fit.mmol_l[:3], TRUTH)
    assert np.isnan(fit.mmol_l[3])


def test_nuisance_columns_explain_what_is_not_tissue() -> None:
    x = np.indices((16, 16, 16))[0]
    vial = np.where(x > 13, 1.0, 0.0)
    f = np.concatenate([columns() * (x < 13), vial[None], np.ones((1, 16, 16, 16))])
    y = np.tensordot(np.array([*TRUTH, 80.0, 3.0]), f, axes=1)
    fit = regional(y, f, (*NAMES, "vial", "constant"), method="glm")
    np.testing.assert_allclose(fit.mmol_l, [*TRUTH, 80.0, 3.0], rtol=1e-9)


def test_voxels_that_are_not_finite_are_left_out() -> None:
    y = image()
    y[3:6, 2:4, 1] = np.nan
    fit = regional(y, columns(), NAMES, method="glm")
    np.testing.assert_allclose(fit.mmol_l, TRUTH)


def test_mask_limits_the_fit() -> None:
    mask = np.zeros((16, 16, 16), bool)
    mask[:, :, :8] = True
    y = image()
    y[:, :, 8:] = -999.0
    np.testing.assert_allclose(regional(y, columns(), NAMES, method="glm", mask=mask).mmol_l, TRUTH)


def test_correct_takes_volumes_and_columns() -> None:
    volume = Volume(image(), Grid.centred((16, 16, 16), 4.0), "mmol/L")
    fit = correct(volume, SimpleNamespace(names=NAMES, images=columns().astype(np.float32)))
    np.testing.assert_allclose(fit.mmol_l, TRUTH, rtol=1e-5)


def test_what_cannot_be_used_is_refused() -> None:
    f, y = columns(), image()
    with pytest.raises(DataError, match="complex"):
        regional(y.astype(complex), f, NAMES, method="glm")
    with pytest.raises(GeometryError, match="do not fit"):
        regional(y[1:], f, NAMES, method="glm")
    with pytest.raises(DataError, match="named twice"):
        regional(y, f, ("CGM", "CGM", "CSF"), method="glm")
    with pytest.raises(ConfigError, match="unknown partial-volume method"):
        regional(y, f, NAMES, method="rbv")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="voxel size"):
        regional(y, f, NAMES, method="local")
    with pytest.raises(EstimationError, match="no voxel"):
        regional(y, f, NAMES, method="glm", mask=np.zeros(y.shape, bool))
    with pytest.raises(EstimationError, match="every tissue column is empty"):
        regional(y, 0 * f, NAMES, method="glm", mask=np.ones(y.shape, bool))
    with pytest.raises(DataError, match="columns are NaN"):
        regional(y, f * np.nan, NAMES, method="glm")
    with pytest.raises(DataError, match="standard deviation"):
        regional(y, f, NAMES, method="glm", sigma=-1.0)
    with pytest.raises(DataError, match="odd"):
        regional(y, f, NAMES, method="glm", autocorrelation=np.ones((2, 2, 2)))
    few = np.zeros(y.shape, bool)
    few[[2, 10, 5], [8, 8, 1], 0] = True
    with pytest.raises(EstimationError, match="3 voxels cannot determine 3"):
        regional(y, f, NAMES, method="glm", mask=few)


def test_autocorrelation_of_filtered_noise_is_that_of_its_filter() -> None:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).normal(size=(6, 40, 40, 40)), (0, 1, 1, 1), mode="wrap")
    kernel = noise_autocorrelation(noise, 6)
    # exp(-l^2 / (4 sigma^2)) times the Parzen taper at lag 1 of 7
    assert kernel[7, 6, 6] == pytest.approx(np.exp(-0.25) * (1 - 6 / 49 * (6 / 7)), rel=0.03)
    with pytest.raises(EstimationError, match="zero"):
        noise_autocorrelation(np.zeros((5, 5, 5)))


def test_pooled_tissue_carries_the_covariance() -> None:
    y = image() + np.random.default_rng(0).normal(0, 2, (16, 16, 16))
    fit = regional(y, columns(), NAMES, method="glm", variance_factor=1.0)
    both = pooled(fit, {"brain": ("CGM", "NAWM"), "none": ("L",)}, {"CGM": 3.0, "NAWM": 1.0})
    share = np.array([0.75, 0.25, 0.0])
    assert both.of("brain")[0] == pytest.approx(share @ fit.mmol_l)
    assert both.of("brain")[1] == pytest.approx(np.sqrt(share @ fit.covariance @ share))
    assert np.isnan(both.of("none")[0])
    assert both.names == (*NAMES, "brain", "none")
    np.testing.assert_array_equal(both.mmol_l[:3], fit.mmol_l)


def test_voxel_images_of_a_noise_free_model() -> None:
    f, y = columns(), image()
    sharp = (f == f.max(axis=0)).astype(float)
    np.testing.assert_allclose(region_voxel(y, f, sharp, TRUTH), np.tensordot(TRUTH, sharp, axes=1))
    grey = muller_gartner(y, f, NAMES, TRUTH, tissue="CGM")
    np.testing.assert_allclose(grey[f[0] >= 0.3], 40.0)
    assert np.isnan(grey[f[0] < 0.3]).all()
    with pytest.raises(DataError, match="no column"):
        muller_gartner(y, f, NAMES, TRUTH, tissue="DGM")


def test_samples_that_cannot_be_used_are_refused() -> None:
    A = np.random.default_rng(0).normal(size=(2, 5, 9)) + 0j
    with pytest.raises(GeometryError, match="samples of shape"):
        fit_samples(A[0, 1:], A)
    with pytest.raises(DataError, match="least value"):
        fit_samples(A[0], A, -np.ones((5, 9)))
    with pytest.raises(EstimationError, match="empty in k-space"):
        fit_samples(A[0], 0 * A)
    fit = fit_samples(40 * A[0], np.stack([A[0], 0 * A[0]]), names=("CGM", "L"))
    assert fit.of("CGM")[0] == pytest.approx(40.0)
    assert np.isnan(fit.of("L")[0])
    assert list(fit.n_voxels) == [45, 0]


def test_local_maps_cover_the_mask_only() -> None:
    mask = np.zeros((16, 16, 16), bool)
    mask[2:14, 2:14, 2:14] = True
    fit = local(image(), columns(), NAMES, voxel_mm=(4, 4, 4), mask=mask)
    assert fit.maps.shape == (3, 16, 16, 16)
    np.testing.assert_array_equal(np.isfinite(fit.maps[0]), mask)
