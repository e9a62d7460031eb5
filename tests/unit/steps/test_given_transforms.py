"""Transforms of other programs are taken as they are, and those of the app are written as FSL and FreeSurfer do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, write_transform, write_volume
from bids_sodium.bidsio.linear_transforms import read_any, write_flirt, write_lta
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.spatial.transforms import Affine, Transform, Warp, rigid_from_parameters
from bids_sodium.steps import align
from bids_sodium.steps.records import read_record

T1W = Grid.centred((24, 28, 24), 8.0)
NA = Grid(
    (16, 16, 16),
    rigid_from_parameters((8, -6, 4), (-60, -70, -50), target="w", source="i").matrix @ np.diag([-10, 10, 10, 1.0]),
)
POSE = rigid_from_parameters((5.0, -4.0, 3.0), (6.0, -5.0, 2.0), target="T1w", source="23Na")
GRIDS: Any = {"target_grid": T1W, "source_grid": NA}


def run(tmp_path: Path, given: Path, exports: tuple[tuple[str, Path], ...] = ()) -> Transform:
    for name, grid in (("T1w", T1W), ("23Na", NA)):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(np.random.default_rng(0).uniform(1, 2, grid.shape), grid))
    files = align.Files(
        anatomy=tmp_path / "T1w.nii.gz",
        anatomy_name="T1w",
        brain=None,
        links=(align.Link(name="23Na", image=tmp_path / "23Na.nii.gz", to="anatomy", given=given),),
        transforms=(("23Na", tmp_path / "out.txt"),),
        exports=exports,
        sodium="23Na",
        head=tmp_path / "head.nii.gz",
        record=tmp_path / "record.json",
        roots=Roots(output=tmp_path),
    )
    align.run(files, align.Params())
    return read_transform(tmp_path / "out.txt", "T1w", "23Na")


@pytest.mark.parametrize("name", ["given.mat", "given.lta", "given.txt"])
def test_a_given_transform_is_taken_and_said(tmp_path: Path, name: str) -> None:
    given = tmp_path / name
    if name == "given.txt":
        write_transform(given, POSE)
    else:
        (write_lta if name.endswith("lta") else write_flirt)(given, POSE, **GRIDS)
    found = run(tmp_path, given)
    assert isinstance(found, Affine)
    np.testing.assert_allclose(found.matrix, POSE.matrix, atol=1e-6)  # headers are single precision
    record = read_record(tmp_path / "record.json")
    (told,) = [measure for measure in record.measures if measure.name == "registration_given_23Na_to_T1w"]
    assert name in told.note
    assert not any(measure.name.startswith("registration_metric") for measure in record.measures)
    assert record.values["target_error_mm"] == {"23Na": None}


def test_exports_hold_the_same_map(tmp_path: Path) -> None:
    given = write_transform(tmp_path / "given.txt", POSE)
    exports = (("23Na", tmp_path / "out.mat"), ("23Na", tmp_path / "out.lta"), ("dwi", tmp_path / "not.lta"))
    run(tmp_path, given, exports)
    for _, place in exports[:2]:
        again = read_any(place, "T1w", "23Na", **GRIDS)
        assert isinstance(again, Affine)
        np.testing.assert_allclose(again.matrix, POSE.matrix, atol=1e-6)
    assert not exports[2][1].exists()


def test_a_given_deformation_is_refused(tmp_path: Path) -> None:
    field = np.zeros((*T1W.shape, 3), np.float32)
    given = write_transform(tmp_path / "given.h5", Warp(field, T1W, "T1w", "23Na"))
    with pytest.raises(DataError, match=r"given\.h5: holds a deformation"):
        run(tmp_path, given)
