"""Noise of an image: its size, its correlation between voxels, and what it does to a linear estimate.

Noise that is white in k-space is correlated between neighbouring voxels once it has been filtered: ``S = sigma^2 R``
with ``R`` the convolution with its autocorrelation. The variance of ``W y`` is ``W S W'``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError

__all__ = ["Noise", "noise_autocorrelation"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Stationary noise.

    Parameters
    ----------
    sigma : float or None
        Standard deviation in a voxel; ``None`` where the residual is to tell it.
    autocorrelation : (mx, my, mz) ndarray or None
        Correlation with the neighbours, 1 at its centre; ``None`` where the residual is to tell it, or for white noise.
    variance_factor : float or None
        Factor on the variance of an estimate instead of an autocorrelation; 1 is white noise.
    """

    sigma: float | None
    autocorrelation: NDArray[np.floating] | None
    variance_factor: float | None

    def __post_init__(self) -> None:
        if self.sigma is not None and not (np.isfinite(self.sigma) and self.sigma >= 0):
            raise DataError(f"the noise standard deviation is {self.sigma}", hint="give a finite number in mmol/L")
        kernel = self.autocorrelation
        if kernel is not None and (kernel.ndim != 3 or any(n % 2 == 0 for n in kernel.shape)):
            raise DataError(f"the noise autocorrelation has shape {kernel.shape}, it needs three odd lengths")

    def completed(self, residual: Array, freedom: int, inside: NDArray[np.bool_], reach_voxels: int) -> Noise:
        """Return the noise with what was not given taken from a residual; never smaller than the residual.

        A residual above the noise is what the model does not explain, and errs in the estimate as noise does.
        """
        power = float((residual**2).sum())
        seen = float(np.sqrt(power / freedom))
        kernel = self.autocorrelation
        if kernel is None and self.variance_factor is None and power > 0:
            image = np.zeros(inside.shape)
            image[inside] = residual
            kernel = noise_autocorrelation(image, reach_voxels, mask=inside)
        return Noise(seen if self.sigma is None else max(self.sigma, seen), kernel, self.variance_factor)

    def covariance(self, W: Array, inside: NDArray[np.bool_]) -> Array:
        """Return ``W S W'`` of an estimator (n, voxels)."""
        variance = (self.sigma or 0.0) ** 2 * (1.0 if self.variance_factor is None else self.variance_factor)
        if self.autocorrelation is None:
            return np.asarray(variance * (W @ W.T))
        from scipy.signal import fftconvolve

        blurred = np.empty_like(W)
        image = np.zeros(inside.shape)
        for i, row in enumerate(W):
            image[inside] = row
            blurred[i] = fftconvolve(image, self.autocorrelation, mode="same")[inside]
        covariance = variance * (W @ blurred.T)
        return np.asarray(0.5 * (covariance + covariance.T))


def noise_autocorrelation(
    noise: NDArray[np.floating], reach_voxels: int = 4, *, mask: NDArray[np.bool_] | None = None
) -> Array:
    """Estimate the spatial autocorrelation of noise.

    ``R(l) = sum n(x) n(x + l) / sum n(x)^2``, with each sum divided by its number of pairs and tapered with a Parzen
    window along each axis, which keeps the noise covariance positive.

    Parameters
    ----------
    noise : (nx, ny, nz) or (m, nx, ny, nz) ndarray
        One noise image or several, of zero mean: reconstructed noise, or the residual of a fit.
    reach_voxels : int
        Largest lag along each axis, in voxels.
    mask : (nx, ny, nz) ndarray of bool, optional
        Voxels that count, by default all.

    Returns
    -------
    (2 r + 1, 2 r + 1, 2 r + 1) ndarray
        Autocorrelation, 1 at its centre.

    Raises
    ------
    EstimationError
        If the noise is zero everywhere.

    Examples
    --------
    >>> white = np.random.default_rng(0).normal(size=(20, 20, 20))
    >>> kernel = noise_autocorrelation(white, 2)
    >>> kernel.shape, float(kernel[2, 2, 2]), bool(abs(kernel[1, 2, 2]) < 0.05)
    ((5, 5, 5), 1.0, True)
    """
    from scipy.fft import irfftn, next_fast_len, rfftn

    images = np.asarray(noise, dtype=np.float64)
    images = images[None] if images.ndim == 3 else images
    inside = np.ones(images.shape[1:], dtype=bool) if mask is None else mask
    full = tuple(next_fast_len(n + reach_voxels, real=True) for n in inside.shape)
    lag = np.arange(-reach_voxels, reach_voxels + 1)

    def correlate(image: Array) -> Array:
        spectrum = rfftn(image, full)
        return np.asarray(irfftn(np.abs(spectrum) ** 2, full)[np.ix_(lag, lag, lag)])

    pairs = np.maximum(correlate(inside.astype(np.float64)), 0.5)
    total = np.sum([correlate(np.where(inside, image, 0.0)) for image in images], axis=0) / pairs
    centre = (reach_voxels,) * 3
    if not total[centre] > 0:
        raise EstimationError("the noise is zero everywhere, so it has no autocorrelation")
    u = np.abs(lag) / (reach_voxels + 1)
    parzen = np.where(u <= 0.5, 1 - 6 * u**2 * (1 - u), 2 * (1 - u) ** 3)
    taper = parzen[:, None, None] * parzen[None, :, None] * parzen[None, None, :]
    return np.asarray(total / total[centre] * taper)
