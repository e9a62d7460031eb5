"""Backward elimination: Elimination, its EliminationStep and TermTest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._design import about_means, refuse_collinear
from bids_sodium.stats._meta import Moments, PooledModel, fit_moments, with_sites
from bids_sodium.stats._ols import Coefficient, Ols, ols
from bids_sodium.stats._rows import as_column, require_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Elimination",
    "EliminationStep",
    "TermTest",
    "backward",
    "backward_moments",
    "selection_frequency",
]

Float = NDArray[np.float64]
_SINGULAR = 1e-11  # least eigenvalue of a correlation matrix, and least share of variance left, that can be solved


class _Fitted(Protocol):
    def __getitem__(self, name: str, /) -> Coefficient: ...


Model = TypeVar("Model", bound=_Fitted)


@dataclass(frozen=True, slots=True, kw_only=True)
class TermTest:
    """A candidate in one model."""

    name: str
    """Candidate."""
    estimate: float
    """Coefficient."""
    se: float
    """Standard error."""
    ci_low: float
    """Lower confidence limit."""
    ci_high: float
    """Upper confidence limit."""
    p: float
    """Two-sided p value."""
    df: int
    """Residual degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminationStep:
    """One model on the way."""

    in_model: tuple[str, ...]
    """Candidates in the model, the forced terms besides."""
    p: tuple[float, ...]
    """Their p values."""
    removed: str | None
    """The candidate taken out; None where the elimination ends."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Elimination(Generic[Model]):
    """Path and end of a backward elimination."""

    outcome: str
    """Outcome."""
    candidates: tuple[str, ...]
    """Candidates, in the order given."""
    forced: tuple[str, ...]
    """Terms that every model holds."""
    univariable: tuple[TermTest, ...]
    """Each candidate alone, without the forced terms."""
    entered: tuple[str, ...]
    """Candidates that passed the univariable screen."""
    path: tuple[EliminationStep, ...]
    """Models on the way; empty where no candidate entered."""
    retained: tuple[str, ...]
    """Candidates in the final model."""
    final: Model
    """The final model: intercept, retained candidates, forced terms."""
    retests: tuple[TermTest, ...]
    """Each omitted candidate added to the final model."""
    p_remove: float
    """p value above which a candidate is taken out."""
    p_enter: float
    """Univariable p value below which a candidate enters."""
    n: int
    """Rows complete over outcome, all candidates and forced terms."""
    n_missing: int
    """Rows left out as incomplete."""

    @property
    def any_omitted_significant(self) -> bool:
        """Whether a candidate left out would stay if it were put back."""
        return any(test.p <= self.p_remove for test in self.retests)


def backward(
    table: pd.DataFrame,
    outcome: str,
    candidates: Sequence[str],
    forced: Sequence[str] | str = (),
    p_remove: float = 0.08,
    *,
    p_enter: float = 0.05,
    confidence: float = 0.95,
) -> Elimination[Ols]:
    """Eliminate candidates from a linear model.

    Candidates with a univariable p below ``p_enter`` enter together; the one with the largest p is taken out while
    that exceeds ``p_remove``; every omitted candidate is then tested again in the final model. Rows must be complete
    over all candidates, so that every model sees the same people. On null data some candidate stays in 11 % (three
    candidates) to 17 % (seven) of analyses; p values of the final model do not know of the search.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a participant.
    outcome : str
        Column of the outcome.
    candidates : sequence of str
        Columns that may be eliminated.
    forced : sequence of str or str, optional
        Columns that never are.
    p_remove : float, optional
        p value above which a candidate is taken out.
    p_enter : float, optional
        Univariable p value below which a candidate enters; 1 lets all in.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    Elimination
        Univariable tests, path, final model and re-tests.

    Raises
    ------
    DataError
        If a column is missing or named twice.
    EstimationError
        If too few rows are complete, columns are collinear (to the digits of a written table), or the outcome does not
        vary.

    Examples
    --------
    >>> import pandas as pd
    >>> rng = np.random.default_rng(1)
    >>> table = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "age"])
    >>> table["y"] = 2 * table["a"] + 0.5 * rng.normal(size=60)
    >>> backward(table, "y", ["a", "b"], forced="age").retained
    ('a',)
    """
    kept = (forced,) if isinstance(forced, str) else tuple(forced)
    names = tuple(candidates)
    columns = _columns(table, (outcome, *names, *kept))
    values = np.column_stack(list(columns.values()))
    whole = ~np.isnan(values).any(axis=1)
    n, n_missing = int(whole.sum()), int((~whole).sum())
    require_rows(n, len(names) + len(kept) + 3, f"backward elimination of {outcome}", n_missing=n_missing)
    refuse_collinear(about_means(values[whole, 1:]), (*names, *kept), n)
    data = {name: column[whole] for name, column in columns.items()}
    y = data[outcome]

    def fit(terms: Sequence[str]) -> Ols:
        X = np.column_stack([np.ones(n), *(data[name] for name in terms)])
        return ols(X, y, names=("intercept", *terms), confidence=confidence)

    return _eliminate(fit, outcome, names, kept, p_remove=p_remove, p_enter=p_enter, n=n, n_missing=n_missing)


def backward_moments(
    sites: Sequence[Moments],
    outcome: str,
    candidates: Sequence[str],
    forced: Sequence[str] = (),
    p_remove: float = 0.08,
    *,
    p_enter: float = 0.05,
    confidence: float = 0.95,
    site_dummies: bool = False,
) -> Elimination[PooledModel]:
    """Eliminate candidates from a linear model of all sites' rows, which nobody sees.

    Parameters
    ----------
    sites : sequence of Moments
        Moments of each site; the columns of X are the constant, the candidates and the forced terms, in this order.
    outcome, candidates, forced, p_remove, p_enter, confidence
        As for `backward`.
    site_dummies : bool, optional
        Whether every model holds a dummy of each site but the first.

    Returns
    -------
    Elimination
        What `backward` gives on the stacked rows.

    Raises
    ------
    DataError
        If the sites differ in their columns or there are none.
    EstimationError
        If there are too few rows or columns are collinear.

    Examples
    --------
    >>> from bids_sodium.stats._meta import moments
    >>> rng = np.random.default_rng(1)
    >>> X = np.column_stack([np.ones(60), rng.normal(size=(60, 3))])
    >>> y = 2 * X[:, 1] + 0.5 * rng.normal(size=60)
    >>> parts = [moments(X[:25], y[:25]), moments(X[25:], y[25:])]
    >>> backward_moments(parts, "y", ["a", "b"], ["age"]).retained
    ('a',)
    """
    names, kept = tuple(candidates), tuple(forced)
    columns = ("intercept", *names, *kept)
    n = sum(site.n for site in sites)
    require_rows(n, len(names) + len(kept) + 3, f"backward elimination of {outcome}")
    cross = np.sum([site.XtX for site in sites], axis=0)
    if cross.shape == (len(columns), len(columns)):  # other shapes are refused by the fit
        refuse_collinear(cross[1:, 1:] - np.outer(cross[0, 1:], cross[0, 1:]) / n, columns[1:], n)

    def fit(terms: Sequence[str]) -> PooledModel:
        chosen = [0, *(columns.index(name) for name in terms)]
        parts = [site.of(chosen) for site in sites]
        labels = ["intercept", *terms]
        if site_dummies:
            parts, labels = list(with_sites(parts)), [*labels, *(f"site {i + 1}" for i in range(1, len(sites)))]
        return fit_moments(parts, names=labels, confidence=confidence)

    return _eliminate(fit, outcome, names, kept, p_remove=p_remove, p_enter=p_enter, n=n, n_missing=0)


def _eliminate(
    fit: Callable[[Sequence[str]], Model],
    outcome: str,
    names: tuple[str, ...],
    kept: tuple[str, ...],
    *,
    p_remove: float,
    p_enter: float,
    n: int,
    n_missing: int,
) -> Elimination[Model]:
    univariable = tuple(_term(fit([name]), name) for name in names)
    inside = [test.name for test in univariable if test.p < p_enter]
    entered = tuple(inside)
    path: list[EliminationStep] = []
    model = fit([*inside, *kept])
    while inside:
        p = tuple(model[name].p for name in inside)
        worst = int(np.argmax(p))
        removed = inside[worst] if p[worst] > p_remove else None
        path.append(EliminationStep(in_model=tuple(inside), p=p, removed=removed))
        if removed is None:
            break
        inside.remove(removed)
        model = fit([*inside, *kept])
    omitted = [name for name in names if name not in inside]
    return Elimination(
        outcome=outcome,
        candidates=names,
        forced=kept,
        univariable=univariable,
        entered=entered,
        path=tuple(path),
        retained=tuple(inside),
        final=model,
        retests=tuple(_term(fit([*inside, *kept, name]), name) for name in omitted),
        p_remove=p_remove,
        p_enter=p_enter,
        n=n,
        n_missing=n_missing,
    )


def selection_frequency(
    table: pd.DataFrame,
    outcome: str,
    candidates: Sequence[str],
    forced: Sequence[str] | str = (),
    p_remove: float = 0.08,
    *,
    p_enter: float = 0.05,
    rng: np.random.Generator,
    n_resamples: int = 200,
) -> Mapping[str, float]:
    """Return how often each candidate is retained when the rows are drawn again.

    Parameters
    ----------
    table, outcome, candidates, forced, p_remove, p_enter
        As for `backward`.
    rng : numpy.random.Generator
        Draws the resamples.
    n_resamples : int, optional
        Bootstrap resamples of the complete rows; those that cannot be fitted do not count.

    Returns
    -------
    mapping of str to float
        Share of resamples that retain each candidate.

    Raises
    ------
    EstimationError
        If the complete rows are too few, or no resample can be fitted.

    Examples
    --------
    >>> import pandas as pd
    >>> rng = np.random.default_rng(1)
    >>> table = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "age"])
    >>> table["y"] = 2 * table["a"] + 0.5 * rng.normal(size=60)
    >>> selection_frequency(table, "y", ["a", "b"], "age", rng=rng, n_resamples=20)["a"]
    1.0
    """
    kept = (forced,) if isinstance(forced, str) else tuple(forced)
    names = tuple(candidates)
    values = np.column_stack(list(_columns(table, (outcome, *names, *kept)).values()))
    values = values[~np.isnan(values).any(axis=1)]
    n = values.shape[0]
    require_rows(n, len(names) + len(kept) + 3, f"backward elimination of {outcome}")
    products = _resampled_products(values[:, [*range(1, values.shape[1]), 0]], n_resamples, rng)
    retained, fitted = _retained(products, n, len(names), p_remove, p_enter)
    if not fitted.any():
        raise EstimationError(f"none of {n_resamples} resamples of {n} rows can be fitted")
    return {name: float(share) for name, share in zip(names, retained[fitted].mean(axis=0), strict=True)}


def _resampled_products(values: Float, n_resamples: int, rng: np.random.Generator) -> Float:
    """Return the cross-products of the constant and all columns, shape (resamples, columns, columns).

    Every model of an elimination follows from them; columns are centred and scaled first, so that they keep the digits.
    """
    n = values.shape[0]
    spread = values.std(axis=0)
    scaled = np.column_stack([np.ones(n), (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)])
    upper = np.triu_indices(scaled.shape[1])
    pairs = scaled[:, upper[0]] * scaled[:, upper[1]]
    products = np.empty((n_resamples, scaled.shape[1], scaled.shape[1]))
    for one in products:
        weight = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        one[upper] = weight @ pairs
        one.T[upper] = one[upper]
    return products


def _columns(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Float]:
    absent = [name for name in names if name not in table.columns]
    if absent:
        raise DataError(f"missing column(s) {', '.join(absent)}; found {', '.join(map(str, table.columns))}")
    if len(set(names)) < len(names):
        raise DataError(f"a column is named twice among {', '.join(names)}")
    return {name: as_column(table[name].to_numpy(dtype=np.float64, na_value=np.nan), name) for name in names}


def _term(model: _Fitted, name: str) -> TermTest:
    c = model[name]
    return TermTest(name=name, estimate=c.estimate, se=c.se, ci_low=c.ci_low, ci_high=c.ci_high, p=c.p, df=int(c.df))


def _retained(
    products: Float, n: int, k: int, p_remove: float, p_enter: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Eliminate in every resample without keeping the path: which candidates stay, and which resamples can be fitted.

    The columns of the products are the constant, k candidates, the forced terms and the outcome.
    """
    forced = list(range(k + 1, products.shape[1] - 1))
    alone = np.column_stack([_p_values(products, [0, j + 1], n)[:, 1] for j in range(k)])
    fitted = np.asarray(~np.isnan(alone).any(axis=1))
    inside = alone < p_enter
    going = fitted & inside.any(axis=1)
    while going.any():
        at = np.flatnonzero(going)
        sets, belongs = np.unique(inside[at], axis=0, return_inverse=True)
        for i, terms in enumerate(sets):  # resamples that hold the same terms are solved together
            rows, held = at[belongs.reshape(-1) == i], np.flatnonzero(terms)
            tested = _p_values(products[rows], [0, *(held + 1), *forced], n)[:, 1 : held.size + 1]
            singular = np.isnan(tested).any(axis=1)
            fitted[rows[singular]] = False
            worst = np.argmax(tested, axis=1)
            out = ~singular & (tested[np.arange(rows.size), worst] > p_remove)
            inside[rows[out], held[worst[out]]] = False
            going[rows] = out & inside[rows].any(axis=1)
    return inside, fitted


def _p_values(products: Float, columns: list[int], n: int) -> Float:
    """Return the p values of some columns in every resample, NaN where it is singular or fits perfectly."""
    from scipy.special import stdtr

    A, b = products[:, columns][:, :, columns], products[:, columns, -1]
    scale = np.sqrt(np.einsum("ijj->ij", A))
    whole = (scale > 0).all(axis=1)
    scale = np.where(whole[:, None], scale, 1.0)
    both = scale[:, :, None] * scale[:, None, :]
    unit = np.where(whole[:, None, None], A / both, np.eye(len(columns)))
    # a column is all but a combination of the others
    whole &= np.linalg.eigvalsh(unit)[:, 0] > _SINGULAR
    inverse = np.linalg.inv(np.where(whole[:, None, None], unit, np.eye(len(columns)))) / both
    beta = np.einsum("ijk,ik->ij", inverse, b)
    total = products[:, -1, -1]
    rss = total - np.einsum("ij,ij->i", b, beta)
    whole &= rss > _SINGULAR * total
    df = n - len(columns)
    variance = np.where(whole, rss, 1.0) / df
    t = beta / np.sqrt(variance[:, None] * np.abs(np.einsum("ijj->ij", inverse)))
    return np.where(whole[:, None], 2 * stdtr(df, -np.abs(t)), np.nan)
