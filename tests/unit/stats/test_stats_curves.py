"""Curves: what a fit can say beyond its parameters."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats.curves import (
    compare_curves,
    fit_curve,
    fit_random_asymptote,
    fit_sigmoid,
    fit_two_random,
    local_linear,
)

HOURS = np.array([4.0, 6.0, 9.0, 12.0, 16.0, 20.0, 24.0, 30.0, 38.0, 46.0, 55.0, 65.0])
RIPPLE = np.array([1.0, -1.5, 0.8, 1.2, -0.7, -1.1, 1.4, -0.2, 0.6, -1.0, 0.5, -0.4])
PERCENT = 75 / (1 + (18 / HOURS) ** 2.4) + RIPPLE


def test_value_of_one_time_is_a_number_and_of_several_an_array() -> None:
    fit = fit_sigmoid(HOURS, PERCENT)
    one, many = fit.value_at(24.0), fit.value_at([24.0, 48.0])
    assert isinstance(one.value, float)
    assert isinstance(many.value, np.ndarray)
    assert one.value == many.value[0]
    assert one.ci_low < one.value < one.ci_high
    assert fit.value_at(0.0).value == 0.0
    assert fit.value_at(0.0).se == 0.0
    wide = fit.value_at(24.0, confidence=0.99)
    assert wide.ci_high > one.ci_high


def test_half_of_the_asymptote_is_reached_at_t50() -> None:
    fit = fit_sigmoid(HOURS, PERCENT)
    assert fit.value_at(fit.t50_h).value == pytest.approx(fit.alpha / 2)
    assert fit.rmse_n < fit.rmse_df
    assert fit.profile["alpha"].low < fit.alpha < fit.profile["alpha"].high
    assert fit.profile["t50_h"].low < fit.t50_h < fit.profile["t50_h"].high
    assert fit.profile["alpha"].text.startswith("[7")


def test_profile_of_a_value_holds_the_value() -> None:
    fit = fit_sigmoid(HOURS, PERCENT)
    interval = fit.profile_value(70.0)
    assert interval.low < fit.value_at(70.0).value < interval.high


def test_unbounded_asymptote_is_said_in_words() -> None:
    few = HOURS[:8]
    fit = fit_sigmoid(few, 3 * few**0.9 * (1 - 0.004 * few) + 6 * RIPPLE[:8])
    assert not fit.asymptote_identifiable
    assert fit.profile["alpha"].unbounded_high
    assert "unbounded" in fit.profile["alpha"].text


def test_profile_may_be_left_out() -> None:
    assert fit_sigmoid(HOURS, PERCENT, profile=False).profile == {}


def test_profile_and_cluster_need_what_they_need() -> None:
    fit = fit_sigmoid(HOURS, PERCENT)
    assert np.isnan(fit.alpha_se_cluster)
    with pytest.raises(EstimationError, match="needs groups"):
        fit.value_at(24.0, cluster=True)
    with pytest.raises(DataError, match="before onset"):
        fit.value_at(-1.0)
    with pytest.raises(EstimationError, match="needs groups"):
        fit.profile_value(70.0, cluster=True)


@pytest.mark.parametrize(
    ("percent", "limit"), [(2 * HOURS + 0.1 * RIPPLE, "power"), (50.0 - 0.05 * HOURS + 0.1 * RIPPLE, "constant")]
)
def test_a_limit_still_has_profiles_of_its_values(percent: np.ndarray, limit: str) -> None:
    fit = fit_sigmoid(HOURS, percent)
    assert fit.limit == limit
    interval = fit.profile_value(48.0)
    assert interval.low <= fit.value_at(48.0).value <= interval.high
    assert interval.high - interval.low < 4.0


def test_groups_widen_the_profile_and_never_narrow_it() -> None:
    noisy = PERCENT + 8 * RIPPLE
    fit = fit_sigmoid(HOURS, noisy, groups=np.repeat(np.arange(6), 2))
    plain, wide = fit.profile_value(48.0), fit.profile_value(48.0, cluster=True)
    assert wide.low < plain.low < plain.high < wide.high
    for value in (wide.low + 0.01, wide.high - 0.01):
        assert fit.allows(48.0, value, cluster=True)
    for value in (wide.low - 0.01, wide.high + 0.01):
        assert not fit.allows(48.0, value, cluster=True)


RANDOM = np.random.default_rng(11)
MANY_T = RANDOM.uniform(4, 70, (40, 3))
MANY_TOP, MANY_LATE = RANDOM.normal(70, 15, 40), np.exp(np.log(20) + RANDOM.normal(0, 0.5, 40))
MANY_Y = MANY_TOP[:, None] / (1 + (MANY_LATE[:, None] / MANY_T) ** 2) + RANDOM.normal(0, 4, (40, 3))
MANY_WHO = np.repeat([f"s{i:02d}" for i in range(40)], 3)


def test_two_random_effects_recover_what_subjects_were_made_from() -> None:
    fit = fit_two_random(MANY_T.ravel(), MANY_Y.ravel(), MANY_WHO)
    assert fit.converged
    assert not fit.singular
    assert abs(fit.asymptote - 70) < 3 * fit.asymptote_se
    assert abs(fit.log_t50 - np.log(20)) < 3 * fit.log_t50_se
    assert fit.sd_second == pytest.approx(0.5, rel=0.35)
    assert fit.sd_asymptote == pytest.approx(15, rel=0.35)
    assert fit.p_second < 1e-6
    assert np.corrcoef(fit.subject_asymptote, MANY_TOP)[0, 1] > 0.7
    assert np.corrcoef(fit.subject_second, np.log(MANY_LATE))[0, 1] > 0.8
    value = fit.value_at([24.0, 70.0])
    assert (np.asarray(value.ci_low) < np.asarray(value.value)).all()
    own = fit.subject_curve("s03", [24.0, 70.0])
    assert (np.asarray(own.se) > 0).all()
    with pytest.raises(DataError, match="no subject"):
        fit.subject_curve("s99", 24.0)


@pytest.mark.parametrize("second", ["delay", "rate"])
def test_quadrature_equals_the_integral_over_both_effects(second: str) -> None:
    """One subject's likelihood, by brute force over asymptote and second effect."""
    from scipy.stats import norm

    from bids_sodium.stats._two_random import _Likelihood

    t, y = np.array([8.0, 30.0, 55.0]), np.array([12.0, 40.0, 66.0])
    theta = np.array([70.0, np.log(18.0), np.log(1.8), np.log(5.0), np.log(14.0), np.log(0.4)])
    b, c = np.linspace(-90, 90, 1201), np.linspace(-3.2, 3.2, 1201)
    late = theta[1] + (c if second == "delay" else 0 * c)
    steep = np.exp(theta[2] + (c if second == "rate" else 0 * c))
    h = 1 / (1 + np.exp(-steep * (np.log(t)[:, None] - late)))
    density = norm.pdf(b / 14.0)[:, None] / 14.0 * norm.pdf(c / 0.4) / 0.4
    for i in range(3):
        density = density * norm.pdf(y[i], (70.0 + b)[:, None] * h[i], 5.0)
    exact = float(np.log(density.sum() * (b[1] - b[0]) * (c[1] - c[0])))
    wide = _Likelihood(np.log(t), y, np.zeros(3, dtype=np.intp), second, 25)  # type: ignore[arg-type]
    start = wide.start(70.0, theta[1], 1.8, 5.0, 14.0, theta[5])
    assert -wide.negative(start) == pytest.approx(exact, abs=1e-5)
    laplace = _Likelihood(np.log(t), y, np.zeros(3, dtype=np.intp), second, 1)  # type: ignore[arg-type]
    assert -laplace.negative(start) == pytest.approx(exact, abs=0.1)


def test_without_variance_the_second_effect_is_the_random_asymptote() -> None:
    same = MANY_TOP[:, None] / (1 + (20 / MANY_T) ** 2) + 0.05 * MANY_Y
    one = fit_random_asymptote(MANY_T.ravel(), same.ravel(), MANY_WHO)
    two = fit_two_random(MANY_T.ravel(), same.ravel(), MANY_WHO, second="rate")
    assert two.loglik >= one.loglik - 1e-6
    assert two.loglik_asymptote == one.loglik
    with pytest.raises(DataError, match="second effect"):
        fit_two_random(MANY_T.ravel(), same.ravel(), MANY_WHO, second="both")  # type: ignore[arg-type]


def test_a_second_effect_in_place_of_the_asymptotes_is_found() -> None:
    from bids_sodium.simulate.cohort import stroke_cohort

    table = stroke_cohort(np.random.default_rng(7)).table
    rows = table[(table["contrast"] == "na") & (table["roi"] == "cytotoxic") & (table["volume_ml"] >= 1.0)]
    fit = fit_two_random(rows["onset_to_scan_h"], rows["percent_change"], rows["participant_id"], second="delay")
    # a single start beside the random asymptote ends there, 2.4 lower
    assert fit.loglik > fit.loglik_asymptote + 2.0
    assert not fit.singular


def test_missing_rows_are_counted() -> None:
    fit = fit_sigmoid([*HOURS, np.nan, 30.0], [*PERCENT, 10.0, np.nan], groups=[*range(12), "a", "b"])
    assert (fit.n, fit.n_missing, fit.n_groups) == (12, 2, 12)
    assert fit.alpha == pytest.approx(fit_sigmoid(HOURS, PERCENT).alpha)


def test_groups_may_be_missing_too() -> None:
    groups = ["a", "a", "b", "b", "c", "c", "d", "d", "e", "e", "n/a", None]
    fit = fit_sigmoid(HOURS, PERCENT, groups=groups)
    assert (fit.n, fit.n_missing, fit.n_groups) == (10, 2, 5)


def test_comparison_is_a_table() -> None:
    result = compare_curves(HOURS, PERCENT)
    table = result.table()
    assert len(table) == 7
    assert table.aicc.is_monotonic_increasing
    assert table.name.iloc[0] == result.best.name == "sigmoid"
    with pytest.raises(KeyError):
        result["spline"]


def test_a_curve_through_all_values_wins_with_the_fewest_parameters() -> None:
    result = compare_curves(HOURS, 2 * HOURS)
    assert result.best.name in {"linear", "power"}
    assert result["sigmoid"].aicc > result.best.aicc
    exact = compare_curves(HOURS, 91 / (1 + (25.5 / HOURS) ** 0.71))
    assert exact.best.name == "sigmoid"
    assert np.isfinite(exact.best.aicc)


def test_fit_curve_says_when_parameters_are_not_determined() -> None:
    x = np.linspace(0, 1, 10)
    fit = fit_curve(lambda b: (b[0] + b[1]) * x, 2 * x + RIPPLE[:10], [1.0, 0.5])
    assert not fit.converged
    assert np.isnan(fit.se).all()
    with pytest.raises(EstimationError, match="not finite at the start"):
        fit_curve(lambda b: b[0] / (x * 0), x, [1.0])
    with pytest.raises(EstimationError, match="at least 3 complete rows"):
        fit_curve(lambda b: b[0] * x[:2] + b[1], x[:2], [1.0, 1.0])


def test_given_jacobian_gives_the_same_fit() -> None:
    x = np.linspace(0.1, 3, 12)
    y = 4 * np.exp(-0.7 * x) + 0.05 * RIPPLE

    def jacobian(b: np.ndarray) -> np.ndarray:
        return np.column_stack([np.exp(-b[1] * x), -b[0] * x * np.exp(-b[1] * x)])

    plain = fit_curve(lambda b: b[0] * np.exp(-b[1] * x), y, [1.0, 1.0])
    exact = fit_curve(lambda b: b[0] * np.exp(-b[1] * x), y, [1.0, 1.0], jacobian=jacobian)
    np.testing.assert_allclose(plain.estimate, exact.estimate, rtol=1e-8)
    np.testing.assert_allclose(plain.se, exact.se, rtol=1e-7)


def test_random_asymptote_draws_every_subject_towards_the_mean() -> None:
    rng = np.random.default_rng(0)
    subject = np.repeat([f"sub-{i:02}" for i in range(20)], 3)
    t = rng.uniform(4, 70, 60)
    top = np.repeat(60 + 15 * rng.normal(size=20), 3)
    y = top / (1 + (20 / t) ** 2) + 4 * rng.normal(size=60)
    fit = fit_random_asymptote(t, y, subject)
    assert not fit.singular
    assert fit.p_between < 0.001
    assert abs(fit.asymptote - 60) < 3 * fit.asymptote_se
    assert abs(fit.log_t50 - np.log(20)) < 3 * fit.log_t50_se
    assert np.corrcoef(fit.subject_asymptote, top[::3])[0, 1] > 0.9
    assert fit.subject_asymptote.std() < fit.sd_asymptote * 1.2
    curve = fit.subject_curve("sub-03", [1000.0])
    assert curve[0] == pytest.approx(fit.subject_asymptote[3], rel=0.01)
    with pytest.raises(DataError, match="no subject"):
        fit.subject_curve("sub-99", [1.0])
    at = fit.value_at(30.0)
    assert at.ci_low < at.value < at.ci_high


def test_local_linear_follows_a_bend_and_bands_hold_it() -> None:
    rng = np.random.default_rng(1)
    x = np.sort(rng.uniform(0, 10, 120))
    y = np.sin(x / 1.5) + 0.2 * rng.normal(size=120)
    grid = np.linspace(1, 9, 9)
    course = local_linear(x, y, grid, rng=rng, n_resamples=300)
    assert np.abs(course.value - np.sin(grid / 1.5)).max() < 0.25
    assert np.mean((course.ci_low < np.sin(grid / 1.5)) & (np.sin(grid / 1.5) < course.ci_high)) >= 0.6
    assert course.supported.all()
    assert not course.bandwidth_at_edge
    assert 0.1 < course.cv_error < 0.35


def test_few_subjects_are_not_supported() -> None:
    x = np.array([1.0, 1.1, 1.2, 1.3, 1.4, 9.0])
    course = local_linear(x, x**2, [1.2, 5.0], bandwidth=0.5)
    assert course.supported.tolist() == [True, False]
    assert course.n_subjects.tolist() == [5, 0]
    with pytest.raises(DataError, match="bandwidth"):
        local_linear(x, x, [1.2], bandwidth=0.0)
