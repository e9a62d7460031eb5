"""Raw data on disk to and from `KSpace`, whatever the format; the only door to HDF5, twix and plain arrays of k-space.

ISMRMRD is the format to convert to, and the one that is written. Siemens twix, and plain arrays from NumPy, MATLAB or
HDF5 for exports of other makers, are read as they are. Every format ends in the same checks: the nucleus is sodium
unless the sidecar says otherwise, the trajectory reaches the edge of the k-space of matrix and field of view, no
readout is empty or cut short, and the file did not change while it was read.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from bids_sodium.bidsio._arrays import from_arrays
from bids_sodium.bidsio._ismrmrd import from_ismrmrd, write
from bids_sodium.bidsio._metadata import check_frequency, reach_of, share_of_edge
from bids_sodium.bidsio._readouts import usable
from bids_sodium.bidsio._stored import open_arrays, stored_in_hdf5
from bids_sodium.bidsio._twix import read_twix
from bids_sodium.bidsio.files import atomically
from bids_sodium.core.data import KSpace
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.recon.trajectory import delayed

__all__ = ["read_kspace", "write_ismrmrd"]


def read_kspace(
    path: Path,
    sidecar: Mapping[str, Any] | None = None,
    *,
    delay_ms: float | Sequence[float] = 0.0,
    echo: int = 0,
    repetition: int | None = None,
    memory_gb: float | None = None,
) -> KSpace:
    """Read raw data.

    Parameters
    ----------
    path : Path
        ISMRMRD file (``.h5``, ``.hdf5``, ``.mrd``), Siemens twix (``.dat``), or plain arrays (``.npz``, ``.mat``,
        ``.h5``).
    sidecar : mapping, optional
        Its BIDS metadata, times in s: ``EchoTime`` (a list for several echoes), ``RepetitionTime``, ``FlipAngle``,
        ``ImagingFrequency`` (MHz), ``MagneticFieldStrength``, ``ResonantNucleus`` (23Na where it is not stated),
        ``DwellTime``, ``DwellConvention`` (``centre``: the first sample is half a dwell after the echo time, or
        ``start``: at it), ``TrajectoryUnits``, ``TrajectoryFile``, ``GradientImpulseResponse``,
        ``NonCartesianTrajectory`` where nothing else gives the trajectory, ``MatrixSize`` and
        ``AcquisitionVoxelSize`` (mm) where nothing else gives the grid, and ``SampleAxes`` of plain arrays.
    delay_ms : float or three floats
        Time by which the gradients, of all axes or of each, lag the sampling beyond what the trajectory says, in ms.
    echo : int
        Which of the echoes, from zero; the result says how many there are.
    repetition : int, optional
        Which of the repetitions, from zero; by default their mean, as of averages.
    memory_gb : float, optional
        Memory that may be used, in GiB; data that would take more, with what reconstruction needs, are not read.

    Returns
    -------
    KSpace
        Samples, trajectory, grid and timing; TE, TR, flip angle and frequency are ``nan`` where nothing states them.

    Raises
    ------
    DataError
        If the file is missing, truncated, still being written or of an unknown format, a readout is incomplete,
        samples are not finite, header and sidecar contradict each other, the nucleus is not the one expected, there is
        no trajectory, or it does not fit matrix and field of view.
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
    before = path.stat()
    try:
        kspace = _read(path, sidecar, echo=echo, repetition=repetition, memory_gb=memory_gb)
        _check_settled(path, before)
        check_frequency(kspace.frequency_mhz, sidecar.get("MagneticFieldStrength"), sidecar)
        share = share_of_edge(reach_of(kspace.trajectory.k_per_mm), kspace.grid)
        kspace = usable(kspace)
        if share < 0.75:
            note = f"the trajectory reaches {share:.2g} of the edge of the grid's k-space: the image is interpolated"
            kspace = replace(kspace, notes=(*kspace.notes, note))
        if not np.any(np.asarray(delay_ms) != 0.0):
            return kspace
        return replace(kspace, trajectory=delayed(kspace.trajectory, delay_ms))
    except GeometryError as error:
        _check_settled(path, before)
        raise GeometryError(error.what, where=where, hint=error.hint) from error
    except DataError as error:
        _check_settled(path, before)
        inner = f"{error.where}: {error.what}" if error.where and error.where != where else error.what
        raise DataError(inner, where=where, hint=error.hint) from error
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, ET.ParseError) as error:
        _check_settled(path, before)
        if isinstance(error, BlockingIOError) or "open for write" in str(error):
            raise DataError(
                "is still being written: another program holds it open for writing",
                where=where,
                hint="wait until it has ended; if nothing writes it, a writer crashed: copy or convert it again",
            ) from error
        raise DataError(
            f"cannot be read as raw data, it may be truncated ({error})", where=where, hint="copy or convert it again"
        ) from error


def _check_settled(path: Path, before: os.stat_result) -> None:
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise DataError(
            f"is still being written: {before.st_size} bytes when reading began, {now.st_size} when it ended",
            where=str(path),
            hint="run again when the copy or export has ended",
        )


def _read(
    path: Path, sidecar: Mapping[str, Any], *, echo: int, repetition: int | None, memory_gb: float | None
) -> KSpace:
    import h5py

    suffix = path.suffix.lower()
    if suffix == ".dat":
        return read_twix(path, sidecar, echo=echo, repetition=repetition, memory_gb=memory_gb)
    if suffix in {".npz", ".mat"}:
        with open_arrays(path) as arrays:
            return from_arrays(arrays, sidecar, path.parent, echo=echo, repetition=repetition, memory_gb=memory_gb)
    if suffix not in {".h5", ".hdf5", ".mrd"}:
        raise DataError(
            f"raw data of the unknown format '{suffix}'",
            hint="convert it to ISMRMRD, for Siemens with siemens_to_ismrmrd, for Philips with philips_to_ismrmrd, or "
            "export arrays to .npz, .mat or .h5",
        )
    with h5py.File(path, "r") as file:
        groups = [file[name] for name in file if isinstance(file[name], h5py.Group)]
        found = [group for group in groups if "xml" in group and "data" in group]
        if len(found) > 1:
            names = ", ".join(group.name.strip("/") for group in found)
            raise DataError(f"{len(found)} acquisitions in one file ({names})", hint="write one file an acquisition")
        if found:
            return from_ismrmrd(found[0], sidecar, path.parent, echo=echo, repetition=repetition, memory_gb=memory_gb)
        if "samples" not in file:
            raise DataError(
                f"neither an ISMRMRD dataset nor an array 'samples', only {', '.join(file) or 'nothing'}",
                hint="convert the raw data to ISMRMRD again",
            )
        return from_arrays(
            stored_in_hdf5(file), sidecar, path.parent, echo=echo, repetition=repetition, memory_gb=memory_gb
        )


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
    return atomically(path, lambda temporary: write(temporary, kspace, dwell_ms))
