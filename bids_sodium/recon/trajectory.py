"""Where k-space is sampled: spokes, cones, twisted projections, FLORET, lattices, and how fast they leave the centre.

A centre-out readout is a speed law ``k(t)``, the distance from the centre of k-space, along a path: a straight spoke,
a cone or a twisted projection. Gradients are in mT/m, times in ms, k in cycles/mm; ``s = gamma_bar G`` is the speed in
cycles/mm/ms. Sample ``j`` is the signal at ``t_j = (j + 1/2) dwell``, the centre of its dwell, unless the scanner's
convention is its start, ``j dwell``. Gradients that lag the sampling by a delay give ``k(t_j - delay)``; each axis may
have a delay of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bids_sodium.core.data import Trajectory
from bids_sodium.core.errors import DataError
from bids_sodium.recon._cones import cones_3d, floret
from bids_sodium.recon._readout import Delay, axes_delay, positive
from bids_sodium.recon._spokes import SCHEMES, density_adapted_radial, directions, plain_radial, twisted_projections

__all__ = [
    "SCHEMES",
    "cartesian",
    "cartesian_echoes",
    "cones_3d",
    "delayed",
    "density_adapted_radial",
    "directions",
    "floret",
    "from_description",
    "plain_radial",
    "twisted_projections",
]


def cartesian(
    shape: tuple[int, int, int], *, voxel_mm: float, readout_ms: float, polarity: int = 1, delay_ms: Delay = 0.0
) -> Trajectory:
    """Return the lattice of a Cartesian acquisition that reads along the first axis.

    Parameters
    ----------
    shape : tuple of int
        Number of lattice points (nx, ny, nz); the point ``n // 2`` is the centre.
    voxel_mm : float
        Voxel size; the spacing is ``1 / (n voxel_mm)``.
    readout_ms : float
        Length of one readout, in ms.
    polarity : {1, -1}
        Sign of the readout gradient: whether samples run towards positive or negative ``k``.
    delay_ms : float or three floats
        Time by which the gradients lag the sampling, in ms; here that of the first axis alone matters.

    Returns
    -------
    Trajectory
        (ny nz, nx, 3), the second axis of the lattice fastest. Times count from the centre of k-space, where the echo
        time lies, so that the first ones are negative and the convention of the dwell does not matter.

    Raises
    ------
    DataError
        If a number is not positive, or the polarity is neither 1 nor -1.

    Examples
    --------
    >>> lattice = cartesian((8, 4, 2), voxel_mm=4.0, readout_ms=8.0)
    >>> lattice.k_per_mm.shape, lattice.t_ms[:3].tolist()
    ((8, 8, 3), [-4.0, -3.0, -2.0])
    """
    positive(voxel_mm=voxel_mm, readout_ms=readout_ms)
    if min(shape) < 1 or shape[0] < 2:
        raise DataError(f"a lattice of {shape} points", hint="give at least two along the readout, one along others")
    if polarity not in {1, -1}:
        raise DataError(f"a readout of polarity {polarity}", hint="give 1 or -1")
    dwell_ms = readout_ms / shape[0]
    t = polarity * (np.arange(shape[0]) - shape[0] // 2)[::polarity] * dwell_ms
    read = polarity * (t - axes_delay(delay_ms)[0]) / dwell_ms / (shape[0] * voxel_mm)
    y, z = ((np.arange(n) - n // 2) / (n * voxel_mm) for n in shape[1:])
    lattice = np.stack(np.meshgrid(z, y, read, indexing="ij"), axis=-1).reshape(-1, shape[0], 3)[..., ::-1]
    return Trajectory(lattice.astype(np.float32), t, None, "cartesian")


def cartesian_echoes(
    shape: tuple[int, int, int],
    *,
    n_echoes: int,
    voxel_mm: float,
    readout_ms: float,
    bipolar: bool = False,
    delay_ms: Delay = 0.0,
) -> tuple[Trajectory, ...]:
    """Return one trajectory for each echo of a Cartesian multi-echo acquisition.

    Every second readout of a bipolar train runs backwards; a delay then shifts its samples the other way. Times count
    from each echo's own centre of k-space, its echo time.

    Parameters
    ----------
    shape, voxel_mm, readout_ms, delay_ms
        As in `cartesian`.
    n_echoes : int
        Number of echoes.
    bipolar : bool
        Whether gradients of alternating sign read, without rewinding in between.

    Returns
    -------
    tuple of Trajectory
        One an echo.

    Raises
    ------
    DataError
        If there is no echo, or as from `cartesian`.

    Examples
    --------
    >>> first, second = cartesian_echoes((8, 4, 2), n_echoes=2, voxel_mm=4.0, readout_ms=5.0, bipolar=True)
    >>> bool((first.k_per_mm[:, ::-1] == second.k_per_mm).all())
    True
    """
    if n_echoes < 1:
        raise DataError(f"{n_echoes} echoes", hint="give at least one")
    there = cartesian(shape, voxel_mm=voxel_mm, readout_ms=readout_ms, delay_ms=delay_ms)
    back = cartesian(shape, voxel_mm=voxel_mm, readout_ms=readout_ms, delay_ms=delay_ms, polarity=-1)
    return tuple(back if bipolar and echo % 2 else there for echo in range(n_echoes))


def delayed(trajectory: Trajectory, delay_ms: Delay) -> Trajectory:
    """Return the trajectory of gradients that lag the sampling by ``delay_ms``: ``k(t - delay)``.

    Positions between samples are interpolated by cubics with the slopes of central differences. Before the first sample
    the path of readouts that begin at the centre leads to the centre at time zero; beyond other ends it is straight.

    Parameters
    ----------
    trajectory : Trajectory
        Any trajectory; where it begins at the centre, gradients start at time zero.
    delay_ms : float or three floats
        Delay of all axes or of each axis of the grid, in ms; negative where the gradients lead.

    Returns
    -------
    Trajectory
        Same times and shape.

    Raises
    ------
    DataError
        If the delay is neither one nor three finite numbers.

    Examples
    --------
    >>> spokes = plain_radial(4, 64, readout_ms=5.0, voxel_mm=4.0)
    >>> bool(delayed(spokes, 0.01).k_max_per_mm < spokes.k_max_per_mm)
    True
    """
    delays = axes_delay(delay_ms)
    if not any(delays):
        return trajectory
    t, k = trajectory.t_ms.astype(np.float64), trajectory.k_per_mm
    first = np.linalg.norm(k[:, 0].astype(np.float64), axis=-1).max()
    from_centre = trajectory.kind != "cartesian" and first < 0.2 * trajectory.k_max_per_mm
    lead = from_centre and t[0] > 0.0
    nodes = np.concatenate([[0.0], t]) if lead else t
    moved = np.empty(k.shape, dtype=np.float32)
    for axis, delay in enumerate(delays):
        path = np.pad(k[..., axis], ((0, 0), (1, 0))) if lead else k[..., axis]
        slope = np.gradient(path, nodes, axis=1)
        within = np.clip(t - delay, nodes[0], nodes[-1])
        beyond = t - delay - within
        left = np.clip(np.searchsorted(nodes, within) - 1, 0, nodes.size - 2)
        step = nodes[left + 1] - nodes[left]
        u = (within - nodes[left]) / step
        moved[..., axis] = (
            path[:, left] * ((1.0 + 2.0 * u) * (1.0 - u) ** 2)
            + path[:, left + 1] * (u**2 * (3.0 - 2.0 * u))
            + slope[:, left] * (u * (1.0 - u) ** 2 * step + beyond * (beyond < 0.0))
            + slope[:, left + 1] * (u**2 * (u - 1.0) * step + beyond * (beyond > 0.0))
        )
        if from_centre:
            moved[:, t - delay <= 0.0, axis] = 0.0
    return replace(trajectory, k_per_mm=moved)


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
    "floret": "floret",
}
_REQUIRED = {
    "radial": ("Spokes", "Samples", "MaxGradient", "ReadoutTime", "NominalVoxelSize", "SpokeOrder"),
    "plain": ("Spokes", "Samples", "ReadoutTime", "NominalVoxelSize", "SpokeOrder"),
    "twisted": ("Spokes", "Samples", "MaxGradient", "ReadoutTime", "NominalVoxelSize", "SpokeOrder"),
    "cones": ("FieldOfView", "ReadoutTime", "NominalVoxelSize"),
    "floret": ("FieldOfView", "ReadoutTime", "NominalVoxelSize"),
}


def from_description(description: Mapping[str, Any]) -> Trajectory:
    """Return the trajectory that a sidecar's ``NonCartesianTrajectory`` names.

    Parameters
    ----------
    description : mapping
        ``Type`` (``DA-3DPR``, ``3DPR``, ``TPI``, ``Cones`` or ``FLORET``), ``Spokes``, ``Samples``,
        ``MaxGradient`` in mT/m, ``ReadoutTime`` in s, ``NominalVoxelSize`` in mm, ``SpokeOrder`` (see `directions`),
        ``FieldOfView`` in mm (cones, FLORET), ``Hubs`` and ``MaxLatitude`` in degrees (FLORET), and optionally
        ``RampTime`` in s, ``Delay`` in s (one number, or one for each axis of the grid) and ``DwellConvention``
        (``centre`` or ``start``).

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
            f"unknown trajectory type '{name}'", where=where, hint="use DA-3DPR, 3DPR, TPI, Cones or FLORET as Type"
        )
    missing = [key for key in _REQUIRED[kind] if key not in description]
    if missing:
        raise DataError(
            f"{', '.join(missing)} of a {name} trajectory not stated",
            where=where,
            hint="add it to the sidecar, or export the trajectory with the data",
        )
    try:
        return _described(kind, description)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a value is not a number ({error})", where=where, hint="write plain numbers in mT/m, s and mm"
        ) from error


def _described(kind: str, description: Mapping[str, Any]) -> Trajectory:
    delay = description.get("Delay", 0.0)
    common: dict[str, Any] = {
        "readout_ms": 1e3 * float(description["ReadoutTime"]),
        "ramp_ms": 1e3 * float(description.get("RampTime", 5e-5)),
        "voxel_mm": float(description["NominalVoxelSize"]),
        "delay_ms": [1e3 * float(axis) for axis in delay] if isinstance(delay, (list, tuple)) else 1e3 * float(delay),
        "dwell": str(description.get("DwellConvention", "centre")),
    }
    if kind in {"cones", "floret"}:
        common |= {
            "fov_mm": float(description["FieldOfView"]),
            "gradient_mt_m": float(description.get("MaxGradient", 6.0)),
            "n_samples": int(description["Samples"]) if "Samples" in description else None,
        }
        if kind == "cones":
            return cones_3d(**common)
        shots = int(description["Spokes"]) if "Spokes" in description else None
        latitude = float(description["MaxLatitude"]) if "MaxLatitude" in description else None
        return floret(hubs=int(description.get("Hubs", 3)), alpha0_deg=latitude, n_shots=shots, **common)
    shots, samples = int(description["Spokes"]), int(description["Samples"])
    common["scheme"] = str(description["SpokeOrder"])
    if kind == "plain":
        return plain_radial(shots, samples, **common)
    make = density_adapted_radial if kind == "radial" else twisted_projections
    return make(shots, samples, gradient_mt_m=float(description["MaxGradient"]), **common)
