"""The self-test of result rows, and the ledger that runs it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError, EstimationError, InternalError
from bids_sodium.core.tables import GROUP_RESULT
from bids_sodium.group.results import SELF_TEST, Analysis, Ledger, Study, attempted, check_rows, empty_results

GOOD = {
    "term": "x",
    "estimate": 2.0,
    "se": 0.5,
    "ci_low": 1.0,
    "ci_high": 3.0,
    "df": 20,
    "p": 0.001,
    "n": 22,
    "null": 0.0,
}


def test_a_sound_row_passes_unchanged() -> None:
    table = pd.DataFrame([GOOD])
    assert check_rows(table) is table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimate": 3.1}, "outside its interval"),
        ({"estimate": 0.9}, "outside its interval"),
        ({"estimate": float("nan")}, "outside its interval"),
        ({"ci_high": -3.0}, "outside its interval"),  # the sign that the MS paper lost
        ({"ci_low": 3.5, "ci_high": 1.0}, "outside its interval"),
        ({"p": 1.2}, "p is 1.2"),
        ({"p": -0.1}, "p is -0.1"),
        ({"p": 0.2}, "excludes 0"),
        ({"ci_low": -1.0}, "includes 0"),
        ({"se": -1.0}, "se is -1"),
        ({"n": -1}, "n is -1"),
        ({"df": -2}, "df is -2"),
        ({"p_adjusted": 0.0001}, "below p"),
        ({"p_adjusted": 1.5}, "p_adjusted is 1.5"),
        ({"null": 1.5, "p": 0.001}, "includes 1.5"),
    ],
)
def test_a_row_that_contradicts_itself_stops(change: dict[str, float], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        check_rows(pd.DataFrame([GOOD, {**GOOD, **change}]))


def test_unbounded_limits_pass() -> None:
    check_rows(pd.DataFrame([{**GOOD, "ci_high": np.inf}, {**GOOD, "ci_high": np.nan}]))
    check_rows(pd.DataFrame([{**GOOD, "ci_low": np.nan, "ci_high": np.nan}]))


def test_p_and_interval_of_different_procedures_need_not_agree() -> None:
    check_rows(pd.DataFrame([{**GOOD, "p": 0.2, "null": np.nan}]))


def test_interval_level_is_that_of_the_p_value() -> None:
    row = {**GOOD, "p": 0.07}
    check_rows(pd.DataFrame([row]), confidence=0.90)
    with pytest.raises(InternalError):
        check_rows(pd.DataFrame([row]), confidence=0.95)


def test_ledger_names_the_offending_row() -> None:
    ledger = Ledger("volumes", "Volumes")
    ledger.add(model="paired t", term="ionic", estimate=1.0, ci_low=2.0, ci_high=3.0)
    with pytest.raises(InternalError, match=r"volumes / paired t / ionic: estimate 1 lies outside"):
        ledger.close()


def test_ledger_refuses_unknown_columns() -> None:
    with pytest.raises(InternalError, match="no column named slope"):
        Ledger("a", "A").add(slope=1.0)


def test_part_that_fails_takes_its_rows_along_and_is_listed() -> None:
    ledger = Ledger("curve", "Curve")
    ledger.add(term="kept", estimate=1.0)
    with ledger.part("profile"):
        ledger.add(term="begun", estimate=2.0)
        raise EstimationError("3 points do not determine 3 parameters")
    with ledger.part("table"):
        raise DataError("column age is missing")
    analysis = ledger.close()
    assert analysis.results["term"].tolist() == ["kept"]
    assert not analysis.left_out
    study = Study(study="stroke", analyses=(analysis,))
    assert study.left_out.to_numpy().tolist() == [
        ["curve", "profile", "3 points do not determine 3 parameters"],
        ["curve", "table", "column age is missing"],
    ]


def test_bugs_are_not_left_out_quietly() -> None:
    ledger = Ledger("a", "A")
    with pytest.raises(ZeroDivisionError), ledger.part("x"):
        raise ZeroDivisionError


def test_ledger_without_rows_is_left_out() -> None:
    ledger = Ledger("a", "A")
    ledger.skip("", "2 subjects; 3 are needed")
    assert ledger.close().left_out == "2 subjects; 3 are needed"
    assert Ledger("b", "B").close().left_out


def test_holm_over_a_family() -> None:
    ledger = Ledger("a", "A")
    ledger.add(term="before", estimate=0.0, p=0.5)
    start = len(ledger)
    for p in (0.01, 0.04, 0.03, float("nan")):
        ledger.add(term=str(p), estimate=1.0, p=p)
    ledger.adjust(start)
    adjusted = ledger.close().results["p_adjusted"].to_numpy()
    np.testing.assert_allclose(adjusted, [np.nan, 0.03, 0.06, 0.06, np.nan])


def test_only_a_contradiction_or_unfit_data_leaves_one_analysis_out() -> None:
    def wrong() -> Analysis:
        ledger = Ledger("b", "B")
        ledger.add(term="mean", p=1.2)
        return ledger.close()

    def broken() -> Analysis:
        raise ZeroDivisionError

    done = Ledger("a", "A").close()
    assert attempted("a", "A", lambda: done) is done
    told = attempted("b", "B", wrong)
    assert told.left_out == f"{SELF_TEST}: b / mean: p is 1.2"
    assert Study(study="ms", analyses=(done, told)).contradictions == ("b",)
    with pytest.raises(ZeroDivisionError):
        attempted("c", "C", broken)


def test_tables_have_the_columns_of_the_schema() -> None:
    ledger = Ledger("a", "A")
    ledger.add(term="x", estimate=1)
    for table in (ledger.close().results, empty_results()):
        assert tuple(table.columns) == GROUP_RESULT.names


def test_study_finds_analyses_by_name() -> None:
    analysis = Analysis(name="a", title="A", results=empty_results(), left_out="no scan")
    study = Study(study="ms", analyses=(analysis,))
    assert study["a"] is analysis
    with pytest.raises(KeyError):
        study["b"]
