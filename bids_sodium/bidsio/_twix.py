"""Siemens raw data (twix, ``.dat``), read with twixtools.

A file holds one measurement, or several of which the last is the scan and earlier ones are adjustments, the noise scan
among them. Counters, flags and orientation stand with each readout, all else in the protocol. A twix file carries no
trajectory: a Cartesian one follows from the counters, any other is named in the sidecar. The quaternion of a readout is
the rotation whose columns are phase, read and slice, in LPS. The signal of these scanners is ``exp(+2 pi i k r)``, so
that the axes of the grid run against these directions.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio._metadata import (
    agreed,
    check_frequency,
    check_memory,
    check_nucleus,
    dwell_ms,
    dwell_offset,
    echo_time_ms,
    grid_of,
    repetition_time_ms,
    stated_grid,
)
from bids_sodium.bidsio._readouts import Line, cartesian_readouts, common, plan, put, single_slice
from bids_sodium.bidsio._trajectory_files import stated_trajectory
from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.core.errors import DataError

__all__ = ["read_twix"]

_ENCODING = ("Lin", "Par", "Sli", "Phs", "Set", "Seg", "Ida", "Idb", "Idc", "Idd", "Ide")
_BACKWARDS = 24
_MULTI_RAID_BYTES = 10240
_ENTRY_BYTES = 152
_BLOCK = 256


def read_twix(
    path: Path,
    sidecar: Mapping[str, Any],
    *,
    echo: int = 0,
    repetition: int | None = None,
    memory_gb: float | None = None,
) -> KSpace:
    """Return the raw data of the last measurement in a file.

    Parameters
    ----------
    path : Path
        Ends in ``.dat``.
    sidecar, echo, repetition, memory_gb
        As for `read_kspace`.

    Raises
    ------
    DataError
        If the file is no whole twix file, the nucleus is another, or neither counters nor sidecar give a trajectory.
    """
    length = _check_whole(path)
    if memory_gb is not None:
        protocol = _Protocol(_parsed(path, parse_data=False)[-1])
        parts = protocol.count("lAverages") * protocol.count("lContrasts") * (protocol.count("lRepetitions", 0) + 1)
        check_memory(length / 8 / parts, memory_gb, "the samples")
    scans = _parsed(path, keep_acqend=True, keep_syncdata=False)
    scan = scans[-1]
    if not scan["mdb"] or not scan["mdb"][-1].is_flag_set("ACQEND"):
        raise DataError(
            f"the measurement has no end after {len(scan['mdb'])} readouts, it was stopped or the file is truncated",
            hint="copy the file again, or scan again",
        )
    protocol = _Protocol(scan)
    check_nucleus(protocol.nucleus, sidecar)
    check_frequency(protocol.frequency_mhz, protocol.field_t, sidecar)
    blocks = [block for block in scan["mdb"] if block.is_image_scan()]
    if not blocks:
        raise DataError("no readout of image data in the file", hint="export the whole measurement")
    head = np.frombuffer(b"".join(bytes(block.mdh) for block in blocks), dtype=np.dtype(type(blocks[0].mdh)))
    counter = head["Counter"]
    chosen = plan(
        np.arange(len(blocks)),
        encoding=np.stack([counter[name].astype(np.int64) for name in _ENCODING], axis=-1),
        average=counter["Ave"].astype(np.int64),
        repetition=counter["Rep"].astype(np.int64),
        echo=counter["Eco"].astype(np.int64),
        wanted_echo=echo,
        wanted_repetition=repetition,
    )
    used = head[chosen.rows]
    n = int(common(used["SamplesInScan"], chosen.rows, "samples"))
    n_coils = int(common(used["UsedChannels"], chosen.rows, "channels"))
    check_memory(chosen.n_shots * n * n_coils, memory_gb, "the samples")

    samples = np.zeros((n_coils, chosen.n_shots, n), dtype=np.complex64)
    for start in range(0, chosen.rows.size, _BLOCK):
        part = [blocks[row] for row in chosen.rows[start : start + _BLOCK]]
        put(samples, chosen.shots[start : start + _BLOCK], np.stack(_data(path, part)), chosen.n_averages)
    noise, notes = _noise(path, scans, n_coils)
    first = head[chosen.first]
    dwell = dwell_ms(protocol.dwell_us(chosen.echo), sidecar, n)
    begin, end = int(used["CutOff"]["Pre"].max()), n - int(used["CutOff"]["Post"].max())
    if end - begin < 3:
        raise DataError(f"{n} samples a readout of which all but {max(end - begin, 0)} are to be discarded")
    if (begin, end) != (0, n):
        samples = np.ascontiguousarray(samples[..., begin:end])
    if {"TrajectoryFile", "NonCartesianTrajectory"} & set(sidecar):
        grid = _volume(protocol, sidecar, first)
        t_ms = np.asarray((np.arange(n) + dwell_offset(sidecar)) * dwell, dtype=np.float64)
        trajectory = stated_trajectory(sidecar, path.parent, grid, n_shots=chosen.n_shots, n_samples=n, t_ms=t_ms)
        if (begin, end) != (0, n):
            trajectory = replace(
                trajectory, k_per_mm=trajectory.k_per_mm[:, begin:end], t_ms=trajectory.t_ms[begin:end]
            )
    else:
        samples, trajectory, grid = _on_lattice(samples, protocol, first, dwell, begin)
    return KSpace(
        samples,
        trajectory,
        grid,
        te_ms=echo_time_ms(protocol.te_ms, sidecar, chosen.echo, chosen.n_echoes),
        tr_ms=repetition_time_ms(protocol.tr_ms, sidecar, float(np.ptp(trajectory.t_ms))),
        flip_deg=agreed("flip angle", protocol.flip_deg, sidecar.get("FlipAngle"), 1.0, "degrees"),
        frequency_mhz=protocol.frequency_mhz,
        noise=noise,
        n_averages=chosen.n_averages,
        n_echoes=chosen.n_echoes,
        notes=(*chosen.notes, *notes),
    )


def _check_whole(path: Path) -> int:
    """Return the bytes of the last measurement, once the file's own table says that it is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = np.frombuffer(file.read(_MULTI_RAID_BYTES), dtype="<u4", count=2) if size >= 8 else np.zeros(2, int)
        header, count = int(start[0]), int(start[1])
        if header >= 10000 and header < size and count <= 64:
            return size
        if not (header < 10000 and 1 <= count <= 64 and size > _MULTI_RAID_BYTES):
            raise DataError(
                "raw data of the unknown format '.dat': no header of Siemens twix data",
                hint="copy it again, or convert it to ISMRMRD, for Siemens with siemens_to_ismrmrd",
            )
        file.seek(8 + _ENTRY_BYTES * (count - 1) + 8)
        offset, length = (int(value) for value in np.frombuffer(file.read(16), dtype="<u8"))
    if offset + length > size:
        raise DataError(
            f"the last measurement ends at byte {offset + length}, the file at {size}: it is truncated",
            hint="copy the file again",
        )
    return length if length > 0 else size - offset


def _parsed(path: Path, **options: bool) -> list[Any]:
    import twixtools

    # The library prints what it doubts and goes on; the checks here and in the caller refuse such files.
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            scans = list(
                twixtools.read_twix(str(path), verbose=False, parse_pmu=False, parse_geometry=False, **options)
            )
    except (ValueError, IndexError, TypeError, UnboundLocalError, AttributeError) as error:
        raise DataError(
            f"cannot be read as Siemens twix data ({error})",
            hint="copy it again, or convert it to ISMRMRD, for Siemens with siemens_to_ismrmrd",
        ) from error
    if not scans or "MeasYaps" not in scans[-1].get("hdr", {}):
        doubts = "; ".join(said.getvalue().split("\n")).strip("; ")
        raise DataError(f"a twix file without a protocol{': ' + doubts if doubts else ''}", hint="copy the file again")
    return scans


class _Protocol:
    """What the protocol of a measurement states; ``nan`` and empty where it does not."""

    def __init__(self, scan: Mapping[str, Any]) -> None:
        self.yaps: Mapping[str, Any] = scan["hdr"]["MeasYaps"]
        self.meas: Mapping[str, Any] = scan["hdr"].get("Meas", {})
        self.dicom: Mapping[str, Any] = scan["hdr"].get("Dicom", {})

    def at(self, *keys: str | int) -> Any:
        """Return an entry of the protocol, or none."""
        found: Any = self.yaps
        for key in keys:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def number(self, *keys: str | int) -> float:
        """Return a number of the protocol, or nan."""
        value = self.at(*keys)
        return float(value) if isinstance(value, (int, float)) else math.nan

    def count(self, key: str, otherwise: int = 1) -> int:
        """Return a whole number of the protocol."""
        value = self.number(key)
        return int(value) if value >= otherwise else otherwise

    def numbers(self, key: str, scale: float) -> tuple[float, ...]:
        """Return a list of numbers of the protocol."""
        values = self.at(key)
        return tuple(float(value) * scale for value in values if isinstance(value, (int, float))) if values else ()

    @property
    def nucleus(self) -> str:
        """Name of the nucleus."""
        for place in (("sTXSPEC", "asNucleusInfo", 0, "tNucleus"), ("sRXSPEC", "asNucleusInfo", 0, "tNucleus")):
            if self.at(*place):
                return str(self.at(*place)).strip('" ')
        raise DataError("the protocol names no nucleus", hint="convert the file with siemens_to_ismrmrd")

    @property
    def frequency_mhz(self) -> float:
        """Centre frequency."""
        return self.number("sTXSPEC", "asNucleusInfo", 0, "lFrequency") / 1e6

    @property
    def field_t(self) -> float:
        """Static field."""
        value = self.dicom.get("flMagneticFieldStrength")
        nominal = self.number("sProtConsistencyInfo", "flNominalB0")
        return float(value) if isinstance(value, (int, float)) and value > 0 else nominal

    @property
    def te_ms(self) -> tuple[float, ...]:
        """Echo times, of as many echoes as there are."""
        return self.numbers("alTE", 1e-3)[: self.count("lContrasts")]

    @property
    def tr_ms(self) -> float:
        """Repetition time."""
        return next(iter(self.numbers("alTR", 1e-3)), math.nan)

    @property
    def flip_deg(self) -> float:
        """Flip angle."""
        return next(iter(self.numbers("adFlipAngleDegree", 1.0)), math.nan)

    def dwell_us(self, echo: int) -> float:
        """Time between samples of an echo, oversampling included."""
        values = self.at("sRXSPEC", "alDwellTime") or []
        listed = [value for value in values if isinstance(value, (int, float)) and value > 0]
        return float(listed[min(echo, len(listed) - 1)]) / 1000.0 if listed else math.nan

    @property
    def oversampling(self) -> float:
        """Readout oversampling of Cartesian data."""
        value = self.meas.get("flReadoutOSFactor")
        return float(value) if isinstance(value, (int, float)) and value >= 1 else 2.0

    @property
    def extent(self) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """Matrix without readout oversampling, phase and slice oversampling included, and its field of view."""
        slab = ("sSliceArray", "asSlice", 0)
        base = self.number("sKSpace", "lBaseResolution")
        lines = self.number("sKSpace", "lPhaseEncodingLines")
        is_volume = self.number("sKSpace", "ucDimension") == 4
        partitions = self.number("sKSpace", "lPartitions") if is_volume else 1.0
        over = [self.number("sKSpace", key) for key in ("dPhaseOversamplingForDialog", "dSliceOversamplingForDialog")]
        phase, depth = (1.0 + value if value > 0 else 1.0 for value in over)
        fov = [self.number(*slab, key) for key in ("dReadoutFOV", "dPhaseFOV", "dThickness")]
        if not min(base, lines, partitions, *fov) > 0:
            raise DataError(
                f"the protocol has a matrix of {base:g} x {lines:g} x {partitions:g} and a field of view of "
                f"{' x '.join(f'{value:g}' for value in fov)} mm",
                hint="state MatrixSize and AcquisitionVoxelSize (mm) in the sidecar",
            )
        return (int(base), int(lines), int(partitions)), (
            fov[0],
            fov[1] * phase,
            fov[2] * (depth if is_volume else 1.0),
        )


def _data(path: Path, blocks: Sequence[Any]) -> list[NDArray[np.complex64]]:
    """Return the data (n_coils, n) of readouts; the file is opened once for all of them."""
    with path.open("rb") as file:
        found = []
        for block in blocks:
            block.fid = file
            found.append(block.data)
    return found


def _noise(
    path: Path, scans: Sequence[Mapping[str, Any]], n_coils: int
) -> tuple[NDArray[np.complex64] | None, tuple[str, ...]]:
    """Return the noise scan of the last measurement that has one."""
    for scan in reversed(scans):
        blocks = [block for block in scan["mdb"] if block.is_flag_set("NOISEADJSCAN")]
        if blocks and all(block.mdh.UsedChannels == n_coils for block in blocks):
            return np.concatenate(_data(path, blocks), axis=1), ()
        if blocks:
            return None, (f"a noise scan of {blocks[0].mdh.UsedChannels} channels for {n_coils} was left out",)
    return None, ()


def _geometry(first: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the axes of the grid, against read, phase and slice, in columns, and the position, in LPS."""
    from scipy.spatial.transform import Rotation

    w, x, y, z = first[0]["SliceData"]["Quaternion"].astype(np.float64)
    if not abs(math.hypot(w, x, y, z) - 1.0) < 0.01:
        raise DataError(
            f"the orientation of the readouts is no rotation ({w:g}, {x:g}, {y:g}, {z:g})", hint="export the file again"
        )
    phase, read, normal = Rotation.from_quat([x, y, z, w]).as_matrix().T
    place = first[0]["SliceData"]["SlicePos"]
    return -np.stack([read, phase, normal], axis=1), np.array([place["Sag"], place["Cor"], place["Tra"]], dtype=float)


def _volume(protocol: _Protocol, sidecar: Mapping[str, Any], first: NDArray[Any]) -> Grid:
    """Return the grid of a 3-D acquisition that is not Cartesian: the cube of the read direction, unless stated."""
    stated = stated_grid(sidecar)
    if stated is not None:
        return grid_of(*stated, *_geometry(first))
    shape, fov_mm = protocol.extent
    return grid_of((shape[0],) * 3, (fov_mm[0],) * 3, *_geometry(first))


def _on_lattice(
    samples: NDArray[np.complex64], protocol: _Protocol, first: NDArray[Any], dwell: float, begin: int
) -> tuple[NDArray[np.complex64], Trajectory, Grid]:
    counter, rows = first["Counter"], np.arange(len(first))
    single_slice(counter["Sli"])
    shape, fov_mm = protocol.extent
    over = protocol.oversampling
    steps = [counter["Lin"].astype(np.int64), counter["Par"].astype(np.int64)]
    if protocol.number("sKSpace", "ucTrajectory") > 1 or any(
        step.max() >= size for step, size in zip(steps, shape[1:], strict=True)
    ):
        raise DataError(
            f"lines to {steps[0].max()} and partitions to {steps[1].max()} in a matrix of "
            f"{' x '.join(map(str, shape))}: not Cartesian, and twix data carry no trajectory",
            hint="name the trajectory in the sidecar (NonCartesianTrajectory or TrajectoryFile)",
        )
    backwards = ((first["EvalInfoMask"] >> np.uint64(_BACKWARDS)) & np.uint64(1)).astype(int)
    line = Line(
        (round(shape[0] * over), shape[1], shape[2]),
        (fov_mm[0] * over, fov_mm[1], fov_mm[2]),
        over,
        int(common(first["CenterCol"], rows, "as the sample at the centre")) - begin,
        dwell,
        bool(common(backwards, rows, "as direction (1 is backwards)")),
    )
    centres = [int(common(first[name], rows, f"as {name}")) for name in ("CenterLin", "CenterPar")]
    samples, trajectory, shape, fov_mm = cartesian_readouts(samples, line, steps[0] - centres[0], steps[1] - centres[1])
    return samples, trajectory, grid_of(shape, fov_mm, *_geometry(first))
