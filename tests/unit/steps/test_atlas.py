"""Regions of an atlas get the mean of their voxels and of their mirror image, in any space and with any numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_sodium.bidsio.atlases import Atlas, given, read_atlas
from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_table, read_volume, write_volume
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.spatial.mirror import mirror_transform
from bids_sodium.spatial.transforms import Affine, rigid_from_parameters
from bids_sodium.steps._atlas import atlas_rows, table_of
from bids_sodium.steps.records import Record

MNI = Grid.centred((41, 41, 41), 2.0)
T1W = Grid.centred((41, 41, 41), 2.0)


def labels() -> np.ndarray:
    data = np.zeros(MNI.shape, np.int16)
    data[8:14, 18:24, 18:24] = 7  # left
    data[27:33, 18:24, 18:24] = 1007  # its mirror image
    data[20:22, 2:4, 2:4] = 12  # small
    return data


def write(tmp_path: Path, data: np.ndarray, name: str = "tpl-MNI152NLin2009aSym_dseg", table: str = "") -> Atlas:
    path = tmp_path / f"{name}.nii.gz"
    write_volume(path, Volume(data, MNI), dtype=data.dtype)
    if table:
        table_of(path).write_text(table)
    (atlas,) = given([("lobes", path)])
    return atlas


def rows_of(
    atlas: Atlas, images: dict[str, np.ndarray], tmp_path: Path, mni_from_t1w: Affine
) -> list[dict[str, object]]:
    return atlas_rows(
        [(atlas, tmp_path / "out" / "sub-01_atlas-lobes_dseg.nii.gz")],
        images,
        T1W,
        mni_from_t1w=mni_from_t1w,
        mirror=mirror_transform(mni_from_t1w),
        resolution_ml=dict.fromkeys(images, 0.05),
        minimum_ml=0.5,
        roots=Roots(output=tmp_path / "out"),
        record=Record(),
    )


def test_regions_of_a_template_atlas_follow_the_participant(tmp_path: Path) -> None:
    move = rigid_from_parameters((0, 0, 0), (4.0, 2.0, -6.0), target="MNI152NLin2009aSym", source="T1w")
    atlas = write(tmp_path, labels(), table="index\tname\n7\tleft thing\n1007\tright thing\n")
    where = move.apply(T1W.world(np.moveaxis(np.indices(T1W.shape), 0, -1).astype(float)))
    image = np.where(where[..., 0] < 0, 30.0, 40.0)
    rows = rows_of(atlas, {"tsc": image}, tmp_path, move)
    by_name = {str(row["roi"]): row for row in rows}
    assert list(by_name) == ["lobes:left thing", "lobes:12", "lobes:right thing"]
    left, right = by_name["lobes:left thing"], by_name["lobes:right thing"]
    assert (left["ipsi"], left["contra"]) == (30.0, 40.0)
    assert (right["ipsi"], right["contra"]) == (40.0, 30.0)
    assert left["percent_change"] == pytest.approx(-25.0)
    assert left["percent_se"] == pytest.approx(0.0)
    assert left["volume_ml"] == pytest.approx(6**3 * 0.008)
    assert left["kept"] == 1
    assert by_name["lobes:12"]["kept"] == 0
    assert by_name["lobes:12"]["reason"] == "volume 0.064 mL is below 0.5 mL"
    here = np.asarray(read_volume(tmp_path / "out/sub-01_atlas-lobes_dseg.nii.gz").data)
    table = read_table(tmp_path / "out/sub-01_atlas-lobes_dseg.tsv")
    assert list(table["name"]) == ["left thing", "12", "right thing"]
    assert (here == 1).sum() == 6**3


def test_atlas_on_the_t1w_image_stays_where_it_is(tmp_path: Path) -> None:
    move = rigid_from_parameters((0, 0, 0), (4.0, 2.0, -6.0), target="MNI152NLin2009aSym", source="T1w")
    atlas = write(tmp_path, labels(), name="sub-01_space-T1w_atlas-lobes_dseg")
    image = (labels() == 7) * 50.0
    rows = rows_of(atlas, {"na": image}, tmp_path, move)
    assert rows[0]["roi"] == "lobes:7"
    assert (rows[0]["ipsi"], rows[0]["n_voxels"]) == (50.0, 6**3)


def test_region_that_no_image_covers_is_left_out_with_its_reason(tmp_path: Path) -> None:
    atlas = write(tmp_path, labels())
    still = Affine.identity("MNI152NLin2009aSym", "T1w")
    image = np.where(labels() == 7, np.nan, 1.0)
    rows = {row["roi"]: row for row in rows_of(atlas, {"adc": image}, tmp_path, still)}
    assert rows["lobes:7"]["n_voxels"] == 0
    assert rows["lobes:7"]["reason"] == "no value in the region or its mirror image"
    cut = Grid((10, 41, 41), MNI.affine)
    shifted = Affine(np.diag([1.0, 1, 1, 1]), "MNI152NLin2009aSym", "T1w")
    part = atlas_rows(
        [(atlas, tmp_path / "out" / "x_dseg.nii.gz")],
        {"tsc": np.ones(cut.shape)},
        cut,
        mni_from_t1w=shifted,
        mirror=mirror_transform(shifted),
        resolution_ml={"tsc": 0.0},
        minimum_ml=0.1,
        roots=Roots(output=tmp_path),
        record=Record(),
    )
    reasons = {row["roi"]: row["reason"] for row in part}
    assert reasons["lobes:1007"] == "the region does not lie in the T1w image"


def test_atlas_far_from_the_head_is_refused(tmp_path: Path) -> None:
    far = rigid_from_parameters((0, 0, 0), (900.0, 0.0, 0.0), target="MNI152NLin2009aSym", source="T1w")
    with pytest.raises(GeometryError, match="no part of the atlas lies in the T1w image"):
        rows_of(write(tmp_path, labels()), {"tsc": np.ones(T1W.shape)}, tmp_path, far)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data * 0, "holds 0 regions"),
        (lambda data: data - 1, "one whole number a voxel"),
        (lambda data: data.astype(np.float32) + 0.5, "was it interpolated"),
        (lambda data: np.arange(data.size, dtype=np.int32).reshape(data.shape), "is it a label image"),
        (lambda data: np.stack([data, data], axis=-1), "maximum-probability"),
    ],
)
def test_what_is_no_atlas_is_refused(tmp_path: Path, change: object, message: str) -> None:
    data = change(labels())  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        read_atlas(write(tmp_path, data))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("index\tname\n7\tthing\n1007\tthing\n12\tx\n", "two regions have the name 'lobes:thing'"),
        ("number\tname\n7\tthing\n", "BIDS asks for index and name"),
        ("index\tname\nseven\tthing\n", "no whole number"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_atlas(write(tmp_path, labels(), table=table))
