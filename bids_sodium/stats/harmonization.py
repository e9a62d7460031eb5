"""Sites: in the model, out of the data, or by exchange of summaries.

`site_effect` keeps sites in the model (the default for regional sodium), `combat` takes them out of many features,
`meta_analysis` combines sites that share estimates only, `moments` and `fit_moments` sites that share cross-products.
"""

from __future__ import annotations

from bids_sodium.stats._combat import Harmonised, combat
from bids_sodium.stats._meta import MetaAnalysis, Moments, PooledModel, fit_moments, meta_analysis, moments, with_sites
from bids_sodium.stats._sites import (
    HeteroscedasticSites,
    PerSite,
    SiteEffect,
    heteroscedastic_sites,
    per_site,
    site_effect,
)

__all__ = [
    "Harmonised",
    "HeteroscedasticSites",
    "MetaAnalysis",
    "Moments",
    "PerSite",
    "PooledModel",
    "SiteEffect",
    "combat",
    "fit_moments",
    "heteroscedastic_sites",
    "meta_analysis",
    "moments",
    "per_site",
    "site_effect",
    "with_sites",
]
