import re

import numpy as np
import pytest

from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.core.errors import DataError
from bids_sodium.recon.sampling import alias_free_mm, leaves_centre
from bids_sodium.recon.solvers import reconstruct
from bids_sodium.recon.trajectory import cartesian, cones_3d, density_adapted_radial, plain_radial, twisted_projections

SPOKES = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)


def ball(trajectory: Trajectory, radius_mm: float, centre_mm: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    k = trajectory.k_per_mm.astype(float)
    x = np.maximum(2 * np.pi * np.linalg.norm(k, axis=-1) * radius_mm, 1e-2)
    waves = np.exp(-2j * np.pi * (k @ np.array(centre_mm)))
    return 4 * np.pi * radius_mm**3 * (np.sin(x) - x * np.cos(x)) / x**3 * waves


def scan(trajectory: Trajectory, samples: np.ndarray, grid: Grid) -> KSpace:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape)
    return KSpace((samples + 1e-4 * np.abs(samples).max() * noise)[None].astype(np.complex64), trajectory, grid)


def test_alias_free_diameters() -> None:
    spokes = density_adapted_radial(6000, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0)
    assert alias_free_mm(spokes) == pytest.approx(175.0, abs=1.0)
    enough = density_adapted_radial(12868, 64, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0)
    assert alias_free_mm(enough) == pytest.approx(256.0, abs=1.0)
    assert alias_free_mm(cones_3d(fov_mm=240.0, voxel_mm=3.0, readout_ms=20.0)) == pytest.approx(240.0, rel=0.01)
    same = {"readout_ms": 20.0, "voxel_mm": 4.0}
    straight, twisted = plain_radial(800, 128, **same), twisted_projections(800, 512, gradient_mt_m=4.6, **same)
    assert alias_free_mm(twisted) > 2.0 * alias_free_mm(straight)
    twice = Trajectory(np.concatenate([straight.k_per_mm] * 2), straight.t_ms)
    assert alias_free_mm(twice) == pytest.approx(alias_free_mm(straight))


def test_a_lattice_does_not_leave_the_centre() -> None:
    lattice = cartesian((8, 8, 8), voxel_mm=8.0, readout_ms=5.0)
    assert not leaves_centre(lattice)
    assert np.isnan(alias_free_mm(lattice))


def test_object_within_bounds_is_not_spoken_of() -> None:
    grid = Grid.centred((32, 32, 32), 8.0)
    found = reconstruct(scan(SPOKES, ball(SPOKES, 75.0), grid))
    assert found.notes == ()
    assert found.alias_free_mm == pytest.approx(175.0, abs=1.0)


def test_small_field_of_view_is_named_with_the_aliases() -> None:
    grid = Grid.centred((16, 32, 32), 8.0)
    found = reconstruct(scan(SPOKES, ball(SPOKES, 95.0), grid))
    assert len(found.notes) == 1
    assert re.match("the object reaches at least (8|9|10)", found.notes[0])
    assert "the field of view ends at 64 mm" in found.notes[0]
    assert "free of aliases to 175 mm" in found.notes[0]


def test_object_away_from_the_centre_is_seen_beyond_the_edge() -> None:
    grid = Grid.centred((32, 32, 32), 8.0)
    samples = ball(SPOKES, 60.0) + ball(SPOKES, 25.0, (0.0, -135.0, 0.0))
    assert any("field of view ends at 128 mm" in note for note in reconstruct(scan(SPOKES, samples, grid)).notes)


def test_few_readouts_are_named() -> None:
    few = density_adapted_radial(400, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    (note,) = reconstruct(scan(few, ball(few, 80.0), Grid.centred((32, 32, 32), 8.0))).notes
    assert "free of aliases to 90 mm" in note
    assert "acquire more readouts" in note


def test_single_spoke_is_refused() -> None:
    one = Trajectory(SPOKES.k_per_mm[:1], SPOKES.t_ms)
    with pytest.raises(DataError, match="1 shots in 1 directions do not cover"):
        reconstruct(scan(one, ball(one, 80.0), Grid.centred((32, 32, 32), 8.0)))
