"""Filling against the lesion-free image of the same head, noise and field, in a simulated brain of 2 mm."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from bids_sodium.core.data import Volume
from bids_sodium.simulate.acquire import contrast, scan_1h
from bids_sodium.simulate.brain import Anatomy, AnatomyParams, Head, draw_anatomy, healthy_head, ms_head
from bids_sodium.tissue.filling import FillingParams, fill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return draw_anatomy(np.random.default_rng(2), AnatomyParams(voxel_mm=2.0))


def scanned(head: Head, *, snr: float = 30.0) -> Volume:
    return Volume(scan_1h(contrast(head, "T1w"), np.random.default_rng(3), snr=snr, bias=0.1), head.grid)


@pytest.mark.parametrize("method", ["convolution", "patch"])
def test_filled_lesions_are_the_white_matter_that_was_there(anatomy: Anatomy, method: str) -> None:
    healthy = healthy_head(anatomy)
    ill = ms_head(anatomy, np.random.default_rng(4), lesion_ml=15.0)
    clean, free, seen = scanned(healthy, snr=np.inf).data, scanned(healthy).data, scanned(ill)
    white = np.asarray(healthy.fractions["NAWM"].data)
    mask = np.asarray(ill.masks["T2lesion"], dtype=bool)
    filled = fill(seen, mask, white, FillingParams(method=method), np.random.default_rng(0))  # type: ignore[arg-type]
    away = distance_transform_edt(~mask, sampling=seen.grid.voxel_mm) > max(
        FillingParams().guard_mm, *seen.grid.voxel_mm
    )
    np.testing.assert_array_equal(filled.data[away], seen.data[away])
    beside = ~mask & ~away & (white > 0.95)
    left, taken = ((image - free)[beside].mean() for image in (seen.data, filled.data))
    assert left < -0.003 * np.median(clean[white > 0.95])
    assert abs(taken) < 0.3 * abs(left)
    sure = mask & (white > 0.95)
    assert sure.sum() > 500
    level = np.median(clean[white > 0.95])
    before, after = ((image - clean)[sure].mean() / level for image in (seen.data, filled.data))
    assert before < -0.1
    assert abs(after) < 0.005
    noise = (free - clean)[sure].std()
    assert (filled.data - clean)[sure].std() == pytest.approx(noise, rel=0.1)
