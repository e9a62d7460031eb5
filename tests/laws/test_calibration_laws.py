"""Laws of calibration and of transmit and receive fields: units, inverses, symmetry and what cannot make a number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_sodium.core.constants import RELAXATION
from bids_sodium.core.data import Grid, Volume
from bids_sodium.image.bias import receive_bias
from bids_sodium.image.calibration import CalibrationParams, fit_scale
from bids_sodium.image.reference import measure_reference, reference_scale
from bids_sodium.image.relaxation import relaxation_effect, relaxation_factor
from bids_sodium.image.scanners import scanner_factors
from bids_sodium.image.transmit import phase_sensitive, relative_transmit, smooth_transmit, transmit_factor

GRID = Grid.centred((4, 4, 4), 8.0)
fractions = st.floats(0.6, 1.4)


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 2), min_size=3, max_size=6), st.floats(0.1, 10))
def test_robust_scale_turns_with_the_unit_and_is_the_plain_one_for_vials_on_a_line(
    wrong: list[float], unit: float
) -> None:
    mmol = np.linspace(20, 140, len(wrong))
    params = CalibrationParams(vial_mmol_l=tuple(mmol), weights="huber", reject_z=1e9)
    signal, se = 5 * mmol * np.array(wrong), np.full(mmol.size, 3.0)
    if signal[-1] > signal[0]:
        one, other = fit_scale(signal, se, params), fit_scale(unit * signal, unit * se, params)
        assert other.slope * unit == pytest.approx(one.slope, rel=1e-6)
        assert other.slope_se * unit == pytest.approx(one.slope_se, rel=1e-6)
    exact = fit_scale(5 * mmol, se, params)
    assert exact.slope == pytest.approx(0.2, rel=1e-9)
    assert exact.widened == 1


@settings(deadline=None)
@given(st.floats(0.0, 0.4))
def test_vials_that_disagree_never_narrow_the_error(off: float) -> None:
    agree = fit_scale([200.0, 400.0], [2.0, 2.0])
    apart = fit_scale([200.0 * (1 + off), 400.0], [2.0, 2.0])
    assert apart.widened >= 1
    assert apart.slope_se / apart.slope >= 0.7 * agree.slope_se / agree.slope
    if off > 0.1:
        # the error covers what the second vial would have said
        assert abs(apart.slope - 0.2) < 2 * apart.slope_se


@settings(deadline=None)
@given(st.floats(0.52, 1.48), st.floats(0, 2 * np.pi), st.floats(0.1, 10))
def test_the_phase_finds_the_field_whatever_phase_and_size_the_signal_has(
    field: float, phase: float, size: float
) -> None:
    x = np.deg2rad(90.0 * field)
    pair = [size * np.exp(1j * phase) * (np.sin(x) * np.cos(2 * x) + sign * 1j * np.sin(2 * x)) for sign in (1, -1)]
    found = phase_sensitive(*(Volume(np.full(GRID.shape, value), GRID) for value in pair))
    assert found == pytest.approx(np.full(GRID.shape, field), abs=2e-3)


def _bloch(field: float, off_rad: float, sign: float) -> complex:
    """Small left-handed steps through 2a about x and a about -y; off-resonance turns all the while."""
    state, steps = np.array([0.0, 0.0, 1.0]), 1000
    for axis, times in ((np.array([sign, 0, 0]), 2), (np.array([0, -1.0, 0]), 1)):
        small = (axis * times * field * np.pi / 2 + np.array([0, 0, times * off_rad])) / steps
        angle = np.linalg.norm(small)
        u = small / angle
        for _ in range(steps):
            state = state * np.cos(angle) - np.cross(u, state) * np.sin(angle) + u * (u @ state) * (1 - np.cos(angle))
    return complex(state[0], state[1])


@settings(max_examples=4, deadline=None)
@given(st.floats(0.7, 1.3), st.floats(-0.5, 0.5))
def test_off_resonance_is_undone(field: float, off_rad: float) -> None:
    pair = [Volume(np.full(GRID.shape, _bloch(field, off_rad, sign)), GRID) for sign in (1.0, -1.0)]
    found = phase_sensitive(*pair, offset_hz=np.full(GRID.shape, off_rad / (2 * np.pi) * 1e3), pulse_ms=1.0)
    assert found == pytest.approx(np.full(GRID.shape, field), abs=5e-3)


@settings(deadline=None)
@given(fractions, st.floats(20, 500), st.floats(10, 60))
def test_the_transmit_factor_is_the_flip_angle_in_the_signal_equation(field: float, tr_ms: float, t1_ms: float) -> None:
    tissue = RELAXATION["GM"]
    tissue = type(tissue)(t1_ms, tissue.decay, "")
    factor = float(transmit_factor(np.array(field), t1_ms=t1_ms, tr_ms=tr_ms, flip_deg=80.0))
    nominal, reached = (tissue.signal_fraction(te_ms=0.2, tr_ms=tr_ms, flip_deg=a) for a in (80.0, 80.0 * field))
    assert factor == pytest.approx(nominal / reached)


@settings(deadline=None)
@given(fractions)
def test_a_map_means_the_same_in_every_unit_and_smoothing_keeps_a_constant(field: float) -> None:
    def of(value: float) -> Volume:
        return Volume(np.full(GRID.shape, value), GRID)

    ratio = relative_transmit(of(field))
    assert relative_transmit(of(100 * field), unit="percent") == pytest.approx(ratio)
    assert relative_transmit(of(90 * field), unit="degree", flip_deg=90.0) == pytest.approx(ratio)
    holes = ratio.copy()
    holes[::2] = np.nan
    assert smooth_transmit(holes, GRID) == pytest.approx(np.full(GRID.shape, field))


@settings(deadline=None)
@given(st.sampled_from(sorted(RELAXATION)), st.sampled_from(sorted(RELAXATION)), st.floats(20, 400), st.floats(20, 90))
def test_the_effect_of_relaxation_is_the_factor_with_an_error(one: str, other: str, tr_ms: float, flip: float) -> None:
    sequence = {"te_ms": 0.3, "tr_ms": tr_ms, "flip_deg": flip}
    found = relaxation_effect(RELAXATION[one], RELAXATION[other], **sequence)
    assert found.factor == relaxation_factor(RELAXATION[one], RELAXATION[other], **sequence)
    assert found.se > 0
    assert (found.note != "") == (min(found.recovered_vial, found.recovered_tissue) < 0.9)
    double = relaxation_effect(RELAXATION[one], RELAXATION[other], **sequence, t1_percent=20.0, t2_percent=20.0)
    assert double.se > 1.5 * found.se


@settings(deadline=None)
@given(st.lists(st.floats(0.8, 1.25), min_size=2, max_size=5), st.floats(20, 100))
def test_scanner_factors_undo_what_scanners_do(gains: list[float], truth: float) -> None:
    names = [f"s{i}" for i in range(len(gains))]
    rows = [
        {"scanner": name, "phantom": p, "measured_mmol_l": gain * c, "measured_se": 0.01 * c, "true_mmol_l": c}
        for name, gain in zip(names, gains, strict=True)
        for p, c in (("a", truth), ("b", 2 * truth))
    ]
    known = scanner_factors(rows, where="x")
    assert [known[name].factor * gain for name, gain in zip(names, gains, strict=True)] == pytest.approx(
        [1] * len(gains)
    )
    free = scanner_factors([{k: v for k, v in row.items() if k != "true_mmol_l"} for row in rows], where="x")
    products = [free[name].factor * gain for name, gain in zip(names, gains, strict=True)]
    assert products == pytest.approx([products[0]] * len(gains))
    assert np.prod([free[name].factor for name in names]) == pytest.approx(1)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.1, 10))
def test_an_internal_reference_turns_with_the_unit(unit: float) -> None:
    grid = Grid.centred((20, 20, 20), 4.0)
    r = np.linalg.norm(np.moveaxis(np.indices(grid.shape), 0, -1) - 10, axis=-1)
    share = np.clip(1.5 - r / 7, 0, 1)
    data = 700 * share + 200 * (1 - share) + np.random.default_rng(0).normal(0, 5, grid.shape)
    one = measure_reference(Volume(data, grid), share, sigma=5.0, place_error_mm=0.5)
    other = measure_reference(Volume(unit * data, grid), share, sigma=unit * 5.0, place_error_mm=0.5)
    assert other.signal == pytest.approx(unit * one.signal, rel=1e-6)
    assert other.se == pytest.approx(unit * one.se, rel=1e-6)
    assert reference_scale(other).concentration(unit * 100.0) == pytest.approx(
        reference_scale(one).concentration(100.0)
    )


@settings(max_examples=6, deadline=None)
@given(st.floats(0.01, 100), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_a_bias_does_not_hang_on_the_unit_and_has_mean_one(unit: float, slope: float, bend: float) -> None:
    grid = Grid.centred((22, 24, 22), 8.0)
    x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1).astype(float)), -1, 0)
    head = (x / 75) ** 2 + (y / 85) ** 2 + (z / 75) ** 2 < 1
    profile = np.exp(slope * x / 75 + bend * (y / 85) ** 2)
    image = np.where(head, 40.0 * profile, 0.0)
    one, other = receive_bias(Volume(image, grid), head), receive_bias(Volume(unit * image, grid), head)
    assert np.allclose(one.field, other.field, rtol=1e-6)
    assert np.exp(np.log(one.field[head]).mean()) == pytest.approx(1)
    assert np.allclose(one.field[head] / profile[head] * np.exp(np.log(profile[head]).mean()), 1, atol=0.02)
    assert (one.se > 0).all()
    # outside the head less is known than inside
    assert one.se[~head].mean() >= one.se[head].mean()
