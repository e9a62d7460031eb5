"""The template and its deep grey prior."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import Grid
from bids_sodium.core.errors import GeometryError
from bids_sodium.tissue.priors import NUCLEI, DeepGreyParams, deep_grey_prior, nucleus_share


def test_fractions_fill_the_brain_and_nothing_else() -> None:
    head = load_head_template()
    total = head.gm + head.wm + head.csf
    assert np.allclose(total[head.brain], 1.0, atol=1e-5)
    assert not total[~head.brain].any()
    assert head.csf.min() >= 0
    assert head.brain[head.t1 > 0].all()


def test_template_is_symmetric_and_shared_by_the_process() -> None:
    head = load_head_template()
    centre = head.grid.index(np.zeros(3))[0]
    assert centre == (head.grid.shape[0] - 1) / 2
    for array in (head.t1, head.gm, head.wm, head.csf, head.deep, head.brain):
        assert np.array_equal(array, array[::-1])
        assert not array.flags.writeable
    assert load_head_template() is head


def test_volumes_are_those_of_the_template_and_of_atlases() -> None:
    head = load_head_template()
    assert head.brain.sum() / 1000 == pytest.approx(1885, rel=0.02)
    expected = {"thalamus": 7.5, "caudate": 3.5, "putamen": 5.0, "pallidum": 1.7}
    grid = Grid.centred((90, 110, 80), 1.0)
    points = grid.world(np.stack(np.indices(grid.shape), axis=-1).astype(float))
    for name, volume_ml in expected.items():
        parts = [nucleus_share(n, points) for n in NUCLEI if n.name == name]
        assert np.max(parts, axis=0).sum() / 2000 == pytest.approx(volume_ml, rel=0.15), name


def test_nuclei_lie_in_the_brain_and_hold_deep_grey_matter() -> None:
    head = load_head_template()
    assert not head.deep[~head.brain].any()
    assert not head.deep[head.gm == 0].any()
    deep_ml = float((head.deep * (head.gm + head.wm)).sum()) / 1000
    assert 30 < deep_ml < 40
    # Ventricles and cisterns are not deep grey matter.
    assert float((head.deep * head.csf).sum()) < 0.08 * 1000 * deep_ml


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_prior_does_not_depend_on_the_orientation_of_the_grid(flip: tuple[int, int, int]) -> None:
    grid = Grid.centred((60, 70, 60), 2.0)
    turned = Grid(
        grid.shape,
        grid.affine @ np.diag([*flip, 1])
        + np.array(
            [[0, 0, 0, grid.affine[i, i] * (grid.shape[i] - 1) if f < 0 else 0] for i, f in enumerate(flip)] + [[0] * 4]
        ),
    )
    gm = np.ones(grid.shape)
    index = tuple(slice(None, None, f) for f in flip)
    assert np.allclose(deep_grey_prior(gm, turned), deep_grey_prior(gm, grid)[index], atol=1e-6)


def test_prior_is_a_share_with_a_smooth_edge_and_refuses_another_lattice() -> None:
    grid = Grid.centred((100, 120, 80), 1.0)
    share = deep_grey_prior(np.ones(grid.shape), grid, DeepGreyParams(edge_mm=1.0))
    assert share.min() >= 0
    assert share.max() <= 1
    assert np.abs(np.diff(share, axis=2)).max() < 0.5
    with pytest.raises(GeometryError, match="grid"):
        deep_grey_prior(np.ones((4, 4, 4)), grid)
