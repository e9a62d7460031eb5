"""Stated vials: what a sidecar and a table may say, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from bids_sodium.core.constants import AGAR
from bids_sodium.core.errors import DataError
from bids_sodium.image.calibration import CalibrationParams
from bids_sodium.image.phantoms import concentrations, phantoms


def test_a_table_and_a_sidecar_say_the_same() -> None:
    table = [
        {"label": "high", "concentration": "80", "inner_diameter": "28", "t1": "0.04", "t2star": "0.004;0.021"},
        {"label": "low", "concentration": "40", "inner_diameter": "n/a", "t1": "", "t2star": float("nan")},
    ]
    sidecar = [
        {"Label": "low", "Concentration": 40, "Units": "mmol/L"},
        {"Label": "high", "Concentration": 80, "InnerDiameter": 28, "T1": 0.04, "T2star": [0.021, 0.004]},
    ]
    one, other = phantoms(table, where="phantoms.tsv"), phantoms(sidecar, where="phantoms.tsv")
    assert one == other
    assert [vial.label for vial in one] == ["low", "high"]
    assert one[0].relaxation is AGAR
    assert (one[1].relaxation.t1_ms, one[1].inner_radius_mm) == (40.0, 14.0)
    assert (one[1].relaxation.decay.t2_fast_ms, one[1].relaxation.decay.t2_slow_ms) == (4.0, 21.0)
    assert one[1].relaxation.source == "phantoms.tsv"


def test_one_t2star_is_one_component() -> None:
    vial = phantoms([{"Concentration": 60.5, "T2star": 0.015}], where="x")[0]
    assert vial.label == "phantom60p5"
    assert vial.relaxation.decay.at(15.0) == pytest.approx(1 / 2.718281828)
    assert vial.relaxation.t1_ms == AGAR.t1_ms


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"Concentration": 0.04}, r"0.04 looks like mol/L \(try: give mmol/L: 40\)"),
        ({"Concentration": 2.34}, r"2.34 looks like per mille \(g NaCl/L\) \(try: give mmol/L: 40\)"),
        ({"Concentration": 40_000}, "40000 looks like umol/L"),
        ({"Concentration": 0}, "0.0 is not a positive number .* without sodium sets no scale"),
        ({"Concentration": "forty"}, "Concentration of a vial is 'forty'"),
        ({"Concentration": True}, "Concentration of a vial is True"),
        ({"Label": "a"}, "a vial has no Concentration, only Label"),
        ({"Concentration": 40, "Units": "mol/L"}, "in 'mol/L'"),
        ({"Concentration": 40, "Units": "‰"}, "convert it to mmol/L"),
        ({"Concentration": 40, "T1": 35}, "T1 of a vial is 35 s"),
        ({"Concentration": 40, "T2star": "5 20"}, "T2star of a vial is 5 s"),
        ({"Concentration": 40, "T2star": [0.005, 0.01, 0.02]}, "3 values of T2star"),
        ({"Concentration": 40, "InnerDiameter": 0.028}, "InnerDiameter of a vial is 0.028 mm"),
    ],
)
def test_what_is_no_vial_is_refused_with_where_it_stands(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=rf"phantoms\.tsv: .*{words}"):
        phantoms([row], where="phantoms.tsv")


def test_two_vials_of_one_name_and_no_vial_are_refused() -> None:
    with pytest.raises(DataError, match="2 vials are called phantom40"):
        phantoms([{"Concentration": 40}, {"Concentration": 40}], where="x")
    with pytest.raises(DataError, match="no vial is named"):
        phantoms([], where="x")


@pytest.mark.parametrize("bad", [(0.04, 0.08), (2.3, 4.7), (40, 80_000)])
def test_parameters_in_other_units_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="looks like"):
        CalibrationParams(vial_mmol_l=bad)


def test_concentrations_at_the_limits_are_taken() -> None:
    assert concentrations([5, 1000.0]) == (5.0, 1000.0)
