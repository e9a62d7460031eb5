"""Reference vials in an image: where they are and how bright they are.

A vial is a compact bright body outside the head. Its edge is taken at half its peak, where a blurred edge keeps its
place; its signal is the median of an eroded core or, where its inner radius and the point spread are known, the
amplitude of a cylinder convolved with that point spread.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image.magnitude import correct_noise_floor

if TYPE_CHECKING:
    from bids_sodium.image.calibration import CalibrationParams

__all__ = [
    "Cylinder",
    "Vial",
    "VialSignals",
    "air_threshold",
    "candidate_vials",
    "find_vials",
    "head_mask",
    "measure_vials",
    "modelled_signal",
    "saturation_of",
]

_FWHM = float(np.sqrt(8 * np.log(2)))
_FEWEST_VOXELS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vial:
    """A vial found in an image.

    Parameters
    ----------
    mask : (nx, ny, nz) ndarray of bool
        Voxels above half its peak.
    centre_mm : tuple of float
        Centre in the world (RAS+, mm).
    volume_ml : float
        Volume of the mask, in mL.
    signal : float
        Median of its core, in units of the image.
    n_saturated : int
        Voxels of the mask at the ceiling of the data type.
    likeness : float
        How much like a vial it looks, 0 to 1: contrast to its surroundings, times how much of its ellipsoid of inertia
        it fills, times roundness and size.
    """

    mask: NDArray[np.bool_]
    centre_mm: tuple[float, float, float]
    volume_ml: float
    signal: float
    n_saturated: int
    likeness: float


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
    """

    signal: NDArray[np.float64]
    se: NDArray[np.float64]
    n_voxels: NDArray[np.int64]
    n_saturated: NDArray[np.int64]
    method: tuple[str, ...]
    core_signal: NDArray[np.float64]
    sigma: NDArray[np.float64]
    cylinders: tuple[Cylinder | None, ...] = ()


def saturation_of(values: NDArray[np.generic]) -> float | None:
    """Return the ceiling that values were clipped at, or ``None``.

    Values are clipped where at least two voxels share a maximum of ``2^k - 1`` (1023, 4095 ...; 255 in bytes), or
    where eight or more share a maximum that is far more frequent than the values just below it. Without noise in the
    image, equal maxima tell nothing.

    Examples
    --------
    >>> import numpy as np
    >>> saturation_of(np.array([10, 4095, 4095, 20], dtype=np.int16))
    4095.0
    >>> saturation_of(np.array([10.0, 400.0, 20.0])) is None
    True
    """
    if values.size == 0 or np.iscomplexobj(values):
        return None
    level = np.asarray(values, dtype=np.float64)
    top = float(level.max())
    count = int((level == top).sum())
    if top <= 0 or not np.isfinite(top) or count < 2:
        return None
    smallest = 255 if values.dtype == np.uint8 else 1023
    if top >= smallest and top == int(top) and int(top) & (int(top) + 1) == 0:
        return top
    if count < 8:
        return None
    present, counts = np.unique(level[level > 0], return_counts=True)
    below = counts[(present > 0.8 * top) & (present < top)]
    noisy = present.size >= 200 and int(counts[:-1].max()) < 0.1 * int(counts.sum())
    return top if noisy and below.size >= 4 and count > 5 * float(np.median(below)) else None


def head_mask(image: Volume, params: CalibrationParams) -> NDArray[np.bool_]:
    """Return the head in a 1H or sodium image, without vials.

    The largest body above the air, opened with a ball (``params.head_opening_mm``) that fits into a head and not into
    a vial, so that a vial that touches the head is cut off.

    Parameters
    ----------
    image : Volume
        Magnitude image of the whole head.
    params : CalibrationParams
        Radius of the ball.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        Head, without holes.

    Raises
    ------
    EstimationError
        If nothing as large as a head is seen.
    """
    from scipy import ndimage

    data = _magnitude(image)
    voxel = np.array(image.grid.voxel_mm)
    smooth = ndimage.gaussian_filter(data, 4.0 / _FWHM / voxel)
    body = smooth > air_threshold(smooth)
    body = _largest(body)
    body = np.asarray(ndimage.binary_fill_holes(body))
    for axis in range(3):
        for index in range(body.shape[axis]):
            plane = tuple(index if other == axis else slice(None) for other in range(3))
            body[plane] = ndimage.binary_fill_holes(body[plane])
    opened = _largest(_dilate(_erode(body, params.head_opening_mm, voxel), params.head_opening_mm, voxel) & body)
    volume_ml = float(opened.sum()) * image.grid.voxel_ml
    if volume_ml < 500:
        raise EstimationError(
            f"the largest body in the image has {volume_ml:.0f} mL, too little for a head",
            hint="give a head mask, or name masks of the vials",
        )
    return opened


def candidate_vials(
    image: Volume, head: NDArray[np.bool_] | None, params: CalibrationParams, *, saturation: float | None = None
) -> tuple[Vial, ...]:
    """Return every body that may be a vial, the likeliest first.

    From the brightest local maximum outside the head downwards, the connected voxels above half the maximum are a
    candidate if they have the volume of a vial, hold together like an ellipsoid or cylinder and stand out of their
    surroundings.

    Parameters
    ----------
    image : Volume
        Magnitude image.
    head : (nx, ny, nz) ndarray of bool or None
        Head on the grid of the image, best from a registered 1H image; `head_mask` of the image where it is ``None``.
    params : CalibrationParams
        Volumes, margin and edge.
    saturation : float, optional
        Value at which voxels are clipped; found by `saturation_of` where it is not given.

    Returns
    -------
    tuple of Vial
        Candidates.

    Raises
    ------
    GeometryError
        If the head mask has another shape than the image.
    """
    from scipy import ndimage

    data = _magnitude(image)
    margin_mm = params.head_margin_mm
    if head is None:
        # seen in the image itself the head is blurred already
        head, margin_mm = head_mask(image, params), 0.0
    if head.shape != data.shape:
        raise GeometryError(f"a head mask of shape {head.shape} for an image of shape {data.shape}")
    head = np.asarray(head, dtype=bool)
    ceiling = saturation if saturation is not None else saturation_of(image.data)
    voxel = np.array(image.grid.voxel_mm)
    smooth = ndimage.gaussian_filter(data, 4.0 / _FWHM / voxel)
    air = _air_level(data, smooth, head)
    excess = np.maximum(smooth - air[0], 0.0)
    # distances run between centres of voxels, the surface lies half a voxel nearer
    half_voxel = 0.5 * float(voxel.max())
    free = ~_dilate(head, margin_mm + half_voxel, voxel)
    peaks = free & (smooth == ndimage.maximum_filter(smooth, size=3)) & (excess > params.noise_factor * air[1])
    if head.any():
        peaks &= excess > params.minimum_brightness * float(np.median(excess[head]))
    order = np.argwhere(peaks)[np.argsort(-excess[peaks], kind="stable")]
    found: list[Vial] = []
    taken = np.zeros_like(free)
    for place in order:
        index = (int(place[0]), int(place[1]), int(place[2]))
        if taken[index]:
            continue
        level = params.edge_fraction * excess[index]
        # what is much brighter than the peak, such as an eye that touches the vial, is another body
        alike = (excess > 0.5 * level) & (excess <= 1.3 * excess[index]) & ~taken
        body = _around(alike & (excess > level) & free, index)
        # a second peak without a valley before the first is the same vial under an uneven receive profile
        if (taken & _around((excess > level) & free, index)).any():
            continue
        whole = _regrow(body, alike & (excess > level) & ~head, margin_mm + half_voxel, voxel)
        volume_ml = float(whole.sum()) * image.grid.voxel_ml
        # blur lowers the peak of a thin vial: its foot at a quarter of the peak keeps its volume
        foot_ml = float(_around(alike & ~head, index).sum()) * image.grid.voxel_ml
        if foot_ml < params.minimum_ml or volume_ml > params.maximum_ml or whole.sum() < _FEWEST_VOXELS:
            continue
        likeness = _likeness(whole, excess, free & ~taken, voxel)
        likeness *= min(float(np.sqrt(volume_ml / params.minimum_ml)), 1.0)
        if likeness < params.minimum_likeness:
            continue
        taken |= _dilate(whole, 3 * half_voxel, voxel)
        centre = image.grid.world(np.argwhere(whole).mean(0))
        found.append(
            Vial(
                mask=whole,
                centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
                volume_ml=volume_ml,
                signal=float(np.median(data[_core(whole, params.core_fraction, voxel)])),
                n_saturated=0 if ceiling is None else int((data[whole] >= ceiling).sum()),
                likeness=likeness,
            )
        )
    return tuple(sorted(found, key=lambda vial: -vial.likeness))


def find_vials(
    image: Volume, head: NDArray[np.bool_] | None, params: CalibrationParams, *, saturation: float | None = None
) -> tuple[Vial, ...]:
    """Find the vials, as many as there are concentrations in ``params.vial_mmol_l``.

    Where more bodies look like vials than concentrations are named, those are chosen whose signals stand most nearly in
    the ratios of the concentrations.

    Parameters
    ----------
    image : Volume
        Magnitude image, not denoised.
    head : (nx, ny, nz) ndarray of bool or None
        Head on the grid of the image, best from a registered 1H image; ``None`` finds it in the image itself.
    params : CalibrationParams
        Concentrations and search.
    saturation : float, optional
        Value at which voxels are clipped; found where it is not given.

    Returns
    -------
    tuple of Vial
        One for each concentration and in their order: from dim to bright where the concentrations rise.

    Raises
    ------
    EstimationError
        If fewer bodies look like vials than concentrations are named.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.image.calibration import CalibrationParams
    >>> grid = Grid.centred((48, 48, 24), 5.0)
    >>> x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    >>> data = np.where(x**2 + y**2 + z**2 < 55**2, 30.0, 0.0)
    >>> data[np.hypot(x - 80, y) < 12], data[np.hypot(x + 80, y) < 12] = 40.0, 80.0
    >>> data += np.abs(np.random.default_rng(0).normal(0, 1, grid.shape))
    >>> [round(vial.centre_mm[0]) for vial in find_vials(Volume(data, grid), None, CalibrationParams())]
    [80, -80]
    """
    candidates = candidate_vials(image, head, params, saturation=saturation)
    wanted = len(params.vial_mmol_l)
    if len(candidates) < wanted:
        seen = "; ".join(
            f"one of {vial.volume_ml:.1f} mL and signal {vial.signal:.4g} at "
            f"({', '.join(f'{value:.0f}' for value in vial.centre_mm)}) mm"
            for vial in candidates
        )
        raise EstimationError(
            f"{wanted} vials are named but {len(candidates)} found outside the head{': ' + seen if seen else ''}",
            hint="give masks of the vials (label-phantom40_mask ...), or the concentrations of those in the image",
        )
    truth = np.log(np.sort(np.array(params.vial_mmol_l)))

    def misfit(chosen: tuple[Vial, ...]) -> float:
        signal = np.log(np.sort([max(vial.signal, 1e-12) for vial in chosen]))
        # uncorrected B1 and receive profiles bend signal ratios by tens of percent
        ratio = float(np.std(signal - truth)) / 0.25
        return ratio**2 + sum((1 - vial.likeness) / 0.1 for vial in chosen)

    chosen = min(itertools.combinations(candidates[: max(10, wanted)], wanted), key=misfit)
    rising = sorted(chosen, key=lambda vial: vial.signal)
    rank = np.argsort(np.argsort(params.vial_mmol_l, kind="stable"), kind="stable")
    return tuple(rising[int(place)] for place in rank)


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
    for number, given in enumerate(masks, start=1):
        mask = np.asarray(given, dtype=bool)
        if mask.shape != data.shape:
            raise GeometryError(f"mask {number} of shape {mask.shape} for an image of shape {data.shape}")
        if not mask.any():
            raise DataError(f"the mask of vial {number} is empty", hint="draw it again, or let the vials be found")
        core = _core(mask, params.core_fraction, voxel)
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
        se = noise * float(np.sqrt(_variance(share, voxel, correlation_voxels, median=True)))
        signal, used, method = core_signal, n_core - int(clipped[core].sum()), "core"
        cylinder = None
        if inner_radius_mm is not None and fwhm_mm is not None:
            fit = _fit_cylinder(data, mask, clipped, image.grid, radius_mm=inner_radius_mm, fwhm_mm=fwhm_mm)
            cylinder = None if fit is None else fit[2]
            if fit is not None and abs(fit[0] - core_signal) <= params.fit_tolerance * abs(core_signal):
                signal, used, method = fit[0], int((fit[1] != 0).sum()), "cylinder"
                se = noise * float(np.sqrt(_variance(fit[1], voxel, correlation_voxels)))
        if magnitude and noise_map is not None and noise > 0:
            signal, core_signal = (_floorless(value, noise, image.grid) for value in (signal, core_signal))
        rows.append((signal, se, used, int(clipped[mask].sum()), method, core_signal, noise, cylinder))
    signals, errors, counts, saturated, methods, cores, noises, places = zip(*rows, strict=True) if rows else ((),) * 8
    return VialSignals(
        signal=np.array(signals, dtype=np.float64),
        se=np.array(errors, dtype=np.float64),
        n_voxels=np.array(counts, dtype=np.int64),
        n_saturated=np.array(saturated, dtype=np.int64),
        method=tuple(str(name) for name in methods),
        core_signal=np.array(cores, dtype=np.float64),
        sigma=np.array(noises, dtype=np.float64),
        cylinders=tuple(place if isinstance(place, Cylinder) else None for place in places),
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
    use = _dilate(middle, float(max(grid.voxel_mm)), np.array(grid.voxel_mm)) & (column > 0.3 * column.max())
    f = np.where(use, column, 0.0).astype(np.float64)
    power = float((f**2).sum())
    if not power > 0:
        raise EstimationError(
            f"a vial of {cylinder.length_mm:.0f} mm has no part farther than {fwhm_mm:.1f} mm from its ends",
            hint="leave InnerDiameter out of the sidecar, so that the core of the vial is read",
        )
    weights = f / power
    signal = float((weights * image).sum())
    return signal, sigma * float(np.sqrt(_variance(weights, np.array(grid.voxel_mm), correlation_voxels)))


def _magnitude(image: Volume) -> NDArray[np.float64]:
    data: NDArray[np.float64] = np.abs(np.asarray(image.data)).astype(np.float64)
    if data.ndim != 3 or not np.isfinite(data).all():
        raise DataError(f"vials are sought in one finite image with three axes, got shape {data.shape}")
    return data


def _floorless(value: float, sigma: float, grid: Grid) -> float:
    single = Volume(np.full((1, 1, 1), max(value, 0.0)), Grid((1, 1, 1), grid.affine))
    return float(np.asarray(correct_noise_floor(single, sigma).data).item())


def _air_level(data: NDArray[np.float64], smooth: NDArray[np.float64], head: NDArray[np.bool_]) -> tuple[float, float]:
    """Median and spread of the smoothed air; vials are a small part of what lies outside the head."""
    outside = smooth[~head & (data > 0)]
    if outside.size < 100:
        return 0.0, 0.0
    dark = outside[outside <= np.percentile(outside, 70)]
    middle = float(np.median(dark))
    # of a normal distribution cut above its 70th percentile the median is -0.385 and the median deviation 0.488
    spread = float(np.median(np.abs(dark - middle))) / 0.488
    return middle + 0.385 * spread, spread


def air_threshold(smooth: NDArray[np.float64]) -> float:
    """Return a threshold between air and head: a fifth of the way from the air to a typical voxel of the head.

    Parameters
    ----------
    smooth : ndarray
        Smoothed magnitudes of a whole image.
    """
    present = smooth[smooth > 1e-6 * smooth.max()]
    # bright vials and scalp must not lift the first split
    split = _otsu(np.minimum(present, np.percentile(present, 90)))
    dark = present[present <= split]
    air = float(np.median(dark))
    head = float(np.median(present[present > split]))
    noise = 1.4826 * float(np.median(np.abs(dark - air)))
    return max(air + 0.2 * (head - air), min(air + 4 * noise, split))


def _otsu(values: NDArray[np.float64]) -> float:
    """Threshold of greatest variance between two classes."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    good = (below > 0) & (above > 0)
    between = np.zeros(256)
    between[good] = (
        below[good] * above[good] * (total[good] / below[good] - (total[-1] - total[good]) / above[good]) ** 2
    )
    return float(centres[int(np.argmax(between))])


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))


def _around(mask: NDArray[np.bool_], index: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return the connected part of a mask that holds one of its voxels."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    return np.asarray(labels == labels[index])


def _depth(mask: NDArray[np.bool_], voxel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each voxel of the mask from the nearest voxel outside it, beyond the border of the image too."""
    from scipy import ndimage

    padded = np.pad(mask, 1)
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=voxel)[1:-1, 1:-1, 1:-1])


def _erode(mask: NDArray[np.bool_], radius_mm: float, voxel: NDArray[np.float64]) -> NDArray[np.bool_]:
    # a head cut by the border of the image goes on beyond it
    from scipy import ndimage

    if mask.all():
        return mask.copy()
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=voxel) > radius_mm)


def _dilate(mask: NDArray[np.bool_], radius_mm: float, voxel: NDArray[np.float64]) -> NDArray[np.bool_]:
    from scipy import ndimage

    if not mask.any():
        return mask.copy()
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=voxel) <= radius_mm)


def _regrow(
    body: NDArray[np.bool_], allowed: NDArray[np.bool_], reach_mm: float, voxel: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Give back to a body what the margin around the head cut off, and nothing farther away."""
    return body | (allowed & _dilate(body, reach_mm, voxel) & _dilate(body, 1.01 * float(voxel.max()), voxel))


def _likeness(
    body: NDArray[np.bool_], excess: NDArray[np.float64], free: NDArray[np.bool_], voxel: NDArray[np.float64]
) -> float:
    """Contrast to the shell around a body times how much of its ellipsoid of inertia it fills."""
    points = np.argwhere(body) * voxel
    moments = np.cov(points.T) + np.diag(voxel**2) / 12
    spread = np.sqrt(np.linalg.eigvalsh(moments))
    # an ellipsoid of standard deviations s has the volume 4/3 pi sqrt(5)^3 s1 s2 s3; a cylinder fills 0.93 of it
    ellipsoid = 4 / 3 * np.pi * 5**1.5 * float(spread.prod())
    filled = min(float(body.sum() * voxel.prod()) / ellipsoid / 0.9, 1.0)
    round_section = min(1.5 * float(spread[0] / spread[1]), 1.0)
    near, far = (_dilate(body, factor * float(voxel.max()), voxel) for factor in (1.5, 3.0))
    shell = far & ~near & free
    around = float(np.median(excess[shell])) if shell.any() else float(excess[body].mean())
    contrast = max(1 - around / float(np.median(excess[body])), 0.0)
    return contrast * filled * round_section


def _core(mask: NDArray[np.bool_], fraction: float, voxel: NDArray[np.float64]) -> NDArray[np.bool_]:
    depth = _depth(mask, voxel)
    deepest = float(depth.max())
    core = mask & (depth > fraction * deepest)
    # a core of few voxels is noisier than its edge is wrong
    while int(core.sum()) < min(_FEWEST_VOXELS, int(mask.sum())) and fraction > 0.05:
        fraction *= 0.8
        core = mask & (depth > fraction * deepest)
    return core if core.any() else mask


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
    width = fwhm_mm / _FWHM
    near = _dilate(mask, fwhm_mm, voxel) & ~clipped
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


def _variance(
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
