"""Transforms on disk: ITK reads what is written, and both directions come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from bids_sodium.bidsio.files import read_transform, read_volume, write_transform, write_volume
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine, Transform, Warp, rigid_from_parameters

LPS = np.array([-1.0, -1.0, 1.0])


def _affine() -> Affine:
    turn = rigid_from_parameters((5.0, -6.0, 7.0), (4.0, -5.0, 6.0), target="aligned", source="t1w")
    return Affine(turn.matrix @ np.diag([1.1, 0.95, 1.02, 1.0]), "aligned", "t1w")


def _warp(target: str = "mni", source: str = "aligned") -> Warp:
    turn = rigid_from_parameters((10.0, 0.0, -20.0), (2.0, 3.0, 4.0), target="w", source="i").matrix
    grid = Grid((30, 34, 28), turn @ Grid.centred((30, 34, 28), 4.0).affine)
    x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    bell = 5.0 * np.exp(-((x - 5) ** 2 + y**2 + (z + 4) ** 2) / (2 * 13.0**2))
    return Warp(np.stack([bell, -0.6 * bell, 0.4 * bell], axis=-1), grid, target, source).with_inverse()


def _points() -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(-50, 50, (300, 3))


@pytest.mark.parametrize("name", ["xfm.txt", "xfm.h5"])
def test_an_affine_comes_back(tmp_path: Path, name: str) -> None:
    written = _affine()
    again = read_transform(write_transform(tmp_path / name, written), "aligned", "t1w")
    assert isinstance(again, Affine)
    assert (again.target, again.source) == ("aligned", "t1w")
    assert np.allclose(again.matrix, written.matrix, atol=1e-10)


@pytest.mark.parametrize(
    "transform", [_warp(), _warp() @ _affine(), _affine().inverse() @ _warp("aligned", "aligned") @ _affine()]
)
def test_both_directions_of_a_warp_come_back(tmp_path: Path, transform: Transform) -> None:
    again = read_transform(write_transform(tmp_path / "xfm.h5", transform), "x", "y")
    assert (again.target, again.source) == ("x", "y")
    assert np.abs(again.apply(_points()) - transform.apply(_points())).max() < 1e-6
    assert np.abs(again.inverse().apply(_points()) - transform.inverse().apply(_points())).max() < 1e-6


@pytest.mark.parametrize(
    ("name", "transform"), [("a.txt", _affine()), ("a.h5", _affine()), ("w.h5", _warp() @ _affine())]
)
def test_itk_finds_the_points_of_the_target_in_the_source(tmp_path: Path, name: str, transform: Transform) -> None:
    itk = sitk.ReadTransform(str(write_transform(tmp_path / name, transform)))
    seen = np.array([itk.TransformPoint(tuple(point * LPS)) for point in _points()]) * LPS
    assert np.abs(seen - transform.inverse().apply(_points())).max() < 1e-6


def test_itk_resamples_as_we_do(tmp_path: Path) -> None:
    """From files alone: NIfTI images and the transform, in ITK's own coordinates."""
    source = Grid((40, 42, 38), np.array([[-3.0, 0, 0, 60], [0, 3.0, 0, -65], [0, 0, 3.0, -55], [0, 0, 0, 1]]))
    target = Grid.centred((30, 32, 28), 3.3)
    noise = np.random.default_rng(1).normal(size=source.shape)
    image = Volume((10 + 30 * ndimage.gaussian_filter(noise, 2.0)).astype(np.float32), source)
    chain = _warp() @ _affine()
    write_volume(tmp_path / "image.nii.gz", image)
    write_volume(tmp_path / "target.nii.gz", Volume(np.zeros(target.shape), target))
    write_transform(tmp_path / "xfm.h5", chain)

    moved = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "image.nii.gz")),
        sitk.ReadImage(str(tmp_path / "target.nii.gz")),
        sitk.ReadTransform(str(tmp_path / "xfm.h5")),
        sitk.sitkLinear,
        0.0,
    )
    ours = resample(read_volume(tmp_path / "image.nii.gz"), target, chain.inverse(), average=False)
    theirs = sitk.GetArrayFromImage(moved).T
    assert (theirs != 0).mean() > 0.9
    assert np.abs(ours.data - theirs)[(ours.data != 0) & (theirs != 0)].max() < 2e-3
    assert ((ours.data != 0) != (theirs != 0)).mean() < 1e-3


def test_transforms_of_others_are_understood(tmp_path: Path) -> None:
    euler = sitk.Euler3DTransform((10.0, -20.0, 5.0), 0.1, -0.2, 0.3, (4.0, 5.0, 6.0))
    shift = sitk.TranslationTransform(3, (1.0, 2.0, 3.0))
    sitk.WriteTransform(sitk.CompositeTransform([euler, shift]), str(tmp_path / "theirs.tfm"))
    back = read_transform(tmp_path / "theirs.tfm", "t1w", "na").inverse()
    assert isinstance(back, Affine)
    expected = np.array([euler.TransformPoint(shift.TransformPoint(tuple(point * LPS))) for point in _points()]) * LPS
    assert np.abs(back.apply(_points()) - expected).max() < 1e-9


def test_a_field_without_its_inverse_is_inverted(tmp_path: Path) -> None:
    grid = Grid.centred((24, 24, 24), 4.0)
    x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    field = np.zeros((*grid.shape, 3))
    field[..., 1] = 4.0 * np.exp(-(x**2 + y**2 + z**2) / (2 * 12.0**2))
    values = sitk.GetImageFromArray(np.ascontiguousarray(field.transpose(2, 1, 0, 3) * LPS), isVector=True)
    values.SetSpacing((4.0, 4.0, 4.0))
    values.SetDirection(np.diag(LPS).ravel().tolist())
    values.SetOrigin((grid.affine[:3, 3] * LPS).tolist())
    sitk.WriteTransform(sitk.DisplacementFieldTransform(values), str(tmp_path / "theirs.h5"))
    found = read_transform(tmp_path / "theirs.h5", "t1w", "na")
    assert np.allclose(found.inverse().apply([0.0, 0.0, 0.0]), [0.0, 4.0, 0.0], atol=1e-5)
    assert np.allclose(found.apply([0.0, 4.0, 0.0]), [0.0, 0.0, 0.0], atol=0.02)


def test_the_same_transform_makes_the_same_file(tmp_path: Path) -> None:
    chain = _warp() @ _affine()
    first, second = (write_transform(tmp_path / name, chain).read_bytes() for name in ("a.h5", "b.h5"))
    assert first == second


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"affine transform only.*name it \.h5"):
        write_transform(tmp_path / "xfm.txt", _warp())
    with pytest.raises(DataError, match=r"'\.mat'"):
        write_transform(tmp_path / "xfm.mat", _affine())
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_transform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_transform(tmp_path / "none.txt", "a", "b")
    for name in ("bad.txt", "bad.h5"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(DataError, match="cannot be read as a transform"):
            read_transform(tmp_path / name, "a", "b")


def test_kinds_without_a_closed_form_are_refused(tmp_path: Path) -> None:
    spline = sitk.BSplineTransformInitializer(sitk.Image([16, 16, 16], sitk.sitkFloat32), [3, 3, 3])
    sitk.WriteTransform(spline, str(tmp_path / "spline.tfm"))
    with pytest.raises(DataError, match="not understood"):
        read_transform(tmp_path / "spline.tfm", "a", "b")
