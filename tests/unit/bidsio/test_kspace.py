import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_sodium.bidsio.kspace import read_kspace, write_ismrmrd
from bids_sodium.core.data import Grid, KSpace
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.recon.trajectory import cones_3d, density_adapted_radial

SPOKES = density_adapted_radial(60, 48, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)


def oblique_grid(*, left_handed: bool = False) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, -25, 40], degrees=True).as_matrix() * [8.0, 7.0, 6.0]
    if left_handed:
        affine[:3, 0] *= -1
    affine[:3, 3] = [-70.0, 33.5, 121.25]
    return Grid((32, 30, 27), affine)


@pytest.fixture
def kspace() -> KSpace:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((2, 60, 48)) + 1j * rng.standard_normal((2, 60, 48))
    return KSpace(
        samples.astype(np.complex64),
        SPOKES,
        oblique_grid(),
        te_ms=0.5,
        tr_ms=120.0,
        flip_deg=90.0,
        frequency_mhz=33.786,
    )


@pytest.fixture
def written(tmp_path: Path, kspace: KSpace) -> Path:
    return write_ismrmrd(tmp_path / "scan.h5", kspace)


def edit(path: Path, change: Callable[[np.ndarray], Any]) -> None:
    """Change the readouts of a file; a change may return a new array."""
    with h5py.File(path, "r+") as file:
        records = file["dataset/data"][()]
        result = change(records)
        records = records if result is None else result
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=records)


def edit_header(path: Path, old: str, new: str) -> None:
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        assert old in text
        file["dataset/xml"][0] = text.replace(old, new).encode()


def set_head(name: str, value: Any, where: Any = slice(None)) -> Callable[[np.ndarray], None]:
    def change(records: np.ndarray) -> None:
        records["head"][name][where] = value

    return change


@pytest.mark.parametrize("left_handed", [False, True])
def test_what_is_written_is_read(tmp_path: Path, kspace: KSpace, left_handed: bool) -> None:
    kspace = dataclasses.replace(kspace, grid=oblique_grid(left_handed=left_handed))
    found = read_kspace(write_ismrmrd(tmp_path / "scan.h5", kspace), {})
    np.testing.assert_array_equal(found.samples, kspace.samples)
    assert found.trajectory.k_per_mm == pytest.approx(SPOKES.k_per_mm, abs=1e-8)
    assert found.trajectory.t_ms == pytest.approx(SPOKES.t_ms, rel=1e-6)
    assert found.trajectory.solid_angle_sr == pytest.approx(SPOKES.solid_angle_sr, rel=1e-6)
    assert found.trajectory.kind == "radial"
    assert found.grid.shape == kspace.grid.shape
    assert found.grid.affine == pytest.approx(kspace.grid.affine, abs=2e-5)
    assert (found.te_ms, found.tr_ms, found.flip_deg, found.frequency_mhz) == (0.5, 120.0, 90.0, 33.786)


def test_cones_keep_their_bands(tmp_path: Path, kspace: KSpace) -> None:
    cones = cones_3d(fov_mm=100.0, voxel_mm=8.0, readout_ms=20.0, n_samples=48)
    samples = np.ones((1, cones.n_shots, 48), np.complex64)
    path = write_ismrmrd(tmp_path / "cones.h5", dataclasses.replace(kspace, samples=samples, trajectory=cones))
    found = read_kspace(path).trajectory
    assert found.kind == "cones"
    assert found.solid_angle_sr == pytest.approx(cones.solid_angle_sr, rel=1e-6)


def test_the_ismrmrd_package_reads_it(written: Path, kspace: KSpace) -> None:
    with ismrmrd.Dataset(str(written), "dataset", mode="r") as dataset:
        header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
        assert dataset.number_of_acquisitions() == 60
        readout = dataset.read_acquisition(17)
    np.testing.assert_array_equal(readout.data, kspace.samples[:, 17])
    assert readout.traj == pytest.approx(SPOKES.k_per_mm[17] * [8.0, 7.0, 6.0], abs=1e-6)
    assert readout.sample_time_us == pytest.approx(20_000.0 / 48)
    assert header.encoding[0].encodedSpace.matrixSize.y == 30
    assert header.encoding[0].reconSpace.fieldOfView_mm.z == pytest.approx(162.0)
    assert header.encoding[0].trajectory.value == "radial"
    assert header.experimentalConditions.H1resonanceFrequency_Hz == 33_786_000
    assert header.sequenceParameters.TR == [120.0]


def test_what_the_ismrmrd_package_writes_is_read(tmp_path: Path, kspace: KSpace) -> None:
    path = tmp_path / "theirs.h5"
    with h5py.File(write_ismrmrd(tmp_path / "ours.h5", kspace), "r") as file:
        header = file["dataset/xml"][0]
    with ismrmrd.Dataset(str(path), "dataset", mode="w") as dataset:
        dataset.write_xml_header(header)
        for shot in range(60):
            readout = ismrmrd.Acquisition.from_array(
                kspace.samples[:, shot], (SPOKES.k_per_mm[shot] * [8.0, 7.0, 6.0]).astype(np.float32)
            )
            readout.sample_time_us = 20_000.0 / 48
            dataset.append_acquisition(readout)
    found = read_kspace(path)
    np.testing.assert_array_equal(found.samples, kspace.samples)
    assert found.trajectory.k_per_mm == pytest.approx(SPOKES.k_per_mm, abs=1e-7)
    assert found.trajectory.solid_angle_sr is None
    assert found.grid.origin_mm == pytest.approx(0.0)
    assert np.diag(found.grid.affine)[:3] == pytest.approx([8.0, 7.0, 6.0])


def test_readouts_that_are_no_image_data_are_left_out(written: Path) -> None:
    edit(written, set_head("flags", 1 << 18, slice(0, 3)))
    assert read_kspace(written).samples.shape == (2, 57, 48)


def test_samples_to_discard_are_discarded(written: Path, kspace: KSpace) -> None:
    edit(written, set_head("discard_pre", 2))
    found = read_kspace(written)
    np.testing.assert_array_equal(found.samples, kspace.samples[..., 2:])
    assert found.trajectory.t_ms == pytest.approx(SPOKES.t_ms[2:], rel=1e-6)


def test_dwell_convention_moves_the_times(written: Path) -> None:
    start = read_kspace(written, {"DwellConvention": "start"})
    assert start.trajectory.t_ms[0] == 0.0
    assert read_kspace(written).trajectory.t_ms[0] == pytest.approx(10.0 / 48, rel=1e-6)
    with pytest.raises(DataError, match="DwellConvention is 'end'"):
        read_kspace(written, {"DwellConvention": "end"})


def test_delay_moves_the_trajectory(written: Path) -> None:
    late = read_kspace(written, delay_ms=0.1)
    assert late.trajectory.k_max_per_mm < SPOKES.k_max_per_mm
    assert late.te_ms == 0.5


def test_timing_comes_from_the_sidecar_where_the_header_is_silent(tmp_path: Path, kspace: KSpace) -> None:
    silent = dataclasses.replace(kspace, te_ms=math.nan, tr_ms=math.nan, flip_deg=math.nan, frequency_mhz=math.nan)
    path = write_ismrmrd(tmp_path / "silent.h5", silent)
    sidecar = {"EchoTime": 0.0004, "RepetitionTime": 0.1, "FlipAngle": 70, "ImagingFrequency": 32.6}
    found = read_kspace(path, sidecar)
    assert (found.te_ms, found.tr_ms) == (pytest.approx(0.4), pytest.approx(100.0))
    assert (found.flip_deg, found.frequency_mhz) == (70.0, 32.6)
    bare = read_kspace(path)
    assert all(math.isnan(v) for v in (bare.te_ms, bare.tr_ms, bare.flip_deg, bare.frequency_mhz))


def test_a_proton_frequency_by_the_letter_of_the_header_is_converted(written: Path) -> None:
    edit_header(written, "33786000", "127731000")
    assert read_kspace(written, {"ResonantNucleus": "23Na"}).frequency_mhz == pytest.approx(33.786, rel=1e-3)


def test_trajectory_may_be_named_in_the_sidecar(written: Path) -> None:
    def drop(records: np.ndarray) -> None:
        records["head"]["trajectory_dimensions"] = 0
        for row in range(len(records)):
            records["traj"][row] = np.zeros(0, np.float32)

    edit(written, drop)
    with pytest.raises(DataError, match="no trajectory in the file"):
        read_kspace(written)
    named = {
        "Type": "DA-3DPR",
        "Spokes": 60,
        "MaxGradient": 1.5,
        "ReadoutTime": 0.02,
        "NominalVoxelSize": 8.0,
        "SpokeOrder": "golden",
    }
    found = read_kspace(written, {"NonCartesianTrajectory": named})
    np.testing.assert_array_equal(found.trajectory.k_per_mm, SPOKES.k_per_mm)
    with pytest.raises(DataError, match="60 readouts of 48 samples, NonCartesianTrajectory has 50"):
        read_kspace(written, {"NonCartesianTrajectory": {**named, "Spokes": 50}})
    with pytest.raises(DataError, match="by its description"):
        read_kspace(written, {"NonCartesianTrajectory": {**named, "ReadoutTime": 0.01}})


@pytest.mark.parametrize(("unit", "factor"), [("1/m", 1000.0), ("rad/m", 2000.0 * np.pi)])
def test_trajectory_units_are_named_or_refused(written: Path, unit: str, factor: float) -> None:
    def rescale(records: np.ndarray) -> None:
        for row in range(len(records)):
            records["traj"][row] = (SPOKES.k_per_mm[row] * factor).ravel().astype(np.float32)

    edit(written, rescale)
    with pytest.raises(DataError, match=f"state TrajectoryUnits '{unit}'"):
        read_kspace(written)
    assert read_kspace(written, {"TrajectoryUnits": unit}).trajectory.k_per_mm == pytest.approx(
        SPOKES.k_per_mm, abs=1e-7
    )


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_plain_arrays_are_read(tmp_path: Path, kspace: KSpace, suffix: str) -> None:
    path = tmp_path / f"plain{suffix}"
    arrays = {
        "samples": kspace.samples,
        "k_per_mm": SPOKES.k_per_mm,
        "t_ms": SPOKES.t_ms,
        "shape": np.array(kspace.grid.shape),
        "affine": kspace.grid.affine,
    }
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value
    found = read_kspace(path, {"EchoTime": 0.0005})
    np.testing.assert_array_equal(found.samples, kspace.samples)
    np.testing.assert_array_equal(found.trajectory.k_per_mm, SPOKES.k_per_mm)
    assert found.grid.same_as(kspace.grid)
    assert found.te_ms == 0.5


def test_plain_arrays_take_a_described_trajectory(tmp_path: Path, kspace: KSpace) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, samples=kspace.samples[0], shape=[32, 32, 32], voxel_mm=8.0)
    description = {"Type": "3DPR", "ReadoutTime": 0.02, "NominalVoxelSize": 8.0, "SpokeOrder": "golden"}
    found = read_kspace(path, {"NonCartesianTrajectory": description})
    assert found.samples.shape == (1, 60, 48)
    assert found.trajectory.kind == "radial"


def _cut_trajectory(records: np.ndarray) -> None:
    records["traj"][7] = records["traj"][7][:-3]


def _cut_readout(records: np.ndarray) -> None:
    records["head"]["number_of_samples"][7] = 40


def _not_a_number(records: np.ndarray) -> None:
    records["data"][7] = np.full_like(records["data"][7], np.nan)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_cut_trajectory, "readout 7 holds 141 trajectory values where its header says 144"),
        (_cut_readout, "readout 7 has 40 samples, most have 48"),
        (_not_a_number, "96 of 5760 k-space samples are NaN"),
        (lambda records: records[:0], "no readout of image data"),
        (set_head("sample_time_us", 0.0), "DwellTime"),
        (set_head("discard_post", 47), "discarded"),
    ],
)
def test_damaged_readouts_are_refused(written: Path, change, words: str) -> None:
    edit(written, change)
    with pytest.raises(DataError, match=words) as caught:
        read_kspace(written)
    assert caught.value.where == str(written)


def test_a_truncated_file_is_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes()[: written.stat().st_size // 2])
    with pytest.raises(DataError, match="truncated"):
        read_kspace(written)


def test_broken_axes_are_refused(written: Path) -> None:
    edit(written, set_head("phase_dir", [0.0, 0.0, 0.0]))
    with pytest.raises(GeometryError, match="perpendicular"):
        read_kspace(written)


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [
        ({"EchoTime": 0.5}, "echo time is 0.5 ms in the header but 500 ms"),
        ({"RepetitionTime": 5.0}, "repetition time is 120 ms"),
        ({"FlipAngle": "ninety"}, "flip angle is 'ninety'"),
        ({"ImagingFrequency": 127.7, "MagneticFieldStrength": 3.0}, "frequency of 1H, 23Na resonates at 33.79 MHz"),
        ({"TrajectoryUnits": "furlongs"}, "furlongs"),
    ],
)
def test_contradicting_sidecars_are_refused(written: Path, sidecar: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_kspace(written, sidecar)


def test_proton_data_are_refused(written: Path) -> None:
    edit_header(written, "33786000", "127731000")
    with pytest.raises(DataError, match="is the frequency of 1H"):
        read_kspace(written)


def test_repetition_time_in_seconds_is_noticed(written: Path) -> None:
    edit_header(written, "<TR>120.0</TR>", "<TR>0.12</TR>")
    with pytest.raises(DataError, match="shorter than the readout"):
        read_kspace(written)


def test_header_without_a_matrix_is_refused(written: Path) -> None:
    edit_header(written, "<x>32</x>", "<x>0</x>")
    with pytest.raises(DataError, match="encoded matrix"):
        read_kspace(written)


def test_unknown_files_are_refused(tmp_path: Path, kspace: KSpace) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_kspace(tmp_path / "none.h5")
    (tmp_path / "raw.dat").write_bytes(b"0")
    with pytest.raises(DataError, match=r"unknown format '.dat'.*siemens_to_ismrmrd"):
        read_kspace(tmp_path / "raw.dat")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match="raw data"):
        read_kspace(tmp_path / "text.npz")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"] = np.zeros(3)
    with pytest.raises(DataError, match="neither an ISMRMRD dataset"):
        read_kspace(tmp_path / "other.h5")
    np.savez(tmp_path / "real.npz", samples=np.zeros((1, 2, 3)), k_per_mm=np.zeros((2, 3, 3)))
    with pytest.raises(DataError, match="complex"):
        read_kspace(tmp_path / "real.npz")
    late = dataclasses.replace(kspace, trajectory=dataclasses.replace(SPOKES, t_ms=SPOKES.t_ms + 1.0))
    with pytest.raises(DataError, match="evenly spaced"):
        write_ismrmrd(tmp_path / "late.h5", late)
    assert not (tmp_path / "late.h5").exists()
