"""Groups of an MS cohort compared: as published, in one model, within patients, by every partial-volume method."""

from __future__ import annotations

from typing import Any

import numpy as np

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group._ms_view import (
    TSC_COVARIATE,
    Known,
    MsParams,
    View,
    course_pairs,
    label,
    planned,
    ranks,
    too_few,
    without,
)
from bids_sodium.group._planning import add_sizes
from bids_sodium.group.results import Analysis, Ledger, listing, plural, taken
from bids_sodium.group.rows import METHODS, persons

__all__ = ["comparisons", "joint", "lesions", "methods", "planning"]


def comparisons(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Group comparisons as published: one dummy a pair, covariates entered linearly."""
    del rng, known
    import pandas as pd

    means = []
    for section in dict.fromkeys(c.section for c in view.comparisons):
        start = len(ledger)
        for c in view.comparisons:
            if c.section != section:
                continue
            term = f"{c.first} - {c.second}"
            if c.result is None:
                ledger.skip(f"{c.variable}, {term}", c.reason)
                continue
            r = c.result
            with_what = f", adjusted for {listing(c.covariates)}" if c.covariates else ""
            ledger.add(
                model="pairwise dummy" + (f" + {' + '.join(c.covariates)}" if c.covariates else ""),
                subset=f"{c.first} and {c.second}",
                outcome=label(c.variable),
                term=term,
                **taken(r, "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
                n=r.n_first + r.n_second,
                r2=r.model.r2,
                null=0.0,
                method=f"linear regression{with_what}; Holm over the {section} comparisons",
                note=f"HC3 SE {r.se_hc3:.4g}"
                + (f"; {plural(r.n_missing, 'incomplete row')} left out" if r.n_missing else ""),
            )
            for group, n, mean in (
                (c.first, r.n_first, r.adjusted_mean_first),
                (c.second, r.n_second, r.adjusted_mean_second),
            ):
                means.append({"variable": c.variable, "pair": term, "group": group, "n": n, "adjusted_mean": mean})
        ledger.adjust(start)
    start = len(ledger)
    for first, second in (("MS", p.cis), *course_pairs(p)):
        reason = too_few(view, p, "edss", (first, second))
        if reason:
            ledger.skip(f"edss, {first} - {second}", reason)
            continue
        with ledger.part(f"edss, {first} - {second}"):
            test = ranks(view, p, "edss", (first, second))
            exact = bool(np.isfinite(test.p_exact))
            ledger.add(
                model="rank sum",
                subset=f"{first} and {second}",
                outcome=label("edss"),
                term=f"{first} - {second}",
                **taken(test, "estimate", "ci_low", "ci_high", "statistic", "n"),
                p=test.p_exact if exact else test.p_asymptotic,
                method=f"Hodges-Lehmann shift, {'exact' if exact else 'asymptotic'} rank sum with ties",
                note=f"normal approximation with tie correction p {test.p_asymptotic:.4g}; "
                f"probability of superiority {test.probability_superiority:.3f}",
            )
    ledger.adjust(start)
    return ledger.close(
        data={"adjusted_means": pd.DataFrame(means)},
        text="Groups were compared as published: linear regression on a dummy of each pair, with age and sex for brain "
        "volumes and GMF or WMF for concentrations; EDSS by the rank sum test.",
    )


def joint(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Group comparisons as recommended: all groups in one model, adjusted means, Holm over the pairs."""
    del rng, known
    import pandas as pd

    from bids_sodium.stats.regression import group_means

    means = []
    for section, variable, covariates, pairs in planned(p):
        groups = [p.controls] if any(p.controls in pair for pair in pairs) else []
        groups += [p.cis] if any(p.cis in pair for pair in pairs) else []
        wanted = [*groups, *p.ms_groups]
        order = [g for g in wanted if not too_few(view, p, variable, (g,))]
        for group in wanted:
            if group not in order and variable in view.people:
                ledger.skip(f"{variable}, {group}", too_few(view, p, variable, (group,)))
        absent = [c for c in (variable, *covariates) if c not in view.people]
        with ledger.part(f"{section}, {variable}"):
            if absent:
                raise DataError(without(absent))
            found = group_means(
                view.column(variable),
                view.people["group"].to_numpy(),
                np.column_stack([view.column(c) for c in covariates]) if covariates else None,
                order=order,
                names=covariates,
                confidence=p.confidence,
            )
            shared: dict[str, Any] = {
                "model": "group" + "".join(f" + {c}" for c in covariates),
                "subset": listing(found.groups),
                "outcome": label(variable),
                "r2": found.model.r2,
            }
            total = int(found.n.sum())
            ledger.add(
                **shared,
                term="group",
                **taken(found, "statistic", "df", "p"),
                n=total,
                method=f"F({found.df_numerator}, df)",
            )
            for i, group in enumerate(found.groups):
                interval = {"ci_low": found.ci_low[i], "ci_high": found.ci_high[i]}
                ledger.add(
                    **shared,
                    term=f"adjusted mean {group}",
                    estimate=found.mean[i],
                    se=found.se[i],
                    **interval,
                    df=found.df,
                    n=found.n[i],
                    method="at the mean of the covariates",
                )
                means.append(
                    {
                        "variable": variable,
                        "label": label(variable),
                        "group": group,
                        "n": int(found.n[i]),
                        "mean": found.mean[i],
                        **interval,
                    }
                )
            for contrast in found.contrasts:
                ledger.add(
                    **shared,
                    term=f"{contrast.first} - {contrast.second}",
                    **taken(contrast, "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
                    p_adjusted=max(contrast.p_holm, contrast.p),
                    n=total,
                    null=0.0,
                    method="difference of adjusted means; Holm over the pairs",
                )
    _ordered_edss(view, p, ledger)
    return ledger.close(
        data={"means": pd.DataFrame(means)},
        text="All groups stand in one linear model with common covariates; differences of adjusted means are adjusted "
        "by Holm's method over the pairs of a variable. The EDSS, whose steps are not equal, was compared by "
        "proportional odds.",
    )


def _ordered_edss(view: View, p: MsParams, ledger: Ledger) -> None:
    """Add the odds of a higher EDSS of every group against every other, from one proportional-odds model."""
    from bids_sodium.stats.regression import proportional_odds

    groups = [g for g in (p.cis, *p.ms_groups) if not too_few(view, p, "edss", (g,))]
    with ledger.part("edss, proportional odds"):
        if len(groups) < 2:
            raise DataError(too_few(view, p, "edss", (p.cis, *p.ms_groups)))
        rows = np.any([view.members(g, p) for g in groups], axis=0)
        edss, group = view.column("edss")[rows], view.people["group"].to_numpy()[rows]
        start = len(ledger)
        for i, reference in enumerate(groups[:-1]):
            # the same model with another reference, for the pairs that the first one does not hold
            others = [g for g in groups if g != reference]
            fit = proportional_odds((group[:, None] == np.array(others)).astype(float), edss, names=others)
            for later in groups[i + 1 :]:
                j = others.index(later)
                ledger.add(
                    model="proportional odds by group",
                    subset=listing(groups),
                    outcome=label("edss"),
                    term=f"{later} - {reference}",
                    estimate=fit.estimate[j],
                    se=fit.se[j],
                    ci_low=fit.ci_low[j],
                    ci_high=fit.ci_high[j],
                    statistic=fit.likelihood_ratio[j],
                    df=1,
                    p=fit.p[j],
                    n=fit.n,
                    method="log odds of a higher EDSS, Wald interval, likelihood-ratio test; Holm over the pairs",
                    note=f"odds ratio {fit.odds_ratio[j]:.4g}; {plural(fit.levels.size, 'level')}",
                )
        ledger.adjust(start)


_TISSUE_NAME = {"tsc_nawm": "NAWM", "tsc_t2lesion": "T2lesion", "tsc_t1iso": "T1iso", "tsc_t1hypo": "T1hypo"}


def lesions(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Lesions against normal-appearing white matter, within patients."""
    del rng, known
    plans = (
        ("tsc_nawm", ("tsc_t2lesion",), False),
        ("tsc_t1iso", ("tsc_t1hypo",), False),
        ("tsc_nawm", ("tsc_t1iso", "tsc_t1hypo"), bool(course_pairs(p))),
    )
    for reference, others, by_group in plans:
        words = f"{listing(_TISSUE_NAME[o] for o in others)} against {_TISSUE_NAME[reference]}"
        with ledger.part(words + (", by group" if by_group else "")):
            _lesion_model(view, p, ledger, reference, others, by_group=by_group)
    columns = [c for c in ("group", *_TISSUE_NAME) if c in view.people]
    points = view.people.loc[view.members("MS", p), columns].reset_index()
    return ledger.close(
        data={"points": points},
        text="Lesions and normal-appearing white matter of the same patients were compared by a mixed model with a "
        "random intercept of the patient (REML, Kenward-Roger), adjusted for the white matter fraction.",
    )


def _lesion_model(
    view: View, p: MsParams, ledger: Ledger, reference: str, others: tuple[str, ...], *, by_group: bool
) -> None:
    from bids_sodium.stats.comparisons import mixed

    tissues = (reference, *others)
    absent = [c for c in (*tissues, "wmf") if c not in view.people]
    if absent:
        raise DataError(without(absent))
    ms = view.members("MS", p)
    values = np.column_stack([view.column(t)[ms] for t in tissues])
    if int((~np.isnan(values)).all(axis=1).sum()) < p.minimum_group:
        raise EstimationError(
            f"{plural(int((~np.isnan(values)).all(axis=1).sum()), 'patient')} with all of "
            f"{listing(_TISSUE_NAME[t] for t in tissues)}; {p.minimum_group} are needed"
        )
    wmf = view.column("wmf")[ms]
    k = len(tissues)
    who = np.repeat(np.flatnonzero(ms), k)
    tissue = np.tile(np.arange(k), int(ms.sum()))
    dummies = (tissue[:, None] == np.arange(1, k)).astype(float)
    names = ["intercept", *(_TISSUE_NAME[t] for t in others)]
    columns = [np.ones(who.size), *dummies.T]
    last = p.ms_groups[-1]
    if by_group:
        small = too_few(view, p, reference, p.ms_groups)
        if small:
            raise EstimationError(small)
        course = np.repeat(view.members(last, p)[ms].astype(float), k)
        names += [f"{last} - {p.ms_groups[0]}, in {_TISSUE_NAME[reference]}", "wmf"]
        names += [f"{_TISSUE_NAME[t]} - {_TISSUE_NAME[reference]}, {last} - {p.ms_groups[0]}" for t in others]
        columns += [course, np.repeat(wmf - np.nanmean(wmf), k), *(d * course for d in dummies.T)]
    else:
        names += ["wmf"]
        columns += [np.repeat(wmf - np.nanmean(wmf), k)]
    X = np.column_stack(columns)
    fit = mixed(values.ravel(), X, who, names=names, confidence=p.confidence)
    against = f" - {_TISSUE_NAME[reference]}" + (f", in {p.ms_groups[0]}" if by_group else "")
    terms = [name + (against if name in _TISSUE_NAME.values() else "") for name in names[1:]]
    start = len(ledger)
    shared = {
        "model": f"tissue{f' x {last}' if by_group else ''} + wmf + (1 | patient)",
        "subset": "MS",
        "outcome": "TSC (mmol/L)",
        "method": "REML, Kenward-Roger; Holm over the terms",
    }
    ledger.add_contrasts(fit, terms, np.eye(len(names))[1:], shared, note=plural(fit.n_groups, "patient"))
    ledger.adjust(start)


def methods(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Repeat the main group differences by every partial-volume method of the table."""
    del rng, known
    tissues = view.long[view.long["tissue"].notna()]  # regions of an atlas have methods of their own
    found = [str(m) for m in tissues["method"].dropna().unique()] if "method" in tissues else []
    methods = [*(m for m in METHODS if m in found), *sorted(set(found) - set(METHODS) - {"n/a"})]
    if len(methods) < 2:
        raise DataError(f"{plural(len(methods), 'partial-volume method')} in the table; 2 are needed to compare")
    for method in methods:
        people = persons(view.long, method=method, group_aliases=p.group_aliases).table
        one = View(long=view.long, people=people, method=method, excluded=view.excluded, notes=(), factors=view.factors)
        _main_differences(one, p, ledger, f"method {method}")
    if "csf" in methods:
        with ledger.part("concentration of CSF"):
            for shift in p.csf_shift_mmol_l:
                _main_differences(_other_csf(view, p, shift), p, ledger, f"method csf, CSF {shift:+g} mmol/L")
    return ledger.close(
        text="The main differences were made with every partial-volume method, and the CSF partition with other "
        "concentrations of CSF, to see what hangs on them."
    )


def _other_csf(view: View, p: MsParams, shift: float) -> View:
    """Return the cohort by the CSF partition, had it taken another concentration for CSF."""
    people = persons(view.long, method="csf", group_aliases=p.group_aliases).table
    slopes = {name: f"csf_sensitivity_{name.removeprefix('tsc_')}" for name in _MAIN}
    absent = [slope for slope in slopes.values() if slope not in people]
    if absent:
        raise DataError(f"{without(absent)}: the participant level did not say how far the partition moves")
    # the partition is linear in the concentration that it subtracts
    people = people.assign(**{name: people[name] + shift * people[slope] for name, slope in slopes.items()})
    return View(long=view.long, people=people, method="csf", excluded=view.excluded, notes=(), factors=view.factors)


_MAIN = ("tsc_cgm", "tsc_dgm", "tsc_nawm")


def _main_differences(view: View, p: MsParams, ledger: Ledger, how: str) -> None:
    """Add the main group differences of a cohort read in another way."""
    from bids_sodium.stats.regression import group_difference

    for variable in _MAIN:
        for first, second in (("MS", p.controls), *course_pairs(p)):
            with ledger.part(f"{how.removeprefix('method ')}, {variable}, {first} - {second}"):
                reason = too_few(view, p, variable, (first, second))
                if reason:
                    raise EstimationError(reason)
                covariate = TSC_COVARIATE[variable]
                if covariate not in view.people:
                    raise DataError(f"no column {covariate}")
                r = group_difference(
                    view.column(variable),
                    view.members(first, p),
                    view.members(second, p),
                    view.column(covariate),
                    names=(covariate,),
                    confidence=p.confidence,
                )
                ledger.add(
                    model=f"pairwise dummy + {covariate}, {how}",
                    subset=f"{first} and {second}",
                    outcome=label(variable),
                    term=f"{first} - {second}",
                    **taken(r, "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
                    n=r.n_first + r.n_second,
                    null=0.0,
                    method=f"linear regression; concentrations by {how.removeprefix('method ')}",
                )


def planning(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """How many patients a neuroprotection trial needs that keeps a share of the difference from coming about."""
    del rng, known
    course = course_pairs(p)
    if not course:
        raise DataError("one MS group only: there is no course that a treatment could change")
    last, first = course[0]
    for variable in ("tsc_cgm", "tsc_dgm", "tsc_nawm", "tsc_t2lesion"):
        found = next(
            (c for c in view.comparisons if c.variable == variable and (c.first, c.second) == (last, first)), None
        )
        if found is None or found.result is None:
            ledger.skip(variable, found.reason if found else f"{last} and {first} are not compared on it")
            continue
        r = found.result
        note = f"mmol/L, residual of the comparison of {last} and {first}" + (
            f" adjusted for {listing(found.covariates)}" if found.covariates else ""
        )
        add_sizes(
            ledger,
            {"subset": f"{last} and {first}", "outcome": label(variable), "term": "effect of "},
            effects=[
                (f"{100 * share:g} % of {r.estimate:.2g} mmol/L", share * r.estimate) for share in p.trial.ms_effects
            ],
            sd=r.model.sigma,
            sd_df=r.model.df,
            trial=p.trial,
            confidence=p.confidence,
            note=note,
            n=r.n_first + r.n_second,
        )
    return ledger.close(
        text=f"A trial would keep a share of the difference between {last} and {first} from coming about; the spread "
        "within an arm is the residual of that comparison."
    )
