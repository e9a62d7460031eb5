"""Nonlinear least squares: Curve → FittedCurve.

Levenberg-Marquardt (MINPACK) on central-difference derivatives, then Gauss-Newton steps until the residuals are
orthogonal to the tangent plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._rows import as_column, require_rows

__all__ = ["FittedCurve", "fit_curve"]

Float = NDArray[np.float64]
_OFFSET = 1e-6
"""Largest cosine between residuals and tangent plane that counts as converged (Bates and Watts 1981)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCurve:
    """A curve fitted by least squares."""

    estimate: Float
    """Parameters, shape (p,)."""
    se: Float
    """Their standard errors from sigma² (JᵀJ)⁻¹; NaN where the data do not determine a parameter."""
    covariance: Float
    """Their covariance, shape (p, p)."""
    rss: float
    """Residual sum of squares."""
    sigma: float
    """Residual standard deviation, √(RSS/df)."""
    df: int
    """Residual degrees of freedom, n - p."""
    n: int
    """Observations."""
    converged: bool
    """Whether the residuals are orthogonal to the tangent plane (or vanish)."""
    offset: float
    """Cosine of the angle between residuals and tangent plane."""


def fit_curve(
    curve: Callable[[Float], Float],
    y: ArrayLike,
    start: Sequence[float] | Float,
    *,
    jacobian: Callable[[Float], Float] | None = None,
    max_evaluations: int = 5000,
) -> FittedCurve:
    """Minimise ‖y - curve(θ)‖² from one start.

    Parameters
    ----------
    curve : callable
        Parameters, shape (p,), to fitted values, shape (n,).
    y : array_like
        Observations, shape (n,), none missing.
    start : sequence of float
        First guess, shape (p,).
    jacobian : callable, optional
        Derivatives of the curve, shape (n, p); central differences where it is not given.
    max_evaluations : int, optional
        Limit on evaluations of the curve.

    Returns
    -------
    FittedCurve
        Estimates with standard errors; look at ``converged``.

    Raises
    ------
    DataError
        If a value is missing or the lengths differ.
    EstimationError
        If there are not more observations than parameters, or the curve is not finite at the start.

    References
    ----------
    Bates DM, Watts DG. Nonlinear Regression Analysis and Its Applications. Wiley, 1988.

    Examples
    --------
    >>> x = np.array([1.0, 2.0, 3.0, 5.0, 7.0, 10.0])
    >>> y = np.array([109.0, 149.0, 149.0, 191.0, 213.0, 224.0])
    >>> fit_curve(lambda b: b[0] * -np.expm1(-b[1] * x), y, (100.0, 0.75)).estimate.round(4)
    array([213.8094,   0.5472])
    """
    from scipy.optimize import leastsq

    target = as_column(y, "y")
    theta0 = np.asarray(start, dtype=np.float64)
    n, p = target.size, theta0.size
    if np.isnan(target).any():
        raise DataError(f"y holds {int(np.isnan(target).sum())} missing values of {n}")
    require_rows(n, p + 1, f"a curve of {p} parameters")

    def residual(theta: Float) -> Float:
        with np.errstate(all="ignore"):
            value = curve(theta) - target
        # MINPACK steps back from a region where the curve overflows once it sees a large residual there
        return np.asarray(np.nan_to_num(value, nan=1e100, posinf=1e100, neginf=-1e100))

    def derivative(theta: Float) -> Float:
        with np.errstate(all="ignore"):
            matrix = _central(curve, theta) if jacobian is None else jacobian(theta)
        return np.asarray(np.nan_to_num(matrix, nan=0.0, posinf=1e100, neginf=-1e100))

    with np.errstate(all="ignore"):
        first = curve(theta0)
    if np.shape(first) != target.shape:
        raise DataError(f"the curve gives {np.shape(first)} values for {n} observations")
    if not np.isfinite(first).all():
        raise EstimationError(f"the curve is not finite at the start {theta0.tolist()}")

    with np.errstate(all="ignore"):  # MINPACK forms a covariance that overflows where a parameter is not determined
        theta = leastsq(
            residual,
            theta0,
            Dfun=derivative,
            full_output=True,
            ftol=1e-15,
            xtol=1e-15,
            gtol=0.0,
            maxfev=max_evaluations,
        )[0]
    theta = _polish(residual, derivative, np.asarray(theta, dtype=np.float64))
    return _describe(residual(theta), derivative(theta), theta, float(target @ target))


def _central(curve: Callable[[Float], Float], theta: Float) -> Float:
    """Return fourth-order central differences of a curve."""
    columns = []
    for j, value in enumerate(theta):
        step = 1e-3 * abs(value) if value else 1e-3
        ahead, behind, far, back = (theta.copy() for _ in range(4))
        ahead[j], behind[j], far[j], back[j] = value + step, value - step, value + 2 * step, value - 2 * step
        step = (far[j] - back[j]) / 4
        columns.append((8 * (curve(ahead) - curve(behind)) - (curve(far) - curve(back))) / (12 * step))
    return np.column_stack(columns)


def _polish(residual: Callable[[Float], Float], derivative: Callable[[Float], Float], theta: Float) -> Float:
    """Take Gauss-Newton steps for as long as they lower the sum of squares."""
    r = residual(theta)
    rss = float(r @ r)
    for _ in range(20):
        J = derivative(theta)
        scale = np.linalg.norm(J, axis=0)
        if not scale.all():
            break
        step = np.linalg.lstsq(J / scale, -r, rcond=None)[0] / scale
        trial = theta + step
        r_trial = residual(trial)
        rss_trial = float(r_trial @ r_trial)
        if not rss_trial < rss:
            break
        theta, r, rss = trial, r_trial, rss_trial
    return theta


def _describe(r: Float, J: Float, theta: Float, total: float) -> FittedCurve:
    n, p = J.shape
    rss = float(r @ r)
    scale = np.linalg.norm(J, axis=0)
    safe = np.where(scale > 0, scale, 1.0)
    q, upper = np.linalg.qr(J / safe)
    offset = float(np.linalg.norm(q.T @ r) / np.sqrt(rss)) if rss > 0 else 0.0
    exact = rss <= 1e-20 * total
    df = n - p
    sigma2 = rss / df
    determined = bool((scale > 0).all()) and bool(np.abs(np.diag(upper)).min() > 1e-13)
    if determined:
        inverse = np.linalg.solve(upper, np.eye(p)) / safe[:, None]
        covariance = sigma2 * inverse @ inverse.T
    else:
        covariance = np.full((p, p), np.nan)
    return FittedCurve(
        estimate=theta,
        se=np.sqrt(np.diag(covariance)),
        covariance=covariance,
        rss=rss,
        sigma=float(np.sqrt(sigma2)),
        df=df,
        n=n,
        converged=bool(determined and (exact or offset < _OFFSET)),
        offset=offset,
    )
