"""A time course: checked columns in, values of a fitted curve (CurveValue) out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._rows import as_column, complete, labels_of, require_rows

__all__ = ["CurveValue", "curve_value", "log_times", "times_and_values"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CurveValue:
    """The fitted curve at given times."""

    t_h: Float | float
    """Time from onset, in h."""
    value: Float | float
    """Fitted value, in %."""
    se: Float | float
    """Standard error by the delta method, in %."""
    ci_low: Float | float
    """Lower limit of the pointwise confidence interval (t distribution), in %."""
    ci_high: Float | float
    """Upper limit, in %."""


def curve_value(t_h: Float, value: Float, se: Float, factor: float) -> CurveValue:
    """Return value ± factor · se, single numbers for a single time."""
    columns = {"t_h": t_h, "value": value, "se": se, "ci_low": value - factor * se, "ci_high": value + factor * se}
    if t_h.ndim == 0:
        return CurveValue(**{name: float(column) for name, column in columns.items()})
    return CurveValue(**columns)


def times_and_values(
    t_h: ArrayLike, percent: ArrayLike, groups: Sequence[Any] | NDArray[Any] | None, *, what: str
) -> tuple[Float, Float, NDArray[np.intp] | None, int]:
    """Return the complete rows of a time course: times, values, group codes and how many rows were left out."""
    t, y = as_column(t_h, "t_h"), as_column(percent, "percent")
    keep = complete(t, y, names=("t_h", "percent"))
    codes = None
    if groups is not None:
        codes, _, missing = labels_of(groups, "groups")
        if codes.size != t.size:
            raise DataError(f"the columns differ in length: t_h {t.size}, groups {codes.size}")
        keep &= ~missing
    n_missing = int((~keep).sum())
    t, y = t[keep], y[keep]
    if codes is not None:
        codes = np.unique(codes[keep], return_inverse=True)[1].astype(np.intp)
    require_rows(y.size, 5, what, n_missing=n_missing)
    if (t <= 0).any():
        raise DataError(f"{int((t <= 0).sum())} of {t.size} times are not after onset (smallest {t.min():g} h)")
    different = np.unique(t).size
    if different < 4:
        raise EstimationError(f"{what} needs at least 4 different times, found {different} in {t.size} observations")
    return t, y, codes, n_missing


def log_times(t_h: ArrayLike) -> tuple[Float, Float]:
    """Return times after onset, in h, and their logarithms.

    Raises
    ------
    DataError
        If a time lies before onset.
    """
    times = np.asarray(t_h, dtype=np.float64)
    if (times < 0).any():
        raise DataError(f"a time of {float(times.min()):g} h lies before onset")
    with np.errstate(divide="ignore"):
        return times, np.log(times)
