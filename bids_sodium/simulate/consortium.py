"""What makes a cohort a consortium: follow-up, travelling people, regions of an atlas, missing scores.

`consortium` adds them to the table of `bids_sodium.simulate.cohort.ms_cohort`, with their truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.core.errors import DataError
from bids_sodium.simulate.cohort import Cohort

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ConsortiumParams", "consortium"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsortiumParams:
    """What is added to a cohort."""

    visits_years: tuple[float, ...] = (0.0,)
    """Times of the sessions after the first, in years."""

    change_mmol_l_year: tuple[tuple[str, float], ...] = (("HC", 0.0), ("CIS", 0.1), ("RRMS", 0.4), ("SPMS", 0.8))
    """Mean change of every concentration by group, in mmol/L a year."""

    change_sd_mmol_l_year: float = 0.2
    """Its standard deviation between people, in mmol/L a year."""

    visit_sd_mmol_l: float = 0.8
    """Standard deviation of one session about a person's line, in mmol/L: 2 % of 40 (Riemer 2019: 2-4 %)."""

    site_factors: tuple[tuple[str, float], ...] = ()
    """Site and the factor by which it reads every concentration."""

    travellers: int = 0
    """Healthy controls who are scanned at every site."""

    n_regions: int = 0
    """Regions of an atlas."""

    region_sd_mmol_l: float = 3.0
    """Standard deviation of a region between people of a group, in mmol/L."""

    region_site_sd_mmol_l: float = 2.0
    """Standard deviation of what a site adds to a region, in mmol/L."""

    region_effect_mmol_l: float = 2.0
    """What SPMS adds to the first half of the regions, in mmol/L; half of it in RRMS."""

    missing_share: float = 0.0
    """Share of the cognitive scores that are missing, the more of them the higher the EDSS."""


def consortium(
    cohort: Cohort, rng: np.random.Generator, params: ConsortiumParams | None = None, *, visits: bool = True
) -> Cohort:
    """Return a cohort with follow-up, travelling people, regions and gaps.

    Parameters
    ----------
    cohort : Cohort
        From `bids_sodium.simulate.cohort.ms_cohort`.
    rng : numpy.random.Generator
        Source of randomness.
    params : ConsortiumParams, optional
        What is added.
    visits : bool
        Whether further sessions are added.

    Returns
    -------
    Cohort
        Rows with ``session_id`` and ``time_years`` where there are several sessions; the truth gains ``change``
        (level group), ``site_factor`` (level site) and ``region_effect`` (level ``region:group``).

    Raises
    ------
    DataError
        If a factor is given for a site that the cohort does not have.

    Examples
    --------
    >>> from bids_sodium.simulate.cohort import ms_cohort
    >>> rng = np.random.default_rng(1)
    >>> grown = consortium(ms_cohort(rng), rng, ConsortiumParams(visits_years=(0.0, 2.0)))
    >>> sorted(grown.table["session_id"].unique()), grown.true("change", "SPMS")
    (['ses-01', 'ses-02'], 0.8)
    """
    import pandas as pd

    p = params or ConsortiumParams()
    table = cohort.table.copy()
    sites = sorted(table["site"].unique())
    unknown = sorted({site for site, _ in p.site_factors} - set(sites))
    if unknown:
        raise DataError(f"factors of {', '.join(unknown)}, sites are {', '.join(sites)}", where="consortium")
    truth: list[tuple[str, str, float, str]] = []
    if p.n_regions:
        extra, effects = _regions(table, rng, p)
        table, truth = pd.concat([table, extra], ignore_index=True), [*truth, *effects]
    if p.missing_share > 0:
        table = _with_gaps(table, rng, p.missing_share)
    if visits and len(p.visits_years) > 1:
        table = _followed(table, rng, p)
        truth += [("change", group, value, "mmol/L/year") for group, value in p.change_mmol_l_year]
    if p.travellers:
        table = _travelled(table, rng, p, sites)
    factors = dict.fromkeys(sites, 1.0) | dict(p.site_factors)
    table["tsc_mmol_l"] = table["tsc_mmol_l"] * table["site"].map(factors)
    truth += [("site_factor", site, value, "1") for site, value in factors.items()]
    more = pd.DataFrame(truth, columns=["parameter", "level", "value", "unit"])
    return Cohort(table=table, truth=pd.concat([cohort.truth, more], ignore_index=True))


def _regions(
    table: pd.DataFrame, rng: np.random.Generator, p: ConsortiumParams
) -> tuple[pd.DataFrame, list[tuple[str, str, float, str]]]:
    """Return rows of an atlas and the effects of the diagnosis on its regions."""
    import pandas as pd

    people = table[(table["tissue"] == "CGM") & (table["method"] == "glm")].reset_index(drop=True)
    sites, code = np.unique(people["site"].astype(str), return_inverse=True)
    shift = rng.normal(0.0, p.region_site_sd_mmol_l, (len(sites), p.n_regions))
    level = rng.uniform(34.0, 44.0, p.n_regions)
    grade = people["group"].map({"RRMS": 0.5, "SPMS": 1.0}).fillna(0.0).to_numpy()
    own = rng.normal(size=len(people))
    truth: list[tuple[str, str, float, str]] = []
    parts = []
    for r in range(p.n_regions):
        effect = p.region_effect_mmol_l if r < p.n_regions // 2 else 0.0
        name = f"roi{r + 1:03d}"
        truth += [("region_effect", f"{name}:{g}", effect * w, "mmol/L") for g, w in (("RRMS", 0.5), ("SPMS", 1.0))]
        noise = np.sqrt(0.5) * own + np.sqrt(0.5) * rng.normal(size=len(people))
        value = level[r] + shift[code, r] + effect * grade + p.region_sd_mmol_l * noise
        parts.append(people.assign(tissue=name, tsc_mmol_l=value))
    return pd.concat(parts, ignore_index=True), truth


def _with_gaps(table: pd.DataFrame, rng: np.random.Generator, share: float) -> pd.DataFrame:
    people = table.drop_duplicates("participant_id").set_index("participant_id")
    rank = people["edss"].rank(pct=True).fillna(0.0)
    out = table.copy()
    for name in ("z_pasat", "z_sdmt", "z_brixton", "z_hayling", "z_verbal", "z_visual", "nart_iq"):
        gone = people.index[rng.random(len(people)) < 2.0 * share * rank]
        out.loc[out["participant_id"].isin(gone), name] = np.nan
    return out


def _followed(table: pd.DataFrame, rng: np.random.Generator, p: ConsortiumParams) -> pd.DataFrame:
    """Return every row at every visit; the tissues of a session move together."""
    import pandas as pd

    people = table["participant_id"].unique()
    group = table.drop_duplicates("participant_id").set_index("participant_id")["group"]
    mean = group.map(dict(p.change_mmol_l_year)).fillna(0.0)
    slope = mean + rng.normal(0.0, p.change_sd_mmol_l_year, len(people))
    parts = []
    for v, years in enumerate(p.visits_years, start=1):
        moved: Any = slope * years + rng.normal(0.0, p.visit_sd_mmol_l, len(people))
        session = table.assign(session_id=f"ses-{v:02d}", time_years=years)
        session["tsc_mmol_l"] = session["tsc_mmol_l"] + session["participant_id"].map(moved)
        parts.append(session)
    return pd.concat(parts, ignore_index=True)


def _travelled(table: pd.DataFrame, rng: np.random.Generator, p: ConsortiumParams, sites: list[str]) -> pd.DataFrame:
    """Return the table with further sessions of some controls at the sites that are not theirs."""
    import pandas as pd

    who = table.loc[table["group"] == "HC", "participant_id"].drop_duplicates().head(p.travellers)
    parts = [table]
    for name in who:
        rows = table[table["participant_id"] == name]
        first = rows[rows["session_id"] == rows["session_id"].min()]
        for site in sites:
            if site != first["site"].iloc[0]:
                again = first.assign(site=site, session_id=f"ses-at{site}")
                again["tsc_mmol_l"] = again["tsc_mmol_l"] + rng.normal(0.0, p.visit_sd_mmol_l)
                parts.append(again)
    return pd.concat(parts, ignore_index=True)
