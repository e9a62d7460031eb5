"""Linear and ordinal regression: fit, select, bootstrap, compare groups.

Designs are NumPy arrays with their own column of ones. `ols` fits, `backward` eliminates, `bca` bootstraps,
`group_difference` and `group_means` compare groups at equal covariates, `proportional_odds` orders levels.
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
from bids_sodium.stats._ols import Coefficient, Diagnostics, LinearTest, Ols, ols
from bids_sodium.stats._ordinal import ProportionalOdds, proportional_odds

__all__ = [
    "Bca",
    "Coefficient",
    "Diagnostics",
    "Elimination",
    "EliminationStep",
    "GroupContrast",
    "GroupDifference",
    "GroupMeans",
    "LinearTest",
    "Ols",
    "ProportionalOdds",
    "TermTest",
    "backward",
    "backward_moments",
    "bca",
    "group_difference",
    "group_means",
    "ols",
    "proportional_odds",
    "selection_frequency",
]
