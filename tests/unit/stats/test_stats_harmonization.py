"""Sites: refusals, what sites cannot say, and summaries that stand for rows."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats.harmonization import (
    combat,
    fit_moments,
    heteroscedastic_sites,
    meta_analysis,
    moments,
    per_site,
    site_effect,
)


def test_combat_names_its_sites_and_refuses_strangers() -> None:
    rng = np.random.default_rng(0)
    Y, site = rng.normal(size=(40, 5)), np.repeat(["b", "a"], 20)
    result = combat(Y, site)
    assert result.sites == ("a", "b")
    assert result.n_per_site.tolist() == [20, 20]
    assert result.shift.shape == (2, 5)
    assert np.abs(result.shift).mean() < np.abs(result.shift_raw).mean()
    with pytest.raises(DataError, match="not among the sites a, b"):
        combat(Y, site, reference="c")
    with pytest.raises(EstimationError, match="1 of 5 features do not vary at site a"):
        combat(np.where((site == "a")[:, None] & (np.arange(5) == 2), 1.0, Y), site)
    with pytest.raises(EstimationError, match="at least 2 sites and 2 features"):
        combat(Y[:, :1], site)


def test_mean_only_leaves_the_spread_of_each_site() -> None:
    rng = np.random.default_rng(1)
    Y, site = rng.normal(size=(60, 6)), np.repeat(["a", "b"], 30)
    Y[30:] = 3 * Y[30:] + 5
    after = combat(Y, site, mean_only=True).values
    np.testing.assert_allclose(after[30:].std(axis=0), Y[30:].std(axis=0), rtol=1e-9)


def test_a_site_that_cannot_estimate_says_why() -> None:
    rng = np.random.default_rng(2)
    site = np.array([*"aaaaaaaaaabbbbbbbbbb", "c", "c"])
    dx = np.array([*([0.0, 1.0] * 10), 1.0, 1.0])
    y = rng.normal(size=22)
    X = np.column_stack([np.ones(22), dx])
    rows = per_site(y, X, site, term="dx", names=["one", "dx"])
    assert [row.reason == "" for row in rows] == [True, True, False]
    assert "complete rows" in rows[2].reason
    assert np.isnan(rows[2].estimate)
    effect = site_effect(y, X, site, term="dx", names=["one", "dx"])
    assert effect.interaction_df_numerator == 1
    assert effect.n_sites == 3
    combined = meta_analysis([row.estimate for row in rows], [row.se for row in rows])
    assert (combined.n_sites, combined.n_missing) == (2, 1)


def test_site_effect_asks_for_what_it_needs() -> None:
    X, y = np.column_stack([np.ones(12), np.tile([0.0, 1.0], 6)]), np.arange(12.0) ** 2
    with pytest.raises(DataError, match="no term 'age'"):
        site_effect(y, X, list("aabb" * 3), term="age", names=["one", "dx"])
    with pytest.raises(DataError, match="unknown kind"):
        site_effect(y, X, list("aabb" * 3), term="dx", names=["one", "dx"], sites="mixed")
    with pytest.raises(EstimationError, match="come from 1 site"):
        site_effect(y, X, ["a"] * 12, term="dx", names=["one", "dx"])


def test_noisy_sites_count_less() -> None:
    rng = np.random.default_rng(3)
    site = np.repeat(np.arange(5), 40)
    spread = np.repeat([1.0, 1.0, 1.0, 1.0, 12.0], 40)
    dx = np.tile([0.0, 1.0], 100)
    y = 2 * dx + spread * rng.normal(size=200)
    X = np.column_stack([np.ones(200), dx])
    weighted = heteroscedastic_sites(y, X, site, names=["one", "dx"])
    plain = site_effect(y, X, site, term="dx", names=["one", "dx"])
    assert weighted.se[1] < 0.5 * plain.se
    assert abs(weighted.estimate[1] - 2) < 3 * weighted.se[1]
    assert weighted.sigma[4] == pytest.approx(12, rel=0.3)


def test_moments_leave_out_incomplete_rows_and_must_fit() -> None:
    X = np.column_stack([np.ones(5), [1.0, 2.0, np.nan, 4.0, 5.0]])
    assert moments(X, [1.0, 2.0, 3.0, np.nan, 5.0]).n == 3
    with pytest.raises(DataError, match="expected one shape"):
        fit_moments([moments(np.ones((3, 1)), [1, 2, 3]), moments(np.ones((3, 2)), [1, 2, 3])])
    with pytest.raises(EstimationError, match="collinear"):
        fit_moments([moments(np.ones((6, 2)), np.arange(6.0))])


def test_meta_analysis_refuses_nonsense() -> None:
    with pytest.raises(DataError, match="standard errors run from 0"):
        meta_analysis([1.0, 2.0], [0.0, 1.0])
    with pytest.raises(DataError, match="unknown method"):
        meta_analysis([1.0, 2.0], [1.0, 1.0], method="eb")
    with pytest.raises(EstimationError, match="same estimate"):
        meta_analysis([1.0, 1.0], [1.0, 1.0])


def test_prediction_is_wider_than_confidence() -> None:
    result = meta_analysis([1.0, 4.0, -2.0, 3.0, 0.5], [0.5] * 5)
    assert result.tau2 > 0
    assert result.prediction_low < result.ci_low < result.estimate < result.ci_high < result.prediction_high
    assert 0 < result.i2 < 100
