"""Delineated regions and expressions of them → rows of the region table, and the table of tissue fates.

Every region is read twice: as the mean of the images on the T1w grid against its mirror image (method ``raw``), and as
the concentrations that the partial-volume model fits to the disjoint parts of the regions and of their mirror images
(method ``gtm``: its equations are those of the regions' means), see `bids_sodium.steps._parts`. Parts that the scan
hardly tells then lean on their likes: healthy ones on tissues of their composition, those of a lesion on one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_transform, read_volume, write_table
from bids_sodium.core.data import Volume
from bids_sodium.core.errors import EstimationError
from bids_sodium.core.tables import FATE, ROI_TSC
from bids_sodium.spatial.resampling import resample
from bids_sodium.steps._atlas import atlas_rows
from bids_sodium.steps._model import SOFT
from bids_sodium.steps._parts import PART_METHOD, Parts, fitted_parts
from bids_sodium.steps._scene import WITHOUT_CSF, Scene, scene_of
from bids_sodium.steps._tissues import Inputs, anatomy_from_na, calibrated_by, inputs
from bids_sodium.steps.align import TEMPLATE
from bids_sodium.steps.mirror import chosen_mirror
from bids_sodium.steps.outputs import save_image
from bids_sodium.tissue.fate import cells_of, domain_of
from bids_sodium.tissue.measures import combined_change, percent_change
from bids_sodium.tissue.measures import regional as region_mean
from bids_sodium.tissue.rois import combine, names_in, screen

if TYPE_CHECKING:
    from bids_sodium.spatial.transforms import Transform
    from bids_sodium.steps._tissues import WholeBrain
    from bids_sodium.steps.extract import Files, Params
    from bids_sodium.steps.records import Record

__all__ = ["write_regions"]

Mask = NDArray[np.bool_]
_LEAST_MIRRORED = 0.3
_EARLY = ("ionic", "cytotoxic")
_HOW = (
    "gtm: geometric transfer matrix of tissues and disjoint parts of the regions, which hold sodium as the tissues "
    "below them do, then the best linear prediction with healthy_sd_mmol_l, lesion_sd_mmol_l, lesion_length_mm and "
    "lesion_step_mmol_l of Regions; tissue that only a region of another session holds decays like healthy tissue"
)


def write_regions(
    files: Files,
    params: Params,
    given: Inputs | None,
    known: Mapping[str, Record],
    record: Record,
    brain: WholeBrain | None,
) -> None:
    """Write the region table, mirrored masks and the table of tissue fates of one session.

    Parameters
    ----------
    files, params, known, record
        As in the step.
    given : Inputs or None
        Tissue maps and the sodium scan, where there are both.
    brain : WholeBrain or None
        What the tissues have told already.
    """
    assert files.t1w is not None and files.template_transform is not None and files.roi_table is not None  # noqa: S101,PT018
    mni_from_t1w = read_transform(files.template_transform, TEMPLATE, "T1w")
    mirror = chosen_mirror(known["mirror"], mni_from_t1w)
    scene = scene_of(files, mirror, given, frozenset(params.other_times))
    images = _contrasts(files, scene)
    fwhm_mm = float(known["reconstruct"].values["fwhm_mm"]) if "reconstruct" in known else 0.0
    resolution_ml = {"na": fwhm_mm**3 / 1000.0, "tsc": fwhm_mm**3 / 1000.0, "adc": scene.grid.voxel_ml}
    wanted = _wanted(scene.masks, params, record)
    verdicts = {name: _verdict(scene, expression, params) for name, expression in wanted.items()}
    ids = {**params.ids, "onset_to_scan_h": params.onset_to_scan_h}
    rows: list[dict[str, object]] = []
    for name, expression in wanted.items():
        rows += [{**ids, **row} for row in _raw_rows(scene, name, expression, verdicts[name], images, resolution_ml)]
    rows += [{**ids, **row} for row in _corrected_rows(params, given, scene, wanted, verdicts, record, brain)]
    found = atlas_rows(
        files.atlases,
        images,
        scene.grid,
        mni_from_t1w=mni_from_t1w,
        mirror=mirror,
        resolution_ml=resolution_ml,
        minimum_ml=params.regions.minimum_ml,
        roots=files.roots,
        record=record,
    )
    rows += [{**ids, "method": "raw", **row} for row in found]
    sources = [*inputs(files), *(path for _, path in files.regions)]
    sidecar = {
        "Sources": [files.roots.uri(path) for path in sources],
        "Regions": asdict(params.regions),
        "CorrectedRegions": _HOW,
        **({} if given is None else calibrated_by(known)),
    }
    write_table(files.roi_table, rows, ROI_TSC, sidecar=sidecar)
    _write_mirrored(files, scene, wanted)
    _write_fate(files, params, scene, images, record)


def _wanted(masks: Mapping[str, Mask], params: Params, record: Record) -> dict[str, str]:
    wanted = {name: name for name in masks}
    for expression in params.regions.expressions if masks else ():
        if all(name in masks for name in names_in(expression)):
            wanted[expression] = expression
        else:
            lacking = [name for name in names_in(expression) if name not in masks]
            record.omit(f"region {expression}", f"no mask of {', '.join(lacking)}")
    return wanted


@dataclass(frozen=True, slots=True, eq=False)
class _Verdict:
    ipsi: Mask
    contra: Mask
    kept: bool
    reason: str
    volume_ml: float


def _verdict(scene: Scene, expression: str, params: Params) -> _Verdict:
    """Return a region and its mirror image, and whether it enters."""
    ipsi = combine(scene.masks, expression)
    verdict = screen(ipsi, scene.grid.voxel_ml, params.regions)
    kept, reason = verdict.kept, verdict.reason
    # the mirror image of a set expression is the expression of the mirror images
    contra = combine(scene.mirrored, expression) & scene.healthy
    if kept and contra.sum() < _LEAST_MIRRORED * ipsi.sum():
        kept = False
        reason = (
            f"its mirror image keeps {100 * contra.sum() / ipsi.sum():.0f} % outside lesions and CSF: "
            "a bilateral lesion has no contralateral side"
        )
    return _Verdict(ipsi, contra, kept, reason, verdict.volume_ml)


def _raw_rows(
    scene: Scene,
    name: str,
    expression: str,
    verdict: _Verdict,
    images: Mapping[str, NDArray[np.float64]],
    resolution_ml: Mapping[str, float],
) -> list[dict[str, object]]:
    """Return the means of one region and its mirror image in every contrast."""
    del expression
    rows: list[dict[str, object]] = []
    for contrast, image in images.items():
        size = {"voxel_ml": scene.grid.voxel_ml, "resolution_ml": resolution_ml[contrast]}
        a, b = region_mean(image, verdict.ipsi, **size), region_mean(image, verdict.contra, **size)
        # beside a bilateral lesion there is nothing to compare with
        change = percent_change(a, b) if a.n_voxels and b.n_voxels and b.mean and verdict.contra.any() else None
        alone = "no contralateral side" in verdict.reason
        use = verdict.kept and change is not None and bool(np.isfinite(change.percent))
        rows.append(
            {
                "roi": name,
                "contrast": contrast,
                "method": "raw",
                "ipsi": a.mean,
                "contra": b.mean,
                "percent_change": np.nan if change is None or alone else change.percent,
                "percent_se": np.nan if change is None or alone else change.se,
                "ipsi_sd": a.sd,
                "contra_sd": b.sd,
                "n_voxels": a.n_voxels,
                "volume_ml": verdict.volume_ml,
                "kept": int(use),
                "reason": _reason(verdict, use),
            }
        )
    return rows


def _reason(verdict: _Verdict, use: bool) -> str:
    if use:
        return ""
    return verdict.reason or "no value in the region or its mirror image"


def _corrected_rows(
    params: Params,
    given: Inputs | None,
    scene: Scene,
    wanted: Mapping[str, str],
    verdicts: Mapping[str, _Verdict],
    record: Record,
    brain: WholeBrain | None,
) -> list[dict[str, object]]:
    """Return the concentrations of the regions and their mirror images, free of partial volume."""
    if given is None or not scene.masks or PART_METHOD not in params.partialvolume.methods:
        return []
    found = fitted_parts(
        scene,
        {**given.shown, **{name: given.maps[name] for name in (SOFT,) if name in given.maps}},
        given.na_from_maps,
        given.scan,
        params,
        target_error_mm=given.target_error_mm,
        machine=given.machine,
        brain=brain,
    )
    if found is None:
        return []
    rows: list[dict[str, object]] = []
    for name, expression in wanted.items():
        try:
            rows.append(_corrected_row(name, expression, verdicts[name], found))
        except EstimationError as error:
            record.omit(f"partial-volume correction of region {name}", error.what)
    return rows


def _corrected_row(
    name: str,
    expression: str,
    verdict: _Verdict,
    known: Parts,
) -> dict[str, object]:
    fit, parts, volume = known.fit, known.names, known.volume_ml
    place = {label: i for i, label in enumerate(fit.names)}
    ipsi, contra = np.zeros(len(fit.names)), np.zeros(len(fit.names))
    members = {label: np.array([label in names for names in parts]) for label in names_in(expression)}
    inside = combine(members, expression)
    for labels, use in zip(parts.values(), inside, strict=True):
        for weights, label in zip((ipsi, contra), labels, strict=True):
            if use and label in place and np.isfinite(fit.mmol_l[place[label]]):
                weights[place[label]] = volume[label]
    if not ipsi.any() or not contra.any():
        raise EstimationError("the region or its mirror image is empty or cannot be told from its neighbours")
    found = combined_change(fit.mmol_l, fit.covariance, ipsi, contra)
    alone = "no contralateral side" in verdict.reason
    use = verdict.kept and bool(np.isfinite(found.percent))
    return {
        "roi": name,
        "contrast": "tsc",
        "method": PART_METHOD,
        "ipsi": found.ipsi,
        "contra": found.contra,
        "percent_change": np.nan if alone else found.percent,
        "percent_se": np.nan if alone else found.se,
        "n_voxels": int(verdict.ipsi.sum()),
        "volume_ml": verdict.volume_ml,
        "kept": int(use),
        "reason": _reason(verdict, use),
    }


def _write_mirrored(files: Files, scene: Scene, wanted: Mapping[str, str]) -> None:
    places = dict(files.mirrored)
    for name, expression in wanted.items():
        if name in places:
            save_image(
                places[name],
                Volume(_on_whole(scene, combine(scene.mirrored, expression) & scene.healthy), scene.whole, "1"),
                roots=files.roots,
                description=f"{name} mirrored to the other hemisphere, lesions and CSF left out",
                sources=[path for _, path in files.regions],
                dtype=np.uint8,
                kind="mask",
            )


def _on_whole(scene: Scene, mask: Mask) -> Mask:
    full = np.zeros(scene.whole.shape, dtype=bool)
    full[scene.box] = mask
    return full


def _write_fate(
    files: Files, params: Params, scene: Scene, images: Mapping[str, NDArray[np.float64]], record: Record
) -> None:
    """Write what small cells in and around early lesions show, and how much of each was necrotic in the end."""
    early = [scene.masks[name] for name in _EARLY if name in scene.masks]
    if files.fate_table is None:
        return
    rows: list[dict[str, object]] = []
    if early and {"na", "adc"} <= set(images):
        lesion = np.logical_or.reduce(early)
        other = _contrasts(files, scene, through=scene.mirror)
        there = resample(Volume(lesion, scene.grid), scene.grid, scene.mirror, "label", average=False)
        domain = domain_of(
            lesion, scene.csf < WITHOUT_CSF, scene.csf_there < WITHOUT_CSF, np.asarray(there.data) > 0, scene.grid,
            params.fate.margin_mm,
        )  # fmt: skip
        domain &= _brain(files, scene)
        masks = {"lesion": lesion} | {name: scene.masks[name] for name in ("necrosis",) if name in scene.masks}
        try:
            pairs = {name: (images[name], other[name]) for name in ("na", "adc")}
            cells = cells_of(domain, pairs, masks, scene.grid, params.fate)
        except EstimationError as error:
            record.omit("table of tissue fates", error.what)
        else:
            for i, centre in enumerate(cells.centre_mm):
                row = {
                    **params.ids,
                    "onset_to_scan_h": params.onset_to_scan_h,
                    "cell": i + 1,
                    **dict(zip(("x_mm", "y_mm", "z_mm"), centre.tolist(), strict=True)),
                    "volume_ml": cells.volume_ml[i],
                    "lesion_share": cells.share["lesion"][i],
                    "na_percent": cells.percent["na"][i],
                    "adc_percent": cells.percent["adc"][i],
                    "necrosis_share": cells.share["necrosis"][i] if "necrosis" in cells.share else np.nan,
                }
                rows.append(row)
    else:
        lacking = [name for name in ("na", "adc") if name not in images]
        why = f"no {' and '.join(lacking)} image" if lacking else "no mask of ionic or cytotoxic oedema"
        record.omit("table of tissue fates", why)
    sources = [*inputs(files), *(path for _, path in files.regions)]
    write_table(files.fate_table, rows, FATE, sidecar={"Sources": [files.roots.uri(path) for path in sources]})


def _brain(files: Files, scene: Scene) -> Mask:
    if files.brain is None:
        return np.ones(scene.grid.shape, dtype=bool)
    return np.asarray(read_volume(files.brain).data)[scene.box] > 0.5


def _contrasts(files: Files, scene: Scene, *, through: Transform | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the images in the box of the scene, or their values on the other side, through one interpolation."""
    images: dict[str, NDArray[np.float64]] = {}
    grid = scene.grid

    def whole(transform: Transform) -> Transform:
        return transform if through is None else transform @ through

    if files.sodium_transform is not None:
        na_from_t1 = whole(anatomy_from_na(files).inverse())
        for name, path in (("na", files.denoised), ("tsc", files.tsc)):
            if path is not None:
                moved = resample(read_volume(path), grid, na_from_t1, kind="intensity")
                images[name] = np.asarray(moved.data, dtype=np.float64)
    if files.adc is not None and files.adc_transform is not None:
        dwi_from_t1 = whole(read_transform(files.adc_transform, "T1w", "dwi").inverse())
        writes = files.adc_map is not None and through is None
        source = read_volume(files.adc, unit="mm2/s")
        adc = resample(source, scene.whole if writes else grid, dwi_from_t1, kind="intensity")
        near = np.asarray(adc.data)[scene.box] if writes else np.asarray(adc.data)
        images["adc"] = np.where(near > 0, near, np.nan).astype(np.float64)
        if files.adc_map is not None and writes:
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
