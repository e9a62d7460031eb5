"""Comparisons against R (exactRankTests, coin, afex, lme4, lmerTest, pbkrtest, emmeans) and NIST."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_sodium.stats import _mixed
from bids_sodium.stats.comparisons import (
    fisher_exact,
    kruskal_wallis,
    mixed,
    one_way,
    paired,
    rank_sum,
    repeated_anova,
    rmcorr,
    spearman,
)

SHARED = Path(os.environ.get("BIDS_SODIUM_TEST_DATA", Path(__file__).parents[3] / "shared"))
REFERENCE = SHARED / "reference" / "stats"


def case(folder: str, name: str = "expected.json") -> Any:
    path = REFERENCE / folder / name
    if not path.exists():
        pytest.skip(f"the reference results are not at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def table(folder: str, name: str = "data.tsv") -> pd.DataFrame:
    return pd.read_csv(REFERENCE / folder / name, sep="\t", na_values="n/a")


@pytest.mark.parametrize("name", ["n8_no_ties", "n9_ties", "n14_volumes", "n12_iono_w2"])
def test_spearman_equals_r(name: str) -> None:
    reference = case("spearman")
    expected, tolerance = reference[name], reference["tolerance"]["abs"]
    for interval, key in (("fisher", "ci_fisher"), ("fieller", "ci_fieller"), ("bonett-wright", "ci_bonett_wright")):
        result = spearman(expected["x"], expected["y"], interval=interval)
        assert (result.ci_low, result.ci_high) == pytest.approx(expected[key], abs=tolerance)
    assert result.rho == pytest.approx(expected["rho"], abs=tolerance)
    assert result.p_asymptotic == pytest.approx(expected["p_t_approx_SPSS_scipy"], abs=tolerance)
    if expected["p_exact_enumeration"] is None:
        assert np.isnan(result.p_exact)
    else:
        assert result.p == result.p_exact == pytest.approx(expected["p_exact_enumeration"], abs=tolerance)


@pytest.mark.parametrize("name", ["no_ties", "ties"])
def test_rank_sum_equals_r(name: str) -> None:
    reference = case("ranksum")
    expected, tolerance = reference[name], reference["tolerance"]["abs"]
    result = rank_sum(expected["x"], expected["y"])
    assert result.statistic == expected["U"]
    assert result.p_exact == pytest.approx(expected["p_exact"], abs=tolerance)
    assert result.p_exact == pytest.approx(expected["p_exact_coin"], abs=tolerance)
    assert result.p_asymptotic == pytest.approx(expected["p_asymp_nocc"], abs=tolerance)
    assert result.p_asymptotic_corrected == pytest.approx(expected["p_asymp_cc"], abs=tolerance)
    if expected["hl"] is not None:
        assert result.estimate == pytest.approx(expected["hl"], abs=tolerance)
        assert (result.ci_low, result.ci_high) == pytest.approx(expected["hl_ci"], abs=tolerance)


def test_edss_rank_sums_equal_r() -> None:
    expected = case("ms_cohort130", "expected_edss_ranksum.json")
    data, rel = table("ms_cohort130"), expected["tolerance"]["rel"]
    for row in expected["rank_sum"]:
        first, second = (data.edss[data.group.isin(row[k].split("+"))] for k in ("a", "b"))
        result = rank_sum(first, second)
        assert result.statistic == row["U"]
        assert result.p_exact == pytest.approx(row["p_exact_ties"], rel=rel)
        assert result.p_asymptotic == pytest.approx(row["p_asymp_nocc_SPSS"], rel=rel)
        assert result.p_asymptotic_corrected == pytest.approx(row["p_asymp_cc_R"], rel=rel)
        assert result.probability_superiority == pytest.approx(row["prob_superiority"], rel=rel)
    result_kw = kruskal_wallis({g: data.edss[data.group == g] for g in ("CIS", "RRMS", "SPMS")})
    assert result_kw.statistic == pytest.approx(expected["kruskal"]["H"], rel=rel)
    assert result_kw.p == pytest.approx(expected["kruskal"]["p"], rel=rel)
    assert result_kw.df == expected["kruskal"]["df"]


def test_repeated_anova_equals_r() -> None:
    expected = case("rm_anova_balanced")
    rel = expected["tolerance"]["rel"]
    data = table("rm_anova_balanced").sample(frac=1, random_state=1)
    result = repeated_anova(data, outcome="adc_pct", subject="subject", within=["roi", "session"])
    for row in expected["univariate"][1:]:
        effect = result[row["term"]]
        assert (effect.df, effect.error_df) == (row["num_Df"], row["den_Df"])
        ours = (effect.sum_sq, effect.error_sum_sq, effect.statistic, effect.p)
        assert ours == pytest.approx([row[k] for k in ("Sum_Sq", "Error_SS", "F_value", "Pr_F_")], rel=rel)
    for row in expected["sphericity"]:
        effect = result[row["term"]]
        assert (effect.mauchly_w, effect.mauchly_p) == pytest.approx((row["Test_statistic"], row["p_value"]), rel=rel)
    for row in expected["pval_adj"]:
        effect = result[row["term"]]
        ours = (effect.greenhouse_geisser, effect.p_greenhouse_geisser, effect.huynh_feldt, effect.p_huynh_feldt)
        assert ours == pytest.approx([row[k] for k in ("GG_eps", "Pr_F_GG_", "HF_eps", "Pr_F_HF_")], rel=rel)
    for row in expected["ges"]:
        assert result[row["term"]].ges == pytest.approx(row["ges"], rel=rel)


def test_rmcorr_equals_r() -> None:
    reference = case("rmcorr")
    data, tolerance = table("rmcorr"), reference["tolerance"]["abs"]
    result = rmcorr(data.na_pct, data.adc_pct, data.subject)
    expected = reference["rmcorr_all"]
    assert result.df == expected["df"]
    ours = (result.r, result.statistic, result.p, result.slope, result.ci_low, result.ci_high)
    theirs = (*(expected[k] for k in ("r", "F", "p", "slope")), *expected["ci95_fisher"])
    assert ours == pytest.approx(theirs, abs=tolerance)
    naive = spearman(data.na_pct, data.adc_pct)
    assert (naive.rho, naive.n) == pytest.approx((reference["naive_pooled_spearman"]["rho"], 26), abs=tolerance)
    means = data.groupby("subject").mean()
    between = spearman(means.na_pct, means.adc_pct)
    assert between.rho == pytest.approx(reference["between_subject_means_spearman"]["rho"], abs=tolerance)


def test_sleepstudy_equals_lme4() -> None:
    expected = case("mixed_sleepstudy")
    data, rel = table("mixed_sleepstudy"), 1e-4
    X = np.column_stack([np.ones(len(data)), data.days])
    fit = mixed(data.reaction, X, data.subject, names=["(Intercept)", "Days"], random=X)
    assert fit.converged
    assert fit.loglik == pytest.approx(expected["reml_logLik"], rel=1e-6)
    assert list(fit.estimate) == pytest.approx(list(expected["fixef"].values()), rel=rel)
    assert list(fit.se) == pytest.approx(list(expected["se"].values()), rel=rel)
    for i, row in enumerate(expected["satt"]):
        assert (fit.df_satterthwaite[i], fit.p_satterthwaite[i]) == pytest.approx((row["df"], row["Pr_t_"]), rel=rel)
    for i, row in enumerate(expected["kr"]):
        ours = (fit.se_kenward_roger[i], fit.df_kenward_roger[i], fit.p_kenward_roger[i])
        assert ours == pytest.approx((row["Std_Error"], row["df"], row["Pr_t_"]), rel=rel)
    intercept, slope, covariance, residual = (row["vcov"] for row in expected["vc"])
    np.testing.assert_allclose(fit.random_covariance, [[intercept, covariance], [covariance, slope]], rtol=rel)
    assert fit.sigma**2 == pytest.approx(residual, rel=rel)


def test_kenward_roger_equals_pbkrtest_at_lme4s_own_variances(monkeypatch: pytest.MonkeyPatch) -> None:
    # lme4 stops 5.9e-6 from the exact optimum of these balanced data (ours 4e-9, see the law of balanced slopes), which
    # is 1.2e-5 of F; with its own variances the inference itself agrees to rounding
    expected = case("mixed_sleepstudy")
    data = table("mixed_sleepstudy")
    X = np.column_stack([np.ones(len(data)), data.days])
    intercept, slope, covariance, residual = (row["vcov"] for row in expected["vc"])
    size = np.sqrt(np.mean(X**2, axis=0))
    relative = np.array([[intercept, covariance], [covariance, slope]]) * np.outer(size, size) / residual
    theta = np.linalg.cholesky(relative)[np.tril_indices(2)]
    monkeypatch.setattr(_mixed, "_minimise", lambda _: (theta, True))
    fit = mixed(data.reaction, X, data.subject, names=["(Intercept)", "Days"], random=X)
    assert fit.loglik == pytest.approx(expected["reml_logLik"], rel=1e-12)
    assert fit.sigma**2 == pytest.approx(residual, rel=1e-10)
    for i, row in enumerate(expected["kr"]):
        test = fit.test(np.eye(2)[i])
        ours = (test.statistic_kenward_roger, test.df_kenward_roger, test.p_kenward_roger)
        assert ours == pytest.approx((row["t_value"] ** 2, row["df"], row["Pr_t_"]), rel=1e-9)
        assert fit.df_satterthwaite[i] == pytest.approx(expected["satt"][i]["df"], rel=1e-6)
    monkeypatch.undo()
    assert mixed(data.reaction, X, data.subject, random=X).loglik > expected["reml_logLik"]


def test_lesion_mixed_model_equals_lme4() -> None:
    reference = case("ms_cohort130", "expected_extra.json")
    expected, rel = reference["lesion_mixed"], reference["tolerance"]["rel"]
    data = table("ms_cohort130")
    ms = data[data.group.isin(["RRMS", "SPMS"])]
    n = len(ms)
    y = np.concatenate([ms.tsc_nawm, ms.tsc_t1iso, ms.tsc_t1hypo])
    iso, hypo = np.repeat([0, 1, 0], n), np.repeat([0, 0, 1], n)
    spms, wmf = np.tile(ms.group == "SPMS", 3).astype(float), np.tile(ms.wmf - 0.3, 3)
    X = np.column_stack([np.ones(3 * n), iso, hypo, spms, wmf, iso * spms, hypo * spms])
    fit = mixed(y, X, np.tile(ms.participant_id, 3), names=list(expected["est"]))
    assert list(fit.estimate) == pytest.approx(list(expected["est"].values()), rel=rel)
    assert list(fit.se) == pytest.approx(expected["se"], rel=rel)
    assert list(fit.df_satterthwaite) == pytest.approx(expected["df"], rel=rel)
    assert list(fit.p_satterthwaite) == pytest.approx(expected["p"], rel=rel)
    assert fit.loglik == pytest.approx(expected["reml_logLik"], rel=1e-8)
    ours = (float(fit.random_covariance[0, 0]), fit.sigma**2)
    assert ours == pytest.approx([row["vcov"] for row in expected["vc"]], rel=rel)
    iso_mean, hypo_mean = np.array([0, 1, 0, 0, 0, 0.5, 0]), np.array([0, 0, 1, 0, 0, 0, 0.5])
    pairs = fit.contrast([-iso_mean, -hypo_mean, iso_mean - hypo_mean])
    for i, row in enumerate(expected["pairs"]):
        found = (pairs.estimate[i], pairs.se[i], pairs.df_satterthwaite[i], pairs.p_satterthwaite[i])
        assert found == pytest.approx([row[k] for k in ("estimate", "SE", "df", "p.value")], rel=rel)


def test_paired_lesions_equal_r() -> None:
    expected = case("ms_cohort130", "expected_group_comparisons.json")
    data, rel = table("ms_cohort130"), expected["tolerance"]["rel"]
    ms = data[data.group.isin(["RRMS", "SPMS"])]
    row, result = expected["paired_hypo_vs_iso"], paired(ms.tsc_t1hypo, ms.tsc_t1iso)
    ours = (result.estimate, result.ci_low, result.ci_high, result.p)
    assert ours == pytest.approx([row[k] for k in ("diff", "lo", "hi", "p")], rel=rel)
    row, result = expected["paired_lesion_vs_nawm"], paired(ms.tsc_t2les, ms.tsc_nawm)
    ours = (result.estimate, result.ci_low, result.ci_high, result.statistic, result.df, result.p)
    assert ours == pytest.approx([row[k] for k in ("diff", "lo", "hi", "t", "df", "p")], rel=rel)


def test_fisher_equals_r() -> None:
    reference = case("ms_cohort130", "expected_extra.json")
    rel = reference["tolerance"]["rel"]
    for row in reference["fisher_published_impairment"].values():
        result = fisher_exact([[row["SP"], 13 - row["SP"]], [row["RR"], 65 - row["RR"]]])
        assert (result.p, result.odds_ratio, result.ci_low) == pytest.approx((row["p"], row["or"], row["lo"]), rel=rel)
        # R finds upper limits as 1/root with an absolute tolerance of 1e-4 on the root: 0.5 % at 700
        assert result.ci_high == pytest.approx(row["hi"], rel=6e-3)


@pytest.mark.parametrize(
    ("name", "rel"),
    [
        # the digits that double precision leaves in the data: 1e6 + 0.4 has ten, 1e12 + 0.4 has four
        ("AtmWtAg", 1e-9),
        ("SiRstv", 1e-12),
        ("SmLs01", 1e-13),
        ("SmLs02", 1e-13),
        ("SmLs04", 1e-9),
        ("SmLs05", 1e-9),
        ("SmLs07", 1e-3),
        ("SmLs08", 1e-3),
    ],
)
def test_nist_anova(name: str, rel: float) -> None:
    certified = case("nist_anova")["sets"][name]
    data = table("nist_anova", f"{name}.tsv")
    result = one_way([group.response.astype(float) for _, group in data.groupby("treatment")])
    df, sum_sq, _, f = certified["between"]
    assert (result.df, result.error_df) == (df, certified["within"][0])
    ours = (result.sum_sq, result.error_sum_sq, result.statistic, result.r2, result.sigma)
    assert ours == pytest.approx((sum_sq, certified["within"][1], f, certified["r2"], certified["resid_sd"]), rel=rel)
