"""Laws of the statistics: symmetry, invariance, agreement of different routes, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats.comparisons import (
    adjust,
    agreement,
    kruskal_wallis,
    mixed,
    one_way,
    paired,
    rank_sum,
    repeated_anova,
    rmcorr,
    signed_rank,
    spearman,
)
from bids_sodium.stats.curves import compare_curves, fit_random_asymptote, fit_sigmoid, local_linear
from bids_sodium.stats.harmonization import combat, fit_moments, meta_analysis, moments, site_effect
from bids_sodium.stats.regression import backward, bca, group_difference, group_means, ols, proportional_odds

few = st.lists(st.integers(-5, 5), min_size=4, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=5), st.lists(st.integers(0, 4), min_size=2, max_size=5))
def test_rank_sum_counts_every_allocation(x: list[int], y: list[int]) -> None:
    pooled = np.array([*x, *y], dtype=float)
    if np.ptp(pooled) == 0:
        return

    def u(inside: Any) -> float:
        first, second = pooled[list(inside)], np.delete(pooled, list(inside))
        return float(np.sum(np.sign(np.subtract.outer(first, second)) + 1) / 2)

    away = abs(u(range(len(x))) - len(x) * len(y) / 2)
    every = [abs(u(c) - len(x) * len(y) / 2) >= away - 1e-9 for c in combinations(range(pooled.size), len(x))]
    result = rank_sum(x, y)
    assert result.p_exact == pytest.approx(np.mean(every), abs=1e-12)
    swapped = rank_sum(y, x)
    assert swapped.p_exact == pytest.approx(result.p_exact, abs=1e-12)
    assert swapped.statistic + result.statistic == len(x) * len(y)
    assert swapped.estimate == -result.estimate


@settings(max_examples=60, deadline=None)
@given(few)
def test_signed_rank_counts_every_sign(values: list[int]) -> None:
    from scipy.stats import rankdata

    d = np.array(values, dtype=float)
    if not d.any():
        return
    ranks = rankdata(np.abs(d[d != 0]))
    mean = ranks.sum() / 2
    seen = abs(ranks[d[d != 0] > 0].sum() - mean)
    signs = np.array(list(product([0, 1], repeat=ranks.size)))
    result = signed_rank(d)
    assert result.p_exact == pytest.approx(np.mean(np.abs(signs @ ranks - mean) >= seen - 1e-9), abs=1e-12)
    assert signed_rank(-d).p_exact == pytest.approx(result.p_exact, abs=1e-12)
    assert result.n_zero == int((d == 0).sum())
    walsh = [(a + b) / 2 for i, a in enumerate(d) for b in d[i:]]
    assert result.estimate == pytest.approx(np.median(walsh))


def test_signed_rank_knows_equal_differences_of_unequal_rounding() -> None:
    clean = signed_rank([1, 1, -1, 2, 3])
    rounded = signed_rank([0.3 - 0.2, 0.1, -0.1, 0.4 - 0.2, 0.3])
    assert rounded.statistic == clean.statistic
    assert rounded.p_exact == clean.p_exact


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_adjusted_p_values_keep_order_and_size(p: list[float]) -> None:
    holm, bh, bonferroni = (adjust(p, method) for method in ("holm", "bh", "bonferroni"))
    order = np.argsort(p, kind="stable")
    assert (np.diff(holm[order]) >= 0).all()
    assert (np.diff(bh[order]) >= 0).all()
    assert (bh >= np.array(p) - 1e-15).all()
    assert (holm >= bh - 1e-15).all()
    assert (bonferroni >= holm - 1e-15).all()
    with_gap = adjust([*p, np.nan])
    assert np.isnan(with_gap[-1])
    np.testing.assert_array_equal(with_gap[:-1], holm)


@settings(max_examples=25, deadline=None)
@given(few, few)
def test_rank_correlation_is_symmetric_and_monotone_invariant(x: list[int], y: list[int]) -> None:
    n = min(len(x), len(y))
    a, b = np.array(x[:n], dtype=float), np.array(y[:n], dtype=float)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return
    result, mirrored, bent = spearman(a, b), spearman(b, -a), spearman(np.exp(a), b**3)
    assert mirrored.rho == pytest.approx(-result.rho)
    assert mirrored.p_exact == pytest.approx(result.p_exact)
    assert bent.rho == pytest.approx(result.rho)
    if abs(result.rho) < 1 - 1e-9:
        assert result.ci_low < result.rho < result.ci_high
    else:
        assert np.isnan(result.ci_low)


def test_rank_tests_hold_their_level() -> None:
    rng = np.random.default_rng(0)
    p = [rank_sum(rng.integers(0, 5, 8), rng.integers(0, 5, 7)).p_exact for _ in range(2000)]
    assert np.mean(np.array(p) <= 0.05) <= 0.06
    shifted = [rank_sum(x, x + 1.5).p_exact for x in rng.normal(size=(200, 12))]
    assert np.mean(np.array(shifted) < 0.05) > 0.8


def test_permuting_subjects_holds_where_pooling_scans_does_not() -> None:
    rng = np.random.default_rng(1)
    subject = np.repeat(np.arange(14), 2)
    pooled, whole = [], []
    for _ in range(400):
        x = rng.normal(size=14)[subject] + 0.3 * rng.normal(size=28)
        y = rng.normal(size=14)[subject] + 0.3 * rng.normal(size=28)
        pooled.append(spearman(x, y).p_asymptotic)
        whole.append(spearman(x, y, groups=subject, rng=rng, n_permutations=200).p)
    assert np.mean(np.array(pooled) < 0.05) > 0.1
    assert np.mean(np.array(whole) < 0.05) < 0.08


def _course(rng: np.random.Generator, noise: float, *, alpha: float = 80.0) -> tuple[Any, Any]:
    t = np.sort(rng.uniform(4, 70, 28))
    return t, alpha / (1 + (20 / t) ** 2) + noise * rng.normal(size=28)


@pytest.mark.parametrize("factor", [0.01, 3.0, -1.0, 1000.0])
def test_sigmoid_scales_with_its_values_and_times(factor: float) -> None:
    t, y = _course(np.random.default_rng(2), 5.0)
    base, scaled = fit_sigmoid(t, y), fit_sigmoid(t, factor * y)
    assert scaled.alpha == pytest.approx(factor * base.alpha, rel=1e-6)
    assert (scaled.delta, scaled.gamma) == pytest.approx((base.delta, base.gamma), rel=1e-6)
    assert scaled.alpha_se == pytest.approx(abs(factor) * base.alpha_se, rel=1e-5)
    ends = (scaled.profile["alpha"].low, scaled.profile["alpha"].high)
    expected = sorted((factor * base.profile["alpha"].low, factor * base.profile["alpha"].high))
    assert ends == pytest.approx(expected, rel=1e-5)
    minutes = fit_sigmoid(60 * t, y)
    assert minutes.t50_h == pytest.approx(60 * base.t50_h, rel=1e-6)
    assert (minutes.alpha, minutes.delta, minutes.rss) == pytest.approx((base.alpha, base.delta, base.rss), rel=1e-6)


def test_sigmoid_intervals_cover() -> None:
    rng = np.random.default_rng(24)
    held, identified = [], []
    for _ in range(250):
        t, y = _course(rng, 6.0)
        fit = fit_sigmoid(t, y, profile=False)
        value = fit.value_at([24.0, 48.0])
        truth = 80 / (1 + (20 / np.array([24.0, 48.0])) ** 2)
        held.append((value.ci_low < truth) & (truth < value.ci_high))
        identified.append(fit.asymptote_identifiable)
    assert 0.90 <= np.mean(held) <= 0.98
    assert np.mean(identified) > 0.9


def test_sigmoid_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(3)
    t, y = _course(rng, 5.0)
    order = rng.permutation(28)
    first, second = fit_sigmoid(t, y), fit_sigmoid(t[order], y[order])
    assert (first.alpha, first.delta, first.rss) == pytest.approx((second.alpha, second.delta, second.rss), rel=1e-7)


def test_every_subject_alone_gives_the_heteroscedastic_error() -> None:
    t, y = _course(np.random.default_rng(4), 5.0)
    fit = fit_sigmoid(t, y, groups=np.arange(28))
    assert fit.n_groups == 28
    assert fit.alpha_se_cluster == pytest.approx(fit.alpha_se, rel=0.6)


def test_rss_of_sigmoid_never_exceeds_its_special_cases() -> None:
    rng = np.random.default_rng(5)
    for noise in (2.0, 15.0, 40.0):
        t, y = _course(rng, noise)
        models = compare_curves(t, y)
        for name in ("constant", "hyperbolic"):
            assert models["sigmoid"].rss <= models[name].rss * (1 + 1e-9)
        assert sum(m.weight for m in models.models) == pytest.approx(1.0)
        assert min(m.delta_aicc for m in models.models) == 0.0


def test_power_law_is_named_as_the_limit() -> None:
    t = np.linspace(4, 70, 20)
    ripple = np.where(np.arange(20) % 2, 0.2, -0.2)
    fit = fit_sigmoid(t, 2 * t**1.3 + ripple, groups=np.repeat(np.arange(10), 2))
    assert fit.limit == "power"
    assert not fit.converged
    assert not fit.asymptote_identifiable
    assert np.isinf(fit.alpha)
    assert fit.delta == pytest.approx(1.3, abs=0.01)
    assert fit.value_at(40.0).value == pytest.approx(2 * 40**1.3, rel=0.01)
    assert fit.value_at(40.0).ci_low < fit.value_at(40.0).value < fit.value_at(40.0).ci_high
    assert fit.profile["alpha"].unbounded_high
    assert fit.profile["alpha"].low > 2 * 70**1.3


def test_step_and_constant_are_named_as_limits() -> None:
    t = np.array([5.0, 8.0, 12.0, 15.0, 30.0, 40.0, 50.0, 60.0])
    jump = fit_sigmoid(t, [0.1, -0.1, 0.1, -0.1, 20.1, 19.9, 20.1, 19.9])
    assert jump.limit == "step"
    assert jump.alpha == pytest.approx(20.0)
    assert list(jump.curve([5.0, 50.0])) == [0.0, pytest.approx(20.0)]
    falling = fit_sigmoid(t, [9.0, 8.5, 8.1, 7.7, 7.2, 6.4, 6.1, 5.0])
    assert falling.limit == "constant"
    assert falling.value_at(20.0).value == pytest.approx(7.25)


def test_random_asymptote_without_scatter_is_the_common_curve() -> None:
    rng = np.random.default_rng(6)
    t = np.sort(rng.uniform(4, 70, 40))
    y = 70 / (1 + (18 / t) ** 2.2) + 4 * rng.normal(size=40)
    subject = rng.permutation(np.repeat(np.arange(20), 2))
    both, common = fit_random_asymptote(t, y, subject), fit_sigmoid(t, y)
    assert both.loglik >= both.loglik_pooled - 1e-9
    assert both.loglik_pooled == pytest.approx(-20 * (np.log(2 * np.pi * common.rss / 40) + 1), abs=1e-5)
    if both.singular:
        assert both.asymptote == pytest.approx(common.alpha, rel=1e-3)
        assert both.p_between == 1.0


def test_local_linear_reproduces_lines_and_shifts() -> None:
    rng = np.random.default_rng(7)
    x = np.sort(rng.uniform(0, 10, 30))
    at = np.linspace(0, 10, 11)
    line = local_linear(x, 3 - 2 * x, at)
    inside = ~np.isnan(line.value)
    np.testing.assert_allclose(line.value[inside], (3 - 2 * at)[inside], atol=1e-9)
    assert not ((at < x.min()) | (at > x.max()))[inside].any()
    y = np.sin(x) + 0.1 * rng.normal(size=30)
    base, moved = local_linear(x, y, at), local_linear(x + 5, y + 1, at + 5)
    np.testing.assert_allclose(moved.value, base.value + 1, atol=1e-9)
    assert moved.bandwidth == pytest.approx(base.bandwidth)


def test_local_linear_at_a_huge_bandwidth_is_the_regression_line() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.uniform(0, 10, 40), rng.normal(size=40)
    line = ols(np.column_stack([np.ones(40), x]), y)
    at = np.array([3.0, 7.0])
    wide = local_linear(x, y, at, bandwidth=1e4)
    np.testing.assert_allclose(wide.value, line.estimate[0] + line.estimate[1] * at, atol=1e-5)


def _grouped(rng: np.random.Generator, n_groups: int = 12, size: int = 4) -> tuple[Any, Any, Any]:
    group = np.repeat(np.arange(n_groups), size)
    X = np.column_stack([np.ones(group.size), rng.normal(size=group.size), np.repeat(rng.normal(size=n_groups), size)])
    y = X @ [10.0, 2.0, -1.0] + rng.normal(size=n_groups)[group] + 0.7 * rng.normal(size=group.size)
    return y, X, group


def _dense(y: Any, X: Any, group: Any, G: float, s2: float) -> tuple[Any, Any]:
    V = s2 * np.eye(y.size) + G * (group[:, None] == group)
    inverse = np.linalg.inv(V)
    covariance = np.linalg.inv(X.T @ inverse @ X)
    return covariance @ X.T @ inverse @ y, covariance


def test_mixed_model_equals_dense_generalised_least_squares() -> None:
    y, X, group = _grouped(np.random.default_rng(9))
    fit = mixed(y, X, group)
    beta, covariance = _dense(y, X, group, float(fit.random_covariance[0, 0]), fit.sigma**2)
    np.testing.assert_allclose(fit.estimate, beta, rtol=1e-8)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-8)
    V = fit.sigma**2 * np.eye(y.size) + fit.random_covariance[0, 0] * (group[:, None] == group)
    r = y - X @ beta
    reml = np.linalg.slogdet(V)[1] + np.linalg.slogdet(X.T @ np.linalg.inv(V) @ X)[1] + r @ np.linalg.inv(V) @ r
    assert fit.loglik == pytest.approx(-(reml + (y.size - 3) * np.log(2 * np.pi)) / 2, rel=1e-10)


def test_kenward_roger_covariance_equals_its_dense_formula() -> None:
    y, X, group = _grouped(np.random.default_rng(10))
    fit = mixed(y, X, group)
    same = (group[:, None] == group).astype(float)
    V = fit.sigma**2 * np.eye(y.size) + fit.random_covariance[0, 0] * same
    inverse = np.linalg.inv(V)
    phi = np.linalg.inv(X.T @ inverse @ X)
    parts = [same, np.eye(y.size)]
    P = [-X.T @ inverse @ D @ inverse @ X for D in parts]
    Q = [[X.T @ inverse @ D @ inverse @ E @ inverse @ X for E in parts] for D in parts]
    information = np.array(
        [
            [
                np.trace(inverse @ parts[i] @ inverse @ parts[j])
                - 2 * np.trace(phi @ Q[i][j])
                + np.trace(phi @ P[i] @ phi @ P[j])
                for j in range(2)
            ]
            for i in range(2)
        ]
    )
    W = 2 * np.linalg.inv(information)
    middle = sum(W[i, j] * (Q[i][j] - P[i] @ phi @ P[j]) for i in range(2) for j in range(2))
    np.testing.assert_allclose(fit.covariance_kenward_roger, phi + 2 * phi @ middle @ phi, rtol=1e-7)


def test_balanced_mixed_model_is_repeated_measures_anova() -> None:
    rng = np.random.default_rng(11)
    n, k = 10, 4
    values = rng.normal(size=(n, 1)) * 2 + rng.normal(size=(n, k)) + np.arange(k)
    subject, level = np.repeat(np.arange(n), k), np.tile(np.arange(k), n)
    X = np.column_stack([np.ones(n * k), *(level == j for j in range(1, k))]).astype(float)
    test = mixed(values.ravel(), X, subject).test(np.eye(k)[1:])
    table = pd.DataFrame({"subject": subject, "level": level, "value": values.ravel()})
    effect = repeated_anova(table, outcome="value", subject="subject", within=["level"])["level"]
    assert test.statistic == pytest.approx(effect.statistic, rel=1e-6)
    assert test.statistic_kenward_roger == pytest.approx(effect.statistic, rel=1e-6)
    assert test.df_satterthwaite == pytest.approx(effect.error_df, rel=1e-4)
    assert test.df_kenward_roger == pytest.approx(effect.error_df, rel=1e-6)
    assert test.p_kenward_roger == pytest.approx(effect.p, rel=1e-4)


def test_balanced_random_slopes_are_the_spread_of_each_subjects_own_line() -> None:
    # with the same times in every subject the REML optimum has a closed form: means of the subjects' own lines
    rng = np.random.default_rng(15)
    n, t = 12, np.arange(8.0)
    lines = np.column_stack([np.ones(t.size), t])
    truth = np.array([250.0, 10.0]) + rng.normal(size=(n, 2)) * [25.0, 6.0]
    y = truth @ lines.T + rng.normal(0, 20.0, size=(n, t.size))
    own = np.linalg.lstsq(lines, y.T, rcond=None)[0]
    X = np.tile(lines, (n, 1))
    fit = mixed(y.ravel(), X, np.repeat(np.arange(n), t.size), random=X)
    np.testing.assert_allclose(fit.estimate, own.mean(axis=1), rtol=1e-10)
    np.testing.assert_allclose(fit.covariance, np.cov(own) / n, rtol=1e-7)
    np.testing.assert_allclose(fit.covariance_kenward_roger, np.cov(own) / n, rtol=1e-7)
    np.testing.assert_allclose(fit.df_kenward_roger, n - 1, rtol=1e-8)
    np.testing.assert_allclose(fit.df_satterthwaite, n - 1, rtol=1e-6)


def test_two_levels_are_a_paired_test_by_every_route() -> None:
    rng = np.random.default_rng(12)
    x = rng.normal(size=(9, 1)) + rng.normal(size=(9, 2)) * 0.5
    t = paired(x[:, 0], x[:, 1])
    table = pd.DataFrame({"s": np.repeat(np.arange(9), 2), "side": [0, 1] * 9, "v": x.ravel()})
    effect = repeated_anova(table, outcome="v", subject="s", within=["side"])["side"]
    assert effect.statistic == pytest.approx(t.statistic**2)
    assert effect.p == effect.p_greenhouse_geisser == pytest.approx(t.p)
    within = np.column_stack([np.ones(18), table.side])
    fit = mixed(table.v, within, table.s)
    assert (fit.estimate[1], fit.se[1]) == pytest.approx((-t.estimate, t.se), rel=1e-6)
    assert fit.df_satterthwaite[1] == pytest.approx(8, rel=1e-4)
    assert fit.p_kenward_roger[1] == pytest.approx(t.p, rel=1e-5)


def test_one_row_test_is_the_coefficient() -> None:
    y, X, group = _grouped(np.random.default_rng(13))
    fit = mixed(y, X, group, names=["one", "x", "z"])
    test = fit.test([0, 1, 0])
    assert test.statistic == pytest.approx((fit.estimate[1] / fit.se[1]) ** 2)
    assert test.p_satterthwaite == pytest.approx(fit.p_satterthwaite[1], rel=1e-9)
    assert test.p_kenward_roger == pytest.approx(fit.p_kenward_roger[1], rel=1e-9)


def test_mixed_inference_follows_a_change_of_units() -> None:
    y, X, group = _grouped(np.random.default_rng(14))
    units = np.array([1.0, 1000.0, 1e-4])
    first, second = mixed(y, X, group), mixed(50 * y, X * units, group)
    np.testing.assert_allclose(second.estimate, 50 * first.estimate / units, rtol=1e-6)
    np.testing.assert_allclose(second.df_satterthwaite, first.df_satterthwaite, rtol=1e-4)
    np.testing.assert_allclose(second.df_kenward_roger, first.df_kenward_roger, rtol=1e-6)
    np.testing.assert_allclose(second.p_kenward_roger, first.p_kenward_roger, rtol=1e-5)


def test_groups_without_effect_make_the_model_ordinary_least_squares() -> None:
    rng = np.random.default_rng(15)
    group = np.repeat(np.arange(8), 4)
    noise = rng.normal(size=32)
    noise -= (np.bincount(group, noise) / 4)[group]
    X = np.column_stack([np.ones(32), rng.normal(size=32)])
    y = X @ [1.0, 2.0] + noise
    fit, plain = mixed(y, X, group), ols(X, y)
    assert fit.singular
    np.testing.assert_allclose(fit.estimate, plain.estimate, rtol=1e-9)
    np.testing.assert_allclose(fit.se, plain.se, rtol=1e-9)
    np.testing.assert_allclose(fit.df_satterthwaite, plain.df, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_regression_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, p = 20, 3
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    y = rng.normal(size=n)
    fit = ols(X, y, names=["one", "a", "b"])
    np.testing.assert_allclose(X.T @ fit.residuals, 0, atol=1e-10)
    assert ((fit.p < 0.05) == ((fit.ci_low > 0) | (fit.ci_high < 0))).all()
    assert fit.test(np.eye(p)[1:]).p == pytest.approx(fit.f_p, rel=1e-8)
    assert fit.test([0, 1, 0]).p == pytest.approx(fit.p[1], rel=1e-8)
    turned = ols(X @ np.array([[1.0, 5, -2], [0, 3, 1], [0, 1, 2]]), y)
    assert turned.r2 == pytest.approx(fit.r2, abs=1e-10)
    parts = [moments(X[rows], y[rows]) for rows in np.split(np.arange(n), [6, 13])]
    pooled = fit_moments(parts)
    np.testing.assert_allclose(pooled.estimate, fit.estimate, rtol=1e-8)
    np.testing.assert_allclose(pooled.se, fit.se, rtol=1e-7)


def test_group_routes_agree() -> None:
    rng = np.random.default_rng(16)
    group = np.repeat(["a", "b"], [15, 20])
    age = rng.normal(40, 10, 35)
    y = (group == "b") * 2.0 + 0.05 * age + rng.normal(size=35)
    two = group_difference(y, group == "b", group == "a", age)
    joint = group_means(y, group, age)
    (pair,) = joint.contrasts
    assert (pair.first, pair.second) == ("b", "a")
    assert (pair.estimate, pair.se, pair.p) == pytest.approx((two.estimate, two.se, two.p))
    assert pair.p == pair.p_holm == pytest.approx(joint.p)
    assert list(joint.mean) == pytest.approx([two.adjusted_mean_second, two.adjusted_mean_first])
    flipped = group_difference(y, group == "a", group == "b", age)
    assert (flipped.estimate, flipped.ci_low) == pytest.approx((-two.estimate, -two.ci_high))
    bare = [y[group == g] for g in "ab"]
    anova = one_way(bare)
    assert anova.statistic == pytest.approx(group_means(y, group).statistic)
    assert anova.statistic == pytest.approx(group_difference(y, group == "b", group == "a").statistic ** 2)


def test_two_groups_of_ranks_agree() -> None:
    rng = np.random.default_rng(17)
    x, y = rng.integers(0, 6, 14), rng.integers(1, 7, 11)
    assert kruskal_wallis([x, y]).p == pytest.approx(rank_sum(x, y).p_asymptotic)


def test_elimination_keeps_only_what_it_may() -> None:
    rng = np.random.default_rng(18)
    table = pd.DataFrame(rng.normal(size=(80, 5)), columns=list("abcde"))
    table["y"] = table.a + 0.8 * table.b + rng.normal(size=80)
    result = backward(table, "y", list("abcd"), "e", p_enter=1.0)
    assert all(result.final[name].p <= 0.08 for name in result.retained)
    assert {test.name for test in result.retests} == set("abcd") - set(result.retained)
    assert "e" in result.final.names
    removed = [step.removed for step in result.path]
    assert removed[-1] is None
    assert all(
        step.p[step.in_model.index(step.removed)] == max(step.p) for step in result.path if step.removed is not None
    )
    table.loc[3, "d"] = np.nan
    assert backward(table, "y", list("abcd"), "e").n == 79


def test_bca_follows_units_and_names_its_resamples() -> None:
    rng = np.random.default_rng(19)
    X = np.column_stack([np.ones(50), rng.normal(size=50)])
    y = X @ [1.0, 0.5] + rng.exponential(size=50)
    indices = rng.integers(0, 50, (500, 50))
    first, second = bca(X, y, indices=indices), bca(X * [1, 1000], -3 * y, indices=indices)
    np.testing.assert_allclose(second.ci_low, -3 * first.ci_high / [1, 1000], rtol=1e-8)
    np.testing.assert_allclose(second.acceleration, -first.acceleration, rtol=1e-8)
    replicates = np.array([np.linalg.lstsq(X[rows], y[rows], rcond=None)[0] for rows in indices])
    np.testing.assert_allclose(first.se, replicates.std(axis=0, ddof=1), rtol=1e-8)
    a = bca(X, y, rng=np.random.default_rng(5), n_resamples=300)
    b = bca(X, y, rng=np.random.default_rng(5), n_resamples=300)
    np.testing.assert_array_equal(a.ci_low, b.ci_low)


def test_proportional_odds_of_two_levels_is_logistic() -> None:
    rng = np.random.default_rng(20)
    x = rng.normal(size=120)
    y = (x + rng.logistic(size=120) > 0).astype(int)
    fit, turned = proportional_odds(x, y), proportional_odds(x, -y)
    import statsmodels.api as sm

    peer = sm.Logit(y, sm.add_constant(x)).fit(disp=False)
    assert fit.estimate[0] == pytest.approx(peer.params[1], rel=1e-6)
    assert fit.se[0] == pytest.approx(peer.bse[1], rel=1e-5)
    assert fit.thresholds[0] == pytest.approx(-peer.params[0], rel=1e-5)
    assert turned.estimate[0] == pytest.approx(-fit.estimate[0], rel=1e-8)


def test_combat_removes_sites_and_keeps_covariates() -> None:
    rng = np.random.default_rng(21)
    n, features = 120, 15
    site, dx = np.repeat(["a", "b", "c"], 40), np.tile([0.0, 1.0], 60)
    true = 40 + 3 * dx[:, None] + rng.normal(size=(n, features))
    Y = true.copy()
    Y[site == "b"] = 2 * (Y[site == "b"] - 40) + 45
    after = combat(Y, site, dx).values
    means = np.array([after[site == s].mean(axis=0) for s in "abc"])
    assert np.ptp(means, axis=0).max() < 0.6
    spread = [ols(np.column_stack([np.ones(40), dx[:40]]), after[site == s][:, 0]).sigma for s in "ab"]
    assert spread[0] == pytest.approx(spread[1], rel=0.35)
    scaled = combat(10 * Y + 7, site, dx).values
    np.testing.assert_allclose(scaled, 10 * after + 7, rtol=1e-6)
    anchored = combat(Y, site, dx, reference="a").values
    np.testing.assert_array_equal(anchored[site == "a"], Y[site == "a"])


def test_meta_analysis_of_equal_sites_is_their_mean() -> None:
    result = meta_analysis([2.0, 2.2, 1.8, 2.0], [0.5] * 4)
    assert result.estimate == pytest.approx(2.0)
    assert result.tau2 == 0.0
    fixed = meta_analysis([2.0, 2.2, 1.8, 2.0], [0.5] * 4, method="fixed", hksj=False)
    assert fixed.se == pytest.approx(0.25)
    dropped = meta_analysis([2.0, np.nan, 2.2, 1.8, 2.0], [0.5, np.nan, 0.5, 0.5, 0.5])
    assert (dropped.n_sites, dropped.n_missing, dropped.estimate) == (4, 1, pytest.approx(2.0))


def test_random_sites_from_five_and_interaction_found() -> None:
    rng = np.random.default_rng(22)
    site, dx = np.repeat(np.arange(6), 30), np.tile([0.0, 1.0], 90)
    X = np.column_stack([np.ones(180), dx])
    y = 40 + 2 * dx + rng.normal(size=6)[site] + rng.normal(size=180)
    effect = site_effect(y, X, site, term="dx", names=["one", "dx"])
    assert effect.sites == "random"
    assert effect.ci_low < 2 < effect.ci_high
    assert effect.interaction_df_numerator == 5
    assert effect.interaction_p > 0.001
    differing = site_effect(y + 3 * dx * (site == 2), X, site, term="dx", names=["one", "dx"])
    assert differing.interaction_p < 1e-6
    forced = site_effect(y, X, site, term="dx", names=["one", "dx"], sites="fixed")
    assert forced.estimate == pytest.approx(effect.estimate, rel=1e-6)  # balanced within sites


def test_missing_rows_change_nothing_but_their_count() -> None:
    rng = np.random.default_rng(23)
    x, y = rng.normal(size=12), rng.normal(size=12)
    gap_x, gap_y = np.append(x, [np.nan, 1.0]), np.append(y, [2.0, np.nan])
    for function in (spearman, paired, agreement, signed_rank):
        whole, with_gap = function(x, y), function(gap_x, gap_y)
        assert with_gap.n == whole.n == 12
        assert with_gap.n_missing == 2
        name = next(n for n in ("rho", "estimate", "bias") if hasattr(whole, n))
        assert getattr(whole, name) == getattr(with_gap, name)
    X = np.column_stack([np.ones(14), gap_x])
    assert ols(X, gap_y).n_missing == 2
    assert mixed(gap_y, X, [*"abcabcabcabc", "a", "b"]).n_missing == 2


ONES = np.ones((10, 1))
RAMP = np.arange(10.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ols(np.column_stack([ONES, RAMP]), np.ones(10)), "all 10 values of the outcome equal 1"),
        (lambda: ols(np.column_stack([ONES, RAMP])[:3], RAMP[:3] ** 2), "at least 4 complete rows, found 3"),
        (lambda: ols(np.column_stack([ONES, RAMP, 2 * RAMP]), RAMP**2, names=list("abc")), "b, c are collinear"),
        (lambda: ols(np.column_stack([ONES, 0 * RAMP]), RAMP, names=["one", "nil"]), "nil is zero in all 10 rows"),
        (lambda: bca(np.column_stack([ONES, RAMP]), np.ones(10), rng=np.random.default_rng()), "all 10 values"),
        (lambda: mixed(RAMP, ONES, np.zeros(10)), "at least 2 groups, found 1"),
        (lambda: mixed(RAMP, ONES, np.arange(10)), "all 10 groups have a single row"),
        (lambda: spearman(RAMP, np.ones(10)), "all 10 values of y equal 1"),
        (lambda: spearman([1, 2, 3], [1, 2, 3]), "at least 4 complete rows, found 3"),
        (lambda: signed_rank(np.zeros(5)), "all 5 differences are zero"),
        (lambda: rank_sum([1.0, 1.0], [1.0]), "all 3 values equal 1"),
        (lambda: rank_sum([np.nan], [1.0]), "found 0"),
        (lambda: paired(RAMP, RAMP + 1), "all 10 differences equal -1"),
        (lambda: rmcorr(RAMP, RAMP, np.arange(10)), "leave -1 degrees of freedom"),
        (lambda: fit_sigmoid(RAMP + 1, np.full(10, 3.0)), "all 10 values equal 3"),
        (lambda: fit_sigmoid([1, 1, 2, 2, 3, 3], RAMP[:6]), "4 different times, found 3"),
        (lambda: fit_random_asymptote(RAMP + 1, RAMP, np.arange(10)), "at most 1 observations each"),
        (lambda: local_linear([1, 1, 1, 2, 2, 2], RAMP[:6], [1.5]), "2 different times"),
        (lambda: combat(np.outer(RAMP, [1, 2]), np.repeat(["a", "b"], 5), np.repeat([0, 1], 5)), "confounded"),
        (lambda: combat(np.outer(RAMP, [1, 2]), ["a", *"bbbbbbbbb"]), "site a has 1 row"),
        (
            lambda: site_effect(
                RAMP,
                np.column_stack([ONES, np.repeat([0, 1], 5)]),
                np.repeat(["a", "b"], 5),
                term="dx",
                names=["one", "dx"],
            ),
            "confounded with the sites",
        ),
        (lambda: meta_analysis([1.0, np.nan], [1.0, np.nan]), "found 1 (1 left out as incomplete)"),
    ],
)
def test_bad_input_is_told_with_counts(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(EstimationError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: spearman([1, 2, 3], [1, 2]),
        lambda: ols(np.ones((4, 1)), [1, 2, np.inf, 4]),
        lambda: ols(np.ones((4, 1)), list("abcd")),
        lambda: fit_sigmoid([-1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        lambda: adjust([0.5, 1.5]),
        lambda: bca(np.column_stack([ONES, RAMP]), RAMP**2),
        lambda: combat([[1.0, np.nan], [2.0, 3.0]], ["a", "b"]),
        lambda: backward(pd.DataFrame({"y": RAMP}), "y", ["x"]),
    ],
)
def test_unusable_data_are_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(DataError):
        call()
