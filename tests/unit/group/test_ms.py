"""The MS study: every analysis is there, done or left out with its reason, whatever the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import GROUP_RESULT
from bids_sodium.group.ms import MsParams, analyse, clinical, label
from bids_sodium.group.results import Study, check_rows
from bids_sodium.simulate.cohort import MsCohortParams, ms_cohort

FAST = MsParams(n_resamples=200, selection_resamples=3, penalised_repeats=0)
NAMES = [
    "participants", "table1", "table2", "comparisons", "joint", "lesions", "univariable", "regressions", "bootstrap",
    "table3", "adjustment", "ordinal", "penalised", "imputation", "change", "sites", "meta", "regions", "methods",
    "planning",
]  # fmt: skip
NOT_HERE = {  # one session, no atlas, no gap; the elastic net is switched off for speed
    "penalised": "penalised_repeats is 0",
    "imputation": "complete cases are all cases",
    "change": "nobody has more than one session",
    "regions": "no region of an atlas",
}


def cohort(n: tuple[int, int, int, int] = (34, 18, 65, 13), seed: int = 5) -> pd.DataFrame:
    return ms_cohort(np.random.default_rng(seed), n).table


@pytest.fixture(scope="module")
def study() -> Study:
    return analyse(cohort(), FAST, np.random.default_rng(0))


def test_all_analyses_are_done(study: Study) -> None:
    assert [a.name for a in study.analyses] == NAMES
    for analysis in study.analyses:
        assert NOT_HERE.get(analysis.name, "") in analysis.left_out
        assert bool(analysis.left_out) == (analysis.name in NOT_HERE)
        assert tuple(analysis.results.columns) == GROUP_RESULT.names
        assert (analysis.results["n"] > 0).all()
        assert analysis.text or analysis.left_out
        check_rows(analysis.results)


def test_method_of_the_rows_is_told(study: Study) -> None:
    assert "method glm" in study["participants"].text
    by_hand = cohort()
    by_hand = by_hand[(by_hand["method"] == "glm") & (by_hand["tissue"] == "CGM") & (by_hand["group"] == "SPMS")]
    mean = study["table2"].results
    mean = mean[(mean["outcome"] == label("tsc_cgm")) & (mean["subset"] == "SPMS")].iloc[0]
    assert mean["estimate"] == pytest.approx(by_hand["tsc_mmol_l"].mean())
    assert f"SD {by_hand['tsc_mmol_l'].std():.4g}" in mean["note"]


def test_subgroups_pool_to_the_total(study: Study) -> None:
    for name in ("table1", "table2"):
        summary = study[name].data["summary"].set_index(["variable", "group"])
        for variable in summary.index.unique("variable"):
            if ("MS" not in summary.loc[variable].index) or variable in {"edss"}:
                continue
            parts = summary.loc[variable].loc[["RRMS", "SPMS"]]
            pooled = (parts["n"] * parts["mean"]).sum() / parts["n"].sum()
            assert summary.loc[(variable, "MS"), "mean"] == pytest.approx(pooled)
            assert summary.loc[(variable, "MS"), "n"] == parts["n"].sum()


def test_counts_agree_with_percentages(study: Study) -> None:
    shares = study["table1"].results
    shares = shares[shares["model"] == "share"]
    assert len(shares) > 10
    for row in shares.itertuples():
        count, total = (int(x) for x in row.note.split(" of "))
        assert total == row.n
        assert row.estimate == pytest.approx(100.0 * count / total)
    layout = study["table1"].data["layout"].set_index("variable")
    women = shares[(shares["term"] == "women") & (shares["subset"] == "MS")].iloc[0]
    assert layout.loc["Female, n (%)", "MS"] == f"{women['note'].split(' of ')[0]} ({women['estimate']:.0f})"


def test_table_1_is_in_the_papers_order(study: Study) -> None:
    names = study["table1"].data["layout"]["variable"].str.split(r" \(|,| \|", regex=True).str[0].tolist()
    assert names == [
        "n", "Age", "Female", "Disease duration", "Disease-modifying therapy", "EDSS", "Walking speed",
        "9-hole peg test", "Verbal memory", "Visual memory", "PASAT", "SDMT", "Brixton test", "Hayling test",
        "Fatigue severity score", "NART",
    ]  # fmt: skip


def test_a_score_that_impairs_nobody_is_told_with_its_counts(study: Study) -> None:
    told = study["table1"].data["left_out"]["reason"]
    assert told.str.fullmatch("nobody of 13 SPMS and 65 RRMS is impaired").any()


def test_a_trial_is_planned_from_all_who_were_compared(study: Study) -> None:
    compared = study["comparisons"].results
    planned = study["planning"].results
    for outcome, rows in planned.groupby("outcome"):
        one = compared[(compared["outcome"] == outcome) & (compared["term"] == "SPMS - RRMS")]
        assert set(rows["n"]) == set(one["n"])
        assert set(rows["df"]) == set(one["df"])


def test_footnote_marks_follow_from_p(study: Study) -> None:
    results = study["comparisons"].results
    layout = study["table2"].data["layout"].set_index("variable")
    for variable in ("tsc_cgm", "tsc_dgm", "tsc_nawm", "gmf", "bpf"):
        row = results[(results["outcome"] == label(variable)) & (results["term"] == "SPMS - RRMS")].iloc[0]
        cell = layout.loc[label(variable), "SPMS"]
        assert ("¶" in cell) == (row["p"] < 0.01)
        assert ("**" in cell) == (0.01 <= row["p"] < 0.05)
    assert "¶ p<0.01" in study["table2"].text


def test_joint_model_is_adjusted_and_antisymmetric(study: Study) -> None:
    rows = study["joint"].results
    rows = rows[rows["outcome"] == label("tsc_cgm")].set_index("term")
    assert rows.loc["SPMS - HC", "p_adjusted"] >= rows.loc["SPMS - HC", "p"]
    means = {g: rows.loc[f"adjusted mean {g}", "estimate"] for g in ("HC", "CIS", "RRMS", "SPMS")}
    for a, b in (("SPMS", "HC"), ("SPMS", "RRMS"), ("RRMS", "CIS")):
        assert rows.loc[f"{a} - {b}", "estimate"] == pytest.approx(means[a] - means[b])


def test_bootstrap_stands_beside_least_squares(study: Study) -> None:
    rows = study["bootstrap"].results
    ols, boot = rows[rows["model"] == "OLS"], rows[rows["model"] == "BCa bootstrap"]
    assert len(ols) == len(boot) > 5
    np.testing.assert_allclose(ols["estimate"], boot["estimate"])
    final = study["regressions"].results
    final = final[(final["model"] == "backward elimination") & final["note"].str.startswith("retained")]
    np.testing.assert_allclose(final["estimate"], ols["estimate"])


def test_partial_regression_has_the_slope_of_the_model(study: Study) -> None:
    points = study["regressions"].data["partial"]
    final = study["regressions"].results
    final = final[final["model"] == "backward elimination"].set_index(["subset", "outcome", "term"])
    for (subset, outcome, term), rows in points.groupby(["subset", "outcome", "term"]):
        slope = (rows["x"] * rows["y"]).sum() / (rows["x"] ** 2).sum()
        assert slope == pytest.approx(final.loc[(subset, label(outcome), term), "estimate"])


def test_sites_shift_nothing_when_modelled() -> None:
    params = MsCohortParams(sites=("A", "B"), site_shift_mmol_l=(0.0, 8.0))
    shifted = analyse(ms_cohort(np.random.default_rng(8), params=params).table, FAST)["sites"].results
    same = MsCohortParams(sites=("A", "B"), site_shift_mmol_l=(0.0, 0.0))
    plain = analyse(ms_cohort(np.random.default_rng(8), params=same).table, FAST)["sites"].results
    np.testing.assert_allclose(shifted["estimate"], plain["estimate"], rtol=1e-8)


def test_many_sites_are_random() -> None:
    params = MsCohortParams(sites=tuple("ABCDEF"), site_shift_mmol_l=(0.0, 3.0, -3.0, 1.0, -1.0, 2.0))
    study = analyse(ms_cohort(np.random.default_rng(8), params=params).table, FAST)
    rows = study["sites"].results
    assert rows["model"].str.contains("(1 | site)", regex=False).all()
    # every site, the combined estimate and where a new site is expected
    forest = study["meta"].data["forest"]
    lines = forest[(forest["term"] == "MS - HC") & forest["outcome"].str.contains("cortical")]["site"].tolist()
    assert lines[-2:] == ["all sites", "a new site (prediction)"]
    assert set(lines[:-2]) <= set("ABCDEF")


def test_walking_speed_in_both_units() -> None:
    scores = clinical(pd.DataFrame({"t25fw_s": [5.0, 10.0, np.nan, np.inf]}))
    np.testing.assert_allclose(scores["walking_speed"], [0.2, 0.1, np.nan, 0.0])
    np.testing.assert_allclose(scores["walking_speed_ft_s"], [5.0, 2.5, np.nan, 0.0])
    with pytest.raises(DataError, match="1 timed walks are not positive"):
        clinical(pd.DataFrame({"t25fw_s": [0.0, 4.0]}))


def one_progressive(table: pd.DataFrame) -> pd.DataFrame:
    people = table.loc[table["group"] == "SPMS", "participant_id"].unique()[1:]
    return table[~table["participant_id"].isin(people)]


def no_scores(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["edss", "t25fw_s", "z_sdmt"])


def empty_scores(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(z_pasat="n/a")


def raw_scores(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(z_sdmt=50.0 + 5.0 * table["z_sdmt"])


def text_scores(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(t25fw_s=table["t25fw_s"].map(lambda s: f"{s:.1f} s"))


def coded_sex(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(sex=table["sex"].map({"F": 1, "M": 2}))


def constant_outcome(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(fatigue=np.where(table["fatigue"].isna(), np.nan, 3.0))


def constant_edss(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(edss=np.where(table["edss"].isna(), np.nan, 2.0))


def half_nart(table: pd.DataFrame) -> pd.DataFrame:
    number = table["participant_id"].str[-3:].astype(int)
    return table.assign(nart_iq=table["nart_iq"].where(number % 2 == 0))


def no_nart(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="nart_iq")


def no_volumes(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["gmf", "wmf", "bpf"])


def confounded(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(site=np.where(table["group"] == "HC", "A", "B"))


def one_site(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="site")


def one_method(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["method"] == "raw"]


def no_lesions(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["tissue"].isin(["T2lesion", "T1iso", "T1hypo"])].drop(columns=["t2lv_ml", "t1lv_ml"])


def no_controls(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["group"] != "HC"]


def only_controls(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["group"] == "HC"]


def negative_walk(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(t25fw_s=-1.0)


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        (
            one_progressive,
            {"comparisons": "SPMS has 1 member with a value; 3 are needed", "joint": "SPMS has 1 member"},
        ),
        (
            no_scores,
            {"comparisons": "no column walking_speed", "univariable": "no column edss", "ordinal": "no linear"},
        ),
        (empty_scores, {"comparisons": "MS has 0 members", "univariable": "z_pasat"}),
        (raw_scores, {"participants": "which are no z scores", "univariable": "no column z_sdmt"}),
        (text_scores, {"participants": "t25fw_s could not be read", "univariable": "no column walking_speed"}),
        (
            coded_sex,
            {
                "participants": "sex could not be read: the values 1 (",
                "comparisons": "no column sex that could be read",
                "table1": "no column sex",
            },
        ),
        (constant_outcome, {"comparisons": "equal 3", "univariable": "equal 3"}),
        (constant_edss, {"comparisons": "all 96 values equal 2", "ordinal": "no linear model of the EDSS"}),
        (half_nart, {"univariable": "48 of 96 people are incomplete and left out: nart_iq 48"}),
        (no_nart, {"univariable": "no values of nart_iq, which therefore do not enter"}),
        (no_volumes, {"comparisons": "no column gmf", "lesions": "no column wmf", "sites": "no column gmf"}),
        (confounded, {"sites": "never meet at one site (A: 0 MS, 34 HC; B: 78 MS, 0 HC)"}),
        (one_site, {"sites": "one site, or no column site"}),
        (one_method, {"methods": "1 partial-volume method in the table"}),
        (no_lesions, {"lesions": "no column tsc_t2lesion", "univariable": "no values of tsc_t1iso"}),
        (no_controls, {"comparisons": "HC has 0 members", "methods": "HC has 0 members"}),
        (only_controls, {"regressions": "no elimination", "lesions": "no column tsc_t2lesion", "ordinal": "no linear"}),
        (negative_walk, {"participants": "timed walks are not positive", "comparisons": "no column walking_speed"}),
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
        assert (told["part"] + " " + told["reason"]).str.contains(words, regex=False).any(), (name, told.to_numpy())
    for name in ("participants", "table1", "table2"):
        assert not study[name].left_out
    for analysis in study.analyses:
        check_rows(analysis.results)


def test_few_patients_pass() -> None:
    study = analyse(cohort((4, 4, 5, 4)), FAST, np.random.default_rng(0))
    assert [a.name for a in study.analyses] == NAMES
    reasons = study.left_out
    assert reasons.loc[reasons["analysis"] == "univariable", "reason"].str.contains("needs at least").any()
    assert len(study["comparisons"].results)


def test_two_participants_pass() -> None:
    study = analyse(cohort((1, 0, 1, 0)), FAST, np.random.default_rng(0))
    assert study["comparisons"].left_out
    assert not study["participants"].left_out


def test_ms_group_without_courses() -> None:
    table = cohort()
    table["group"] = table["group"].replace({"RRMS": "MS", "SPMS": "MS"})
    study = analyse(
        table,
        MsParams(ms_groups=("MS",), n_resamples=100, selection_resamples=2, penalised_repeats=0),
        np.random.default_rng(0),
    )
    rows = study["comparisons"].results
    assert "MS - HC" in set(rows["term"])
    assert not rows["term"].str.contains("MS - MS").any()


def test_a_table_of_another_study_is_refused() -> None:
    with pytest.raises(DataError, match="missing column"):
        analyse(pd.DataFrame({"participant_id": ["sub-01"]}))
