"""Trajectories that the sidecar names: files of positions, angles, k against time, gradients, and their filter."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from bids_sodium.bidsio._trajectory_files import arranged, stated_trajectory
from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import DataError
from bids_sodium.recon.trajectory import cones_3d, delayed, density_adapted_radial, directions

NAMED = {"Type": "DA-3DPR", "MaxGradient": 1.5, "ReadoutTime": 0.02, "NominalVoxelSize": 8.0, "SpokeOrder": "spiral"}
SPOKES = density_adapted_radial(60, 48, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0, scheme="spiral")
AXES = directions(60, "spiral")
POLAR = np.rad2deg(np.arccos(AXES[:, 2]))
AZIMUTH = np.rad2deg(np.arctan2(AXES[:, 1], AXES[:, 0]))
FINE = density_adapted_radial(2, 4000, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
LAW = np.linalg.norm(FINE.k_per_mm[0].astype(float), axis=-1)
EDGE = SPOKES.k_max_per_mm
GRID = Grid.centred((32, 32, 32), 8.0)


def read(
    folder: Path, sidecar: dict[str, Any], *, grid: Grid = GRID, t_ms: np.ndarray | None = SPOKES.t_ms
) -> Trajectory:
    return stated_trajectory(sidecar, folder, grid, n_shots=60, n_samples=48, t_ms=t_ms)


def table(path: Path, **columns: np.ndarray) -> str:
    rows = np.stack(list(columns.values()), axis=-1)
    lines = ["\t".join(columns), *("\t".join(f"{value:.9g}" for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path.name


def gradients(raster_ms: float = 0.01) -> np.ndarray:
    """Return the gradient of a spoke, in mT/m, at the centres of a raster."""
    edges = np.arange(0, 2001) * raster_ms
    k = np.interp(edges, np.concatenate([[0.0], FINE.t_ms]), np.concatenate([[0.0], LAW]))
    return np.diff(k) / (GAMMA_BAR_MHZ_T / 1000.0 * raster_ms)


# ---- positions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "mat", "h5"])
def test_positions_are_read(tmp_path: Path, kind: str) -> None:
    arrays = {"k": SPOKES.k_per_mm * 1000.0, "t_ms": SPOKES.t_ms + 0.1, "units": "1/m"}
    path = tmp_path / f"k.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "mat":
        savemat(path, arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value
    found = read(tmp_path, {"TrajectoryFile": path.name})
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm, atol=1e-8)
    assert found.t_ms == pytest.approx(SPOKES.t_ms + 0.1)


def test_positions_in_another_unit_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "k.npz", k_per_mm=SPOKES.k_per_mm * 1000.0)
    with pytest.raises(DataError, match=r"k.npz: the trajectory reaches 6\d.* 'k_per_mm' is in 1/mm.*'1/m'"):
        read(tmp_path, {"TrajectoryFile": "k.npz"})


def test_positions_that_fit_two_ways_are_refused() -> None:
    with pytest.raises(DataError, match=r"a trajectory of shape \(3, 3, 4\)"):
        arranged(np.zeros((3, 3, 4)), 3, 4)


# ---- directions and speed ---------------------------------------------------------------------------------------


def test_angles_with_a_named_speed(tmp_path: Path) -> None:
    name = table(tmp_path / "angles.tsv", polar_deg=POLAR, azimuth_deg=AZIMUTH)
    found = read(tmp_path, {"TrajectoryFile": name, "NonCartesianTrajectory": {**NAMED, "SpokeOrder": "golden"}})
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm, atol=1e-6 * EDGE)
    assert found.kind == "radial"


def test_directions_with_k_against_time(tmp_path: Path) -> None:
    files = [
        table(tmp_path / "spokes.tsv", **dict(zip("xyz", AXES.T, strict=True))),
        table(tmp_path / "law.tsv", t_ms=FINE.t_ms, k_per_mm=LAW),
    ]
    found = read(tmp_path, {"TrajectoryFile": files})
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm, atol=2e-4 * EDGE)


@pytest.mark.parametrize("names", [("kx_per_mm", "ky_per_mm", "kz_per_mm"), ("x", "y", "z")])
def test_each_axis_may_have_its_own_speed(tmp_path: Path, names: tuple[str, str, str]) -> None:
    """A spoke's part along an axis has come as far as a spoke along that axis."""
    lags = [0.0, 0.02, -0.01]
    nodes = np.arange(0.0, 20.5, 0.01)
    law = [np.interp(nodes - lag, np.concatenate([[0.0], FINE.t_ms]), np.concatenate([[0.0], LAW])) for lag in lags]
    files = [
        table(tmp_path / "angles.tsv", polar_deg=POLAR, azimuth_deg=AZIMUTH),
        table(tmp_path / "law.tsv", t_ms=nodes, **dict(zip(names, law, strict=True))),
    ]
    found = read(tmp_path, {"TrajectoryFile": files})
    np.testing.assert_allclose(found.k_per_mm, delayed(SPOKES, lags).k_per_mm, atol=0.01 * EDGE)
    assert np.abs(found.k_per_mm - SPOKES.k_per_mm).max() > 0.001 * EDGE


def test_the_order_of_spokes_may_be_named(tmp_path: Path) -> None:
    name = table(tmp_path / "law.tsv", t_ms=FINE.t_ms, k_per_mm=LAW)
    found = read(tmp_path, {"TrajectoryFile": name, "NonCartesianTrajectory": {"SpokeOrder": "spiral"}})
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm, atol=2e-4 * EDGE)


# ---- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [0.0, 0.5])
def test_gradients_of_a_spoke_are_turned(tmp_path: Path, point: float) -> None:
    g = gradients()
    if point == 0.0:
        g = np.interp(np.arange(2000), np.arange(2000) + 0.5, g)
    files = [
        table(tmp_path / "angles.tsv", polar_deg=POLAR, azimuth_deg=AZIMUTH),
        table(tmp_path / "gradient.tsv", t_ms=(np.arange(2000) + point) * 0.01, g_mt_m=g),
    ]
    found = read(tmp_path, {"TrajectoryFile": files})
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm, atol=2e-3 * EDGE)


def test_gradients_of_every_shot(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", gradient_mt_m=AXES[:, None] * gradients()[None, :, None], raster_ms=0.01)
    found = read(tmp_path, {"TrajectoryFile": "g.npz"})
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm, atol=2e-4 * EDGE)
    np.savez(tmp_path / "few.npz", gradient_mt_m=np.zeros((7, 2000, 3)), raster_ms=0.01)
    with pytest.raises(DataError, match="7 gradient waveforms for 60 shots"):
        read(tmp_path, {"TrajectoryFile": "few.npz"})


def test_a_table_of_several_waveforms_has_a_shot_column(tmp_path: Path) -> None:
    g = np.repeat(gradients()[None, ::10], 60, axis=0).reshape(-1, 1) * np.repeat(AXES, 200, axis=0)
    name = table(
        tmp_path / "g.tsv",
        shot=np.repeat(np.arange(60), 200),
        t_ms=np.tile((np.arange(200) + 0.5) * 0.1, 60),
        gx_mt_m=g[:, 0],
        gy_mt_m=g[:, 1],
        gz_mt_m=g[:, 2],
    )
    found = read(tmp_path, {"TrajectoryFile": name})
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm, atol=0.03 * EDGE)


# ---- the filter -------------------------------------------------------------------------------------------------


def lag(folder: Path, *lags_ms: float) -> str:
    """Write the response of axes that lag."""
    f = np.linspace(0.0, 50.0, 2001)
    h = np.exp(-2j * np.pi * f[:, None] * np.array(lags_ms))
    np.savez(folder / "girf.npz", frequency_khz=f, response=h)
    return "girf.npz"


@pytest.mark.parametrize("source", ["description", "angles", "gradients"])
def test_a_response_that_lags_is_a_delay(tmp_path: Path, source: str) -> None:
    sidecar: dict[str, Any] = {"GradientImpulseResponse": lag(tmp_path, 0.02, 0.05, 0.0)}
    if source == "description":
        sidecar["NonCartesianTrajectory"] = NAMED
    elif source == "angles":
        sidecar["NonCartesianTrajectory"] = NAMED
        sidecar["TrajectoryFile"] = table(tmp_path / "angles.tsv", polar_deg=POLAR, azimuth_deg=AZIMUTH)
    else:
        np.savez(tmp_path / "g.npz", gradient_mt_m=AXES[:, None] * gradients()[None, :, None], raster_ms=0.01)
        sidecar["TrajectoryFile"] = "g.npz"
    expected = density_adapted_radial(
        60, 48, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0, scheme="spiral", delay_ms=[0.02, 0.05, 0.0]
    )
    found = read(tmp_path, sidecar)
    np.testing.assert_allclose(found.k_per_mm, expected.k_per_mm, atol=1e-3 * EDGE)
    assert np.abs(found.k_per_mm - SPOKES.k_per_mm).max() > 3e-3 * EDGE


def test_the_response_acts_along_the_axes_of_the_world(tmp_path: Path) -> None:
    """A response of one axis of the scanner, for a grid that is turned by a quarter round the third axis."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix() * 8.0
    sidecar = {"GradientImpulseResponse": lag(tmp_path, 0.05, 0.0, 0.0), "NonCartesianTrajectory": NAMED}
    found = read(tmp_path, sidecar, grid=Grid((32, 32, 32), turn)).k_per_mm
    plain = read(tmp_path, {"NonCartesianTrajectory": NAMED}).k_per_mm
    moved = np.abs(found - plain).max(axis=(0, 1)) / EDGE
    assert moved[1] > 3e-3
    assert moved[[0, 2]].max() < 1e-4


def test_cones_are_filtered_too(tmp_path: Path) -> None:
    named = {"Type": "Cones", "FieldOfView": 100.0, "ReadoutTime": 0.01, "NominalVoxelSize": 8.0, "Samples": 256}
    cones = cones_3d(fov_mm=100.0, voxel_mm=8.0, readout_ms=10.0, n_samples=256)
    sidecar = {"GradientImpulseResponse": lag(tmp_path, 0.0, 0.0, 0.0), "NonCartesianTrajectory": named}
    found = stated_trajectory(sidecar, tmp_path, GRID, n_shots=cones.n_shots, n_samples=256, t_ms=None)
    np.testing.assert_allclose(found.k_per_mm, cones.k_per_mm, atol=1e-3 * cones.k_max_per_mm)
    np.testing.assert_array_equal(found.solid_angle_sr, cones.solid_angle_sr)


def test_a_response_may_be_a_table_of_one_column(tmp_path: Path) -> None:
    f = np.linspace(0.0, 50.0, 51)
    name = table(tmp_path / "girf.tsv", frequency_khz=f, real=np.full(51, 0.5), imag=np.zeros(51))
    found = read(tmp_path, {"GradientImpulseResponse": name, "NonCartesianTrajectory": NAMED})
    np.testing.assert_allclose(found.k_per_mm, SPOKES.k_per_mm / 2.0, atol=1e-3 * EDGE)


def test_a_file_without_a_response_is_refused(tmp_path: Path) -> None:
    name = table(tmp_path / "girf.tsv", frequency_khz=np.arange(5.0), gain=np.ones(5))
    with pytest.raises(DataError, match=r"girf\.tsv: no gradient impulse response, only frequency_khz, gain"):
        read(tmp_path, {"GradientImpulseResponse": name, "NonCartesianTrajectory": NAMED})


def test_positions_cannot_be_filtered(tmp_path: Path) -> None:
    np.savez(tmp_path / "k.npz", k_per_mm=SPOKES.k_per_mm)
    with pytest.raises(DataError, match="GradientImpulseResponse with positions of k"):
        read(tmp_path, {"TrajectoryFile": "k.npz", "GradientImpulseResponse": lag(tmp_path, 0.0, 0.0, 0.0)})


# ---- what is refused --------------------------------------------------------------------------------------------


def test_unfitting_tables_are_refused(tmp_path: Path) -> None:
    angles = table(tmp_path / "angles.tsv", polar_deg=POLAR, azimuth_deg=AZIMUTH)
    few = table(tmp_path / "few.tsv", polar_deg=POLAR[:5], azimuth_deg=AZIMUTH[:5])
    short = table(tmp_path / "short.tsv", t_ms=FINE.t_ms[:2000], k_per_mm=LAW[:2000])
    whole = table(tmp_path / "law.tsv", t_ms=FINE.t_ms, k_per_mm=LAW)
    late = table(tmp_path / "late.tsv", t_ms=5.0 + np.arange(2000) * 0.01, g_mt_m=gradients())
    rough = table(tmp_path / "rough.tsv", t_ms=np.sqrt(np.arange(2000)), g_mt_m=gradients())
    odd = table(tmp_path / "odd.tsv", a=POLAR)
    (tmp_path / "words.tsv").write_text("polar_deg\tazimuth_deg\nten\t3\n")
    (tmp_path / "k.csv").write_text("1,2")
    np.savez(tmp_path / "raster.npz", gradient_mt_m=np.zeros((1, 2000, 3)))
    for files, words in [
        ("gone.npz", "gone.npz: no such file .*relative to the raw data"),
        ("k.csv", "unknown kind '.csv'"),
        ("words.tsv", "words.tsv: not every cell is a number, see polar_deg"),
        (odd, "neither positions, directions, gradients nor k against time, only a"),
        ([angles, angles], "'polar_deg' is in two files"),
        (angles, "directions|NonCartesianTrajectory"),
        ([few, whole], "5 directions for 60 readouts"),
        ([angles, short], r"k against time ends at 9\.99\d* ms, the last sample is at 19\.79 ms"),
        (whole, r"no directions of the spokes \(try: add their angles"),
        ([angles, late], "first gradient value is at 5 ms"),
        ([angles, rough], "not evenly spaced"),
        ([angles, "raster.npz"], "no raster time of the gradients"),
    ]:
        with pytest.raises(DataError, match=words):
            read(tmp_path, {"TrajectoryFile": files})
    with pytest.raises(DataError, match="time between samples is not stated"):
        read(tmp_path, {"TrajectoryFile": [angles, whole]}, t_ms=None)
    named = {"Type": "Cones", "FieldOfView": 100.0, "ReadoutTime": 0.02, "NominalVoxelSize": 8.0}
    with pytest.raises(DataError, match="directions of spokes of 48 samples with a trajectory of type 'Cones'"):
        read(tmp_path, {"TrajectoryFile": angles, "NonCartesianTrajectory": named})


def test_the_dwell_convention_of_the_sidecar_holds_for_named_trajectories(tmp_path: Path) -> None:
    start = read(tmp_path, {"NonCartesianTrajectory": NAMED, "DwellConvention": "start"}, t_ms=None)
    assert start.t_ms[0] == 0.0
    assert start.k_per_mm[:, 0].max() == 0.0
