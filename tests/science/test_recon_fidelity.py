"""The default reconstruction against the truth of a whole head at the size of the stroke study."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bids_sodium.core.constants import relaxation_of
from bids_sodium.recon.psf import point_spread
from bids_sodium.recon.solvers import Linear, ReconstructionParams

pytestmark = pytest.mark.slow

DEFAULT = ReconstructionParams()


@pytest.fixture(scope="module")
def fidelity() -> ModuleType:
    """The benchmark ``tests/bench/fidelity.py``, whose phantom and scores these are."""
    path = Path(__file__).resolve().parents[1] / "bench" / "fidelity.py"
    spec = importlib.util.spec_from_file_location("bench_fidelity", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the names of their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def phantom(fidelity: ModuleType):
    return fidelity.scan(*fidelity.stroke_protocol())


def test_default_keeps_error_and_lesion_within_the_bars(fidelity: ModuleType, phantom) -> None:
    found = fidelity.errors(phantom, DEFAULT)
    assert found.rmse["brain"] <= 3.7
    assert found.contrast >= 0.86
    assert abs(found.bias["GM"]) < 1.0
    assert abs(found.bias["WM"]) < 1.0
    assert found.rmse["brain"] < found.rmse_at_half_snr < 4.3


def test_unfiltered_adjoint_errs_as_published(fidelity: ModuleType, phantom) -> None:
    """6.6 mmol/L was measured on another phantom; far from it, this one would be too easy or too hard for the bar."""
    found = fidelity.errors(phantom, ReconstructionParams(mode="paper"))
    assert 6.0 <= found.rmse["brain"] <= 7.2
    assert 0.90 <= found.contrast <= 0.97


@pytest.mark.parametrize(("tissue", "unfiltered_mm"), [(None, 6.36), ("soft", 7.47)])
def test_stated_width_is_that_of_the_default_image(
    fidelity: ModuleType, tissue: str | None, unfiltered_mm: float
) -> None:
    """Points on a voxel and between two sample the profile at every 2 mm."""
    trajectory, grid = fidelity.stroke_protocol()
    decay = None if tissue is None else relaxation_of(tissue).decay
    assert point_spread(trajectory, decay=decay).fwhm_mm == pytest.approx(unfiltered_mm, rel=0.01)
    shown = {"filter": DEFAULT.apodisation, "filter_width": DEFAULT.filter_width}
    spread = point_spread(trajectory, decay=decay, **shown)
    operator = Linear(trajectory, grid)
    left = np.ones(trajectory.n_samples) if decay is None else decay.at(trajectory.t_ms)
    away, seen = [], []
    for shift_mm in (0.0, 2.0):
        wave = np.exp(-2j * np.pi * trajectory.k_per_mm[..., 0] * shift_mm)
        seen.append(operator((64.0 * left * wave).astype(np.complex64)).real[26:39, 32, 32])
        away.append(np.abs(4.0 * np.arange(-6, 7) - shift_mm))
    assert np.array(seen) / seen[0][6] == pytest.approx(np.interp(away, spread.r_mm, spread.profile), abs=0.015)
