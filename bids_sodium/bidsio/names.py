"""Entities ↔ file names, as strings: nothing here touches a disk.

A BIDS name is ``key-value`` entities in a fixed order, a suffix and an extension, joined by underscores:
``sub-01_ses-acute_acq-23Na_desc-recon_PDw.nii.gz``. Entities are a mapping of short keys to values; the keys that
are words of Python are spelled with a trailing underscore in calls (``from_="na"``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from bids_sodium.core.errors import DataError, InternalError

__all__ = ["ORDER", "Entities", "Name", "Unit", "build", "is_sodium_label", "output", "parse"]

Entities = Mapping[str, str]
"""Entity values by short key, without the key: ``{"sub": "01", "acq": "23Na"}``."""

# fmt: off
ORDER = (
    "sub", "tpl", "ses", "cohort", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain",
    "rec", "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split",
    "recording", "chunk", "atlas", "seg", "scale", "res", "den", "from", "to", "mode", "label", "desc",
)
# fmt: on
"""Short keys in the order of BIDS 1.11; those of transforms (from, to, mode) stand before label."""

_RANK = {key: rank for rank, key in enumerate(ORDER)} | {f"{key}_": rank for rank, key in enumerate(ORDER)}
_LIKE = "name it like sub-01_acq-23Na_PDw.nii.gz"
_VALUE = re.compile(r"[A-Za-z0-9+]+")
_SODIUM = re.compile(r"(?i:23na|sodium)|Na(?![a-z])")


class Name(NamedTuple):
    """The parts of a file name.

    Parameters
    ----------
    entities : dict
        Values by short key, in the order of the name.
    suffix : str
        Last part of the stem, for example ``"PDw"``.
    extension : str
        From the first dot on, for example ``".nii.gz"``.
    """

    entities: dict[str, str]
    suffix: str
    extension: str


class Unit(Protocol):
    """Whatever has a participant and a session: ``"sub-01"`` and ``"ses-acute"``, ``None`` without sessions."""

    @property
    def participant_id(self) -> str:
        """Participant with its ``sub-``."""

    @property
    def session_id(self) -> str | None:
        """Session with its ``ses-``."""


def parse(filename: str) -> Name:
    """Split a file name into entities, suffix and extension.

    Parameters
    ----------
    filename : str
        Name, with or without folders before it.

    Raises
    ------
    DataError
        If it is not made of ``key-value`` parts and a suffix.

    Examples
    --------
    >>> parse("sub-01/anat/sub-01_acq-23Na_PDw.nii.gz")
    Name(entities={'sub': '01', 'acq': '23Na'}, suffix='PDw', extension='.nii.gz')
    """
    stem, dot, extension = filename.rpartition("/")[2].partition(".")
    *parts, suffix = stem.split("_")
    entities: dict[str, str] = {}
    for part in parts:
        key, dash, value = part.partition("-")
        if not (key and dash and value) or key in entities:
            raise DataError(
                f"{part!r} is not a new key-value entity",
                where=filename,
                hint=_LIKE,
            )
        entities[key] = value
    if not suffix or "-" in suffix:
        raise DataError("the name has no suffix", where=filename, hint=_LIKE)
    return Name(entities, suffix, dot + extension)


def build(entities: Entities, suffix: str, extension: str) -> str:
    """Join entities, suffix and extension in the order of BIDS; the inverse of `parse`.

    Parameters
    ----------
    entities : mapping
        Values by short key; ``from_`` is the same as ``from``.
    suffix, extension : str
        ``"PDw"`` and ``".nii.gz"``; the dot may be left out.

    Raises
    ------
    InternalError
        If a key is not one of BIDS or a value holds anything but letters, digits and ``+``.

    Examples
    --------
    >>> build({"desc": "recon", "acq": "23Na", "sub": "01"}, "PDw", ".nii.gz")
    'sub-01_acq-23Na_desc-recon_PDw.nii.gz'
    """
    parts = []
    for key, value in entities.items():
        rank = _RANK.get(key)
        if rank is None:
            raise InternalError(f"BIDS has no entity {key!r}")
        if not _VALUE.fullmatch(value):
            raise InternalError(f"{key}-{value} is not a BIDS entity: only letters, digits and + may stand in a value")
        parts.append((rank, f"{ORDER[rank]}-{value}"))
    stem = "_".join([*(part for _, part in sorted(parts)), suffix])
    return f"{stem}.{extension.lstrip('.')}" if extension else stem


def output(unit: Unit, *, datatype: str = "anat", suffix: str, extension: str, **entities: str | None) -> str:
    """Return the path of a file of one session, relative to the dataset.

    Parameters
    ----------
    unit : Unit
        Session record, or anything with ``participant_id`` and ``session_id``.
    datatype : str
        Folder: ``"anat"``, ``"dwi"``, ``"figures"``; empty for the session's own folder.
    suffix, extension : str
        End of the name.
    **entities : str or None
        Further entities by short key; ``None`` leaves one out.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> session = SimpleNamespace(participant_id="sub-01", session_id="ses-acute")
    >>> output(session, suffix="PDw", extension=".nii.gz", acq="23Na", desc="recon")
    'sub-01/ses-acute/anat/sub-01_ses-acute_acq-23Na_desc-recon_PDw.nii.gz'
    """
    known = {"sub": unit.participant_id.removeprefix("sub-")}
    if unit.session_id is not None:
        known["ses"] = unit.session_id.removeprefix("ses-")
    known |= {key: value for key, value in entities.items() if value is not None}
    folders = [f"{key}-{known[key]}" for key in ("sub", "ses") if key in known]
    return "/".join([*folders, *([datatype] if datatype else []), build(known, suffix, extension)])


def is_sodium_label(label: str) -> bool:
    """Tell whether an ``acq-`` or ``nuc-`` label says sodium: 23Na, sodium, or Na as a word of its own.

    Examples
    --------
    >>> [is_sodium_label(label) for label in ("23NaVol", "sodium", "hiresNa", "Navigator", "nav")]
    [True, True, True, False, False]
    """
    return _SODIUM.search(label) is not None
