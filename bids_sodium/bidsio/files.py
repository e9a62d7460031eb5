"""Read and write images, tables and sidecars; nibabel's only door.

A file is written beside its place under a hidden temporary name and renamed when it is whole, so that no reader ever
sees half a file.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.core.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "atomically",
    "read_json",
    "read_table",
    "read_volume",
    "write_json",
    "write_table",
    "write_text",
    "write_volume",
]


def atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Call ``write`` on a temporary name and rename the result to ``path``.

    Parameters
    ----------
    path : Path
        Final place; its folder is made.
    write : callable
        Writes the file it is given. The temporary name keeps all suffixes of ``path``.

    Returns
    -------
    Path
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _present(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(
            "the file is a link whose content is not here",
            where=str(path),
            hint="fetch it first, for example with 'datalad get' or 'git annex get'",
        )
    if not path.is_file():
        raise DataError("no such file", where=str(path), hint="check the name and the dataset")


def read_volume(path: Path, *, unit: str = "a.u.", dtype: Any = np.float32) -> Volume:
    """Read an image.

    Parameters
    ----------
    path : Path
        NIfTI file.
    unit : str
        Unit of its values.
    dtype : dtype, optional
        Type of the returned values; ``None`` keeps the type in the file.

    Returns
    -------
    Volume
        Values with header scaling applied, in the axes of the file.

    Raises
    ------
    DataError
        If the file is missing, a dangling link or not an image.
    GeometryError
        If its affine is singular or not finite.
    """
    import nibabel as nib

    _present(path)
    try:
        image: Any = nib.load(path)
        if dtype is None:
            data = np.asanyarray(image.dataobj)
        elif np.issubdtype(np.dtype(dtype), np.floating):
            data = image.get_fdata(dtype=dtype, caching="unchanged")
        else:
            data = np.asanyarray(image.dataobj).astype(dtype)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"cannot be read as an image ({error})", where=str(path), hint="convert or copy it again"
        ) from error
    if data.ndim > 3 and data.shape[3:] == (1,) * (data.ndim - 3):
        data = data.reshape(data.shape[:3])
    header = image.header
    if "sform_code" in header and int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise GeometryError(
            "the header has neither a qform nor an sform, so left and right are unknown",
            where=str(path),
            hint="set the orientation when converting",
        )
    try:
        return Volume(data, Grid((data.shape[0], data.shape[1], data.shape[2]), np.asarray(image.affine)), unit)
    except GeometryError as error:
        raise GeometryError(error.what, where=str(path), hint=error.hint) from error


def write_volume(path: Path, volume: Volume, *, dtype: Any = np.float32) -> Path:
    """Write an image as compressed NIfTI-1, atomically and reproducibly.

    Parameters
    ----------
    path : Path
        Ends in ``.nii.gz`` or ``.nii``.
    volume : Volume
        Image.
    dtype : dtype
        Type on disk; booleans and labels want ``numpy.uint8`` or ``numpy.int16``.

    Returns
    -------
    Path
        ``path``.
    """
    import nibabel as nib

    image = nib.Nifti1Image(np.asarray(volume.data, dtype=dtype), volume.grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.grid.affine, code=1)
    image.set_qform(volume.grid.affine, code=1)
    return atomically(path, lambda temporary: nib.save(image, temporary))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    DataError
        If the file is missing or is not a JSON object.
    """
    _present(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"is not JSON ({error})", where=str(path), hint="check it with a JSON validator") from error
    if not isinstance(content, dict):
        raise DataError(f"holds a {type(content).__name__}, not an object", where=str(path))
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.name
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON object, atomically; numbers that are not finite become ``null``."""
    return write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text file, atomically."""
    return atomically(path, lambda temporary: _dump(temporary, text))


def _dump(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_table(path: Path, *, schema: Table | None = None) -> pd.DataFrame:
    """Read a TSV; ``n/a`` and empty cells are missing, identifiers stay text.

    Parameters
    ----------
    path : Path
        Table.
    schema : Table, optional
        Its columns must all be there.

    Raises
    ------
    DataError
        If the file is missing, empty, no table, or lacks a column.
    """
    import pandas as pd

    _present(path)
    try:
        frame = pd.read_csv(
            path,
            sep="\t",
            na_values=["n/a", "N/A", "NA", ""],
            keep_default_na=False,
            dtype={"participant_id": str, "session_id": str},
            encoding="utf-8-sig",
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read as a TSV ({error})", where=str(path), hint="separate columns by tabs"
        ) from error
    if schema is not None:
        schema.require(frame.columns, where=str(path))
    return frame


def write_table(
    path: Path,
    rows: pd.DataFrame | Iterable[Mapping[str, Any]],
    schema: Table,
    *,
    sidecar: Mapping[str, Any] | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a TSV with its JSON data dictionary, atomically.

    Parameters
    ----------
    path : Path
        Ends in ``.tsv``; the dictionary goes beside it as ``.json``.
    rows : data frame or iterable of mappings
        Rows; columns of the schema come first and in its order, missing values are written ``n/a``.
    schema : Table
        Columns.
    sidecar : mapping, optional
        Further keys of the dictionary (Description, Sources, parameters).
    extra : mapping, optional
        Dictionary entries of columns that the schema does not know; those columns are written after it.

    Returns
    -------
    Path
        ``path``.
    """
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    others = [name for name in frame.columns if name not in schema.names]
    frame = frame.reindex(columns=[*schema.names, *others])
    text = frame.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.8g", lineterminator="\n")
    entries: dict[str, Any] = {"Description": schema.description, **(sidecar or {}), **schema.sidecar()}
    for name in others:
        entries[name] = dict((extra or {}).get(name, {"Description": f"Column {name} of the input tables"}))
    write_json(path.with_suffix(".json"), entries)
    return write_text(path, text)
