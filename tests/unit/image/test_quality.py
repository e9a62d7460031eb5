"""Quality measures of images whose quality is known."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.image.calibration import CalibrationParams, fit_scale, measure_vials
from bids_sodium.image.quality import measures

GRID = Grid.centred((40, 40, 40), 5.0)
RADIUS = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - 20, axis=-1) * 5
BRAIN = RADIUS < 50


def noisy(sigma: float, signal: np.ndarray = 200.0 * BRAIN) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.abs(signal + rng.normal(0, sigma, GRID.shape) + 1j * rng.normal(0, sigma, GRID.shape))


def test_snr_and_air_of_an_image_with_noise_alone() -> None:
    found = measures(Volume(noisy(10.0), GRID), BRAIN, 10.0, regions={"core": RADIUS < 20, "none": RADIUS < 0})
    assert found["snr_brain"].value == pytest.approx(20, rel=0.01)
    assert found["snr_core"].value == pytest.approx(20, rel=0.02)
    assert np.isnan(found["snr_none"].value)
    assert found["artefact_ratio"].value == pytest.approx(1, abs=4 * found["artefact_ratio"].se)
    assert found["brain_to_air"].value == pytest.approx(20 / np.sqrt(2), rel=0.02)
    assert found["saturated_fraction"].value == 0


def test_a_ghost_raises_the_artefact_ratio() -> None:
    ghost = noisy(10.0) + 0.2 * np.roll(200.0 * BRAIN, 20, axis=0)
    assert measures(Volume(ghost, GRID), BRAIN, 10.0)["artefact_ratio"].value > 1.2


def test_clipping_is_counted() -> None:
    data = np.minimum(np.rint(noisy(10.0) * 20), 4095).astype(np.int16)
    found = measures(Volume(data, GRID), BRAIN, 200.0)["saturated_fraction"]
    assert found.value == (data == 4095).mean() > 0
    assert "4095" in found.note


def test_calibration_is_among_the_measures() -> None:
    vials = (RADIUS < 15, (RADIUS > 70) & (RADIUS < 80))
    image = Volume(noisy(1.0, 200.0 * BRAIN + 100 * vials[1]), GRID)
    signals = measure_vials(image, [vials[1], vials[0]], CalibrationParams(), sigma=1.0)
    scale = fit_scale(signals.signal, signals.se)
    found = measures(image, BRAIN, 1.0, vials=signals, vial_masks=vials, scale=scale)
    assert found["calibration_slope"].value == pytest.approx(0.4, rel=0.01)
    assert found["calibration_slope"].unit == "mmol/L per a.u."
    assert found["vial2_signal"].value == pytest.approx(200, rel=0.01)
    assert found["calibration_r2"].value == scale.r2
    assert abs(found["calibration_intercept"].value) < 5 * found["calibration_intercept"].se + 0.1
    # the air leaves the vials out
    assert found["artefact_ratio"].value == pytest.approx(1, abs=0.05)


def test_what_cannot_be_measured_is_refused() -> None:
    volume = Volume(noisy(1.0), GRID)
    with pytest.raises(DataError):
        measures(volume, BRAIN, 0.0)
    with pytest.raises(DataError):
        measures(volume, np.zeros(GRID.shape, dtype=bool), 1.0)
    with pytest.raises(GeometryError):
        measures(volume, BRAIN[1:], 1.0)
