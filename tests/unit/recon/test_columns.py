import numpy as np
import pytest

from bids_sodium.core.constants import Decay
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.recon.columns import map_samples, mtf_columns, operator_columns, vial_samples
from bids_sodium.recon.psf import gaussian_point_spread, point_spread
from bids_sodium.recon.solvers import Linear, ReconstructionParams
from bids_sodium.recon.trajectory import density_adapted_radial
from bids_sodium.simulate.brain import rigid

SPOKES = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
GRID = Grid.centred((32, 32, 32), 8.0)
FINE = GRID.with_voxel(4.0)
DECAY = Decay(3.4, 23.5)
SHEARED = np.array([[1.0, 0.3, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
POSE = rigid(np.array([12.0, -7.0, 20.0]), np.array([9.0, -5.0, 4.0]))


def head(grid: Grid) -> Volume:
    x, y, z = np.meshgrid(
        *[(np.arange(n) - n // 2) * s for n, s in zip(grid.shape, grid.voxel_mm, strict=True)], indexing="ij"
    )
    return Volume(((x / 60) ** 2 + (y / 75) ** 2 + (z / 55) ** 2 < 1).astype(np.float32), grid)


def test_both_columns_show_the_same_tissue() -> None:
    params = ReconstructionParams(filter="gaussian")
    through = operator_columns({"WM": head(FINE)}, GRID, SPOKES, {"WM": DECAY}, params, te_ms=0.5)
    spread = point_spread(SPOKES, decay=DECAY, filter="gaussian", te_ms=0.5)
    blurred = mtf_columns({"WM": head(FINE)}, GRID, {"WM": spread})
    assert through.names == blurred.names == ("WM",)
    error = np.linalg.norm(through.images - blurred.images) / np.linalg.norm(blurred.images)
    assert error < 0.03


def test_blurring_keeps_the_amount_of_tissue() -> None:
    tissue = head(FINE)
    image = mtf_columns({"WM": tissue}, GRID, {"WM": gaussian_point_spread(20.0)}).images[0]
    assert image.sum() * GRID.voxel_ml == pytest.approx(tissue.data.sum() * FINE.voxel_ml, rel=1e-4)


def test_gaussian_columns_are_gaussian() -> None:
    point = np.zeros(FINE.shape, np.float32)
    point[32, 32, 32] = 1.0
    image = mtf_columns({"dot": Volume(point, FINE)}, GRID, {"dot": gaussian_point_spread(30.0)}).images[0]
    sd = 30.0 / np.sqrt(8 * np.log(2))
    r = (np.arange(32) - 16) * 8.0
    expected = FINE.voxel_ml * 1000 / ((2 * np.pi) ** 1.5 * sd**3) * np.exp(-0.5 * (r / sd) ** 2)
    assert image[:, 16, 16] == pytest.approx(expected, abs=2e-3 * expected.max())


def test_an_operator_and_its_samples_are_kept() -> None:
    operator = Linear(SPOKES, GRID)
    maps, decays = {"WM": head(FINE)}, {"WM": DECAY}
    fresh = operator_columns(maps, GRID, SPOKES, decays)
    again = operator_columns(maps, GRID, SPOKES, decays, operator=operator, keep_samples=True)
    np.testing.assert_array_equal(fresh.images, again.images)
    assert fresh.samples is None
    np.testing.assert_array_equal(operator(again.samples[0]).real, again.images[0])


def test_unsuitable_maps_are_refused() -> None:
    tissue = head(FINE)
    broken = tissue.with_data(np.full(FINE.shape, np.nan, np.float32))
    with pytest.raises(DataError, match="no decay for WM"):
        operator_columns({"WM": tissue}, GRID, SPOKES, {})
    with pytest.raises(DataError, match="no tissue maps"):
        mtf_columns({}, GRID, {})
    with pytest.raises(DataError, match="NaN"):
        mtf_columns({"WM": broken}, GRID, {"WM": gaussian_point_spread(9.0)})
    with pytest.raises(GeometryError, match="no invertible"):
        operator_columns({"WM": tissue}, GRID, SPOKES, {"WM": DECAY}, na_from_maps=np.zeros((4, 4)))
    with pytest.raises(GeometryError, match="more than a rigid motion"):
        mtf_columns({"WM": tissue}, GRID, {"WM": gaussian_point_spread(9.0)}, na_from_maps=SHEARED)
    coarse = Volume(np.ones((9, 9, 9)), Grid.centred((9, 9, 9), 20.0))
    with pytest.raises(GeometryError, match="cannot show what the scan sees"):
        map_samples(coarse, SPOKES, GRID)


def blob(grid: Grid, centre_mm: np.ndarray) -> Volume:
    """Return a smooth body at a place in the world."""
    points = grid.world(np.indices(grid.shape).transpose(1, 2, 3, 0).astype(float)) - centre_mm
    return Volume(np.exp(-0.5 * (points**2).sum(-1) / 14.0**2).astype(np.float32), grid)


@pytest.mark.parametrize("pose", [None, POSE, SHEARED])
def test_samples_of_a_map_are_its_fourier_sum(pose: np.ndarray | None) -> None:
    lattice = Grid(
        (7, 9, 8), rigid(np.array([5.0, 30.0, -8.0]), np.array([3.0, 8.0, -2.0])) @ np.diag([3.0, 2.5, 4.0, 1])
    )
    data = np.random.default_rng(0).random(lattice.shape)
    data[0], data[:, -1] = 0.0, 0.0
    image = Grid(
        (16, 16, 16), rigid(np.array([0.0, 0.0, 15.0]), np.array([1.0, 2.0, 3.0])) @ np.diag([8.0, 8.0, 8.0, 1])
    )
    found = map_samples(Volume(data, lattice), SPOKES, image, pose)[::300, ::16]
    index = np.argwhere(data > 0)
    place = lattice.world(index.astype(float))
    whole = np.eye(4) if pose is None else pose
    place = place @ whole[:3, :3].T + whole[:3, 3] - image.origin_mm
    k = SPOKES.k_per_mm[::300, ::16].astype(float) @ (image.affine[:3, :3] / 8.0).T
    volume = lattice.voxel_ml * 1000 * abs(np.linalg.det(whole[:3, :3]))
    exact = np.exp(-2j * np.pi * (k @ place.T)) @ data[tuple(index.T)] * volume
    np.testing.assert_allclose(found, exact, atol=3e-4 * np.abs(exact).max())


def test_columns_do_not_depend_on_the_lattice_of_the_map() -> None:
    """One body, drawn on the axes of the scan and on a lattice turned against them."""
    centre = np.array([20.0, -12.0, 8.0])
    here = {"WM": blob(FINE, centre)}
    back = np.linalg.inv(POSE)
    there = {"WM": blob(Grid.centred((50, 50, 50), 3.5), back[:3, :3] @ centre + back[:3, 3])}
    spread = {"WM": gaussian_point_spread(14.0)}
    one, two = mtf_columns(here, GRID, spread).images, mtf_columns(there, GRID, spread, na_from_maps=POSE).images
    np.testing.assert_allclose(two, one, atol=1e-3 * one.max())
    decay = {"WM": DECAY}
    operator = Linear(SPOKES, GRID)
    one = operator_columns(here, GRID, SPOKES, decay, operator=operator).images
    two = operator_columns(there, GRID, SPOKES, decay, operator=operator, na_from_maps=POSE).images
    np.testing.assert_allclose(two, one, atol=2e-3 * one.max())


def test_repeats_of_a_map_stay_out_of_the_image() -> None:
    """A body beyond the field of view leaves no trace inside it."""
    outside = {"neck": blob(Grid.centred((20, 20, 20), 5.0), np.zeros(3))}
    far = np.eye(4)
    far[:3, 3] = [0.0, 0.0, -256.0]
    image = mtf_columns(outside, GRID, {"neck": gaussian_point_spread(14.0)}, na_from_maps=far).images
    assert np.abs(image[..., 12:]).max() < 1e-4


def test_an_empty_map_gives_nothing() -> None:
    empty = {"L": Volume(np.zeros(FINE.shape, np.float32), FINE)}
    assert not operator_columns(empty, GRID, SPOKES, {"L": DECAY}).images.any()
    assert not mtf_columns(empty, GRID, {"L": gaussian_point_spread(14.0)}).images.any()


def test_the_slabs_of_a_vial_move_its_ends() -> None:
    place = {"axis": np.array([0.0, 0.6, 0.8]), "radius_mm": 12.0, "end_mm": 6.0}
    body, low, high = vial_samples(GRID, SPOKES, DECAY, centre_mm=np.zeros(3), length_mm=60.0, **place)
    shift = 1.5 / 2 * np.array([0.0, 0.6, 0.8])
    longer = vial_samples(GRID, SPOKES, DECAY, centre_mm=shift, length_mm=61.5, **place)[0]
    shorter = vial_samples(GRID, SPOKES, DECAY, centre_mm=shift, length_mm=58.5, **place)[0]
    scale = np.abs(longer - body).max()
    assert np.abs(longer - (body + 1.5 / 6.0 * high)).max() < 0.12 * scale
    assert np.abs(shorter - (body - 1.5 / 6.0 * low)).max() < 0.12 * scale
