"""Trials to come: how many people the spread of this cohort asks for. Shared by both studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_sodium.core.errors import ConfigError
from bids_sodium.group.results import Ledger

__all__ = ["TrialParams", "add_sizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialParams:
    """The trial that is planned."""

    power: tuple[float, ...] = (0.8, 0.9)
    """Powers at which sizes are given."""

    alpha: float = 0.05
    """Two-sided level of the trial's test."""

    stroke_effects: tuple[float, ...] = (5.0, 10.0, 20.0)
    """Effects on the change of a region, in percentage points."""

    ms_effects: tuple[float, ...] = (0.3, 0.5)
    """Effects on a concentration, as shares of the difference between the last and the first MS group, which a
    treatment would keep from coming about."""

    baseline_correlation: float = 0.0
    """Correlation of the outcome with its baseline that the analysis adjusts for; 0 where nobody knows it."""

    dropout: float = 0.1
    """Share of those recruited who do not finish."""

    def __post_init__(self) -> None:
        if not self.power or not all(0 < value < 1 for value in (*self.power, self.alpha)):
            raise ConfigError(f"power {self.power} and alpha {self.alpha}", hint="give numbers between 0 and 1")
        if not 0 <= self.dropout < 1 or not -1 < self.baseline_correlation < 1:
            raise ConfigError(
                f"dropout {self.dropout} and baseline_correlation {self.baseline_correlation}",
                hint="give a share below 1 and a correlation between -1 and 1",
            )


def add_sizes(
    ledger: Ledger,
    shared: dict[str, Any],
    *,
    effects: Sequence[tuple[str, float]],
    sd: float,
    sd_df: float,
    trial: TrialParams,
    confidence: float,
    note: str,
    n: int | None = None,
) -> None:
    """Add one row for each effect and power: people in each arm, with the interval that the spread leaves open.

    Parameters
    ----------
    ledger : Ledger
        Where the rows go.
    shared : dict
        Columns that all rows share.
    effects : sequence of (str, float)
        Words and size of each effect.
    sd, sd_df : float
        Standard deviation within an arm and its degrees of freedom.
    trial : TrialParams
        Power, level, correlation with the baseline, dropout.
    confidence : float
        Level of the interval.
    note : str
        Where the spread comes from.
    n : int, optional
        People whom it comes from; one more than its degrees of freedom where it is not given.
    """
    from bids_sodium.stats.comparisons import trial_size

    for words, effect in effects:
        for power in trial.power:
            with ledger.part(f"{shared.get('outcome', '')}, {shared.get('term', '')}{words}, power {power:g}"):
                size = trial_size(
                    effect,
                    sd,
                    sd_df=sd_df,
                    power=power,
                    alpha=trial.alpha,
                    baseline_correlation=trial.baseline_correlation,
                    dropout=trial.dropout,
                    confidence=confidence,
                )
                ledger.add(
                    **{**shared, "term": f"{shared.get('term', '')}{words}, power {100 * power:g} %"},
                    model="people in each of two arms",
                    estimate=size.n_per_arm,
                    ci_low=size.n_low,
                    ci_high=size.n_high,
                    df=sd_df,
                    n=int(np.floor(sd_df)) + 1 if n is None else n,
                    method=f"two-sided t at {trial.alpha:g}, noncentral; interval from that of the standard deviation",
                    note=f"SD {size.sd:.3g} {note}; recruit {size.n_recruited} for both arms with "
                    f"{100 * trial.dropout:g} % dropping out"
                    + (
                        f"; baseline correlation {trial.baseline_correlation:g} assumed"
                        if trial.baseline_correlation
                        else ""
                    ),
                )
