"""T1w and lesion masks → filled T1w, tissue fractions and regions on the T1w grid.

Tissues that another program has segmented go before the embedded segmentation; sidecars and the quality table say
which was taken. Lesions are filled before either and are a class of their own after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume, write_table
from bids_sodium.bidsio.segmentations import External, read_tissues
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import Grid, HeadTemplate, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.core.tables import RATERS, Column, Table
from bids_sodium.spatial.resampling import resample
from bids_sodium.steps._raters import rater_rows
from bids_sodium.steps.align import TEMPLATE
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, write_record
from bids_sodium.tissue.filling import FillingParams, check_lesions, fill
from bids_sodium.tissue.measures import brain_fractions
from bids_sodium.tissue.rois import RoiParams, consensus
from bids_sodium.tissue.segmentation import LABELS, SegmentationParams, correct_bias, segment

__all__ = ["DSEG", "VERSION", "Files", "MaskFile", "Params", "mask_on", "run", "write_labels"]

VERSION = "4"
DSEG = Table("dseg", "Labels of a segmentation", (Column("index", "Value in the image"), Column("name", "Its name")))
"""Table of the labels of an image."""


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

    ``external`` is the segmentation of another program, ``None`` where the embedded one is run; ``consensus`` holds
    label, session and place of every merged mask, ``elsewhere`` label and session of those that outline what this T1w
    image, of another time, does not show.
    """

    t1w: Path
    template_transform: Path
    masks: tuple[MaskFile, ...]
    external: External | None
    preproc: Path
    filled: Path | None
    brain: Path
    fractions: tuple[tuple[str, Path], ...]
    consensus: tuple[tuple[str, str, Path], ...]
    elsewhere: tuple[tuple[str, str], ...]
    dseg: Path
    dseg_table: Path
    raters: Path | None
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
    choice: tuple[str, ...] = ()
    """Which external segmentation was taken, in words."""


@dataclass(frozen=True, slots=True)
class _Anatomy:
    """Tissues, whoever segmented them; ``how`` is for sidecars, ``source`` and ``warnings`` for readers."""

    fractions: dict[str, NDArray[np.float32]]
    brain: NDArray[np.bool_]
    preproc: Volume
    skull_stripped: bool
    source: str
    warnings: tuple[str, ...]
    how: dict[str, Any]


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
    return write_table(path, [{"index": LABELS[name], "name": name} for name in LABELS], DSEG)


def run(files: Files, params: Params) -> None:
    """Segment one participant's reference T1w."""
    record = Record()
    t1w = read_volume(files.t1w)
    if t1w.data.ndim != 3:
        raise DataError(
            f"a T1w image of shape {t1w.data.shape}", where=files.t1w.name, hint="keep one volume, or choose another"
        )
    prior = _prior(files, t1w.grid)
    masks = _consensus(files, t1w, params, record)
    lesions = np.zeros(t1w.grid.shape, dtype=bool)
    for key, mask in masks.items():
        if key not in files.elsewhere:
            lesions |= mask
    source = t1w
    if lesions.any():
        try:
            check_lesions(lesions, prior.brain, t1w.grid.voxel_ml)
        except DataError as error:
            where = ", ".join(mask.path.name for mask in files.masks)
            raise type(error)(error.what, where=where, hint=error.hint) from error
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
    if files.external is None:
        found = _embedded(source, prior, lesions, params)
    else:
        found = _external(files.external, source, prior, lesions, params)
    record.values["segmentation"] = found.source
    record.measure(
        "segmentation_external",
        float(files.external is not None),
        note="; ".join(["1 where another program has segmented", *(params.choice or (f"by {found.source}",))]),
    )
    for text in found.warnings:
        record.warn(f"segmentation: {text}")
    _save(files, t1w, found)
    _measure(record, found, masks, t1w.grid)
    write_record(files.record, record)


def _embedded(image: Volume, prior: HeadTemplate, lesions: NDArray[np.bool_], params: Params) -> _Anatomy:
    found = segment(image, prior, params.segmentation, lesions=lesions if lesions.any() else None)
    how = {"Segmentation": params.segmentation, "BrainMaskSource": found.mask_source, "Modes": found.modes}
    source = f"bids_sodium (brain mask: {found.mask_source})"
    return _Anatomy(found.fractions, found.brain, found.bias_corrected, found.skull_stripped, source, found.notes, how)


def _external(
    external: External, image: Volume, prior: HeadTemplate, lesions: NDArray[np.bool_], params: Params
) -> _Anatomy:
    found = read_tissues(external, image, prior)
    fractions = {name: np.where(lesions, np.float32(0.0), share) for name, share in found.fractions.items()}
    if lesions.any():
        fractions["L"] = lesions.astype(np.float32)
    preproc = correct_bias(image, found.fractions["NAWM"], params.segmentation)
    outside = ~prior.brain & ~found.brain
    stripped = bool((np.nan_to_num(image.data[outside]) == 0).mean() > 0.95) if outside.any() else False
    how = {"Segmentation": found.source, "SegmentationNotes": list(found.notes)}
    return _Anatomy(fractions, found.brain | lesions, preproc, stripped, found.source, found.warnings, how)


def _save(files: Files, t1w: Volume, found: _Anatomy) -> None:
    theirs = () if files.external is None else files.external.paths
    sources = [files.t1w, files.template_transform, *theirs]
    save_image(
        files.preproc,
        found.preproc,
        roots=files.roots,
        description="T1w image, bias-corrected (and filled where it had lesions)",
        sources=[files.t1w],
        skull_stripped=found.skull_stripped,
        extra=found.how,
    )
    save_image(
        files.brain,
        t1w.with_data(found.brain, unit="1"),
        roots=files.roots,
        description="Brain mask, ventricles and sulci included",
        sources=sources,
        dtype=np.uint8,
        kind="mask",
        extra=found.how,
    )
    nothing = np.zeros(t1w.grid.shape, dtype=np.float32)
    for name, path in files.fractions:
        save_image(
            path,
            t1w.with_data(found.fractions.get(name, nothing), unit="1"),
            roots=files.roots,
            description=f"Fraction of each voxel that is {name}",
            sources=sources,
            units="1",
            kind="probseg",
            extra=found.how,
        )
    labels = np.zeros(t1w.grid.shape, dtype=np.int16)
    names = [name for name in LABELS if name in found.fractions]
    stack = np.stack([found.fractions[name] for name in names])
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


def _measure(record: Record, found: _Anatomy, masks: dict[tuple[str, str], NDArray[np.bool_]], grid: Grid) -> None:
    volume = {name: float(data.sum(dtype=np.float64)) * grid.voxel_ml for name, data in found.fractions.items()}
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
            record.measure(measure, float(drawn[-1].sum()) * grid.voxel_ml, "mL", note="consensus of the raters")


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
    rows: list[dict[str, object]] = []
    for label, session, place in files.consensus:
        members = [mask for mask in files.masks if (mask.label, mask.session) == (label, session)]
        masks = [mask_on(t1w.grid, mask) for mask in members]
        rows += rater_rows(label, session, [mask.path for mask in members], masks, t1w.grid.voxel_mm)
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
    if files.raters is not None:
        sources = [files.roots.uri(mask.path) for mask in files.masks]
        write_table(files.raters, rows, RATERS, sidecar={"Sources": sources})
    return merged
