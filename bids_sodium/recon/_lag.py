"""Gradients that lag by another time along one axis than along the others: found in the trajectory, and undone.

Readouts that leave the centre start straight, ``k(t) = s (t I - D) u``, with the delays ``D``, a symmetric matrix whose
axes need not be those of the grid. Where delays differ, shells of k-space become ellipsoids: five microseconds are a
tenth of the time in which a readout passes the spectrum of a head, and weights made for spheres then change the gain
of everything that is not a ball by percents. Weights are therefore made where delays are equal, and multiplied by the
change of volume between there and here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Trajectory
from bids_sodium.recon.trajectory import delayed

__all__ = ["without_lag"]

_LEAST_LAG_MS = 1e-4
_MOST_BEND = 0.02


def without_lag(trajectory: Trajectory) -> tuple[Trajectory, NDArray[np.float64]] | None:
    """Return the trajectory as it would be with equal delays along all directions, and what delays do to volumes.

    Along the axes of the delays ``k_a = f(t - d_a) u_a``, so that a cell changes its volume by
    ``sum_a f'_a u_a^2 f_b f_c / (f' f^2)``; ``f`` is the mean distance from the centre.

    Parameters
    ----------
    trajectory : Trajectory
        Readouts that begin at the centre.

    Returns
    -------
    (Trajectory, (n_shots, n_samples) ndarray) or None
        The trajectory with equal delays, the same object where they are equal as it is, and the volume of each cell
        over what it is there. None where delays were found that cannot be undone, because readouts wind too early.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import plain_radial
    >>> late = plain_radial(50, 64, readout_ms=5.0, voxel_mm=4.0, delay_ms=[0.004, 0.001, 0.001])
    >>> even, change = without_lag(late)
    >>> bool(np.ptp(np.linalg.norm(even.k_per_mm[:, 20], axis=-1)) < 1e-6), round(float(change[0, 5]), 1)
    (True, 1.0)
    """
    ones = np.ones(trajectory.k_per_mm.shape[:2])
    early = max(8, trajectory.n_samples // 4)
    beginning = Trajectory(trajectory.k_per_mm[:, :early], trajectory.t_ms[:early])
    lag = _lag(beginning)
    if not lag.any():
        return trajectory, ones
    for _ in range(4):
        # Interpolation leaves a little lag behind, so that what is left is not added as long as it is small.
        left = _lag(_undone(beginning, lag))
        if np.abs(left).max() < 0.5 * np.abs(lag).max():
            break
        lag = lag + left
    else:
        return None
    lags, axes = np.linalg.eigh(lag)
    even = _undone(trajectory, lag)
    square = (even.k_per_mm @ axes.astype(np.float32)).astype(np.float64) ** 2
    distance = np.sqrt(square.sum(axis=-1).mean(axis=0))
    t = trajectory.t_ms.astype(np.float64)
    nodes = np.concatenate([[min(0.0, t[0] - 1e-9)], t, [2.0 * t[-1] - t[-2]]])
    values = np.concatenate([[0.0], distance, [2.0 * distance[-1] - distance[-2]]])
    f = [np.interp(t - each, nodes, values) for each in lags]
    change = sum(np.gradient(f[a]) * f[b] * f[c] * square[..., a] for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)))
    cell = square.sum(axis=-1) * np.gradient(distance) * distance**2
    return even, np.maximum(np.divide(change, cell, out=0.0 * ones, where=cell > 0), 0.0)


def _lag(beginning: Trajectory) -> NDArray[np.float64]:
    """Return by how much gradients lag along each direction beyond their mean delay, in ms, as a symmetric matrix.

    The first three samples under the full gradient are a straight line for each shot, whose slope is the velocity
    ``s u`` and whose value at time zero ``-(D + ramp / 2) s u``. Zeros where they are not straight enough to tell.
    """
    k, t = beginning.k_per_mm.astype(np.float64), beginning.t_ms.astype(np.float64)
    steps = np.linalg.norm(np.diff(k, axis=1), axis=-1).mean(axis=0)
    if t.size < 4 or not (np.diff(t) > 0).all() or not steps.max() > 0:
        return np.zeros((3, 3))
    speed = steps / np.diff(t)
    ramped_up = (speed[:-1] >= 0.9 * speed.max()) & (speed[1:] <= 1.02 * speed[:-1])
    first = int(np.argmax(ramped_up))
    k, t = k[:, first : first + 3], t[first : first + 3]
    middle, off = k.mean(axis=1), t - t.mean()
    velocity = np.einsum("ijk,j->ik", k, off) / (off @ off)
    bend = float(np.linalg.norm(k - middle[:, None] - velocity[:, None] * off[:, None]) / np.linalg.norm(k))
    if bend > _MOST_BEND:
        return np.zeros((3, 3))
    delay = np.linalg.lstsq(velocity, velocity * t.mean() - middle, rcond=None)[0]
    delay = (delay + delay.T) / 2.0 - np.trace(delay) / 3.0 * np.eye(3)
    # Winding paths look as if they lagged by up to the time times the bend.
    return np.asarray(delay * (np.abs(delay).max() > max(_LEAST_LAG_MS, 1.5 * bend * t.mean())))


def _undone(trajectory: Trajectory, lag: NDArray[np.float64]) -> Trajectory:
    lags, axes = np.linalg.eigh(lag)
    turn = axes.astype(np.float32)
    undone = delayed(replace(trajectory, k_per_mm=trajectory.k_per_mm @ turn), [-float(each) for each in lags])
    return replace(undone, k_per_mm=undone.k_per_mm @ turn.T)
