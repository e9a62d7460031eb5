"""Raw data as plain arrays: NumPy archives, MATLAB files and HDF5 without an ISMRMRD header.

``samples`` holds (coils, shots, samples), or (shots, samples) of one channel; more axes, or another order, are named by
the sidecar's ``SampleAxes`` or a text ``dims`` in the file: coil, echo, average, repetition, shot and sample, or x, y
and z in place of the last two for a Cartesian lattice. The positions ``k_per_mm``, or ``k`` with its ``units``, are
(shots, samples, 3), ``t_ms`` the sample times; a leading axis of each may run over echoes. The grid is ``shape`` with
``affine`` (4 x 4, RAS, mm) or ``voxel_mm``. ``noise`` (coils, n) is a noise scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio._metadata import (
    agreed,
    check_memory,
    dwell_ms,
    dwell_offset,
    echo_time_ms,
    grid_of,
    positive_number,
    repetition_time_ms,
    stated_grid,
)
from bids_sodium.bidsio._readouts import Line, cartesian_readouts
from bids_sodium.bidsio._stored import Stored, text_of
from bids_sodium.bidsio._trajectory_files import arranged, in_cycles, stated_trajectory
from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.core.errors import DataError

__all__ = ["from_arrays"]

_AXES = ("coil", "echo", "average", "repetition", "shot", "sample", "x", "y", "z")
_SLAB_BYTES = 1 << 25


def from_arrays(
    arrays: Mapping[str, Stored],
    sidecar: Mapping[str, Any],
    folder: Path,
    *,
    echo: int = 0,
    repetition: int | None = None,
    memory_gb: float | None = None,
) -> KSpace:
    """Return raw data that lie as plain arrays.

    Parameters
    ----------
    arrays : mapping of Stored
        The arrays by name.
    sidecar : mapping
        As for `read_kspace`, with ``SampleAxes``, and ``MatrixSize`` with ``AcquisitionVoxelSize`` (mm) where the
        arrays hold no grid.
    folder : Path
        Where ``TrajectoryFile`` is looked for.
    echo, repetition, memory_gb
        As for `read_kspace`.

    Raises
    ------
    DataError
        If an array is missing, of the wrong shape or type, or too large.
    """
    if "samples" not in arrays:
        raise DataError(f"no array 'samples', only {', '.join(arrays) or 'nothing'}", hint="name the k-space 'samples'")
    stored = arrays["samples"]
    axes = _axes(stored, arrays, sidecar)
    check_memory(math.prod(stored.shape) / axes.n_per_sample, memory_gb, "the samples")
    samples = _samples(stored, axes, echo, repetition)
    grid = _grid(arrays, sidecar)
    n_shots, n = math.prod(samples.shape[1:-1]), samples.shape[-1]
    t_ms = _times(arrays, echo, n, n_shots)
    if "x" in axes.names:
        samples, trajectory, grid = _lattice(samples, grid, dwell_ms(math.nan, sidecar, n))
    else:
        trajectory = _trajectory(arrays, sidecar, folder, grid, echo=echo, n_shots=n_shots, n=n, t_ms=t_ms)
    missing = math.nan
    averaged = axes.averaged(repetition)
    return KSpace(
        samples,
        trajectory,
        grid,
        te_ms=echo_time_ms([], sidecar, echo, axes.size("echo")),
        tr_ms=repetition_time_ms(missing, sidecar, float(np.ptp(trajectory.t_ms))),
        flip_deg=agreed("flip angle", missing, sidecar.get("FlipAngle"), 1.0, "degrees"),
        frequency_mhz=positive_number(sidecar, "ImagingFrequency"),
        noise=np.asarray(arrays["noise"].values(), dtype=np.complex64) if "noise" in arrays else None,
        n_averages=averaged,
        n_echoes=axes.size("echo"),
        notes=(f"the mean of {averaged} averages or repetitions was taken",) if averaged > 1 else (),
    )


@dataclass(frozen=True, slots=True)
class _Axes:
    """Names of the axes of the samples, in the order of the file, and their lengths."""

    names: tuple[str, ...]
    shape: tuple[int, ...]

    def size(self, name: str) -> int:
        return self.shape[self.names.index(name)] if name in self.names else 1

    def averaged(self, repetition: int | None) -> int:
        return self.size("average") * (self.size("repetition") if repetition is None else 1)

    @property
    def n_per_sample(self) -> int:
        """How many values of the file make one of the result, or are left out."""
        return self.size("echo") * self.size("average") * self.size("repetition")

    @property
    def order(self) -> tuple[str, ...]:
        """Axes of the result."""
        return ("coil", "z", "y", "x") if "x" in self.names else ("coil", "shot", "sample")


def _axes(stored: Stored, arrays: Mapping[str, Stored], sidecar: Mapping[str, Any]) -> _Axes:
    stated = sidecar.get("SampleAxes")
    if stated is None and "dims" in arrays:
        stated = text_of(arrays["dims"].values())
    shape = stored.shape[::-1] if stored.is_reversed else stored.shape
    if stated is None:
        if len(shape) not in {2, 3}:
            raise DataError(
                f"samples of shape {shape}",
                hint="give (coils, shots, samples), or name the axes in the sidecar's SampleAxes: " + ", ".join(_AXES),
            )
        names: tuple[str, ...] = ("coil", "shot", "sample")[-len(shape) :]
    else:
        listed = stated.replace(",", " ").split() if isinstance(stated, str) else list(stated)
        names = tuple(str(name).lower() for name in listed)
    lattice = {"x", "y", "z"} <= set(names)
    wanted = {"x", "y", "z"} if lattice else {"shot", "sample"}
    if (
        len(names) != len(shape)
        or len(set(names)) != len(names)
        or not wanted <= set(names)
        or not set(names) <= (set(_AXES) - {"shot", "sample"} if lattice else set(_AXES) - {"x", "y", "z"})
    ):
        raise DataError(
            f"samples of shape {shape} with the axes {', '.join(names)}",
            hint=f"name each axis once in SampleAxes: {', '.join(_AXES[:6])}; or x, y, z in place of shot and sample",
        )
    if stored.is_reversed:
        names, shape = names[::-1], shape[::-1]
    return _Axes(names, shape)


def _samples(stored: Stored, axes: _Axes, echo: int, repetition: int | None) -> NDArray[np.complex64]:
    """Return (n_coils, ..., n), slab by slab along the first axis of the file."""
    chosen = {"echo": echo} if "echo" in axes.names else {}
    if repetition is not None and "repetition" in axes.names:
        chosen["repetition"] = repetition
    for name, number, n in (
        ("echo", echo, axes.size("echo")),
        ("repetition", repetition or 0, axes.size("repetition")),
    ):
        if not 0 <= number < n:
            raise DataError(f"{name} {number} of a file with {n}", hint=f"choose 0 to {n - 1}, they count from 0")
    index: list[int | slice] = [chosen.get(name, slice(None)) for name in axes.names]
    left = [name for name in axes.names if name not in chosen]
    slab = axes.names.index(left[0])
    length = axes.shape[slab]
    step = max(1, _SLAB_BYTES * length // (8 * math.prod(axes.shape))) if stored.in_pieces else length
    target = np.zeros([axes.size(name) for name in axes.order], dtype=np.complex64)
    share = np.float32(1.0 / axes.averaged(repetition))
    # Axes that are averaged come first, the others in the order of the result; a missing channel axis is made.
    order = [left.index(name) for name in left if name not in axes.order]
    order += [left.index(name) for name in axes.order if name in left]
    for start in range(0, length, step):
        index[slab] = slice(start, start + step)
        part = stored.load(tuple(index))
        if not np.iscomplexobj(part):
            raise DataError(
                f"samples of shape {axes.shape} and type {part.dtype}", hint="give complex (coils, shots, samples)"
            )
        part = part.transpose(order)
        part = part.sum(axis=tuple(range(len(order) - len(target.shape) + ("coil" not in left))))
        part = part[None] if "coil" not in left else part
        place = [slice(start, start + step) if name == left[0] else slice(None) for name in axes.order]
        target[tuple(place)] += share * part
    return target


def _grid(arrays: Mapping[str, Stored], sidecar: Mapping[str, Any]) -> Grid:
    shape, affine, voxel = (
        arrays[name].values() if name in arrays else None for name in ("shape", "affine", "voxel_mm")
    )
    if shape is None or (affine is None and voxel is None):
        stated = stated_grid(sidecar)
        if stated is None:
            raise DataError(
                "no grid",
                hint="store 'shape' (nx, ny, nz) and 'affine' (4 x 4, RAS mm) or 'voxel_mm', or state MatrixSize and "
                "AcquisitionVoxelSize in the sidecar",
            )
        return grid_of(*stated)
    if shape.size != 3 or (affine is None and voxel is not None and voxel.size not in {1, 3}):
        raise DataError(
            f"'shape' of {shape.size} numbers", hint="store three numbers of voxels, and one or three sizes"
        )
    x, y, z = (int(n) for n in shape.ravel())
    if affine is not None:
        return Grid((x, y, z), np.asarray(affine))
    assert voxel is not None  # noqa: S101
    return grid_of((x, y, z), (np.broadcast_to(voxel.ravel(), 3) * (x, y, z)).tolist())


def _times(arrays: Mapping[str, Stored], echo: int, n: int, n_shots: int) -> NDArray[np.float64] | None:
    if "t_ms" not in arrays:
        return None
    t_ms = np.asarray(arrays["t_ms"].values(), dtype=np.float64)
    rows = t_ms.reshape(-1, n) if t_ms.size % n == 0 and t_ms.size else t_ms.reshape(1, -1)
    if rows.shape[0] == n_shots and np.abs(rows - rows[0]).max() > 1e-3 * np.ptp(rows[0]):
        odd = np.flatnonzero(np.abs(rows - rows[0]).max(axis=1) > 1e-3 * np.ptp(rows[0]))
        raise DataError(
            f"readout {int(odd[0])} has other sample times than the first ({odd.size} of {n_shots} differ)",
            hint="export readouts of one bandwidth a file",
        )
    row = rows[min(echo, len(rows) - 1)]
    if not np.isfinite(row).all() or not (np.diff(row) > 0).all():
        raise DataError("the sample times 't_ms' do not rise", hint="store the time of each sample in ms")
    return np.asarray(row)


def _lattice(
    samples: NDArray[np.complex64], grid: Grid, dwell: float
) -> tuple[NDArray[np.complex64], Trajectory, Grid]:
    """Return a Cartesian lattice (n_coils, z, y, x) as readouts; an x axis longer than the grid is oversampled.

    Lines that are zero in every channel were not acquired, as in the corners of elliptical scanning.
    """
    n_coils, nz, ny, nx = samples.shape
    size, fov_mm = grid.shape, grid.fov_mm
    if (ny, nz) != size[1:] or nx < size[0]:
        raise DataError(
            f"a lattice of {nx} x {ny} x {nz} samples for a grid of {' x '.join(map(str, size))}",
            hint="export the whole lattice; only x may be oversampled",
        )
    line = Line((nx, ny, nz), (fov_mm[0] * nx / size[0], fov_mm[1], fov_mm[2]), nx / size[0], nx // 2, dwell)
    z, y = np.meshgrid(np.arange(nz) - nz // 2, np.arange(ny) - ny // 2, indexing="ij")
    readouts = samples.reshape(n_coils, nz * ny, nx)
    acquired = readouts.any(axis=(0, 2))
    if not acquired.all():
        readouts = readouts[:, acquired]
    readouts, trajectory, _, _ = cartesian_readouts(readouts, line, y.ravel()[acquired], z.ravel()[acquired])
    return readouts, trajectory, grid


def _trajectory(
    arrays: Mapping[str, Stored],
    sidecar: Mapping[str, Any],
    folder: Path,
    grid: Grid,
    *,
    echo: int,
    n_shots: int,
    n: int,
    t_ms: NDArray[np.float64] | None,
) -> Trajectory:
    name = next((name for name in ("k_per_mm", "k") if name in arrays), None)
    if t_ms is None and (name is not None or "TrajectoryFile" in sidecar):
        t_ms = np.asarray((np.arange(n) + dwell_offset(sidecar)) * dwell_ms(math.nan, sidecar, n), dtype=np.float64)
    if name is None or "TrajectoryFile" in sidecar:
        return stated_trajectory(sidecar, folder, grid, n_shots=n_shots, n_samples=n, t_ms=t_ms)
    assert t_ms is not None  # noqa: S101
    positions = arrays[name].values()
    if positions.ndim == 4:
        positions = positions[min(echo, len(positions) - 1)]
    units = text_of(arrays["units"].values()) if "units" in arrays and name == "k" else "1/mm"
    return Trajectory(in_cycles(arranged(positions, n_shots, n), grid, sidecar, units, f"'{name}' is in {units}"), t_ms)
