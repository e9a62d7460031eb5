"""Curves against R (minpack.lm, own profiler, exact likelihood) and the NIST nonlinear sets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_sodium.stats.curves import compare_curves, fit_curve, fit_random_asymptote, fit_sigmoid

SHARED = Path(os.environ.get("BIDS_SODIUM_TEST_DATA", Path(__file__).parents[3] / "shared"))
REFERENCE = SHARED / "reference" / "stats"


def case(folder: str, name: str = "expected.json") -> Any:
    path = REFERENCE / folder / name
    if not path.exists():
        pytest.skip(f"the reference results are not at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def table(folder: str, name: str = "data.tsv") -> pd.DataFrame:
    return pd.read_csv(REFERENCE / folder / name, sep="\t", na_values="n/a")


def test_sigmoid_equals_r() -> None:
    expected = case("sigmoid28_identifiable")
    data = table("sigmoid28_identifiable")
    tolerance = {**expected["tolerance"], "par_rel": 1e-6, "se_rel": 1e-5}
    fit = fit_sigmoid(data.hours, data.na_pct, groups=data.subject)
    assert fit.converged
    assert (fit.n, fit.n_groups) == (expected["n"], expected["n_subjects"])
    assert [fit.alpha, fit.delta, fit.gamma] == pytest.approx(list(expected["par"].values()), rel=tolerance["par_rel"])
    assert [fit.alpha_se, fit.delta_se, fit.gamma_se] == pytest.approx(
        list(expected["se"].values()), rel=tolerance["se_rel"]
    )
    assert fit.rss == pytest.approx(expected["rss"], rel=tolerance["rss_rel"])
    assert fit.rmse_n == pytest.approx(expected["rmse_rss_over_n"], rel=1e-9)
    assert fit.rmse_df == pytest.approx(expected["sigma_hat_rss_over_df"], rel=1e-9)
    assert fit.r2 == pytest.approx(expected["r2"], rel=1e-9)
    assert fit.t50_h == pytest.approx(expected["t50"], rel=tolerance["par_rel"])
    assert fit.t50_se_h == pytest.approx(expected["se_t50_delta"], rel=tolerance["se_rel"])
    np.testing.assert_allclose(fit.correlation, expected["cor"], rtol=tolerance["se_rel"])


def test_sigmoid_curve_interval_equals_r() -> None:
    expected = case("sigmoid28_identifiable")
    data = table("sigmoid28_identifiable")
    fit = fit_sigmoid(data.hours, data.na_pct, groups=data.subject, profile=False)
    curve = expected["curve"]
    value = fit.value_at(curve["hours"], cluster=False)
    np.testing.assert_allclose(value.value, curve["fit"], rtol=1e-5)
    np.testing.assert_allclose(value.se, curve["se_delta"], rtol=1e-4)
    np.testing.assert_allclose(value.ci_low, curve["lo95_t"], rtol=1e-4)
    np.testing.assert_allclose(value.ci_high, curve["hi95_t"], rtol=1e-4)
    robust = expected["cluster_robust"]
    assert [fit.alpha_se_cluster, fit.delta_se_cluster, fit.gamma_se_cluster] == pytest.approx(robust["se_CR1"], 1e-4)
    np.testing.assert_allclose(fit.value_at(curve["hours"]).se, robust["se_curve_CR1"], rtol=1e-4)


def test_sigmoid_profile_equals_r() -> None:
    expected = case("sigmoid28_identifiable", "expected_profile.json")
    f70 = case("sigmoid28_identifiable")["profile95_f70"]
    data = table("sigmoid28_identifiable")
    fit = fit_sigmoid(data.hours, data.na_pct)
    rel = 1e-6
    for name in ("alpha", "delta", "gamma", "log_t50"):
        interval = fit.profile[name]
        assert (interval.low, interval.high) == pytest.approx((expected[name]["lo"], expected[name]["hi"]), rel=rel)
        assert not interval.unbounded_low
        assert not interval.unbounded_high
    alpha = expected["alpha"]
    assert fit.rss_power == pytest.approx(alpha["rss_limit_alpha_inf_is_power_model"], rel=1e-9)
    assert fit.power_statistic == pytest.approx(alpha["lr_like_stat_at_infinity"], rel=1e-9)
    assert fit.power_critical == pytest.approx(alpha["crit"], rel=1e-12)
    assert fit.asymptote_identifiable
    interval = fit.profile_value(70.0)
    assert (interval.low, interval.high) == pytest.approx((f70["lo"], f70["hi"]), rel=rel)


def test_seven_models_equal_r() -> None:
    expected = case("sigmoid28_identifiable")
    data = table("sigmoid28_identifiable")
    result = compare_curves(data.hours, data.na_pct)
    assert result.best.name == "sigmoid"
    for name, model in expected["models"].items():
        found = result[name.removesuffix("_delta1")]
        assert found.rss == pytest.approx(model["rss"], rel=1e-9)
        assert found.n_parameters == model["n_par_mean"]
        for ours, theirs in (("loglik", "logLik"), ("aic", "AIC"), ("aicc", "AICc"), ("bic", "BIC")):
            assert getattr(found, ours) == pytest.approx(model[theirs], abs=expected["tolerance"]["aicc_abs"])
        assert found.weight == pytest.approx(model["akaike_weight"], rel=1e-6)
        assert list(found.parameters.values()) == pytest.approx(list(model["par"].values()), rel=1e-5)


def test_noise_free_sigmoid_is_recovered() -> None:
    expected = case("sigmoid28_noisefree")
    data = table("sigmoid28_noisefree")
    fit = fit_sigmoid(data.hours, data.na_pct)
    rel = expected["tolerance"]["par_rel"]
    assert [fit.alpha, fit.delta, fit.gamma] == pytest.approx(list(expected["par"].values()), rel=rel)
    assert fit.t50_h == pytest.approx(expected["t50"], rel=rel)
    assert fit.value_at(70.0).value == pytest.approx(expected["f70"], rel=rel)


def test_random_asymptote_equals_the_exact_likelihood() -> None:
    expected = case("nlme_random_asymptote")
    data = table("nlme_random_asymptote")
    fit = fit_random_asymptote(data.hours, data.na_pct, data.subject)
    exact, rel = expected["exact_ml"], 1e-4
    assert fit.converged
    assert fit.loglik == pytest.approx(exact["logLik"], abs=expected["tolerance"]["logLik_abs"])
    ours = [fit.asymptote, fit.log_t50, fit.delta, fit.sigma, fit.sd_asymptote]
    assert ours == pytest.approx([exact[k] for k in ("A", "lt50", "d", "sigma", "omega_A")], rel=rel)
    errors = [fit.asymptote_se, fit.log_t50_se, fit.log_delta_se]
    assert errors == pytest.approx([exact[k] for k in ("se_A", "se_lt50", "se_log_d")], rel=rel)
    assert fit.likelihood_ratio == pytest.approx(expected["lrt_omega"], abs=2e-4)


def test_sigmoid_ignoring_subjects_equals_nls() -> None:
    expected = case("nlme_random_asymptote")["nls_ignoring_subject"]
    data = table("nlme_random_asymptote")
    fit = fit_sigmoid(data.hours, data.na_pct)
    assert fit.alpha == pytest.approx(expected["coef"]["A"], rel=1e-3)
    assert fit.gamma / fit.delta == pytest.approx(expected["coef"]["lt50"], rel=1e-3)
    assert fit.delta == pytest.approx(expected["coef"]["d"], rel=1e-3)
    assert fit.alpha_se == pytest.approx(expected["se"]["A"], rel=1e-3)
    assert fit.profile["alpha"].unbounded_high
    assert not fit.asymptote_identifiable


def _ratio(b: Any, x: Any, top: int) -> Any:
    upper = sum(b[i] * x**i for i in range(top))
    return upper / (1 + sum(b[top + i] * x ** (i + 1) for i in range(len(b) - top)))


def _gauss(b: Any, x: Any) -> Any:
    first, second = b[2] * np.exp(-((x - b[3]) ** 2) / b[4] ** 2), b[5] * np.exp(-((x - b[6]) ** 2) / b[7] ** 2)
    return b[0] * np.exp(-b[1] * x) + first + second


def _enso(b: Any, x: Any) -> Any:
    waves = ((b[1], b[2], 12.0), (b[4], b[5], b[3]), (b[7], b[8], b[6]))
    return b[0] + sum(c * np.cos(2 * np.pi * x / t) + s * np.sin(2 * np.pi * x / t) for c, s, t in waves)


def _lanczos(b: Any, x: Any) -> Any:
    return b[0] * np.exp(-b[1] * x) + b[2] * np.exp(-b[3] * x) + b[4] * np.exp(-b[5] * x)


MODELS: dict[str, Callable[[Any, Any], Any]] = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": lambda b, x: b[0] * (1 - np.exp(-b[1] * x)),
    "Chwirut1": lambda b, x: np.exp(-b[0] * x) / (b[1] + b[2] * x),
    "Chwirut2": lambda b, x: np.exp(-b[0] * x) / (b[1] + b[2] * x),
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": _enso,
    "Eckerle4": lambda b, x: b[0] / b[1] * np.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Gauss3": _gauss,
    "Hahn1": lambda b, x: _ratio(b, x, 4),
    "Kirby2": lambda b, x: _ratio(b, x, 3),
    "Lanczos1": _lanczos,
    "Lanczos2": _lanczos,
    "Lanczos3": _lanczos,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * np.exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * np.exp(-x * b[3]) + b[2] * np.exp(-x * b[4]),
    "Misra1a": lambda b, x: b[0] * (1 - np.exp(-b[1] * x)),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * np.exp(-b[2] * x[1]),
    "Rat42": lambda b, x: b[0] / (1 + np.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + np.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - np.arctan(b[2] / (x - b[3])) / np.pi,
    "Thurber": lambda b, x: _ratio(b, x, 4),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_nist_nonlinear(name: str) -> None:
    certified = case("nist_nonlinear")["sets"][name]
    data = table("nist_nonlinear", f"{name}.tsv")
    y = data.y.to_numpy()
    x = data[["x1", "x2"]].to_numpy().T if name == "Nelson" else data.x.to_numpy()
    if name == "Nelson":
        y = np.log(y)
    parameters = certified["params"]
    fit = fit_curve(lambda b: MODELS[name](b, x), y, [p["start2"] for p in parameters])
    assert list(fit.estimate) == pytest.approx([p["value"] for p in parameters], rel=1e-6)
    if name != "Lanczos1":  # its residual sum of squares, 1e-25, is below the rounding of the data
        assert list(fit.se) == pytest.approx([p["sd"] for p in parameters], rel=1e-4)
        assert fit.rss == pytest.approx(certified["rss"], rel=1e-6)
        assert fit.converged
    assert fit.df == len(y) - len(parameters)  # the 9 printed for Rat43 is a slip: its residual SD has 11
