"""Siemens raw data: files written here with the structures of twixtools, and what is read from them."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import twixtools
from scipy.spatial.transform import Rotation
from twixtools.mdb import Mdb_local
from twixtools.mdh_def import VB17_header

from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.errors import DataError
from bids_sodium.recon.trajectory import density_adapted_radial

SPOKES = density_adapted_radial(60, 48, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
NAMED = {"Type": "DA-3DPR", "MaxGradient": 1.5, "ReadoutTime": 0.02, "NominalVoxelSize": 8.0, "SpokeOrder": "golden"}
RADIAL = {"NonCartesianTrajectory": NAMED}
TURN = Rotation.from_euler("xyz", [10, -25, 40], degrees=True)
RNG = np.random.default_rng(0)
DATA = (RNG.standard_normal((2, 60, 48)) + 1j * RNG.standard_normal((2, 60, 48))).astype(np.complex64)
PROTOCOL = {
    "sTXSPEC.asNucleusInfo[0].tNucleus": '"23Na"',
    "sTXSPEC.asNucleusInfo[0].lFrequency": 32588000,
    "sRXSPEC.alDwellTime[0]": round(20e6 / 48),
    "alTE[0]": 500,
    "alTR[0]": 120000,
    "adFlipAngleDegree[0]": 90.0,
    "lContrasts": 1,
    "sSliceArray.asSlice[0].dReadoutFOV": 256.0,
    "sSliceArray.asSlice[0].dPhaseFOV": 256.0,
    "sSliceArray.asSlice[0].dThickness": 256.0,
    "sKSpace.lBaseResolution": 32,
    "sKSpace.lPhaseEncodingLines": 32,
    "sKSpace.lPartitions": 32,
    "sKSpace.ucDimension": 4,
    "sKSpace.ucTrajectory": 1,
}


def header(protocol: dict[str, Any]) -> bytes:
    lines = "".join(f"{key}\t = \t{value}\n" for key, value in protocol.items())
    buffers = {
        "MeasYaps": f"### ASCCONV BEGIN ###\n{lines}\n### ASCCONV END ###",
        "Dicom": '<ParamDouble."flMagneticFieldStrength">  { <Precision> 6  2.89362  }',
    }
    body = b"".join(
        name.encode() + b"\0" + struct.pack("<I", len(text)) + text.encode() for name, text in buffers.items()
    )
    length = 8 + len(body)
    return struct.pack("<II", length + -length % 32, len(buffers)) + body + b"\0" * (-length % 32)


def readout(data: np.ndarray, flag: str | None = None, **counters: int) -> Mdb_local:
    block = Mdb_local(data)
    block.mdh.CenterCol = counters.pop("centre", 0)
    for name, value in counters.items():
        setattr(block.mdh.Counter, name, value)
    x, y, z, w = TURN.as_quat()
    block.mdh.SliceData.Quaternion[:] = [w, x, y, z]
    for name, value in zip(("Sag", "Cor", "Tra"), (5.0, -7.0, 11.0), strict=True):
        setattr(block.mdh.SliceData.SlicePos, name, value)
    if flag:
        block.add_flag(flag)
    return block


def spokes(data: np.ndarray = DATA, **counters: int) -> list[Mdb_local]:
    return [readout(data[:, shot], Lin=shot, **counters) for shot in range(data.shape[1])]


def write(path: Path, *scans: tuple[dict[str, Any], Sequence[Mdb_local]]) -> Path:
    twixtools.write_twix(
        [{"hdr_str": np.frombuffer(header(p), dtype="S1"), "mdb": list(blocks)} for p, blocks in scans], str(path)
    )
    return path


def test_a_radial_scan_is_read_with_its_protocol(tmp_path: Path) -> None:
    found = read_kspace(write(tmp_path / "scan.dat", (PROTOCOL, spokes())), RADIAL)
    np.testing.assert_array_equal(found.samples, DATA)
    np.testing.assert_array_equal(found.trajectory.k_per_mm, SPOKES.k_per_mm)
    assert (found.te_ms, found.tr_ms, found.flip_deg) == (0.5, 120.0, 90.0)
    assert found.frequency_mhz == pytest.approx(32.588)
    assert found.grid.shape == (32, 32, 32)
    # Columns of the rotation are phase, read and slice in LPS; the grid's axes run against them.
    phase, read, normal = TURN.as_matrix().T
    expected = np.diag([-1, -1, 1]) @ -np.stack([read, phase, normal], axis=1) * 8.0
    np.testing.assert_allclose(found.grid.affine[:3, :3], expected, atol=1e-5)
    assert found.grid.origin_mm == pytest.approx([-5.0, 7.0, 11.0])


def test_protons_are_refused_unless_asked_for(tmp_path: Path) -> None:
    protocol = {
        **PROTOCOL,
        "sTXSPEC.asNucleusInfo[0].tNucleus": '"1H"',
        "sTXSPEC.asNucleusInfo[0].lFrequency": 123263034,
    }
    path = write(tmp_path / "scan.dat", (protocol, spokes()))
    words = r"nucleus is 1H, 23Na is expected \(try: choose the 23Na raw data, or state ResonantNucleus '1H'"
    with pytest.raises(DataError, match=words):
        read_kspace(path, RADIAL)
    assert read_kspace(path, {**RADIAL, "ResonantNucleus": "1H"}).frequency_mhz == pytest.approx(123.263, rel=1e-5)


def test_the_last_measurement_is_the_scan_and_an_earlier_one_its_noise(tmp_path: Path) -> None:
    silent = (RNG.standard_normal((4, 2, 128)) + 0j).astype(np.complex64)
    adjustment = [readout(data, "NOISEADJSCAN") for data in silent]
    found = read_kspace(write(tmp_path / "scan.dat", (PROTOCOL, adjustment), (PROTOCOL, spokes())), RADIAL)
    np.testing.assert_array_equal(found.samples, DATA)
    assert found.noise is not None
    np.testing.assert_array_equal(found.noise, np.concatenate(silent, axis=1))
    narrow = [readout(data[:1], "NOISEADJSCAN") for data in silent]
    found = read_kspace(write(tmp_path / "narrow.dat", (PROTOCOL, narrow), (PROTOCOL, spokes())), RADIAL)
    assert found.noise is None
    assert found.notes == ("a noise scan of 1 channels for 2 was left out",)


def test_averages_repetitions_and_echoes_follow_the_counters(tmp_path: Path) -> None:
    blocks = [
        block
        for echo in range(2)
        for repetition in range(2)
        for average in range(2)
        for block in spokes(DATA * (1 + 100 * echo + 10 * repetition + average), Eco=echo, Rep=repetition, Ave=average)
    ]
    protocol = {**PROTOCOL, "lContrasts": 2, "alTE[1]": 5500, "lAverages": 2, "lRepetitions": 1}
    path = write(tmp_path / "scan.dat", (protocol, blocks))
    found = read_kspace(path, RADIAL, echo=1)
    np.testing.assert_allclose(found.samples, DATA * 106.5, rtol=1e-5)
    assert (found.te_ms, found.n_echoes, found.n_averages) == (5.5, 2, 4)
    one = read_kspace(path, RADIAL, repetition=1)
    np.testing.assert_allclose(one.samples, DATA * 11.5, rtol=1e-5)
    assert (one.te_ms, one.n_averages) == (0.5, 2)


def test_navigators_and_cut_off_samples_are_left_out(tmp_path: Path) -> None:
    blocks = [readout(DATA[:, 0], "RTFEEDBACK"), *spokes(), readout(DATA[:, 0], "PHASCOR")]
    for block in blocks:
        block.mdh.CutOff.Pre, block.mdh.CutOff.Post = 2, 1
    found = read_kspace(write(tmp_path / "scan.dat", (PROTOCOL, blocks)), RADIAL)
    np.testing.assert_array_equal(found.samples, DATA[..., 2:-1])
    assert found.trajectory.t_ms == pytest.approx(SPOKES.t_ms[2:-1])


def test_spokes_without_a_trajectory_are_not_taken_for_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.dat", (PROTOCOL, spokes()))
    with pytest.raises(DataError, match=r"lines to 59 .* in a matrix of 32 x 32 x 32: not Cartesian.*TrajectoryFile"):
        read_kspace(path)


def test_a_trajectory_file_may_stand_beside(tmp_path: Path) -> None:
    np.savez(tmp_path / "k.npz", k_per_mm=SPOKES.k_per_mm)
    path = write(tmp_path / "scan.dat", (PROTOCOL, spokes()))
    found = read_kspace(path, {"TrajectoryFile": "k.npz"})
    np.testing.assert_array_equal(found.trajectory.k_per_mm, SPOKES.k_per_mm)
    assert found.trajectory.t_ms == pytest.approx(SPOKES.t_ms, rel=1e-4)


def test_a_cartesian_volume_with_two_polarities_is_recovered(tmp_path: Path) -> None:
    thing = np.zeros((8, 6, 4), complex)
    thing[2:5, 1:4, 1:3], thing[5, 4, 3] = 1.0, 0.5j
    wide = np.zeros((16, 6, 4), complex)
    wide[4:12] = thing
    space = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(wide))).astype(np.complex64)
    protocol = {
        **PROTOCOL,
        "lContrasts": 2,
        "alTE[1]": 1500,
        "sRXSPEC.alDwellTime[0]": 10000,
        "sKSpace.lBaseResolution": 8,
        "sKSpace.lPhaseEncodingLines": 6,
        "sKSpace.lPartitions": 4,
    }
    blocks = []
    for y in range(6):
        for z in range(4):
            blocks.append(readout(space[None, :, y, z], Lin=y, Par=z, centre=8))
            blocks.append(readout(space[None, ::-1, y, z], "REFLECT", Lin=y, Par=z, Eco=1, centre=7))
    for block in blocks:
        block.mdh.CenterLin, block.mdh.CenterPar = 3, 2
    path = write(tmp_path / "lines.dat", (protocol, blocks))
    for echo in range(2):
        found = read_kspace(path, echo=echo)
        assert found.grid.shape == (8, 6, 4)
        assert found.grid.fov_mm == pytest.approx((256.0, 256.0, 256.0))
        k = np.rint(found.trajectory.k_per_mm * 256.0).astype(int) + np.array([4, 3, 2])
        full = np.zeros((8, 6, 4), complex)
        full[k[..., 0], k[..., 1], k[..., 2]] = found.samples[0]
        image = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(full)))
        np.testing.assert_allclose(image, thing, atol=1e-4)


# ---- damage -----------------------------------------------------------------------------------------------------


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-6000])


def no_end(path: Path) -> None:
    text = bytearray(path.read_bytes())
    # The mark of the end is a flag of the last readout, whose head follows the data.
    at = text.rfind(struct.pack("<Q", 1), 0, len(text))
    text[at : at + 8] = struct.pack("<Q", 1 << 5)
    path.write_bytes(bytes(text))


@pytest.mark.parametrize(("damage", "words"), [(shorten, "it is truncated"), (no_end, "the measurement has no end")])
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    path = write(tmp_path / "scan.dat", (PROTOCOL, spokes()))
    damage(path)
    with pytest.raises(DataError, match=words) as caught:
        read_kspace(path, RADIAL)
    assert caught.value.where == str(path)


def test_other_files_of_that_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.dat").write_bytes(np.random.default_rng(0).bytes(50_000))
    with pytest.raises(DataError, match="twix"):
        read_kspace(tmp_path / "noise.dat")


def test_a_scan_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.dat", (PROTOCOL, spokes()))
    with path.open("r+b") as file:
        file.truncate(20 * 2**30)
        file.seek(8 + 16)
        file.write(struct.pack("<Q", 20 * 2**30 - 10240))
    with pytest.raises(DataError, match=r"need about 60\.0 GiB of memory, 4\.0 GiB are available"):
        read_kspace(path, RADIAL, memory_gb=4.0)


def test_a_scan_of_an_older_scanner_is_read(tmp_path: Path) -> None:
    text = header(PROTOCOL)
    text = struct.pack("<I", 10240) + text[4:] + b"\0" * (10240 - len(text))
    x, y, z, w = TURN.as_quat()
    for shot in range(61):
        for coil in range(2):
            head = VB17_header()
            head.SamplesInScan, head.UsedChannels = 48, 2
            head.Counter.Lin, head.ChannelId = shot, coil
            head.SliceData.Quaternion[:] = [w, x, y, z]
            if shot == 60:
                head.EvalInfoMask, head.FlagsAndDMALength = 1, 512
                text += bytes(head) + b"\0" * 384
                break
            text += bytes(head) + DATA[coil, shot].tobytes()
    path = tmp_path / "old.dat"
    path.write_bytes(text)
    found = read_kspace(path, RADIAL)
    np.testing.assert_array_equal(found.samples, DATA)
    assert found.te_ms == 0.5
