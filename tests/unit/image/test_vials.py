"""Vials: what is refused, saturation, order and the choice among candidates."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image.calibration import CalibrationParams, candidate_vials, find_vials, head_mask, measure_vials
from bids_sodium.image.vials import saturation_of

GRID = Grid.centred((50, 50, 26), 5.0)
X, Y, Z = np.moveaxis(GRID.world(np.moveaxis(np.indices(GRID.shape), 0, -1).astype(float)), -1, 0)


def scene(vials: dict[tuple[float, float], float], *, sigma: float = 5.0) -> tuple[Volume, NDArray[np.bool_]]:
    head = (X / 60) ** 2 + (Y / 70) ** 2 + (Z / 60) ** 2 < 1
    data = np.where(head, 150.0, 0.0)
    for (x, y), signal in vials.items():
        data[(np.hypot(X - x, Y - y) < 12) & (np.abs(Z) < 35)] = signal
    rng = np.random.default_rng(0)
    noisy = np.abs(data + rng.normal(0, sigma, data.shape) + 1j * rng.normal(0, sigma, data.shape))
    return Volume(noisy, GRID), head


def test_vials_come_in_the_order_of_their_concentrations() -> None:
    image, head = scene({(85, 0): 400.0, (-85, 0): 200.0})
    rising = find_vials(image, head, CalibrationParams(vial_mmol_l=(40.0, 80.0)))
    falling = find_vials(image, head, CalibrationParams(vial_mmol_l=(80.0, 40.0)))
    assert [vial.centre_mm[0] < 0 for vial in rising] == [True, False]
    assert [vial.centre_mm[0] < 0 for vial in falling] == [False, True]
    assert rising[0].signal == pytest.approx(200, rel=0.03)
    assert rising[0].volume_ml == pytest.approx(np.pi * 12**2 * 70 / 1000, rel=0.2)


def test_too_few_vials_are_refused_with_what_was_found() -> None:
    image, head = scene({(85, 0): 400.0})
    with pytest.raises(EstimationError, match=r"2 vials are named but 1 found .* at \(85, 0, 0\) mm"):
        find_vials(image, head, CalibrationParams())


def test_among_more_bodies_those_in_ratio_are_chosen() -> None:
    image, head = scene({(85, 0): 400.0, (-85, 0): 200.0, (0, 100): 900.0})
    assert len(candidate_vials(image, head, CalibrationParams())) == 3
    chosen = find_vials(image, head, CalibrationParams())
    assert [round(vial.signal / 100) for vial in chosen] == [2, 4]


def test_a_dim_vial_is_found_beside_a_bright_one() -> None:
    image, head = scene({(85, 0): 400.0, (80, 35): 120.0})
    found = find_vials(image, head, CalibrationParams(vial_mmol_l=(25.0, 80.0)))
    assert found[0].centre_mm[:2] == pytest.approx((80, 35), abs=5)
    assert not (found[0].mask & found[1].mask).any()


def test_the_head_of_an_image_holds_no_vial_that_touches_it() -> None:
    image, head = scene({(72, 0): 400.0, (-85, 0): 200.0})
    found = head_mask(image, CalibrationParams())
    overlap = 2 * (found & head).sum() / (found.sum() + head.sum())
    assert overlap > 0.9
    assert not found[(np.hypot(X - 72, Y) < 8) & (np.abs(Z) < 30) & (X > 72)].any()


def test_noise_has_no_head() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(EstimationError, match="too little for a head"):
        head_mask(Volume(np.abs(rng.normal(0, 1, (30, 30, 30))), Grid.centred((30, 30, 30), 5.0)), CalibrationParams())


def test_a_head_of_another_shape_is_refused() -> None:
    image, head = scene({})
    with pytest.raises(GeometryError):
        find_vials(image, head[1:], CalibrationParams())


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_clipped_voxels_are_counted_and_do_not_lower_the_signal(dtype: type) -> None:
    image, head = scene({(85, 0): 4060.0, (-85, 0): 2030.0}, sigma=40.0)
    clipped = image.with_data(np.minimum(np.rint(np.asarray(image.data)), 4095).astype(dtype))
    params = CalibrationParams()
    found = find_vials(clipped, head, params)
    at_ceiling = int((np.asarray(clipped.data) == 4095)[found[1].mask].sum())
    assert (found[0].n_saturated, found[1].n_saturated) == (0, at_ceiling)
    assert at_ceiling > 20
    signals = measure_vials(clipped, [vial.mask for vial in found], params, sigma=40.0)
    assert signals.n_saturated.tolist() == [0, at_ceiling]
    assert signals.signal == pytest.approx([2030, 4060], rel=0.005)
    # leaving clipped voxels out of a mean would have lowered it
    core = found[1].mask & (np.asarray(clipped.data) < 4095) & (np.hypot(X - 85, Y) < 8)
    assert np.asarray(clipped.data)[core].mean() < signals.signal[1]


def test_a_vial_clipped_all_over_is_refused() -> None:
    image, head = scene({(85, 0): 5000.0, (-85, 0): 2500.0}, sigma=40.0)
    clipped = image.with_data(np.minimum(np.rint(np.asarray(image.data)), 4095).astype(np.int16))
    found = find_vials(clipped, head, CalibrationParams())
    with pytest.raises(EstimationError, match="clipped at 4095"):
        measure_vials(clipped, [vial.mask for vial in found], CalibrationParams())


def test_saturation_is_seen_where_it_is_and_not_where_it_is_not() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(500, 100, 20_000)
    assert saturation_of(values) is None
    assert saturation_of(np.minimum(values, 700.5)) == 700.5
    assert saturation_of(np.rint(values).astype(np.int16)) is None
    assert saturation_of(np.minimum(np.rint(10 * values), 4095).astype(np.int16)) == 4095
    assert saturation_of(np.repeat([0.0, 40.0, 80.0], 1000)) is None  # a phantom without noise
    assert saturation_of(np.array([200, 255, 255], dtype=np.uint8)) == 255


def test_fit_and_core_that_disagree_leave_the_core() -> None:
    image, head = scene({(85, 0): 400.0, (-85, 0): 200.0})
    params = CalibrationParams()
    masks = [vial.mask for vial in find_vials(image, head, params)]
    wrong = measure_vials(image, masks, params, sigma=5.0, inner_radius_mm=4.0, fwhm_mm=12.0)
    core = measure_vials(image, masks, params, sigma=5.0)
    assert wrong.method == ("core", "core")
    assert np.array_equal(wrong.signal, core.signal)


def test_noise_of_the_core_stands_in_for_a_sigma_that_is_not_given() -> None:
    image, head = scene({(85, 0): 400.0, (-85, 0): 200.0})
    params = CalibrationParams()
    masks = [vial.mask for vial in find_vials(image, head, params)]
    known, seen = measure_vials(image, masks, params, sigma=5.0), measure_vials(image, masks, params)
    assert seen.sigma == pytest.approx(known.sigma, rel=0.4)


def test_measuring_refuses_what_it_cannot_measure() -> None:
    image, _ = scene({(85, 0): 400.0})
    mask = np.zeros(GRID.shape, dtype=bool)
    params = CalibrationParams()
    with pytest.raises(DataError, match="vial 1 is empty"):
        measure_vials(image, [mask], params)
    mask[3, 3, 3] = True
    assert measure_vials(image, [mask], params, sigma=5.0).n_voxels.tolist() == [1]
    assert measure_vials(image, [], params).signal.size == 0
    with pytest.raises(GeometryError):
        measure_vials(image, [mask[1:]], params)
    with pytest.raises(DataError):
        measure_vials(image, [mask], params, correlation_voxels=0.5)
    with pytest.raises(DataError):
        measure_vials(image, [mask], params, inner_radius_mm=-1.0, fwhm_mm=6.0)
