"""A vial is measured with its ends: whatever its mask said of them, and however loud its neighbours are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bids_sodium.core.constants import AGAR
from bids_sodium.core.data import Grid
from bids_sodium.core.errors import EstimationError
from bids_sodium.recon.columns import cylinder_column
from bids_sodium.recon.solvers import Linear
from bids_sodium.recon.trajectory import density_adapted_radial
from bids_sodium.recon.vials import fit_vial

SPOKES = density_adapted_radial(2600, 160, gradient_mt_m=2.0, readout_ms=20.0, voxel_mm=6.0)
OPERATOR = Linear(SPOKES, Grid.centred((42, 42, 42), 6.0))
CENTRE = np.array([-70.0, 40.0, 14.0])
ROD: dict[str, Any] = {"axis": np.array([0.0, 0.1, 0.995]), "radius_mm": 12.0}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    vial = cylinder_column(
        OPERATOR.grid, SPOKES, AGAR.decay, operator=OPERATOR, centre_mm=CENTRE, length_mm=70.0, **ROD
    )
    return 300.0 * vial.astype(np.float64)


@pytest.mark.parametrize(("longer_mm", "higher_mm"), [(0.0, 0.0), (6.0, 0.0), (-6.0, 0.0), (6.0, 3.0), (0.0, -4.0)])
def test_signal_and_ends_are_found(image: np.ndarray, longer_mm: float, higher_mm: float) -> None:
    given = CENTRE + higher_mm * ROD["axis"]
    fit = fit_vial(image, OPERATOR, AGAR.decay, name="phantom40", centre_mm=given, length_mm=70.0 + longer_mm, **ROD)
    assert fit.signal == pytest.approx(300.0, rel=0.003)
    assert fit.length_mm == pytest.approx(70.0, abs=0.3)
    np.testing.assert_allclose(fit.centre_mm, CENTRE, atol=0.2)
    assert fit.moved_mm == pytest.approx(abs(higher_mm) + abs(longer_mm) / 2, abs=0.3)


def test_stated_error_is_the_error_seen(image: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    found, stated, level = [], [], 0.0
    for _ in range(30):
        samples = rng.standard_normal((2600, 160, 2), dtype=np.float32).view(np.complex64)[..., 0]
        noise = OPERATOR(samples).real.astype(np.float64)
        noise *= 10.0 / noise.std()
        level = 10.0
        fit = fit_vial(
            image + noise, OPERATOR, AGAR.decay, name="phantom40", centre_mm=CENTRE, length_mm=70.0, sigma=level,
            correlation_voxels=4.0, **ROD,
        )  # fmt: skip
        found.append(fit.signal)
        stated.append(fit.se)
    assert np.mean(found) == pytest.approx(300.0, abs=3 * np.std(found) / np.sqrt(30))
    # the SD of 30 draws is known to 13 %, the noise correlation only roughly
    assert 0.6 < np.mean(stated) / np.std(found) < 1.6


def test_what_is_no_vial_is_refused(image: np.ndarray) -> None:
    with pytest.raises(EstimationError, match="voxels in the image"):
        fit_vial(image, OPERATOR, AGAR.decay, name="a", centre_mm=np.array([400.0, 0, 0]), length_mm=70.0, **ROD)
    with pytest.raises(EstimationError, match="has the signal -"):
        fit_vial(-image, OPERATOR, AGAR.decay, name="a", centre_mm=CENTRE, length_mm=70.0, **ROD)
