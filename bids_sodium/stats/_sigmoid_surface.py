"""Sums of squares of the sigmoid and of its limits, the power law and the step: Surface.

For given (delta, gamma) the asymptote is a linear parameter, so that every search runs over a plane at most: the best
cells of a grid, then a descent from each (variable projection, Golub and Pereyra 1973).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Surface", "best_step", "fit_power"]

Float = NDArray[np.float64]
_DELTA = np.geomspace(0.05, 60.0, 30)
_OFFSETS = np.concatenate([-np.geomspace(12.0, 0.5, 10), np.linspace(-0.25, 0.25, 3), np.geomspace(0.5, 30.0, 20)])


def fit_power(x: Float, y: Float, *, rising: bool = False) -> tuple[tuple[float, float], float]:
    """Fit b·t^c for x = ln t; return (b, c) and the residual sum of squares."""
    from scipy.optimize import minimize_scalar

    grid = np.concatenate([np.geomspace(1e-3, 60.0, 120)] if rising else [np.linspace(-10, 10, 161)])

    def shape(c: Float | float) -> Float:
        log_u = np.multiply.outer(np.asarray(c), x)
        return np.asarray(np.exp(log_u - log_u.max(axis=-1, keepdims=True)))

    rss = _projected(shape(grid), y)
    best = int(np.argmin(rss))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    found = minimize_scalar(
        lambda c: float(_projected(shape(c), y)), bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    c = float(found.x) if found.fun <= rss[best] else float(grid[best])
    u = shape(c)
    b = float(u @ y / (u @ u) * np.exp(-np.max(c * x)))
    return (b, c), float(np.sum((y - b * np.exp(c * x)) ** 2))


class Surface:
    """Sum of squares of the sigmoid over (ln delta, g), with h = expit(delta(x - x̄) - g) and gamma = g + delta x̄."""

    def __init__(self, x: Float, y: Float) -> None:
        self.x, self.y = x, y
        self.middle = float(x.mean())
        self.centred = x - self.middle
        self._grid: tuple[Float, Float, Float] | None = None

    def log_h(self, delta: Float | float, g: Float | float) -> Float:
        from scipy.special import log_expit

        slope, shift = np.asarray(delta)[..., None], np.asarray(g)[..., None]
        return np.asarray(log_expit(slope * self.centred - shift))

    def shape(self, delta: Float | float, g: Float | float) -> Float:
        log_h = self.log_h(delta, g)
        return np.asarray(np.exp(log_h - log_h.max(axis=-1, keepdims=True)))

    def rss(self, delta: Float | float, g: Float | float) -> Float:
        return _projected(self.shape(delta, g), self.y)

    def grid(self) -> tuple[Float, Float, Float]:
        """Return delta, g and ln h on the start grid, shapes (a, b), (a, b), (a, b, n)."""
        if self._grid is None:
            delta, g = np.meshgrid(_DELTA, _OFFSETS, indexing="ij")
            self._grid = (delta, g, self.log_h(delta, g))
        return self._grid

    def minimise(self) -> tuple[Float, int]:
        """Return the best (alpha, delta, gamma) over every local minimum of the grid, and how many there were."""
        delta, g, log_h = self.grid()
        rss = _projected(np.exp(log_h - log_h.max(axis=-1, keepdims=True)), self.y)
        starts = _local_minima(rss)[:8]
        best, best_rss = np.zeros(2), np.inf
        for i, j in starts:
            found = _descend(self._residual, np.array([np.log(delta[i, j]), g[i, j]]), 1e-13)
            value = float(np.sum(self._residual(found) ** 2))
            if value < best_rss:
                best, best_rss = found, value
        slope, shift = float(np.exp(np.clip(best[0], -7, 6))), float(np.clip(best[1], -60, 60))
        log_u = self.log_h(slope, shift)
        u = np.exp(log_u - log_u.max())
        alpha = float(u @ self.y / (u @ u) * np.exp(-log_u.max()))
        return np.array([alpha, slope, shift + slope * self.middle]), len(starts)

    def _residual(self, theta: Float) -> Float:
        u = self.shape(float(np.exp(np.clip(theta[0], -7, 6))), float(np.clip(theta[1], -60, 60)))
        return np.asarray(self.y - u * (u @ self.y) / (u @ u))

    def given_delta(self, delta: float) -> float:
        return _line(lambda g: self.rss(np.full(np.shape(g), delta), g), np.linspace(-15.0, 35.0, 201))

    def given_gamma(self, gamma: float) -> float:
        return _line(
            lambda d: self.rss(np.exp(d), gamma - np.exp(d) * self.middle), np.log(np.geomspace(1e-3, 150.0, 241))
        )

    def given_log_t50(self, lt50: float) -> float:
        return _line(
            lambda d: self.rss(np.exp(d), np.exp(d) * (lt50 - self.middle)), np.log(np.geomspace(1e-3, 150.0, 241))
        )

    def given_alpha(self, alpha: float) -> float:
        return self._plane(lambda log_h, _d, _g: alpha * np.exp(log_h))

    def given_value(self, value: float, x0: float) -> float:
        from scipy.special import log_expit

        def through(log_h: Float, delta: Float, g: Float) -> Float:
            at = np.asarray(log_expit(delta * (x0 - self.middle) - g))[..., None]
            return np.asarray(value * np.exp(np.clip(log_h - at, -700, 300)))

        return self._plane(through)

    def _plane(self, curve: Callable[[Float, Float, Float], Float]) -> float:
        """Minimise over (ln delta, g) a curve whose scale is given."""
        delta, g, log_h = self.grid()
        rss = np.sum((self.y - curve(log_h, delta, g)) ** 2, axis=-1)

        def residual(theta: Float) -> Float:
            d, shift = np.exp(np.clip(theta[0], -7, 6)), np.clip(theta[1], -60, 60)
            value = curve(self.log_h(d, shift), np.asarray(d), np.asarray(shift))
            return np.asarray(np.clip(self.y - value, -1e60, 1e60))

        lowest = np.inf
        for i, j in _local_minima(rss)[:3]:
            found = _descend(residual, np.array([np.log(delta[i, j]), g[i, j]]), 1e-10)
            lowest = min(lowest, float(np.sum(residual(found) ** 2)))
        return lowest


def best_step(t: Float, y: Float) -> tuple[float, float, float]:
    """Return time, level and RSS of the best rise from zero at once; the scans at the time itself lie in between."""
    best = (float(t.min()), float(y.mean()), np.inf)
    for cut in np.unique(t)[:-1]:
        above = y[t > cut]
        level = float(above.mean())
        at = y[t == cut]
        between = float(np.clip(at.mean(), min(level, 0.0), max(level, 0.0)))
        rss = float(np.sum(y[t < cut] ** 2) + np.sum((at - between) ** 2) + np.sum((above - level) ** 2))
        if rss < best[2]:
            best = (float(cut), level, rss)
    return best


def _descend(residual: Callable[[Float], Float], start: Float, tolerance: float) -> Float:
    """Return where Levenberg-Marquardt ends; MINPACK's covariance may overflow on the way and is not used."""
    from scipy.optimize import leastsq

    with np.errstate(all="ignore"):
        return np.asarray(leastsq(residual, start, full_output=True, ftol=tolerance, xtol=tolerance, maxfev=300)[0])


def _projected(u: Float, y: Float) -> Float:
    """Return ‖y‖² - (uᵀy)²/‖u‖² along the last axis, as a sum of squared residuals."""
    factor = (u @ y) / np.sum(u * u, axis=-1)
    return np.asarray(np.sum((y - factor[..., None] * u) ** 2, axis=-1))


def _local_minima(values: Float) -> list[tuple[int, int]]:
    """Return the cells of a plane that no neighbour undercuts, lowest first."""
    padded = np.pad(values, 1, constant_values=np.inf)
    rows, columns = values.shape
    lowest = np.ones_like(values, dtype=bool)
    for i in range(3):
        for j in range(3):
            lowest &= values <= padded[i : i + rows, j : j + columns]
    cells = np.argwhere(lowest)
    order = np.argsort(values[lowest], kind="stable")
    return [(int(i), int(j)) for i, j in cells[order]]


def _line(rss: Callable[[Float], Float], grid: Float) -> float:
    """Minimise along one parameter: the best grid cell, then Brent inside it."""
    from scipy.optimize import minimize_scalar

    values = rss(grid)
    best = int(np.argmin(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    found = minimize_scalar(
        lambda v: float(rss(np.asarray(v))), bounds=(low, high), method="bounded", options={"xatol": 1e-8}
    )
    return min(float(found.fun), float(values[best]))
