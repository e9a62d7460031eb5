"""Reading the long group table: what enters, what does not, and why."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError
from bids_sodium.group.rows import Scans, choose_method, female, numeric, persons, scans
from bids_sodium.simulate.cohort import ms_cohort, stroke_cohort


def read(table: pd.DataFrame) -> Scans:
    return scans(table, method="auto", early_h=(0.0, 24.0), late_h=(24.0, 70.0), minimum_ml=1.0)


@pytest.fixture
def stroke() -> pd.DataFrame:
    return stroke_cohort(np.random.default_rng(1)).table


@pytest.fixture
def ms() -> pd.DataFrame:
    return ms_cohort(np.random.default_rng(1), (4, 4, 5, 4)).table


def test_every_row_enters_or_is_listed_with_a_reason(stroke: pd.DataFrame) -> None:
    view = read(stroke)
    assert len(view.points) + len(view.excluded) == len(stroke)
    assert (view.excluded["reason"] != "").all()
    assert (view.points["volume_ml"] >= 1.0).all()
    assert view.points["percent"].notna().all()


@pytest.mark.parametrize(
    ("hours", "reason"),
    [
        (-3.0, "which is not after onset"),
        (0.0, "which is not after onset"),
        (np.nan, "no time"),
        (90.0, "later than 70"),
    ],
)
def test_scans_at_impossible_times_do_not_enter(stroke: pd.DataFrame, hours: float, reason: str) -> None:
    moved = (stroke["participant_id"] == "sub-01") & (stroke["session_id"] == "ses-01")
    stroke.loc[moved, "onset_to_scan_h"] = hours
    view = read(stroke)
    gone = view.excluded[(view.excluded["participant_id"] == "sub-01") & (view.excluded["session_id"] == "ses-01")]
    assert len(gone) == moved.sum()
    kept_before = stroke.loc[moved, "kept"] == 1
    assert gone["reason"].str.contains(reason).sum() == kept_before.sum()


def test_windows_touch_and_do_not_overlap(stroke: pd.DataFrame) -> None:
    for hours, window in ((24.0, "early"), (24.01, "late"), (70.0, "late")):
        stroke["onset_to_scan_h"] = hours
        assert set(read(stroke).points["window"]) == {window}


def test_small_regions_are_left_out_whatever_the_flag_says(stroke: pd.DataFrame) -> None:
    stroke["kept"] = 1
    view = read(stroke)
    assert (view.points["volume_ml"] >= 1.0).all()
    assert view.excluded["reason"].str.contains("below 1 mL").any()


def test_volumes_of_small_regions_are_kept(stroke: pd.DataFrame) -> None:
    assert (read(stroke).volumes["volume_ml"] < 1.0).any()


def test_a_region_that_stands_twice_stops(stroke: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="1 rows occur twice, the first is sub-01 ses-01 ionic na"):
        read(pd.concat([stroke, stroke.iloc[:1]]))


def test_a_table_without_regions_stops(ms: pd.DataFrame, stroke: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="missing column"):
        read(ms)
    with pytest.raises(DataError, match="no row belongs to a region"):
        read(stroke.assign(roi=None))


def test_concentration_as_text_stops_with_the_text() -> None:
    with pytest.raises(DataError, match="1 of 2 entries are no numbers, the first is '40 mM'"):
        numeric(pd.Series(["40 mM", "41"]), where="column tsc_mmol_l")


def test_missing_words_are_missing_numbers() -> None:
    assert numeric(pd.Series(["n/a", "", None, "2"], dtype=object), where="x").isna().tolist() == [True] * 3 + [False]


@pytest.mark.parametrize("code", [1, "2", "x"])
def test_a_sex_that_is_a_code_is_not_guessed(code: object) -> None:
    with pytest.raises(DataError, match="are not known"):
        female(pd.Series(["F", code], dtype=object))


def test_method_to_quote_first_unless_asked(ms: pd.DataFrame) -> None:
    quoted = ms[ms["method"] == "glm"].assign(method="local")
    further = quoted.assign(method="kspace-density")
    assert choose_method(pd.concat([further, ms, quoted]), "auto") == "local"
    assert choose_method(pd.concat([further, ms]), "auto") == "glm"
    assert choose_method(ms[ms["method"] != "glm"], "auto") == "gtm"
    assert choose_method(ms[ms["method"] == "raw"], "auto") == "raw"
    assert choose_method(ms, "csf") == "csf"
    with pytest.raises(DataError, match="no row has method rbv; found csf, glm, gtm, raw"):
        choose_method(ms, "rbv")


def test_participants_without_the_method_are_listed_and_not_read_by_another(ms: pd.DataFrame) -> None:
    old = ms["participant_id"] == "sub-001"
    quoted = ms[~old & (ms["method"] == "glm")].assign(method="local", tsc_mmol_l=lambda t: t["tsc_mmol_l"] + 1.0)
    found = persons(pd.concat([ms, quoted]), method="auto")
    assert found.method == "local"
    assert found.excluded.to_numpy().tolist() == [
        ["sub-001", "no concentration by method local; has csf, glm, gtm, raw"]
    ]
    pd.testing.assert_series_equal(
        found.table["tsc_cgm"], persons(ms[~old], method="glm").table["tsc_cgm"] + 1.0, check_names=False
    )


def test_regions_without_the_method_are_listed(stroke: pd.DataFrame) -> None:
    raw = stroke.assign(method="raw")
    fitted = raw[raw["contrast"] == "tsc"].assign(method="gtm")
    lost = (fitted["participant_id"] == "sub-02") & (fitted["roi"] == "ionic")
    found = read(pd.concat([raw, fitted[~lost]]))
    assert found.method == "raw of na; gtm of tsc; raw of adc"
    told = found.excluded[found.excluded["reason"] == "no value by method gtm"]
    assert told["participant_id"].tolist() == ["sub-02"] * int(lost.sum())
    assert set(told["roi"]) == {"ionic"}
    assert len(found.points) + len(found.excluded) == len(stroke)
    single = pd.concat([raw, fitted[~lost]]).assign(session_id=np.nan)
    single = single[single["onset_to_scan_h"] < 24.0]
    assert (read(single).excluded["reason"] == "no value by method gtm").sum() == 1


def test_atlas_and_tissues_follow_the_wanted_method(ms: pd.DataFrame) -> None:
    region = ms[(ms["tissue"] == "CGM") & ms["method"].isin(["raw", "gtm"])]
    region = region.assign(roi="aal:one", contrast="tsc", ipsi=region["tsc_mmol_l"], tissue=np.nan, tsc_mmol_l=np.nan)
    table = pd.concat([ms, region])
    for wanted, own in (("raw", "raw"), ("gtm", "gtm"), ("csf", "gtm"), ("auto", "gtm")):
        people = persons(table, method=wanted).table
        by_hand = region[region["method"] == own].set_index("participant_id")["ipsi"]
        pd.testing.assert_series_equal(people["tsc_aal:one"], by_hand.sort_index(), check_names=False)


def test_one_row_a_participant_with_the_chosen_concentrations(ms: pd.DataFrame) -> None:
    people = persons(ms, method="gtm").table
    assert len(people) == 17
    picked = ms[(ms["method"] == "gtm") & (ms["tissue"] == "CGM")].set_index("participant_id")["tsc_mmol_l"]
    pd.testing.assert_series_equal(people["tsc_cgm"], picked.sort_index(), check_names=False)
    assert people.loc[people["group"] == "HC", "tsc_t1iso"].isna().all()
    assert set(people["sexn"]) <= {0.0, 1.0}


def test_first_session_enters(ms: pd.DataFrame) -> None:
    later = ms.assign(session_id="ses-02", tsc_mmol_l=ms["tsc_mmol_l"] + 100.0)
    both = persons(pd.concat([later, ms.assign(session_id="ses-01")]), method="auto")
    pd.testing.assert_frame_equal(both.table, persons(ms, method="auto").table)
    assert both.notes == ("only the first session of 17 participants with several entered",)


def test_group_labels_are_mapped(ms: pd.DataFrame) -> None:
    named = ms.assign(group=ms["group"].map({"HC": "Controls", "CIS": "cis", "RRMS": "type 2", "SPMS": "SPMS"}))
    people = persons(named, method="auto", group_aliases=(("Type 2", "RRMS"),)).table
    assert people["group"].value_counts().to_dict() == {"RRMS": 5, "HC": 4, "CIS": 4, "SPMS": 4}


def test_without_group_a_participant_is_listed(ms: pd.DataFrame) -> None:
    ms.loc[ms["participant_id"] == "sub-001", "group"] = None
    found = persons(ms, method="auto")
    assert found.excluded["participant_id"].tolist() == ["sub-001"]
    assert "sub-001" not in found.table.index


def test_text_columns_are_left_out_by_name(ms: pd.DataFrame) -> None:
    found = persons(ms.assign(z_sdmt="good", scanner="7T"), method="auto")
    assert "z_sdmt" not in found.table
    assert any("z_sdmt could not be read" in note for note in found.notes)


def test_a_tissue_that_stands_twice_stops(ms: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="rows occur twice, the first is sub-001"):
        persons(pd.concat([ms, ms[ms["method"] == "glm"].iloc[:2]]), method="auto")
