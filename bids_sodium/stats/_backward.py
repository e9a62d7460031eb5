"""Backward elimination: Elimination, its EliminationStep and TermTest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError
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
        If too few rows are complete, columns are collinear, or the outcome does not vary.

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
    k = len(names)
    count, fitted = np.zeros(k), 0
    for products in _resampled_products(values[:, [*range(1, values.shape[1]), 0]], n_resamples, rng):
        retained = _retained(products, n, k, p_remove, p_enter)
        if retained is not None:
            count[retained] += 1
            fitted += 1
    if not fitted:
        raise EstimationError(f"none of {n_resamples} resamples of {n} rows can be fitted")
    return {name: float(c / fitted) for name, c in zip(names, count, strict=True)}


def _resampled_products(values: Float, n_resamples: int, rng: np.random.Generator) -> Iterator[Float]:
    """Yield the cross-products of the constant and all columns in each resample of the rows.

    Every model of an elimination follows from them; columns are centred and scaled first, so that they keep the digits.
    """
    n = values.shape[0]
    spread = values.std(axis=0)
    scaled = np.column_stack([np.ones(n), (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)])
    upper = np.triu_indices(scaled.shape[1])
    pairs = scaled[:, upper[0]] * scaled[:, upper[1]]
    for _ in range(n_resamples):
        weight = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        products = np.empty((scaled.shape[1], scaled.shape[1]))
        products[upper] = weight @ pairs
        products.T[upper] = products[upper]
        yield products


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


def _retained(products: Float, n: int, k: int, p_remove: float, p_enter: float) -> list[int] | None:
    """Eliminate without keeping the path; None where a model is singular.

    The columns of the products are the constant, k candidates, the forced terms and the outcome.
    """
    forced = list(range(k + 1, products.shape[0] - 1))
    inside = []
    for j in range(k):
        p = _p_values(products, [0, j + 1], n)
        if p is None:
            return None
        if p[1] < p_enter:
            inside.append(j)
    while inside:
        p = _p_values(products, [0, *(j + 1 for j in inside), *forced], n)
        if p is None:
            return None
        tested = p[1 : len(inside) + 1]
        worst = int(np.argmax(tested))
        if tested[worst] <= p_remove:
            break
        del inside[worst]
    return inside


def _p_values(products: Float, columns: list[int], n: int) -> Float | None:
    from scipy.special import stdtr

    A, b = products[np.ix_(columns, columns)], products[columns, -1]
    scale = np.sqrt(np.diag(A))
    if not scale.all():
        return None
    try:
        factor = np.linalg.cholesky(A / np.outer(scale, scale))
    except np.linalg.LinAlgError:
        return None
    if np.diag(factor).min() < 1e-5:  # a column is all but a combination of the others
        return None
    inverse = np.linalg.solve(factor, np.eye(len(columns)))
    inverse = (inverse.T @ inverse) / np.outer(scale, scale)
    beta = inverse @ b
    rss = float(products[-1, -1] - b @ beta)
    if rss <= 1e-12 * products[-1, -1]:
        return None
    df = n - len(columns)
    t = beta / np.sqrt(rss / df * np.diag(inverse))
    return np.asarray(2 * stdtr(df, -np.abs(t)))
