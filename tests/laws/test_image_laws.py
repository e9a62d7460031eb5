"""Laws of the image science: scaling, inversion, order and invariance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bids_sodium.core.constants import RELAXATION
from bids_sodium.core.data import Grid, Volume
from bids_sodium.image.calibration import (
    CalibrationParams,
    correct_receive,
    fit_scale,
    measure_vials,
    receive_ratio,
    relaxation_factor,
    tsc,
)
from bids_sodium.image.denoising import DenoisingParams, denoise
from bids_sodium.image.diffusion import adc
from bids_sodium.image.magnitude import correct_noise_floor
from bids_sodium.image.noise import background_sigma
from bids_sodium.image.transmit import double_angle, transmit_factor

concentrations = st.lists(st.floats(5, 300), min_size=2, max_size=6, unique_by=round)
GRID = Grid.centred((6, 6, 6), 4.0)


@given(concentrations, st.floats(1e-3, 1e3), st.floats(0.001, 0.05))
def test_exact_vials_give_their_scale_back(mmol: list[float], gain: float, noise: float) -> None:
    truth = np.array(mmol)
    signal = gain * truth
    for line in ("zero", "intercept"):
        fit = fit_scale(signal, noise * signal, CalibrationParams(vial_mmol_l=tuple(mmol), line=line))
        assert fit.slope == pytest.approx(1 / gain, rel=1e-6)
        assert fit.concentration(signal) == pytest.approx(truth, rel=1e-5, abs=1e-5)
        assert fit.r2 == pytest.approx(1, abs=1e-6)
        assert all(fit.kept)


@given(st.floats(0.01, 100))
def test_scale_turns_with_the_unit_of_the_signal(factor: float) -> None:
    signal, se = np.array([103.0, 195.0, 410.0]), np.array([3.0, 4.0, 5.0])
    params = CalibrationParams(vial_mmol_l=(20.0, 40.0, 80.0))
    one, other = fit_scale(signal, se, params), fit_scale(factor * signal, factor * se, params)
    assert other.slope * factor == pytest.approx(one.slope)
    assert other.slope_se * factor == pytest.approx(one.slope_se)
    assert other.residual_mmol_l == pytest.approx(one.residual_mmol_l)
    assert other.free_intercept_mmol_l == pytest.approx(one.free_intercept_mmol_l)
    assert other.chi2 == pytest.approx(one.chi2)


@given(st.permutations(range(4)))
def test_scale_does_not_depend_on_the_order_of_the_vials(order: list[int]) -> None:
    mmol, signal, se = np.array([20.0, 40, 80, 120]), np.array([99.0, 207, 395, 590]), np.array([3.0, 4, 5, 6])
    one = fit_scale(signal, se, CalibrationParams(vial_mmol_l=tuple(mmol)))
    other = fit_scale(signal[order], se[order], CalibrationParams(vial_mmol_l=tuple(mmol[order])))
    assert other.slope == pytest.approx(one.slope)
    assert other.slope_se == pytest.approx(one.slope_se)
    assert [other.residuals_mmol_l[order.index(i)] for i in range(4)] == pytest.approx(list(one.residuals_mmol_l))


@given(st.sampled_from(sorted(RELAXATION)), st.sampled_from(sorted(RELAXATION)), st.floats(0.1, 5), st.floats(20, 300))
def test_relaxation_factors_chain_and_invert(one: str, other: str, te_ms: float, tr_ms: float) -> None:
    sequence = {"te_ms": te_ms, "tr_ms": tr_ms, "flip_deg": 80.0}
    a, b, c = RELAXATION[one], RELAXATION[other], RELAXATION["agar"]
    assert relaxation_factor(a, a, **sequence) == 1
    assert relaxation_factor(a, b, **sequence) * relaxation_factor(b, a, **sequence) == pytest.approx(1)
    assert relaxation_factor(a, c, **sequence) * relaxation_factor(c, b, **sequence) == pytest.approx(
        relaxation_factor(a, b, **sequence)
    )


@given(hnp.arrays(np.float64, GRID.shape, elements=st.floats(0, 500)), st.floats(0.2, 5))
def test_tsc_is_linear_in_the_factor_and_its_error_grows_with_the_noise(data: np.ndarray, factor: float) -> None:
    image, scale = Volume(data, GRID), fit_scale([200.0, 400.0], [2.0, 2.0])
    (one, one_se), (other, other_se) = tsc(image, scale, sigma=3.0), tsc(image, scale, factor, sigma=3.0)
    assert np.allclose(other.data, factor * np.asarray(one.data))
    assert np.allclose(other_se.data, factor * np.asarray(one_se.data))
    assert (np.asarray(tsc(image, scale, sigma=4.0)[1].data) > np.asarray(one_se.data)).all()
    assert np.asarray(one_se.data) == pytest.approx(np.hypot(0.2 * 3, data * scale.slope_se))


@given(hnp.arrays(np.float64, GRID.shape, elements=st.floats(0, 500)), st.floats(0.5, 50), st.integers(1, 32))
def test_noise_floor_only_lowers_and_keeps_the_order(data: np.ndarray, sigma: float, order: int) -> None:
    clean = np.asarray(correct_noise_floor(Volume(data, GRID), sigma, order=order).data)
    assert (clean >= 0).all()
    assert (clean <= data + 1e-9).all()
    rank = np.argsort(data, axis=None)
    assert (np.diff(clean.ravel()[rank]) >= -1e-9).all()
    assert np.array_equal(correct_noise_floor(Volume(data, GRID), 0.0).data, data)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1000))
def test_noise_estimates_and_denoising_scale_with_the_image(factor: float) -> None:
    rng = np.random.default_rng(0)
    grid = Grid.centred((14, 14, 14), 4.0)
    image = np.zeros(grid.shape)
    image[4:10, 4:10, 4:10] = 50.0
    noisy = np.abs(image + rng.normal(0, 3, grid.shape) + 1j * rng.normal(0, 3, grid.shape))
    one, other = Volume(noisy, grid), Volume(factor * noisy, grid)
    # images of whole numbers are treated as rounded
    assume(not np.allclose(factor * noisy, np.rint(factor * noisy)))
    assert background_sigma(other) == pytest.approx(factor * background_sigma(one), rel=1e-4)
    clean, scaled = denoise(one, sigma=3.0).image.data, denoise(other, sigma=3.0 * factor).image.data
    assert np.allclose(scaled, factor * np.asarray(clean), rtol=1e-4, atol=1e-4 * factor)


def test_nothing_is_modified_in_place() -> None:
    rng = np.random.default_rng(0)
    grid = Grid.centred((14, 14, 14), 4.0)
    data = np.abs(rng.normal(10, 1, grid.shape))
    before, volume = data.copy(), Volume(data, grid)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[4:9, 4:9, 4:9] = True
    denoise(volume, sigma=1.0)
    denoise(volume, DenoisingParams(method="off"), sigma=1.0)
    correct_noise_floor(volume, 1.0)
    measure_vials(volume, [mask], CalibrationParams(), sigma=1.0, inner_radius_mm=8.0, fwhm_mm=5.0)
    receive_ratio(volume, volume, mask=mask)
    assert np.array_equal(data, before)


@given(st.floats(0.2, 8))
def test_receive_ratio_of_a_scaled_image_is_the_scale(factor: float) -> None:
    rng = np.random.default_rng(0)
    grid = Grid.centred((14, 14, 14), 12.0)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[3:11, 3:11, 3:11] = True
    head = Volume(np.where(mask, rng.uniform(20, 40, grid.shape), 0.0), grid)
    ratio = receive_ratio(head.with_data(factor * np.asarray(head.data)), head, mask=mask)
    assert ratio == pytest.approx(np.full(grid.shape, factor))
    corrected = correct_receive(head.with_data(factor * np.asarray(head.data)), ratio)
    assert np.allclose(corrected.data, head.data)


@given(st.floats(1e-4, 3e-3), st.floats(10, 1000), st.lists(st.floats(0, 2000), min_size=2, max_size=9))
def test_exact_decay_gives_its_coefficient_back_for_any_b_values(true: float, s0: float, b: list[float]) -> None:
    assume(max(b) - min(b) > 100)
    data = np.broadcast_to(s0 * np.exp(-np.array(b) * true), (*GRID.shape, len(b)))
    fit = adc(Volume(data, GRID), b)
    assert np.asarray(fit.adc.data) == pytest.approx(np.full(GRID.shape, true), rel=1e-6)
    assert np.asarray(fit.s0.data) == pytest.approx(np.full(GRID.shape, s0), rel=1e-5)
    assert fit.valid.all()


@given(st.floats(0.3, 1.4), st.floats(20, 60), st.floats(20, 500), st.floats(10, 60))
def test_double_angle_finds_the_field_and_the_factor_undoes_it(
    field: float, flip_deg: float, tr_ms: float, t1_ms: float
) -> None:
    reached = np.deg2rad(field * flip_deg)
    single = Volume(np.full(GRID.shape, np.sin(reached)), GRID)
    double = Volume(np.full(GRID.shape, np.sin(2 * reached)), GRID)
    found = double_angle(single, double, flip_deg=flip_deg)
    assert found == pytest.approx(np.full(GRID.shape, field), rel=1e-6)
    e1 = np.exp(-tr_ms / t1_ms)

    def steady(angle: float) -> float:
        return float(np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1))

    factor = transmit_factor(found, t1_ms=t1_ms, tr_ms=tr_ms, flip_deg=flip_deg)
    assert factor * steady(reached) == pytest.approx(np.full(GRID.shape, steady(np.deg2rad(flip_deg))), rel=1e-6)
