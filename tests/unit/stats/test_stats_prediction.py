"""Prediction of conversion: logistic models recover truth, areas are those of pairs, stated errors are those seen."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats.comparisons import bland_altman, intraclass
from bids_sodium.stats.prediction import (
    auc_difference,
    calibration,
    clustered_auc,
    left_out_predictions,
    mixed_logistic,
    penalised_logistic,
)

RNG = np.random.default_rng(2)
WHO = np.repeat([f"s{i:02d}" for i in range(30)], 40)
X = RNG.normal(size=(1200, 2)) * [20.0, 15.0] + [30.0, -30.0]
UP = np.repeat(RNG.normal(0, 0.8, 30), 40)
LINEAR = UP + 0.05 * (X[:, 0] - 30) - 0.04 * (X[:, 1] + 30)
Y = (RNG.random(1200) < 1 / (1 + np.exp(-LINEAR))).astype(float)


def test_a_wide_prior_gives_the_maximum_likelihood() -> None:
    sm = pytest.importorskip("statsmodels.api")
    fit = penalised_logistic(Y, X, prior_sd=1e4)
    theirs = sm.Logit(Y, sm.add_constant(X)).fit(disp=0)
    assert [fit.intercept, *fit.slopes] == pytest.approx(list(theirs.params), rel=1e-5)
    assert fit.loglik == pytest.approx(theirs.llf, rel=1e-8)
    np.testing.assert_allclose(fit.predict(X), theirs.predict(sm.add_constant(X)), rtol=1e-5)


def test_the_prior_keeps_separated_data_finite() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    fit = penalised_logistic([0, 0, 0, 1, 1, 1], x)
    assert fit.converged
    assert 0 < fit.slopes[0] * x.std() < 10


def test_units_of_weight_two_are_two_units() -> None:
    weight = np.where(np.arange(1200) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(1200), weight.astype(int))
    a = penalised_logistic(Y, X, weight=weight, prior_sd=1e4)
    b = penalised_logistic(Y[twice], X[twice], prior_sd=1e4)
    assert [a.intercept, *a.slopes] == pytest.approx([b.intercept, *b.slopes], rel=1e-6)
    p = a.predict(X)
    one, two = clustered_auc(Y, p, WHO, weight=weight), clustered_auc(Y[twice], p[twice], WHO[twice])
    assert (one.auc, one.se) == pytest.approx((two.auc, two.se), rel=1e-9)


def test_mixed_logistic_recovers_truth() -> None:
    fit = mixed_logistic(Y, X, WHO, names=["na", "adc"])
    assert fit.converged
    truth = np.array([0.05, -0.04]) * fit.spread
    assert (np.abs(fit.estimate - truth) < 3.5 * fit.se).all()
    assert fit.sd_subject == pytest.approx(0.8, rel=0.4)
    assert (fit.p < 1e-4).all()


def test_mixed_logistic_equals_brute_force() -> None:
    """One predictor, three subjects: the marginal likelihood by a fine sum over the intercept."""
    from scipy.stats import norm

    from bids_sodium.stats._logistic import _Intercepts, _units

    x, who = np.linspace(-1, 1, 9), np.repeat(list("abc"), 3)
    y = np.array([0, 1, 0, 0, 1, 1, 1, 0, 1.0])
    units = _units(y, x, None, who)
    v = np.array([0.2, 0.7, np.log(1.3)])
    u = np.linspace(-9, 9, 4001)
    p = 1 / (1 + np.exp(-(0.2 + 0.7 * units.Z[:, :1] + u)))
    each = np.where(y[:, None] == 1, p, 1 - p)
    expected = [
        np.log((each[3 * i : 3 * i + 3].prod(axis=0) * norm.pdf(u, 0, 1.3)).sum() * (u[1] - u[0])) for i in range(3)
    ]
    np.testing.assert_allclose(_Intercepts(units, 15, 10.0).per_subject(v), expected, atol=1e-6)


def test_five_nodes_are_enough_for_many_units() -> None:
    few, many = (mixed_logistic(Y, X, WHO, names=["na", "adc"], nodes=nodes) for nodes in (5, 15))
    np.testing.assert_allclose(few.estimate, many.estimate, atol=1e-4 * float(many.se.min()))
    np.testing.assert_allclose(few.se, many.se, rtol=1e-5)
    assert few.sd_subject == pytest.approx(many.sd_subject, rel=1e-4)


def test_left_out_subjects_do_not_take_part() -> None:
    changed = Y.copy()
    changed[WHO == "s07"] = 1.0 - changed[WHO == "s07"]
    a, b = (left_out_predictions(y, X, WHO) for y in (Y, changed))
    np.testing.assert_allclose(a[WHO == "s07"], b[WHO == "s07"])
    assert not np.allclose(a[WHO == "s08"], b[WHO == "s08"])


def test_area_is_the_share_of_pairs_in_order() -> None:
    score = RNG.integers(0, 6, 60).astype(float)
    y = RNG.integers(0, 2, 60).astype(float)
    up, down = score[y == 1], score[y == 0]
    pairs = (up[:, None] > down).mean() + 0.5 * (up[:, None] == down).mean()
    who = np.repeat(np.arange(12), 5)
    assert clustered_auc(y, score, who).auc == pytest.approx(pairs)
    assert clustered_auc(y, -score, who).auc == pytest.approx(1 - pairs)
    assert clustered_auc(y, np.exp(score), who).auc == pytest.approx(pairs)


def test_stated_error_of_an_area_is_the_error_seen() -> None:
    """Units of a subject are alike: over cohorts the areas scatter as the mean standard error says."""
    rng = np.random.default_rng(5)
    who = np.repeat(np.arange(25), 20)
    areas, errors = [], []
    for _ in range(300):
        y = (rng.random(500) < np.repeat(rng.uniform(0.2, 0.8, 25), 20)).astype(float)
        score = y + np.repeat(rng.normal(0, 1.0, 25), 20) + rng.normal(0, 1, 500)
        found = clustered_auc(y, score, who)
        areas.append(found.auc)
        errors.append(found.se)
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.12)


def test_the_same_prediction_makes_no_difference() -> None:
    p = left_out_predictions(Y, X, WHO)
    area = clustered_auc(Y, p, WHO)
    assert auc_difference(area, area).p == 1.0
    worse = clustered_auc(Y, left_out_predictions(Y, X[:, :1], WHO), WHO)
    gap = auc_difference(area, worse)
    assert gap.estimate == pytest.approx(area.auc - worse.auc)
    assert gap.estimate > 0
    assert gap.p < 0.05
    with pytest.raises(DataError, match="not the same"):
        auc_difference(area, clustered_auc(Y[40:], p[40:], WHO[40:]))


def test_probabilities_of_the_truth_are_calibrated() -> None:
    p = 1 / (1 + np.exp(-LINEAR))
    fit = calibration(Y, p, WHO)
    assert abs(fit.slope - 1) < 3.5 * fit.slope_se
    assert abs(fit.intercept) < 3.5 * fit.intercept_se
    assert fit.brier < fit.brier_of_share
    extreme = calibration(Y, 1 / (1 + np.exp(-3 * LINEAR)), WHO)
    assert extreme.slope == pytest.approx(fit.slope / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("y", "match"),
    [([1.0] * 6, "the outcome 1"), ([0, 1, 0, 1, 0, 2.0], "from 0 to 2"), ([0, 1, np.nan, 1, 0, 1], "missing")],
)
def test_what_cannot_be_told_apart_is_said(y: list[float], match: str) -> None:
    with pytest.raises((DataError, EstimationError), match=match):
        penalised_logistic(y, np.arange(6.0))


def test_two_subjects_are_too_few() -> None:
    with pytest.raises(EstimationError, match="at least 3"):
        left_out_predictions(Y[:80], X[:80], WHO[:80])
    with pytest.raises(EstimationError, match="at least 3"):
        mixed_logistic(Y[:80], X[:80], WHO[:80], names=["a", "b"])


def test_intraclass_correlation_is_that_of_its_variances() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(50, 10, 3000)
    table = true[:, None] + [0.0, 3.0] + rng.normal(0, 5, (3000, 2))
    found = intraclass(table)
    assert found.icc == pytest.approx(100 / (100 + 25 + 4.5), abs=0.02)
    assert found.consistency == pytest.approx(100 / 125, abs=0.02)
    assert found.ci_low < found.icc < found.ci_high
    assert intraclass(np.vstack([table, [np.nan, 1.0]])).n_missing == 1
    same = intraclass(np.column_stack([true[:9], true[:9]]))
    assert same.icc == pytest.approx(1.0, abs=1e-9)


def test_limits_of_agreement_hold_what_they_say() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(40, 10, 4000)
    b = a + rng.normal(2, 4, 4000)
    found = bland_altman(a, b)
    assert np.mean((b - a > found.limit_low) & (b - a < found.limit_high)) == pytest.approx(0.95, abs=0.01)
    assert found.bias_ci_low < 2 < found.bias_ci_high
    with pytest.raises(EstimationError, match="limits of agreement"):
        bland_altman([1.0, 2.0], [1.0, 2.0])
