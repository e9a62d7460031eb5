"""Automatic delineation of hypersignal: a proposal where nobody drew a region.

Nouns: the *difference* is an image minus its mirror image, its *trend* the smooth asymmetry that coils and heads have
of themselves, *z* the difference without trend over its robust spread in healthy tissue, a *proposal* the connected
tissue that stands out. Lesions are kept out of trend and spread, or they would hide themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid
from bids_sodium.core.errors import ConfigError, EstimationError, GeometryError

__all__ = ["DelineationParams", "Proposal", "propose"]

Mask: TypeAlias = NDArray[np.bool_]
_CORE = 1.4826  # robust standard deviation over median absolute deviation of a normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class DelineationParams:
    """What is delineated automatically, and how."""

    labels: tuple[Literal["ionic", "cytotoxic", "necrosis"], ...] = ()
    """Regions that are delineated where no mask is given: ``ionic`` on the sodium image, ``cytotoxic`` on the
    diffusion-weighted image, ``necrosis`` on FLAIR."""

    edge_z: float = 2.5
    """Robust z above which tissue belongs to a lesion that it is connected to."""

    seed_z: float = 5.0
    """Robust z that a lesion must reach somewhere; at 4, noise as smooth as the image makes a false lesion a head."""

    csf_limit: float = 0.25
    """Largest share of CSF of a voxel, on either side."""

    smooth_mm: float = 2.0
    """Standard deviation of the Gaussian that the difference is smoothed with, in mm."""

    trend_mm: float = 25.0
    """Standard deviation of the Gaussian that tells the trend from lesions, in mm."""

    voxel_mm: float = 2.0
    """Voxel of the lattice that is worked on, in mm."""

    minimum_ml: float = 1.0
    """Smallest connected lesion, in mL."""

    def __post_init__(self) -> None:
        if not 0 < self.edge_z <= self.seed_z:
            raise ConfigError(f"edge_z {self.edge_z:g} and seed_z {self.seed_z:g}", hint="give 0 < edge_z <= seed_z")
        if min(self.smooth_mm, self.trend_mm, self.voxel_mm) <= 0 or not 0 < self.csf_limit <= 1:
            raise ConfigError(
                f"smooth_mm {self.smooth_mm:g}, trend_mm {self.trend_mm:g}, voxel_mm {self.voxel_mm:g}, csf_limit "
                f"{self.csf_limit:g}",
                hint="give positive lengths and a share of CSF between 0 and 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """A region that stands out against the other side.

    Parameters
    ----------
    mask : (nx, ny, nz) ndarray of bool
        The region; empty where nothing stands out.
    z : (nx, ny, nz) ndarray
        Robust z of the difference, 0 outside the tissue.
    sd : float
        Robust standard deviation of the difference in healthy tissue, in units of the image.
    n_lesions : int
        Connected parts.
    converged : bool
        Whether what is kept out of trend and spread came to rest.
    """

    mask: Mask
    z: NDArray[np.float64]
    sd: float
    n_lesions: int
    converged: bool


def propose(
    image: NDArray[np.floating],
    other: NDArray[np.floating],
    tissue: Mask,
    grid: Grid,
    params: DelineationParams | None = None,
) -> Proposal:
    """Return the tissue that is brighter than its place on the other side.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Image in which lesions are bright.
    other : (nx, ny, nz) ndarray
        The image at the homologue of every voxel.
    tissue : (nx, ny, nz) ndarray of bool
        Brain without CSF on both sides.
    grid : Grid
        Lattice of all.
    params : DelineationParams, optional
        Thresholds and widths.

    Returns
    -------
    Proposal
        Mask and z.

    Raises
    ------
    GeometryError
        If shapes differ from the grid's.
    EstimationError
        If there is less than 100 mL of tissue with a value on both sides, or the two sides are equal.

    Examples
    --------
    >>> grid = Grid.centred((40, 40, 40), 3.0)
    >>> rng = np.random.default_rng(0)
    >>> left, right = rng.normal(100.0, 4.0, (2, *grid.shape))
    >>> lesion = np.zeros(grid.shape, dtype=bool)
    >>> lesion[8:16, 15:25, 15:25] = True
    >>> found = propose(left + 40.0 * lesion, right, np.ones(grid.shape, dtype=bool), grid).mask
    >>> bool(2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.85)
    True
    """
    from scipy import ndimage

    p = params or DelineationParams()
    for name, array in (("image", image), ("other side", other), ("tissue", tissue)):
        if array.shape != grid.shape:
            raise GeometryError(f"{name} of shape {array.shape} on a grid of shape {grid.shape}")
    inside = tissue & np.isfinite(image) & np.isfinite(other)
    if inside.sum() * grid.voxel_ml < 100.0:
        raise EstimationError(
            f"{inside.sum() * grid.voxel_ml:.0f} mL of tissue have a value on both sides, too little to tell a lesion"
        )
    size = np.array(grid.voxel_mm)
    difference = np.where(inside, np.asarray(image, dtype=np.float64) - other, 0.0)
    difference = _averaged(difference, inside, p.smooth_mm / size)
    kept_out = np.zeros(grid.shape, dtype=bool)
    z, mask, sd, converged = np.zeros(grid.shape), kept_out, np.nan, False
    for _ in range(8):
        healthy = inside & ~kept_out
        rest = difference - _quadratic(difference, healthy, grid)
        rest -= _averaged(rest, healthy, p.trend_mm / size)
        middle = float(np.median(rest[healthy]))
        sd = _CORE * float(np.median(np.abs(rest[healthy] - middle)))
        if not sd > 0:
            raise EstimationError("the two sides of the image are equal, so that nothing can stand out")
        z = np.where(inside, (rest - middle) / sd, 0.0)
        mask = _connected(z, p)
        # what stands out on the other side is dark here, and no more healthy than what is bright
        aside = ndimage.binary_dilation(mask | _connected(-z, p), iterations=max(1, round(4.0 / float(size.min()))))
        if (aside != kept_out).sum() <= 0.001 * inside.sum():
            converged = True
            break
        kept_out = aside
    labels, count = ndimage.label(_half_height(z, mask))
    volume = np.bincount(labels.ravel(), minlength=count + 1) * grid.voxel_ml
    large = volume >= p.minimum_ml
    large[0] = False
    final = ndimage.binary_fill_holes(large[labels]) & inside
    return Proposal(mask=np.asarray(final), z=z, sd=sd, n_lesions=int(large.sum()), converged=converged)


def _quadratic(values: NDArray[np.float64], where: Mask, grid: Grid) -> NDArray[np.float64]:
    """Return the quadratic of place that fits most of it: a Gaussian mean alone lags behind a slope at the rim."""
    centre = (np.array(grid.shape) - 1.0) / 2.0
    x, y, z = (
        (axis - middle) / max(middle, 1.0)
        for axis, middle in zip(np.ogrid[tuple(slice(n) for n in grid.shape)], centre, strict=True)
    )
    terms = (1.0, x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)
    chosen = np.argwhere(where)[:: max(1, int(where.sum()) // 50_000)]
    at = tuple(chosen.T)
    design = np.stack([np.broadcast_to(term, grid.shape)[at] for term in terms], axis=1)
    weight = np.ones(len(chosen))
    for _ in range(12):  # Tukey's biweight: a lesion and its dark mirror image would tilt a least-squares fit
        weights = np.linalg.lstsq(design * weight[:, None], values[at] * weight, rcond=None)[0]
        left = values[at] - design @ weights
        reach = 4.685 * max(_CORE * float(np.median(np.abs(left))), 1e-12 * float(np.abs(values[at]).max(initial=1.0)))
        weight = np.maximum(1.0 - (left / reach) ** 2, 0.0)
    return np.asarray(sum(weight * term for weight, term in zip(weights, terms, strict=True)))


def _half_height(z: NDArray[np.float64], mask: Mask) -> Mask:
    """Cut every part at half of its own height: what blurs over the rim of a bright lesion is none of it."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    cut = np.zeros_like(mask)
    for i, box in enumerate(ndimage.find_objects(labels, count), start=1):
        part, height = labels[box] == i, z[box]
        own = height[part]
        cut[box] |= part & (height > 0.5 * float(np.median(own[own > 0.5 * own.max()])))
    return cut


def _averaged(values: NDArray[np.float64], where: Mask, width: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Gaussian mean over the voxels that count."""
    from scipy.ndimage import gaussian_filter

    weight = where.astype(np.float64)
    total = gaussian_filter(weight, width, mode="constant", truncate=3.0)
    mean = gaussian_filter(values * weight, width, mode="constant", truncate=3.0)
    return np.asarray(np.divide(mean, total, out=np.zeros_like(mean), where=total > 1e-3))


def _connected(z: NDArray[np.float64], p: DelineationParams) -> Mask:
    """Return parts above the edge that hold a seed, thin bridges opened."""
    from scipy import ndimage

    body = ndimage.binary_opening(z > p.edge_z)
    labels, count = ndimage.label(body)
    seeded = np.zeros(count + 1, dtype=bool)
    seeded[np.unique(labels[z > p.seed_z])] = True
    seeded[0] = False
    return np.asarray(seeded[labels])
