"""Fits to k-space: phase, nuisances, sums of tissues, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.tissue._samples import fit_moments
from bids_sodium.tissue.partialvolume import SampleMoments, moments, regional

NAMES = ("CGM", "NAWM", "vial")
TRUTH = np.array([40.0, 32.0, 80.0])
RNG = np.random.default_rng(0)
COLUMNS = RNG.normal(size=(3, 30, 40)) + 1j * RNG.normal(size=(3, 30, 40))
DENSITY = RNG.random((30, 40))
NOTHING = np.zeros((2, 2, 2))


def sums(noise: float = 0.0, **more: object) -> SampleMoments:
    rng = np.random.default_rng(1)
    samples = np.tensordot(TRUTH, COLUMNS, axes=1) + noise * (
        rng.normal(size=(30, 40)) + 1j * rng.normal(size=(30, 40))
    )
    return moments(samples * np.exp(2.5j), COLUMNS, NAMES, DENSITY, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("density", [False, True])
def test_concentrations_and_the_phase_are_found(density: bool) -> None:
    fit = fit_moments(sums(), density=density)
    np.testing.assert_allclose(fit.c, TRUTH)
    assert np.exp(1j * fit.phase_rad) == pytest.approx(np.exp(2.5j))
    assert fit.sigma < 1e-4


def test_moments_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sums(1.0)
    monkeypatch.setattr("bids_sodium.tissue._samples._BLOCK", 7)
    parts = sums(1.0)
    np.testing.assert_allclose(parts.squared, whole.squared)
    np.testing.assert_allclose(parts.dense_data, whole.dense_data)


def test_nuisances_are_fitted_and_not_reported() -> None:
    fit = regional(NOTHING, np.zeros((1, 2, 2, 2)), ("NAWM",), method="kspace", samples=sums())
    assert fit.names == ("NAWM",)
    assert fit.of("NAWM")[0] == pytest.approx(32.0)
    assert list(fit.n_voxels) == [1200]
    assert fit.maps.size == fit.residual.size == 0
    without = regional(NOTHING, np.zeros((2, 2, 2, 2)), NAMES[:2], method="kspace", samples=sums().of(NAMES[:2]))
    assert without.se[0] > 10 * regional(NOTHING, NOTHING[None], NAMES[:1], method="kspace", samples=sums(1.0)).se[0]


@pytest.mark.parametrize("method", ["kspace", "kspace-density"])
def test_a_doubt_moves_the_fit_as_stated(method: str) -> None:
    change = COLUMNS[0] * 0.01 + RNG.normal(size=(30, 40))
    rng = np.random.default_rng(1)
    samples = np.tensordot(TRUTH, COLUMNS, axes=1) + rng.normal(size=(30, 40)) + 1j * rng.normal(size=(30, 40))

    def fit(step: float, **more: object) -> np.ndarray:
        found = moments(samples + step * change, COLUMNS, NAMES, DENSITY, **more)  # type: ignore[arg-type]
        return regional(NOTHING, np.zeros((3, 2, 2, 2)), NAMES, method=method, samples=found)  # type: ignore[arg-type]

    stated = fit(0.0, doubts={"placing": [change, 2 * change]})
    seen = (fit(0.01).mmol_l - fit(-0.01).mmol_l) / 0.02  # type: ignore[attr-defined]
    # the phase, which noise moves a little, is taken as known
    np.testing.assert_allclose(stated.parts["placing"], np.sqrt(5) * np.abs(seen), rtol=0.02, atol=5e-3)  # type: ignore[attr-defined]
    total = np.hypot(stated.parts["noise"], stated.parts["placing"])  # type: ignore[attr-defined]
    np.testing.assert_allclose(stated.se, total)  # type: ignore[attr-defined]


def test_doubts_may_be_told_for_some_shots() -> None:
    """A change that is a mixture of columns moves the fit by that mixture, whatever the shots."""
    change = 0.3 * COLUMNS[0] - 0.2 * COLUMNS[1]
    found = sums(1.0, doubts={"placing": [change[::3]]}, thin=3)
    for density in (False, True):
        np.testing.assert_allclose(
            fit_moments(found, density=density).moved["placing"][:, 0], [0.3, -0.2, 0.0], atol=1e-4
        )


def test_empty_and_equal_columns_are_left_out() -> None:
    found = moments(40 * COLUMNS[0], [COLUMNS[0], 0 * COLUMNS[0], 2 * COLUMNS[0]], ("CGM", "L", "twice"))
    fit = regional(NOTHING, np.zeros((3, 2, 2, 2)), ("CGM", "L", "twice"), method="kspace", samples=found)
    assert fit.of("CGM")[0] == pytest.approx(40.0)
    assert np.isnan(fit.mmol_l[1:]).all()
    assert np.isnan(fit.covariance[1]).all()
    assert list(fit.n_voxels) == [1200, 0, 0]


def test_samples_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(GeometryError, match="samples of shape"):
        moments(COLUMNS[0, 1:], COLUMNS, NAMES)
    with pytest.raises(GeometryError, match="2 names and 3 columns"):
        moments(COLUMNS[0], COLUMNS, NAMES[:2])
    with pytest.raises(DataError, match="named twice"):
        moments(COLUMNS[0], COLUMNS, ("CGM", "CGM", "CSF"))
    with pytest.raises(DataError, match="least value"):
        moments(COLUMNS[0], COLUMNS, NAMES, -np.ones((30, 40)))
    with pytest.raises(GeometryError, match=r"a change of shape \(5,\)"):
        moments(COLUMNS[0], COLUMNS, NAMES, doubts={"placing": [np.ones(5, complex)]})
    with pytest.raises(EstimationError, match="empty in k-space"):
        fit_moments(moments(COLUMNS[0], 0 * COLUMNS, NAMES))
    with pytest.raises(GeometryError, match="no column of DGM"):
        regional(NOTHING, np.zeros((1, 2, 2, 2)), ("DGM",), method="kspace", samples=sums())
