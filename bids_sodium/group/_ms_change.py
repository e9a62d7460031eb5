"""Change of concentrations over repeated sessions: mmol/L a year in every group, by mixed models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group._ms_view import TSC_COVARIATE, Known, MsParams, View, label
from bids_sodium.group.results import Analysis, Ledger, listing, plural
from bids_sodium.group.rows import numeric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["change"]

_DAYS_A_YEAR = 365.25
_SLOPES = 10  # fewest people with three sessions before slopes may differ between people


def change(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """TSC against time by group, all sessions of all people in one model a tissue."""
    del rng, known
    visits, source = _visits(view, p)
    columns = [c for c in TSC_COVARIATE if c in visits]
    for variable in columns:
        with ledger.part(variable):
            start = len(ledger)
            _slopes(p, ledger, visits, variable)
            ledger.adjust(start)
    ids = ["participant_id", "session_id", "group", "time_years"]
    points = visits.melt(id_vars=ids, value_vars=columns, var_name="tissue", value_name="tsc_mmol_l").dropna()
    people = visits["participant_id"].nunique()
    return ledger.close(
        data={"points": points},
        text=f"Concentrations of {plural(len(visits), 'session')} of {plural(people, 'participant')} were fitted "
        f"against time (from {source}) with group, time x group and the tissue fraction, and a random intercept of the "
        "person, also a random slope where enough people have three sessions (REML, Kenward-Roger).",
    )


def _visits(view: View, p: MsParams) -> tuple[pd.DataFrame, str]:
    """Return one row a session with its time after the person's first, and where the time comes from."""
    from bids_sodium.group.rows import TISSUE_COLUMN

    rows = view.long[view.long["tissue"].isin(TISSUE_COLUMN)]
    rows = rows[rows["method"] == view.method] if view.method else rows
    rows = rows[rows["participant_id"].isin(view.people.index)]
    if "session_id" not in rows or int((rows.groupby("participant_id")["session_id"].nunique() > 1).sum()) == 0:
        raise DataError("nobody has more than one session: there is no change to see")
    rows = rows.assign(tsc_mmol_l=numeric(rows["tsc_mmol_l"], where="column tsc_mmol_l"))
    keys = ["participant_id", "session_id"]
    sessions = rows.drop_duplicates(keys)
    years, source = _years(sessions, p)
    wide = rows.pivot_table(index=keys, columns="tissue", values="tsc_mmol_l", aggfunc="first")
    wide = wide.rename(columns=lambda t: TISSUE_COLUMN[str(t)])
    wide["years"] = years.set_axis(list(zip(sessions["participant_id"], sessions["session_id"], strict=True)))
    wide = wide[wide["years"].notna()].reset_index()
    wide.columns.name = None
    wide["time_years"] = wide["years"] - wide.groupby("participant_id")["years"].transform("min")
    for name in dict.fromkeys(("group", *TSC_COVARIATE.values())):
        if name in view.people:
            wide[name] = wide["participant_id"].map(view.people[name])
    return wide.drop(columns="years"), source


def _years(sessions: pd.DataFrame, p: MsParams) -> tuple[pd.Series, str]:
    """Return the time of every session in years, and the column it comes from."""
    import pandas as pd

    wanted = ("time_years", "acq_time", "age") if p.time == "auto" else (p.time,)
    for name in wanted:
        if name not in sessions or not sessions[name].notna().any():
            continue
        if name == "acq_time":
            stamps = pd.to_datetime(sessions[name].replace("n/a", None), errors="coerce", format="ISO8601", utc=True)
            years = (stamps - stamps.min()).dt.total_seconds() / 86400.0 / _DAYS_A_YEAR
        else:
            years = numeric(sessions[name], where=f"column {name}")
        if (years.groupby(sessions["participant_id"]).nunique() > 1).any():
            return years, name
    raise DataError(
        f"no column of {listing(wanted)} varies between the sessions of a person: when they were is not known"
    )


def _slopes(p: MsParams, ledger: Ledger, visits: pd.DataFrame, variable: str) -> None:
    from bids_sodium.stats.comparisons import mixed

    covariate = TSC_COVARIATE[variable]
    if covariate not in visits:
        raise DataError(f"no column {covariate}")
    rows = visits[visits[variable].notna() & visits[covariate].notna()]
    count = rows.groupby("participant_id")["time_years"].count()
    many = rows[rows["participant_id"].isin(count.index[count > 1])]
    size = many.groupby("group")["participant_id"].nunique()
    groups = [g for g in (p.controls, p.cis, *p.ms_groups) if size.get(g, 0) >= p.minimum_group]
    if not groups:
        told = listing(f"{g} {n}" for g, n in size.items()) or "none"
        raise EstimationError(f"people with several sessions: {told}; {p.minimum_group} of a group are needed")
    rows = rows[rows["group"].isin(groups)]
    t, k = rows["time_years"].to_numpy(dtype=np.float64), len(groups)
    dummies = (rows["group"].to_numpy()[:, None] == np.array(groups)).astype(float)
    fraction = rows[covariate].to_numpy(dtype=np.float64)
    # every group has its own level and slope, so that the slopes are coefficients
    X = np.column_stack([dummies, dummies * t[:, None], fraction - fraction.mean()])
    names = (*groups, *(f"{g} x year" for g in groups), covariate)
    thrice = int((rows.groupby("participant_id")["time_years"].count() > 2).sum())
    random = np.column_stack([np.ones(len(rows)), t]) if thrice >= _SLOPES else None
    fit = mixed(
        rows[variable].to_numpy(dtype=np.float64),
        X,
        rows["participant_id"].to_numpy(),
        names=names,
        random=random,
        confidence=p.confidence,
    )
    L = np.zeros((k + k * (k - 1) // 2, len(names)))
    terms = []
    for i, group in enumerate(groups):
        L[i, k + i] = 1.0
        terms.append(f"change a year, {group}")
    line = k
    for j in range(k):
        for i in range(j):
            L[line, k + j], L[line, k + i] = 1.0, -1.0
            terms.append(f"change a year, {groups[j]} - {groups[i]}")
            line += 1
    shared: dict[str, Any] = {
        "model": f"group + time x group + {covariate} + ({'1' if random is None else '1 + time'} | person)",
        "subset": listing(f"{g} {int(size[g])}" for g in groups),
        "outcome": label(variable).replace("(mmol/L)", "(mmol/L a year)"),
        "method": "REML, Kenward-Roger; Holm over the terms",
    }
    span = float(many["time_years"].max())
    note = f"{plural(fit.n_groups, 'participant')}, up to {span:.2g} years; residual SD {fit.sigma:.3g} mmol/L"
    ledger.add_contrasts(fit, terms, L, shared, note=note)
