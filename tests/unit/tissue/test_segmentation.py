"""Segmentation of a head of shells: what comes back, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bids_sodium.core.data import Grid, HeadTemplate, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.tissue.segmentation import LABELS, Segmentation, SegmentationParams, segment

VOXEL_MM = 3.0
SHAPE = (64, 64, 64)
PARAMS = SegmentationParams(bias_correction=False, denoising=0.0, brain_mask="template")
R = np.linalg.norm(np.indices(SHAPE) - 31.5, axis=0) * VOXEL_MM
WM, GM, VENTRICLE = (R >= 24) & (R < 58), (R >= 58) & (R < 66), R < 24
CSF = VENTRICLE | ((R >= 66) & (R < 72))
DEEP = WM & (np.abs(np.indices(SHAPE)[0] * VOXEL_MM - 94.5) < 12) & (R < 44)


def prior(**changes: Any) -> HeadTemplate:
    gm = GM | DEEP
    maps = {"gm": gm, "wm": WM & ~DEEP, "csf": CSF, "deep": DEEP}
    arrays = {name: np.asarray(data, dtype=np.float32) for name, data in maps.items()}
    head = HeadTemplate(Grid.centred(SHAPE, VOXEL_MM), head_image().data, brain=R < 72, **arrays)
    return replace(head, **changes)


def head_image(noise: float = 0.0, csf: float = 250.0, gm: float = 600.0, wm: float = 850.0) -> Volume:
    data = np.select([CSF, GM, DEEP, WM, R < 80, R < 88], [csf, gm, gm + 60, wm, 60.0, 1100.0], 20.0)
    data = data + np.random.default_rng(0).normal(0, noise, SHAPE)
    return Volume(np.abs(data).astype(np.float32), Grid.centred(SHAPE, VOXEL_MM))


@pytest.fixture(scope="module")
def found() -> Segmentation:
    return segment(head_image(), prior(), PARAMS)


def test_shells_come_back(found: Segmentation) -> None:
    truth = {"CSF": CSF, "CGM": GM, "DGM": DEEP, "NAWM": WM & ~DEEP}
    assert not found.skull_stripped
    assert 2 * (found.brain & (R < 72)).sum() / (found.brain.sum() + (R < 72).sum()) > 0.99
    for name, mask in truth.items():
        assert np.abs(found.fractions[name] - mask)[R < 72].mean() < 0.04
        assert found.volume_ml[name] == pytest.approx(mask.sum() * 0.027, rel=0.08)
        # voxels of the core of a tissue
        assert (found.labels == LABELS[name])[mask].mean() > 0.9


def test_fractions_sum_to_the_brain(found: Segmentation) -> None:
    total = np.sum(list(found.fractions.values()), axis=0)
    np.testing.assert_allclose(total, found.brain, atol=1e-5)
    assert min(f.min() for f in found.fractions.values()) >= 0.0
    assert all(f.dtype == np.float32 for f in found.fractions.values())
    assert (found.labels > 0).sum() == found.brain.sum()
    assert sum(found.volume_ml.values()) == pytest.approx(found.tiv_ml, rel=1e-5)


def test_brain_fractions_follow_the_volumes(found: Segmentation) -> None:
    assert found.bpf == pytest.approx(found.gmf + found.wmf)
    assert found.bpf == pytest.approx(1 - found.volume_ml["CSF"] / found.tiv_ml, rel=1e-5)


def test_modes_are_the_intensities_of_pure_tissue(found: Segmentation) -> None:
    assert found.modes["CSF"] == pytest.approx(250, rel=0.03)
    assert found.modes["GM"] == pytest.approx(600, rel=0.03)
    assert found.modes["WM"] == pytest.approx(850, rel=0.03)


def test_mixture_of_two_tissues_is_read_as_its_share() -> None:
    image = head_image()
    data = np.array(image.data)
    ring = (R >= 54) & (R < 58) & WM & ~DEEP
    data[ring] = 0.3 * 600 + 0.7 * 850
    gm = np.where(ring, 0.3, GM | DEEP).astype(np.float32)
    wm = np.where(ring, 0.7, WM & ~DEEP).astype(np.float32)
    result = segment(image.with_data(data), prior(gm=gm, wm=wm), PARAMS)
    assert np.median(result.fractions["CGM"][ring]) == pytest.approx(0.3, abs=0.03)
    assert np.median(result.fractions["NAWM"][ring]) == pytest.approx(0.7, abs=0.03)


def test_ventricle_wall_is_csf_beside_white_matter_not_grey() -> None:
    image = head_image()
    data = np.array(image.data)
    wall = (R >= 24) & (R < 27) & ~DEEP
    data[wall] = 0.5 * 250 + 0.5 * 850
    half = np.where(wall, 0.5, 0).astype(np.float32)
    head = prior(
        csf=np.where(wall, half, CSF).astype(np.float32), wm=np.where(wall, half, WM & ~DEEP).astype(np.float32)
    )
    away = wall & (np.abs(np.indices(SHAPE)[0] * VOXEL_MM - 94.5) > 18)
    result = segment(image.with_data(data), head, PARAMS)
    assert result.fractions["CGM"][away].mean() < 0.1
    assert result.fractions["CSF"][away].mean() == pytest.approx(0.5, abs=0.08)


def test_lesions_are_a_class_of_their_own() -> None:
    lesion = (np.linalg.norm(np.indices(SHAPE) - np.array([45, 31.5, 31.5])[:, None, None, None], axis=0) < 2.5) * 0.8
    result = segment(head_image(), prior(), PARAMS, lesions=lesion)
    np.testing.assert_allclose(result.fractions["L"], lesion, atol=1e-6)
    total = np.sum([f for name, f in result.fractions.items() if name != "L"], axis=0)
    np.testing.assert_allclose(total, result.brain - result.fractions["L"], atol=1e-5)
    assert result.volume_ml["L"] == pytest.approx(lesion.sum() * 0.027, rel=1e-4)
    assert (result.labels == LABELS["L"]).sum() == (lesion > 0.5).sum()
    without = segment(head_image(), prior(), PARAMS)
    assert result.wmf == pytest.approx(without.wmf, rel=1e-3)


def test_skull_stripped_image_gives_the_same_tissue(found: Segmentation) -> None:
    image = head_image()
    stripped = segment(image.with_data(np.where(R < 72, image.data, 0)), prior(), PARAMS)
    assert stripped.skull_stripped
    for name in ("CGM", "DGM", "NAWM"):
        assert stripped.volume_ml[name] == pytest.approx(found.volume_ml[name], rel=0.02)


def test_image_cut_to_the_tissue_gets_its_csf_back_from_the_template() -> None:
    image = head_image()
    tight = segment(image.with_data(np.where(R < 66, image.data, 0)), prior(), PARAMS)
    assert tight.tiv_ml == pytest.approx((R < 72).sum() * 0.027, rel=0.01)


def test_bias_field_is_removed() -> None:
    image = head_image(noise=15.0)
    ramp = np.exp(0.15 * np.linspace(-1, 1, SHAPE[0]))[:, None, None]
    result = segment(image.with_data((image.data * ramp).astype(np.float32)), prior(), SegmentationParams())
    white = WM & ~DEEP & (R < 55)
    rest = (result.bias_corrected.data / image.data)[white]
    assert np.std(rest) / np.mean(rest) < 0.02
    assert result.noise == pytest.approx(15.0, rel=0.15)


def test_what_cannot_be_segmented_is_refused() -> None:
    image, head = head_image(), prior()
    small = Volume(image.data[1:], Grid.centred((63, 64, 64), VOXEL_MM))
    with pytest.raises(GeometryError, match="resample the template"):
        segment(small, head, PARAMS)
    with pytest.raises(GeometryError, match="lesions"):
        segment(image, head, PARAMS, lesions=np.zeros((3, 3, 3)))
    with pytest.raises(DataError, match="constant"):
        segment(image.with_data(np.zeros(SHAPE)), head, PARAMS)
    with pytest.raises(EstimationError, match="outside the T1w"):
        segment(image, prior(brain=np.zeros(SHAPE, bool)), PARAMS)
    t2w = head_image(csf=900, gm=600, wm=400)
    with pytest.raises(EstimationError, match="order of a T1w"):
        segment(t2w, head, PARAMS)


def test_brain_of_impossible_size_is_refused() -> None:
    grid = Grid.centred(SHAPE, 1.0)
    with pytest.raises(EstimationError, match="outside 500-2500 mL"):
        segment(Volume(head_image().data, grid), prior(grid=grid), PARAMS)
