import dataclasses

import numpy as np
import pytest

from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import DataError
from bids_sodium.recon.solvers import coverage
from bids_sodium.recon.trajectory import (
    SCHEMES,
    cartesian,
    cartesian_echoes,
    cones_3d,
    delayed,
    density_adapted_radial,
    directions,
    floret,
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_directions_share_the_sphere(scheme: str) -> None:
    ends = directions(2000, scheme)
    assert np.linalg.norm(ends, axis=1) == pytest.approx(1.0)
    second_moment = ends.T @ ends / len(ends)
    assert second_moment == pytest.approx(np.eye(3) / 3.0, abs=2e-3)
    nearest = np.arccos(np.sort(ends @ ends.T, axis=1)[:, -2])
    assert np.percentile(nearest, 5) > 0.3 * np.sqrt(4 * np.pi / 2000)


@pytest.mark.parametrize("first", [0, 137, 1500])
def test_any_run_of_golden_means_shares_the_sphere(first: int) -> None:
    """Data sorted into time windows keep an even share; one golden angle does not give that."""
    runs = {scheme: directions(2000, scheme)[first : first + 233] for scheme in ("golden-means", "golden")}
    uneven = {scheme: np.abs(run.T @ run / 233 - np.eye(3) / 3.0).max() for scheme, run in runs.items()}
    assert uneven["golden-means"] < 0.02
    assert uneven["golden"] > 3.0 * uneven["golden-means"]


def test_golden_means_are_those_of_the_paper() -> None:
    z, azimuth = directions(2, "golden-means")[1, 2], np.arctan2(*directions(2, "golden-means")[1, 1::-1])
    assert (z + 1.0) / 2.0 == pytest.approx(0.4656, abs=5e-5)
    assert azimuth % (2 * np.pi) / (2 * np.pi) == pytest.approx(0.6823, abs=5e-5)


@pytest.mark.parametrize("n_shots", [1, 2, 3, 10, 117, 1500, 6000])
def test_rings_hold_every_spoke(n_shots: int) -> None:
    spokes = plain_radial(n_shots, 4, readout_ms=5.0, voxel_mm=4.0, scheme="rings")
    assert spokes.n_shots == n_shots
    assert spokes.solid_angle_sr.sum() == pytest.approx(4 * np.pi)
    polar = np.unique(directions(n_shots, "rings")[:, 2].round(9))
    assert np.diff(np.arccos(polar)) == pytest.approx(-np.pi / len(polar))
    if n_shots > 1000:
        assert spokes.solid_angle_sr == pytest.approx(4 * np.pi / n_shots, rel=0.1)


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
    assert np.abs(gradient / 4.6 - 1.0).max() < 0.01
    assert np.abs(radii(twisted) - radii(density_adapted_radial(200, 2000, **STROKE))).max() < 1e-6


@pytest.mark.parametrize("hubs", [1, 2, 3])
def test_floret_covers_its_field_of_view_within_the_gradient(hubs: int) -> None:
    made = floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0, gradient_mt_m=6.0, hubs=hubs)
    assert made.kind == "floret"
    assert made.k_max_per_mm == pytest.approx(0.125, rel=1e-3)
    assert np.ptp(radii(made), axis=0).max() < 1e-6
    assert gradient_mt_m(made).max() <= 6.0
    assert coverage(made, Grid.centred((60, 60, 60), 4.0)) > 0.95
    # One shot fewer in each hub would be too long a path.
    with pytest.raises(DataError, match="reaches"):
        floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0, hubs=hubs, n_shots=made.n_shots - hubs)


def test_shots_of_a_hub_stay_on_their_cones() -> None:
    made = floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0, hubs=3)
    k = radii(made)[:, 50:]
    for hub, axis in zip(np.split(made.k_per_mm[:, 50:].astype(float), 3), (2, 0, 1), strict=True):
        latitude = np.arcsin(hub[..., axis] / k[: len(hub)])
        assert np.ptp(latitude, axis=1).max() < 1e-5
        assert np.diff(latitude[:, -1]) == pytest.approx(np.pi / 2 / len(hub), rel=1e-3)
        assert np.abs(latitude).max() == pytest.approx(np.pi / 4 * (1 - 1 / len(hub)), rel=1e-4)


def test_samples_of_floret_are_equally_dense() -> None:
    """As many metres of path in every shell as its volume asks for, beyond the almost straight beginning."""
    made = floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0, n_samples=4000, hubs=1)
    path = np.linalg.norm(np.diff(made.k_per_mm.astype(float), axis=1), axis=-1).sum(axis=0)
    k = radii(made)[0]
    metres, _ = np.histogram(k[:-1], bins=np.linspace(0.08, 0.124, 6), weights=path)
    volume = np.diff(np.linspace(0.08, 0.124, 6) ** 3) * 4 * np.pi / 3
    # Polar shots are shorter: the mean of cos(latitude) over latitudes would be 2/pi if shots were all straight there.
    assert metres / volume == pytest.approx(240.0**2, rel=0.05)


def test_lattice_has_its_centre_at_n_half() -> None:
    lattice = cartesian((8, 6, 4), voxel_mm=4.0, readout_ms=5.0)
    points = lattice.k_per_mm.reshape(4, 6, 8, 3)
    assert points[2, 3, 4] == pytest.approx(0.0)
    assert points[2, 3, 5] == pytest.approx([1 / 32, 0, 0])
    assert points[2, 4, 4] == pytest.approx([0, 1 / 24, 0])
    assert points[3, 3, 4] == pytest.approx([0, 0, 1 / 16])


def test_lattice_has_its_echo_at_time_zero() -> None:
    for polarity in (1, -1):
        lattice = cartesian((9, 2, 2), voxel_mm=4.0, readout_ms=9.0, polarity=polarity)
        assert np.diff(lattice.t_ms) == pytest.approx(1.0)
        assert lattice.k_per_mm[0, :, 0] == pytest.approx(polarity * lattice.t_ms / 36.0)


def test_echoes_alternate_where_they_are_bipolar() -> None:
    shape = {"n_echoes": 3, "voxel_mm": 4.0, "readout_ms": 8.0}
    same, turned = cartesian_echoes((8, 2, 2), **shape), cartesian_echoes((8, 2, 2), bipolar=True, **shape)
    assert len(same) == len(turned) == 3
    assert [np.sign(echo.k_per_mm[0, -1, 0]) for echo in same] == [1, 1, 1]
    assert [np.sign(echo.k_per_mm[0, -1, 0]) for echo in turned] == [1, -1, 1]
    assert turned[1].t_ms[4] == pytest.approx(1.0)


@pytest.mark.parametrize("delay_ms", [0.02, -0.02])
def test_interpolated_delay_equals_the_delay_built_in(delay_ms: float) -> None:
    built = density_adapted_radial(5, 4000, delay_ms=delay_ms, **STROKE)
    moved = delayed(density_adapted_radial(5, 4000, **STROKE), delay_ms)
    assert np.abs(moved.k_per_mm - built.k_per_mm).max() < 2e-6


def test_path_is_straight_beyond_its_end() -> None:
    spokes = plain_radial(5, 64, readout_ms=5.0, voxel_mm=4.0)
    early = delayed(spokes, -1.0)
    step = 0.125 / (5.0 - 0.025) * 5.0 / 64
    assert np.diff(radii(early), axis=1) == pytest.approx(np.full((5, 63), step), rel=1e-3)


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
        (
            "FLORET",
            lambda: floret(
                fov_mm=100.0, voxel_mm=4.0, readout_ms=20.0, gradient_mt_m=4.6, hubs=2, n_shots=140, n_samples=64
            ),
        ),
    ],
)
def test_description_names_the_trajectory(kind: str, twin) -> None:
    named = from_description(
        {
            "Type": kind,
            "Spokes": 140 if kind == "FLORET" else 10,
            "Samples": 64,
            "MaxGradient": 4.6,
            "ReadoutTime": 0.02,
            "NominalVoxelSize": 4.0,
            "FieldOfView": 100.0,
            "SpokeOrder": "golden",
            "Hubs": 2,
        }
    )
    np.testing.assert_array_equal(named.k_per_mm, twin().k_per_mm)
    assert dataclasses.replace(named).kind == twin().kind


@pytest.mark.parametrize("delay", [1e-5, [1e-5, 2e-5, -3e-6]])
def test_description_states_delay_and_convention(delay: float | list[float]) -> None:
    named = from_description(
        {
            "Type": "DA-3DPR",
            "Spokes": 10,
            "Samples": 64,
            "MaxGradient": 4.6,
            "ReadoutTime": 0.02,
            "NominalVoxelSize": 4.0,
            "SpokeOrder": "rings",
            "Delay": delay,
            "DwellConvention": "start",
        }
    )
    twin = density_adapted_radial(10, 64, scheme="rings", delay_ms=np.multiply(delay, 1e3), dwell="start", **STROKE)
    np.testing.assert_array_equal(named.k_per_mm, twin.k_per_mm)
    np.testing.assert_array_equal(named.t_ms, twin.t_ms)


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
        (lambda: density_adapted_radial(10, 64, dwell="end", **STROKE), "'end'"),
        (lambda: density_adapted_radial(10, 64, delay_ms=[0.1, 0.2], **STROKE), "delay"),
        (lambda: delayed(plain_radial(4, 8, readout_ms=5.0, voxel_mm=4.0), np.nan), "delay"),
        (lambda: floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0, hubs=4), "4 hubs"),
        (lambda: floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0, hubs=1, alpha0_deg=45.0), "leave out"),
        (lambda: floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0, hubs=3, alpha0_deg=30.0), "35.26"),
        (lambda: floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=20.0, n_shots=1000), "multiple"),
        (lambda: cartesian((1, 4, 4), voxel_mm=4.0, readout_ms=5.0), "two along"),
        (lambda: cartesian((4, 4, 4), voxel_mm=4.0, readout_ms=5.0, polarity=0), "polarity 0"),
        (lambda: cartesian_echoes((4, 4, 4), n_echoes=0, voxel_mm=4.0, readout_ms=5.0), "0 echoes"),
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
