"""The stroke study: every analysis is there, done or left out with its reason, whatever the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import GROUP_RESULT
from bids_sodium.group import stroke
from bids_sodium.group.results import SELF_TEST, Analysis, Ledger, Study, check_rows
from bids_sodium.group.stroke import StrokeParams, analyse
from bids_sodium.simulate.cohort import stroke_cohort
from bids_sodium.simulate.fate import fate_cells, rater_table

FAST = StrokeParams(n_resamples=200, second_effects=())
NAMES = [
    "exclusions", "regions", "sigmoid", "adc", "courses", "regions_time", "volumes", "prediction", "correlations",
    "prognosis", "agreement", "planning",
]  # fmt: skip


def cohort(seed: int = 3, n: int = 15) -> pd.DataFrame:
    return stroke_cohort(np.random.default_rng(seed), n=n).table


def whole(table: pd.DataFrame) -> Study:
    """Analyse a table together with the raters of the whole cohort."""
    raters = rater_table(np.random.default_rng(1), stroke_cohort(np.random.default_rng(3)))
    return analyse(table, StrokeParams(n_resamples=200), np.random.default_rng(0), raters=raters)


@pytest.fixture(scope="module")
def study() -> Study:
    return whole(cohort())


def rows(study: Study, name: str, **match: str) -> pd.DataFrame:
    table = study[name].results
    for column, value in match.items():
        table = table[table[column] == value]
    assert len(table), match
    return table


def test_all_analyses_are_done(study: Study) -> None:
    assert [a.name for a in study.analyses] == NAMES
    assert not any(a.left_out for a in study.analyses)
    for analysis in study.analyses:
        assert tuple(analysis.results.columns) == GROUP_RESULT.names
        assert (analysis.results["analysis"] == analysis.name).all()
        assert analysis.text
        check_rows(analysis.results)


def test_every_row_says_how_it_was_made_and_of_how_many(study: Study) -> None:
    for analysis in study.analyses:
        assert analysis.results["n"].notna().all(), analysis.name
        if analysis.name != "exclusions":
            assert (analysis.results["method"] != "").all()


def test_counts_are_those_of_the_table(study: Study) -> None:
    counts = rows(study, "exclusions", term="participants with a scan").set_index("subset")["estimate"]
    assert counts.to_dict() == {"early window": 15.0, "late window": 13.0, "later scans": 0.0}
    assert rows(study, "exclusions", term="scans")["estimate"].item() == 28
    left_out = rows(study, "exclusions", term="region rows left out")["estimate"].item()
    assert left_out == len(study["exclusions"].data["excluded"])
    assert left_out + len(study["regions"].data["points"]) == len(cohort())


def test_regions_average_over_subjects(study: Study) -> None:
    points = study["regions"].data["points"]
    some = points[(points["roi"] == "ionic") & (points["contrast"] == "na") & (points["window"] == "early")]
    row = rows(study, "regions", term="ionic", outcome="sodium signal change (%)", subset="early window").iloc[0]
    assert row["estimate"] == pytest.approx(some["percent"].mean())
    assert row["se"] == pytest.approx(some["percent"].std(ddof=1) / np.sqrt(len(some)))
    assert row["n"] == some["participant_id"].nunique()
    assert row["p_adjusted"] >= row["p"]


def test_sigmoid_is_read_with_its_intervals(study: Study) -> None:
    na = "sodium signal change (%)"
    plain = rows(study, "sigmoid", model="sigmoid", outcome=na).set_index("term")
    alpha, delta, gamma = (plain.loc[k, "estimate"] for k in ("alpha (%)", "delta", "gamma"))
    for hour in (24, 48, 60, 70):
        value = alpha * hour**delta / (np.exp(gamma) + hour**delta)
        assert plain.loc[f"f({hour} h) (%)", "estimate"] == pytest.approx(value, rel=1e-9)
    assert plain.loc["t50 (h)", "estimate"] == pytest.approx(np.exp(gamma / delta))
    ratio = plain.loc["RMSE over n (%)", "estimate"] / plain.loc["RMSE over n - 3 (%)", "estimate"]
    n = plain["n"].iloc[0]
    assert ratio == pytest.approx(np.sqrt((n - 3) / n))
    assert plain.loc["asymptote identifiable", "note"] in {
        "a power law, which has no asymptote, fits as well: read f(t), not alpha",
        "a power law, which has no asymptote, fits clearly worse",
    }
    assert len(rows(study, "sigmoid", term="AICc", outcome=na)) == 7
    assert rows(study, "sigmoid", model="sigmoid, profile", outcome=na)["ci_high"].notna().all()
    curves = study["sigmoid"].data["curves"]
    assert (curves["ci_low"] <= curves["ci_high"])[curves["ci_low"].notna()].all()


def test_what_to_quote_of_the_sigmoid_is_a_table_of_its_own(study: Study) -> None:
    quoted = study["sigmoid"].data["quoted"]
    for outcome, rows in quoted.groupby("outcome"):
        told = rows.set_index("term")
        assert told.loc["asymptote identifiable", "note"].startswith("a power law"), outcome
        for hour in (24, 48, 60, 70):
            row = told.loc[f"f({hour} h) (%)"]
            assert row["ci_low"] < row["estimate"] < row["ci_high"]
        alpha = told.loc["alpha (%)"]
        assert np.isinf(alpha["ci_high"]) == ("unbounded" in alpha["note"])
    assert set(quoted["outcome"]) == {"sodium signal change (%)", "TSC change (%)"}


def test_two_random_effects_give_every_subject_a_curve(study: Study) -> None:
    for second in ("delay", "rate"):
        found = rows(study, "sigmoid", model=f"sigmoid, random asymptote and {second}")
        assert {"AIC", "SD within subjects (%)", "f(70 h) (%)"} <= set(found["term"])
    curves = study["sigmoid"].data["subjects"]
    assert curves["model"].nunique() == 3
    own = curves[(curves["model"] == "sigmoid, random asymptote and delay") & (curves["contrast"] == "na")]
    points = study["sigmoid"].data["points"]
    assert own["participant_id"].nunique() == points.loc[points["contrast"] == "na", "participant_id"].nunique()
    assert own["ci_low"].le(own["value"]).all()
    # dashed outside a subject's own scans
    assert own.groupby("participant_id")["inside"].mean().lt(1.0).all()


def test_adc_has_the_curves_that_differ_between_subjects_too(study: Study) -> None:
    found = study["adc"].results
    models = set(found.loc[found["term"] == "AIC", "model"])
    assert models == {f"sigmoid, random asymptote{second}" for second in ("", " and delay", " and rate")}
    own = study["adc"].data["subjects"]
    assert own["participant_id"].nunique() == study["adc"].data["points"]["participant_id"].nunique()
    plateaus = study["adc"].data["plateaus"]
    assert abs(plateaus["plateau_percent"].mean() - found.set_index("term").loc["plateau (%)", "estimate"]) < 2.0


def test_a_curve_without_a_maximum_has_no_interval(study: Study) -> None:
    """Seed 3: the ADC of random asymptote and delay runs towards t50 = 0."""
    rows = study["adc"].results
    told = rows[rows["note"].str.contains("no inner maximum")]
    assert len(told)
    assert told[["se", "ci_low", "ci_high"]].isna().all(axis=None)
    without = set(told["model"])
    assert not set(rows.loc[rows["model"].isin(without), "term"]) & {"mean asymptote (%)", "t50 (h)", "delta"}
    curves = study["adc"].data["curves"]
    assert curves.loc[curves["model"].isin(without), "ci_low"].isna().all()
    reasons = study.left_out["part"]
    assert all(
        (reasons == f"adc, {name.removeprefix('sigmoid, ')}: asymptote, t50 and their spread").any() for name in without
    )


def test_extrapolation_is_named(study: Study) -> None:
    last = study["sigmoid"].data["points"]["t_h"].max()
    notes = rows(study, "sigmoid", model="sigmoid", term="f(70 h) (%)")["note"]
    assert notes.str.contains("extrapolated").all() == (last < 70)


def test_regions_differ_over_time_in_both_inferences(study: Study) -> None:
    joint = rows(
        study, "regions_time", model="region x time + (1 | subject)", outcome="ADC change (%)", term="region x time"
    )
    assert joint["method"].str.contains("Kenward-Roger").sum() == 1
    assert joint["method"].str.contains("Satterthwaite").sum() == 1
    pairs = study["regions_time"].results
    pairs = pairs[pairs["method"].str.startswith("pairwise")]
    assert len(pairs) == 3 * 2 * 6
    assert (pairs["p_adjusted"] >= pairs["p"]).all()


def test_volumes_relate_to_the_last_necrosis(study: Study) -> None:
    points = study["volumes"].data["points"]
    early = points[points["window"] == "early"]
    ratio = rows(study, "volumes", model="ratio", term="ionic / necrosis", subset="early window").iloc[0]
    assert ratio["estimate"] == pytest.approx(np.exp(np.log(early["ionic"] / early["necrosis"]).mean()))
    assert rows(study, "volumes", model="signed rank")["p_adjusted"].notna().all()


def test_later_scans_give_the_final_volume_and_the_score() -> None:
    table = cohort()
    follow_up = table[
        (table["roi"] == "necrosis") & (table["contrast"] == "na") & (table["session_id"] == "ses-01")
    ].copy()
    follow_up = follow_up.assign(
        session_id="ses-m3", onset_to_scan_h=2200.0, volume_ml=follow_up["volume_ml"] * 2, mrs=4
    )
    more = analyse(pd.concat([table, follow_up]), FAST, np.random.default_rng(0))
    before = analyse(table, FAST, np.random.default_rng(0))
    a, b = (s["volumes"].data["points"]["necrosis"].to_numpy() for s in (more, before))
    np.testing.assert_allclose(a, 2 * b)
    assert (more["correlations"].data["subjects"]["mrs"] == 4).all()
    assert len(more["sigmoid"].data["points"]) == len(before["sigmoid"].data["points"])


def test_pooled_scans_are_told_from_subjects(study: Study) -> None:
    pooled = rows(study, "correlations", model="Spearman over scans, subjects permuted")
    assert pooled["ci_low"].isna().all()
    assert pooled["note"].str.contains("too small").all()
    one = rows(study, "correlations", model="Spearman, one value a subject")
    assert (one["n"] <= 15).all()


def test_the_same_seed_gives_the_same_study(study: Study) -> None:
    again = whole(cohort())
    for a, b in zip(study.analyses, again.analyses, strict=True):
        pd.testing.assert_frame_equal(a.results, b.results)


def test_order_of_rows_does_not_matter() -> None:
    shuffled = cohort().sample(frac=1.0, random_state=1)
    before, again = (analyse(table, FAST, np.random.default_rng(0)) for table in (cohort(), shuffled))
    for name in ("sigmoid", "volumes", "adc"):
        left, right = before[name].results, again[name].results
        keys = ["model", "subset", "outcome", "term", "method"]
        merged = left.merge(right, on=keys, suffixes=("", "_again"))
        assert len(merged) == len(left)
        np.testing.assert_allclose(merged["estimate"], merged["estimate_again"], rtol=1e-6)


def one_session(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["session_id"] == "ses-01"]


def no_necrosis(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["roi"].str.contains("necrosis")]


def no_diffusion(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["contrast"] != "adc"]


def two_patients(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["participant_id"].isin(["sub-01", "sub-02"])]


def one_patient(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["participant_id"] == "sub-01"]


def constant(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(percent_change=10.0, volume_ml=5.0, nihss=3, nihss_admission=3, mrs=1)


def bare(table: pd.DataFrame) -> pd.DataFrame:
    needed = ["participant_id", "session_id", "onset_to_scan_h", "roi", "contrast", "percent_change"]
    return table[needed].dropna()


def text_scores(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(nihss="five", mrs="n/a")


def same_time(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(onset_to_scan_h=np.where(table["session_id"] == "ses-01", 12.0, 48.0))


def no_times(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(onset_to_scan_h=np.nan)


def in_minutes(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(onset_to_scan_h=60.0 * table["onset_to_scan_h"])


def before_onset(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(onset_to_scan_h=-table["onset_to_scan_h"])


def one_time(table: pd.DataFrame) -> pd.DataFrame:
    return one_session(table).assign(onset_to_scan_h=12.0)


def small_regions(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(volume_ml=0.5, kept=1, reason="")


def empty_intersections(table: pd.DataFrame) -> pd.DataFrame:
    empty = table["roi"].str.contains("&")
    return table.assign(
        kept=np.where(empty, 0, table["kept"]),
        reason=np.where(empty, "the region is empty", table["reason"]),
        percent_change=table["percent_change"].where(~empty),
        volume_ml=table["volume_ml"].where(~empty, 0.0),
    )


def nothing_kept(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(kept=0, reason="bilateral lesion: no contralateral side")


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        (
            one_session,
            {
                "regions_time": "all 4 regions in both windows",
                "correlations": "0 subjects with both measures in several scans; 3 are needed",
            },
        ),
        (no_necrosis, {"volumes": "ionic and necrosis", "prediction": "both volumes", "regions_time": "1 region"}),
        (no_diffusion, {"adc": "0 subjects with adc values", "regions_time": "0 regions with adc"}),
        (
            two_patients,
            {"regions": "2 subjects with a value; 3 are needed", "sigmoid": "3 are needed", "courses": "3 are"},
        ),
        (one_patient, {"volumes": "1 subject with both volumes; 3 are needed"}),
        (
            constant,
            {
                "sigmoid": "equal 10",
                "volumes": "equal",
                "correlations": "all 15 values of ionic oedema (mL) equal 5",
                "prediction": "values of cytotoxic oedema (mL) equal 5",
                "prognosis": "sodium change (%) does not vary over",
            },
        ),
        (bare, {"volumes": "both volumes", "prediction": "both volumes"}),
        (text_scores, {"correlations": "are no numbers"}),
        (same_time, {"sigmoid": "different times"}),
        (nothing_kept, {"regions": "", "sigmoid": "0 subjects", "adc": "0 subjects"}),
        (
            no_times,
            {"regions": "none of 756 rows of regions enters: 639 no time from onset to scan", "adc": "0 subjects"},
        ),
        (in_minutes, {"courses": "scanned ... h after onset, later than ... h", "sigmoid": "0 subjects with na"}),
        (before_onset, {"regions": "scanned ... h after onset, which is not after onset", "adc": "0 subjects"}),
        (
            one_time,
            {"courses": "1 different times", "regions_time": "ionic slope are collinear", "planning": "13 scans"},
        ),
        (small_regions, {"regions": "volume ... mL is below ... mL", "prognosis": "0 subjects with regions"}),
        (
            empty_intersections,
            {"prognosis": "all 44 units have the outcome 0", "planning": "0 subjects with na of ionic"},
        ),
    ],
)
def test_what_cannot_be_computed_is_said_and_the_rest_is_done(
    change: Callable[[pd.DataFrame], pd.DataFrame], left_out: dict[str, str]
) -> None:
    study = analyse(change(cohort()), FAST, np.random.default_rng(0))
    assert [a.name for a in study.analyses] == NAMES
    reasons = study.left_out
    for name, words in left_out.items():
        told = reasons.loc[reasons["analysis"] == name, ["part", "reason"]]
        assert (told["part"] + " " + told["reason"]).str.contains(words, regex=False).any(), (name, told)
    assert not study["exclusions"].left_out
    for analysis in study.analyses:
        check_rows(analysis.results)
        assert bool(analysis.left_out) == (not len(analysis.results) and not analysis.data)


def test_what_needs_the_final_necrosis_is_left_out_by_name_without_it() -> None:
    study = analyse(no_necrosis(cohort()), FAST, np.random.default_rng(0))
    left_out = {a.name for a in study.analyses if a.left_out}
    assert left_out == {"regions_time", "prediction", "prognosis", "agreement"}
    assert "0 subjects with both volumes" in study["prediction"].left_out
    times = analyse(no_times(cohort()), FAST, np.random.default_rng(0))
    assert {a.name for a in times.analyses if not a.left_out} == {"exclusions"}


def test_a_table_that_contradicts_itself_stops_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object) -> Analysis:
        ledger = Ledger("volumes", "Volumes")
        ledger.add(term="ratio", estimate=1.0, ci_low=2.0, ci_high=3.0, n=5)
        return ledger.close()

    spoiled = tuple((name, title, wrong if name == "volumes" else make) for name, title, make in stroke._ANALYSES)
    monkeypatch.setattr(stroke, "_ANALYSES", spoiled)
    study = analyse(cohort(n=6), FAST)
    told = study["volumes"].left_out
    assert told == f"{SELF_TEST}: volumes / ratio: estimate 1 lies outside its interval 2 to 3"
    assert study.contradictions == ("volumes",)
    assert [a.name for a in study.analyses] == NAMES
    assert not study["regions"].left_out
    assert not study["planning"].left_out


def test_a_table_of_another_study_is_refused() -> None:
    with pytest.raises(DataError, match="missing column"):
        analyse(pd.DataFrame({"participant_id": ["sub-01"]}))


def test_prognosis_from_regions_says_what_it_is(study: Study) -> None:
    prognosis = study["prognosis"]
    assert "split by the outcome" in prognosis.text
    areas = rows(study, "prognosis", term="AUC")
    assert ((areas["ci_low"] <= areas["estimate"]) & (areas["estimate"] <= areas["ci_high"])).all()
    assert set(areas["subset"]) == {"all scans", "early window", "late window"}
    units = prognosis.data["units"]
    assert set(units["converted"]) == {0.0, 1.0}
    assert prognosis.data["patients"]["predicted_ml"].isna().all()


def test_prognosis_from_cells_forecasts_volumes() -> None:
    made = stroke_cohort(np.random.default_rng(3), 8)
    cells = fate_cells(np.random.default_rng(5), made)
    unknown = cells["participant_id"] == "sub-03"
    cells.loc[unknown, "necrosis_share"] = np.nan
    study = analyse(made.table, FAST, np.random.default_rng(0), cells=cells)
    patients = study["prognosis"].data["patients"]
    assert not study["prognosis"].left_out
    known = patients[(patients["subset"] == "all scans") & (patients["model"] == "sodium + ADC")]
    truth = cells[~unknown].assign(ml=cells["necrosis_share"] * cells["volume_ml"])
    sums = truth.groupby(["participant_id", "session_id"])["ml"].sum()
    found = known.set_index(["participant_id", "session_id"])["observed_ml"]
    pd.testing.assert_series_equal(found.sort_index(), sums.sort_index(), check_names=False)
    forecast = patients[patients["subset"] == "no outcome"]
    assert set(forecast["participant_id"]) == {"sub-03"}
    assert (forecast["predicted_ml"] > 0).all()
    assert forecast["observed_ml"].isna().all()


def test_one_rater_is_no_agreement() -> None:
    study = analyse(cohort(n=3), FAST, np.random.default_rng(0))
    assert study["agreement"].left_out == "no region was drawn by more than one rater"


@pytest.mark.parametrize("n", [3, 4, 6])
def test_small_cohorts_pass(n: int) -> None:
    study = analyse(cohort(n=n), FAST, np.random.default_rng(0))
    assert len(study["regions"].results)
    assert study["exclusions"].results["estimate"].notna().all()
