"""A dataset → frozen Session records; pybids' only door.

Files are found by one walk of the chosen participants' folders and their names parsed as strings; sidecars are merged
by the inheritance principle while walking. That costs under a millisecond a participant, so a dry run, a real run and
a resumed run all read a dataset in the same way. pybids is asked for what only it can do: to answer the queries of a
``--bids-filter-file``. Its index then holds the chosen participants alone, or the whole dataset where
``--bids-database-dir`` keeps it for the next run. Tests hold the walk's files and metadata equal to those of pybids.

Nouns: `Scan` (a file and its merged sidecar), `Session` (everything one session offers to the app), `Dataset`.
A session without a sodium scan stays, for its anatomy and masks; whatever is wrong with one is its `Session.problem`,
so that the others go on.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from bids_sodium.bidsio.atlases import Atlas, given
from bids_sodium.bidsio.files import read_json
from bids_sodium.bidsio.names import Entities, is_sodium_label, parse
from bids_sodium.bidsio.segmentations import External, Finder
from bids_sodium.core.constants import GAMMA_BAR_MHZ_T, PROTON_GAMMA_BAR_MHZ_T
from bids_sodium.core.errors import ConfigError, DataError

__all__ = ["FILTER_KEYS", "Dataset", "Scan", "Session", "hours_per", "index", "onset_h", "onset_units", "read_rows"]

_IMAGES = (".nii.gz", ".nii")
_HOURS = {
    "h": 1.0, "hr": 1.0, "hour": 1.0, "hours": 1.0, "min": 1 / 60, "minute": 1 / 60, "minutes": 1 / 60, "s": 1 / 3600,
    "second": 1 / 3600, "seconds": 1 / 3600, "d": 24.0, "day": 24.0, "days": 24.0,
}  # fmt: skip
"""Units of the time after onset, in h."""
_MOST_HOURS = 2 * 365 * 24.0
_TRANSFORMS = (".txt", ".tfm", ".mat", ".lta")
_RAW_DATA = (".h5", ".hdf5", ".mrd", ".dat", ".npz", ".mat")
_BESIDE_RAW_DATA = ("TrajectoryFile", "GradientImpulseResponse")
_MHZ_T_OF_SODIUM = (11.0, 11.5)
_VOLUME_COIL = re.compile(r"vol|body|birdcage", re.IGNORECASE)
_BODY_COIL = re.compile(r"body", re.IGNORECASE)
_HEAD_COIL = re.compile(r"\d+ch|head|array", re.IGNORECASE)
_STANDARD_SPACE = re.compile(r"(MNI|fs|UNC|ICBM|Talairach|OASIS|NKI|Pediatric)")
_NOT_IMAGES = frozenset({"mask", "dseg", "probseg", "TB1map", "RB1map", "ADC", "trace", "TSCmap", "defacemask"})
_ANATOMY = ("T1w", "UNIT1", "T2w", "PDT2", "PDw", "FLAIR", "T2starw", "GRE", "MEGRE")
_LONG = {
    "sub": "subject",
    "ses": "session",
    "acq": "acquisition",
    "nuc": "nucleus",
    "ce": "ceagent",
    "rec": "reconstruction",
    "dir": "direction",
}

FILTER_KEYS = (
    "sodium", "kspace", "fieldmap", "t1w", "flair", "t2w", "pdt2_body", "pdt2_head", "anatomy", "dwi", "adc",
)  # fmt: skip
"""Keys of a filter file that the app knows; others are no error."""


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A data file, its name and its metadata.

    Parameters
    ----------
    path : Path
        The file.
    entities : mapping
        Values by short BIDS key, with ``suffix`` and ``datatype`` (the folder it lies in).
    sidecar : mapping
        Metadata, merged by the inheritance principle; times in s, as BIDS has them.
    bval, bvec : Path or None
        Gradient tables of a diffusion image.
    size_bytes : int
        Size of raw data on disk; 0 for other files.
    beside : tuple of Path
        Files that raw data are read with: a trajectory, a gradient impulse response.
    """

    path: Path
    entities: Entities
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    bval: Path | None = None
    bvec: Path | None = None
    size_bytes: int = 0
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """Everything that one session of one participant offers.

    Parameters
    ----------
    participant_id : str
        With its ``sub-``.
    session_id : str or None
        With its ``ses-``; ``None`` where the participant has no session folders.
    sodium : Scan or None
        Magnitude sodium image.
    sodium_reference : Scan or None
        Sodium image of the same scene from the volume coil, for receive correction.
    sodium_echoes : tuple of Scan
        All echoes of a multi-echo sodium image, first to last; empty for a single echo.
    kspace : Scan or None
        Raw sodium data; its sidecar inherits from that of the image of the same name.
    fieldmap : Scan or None
        Map of the static field, of 1H or of sodium.
    t1w, flair, t2w, pdt2_body, pdt2_head : Scan or None
        Proton images by weighting and coil.
    anatomy : Scan or None
        The best proton image to stand for the anatomy: T1w, else the next in line.
    dwi, adc : Scan or None
        Diffusion images with their gradient tables, or the scanner's ADC map.
    tb1map, rb1map : Scan or None
        Transmit and receive maps of sodium.
    tb1_angles : mapping of str to tuple of Scan
        Images of a transmit measurement by part, ``mag`` and ``phase``, in the order of their ``flip-`` (TB1DAM).
    masks : mapping of str to tuple of Scan
        Given masks by label, one a rater; a mask without a label by its ``desc-``.
    segmentations : tuple of External
        What derivative datasets offer as tissues of the T1w image, in the order in which they are named.
    atlases : tuple of Atlas
        Label images whose regions get rows: those of the command line, and those of derivative datasets that are
        named ``atlas-`` and lie on the T1w image.
    transforms : mapping of str to Path
        Given linear transforms (``from-FRAME_to-T1w``, of ITK, FSL or FreeSurfer) by the frame they come from.
    columns : mapping of str to str
        This session's row of the sessions table; missing values are left out.
    participant : mapping of str to str
        This participant's row of participants.tsv; missing values are left out.
    onset_to_scan_h : float or None
        Time from stroke onset to the scan, in hours.
    notes : tuple of str
        What a reader of the report should know of how files were chosen.
    problem : DataError or None
        Why this session cannot be processed.
    """

    participant_id: str
    session_id: str | None = None
    sodium: Scan | None = None
    sodium_reference: Scan | None = None
    sodium_echoes: tuple[Scan, ...] = ()
    kspace: Scan | None = None
    fieldmap: Scan | None = None
    t1w: Scan | None = None
    flair: Scan | None = None
    t2w: Scan | None = None
    pdt2_body: Scan | None = None
    pdt2_head: Scan | None = None
    anatomy: Scan | None = None
    dwi: Scan | None = None
    adc: Scan | None = None
    tb1map: Scan | None = None
    rb1map: Scan | None = None
    tb1_angles: Mapping[str, tuple[Scan, ...]] = field(default_factory=dict)
    masks: Mapping[str, tuple[Scan, ...]] = field(default_factory=dict)
    segmentations: tuple[External, ...] = ()
    atlases: tuple[Atlas, ...] = ()
    transforms: Mapping[str, Path] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    participant: Mapping[str, str] = field(default_factory=dict)
    onset_to_scan_h: float | None = None
    notes: tuple[str, ...] = ()
    problem: DataError | None = None

    @property
    def unit(self) -> str:
        """Name of the session for tasks and messages: ``sub-01_ses-acute``."""
        return self.participant_id if self.session_id is None else f"{self.participant_id}_{self.session_id}"

    @property
    def scans(self) -> Iterator[Scan]:
        """Every scan that the session holds, masks included."""
        named = (getattr(self, name) for name in self.__slots__)
        yield from (scan for scan in named if isinstance(scan, Scan))
        yield from self.sodium_echoes
        yield from (scan for scans in self.tb1_angles.values() for scan in scans)
        yield from (scan for scans in self.masks.values() for scan in scans)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """The chosen part of a BIDS dataset.

    Parameters
    ----------
    root : Path
        The dataset.
    derivatives : mapping of str to Path
        Derivative datasets that were read.
    sessions : tuple of Session
        By participant and session.
    participants : tuple of mapping
        Rows of participants.tsv, all of them; missing values are left out.
    notes : tuple of str
        What a reader should know of the dataset.
    """

    root: Path
    derivatives: Mapping[str, Path]
    sessions: tuple[Session, ...]
    participants: tuple[Mapping[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> tuple[Session, ...]:
        """Sessions without a problem."""
        return tuple(session for session in self.sessions if session.problem is None)


class _File(NamedTuple):
    path: str
    name: str
    folder: str
    datatype: str
    entities: dict[str, str]
    suffix: str
    extension: str


@dataclass(slots=True)
class _Tree:
    """Files under one folder, and the JSON files that their metadata inherit from."""

    root: str
    shared: list[_File] = field(default_factory=list)
    files: list[_File] = field(default_factory=list)
    dangling: set[str] = field(default_factory=set)
    _read: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def walk(self, folder: str, into: list[_File], *, deep: bool = True) -> None:
        datatype = folder.rpartition(os.sep)[2]
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() and not entry.name.endswith(".zarr"):
                    if deep:
                        self.walk(entry.path, into)
                    continue
                try:
                    name = parse(entry.name)
                except DataError:
                    continue
                if entry.is_symlink() and not Path(entry.path).exists():
                    self.dangling.add(entry.path)
                into.append(_File(entry.path, entry.name, folder, datatype, *name))

    def applying(self, file: _File, extension: str) -> list[_File]:
        """Return the files of an extension that apply to a data file, most general first."""
        found = [
            other
            for other in (*self.shared, *self.files)
            if other.extension == extension
            and other.suffix == file.suffix
            and (file.folder == other.folder or file.folder.startswith(other.folder + os.sep))
            and other.entities.items() <= file.entities.items()
        ]
        return sorted(found, key=lambda other: (len(other.folder), len(other.entities)))

    def metadata(self, file: _File) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for other in self.applying(file, ".json"):
            if other.path not in self._read:
                self._read[other.path] = read_json(Path(other.path))
            merged |= self._read[other.path]
        return merged


def _label(text: str, prefix: str) -> str:
    return prefix + text.removeprefix(prefix)


def _folders(parent: Path, prefix: str) -> list[str]:
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        return sorted(entry.name for entry in entries if entry.name.startswith(prefix) and entry.is_dir())


def _some(names: Sequence[str], n: int = 12) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "") if names else "none"


def read_rows(path: Path, key: str) -> tuple[dict[str, str], ...]:
    """Read a table of text whose rows are named by one column.

    Parameters
    ----------
    path : Path
        TSV file.
    key : str
        Column that names the rows, such as ``participant_id``.

    Returns
    -------
    tuple of dict
        Rows; cells that are empty or ``n/a`` are left out.

    Raises
    ------
    DataError
        If the column is missing, a row has no name or two rows have the same.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, delimiter="\t")
            header = list(table.fieldnames or [])
            rows = [{k: v.strip() for k, v in row.items() if k and v and v.strip() not in {"", "n/a"}} for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), hint="save it as tab-separated UTF-8") from error
    if key not in header:
        raise DataError(f"has no column {key}, but {_some(header)}", where=str(path), hint=f"add a column {key}")
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        if key not in row:
            raise DataError(f"line {number} has no {key}", where=str(path), hint="fill it in or delete the line")
        if row[key] in seen:
            raise DataError(
                f"{row[key]} stands in lines {seen[row[key]]} and {number}",
                where=str(path),
                hint="delete one of the rows",
            )
        seen[row[key]] = number
    return tuple(rows)


def index(
    bids_dir: Path,
    *,
    participants: Collection[str] | None = None,
    sessions: Collection[str] | None = None,
    exclude: Collection[str] = (),
    filters: Path | None = None,
    derivatives: Mapping[str, Path] | None = None,
    atlases: Iterable[tuple[str, Path]] = (),
    database_dir: Path | None = None,
    validate: bool = False,
) -> Dataset:
    """Read what a dataset offers.

    Parameters
    ----------
    bids_dir : Path
        BIDS dataset.
    participants, sessions : collection of str, optional
        Labels to keep, with or without ``sub-`` and ``ses-``; all by default.
    exclude : collection of str
        Participants to leave out.
    filters : Path, optional
        BIDS filter file: for any of `FILTER_KEYS` a pybids query. Unknown keys are noted.
    derivatives : mapping of str to Path, optional
        Derivative datasets that masks and tissue segmentations are read from.
    atlases : iterable of (str, Path)
        Name and label image of atlases that serve every participant.
    database_dir : Path, optional
        Where pybids keeps its index of the whole dataset between runs; it is made anew when it lacks a file.
    validate : bool
        Whether a missing or faulty dataset_description.json is an error instead of a note.

    Returns
    -------
    Dataset
        One record a session; those that cannot be processed say so in their ``problem``.

    Raises
    ------
    DataError
        If there is no such dataset or participant, participants.tsv is faulty, or no session can be processed.
    ConfigError
        If the filter file is faulty.
    """
    root = Path(bids_dir).absolute()
    named = {name: Path(path).absolute() for name, path in (derivatives or {}).items()}
    for name, path in named.items():
        if not path.is_dir():
            raise DataError(f"the derivatives {name!r} are not a folder", where=str(path), hint="check -d NAME=PATH")
    chosen = _choose(root, participants, exclude)
    notes = _describe(root, validate=validate)
    table = root / "participants.tsv"
    rows = read_rows(table, "participant_id") if table.exists() else ()
    selected, filter_notes = _filtered(root, chosen, filters, database_dir) if filters is not None else ({}, [])
    by_id = {_label(row["participant_id"], "sub-"): row for row in rows}
    wanted = None if sessions is None else {_label(session, "ses-") for session in sessions}

    trees = {"raw": _Tree(str(root)), "sourcedata": _Tree(str(root / "sourcedata"))}
    trees |= {f"derivative {name}": _Tree(str(path)) for name, path in named.items()}
    finders = [Finder(name, path) for name, path in named.items()]
    shared = given(atlases)
    for tree in trees.values():
        if Path(tree.root).is_dir():
            tree.walk(tree.root, tree.shared, deep=False)
    records: list[Session] = []
    for participant in chosen:
        found = _participant(participant, trees, finders, wanted, selected, by_id.get(participant, {}))
        records += [replace(record, atlases=(*shared, *record.atlases)) for record in found]
    if wanted is not None and not records:
        raise DataError(
            f"no participant has a session {_some(sorted(wanted))}", where=str(root), hint="check --session-label"
        )
    records = _apart(records, root)
    problems = [record.problem for record in records if record.problem is not None]
    if problems and len(problems) == len(records):
        raise problems[0]
    return Dataset(
        root=root, derivatives=named, sessions=tuple(records), participants=rows, notes=(*notes, *filter_notes)
    )


def _choose(root: Path, participants: Collection[str] | None, exclude: Collection[str]) -> list[str]:
    if not root.is_dir():
        raise DataError("no such folder", where=str(root), hint="give the folder that holds dataset_description.json")
    there = sorted({*_folders(root, "sub-"), *_folders(root / "sourcedata", "sub-")})
    if not there:
        raise DataError(
            "holds no folder sub-*", where=str(root), hint="give the folder that holds dataset_description.json"
        )
    asked = there if participants is None else sorted({_label(name, "sub-") for name in participants})
    missing = [name for name in asked if name not in there]
    if missing:
        raise DataError(
            f"no participant {_some(missing)}; there are {_some(there)}",
            where=str(root),
            hint="check --participant-label",
        )
    out = {_label(name, "sub-") for name in exclude}
    left = [name for name in asked if name not in out]
    if not left:
        raise DataError(f"all {len(asked)} participants are excluded", where=str(root), hint="exclude fewer of them")
    return left


def _describe(root: Path, *, validate: bool) -> list[str]:
    path = root / "dataset_description.json"
    try:
        content = read_json(path)
        missing = [key for key in ("Name", "BIDSVersion") if key not in content]
        if not missing:
            return []
        problem = DataError(f"has no {' and no '.join(missing)}", where=str(path), hint="add what BIDS requires")
    except DataError as error:
        problem = error
    if validate:
        raise problem
    return [f"{path.name}: {problem.what}"]


def _participant(
    participant: str,
    trees: Mapping[str, _Tree],
    finders: Sequence[Finder],
    wanted: Collection[str] | None,
    selected: Mapping[str, Collection[str]],
    row: Mapping[str, str],
) -> list[Session]:
    for tree in trees.values():
        tree.files = []
        folder = Path(tree.root, participant)
        if folder.is_dir():
            tree.walk(str(folder), tree.files)
    own = [*trees["raw"].files, *trees["sourcedata"].files]
    named = sorted({_label(file.entities["ses"], "ses-") for file in own if "ses" in file.entities})
    kept = [label for label in named if wanted is None or label in wanted]
    labels: Sequence[str | None] = kept if named or wanted is not None else [None]
    path = Path(trees["raw"].root) / participant / f"{participant}_sessions.tsv"
    problem: DataError | None = None
    times: dict[str, dict[str, str]] = {}
    if path.exists():
        try:
            times = {_label(entry["session_id"], "ses-"): entry for entry in read_rows(path, "session_id")}
        except DataError as error:
            problem = error
    records = []
    for label in labels:
        columns = times.get(label or "", {})
        record = Session(
            participant_id=participant, session_id=label, participant=row, columns=columns, problem=problem
        )
        if problem is None:
            try:
                record = _Reader(trees, finders, participant, label, selected).read(record)
            except DataError as error:
                record = replace(record, problem=error)
        records.append(record)
    if any(record.problem or record.sodium or record.kspace for record in records):
        return records
    images = [file.name for file in own if file.extension in _IMAGES]
    nothing = DataError(
        f"no sodium image among {len(images)} images ({_some(images, 4)})",
        where=str(Path(trees["raw"].root) / participant),
        hint="state ResonantNucleus 23Na in its sidecar, or name it acq-23Na",
    )
    return [replace(record, problem=nothing) for record in records]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_sodium(file: _File, sidecar: Mapping[str, Any], *, claimed: bool = False) -> bool:
    """Tell whether an image is of sodium, and refuse one whose own metadata contradict each other."""
    stated = sidecar.get("ResonantNucleus", sidecar.get("ImagedNucleus"))
    stated = stated[0] if isinstance(stated, (list, tuple)) and stated else stated
    nucleus = None if stated is None else str(stated).strip().lower() in {"23na", "na", "na23", "23-na", "sodium"}
    frequency, field_t = _number(sidecar.get("ImagingFrequency")), _number(sidecar.get("MagneticFieldStrength"))
    ratio = frequency / field_t if frequency and field_t else None
    tuned = None if ratio is None else _MHZ_T_OF_SODIUM[0] <= ratio <= _MHZ_T_OF_SODIUM[1]
    named = file.datatype == "sodium" or any(is_sodium_label(file.entities.get(key, "")) for key in ("acq", "nuc"))
    claim = claimed or nucleus is True or (named and nucleus is not False)
    if named and nucleus is False:
        raise DataError(
            f"is named as sodium but its sidecar states the nucleus {stated!r}",
            where=file.path,
            hint="rename it, or set ResonantNucleus to 23Na",
        )
    if claim and tuned is False and ratio is not None:
        of = ", that of 1H" if abs(ratio - PROTON_GAMMA_BAR_MHZ_T) < 0.5 else ""
        raise DataError(
            f"is given as sodium but was acquired at {frequency:g} MHz and {field_t:g} T: {ratio:.2f} MHz/T{of}; "
            f"sodium has {GAMMA_BAR_MHZ_T:.2f}",
            where=file.path,
            hint="correct ImagingFrequency or MagneticFieldStrength, or do not call the image sodium",
        )
    return claim or (nucleus is None and tuned is True)


def _check_sodium(scan: Scan) -> None:
    """Refuse a sodium scan whose sidecar cannot carry a calibration."""
    where = str(scan.path)
    tr_s = scan.sidecar.get("RepetitionTime")
    header_may_say = scan.path.suffix in {".h5", ".hdf5", ".mrd", ".dat"}
    if (tr_s is None and not header_may_say) or (tr_s is not None and not (_number(tr_s) or 0.0) > 0.0):
        raise DataError(
            "has no RepetitionTime" if tr_s is None else f"has the RepetitionTime {tr_s!r}",
            where=where,
            hint="state RepetitionTime in s in its sidecar",
        )
    calibration = scan.sidecar.get("SodiumCalibration")
    if calibration is None:
        return
    vials = calibration.get("Phantoms") if isinstance(calibration, Mapping) else None
    if not isinstance(vials, list) or not all(isinstance(vial, Mapping) for vial in vials):
        raise DataError(
            "SodiumCalibration holds no list Phantoms of objects",
            where=where,
            hint='write {"Phantoms": [{"Label": "phantom40", "Concentration": 40, "Units": "mmol/L"}]}',
        )
    for vial in vials:
        if not (_number(vial.get("Concentration")) or 0.0) > 0.0:
            raise DataError(
                f"SodiumCalibration of {vial.get('Label', 'a vial')} has Concentration {vial.get('Concentration')!r}",
                where=where,
                hint="write a positive number in mmol/L, without quotes",
            )


def hours_per(units: str, where: str) -> float:
    """Return how many hours one unit of the time after onset has.

    Parameters
    ----------
    units : str
        As the sidecar states them.
    where : str
        The table, for the message.

    Raises
    ------
    DataError
        If the units are unknown.

    Examples
    --------
    >>> hours_per("d", "group_tsc.tsv")
    24.0
    """
    factor = _HOURS.get(units.strip().lower())
    if factor is None:
        raise DataError(
            f"onset_to_scan_h has the units {units!r}",
            where=where,
            hint=f"use one of {', '.join(_HOURS)} in the sidecar",
        )
    return factor


def onset_h(columns: Mapping[str, str], where: str, units: str = "h") -> float | None:
    """Return the time from stroke onset to the scan, in hours.

    Parameters
    ----------
    columns : mapping of str to str
        Row of the sessions table.
    where : str
        The table, for the message.
    units : str
        Units of the column, as its sidecar states them.

    Raises
    ------
    DataError
        If the time is no number, its units are unknown, or it is not after onset or later than two years.

    Examples
    --------
    >>> onset_h({"onset_to_scan_h": "90"}, "sub-01_sessions.tsv", "min")
    1.5
    """
    text = columns.get("onset_to_scan_h")
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"onset_to_scan_h is {text!r}", where=where, hint="write a number of hours, or n/a") from None
    hours = value * hours_per(units, where)
    if not 0.0 < hours < _MOST_HOURS:
        raise DataError(
            f"onset_to_scan_h is {text} {units}, a scan {hours:g} h after onset",
            where=where,
            hint="times are after onset and below two years; state other units (min, d) in the sidecar, or write n/a",
        )
    return hours


def onset_units(path: Path) -> str:
    """Return the units of the time after onset that the sidecar of a sessions table, or of the dataset, states.

    Parameters
    ----------
    path : Path
        ``sub-<label>_sessions.tsv``.
    """
    for sidecar in (path.with_suffix(".json"), path.parent.parent / "sessions.json"):
        if sidecar.is_file():
            entry = read_json(sidecar).get("onset_to_scan_h")
            if isinstance(entry, Mapping) and entry.get("Units"):
                return str(entry["Units"])
    return "h"


@dataclass(slots=True)
class _Reader:
    """Sorts the files of one session into its record."""

    trees: Mapping[str, _Tree]
    finders: Sequence[Finder]
    participant: str
    label: str | None
    selected: Mapping[str, Collection[str]]
    notes: list[str] = field(default_factory=list)

    def read(self, blank: Session) -> Session:
        raw = [file for file in self.trees["raw"].files if self._mine(file)]
        images = [file for file in raw if file.extension in _IMAGES]
        anatomical = [
            self._scan(file)
            for file in images
            if file.datatype in {"anat", "sodium"} and file.suffix not in _NOT_IMAGES
        ]
        kinds = [
            (scan, _is_sodium(file, scan.sidecar, claimed=self._asked("sodium", file))) for file, scan in anatomical
        ]
        proton = [scan for scan, sodium in kinds if not sodium]
        everything = [scan for scan, sodium in kinds if sodium]
        sodium, reference = self._sodium(everything)
        kspace = self._kspace(everything, sodium)
        source = kspace or sodium
        if source is not None:
            _check_sodium(source)
        pick = self._pick
        heads = [s for s in proton if _of(s, "PDT2", "PDw", "T2w") and _HEAD_COIL.search(s.entities.get("acq", ""))]
        bodies = [s for s in proton if _of(s, "PDT2", "PDw", "T2w") and _BODY_COIL.search(s.entities.get("acq", ""))]
        plain = [s for s in proton if s not in bodies]
        t1w = pick("t1w", [s for s in plain if _of(s, "T1w")] or [s for s in plain if _of(s, "UNIT1")])
        anatomy = None
        for suffix in _ANATOMY:
            anatomy = anatomy or pick("anatomy", [s for s in plain if _of(s, suffix)])
        columns = {**blank.columns}
        onset = {**blank.participant, **columns}
        session = replace(
            blank,
            sodium=sodium,
            sodium_reference=reference,
            sodium_echoes=_echoes(sodium, everything),
            kspace=kspace,
            fieldmap=pick("fieldmap", [self._scan(file)[1] for file in images if file.suffix == "fieldmap"]),
            t1w=t1w,
            flair=pick("flair", [s for s in plain if _of(s, "FLAIR")]),
            t2w=pick("t2w", [s for s in plain if _of(s, "T2w")]),
            pdt2_body=pick("pdt2_body", bodies),
            pdt2_head=pick("pdt2_head", heads or [s for s in plain if _of(s, "PDT2")]),
            anatomy=t1w or anatomy,
            dwi=pick(
                "dwi", [self._diffusion(file) for file in images if file.datatype == "dwi" and file.suffix == "dwi"]
            ),
            adc=pick("adc", [self._scan(file)[1] for file in images if file.suffix == "ADC"]),
            tb1map=self._map(images, "TB1map"),
            rb1map=self._map(images, "RB1map"),
            tb1_angles=self._angles(images),
            masks=self._masks(),
            segmentations=() if t1w is None else self._segmentations(t1w),
            atlases=() if t1w is None else self._atlases(),
            transforms={} if t1w is None else self._transforms(),
            onset_to_scan_h=onset_h(
                onset,
                f"{self.participant}_sessions.tsv",
                onset_units(Path(self.trees["raw"].root, self.participant, f"{self.participant}_sessions.tsv")),
            ),
            notes=tuple(self.notes),
        )
        dangling = set().union(*(tree.dangling for tree in self.trees.values()))
        given = [scan.path for scan in session.scans if str(scan.path) in dangling]
        given += [path for found in session.segmentations for path in found.paths if not path.exists()]
        for path in given:
            raise DataError(
                "the file is a link whose content is not here",
                where=str(path),
                hint="fetch it first, for example with 'datalad get' or 'git annex get'",
            )
        return session

    def _mine(self, file: _File) -> bool:
        own = file.entities.get("ses")
        return (None if own is None else _label(own, "ses-")) == self.label

    def _asked(self, key: str, file: _File) -> bool:
        return file.path in self.selected.get(key, ())

    def _scan(self, file: _File, tree: str = "raw") -> tuple[_File, Scan]:
        entities = {**file.entities, "suffix": file.suffix, "datatype": file.datatype}
        return file, Scan(Path(file.path), entities, self.trees[tree].metadata(file))

    def _pick(self, key: str, scans: Sequence[Scan]) -> Scan | None:
        """Return the plainest scan: fewest entities, lowest run and echo; say so when there was a choice."""
        if key in self.selected:
            scans = [scan for scan in scans if str(scan.path) in self.selected[key]]
        scans = [scan for scan in scans if scan.entities.get("part", "mag") == "mag"]
        if not scans:
            return None
        ordered = sorted(scans, key=_plainness)
        if len(ordered) > 1:
            others = _some([scan.path.name for scan in ordered[1:]], 3)
            self.notes.append(f"{ordered[0].path.name} was taken for {key}; not used: {others}")
        return ordered[0]

    def _sodium(self, scans: Sequence[Scan]) -> tuple[Scan | None, Scan | None]:
        scans = [scan for scan in scans if (_echoes(scan, scans) or (scan,))[0] is scan]
        volume = [scan for scan in scans if _from_volume_coil(scan)]
        array = [scan for scan in scans if scan not in volume]
        if not array:
            return self._pick("sodium", volume), None
        sodium = self._pick("sodium", array)
        if sodium is None:
            return self._pick("sodium", volume), None
        return sodium, next(iter(sorted(volume, key=_plainness)), None)

    def _kspace(self, images: Sequence[Scan], sodium: Scan | None) -> Scan | None:
        stems = {scan.path.name.partition(".")[0]: scan for scan in images}
        found = []
        for file in self.trees["sourcedata"].files:
            if file.extension not in _RAW_DATA or not self._mine(file):
                continue
            twin = stems.get(file.name.partition(".")[0])
            scan = self._scan(file, "sourcedata")[1]
            sidecar = {**({} if twin is None else twin.sidecar), **scan.sidecar}
            if twin is not None or _is_sodium(file, sidecar, claimed=self._asked("kspace", file)):
                size = 0 if file.path in self.trees["sourcedata"].dangling else Path(file.path).stat().st_size
                found.append(replace(scan, sidecar=sidecar, size_bytes=size, beside=_beside(file, sidecar)))
        array = [scan for scan in found if not _from_volume_coil(scan)] or found
        same = [scan for scan in array if sodium is not None and _stem(scan) == _stem(sodium)]
        return self._pick("kspace", same or array)

    def _diffusion(self, file: _File) -> Scan:
        scan = self._scan(file)[1]
        tables = {name: self.trees["raw"].applying(file, f".{name}") for name in ("bval", "bvec")}
        paths = {name: Path(files[-1].path) if files else None for name, files in tables.items()}
        return replace(scan, bval=paths["bval"], bvec=paths["bvec"])

    def _map(self, images: Iterable[_File], suffix: str) -> Scan | None:
        pairs = [self._scan(file) for file in images if file.suffix == suffix]
        return self._pick(suffix, [scan for file, scan in pairs if _is_sodium(file, scan.sidecar)])

    def _angles(self, images: Iterable[_File]) -> dict[str, tuple[Scan, ...]]:
        """Return pairs of images at two flip angles; a part that is no pair is left out and told."""
        found: dict[str, list[Scan]] = {}
        for file, scan in (self._scan(file) for file in images if file.suffix == "TB1DAM"):
            if _is_sodium(file, scan.sidecar):
                found.setdefault(scan.entities.get("part", "mag"), []).append(scan)
        pairs = {part: tuple(sorted(scans, key=lambda s: s.entities.get("flip", ""))) for part, scans in found.items()}
        for part, scans in pairs.items():
            if len(scans) != 2:
                self.notes.append(f"{len(scans)} {part} images of a transmit measurement (TB1DAM), not 2: left out")
        return {part: scans for part, scans in pairs.items() if len(scans) == 2}

    def _masks(self) -> dict[str, tuple[Scan, ...]]:
        masks: dict[str, list[Scan]] = {}
        for name, tree in self.trees.items():
            if not name.startswith("derivative "):
                continue
            for file in tree.files:
                if file.extension not in _IMAGES or not ("ses" not in file.entities or self._mine(file)):
                    continue
                space = file.entities.get("space", "")
                if file.suffix != "mask":
                    continue
                if not _STANDARD_SPACE.match(space):
                    key = next((file.entities[key] for key in ("label", "desc") if key in file.entities), file.suffix)
                    masks.setdefault(key, []).append(self._scan(file, name)[1])
                elif "label" in file.entities:
                    self.notes.append(f"{file.name} lies in {space} and is not used: draw it on an image of the person")
        return {key: tuple(_nearest(scans)) for key, scans in sorted(masks.items())}

    def _segmentations(self, t1w: Scan) -> tuple[External, ...]:
        found = (finder.find(self.participant, self.label, t1w.entities) for finder in self.finders)
        return tuple(external for external in found if external is not None)

    def _transforms(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for name, tree in self.trees.items():
            for file in tree.files if name.startswith("derivative ") else ():
                frame = file.entities.get("from", "")
                if file.suffix != "xfm" or file.entities.get("to") != "T1w" or file.extension not in _TRANSFORMS:
                    continue
                # from-orig is fMRIPrep's own step, which its segmentation is read with
                if self._mine(file) and frame not in {"", "orig", "T1w"}:
                    found.setdefault("23Na" if is_sodium_label(frame) else frame, Path(file.path))
        return found

    def _atlases(self) -> tuple[Atlas, ...]:
        own: dict[str, Atlas] = {}
        for name, tree in self.trees.items():
            for file in tree.files if name.startswith("derivative ") else ():
                label = file.entities.get("atlas")
                here = "ses" not in file.entities or self._mine(file)
                if label is None or not here or file.suffix != "dseg" or file.extension not in _IMAGES:
                    continue
                if file.entities.get("space", "T1w") == "T1w":
                    (atlas,) = given([(label, Path(file.path))])
                    own.setdefault(label, replace(atlas, space="T1w", note=""))
        return tuple(own.values())


def _of(scan: Scan, *suffixes: str) -> bool:
    return scan.entities["suffix"] in suffixes


def _stem(scan: Scan) -> str:
    return scan.path.name.partition(".")[0]


def _nearest(scans: Sequence[Scan]) -> list[Scan]:
    """Return the session's own files, or the participant's where it has none, plainest first."""
    own = [scan for scan in scans if "ses" in scan.entities]
    return sorted(own or scans, key=_plainness)


def _beside(file: _File, sidecar: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the files that a sidecar names for its raw data and that are there; reading says which are not."""
    names: list[str] = []
    for key in _BESIDE_RAW_DATA:
        value = sidecar.get(key, ())
        names += [value] if isinstance(value, str) else [str(name) for name in value if isinstance(name, str)]
    paths = [Path(file.folder, name) for name in names]
    return tuple(path for path in paths if path.is_file())


def _echoes(first: Scan | None, scans: Sequence[Scan]) -> tuple[Scan, ...]:
    """Return the scans that differ from the chosen one in their echo alone, in order."""
    if first is None or "echo" not in first.entities:
        return ()

    def apart(scan: Scan) -> dict[str, str]:
        return {key: value for key, value in scan.entities.items() if key != "echo"}

    same = [scan for scan in scans if "echo" in scan.entities and apart(scan) == apart(first)]
    return tuple(sorted(same, key=_plainness)) if len(same) > 1 else ()


def _plainness(scan: Scan) -> tuple[int, int, int, int, str]:
    entities = scan.entities
    numbers = [int(entities[key]) if entities.get(key, "").isdigit() else 0 for key in ("run", "echo")]
    return ("rec" in entities, len(entities), *numbers, scan.path.name)  # type: ignore[return-value]


def _from_volume_coil(scan: Scan) -> bool:
    coil = str(scan.sidecar.get("ReceiveCoilName", ""))
    return any(_VOLUME_COIL.search(text) is not None for text in (scan.entities.get("acq", ""), coil))


def _apart(records: Sequence[Session], root: Path) -> list[Session]:
    """Mark sessions whose names differ in case only: their outputs would overwrite each other on some disks."""
    names: dict[str, list[str]] = {}
    for record in records:
        names.setdefault(record.unit.lower(), []).append(record.unit)
    marked = []
    for record in records:
        same = names[record.unit.lower()]
        if len(same) > 1:
            problem = DataError(
                f"{' and '.join(same)} differ only in upper and lower case",
                where=str(root / record.participant_id),
                hint="rename one of them",
            )
            record = replace(record, problem=problem)  # noqa: PLW2901 - the marked copy stands for the record
        marked.append(record)
    return marked


def _filtered(
    root: Path, chosen: Sequence[str], filters: Path, database_dir: Path | None
) -> tuple[dict[str, set[str]], list[str]]:
    """Answer the queries of a filter file with pybids: the paths that each key may take."""
    try:
        content = read_json(filters)
    except DataError as error:
        raise ConfigError(error.what, where=str(filters), hint="give a BIDS filter file") from error
    known = {key.lower(): query for key, query in content.items() if key.lower() in FILTER_KEYS}
    notes = [f"{filters.name}: the key {key!r} is not used" for key in content if key.lower() not in known]
    for key, query in known.items():
        if not isinstance(query, dict):
            raise ConfigError(
                f"{key} is {query!r}, not an object", where=str(filters), hint='write {"acquisition": "23Na"}'
            )
    if not known:
        return {}, notes
    from bids.layout import Query

    layout = _pybids(root, chosen, database_dir)
    special: dict[Any, Any] = {None: Query.NONE, "Query.NONE": Query.NONE, "*": Query.ANY, "Query.ANY": Query.ANY}
    answers: dict[str, set[str]] = {}
    for key, query in known.items():
        entities = {
            _LONG.get(name, name): special.get(value, value) if isinstance(value, (str, type(None))) else value
            for name, value in query.items()
        }
        entities.setdefault("extension", [*(_RAW_DATA if key == "kspace" else _IMAGES)])
        try:
            answers[key] = {str(path) for path in layout.get(return_type="filename", **entities)}
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"pybids does not understand the query of {key} ({error})",
                where=str(filters),
                hint="check its entities",
            ) from error
    return answers, notes


def _pybids(root: Path, chosen: Sequence[str], database_dir: Path | None) -> Any:
    """Index the chosen participants, or the whole dataset where the index is kept for other runs."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer
    from bids.layout.models import BIDSFile

    ignored = [re.compile(r"^/(?:derivatives|code|models|stimuli)(?:/|$)")]
    if database_dir is None:
        kept = "|".join(re.escape(name) for name in chosen)
        ignored.append(re.compile(rf"^/(?:sourcedata/)?(?=sub-)(?!(?:{kept})(?:/|$))"))
    indexer = BIDSLayoutIndexer(validate=False, ignore=ignored, index_metadata=True)
    layout = BIDSLayout(root, validate=False, indexer=indexer, database_path=database_dir)
    if database_dir is not None:
        known = {path for (path,) in layout.session.query(BIDSFile.path)}
        tree = _Tree(str(root))
        for folder in (*(root / name for name in chosen), *(root / "sourcedata" / name for name in chosen)):
            if folder.is_dir():
                tree.walk(str(folder), tree.files)
        if any(file.path not in known for file in tree.files):
            layout = BIDSLayout(root, validate=False, indexer=indexer, database_path=database_dir, reset_database=True)
    return layout
