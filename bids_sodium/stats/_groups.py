"""Group means adjusted for covariates: GroupDifference of two groups, GroupMeans of several in one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._design import about_means, refuse_collinear
from bids_sodium.stats._multiplicity import adjust
from bids_sodium.stats._ols import Ols, ols
from bids_sodium.stats._rows import as_column, as_matrix, complete, labels_of

__all__ = ["GroupContrast", "GroupDifference", "GroupMeans", "group_difference", "group_means"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupDifference:
    """Difference of two groups, first minus second, at equal covariates."""

    estimate: float
    """Adjusted difference."""
    se: float
    """Standard error."""
    ci_low: float
    """Lower confidence limit."""
    ci_high: float
    """Upper confidence limit."""
    statistic: float
    """t."""
    df: int
    """Residual degrees of freedom."""
    p: float
    """Two-sided p value."""
    se_hc3: float
    """Heteroscedasticity-consistent standard error HC3."""
    adjusted_mean_first: float
    """Mean of the first group at the covariate means of both groups together."""
    adjusted_mean_second: float
    """Mean of the second group there."""
    n_first: int
    """Complete rows of the first group."""
    n_second: int
    """Complete rows of the second group."""
    n_missing: int
    """Rows of the two groups left out as incomplete."""
    model: Ols
    """The linear model: intercept, group, covariates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupContrast:
    """Difference of two groups in a model of several."""

    first: str
    """Group."""
    second: str
    """Group subtracted."""
    estimate: float
    """Adjusted difference first minus second."""
    se: float
    """Standard error."""
    ci_low: float
    """Lower confidence limit, not adjusted."""
    ci_high: float
    """Upper confidence limit, not adjusted."""
    statistic: float
    """t."""
    df: int
    """Residual degrees of freedom."""
    p: float
    """Two-sided p value."""
    p_holm: float
    """p value adjusted over all pairs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupMeans:
    """Adjusted means of several groups from one model."""

    groups: tuple[str, ...]
    """Groups; the first is the reference of the model."""
    mean: Float
    """Means at the covariate means of all groups together, shape (g,)."""
    se: Float
    """Their standard errors."""
    ci_low: Float
    """Lower confidence limits."""
    ci_high: Float
    """Upper confidence limits."""
    n: NDArray[np.intp]
    """Complete rows of each group."""
    statistic: float
    """F of all groups being equal."""
    df_numerator: int
    """Groups less one."""
    df: int
    """Residual degrees of freedom."""
    p: float
    """Its p value."""
    contrasts: tuple[GroupContrast, ...]
    """Every pair, later group minus earlier."""
    n_missing: int
    """Rows left out as incomplete."""
    model: Ols
    """The linear model: intercept, dummies of the later groups, covariates."""


def group_difference(
    y: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    covariates: ArrayLike | None = None,
    *,
    names: Sequence[str] = (),
    confidence: float = 0.95,
) -> GroupDifference:
    """Compare two groups by a dummy variable and linear covariates; rows of neither group are not used.

    Parameters
    ----------
    y : array_like
        Outcome, shape (n,).
    first, second : array_like of bool
        Which rows belong to each group, shape (n,).
    covariates : array_like, optional
        Covariates, shape (n,) or (n, k).
    names : sequence of str, optional
        Names of the covariates.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    GroupDifference
        Adjusted difference and means.

    Raises
    ------
    DataError
        If a row belongs to both groups or the columns differ in length.
    EstimationError
        If a group has no complete row, too few rows are left, or a covariate is collinear with the groups.

    Examples
    --------
    >>> y = [1.0, 2.0, 3.0, 5.0, 6.0, 7.5]
    >>> inside = np.array([0, 0, 0, 1, 1, 1], dtype=bool)
    >>> result = group_difference(y, inside, ~inside)
    >>> round(result.estimate, 3), round(result.p, 4)
    (4.167, 0.0109)
    """
    outcome = as_column(y, "y")
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    Z = np.empty((outcome.size, 0)) if covariates is None else as_matrix(covariates, "covariates")
    if not a.shape == b.shape == outcome.shape or Z.shape[0] != outcome.size:
        raise DataError(f"the columns differ in length: y {outcome.size}, groups {a.size} and {b.size}, {Z.shape[0]}")
    if (a & b).any():
        raise DataError(f"{int((a & b).sum())} rows belong to both groups")
    whole = complete(outcome, Z, names=("y", "covariates"))
    n_missing = int(((a | b) & ~whole).sum())
    used = (a | b) & whole
    n_first, n_second = int((a & used).sum()), int((b & used).sum())
    if min(n_first, n_second) < 1:
        raise EstimationError(f"the groups have {n_first} and {n_second} complete rows, each needs at least 1")
    labels = tuple(names) or tuple(f"covariate{i + 1}" for i in range(Z.shape[1]))
    refuse_collinear(about_means(Z[used]), labels, int(used.sum()))
    X = np.column_stack([np.ones(int(used.sum())), a[used].astype(float), Z[used]])
    model = ols(X, outcome[used], names=("intercept", "group", *labels), confidence=confidence)
    c = model["group"]
    base = float(model.estimate[0] + Z[used].mean(axis=0) @ model.estimate[2:])
    return GroupDifference(
        estimate=c.estimate,
        se=c.se,
        ci_low=c.ci_low,
        ci_high=c.ci_high,
        statistic=c.statistic,
        df=model.df,
        p=c.p,
        se_hc3=float(model.se_hc3[1]),
        adjusted_mean_first=base + c.estimate,
        adjusted_mean_second=base,
        n_first=n_first,
        n_second=n_second,
        n_missing=n_missing,
        model=model,
    )


def group_means(
    y: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    covariates: ArrayLike | None = None,
    *,
    order: Sequence[str] | None = None,
    names: Sequence[str] = (),
    confidence: float = 0.95,
) -> GroupMeans:
    """Compare several groups in one linear model with common covariates.

    Parameters
    ----------
    y : array_like
        Outcome, shape (n,).
    groups : sequence
        Group of each row.
    covariates : array_like, optional
        Covariates, shape (n,) or (n, k).
    order : sequence of str, optional
        Groups to use, in order; by default all, sorted.
    names : sequence of str, optional
        Names of the covariates.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    GroupMeans
        Adjusted means, F test and all pairs with Holm's adjustment.

    Raises
    ------
    EstimationError
        If there are fewer than 2 groups with complete rows or a covariate is collinear with the groups.

    Examples
    --------
    >>> result = group_means([1.0, 2.0, 3.0, 5.0, 6.0, 7.0], list("aaabbb"))
    >>> result.mean.round(3), round(result.p, 4)
    (array([2., 6.]), 0.008)
    """
    from scipy.stats import t as student

    outcome = as_column(y, "y")
    Z = np.empty((outcome.size, 0)) if covariates is None else as_matrix(covariates, "covariates")
    codes, found, absent = labels_of(groups, "groups")
    if codes.size != outcome.size or Z.shape[0] != outcome.size:
        raise DataError(f"the columns differ in length: y {outcome.size}, groups {codes.size}, covariates {Z.shape[0]}")
    wanted = tuple(str(v) for v in (found if order is None else order))
    position = np.array([wanted.index(str(v)) if str(v) in wanted else -1 for v in found], dtype=np.intp)
    member = np.where(absent, -1, position[codes] if found.size else -1)
    whole = complete(outcome, Z, names=("y", "covariates"))
    chosen = (member >= 0) | (absent & (order is None))
    used = (member >= 0) & whole
    n_missing = int((chosen & ~used).sum())
    count = np.bincount(member[used], minlength=len(wanted))
    if len(wanted) < 2 or (count == 0).any():
        told = ", ".join(f"{name} {c}" for name, c in zip(wanted, count, strict=True))
        raise EstimationError(f"complete rows by group: {told or 'none'}; needs 2 groups with at least 1")
    dummies = (member[used, None] == np.arange(1, len(wanted))).astype(float)
    labels = tuple(names) or tuple(f"covariate{i + 1}" for i in range(Z.shape[1]))
    refuse_collinear(about_means(Z[used]), labels, int(used.sum()))
    X = np.column_stack([np.ones(dummies.shape[0]), dummies, Z[used]])
    model = ols(X, outcome[used], names=("intercept", *wanted[1:], *labels), confidence=confidence)
    g, k = len(wanted), Z.shape[1]
    at = np.zeros((g, 1 + g - 1 + k))
    at[:, 0] = 1.0
    at[1:, 1:g] = np.eye(g - 1)
    at[:, g:] = Z[used].mean(axis=0)
    mean = at @ model.estimate
    se = np.sqrt(np.einsum("ki,ij,kj->k", at, model.covariance, at))
    half = student.ppf(0.5 + confidence / 2, model.df) * se
    overall = model.test(at[1:] - at[0])
    pairs = [(j, i, model.test(at[j] - at[i])) for i, j in combinations(range(g), 2)]
    holm = adjust([test.p for *_, test in pairs])
    return GroupMeans(
        groups=wanted,
        mean=mean,
        se=se,
        ci_low=mean - half,
        ci_high=mean + half,
        n=count.astype(np.intp),
        statistic=overall.statistic,
        df_numerator=overall.df_numerator,
        df=model.df,
        p=overall.p,
        contrasts=tuple(
            GroupContrast(
                first=wanted[j],
                second=wanted[i],
                estimate=test.estimate,
                se=test.se,
                ci_low=test.ci_low,
                ci_high=test.ci_high,
                statistic=test.estimate / test.se,
                df=test.df,
                p=test.p,
                p_holm=float(adjusted),
            )
            for (j, i, test), adjusted in zip(pairs, holm, strict=True)
        ),
        n_missing=n_missing,
        model=model,
    )
