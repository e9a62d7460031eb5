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

__all__ = ["bootstrap", "ordinal", "plans", "regressions", "univariable"]


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


def univariable(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, eliminations: Known) -> Analysis:
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
            eliminations[plan.subset, plan.outcome] = found
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


def regressions(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, eliminations: Known) -> Analysis:
    """Table 3 of the paper: backward elimination with forced covariates, and everything that qualifies it."""
    import pandas as pd

    kept: dict[str, list[dict[str, Any]]] = {k: [] for k in ("path", "models", "sensitivity", "selection", "partial")}
    if not eliminations:
        raise EstimationError("no elimination could be made; see the univariable analyses")
    for (subset, outcome), found in eliminations.items():
        fit = found.final
        shared: dict[str, Any] = {"subset": subset, "outcome": label(outcome), "n": fit.n}
        start = len(ledger)
        for name in fit.names[1:]:
            ledger.add(
                model="backward elimination",
                **shared,
                term=name,
                **taken(fit[name], "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
                r2=fit.r2,
                null=0.0,
                method=f"linear regression, removed at p > {p.p_remove:g}; Holm over the model's terms",
                note=("retained" if name in found.retained else "forced covariate")
                + f"; adjusted R2 {fit.adjusted_r2:.3f}; p knows nothing of the search",
            )
        ledger.adjust(start)
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
        kept["models"].append(_model_row(found, subset, outcome, fit))
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
        kept["sensitivity"] += _sensitivity(view, p, found, subset)
        with ledger.part(f"{outcome}, {subset}, selection frequency"):
            kept["selection"] += _selection(view, p, found, subset, rng)
        kept["partial"] += _partial(view, p, found, subset)
    data = {key: pd.DataFrame(rows) for key, rows in kept.items()}
    data["layout"] = _table3(eliminations)
    return ledger.close(
        data=data,
        text=f"Candidates were eliminated backwards while p exceeded {p.p_remove:g}, with tissue fractions "
        f"({listing(p.forced_all)} over all patients, {listing(p.forced_ms)} in MS) and, for cognition, {p.premorbid} "
        "forced into every model; each omitted candidate was tested again in the final model.",
    )


def _model_row(found: Elimination[Ols], subset: str, outcome: str, fit: Ols) -> dict[str, Any]:
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
        "leverage_max": float(d.leverage.max()),
        "dffits_max": float(np.abs(d.dffits).max()),
        **taken(d, "shapiro_w", "shapiro_p", "koenker", "koenker_p", "outlier_p"),
    }
    return row


def _design(rows: pd.DataFrame, terms: Iterable[str]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    names = tuple(terms)
    columns = [rows[name].to_numpy(dtype=np.float64) for name in names]
    return np.column_stack([np.ones(len(rows)), *columns]), ("intercept", *names)


def _sensitivity(view: View, p: MsParams, found: Elimination[Ols], subset: str) -> list[dict[str, Any]]:
    """Coefficients of the retained terms with age, sex and duration added."""
    from bids_sodium.stats.regression import ols

    extra = [c for c in p.sensitivity if c in view.people and c not in found.final.names]
    if not found.retained or not extra:
        return []
    rows = view.people.loc[view.members(subset, p)].dropna(subset=[found.outcome, *found.candidates, *found.forced])
    X, names = _design(rows, (*found.retained, *found.forced, *extra))
    try:
        fit = ols(X, rows[found.outcome].to_numpy(), names=names, confidence=p.confidence)
    except EstimationError:
        return []
    return [
        {
            "subset": subset,
            "outcome": found.outcome,
            "term": name,
            "estimate": found.final[name].estimate,
            "estimate_with_more": fit[name].estimate,
            "change_percent": 100.0 * (fit[name].estimate / found.final[name].estimate - 1.0),
            "added": listing(extra),
            "n": fit.n,
        }
        for name in found.retained
    ]


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


def _partial(view: View, p: MsParams, found: Elimination[Ols], subset: str) -> list[dict[str, Any]]:
    """Points of the partial-regression plots: residuals of outcome and term on the rest of the model."""
    from bids_sodium.stats.regression import ols

    rows = view.people.loc[view.members(subset, p)].dropna(subset=[found.outcome, *found.candidates, *found.forced])
    points: list[dict[str, Any]] = []
    for name in found.retained:
        X, names = _design(rows, [t for t in found.final.names[1:] if t != name])
        x = ols(X, rows[name].to_numpy(), names=names).residuals
        y = ols(X, rows[found.outcome].to_numpy(), names=names).residuals
        points += [
            {"subset": subset, "outcome": found.outcome, "term": name, "participant_id": who, "x": a, "y": b}
            for who, a, b in zip(rows.index, x, y, strict=True)
        ]
    return points


def _table3(eliminations: Known) -> pd.DataFrame:
    """Rows of the printed Table 3: retained concentrations and lesion volumes, beta, interval, p and R2."""
    import pandas as pd

    rows = []
    for (subset, outcome), found in eliminations.items():
        for name in found.retained:
            c = found.final[name]
            rows.append(
                {
                    "subset": subset,
                    "measure": label(outcome),
                    "term": label(name),
                    "beta": f"{c.estimate:.3f}",
                    "ci": f"{c.ci_low:.3f} to {c.ci_high:.3f}",
                    "p": "<0.001" if c.p < 0.001 else f"{c.p:.3f}",
                    "r2": f"{found.final.r2:.2f}",
                    "n": found.n,
                }
            )
    return pd.DataFrame(rows)


def bootstrap(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, eliminations: Known) -> Analysis:
    """Put final models with bootstrap intervals beside the least-squares ones."""
    del view
    from bids_sodium.stats.regression import bca

    for (subset, outcome), found in eliminations.items():
        if not found.retained:
            ledger.skip(f"{outcome}, {subset}", "no candidate was retained")
            continue
        fit = found.final
        with ledger.part(f"{outcome}, {subset}"):
            boot = bca(fit.X, fit.y, names=fit.names, n_resamples=p.n_resamples, rng=rng, confidence=p.confidence)
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


def ordinal(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, eliminations: Known) -> Analysis:
    """Refit the final models of the EDSS by proportional odds, which do not take its steps as equal."""
    del view, rng
    from bids_sodium.stats.regression import proportional_odds

    models = {subset: found for (subset, outcome), found in eliminations.items() if outcome == "edss"}
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
                    note=f"odds ratio {fit.odds_ratio[i]:.4g}; {plural(fit.levels.size, 'level')}",
                )
    return ledger.close(
        text="The EDSS is ordered, not measured: proportional-odds models with the terms of the final linear models "
        "stand beside these."
    )
