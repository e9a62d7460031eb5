"""Participants' tables and the dataset's clinical tables → one long table.

Every tissue and region row is joined with participants.tsv, the sessions' tables, phenotype and the brain fractions of
the quality tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_sodium.bidsio.files import read_json, read_table, write_table
from bids_sodium.bidsio.layout import hours_per, onset_h, onset_units
from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import FATE, GROUP_TSC, QC, RATERS, ROI_TSC, TISSUE_TSC, Table

if TYPE_CHECKING:
    from pandas import DataFrame, Series


__all__ = ["beside_group_table", "gather", "group_table", "write_group_table"]

_FRACTIONS = ("bpf", "gmf", "wmf", "tiv_ml", "t2lv_ml", "t1lv_ml")
_CSF = ("csf_sensitivity_CGM", "csf_sensitivity_DGM", "csf_sensitivity_NAWM")
_SCANNER = "scanner_factor"
_ONE_ROW = ["participant_id", "session_id"]
_BESIDE: Mapping[str, tuple[str, Table]] = {
    "cells": ("fate", FATE),
    "raters": ("raters", RATERS),
}


def group_table(output: Path, bids_dir: Path) -> tuple[DataFrame, dict[str, Any], list[tuple[str, str]]]:
    """Return the long table that the group level works on, the dictionary of its columns, and what was left out of it.

    Participants' outputs are gathered anew; where there are none, ``group_tsc.tsv`` of the output or of the dataset
    stands for them, so that a consortium can share tables instead of images.

    Raises
    ------
    DataError
        If there is neither, or the table lacks columns.
    """
    if any(output.glob("sub-*/**/*_acq-23Na_desc-qc_tsc.tsv")):
        return gather(output, bids_dir)
    for folder in (output, bids_dir):
        path = folder / "group_tsc.tsv"
        if path.is_file():
            table, dictionary = _given(path)
            GROUP_TSC.require(table.columns, where=str(path), columns=("participant_id",))
            return table, dictionary, []
    raise DataError(
        "no participant-level tables and no group_tsc.tsv",
        where=str(output),
        hint="run the participant level first, or put group_tsc.tsv into the output or the dataset folder",
    )


def _given(path: Path, schema: Table | None = None) -> tuple[DataFrame, dict[str, Any]]:
    """Return a group table that somebody made, times in hours whatever its sidecar states, and that sidecar."""
    import pandas as pd

    table = read_table(path, schema=schema)
    sidecar = path.with_suffix(".json")
    dictionary = read_json(sidecar) if sidecar.is_file() else {}
    entry = dictionary.get("onset_to_scan_h")
    units = str(entry.get("Units") or "h") if isinstance(entry, Mapping) else "h"
    factor = hours_per(units, str(sidecar))
    # a column that is no number is refused where it is needed
    if factor != 1.0 and "onset_to_scan_h" in table and pd.api.types.is_numeric_dtype(table["onset_to_scan_h"]):
        table["onset_to_scan_h"] = table["onset_to_scan_h"] * factor
    return table, dictionary


def gather(output: Path, bids_dir: Path) -> tuple[DataFrame, dict[str, Any], list[tuple[str, str]]]:
    """Join the tables of all participants with what is known about them.

    Parameters
    ----------
    output : Path
        Output of the participant level.
    bids_dir : Path
        Dataset with participants.tsv, sessions and phenotype tables.

    Returns
    -------
    table : DataFrame
        One row a tissue and method, or a region and contrast; columns of `GROUP_TSC` first.
    dictionary : dict
        Meaning and units of the further columns.
    left_out : list of (str, str)
        Phenotype tables that could not be joined, and why: the analyses that need them are left out, the others done.

    Raises
    ------
    DataError
        If no row is found, or participants.tsv or a sessions table has no key or a key twice.
    """
    import pandas as pd

    parts = []
    for ending, schema in (("tissue", TISSUE_TSC), ("roi", ROI_TSC)):
        paths = sorted(output.glob(f"sub-*/**/anat/*_acq-23Na_desc-{ending}_tsc.tsv"))
        parts += [read_table(path, schema=schema) for path in paths]
    if not parts:
        raise DataError(
            "the participant level wrote no tissue or region table",
            where=str(output),
            hint="read the participants' reports: they say what was left out and why",
        )
    table = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    for name in _ONE_ROW:
        table[name] = table[name].astype(object) if name in table else None
    dictionary: dict[str, Any] = {}
    quality = _quality(output)
    fractions = quality.drop(columns=_SCANNER, errors="ignore")
    fractions = fractions[fractions.drop(columns=_ONE_ROW).notna().any(axis=1)]
    if not fractions.empty:
        one = fractions.drop_duplicates("participant_id", keep="last").drop(columns="session_id")
        table = table.merge(one, on="participant_id", how="left")
    if _SCANNER in quality:
        table = table.merge(quality[[*_ONE_ROW, _SCANNER]].astype({"session_id": object}), on=_ONE_ROW, how="left")
    left_out: list[tuple[str, str]] = []
    for path, keys in _clinical(bids_dir):
        try:
            table = _joined(table, path, keys, dictionary)
        except DataError as error:
            if path.parent.name != "phenotype":
                raise
            left_out.append((f"phenotype/{path.name}", error.what))
    columns = [*GROUP_TSC.names, *(c for c in table.columns if c not in GROUP_TSC.names)]
    return table.reindex(columns=columns), dictionary, left_out


def _quality(output: Path) -> DataFrame:
    """Return what the quality tables say of brain fractions, the CSF partition and the scanner's factor.

    These are the fractions, how far the partition moves with the concentration that it takes for CSF, and the factor of
    a travelling phantom that is in the concentrations. All sessions of a participant share one segmentation.
    """
    import pandas as pd

    rows = []
    for path in sorted(output.glob("sub-*/**/anat/*_acq-23Na_desc-qc_tsc.tsv")):
        quality = read_table(path, schema=QC)
        found = quality[quality["measure"].isin([*_FRACTIONS, *_CSF, _SCANNER])]
        if not found.empty:
            ids = {name: found[name].iloc[0] for name in _ONE_ROW}
            rows.append({**ids, **dict(zip(found["measure"], found["value"], strict=True))})
    table = pd.DataFrame(rows, columns=[*_ONE_ROW, *_FRACTIONS, *_CSF, _SCANNER])
    unseen = [name for name in (*_CSF, _SCANNER) if table[name].isna().all()]
    return table.drop(columns=unseen).rename(columns=str.lower)


def _clinical(bids_dir: Path) -> list[tuple[Path, list[str]]]:
    found: list[tuple[Path, list[str]]] = []
    if (bids_dir / "participants.tsv").is_file():
        found.append((bids_dir / "participants.tsv", ["participant_id"]))
    found += [(path, _ONE_ROW) for path in sorted(bids_dir.glob("sub-*/sub-*_sessions.tsv"))]
    found += [(path, ["participant_id"]) for path in sorted((bids_dir / "phenotype").glob("*.tsv"))]
    return found


def _joined(table: DataFrame, path: Path, keys: list[str], dictionary: dict[str, Any]) -> DataFrame:
    import pandas as pd

    extra = read_table(path)
    if path.name.endswith("_sessions.tsv"):
        extra["participant_id"] = path.parent.name
        extra = _at_scans(_in_hours(extra, path), table)
    elif "session_id" in extra and extra["session_id"].notna().any():
        keys = _ONE_ROW
    missing = [key for key in keys if key not in extra]
    if missing:
        raise DataError(
            f"no column {', '.join(missing)}, found {', '.join(extra.columns)}",
            where=str(path),
            hint="BIDS keys phenotype tables by participant_id",
        )
    twice = extra[extra.duplicated(keys, keep=False)]
    if not twice.empty:
        sizes = twice.groupby(keys, sort=False).size()
        first = " ".join(str(twice.iloc[0][key]) for key in keys)
        others = f" ({len(sizes)} have several)" if len(sizes) > 1 else ""
        raise DataError(
            f"{first} has {int(sizes.iloc[0])} rows{others}",
            where=str(path),
            hint="keep one row for each participant (and session)",
        )
    if not path.name.endswith("_sessions.tsv"):
        _require_known(extra, table, path)
    sidecar = path.with_suffix(".json")
    known = read_json(sidecar) if sidecar.is_file() else {}
    if "sex" in extra and isinstance(known.get("sex"), Mapping):
        extra["sex"] = _in_words(extra["sex"], known["sex"].get("Levels", {}))
    columns = [column for column in extra.columns if column not in keys]
    dictionary.update({column: known[column] for column in columns if isinstance(known.get(column), Mapping)})
    fresh = [column for column in columns if column not in table]
    shared = [column for column in columns if column in table]
    merged = table.merge(extra[[*keys, *columns]], on=keys, how="left", suffixes=("", "__new"))
    for column in shared:
        new = merged.pop(f"{column}__new")
        merged[column] = merged[column].where(merged[column].notna(), new)
    return merged if fresh or shared else pd.DataFrame(merged)


def _require_known(extra: DataFrame, table: DataFrame, path: Path) -> None:
    """Refuse a table of people of whom nobody has an output: its ids are written in another way."""
    theirs = list(dict.fromkeys(extra["participant_id"].astype(str)))
    ours = list(dict.fromkeys(table["participant_id"].astype(str)))
    if theirs and not set(theirs) & set(ours):
        raise DataError(
            f"none of its {len(theirs)} participants (the first is {theirs[0]}) is among the {len(ours)} with outputs "
            f"(the first is {ours[0]})",
            where=str(path),
            hint="write participant_id as the folders are named, sub-01",
        )


def _in_hours(sessions: DataFrame, path: Path) -> DataFrame:
    """Return a sessions table with the time after onset in hours, missing where it cannot be."""
    if "onset_to_scan_h" not in sessions:
        return sessions
    units = onset_units(path)

    def hours(value: Any) -> float | None:
        try:
            return onset_h({"onset_to_scan_h": str(value)}, path.name, units)
        except DataError:
            return None  # the participant level has refused the session and said why

    known = sessions["onset_to_scan_h"].notna()
    return sessions.assign(onset_to_scan_h=sessions["onset_to_scan_h"].map(hours).where(known).astype(float))


def _at_scans(sessions: DataFrame, table: DataFrame) -> DataFrame:
    """Give scores of visits without a scan, such as the Rankin scale at three months, to the participant's scans.

    Only columns that no visit with a scan fills: a score that was taken at scans, too, belongs to its visit.
    """
    own = table[table["participant_id"].isin(sessions["participant_id"])]
    scanned = sessions["session_id"].isin(own["session_id"])
    if scanned.all() or not scanned.any():
        return sessions
    filled = sessions.copy()
    for column in filled.columns.difference(["participant_id", "session_id", "onset_to_scan_h"]):
        values = filled[column]
        if values[scanned].isna().all() and values.notna().any():
            filled[column] = values.where(values.notna(), values.dropna().iloc[-1])
    return filled


def beside_group_table(output: Path, bids_dir: Path) -> dict[str, DataFrame]:
    """Return the tables that do not fit into the long one, and write them beside it.

    Parameters
    ----------
    output, bids_dir : Path
        As for `gather`; where no participant has such a table, the group's own of the output or dataset stands for it.

    Returns
    -------
    dict of str to DataFrame
        ``cells`` (`FATE`) and ``raters`` (`RATERS`), those that there are.
    """
    import pandas as pd

    found: dict[str, DataFrame] = {}
    for key, (name, schema) in _BESIDE.items():
        paths = sorted(output.glob(f"sub-*/**/anat/*_desc-{name}_tsc.tsv"))
        if paths:
            found[key] = pd.concat([read_table(path, schema=schema) for path in paths], ignore_index=True)
            write_table(output / f"group_{name}.tsv", found[key], schema)
            continue
        for folder in (output, bids_dir):
            path = folder / f"group_{name}.tsv"
            if path.is_file():
                found[key], _ = _given(path, schema)
                write_table(output / path.name, found[key], schema)
                break
    return found


def _in_words(values: Series, levels: Mapping[str, Any]) -> Series:
    """Return codes as the words that the sidecar gives for them, other values as they are."""
    words = {
        str(code): str(entry.get("Description", code) if isinstance(entry, Mapping) else entry)
        for code, entry in levels.items()
    }

    def word(value: Any) -> Any:
        # a column of whole numbers with gaps is read as 1.0, 2.0
        code = f"{value:g}" if isinstance(value, float) else str(value)
        return words.get(code, value)

    return values.astype(object).map(word)


def write_group_table(output: Path, table: DataFrame, dictionary: Mapping[str, Any]) -> Path:
    """Write ``group_tsc.tsv`` and its dictionary."""
    extra = {name: entry for name, entry in dictionary.items() if isinstance(entry, Mapping)}
    return write_table(output / "group_tsc.tsv", table, GROUP_TSC, extra=extra)
