"""Relaxation: the warning where TR is short, with the size of the error, and the factor's standard error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bids_sodium.core.constants import AGAR, RELAXATION
from bids_sodium.image.relaxation import relaxation_effect, relaxation_factor


def test_a_short_tr_is_told_with_the_size_of_the_error() -> None:
    sequence = {"te_ms": 0.2, "tr_ms": 30.0, "flip_deg": 90.0}
    found = relaxation_effect(AGAR, RELAXATION["CSF"], **sequence)
    longer = replace(RELAXATION["CSF"], t1_ms=55.0 * 1.1)
    change = 100 * (relaxation_factor(AGAR, longer, **sequence) / found.factor - 1)
    assert change > 5
    assert f"10 % longer changes the concentration by {change:+.1f} %" in found.note
    assert found.recovered_tissue == pytest.approx(0.42, abs=0.01)
    assert found.se > 0.05 * found.factor


def test_a_long_tr_is_not() -> None:
    found = relaxation_effect(AGAR, RELAXATION["GM"], te_ms=0.2, tr_ms=200.0, flip_deg=90.0)
    assert found.note == ""
    assert found.recovered_vial > 0.99
    assert found.se < 0.02 * found.factor


def test_a_small_angle_leaves_magnetisation() -> None:
    steep = relaxation_effect(AGAR, RELAXATION["CSF"], te_ms=0.2, tr_ms=30.0, flip_deg=90.0)
    shallow = relaxation_effect(AGAR, RELAXATION["CSF"], te_ms=0.2, tr_ms=30.0, flip_deg=20.0)
    assert shallow.recovered_tissue > 0.9 > steep.recovered_tissue
    assert shallow.note == ""
