"""Tissue maps and the sodium scan → the table of tissue concentrations and the maps that go with it.

Every method of partial-volume correction is fitted to the same calibrated image: the real part of the linear
reconstruction, or the magnitude without its noise floor; neither is denoised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_transform, read_volume, write_table
from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.constants import relaxation_of
from bids_sodium.core.data import Grid, Volume, box_of
from bids_sodium.core.errors import GeometryError
from bids_sodium.core.tables import TISSUE_TSC
from bids_sodium.image.magnitude import correct_noise_floor
from bids_sodium.spatial.transforms import Affine, Transform
from bids_sodium.steps._model import SOFT, SOLID, Machine, Scan, ScanModel, VialPlace, machine_of, scan_model
from bids_sodium.steps._pose import Pose
from bids_sodium.steps.outputs import save_image
from bids_sodium.tissue.partialvolume import Corrected, pooled

if TYPE_CHECKING:
    from bids_sodium.steps.extract import Files, Params
    from bids_sodium.steps.records import Record

__all__ = [
    "SODIUM",
    "Inputs",
    "WholeBrain",
    "anatomy_from_na",
    "calibrated_by",
    "inputs",
    "inputs_of",
    "judge",
    "na_from_t1w",
    "scan_of",
    "target_error_mm",
    "tissue_maps",
    "write_tissues",
]

SODIUM = "23Na"
"""Frame of the sodium image, and the acquisition label of its files."""

_SUMS = {"GM": ("CGM", "DGM"), "WM": ("NAWM", "T1iso", "T1hypo"), "T2lesion": ("T1iso", "T1hypo")}
_INSIDE = 0.5
_FAR_MM = 1.5
_MARGIN = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What tissues and regions of one session are read from.

    Parameters
    ----------
    maps : dict of str to Volume
        Tissue fractions at the time of the scan, in the box that holds the brain; soft tissue outside of it on the
        whole T1w grid.
    shown : dict of str to Volume
        Tissue fractions that the T1w image shows, which may be of another time, in the same box.
    grid : Grid
        The whole T1w grid.
    box : tuple of slice
        Where the brain and all masks lie on it; the whole grid where atlases are read.
    na_from_maps : (4, 4) ndarray
        Place of the maps in the sodium frame.
    target_error_mm : float
        Standard error of that place.
    scan : Scan
        The sodium scan.
    machine : Machine or None
        What puts maps through it.
    """

    maps: dict[str, Volume]
    shown: dict[str, Volume]
    grid: Grid
    box: tuple[slice, slice, slice]
    na_from_maps: NDArray[np.float64]
    target_error_mm: float
    scan: Scan
    machine: Machine | None


@dataclass(frozen=True, slots=True)
class WholeBrain:
    """What the tissues of a whole brain tell of a scan.

    Parameters
    ----------
    pose : Pose
        Where the image would have the tissue maps.
    mmol_l : dict of str to float
        Concentration of each tissue, NaN where the scan does not tell.
    """

    pose: Pose
    mmol_l: dict[str, float]


def inputs(files: Files) -> list[Path]:
    """Return what the tables of a session are made from."""
    single = [files.kspace, files.tsc, files.t1w, files.sodium_transform, files.template_transform]
    return [path for path in single if path is not None]


def calibrated_by(known: Mapping[str, Record]) -> dict[str, str]:
    """Return what set the scale of concentrations, for the sidecar of everything that is in mmol/L."""
    return {"CalibrationSource": str(known["quantify"].values["calibration_source"])}


def anatomy_from_na(files: Files) -> Transform:
    """Return the transform from the sodium frame to that of the anatomy."""
    assert files.sodium_transform is not None  # noqa: S101
    return read_transform(files.sodium_transform, files.anatomy_name, SODIUM)


def inputs_of(files: Files, params: Params, tsc: Volume, known: Mapping[str, Record]) -> Inputs | None:
    """Return what tissues and regions are read from; ``None`` without an anatomy."""
    if not files.fractions:
        return None
    shown = {name: read_volume(path, unit="1") for name, path in files.fractions}
    maps = tissue_maps(files, shown)
    grid = maps["CGM"].grid
    held = np.logical_or.reduce([np.asarray(volume.data) > 0 for name, volume in maps.items() if name != SOFT])
    for _, path in files.regions:
        held |= np.asarray(read_volume(path).data) > 0
    box = (slice(None), slice(None), slice(None)) if files.atlases else box_of(held, _MARGIN)
    scan = scan_of(files, params, tsc, known)
    return Inputs(
        maps={name: volume if name == SOFT else volume.cropped(box) for name, volume in maps.items()},
        shown={name: volume.cropped(box) for name, volume in shown.items()},
        grid=grid,
        box=box,
        na_from_maps=na_from_t1w(files),
        target_error_mm=target_error_mm(known, params),
        scan=scan,
        machine=machine_of(scan),
    )


def write_tissues(
    files: Files, params: Params, tsc: Volume, given: Inputs, known: Mapping[str, Record], record: Record
) -> WholeBrain | None:
    """Write the tissue table, fractions as the scan sees them and the corrected map; nothing without a table to write.

    Returns
    -------
    WholeBrain or None
        What the fit tells of place and concentration.
    """
    if files.tissue_table is None:
        return None
    quantified = known["quantify"].values
    maps = given.maps
    volumes = {name: float(np.asarray(image.data).sum()) * image.grid.voxel_ml for name, image in maps.items()}
    model = scan_model(
        maps,
        given.na_from_maps,
        given.scan,
        params.partialvolume,
        target_error_mm=given.target_error_mm,
        machine=given.machine,
    )
    judge(model, record)
    relative = float(quantified["slope_se"]) / float(quantified["slope"])
    parts = {name: members for name, members in _SUMS.items() if any(m in model.names for m in members)}
    fits: dict[str, Corrected] = {}
    rows: list[dict[str, object]] = []
    for method in dict.fromkeys(params.partialvolume.methods):
        if method.startswith("kspace") and model.samples is None:
            why = (
                "several channels or a map of a field" if files.kspace is not None else "no k-space of the sodium scan"
            )
            record.omit(f"partial-volume method {method}", why)
            continue
        fits[method] = model.corrected(method, params.partialvolume)
        rows += _tissue_rows(pooled(fits[method], parts, volumes), relative, volumes, params)
    write_table(
        files.tissue_table,
        rows,
        TISSUE_TSC,
        sidecar={
            "Sources": [files.roots.uri(path) for path in (*inputs(files), *(path for _, path in files.fractions))],
            "TissueColumns": model.how,
            **calibrated_by(known),
            "CalibrationRelativeStandardError": relative,
            "StandardErrorParts": {method: _error_parts(fit, relative) for method, fit in fits.items()},
            "PartialVolume": asdict(params.partialvolume),
        },
    )
    _measure(model, fits, params, record)
    _corrected_map(files, params, tsc, model, fits, calibrated_by(known))
    for name, path in files.spread:
        if name in model.names:
            save_image(
                path,
                Volume(model.shares[model.names.index(name)].astype(np.float32), tsc.grid, "1"),
                roots=files.roots,
                description=f"Fraction of {name} as the sodium scan sees it ({model.how})",
                sources=inputs(files),
                units="1",
                kind="probseg",
            )
    found = model.corrected("gtm", params.partialvolume)
    return WholeBrain(model.pose, dict(zip(found.names, found.mmol_l.tolist(), strict=True)))


def na_from_t1w(files: Files) -> NDArray[np.float64]:
    """Return the place of the tissue maps in the sodium frame, a rigid one."""
    found = anatomy_from_na(files).inverse()
    if not isinstance(found, Affine):
        raise GeometryError(
            "the sodium image reaches the T1w image by a warp",
            where=str(files.sodium_transform),
            hint="give a rigid one",
        )
    return np.asarray(found.matrix, dtype=np.float64)


def scan_of(files: Files, params: Params, tsc: Volume, known: Mapping[str, Record]) -> Scan:
    """Return the sodium scan in mmol/L of grey matter."""
    reconstructed, quantified = known["reconstruct"].values, known["quantify"].values
    timing = {key: float(reconstructed[key]) for key in ("te_ms", "tr_ms", "flip_deg")}
    grey = relaxation_of("GM").signal_fraction(**timing)
    factor = float(quantified["vial_fraction"]) / grey
    to_mmol_l = float(quantified["slope"]) * factor
    zero = float(quantified.get("intercept", 0.0)) * factor
    fields = bool(quantified.get("fields"))
    kspace = None if files.kspace is None else read_kspace(files.kspace, params.metadata)
    if files.real is None and (fields or files.magnitude is None):
        image = tsc  # maps have corrected it, not the magnitude
    else:
        signal = read_volume(files.real if files.real is not None else files.magnitude)  # type: ignore[arg-type]
        if files.real is None and not reconstructed["floor_removed"]:
            signal = correct_noise_floor(signal, float(reconstructed["sigma"]))
        image = signal.with_data(zero + np.asarray(signal.data, dtype=np.float64) * to_mmol_l, unit="mmol/L")
    protocol = params.metadata.get("NonCartesianTrajectory")
    return Scan(
        image=image,
        smooth=tsc,
        kspace=kspace,
        fits_samples=kspace is not None and kspace.n_coils == 1 and not fields,
        reconstruction=params.reconstruction.linear,
        offset_hz=float(reconstructed.get("offset_hz", 0.0)),
        protocol=protocol if isinstance(protocol, Mapping) else {},
        timing=timing,
        vials=[VialPlace.read(entry) for entry in quantified.get("VialPlaces", ())],
        to_mmol_l=to_mmol_l,
        sigma=float(quantified.get("sigma", reconstructed["sigma"])) * to_mmol_l,
        fwhm_mm=float(reconstructed["fwhm_mm"]),
    )


def target_error_mm(known: Mapping[str, Record], params: Params) -> float:
    """Return the standard error of the place of a point of the brain, over all links from sodium to the anatomy."""
    measures = known["align"].measures if "align" in known else []
    whole = next((measure.value for measure in measures if measure.name == f"registration_target_error_{SODIUM}"), 0.0)
    return float(whole) if np.isfinite(whole) and whole > 0 else params.partialvolume.registration_sd_mm


def judge(model: ScanModel, record: Record) -> None:
    """Say how the columns were made, loudly where the point spread is a guess."""
    record.measure("psf_known", float(model.exact), note=model.how)
    if not model.exact:
        record.warn(
            f"partial volume: {model.how}. On scans with known truth that reads cortex 4 to 13 and deep grey matter 4 "
            "to 12 mmol/L too low; state NonCartesianTrajectory in the sidecar, or give k-space"
        )
    record.measure(
        "registration_from_fit",
        model.pose.moved_mm,
        "mm",
        note="how far the partial-volume fit would have the tissue maps moved, root mean square over the brain; "
        + ("they were" if model.moved else "they were not"),
    )
    if model.pose.moved_mm > _FAR_MM:
        what = "they were moved there" if model.moved else "standard errors are that much larger"
        record.warn(
            f"partial volume: the sodium image would have the tissue maps {model.pose.moved_mm:.1f} mm elsewhere; "
            f"{what}, look at the registration"
        )
    for label, value in model.vial_mmol_l.items():
        record.measure(
            f"vial_joint_{label}", value, "mmol/L", note="read by the fit of tissues and vials together, quality only"
        )


def _measure(model: ScanModel, fits: Mapping[str, Corrected], params: Params, record: Record) -> None:
    """Record the estimated CSF, and how far the partition moves with the concentration that it subtracts."""
    free = next((fits[method] for method in ("local", "glm") if method in fits), None)
    if free is not None and "CSF" in free.names and np.isfinite(free.of("CSF")[0]):
        value, se = free.of("CSF")
        record.measure(
            "csf_estimated",
            value,
            "mmol/L",
            se=se,
            note=f"estimated by the fit ({free.method}), not fixed; far from 140 it warns of calibration, registration "
            "or segmentation",
        )
    if "csf" in fits:
        p = params.partialvolume
        more = model.corrected("csf", replace(p, csf_mmol_l=p.csf_mmol_l + 1.0))
        for name in SOLID:
            if name in model.names and np.isfinite(more.of(name)[0]):
                record.measure(
                    f"csf_sensitivity_{name}",
                    more.of(name)[0] - fits["csf"].of(name)[0],
                    note="change of the method csf per mmol/L of the CSF concentration that it subtracts",
                )


def _error_parts(fit: Corrected, relative: float) -> dict[str, dict[str, float]]:
    """Return the standard errors of every tissue by source, in mmol/L."""
    return {
        name: {
            **{source: float(values[i]) for source, values in fit.parts.items()},
            "calibration": abs(float(fit.mmol_l[i])) * relative,
        }
        for i, name in enumerate(fit.names)
        if name != SOFT and np.isfinite(fit.mmol_l[i])
    }


def _corrected_map(
    files: Files,
    params: Params,
    tsc: Volume,
    model: ScanModel,
    fits: Mapping[str, Corrected],
    calibrated: Mapping[str, str],
) -> None:
    """Write the brain mask on the sodium grid and the concentration of brain tissue alone, voxel by voxel."""
    if files.sodium_brain is not None:
        whole = model.shares[[i for i, name in enumerate(model.names) if name != SOFT]].sum(0) > _INSIDE
        save_image(
            files.sodium_brain,
            tsc.with_data(whole, unit="1"),
            roots=files.roots,
            description="Brain on the sodium grid: at least half of the voxel as the scan sees it",
            sources=inputs(files),
            dtype=np.uint8,
            kind="mask",
        )
    if files.corrected_map is not None:
        local = fits["local"] if "local" in fits else model.corrected("local", params.partialvolume)
        tissue = [i for i, name in enumerate(model.names) if name not in {SOFT, "CSF"}]
        weight = np.maximum(model.shares[tissue], 0.0)
        total = weight.sum(0)
        mean = (weight * np.nan_to_num(local.maps[tissue])).sum(0) / np.where(total > _INSIDE, total, np.inf)
        save_image(
            files.corrected_map,
            tsc.with_data(mean, unit="mmol/L"),
            roots=files.roots,
            description="Sodium concentration of brain tissue, CSF and neighbours removed by the local least-squares "
            "fit; 0 where less than half of the voxel is tissue",
            sources=inputs(files),
            units="mmol/L",
            extra=calibrated,
        )


def tissue_maps(files: Files, shown: Mapping[str, Volume]) -> dict[str, Volume]:
    """Return tissue fractions on the T1w grid at the time of the scan, lesion classes split."""
    maps = dict(shown)
    grid = maps["CGM"].grid
    lesions = {name: np.asarray(read_volume(path).data) > 0.5 for name, path in files.lesions}
    whole = maps.pop("L", None)
    if "T2lesion" in lesions:
        hypo = lesions.get("T1hypo", np.zeros(grid.shape, dtype=bool)) & lesions["T2lesion"]
        maps["T1iso"] = Volume((lesions["T2lesion"] & ~hypo).astype(np.float32), grid, "1")
        if hypo.any():
            maps["T1hypo"] = Volume(hypo.astype(np.float32), grid, "1")
    elif whole is not None:
        drawn = np.zeros(grid.shape, dtype=bool)
        for _, path in files.regions:
            drawn |= np.asarray(read_volume(path).data) > 0.5
        maps |= _taken_out(maps, drawn, whole)
    if files.t1w is not None and files.brain is not None:
        maps[SOFT] = _soft_tissue(read_volume(files.t1w), np.asarray(read_volume(files.brain).data) > 0.5)
    for name, path in files.lesion_fractions:
        save_image(
            path,
            maps.get(name, Volume(np.zeros(grid.shape, dtype=np.float32), grid, "1")),
            roots=files.roots,
            description=f"Fraction of each voxel that is {name}",
            sources=[place for _, place in files.lesions],
            units="1",
            kind="probseg",
        )
    return maps


def _taken_out(maps: Mapping[str, Volume], drawn: NDArray[np.bool_], whole: Volume) -> dict[str, Volume]:
    """Return tissues without what was drawn as lesion, and the lesion, which holds it with those that were there."""
    lesion = np.array(whole.data, dtype=np.float32)
    found = {}
    for name in (name for name in SOLID if name in maps):
        data = np.array(maps[name].data, dtype=np.float32)
        lesion[drawn] += data[drawn]
        data[drawn] = 0.0
        found[name] = maps[name].with_data(data)
    return found | ({"L": whole.with_data(lesion)} if lesion.any() else {})


def _soft_tissue(t1w: Volume, brain: NDArray[np.bool_]) -> Volume:
    """Return what is bright in the T1w image outside the brain: scalp, fat and muscle."""
    from scipy import ndimage

    data = np.asarray(t1w.data)
    near = ndimage.binary_dilation(brain, iterations=2)
    level = 0.35 * float(np.median(data[brain]))
    return Volume(((data > level) & ~near).astype(np.float32), t1w.grid, "1")


def _tissue_rows(
    found: Corrected, relative: float, volumes: Mapping[str, float], params: Params
) -> list[dict[str, object]]:
    rows = []
    for i, name in enumerate(found.names):
        if name in {SOFT, "L"}:
            continue
        value, se = float(found.mmol_l[i]), float(found.se[i])
        rows.append(
            {
                **params.ids,
                "tissue": name,
                "method": found.method,
                "tsc_mmol_l": value,
                "tsc_se": float(np.hypot(se, value * relative)),
                "sd_mmol_l": float(found.sd[i]),
                "n_voxels": int(found.n_voxels[i]),
                "volume_ml": sum(volumes.get(part, 0.0) for part in _SUMS.get(name, (name,))),
                "csf_excluded_fraction": float(found.csf_excluded_fraction[i]),
            }
        )
    return rows
