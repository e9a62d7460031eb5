"""Regression: elimination, bootstrap and group comparisons on small data."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats.harmonization import moments
from bids_sodium.stats.regression import (
    backward,
    backward_moments,
    bca,
    group_difference,
    group_means,
    ols,
    proportional_odds,
    selection_frequency,
)


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(90, 4)), columns=["tsc", "t2", "t1", "gmf"])
    table["edss"] = 4 + 1.2 * table.tsc - 0.5 * table.gmf + rng.normal(size=90)
    table["group"] = np.repeat(["CIS", "RRMS", "SPMS"], 30)
    return table


def test_elimination_reports_its_path(cohort: pd.DataFrame) -> None:
    result = backward(cohort, "edss", ["tsc", "t2", "t1"], "gmf")
    assert result.retained == ("tsc",)
    assert result.forced == ("gmf",)
    assert result.final.names == ("intercept", "tsc", "gmf")
    assert {test.name for test in result.retests} == {"t2", "t1"}
    assert result.path[-1].removed is None


def test_nothing_entering_leaves_the_forced_terms(cohort: pd.DataFrame) -> None:
    noise = cohort.assign(edss=np.random.default_rng(3).normal(size=90))
    result = backward(noise, "edss", ["t2"], ["gmf"], p_enter=1e-9)
    assert result.retained == ()
    assert result.path == ()
    assert result.final.names == ("intercept", "gmf")
    bare = backward(noise, "edss", ["t2"], p_enter=1e-9)
    assert bare.final.names == ("intercept",)
    assert np.isnan(bare.final.f_statistic)


def test_elimination_refuses_a_column_twice(cohort: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="named twice"):
        backward(cohort, "edss", ["tsc"], "tsc")


@pytest.mark.parametrize("decimals", [12, 4, 3])
def test_elimination_refuses_columns_that_add_up_but_for_rounding(cohort: pd.DataFrame, decimals: int) -> None:
    rng = np.random.default_rng(3)
    grey, white = rng.normal(0.45, 0.012, len(cohort)), rng.normal(0.31, 0.015, len(cohort))
    table = cohort.assign(grey=grey, white=white, whole=grey + white)
    table[["grey", "white", "whole"]] = table[["grey", "white", "whole"]].round(decimals)
    outcome, other = "edss", "tsc"
    words = f"grey, white, whole are collinear in {len(cohort)} rows"
    with pytest.raises(EstimationError, match=words):
        backward(table, outcome, ["grey", other], ["white", "whole"])
    X = np.column_stack([np.ones(len(table)), table[["grey", other, "white", "whole"]]])
    halves = [moments(X[:40], table[outcome][:40]), moments(X[40:], table[outcome][40:])]
    with pytest.raises(EstimationError, match=words):
        backward_moments(halves, outcome, ["grey", other], ["white", "whole"])
    # two of them say different things
    assert backward(table, outcome, ["grey", other], ["white"]).forced == ("white",)


def test_selection_frequency_knows_the_signal(cohort: pd.DataFrame) -> None:
    share = selection_frequency(
        cohort, "edss", ["tsc", "t2", "t1"], "gmf", rng=np.random.default_rng(1), n_resamples=60
    )
    assert share["tsc"] == 1.0
    assert share["t2"] < 0.6


def test_selection_follows_the_elimination(cohort: pd.DataFrame) -> None:
    class Once(np.random.Generator):
        def integers(self, *_args: object, **_kwargs: object) -> object:  # type: ignore[override]
            return np.arange(90)

    share = selection_frequency(cohort, "edss", ["tsc", "t2", "t1"], "gmf", rng=Once(np.random.PCG64(0)), n_resamples=1)
    kept = backward(cohort, "edss", ["tsc", "t2", "t1"], "gmf").retained
    assert [name for name, value in share.items() if value] == list(kept)


def test_selection_frequency_is_the_share_of_eliminations_of_the_resamples(cohort: pd.DataFrame) -> None:
    n, R, names = 30, 25, ["tsc", "t2", "t1"]
    table = cohort.iloc[:n]
    rng, kept = np.random.default_rng(4), dict.fromkeys(names, 0)
    for _ in range(R):
        for name in backward(table.iloc[rng.integers(0, n, n)], "edss", names, "gmf", p_enter=0.5).retained:
            kept[name] += 1
    share = selection_frequency(table, "edss", names, "gmf", p_enter=0.5, rng=np.random.default_rng(4), n_resamples=R)
    assert share == pytest.approx({name: count / R for name, count in kept.items()})
    assert 0 < share["t2"] < 1


def test_coefficients_by_name(cohort: pd.DataFrame) -> None:
    X = np.column_stack([np.ones(90), cohort.tsc, cohort.gmf])
    fit = ols(X, cohort.edss, names=["intercept", "tsc", "gmf"])
    c = fit["tsc"]
    assert c.ci_low < 1.2 < c.ci_high
    assert c.df == 87
    with pytest.raises(KeyError):
        fit["age"]
    with pytest.raises(DataError, match="2 names for 3 columns"):
        ols(X, cohort.edss, names=["a", "b"])
    with pytest.raises(DataError, match="repeat"):
        ols(X, cohort.edss, names=["a", "b", "b"])
    assert np.isnan(fit.standardised[0])
    assert fit.test([[0, 1, 0], [0, 0, 1]]).p == pytest.approx(fit.f_p)
    with pytest.raises(DataError, match="expected"):
        fit.test([1.0, 2.0])
    with pytest.raises(DataError, match="zero"):
        fit.test([0.0, 0.0, 0.0])


def test_diagnostics_point_at_the_outlier(cohort: pd.DataFrame) -> None:
    y = cohort.edss.to_numpy(copy=True)
    y[17] += 12
    found = ols(np.column_stack([np.ones(90), cohort.tsc]), y).diagnostics()
    assert int(np.argmax(np.abs(found.studentised))) == 17
    assert found.outlier_p < 1e-6
    assert found.leverage.sum() == pytest.approx(2.0)
    assert np.isnan(found.vif[0])
    assert found.vif[1] == pytest.approx(1.0)


def test_a_row_of_its_own_has_no_studentised_residual() -> None:
    X = np.column_stack([np.ones(6), [1, 0, 0, 0, 0, 0]])
    fit = ols(X, [3.0, 1.0, 2.0, 1.5, 0.5, 1.2])
    assert np.isnan(fit.se_hc3).all()
    with pytest.raises(EstimationError, match="leverage one"):
        fit.diagnostics()
    with pytest.raises(EstimationError, match="row 1 of 6 alone"):
        bca(X, fit.y, rng=np.random.default_rng(0))


def test_a_model_without_constant_is_judged_about_zero() -> None:
    x = np.arange(1.0, 9.0)
    fit = ols(x[:, None], 2 * x + np.tile([0.1, -0.1], 4))
    assert fit.estimate[0] == pytest.approx(2.0, abs=0.01)
    assert fit.r2 > 0.999
    assert fit.df == 7


def test_bca_is_fast_and_covers() -> None:
    rng = np.random.default_rng(4)
    X = np.column_stack([np.ones(96), rng.normal(size=(96, 2))])
    y = X @ [1.0, 0.5, -0.2] + rng.exponential(size=96)
    bca(X, y, rng=rng, n_resamples=100)
    began = time.perf_counter()
    result = bca(X, y, rng=rng)
    assert time.perf_counter() - began < 3.0  # 0.02 s alone on the machine
    assert (result.ci_low < [2.0, 0.5, -0.2]).all()
    assert (result.ci_high > [2.0, 0.5, -0.2]).all()
    assert result.n_failed == 0
    assert (result.mc_sd_low < 0.1 * (result.ci_high - result.ci_low)).all()


def test_monte_carlo_error_is_the_error_seen() -> None:
    rng = np.random.default_rng(5)
    X = np.column_stack([np.ones(40), rng.normal(size=40)])
    y = X @ [1.0, 0.5] + rng.exponential(size=40)
    runs = [bca(X, y, rng=rng, n_resamples=2000) for _ in range(120)]
    for side, error in (("ci_low", "mc_sd_low"), ("ci_high", "mc_sd_high")):
        seen = np.std([getattr(run, side) for run in runs], axis=0)
        stated = np.mean([getattr(run, error) for run in runs], axis=0)
        np.testing.assert_allclose(stated, seen, rtol=0.35)


def test_bca_needs_whole_rows_for_given_indices() -> None:
    X, y = np.column_stack([np.ones(6), np.arange(6.0)]), [1.0, 2.0, np.nan, 3.0, 5.0, 4.0]
    indices = np.zeros((30, 6), dtype=int)
    with pytest.raises(DataError, match="no fixed meaning"):
        bca(X, y, indices=indices)
    with pytest.raises(DataError, match="expected whole"):
        bca(X, np.arange(6.0) ** 2, indices=np.zeros((30, 5), dtype=int))
    with pytest.raises(DataError, match="run from 0 to 6"):
        bca(X, np.arange(6.0) ** 2, indices=np.full((30, 6), 6) * (np.arange(6) > 2))
    with pytest.raises(EstimationError, match="collinear in 30 of 30"):
        bca(X, np.arange(6.0) ** 2, indices=indices)


def test_groups_without_rows_are_named(cohort: pd.DataFrame) -> None:
    with pytest.raises(EstimationError, match="HC 0"):
        group_means(cohort.edss, cohort.group, order=["HC", "CIS", "RRMS"])
    with pytest.raises(EstimationError, match="30 and 0 complete rows"):
        group_difference(cohort.edss, cohort.group == "CIS", cohort.group == "HC")
    with pytest.raises(DataError, match="belong to both"):
        group_difference(cohort.edss, cohort.group == "CIS", cohort.group == "CIS")


def test_group_means_choose_their_groups(cohort: pd.DataFrame) -> None:
    result = group_means(cohort.edss, cohort.group, cohort.gmf, order=["RRMS", "SPMS"], names=["gmf"])
    assert result.groups == ("RRMS", "SPMS")
    assert result.n.tolist() == [30, 30]
    assert result.n_missing == 0
    assert result.model.names == ("intercept", "SPMS", "gmf")


def test_proportional_odds_refuses_separation() -> None:
    x = np.arange(20.0)
    with pytest.raises(EstimationError, match="separate"):
        proportional_odds(x, x > 9)
    with pytest.raises(EstimationError, match="all 20 values"):
        proportional_odds(x, np.ones(20))
    with pytest.raises(EstimationError, match="collinear"):
        proportional_odds(np.column_stack([x, np.ones(20)]), np.tile([0, 1], 10))


def test_proportional_odds_recovers_its_truth() -> None:
    rng = np.random.default_rng(6)
    X = rng.normal(size=(800, 2))
    y = np.digitize(X @ [0.8, -0.4] + rng.logistic(size=800), [-2, -1, 0, 1, 2])
    fit = proportional_odds(X, y, names=["a", "b"])
    assert (np.abs(fit.estimate - [0.8, -0.4]) < 3 * fit.se).all()
    np.testing.assert_allclose(fit.thresholds, [-2, -1, 0, 1, 2], atol=0.35)
    assert fit.converged
