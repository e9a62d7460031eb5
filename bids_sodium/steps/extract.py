"""Maps, regions and point spread → the participant's tables.

Tissue fractions are brought once, through the whole chain, to a lattice finer than the sodium grid, put through the
scan's own acquisition (or its point spread), and fitted to the calibrated image. Regions are read on the T1w grid
against their mirror image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume, write_table
from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.constants import relaxation_of
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.tables import QC, ROI_TSC, TISSUE_TSC
from bids_sodium.recon.columns import Columns, mtf_columns, operator_columns
from bids_sodium.recon.psf import gaussian_point_spread
from bids_sodium.recon.solvers import ReconstructionParams
from bids_sodium.spatial.mirror import contralateral_masks, mirror_transform
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Transform
from bids_sodium.steps.align import TEMPLATE
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, read_record
from bids_sodium.tissue.measures import percent_change
from bids_sodium.tissue.measures import regional as region_mean
from bids_sodium.tissue.partialvolume import Corrected, PartialVolumeParams, regional
from bids_sodium.tissue.rois import RoiParams, combine, names_in, screen

__all__ = ["SODIUM", "VERSION", "Files", "Params", "run"]

VERSION = "1"
SODIUM = "23Na"
_NORMAL = ("CGM", "DGM", "NAWM", "CSF")
_WITHOUT_CSF = 0.5
_INSIDE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes; pairs are (name, path).

    ``anatomy`` is the proton image that the sodium image was registered to, ``anatomy_name`` its frame: ``T1w``, or
    what stands in for it. ``fractions`` are tissue fractions on the T1w grid, ``lesions`` the MS lesion masks there,
    ``regions`` the stroke regions there, ``maps`` the standard or anatomical spaces the concentration map is written
    in, ``spread`` the fractions as the sodium scan sees them, ``lesion_fractions`` the lesion classes on the T1w grid.
    """

    kspace: Path | None
    real: Path | None
    denoised: Path | None
    tsc: Path | None
    t1w: Path | None
    brain: Path | None
    anatomy: Path | None
    anatomy_name: str
    sodium_transform: Path | None
    template_transform: Path | None
    fractions: tuple[tuple[str, Path], ...]
    lesions: tuple[tuple[str, Path], ...]
    regions: tuple[tuple[str, Path], ...]
    adc: Path | None
    adc_transform: Path | None
    records: tuple[tuple[str, Path], ...]
    maps: tuple[tuple[str, Path], ...]
    spread: tuple[tuple[str, Path], ...]
    lesion_fractions: tuple[tuple[str, Path], ...]
    mirrored: tuple[tuple[str, Path], ...]
    sodium_brain: Path | None
    corrected_map: Path | None
    adc_map: Path | None
    tissue_table: Path | None
    roi_table: Path | None
    qc_table: Path
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How tables are made, and who they are about."""

    participant_id: str
    """Participant of the rows."""
    session_id: str | None = None
    """Session of the rows."""
    onset_to_scan_h: float | None = None
    """Time from stroke onset to the scan, in h."""
    omissions: tuple[tuple[str, str], ...] = ()
    """What the plan could not include, and why."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Sidecar of the sodium scan."""
    reconstruction: ReconstructionParams = field(default_factory=ReconstructionParams)
    """The reconstruction that tissue columns go through."""
    partialvolume: PartialVolumeParams = field(default_factory=PartialVolumeParams)
    """Methods of the tissue table."""
    regions: RoiParams = field(default_factory=RoiParams)
    """Expressions and the smallest region."""

    @property
    def ids(self) -> dict[str, object]:
        """Identifier columns of every row."""
        return {"participant_id": self.participant_id, "session_id": self.session_id}


def run(files: Files, params: Params) -> None:
    """Write one session's tables."""
    record = Record()
    for what, reason in params.omissions:
        record.omit(what, reason)
    if params.onset_to_scan_h is not None:
        record.measure("onset_to_scan", params.onset_to_scan_h, "h", note="from the sessions table")
    known = {step: read_record(path) for step, path in files.records}
    if files.tsc is not None:
        tsc = read_volume(files.tsc, unit="mmol/L")
        _tissues(files, params, tsc, known, record)
        _maps(files, tsc)
    if files.roi_table is not None:
        _regions(files, params, known, record)
    rows = []
    for step in (*known.values(), record):
        rows += [
            {**params.ids, "measure": m.name, "value": m.value, "unit": m.unit, "se": m.se, "note": m.note}
            for m in step.measures
        ]
    for step in (*known.values(), record):
        rows += [{**params.ids, "measure": "warning", "note": text} for text in step.warnings]
        rows += [{**params.ids, "measure": "left_out", "note": f"{o.what}: {o.reason}"} for o in step.omissions]
    write_table(files.qc_table, rows, QC, sidecar={"Sources": [files.roots.uri(path) for path in _inputs(files)]})


def _inputs(files: Files) -> list[Path]:
    single = [files.kspace, files.tsc, files.t1w, files.sodium_transform, files.template_transform]
    return [path for path in single if path is not None]


def _anatomy_from_na(files: Files) -> Transform:
    assert files.sodium_transform is not None  # noqa: S101
    return read_transform(files.sodium_transform, files.anatomy_name, SODIUM)


def _tissues(files: Files, params: Params, tsc: Volume, known: Mapping[str, Record], record: Record) -> None:
    if files.tissue_table is None or not files.fractions:
        return
    fine = tsc.grid.with_voxel(min(tsc.grid.voxel_mm) / 2.0)
    t1_from_na = _anatomy_from_na(files)
    fractions, volumes = _fine_fractions(files, fine, t1_from_na)
    reconstructed, quantified = known["reconstruct"].values, known["quantify"].values
    columns, how = _columns(files, params, fractions, tsc.grid, reconstructed)
    record.values["columns"] = how
    timing = {key: float(reconstructed[key]) for key in ("te_ms", "tr_ms", "flip_deg")}
    grey = relaxation_of("GM").signal_fraction(**timing)
    gain = np.array(
        [relaxation_of(_material(name)).signal_fraction(**timing) / grey for name in columns.names], dtype=np.float64
    )
    factor = float(quantified["vial_fraction"]) / grey
    to_mmol_l = float(quantified["slope"]) * factor
    source = files.real if files.real is not None else files.tsc
    assert source is not None  # noqa: S101
    image = np.asarray(read_volume(source).data, dtype=np.float64) * (to_mmol_l if files.real is not None else 1.0)
    scaled = np.asarray(columns.images, dtype=np.float64) * gain[:, None, None, None]
    brain = scaled[[i for i, name in enumerate(columns.names) if name != "soft"]].sum(0)
    mask = brain > 0.3
    relative = float(quantified["slope_se"]) / float(quantified["slope"])
    rows = []
    for method in params.partialvolume.methods:
        for names, images in _groups(columns.names, scaled):
            found = regional(
                image,
                images,
                names,
                params.partialvolume,
                method=method,
                sigma=float(reconstructed["sigma"]) * to_mmol_l,
                mask=mask,
                voxel_mm=tsc.grid.voxel_mm,
            )
            rows += _tissue_rows(found, names, method, relative, volumes, params)
    done: dict[tuple[str, str], dict[str, object]] = {}
    for row in rows:
        done.setdefault((str(row["tissue"]), str(row["method"])), row)
    write_table(
        files.tissue_table,
        done.values(),
        TISSUE_TSC,
        sidecar={
            "Sources": [files.roots.uri(path) for path in (*_inputs(files), *(path for _, path in files.fractions))],
            "TissueColumns": how,
            "CalibrationRelativeStandardError": relative,
        },
    )
    csf = next((row for row in done.values() if row["tissue"] == "CSF" and row["method"] == "glm"), None)
    if csf is not None:
        record.measure(
            "csf_estimated",
            float(csf["tsc_mmol_l"]),  # type: ignore[arg-type]
            "mmol/L",
            se=float(csf["tsc_se"]),  # type: ignore[arg-type]
            note="estimated by the fit, not fixed; far from 140 it warns of calibration, registration or segmentation",
        )
    shares = np.asarray(columns.images, dtype=np.float64)
    tissue = [i for i, name in enumerate(columns.names) if name not in {"soft", "CSF"}]
    _corrected_map(files, params, tsc, image, scaled, shares, columns.names, tissue, mask)
    for name, path in files.spread:
        if name in columns.names:
            save_image(
                path,
                Volume(columns.images[columns.names.index(name)], tsc.grid, "1"),
                roots=files.roots,
                description=f"Fraction of {name} as the sodium scan sees it ({how})",
                sources=_inputs(files),
                units="1",
                kind="probseg",
            )


def _corrected_map(
    files: Files,
    params: Params,
    tsc: Volume,
    image: NDArray[np.float64],
    scaled: NDArray[np.float64],
    shares: NDArray[np.float64],
    names: Sequence[str],
    tissue: Sequence[int],
    mask: NDArray[np.bool_],
) -> None:
    """Write the brain mask on the sodium grid and the concentration of brain tissue alone, voxel by voxel."""
    whole = shares[[i for i, name in enumerate(names) if name != "soft"]].sum(0) > _INSIDE
    if files.sodium_brain is not None:
        save_image(
            files.sodium_brain,
            tsc.with_data(whole, unit="1"),
            roots=files.roots,
            description="Brain on the sodium grid: at least half of the voxel as the scan sees it",
            sources=_inputs(files),
            dtype=np.uint8,
            kind="mask",
        )
    if files.corrected_map is not None:
        local = regional(
            image, scaled, names, params.partialvolume, method="local", mask=mask, voxel_mm=tsc.grid.voxel_mm
        )
        weight = np.maximum(shares[tissue], 0.0)
        total = weight.sum(0)
        mean = (weight * np.nan_to_num(local.maps[list(tissue)])).sum(0) / np.where(total > _INSIDE, total, np.inf)
        save_image(
            files.corrected_map,
            tsc.with_data(mean, unit="mmol/L"),
            roots=files.roots,
            description="Sodium concentration of brain tissue, CSF and neighbours removed by the local least-squares "
            "fit; 0 where less than half of the voxel is tissue",
            sources=_inputs(files),
            units="mmol/L",
        )


def _material(name: str) -> str:
    return name if name != "L" else "lesion"


def _fine_fractions(files: Files, fine: Grid, t1_from_na: Transform) -> tuple[dict[str, Volume], dict[str, float]]:
    """Return tissue fractions on the fine lattice, lesion classes split, and the volumes of all in mL."""
    maps = {name: read_volume(path, unit="1") for name, path in files.fractions}
    grid = maps["CGM"].grid
    lesions = {name: np.asarray(read_volume(path).data) > 0.5 for name, path in files.lesions}
    whole = maps.pop("L", None)
    if "T2lesion" in lesions:
        hypo = lesions.get("T1hypo", np.zeros(grid.shape, dtype=bool)) & lesions["T2lesion"]
        maps["T1iso"] = Volume((lesions["T2lesion"] & ~hypo).astype(np.float32), grid, "1")
        if hypo.any():
            maps["T1hypo"] = Volume(hypo.astype(np.float32), grid, "1")
    elif whole is not None and float(np.asarray(whole.data).max()) > 0:
        maps["L"] = whole
    if files.t1w is not None and files.brain is not None:
        maps["soft"] = _soft_tissue(read_volume(files.t1w), np.asarray(read_volume(files.brain).data) > 0.5)
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
    volumes = {name: float(np.asarray(image.data).sum()) * grid.voxel_ml for name, image in maps.items()}
    moved = {name: resample(image, fine, t1_from_na, kind="probability") for name, image in maps.items()}
    return moved, volumes


def _soft_tissue(t1w: Volume, brain: NDArray[np.bool_]) -> Volume:
    """Return what is bright in the T1w image outside the brain: scalp, fat and muscle."""
    from scipy import ndimage

    data = np.asarray(t1w.data)
    near = ndimage.binary_dilation(brain, iterations=2)
    level = 0.35 * float(np.median(data[brain]))
    return Volume(((data > level) & ~near).astype(np.float32), t1w.grid, "1")


def _columns(
    files: Files, params: Params, fractions: Mapping[str, Volume], grid: Grid, known: Mapping[str, Any]
) -> tuple[Columns, str]:
    if files.kspace is not None:
        kspace = read_kspace(files.kspace, params.metadata)
        decays = {name: relaxation_of(_material(name)).decay for name in fractions}
        found = operator_columns(
            fractions, grid, kspace.trajectory, decays, params.reconstruction, te_ms=float(known["te_ms"])
        )
        return found, "operator columns: simulated on the scan's trajectory, decayed and reconstructed like the scan"
    spread = gaussian_point_spread(float(known["fwhm_mm"]))
    found = mtf_columns(fractions, grid, dict.fromkeys(fractions, spread))
    return found, f"Gaussian of {float(known['fwhm_mm']):.2f} mm: no k-space, so widths are assumed"


def _groups(names: Sequence[str], images: NDArray[np.float64]) -> list[tuple[list[str], NDArray[np.float64]]]:
    """Return the classes themselves, then with lesions as one, then with grey and white matter whole."""
    index = {name: i for i, name in enumerate(names)}
    lesions = [name for name in ("T1iso", "T1hypo") if name in index]
    extra = [name for name in ("L", "soft") if name in index]
    groups = [(list(names), images)]

    def merged(parts: Mapping[str, Sequence[str]]) -> tuple[list[str], NDArray[np.float64]]:
        return list(parts), np.stack(
            [images[[index[m] for m in members if m in index]].sum(0) for members in parts.values()]
        )

    rest: dict[str, Sequence[str]] = {name: (name,) for name in extra}
    if lesions:
        groups.append(merged({**{name: (name,) for name in _NORMAL if name in index}, "T2lesion": lesions, **rest}))
    groups.append(merged({"GM": ("CGM", "DGM"), "WM": ("NAWM", *lesions), "CSF": ("CSF",), **rest}))
    return groups


def _tissue_rows(
    found: Corrected, names: Sequence[str], method: str, relative: float, volumes: Mapping[str, float], params: Params
) -> list[dict[str, object]]:
    parts = {"GM": ("CGM", "DGM"), "WM": ("NAWM", "T1iso", "T1hypo"), "T2lesion": ("T1iso", "T1hypo")}
    rows = []
    for i, name in enumerate(names):
        if name in {"soft", "L"}:
            continue
        value, se = float(found.mmol_l[i]), float(found.se[i])
        rows.append(
            {
                **params.ids,
                "tissue": name,
                "method": method,
                "tsc_mmol_l": value,
                "tsc_se": float(np.hypot(se, value * relative)),
                "sd_mmol_l": float(found.sd[i]),
                "n_voxels": int(found.n_voxels[i]),
                "volume_ml": sum(volumes.get(part, 0.0) for part in parts.get(name, (name,))),
                "csf_excluded_fraction": float(found.csf_excluded_fraction[i]),
            }
        )
    return rows


def _maps(files: Files, tsc: Volume) -> None:
    for space, path in files.maps:
        anatomy_from_na = _anatomy_from_na(files)
        if space == files.anatomy_name:
            assert files.anatomy is not None  # noqa: S101
            grid, whole = read_volume(files.anatomy).grid, anatomy_from_na
            reference: Path | str = files.anatomy
        else:
            assert files.template_transform is not None  # noqa: S101
            whole = read_transform(files.template_transform, TEMPLATE, "T1w") @ anatomy_from_na
            grid, reference = load_head_template().grid, TEMPLATE
        save_image(
            path,
            resample(tsc, grid, whole.inverse(), kind="intensity"),
            roots=files.roots,
            description=f"Total sodium concentration in the space of {space}, one interpolation",
            sources=_inputs(files),
            units="mmol/L",
            spatial_reference=None if space == TEMPLATE else reference,
        )


def _regions(files: Files, params: Params, known: Mapping[str, Record], record: Record) -> None:
    assert files.t1w is not None and files.template_transform is not None and files.roi_table is not None  # noqa: S101,PT018
    t1w = read_volume(files.t1w)
    grid = t1w.grid
    masks = {name: np.asarray(read_volume(path).data) > 0.5 for name, path in files.regions}
    lesion = np.zeros(grid.shape, dtype=bool)
    for mask in masks.values():
        lesion |= mask
    csf = np.zeros(grid.shape, dtype=np.float32)
    for name, path in files.fractions:
        if name == "CSF":
            csf = np.asarray(read_volume(path).data)
    mirror = mirror_transform(read_transform(files.template_transform, TEMPLATE, "T1w"))
    images = _contrasts(files, grid)
    fwhm_mm = float(known["reconstruct"].values["fwhm_mm"]) if "reconstruct" in known else 0.0
    resolution_ml = {"na": fwhm_mm**3 / 1000.0, "tsc": fwhm_mm**3 / 1000.0, "adc": grid.voxel_ml}
    wanted = {name: name for name in masks}
    for expression in params.regions.expressions:
        if all(name in masks for name in names_in(expression)):
            wanted[expression] = expression
        else:
            lacking = [name for name in names_in(expression) if name not in masks]
            record.omit(f"region {expression}", f"no mask of {', '.join(lacking)}")
    places = dict(files.mirrored)
    mirrored = contralateral_masks(masks, grid, mirror)
    rows = []
    for name, expression in wanted.items():
        ipsi = combine(masks, expression)
        verdict = screen(ipsi, grid.voxel_ml, params.regions)
        kept, reason = verdict.kept, verdict.reason
        # the mirror image of a set expression is the expression of the mirror images
        contra = combine(mirrored, expression) & ~lesion & (csf < _WITHOUT_CSF)
        if kept and contra.sum() < 0.3 * ipsi.sum():
            kept = False
            reason = (
                f"its mirror image keeps {100 * contra.sum() / ipsi.sum():.0f} % outside lesions and CSF: "
                "a bilateral lesion has no contralateral side"
            )
        if name in places:
            save_image(
                places[name],
                t1w.with_data(contra, unit="1"),
                roots=files.roots,
                description=f"{name} mirrored to the other hemisphere, lesions and CSF left out",
                sources=[path for _, path in files.regions],
                dtype=np.uint8,
                kind="mask",
            )
        for contrast, image in images.items():
            size = {"voxel_ml": grid.voxel_ml, "resolution_ml": resolution_ml[contrast]}
            a, b = region_mean(image, ipsi, **size), region_mean(image, contra, **size)
            change = percent_change(a, b).percent if a.n_voxels and b.n_voxels else float("nan")
            use = kept and np.isfinite(change)
            rows.append(
                {
                    **params.ids,
                    "onset_to_scan_h": params.onset_to_scan_h,
                    "roi": name,
                    "contrast": contrast,
                    "ipsi": a.mean,
                    "contra": b.mean,
                    "percent_change": change,
                    "ipsi_sd": a.sd,
                    "contra_sd": b.sd,
                    "n_voxels": a.n_voxels,
                    "volume_ml": verdict.volume_ml,
                    "kept": int(use),
                    "reason": reason if not kept else ("" if use else "no value in the region or its mirror image"),
                }
            )
    write_table(
        files.roi_table,
        rows,
        ROI_TSC,
        sidecar={
            "Sources": [files.roots.uri(path) for path in (*_inputs(files), *(path for _, path in files.regions))]
        },
    )


def _contrasts(files: Files, grid: Grid) -> dict[str, NDArray[np.float64]]:
    images: dict[str, NDArray[np.float64]] = {}
    if files.sodium_transform is not None:
        na_from_t1 = _anatomy_from_na(files).inverse()
        for name, path in (("na", files.denoised), ("tsc", files.tsc)):
            if path is not None:
                moved = resample(read_volume(path), grid, na_from_t1, kind="intensity")
                images[name] = np.asarray(moved.data, dtype=np.float64)
    if files.adc is not None and files.adc_transform is not None:
        dwi_from_t1 = read_transform(files.adc_transform, "T1w", "dwi").inverse()
        adc = resample(read_volume(files.adc, unit="mm2/s"), grid, dwi_from_t1, kind="intensity")
        images["adc"] = np.where(np.asarray(adc.data) > 0, adc.data, np.nan).astype(np.float64)
        if files.adc_map is not None:
            save_image(
                files.adc_map,
                adc,
                roots=files.roots,
                description="Apparent diffusion coefficient on the T1w grid, one interpolation",
                sources=[files.adc, files.adc_transform],
                units="mm2/s",
                spatial_reference=files.t1w,
            )
    return images
