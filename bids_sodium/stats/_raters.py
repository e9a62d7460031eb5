"""How far raters agree on a number: Intraclass correlation and the limits within which two raters differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import EstimationError
from bids_sodium.stats._rows import as_column, as_matrix, complete, require_rows

__all__ = ["BlandAltman", "Intraclass", "bland_altman", "intraclass"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intraclass:
    """Intraclass correlation of single ratings, two-way random effects, absolute agreement: ICC(A,1)."""

    icc: float
    """Share of the variance that lies between what is rated; a shift between raters counts against it."""
    ci_low: float
    """Lower limit."""
    ci_high: float
    """Upper limit."""
    consistency: float
    """The same where a shift between raters does not count: ICC(C,1)."""
    statistic: float
    """F of rows against residual."""
    df: int
    """Degrees of freedom of the residual."""
    p: float
    """p value of no correlation."""
    n: int
    """Rows rated by everybody."""
    n_raters: int
    """Raters."""
    n_missing: int
    """Rows left out as incomplete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlandAltman:
    """Differences of two raters."""

    bias: float
    """Mean of second minus first."""
    bias_se: float
    """Its standard error."""
    bias_ci_low: float
    """Lower limit of the bias."""
    bias_ci_high: float
    """Upper limit of the bias."""
    sd: float
    """Standard deviation of the differences."""
    limit_low: float
    """Lower limit of agreement, bias - 1.96 SD."""
    limit_high: float
    """Upper limit of agreement."""
    limit_se: float
    """Standard error of either limit."""
    slope: float
    """Slope of the difference on the mean of both: above 0 they part more where values are high."""
    p_slope: float
    """p value of no slope, NaN where means do not vary."""
    p: float
    """p value of no bias."""
    df: int
    """Degrees of freedom, n - 1."""
    n: int
    """Pairs."""
    n_missing: int
    """Pairs left out as incomplete."""


def intraclass(ratings: ArrayLike, *, confidence: float = 0.95) -> Intraclass:
    """Return the intraclass correlation for absolute agreement of single ratings.

    Parameters
    ----------
    ratings : array_like
        One row for each thing rated, one column a rater; incomplete rows are left out and counted.
    confidence : float, optional
        Level of the interval.

    Returns
    -------
    Intraclass
        ICC(A,1) with its interval, and ICC(C,1).

    Raises
    ------
    EstimationError
        If there are fewer than 3 complete rows or 2 raters, or the ratings do not vary.

    References
    ----------
    McGraw KO, Wong SP. Forming inferences about some intraclass correlation coefficients. Psychol Methods 1996.
    doi:10.1037/1082-989X.1.1.30

    Examples
    --------
    >>> table = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    >>> found = intraclass(table)  # Shrout and Fleiss 1979
    >>> round(found.icc, 2), round(found.consistency, 2)
    (0.29, 0.71)
    """
    from scipy.stats import f as fisher

    table = as_matrix(ratings, "ratings")
    keep = complete(table, names=("ratings",))
    table = table[keep]
    n, k = table.shape
    require_rows(n, 3, "an intraclass correlation", n_missing=int((~keep).sum()))
    if k < 2:
        raise EstimationError(f"{k} rater; an intraclass correlation needs 2")
    grand = table.mean()
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    between = k * float(np.sum((rows - grand) ** 2)) / (n - 1)
    raters = n * float(np.sum((columns - grand) ** 2)) / (k - 1)
    df = (n - 1) * (k - 1)
    residual = float(np.sum((table - rows[:, None] - columns + grand) ** 2)) / df
    if between <= 1e-24 * max(grand**2, 1e-300):
        raise EstimationError(f"all {n} rows have the mean rating {grand:g}, so there is nothing to agree on")
    residual = max(residual, 1e-14 * between)
    icc = (between - residual) / (between + (k - 1) * residual + k / n * (raters - residual))
    a, b = k * icc / (n * (1 - icc)), 1 + k * icc * (n - 1) / (n * (1 - icc))
    v = (a * raters + b * residual) ** 2 / ((a * raters) ** 2 / (k - 1) + (b * residual) ** 2 / df)
    tail = 0.5 + confidence / 2
    upper, lower = float(fisher.ppf(tail, n - 1, v)), float(fisher.ppf(tail, v, n - 1))
    noise = k * raters + (k * n - k - n) * residual
    low = n * (between - upper * residual) / (upper * noise + n * between)
    high = n * (lower * between - residual) / (noise + n * lower * between)
    statistic = between / residual
    return Intraclass(
        icc=icc,
        ci_low=float(min(low, icc)),
        ci_high=float(min(max(high, icc), 1.0)),
        consistency=(between - residual) / (between + (k - 1) * residual),
        statistic=statistic,
        df=df,
        p=float(fisher.sf(statistic, n - 1, df)),
        n=n,
        n_raters=k,
        n_missing=int((~keep).sum()),
    )


def bland_altman(first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95) -> BlandAltman:
    """Return bias and limits of agreement of two raters.

    Parameters
    ----------
    first, second : array_like
        Ratings of the same things; incomplete pairs are left out and counted.
    confidence : float, optional
        Level of the bias's interval.

    Returns
    -------
    BlandAltman
        Bias, limits and whether they widen.

    Raises
    ------
    EstimationError
        If there are fewer than 3 complete pairs.

    References
    ----------
    Bland JM, Altman DG. Measuring agreement in method comparison studies. Stat Methods Med Res 1999.
    doi:10.1177/096228029900800204

    Examples
    --------
    >>> found = bland_altman([1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 3.5, 4.0])
    >>> found.bias, round(found.limit_high, 3)
    (0.25, 0.816)
    """
    from scipy.stats import linregress
    from scipy.stats import t as student

    a, b = as_column(first, "first"), as_column(second, "second")
    keep = complete(a, b, names=("first", "second"))
    gap, middle = (b - a)[keep], ((a + b) / 2)[keep]
    n = gap.size
    require_rows(n, 3, "limits of agreement", n_missing=int((~keep).sum()))
    bias, sd = float(gap.mean()), float(gap.std(ddof=1))
    se = sd / np.sqrt(n)
    reach = float(student.ppf(0.5 + confidence / 2, n - 1)) * se
    varies = bool(np.ptp(middle) > 0 and sd > 0)
    trend = linregress(middle, gap) if varies else None
    return BlandAltman(
        bias=bias,
        bias_se=float(se),
        bias_ci_low=bias - reach,
        bias_ci_high=bias + reach,
        sd=sd,
        limit_low=bias - 1.96 * sd,
        limit_high=bias + 1.96 * sd,
        limit_se=float(sd * np.sqrt(1 / n + 1.96**2 / (2 * (n - 1)))),
        slope=float(trend.slope) if trend is not None else 0.0,
        p_slope=float(trend.pvalue) if trend is not None else float("nan"),
        p=float(2 * student.sf(abs(bias) / se, n - 1)) if se > 0 else (1.0 if bias == 0 else 0.0),
        df=n - 1,
        n=n,
        n_missing=int((~keep).sum()),
    )
