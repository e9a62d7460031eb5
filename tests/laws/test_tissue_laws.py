"""Laws of the tissue modules: what holds for every image, mask and scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bids_sodium.tissue._samples import fit_moments
from bids_sodium.tissue.measures import regional as measure
from bids_sodium.tissue.partialvolume import PartialVolumeParams, moments, regional, shrunk
from bids_sodium.tissue.rois import agreement, combine, consensus

SHAPE = (6, 5, 4)
masks = arrays(bool, SHAPE)
NAMES = ("CGM", "NAWM", "CSF")
METHODS = ("raw", "csf", "gtm", "glm", "local", "mg", "mlts")
VOXEL_MM = (4.0, 4.0, 4.0)
laws = settings(max_examples=25, deadline=None, derandomize=True)


def fractions(seed: int, n: int = 10) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(3, n, n, n)), (0, 1.5, 1.5, 1.5))
    share = np.exp(6 * noise / noise.std())
    return share / share.sum(axis=0)


@laws
@given(masks, masks, masks)
def test_set_expressions_obey_the_laws_of_sets(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    m = {"a": a, "b": b, "c": c}
    for left, right in [
        ("a & b", "b & a"),
        ("a | b", "b | a"),
        ("a - (b | c)", "(a - b) & (a - c)"),
        ("a - (b & c)", "(a - b) | (a - c)"),
        ("a & (b | c)", "a & b | a & c"),
        ("a - b | a & b", "a"),
        ("a & b - c", "(a & b) - c"),
    ]:
        np.testing.assert_array_equal(combine(m, left), combine(m, right))


@laws
@given(masks, masks)
def test_consensus_lies_between_intersection_and_union_and_knows_no_order(a: np.ndarray, b: np.ndarray) -> None:
    mean = consensus([a, b])
    np.testing.assert_array_equal(mean, consensus([b, a]))
    assert (mean <= (a | b)).all()
    if a.any() and b.any():
        assert ((a & b) <= mean).all()


@laws
@given(masks, masks)
def test_agreement_is_symmetric_and_one_with_itself(a: np.ndarray, b: np.ndarray) -> None:
    there, back = agreement(a, b), agreement(b, a)
    assert there.dice == back.dice or (np.isnan(there.dice) and np.isnan(back.dice))
    assert there.volume_a_ml == back.volume_b_ml
    if a.any():
        assert (agreement(a, a).dice, agreement(a, a).hausdorff95_mm) == (1.0, 0.0)


@laws
@given(st.integers(0, 10_000), st.floats(1.0, 200.0))
def test_constant_image_gives_its_constant_with_every_method(seed: int, level: float) -> None:
    f = fractions(seed)
    for method in METHODS:
        params = PartialVolumeParams(csf_mmol_l=level)  # the partition subtracts the CSF that is there
        fit = regional(np.full(f.shape[1:], level), f, NAMES, params, method=method, voxel_mm=VOXEL_MM)
        found = np.isfinite(fit.mmol_l)
        np.testing.assert_allclose(fit.mmol_l[found], level, rtol=1e-8)


@laws
@given(st.integers(0, 10_000), st.floats(0.1, 10.0))
def test_scale_of_the_image_is_the_scale_of_the_result(seed: int, scale: float) -> None:
    f = fractions(seed)
    y = np.tensordot([40.0, 32.0, 140.0], f, axes=1) + np.random.default_rng(seed).normal(0, 3, f.shape[1:])
    for method in METHODS:
        one, many = (
            regional(s * y, f, NAMES, PartialVolumeParams(csf_mmol_l=s * 140), method=method, voxel_mm=VOXEL_MM)
            for s in (1.0, scale)
        )
        np.testing.assert_allclose(many.mmol_l, scale * one.mmol_l, rtol=1e-8)
        np.testing.assert_allclose(many.se, scale * one.se, rtol=1e-6)
        np.testing.assert_allclose(many.sd, scale * one.sd, rtol=1e-6)


@laws
@given(st.integers(0, 10_000))
def test_order_of_the_columns_does_not_matter(seed: int) -> None:
    f = fractions(seed)
    y = np.tensordot([40.0, 32.0, 140.0], f, axes=1) + np.random.default_rng(seed).normal(0, 3, f.shape[1:])
    for method in METHODS:
        there = regional(y, f, NAMES, method=method, voxel_mm=VOXEL_MM)
        back = regional(y, f[::-1], NAMES[::-1], method=method, voxel_mm=VOXEL_MM)
        np.testing.assert_allclose(back.mmol_l[::-1], there.mmol_l, rtol=1e-8)
        np.testing.assert_allclose(back.se[::-1], there.se, rtol=1e-6)


@laws
@given(st.integers(0, 10_000))
def test_covariance_is_symmetric_and_not_negative(seed: int) -> None:
    f = fractions(seed)
    y = np.tensordot([40.0, 32.0, 140.0], f, axes=1) + np.random.default_rng(seed).normal(0, 3, f.shape[1:])
    for method in METHODS:
        fit = regional(y, f, NAMES, method=method, voxel_mm=VOXEL_MM)
        np.testing.assert_allclose(fit.covariance, fit.covariance.T)
        assert np.linalg.eigvalsh(fit.covariance).min() > 0
        np.testing.assert_allclose(fit.se**2, np.diag(fit.covariance))


@laws
@given(st.integers(0, 10_000), st.floats(-2.0, 2.0), st.floats(-2.0, 2.0))
def test_estimated_targets_are_linear_and_exact_where_every_tissue_is_uniform(seed: int, a: float, b: float) -> None:
    from scipy.ndimage import gaussian_filter

    shares, rng = fractions(seed), np.random.default_rng(seed)
    spread = np.stack([gaussian_filter(p, 6.0 / np.sqrt(8 * np.log(2)) / 4.0, mode="constant") for p in shares])
    truth, unlike = rng.uniform(20.0, 150.0, 3), rng.normal(40.0, 10.0, shares.shape[1:])
    uniform = np.tensordot(truth, spread, axes=1)

    def estimate(image: np.ndarray) -> np.ndarray:
        fit = regional(image, spread, NAMES, method="estc", fractions=shares, fwhm_mm=6.0, voxel_mm=VOXEL_MM)
        return np.asarray(fit.mmol_l)

    np.testing.assert_allclose(estimate(uniform), truth, rtol=1e-8)
    both = estimate(a * uniform + b * unlike)
    np.testing.assert_allclose(both, a * truth + b * estimate(unlike), rtol=1e-7, atol=1e-7)


@laws
@given(st.integers(0, 10_000), st.floats(0.5, 2.0))
def test_weights_of_one_size_are_flat_weights(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(2, 6, 8)) + 1j * rng.normal(size=(2, 6, 8))
    s = 40 * A[0] + 30 * A[1] + rng.normal(size=(6, 8))
    names = ("CGM", "NAWM")
    flat, weighted = (
        fit_moments(moments(s, A, names)),
        fit_moments(moments(s, A, names, np.full((6, 8), size)), density=True),
    )
    np.testing.assert_allclose(weighted.c, flat.c)
    np.testing.assert_allclose(weighted.covariance, flat.covariance)


@laws
@given(arrays(bool, SHAPE), st.floats(-50, 50), st.floats(0.1, 10))
def test_measures_shift_and_scale_with_the_image(mask: np.ndarray, shift: float, scale: float) -> None:
    if mask.sum() < 2:
        return
    image = np.random.default_rng(0).normal(size=SHAPE)
    one, other = measure(image, mask, voxel_ml=0.1), measure(shift + scale * image, mask, voxel_ml=0.1)
    assert other.mean == pytest.approx(shift + scale * one.mean, rel=1e-9, abs=1e-9)
    assert other.sd == pytest.approx(scale * one.sd, rel=1e-6)


@laws
@given(st.integers(0, 2**31), st.floats(0.1, 50.0))
def test_leaning_is_least_squares_with_the_contrasts_as_further_data(seed: int, sd: float) -> None:
    columns = fractions(seed)
    image = np.tensordot(np.array([40.0, 30.0, 140.0]), columns, axes=1)
    fit = regional(
        image + np.random.default_rng(seed).normal(size=image.shape), columns, NAMES, method="glm", sigma=1.0
    )
    H, S = np.array([[1.0, -0.7, -0.3], [0.0, 1.0, -1.0]]), sd**2 * np.array([[1.0, 0.5], [0.5, 4.0]])
    found = shrunk(fit, H, S)
    precision = np.linalg.inv(fit.covariance) + H.T @ np.linalg.inv(S) @ H
    expected = np.linalg.solve(precision, np.linalg.solve(fit.covariance, fit.mmol_l))
    np.testing.assert_allclose(found.mmol_l, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(precision), rtol=1e-5, atol=1e-8)
    assert (found.se <= fit.se * (1 + 1e-9)).all()
    free = shrunk(fit, H, np.eye(2) * 1e18)
    np.testing.assert_allclose(free.mmol_l, fit.mmol_l, rtol=1e-9)
