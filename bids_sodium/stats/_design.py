"""Design matrices: names, rank, and an orthonormal Basis that keeps the digits of ill-scaled columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError

__all__ = ["Basis", "design_matrix", "names_of"]

Float = NDArray[np.float64]


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
