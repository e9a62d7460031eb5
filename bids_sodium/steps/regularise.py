"""k-space and a registered proton image → regularised sodium image.

Total variation, and directional total variation whose edges the proton image tells, remove noise and ringing better
than any linear reconstruction, and may remove a lesion with them. The image they give is for concentration maps alone:
vials, registration and partial-volume correction read the linear reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume
from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.data import Volume
from bids_sodium.engine.resources import memory_gb
from bids_sodium.recon.solvers import ReconstructionParams, reconstruct
from bids_sodium.spatial.resampling import resample
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, write_record

__all__ = ["VERSION", "Files", "Params", "run"]

VERSION = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes.

    ``prior`` is the proton image whose edges are to be kept, ``prior_name`` its frame and ``transform`` takes the
    sodium image to it; ``field`` is the static field on the sodium grid.
    """

    kspace: Path
    field: Path | None
    prior: Path | None
    prior_name: str
    transform: Path | None
    image: Path
    record: Path
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How to regularise, and what the sidecar says of the scan."""

    reconstruction: ReconstructionParams = field(default_factory=ReconstructionParams)
    """Method and its weight."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Sidecar of the sodium scan, as BIDS gives it (times in s)."""


def run(files: Files, params: Params) -> None:
    """Reconstruct one session's sodium image with a penalty on its variation."""
    record = Record()
    kspace = read_kspace(files.kspace, params.metadata, memory_gb=memory_gb())
    field_hz = None if files.field is None else np.asarray(read_volume(files.field).data)
    prior = None
    sources = [files.kspace]
    if files.prior is not None and files.transform is not None:
        image = read_volume(files.prior)
        moved = resample(image, kspace.grid, read_transform(files.transform, files.prior_name, "23Na"))
        prior = np.asarray(moved.data, dtype=np.float32)
        sources += [files.prior, files.transform]
    solution = reconstruct(kspace, kspace.grid, params.reconstruction, prior=prior, field_hz=field_hz)
    for note in solution.notes:
        record.warn(note)
    record.measure("regularised_iterations", solution.iterations, note=params.reconstruction.method)
    record.measure("regularised_converged", float(solution.converged))
    save_image(
        files.image,
        Volume(np.abs(solution.image).astype(np.float32), kspace.grid),
        roots=files.roots,
        description=f"Sodium image reconstructed from k-space with {_WORDS[params.reconstruction.method]}, magnitude",
        sources=sources,
        extra={"Reconstruction": params.reconstruction, "ResonantNucleus": "23Na"},
    )
    write_record(files.record, record)


_WORDS = {
    "tv": "a penalty on its total variation",
    "dtv": "a penalty on its variation across what the proton image shows as uniform",
}
