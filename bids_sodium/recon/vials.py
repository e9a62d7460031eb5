"""A calibration vial measured with the scan's own acquisition as the model.

Its place and diameter are known; its length is not: a mask tells it to a voxel, and a body 4 mm too short reads its
signal 2 % too high. So the ends are fitted with the signal, by a slab across either end, and the body is made again
with the ends where they were found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import Decay
from bids_sodium.core.data import Grid
from bids_sodium.core.errors import EstimationError
from bids_sodium.recon.columns import vial_samples
from bids_sodium.recon.solvers import Linear

__all__ = ["VialFit", "fit_vial"]

_ROUNDS = 3
_STILL = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class VialFit:
    """Signal of a vial, and where its ends are.

    Parameters
    ----------
    signal, se : float
        Signal of a voxel full of gel at the echo time and its standard error, in units of the image.
    centre_mm : (3,) ndarray
        Centre in the world (RAS+, mm).
    length_mm : float
        Length between the fitted ends.
    moved_mm : float
        How far the farther end lies from where it was given; far more than a voxel tells of a wrong mask or a vial that
        is no cylinder.
    residual : float
        Root mean square of what the model leaves, in units of the image.
    """

    signal: float
    se: float
    centre_mm: NDArray[np.float64]
    length_mm: float
    moved_mm: float
    residual: float


def fit_vial(
    image: NDArray[np.floating],
    operator: Linear,
    decay: Decay,
    *,
    name: str,
    centre_mm: NDArray[np.floating],
    axis: NDArray[np.floating],
    radius_mm: float,
    length_mm: float,
    te_ms: float = 0.0,
    sigma: float | None = None,
    correlation_voxels: float = 1.0,
) -> VialFit:
    """Fit the signal of a cylinder and the place of its ends.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Real part of the image, not denoised.
    operator : Linear
        The map that made the image.
    decay : Decay
        Transverse decay of the gel.
    name : str
        Name of the vial.
    centre_mm, axis : (3,) ndarray
        Centre in the world (RAS+, mm) and direction.
    radius_mm, length_mm : float
        Inner radius, and length to a voxel or two.
    te_ms : float
        Time from excitation to the start of the readout, in ms.
    sigma : float, optional
        Noise of a voxel; never below that of the residual.
    correlation_voxels : float
        Voxels that share one independent noise value.

    Returns
    -------
    VialFit
        Signal with standard error, and the ends.

    Raises
    ------
    EstimationError
        If the vial lies outside of the image or shows no signal.

    Examples
    --------
    >>> from bids_sodium.core.constants import AGAR
    >>> from bids_sodium.recon.columns import cylinder_column
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> recon = Linear(spokes, Grid.centred((32, 32, 32), 8.0))
    >>> place = {"centre_mm": np.zeros(3), "axis": np.array([0.0, 0.0, 1.0]), "radius_mm": 20.0}
    >>> image = 3.0 * cylinder_column(recon.grid, spokes, AGAR.decay, operator=recon, length_mm=100.0, **place)
    >>> found = fit_vial(image, recon, AGAR.decay, name="phantom40", length_mm=92.0, **place)
    >>> round(found.signal, 2), round(found.length_mm)
    (3.0, 100)
    """
    y, grid = np.asarray(image, dtype=np.float64), operator.grid
    direction = np.asarray(axis, dtype=np.float64)
    centre, length = np.asarray(centre_mm, dtype=np.float64), float(length_mm)
    voxel = float(max(grid.voxel_mm))
    for _ in range(_ROUNDS):
        body = vial_samples(
            grid,
            operator.trajectory,
            decay,
            centre_mm=centre,
            axis=direction,
            radius_mm=radius_mm,
            length_mm=length,
            end_mm=voxel,
            te_ms=te_ms,
        )
        near = _inside(grid, centre, direction, radius_mm + voxel, length + 2.0 * voxel)
        F = operator(body).real[:, near].astype(np.float64)
        if F.shape[1] < 12:
            raise EstimationError(f"vial {name} has {F.shape[1]} voxels in the image", hint="check its mask")
        normal = np.linalg.inv(F @ F.T)
        amplitude = normal @ (F @ y[near])
        if not amplitude[0] > 0:
            raise EstimationError(f"vial {name} has the signal {amplitude[0]:.3g}", hint="check its mask")
        low, high = np.clip(amplitude[1:] / amplitude[0] * voxel, -voxel, voxel)
        if max(abs(low), abs(high)) < _STILL:
            break
        centre = centre + (high - low) / 2.0 * direction
        length = length + low + high
    residual = y[near] - amplitude @ F
    left = float(np.sqrt((residual**2).sum() / (residual.size - 3)))
    weights = np.zeros(grid.shape)
    weights[near] = (normal @ F)[0]
    level = left if sigma is None else max(float(sigma), left)
    shift = centre - np.asarray(centre_mm, dtype=np.float64)
    along = float(shift @ direction)
    return VialFit(
        signal=float(amplitude[0]),
        se=level * float(np.sqrt(_variance(weights, grid, correlation_voxels))),
        centre_mm=centre,
        length_mm=length,
        moved_mm=max(abs(along + side * (length - length_mm) / 2.0) for side in (-1.0, 1.0)),
        residual=left,
    )


def _inside(
    grid: Grid, centre: NDArray[np.float64], axis: NDArray[np.float64], radius_mm: float, length_mm: float
) -> NDArray[np.bool_]:
    i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
    a = grid.affine
    offset = [a[m, 0] * i + a[m, 1] * j + a[m, 2] * k + a[m, 3] - centre[m] for m in range(3)]
    along = sum(o * u for o, u in zip(offset, axis, strict=True))
    across2 = sum(o**2 for o in offset) - along**2
    return np.asarray((across2 < radius_mm**2) & (np.abs(along) < length_mm / 2.0))


def _variance(weights: NDArray[np.float64], grid: Grid, correlation_voxels: float) -> float:
    """Return the variance of a weighted sum of unit noise whose autocorrelation is a Gaussian of so many voxels."""
    from scipy.ndimage import gaussian_filter

    if correlation_voxels <= 1.0:
        return float((weights**2).sum())
    # exp(-r^2 / 4 w^2) has the volume (4 pi w^2)^(3/2), and is a Gaussian of standard deviation sqrt(2) w
    width_mm = float(np.cbrt(correlation_voxels * np.prod(grid.voxel_mm))) / np.sqrt(2.0 * np.pi)
    blurred = gaussian_filter(weights, width_mm / np.array(grid.voxel_mm), mode="constant")
    return float(correlation_voxels * (weights * blurred).sum())
