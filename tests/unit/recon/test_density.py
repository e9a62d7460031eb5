import dataclasses

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.recon.density import (
    WeightParams,
    filter_response,
    gain,
    kspace_filter,
    sample_weights,
    solid_angles,
)
from bids_sodium.recon.trajectory import (
    cartesian,
    cones_3d,
    density_adapted_radial,
    directions,
    plain_radial,
    twisted_projections,
)

GRID = Grid.centred((32, 32, 32), 8.0)
RADIAL = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
CENTRE_OUT = {
    "stroke": density_adapted_radial(6000, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0),
    "small": RADIAL,
    "plain": plain_radial(1500, 128, readout_ms=20.0, voxel_mm=4.0),
    "twisted": twisted_projections(3000, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0),
    "cones": cones_3d(fov_mm=240.0, voxel_mm=3.0, readout_ms=20.0),
}


@pytest.mark.parametrize("name", CENTRE_OUT)
def test_gain_of_a_head_sized_ball_is_one(name: str) -> None:
    trajectory = CENTRE_OUT[name]
    assert gain(trajectory, sample_weights(trajectory, GRID)) == pytest.approx(1.0, abs=0.005)


def test_refinement_is_what_makes_it_one() -> None:
    raw = sample_weights(CENTRE_OUT["stroke"], GRID, WeightParams(refine=False))
    assert gain(CENTRE_OUT["stroke"], raw) < 0.98


@pytest.mark.parametrize("name", ["small", "cones"])
def test_refinement_costs_no_noise(name: str) -> None:
    trajectory = CENTRE_OUT[name]
    raw = sample_weights(trajectory, GRID, WeightParams(refine=False))
    refined = sample_weights(trajectory, GRID)
    assert (refined >= 0).all()
    assert np.sqrt((refined**2).sum() / (raw**2).sum()) == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("ball_mm", [100.0, 150.0, 210.0])
def test_other_balls_come_out_as_a_full_sphere_shows_them(ball_mm: float) -> None:
    """Gibbs ringing moves the mean of a core a little; an ideal sphere of k-space is the reference."""
    trajectory = CENTRE_OUT["stroke"]
    dense = plain_radial(1, 20_000, readout_ms=20.0, voxel_mm=4.0, ramp_ms=0.0)
    full = Trajectory(dense.k_per_mm, dense.t_ms, np.array([4 * np.pi]), "radial")
    ideal = gain(full, sample_weights(full, GRID, WeightParams(refine=False)), ball_mm)
    assert gain(trajectory, sample_weights(trajectory, GRID), ball_mm) == pytest.approx(ideal, abs=0.003)


def test_weights_fill_the_sphere() -> None:
    edge = 1.0 / 8.0
    total = sample_weights(CENTRE_OUT["stroke"], GRID).sum()
    assert total == pytest.approx(4.0 / 3.0 * np.pi * edge**3, rel=2e-3)


def test_imported_trajectory_gets_its_solid_angles_back() -> None:
    imported = dataclasses.replace(RADIAL, solid_angle_sr=None, kind="imported")
    areas = solid_angles(imported)
    assert areas.sum() == pytest.approx(4 * np.pi)
    assert areas == pytest.approx(RADIAL.solid_angle_sr, rel=0.25)
    assert gain(imported, sample_weights(imported, GRID)) == pytest.approx(1.0, abs=0.005)


def test_repeated_shots_share_their_solid_angle() -> None:
    ends = directions(200)[:, None, :] * np.linspace(0.01, 1.0, 5)[:, None]
    once = solid_angles(Trajectory(ends, np.arange(5.0)))
    twice = solid_angles(Trajectory(np.concatenate([ends, ends]), np.arange(5.0)))
    assert twice == pytest.approx(np.concatenate([once, once]) / 2.0)


def test_pipe_menon_agrees_with_the_analytic_weights() -> None:
    analytic = sample_weights(RADIAL, GRID)
    iterated = sample_weights(RADIAL, GRID, WeightParams(method="pipe-menon"))
    assert gain(RADIAL, iterated) == pytest.approx(1.0, abs=1e-6)
    # Shells that are fully sampled; beyond, no weight can make up for the gaps.
    shells = analytic.sum(axis=0)[10:45]
    assert iterated.sum(axis=0)[10:45] == pytest.approx(shells, rel=0.05)


def test_pipe_menon_serves_trajectories_that_do_not_leave_the_centre() -> None:
    through = np.concatenate([-RADIAL.k_per_mm[:700, ::-2], RADIAL.k_per_mm[:700, ::2]], axis=1)
    trajectory = Trajectory(through, np.arange(through.shape[1]) + 0.5)
    weights = sample_weights(trajectory, GRID)
    assert gain(trajectory, weights) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(DataError, match="no analytic weights"):
        sample_weights(trajectory, GRID, WeightParams(method="analytic"))


def test_lattice_weights_are_its_cell() -> None:
    lattice = cartesian((16, 16, 8), voxel_mm=8.0, readout_ms=5.0)
    weights = sample_weights(lattice, GRID)
    assert weights == pytest.approx(1.0 / (128.0 * 128.0 * 64.0), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "at_edge"), [("none", 1.0), ("gaussian", np.exp(-0.5)), ("hamming", 0.08), ("hann", 0.0)]
)
def test_filters_at_the_edge(name: str, at_edge: float) -> None:
    assert filter_response(np.array([0.0, 1.0]), name, 1.0) == pytest.approx([1.0, at_edge])
    assert kspace_filter(RADIAL, name, 1.0)[:, -1] == pytest.approx(at_edge, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: filter_response(np.zeros(1), "box", 1.0), ConfigError, "box"),
        (lambda: filter_response(np.zeros(1), "hann", 0.0), ConfigError, "width 0"),
        (lambda: WeightParams(method="guess"), ConfigError, "guess"),
        (lambda: sample_weights(Trajectory(np.zeros((3, 4, 3)), np.arange(4.0)), GRID), DataError, "centre"),
        (lambda: solid_angles(Trajectory(RADIAL.k_per_mm[:3], RADIAL.t_ms)), DataError, "3 directions"),
    ],
)
def test_impossible_requests_are_refused(call, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()
