"""How bright a vial is: the median of its core, a cylinder convolved with the point spread, or the scan itself.

The core of each mask is what is left of it after erosion. Where the inner radius is known the vial is a cylinder behind
the point spread; where k-space is known the scan's own acquisition of that cylinder is the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image._bodies import FWHM, border_voxels, core_of, dilated, saturation_of
from bids_sodium.image.magnitude import signal_of_mean

if TYPE_CHECKING:
    from bids_sodium.image.calibration import CalibrationParams

__all__ = ["Cylinder", "VialSignals", "measure_vials", "modelled_signal", "variance_of"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cylinder:
    """Where the gel of a vial lies.

    Parameters
    ----------
    centre_mm : (3,) ndarray
        Centre in the world (RAS+, mm).
    axis : (3,) ndarray
        Direction of its axis, a unit vector.
    radius_mm, length_mm : float
        Inner radius, and length between the ends of its mask.
    """

    centre_mm: NDArray[np.float64]
    axis: NDArray[np.float64]
    radius_mm: float
    length_mm: float

    def fraction(self, grid: Grid, *, beyond_mm: float = 0.0) -> NDArray[np.float32]:
        """Return the share of every voxel that lies inside, with edges as wide as a voxel.

        Parameters
        ----------
        grid : Grid
            Lattice, best finer than that of the image.
        beyond_mm : float
            Length added at both ends; negative to stay away from them.

        Examples
        --------
        >>> rod = Cylinder(centre_mm=np.zeros(3), axis=np.array([0.0, 0.0, 1.0]), radius_mm=10.0, length_mm=40.0)
        >>> lattice = Grid.centred((60, 60, 60), 1.0)
        >>> round(float(rod.fraction(lattice).sum()) / (np.pi * 100 * 40), 2)
        1.0
        """
        edge = float(np.mean(grid.voxel_mm))
        i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
        a = grid.affine
        offset = [a[m, 0] * i + a[m, 1] * j + a[m, 2] * k + a[m, 3] - self.centre_mm[m] for m in range(3)]
        along = sum(o * u for o, u in zip(offset, self.axis, strict=True))
        across = np.sqrt(np.maximum(sum(o**2 for o in offset) - along**2, 0.0))
        side = np.clip((self.radius_mm - across) / edge + 0.5, 0.0, 1.0)
        ends = np.clip((self.length_mm / 2 + beyond_mm - np.abs(along)) / edge + 0.5, 0.0, 1.0)
        return np.asarray(side * ends, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VialSignals:
    """Signals of the vials, in the order of their masks.

    Parameters
    ----------
    signal, se : (n,) ndarray
        Signal and its standard error, in units of the image.
    n_voxels : (n,) ndarray of int
        Voxels that were used.
    n_saturated : (n,) ndarray of int
        Voxels of the mask at the ceiling of the data type.
    method : tuple of str
        ``"core"`` or ``"cylinder"`` for each vial.
    core_signal : (n,) ndarray
        Median of the core, beside whatever ``signal`` is.
    sigma : (n,) ndarray
        Noise of a voxel that the standard errors stand on.
    cylinders : tuple of Cylinder or None
        Where each vial was found by the cylinder fit, ``None`` where there was none.
    n_border : (n,) ndarray of int
        Voxels of the mask at the border of the image: a vial that is cut by it.
    """

    signal: NDArray[np.float64]
    se: NDArray[np.float64]
    n_voxels: NDArray[np.int64]
    n_saturated: NDArray[np.int64]
    method: tuple[str, ...]
    core_signal: NDArray[np.float64]
    sigma: NDArray[np.float64]
    cylinders: tuple[Cylinder | None, ...] = ()
    n_border: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def measure_vials(
    image: Volume,
    masks: Sequence[NDArray[np.bool_]],
    params: CalibrationParams,
    *,
    sigma: float | NDArray[np.floating] | None = None,
    saturation: float | None = None,
    magnitude: bool = True,
    correlation_voxels: float = 1.0,
    inner_radius_mm: float | None = None,
    fwhm_mm: float | None = None,
) -> VialSignals:
    r"""Measure the signal of vials.

    The core of each mask is eroded until half its depth (``params.core_fraction``) is gone. Clipped voxels are only
    known to lie above the ceiling: in the median they take the highest ranks, never their value, and the cylinder fit
    leaves them out. The variance of the median of n voxels is
    :math:`\sigma^2 n^{-2} \sum_{ij} \arcsin \rho_{ij}`, that of the fit :math:`\sigma^2 g^T \rho g`, where the
    correlation :math:`\rho` of the noise is a Gaussian of ``correlation_voxels`` voxels' volume.

    Parameters
    ----------
    image : Volume
        Image before denoising, in the units of the image that the scale is for.
    masks : sequence of (nx, ny, nz) ndarray of bool
        One mask a vial.
    params : CalibrationParams
        Core and tolerance.
    sigma : float or (nx, ny, nz) ndarray, optional
        Noise of a voxel; where it is not given the spread within the core stands for it.
    saturation : float, optional
        Value at which voxels are clipped; found by `saturation_of` where it is not given.
    magnitude : bool
        Values are magnitudes, whose noise floor is taken off the signal (with ``sigma`` given). False for real parts
        and where the floor is already gone.
    correlation_voxels : float
        Voxels that share one independent noise value, at least 1 (white noise): the integral of the noise's
        autocorrelation, over the volume of a voxel.
    inner_radius_mm, fwhm_mm : float, optional
        Inner radius of the vials and full width at half maximum of the point spread; with both, a cylinder convolved
        with a Gaussian of that width is fitted.

    Returns
    -------
    VialSignals
        Signals with standard errors.

    Raises
    ------
    DataError
        If a mask is empty or an argument out of its range.
    GeometryError
        If a mask has another shape than the image.
    EstimationError
        If more than half of a core is clipped.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.image.calibration import CalibrationParams
    >>> image = Volume(np.full((9, 9, 9), 50.0), Grid.centred((9, 9, 9), 4.0))
    >>> mask = np.zeros((9, 9, 9), dtype=bool)
    >>> mask[2:7, 2:7, 2:7] = True
    >>> vials = measure_vials(image, [mask], CalibrationParams(), sigma=2.0, magnitude=False)
    >>> float(vials.signal[0]), round(float(vials.se[0]), 2)
    (50.0, 0.48)
    """
    data = np.asarray(image.data, dtype=np.float64)
    if data.ndim != 3 or np.iscomplexobj(image.data) or not np.isfinite(data).all():
        raise DataError(f"vials are measured in one finite real image, got shape {data.shape}")
    if correlation_voxels < 1:
        raise DataError(
            f"{correlation_voxels} voxels share a noise value", hint="give 1 for white noise, more otherwise"
        )
    if (inner_radius_mm is not None and inner_radius_mm <= 0) or (fwhm_mm is not None and fwhm_mm <= 0):
        raise DataError(f"a vial of inner radius {inner_radius_mm} mm and a point spread of {fwhm_mm} mm")
    ceiling = saturation if saturation is not None else saturation_of(image.data)
    clipped = np.zeros(data.shape, dtype=bool) if ceiling is None else data >= ceiling
    voxel = np.array(image.grid.voxel_mm)
    noise_map = None if sigma is None else np.broadcast_to(np.asarray(sigma, dtype=np.float64), data.shape)
    rows = []
    seen = np.zeros(data.shape, dtype=np.int64)
    for number, given in enumerate(masks, start=1):
        mask = np.asarray(given, dtype=bool)
        if mask.shape != data.shape:
            raise GeometryError(f"mask {number} of shape {mask.shape} for an image of shape {data.shape}")
        if not mask.any():
            raise DataError(f"the mask of vial {number} is empty", hint="draw it again, or let the vials be found")
        if (other := int(seen[mask].max())) > 0:
            raise DataError(
                f"the masks of vials {other} and {number} share {int((seen[mask] > 0).sum())} voxels",
                hint="draw each vial once",
            )
        seen[mask] = number
        core = core_of(mask, params.core_fraction, voxel)
        n_core = int(core.sum())
        if 2 * int(clipped[core].sum()) >= n_core:
            raise EstimationError(
                f"{int(clipped[core].sum())} of {n_core} core voxels of vial {number} are clipped at {ceiling:g}",
                hint="export the image with another scaling, or leave this vial out",
            )
        core_signal = float(np.median(np.where(clipped[core], np.inf, data[core])))
        if noise_map is not None:
            noise = float(np.sqrt((noise_map[core] ** 2).mean()))
        else:
            noise = float(1.4826 * np.median(np.abs(data[core] - core_signal)))
        share = core / n_core
        se = noise * float(np.sqrt(variance_of(share, voxel, correlation_voxels, median=True)))
        signal, used, method = core_signal, n_core - int(clipped[core].sum()), "core"
        cylinder = None
        if inner_radius_mm is not None and fwhm_mm is not None:
            fit = _fit_cylinder(data, mask, clipped, image.grid, radius_mm=inner_radius_mm, fwhm_mm=fwhm_mm)
            cylinder = None if fit is None else fit[2]
            if fit is not None and abs(fit[0] - core_signal) <= params.fit_tolerance * abs(core_signal):
                signal, used, method = fit[0], int((fit[1] != 0).sum()), "cylinder"
                se = noise * float(np.sqrt(variance_of(fit[1], voxel, correlation_voxels)))
        if magnitude and noise_map is not None and noise > 0:
            signal, core_signal = (float(signal_of_mean(np.array(max(v, 0.0)), noise)) for v in (signal, core_signal))
        at_border = border_voxels(mask)
        rows.append((signal, se, used, int(clipped[mask].sum()), method, core_signal, noise, cylinder, at_border))
    signals, errors, counts, saturated, methods, cores, noises, places, cut = (
        zip(*rows, strict=True) if rows else ((),) * 9
    )
    return VialSignals(
        signal=np.array(signals, dtype=np.float64),
        se=np.array(errors, dtype=np.float64),
        n_voxels=np.array(counts, dtype=np.int64),
        n_saturated=np.array(saturated, dtype=np.int64),
        method=tuple(str(name) for name in methods),
        core_signal=np.array(cores, dtype=np.float64),
        sigma=np.array(noises, dtype=np.float64),
        cylinders=tuple(place if isinstance(place, Cylinder) else None for place in places),
        n_border=np.array(cut, dtype=np.int64),
    )


def modelled_signal(
    image: NDArray[np.floating],
    column: NDArray[np.floating],
    cylinder: Cylinder,
    grid: Grid,
    *,
    sigma: float,
    correlation_voxels: float = 1.0,
    fwhm_mm: float,
) -> tuple[float, float]:
    """Measure a vial with its own acquisition as the model: ``sum(f y) / sum(f^2)`` away from its ends.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Real part of the image, not denoised.
    column : (nx, ny, nz) ndarray
        What the scan makes of the vial at unit signal.
    cylinder : Cylinder
        The vial.
    grid : Grid
        Lattice of both.
    sigma : float
        Noise of a voxel.
    correlation_voxels : float
        Voxels that share one independent noise value.
    fwhm_mm : float
        Point spread: voxels closer than this to an end are left out.

    Returns
    -------
    signal, se : float
        In units of the image.

    Raises
    ------
    EstimationError
        If no voxel is left between the ends.
    """
    middle = cylinder.fraction(grid, beyond_mm=-fwhm_mm) > 0
    use = dilated(middle, float(max(grid.voxel_mm)), np.array(grid.voxel_mm)) & (column > 0.3 * column.max())
    f = np.where(use, column, 0.0).astype(np.float64)
    power = float((f**2).sum())
    if not power > 0:
        raise EstimationError(
            f"a vial of {cylinder.length_mm:.0f} mm has no part farther than {fwhm_mm:.1f} mm from its ends",
            hint="leave InnerDiameter out of the sidecar, so that the core of the vial is read",
        )
    weights = f / power
    signal = float((weights * image).sum())
    return signal, sigma * float(np.sqrt(variance_of(weights, np.array(grid.voxel_mm), correlation_voxels)))


def _fit_cylinder(
    data: NDArray[np.float64],
    mask: NDArray[np.bool_],
    clipped: NDArray[np.bool_],
    grid: Grid,
    *,
    radius_mm: float,
    fwhm_mm: float,
) -> tuple[float, NDArray[np.float64], Cylinder] | None:
    """Signal inside a blurred cylinder, the weight of each voxel in that estimate, and the cylinder.

    Across its axis a cylinder convolved with a Gaussian is ``P(chi'^2_2((r/s)^2) < (a/s)^2)``, a noncentral chi-square
    distribution; its ends are left out, and so are voxels that other bodies spoil.
    """
    from scipy import optimize, stats

    voxel = np.array(grid.voxel_mm)
    width = fwhm_mm / FWHM
    near = dilated(mask, fwhm_mm, voxel) & ~clipped
    points = grid.world(np.argwhere(near).astype(np.float64))
    inside = grid.world(np.argwhere(mask).astype(np.float64))
    values = data[near]
    moments = np.cov(inside.T)
    axis = np.linalg.eigh(moments)[1][:, -1]
    centre = inside.mean(0)
    across = np.linalg.svd(axis[None])[2][1:]
    along = (inside - centre) @ axis
    use = np.abs((points - centre) @ axis) <= max(float(np.ptp(along)) / 2 - fwhm_mm, float(voxel.max()))
    points, values = points[use], values[use]
    if values.size < 12:
        return None

    def designed(shift: NDArray[np.float64]) -> NDArray[np.float64]:
        direction = axis + shift[2:] @ across
        direction = direction / np.linalg.norm(direction)
        offset = points - centre - shift[:2] @ across
        radius2 = (offset**2).sum(-1) - (offset @ direction) ** 2
        profile = stats.ncx2.cdf((radius_mm / width) ** 2, 2, np.maximum(radius2, 1e-9) / width**2)
        return np.stack([profile, np.ones_like(profile)], -1)

    def residual(shift: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.float64]:
        design = designed(shift)
        beta = np.linalg.lstsq(design[good], values[good], rcond=None)[0]
        return np.asarray(values - design @ beta)

    def weighted(shift: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.asarray(residual(shift, good)[good])

    good, shift = np.ones(values.size, dtype=bool), np.zeros(4)
    limits = np.array([radius_mm, radius_mm, 0.5, 0.5])
    for _ in range(4):
        shift = optimize.least_squares(
            weighted, shift, args=(good,), bounds=(-limits, limits), x_scale=limits / 5, xtol=1e-5, ftol=1e-6
        ).x
        rest = residual(shift, good)
        # scalp, eyes and other vials within reach of the fit are no part of it
        kept = np.abs(rest - np.median(rest)) <= 4 * 1.4826 * np.median(np.abs(rest - np.median(rest)))
        if kept.sum() < 12 or bool((kept == good).all()):
            break
        good = kept
    design = designed(shift)[good]
    beta = np.linalg.lstsq(design, values[good], rcond=None)[0]
    weights = np.zeros(data.shape)
    place = np.argwhere(near)[use][good]
    weights[tuple(place.T)] = design @ np.linalg.pinv(design.T @ design).sum(0)
    direction = axis + shift[2:] @ across
    direction = direction / np.linalg.norm(direction)
    where = centre + shift[:2] @ across
    reach = (inside - where) @ direction
    step = float(np.abs(direction) @ voxel)
    found = Cylinder(
        centre_mm=where + direction * float(reach.max() + reach.min()) / 2,
        axis=direction,
        radius_mm=radius_mm,
        length_mm=float(np.ptp(reach)) + step,
    )
    return float(beta.sum()), weights, found


def variance_of(
    weights: NDArray[np.float64], voxel: NDArray[np.float64], correlation_voxels: float, *, median: bool = False
) -> float:
    """Variance, for unit noise, of a weighted mean or of the median of voxels with Gaussian noise correlation."""
    from scipy import fft

    if correlation_voxels == 1:
        return float((weights**2).sum()) * (np.pi / 2 if median else 1.0)
    box = weights[tuple(slice(low.min(), low.max() + 1) for low in np.nonzero(weights))]
    shape = [fft.next_fast_len(2 * n, real=True) for n in box.shape]
    spectrum = fft.rfftn(box, shape)
    pairs = fft.irfftn(np.abs(spectrum) ** 2, shape)
    # a Gaussian autocorrelation exp(-r^2 / 4 w^2) has the volume (4 pi w^2)^(3/2)
    width = float(np.cbrt(correlation_voxels * voxel.prod())) / np.sqrt(4 * np.pi)
    lags = np.meshgrid(*(fft.fftfreq(n, 1 / n) * edge for n, edge in zip(shape, voxel, strict=True)), indexing="ij")
    correlation = np.exp(-sum(lag**2 for lag in lags) / (4 * width**2))
    return float((pairs * (np.arcsin(np.minimum(correlation, 1.0)) if median else correlation)).sum())
