"""Design matrices: names, rank, and an orthonormal Basis that keeps the digits of ill-scaled columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError

__all__ = ["Basis", "about_means", "design_matrix", "names_of", "refuse_collinear"]

Float = NDArray[np.float64]
_INFLATION = 1000.0
"""Variance inflation of columns that are one another but for the digits that a table keeps: where grey and white matter
fraction make up the whole one, three decimals leave 5000."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """X = Q R with orthonormal Q."""

    Q: Float
    """Orthonormal columns, shape (n, p)."""
    R: Float
    """Square factor, shape (p, p)."""

    @property
    def log_determinant(self) -> float:
        """Logarithm of the determinant of XᵀX."""
        return float(np.linalg.slogdet(self.R)[1]) * 2

    def coefficients(self, y: Float) -> Float:
        """Return the least-squares coefficients, with one step of iterative refinement."""
        inside = self.Q.T @ y
        inside = inside + self.Q.T @ (y - self.Q @ inside)
        return np.asarray(np.linalg.solve(self.R, inside))

    def residual(self, y: Float) -> Float:
        """Return y less its projection, projected twice so that it is orthogonal to rounding."""
        left = y - self.Q @ (self.Q.T @ y)
        return np.asarray(left - self.Q @ (self.Q.T @ left))

    def inverse_cross(self) -> Float:
        """Return (XᵀX)⁻¹."""
        inverse = np.linalg.solve(self.R, np.eye(self.R.shape[0]))
        return np.asarray(inverse @ inverse.T)


def names_of(names: Sequence[str] | None, p: int) -> tuple[str, ...]:
    """Return the names of the columns, x1 … xp where none are given."""
    if names is None:
        return tuple(f"x{i + 1}" for i in range(p))
    terms = tuple(str(name) for name in names)
    if len(terms) != p:
        raise DataError(f"{len(terms)} names for {p} columns of X: {', '.join(terms)}")
    if len(set(terms)) < p:
        raise DataError(f"the names of the columns repeat: {', '.join(terms)}")
    return terms


def design_matrix(X: Float, names: Sequence[str]) -> Basis:
    """Return the orthonormal basis of a design matrix.

    Raises
    ------
    EstimationError
        If a column is zero or a linear combination of others.
    """
    n, p = X.shape
    length = np.linalg.norm(X, axis=0)
    if not length.all():
        zero = [name for name, size in zip(names, length, strict=True) if size == 0]
        raise EstimationError(f"{', '.join(zero)} is zero in all {n} rows")
    unit = X / length
    left, singular, right = np.linalg.svd(unit, full_matrices=False)
    if singular.size < p or singular[-1] <= 1e-12 * singular[0]:
        rank = int(np.sum(singular > 1e-12 * singular[0]))
        weight = np.abs(right[-1])
        blamed = [name for name, w in zip(names, weight, strict=True) if w > 0.05 * weight.max()]
        raise EstimationError(
            f"the {p} columns have rank {rank} in {n} rows: {', '.join(blamed)} are collinear",
            hint="leave one of them out",
        )
    return Basis(Q=left, R=(singular[:, None] * right) * length)


def about_means(columns: Float) -> Float:
    """Return the cross-products of columns, shape (n, p), about their means."""
    centred = columns - columns.mean(axis=0)
    return np.asarray(centred.T @ centred)


def refuse_collinear(cross: Float, names: Sequence[str], n: int) -> None:
    """Refuse covariates of which one follows from the others to the digits of a written table.

    `design_matrix` sees a dependence that is exact in the numbers at hand. Fractions that add up lose that by the
    rounding of the table that they are read from, and their coefficients mean as little.

    Parameters
    ----------
    cross : ndarray
        Cross-products of the columns about their means, shape (p, p).
    names : sequence of str
        Names of the columns.
    n : int
        Rows, for the message.

    Raises
    ------
    EstimationError
        If the variance inflation of a column exceeds 1000; columns without variance are left to the model.

    Examples
    --------
    >>> refuse_collinear(np.array([[1.0, 0.2], [0.2, 1.0]]), ["gmf", "wmf"], 30)
    """
    length = np.sqrt(np.diag(cross))
    varies = length > 0
    if varies.sum() < 2:
        return
    told = [name for name, v in zip(names, varies, strict=True) if v]
    correlation = (cross / np.outer(np.where(varies, length, 1.0), np.where(varies, length, 1.0)))[varies][:, varies]
    value, vector = np.linalg.eigh(correlation)
    inflation = float(np.max(np.sum(vector**2 / np.maximum(value, 1e-15), axis=1)))
    if inflation > _INFLATION:
        weight = np.abs(vector[:, 0])
        blamed = [name for name, w in zip(told, weight, strict=True) if w > 0.05 * weight.max()]
        raise EstimationError(
            f"{', '.join(blamed)} are collinear in {n} rows: one follows from the others but for "
            f"{100 / inflation:.2g} % of its variance",
            hint="leave one of them out",
        )
