"""Trajectories from files beside the raw data: positions, spoke angles, k against time, gradients; and named ones.

The sidecar's ``TrajectoryFile`` is one name or several, relative to the folder of the raw data, whose contents are put
together. Tables (``.tsv``) have columns, other files (``.npz``, ``.mat``, ``.h5``) arrays of the same names:

* positions ``k_per_mm``, or ``k`` with its ``units``, (shots, samples, 3), and ``t_ms`` where they have times;
* directions of spokes, ``polar_deg`` and ``azimuth_deg``, or ``x y z`` (arrays: ``directions``), one row a shot;
* k against time, ``t_ms`` and ``k_per_mm``, or ``kx_per_mm ky_per_mm kz_per_mm`` (tables also ``x y z``): how far a
  spoke has come after a time where it points along that axis;
* gradients ``gx_mt_m gy_mt_m gz_mt_m`` (arrays: ``gradient_mt_m``, (shots, raster times, 3)), or ``g_mt_m`` of a spoke,
  at times ``t_ms`` or a raster of ``raster_ms``; one waveform for all shots is turned into the directions, a column
  ``shot`` tells several apart.

What is missing, the directions or the speed, comes from ``NonCartesianTrajectory``. ``GradientImpulseResponse`` names a
file with ``frequency_khz`` and ``response`` (n,) or (n, 3), in a table ``real imag`` or ``x_real x_imag y_real ...``;
gradients, nominal or imported, are filtered with it along the axes of the world, which are those of the gradient coils
where the patient lies on the back or the front.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio._metadata import positive_number, reach_of, unit_factor
from bids_sodium.bidsio._stored import SUFFIXES, open_arrays, text_of
from bids_sodium.bidsio.files import read_table
from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import DataError
from bids_sodium.recon.gradients import from_angles, from_directions, from_gradients, impulse_response_filtered
from bids_sodium.recon.trajectory import directions, from_description

__all__ = ["arranged", "in_cycles", "stated_trajectory"]

_AXES = ("x", "y", "z")
_PER_AXIS = ("kx_per_mm", "ky_per_mm", "kz_per_mm")
_RASTER_MS = 0.01
_BLOCK = 256
Arrays = dict[str, NDArray[Any]]


def stated_trajectory(
    sidecar: Mapping[str, Any],
    folder: Path,
    grid: Grid,
    *,
    n_shots: int,
    n_samples: int,
    t_ms: NDArray[np.float64] | None,
) -> Trajectory:
    """Return the trajectory that the sidecar names: by files, or by type and numbers.

    Parameters
    ----------
    sidecar : mapping
        With ``TrajectoryFile`` or ``NonCartesianTrajectory``.
    folder : Path
        Of the raw data.
    grid : Grid
        Of the acquisition.
    n_shots, n_samples : int
        Readouts and samples in each.
    t_ms : (n_samples,) ndarray or None
        Sample times, where the data tell them.

    Raises
    ------
    DataError
        If nothing is named, or what is named does not fit the data.
    """
    names = sidecar.get("TrajectoryFile")
    if names is None:
        return _described(sidecar, folder, grid, n_shots, n_samples, t_ms)
    files = [folder / str(name) for name in ([names] if isinstance(names, str) else names)]
    where = ", ".join(file.name for file in files)
    try:
        return _imported(_contents(files), sidecar, folder, grid, n_shots, n_samples, t_ms)
    except DataError as error:
        raise DataError(error.what, where=error.where or where, hint=error.hint) from error


def arranged(positions: NDArray[Any], n_shots: int, n_samples: int) -> NDArray[Any]:
    """Return positions (n_shots, n_samples, 3), whichever way round their axes lie."""
    wanted = (n_shots, n_samples, 3)
    if positions.shape == (n_shots * n_samples, 3):
        return positions.reshape(wanted)
    if positions.shape == wanted:
        return positions
    fitting = [
        order for order in itertools.permutations(range(positions.ndim)) if _permuted(positions, order) == wanted
    ]
    if len(fitting) != 1:
        raise DataError(
            f"data of {n_shots} shots x {n_samples} samples but a trajectory of shape {positions.shape}",
            hint="give (shots, samples, 3), and check that the trajectory belongs to this acquisition",
        )
    return positions.transpose(fitting[0])


def _permuted(positions: NDArray[Any], order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(positions.shape[axis] for axis in order)


def in_cycles(
    positions: NDArray[Any], grid: Grid, sidecar: Mapping[str, Any], units: str, source: str
) -> NDArray[np.floating]:
    """Return positions in cycles/mm."""
    factor = unit_factor(reach_of(positions), grid, sidecar, assumed=units, source=source)
    return positions if (factor == 1.0).all() else (positions * factor).astype(np.float32)


def _contents(files: list[Path]) -> Arrays:
    found: Arrays = {}
    for file in files:
        if not file.is_file():
            raise DataError("no such file", where=file.name, hint="TrajectoryFile is relative to the raw data's folder")
        for name, values in _arrays_of(file).items():
            if name in found:
                raise DataError(f"'{name}' is in two files", where=file.name, hint="keep one of them")
            found[name] = values
    return found


def _arrays_of(file: Path) -> Arrays:
    suffix = file.suffix.lower()
    if suffix in {".tsv", ".txt"}:
        table = read_table(file)
        text = [str(name) for name in table.columns if table[name].dtype.kind not in "iuf"]
        if text or table.isna().to_numpy().any():
            raise DataError(
                f"not every cell is a number{', see ' + text[0] if text else ''}", where=file.name, hint="fill the gaps"
            )
        columns = {str(name): table[name].to_numpy(dtype=np.float64) for name in table.columns}
        if set(_AXES) <= set(columns):
            point = [columns.pop(axis) for axis in _AXES]
            if "t_ms" in columns:
                return columns | dict(zip(_PER_AXIS, point, strict=True))
            return columns | {"directions": np.stack(point, axis=-1)}
        return columns
    if suffix not in SUFFIXES:
        raise DataError(
            f"a file of the unknown kind '{suffix}'", where=file.name, hint=f"use .tsv, {', '.join(SUFFIXES)}"
        )
    with open_arrays(file) as stored:
        return {name: array.values() for name, array in stored.items() if not name.startswith("__")}


def _imported(
    arrays: Arrays,
    sidecar: Mapping[str, Any],
    folder: Path,
    grid: Grid,
    n_shots: int,
    n_samples: int,
    t_ms: NDArray[np.float64] | None,
) -> Trajectory:
    spokes = _spokes(arrays, sidecar, n_shots)
    response = _response(sidecar, folder)
    name = next((name for name in ("k_per_mm", "k") if name in arrays and np.squeeze(arrays[name]).ndim > 1), None)
    if name is not None:
        if response is not None:
            raise DataError(
                "a GradientImpulseResponse with positions of k, which cannot be filtered",
                hint="import the gradients instead, or leave the response out",
            )
        units = text_of(arrays["units"]) if "units" in arrays and name == "k" else "1/mm"
        positions = arranged(arrays[name], n_shots, n_samples)
        own = np.asarray(arrays["t_ms"], dtype=np.float64).ravel() if "t_ms" in arrays else t_ms
        omega = np.asarray(arrays["solid_angle_sr"], dtype=np.float64).ravel() if "solid_angle_sr" in arrays else None
        k_per_mm = in_cycles(positions, grid, sidecar, units, f"'{name}' is in {units}")
        return Trajectory(k_per_mm, _needed(own), omega)
    waveform = _waveform(arrays, sidecar)
    table = _law(arrays)
    if waveform is not None:
        gradient, raster_ms, point = waveform
        t = _needed(t_ms)
        if len(gradient) == n_shots > 1:
            return _played(gradient, raster_ms, point, t, grid, response)
        if len(gradient) != 1:
            raise DataError(f"{len(gradient)} gradient waveforms for {n_shots} shots", hint="give one, or one a shot")
        along = _played(_on_axes(gradient[0]), raster_ms, point, t, grid, response).k_per_mm
    elif table is not None:
        if response is not None:
            raise DataError(
                "a GradientImpulseResponse with k against time, which was played already",
                hint="import the gradients instead, or leave the response out",
            )
        t = _needed(t_ms)
        along = _on_axes(_at(t, *table))
    elif spokes is not None:
        t, along = _described_spoke(sidecar, grid, n_samples, t_ms, response)
    else:
        raise DataError(
            f"neither positions, directions, gradients nor k against time, only {', '.join(arrays)}",
            hint="name columns or arrays k_per_mm, polar_deg and azimuth_deg, x y z, t_ms, g_mt_m ...",
        )
    if spokes is None:
        raise DataError(
            "no directions of the spokes",
            hint="add their angles to TrajectoryFile, or SpokeOrder to NonCartesianTrajectory",
        )
    straight = from_directions(spokes, np.zeros(t.size), t)
    unit = spokes / np.linalg.norm(spokes, axis=1, keepdims=True)
    k_per_mm = np.tensordot(unit, along.astype(np.float64), axes=(1, 0)).astype(np.float32)
    return Trajectory(k_per_mm, straight.t_ms, straight.solid_angle_sr, straight.kind)


def _needed(t_ms: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if t_ms is None:
        raise DataError("the time between samples is not stated", hint="state DwellTime in s in the sidecar")
    return t_ms


def _spokes(arrays: Arrays, sidecar: Mapping[str, Any], n_shots: int) -> NDArray[np.float64] | None:
    """Return directions (n_shots, 3): of the files, else of the order that the sidecar names."""
    if "polar_deg" in arrays and "azimuth_deg" in arrays:
        spokes = from_angles(arrays["polar_deg"].ravel(), arrays["azimuth_deg"].ravel())
    elif "directions" in arrays:
        spokes = np.asarray(arrays["directions"], dtype=np.float64)
    else:
        order = (sidecar.get("NonCartesianTrajectory") or {}).get("SpokeOrder")
        return None if order is None else directions(n_shots, str(order))
    if spokes.shape != (n_shots, 3):
        raise DataError(
            f"{len(spokes)} directions for {n_shots} readouts", hint="give one row for each readout, in their order"
        )
    return np.asarray(spokes)


def _law(arrays: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return times and k (n, 3) along each axis."""
    if "t_ms" not in arrays:
        return None
    if set(_PER_AXIS) <= set(arrays):
        law = np.stack([arrays[name].ravel() for name in _PER_AXIS], axis=-1)
    elif "k_per_mm" in arrays:
        law = np.repeat(arrays["k_per_mm"].ravel()[:, None], 3, axis=1)
    else:
        return None
    t = np.asarray(arrays["t_ms"], dtype=np.float64).ravel()
    if len(law) != t.size or t.size < 2 or not (np.diff(t) > 0).all():
        raise DataError(
            f"{len(law)} values of k at {t.size} times", hint="give one k for each of at least two rising times"
        )
    return t, np.asarray(law, dtype=np.float64)


def _at(t_ms: NDArray[np.float64], times: NDArray[np.float64], law: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return k (n, 3) at the sample times; before the table it leads straight from the centre."""
    if t_ms[-1] > times[-1] * (1.0 + 1e-6) + 1e-9:
        raise DataError(
            f"k against time ends at {times[-1]:.4g} ms, the last sample is at {t_ms[-1]:.4g} ms",
            hint="continue the table to the end of the readout, in ms",
        )
    if times[0] > 0.0:
        times, law = np.concatenate([[0.0], times]), np.concatenate([np.zeros((1, 3)), law])
    return np.stack([np.interp(t_ms, times, law[:, axis]) for axis in range(3)], axis=-1)


def _waveform(arrays: Arrays, sidecar: Mapping[str, Any]) -> tuple[NDArray[np.float64], float, str] | None:
    """Return gradients (n, n_raster, 3) in mT/m, their raster time in ms and where in it the values lie."""
    columns = [f"g{axis}_mt_m" for axis in _AXES]
    if "gradient_mt_m" in arrays:
        gradient = np.asarray(arrays["gradient_mt_m"], dtype=np.float64)
    elif all(name in arrays for name in columns):
        gradient = np.stack([arrays[name].ravel() for name in columns], axis=-1)
    elif "g_mt_m" in arrays:
        gradient = np.repeat(arrays["g_mt_m"].ravel()[:, None], 3, axis=1)
    else:
        return None
    times = np.asarray(arrays["t_ms"], dtype=np.float64).ravel() if "t_ms" in arrays else None
    if "shot" in arrays:
        kinds, counts = np.unique(arrays["shot"], return_counts=True)
        if len(set(counts.tolist())) > 1:
            raise DataError("waveforms of different lengths", hint="give the same number of rows for each shot")
        gradient = gradient.reshape(kinds.size, counts[0], 3)
        times = None if times is None else times[: counts[0]]
    gradient = gradient[None] if gradient.ndim == 2 else gradient
    if gradient.ndim != 3 or gradient.shape[2] != 3:
        raise DataError(f"gradients of shape {gradient.shape}", hint="give (shots, raster times, 3)")
    if times is None:
        raster_ms = float(arrays["raster_ms"].ravel()[0]) if "raster_ms" in arrays else math.nan
        if not math.isfinite(raster_ms):
            raster_ms = positive_number(sidecar, "GradientRasterTime") * 1e3
        if not math.isfinite(raster_ms):
            raise DataError("no raster time of the gradients", hint="store raster_ms, or state GradientRasterTime in s")
        return gradient, raster_ms, "centre"
    steps = np.diff(times)
    if times.size != gradient.shape[1] or not steps.size or np.ptp(steps) > 0.01 * steps.mean() or steps.mean() <= 0:
        raise DataError(
            f"{gradient.shape[1]} gradient values at {times.size} times that are not evenly spaced",
            hint="give one time in ms for each value, on a raster",
        )
    raster_ms = float(steps.mean())
    first = float(times[0]) / raster_ms
    if abs(first) > 0.05 and abs(first - 0.5) > 0.05:
        raise DataError(
            f"the first gradient value is at {times[0]:.4g} ms on a raster of {raster_ms:.4g} ms",
            hint="begin at 0 or at half a raster time, where the readout begins",
        )
    return gradient, raster_ms, "start" if abs(first) <= 0.05 else "centre"


def _on_axes(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a table (n, 3) does to a spoke along each axis, (3, n, 3)."""
    return np.stack([path * unit for unit in np.eye(3)])


def _played(
    gradient: NDArray[np.float64],
    raster_ms: float,
    point: str,
    t_ms: NDArray[np.float64],
    grid: Grid,
    response: tuple[NDArray[np.float64], NDArray[np.complex128]] | None,
) -> Trajectory:
    """Return the trajectory of gradients along the grid's axes, filtered along those of the world."""
    if response is None:
        return from_gradients(gradient, raster_ms=raster_ms, t_ms=t_ms, raster_point=point)
    turn = grid.affine[:3, :3] / grid.voxel_mm
    blocks = []
    for start in range(0, len(gradient), _BLOCK):
        world = gradient[start : start + _BLOCK] @ turn.T
        played = impulse_response_filtered(world, raster_ms, *response) @ turn
        blocks.append(from_gradients(played, raster_ms=raster_ms, t_ms=t_ms, raster_point=point).k_per_mm)
    return Trajectory(np.concatenate(blocks), t_ms)


def _response(sidecar: Mapping[str, Any], folder: Path) -> tuple[NDArray[np.float64], NDArray[np.complex128]] | None:
    """Return frequencies in kHz and the response (n, 3) of each axis."""
    name = sidecar.get("GradientImpulseResponse")
    if name is None:
        return None
    arrays = _contents([folder / str(name)])
    per_axis = [f"{axis}_{part}" for axis in _AXES for part in ("real", "imag")]
    if "response" in arrays:
        response = np.asarray(arrays["response"], dtype=np.complex128)
    elif set(per_axis) <= set(arrays):
        response = np.stack([arrays[f"{axis}_real"] + 1j * arrays[f"{axis}_imag"] for axis in _AXES], axis=-1)
    elif {"real", "imag"} <= set(arrays):
        response = np.asarray(arrays["real"] + 1j * arrays["imag"])
    else:
        response = None
    if response is None or "frequency_khz" not in arrays:
        raise DataError(
            f"no gradient impulse response, only {', '.join(arrays)}",
            where=str(name),
            hint=f"give frequency_khz and response, or real and imag, or {', '.join(per_axis)}",
        )
    frequency = np.asarray(arrays["frequency_khz"], dtype=np.float64).ravel()
    if response.size == frequency.size:
        response = np.repeat(response.reshape(-1, 1), 3, axis=1)
    return frequency, response


def _named(sidecar: Mapping[str, Any], n_shots: int, n_samples: int) -> dict[str, Any]:
    """Return the description of the trajectory with what the data tell filled in."""
    description = sidecar.get("NonCartesianTrajectory")
    if not isinstance(description, Mapping):
        raise DataError(
            "no trajectory in the file",
            hint="state NonCartesianTrajectory (Type, Spokes, Samples, MaxGradient, ReadoutTime, NominalVoxelSize, "
            "SpokeOrder) or TrajectoryFile in the sidecar",
        )
    convention = {key: sidecar[key] for key in ("DwellConvention",) if key in sidecar}
    return {"Spokes": n_shots, "Samples": n_samples, **convention, **description}


def _described(
    sidecar: Mapping[str, Any],
    folder: Path,
    grid: Grid,
    n_shots: int,
    n_samples: int,
    t_ms: NDArray[np.float64] | None,
) -> Trajectory:
    named = _named(sidecar, n_shots, n_samples)
    trajectory = from_description(named)
    if (trajectory.n_shots, trajectory.n_samples) != (n_shots, n_samples):
        raise DataError(
            f"{n_shots} readouts of {n_samples} samples, NonCartesianTrajectory has {trajectory.n_shots} of "
            f"{trajectory.n_samples}",
            hint="correct the description, or export every readout",
        )
    _check_duration(trajectory, t_ms)
    response = _response(sidecar, folder)
    if response is None or trajectory.kind == "cartesian":
        return trajectory
    path, raster_ms = _on_raster(named)
    t, blocks = trajectory.t_ms.astype(np.float64), []
    for start in range(0, n_shots, _BLOCK):
        gradient = _asked(path[start : start + _BLOCK], raster_ms)
        blocks.append(_played(gradient, raster_ms, "centre", t, grid, response).k_per_mm)
    return Trajectory(np.concatenate(blocks), t, trajectory.solid_angle_sr, trajectory.kind)


def _described_spoke(
    sidecar: Mapping[str, Any],
    grid: Grid,
    n_samples: int,
    t_ms: NDArray[np.float64] | None,
    response: tuple[NDArray[np.float64], NDArray[np.complex128]] | None,
) -> tuple[NDArray[np.float64], NDArray[np.floating]]:
    """Return sample times and the path (3, n_samples, 3) of a described spoke along each axis."""
    named = {**_named(sidecar, 1, n_samples), "Spokes": 1, "SpokeOrder": "golden"}
    spoke = from_description(named)
    if spoke.kind != "radial" or spoke.n_samples != n_samples:
        raise DataError(
            f"directions of spokes of {n_samples} samples with a trajectory of type '{named.get('Type')}' and "
            f"{spoke.n_samples} samples",
            hint="state a radial Type in NonCartesianTrajectory, or add k against time to TrajectoryFile",
        )
    _check_duration(spoke, t_ms)
    t = spoke.t_ms.astype(np.float64)
    if response is None:
        return t, _on_axes(np.repeat(np.linalg.norm(spoke.k_per_mm[0].astype(np.float64), axis=-1)[:, None], 3, axis=1))
    path, raster_ms = _on_raster(named)
    asked = np.linalg.norm(_asked(path, raster_ms)[0], axis=-1)
    return t, _played(_on_axes(np.repeat(asked[:, None], 3, axis=1)), raster_ms, "centre", t, grid, response).k_per_mm


def _check_duration(trajectory: Trajectory, t_ms: NDArray[np.float64] | None) -> None:
    if t_ms is not None and not np.allclose(trajectory.t_ms[-1], t_ms[-1], rtol=0.02):
        raise DataError(
            f"the readout lasts {t_ms[-1]:.3g} ms by its dwell time, {trajectory.t_ms[-1]:.3g} ms by its description",
            hint="correct ReadoutTime of NonCartesianTrajectory",
        )


def _on_raster(named: Mapping[str, Any]) -> tuple[NDArray[np.floating], float]:
    """Return the described path at multiples of a raster time, and that time in ms."""
    readout_ms = 1e3 * float(named["ReadoutTime"])
    n_raster = round(readout_ms / _RASTER_MS)
    return from_description({**named, "Samples": n_raster, "DwellConvention": "start"}).k_per_mm, readout_ms / n_raster


def _asked(path: NDArray[np.floating], raster_ms: float) -> NDArray[np.float64]:
    """Return the gradients, in mT/m, that take a path from raster time to raster time."""
    steps = np.diff(path.astype(np.float64), axis=1)
    return np.concatenate([steps, steps[:, -1:]], axis=1) / (GAMMA_BAR_MHZ_T / 1000.0 * raster_ms)
