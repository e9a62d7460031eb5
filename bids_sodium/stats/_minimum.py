"""Minima of smooth functions of a few parameters: Minimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Minimum", "minimum"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Minimum:
    """Where a function is lowest."""

    x: Float
    """Parameters."""
    value: float
    """The function there."""
    slope: float
    """Largest absolute derivative there; NaN after the simplex alone."""


def minimum(
    function: Callable[[Float], float],
    start: Float,
    *,
    smooth: bool,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    step: float | None = None,
) -> Minimum:
    """Descend from a start: by the Nelder-Mead simplex, or by BFGS where the function is smooth and the start near.

    Parameters
    ----------
    function : callable
        Function of the parameters.
    start : (m,) ndarray
        First guess.
    smooth : bool
        Whether to follow derivatives (BFGS).
    tolerance : float, optional
        Derivative (BFGS), or size of the simplex in parameters and a thousandth of it in value, at which to end.
    max_iterations : int, optional
        Limit on iterations.
    step : float, optional
        Step of central differences (BFGS), for functions whose own rounding spoils the usual forward ones.

    Returns
    -------
    Minimum
        The lowest point found.
    """
    from scipy.optimize import minimize

    first = np.asarray(start, dtype=np.float64).ravel()
    if smooth:
        slopes = None if step is None else _central(function, step * np.eye(first.size))
        found = minimize(
            function, first, method="BFGS", jac=slopes, options={"gtol": tolerance, "maxiter": max_iterations}
        )
        return Minimum(x=np.asarray(found.x), value=float(found.fun), slope=float(np.abs(found.jac).max()))
    found = minimize(
        function,
        first,
        method="Nelder-Mead",
        options={"xatol": tolerance, "fatol": 1e-3 * tolerance, "maxiter": max_iterations},
    )
    return Minimum(x=np.asarray(found.x), value=float(found.fun), slope=np.nan)


def _central(function: Callable[[Float], float], steps: Float) -> Callable[[Float], Float]:
    """Return the derivatives of a function by central differences, one step a row."""
    size = 2.0 * float(np.abs(steps).max())
    return lambda x: np.array([(function(x + d) - function(x - d)) / size for d in steps])
