"""From gradients, measured or played, to where k-space is sampled: ``k(t) = gamma_bar int_0^t G(s) ds``.

A gradient waveform is a row of values a raster time apart, joined by straight lines, so that its integral is exact:
``k`` is a parabola within a raster time. The gradient impulse response function turns the waveform that was asked for
into the one that the coils played. Tables of ``k`` against time and lists of spoke directions become trajectories too.
Gradients are in mT/m, times in ms from the first gradient, k in cycles/mm, frequencies in kHz.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Trajectory
from bids_sodium.core.errors import DataError

__all__ = ["from_angles", "from_directions", "from_gradients", "impulse_response_filtered"]

_RASTER_POINTS = ("centre", "start")


def from_gradients(
    gradient_mt_m: NDArray[np.floating],
    *,
    raster_ms: float,
    t_ms: NDArray[np.floating],
    raster_point: str = "centre",
    delay_ms: float = 0.0,
) -> Trajectory:
    """Return the trajectory of gradient waveforms.

    Between its values the gradient is a straight line, and half a raster time beyond the first and the last value
    (a whole one after the last for ``"start"``) it goes on as it did; ``k`` is the exact integral of that from zero.

    Parameters
    ----------
    gradient_mt_m : (n_shots, n_raster, 3) ndarray
        Gradients along the axes of the image grid, in mT/m; the first value belongs to time zero.
    raster_ms : float
        Time between values, in ms.
    t_ms : (n_samples,) ndarray
        Times of the samples from the beginning of the waveform, in ms.
    raster_point : {"centre", "start"}
        Whether value ``i`` is the gradient at ``(i + 1/2) raster_ms``, the centre of its raster time (Siemens,
        Pulseq), or at ``i raster_ms``, its start.
    delay_ms : float
        Time by which the gradients lag the sampling, in ms.

    Returns
    -------
    Trajectory
        (n_shots, n_samples, 3); its kind is ``"imported"`` and its solid angles are not stated.

    Raises
    ------
    DataError
        If shapes or numbers are impossible, or a sample lies beyond the end of the waveform.

    Examples
    --------
    >>> constant = np.full((1, 100, 3), [4.6, 0.0, 0.0])
    >>> line = from_gradients(constant, raster_ms=0.01, t_ms=np.array([0.25, 0.5, 1.0]))
    >>> (line.k_per_mm[0, :, 0] / (0.011262 * 4.6)).round(6).tolist()
    [0.25, 0.5, 1.0]
    """
    gradient = _checked(gradient_mt_m, raster_ms)
    t = np.asarray(t_ms, dtype=np.float64)
    if t.ndim != 1 or t.size < 1 or not np.isfinite(t).all():
        raise DataError(f"sample times of shape {t.shape}", hint="give one finite time in ms for each sample")
    if raster_point not in _RASTER_POINTS:
        raise DataError(
            f"gradient values at the '{raster_point}' of their raster time",
            hint=f"choose one of {', '.join(_RASTER_POINTS)}",
        )
    n_shots, n_raster, _ = gradient.shape
    at = (t - delay_ms) / raster_ms
    if at.max() > n_raster + 1e-6:
        raise DataError(
            f"a sample at {t.max():.6g} ms, a delay of {delay_ms:g} ms and gradients of {n_raster * raster_ms:.6g} ms",
            hint="check raster time and sample times, both in ms",
        )
    # Node i of the integral lies at first + i raster times; before zero there is no gradient.
    first = 0.5 if raster_point == "centre" else 0.0
    left = np.clip(np.floor(at - first).astype(int), 0, n_raster - 2)
    share = np.maximum(at, 0.0) - first - left
    scale = GAMMA_BAR_MHZ_T / 1000.0 * raster_ms
    k_per_mm = np.empty((n_shots, t.size, 3), dtype=np.float32)
    for axis in range(3):
        value = np.asarray(gradient[..., axis], dtype=np.float64)
        slope = np.diff(value, axis=1)
        area = np.zeros_like(value)
        np.cumsum(value[:, :-1] + slope / 2.0, axis=1, out=area[:, 1:])
        area += (first * (value[:, 0] - first * slope[:, 0] / 2.0))[:, None]
        k = area[:, left] + share * (value[:, left] + share * slope[:, left] / 2.0)
        k_per_mm[..., axis] = np.where(at > 0.0, scale * k, 0.0)
    return Trajectory(k_per_mm, t)


def from_directions(directions: NDArray[np.floating], k_per_mm: NDArray[np.floating], t_ms: ArrayLike) -> Trajectory:
    """Return straight spokes that share one table of ``k`` against time.

    Parameters
    ----------
    directions : (n_shots, 3) ndarray
        Unit vectors along the axes of the image grid; rounding in the table is made good.
    k_per_mm : (n_samples,) ndarray
        Distance from the centre of k-space, in cycles/mm.
    t_ms : (n_samples,) ndarray
        Times of the samples from the first gradient, in ms.

    Returns
    -------
    Trajectory
        (n_shots, n_samples, 3); its kind is ``"radial"`` and its solid angles are not stated.

    Raises
    ------
    DataError
        If a direction is no unit vector, a number is not finite or the lengths differ.

    Examples
    --------
    >>> from_directions(np.eye(3), np.array([0.0, 0.1]), np.array([0.0, 1.0])).k_per_mm[2, 1].tolist()[2]
    0.10000000149011612
    """
    unit = np.asarray(directions, dtype=np.float64)
    k = np.asarray(k_per_mm, dtype=np.float64)
    t = np.asarray(t_ms, dtype=np.float64)
    if unit.ndim != 2 or unit.shape[1:] != (3,) or not len(unit):
        raise DataError(f"directions of shape {unit.shape}", hint="give x, y and z of every spoke")
    if k.ndim != 1 or k.shape != t.shape:
        raise DataError(f"{k.shape} values of k at {t.shape} times", hint="give one k in cycles/mm for each time in ms")
    if not (np.isfinite(k).all() and np.isfinite(t).all()):
        raise DataError("the table of k against time holds NaN or infinite numbers", hint="export it again")
    length = np.linalg.norm(unit, axis=1)
    wrong = np.flatnonzero(~(np.abs(length - 1.0) < 0.02))
    if wrong.size:
        raise DataError(
            f"direction {int(wrong[0])} has length {length[wrong[0]]:.4g}, {wrong.size} of {len(unit)} are no unit "
            "vectors",
            hint="divide each direction by its length",
        )
    spokes = (unit / length[:, None])[:, None, :] * k[None, :, None]
    return Trajectory(spokes.astype(np.float32), t, None, "radial")


def from_angles(polar_deg: ArrayLike, azimuth_deg: ArrayLike) -> NDArray[np.float64]:
    """Return the directions of polar and azimuthal angles, ``(sin t cos p, sin t sin p, cos t)``.

    Parameters
    ----------
    polar_deg : (n,) array_like
        Angle to the third axis, 0 to 180 degrees.
    azimuth_deg : (n,) array_like
        Angle from the first towards the second axis, in degrees.

    Returns
    -------
    (n, 3) ndarray
        Unit vectors.

    Raises
    ------
    DataError
        If the lists differ in length, or a polar angle is outside 0 to 180 degrees.

    Examples
    --------
    >>> from_angles([90.0, 0.0], [90.0, 0.0]).round(6).tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    polar, azimuth = (np.asarray(values, dtype=np.float64) for values in (polar_deg, azimuth_deg))
    if polar.ndim != 1 or polar.shape != azimuth.shape:
        raise DataError(
            f"{polar.shape} polar and {azimuth.shape} azimuthal angles", hint="give one pair for each spoke"
        )
    if not (np.isfinite(azimuth).all() and (polar >= -1e-6).all() and (polar <= 180.0 + 1e-6).all()):
        raise DataError(
            f"polar angles from {polar.min():g} to {polar.max():g} degrees",
            hint="the polar angle is measured from the third axis, 0 to 180 degrees",
        )
    theta, phi = np.deg2rad(polar), np.deg2rad(azimuth)
    return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)


def impulse_response_filtered(
    gradient_mt_m: NDArray[np.floating],
    raster_ms: float,
    frequency_khz: NDArray[np.floating],
    response: NDArray[np.complexfloating],
) -> NDArray[np.float64]:
    """Return the gradients that the coils play where ``gradient_mt_m`` are asked for, ``G_out(f) = H(f) G_in(f)``.

    ``H`` is the Fourier transform of the impulse response, ``int h(t) exp(-2 pi i f t) dt``: a delay of tau is
    ``exp(-2 pi i f tau)``. Real gradients need it at frequencies from zero on only.

    Parameters
    ----------
    gradient_mt_m : (n_shots, n_raster, 3) ndarray
        Gradients asked for, in mT/m, along the axes of the gradient coils.
    raster_ms : float
        Time between values, in ms.
    frequency_khz : (n_freq,) ndarray
        Frequencies of the response, rising, in kHz; between them it is interpolated, beyond the last it stays.
    response : (n_freq, 3) complex ndarray
        Response of each axis to itself.

    Returns
    -------
    (n_shots, n_raster, 3) ndarray
        Gradients played, in mT/m, at the same times.

    Raises
    ------
    DataError
        If shapes or numbers are impossible, or the response does not reach down to frequency zero.

    References
    ----------
    Vannesjo 2013, Magn Reson Med 69:583; Campbell-Washburn 2016, Magn Reson Med 75:2278.

    Examples
    --------
    >>> asked = np.ones((1, 8, 3))
    >>> played = impulse_response_filtered(asked, 0.01, np.array([0.0, 50.0]), np.full((2, 3), 0.5 + 0j))
    >>> bool(abs(played - 0.5).max() < 1e-12)
    True
    """
    gradient = _checked(gradient_mt_m, raster_ms)
    f = np.asarray(frequency_khz, dtype=np.float64)
    h = np.asarray(response, dtype=np.complex128)
    if f.ndim != 1 or f.size < 2 or h.shape != (f.size, 3):
        raise DataError(
            f"an impulse response of shape {h.shape} at {f.shape} frequencies",
            hint="give at least two frequencies and a value for each of the three axes",
        )
    if not (np.isfinite(f).all() and np.isfinite(h).all() and (np.diff(f) > 0).all()):
        raise DataError(
            "frequencies of the impulse response do not rise, or a value is not finite",
            hint="sort them, and leave out what was not measured",
        )
    if f[0] > 1e-9 or f[-1] <= 0.0:
        raise DataError(
            f"an impulse response from {f[0]:g} to {f[-1]:g} kHz", hint="it must begin at or below zero, in kHz"
        )
    from scipy import fft

    n_raster = gradient.shape[1]
    # The response of the end of the waveform, which lasts 1 / (step of the frequencies) at most, must not wrap round.
    memory = min(int(np.ceil(1.0 / (np.diff(f).min() * raster_ms))), 4 * n_raster)
    n = fft.next_fast_len(n_raster + max(memory, n_raster), real=True)
    at = fft.rfftfreq(n, raster_ms)
    played = np.empty(gradient.shape, dtype=np.float64)
    for axis in range(3):
        filtered = fft.rfft(np.asarray(gradient[..., axis], dtype=np.float64), n, axis=1)
        filtered *= np.interp(at, f, h[:, axis])
        played[..., axis] = fft.irfft(filtered, n, axis=1)[:, :n_raster]
    return played


def _checked(gradient_mt_m: NDArray[np.floating], raster_ms: float) -> NDArray[np.floating]:
    gradient = np.asarray(gradient_mt_m)
    if gradient.ndim != 3 or gradient.shape[2] != 3 or gradient.shape[1] < 2:
        raise DataError(f"gradients have shape (shots, raster times, 3), got {gradient.shape}")
    if not np.isfinite(gradient).all():
        raise DataError("the gradients hold NaN or infinite values", hint="export them again")
    if not (np.isfinite(raster_ms) and raster_ms > 0):
        raise DataError(f"a raster time of {raster_ms:g} ms", hint="it must be a positive number")
    return gradient
