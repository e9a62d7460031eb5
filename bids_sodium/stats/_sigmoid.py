"""The sigmoid time course: SigmoidFit.

f(t) = alpha t^delta / (exp(gamma) + t^delta) = alpha / (1 + (t50/t)^delta), t50 = exp(gamma/delta). For given
(delta, gamma) the asymptote alpha is a linear parameter, so the search runs over two parameters only (variable
projection, Golub and Pereyra 1973), from every local minimum of a grid. As alpha → ∞ the curve becomes the power law
b·t^c, as delta → ∞ a step, as t50 → 0 a constant; where such a limit fits as well as any sigmoid, the fit says so in
``limit`` and is not called converged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._least_squares import fit_curve
from bids_sodium.stats._profile import ANYWHERE, ProfileInterval, least_asymptote, profiles, trace
from bids_sodium.stats._rows import is_constant
from bids_sodium.stats._sigmoid_surface import Surface, best_step, fit_power
from bids_sodium.stats._time_course import CurveValue, curve_value, times_and_values

__all__ = ["SigmoidFit", "fit_sigmoid"]

Float = NDArray[np.float64]
_STEEPEST = 100.0
_CLOSE = 1e-9
"""Relative gain in RSS below which a limit of the sigmoid counts as equally good."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SigmoidFit:
    """Least-squares fit of f(t) = alpha t^delta / (exp(gamma) + t^delta)."""

    alpha: float
    """Upper asymptote, in %; ±inf where the power law fits as well."""
    delta: float
    """Steepness; the exponent of the power law where ``limit`` is "power"."""
    gamma: float
    """Position, delta ln t50."""
    alpha_se: float
    """Standard error of alpha, in %; NaN at a limit."""
    delta_se: float
    """Standard error of delta."""
    gamma_se: float
    """Standard error of gamma."""
    t50_h: float
    """Time of half the asymptote, exp(gamma/delta), in h."""
    t50_se_h: float
    """Its standard error by the delta method, in h."""
    covariance: Float
    """Covariance of (alpha, delta, gamma), shape (3, 3)."""
    cluster_covariance: Float | None
    """Cluster-robust covariance (CR1: G/(G-1) · (n-1)/(n-3)), where groups were given."""
    rss: float
    """Residual sum of squares, in %²."""
    rmse_n: float
    """√(RSS/n), in %."""
    rmse_df: float
    """√(RSS/(n-3)), in %."""
    r2: float
    """Share of the variance about the mean that the curve explains."""
    n: int
    """Observations used."""
    n_missing: int
    """Rows left out because a time, value or group is missing."""
    n_groups: int
    """Groups (subjects) the observations come from; n where none were given."""
    df: int
    """Residual degrees of freedom, n - 3."""
    confidence: float
    """Confidence level of all intervals."""
    profile: Mapping[str, ProfileInterval]
    """Profile intervals of alpha, delta, gamma, t50_h and log_t50; at the power limit of alpha only; else empty."""
    asymptote_identifiable: bool
    """Whether the data refute the power law, that is whether alpha has a finite profile limit."""
    rss_power: float
    """RSS of the best rising power law, the limit alpha → ∞, in %²."""
    power_statistic: float
    """(rss_power - rss) / s², to be compared with ``power_critical``."""
    power_critical: float
    """t² of the confidence level with n - 3 degrees of freedom."""
    limit: str
    """Empty for a proper sigmoid, else the limit that fits as well: "power", "step" or "constant"."""
    converged: bool
    """Whether a proper sigmoid minimises the sum of squares."""
    n_starts: int
    """Local minima of the grid that the search began from."""
    t_h: Float
    """Times used, in h."""
    percent: Float
    """Values used, in %."""
    scale: float
    """Factor b of the power law b·t^c at that limit, else alpha."""

    @property
    def alpha_se_cluster(self) -> float:
        """Cluster-robust standard error of alpha, NaN where no groups were given."""
        return _root(self.cluster_covariance, 0)

    @property
    def delta_se_cluster(self) -> float:
        """Cluster-robust standard error of delta, NaN where no groups were given."""
        return _root(self.cluster_covariance, 1)

    @property
    def gamma_se_cluster(self) -> float:
        """Cluster-robust standard error of gamma, NaN where no groups were given."""
        return _root(self.cluster_covariance, 2)

    @property
    def correlation(self) -> Float:
        """Correlation of the estimates of (alpha, delta, gamma), shape (3, 3)."""
        sd = np.sqrt(np.diag(self.covariance))
        return np.asarray(self.covariance / np.outer(sd, sd))

    def curve(self, t_h: ArrayLike) -> Float:
        """Return the fitted curve at times in h."""
        return self._curve_and_gradient(np.asarray(t_h, dtype=np.float64))[0]

    def value_at(self, t_h: ArrayLike, *, confidence: float | None = None, cluster: bool | None = None) -> CurveValue:
        """Return the fitted curve with its pointwise confidence interval.

        Parameters
        ----------
        t_h : array_like
            Times from onset, in h; a single time gives single numbers.
        confidence : float, optional
            Confidence level, by default the one of the fit.
        cluster : bool, optional
            Whether to use the cluster-robust covariance with G - 1 degrees of freedom; by default where groups were
            given.

        Returns
        -------
        CurveValue
            Values, standard errors and limits.

        Raises
        ------
        EstimationError
            If a cluster-robust interval is asked for and no groups were given.
        """
        from scipy.stats import t as student

        robust = self.cluster_covariance is not None if cluster is None else cluster
        if robust and self.cluster_covariance is None:
            raise EstimationError("a cluster-robust interval needs groups", hint="pass groups= to fit_sigmoid")
        times = np.asarray(t_h, dtype=np.float64)
        value, gradient = self._curve_and_gradient(times)
        used = self.cluster_covariance if robust else self.covariance
        active = gradient.any(axis=tuple(range(gradient.ndim - 1)))  # a limit has fewer parameters than the sigmoid
        part, matrix = gradient[..., active], np.asarray(used)[np.ix_(active, active)]
        se = np.sqrt(np.einsum("...i,ij,...j->...", part, matrix, part))
        level = self.confidence if confidence is None else confidence
        factor = float(student.ppf(0.5 + level / 2, self.n_groups - 1 if robust else self.df))
        return curve_value(times, value, se, factor)

    def profile_value(self, t_h: float, *, cluster: bool = False) -> ProfileInterval:
        """Return the profile interval of the curve at one time.

        All curves through a value at that time are tried, so that the interval holds where the asymptote is not
        determined and the delta method does not. With ``cluster`` the threshold has the quantile of G - 1 degrees of
        freedom and grows with the ratio of the cluster-robust variance to the plain one, where that is above one.

        Parameters
        ----------
        t_h : float
            Time from onset, in h.
        cluster : bool, optional
            Whether to widen the interval for groups.

        Returns
        -------
        ProfileInterval
            Limits, in %.

        Raises
        ------
        EstimationError
            If groups are asked for and none were given.
        """
        rss, critical = self._profile_at(t_h, cluster=cluster)
        plain = self.value_at(t_h, cluster=False)
        return trace(
            rss,
            float(plain.value),
            np.sqrt(critical) * float(plain.se),
            threshold=self.rss * (1 + critical / self.df),
            edges=ANYWHERE,
            rss_at_edges=(np.inf, np.inf),
        )

    def allows(self, t_h: float, value: float, *, cluster: bool = False) -> bool:
        """Tell whether a value at a time lies in the profile interval, without tracing it.

        Parameters
        ----------
        t_h : float
            Time from onset, in h.
        value : float
            Value, in %.
        cluster : bool, optional
            As for `profile_value`.

        Raises
        ------
        EstimationError
            As for `profile_value`.
        """
        rss, critical = self._profile_at(t_h, cluster=cluster)
        return bool(rss(value) <= self.rss * (1 + critical / self.df))

    def _profile_at(self, t_h: float, *, cluster: bool) -> tuple[Callable[[float], float], float]:
        """Return the sum of squares of the best curve through a value at one time, and the critical ratio to s²."""
        from scipy.stats import t as student

        critical = self.power_critical
        if cluster:
            plain, robust = (float(self.value_at(t_h, cluster=wide).se) for wide in (False, True))
            critical = float(student.ppf(0.5 + self.confidence / 2, self.n_groups - 1)) ** 2
            critical *= max(1.0, (robust / plain) ** 2) if plain > 0 else 1.0
        surface, x0 = Surface(np.log(self.t_h), self.percent), float(np.log(t_h))
        return lambda value: surface.given_value(value, x0), critical

    def _curve_and_gradient(self, t_h: Float) -> tuple[Float, Float]:
        from scipy.special import expit

        if (t_h < 0).any():
            raise DataError(f"a time of {float(t_h.min()):g} h lies before onset")
        with np.errstate(divide="ignore"):
            x = np.log(t_h)
        zero = np.zeros_like(x)
        finite = np.where(np.isfinite(x), x, 0.0)
        if self.limit == "power":
            rise = np.exp(self.delta * x)
            return self.scale * rise, np.stack([rise, self.scale * rise * finite, zero], axis=-1)
        if self.limit == "constant":
            return zero + self.alpha, np.stack([zero + 1.0, zero, zero], axis=-1)
        if self.limit == "step":
            above = np.where(t_h > self.t50_h, 1.0, 0.0)
            return self.alpha * above, np.stack([above, zero, zero], axis=-1)
        h = expit(self.delta * x - self.gamma)
        slope = self.alpha * h * (1 - h)
        return self.alpha * h, np.stack([h, slope * finite, -slope], axis=-1)


def fit_sigmoid(
    t_h: ArrayLike,
    percent: ArrayLike,
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    confidence: float = 0.95,
    profile: bool = True,
) -> SigmoidFit:
    """Fit f(t) = alpha t^delta / (exp(gamma) + t^delta) by least squares.

    Parameters
    ----------
    t_h : array_like
        Times from onset, in h, all positive, shape (n,).
    percent : array_like
        Values, in %, shape (n,); rows with a missing value are left out and counted.
    groups : sequence, optional
        Subject of each observation; gives cluster-robust standard errors.
    confidence : float, optional
        Confidence level of all intervals.
    profile : bool, optional
        Whether to trace the profile intervals (about 50 ms).

    Returns
    -------
    SigmoidFit
        Parameters, standard errors, profile intervals, and whether the asymptote is identifiable.

    Raises
    ------
    DataError
        If a time is not positive or the columns do not fit together.
    EstimationError
        If there are fewer than 5 observations, fewer than 4 different times, or the values do not vary.

    References
    ----------
    Golub GH, Pereyra V. The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
    separate. SIAM J Numer Anal 1973.
    Bates DM, Watts DG. Nonlinear Regression Analysis and Its Applications. Wiley, 1988.

    Examples
    --------
    >>> t = np.array([4.0, 8.0, 12.0, 20.0, 30.0, 45.0, 60.0])
    >>> fit = fit_sigmoid(t, 91 / (1 + (25.5 / t) ** 0.71))
    >>> round(fit.alpha, 3), round(fit.t50_h, 3), fit.converged
    (91.0, 25.5, True)
    """
    from scipy.special import expit
    from scipy.stats import t as student

    t, y, codes, n_missing = times_and_values(t_h, percent, groups, what="a sigmoid")
    if is_constant(y):
        raise EstimationError(f"all {y.size} values equal {y[0]:g}, so there is no time course to fit")
    n_groups = y.size if codes is None else int(codes.max()) + 1
    if codes is not None and n_groups < 2:
        raise EstimationError(f"cluster-robust errors need at least 2 groups, found {n_groups}")
    x = np.log(t)
    n, df = y.size, y.size - 3
    surface = Surface(x, y)
    (scale, exponent), rss_power = fit_power(x, y, rising=True)
    cut_h, level, rss_step = best_step(t, y)
    rss_constant = float(np.sum((y - y.mean()) ** 2))
    theta, starts = surface.minimise()

    def sigmoid(b: Float) -> Float:
        return np.asarray(b[0] * expit(b[1] * x - b[2]))

    def gradient(b: Float) -> Float:
        h = expit(b[1] * x - b[2])
        slope = b[0] * h * (1 - h)
        return np.column_stack([h, slope * x, -slope])

    fitted = fit_curve(sigmoid, y, theta, jacobian=gradient)
    critical = float(student.ppf(0.5 + confidence / 2, df)) ** 2
    limits = {"constant": rss_constant, "step": rss_step, "power": rss_power}
    rivals = [name for name, rss in limits.items() if rss <= fitted.rss * (1 + _CLOSE)]
    limit = rivals[0] if rivals else ""
    if not limit and (not fitted.converged or not 0 < fitted.estimate[1] < _STEEPEST):
        limit = min(("step", "power"), key=lambda name: limits[name])
    total = rss_constant
    common: dict[str, Any] = {
        "profiled": profile,
        "n": n,
        "n_missing": n_missing,
        "n_groups": n_groups,
        "df": df,
        "confidence": confidence,
        "rss_power": rss_power,
        "power_critical": critical,
        "n_starts": starts,
        "t_h": t,
        "percent": y,
    }
    if limit:
        return _at_limit(limit, x, y, codes, power=(scale, exponent), step=(cut_h, level), limits=limits, common=common)

    del common["profiled"]
    alpha, delta, gamma = (float(b) for b in fitted.estimate)
    s2 = fitted.rss / df
    statistic = (rss_power - fitted.rss) / s2 if s2 > 0 else np.inf
    lt50 = gamma / delta
    toward = np.array([0.0, -lt50 / delta, 1 / delta])
    lt50_se = float(np.sqrt(toward @ fitted.covariance @ toward))
    intervals: dict[str, ProfileInterval] = {}
    if profile:
        intervals = profiles(
            surface,
            fitted.estimate,
            fitted.se,
            lt50_se=lt50_se,
            threshold=fitted.rss + s2 * critical,
            limits=limits,
        )
    J = gradient(fitted.estimate)
    return SigmoidFit(
        alpha=alpha,
        delta=delta,
        gamma=gamma,
        alpha_se=float(fitted.se[0]),
        delta_se=float(fitted.se[1]),
        gamma_se=float(fitted.se[2]),
        t50_h=float(np.exp(lt50)),
        t50_se_h=float(np.exp(lt50)) * lt50_se,
        covariance=fitted.covariance,
        cluster_covariance=_sandwich(J, y - sigmoid(fitted.estimate), codes, 3),
        rss=fitted.rss,
        rmse_n=float(np.sqrt(fitted.rss / n)),
        rmse_df=float(np.sqrt(s2)),
        r2=1 - fitted.rss / total,
        profile=intervals,
        asymptote_identifiable=bool(statistic > critical),
        power_statistic=float(statistic),
        limit="",
        converged=True,
        scale=alpha,
        **common,
    )


def _sandwich(J: Float, r: Float, codes: NDArray[np.intp] | None, p: int) -> Float | None:
    """Return the CR1 cluster-robust covariance, None where there are no groups."""
    if codes is None:
        return None
    n, n_groups = r.size, int(codes.max()) + 1
    score = np.zeros((n_groups, J.shape[1]))
    np.add.at(score, codes, J * r[:, None])
    bread = np.linalg.pinv(J.T @ J)
    factor = n_groups / (n_groups - 1) * (n - 1) / (n - p)
    return np.asarray(factor * bread @ (score.T @ score) @ bread)


def _at_limit(
    limit: str,
    x: Float,
    y: Float,
    codes: NDArray[np.intp] | None,
    *,
    power: tuple[float, float],
    step: tuple[float, float],
    limits: Mapping[str, float],
    common: Mapping[str, Any],
) -> SigmoidFit:
    """Return the fit where a limit of the sigmoid does as well as any sigmoid."""
    rss, df, n = limits[limit], common["df"], common["n"]
    s2 = rss / df
    covariance = np.full((3, 3), np.nan)
    if limit == "power":
        scale, delta = power
        alpha, gamma, t50 = float(np.copysign(np.inf, scale)), np.inf, np.inf
        rise = np.exp(delta * x)
        J, r = np.column_stack([rise, scale * rise * x]), y - scale * rise
    elif limit == "step":
        t50, scale = step
        alpha, delta, gamma = scale, np.inf, np.nan
        above = np.exp(x) > t50 * (1 + 1e-12)
        J, r = above[:, None].astype(float), np.where(above, y - scale, 0.0)
    else:
        scale = float(y.mean())
        alpha, delta, gamma, t50 = scale, np.nan, np.nan, 0.0
        J, r = np.ones((n, 1)), y - scale
    k = J.shape[1]
    covariance[:k, :k] = s2 * np.linalg.pinv(J.T @ J)
    cluster = None
    if codes is not None:
        cluster = np.full((3, 3), np.nan)
        cluster[:k, :k] = _sandwich(J, r, codes, k)
    statistic = (limits["power"] - rss) / s2 if s2 > 0 else 0.0
    profile = {}
    if limit == "power" and common["profiled"]:
        profile["alpha"] = least_asymptote(x, y, scale, rss + s2 * common["power_critical"])
    common = {name: value for name, value in common.items() if name != "profiled"}
    return SigmoidFit(
        alpha=alpha,
        delta=float(delta),
        gamma=float(gamma),
        alpha_se=np.nan if limit == "power" else float(np.sqrt(covariance[0, 0])),
        delta_se=float(np.sqrt(covariance[1, 1])),
        gamma_se=np.nan,
        t50_h=float(t50),
        t50_se_h=np.nan,
        covariance=covariance,
        cluster_covariance=cluster,
        rss=rss,
        rmse_n=float(np.sqrt(rss / n)),
        rmse_df=float(np.sqrt(s2)),
        r2=1 - rss / limits["constant"],
        profile=profile,
        asymptote_identifiable=False,
        power_statistic=float(statistic),
        limit=limit,
        converged=False,
        scale=float(scale),
        **common,
    )


def _root(covariance: Float | None, i: int) -> float:
    return np.nan if covariance is None else float(np.sqrt(covariance[i, i]))
