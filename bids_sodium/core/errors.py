"""Everything that can go wrong, and what the command returns for it.

::

    SodiumError
    ├── UsageError          2   the command line cannot be understood
    ├── DataError          65   the data cannot be used as they are
    │   └── GeometryError  65   images, masks or transforms do not fit together in space
    ├── EstimationError    69   the data are sound but do not determine the answer
    ├── InternalError      70   a bug in the app
    ├── LockedError        75   another live run holds the output
    └── ConfigError        78   a setting is unknown or has a wrong value

A message says what was seen, ``where`` names the file or step, ``hint`` what to try. ``str()`` is one line and
stable, so that schedulers can search for it.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ConfigError",
    "DataError",
    "EstimationError",
    "GeometryError",
    "InternalError",
    "LockedError",
    "SodiumError",
    "UsageError",
]


class SodiumError(Exception):
    """Base of all errors that the app raises on purpose.

    Parameters
    ----------
    what : str
        What was seen, with numbers; no full stop at the end.
    where : str, optional
        The file, table, region or step it was seen in.
    hint : str, optional
        What the person at the keyboard can try.

    Examples
    --------
    >>> str(DataError("TR is missing", where="sub-01_PDw.json", hint="add RepetitionTime in s"))
    'sub-01_PDw.json: TR is missing (try: add RepetitionTime in s)'
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Return the one-line message."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{text} (try: {self.hint})" if self.hint else text
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        """Keep keyword arguments when the error crosses a process boundary."""
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def _rebuild(kind: type[SodiumError], what: str, where: str, hint: str) -> SodiumError:
    return kind(what, where=where, hint=hint)


class UsageError(SodiumError):
    """The command line cannot be understood."""

    exit_code = 2


class DataError(SodiumError):
    """The data cannot be used as they are."""

    exit_code = 65


class GeometryError(DataError):
    """Images, masks or transforms do not fit together in space."""


class EstimationError(SodiumError):
    """The data are sound but do not determine the answer."""

    exit_code = 69


class InternalError(SodiumError):
    """A bug in the app."""

    exit_code = 70


class LockedError(SodiumError):
    """Another live run holds the output."""

    exit_code = 75


class ConfigError(SodiumError):
    """A setting is unknown or has a wrong value."""

    exit_code = 78
