"""The sigmoid with an asymptote of its own for every subject: RandomAsymptote, a RandomCurve by exact likelihood.

y_ij = (A + b_i) h(t_ij) + e_ij, h(t) = 1/(1 + (t50/t)^delta), b_i ~ N(0, w²), e ~ N(0, s²). The asymptote enters
linearly, so that y_i ~ N(A h_i, s² (I + r h_i h_iᵀ)), r = w²/s², without any approximation; A and s² have closed forms
for given (ln t50, ln delta, r).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._minimum import minimum
from bids_sodium.stats._rows import is_constant, labels_of
from bids_sodium.stats._time_course import CurveValue, curve_value, log_times, times_and_values

__all__ = ["RandomAsymptote", "RandomCurve", "fit_random_asymptote"]

Float = NDArray[np.float64]
_REACH = 12.0
"""Largest distance of ln t50 from the middle of the data; beyond it the curve no longer changes its form."""
_STEEP = 5.0
"""Largest |ln delta|."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RandomCurve:
    """What every maximum-likelihood fit of sigmoids that differ between subjects says."""

    asymptote: float
    """Mean asymptote A, in %."""
    asymptote_se: float
    """Its standard error from the observed information, in %."""
    log_t50: float
    """ln t50 of the typical subject, t50 in h."""
    log_t50_se: float
    """Its standard error."""
    delta: float
    """Steepness of the typical subject."""
    log_delta_se: float
    """Standard error of ln delta."""
    t50_h: float
    """Time of half the asymptote, in h."""
    sigma: float
    """Residual standard deviation, in %."""
    sd_asymptote: float
    """Standard deviation of the asymptotes between subjects, in %."""
    loglik: float
    """Log-likelihood."""
    likelihood_ratio: float
    """Twice its difference from that of the simpler model."""
    subjects: tuple[str, ...]
    """Subjects, in the order of ``subject_asymptote``."""
    subject_asymptote: Float
    """Empirical-Bayes asymptote of each subject, in %."""
    covariance: Float
    """Covariance of (A, ln t50, ln delta), shape (3, 3)."""
    n: int
    """Observations used."""
    n_subjects: int
    """Subjects."""
    n_missing: int
    """Rows left out as incomplete."""
    singular: bool
    """Whether the variance that the simpler model lacks is estimated as zero."""
    converged: bool
    """Whether the likelihood has an inner maximum and a finite information."""
    confidence: float
    """Confidence level of `value_at`."""

    def value_at(self, t_h: ArrayLike) -> CurveValue:
        """Return the curve of the typical subject (random effects zero) with its pointwise Wald interval.

        Parameters
        ----------
        t_h : array_like
            Times from onset, in h.

        Returns
        -------
        CurveValue
            Values, standard errors and limits.

        Raises
        ------
        DataError
            If a time lies before onset.
        """
        from scipy.special import expit
        from scipy.stats import norm

        times, x = log_times(t_h)
        h = expit(self.delta * (x - self.log_t50))
        slope = self.asymptote * h * (1 - h) * self.delta
        since = np.where(np.isfinite(x), x - self.log_t50, 0.0)
        gradient = np.stack([h, -slope, slope * since], axis=-1)
        se = np.sqrt(np.einsum("...i,ij,...j->...", gradient, self.covariance, gradient))
        return curve_value(times, self.asymptote * h, se, float(norm.ppf(0.5 + self.confidence / 2)))

    def index(self, subject: str) -> int:
        """Return the place of a subject.

        Raises
        ------
        DataError
            If the subject is unknown.
        """
        if subject not in self.subjects:
            raise DataError(f"no subject {subject!r} among {len(self.subjects)} subjects")
        return self.subjects.index(subject)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RandomAsymptote(RandomCurve):
    """Sigmoids that share t50 and delta; the simpler model is one curve common to all."""

    loglik_pooled: float
    """Log-likelihood of the best curve common to all, found with no variance between subjects."""
    p_between: float
    """p value of no variance between subjects (half-half mixture of χ² with 0 and 1 degrees of freedom)."""

    def subject_curve(self, subject: str, t_h: ArrayLike) -> Float:
        """Return the empirical-Bayes curve of one subject; draw it dashed outside the subject's own times.

        Raises
        ------
        DataError
            If the subject is unknown or a time lies before onset.
        """
        from scipy.special import expit

        _, x = log_times(t_h)
        return np.asarray(self.subject_asymptote[self.index(subject)] * expit(self.delta * (x - self.log_t50)))


def fit_random_asymptote(
    t_h: ArrayLike,
    percent: ArrayLike,
    subjects: Sequence[Any] | NDArray[Any],
    *,
    confidence: float = 0.95,
) -> RandomAsymptote:
    """Fit sigmoids with a random asymptote by exact maximum likelihood.

    Parameters
    ----------
    t_h : array_like
        Times from onset, in h, all positive, shape (n,).
    percent : array_like
        Values, in %, shape (n,); incomplete rows are left out and counted.
    subjects : sequence
        Subject of each observation.
    confidence : float, optional
        Confidence level of `RandomAsymptote.value_at`.

    Returns
    -------
    RandomAsymptote
        Fixed effects, variance between and within subjects, and every subject's asymptote.

    Raises
    ------
    EstimationError
        If there are fewer than 3 subjects, every subject has one observation, or the values do not vary.

    References
    ----------
    Davidian M, Giltinan DM. Nonlinear Models for Repeated Measurement Data. Chapman & Hall, 1995.

    Examples
    --------
    >>> t = np.array([5.0, 30.0, 8.0, 50.0, 10.0, 60.0, 20.0, 40.0, 6.0, 55.0])
    >>> top = np.repeat([60.0, 80.0, 50.0, 70.0, 65.0], 2)
    >>> ripple = np.tile([0.5, -0.5], 5)
    >>> fit = fit_random_asymptote(t, top / (1 + (20 / t) ** 2) + ripple, np.repeat(list("abcde"), 2))
    >>> bool(abs(fit.t50_h - 20) < 1), fit.converged
    (True, True)
    """
    from scipy.stats import chi2

    t, y, codes, n_missing = times_and_values(t_h, percent, subjects, what="a random-asymptote curve")
    if codes is None:
        raise DataError("a random-asymptote curve needs the subject of every observation")
    _, labels = _kept_labels(t_h, percent, subjects)
    count = np.bincount(codes)
    if count.size < 3 or count.max() < 2:
        raise EstimationError(
            f"{count.size} subjects with at most {count.max()} observations each; a random asymptote needs at least 3 "
            "subjects, some of them with 2 observations"
        )
    if is_constant(y):
        raise EstimationError(f"all {y.size} values equal {y[0]:g}, so there is no time course to fit")
    likelihood = _Likelihood(np.log(t), y, codes)
    middle = float(np.log(t).mean())
    best_value, best, pooled, pooled_at = np.inf, np.zeros(3), np.inf, np.zeros(2)

    def common(v: Float) -> float:
        return likelihood.negative(float(v[0]), float(v[1]), 0.0)

    def between(v: Float) -> float:
        return likelihood.negative(float(v[0]), float(v[1]), float(np.exp(v[2])))

    starts = sorted(_starts(middle), key=between)
    for start in starts[:4]:
        flat = minimum(common, start[:2], smooth=False)
        if flat.value < pooled:
            pooled, pooled_at = flat.value, flat.x
        rough = minimum(between, start, smooth=False)
        if rough.value < best_value - 1e-8:
            best_value, best = rough.value, rough.x
    singular = best_value > pooled - 1e-7
    if singular:
        best, best_value, ratio = np.append(pooled_at, -np.inf), pooled, 0.0
    else:
        fine = minimum(between, best, smooth=True)
        if fine.value <= best_value:
            best, best_value = fine.x, fine.value
        ratio = float(np.exp(best[2]))
    log_t50 = float(np.clip(best[0], middle - _REACH, middle + _REACH))
    log_delta = float(np.clip(best[1], -_STEEP, _STEEP))
    asymptote, sigma2 = likelihood.closed(log_t50, log_delta, ratio)
    covariance = likelihood.covariance(
        np.array([asymptote, log_t50, log_delta, np.log(sigma2) / 2]), None if singular else float(np.log(ratio) / 2)
    )
    inner = (
        abs(log_delta) < 0.9 * _STEEP and abs(log_t50 - middle) < 0.75 * _REACH and bool(np.isfinite(covariance).all())
    )
    lr = max(2 * (pooled - best_value), 0.0)
    return RandomAsymptote(
        asymptote=asymptote,
        asymptote_se=float(np.sqrt(covariance[0, 0])),
        log_t50=log_t50,
        log_t50_se=float(np.sqrt(covariance[1, 1])),
        delta=float(np.exp(log_delta)),
        log_delta_se=float(np.sqrt(covariance[2, 2])),
        t50_h=float(np.exp(log_t50)),
        sigma=float(np.sqrt(sigma2)),
        sd_asymptote=float(np.sqrt(ratio * sigma2)),
        loglik=-best_value,
        loglik_pooled=-pooled,
        likelihood_ratio=lr,
        p_between=float(chi2.sf(lr, 1) / 2) if lr > 0 else 1.0,
        subjects=labels,
        subject_asymptote=likelihood.predicted(log_t50, log_delta, ratio, asymptote),
        covariance=covariance,
        n=y.size,
        n_subjects=count.size,
        n_missing=n_missing,
        singular=singular,
        converged=inner,
        confidence=confidence,
    )


def _kept_labels(
    t_h: ArrayLike, percent: ArrayLike, subjects: Sequence[Any] | NDArray[Any]
) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    """Return the labels of the subjects that have a complete row, in the order of their codes."""
    codes, labels, missing = labels_of(subjects, "subjects")
    whole = ~(np.isnan(np.asarray(t_h, dtype=np.float64)) | np.isnan(np.asarray(percent, dtype=np.float64)) | missing)
    kept = np.unique(codes[whole])
    return kept, tuple(str(v) for v in labels[kept])


def _starts(middle: float) -> list[Float]:
    return [np.array([middle + shift, log_delta, 1.0]) for shift in (-0.7, 0.3, 1.5) for log_delta in (-0.4, 0.6, 1.6)]


class _Likelihood:
    """Likelihood of (ln t50, ln delta, r), with A and s² at their optimum."""

    def __init__(self, x: Float, y: Float, codes: NDArray[np.intp]) -> None:
        self.x, self.y, self.codes = x, y, codes
        self.middle = float(x.mean())
        self.size = int(codes.max()) + 1
        self.yy = float(y @ y)

    def sums(self, log_t50: float, log_delta: float) -> tuple[Float, Float]:
        """Return hᵀh and hᵀy of every subject."""
        from scipy.special import expit

        at = np.clip(log_t50, self.middle - _REACH, self.middle + _REACH)
        h = expit(np.exp(np.clip(log_delta, -_STEEP, _STEEP)) * (self.x - at))
        # h of a curve far to the right underflows; the scale goes into A
        return (
            np.bincount(self.codes, h * h, minlength=self.size).astype(np.float64),
            np.bincount(self.codes, h * self.y, minlength=self.size).astype(np.float64),
        )

    def closed(self, log_t50: float, log_delta: float, ratio: float) -> tuple[float, float]:
        """Return A and s² at their optimum."""
        hh, hy = self.sums(log_t50, log_delta)
        shrink = 1 / (1 + ratio * hh)
        weight = float(np.sum(hh * shrink))
        if weight <= 1e-200:
            return 0.0, self.yy / self.y.size
        A = float(np.sum(hy * shrink)) / weight
        rss = self.yy - float(np.sum(ratio * hy**2 * shrink)) - A**2 * weight
        return A, max(rss, 1e-300) / self.y.size

    def negative(self, log_t50: float, log_delta: float, ratio: float) -> float:
        """Return minus the log-likelihood."""
        hh, _ = self.sums(log_t50, log_delta)
        _, s2 = self.closed(log_t50, log_delta, ratio)
        return float(self.y.size / 2 * (np.log(2 * np.pi * s2) + 1) + np.sum(np.log1p(ratio * hh)) / 2)

    def full(self, v: Float) -> float:
        """Return minus the log-likelihood of (A, ln t50, ln delta, ln s, ln w/s)."""
        hh, hy = self.sums(float(v[1]), float(v[2]))
        ratio, s2 = (float(np.exp(2 * v[4])) if v.size > 4 else 0.0), float(np.exp(2 * v[3]))
        shrink = 1 / (1 + ratio * hh)
        left = self.yy - 2 * v[0] * hy.sum() + v[0] ** 2 * hh.sum()
        left -= float(np.sum(ratio * (hy - v[0] * hh) ** 2 * shrink))
        return float(self.y.size / 2 * np.log(2 * np.pi * s2) + left / s2 / 2 + np.sum(np.log1p(ratio * hh)) / 2)

    def covariance(self, v: Float, log_ratio: float | None) -> Float:
        """Return the covariance of (A, ln t50, ln delta) from the observed information; NaN where it is singular."""
        point = v if log_ratio is None else np.append(v, log_ratio)
        steps = np.full(point.size, 1e-3)
        steps[0] = 1e-3 * max(abs(v[0]), 1.0)
        m = point.size
        information = np.empty((m, m))
        with np.errstate(
            all="ignore"
        ):  # at the edge of the parameters the likelihood overflows; then there is no error
            for i in range(m):
                for j in range(i + 1):
                    total = np.float64(0.0)
                    for a, wa in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                        for b, wb in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                            moved = point.copy()
                            moved[i] += a * steps[i]
                            moved[j] += b * steps[j]
                            total += wa * wb * self.full(moved)
                    information[i, j] = information[j, i] = total / (144 * steps[i] * steps[j])
        if not np.isfinite(information).all():
            return np.full((3, 3), np.nan)
        values = np.linalg.eigvalsh(information)
        if values[0] <= 1e-12 * values[-1]:
            return np.full((3, 3), np.nan)
        return np.asarray(np.linalg.inv(information)[:3, :3])

    def predicted(self, log_t50: float, log_delta: float, ratio: float, asymptote: float) -> Float:
        """Return the empirical-Bayes asymptotes."""
        hh, hy = self.sums(log_t50, log_delta)
        return np.asarray(asymptote + ratio * (hy - asymptote * hh) / (1 + ratio * hh))
