"""Vials of one scan: which are named, where they lie and how bright they are.

`vial_masks` finds them or takes given masks, `measured_vials` reads their signals in the image, `through_acquisition`
reads them again with the scan's own acquisition as the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_volume
from bids_sodium.core.data import KSpace, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image.calibration import (
    CalibrationParams,
    Cylinder,
    VialSignals,
    candidate_vials,
    find_vials,
    measure_vials,
)
from bids_sodium.image.phantoms import Phantom, phantoms
from bids_sodium.recon.columns import cylinder_column
from bids_sodium.recon.solvers import Linear
from bids_sodium.recon.vials import fit_vial
from bids_sodium.steps.records import Record

__all__ = ["MeasuredVial", "measured_vials", "named_vials", "record_of", "through_acquisition", "vial_masks"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredVial:
    """A vial with its signal and place.

    Parameters
    ----------
    phantom : Phantom
        What is stated of it.
    mask : (nx, ny, nz) ndarray of bool
        Its voxels.
    signal, se : float
        Signal of a voxel full of gel and its standard error, in units of the image.
    core_signal : float
        Median of its core, beside whatever ``signal`` is.
    method : str
        How ``signal`` was read.
    n_saturated, n_border : int
        Voxels of the mask that are clipped, and at the border of the image.
    place : Cylinder or None
        Where its gel lies; ``None`` where no cylinder fits.
    """

    phantom: Phantom
    mask: NDArray[np.bool_]
    signal: float
    se: float
    core_signal: float
    method: str
    n_saturated: int
    n_border: int
    place: Cylinder | None


def named_vials(metadata: Mapping[str, Any], params: CalibrationParams, *, where: str) -> tuple[Phantom, ...]:
    """Return every vial, dim to bright; the sidecar's ``SodiumCalibration`` goes before the parameters.

    Raises
    ------
    DataError
        If a concentration is not a positive number in mmol/L.
    """
    stated = metadata.get("SodiumCalibration")
    if stated is None:
        return phantoms([{"Concentration": value} for value in params.vial_mmol_l], where=where)
    rows = stated.get("Phantoms") if isinstance(stated, Mapping) else None
    if not isinstance(rows, (list, tuple)) or not rows:
        raise DataError(
            "SodiumCalibration has no list Phantoms", where=where, hint='write {"Phantoms": [{"Concentration": 40}]}'
        )
    return phantoms(rows, where=where)


def vial_masks(
    given: Mapping[str, Path],
    image: Volume,
    head: NDArray[np.bool_] | None,
    vials: Sequence[Phantom],
    params: CalibrationParams,
    *,
    ceiling: float | None,
    where: str,
    record: Record,
) -> tuple[list[NDArray[np.bool_]], str]:
    """Return the mask of every vial and where it came from.

    Raises
    ------
    EstimationError
        If fewer vials are found than named.
    DataError
        If masks are given, but not of every vial.
    GeometryError
        If a mask lies on another grid.
    """
    if not given:
        try:
            found = find_vials(image, head, params, saturation=ceiling)
        except EstimationError as error:
            hint = f"{error.hint}; or --calibration csf, by the fluid of the ventricles"
            raise EstimationError(error.what, where=where, hint=hint) from error
        seen = len(candidate_vials(image, head, params, saturation=ceiling))
        note = "" if seen <= len(vials) else "more than there are concentrations: check the picture or give vial masks"
        record.measure("vial_candidates", seen, note=note)
        return [vial.mask for vial in found], "found automatically"
    missing = [vial.label for vial in vials if vial.label not in given]
    if missing:
        raise DataError(
            f"no mask for vial {', '.join(missing)}, found {', '.join(given)}",
            where=where,
            hint="name the masks label-<Label>_mask as in SodiumCalibration",
        )
    masks = []
    for vial in vials:
        mask = read_volume(given[vial.label], dtype=np.uint8)
        if not mask.grid.same_as(image.grid):
            raise GeometryError(
                f"the mask has the grid {mask.grid.shape}, the sodium image {image.grid.shape}, or lies elsewhere",
                where=given[vial.label].name,
                hint="draw the vials on the sodium image",
            )
        masks.append(np.asarray(mask.data > 0))
    return masks, "mask given"


def measured_vials(
    images: Sequence[Volume],
    vials: Sequence[Phantom],
    masks: Sequence[NDArray[np.bool_]],
    params: CalibrationParams,
    *,
    sigmas: Sequence[float | NDArray[np.floating]],
    clipped: NDArray[np.bool_] | None,
    magnitude: bool,
    fwhm_mm: float,
    where: str,
) -> list[MeasuredVial]:
    """Measure every vial in its image, which is corrected for the transmit field as its gel needs it.

    Parameters
    ----------
    images : sequence of Volume
        One a vial.
    vials, masks : sequence
        Vials and their masks.
    params : CalibrationParams
        Cores and limits.
    sigmas : sequence of float or ndarray
        Noise of a voxel of each image.
    clipped : ndarray of bool or None
        Clipped voxels.
    magnitude : bool
        Values are magnitudes with their noise floor.
    fwhm_mm : float
        Width of the point spread.
    where : str
        The image, for messages.
    """
    found = []
    seen = np.zeros(images[0].grid.shape, dtype=np.int64)
    for number, (image, vial, mask, sigma) in enumerate(zip(images, vials, masks, sigmas, strict=True), start=1):
        if (other := int(seen[mask].max(initial=0))) > 0:
            raise DataError(
                f"the masks of {vials[other - 1].label} and {vial.label} share {int((seen[mask] > 0).sum())} voxels",
                where=where,
                hint="draw each vial once",
            )
        seen[mask] = number
        data, ceiling = image, None
        if clipped is not None and clipped.any():
            # known only to be brighter than all that is not clipped
            values = np.array(image.data, dtype=np.float64)
            ceiling = float(np.ceil(values.max())) + 1.0
            values[clipped] = ceiling
            data = image.with_data(values)
        try:
            one = _read(data, mask, params, vial.inner_radius_mm, sigma, ceiling, magnitude=magnitude, fwhm_mm=fwhm_mm)
            place = one.cylinders[0]
            if vial.inner_radius_mm is None:
                # a radius that the mask tells is good enough for the place of a vial, not for its signal
                radius_mm = _radius_of(mask, image)
                placed = _read(data, mask, params, radius_mm, sigma, ceiling, magnitude=magnitude, fwhm_mm=fwhm_mm)
                place = placed.cylinders[0]
        except (DataError, EstimationError) as error:
            raise type(error)(f"{vial.label}: {error.what}", where=where, hint=error.hint) from error
        found.append(
            MeasuredVial(
                phantom=vial,
                mask=mask,
                signal=float(one.signal[0]),
                se=float(one.se[0]),
                core_signal=float(one.core_signal[0]),
                method=one.method[0],
                n_saturated=int(one.n_saturated[0]),
                n_border=int(one.n_border[0]),
                place=place,
            )
        )
    return found


def through_acquisition(
    vials: Sequence[MeasuredVial],
    kspace: KSpace,
    real: Sequence[Volume],
    operator: Linear,
    *,
    te_ms: float,
    sigmas: Sequence[float | NDArray[np.floating]],
    fwhm_mm: float,
    tolerance: float,
) -> list[MeasuredVial]:
    """Return the vials with their signals fitted with the scan's own acquisition, where their diameter is known.

    A vial is blurred by the scan's own point spread, which a Gaussian describes badly: with it the signal of a vial of
    24 mm came out 3 % too high. The fit is kept where it explains the core of the vial.

    Parameters
    ----------
    vials : sequence of MeasuredVial
        Vials as the image shows them.
    kspace : KSpace
        Raw data; only their trajectory is used.
    real : sequence of Volume
        Real part of the image, one a vial, corrected like the images of `measured_vials`.
    operator : Linear
        The map that made the image.
    te_ms : float
        Echo time.
    sigmas : sequence of float or ndarray
        Noise of a voxel of each image.
    fwhm_mm : float
        Width of the point spread.
    tolerance : float
        Largest relative difference between fit and core.
    """
    found = []
    for vial, image, sigma in zip(vials, real, sigmas, strict=True):
        place = vial.place
        if place is None or vial.n_saturated:
            found.append(vial)
            continue
        data = np.asarray(image.data, dtype=np.float64)
        noise = np.broadcast_to(np.asarray(sigma, dtype=np.float64), data.shape)[vial.mask]
        fit = fit_vial(
            data,
            operator,
            vial.phantom.relaxation.decay,
            name=vial.phantom.label,
            centre_mm=place.centre_mm,
            axis=place.axis,
            radius_mm=place.radius_mm,
            length_mm=place.length_mm,
            te_ms=te_ms,
            sigma=float(np.sqrt((noise**2).mean())),
            correlation_voxels=_correlation(image, fwhm_mm),
        )
        fitted = replace(place, centre_mm=fit.centre_mm, length_mm=fit.length_mm)
        column = cylinder_column(
            image.grid,
            kspace.trajectory,
            vial.phantom.relaxation.decay,
            centre_mm=fitted.centre_mm,
            axis=fitted.axis,
            radius_mm=fitted.radius_mm,
            length_mm=fitted.length_mm,
            te_ms=te_ms,
            operator=operator,
        )
        # A model that is in the wrong place or of the wrong size does not explain the core of the vial.
        core = column > 0.8 * column.max()
        explained = fit.signal * float(np.median(column[core]))
        if abs(float(np.median(data[core])) / explained - 1.0) > tolerance:
            found.append(vial)
        elif vial.phantom.inner_radius_mm is None:
            found.append(replace(vial, place=fitted))
        else:
            found.append(
                replace(vial, place=fitted, signal=fit.signal, se=fit.se, method="own acquisition as the model")
            )
    return found


def record_of(vial: MeasuredVial) -> dict[str, Any]:
    """Return where a vial lies and how it relaxes, as plain values for the steps after this one."""
    place, gel = vial.place, vial.phantom.relaxation
    assert place is not None  # noqa: S101
    return {
        "label": vial.phantom.label,
        "mmol_l": vial.phantom.mmol_l,
        "centre_mm": [float(value) for value in place.centre_mm],
        "axis": [float(value) for value in place.axis],
        "radius_mm": place.radius_mm,
        "radius_from": "mask" if vial.phantom.inner_radius_mm is None else "InnerDiameter",
        "length_mm": place.length_mm,
        "relaxation": {
            "t1_ms": gel.t1_ms,
            "t2_fast_ms": gel.decay.t2_fast_ms,
            "t2_slow_ms": gel.decay.t2_slow_ms,
            "fraction_fast": gel.decay.fraction_fast,
            "source": gel.source,
        },
    }


def _read(
    data: Volume,
    mask: NDArray[np.bool_],
    params: CalibrationParams,
    radius_mm: float | None,
    sigma: float | NDArray[np.floating],
    ceiling: float | None,
    *,
    magnitude: bool,
    fwhm_mm: float,
) -> VialSignals:
    return measure_vials(
        data,
        [mask],
        params,
        sigma=sigma,
        saturation=ceiling,
        magnitude=magnitude,
        correlation_voxels=_correlation(data, fwhm_mm),
        inner_radius_mm=radius_mm,
        fwhm_mm=None if radius_mm is None else fwhm_mm,
    )


def _correlation(image: Volume, fwhm_mm: float) -> float:
    return max(1.0, fwhm_mm**3 / float(np.prod(image.grid.voxel_mm)))


def _radius_of(mask: NDArray[np.bool_], image: Volume) -> float:
    """Return the radius of a cylinder of the mask's volume and length."""
    points = image.grid.world(np.argwhere(mask).astype(np.float64))
    if len(points) < 2:
        return float(max(image.grid.voxel_mm)) / 2.0
    axis = np.linalg.eigh(np.cov(points.T))[1][:, -1]
    length_mm = float(np.ptp(points @ axis)) + float(np.abs(axis) @ np.array(image.grid.voxel_mm))
    return float(np.sqrt(1e3 * mask.sum() * image.grid.voxel_ml / (np.pi * length_mm)))
