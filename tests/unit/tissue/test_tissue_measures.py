"""Regional measures, change against the other side, brain fractions."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.tissue.measures import Measure, brain_fractions, percent_change, regional


def test_mask_gives_mean_and_sample_standard_deviation() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.normal(40, 5, (8, 8, 8)), rng.random((8, 8, 8)) < 0.3
    measure = regional(image, mask, voxel_ml=0.064)
    assert measure.mean == pytest.approx(image[mask].mean())
    assert measure.sd == pytest.approx(image[mask].std(ddof=1))
    assert measure.se == pytest.approx(measure.sd / np.sqrt(mask.sum()))
    assert measure.volume_ml == pytest.approx(0.064 * mask.sum())


def test_resolution_element_larger_than_a_voxel_widens_the_error() -> None:
    image = np.random.default_rng(0).normal(size=(10, 10, 10))
    fine = regional(image, np.ones(image.shape), voxel_ml=0.01)
    coarse = regional(image, np.ones(image.shape), voxel_ml=0.01, resolution_ml=0.16)
    assert coarse.se == pytest.approx(4 * fine.se)


def test_missing_values_are_counted_and_left_out() -> None:
    image = np.array([1.0, np.nan, 3.0, np.inf])
    measure = regional(image, np.ones(4), voxel_ml=1.0)
    assert (measure.mean, measure.n_voxels, measure.n_missing) == (2.0, 2, 2)


def test_empty_region_has_no_mean() -> None:
    measure = regional(np.ones(4), np.zeros(4), voxel_ml=1.0)
    assert np.isnan(measure.mean)
    assert (measure.n_voxels, measure.volume_ml) == (0, 0.0)
    assert np.isnan(regional(np.ones(4), np.eye(4)[0], voxel_ml=1.0).sd)


def test_regional_refuses_what_does_not_fit() -> None:
    with pytest.raises(GeometryError, match="shape"):
        regional(np.ones(4), np.ones(5), voxel_ml=1.0)
    with pytest.raises(DataError, match="negative"):
        regional(np.ones(4), -np.ones(4), voxel_ml=1.0)


def test_error_of_percent_change_is_the_error_seen() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(60, 1.5, 20_000), rng.normal(40, 1.0, 20_000)
    change = percent_change(Measure(60, 3, 1.5, 9, 1, 0), Measure(40, 2, 1.0, 9, 1, 0))
    assert change.percent == pytest.approx(50.0)
    assert change.se == pytest.approx(np.std(100 * (a - b) / b), rel=0.03)


def test_percent_change_against_zero_is_refused() -> None:
    zero = Measure(0.0, 1, 1, 5, 1, 0)
    with pytest.raises(EstimationError, match="mean 0"):
        percent_change(zero, zero)


def test_brain_fractions_count_lesions_as_white_matter() -> None:
    f = brain_fractions({"CGM": 500, "DGM": 40, "NAWM": 450, "T1hypo": 6, "T1iso": 4, "CSF": 200}, 1200)
    assert f.wmf == pytest.approx(460 / 1200)
    assert f.bpf == pytest.approx(f.gmf + f.wmf)
    with pytest.raises(DataError, match="intracranial"):
        brain_fractions({"CGM": 1.0}, 0.0)
