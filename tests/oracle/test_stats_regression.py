"""Regression against R (lm, car, sandwich, lmtest, boot, MASS), NIST and statsmodels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_sodium.stats.regression import backward, bca, group_difference, group_means, ols, proportional_odds

SHARED = Path(os.environ.get("BIDS_SODIUM_TEST_DATA", Path(__file__).parents[3] / "shared"))
REFERENCE = SHARED / "reference" / "stats"


def case(folder: str, name: str = "expected.json") -> Any:
    path = REFERENCE / folder / name
    if not path.exists():
        pytest.skip(f"the reference results are not at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def table(folder: str, name: str = "data.tsv") -> pd.DataFrame:
    return pd.read_csv(REFERENCE / folder / name, sep="\t", na_values="n/a")


def listed(value: Any) -> list[Any]:
    """A list of length one may be stored as its only entry, an empty one as {} or null."""
    if value is None or value == {}:
        return []
    return value if isinstance(value, list) else [value]


def cohort(subset: str) -> pd.DataFrame:
    data = table("ms_cohort130")
    data["sexn"] = (data.sex == "F").astype(float)
    groups = {"all": ["CIS", "RRMS", "SPMS"], "ms": ["RRMS", "SPMS"]}.get(subset, list(data.group.unique()))
    return data[data.group.isin(groups)]


@pytest.mark.parametrize(("name", "rel"), [("Norris", 1e-9), ("Longley", 1e-7)])
def test_nist_linear(name: str, rel: float) -> None:
    certified = case("nist_linear")["sets"][name]
    data = table("nist_linear", f"{name}.tsv")
    y = data.iloc[:, 0] if name == "Longley" or "y" not in data else data.y
    X = np.column_stack([np.ones(len(data)), data.drop(columns=[y.name])])
    fit = ols(X, y)
    assert fit.n == certified["n"]
    assert list(fit.estimate) == pytest.approx(certified["coef"], rel=rel)
    assert list(fit.se) == pytest.approx(certified["sd"], rel=rel)
    assert (fit.sigma, fit.r2) == pytest.approx((certified["resid_sd"], certified["r2"]), rel=rel)


def assert_model(model: Any, expected: dict[str, Any], rel: float) -> None:
    for ours, theirs in (("estimate", "est"), ("se", "se"), ("statistic", "t"), ("p", "p"), ("ci_low", "lo")):
        assert list(getattr(model, ours)) == pytest.approx(expected[theirs], rel=rel), theirs
    assert list(model.ci_high) == pytest.approx(expected["hi"], rel=rel)
    ours = (model.r2, model.adjusted_r2, model.sigma, model.df, model.f_statistic, model.n, model.aic, model.bic)
    theirs = [expected[k] for k in ("r2", "adj_r2", "sigma", "df", "F", "n", "aic", "bic")]
    assert ours == pytest.approx(theirs, rel=rel)


def test_group_comparisons_equal_r() -> None:
    reference = case("ms_cohort130", "expected_group_comparisons.json")
    data, rel = cohort("everyone"), reference["tolerance"]["rel"]
    assert len(reference["comparisons"]) == 47
    for row in reference["comparisons"]:
        names = listed(row["cov"])
        first, second = (data.group.isin(row[k].split("+")) for k in ("a", "b"))
        result = group_difference(data[row["dep"]], first, second, data[names] if names else None, names=names)
        ours = (result.estimate, result.se, result.ci_low, result.ci_high, result.p, result.df, result.se_hc3)
        assert ours == pytest.approx([row[k] for k in ("diff", "se", "lo", "hi", "p", "df", "hc3_se")], rel=rel)
        if isinstance(row.get("adj_mean_a"), float):
            means = (result.adjusted_mean_first, result.adjusted_mean_second)
            assert means == pytest.approx((row["adj_mean_a"], row["adj_mean_b"]), rel=rel)


def test_joint_models_equal_r() -> None:
    reference = case("ms_cohort130", "expected_group_comparisons.json")
    data, rel = cohort("everyone"), reference["tolerance"]["rel"]
    for row in reference["joint_models"]:
        names = row["cov"].split("+")
        order = ["HC", "CIS", "RRMS", "SPMS"]
        result = group_means(data[row["dep"]], data.group, data[names], order=order, names=names)
        assert_model(result.model, row, rel)
        assert result.statistic == pytest.approx(row["anova_typeII"][0], rel=rel)


def test_backward_eliminations_equal_r() -> None:
    reference = case("ms_cohort130", "expected_backward.json")
    rel = reference["tolerance"]["rel"]
    for name, row in reference["models"].items():
        data = cohort(name.split("_")[0])
        result = backward(data, row["dep"], row["candidates"], row["forced"], p_remove=0.08)
        assert result.n == row["n"]
        assert list(result.entered) == listed(row["entered"])
        assert list(result.retained) == listed(row["retained"])
        for test, theirs in zip(result.univariable, row["univariable"], strict=True):
            assert (test.estimate, test.se, test.p) == pytest.approx([theirs[k] for k in ("beta", "se", "p")], rel=rel)
        for step, theirs in zip(result.path, listed(row["steps"]), strict=True):
            assert list(step.in_model) == listed(theirs["in_model"])
            assert list(step.p) == pytest.approx(listed(theirs["p"]), rel=rel)
            assert step.removed == theirs.get("removed")
        assert_model(result.final, row["final"], rel)
        for test, theirs in zip(result.retests, listed(row["omitted_retest"]), strict=True):
            assert test.name == theirs["var"]
            assert (test.estimate, test.p) == pytest.approx((theirs["beta"], theirs["p"]), rel=rel)
        assert result.any_omitted_significant == row["any_omitted_p_le_thr"]
        standardised = dict(zip(result.final.names, result.final.standardised, strict=True))
        for term, value in (row["std_beta"] or {}).items():
            assert standardised[term] == pytest.approx(value, rel=rel)


def test_diagnostics_equal_r() -> None:
    reference = case("ms_cohort130", "expected_backward.json")
    rel = reference["tolerance"]["rel"]
    for name, row in reference["models"].items():
        data = cohort(name.split("_")[0])
        final = backward(data, row["dep"], row["candidates"], row["forced"]).final
        expected, found = row["diagnostics"], final.diagnostics()
        inflation = dict(zip(final.names, found.vif, strict=True))
        for term, value in (expected.get("vif") or {}).items():
            assert inflation[term] == pytest.approx(value, rel=rel)
        worst = int(np.argmax(found.cook))
        assert data.participant_id.iloc[final.rows[worst]] == expected["cook_argmax"]
        assert int(np.sum(found.cook > 4 / final.n)) == expected["n_cook_gt_4_over_n"]
        ours = (
            float(found.cook.max()),
            float(found.leverage.max()),
            float(np.abs(found.studentised).max()),
            float(np.abs(found.dffits).max()),
            found.shapiro_w,
            found.koenker,
            found.koenker_p,
            found.outlier_p,
        )
        keys = ("cook_max", "leverage_max", "rstudent_max_abs", "dffits_max", "shapiro_W", "bp_koenker", "bp_p")
        theirs = [*(expected[k] for k in keys), min(expected["bonf_outlier_p"], 1.0)]
        assert ours == pytest.approx(theirs, rel=rel)
        # scipy and R share the algorithm of W; near one, its p value magnifies rounding in W (1e-10) a hundredfold
        assert found.shapiro_p == pytest.approx(expected["shapiro_p"], rel=3e-8)
        assert list(final.se_hc3) == pytest.approx(list(expected["hc3_se"].values()), rel=rel)
        assert list(final.se_hc4) == pytest.approx(list(expected["hc4_se"].values()), rel=rel)


def edss() -> tuple[Any, Any, list[str]]:
    data = cohort("all")
    return np.column_stack([np.ones(len(data)), data.tsc_cgm, data.gmf]), data.edss, ["intercept", "tsc_cgm", "gmf"]


def test_bca_with_given_resamples_equals_r() -> None:
    reference = case("bca_edss_all96")
    X, y, names = edss()
    indices = pd.read_csv(REFERENCE / "bca_edss_all96" / "indices0.tsv.gz", sep="\t", header=None).to_numpy()
    result = bca(X, y, names=names, indices=indices)
    tolerance = reference["tolerance"]["fixed_index_abs"]
    assert result.n == reference["n"]
    assert result.n_resamples == reference["R"]
    for i, name in enumerate(names):
        expected = reference["stat"][name]
        rule = expected["bca_jack_quantile7_scipy"]
        assert result.estimate[i] == pytest.approx(expected["t0"], abs=tolerance)
        assert result.z0[i] == pytest.approx(rule["z0"], abs=tolerance)
        assert result.acceleration[i] == pytest.approx(rule["a"], abs=tolerance)
        assert (result.alpha_low[i], result.alpha_high[i]) == pytest.approx(rule["alpha"], abs=tolerance)
        assert (result.ci_low[i], result.ci_high[i]) == pytest.approx(rule["ci"], abs=tolerance)
        assert result.se[i] == pytest.approx(expected["se_boot"], abs=tolerance)
        assert result.bias[i] == pytest.approx(expected["bias"], abs=tolerance)
        assert result.p[i] == pytest.approx(expected["p"]["bca_inverted"], abs=tolerance)


def test_bca_with_own_resamples_agrees_with_the_large_bootstrap() -> None:
    reference = case("bca_edss_all96")
    X, y, names = edss()
    result = bca(X, y, names=names, rng=np.random.default_rng(20))
    for i, name in enumerate(names):
        truth = reference["big_R_200000"][name]
        limit = 4 * np.array(truth["mc_sd_of_ci_R10000"])
        assert abs(result.ci_low[i] - truth["bca"]["ci"][0]) < limit[0]
        assert abs(result.ci_high[i] - truth["bca"]["ci"][1]) < limit[1]


def test_proportional_odds_equals_r_and_statsmodels() -> None:
    reference = case("ms_cohort130", "expected_extra.json")
    expected, rel = reference["polr"], reference["tolerance"]["rel"]
    data = cohort("all")
    X = np.column_stack([data.tsc_cgm, 100 * data.gmf])
    fit = proportional_odds(X, data.edss, names=["tsc_cgm", "gmf100"])
    assert list(fit.estimate) == pytest.approx(list(expected["coef"].values()), rel=rel)
    assert list(fit.se) == pytest.approx(list(expected["se"].values()), rel=rel)
    assert fit.loglik == pytest.approx(expected["logLik"], rel=1e-8)
    assert fit.likelihood_ratio[0] == pytest.approx(expected["LR_tsc"], rel=rel)
    assert fit.p[0] == pytest.approx(expected["p_LR"], rel=rel)
    assert fit.odds_ratio[0] == pytest.approx(expected["or_per_mM"], rel=rel)

    from statsmodels.miscmodels.ordinal_model import OrderedModel

    peer = OrderedModel(data.edss.to_numpy(), X - X.mean(axis=0), distr="logit").fit(
        method="bfgs", disp=False, maxiter=500, gtol=1e-8
    )
    assert fit.loglik == pytest.approx(peer.llf, rel=1e-9)
    assert list(fit.estimate) == pytest.approx(list(peer.params[:2]), rel=1e-5)
    assert list(fit.se) == pytest.approx(list(peer.bse[:2]), rel=1e-4)
