"""The smooth phase of an image, and the real part that is left without it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid

__all__ = ["phase_corrected_real"]


def phase_corrected_real(
    image: NDArray[np.complexfloating], grid: Grid, *, smooth_mm: float = 30.0
) -> NDArray[np.float32]:
    """Return the real part after removing the smooth phase of the image.

    First the quadratic phase that fits the phase steps between neighbours, weighted by their power, then three times
    the phase of ``|x| x`` blurred by a Gaussian. Unlike the magnitude, the result keeps zero-mean noise and negative
    lobes, so that linear models hold.

    Parameters
    ----------
    image : (nx, ny, nz) complex ndarray
        Image.
    grid : Grid
        Its lattice.
    smooth_mm : float
        Standard deviation of the blur, in mm.

    Returns
    -------
    (nx, ny, nz) float32 ndarray
        Real part.

    Examples
    --------
    >>> turned = np.ones((8, 8, 8)) * np.exp(0.5j)
    >>> bool(np.allclose(phase_corrected_real(turned, Grid.centred((8, 8, 8), 4.0)), 1.0, atol=1e-6))
    True
    """
    from scipy.ndimage import gaussian_filter

    image = image * np.exp(-1j * _quadratic_phase(image))
    widths = [smooth_mm / step for step in grid.voxel_mm]
    for _ in range(3):
        weighted = image * np.abs(image)
        smooth = gaussian_filter(weighted.real, widths) + 1j * gaussian_filter(weighted.imag, widths)
        size = np.abs(smooth)
        image = image * np.where(size > 0, smooth / np.where(size > 0, size, 1.0), 1.0).conj()
    return np.asarray(image.real, dtype=np.float32)


def _quadratic_phase(image: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    """Return the quadratic polynomial whose steps between neighbours fit those of the phase."""
    axes = [(np.arange(n) - n // 2) / n for n in image.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    terms = [np.broadcast_to(term, image.shape) for term in (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)]
    normal, right = np.zeros((9, 9)), np.zeros(9)
    for axis in range(3):
        if image.shape[axis] < 2:
            continue
        after = (slice(None),) * axis + (slice(1, None),)
        before = (slice(None),) * axis + (slice(None, -1),)
        product = image[after] * image[before].conj()
        weight = np.abs(product).ravel().astype(np.float64)
        slopes = np.stack([(term[after] - term[before]).ravel() for term in terms])
        normal += (slopes * weight) @ slopes.T
        right += (slopes * weight) @ np.angle(product).ravel()
    coefficients = np.linalg.lstsq(normal, right, rcond=None)[0]
    return np.asarray(sum(c * term for c, term in zip(coefficients, terms, strict=True)))
