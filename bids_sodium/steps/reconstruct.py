"""k-space → image and its point spread; or, where only an image exists, image → receive-corrected image.

Writes the magnitude, the phase-corrected real part (linear in concentration, so partial-volume correction reads it)
and the record: noise, resolution of every tissue, convergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_volume
from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.constants import PROTON_GAMMA_BAR_MHZ_T, relaxation_of
from bids_sodium.core.data import Grid, KSpace, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.engine.resources import memory_gb
from bids_sodium.image.calibration import ReceiveParams, receive_ratio
from bids_sodium.image.magnitude import correct_noise_floor
from bids_sodium.image.noise import estimate_noise
from bids_sodium.recon.offresonance import sodium_field_hz
from bids_sodium.recon.psf import point_spread
from bids_sodium.recon.solvers import ReconstructionParams, Solution, phase_corrected_real, reconstruct
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, write_record

__all__ = ["VERSION", "Files", "Params", "run", "timing"]

VERSION = "1"
_TISSUES = ("CGM", "NAWM", "CSF", "lesion")
_FIELD_UNITS = {"Hz": 1.0, "rad/s": 0.5 / np.pi, "T": PROTON_GAMMA_BAR_MHZ_T * 1e6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes.

    Exactly one of ``kspace`` and ``image`` is given. ``reference`` is an image of the same scene from a volume coil,
    ``echoes`` are all echoes of a multi-echo image, ``fieldmap`` is a map of the static field. ``field`` is that map on
    the sodium grid, ``series`` all echoes in one image.
    """

    kspace: Path | None
    image: Path | None
    reference: Path | None
    magnitude: Path
    real: Path | None
    record: Path
    roots: Roots
    echoes: tuple[Path, ...] = ()
    fieldmap: Path | None = None
    field: Path | None = None
    series: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How to reconstruct, and what the sidecar says of the scan."""

    reconstruction: ReconstructionParams = field(default_factory=ReconstructionParams)
    """Weights, solver and filter."""
    receive: ReceiveParams = field(default_factory=ReceiveParams)
    """How the receive profile is estimated from array and volume coil."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Sidecar of the sodium scan, as BIDS gives it (times in s)."""
    fieldmap: Mapping[str, Any] = field(default_factory=dict)
    """Sidecar of the field map."""


def timing(metadata: Mapping[str, Any], *, where: str) -> dict[str, float]:
    """Return TE, TR (ms) and flip angle (degrees) from a sidecar.

    Raises
    ------
    DataError
        If one is missing or is not a positive number.
    """
    found = {}
    for name, key, scale in (
        ("te_ms", "EchoTime", 1e3),
        ("tr_ms", "RepetitionTime", 1e3),
        ("flip_deg", "FlipAngle", 1.0),
    ):
        value = metadata.get(key)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise DataError(
                f"{key} is {'missing' if value is None else repr(value)}",
                where=where,
                hint=f"state {key} as a positive number ({'degrees' if key == 'FlipAngle' else 's'}) in the sidecar",
            )
        found[name] = float(value) * scale
    return found


def run(files: Files, params: Params) -> None:
    """Reconstruct one session's sodium image."""
    record = Record()
    if files.kspace is not None:
        _from_kspace(files, params, record)
    else:
        _from_image(files, params, record)
    write_record(files.record, record)


def _from_kspace(files: Files, params: Params, record: Record) -> None:
    assert files.kspace is not None  # noqa: S101
    kspace = read_kspace(files.kspace, params.metadata, memory_gb=memory_gb())
    stated = {"te_ms": kspace.te_ms, "tr_ms": kspace.tr_ms, "flip_deg": kspace.flip_deg}
    if not all(np.isfinite(value) for value in stated.values()):
        stated = timing(params.metadata, where=str(files.kspace.name))
    field_hz = _field_hz(files, params, kspace.grid)
    solution = reconstruct(kspace, kspace.grid, params.reconstruction.linear, field_hz=field_hz)
    for note in (*kspace.notes, *solution.notes):
        record.warn(note)
    spreads = _spreads(kspace, params, stated["te_ms"], record)
    _measure(solution, params, record)
    record.values |= {
        "sigma": solution.sigma,
        "source": "kspace",
        "floor_removed": False,
        "fwhm_mm": spreads["NAWM"]["FWHM"],
        "n_coils": kspace.n_coils,
        "offset_hz": solution.offset_hz,
        **stated,
    }
    extra = {
        "PointSpread": spreads,
        "NoiseSigma": solution.sigma,
        "CentreFrequencyOffset": solution.offset_hz,
        "Reconstruction": params.reconstruction,
        "EchoTime": stated["te_ms"] / 1000.0,
        "RepetitionTime": stated["tr_ms"] / 1000.0,
        "FlipAngle": stated["flip_deg"],
        "ResonantNucleus": "23Na",
    }
    sources = [files.kspace, *([] if files.fieldmap is None else [files.fieldmap])]
    save_image(
        files.magnitude,
        Volume(np.abs(solution.image).astype(np.float32), kspace.grid),
        roots=files.roots,
        description="Sodium image reconstructed from k-space, magnitude",
        sources=sources,
        extra=extra,
    )
    short = {key: extra[key] for key in ("NoiseSigma", "Reconstruction", "ResonantNucleus")}
    if files.real is not None:
        save_image(
            files.real,
            Volume(phase_corrected_real(solution.image, kspace.grid), kspace.grid),
            roots=files.roots,
            description="Sodium image reconstructed from k-space, real part after removal of its smooth phase",
            sources=sources,
            extra=short,
        )
    if files.field is not None and field_hz is not None:
        save_image(
            files.field,
            Volume(field_hz, kspace.grid, "Hz"),
            roots=files.roots,
            description="Static field at the frequency of sodium, on the sodium grid",
            sources=sources[1:],
        )
    if files.series is not None:
        _echoes_from_kspace(files, params, kspace, solution, field_hz=field_hz, extra=short)


def _spreads(kspace: KSpace, params: Params, te_ms: float, record: Record) -> dict[str, dict[str, Any]]:
    """Return width, effective volume, profile and modulation of every tissue's point spread, for the sidecar."""
    linear = params.reconstruction.linear
    spreads = {}
    for tissue in _TISSUES:
        spread = point_spread(
            kspace.trajectory,
            decay=relaxation_of(tissue).decay,
            te_ms=te_ms,
            filter=linear.apodisation,
            filter_width=linear.filter_width,
        )
        spreads[tissue] = {
            "FWHM": spread.fwhm_mm,
            "EffectiveVolume": spread.volume_mm3,
            "EffectiveVolumeDefinition": spread.definition,
            "ProfileRadius": np.round(spread.r_mm[:400:4], 4),
            "Profile": np.round(spread.profile[:400:4], 6),
            "SpatialFrequency": np.round(spread.k_per_mm[::16], 6),
            "ModulationTransfer": np.round(spread.mtf[::16], 6),
        }
        record.measure(f"psf_fwhm_{tissue}", spread.fwhm_mm, "mm", note="point spread with the tissue's T2* decay")
        record.measure(
            f"psf_volume_{tissue}", spread.volume_mm3 / 1000.0, "mL", note=f"definition: {spread.definition}"
        )
    return spreads


def _measure(solution: Solution, params: Params, record: Record) -> None:
    record.measure("noise_sigma", solution.sigma, "a.u.", note="SD of the noise in the real part, from k-space")
    record.measure("reconstruction_iterations", solution.iterations, note=params.reconstruction.linear.solver)
    record.measure("reconstruction_converged", float(solution.converged))
    record.measure("reconstruction_gain", solution.gain, note="response of a uniform ball of 190 mm; one is right")
    record.measure("kspace_coverage", solution.coverage, note="share of the Nyquist lattice that holds a sample")
    record.measure(
        "centre_frequency_offset",
        solution.offset_hz,
        "Hz",
        se=solution.offset_se_hz,
        note="of the object against the receiver, taken off before reconstruction",
    )


def _field_hz(files: Files, params: Params, grid: Grid) -> NDArray[np.float32] | None:
    """Return the static field at the frequency of sodium on the sodium grid, or None without a map.

    Field map and sodium scan are of one session and share the scanner's coordinates.
    """
    if files.fieldmap is None:
        return None
    unit = str(params.fieldmap.get("Units", "Hz"))
    if unit not in _FIELD_UNITS:
        raise DataError(
            f"Units of the field map is {unit!r}",
            where=files.fieldmap.name,
            hint=f"state one of {', '.join(_FIELD_UNITS)}",
        )
    volume = read_volume(files.fieldmap)
    moved = resample(volume, grid, Affine.identity("fieldmap", "23Na"), kind="intensity")
    field_hz = np.asarray(moved.data, dtype=np.float64).reshape(grid.shape) * _FIELD_UNITS[unit]
    nucleus = str(params.fieldmap.get("ResonantNucleus", "1H")).lower()
    return np.asarray(field_hz if "na" in nucleus else sodium_field_hz(field_hz), dtype=np.float32)


def _echoes_from_kspace(
    files: Files,
    params: Params,
    first: KSpace,
    solution: Solution,
    *,
    field_hz: NDArray[np.float32] | None,
    extra: Mapping[str, Any],
) -> None:
    """Write the magnitude of every echo in one image; the first one is there already."""
    assert files.kspace is not None and files.series is not None  # noqa: S101,PT018
    images, times = [np.abs(solution.image)], [first.te_ms]
    for echo in range(1, first.n_echoes):
        later = read_kspace(files.kspace, params.metadata, echo=echo, memory_gb=memory_gb())
        images.append(np.abs(reconstruct(later, first.grid, params.reconstruction.linear, field_hz=field_hz).image))
        times.append(later.te_ms)
    _save_series(files, np.stack(images, axis=-1), first.grid, times, [files.kspace], extra)


def _save_series(
    files: Files,
    data: NDArray[np.floating],
    grid: Grid,
    te_ms: Sequence[float],
    sources: Sequence[Path],
    extra: Mapping[str, Any],
) -> None:
    assert files.series is not None  # noqa: S101
    save_image(
        files.series,
        Volume(data.astype(np.float32), grid),
        roots=files.roots,
        description="Magnitude of every echo of the sodium scan, along the last axis",
        sources=sources,
        extra={**extra, **({"EchoTimes": [te / 1000.0 for te in te_ms]} if te_ms else {})},
    )


def _from_image(files: Files, params: Params, record: Record) -> None:
    assert files.image is not None  # noqa: S101
    stated = timing(params.metadata, where=files.image.name)
    raw = read_volume(files.image, dtype=None)
    saturation = _ceiling(raw)
    image = read_volume(files.image)
    if image.data.ndim != 3:
        raise DataError(
            f"the sodium image has {image.data.ndim} axes", where=files.image.name, hint="give one 3-D image"
        )
    if not np.isfinite(image.data).all():
        raise DataError(
            f"{int((~np.isfinite(image.data)).sum())} voxels are NaN or infinite",
            where=files.image.name,
            hint="export it again",
        )
    if float(np.ptp(image.data)) == 0.0:
        raise DataError(f"every voxel is {float(image.data.flat[0]):g}", where=files.image.name, hint="export it again")
    sources = [files.image]
    if saturation is not None:
        count = int((raw.data >= saturation).sum())
        record.measure("saturated_voxels", count, note=f"voxels at the ceiling {saturation:g} of the stored integers")
        record.values["saturation"] = saturation
    # Noise and its floor are those of the image as stored: dividing it blows up the noise of the air.
    noise = estimate_noise(image, order=None if files.reference is not None else 1)
    sigma = noise.sigma
    data = np.asarray(image.data, dtype=np.float32)
    if files.reference is not None:
        reference = read_volume(files.reference)
        sources.append(files.reference)
        ratio = receive_ratio(image, reference, params.receive)
        data = np.asarray(correct_noise_floor(image, noise.sigma, order=noise.order).data, dtype=np.float32)
        sigma /= float(np.median(ratio[data > np.percentile(data, 80)]))
        record.measure("noise_channels", noise.order, note="effective number combined by root sum of squares")
        clipped = None if saturation is None else np.asarray(raw.data >= saturation)
        data = (data / ratio).astype(np.float32)
        low, middle, high = np.percentile(ratio, [5, 50, 95])
        record.measure("receive_ratio_median", middle, note=f"array / volume coil, 5-95 %: {low:.2f}-{high:.2f}")
        if clipped is not None:
            record.values["clipped"] = np.argwhere(clipped).tolist()
    elif saturation is not None:
        record.values["clipped"] = np.argwhere(np.asarray(raw.data >= saturation)).tolist()
    fwhm_mm = float(np.mean(image.grid.voxel_mm) * 1.59)
    record.measure(
        "noise_sigma",
        sigma,
        "a.u.",
        se=noise.relative_error * sigma,
        note=f"from the image ({noise.source}); estimates differ by a factor of {noise.disagreement:.2f}; k-space "
        "would be exact",
    )
    record.measure("psf_fwhm_nominal", fwhm_mm, "mm", note="1.59 x voxel size: no k-space, so the protocol is assumed")
    record.omit("partial-volume correction with the acquisition as the model", "no k-space of the sodium scan")
    record.values |= {
        "sigma": sigma,
        "source": "image",
        "floor_removed": files.reference is not None,
        "fwhm_mm": fwhm_mm,
        "n_coils": 1,
        **stated,
    }
    if files.series is not None:
        echoes = [read_volume(path) for path in files.echoes]
        if any(not echo.grid.same_as(image.grid) for echo in echoes):
            raise GeometryError("the echoes lie on different grids", where=files.image.name, hint="export them again")
        stack = np.stack([np.asarray(echo.data) for echo in echoes], axis=-1)
        _save_series(files, stack, image.grid, (), files.echoes, {"ResonantNucleus": "23Na"})
    save_image(
        files.magnitude,
        Volume(data, image.grid),
        roots=files.roots,
        description="Sodium image as exported" + (", divided by the receive profile" if files.reference else ""),
        sources=sources,
        extra={
            "NoiseSigma": sigma,
            "EchoTime": stated["te_ms"] / 1000.0,
            "RepetitionTime": stated["tr_ms"] / 1000.0,
            "FlipAngle": stated["flip_deg"],
            "ResonantNucleus": "23Na",
        },
    )


def _ceiling(image: Volume) -> float | None:
    """Return the value at which integers were clipped: several voxels share the maximum 2^n - 1."""
    if not np.issubdtype(image.data.dtype, np.integer):
        return None
    top = int(image.data.max())
    if top > 0 and (top + 1) & top == 0 and int((image.data == top).sum()) >= 2:
        return float(top)
    return None
