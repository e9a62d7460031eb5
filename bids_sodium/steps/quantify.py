"""Image → denoised → total sodium concentration; diffusion images → ADC.

Vials are read from the image before denoising; the concentration map is the denoised image, its noise floor removed,
times the scale of the vials and the ratio of their relaxation factor to that of brain tissue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_volume, write_volume
from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.constants import AGAR, Decay, Relaxation, relaxation_of
from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image import diffusion
from bids_sodium.image.calibration import (
    CalibrationParams,
    VialSignals,
    candidate_vials,
    find_vials,
    fit_scale,
    measure_vials,
    modelled_signal,
    relaxation_factor,
    tsc,
)
from bids_sodium.image.denoising import DenoisingParams, denoise
from bids_sodium.image.magnitude import correct_noise_floor
from bids_sodium.image.noise import LEAST_VOLUMES
from bids_sodium.recon.columns import cylinder_column
from bids_sodium.recon.solvers import Linear, ReconstructionParams
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, read_record, write_record

__all__ = [
    "VERSION",
    "DiffusionFiles",
    "DiffusionParams",
    "Files",
    "Params",
    "Phantom",
    "labels",
    "phantoms",
    "run",
    "run_diffusion",
]

VERSION = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes.

    ``vials`` are given masks, dim to bright or named in the sidecar; ``head`` is a head mask on the sodium grid. With
    ``kspace`` and the ``real`` part, vials of known diameter are measured through the scan's own acquisition.
    ``regularised`` is an image that needs no denoising, ``series`` all echoes in one image.
    """

    magnitude: Path
    real: Path | None
    kspace: Path | None
    reconstruct_record: Path
    head: Path | None
    vials: tuple[tuple[str, Path], ...]
    denoised: Path
    tsc: Path
    tsc_se: Path
    vial_masks: tuple[Path, ...]
    record: Path
    roots: Roots
    regularised: Path | None = None
    series: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How to denoise and calibrate, and what the sidecar says of the vials."""

    denoising: DenoisingParams = field(default_factory=DenoisingParams)
    """Noise removal."""
    calibration: CalibrationParams = field(default_factory=CalibrationParams)
    """Vials and scale."""
    reconstruction: ReconstructionParams = field(default_factory=ReconstructionParams)
    """The reconstruction that the vials went through."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Sidecar of the sodium scan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionFiles:
    """A diffusion image with its b values, the ADC map in its space, and the first b0 for registration."""

    dwi: Path
    bval: Path | None
    adc: Path
    b0: Path
    record: Path
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionParams:
    """How the diffusion coefficient is fitted."""

    diffusion: diffusion.DiffusionParams = field(default_factory=diffusion.DiffusionParams)
    """Shells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A calibration vial as the sidecar or the parameters state it.

    Parameters
    ----------
    label : str
        Name, as in ``label-<Label>_mask``.
    mmol_l : float
        Sodium concentration, in mmol/L.
    relaxation : Relaxation
        Of its gel.
    inner_radius_mm : float or None
        Inner radius, where it is known.
    """

    label: str
    mmol_l: float
    relaxation: Relaxation = AGAR
    inner_radius_mm: float | None = None


def phantoms(metadata: Mapping[str, Any], params: CalibrationParams, *, where: str) -> list[Phantom]:
    """Return every vial, dim to bright; the sidecar's ``SodiumCalibration`` goes before the parameters.

    Raises
    ------
    DataError
        If a concentration is not a positive number or its unit is not mmol/L.
    """
    stated = metadata.get("SodiumCalibration")
    if stated is None:
        return [Phantom(label=f"phantom{c:g}".replace(".", "p"), mmol_l=float(c)) for c in sorted(params.vial_mmol_l)]
    if (
        not isinstance(stated, Mapping)
        or not isinstance(stated.get("Phantoms"), (list, tuple))
        or not stated["Phantoms"]
    ):
        raise DataError(
            "SodiumCalibration has no list Phantoms", where=where, hint='write {"Phantoms": [{"Concentration": 40}]}'
        )
    found = []
    for entry in stated["Phantoms"]:
        concentration = entry.get("Concentration")
        if isinstance(concentration, bool) or not isinstance(concentration, (int, float)) or not concentration > 0:
            raise DataError(
                f"SodiumCalibration has the concentration {concentration!r}",
                where=where,
                hint="state it as a positive number in mmol/L",
            )
        unit = entry.get("Units", "mmol/L")
        if unit not in {"mmol/L", "mM", "mmol/l"}:
            raise DataError(f"SodiumCalibration is in {unit!r}", where=where, hint="convert it to mmol/L")
        diameter = entry.get("InnerDiameter")
        found.append(
            Phantom(
                label=str(entry.get("Label", f"phantom{concentration:g}".replace(".", "p"))),
                mmol_l=float(concentration),
                relaxation=_gel(entry),
                inner_radius_mm=None if diameter is None else float(diameter) / 2.0,
            )
        )
    return sorted(found, key=lambda vial: vial.mmol_l)


def labels(metadata: Mapping[str, Any], params: CalibrationParams) -> tuple[str, ...]:
    """Return the labels of the vials, dim to bright."""
    return tuple(vial.label for vial in phantoms(metadata, params, where="sidecar of the sodium scan"))


def _gel(entry: Mapping[str, Any]) -> Relaxation:
    t1_s, t2_s = entry.get("T1"), entry.get("T2star")
    decay = AGAR.decay
    if isinstance(t2_s, (int, float)):
        decay = Decay(float(t2_s) * 1e3, float(t2_s) * 1e3)
    elif isinstance(t2_s, (list, tuple)) and len(t2_s) == 2:
        decay = Decay(float(min(t2_s)) * 1e3, float(max(t2_s)) * 1e3)
    t1_ms = AGAR.t1_ms if t1_s is None else float(t1_s) * 1e3
    return Relaxation(t1_ms, decay, AGAR.source if t1_s is None and t2_s is None else "sidecar")


def run(files: Files, params: Params) -> None:
    """Turn one session's sodium image into mmol/L."""
    record = Record()
    known = read_record(files.reconstruct_record).values
    magnitude = read_volume(files.magnitude)
    sigma = float(known["sigma"])
    has_floor = not known["floor_removed"]
    denoised, clean, how_denoised = _denoised(files, params, magnitude, sigma=sigma, has_floor=has_floor)
    vials = phantoms(params.metadata, params.calibration, where=files.magnitude.name)
    calibration = replace(params.calibration, vial_mmol_l=tuple(vial.mmol_l for vial in vials))
    raised, ceiling = _raised(magnitude, known)
    masks, how = _vial_masks(files, raised, vials, calibration, ceiling, record)
    fwhm_mm = float(known["fwhm_mm"])
    correlation = max(1.0, fwhm_mm**3 / float(np.prod(magnitude.grid.voxel_mm)))
    measured = [
        measure_vials(
            raised,
            [mask],
            calibration,
            sigma=sigma,
            saturation=ceiling,
            magnitude=has_floor,
            correlation_voxels=correlation,
            inner_radius_mm=vial.inner_radius_mm,
            fwhm_mm=None if vial.inner_radius_mm is None else fwhm_mm,
        )
        for vial, mask in zip(vials, masks, strict=True)
    ]
    signal = np.array([float(found.signal[0]) for found in measured])
    error = np.array([float(found.se[0]) for found in measured])
    methods = [found.method[0] for found in measured]
    if files.kspace is not None and files.real is not None:
        real = read_volume(files.real)
        for name, (modelled, se_modelled) in _modelled(files.kspace, real, vials, measured, params, known).items():
            place = [vial.label for vial in vials].index(name)
            signal[place], error[place], methods[place] = modelled, se_modelled, "own acquisition as the model"
    timing = {key: float(known[key]) for key in ("te_ms", "tr_ms", "flip_deg")}
    factors = np.array([vial.relaxation.signal_fraction(**timing) for vial in vials])
    # Every vial's signal is brought to the relaxation of the first, so that one line fits them all.
    common = factors / factors[0]
    scale = fit_scale(signal / common, error / common, calibration)
    factor = relaxation_factor(vials[0].relaxation, relaxation_of("GM"), **timing)
    concentration, se = tsc(clean, scale, factor, sigma=sigma)

    # Nothing is written before all is computed, so that a failure leaves earlier outputs as they are.
    save_image(
        files.denoised,
        denoised,
        roots=files.roots,
        description=f"Sodium image after denoising ({how_denoised})",
        sources=[path for path in (files.regularised, files.series, files.magnitude) if path is not None][:1],
        extra={"Denoising": params.denoising, "NoiseSigma": sigma},
    )
    for i, (vial, path, mask) in enumerate(zip(vials, files.vial_masks, masks, strict=True)):
        save_image(
            path,
            magnitude.with_data(mask, unit="1"),
            roots=files.roots,
            description=f"Calibration vial of {vial.mmol_l:g} mmol/L, {how}",
            sources=[files.magnitude],
            dtype=np.uint8,
            kind="mask",
        )
        record.measure(
            f"vial_signal_{vial.label}",
            signal[i],
            "a.u.",
            se=error[i],
            note=f"{vial.mmol_l:g} mmol/L, {int(mask.sum())} voxels in the mask, {methods[i]}, {how}",
        )
        if int(measured[i].n_saturated[0]):
            record.measure(
                f"vial_saturated_{vial.label}",
                int(measured[i].n_saturated[0]),
                note="clipped voxels, known only to be brighter",
            )
    record.measure("calibration_slope", scale.slope, "mmol/L per a.u.", se=scale.slope_se, note=f"line: {scale.line}")
    record.measure(
        "calibration_free_intercept",
        scale.free_intercept_mmol_l,
        "mmol/L",
        se=scale.free_intercept_se,
        note="of a free line through the vials, quality only: far from 0 it tells of B1 or a wrong concentration",
    )
    record.measure("calibration_r2", scale.r2, note=scale.note)
    record.measure("calibration_residual", scale.residual_mmol_l, "mmol/L", note="root mean square over the vials")
    record.measure("relaxation_factor", factor, note="vial over brain tissue, for TE, TR and flip angle")
    record.values |= {
        "slope": scale.slope,
        "slope_se": scale.slope_se,
        "vial_fraction": factors[0],
        "vials": [
            {"label": vial.label, "mmol_l": vial.mmol_l, "signal": s / c, "se": e / c}
            for vial, s, e, c in zip(vials, signal, error, common, strict=True)
        ],
    }
    extra = {
        "Calibration": {
            "Phantoms": record.values["vials"],
            "Slope": scale.slope,
            "SlopeStandardError": scale.slope_se,
            "R2": scale.r2,
            "Residual": scale.residual_mmol_l,
            "RelaxationFactor": factor,
            "VialsFrom": how,
        },
    }
    for path, image, description in (
        (files.tsc, concentration, "Total sodium concentration"),
        (files.tsc_se, se, "Standard error of the total sodium concentration: noise and calibration"),
    ):
        save_image(
            path,
            image,
            roots=files.roots,
            description=description,
            sources=[files.denoised, *files.vial_masks],
            units="mmol/L",
            extra=extra,
        )
    write_record(files.record, record)


def _denoised(
    files: Files, params: Params, magnitude: Volume, *, sigma: float, has_floor: bool
) -> tuple[Volume, Volume, str]:
    """Return the image after denoising, the same without its noise floor, and how it was made.

    A regularised reconstruction has lost its noise already; of a series long enough for principal components the first
    echo is kept.
    """
    if files.regularised is not None:
        image = read_volume(files.regularised)
        return image, image, f"regularised reconstruction, {params.reconstruction.method}"
    denoising = params.denoising if has_floor else replace(params.denoising, rician=False)
    found = None
    if files.series is not None and denoising.method in {"recommended", "mppca"}:
        series = read_volume(files.series)
        if series.data.shape[-1] >= LEAST_VOLUMES or denoising.method == "mppca":
            found = denoise(series, denoising, sigma=sigma)
            found = replace(found, image=magnitude.with_data(np.asarray(found.image.data)[..., 0]))
    if found is None:
        found = denoise(magnitude, denoising, sigma=sigma)
    clean = found.image if found.floor_removed or not has_floor else correct_noise_floor(found.image, sigma)
    return found.image, clean, found.method


def _modelled(
    kspace: Path,
    real: Volume,
    vials: list[Phantom],
    measured: list[VialSignals],
    params: Params,
    known: Mapping[str, Any],
) -> dict[str, tuple[float, float]]:
    """Return signal and standard error of every vial whose place and diameter are known.

    A vial is blurred by the scan's own point spread, which a Gaussian describes badly: with it the signal of a vial of
    24 mm came out 3 % too high.
    """
    raw = read_kspace(kspace, params.metadata)
    placed = [
        (vial, cylinder)
        for vial, found in zip(vials, measured, strict=True)
        if (cylinder := found.cylinders[0]) is not None
    ]
    if not placed:
        return {}
    operator = Linear(raw.trajectory, real.grid, params.reconstruction)
    fwhm_mm = float(known["fwhm_mm"])
    image = np.asarray(real.data, dtype=np.float64)
    tolerance = params.calibration.fit_tolerance
    found = {}
    for vial, cylinder in placed:
        column = cylinder_column(
            real.grid,
            raw.trajectory,
            vial.relaxation.decay,
            centre_mm=cylinder.centre_mm,
            axis=cylinder.axis,
            radius_mm=cylinder.radius_mm,
            length_mm=cylinder.length_mm,
            te_ms=float(known["te_ms"]),
            operator=operator,
        )
        signal, se = modelled_signal(
            image,
            column,
            cylinder,
            real.grid,
            sigma=float(known["sigma"]),
            correlation_voxels=max(1.0, fwhm_mm**3 / float(np.prod(real.grid.voxel_mm))),
            fwhm_mm=fwhm_mm,
        )
        # A model that is in the wrong place or of the wrong size does not explain the core of the vial.
        core = column > 0.8 * column.max()
        if abs(float(np.median(image[core])) / (signal * float(np.median(column[core]))) - 1.0) <= tolerance:
            found[vial.label] = (signal, se)
    return found


def _raised(image: Volume, known: Mapping[str, Any]) -> tuple[Volume, float | None]:
    """Return the image with clipped voxels at one ceiling above all others, and that ceiling."""
    clipped = known.get("clipped")
    if not clipped:
        return image, None
    data = np.array(image.data, dtype=np.float32)
    ceiling = float(np.ceil(data.max())) + 1.0
    data[tuple(np.array(clipped).T)] = ceiling
    return image.with_data(data), ceiling


def _vial_masks(
    files: Files,
    image: Volume,
    vials: list[Phantom],
    calibration: CalibrationParams,
    ceiling: float | None,
    record: Record,
) -> tuple[list[NDArray[np.bool_]], str]:
    given = dict(files.vials)
    if not given:
        head = None if files.head is None else read_volume(files.head, dtype=np.uint8).data > 0
        try:
            found = find_vials(image, head, calibration, saturation=ceiling)
        except EstimationError as error:
            raise EstimationError(error.what, where=files.magnitude.name, hint=error.hint) from error
        seen = len(candidate_vials(image, head, calibration, saturation=ceiling))
        note = "" if seen <= len(vials) else "more than there are concentrations: check the picture or give vial masks"
        record.measure("vial_candidates", seen, note=note)
        return [vial.mask for vial in found], "found automatically"
    missing = [vial.label for vial in vials if vial.label not in given]
    if missing:
        raise DataError(
            f"no mask for vial {', '.join(missing)}, found {', '.join(given)}",
            where=files.magnitude.name,
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


def run_diffusion(files: DiffusionFiles, params: DiffusionParams) -> None:
    """Fit the apparent diffusion coefficient of one session."""
    record = Record()
    image = read_volume(files.dwi)
    if files.bval is None:
        raise DataError("the diffusion image has no .bval file", where=files.dwi.name, hint="add it beside the image")
    try:
        b_s_mm2 = np.array(files.bval.read_text(encoding="utf-8").split(), dtype=np.float64)
    except ValueError as error:
        raise DataError(
            f"b values are not numbers ({error})", where=files.bval.name, hint="write them in s/mm2"
        ) from error
    if image.data.ndim != 4 or image.data.shape[3] != b_s_mm2.size:
        raise DataError(
            f"an image of shape {image.data.shape} but {b_s_mm2.size} b values",
            where=files.dwi.name,
            hint="one b value an image",
        )
    found = diffusion.adc(image, b_s_mm2, params.diffusion)
    save_image(
        files.adc,
        found.adc,
        roots=files.roots,
        description="Apparent diffusion coefficient, log-linear fit; 0 where a signal is not positive",
        sources=[files.dwi, files.bval],
        units="mm2/s",
        extra={"Diffusion": params.diffusion},
    )
    write_volume(files.b0, image.with_data(np.asarray(image.data)[..., int(np.argmin(b_s_mm2))]))
    record.measure(
        "adc_valid_fraction", float(found.valid.mean()), note="voxels with a positive signal at every b value"
    )
    write_record(files.record, record)
