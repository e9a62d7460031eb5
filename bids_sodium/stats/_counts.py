"""Counts: FisherExact of a two-by-two table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bids_sodium.core.errors import DataError, EstimationError

__all__ = ["FisherExact", "fisher_exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FisherExact:
    """Fisher's exact test."""

    odds_ratio: float
    """Conditional maximum-likelihood estimate; 0 or infinite where a cell is empty."""
    ci_low: float
    """Lower limit of the exact conditional interval."""
    ci_high: float
    """Upper limit of the exact conditional interval."""
    p: float
    """Two-sided p value: tables no more probable than the one seen."""
    n: int
    """Total count."""


def fisher_exact(table: ArrayLike, *, confidence: float = 0.95) -> FisherExact:
    """Test independence in a two-by-two table.

    Parameters
    ----------
    table : array_like
        Counts [[a, b], [c, d]]; the odds ratio is a·d/(b·c).
    confidence : float, optional
        Confidence level.

    Returns
    -------
    FisherExact
        Conditional odds ratio with interval and p value.

    Raises
    ------
    DataError
        If the table is not two by two, or holds anything but counts.
    EstimationError
        If a row or column is empty.

    Examples
    --------
    >>> result = fisher_exact([[4, 9], [3, 62]])
    >>> round(result.odds_ratio, 3), round(result.p, 5)
    (8.768, 0.01288)
    """
    from scipy.stats import fisher_exact as exact
    from scipy.stats.contingency import odds_ratio

    counts = np.asarray(table, dtype=np.float64)
    if counts.shape != (2, 2) or not np.isfinite(counts).all() or (counts < 0).any() or (counts % 1 != 0).any():
        raise DataError(f"Fisher's test needs two by two counts, got {counts.tolist()}")
    whole = counts.astype(int)
    if not (whole.sum(axis=0).all() and whole.sum(axis=1).all()):
        raise EstimationError(f"a row or column of the counts {whole.tolist()} is empty")
    ratio = odds_ratio(whole, kind="conditional")
    interval = ratio.confidence_interval(confidence)
    return FisherExact(
        odds_ratio=float(ratio.statistic),
        ci_low=float(interval.low),
        ci_high=float(interval.high),
        p=float(exact(whole).pvalue),
        n=int(whole.sum()),
    )
