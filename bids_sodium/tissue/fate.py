"""Cells of tissue in and around early lesions: what they show, and how much of each was necrotic in the end.

Nouns: a *cell* is a cube of a few millimetres, its *tissue* the voxels of it that count, its *place on the other side*
their homologues; the *domain* is early lesions with a margin, so that tissue that dies later is there to be predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid
from bids_sodium.core.errors import ConfigError, EstimationError, GeometryError

__all__ = ["Cells", "FateParams", "cells_of", "domain_of"]

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class FateParams:
    """How tissue around a stroke is cut into cells."""

    cell_mm: float = 8.0
    """Edge of a cell, in mm: about the resolution of a 4 mm sodium scan (its point spread is 7 mm wide)."""

    margin_mm: float = 10.0
    """How far around early lesions tissue is followed, in mm."""

    least_share: float = 0.5
    """Share of a cell that must be tissue of the domain."""

    def __post_init__(self) -> None:
        if not (self.cell_mm > 0 and self.margin_mm >= 0 and 0 < self.least_share <= 1):
            raise ConfigError(
                f"cells of {self.cell_mm:g} mm, margin {self.margin_mm:g} mm, least share {self.least_share:g}",
                hint="give a positive edge, a margin of 0 or more and a share above 0",
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """Cells and their values.

    Parameters
    ----------
    centre_mm : (n, 3) ndarray
        Centre of the tissue of each cell, RAS+, mm.
    volume_ml : (n,) ndarray
        Volume of its tissue, in mL.
    percent : mapping of str to (n,) ndarray
        Change of each contrast against the other side, in percent; NaN where an image has no value.
    share : mapping of str to (n,) ndarray
        Share of the tissue inside each mask.
    """

    centre_mm: NDArray[np.float64]
    volume_ml: NDArray[np.float64]
    percent: dict[str, NDArray[np.float64]]
    share: dict[str, NDArray[np.float64]]


def domain_of(
    lesion: Mask, tissue: Mask, mirrored_tissue: Mask, other_side: Mask, grid: Grid, margin_mm: float
) -> Mask:
    """Return the tissue that is followed: lesions and their surroundings whose other side is healthy tissue.

    Parameters
    ----------
    lesion : (nx, ny, nz) ndarray of bool
        Early lesions.
    tissue : (nx, ny, nz) ndarray of bool
        Brain without CSF.
    mirrored_tissue : (nx, ny, nz) ndarray of bool
        Where the homologue of a voxel is brain without CSF.
    other_side : (nx, ny, nz) ndarray of bool
        Where the homologue of a voxel lies in a lesion.
    grid : Grid
        Lattice of the masks.
    margin_mm : float
        Width of the surroundings, in mm.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        The domain.
    """
    from scipy.ndimage import distance_transform_edt

    near = distance_transform_edt(~lesion, sampling=grid.voxel_mm) <= margin_mm if lesion.any() else lesion
    return np.asarray(near & tissue & mirrored_tissue & ~other_side)


def cells_of(
    domain: Mask,
    images: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    masks: Mapping[str, Mask],
    grid: Grid,
    params: FateParams | None = None,
) -> Cells:
    """Cut the domain into cells and read them.

    Parameters
    ----------
    domain : (nx, ny, nz) ndarray of bool
        Tissue that is followed.
    images : mapping of str to (image, image of the other side)
        Contrasts on the lattice, each with its values at the homologues.
    masks : mapping of str to (nx, ny, nz) ndarray of bool
        Masks whose share in every cell is wanted.
    grid : Grid
        Lattice.
    params : FateParams, optional
        Size of the cells.

    Returns
    -------
    Cells
        Cells that hold enough tissue.

    Raises
    ------
    GeometryError
        If something does not fit the grid.
    EstimationError
        If no cell holds enough tissue.

    Examples
    --------
    >>> grid = Grid.centred((8, 8, 8), 2.0)
    >>> full = np.ones(grid.shape, bool)
    >>> cells = cells_of(full, {"na": (np.full(grid.shape, 60.0), np.full(grid.shape, 40.0))}, {"dead": full}, grid)
    >>> cells.volume_ml.size, float(cells.percent["na"][0]), float(cells.share["dead"][0])
    (8, 50.0, 1.0)
    """
    p = params or FateParams()
    for name, array in {"domain": domain, **masks, **{k: v for k, pair in images.items() for v in pair[:1]}}.items():
        if array.shape != grid.shape:
            raise GeometryError(f"{name} of shape {array.shape} on a grid of shape {grid.shape}")
    size = [max(1, round(p.cell_mm / edge)) for edge in grid.voxel_mm]
    at = np.argwhere(domain)
    block = at // np.array(size)
    key = np.ravel_multi_index(tuple(block.T), tuple(-(-n // s) for n, s in zip(grid.shape, size, strict=True)))
    _, cell = np.unique(key, return_inverse=True)
    count = np.bincount(cell).astype(np.float64)
    kept = count >= p.least_share * np.prod(size)
    if not kept.any():
        raise EstimationError(f"none of {count.size} cells holds {100 * p.least_share:g} % of tissue to follow")

    def mean(values: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.asarray((np.bincount(cell, weights=values[domain].astype(np.float64)) / count)[kept])

    percent = {}
    for name, (image, other) in images.items():
        # a voxel counts where both sides have a value
        whole = np.isfinite(image) & np.isfinite(other)
        here, there = mean(np.where(whole, image, 0.0)), mean(np.where(whole, other, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            change = 100.0 * (here - there) / there
        percent[name] = np.where(mean(whole) >= p.least_share, change, np.nan)
    world = grid.world(at.astype(np.float64))
    centre = np.stack([np.bincount(cell, weights=world[:, axis]) / count for axis in range(3)], axis=1)
    return Cells(
        centre_mm=centre[kept],
        volume_ml=count[kept] * grid.voxel_ml,
        percent=percent,
        share={name: mean(mask) for name, mask in masks.items()},
    )
