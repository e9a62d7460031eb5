"""Image → denoised → total sodium concentration; diffusion images → ADC.

Vials are read from the image before denoising; the concentration map is the denoised image, its noise floor removed,
corrected for transmit and receive fields, times the scale of the vials and the ratio of their relaxation factor to that
of brain tissue. Where there is no vial a fluid of the head sets the scale, and every output says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.calibration import FACTOR_KEY
from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_volume, write_volume
from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.constants import Relaxation, relaxation_of
from bids_sodium.core.data import KSpace, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.image import diffusion
from bids_sodium.image.calibration import CalibrationParams, ReceiveParams, Scale, fit_scale, tsc
from bids_sodium.image.denoising import DenoisingParams, denoise
from bids_sodium.image.magnitude import correct_noise_floor
from bids_sodium.image.noise import LEAST_VOLUMES
from bids_sodium.image.reference import ReferenceParams, reference_scale
from bids_sodium.image.relaxation import RelaxationEffect, relaxation_effect
from bids_sodium.image.scanners import ScannerFactor, with_scanner_factor
from bids_sodium.image.transmit import transmit_factor
from bids_sodium.recon.solvers import Linear, ReconstructionParams
from bids_sodium.steps._fields import FieldFiles, ReceiveField, TransmitField, bias_of, receive_field, transmit_field
from bids_sodium.steps._reference import FluidFiles, measured_fluid
from bids_sodium.steps._vials import (
    MeasuredVial,
    measured_vials,
    named_vials,
    record_of,
    through_acquisition,
    vial_masks,
)
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, read_record, write_record

__all__ = [
    "VERSION",
    "DiffusionFiles",
    "DiffusionParams",
    "FieldFiles",
    "Files",
    "FluidFiles",
    "Params",
    "labels",
    "run",
    "run_diffusion",
]

VERSION = "4"

_SODIUM = "23Na"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes.

    ``vials`` are given masks, dim to bright or named in the sidecar; ``head`` is a head mask on the sodium grid. With
    ``kspace`` and the ``real`` part, vials of known diameter are measured through the scan's own acquisition.
    ``regularised`` is an image that needs no denoising, ``series`` all echoes in one image. ``fields`` are the transmit
    and receive maps of the session, ``corrected`` the place of the real part after them. ``fluid`` says where an
    internal reference is drawn.
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
    fields: FieldFiles = field(default_factory=FieldFiles)
    corrected: Path | None = None
    fluid: FluidFiles | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How to denoise and calibrate, and what the sidecar says of the vials."""

    denoising: DenoisingParams = field(default_factory=DenoisingParams)
    """Noise removal."""
    calibration: CalibrationParams = field(default_factory=CalibrationParams)
    """Vials and scale."""
    reference: ReferenceParams = field(default_factory=ReferenceParams)
    """Fluid of the head that stands in for vials."""
    receive: ReceiveParams = field(default_factory=ReceiveParams)
    """How a receive sensitivity is smoothed, or read from the image."""
    reconstruction: ReconstructionParams = field(default_factory=ReconstructionParams)
    """The reconstruction that the vials went through."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Sidecar of the sodium scan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionFiles:
    """A diffusion image with its b values; ADC map, trace image and the first b0 (for registration) in its space."""

    dwi: Path
    bval: Path | None
    adc: Path
    trace: Path
    b0: Path
    record: Path
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionParams:
    """How the diffusion coefficient is fitted."""

    diffusion: diffusion.DiffusionParams = field(default_factory=diffusion.DiffusionParams)
    """Shells."""


@dataclass(frozen=True, slots=True, eq=False)
class _Scan:
    """The image of one session as it is measured: its noise, its timing and its fields."""

    magnitude: Volume
    real: Volume | None
    sigma: float
    has_floor: bool
    clipped: NDArray[np.bool_] | None
    fwhm_mm: float
    timing: dict[str, float]
    transmit: TransmitField | None
    receive: ReceiveField | None
    kspace: KSpace | None
    operator: Linear | None

    def correction(self, material: Relaxation) -> NDArray[np.float64] | float:
        """Return what the signal of a material is multiplied with for transmit and receive fields."""
        factor: NDArray[np.float64] | float = 1.0
        if self.transmit is not None:
            tr_ms, flip_deg = self.timing["tr_ms"], self.timing["flip_deg"]
            factor = transmit_factor(self.transmit.relative, t1_ms=material.t1_ms, tr_ms=tr_ms, flip_deg=flip_deg)
        return factor if self.receive is None else factor / self.receive.sensitivity

    def corrected(self, image: Volume, material: Relaxation) -> Volume:
        """Return an image of this scan as the nominal fields would have made it."""
        if self.transmit is None and self.receive is None:
            return image
        return image.with_data(np.asarray(image.data, dtype=np.float64) * self.correction(material))

    def noise(self, material: Relaxation) -> NDArray[np.float64] | float:
        """Return the noise of a voxel of such an image."""
        return self.sigma * self.correction(material)


@dataclass(frozen=True, slots=True, eq=False)
class _Calibrated:
    """A scale with what it stands on."""

    scale: Scale
    material: Relaxation
    vials: tuple[MeasuredVial, ...]
    points: tuple[dict[str, Any], ...]
    source: str


def labels(metadata: Mapping[str, Any], params: CalibrationParams) -> tuple[str, ...]:
    """Return the labels of the vials, dim to bright; none where a fluid of the head sets the scale."""
    if params.source != "vials":
        return ()
    return tuple(vial.label for vial in named_vials(metadata, params, where="sidecar of the sodium scan"))


def run(files: Files, params: Params) -> None:
    """Turn one session's sodium image into mmol/L."""
    record = Record()
    known = read_record(files.reconstruct_record).values
    scan = _scan(files, params, known)
    denoised, clean, how_denoised = _denoised(files, params, scan.magnitude, sigma=scan.sigma, has_floor=scan.has_floor)
    head = None if files.head is None else read_volume(files.head, dtype=np.uint8).data > 0
    grey = relaxation_of("GM")
    if params.calibration.source == "vials":
        scan, found = _by_vials(files, params, scan, clean, head, record)
    else:
        scan, found = _by_fluid(files, params, scan, clean, head)
    factor = _scanner_factor(params.metadata)
    scale = found.scale if factor is None else with_scanner_factor(found.scale, factor)
    effect = relaxation_effect(found.material, grey, **scan.timing)
    concentration, se = tsc(scan.corrected(clean, grey), scale, effect.factor, sigma=scan.noise(grey))
    if scan.receive is not None:
        doubt = np.asarray(concentration.data) * scan.receive.relative_se
        se = se.with_data(np.hypot(np.asarray(se.data), doubt))

    # Nothing is written before all is computed, so that a failure leaves earlier outputs as they are.
    save_image(
        files.denoised,
        denoised,
        roots=files.roots,
        description=f"Sodium image after denoising ({how_denoised})",
        sources=[path for path in (files.regularised, files.series, files.magnitude) if path is not None][:1],
        extra={"Denoising": params.denoising, "NoiseSigma": scan.sigma},
    )
    for vial, path in zip(found.vials, files.vial_masks, strict=True):
        save_image(
            path,
            scan.magnitude.with_data(vial.mask, unit="1"),
            roots=files.roots,
            description=f"Calibration vial of {vial.phantom.mmol_l:g} mmol/L, {found.source}",
            sources=[files.magnitude],
            dtype=np.uint8,
            kind="mask",
        )
    fields = [part.source for part in (scan.transmit, scan.receive) if part is not None]
    if files.corrected is not None and files.real is not None and scan.real is not None:
        save_image(
            files.corrected,
            scan.corrected(scan.real, grey),
            roots=files.roots,
            description=f"Real part of the sodium image, corrected by {' and '.join(fields) or 'nothing'}",
            sources=[files.real],
        )
    _tell(record, found, scale, effect, scan, fields)
    if factor is not None:
        note = f"scanner {factor.scanner}, {factor.source}; it is in the slope"
        record.measure("scanner_factor", factor.factor, se=factor.se, note=note)
    record.values |= {
        "slope": scale.slope,
        "slope_se": scale.slope_se,
        "intercept": scale.intercept,
        "intercept_se": scale.intercept_se,
        "calibration_source": scale.source,
        "vial_fraction": found.material.signal_fraction(**scan.timing),
        "vials": list(found.points),
        "VialPlaces": [record_of(vial) for vial in found.vials if vial.place is not None],
        "fields": fields,
        "sigma": _median_noise(scan, head, grey),
    }
    extra = {
        "Calibration": {
            "Source": scale.source,
            "Phantoms": record.values["vials"],
            "VialPlaces": record.values["VialPlaces"],
            "Line": scale.line,
            "Slope": found.scale.slope,
            "SlopeStandardError": found.scale.slope_se,
            "Intercept": found.scale.intercept,
            "InterceptStandardError": found.scale.intercept_se,
            "FreeIntercept": scale.free_intercept_mmol_l,
            "R2": scale.r2,
            "Residual": scale.residual_mmol_l,
            "RelaxationFactor": effect.factor,
            "RelaxationFactorStandardError": effect.se,
            "VialsFrom": found.source,
            "FieldCorrections": fields,
            "Note": scale.note,
            **({} if factor is None else {"ScannerFactor": factor}),
        },
    }
    named = "" if params.calibration.source == "vials" else f", {scale.source}"
    for path, image, description in (
        (files.tsc, concentration, f"Total sodium concentration{named}"),
        (files.tsc_se, se, f"Standard error of the total sodium concentration: noise and calibration{named}"),
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


def _scan(files: Files, params: Params, known: Mapping[str, Any]) -> _Scan:
    magnitude = read_volume(files.magnitude)
    real = None if files.real is None else read_volume(files.real)
    kspace = None if files.kspace is None or real is None else read_kspace(files.kspace, params.metadata)
    clipped = None
    if known.get("clipped"):
        clipped = np.zeros(magnitude.grid.shape, dtype=bool)
        clipped[tuple(np.array(known["clipped"]).T)] = True
    calibration = params.calibration
    return _Scan(
        magnitude=magnitude,
        real=real,
        sigma=float(known["sigma"]),
        has_floor=not known["floor_removed"],
        clipped=clipped,
        fwhm_mm=float(known["fwhm_mm"]),
        timing={key: float(known[key]) for key in ("te_ms", "tr_ms", "flip_deg")},
        transmit=None if calibration.transmit == "off" else transmit_field(files.fields, magnitude.grid),
        receive=None if calibration.receive == "off" else receive_field(files.fields, magnitude.grid, params.receive),
        kspace=kspace,
        operator=None if kspace is None else Linear(kspace.trajectory, magnitude.grid, params.reconstruction),
    )


def _by_vials(
    files: Files, params: Params, scan: _Scan, clean: Volume, head: NDArray[np.bool_] | None, record: Record
) -> tuple[_Scan, _Calibrated]:
    """Return the scan, with the receive sensitivity that its image may have told, and the scale of its vials."""
    where = files.magnitude.name
    vials = named_vials(params.metadata, params.calibration, where=where)
    calibration = replace(params.calibration, vial_mmol_l=tuple(vial.mmol_l for vial in vials))
    seen, ceiling = _raised(scan.magnitude, scan.clipped)
    given = dict(files.vials)
    masks, how = vial_masks(given, seen, head, vials, calibration, ceiling=ceiling, where=where, record=record)
    anchors = [(mask, vial.mmol_l) for mask, vial in zip(masks, vials, strict=True)]
    scan = _with_bias(scan, calibration, clean, head, anchors, params.receive, where=where)
    sigmas = [scan.noise(vial.relaxation) for vial in vials]
    measured = measured_vials(
        [scan.corrected(scan.magnitude, vial.relaxation) for vial in vials],
        vials,
        masks,
        calibration,
        sigmas=sigmas,
        clipped=scan.clipped,
        magnitude=scan.has_floor,
        fwhm_mm=scan.fwhm_mm,
        where=where,
    )
    if scan.kspace is not None and scan.real is not None and scan.operator is not None:
        measured = through_acquisition(
            measured,
            scan.kspace,
            [scan.corrected(scan.real, vial.relaxation) for vial in vials],
            scan.operator,
            te_ms=scan.timing["te_ms"],
            sigmas=sigmas,
            fwhm_mm=scan.fwhm_mm,
            tolerance=calibration.fit_tolerance,
        )
    # Every vial's signal is brought to the relaxation of the first, so that one line fits them all.
    fractions = np.array([vial.relaxation.signal_fraction(**scan.timing) for vial in vials])
    common = fractions / fractions[0]
    signal, error = (np.array([getattr(vial, key) for vial in measured]) for key in ("signal", "se"))
    scale = fit_scale(signal / common, error / common, calibration)
    for vial in measured:
        _tell_vial(record, vial, how)
    points = tuple(
        {"label": vial.label, "mmol_l": vial.mmol_l, "signal": float(s / c), "se": float(e / c)}
        for vial, s, e, c in zip(vials, signal, error, common, strict=True)
    )
    return scan, _Calibrated(scale, vials[0].relaxation, tuple(measured), points, how)


def _by_fluid(
    files: Files, params: Params, scan: _Scan, clean: Volume, head: NDArray[np.bool_] | None
) -> tuple[_Scan, _Calibrated]:
    """Return the scan and the scale of a fluid of the head."""
    where, wanted = files.magnitude.name, params.calibration.source
    if files.fluid is None:
        needs = "a T1w image, from which CSF is segmented" if wanted == "csf" else "a mask label-vitreous_mask"
        raise DataError(
            f"the internal reference {wanted} needs {needs}, and the session has none",
            where=where,
            hint="give it, with --derivatives where it is a mask, or scan vials",
        )
    scan = _with_bias(scan, params.calibration, clean, head, (), params.receive, where=where)
    material = relaxation_of("CSF")
    image = scan.real if scan.real is not None else scan.magnitude
    found = measured_fluid(
        files.fluid,
        scan.corrected(image, material),
        replace(params.reference, material="csf" if wanted == "csf" else "vitreous"),
        kspace=scan.kspace,
        operator=scan.operator,
        te_ms=scan.timing["te_ms"],
        sigma=_median_noise(scan, head, material),
        fwhm_mm=scan.fwhm_mm,
        magnitude=scan.real is None and scan.has_floor,
        name=_SODIUM,
    )
    scale = reference_scale(found)
    return scan, _Calibrated(scale, found.relaxation, (), (), found.source)


def _with_bias(
    scan: _Scan,
    calibration: CalibrationParams,
    clean: Volume,
    head: NDArray[np.bool_] | None,
    anchors: Sequence[tuple[NDArray[np.bool_], float]],
    params: ReceiveParams,
    *,
    where: str,
) -> _Scan:
    if calibration.receive != "bias" or scan.receive is not None:
        return scan
    if head is None:
        raise DataError(
            "a receive bias needs the head, and the session has no proton image",
            where=where,
            hint="give a proton image or a receive map, or calibration.receive auto",
        )
    return replace(scan, receive=bias_of(clean, np.asarray(head), anchors, params, sigma=scan.sigma))


def _median_noise(scan: _Scan, head: NDArray[np.bool_] | None, material: Relaxation) -> float:
    noise = np.broadcast_to(np.asarray(scan.noise(material), dtype=np.float64), scan.magnitude.grid.shape)
    return float(np.median(noise if head is None or not head.any() else noise[head]))


def _scanner_factor(metadata: Mapping[str, Any]) -> ScannerFactor | None:
    """Return the factor of the scanner that the metadata hold."""
    stated = metadata.get(FACTOR_KEY)
    if stated is None:
        return None
    try:
        factor, se = float(stated["Factor"]), float(stated.get("StandardError", 0.0))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(
            f"{FACTOR_KEY} is {stated!r}", hint='write {"Scanner": "A", "Factor": 1.02, "StandardError": 0.01}'
        ) from error
    if not (np.isfinite(factor) and factor > 0 and np.isfinite(se) and se >= 0):
        raise DataError(f"{FACTOR_KEY} has the factor {factor} with standard error {se}", hint="give positive numbers")
    return ScannerFactor(
        scanner=str(stated.get("Scanner", "this scanner")),
        factor=factor,
        se=se,
        n=int(stated.get("Readings", 1)),
        source=str(stated.get("Source", "sidecar")),
    )


def _tell_vial(record: Record, vial: MeasuredVial, how: str) -> None:
    label = vial.phantom.label
    record.measure(
        f"vial_signal_{label}",
        vial.signal,
        "a.u.",
        se=vial.se,
        note=f"{vial.phantom.mmol_l:g} mmol/L, {int(vial.mask.sum())} voxels in the mask, {vial.method}, {how}",
    )
    record.measure(f"vial_core_{label}", vial.core_signal, "a.u.", note="median of the core, as a check")
    if vial.n_saturated:
        record.measure(f"vial_saturated_{label}", vial.n_saturated, note="clipped voxels, known only to be brighter")
    if vial.n_border:
        record.warn(
            f"vial {label} reaches the border of the image with {vial.n_border} voxels: aliasing and the edge of the "
            "coil may change its signal"
        )


def _tell(
    record: Record, found: _Calibrated, scale: Scale, effect: RelaxationEffect, scan: _Scan, fields: Sequence[str]
) -> None:
    """Write the measures and warnings of a calibration."""
    line = f"line: {scale.line}; {scale.source}"
    record.measure("calibration_slope", scale.slope, "mmol/L per a.u.", se=scale.slope_se, note=line)
    if scale.line == "intercept":
        record.measure("calibration_intercept", scale.intercept, "mmol/L", se=scale.intercept_se, note=line)
    if found.vials:
        record.measure(
            "calibration_free_intercept",
            scale.free_intercept_mmol_l,
            "mmol/L",
            se=scale.free_intercept_se,
            note="of a free line through the vials, quality only: far from 0 it tells of B1 or a wrong concentration",
        )
        record.measure("calibration_r2", scale.r2, note=scale.note)
        record.measure("calibration_residual", scale.residual_mmol_l, "mmol/L", note="root mean square over the vials")
    record.measure(
        "relaxation_factor",
        effect.factor,
        se=effect.se,
        note="reference over brain tissue, for TE, TR and flip angle; its error is of T1 and T2* known to 10 %, and is "
        "in no other standard error",
    )
    if scan.transmit is not None:
        low, middle, high = np.percentile(scan.transmit.relative, [5, 50, 95])
        note = f"{scan.transmit.source}; reached over nominal flip angle, 5-95 %: {low:.2f}-{high:.2f}"
        record.measure("transmit_median", float(middle), note=note)
    if scan.receive is not None:
        low, middle, high = np.percentile(scan.receive.sensitivity, [5, 50, 95])
        note = f"{scan.receive.source}; 5-95 %: {low:.2f}-{high:.2f}"
        record.measure("receive_median", float(middle), note=note)
    for text in (scale.note, effect.note, *(text for text in fields if "alone" in text)):
        if text:
            record.warn(text)


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


def _raised(image: Volume, clipped: NDArray[np.bool_] | None) -> tuple[Volume, float | None]:
    """Return the image with clipped voxels at one ceiling above all others, and that ceiling."""
    if clipped is None:
        return image, None
    data = np.array(image.data, dtype=np.float32)
    ceiling = float(np.ceil(data.max())) + 1.0
    data[clipped] = ceiling
    return image.with_data(data), ceiling


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
    save_image(
        files.trace,
        found.trace,
        roots=files.roots,
        description=f"Trace image, geometric mean over the directions of b {found.trace_b_s_mm2:.0f} s/mm2",
        sources=[files.dwi, files.bval],
        extra={"Diffusion": params.diffusion},
    )
    write_volume(files.b0, image.with_data(np.asarray(image.data)[..., int(np.argmin(b_s_mm2))]))
    record.measure(
        "adc_valid_fraction", float(found.valid.mean()), note="voxels with a positive signal at every b value"
    )
    write_record(files.record, record)
