"""Noise of receive channels, their whitening and the combination of their images.

The noise of a channel is read from the ends of its readouts: the signal of a head has faded there and changes slowly,
so that second differences hold noise alone and their median absolute deviation is its scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import ConfigError, DataError

__all__ = ["Combination", "combine", "noise_covariance", "noise_sigma", "sensitivities", "whitening"]

_MAD_TO_SD = 1.4826022185056018
_SECOND_DIFFERENCE_SD = np.sqrt(6.0)
COMBINATIONS = ("adaptive", "sense", "sos")
_SLAB_VOXELS = 1 << 16
_POWER_ITERATIONS = 10
_TRACE = 1e-3


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


def noise_covariance(
    samples: NDArray[np.complexfloating], noise: NDArray[np.complexfloating] | None = None, *, last: int = 64
) -> NDArray[np.complex128]:
    """Return the noise covariance of the real (= imaginary) parts between channels.

    Scales come from `noise_sigma`, correlations from a noise scan where there is one, else from second differences
    within 3.5 standard deviations in every channel.

    Parameters
    ----------
    samples : (n_coils, n_shots, n_samples) complex ndarray
        K-space.
    noise : (n_coils, n) complex ndarray, optional
        Samples of a noise scan, whose bandwidth and so whose level may be another.
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

    References
    ----------
    Pruessmann 2001, doi:10.1002/mrm.1241 (noise correlation of channels).
    """
    sigma = noise_sigma(samples, last=last)
    _require_noise(sigma)
    if noise is None:
        scaled = _second_differences(samples, last).reshape(samples.shape[0], -1)
        scaled = scaled / (sigma[:, None] * _SECOND_DIFFERENCE_SD).astype(np.float32)
        kept = scaled[:, (np.abs(scaled) < 3.5 * np.sqrt(2.0)).all(axis=0)].astype(np.complex128)
    else:
        kept = noise.astype(np.complex128)
        _require_noise(np.abs(kept).max(axis=1))
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
    keeps the noise level of a channel. ``"sos"`` is the root of the sum of squares.

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
    Walsh 2000, doi:10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G.

    Examples
    --------
    >>> coil = np.ones((8, 8, 8)) * np.array([3.0, 4.0j])[:, None, None, None]
    >>> round(float(abs(combine(coil).image[4, 4, 4])), 4)
    5.0
    """
    if method not in ("adaptive", "sos"):
        raise ConfigError(f"unknown coil combination '{method}'", hint="choose one of adaptive, sos")
    if images.shape[0] == 1:
        return Combination(images[0], np.ones_like(images))
    vectors = sensitivities(images, window=window)
    combined = np.empty(images.shape[1:], dtype=images.dtype)
    for x in range(images.shape[1]):
        if method == "sos":
            combined[x] = np.sqrt(np.einsum("cyz,cyz->yz", images[:, x], images[:, x].conj()).real)
        else:
            combined[x] = np.einsum("cyz,cyz->yz", vectors[:, x].conj(), images[:, x])
    return Combination(combined, vectors)


def sensitivities(images: NDArray[np.complexfloating], *, window: int = 5) -> NDArray[np.complex64]:
    """Return each voxel's main direction among the channels, a unit vector.

    It is the main eigenvector of ``sum x x^H`` over the neighbourhood of the voxel, found by power iteration. Its
    product with the main eigenvector of the whole image is real, so that the combined image has the smooth phase of one
    large coil.

    Parameters
    ----------
    images : (n_coils, nx, ny, nz) complex ndarray
        Images of equal and independent noise.
    window : int
        Edge of the neighbourhood, in voxels.

    Returns
    -------
    (n_coils, nx, ny, nz) complex64 ndarray
        Sensitivities relative to their root of the sum of squares.

    Examples
    --------
    >>> coil = np.ones((8, 8, 8)) * np.array([3.0, 4.0j])[:, None, None, None]
    >>> np.abs(sensitivities(coil)[:, 4, 4, 4]).astype(float).round(3).tolist()
    [0.6, 0.8]
    """
    from scipy.ndimage import uniform_filter

    n, nx = images.shape[:2]
    flat = images.reshape(n, -1)
    whole = np.linalg.eigh(np.asarray(flat @ flat.conj().T, dtype=np.complex128))[1][:, -1].astype(np.complex64)
    vectors = np.empty(images.shape, dtype=np.complex64)
    half = window // 2
    # Slab by slab: the covariance of every voxel at once would be n times the size of the images.
    thick = max(1, _SLAB_VOXELS // int(np.prod(images.shape[2:])))
    for start in range(0, nx, thick):
        stop = min(start + thick, nx)
        low, high = max(start - half, 0), min(stop + half, nx)
        slab, inner = images[:, low:high], slice(start - low, stop - low)
        covariance = np.empty((n, n, stop - start, *images.shape[2:]), dtype=np.complex64)
        for i in range(n):
            for j in range(i + 1):
                product = slab[i] * slab[j].conj()
                smooth = uniform_filter(product.real, window) + 1j * uniform_filter(product.imag, window)
                covariance[i, j] = smooth[inner]
                covariance[j, i] = covariance[i, j].conj()
        vectors[:, start:stop] = _main_eigenvectors(covariance, whole)
    return vectors


def _main_eigenvectors(covariance: NDArray[np.complex64], reference: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return the main eigenvectors (n, ...) of (n, n, ...), their product with a reference real and positive."""
    n = covariance.shape[0]
    shape = covariance.shape[2:]
    vector = np.broadcast_to(reference.reshape(n, *(1,) * len(shape)), (n, *shape))
    for _ in range(_POWER_ITERATIONS):
        # A trace of the start stays in, so that a voxel without signal keeps a vector of length one.
        moved = np.float32(_TRACE) * vector
        scale = np.einsum("ii...->...", covariance).real + np.float32(1e-30)
        for i in range(n):
            for j in range(n):
                moved[i] += covariance[i, j] / scale * vector[j]
        vector = moved / np.sqrt(np.einsum("c...,c...->...", moved, moved.conj()).real)
    product = np.einsum("c,c...->...", reference.conj(), vector)
    size = np.abs(product)
    turn = np.where(size > 1e-6, product / np.maximum(size, 1e-6), 1.0)
    return np.asarray(vector * turn.conj(), dtype=np.complex64)


def _require_noise(sigma: NDArray[np.floating]) -> None:
    if not (sigma > 0).all():
        empty = ", ".join(str(i) for i in np.flatnonzero(~(sigma > 0)))
        raise DataError(f"channel(s) {empty} hold no noise", hint="leave out channels that were switched off")


def _second_differences(samples: NDArray[np.complexfloating], last: int) -> NDArray[np.complexfloating]:
    if samples.shape[-1] < 3:
        raise DataError(f"readouts of {samples.shape[-1]} samples", hint="noise is estimated from at least three")
    tail = samples[..., -max(3, min(last, samples.shape[-1] // 2)) :]
    return np.asarray(np.diff(tail, n=2, axis=-1))
