"""Reference vials as they are stated: label, concentration, gel and inner diameter, from a sidecar or a table.

Concentrations are in mmol/L. Numbers that are far from any vial are met with the unit that they look like: 0.04 is
mol/L, 2.3 is grams of salt in a litre (per mille).
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_sodium.core.constants import AGAR, Decay, Relaxation
from bids_sodium.core.errors import DataError

__all__ = ["Phantom", "concentrations", "phantoms"]

_SALT_G_MOL = 58.44
_LEAST_MMOL_L = 5.0
_MOST_MMOL_L = 1000.0
_UNITS = frozenset({"mmol/l", "mm", "mmol", "mmol per l", "mol/m3", "mol/m^3"})
_MISSING = frozenset({"", "n/a", "na", "nan", "none"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A calibration vial as the sidecar, a table or the parameters state it.

    Parameters
    ----------
    label : str
        Name, as in ``label-<Label>_mask``.
    mmol_l : float
        Sodium concentration, in mmol/L.
    relaxation : Relaxation
        Of its gel.
    inner_radius_mm : float or None
        Inner radius, where it is known.
    """

    label: str
    mmol_l: float
    relaxation: Relaxation = AGAR
    inner_radius_mm: float | None = None


def concentrations(values: Any, *, where: str = "") -> tuple[float, ...]:
    """Return concentrations as numbers, or say what is wrong with them.

    Parameters
    ----------
    values : iterable of float
        Sodium concentrations, in mmol/L.
    where : str
        Where they were read.

    Raises
    ------
    DataError
        If there is none, or one is not a positive number or looks like another unit.

    Examples
    --------
    >>> concentrations([40, 80])
    (40.0, 80.0)
    >>> concentrations([0.04, 0.08])
    Traceback (most recent call last):
    ...
    bids_sodium.core.errors.DataError: the vial concentration 0.04 looks like mol/L (try: give mmol/L: 40)
    """
    if isinstance(values, (str, bytes, numbers.Number)) or not hasattr(values, "__iter__"):
        raise DataError(
            f"vial concentrations are {values!r}, not a list of numbers",
            where=where,
            hint="give them in mmol/L, such as 40, 80",
        )
    found = tuple(_concentration(value, where) for value in values)
    if not found:
        raise DataError("no vial concentration is given", where=where, hint="name them in mmol/L, such as 40 and 80")
    return found


def _concentration(value: Any, where: str) -> float:
    good = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if not good or not np.isfinite(float(value)) or float(value) <= 0:
        raise DataError(
            f"the vial concentration {value!r} is not a positive number",
            where=where,
            hint="give mmol/L, such as 40 or 80; a vial without sodium sets no scale",
        )
    mmol_l = float(value)
    if mmol_l < 1.0:
        unit, meant = "mol/L", f"give mmol/L: {1000 * mmol_l:g}"
    elif mmol_l < _LEAST_MMOL_L:
        unit, meant = "per mille (g NaCl/L)", f"give mmol/L: {1000 * mmol_l / _SALT_G_MOL:.0f}"
    elif mmol_l > _MOST_MMOL_L:
        unit, meant = "umol/L or mg/L", "give mmol/L"
    else:
        return mmol_l
    raise DataError(f"the vial concentration {mmol_l:g} looks like {unit}", where=where, hint=meant)


def phantoms(rows: Sequence[Mapping[str, Any]], *, where: str) -> tuple[Phantom, ...]:
    """Return the vials of a sidecar's ``SodiumCalibration`` or of the rows of a table, dim to bright.

    Parameters
    ----------
    rows : sequence of mapping
        One a vial, with ``Concentration`` (mmol/L) and, where they are known, ``Label``, ``Units``, ``InnerDiameter``
        (mm), ``T1`` and ``T2star`` (s; two T2star for the fast and the slow component). Names of a table may be
        written small and with underscores; ``n/a`` and NaN are what is not known.
    where : str
        File they were read from, for messages.

    Returns
    -------
    tuple of Phantom
        Vials by rising concentration.

    Raises
    ------
    DataError
        If a row has no concentration, a number is out of its range or two vials have one label.

    Examples
    --------
    >>> vials = phantoms([{"concentration": 80, "inner_diameter": 28}, {"concentration": 40}], where="phantoms.tsv")
    >>> [(vial.label, vial.inner_radius_mm) for vial in vials]
    [('phantom40', None), ('phantom80', 14.0)]
    """
    if not rows:
        raise DataError("no vial is named", where=where, hint="one row a vial with its Concentration in mmol/L")
    found = sorted((_phantom(row, where) for row in rows), key=lambda vial: vial.mmol_l)
    labels = [vial.label for vial in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise DataError(
            f"{labels.count(twice[0])} vials are called {twice[0]}", where=where, hint="give each a Label of its own"
        )
    return tuple(found)


def _phantom(row: Mapping[str, Any], where: str) -> Phantom:
    known = {str(key).lower().replace("_", "").replace(" ", ""): value for key, value in row.items()}
    unit = _text(known.get("units"))
    if unit is not None and unit.lower() not in _UNITS:
        raise DataError(f"a vial's concentration is in {unit!r}", where=where, hint="convert it to mmol/L")
    stated = _number(known.get("concentration"), "Concentration", where)
    if stated is None:
        raise DataError(
            f"a vial has no Concentration, only {', '.join(map(str, row)) or 'nothing'}",
            where=where,
            hint="state it in mmol/L",
        )
    mmol_l = _concentration(stated, where)
    diameter = _within(known.get("innerdiameter"), "InnerDiameter", (3.0, 150.0), "mm", where)
    label = _text(known.get("label")) or f"phantom{mmol_l:g}".replace(".", "p")
    return Phantom(
        label=label,
        mmol_l=mmol_l,
        relaxation=_gel(known, where),
        inner_radius_mm=None if diameter is None else diameter / 2.0,
    )


def _gel(known: Mapping[str, Any], where: str) -> Relaxation:
    t1_s = _within(known.get("t1"), "T1", (1e-3, 0.2), "s", where)
    given = known.get("t2star")
    if isinstance(given, str):
        given = given.replace(";", " ").replace(",", " ").strip("[]() ").split()
    parts = list(given) if isinstance(given, (list, tuple)) else [given]
    times = [_within(part, "T2star", (1e-4, 0.2), "s", where) for part in parts]
    t2_s = [time for time in times if time is not None]
    if len(t2_s) > 2:
        raise DataError(
            f"a vial has {len(t2_s)} values of T2star", where=where, hint="one, or a fast and a slow one, in s"
        )
    if t1_s is None and not t2_s:
        return AGAR
    decay = Decay(min(t2_s) * 1e3, max(t2_s) * 1e3) if t2_s else AGAR.decay
    return Relaxation(AGAR.t1_ms if t1_s is None else t1_s * 1e3, decay, where)


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return None if text.lower() in _MISSING else text


def _number(value: Any, name: str, where: str) -> float | None:
    text = _text(value)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if isinstance(value, bool) or not np.isfinite(number):
        raise DataError(f"{name} of a vial is {value!r}", where=where, hint="write a number, or n/a")
    return number


def _within(value: Any, name: str, limits: tuple[float, float], unit: str, where: str) -> float | None:
    number = _number(value, name, where)
    if number is not None and not limits[0] <= number <= limits[1]:
        raise DataError(
            f"{name} of a vial is {number:g} {unit}",
            where=where,
            hint=f"state it in {unit}, between {limits[0]:g} and {limits[1]:g}",
        )
    return number
