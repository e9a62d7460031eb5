"""Where deep grey matter lies: ellipsoids for thalamus, caudate, putamen and pallidum in the symmetric MNI152 head.

A grey-matter map does not say which of it is deep, and gives thalamus and pallidum a half or less. Each nucleus is
an ellipsoid, ``rho(x) = |S^-1 R^T (x - c)|``, with centre c (mm), rotation R and semi-axes S; the share of brain tissue
that is deep grey falls from 1 inside to 0 outside, ``1 / (1 + exp((rho - 1) s / w))`` with s the mean semi-axis and w
the width of the edge. Left and right are mirror images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid
from bids_sodium.core.errors import GeometryError

__all__ = ["NUCLEI", "DeepGreyParams", "Nucleus", "deep_grey_prior", "nucleus_share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nucleus:
    """One ellipsoid of the right hemisphere; the left one is its mirror image."""

    name: str
    """Nucleus it belongs to; a nucleus may have several ellipsoids."""

    centre_mm: tuple[float, float, float]
    """Centre in MNI152 coordinates (RAS+), in mm; x > 0 is the right side."""

    semi_axes_mm: tuple[float, float, float]
    """Half lengths along the ellipsoid's own x, y and z axes, in mm."""

    yaw_deg: float = 0.0
    """Rotation about z, in degrees; positive turns the front end towards the midline."""

    pitch_deg: float = 0.0
    """Rotation about x, in degrees; positive lifts the front end."""


NUCLEI: tuple[Nucleus, ...] = (
    Nucleus(name="thalamus", centre_mm=(12.0, -19.0, 7.5), semi_axes_mm=(9.5, 15.5, 11.5), yaw_deg=28.0),
    Nucleus(name="caudate", centre_mm=(12.5, 13.0, 8.0), semi_axes_mm=(5.6, 11.5, 9.5), pitch_deg=-35.0),
    Nucleus(name="caudate", centre_mm=(15.5, -4.0, 21.0), semi_axes_mm=(4.0, 14.0, 4.5), yaw_deg=14.0, pitch_deg=-12.0),
    Nucleus(name="putamen", centre_mm=(26.5, 2.0, 2.0), semi_axes_mm=(6.3, 16.5, 11.5), yaw_deg=12.0),
    Nucleus(name="pallidum", centre_mm=(19.5, -4.0, 0.0), semi_axes_mm=(4.6, 10.5, 8.2), yaw_deg=28.0),
)
"""Deep grey nuclei of MNI152NLin2009aSym, placed on its T1 image; volumes follow the brain atlases' 7-8, 3.5, 5 and 1.7
mL for thalamus, caudate, putamen and pallidum of one side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepGreyParams:
    """How the deep grey prior is drawn."""

    nuclei: tuple[Nucleus, ...] = NUCLEI
    """Ellipsoids of the right hemisphere, in MNI152 mm."""

    edge_mm: float = 0.8
    """Scale of the logistic edge, in mm; the share falls from 0.88 to 0.12 over four of it."""


def _rotation(yaw_deg: float, pitch_deg: float) -> NDArray[np.float64]:
    yaw, pitch = np.deg2rad([yaw_deg, pitch_deg])
    about_z = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, np.cos(pitch), -np.sin(pitch)], [0.0, np.sin(pitch), np.cos(pitch)]])
    return np.asarray(about_z @ about_x)


def nucleus_share(nucleus: Nucleus, points_mm: NDArray[np.floating], *, edge_mm: float = 0.8) -> NDArray[np.float64]:
    """Return the membership of points in a nucleus of either side.

    Parameters
    ----------
    nucleus : Nucleus
        Ellipsoid of the right hemisphere.
    points_mm : (..., 3) ndarray
        Points in MNI152 coordinates (RAS+), in mm.
    edge_mm : float
        Scale of the logistic edge, in mm.

    Returns
    -------
    (...) ndarray
        1 deep inside, 0.5 on the surface, 0 outside.

    Examples
    --------
    >>> putamen = NUCLEI[3]
    >>> nucleus_share(putamen, np.array([[26.5, 2.0, 2.0], [-26.5, 2.0, 2.0], [60.0, 0.0, 0.0]])).round(2)
    array([1., 1., 0.])
    """
    right = np.array(points_mm, dtype=np.float64)
    right[..., 0] = np.abs(right[..., 0])
    local = (right - np.array(nucleus.centre_mm)) @ _rotation(nucleus.yaw_deg, nucleus.pitch_deg)
    semi = np.array(nucleus.semi_axes_mm)
    rho = np.sqrt(((local / semi) ** 2).sum(axis=-1))
    exponent = np.clip((rho - 1.0) * semi.mean() / edge_mm, -50.0, 50.0)
    return np.asarray(1.0 / (1.0 + np.exp(exponent)))


def deep_grey_prior(gm: NDArray[np.floating], grid: Grid, params: DeepGreyParams | None = None) -> NDArray[np.float32]:
    """Return the share of the brain tissue that belongs to the deep grey nuclei.

    Parameters
    ----------
    gm : (nx, ny, nz) ndarray
        Grey-matter fraction.
    grid : Grid
        Lattice of ``gm`` in MNI152 coordinates.
    params : DeepGreyParams, optional
        Nuclei and edge.

    Returns
    -------
    (nx, ny, nz) ndarray
        0 to 1; zero where there is no grey matter. ``(gm + wm) * share`` is the deep grey fraction: grey-matter maps
        give thalamus and pallidum a half or less, although the nuclei are one tissue.

    Raises
    ------
    GeometryError
        If ``gm`` is not on ``grid``.

    Examples
    --------
    >>> grid = Grid.centred((80, 80, 80), 2.0)
    >>> share = deep_grey_prior(np.ones(grid.shape), grid)
    >>> 30 < float(share.sum()) * grid.voxel_ml < 40
    True
    """
    if tuple(gm.shape) != grid.shape:
        raise GeometryError(f"grey matter of shape {tuple(gm.shape)} on a grid of shape {grid.shape}")
    params = params or DeepGreyParams()
    share = np.zeros(grid.shape, dtype=np.float32)
    index = [np.arange(n, dtype=np.float64) for n in grid.shape]
    for nucleus in params.nuclei:
        reach = max(nucleus.semi_axes_mm) + 10.0 * params.edge_mm
        for side in (-1.0, 1.0):
            centre = np.array(nucleus.centre_mm) * (side, 1.0, 1.0)
            corners = np.array(np.meshgrid(*([-reach, reach],) * 3)).reshape(3, -1).T + centre
            low = np.floor(grid.index(corners).min(axis=0)).astype(int)
            high = np.ceil(grid.index(corners).max(axis=0)).astype(int) + 1
            box = tuple(slice(max(a, 0), min(max(b, 0), n)) for a, b, n in zip(low, high, grid.shape, strict=True))
            points = grid.world(
                np.stack(np.meshgrid(*(i[s] for i, s in zip(index, box, strict=True)), indexing="ij"), -1)
            )
            if points.size:
                share[box] = np.maximum(share[box], nucleus_share(nucleus, points, edge_mm=params.edge_mm))
    return np.asarray(share * (gm > 0), dtype=np.float32)
