"""Missing values drawn several times over: Imputed tables by chained equations, and Pooled estimates from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._design import names_of
from bids_sodium.stats._rows import as_matrix, require_rows

__all__ = ["Imputed", "Pooled", "impute", "pool"]

Float = NDArray[np.float64]
_DONORS = 5
"""Observed values with the nearest predictions, of which one is taken (van Buuren's choice; statsmodels takes 20)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imputed:
    """A table whose missing values are drawn several times."""

    names: tuple[str, ...]
    """Columns."""
    values: Float
    """Completed tables, shape (imputations, n, columns)."""
    n_missing: NDArray[np.intp]
    """Missing values of each column."""
    left_out: tuple[str, ...]
    """Columns that could not take part because others determine them or they do not vary."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pooled:
    """Estimates from several completed tables put together; arrays follow the terms."""

    estimate: Float
    """Means of the estimates."""
    se: Float
    """Standard errors, within and between tables."""
    ci_low: Float
    """Lower confidence limits."""
    ci_high: Float
    """Upper confidence limits."""
    statistic: Float
    """t."""
    df: Float
    """Barnard and Rubin's degrees of freedom."""
    p: Float
    """Two-sided p values."""
    missing_information: Float
    """Share of the variance that the missing values cause."""
    n_imputations: int
    """Completed tables."""


def impute(
    values: ArrayLike,
    *,
    rng: np.random.Generator,
    names: Sequence[str] | None = None,
    n_imputations: int = 20,
    n_burnin: int = 10,
    n_skip: int = 3,
) -> Imputed:
    """Draw missing values by chained equations with predictive mean matching.

    Each column with gaps is regressed on all others, its coefficients are drawn, and a gap takes the value of one of
    the five people whose predictions are nearest: drawn values are values that were seen. Where gaps lie beyond what
    was seen (a third of the values, mostly the highest) the draws are drawn back: intervals of 95 % then cover 89 %.

    Parameters
    ----------
    values : array_like
        Table, shape (n, columns); NaN is missing.
    rng : numpy.random.Generator
        Draws coefficients and donors.
    names : sequence of str, optional
        Names of the columns.
    n_imputations : int, optional
        Completed tables.
    n_burnin, n_skip : int, optional
        Rounds before the first table and between two.

    Returns
    -------
    Imputed
        Completed tables, of the columns that could take part.

    Raises
    ------
    DataError
        If a row holds no value at all.
    EstimationError
        If a column has fewer observed values than the regression on the others needs.

    References
    ----------
    van Buuren S. Flexible Imputation of Missing Data. CRC Press, 2018. https://doi.org/10.1201/9780429492259
    Seabold S, Perktold J. statsmodels: econometric and statistical modeling with Python. SciPy 2010.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=80)
    >>> table = np.column_stack([x, 2 * x + 0.1 * rng.normal(size=80)])
    >>> table[:10, 1] = np.nan
    >>> drawn = impute(table, rng=rng, n_imputations=3)
    >>> drawn.values.shape, bool(np.abs(drawn.values[:, :10, 1] - 2 * x[:10]).max() < 1.5)
    ((3, 80, 2), True)
    """
    table = as_matrix(values, "values")
    terms = names_of(names, table.shape[1])
    empty = np.isnan(table).all(axis=1)
    if empty.any():
        raise DataError(f"{int(empty.sum())} of {len(table)} rows hold no value at all", hint="leave these rows out")
    kept = _independent(table)
    seen = (~np.isnan(table[:, kept])).sum(axis=0)
    for j, count in zip(kept, seen, strict=True):
        require_rows(int(count), len(kept) + 2, f"the imputation of {terms[j]} from {len(kept) - 1} columns")
    centre, spread = np.nanmean(table[:, kept], axis=0), np.nanstd(table[:, kept], axis=0)
    scaled = (table[:, kept] - centre) / spread
    gaps = np.isnan(scaled)
    completed = np.repeat(np.where(gaps, 0.0, scaled)[None], n_imputations, axis=0)
    if gaps.any():
        chain = _chain(scaled, rng)
        chain.update_all(n_burnin)
        for i in range(n_imputations):
            chain.update_all(n_skip if i else 1)
            completed[i] = chain.data.to_numpy(dtype=np.float64)
    return Imputed(
        names=tuple(terms[j] for j in kept),
        values=completed * spread + centre,
        n_missing=gaps.sum(axis=0).astype(np.intp),
        left_out=tuple(name for j, name in enumerate(terms) if j not in kept),
    )


def _chain(scaled: Float, rng: np.random.Generator) -> Any:
    """Return statsmodels' chained equations on arrays.

    It reads the columns as a formula anew in every round, which takes nearly all of its time; here designs are slices
    of the table.
    """
    import pandas as pd
    from statsmodels.imputation.mice import MICEData

    class Chain(MICEData):  # type: ignore[misc]  # statsmodels has no types
        def _design(self, name: str) -> Float:
            others = self.data.drop(columns=name).to_numpy(dtype=np.float64)
            return np.column_stack([np.ones(len(others)), others])

        def get_fitting_data(self, name: str) -> tuple[Float, Float, dict[str, Any], dict[str, Any]]:
            seen = self.ix_obs[name]
            return self.data[name].to_numpy(dtype=np.float64)[seen], self._design(name)[seen], {}, {}

        def get_split_data(self, name: str) -> tuple[Float, Float, Float, dict[str, Any], dict[str, Any]]:
            design, seen = self._design(name), self.ix_obs[name]
            values = self.data[name].to_numpy(dtype=np.float64)[seen]
            return values, design[seen], design[self.ix_miss[name]], {}, {}

    return Chain(pd.DataFrame(scaled, columns=[f"v{j}" for j in range(scaled.shape[1])]), k_pmm=_DONORS, rng=rng)


def _independent(table: Float) -> list[int]:
    """Return the columns that vary and that those before them do not determine, gaps at their means."""
    known = ~np.isnan(table)
    filled = np.where(known, table, 0.0)
    count = np.maximum(known.sum(axis=0), 1)
    mean = filled.sum(axis=0) / count
    centred = np.where(known, table - mean, 0.0)
    kept: list[int] = []
    basis = np.empty((table.shape[0], 0))
    for j in range(table.shape[1]):
        length = float(np.linalg.norm(centred[:, j]))
        if length <= 1e-9 * abs(float(mean[j])) * np.sqrt(count[j]) or length == 0:
            continue
        rest = centred[:, j] - basis @ (basis.T @ centred[:, j])
        left = float(np.linalg.norm(rest))
        if left > 1e-6 * length:
            kept.append(j)
            basis = np.column_stack([basis, rest / left])
    if len(kept) < 2:
        raise EstimationError(f"{len(kept)} of {table.shape[1]} columns vary by themselves; 2 are needed to impute")
    return kept


def pool(estimates: ArrayLike, se: ArrayLike, *, df: float, confidence: float = 0.95) -> Pooled:
    """Put estimates from completed tables together by Rubin's rules.

    Parameters
    ----------
    estimates, se : array_like
        Estimates and standard errors, shape (imputations, terms).
    df : float
        Residual degrees of freedom that the table would have were it complete.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    Pooled
        Means with errors T = W + (1 + 1/m) B of variance W within and B between tables.

    Raises
    ------
    DataError
        If there are fewer than 2 tables, or shapes differ.

    References
    ----------
    Rubin DB. Multiple Imputation for Nonresponse in Surveys. Wiley, 1987.
    Barnard J, Rubin DB. Small-sample degrees of freedom with multiple imputation. Biometrika 1999.
    https://doi.org/10.1093/biomet/86.4.948

    Examples
    --------
    >>> result = pool([[1.0], [1.2], [0.8]], [[0.5], [0.5], [0.5]], df=50)
    >>> round(float(result.estimate[0]), 2), round(float(result.se[0]), 3)
    (1.0, 0.551)
    """
    from scipy.stats import t as student

    b, s = as_matrix(estimates, "estimates"), as_matrix(se, "se")
    m = b.shape[0]
    if b.shape != s.shape or m < 2:
        raise DataError(f"estimates of shape {b.shape} and errors of shape {s.shape}, expected 2 tables or more")
    mean, within, between = b.mean(axis=0), np.mean(s**2, axis=0), b.var(axis=0, ddof=1)
    total = within + (1 + 1 / m) * between
    share = (1 + 1 / m) * between / total
    observed = (df + 1) / (df + 3) * df * (1 - share)
    with np.errstate(divide="ignore"):
        old = np.where(share > 0, (m - 1) / share**2, np.inf)
        freedom = 1 / (1 / old + 1 / observed)
    error = np.sqrt(total)
    half = student.ppf(0.5 + confidence / 2, freedom) * error
    statistic = mean / error
    return Pooled(
        estimate=mean,
        se=error,
        ci_low=mean - half,
        ci_high=mean + half,
        statistic=statistic,
        df=freedom,
        p=np.asarray(2 * student.sf(np.abs(statistic), freedom)),
        missing_information=share,
        n_imputations=m,
    )
