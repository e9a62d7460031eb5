"""Readouts that wind round cones: 3D cones and FLORET."""

from __future__ import annotations

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

__all__ = ["cones_3d", "floret"]

_LEAST_ALPHA0_DEG = {1: 90.0, 2: 45.0, 3: float(np.rad2deg(np.arcsin(np.sqrt(1.0 / 3.0))))}


def cones_3d(
    *,
    fov_mm: float,
    voxel_mm: float,
    readout_ms: float,
    gradient_mt_m: float = 6.0,
    n_samples: int | None = None,
    ramp_ms: float = 0.05,
    delay_ms: Delay = 0.0,
    dwell: str = "centre",
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
    ramp_ms, delay_ms, dwell
        As in `density_adapted_radial`.

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
    k_max, longest, n_samples = _longest(fov_mm, voxel_mm, gradient_mt_m, readout_ms, ramp_ms, n_samples)
    t = sample_times(n_samples, readout_ms, ramp_ms, dwell)
    n_cones = int(np.ceil(np.pi * k_max * fov_mm))
    edges = np.cos(np.pi * np.arange(n_cones + 1) / n_cones)
    theta = np.pi * (np.arange(n_cones) + 0.5) / n_cones
    # The path 0.5 (c k_max^2 + 1 / c) of a cone whose path per radius is max(1, c k), solved for the tightest twist c.
    tightest = (longest + np.sqrt(longest**2 - k_max**2)) / k_max**2
    turns = 2.0 * np.pi * np.sin(theta) * fov_mm
    count = np.ceil(turns / tightest).astype(int)
    twists = np.maximum(turns / count, 1.0 / k_max)

    def path(at: NDArray[np.float64]) -> NDArray[np.float32]:
        share = ramped(at, ramp_ms) / (readout_ms - ramp_ms / 2)
        shots = []
        for cone, (n, twist) in enumerate(zip(count, twists, strict=True)):
            length, straight = share * 0.5 * (twist * k_max**2 + 1.0 / twist), 1.0 / twist
            k = np.where(length < straight, length, np.sqrt(np.maximum(2.0 * length - straight, 0.0) * straight))
            tangent = np.sqrt(np.maximum((twist * k) ** 2 - 1.0, 0.0))
            start = GOLDEN_ANGLE * cone + 2.0 * np.pi * np.arange(n) / n
            phi = (tangent - np.arctan(tangent)) / np.sin(theta[cone]) + start[:, None]
            shots.append(on_cones(k, phi, np.full(n, np.sin(theta[cone])), np.full(n, np.cos(theta[cone]))))
        return np.concatenate(shots)

    solid_angle = np.repeat(2.0 * np.pi * -np.diff(edges) / count, count)
    return Trajectory(along_axes(path, t, delay_ms), t, solid_angle, "cones")


def floret(
    *,
    fov_mm: float,
    voxel_mm: float,
    readout_ms: float,
    gradient_mt_m: float = 6.0,
    hubs: int = 3,
    alpha0_deg: float | None = None,
    n_shots: int | None = None,
    n_samples: int | None = None,
    ramp_ms: float = 0.05,
    delay_ms: Delay = 0.0,
    dwell: str = "centre",
) -> Trajectory:
    """Return a FLORET trajectory: Fermat spirals folded onto stacked cones, in one, two or three orthogonal hubs.

    The shots of a hub lie on cones of latitude ``alpha`` between ``-alpha0`` and ``alpha0``, equally apart, and start a
    golden angle apart. All turn round the hub's axis by ``phi = c k^2 / 2``. With ``n`` shots in a hub,
    ``c = 4 pi alpha0 FOV^2 / n`` makes the turns as dense as a field of view asks for, everywhere in the hub; ``n`` is
    the smallest number for which the path on the equator, ``int sqrt(1 + c^2 k^4) dk``, ends within the readout at the
    gradient given, and the gradient is then lowered so that it ends with it.

    Parameters
    ----------
    fov_mm, voxel_mm, readout_ms, gradient_mt_m
        As in `cones_3d`.
    hubs : {1, 2, 3}
        Hubs about the third, the first and the second axis of the grid, in this order.
    alpha0_deg : float, optional
        Largest latitude, in degrees; by default 90 for one hub and 45 for more, where they cover k-space twice.
    n_shots : int, optional
        Shots of all hubs together; by default as few as the gradient allows.
    n_samples, ramp_ms, delay_ms, dwell
        As in `cones_3d`.

    Returns
    -------
    Trajectory
        Hub after hub; its solid angles are not stated, because hubs overlap.

    Raises
    ------
    DataError
        If the hubs leave out directions, shots do not share out among them, or the gradient is too weak.

    References
    ----------
    Pipe 2011, Magn Reson Med 66:1303.

    Examples
    --------
    >>> floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0).n_shots
    840
    """
    if hubs not in _LEAST_ALPHA0_DEG:
        raise DataError(f"{hubs} hubs", hint="give one, two or three")
    alpha0_deg = (90.0 if hubs == 1 else 45.0) if alpha0_deg is None else float(alpha0_deg)
    if not _LEAST_ALPHA0_DEG[hubs] - 1e-6 <= alpha0_deg <= 90.0:
        raise DataError(
            f"{hubs} hub(s) of cones up to {alpha0_deg:g} degrees leave out directions",
            hint=f"give {_LEAST_ALPHA0_DEG[hubs]:.4g} to 90 degrees",
        )
    k_max, longest, n_samples = _longest(fov_mm, voxel_mm, gradient_mt_m, readout_ms, ramp_ms, n_samples)
    t = sample_times(n_samples, readout_ms, ramp_ms, dwell)
    alpha0 = np.deg2rad(alpha0_deg)
    fine = np.linspace(0.0, 1.02 * k_max, 4096)

    def length(n: int) -> NDArray[np.float64]:
        """Path on the equator from the centre to each k."""
        steepness = np.sqrt(1.0 + (4.0 * np.pi * alpha0 * fov_mm**2 / n) ** 2 * fine**4)
        return np.concatenate([[0.0], np.cumsum((steepness[1:] + steepness[:-1]) / 2.0 * np.diff(fine))])

    def reach(n: int) -> float:
        return float(np.interp(k_max, fine, length(n)))

    if n_shots is None:
        few, many = 0, 1
        while reach(many) > longest:
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if reach(middle) <= longest else (middle, many)
        per_hub = many
    elif n_shots < hubs or n_shots % hubs:
        raise DataError(f"{n_shots} shots in {hubs} hubs", hint="give a multiple of the number of hubs")
    else:
        per_hub = n_shots // hubs
    if reach(per_hub) > longest:
        too_weak(gradient_mt_m, readout_ms, longest, reach(per_hub))
    along, full = length(per_hub), reach(per_hub)
    alpha = alpha0 * ((2.0 * np.arange(per_hub) + 1.0) / per_hub - 1.0)
    start = GOLDEN_ANGLE * np.arange(per_hub)
    twist = 4.0 * np.pi * alpha0 * fov_mm**2 / per_hub

    def path(at: NDArray[np.float64]) -> NDArray[np.float32]:
        k = np.interp(ramped(at, ramp_ms) / (readout_ms - ramp_ms / 2) * full, along, fine)
        hub = on_cones(k, start[:, None] + twist * k**2 / 2.0, np.cos(alpha), np.sin(alpha))
        return np.concatenate([hub, hub[..., [2, 0, 1]], hub[..., [1, 2, 0]]][:hubs])

    return Trajectory(along_axes(path, t, delay_ms), t, None, "floret")


def _longest(
    fov_mm: float, voxel_mm: float, gradient_mt_m: float, readout_ms: float, ramp_ms: float, n_samples: int | None
) -> tuple[float, float, int]:
    """Return k_max, the longest path of a readout and the number of samples that it needs at twice the Nyquist rate."""
    positive(fov_mm=fov_mm, voxel_mm=voxel_mm, gradient_mt_m=gradient_mt_m, readout_ms=readout_ms)
    k_max = 0.5 / voxel_mm
    longest = speed_of(gradient_mt_m) * (readout_ms - ramp_ms / 2)
    if longest < k_max:
        too_weak(gradient_mt_m, readout_ms, longest, k_max)
    return k_max, longest, 64 * int(np.ceil(2.0 * longest * fov_mm / 64)) if n_samples is None else n_samples
