"""Label images that divide the brain into regions of someone else's making.

Nouns: an `Atlas` is one such image with its table of names; it lies in the template's space and serves every
participant, or in the space of one participant's T1w image. A *region* is one number of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_table, read_volume
from bids_sodium.bidsio.names import parse
from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError, UsageError

__all__ = ["Atlas", "given", "label_names", "read_atlas"]

_TEMPLATE = "MNI152NLin2009aSym"
_NATIVE = frozenset({"T1w", "orig", "individual", "native", "anat"})
_MOST_REGIONS = 4000

Space: TypeAlias = Literal["template", "T1w"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """A label image and where it lies.

    Parameters
    ----------
    name : str
        Letters, digits, ``_``, ``.``, ``+`` and ``-``; it stands before the names of its regions.
    image : Path
        The labels.
    table : Path or None
        Table with the columns ``index`` and ``name``.
    space : {"template", "T1w"}
        What its world is.
    note : str
        What a reader must know of its place, empty where there is nothing.
    """

    name: str
    image: Path
    table: Path | None
    space: Space
    note: str = ""


def given(atlases: Iterable[tuple[str, Path]]) -> tuple[Atlas, ...]:
    """Return the atlases of a command line, each with the table beside it.

    Parameters
    ----------
    atlases : iterable of (str, Path)
        Name and label image. The ``space`` or ``tpl`` entity of the file name says where it lies; without either it
        is taken to be the template.

    Raises
    ------
    DataError
        If a file is missing, or it lies in a space that the app cannot reach.
    UsageError
        If two have one name.
    """
    found: dict[str, Atlas] = {}
    for name, image in atlases:
        if name in found:
            raise UsageError(f"two atlases are named {name}", hint="write --atlas NAME=PATH with another name")
        if not image.is_file():
            raise DataError("no such atlas", where=str(image), hint="check --atlas NAME=PATH")
        space, note = _space(image)
        found[name] = Atlas(name=name, image=image, table=_beside(image), space=space, note=note)
    return tuple(found.values())


def _space(image: Path) -> tuple[Space, str]:
    try:
        entities = parse(image.name).entities
    except DataError:
        entities = {}
    stated = entities.get("space", entities.get("tpl", ""))
    if stated in _NATIVE:
        return "T1w", ""
    if stated == _TEMPLATE:
        return "template", ""
    if not stated:
        return "template", f"its name states no space, so it is taken to lie in {_TEMPLATE}"
    if re.match(r"MNI|ICBM", stated):
        return "template", f"it lies in {stated}, which is taken for {_TEMPLATE}: regions may be off by 2 to 5 mm"
    raise DataError(
        f"lies in the space {stated}", where=image.name, hint=f"give it in {_TEMPLATE}, or on the T1w image (space-T1w)"
    )


def _beside(image: Path) -> Path | None:
    table = image.with_name(image.name.partition(".")[0] + ".tsv")
    return table if table.is_file() else None


def label_names(table: Path) -> dict[int, str]:
    """Return the names in a BIDS table of labels.

    Raises
    ------
    DataError
        If it lacks the columns ``index`` and ``name``, or an index is no whole number.
    """
    frame = read_table(table)
    if not {"index", "name"} <= set(frame.columns):
        raise DataError(
            f"has the columns {', '.join(map(str, frame.columns))}",
            where=table.name,
            hint="BIDS asks for index and name",
        )
    try:
        return {int(number): str(name) for number, name in zip(frame["index"], frame["name"], strict=True)}
    except ValueError as error:
        raise DataError(f"an index is no whole number ({error})", where=table.name) from error


def read_atlas(atlas: Atlas) -> tuple[Volume, tuple[str, ...]]:
    """Read an atlas as consecutive numbers.

    Parameters
    ----------
    atlas : Atlas
        What to read.

    Returns
    -------
    labels : Volume
        0 outside, 1 to n inside.
    names : tuple of str
        ``NAME:region`` of the numbers 1 to n: the table's name, else the number in the image.

    Raises
    ------
    DataError
        If it holds no labels.
    """
    image = read_volume(atlas.image, dtype=None)
    data = np.asarray(image.data)
    where = atlas.image.name
    if data.ndim != 3:
        raise DataError(
            f"an atlas of shape {data.shape}", where=where, hint="give one number a voxel (maximum-probability labels)"
        )
    if not np.isfinite(data).all() or not np.array_equal(data, np.rint(data)) or data.min() < 0:
        raise DataError("an atlas holds one whole number a voxel", where=where, hint="was it interpolated?")
    numbers, inverse = np.unique(data.astype(np.int64), return_inverse=True)
    if numbers[-1] == 0 or len(numbers) > _MOST_REGIONS:
        raise DataError(f"holds {len(numbers) - 1} regions", where=where, hint="is it a label image?")
    start = 0 if numbers[0] == 0 else 1
    labels: NDArray[np.int32] = (inverse.reshape(data.shape) + start).astype(np.int32)
    table = {} if atlas.table is None else label_names(atlas.table)
    names = [f"{atlas.name}:{table.get(int(n), n)}" for n in numbers if n != 0]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two regions have the name {twice[0]!r}", where=where, hint="give each its own in the table")
    return image.with_data(labels), tuple(names)
