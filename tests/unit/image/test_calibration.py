"""Calibration: what is refused, and what the quality of a line says."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.constants import AGAR
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError
from bids_sodium.image.calibration import CalibrationParams, fit_scale, relaxation_factor, tsc


@pytest.mark.parametrize(
    "bad", [("forty", 80), ("40", "80"), (40, -80), (40, 0), (40, float("nan")), (), "40,80", 40, (True,)]
)
def test_concentrations_must_be_positive_numbers(bad: object) -> None:
    with pytest.raises(DataError):
        CalibrationParams(vial_mmol_l=bad)


def test_concentrations_from_a_list_become_a_tuple_of_floats() -> None:
    assert CalibrationParams(vial_mmol_l=[40, np.float32(80)]).vial_mmol_l == (40.0, 80.0)


@pytest.mark.parametrize("bad", [{"line": "curve"}, {"minimum_ml": 0.0}, {"core_fraction": 1.0}])
def test_settings_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CalibrationParams(**bad)


def test_fewer_signals_than_concentrations_are_refused_with_both_numbers() -> None:
    with pytest.raises(EstimationError, match=r"1 vial\(s\) measured but 2 concentration\(s\) named \(40, 80 mmol/L\)"):
        fit_scale([200.0], [1.0])


@pytest.mark.parametrize("signal", [(200.0, 2.0), (200.0, float("nan")), (200.0, -5.0)])
def test_a_vial_in_the_noise_is_refused(signal: tuple[float, float]) -> None:
    with pytest.raises(EstimationError, match="vial 2"):
        fit_scale(signal, [1.0, 1.0])


@pytest.mark.parametrize("se", [(1.0, 0.0), (1.0, float("nan")), (1.0, -1.0), (1.0, 2.0, 3.0)])
def test_errors_that_are_none_are_refused(se: tuple[float, ...]) -> None:
    with pytest.raises(DataError):
        fit_scale([200.0, 400.0], se)


def test_vials_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(EstimationError, match="40 mmol/L is brighter"):
        fit_scale([400.0, 200.0], [2.0, 2.0])


def test_one_vial_sets_a_scale_and_says_what_it_cannot_say() -> None:
    fit = fit_scale([160.0], [2.0], CalibrationParams(vial_mmol_l=(40.0,)))
    assert fit.slope == pytest.approx(0.25)
    assert fit.slope_se == pytest.approx(0.25 * 2 / 160)
    assert np.isnan([fit.r2, fit.residual_mmol_l, fit.free_intercept_mmol_l]).all()
    assert "one vial" in fit.note
    with pytest.raises(EstimationError, match="do not determine a line"):
        fit_scale([160.0], [2.0], CalibrationParams(vial_mmol_l=(40.0,), line="intercept"))


def test_two_vials_of_one_concentration_have_no_r2() -> None:
    fit = fit_scale([160.0, 164.0], [2.0, 2.0], CalibrationParams(vial_mmol_l=(40.0, 40.0)))
    assert fit.slope == pytest.approx(40 / 162)
    assert np.isnan(fit.r2)
    assert "one concentration" in fit.note


def test_an_offset_of_the_signal_shows_in_the_free_intercept() -> None:
    # S = 20 + 5 C, so that the free line meets signal zero at -4 mmol/L
    fit = fit_scale([120.0, 220.0, 420.0], [1.0, 1.0, 1.0], CalibrationParams(vial_mmol_l=(20.0, 40.0, 80.0)))
    assert fit.intercept == 0
    assert fit.free_intercept_mmol_l == pytest.approx(-4)
    free = fit_scale(
        [120.0, 220.0, 420.0], [1.0, 1.0, 1.0], CalibrationParams(vial_mmol_l=(20.0, 40.0, 80.0), line="intercept")
    )
    assert free.intercept == pytest.approx(-4)
    assert free.slope == pytest.approx(0.2)
    assert free.residual_mmol_l == pytest.approx(0, abs=1e-9)


def test_the_rejected_vial_is_named() -> None:
    params = CalibrationParams(vial_mmol_l=(20.0, 40.0, 80.0))
    fit = fit_scale([100.0, 200.0, 250.0], [2.0, 2.0, 2.0], params)
    assert fit.kept == (True, True, False)
    assert "vial 3 (80 mmol/L) left out" in fit.note
    assert fit.slope == pytest.approx(0.2)
    assert fit.residuals_mmol_l[2] == pytest.approx(-30)


def test_two_vials_are_never_rejected() -> None:
    assert fit_scale([100.0, 400.0], [2.0, 2.0]).kept == (True, True)


def test_signals_without_noise_have_no_error() -> None:
    fit = fit_scale([200.0, 400.0], [0.0, 0.0])
    assert (fit.slope, fit.slope_se) == (pytest.approx(0.2), 0.0)


@pytest.mark.parametrize(
    ("te_ms", "tr_ms", "flip_deg"),
    [(float("nan"), 100, 90), (0.2, 0, 90), (0.2, 100, 0), (0.2, 100, 180), (900, 100, 90)],
)
def test_relaxation_needs_the_sequence(te_ms: float, tr_ms: float, flip_deg: float) -> None:
    with pytest.raises(DataError):
        relaxation_factor(AGAR, AGAR, te_ms=te_ms, tr_ms=tr_ms, flip_deg=flip_deg)


def test_tsc_takes_maps_and_refuses_a_factor_of_zero() -> None:
    grid = Grid.centred((3, 3, 3), 4.0)
    image, scale = Volume(np.full(grid.shape, 100.0), grid), fit_scale([200.0, 400.0], [2.0, 2.0])
    factor, sigma = np.full(grid.shape, 1.1), np.linspace(0, 10, 27).reshape(grid.shape)
    value, error = tsc(image, scale, factor, sigma=sigma)
    assert np.asarray(value.data) == pytest.approx(np.full(grid.shape, 22.0))
    assert value.unit == error.unit == "mmol/L"
    assert np.asarray(error.data).ravel()[-1] == pytest.approx(1.1 * np.hypot(2.0, 100 * scale.slope_se))
    with pytest.raises(DataError):
        tsc(image, scale, 0.0)
