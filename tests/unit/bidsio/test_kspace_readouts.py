"""What becomes of the readouts of an ISMRMRD file: averages, echoes, noise, Cartesian lines, and those to refuse."""

import dataclasses
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest

from bids_sodium.bidsio import kspace as door
from bids_sodium.bidsio._metadata import nucleus_of
from bids_sodium.bidsio.kspace import read_kspace, write_ismrmrd
from bids_sodium.core.data import Grid, KSpace
from bids_sodium.core.errors import DataError
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.trajectory import delayed, density_adapted_radial

SPOKES = density_adapted_radial(60, 48, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
GRID = Grid.centred((32, 32, 32), 8.0)


def scan(n_coils: int = 2, *, repeats: int = 1, seed: int = 0) -> KSpace:
    """Return noise on spokes, the same trajectory ``repeats`` times."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((n_coils, 60 * repeats, 48, 2), dtype=np.float32).view(np.complex64)[..., 0]
    spokes = dataclasses.replace(SPOKES, k_per_mm=np.tile(SPOKES.k_per_mm, (repeats, 1, 1)), solid_angle_sr=None)
    return KSpace(samples, spokes, GRID, 0.5, 120.0, 90.0, 33.786)


def edit(path: Path, change: Callable[[np.ndarray], Any]) -> Path:
    """Change the readouts of a file; a change may return a new array."""
    with h5py.File(path, "r+") as file:
        records = file["dataset/data"][()]
        result = change(records)
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=records if result is None else result)
    return path


def edit_header(path: Path, old: str, new: str) -> None:
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        assert old in text
        file["dataset/xml"][0] = text.replace(old, new).encode()


def count(name: str, values: np.ndarray) -> Callable[[np.ndarray], None]:
    def change(records: np.ndarray) -> None:
        records["head"]["idx"][name] = values
        records["head"]["idx"]["kspace_encode_step_1"] = np.arange(len(records)) % 60

    return change


# ---- averages, repetitions, echoes ------------------------------------------------------------------------------


@pytest.mark.parametrize("counter", ["average", "repetition"])
@pytest.mark.parametrize("inner", [False, True])
def test_readouts_that_encode_the_same_are_averaged(tmp_path: Path, counter: str, inner: bool) -> None:
    original = scan(repeats=3)
    path = edit(write_ismrmrd(tmp_path / "scan.h5", original), count(counter, np.repeat(np.arange(3), 60)))
    if inner:
        edit(path, lambda records: records.reshape(3, 60).T.ravel())
    found = read_kspace(path)
    mean = original.samples.reshape(2, 3, 60, 48).mean(axis=1)
    np.testing.assert_allclose(found.samples, mean, atol=1e-6)
    assert found.trajectory.k_per_mm == pytest.approx(SPOKES.k_per_mm, abs=1e-7)
    assert found.n_averages == 3
    assert "mean" in " ".join(found.notes)


def test_readouts_without_counters_are_matched_by_their_order(tmp_path: Path) -> None:
    original = scan(repeats=2)

    def change(records: np.ndarray) -> None:
        records["head"]["idx"]["kspace_encode_step_1"] = 0
        records["head"]["idx"]["average"] = np.repeat([0, 1], 60)

    found = read_kspace(edit(write_ismrmrd(tmp_path / "scan.h5", original), change))
    np.testing.assert_allclose(found.samples, original.samples.reshape(2, 2, 60, 48).mean(axis=1), atol=1e-6)


def test_one_repetition_can_be_chosen(tmp_path: Path) -> None:
    original = scan(repeats=3)
    path = edit(write_ismrmrd(tmp_path / "scan.h5", original), count("repetition", np.repeat([4, 5, 9], 60)))
    found = read_kspace(path, repetition=2)
    np.testing.assert_array_equal(found.samples, original.samples[:, 120:])
    assert (found.n_averages, found.notes) == (1, ())
    with pytest.raises(DataError, match=r"repetition 3 of a file with 3.*count from 0"):
        read_kspace(path, repetition=3)


def test_averages_on_other_spokes_are_all_kept(tmp_path: Path) -> None:
    turned = density_adapted_radial(120, 48, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    original = dataclasses.replace(scan(repeats=2), trajectory=turned)
    path = edit(write_ismrmrd(tmp_path / "scan.h5", original), count("average", np.repeat([0, 1], 60)))
    found = read_kspace(path)
    np.testing.assert_array_equal(found.samples, original.samples)
    assert found.trajectory.solid_angle_sr is not None
    assert found.trajectory.solid_angle_sr.sum() == pytest.approx(4.0 * np.pi)
    assert (found.n_averages, found.notes) == (
        1,
        ("averages or repetitions sample different positions and were all kept",),
    )


def test_averages_that_count_their_shots_on_are_all_kept(tmp_path: Path) -> None:
    def change(records: np.ndarray) -> np.ndarray:
        records["head"]["idx"]["average"] = np.repeat([0, 1], 60)
        return records[:-7]

    found = read_kspace(edit(write_ismrmrd(tmp_path / "scan.h5", scan(repeats=2)), change))
    assert found.samples.shape == (2, 113, 48)
    assert found.notes == ("1 repetition(s) of 2 average(s) encode different positions and were all kept",)


def test_an_average_on_one_other_spoke_is_refused(tmp_path: Path) -> None:
    def change(records: np.ndarray) -> None:
        count("average", np.repeat([0, 1], 60))(records)
        records["traj"][70] = -records["traj"][70]

    with pytest.raises(DataError, match=r"readout 70 averages shot 10 but has another trajectory \(try: choose one"):
        read_kspace(edit(write_ismrmrd(tmp_path / "scan.h5", scan(repeats=2)), change))


def test_an_average_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    def change(records: np.ndarray) -> np.ndarray:
        count("average", np.repeat([0, 1], 60))(records)
        return records[:-7]

    with pytest.raises(DataError, match="average 1 of repetition 0 holds 53 readouts, another 60"):
        read_kspace(edit(write_ismrmrd(tmp_path / "scan.h5", scan(repeats=2)), change))


def test_each_echo_is_read_with_its_time(tmp_path: Path) -> None:
    original = scan(repeats=3)
    path = edit(write_ismrmrd(tmp_path / "scan.h5", original), count("contrast", np.tile([0, 1, 2], 60)))
    edit_header(path, "<TE>0.5</TE>", "<TE>0.5</TE><TE>5.5</TE><TE>10.5</TE>")
    for echo, te_ms in enumerate([0.5, 5.5, 10.5]):
        found = read_kspace(path, {"EchoTime": [0.0005, 0.0055, 0.0105]}, echo=echo)
        np.testing.assert_array_equal(found.samples, original.samples[:, echo::3])
        assert (found.te_ms, found.n_echoes) == (te_ms, 3)
    with pytest.raises(DataError, match=r"echo 3 of a file with 3 \(try: choose 0 to 2"):
        read_kspace(path, echo=3)
    with pytest.raises(DataError, match=r"echo time is 5\.5 ms in the header but 4 ms"):
        read_kspace(path, {"EchoTime": [0.0005, 0.004]}, echo=1)


def test_the_time_of_an_echo_that_nothing_states_is_unknown(tmp_path: Path) -> None:
    path = edit(write_ismrmrd(tmp_path / "scan.h5", scan(repeats=2)), count("contrast", np.tile([0, 1], 60)))
    assert read_kspace(path).te_ms == 0.5
    assert np.isnan(read_kspace(path, echo=1).te_ms)


# ---- noise, dead channels ---------------------------------------------------------------------------------------


def test_a_noise_scan_has_the_level_of_the_data(tmp_path: Path) -> None:
    original = scan(repeats=2)
    rng = np.random.default_rng(5)

    def change(records: np.ndarray) -> np.ndarray:
        count("average", np.repeat([0, 1], 60))(records)
        silent = records[:20].copy()
        silent["head"]["flags"] = 1 << 18
        silent["head"]["number_of_samples"] = 256
        # A quarter of the dwell time, four times the bandwidth: twice the noise.
        silent["head"]["sample_time_us"] /= 4.0
        for row in range(20):
            silent["data"][row] = (2.0 * rng.standard_normal(2 * 2 * 256)).astype(np.float32)
        return np.concatenate([silent, records])

    path = edit(write_ismrmrd(tmp_path / "scan.h5", original), change)
    found = read_kspace(path)
    assert found.noise is not None
    assert found.noise.shape == (2, 20 * 256)
    assert found.samples.shape == (2, 60, 48)
    assert found.noise.std() == pytest.approx(found.samples.std(), rel=0.05)
    edit_header(
        path,
        "<receiverChannels>",
        "<relativeReceiverNoiseBandwidth>0.8</relativeReceiverNoiseBandwidth><receiverChannels>",
    )
    wider = read_kspace(path).noise
    assert wider is not None
    assert wider.std() == pytest.approx(found.noise.std() / np.sqrt(0.8), rel=1e-5)


def test_a_dead_channel_is_left_out_and_named(tmp_path: Path) -> None:
    original = scan(4)
    samples = original.samples.copy()
    samples[2] = 0.0
    found = read_kspace(write_ismrmrd(tmp_path / "scan.h5", dataclasses.replace(original, samples=samples)))
    np.testing.assert_array_equal(found.samples, original.samples[[0, 1, 3]])
    assert found.notes == ("channel(s) 2 of 4 hold zeros only and were left out",)


def test_data_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    silent = dataclasses.replace(scan(), samples=np.zeros((2, 60, 48), np.complex64))
    with pytest.raises(DataError, match="every k-space sample is zero"):
        read_kspace(write_ismrmrd(tmp_path / "scan.h5", silent))


# ---- readouts that cannot be used -------------------------------------------------------------------------------


def test_spokes_that_end_in_zeros_are_refused(tmp_path: Path) -> None:
    original = scan()
    samples = original.samples.copy()
    samples[:, [7, 30], 40:] = 0.0
    with pytest.raises(DataError, match="2 of 60 readouts end in zeros: readout 7 holds 40 of 48 samples"):
        read_kspace(write_ismrmrd(tmp_path / "scan.h5", dataclasses.replace(original, samples=samples)))


def test_a_single_spoke_is_refused(tmp_path: Path) -> None:
    path = edit(write_ismrmrd(tmp_path / "scan.h5", scan()), lambda records: records[:1])
    with pytest.raises(DataError, match="a single readout of 48 samples"):
        read_kspace(path)


def test_mixed_dwell_times_are_refused(tmp_path: Path) -> None:
    def change(records: np.ndarray) -> None:
        records["head"]["sample_time_us"][[11, 12]] = 10.0

    with pytest.raises(DataError, match=r"readout 11 has a dwell time of 10 us, most have 416\.667 us \(2 of 60"):
        read_kspace(edit(write_ismrmrd(tmp_path / "scan.h5", scan()), change))


def test_a_matrix_that_disagrees_with_the_trajectory_is_refused(tmp_path: Path) -> None:
    path = write_ismrmrd(tmp_path / "scan.h5", scan())
    named = {
        "Type": "DA-3DPR",
        "MaxGradient": 1.5,
        "ReadoutTime": 0.02,
        "NominalVoxelSize": 8.0,
        "SpokeOrder": "golden",
    }

    def drop(records: np.ndarray) -> None:
        records["head"]["trajectory_dimensions"] = 0
        for row in range(len(records)):
            records["traj"][row] = np.zeros(0, np.float32)

    edit(path, drop)
    read_kspace(path, {"NonCartesianTrajectory": named})
    words = r"reaches 0\.06\d+ cycles/mm, voxels of 8.* mm, but matrix 128 x 128 x 128 .* voxels of 2 x 2 x 2 mm"
    with h5py.File(path, "r+") as file:
        file["dataset/xml"][0] = file["dataset/xml"][0].decode().replace(">32<", ">128<").encode()
    with pytest.raises(DataError, match=words):
        read_kspace(path, {"NonCartesianTrajectory": named})
    with pytest.raises(DataError, match=r"voxels of 0\.408 mm, but matrix 128"):
        read_kspace(path, {"NonCartesianTrajectory": {**named, "NominalVoxelSize": 0.4, "MaxGradient": 10.0}})


def test_a_finer_grid_is_noted(tmp_path: Path) -> None:
    path = write_ismrmrd(tmp_path / "scan.h5", dataclasses.replace(scan(), grid=Grid.centred((64, 64, 64), 4.0)))
    assert "the trajectory reaches 0.49 of the edge" in " ".join(read_kspace(path).notes)


@pytest.mark.parametrize("factor", [1.0 / 8.0, 10.0 / 8.0, 2.0 * np.pi / 8.0 * 10.0])
def test_trajectories_in_other_units_are_refused_with_the_likely_one(tmp_path: Path, factor: float) -> None:
    path = write_ismrmrd(tmp_path / "scan.h5", scan())
    name = {1.0 / 8.0: "1/mm", 10.0 / 8.0: "1/cm"}.get(factor, "rad/cm")

    def rescale(records: np.ndarray) -> None:
        for row in range(len(records)):
            records["traj"][row] = (records["traj"][row] * factor).astype(np.float32)

    edit(path, rescale)
    with pytest.raises(DataError, match=f"try: state TrajectoryUnits '{name}'"):
        read_kspace(path)
    assert read_kspace(path, {"TrajectoryUnits": name}).trajectory.k_per_mm == pytest.approx(SPOKES.k_per_mm, abs=1e-7)


def test_a_stated_unit_is_checked_too(tmp_path: Path) -> None:
    path = write_ismrmrd(tmp_path / "scan.h5", scan())
    with pytest.raises(DataError, match=r"read in 1/m that is .*TrajectoryUnits 'unitless'"):
        read_kspace(path, {"TrajectoryUnits": "1/m"})


def test_positions_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    def change(records: np.ndarray) -> None:
        records["traj"][5] = np.full_like(records["traj"][5], np.nan)

    with pytest.raises(DataError, match="trajectory holds NaN"):
        read_kspace(edit(write_ismrmrd(tmp_path / "scan.h5", scan()), change))


@pytest.mark.parametrize(("frequency", "name"), [(52_500_000, "31P"), (127_700_000, "1H"), (120_200_000, "19F")])
def test_other_nuclei_are_named(tmp_path: Path, frequency: int, name: str) -> None:
    path = write_ismrmrd(tmp_path / "scan.h5", scan())
    edit_header(path, "33786000", str(frequency))
    with pytest.raises(DataError, match=rf"is the frequency of {name}, 23Na resonates at 33\.79 MHz"):
        read_kspace(path)
    found = read_kspace(path, {"ResonantNucleus": name})
    assert found.frequency_mhz == pytest.approx(frequency / 1e6)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("23Na", "23Na"),
        ("Na23", "23Na"),
        ("na-23", "23Na"),
        ('"1H"', "1H"),
        ("Na", "23Na"),
        (["31P"], "31P"),
        ("x1", "1X"),
    ],
)
def test_nuclei_are_written_in_many_ways(written: object, name: str) -> None:
    assert nucleus_of(written) == name


def test_each_axis_may_lag(tmp_path: Path) -> None:
    path = write_ismrmrd(tmp_path / "scan.h5", scan())
    late = read_kspace(path, delay_ms=[0.1, 0.0, -0.05])
    expected = delayed(read_kspace(path).trajectory, [0.1, 0.0, -0.05])
    np.testing.assert_array_equal(late.trajectory.k_per_mm, expected.k_per_mm)
    assert np.abs(late.trajectory.k_per_mm - SPOKES.k_per_mm).max(axis=(0, 1))[1] < 1e-7


# ---- Cartesian lines --------------------------------------------------------------------------------------------

XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<acquisitionSystemInformation><systemVendor>{vendor}</systemVendor></acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>33786000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>32</x><y>12</y><z>6</z></matrixSize>
<fieldOfView_mm><x>256</x><y>96</y><z>48</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>16</x><y>12</y><z>6</z></matrixSize>
<fieldOfView_mm><x>128</x><y>96</y><z>48</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>11</maximum><center>6</center>
</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding>
<sequenceParameters><TR>100</TR><TE>4</TE></sequenceParameters></ismrmrdHeader>"""
OBJECT = np.zeros((16, 12, 6), np.complex64)
OBJECT[3:9, 2:7, 1:4] = 1.0
OBJECT[10, 8, 4] = 2.0j


def lattice() -> np.ndarray:
    """Return k-space (x, y, z) of the object with an x axis that is oversampled twice."""
    wide = np.zeros((32, 12, 6), complex)
    wide[8:24] = OBJECT
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(wide))).astype(np.complex64)


def write_lines(path: Path, *, first: int = 0, backwards: bool = False, vendor: str = "lab") -> Path:
    space = lattice()
    with ismrmrd.Dataset(str(path), "dataset", mode="w") as dataset:
        dataset.write_xml_header(XML.format(vendor=vendor).encode())
        for z in range(6):
            for y in range(12):
                line = space[first:, y, z]
                readout = ismrmrd.Acquisition.from_array((line[::-1] if backwards else line)[None])
                readout.center_sample = len(line) - 1 - (16 - first) if backwards else 16 - first
                readout.idx.kspace_encode_step_1, readout.idx.kspace_encode_step_2 = y, z
                readout.sample_time_us = 50.0
                readout.read_dir[0] = readout.phase_dir[1] = readout.slice_dir[2] = 1.0
                if backwards:
                    readout.setFlag(ismrmrd.ACQ_IS_REVERSE)
                dataset.append_acquisition(readout)
    return path


@pytest.mark.parametrize("backwards", [False, True])
def test_a_cartesian_object_is_recovered_without_oversampling(tmp_path: Path, backwards: bool) -> None:
    found = read_kspace(write_lines(tmp_path / "lines.h5", backwards=backwards))
    assert found.grid.shape == (16, 12, 6)
    assert found.grid.voxel_mm == pytest.approx((8.0, 8.0, 8.0))
    assert found.samples.shape == (1, 72, 16)
    image = Nufft(found.trajectory, found.grid).gridded(found.samples[0]) / OBJECT.size
    np.testing.assert_allclose(image, OBJECT, atol=2e-4)
    step = 2 * 0.05
    assert found.trajectory.t_ms == pytest.approx((np.arange(16) - (7 if backwards else 8)) * step)
    assert found.trajectory.kind == "cartesian"
    assert found.te_ms == 4.0


def test_an_asymmetric_echo_keeps_what_was_measured(tmp_path: Path) -> None:
    found = read_kspace(write_lines(tmp_path / "lines.h5", first=10))
    whole = read_kspace(write_lines(tmp_path / "whole.h5"))
    assert found.samples.shape == (1, 72, 11)
    assert found.trajectory.k_per_mm == pytest.approx(whole.trajectory.k_per_mm[:, 5:], abs=1e-7)
    # The lines' missing part rings at their beginning alone.
    scale = np.abs(whole.samples).max()
    assert np.abs(found.samples - whole.samples[..., 5:])[..., 3:].max() < 0.03 * scale


def test_axes_run_against_the_directions_on_siemens_scanners(tmp_path: Path) -> None:
    plain = read_kspace(write_lines(tmp_path / "a.h5")).grid.affine
    siemens = read_kspace(write_lines(tmp_path / "b.h5", vendor="SIEMENS")).grid.affine
    np.testing.assert_allclose(siemens[:3, :3], -plain[:3, :3])


def test_lines_beyond_the_matrix_are_refused(tmp_path: Path) -> None:
    path = edit(write_lines(tmp_path / "lines.h5"), count("kspace_encode_step_1", np.zeros(72)))
    with pytest.raises(DataError, match=r"phase encoding steps from -6 to 53 in a matrix of 12 .*NonCartesianTraj"):
        read_kspace(path)


def test_slices_are_refused(tmp_path: Path) -> None:
    path = edit(write_lines(tmp_path / "lines.h5"), count("slice", np.repeat(np.arange(6), 12)))
    with pytest.raises(DataError, match="6 slices of a 2-D acquisition"):
        read_kspace(path)


# ---- size, speed and files in motion ----------------------------------------------------------------------------


def test_reading_takes_little_more_memory_than_the_result(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    spokes = density_adapted_radial(1500, 256, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    samples = rng.standard_normal((8, 1500, 256, 2), dtype=np.float32).view(np.complex64)[..., 0]
    path = write_ismrmrd(tmp_path / "scan.h5", KSpace(samples, spokes, GRID, 0.5, 120.0, 90.0, 33.786))
    read_kspace(path)
    tracemalloc.start()
    found = read_kspace(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * (found.samples.nbytes + found.trajectory.k_per_mm.nbytes)


def test_a_file_larger_than_memory_is_refused_by_its_heads(tmp_path: Path) -> None:
    def claim(records: np.ndarray) -> np.ndarray:
        records = np.repeat(records[:1], 1250)
        records["head"]["number_of_samples"] = 65535
        records["head"]["active_channels"] = 32
        return records

    path = edit(write_ismrmrd(tmp_path / "scan.h5", scan()), claim)
    with pytest.raises(DataError, match=r"samples need about 61\.\d GiB of memory, 4\.0 GiB are available .*try: run"):
        read_kspace(path, memory_gb=4.0)
    assert read_kspace(write_ismrmrd(tmp_path / "small.h5", scan()), memory_gb=4.0).n_coils == 2


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_ismrmrd(tmp_path / "scan.h5", scan())
    original = door.from_ismrmrd

    def slow(*words: Any, **named: Any) -> KSpace:
        found = original(*words, **named)
        with path.open("ab") as file:
            file.write(b"more")
        return found

    size = path.stat().st_size
    monkeypatch.setattr(door, "from_ismrmrd", slow)
    with pytest.raises(DataError, match=rf"is still being written: {size} bytes when reading began, {size + 4} when"):
        read_kspace(path)


def test_a_file_that_another_program_holds_open_is_refused(tmp_path: Path) -> None:
    path = write_ismrmrd(tmp_path / "scan.h5", scan())
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(DataError, match="is still being written: another program holds it open"):
            read_kspace(path)
        writer.communicate("")
    assert read_kspace(path).n_coils == 2


def test_heads_are_the_same_from_chunks_and_from_the_library(tmp_path: Path) -> None:
    plain = write_ismrmrd(tmp_path / "plain.h5", scan())
    packed = tmp_path / "packed.h5"
    with h5py.File(plain, "r") as source, h5py.File(packed, "w") as target:
        target["dataset/xml"] = source["dataset/xml"][()]
        target["dataset"].create_dataset("data", data=source["dataset/data"][()], chunks=(7,), compression="gzip")
    one, other = read_kspace(plain), read_kspace(packed)
    np.testing.assert_array_equal(one.samples, other.samples)
    np.testing.assert_array_equal(one.trajectory.k_per_mm, other.trajectory.k_per_mm)
