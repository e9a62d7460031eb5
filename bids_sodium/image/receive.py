"""Receive sensitivity: the smooth ratio of an array image to a volume-coil image of the same head.

The ratio of both images holds the sensitivity of the array and no anatomy; it is smoothed where there is signal and
continued smoothly where there is none. `bids_sodium.image.bias` reads a sensitivity from one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.image.vials import air_threshold

__all__ = ["ReceiveParams", "correct_receive", "receive_ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveParams:
    """How the receive sensitivity is smoothed."""

    fwhm_mm: float = 20.0
    """Full width at half maximum of the low-pass filter, in mm; sensitivities vary over centimetres."""

    floor: float = 0.1
    """Smallest sensitivity, as a fraction of its median over the signal, so that division stays bounded."""

    degree: int = 3
    """Degree of the polynomial of a bias without a second image: a quadratic leaves 12 % of the profile of an array of
    loops in the head, a cubic 9 %, and 6 % where the anatomy is expected."""

    classes: int = 2
    """Tissue classes of different sodium that the head's signal is split into, where nothing is expected of it."""

    vial_percent: float = 2.0
    """Error of a vial's signal beyond noise, in percent: its concentration and its place."""

    edge_mm: float = 10.0
    """How far inside the head's surface a bias is read, in mm: nearer, the point spread mixes air in."""

    def __post_init__(self) -> None:
        if not (1 <= self.degree <= 4 and 1 <= self.classes <= 4):
            raise ConfigError(f"a bias of degree {self.degree} with {self.classes} classes", hint="choose 1 to 4 each")
        if min(self.fwhm_mm, self.vial_percent) <= 0 or self.edge_mm < 0 or not 0 < self.floor < 1:
            raise ConfigError("a width, an error or the floor of the receive sensitivity is out of its range")


def receive_ratio(
    array: Volume,
    volume_coil: Volume,
    params: ReceiveParams | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return the receive sensitivity of an array relative to a volume coil.

    Both images are low-pass filtered over the voxels with signal and divided (normalised convolution); the tail of the
    filter continues the ratio to the border of the field of view.

    Parameters
    ----------
    array, volume_coil : Volume
        Images of the same head on one grid, noise floor taken off where it matters.
    params : ReceiveParams, optional
        Filter and floor.
    mask : (nx, ny, nz) ndarray of bool, optional
        Voxels with signal in both images; found from the volume-coil image where it is not given.

    Returns
    -------
    (nx, ny, nz) ndarray
        Array over volume coil, positive everywhere; dividing by it brings the array image to the scale of the
        volume coil.

    Raises
    ------
    GeometryError
        If the images lie on different grids.
    EstimationError
        If no voxel has signal in both.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> grid = Grid.centred((16, 16, 16), 8.0)
    >>> head = np.zeros(grid.shape)
    >>> head[4:12, 4:12, 4:12] = 100.0
    >>> ratio = receive_ratio(Volume(3 * head, grid), Volume(head, grid))
    >>> bool(np.allclose(ratio, 3.0))
    True
    """
    from scipy import ndimage

    params = params or ReceiveParams()
    if not array.grid.same_as(volume_coil.grid):
        raise GeometryError(
            "array and volume-coil image lie on different grids", hint="resample one onto the grid of the other"
        )
    upper, lower = (np.asarray(image.data, dtype=np.float64) for image in (array, volume_coil))
    for image in (upper, lower):
        if image.ndim != 3 or not np.isfinite(image).all():
            raise DataError(f"a sensitivity needs two finite images with three axes, got shape {image.shape}")
    if mask is not None and mask.shape != lower.shape:
        raise GeometryError(f"a mask of shape {mask.shape} for an image of shape {lower.shape}")
    voxel = np.array(array.grid.voxel_mm)
    inside = _signal(lower, voxel) if mask is None else np.asarray(mask, dtype=bool)
    inside = inside & (upper > 0) & (lower > 0)
    if not inside.any():
        raise EstimationError("no voxel has signal in both images", hint="check that both show the same head")
    top, bottom = np.zeros(lower.shape), np.zeros(lower.shape)
    width_mm, share = params.fwhm_mm, 1.0
    # one kernel with a heavy tail: Gaussians of rising width and falling share, the wide ones for outside the head
    while True:
        sigma = width_mm / 2.3548 / voxel
        top += share * ndimage.gaussian_filter(np.where(inside, upper, 0.0), sigma, mode="constant")
        bottom += share * ndimage.gaussian_filter(np.where(inside, lower, 0.0), sigma, mode="constant")
        if width_mm > max(array.grid.fov_mm):
            break
        width_mm, share = 1.5 * width_mm, share / 30
    far = upper[inside].sum() / lower[inside].sum()
    ratio = np.divide(top, bottom, out=np.full(lower.shape, far), where=bottom > 0)
    return np.asarray(np.maximum(ratio, params.floor * float(np.median(ratio[inside]))))


def correct_receive(image: Volume, ratio: NDArray[np.floating]) -> Volume:
    """Divide an image by the receive sensitivity.

    Parameters
    ----------
    image : Volume
        Image of the array.
    ratio : (nx, ny, nz) ndarray
        Sensitivity on its grid, from `receive_ratio` or a map.

    Returns
    -------
    Volume
        Corrected image; its noise is that of ``image`` divided by ``ratio`` and varies in space.

    Raises
    ------
    GeometryError
        If the shapes differ.
    DataError
        If the sensitivity is not positive everywhere.
    """
    if ratio.shape != image.grid.shape:
        raise GeometryError(f"a sensitivity of shape {ratio.shape} for an image of shape {image.grid.shape}")
    if not (np.isfinite(ratio).all() and (ratio > 0).all()):
        raise DataError("the receive sensitivity is not positive everywhere", hint="check the receive map")
    return image.with_data(np.asarray(image.data, dtype=np.float64) / ratio)


def _signal(image: NDArray[np.float64], voxel: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Voxels above the air, without specks."""
    from scipy import ndimage

    if not (image > 0).any():
        return np.zeros(image.shape, dtype=bool)
    smooth = ndimage.gaussian_filter(image, 4.0 / 2.3548 / voxel)
    return np.asarray(ndimage.binary_opening(smooth > air_threshold(smooth)))
