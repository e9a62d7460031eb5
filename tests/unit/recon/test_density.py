import dataclasses

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.recon.density import (
    FILTERS,
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
    floret,
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


def test_voronoi_cells_are_used_where_asked_for() -> None:
    uneven = dataclasses.replace(RADIAL, solid_angle_sr=np.linspace(0.5, 1.5, 1500) * 4 * np.pi / 1500)
    stated, cells = sample_weights(uneven, GRID), sample_weights(uneven, GRID, WeightParams(method="voronoi"))
    areas = solid_angles(uneven, stated=False)
    np.testing.assert_array_equal(areas, solid_angles(dataclasses.replace(RADIAL, solid_angle_sr=None)))
    assert cells.sum(axis=1) / cells.sum() == pytest.approx(areas / (4 * np.pi))
    assert stated.sum(axis=1) / stated.sum() == pytest.approx(uneven.solid_angle_sr / (4 * np.pi))


def test_shots_that_are_missing_are_made_up_for_by_their_neighbours() -> None:
    kept = np.random.default_rng(2).permutation(1500)[:1350]
    weights = sample_weights(Trajectory(RADIAL.k_per_mm[kept], RADIAL.t_ms), GRID)
    full = sample_weights(RADIAL, GRID)
    assert weights.sum() == pytest.approx(full.sum(), rel=1e-4)
    assert weights.sum(axis=1).min() > 0.8 * full.sum(axis=1).mean()
    assert weights.sum(axis=1).max() > 1.3 * full.sum(axis=1).mean()


def test_overlapping_hubs_share_kspace() -> None:
    """Where three hubs meet, at 45 degrees, samples weigh less than where two do; each octant gets its eighth."""
    trajectory = floret(fov_mm=240.0, voxel_mm=4.0, readout_ms=10.0)
    weights = sample_weights(trajectory, GRID)
    edge = 1.0 / 8.0
    assert weights.sum() == pytest.approx(4.0 / 3.0 * np.pi * edge**3, rel=5e-3)
    k = np.linalg.norm(trajectory.k_per_mm.astype(float), axis=-1)
    u = np.abs(trajectory.k_per_mm) / np.maximum(k, 1e-9)[..., None]
    outer = k > 0.08
    per_sample = weights / np.maximum(k, 1e-9) ** 2 / np.gradient(k, axis=1)
    thrice, twice = outer & (u.max(axis=-1) < 0.65), outer & (u.max(axis=-1) > 0.75)
    assert 0.55 < np.median(per_sample[thrice]) / np.median(per_sample[twice]) < 0.85
    for cap in (u[..., 0] > 0.9, u[..., 1] > 0.9, u[..., 2] > 0.9):
        assert weights[cap & outer].sum() / weights[outer].sum() == pytest.approx(0.1, rel=0.03)


def test_a_delay_that_is_the_same_for_all_axes_changes_no_share() -> None:
    late = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0, delay_ms=0.01)
    ratio = sample_weights(late, GRID).sum(axis=1)
    assert np.ptp(ratio) / ratio.mean() < 1e-5


def test_unequal_delays_change_weights_near_the_centre_alone() -> None:
    apart = {"gradient_mt_m": 1.5, "readout_ms": 20.0, "voxel_mm": 8.0}
    even = sample_weights(density_adapted_radial(1500, 128, delay_ms=0.002, **apart), GRID)
    ratio = sample_weights(density_adapted_radial(1500, 128, delay_ms=[0.003, -0.002, 0.005], **apart), GRID) / even
    # The second axis leads by 4 us: its poles come out early, their cells are larger near the centre.
    pole = np.abs(directions(1500)[:, 1]) > 0.95
    assert ratio[pole, 1].mean() < 0.99
    assert np.abs(ratio[:, 40:] - 1.0).max() < 5e-3


def test_pipe_menon_adds_no_noise() -> None:
    """Weights that make up for what lies beyond the edge would double there, and raise the noise by a third."""
    full = density_adapted_radial(3300, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    analytic = sample_weights(full, GRID)
    iterated = sample_weights(full, GRID, WeightParams(method="pipe-menon"))
    assert np.sqrt((iterated**2).sum() / (analytic**2).sum()) == pytest.approx(1.0, abs=0.05)
    assert gain(full, iterated, 120.0) == pytest.approx(gain(full, analytic, 120.0), abs=0.003)


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
    ("name", "at_edge"),
    [("none", 1.0), ("gaussian", np.exp(-0.5)), ("hamming", 0.08), ("hann", 0.0), ("fermi", 0.5)],
)
def test_filters_at_the_edge(name: str, at_edge: float) -> None:
    assert filter_response(np.array([0.0, 1.0]), name, 1.0) == pytest.approx([1.0, at_edge])
    assert kspace_filter(RADIAL, name, 1.0)[:, -1] == pytest.approx(at_edge, abs=1e-4)


@pytest.mark.parametrize("width", [0.3, 0.8, 1.0])
def test_fermi_filter_is_flat_then_falls(width: float) -> None:
    share = np.linspace(0.0, 1.5, 301)
    fermi = filter_response(share, "fermi", width, 0.04)
    expected = (1.0 + np.exp(-width / 0.04)) / (1.0 + np.exp((share - width) / 0.04))
    assert fermi == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert np.interp([0.9, 0.1], fermi[::-1], share[::-1]) == pytest.approx(
        [width - 2.197 * 0.04, width + 2.197 * 0.04], abs=2e-3
    )


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("width", [0.05, 0.7, 3.0])
def test_filters_are_one_at_the_centre_and_never_rise(name: str, width: float) -> None:
    response = filter_response(np.linspace(0.0, 2.0, 201), name, width)
    assert response[0] == pytest.approx(1.0, abs=1e-12)
    assert np.diff(response).max() <= 1e-12
    assert response.min() >= -1e-12


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: filter_response(np.zeros(1), "box", 1.0), ConfigError, "box"),
        (lambda: filter_response(np.zeros(1), "hann", 0.0), ConfigError, "width 0"),
        (lambda: filter_response(np.zeros(1), "fermi", 0.9, 0.0), ConfigError, "transition of 0"),
        (lambda: WeightParams(method="guess"), ConfigError, "guess"),
        (lambda: sample_weights(Trajectory(np.zeros((3, 4, 3)), np.arange(4.0)), GRID), DataError, "centre"),
        (lambda: solid_angles(Trajectory(RADIAL.k_per_mm[:3], RADIAL.t_ms)), DataError, "3 directions"),
    ],
)
def test_impossible_requests_are_refused(call, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()
