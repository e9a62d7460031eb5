"""How many people a trial needs: TrialSize."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_sodium.core.errors import DataError, EstimationError

__all__ = ["TrialSize", "trial_size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSize:
    """People that two equal arms need."""

    n_per_arm: int
    """People in each arm who finish."""
    n_low: int
    """The same with the standard deviation at its lower confidence limit."""
    n_high: int
    """The same with the standard deviation at its upper confidence limit."""
    n_recruited: int
    """People to recruit for both arms, with those who drop out."""
    power: float
    """Power at ``n_per_arm``."""
    effect: float
    """Difference between the arms, in the unit of the outcome."""
    sd: float
    """Standard deviation of the outcome within an arm, baseline taken into account."""


def trial_size(
    effect: float,
    sd: float,
    *,
    sd_df: float,
    power: float = 0.8,
    alpha: float = 0.05,
    baseline_correlation: float = 0.0,
    dropout: float = 0.0,
    confidence: float = 0.95,
) -> TrialSize:
    """Return the size of a parallel trial of two equal arms, tested by a two-sided t.

    The smallest n with ``P(|T| > t(1 - alpha / 2, 2n - 2)) >= power`` for T noncentral t of ``2n - 2`` degrees of
    freedom and noncentrality ``effect / s sqrt(n / 2)``; an analysis adjusted for a baseline of correlation r has
    ``s = sd sqrt(1 - r^2)``.

    Parameters
    ----------
    effect : float
        Difference between the arms that is to be found, in the unit of the outcome.
    sd : float
        Standard deviation of the outcome within an arm.
    sd_df : float
        Degrees of freedom that ``sd`` rests on; its chi-square interval gives ``n_low`` and ``n_high``.
    power, alpha : float, optional
        Power and two-sided level.
    baseline_correlation : float, optional
        Correlation of the outcome with its baseline.
    dropout : float, optional
        Share of those recruited who do not finish.
    confidence : float, optional
        Level of the interval of ``sd``.

    Returns
    -------
    TrialSize
        People in each arm, and to recruit.

    Raises
    ------
    DataError
        If a probability, share or correlation is out of its range, or the standard deviation is not positive.
    EstimationError
        If the effect is zero or would need more than ten million people.

    References
    ----------
    Chow SC, Shao J, Wang H. Sample Size Calculations in Clinical Research. Chapman and Hall, 2008.
    Borm GF et al. A simple sample size formula for analysis of covariance. J Clin Epidemiol 2007.
    https://doi.org/10.1016/j.jclinepi.2007.02.006

    Examples
    --------
    >>> trial_size(0.5, 1.0, sd_df=60).n_per_arm
    64
    """
    from scipy.stats import chi2

    for name, value, low, high in (
        ("power", power, 0.0, 1.0),
        ("alpha", alpha, 0.0, 1.0),
        ("baseline correlation", baseline_correlation, -1.0, 1.0),
    ):
        if not low < value < high:
            raise DataError(f"{name} is {value:g}", hint=f"give a number between {low:g} and {high:g}")
    if not 0.0 <= dropout < 1.0:
        raise DataError(f"the share that drops out is {dropout:g}", hint="give 0 or more and less than 1")
    if not (np.isfinite(sd) and sd > 0 and sd_df > 0):
        raise DataError(f"a standard deviation of {sd:g} on {sd_df:g} degrees of freedom")
    if not (np.isfinite(effect) and effect != 0):
        raise EstimationError(f"no trial finds an effect of {effect:g}")
    within = sd * float(np.sqrt(1.0 - baseline_correlation**2))
    tail = (1.0 - confidence) / 2.0
    factors = [float(np.sqrt(sd_df / chi2.ppf(q, sd_df))) for q in (1.0 - tail, tail)]
    n = _smallest(abs(effect) / within, power, alpha)
    return TrialSize(
        n_per_arm=n,
        n_low=_smallest(abs(effect) / (within * factors[0]), power, alpha),
        n_high=_smallest(abs(effect) / (within * factors[1]), power, alpha),
        n_recruited=int(np.ceil(2 * n / (1.0 - dropout) - 1e-9)),
        power=_power(abs(effect) / within, n, alpha),
        effect=float(effect),
        sd=within,
    )


def _power(d: float, n: int, alpha: float) -> float:
    from scipy.stats import chi2, nct, norm
    from scipy.stats import t as student

    df = 2 * n - 2
    limit, shift = float(student.ppf(1.0 - alpha / 2.0, df)), d * float(np.sqrt(n / 2.0))
    power = float(nct.sf(limit, df, shift) + nct.cdf(-limit, df, shift))
    if np.isfinite(power):
        return power
    # scipy's noncentral t is NaN for large effects in small arms: the mean over quantiles of the standard deviation.
    sd = np.sqrt(chi2.ppf((np.arange(4000) + 0.5) / 4000, df) / df)
    return float(np.mean(norm.sf(limit * sd - shift)))


def _smallest(d: float, power: float, alpha: float) -> int:
    """Return the smallest n per arm that reaches the power: doubled until it does, then halved down to it."""
    low, high = 1, 2
    while _power(d, high, alpha) < power:
        low, high = high, 2 * high
        if high > 10_000_000:
            raise EstimationError(f"an effect of {d:.2g} standard deviations needs more than ten million people")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(d, middle, alpha) >= power else (middle, high)
    return high
