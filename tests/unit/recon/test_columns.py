import numpy as np
import pytest

from bids_sodium.core.constants import Decay
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.recon.columns import mtf_columns, operator_columns
from bids_sodium.recon.psf import gaussian_point_spread, point_spread
from bids_sodium.recon.solvers import Linear, ReconstructionParams
from bids_sodium.recon.trajectory import density_adapted_radial

SPOKES = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
GRID = Grid.centred((32, 32, 32), 8.0)
FINE = GRID.with_voxel(4.0)
DECAY = Decay(3.4, 23.5)


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
    shifted = Volume(tissue.data, Grid.centred(FINE.shape, 4.5))
    broken = tissue.with_data(np.full(FINE.shape, np.nan, np.float32))
    off = Volume(tissue.data, Grid(FINE.shape, FINE.affine + np.array([[0, 0, 0, 2.0]] + [[0] * 4] * 3)))
    with pytest.raises(DataError, match="no decay for WM"):
        operator_columns({"WM": tissue}, GRID, SPOKES, {})
    with pytest.raises(DataError, match="no tissue maps"):
        mtf_columns({}, GRID, {})
    with pytest.raises(DataError, match="NaN"):
        mtf_columns({"WM": broken}, GRID, {"WM": gaussian_point_spread(9.0)})
    with pytest.raises(GeometryError, match="another grid"):
        mtf_columns({"WM": tissue, "GM": shifted}, GRID, {name: gaussian_point_spread(9.0) for name in ("WM", "GM")})
    with pytest.raises(GeometryError, match="2 mm away"):
        mtf_columns({"WM": off}, GRID, {"WM": gaussian_point_spread(9.0)})
