"""Internal reference: what is deep enough, what is refused, and that it is named."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.image.reference import ReferenceParams, measure_reference, reference_scale

GRID = Grid.centred((26, 26, 26), 4.0)
DISTANCE = np.linalg.norm(GRID.world(np.moveaxis(np.indices(GRID.shape), 0, -1).astype(float)), axis=-1)
SHARE = np.clip((24 - DISTANCE) / 10, 0, 1)
IMAGE = Volume(700.0 * SHARE + 200.0 * (1 - SHARE), GRID)


def test_surroundings_are_taken_off() -> None:
    found = measure_reference(IMAGE, SHARE, sigma=1.0, magnitude=False)
    assert found.signal == pytest.approx(700, rel=1e-6)
    assert found.around == pytest.approx(200, rel=1e-6)
    assert found.n_voxels == int((SHARE >= 0.8).sum())
    assert np.asarray(IMAGE.data)[found.mask].mean() < 700


def test_surroundings_that_are_blurred_more_are_taken_off_as_they_are() -> None:
    """Tissue that decays during the readout reaches further into the fluid than the fluid out of it."""
    far = np.clip((DISTANCE - 10) / 16, 0, 1)
    image = IMAGE.with_data(700.0 * SHARE + 200.0 * far)
    found = measure_reference(image, SHARE, sigma=1.0, magnitude=False, surroundings=far)
    assert found.signal == pytest.approx(700, rel=1e-6)
    assert found.around == pytest.approx(200, rel=1e-6)
    naive = measure_reference(image, SHARE, sigma=1.0, magnitude=False)
    assert naive.signal > 1.02 * found.signal


def test_it_is_named_and_its_spread_between_people_is_carried() -> None:
    fluid = measure_reference(IMAGE, SHARE, ReferenceParams(material="vitreous"), sigma=1.0)
    scale = reference_scale(fluid)
    assert scale.source == "internal reference: vitreous body of 146.7 +- 3.3 mmol/L"
    assert scale.source in scale.note
    assert scale.slope == pytest.approx(146.7 / 700, rel=1e-3)
    assert scale.slope_se / scale.slope > 3.3 / 146.7


def test_a_misplaced_fraction_costs_what_it_costs() -> None:
    still = measure_reference(IMAGE, SHARE, sigma=1.0)
    shaky = measure_reference(IMAGE, SHARE, sigma=1.0, place_error_mm=2.0)
    assert shaky.signal == still.signal
    assert shaky.se > 3 * still.se


def test_narrow_ventricles_are_refused_with_what_they_have() -> None:
    with pytest.raises(EstimationError, match=r"the deepest voxel has 0\.60"):
        measure_reference(IMAGE, 0.6 * SHARE, sigma=1.0)
    with pytest.raises(EstimationError, match="0 mL of ventricular"):
        measure_reference(IMAGE, SHARE, sigma=1.0, region=np.zeros(GRID.shape, dtype=bool))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(GeometryError):
        measure_reference(IMAGE, SHARE[1:], sigma=1.0)
    with pytest.raises(GeometryError, match="surroundings"):
        measure_reference(IMAGE, SHARE, surroundings=SHARE[1:], sigma=1.0)
    with pytest.raises(DataError, match="surrounds"):
        measure_reference(IMAGE, SHARE, surroundings=np.full(GRID.shape, np.nan), sigma=1.0)
    with pytest.raises(DataError, match="from 0 to 1"):
        measure_reference(IMAGE, 255 * SHARE, sigma=1.0)
    with pytest.raises(DataError, match="finite"):
        measure_reference(IMAGE.with_data(np.full(GRID.shape, np.nan)), SHARE, sigma=1.0)
    with pytest.raises(EstimationError, match="standard error"):
        measure_reference(IMAGE.with_data(np.zeros(GRID.shape)), SHARE, sigma=50.0, magnitude=False)
    for bad in ({"material": "blood"}, {"deep": 0.2}, {"csf_mmol_l": 0.0}):
        with pytest.raises(ConfigError):
            ReferenceParams(**bad)  # type: ignore[arg-type]
