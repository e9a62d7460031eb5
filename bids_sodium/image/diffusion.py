"""Apparent diffusion coefficient (ADC) from images at two or more b values.

``log S(b) = log S0 - b ADC``, fitted by least squares over every image, which with equally many images a direction is
the fit to the geometric mean over directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError

__all__ = ["Diffusion", "DiffusionParams", "adc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionParams:
    """How the apparent diffusion coefficient is fitted."""

    same_shell_s_mm2: float = 50.0
    """b values closer than this, in s/mm^2, belong to one shell."""

    trace_b_s_mm2: float = 1000.0
    """b value whose geometric mean is the trace image, in s/mm^2; the nearest shell is taken."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Diffusion:
    """Maps of a diffusion fit.

    Parameters
    ----------
    adc : Volume
        Apparent diffusion coefficient, in mm^2/s; 0 where it is not valid.
    adc_se : Volume
        Its standard error from the residuals of the fit, in mm^2/s; NaN where two images leave no residual.
    s0 : Volume
        Fitted signal without diffusion weighting.
    trace : Volume
        Geometric mean of the images of one shell.
    trace_b_s_mm2 : float
        Mean b value of that shell, in s/mm^2.
    valid : (nx, ny, nz) ndarray of bool
        Voxels that are positive and finite in every image and in the mask.
    """

    adc: Volume
    adc_se: Volume
    s0: Volume
    trace: Volume
    trace_b_s_mm2: float
    valid: NDArray[np.bool_]


def adc(
    volume: Volume,
    b_s_mm2: Sequence[float] | NDArray[np.floating],
    params: DiffusionParams | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
) -> Diffusion:
    """Fit the apparent diffusion coefficient in every voxel.

    Parameters
    ----------
    volume : Volume
        Images of shape (nx, ny, nz, n), any number of b values and directions.
    b_s_mm2 : (n,) sequence of float
        b value of each image, in s/mm^2.
    params : DiffusionParams, optional
        Shells.
    mask : (nx, ny, nz) ndarray of bool, optional
        Voxels to fit.

    Returns
    -------
    Diffusion
        Maps, in mm^2/s.

    Raises
    ------
    DataError
        If the b values are not one non-negative number an image.
    EstimationError
        If all b values belong to one shell, or no voxel is positive in all images.

    References
    ----------
    Basser 1994, J Magn Reson B 103:247, doi:10.1006/jmrb.1994.1037 (log-linear least squares).

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> b = np.array([0.0, 1000.0])
    >>> images = np.broadcast_to(100 * np.exp(-b * 8e-4), (2, 2, 2, 2))
    >>> fit = adc(Volume(images, Grid.centred((2, 2, 2), 2.0)), b)
    >>> round(float(fit.adc.data[0, 0, 0]) * 1e6)
    800
    """
    params = params or DiffusionParams()
    data = np.asarray(volume.data, dtype=np.float64)
    b = np.asarray(b_s_mm2, dtype=np.float64)
    if data.ndim != 4 or b.shape != (data.shape[3],):
        raise DataError(
            f"diffusion images of shape {data.shape} with {b.size} b values",
            hint="give one b value for each image of a 4D file",
        )
    if not (np.isfinite(b).all() and (b >= 0).all()):
        raise DataError(f"b values run from {b.min()} to {b.max()} s/mm2", hint="b values are numbers of zero or more")
    if np.ptp(b) <= params.same_shell_s_mm2:
        raise EstimationError(
            f"all {b.size} b values lie between {b.min():g} and {b.max():g} s/mm2, one shell",
            hint="an ADC needs images at two b values, such as 0 and 1000 s/mm2",
        )
    if mask is not None and mask.shape != data.shape[:3]:
        raise GeometryError(f"a mask of shape {mask.shape} for images of shape {data.shape[:3]}")
    valid = np.isfinite(data).all(-1) & (data > 0).all(-1)
    valid = valid if mask is None else valid & mask
    if not valid.any():
        raise EstimationError("no voxel is positive in all diffusion images", hint="check the images and the mask")
    log_signal = np.log(data[valid])
    lever = b - b.mean()
    spread = float(lever @ lever)
    slope = log_signal @ lever / spread
    level = log_signal.mean(-1)
    residual = log_signal - level[:, None] - slope[:, None] * lever
    free = b.size - 2
    error = np.sqrt((residual**2).sum(-1) / free / spread) if free > 0 else np.full(slope.shape, np.nan)
    target = b[np.argmin(np.abs(b - params.trace_b_s_mm2))]
    shell = np.abs(b - target) <= params.same_shell_s_mm2

    def spread_out(values: NDArray[np.float64], fill: float) -> NDArray[np.float64]:
        full = np.full(data.shape[:3], fill)
        full[valid] = values
        return full

    return Diffusion(
        adc=volume.with_data(spread_out(-slope, 0.0), "mm2/s"),
        adc_se=volume.with_data(spread_out(error, np.nan), "mm2/s"),
        s0=volume.with_data(spread_out(np.exp(level - slope * b.mean()), 0.0)),
        trace=volume.with_data(spread_out(np.exp(log_signal[:, shell].mean(-1)), 0.0)),
        trace_b_s_mm2=float(b[shell].mean()),
        valid=np.asarray(valid),
    )
