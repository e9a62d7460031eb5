"""Linear transforms of FSL and FreeSurfer ↔ `Affine` in the world.

Nouns: a *FLIRT matrix* ``M`` maps scaled voxels, ``p = S i`` with ``S`` the voxel edges and the first axis turned round
where the determinant of the image's affine is positive; an *LTA* is FreeSurfer's text, a matrix between worlds or
voxels with the geometry of both images. With ``A`` the affines of the two images the map of worlds is
``B from A = A_b S_b^-1 M S_a A_a^-1`` for FLIRT and ``A_b M A_a^-1`` for voxels. Deformable maps and all others are
ITK's (`bids_sodium.bidsio.files`).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_transform, write_text
from bids_sodium.core.data import Grid
from bids_sodium.core.errors import DataError
from bids_sodium.spatial.transforms import Affine, Transform

__all__ = ["read_any", "read_flirt", "read_lta", "write_flirt", "write_lta"]

Matrix = NDArray[np.float64]

_VOXELS, _WORLD = 0, 1
_KINDS = {_VOXELS: "voxel to voxel", _WORLD: "RAS to RAS"}


def read_any(path: Path, target: str, source: str, *, target_grid: Grid, source_grid: Grid) -> Transform:
    """Read a transform of ITK, ANTs, FSL or FreeSurfer that moves images from source to target.

    Parameters
    ----------
    path : Path
        ``.lta``; a text of four lines of four numbers (FSL); else what `read_transform` reads.
    target, source : str
        Names of the frames.
    target_grid, source_grid : Grid
        Lattices of both images, which a FLIRT matrix does not hold.

    Returns
    -------
    Affine, Warp or Chain
        ``target_from_source`` on points in RAS+ mm.

    Raises
    ------
    DataError
        If the file is missing or is none of these.
    """
    if not path.is_file():
        raise DataError("no such transform", where=str(path), hint="check the name and the dataset")
    if path.suffix == ".lta":
        return read_lta(path, target, source)
    if path.suffix != ".h5" and _numbers(path.read_text(encoding="ascii", errors="replace")) is not None:
        return read_flirt(path, target, source, target_grid=target_grid, source_grid=source_grid)
    return read_transform(path, target, source)


def _numbers(text: str) -> Matrix | None:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if [len(row) for row in rows] != [4, 4, 4, 4]:
        return None
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError:
        return None


def _scaled(grid: Grid) -> Matrix:
    """Return FSL's scaled voxels from voxel indices."""
    scale = np.diag([*grid.voxel_mm, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        turn = np.diag([-1.0, 1.0, 1.0, 1.0])
        turn[0, 3] = (grid.shape[0] - 1) * grid.voxel_mm[0]
        return np.asarray(turn @ scale)
    return scale


def _checked(matrix: Matrix, path: Path) -> Matrix:
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
        raise DataError(f"its last row is {matrix[3].tolist()}, not 0 0 0 1", where=str(path))
    if abs(float(np.linalg.det(matrix[:3, :3]))) < 1e-6:
        raise DataError("its matrix is singular", where=str(path), hint="write the transform again")
    return matrix


def read_flirt(path: Path, target: str, source: str, *, target_grid: Grid, source_grid: Grid) -> Affine:
    """Read a FLIRT matrix (``flirt -in SOURCE -ref TARGET -omat``).

    Parameters
    ----------
    path : Path
        Text of four lines of four numbers.
    target, source : str
        Names of the frames.
    target_grid, source_grid : Grid
        Lattices of the reference and the input image; the file does not hold them.

    Returns
    -------
    Affine
        ``target_from_source`` on points in RAS+ mm.

    Raises
    ------
    DataError
        If it is no such matrix.
    """
    matrix = _numbers(path.read_text(encoding="ascii", errors="replace"))
    if matrix is None:
        raise DataError("is no FLIRT matrix of four lines of four numbers", where=str(path))
    scaled_target = target_grid.affine @ np.linalg.inv(_scaled(target_grid))
    scaled_source = _scaled(source_grid) @ np.linalg.inv(source_grid.affine)
    return Affine(scaled_target @ _checked(matrix, path) @ scaled_source, target, source)


def write_flirt(path: Path, transform: Affine, *, target_grid: Grid, source_grid: Grid) -> Path:
    """Write a FLIRT matrix, atomically; the inverse of `read_flirt`."""
    scaled_target = _scaled(target_grid) @ np.linalg.inv(target_grid.affine)
    scaled_source = source_grid.affine @ np.linalg.inv(_scaled(source_grid))
    matrix = scaled_target @ transform.matrix @ scaled_source
    return write_text(path, "".join("  ".join(f"{value:.12g}" for value in row) + "\n" for row in matrix + 0.0))


def read_lta(path: Path, target: str, source: str) -> Affine:
    """Read a FreeSurfer LTA that moves images from source to target.

    Parameters
    ----------
    path : Path
        ``.lta`` of one transform, between worlds (type 1) or voxels (type 0).
    target, source : str
        Names of the frames.

    Returns
    -------
    Affine
        ``target_from_source`` on points in RAS+ mm.

    Raises
    ------
    DataError
        If the file holds another kind or lacks the geometry of its images.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    kind = re.search(r"^\s*type\s*=\s*(-?\d+)", text, re.MULTILINE)
    start = re.search(r"^\s*1\s+4\s+4\s*$", text, re.MULTILINE)
    if kind is None or start is None:
        raise DataError("is no LTA of one transform", where=str(path), hint="write it with lta_convert")
    matrix = _numbers("\n".join(text[start.end() :].strip().splitlines()[:4]))
    if matrix is None:
        raise DataError("its matrix has not four lines of four numbers", where=str(path))
    matrix = _checked(matrix, path)
    number = int(kind[1])
    if number == _WORLD:
        return Affine(matrix, target, source)
    if number == _VOXELS:
        sides = re.split(r"^dst volume info.*$", text[start.end() :], flags=re.MULTILINE)
        if len(sides) == 2:
            moving, fixed = (_geometry(side, path) for side in sides)
            return Affine(fixed @ matrix @ np.linalg.inv(moving), target, source)
    known = " or ".join(f"{key} ({word})" for key, word in _KINDS.items())
    raise DataError(
        f"is an LTA of type {number}; {known} with both volumes are understood",
        where=str(path),
        hint="convert it with lta_convert --inlta IN --outlta OUT --ltavox2vox",
    )


def _geometry(text: str, path: Path) -> Matrix:
    """Return the affine of a volume in an LTA: FreeSurfer states the world of its centre."""
    found = {}
    for name, count in (("volume", 3), ("voxelsize", 3), ("xras", 3), ("yras", 3), ("zras", 3), ("cras", 3)):
        line = re.search(rf"^\s*{name}\s*=\s*(.+)$", text, re.MULTILINE)
        values = [] if line is None else line[1].split()
        try:
            found[name] = np.array(values[:count], dtype=np.float64)
        except ValueError:
            found[name] = np.empty(0)
        if len(found[name]) != count:
            raise DataError(f"lacks the {name} of a volume", where=str(path), hint="write it with lta_convert")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([found["xras"], found["yras"], found["zras"]], axis=1) * found["voxelsize"]
    affine[:3, 3] = found["cras"] - affine[:3, :3] @ (found["volume"] / 2.0)
    return affine


def write_lta(path: Path, transform: Affine, *, target_grid: Grid, source_grid: Grid) -> Path:
    """Write an LTA between worlds with the geometry of both images, atomically; the inverse of `read_lta`."""
    lines = [f"type      = {_WORLD} # LINEAR_RAS_TO_RAS", "nxforms   = 1", "mean      = 0.0 0.0 0.0", "sigma     = 1.0"]
    lines.append("1 4 4")
    lines += [" ".join(f"{value:.15e}" for value in row) for row in transform.matrix + 0.0]
    for side, name, grid in (("src", transform.source, source_grid), ("dst", transform.target, target_grid)):
        axes = grid.affine[:3, :3] / np.array(grid.voxel_mm)
        centre = grid.affine[:3, :3] @ (np.array(grid.shape) / 2.0) + grid.affine[:3, 3]
        lines += [
            f"{side} volume info",
            "valid = 1  # volume info valid",
            f"filename = {name}",
            f"volume = {' '.join(str(n) for n in grid.shape)}",
            f"voxelsize = {_words(np.array(grid.voxel_mm))}",
            *(f"{axis}ras   = {_words(axes[:, i])}" for i, axis in enumerate("xyz")),
            f"cras   = {_words(centre)}",
        ]
    return write_text(path, "\n".join(lines) + "\n")


def _words(values: Matrix) -> str:
    return " ".join(f"{value:.15e}" for value in values + 0.0)
