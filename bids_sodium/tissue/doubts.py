"""What wrongly placed or wrongly drawn tissue maps would change: the *doubts* behind a standard error.

A doubt is a map of signal, in mmol/L, on the lattice of the tissue maps: the change of the model that counts one
standard deviation. It goes through the scan as the tissues do, and an estimate ``c = W y`` errs by ``W`` times what the
scan makes of it. For a rigid motion this holds for all methods, because moving the maps one way is moving the image
the other way; for the place of a boundary it holds for methods that return the concentrations of their model exactly,
and leaves out that the weights of plain means move too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError

__all__ = [
    "OUTSIDE",
    "Variation",
    "boundary_doubts",
    "coarser",
    "moved",
    "placing_doubts",
    "rigid_covariance",
    "varied",
]

Array: TypeAlias = NDArray[np.float64]

OUTSIDE = "outside"
"""Name of what is no tissue: bone and air."""


def rigid_covariance(target_error_mm: float, points_mm: NDArray[np.floating]) -> Array:
    """Return the covariance of a shift (mm) and a turn (rad) about the mean of points that errs by so much there.

    Shift and turn share the mean squared error evenly and know no direction: ``s^2 = e^2 / 6`` along each axis,
    ``t^2 = e^2 / (4 R^2)`` about each, ``R^2`` the mean squared distance of the points from their mean.

    Parameters
    ----------
    target_error_mm : float
        Root mean square error of the position of the points, in mm.
    points_mm : (n, 3) ndarray
        Points, for example the voxels of the brain.

    Returns
    -------
    (6, 6) ndarray
        Covariance of the shifts along x, y, z and turns about them.

    Raises
    ------
    DataError
        If the error is negative or not finite, or the points are all in one place.

    Examples
    --------
    >>> corners = np.array([[x, y, z] for x in (-50.0, 50.0) for y in (-50.0, 50.0) for z in (-50.0, 50.0)])
    >>> (np.sqrt(np.diag(rigid_covariance(0.6, corners)))[[0, 3]] * [1.0, 1000.0]).round(3)
    array([0.245, 3.464])
    """
    if not (np.isfinite(target_error_mm) and target_error_mm >= 0):
        raise DataError(f"a registration error of {target_error_mm} mm", hint="give its root mean square, in mm")
    points = np.asarray(points_mm, dtype=np.float64)
    arm2 = float(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean())
    if not arm2 > 0:
        raise DataError("the points all lie in one place, so that they cannot turn")
    return np.diag([target_error_mm**2 / 6.0] * 3 + [target_error_mm**2 / (4.0 * arm2)] * 3)


def placing_doubts(
    fractions: Mapping[str, Volume],
    signal: Mapping[str, float],
    *,
    target_error_mm: float | None = None,
    covariance: NDArray[np.floating] | None = None,
) -> list[Volume]:
    """Return what the uncertain place of the tissue maps changes.

    A content that moves by ``a + w x (r - r0)``, ``r0`` the mean of the tissue, changes by
    ``-(a + w x (r - r0)) . grad``.

    Parameters
    ----------
    fractions : mapping of str to Volume
        Tissue fractions on one lattice.
    signal : mapping of str to float
        Concentration of each tissue times its gain, in mmol/L; 0 for names that are missing or not finite.
    target_error_mm : float, optional
        Root mean square error of the place of a point of the tissue, see `rigid_covariance`.
    covariance : (6, 6) ndarray, optional
        Instead: of shifts along (mm) and turns about (rad) the axes of the world.

    Returns
    -------
    list of Volume
        Six changes of one standard deviation each and independent of one another, in mmol/L, on the box that holds the
        tissue; fewer where some motions are known exactly.

    Raises
    ------
    GeometryError
        If the maps lie on different lattices or the covariance has another shape.
    DataError
        If there is no tissue, or neither error nor covariance is given.

    Examples
    --------
    >>> lattice = Grid.centred((21, 21, 21), 2.0)
    >>> x = lattice.world(np.indices((21, 21, 21)).transpose(1, 2, 3, 0).astype(float))[..., 0]
    >>> maps = {"CGM": Volume(np.exp(-0.5 * (x / 8.0) ** 2), lattice)}
    >>> (change,) = placing_doubts(maps, {"CGM": 40.0}, covariance=np.diag([0.25, 0, 0, 0, 0, 0]))
    >>> round(float(abs(change.data[14, 10, 10])), 1)
    1.5
    """
    model, points, grid = _seen_from(fractions, signal)
    if covariance is None:
        if target_error_mm is None:
            raise DataError("the registration error is not stated", hint="give target_error_mm or a covariance")
        C = rigid_covariance(target_error_mm, points)
    else:
        C = np.asarray(covariance, dtype=np.float64)
    if C.shape != (6, 6):
        raise GeometryError(f"a covariance of shape {C.shape} of a rigid motion", hint="give 6 x 6")
    values, vectors = np.linalg.eigh(0.5 * (C + C.T))
    likely = values > 1e-12 * max(float(values[-1]), 1e-300)
    motions = (np.sqrt(values[likely]) * vectors[:, likely]).T[::-1]
    return _changes(model, grid, points.mean(axis=0), motions)


def moved(
    fractions: Mapping[str, Volume], signal: Mapping[str, float], motions: NDArray[np.floating]
) -> tuple[list[Volume], Array]:
    """Return what small motions of the tissue change, and the point that it turns about.

    Parameters
    ----------
    fractions, signal
        As for `placing_doubts`.
    motions : (m, 6) ndarray
        Shifts along (mm) and turns about (rad) the axes of the world.

    Returns
    -------
    changes : list of Volume
        One a motion, in mmol/L, on the box that holds the tissue.
    centre_mm : (3,) ndarray
        Mean of the tissue.

    Raises
    ------
    GeometryError, DataError
        As `placing_doubts`.

    Examples
    --------
    >>> lattice = Grid.centred((21, 21, 21), 2.0)
    >>> x = lattice.world(np.indices((21, 21, 21)).transpose(1, 2, 3, 0).astype(float))[..., 0]
    >>> maps = {"CGM": Volume(np.exp(-0.5 * (x / 8.0) ** 2), lattice)}
    >>> (change,), centre = moved(maps, {"CGM": 40.0}, np.array([[0.5, 0, 0, 0, 0, 0]]))
    >>> round(float(change.data[14, 10, 10]), 1)  # brighter where the ridge comes nearer
    1.5
    """
    model, points, grid = _seen_from(fractions, signal)
    centre = points.mean(axis=0)
    return _changes(model, grid, centre, np.asarray(motions, dtype=np.float64)), np.asarray(centre)


def _seen_from(fractions: Mapping[str, Volume], signal: Mapping[str, float]) -> tuple[NDArray[np.float32], Array, Grid]:
    """Return the signal of the tissue, the points (n, 3) that it fills, and their lattice."""
    maps, grid = _boxed(fractions)
    model, tissue = np.zeros((2, *grid.shape), dtype=np.float32)
    for name, data in maps.items():
        model += np.float32(_finite(signal, name)) * data
        tissue += data
    points = grid.world(np.argwhere(tissue > 0.5).astype(np.float64))
    if len(points) < 2:
        raise DataError("the tissue maps hold no tissue", hint="check the segmentation")
    return model, points, grid


def _changes(model: NDArray[np.float32], grid: Grid, centre: Array, motions: Array) -> list[Volume]:
    """Return ``-(a + w x (r - r0)) . grad`` of the signal for every motion ``(a, w)``."""
    gradient = _gradient(model, grid)
    i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
    a = grid.affine
    arm = [a[row, 0] * i + a[row, 1] * j + a[row, 2] * k + (a[row, 3] - centre[row]) for row in range(3)]
    found = []
    for motion in motions:
        shift, turn = motion[:3], motion[3:]
        way = [
            shift[0] + turn[1] * arm[2] - turn[2] * arm[1],
            shift[1] + turn[2] * arm[0] - turn[0] * arm[2],
            shift[2] + turn[0] * arm[1] - turn[1] * arm[0],
        ]
        change = -sum(step.astype(np.float32) * g for step, g in zip(way, gradient, strict=True))
        found.append(Volume(np.asarray(change, dtype=np.float32), grid, "mmol/L"))
    return found


def boundary_doubts(
    fractions: Mapping[str, Volume],
    signal: Mapping[str, float],
    sd_mm: Mapping[str, float] | float,
    *,
    least_cm2: float = 5.0,
) -> dict[tuple[str, str], Volume]:
    """Return what the uncertain place of the boundaries between tissues changes.

    Where two tissues meet, the area of their boundary in a voxel over its volume is
    ``s = |p_u grad p_t - p_t grad p_u| / (p_t + p_u)``: for two that fill the voxels between them that is
    ``|grad p_t|``, whose integral is the area, however blurred the boundary. A boundary that moves by ``b`` changes the
    signal by ``b (C_t - C_u) s``. Every boundary moves as a whole and by itself; what is no tissue (`OUTSIDE`) fills
    what is left of every voxel.

    Parameters
    ----------
    fractions : mapping of str to Volume
        Tissue fractions on one lattice.
    signal : mapping of str to float
        Concentration of each tissue times its gain, in mmol/L; 0 for names that are missing or not finite.
    sd_mm : mapping of str to float, or float
        Standard deviation of the place of a boundary, in mm, by tissue (the larger of the two counts) or of all.
    least_cm2 : float
        Area below which a boundary is left out, in cm2.

    Returns
    -------
    dict of Volume
        Changes of one standard deviation each by pair of tissues, in mmol/L, on the box that holds the tissue.

    Raises
    ------
    GeometryError
        If the maps lie on different lattices.
    DataError
        If there is no tissue.

    Examples
    --------
    >>> lattice = Grid.centred((22, 22, 22), 2.0)
    >>> left, right = np.zeros((2, 22, 22, 22))
    >>> left[1:11, 1:21, 1:21], right[11:21, 1:21, 1:21] = 1.0, 1.0
    >>> maps = {"CGM": Volume(left, lattice), "CSF": Volume(right, lattice)}
    >>> change = boundary_doubts(maps, {"CGM": 40.0, "CSF": 140.0}, 0.1)
    >>> round(float(change["CGM", "CSF"].data.sum()) * lattice.voxel_ml)  # 16 cm2 x 0.1 mm x -100 mmol/L
    -16
    """
    maps, grid = _boxed(fractions)
    maps[OUTSIDE] = np.clip(1.0 - sum(maps.values()), 0.0, 1.0).astype(np.float32)
    slopes = {name: _gradient(data, grid) for name, data in maps.items()}
    reach = {name: _reach(data) for name, data in maps.items()}
    found = {}
    for t, u in combinations(maps, 2):
        # elsewhere one of the two is nothing and has no slope
        box = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(reach[t], reach[u], strict=True))
        if any(part.start >= part.stop for part in box):
            continue
        both = maps[t][box] + maps[u][box]
        size = np.sqrt(((maps[u][box] * slopes[t][:, *box] - maps[t][box] * slopes[u][:, *box]) ** 2).sum(axis=0))
        density = np.zeros(grid.shape, dtype=np.float32)
        density[box] = np.where(both > 1e-3, size / np.maximum(both, 1e-3), 0.0)
        if float(density.sum(dtype=np.float64)) * grid.voxel_ml * 10.0 < least_cm2:
            continue
        place = sd_mm if isinstance(sd_mm, (int, float)) else max(sd_mm.get(t, 0.0), sd_mm.get(u, 0.0))
        step = np.float32(place * (_finite(signal, t) - _finite(signal, u)))
        found[t, u] = Volume(np.asarray(step * density, dtype=np.float32), grid, "mmol/L")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Variation:
    """A concentration that varies smoothly over neighbouring regions.

    Parameters
    ----------
    within : list of Volume
        Changes inside the regions about the mean of each, together one standard deviation, in mmol/L.
    covariance : (n, n) ndarray
        Covariance of the means of the regions, in (mmol/L)^2.
    """

    within: list[Volume]
    covariance: Array


def varied(
    regions: Mapping[str, Volume],
    rng: np.random.Generator,
    *,
    sd_mmol_l: float,
    length_mm: float,
    n_draws: int = 32,
) -> Variation:
    """Return how a smooth random field varies within regions and between their means.

    The field has the covariance ``sd^2 exp(-(d / length)^2)``. Inside a region it changes the image, but not the mean
    that is asked for; neighbouring regions share most of it.

    Parameters
    ----------
    regions : mapping of str to Volume
        Shares of the voxels of one lattice.
    rng : numpy.random.Generator
        Source of randomness.
    sd_mmol_l, length_mm : float
        Standard deviation of the field in mmol/L, and the distance at which its correlation is 1/e, in mm.
    n_draws : int
        Draws that stand for the changes within the regions; the covariance of the means is exact.

    Returns
    -------
    Variation
        Changes and covariance, regions in the given order.

    Raises
    ------
    GeometryError
        If the maps lie on different lattices.
    DataError
        If the regions are empty.

    Examples
    --------
    >>> left, right = np.zeros((2, 20, 10, 10))
    >>> left[1:4], right[4:19] = 1.0, 1.0
    >>> grid = Grid.centred((20, 10, 10), 2.0)
    >>> parts = {"rim": Volume(left, grid), "core": Volume(right, grid)}
    >>> found = varied(parts, np.random.default_rng(0), sd_mmol_l=10.0, length_mm=15.0)
    >>> sd = np.sqrt(np.diag(found.covariance))
    >>> bool(sd[0] > sd[1]), bool(found.covariance[0, 1] > 0)
    (True, True)
    """
    from scipy.ndimage import gaussian_filter, gaussian_filter1d

    maps, grid = _boxed(regions)
    shares = np.stack(list(maps.values()))
    volume = shares.sum(axis=(1, 2, 3), dtype=np.float64)
    # white noise through a Gaussian of length / 2 has the correlation exp(-(d / length)^2)
    width = length_mm / 2.0 / np.array(grid.voxel_mm)
    reach = [int(4.0 * w + 0.5) for w in width]
    size, peak = 1.0, 1.0
    for w, r in zip(width, reach, strict=True):
        impulse = np.zeros(4 * r + 1)
        impulse[2 * r] = 1.0
        size *= float(np.sqrt((gaussian_filter1d(impulse, w) ** 2).sum()))
        peak *= float(gaussian_filter1d(impulse, np.sqrt(2.0) * w).max())
    inner = tuple(slice(r, -r or None) for r in reach)
    within = []
    for _ in range(n_draws):
        noise = rng.standard_normal([n + 2 * r for n, r in zip(grid.shape, reach, strict=True)]).astype(np.float32)
        # the margin keeps the edges as variable as the middle
        smooth = gaussian_filter(noise, width)[inner] * np.float32(sd_mmol_l / size)
        means = np.tensordot(shares, smooth, axes=3) / volume
        change = shares.sum(axis=0) * smooth - np.tensordot(means.astype(np.float32), shares, axes=1)
        within.append(Volume((change / np.sqrt(n_draws)).astype(np.float32), grid, "mmol/L"))
    near = [gaussian_filter(share, np.sqrt(2.0) * width, mode="constant") for share in shares]
    between = np.array([np.tensordot(shares, one, axes=3) for one in near], dtype=np.float64) / np.outer(volume, volume)
    return Variation(within, 0.5 * (between + between.T) * sd_mmol_l**2 / peak)


def coarser(volume: Volume, voxel_mm: float) -> Volume:
    """Return a map averaged over blocks of about so many mm, which is fine enough for a doubt and faster.

    Parameters
    ----------
    volume : Volume
        Map on a lattice.
    voxel_mm : float
        Edge of a voxel wanted, in mm; a lattice that is as coarse already stays.

    Returns
    -------
    Volume
        The means; blocks that reach beyond the map are filled up with zeros.

    Examples
    --------
    >>> fine = Volume(np.ones((8, 8, 9), np.float32), Grid.centred((8, 8, 9), 1.0))
    >>> coarse = coarser(fine, 2.0)
    >>> coarse.data.shape, float(coarse.data.sum()) * 8.0, coarse.grid.voxel_mm
    ((4, 4, 5), 576.0, (2.0, 2.0, 2.0))
    """
    data = np.asarray(volume.data, dtype=np.float32)
    blocks = [max(1, round(voxel_mm / size)) for size in volume.grid.voxel_mm]
    data = np.pad(data, [(0, -n % block) for n, block in zip(data.shape, blocks, strict=True)])
    for axis, block in enumerate(blocks):
        shape = (*data.shape[:axis], data.shape[axis] // block, block, *data.shape[axis + 1 :])
        data = data.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    affine = volume.grid.affine @ np.diag([*(float(block) for block in blocks), 1.0])
    affine[:3, 3] = volume.grid.world(np.array([(block - 1) / 2.0 for block in blocks]))
    return Volume(data, Grid((data.shape[0], data.shape[1], data.shape[2]), affine), volume.unit)


def _reach(data: NDArray[np.float32]) -> tuple[slice, slice, slice]:
    """Return the box outside which a map and its slope are nothing."""
    found = []
    for axis in range(3):
        filled = np.flatnonzero(data.any(axis=tuple(other for other in range(3) if other != axis)))
        found.append(slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 2) if filled.size else slice(0, 0))
    return found[0], found[1], found[2]


def _finite(signal: Mapping[str, float], name: str) -> float:
    value = float(signal.get(name, 0.0))
    return value if np.isfinite(value) else 0.0


def _boxed(fractions: Mapping[str, Volume]) -> tuple[dict[str, NDArray[np.float32]], Grid]:
    """Return the maps on the box that holds them, a voxel wider where there is room."""
    volumes = list(fractions.values())
    if not volumes or any(not volume.grid.same_as(volumes[0].grid) for volume in volumes):
        raise GeometryError("the tissue maps do not share a lattice", hint="resample them")
    grid = volumes[0].grid
    total = np.zeros(grid.shape, dtype=np.float32)
    for volume in volumes:
        total += np.asarray(volume.data, dtype=np.float32)
    filled = [np.flatnonzero(total.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if filled[0].size == 0:
        raise DataError("the tissue maps are empty", hint="check the segmentation")
    box = tuple(slice(max(int(at[0]) - 1, 0), int(at[-1]) + 2) for at in filled)
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world(np.array([float(part.start) for part in box]))
    maps = {name: np.asarray(volume.data, dtype=np.float32)[box] for name, volume in fractions.items()}
    shape = next(iter(maps.values())).shape
    return maps, Grid((shape[0], shape[1], shape[2]), affine)


def _gradient(data: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Return the gradient (3, nx, ny, nz) along the axes of the world, per mm."""
    along = np.array(np.gradient(data), dtype=np.float32)
    return np.asarray(np.tensordot(np.linalg.inv(grid.affine[:3, :3]).T.astype(np.float32), along, axes=1))
