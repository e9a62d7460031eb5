"""Bodies in an image: the head, the air around it, and the masks of what is neither.

A head is the largest body above the air that holds a ball; distances are in mm, so that voxels may be of any shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError, EstimationError

if TYPE_CHECKING:
    from bids_sodium.image.calibration import CalibrationParams

__all__ = [
    "FEWEST_VOXELS",
    "FWHM",
    "air_level",
    "air_threshold",
    "around",
    "border_voxels",
    "core_of",
    "depth_of",
    "dilated",
    "eroded",
    "head_mask",
    "largest",
    "likeness_of",
    "magnitude_of",
    "regrown",
    "saturation_of",
]

FWHM = float(np.sqrt(8 * np.log(2)))
"""Full width at half maximum of a Gaussian over its standard deviation."""

FEWEST_VOXELS = 4
"""Voxels below which nothing is called a body or a core."""


def saturation_of(values: NDArray[np.generic]) -> float | None:
    """Return the ceiling that values were clipped at, or ``None``.

    Values are clipped where at least two voxels share a maximum of ``2^k - 1`` (1023, 4095 ...; 255 in bytes), or
    where eight or more share a maximum that is far more frequent than the values just below it. Without noise in the
    image, equal maxima tell nothing.

    Examples
    --------
    >>> import numpy as np
    >>> saturation_of(np.array([10, 4095, 4095, 20], dtype=np.int16))
    4095.0
    >>> saturation_of(np.array([10.0, 400.0, 20.0])) is None
    True
    """
    if values.size == 0 or np.iscomplexobj(values):
        return None
    level = np.asarray(values, dtype=np.float64)
    top = float(level.max())
    count = int((level == top).sum())
    if top <= 0 or not np.isfinite(top) or count < 2:
        return None
    smallest = 255 if values.dtype == np.uint8 else 1023
    if top >= smallest and top == int(top) and int(top) & (int(top) + 1) == 0:
        return top
    if count < 8:
        return None
    present, counts = np.unique(level[level > 0], return_counts=True)
    below = counts[(present > 0.8 * top) & (present < top)]
    noisy = present.size >= 200 and int(counts[:-1].max()) < 0.1 * int(counts.sum())
    return top if noisy and below.size >= 4 and count > 5 * float(np.median(below)) else None


def head_mask(image: Volume, params: CalibrationParams) -> NDArray[np.bool_]:
    """Return the head in a 1H or sodium image, without vials.

    The largest body above the air, opened with a ball (``params.head_opening_mm``) that fits into a head and not into
    a vial, so that a vial that touches the head is cut off.

    Parameters
    ----------
    image : Volume
        Magnitude image of the whole head.
    params : CalibrationParams
        Radius of the ball.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        Head, without holes.

    Raises
    ------
    EstimationError
        If nothing as large as a head is seen.
    """
    from scipy import ndimage

    data = magnitude_of(image)
    voxel = np.array(image.grid.voxel_mm)
    smooth = ndimage.gaussian_filter(data, 4.0 / FWHM / voxel)
    body = smooth > air_threshold(smooth)
    body = largest(body)
    body = np.asarray(ndimage.binary_fill_holes(body))
    for axis in range(3):
        for index in range(body.shape[axis]):
            plane = tuple(index if other == axis else slice(None) for other in range(3))
            body[plane] = ndimage.binary_fill_holes(body[plane])
    opened = largest(dilated(eroded(body, params.head_opening_mm, voxel), params.head_opening_mm, voxel) & body)
    volume_ml = float(opened.sum()) * image.grid.voxel_ml
    if volume_ml < 500:
        raise EstimationError(
            f"the largest body in the image has {volume_ml:.0f} mL, too little for a head",
            hint="give a head mask, or name masks of the vials",
        )
    return opened


def magnitude_of(image: Volume) -> NDArray[np.float64]:
    data: NDArray[np.float64] = np.abs(np.asarray(image.data)).astype(np.float64)
    if data.ndim != 3 or not np.isfinite(data).all():
        raise DataError(f"vials are sought in one finite image with three axes, got shape {data.shape}")
    if float(data.max()) == float(data.min()):
        raise DataError(f"every voxel has the value {float(data.flat[0]):g}", hint="export the image again")
    return data


def air_level(data: NDArray[np.float64], smooth: NDArray[np.float64], head: NDArray[np.bool_]) -> tuple[float, float]:
    """Median and spread of the smoothed air; vials are a small part of what lies outside the head."""
    outside = smooth[~head & (data > 0)]
    if outside.size < 100:
        return 0.0, 0.0
    dark = outside[outside <= np.percentile(outside, 70)]
    middle = float(np.median(dark))
    # of a normal distribution cut above its 70th percentile the median is -0.385 and the median deviation 0.488
    spread = float(np.median(np.abs(dark - middle))) / 0.488
    return middle + 0.385 * spread, spread


def air_threshold(smooth: NDArray[np.float64]) -> float:
    """Return a threshold between air and head: a fifth of the way from the air to a typical voxel of the head.

    Parameters
    ----------
    smooth : ndarray
        Smoothed magnitudes of a whole image.
    """
    present = smooth[smooth > 1e-6 * smooth.max()]
    # bright vials and scalp must not lift the first split
    split = _otsu(np.minimum(present, np.percentile(present, 90)))
    dark = present[present <= split]
    air = float(np.median(dark))
    head = float(np.median(present[present > split]))
    noise = 1.4826 * float(np.median(np.abs(dark - air)))
    return max(air + 0.2 * (head - air), min(air + 4 * noise, split))


def _otsu(values: NDArray[np.float64]) -> float:
    """Threshold of greatest variance between two classes."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    good = (below > 0) & (above > 0)
    between = np.zeros(256)
    between[good] = (
        below[good] * above[good] * (total[good] / below[good] - (total[-1] - total[good]) / above[good]) ** 2
    )
    return float(centres[int(np.argmax(between))])


def border_voxels(mask: NDArray[np.bool_]) -> int:
    """Return how many voxels of a mask lie at the border of the image."""
    inner = mask[tuple(slice(1, -1) for _ in mask.shape)]
    return int(mask.sum()) - int(inner.sum())


def largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))


def around(mask: NDArray[np.bool_], index: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return the connected part of a mask that holds one of its voxels."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    return np.asarray(labels == labels[index])


def depth_of(mask: NDArray[np.bool_], voxel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each voxel of the mask from the nearest voxel outside it, beyond the border of the image too."""
    from scipy import ndimage

    padded = np.pad(mask, 1)
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=voxel)[1:-1, 1:-1, 1:-1])


def eroded(mask: NDArray[np.bool_], radius_mm: float, voxel: NDArray[np.float64]) -> NDArray[np.bool_]:
    # a head cut by the border of the image goes on beyond it
    from scipy import ndimage

    if mask.all():
        return mask.copy()
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=voxel) > radius_mm)


def dilated(mask: NDArray[np.bool_], radius_mm: float, voxel: NDArray[np.float64]) -> NDArray[np.bool_]:
    from scipy import ndimage

    if not mask.any():
        return mask.copy()
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=voxel) <= radius_mm)


def regrown(
    body: NDArray[np.bool_], allowed: NDArray[np.bool_], reach_mm: float, voxel: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Give back to a body what the margin around the head cut off, and nothing farther away."""
    return body | (allowed & dilated(body, reach_mm, voxel) & dilated(body, 1.01 * float(voxel.max()), voxel))


def likeness_of(
    body: NDArray[np.bool_], excess: NDArray[np.float64], free: NDArray[np.bool_], voxel: NDArray[np.float64]
) -> float:
    """Contrast to the shell around a body times how much of its ellipsoid of inertia it fills."""
    points = np.argwhere(body) * voxel
    moments = np.cov(points.T) + np.diag(voxel**2) / 12
    spread = np.sqrt(np.linalg.eigvalsh(moments))
    # an ellipsoid of standard deviations s has the volume 4/3 pi sqrt(5)^3 s1 s2 s3; a cylinder fills 0.93 of it
    ellipsoid = 4 / 3 * np.pi * 5**1.5 * float(spread.prod())
    filled = min(float(body.sum() * voxel.prod()) / ellipsoid / 0.9, 1.0)
    round_section = min(1.5 * float(spread[0] / spread[1]), 1.0)
    near, far = (dilated(body, factor * float(voxel.max()), voxel) for factor in (1.5, 3.0))
    shell = far & ~near & free
    around = float(np.median(excess[shell])) if shell.any() else float(excess[body].mean())
    contrast = max(1 - around / float(np.median(excess[body])), 0.0)
    return contrast * filled * round_section


def core_of(mask: NDArray[np.bool_], fraction: float, voxel: NDArray[np.float64]) -> NDArray[np.bool_]:
    depth = depth_of(mask, voxel)
    deepest = float(depth.max())
    core = mask & (depth > fraction * deepest)
    # a core of few voxels is noisier than its edge is wrong
    while int(core.sum()) < min(FEWEST_VOXELS, int(mask.sum())) and fraction > 0.05:
        fraction *= 0.8
        core = mask & (depth > fraction * deepest)
    return core if core.any() else mask
