"""Noise of receive channels, their whitening and the combination of their images.

The noise of a channel is read from the ends of its readouts: the signal of a head has faded there and changes slowly,
so that second differences hold noise alone and their median absolute deviation is its scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import ConfigError, DataError

__all__ = ["Combination", "combine", "noise_covariance", "noise_sigma", "whitening"]

_MAD_TO_SD = 1.4826022185056018
_SECOND_DIFFERENCE_SD = np.sqrt(6.0)
COMBINATIONS = ("adaptive", "sos")


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """One image of several channels.

    Parameters
    ----------
    image : (nx, ny, nz) complex ndarray
        Combined image; real where the sum of squares was asked for.
    sensitivity : (n_coils, nx, ny, nz) complex ndarray
        Unit vectors of the channels' weights in each voxel.
    """

    image: NDArray[np.complexfloating]
    sensitivity: NDArray[np.complexfloating]


def noise_sigma(samples: NDArray[np.complexfloating], *, last: int = 64) -> NDArray[np.float64]:
    """Return the standard deviation of the noise in the real (= imaginary) part of each channel.

    ``1.4826 median |s_(j-1) - 2 s_j + s_(j+1)| / sqrt 6`` over the real and imaginary parts of the last samples.

    Parameters
    ----------
    samples : (n_coils, n_shots, n_samples) complex ndarray
        K-space.
    last : int
        How many samples of each readout are used.

    Returns
    -------
    (n_coils,) ndarray
        Standard deviations, in the unit of the samples.

    Raises
    ------
    DataError
        If a readout has fewer than three samples.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise = rng.normal(0, 2, (1, 500, 100)) + 1j * rng.normal(0, 2, (1, 500, 100))
    >>> round(float(noise_sigma(noise)[0]), 1)
    2.0
    """
    difference = _second_differences(samples, last)
    parts = np.concatenate([difference.real, difference.imag], axis=-1).reshape(samples.shape[0], -1)
    return np.asarray(np.median(np.abs(parts), axis=-1) * (_MAD_TO_SD / _SECOND_DIFFERENCE_SD), dtype=np.float64)


def noise_covariance(samples: NDArray[np.complexfloating], *, last: int = 64) -> NDArray[np.complex128]:
    """Return the noise covariance of the real (= imaginary) parts between channels.

    Scales come from `noise_sigma`, correlations from second differences within 3.5 standard deviations in every
    channel.

    Parameters
    ----------
    samples : (n_coils, n_shots, n_samples) complex ndarray
        K-space.
    last : int
        How many samples of each readout are used.

    Returns
    -------
    (n_coils, n_coils) complex ndarray
        Hermitian covariance.

    Raises
    ------
    DataError
        If a channel holds no noise at all.
    """
    sigma = noise_sigma(samples, last=last)
    if not (sigma > 0).all():
        empty = ", ".join(str(i) for i in np.flatnonzero(sigma <= 0))
        raise DataError(f"channel(s) {empty} hold no noise", hint="leave out channels that were switched off")
    scaled = _second_differences(samples, last).reshape(samples.shape[0], -1).astype(np.complex128)
    scaled = scaled / (sigma[:, None] * _SECOND_DIFFERENCE_SD)
    kept = scaled[:, (np.abs(scaled) < 3.5 * np.sqrt(2.0)).all(axis=0)]
    correlation = kept @ kept.conj().T
    norm = np.sqrt(np.diag(correlation).real)
    return np.asarray(correlation / np.outer(norm, norm) * np.outer(sigma, sigma))


def whitening(covariance: NDArray[np.complexfloating]) -> NDArray[np.complex128]:
    """Return the matrix that makes the channels' noise independent and equal.

    The inverse Cholesky factor, scaled so that every channel has the geometric mean of the channels' noise and the
    signals keep their order of magnitude.

    Parameters
    ----------
    covariance : (n_coils, n_coils) complex ndarray
        Hermitian, positive definite.

    Returns
    -------
    (n_coils, n_coils) complex ndarray
        Matrix that multiplies the channels.

    Raises
    ------
    DataError
        If the covariance is not positive definite.

    Examples
    --------
    >>> whitening(np.diag([1.0, 16.0])).real.round(2).tolist()
    [[2.0, 0.0], [0.0, 0.5]]
    """
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise DataError(
            "the noise of the channels is linearly dependent", hint="leave out channels that repeat others"
        ) from error
    level = np.exp(np.mean(np.log(np.sqrt(np.diag(covariance).real))))
    return np.asarray(np.linalg.inv(factor) * level, dtype=np.complex128)


def combine(images: NDArray[np.complexfloating], method: str = "adaptive", *, window: int = 5) -> Combination:
    """Combine the whitened images of the channels.

    ``"adaptive"`` projects each voxel on the main eigenvector of the channels' covariance over its neighbourhood, which
    keeps the noise level of a channel and the phase of the channel with the most signal. ``"sos"`` is the root of the
    sum of squares.

    Parameters
    ----------
    images : (n_coils, nx, ny, nz) complex ndarray
        Images of equal and independent noise.
    method : {"adaptive", "sos"}
        Combination.
    window : int
        Edge of the neighbourhood, in voxels.

    Returns
    -------
    Combination
        Image and weights.

    Raises
    ------
    ConfigError
        If the method is unknown.

    References
    ----------
    Walsh 2000, Magn Reson Med 43:682.

    Examples
    --------
    >>> coil = np.ones((8, 8, 8)) * np.array([3.0, 4.0j])[:, None, None, None]
    >>> round(float(abs(combine(coil).image[4, 4, 4])), 4)
    5.0
    """
    if method not in COMBINATIONS:
        raise ConfigError(f"unknown coil combination '{method}'", hint=f"choose one of {', '.join(COMBINATIONS)}")
    n = images.shape[0]
    if n == 1:
        return Combination(images[0], np.ones_like(images))
    from scipy.ndimage import uniform_filter

    covariance = np.empty((*images.shape[1:], n, n), dtype=np.complex64)
    for i in range(n):
        for j in range(i + 1):
            product = images[i] * images[j].conj()
            smooth = uniform_filter(product.real, window) + 1j * uniform_filter(product.imag, window)
            covariance[..., i, j], covariance[..., j, i] = smooth, smooth.conj()
    vector = np.linalg.eigh(covariance)[1][..., -1]
    strongest = int(np.argmax(np.einsum("cxyz,cxyz->c", images, images.conj()).real))
    reference = vector[..., strongest]
    phase = np.where(np.abs(reference) > 0, reference / np.maximum(np.abs(reference), 1e-12), 1.0)
    vector = np.moveaxis(vector / phase[..., None], -1, 0)
    if method == "sos":
        power = np.einsum("cxyz,cxyz->xyz", images, images.conj()).real
        return Combination(np.sqrt(power).astype(np.complex64), vector)
    return Combination(np.einsum("cxyz,cxyz->xyz", vector.conj(), images), vector)


def _second_differences(samples: NDArray[np.complexfloating], last: int) -> NDArray[np.complexfloating]:
    if samples.shape[-1] < 3:
        raise DataError(f"readouts of {samples.shape[-1]} samples", hint="noise is estimated from at least three")
    tail = samples[..., -max(3, min(last, samples.shape[-1] // 2)) :]
    return np.asarray(np.diff(tail, n=2, axis=-1))
