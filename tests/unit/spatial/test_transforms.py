"""Names, errors and decomposition of transforms."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid
from bids_sodium.core.errors import EstimationError, GeometryError
from bids_sodium.spatial.transforms import Affine, Chain, Warp, distance_mm, renamed, rigid_from_parameters


def _step(target: str, source: str) -> Affine:
    return rigid_from_parameters((3.0, -4.0, 5.0), (1.0, 2.0, 3.0), target=target, source=source)


def _swirl(target: str, source: str, *, size_mm: float = 3.0) -> Warp:
    grid = Grid.centred((24, 24, 24), 4.0)
    x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    bell = size_mm * np.exp(-(x**2 + y**2 + z**2) / (2 * 14.0**2))
    return Warp(np.stack([bell, -bell, 0.5 * bell], axis=-1), grid, target, source)


def test_names_must_meet() -> None:
    with pytest.raises(GeometryError, match=r"t1w_from_pd @ flair_from_na.*'pd'.*'flair'"):
        _step("t1w", "pd") @ _step("flair", "na")


def test_affine_after_affine_is_one_affine() -> None:
    whole = _step("t1w", "pd") @ _step("pd", "na")
    assert isinstance(whole, Affine)
    assert (whole.target, whole.source) == ("t1w", "na")
    point = np.array([10.0, -20.0, 30.0])
    assert np.allclose(whole.apply(point), _step("t1w", "pd").apply(_step("pd", "na").apply(point)))


def test_a_chain_folds_its_affine_neighbours() -> None:
    chain = _swirl("mni", "aligned") @ _step("aligned", "t1w") @ _step("t1w", "na")
    assert isinstance(chain, Chain)
    assert len(chain.links) == 2
    assert (chain.target, chain.source) == ("mni", "na")
    assert isinstance(chain.inverse() @ _swirl("mni", "atlas"), Chain)


def test_chain_refuses_links_that_do_not_meet() -> None:
    with pytest.raises(GeometryError, match="does not meet"):
        Chain((_step("a", "b"), _step("c", "d")))
    with pytest.raises(GeometryError, match="at least one"):
        Chain(())


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.zeros((4, 4)), "last row"),
        (np.diag([1.0, 1.0, 0.0, 1.0]), "singular"),
        (np.full((4, 4), np.nan), "finite"),
        (np.eye(3), "4 x 4"),
    ],
)
def test_bad_matrix_is_refused(matrix: np.ndarray, words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        Affine(matrix, "b", "a")


def test_an_affine_cannot_be_changed_from_outside() -> None:
    matrix = np.eye(4)
    still = Affine(matrix, "b", "a")
    matrix[0, 3] = 5.0
    assert still.apply([0.0, 0.0, 0.0]).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="read-only"):
        still.matrix[0, 3] = 5.0


def test_motion_gives_the_parameters_back() -> None:
    centre = np.array([3.0, -20.0, 15.0])
    step = rigid_from_parameters((4.0, -7.0, 11.0), (5.0, 6.0, -7.0), target="b", source="a", centre_mm=centre)
    motion = step.motion(centre)
    assert motion.rotation_deg == pytest.approx((4.0, -7.0, 11.0))
    assert motion.translation_mm == pytest.approx((5.0, 6.0, -7.0))
    assert motion.distance_mm == pytest.approx(np.sqrt(110.0))
    assert motion.stretch == pytest.approx((1.0, 1.0, 1.0))


def test_motion_of_a_tiny_turn_keeps_its_digits() -> None:
    step = rigid_from_parameters((1e-6, 0.0, 0.0), (0.0, 0.0, 0.0), target="b", source="a")
    assert step.motion().angle_deg == pytest.approx(1e-6, rel=1e-6)


def test_motion_separates_stretch_from_turn() -> None:
    turn = rigid_from_parameters((0.0, 0.0, 20.0), (0.0, 0.0, 0.0), target="b", source="a")
    matrix = turn.matrix @ np.diag([1.1, 0.9, 1.0, 1.0])
    motion = Affine(matrix, "b", "a").motion()
    assert motion.angle_deg == pytest.approx(20.0)
    assert motion.stretch == pytest.approx((0.9, 1.0, 1.1))


def test_a_mirror_is_no_motion_and_has_no_half() -> None:
    flip = Affine(np.diag([-1.0, 1.0, 1.0, 1.0]), "a", "a")
    with pytest.raises(GeometryError, match="mirrors"):
        flip.motion()
    with pytest.raises(GeometryError, match="half of the way"):
        flip.sqrt()


def test_warp_field_must_fit_its_grid_and_be_finite() -> None:
    grid = Grid.centred((4, 4, 4), 2.0)
    with pytest.raises(GeometryError, match="shape"):
        Warp(np.zeros((4, 4, 4)), grid, "b", "a")
    field = np.zeros((4, 4, 4, 3))
    field[0, 0, 0, 0] = np.inf
    with pytest.raises(GeometryError, match="1 grid point"):
        Warp(field, grid, "b", "a")


def test_warp_inverse_is_computed_once_and_kept() -> None:
    bend = _swirl("b", "a").with_inverse()
    assert bend.with_inverse() is bend
    back = bend.inverse()
    assert (back.target, back.source) == ("a", "b")
    assert np.array_equal(back.inverse().displacement_mm, bend.displacement_mm)


def test_a_warp_that_folds_has_no_inverse() -> None:
    fold = _swirl("b", "a", size_mm=60.0)
    assert fold.jacobian().min() < 0.0
    with pytest.raises(EstimationError, match="cannot be inverted"):
        fold.inverse()


def test_jacobian_of_no_displacement_is_one() -> None:
    grid = Grid((6, 5, 4), np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 1], [0, 0, 1.5, 2], [0, 0, 0, 1]]))
    assert np.allclose(Warp(np.zeros((6, 5, 4, 3)), grid, "b", "a").jacobian(), 1.0)


def test_distance_needs_the_same_frames() -> None:
    with pytest.raises(GeometryError, match="other frames"):
        distance_mm(_step("b", "a"), _step("c", "a"), np.zeros(3))


def test_renaming_changes_only_names() -> None:
    chain = _swirl("mni", "aligned") @ _step("aligned", "t1w")
    other = renamed(chain, target="atlas", source="native")
    assert (other.target, other.source) == ("atlas", "native")
    point = np.array([4.0, 5.0, 6.0])
    assert np.array_equal(other.apply(point), chain.apply(point))
