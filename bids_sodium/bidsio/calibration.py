"""Tables that calibrate sessions: the vials of a study, and a travelling phantom's factors of scanners.

What they say of a session goes into the metadata of its sodium scan, so that everything after reads one place.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_sodium.bidsio.layout import Dataset, Session
from bids_sodium.core.errors import DataError
from bids_sodium.image.phantoms import phantoms
from bids_sodium.image.scanners import ScannerFactor, scanner_factors

__all__ = ["FACTOR_KEY", "calibrated_by", "scanner_of"]

FACTOR_KEY = "SodiumScannerFactor"
"""Key of a sodium scan's metadata that holds the factor of its scanner."""

_NAMES = {
    "label": "Label",
    "concentration": "Concentration",
    "units": "Units",
    "inner_diameter": "InnerDiameter",
    "t1": "T1",
    "t2star": "T2star",
}
_WHOSE = ("participant_id", "session_id", "site", "scanner")
_DEVICES = ("DeviceSerialNumber", "StationName", "ManufacturersModelName")


def calibrated_by(dataset: Dataset, *, vials: Path | None = None, scanners: Path | None = None) -> Dataset:
    """Return the dataset with what the tables say in the metadata of its sodium scans.

    Parameters
    ----------
    dataset : Dataset
        Sessions.
    vials : Path, optional
        Table with a row a vial: ``concentration`` (mmol/L) and, where they are known, ``label``, ``inner_diameter``
        (mm), ``t1``, ``t2star`` (s). Columns ``participant_id``, ``session_id``, ``site`` or ``scanner`` limit a row to
        those it names. It goes before the sidecars.
    scanners : Path, optional
        Table of a travelling phantom, see `scanner_factors`. A session's scanner is its ``scanner`` or ``site`` in the
        tables of sessions and participants, else its device in the sidecar.

    Returns
    -------
    Dataset
        Sessions; one whose scanner is not in the table has a ``problem``.

    Raises
    ------
    DataError
        If a table cannot be used.
    EstimationError
        If the readings do not determine the factors.
    """
    if vials is None and scanners is None:
        return dataset
    rows = None if vials is None else _rows(vials)
    factors = None if scanners is None else scanner_factors(_rows(scanners), where=scanners.name)
    return replace(
        dataset,
        sessions=tuple(
            session if session.problem is not None else _calibrated(session, rows, vials, factors, scanners)
            for session in dataset.sessions
        ),
    )


def scanner_of(session: Session) -> str | None:
    """Return the name of a session's scanner, ``None`` where nothing tells it."""
    for columns in (session.columns, session.participant):
        for key in ("scanner", "site"):
            if columns.get(key):
                return str(columns[key])
    scan = session.kspace or session.sodium
    found = (str(scan.sidecar[key]) for key in _DEVICES if scan is not None and scan.sidecar.get(key))
    return next(found, None)


def _rows(path: Path) -> list[dict[str, str]]:
    """Read a table as text; cells that are empty or ``n/a`` are left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            found = [
                {key: value.strip() for key, value in row.items() if key and value and value.strip() not in {"", "n/a"}}
                for row in csv.DictReader(lines, delimiter="\t")
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), hint="save it as tab-separated UTF-8") from error
    if not found:
        raise DataError("the table has no rows", where=str(path), hint="separate columns by tabs, names in line 1")
    return found


def _calibrated(
    session: Session,
    rows: list[dict[str, str]] | None,
    vials: Path | None,
    factors: Mapping[str, ScannerFactor] | None,
    scanners: Path | None,
) -> Session:
    scan = session.kspace or session.sodium
    if scan is None:
        return session
    added: dict[str, Any] = {}
    try:
        if rows is not None and vials is not None:
            own = [_entry(row) for row in rows if _of(row, session)]
            if not own:
                raise DataError(f"no row for {session.unit}", where=vials.name, hint="add its vials")
            phantoms(own, where=vials.name)
            added["SodiumCalibration"] = {"Phantoms": own}
        if factors is not None and scanners is not None:
            added[FACTOR_KEY] = _factor(session, factors, scanners)
    except DataError as error:
        return replace(session, problem=error)
    return replace(
        session,
        kspace=None if session.kspace is None else replace(session.kspace, sidecar={**session.kspace.sidecar, **added}),
        sodium=None if session.sodium is None else replace(session.sodium, sidecar={**session.sodium.sidecar, **added}),
    )


def _factor(session: Session, factors: Mapping[str, ScannerFactor], scanners: Path) -> dict[str, Any]:
    name = scanner_of(session)
    if name is None or name not in factors:
        raise DataError(
            f"{session.unit} was scanned on {name or 'a scanner that nothing names'}, the table has "
            f"{', '.join(sorted(factors))}",
            where=scanners.name,
            hint="add the scanner, or a column scanner or site to participants.tsv",
        )
    factor = factors[name]
    return {
        "Scanner": factor.scanner,
        "Factor": factor.factor,
        "StandardError": factor.se,
        "Readings": factor.n,
        "Source": factor.source,
    }


def _of(row: Mapping[str, str], session: Session) -> bool:
    """Tell whether a row is for a session; an empty cell is for all."""
    own = {
        "participant_id": session.participant_id.removeprefix("sub-"),
        "session_id": (session.session_id or "").removeprefix("ses-"),
        "site": session.columns.get("site", session.participant.get("site", "")),
        "scanner": scanner_of(session) or "",
    }
    for key, value in own.items():
        stated = row.get(key)
        if stated is not None and stated.removeprefix("sub-").removeprefix("ses-") != value:
            return False
    return True


def _entry(row: Mapping[str, str]) -> dict[str, str]:
    """Return a row as an entry of a sidecar's Phantoms."""
    return {name: row[key] for key, name in _NAMES.items() if key in row}
