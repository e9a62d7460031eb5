"""Sites that keep their rows: each shares `Summary` records, the centre fits the cohort's models from them.

A summary is the cross-product of a design with itself and with its outcome, and the count of rows: the linear models of
all sites' rows follow from the sum of the sites' summaries exactly, and no row can be read from one. Cells of fewer
than five people are withheld by the site itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group._ms_regressions import plans
from bids_sodium.group._ms_sites import add_meta
from bids_sodium.group._ms_view import MsParams, View, label, planned
from bids_sodium.group.results import Analysis, Ledger, Study, attempted, listing, plural, taken
from bids_sodium.stats.harmonization import Moments, fit_moments, moments, with_sites
from bids_sodium.stats.regression import backward_moments

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.stats.harmonization import PooledModel
    from bids_sodium.stats.regression import Elimination

__all__ = ["LEAST_CELL", "Summary", "analyse_summaries", "summaries"]

LEAST_CELL = 5
"""Fewest people in a cell that leaves its site."""

_NOT_FROM_SUMS = (
    "rank tests, proportional odds, bootstrap intervals and diagnostics need rows, which stay at their sites"
)
_Cell: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summary:
    """What one site shares for one model.

    Parameters
    ----------
    site : str
        Site.
    method : str
        Partial-volume method of the concentrations.
    kind : str
        ``"comparison"`` of two groups or ``"regression"`` of a score.
    subset, outcome : str
        Whom and what the model is about.
    candidates, covariates : tuple of str
        Columns of the design after the constant: those that are tested, then those that are adjusted for.
    n : int
        Complete rows; 0 where the cell is withheld or empty.
    moments : Moments or None
        Cross-products; ``None`` where nothing is shared.
    reason : str
        Why nothing is shared.
    """

    site: str
    method: str
    kind: str
    subset: str
    outcome: str
    candidates: tuple[str, ...]
    covariates: tuple[str, ...]
    n: int
    moments: Moments | None
    reason: str = ""

    @property
    def cell(self) -> _Cell:
        """What the summary is about, the same at every site."""
        return self.kind, self.subset, self.outcome

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a file."""
        shared = self.moments
        return {
            "Site": self.site,
            "Method": self.method,
            "Kind": self.kind,
            "Subset": self.subset,
            "Outcome": self.outcome,
            "Candidates": list(self.candidates),
            "Covariates": list(self.covariates),
            "N": self.n,
            "XtX": None if shared is None else shared.XtX.tolist(),
            "Xty": None if shared is None else shared.Xty.tolist(),
            "yty": None if shared is None else shared.yty,
            "Reason": self.reason,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Summary:
        """Return the summary of plain values.

        Raises
        ------
        DataError
            If a value is missing, or cross-products and columns do not fit together.
        """
        try:
            tested, adjusted = tuple(values["Candidates"]), tuple(values["Covariates"])
            shared = None
            if values["XtX"] is not None:
                XtX, Xty = np.array(values["XtX"], dtype=np.float64), np.array(values["Xty"], dtype=np.float64)
                p = 1 + len(tested) + len(adjusted)
                if XtX.shape != (p, p) or Xty.shape != (p,) or not np.isfinite(XtX).all() or not np.isfinite(Xty).all():
                    raise DataError(f"cross-products of shape {XtX.shape} for {p} columns", hint="export them again")
                shared = Moments(XtX=XtX, Xty=Xty, yty=float(values["yty"]), n=int(values["N"]))
            return cls(
                site=str(values["Site"]),
                method=str(values["Method"]),
                kind=str(values["Kind"]),
                subset=str(values["Subset"]),
                outcome=str(values["Outcome"]),
                candidates=tested,
                covariates=adjusted,
                n=int(values["N"]),
                moments=shared,
                reason=str(values["Reason"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"is no summary of a site ({error})", hint="export it again") from error


def summaries(view: View, p: MsParams) -> tuple[Summary, ...]:
    """Return what the sites of a cohort may share.

    Parameters
    ----------
    view : View
        The cohort; its column ``site`` names the sites.
    p : MsParams
        What is compared.

    Returns
    -------
    tuple of Summary
        One for each site and model.
    """
    found: list[Summary] = []
    site = view.people["site"].astype(str).to_numpy()
    for name in sorted(set(site)):
        here = site == name
        for _, variable, covariates, pairs in planned(p):
            for first, second in pairs:
                groups = view.members(first, p), view.members(second, p)
                term = f"{first} - {second}"
                columns = {term: groups[0].astype(float)} | {c: view.column(c) for c in covariates}
                rows = here & (groups[0] | groups[1])
                found.append(
                    _summary(
                        str(name), "comparison", term, variable, columns, 1, view, rows, cells=(groups[0], groups[1])
                    )
                )
        for plan in plans(view, p):
            columns = {c: view.column(c) for c in (*plan.candidates, *plan.forced)}
            rows = here & view.members(plan.subset, p)
            n_tested = len(plan.candidates)
            found.append(
                _summary(str(name), "regression", plan.subset, plan.outcome, columns, n_tested, view, rows, cells=())
            )
    return tuple(found)


def _summary(
    site: str,
    kind: str,
    subset: str,
    outcome: str,
    columns: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]],
    n_tested: int,
    view: View,
    rows: np.ndarray[Any, np.dtype[np.bool_]],
    *,
    cells: Iterable[np.ndarray[Any, np.dtype[np.bool_]]],
) -> Summary:
    y = view.column(outcome)
    # A column that the site does not hold at all is left to the centre, which may do without it everywhere.
    held = {name: values for name, values in columns.items() if not np.isnan(values[rows]).all()}
    X = np.column_stack([np.ones(len(y)), *held.values()])
    whole = rows & ~np.isnan(y) & ~np.isnan(X).any(axis=1)
    n = int(whole.sum())
    counts = [int((cell & whole).sum()) for cell in cells]
    few = [count for count in (n, *counts) if 0 < count < LEAST_CELL]
    names = tuple(held)
    tested = tuple(name for name in names if name in tuple(columns)[:n_tested])
    shared: dict[str, Any] = {
        "site": site,
        "method": view.method,
        "kind": kind,
        "subset": subset,
        "outcome": outcome,
        "candidates": tested,
        "covariates": tuple(name for name in names if name not in tested),
    }
    if n == 0:
        return Summary(**shared, n=0, moments=None, reason="no complete row")
    if few:
        return Summary(**shared, n=0, moments=None, reason=f"a cell of fewer than {LEAST_CELL} people is withheld")
    if n <= X.shape[1]:
        return Summary(**shared, n=0, moments=None, reason="no more rows than columns: withheld, rows could be read")
    return Summary(**shared, n=n, moments=moments(X[whole], y[whole]))


def analyse_summaries(shared: Sequence[Summary], params: MsParams | None = None) -> Study:
    """Fit the MS study's linear models from the sites' summaries.

    Parameters
    ----------
    shared : sequence of Summary
        Summaries of all sites.
    params : MsParams, optional
        Limits of the elimination and level of the intervals.

    Returns
    -------
    Study
        ``sites`` (who shared what), ``comparisons``, ``univariable``, ``regressions`` and ``meta``, each done or left
        out with its reason.

    Raises
    ------
    DataError
        If there is no summary, a site shares one cell twice, or sites used different partial-volume methods.
    """
    p = params or MsParams()
    if not shared:
        raise DataError("no summaries", hint="run the group level with --export-summaries at each site first")
    seen: set[tuple[str, _Cell]] = set()
    for one in shared:
        if (one.site, one.cell) in seen:
            raise DataError(
                f"site {one.site} shares {listing(one.cell)} twice", hint="keep one summary file of each site"
            )
        seen.add((one.site, one.cell))
    methods = {one.site: one.method for one in shared}
    if len(set(methods.values())) > 1:
        raise DataError(
            "concentrations by different partial-volume methods: "
            + listing(f"{site} {method or 'not named'}" for site, method in methods.items()),
            hint="export them with one ms.method at all sites",
        )
    eliminations: dict[_Cell, Elimination[PooledModel]] = {}
    done = []
    for name, title, make in (
        ("sites", "Sites and what they share", _sites),
        ("comparisons", "Group comparisons over all sites", _comparisons),
        ("univariable", "Univariable regressions over all sites", _univariable),
        ("regressions", "Independent associations with clinical scores over all sites", _regressions),
        ("meta", "Meta-analysis of the sites' own estimates", _meta),
    ):
        ledger = Ledger(name, title, confidence=p.confidence)
        done.append(attempted(name, title, partial(make, shared, p, ledger, eliminations)))
    return Study(study="ms", analyses=tuple(done))


_Fits: TypeAlias = dict[_Cell, "Elimination[PooledModel]"]


def _cells(shared: Sequence[Summary], kind: str) -> dict[_Cell, list[Summary]]:
    found: dict[_Cell, list[Summary]] = {}
    for one in shared:
        if one.kind == kind:
            found.setdefault(one.cell, []).append(one)
    return found


def _together(members: Sequence[Summary]) -> tuple[list[Summary], tuple[str, ...], tuple[str, ...], list[str]]:
    """Return the sites that share a cell with all columns any site has, these columns, and who is missing."""
    given = [one for one in members if one.moments is not None]
    if not given:
        raise EstimationError("; ".join(f"{one.site}: {one.reason}" for one in members))
    tested = tuple(dict.fromkeys(name for one in given for name in one.candidates))
    adjusted = tuple(dict.fromkeys(name for one in given for name in one.covariates))
    whole = [one for one in given if {*one.candidates, *one.covariates} == {*tested, *adjusted}]
    missing = [f"{one.site}: {one.reason}" for one in members if one.moments is None]
    missing += [
        f"{one.site}: no values of {listing(sorted({*tested, *adjusted} - {*one.candidates, *one.covariates}))}"
        for one in given
        if one not in whole
    ]
    if not whole:
        raise EstimationError("; ".join(missing))
    return whole, tested, adjusted, missing


def _ordered(one: Summary, names: Sequence[str]) -> Moments:
    assert one.moments is not None  # noqa: S101
    own = (*one.candidates, *one.covariates)
    return one.moments.of([0, *(1 + own.index(name) for name in names)])


def _members(one: Summary) -> dict[str, int]:
    """Return how many of the two groups of a comparison a site shares."""
    assert one.moments is not None  # noqa: S101
    first, second = one.subset.split(" - ")
    # the sum of the dummy stands beside the count of rows
    count = round(float(one.moments.XtX[0, 1 + (*one.candidates, *one.covariates).index(one.subset)]))
    return {first: count, second: one.n - count}


def _require_meeting(whole: Sequence[Summary]) -> None:
    """Refuse a comparison of groups that never meet at one site."""
    tally = {one.site: _members(one) for one in whole}
    if not any(all(counts.values()) for counts in tally.values()):
        told = "; ".join(
            f"{site}: {', '.join(f'{n} {group}' for group, n in counts.items())}" for site, counts in tally.items()
        )
        first, second = whole[0].subset.split(" - ")
        raise EstimationError(f"{first} and {second} never meet at one site ({told}): site and group are confounded")


def _counts(shared: Sequence[Summary], p: MsParams) -> pd.DataFrame:
    """Return how many of each group every site shares, of the comparison with most of them; gaps are withheld."""
    import pandas as pd

    found: dict[str, dict[str, int]] = {}
    for one in shared:
        own = found.setdefault(one.site, {})
        if one.kind == "comparison" and one.moments is not None and one.subset in one.candidates:
            for group, n in _members(one).items():
                own[group] = max(n, own.get(group, 0))
    order = [g for g in (p.controls, p.cis, "MS", *p.ms_groups) if any(g in own for own in found.values())]
    return pd.DataFrame([{"site": site, **{g: own.get(g) for g in order}} for site, own in found.items()])


def _sites(shared: Sequence[Summary], p: MsParams, ledger: Ledger, fits: _Fits) -> Analysis:
    """Who shared which cell, and what was withheld."""
    del fits
    import pandas as pd

    rows = [
        {
            "site": one.site,
            "kind": one.kind,
            "subset": one.subset,
            "outcome": one.outcome,
            "n": one.n if one.moments is not None else "",
            "reason": one.reason,
        }
        for one in shared
    ]
    ledger.skip("analyses of rows", _NOT_FROM_SUMS)
    return ledger.close(
        data={"counts": _counts(shared, p), "shared": pd.DataFrame(rows)},
        text="Sites shared cross-products and counts, no rows; cells of fewer than "
        f"{LEAST_CELL} people were withheld by the site.",
    )


def _note(members: Sequence[Summary], missing: Sequence[str]) -> str:
    words = plural(len(members), "site")
    return f"{words}; without {'; '.join(missing)}" if missing else words


def _comparisons(shared: Sequence[Summary], p: MsParams, ledger: Ledger, fits: _Fits) -> Analysis:
    """Group comparisons as published, and with the sites as fixed effects."""
    del fits
    for (_, term, variable), members in _cells(shared, "comparison").items():
        with ledger.part(f"{variable}, {term}"):
            whole, tested, adjusted, missing = _together(members)
            if tested != (term,):
                raise EstimationError(f"no site shares {term}")
            _require_meeting(whole)
            parts = [_ordered(one, (term, *adjusted)) for one in whole]
            for sites_in in (False, True) if len(whole) > 1 else (False,):
                labels = ["intercept", term, *adjusted]
                used: Sequence[Moments] = with_sites(parts) if sites_in else parts
                labels += [f"site {one.site}" for one in whole[1:]] if sites_in else []
                fit = fit_moments(used, names=labels, confidence=p.confidence)
                ledger.add(
                    model="pairwise dummy"
                    + (f" + {' + '.join(adjusted)}" if adjusted else "")
                    + (" + site" if sites_in else ""),
                    subset=term.replace(" - ", " and "),
                    outcome=label(variable),
                    term=term,
                    **taken(fit[term], "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
                    n=fit.n,
                    r2=fit.r2,
                    null=0.0,
                    method="linear regression from cross-products; Holm over all rows",
                    note=_note(whole, missing),
                )
    ledger.adjust()
    return ledger.close(
        text="The published comparisons were fitted to the sums of the sites' cross-products, which gives the "
        "coefficients of the stacked rows, without and with the sites as fixed effects."
    )


def _univariable(shared: Sequence[Summary], p: MsParams, ledger: Ledger, fits: _Fits) -> Analysis:
    """Each candidate alone; makes the eliminations that the next part reads."""
    for cell, members in _cells(shared, "regression").items():
        _, subset, outcome = cell
        with ledger.part(f"{outcome}, {subset}"):
            whole, tested, adjusted, missing = _together(members)
            if not tested:
                raise EstimationError("no candidate is shared")
            parts = [_ordered(one, (*tested, *adjusted)) for one in whole]
            found = backward_moments(
                parts, outcome, tested, adjusted, p.p_remove, p_enter=p.p_enter, confidence=p.confidence
            )
            fits[cell] = found
            for test in found.univariable:
                ledger.add(
                    model="univariable",
                    subset=subset,
                    outcome=label(outcome),
                    term=test.name,
                    **taken(test, "estimate", "se", "ci_low", "ci_high", "df", "p"),
                    statistic=test.estimate / test.se,
                    n=found.n,
                    null=0.0,
                    method="linear regression from cross-products; Benjamini-Hochberg over all rows",
                    note=_note(whole, missing),
                )
    ledger.adjust(method="bh")
    return ledger.close(text=f"Candidates with a univariable p below {p.p_enter:g} entered the multivariable models.")


def _regressions(shared: Sequence[Summary], p: MsParams, ledger: Ledger, fits: _Fits) -> Analysis:
    """Backward elimination as published, from cross-products."""
    del shared
    if not fits:
        raise EstimationError("no elimination could be made; see the univariable analyses")
    for subset in dict.fromkeys(subset for _, subset, _ in fits):
        start = len(ledger)
        for (_, where, outcome), found in fits.items():
            if where == subset:
                _terms(p, ledger, found, subset, outcome, found.retained)
        ledger.adjust(start, method="bh")
    for (_, subset, outcome), found in fits.items():
        fit = found.final
        _terms(p, ledger, found, subset, outcome, found.forced)
        for test in found.retests:
            ledger.add(
                model="re-test of an omitted term",
                subset=subset,
                outcome=label(outcome),
                term=test.name,
                **taken(test, "estimate", "se", "ci_low", "ci_high", "df", "p"),
                statistic=test.estimate / test.se,
                n=fit.n,
                null=0.0,
                method="added to the final model",
            )
    return ledger.close(
        text=f"Candidates were eliminated backwards while p exceeded {p.p_remove:g}; each omitted candidate was tested "
        "again in the final model."
    )


def _terms(
    p: MsParams, ledger: Ledger, found: Elimination[PooledModel], subset: str, outcome: str, names: Iterable[str]
) -> None:
    """Add terms of a final model."""
    fit = found.final
    for name in names:
        ledger.add(
            model="backward elimination",
            subset=subset,
            outcome=label(outcome),
            term=name,
            **taken(fit[name], "estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"),
            n=fit.n,
            r2=fit.r2,
            null=0.0,
            method=f"linear regression from cross-products, removed at p > {p.p_remove:g}"
            + ("; Benjamini-Hochberg over the retained terms of all outcomes" if name in found.retained else ""),
            note="retained" if name in found.retained else "forced covariate",
        )


def _meta(shared: Sequence[Summary], p: MsParams, ledger: Ledger, fits: _Fits) -> Analysis:
    """Each site's own estimate of every group difference, combined by REML with Hartung and Knapp's error."""
    del fits
    import pandas as pd

    forest: list[dict[str, Any]] = []
    for (_, term, variable), members in _cells(shared, "comparison").items():
        with ledger.part(f"{variable}, {term}"):
            whole, _, adjusted, missing = _together(members)
            _require_meeting(whole)
            rows: list[dict[str, Any]] = []
            for one in whole:
                try:
                    fit = fit_moments(
                        [_ordered(one, (term, *adjusted))],
                        names=["intercept", term, *adjusted],
                        confidence=p.confidence,
                    )
                except EstimationError as error:
                    missing.append(f"{one.site}: {error.what}")
                    continue
                rows.append({"site": one.site, "n": one.n} | taken(fit[term], "estimate", "se", "ci_low", "ci_high"))
            forest += add_meta(ledger, p, variable, term, rows=rows, missing=missing)
    ledger.adjust()
    return ledger.close(
        data={"forest": pd.DataFrame(forest)},
        text="Beside the pooled models, every site's own estimate was combined in two stages (REML, Hartung-Knapp).",
    )
