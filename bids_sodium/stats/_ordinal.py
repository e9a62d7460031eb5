"""Proportional odds for ordered outcomes such as the EDSS: ProportionalOdds.

The likelihood is maximised here and not by statsmodels' OrderedModel, whose numerical derivatives, where a term nearly
separates the levels, stop up to tens of percent from the maximum with missing standard errors, and take fifty times
as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import EstimationError
from bids_sodium.stats._design import design_matrix, names_of
from bids_sodium.stats._rows import as_column, as_matrix, complete, require_rows

__all__ = ["ProportionalOdds", "proportional_odds"]

Float = NDArray[np.float64]
_ENDLESS = 5.0
"""Log odds for one standard deviation, 150 to 1, beyond which an error that is larger still tells of separation."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProportionalOdds:
    """Cumulative logit model; arrays follow ``names``."""

    names: tuple[str, ...]
    """Terms, in the order of the columns of X."""
    estimate: Float
    """Log odds of a higher level for one unit of the term."""
    se: Float
    """Standard errors from the observed information."""
    ci_low: Float
    """Lower Wald limits."""
    ci_high: Float
    """Upper Wald limits."""
    p: Float
    """Two-sided p values of the likelihood ratio."""
    likelihood_ratio: Float
    """Twice the log-likelihood lost without the term."""
    odds_ratio: Float
    """exp(estimate)."""
    thresholds: Float
    """Cut points between levels, increasing."""
    levels: Float
    """Levels of the outcome, increasing."""
    loglik: float
    """Log-likelihood."""
    n: int
    """Rows used."""
    n_missing: int
    """Rows left out as incomplete."""
    converged: bool
    """Whether the score vanishes."""


def proportional_odds(
    X: ArrayLike, y: ArrayLike, *, names: Sequence[str] | None = None, confidence: float = 0.95
) -> ProportionalOdds:
    """Fit logit P(y > level) = Xβ - threshold.

    Parameters
    ----------
    X : array_like
        Design, shape (n, p), without a column of ones: the thresholds take its place.
    y : array_like
        Ordered outcome, shape (n,). Rows with a missing value are left out and counted.
    names : sequence of str, optional
        Names of the columns of X.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    ProportionalOdds
        Log odds with Wald intervals and likelihood-ratio tests.

    Raises
    ------
    EstimationError
        If the outcome has one level, rows are too few, X is collinear or holds a constant, or a term separates levels.

    References
    ----------
    McCullagh P. Regression models for ordinal data. J R Stat Soc B 1980.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=200)
    >>> y = np.digitize(x + rng.logistic(size=200), [-1.0, 0.0, 1.0])
    >>> fit = proportional_odds(x, y, names=["x"])
    >>> bool(fit.ci_low[0] < 1 < fit.ci_high[0])
    True
    """
    from scipy.stats import chi2, norm

    design, outcome = as_matrix(X, "X"), as_column(y, "y")
    keep = complete(design, outcome, names=("X", "y"))
    n_missing = int((~keep).sum())
    design, outcome = design[keep], outcome[keep]
    n, p = design.shape
    terms = names_of(names, p)
    levels, code = np.unique(outcome, return_inverse=True)
    require_rows(n, p + levels.size + 1, f"{p} log odds and {levels.size - 1} thresholds", n_missing=n_missing)
    if levels.size < 2:
        raise EstimationError(f"all {n} values of the outcome equal {outcome[0]:g}")
    spread = design.std(axis=0)
    design_matrix(np.column_stack([np.ones(n), design]), ("the column of ones", *terms))
    centre = design.mean(axis=0)
    Z = (design - centre) / spread
    beta, thresholds, covariance, loglik, converged = _fit(Z, code, levels.size)
    if not converged or float(np.abs(beta).max()) > 30:
        raise EstimationError(
            f"the log odds of {n} rows do not settle (largest {np.abs(beta).max():.3g} per standard deviation)",
            hint="a term may separate the levels completely",
        )
    spread_of = np.sqrt(np.abs(np.diag(covariance)[:p]))
    # a coefficient that grows without end stops where the likelihood is flat: large, and larger still its error
    endless = [name for name, b, s in zip(terms, beta, spread_of, strict=True) if abs(b) > _ENDLESS and s > abs(b)]
    if endless:
        raise EstimationError(
            f"the log odds of {', '.join(endless)} grow without end in {n} rows: it separates the levels",
            hint="leave it out, or join levels",
        )
    lost = np.array([2 * (loglik - _fit(np.delete(Z, j, axis=1), code, levels.size)[3]) for j in range(p)])
    estimate = beta / spread
    se = np.sqrt(np.diag(covariance)[:p]) / spread
    half = float(norm.ppf(0.5 + confidence / 2)) * se
    return ProportionalOdds(
        names=terms,
        estimate=estimate,
        se=se,
        ci_low=estimate - half,
        ci_high=estimate + half,
        p=np.asarray(chi2.sf(np.maximum(lost, 0.0), 1)),
        likelihood_ratio=lost,
        odds_ratio=np.exp(estimate),
        thresholds=thresholds + float(estimate @ centre),
        levels=levels,
        loglik=loglik,
        n=n,
        n_missing=n_missing,
        converged=converged,
    )


def _fit(Z: Float, code: NDArray[np.intp], n_levels: int) -> tuple[Float, Float, Float, float, bool]:
    """Maximise the likelihood by Newton's method with step halving, from the thresholds of the margins.

    Returns coefficients, thresholds, covariance of both, log-likelihood and whether the score vanishes.
    """
    from scipy.special import logit

    n, p = Z.shape
    share = np.cumsum(np.bincount(code, minlength=n_levels))[:-1] / n
    v = np.concatenate([np.zeros(p), np.asarray(logit(share))])
    value, score, information = _derivatives(v, Z, code, n_levels)
    for _ in range(100):
        step = np.linalg.lstsq(information, score, rcond=None)[0]
        size = 1.0
        while size > 1e-6:
            trial = v + size * step
            if (np.diff(trial[p:]) > 0).all():
                new = _derivatives(trial, Z, code, n_levels)
                if new[0] >= value - 1e-12 * abs(value):
                    break
            size /= 2
        else:
            break
        v, (value, score, information) = trial, new
        if float(np.abs(score).max()) < 1e-9 * n:
            break
    covariance = np.asarray(np.linalg.pinv(information, hermitian=True), dtype=np.float64)
    return v[:p], v[p:], covariance, value, bool(np.abs(score).max() < 1e-6 * n)


def _derivatives(v: Float, Z: Float, code: NDArray[np.intp], n_levels: int) -> tuple[float, Float, Float]:
    """Return the log-likelihood, its gradient and minus its second derivatives."""
    from scipy.special import expit

    n, p = Z.shape
    eta = Z @ v[:p]
    cuts = np.concatenate([[-np.inf], v[p:], [np.inf]])
    upper, lower = expit(cuts[code + 1] - eta), expit(cuts[code] - eta)
    chance = np.maximum(upper - lower, 1e-300)
    slope_u, slope_l = upper * (1 - upper), lower * (1 - lower)
    # design of the two linear predictors cut - eta of every row; the outermost cuts do not move
    rows = np.arange(n)
    design_u, design_l = np.zeros((n, p + n_levels - 1)), np.zeros((n, p + n_levels - 1))
    design_u[:, :p] = design_l[:, :p] = -Z
    inner_u, inner_l = code < n_levels - 1, code > 0
    design_u[rows[inner_u], p + code[inner_u]] = 1.0
    design_l[rows[inner_l], p + code[inner_l] - 1] = 1.0
    change = design_u * slope_u[:, None] - design_l * slope_l[:, None]
    curve_u, curve_l = slope_u * (1 - 2 * upper) / chance, slope_l * (1 - 2 * lower) / chance
    second = design_u.T @ (design_u * curve_u[:, None]) - design_l.T @ (design_l * curve_l[:, None])
    scaled = change / chance[:, None]
    return float(np.log(chance).sum()), scaled.sum(axis=0), scaled.T @ scaled - second
