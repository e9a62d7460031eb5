"""The size of a trial is the smallest that reaches its power, as statsmodels and a simulation find it."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.power import TTestIndPower

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats.comparisons import trial_size


@pytest.mark.parametrize("d", [0.2, 0.5, 0.9, 1.7])
@pytest.mark.parametrize(("power", "alpha"), [(0.8, 0.05), (0.9, 0.01)])
def test_sizes_are_those_of_statsmodels(d: float, power: float, alpha: float) -> None:
    size = trial_size(d, 1.0, sd_df=50, power=power, alpha=alpha)
    expected = TTestIndPower().solve_power(effect_size=d, alpha=alpha, power=power)
    assert size.n_per_arm == int(np.ceil(expected - 1e-6))
    assert size.power == pytest.approx(TTestIndPower().power(d, size.n_per_arm, alpha), abs=1e-6)
    assert size.power >= power


def test_a_large_effect_needs_few_people() -> None:
    sizes = [trial_size(d, 1.0, sd_df=3).n_per_arm for d in (3.0, 4.0, 6.0, 8.0, 12.0, 40.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 2
    size = trial_size(6.0, 1.0, sd_df=3, power=0.9)
    assert size.n_low <= size.n_per_arm <= size.n_high


def test_a_simulated_trial_of_that_size_has_that_power() -> None:
    size = trial_size(6.0, 10.0, sd_df=30, baseline_correlation=0.6)
    rng = np.random.default_rng(0)
    n, found = size.n_per_arm, 0
    arm = np.repeat([0.0, 1.0], n)
    for _ in range(2000):
        baseline = rng.normal(size=2 * n)
        y = 10.0 * (0.6 * baseline + np.sqrt(1 - 0.36) * rng.normal(size=2 * n)) + 6.0 * arm
        X = np.column_stack([np.ones(2 * n), arm, baseline])
        beta, rss = np.linalg.lstsq(X, y, rcond=None)[:2]
        se = np.sqrt(rss[0] / (2 * n - 3) * np.linalg.inv(X.T @ X)[1, 1])
        found += abs(beta[1] / se) > 1.99
    assert found / 2000 == pytest.approx(size.power, abs=0.04)


def test_an_uncertain_spread_makes_the_size_uncertain() -> None:
    few, many = trial_size(5.0, 10.0, sd_df=8), trial_size(5.0, 10.0, sd_df=800)
    assert few.n_low < many.n_low <= few.n_per_arm == many.n_per_arm <= many.n_high < few.n_high


def test_those_who_drop_out_are_recruited_too() -> None:
    size = trial_size(5.0, 10.0, sd_df=20, dropout=0.2)
    assert size.n_recruited == int(np.ceil(2 * size.n_per_arm / 0.8 - 1e-9))


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(EstimationError, match="effect of 0"):
        trial_size(0.0, 1.0, sd_df=10)
    with pytest.raises(EstimationError, match="ten million"):
        trial_size(1e-5, 1.0, sd_df=10)
    for wrong in ({"power": 1.0}, {"alpha": 0.0}, {"baseline_correlation": 1.0}, {"dropout": 1.0}):
        with pytest.raises(DataError):
            trial_size(1.0, 1.0, sd_df=10, **wrong)
    with pytest.raises(DataError, match="standard deviation"):
        trial_size(1.0, 0.0, sd_df=10)
