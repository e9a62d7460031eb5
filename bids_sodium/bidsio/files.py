"""Read and write images, transforms, tables and sidecars; nibabel's only door.

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
from bids_sodium.spatial.transforms import Affine, Chain, Transform, Warp

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    import SimpleITK as sitk  # noqa: N813
    from numpy.typing import NDArray

__all__ = [
    "atomically",
    "read_json",
    "read_table",
    "read_transform",
    "read_volume",
    "write_json",
    "write_table",
    "write_text",
    "write_transform",
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


def write_transform(path: Path, transform: Transform) -> Path:
    """Write a transform for ITK, ANTs and Slicer, atomically and reproducibly.

    ``target_from_source`` goes into ``from-source_to-target_mode-image_xfm``: such a file moves images from source to
    target and so holds the map of points from target to source, in LPS coordinates.

    Parameters
    ----------
    path : Path
        Ends in ``.txt`` for an affine map (Insight Transform File V1.0), in ``.h5`` for any (ITK composite). In HDF5
        the fields of the other direction are stored beside ITK's groups, so that both come back exactly.
    transform : Affine, Warp or Chain
        ``target_from_source``.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    DataError
        If the name ends otherwise, or in ``.txt`` for a warp.
    EstimationError
        If a warp has no inverse.
    """
    if path.suffix == ".txt":
        if not isinstance(transform, Affine):
            raise DataError("a text file holds an affine transform only", where=str(path), hint="name it .h5")
        return write_text(path, _insight_text(transform.inverse()))
    if path.suffix != ".h5":
        raise DataError(f"transforms are not written as '{path.suffix}'", where=str(path), hint="name it .txt or .h5")
    back = transform.inverse()
    return atomically(path, lambda temporary: _write_itk_hdf5(temporary, back))


def read_transform(path: Path, target: str, source: str) -> Transform:
    """Read an ITK transform that moves images from source to target.

    Parameters
    ----------
    path : Path
        ``.txt``, ``.tfm``, ``.mat`` or ``.h5``, of this app, ITK or ANTs.
    target, source : str
        Names of the frames; the file does not know them.

    Returns
    -------
    Affine, Warp or Chain
        ``target_from_source`` on points in RAS+ mm: the inverse of the map in the file.

    Raises
    ------
    DataError
        If the file is missing, cannot be read or holds another kind of transform.
    EstimationError
        If it holds a warp of one direction that cannot be inverted.
    """
    import SimpleITK as sitk  # noqa: N813

    _present(path)
    try:
        whole = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"cannot be read as a transform ({reason})", where=str(path), hint="write it with ITK or ANTs"
        ) from error
    inverses = _stored_inverses(path) if path.suffix == ".h5" else {}
    parts = _itk_parts(whole)
    names = [source, *(f"{target}-{source}-{i}" for i in range(1, len(parts))), target]
    links = [_link_of(part, names[i], names[i + 1], inverses.get(i), path) for i, part in enumerate(parts)]
    chain: Transform = links[0]
    for link in links[1:]:
        chain = chain @ link
    return chain.inverse()


_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS+ to LPS+ and back."""

_OTHER_WAY = "OtherDirection"
"""Group of the inverse fields in an HDF5 file; ITK does not look into it."""


def _lps_parameters(affine: Affine) -> NDArray[np.float64]:
    """Return ITK's twelve parameters of an affine map: the matrix by rows, the shift."""
    matrix = _LPS @ affine.matrix @ _LPS
    return np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]]) + 0.0


def _insight_text(affine: Affine) -> str:
    parameters = " ".join(repr(float(value)) for value in _lps_parameters(affine))
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {parameters}\nFixedParameters: 0 0 0\n"
    )


def _field_parameters(grid: Grid) -> NDArray[np.float64]:
    """Return ITK's fixed parameters of a displacement field: size, origin, spacing, direction."""
    affine = _LPS @ grid.affine
    direction = affine[:3, :3] / np.array(grid.voxel_mm)
    return np.concatenate([grid.shape, affine[:3, 3], grid.voxel_mm, direction.ravel()]) + 0.0


def _lps_field(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a field's values in ITK's order (x fastest) with LPS components."""
    return np.ascontiguousarray(field.transpose(2, 1, 0, 3) * np.array([-1, -1, 1], dtype=np.float32)).ravel() + 0.0


def _write_itk_hdf5(path: Path, transform: Transform) -> None:
    """Write ITK's HDF5 layout without its time stamps."""
    import h5py

    links = transform.links if isinstance(transform, Chain) else (transform,)
    with h5py.File(path, "w") as file:
        # ITK refuses a file without the four words on its origin but does not read them.
        for name in ("HDFVersion", "ITKVersion", "OSName", "OSVersion"):
            file[name] = np.array(["1" if name.endswith("Version") else "any"], dtype=h5py.string_dtype("ascii"))
        group = file.create_group("TransformGroup")
        composite = len(links) > 1
        if composite:
            group.create_group("0")["TransformType"] = _word("CompositeTransform_double_3_3")
        for place, link in enumerate(links):
            entry = group.create_group(str(place + composite))
            if isinstance(link, Affine):
                entry["TransformType"] = _word("AffineTransform_double_3_3")
                entry["TransformFixedParameters"] = np.zeros(3)
                entry["TransformParameters"] = _lps_parameters(link)
                continue
            entry["TransformType"] = _word("DisplacementFieldTransform_double_3_3")
            entry["TransformFixedParameters"] = _field_parameters(link.grid)
            _write_field(entry, "TransformParameters", link.displacement_mm)
            other = link.inverse()
            stored = file.require_group(_OTHER_WAY).create_group(str(place))
            stored["FixedParameters"] = _field_parameters(other.grid)
            _write_field(stored, "Parameters", other.displacement_mm)


def _word(text: str) -> Any:
    import h5py

    return np.array([text], dtype=h5py.string_dtype("ascii"))


def _write_field(group: h5py.Group, name: str, field: NDArray[np.float32]) -> None:
    values = _lps_field(field)
    group.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True, chunks=True)


def _stored_inverses(path: Path) -> dict[int, tuple[NDArray[np.float32], Grid]]:
    """Return the inverse field of each link that has one stored."""
    import h5py

    with h5py.File(path, "r") as file:
        if _OTHER_WAY not in file:
            return {}
        return {
            int(place): _ras_field(np.asarray(entry["FixedParameters"]), np.asarray(entry["Parameters"]))
            for place, entry in file[_OTHER_WAY].items()
        }


def _ras_field(fixed: NDArray[np.float64], values: NDArray[np.floating]) -> tuple[NDArray[np.float32], Grid]:
    """Return an ITK displacement field as RAS+ values on a grid."""
    nx, ny, nz = (int(n) for n in fixed[:3])
    affine = np.eye(4)
    affine[:3, :3] = fixed[9:18].reshape(3, 3) * fixed[6:9]
    affine[:3, 3] = fixed[3:6]
    field = values.reshape(nz, ny, nx, 3).transpose(2, 1, 0, 3) * np.array([-1.0, -1.0, 1.0])
    return field.astype(np.float32), Grid((nx, ny, nz), _LPS @ affine)


def _itk_parts(transform: sitk.Transform) -> list[sitk.Transform]:
    """Return the members of a composite, nested ones too, in the order in which they are written."""
    import SimpleITK as sitk  # noqa: N813

    plain = transform.Downcast()
    if not isinstance(plain, sitk.CompositeTransform):
        return [plain]
    return [part for i in range(plain.GetNumberOfTransforms()) for part in _itk_parts(plain.GetNthTransform(i))]


def _link_of(
    part: sitk.Transform, target: str, source: str, inverse: tuple[NDArray[np.float32], Grid] | None, path: Path
) -> Affine | Warp:
    """Return one ITK transform as a map in RAS+."""
    import SimpleITK as sitk  # noqa: N813

    if isinstance(part, sitk.DisplacementFieldTransform):
        values = np.asarray(sitk.GetArrayFromImage(part.GetDisplacementField()))
        field, grid = _ras_field(np.array(part.GetFixedParameters()), values)
        other, other_grid = (None, None) if inverse is None else inverse
        return Warp(field, grid, target, source, other, other_grid)
    if not part.IsLinear():
        raise DataError(f"a {part.GetName()} is not understood", where=str(path), hint="convert it to a field")
    shift = np.array(part.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    matrix[:3, :3] = np.stack([np.array(part.TransformPoint(tuple(unit))) - shift for unit in np.eye(3)], axis=1)
    return Affine(_LPS @ matrix @ _LPS, target, source)


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


def read_table(path: Path, *, schema: Table | None = None, text: bool = False) -> pd.DataFrame:
    """Read a TSV; ``n/a`` and empty cells are missing, identifiers stay text.

    Parameters
    ----------
    path : Path
        Table.
    schema : Table, optional
        Its columns must all be there.
    text : bool
        Whether numbers stay as they are written, as in a table that is made to be printed.

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
            dtype=str if text else {"participant_id": str, "session_id": str},
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
    # BIDS knows no empty cells.
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]]:
        frame[name] = frame[name].where(frame[name] != "")
    text = frame.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.8g", lineterminator="\n")
    entries: dict[str, Any] = {"Description": schema.description, **(sidecar or {}), **schema.sidecar()}
    for name in others:
        entries[name] = dict((extra or {}).get(name, {"Description": f"Column {name} of the input tables"}))
    write_json(path.with_suffix(".json"), entries)
    return write_text(path, text)
