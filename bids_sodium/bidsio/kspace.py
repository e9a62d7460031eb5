"""Raw data on disk: ISMRMRD files and plain arrays to and from `KSpace`; h5py's only door.

An ISMRMRD file (HDF5) holds an XML header and one record a readout. Records are read all at once, which is a hundred
times faster than one by one. Its trajectory is unitless, +-0.5 at the edge of the encoded matrix, so that
``k = traj N / FOV`` in cycles/mm; its directions and position are in LPS and become the affine of the grid, whose voxel
``n // 2`` lies at the position. Plain arrays (``.npz``, or HDF5 without an ISMRMRD header) are ``samples``
(coils, shots, samples), ``shape``, ``affine`` or ``voxel_mm``, and where the sidecar names no trajectory ``k_per_mm``
and ``t_ms``.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import atomically
from bids_sodium.core.constants import FREQUENCY_RATIO_NA_TO_H, GAMMA_BAR_MHZ_T, PROTON_GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.recon.trajectory import delayed, from_description

__all__ = ["read_kspace", "write_ismrmrd"]

_NAMESPACE = "http://www.ismrm.org/ISMRMRD"
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])
# Bits (from one) of readouts that are not image data: noise, navigators, phase correction, feedback, dummy scans ...
_NOT_IMAGE_DATA = sum(1 << (bit - 1) for bit in (19, 20, 23, 24, 26, 27, 28, 29, 30, 31))
_LAST_IN_MEASUREMENT = 1 << 24
_KINDS = {"radial": "radial", "cones": "other", "twisted": "other", "cartesian": "cartesian"}
_UNIT_FACTORS = {
    "cycles/mm": 1.0,
    "1/mm": 1.0,
    "cycles/m": 1e-3,
    "1/m": 1e-3,
    "rad/mm": 0.5 / np.pi,
    "rad/m": 0.5e-3 / np.pi,
}


def read_kspace(path: Path, sidecar: Mapping[str, Any] | None = None, *, delay_ms: float = 0.0) -> KSpace:
    """Read raw data.

    Parameters
    ----------
    path : Path
        ISMRMRD file (``.h5``, ``.hdf5``, ``.mrd``) or plain arrays (``.npz``, ``.h5``).
    sidecar : mapping, optional
        Its BIDS metadata, times in s: ``EchoTime``, ``RepetitionTime``, ``FlipAngle``, ``ImagingFrequency`` (MHz),
        ``MagneticFieldStrength``, ``ResonantNucleus``, ``DwellTime``, ``DwellConvention`` (``centre``: the first
        sample is half a dwell after the echo time, or ``start``: at it), ``TrajectoryUnits``, and
        ``NonCartesianTrajectory`` where the file holds no trajectory.
    delay_ms : float
        Time by which the gradients lag the sampling beyond what the trajectory says, in ms.

    Returns
    -------
    KSpace
        Samples, trajectory, grid and timing; TE, TR, flip angle and frequency are ``nan`` where nothing states them.

    Raises
    ------
    DataError
        If the file is missing, truncated or of an unknown format, a readout is incomplete, samples are not finite,
        header and sidecar contradict each other, the nucleus is not sodium, or there is no trajectory.
    GeometryError
        If the directions in the header are not three axes.

    References
    ----------
    Inati 2017, Magn Reson Med 77:411.
    """
    sidecar = {} if sidecar is None else sidecar
    where = str(path)
    if not path.is_file():
        raise DataError("no such file", where=where, hint="check the name; fetch it first if it is a link of DataLad")
    suffix = path.suffix.lower()
    try:
        if suffix in {".h5", ".hdf5", ".mrd"}:
            kspace = _read_hdf5(path, sidecar)
        elif suffix == ".npz":
            kspace = _from_arrays(_read_npz(path), sidecar)
        else:
            raise DataError(
                f"raw data of the unknown format '{suffix}'",
                hint="convert it to ISMRMRD, for Siemens with siemens_to_ismrmrd, for Philips with philips_to_ismrmrd",
            )
        _check_nucleus(kspace.frequency_mhz, sidecar.get("MagneticFieldStrength"))
        if not (np.abs(kspace.trajectory.k_per_mm) < np.inf).all():
            raise DataError("the trajectory holds NaN or infinite positions", hint="export it again")
        if delay_ms == 0.0:
            return kspace
        return KSpace(
            kspace.samples,
            delayed(kspace.trajectory, delay_ms),
            kspace.grid,
            kspace.te_ms,
            kspace.tr_ms,
            kspace.flip_deg,
            kspace.frequency_mhz,
        )
    except GeometryError as error:
        raise GeometryError(error.what, where=where, hint=error.hint) from error
    except DataError as error:
        inner = f"{error.where}: {error.what}" if error.where and error.where != where else error.what
        raise DataError(inner, where=where, hint=error.hint) from error
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, ET.ParseError) as error:
        raise DataError(
            f"cannot be read as raw data, it may be truncated ({error})", where=where, hint="copy or convert it again"
        ) from error


def write_ismrmrd(path: Path, kspace: KSpace) -> Path:
    """Write raw data as an ISMRMRD file, atomically.

    The solid angle of each shot is kept in ``user_float[0]`` of its header and the kind of trajectory in the
    trajectory's description; other readers ignore both. ``H1resonanceFrequency_Hz`` holds the centre frequency of the
    acquisition, as converters write it whatever the nucleus.

    Parameters
    ----------
    path : Path
        Ends in ``.h5``.
    kspace : KSpace
        Raw data; sample times must be evenly spaced, the first at half a dwell.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    DataError
        If the sample times are not those of an evenly sampled readout, or a readout is too long for the format.
    """
    dwell_ms = float(kspace.trajectory.t_ms[0] * 2.0)
    expected = (np.arange(kspace.trajectory.n_samples) + 0.5) * dwell_ms
    if dwell_ms <= 0 or not np.allclose(kspace.trajectory.t_ms, expected, rtol=1e-4):
        raise DataError(
            "the sample times are not evenly spaced with the first at half a dwell",
            where=str(path),
            hint="resample them",
        )
    if max(kspace.trajectory.n_samples, kspace.n_coils) > 65535:
        raise DataError(f"readouts of {kspace.trajectory.n_samples} samples", where=str(path), hint="65535 at most")
    return atomically(path, lambda temporary: _write(temporary, kspace, dwell_ms))


def _write(path: Path, kspace: KSpace, dwell_ms: float) -> None:
    import h5py
    from ismrmrd.hdf5 import acquisition_dtype

    trajectory, grid = kspace.trajectory, kspace.grid
    records = np.zeros(trajectory.n_shots, dtype=acquisition_dtype)
    head = records["head"]
    shots = np.arange(trajectory.n_shots)
    head["version"] = 1
    head["scan_counter"] = shots
    head["flags"][-1] = _LAST_IN_MEASUREMENT
    head["number_of_samples"] = trajectory.n_samples
    head["available_channels"] = head["active_channels"] = kspace.n_coils
    for word in range(16):
        head["channel_mask"][:, word] = (1 << min(max(kspace.n_coils - 64 * word, 0), 64)) - 1
    head["trajectory_dimensions"] = 3
    head["sample_time_us"] = dwell_ms * 1000.0
    head["idx"]["kspace_encode_step_1"] = shots % 65536
    axes = _LPS_FROM_RAS @ (grid.affine[:3, :3] / np.array(grid.voxel_mm))
    head["position"] = _LPS_FROM_RAS @ grid.origin_mm
    head["read_dir"], head["phase_dir"], head["slice_dir"] = axes.T
    if trajectory.solid_angle_sr is not None:
        head["user_float"][:, 0] = trajectory.solid_angle_sr
    unitless = (trajectory.k_per_mm * np.array(grid.voxel_mm)).astype(np.float32)
    samples = np.ascontiguousarray(np.moveaxis(kspace.samples, 0, 1), dtype=np.complex64)
    for shot in shots:
        records["traj"][shot] = unitless[shot].ravel()
        records["data"][shot] = samples[shot].ravel().view(np.float32)
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", data=[_header(kspace)], dtype=h5py.special_dtype(vlen=bytes), maxshape=(None,))
        group.create_dataset("data", data=records, maxshape=(None,), chunks=(min(trajectory.n_shots, 256),))


def _header(kspace: KSpace) -> bytes:
    ET.register_namespace("", _NAMESPACE)
    root = ET.Element(f"{{{_NAMESPACE}}}ismrmrdHeader")

    def add(parent: ET.Element, name: str, value: object = None) -> ET.Element:
        element = ET.SubElement(parent, f"{{{_NAMESPACE}}}{name}")
        element.text = None if value is None else str(value)
        return element

    known = math.isfinite(kspace.frequency_mhz)
    system = add(root, "acquisitionSystemInformation")
    if known:
        add(system, "systemFieldStrength_T", round(kspace.frequency_mhz / GAMMA_BAR_MHZ_T, 4))
    add(system, "receiverChannels", kspace.n_coils)
    conditions = add(root, "experimentalConditions")
    add(conditions, "H1resonanceFrequency_Hz", round(kspace.frequency_mhz * 1e6) if known else 0)
    encoding = add(root, "encoding")
    for name in ("encodedSpace", "reconSpace"):
        space = add(encoding, name)
        for block, values in (("matrixSize", kspace.grid.shape), ("fieldOfView_mm", kspace.grid.fov_mm)):
            element = add(space, block)
            for axis, value in zip("xyz", values, strict=True):
                add(element, axis, round(value, 9))
    limits = add(add(encoding, "encodingLimits"), "kspace_encoding_step_1")
    for name, value in (("minimum", 0), ("maximum", min(kspace.trajectory.n_shots - 1, 65535)), ("center", 0)):
        add(limits, name, value)
    add(encoding, "trajectory", _KINDS.get(kspace.trajectory.kind, "other"))
    add(add(encoding, "trajectoryDescription"), "identifier", kspace.trajectory.kind)
    sequence = add(root, "sequenceParameters")
    for name, value in (("TR", kspace.tr_ms), ("TE", kspace.te_ms), ("flipAngle_deg", kspace.flip_deg)):
        if math.isfinite(value):
            add(sequence, name, value)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise DataError("cannot be read as raw data, it is no .npz archive", hint="write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except ValueError as error:
        raise DataError(f"an array cannot be read ({error})", hint="store plain numeric arrays") from error


def _read_hdf5(path: Path, sidecar: Mapping[str, Any]) -> KSpace:
    import h5py

    with h5py.File(path, "r") as file:
        groups = [file[name] for name in file if isinstance(file[name], h5py.Group)]
        found = [group for group in groups if "xml" in group and "data" in group]
        if len(found) == 1:
            return _from_ismrmrd(bytes(found[0]["xml"][0]), found[0]["data"][()], sidecar)
        if len(found) > 1:
            names = ", ".join(group.name.strip("/") for group in found)
            raise DataError(f"{len(found)} acquisitions in one file ({names})", hint="write one file an acquisition")
        if "samples" in file:
            return _from_arrays(
                {name: np.asarray(file[name]) for name in file if isinstance(file[name], h5py.Dataset)}, sidecar
            )
        raise DataError(
            f"neither an ISMRMRD dataset nor an array 'samples', only {', '.join(file) or 'nothing'}",
            hint="convert the raw data to ISMRMRD again",
        )


@dataclass(frozen=True, slots=True)
class _Header:
    """What the XML header states; ``nan`` and empty where it does not."""

    shape: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    kind: str
    te_ms: float
    tr_ms: float
    flip_deg: float
    frequency_mhz: float
    field_t: float


def _parse(xml: bytes) -> _Header:
    # Expat does not fetch external entities, and the header comes from the user's own file.
    root = ET.fromstring(xml)  # noqa: S314
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]

    def number(place: str) -> float:
        text = root.findtext(place)
        try:
            return math.nan if text is None else float(text)
        except ValueError as error:
            raise DataError(f"{place} is '{text}' in the header", hint="export it again") from error

    encoded = "encoding/encodedSpace"
    shape = [number(f"{encoded}/matrixSize/{axis}") for axis in "xyz"]
    fov_mm = [number(f"{encoded}/fieldOfView_mm/{axis}") for axis in "xyz"]
    if not all(value >= 1 for value in shape) or not all(value > 0 for value in fov_mm):
        raise DataError(
            f"encoded matrix {shape} and field of view {fov_mm} mm", hint="export it again with both in the header"
        )
    kind = root.findtext("encoding/trajectoryDescription/identifier") or ""
    if kind not in _KINDS:
        kind = "cartesian" if root.findtext("encoding/trajectory") == "cartesian" else "imported"
    frequency = number("experimentalConditions/H1resonanceFrequency_Hz") / 1e6
    return _Header(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        (fov_mm[0], fov_mm[1], fov_mm[2]),
        kind,
        number("sequenceParameters/TE"),
        number("sequenceParameters/TR"),
        number("sequenceParameters/flipAngle_deg"),
        frequency if frequency > 0 else math.nan,
        number("acquisitionSystemInformation/systemFieldStrength_T"),
    )


def _from_ismrmrd(xml: bytes, records: NDArray[Any], sidecar: Mapping[str, Any]) -> KSpace:
    header = _parse(xml)
    records = records[(records["head"]["flags"] & np.uint64(_NOT_IMAGE_DATA)) == 0]
    if records.size == 0:
        raise DataError("no readout of image data in the file", hint="export the whole measurement")
    head = records["head"]
    n = _common(head["number_of_samples"], "samples")
    n_coils = _common(head["active_channels"], "channels")
    dimensions = _common(head["trajectory_dimensions"], "trajectory dimensions")
    samples = _stacked(records["data"], 2 * n_coils * n, "data").view(np.complex64).reshape(-1, n_coils, n)
    first, last = int(head["discard_pre"].max()), n - int(head["discard_post"].max())
    if last - first < 3:
        raise DataError(f"{n} samples a readout of which all but {max(last - first, 0)} are to be discarded")

    grid = _grid(header, head[0])
    if dimensions in {1, 2}:
        raise DataError(f"a trajectory of {dimensions} dimensions", hint="export kx, ky and kz of every sample")
    dwell_ms = _dwell(float(head["sample_time_us"][0]), sidecar, n)
    t_ms = np.asarray((np.arange(n) + _dwell_offset(sidecar)) * dwell_ms, dtype=np.float64)
    if dimensions == 0:
        trajectory = _described(sidecar, records.size, n, t_ms)
    else:
        positions = _stacked(records["traj"], dimensions * n, "trajectory").reshape(-1, n, dimensions)[..., :3]
        omega = head["user_float"][:, 0].astype(np.float64)
        if (np.isfinite(omega) & (omega > 0)).all():
            solid_angle: NDArray[np.float64] | None = omega * (4.0 * np.pi / omega.sum())
        else:
            solid_angle = None
        trajectory = Trajectory(positions * _unit_factor(positions, grid, sidecar), t_ms, solid_angle, header.kind)
    if (first, last) != (0, n):
        trajectory = Trajectory(
            trajectory.k_per_mm[:, first:last], t_ms[first:last], trajectory.solid_angle_sr, trajectory.kind
        )
    return KSpace(
        np.ascontiguousarray(np.moveaxis(samples[..., first:last], 1, 0)),
        trajectory,
        grid,
        te_ms=_agreed("echo time", header.te_ms, sidecar.get("EchoTime"), 1e3, "ms"),
        tr_ms=_repetition(header.tr_ms, sidecar, float(t_ms[-1])),
        flip_deg=_agreed("flip angle", header.flip_deg, sidecar.get("FlipAngle"), 1.0, "degrees"),
        frequency_mhz=_frequency(header, sidecar),
    )


def _from_arrays(arrays: Mapping[str, NDArray[Any]], sidecar: Mapping[str, Any]) -> KSpace:
    if "samples" not in arrays:
        raise DataError(f"no array 'samples', only {', '.join(arrays) or 'nothing'}", hint="name the k-space 'samples'")
    samples = arrays["samples"]
    samples = samples[None] if samples.ndim == 2 else samples
    if samples.ndim != 3 or not np.iscomplexobj(samples):
        raise DataError(
            f"samples of shape {samples.shape} and type {samples.dtype}", hint="give complex (coils, shots, samples)"
        )
    n = samples.shape[-1]
    if "k_per_mm" in arrays:
        if "t_ms" in arrays:
            t_ms = np.asarray(arrays["t_ms"], dtype=np.float64)
        else:
            t_ms = np.asarray((np.arange(n) + _dwell_offset(sidecar)) * _dwell(0.0, sidecar, n), dtype=np.float64)
        positions = np.asarray(arrays["k_per_mm"])
        if positions.ndim == 2 and positions.shape[0] == samples.shape[1] * n:
            positions = positions.reshape(samples.shape[1], n, -1)
        trajectory = Trajectory(positions, t_ms)
    else:
        trajectory = _described(sidecar, samples.shape[1], n, None)
    shape, affine, voxel = (arrays.get(name) for name in ("shape", "affine", "voxel_mm"))
    if shape is None or (affine is None and voxel is None):
        raise DataError("no grid", hint="store 'shape' (nx, ny, nz) and 'affine' (4 x 4, RAS mm) or 'voxel_mm'")
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    if affine is None and voxel is not None:
        grid = Grid.centred(size, float(voxel.ravel()[0]))
    else:
        grid = Grid(size, np.asarray(affine))
    missing = math.nan
    return KSpace(
        np.asarray(samples, dtype=np.complex64),
        trajectory,
        grid,
        te_ms=_agreed("echo time", missing, sidecar.get("EchoTime"), 1e3, "ms"),
        tr_ms=_repetition(missing, sidecar, float(trajectory.t_ms[-1])),
        flip_deg=_agreed("flip angle", missing, sidecar.get("FlipAngle"), 1.0, "degrees"),
        frequency_mhz=_stated(sidecar, "ImagingFrequency"),
    )


def _common(values: NDArray[np.integer], what: str) -> int:
    """Return the value all readouts share."""
    kinds, counts = np.unique(values, return_counts=True)
    if kinds.size > 1:
        usual = int(kinds[counts.argmax()])
        odd = np.flatnonzero(values != usual)
        raise DataError(
            f"readout {int(odd[0])} has {int(values[odd[0]])} {what}, most have {usual} "
            f"({odd.size} of {values.size} differ)",
            hint="export the measurement again, all readouts of one kind",
        )
    return int(kinds[0])


def _stacked(rows: NDArray[Any], length: int, what: str) -> NDArray[np.float32]:
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    wrong = np.flatnonzero(lengths != length)
    if wrong.size:
        raise DataError(
            f"readout {int(wrong[0])} holds {int(lengths[wrong[0]])} {what} values where its header says {length} "
            f"({wrong.size} of {len(rows)} readouts)",
            hint="the trajectory or data belongs to another acquisition, or the export was cut short",
        )
    return np.concatenate(list(rows)).astype(np.float32, copy=False).reshape(len(rows), length)


def _grid(header: _Header, head: NDArray[Any]) -> Grid:
    axes = np.stack([head["read_dir"], head["phase_dir"], head["slice_dir"]], axis=1).astype(np.float64)
    voxel_mm = np.array(header.fov_mm) / np.array(header.shape)
    if not axes.any():
        # No geometry at all, as simulators write: the axes of the world.
        axes = _LPS_FROM_RAS
    lengths = np.linalg.norm(axes, axis=0)
    if (
        not np.isfinite(axes).all()
        or lengths.min() < 0.5
        or abs(np.linalg.det(axes / np.maximum(lengths, 1e-9))) < 0.99
    ):
        raise GeometryError(
            "read, phase and slice directions are not three perpendicular axes", hint="export the geometry again"
        )
    affine = np.eye(4)
    affine[:3, :3] = _LPS_FROM_RAS @ (axes / lengths) * voxel_mm
    centre = _LPS_FROM_RAS @ head["position"].astype(np.float64)
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(header.shape) // 2)
    return Grid(header.shape, affine)


def _unit_factor(positions: NDArray[np.float32], grid: Grid, sidecar: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return what takes the file's positions to cycles/mm along each axis."""
    voxel_mm = np.array(grid.voxel_mm)
    unit = str(sidecar.get("TrajectoryUnits", "unitless"))
    if unit in _UNIT_FACTORS:
        return np.full(3, _UNIT_FACTORS[unit], np.float32)
    if unit == "rad":
        return (0.5 / np.pi / voxel_mm).astype(np.float32)
    if unit != "unitless":
        raise DataError(f"TrajectoryUnits is '{unit}'", hint=f"use unitless, rad, {', '.join(_UNIT_FACTORS)}")
    reach = float(np.nanmax(np.abs(positions), initial=0.0))
    if reach > 0.55:
        edge = 0.5 / float(voxel_mm.min())
        guesses = {
            "rad": np.pi,
            **{name: edge / factor for name, factor in _UNIT_FACTORS.items() if "cycles" not in name},
        }
        likely = [name for name, full in guesses.items() if 0.5 <= reach / full <= 1.1]
        raise DataError(
            f"the trajectory reaches {reach:.4g} where ISMRMRD has +-0.5 of the encoded matrix",
            hint=f"state TrajectoryUnits{' ' + chr(39) + likely[0] + chr(39) if likely else ''} in the sidecar",
        )
    return (1.0 / voxel_mm).astype(np.float32)


def _described(
    sidecar: Mapping[str, Any], n_shots: int, n_samples: int, t_ms: NDArray[np.float64] | None
) -> Trajectory:
    description = sidecar.get("NonCartesianTrajectory")
    if not isinstance(description, Mapping):
        raise DataError(
            "no trajectory in the file",
            hint="state NonCartesianTrajectory (Type, Spokes, Samples, MaxGradient, ReadoutTime, NominalVoxelSize, "
            "SpokeOrder) in the sidecar",
        )
    trajectory = from_description({"Spokes": n_shots, "Samples": n_samples, **description})
    if (trajectory.n_shots, trajectory.n_samples) != (n_shots, n_samples):
        raise DataError(
            f"{n_shots} readouts of {n_samples} samples, NonCartesianTrajectory has {trajectory.n_shots} of "
            f"{trajectory.n_samples}",
            hint="correct the description, or export every readout",
        )
    if t_ms is not None and not np.allclose(trajectory.t_ms[-1], t_ms[-1], rtol=0.02):
        raise DataError(
            f"the readout lasts {t_ms[-1]:.3g} ms by its dwell time, {trajectory.t_ms[-1]:.3g} ms by its description",
            hint="correct ReadoutTime of NonCartesianTrajectory",
        )
    return trajectory


def _stated(sidecar: Mapping[str, Any], key: str) -> float:
    """Return a positive number of the sidecar, or nan where it is not there."""
    value = sidecar.get(key)
    if value is None:
        return math.nan
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise DataError(f"{key} is {value!r} in the sidecar", hint="state a positive number")
    return float(value)


def _agreed(what: str, header: float, sidecar: object, scale: float, unit: str) -> float:
    """Return what header or sidecar state, and refuse where they differ by more than a tenth."""
    stated = _stated({what: sidecar}, what) * scale
    if not (math.isfinite(header) and header > 0):
        return stated
    if math.isfinite(stated) and abs(stated - header) > 0.1 * header:
        raise DataError(
            f"the {what} is {header:g} {unit} in the header but {stated:g} {unit} in the sidecar",
            hint="correct the sidecar (BIDS times are in s)",
        )
    return header


def _repetition(header_ms: float, sidecar: Mapping[str, Any], readout_ms: float) -> float:
    key = "RepetitionTime" if "RepetitionTime" in sidecar else "RepetitionTimeExcitation"
    tr_ms = _agreed("repetition time", header_ms, sidecar.get(key), 1e3, "ms")
    if tr_ms < readout_ms:
        raise DataError(
            f"a repetition time of {tr_ms:g} ms is shorter than the readout of {readout_ms:.3g} ms",
            hint="write TR in ms in the header and in s in the sidecar",
        )
    return tr_ms


def _dwell(sample_time_us: float, sidecar: Mapping[str, Any], n: int) -> float:
    if math.isfinite(sample_time_us) and sample_time_us > 0:
        return sample_time_us / 1000.0
    dwell_ms = _stated(sidecar, "DwellTime") * 1000.0
    description = sidecar.get("NonCartesianTrajectory")
    if not math.isfinite(dwell_ms) and isinstance(description, Mapping):
        dwell_ms = _stated(description, "ReadoutTime") * 1000.0 / n
    if not math.isfinite(dwell_ms):
        raise DataError("the time between samples is not stated", hint="state DwellTime in s in the sidecar")
    return dwell_ms


def _dwell_offset(sidecar: Mapping[str, Any]) -> float:
    convention = str(sidecar.get("DwellConvention", "centre"))
    if convention not in {"centre", "center", "start"}:
        raise DataError(f"DwellConvention is '{convention}'", hint="use 'centre' or 'start'")
    return 0.0 if convention == "start" else 0.5


def _frequency(header: _Header, sidecar: Mapping[str, Any]) -> float:
    """Return the frequency of the acquisition, in MHz.

    The sidecar wins. A header that gives the proton frequency, as its name says, is converted where the sidecar says
    that the nucleus is sodium.
    """
    stated = _stated(sidecar, "ImagingFrequency")
    if math.isfinite(stated):
        return stated
    if not math.isfinite(header.frequency_mhz):
        return math.nan
    field_t = header.field_t if header.field_t > 0 else _stated(sidecar, "MagneticFieldStrength")
    if _is_proton(header.frequency_mhz, field_t):
        if str(sidecar.get("ResonantNucleus", "")) in {"23Na", "Na23", "Na"}:
            return header.frequency_mhz * FREQUENCY_RATIO_NA_TO_H
        _check_nucleus(header.frequency_mhz, field_t)
    return header.frequency_mhz


def _is_proton(frequency_mhz: float, field_t: float) -> bool:
    return bool(math.isfinite(field_t) and abs(frequency_mhz / field_t / PROTON_GAMMA_BAR_MHZ_T - 1.0) < 0.03)


def _check_nucleus(frequency_mhz: float, field_t: object) -> None:
    field = float(field_t) if isinstance(field_t, (int, float)) else math.nan
    if _is_proton(frequency_mhz, field):
        raise DataError(
            f"{frequency_mhz:.2f} MHz at {field:g} T is the frequency of 1H, 23Na resonates at "
            f"{field * GAMMA_BAR_MHZ_T:.2f} MHz",
            hint="choose the sodium raw data, or state ResonantNucleus '23Na' or ImagingFrequency in the sidecar",
        )
