"""Pairs: PairedComparison (do they differ?) and Agreement (can one stand for the other?)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._ranks import SignedRank, signed_rank
from bids_sodium.stats._rows import as_column, complete, is_constant, require_rows

__all__ = ["Agreement", "PairedComparison", "agreement", "paired"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Differences x - y and ratios x/y of pairs."""

    estimate: float
    """Mean difference."""
    se: float
    """Its standard error."""
    ci_low: float
    """Lower confidence limit of the mean difference."""
    ci_high: float
    """Upper confidence limit of the mean difference."""
    statistic: float
    """t."""
    df: int
    """Pairs less one."""
    p: float
    """Two-sided p value of the paired t test."""
    p_exact: float
    """Two-sided p value of the exact signed rank test."""
    p_asymptotic: float
    """Its normal approximation."""
    ratio: float
    """Geometric mean of x/y; NaN unless all values are positive."""
    ratio_ci_low: float
    """Lower confidence limit of the ratio."""
    ratio_ci_high: float
    """Upper confidence limit of the ratio."""
    statistic_log: float
    """t of the logarithms."""
    p_log: float
    """Two-sided p value of the paired t test on logarithms."""
    signed_rank: SignedRank
    """The signed rank test with its Hodges-Lehmann estimate."""
    n: int
    """Complete pairs."""
    n_missing: int
    """Pairs left out as incomplete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well y stands for x, or x for y; differences are x - y."""

    bias: float
    """Mean difference."""
    bias_ci_low: float
    """Lower confidence limit of the bias."""
    bias_ci_high: float
    """Upper confidence limit of the bias."""
    sd: float
    """Standard deviation of the differences."""
    limit_low: float
    """Lower limit of agreement, bias - 1.96 SD."""
    limit_high: float
    """Upper limit of agreement."""
    limit_se: float
    """Standard error of each limit, SD √(1/n + z²/(2(n-1)))."""
    proportional_slope: float
    """Slope of the difference on the mean of the pair: whether the bias grows with size."""
    proportional_p: float
    """Its two-sided p value."""
    concordance: float
    """Lin's concordance correlation."""
    concordance_ci_low: float
    """Its lower confidence limit."""
    concordance_ci_high: float
    """Its upper confidence limit."""
    pearson: float
    """Pearson's correlation, the precision part of the concordance."""
    ratio: float
    """Geometric mean of x/y; NaN unless all values are positive, as for all fields below."""
    ratio_limit_low: float
    """Lower limit of agreement of the ratio."""
    ratio_limit_high: float
    """Upper limit of agreement of the ratio."""
    ratio_equivalence_p: float
    """p value of the two one-sided tests that the ratio lies within 1/margin … margin."""
    ratio_margin: float
    """The margin."""
    prediction_rmse: float
    """Leave-one-out error of predicting ln y from ln x, which times 100 is about per cent."""
    n: int
    """Complete pairs."""
    n_missing: int
    """Pairs left out as incomplete."""


def paired(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95) -> PairedComparison:
    """Compare pairs by differences, ratios and signed ranks.

    Parameters
    ----------
    x, y : array_like
        Values of each pair, shape (n,); the difference is x - y, the ratio x/y. Incomplete pairs are left out.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    PairedComparison
        Mean difference, ratio and Hodges-Lehmann estimate with intervals and p values.

    Raises
    ------
    EstimationError
        If there are fewer than 2 pairs, or all differences are equal.

    Examples
    --------
    >>> result = paired([10.0, 12.0, 9.0, 14.0], [8.0, 11.0, 9.0, 10.0])
    >>> result.estimate, round(result.p, 3), round(result.ratio, 3)
    (1.75, 0.133, 1.175)
    """
    from scipy.stats import t as student

    a, b, n_missing = _pairs(x, y, 2, "a paired comparison")
    n = a.size
    difference = a - b
    if is_constant(difference):
        raise EstimationError(f"all {n} differences equal {difference[0]:g}, so they have no standard error")
    mean, se = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(n))
    half = float(student.ppf(0.5 + confidence / 2, n - 1)) * se
    ranks = signed_rank(a, b, confidence=confidence)
    ratio = low = high = t_log = p_log = np.nan
    if (a > 0).all() and (b > 0).all():
        logs = np.log(a) - np.log(b)
        centre, spread = float(logs.mean()), float(logs.std(ddof=1) / np.sqrt(n))
        reach = float(student.ppf(0.5 + confidence / 2, n - 1)) * spread
        ratio, low, high = float(np.exp(centre)), float(np.exp(centre - reach)), float(np.exp(centre + reach))
        if not is_constant(logs):
            t_log = centre / spread
            p_log = float(2 * student.sf(abs(t_log), n - 1))
    return PairedComparison(
        estimate=mean,
        se=se,
        ci_low=mean - half,
        ci_high=mean + half,
        statistic=mean / se,
        df=n - 1,
        p=float(2 * student.sf(abs(mean / se), n - 1)),
        p_exact=ranks.p_exact,
        p_asymptotic=ranks.p_asymptotic,
        ratio=ratio,
        ratio_ci_low=low,
        ratio_ci_high=high,
        statistic_log=t_log,
        p_log=p_log,
        signed_rank=ranks,
        n=n,
        n_missing=n_missing,
    )


def agreement(x: ArrayLike, y: ArrayLike, *, ratio_margin: float = 1.25, confidence: float = 0.95) -> Agreement:
    """Describe how well two measurements of the same things agree.

    Parameters
    ----------
    x, y : array_like
        Paired measurements, shape (n,); incomplete pairs are left out and counted.
    ratio_margin : float, optional
        Ratio within which the two count as equivalent.
    confidence : float, optional
        Confidence level of the intervals; limits of agreement hold 95 % of the differences.

    Returns
    -------
    Agreement
        Bland-Altman limits, concordance, limits of the ratio, equivalence and prediction error.

    Raises
    ------
    EstimationError
        If there are fewer than 4 pairs, or a column does not vary.

    References
    ----------
    Bland JM, Altman DG. Statistical methods for assessing agreement between two methods of clinical measurement.
    Lancet 1986. https://doi.org/10.1016/S0140-6736(86)90837-8
    Lin LI. A concordance correlation coefficient to evaluate reproducibility. Biometrics 1989.

    Examples
    --------
    >>> result = agreement([1.0, 2.0, 3.0, 4.0, 5.0], [1.1, 1.9, 3.2, 3.9, 5.1])
    >>> round(result.bias, 2), round(result.concordance, 3)
    (-0.04, 0.996)
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    if ratio_margin <= 1:
        raise DataError(f"the equivalence margin is {ratio_margin:g}, expected a ratio above 1")
    a, b, n_missing = _pairs(x, y, 4, "a study of agreement")
    n = a.size
    for name, column in (("x", a), ("y", b)):
        if is_constant(column):
            raise EstimationError(f"all {n} values of {name} equal {column[0]:g}, so agreement cannot be judged")
    difference = a - b
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    z = float(norm.ppf(0.975))
    reach = float(student.ppf(0.5 + confidence / 2, n - 1) * sd / np.sqrt(n))
    slope, slope_p = _slope((a + b) / 2, difference)

    r = float(np.corrcoef(a, b)[0, 1])
    va, vb, shift = float(a.var()), float(b.var()), float(a.mean() - b.mean())
    concordance = float(2 * r * np.sqrt(va * vb) / (va + vb + shift**2))
    low, high = _concordance_interval(concordance, r, shift**2 / np.sqrt(va * vb), n, confidence)
    ratio = ratio_low = ratio_high = p_equivalent = rmse = np.nan
    if (a > 0).all() and (b > 0).all():
        logs = np.log(a) - np.log(b)
        centre, spread = float(logs.mean()), float(logs.std(ddof=1))
        ratio = float(np.exp(centre))
        ratio_low, ratio_high = float(np.exp(centre - z * spread)), float(np.exp(centre + z * spread))
        if spread > 0:
            worst = (abs(centre) - np.log(ratio_margin)) / (spread / np.sqrt(n))
            p_equivalent = float(student.cdf(worst, n - 1))
        rmse = _left_out(np.log(a), np.log(b))
    return Agreement(
        bias=bias,
        bias_ci_low=bias - reach,
        bias_ci_high=bias + reach,
        sd=sd,
        limit_low=bias - z * sd,
        limit_high=bias + z * sd,
        limit_se=float(sd * np.sqrt(1 / n + z**2 / (2 * (n - 1)))),
        proportional_slope=slope,
        proportional_p=slope_p,
        concordance=concordance,
        concordance_ci_low=low,
        concordance_ci_high=high,
        pearson=r,
        ratio=ratio,
        ratio_limit_low=ratio_low,
        ratio_limit_high=ratio_high,
        ratio_equivalence_p=p_equivalent,
        ratio_margin=ratio_margin,
        prediction_rmse=rmse,
        n=n,
        n_missing=n_missing,
    )


def _pairs(x: ArrayLike, y: ArrayLike, least: int, what: str) -> tuple[Float, Float, int]:
    a, b = as_column(x, "x"), as_column(y, "y")
    keep = complete(a, b, names=("x", "y"))
    n_missing = int((~keep).sum())
    require_rows(int(keep.sum()), least, what, n_missing=n_missing)
    return a[keep], b[keep], n_missing


def _slope(x: Float, y: Float) -> tuple[float, float]:
    """Return the slope of y on x and its p value."""
    from scipy.stats import t as student

    centred = x - x.mean()
    total = float(centred @ centred)
    if total == 0:
        return np.nan, np.nan
    slope = float(centred @ y / total)
    rss = float(np.sum((y - y.mean() - slope * centred) ** 2))
    df = x.size - 2
    if rss == 0:
        return slope, 0.0 if slope else 1.0
    return slope, float(2 * student.sf(abs(slope) / np.sqrt(rss / df / total), df))


def _concordance_interval(c: float, r: float, u2: float, n: int, confidence: float) -> tuple[float, float]:
    """Return Lin's interval on the artanh scale (Lin 1989, with its correction of 2000)."""
    from scipy.stats import norm

    if abs(c) >= 1 - 1e-12 or abs(r) < 1e-12 or abs(r) >= 1 - 1e-12:
        return (c, c) if abs(c) >= 1 - 1e-12 else (np.nan, np.nan)
    variance = (
        (1 - r**2) * c**2 / ((1 - c**2) * r**2)
        + 2 * c**3 * (1 - c) * u2 / (r * (1 - c**2) ** 2)
        - c**4 * u2**2 / (2 * r**2 * (1 - c**2) ** 2)
    ) / (n - 2)
    half = float(norm.ppf(0.5 + confidence / 2)) * np.sqrt(max(variance, 0.0))
    return float(np.tanh(np.arctanh(c) - half)), float(np.tanh(np.arctanh(c) + half))


def _left_out(x: Float, y: Float) -> float:
    """Return the leave-one-out root mean square error of y predicted linearly from x."""
    centred = x - x.mean()
    total = float(centred @ centred)
    residual = y - y.mean() - centred * float(centred @ y) / total
    leverage = 1 / x.size + centred**2 / total
    if (leverage >= 1 - 1e-12).any():
        return np.nan
    return float(np.sqrt(np.mean((residual / (1 - leverage)) ** 2)))
