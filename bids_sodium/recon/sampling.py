"""What a trajectory can show: how much of k-space it reaches, and how large an object may be.

``n`` readouts that leave the centre lie ``sqrt(4 pi k^2 cos(psi) / n)`` apart at radius ``k``, with the angle ``psi``
between path and radius. Detail of an object that is wider than one over that distance at ``k_max`` is disturbed by its
own aliases.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import DataError
from bids_sodium.recon.nufft import Nufft

__all__ = ["alias_free_mm", "check_extent", "coverage", "leaves_centre", "limits", "object_points_mm"]

_REACH = 0.15
_MARGIN = 1.2
_LEAST_ALIAS_FREE = 0.7
_WAYS = np.array([way for way in np.ndindex(3, 3, 3) if way > (1, 1, 1)], dtype=np.float64) - 1.0
_WAYS /= np.linalg.norm(_WAYS, axis=1, keepdims=True)
_UNITS = {
    1000.0: "cycles/m",
    2.0 * np.pi: "rad/mm",
    2000.0 * np.pi: "rad/m",
    10.0: "cycles/cm",
    20.0 * np.pi: "rad/cm",
}


def coverage(trajectory: Trajectory, grid: Grid) -> float:
    """Return the share of Nyquist cells within the sphere of ``k_max`` that hold a sample.

    A cell has edges of one over the field of view.

    Parameters
    ----------
    trajectory : Trajectory
        Where k-space is sampled.
    grid : Grid
        Its field of view sets the cells.

    Returns
    -------
    float
        Share, 0 to 1.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import cartesian
    >>> coverage(cartesian((16, 16, 16), voxel_mm=4.0, readout_ms=5.0), Grid.centred((16, 16, 16), 4.0)) > 0.99
    True
    """
    extent = np.array(grid.fov_mm)
    half = np.ceil(trajectory.k_max_per_mm * extent).astype(int) + 1
    shape = 2 * half + 1
    cells = np.rint(trajectory.k_per_mm.reshape(-1, 3) * extent.astype(np.float32)).astype(np.int32) + half
    hit = np.zeros(int(shape.prod()), dtype=bool)
    hit[(cells[:, 0] * shape[1] + cells[:, 1]) * shape[2] + cells[:, 2]] = True
    axes = [(np.arange(n) - h) / fov for n, h, fov in zip(shape, half, extent, strict=True)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    limit = min(float(np.abs(trajectory.k_per_mm[..., axis]).max()) for axis in range(3))
    inside = distance <= limit
    return float(hit.reshape(shape)[inside].mean())


def check_extent(trajectory: Trajectory, grid: Grid) -> None:
    """Refuse a trajectory that reaches beyond, or hardly into, the k-space of a grid.

    Raises
    ------
    DataError
        If positions are not finite or do not fit, with a guess of the unit that they are in.
    """
    voxel = np.array(grid.voxel_mm)
    reach = np.abs(trajectory.k_per_mm).max(axis=(0, 1)).astype(np.float64)
    if not np.isfinite(reach).all():
        raise DataError("the trajectory holds NaN or infinite positions", hint="export it again")
    ratio = float((reach * 2.0 * voxel).max())
    if 0.1 <= ratio <= 1.1:
        return
    guesses: dict[float, str] = {**_UNITS, float(voxel.min()): "units of the matrix (+-0.5)"}
    # A scan mostly reaches the Nyquist limit of its grid, so the factor nearest to the ratio is the likely one.
    distance, likely = min((abs(float(np.log(ratio / factor))), name) for factor, name in guesses.items())
    hint = f"positions are cycles/mm; these look like {likely}" if distance < 0.7 else "check unit and voxel size"
    raise DataError(
        f"the trajectory reaches {reach.max():.4g} cycles/mm, "
        f"a voxel of {voxel.min():.3g} mm resolves {0.5 / voxel.min():.4g}",
        hint=hint,
    )


def leaves_centre(trajectory: Trajectory) -> bool:
    """Tell whether all readouts start near the centre of k-space and never turn back.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import cartesian, plain_radial
    >>> leaves_centre(plain_radial(8, 16, readout_ms=5.0, voxel_mm=8.0))
    True
    >>> leaves_centre(cartesian((8, 8, 8), voxel_mm=8.0, readout_ms=5.0))
    False
    """
    k = np.linalg.norm(trajectory.k_per_mm, axis=-1)
    return bool(k[:, 0].max() < 0.2 * k.max() and np.diff(k, axis=1).min() > -1e-3 * k.max())


def alias_free_mm(trajectory: Trajectory) -> float:
    """Return the largest distance in an object of which nothing repeats, in mm; NaN for other than centre-out readouts.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(6000, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0)
    >>> round(alias_free_mm(spokes))
    175
    """
    if trajectory.n_samples < 3 or not leaves_centre(trajectory):
        return float("nan")
    last = trajectory.k_per_mm[:, -2:].astype(np.float64)
    path = np.linalg.norm(last[:, 1] - last[:, 0], axis=-1)
    outward = np.diff(np.linalg.norm(last, axis=-1), axis=1)[:, 0]
    shots = np.unique(np.round(last[:, 1] / trajectory.k_max_per_mm, 5), axis=0).shape[0]
    spacing = np.sqrt(4.0 * np.pi * np.mean(outward / path) / shots)
    return float(1.0 / (trajectory.k_max_per_mm * spacing))


def object_points_mm(
    samples: NDArray[np.complexfloating],
    trajectory: Trajectory,
    grid: Grid,
    sigma_k: float,
    weights: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Return where there is signal, in a fifth more than the field of view or so and at a third of the resolution.

    Parameters
    ----------
    samples : (n_shots, n_samples) complex ndarray
        Samples of one channel.
    trajectory : Trajectory
        Where k-space is sampled.
    grid : Grid
        Image lattice.
    sigma_k : float
        Noise of the real part of the samples.
    weights : (n_shots, n_samples) ndarray
        Sample weights, in 1/mm3.

    Returns
    -------
    (n, 3) ndarray
        Points along the axes of the grid, in mm from its centre, whose signal is above 15 % of the strong signals and
        above six standard deviations of the noise.
    """
    k = np.linalg.norm(trajectory.k_per_mm, axis=-1)
    edge = trajectory.k_max_per_mm / 3.0
    near = k < edge
    factor = weights[near] * (0.5 + 0.5 * np.cos(np.pi * k[near] / edge))
    voxel = [max(0.45 / edge, step) for step in grid.voxel_mm]
    # Beyond the slack of `limits`, however few voxels the field of view has.
    reach = [max(_MARGIN * fov / 2.0, fov / 2.0 + 2.0 / trajectory.k_max_per_mm) for fov in grid.fov_mm]
    shape = tuple(2 * int(np.ceil(far / step)) for far, step in zip(reach, voxel, strict=True))
    lattice = Grid((shape[0], shape[1], shape[2]), np.diag([*voxel, 1.0]))
    inside = Trajectory(trajectory.k_per_mm[near][None], np.arange(float(near.sum())))
    image = np.abs(Nufft(inside, lattice, 1e-3).gridded((factor * samples[near])[None]))
    strong = float(np.percentile(image, 99.0))
    floor = 6.0 * sigma_k * float(np.sqrt((factor**2).sum()))
    index = np.argwhere(image > max(_REACH * strong, floor))
    points = (index - np.array(shape) // 2) * voxel
    # In the corners, which no head reaches, readouts with few samples near the centre show aliases of their own.
    round_lattice = np.linalg.norm(points / (np.array(shape) * voxel / 2.0), axis=1) <= 1.0
    return np.asarray(points[round_lattice])


def limits(trajectory: Trajectory, grid: Grid, points_mm: NDArray[np.floating]) -> tuple[str, ...]:
    """Return what an object is too large for: the field of view, the readouts.

    Parameters
    ----------
    trajectory : Trajectory
        Where k-space is sampled.
    grid : Grid
        Image lattice.
    points_mm : (n, 3) ndarray
        Points of the object, from `object_points_mm`.

    Returns
    -------
    tuple of str
        Sentences; empty where all is well. Readouts are named where aliases reach below 70 % of ``k_max``.
    """
    if not len(points_mm):
        return ()
    found = []
    free = alias_free_mm(trajectory)
    known = f"; the readouts are free of aliases to {free:.0f} mm" if np.isfinite(free) else ""
    beyond = np.abs(points_mm).max(axis=0) - np.array(grid.fov_mm) / 2.0
    slack = 1.5 / trajectory.k_max_per_mm
    if beyond.max() > slack:
        axis = int(np.argmax(beyond))
        found.append(
            f"the object reaches at least {np.abs(points_mm[:, axis]).max():.0f} mm from the centre, the field of view "
            f"ends at {grid.fov_mm[axis] / 2.0:.0f} mm: what lies outside disturbs the image{known}; enlarge the grid"
        )
    across = float(max(np.ptp(points_mm @ way) for way in _WAYS))
    if np.isfinite(free) and across * _LEAST_ALIAS_FREE > free:
        found.append(
            f"the object is {across:.0f} mm across, the readouts are free of aliases to {free:.0f} mm: detail finer "
            f"than {across / free / trajectory.k_max_per_mm / 2.0:.1f} mm is disturbed by signal further away; "
            "acquire more readouts"
        )
    return tuple(found)
