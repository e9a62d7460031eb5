"""Parts of regions lean on their likes as far as the scan leaves them open."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import GeometryError
from bids_sodium.tissue.leaning import leaning
from bids_sodium.tissue.partialvolume import Corrected, regional
from bids_sodium.tissue.rois import RoiParams

NAMES = ("CGM", "NAWM", "GM:1", "lesion:1", "lesion:2")
MADE_OF, WITHIN = {"GM:1": {"CGM": 3.0, "NAWM": 1.0}}, {"GM:1": 2.0}
TRUE = np.array([40.0, 30.0, 44.0, 60.0, 50.0])


def fitted(sigma: float) -> Corrected:
    columns = np.random.default_rng(0).dirichlet(np.ones(5), size=1000).T.reshape(5, 10, 10, 10)
    return regional(np.tensordot(TRUE, columns, axes=1), columns, NAMES, method="glm", sigma=sigma)


def test_a_good_scan_is_left_alone() -> None:
    found = leaning(fitted(1e-4), MADE_OF, WITHIN, NAMES[3:], np.eye(2))
    np.testing.assert_allclose(found.mmol_l, TRUE, atol=1e-4)


def test_a_poor_scan_gives_healthy_parts_the_mean_of_their_tissues() -> None:
    found = leaning(fitted(1e4), MADE_OF, WITHIN, NAMES[3:], np.eye(2))
    values = dict(zip(NAMES, found.mmol_l, strict=True))
    assert values["GM:1"] == pytest.approx(0.75 * values["CGM"] + 0.25 * values["NAWM"], abs=0.01)


def test_parts_of_a_lesion_differ_no_more_than_the_prior_lets_them() -> None:
    loose, tight = (
        leaning(fitted(100.0), {}, {}, NAMES[3:], np.zeros((2, 2)), RoiParams(lesion_step_mmol_l=step))
        for step in (1e6, 1e-3)
    )
    assert loose.mmol_l[3] - loose.mmol_l[4] == pytest.approx(10.0, abs=1e-3)
    assert tight.mmol_l[3] == pytest.approx(tight.mmol_l[4], abs=1e-3)
    assert (tight.se[3:] < loose.se[3:]).all()


def test_fields_that_vary_alike_hold_parts_together() -> None:
    params = RoiParams(lesion_step_mmol_l=1e-3)
    together, apart = (
        leaning(fitted(100.0), {}, {}, NAMES[3:], 25.0 * np.array([[1.0, r], [r, 1.0]]), params) for r in (0.999, 0.0)
    )
    gap = [abs(fit.mmol_l[3] - fit.mmol_l[4]) for fit in (together, apart)]
    assert gap[0] < gap[1]


def test_parts_without_a_value_do_not_count() -> None:
    columns = np.random.default_rng(0).dirichlet(np.ones(5), size=1000).T.reshape(5, 10, 10, 10)
    columns[4] = 0.0
    fit = regional(np.tensordot(TRUE, columns, axes=1), columns, NAMES, method="glm", sigma=1.0)
    found = leaning(fit, {"GM:1": {"CGM": 1.0, "gone": 2.0}}, WITHIN, NAMES[3:], np.eye(2))
    assert np.isnan(found.mmol_l[4])
    assert np.isfinite(found.mmol_l[:4]).all()


def test_a_covariance_of_another_size_is_refused() -> None:
    with pytest.raises(GeometryError, match="2 parts of a lesion"):
        leaning(fitted(1.0), {}, {}, NAMES[3:], np.eye(3))
