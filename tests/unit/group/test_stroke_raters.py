"""Agreement of raters over the group: one value a patient, every pair, and what cannot be said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group._stroke_raters import agreement
from bids_sodium.group.results import Analysis, Ledger
from bids_sodium.group.rows import Scans, scans
from bids_sodium.group.stroke import StrokeParams
from bids_sodium.simulate.cohort import stroke_cohort
from bids_sodium.simulate.fate import rater_table
from bids_sodium.stats.comparisons import intraclass

COHORT = stroke_cohort(np.random.default_rng(3), 8)


@pytest.fixture
def table() -> pd.DataFrame:
    return rater_table(np.random.default_rng(1), COHORT)


def analysed(table: pd.DataFrame | None) -> Analysis:
    view: Scans = scans(COHORT.table, method="auto", early_h=(0.0, 24.0), late_h=(24.0, 70.0), minimum_ml=1.0)
    ledger = Ledger("agreement", "Agreement of raters")
    return agreement(replace(view, raters=table), StrokeParams(), np.random.default_rng(0), ledger)


def row(found: Analysis, subset: str, term: str) -> pd.Series:
    rows = found.results[(found.results["subset"] == subset) & (found.results["term"] == term)]
    assert len(rows) == 1, term
    return rows.iloc[0]


def test_numbers_are_those_of_the_table(table: pd.DataFrame) -> None:
    found = analysed(table)
    for label, rows in table.groupby("label"):
        own = rows.groupby("participant_id")["dice"].mean()
        dice = row(found, str(label), "Dice overlap")
        assert (dice["estimate"], dice["n"]) == pytest.approx((own.mean(), len(own)))
        assert dice["se"] == pytest.approx(own.std() / np.sqrt(len(own)))
        gap = rows["volume_b_ml"] - rows["volume_a_ml"]
        bias = row(found, str(label), "bias, rater2 - rater1")
        assert (bias["estimate"], bias["n"]) == pytest.approx((gap.mean(), len(gap)))
        assert bias["se"] == pytest.approx(gap.std() / np.sqrt(len(gap)))
        limits = row(found, str(label), "limits of agreement, rater2 - rater1")
        assert (limits["ci_low"], limits["ci_high"]) == pytest.approx(
            (gap.mean() - 1.96 * gap.std(), gap.mean() + 1.96 * gap.std()), rel=1e-4
        )
        icc = row(found, str(label), "ICC(A,1)")
        assert icc["estimate"] == pytest.approx(intraclass(rows[["volume_a_ml", "volume_b_ml"]]).icc)
    points = found.data["points"]
    np.testing.assert_allclose(points["volume_difference_ml"], points["volume_b_ml"] - points["volume_a_ml"])
    assert len(points) == len(table)


def test_three_raters_are_compared_in_pairs_and_enter_one_intraclass_correlation(table: pd.DataFrame) -> None:
    third = table["volume_a_ml"] * 1.1
    more = pd.concat(
        [
            table,
            table.assign(rater_b="rater3", volume_b_ml=third),
            table.assign(rater_a="rater2", rater_b="rater3", volume_a_ml=table["volume_b_ml"], volume_b_ml=third),
        ]
    )
    found = analysed(more)
    terms = set(found.results.loc[found.results["subset"] == "ionic", "term"])
    assert {f"bias, {pair}" for pair in ("rater2 - rater1", "rater3 - rater1", "rater3 - rater2")} <= terms
    own = table[table["label"] == "ionic"]
    assert row(found, "ionic", "bias, rater3 - rater1")["estimate"] == pytest.approx((0.1 * own["volume_a_ml"]).mean())
    icc = row(found, "ionic", "ICC(A,1)")
    wide = np.column_stack([own["volume_a_ml"], own["volume_b_ml"], 1.1 * own["volume_a_ml"]])
    assert icc["estimate"] == pytest.approx(intraclass(wide).icc)
    assert "3 raters" in icc["method"]


def test_a_region_that_few_patients_have_twice_is_left_out_and_the_others_done(table: pd.DataFrame) -> None:
    few = table[(table["label"] != "ionic") | table["participant_id"].isin(["sub-01", "sub-02"])]
    found = analysed(few)
    told = found.data["left_out"].set_index("part")["reason"]
    assert told["ionic"] == "2 subjects with several raters of ionic; 3 are needed"
    assert set(found.results["subset"]) == {"cytotoxic", "necrosis"}


def test_what_is_no_table_of_raters_is_said(table: pd.DataFrame) -> None:
    for nothing in (None, table.iloc[:0]):
        with pytest.raises(EstimationError, match="no region was drawn by more than one rater"):
            analysed(nothing)
    with pytest.raises(DataError, match=r"column dice of the raters' table.*no numbers, the first is '90 %'"):
        analysed(table.assign(dice="90 %"))


def test_raters_who_agree_wholly_have_no_interval(table: pd.DataFrame) -> None:
    found = analysed(table.assign(volume_b_ml=table["volume_a_ml"], dice=1.0, hausdorff95_mm=0.0))
    told = found.data["left_out"]
    assert told["reason"].str.contains("without spread have no standard error").any()
    assert row(found, "ionic", "ICC(A,1)")["estimate"] == pytest.approx(1.0)
    assert row(found, "ionic", "bias, rater2 - rater1")["estimate"] == 0.0
