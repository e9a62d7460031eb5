"""Lesions become white matter, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.tissue.filling import FillingParams, check_lesions, fill

SHAPE = (60, 60, 60)
PARAMS = FillingParams()
METHODS = (PARAMS, FillingParams(method="patch"))


def scene(noise: float = 20.0) -> tuple[Volume, np.ndarray, np.ndarray, np.ndarray]:
    """A white matter ball with a bias field in grey matter, and two lesions, one of them at its rim."""
    x, y, z = np.indices(SHAPE)
    r = np.sqrt((x - 30.0) ** 2 + (y - 30.0) ** 2 + (z - 30.0) ** 2)
    white = (r < 22).astype(np.float32)
    clean = np.where(r < 22, 800.0, 550.0) * (1 + 0.004 * (x - 30))
    lesions = (x - 25) ** 2 + (y - 30) ** 2 + (z - 30) ** 2 < 36
    lesions |= (x - 30) ** 2 + (y - 50) ** 2 + (z - 30) ** 2 < 16
    seen = np.where(lesions, 400.0, clean) + np.random.default_rng(0).normal(0, noise, SHAPE)
    return Volume(seen.astype(np.float32), Grid.centred(SHAPE, 1.0)), lesions, white, clean


@pytest.mark.parametrize("params", METHODS, ids=lambda params: params.method)
def test_fill_recovers_the_white_matter_and_its_noise(params: FillingParams) -> None:
    t1w, lesions, white, clean = scene()
    filled = fill(t1w, lesions, white, params, np.random.default_rng(1))
    inside = lesions & (white > 0.5)
    error = (filled.data - clean)[inside]
    assert abs(error.mean()) < 4.0
    assert error.std() == pytest.approx(20.0, rel=0.2)


def test_nothing_changes_outside_the_lesions_or_in_grey_matter() -> None:
    t1w, lesions, white, _ = scene()
    before = t1w.data.copy()
    filled = fill(t1w, lesions, white, PARAMS, np.random.default_rng(1))
    untouched = ~lesions | (white == 0)
    np.testing.assert_array_equal(filled.data[untouched], t1w.data[untouched])
    np.testing.assert_array_equal(t1w.data, before)


@pytest.mark.parametrize("params", METHODS, ids=lambda params: params.method)
def test_lesion_in_a_soft_border_gets_the_mixture_of_other_voxels_there(params: FillingParams) -> None:
    """White and grey matter mix over 8 voxels, and the prior says how; the fill is as dark as the prior is believed."""
    x, y, z = np.indices(SHAPE)
    white = np.clip((34.0 - x) / 8.0, 0.0, 1.0).astype(np.float32)
    clean = 550.0 + 250.0 * white
    lesions = ((x - 28) ** 2 + (y - 30) ** 2 + (z - 30) ** 2 < 36) & (white >= 0.5)
    seen = np.where(lesions, 400.0, clean) + np.random.default_rng(0).normal(0, 5, SHAPE)
    image = Volume(seen.astype(np.float32), Grid.centred(SHAPE, 1.0))
    mixed = lesions & (white < 0.9)
    error = {}
    for share in (0.0, params.other_tissue, 1.0):
        own = replace(params, other_tissue=share)
        filled = fill(image, lesions, white, own, np.random.default_rng(1)).data
        error[share] = float((filled - clean)[mixed].mean())
    lack = float(250.0 * (1.0 - white[mixed]).mean())
    assert error[0.0] == pytest.approx(lack, rel=0.1)
    assert error[params.other_tissue] == pytest.approx((1.0 - params.other_tissue) * lack, abs=0.1 * lack)
    assert abs(error[1.0]) < 0.1 * lack


@pytest.mark.parametrize("params", METHODS, ids=lambda params: params.method)
def test_the_outer_half_of_a_soft_lesion_is_taken_off_too(params: FillingParams) -> None:
    """A mask drawn where a voxel is half lesion leaves the rest of the lesion's border beside it."""
    x, y, z = np.indices(SHAPE)
    depth = 8.0 - np.sqrt((x - 30.0) ** 2 + (y - 30.0) ** 2 + (z - 30.0) ** 2)
    share = np.clip(0.5 + depth / 3.0, 0.0, 1.0)
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    image = Volume((800.0 - 400.0 * share + noise).astype(np.float32), Grid.centred(SHAPE, 1.0))
    filled = fill(image, share >= 0.5, np.ones(SHAPE), params, np.random.default_rng(1))
    error = filled.data - 800.0
    beside = (share > 0) & (share < 0.5)
    assert (image.data[beside] - 800.0).mean() < -60.0
    assert abs(error[beside].mean()) < 6.0
    assert abs(error[share > 0].mean()) < 3.0
    np.testing.assert_array_equal(filled.data[depth < -3.0], image.data[depth < -3.0])


def test_partial_lesion_is_replaced_by_its_share() -> None:
    t1w, lesions, white, _ = scene(noise=0.0)
    half = fill(t1w, 0.5 * lesions, white, PARAMS, np.random.default_rng(1))
    whole = fill(t1w, lesions, white, PARAMS, np.random.default_rng(1))
    np.testing.assert_allclose(half.data, 0.5 * (t1w.data + whole.data), rtol=0.02)


@pytest.mark.parametrize("params", METHODS, ids=lambda params: params.method)
def test_same_seed_same_fill(params: FillingParams) -> None:
    t1w, lesions, white, _ = scene()
    first, second = (fill(t1w, lesions, white, params, np.random.default_rng(7)).data for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_lesion_wider_than_the_kernel_is_filled_from_afar() -> None:
    t1w, _, _, _ = scene()
    x, y, z = np.indices(SHAPE)
    lesions = (x - 30) ** 2 + (y - 30) ** 2 + (z - 30) ** 2 < 20**2
    image = t1w.with_data(np.where(lesions, 100.0, 800.0).astype(np.float32))
    filled = fill(image, lesions, np.ones(SHAPE), PARAMS, np.random.default_rng(0))
    np.testing.assert_allclose(filled.data, 800.0, rtol=1e-3)


def test_no_lesion_no_change() -> None:
    t1w, lesions, white, _ = scene()
    assert fill(t1w, np.zeros_like(lesions), white, PARAMS, np.random.default_rng(0)) is t1w


def test_errors_say_what_is_missing() -> None:
    t1w, lesions, white, _ = scene()
    with pytest.raises(GeometryError, match="lesions"):
        fill(t1w, lesions[1:], white, PARAMS, np.random.default_rng(0))
    with pytest.raises(EstimationError, match="only 0 voxels"):
        fill(t1w, lesions, np.zeros(SHAPE), PARAMS, np.random.default_rng(0))


def test_patches_continue_a_texture_that_single_residuals_break() -> None:
    """Waves of eight voxels, ten times the noise: neighbours in a patch go together."""
    x = np.indices(SHAPE)[0]
    stripes = 20.0 * np.sin(2 * np.pi * x / 8.0 + 0.3)
    noise = np.random.default_rng(3).normal(0, 2, SHAPE)
    lesions = np.linalg.norm(np.indices(SHAPE) - 30.0, axis=0) < 4
    clean = 800.0 + stripes
    image = Volume(np.where(lesions, 300.0, clean + noise).astype(np.float32), Grid.centred(SHAPE, 1.0))
    wrong = {}
    for params in METHODS:
        filled = fill(image, lesions, np.ones(SHAPE), params, np.random.default_rng(0)).data
        wrong[params.method] = np.abs((filled - clean)[lesions]).mean()
    assert wrong["patch"] < 0.6 * wrong["convolution"]


@pytest.mark.parametrize("params", METHODS, ids=lambda params: params.method)
def test_image_with_nan_is_filled_from_what_is_known(params: FillingParams) -> None:
    t1w, lesions, white, clean = scene()
    holes = np.array(t1w.data)
    holes[::7, ::7, ::7] = np.nan
    filled = fill(t1w.with_data(holes), lesions, white, params, np.random.default_rng(1)).data
    inside = lesions & (white > 0.5) & np.isfinite(holes)
    assert np.isfinite(filled[inside]).all()
    assert abs((filled - clean)[inside].mean()) < 4.0


def test_lesions_that_cannot_be_of_this_brain_are_refused() -> None:
    brain = np.linalg.norm(np.indices((20, 20, 20)) - 10.0, axis=0) < 8
    small = np.zeros(brain.shape)
    check_lesions(small, brain, 0.001)
    small[9:12, 9:12, 9:12] = 0.4
    check_lesions(small, brain, 0.001)
    away = np.zeros(brain.shape, bool)
    away[:3, :3, :3] = True
    for lesions, kind, message in (
        (brain[1:], GeometryError, "has shape"),
        (255.0 * small, DataError, "run from 0 to 102"),
        (np.where(small > 0, np.nan, 0.0), DataError, "nan"),
        (-small, DataError, "run from -0.4"),
        (brain, DataError, "is the mask inverted"),
        (~brain, DataError, "is the mask inverted"),
        (away, GeometryError, "100 % of 0.0 mL of lesions lie outside the brain"),
    ):
        with pytest.raises(kind, match=message):
            check_lesions(lesions, brain, 0.001)
