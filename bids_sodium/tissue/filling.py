"""Lesion filling: lesions of a T1w image replaced by the white matter that would be there.

Nouns: the *lesions* are a mask or probability, the *white* prior says where white matter belongs (from the template,
not from a segmentation that the lesions have misled), *normal-appearing white matter* is what the fill is made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import EstimationError, GeometryError

__all__ = ["FillingParams", "fill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FillingParams:
    """How lesions are filled."""

    sigma_mm: float = 4.0
    """Width (standard deviation) of the Gaussian that averages the normal-appearing white matter, in mm: wide against
    noise, narrow against residual bias fields."""

    guard_mm: float = 1.5
    """Distance from a lesion within which no voxel counts as normal-appearing, in mm: one voxel of partial volume."""

    white_core: float = 0.9
    """Smallest white matter prior of normal-appearing white matter."""

    white_limit: float = 0.5
    """White matter prior from which on a lesion voxel is filled whole; below it the fill fades to the original value,
    because a lesion that reaches grey matter would otherwise be overfilled."""


def fill(
    t1w: Volume,
    lesions: NDArray[np.generic],
    white: NDArray[np.generic],
    params: FillingParams,
    rng: np.random.Generator,
) -> Volume:
    """Fill lesions with white matter.

    With ``m`` the mask of normal-appearing white matter and ``G`` a Gaussian, the smooth white matter is the
    normalised convolution ``s = G * (m y) / G * m``; a filled voxel is ``s`` plus one residual ``y - s`` drawn from the
    normal-appearing white matter nearby, so that the fill has its noise. Where ``m`` is too far away the Gaussian is
    widened, twice as wide at a time.

    Parameters
    ----------
    t1w : Volume
        T1-weighted image.
    lesions : (nx, ny, nz) ndarray
        Mask, or probability between 0 and 1; a voxel is replaced by this share.
    white : (nx, ny, nz) ndarray
        Prior probability of white matter (from a template), 0 to 1.
    params : FillingParams
        How.
    rng : numpy.random.Generator
        Draws the residuals.

    Returns
    -------
    Volume
        The filled image; voxels outside the lesions are untouched.

    Raises
    ------
    GeometryError
        If the shapes differ.
    EstimationError
        If there is no normal-appearing white matter around the lesions.

    References
    ----------
    Knutsson and Westin 1993, Proceedings of CVPR (normalised convolution).

    Examples
    --------
    >>> from bids_sodium.core.data import Grid
    >>> data = np.full((32, 32, 32), 100.0, np.float32)
    >>> data[14:18, 14:18, 14:18] = 40.0
    >>> image = Volume(data, Grid.centred((32, 32, 32), 1.0))
    >>> filled = fill(image, data < 50, np.ones(data.shape), FillingParams(), np.random.default_rng(0))
    >>> round(float(filled.data.min()), 3)
    100.0
    """
    from scipy.ndimage import distance_transform_edt

    share_all = np.clip(np.asarray(lesions, dtype=np.float32), 0.0, 1.0)
    for name, array in (("lesions", lesions), ("white matter prior", white)):
        if array.shape != t1w.grid.shape:
            raise GeometryError(f"T1w of shape {t1w.grid.shape} but {name} of shape {array.shape}")
    if not (share_all > 0).any():
        return t1w
    voxel_mm = np.array(t1w.grid.voxel_mm)
    box = _box(share_all > 0, np.ceil((4.0 * params.sigma_mm + params.guard_mm) / voxel_mm).astype(int))
    share, prior = share_all[box], np.asarray(white, dtype=np.float32)[box]
    value = np.asarray(t1w.data, dtype=np.float32)[box]
    near = distance_transform_edt(share <= 0, sampling=voxel_mm) <= params.guard_mm
    normal = (prior >= params.white_core) & ~near & np.isfinite(value) & (value > 0)
    normal &= _without_outliers(value, normal)
    if int(normal.sum()) < 50:
        raise EstimationError(
            f"only {int(normal.sum())} voxels of normal-appearing white matter lie around the lesions",
            hint="check that the white matter prior and the lesion mask lie on the T1w image",
        )
    smooth = _normalised_convolution(value, normal, share > 0, params.sigma_mm / voxel_mm)
    target = share > 0
    filled = smooth[target] + rng.choice((value - smooth)[normal], size=int(target.sum()))
    weight = share[target] * np.clip(prior[target] / params.white_limit, 0.0, 1.0)
    data = np.array(t1w.data, dtype=np.float32, copy=True)
    data[box][target] = value[target] + weight * (filled - value[target])
    return t1w.with_data(data)


def _box(mask: NDArray[np.bool_], margin: NDArray[np.int_]) -> tuple[slice, ...]:
    spans = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        spans.append(slice(max(int(hit[0] - margin[axis]), 0), int(hit[-1] + 1 + margin[axis])))
    return tuple(spans)


def _without_outliers(value: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which voxels lie within 3 robust standard deviations of the median of the mask."""
    if not mask.any():
        return mask
    median = np.median(value[mask])
    spread = 1.4826 * np.median(np.abs(value[mask] - median))
    return np.asarray(np.abs(value - median) <= 3.0 * spread + 1e-6 * abs(median))


def _normalised_convolution(
    value: NDArray[np.float32],
    known: NDArray[np.bool_],
    wanted: NDArray[np.bool_],
    sigma: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Return the Gaussian-weighted mean of the known voxels around each voxel (float32, same shape)."""
    from scipy.ndimage import gaussian_filter

    m = known.astype(np.float32)
    numerator = gaussian_filter(value * m, sigma, truncate=3.0)
    support = gaussian_filter(m, sigma, truncate=3.0)
    # less than 2 % of the kernel on white matter: the mean of a few voxels is noise
    weak = support < 0.02
    smooth = np.where(weak, 0.0, numerator / np.maximum(support, 1e-6)).astype(np.float32)
    if (weak & wanted).any():
        if float(sigma.max()) > 2.0 * max(value.shape):
            smooth[weak] = value[known].mean()
        else:
            smooth[weak] = _normalised_convolution(value, known, weak & wanted, 2.0 * sigma)[weak]
    return smooth
