"""Rank statistics: Spearman, SignedRank, RankSum, KruskalWallis, with exact p values also where values tie.

Null distributions are counted over mid-ranks, so ties and zeros need no approximation. The two-sided exact p value is
the share of arrangements at least as far from the null mean as the one seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._rows import as_column, complete, is_constant, labels_of, require_rows

__all__ = [
    "KruskalWallis",
    "RankSum",
    "SignedRank",
    "Spearman",
    "kruskal_wallis",
    "rank_sum",
    "signed_rank",
    "spearman",
]

Float = NDArray[np.float64]
_ENUMERATED = 9
"""Most pairs for which all n! orders are counted."""
_LARGEST_EXACT = 400
"""Most observations for which a null distribution is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spearman:
    """Spearman's rank correlation."""

    rho: float
    """Correlation of the mid-ranks."""
    ci_low: float
    """Lower confidence limit; NaN for repeated measures and where |rho| = 1, which has no standard error."""
    ci_high: float
    """Upper confidence limit; NaN likewise."""
    statistic: float
    """rho √((n-2)/(1-rho²)), the t approximation."""
    df: int
    """n - 2."""
    p: float
    """The best p value at hand: exact, else by permutation, else asymptotic; named in ``method``."""
    p_exact: float
    """Two-sided p value over all n! orders (n ≤ 9, no groups), else NaN."""
    p_permutation: float
    """Two-sided p value over random orders, NaN where none were drawn."""
    p_asymptotic: float
    """Two-sided p value of the t approximation."""
    n: int
    """Complete pairs."""
    n_missing: int
    """Pairs left out as incomplete."""
    method: str
    """How ``p`` was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRank:
    """Wilcoxon's signed rank test of paired differences."""

    statistic: float
    """Sum of the mid-ranks of the positive differences."""
    p_exact: float
    """Two-sided p value over all sign patterns."""
    p_asymptotic: float
    """Two-sided p value of the normal approximation with tie correction, without continuity correction."""
    estimate: float
    """Hodges-Lehmann estimate: median of the pairwise means of the differences."""
    ci_low: float
    """Lower confidence limit of the estimate."""
    ci_high: float
    """Upper confidence limit of the estimate."""
    n: int
    """Complete pairs, zero differences included."""
    n_zero: int
    """Zero differences, which carry no sign."""
    n_missing: int
    """Pairs left out as incomplete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSum:
    """Wilcoxon-Mann-Whitney test of two groups."""

    statistic: float
    """U of the first group: pairs in which it is larger, ties counting one half."""
    p_exact: float
    """Two-sided p value over all allocations of the mid-ranks; NaN above 400 observations."""
    p_asymptotic: float
    """Two-sided p value of the normal approximation with tie correction."""
    p_asymptotic_corrected: float
    """The same with continuity correction."""
    probability_superiority: float
    """U/(n_x n_y): the chance that a value of the first group exceeds one of the second."""
    estimate: float
    """Hodges-Lehmann shift: median of the differences first minus second."""
    ci_low: float
    """Lower confidence limit of the shift."""
    ci_high: float
    """Upper confidence limit of the shift."""
    n: int
    """Observations in both groups."""
    n_x: int
    """Observations in the first group."""
    n_y: int
    """Observations in the second group."""
    n_missing: int
    """Observations left out as missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KruskalWallis:
    """Kruskal-Wallis test of several groups."""

    statistic: float
    """H with tie correction."""
    df: int
    """Groups less one."""
    p: float
    """p value from χ²."""
    n: int
    """Observations."""
    n_missing: int
    """Observations left out as missing."""


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    rng: np.random.Generator | None = None,
    n_permutations: int = 20_000,
    confidence: float = 0.95,
    interval: str = "bonett-wright",
) -> Spearman:
    """Correlate ranks.

    Parameters
    ----------
    x, y : array_like
        Paired values, shape (n,); incomplete pairs are left out and counted.
    groups : sequence, optional
        Subject of each pair, where subjects have several: whole subjects are then permuted among those with as many
        pairs, and only ``p_permutation`` is valid. Pooling scans as if they were subjects gives 15 % false positives.
    rng : numpy.random.Generator, optional
        Draws the permutations above n = 9; without it the t approximation is given there.
    n_permutations : int, optional
        Permutations drawn.
    confidence : float, optional
        Confidence level.
    interval : {"bonett-wright", "fieller", "fisher"}, optional
        Variance of artanh rho: (1 + rho²/2)/(n-3), 1.06/(n-3) or 1/(n-3).

    Returns
    -------
    Spearman
        Correlation, interval and p values.

    Raises
    ------
    EstimationError
        If there are fewer than 4 pairs or a column is constant.

    References
    ----------
    Bonett DG, Wright TA. Sample size requirements for estimating Pearson, Kendall and Spearman correlations.
    Psychometrika 2000. https://doi.org/10.1007/BF02294183

    Examples
    --------
    >>> result = spearman([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])
    >>> round(result.rho, 2), round(result.p_exact, 3)
    (0.8, 0.133)
    """
    from scipy.stats import norm, rankdata
    from scipy.stats import t as student

    spread: dict[str, Callable[[float], float]] = {
        "bonett-wright": lambda r: 1 + r * r / 2,
        "fieller": lambda _: 1.06,
        "fisher": lambda _: 1.0,
    }
    if interval not in spread:
        raise DataError(f"unknown interval {interval!r}", hint=f"use one of {', '.join(spread)}")
    a, b = as_column(x, "x"), as_column(y, "y")
    keep = complete(a, b, names=("x", "y"))
    codes = None
    if groups is not None:
        codes, _, missing = labels_of(groups, "groups")
        if codes.size != a.size:
            raise DataError(f"the columns differ in length: x {a.size}, groups {codes.size}")
        keep &= ~missing
        codes = codes[keep]
    n_missing = int((~keep).sum())
    a, b = a[keep], b[keep]
    n = a.size
    require_rows(n, 4, "a rank correlation", n_missing=n_missing)
    for name, column in (("x", a), ("y", b)):
        if is_constant(column):
            raise EstimationError(f"all {n} values of {name} equal {column[0]:g}, so they have no rank correlation")
    ra, rb = rankdata(a), rankdata(b)
    ra, rb = ra - ra.mean(), rb - rb.mean()
    norm_ab = float(np.sqrt((ra @ ra) * (rb @ rb)))
    rho = float(np.clip(ra @ rb / norm_ab, -1.0, 1.0))

    with np.errstate(divide="ignore"):
        t = float(rho * np.sqrt((n - 2) / np.float64(1 - rho**2)))
    p_asymptotic = float(2 * student.sf(abs(t), n - 2))
    p_exact = p_permutation = np.nan
    seen = abs(rho) * norm_ab * (1 - 1e-12)
    if codes is None and n <= _ENUMERATED:
        p_exact = float(np.mean(np.abs(rb[_orders(n)] @ ra) >= seen))
    elif rng is not None:
        draws = _shuffled(rb, codes, n_permutations, rng)
        p_permutation = float((np.sum(np.abs(draws @ ra) >= seen) + 1) / (n_permutations + 1))
    p, method = p_asymptotic, "t approximation"
    if not np.isnan(p_exact):
        p, method = p_exact, f"all {n}! orders"
    elif not np.isnan(p_permutation):
        p, method = p_permutation, f"{n_permutations} permutations" + (" of subjects" if codes is not None else "")
    low = high = np.nan
    if codes is None and abs(rho) < 1 - 1e-12:
        half = float(norm.ppf(0.5 + confidence / 2)) * np.sqrt(spread[interval](rho) / (n - 3))
        centre = np.arctanh(rho)
        low, high = float(np.tanh(centre - half)), float(np.tanh(centre + half))
    return Spearman(
        rho=rho,
        ci_low=low,
        ci_high=high,
        statistic=t,
        df=n - 2,
        p=p,
        p_exact=p_exact,
        p_permutation=p_permutation,
        p_asymptotic=p_asymptotic,
        n=n,
        n_missing=n_missing,
        method=method,
    )


def signed_rank(x: ArrayLike, y: ArrayLike | None = None, *, confidence: float = 0.95) -> SignedRank:
    """Test paired differences by their signed ranks, exactly with ties and zeros.

    Zero differences are left out before ranking (Wilcoxon 1945); equal sizes share their mid-rank.

    Parameters
    ----------
    x : array_like
        First value of each pair, or the differences, shape (n,).
    y : array_like, optional
        Second value of each pair; the difference is x - y.
    confidence : float, optional
        Confidence level of the Hodges-Lehmann estimate.

    Returns
    -------
    SignedRank
        Statistic, p values and Hodges-Lehmann estimate.

    Raises
    ------
    EstimationError
        If there are no pairs, or no difference is other than zero.

    References
    ----------
    Hollander M, Wolfe DA, Chicken E. Nonparametric Statistical Methods. Wiley, 2014.

    Examples
    --------
    >>> result = signed_rank([1.1, 2.2, 0.3, -0.4, 1.5, 0.0])
    >>> result.statistic, result.p_exact, result.n_zero
    (13.0, 0.1875, 1)
    """
    from scipy.stats import norm, rankdata

    a = as_column(x, "x")
    b = np.zeros_like(a) if y is None else as_column(y, "y")
    keep = complete(a, b, names=("x", "y"))
    difference = (a - b)[keep]
    n_missing = int((~keep).sum())
    n = difference.size
    require_rows(n, 1, "a signed rank test", n_missing=n_missing)
    # 0.3 - 0.1 and 0.4 - 0.2 are the same size; compare differences at 12 significant digits
    size = _rounded(np.abs(difference), float(np.max(np.abs(a[keep]) + np.abs(b[keep]))))
    present = size > 0
    m = int(present.sum())
    if m == 0:
        raise EstimationError(f"all {n} differences are zero, so there are no signed ranks")
    doubled = np.rint(2 * rankdata(size[present])).astype(int)
    positive = difference[present] > 0
    statistic = doubled[positive].sum() / 2
    mean = doubled.sum() / 4
    p_exact = np.nan
    if m <= _LARGEST_EXACT:
        counts = _subset_sums(doubled)
        away = np.abs(np.arange(counts.size) / 2 - mean) >= abs(statistic - mean) - 1e-9
        p_exact = float(min(1.0, counts[away].sum()))
    sd = float(np.sqrt(np.sum((doubled / 2.0) ** 2) / 4))
    estimate, low, high = _walsh(difference, confidence)
    return SignedRank(
        statistic=float(statistic),
        p_exact=p_exact,
        p_asymptotic=float(2 * norm.sf(abs(statistic - mean) / sd)),
        estimate=estimate,
        ci_low=low,
        ci_high=high,
        n=n,
        n_zero=n - m,
        n_missing=n_missing,
    )


def rank_sum(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95) -> RankSum:
    """Compare two groups by their ranks, exactly with ties.

    Parameters
    ----------
    x, y : array_like
        Values of the two groups, shapes (n_x,) and (n_y,); missing values are left out and counted.
    confidence : float, optional
        Confidence level of the Hodges-Lehmann shift.

    Returns
    -------
    RankSum
        U, p values, probability of superiority and shift.

    Raises
    ------
    EstimationError
        If a group is empty or all values are equal.

    References
    ----------
    Hollander M, Wolfe DA, Chicken E. Nonparametric Statistical Methods. Wiley, 2014.

    Examples
    --------
    >>> result = rank_sum([3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 2.5])
    >>> result.statistic, round(result.p_exact, 4)
    (11.5, 0.0857)
    """
    from scipy.stats import norm, rankdata

    a, b = as_column(x, "x"), as_column(y, "y")
    n_missing = int(np.isnan(a).sum() + np.isnan(b).sum())
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    require_rows(min(a.size, b.size), 1, "each group of a rank sum test", n_missing=n_missing)
    pooled = np.concatenate([a, b])
    n = pooled.size
    if is_constant(pooled):
        raise EstimationError(f"all {n} values equal {pooled[0]:g}, so the groups have no ranks")
    doubled = np.rint(2 * rankdata(pooled)).astype(int)
    u = doubled[: a.size].sum() / 2 - a.size * (a.size + 1) / 2
    mean = a.size * b.size / 2
    _, ties = np.unique(pooled, return_counts=True)
    tie_loss = float(np.sum(ties.astype(float) ** 3 - ties)) / (n * (n - 1))
    sd = float(np.sqrt(a.size * b.size / 12 * (n + 1 - tie_loss)))
    away = abs(u - mean)
    p_exact = np.nan
    if n <= _LARGEST_EXACT:
        small = min(a.size, b.size)
        probability = _subset_sums(doubled, small)
        centre = small * (n + 1)  # of the doubled rank sum
        far = np.abs(np.arange(probability.size) - centre) >= 2 * away - 1e-9
        p_exact = float(min(1.0, probability[far].sum()))
    differences = np.sort(np.subtract.outer(a, b).ravel())
    tail = _tail_rank(a.size, b.size, sd, (1 - confidence) / 2)
    bounded = 1 <= tail <= differences.size
    return RankSum(
        statistic=float(u),
        p_exact=p_exact,
        p_asymptotic=float(2 * norm.sf(away / sd)),
        p_asymptotic_corrected=float(min(1.0, 2 * norm.sf(max(away - 0.5, 0.0) / sd))),
        probability_superiority=float(u / (a.size * b.size)),
        estimate=float(np.median(differences)),
        ci_low=float(differences[tail - 1]) if bounded else -np.inf,
        ci_high=float(differences[differences.size - tail]) if bounded else np.inf,
        n=n,
        n_x=a.size,
        n_y=b.size,
        n_missing=n_missing,
    )


def kruskal_wallis(groups: Mapping[str, ArrayLike] | Sequence[ArrayLike]) -> KruskalWallis:
    """Compare several groups by their ranks.

    Parameters
    ----------
    groups : mapping or sequence of array_like
        Values of each group; missing values are left out and counted.

    Returns
    -------
    KruskalWallis
        H with tie correction and its p value.

    Raises
    ------
    EstimationError
        If there are fewer than two groups, one is empty, or all values are equal.

    Examples
    --------
    >>> round(kruskal_wallis([[1, 2, 3], [2, 4, 6], [5, 6, 7]]).statistic, 4)
    5.0847
    """
    from scipy.stats import chi2, rankdata

    columns = [as_column(g, "a group") for g in (groups.values() if isinstance(groups, Mapping) else groups)]
    n_missing = sum(int(np.isnan(c).sum()) for c in columns)
    columns = [c[~np.isnan(c)] for c in columns]
    require_rows(len(columns), 2, "a comparison of groups (as groups)")
    require_rows(min(c.size for c in columns), 1, "each group", n_missing=n_missing)
    pooled = np.concatenate(columns)
    n = pooled.size
    if is_constant(pooled):
        raise EstimationError(f"all {n} values equal {pooled[0]:g}, so the groups have no ranks")
    ranks = rankdata(pooled)
    sums = [part.sum() for part in np.split(ranks, np.cumsum([c.size for c in columns])[:-1])]
    h = 12 / (n * (n + 1)) * sum(s * s / c.size for s, c in zip(sums, columns, strict=True)) - 3 * (n + 1)
    _, ties = np.unique(pooled, return_counts=True)
    h /= 1 - float(np.sum(ties.astype(float) ** 3 - ties)) / (float(n) ** 3 - n)
    df = len(columns) - 1
    return KruskalWallis(statistic=float(h), df=df, p=float(chi2.sf(h, df)), n=n, n_missing=n_missing)


@lru_cache(maxsize=2)
def _orders(n: int) -> NDArray[np.intp]:
    """Return all orders of n things, shape (n!, n)."""
    return np.array(list(permutations(range(n))), dtype=np.intp)


def _shuffled(values: Float, codes: NDArray[np.intp] | None, n_draws: int, rng: np.random.Generator) -> Float:
    """Return random orders of the values, whole subjects changing places where codes are given."""
    if codes is None:
        return rng.permuted(np.broadcast_to(values, (n_draws, values.size)), axis=1)
    rows = [np.flatnonzero(codes == c) for c in np.unique(codes)]
    drawn = np.empty((n_draws, values.size))
    for length in {r.size for r in rows}:
        block = np.array([r for r in rows if r.size == length])
        order = rng.permuted(np.broadcast_to(np.arange(len(block)), (n_draws, len(block))), axis=1)
        drawn[:, block.ravel()] = values[block[order].reshape(n_draws, -1)]
    return drawn


def _rounded(size: Float, scale: float) -> Float:
    """Round so that sizes that differ by rounding error only are equal."""
    unit = 1e-12 * scale
    return np.asarray(np.rint(size / unit) * unit) if unit > 0 else size


def _subset_sums(doubled: NDArray[np.int_], size: int | None = None) -> Float:
    """Return the probability of each sum of a random subset: of any size, or of a given size."""
    total = int(doubled.sum())
    if size is None:
        chance = np.zeros(total + 1)
        chance[0] = 1.0
        for r in doubled:
            shifted = np.zeros_like(chance)
            shifted[r:] = chance[: total + 1 - r]
            chance = (chance + shifted) / 2
        return chance
    top = int(np.sort(doubled)[::-1][:size].sum())
    # table[k, s]: probability that k chosen among the first i ranks sum to s, under random sampling of `size` of n
    n = doubled.size
    table = np.zeros((size + 1, top + 1))
    table[0, 0] = 1.0
    for i, r in enumerate(doubled):
        k = np.arange(size + 1)
        take = np.clip((size - k) / (n - i), 0.0, 1.0)[:, None]
        after = table * (1 - take)
        after[1:, r:] += (table * take)[:-1, : top + 1 - r]
        table = after
    return np.asarray(table[size])


def _walsh(difference: Float, confidence: float) -> tuple[float, float, float]:
    """Return the median of the Walsh averages and its distribution-free interval."""
    n = difference.size
    i, j = np.triu_indices(n)
    averages = np.sort((difference[i] + difference[j]) / 2)
    if n <= _LARGEST_EXACT:
        chance = np.cumsum(_subset_sums(np.arange(1, n + 1)))
        tail = int(np.searchsorted(chance, (1 - confidence) / 2, side="left"))
    else:
        from scipy.stats import norm

        sd = np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        tail = int(n * (n + 1) / 4 - norm.ppf(0.5 + confidence / 2) * sd)
    if tail < 1:  # too few pairs for any finite interval at this level
        return float(np.median(averages)), -np.inf, np.inf
    return float(np.median(averages)), float(averages[tail - 1]), float(averages[averages.size - tail])


def _tail_rank(n_x: int, n_y: int, sd: float, alpha: float) -> int:
    """Return the rank of the difference that bounds the shift at level alpha in one tail; 0 where there is none."""
    if n_x + n_y <= _LARGEST_EXACT:
        small = min(n_x, n_y)
        chance = np.cumsum(_subset_sums(2 * np.arange(1, n_x + n_y + 1), small))[small * (small + 1) :: 2]
        return int(np.searchsorted(chance, alpha, side="left"))
    from scipy.stats import norm

    return max(int(n_x * n_y / 2 - norm.ppf(1 - alpha) * sd), 0)
