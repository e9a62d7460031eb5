"""Disjoint parts of regions through the sodium scan: concentrations of each and of its mirror image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.steps._model import SOFT, SOLID, scan_model
from bids_sodium.steps._scene import WITHOUT_CSF, Scene
from bids_sodium.tissue.doubts import Variation, coarser, varied
from bids_sodium.tissue.leaning import leaning
from bids_sodium.tissue.partialvolume import Corrected, Method
from bids_sodium.tissue.rois import atoms

if TYPE_CHECKING:
    from bids_sodium.steps._model import Machine, Scan
    from bids_sodium.steps._tissues import WholeBrain
    from bids_sodium.steps.extract import Params

__all__ = ["PART_METHOD", "Parts", "fitted_parts"]

Mask = NDArray[np.bool_]

PART_METHOD: Method = "gtm"
"""Method that parts are fitted with."""

_LESION = "lesion:"
_RIM_MM = 3.0
_COARSE_MM = 3.0
_FULLEST = 2.0
_TELLS = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Concentrations of the disjoint parts of all regions: names of each part and its mirror image, volumes in mL."""

    fit: Corrected
    names: dict[tuple[str, ...], tuple[str, str]]
    volume_ml: dict[str, float]


def fitted_parts(
    scene: Scene,
    tissues: dict[str, Volume],
    na_from_maps: NDArray[np.float64],
    scan: Scan,
    params: Params,
    *,
    target_error_mm: float,
    machine: Machine | None = None,
    brain: WholeBrain | None = None,
) -> Parts | None:
    """Fit all parts of the regions together with the tissues; ``None`` where no region holds tissue."""
    maps, parts, made_of = _part_maps(scene, tissues, {} if brain is None else brain.mmol_l)
    present = [own for own, _ in parts.values() if own in maps]
    if not present:
        return None
    regions = params.regions
    lesions = [name for name in present if name.startswith(_LESION)]
    variation = Variation([], np.empty((0, 0)))
    if lesions:
        variation = varied(
            {name: coarser(maps[name], _COARSE_MM) for name in lesions},
            np.random.default_rng(0),
            sd_mmol_l=regions.lesion_sd_mmol_l,
            length_mm=regions.lesion_length_mm,
        )
    model = scan_model(
        maps,
        na_from_maps,
        scan,
        replace(params.partialvolume, methods=(PART_METHOD,)),
        target_error_mm=target_error_mm,
        machine=machine,
        pose=None if brain is None else brain.pose,
        fullest=_FULLEST,
        further={"variation": variation.within} if lesions else {},
    )
    free = model.corrected(PART_METHOD, params.partialvolume)
    # where nobody drew a lesion yet, one may still begin
    beside = float(np.hypot(regions.healthy_sd_mmol_l, regions.lesion_step_mmol_l))
    within = {name: beside if name in present else regions.healthy_sd_mmol_l for name in made_of}
    fit = leaning(free, made_of, within, lesions, variation.covariance, regions)
    volume_ml = {name: float(np.asarray(maps[name].data).sum()) * scene.grid.voxel_ml for name in maps}
    return Parts(fit, parts, volume_ml)


def _part_maps(
    scene: Scene, tissues: dict[str, Volume], mmol_l: Mapping[str, float]
) -> tuple[dict[str, Volume], dict[tuple[str, ...], tuple[str, str]], dict[str, dict[str, float]]]:
    """Return the maps of the model, the names of each part and of its mirror image, and what the latter are made of.

    Parts are named after the material whose decay they have. Those of a lesion hold the tissue that the T1w image shows
    there, and where it shows a lesion too, which cannot be told from CSF, that of the other side. They hold more sodium
    where that tissue does, by the concentrations ``mmol_l`` of the whole brain: what befalls tissues is taken to change
    what they hold by the same factor.
    """
    from scipy.ndimage import distance_transform_edt

    grid = scene.grid
    blind = np.asarray(tissues["L"].data) > 0.5 if "L" in tissues else np.zeros(grid.shape, dtype=bool)
    every = scene.lesion | blind
    maps = {name: np.array(volume.data, dtype=np.float32) for name, volume in tissues.items() if name != "L"}
    outer = {SOFT: maps.pop(SOFT)} if SOFT in maps else {}
    for data in outer.values():
        data[scene.box][every] = 0.0
    solid = [name for name in maps if name != "CSF"]
    nothing = np.float32(0.0)
    below = {name: np.where(blind, scene.tissue_there.get(name, nothing), maps[name]) for name in solid}
    fluid = np.where(blind, np.minimum(scene.csf_there, np.float32(WITHOUT_CSF)), maps["CSF"])
    amount = np.where(blind, np.float32(1.0) - fluid, np.sum([maps[name] for name in solid], axis=0))
    for name, data in maps.items():
        data[every] = fluid[every] if name == "CSF" else 0.0

    def taken(where: Mask) -> dict[str, NDArray[np.float32]]:
        """Take the solid tissues out of some voxels."""
        found = {name: maps[name][where] for name in solid}
        for name in solid:
            maps[name][where] = 0.0
        return found

    def placed(where: Mask, values: NDArray[np.floating]) -> NDArray[np.float32]:
        data = np.zeros(grid.shape, dtype=np.float32)
        data[where] = values
        return data

    distance, nearest = distance_transform_edt(~scene.lesion, sampling=grid.voxel_mm, return_indices=True)
    # raters leave out voxels that are mostly CSF, but the tissue in them is that of the lesion beside it
    beside = (distance <= 1.5 * max(grid.voxel_mm)) & ~every & (scene.csf >= WITHOUT_CSF)
    thin = placed(beside, np.sum(list(taken(beside).values()), axis=0))
    beside_of = tuple(along[beside] for along in nearest)
    there = {names: part & scene.healthy for names, part in atoms(scene.mirrored).items()}
    parts: dict[tuple[str, ...], tuple[str, str]] = {}
    for number, (names, part) in enumerate(atoms(scene.masks).items(), start=1):
        kind = _kind(tissues, there.get(names))
        own = f"{kind}:{number}" if scene.other_times.issuperset(names) else f"{_LESION}{number}"
        parts[names] = own, f"{kind}:{number}-mirrored"
        maps[own] = placed(part, _as_rich(amount[part], {name: below[name][part] for name in solid}, mmol_l))
        maps[own][beside] = np.where(part[beside_of], thin[beside], 0.0)
    rest = every & ~scene.lesion
    if rest.any():
        maps[f"{_LESION}0"] = placed(rest, amount[rest])
    # lesions do not end at the line that a rater draws: what reaches beyond it is none of the region's signal
    rim = (distance_transform_edt(~every, sampling=grid.voxel_mm) <= max(_RIM_MM, *grid.voxel_mm)) & ~every
    maps["GM:rim"] = placed(rim, _whole(taken(rim), mmol_l))
    made_of: dict[str, dict[str, float]] = {}
    for names, inside in there.items():
        if names in parts and inside.any():
            present = taken(inside)
            own, mirrored = parts[names]
            made_of[mirrored] = {name: float(values.sum()) for name, values in present.items()}
            maps[mirrored] = placed(inside, _whole(present, mmol_l))
            if scene.other_times.issuperset(names):
                made_of[own] = made_of[mirrored]
    filled = {name: Volume(data, grid, "1") for name, data in maps.items() if data.any()}
    filled |= {name: Volume(data, scene.whole, "1") for name, data in outer.items() if data.any()}
    return filled, parts, made_of


def _whole(present: Mapping[str, NDArray[np.float32]], mmol_l: Mapping[str, float]) -> NDArray[np.float32]:
    """Return the sum of tissues in some voxels, spread as they hold sodium."""
    return _as_rich(np.asarray(np.sum(list(present.values()), axis=0)), present, mmol_l)


def _as_rich(
    volume: NDArray[np.float32], tissues: Mapping[str, NDArray[np.float32]], mmol_l: Mapping[str, float]
) -> NDArray[np.float32]:
    """Return a volume in some voxels spread as the tissues there hold sodium, of the same sum."""
    share = np.sum(list(tissues.values()), axis=0, dtype=np.float64) if tissues else np.zeros(1)
    holds = {name: mmol_l.get(name, np.nan) for name, values in tissues.items() if values.any()}
    if not holds or not all(np.isfinite(value) and value > 0 for value in holds.values()):
        return volume
    usual = sum(value * float(tissues[name].sum()) for name, value in holds.items()) / float(share.sum())
    held = sum(value * tissues[name] for name, value in holds.items())
    rich = volume * np.where(share > _TELLS, held / np.maximum(share, _TELLS) / usual, 1.0)
    return np.asarray(rich * (volume.sum() / rich.sum()), dtype=np.float32) if rich.sum() > 0 else volume


def _kind(tissues: Mapping[str, Volume], where: Mask | None) -> str:
    """Return whose decay a part of healthy tissue has, by most of it; grey matter's where nothing is known."""
    if where is None:
        return "GM"
    volume = {name: float(np.asarray(map_.data)[where].sum()) for name, map_ in tissues.items() if name in SOLID}
    return "WM" if volume.get("NAWM", 0.0) > 0.5 * sum(volume.values()) else "GM"
