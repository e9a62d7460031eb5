"""Sites against R (sva, lme4, nlme, metafor)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_sodium.stats.comparisons import mixed
from bids_sodium.stats.harmonization import combat, heteroscedastic_sites, meta_analysis, per_site, site_effect
from bids_sodium.stats.regression import ols

SHARED = Path(os.environ.get("BIDS_SODIUM_TEST_DATA", Path(__file__).parents[3] / "shared"))
REFERENCE = SHARED / "reference" / "stats"
NAMES = ["intercept", "age", "sex", "dx"]


def case(name: str) -> Any:
    path = REFERENCE / "combat_sites" / name
    if not path.exists():
        pytest.skip(f"the reference results are not at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def table(name: str = "data.tsv") -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "combat_sites" / name, sep="\t", na_values="n/a")


def design(data: pd.DataFrame) -> Any:
    return np.column_stack([np.ones(len(data)), data.age, data.sex, data.dx])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("parametric_mod", {}),
        ("parametric_nomod", {"X": None}),
        ("mean_only_mod", {"mean_only": True}),
        ("nonparametric_mod", {"parametric": False}),
        ("ref_C_mod", {"reference": "C"}),
    ],
)
def test_combat_equals_sva(name: str, options: dict[str, Any]) -> None:
    tolerance = case("expected.json")["tolerance"]["combat_abs"]
    data, expected = table(), table(f"expected_{name}.tsv")
    features = [column for column in expected if column.startswith("tsc")]
    result = combat(data[features], data.site, **{"X": data[["age", "sex", "dx"]], **options})
    assert result.converged
    np.testing.assert_allclose(result.values, expected[features], rtol=0, atol=min(tolerance, 1e-9))


def test_random_site_models_equal_lme4() -> None:
    reference = case("expected_site_models.json")
    data, rel = table(), reference["tolerance"]["rel"]
    for feature, row in reference["features"].items():
        expected = row["lmer"]
        fit = mixed(data[feature], design(data), data.site, names=NAMES)
        ours = (fit.estimate[3], fit.se[3], fit.df_satterthwaite[3], fit.p_satterthwaite[3])
        assert ours == pytest.approx([expected[k] for k in ("b", "se", "df", "p")], rel=rel)
        assert (fit.sd_random[0], fit.sigma) == pytest.approx((expected["sd_site"], expected["sd_resid"]), rel=rel)
        assert fit.loglik == pytest.approx(expected["reml_logLik"], rel=1e-8)
        assert fit.icc == pytest.approx(expected["icc_site"], rel=rel)
        assert fit.singular == expected["singular"]


def test_fixed_site_models_and_two_stage_meta_analysis_equal_r() -> None:
    reference = case("expected_site_models.json")
    data, rel = table(), reference["tolerance"]["rel"]
    for feature, row in reference["features"].items():
        effect = site_effect(data[feature], design(data), data.site, term="dx", names=NAMES)
        assert effect.sites == "fixed"
        assert (effect.estimate, effect.se) == pytest.approx((row["site_fixed"]["b"], row["site_fixed"]["se"]), rel=rel)
        estimates, errors = [s.estimate for s in effect.per_site], [s.se for s in effect.per_site]
        expected = row["meta_reml_hksj"]
        assert estimates == pytest.approx(expected["per_site_b"], rel=rel)
        assert errors == pytest.approx(expected["per_site_se"], rel=rel)
        result = meta_analysis(estimates, errors)
        ours = (result.estimate, result.se, result.ci_low, result.ci_high, result.q)
        assert ours == pytest.approx([expected[k] for k in ("b", "se", "lo", "hi", "Q")], rel=rel)
        # metafor ends within 1e-5 of a variance of zero, where the likelihood is highest
        assert result.tau2 == pytest.approx(expected["tau2"], rel=rel, abs=1e-5)
        assert result.i2 == pytest.approx(expected["I2"], rel=rel, abs=1e-3)
        simple = meta_analysis(estimates, errors, method="dl", hksj=False)
        expected = row["meta_dl"]
        assert (simple.estimate, simple.se, simple.tau2) == pytest.approx(
            [expected[k] for k in ("b", "se", "tau2")], rel=rel
        )


@pytest.mark.parametrize(
    ("name", "method", "hksj"),
    [("FE", "fixed", False), ("DL", "dl", False), ("REML", "reml", False), ("REML_HKSJ", "reml", True)],
)
def test_meta_analysis_equals_metafor(name: str, method: str, hksj: bool) -> None:
    reference = case("expected.json")
    expected, rel = reference["meta"][name], reference["tolerance"]["meta_rel"]
    sites = reference["per_site"]
    result = meta_analysis([s["b"] for s in sites], [s["se"] for s in sites], method=method, hksj=hksj)
    keys = ("b", "se", "lo", "hi", "tau2", "I2", "Q", "Qp", "p")
    ours = (result.estimate, result.se, result.ci_low, result.ci_high, result.tau2, result.i2, result.q, result.q_p)
    assert (*ours, result.p) == pytest.approx([expected[k] for k in keys], rel=rel)
    if expected["pi_lo"] is not None:
        limits = (result.prediction_low, result.prediction_high)
        assert limits == pytest.approx((expected["pi_lo"], expected["pi_hi"]), rel=rel)


def test_other_site_models_equal_r() -> None:
    reference = case("expected.json")
    data, rel = table(), reference["tolerance"]["rel"]
    X, y = design(data), data[reference["feature"]]
    plain = ols(X, y, names=NAMES)["dx"]
    expected = reference["ols_no_site"]
    assert (plain.estimate, plain.se, plain.p) == pytest.approx([expected[k] for k in ("b", "se", "p")], rel=rel)
    for found, row in zip(per_site(y, X, data.site, term="dx", names=NAMES), reference["per_site"], strict=True):
        assert (found.site, found.df) == (row["site"], row["df"])
        assert (found.estimate, found.se) == pytest.approx((row["b"], row["se"]), rel=rel)
    expected = reference["lme_site_variances"]
    fit = heteroscedastic_sites(y, X, data.site, names=NAMES)
    assert (fit.estimate[3], fit.se[3], fit.sigma[0]) == pytest.approx(
        [expected[k] for k in ("b", "se", "sigma")], rel=rel
    )
    assert list(fit.sigma[1:] / fit.sigma[0]) == pytest.approx(list(expected["var_ratio"].values()), rel=rel)
    assert fit.loglik == pytest.approx(expected["reml_logLik"], rel=1e-8)
    expected = reference["lmer_random_slope"]
    slope = mixed(y, X, data.site, names=NAMES, random=X[:, [0, 3]], correlated=False)
    assert slope.singular == expected["singular"]
    assert (slope.estimate[3], slope.se[3]) == pytest.approx((expected["b"], expected["se"]), rel=rel)
    # lme4 ends 4e-5 beside the maximum, which moves the degrees of freedom by 0.2 %
    assert slope.p_satterthwaite[3] == pytest.approx(expected["p"], rel=4e-3)


def test_combat_then_regression_equals_r() -> None:
    reference = case("expected.json")
    data, expected = table(), reference["combat_then_ols_se_ignores_harmonisation"]
    features = [column for column in data if column.startswith("tsc")]
    after = combat(data[features], data.site, data[["age", "sex", "dx"]]).values
    dx = ols(design(data), after[:, features.index(reference["feature"])], names=NAMES)["dx"]
    rel = reference["tolerance"]["rel"]
    assert (dx.estimate, dx.se, dx.p) == pytest.approx([expected[k] for k in ("b", "se", "p")], rel=rel)
