"""Which time course the data prefer: CurveComparison of seven CurveModels by AICc."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.stats._rows import require_rows
from bids_sodium.stats._sigmoid import fit_sigmoid
from bids_sodium.stats._sigmoid_surface import fit_power
from bids_sodium.stats._time_course import times_and_values

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CurveComparison", "CurveModel", "compare_curves"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveModel:
    """One time course, fitted by least squares."""

    name: str
    """constant, linear, log, power, exp_saturation, hyperbolic or sigmoid."""
    formula: str
    """The curve, t in h."""
    parameters: Mapping[str, float]
    """Estimates, named as in the formula."""
    n_parameters: int
    """Parameters of the mean; the criteria count the residual variance besides."""
    rss: float
    """Residual sum of squares."""
    loglik: float
    """Gaussian log-likelihood."""
    aic: float
    """Akaike information criterion."""
    aicc: float
    """Its small-sample form."""
    bic: float
    """Bayesian information criterion."""
    delta_aicc: float
    """AICc above the lowest of the table."""
    weight: float
    """Akaike weight."""
    converged: bool
    """Whether the sum of squares has its minimum at finite parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveComparison:
    """Seven time courses, lowest AICc first."""

    models: tuple[CurveModel, ...]
    """The fitted curves."""
    n: int
    """Observations used."""
    n_missing: int
    """Rows left out because a time or value is missing."""

    @property
    def best(self) -> CurveModel:
        """The curve of lowest AICc."""
        return self.models[0]

    def __getitem__(self, name: str) -> CurveModel:
        """Return the curve of that name."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    def table(self) -> pd.DataFrame:
        """Return one row a curve, its fields in columns, the parameters left out."""
        import pandas as pd

        columns = ("name", "formula", "n_parameters", "rss", "loglik", "aic", "aicc", "bic", "delta_aicc", "weight")
        rows = [{**{c: getattr(m, c) for c in columns}, "converged": m.converged} for m in self.models]
        return pd.DataFrame(rows)


def compare_curves(t_h: ArrayLike, percent: ArrayLike) -> CurveComparison:
    """Compare seven time courses by AICc.

    Constant, linear, logarithmic, power law, exponential saturation, hyperbola (the sigmoid with delta = 1), sigmoid.
    AICc = -2 ln L + 2k + 2k(k + 1)/(n - k - 1), where k counts the residual variance.

    Parameters
    ----------
    t_h : array_like
        Times from onset, in h, all positive, shape (n,).
    percent : array_like
        Values, shape (n,); rows with a missing value are left out and counted.

    Returns
    -------
    CurveComparison
        The curves, lowest AICc first.

    Raises
    ------
    EstimationError
        If there are fewer than 6 observations, or the values do not vary.

    References
    ----------
    Burnham KP, Anderson DR. Model Selection and Multimodel Inference. Springer, 2002.

    Examples
    --------
    >>> t = np.array([4.0, 8.0, 12.0, 20.0, 30.0, 45.0, 60.0])
    >>> compare_curves(t, 3.0 * t**0.5 + np.array([0.1, -0.1, 0.2, -0.2, 0.1, 0.1, -0.1])).best.name
    'power'
    """
    t, y, _, n_missing = times_and_values(t_h, percent, None, what="a comparison of curves")
    n = y.size
    require_rows(n, 6, "a comparison of curves", n_missing=n_missing)
    x = np.log(t)
    sigmoid = fit_sigmoid(t, y, profile=False)
    (b, c), rss_power = fit_power(x, y)
    fits: list[tuple[str, str, dict[str, float], float, bool]] = [
        ("constant", "c", {"c": float(y.mean())}, float(np.sum((y - y.mean()) ** 2)), True),
        ("linear", "intercept + slope t", *_straight(t, y), True),
        ("log", "intercept + slope ln t", *_straight(x, y), True),
        ("power", "b t^c", {"b": b, "c": c}, rss_power, -9.9 < c < 9.9),
        (
            "exp_saturation",
            "A (1 - exp(-t/tau))",
            *_saturating(lambda tau: -np.expm1(-t / tau), ("A", "tau"), t, y),
        ),
        ("hyperbolic", "A t / (K + t)", *_saturating(lambda k: t / (k + t), ("A", "K"), t, y)),
        (
            "sigmoid",
            "alpha t^delta / (exp(gamma) + t^delta)",
            {"alpha": sigmoid.alpha, "delta": sigmoid.delta, "gamma": sigmoid.gamma},
            sigmoid.rss,
            sigmoid.converged,
        ),
    ]
    least = 1e-24 * float(y @ y)  # a curve through all values: rounding decides its residuals, not the data
    scored = []
    for name, formula, parameters, rss, converged in fits:
        k = len(parameters) + 1
        loglik = -n / 2 * (np.log(2 * np.pi * max(rss, least) / n) + 1)
        aic = 2 * k - 2 * loglik
        aicc = aic + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf
        scored.append((float(aicc), float(aic), float(loglik), name, formula, parameters, rss, converged))
    lowest = min(row[0] for row in scored)
    total = sum(np.exp((lowest - row[0]) / 2) for row in scored)
    models = tuple(
        CurveModel(
            name=name,
            formula=formula,
            parameters=parameters,
            n_parameters=len(parameters),
            rss=rss,
            loglik=loglik,
            aic=aic,
            aicc=aicc,
            bic=float((len(parameters) + 1) * np.log(n) - 2 * loglik),
            delta_aicc=aicc - lowest,
            weight=float(np.exp((lowest - aicc) / 2) / total),
            converged=converged,
        )
        for aicc, aic, loglik, name, formula, parameters, rss, converged in sorted(scored, key=lambda row: row[0])
    )
    return CurveComparison(models=models, n=n, n_missing=n_missing)


def _straight(x: Float, y: Float) -> tuple[dict[str, float], float]:
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    intercept = float(y.mean() - slope * x.mean())
    return {"intercept": intercept, "slope": slope}, float(np.sum((y - intercept - slope * x) ** 2))


def _saturating(
    shape: Callable[[float], Float], names: tuple[str, str], t: Float, y: Float
) -> tuple[dict[str, float], float, bool]:
    """Fit A·shape(time constant); the scale is linear, the time constant searched on a grid and refined."""
    from scipy.optimize import minimize_scalar

    grid = np.linspace(np.log(t.min()) - 6, np.log(t.max()) + 9, 150)

    def scale(log_time: float) -> float:
        u = shape(float(np.exp(log_time)))
        return float(u @ y / (u @ u))

    def rss(log_time: float) -> float:
        return float(np.sum((y - scale(log_time) * shape(float(np.exp(log_time)))) ** 2))

    values = np.array([rss(float(g)) for g in grid])
    best = int(np.argmin(values))
    inner = 0 < best < grid.size - 1
    at = float(grid[best])
    if inner:
        found = minimize_scalar(
            rss, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-12}
        )
        at = float(found.x)
    return {names[0]: scale(at), names[1]: float(np.exp(at))}, rss(at), inner
