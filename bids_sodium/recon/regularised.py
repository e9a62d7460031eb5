"""Images of least total variation for their fit to the samples.

``min_x 1/2 ||W^(1/2) (A x - s)||^2 + lambda sum_r |P_r (D x)_r|`` over complex images, with differences ``D`` between
neighbours along the three axes, per mean voxel edge. ``P`` is one (total variation) or takes out the direction in which
a registered image changes (directional total variation): edges that both images share then cost nothing.

The solver is FISTA on the normal operator with adaptive restart: every iteration applies the operator once, finds its
step length from that application, and solves the denoising problem of the penalty by a few dual iterations that go on
from those before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError
from bids_sodium.recon.iteration import Normal

__all__ = ["Regularised", "edge_direction", "least_variation", "total_variation"]

_INNER = 5
_FIRST_CURVATURE = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Regularised:
    """An image of least variation.

    Parameters
    ----------
    image : (nx, ny, nz) complex ndarray
        The image.
    residuals : tuple of float
        Root mean square change of the image in each iteration, in units of the tolerance's unit.
    objective : tuple of float
        ``1/2 x^H N x - Re x^H b + lambda TV(x)`` after each iteration.
    converged : bool
        Whether the last change was below the tolerance.
    """

    image: NDArray[np.complexfloating]
    residuals: tuple[float, ...]
    objective: tuple[float, ...]
    converged: bool


def total_variation(
    image: NDArray[np.complexfloating],
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    direction: NDArray[np.floating] | None = None,
) -> float:
    """Return the sum over voxels of the length of the gradient, without its part along a direction.

    Parameters
    ----------
    image : (nx, ny, nz) complex ndarray
        Image.
    voxel_mm : tuple of float
        Voxel edges; differences are per geometric mean of them.
    direction : (3, nx, ny, nz) ndarray, optional
        Vectors of length up to one, from `edge_direction`.

    Returns
    -------
    float
        Variation, in the unit of the image.

    Examples
    --------
    >>> step = np.zeros((4, 4, 4)); step[2:] = 3.0
    >>> total_variation(step)
    48.0
    """
    return _length(_Differences(voxel_mm, direction).forward(np.asarray(image)))


def edge_direction(
    prior: NDArray[np.floating], voxel_mm: tuple[float, float, float], edge: float = 0.05
) -> NDArray[np.float32]:
    """Return the direction in which an image changes, ``grad v / sqrt(|grad v|^2 + eta^2)``.

    Parameters
    ----------
    prior : (nx, ny, nz) ndarray
        Image on the grid of the sodium image.
    voxel_mm : tuple of float
        Voxel edges.
    edge : float
        ``eta`` as a share of the 99th percentile of the image; steps that are smaller count little.

    Returns
    -------
    (3, nx, ny, nz) float32 ndarray
        Vectors of length zero (uniform) to one (edge).

    Raises
    ------
    DataError
        If the image is not finite or shows nothing.

    References
    ----------
    Ehrhardt and Betcke 2016, doi:10.1137/15M1047325.

    Examples
    --------
    >>> step = np.zeros((4, 4, 4)); step[2:] = 100.0
    >>> edge_direction(step, (4.0, 4.0, 4.0))[:, 1, 1, 1].round(2).tolist()
    [1.0, 0.0, 0.0]
    """
    if not np.isfinite(prior).all():
        raise DataError(
            "the prior image holds NaN or infinite values", hint="check its registration to the sodium image"
        )
    top = float(np.percentile(np.abs(prior), 99.0))
    if not top > 0:
        raise DataError("the prior image is empty", hint="check its registration to the sodium image")
    gradient = _Differences(voxel_mm, None).forward(np.asarray(prior, dtype=np.float32) / np.float32(top))
    return np.asarray(gradient / np.sqrt((gradient**2).sum(axis=0) + np.float32(edge) ** 2), dtype=np.float32)


def least_variation(
    normal: Normal,
    right: NDArray[np.complexfloating],
    weight: float,
    *,
    unit: float,
    voxel_mm: tuple[float, float, float],
    direction: NDArray[np.floating] | None = None,
    iterations: int = 60,
    tolerance: float = 0.003,
) -> Regularised:
    """Minimise ``1/2 x^H N x - Re x^H b + weight TV(x)``.

    Parameters
    ----------
    normal : callable
        Normal operator ``N``, Hermitian and not negative.
    right : (nx, ny, nz) complex ndarray
        ``b``, the weighted adjoint image.
    weight : float
        Weight of the variation, in the unit of the image.
    unit : float
        What changes of the image are measured by: the noise of ``right``, or the size of the image where it has none.
    voxel_mm : tuple of float
        Voxel edges.
    direction : (3, nx, ny, nz) ndarray, optional
        From `edge_direction`, for directional total variation.
    iterations : int
        Most iterations.
    tolerance : float
        Root mean square change in units of ``unit`` at which the iteration ends.

    Returns
    -------
    Regularised
        Image and convergence.

    References
    ----------
    Beck and Teboulle 2009, doi:10.1137/080716542 and doi:10.1109/TIP.2009.2028250; O'Donoghue and Candes 2015,
    doi:10.1007/s10208-013-9150-3 (restart).

    Examples
    --------
    >>> noisy = np.random.default_rng(0).normal(5.0, 1.0, (8, 8, 8)) + 0j
    >>> found = least_variation(lambda x: x, noisy, 5.0, unit=1.0, voxel_mm=(4.0, 4.0, 4.0), tolerance=1e-4)
    >>> bool(found.image.std() < 0.05), bool(abs(found.image.mean() - noisy.mean()) < 0.01)
    (True, True)
    """
    differences = _Differences(voxel_mm, direction)
    image, mapped = np.zeros_like(right), np.zeros_like(right)
    point, mapped_point = image, mapped
    dual = np.zeros((3, *right.shape), dtype=right.dtype)
    momentum, curvature = 1.0, _FIRST_CURVATURE
    changes: list[float] = []
    objective: list[float] = []
    for _ in range(iterations):
        while True:
            step = np.float32(1.0 / curvature)
            target = point - step * (mapped_point - right)
            moved, moved_dual = _denoised(target, weight / curvature, dual, differences)
            mapped_moved = normal(moved)
            away = moved - point
            bend = float(np.vdot(away, mapped_moved - mapped_point).real)
            power = float(np.vdot(away, away).real)
            # Single precision: the quotient is good to a part in a thousand.
            if bend <= 1.001 * curvature * power:
                break
            curvature = max(1.05 * curvature, 1.05 * bend / power)
        dual = moved_dual
        change = moved - image
        if float(np.vdot(point - moved, change).real) > 0.0:
            momentum = 1.0
        ahead = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        share, momentum = np.float32((momentum - 1.0) / ahead), ahead
        point, mapped_point = moved + share * change, mapped_moved + share * (mapped_moved - mapped)
        image, mapped = moved, mapped_moved
        changes.append(float(np.linalg.norm(change)) / np.sqrt(change.size) / unit)
        fit = 0.5 * np.vdot(image, mapped).real - np.vdot(right, image).real
        objective.append(float(fit) + weight * _length(differences.forward(image)))
        if changes[-1] < tolerance:
            break
    return Regularised(image, tuple(changes), tuple(objective), changes[-1] < tolerance)


class _Differences:
    """Differences to the next voxel along each axis, their part along a direction taken out, and the adjoint."""

    def __init__(self, voxel_mm: tuple[float, float, float], direction: NDArray[np.floating] | None) -> None:
        mean = float(np.prod(voxel_mm)) ** (1.0 / 3.0)
        self.scale = [np.float32(mean / step) for step in voxel_mm]
        self.direction = None if direction is None else np.asarray(direction, dtype=np.float32)
        self.norm2 = 4.0 * float(sum(s**2 for s in self.scale))

    def forward(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return (3, nx, ny, nz) differences of an image; zero at the last voxel."""
        out = np.zeros((3, *image.shape), dtype=image.dtype)
        for axis, scale in enumerate(self.scale):
            before, after = _neighbours(axis)
            np.subtract(image[after], image[before], out=out[axis][before])
            out[axis] *= scale
        return self._across(out)

    def adjoint(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Return the image (nx, ny, nz) of vectors (3, nx, ny, nz)."""
        vectors = self._across(vectors)
        out = np.zeros(vectors.shape[1:], dtype=vectors.dtype)
        for axis, scale in enumerate(self.scale):
            before, after = _neighbours(axis)
            part = scale * vectors[axis][before]
            out[before] -= part
            out[after] += part
        return out

    def _across(self, vectors: NDArray[Any]) -> NDArray[Any]:
        if self.direction is None:
            return vectors
        along = (self.direction * vectors).sum(axis=0)
        return np.asarray(vectors - self.direction * along)


def _denoised(
    target: NDArray[Any], weight: float, dual: NDArray[Any], differences: _Differences
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return nearly the minimum of ``1/2 |x - target|^2 + weight TV(x)`` and its dual, started from a dual."""
    scale, step = np.float32(weight), np.float32(1.0 / (weight * differences.norm2))
    ahead, momentum = dual, 1.0
    for _ in range(_INNER):
        moved = differences.forward(target - scale * differences.adjoint(ahead))
        moved *= step
        moved += ahead
        moved /= np.maximum(_lengths(moved), np.float32(1.0))
        later = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = moved + np.float32((momentum - 1.0) / later) * (moved - dual)
        dual, momentum = moved, later
    return target - scale * differences.adjoint(dual), dual


def _neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    every = (slice(None),) * axis
    return (*every, slice(None, -1)), (*every, slice(1, None))


def _lengths(vectors: NDArray[Any]) -> NDArray[np.floating]:
    square = np.square(vectors.real)
    if np.iscomplexobj(vectors):
        square += np.square(vectors.imag)
    return np.asarray(np.sqrt(square.sum(axis=0)))


def _length(vectors: NDArray[Any]) -> float:
    return float(_lengths(vectors).sum(dtype=np.float64))
