"""Partial-volume correction: what it refuses, leaves out and puts together."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.tissue._estimators import estimated_targets
from bids_sodium.tissue.partialvolume import (
    METHODS,
    Method,
    PartialVolumeParams,
    noise_autocorrelation,
    pooled,
    regional,
)

NAMES = ("CGM", "NAWM", "CSF")
TRUTH = np.array([40.0, 32.0, 140.0])
OF_IMAGE = tuple(method for method in METHODS if not method.startswith("kspace"))


def columns(n: int = 16) -> np.ndarray:
    x, y, _ = np.meshgrid(*[np.linspace(0, 3, n)] * 3, indexing="ij")
    raw = np.stack([np.exp(-((x - 1) ** 2) * 3), np.exp(-((x - 2) ** 2) * 3), np.exp(-((y - 1.5) ** 2) * 9)])
    return raw / raw.sum(axis=0)


def image() -> np.ndarray:
    return np.tensordot(TRUTH, columns(), axes=1)


def needs(n: int = 3) -> dict[str, object]:
    """Return what some methods want besides image and columns."""
    shares = columns()
    more = np.zeros((n - 3, *shares.shape[1:]))
    return {"voxel_mm": (4.0, 4.0, 4.0), "fractions": np.concatenate([shares, more]), "fwhm_mm": 6.0}


@pytest.mark.parametrize("method", ["gtm", "glm", "local", "mg", "mlts"])
def test_noise_free_model_is_solved_exactly(method: Method) -> None:
    fit = regional(image(), columns(), NAMES, method=method, **needs())  # type: ignore[arg-type]
    np.testing.assert_allclose(fit.mmol_l, TRUTH, rtol=1e-9)
    assert fit.method == method
    assert fit.residual.size == 0 or np.abs(fit.residual).max() < 1e-8
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


@pytest.mark.parametrize("method", OF_IMAGE)
def test_empty_tissue_is_left_out(method: Method) -> None:
    f = np.concatenate([columns(), np.zeros((1, 16, 16, 16))])
    fit = regional(image(), f, (*NAMES, "L"), method=method, **needs(4))  # type: ignore[arg-type]
    alone = regional(image(), columns(), NAMES, method=method, **needs())  # type: ignore[arg-type]
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


def test_what_cannot_be_used_is_refused() -> None:
    f, y = columns(), image()
    with pytest.raises(DataError, match="complex"):
        regional(y.astype(complex), f, NAMES, method="glm")
    with pytest.raises(GeometryError, match="do not fit"):
        regional(y[1:], f, NAMES, method="glm")
    with pytest.raises(DataError, match="named twice"):
        regional(y, f, ("CGM", "CGM", "CSF"), method="glm")
    with pytest.raises(ConfigError, match="unknown partial-volume method"):
        regional(y, f, NAMES, method="best")  # type: ignore[arg-type]
    for method, lacks in (
        ("local", "voxel_mm"),
        ("rbv", "fractions"),
        ("iy", "fractions"),
        ("labbe", "voxel_mm, fractions, fwhm_mm"),
        ("stc", "voxel_mm, fractions, fwhm_mm"),
        ("estc", "voxel_mm, fractions, fwhm_mm"),
        ("kspace", "samples"),
        ("kspace-density", "samples"),
    ):
        with pytest.raises(ConfigError, match=f"{method}' lacks {lacks}"):
            regional(y, f, NAMES, method=method)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="point spread of 0"):
        regional(y, f, NAMES, method="stc", fractions=f, fwhm_mm=0.0, voxel_mm=(4, 4, 4))
    with pytest.raises(GeometryError, match="tissue fractions of shape"):
        regional(y, f, NAMES, method="rbv", fractions=f[:2])
    with pytest.raises(DataError, match="fractions are NaN"):
        regional(y, f, NAMES, method="rbv", fractions=f * np.nan)
    with pytest.raises(EstimationError, match="two of them look alike"):
        regional(y, f, NAMES, method="labbe", fractions=np.stack([f[0]] * 3), fwhm_mm=6.0, voxel_mm=(4, 4, 4))
    flat = f.reshape(3, -1)
    with pytest.raises(EstimationError, match="2 targets cannot be told apart"):
        estimated_targets(y.ravel(), flat[:2], np.stack([flat[0]] * 2))
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
    region = regional(y, f, NAMES, method="rbv", fractions=sharp)
    np.testing.assert_allclose(region.maps[0], np.tensordot(TRUTH, sharp, axes=1), rtol=1e-6)
    np.testing.assert_allclose(region.mmol_l, TRUTH)
    grey = regional(y, f, NAMES, method="mg")
    np.testing.assert_allclose(grey.maps[0][f[0] >= 0.3], 40.0, rtol=1e-6)
    assert np.isnan(grey.maps[0][f[0] < 0.3]).all()


@pytest.mark.parametrize("method", [method for method in OF_IMAGE if method != "mlts"])
def test_stated_derivative_is_the_one_seen(method: Method) -> None:
    """A doubt is propagated by the derivative of the estimate, whether the method is linear or not."""
    rng = np.random.default_rng(1)
    y = image() + rng.normal(0, 1, (16, 16, 16))
    change = rng.normal(0, 1, (16, 16, 16))
    fixed = {**needs(), "sigma": 1.0, "variance_factor": 1.0}

    def fit(size: float) -> np.ndarray:
        return regional(y + size * change, columns(), NAMES, method=method, **fixed).mmol_l  # type: ignore[arg-type]

    # the local methods take their ridge from the image: to first order that is a constant
    step = 1e-4
    seen = np.abs(fit(step) - fit(-step)) / (2 * step)
    doubt = {"placing": change[None]}
    stated = regional(y, columns(), NAMES, method=method, doubts=doubt, **fixed)  # type: ignore[arg-type]
    np.testing.assert_allclose(stated.parts["placing"], seen, rtol=0.03, atol=0.003)
    both = stated.parts["noise"] ** 2 + stated.parts["placing"] ** 2
    np.testing.assert_allclose(stated.se, np.sqrt(both))


def test_trimmed_fits_know_the_spread_of_their_regions() -> None:
    """The voxels that are trimmed change with the noise, so that only the spread over draws can be told."""
    rng = np.random.default_rng(3)
    y, f = np.tensordot(TRUTH, columns(10), axes=1), columns(10)
    fits = [
        regional(y + rng.normal(0, 1, y.shape), f, NAMES, method="mlts", sigma=1.0, variance_factor=1.0)
        for _ in range(40)
    ]
    seen = np.std([fit.mmol_l for fit in fits], axis=0)
    assert (np.abs(np.mean([fit.se for fit in fits], axis=0) / seen - 1.0) < 0.4).all()


def test_region_means_of_iterative_yang_settle() -> None:
    f = columns()
    few, many, more = (
        regional(
            image(), f, NAMES, PartialVolumeParams(iterations=n), method="iy", fractions=(f == f.max(axis=0)) * 1.0
        )
        for n in (1, 30, 31)
    )
    assert np.abs(many.mmol_l - more.mmol_l).max() < 0.05 * np.abs(few.mmol_l - more.mmol_l).max()
    np.testing.assert_allclose(more.mmol_l, TRUTH, rtol=0.02)


def test_a_single_target_in_flat_surroundings_is_recovered() -> None:
    from scipy.ndimage import gaussian_filter

    x = np.indices((24, 24, 24)) - 12
    target = ((x**2).sum(axis=0) < 25).astype(float)
    shares = np.stack([target, 1 - target])
    blurred = np.stack([gaussian_filter(p, 1.0, mode="constant") for p in shares])
    y = np.tensordot([50.0, 30.0], blurred, axes=1)
    fit = regional(
        y, blurred, ("L", "NAWM"), method="stc", fractions=shares, fwhm_mm=np.sqrt(8 * np.log(2)), voxel_mm=(1, 1, 1)
    )
    raw = regional(y, blurred, ("L", "NAWM"), method="raw")
    assert abs(fit.of("L")[0] - 50.0) < 0.3 * abs(raw.of("L")[0] - 50.0)
    more = {"fractions": shares, "fwhm_mm": np.sqrt(8 * np.log(2)), "voxel_mm": (1, 1, 1)}
    known = regional(y, blurred, ("L", "NAWM"), method="estc", **more)  # type: ignore[arg-type]
    assert known.of("L")[0] == pytest.approx(50.0, rel=1e-6)
    assert known.maps[0][12, 12, 12] == pytest.approx(50.0, rel=1e-5)
    assert np.isnan(known.maps[0][0, 0, 0])


def test_local_maps_cover_the_mask_only() -> None:
    mask = np.zeros((16, 16, 16), bool)
    mask[2:14, 2:14, 2:14] = True
    fit = regional(image(), columns(), NAMES, method="local", voxel_mm=(4, 4, 4), mask=mask)
    assert fit.maps.shape == (3, 16, 16, 16)
    np.testing.assert_array_equal(np.isfinite(fit.maps[0]), mask)


def test_residual_above_the_noise_widens_the_intervals() -> None:
    y = image() + np.random.default_rng(2).normal(0, 3, (16, 16, 16))
    trusting = regional(y, columns(), NAMES, method="glm", sigma=0.1, variance_factor=1.0)
    assert trusting.sigma == pytest.approx(3.0, rel=0.05)
    cautious = regional(y, columns(), NAMES, method="glm", sigma=6.0, variance_factor=1.0)
    np.testing.assert_allclose(cautious.se, trusting.se * 6.0 / trusting.sigma)
