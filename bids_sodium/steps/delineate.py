"""Images and tissue maps → regions that nobody drew: a proposal for each, named automatic, to be looked at and edited.

Every mask is written twice: on the session's own T1w image (``desc-auto``), where it can be corrected and handed back
with ``--derivatives`` like a mask that somebody drew, and on the anatomy of the participant (``desc-consensus``), where
the later steps read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume
from bids_sodium.core.data import Volume
from bids_sodium.core.errors import EstimationError
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps.align import SESSION, TEMPLATE
from bids_sodium.steps.mirror import chosen_mirror
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, read_record, write_record
from bids_sodium.tissue.delineation import DelineationParams, propose

__all__ = ["VERSION", "Files", "Params", "Source", "run"]

VERSION = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A region to be delineated and the image it is bright in.

    Parameters
    ----------
    label : str
        Region.
    image : Path
        The image.
    frame : str
        Its frame.
    transform : Path
        ``from-<frame>_to-T1w`` file.
    own : Path
        Mask on the session's own T1w image.
    common : Path
        Mask on the anatomy.
    """

    label: str
    image: Path
    frame: str
    transform: Path
    own: Path
    common: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes.

    ``session_t1w`` and ``session_transform`` are the session's own T1w image and its place in the anatomy, where it has
    one that is not the anatomy itself.
    """

    t1w: Path
    brain: Path
    csf: Path
    template_transform: Path
    mirror_record: Path
    sources: tuple[Source, ...]
    session_t1w: Path | None
    session_transform: Path | None
    record: Path
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How regions are delineated."""

    delineation: DelineationParams = field(default_factory=DelineationParams)
    """Thresholds and widths."""


def run(files: Files, params: Params) -> None:
    """Delineate the regions of one session."""
    record = Record()
    p = params.delineation
    t1w = read_volume(files.t1w)
    mirror = chosen_mirror(read_record(files.mirror_record), read_transform(files.template_transform, TEMPLATE, "T1w"))
    grid = t1w.grid.with_voxel(max(p.voxel_mm, min(t1w.grid.voxel_mm)))
    still = read_volume(files.csf, unit="1")
    brain = read_volume(files.brain)
    share = brain.with_data(np.asarray(np.asarray(brain.data) > 0.5, dtype=np.float32))
    tissue = np.ones(grid.shape, dtype=bool)
    for through in (None, mirror):
        place = _identity() if through is None else through
        tissue &= np.asarray(resample(still, grid, place, kind="probability").data) < p.csf_limit
        tissue &= np.asarray(resample(share, grid, place, kind="probability").data) > 0.5
    for source in files.sources:
        image = read_volume(source.image)
        from_t1w = read_transform(source.transform, "T1w", source.frame).inverse()
        here, there = (
            np.asarray(resample(image, grid, place, kind="intensity").data, dtype=np.float64)
            for place in (from_t1w, from_t1w @ mirror)
        )
        mask: NDArray[np.bool_] = np.zeros(t1w.grid.shape, dtype=bool)
        try:
            found = propose(here, there, tissue, grid, p)
        except EstimationError as error:
            record.omit(f"region {source.label}", f"automatic delineation: {error.what}")
        else:
            drawn = Volume(found.mask.astype(np.float32), grid, "1")
            mask = np.asarray(resample(drawn, t1w.grid, _identity(), kind="intensity").data) >= 0.5
            volume = float(mask.sum()) * t1w.grid.voxel_ml
            record.measure(
                f"auto_{source.label}_volume", volume, "mL", note=f"{found.n_lesions} lesions, delineated automatically"
            )
            record.warn(
                f"{source.label} was delineated automatically ({volume:.1f} mL): look at it, and correct "
                f"{source.own.name} if need be; contrasts of 20 % and less are found in part or not at all"
            )
            if not found.converged:
                record.warn(f"automatic delineation of {source.label} did not come to rest: do not trust it unseen")
            if not mask.any():
                record.omit(f"region {source.label}", "nothing stands out against the other side")
        _save(files, source, t1w, mask, params)
    write_record(files.record, record)


def _identity() -> Affine:
    return Affine.identity("T1w", "T1w")


def _save(files: Files, source: Source, t1w: Volume, mask: NDArray[np.bool_], params: Params) -> None:
    own, reference = t1w.with_data(mask, unit="1"), files.t1w
    if files.session_t1w is not None and files.session_transform is not None:
        session = read_volume(files.session_t1w)
        t1w_from_session = read_transform(files.session_transform, "T1w", SESSION)
        drawn = t1w.with_data(mask.astype(np.float32), unit="1")
        moved = np.asarray(resample(drawn, session.grid, t1w_from_session, kind="probability").data) >= 0.5
        own, reference = session.with_data(moved, unit="1"), files.session_t1w
    for place, image, anatomy, where in (
        (source.own, own, reference, "on the session's own T1w image, to be edited"),
        (source.common, t1w.with_data(mask, unit="1"), files.t1w, "on the anatomy"),
    ):
        save_image(
            place,
            image,
            roots=files.roots,
            description=f"{source.label}: AUTOMATIC delineation against the other side, nobody drew it; {where}",
            sources=[source.image, source.transform, files.csf, files.brain],
            dtype=np.uint8,
            kind="mask",
            spatial_reference=anatomy,
            extra={"Delineation": params.delineation},
        )
