"""The pose once more with the roles of the two lattices exchanged.

A metric is summed over the points of one image while the other is interpolated; which of them is which can move the
answer. Here the classes of the fixed image are interpolated at the voxels of the moving one. The distance between both
answers is the inverse consistency.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.spatial._scenes import blurred, classes_of, gram_of

if TYPE_CHECKING:
    from bids_sodium.spatial.registration import RegistrationParams

__all__ = ["exchanged"]

_MOST_POINTS = 12_000
_LEVER_MM = 70.0
_STEP_MM = 0.25
_ROUNDS = 20
_MOST_DEGREE = 2
"""Of the coil profile: a cubic over coarse voxels led a 7 T array image 3.6 mm away."""


def exchanged(
    fixed: Volume,
    mask: NDArray[np.bool_],
    moving: Volume,
    matrix: NDArray[np.float64],
    params: RegistrationParams,
) -> NDArray[np.float64] | None:
    """Return the rigid pose ``moving_from_fixed`` near another, its metric summed over the voxels of the moving image.

    Parameters
    ----------
    fixed, moving : Volume
        Images.
    mask : (nx, ny, nz) ndarray of bool
        Brain or head on the fixed image.
    matrix : (4, 4) ndarray
        Pose of the search over the points of the fixed image.
    params : RegistrationParams
        Levels and classes; the finest level is used.

    Returns
    -------
    (4, 4) ndarray or None
        The pose; ``None`` where too few voxels of the moving image lie in the mask.
    """
    from scipy import ndimage
    from scipy.spatial.transform import Rotation

    level = len(params.levels_mm) - 1
    source, psf_mm = blurred(moving, params.levels_mm[level], params)
    grid, maps, _, region, psf_voxels = classes_of(fixed, mask, psf_mm, params, level)
    sigma = psf_voxels / np.sqrt(8.0 * np.log(2.0))
    smooth = [ndimage.gaussian_filter(part.astype(np.float32), sigma, truncate=3.0) for part in maps]
    lattice = np.argwhere(np.ones(source.grid.shape, dtype=bool))
    back = np.linalg.inv(matrix)
    places = source.grid.world(lattice.astype(np.float64)) @ back[:3, :3].T + back[:3, 3]
    index = np.rint(grid.index(places)).astype(int)
    there = np.all((index >= 0) & (index < np.array(grid.shape)), axis=1)
    there[there] = region[tuple(index[there].T)]
    chosen = np.flatnonzero(there)
    chosen = chosen[:: max(1, int(np.ceil(chosen.size / _MOST_POINTS)))]
    if chosen.size < 40 * len(smooth):
        return None
    points = places[chosen]
    centre, spread = points.mean(axis=0), points.std(axis=0)
    y = np.asarray(source.data, dtype=np.float64)[tuple(lattice[chosen].T)]
    along = (points - centre) / spread
    terms = [
        np.prod(along[:, list(axes)], axis=1)
        for order in range(2, min(params.profile_degree, _MOST_DEGREE) + 1)
        for axes in itertools.combinations_with_replacement(range(3), order)
    ]
    weights = np.ones(len(points))

    def moved(step: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(Rotation.from_rotvec(step[:3] / _LEVER_MM).apply(at - centre) + centre + step[3:])

    def design(at: NDArray[np.float64], profile: NDArray[np.float64] | None) -> NDArray[np.float64]:
        where = grid.index(at).T
        F = np.stack([ndimage.map_coordinates(part, where, order=1, mode="nearest") for part in smooth], axis=1)
        F = np.concatenate([F, *(F * along[:, [axis]] for axis in range(3))], axis=1)
        if profile is not None and terms:
            F = np.concatenate([F, profile[:, None] * np.stack(terms, axis=1)], axis=1)
        return np.asarray(F, dtype=np.float64)

    def left(F: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weighted residual, and what is explained."""
        root = np.sqrt(weights)
        G = F * root[:, None]
        explained = F @ np.linalg.solve(gram_of(G), G.T @ (root * y))
        return root * (y - explained), explained

    # the places of the voxels in the fixed frame are moved
    for _ in range(_ROUNDS):
        _, profile = left(design(points, None))
        residual, _ = left(design(points, profile))
        raw = residual / np.sqrt(weights)
        limit = params.huber * 1.4826 * float(np.median(np.abs(raw)))
        weights = np.minimum(1.0, limit / np.maximum(np.abs(raw), 1e-12))
        residual, _ = left(design(points, profile))
        J = np.stack(
            [(left(design(moved(_STEP_MM * unit, points), profile))[0] - residual) / _STEP_MM for unit in np.eye(6)],
            axis=1,
        )
        step = np.asarray(-np.linalg.solve(J.T @ J, J.T @ residual))
        step *= min(1.0, 2.0 / max(float(np.linalg.norm(step)), 1e-12))
        while (length := float(np.linalg.norm(step))) >= params.tolerance_mm:
            there = moved(step, points)
            if float(np.linalg.norm(left(design(there, profile))[0])) < float(np.linalg.norm(residual)):
                points = there
                break
            step /= 2.0
        if length < params.tolerance_mm:
            break
    return _fitted(points, source.grid.world(lattice[chosen].astype(np.float64)))


def _fitted(fixed_mm: NDArray[np.float64], moving_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rigid map that takes the one set of points to the other (Kabsch)."""
    a, b = fixed_mm - fixed_mm.mean(axis=0), moving_mm - moving_mm.mean(axis=0)
    u, _, v = np.linalg.svd(b.T @ a)
    rotation = u @ np.diag([1.0, 1.0, float(np.linalg.det(u @ v))]) @ v
    found = np.eye(4)
    found[:3, :3] = rotation
    found[:3, 3] = moving_mm.mean(axis=0) - rotation @ fixed_mm.mean(axis=0)
    return found
