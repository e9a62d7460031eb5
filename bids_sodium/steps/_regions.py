"""Delineated regions and expressions of them → rows of the region table, and the table of tissue fates.

Every region is read twice: as the mean of the images on the T1w grid against its mirror image (method ``raw``), and as
the concentrations that the partial-volume model fits to the disjoint parts of the regions and of their mirror images
(method ``gtm``: its equations are those of the regions' means). Parts that the scan hardly tells then lean on their
likes: healthy ones on tissues of their composition, those of a lesion on one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_transform, read_volume, write_table
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import EstimationError
from bids_sodium.core.tables import FATE, ROI_TSC
from bids_sodium.spatial.mirror import contralateral_masks
from bids_sodium.spatial.resampling import resample
from bids_sodium.steps._atlas import atlas_rows
from bids_sodium.steps._model import SOFT, scan_model
from bids_sodium.steps._tissues import Inputs, anatomy_from_na, calibrated_by, inputs
from bids_sodium.steps.align import TEMPLATE
from bids_sodium.steps.mirror import chosen_mirror
from bids_sodium.steps.outputs import save_image
from bids_sodium.tissue.doubts import coarser, varied
from bids_sodium.tissue.fate import cells_of, domain_of
from bids_sodium.tissue.leaning import leaning
from bids_sodium.tissue.measures import combined_change, percent_change
from bids_sodium.tissue.measures import regional as region_mean
from bids_sodium.tissue.partialvolume import Corrected, Method
from bids_sodium.tissue.rois import atoms, combine, names_in, screen

if TYPE_CHECKING:
    from bids_sodium.spatial.transforms import Transform
    from bids_sodium.steps._model import Machine, Scan
    from bids_sodium.steps._pose import Pose
    from bids_sodium.steps.extract import Files, Params
    from bids_sodium.steps.records import Record

__all__ = ["write_regions"]

_Mask = NDArray[np.bool_]
_WITHOUT_CSF = 0.5
_LEAST_MIRRORED = 0.3
_EARLY = ("ionic", "cytotoxic")
_RIM_MM = 3.0
_COARSE_MM = 3.0
_METHOD: Method = "gtm"
_HOW = (
    "gtm: geometric transfer matrix of tissues and disjoint parts of the regions, then the best linear prediction with "
    "healthy_sd_mmol_l, lesion_sd_mmol_l, lesion_length_mm and lesion_step_mmol_l of Regions"
)


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """Regions of one session on the T1w grid, their mirror images, and where CSF lies on either side.

    All lie in a ``box`` of the ``whole`` T1w grid, outside which there is no brain.
    """

    whole: Grid
    box: tuple[slice, slice, slice]
    masks: dict[str, _Mask]
    mirrored: dict[str, _Mask]
    lesion: _Mask
    csf: NDArray[np.float32]
    csf_there: NDArray[np.float32]
    mirror: Transform

    @property
    def grid(self) -> Grid:
        return self.whole.cropped(self.box)

    @property
    def healthy(self) -> _Mask:
        return np.asarray(~self.lesion & (self.csf < _WITHOUT_CSF))


def write_regions(
    files: Files,
    params: Params,
    given: Inputs | None,
    known: Mapping[str, Record],
    record: Record,
    pose: Pose | None,
) -> None:
    """Write the region table, mirrored masks and the table of tissue fates of one session.

    Parameters
    ----------
    files, params, known, record
        As in the step.
    given : Inputs or None
        Tissue maps and the sodium scan, where there are both.
    pose : Pose or None
        Where the image would have the tissue maps, if they have told it already.
    """
    assert files.t1w is not None and files.template_transform is not None and files.roi_table is not None  # noqa: S101,PT018
    mni_from_t1w = read_transform(files.template_transform, TEMPLATE, "T1w")
    mirror = chosen_mirror(known["mirror"], mni_from_t1w)
    scene = _scene(files, mirror, given)
    images = _contrasts(files, scene)
    fwhm_mm = float(known["reconstruct"].values["fwhm_mm"]) if "reconstruct" in known else 0.0
    resolution_ml = {"na": fwhm_mm**3 / 1000.0, "tsc": fwhm_mm**3 / 1000.0, "adc": scene.grid.voxel_ml}
    wanted = _wanted(scene.masks, params, record)
    verdicts = {name: _verdict(scene, expression, params) for name, expression in wanted.items()}
    ids = {**params.ids, "onset_to_scan_h": params.onset_to_scan_h}
    rows: list[dict[str, object]] = []
    for name, expression in wanted.items():
        rows += [{**ids, **row} for row in _raw_rows(scene, name, expression, verdicts[name], images, resolution_ml)]
    rows += [{**ids, **row} for row in _corrected_rows(params, given, scene, wanted, verdicts, record, pose)]
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


def _scene(files: Files, mirror: Transform, given: Inputs | None) -> _Scene:
    assert files.t1w is not None  # noqa: S101
    whole = read_volume(files.t1w).grid if given is None else given.grid
    box = (slice(None), slice(None), slice(None)) if given is None else given.box
    grid = whole.cropped(box)
    masks = {name: np.asarray(read_volume(path).data)[box] > 0.5 for name, path in files.regions}
    lesion = np.zeros(grid.shape, dtype=bool)
    for mask in masks.values():
        lesion |= mask
    csf = np.zeros(grid.shape, dtype=np.float32)
    for name, path in files.fractions:
        if name == "CSF":
            csf = np.asarray(read_volume(path).data, dtype=np.float32)[box]
    there = resample(Volume(csf, grid), grid, mirror, kind="intensity")
    return _Scene(
        whole=whole,
        box=box,
        masks=masks,
        mirrored=contralateral_masks(masks, grid, mirror) if masks else {},
        lesion=lesion,
        csf=csf,
        csf_there=np.asarray(there.data, dtype=np.float32),
        mirror=mirror,
    )


def _wanted(masks: Mapping[str, _Mask], params: Params, record: Record) -> dict[str, str]:
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
    ipsi: _Mask
    contra: _Mask
    kept: bool
    reason: str
    volume_ml: float


def _verdict(scene: _Scene, expression: str, params: Params) -> _Verdict:
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
    scene: _Scene,
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
    scene: _Scene,
    wanted: Mapping[str, str],
    verdicts: Mapping[str, _Verdict],
    record: Record,
    pose: Pose | None,
) -> list[dict[str, object]]:
    """Return the concentrations of the regions and their mirror images, free of partial volume."""
    if given is None or not scene.masks or _METHOD not in params.partialvolume.methods:
        return []
    found = _fitted(
        scene,
        given.maps,
        given.na_from_maps,
        given.scan,
        params,
        target_error_mm=given.target_error_mm,
        machine=given.machine,
        pose=pose,
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


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """Concentrations of the disjoint parts of all regions: names of each part and its mirror image, volumes in mL."""

    fit: Corrected
    names: dict[tuple[str, ...], tuple[str, str]]
    volume_ml: dict[str, float]


def _fitted(
    scene: _Scene,
    tissues: dict[str, Volume],
    na_from_maps: NDArray[np.float64],
    scan: Scan,
    params: Params,
    *,
    target_error_mm: float,
    machine: Machine | None = None,
    pose: Pose | None = None,
) -> _Parts | None:
    """Fit all parts of the regions together with the tissues; ``None`` where no region holds tissue."""
    maps, parts, made_of = _part_maps(scene, tissues)
    lesions = [lesion for lesion, _ in parts.values() if lesion in maps]
    if not lesions:
        return None
    variation = varied(
        {name: coarser(maps[name], _COARSE_MM) for name in lesions},
        np.random.default_rng(0),
        sd_mmol_l=params.regions.lesion_sd_mmol_l,
        length_mm=params.regions.lesion_length_mm,
    )
    model = scan_model(
        maps,
        na_from_maps,
        scan,
        replace(params.partialvolume, methods=(_METHOD,)),
        target_error_mm=target_error_mm,
        machine=machine,
        pose=pose,
        further={"variation": variation.within},
    )
    free = model.corrected(_METHOD, params.partialvolume)
    fit = leaning(free, made_of, lesions, variation.covariance, params.regions)
    volume_ml = {name: float(np.asarray(maps[name].data).sum()) * scene.grid.voxel_ml for name in maps}
    return _Parts(fit, parts, volume_ml)


def _part_maps(
    scene: _Scene, tissues: dict[str, Volume]
) -> tuple[dict[str, Volume], dict[tuple[str, ...], tuple[str, str]], dict[str, dict[str, float]]]:
    """Return the maps of the model, the names of each part and of its mirror image, and what the latter are made of.

    The tissue of a lesion cannot be told from CSF by its T1w signal, so that its share of CSF is that of the other
    side.
    """
    from scipy.ndimage import distance_transform_edt

    grid = scene.grid
    fluid = np.minimum(scene.csf_there, np.float32(_WITHOUT_CSF))
    every = scene.lesion | (np.asarray(tissues["L"].data) > 0.5 if "L" in tissues else False)
    maps = {name: np.array(volume.data, dtype=np.float32) for name, volume in tissues.items() if name != "L"}
    outer = {SOFT: maps.pop(SOFT)} if SOFT in maps else {}
    for data in outer.values():
        data[scene.box][every] = 0.0
    for name, data in maps.items():
        data[every] = fluid[every] if name == "CSF" else 0.0
    solid = [name for name in maps if name != "CSF"]

    def taken(where: _Mask) -> dict[str, NDArray[np.float32]]:
        """Take the solid tissues out of some voxels."""
        found = {name: maps[name][where] for name in solid}
        for name in solid:
            maps[name][where] = 0.0
        return found

    def placed(where: _Mask, values: NDArray[np.floating]) -> NDArray[np.float32]:
        data = np.zeros(grid.shape, dtype=np.float32)
        data[where] = values
        return data

    distance, nearest = distance_transform_edt(~scene.lesion, sampling=grid.voxel_mm, return_indices=True)
    # raters leave out voxels that are mostly CSF, but the tissue in them is that of the lesion beside it
    beside = (distance <= 1.5 * max(grid.voxel_mm)) & ~every & (scene.csf >= _WITHOUT_CSF)
    thin = placed(beside, np.sum(list(taken(beside).values()), axis=0))
    beside_of = tuple(along[beside] for along in nearest)
    parts: dict[tuple[str, ...], int] = {}
    for number, (names, part) in enumerate(atoms(scene.masks).items(), start=1):
        parts[names] = number
        maps[f"lesion:{number}"] = placed(part, 1.0 - fluid[part])
        maps[f"lesion:{number}"][beside] = np.where(part[beside_of], thin[beside], 0.0)
    rest = every & ~scene.lesion
    if rest.any():
        maps["lesion:0"] = placed(rest, 1.0 - fluid[rest])
    # lesions do not end at the line that a rater draws: what reaches beyond it is none of the region's signal
    rim = (distance_transform_edt(~every, sampling=grid.voxel_mm) <= max(_RIM_MM, *grid.voxel_mm)) & ~every
    maps["GM:rim"] = placed(rim, np.sum(list(taken(rim).values()), axis=0))
    healthy: dict[int, str] = {}
    made_of: dict[str, dict[str, float]] = {}
    for names, there in atoms(scene.mirrored).items():
        inside = there & scene.healthy
        if names not in parts or not inside.any():
            continue
        present = taken(inside)
        made = {name: float(values.sum()) for name, values in present.items()}
        grey = sum(volume for name, volume in made.items() if name != "NAWM")
        kind = "GM" if grey > 0.5 * sum(made.values()) else "WM"  # whose decay it has, by most of it
        healthy[parts[names]] = f"{kind}:{parts[names]}"
        made_of[healthy[parts[names]]] = made
        maps[healthy[parts[names]]] = placed(inside, np.sum(list(present.values()), axis=0))
    filled = {name: Volume(data, grid, "1") for name, data in maps.items() if data.any()}
    filled |= {name: Volume(data, scene.whole, "1") for name, data in outer.items() if data.any()}
    named = {names: (f"lesion:{number}", healthy.get(number, "")) for names, number in parts.items()}
    return filled, named, made_of


def _corrected_row(
    name: str,
    expression: str,
    verdict: _Verdict,
    known: _Parts,
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
        "method": _METHOD,
        "ipsi": found.ipsi,
        "contra": found.contra,
        "percent_change": np.nan if alone else found.percent,
        "percent_se": np.nan if alone else found.se,
        "n_voxels": int(verdict.ipsi.sum()),
        "volume_ml": verdict.volume_ml,
        "kept": int(use),
        "reason": _reason(verdict, use),
    }


def _write_mirrored(files: Files, scene: _Scene, wanted: Mapping[str, str]) -> None:
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


def _on_whole(scene: _Scene, mask: _Mask) -> _Mask:
    full = np.zeros(scene.whole.shape, dtype=bool)
    full[scene.box] = mask
    return full


def _write_fate(
    files: Files, params: Params, scene: _Scene, images: Mapping[str, NDArray[np.float64]], record: Record
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
            lesion, scene.csf < _WITHOUT_CSF, scene.csf_there < _WITHOUT_CSF, np.asarray(there.data) > 0, scene.grid,
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


def _brain(files: Files, scene: _Scene) -> _Mask:
    if files.brain is None:
        return np.ones(scene.grid.shape, dtype=bool)
    return np.asarray(read_volume(files.brain).data)[scene.box] > 0.5


def _contrasts(files: Files, scene: _Scene, *, through: Transform | None = None) -> dict[str, NDArray[np.float64]]:
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
