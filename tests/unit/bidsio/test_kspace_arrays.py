"""Raw data as plain arrays: formats, orders of axes, grids, units and what is refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.data import KSpace
from bids_sodium.core.errors import DataError
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.trajectory import density_adapted_radial

SPOKES = density_adapted_radial(60, 48, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
RNG = np.random.default_rng(0)
DATA = (RNG.standard_normal((2, 60, 48)) + 1j * RNG.standard_normal((2, 60, 48))).astype(np.complex64)
PLAIN: dict[str, Any] = {
    "samples": DATA,
    "k_per_mm": SPOKES.k_per_mm,
    "t_ms": SPOKES.t_ms,
    "shape": np.array([32, 32, 32]),
    "voxel_mm": np.array([8.0, 8.0, 8.0]),
}


def write_matlab_73(path: Path, arrays: dict[str, Any]) -> None:
    """Write HDF5 as MATLAB does: axes reversed, complex numbers as pairs, text as codes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in arrays.items():
            kind = "double"
            if isinstance(value, str):
                stored, kind = np.frombuffer(value.encode("utf-16-le"), dtype="<u2")[:, None], "char"
            elif np.iscomplexobj(value):
                pairs = np.empty(value.shape, dtype=[("real", "<f8"), ("imag", "<f8")])
                pairs["real"], pairs["imag"] = value.real, value.imag
                stored = pairs.T
            else:
                stored = np.atleast_2d(np.asarray(value, dtype=float)).T
            file.create_dataset(name, data=stored).attrs["MATLAB_class"] = np.bytes_(kind)


def write(path: Path, arrays: dict[str, Any], kind: str) -> Path:
    if kind == "npz":
        np.savez(path.with_suffix(".npz"), **arrays)
    elif kind == "h5":
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            for name, value in arrays.items():
                file[name] = value
    elif kind == "mat":
        savemat(path.with_suffix(".mat"), arrays)
    else:
        write_matlab_73(path.with_suffix(".mat"), arrays)
    return path.with_suffix({"mat73": ".mat"}.get(kind, f".{kind}"))


KINDS = pytest.mark.parametrize("kind", ["npz", "h5", "mat", "mat73"])


@KINDS
def test_every_format_says_the_same(tmp_path: Path, kind: str) -> None:
    found = read_kspace(write(tmp_path / "scan", PLAIN, kind), {"EchoTime": 0.0005})
    np.testing.assert_allclose(found.samples, DATA, rtol=1e-6)
    np.testing.assert_allclose(found.trajectory.k_per_mm, SPOKES.k_per_mm, rtol=1e-6)
    assert found.trajectory.t_ms == pytest.approx(SPOKES.t_ms)
    assert found.grid.shape == (32, 32, 32)
    assert found.grid.voxel_mm == pytest.approx((8.0, 8.0, 8.0))
    assert found.te_ms == 0.5


@KINDS
def test_axes_are_named_in_the_sidecar(tmp_path: Path, kind: str) -> None:
    whole = (DATA[:, None, None, None] * np.arange(1, 25).reshape(1, 2, 3, 4, 1, 1)).astype(np.complex64)
    names = ["coil", "echo", "average", "repetition", "shot", "sample"]
    order = (5, 0, 2, 4, 1, 3)
    arrays = {**PLAIN, "samples": whole.transpose(order)}
    sidecar = {"SampleAxes": [names[axis] for axis in order], "EchoTime": [0.0005, 0.005]}
    path = write(tmp_path / "scan", arrays, kind)
    found = read_kspace(path, sidecar, echo=1)
    np.testing.assert_allclose(found.samples, whole[:, 1].mean(axis=(1, 2)), rtol=1e-5)
    assert (found.n_echoes, found.n_averages, found.te_ms) == (2, 12, 5.0)
    one = read_kspace(path, sidecar, repetition=3)
    np.testing.assert_allclose(one.samples, whole[:, 0, :, 3].mean(axis=1), rtol=1e-5)
    assert one.n_averages == 3
    with pytest.raises(DataError, match=r"echo 2 of a file with 2 \(try: choose 0 to 1"):
        read_kspace(path, sidecar, echo=2)


@KINDS
def test_axes_may_be_named_in_the_file(tmp_path: Path, kind: str) -> None:
    arrays = {**PLAIN, "samples": DATA.T, "dims": "sample shot coil"}
    found = read_kspace(write(tmp_path / "scan", arrays, kind))
    np.testing.assert_allclose(found.samples, DATA, rtol=1e-6)


def test_large_files_are_read_in_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bids_sodium.bidsio._arrays._SLAB_BYTES", 1000)
    for order, axes in (
        ((0, 1, 2), "coil shot sample"),
        ((2, 1, 0), "sample shot coil"),
        ((1, 2, 0), "shot sample coil"),
    ):
        path = write(tmp_path / axes, {**PLAIN, "samples": DATA.transpose(order)}, "h5")
        np.testing.assert_allclose(read_kspace(path, {"SampleAxes": axes}).samples, DATA, rtol=1e-6)


@pytest.mark.parametrize(
    "axes", [["coil", "shot"], ["coil", "shot", "shot"], ["coil", "spoke", "sample"], ["x", "y", "shot"]]
)
def test_impossible_axes_are_refused(tmp_path: Path, axes: list[str]) -> None:
    with pytest.raises(
        DataError, match=r"samples of shape \(2, 60, 48\) with the axes .*name each axis once in SampleAxes"
    ):
        read_kspace(write(tmp_path / "scan", PLAIN, "npz"), {"SampleAxes": axes})


def test_more_axes_without_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"samples of shape \(2, 1, 60, 48\).*SampleAxes: coil, echo"):
        read_kspace(write(tmp_path / "scan", {**PLAIN, "samples": DATA[:, None]}, "npz"))


def test_positions_and_times_may_differ_by_echo(tmp_path: Path) -> None:
    both = np.stack([SPOKES.k_per_mm, -SPOKES.k_per_mm])
    times = np.stack([SPOKES.t_ms, SPOKES.t_ms + 1.0])
    arrays = {**PLAIN, "samples": np.stack([DATA, DATA]), "k_per_mm": both, "t_ms": times}
    path = write(tmp_path / "scan", arrays, "npz")
    found = read_kspace(path, {"SampleAxes": "echo coil shot sample"}, echo=1).trajectory
    np.testing.assert_array_equal(found.k_per_mm, -SPOKES.k_per_mm)
    assert found.t_ms == pytest.approx(SPOKES.t_ms + 1.0)


def test_a_noise_scan_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "scan", {**PLAIN, "noise": DATA[:, 0]}, "npz")
    noise = read_kspace(path).noise
    assert noise is not None
    np.testing.assert_array_equal(noise, DATA[:, 0])
    path = write(tmp_path / "wrong", {**PLAIN, "noise": DATA[:1, 0]}, "npz")
    with pytest.raises(DataError, match=r"noise of shape \(1, 48\) for 2 channels"):
        read_kspace(path)


# ---- Cartesian lattices -----------------------------------------------------------------------------------------


def test_a_lattice_is_recovered_without_oversampling_and_empty_lines(tmp_path: Path) -> None:
    thing = np.zeros((16, 12, 6), complex)
    thing[3:9, 2:7, 1:4], thing[10, 8, 4] = 1.0, 2.0j
    wide = np.zeros((32, 12, 6), complex)
    wide[8:24] = thing
    space = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(wide)))
    arrays = {"samples": space.astype(np.complex64), "shape": [16, 12, 6], "voxel_mm": [8.0, 6.0, 10.0]}
    sidecar = {"SampleAxes": "x y z", "DwellTime": 5e-5}
    found = read_kspace(write(tmp_path / "scan", arrays, "npz"), sidecar)
    assert found.grid.voxel_mm == pytest.approx((8.0, 6.0, 10.0))
    image = Nufft(found.trajectory, found.grid).gridded(found.samples[0]) / thing.size
    np.testing.assert_allclose(image, thing, atol=2e-4)
    space[:, 0], space[:, :, 0] = 0.0, 0.0
    found = read_kspace(write(tmp_path / "corners", {**arrays, "samples": space.astype(np.complex64)}, "npz"), sidecar)
    assert found.samples.shape == (1, 11 * 5, 16)
    with pytest.raises(DataError, match="a lattice of 32 x 12 x 6 samples for a grid of 16 x 12 x 8"):
        read_kspace(write(tmp_path / "short", {**arrays, "shape": [16, 12, 8]}, "npz"), sidecar)


# ---- units and grids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "name"),
    [
        (1e3, "1/m"),
        (10.0, "1/cm"),
        (2e3 * np.pi, "rad/m"),
        (2.0 * np.pi, "rad/mm"),
        (8.0, "unitless"),
        (256.0, "cycles/FOV"),
    ],
)
def test_positions_in_other_units_are_refused_with_the_likely_one(tmp_path: Path, factor: float, name: str) -> None:
    path = write(tmp_path / "scan", {**PLAIN, "k_per_mm": SPOKES.k_per_mm * factor}, "npz")
    with pytest.raises(DataError, match=rf"'k_per_mm' is in 1/mm; .*state TrajectoryUnits .*'{name}'"):
        read_kspace(path)
    np.testing.assert_allclose(
        read_kspace(path, {"TrajectoryUnits": name}).trajectory.k_per_mm, SPOKES.k_per_mm, atol=1e-7
    )
    stated = {**PLAIN, "k": SPOKES.k_per_mm * factor, "units": name}
    del stated["k_per_mm"]
    found = read_kspace(write(tmp_path / "stated", stated, "npz")).trajectory
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm, atol=1e-7)


def test_a_grid_may_stand_in_the_sidecar(tmp_path: Path) -> None:
    arrays = {name: value for name, value in PLAIN.items() if name not in {"shape", "voxel_mm"}}
    path = write(tmp_path / "scan", arrays, "npz")
    found = read_kspace(path, {"MatrixSize": [32, 30, 28], "AcquisitionVoxelSize": [8.0, 8.0, 7.5]})
    assert found.grid.shape == (32, 30, 28)
    assert found.grid.voxel_mm == pytest.approx((8.0, 8.0, 7.5))
    assert found.grid.origin_mm == pytest.approx(0.0)
    with pytest.raises(DataError, match=r"no grid.*MatrixSize"):
        read_kspace(path)
    with pytest.raises(DataError, match="MatrixSize is 'big'"):
        read_kspace(path, {"MatrixSize": "big", "AcquisitionVoxelSize": 8})


def test_a_trajectory_of_another_scan_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "scan", {**PLAIN, "k_per_mm": SPOKES.k_per_mm[:50]}, "npz")
    with pytest.raises(DataError, match=r"data of 60 shots x 48 samples but a trajectory of shape \(50, 48, 3\)"):
        read_kspace(path)


@pytest.mark.parametrize("order", [(2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_positions_may_lie_the_other_way_round(tmp_path: Path, order: tuple[int, int, int]) -> None:
    path = write(tmp_path / "scan", {**PLAIN, "k_per_mm": SPOKES.k_per_mm.transpose(order)}, "npz")
    np.testing.assert_array_equal(read_kspace(path).trajectory.k_per_mm, SPOKES.k_per_mm)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"t_ms": SPOKES.t_ms[::-1]}, "sample times 't_ms' do not rise"),
        ({"t_ms": np.outer(np.linspace(1.0, 2.0, 60), SPOKES.t_ms)}, "readout 1 has other sample times .*59 of 60"),
        ({"t_ms": SPOKES.t_ms[:-1]}, "one time for each sample"),
        ({"samples": np.where(np.arange(48) < 40, DATA, np.nan)}, "960 of 5760 k-space samples are NaN"),
        ({"samples": np.zeros_like(DATA)}, "every k-space sample is zero"),
        ({"samples": DATA[:, :1], "k_per_mm": SPOKES.k_per_mm[:1]}, "a single readout of 48 samples"),
        ({"k_per_mm": np.zeros_like(SPOKES.k_per_mm)}, "every sample lies at the centre"),
        ({"k_per_mm": np.full_like(SPOKES.k_per_mm, np.inf)}, "NaN or infinite positions"),
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_kspace(write(tmp_path / "scan", {**PLAIN, **change}, "npz"))


def test_a_matrix_of_another_resolution_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "scan", {**PLAIN, "voxel_mm": np.array([1.0])}, "npz")
    with pytest.raises(DataError, match=r"reaches 0\.0\d+ where 'k_per_mm' is in 1/mm; read in 1/mm that is 0\.12"):
        read_kspace(path)


def test_other_matlab_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mat").write_text("no MATLAB file, but as long as a header has to be" * 10)
    with pytest.raises(DataError, match="cannot be read as raw data"):
        read_kspace(tmp_path / "text.mat")


def test_arrays_larger_than_memory_are_refused_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        # Nothing is stored: chunks that were never written take no room.
        file.create_dataset("samples", shape=(32, 210_000, 384), dtype=np.complex64, chunks=(1, 1000, 384))
    assert path.stat().st_size < 1e6
    with pytest.raises(DataError, match=r"samples need about 57\.\d GiB of memory, 4\.0 GiB are available"):
        read_kspace(path, memory_gb=4.0)


def test_the_result_is_what_reconstruction_takes(tmp_path: Path) -> None:
    found = read_kspace(write(tmp_path / "scan", {**PLAIN, "samples": DATA[0].astype(np.complex128)}, "h5"))
    assert isinstance(found, KSpace)
    assert found.samples.dtype == np.complex64
    assert found.samples.flags.c_contiguous
    assert found.n_coils == 1
