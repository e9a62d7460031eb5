"""ISMRMRD files: an XML header and one record a readout, with head, trajectory and data (HDF5).

Heads are read first, from the chunks as they lie in the file, and decide what becomes of each readout; the data follow
in blocks straight into their place. The trajectory is unitless, +-0.5 at the edge of the encoded matrix, so that
``k = traj N / FOV`` in cycles/mm; directions and position are in LPS and become the affine of the grid, whose voxel
``n // 2`` lies at the position. The signal of Siemens scanners is ``exp(+2 pi i k r)``: where they are the vendor the
axes run against the directions. Cartesian readouts without a trajectory lie on the lattice of their counters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio._metadata import (
    LPS_FROM_RAS,
    agreed,
    check_memory,
    dwell_ms,
    dwell_offset,
    echo_time_ms,
    frequency_mhz,
    grid_of,
    reach_of,
    repetition_time_ms,
    unit_factor,
)
from bids_sodium.bidsio._readouts import Line, Plan, cartesian_readouts, common, plan, put, rate_of, single_slice
from bids_sodium.bidsio._trajectory_files import stated_trajectory
from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.core.errors import DataError

__all__ = ["from_ismrmrd", "write"]

_NAMESPACE = "http://www.ismrm.org/ISMRMRD"
# Bits (from one) of readouts that are not image data: noise, navigators, phase correction, feedback, dummy scans ...
_NOT_IMAGE_DATA = sum(1 << (bit - 1) for bit in (19, 20, 23, 24, 26, 27, 28, 29, 30, 31))
_NOISE = 1 << 18
_BACKWARDS = 1 << 21
_LAST_IN_MEASUREMENT = 1 << 24
_KINDS = {"radial": "radial", "cones": "other", "twisted": "other", "floret": "other", "cartesian": "cartesian"}
_ENCODING = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", "phase", "set", "segment")
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class _Header:
    """What the XML header states; ``nan`` and empty where it does not."""

    shape: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    recon_fov_mm: tuple[float, float, float]
    centre: tuple[float, float]
    kind: str
    te_ms: tuple[float, ...]
    tr_ms: float
    flip_deg: float
    frequency_mhz: float
    field_t: float
    noise_bandwidth: float
    sign: float


def from_ismrmrd(
    group: Any,
    sidecar: Mapping[str, Any],
    folder: Path,
    *,
    echo: int = 0,
    repetition: int | None = None,
    memory_gb: float | None = None,
) -> KSpace:
    """Return the raw data of an acquisition.

    Parameters
    ----------
    group : h5py.Group
        With ``xml`` and ``data``.
    sidecar, echo, repetition, memory_gb
        As for `read_kspace`.
    folder : Path
        Where ``TrajectoryFile`` is looked for.

    Raises
    ------
    DataError
        If readouts are missing, damaged or of several kinds, or header and sidecar contradict each other.
    """
    records = group["data"]
    check_memory(records.shape[0] * records.dtype["head"].itemsize / 8, memory_gb, "the heads of the readouts")
    head = _heads(records)
    flags = head["flags"]
    image = np.flatnonzero((flags & np.uint64(_NOT_IMAGE_DATA)) == 0)
    if image.size == 0:
        raise DataError("no readout of image data in the file", hint="export the whole measurement")
    counters = head["idx"][image]
    chosen = plan(
        image,
        encoding=np.stack([counters[name].astype(np.int64) for name in _ENCODING], axis=-1),
        average=counters["average"].astype(np.int64),
        repetition=counters["repetition"].astype(np.int64),
        echo=counters["contrast"].astype(np.int64),
        wanted_echo=echo,
        wanted_repetition=repetition,
    )
    rows = chosen.rows
    used = head[rows]
    n = int(common(used["number_of_samples"], rows, "samples"))
    n_coils = int(common(used["active_channels"], rows, "channels"))
    dimensions = int(common(used["trajectory_dimensions"], rows, "trajectory dimensions"))
    dwell = dwell_ms(rate_of(used["sample_time_us"], rows), sidecar, n)
    check_memory(chosen.n_shots * n * (n_coils + 0.5 * dimensions), memory_gb, "the samples")
    header = _parse(bytes(group["xml"][0]), int(common(used["encoding_space_ref"], rows, "encoding space")))
    if dimensions in {1, 2}:
        raise DataError(f"a trajectory of {dimensions} dimensions", hint="export kx, ky and kz of every sample")
    imported = dimensions > 0 and "TrajectoryFile" not in sidecar
    if imported and chosen.n_averages > 1 and _differ(records, chosen):
        chosen = chosen.apart("averages or repetitions sample different positions and were all kept")
    noise_rows = np.flatnonzero((flags & np.uint64(_NOISE) != 0) & (head["active_channels"] == n_coils))
    samples, positions, noise = _read(records, chosen, noise_rows, (n_coils, n), dimensions if imported else 0)
    if noise is not None:
        # White noise of a receiver: its power goes with the bandwidth, and averages divide it.
        rate = rate_of(head["sample_time_us"][noise_rows], noise_rows) / 1000.0
        scale = rate / dwell / (header.noise_bandwidth * chosen.n_averages)
        noise = noise * np.float32(math.sqrt(scale) if scale > 0 else 1.0)

    first = head[chosen.first]
    axes = np.stack([first[0]["read_dir"], first[0]["phase_dir"], first[0]["slice_dir"]], axis=1)
    # No geometry at all, as simulators write: the axes of the world.
    geometry = (header.sign * axes if axes.any() else None, first[0]["position"])
    is_cartesian = (
        dimensions == 0
        and header.kind == "cartesian"
        and not {"TrajectoryFile", "NonCartesianTrajectory"} & set(sidecar)
    )
    begin, end = int(used["discard_pre"].max()), n - int(used["discard_post"].max())
    if end - begin < 3:
        raise DataError(f"{n} samples a readout of which all but {max(end - begin, 0)} are to be discarded")
    if (begin, end) != (0, n):
        samples = np.ascontiguousarray(samples[..., begin:end])
    if is_cartesian:
        samples, trajectory, grid = _on_lattice(samples, header, first, dwell, begin, geometry)
    else:
        grid = grid_of(header.shape, header.fov_mm, *geometry)
        t_ms = np.asarray((np.arange(n) + dwell_offset(sidecar)) * dwell, dtype=np.float64)
        if positions is None:
            trajectory = stated_trajectory(sidecar, folder, grid, n_shots=chosen.n_shots, n_samples=n, t_ms=t_ms)
        else:
            trajectory = _trajectory(positions, t_ms, grid, header, first, sidecar)
        if (begin, end) != (0, n):
            trajectory = replace(
                trajectory, k_per_mm=trajectory.k_per_mm[:, begin:end], t_ms=trajectory.t_ms[begin:end]
            )
    return KSpace(
        samples,
        trajectory,
        grid,
        te_ms=echo_time_ms(header.te_ms, sidecar, chosen.echo, chosen.n_echoes),
        tr_ms=repetition_time_ms(header.tr_ms, sidecar, float(np.ptp(trajectory.t_ms))),
        flip_deg=agreed("flip angle", header.flip_deg, sidecar.get("FlipAngle"), 1.0, "degrees"),
        frequency_mhz=frequency_mhz(header.frequency_mhz, header.field_t, sidecar),
        noise=noise,
        n_averages=chosen.n_averages,
        n_echoes=chosen.n_echoes,
        notes=chosen.notes,
    )


def _heads(records: Any) -> NDArray[Any]:
    """Return the heads of all records.

    HDF5 reads data and trajectory of a record even where its head alone is asked for; the heads lie in the chunks
    themselves, which takes a hundredth of the time.
    """
    kind = records.id.get_type()
    plain = records.chunks is not None and records.id.get_create_plist().get_nfilters() == 0
    if not plain or records.id.get_num_chunks() * records.chunks[0] < records.shape[0]:
        return np.asarray(records.fields("head")[()])
    index = kind.get_member_index(b"head")
    layout = np.dtype(
        {
            "names": ["head"],
            "formats": [kind.get_member_type(index).dtype],
            "offsets": [kind.get_member_offset(index)],
            "itemsize": kind.get_size(),
        }
    )
    heads = np.empty(records.shape, layout["head"])
    for start in range(0, len(heads), records.chunks[0]):
        part = heads[start : start + records.chunks[0]]
        part[:] = np.frombuffer(records.id.read_direct_chunk((start,))[1], layout)["head"][: len(part)]
    return heads


def _differ(records: Any, chosen: Plan) -> bool:
    """Tell whether readouts of one shot lie at different positions, by a few of them."""
    for shot in np.unique(np.linspace(0, chosen.n_shots - 1, 8).astype(int)):
        paths = [records.fields("traj")[int(row)] for row in chosen.rows[chosen.shots == shot]]
        if any(path.shape != paths[0].shape or not _same(path, paths[0]) for path in paths):
            return True
    return False


def _same(path: NDArray[np.floating], other: NDArray[np.floating]) -> bool:
    return bool(np.abs(path - other).max(initial=0.0) <= 1e-3 * np.abs(other).max(initial=0.0))


def _read(
    records: Any, chosen: Plan, noise_rows: NDArray[np.integer], size: tuple[int, int], dimensions: int
) -> tuple[NDArray[np.complex64], NDArray[np.float32] | None, NDArray[np.complex64] | None]:
    """Return samples (n_coils, n_shots, n), positions (n_shots, n, 3) and noise (n_coils, m)."""
    n_coils, n = size
    samples = (np.empty if chosen.n_averages == 1 else np.zeros)((n_coils, chosen.n_shots, n), dtype=np.complex64)
    positions = np.full((chosen.n_shots, n, 3), np.nan, dtype=np.float32) if dimensions else None
    noise: list[NDArray[np.complex64]] = []
    step = int(np.clip(_BLOCK_BYTES // (n * (8 * n_coils + 4 * dimensions)), 1, 1024))
    fields = records.fields(["traj", "data"] if dimensions else ["data"])
    wanted = np.union1d(chosen.rows, noise_rows)
    for start in range(0, records.shape[0], step):
        end = min(start + step, records.shape[0])
        if not np.searchsorted(wanted, end) > np.searchsorted(wanted, start):
            continue
        block = fields[start:end]
        which = slice(*np.searchsorted(chosen.rows, [start, end]))
        rows, shots = chosen.rows[which], chosen.shots[which]
        if rows.size:
            data = _stacked(records, "data", block["data"][rows - start], chosen, 2 * n_coils * n)
            put(samples, shots, data.view(np.complex64).reshape(-1, n_coils, n), chosen.n_averages)
        if rows.size and positions is not None:
            paths = _stacked(records, "traj", block["traj"][rows - start], chosen, dimensions * n)
            _place(positions, shots, paths.reshape(-1, n, dimensions)[..., :3], rows)
        silent = noise_rows[slice(*np.searchsorted(noise_rows, [start, end]))]
        noise += [data.view(np.complex64).reshape(n_coils, -1) for data in block["data"][silent - start]]
    return samples, positions, np.concatenate(noise, axis=1) if noise else None


def _place(
    positions: NDArray[np.float32],
    shots: NDArray[np.integer],
    paths: NDArray[np.float32],
    rows: NDArray[np.integer],
) -> None:
    """Put positions in their place; those of later averages must be the same."""
    if (np.diff(shots) == 1).all() and np.isnan(positions[shots[0] : shots[-1] + 1, 0, 0]).all():
        positions[shots[0] : shots[-1] + 1] = paths
        return
    for shot, path, row in zip(shots, paths, rows, strict=True):
        if np.isnan(positions[shot, 0, 0]):
            positions[shot] = path
        elif not _same(path, positions[shot]):
            raise DataError(
                f"readout {int(row)} averages shot {int(shot)} but has another trajectory",
                hint="choose one repetition, or export the averages as one acquisition of more shots",
            )


def _stacked(records: Any, field: str, values: NDArray[Any], chosen: Plan, length: int) -> NDArray[np.float32]:
    """Return the rows of a block one after the other, each of the length that its head says."""
    if any(len(row) != length for row in values):
        _refuse_lengths(records, field, chosen.rows, length)
    return np.concatenate(values).astype(np.float32, copy=False)


def _refuse_lengths(records: Any, field: str, rows: NDArray[np.integer], length: int) -> None:
    lengths = np.concatenate(
        [[len(row) for row in records.fields(field)[start : start + 256]] for start in range(0, records.shape[0], 256)]
    )[rows]
    wrong = np.flatnonzero(lengths != length)
    what = "trajectory" if field == "traj" else "data"
    raise DataError(
        f"readout {int(rows[wrong[0]])} holds {int(lengths[wrong[0]])} {what} values where its header says {length} "
        f"({wrong.size} of {len(rows)} readouts)",
        hint="the trajectory or data belongs to another acquisition, or the export was cut short",
    )


def _trajectory(
    positions: NDArray[np.float32],
    t_ms: NDArray[np.float64],
    grid: Grid,
    header: _Header,
    head: NDArray[Any],
    sidecar: Mapping[str, Any],
) -> Trajectory:
    factor = unit_factor(
        reach_of(positions),
        grid,
        sidecar,
        assumed="unitless",
        source="ISMRMRD has +-0.5 of the encoded matrix",
    )
    positions *= factor
    omega = head["user_float"][:, 0].astype(np.float64)
    stated = bool((np.isfinite(omega) & (omega > 0)).all())
    return Trajectory(positions, t_ms, omega * (4.0 * np.pi / omega.sum()) if stated else None, header.kind)


def _on_lattice(
    samples: NDArray[np.complex64],
    header: _Header,
    head: NDArray[Any],
    dwell: float,
    begin: int,
    geometry: tuple[NDArray[np.floating] | None, NDArray[np.floating]],
) -> tuple[NDArray[np.complex64], Trajectory, Grid]:
    backwards = (head["flags"] & np.uint64(_BACKWARDS)) != 0
    rows = np.arange(len(head))
    common(backwards.astype(int), rows, "as direction (1 is backwards)")
    single_slice(head["idx"]["slice"])
    centre = int(common(head["center_sample"], rows, "as the sample at the centre"))
    if centre == 0 and samples.shape[-1] + begin == header.shape[0]:
        centre = header.shape[0] // 2
    line = Line(
        header.shape,
        header.fov_mm,
        max(header.fov_mm[0] / header.recon_fov_mm[0], 1.0),
        centre - begin,
        dwell,
        bool(backwards.all()),
    )
    steps = [head["idx"][name].astype(np.int64) for name in _ENCODING[:2]]
    phase, partition = (
        step - (size // 2 if math.isnan(centre) else round(centre))
        for step, size, centre in zip(steps, header.shape[1:], header.centre, strict=True)
    )
    samples, trajectory, shape, fov_mm = cartesian_readouts(samples, line, phase, partition)
    return samples, trajectory, grid_of(shape, fov_mm, *geometry)


def _parse(xml: bytes, space: int = 0) -> _Header:
    # Expat does not fetch external entities, and the header comes from the user's own file.
    root = ET.fromstring(xml)  # noqa: S314
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    encodings = root.findall("encoding")
    if space >= len(encodings):
        raise DataError(
            f"readouts of encoding {space}, the header describes {len(encodings)}",
            hint="export it again with its header",
        )

    def numbers(parent: ET.Element, place: str) -> tuple[float, ...]:
        texts = [element.text or "" for element in parent.findall(place)]
        try:
            return tuple(float(text) for text in texts)
        except ValueError as error:
            raise DataError(f"{place} is '{texts[0]}' in the header", hint="export it again") from error

    def number(place: str, parent: ET.Element = root) -> float:
        return next(iter(numbers(parent, place)), math.nan)

    encoding = encodings[space]
    shape = [number(f"encodedSpace/matrixSize/{axis}", encoding) for axis in "xyz"]
    fov_mm = [number(f"encodedSpace/fieldOfView_mm/{axis}", encoding) for axis in "xyz"]
    if not all(value >= 1 for value in shape) or not all(value > 0 for value in fov_mm):
        raise DataError(
            f"encoded matrix {shape} and field of view {fov_mm} mm", hint="export it again with both in the header"
        )
    recon = [number(f"reconSpace/fieldOfView_mm/{axis}", encoding) for axis in "xyz"]
    recon = [value if value > 0 else whole for value, whole in zip(recon, fov_mm, strict=True)]
    centre = [number(f"encodingLimits/kspace_encoding_step_{step}/center", encoding) for step in (1, 2)]
    kind = encoding.findtext("trajectoryDescription/identifier") or ""
    if kind not in _KINDS:
        kind = "cartesian" if encoding.findtext("trajectory") == "cartesian" else "imported"
    frequency = number("experimentalConditions/H1resonanceFrequency_Hz") / 1e6
    bandwidth = number("acquisitionSystemInformation/relativeReceiverNoiseBandwidth")
    return _Header(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        (fov_mm[0], fov_mm[1], fov_mm[2]),
        (recon[0], recon[1], recon[2]),
        (centre[0], centre[1]),
        kind,
        numbers(root, "sequenceParameters/TE"),
        number("sequenceParameters/TR"),
        number("sequenceParameters/flipAngle_deg"),
        frequency if frequency > 0 else math.nan,
        number("acquisitionSystemInformation/systemFieldStrength_T"),
        bandwidth if bandwidth > 0 else 1.0,
        -1.0 if "siemens" in (root.findtext("acquisitionSystemInformation/systemVendor") or "").lower() else 1.0,
    )


def write(path: Path, kspace: KSpace, dwell: float) -> None:
    """Write a file in place, see `write_ismrmrd`; ``dwell`` in ms."""
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
    head["sample_time_us"] = dwell * 1000.0
    head["idx"]["kspace_encode_step_1"] = shots % 65536
    axes = LPS_FROM_RAS @ (grid.affine[:3, :3] / np.array(grid.voxel_mm))
    head["position"] = LPS_FROM_RAS @ grid.origin_mm
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
