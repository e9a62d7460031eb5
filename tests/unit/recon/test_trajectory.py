import dataclasses

import numpy as np
import pytest

from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Trajectory
from bids_sodium.core.errors import DataError
from bids_sodium.recon.trajectory import (
    cartesian,
    cones_3d,
    delayed,
    density_adapted_radial,
    directions,
    from_description,
    plain_radial,
    twisted_projections,
)

STROKE = {"gradient_mt_m": 4.6, "readout_ms": 20.0, "voxel_mm": 4.0}


def gradient_mt_m(trajectory: Trajectory) -> np.ndarray:
    """Mean gradient amplitude between samples."""
    step = np.linalg.norm(np.diff(trajectory.k_per_mm.astype(float), axis=1), axis=-1)
    return step / np.diff(trajectory.t_ms) / (GAMMA_BAR_MHZ_T / 1000.0)


def radii(trajectory: Trajectory) -> np.ndarray:
    return np.linalg.norm(trajectory.k_per_mm.astype(float), axis=-1)


@pytest.mark.parametrize(("ramp_ms", "t0_ms"), [(0.0, 0.488), (0.05, 0.513)])
def test_stroke_protocol_reaches_125_per_m(ramp_ms: float, t0_ms: float) -> None:
    fine = density_adapted_radial(4, 40_000, ramp_ms=ramp_ms, **STROKE)
    assert fine.k_max_per_mm == pytest.approx(0.125, rel=1e-4)
    gradient = gradient_mt_m(fine)[0]
    plateau = fine.t_ms[:-1][gradient > 4.599]
    assert plateau.max() == pytest.approx(t0_ms, abs=2e-3)
    assert gradient.max() < 4.6 * (1 + 1e-3)


def test_density_adapted_shells_are_equally_dense() -> None:
    k = radii(density_adapted_radial(1, 4000, **STROKE))[0]
    late = k > 0.05
    density = k[late] ** 2 * np.gradient(k)[late]
    assert np.ptp(density) / density.mean() < 5e-3


def test_samples_lie_at_dwell_centres() -> None:
    spokes = density_adapted_radial(4, 384, **STROKE)
    assert spokes.t_ms[0] == pytest.approx(0.5 * 20.0 / 384)
    assert np.diff(spokes.t_ms) == pytest.approx(20.0 / 384)


@pytest.mark.parametrize("scheme", ["golden", "spiral"])
def test_directions_share_the_sphere(scheme: str) -> None:
    ends = directions(2000, scheme)
    assert np.linalg.norm(ends, axis=1) == pytest.approx(1.0)
    second_moment = ends.T @ ends / len(ends)
    assert second_moment == pytest.approx(np.eye(3) / 3.0, abs=2e-3)


def test_constant_gradient_would_reach_1036_per_m() -> None:
    long = plain_radial(1, 1000, readout_ms=20.0, voxel_mm=500.0 / 1036.0, ramp_ms=0.0)
    assert gradient_mt_m(long).max() == pytest.approx(4.6, rel=2e-3)


def test_cones_of_the_ms_protocol() -> None:
    cones = cones_3d(fov_mm=240.0, voxel_mm=3.0, readout_ms=20.0, gradient_mt_m=6.0)
    assert cones.n_shots == 1312
    polar = np.arccos(cones.k_per_mm[:, -1, 2] / radii(cones)[:, -1])
    assert len(np.unique(polar.round(4))) == 126
    assert cones.solid_angle_sr.sum() == pytest.approx(4 * np.pi)
    assert gradient_mt_m(cones).max() <= 6.0
    assert radii(cones)[:, -1] == pytest.approx(1 / 6, rel=5e-3)


def test_twisted_projections_keep_the_gradient() -> None:
    twisted = twisted_projections(200, 2000, **STROKE)
    ends = np.abs(directions(200)[:, 2]) < 0.9
    gradient = gradient_mt_m(twisted)[ends][:, 100:]
    assert gradient == pytest.approx(4.6, rel=0.01)
    assert radii(twisted) == pytest.approx(radii(density_adapted_radial(200, 2000, **STROKE)), abs=1e-6)


def test_lattice_has_its_centre_at_n_half() -> None:
    lattice = cartesian((8, 6, 4), voxel_mm=4.0, readout_ms=5.0)
    points = lattice.k_per_mm.reshape(4, 6, 8, 3)
    assert points[2, 3, 4] == pytest.approx(0.0)
    assert points[2, 3, 5] == pytest.approx([1 / 32, 0, 0])
    assert points[2, 4, 4] == pytest.approx([0, 1 / 24, 0])
    assert points[3, 3, 4] == pytest.approx([0, 0, 1 / 16])


@pytest.mark.parametrize("delay_ms", [0.02, -0.02])
def test_interpolated_delay_equals_the_delay_built_in(delay_ms: float) -> None:
    built = density_adapted_radial(5, 4000, delay_ms=delay_ms, **STROKE)
    moved = delayed(density_adapted_radial(5, 4000, **STROKE), delay_ms)
    assert radii(moved)[:, :-10] == pytest.approx(radii(built)[:, :-10], abs=2e-5)


def test_no_delay_changes_nothing() -> None:
    spokes = density_adapted_radial(5, 64, **STROKE)
    assert delayed(spokes, 0.0) is spokes


@pytest.mark.parametrize(
    ("kind", "twin"),
    [
        ("DA-3DPR", lambda: density_adapted_radial(10, 64, **STROKE)),
        ("3DPR", lambda: plain_radial(10, 64, readout_ms=20.0, voxel_mm=4.0)),
        ("TPI", lambda: twisted_projections(10, 64, **STROKE)),
        ("Cones", lambda: cones_3d(fov_mm=100.0, voxel_mm=4.0, readout_ms=20.0, gradient_mt_m=4.6, n_samples=64)),
    ],
)
def test_description_names_the_trajectory(kind: str, twin) -> None:
    named = from_description(
        {
            "Type": kind,
            "Spokes": 10,
            "Samples": 64,
            "MaxGradient": 4.6,
            "ReadoutTime": 0.02,
            "NominalVoxelSize": 4.0,
            "FieldOfView": 100.0,
            "SpokeOrder": "golden",
        }
    )
    np.testing.assert_array_equal(named.k_per_mm, twin().k_per_mm)
    assert dataclasses.replace(named).kind == twin().kind


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: density_adapted_radial(10, 64, gradient_mt_m=0.1, readout_ms=20.0, voxel_mm=4.0), "reaches"),
        (lambda: density_adapted_radial(10, 64, gradient_mt_m=4.6, readout_ms=0.02, voxel_mm=4.0), "ramp"),
        (lambda: density_adapted_radial(10, 64, gradient_mt_m=-1.0, readout_ms=20.0, voxel_mm=4.0), "gradient_mt_m"),
        (lambda: cones_3d(fov_mm=240.0, voxel_mm=3.0, readout_ms=1.0), "reaches"),
        (lambda: density_adapted_radial(0, 64, **STROKE), "0 shots"),
        (lambda: density_adapted_radial(10, 1, **STROKE), "1 samples"),
        (lambda: density_adapted_radial(10, 64, scheme="random", **STROKE), "random"),
        (lambda: from_description({"Type": "rosette"}), "rosette"),
        (lambda: from_description({"Type": "DA-3DPR", "Spokes": 10}), "Samples, MaxGradient"),
        (
            lambda: from_description(
                {
                    "Type": "3DPR",
                    "Spokes": "many",
                    "Samples": 9,
                    "ReadoutTime": 0.02,
                    "NominalVoxelSize": 4,
                    "SpokeOrder": "golden",
                }
            ),
            "not a number",
        ),
    ],
)
def test_impossible_requests_are_refused(call, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()
