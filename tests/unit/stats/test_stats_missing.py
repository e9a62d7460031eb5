"""Missing values drawn and pooled, and the elastic net: laws, limits and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats.regression import elastic_net, impute, ols, pool


def table(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return columns a, b, y with y = 1 + 2 a - b + noise of one."""
    X = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], n)
    return np.column_stack([X, 1 + 2 * X[:, 0] - X[:, 1] + rng.normal(size=n)])


def test_what_is_seen_stays_and_what_is_drawn_was_seen() -> None:
    rng = np.random.default_rng(1)
    whole = table(60, rng)
    gappy = whole.copy()
    gappy[:12, 1] = np.nan
    drawn = impute(gappy, rng=rng, names=["a", "b", "y"], n_imputations=4)
    seen = ~np.isnan(gappy)
    for completed in drawn.values:
        np.testing.assert_allclose(completed[seen], gappy[seen], rtol=1e-12)
        assert all(np.isclose(value, gappy[12:, 1], rtol=1e-9).any() for value in completed[:12, 1])
    assert drawn.n_missing.tolist() == [0, 12, 0]
    assert np.ptp(drawn.values[:, :12, 1], axis=0).max() > 0  # between tables the draws differ


def test_the_same_seed_draws_the_same() -> None:
    gappy = table(50, np.random.default_rng(2))
    gappy[:9, 0] = np.nan
    first, second = (impute(gappy, rng=np.random.default_rng(7), n_imputations=2).values for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_columns_that_others_determine_are_left_out_and_named() -> None:
    rng = np.random.default_rng(3)
    X = table(50, rng)
    found = impute(np.column_stack([X, X[:, 0] + X[:, 1], np.ones(50)]), rng=rng, names=["a", "b", "y", "sum", "one"])
    assert found.names == ("a", "b", "y")
    assert found.left_out == ("sum", "one")


def test_too_few_observed_values_are_refused_with_their_number() -> None:
    X = table(30, np.random.default_rng(4))
    X[4:, 1] = np.nan
    with pytest.raises(
        EstimationError, match=r"imputation of b from 2 columns needs at least 5 complete rows, found 4"
    ):
        impute(X, rng=np.random.default_rng(0), names=["a", "b", "y"])


def test_a_row_without_any_value_is_refused() -> None:
    X = table(30, np.random.default_rng(4))
    X[3] = np.nan
    with pytest.raises(DataError, match="1 of 30 rows hold no value at all"):
        impute(X, rng=np.random.default_rng(0))


def test_pooling_complete_tables_changes_nothing() -> None:
    X = table(40, np.random.default_rng(5))
    fit = ols(np.column_stack([np.ones(40), X[:, :2]]), X[:, 2], names=["intercept", "a", "b"])
    both = pool([fit.estimate] * 5, [fit.se] * 5, df=fit.df)
    np.testing.assert_allclose(both.estimate, fit.estimate)
    np.testing.assert_allclose(both.se, fit.se)
    assert (both.missing_information == 0).all()
    # Barnard and Rubin's limit for complete data is (df + 1) / (df + 3) df
    np.testing.assert_allclose(both.df, fit.df * (fit.df + 1) / (fit.df + 3))


def test_rubins_rules_by_hand() -> None:
    both = pool([[1.0], [2.0], [3.0]], [[1.0], [1.0], [1.0]], df=1e9)
    total = 1.0 + (1 + 1 / 3) * 1.0
    share = (1 + 1 / 3) / total
    assert both.se[0] == pytest.approx(np.sqrt(total))
    assert both.missing_information[0] == pytest.approx(share)
    assert both.df[0] == pytest.approx(2 / share**2, rel=1e-6)
    with pytest.raises(DataError, match="2 tables or more"):
        pool([[1.0]], [[1.0]], df=10)


def test_pooled_intervals_cover_as_often_as_they_say() -> None:
    """A third of b missing, more where a is high: complete cases are unbiased too, but know less."""
    rng = np.random.default_rng(6)
    hits, shorter, runs = 0, 0, 40
    for _ in range(runs):
        X = table(90, rng)
        gone = rng.random(90) < 1 / (1 + np.exp(-0.5 * X[:, 0] + 0.8))
        gappy = X.copy()
        gappy[gone, 1] = np.nan
        drawn = impute(gappy, rng=rng, n_imputations=8, n_burnin=3, n_skip=1)
        fits = [ols(np.column_stack([np.ones(90), t[:, :2]]), t[:, 2]) for t in drawn.values]
        both = pool([f.estimate for f in fits], [f.se for f in fits], df=fits[0].df)
        hits += int(both.ci_low[1] <= 2.0 <= both.ci_high[1])
        here = ~gone
        complete = ols(np.column_stack([np.ones(here.sum()), gappy[here, :2]]), gappy[here, 2])
        shorter += int(both.se[1] < complete.se[1])
    assert hits >= 33  # 38 expected; fewer than 33 in 0.3 % of runs
    assert shorter > runs / 2


def test_elastic_net_finds_what_is_there_and_says_what_it_predicts() -> None:
    rng = np.random.default_rng(7)
    X, Z = rng.normal(size=(150, 6)), rng.normal(size=(150, 1))
    y = X[:, 1] + 2 * Z[:, 0] + rng.normal(size=150)
    fit = elastic_net(X, y, Z, rng=rng, names=list("abcdef"), n_repeats=2)
    assert np.argmax(np.abs(fit.estimate)) == 1
    assert 0.6 < fit.estimate[1] < 1.1
    assert fit.selected_share[1] == 1.0
    # unpenalised Z explains 4/6 of the variance, all terms 5/6
    assert fit.r2_forced == pytest.approx(4 / 6, abs=0.1)
    assert fit.r2_cv == pytest.approx(5 / 6, abs=0.06)


def test_cross_validated_r2_of_noise_is_not_positive() -> None:
    """In-sample R2 of seven columns of noise in 80 people is 0.09; nobody outside the sample sees that."""
    rng = np.random.default_rng(8)
    found = [elastic_net(rng.normal(size=(80, 7)), rng.normal(size=80), rng=rng, n_repeats=1).r2_cv for _ in range(6)]
    assert np.mean(found) < 0.02


def test_units_of_a_column_do_not_matter() -> None:
    rng = np.random.default_rng(9)
    X = rng.normal(size=(60, 3))
    y = X[:, 0] + rng.normal(size=60)
    a, b = (elastic_net(X * s, y, rng=np.random.default_rng(0), n_repeats=1) for s in (1.0, [1000.0, 1.0, 1e-3]))
    np.testing.assert_allclose(a.estimate, b.estimate * [1000.0, 1.0, 1e-3], rtol=1e-6, atol=1e-9)
    assert a.r2_cv == pytest.approx(b.r2_cv)


def test_elastic_net_refuses_what_it_cannot_tell() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2))
    with pytest.raises(EstimationError, match="all 40 values of the outcome equal 3"):
        elastic_net(X, np.full(40, 3.0), rng=rng)
    with pytest.raises(EstimationError, match="b does not vary in 40 rows"):
        elastic_net(X * [1.0, 0.0], X[:, 0], rng=rng, names=["a", "b"])
    with pytest.raises(EstimationError, match="needs at least 20 complete rows, found 15"):
        elastic_net(X[:15], X[:15, 0], rng=rng)
    gappy = X.copy()
    gappy[:3, 0] = np.nan
    assert elastic_net(gappy, X[:, 1] + rng.normal(size=40), rng=rng, n_repeats=1).n_missing == 3
