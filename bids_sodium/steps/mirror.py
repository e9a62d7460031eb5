"""Reference T1w in the template → the map to the other side of the head, for what is compared with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume
from bids_sodium.spatial.mirror import MirrorParams, find_mirror, mirror_transform
from bids_sodium.spatial.registration import RegistrationParams
from bids_sodium.spatial.transforms import Affine, Transform
from bids_sodium.steps.align import TEMPLATE
from bids_sodium.steps.records import Record, write_record

__all__ = ["VERSION", "Files", "Params", "chosen_mirror", "run"]

VERSION = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes; ``brain`` is the template's brain on the T1w image."""

    t1w: Path
    brain: Path
    template_transform: Path
    record: Path
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How the other side is found."""

    mirror: MirrorParams = field(default_factory=MirrorParams)
    """Which map is taken."""
    registration: RegistrationParams = field(default_factory=RegistrationParams)
    """How the halves of the head are registered to judge it."""


def run(files: Files, params: Params) -> None:
    """Choose the map and tell how far homologous points of the hemispheres miss one another."""
    record = Record()
    template_from_t1w = read_transform(files.template_transform, TEMPLATE, "T1w")
    brain = np.asarray(read_volume(files.brain, dtype=np.uint8).data) > 0
    found = find_mirror(
        read_volume(files.t1w), brain, template_from_t1w, params.mirror, params.registration, name="T1w"
    )
    record.measure(
        "mirror_error_median",
        found.median_mm,
        "mm",
        note=f"by which homologous points of the hemispheres are missed, as the image shows it; {found.method}",
    )
    record.measure("mirror_error_p95", found.p95_mm, "mm", note="95th percentile of the same")
    if found.note:
        record.warn(found.note)
    plane = found.transform.matrix.tolist() if isinstance(found.transform, Affine) else None
    record.values |= {"method": found.method, "matrix": plane if found.method == "plane" else None}
    write_record(files.record, record)


def chosen_mirror(record: Record, template_from_t1w: Transform) -> Transform:
    """Return the map to the other side of the head that `run` chose."""
    if record.values["method"] == "plane":
        return Affine(np.array(record.values["matrix"]), "T1w", "T1w")
    return mirror_transform(template_from_t1w)
