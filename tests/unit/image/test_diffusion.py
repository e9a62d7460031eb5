"""Diffusion: noise, shells, voxels that cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image.diffusion import adc

GRID = Grid.centred((8, 8, 8), 2.0)
B = np.array([0, 0, 1000, 1000, 1000, 500.0])


def images(true: float = 8e-4) -> np.ndarray:
    return np.broadcast_to(1000 * np.exp(-B * true), (*GRID.shape, B.size)).copy()


def test_stated_error_is_the_error_seen() -> None:
    noisy = images() * np.exp(np.random.default_rng(0).normal(0, 0.02, (*GRID.shape, B.size)))
    fit = adc(Volume(noisy, GRID), B)
    assert np.asarray(fit.adc.data).mean() == pytest.approx(8e-4, rel=0.005)
    stated = np.sqrt((np.asarray(fit.adc_se.data) ** 2).mean())
    assert stated == pytest.approx(np.asarray(fit.adc.data).std(), rel=0.1)


def test_trace_is_the_geometric_mean_of_the_directions() -> None:
    data = images()
    data[..., 2:5] = [100.0, 200.0, 400.0]
    fit = adc(Volume(data, GRID), B)
    assert np.asarray(fit.trace.data) == pytest.approx(np.full(GRID.shape, 200.0))
    assert fit.trace_b_s_mm2 == 1000


def test_voxels_without_signal_are_not_valid() -> None:
    data = images()
    data[0, 0, 0, 3], data[1, 1, 1, 2], data[2, 2, 2, 0] = 0, np.nan, -4
    mask = np.ones(GRID.shape, dtype=bool)
    mask[3, 3, 3] = False
    fit = adc(Volume(data, GRID), B, mask=mask)
    assert (~fit.valid).sum() == 4
    assert (np.asarray(fit.adc.data)[~fit.valid] == 0).all()
    assert np.isfinite(np.asarray(fit.adc.data)).all()


def test_two_images_have_no_standard_error() -> None:
    fit = adc(Volume(images()[..., [0, 2]], GRID), B[[0, 2]])
    assert np.isnan(np.asarray(fit.adc_se.data)).all()
    assert np.asarray(fit.adc.data) == pytest.approx(np.full(GRID.shape, 8e-4))


def test_what_cannot_be_fitted_is_refused() -> None:
    volume = Volume(images(), GRID)
    with pytest.raises(DataError, match="5 b values"):
        adc(volume, B[:5])
    with pytest.raises(EstimationError, match="one shell"):
        adc(volume, np.array([1000, 1000, 1005, 995, 1000, 1000.0]))
    with pytest.raises(DataError, match="-1"):
        adc(volume, np.where(B == 0, -1, B))
    with pytest.raises(EstimationError, match="no voxel"):
        adc(volume, B, mask=np.zeros(GRID.shape, dtype=bool))
    with pytest.raises(GeometryError):
        adc(volume, B, mask=np.ones((1, 1, 1), dtype=bool))
