"""Smooth time courses: LocalLinear regression with a bandwidth by cross-validation and bands by resampling subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._rows import as_column, complete, labels_of, require_rows

__all__ = ["LocalLinear", "local_linear"]

Float = NDArray[np.float64]
_MOST = 300
"""Observations that a bandwidth is judged by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalLinear:
    """A local-linear course on a grid; NaN outside the data."""

    grid: Float
    """Where the course is given, shape (m,)."""
    value: Float
    """The course; NaN outside the range of the data."""
    ci_low: Float
    """Lower limit of the pointwise band; NaN without resampling."""
    ci_high: Float
    """Upper limit of the pointwise band."""
    se: Float
    """Standard deviation of the resampled courses."""
    n_subjects: NDArray[np.intp]
    """Subjects with an observation within one bandwidth."""
    supported: NDArray[np.bool_]
    """Where at least ``least_subjects`` lie within one bandwidth; draw the rest in grey."""
    bandwidth: float
    """Standard deviation of the Gaussian kernel, in units of x."""
    cv_error: float
    """Root mean square error of the left-out observations at that bandwidth."""
    bandwidth_at_edge: bool
    """Whether cross-validation chose the smallest or largest bandwidth tried; at the largest the course is a line."""
    n: int
    """Observations used."""
    n_missing: int
    """Rows left out as incomplete."""
    n_resamples: int
    """Resamples behind the band."""
    confidence: float
    """Confidence level of the band."""


def local_linear(
    x: ArrayLike,
    y: ArrayLike,
    grid: ArrayLike,
    *,
    subjects: Sequence[Any] | NDArray[Any] | None = None,
    bandwidth: float | None = None,
    rng: np.random.Generator | None = None,
    n_resamples: int = 1000,
    least_subjects: int = 3,
    confidence: float = 0.95,
) -> LocalLinear:
    """Fit a straight line around every grid point with Gaussian weights.

    The value at x0 is the intercept of the line that minimises sum K((x - x0)/h) (y - a - b (x - x0))². The bandwidth h
    has the smallest leave-one-out error, whole subjects being left out where they are given; it is not tried so small
    that fewer than ``least_subjects`` other subjects lie within it of nine observations in ten. Bands are percentiles
    over resampled subjects at that bandwidth. Nothing is extrapolated.

    Parameters
    ----------
    x, y : array_like
        Observations, shape (n,); incomplete rows are left out and counted.
    grid : array_like
        Where the course is wanted, shape (m,).
    subjects : sequence, optional
        Subject of each observation; by default each its own.
    bandwidth : float, optional
        Bandwidth in units of x, instead of cross-validation.
    rng : numpy.random.Generator, optional
        Draws the resamples; without it there is no band.
    n_resamples : int, optional
        Resamples of the subjects.
    least_subjects : int, optional
        Subjects within one bandwidth below which a grid point is not supported.
    confidence : float, optional
        Confidence level of the band.

    Returns
    -------
    LocalLinear
        Course, band, bandwidth and support.

    Raises
    ------
    EstimationError
        If there are fewer than 5 observations, fewer than 3 different x, or fewer than 3 subjects.
    DataError
        If the bandwidth is not positive.

    References
    ----------
    Fan J, Gijbels I. Local Polynomial Modelling and Its Applications. Chapman & Hall, 1996.

    Examples
    --------
    >>> x = np.linspace(0, 10, 21)
    >>> local_linear(x, 2 * x + 1, [2.0, 5.0, 11.0]).value.round(6)
    array([ 5., 11., nan])
    """
    a, b, at = as_column(x, "x"), as_column(y, "y"), as_column(grid, "grid")
    keep = complete(a, b, names=("x", "y"))
    if subjects is None:
        codes = np.arange(a.size)
    else:
        codes, _, missing = labels_of(subjects, "subjects")
        if codes.size != a.size:
            raise DataError(f"the columns differ in length: x {a.size}, subjects {codes.size}")
        keep &= ~missing
    n_missing = int((~keep).sum())
    a, b = a[keep], b[keep]
    codes = np.unique(codes[keep], return_inverse=True)[1]
    n = a.size
    require_rows(n, 5, "a local-linear course", n_missing=n_missing)
    n_groups = int(codes.max()) + 1
    different = np.unique(a).size
    if different < 3 or n_groups < 3:
        raise EstimationError(
            f"{different} different times and {n_groups} subjects in {n} observations; a course needs 3 of each"
        )
    if bandwidth is not None and bandwidth <= 0:
        raise DataError(f"the bandwidth is {bandwidth:g}, expected a positive number")
    tried = _bandwidths(a, codes, least_subjects) if bandwidth is None else np.array([bandwidth])
    errors = np.array([_left_out_error(a, b, codes, float(h)) for h in tried])
    if np.isnan(errors).all():
        raise EstimationError(f"no bandwidth up to {tried[-1]:.3g} predicts the observations left out")
    best = int(np.nanargmin(errors))
    h = float(tried[best])
    inside = (at >= a.min()) & (at <= a.max())
    value = _smooth(a, b, at, h, np.ones((1, n)))[0]
    value[~inside] = np.nan
    near = np.abs(at[:, None] - a) <= h
    member = np.zeros((n_groups, n))
    member[codes, np.arange(n)] = 1.0
    n_near = ((near @ member.T) > 0).sum(axis=1).astype(np.intp)
    low = high = se = np.full(at.size, np.nan)
    if rng is not None:
        who = rng.integers(0, n_groups, size=(n_resamples, n_groups)) + n_groups * np.arange(n_resamples)[:, None]
        drawn = np.bincount(who.ravel(), minlength=n_resamples * n_groups).reshape(n_resamples, -1).astype(np.float64)
        courses = _smooth(a, b, at, h, drawn, codes)
        courses[:, ~inside] = np.nan
        enough = np.isfinite(courses).sum(axis=0) > 0.9 * n_resamples
        tail = (1 - confidence) / 2
        low, high, se = (np.full(at.size, np.nan) for _ in range(3))
        if enough.any():
            low[enough], high[enough] = np.nanquantile(courses[:, enough], [tail, 1 - tail], axis=0)
            se[enough] = np.nanstd(courses[:, enough], axis=0, ddof=1)
    return LocalLinear(
        grid=at,
        value=value,
        ci_low=low,
        ci_high=high,
        se=se,
        n_subjects=n_near,
        supported=inside & (n_near >= least_subjects),
        bandwidth=h,
        cv_error=float(errors[best]),
        bandwidth_at_edge=bandwidth is None and best in {0, tried.size - 1},
        n=n,
        n_missing=n_missing,
        n_resamples=0 if rng is None else n_resamples,
        confidence=confidence,
    )


def _bandwidths(x: Float, codes: NDArray[np.intp], least_subjects: int) -> Float:
    """Return the bandwidths to try: from where most observations have enough other subjects near to the whole range."""
    reach = np.empty(x.size)
    for i in range(x.size):
        nearest = np.full(int(codes.max()) + 1, np.inf)
        np.minimum.at(nearest, codes, np.abs(x - x[i]))
        others = np.sort(np.delete(nearest, codes[i]))
        reach[i] = others[min(least_subjects, others.size) - 1]
    spread = float(np.ptp(x))
    least = float(np.quantile(reach, 0.9))
    return np.geomspace(min(max(least, 0.01 * spread), 0.5 * spread), spread, 30)


def _smooth(x: Float, y: Float, at: Float, h: float, weight: Float, codes: NDArray[np.intp] | None = None) -> Float:
    """Return the courses under each row of weights, of observations or of the subjects that ``codes`` names.

    Shape (resamples, grid); NaN where undetermined.
    """
    u = (x - at[:, None]) / h
    log_kernel = -(u**2) / 2
    kernel = np.exp(log_kernel - log_kernel.max(axis=1, keepdims=True)).T
    d = u.T
    own = y[:, None] * kernel
    parts = [kernel, kernel * d, kernel * d**2, own, own * d]
    if codes is not None:
        order = np.argsort(codes, kind="stable")
        first = np.searchsorted(codes[order], np.arange(int(codes.max()) + 1))
        parts = [np.add.reduceat(part[order], first, axis=0) for part in parts]
    s0, s1, s2, t0, t1 = (weight @ part for part in parts)
    determinant = s0 * s2 - s1**2
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (s2 * t0 - s1 * t1) / determinant
    return np.where(determinant > 1e-9 * np.maximum(s0 * s2, 1e-300), value, np.nan)


def _left_out_error(x: Float, y: Float, codes: NDArray[np.intp], h: float) -> float:
    """Return the root mean square error of observations predicted without their subject; NaN where one cannot be.

    Of many observations as many as `_MOST` are predicted, evenly over their times; each from all others.
    """
    left = np.argsort(x, kind="stable")
    left = left[np.unique(np.linspace(0, x.size - 1, min(x.size, _MOST)).round().astype(np.intp))]
    u = (x - x[left, None]) / h
    kernel = np.exp(-(u**2) / 2) * (codes[left, None] != codes)
    s0, s1, s2 = kernel.sum(axis=1), (kernel * u).sum(axis=1), (kernel * u**2).sum(axis=1)
    t0, t1 = kernel @ y, (kernel * u) @ y
    determinant = s0 * s2 - s1**2
    if (determinant <= 1e-9 * np.maximum(s0 * s2, 1e-300)).any():
        return np.nan
    return float(np.sqrt(np.mean((y[left] - (s2 * t0 - s1 * t1) / determinant) ** 2)))
