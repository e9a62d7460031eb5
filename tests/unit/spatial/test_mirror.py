"""The other side: shapes, names, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import EstimationError, GeometryError
from bids_sodium.spatial.mirror import contralateral, mid_sagittal_mirror, mirror_transform
from bids_sodium.spatial.transforms import Affine, rigid_from_parameters

FLIP = Affine(np.diag([-1.0, 1.0, 1.0, 1.0]), "t1w", "t1w")


def test_the_mirror_keeps_the_plane_in_place() -> None:
    pose = rigid_from_parameters((5.0, 10.0, -15.0), (3.0, 4.0, 5.0), target="mni", source="na")
    mirror = mirror_transform(pose)
    assert (mirror.target, mirror.source) == ("na", "na")
    on_plane = pose.inverse().apply(np.array([[0.0, 30.0, -10.0], [0.0, -50.0, 40.0]]))
    assert np.allclose(mirror.apply(on_plane), on_plane)


def test_a_region_must_fit_and_have_another_side() -> None:
    grid = Grid.centred((10, 10, 10), 2.0)
    with pytest.raises(GeometryError, match="mask of shape"):
        contralateral(np.ones((3, 3, 3), dtype=bool), grid, FLIP)
    edge = np.zeros(grid.shape, dtype=bool)
    edge[0] = True
    half = Grid(grid.shape, grid.affine + np.eye(4, k=3) * 9.0)
    with pytest.raises(EstimationError, match="100 voxels"):
        contralateral(edge[::-1], half, FLIP)
    assert not contralateral(np.zeros(grid.shape, dtype=bool), grid, FLIP).any()


def test_what_is_not_symmetric_has_no_plane() -> None:
    noise = np.random.default_rng(0).random((24, 24, 24))
    with pytest.raises(EstimationError, match="determine a transform"):
        mid_sagittal_mirror(Volume(noise, Grid.centred((24, 24, 24), 6.0)))
