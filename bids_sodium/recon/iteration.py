"""Conjugate gradients with step lengths that are known beforehand.

Conjugate gradients choose their steps from the data and so are not linear. With the steps of a probe on the same
operator they are a fixed polynomial of it, and the map from data to image is linear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Normal", "Steps", "follow", "steps_of"]

Normal = Callable[[NDArray[np.complexfloating]], NDArray[np.complexfloating]]
"""A Hermitian operator on images."""

Steps = tuple[tuple[float, float], ...]
"""Lengths (alpha, beta) of each iteration."""


def steps_of(normal: Normal, right: NDArray[np.complexfloating], iterations: int) -> Steps:
    """Return the steps that conjugate gradients take towards ``normal(x) = right`` from zero.

    Parameters
    ----------
    normal : callable
        Normal operator.
    right : (nx, ny, nz) complex ndarray
        Right-hand side of the probe.
    iterations : int
        How many.

    Returns
    -------
    tuple of (float, float)
        Step length and share of the last direction in the next, of each iteration.

    Examples
    --------
    >>> steps_of(lambda x: 2.0 * x, np.ones((2, 2, 2), complex), 1)
    ((0.5, 0.0),)
    """
    residual, direction = right, right
    power = np.vdot(residual, residual).real
    steps = []
    for _ in range(iterations):
        mapped = normal(direction)
        alpha = power / np.vdot(direction, mapped).real
        residual = residual - np.float32(alpha) * mapped
        power, before = np.vdot(residual, residual).real, power
        beta = power / before
        direction = residual + np.float32(beta) * direction
        steps.append((float(alpha), float(beta)))
        if not power > 0:
            break
    return tuple(steps)


def follow(
    normal: Normal, right: NDArray[np.complexfloating], steps: Steps
) -> tuple[NDArray[np.complexfloating], tuple[float, ...]]:
    """Follow given steps towards ``normal(x) = right`` from zero.

    Parameters
    ----------
    normal : callable
        Normal operator.
    right : (nx, ny, nz) complex ndarray
        Right-hand side.
    steps : tuple of (float, float)
        From `steps_of`.

    Returns
    -------
    image : (nx, ny, nz) complex ndarray
        A linear function of ``right``.
    residuals : tuple of float
        Norm of what is left of the equation relative to its right-hand side, after each iteration.

    Examples
    --------
    >>> follow(lambda x: 2.0 * x, np.ones((1, 1, 1), complex), ((0.5, 0.0),))
    (array([[[0.5+0.j]]]), (0.0,))
    """
    image = np.zeros_like(right)
    residual, direction = right, right
    start = np.linalg.norm(right)
    history = []
    for alpha, beta in steps:
        image += np.float32(alpha) * direction
        residual = residual - np.float32(alpha) * normal(direction)
        direction = residual + np.float32(beta) * direction
        history.append(float(np.linalg.norm(residual) / start) if start > 0 else 0.0)
    return image, tuple(history)
