"""Whether the final models of Table 3 hold: with more covariates, by elastic net, with missing values drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group._ms_view import Known, MsParams, View, label
from bids_sodium.group.results import Analysis, Ledger, listing, plural, taken

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.stats.regression import Elimination, Ols

__all__ = ["adjustment", "imputation", "penalised"]

_MANY = 1000  # people from whom on one split of a cross-validation is enough


def _rows(view: View, p: MsParams, found: Elimination[Ols], subset: str, more: Sequence[str] = ()) -> pd.DataFrame:
    """Return the people of an elimination, complete over further columns too."""
    used = [found.outcome, *found.candidates, *found.forced, *more]
    return view.people.loc[view.members(subset, p)].dropna(subset=used)


def _design(rows: pd.DataFrame, terms: Sequence[str]) -> NDArray[np.float64]:
    return np.column_stack([np.ones(len(rows)), *(rows[name].to_numpy(dtype=np.float64) for name in terms)])


def adjustment(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Whether age, sex and disease duration, one by one and together, change the retained coefficients materially."""
    del rng
    import pandas as pd

    if not known.eliminations:
        raise EstimationError("no elimination could be made; see the univariable analyses")
    verdicts: list[dict[str, Any]] = []
    for (subset, outcome), found in known.eliminations.items():
        if not found.retained:
            continue
        extra = [c for c in p.sensitivity if c in view.people and c not in found.final.names]
        sets = [(c,) for c in extra] + ([tuple(extra)] if len(extra) > 1 else [])
        if not sets:
            ledger.skip(f"{outcome}, {subset}", f"no column {listing(p.sensitivity)}")
        for added in sets:
            with ledger.part(f"{outcome}, {subset}, {listing(added)}"):
                verdicts += _adjusted(view, p, ledger, found, subset, added)
    table = pd.DataFrame(verdicts)
    material = int((table["material"] == 1).sum()) if len(table) else 0
    return ledger.close(
        data={"changes": table},
        text=f"{listing(label(c) for c in p.sensitivity)} were added to the final models one by one and together: "
        f"{material} of {len(table)} coefficients of retained terms changed materially, by more than "
        f"{100 * p.material_change:g} %.",
    )


def _adjusted(
    view: View, p: MsParams, ledger: Ledger, found: Elimination[Ols], subset: str, added: tuple[str, ...]
) -> list[dict[str, Any]]:
    from bids_sodium.stats.regression import ols

    rows = _rows(view, p, found, subset, added)
    terms = (*found.retained, *found.forced)
    y = rows[found.outcome].to_numpy(dtype=np.float64)
    # both models on the same people, so that nothing but the added columns changes
    base = ols(_design(rows, terms), y, names=("intercept", *terms), confidence=p.confidence)
    names = (*terms, *added)
    fit = ols(_design(rows, names), y, names=("intercept", *names), confidence=p.confidence)
    changes = []
    for name in found.retained:
        before, after = base[name].estimate, fit[name].estimate
        change = after / before - 1.0
        material = abs(change) > p.material_change
        words = "changes materially" if material else "does not change materially"
        ledger.add(
            model=f"final model + {' + '.join(added)}",
            subset=subset,
            outcome=label(found.outcome),
            term=name,
            **taken(fit[name], "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
            n=fit.n,
            r2=fit.r2,
            null=0.0,
            method="linear regression",
            note=f"{words}: {100 * change:+.1f} % from {before:.4g} of the same people without",
        )
        changes.append(
            {
                "subset": subset,
                "outcome": found.outcome,
                "term": name,
                "added": listing(added),
                "estimate": before,
                "estimate_with_more": after,
                "change_percent": 100 * change,
                "material": int(material),
                "p": base[name].p,
                "p_with_more": fit[name].p,
                "n": fit.n,
            }
        )
    return changes


def penalised(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Elastic net with nested cross-validation on the candidates of every elimination."""
    import pandas as pd

    from bids_sodium.stats.regression import elastic_net

    if p.penalised_repeats < 1:
        raise DataError("ms.penalised_repeats is 0")
    if not known.eliminations:
        raise EstimationError("no elimination could be made; see the univariable analyses")
    models: list[dict[str, Any]] = []
    for (subset, outcome), found in known.eliminations.items():
        with ledger.part(f"{outcome}, {subset}"):
            rows = _rows(view, p, found, subset)
            fit = elastic_net(
                rows[list(found.candidates)].to_numpy(dtype=np.float64),
                rows[outcome].to_numpy(dtype=np.float64),
                rows[list(found.forced)].to_numpy(dtype=np.float64) if found.forced else None,
                rng=rng,
                names=found.candidates,
                # the split of thousands of people hardly matters
                n_repeats=p.penalised_repeats if len(rows) < _MANY else 1,
            )
            for i, name in enumerate(fit.names):
                ledger.add(
                    model="elastic net",
                    subset=subset,
                    outcome=label(outcome),
                    term=name,
                    estimate=fit.estimate[i],
                    n=fit.n,
                    method="penalty by cross-validation; shrunken towards zero, so no interval and no p value",
                    note=f"{fit.standardised[i]:.3f} SD for one SD; kept in {100 * fit.selected_share[i]:.0f} % of the "
                    f"training sets; {'retained' if name in found.retained else 'not retained'} by the elimination",
                )
            models.append(
                {
                    "subset": subset,
                    "outcome": outcome,
                    **taken(fit, "n", "alpha", "l1_ratio", "r2_forced", "r2_cv", "r2_sd", "n_folds", "n_repeats"),
                    "r2_elimination": found.final.r2,
                    "kept": listing(name for name, b in zip(fit.names, fit.estimate, strict=True) if b != 0),
                    "retained_by_elimination": listing(found.retained),
                }
            )
    return ledger.close(
        data={"models": pd.DataFrame(models)},
        text="Elastic nets over all candidates, forced covariates without penalty, stand beside the eliminations; R2 "
        "is that of nested cross-validation (5 folds), on people who had no part in any choice.",
    )


def imputation(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Refit the final models with missing values drawn, beside complete cases."""
    import pandas as pd

    if p.imputations < 2:
        raise DataError(f"ms.imputations is {p.imputations}")
    if not known.eliminations:
        raise EstimationError("no elimination could be made; see the univariable analyses")
    missing: list[dict[str, Any]] = []
    for subset in dict.fromkeys(subset for subset, _ in known.eliminations):
        here = {outcome: found for (s, outcome), found in known.eliminations.items() if s == subset}
        with ledger.part(subset):
            missing += _imputed(view, p, rng, ledger, subset, here)
    return ledger.close(
        data={"missing": pd.DataFrame(missing)},
        text=f"Missing values were drawn {p.imputations} times by chained equations with predictive mean matching from "
        "all scores, concentrations, fractions, age, sex and duration; models of people with a known outcome were put "
        "together by Rubin's rules (Barnard and Rubin's degrees of freedom) and stand beside complete cases.",
    )


def _imputed(
    view: View,
    p: MsParams,
    rng: np.random.Generator,
    ledger: Ledger,
    subset: str,
    eliminations: dict[str, Elimination[Ols]],
) -> list[dict[str, Any]]:
    from bids_sodium.stats.regression import impute, ols, pool

    people = view.people.loc[view.members(subset, p)]
    used: list[str] = []
    for found in eliminations.values():
        used += [found.outcome, *found.candidates, *found.forced]
    helpers = [c for c in p.sensitivity if c in people and people[c].notna().any()]
    columns = list(dict.fromkeys([*used, *helpers]))
    people = people[people[columns].notna().mean(axis=1) >= 0.5]
    gaps = people[list(dict.fromkeys(used))].isna().sum()
    if not gaps.any():
        raise DataError(f"no value of {plural(len(people), 'participant')} is missing: complete cases are all cases")
    drawn = impute(people[columns].to_numpy(dtype=np.float64), rng=rng, names=columns, n_imputations=p.imputations)
    at = {name: i for i, name in enumerate(drawn.names)}
    for outcome, found in eliminations.items():
        terms = (*found.retained, *found.forced)
        lost = [name for name in (outcome, *terms) if name not in at]
        with ledger.part(f"{outcome}, {subset}"):
            if not found.retained:
                raise EstimationError("no candidate was retained")
            if lost:
                raise EstimationError(f"{listing(lost)} cannot be imputed: others determine it")
            # people whose outcome was drawn say nothing of it (von Hippel 2007)
            seen = people[outcome].notna().to_numpy()
            fits = [
                ols(
                    np.column_stack([np.ones(int(seen.sum())), *(table[seen, at[name]] for name in terms)]),
                    table[seen, at[outcome]],
                    names=("intercept", *terms),
                    confidence=p.confidence,
                )
                for table in drawn.values
            ]
            both = pool([f.estimate for f in fits], [f.se for f in fits], df=fits[0].df, confidence=p.confidence)
            for i, name in enumerate(terms, start=1):
                if name not in found.retained:
                    continue
                shared: dict[str, Any] = {"subset": subset, "outcome": label(outcome), "term": name, "null": 0.0}
                ledger.add(
                    **shared,
                    model="complete cases",
                    **taken(found.final[name], "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
                    n=found.n,
                    r2=found.final.r2,
                    method="least squares",
                )
                ledger.add(
                    **shared,
                    model="multiple imputation",
                    estimate=both.estimate[i],
                    se=both.se[i],
                    ci_low=both.ci_low[i],
                    ci_high=both.ci_high[i],
                    statistic=both.statistic[i],
                    df=both.df[i],
                    p=both.p[i],
                    n=fits[0].n,
                    r2=float(np.mean([f.r2 for f in fits])),
                    method=f"{both.n_imputations} tables, Rubin's rules",
                    note=f"{100 * both.missing_information[i]:.1f} % of the variance comes of missing values; "
                    f"{plural(fits[0].n - found.n, 'participant')} more than complete cases",
                )
    return [
        {"subset": subset, "variable": name, "missing": int(count), "of": len(people)}
        for name, count in gaps.items()
        if count
    ]
