"""T1w and lesion masks → filled T1w, tissue fractions and regions on the T1w grid.

External tissue probabilities go before the embedded segmentation. Lesions are filled before it and are a class of
their own after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume, write_table
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import Grid, HeadTemplate, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.core.tables import Column, Table
from bids_sodium.spatial.resampling import resample
from bids_sodium.steps.align import TEMPLATE
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, write_record
from bids_sodium.tissue.filling import FillingParams, fill
from bids_sodium.tissue.measures import brain_fractions
from bids_sodium.tissue.rois import RoiParams, consensus
from bids_sodium.tissue.segmentation import SegmentationParams, segment

__all__ = ["LABELS", "VERSION", "Files", "MaskFile", "Params", "mask_on", "run", "write_labels"]

VERSION = "1"
LABELS = {"CSF": 1, "CGM": 2, "DGM": 3, "NAWM": 4, "L": 5}
_DSEG = Table(
    "dseg", "Labels of the tissue segmentation", (Column("index", "Value in the image"), Column("name", "Tissue"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """A delineated mask, and how to bring it to the T1w grid.

    Parameters
    ----------
    label : str
        What it outlines (``T2lesion``, ``ionic`` ...).
    session : str
        Session it was drawn on; masks of one label and session are raters of the same thing.
    path : Path
        The mask.
    frame : str
        Frame it was drawn in.
    transform : Path or None
        ``from-<frame>_to-T1w`` file; ``None`` where it was drawn on the T1w image.
    """

    label: str
    session: str
    path: Path
    frame: str
    transform: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes.

    ``tissues`` are external probability maps by tissue; ``consensus`` holds label, session and place of every merged
    mask.
    """

    t1w: Path
    template_transform: Path
    masks: tuple[MaskFile, ...]
    tissues: tuple[tuple[str, Path], ...]
    preproc: Path
    filled: Path | None
    brain: Path
    fractions: tuple[tuple[str, Path], ...]
    consensus: tuple[tuple[str, str, Path], ...]
    dseg: Path
    dseg_table: Path
    record: Path
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How to segment, fill and merge raters."""

    segmentation: SegmentationParams = field(default_factory=SegmentationParams)
    """Tissue fractions."""
    filling: FillingParams = field(default_factory=FillingParams)
    """Lesion filling."""
    regions: RoiParams = field(default_factory=RoiParams)
    """Consensus of raters."""
    random_seed: int = 0
    """Seed of the texture that fills lesions."""


def mask_on(grid: Grid, mask: MaskFile, *, anatomy: str = "T1w") -> NDArray[np.bool_]:
    """Return a mask on the T1w grid, through at most one interpolation.

    Raises
    ------
    GeometryError
        If a mask said to be on the anatomy has another grid.
    """
    image = read_volume(mask.path)
    if mask.transform is None:
        if not image.grid.same_as(grid, tolerance_mm=1e-2):
            raise GeometryError(
                f"the mask has shape {image.grid.shape}, the {anatomy} image {grid.shape}, or lies elsewhere",
                where=mask.path.name,
                hint=f"draw it on the {anatomy} image, or name its space in the file (space-FLAIR, space-dwi)",
            )
        return np.asarray(image.data) > 0.5
    anatomy_from_mask = read_transform(mask.transform, anatomy, mask.frame)
    moved = resample(
        image.with_data(np.asarray(np.asarray(image.data) > 0.5, dtype=np.float32)),
        grid,
        anatomy_from_mask.inverse(),
        kind="probability",
    )
    return np.asarray(moved.data) >= 0.5


def write_labels(path: Path) -> Path:
    """Write the table of the labels of the tissue segmentation."""
    return write_table(path, [{"index": LABELS[name], "name": name} for name in LABELS], _DSEG)


def run(files: Files, params: Params) -> None:
    """Segment one participant's reference T1w."""
    record = Record()
    t1w = read_volume(files.t1w)
    prior = _prior(files, t1w.grid)
    masks = _consensus(files, t1w, params, record)
    lesions = np.zeros(t1w.grid.shape, dtype=bool)
    for mask in masks.values():
        lesions |= mask
    source = t1w
    if lesions.any():
        source = fill(t1w, lesions, prior.wm, params.filling, np.random.default_rng(params.random_seed))
    if files.filled is not None:
        save_image(
            files.filled,
            source,
            roots=files.roots,
            description="T1w image with its lesions filled from the normal-appearing white matter",
            sources=[files.t1w, *(mask.path for mask in files.masks)],
            extra={"Filling": params.filling},
        )
    found = segment(source, prior, params.segmentation, lesions=lesions if lesions.any() else None)
    fractions = dict(found.fractions)
    if files.tissues:
        fractions = _external(files, t1w.grid, prior, lesions, record)
    sources = [files.t1w, files.template_transform, *(path for _, path in files.tissues)]
    save_image(
        files.preproc,
        found.bias_corrected,
        roots=files.roots,
        description="T1w image, bias-corrected (and filled where it had lesions)",
        sources=[files.t1w],
        extra={"Segmentation": params.segmentation},
    )
    save_image(
        files.brain,
        t1w.with_data(found.brain, unit="1"),
        roots=files.roots,
        description="Brain mask, ventricles and sulci included",
        sources=sources,
        dtype=np.uint8,
        kind="mask",
    )
    for name, path in files.fractions:
        data = fractions.get(name, np.zeros(t1w.grid.shape, dtype=np.float32))
        save_image(
            path,
            t1w.with_data(data, unit="1"),
            roots=files.roots,
            description=f"Fraction of each voxel that is {name}",
            sources=sources,
            units="1",
            kind="probseg",
            extra={"Segmentation": "external" if files.tissues else params.segmentation},
        )
    labels = np.zeros(t1w.grid.shape, dtype=np.int16)
    names = [name for name in LABELS if name in fractions]
    stack = np.stack([fractions[name] for name in names])
    inside = stack.sum(0) > 0.5
    labels[inside] = np.array([LABELS[name] for name in names], dtype=np.int16)[stack.argmax(0)[inside]]
    # Image and table share one sidecar, which the image writes last: BIDS defines the columns of label tables itself.
    write_labels(files.dseg_table)
    save_image(
        files.dseg,
        t1w.with_data(labels, unit="1"),
        roots=files.roots,
        description="Tissue that fills most of each voxel",
        sources=sources,
        dtype=np.int16,
        kind="dseg",
    )
    volume = {name: float(data.sum()) * t1w.grid.voxel_ml for name, data in fractions.items()}
    for name, value in volume.items():
        record.measure(f"volume_{name}", value, "mL", note="sum of the fractions")
    share = brain_fractions(volume, sum(volume.values()))
    record.measure("tiv_ml", share.tiv_ml, "mL", note="all tissue classes and CSF inside the skull")
    record.measure("bpf", share.bpf, note="(grey + white + lesions) / TIV")
    record.measure("gmf", share.gmf, note="grey / TIV")
    record.measure("wmf", share.wmf, note="(white + lesions) / TIV")
    for label, measure in (("T2lesion", "t2lv_ml"), ("T1hypo", "t1lv_ml")):
        drawn = [mask for (name, _), mask in masks.items() if name == label]
        if drawn:
            record.measure(measure, float(drawn[-1].sum()) * t1w.grid.voxel_ml, "mL", note="consensus of the raters")
    write_record(files.record, record)


def _prior(files: Files, grid: Grid) -> HeadTemplate:
    template = load_head_template()
    mni_from_t1 = read_transform(files.template_transform, TEMPLATE, "T1w")

    def on_grid(data: NDArray[np.generic]) -> NDArray[np.float32]:
        moved = resample(Volume(np.asarray(data, dtype=np.float32), template.grid), grid, mni_from_t1, kind="intensity")
        return np.asarray(moved.data, dtype=np.float32)

    return HeadTemplate(
        grid,
        on_grid(template.t1),
        on_grid(template.gm),
        on_grid(template.wm),
        on_grid(template.csf),
        on_grid(template.deep),
        on_grid(template.brain) >= 0.5,
    )


def _consensus(files: Files, t1w: Volume, params: Params, record: Record) -> dict[tuple[str, str], NDArray[np.bool_]]:
    merged = {}
    for label, session, place in files.consensus:
        members = [mask for mask in files.masks if (mask.label, mask.session) == (label, session)]
        masks = [mask_on(t1w.grid, mask) for mask in members]
        merged[label, session] = consensus(masks, t1w.grid.voxel_mm, rule=params.regions.consensus)
        if not merged[label, session].any():
            record.omit(f"region {label}", f"its mask is empty ({', '.join(mask.path.name for mask in members)})")
        save_image(
            place,
            t1w.with_data(merged[label, session], unit="1"),
            roots=files.roots,
            description=f"{label}: consensus of {len(masks)} mask{'s' if len(masks) > 1 else ''}",
            sources=[mask.path for mask in members],
            dtype=np.uint8,
            kind="mask",
            spatial_reference=files.t1w,
        )
    return merged


def _external(
    files: Files, grid: Grid, prior: HeadTemplate, lesions: NDArray[np.bool_], record: Record
) -> dict[str, NDArray[np.float32]]:
    maps = {}
    for name, path in files.tissues:
        image = read_volume(path)
        if not image.grid.same_as(grid, tolerance_mm=1e-2):
            raise GeometryError(
                f"the map has shape {image.grid.shape}, the T1w image {grid.shape}, or lies elsewhere",
                where=path.name,
                hint="give maps in the space of the T1w image",
            )
        data = np.asarray(image.data, dtype=np.float32)
        if not np.isfinite(data).all() or float(data.min()) < -1e-3 or float(data.max()) > 1.001:
            raise DataError(
                f"probabilities run from {np.nanmin(data):.3g} to {np.nanmax(data):.3g} or hold NaN",
                where=path.name,
                hint="scale them to 0-1",
            )
        maps[name] = data * ~lesions
    record.values["segmentation"] = "external"
    if "GM" in maps and "WM" in maps:
        grey, white = maps.pop("GM"), maps.pop("WM")
        maps |= {
            "CGM": grey * (1.0 - prior.deep),
            "DGM": (grey + white) * prior.deep,
            "NAWM": white * (1.0 - prior.deep),
        }
    missing = [name for name in ("CGM", "NAWM", "CSF") if name not in maps]
    if missing:
        raise DataError(f"external tissue maps lack {', '.join(missing)}", hint="give GM, WM and CSF probabilities")
    if lesions.any():
        maps["L"] = lesions.astype(np.float32)
    return maps
