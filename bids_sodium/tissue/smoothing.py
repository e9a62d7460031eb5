"""Noise out of an anatomical image, edges left in it: hard thresholds on sliding cosine transforms.

Nouns: a *block* is a cube of 5 x 5 x 5 voxels, a *shift* one of the 125 places of a lattice of blocks. With ``D`` the
three-dimensional cosine transform and ``T`` the threshold that keeps a block's mean and every coefficient above ``c``
noise standard deviations, each shift gives an estimate ``D' T D y``; the result is their mean, in which a block of few
coefficients, which holds no edge, counts more: ``w = 1 / (1 + number kept)``.
"""

from __future__ import annotations

import itertools
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, GeometryError

__all__ = ["BLOCK", "cosine_shrinkage"]

Array: TypeAlias = NDArray[np.float32]

BLOCK = 5
"""Edge of a block, in voxels."""


def cosine_shrinkage(
    image: NDArray[np.floating], mask: NDArray[np.bool_], noise: float, *, threshold: float = 2.7
) -> Array:
    """Return the image with its noise shrunk inside a mask.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Image, finite, with white noise.
    mask : (nx, ny, nz) ndarray of bool
        Where the result is wanted; elsewhere the image comes back.
    noise : float
        Standard deviation of the noise, in units of the image.
    threshold : float
        Smallest coefficient that is kept, in noise standard deviations.

    Returns
    -------
    (nx, ny, nz) ndarray
        Denoised image.

    Raises
    ------
    GeometryError
        If the mask has another shape.
    DataError
        If the noise is negative or not finite.

    References
    ----------
    Manjon et al. 2012, Medical Image Analysis, doi:10.1016/j.media.2011.04.003 (sliding cosine transform of MR images).

    Examples
    --------
    >>> step = np.where(np.arange(24) < 12, 100.0, 200.0)[:, None, None] * np.ones((24, 24, 24))
    >>> noisy = step + np.random.default_rng(0).normal(0, 10, step.shape)
    >>> bool((cosine_shrinkage(noisy, step > 0, 10.0) - step).std() < 4.0)
    True
    """
    if mask.shape != image.shape:
        raise GeometryError(f"an image of shape {image.shape} but a mask of shape {mask.shape}")
    if not (np.isfinite(noise) and noise >= 0.0):
        raise DataError(f"a noise of {noise:g}", hint="give its standard deviation")
    y = np.asarray(image, dtype=np.float32)
    if noise == 0.0 or not mask.any():
        return y
    margin = [(BLOCK, BLOCK + (-n) % BLOCK) for n in y.shape]
    padded = np.pad(y, margin, mode="reflect" if min(y.shape) > 2 * BLOCK else "edge")
    inside = np.pad(mask, margin)
    total, weight = np.zeros_like(padded), np.zeros_like(padded)
    transform = _transform()
    for shift in itertools.product(range(BLOCK), repeat=3):
        span = tuple(slice(s, s + (n - s) // BLOCK * BLOCK) for s, n in zip(shift, padded.shape, strict=True))
        chosen = np.flatnonzero(_blocks(inside[span]).any(axis=1))
        coefficients = np.asarray(_blocks(padded[span])[chosen], dtype=np.float32) @ transform.T
        kept = np.abs(coefficients) > threshold * noise
        kept[:, 0] = True
        share = (1.0 / (1.0 + kept.sum(axis=1, keepdims=True))).astype(np.float32)
        estimate = (coefficients * kept) @ transform
        _add(total[span], chosen, estimate * share)
        _add(weight[span], chosen, np.broadcast_to(share, estimate.shape))
    cut = tuple(slice(BLOCK, BLOCK + n) for n in y.shape)
    return np.asarray(np.where(mask, total[cut] / np.maximum(weight[cut], 1e-12), y), dtype=np.float32)


def _transform() -> Array:
    """Return the orthonormal cosine transform of a block as a matrix (125, 125); its first row is the mean."""
    n = np.arange(BLOCK)
    rows = np.cos(np.pi * np.outer(n, n + 0.5) / BLOCK) * np.sqrt(2.0 / BLOCK)
    rows[0] /= np.sqrt(2.0)
    return np.asarray(np.kron(np.kron(rows, rows), rows), dtype=np.float32)


def _blocks(a: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return an image of whole blocks as rows of 125 voxels."""
    i, j, k = (n // BLOCK for n in a.shape)
    return a.reshape(i, BLOCK, j, BLOCK, k, BLOCK).transpose(0, 2, 4, 1, 3, 5).reshape(-1, BLOCK**3)


def _add(image: Array, chosen: NDArray[np.intp], values: Array) -> None:
    """Add rows of 125 voxels to the chosen blocks of an image, in place."""
    i, j, k = (n // BLOCK for n in image.shape)
    x, y, z = np.unravel_index(chosen, (i, j, k))
    view = image.reshape(i, BLOCK, j, BLOCK, k, BLOCK).transpose(0, 2, 4, 1, 3, 5)
    view[x, y, z] += values.reshape(-1, BLOCK, BLOCK, BLOCK)
