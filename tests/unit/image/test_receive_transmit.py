"""Receive and transmit fields: what is refused and what is undetermined."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image.receive import correct_receive, receive_ratio
from bids_sodium.image.transmit import double_angle, transmit_factor

GRID = Grid.centred((12, 12, 12), 12.0)
HEAD = np.zeros(GRID.shape, dtype=bool)
HEAD[3:9, 3:9, 3:9] = True


def test_ratio_has_a_floor() -> None:
    weak = np.where(np.indices(GRID.shape)[0] < 6, 1.0, 1e-6)
    ratio = receive_ratio(Volume(HEAD * weak, GRID), Volume(HEAD * 1.0, GRID), mask=HEAD)
    assert ratio.min() >= 0.1 * np.median(ratio[HEAD])


def test_images_without_common_signal_or_grid_are_refused() -> None:
    empty, head = Volume(np.zeros(GRID.shape), GRID), Volume(HEAD * 1.0, GRID)
    with pytest.raises(EstimationError, match="signal in both"):
        receive_ratio(empty, head)
    with pytest.raises(EstimationError, match="signal in both"):
        receive_ratio(head, empty)
    with pytest.raises(GeometryError):
        receive_ratio(head, Volume(HEAD * 1.0, Grid.centred(GRID.shape, 11.0)))
    with pytest.raises(GeometryError):
        receive_ratio(head, head, mask=HEAD[1:])
    with pytest.raises(DataError):
        receive_ratio(head, Volume(np.full(GRID.shape, np.nan), GRID))


def test_a_sensitivity_of_zero_is_refused() -> None:
    with pytest.raises(DataError):
        correct_receive(Volume(HEAD * 1.0, GRID), HEAD * 1.0)
    with pytest.raises(GeometryError):
        correct_receive(Volume(HEAD * 1.0, GRID), np.ones((2, 2, 2)))


def test_transmit_is_undetermined_in_the_air_and_corrects_nothing_there() -> None:
    angle = np.deg2rad(50.0)
    field = double_angle(
        Volume(HEAD * np.sin(angle), GRID), Volume(HEAD * np.sin(2 * angle), GRID), flip_deg=50.0, minimum=0.1
    )
    assert np.isnan(field[~HEAD]).all()
    assert field[HEAD] == pytest.approx(np.ones(HEAD.sum()))
    assert transmit_factor(field, t1_ms=35, tr_ms=100, flip_deg=90) == pytest.approx(np.ones(GRID.shape))


def test_angles_and_fields_that_are_none_are_refused() -> None:
    volume = Volume(HEAD * 1.0, GRID)
    with pytest.raises(DataError):
        double_angle(volume, volume, flip_deg=90.0)
    with pytest.raises(GeometryError):
        double_angle(volume, Volume(HEAD * 1.0, Grid.centred(GRID.shape, 11.0)), flip_deg=60.0)
    with pytest.raises(DataError):
        transmit_factor(np.array([0.0]), t1_ms=35, tr_ms=100, flip_deg=90)
