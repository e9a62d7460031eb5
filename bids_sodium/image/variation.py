r"""Total variation: the image nearest to the data whose gradients are few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError

__all__ = ["total_variation"]

_MOST_ITERATIONS = 2000
_CHECKED_EVERY = 5


def total_variation(
    data: NDArray[np.floating],
    weight: float,
    *,
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    tolerance: float = 0.03,
) -> NDArray[np.float32]:
    r"""Return the minimiser of :math:`\frac12 |u - y|^2 + \lambda \sum |\nabla u|` (isotropic total variation).

    The dual, :math:`u = y - \lambda \nabla^T p` with :math:`|p| \le 1`, is climbed by accelerated projected gradients.
    The mean of the whole image is kept exactly.

    Parameters
    ----------
    data : (nx, ny, nz) ndarray
        Values y.
    weight : float
        Weight :math:`\lambda`, in units of the values (the gradient is per voxel of the shortest edge).
    voxel_mm : tuple of float
        Edges of a voxel, in mm.
    tolerance : float
        Largest distance from the minimiser, root mean square over all voxels, as a share of ``weight``; the gap between
        primal and dual objective bounds it.

    Returns
    -------
    (nx, ny, nz) ndarray
        Image (float32).

    Raises
    ------
    DataError
        If the weight is negative.
    EstimationError
        If the iteration does not converge.

    References
    ----------
    Rudin 1992, Physica D 60:259, doi:10.1016/0167-2789(92)90242-F; Beck 2009, IEEE Trans Image Process 18:2419,
    doi:10.1109/TIP.2009.2028250.

    Examples
    --------
    >>> box = np.zeros((9, 9, 9))
    >>> box[3:6, 3:6, 3:6] = 10.0
    >>> flat = total_variation(box, 1.0)
    >>> bool(flat[4, 4, 4] < 9.0), bool(np.isclose(flat.mean(), box.mean(), rtol=1e-4))
    (True, True)
    """
    if not (np.isfinite(weight) and weight >= 0):
        raise DataError(f"a weight of total variation of {weight}", hint="give zero or more")
    y = np.asarray(data, dtype=np.float32)
    if weight == 0.0:
        return y.copy()
    rates = np.asarray(min(voxel_mm) / np.asarray(voxel_mm, dtype=np.float64), dtype=np.float32)
    lam = np.float32(weight)
    step = np.float32(1.0 / (4.0 * float((rates**2).sum()) * weight))
    p = np.zeros((3, *y.shape), dtype=np.float32)
    ahead, momentum = p, 1.0
    for iteration in range(1, _MOST_ITERATIONS + 1):
        moved = ahead + step * _gradient(y + lam * _divergence(ahead, rates), rates)
        moved /= np.maximum(np.sqrt((moved**2).sum(axis=0)), 1.0)
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = moved + np.float32((momentum - 1.0) / following) * (moved - p)
        p, momentum = moved, following
        if iteration % _CHECKED_EVERY:
            continue
        # strongly convex: |u - u*|^2 <= 2 gap, and the gap is the sum over voxels of weight (|grad u| - p.grad u)
        u = y + lam * _divergence(p, rates)
        slope = _gradient(u, rates)
        excess = np.sqrt((slope**2).sum(axis=0)) - (p * slope).sum(axis=0)
        if 2.0 * float(excess.mean(dtype=np.float64)) <= weight * tolerance**2:
            return u
    raise EstimationError(
        f"total variation has not converged in {_MOST_ITERATIONS} iterations",
        hint="lower its weight, or choose another denoising method",
    )


def _gradient(u: NDArray[np.float32], rates: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.zeros((3, *u.shape), dtype=np.float32)
    for axis, rate in enumerate(rates):
        along = np.moveaxis(out[axis], axis, 0)
        along[:-1] = np.diff(np.moveaxis(u, axis, 0), axis=0) * rate
    return out


def _divergence(p: NDArray[np.float32], rates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return minus the transpose of the gradient."""
    out = np.zeros(p.shape[1:], dtype=np.float32)
    for axis, rate in enumerate(rates):
        flow, total = np.moveaxis(p[axis], axis, 0) * rate, np.moveaxis(out, axis, 0)
        total[:-1] += flow[:-1]
        total[1:] -= flow[:-1]
    return out
