"""Logistic models of units that come from subjects: LogisticFit with a weak prior, MixedLogistic with intercepts.

The outcome is a share between 0 and 1 (a cell of tissue may convert in part) and every unit has a weight. Predictors
are standardised inside; the prior of each slope is normal with a standard deviation per standard deviation of the
predictor, which keeps estimates finite where the data separate and matters little elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._minimum import minimum
from bids_sodium.stats._rows import as_column, as_matrix, labels_of, require_rows

__all__ = ["LogisticFit", "MixedLogistic", "left_out_predictions", "mixed_logistic", "penalised_logistic"]

Float = NDArray[np.float64]
_LEAST = -6.0
"""ln of the standard deviation between subjects at which it counts as zero."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogisticFit:
    """Penalised logistic regression, ln(p/(1-p)) = intercept + X·slopes."""

    intercept: float
    """Intercept."""
    slopes: Float
    """Slope of each predictor, per unit of it, shape (p,)."""
    centre: Float
    """Weighted mean of each predictor."""
    spread: Float
    """Weighted standard deviation of each predictor."""
    loglik: float
    """Log-likelihood without the prior."""
    n: int
    """Units."""
    converged: bool
    """Whether Newton's steps came to rest."""

    def predict(self, X: ArrayLike) -> Float:
        """Return the probability of every row of predictors."""
        from scipy.special import expit

        return np.asarray(expit(self.intercept + as_matrix(X, "X") @ self.slopes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedLogistic:
    """Logistic regression with a normal intercept of every subject; slopes per standard deviation of the predictor."""

    names: tuple[str, ...]
    """Predictors."""
    estimate: Float
    """Log odds ratio of one standard deviation of each predictor, shape (p,)."""
    se: Float
    """Standard error, robust to what units of one subject share (sandwich over subjects)."""
    se_model: Float
    """Standard error that takes units of one subject as independent given the intercept."""
    ci_low: Float
    """Lower limit, t with subjects - 1 degrees of freedom."""
    ci_high: Float
    """Upper limit."""
    p: Float
    """p value of no effect."""
    df: int
    """Degrees of freedom, subjects - 1."""
    spread: Float
    """Standard deviation of each predictor that counts as one."""
    sd_subject: float
    """Standard deviation of the intercepts."""
    loglik: float
    """Log-likelihood by adaptive Gauss-Hermite quadrature."""
    n: int
    """Units."""
    n_subjects: int
    """Subjects."""
    singular: bool
    """Whether no variance between subjects is seen."""
    converged: bool
    """Whether the information is positive definite."""


@dataclass(frozen=True, slots=True, eq=False)
class _Units:
    """Complete units: outcome, standardised predictors, weights, subjects."""

    y: Float
    Z: Float
    weight: Float
    codes: NDArray[np.intp]
    labels: NDArray[Any]
    centre: Float
    spread: Float


def _units(
    y: ArrayLike,
    X: ArrayLike,
    weight: ArrayLike | None,
    subjects: Sequence[Any] | NDArray[Any] | None,
    names: Sequence[str] | None = None,
) -> _Units:
    outcome, matrix = as_column(y, "y"), as_matrix(X, "X")
    w = np.ones(outcome.size) if weight is None else as_column(weight, "weight")
    if not outcome.size == matrix.shape[0] == w.size:
        raise DataError(f"{outcome.size} outcomes, {matrix.shape[0]} rows of predictors and {w.size} weights")
    if np.isnan(outcome).any() or np.isnan(matrix).any() or np.isnan(w).any():
        raise DataError("an outcome, predictor or weight is missing", hint="leave out incomplete units first")
    if (outcome < 0).any() or (outcome > 1).any() or (w < 0).any():
        raise DataError(
            f"outcomes run from {outcome.min():g} to {outcome.max():g}, weights from {w.min():g}",
            hint="outcomes are shares between 0 and 1, weights 0 or more",
        )
    require_rows(outcome.size, matrix.shape[1] + 2, "a logistic model")
    share = float(w @ outcome / w.sum())
    if not 0 < share < 1:
        raise EstimationError(f"all {outcome.size} units have the outcome {share:g}, so there is nothing to tell apart")
    centre = w @ matrix / w.sum()
    spread = np.sqrt(w @ (matrix - centre) ** 2 / w.sum())
    if (spread <= 1e-12 * np.maximum(np.abs(centre), 1e-300)).any():
        still = int(np.argmin(spread))
        told = f"predictor {still + 1}" if names is None else names[still]
        raise EstimationError(f"{told} does not vary over {outcome.size} units")
    codes = labels = np.arange(outcome.size)
    if subjects is not None:
        codes, labels, missing = labels_of(subjects, "subjects")
        if missing.any() or codes.size != outcome.size:
            told = f"{int(missing.sum())} units lack a subject, {codes.size} subjects for {outcome.size} units"
            raise DataError(told)
    return _Units(outcome, (matrix - centre) / spread, w, codes, labels, centre, spread)


def penalised_logistic(
    y: ArrayLike,
    X: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    prior_sd: float = 2.5,
    names: Sequence[str] | None = None,
) -> LogisticFit:
    """Fit a logistic model with a normal prior on the slopes.

    Parameters
    ----------
    y : array_like
        Outcomes between 0 and 1, shape (n,).
    X : array_like
        Predictors, shape (n, p).
    weight : array_like, optional
        Weight of every unit.
    prior_sd : float, optional
        Standard deviation of a slope's prior, per standard deviation of its predictor.
    names : sequence of str, optional
        Predictors, for messages.

    Returns
    -------
    LogisticFit
        Intercept and slopes.

    Raises
    ------
    DataError
        If a value is missing or an outcome lies outside 0 to 1.
    EstimationError
        If all outcomes are the same or a predictor does not vary.

    References
    ----------
    Gelman A, Jakulin A, Pittau MG, Su YS. A weakly informative default prior distribution for logistic and other
    regression models. Ann Appl Stat 2008. doi:10.1214/08-AOAS191

    Examples
    --------
    >>> x = np.linspace(-2, 2, 41)
    >>> fit = penalised_logistic(1 / (1 + np.exp(-(0.5 + x))), x, prior_sd=1e3)
    >>> round(fit.intercept, 3), fit.slopes.round(3)
    (0.5, array([1.]))
    """
    from scipy.special import expit, xlogy

    units = _units(y, X, weight, None, names)
    Z = np.column_stack([np.ones(units.y.size), units.Z])
    penalty = np.diag([0.0, *np.full(units.Z.shape[1], prior_sd**-2)])
    beta = np.zeros(Z.shape[1])
    step = np.inf
    for _ in range(60):
        p = expit(Z @ beta)
        gradient = Z.T @ (units.weight * (units.y - p)) - penalty @ beta
        curvature = Z.T @ (Z * (units.weight * p * (1 - p))[:, None]) + penalty
        move = np.linalg.solve(curvature + 1e-10 * np.eye(beta.size), gradient)
        step = float(np.abs(move).max())
        beta = beta + move * min(1.0, 2.0 / max(step, 1e-300))
        if step < 1e-10:
            break
    p = np.clip(expit(Z @ beta), 1e-300, 1.0)
    slopes = beta[1:] / units.spread
    return LogisticFit(
        intercept=float(beta[0] - slopes @ units.centre),
        slopes=slopes,
        centre=units.centre,
        spread=units.spread,
        loglik=float(units.weight @ (xlogy(units.y, p) + xlogy(1 - units.y, np.maximum(1 - p, 1e-300)))),
        n=units.y.size,
        converged=bool(step < 1e-6),
    )


def left_out_predictions(
    y: ArrayLike,
    X: ArrayLike,
    subjects: Sequence[Any] | NDArray[Any],
    *,
    weight: ArrayLike | None = None,
    prior_sd: float = 2.5,
    most_folds: int = 50,
    names: Sequence[str] | None = None,
) -> Float:
    """Predict every subject's units from a model of all other subjects.

    Parameters
    ----------
    y, X, weight, prior_sd, names
        As for `penalised_logistic`.
    subjects : sequence
        Subject of every unit.
    most_folds : int, optional
        With more subjects than this they are left out in as many groups, every subject still apart from its model.

    Returns
    -------
    ndarray
        Probabilities, shape (n,).

    Raises
    ------
    EstimationError
        If there are fewer than 3 subjects, or without one subject all outcomes are the same.

    Examples
    --------
    >>> x = np.tile([-1.0, 1.0], 4)
    >>> p = left_out_predictions([0, 1, 0, 1, 0, 0, 1, 1], x, np.repeat(list("abcd"), 2))
    >>> bool(p[1] > p[0])
    True
    """
    units = _units(y, X, weight, subjects, names)
    matrix = as_matrix(X, "X")
    n_subjects = units.labels.size
    if n_subjects < 3:
        raise EstimationError(f"{n_subjects} subjects; leaving one out needs at least 3")
    fold = units.codes % min(n_subjects, most_folds)
    found = np.empty(units.y.size)
    for k in range(int(fold.max()) + 1):
        out = fold == k
        model = penalised_logistic(
            units.y[~out], matrix[~out], weight=units.weight[~out], prior_sd=prior_sd, names=names
        )
        found[out] = model.predict(matrix[out])
    return found


def mixed_logistic(
    y: ArrayLike,
    X: ArrayLike,
    subjects: Sequence[Any] | NDArray[Any],
    *,
    names: Sequence[str],
    weight: ArrayLike | None = None,
    nodes: int = 15,
    prior_sd: float = 10.0,
    confidence: float = 0.95,
) -> MixedLogistic:
    """Fit a logistic model with a random intercept of the subject.

    Parameters
    ----------
    y, X, subjects, weight
        As for `left_out_predictions`.
    names : sequence of str
        Predictors.
    nodes : int, optional
        Nodes of the adaptive Gauss-Hermite quadrature; 1 is Laplace's approximation.
    prior_sd : float, optional
        Standard deviation of the slopes' normal prior, wide enough to matter only where the data separate.
    confidence : float, optional
        Level of the intervals.

    Returns
    -------
    MixedLogistic
        Log odds ratios with errors that are robust to what units of a subject share.

    Raises
    ------
    EstimationError
        If there are fewer than 3 subjects, all outcomes are the same, or a predictor does not vary.

    References
    ----------
    Breslow NE, Clayton DG. Approximate inference in generalized linear mixed models. J Am Stat Assoc 1993.
    doi:10.1080/01621459.1993.10594284

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> who, x = np.repeat(np.arange(40), 25), rng.normal(size=1000)
    >>> up = np.repeat(rng.normal(0, 1, 40), 25)
    >>> fit = mixed_logistic(rng.random(1000) < 1 / (1 + np.exp(-(x + up))), x, who, names=["x"])
    >>> bool(abs(fit.estimate[0] - 1) < 4 * fit.se[0]), bool(0.6 < fit.sd_subject < 1.5)
    (True, True)
    """
    from scipy.stats import t as student

    units = _units(y, X, weight, subjects, names)
    n_subjects = units.labels.size
    if n_subjects < 3:
        raise EstimationError(f"{n_subjects} subjects; a random intercept needs at least 3")
    model = _Intercepts(units, nodes, prior_sd)
    flat = penalised_logistic(units.y, units.Z, weight=units.weight, prior_sd=prior_sd)
    start = np.concatenate([[flat.intercept], flat.slopes, [-0.5]])
    found = minimum(model.negative, start, smooth=True, tolerance=1e-4, step=1e-4, max_iterations=200)
    singular = bool(found.x[-1] < _LEAST + 2.5)
    at = found.x.copy()
    free = np.ones(at.size, dtype=bool)
    if singular:
        at[-1], free[-1] = _LEAST, False
    scores, information = model.scores(at)[:, free], model.information(at)[np.ix_(free, free)]
    values = np.linalg.eigvalsh(information)
    converged = bool(values[0] > 1e-9 * values[-1])
    p = units.Z.shape[1]
    if converged:
        bread = np.linalg.inv(information)
        meat = scores.T @ scores * n_subjects / (n_subjects - 1)
        robust, plain = np.sqrt(np.diag(bread @ meat @ bread))[1 : p + 1], np.sqrt(np.diag(bread))[1 : p + 1]
    else:
        robust = plain = np.full(p, np.nan)
    estimate = at[1 : p + 1]
    df = n_subjects - 1
    reach = float(student.ppf(0.5 + confidence / 2, df))
    return MixedLogistic(
        names=tuple(names),
        estimate=estimate,
        se=robust,
        se_model=plain,
        ci_low=estimate - reach * robust,
        ci_high=estimate + reach * robust,
        p=2 * student.sf(np.abs(estimate / robust), df),
        df=df,
        spread=units.spread,
        sd_subject=0.0 if singular else float(np.exp(at[-1])),
        loglik=float(model.per_subject(at).sum()),
        n=units.y.size,
        n_subjects=n_subjects,
        singular=singular,
        converged=converged,
    )


class _Intercepts:
    """Likelihood of (intercept, slopes, ln SD of the subjects' intercepts), one integral a subject."""

    def __init__(self, units: _Units, nodes: int, prior_sd: float) -> None:
        from numpy.polynomial.hermite_e import hermegauss

        order = np.argsort(units.codes, kind="stable")
        self.codes = units.codes[order]
        self.first = np.searchsorted(self.codes, np.arange(units.labels.size))
        self.y, self.weight = units.y[order], units.weight[order]
        self.Z = np.column_stack([np.ones(self.y.size), units.Z[order]])
        self.cases = np.add.reduceat(self.weight * self.y, self.first)
        node, weight = hermegauss(nodes)
        self.node, self.log_weight = node, np.log(weight) + node**2 / 2
        self.prior_sd = prior_sd

    def _inner(self, linear: Float, u: Float) -> Float:
        """Return ln of every subject's integrand at the intercepts u, shape (subjects, k)."""
        eta = linear[:, None] + u[self.codes]
        # ln(1 + e^eta) without overflow, by functions that NumPy has in vector instructions
        growth = self.weight[:, None] * (np.maximum(eta, 0.0) + np.log(1.0 + np.exp(-np.abs(eta))))
        fixed = np.add.reduceat(self.weight * self.y * linear, self.first)
        return np.asarray(fixed[:, None] + self.cases[:, None] * u - np.add.reduceat(growth, self.first, axis=0))

    def per_subject(self, v: Float) -> Float:
        """Return every subject's log-likelihood."""
        from scipy.special import expit, logsumexp

        linear, sd = self.Z @ v[:-1], float(np.exp(np.clip(v[-1], _LEAST, 5.0)))
        u = np.zeros(self.first.size)
        curvature = np.ones_like(u)
        for _ in range(30):
            p = expit(linear + u[self.codes])
            slope = np.add.reduceat(self.weight * (self.y - p), self.first) - u / sd**2
            curvature = np.add.reduceat(self.weight * p * (1 - p), self.first) + sd**-2
            move = np.clip(slope / curvature, -3.0, 3.0)
            u = u + move
            if np.abs(move).max() < 1e-9:
                break
        width = 1 / np.sqrt(curvature)
        at = u[:, None] + width[:, None] * self.node
        log_p = self._inner(linear, at) - at**2 / (2 * sd**2) - np.log(sd) - np.log(2 * np.pi) / 2
        return np.asarray(logsumexp(log_p + self.log_weight, axis=1) + np.log(width))

    def negative(self, v: Float) -> float:
        """Return minus the log-likelihood and log-prior, with a wall where the variance vanishes."""
        slopes = v[1:-1]
        wall = 10.0 * (min(v[-1] - _LEAST, 0.0) ** 2 + max(v[-1] - 5.0, 0.0) ** 2)
        return float(-self.per_subject(v).sum() + slopes @ slopes / (2 * self.prior_sd**2) + wall)

    def scores(self, v: Float) -> Float:
        """Return the derivative of every subject's log-likelihood, shape (subjects, parameters)."""
        step = 1e-5 * np.eye(v.size)
        return np.column_stack([(self.per_subject(v + d) - self.per_subject(v - d)) / 2e-5 for d in step])

    def information(self, v: Float) -> Float:
        """Return the observed information by central differences."""
        h, m = 1e-3, v.size
        unit = h * np.eye(m)
        found = np.empty((m, m))
        for i in range(m):
            for j in range(i + 1):
                plus, minus = unit[i] + unit[j], unit[i] - unit[j]
                total = self.negative(v + plus) + self.negative(v - plus)
                total -= self.negative(v + minus) + self.negative(v - minus)
                found[i, j] = found[j, i] = total / (4 * h**2)
        return found
