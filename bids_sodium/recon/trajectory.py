"""Where k-space is sampled: spokes, cones, twisted projections, lattices, and how fast they leave the centre.

A centre-out readout is a speed law ``k(t)``, the distance from the centre of k-space, along a path: a straight spoke,
a cone or a twisted projection. Gradients are in mT/m, times in ms, k in cycles/mm; ``s = gamma_bar G`` is the speed in
cycles/mm/ms. Samples lie at the centres of their dwells, ``t_j = (j + 1/2) dwell``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Trajectory
from bids_sodium.core.errors import DataError

__all__ = [
    "cartesian",
    "cones_3d",
    "delayed",
    "density_adapted_radial",
    "directions",
    "from_description",
    "plain_radial",
    "twisted_projections",
]

_GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))
SCHEMES = ("golden", "spiral")


def directions(n_shots: int, scheme: str = "golden") -> NDArray[np.float64]:
    """Return unit vectors that share the sphere evenly.

    Both schemes take ``z = 1 - (2 i + 1) / n``. ``"golden"`` advances the azimuth by the golden angle
    ``pi (3 - sqrt 5)``, ``"spiral"`` follows one spiral from pole to pole, ``phi = sqrt(n pi) asin z``.

    Parameters
    ----------
    n_shots : int
        Number of directions.
    scheme : {"golden", "spiral"}
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
    Wong and Roos 1994, Magn Reson Med 32:778 (spiral).

    Examples
    --------
    >>> bool(abs(directions(100).mean(axis=0)).max() < 0.01)
    True
    """
    if n_shots < 1:
        raise DataError(f"a trajectory of {n_shots} shots", hint="give at least one")
    z = 1.0 - (2.0 * np.arange(n_shots) + 1.0) / n_shots
    if scheme == "golden":
        phi = _GOLDEN_ANGLE * np.arange(n_shots)
    elif scheme == "spiral":
        phi = np.sqrt(n_shots * np.pi) * np.arcsin(z)
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
    delay_ms: float = 0.0,
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
    scheme : {"golden", "spiral"}
        Order of the spokes, see `directions`.
    delay_ms : float
        Time by which the gradients lag the sampling, ``k(t - delay)``, in ms.

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
    t = _dwell_centres(n_samples, readout_ms, ramp_ms)
    k0 = _plateau_end(gradient_mt_m, readout_ms, voxel_mm, ramp_ms)
    k = _density_adapted_speed(t - delay_ms, k0, _speed(gradient_mt_m), ramp_ms)
    return _spokes(k, t, n_spokes, scheme)


def plain_radial(
    n_spokes: int,
    n_samples: int,
    *,
    readout_ms: float,
    voxel_mm: float,
    ramp_ms: float = 0.05,
    scheme: str = "golden",
    delay_ms: float = 0.0,
) -> Trajectory:
    """Return a 3D radial trajectory with the constant gradient that reaches ``k_max`` at the end of the readout.

    Parameters
    ----------
    n_spokes, n_samples, readout_ms, voxel_mm, ramp_ms, scheme, delay_ms
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
    t = _dwell_centres(n_samples, readout_ms, ramp_ms)
    _positive(voxel_mm=voxel_mm)
    k = 0.5 / voxel_mm / (readout_ms - ramp_ms / 2) * _ramped(t - delay_ms, ramp_ms)
    return _spokes(k, t, n_spokes, scheme)


def twisted_projections(
    n_shots: int,
    n_samples: int,
    *,
    gradient_mt_m: float,
    readout_ms: float,
    voxel_mm: float,
    ramp_ms: float = 0.05,
    scheme: str = "golden",
    delay_ms: float = 0.0,
) -> Trajectory:
    """Return twisted projections: the density-adapted speed law at a constant gradient amplitude.

    Beyond ``k0`` the surplus of the gradient turns the path round its cone by
    ``phi = [sqrt(u^2 - 1) - atan sqrt(u^2 - 1)] / (2 sin theta)``, ``u = (k / k0)^2``.

    Parameters
    ----------
    n_shots, n_samples, gradient_mt_m, readout_ms, voxel_mm, ramp_ms, scheme, delay_ms
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
    t = _dwell_centres(n_samples, readout_ms, ramp_ms)
    k0 = _plateau_end(gradient_mt_m, readout_ms, voxel_mm, ramp_ms)
    k = _density_adapted_speed(t - delay_ms, k0, _speed(gradient_mt_m), ramp_ms)
    start = directions(n_shots, scheme)
    sin_theta = np.hypot(start[:, 0], start[:, 1])
    azimuth = np.arctan2(start[:, 1], start[:, 0])
    tangent = np.sqrt(np.maximum((k / k0) ** 4 - 1.0, 0.0))
    turn = (tangent - np.arctan(tangent)) / 2.0
    phi = azimuth[:, None] + turn / np.maximum(sin_theta, 1e-3)[:, None]
    k_per_mm = _on_cones(np.broadcast_to(k, phi.shape), phi, sin_theta, start[:, 2])
    return Trajectory(k_per_mm, t, np.full(n_shots, 4.0 * np.pi / n_shots), "twisted")


def cones_3d(
    *,
    fov_mm: float,
    voxel_mm: float,
    readout_ms: float,
    gradient_mt_m: float = 6.0,
    n_samples: int | None = None,
    ramp_ms: float = 0.05,
    delay_ms: float = 0.0,
) -> Trajectory:
    """Return a 3D cones trajectory.

    Cones lie ``1 / FOV`` apart at ``k_max``. On a cone of polar angle theta with ``n`` interleaves, the path per
    radius is ``max(1, 2 pi k sin(theta) FOV / n)``, which keeps neighbouring turns ``1 / FOV`` apart; ``n`` is the
    smallest number for which the path ends within the readout at the gradient given, and the gradient is then lowered
    so that it ends with it.

    Parameters
    ----------
    fov_mm : float
        Alias-free diameter, in mm.
    voxel_mm : float
        Nominal voxel size, in mm.
    readout_ms : float
        Length of the readout, in ms.
    gradient_mt_m : float
        Largest gradient amplitude, in mT/m.
    n_samples : int, optional
        Samples in a readout; by default twice what ``fov_mm`` asks for along the path.
    ramp_ms : float
        Time from zero to the full gradient, in ms.
    delay_ms : float
        Time by which the gradients lag the sampling, in ms.

    Returns
    -------
    Trajectory
        One shot an interleaf; ``solid_angle_sr`` is the band of its cone, shared by its interleaves.

    Raises
    ------
    DataError
        If a straight line to ``k_max`` takes longer than the readout.

    References
    ----------
    Gurney 2006, Magn Reson Med 55:575.

    Examples
    --------
    >>> cones_3d(fov_mm=240.0, voxel_mm=3.0, readout_ms=20.0).n_shots
    1312
    """
    _positive(fov_mm=fov_mm, voxel_mm=voxel_mm, gradient_mt_m=gradient_mt_m)
    k_max = 0.5 / voxel_mm
    longest = _speed(gradient_mt_m) * (readout_ms - ramp_ms / 2)
    if longest < k_max:
        _too_weak(gradient_mt_m, readout_ms, longest, k_max)
    if n_samples is None:
        n_samples = 64 * int(np.ceil(2.0 * longest * fov_mm / 64))
    t = _dwell_centres(n_samples, readout_ms, ramp_ms)
    share = _ramped(t - delay_ms, ramp_ms) / (readout_ms - ramp_ms / 2)

    n_cones = int(np.ceil(np.pi * k_max * fov_mm))
    edges = np.cos(np.pi * np.arange(n_cones + 1) / n_cones)
    theta = np.pi * (np.arange(n_cones) + 0.5) / n_cones
    # The path 0.5 (c k_max^2 + 1 / c) of a cone whose path per radius is max(1, c k), solved for the tightest twist c.
    tightest = (longest + np.sqrt(longest**2 - k_max**2)) / k_max**2
    shots, solid_angle = [], []
    for cone in range(n_cones):
        sin_theta, cos_theta = np.sin(theta[cone]), np.cos(theta[cone])
        turns = 2.0 * np.pi * sin_theta * fov_mm
        n = int(np.ceil(turns / tightest))
        twist = max(turns / n, 1.0 / k_max)
        length = share * 0.5 * (twist * k_max**2 + 1.0 / twist)
        straight = 1.0 / twist
        k = np.where(length < straight, length, np.sqrt(np.maximum(2.0 * length - straight, 0.0) * straight))
        tangent = np.sqrt(np.maximum((twist * k) ** 2 - 1.0, 0.0))
        phi = (tangent - np.arctan(tangent)) / sin_theta
        start = _GOLDEN_ANGLE * cone + 2.0 * np.pi * np.arange(n) / n
        shots.append(
            _on_cones(
                np.broadcast_to(k, (n, n_samples)),
                phi + start[:, None],
                np.full(n, sin_theta),
                np.full(n, cos_theta),
            )
        )
        solid_angle.append(np.full(n, 2.0 * np.pi * (edges[cone] - edges[cone + 1]) / n))
    return Trajectory(np.concatenate(shots), t, np.concatenate(solid_angle), "cones")


def cartesian(shape: tuple[int, int, int], *, voxel_mm: float, readout_ms: float) -> Trajectory:
    """Return the lattice of a Cartesian acquisition that reads along the first axis.

    Parameters
    ----------
    shape : tuple of int
        Number of lattice points (nx, ny, nz); the point ``n // 2`` is the centre.
    voxel_mm : float
        Voxel size; the spacing is ``1 / (n voxel_mm)``.
    readout_ms : float
        Length of one readout, in ms.

    Returns
    -------
    Trajectory
        (ny nz, nx, 3).

    Examples
    --------
    >>> cartesian((8, 4, 2), voxel_mm=4.0, readout_ms=5.0).k_per_mm.shape
    (8, 8, 3)
    """
    _positive(voxel_mm=voxel_mm, readout_ms=readout_ms)
    x, y, z = ((np.arange(n) - n // 2) / (n * voxel_mm) for n in shape)
    lattice = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1).reshape(-1, shape[0], 3)[..., ::-1]
    return Trajectory(lattice.astype(np.float32), _dwell_centres(shape[0], readout_ms, 0.0), None, "cartesian")


def delayed(trajectory: Trajectory, delay_ms: float) -> Trajectory:
    """Return the trajectory of gradients that lag the sampling by ``delay_ms``: ``k(t - delay)``.

    Positions between samples are interpolated linearly; before the first sample the path leads to the centre.

    Parameters
    ----------
    trajectory : Trajectory
        Centre-out trajectory whose gradients start at time zero.
    delay_ms : float
        Delay, in ms; negative where the gradients lead.

    Returns
    -------
    Trajectory
        Same times and shape.

    Examples
    --------
    >>> spokes = plain_radial(4, 64, readout_ms=5.0, voxel_mm=4.0)
    >>> bool(delayed(spokes, 0.01).k_max_per_mm < spokes.k_max_per_mm)
    True
    """
    if delay_ms == 0.0:
        return trajectory
    t = trajectory.t_ms.astype(np.float64)
    nodes = np.concatenate([[min(0.0, t[0] - 1e-9)], t])
    path = np.concatenate([np.zeros((trajectory.n_shots, 1, 3), np.float32), trajectory.k_per_mm], axis=1)
    at = t - delay_ms
    left = np.clip(np.searchsorted(nodes, at) - 1, 0, nodes.size - 2)
    share = np.maximum((at - nodes[left]) / (nodes[left + 1] - nodes[left]), 0.0).astype(np.float32)[:, None]
    moved = path[:, left] * (1.0 - share) + path[:, left + 1] * share
    return replace(trajectory, k_per_mm=np.where(at[:, None] <= 0.0, np.float32(0.0), moved))


_TYPES = {
    "da-3dpr": "radial",
    "density-adapted": "radial",
    "density_adapted_radial": "radial",
    "3dpr": "plain",
    "radial": "plain",
    "plain_radial": "plain",
    "tpi": "twisted",
    "twisted": "twisted",
    "twisted_projections": "twisted",
    "cones": "cones",
    "3d-cones": "cones",
    "cones_3d": "cones",
}
_REQUIRED = {
    "radial": ("Spokes", "Samples", "MaxGradient", "ReadoutTime", "NominalVoxelSize"),
    "plain": ("Spokes", "Samples", "ReadoutTime", "NominalVoxelSize"),
    "twisted": ("Spokes", "Samples", "MaxGradient", "ReadoutTime", "NominalVoxelSize"),
    "cones": ("FieldOfView", "ReadoutTime", "NominalVoxelSize"),
}


def from_description(description: Mapping[str, Any]) -> Trajectory:
    """Return the trajectory that a sidecar's ``NonCartesianTrajectory`` names.

    Parameters
    ----------
    description : mapping
        ``Type`` (``DA-3DPR``, ``3DPR``, ``TPI`` or ``Cones``), ``Spokes``, ``Samples``, ``MaxGradient`` in mT/m,
        ``ReadoutTime`` in s, ``NominalVoxelSize`` in mm, ``FieldOfView`` in mm (cones), and optionally ``RampTime``
        and ``Delay`` in s and ``SpokeOrder`` (``golden`` or ``spiral``).

    Returns
    -------
    Trajectory
        As named.

    Raises
    ------
    DataError
        If the type is unknown, a number is missing, or the order of the spokes is not stated.

    Examples
    --------
    >>> from_description({"Type": "DA-3DPR", "Spokes": 10, "Samples": 64, "MaxGradient": 4.6, "ReadoutTime": 0.02,
    ...                   "NominalVoxelSize": 4.0, "SpokeOrder": "golden"}).n_shots
    10
    """
    name = str(description.get("Type", ""))
    kind = _TYPES.get(name.lower())
    where = "NonCartesianTrajectory"
    if kind is None:
        raise DataError(
            f"unknown trajectory type '{name}'", where=where, hint="use DA-3DPR, 3DPR, TPI or Cones as Type"
        )
    required = _REQUIRED[kind] if kind == "cones" else (*_REQUIRED[kind], "SpokeOrder")
    missing = [key for key in required if key not in description]
    if missing:
        raise DataError(
            f"{', '.join(missing)} of a {name} trajectory not stated",
            where=where,
            hint="add it to the sidecar, or export the trajectory with the data",
        )
    try:
        times = {
            "readout_ms": 1e3 * float(description["ReadoutTime"]),
            "ramp_ms": 1e3 * float(description.get("RampTime", 5e-5)),
            "delay_ms": 1e3 * float(description.get("Delay", 0.0)),
            "voxel_mm": float(description["NominalVoxelSize"]),
        }
        if kind == "cones":
            samples = int(description["Samples"]) if "Samples" in description else None
            gradient = float(description.get("MaxGradient", 6.0))
            fov_mm = float(description["FieldOfView"])
            return cones_3d(fov_mm=fov_mm, gradient_mt_m=gradient, n_samples=samples, **times)
        shots, samples, order = int(description["Spokes"]), int(description["Samples"]), str(description["SpokeOrder"])
        if kind == "plain":
            return plain_radial(shots, samples, scheme=order, **times)
        make = density_adapted_radial if kind == "radial" else twisted_projections
        return make(shots, samples, gradient_mt_m=float(description["MaxGradient"]), scheme=order, **times)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a value is not a number ({error})", where=where, hint="write plain numbers in mT/m, s and mm"
        ) from error


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise DataError(f"{name} is {value:g}", hint="it must be a positive number")


def _speed(gradient_mt_m: float) -> float:
    """Return cycles/mm/ms: MHz/T x mT/m = cycles/mm/s, and 1000 of these are one cycle/mm/ms."""
    return GAMMA_BAR_MHZ_T * gradient_mt_m / 1000.0


def _dwell_centres(n_samples: int, readout_ms: float, ramp_ms: float) -> NDArray[np.float64]:
    _positive(readout_ms=readout_ms)
    if n_samples < 2:
        raise DataError(f"a readout of {n_samples} samples", hint="give at least two")
    if not 0.0 <= ramp_ms < readout_ms:
        raise DataError(f"a ramp of {ramp_ms:g} ms in a readout of {readout_ms:g} ms", hint="times are in ms")
    return np.asarray((np.arange(n_samples) + 0.5) * (readout_ms / n_samples), dtype=np.float64)


def _ramped(t: NDArray[np.float64], ramp_ms: float) -> NDArray[np.float64]:
    """Return the integral of a unit gradient that ramps up over ``ramp_ms``."""
    t = np.maximum(t, 0.0)
    if ramp_ms == 0.0:
        return t
    return np.where(t < ramp_ms, t**2 / (2.0 * ramp_ms), t - ramp_ms / 2.0)


def _too_weak(gradient_mt_m: float, readout_ms: float, reach: float, k_max: float) -> None:
    raise DataError(
        f"{gradient_mt_m:g} mT/m for {readout_ms:g} ms reaches {reach:.4g} cycles/mm, {k_max:.4g} are needed",
        hint="check the units: gradient in mT/m, readout in ms, voxel in mm",
    )


def _plateau_end(gradient_mt_m: float, readout_ms: float, voxel_mm: float, ramp_ms: float) -> float:
    """Solve ``k0^3 + 3 s k0^2 (T - k0 / s - tr / 2) = k_max^3`` for k0 by bisection."""
    _positive(gradient_mt_m=gradient_mt_m, voxel_mm=voxel_mm)
    s, k_max = _speed(gradient_mt_m), 0.5 / voxel_mm
    reach = s * (readout_ms - ramp_ms / 2.0)
    if reach < k_max:
        _too_weak(gradient_mt_m, readout_ms, reach, k_max)
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
    return np.where(t < t0, s * _ramped(t, ramp_ms), np.cbrt(3.0 * s * k0**2 * np.maximum(t - t0, 0.0) + k0**3))


def _spokes(k: NDArray[np.float64], t: NDArray[np.float64], n_spokes: int, scheme: str) -> Trajectory:
    spokes = directions(n_spokes, scheme)[:, None, :] * k[None, :, None]
    return Trajectory(spokes.astype(np.float32), t, np.full(n_spokes, 4.0 * np.pi / n_spokes), "radial")


def _on_cones(
    k: NDArray[np.float64], phi: NDArray[np.float64], sin_theta: NDArray[np.float64], cos_theta: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return positions (shots, samples, 3) at distance k and azimuth phi on the cone of each shot."""
    rho = k * sin_theta[:, None]
    return np.stack([rho * np.cos(phi), rho * np.sin(phi), k * cos_theta[:, None]], axis=-1).astype(np.float32)
