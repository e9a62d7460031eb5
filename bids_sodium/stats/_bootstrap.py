"""Bootstrap of linear models: Bca, bias-corrected and accelerated intervals of all coefficients at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._design import design_matrix, names_of
from bids_sodium.stats._rows import as_column, as_matrix, complete, is_constant, require_rows

__all__ = ["Bca", "bca"]

Float = NDArray[np.float64]
_CHUNK = 4_000_000
"""Entries of the table of counts held at once, 32 MB."""
_LONG = 1000
"""Rows above which resamples are counted one by one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bca:
    """Bootstrap of a linear model; arrays follow ``names``."""

    names: tuple[str, ...]
    """Terms, in the order of the columns of X."""
    estimate: Float
    """Least-squares coefficients, shape (p,)."""
    ci_low: Float
    """Lower BCa limits."""
    ci_high: Float
    """Upper BCa limits."""
    z0: Float
    """Bias corrections."""
    acceleration: Float
    """Accelerations, from the jackknife."""
    alpha_low: Float
    """Quantiles of the replicates at which the lower limits stand."""
    alpha_high: Float
    """Quantiles at which the upper limits stand."""
    percentile_low: Float
    """Lower percentile limits."""
    percentile_high: Float
    """Upper percentile limits."""
    se: Float
    """Standard deviations of the replicates."""
    bias: Float
    """Means of the replicates less the estimates."""
    p: Float
    """Two-sided p values: the level at which the BCa interval meets zero, at least 1/(R + 1)."""
    mc_sd_low: Float
    """Monte Carlo standard deviation of the lower limits, from the number of resamples."""
    mc_sd_high: Float
    """Monte Carlo standard deviation of the upper limits."""
    n: int
    """Rows used."""
    n_missing: int
    """Rows left out as incomplete."""
    n_resamples: int
    """Replicates used."""
    n_failed: int
    """Resamples in which the columns were collinear."""
    confidence: float
    """Confidence level."""


def bca(
    X: ArrayLike,
    y: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    indices: ArrayLike | None = None,
    n_resamples: int = 10_000,
    rng: np.random.Generator | None = None,
    confidence: float = 0.95,
) -> Bca:
    """Bootstrap the rows of a linear model.

    All resamples are solved together from weighted cross-products in an orthonormal basis. With
    z0 = Φ⁻¹(share of replicates below the estimate) and the jackknife acceleration a, the limits are the linear
    quantiles of the replicates at Φ(z0 + (z0 + z)/(1 - a(z0 + z))).

    Parameters
    ----------
    X : array_like
        Design, shape (n, p), with its column of ones.
    y : array_like
        Outcome, shape (n,). Rows with a missing value are left out and counted.
    names : sequence of str, optional
        Names of the columns of X.
    indices : array_like of int, optional
        Rows of each resample, shape (R, n); then no row may be missing, and no ``rng`` is needed.
    n_resamples : int, optional
        Resamples drawn.
    rng : numpy.random.Generator, optional
        Draws them.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    Bca
        Limits with what they were made of, and their Monte Carlo error.

    Raises
    ------
    DataError
        If neither indices nor rng is given, or the indices do not fit the rows.
    EstimationError
        If there are fewer than p + 2 rows, a row has leverage one, or more than 1 % of the resamples are collinear.

    References
    ----------
    Efron B. Better bootstrap confidence intervals. J Am Stat Assoc 1987. https://doi.org/10.1080/01621459.1987.10478410

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = np.arange(40.0)
    >>> y = 3 + 0.5 * x + rng.normal(size=40)
    >>> result = bca(np.column_stack([np.ones(40), x]), y, names=["intercept", "x"], rng=rng)
    >>> bool(result.ci_low[1] < 0.5 < result.ci_high[1])
    True
    """
    from scipy.special import ndtr, ndtri

    design, outcome = as_matrix(X, "X"), as_column(y, "y")
    keep = complete(design, outcome, names=("X", "y"))
    n_missing = int((~keep).sum())
    if indices is not None and n_missing:
        raise DataError(f"{n_missing} rows hold missing values, so indices of rows have no fixed meaning")
    design, outcome = design[keep], outcome[keep]
    n, p = design.shape
    terms = names_of(names, p)
    require_rows(n, p + 2, f"a bootstrap of {p} coefficients", n_missing=n_missing)
    if is_constant(outcome):
        raise EstimationError(f"all {n} values of the outcome equal {outcome[0]:g}")
    basis = design_matrix(design, terms)
    Q, residuals = basis.Q, basis.residual(outcome)
    estimate = basis.coefficients(outcome)
    back = np.asarray(np.linalg.solve(basis.R, np.eye(p)), dtype=np.float64)
    a = _acceleration(Q, residuals, back, n)

    deviations = np.concatenate([_replicates(drawn, Q, residuals) for drawn in _drawn(indices, n, n_resamples, rng)])
    good = ~np.isnan(deviations[:, 0])
    failed = int((~good).sum())
    if failed > 0.01 * good.size:
        raise EstimationError(
            f"the columns are collinear in {failed} of {good.size} resamples of {n} rows",
            hint="leave out a term that few rows determine",
        )
    moved = deviations[good] @ back.T  # replicates less the estimates
    replicates = np.sort(estimate + moved, axis=0)
    R = replicates.shape[0]
    z0 = np.asarray(ndtri(np.clip(np.mean(moved < 0, axis=0), 0.5 / R, 1 - 0.5 / R)), dtype=np.float64)
    limits, alphas, mc = [], [], []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = z0 + ndtri(tail)
        stretch = 1 - a * shifted
        if (stretch <= 0).any():
            raise EstimationError(f"the acceleration reaches {np.abs(a).max():.2g}, BCa limits do not exist")
        alpha = ndtr(z0 + shifted / stretch)
        alphas.append(alpha)
        limits.append(_quantiles(replicates, alpha))
        mc.append(_monte_carlo(replicates, alpha, z0, stretch))
    zero = ndtri(np.clip(np.mean(replicates < 0, axis=0), 0.5 / R, 1 - 0.5 / R)) - z0
    level = ndtr(zero / (1 + a * zero) - z0)
    tails = np.full(p, (1 - confidence) / 2)
    return Bca(
        names=terms,
        estimate=estimate,
        ci_low=limits[0],
        ci_high=limits[1],
        z0=z0,
        acceleration=a,
        alpha_low=alphas[0],
        alpha_high=alphas[1],
        percentile_low=_quantiles(replicates, tails),
        percentile_high=_quantiles(replicates, 1 - tails),
        se=moved.std(axis=0, ddof=1),
        bias=moved.mean(axis=0),
        p=np.maximum(2 * np.minimum(level, 1 - level), 1 / (R + 1)),
        mc_sd_low=mc[0],
        mc_sd_high=mc[1],
        n=n,
        n_missing=n_missing,
        n_resamples=R,
        n_failed=failed,
        confidence=confidence,
    )


def _drawn(
    indices: ArrayLike | None, n: int, n_resamples: int, rng: np.random.Generator | None
) -> Iterator[NDArray[np.intp]]:
    """Yield the rows of the resamples, some resamples at a time."""
    if indices is not None:
        drawn = np.asarray(indices)
        if drawn.ndim != 2 or drawn.shape[1] != n or drawn.dtype.kind not in "iu":
            raise DataError(f"the indices have shape {drawn.shape} and type {drawn.dtype}, expected whole (R, {n})")
        if drawn.size and (drawn.min() < 0 or drawn.max() >= n):
            raise DataError(f"the indices run from {drawn.min()} to {drawn.max()}, expected 0 to {n - 1}")
        require_rows(drawn.shape[0], 20, "a bootstrap interval (as resamples)")
        yield drawn.astype(np.intp, copy=False)
        return
    if rng is None:
        raise DataError("a bootstrap needs a random generator", hint="pass rng=numpy.random.default_rng(seed)")
    require_rows(n_resamples, 20, "a bootstrap interval (as resamples)")
    step = max(1, _CHUNK // n)
    for first in range(0, n_resamples, step):
        yield rng.integers(0, n, (min(step, n_resamples - first), n), dtype=np.intp)


def _replicates(drawn: NDArray[np.intp], Q: Float, residuals: Float) -> Float:
    """Return the replicates less the estimate in the orthonormal basis, NaN where a resample is collinear."""
    n, p = Q.shape
    upper = np.triu_indices(p)
    products = np.column_stack([Q[:, upper[0]] * Q[:, upper[1]], Q * residuals[:, None]])
    result = np.empty((drawn.shape[0], p))
    step = max(1, _CHUNK // n)
    for first in range(0, drawn.shape[0], step):
        part = drawn[first : first + step]
        m = part.shape[0]
        sums = _counts(part, n) @ products
        cross = np.empty((m, p, p))
        cross[:, upper[0], upper[1]] = cross[:, upper[1], upper[0]] = sums[:, : upper[0].size]
        right = sums[:, upper[0].size :]
        # the trace is about p; a determinant this small means dependent columns
        singular = np.abs(np.linalg.det(cross)) < 1e-12
        cross[singular] = np.eye(p)
        solved = np.linalg.solve(cross, right[:, :, None])[:, :, 0]
        solved[singular] = np.nan
        result[first : first + step] = solved
    return result


def _counts(drawn: NDArray[np.intp], n: int) -> Float:
    """Return how often each resample holds each row."""
    m = drawn.shape[0]
    if n <= _LONG:
        offset = drawn + n * np.arange(m)[:, None]
        return np.bincount(offset.ravel(), minlength=m * n).reshape(m, n).astype(np.float64)
    counts = np.empty((m, n))
    for i, rows in enumerate(drawn):  # one resample at a time stays within the cache
        counts[i] = np.bincount(rows, minlength=n)
    return counts


def _acceleration(Q: Float, residuals: Float, back: Float, n: int) -> Float:
    """Return the jackknife acceleration of every coefficient from leave-one-out changes in closed form."""
    leverage = np.sum(Q**2, axis=1)
    if (leverage > 1 - 1e-10).any():
        at = int(np.argmax(leverage))
        raise EstimationError(f"row {at + 1} of {n} alone determines a coefficient, so it cannot be left out")
    # the estimate less its jackknife values, about the estimate itself as in R's boot::empinf
    d = (Q * (residuals / (1 - leverage))[:, None]) @ back.T
    size = np.sum(d**2, axis=0)
    return np.asarray(np.sum(d**3, axis=0) / (6 * np.where(size > 0, size, 1.0) ** 1.5))


def _quantiles(ranked: Float, alpha: Float) -> Float:
    """Return the linear quantile of each sorted column at its own level."""
    position = alpha * (ranked.shape[0] - 1)
    low = np.clip(np.floor(position).astype(int), 0, ranked.shape[0] - 2)
    column = np.arange(ranked.shape[1])
    below, above = ranked[low, column], ranked[low + 1, column]
    return np.asarray(below + (above - below) * (position - low))


def _monte_carlo(ranked: Float, alpha: Float, z0: Float, stretch: Float) -> Float:
    """Return the standard deviation of a BCa limit over sets of resamples.

    The limit varies with the quantile itself and with z0, the normal quantile of the share below the estimate; both
    are shares of the same replicates.
    """
    from scipy.special import ndtr, ndtri

    R = ranked.shape[0]
    share = ndtr(z0)

    def normal(z: Float) -> Float:
        return np.asarray(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))

    reach = np.minimum(np.maximum(0.4 * np.minimum(alpha, 1 - alpha), 3 / R), np.minimum(alpha, 1 - alpha))
    width = _quantiles(ranked, alpha + reach) - _quantiles(ranked, alpha - reach)
    density = 2 * reach / np.where(width > 0, width, np.inf)
    pull = normal(ndtri(alpha)) * (1 + 1 / stretch**2) / normal(z0)
    joint = np.minimum(alpha, share) - alpha * share
    variance = alpha * (1 - alpha) + pull**2 * share * (1 - share) - 2 * pull * joint
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.maximum(variance, 0) / R) / density
    return np.where(density > 0, spread, 0.0)
