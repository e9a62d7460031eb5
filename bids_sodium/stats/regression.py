"""Linear and ordinal regression: fit, select, bootstrap, compare groups.

Designs are NumPy arrays with their own column of ones. `ols` fits, `backward` eliminates, `bca` bootstraps,
`group_difference` and `group_means` compare groups at equal covariates, `proportional_odds` orders levels,
`elastic_net` shrinks, `impute` and `pool` stand in for missing values.
"""

from __future__ import annotations

from bids_sodium.stats._backward import (
    Elimination,
    EliminationStep,
    TermTest,
    backward,
    backward_moments,
    selection_frequency,
)
from bids_sodium.stats._bootstrap import Bca, bca
from bids_sodium.stats._groups import GroupContrast, GroupDifference, GroupMeans, group_difference, group_means
from bids_sodium.stats._imputation import Imputed, Pooled, impute, pool
from bids_sodium.stats._ols import Coefficient, Diagnostics, LinearTest, Ols, ols
from bids_sodium.stats._ordinal import ProportionalOdds, proportional_odds
from bids_sodium.stats._penalised import Penalised, elastic_net

__all__ = [
    "Bca",
    "Coefficient",
    "Diagnostics",
    "Elimination",
    "EliminationStep",
    "GroupContrast",
    "GroupDifference",
    "GroupMeans",
    "Imputed",
    "LinearTest",
    "Ols",
    "Penalised",
    "Pooled",
    "ProportionalOdds",
    "TermTest",
    "backward",
    "backward_moments",
    "bca",
    "elastic_net",
    "group_difference",
    "group_means",
    "impute",
    "ols",
    "pool",
    "proportional_odds",
    "selection_frequency",
]
