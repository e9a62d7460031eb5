"""What every readout needs: sample times, gradient delays, the ramp, and positions on cones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.errors import DataError

__all__ = [
    "GOLDEN_ANGLE",
    "Delay",
    "along_axes",
    "axes_delay",
    "on_cones",
    "positive",
    "ramped",
    "sample_times",
    "speed_of",
    "too_weak",
]

GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))
Delay = float | Sequence[float]
Path = Callable[[NDArray[np.float64]], NDArray[np.floating]]
_DWELL = {"centre": 0.5, "center": 0.5, "start": 0.0}


def positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise DataError(f"{name} is {value:g}", hint="it must be a positive number")


def speed_of(gradient_mt_m: float) -> float:
    """Return cycles/mm/ms: MHz/T x mT/m = cycles/mm/s, and 1000 of these are one cycle/mm/ms."""
    return GAMMA_BAR_MHZ_T * gradient_mt_m / 1000.0


def sample_times(n_samples: int, readout_ms: float, ramp_ms: float, dwell: str) -> NDArray[np.float64]:
    positive(readout_ms=readout_ms)
    if n_samples < 2:
        raise DataError(f"a readout of {n_samples} samples", hint="give at least two")
    if not 0.0 <= ramp_ms < readout_ms:
        raise DataError(f"a ramp of {ramp_ms:g} ms in a readout of {readout_ms:g} ms", hint="times are in ms")
    if dwell not in _DWELL:
        raise DataError(f"the dwell convention is '{dwell}'", hint="use 'centre' or 'start'")
    return np.asarray((np.arange(n_samples) + _DWELL[dwell]) * (readout_ms / n_samples), dtype=np.float64)


def ramped(t: NDArray[np.float64], ramp_ms: float) -> NDArray[np.float64]:
    """Return the integral of a unit gradient that ramps up over ``ramp_ms``."""
    t = np.maximum(t, 0.0)
    if ramp_ms == 0.0:
        return t
    return np.where(t < ramp_ms, t**2 / (2.0 * ramp_ms), t - ramp_ms / 2.0)


def too_weak(gradient_mt_m: float, readout_ms: float, reach: float, k_max: float) -> None:
    raise DataError(
        f"{gradient_mt_m:g} mT/m for {readout_ms:g} ms reaches {reach:.4g} cycles/mm, {k_max:.4g} are needed",
        hint="check the units: gradient in mT/m, readout in ms, voxel in mm",
    )


def axes_delay(delay_ms: Delay) -> tuple[float, float, float]:
    delays = np.atleast_1d(np.asarray(delay_ms, dtype=np.float64))
    if delays.shape not in {(1,), (3,)} or not np.isfinite(delays).all():
        raise DataError(f"a gradient delay of {delay_ms} ms", hint="give one number, or one for each of three axes")
    x, y, z = (float(delay) for delay in np.broadcast_to(delays, 3))
    return x, y, z


def along_axes(path: Path, t: NDArray[np.float64], delay_ms: Delay) -> NDArray[np.float32]:
    """Return the positions at the sample times, each axis with its delay."""
    delays = axes_delay(delay_ms)
    k_per_mm = path(t - delays[0])
    if len(set(delays)) > 1:
        k_per_mm = np.stack([path(t - delay)[..., axis] for axis, delay in enumerate(delays)], axis=-1)
    return k_per_mm.astype(np.float32, copy=False)


def on_cones(
    k: NDArray[np.float64], phi: NDArray[np.float64], sin_theta: NDArray[np.float64], cos_theta: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return positions (shots, samples, 3) at distance k (samples) and azimuth phi on the cone of each shot."""
    rho = k * sin_theta[:, None]
    return np.stack([rho * np.cos(phi), rho * np.sin(phi), k * cos_theta[:, None]], axis=-1).astype(np.float32)
