"""Straight and twisted spokes: how they share the sphere, and how fast they leave the centre of k-space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Trajectory
from bids_sodium.core.errors import DataError
from bids_sodium.recon._readout import (
    GOLDEN_ANGLE,
    Delay,
    along_axes,
    on_cones,
    positive,
    ramped,
    sample_times,
    speed_of,
    too_weak,
)

__all__ = ["SCHEMES", "density_adapted_radial", "directions", "plain_radial", "twisted_projections"]

SCHEMES = ("golden", "spiral", "golden-means", "rings")
_GOLDEN_MEAN = 0.6823278038280193  # the real root of x^3 + x = 1; its square is the other mean


def directions(n_shots: int, scheme: str = "golden") -> NDArray[np.float64]:
    """Return unit vectors that share the sphere evenly, along the axes of the image grid.

    ``"golden"`` and ``"spiral"`` take ``z = 1 - (2 i + 1) / n``; the first advances the azimuth by the golden angle
    ``pi (3 - sqrt 5)``, the second follows one spiral from pole to pole, ``phi = sqrt(n pi) asin z``.
    ``"golden-means"`` takes ``z = 2 {i p^2} - 1`` and ``phi = 2 pi {i p}`` with ``p = 0.6823`` and ``{}`` the
    fractional part, so that every run of successive spokes shares the sphere evenly. ``"rings"`` lays rings at equal
    steps of the polar angle, with spokes on each in proportion to its circumference.

    Parameters
    ----------
    n_shots : int
        Number of directions.
    scheme : {"golden", "spiral", "golden-means", "rings"}
        Name of the order.

    Returns
    -------
    (n_shots, 3) ndarray
        Unit vectors.

    Raises
    ------
    DataError
        If the scheme is unknown or there are no shots.

    References
    ----------
    Wong and Roos 1994, Magn Reson Med 32:778 (spiral); Chan 2009, Magn Reson Med 61:354 (golden means; here over the
    whole sphere, as readouts that begin at the centre need it); Boada 1997, Magn Reson Med 37:706 (rings).

    Examples
    --------
    >>> bool(abs(directions(100).mean(axis=0)).max() < 0.01)
    True
    """
    if n_shots < 1:
        raise DataError(f"a trajectory of {n_shots} shots", hint="give at least one")
    i = np.arange(n_shots)
    z = 1.0 - (2.0 * i + 1.0) / n_shots
    if scheme == "golden":
        phi = GOLDEN_ANGLE * i
    elif scheme == "spiral":
        phi = np.sqrt(n_shots * np.pi) * np.arcsin(z)
    elif scheme == "golden-means":
        z = 2.0 * np.mod(i * _GOLDEN_MEAN**2, 1.0) - 1.0
        phi = 2.0 * np.pi * np.mod(i * _GOLDEN_MEAN, 1.0)
    elif scheme == "rings":
        count = _on_rings(n_shots)
        z = np.repeat(np.cos(np.pi * (np.arange(count.size) + 0.5) / count.size), count)
        first = np.repeat(np.cumsum(count) - count, count)
        phi = 2.0 * np.pi * (i - first + 0.5) / np.repeat(count, count)
    else:
        raise DataError(f"unknown order of spokes '{scheme}'", hint=f"choose one of {', '.join(SCHEMES)}")
    radius = np.sqrt(1.0 - z**2)
    return np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=-1)


def density_adapted_radial(
    n_spokes: int,
    n_samples: int,
    *,
    gradient_mt_m: float,
    readout_ms: float,
    voxel_mm: float,
    ramp_ms: float = 0.05,
    scheme: str = "golden",
    delay_ms: Delay = 0.0,
    dwell: str = "centre",
) -> Trajectory:
    """Return a density-adapted 3D radial trajectory.

    After a plateau at the full gradient to ``k0 = k(t0)``, ``k(t) = [3 s k0^2 (t - t0) + k0^3]^(1/3)`` samples every
    shell of k-space equally densely.

    Parameters
    ----------
    n_spokes, n_samples : int
        Number of readouts and of samples in each.
    gradient_mt_m : float
        Amplitude of the plateau, in mT/m.
    readout_ms : float
        Length of the readout, in ms.
    voxel_mm : float
        Nominal voxel size; ``k_max = 1 / (2 voxel_mm)`` is reached at the end of the readout.
    ramp_ms : float
        Time from zero to the full gradient, in ms.
    scheme : {"golden", "spiral", "golden-means", "rings"}
        Order of the spokes, see `directions`.
    delay_ms : float or three floats
        Time by which the gradients lag the sampling, ``k(t - delay)``, in ms; of all axes or of each axis of the grid.
    dwell : {"centre", "start"}
        Whether a sample is the signal at the centre or at the start of its dwell.

    Returns
    -------
    Trajectory
        (n_spokes, n_samples, 3).

    Raises
    ------
    DataError
        If the gradient cannot reach ``k_max``, or a number is not positive.

    References
    ----------
    Nagel 2009, Magn Reson Med 62:1565.

    Examples
    --------
    >>> spokes = density_adapted_radial(6000, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0)
    >>> round(spokes.k_max_per_mm, 4)
    0.1249
    """
    t = sample_times(n_samples, readout_ms, ramp_ms, dwell)
    k0 = _plateau_end(gradient_mt_m, readout_ms, voxel_mm, ramp_ms)
    s = speed_of(gradient_mt_m)
    return _spokes(lambda at: _density_adapted_speed(at, k0, s, ramp_ms), t, delay_ms, n_spokes, scheme)


def plain_radial(
    n_spokes: int,
    n_samples: int,
    *,
    readout_ms: float,
    voxel_mm: float,
    ramp_ms: float = 0.05,
    scheme: str = "golden",
    delay_ms: Delay = 0.0,
    dwell: str = "centre",
) -> Trajectory:
    """Return a 3D radial trajectory with the constant gradient that reaches ``k_max`` at the end of the readout.

    Parameters
    ----------
    n_spokes, n_samples, readout_ms, voxel_mm, ramp_ms, scheme, delay_ms, dwell
        As in `density_adapted_radial`.

    Returns
    -------
    Trajectory
        (n_spokes, n_samples, 3).

    Examples
    --------
    >>> plain_radial(10, 64, readout_ms=5.0, voxel_mm=4.0).kind
    'radial'
    """
    t = sample_times(n_samples, readout_ms, ramp_ms, dwell)
    positive(voxel_mm=voxel_mm)
    speed = 0.5 / voxel_mm / (readout_ms - ramp_ms / 2)
    return _spokes(lambda at: speed * ramped(at, ramp_ms), t, delay_ms, n_spokes, scheme)


def twisted_projections(
    n_shots: int,
    n_samples: int,
    *,
    gradient_mt_m: float,
    readout_ms: float,
    voxel_mm: float,
    ramp_ms: float = 0.05,
    scheme: str = "golden",
    delay_ms: Delay = 0.0,
    dwell: str = "centre",
) -> Trajectory:
    """Return twisted projections: the density-adapted speed law at a constant gradient amplitude.

    Beyond ``k0`` the surplus of the gradient turns the path round its cone by
    ``phi = [sqrt(u^2 - 1) - atan sqrt(u^2 - 1)] / (2 sin theta)``, ``u = (k / k0)^2``.

    Parameters
    ----------
    n_shots, n_samples, gradient_mt_m, readout_ms, voxel_mm, ramp_ms, scheme, delay_ms, dwell
        As in `density_adapted_radial`.

    Returns
    -------
    Trajectory
        (n_shots, n_samples, 3).

    References
    ----------
    Boada 1997, Magn Reson Med 37:706.

    Examples
    --------
    >>> twisted_projections(10, 64, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0).kind
    'twisted'
    """
    t = sample_times(n_samples, readout_ms, ramp_ms, dwell)
    k0 = _plateau_end(gradient_mt_m, readout_ms, voxel_mm, ramp_ms)
    start = directions(n_shots, scheme)
    sin_theta = np.hypot(start[:, 0], start[:, 1])
    azimuth = np.arctan2(start[:, 1], start[:, 0])

    def path(at: NDArray[np.float64]) -> NDArray[np.float32]:
        k = _density_adapted_speed(at, k0, speed_of(gradient_mt_m), ramp_ms)
        phi = azimuth[:, None] + _turn(k / k0)[None] / np.maximum(sin_theta, 1e-3)[:, None]
        return on_cones(k, phi, sin_theta, start[:, 2])

    return Trajectory(along_axes(path, t, delay_ms), t, _shares(n_shots, scheme), "twisted")


def _shares(n_shots: int, scheme: str) -> NDArray[np.float64] | None:
    """Return the solid angle of each direction in sr, or None where only its Voronoi cell tells."""
    if scheme == "golden-means":
        return None
    if scheme == "rings":
        count = _on_rings(n_shots)
        edges = np.cos(np.pi * np.arange(count.size + 1) / count.size)
        return np.asarray(np.repeat(2.0 * np.pi * -np.diff(edges) / count, count))
    return np.full(n_shots, 4.0 * np.pi / n_shots)


def _on_rings(n_shots: int) -> NDArray[np.int64]:
    """Return how many spokes lie on each ring; rings are as far apart as the spokes on them."""
    n_rings = max(1, round(np.sqrt(np.pi * n_shots) / 2.0))
    up_to = n_shots * (1.0 - np.cos(np.pi * np.arange(n_rings + 1) / n_rings)) / 2.0
    return np.asarray(np.diff(np.rint(up_to)), dtype=np.int64)


def _plateau_end(gradient_mt_m: float, readout_ms: float, voxel_mm: float, ramp_ms: float) -> float:
    """Solve ``k0^3 + 3 s k0^2 (T - k0 / s - tr / 2) = k_max^3`` for k0 by bisection."""
    positive(gradient_mt_m=gradient_mt_m, voxel_mm=voxel_mm)
    s, k_max = speed_of(gradient_mt_m), 0.5 / voxel_mm
    reach = s * (readout_ms - ramp_ms / 2.0)
    if reach < k_max:
        too_weak(gradient_mt_m, readout_ms, reach, k_max)
    low, high = 0.0, reach
    for _ in range(200):
        k0 = (low + high) / 2.0
        low, high = (k0, high) if 3.0 * reach * k0**2 - 2.0 * k0**3 < k_max**3 else (low, k0)
    if k0 < s * ramp_ms / 2.0:
        raise DataError(
            f"the readout would have to slow down within its ramp of {ramp_ms:g} ms",
            hint="lower the gradient or the ramp time",
        )
    return k0


def _density_adapted_speed(t: NDArray[np.float64], k0: float, s: float, ramp_ms: float) -> NDArray[np.float64]:
    t0 = k0 / s + ramp_ms / 2.0
    return np.where(t < t0, s * ramped(t, ramp_ms), np.cbrt(3.0 * s * k0**2 * np.maximum(t - t0, 0.0) + k0**3))


def _turn(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the azimuth of a twisted projection at ``u = k / k0``, times the sine of its polar angle."""
    tangent = np.sqrt(np.maximum(u**4 - 1.0, 0.0))
    return np.asarray((tangent - np.arctan(tangent)) / 2.0)


def _spokes(
    distance: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    t: NDArray[np.float64],
    delay_ms: Delay,
    n_spokes: int,
    scheme: str,
) -> Trajectory:
    ends = directions(n_spokes, scheme)[:, None, :]
    k_per_mm = along_axes(lambda at: ends * distance(at)[None, :, None], t, delay_ms)
    return Trajectory(k_per_mm, t, _shares(n_spokes, scheme), "radial")
