"""FSL and FreeSurfer transforms come back as they were written, whatever the axes of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_sodium.bidsio.files import write_transform
from bids_sodium.bidsio.linear_transforms import read_any, read_flirt, read_lta, write_flirt, write_lta
from bids_sodium.core.data import Grid
from bids_sodium.core.errors import DataError
from bids_sodium.spatial.transforms import Affine, rigid_from_parameters


def grid(
    voxel_mm: tuple[float, float, float], turn_deg: tuple[float, float, float], shape: tuple[int, int, int]
) -> Grid:
    turn = rigid_from_parameters(turn_deg, (-20.0, 30.0, -40.0), target="w", source="i").matrix
    return Grid(shape, turn @ np.diag([*voxel_mm, 1.0]))


RIGHT = grid((1.0, 1.1, 1.2), (10.0, 3.0, -8.0), (160, 180, 130))
LEFT = grid((-3.0, 3.0, 4.0), (-4.0, 2.0, 12.0), (60, 64, 40))
MOVE = rigid_from_parameters((5.0, -6.0, 7.0), (4.0, -5.0, 6.0), target="T1w", source="23Na")
STRETCH = Affine(MOVE.matrix @ np.diag([1.1, 0.9, 1.05, 1.0]), "T1w", "23Na")
PAIRS = [(RIGHT, LEFT), (LEFT, RIGHT), (RIGHT, RIGHT), (LEFT, LEFT)]


@pytest.mark.parametrize("name", ["x.mat", "x.lta", "x.txt"])
@pytest.mark.parametrize(("target", "source"), PAIRS)
def test_what_is_written_comes_back(tmp_path: Path, name: str, target: Grid, source: Grid) -> None:
    grids = {"target_grid": target, "source_grid": source}
    if name == "x.txt":
        write_transform(tmp_path / name, STRETCH)
    else:
        (write_flirt if name == "x.mat" else write_lta)(tmp_path / name, STRETCH, **grids)
    again = read_any(tmp_path / name, "T1w", "23Na", **grids)
    assert isinstance(again, Affine)
    assert (again.target, again.source) == ("T1w", "23Na")
    np.testing.assert_allclose(again.matrix, STRETCH.matrix, atol=1e-8)


def test_flirt_of_one_image_onto_itself_is_the_identity(tmp_path: Path) -> None:
    still = Affine.identity("b", "a")
    path = write_flirt(tmp_path / "x.mat", still, target_grid=LEFT, source_grid=LEFT)
    np.testing.assert_allclose(np.loadtxt(path), np.eye(4), atol=1e-10)
    # the first axis runs the other way: FSL turns it round, so the matrix is the identity again
    mirrored = Grid(RIGHT.shape, RIGHT.affine @ np.diag([-1.0, 1, 1, 1]))
    path = write_flirt(tmp_path / "y.mat", still, target_grid=mirrored, source_grid=mirrored)
    np.testing.assert_allclose(np.loadtxt(path), np.eye(4), atol=1e-10)


def test_lta_between_voxels_is_that_between_worlds(tmp_path: Path) -> None:
    path = write_lta(tmp_path / "x.lta", STRETCH, target_grid=RIGHT, source_grid=LEFT)
    voxels = np.linalg.inv(RIGHT.affine) @ STRETCH.matrix @ LEFT.affine
    lines = path.read_text().replace("type      = 1", "type      = 0").splitlines()
    lines[5:9] = [" ".join(f"{value:.15e}" for value in row) for row in voxels]
    path.write_text("\n".join(lines))
    np.testing.assert_allclose(read_lta(path, "T1w", "23Na").matrix, STRETCH.matrix, atol=1e-8)
    path.write_text("\n".join(line for line in lines if not line.startswith("cras")))
    with pytest.raises(DataError, match="lacks the cras of a volume"):
        read_lta(path, "T1w", "23Na")


def test_what_is_no_transform_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.lta"
    path.write_text("type      = 14\nnxforms   = 1\n1 4 4\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    with pytest.raises(DataError, match=r"type 14; 0 .voxel to voxel. or 1 .RAS to RAS."):
        read_lta(path, "b", "a")
    path.write_text("nothing")
    with pytest.raises(DataError, match="is no LTA of one transform"):
        read_lta(path, "b", "a")
    grids = {"target_grid": LEFT, "source_grid": RIGHT}
    matrix = tmp_path / "x.mat"
    for text, message in (
        ("1 0 0 0\n0 1 0 0\n", "is no FLIRT matrix"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1\n", "its last row is"),
        ("0 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "singular"),
    ):
        matrix.write_text(text)
        with pytest.raises(DataError, match=message):
            read_flirt(matrix, "b", "a", **grids)
    with pytest.raises(DataError, match="no such transform"):
        read_any(tmp_path / "none.lta", "b", "a", **grids)
