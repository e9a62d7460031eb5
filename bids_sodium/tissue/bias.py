"""The smooth gain that a receive coil leaves in an anatomical image.

Nouns: a *field* multiplies the image and has mean 1 (in the logarithm) where it was found; the *left-over field* is
what N4 misses, read against what a prior expects of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import EstimationError

__all__ = ["left_over_field", "n4_field"]

Array: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]


def n4_field(
    y: Array,
    mask: Mask,
    voxel_mm: NDArray[np.float64],
    *,
    spline_mm: float,
    iterations: tuple[int, ...],
    coarse_mm: float,
) -> Array:
    """Return the multiplicative bias field of N4.

    Parameters
    ----------
    y : (nx, ny, nz) ndarray
        Image, positive within the mask.
    mask : (nx, ny, nz) ndarray of bool
        One tissue.
    voxel_mm : (3,) ndarray
        Edges of a voxel, in mm.
    spline_mm : float
        Distance of the first spline knots, in mm.
    iterations : tuple of int
        Largest number of iterations at each level.
    coarse_mm : float
        Voxel that N4 works on, in mm.

    Returns
    -------
    (nx, ny, nz) ndarray
        Field, of mean 1 (in the logarithm) over the mask.

    Raises
    ------
    EstimationError
        If there are too few voxels.

    References
    ----------
    Tustison et al. 2010, doi:10.1109/TMI.2010.2046908.
    """
    import SimpleITK as sitk  # noqa: N813

    shrink = np.maximum(np.round(coarse_mm / voxel_mm).astype(int), 1)
    counts = [n // s for n, s in zip(y.shape, shrink, strict=True)]
    if min(counts) < 4 or not mask.any():
        raise EstimationError(
            f"the image has {y.shape} voxels around the brain, too few for a bias field",
            hint="switch the bias correction off",
        )

    def shrunk(a: NDArray[np.float32]) -> NDArray[np.float32]:
        n, s = counts, shrink
        blocks = a[: n[0] * s[0], : n[1] * s[1], : n[2] * s[2]]
        return np.asarray(blocks.reshape(n[0], s[0], n[1], s[1], n[2], s[2]).mean(axis=(1, 3, 5)), dtype=np.float32)

    weight = shrunk(mask.astype(np.float32))
    mean = shrunk(np.where(mask, y, 0.0).astype(np.float32)) / np.maximum(weight, 1e-6)
    # blocks half full of brain: a mean of fewer voxels is mostly edge
    use = weight > 0.5
    image = sitk.GetImageFromArray(np.where(use, mean, 1.0).T)
    image.SetSpacing([float(v * s) for v, s in zip(voxel_mm, shrink, strict=True)])
    region = sitk.GetImageFromArray(use.astype(np.uint8).T)
    region.CopyInformation(image)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(list(iterations))
    extent = np.array(y.shape) * voxel_mm
    points = [max(4, round(length / spline_mm) + 3) for length in extent]
    n4.SetNumberOfControlPoints(points)
    n4.Execute(image, region)
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    log_field = log_field - log_field[use].mean()
    # block centres to voxels: the field is smooth, so its edge values hold beyond the last centre
    fine = np.asarray(log_field, dtype=np.float32)
    for axis, (n, s) in enumerate(zip(y.shape, shrink, strict=True)):
        fine = _interpolated(fine, (np.arange(n) - (s - 1) / 2) / s, axis)
    return np.exp(fine)


def left_over_field(
    y: Array,
    shares: Mapping[str, Array],
    known: Mask,
    modes: Mapping[str, float],
    *,
    voxel_mm: NDArray[np.float64],
    sigma_mm: float,
) -> Array:
    """Return the smooth ratio of the image to what shares and modes expect of it.

    Registration errors push single voxels up as often as down; over a Gaussian of 20 mm they cancel, and Tukey's
    weights (20 %) leave out what the prior does not know. N4 leaves 1.2-2.0 % of field, this 0.8-1.1 %.

    Parameters
    ----------
    y : (nx, ny, nz) ndarray
        Image, without noise.
    shares : mapping of str to (nx, ny, nz) ndarray
        Expected share of ``CSF``, ``GM`` and ``WM`` in each voxel.
    known : (nx, ny, nz) ndarray of bool
        Where the shares can be trusted.
    modes : mapping of str to float
        Intensity of each of them.
    voxel_mm : (3,) ndarray
        Edges of a voxel, in mm.
    sigma_mm : float
        Standard deviation of the Gaussian, in mm.

    Returns
    -------
    (nx, ny, nz) ndarray
        Field, of mean 1 (in the logarithm) where it is known.
    """
    from scipy.ndimage import gaussian_filter

    stride = np.maximum(np.round(3.0 / voxel_mm).astype(int), 1)
    coarse = tuple(slice(None, None, int(n)) for n in stride)
    csf, gm, wm = (shares[name][coarse] for name in ("CSF", "GM", "WM"))
    trust = known[coarse].astype(np.float32)
    sample = y[coarse]
    sigma = sigma_mm / (voxel_mm * stride)
    field: Array = np.zeros_like(sample)
    grey, white = modes["GM"], modes["WM"]
    for _ in range(5):
        level = np.log(np.maximum(sample, 1e-6 * white)) - field
        ratio = level - np.log(csf * modes["CSF"] + gm * grey + wm * white + 1e-6 * white)
        weight = trust * np.maximum(1.0 - (ratio / 0.2) ** 2, 0.0) ** 2
        step = gaussian_filter(weight * ratio, sigma) / (gaussian_filter(weight, sigma) + 1e-4)
        field = np.asarray(field + step, dtype=np.float32)
        grey *= float(np.exp(_weighted_mean(ratio, weight * (gm > 0.8))))
        white *= float(np.exp(_weighted_mean(ratio, weight * (wm > 0.8))))
    fine = np.asarray(field, dtype=np.float32)
    for axis, (n, s) in enumerate(zip(y.shape, stride, strict=True)):
        fine = _interpolated(fine, np.arange(n) / s, axis)
    return np.asarray(np.exp(fine - _weighted_mean(fine, known.astype(np.float32))), dtype=np.float32)


def _weighted_mean(values: Array, weight: Array) -> float:
    total = float(weight.sum(dtype=np.float64))
    return float((weight * values).sum(dtype=np.float64)) / total if total > 0 else 0.0


def _interpolated(a: Array, position: NDArray[np.float64], axis: int) -> Array:
    """Interpolate linearly along one axis at fractional positions, holding the edge values."""
    x = np.clip(position, 0.0, a.shape[axis] - 1.0)
    low = np.minimum(x.astype(int), max(a.shape[axis] - 2, 0))
    shape = [1, 1, 1]
    shape[axis] = -1
    t = (x - low).astype(np.float32).reshape(shape)
    return np.asarray((1 - t) * a.take(low, axis) + t * a.take(np.minimum(low + 1, a.shape[axis] - 1), axis))
