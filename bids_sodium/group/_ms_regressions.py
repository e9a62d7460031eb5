"""Table 3 of the MS paper: which concentrations go with disability and cognition, and how far to believe it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group._ms_view import Known, MsParams, View, label
from bids_sodium.group.results import Analysis, Ledger, listing, plural, taken

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.stats.regression import Elimination, Ols

__all__ = ["bootstrap", "ordinal", "plans", "regressions", "table3", "univariable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One elimination to be made."""

    subset: str
    outcome: str
    candidates: tuple[str, ...]
    forced: tuple[str, ...]
    absent: tuple[str, ...]


def plans(view: View, p: MsParams) -> list[_Plan]:
    plans = []
    for subset, candidates, forced in (
        ("patients", p.candidates_all, p.forced_all),
        ("MS", p.candidates_ms, p.forced_ms),
    ):
        rows = view.people.loc[view.members(subset, p)]

        def known(name: str, rows: pd.DataFrame = rows) -> bool:
            return name in rows and bool(rows[name].notna().any())

        for outcome in (*p.disability, *p.cognition):
            kept = (*forced, p.premorbid) if outcome in p.cognition else forced
            plans.append(
                _Plan(
                    subset=subset,
                    outcome=outcome,
                    candidates=tuple(c for c in candidates if known(c)),
                    forced=tuple(c for c in kept if known(c)),
                    absent=tuple(c for c in (*candidates, *kept) if not known(c)),
                )
            )
    return plans


def univariable(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Each concentration and lesion volume alone against each score; runs the eliminations that later parts read."""
    del rng
    from bids_sodium.stats.regression import backward

    start = len(ledger)
    for plan in plans(view, p):
        name = f"{plan.outcome}, {plan.subset}"
        with ledger.part(name):
            if plan.outcome not in view.people or not len(view.people):
                raise DataError(f"no column {plan.outcome}")
            if not plan.candidates:
                raise DataError(f"no values of {listing(plan.absent)}")
            members = view.people.loc[view.members(plan.subset, p)]
            found = backward(
                members,
                plan.outcome,
                plan.candidates,
                plan.forced,
                p.p_remove,
                p_enter=p.p_enter,
                confidence=p.confidence,
            )
            known.eliminations[plan.subset, plan.outcome] = found
            for test in found.univariable:
                ledger.add(
                    model="univariable",
                    subset=plan.subset,
                    outcome=label(plan.outcome),
                    term=test.name,
                    **taken(test, "estimate", "se", "ci_low", "ci_high", "df", "p"),
                    statistic=test.estimate / test.se,
                    n=found.n,
                    null=0.0,
                    method="linear regression on complete cases; Benjamini-Hochberg over all rows",
                    note=f"{plural(found.n_missing, 'incomplete row')} left out" if found.n_missing else "",
                )
            if found.n_missing:
                gaps = members[[plan.outcome, *plan.candidates, *plan.forced]].isna().sum()
                told = listing(f"{column} {count}" for column, count in gaps.items() if count)
                ledger.skip(name, f"{found.n_missing} of {len(members)} people are incomplete and left out: {told}")
        if plan.absent:
            ledger.skip(name, f"no values of {listing(plan.absent)}, which therefore do not enter")
    ledger.adjust(start, method="bh")
    return ledger.close(
        data={"points": _regression_points(view, p)},
        text=f"Candidates with a univariable p below {p.p_enter:g} entered the multivariable models.",
    )


def _regression_points(view: View, p: MsParams) -> pd.DataFrame:
    used = (*p.disability, *p.cognition, *p.candidates_ms, *p.candidates_all, *p.forced_ms, *p.forced_all, p.premorbid)
    wanted = [c for c in dict.fromkeys(("group", *used)) if c in view.people]
    return view.people.loc[view.members("patients", p), wanted].reset_index()


def regressions(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Table 3 of the paper: backward elimination with forced covariates, and everything that qualifies it."""
    import pandas as pd

    kept: dict[str, list[dict[str, Any]]] = {k: [] for k in ("path", "models", "selection", "robust")}
    partial: list[pd.DataFrame] = []
    if not known.eliminations:
        raise EstimationError("no elimination could be made; see the univariable analyses")
    for subset in dict.fromkeys(subset for subset, _ in known.eliminations):
        start = len(ledger)
        here = [found for (where, _), found in known.eliminations.items() if where == subset]
        for found in here:
            kept["robust"] += _terms(p, ledger, found, subset, found.retained)
        ledger.adjust(start, method="bh")
    for (subset, outcome), found in known.eliminations.items():
        fit = found.final
        shared: dict[str, Any] = {"subset": subset, "outcome": label(outcome), "n": fit.n}
        kept["robust"] += _terms(p, ledger, found, subset, found.forced)
        for test in found.retests:
            ledger.add(
                model="re-test of an omitted term",
                **shared,
                term=test.name,
                **taken(test, "estimate", "se", "ci_low", "ci_high", "df", "p"),
                statistic=test.estimate / test.se,
                null=0.0,
                method="added to the final model",
            )
        kept["models"].append(_model_row(found, subset, outcome, _complete(view, p, found, subset)))
        for step, at in enumerate(found.path, start=1):
            for name, p_value in zip(at.in_model, at.p, strict=True):
                kept["path"].append(
                    {
                        "subset": subset,
                        "outcome": outcome,
                        "step": step,
                        "term": name,
                        "p": p_value,
                        "removed": int(name == at.removed),
                    }
                )
        with ledger.part(f"{outcome}, {subset}, selection frequency"):
            kept["selection"] += _selection(view, p, found, subset, rng)
        partial += _partial(view, p, found, subset)
    data = {key: pd.DataFrame(rows) for key, rows in kept.items()}
    data["partial"] = pd.concat(partial, ignore_index=True) if partial else pd.DataFrame()
    return ledger.close(
        data=data,
        text=f"Candidates were eliminated backwards while p exceeded {p.p_remove:g}, with tissue fractions "
        f"({listing(p.forced_all)} over all patients, {listing(p.forced_ms)} in MS) and, for cognition, {p.premorbid} "
        "forced into every model; each omitted candidate was tested again in the final model.",
    )


def _terms(
    p: MsParams, ledger: Ledger, found: Elimination[Ols], subset: str, names: Iterable[str]
) -> list[dict[str, Any]]:
    """Add terms of a final model; return them with errors that do not take the spread as even (HC3)."""
    from scipy.stats import t as student

    fit, robust = found.final, []
    reach = float(student.ppf(0.5 + p.confidence / 2, fit.df))
    for name in names:
        c, se = fit[name], float(fit.se_hc3[fit.names.index(name)])
        p_hc3 = float(2 * student.sf(abs(c.estimate / se), fit.df)) if se > 0 else np.nan
        ledger.add(
            model="backward elimination",
            subset=subset,
            outcome=label(found.outcome),
            term=name,
            **taken(c, "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
            n=fit.n,
            r2=fit.r2,
            null=0.0,
            method=f"linear regression, removed at p > {p.p_remove:g}"
            + ("; Benjamini-Hochberg over the retained terms of all outcomes" if name in found.retained else ""),
            note=("retained" if name in found.retained else "forced covariate")
            + f"; adjusted R2 {fit.adjusted_r2:.3f}; HC3 SE {se:.4g}, p {p_hc3:.3g}; p knows nothing of the search",
        )
        robust.append(
            {
                "subset": subset,
                "outcome": found.outcome,
                "term": name,
                "estimate": c.estimate,
                "se": c.se,
                "p": c.p,
                "se_hc3": se,
                "ci_low_hc3": c.estimate - reach * se,
                "ci_high_hc3": c.estimate + reach * se,
                "p_hc3": p_hc3,
            }
        )
    return robust


def _model_row(found: Elimination[Ols], subset: str, outcome: str, people: pd.DataFrame) -> dict[str, Any]:
    fit = found.final
    row: dict[str, Any] = {
        "subset": subset,
        "outcome": outcome,
        "n": fit.n,
        "n_missing": found.n_missing,
        "entered": listing(found.entered),
        "retained": listing(found.retained),
        "forced": listing(found.forced),
        "omitted_significant": int(found.any_omitted_significant),
        **taken(fit, "r2", "adjusted_r2", "sigma", "df", "f_statistic", "f_p", "aic", "bic"),
    }
    try:
        d = fit.diagnostics()
    except EstimationError:
        return row
    row |= {
        "vif_max": float(np.nanmax(d.vif)) if np.isfinite(d.vif).any() else np.nan,
        "cook_max": float(d.cook.max()),
        "cook_participant": str(people.index[int(d.cook.argmax())]),
        "leverage_max": float(d.leverage.max()),
        "dffits_max": float(np.abs(d.dffits).max()),
        **taken(d, "shapiro_w", "shapiro_p", "koenker", "koenker_p", "outlier_p"),
    }
    return row


def _design(rows: pd.DataFrame, terms: Iterable[str]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    names = tuple(terms)
    columns = [rows[name].to_numpy(dtype=np.float64) for name in names]
    return np.column_stack([np.ones(len(rows)), *columns]), ("intercept", *names)


def _selection(
    view: View, p: MsParams, found: Elimination[Ols], subset: str, rng: np.random.Generator
) -> list[dict[str, Any]]:
    from bids_sodium.stats.regression import selection_frequency

    if p.selection_resamples < 1:
        return []
    share = selection_frequency(
        view.people.loc[view.members(subset, p)],
        found.outcome,
        found.candidates,
        found.forced,
        p.p_remove,
        p_enter=p.p_enter,
        rng=rng,
        n_resamples=p.selection_resamples,
    )
    return [
        {"subset": subset, "outcome": found.outcome, "term": name, "retained_share": value}
        for name, value in share.items()
    ]


def _partial(view: View, p: MsParams, found: Elimination[Ols], subset: str) -> list[pd.DataFrame]:
    """Points of the partial-regression plots: residuals of outcome and term on the rest of the model."""
    import pandas as pd

    from bids_sodium.stats.regression import ols

    rows = _complete(view, p, found, subset)
    points = []
    for name in found.retained:
        X, names = _design(rows, [t for t in found.final.names[1:] if t != name])
        x = ols(X, rows[name].to_numpy(), names=names).residuals
        y = ols(X, rows[found.outcome].to_numpy(), names=names).residuals
        frame = pd.DataFrame({"participant_id": rows.index, "x": x, "y": y})
        points.append(frame.assign(subset=subset, outcome=found.outcome, term=name))
    return points


def _complete(view: View, p: MsParams, found: Elimination[Ols], subset: str) -> pd.DataFrame:
    """Return the people whom an elimination has seen."""
    return view.people.loc[view.members(subset, p)].dropna(subset=[found.outcome, *found.candidates, *found.forced])


def bootstrap(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Put final models with bootstrap intervals beside the least-squares ones."""
    del view
    from bids_sodium.stats.regression import bca

    if not known.eliminations:
        raise EstimationError("no elimination could be made; see the univariable analyses")
    for (subset, outcome), found in known.eliminations.items():
        if not found.retained:
            ledger.skip(f"{outcome}, {subset}", "no candidate was retained")
            continue
        fit = found.final
        with ledger.part(f"{outcome}, {subset}"):
            boot = bca(fit.X, fit.y, names=fit.names, n_resamples=p.n_resamples, rng=rng, confidence=p.confidence)
            known.boots[subset, outcome] = boot
            for i, name in enumerate(fit.names):
                if name not in found.retained:
                    continue
                shared: dict[str, Any] = {"subset": subset, "outcome": label(outcome), "term": name, "r2": fit.r2}
                ledger.add(
                    **shared,
                    model="OLS",
                    **taken(fit[name], "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
                    n=fit.n,
                    null=0.0,
                    method="least squares",
                )
                ledger.add(
                    **shared,
                    model="BCa bootstrap",
                    estimate=boot.estimate[i],
                    se=boot.se[i],
                    ci_low=boot.ci_low[i],
                    ci_high=boot.ci_high[i],
                    p=boot.p[i],
                    n=boot.n,
                    method=f"BCa, {boot.n_resamples} resamples of patients, p where the interval meets zero",
                    note=f"Monte Carlo SD of the limits {boot.mc_sd_low[i]:.2g} and {boot.mc_sd_high[i]:.2g}; "
                    f"z0 {boot.z0[i]:.3f}, acceleration {boot.acceleration[i]:.3f}",
                )
    return ledger.close(
        text=f"Bias-corrected and accelerated bootstrap intervals ({p.n_resamples} resamples, the paper drew 1000) "
        "stand beside the least-squares ones and replace none."
    )


_FRACTIONS = ("bpf", "gmf", "wmf")  # of which a whole unit is all of the head
_MEASURE = "Clinical measure"
_PRINTED = {"tsc_cgm": "CGM", "tsc_dgm": "DGM", "tsc_nawm": "NAWM"}  # as the paper prints them
_SMALL = 0.02  # limits below this are printed with a digit more than the paper's three


def table3(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Table 3 of the paper: retained concentrations, all patients beside patients with MS."""
    del rng
    import pandas as pd

    if not known.eliminations:
        raise EstimationError("no elimination could be made; see the univariable analyses")
    halves: dict[str, dict[str, list[dict[str, str]]]] = {"patients": {}, "MS": {}}
    for (subset, outcome), found in known.eliminations.items():
        boot = known.boots.get((subset, outcome))
        for name in found.retained:
            if not name.startswith("tsc_"):
                continue
            c = found.final[name]
            ledger.add(
                model="final model",
                subset=subset,
                outcome=label(outcome),
                term=name,
                **taken(c, "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
                n=found.n,
                r2=found.final.r2,
                null=0.0,
                method="linear regression",
                note=f"adjusted R2 {found.final.adjusted_r2:.3f}",
            )
            d = 3 if max(abs(c.ci_low), abs(c.ci_high)) >= _SMALL else 4
            row = {
                "TSC": _PRINTED.get(name, label(name).removeprefix("TSC ").removesuffix(" (mmol/L)")),
                "beta": f"{c.estimate:.{d}f}",
                "95% CI": f"{c.ci_low:.{d}f} to {c.ci_high:.{d}f}",
                "P": _p(c.p),
                "R2": f"{found.final.r2:.2f}",
                "adjusted R2": f"{found.final.adjusted_r2:.2f}",
            }
            if boot is not None:
                i = boot.names.index(name)
                row["95% CI"] += f" ({boot.ci_low[i]:.{d}f} to {boot.ci_high[i]:.{d}f}*)"
                row["P"] += f" ({_p(float(boot.p[i]))}*)"
            halves[subset].setdefault(outcome, []).append(row)
    heads = {s: f"{words} (n={int(view.members(s, p).sum())})" for s, words in _HALVES.items()}
    rows = []
    for outcome in (*p.disability, *p.cognition):
        left, right = (halves[subset].get(outcome, []) for subset in _HALVES)
        for i in range(max(len(left), len(right))):
            row = {_MEASURE: label(outcome) if i == 0 else ""}
            for subset, half in zip(_HALVES, (left, right), strict=True):
                cells = half[i] if i < len(half) else dict.fromkeys(_CELLS, "")
                row |= {f"{heads[subset]}: {key}": cells[key] for key in _CELLS}
            rows.append(row)
    if not rows:
        ledger.skip("", f"no concentration was retained in any of {plural(len(known.eliminations), 'final model')}")
    without = [label(o) for o in (*p.disability, *p.cognition) if not any(o in half for half in halves.values())]
    return ledger.close(
        data={"layout": pd.DataFrame(rows)},
        text=f"Concentrations retained in the final models, adjusted for {listing(p.forced_all)} (all patients), "
        f"{listing(p.forced_ms)} (MS) and, for cognition, {p.premorbid}. * BCa bootstrap, {p.n_resamples} resamples."
        + (f" None was retained for {listing(without)}." if without else ""),
    )


_HALVES = {"patients": "All patients", "MS": "Patients with MS"}
_CELLS = ("TSC", "beta", "95% CI", "P", "R2", "adjusted R2")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def ordinal(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Refit the final models of the EDSS by proportional odds, which do not take its steps as equal."""
    del view, rng
    from bids_sodium.stats.regression import proportional_odds

    models = {subset: found for (subset, outcome), found in known.eliminations.items() if outcome == "edss"}
    if not models:
        raise DataError("no linear model of the EDSS could be fitted")
    for subset, found in models.items():
        with ledger.part(subset):
            names = found.final.names[1:]
            if not names:
                raise EstimationError("no candidate was retained and no covariate is forced")
            fit = proportional_odds(found.final.X[:, 1:], found.final.y, names=names, confidence=p.confidence)
            for i, name in enumerate(names):
                ledger.add(
                    model="proportional odds",
                    subset=subset,
                    outcome=label("edss"),
                    term=name,
                    estimate=fit.estimate[i],
                    se=fit.se[i],
                    ci_low=fit.ci_low[i],
                    ci_high=fit.ci_high[i],
                    statistic=fit.likelihood_ratio[i],
                    df=1,
                    p=fit.p[i],
                    n=fit.n,
                    method="log odds of a higher EDSS for one unit, Wald interval, likelihood-ratio test",
                    note=(
                        f"odds ratio of 0.01 more {np.exp(0.01 * fit.estimate[i]):.4g}"
                        if name in _FRACTIONS
                        else f"odds ratio {fit.odds_ratio[i]:.4g}"
                    )
                    + f"; {plural(fit.levels.size, 'level')}",
                )
    return ledger.close(
        text="The EDSS is ordered, not measured: proportional-odds models with the terms of the final linear models "
        "stand beside these."
    )
