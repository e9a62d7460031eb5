"""Sites of a consortium: in the model, in a meta-analysis, taken out of many regions, made equal by travelling people.

A difference between groups is only ever read within sites. Where two groups never meet at one site it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import ConfigError, DataError, EstimationError
from bids_sodium.group._ms_view import TSC_COVARIATE, Known, MsParams, View, course_pairs, label, too_few, without
from bids_sodium.group.results import Analysis, Ledger, listing, plural, taken

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.image.scanners import ScannerFactor
    from bids_sodium.stats.harmonization import SiteEffect

__all__ = ["add_meta", "meta", "regions", "sites", "travelled"]

_VARIABLES = ("tsc_cgm", "tsc_dgm", "tsc_nawm")
_BRAIN = ("CGM", "DGM", "GM", "NAWM", "WM")


def _several(view: View) -> None:
    if "site" not in view.people or view.people["site"].nunique() < 2:
        raise DataError("one site, or no column site: there is nothing to adjust for")


def _counts(view: View, p: MsParams) -> pd.DataFrame:
    """Return how many of each group every site has."""
    import pandas as pd

    counts = pd.crosstab(view.people["site"], view.people["group"])
    order = [g for g in (p.controls, p.cis, *p.ms_groups) if g in counts]
    counts = counts[[*order, *(g for g in counts if g not in order)]].reset_index()
    counts.columns.name = None
    return counts


def _pairs(p: MsParams) -> list[tuple[str, str]]:
    return [("MS", p.controls), *course_pairs(p)]


def _design(
    view: View, p: MsParams, variable: str, pair: tuple[str, str], covariates: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.str_], tuple[str, ...]]:
    """Return outcome, design and site of the complete rows of two groups, and the names of the design.

    Raises
    ------
    EstimationError
        If the groups never meet at one site.
    """
    absent = [c for c in covariates if c not in view.people]
    if absent:
        raise DataError(without(absent))
    reason = too_few(view, p, variable, pair)
    if reason:
        raise EstimationError(reason)
    first, second = pair
    a, b = view.members(first, p), view.members(second, p)
    used = (a | b) & view.people["site"].notna().to_numpy() & ~np.isnan(view.column(variable))
    for name in covariates:
        used &= ~np.isnan(view.column(name))
    site = view.people["site"].to_numpy()[used].astype(str)
    group = a[used].astype(float)
    names = sorted(set(site))
    if len(names) < 2:
        raise EstimationError(f"{plural(len(names), 'site')} with {first} or {second}; 2 are needed")
    tally = {s: (int(group[site == s].sum()), int((1 - group[site == s]).sum())) for s in names}
    if not any(one and other for one, other in tally.values()):
        told = "; ".join(f"{s}: {one} {first}, {other} {second}" for s, (one, other) in tally.items())
        raise EstimationError(f"{first} and {second} never meet at one site ({told}): site and group are confounded")
    more = [view.column(name)[used] for name in covariates]
    X = np.column_stack([np.ones(group.size), group, *(z - z.mean() for z in more)])
    return view.column(variable)[used], X, site, ("intercept", "group", *covariates)


def sites(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Whether sites change the group differences: fixed effects of 2 to 4 sites, a random one of more."""
    del rng, known
    _several(view)
    data = {"counts": _counts(view, p)}
    if len(view.factors):
        data["factors"] = view.factors
    for site, rows in view.people.groupby("site"):
        groups = rows["group"].value_counts()
        if len(groups) == 1:
            ledger.skip(
                f"site {site}",
                f"{groups.iloc[0]} {groups.index[0]} only: it adds nothing to a difference between groups",
            )
    for variable in _VARIABLES:
        for pair in _pairs(p):
            with ledger.part(f"{variable}, {pair[0]} - {pair[1]}"):
                _site_row(view, p, ledger, variable, pair)
    without = int(view.people["site"].isna().sum())
    if without:
        ledger.skip("participants without a site", f"{without} of {len(view.people)}")
    return ledger.close(
        data=data,
        text="Group differences were fitted again with the site as a fixed effect (2 to 4 sites) or a random intercept "
        "(5 or more); where site and diagnosis go together, no difference is given."
        + (" Concentrations of the sites were first made equal, see the factors." if len(view.factors) else ""),
    )


def _site_row(view: View, p: MsParams, ledger: Ledger, variable: str, pair: tuple[str, str]) -> None:
    from bids_sodium.stats.comparisons import Mixed
    from bids_sodium.stats.harmonization import site_effect

    first, second = pair
    covariate = TSC_COVARIATE[variable]
    y, X, site, names = _design(view, p, variable, pair, (covariate,))
    effect = site_effect(y, X, site, term="group", names=names, confidence=p.confidence)
    shared: dict[str, Any] = {
        "subset": f"{first} and {second}, {plural(effect.n_sites, 'site')}",
        "outcome": label(variable),
    }
    term = f"{first} - {second}"
    if isinstance(effect.model, Mixed):
        shared |= {"model": f"group + {covariate} + (1 | site)", "method": "REML, Kenward-Roger"}
        note = f"SD between sites {effect.model.sd_random[0]:.3g} mmol/L{_interaction(effect)}"
        ledger.add_contrasts(effect.model, [term], np.array([[0.0, 1.0, 0.0]]), shared, note=note)
        return
    fit, k = effect.model, effect.n_sites
    test = fit.test(np.hstack([np.zeros((k - 1, len(names))), np.eye(k - 1)]))
    ledger.add(
        **shared,
        model=f"group + {covariate} + site (fixed)",
        term=term,
        **taken(fit["group"], "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
        n=fit.n,
        r2=fit.r2,
        null=0.0,
        method="linear regression",
        note=f"site effect F({test.df_numerator}, {test.df}) = {test.statistic:.3f}, p {test.p:.4g}"
        + _interaction(effect),
    )


def _interaction(effect: SiteEffect) -> str:
    if not np.isfinite(effect.interaction_p):
        return ""
    return (
        f"; the difference varies between sites F({effect.interaction_df_numerator}, {effect.interaction_df}) = "
        f"{effect.interaction_statistic:.3f}, p {effect.interaction_p:.4g}"
    )


def meta(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Each site's own estimate of the main differences, combined in two stages."""
    del rng, known
    import pandas as pd
    from scipy.stats import t as student

    from bids_sodium.stats.harmonization import per_site

    _several(view)
    forest: list[dict[str, Any]] = []
    for variable in _VARIABLES:
        for first, second in _pairs(p):
            with ledger.part(f"{variable}, {first} - {second}"):
                y, X, site, names = _design(view, p, variable, (first, second), (TSC_COVARIATE[variable],))
                found = per_site(y, X, site, term="group", names=names)
                rows = []
                for one in found:
                    if one.reason:
                        continue
                    half = float(student.ppf(0.5 + p.confidence / 2, one.df)) * one.se
                    limits = {"ci_low": one.estimate - half, "ci_high": one.estimate + half}
                    rows.append({"site": one.site, "n": one.n, "estimate": one.estimate, "se": one.se, **limits})
                missing = [f"{one.site}: {one.reason}" for one in found if one.reason]
                forest += add_meta(ledger, p, variable, f"{first} - {second}", rows=rows, missing=missing)
    ledger.adjust()
    return ledger.close(
        data={"forest": pd.DataFrame(forest)},
        text="Every site's own estimate was combined in two stages (REML, Hartung-Knapp); the last line of a forest "
        "plot is where a new site is expected.",
    )


def add_meta(
    ledger: Ledger,
    p: MsParams,
    variable: str,
    term: str,
    *,
    rows: Sequence[Mapping[str, Any]],
    missing: Sequence[str],
) -> list[dict[str, Any]]:
    """Add the combined estimate of several sites; return the lines of its forest plot.

    Parameters
    ----------
    ledger : Ledger
        Where the row goes.
    p : MsParams
        Level of the intervals.
    variable, term : str
        Outcome and difference.
    rows : sequence of mapping
        ``site n estimate se ci_low ci_high`` of every site that has an estimate.
    missing : sequence of str
        Sites without one, and why.
    """
    from bids_sodium.stats.harmonization import meta_analysis

    if len(rows) < 2:
        words = f"{plural(len(rows), 'site')} with an estimate of its own; 2 are needed"
        raise EstimationError("; ".join([words, *missing]))
    result = meta_analysis([row["estimate"] for row in rows], [row["se"] for row in rows], confidence=p.confidence)
    total = sum(int(row["n"]) for row in rows)
    ledger.add(
        model="random-effects meta-analysis",
        subset=term.replace(" - ", " and "),
        outcome=label(variable),
        term=term,
        **taken(result, "estimate", "se", "ci_low", "ci_high", "statistic", "p"),
        df=result.n_sites - 1,
        n=total,
        null=0.0,
        method="two stages, REML, Hartung-Knapp; Holm over all rows",
        note=f"{plural(result.n_sites, 'site')}; I2 {result.i2:.0f} %, tau {np.sqrt(result.tau2):.3g}; a new "
        f"site would lie within {result.prediction_low:.3g} to {result.prediction_high:.3g}"
        + (f"; without {'; '.join(missing)}" if missing else ""),
    )
    both = {"outcome": label(variable), "term": term, "n": total, "estimate": result.estimate, "se": result.se}
    limits = {"ci_low": result.prediction_low, "ci_high": result.prediction_high}
    return [
        *({"outcome": label(variable), "term": term, **row} for row in rows),
        {**both, "site": "all sites", "ci_low": result.ci_low, "ci_high": result.ci_high},
        {**both, "site": "a new site (prediction)", **limits},
    ]


def regions(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Regions of an atlas compared between groups, with sites in the model and, of many regions, after ComBat."""
    del rng, known
    import pandas as pd

    names = view.regions
    if not names:
        raise DataError("no region of an atlas in the table")
    # not in a model by themselves: a site that stands for a diagnosis must be refused here too
    several = "site" in view.people and view.people["site"].nunique() > 1
    for pair in _pairs(p):
        start = len(ledger)
        for name in names:
            with ledger.part(f"{name}, {pair[0]} - {pair[1]}"):
                _region_row(view, p, ledger, name, pair, sites_in=several)
        ledger.adjust(start, method="bh")
    data: dict[str, pd.DataFrame] = {}
    if several and p.combat != "off":
        with ledger.part("ComBat"):
            even, data["combat"], how = _even(view, p, names)
            for pair in _pairs(p):
                start = len(ledger)
                for name in names:
                    with ledger.part(f"{name}, {pair[0]} - {pair[1]}, ComBat"):
                        _region_row(even, p, ledger, name, pair, how=how, sites_in=False)
                ledger.adjust(start, method="bh")
            columns = ["group", "site", *names]
            data["harmonised"] = pd.DataFrame(even.people.loc[even.people[names[0]].notna(), columns]).reset_index()
    return ledger.close(
        data=data,
        text=f"{plural(len(names), 'region')} of an atlas were compared between groups, adjusted for "
        f"{listing(p.region_covariates) or 'nothing'}"
        + (" and the site" if several else "")
        + "; p values were adjusted over the regions by Benjamini and Hochberg's method.",
    )


def _region_row(
    view: View, p: MsParams, ledger: Ledger, name: str, pair: tuple[str, str], *, sites_in: bool, how: str = ""
) -> None:
    from bids_sodium.stats.comparisons import mixed
    from bids_sodium.stats.regression import group_difference, ols

    first, second = pair
    term = f"{first} - {second}"
    model = " + ".join(["group", *p.region_covariates])
    shared: dict[str, Any] = {"outcome": label(name), "subset": f"{first} and {second}"}
    over = "Benjamini-Hochberg over the regions"
    if sites_in:
        y, X, site, names = _design(view, p, name, pair, p.region_covariates)
        places = sorted(set(site))
        if len(places) >= 5:
            random = mixed(y, X, site, names=names, confidence=p.confidence)
            L = np.eye(len(names))[1:2]
            shared |= {"model": f"{model} + (1 | site)", "method": f"REML, Kenward-Roger; {over}"}
            ledger.add_contrasts(random, [term], L, shared, note=f"SD between sites {random.sd_random[0]:.3g} mmol/L")
            return
        dummies = (site[:, None] == np.array(places[1:])).astype(float)
        labels = (*names, *(f"site {s}" for s in places[1:]))
        fit = ols(np.column_stack([X, dummies]), y, names=labels, confidence=p.confidence)
        row, n, r2, model = fit["group"], fit.n, fit.r2, f"{model} + site (fixed)"
    else:
        reason = too_few(view, p, name, pair)
        absent = [c for c in p.region_covariates if c not in view.people]
        if reason or absent:
            raise EstimationError(reason or without(absent))
        covariates = np.column_stack([view.column(c) for c in p.region_covariates]) if p.region_covariates else None
        found = group_difference(
            view.column(name),
            view.members(first, p),
            view.members(second, p),
            covariates,
            names=p.region_covariates,
            confidence=p.confidence,
        )
        row, n, r2 = found.model["group"], found.n_first + found.n_second, found.model.r2
    ledger.add(
        **shared,
        model=f"{model}, {how}" if how else model,
        term=term,
        **taken(row, "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
        n=n,
        r2=r2,
        null=0.0,
        method=f"linear regression; {over}",
        note="the error does not know of the harmonisation" if how else "",
    )


def _even(view: View, p: MsParams, names: Sequence[str]) -> tuple[View, pd.DataFrame, str]:
    """Return the cohort with its regions freed of site effects by ComBat, these effects, and what was done.

    Raises
    ------
    EstimationError
        If regions or people of a site are too few.
    """
    from dataclasses import replace

    import pandas as pd

    from bids_sodium.stats.harmonization import combat

    if len(names) < p.combat_regions:
        raise EstimationError(
            f"{plural(len(names), 'region')}; ComBat learns its prior from {p.combat_regions} or more, the models with "
            "sites need no prior"
        )
    people = view.people
    covariates = [c for c in p.region_covariates if c in people]
    whole = people[[*names, *covariates, "site", "group"]].notna().all(axis=1)
    small = people.loc[whole, "site"].value_counts()
    small = small[small < p.combat_site]
    if len(small):
        told = listing(f"{site} {count}" for site, count in small.items())
        raise EstimationError(f"sites with fewer than {p.combat_site} complete participants: {told}")
    groups = people.loc[whole, "group"].astype(str)
    dummies = np.column_stack([groups == g for g in sorted(set(groups))[1:]]).astype(float)
    kept = np.column_stack([dummies, people.loc[whole, covariates].to_numpy(dtype=np.float64)])
    found = combat(
        people.loc[whole, list(names)].to_numpy(dtype=np.float64),
        people.loc[whole, "site"].astype(str).to_numpy(),
        kept,
        parametric=p.combat != "nonparametric",
        mean_only=p.combat == "mean-only",
        reference=p.combat_reference or None,
    )
    even = people.copy()
    even[list(names)] = np.nan
    even.loc[whole, list(names)] = found.values
    effects = [
        {
            "site": site,
            "n": int(found.n_per_site[i]),
            "region": name,
            "shift_mmol_l": found.shift[i, j] * found.pooled_sd[j],
            "shift_raw_mmol_l": found.shift_raw[i, j] * found.pooled_sd[j],
            "variance_ratio": found.scale[i, j],
        }
        for i, site in enumerate(found.sites)
        for j, name in enumerate(names)
    ]
    how = f"ComBat {p.combat}" + (f", reference {p.combat_reference}" if p.combat_reference else "")
    return replace(view, people=even), pd.DataFrame(effects), how


def travelled(
    table: pd.DataFrame, p: MsParams, scanners: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return the long table with sites made equal, the factors, and what was done.

    Factors come from a travelling phantom (``scanners`` or `MsParams.site_factors`), else from people scanned at
    several sites, whose concentrations must not depend on the site: log TSC = person and tissue + site, by weighted
    least squares over the brain tissues.

    Parameters
    ----------
    table : pandas.DataFrame
        Long table in the form of ``group_tsc.tsv``.
    p : MsParams
        Factors that are given, and whether travelling people are used.
    scanners : pandas.DataFrame, optional
        Table of a travelling phantom, see `bids_sodium.image.scanners.scanner_factors`.

    Raises
    ------
    ConfigError
        If factors are given twice, or for rows that the participant level has multiplied with one.
    DataError
        If a factor is given for a site that the table does not have, or a travelling phantom has not been to a site.
    EstimationError
        If the readings of the travelling phantom do not determine its factors.
    """
    import pandas as pd

    from bids_sodium.image.scanners import scanner_factors

    empty = pd.DataFrame(columns=["site", "factor", "se", "n", "source"])
    site = _named(table, "site")
    if p.site_factors or scanners is not None:
        if scanners is not None:  # as at the participant level, a scanner goes before its site
            site = _named(table, "scanner").fillna(site)
        factors = _phantom(table, site, p, scanners)
        words = f"concentrations of {plural(len(factors), 'site')} were multiplied with the factors given"
    elif site.nunique() < 2:
        return table, empty, []
    else:
        rows, who = _readings(table, site, p.method) if p.travelling else ([], 0)
        if who == 0:
            return table, empty, []
        if who < p.travelling_people:
            few = f"{who} people scanned at several sites; {p.travelling_people} are needed to compare these"
            return table, empty, [few]
        try:
            factors = scanner_factors(rows, where="people scanned at several sites")
        except EstimationError as error:
            return table, empty, [f"sites could not be made equal: {error.what}"]
        words = (
            f"concentrations of {plural(len(factors), 'site')} were made equal by {who} people scanned at "
            "several of them"
        )
    factor = site.map(lambda name: factors[str(name)].factor if str(name) in factors else 1.0)
    factor = factor.fillna(1.0).astype(float)
    out = table.copy()
    for column in ("tsc_mmol_l", "tsc_se", "sd_mmol_l"):
        if column in out:
            out[column] = pd.to_numeric(out[column], errors="coerce") * factor
    if {"contrast", "ipsi"} <= set(out.columns):
        regions_too = out["contrast"] == "tsc"
        for column in ("ipsi", "contra", "ipsi_sd", "contra_sd"):
            if column in out:
                value = pd.to_numeric(out[column], errors="coerce")
                out[column] = value.where(~regions_too, value * factor)
    found = [
        {"site": one.scanner, "factor": one.factor, "se": one.se, "n": one.n, "source": one.source}
        for one in factors.values()
    ]
    return out, pd.DataFrame(found), [words]


def _named(table: pd.DataFrame, column: str) -> pd.Series:
    """Return a column, NaN where nothing is said or there is none."""
    import pandas as pd

    if column not in table:
        return pd.Series(np.nan, index=table.index, dtype=object)
    return table[column].where(table[column].notna() & (table[column] != "n/a")).astype(object)


def _phantom(
    table: pd.DataFrame, site: pd.Series, p: MsParams, scanners: pd.DataFrame | None
) -> dict[str, ScannerFactor]:
    """Return the factors of a travelling phantom, each to be applied once."""
    from bids_sodium.image.scanners import ScannerFactor, scanner_factors

    where = "ms.site_factors" if scanners is None else "--scanners"
    if scanners is None:
        factors = {
            name: ScannerFactor(scanner=name, factor=value, se=0.0, n=1, source="given")
            for name, value in p.site_factors
        }
    elif p.site_factors:
        raise ConfigError(
            f"factors of {listing(name for name, _ in p.site_factors)} in ms.site_factors and a table of --scanners",
            hint="give one of them, both would be multiplied in",
        )
    else:
        rows = [{str(key): value for key, value in row.items()} for row in scanners.to_dict("records")]
        factors = scanner_factors(rows, where=where)
    names = site.where(site.isna(), site.astype(str))
    unknown = sorted(set(factors) - set(names.dropna()))
    if unknown and scanners is None:
        raise DataError(f"factors of {listing(unknown)}, which no row names as its site", where=where)
    known, made = names.isin(list(factors)), _named(table, "scanner_factor").notna()
    if (known & made).any():
        raise ConfigError(
            f"the participant level has already multiplied {_told(table, names, known & made)} with a factor",
            where=where,
            hint="leave the factors out at the group level, or run the participant level without --scanners",
        )
    if scanners is not None and (~known & ~made).any():
        raise DataError(
            f"no factor for {_told(table, names, ~known & ~made)}; there are {listing(sorted(factors))}",
            where=where,
            hint="add their scanner or site: corrected and uncorrected concentrations must not meet in one analysis",
        )
    return factors


def _told(table: pd.DataFrame, names: pd.Series, rows: pd.Series) -> str:
    """Return the sites of some rows with their participants."""
    who = table.loc[rows, "participant_id"].groupby(names[rows].fillna("no site")).nunique()
    return listing(f"{name} ({plural(int(count), 'participant')})" for name, count in who.items())


def _readings(table: pd.DataFrame, site: pd.Series, method: str) -> tuple[list[dict[str, Any]], int]:
    """Return one reading a scan of people scanned at several sites, and how many people these are.

    Tissues of one scan share the errors of its calibration, so that their geometric mean is one reading.
    """
    import pandas as pd

    from bids_sodium.group.rows import of_method

    rows = table[table["tissue"].isin(_BRAIN) & site.notna()].assign(site=site)
    rows = of_method(rows, method)
    many = rows.groupby("participant_id")["site"].nunique()
    rows = rows[rows["participant_id"].isin(many.index[many > 1])]
    value = pd.to_numeric(rows["tsc_mmol_l"], errors="coerce")
    session = rows["session_id"].fillna("n/a").astype(str) if "session_id" in rows else "n/a"
    scans = rows.assign(value=value.where(value > 0), session=session).pivot_table(
        index=["participant_id", "session", "site"], columns="tissue", values="value", aggfunc="first"
    )
    found = []
    for who, of_person in scans.groupby(level="participant_id"):
        same = of_person.dropna(axis=1)  # tissues of all the person's scans
        means = np.exp(np.log(same).mean(axis=1)) if same.shape[1] else []
        found += [
            {"scanner": str(place), "phantom": str(who), "measured_mmol_l": float(mean)}
            for (_, _, place), mean in zip(same.index, means, strict=False)
        ]
    return found, int((many > 1).sum())
