"""Reference vials in an image: where they are and how bright they are.

A vial is a compact bright body outside the head. Its edge is taken at half its peak, where a blurred edge keeps its
place; its signal is the median of an eroded core or, where its inner radius and the point spread are known, the
amplitude of a cylinder convolved with that point spread.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import EstimationError, GeometryError
from bids_sodium.image._bodies import (
    FEWEST_VOXELS,
    FWHM,
    air_level,
    air_threshold,
    around,
    border_voxels,
    core_of,
    dilated,
    head_mask,
    likeness_of,
    magnitude_of,
    regrown,
    saturation_of,
)
from bids_sodium.image._vial_signals import Cylinder, VialSignals, measure_vials, modelled_signal

if TYPE_CHECKING:
    from bids_sodium.image.calibration import CalibrationParams

__all__ = [
    "Cylinder",
    "Vial",
    "VialSignals",
    "air_threshold",
    "candidate_vials",
    "find_vials",
    "head_mask",
    "measure_vials",
    "modelled_signal",
    "saturation_of",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vial:
    """A vial found in an image.

    Parameters
    ----------
    mask : (nx, ny, nz) ndarray of bool
        Voxels above half its peak.
    centre_mm : tuple of float
        Centre in the world (RAS+, mm).
    volume_ml : float
        Volume of the mask, in mL.
    signal : float
        Median of its core, in units of the image.
    n_saturated : int
        Voxels of the mask at the ceiling of the data type.
    n_border : int
        Voxels of the mask at the border of the image: a vial that is cut by it.
    likeness : float
        How much like a vial it looks, 0 to 1: contrast to its surroundings, times how much of its ellipsoid of inertia
        it fills, times roundness and size.
    """

    mask: NDArray[np.bool_]
    centre_mm: tuple[float, float, float]
    volume_ml: float
    signal: float
    n_saturated: int
    n_border: int
    likeness: float


def candidate_vials(
    image: Volume, head: NDArray[np.bool_] | None, params: CalibrationParams, *, saturation: float | None = None
) -> tuple[Vial, ...]:
    """Return every body that may be a vial, the likeliest first.

    From the brightest local maximum outside the head downwards, the connected voxels above half the maximum are a
    candidate if they have the volume of a vial, hold together like an ellipsoid or cylinder and stand out of their
    surroundings.

    Parameters
    ----------
    image : Volume
        Magnitude image.
    head : (nx, ny, nz) ndarray of bool or None
        Head on the grid of the image, best from a registered 1H image; `head_mask` of the image where it is ``None``.
    params : CalibrationParams
        Volumes, margin and edge.
    saturation : float, optional
        Value at which voxels are clipped; found by `saturation_of` where it is not given.

    Returns
    -------
    tuple of Vial
        Candidates.

    Raises
    ------
    GeometryError
        If the head mask has another shape than the image.
    """
    from scipy import ndimage

    data = magnitude_of(image)
    margin_mm = params.head_margin_mm
    if head is None:
        # seen in the image itself the head is blurred already
        head, margin_mm = head_mask(image, params), 0.0
    if head.shape != data.shape:
        raise GeometryError(f"a head mask of shape {head.shape} for an image of shape {data.shape}")
    head = np.asarray(head, dtype=bool)
    ceiling = saturation if saturation is not None else saturation_of(image.data)
    voxel = np.array(image.grid.voxel_mm)
    smooth = ndimage.gaussian_filter(data, 4.0 / FWHM / voxel)
    air = air_level(data, smooth, head)
    excess = np.maximum(smooth - air[0], 0.0)
    # distances run between centres of voxels, the surface lies half a voxel nearer
    half_voxel = 0.5 * float(voxel.max())
    free = ~dilated(head, margin_mm + half_voxel, voxel)
    peaks = free & (smooth == ndimage.maximum_filter(smooth, size=3)) & (excess > params.noise_factor * air[1])
    if head.any():
        peaks &= excess > params.minimum_brightness * float(np.median(excess[head]))
    order = np.argwhere(peaks)[np.argsort(-excess[peaks], kind="stable")]
    found: list[Vial] = []
    taken = np.zeros_like(free)
    for place in order:
        index = (int(place[0]), int(place[1]), int(place[2]))
        if taken[index]:
            continue
        level = params.edge_fraction * excess[index]
        # what is much brighter than the peak, such as an eye that touches the vial, is another body
        alike = (excess > 0.5 * level) & (excess <= 1.3 * excess[index]) & ~taken
        body = around(alike & (excess > level) & free, index)
        # a second peak without a valley before the first is the same vial under an uneven receive profile
        if (taken & around((excess > level) & free, index)).any():
            continue
        whole = regrown(body, alike & (excess > level) & ~head, margin_mm + half_voxel, voxel)
        volume_ml = float(whole.sum()) * image.grid.voxel_ml
        # blur lowers the peak of a thin vial: its foot at a quarter of the peak keeps its volume
        foot_ml = float(around(alike & ~head, index).sum()) * image.grid.voxel_ml
        if foot_ml < params.minimum_ml or volume_ml > params.maximum_ml or whole.sum() < FEWEST_VOXELS:
            continue
        likeness = likeness_of(whole, excess, free & ~taken, voxel)
        likeness *= min(float(np.sqrt(volume_ml / params.minimum_ml)), 1.0)
        if likeness < params.minimum_likeness:
            continue
        taken |= dilated(whole, 3 * half_voxel, voxel)
        centre = image.grid.world(np.argwhere(whole).mean(0))
        found.append(
            Vial(
                mask=whole,
                centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
                volume_ml=volume_ml,
                signal=float(np.median(data[core_of(whole, params.core_fraction, voxel)])),
                n_saturated=0 if ceiling is None else int((data[whole] >= ceiling).sum()),
                n_border=border_voxels(whole),
                likeness=likeness,
            )
        )
    return tuple(sorted(found, key=lambda vial: -vial.likeness))


def find_vials(
    image: Volume, head: NDArray[np.bool_] | None, params: CalibrationParams, *, saturation: float | None = None
) -> tuple[Vial, ...]:
    """Find the vials, as many as there are concentrations in ``params.vial_mmol_l``.

    Where more bodies look like vials than concentrations are named, those are chosen whose signals stand most nearly in
    the ratios of the concentrations.

    Parameters
    ----------
    image : Volume
        Magnitude image, not denoised.
    head : (nx, ny, nz) ndarray of bool or None
        Head on the grid of the image, best from a registered 1H image; ``None`` finds it in the image itself.
    params : CalibrationParams
        Concentrations and search.
    saturation : float, optional
        Value at which voxels are clipped; found where it is not given.

    Returns
    -------
    tuple of Vial
        One for each concentration and in their order: from dim to bright where the concentrations rise.

    Raises
    ------
    EstimationError
        If fewer bodies look like vials than concentrations are named.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> from bids_sodium.image.calibration import CalibrationParams
    >>> grid = Grid.centred((48, 48, 24), 5.0)
    >>> x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    >>> data = np.where(x**2 + y**2 + z**2 < 55**2, 30.0, 0.0)
    >>> data[np.hypot(x - 80, y) < 12], data[np.hypot(x + 80, y) < 12] = 40.0, 80.0
    >>> data += np.abs(np.random.default_rng(0).normal(0, 1, grid.shape))
    >>> [round(vial.centre_mm[0]) for vial in find_vials(Volume(data, grid), None, CalibrationParams())]
    [80, -80]
    """
    candidates = candidate_vials(image, head, params, saturation=saturation)
    wanted = len(params.vial_mmol_l)
    if len(candidates) < wanted:
        seen = "; ".join(
            f"one of {vial.volume_ml:.1f} mL and signal {vial.signal:.4g} at "
            f"({', '.join(f'{value:.0f}' for value in vial.centre_mm)}) mm"
            for vial in candidates
        )
        raise EstimationError(
            f"{wanted} vials are named but {len(candidates)} found outside the head{': ' + seen if seen else ''}",
            hint="give masks of the vials (label-phantom40_mask ...), or the concentrations of those in the image",
        )
    truth = np.log(np.sort(np.array(params.vial_mmol_l)))

    def misfit(chosen: tuple[Vial, ...]) -> float:
        signal = np.log(np.sort([max(vial.signal, 1e-12) for vial in chosen]))
        # uncorrected B1 and receive profiles bend signal ratios by tens of percent
        ratio = float(np.std(signal - truth)) / 0.25
        return ratio**2 + sum((1 - vial.likeness) / 0.1 for vial in chosen)

    chosen = min(itertools.combinations(candidates[: max(10, wanted)], wanted), key=misfit)
    rising = sorted(chosen, key=lambda vial: vial.signal)
    rank = np.argsort(np.argsort(params.vial_mmol_l, kind="stable"), kind="stable")
    return tuple(rising[int(place)] for place in rank)
