"""Shrinkage takes noise and leaves edges."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.tissue.smoothing import BLOCK, cosine_shrinkage

SHAPE = (26, 31, 23)  # no multiples of a block
STEP = np.where(np.indices(SHAPE)[0] < 13, 100.0, 200.0)
EVERYWHERE = np.ones(SHAPE, bool)


def test_noise_goes_and_the_edge_stays() -> None:
    noisy = STEP + np.random.default_rng(0).normal(0, 10, SHAPE)
    error = cosine_shrinkage(noisy, EVERYWHERE, 10.0) - STEP
    assert error.std() < 4.0
    assert abs(error.mean()) < 0.3
    # beside the edge the error is no larger than the noise was
    assert error[12:14].std() < 7.0


def test_image_without_noise_is_nearly_untouched() -> None:
    np.testing.assert_allclose(cosine_shrinkage(STEP, EVERYWHERE, 0.1), STEP, atol=0.5)
    np.testing.assert_array_equal(cosine_shrinkage(STEP, EVERYWHERE, 0.0), STEP.astype(np.float32))


def test_constant_and_mean_are_kept() -> None:
    flat = np.full(SHAPE, 7.0)
    np.testing.assert_allclose(cosine_shrinkage(flat, EVERYWHERE, 3.0), 7.0, rtol=1e-5)


def test_outside_the_mask_nothing_changes() -> None:
    noisy = STEP + np.random.default_rng(1).normal(0, 10, SHAPE)
    mask = np.zeros(SHAPE, bool)
    mask[5:15, 8:20, 6:16] = True
    out = cosine_shrinkage(noisy, mask, 10.0)
    np.testing.assert_array_equal(out[~mask], noisy.astype(np.float32)[~mask])
    assert np.abs(out - noisy)[mask].mean() > 3.0


def test_image_smaller_than_a_block_pair() -> None:
    small = np.random.default_rng(2).normal(50, 1, (BLOCK + 1, 4, 9))
    out = cosine_shrinkage(small, np.ones(small.shape, bool), 1.0)
    assert out.shape == small.shape
    assert out.std() < small.std()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(GeometryError, match="mask of shape"):
        cosine_shrinkage(STEP, EVERYWHERE[1:], 1.0)
    for noise in (-1.0, np.nan):
        with pytest.raises(DataError, match="a noise of"):
            cosine_shrinkage(STEP, EVERYWHERE, noise)
