"""What resonates off the carrier: time segments of a field map, and the centre frequency told from the data.

A voxel at ``f(r)`` Hz turns during the readout, ``s_j = V sum_x rho(x) exp(-2 pi i k_j . r_x) exp(2 pi i f(x) t_j)``.
With few segments, ``exp(2 pi i f t) = sum_l b_l(t) exp(2 pi i f tau_l)`` splits time from space, so that a transform
with a field is a handful of transforms without. The ``b_l`` are the least-squares answer for frequencies that are
equally likely within the range of the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import FREQUENCY_RATIO_NA_TO_H
from bids_sodium.core.data import Grid
from bids_sodium.core.errors import DataError
from bids_sodium.recon.nufft import Nufft, Toeplitz

__all__ = ["FieldNufft", "FieldToeplitz", "Segments", "field_at", "sodium_field_hz", "time_segments"]

_TOLERANCE = 5e-4
_MOST_SEGMENTS = 48


def sodium_field_hz(proton_field_hz: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the off-resonance of 23Na where 1H has ``proton_field_hz``: 0.2645 times it.

    Examples
    --------
    >>> sodium_field_hz(np.array([100.0, -20.0])).round(2).tolist()
    [26.45, -5.29]
    """
    return np.asarray(proton_field_hz) * FREQUENCY_RATIO_NA_TO_H


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """``exp(2 pi i f t) = sum_l b_l(t) exp(2 pi i f tau_l)`` for ``|f|`` up to a limit.

    Parameters
    ----------
    tau_ms : (n,) ndarray
        Times of the segments.
    weights : (n, n_samples) ndarray
        Share ``b_l`` of each segment in each sample.
    error : float
        Largest error of the sum over frequencies and times.
    """

    tau_ms: NDArray[np.float64]
    weights: NDArray[np.float64]
    error: float


def time_segments(limit_hz: float, t_ms: NDArray[np.floating], *, tolerance: float = _TOLERANCE) -> Segments:
    """Return as few segments as keep the error of every frequency and time below a tolerance.

    Parameters
    ----------
    limit_hz : float
        Largest distance of a frequency from zero.
    t_ms : (n_samples,) ndarray
        Times of the samples.
    tolerance : float
        Largest error, where the exact value has modulus one.

    Returns
    -------
    Segments
        Times and weights.

    Raises
    ------
    DataError
        If more than 48 segments would be needed.

    References
    ----------
    Noll 1991, IEEE Trans Med Imaging 10:629; Sutton 2003, doi:10.1109/TMI.2002.808360.

    Examples
    --------
    >>> segments = time_segments(40.0, np.linspace(0.0, 20.0, 100))
    >>> len(segments.tau_ms), segments.error < 5e-4
    (7, True)
    """
    t = np.asarray(t_ms, dtype=np.float64)
    frequency = np.linspace(-limit_hz, limit_hz, 129)[:, None] / 1000.0
    exact = np.exp(2j * np.pi * frequency * t)
    for n in range(1, _MOST_SEGMENTS + 1):
        tau = np.linspace(t.min(), t.max(), n) if n > 1 else np.array([t.mean()])
        # The mean of exp(2 pi i f (a - b)) over the range of f is a sinc, which makes the weights real.
        inner = np.sinc(2e-3 * limit_hz * (tau[:, None] - tau))
        weights = np.linalg.lstsq(inner, np.sinc(2e-3 * limit_hz * (tau[:, None] - t)), rcond=1e-12)[0]
        error = float(np.abs(np.exp(2j * np.pi * frequency * tau) @ weights - exact).max())
        if error < tolerance:
            return Segments(tau, weights, error)
    raise DataError(
        f"a field of {2 * limit_hz:.4g} Hz range needs more than {_MOST_SEGMENTS} segments of the readout",
        hint="check that the field map is in Hz at the frequency of sodium, and mask the air",
    )


class FieldNufft:
    """The transform of one trajectory and grid in a field.

    Parameters
    ----------
    nufft : Nufft
        The transform without the field.
    field_hz : (nx, ny, nz) ndarray
        Off-resonance of sodium in each voxel.

    Raises
    ------
    DataError
        If the map does not fit the grid, is not finite, or spans too much.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import plain_radial
    >>> lattice = Grid.centred((16, 16, 16), 8.0)
    >>> operator = FieldNufft(Nufft(plain_radial(8, 16, readout_ms=5.0, voxel_mm=8.0), lattice), np.ones(lattice.shape))
    >>> operator.forward(np.ones(lattice.shape)).shape
    (8, 16)
    """

    def __init__(self, nufft: Nufft, field_hz: NDArray[np.floating]) -> None:
        field_hz = np.asarray(field_hz, dtype=np.float64)
        if field_hz.shape != nufft.grid.shape:
            raise DataError(
                f"a field map of shape {field_hz.shape} on a grid of shape {nufft.grid.shape}",
                hint="resample it to the sodium grid",
            )
        if not np.isfinite(field_hz).all():
            raise DataError("the field map holds NaN or infinite values", hint="set the air to zero")
        self.nufft = nufft
        self.grid, self.trajectory = nufft.grid, nufft.trajectory
        self._middle_hz = float(field_hz.min() + field_hz.max()) / 2.0
        self._limit_hz = float(np.ptp(field_hz)) / 2.0
        self._relative_hz = (field_hz - self._middle_hz).astype(np.float32)
        self._t_ms = nufft.trajectory.t_ms.astype(np.float64)
        self._segments = time_segments(self._limit_hz, self._t_ms)

    def forward(self, image: NDArray[Any]) -> NDArray[np.complexfloating]:
        """Return the samples (n_shots, n_samples) of an image (nx, ny, nz)."""
        total: NDArray[Any] | None = None
        for tau, row in zip(self._segments.tau_ms, self._segments.weights, strict=True):
            part = self.nufft.forward(image * _turned(self._relative_hz, tau))
            part *= (row * self._carrier).astype(part.dtype)
            total = part if total is None else np.add(total, part, out=total)
        return np.asarray(total)

    def gridded(self, samples: NDArray[Any]) -> NDArray[np.complexfloating]:
        """Return ``sum_j s_j exp(+2 pi i k_j . r) exp(-2 pi i f(r) t_j)``, the adjoint without the voxel volume."""
        total: NDArray[Any] | None = None
        for tau, row in zip(self._segments.tau_ms, self._segments.weights, strict=True):
            part = self.nufft.gridded(samples * (row * self._carrier.conj()).astype(np.complex64))
            part *= _turned(self._relative_hz, -tau)
            total = part if total is None else np.add(total, part, out=total)
        return np.asarray(total)

    def adjoint(self, samples: NDArray[Any]) -> NDArray[np.complexfloating]:
        """Return the conjugate transpose of `forward`."""
        return self.gridded(samples) * np.float32(self.grid.voxel_ml * 1000.0)

    def toeplitz(self, weights: NDArray[np.floating]) -> FieldToeplitz:
        """Return the normal operator ``A^H W A / V``.

        It depends on differences of the field alone, whose range is twice that of the field.
        """
        segments = time_segments(2.0 * self._limit_hz, self._t_ms)
        kernels = self.nufft.toeplitz_of(weights * row for row in segments.weights)
        return FieldToeplitz(kernels, self._relative_hz, segments.tau_ms)

    @property
    def _carrier(self) -> NDArray[np.complex128]:
        return np.asarray(np.exp(2e-3j * np.pi * self._middle_hz * self._t_ms))


class FieldToeplitz:
    """The normal operator in a field, ``sum_l E_l^H T_l E_l`` with ``E_l = exp(2 pi i f tau_l)`` in each voxel.

    Parameters
    ----------
    kernels : list of Toeplitz
        Convolution of each segment.
    field_hz : (nx, ny, nz) ndarray
        Off-resonance of each voxel.
    tau_ms : (n,) ndarray
        Times of the segments.

    References
    ----------
    Fessler 2005, IEEE Trans Signal Process 53:3393.
    """

    def __init__(self, kernels: list[Toeplitz], field_hz: NDArray[np.float32], tau_ms: NDArray[np.float64]) -> None:
        self._kernels, self._field_hz, self._tau_ms = kernels, field_hz, tau_ms

    def __call__(self, image: NDArray[np.complexfloating]) -> NDArray[np.complexfloating]:
        """Return the image (nx, ny, nz) that the operator makes of one."""
        total = np.zeros_like(image)
        for kernel, tau in zip(self._kernels, self._tau_ms, strict=True):
            turn = _turned(self._field_hz, tau)
            total += turn.conj() * kernel(turn * image)
        return total


def field_at(field_hz: NDArray[np.floating], grid: Grid, points_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return a field map at points of the world (..., 3), interpolated linearly; its edge goes on outside.

    Examples
    --------
    >>> lattice = Grid.centred((8, 8, 8), 4.0)
    >>> ramp = np.broadcast_to(np.arange(8.0), lattice.shape)
    >>> field_at(ramp, lattice, np.array([[0.0, 0.0, 2.0], [0.0, 0.0, 99.0]])).tolist()
    [4.5, 7.0]
    """
    from scipy.ndimage import map_coordinates

    index = np.moveaxis(grid.index(points_mm), -1, 0)
    return np.asarray(map_coordinates(np.asarray(field_hz, dtype=np.float64), index, order=1, mode="nearest"))


def _turned(field_hz: NDArray[np.float32], t_ms: float) -> NDArray[np.complex64]:
    return np.asarray(np.exp(np.float32(2e-3 * np.pi * t_ms) * 1j * field_hz), dtype=np.complex64)
