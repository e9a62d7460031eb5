"""Named arrays in a file, loaded when they are asked for: NumPy archives, HDF5, MATLAB files of both kinds.

MATLAB writes version 7.3 as HDF5, with the axes reversed, complex numbers as pairs of ``real`` and ``imag`` and text as
character codes; all are turned back.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError

__all__ = ["SUFFIXES", "Stored", "open_arrays", "stored_in_hdf5", "text_of"]

SUFFIXES = (".npz", ".mat", ".h5", ".hdf5")
Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """An array in a file.

    Parameters
    ----------
    shape : tuple of int
        Its shape, in the order of the file.
    load : callable
        Returns the values at an index in that order.
    is_reversed : bool
        Whether the order of the file is the reverse of that in which the array was written (MATLAB 7.3).
    in_pieces : bool
        Whether a part can be loaded without the rest.
    """

    shape: tuple[int, ...]
    load: Callable[[Index], NDArray[Any]]
    is_reversed: bool = False
    in_pieces: bool = False

    def values(self) -> NDArray[Any]:
        """Return the whole array as it was written."""
        loaded = self.load(())
        return loaded.T if self.is_reversed else loaded


@contextmanager
def open_arrays(path: Path) -> Iterator[dict[str, Stored]]:
    """Open a file of arrays; they can be loaded until it is closed.

    Parameters
    ----------
    path : Path
        Ends in ``.npz``, ``.mat``, ``.h5`` or ``.hdf5``.

    Raises
    ------
    DataError
        If the file is not of the kind that its name says.
    """
    import h5py

    suffix = path.suffix.lower()
    if suffix == ".npz":
        if not zipfile.is_zipfile(path):
            raise DataError("cannot be read as raw data, it is no .npz archive", hint="write it with numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            yield {name: Stored(_shape_in_archive(path, name), _from_archive(archive, name)) for name in archive.files}
    elif suffix == ".mat" and not h5py.is_hdf5(path):
        yield _in_matlab(path)
    else:
        with h5py.File(path, "r") as file:
            yield stored_in_hdf5(file)


def stored_in_hdf5(file: Any) -> dict[str, Stored]:
    """Return the arrays at the top of an open HDF5 file."""
    import h5py

    return {
        name: Stored(item.shape, _from_dataset(item), "MATLAB_class" in item.attrs, in_pieces=True)
        for name, item in file.items()
        if isinstance(item, h5py.Dataset)
    }


def text_of(values: NDArray[Any]) -> str:
    """Return the text in an array of strings, bytes or MATLAB's character codes; several are joined by commas."""
    if values.dtype.kind == "u":
        return "".join(chr(int(code)) for code in values.ravel())
    texts = [item.decode() if isinstance(item, bytes) else str(item) for item in np.atleast_1d(values).ravel().tolist()]
    return ",".join(text.strip() for text in texts)


def _from_archive(archive: Mapping[str, NDArray[Any]], name: str) -> Callable[[Index], NDArray[Any]]:
    def load(index: Index) -> NDArray[Any]:
        try:
            return np.asarray(archive[name][index])
        except ValueError as error:
            raise DataError(f"an array cannot be read ({error})", hint="store plain numeric arrays") from error

    return load


def _shape_in_archive(path: Path, name: str) -> tuple[int, ...]:
    """Return a shape without the values."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        try:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return tuple(read(member)[0])
        except ValueError as error:
            raise DataError(f"an array cannot be read ({error})", hint="store plain numeric arrays") from error


def _in_matlab(path: Path) -> dict[str, Stored]:
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    def loader(name: str) -> Callable[[Index], NDArray[Any]]:
        return lambda index: np.asarray(loadmat(path, variable_names=[name])[name][index])

    try:
        return {name: Stored(tuple(shape), loader(name)) for name, shape, _ in whosmat(path)}
    except (MatReadError, ValueError, NotImplementedError, TypeError) as error:
        raise DataError(
            f"cannot be read as raw data, it is no MATLAB file ({error})", hint="save it with -v7 or -v7.3"
        ) from error


def _from_dataset(dataset: Any) -> Callable[[Index], NDArray[Any]]:
    def load(index: Index) -> NDArray[Any]:
        values = np.asarray(dataset[index])
        names = values.dtype.names
        if names is not None and set(names) == {"real", "imag"}:
            return np.asarray(values["real"] + np.complex64(1j) * values["imag"])
        return values

    return load
