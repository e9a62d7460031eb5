"""Automatic delineation finds what stands out against the other side, and nothing else; cells tell what they hold."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid
from bids_sodium.core.errors import ConfigError, EstimationError, GeometryError
from bids_sodium.tissue.delineation import DelineationParams, Proposal, propose
from bids_sodium.tissue.fate import FateParams, cells_of, domain_of
from bids_sodium.tissue.rois import atoms, combine

GRID = Grid.centred((64, 72, 56), 2.5)
X, Y, Z = np.moveaxis(GRID.world(np.moveaxis(np.indices(GRID.shape), 0, -1).astype(float)), -1, 0)
TISSUE = (X / 65) ** 2 + (Y / 80) ** 2 + (Z / 60) ** 2 < 1
LESION = ((X + 32) / 16) ** 2 + ((Y - 5) / 22) ** 2 + ((Z - 6) / 18) ** 2 < 1


def found(rise: float, *, bias: float = 0.15, seed: int = 0, other: float = 0.0) -> Proposal:
    """Return the proposal for a lesion on the left, with noise, coil asymmetry and one on the right."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=GRID.shape), 1.4)
    signal = 100.0 * (1 + bias * X / 65) * (1 + rise * LESION + other * LESION[::-1]) + 6.0 * noise / noise.std()
    signal = gaussian_filter(signal, 1.2)
    return propose(signal, signal[::-1], TISSUE, GRID)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(("rise", "least"), [(0.6, 0.88), (0.45, 0.86), (0.3, 0.8), (0.2, 0.7)])
def test_a_lesion_is_found_on_its_side(rise: float, least: float) -> None:
    proposal = found(rise)
    assert dice(proposal.mask, LESION & TISSUE) > least
    assert proposal.converged
    assert proposal.n_lesions == 1
    assert not (proposal.mask & (X > 5)).any()


def test_without_a_lesion_nothing_stands_out() -> None:
    volumes = [found(0.0, seed=seed).mask.sum() * GRID.voxel_ml for seed in range(6)]
    assert np.median(volumes) == 0.0
    assert max(volumes) < 2.0


def test_a_smooth_asymmetry_is_no_lesion() -> None:
    assert not found(0.0, bias=0.4).mask.any()
    assert dice(found(0.5, bias=0.4).mask, LESION & TISSUE) > 0.8


def test_equal_lesions_on_both_sides_hide_each_other() -> None:
    assert found(0.5, other=0.5).mask.sum() * GRID.voxel_ml < 1.0


def test_a_brighter_image_gives_the_same_mask() -> None:
    rng = np.random.default_rng(1)
    image = 100.0 + 50.0 * LESION + rng.normal(0, 5, GRID.shape)
    one, two = (propose(k * image, k * image[::-1], TISSUE, GRID).mask for k in (1.0, 7.0))
    np.testing.assert_array_equal(one, two)


def test_what_cannot_be_delineated_is_said() -> None:
    with pytest.raises(GeometryError, match="other side"):
        propose(np.zeros(GRID.shape), np.zeros((3, 3, 3)), TISSUE, GRID)
    with pytest.raises(EstimationError, match="are equal"):
        propose(np.ones(GRID.shape), np.ones(GRID.shape), TISSUE, GRID)
    with pytest.raises(EstimationError, match="0 mL of tissue"):
        propose(np.ones(GRID.shape), np.ones(GRID.shape), ~(TISSUE | ~TISSUE), GRID)
    with pytest.raises(ConfigError, match="edge_z 6"):
        DelineationParams(edge_z=6.0)
    with pytest.raises(ConfigError, match="cells of -1 mm"):
        FateParams(cell_mm=-1.0)


def test_cells_add_up_to_their_domain() -> None:
    domain = domain_of(LESION, TISSUE, TISSUE[::-1], LESION[::-1], GRID, 10.0)
    assert not (domain & LESION[::-1]).any()
    assert (domain & LESION).sum() > 0.9 * (LESION & TISSUE).sum()
    image = 100.0 + 40.0 * LESION
    cells = cells_of(domain, {"na": (image, image[::-1])}, {"lesion": LESION}, GRID, FateParams(least_share=0.01))
    assert cells.volume_ml.sum() == pytest.approx(domain.sum() * GRID.voxel_ml, rel=0.02)
    # a cell is as bright as its share of lesion says
    np.testing.assert_allclose(cells.percent["na"], 40.0 * cells.share["lesion"], atol=1e-9)


def test_a_cell_without_values_is_no_number() -> None:
    image = np.where(X < -30, np.nan, 100.0)
    cells = cells_of(LESION & TISSUE, {"adc": (image, np.full(GRID.shape, 50.0))}, {}, GRID)
    assert np.isnan(cells.percent["adc"]).any()
    assert np.nanmin(cells.percent["adc"]) == pytest.approx(100.0)
    with pytest.raises(EstimationError, match="none of"):
        cells_of(LESION & (X < -47), {}, {}, GRID, FateParams(least_share=1.0))


def test_expressions_are_unions_of_atoms() -> None:
    rng = np.random.default_rng(4)
    masks = {name: rng.random((9, 8, 7)) < 0.4 for name in ("ionic", "cytotoxic", "necrosis")}
    parts = atoms(masks)
    assert sum(part.sum() for part in parts.values()) == np.logical_or.reduce(list(masks.values())).sum()
    for expression in ("ionic - necrosis", "ionic & necrosis | cytotoxic", "necrosis - (ionic | cytotoxic)"):
        members = {name: np.array([name in names for names in parts]) for name in masks}
        use = combine(members, expression)
        union = np.logical_or.reduce([part for part, wanted in zip(parts.values(), use, strict=True) if wanted])
        np.testing.assert_array_equal(union, combine(masks, expression))
