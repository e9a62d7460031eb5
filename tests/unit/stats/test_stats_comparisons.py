"""Comparisons: small cases worked by hand, and results that name themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats.comparisons import (
    adjust,
    agreement,
    fisher_exact,
    mixed,
    paired,
    rank_sum,
    repeated_anova,
    rmcorr,
    signed_rank,
    spearman,
)


def test_spearman_by_permutation_agrees_with_all_orders() -> None:
    x, y = [1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 1, 4, 3, 6, 5, 9, 7, 8]
    exact = spearman(x, y)
    assert exact.method == "all 9! orders"
    above = spearman([*x, 10], [*y, 10], rng=np.random.default_rng(0))
    assert above.method == "20000 permutations"
    assert above.p == above.p_permutation >= 1 / 20001
    without = spearman([*x, 10], [*y, 10])
    assert without.method == "t approximation"
    assert without.p == without.p_asymptotic
    with pytest.raises(DataError, match="unknown interval"):
        spearman(x, y, interval="wald")


def test_perfect_rank_correlation_has_an_exact_p_and_no_interval() -> None:
    result = spearman([1, 2, 3, 4], [2, 4, 6, 9])
    assert result.rho == 1.0
    assert result.p_exact == pytest.approx(2 / 24)
    assert np.isnan(result.ci_low)
    assert result.p_asymptotic == 0.0


def test_signed_rank_by_hand() -> None:
    result = signed_rank([5.0, 6.0, 7.0, 8.0], [4.0, 8.0, 4.0, 4.0])
    # differences 1, -2, 3, 4: W+ = 1 + 3 + 4 = 8; of 16 patterns W+ <= 2 or >= 8 in 6
    assert result.statistic == 8.0
    assert result.p_exact == pytest.approx(6 / 16)
    assert np.isinf(result.ci_low)  # four pairs allow no 95 % interval


def test_large_samples_go_without_counting() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=300), rng.normal(size=300) + 0.3
    big = rank_sum(x, y)
    assert np.isnan(big.p_exact)
    assert big.ci_low < -0.3 < big.ci_high
    signs = signed_rank(rng.normal(0.3, 1, 500))
    assert np.isnan(signs.p_exact)
    assert signs.ci_low < signs.estimate < signs.ci_high


def test_normal_approximation_is_near_the_exact_value() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=60), rng.normal(size=50) + 0.4
    result = rank_sum(x, y)
    assert result.p_exact == pytest.approx(result.p_asymptotic, rel=0.03)


def test_ratio_needs_positive_values() -> None:
    positive, negative = paired([1.0, 2.0, 4.0], [2.0, 3.0, 9.0]), paired([-1.0, 2.0, 4.0], [2.0, 3.0, 9.0])
    assert positive.ratio == pytest.approx((1 / 2 * 2 / 3 * 4 / 9) ** (1 / 3))
    assert positive.ratio_ci_low < positive.ratio < positive.ratio_ci_high
    assert np.isnan(negative.ratio)
    assert np.isnan(negative.p_log)


def test_agreement_of_a_constant_bias() -> None:
    x = np.array([10.0, 20.0, 30.0, 45.0, 60.0])
    noise = np.array([0.5, -0.5, 0.3, -0.6, 0.3])
    result = agreement(x + 2 + noise, x)
    assert result.bias == pytest.approx(2.0)
    assert result.limit_low < 2 < result.limit_high
    assert result.concordance < result.pearson
    assert result.concordance_ci_low < result.concordance < result.concordance_ci_high
    assert result.proportional_p > 0.5
    assert result.ratio_limit_low < result.ratio < result.ratio_limit_high
    perfect = agreement(x, x)
    assert perfect.concordance == pytest.approx(1.0)
    assert perfect.bias == 0.0
    with pytest.raises(DataError, match="margin"):
        agreement(x, x + noise, ratio_margin=0.8)


def test_concordance_follows_lin() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.5, 2.0, 3.5, 5.0])
    expected = 2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert agreement(x, y).concordance == pytest.approx(expected)


def test_left_out_error_is_the_error_of_leaving_out() -> None:
    rng = np.random.default_rng(2)
    x = np.exp(rng.normal(2, 1, 12))
    y = x * np.exp(0.2 * rng.normal(size=12))
    errors = []
    for i in range(12):
        rest = np.arange(12) != i
        slope, intercept = np.polyfit(np.log(x[rest]), np.log(y[rest]), 1)
        errors.append(np.log(y[i]) - intercept - slope * np.log(x[i]))
    assert agreement(x, y).prediction_rmse == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_equivalence_shrinks_with_the_margin() -> None:
    x = np.array([10.0, 20.0, 30.0, 45.0, 60.0, 12.0])
    y = x * np.array([1.02, 0.99, 1.03, 0.97, 1.01, 1.0])
    assert agreement(x, y).ratio_equivalence_p < 0.001
    assert agreement(x, 1.5 * y).ratio_equivalence_p > 0.9


def test_incomplete_tables_are_sent_to_the_mixed_model() -> None:
    table = pd.DataFrame({"s": list("aabbccdd"), "t": [0, 1] * 4, "v": np.arange(8.0) ** 1.5})
    repeated_anova(table, outcome="v", subject="s", within=["t"])
    for broken, words in (
        (table.iloc[1:], "1 are empty"),
        (pd.concat([table, table.iloc[:1]]), "1 hold several rows"),
        (table.assign(v=table.v.where(table.v > 0)), "1 of 8 rows are incomplete"),
    ):
        with pytest.raises(EstimationError, match=words) as caught:
            repeated_anova(broken, outcome="v", subject="s", within=["t"])
        assert "mixed model" in caught.value.hint
    with pytest.raises(DataError, match="missing column"):
        repeated_anova(table, outcome="w", subject="s", within=["t"])


def test_effects_are_found_by_name() -> None:
    rng = np.random.default_rng(3)
    index = pd.MultiIndex.from_product([range(6), list("pq"), [1, 2, 3]], names=["s", "roi", "time"])
    table = pd.DataFrame({"v": rng.normal(size=36)}, index=index).reset_index()
    result = repeated_anova(table, outcome="v", subject="s", within=["roi", "time"])
    assert [effect.name for effect in result.effects] == ["roi", "time", "roi:time"]
    assert result["roi:time"].df == 2
    assert 1 / 2 <= result["time"].greenhouse_geisser <= 1
    assert result["roi"].greenhouse_geisser == pytest.approx(1.0)
    with pytest.raises(KeyError):
        result["age"]


def test_rmcorr_sees_within_subjects_only() -> None:
    x = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    offset = np.repeat([0.0, 100.0, -50.0], 3)
    y = -2 * x + offset + np.array([0.1, -0.1, 0.0, 0.0, 0.1, -0.1, 0.1, 0.0, -0.1])
    result = rmcorr(x, y, list("aaabbbccc"))
    assert result.r < -0.99
    assert result.slope == pytest.approx(-2, abs=0.1)
    assert result.n_subjects == 3


def test_mixed_recovers_its_truth() -> None:
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(80), 5)
    x = rng.normal(size=400)
    y = 5 + 2 * x + 3 * rng.normal(size=80)[group] + 1.5 * rng.normal(size=400)
    fit = mixed(y, np.column_stack([np.ones(400), x]), group, names=["one", "x"])
    assert abs(fit.estimate[1] - 2) < 3 * fit.se[1]
    assert fit.sd_random[0] == pytest.approx(3, rel=0.2)
    assert fit.sigma == pytest.approx(1.5, rel=0.1)
    assert fit.icc == pytest.approx(0.8, abs=0.08)
    assert fit.random_effects.shape == (80, 1)
    assert abs(fit.random_effects.mean()) < 1e-6


def test_mixed_intervals_cover() -> None:
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(8), 3)
    x = np.repeat(np.arange(8) % 2, 3).astype(float)
    X = np.column_stack([np.ones(24), x])
    held, held_kr = [], []
    for _ in range(300):
        y = rng.normal(size=8)[group] + rng.normal(size=24)
        fit = mixed(y, X, group)
        held.append(fit.p_satterthwaite[1] > 0.05)
        held_kr.append(fit.p_kenward_roger[1] > 0.05)
    assert 0.92 <= np.mean(held) <= 0.985
    assert 0.92 <= np.mean(held_kr) <= 0.985


def test_random_slopes_without_correlation() -> None:
    rng = np.random.default_rng(6)
    group = np.repeat(np.arange(40), 6)
    x = rng.normal(size=240)
    y = 1 + x + rng.normal(size=40)[group] + 0.8 * rng.normal(size=40)[group] * x + rng.normal(size=240)
    X = np.column_stack([np.ones(240), x])
    free, independent = mixed(y, X, group, random=X), mixed(y, X, group, random=X, correlated=False)
    assert independent.random_covariance[0, 1] == 0.0
    assert free.loglik >= independent.loglik - 1e-6
    assert independent.sd_random[1] == pytest.approx(0.8, rel=0.4)
    assert np.isnan(free.icc)


def test_missing_labels_are_missing_however_they_are_written() -> None:
    rng = np.random.default_rng(8)
    y = rng.normal(size=16)
    groups = [*np.repeat(["a", "b", "c"], 4), "n/a", None, np.nan, pd.NA]
    fit = mixed(y, np.ones((16, 1)), groups)
    assert (fit.n, fit.n_missing, fit.groups) == (12, 4, ("a", "b", "c"))


def test_contrasts_need_their_shape() -> None:
    rng = np.random.default_rng(7)
    fit = mixed(rng.normal(size=12), np.ones((12, 1)), np.repeat(np.arange(4), 3))
    with pytest.raises(DataError, match="shape"):
        fit.contrast([[1.0, 2.0]])
    with pytest.raises(EstimationError, match="are zero"):
        fit.test([0.0])
    assert fit.contrast([2.0]).estimate[0] == pytest.approx(2 * fit.estimate[0])


def test_adjust_by_hand() -> None:
    p = [0.01, 0.02, 0.03, 0.5]
    np.testing.assert_allclose(adjust(p), [0.04, 0.06, 0.06, 0.5])
    np.testing.assert_allclose(adjust(p, "bh"), [0.04, 0.04, 0.04, 0.5])
    np.testing.assert_allclose(adjust(p, "bonferroni"), [0.04, 0.08, 0.12, 1.0])
    with pytest.raises(DataError, match="unknown adjustment"):
        adjust(p, "sidak")


def test_fisher_needs_counts() -> None:
    with pytest.raises(DataError, match="two by two"):
        fisher_exact([[1.5, 2], [3, 4]])
    with pytest.raises(EstimationError, match="empty"):
        fisher_exact([[0, 0], [3, 4]])
    result = fisher_exact([[3, 0], [0, 3]])
    assert result.p == pytest.approx(2 / 20)
    assert np.isinf(result.odds_ratio)
