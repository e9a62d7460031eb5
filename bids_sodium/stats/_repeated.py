"""Repeated measures: RepeatedAnova with sphericity corrections, RepeatedCorrelation, and one-way Anova."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._rows import as_column, complete, is_constant, labels_of, require_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Anova",
    "AnovaEffect",
    "RepeatedAnova",
    "RepeatedCorrelation",
    "one_way",
    "repeated_anova",
    "rmcorr",
]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnovaEffect:
    """One within-subject effect."""

    name: str
    """Factor, or factors joined by a colon."""
    sum_sq: float
    """Sum of squares of the effect."""
    error_sum_sq: float
    """Sum of squares of its interaction with subjects."""
    df: int
    """Numerator degrees of freedom."""
    error_df: int
    """Denominator degrees of freedom."""
    statistic: float
    """F."""
    p: float
    """p value under sphericity."""
    mauchly_w: float
    """Mauchly's W; NaN for one degree of freedom."""
    mauchly_p: float
    """p value of sphericity; NaN for one degree of freedom."""
    greenhouse_geisser: float
    """Greenhouse-Geisser ε."""
    p_greenhouse_geisser: float
    """p value with both degrees of freedom times ε."""
    huynh_feldt: float
    """Huynh-Feldt ε, not cut at 1."""
    p_huynh_feldt: float
    """p value with both degrees of freedom times ε cut at 1."""
    ges: float
    """Generalised η², all factors being manipulated within subjects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedAnova:
    """Analysis of variance of a complete table of repeated measures."""

    effects: tuple[AnovaEffect, ...]
    """Main effects first, then interactions."""
    n_subjects: int
    """Subjects."""
    n_cells: int
    """Measures a subject."""

    def __getitem__(self, name: str) -> AnovaEffect:
        """Return the effect of that name."""
        for effect in self.effects:
            if effect.name == name:
                return effect
        raise KeyError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedCorrelation:
    """Correlation within subjects, with one slope common to all."""

    r: float
    """Correlation of the deviations from the subjects' means."""
    ci_low: float
    """Lower limit (Fisher's z with standard error 1/√(df-1)); NaN where |r| = 1."""
    ci_high: float
    """Upper limit; NaN where |r| = 1."""
    slope: float
    """Common slope of y on x."""
    df: int
    """Rows less subjects less one."""
    statistic: float
    """F with 1 and df degrees of freedom."""
    p: float
    """Two-sided p value."""
    n: int
    """Rows used."""
    n_subjects: int
    """Subjects with at least two rows, which alone carry information."""
    n_missing: int
    """Rows left out as incomplete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anova:
    """One-way analysis of variance."""

    statistic: float
    """F."""
    df: int
    """Groups less one."""
    error_df: int
    """Rows less groups."""
    p: float
    """p value."""
    sum_sq: float
    """Sum of squares between groups."""
    error_sum_sq: float
    """Sum of squares within groups."""
    sigma: float
    """Residual standard deviation."""
    r2: float
    """Share of the variance between groups."""
    n: int
    """Rows used."""
    n_missing: int
    """Rows left out as incomplete."""


def repeated_anova(table: pd.DataFrame, *, outcome: str, subject: str, within: Sequence[str]) -> RepeatedAnova:
    """Analyse a complete table of repeated measures.

    Each effect is tested against its own interaction with subjects, through orthonormal contrasts.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a measure.
    outcome, subject : str
        Columns of the measure and the subject.
    within : sequence of str
        Columns of the within-subject factors.

    Returns
    -------
    RepeatedAnova
        F tests with Greenhouse-Geisser and Huynh-Feldt corrections.

    Raises
    ------
    DataError
        If a column is missing.
    EstimationError
        If a cell is empty, missing or filled twice, or there are too few subjects or levels.

    References
    ----------
    Greenhouse SW, Geisser S. On methods in the analysis of profile data. Psychometrika 1959.
    Huynh H, Feldt LS. Estimation of the Box correction for degrees of freedom. J Educ Stat 1976.
    Mauchly JW. Significance test for sphericity of a normal n-variate distribution. Ann Math Stat 1940.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"s": list("aabbcc"), "t": [0, 1] * 3, "y": [1.0, 2.0, 2.0, 4.0, 3.0, 4.5]})
    >>> round(repeated_anova(table, outcome="y", subject="s", within=["t"])["t"].statistic, 3)
    27.0
    """
    factors = list(within)
    absent = [name for name in (outcome, subject, *factors) if name not in table.columns]
    if absent:
        raise DataError(f"missing column(s) {', '.join(absent)}; found {', '.join(map(str, table.columns))}")
    if not factors:
        raise DataError("a repeated-measures analysis of variance needs at least one within-subject factor")
    Y, levels = _cells(table, outcome, subject, factors)
    n, k = Y.shape
    if n < 3:
        raise EstimationError(f"a repeated-measures analysis of variance needs at least 3 subjects, found {n}")
    bases = [_orthonormal(size) for size in levels]
    rows = []
    error_total = float(np.sum((Y.mean(axis=1) - Y.mean()) ** 2)) * k
    for order in range(1, len(factors) + 1):
        for chosen in combinations(range(len(factors)), order):
            contrast: Float = np.ones((1, 1))
            for i, size in enumerate(levels):
                part = bases[i] if i in chosen else np.full((size, 1), 1 / np.sqrt(size))
                contrast = np.asarray(np.kron(contrast, part), dtype=np.float64)
            scores = Y @ contrast
            mean = scores.mean(axis=0)
            error = float(np.sum((scores - mean) ** 2))
            error_total += error
            rows.append((":".join(factors[i] for i in chosen), n * float(mean @ mean), error, scores))
    return RepeatedAnova(
        effects=tuple(
            _effect(name, ss, error, scores, error_total=error_total, n_cells=k) for name, ss, error, scores in rows
        ),
        n_subjects=n,
        n_cells=k,
    )


def _cells(table: pd.DataFrame, outcome: str, subject: str, factors: list[str]) -> tuple[Float, list[int]]:
    """Return the outcome as subjects by cells, the last factor running fastest, and the number of levels."""
    y = as_column(table[outcome].to_numpy(), outcome)
    codes, labels, missing = labels_of(table[subject].to_numpy(), subject)
    shape, index, gone = [labels.size], [codes], missing | np.isnan(y)
    for factor in factors:
        code, names, absent = labels_of(table[factor].to_numpy(), factor)
        if names.size < 2:
            raise EstimationError(f"the factor {factor} has {names.size} level(s), needs at least 2")
        shape.append(names.size)
        index.append(code)
        gone = gone | absent
    if gone.any():
        raise EstimationError(
            f"{int(gone.sum())} of {y.size} rows are incomplete, the table must be complete",
            hint="use a mixed model for unbalanced data",
        )
    count = np.zeros(shape, dtype=int)
    np.add.at(count, tuple(index), 1)
    if (count != 1).any():
        empty, repeated = int((count == 0).sum()), int((count > 1).sum())
        raise EstimationError(
            f"of {count.size} cells {empty} are empty and {repeated} hold several rows, the table must be complete",
            hint="use a mixed model for unbalanced data",
        )
    cells: Float = np.empty(shape)
    cells[tuple(index)] = y
    return cells.reshape(shape[0], -1), shape[1:]


def _orthonormal(k: int) -> Float:
    """Return k - 1 orthonormal contrasts of k levels (Helmert)."""
    contrast = np.zeros((k, k - 1))
    for j in range(1, k):
        contrast[:j, j - 1] = 1.0
        contrast[j, j - 1] = -j
    return np.asarray(contrast / np.linalg.norm(contrast, axis=0))


def _effect(name: str, ss: float, error: float, scores: Float, *, error_total: float, n_cells: int) -> AnovaEffect:
    from scipy.stats import chi2
    from scipy.stats import f as fisher

    n, d = scores.shape
    if error <= 0:
        raise EstimationError(f"{name}: all {n} subjects show the same effect, so there is no error to test against")
    df, error_df = d, d * (n - 1)
    f = (ss / df) / (error / error_df)
    S = np.atleast_2d(np.cov(scores, rowvar=False))
    trace = float(np.trace(S))
    gg = trace**2 / (d * float(np.sum(S * S)))
    hf = (n * d * gg - 2) / (d * (n - 1 - d * gg)) if n - 1 - d * gg > 0 else np.nan
    w = w_p = np.nan
    if d > 1 and n > d:
        w = float(np.linalg.det(S / (trace / d)))
        m = n - 1
        rho = 1 - (2 * d**2 + d + 2) / (6 * d * m)
        # the 3 multiplies the number of cells, as in R's mauchly.test; with d in its place p changes by about 0.1 %
        second = (d + 2) * (d - 1) * (d - 2) * (2 * d**3 + 6 * d**2 + 3 * n_cells + 2) / (288 * (m * d * rho) ** 2)
        z, degrees = -m * rho * np.log(w), d * (d + 1) / 2 - 1
        first = float(chi2.sf(z, degrees))
        w_p = float(first + second * (float(chi2.sf(z, degrees + 4)) - first))
    cut = 1.0 if d == 1 or np.isnan(hf) else min(hf, 1.0)
    return AnovaEffect(
        name=name,
        sum_sq=ss,
        error_sum_sq=error,
        df=df,
        error_df=error_df,
        statistic=f,
        p=float(fisher.sf(f, df, error_df)),
        mauchly_w=w,
        mauchly_p=w_p,
        greenhouse_geisser=gg,
        p_greenhouse_geisser=float(fisher.sf(f, df * gg, error_df * gg)),
        huynh_feldt=hf if d > 1 else 1.0,
        p_huynh_feldt=float(fisher.sf(f, df * cut, error_df * cut)),
        ges=ss / (ss + error_total),
    )


def rmcorr(
    x: ArrayLike, y: ArrayLike, subject: Sequence[Any] | NDArray[Any], *, confidence: float = 0.95
) -> RepeatedCorrelation:
    """Correlate two measures within subjects.

    Parameters
    ----------
    x, y : array_like
        Paired values, shape (n,); incomplete rows are left out and counted.
    subject : sequence
        Subject of each row.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    RepeatedCorrelation
        The common within-subject correlation and slope.

    Raises
    ------
    EstimationError
        If fewer than 2 degrees of freedom are left or a measure does not vary within subjects.

    References
    ----------
    Bland JM, Altman DG. Calculating correlation coefficients with repeated observations. BMJ 1995.
    Bakdash JZ, Marusich LR. Repeated measures correlation. Front Psychol 2017.
    https://doi.org/10.3389/fpsyg.2017.00456

    Examples
    --------
    >>> result = rmcorr([1, 2, 3, 2, 3, 5, 4, 6], [2, 4, 5, 1, 2, 4, 7, 9], list("aaabbbcc"))
    >>> round(result.r, 3), result.df
    (0.975, 4)
    """
    from scipy.stats import f as fisher
    from scipy.stats import norm

    a, b = as_column(x, "x"), as_column(y, "y")
    keep = complete(a, b, names=("x", "y"))
    codes, _, missing = labels_of(subject, "subject")
    if codes.size != a.size:
        raise DataError(f"the columns differ in length: x {a.size}, subject {codes.size}")
    keep &= ~missing
    n_missing = int((~keep).sum())
    a, b = a[keep], b[keep]
    codes = np.unique(codes[keep], return_inverse=True)[1]
    n = a.size
    count = np.bincount(codes) if n else np.zeros(0, dtype=int)
    df = n - count.size - 1
    if df < 2:
        raise EstimationError(f"{n} rows of {count.size} subjects leave {df} degrees of freedom, needs at least 2")
    within = []
    for name, column in (("x", a), ("y", b)):
        centred = column - (np.bincount(codes, column) / count)[codes]
        if float(np.abs(centred).max()) <= 1e-12 * max(float(np.abs(column).max()), 1e-300):
            raise EstimationError(f"{name} does not vary within any of {count.size} subjects")
        within.append(centred)
    u, v = within
    r = float(np.clip(u @ v / np.sqrt((u @ u) * (v @ v)), -1, 1))
    with np.errstate(divide="ignore"):
        f = float(np.float64(r**2) / np.float64(1 - r**2) * df)
    half = float(norm.ppf(0.5 + confidence / 2)) / np.sqrt(df - 1)
    centre = np.arctanh(r) if abs(r) < 1 - 1e-12 else np.nan
    return RepeatedCorrelation(
        r=r,
        ci_low=float(np.tanh(centre - half)),
        ci_high=float(np.tanh(centre + half)),
        slope=float(u @ v / (u @ u)),
        df=df,
        statistic=f,
        p=float(fisher.sf(f, 1, df)),
        n=n,
        n_subjects=int((count > 1).sum()),
        n_missing=n_missing,
    )


def one_way(groups: Mapping[str, ArrayLike] | Sequence[ArrayLike]) -> Anova:
    """Compare the means of several groups.

    Parameters
    ----------
    groups : mapping or sequence of array_like
        Values of each group; missing values are left out and counted.

    Returns
    -------
    Anova
        F test; sums of squares are taken about a pilot mean, so that large offsets cost no digits.

    Raises
    ------
    EstimationError
        If there are fewer than two groups, one is empty, or no group varies.

    Examples
    --------
    >>> result = one_way([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [5.0, 6.0, 7.0]])
    >>> round(result.statistic, 3), result.df, result.error_df
    (13.0, 2, 6)
    """
    from scipy.stats import f as fisher

    columns = [as_column(g, "a group") for g in (groups.values() if isinstance(groups, Mapping) else groups)]
    n_missing = sum(int(np.isnan(c).sum()) for c in columns)
    columns = [c[~np.isnan(c)] for c in columns]
    require_rows(len(columns), 2, "a comparison of groups (as groups)")
    require_rows(min(c.size for c in columns), 1, "each group", n_missing=n_missing)
    n, k = sum(c.size for c in columns), len(columns)
    if all(is_constant(c) for c in columns):
        raise EstimationError(f"none of the {k} groups varies, so there is no error to test against")
    pilot = columns[0][0]
    shifted = [c - pilot for c in columns]  # exact for values close to each other (Sterbenz)
    grand = sum(float(c.sum()) for c in shifted) / n
    between = sum(c.size * (float(c.mean()) - grand) ** 2 for c in shifted)
    within = sum(float(np.sum((c - c.mean()) ** 2)) for c in shifted)
    df, error_df = k - 1, n - k
    f = (between / df) / (within / error_df)
    return Anova(
        statistic=f,
        df=df,
        error_df=error_df,
        p=float(fisher.sf(f, df, error_df)),
        sum_sq=between,
        error_sum_sq=within,
        sigma=float(np.sqrt(within / error_df)),
        r2=between / (between + within),
        n=n,
        n_missing=n_missing,
    )
