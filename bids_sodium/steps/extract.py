"""Maps, regions and point spread → the participant's tables.

Tissue fractions stay on the T1w grid and are put through the scan's own acquisition (or its point spread) where the
registration places them; every method of partial-volume correction is fitted to the same calibrated image. Regions
are read on the T1w grid against their mirror image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_sodium.bidsio.atlases import Atlas
from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume, write_table
from bids_sodium.bidsio.templates import TEMPLATE_GRID
from bids_sodium.core.data import Volume
from bids_sodium.core.tables import QC
from bids_sodium.recon.solvers import ReconstructionParams
from bids_sodium.spatial.resampling import resample
from bids_sodium.steps._regions import write_regions
from bids_sodium.steps._tissues import SODIUM, anatomy_from_na, calibrated_by, inputs, inputs_of, write_tissues
from bids_sodium.steps.align import TEMPLATE
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.records import Record, read_record
from bids_sodium.tissue.fate import FateParams
from bids_sodium.tissue.partialvolume import PartialVolumeParams
from bids_sodium.tissue.rois import RoiParams

__all__ = ["SODIUM", "VERSION", "Files", "Params", "run"]

VERSION = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the step reads and writes; pairs are (name, path).

    ``real`` is the real part of the reconstructed image, ``magnitude`` its magnitude, neither of them denoised.
    ``anatomy`` is the proton image that the sodium image was registered to, ``anatomy_name`` its frame: ``T1w``, or
    what stands in for it. ``fractions`` are tissue fractions on the T1w grid, ``lesions`` the MS lesion masks there,
    ``regions`` the stroke regions there, ``maps`` the standard or anatomical spaces the concentration map is written
    in, ``spread`` the fractions as the sodium scan sees them, ``lesion_fractions`` the lesion classes on the T1w grid.
    """

    kspace: Path | None
    real: Path | None
    magnitude: Path | None
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
    atlases: tuple[tuple[Atlas, Path], ...]
    sodium_brain: Path | None
    corrected_map: Path | None
    adc_map: Path | None
    tissue_table: Path | None
    roi_table: Path | None
    fate_table: Path | None
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
    other_times: tuple[str, ...] = ()
    """Regions drawn on images of another session: tissue that only they hold is no lesion yet, or no more."""
    fate: FateParams = field(default_factory=FateParams)
    """Cells of the table of tissue fates."""

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
    given = brain = None
    if files.tsc is not None:
        tsc = read_volume(files.tsc, unit="mmol/L")
        given = inputs_of(files, params, tsc, known)
        brain = None if given is None else write_tissues(files, params, tsc, given, known, record)
        _maps(files, tsc, known)
    if files.roi_table is not None:
        write_regions(files, params, given, known, record, brain)
    rows = []
    for step in (*known.values(), record):
        rows += [
            {**params.ids, "measure": m.name, "value": m.value, "unit": m.unit, "se": m.se, "note": m.note}
            for m in step.measures
        ]
    for step in (*known.values(), record):
        rows += [{**params.ids, "measure": "warning", "note": text} for text in step.warnings]
        rows += [{**params.ids, "measure": "left_out", "note": f"{o.what}: {o.reason}"} for o in step.omissions]
    write_table(files.qc_table, rows, QC, sidecar={"Sources": [files.roots.uri(path) for path in inputs(files)]})


def _maps(files: Files, tsc: Volume, known: Mapping[str, Record]) -> None:
    for space, path in files.maps:
        placed = anatomy_from_na(files)
        if space == files.anatomy_name:
            assert files.anatomy is not None  # noqa: S101
            grid, whole = read_volume(files.anatomy).grid, placed
            reference: Path | str = files.anatomy
        else:
            assert files.template_transform is not None  # noqa: S101
            whole = read_transform(files.template_transform, TEMPLATE, "T1w") @ placed
            grid, reference = TEMPLATE_GRID, TEMPLATE
        save_image(
            path,
            resample(tsc, grid, whole.inverse(), kind="intensity"),
            roots=files.roots,
            description=f"Total sodium concentration in the space of {space}, one interpolation",
            sources=inputs(files),
            units="mmol/L",
            extra=calibrated_by(known),
            spatial_reference=None if space == TEMPLATE else reference,
        )
