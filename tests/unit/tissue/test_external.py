"""Numbers, names and maps of other programs become tissues, or are refused with what was seen."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.tissue.external import (
    FREESURFER,
    check_contrast,
    checked,
    explained,
    split,
    tissue_of_name,
    tissues_of,
)

ONE = np.ones((6, 6, 6), np.float32)


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("Left-Cerebral-White-Matter", "NAWM"),
        ("Right-Cerebral-Cortex", "CGM"),
        ("ctx-rh-precentral", "CGM"),
        ("ctx_lh_G_cuneus", "CGM"),
        ("Left-Thalamus-Proper", "DGM"),
        ("Right-Accumbens-area", "DGM"),
        ("Left-Hippocampus", "CGM"),
        ("Left-Cerebellum-White-Matter", "NAWM"),
        ("Left-Cerebellum-Cortex", "CGM"),
        ("CC_Mid_Anterior", "NAWM"),
        ("Brain-Stem", "NAWM"),
        ("WM-hypointensities", "NAWM"),
        ("3rd-Ventricle", "ventricle"),
        ("Left-choroid-plexus", "ventricle"),
        ("Non-ventricular CSF", "CSF"),
        ("Non-Brain Outer Tissue", "none"),
        ("4th-Ventricle", "ventricle"),
        ("grey matter", "GM"),
        ("subcortical grey matter", "DGM"),
        ("Left-VentralDC", "NAWM"),
        ("Optic-Chiasm", "NAWM"),
        ("Left vessel", "CSF"),
        ("Left Inf Lat Vent", "ventricle"),
        ("Cerebral Exterior", "none"),
        ("mystery", None),
    ],
)
def test_tissue_of_a_name(name: str, tissue: str | None) -> None:
    assert tissue_of_name(name) == tissue


def test_freesurfer_numbers_are_each_of_one_tissue_and_both_sides_agree() -> None:
    pairs = [(2, 41), (3, 42), (4, 43), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52), (17, 53), (18, 54), (26, 58)]
    assert all(FREESURFER[left] == FREESURFER[right] for left, right in pairs)
    assert FREESURFER[1035] == FREESURFER[2035] == FREESURFER[11175] == "CGM"
    assert FREESURFER[3035] == FREESURFER[4035] == FREESURFER[251] == "NAWM"
    assert 1036 not in FREESURFER


def test_labels_without_a_table_must_be_freesurfers() -> None:
    whole = {0: 1000, 2: 100, 41: 100, 3: 100, 42: 100, 4: 10, 10: 10}
    assert tissues_of(whole)[42] == "CGM"
    # one voxel in a thousand of something else is no other table
    assert 999 not in tissues_of({**whole, 999: 1})
    for odd in ({**whole, 999: 50}, {1: 10, 2: 10, 3: 10}, dict.fromkeys(range(1, 40), 10)):
        with pytest.raises(DataError, match="has no table and its numbers"):
            tissues_of(odd)
    with pytest.raises(DataError, match="is empty"):
        tissues_of({0: 1000})


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"GM": 1.4 * ONE}, "add up to 1.4 in most voxels"),
        ({"GM": 0.9 * ONE, "NAWM": 0.9 * ONE}, "add up to 1.8"),
        ({"GM": 17.0 * ONE}, "add up to 17"),
        ({"GM": np.where(ONE.cumsum().reshape(ONE.shape) < 3, np.nan, ONE)}, r"2 voxels \(0.9 %\) that are NaN"),
        ({"GM": -0.5 * ONE, "NAWM": ONE}, "go down to -0.5"),
        ({"GM": 0 * ONE}, "are empty"),
    ],
)
def test_maps_that_are_no_shares_are_refused(maps: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(maps)


@pytest.mark.parametrize("full", [100.0, 255.0])
def test_percent_and_bytes_are_divided(full: float) -> None:
    maps, notes = checked({"GM": np.float32(full * 0.25) * ONE, "NAWM": np.float32(full * 0.75) * ONE})
    np.testing.assert_allclose(maps["NAWM"], 0.75)
    assert f"{full:g}" in notes[0]


def test_rounding_above_one_is_taken_back_and_probabilities_below_one_stay() -> None:
    maps, notes = checked({"GM": 0.5 * ONE, "NAWM": 0.52 * ONE})
    np.testing.assert_allclose(maps["GM"] + maps["NAWM"], 1.0, rtol=1e-6)
    assert not notes
    some, _ = checked({"GM": 0.4 * ONE, "NAWM": 0.4 * ONE})
    np.testing.assert_allclose(some["GM"], 0.4)


def test_split_keeps_the_sum_and_says_what_is_missing() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1, 1, 1], size=(6, 6, 6)).astype(np.float32)
    maps = {"GM": shares[..., 0], "NAWM": shares[..., 1], "CSF": shares[..., 2]}
    deep = rng.uniform(size=(6, 6, 6)).astype(np.float32)
    parts = split(maps, deep)
    np.testing.assert_allclose(np.sum(list(parts.values()), axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(parts["DGM"], (maps["GM"] + maps["NAWM"]) * deep, rtol=1e-5)
    own = split({**maps, "DGM": 0.1 * ONE}, deep)
    np.testing.assert_allclose(own["DGM"], 0.1)
    with pytest.raises(DataError, match="lacks white matter and CSF; it has GM"):
        split({"GM": ONE}, deep)


def test_tissues_in_another_order_of_brightness_are_refused() -> None:
    x = np.indices((6, 6, 6))[0] // 2
    dark, between, bright = x == 0, x == 1, x == 2
    check_contrast({"CSF": dark, "CGM": between, "NAWM": bright}, x.astype(float))
    with pytest.raises(GeometryError, match=r"mean intensities under them are CSF 0, CGM 2, NAWM 1"):
        check_contrast({"CSF": dark, "CGM": bright, "NAWM": between}, x.astype(float))
    with pytest.raises(GeometryError, match="nan"):
        check_contrast({"CSF": dark, "CGM": between, "NAWM": np.zeros_like(dark)}, x.astype(float))


def test_explained_variance_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(1)
    maps = [rng.uniform(size=(8, 8, 8)) for _ in range(3)]
    noise = rng.normal(size=(8, 8, 8))
    image = 3.0 * maps[0] - 2.0 * maps[1] + 7.0 + noise
    x = np.stack([m.ravel() for m in (*maps, np.ones_like(noise))], axis=1)
    rest = image.ravel() - x @ np.linalg.lstsq(x, image.ravel(), rcond=None)[0]
    expected = 1 - rest @ rest / ((image - image.mean()) ** 2).sum()
    assert explained(maps, image, np.ones_like(noise, bool)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(DataError, match="constant"):
        explained(maps, 0 * image, np.ones_like(noise, bool))
