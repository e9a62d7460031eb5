"""Rows that a statistic can use: complete, finite, as long as each other.

A missing value (NaN) leaves its row out, and every result says how many rows went that way; an infinite value is an
error, because it is a number that went wrong earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError

__all__ = ["as_column", "as_matrix", "complete", "is_constant", "labels_of", "require_rows"]

Float = NDArray[np.float64]
_NO_LABEL = ("", "n/a", "nan", "NaN", "<NA>")
"""What a missing label reads as: empty, BIDS, NumPy and pandas."""


def as_column(values: ArrayLike, name: str) -> Float:
    """Return values as a float vector; missing values become NaN, infinite ones are an error."""
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds something that is not a number", hint="use numbers, n/a for missing") from error
    if column.ndim != 1:
        raise DataError(f"{name} has {column.ndim} axes, expected one value a row")
    if np.isinf(column).any():
        raise DataError(f"{name} holds {int(np.isinf(column).sum())} infinite values of {column.size}")
    return column


def as_matrix(values: ArrayLike, name: str) -> Float:
    """Return values as a float matrix of shape (rows, columns); one axis is one column."""
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds something that is not a number", hint="use numbers, n/a for missing") from error
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2:
        raise DataError(f"{name} has {matrix.ndim} axes, expected rows and columns")
    if np.isinf(matrix).any():
        raise DataError(f"{name} holds {int(np.isinf(matrix).sum())} infinite values")
    return matrix


def labels_of(
    values: Sequence[Any] | NDArray[Any], name: str
) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[np.bool_]]:
    """Return the code of each row's label, the labels in order, and where a label is missing."""
    raw = np.asarray(values, dtype=object)
    if raw.ndim != 1:
        raise DataError(f"{name} has {raw.ndim} axes, expected one label a row")
    text = np.array(["" if v is None else str(v) for v in raw], dtype=np.str_)
    missing = np.isin(text, _NO_LABEL)
    labels, codes = np.unique(text[~missing], return_inverse=True)
    every = np.full(raw.size, -1, dtype=np.intp)
    every[~missing] = codes
    return every, labels, missing


def complete(*arrays: Float, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which rows are complete over all arrays.

    Raises
    ------
    DataError
        If the arrays differ in their number of rows.
    """
    lengths = [array.shape[0] for array in arrays]
    if len(set(lengths)) > 1:
        told = ", ".join(f"{name} {length}" for name, length in zip(names, lengths, strict=True))
        raise DataError(f"the columns differ in length: {told}")
    keep = np.ones(lengths[0], dtype=bool)
    for array in arrays:
        bad = np.isnan(array)
        keep &= ~(bad if array.ndim == 1 else bad.any(axis=1))
    return keep


def require_rows(n: int, least: int, what: str, *, n_missing: int = 0) -> None:
    """Raise `EstimationError` where fewer rows are left than the statistic needs."""
    if n < least:
        gone = f" ({n_missing} left out as incomplete)" if n_missing else ""
        raise EstimationError(f"{what} needs at least {least} complete rows, found {n}{gone}")


def is_constant(values: Float) -> bool:
    """Say whether a vector does not vary beyond rounding."""
    spread = float(np.ptp(values)) if values.size else 0.0
    return bool(spread <= 8.0 * np.finfo(float).eps * float(np.max(np.abs(values), initial=0.0)))
