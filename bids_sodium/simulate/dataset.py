"""A simulated study written as BIDS: raw sodium k-space, 1H images, tables, delineations and the truth.

`write` makes a whole dataset, `write_participant` one person of it, `write_visit` one visit of any digital head, so
that other anatomies can be scanned too; `write_tables` writes what stands at the root. Every person has random
numbers of their own, drawn from the seed and the person's number, so that persons can be made in any order and in
several processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium import __version__
from bids_sodium.bidsio.derivatives import BIDS_VERSION
from bids_sodium.bidsio.files import write_json, write_text, write_volume
from bids_sodium.bidsio.kspace import write_ismrmrd
from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Grid, KSpace, Trajectory, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import Column
from bids_sodium.recon.density import sample_weights
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.trajectory import from_description
from bids_sodium.simulate.acquire import (
    VIALS,
    Vial,
    contrast,
    diffusion,
    scan_1h,
    simulate_kspace,
    to_scanner,
    vial_fraction,
)
from bids_sodium.simulate.brain import (
    Anatomy,
    AnatomyParams,
    Head,
    draw_anatomy,
    draw_stroke_lesion,
    healthy_head,
    ms_head,
    rigid,
    stroke_head,
)
from bids_sodium.simulate.cohort import MsCohortParams, ms_cohort, stroke_cohort

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Visit",
    "Written",
    "protocol_of",
    "write",
    "write_participant",
    "write_tables",
    "write_visit",
]

_Matrix = NDArray[np.float64]

_FIELD_T = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One sodium protocol and the voxels of the 1H images that go with it."""

    trajectory: Mapping[str, Any]
    """What the sidecar's ``NonCartesianTrajectory`` says: type, shots, gradient (mT/m), times (s), sizes (mm)."""

    matrix: int
    """Voxels along each axis of the reconstructed image."""

    voxel_mm: float
    """Voxel size of the reconstructed image, in mm."""

    te_ms: float
    """Time from the middle of the pulse to the start of the readout, in ms."""

    tr_ms: float
    """Repetition time, in ms."""

    flip_deg: float = 90.0
    """Flip angle, in degrees."""

    anatomy_mm: float = 1.0
    """Voxel of the T1w image and of the truth, in mm."""

    flair_mm: tuple[float, float] = (0.9, 5.5)
    """Voxel of the FLAIR within and across its 24 slices (5 mm and a gap of 10 %), in mm (the stroke paper)."""

    dwi_mm: tuple[float, float] = (1.3, 5.5)
    """Voxel of the diffusion series within and across its 24 slices, in mm (the stroke paper)."""

    head_coil_mm: tuple[float, float] = (1.0, 3.0)
    """Voxel of the PD/T2 image of the head coil, in mm."""

    body_coil_mm: tuple[float, float] = (2.0, 4.0)
    """Voxel of the PD/T2 image of the body coil, in mm."""

    @property
    def grid(self) -> Grid:
        """Lattice of the reconstructed image, centred in the magnet."""
        return Grid.centred((self.matrix, self.matrix, self.matrix), self.voxel_mm)

    def acquired(self) -> Trajectory:
        """Return the trajectory that `trajectory` describes."""
        hashable = ((k, tuple(v) if isinstance(v, list) else v) for k, v in self.trajectory.items())
        return _trajectory(tuple(sorted(hashable)))


@lru_cache(maxsize=4)
def _trajectory(description: tuple[tuple[str, Any], ...]) -> Trajectory:
    return from_description(dict(description))


_STROKE = Protocol(
    trajectory={
        "Type": "DA-3DPR",
        "Spokes": 6000,
        "Samples": 384,
        "MaxGradient": 4.6,
        "ReadoutTime": 0.020,
        "NominalVoxelSize": 4.0,
        "SpokeOrder": "golden",
    },
    matrix=64,
    voxel_mm=4.0,
    te_ms=0.2,
    tr_ms=100.0,
)
_MS = Protocol(
    trajectory={
        "Type": "Cones",
        "FieldOfView": 240.0,
        "MaxGradient": 6.0,
        "ReadoutTime": 0.020,
        "NominalVoxelSize": 3.0,
    },
    matrix=80,
    voxel_mm=3.0,
    te_ms=0.22,
    tr_ms=120.0,
)
_COARSE: dict[str, Any] = {
    "anatomy_mm": 2.0,
    "flair_mm": (2.0, 5.5),
    "dwi_mm": (2.6, 5.5),
    "head_coil_mm": (2.0, 4.0),
    "body_coil_mm": (4.0, 4.0),
}

PROTOCOLS: dict[str, Protocol] = {
    "stroke": _STROKE,
    "ms": _MS,
    "stroke-sloppy": replace(
        _STROKE,
        trajectory={**_STROKE.trajectory, "Spokes": 2600, "Samples": 160, "MaxGradient": 2.0, "NominalVoxelSize": 6.0},
        matrix=42,
        voxel_mm=6.0,
        **_COARSE,
    ),
    "ms-sloppy": replace(
        _MS,
        trajectory={**_MS.trajectory, "NominalVoxelSize": 6.0, "ReadoutTime": 0.010},
        matrix=40,
        voxel_mm=6.0,
        **_COARSE,
    ),
}
"""``stroke``: 6000 x 384 density-adapted radial, as published. ``ms``: 3D cones at 3 mm as published; readout 20 ms,
field of view 240 mm, gradient 6 mT/m, TE 0.22 ms, TR 120 ms and 90 degrees are assumed. The ``-sloppy`` ones are
small, for tests."""


def protocol_of(study: str, *, sloppy: bool = False) -> Protocol:
    """Return the protocol of a study.

    Raises
    ------
    DataError
        If the study is neither ``stroke`` nor ``ms``.

    Examples
    --------
    >>> protocol_of("stroke").matrix
    64
    """
    if study not in {"stroke", "ms"}:
        raise DataError(f"unknown study '{study}'", hint="choose stroke or ms")
    return PROTOCOLS[f"{study}-sloppy" if sloppy else study]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Visit:
    """One visit: a head, what is scanned, and where every scan finds the head."""

    participant: str
    """Label of the person, without ``sub-``."""

    head: Head
    """The person, on the lattice of the reference T1w frame."""

    session: str | None = None
    """Label of the session, without ``ses-``; ``None`` where the study has no sessions."""

    scans: tuple[str, ...] = ("na", "t1w")
    """What is scanned: ``na``, ``t1w``, ``flair``, ``dwi``, ``pdt2head``, ``pdt2body``."""

    t1w_from: Mapping[str, _Matrix] = field(default_factory=dict)
    """4 x 4 matrices that map points (RAS, mm) of a frame to this visit's T1w frame, by frame; the identity where a
    frame is missing. ``reference`` is the frame of ``head``."""

    images: Mapping[str, Volume] = field(default_factory=dict)
    """1H images to be written as they are, by scan, instead of simulated ones; they lie in the frame of their scan."""

    raters: int = 0
    """Raters whose delineations differ a little; 0 for one set without error and without a ``desc-``."""

    truth_images: bool = True
    """Whether the true fractions are written as images."""

    landmarks: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Points (n, 3) of the brain in the reference T1w frame, and where they lie in MNI152, in mm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Rows that one person adds to the tables of the dataset."""

    participant: Mapping[str, Any]
    """Row of participants.tsv."""

    sessions: tuple[Mapping[str, Any], ...] = ()
    """Rows of the person's sessions.tsv."""

    phenotype: Mapping[str, Any] = field(default_factory=dict)
    """Clinical scores by column name."""

    tissues: tuple[Mapping[str, Any], ...] = ()
    """True concentrations, one row a class and visit."""

    regions: tuple[Mapping[str, Any], ...] = ()
    """True changes of lesion regions, one row a region and visit."""


_PARTICIPANTS = {
    "stroke": (
        Column("participant_id", "Participant"),
        Column("age", "Age", "year"),
        Column("sex", "Sex", levels=("F", "M")),
        Column("group", "Diagnosis", levels=("stroke",)),
        Column("site", "Site of the scan"),
        Column("side", "Hemisphere of the stroke", levels=("left", "right")),
        Column("nihss_admission", "National Institutes of Health Stroke Scale at admission"),
    ),
    "ms": (
        Column("participant_id", "Participant"),
        Column("age", "Age", "year"),
        Column("sex", "Sex", levels=("F", "M")),
        Column(
            "group",
            "Healthy control, clinically isolated syndrome, relapsing-remitting or secondary progressive MS",
            levels=("HC", "CIS", "RRMS", "SPMS"),
        ),
        Column("site", "Site of the scan"),
        Column("disease_duration", "Time since the first symptom", "year"),
    ),
}
_SESSIONS = (
    Column("session_id", "Session"),
    Column("onset_to_scan_h", "Time from stroke onset to the scan", "h"),
    Column("nihss", "National Institutes of Health Stroke Scale at the scan"),
    Column("mrs", "Modified Rankin scale at three months"),
)
_PHENOTYPE: dict[str, tuple[str, tuple[Column, ...]]] = {
    "edss": ("Expanded Disability Status Scale", (Column("edss", "Disability, 0 to 10 in half steps"),)),
    "t25fw": ("Timed 25-foot walk", (Column("t25fw_s", "Time to walk 25 feet", "s"),)),
    "nhpt": ("Nine-hole peg test", (Column("z9hpt", "z score against published norms; higher is better", "1"),)),
    "pasat": ("Paced Auditory Serial Addition Test", (Column("z_pasat", "z score against published norms", "1"),)),
    "sdmt": ("Symbol Digit Modalities Test", (Column("z_sdmt", "z score against published norms", "1"),)),
    "brixton": ("Brixton Spatial Anticipation Test", (Column("z_brixton", "z score against published norms", "1"),)),
    "hayling": ("Hayling Sentence Completion Test", (Column("z_hayling", "z score against published norms", "1"),)),
    "memory": (
        "Adult Memory and Information Processing Battery",
        (
            Column("z_verbal", "Verbal memory, z score against published norms", "1"),
            Column("z_visual", "Visual memory, z score against published norms", "1"),
        ),
    ),
    "nart": ("National Adult Reading Test", (Column("nart_iq", "Premorbid intelligence quotient"),)),
    "fss": ("Fatigue Severity Scale", (Column("fatigue", "Mean of its nine items, 1 to 7"),)),
}
_TRUE_TISSUE = (
    Column("participant_id", "Participant"),
    Column("session_id", "Session, n/a where the dataset has no sessions"),
    Column("group", "Group"),
    Column("tissue", "Tissue or lesion class"),
    Column("tsc_mmol_l", "True sodium concentration, weighted by the true fraction", "mmol/L"),
    Column("volume_ml", "True volume", "mL"),
)
_TRUE_REGION = (
    Column("participant_id", "Participant"),
    Column("session_id", "Session"),
    Column("onset_to_scan_h", "Time from stroke onset to the scan", "h"),
    Column("roi", "Region of the true masks, or an expression of them"),
    Column("tsc_percent_change", "True change of the tissue's sodium concentration, mean over the region", "%"),
    Column("adc_percent_change", "True change of the tissue's diffusion coefficient, mean over the region", "%"),
    Column("volume_ml", "True volume of the region", "mL"),
)

_GROUP_ORDER = ("RRMS", "HC", "SPMS", "CIS")
_STROKE_SESSIONS = ("acute", "subacute", "m3")
_SUFFIX = {
    "t1w": ("anat", "T1w"),
    "flair": ("anat", "FLAIR"),
    "pdt2head": ("anat", "acq-32ch_PDT2"),
    "pdt2body": ("anat", "acq-bodycoil_PDT2"),
}
_SIDECAR: dict[str, dict[str, Any]] = {
    "t1w": {
        "PulseSequenceType": "3D MPRAGE", "MRAcquisitionType": "3D", "RepetitionTime": 1.9, "EchoTime": 0.00341,
        "InversionTime": 0.9, "FlipAngle": 9, "ReceiveCoilName": "1H head coil",
    },
    "flair": {
        "PulseSequenceType": "2D FLAIR", "MRAcquisitionType": "2D", "RepetitionTime": 9.0, "EchoTime": 0.095,
        "InversionTime": 2.5, "FlipAngle": 150, "SliceThickness": 5.0, "ReceiveCoilName": "1H head coil",
    },
    "dwi": {
        "PulseSequenceType": "spin-echo EPI", "MRAcquisitionType": "2D", "RepetitionTime": 6.7, "EchoTime": 0.152,
        "FlipAngle": 90, "SliceThickness": 5.0, "PhaseEncodingDirection": "j", "TotalReadoutTime": 0.05,
        "EffectiveEchoSpacing": 0.0005, "ReceiveCoilName": "1H head coil",
    },
    "pdt2head": {
        "PulseSequenceType": "2D dual-echo turbo spin echo", "MRAcquisitionType": "2D", "RepetitionTime": 3.5,
        "EchoTime": [0.019, 0.085], "FlipAngle": 90, "ReceiveCoilName": "1H 32-channel head coil",
    },
    "pdt2body": {
        "PulseSequenceType": "2D dual-echo turbo spin echo", "MRAcquisitionType": "2D", "RepetitionTime": 3.5,
        "EchoTime": [0.019, 0.085], "FlipAngle": 90, "ReceiveCoilName": "1H body coil",
    },
}  # fmt: skip


def write(
    folder: Path,
    *,
    study: str,
    n_participants: int,
    seed: int,
    sloppy: bool = False,
    snr: float = 20.0,
    n_sessions: int = 3,
    truth_images: bool = True,
    executor: Executor | None = None,
) -> Path:
    """Write a simulated study.

    Parameters
    ----------
    folder : Path
        Root of the dataset; made where it does not exist.
    study : {"stroke", "ms"}
        Stroke: sessions ``acute`` (5-24 h; sodium, diffusion, T1w), ``subacute`` (25-70 h; the same) and ``m3`` (three
        months; T1w, FLAIR). MS: one visit (sodium, T1w, FLAIR, PD/T2 with body and head coil), groups RRMS, HC, SPMS
        and CIS in turn.
    n_participants : int
        Persons.
    seed : int
        Equal seeds make equal datasets.
    sloppy : bool
        Whether to use the small protocols.
    snr : float
        Signal of white matter over the noise of the density-weighted adjoint sodium image.
    n_sessions : int
        Visits of the stroke study, 1 to 3.
    truth_images : bool
        Whether the true fractions are written as images.
    executor : concurrent.futures.Executor, optional
        Where the persons are made; here, one after the other, by default.

    Returns
    -------
    Path
        ``folder``. The truth lies under ``derivatives/truth``, the delineations under ``derivatives/rois``.

    Raises
    ------
    DataError
        If the study is unknown or there is no person or visit to write.
    """
    protocol_of(study, sloppy=sloppy)
    if n_participants < 1 or not 1 <= n_sessions <= len(_STROKE_SESSIONS):
        raise DataError(
            f"{n_participants} participants with {n_sessions} sessions",
            hint="ask for at least one participant, and one to three sessions",
        )
    person = partial(
        write_participant,
        folder,
        study=study,
        seed=seed,
        sloppy=sloppy,
        snr=snr,
        n_sessions=n_sessions,
        truth_images=truth_images,
    )
    numbers = range(1, n_participants + 1)
    written = [person(number) for number in numbers] if executor is None else list(executor.map(person, numbers))
    write_tables(folder, written, study=study, snr=snr, seed=seed)
    return folder


def write_participant(
    folder: Path,
    number: int,
    *,
    study: str,
    seed: int,
    sloppy: bool = False,
    snr: float = 20.0,
    n_sessions: int = 3,
    truth_images: bool = True,
) -> Written:
    """Write one person of a simulated study; the tables at the root are left to `write_tables`.

    Parameters
    ----------
    folder : Path
        Root of the dataset.
    number : int
        Number of the person, from 1.
    study, seed, sloppy, snr, n_sessions, truth_images
        As in `write`.

    Returns
    -------
    Written
        What the person adds to the tables.
    """
    protocol = protocol_of(study, sloppy=sloppy)
    rng = np.random.default_rng([seed, number, sum(study.encode())])
    anatomy = draw_anatomy(rng, AnatomyParams(voxel_mm=protocol.anatomy_mm))
    person = _stroke_patient if study == "stroke" else _ms_participant
    return person(folder, f"{number:02d}", anatomy, protocol, rng, snr=snr, n=n_sessions, truth_images=truth_images)


def _pose(rng: np.random.Generator, rotation_deg: float, translation_mm: float) -> _Matrix:
    """Return a random rigid motion; no component beyond two standard deviations."""
    draws = np.clip(rng.standard_normal((2, 3)), -2.0, 2.0)
    return rigid(rotation_deg * draws[0], translation_mm * draws[1])


def _landmarks(anatomy: Anatomy, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return 200 points of the brain in the T1w frame and in MNI152."""
    if anatomy.mni_mm is None:
        return None
    inside = np.argwhere(anatomy.parenchyma > 0.9)
    chosen = inside[rng.choice(len(inside), size=200, replace=False)]
    return anatomy.grid.world(chosen.astype(np.float64)), anatomy.mni_mm[tuple(chosen.T)].astype(np.float64)


def _ms_participant(
    folder: Path,
    label: str,
    anatomy: Anatomy,
    protocol: Protocol,
    rng: np.random.Generator,
    *,
    snr: float,
    n: int,  # noqa: ARG001
    truth_images: bool,
) -> Written:
    group = _GROUP_ORDER[(int(label) - 1) % len(_GROUP_ORDER)]
    counts = tuple(int(name == group) for name in ("HC", "CIS", "RRMS", "SPMS"))
    table = ms_cohort(
        rng, (counts[0], counts[1], counts[2], counts[3]), params=MsCohortParams(measurement_error=False)
    ).table
    rows = table[table["method"] == "glm"].set_index("tissue")
    person = rows.iloc[0]
    drawn = {name: float(rows.loc[name, "tsc_mmol_l"]) for name in rows.index if name not in {"CSF", "T2lesion"}}
    if "T1hypo" in drawn:
        drawn["T1hypo"] = max(drawn["T1hypo"], drawn["T1iso"] + 3.0)
        head = ms_head(anatomy, rng, drawn, lesion_ml=float(np.clip(person["t2lv_ml"], 2.0, 20.0)))
    else:
        head = healthy_head(anatomy, drawn)
    t1w_from_na = _pose(rng, 3.0, 4.0)
    poses = {
        "na": t1w_from_na,
        # The body-coil image is made without moving the subject, so it all but shares the sodium frame.
        "pdt2body": t1w_from_na @ _pose(rng, 0.5, 0.6),
        "pdt2head": _pose(rng, 1.0, 1.5),
        "flair": _pose(rng, 1.0, 1.5),
    }
    visit = Visit(
        participant=label,
        head=head,
        scans=("na", "t1w", "flair", "pdt2head", "pdt2body"),
        t1w_from=poses,
        truth_images=truth_images,
        landmarks=_landmarks(anatomy, rng),
    )
    tissues, regions = write_visit(folder, visit, protocol, rng, snr=snr)
    facts = {name: person[name] for name in ("age", "sex", "group", "site", "disease_duration")}
    phenotype = {column.name: person[column.name] for _, columns in _PHENOTYPE.values() for column in columns}
    return Written(
        participant={"participant_id": f"sub-{label}", **facts},
        phenotype=phenotype,
        tissues=tuple({**row, "group": group} for row in tissues),
        regions=tuple(regions),
    )


def _stroke_patient(
    folder: Path,
    label: str,
    anatomy: Anatomy,
    protocol: Protocol,
    rng: np.random.Generator,
    *,
    snr: float,
    n: int,
    truth_images: bool,
) -> Written:
    lesion = draw_stroke_lesion(anatomy, rng)
    table = stroke_cohort(rng, 1).table.drop_duplicates("session_id").reset_index(drop=True)
    healthy = {"CGM": 40.63 + 2.0 * rng.standard_normal(), "DGM": 34.83 + 2.0 * rng.standard_normal()}
    healthy["NAWM"] = 32.03 + 2.0 * rng.standard_normal()
    times = (float(rng.uniform(5.0, 23.0)), float(rng.uniform(26.0, 69.0)), float(rng.uniform(85.0, 95.0) * 24.0))
    sessions, tissues, regions = [], [], []
    landmarks = _landmarks(anatomy, rng)
    for i, (session, onset_h) in enumerate(zip(_STROKE_SESSIONS[:n], times, strict=False)):
        t1w_from_reference = np.eye(4) if i == 0 else _pose(rng, 3.0, 4.0)
        late = session == "m3"
        visit = Visit(
            participant=label,
            session=session,
            head=stroke_head(anatomy, lesion, onset_h, healthy),
            scans=("t1w", "flair") if late else ("na", "t1w", "dwi"),
            t1w_from={
                "reference": t1w_from_reference,
                "na": t1w_from_reference @ _pose(rng, 3.0, 4.0),
                "dwi": t1w_from_reference @ _pose(rng, 1.5, 2.0),
                "flair": t1w_from_reference @ _pose(rng, 1.5, 2.0),
            },
            raters=2,
            truth_images=truth_images and not late,
            landmarks=landmarks,
        )
        true_tissues, true_regions = write_visit(
            folder, visit, protocol, rng, snr=snr, necrosis=anatomy.parenchyma * lesion.necrosis >= 0.5
        )
        tissues += [{**row, "group": "stroke"} for row in true_tissues]
        regions += [{**row, "onset_to_scan_h": onset_h} for row in true_regions]
        nihss = table.loc[min(i, len(table) - 1), "nihss"]
        mrs = table.loc[0, "mrs"] if late else None
        sessions.append(
            {"session_id": f"ses-{session}", "onset_to_scan_h": round(onset_h, 2), "nihss": nihss, "mrs": mrs}
        )
    facts = {name: table.loc[0, name] for name in ("age", "sex", "nihss_admission")}
    return Written(
        participant={"participant_id": f"sub-{label}", **facts, "group": "stroke", "site": "A", "side": lesion.side},
        sessions=tuple(sessions),
        tissues=tuple(tissues),
        regions=tuple(regions),
    )


def write_visit(
    folder: Path,
    visit: Visit,
    protocol: Protocol,
    rng: np.random.Generator,
    *,
    snr: float = 20.0,
    vials: Sequence[Vial] = VIALS,
    necrosis: NDArray[np.bool_] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write all files of one visit.

    Parameters
    ----------
    folder : Path
        Root of the dataset.
    visit : Visit
        The head and its scans.
    protocol : Protocol
        Sodium protocol and 1H voxels.
    rng : numpy.random.Generator
        Source of randomness.
    snr : float
        As in `write`.
    vials : sequence of Vial
        Vials in the sodium frame.
    necrosis : ndarray of bool, optional
        Final necrosis on the head's lattice, for the true values of its overlaps with early oedema.

    Returns
    -------
    tissues, regions : list of dict
        Rows of true concentrations and of true changes.
    """
    place = _Place(folder, visit)
    poses = {name: np.asarray(matrix, dtype=np.float64) for name, matrix in visit.t1w_from.items()}
    reference_from_t1w = np.asarray(np.linalg.inv(poses.get("reference", np.eye(4))), dtype=np.float64)
    to_reference: dict[str, _Matrix] = {scan: reference_from_t1w @ poses.get(scan, np.eye(4)) for scan in visit.scans}
    to_reference["t1w"] = reference_from_t1w
    for scan in visit.scans:
        if scan == "na":
            _write_sodium(place, visit, protocol, to_reference["na"], rng, snr=snr, vials=vials)
        elif scan == "dwi":
            _write_dwi(place, visit, protocol, to_reference["dwi"], rng)
        else:
            na_from_scan = np.linalg.inv(to_reference["na"]) @ to_reference[scan] if "na" in to_reference else None
            image = visit.images.get(scan)
            if image is None:
                image = _image_1h(
                    visit,
                    scan,
                    protocol,
                    rng,
                    reference_from_scan=to_reference[scan],
                    na_from_scan=na_from_scan,
                    vials=vials,
                )
            datatype, suffix = _SUFFIX[scan]
            write_volume(place.raw(datatype, suffix, ".nii.gz"), image.with_data(np.rint(image.data)), dtype=np.int16)
            write_json(place.raw(datatype, suffix, ".json"), {**_common(), **_SIDECAR[scan]})
    return _write_truth(
        place, visit, protocol, rng, poses=poses, reference_from_t1w=reference_from_t1w, vials=vials, necrosis=necrosis
    )


class _Place:
    """Where the files of a visit go."""

    def __init__(self, root: Path, visit: Visit) -> None:
        session = () if visit.session is None else (f"ses-{visit.session}",)
        self.root = root
        self.folder = "/".join((f"sub-{visit.participant}", *session))
        self.stem = "_".join((f"sub-{visit.participant}", *session))

    def raw(self, datatype: str, suffix: str, extension: str) -> Path:
        return self.root / self.folder / datatype / f"{self.stem}_{suffix}{extension}"

    def under(self, tree: str, suffix: str, extension: str, datatype: str = "anat") -> Path:
        return self.root / tree / self.folder / datatype / f"{self.stem}_{suffix}{extension}"

    def uri(self, datatype: str, suffix: str, extension: str) -> str:
        return f"bids:raw:{self.folder}/{datatype}/{self.stem}_{suffix}{extension}"


def _common() -> dict[str, Any]:
    return {
        "Manufacturer": "simulated",
        "ManufacturersModelName": "bids_sodium.simulate",
        "MagneticFieldStrength": _FIELD_T,
        "SoftwareVersions": __version__,
    }


def _write_sodium(
    place: _Place,
    visit: Visit,
    protocol: Protocol,
    reference_from_na: _Matrix,
    rng: np.random.Generator,
    *,
    snr: float,
    vials: Sequence[Vial],
) -> None:
    kspace = simulate_kspace(
        visit.head.fractions,
        visit.head.mmol_l,
        trajectory=protocol.acquired(),
        grid=protocol.grid,
        te_ms=protocol.te_ms,
        tr_ms=protocol.tr_ms,
        flip_deg=protocol.flip_deg,
        snr=snr,
        rng=rng,
        na_from_fractions=np.linalg.inv(reference_from_na),
        vials=vials,
        gain=float(rng.uniform(8.0, 12.0)),
        phase_rad=float(rng.uniform(-np.pi, np.pi)),
        field_t=_FIELD_T,
    )
    sidecar = {
        **_common(),
        "ResonantNucleus": "23Na",
        "ImagingFrequency": round(GAMMA_BAR_MHZ_T * _FIELD_T, 6),
        "EchoTime": protocol.te_ms / 1e3,
        "RepetitionTime": protocol.tr_ms / 1e3,
        "FlipAngle": protocol.flip_deg,
        "MRAcquisitionType": "3D",
        "PulseSequenceType": f"{protocol.trajectory['Type']} ultra-short echo time",
        "ReceiveCoilName": "23Na volume head coil",
        "NonCartesianTrajectory": dict(protocol.trajectory),
        "SodiumCalibration": {
            "Phantoms": [
                {
                    "Label": vial.name,
                    "Concentration": vial.mmol_l,
                    "Units": "mmol/L",
                    "InnerDiameter": 2.0 * vial.radius_mm,
                    "T1": vial.relaxation.t1_ms / 1e3,
                    "T2star": [vial.relaxation.decay.t2_fast_ms / 1e3, vial.relaxation.decay.t2_slow_ms / 1e3],
                }
                for vial in vials
            ]
        },
    }
    raw = place.under("sourcedata", "acq-23Na_PDw", ".h5")
    raw.parent.mkdir(parents=True, exist_ok=True)
    write_ismrmrd(raw, kspace)
    write_json(raw.with_suffix(".json"), sidecar)
    magnitude = np.rint(_scanner_image(kspace)).astype(np.int16)
    write_volume(place.raw("anat", "acq-23Na_PDw", ".nii.gz"), Volume(magnitude, kspace.grid), dtype=np.int16)
    write_json(place.raw("anat", "acq-23Na_PDw", ".json"), sidecar)


def _scanner_image(kspace: KSpace) -> NDArray[np.floating]:
    """Return the magnitude of the density-weighted adjoint image."""
    weights = sample_weights(kspace.trajectory, kspace.grid)
    return np.asarray(np.abs(Nufft(kspace.trajectory, kspace.grid).gridded(kspace.samples[0] * weights)))


def _slices(voxel_mm: tuple[float, float], fov_mm: tuple[float, float], tilt_deg: float, centre_z_mm: float) -> Grid:
    """Return a stack of slices tilted about the x axis."""
    within, across = voxel_mm
    shape = (round(fov_mm[0] / within), round(fov_mm[0] / within), round(fov_mm[1] / across))
    flat = Grid.centred(shape, 1.0).affine @ np.eye(4)
    turn = rigid(np.array([tilt_deg, 0.0, 0.0]), np.array([0.0, 0.0, centre_z_mm]))
    size = np.diag([within, within, across, 1.0])
    affine = turn @ size @ flat
    return Grid(shape, affine)


def _image_1h(
    visit: Visit,
    scan: str,
    protocol: Protocol,
    rng: np.random.Generator,
    *,
    reference_from_scan: _Matrix,
    na_from_scan: _Matrix | None,
    vials: Sequence[Vial],
) -> Volume:
    head = visit.head
    if scan == "t1w":
        clean = contrast(head, "T1w")
        if not np.allclose(reference_from_scan, np.eye(4)):
            clean = to_scanner(clean, head.grid, head.grid, reference_from_scan)
        return Volume(scan_1h(clean, rng, snr=40.0, bias=0.12), head.grid)
    if scan == "flair":
        target = _slices(protocol.flair_mm, (230.0, 132.0), -10.0, 12.0)
    elif scan == "pdt2head":
        target = _slices(protocol.head_coil_mm, (230.0, 180.0), -6.0, 5.0)
    elif scan == "pdt2body":
        target = _slices(protocol.body_coil_mm, (240.0, 200.0), 0.0, 0.0)
    else:
        raise DataError(f"unknown scan '{scan}'", hint="choose na, t1w, flair, dwi, pdt2head or pdt2body")
    if scan == "flair":
        clean = to_scanner(contrast(head, "FLAIR"), head.grid, target, reference_from_scan)
        return Volume(scan_1h(clean, rng, snr=30.0, level=460.0, bias=0.12), target)
    gel = np.zeros(target.shape, dtype=np.float32)
    if scan == "pdt2body" and na_from_scan is not None:
        for vial in vials:
            gel += vial_fraction(vial, target, na_from_scan)
    echoes = [
        to_scanner(contrast(head, name), head.grid, target, reference_from_scan) + np.float32(level) * gel
        for name, level in (("PD", 800.0), ("T2", 600.0))
    ]
    noise, bias = (15.0, 0.04) if scan == "pdt2body" else (30.0, 0.12)
    return Volume(scan_1h(np.stack(echoes, axis=-1), rng, snr=noise, level=460.0, bias=bias), target)


def _write_dwi(
    place: _Place, visit: Visit, protocol: Protocol, reference_from_dwi: _Matrix, rng: np.random.Generator
) -> None:
    target = _slices(protocol.dwi_mm, (240.0, 132.0), -10.0, 12.0)
    series = diffusion(visit.head, target, reference_from_dwi, rng)
    write_volume(place.raw("dwi", "dwi", ".nii.gz"), Volume(np.rint(series.data), target), dtype=np.int16)
    write_json(place.raw("dwi", "dwi", ".json"), {**_common(), **_SIDECAR["dwi"]})
    write_text(place.raw("dwi", "dwi", ".bval"), " ".join(f"{value:g}" for value in series.bval_s_mm2) + "\n")
    rows = (" ".join(f"{value:g}" for value in row) for row in series.bvec)
    write_text(place.raw("dwi", "dwi", ".bvec"), "\n".join(rows) + "\n")


def _write_truth(
    place: _Place,
    visit: Visit,
    protocol: Protocol,
    rng: np.random.Generator,
    *,
    poses: Mapping[str, _Matrix],
    reference_from_t1w: _Matrix,
    vials: Sequence[Vial],
    necrosis: NDArray[np.bool_] | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    head, grid = visit.head, visit.head.grid
    moved = not np.allclose(reference_from_t1w, np.eye(4))

    def in_t1w(data: NDArray[Any]) -> NDArray[np.float32]:
        values = np.asarray(data, dtype=np.float32)
        return to_scanner(values, grid, grid, reference_from_t1w) if moved else values

    t1w = {"Sources": [place.uri("anat", "T1w", ".nii.gz")]}
    if visit.truth_images:
        for name, volume in head.fractions.items():
            path = place.under("derivatives/truth", f"label-{name}_probseg", ".nii.gz")
            write_volume(path, Volume(in_t1w(volume.data), grid))
            write_json(path.with_suffix("").with_suffix(".json"), {"Description": f"True fraction of {name}", **t1w})
    for name, mask in head.masks.items():
        path = place.under("derivatives/truth", f"label-{name}_mask", ".nii.gz")
        true = in_t1w(mask) >= 0.5
        write_volume(path, Volume(true, grid), dtype=np.uint8)
        write_json(path.with_suffix("").with_suffix(".json"), {"Type": "Lesion", **t1w})
        drawn = [("", true)]
        if visit.raters:
            drawn = [(f"_desc-rater{i + 1}", _as_drawn(true, grid, rng)) for i in range(visit.raters)]
        for desc, delineated in drawn:
            path = place.under("derivatives/rois", f"label-{name}{desc}_mask", ".nii.gz")
            write_volume(path, Volume(delineated, grid), dtype=np.uint8)
            write_json(path.with_suffix("").with_suffix(".json"), {"Type": "Lesion", **t1w})
    if "na" in visit.scans:
        for vial in vials:
            path = place.under("derivatives/truth", f"acq-23Na_label-{vial.name}_mask", ".nii.gz")
            inside = vial_fraction(vial, protocol.grid) >= 0.5
            write_volume(path, Volume(inside, protocol.grid), dtype=np.uint8)
            sources = {"Sources": [place.uri("anat", "acq-23Na_PDw", ".nii.gz")]}
            write_json(path.with_suffix("").with_suffix(".json"), {"Type": "ROI", **sources})
    landmarks = {}
    if visit.landmarks is not None:
        t1w_from_reference = np.linalg.inv(reference_from_t1w)
        points_mm = visit.landmarks[0] @ t1w_from_reference[:3, :3].T + t1w_from_reference[:3, 3]
        landmarks = {"T1w": points_mm.round(3), "MNI152NLin2009aSym": visit.landmarks[1].round(3)}
    known = {name: matrix for name, matrix in poses.items() if name == "reference" or name in visit.scans}
    write_json(
        place.under("derivatives/truth", "truth", ".json"),
        {
            "Description": "t1w_from_X maps points (RAS+, mm) of the frame of scan X to the T1w frame of this visit; "
            "Landmarks are the same points of the brain in two frames",
            **{f"t1w_from_{name}": matrix for name, matrix in known.items()},
            "Concentrations": {name: head.true_mmol_l(name) for name in head.fractions},
            "Units": "mmol/L",
            "Landmarks": landmarks,
        },
    )
    ids = {
        "participant_id": f"sub-{visit.participant}",
        "session_id": None if visit.session is None else f"ses-{visit.session}",
    }
    tissues = [
        {**ids, "tissue": name, "tsc_mmol_l": head.true_mmol_l(name), "volume_ml": head.volume_ml(name)}
        for name in head.fractions
    ]
    return tissues, [{**ids, **row} for row in _true_regions(head, necrosis)]


def _true_regions(head: Head, necrosis: NDArray[np.bool_] | None) -> list[dict[str, Any]]:
    """Return the true mean change of every early region and of its overlaps with the final necrosis."""
    sodium, adc = head.sodium_change_percent, head.adc_change_percent
    if sodium is None or adc is None:
        return []
    regions = dict(head.masks)
    if necrosis is not None:
        regions["necrosis"] = necrosis
        for name in head.masks:
            regions[f"{name}&necrosis"] = head.masks[name] & necrosis
            regions[f"necrosis-{name}"] = necrosis & ~head.masks[name]
            regions[f"{name}-necrosis"] = head.masks[name] & ~necrosis
    return [
        {
            "roi": name,
            "tsc_percent_change": float(sodium[mask].mean()) if mask.any() else float("nan"),
            "adc_percent_change": float(adc[mask].mean()) if mask.any() else float("nan"),
            "volume_ml": float(mask.sum()) * head.grid.voxel_ml,
        }
        for name, mask in regions.items()
    ]


def _as_drawn(mask: NDArray[np.bool_], grid: Grid, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask as a rater would draw it: a smoother outline that errs by about a millimetre."""
    from scipy import ndimage

    if not mask.any():
        return mask
    size = np.array(grid.voxel_mm)
    where = ndimage.find_objects(mask.astype(np.int8))[0]
    box = tuple(
        slice(max(s.start - int(8 / v) - 1, 0), min(s.stop + int(8 / v) + 1, n))
        for s, v, n in zip(where, size, grid.shape, strict=True)
    )
    smooth = ndimage.gaussian_filter(mask[box].astype(np.float32), 1.5 / size)
    waves = ndimage.gaussian_filter(rng.standard_normal(smooth.shape).astype(np.float32), 5.0 / size)
    threshold = 0.5 + 0.06 * rng.standard_normal() + 0.12 * waves / (waves.std() + 1e-9)
    out = np.zeros_like(mask)
    out[box] = smooth > np.clip(threshold, 0.1, 0.9)
    return out


def _write_tsv(path: Path, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], **head: Any) -> None:
    """Write a TSV and its data dictionary; missing values are ``n/a``."""

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and not np.isfinite(value)):
            return "n/a"
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    lines = ["\t".join(column.name for column in columns)]
    lines += ["\t".join(cell(row.get(column.name)) for column in columns) for row in rows]
    write_text(path, "\n".join(lines) + "\n")
    if head.pop("dictionary", True):
        write_json(path.with_suffix(".json"), {**head, **_dictionary(columns)})


def _dictionary(columns: Sequence[Column]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for column in columns:
        entry: dict[str, Any] = {"Description": column.description}
        if column.unit:
            entry["Units"] = column.unit
        if column.levels:
            entry["Levels"] = {level: level for level in column.levels}
        entries[column.name] = entry
    return entries


def write_tables(
    folder: Path, written: Sequence[Written], *, study: str, snr: float | None = None, seed: int | None = None
) -> None:
    """Write what stands at the root of the dataset and of its derivatives.

    Parameters
    ----------
    folder : Path
        Root of the dataset.
    written : sequence of Written
        The persons.
    study : {"stroke", "ms"}
        Decides the columns.
    snr, seed : float, int, optional
        Told in the README.

    Raises
    ------
    DataError
        If the study is unknown.
    """
    protocol_of(study)
    _write_tsv(folder / "participants.tsv", _PARTICIPANTS[study], [person.participant for person in written])
    if any(person.sessions for person in written):
        write_json(folder / "sessions.json", _dictionary(_SESSIONS))
        for person in written:
            name = str(person.participant["participant_id"])
            _write_tsv(folder / name / f"{name}_sessions.tsv", _SESSIONS, person.sessions, dictionary=False)
    if any(person.phenotype for person in written):
        for tool, (title, columns) in _PHENOTYPE.items():
            rows = [{"participant_id": person.participant["participant_id"], **person.phenotype} for person in written]
            _write_tsv(
                folder / "phenotype" / f"{tool}.tsv",
                (Column("participant_id", "Participant"), *columns),
                rows,
                MeasurementToolMetadata={"Description": title},
            )
    said = "".join(
        f", {what} {value:g}" for what, value in (("signal-to-noise ratio", snr), ("seed", seed)) if value is not None
    )
    title = f"Simulated sodium MRI, {study} study"
    _describe(folder, title, {"DatasetType": "raw"})
    write_text(
        folder / "README",
        f"{title}{said}. No person was scanned.\n\nDigital heads made from the symmetric MNI152 template; raw sodium"
        " k-space (ISMRMRD) lies in sourcedata, lesion\ndelineations in derivatives/rois, and true concentrations,"
        " fractions, masks and transforms in derivatives/truth.\n",
    )
    write_text(folder / "CHANGES", "1.0.0 2025-01-01\n  - Simulated.\n")
    write_text(folder / ".bidsignore", "sourcedata\n")
    links = {"DatasetType": "derivative", "DatasetLinks": {"raw": "../.."}}
    if any(person.tissues for person in written):
        truth = folder / "derivatives" / "truth"
        _describe(truth, f"{title}: truth", links)
        write_text(truth / ".bidsignore", "*_truth.json\ntruth_*\n")
        write_text(
            truth / "README",
            "What the simulated scans were made from: fractions, lesion and vial masks of every visit (images),\n"
            "transforms and concentrations of every visit (*_truth.json), and tables of all (truth_*.tsv).\n",
        )
        _write_tsv(truth / "truth_tissue.tsv", _TRUE_TISSUE, [row for person in written for row in person.tissues])
        regions = [row for person in written for row in person.regions]
        if regions:
            _write_tsv(truth / "truth_roi.tsv", _TRUE_REGION, regions)
    rois = folder / "derivatives" / "rois"
    _describe(rois, f"{title}: lesion delineations", links)
    write_text(
        rois / "README",
        "Lesions as raters would draw them on the T1w image of the same visit. Where two raters drew, desc- tells\n"
        "them apart; their outlines differ by about a millimetre.\n",
    )


def _describe(folder: Path, name: str, extra: Mapping[str, Any]) -> None:
    write_json(
        folder / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            **extra,
            "License": "CC0",
            "Authors": ["The bids_sodium developers", "The bids_sodium simulator"],
            "GeneratedBy": [{"Name": "bids_sodium.simulate", "Version": __version__}],
            "HowToAcknowledge": "Name bids_sodium and its version.",
        },
    )
