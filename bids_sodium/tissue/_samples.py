"""The fit of regional concentrations to k-space itself, from sums over the samples that are small and made once.

``moments`` reads samples and columns once, in blocks; fits and changed subsets need only the sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.tissue._estimators import independent_of

__all__ = ["Fit", "SampleMoments", "fit_moments", "moments"]

Array: TypeAlias = NDArray[np.float64]

_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class SampleMoments:
    """Sums over k-space samples ``s`` and columns ``a_t`` with weights ``w`` and without.

    Parameters
    ----------
    names : tuple of str
        Names of the columns; those nobody asks about (vials, soft tissue) are nuisances of the fit.
    flat, dense, squared : (n, n) ndarray
        ``Re(A' A)``, ``Re(A' W A)`` and ``Re(A' W^2 A)``.
    flat_data, dense_data : (n,) complex ndarray
        ``A' s`` and ``A' W s``.
    power : float
        ``|s|^2``.
    n_samples : int
        Complex samples.
    doubts_flat, doubts_dense : dict of (n, m) ndarray
        ``Re(A' D)`` and ``Re(A' W D)`` of the changes ``D`` that count one standard deviation each, by source, over the
        shots that doubts are told for.
    thin_flat, thin_dense : (n, n) ndarray
        ``flat`` and ``dense`` over those shots.
    """

    names: tuple[str, ...]
    flat: Array
    dense: Array
    squared: Array
    flat_data: NDArray[np.complex128]
    dense_data: NDArray[np.complex128]
    power: float
    n_samples: int
    doubts_flat: dict[str, Array] = field(default_factory=dict)
    doubts_dense: dict[str, Array] = field(default_factory=dict)
    thin_flat: Array = field(default_factory=lambda: np.zeros((0, 0)))
    thin_dense: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def of(self, names: Sequence[str]) -> SampleMoments:
        """Return the moments of some columns, in that order."""
        T = np.eye(len(self.names))[[self.names.index(name) for name in names]]
        return replace(
            self,
            names=tuple(names),
            flat=T @ self.flat @ T.T,
            dense=T @ self.dense @ T.T,
            squared=T @ self.squared @ T.T,
            flat_data=T @ self.flat_data,
            dense_data=T @ self.dense_data,
            doubts_flat={source: T @ products for source, products in self.doubts_flat.items()},
            doubts_dense={source: T @ products for source, products in self.doubts_dense.items()},
            thin_flat=T @ self.thin_flat @ T.T if self.doubts_flat else self.thin_flat,
            thin_dense=T @ self.thin_dense @ T.T if self.doubts_dense else self.thin_dense,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A fit to k-space, with standard errors from noise and residual.

    Parameters
    ----------
    names : tuple of str
        Columns that could be told apart.
    c : (m,) ndarray
        Their concentrations.
    covariance : (m, m) ndarray
        Of the noise.
    moved : dict of (m, k) ndarray
        Change of the concentrations with every doubt, by source.
    sigma : float
        Noise of a real part, from the residual of the flat fit where it was not given.
    phase_rad : float
        Phase of the samples.
    """

    names: tuple[str, ...]
    c: Array
    covariance: Array
    moved: dict[str, Array]
    sigma: float
    phase_rad: float


def moments(
    samples: NDArray[np.complexfloating],
    columns: Iterable[NDArray[np.complexfloating]],
    names: Sequence[str],
    density: NDArray[np.floating] | None = None,
    *,
    doubts: Mapping[str, Iterable[NDArray[np.complexfloating]]] | None = None,
    thin: int = 1,
) -> SampleMoments:
    """Sum over samples and columns.

    Parameters
    ----------
    samples : (n_shots, n_samples) complex ndarray
        Measured signal, scaled so that a column at 1 mmol/L has the size of ``columns``.
    columns : (n, n_shots, n_samples) complex ndarray or iterable of its rows
        Signal of each tissue and vial at 1 mmol/L on the same trajectory.
    names : sequence of str
        Names of the columns.
    density : (n_shots, n_samples) ndarray, optional
        Density weights, not negative; flat where there are none.
    doubts : mapping of iterable of (n_shots / thin, n_samples) ndarray, optional
        Changes of the samples that count one standard deviation each, by source; they are read one by one.
    thin : int
        Doubts are given for every so many shots: what they move is a fit to those shots, which saves time.

    Returns
    -------
    SampleMoments
        All that a fit needs.

    Raises
    ------
    DataError, GeometryError
        If shapes do not fit or a weight is negative.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> A = rng.normal(size=(2, 30, 20)) + 1j * rng.normal(size=(2, 30, 20))
    >>> fit_moments(moments(40 * A[0] + 30 * A[1], A, ("CGM", "NAWM"))).c.round(6)
    array([40., 30.])
    """
    s = np.asarray(samples)
    rows = [np.asarray(column) for column in columns]
    if len(rows) != len(names) or any(row.shape != s.shape for row in rows):
        raise GeometryError(f"samples of shape {s.shape}, {len(names)} names and {len(rows)} columns do not fit")
    if len(set(names)) != len(names):
        raise DataError(f"a tissue is named twice in {', '.join(names)}")
    w = np.ones(s.shape) if density is None else np.asarray(density, dtype=np.float64)
    if w.shape != s.shape or not np.isfinite(w).all() or (w < 0).any():
        raise DataError(f"weights of shape {w.shape} with least value {w.min():.3g} on samples of shape {s.shape}")
    n = len(rows)
    flat, dense, squared = (np.zeros((n, n)) for _ in range(3))
    data, dense_data, power = np.zeros((n, 2)), np.zeros((n, 2)), 0.0
    lines = [row.reshape(-1) for row in (*rows, s)]
    weight = (w / max(float(w.max()), 1e-300)).reshape(-1)
    for start in range(0, s.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        # of complex numbers side by side as reals, the dot product is the real part of the inner product
        block = np.array([line[part] for line in lines], dtype=np.complex128).view(np.float64)
        a, b = block[:-1], block[-1]
        turned = np.stack([b[1::2], -b[0::2]], axis=1).ravel()
        v = np.repeat(weight[part], 2)
        av, both = a * v, np.stack([b, turned], axis=1)
        flat += a @ a.T
        dense += av @ a.T
        squared += av @ av.T
        data += a @ both
        dense_data += av @ both
        power += float(b @ b)
    products = _Products(rows, w, thin) if doubts else None
    by_source = {
        source: [products.with_change(change) for change in changes]
        for source, changes in (doubts or {}).items()
        if products is not None
    }
    return SampleMoments(
        names=tuple(names),
        flat=flat,
        dense=dense,
        squared=squared,
        flat_data=data[:, 0] + 1j * data[:, 1],
        dense_data=dense_data[:, 0] + 1j * dense_data[:, 1],
        power=power,
        n_samples=s.size,
        doubts_flat={source: np.array([pair[0] for pair in pairs]).T for source, pairs in by_source.items() if pairs},
        doubts_dense={source: np.array([pair[1] for pair in pairs]).T for source, pairs in by_source.items() if pairs},
        thin_flat=np.zeros((0, 0)) if products is None else products.flat,
        thin_dense=np.zeros((0, 0)) if products is None else products.dense,
    )


class _Products:
    """Inner products of columns with one another and with changes, over every so many shots."""

    def __init__(self, rows: Sequence[NDArray[np.complexfloating]], weights: Array, thin: int) -> None:
        # of complex numbers side by side as reals, the dot product is the real part of the inner product
        self._shape = rows[0][::thin].shape
        self._columns = np.stack([_as_reals(row[::thin]) for row in rows])
        self._weight = np.repeat((weights[::thin] / max(float(weights.max()), 1e-300)).astype(np.float32).ravel(), 2)
        self.flat = np.asarray(self._columns @ self._columns.T, dtype=np.float64)
        self.dense = np.asarray((self._columns * self._weight) @ self._columns.T, dtype=np.float64)

    def with_change(self, change: NDArray[np.complexfloating]) -> tuple[Array, Array]:
        """Return ``Re(A' d)`` and ``Re(A' W d)``."""
        if change.shape != self._shape:
            raise GeometryError(f"a change of shape {change.shape} for samples of shape {self._shape}")
        d = _as_reals(change)
        both = self._columns @ np.stack([d, d * self._weight], axis=1)
        return both[:, 0].astype(np.float64), both[:, 1].astype(np.float64)


def _as_reals(samples: NDArray[np.complexfloating]) -> NDArray[np.float32]:
    return np.ascontiguousarray(samples, dtype=np.complex64).view(np.float32).ravel()


def fit_moments(found: SampleMoments, *, density: bool = False, sigma: float | None = None) -> Fit:
    """Return the real concentrations and the one phase that explain the samples best.

    ``min sum w |exp(-i phi) s - sum c_t a_t|^2``. For every phase ``c = inv(N) Re(exp(-i phi) b)``, which leaves
    ``2 phi = arg(b' inv(N) b)`` without conjugation. Noise is white in the samples whatever the weights, so that
    ``cov(c) = sigma^2 inv(N) Re(A' W^2 A) inv(N)``.

    Parameters
    ----------
    found : SampleMoments
        Sums over the samples.
    density : bool
        Whether samples weigh with their density weights instead of all alike.
    sigma : float, optional
        Standard deviation of the noise in the real part of a sample; never below that of the residual.

    Raises
    ------
    EstimationError
        If every column is empty.
    """
    kept = independent_of(found.flat, np.sqrt(np.maximum(np.diag(found.flat), 0.0)))
    if kept.size == 0:
        raise EstimationError("every tissue column is empty in k-space")
    at = np.ix_(kept, kept)
    inverse, phase, c = _solved(found.flat[at], found.flat_data[kept])
    explained = float(c @ found.flat[at] @ c)
    # the least residual of a fit with a free phase: |s|^2 - c N c
    left = max(found.power - explained, 0.0)
    seen = float(np.sqrt(left / max(2 * found.n_samples - kept.size - 1, 1)))
    level = seen if sigma is None else max(float(sigma), seen)
    if density:
        inverse, phase, c = _solved(found.dense[at], found.dense_data[kept])
        covariance = level**2 * (inverse @ found.squared[at] @ inverse)
    else:
        covariance = level**2 * inverse
    return Fit(
        names=tuple(found.names[i] for i in kept),
        c=c,
        covariance=np.asarray(0.5 * (covariance + covariance.T)),
        moved={
            source: np.asarray(np.linalg.solve((found.thin_dense if density else found.thin_flat)[at], products[kept]))
            for source, products in (found.doubts_dense if density else found.doubts_flat).items()
        },
        sigma=level,
        phase_rad=phase,
    )


def _solved(N: Array, b: NDArray[np.complex128]) -> tuple[Array, float, Array]:
    inverse = np.asarray(np.linalg.inv(N), dtype=np.float64)
    phase = 0.5 * float(np.angle(b @ inverse @ b))
    c = inverse @ (np.exp(-1j * phase) * b).real
    if c @ N.sum(axis=1) < 0:
        phase += np.pi
        c = -c
    return inverse, phase, np.asarray(c)
