"""Scanner factors: tables as they are, fits of a travelling phantom, what does not determine them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.image.calibration import CalibrationParams, fit_scale
from bids_sodium.image.scanners import ScannerFactor, scanner_factors, with_scanner_factor


def test_a_table_of_factors_is_taken_as_it_is() -> None:
    found = scanner_factors(
        [{"site": "A", "factor": "1.05", "factor_se": "0.01"}, {"site": "B", "factor": 1}], where="x"
    )
    assert found["A"] == ScannerFactor(scanner="A", factor=1.05, se=0.01, n=1, source="table")
    assert found["B"].se == 0


def test_one_phantom_of_unknown_content_gives_factors_about_one() -> None:
    rows = [
        {"scanner": "A", "phantom": "p", "measured_mmol_l": 50.0, "measured_se": 0.5},
        {"scanner": "B", "phantom": "p", "measured_mmol_l": 40.0, "measured_se": 0.5},
    ]
    found = scanner_factors(rows, where="x")
    assert found["A"].factor * found["B"].factor == pytest.approx(1)
    assert found["A"].factor / found["B"].factor == pytest.approx(40 / 50)
    assert "relative" in found["A"].source


def test_readings_that_scatter_widen_the_errors() -> None:
    def read(values: list[float]) -> ScannerFactor:
        rows = [{"scanner": "A", "measured_mmol_l": v, "measured_se": 0.5, "true_mmol_l": 50} for v in values]
        return scanner_factors(rows, where="x")["A"]

    near, far = read([50.0, 50.2, 49.8]), read([45.0, 50.0, 55.0])
    assert near.n == far.n == 3
    assert far.se > 4 * near.se
    assert near.factor == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([{"factor": 1.0}], DataError, "names no scanner"),
        ([{"scanner": "A"}], DataError, "neither factor nor measured_mmol_l"),
        ([{"scanner": "A", "factor": -1}], DataError, "factor is -1"),
        ([{"scanner": "A", "factor": "n/a", "measured_mmol_l": "fifty"}], DataError, "measured_mmol_l is 'fifty'"),
        ([{"scanner": "A", "factor": 1}, {"scanner": "A", "factor": 2}], DataError, "A has two factors"),
        ([{"scanner": "A", "phantom": "p", "measured_mmol_l": 50}], EstimationError, "do not determine"),
    ],
)
def test_tables_that_tell_nothing_are_refused(rows: list[dict[str, Any]], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"scanners\.tsv: .*{words}"):
        scanner_factors(rows, where="scanners.tsv")


def test_a_factor_scales_line_and_errors() -> None:
    scale = fit_scale(
        [110.0, 210.0, 430.0], [2.0, 2.0, 2.0], CalibrationParams(vial_mmol_l=(20, 40, 80), line="intercept")
    )
    factor = ScannerFactor(scanner="A", factor=1.1, se=0.03, n=3, source="table")
    corrected = with_scanner_factor(scale, factor)
    assert corrected.concentration(200.0) == pytest.approx(1.1 * scale.concentration(200.0))
    rng = np.random.default_rng(0)
    cov = [[scale.slope_se**2, scale.covariance], [scale.covariance, scale.intercept_se**2]]
    draws = rng.multivariate_normal([scale.slope, scale.intercept], cov, 40_000) * rng.normal(1.1, 0.03, (40_000, 1))
    assert corrected.slope_se == pytest.approx(draws[:, 0].std(), rel=0.03)
    assert corrected.intercept_se == pytest.approx(draws[:, 1].std(), rel=0.03)
    assert corrected.covariance == pytest.approx(np.cov(draws.T)[0, 1], rel=0.05)
