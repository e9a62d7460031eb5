"""Comparisons and correlations: paired, ranked, repeated and mixed, each with its exact or small-sample inference.

Two measures, one value a subject: `spearman`, `agreement`, `paired`, `signed_rank`. Raters: `intraclass`,
`bland_altman`. Several values a subject: `rmcorr`, `repeated_anova` (complete tables) and `mixed` (any table). Groups:
`rank_sum`, `kruskal_wallis`, `one_way`, `fisher_exact`. Many tests at once: `adjust`. A trial to come: `trial_size`.
Incomplete rows are left out, and every result counts them.
"""

from __future__ import annotations

from bids_sodium.stats._counts import FisherExact, fisher_exact
from bids_sodium.stats._mixed import FTest, Mixed, MixedContrast, mixed
from bids_sodium.stats._multiplicity import adjust
from bids_sodium.stats._paired import Agreement, PairedComparison, agreement, paired
from bids_sodium.stats._planning import TrialSize, trial_size
from bids_sodium.stats._ranks import (
    KruskalWallis,
    RankSum,
    SignedRank,
    Spearman,
    kruskal_wallis,
    rank_sum,
    signed_rank,
    spearman,
)
from bids_sodium.stats._raters import BlandAltman, Intraclass, bland_altman, intraclass
from bids_sodium.stats._repeated import (
    Anova,
    AnovaEffect,
    RepeatedAnova,
    RepeatedCorrelation,
    one_way,
    repeated_anova,
    rmcorr,
)

__all__ = [
    "Agreement",
    "Anova",
    "AnovaEffect",
    "BlandAltman",
    "FTest",
    "FisherExact",
    "Intraclass",
    "KruskalWallis",
    "Mixed",
    "MixedContrast",
    "PairedComparison",
    "RankSum",
    "RepeatedAnova",
    "RepeatedCorrelation",
    "SignedRank",
    "Spearman",
    "TrialSize",
    "adjust",
    "agreement",
    "bland_altman",
    "fisher_exact",
    "intraclass",
    "kruskal_wallis",
    "mixed",
    "one_way",
    "paired",
    "rank_sum",
    "repeated_anova",
    "rmcorr",
    "signed_rank",
    "spearman",
    "trial_size",
]
