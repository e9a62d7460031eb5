"""What stands round the paper's tables: checks of the final models, follow-up, gaps, sites, regions, self-tests."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_sodium.app import _write_study
from bids_sodium.core.errors import ConfigError, DataError, InternalError
from bids_sodium.group import ms
from bids_sodium.group._ms_sites import regions, travelled
from bids_sodium.group._ms_view import Known
from bids_sodium.group.ms import MsParams, analyse, label
from bids_sodium.group.results import SELF_TEST, Ledger, Study, by_reason, check_pools, check_rows
from bids_sodium.report.groups import group_page
from bids_sodium.simulate.cohort import Cohort, MsCohortParams, ms_cohort
from bids_sodium.simulate.consortium import ConsortiumParams, consortium
from bids_sodium.stats.harmonization import combat
from bids_sodium.stats.regression import ols

FAST = MsParams(n_resamples=99, selection_resamples=0, penalised_repeats=0, imputations=0)
SMALL = replace(FAST, disability=("edss",), cognition=())
FACTORS = (("B", 1.10), ("C", 0.92))


def grown(seed: int = 5) -> Cohort:
    """Return a cohort of three sites with two follow-ups, six travellers, an atlas and gaps."""
    rng = np.random.default_rng(seed)
    params = MsCohortParams(sites=("A", "B", "C"))
    extra = ConsortiumParams(
        visits_years=(0.0, 1.0, 2.5), travellers=6, n_regions=12, missing_share=0.1, site_factors=FACTORS
    )
    return consortium(ms_cohort(rng, (40, 24, 60, 36), params=params), rng, extra)


@pytest.fixture(scope="module")
def big() -> Cohort:
    return grown()


@pytest.fixture(scope="module")
def study(big: Cohort) -> Study:
    params = MsParams(
        n_resamples=99, selection_resamples=0, penalised_repeats=1, imputations=5,
        disability=("edss", "walking_speed", "z9hpt"), cognition=("z_pasat", "z_sdmt"),
    )  # fmt: skip
    return analyse(big.table, params, np.random.default_rng(0))


def test_nothing_is_left_out_of_a_consortium_with_everything(study: Study) -> None:
    assert not [a.name for a in study.analyses if a.left_out]
    for analysis in study.analyses:
        check_rows(analysis.results)


# ---- Table 3 and its checks ----


def test_table_3_has_the_papers_columns_and_the_models_numbers(study: Study) -> None:
    layout = study["table3"].data["layout"].fillna("")
    assert layout.columns[0] == "Clinical measure"
    halves = [c for c in layout if c.endswith(": TSC")]
    assert halves == ["All patients (n=120): TSC", "Patients with MS (n=96): TSC"]
    first = layout.iloc[0]
    assert first["Clinical measure"] == "EDSS"
    rows = study["table3"].results
    row = rows[(rows["subset"] == "patients") & (rows["outcome"] == "EDSS")].iloc[0]
    assert first["All patients (n=120): beta"] == f"{row['estimate']:.3f}"
    boot = study["bootstrap"].results
    boot = boot[(boot["model"] == "BCa bootstrap") & (boot["outcome"] == "EDSS") & (boot["subset"] == "patients")]
    limits = boot[boot["term"] == row["term"]].iloc[0]
    want = f"{row['ci_low']:.3f} to {row['ci_high']:.3f} ({limits['ci_low']:.3f} to {limits['ci_high']:.3f}*)"
    assert first["All patients (n=120): 95% CI"] == want
    # the sign of the upper limit is the one that the paper lost
    speed = rows[rows["outcome"] == "Walking speed (1/s)"]
    assert (speed["ci_low"] <= speed["estimate"]).all()
    assert (speed["estimate"] <= speed["ci_high"]).all()


def test_q_values_run_over_the_outcomes(study: Study) -> None:
    rows = study["regressions"].results
    rows = rows[(rows["model"] == "backward elimination") & (rows["subset"] == "patients")]
    kept = rows[rows["note"].str.startswith("retained")]
    m, p = len(kept), np.sort(kept["p"].to_numpy())
    by_hand = np.minimum.accumulate((p * m / np.arange(1, m + 1))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(kept["p_adjusted"]), by_hand)
    assert rows.loc[rows["note"].str.startswith("forced"), "p_adjusted"].isna().all()


def test_robust_errors_are_those_of_hc3(study: Study, big: Cohort) -> None:
    robust = study["regressions"].data["robust"]
    row = robust[(robust["subset"] == "patients") & (robust["outcome"] == "edss") & (robust["term"] == "gmf")].iloc[0]
    people = study["participants"].data["points"].set_index("participant_id")
    terms = robust[(robust["subset"] == "patients") & (robust["outcome"] == "edss")]["term"].tolist()
    people = people[people["group"] != "HC"].dropna(subset=["edss", "tsc_cgm", "tsc_dgm", "tsc_nawm", "gmf"])
    fit = ols(np.column_stack([np.ones(len(people)), people[terms]]), people["edss"], names=["one", *terms])
    assert row["se_hc3"] == pytest.approx(fit.se_hc3[fit.names.index("gmf")], rel=1e-9)
    assert row["ci_low_hc3"] < row["estimate"] < row["ci_high_hc3"]


def test_added_covariates_that_matter_are_called_material() -> None:
    """Concentration and outcome both follow age: with age in the model the coefficient goes."""
    table = ms_cohort(np.random.default_rng(3), (10, 40, 90, 50)).table
    people = table.drop_duplicates("participant_id").set_index("participant_id")
    rng = np.random.default_rng(0)
    old = (people["age"] - people["age"].mean()) / people["age"].std()
    fatigue = 4.0 + old + 0.3 * rng.normal(size=len(people))
    shift = table["participant_id"].map(3.0 * old).where(table["tissue"].isin(["CGM"]), 0.0)
    table = table.assign(tsc_mmol_l=table["tsc_mmol_l"] + shift, fatigue=table["participant_id"].map(fatigue))
    params = replace(FAST, disability=("fatigue",), cognition=(), sensitivity=("age", "sexn"))
    changes = analyse(table, params)["adjustment"].data["changes"]
    at = changes[(changes["subset"] == "patients") & (changes["term"] == "tsc_cgm")].set_index("added")
    assert at.loc["age", "material"] == 1
    assert at.loc["age, sexn", "material"] == 1
    assert abs(at.loc["age", "estimate_with_more"]) < 0.3 * abs(at.loc["age", "estimate"])
    assert at.loc["sexn", "material"] == 0


def test_adjustment_is_the_model_with_one_column_more(study: Study) -> None:
    rows = study["adjustment"].results
    models = set(rows["model"])
    want = {"final model + age", "final model + sexn", "final model + disease_duration"}
    assert models == want | {"final model + age + sexn + disease_duration"}
    share = study["adjustment"].data["changes"]["material"].mean()
    assert f"{int(study['adjustment'].data['changes']['material'].sum())} of {len(rows)} coefficients" in (
        study["adjustment"].text
    )
    assert share < 0.5


def test_elastic_net_stands_beside_every_elimination(study: Study) -> None:
    models = study["penalised"].data["models"]
    assert len(models) == len(study["regressions"].data["models"])
    # what people outside the sample see is less than what the sample says of itself
    assert (models["r2_cv"] < models["r2_elimination"] + 0.05).mean() > 0.8
    rows = study["penalised"].results
    assert rows["p"].isna().all()
    assert rows["ci_low"].isna().all()


def test_imputation_uses_more_people_and_agrees_with_complete_cases(study: Study) -> None:
    rows = study["imputation"].results
    keys = ["subset", "outcome", "term"]
    complete = rows[rows["model"] == "complete cases"].set_index(keys)
    drawn = rows[rows["model"] == "multiple imputation"].set_index(keys)
    assert complete.index.equals(drawn.index)
    assert (drawn["n"] >= complete["n"]).all()
    assert (drawn["n"] > complete["n"]).any()
    assert (abs(drawn["estimate"] - complete["estimate"]) < 2 * complete["se"]).all()
    final = study["regressions"].results
    final = final[final["model"] == "backward elimination"].set_index(keys)
    np.testing.assert_allclose(complete["estimate"], final.loc[complete.index, "estimate"])


# ---- follow-up ----


def test_slopes_cover_the_truth(study: Study, big: Cohort) -> None:
    rows = study["change"].results
    assert rows["outcome"].str.contains("mmol/L a year").all()
    hits = total = 0
    for row in rows[rows["term"].str.fullmatch(r"change a year, \w+")].itertuples():
        group = row.term.rpartition(" ")[2]
        if "lesions" in row.outcome:
            continue
        hits += int(row.ci_low <= big.true("change", group) * 1.0 <= row.ci_high)
        total += 1
    assert total == 12
    assert hits >= 9  # 11.4 expected, tissues of a session move together
    fast = rows[rows["term"] == "change a year, SPMS"]
    assert (fast["p"] < 0.001).all()
    assert rows["model"].str.contains("(1 + time | person)", regex=False).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop(columns="time_years"), "no column of time_years, acq_time, age varies"),
        (lambda t: t[t["session_id"] == "ses-01"], "nobody has more than one session"),
        (lambda t: t.assign(time_years="soon"), "the first is 'soon'"),
    ],
)
def test_time_that_is_not_known_is_said(big: Cohort, change: object, reason: str) -> None:
    table = big.table[~big.table["session_id"].str.startswith("ses-at")]
    found = analyse(change(table), SMALL)["change"]  # type: ignore[operator]
    assert reason in found.left_out


def test_dates_of_sessions_tell_the_time(big: Cohort) -> None:
    params = SMALL
    table = big.table[~big.table["session_id"].str.startswith("ses-at")]
    days = pd.to_timedelta((table["time_years"] * 365.25).round(), unit="D")
    dated = table.drop(columns="time_years").assign(
        acq_time=(pd.Timestamp("2020-02-01") + days).dt.strftime("%Y-%m-%d")
    )
    a, b = (analyse(t, params)["change"].results for t in (table, dated))
    np.testing.assert_allclose(a["estimate"], b["estimate"], rtol=2e-3)


# ---- sites ----


def test_travelling_people_make_sites_equal(big: Cohort) -> None:
    even, factors, notes = travelled(big.table, FAST)
    at = factors.set_index("site")
    spread = big.true("site_factor", "B") / big.true("site_factor", "C")
    ratio = at.loc["C", "factor"] / at.loc["B", "factor"]
    se = ratio * np.hypot(at.loc["C", "se"] / at.loc["C", "factor"], at.loc["B", "se"] / at.loc["B", "factor"])
    assert abs(ratio - spread) < 3 * se
    assert se < 0.02
    assert "made equal by 6 people scanned at several of them" in notes[0]
    by_hand = big.table["tsc_mmol_l"] * big.table["site"].map(at["factor"])
    np.testing.assert_allclose(even["tsc_mmol_l"], by_hand)


def test_factors_of_a_phantom_go_before_travelling_people(big: Cohort) -> None:
    params = replace(FAST, site_factors=tuple((site, 1 / value) for site, value in FACTORS))
    even, factors, _ = travelled(big.table, params)
    b = big.table["site"] == "B"
    np.testing.assert_allclose(even.loc[b, "tsc_mmol_l"], big.table.loc[b, "tsc_mmol_l"] / 1.10)
    assert set(factors["source"]) == {"given"}
    with pytest.raises(DataError, match="factors of Z, which no row names"):
        travelled(big.table, replace(FAST, site_factors=(("Z", 1.0),)))


def test_readings_of_a_travelling_phantom_are_applied_once(big: Cohort) -> None:
    readings = pd.DataFrame({"site": ["A", "B", "C"], "measured_mmol_l": [50.0, 55.0, 45.0], "true_mmol_l": 50.0})
    even, factors, notes = travelled(big.table, FAST, readings)
    factor = big.table["site"].map({"A": 1.0, "B": 50.0 / 55.0, "C": 50.0 / 45.0})
    np.testing.assert_allclose(even["tsc_mmol_l"], big.table["tsc_mmol_l"] * factor)
    assert set(factors["source"]) == {"known content"}
    assert notes == ["concentrations of 3 sites were multiplied with the factors given"]
    corrected = big.table.assign(scanner_factor=factor.where(big.table["site"] == "B"))
    both = replace(FAST, site_factors=(("A", 1.02),))
    with pytest.raises(ConfigError, match=r"factors of A in ms\.site_factors and a table of --scanners"):
        travelled(big.table, both, readings)
    n = big.table.loc[big.table["site"] == "B", "participant_id"].nunique()
    twice = rf"the participant level has already multiplied B \({n} participants\) with a factor"
    with pytest.raises(ConfigError, match=twice):
        travelled(corrected, FAST, readings)
    with pytest.raises(ConfigError, match=twice):
        travelled(corrected, replace(FAST, site_factors=(("A", 1.0), ("B", 0.9))))
    # factors of the sites that the participant level left as they are
    rest, _, _ = travelled(corrected, FAST, readings[readings["site"] != "B"])
    np.testing.assert_allclose(
        rest["tsc_mmol_l"], big.table["tsc_mmol_l"] * factor.where(big.table["site"] != "B", 1.0)
    )
    with pytest.raises(DataError, match=rf"no factor for B \({n} participants\); there are A, C"):
        travelled(big.table, FAST, readings[readings["site"] != "B"])
    nowhere = big.table.drop(columns="site")
    with pytest.raises(DataError, match=r"no factor for no site \(\d+ participants\); there are A, B, C"):
        travelled(nowhere, FAST, readings)
    with pytest.raises(DataError, match="factors of A, which no row names"):
        travelled(nowhere, both)
    # a scanner goes before its site, as at the participant level
    by_scanner, _, _ = travelled(nowhere.assign(scanner=big.table["site"]), FAST, readings)
    np.testing.assert_allclose(by_scanner["tsc_mmol_l"], even["tsc_mmol_l"])


def test_two_travellers_are_too_few(big: Cohort) -> None:
    who = big.table.loc[big.table["session_id"].str.startswith("ses-at"), "participant_id"].unique()
    fewer = big.table[~(big.table["session_id"].str.startswith("ses-at") & ~big.table["participant_id"].isin(who[:2]))]
    same, factors, notes = travelled(fewer, FAST)
    assert same is fewer
    assert not len(factors)
    assert notes == ["2 people scanned at several sites; 3 are needed to compare these"]
    assert travelled(big.table, replace(FAST, travelling=False))[2] == []


def test_site_by_diagnosis_is_shown_and_pools_to_everyone(study: Study) -> None:
    counts = study["sites"].data["counts"].set_index("site")
    assert counts.to_numpy().sum() == 160
    assert set(counts.columns) == {"HC", "CIS", "RRMS", "SPMS"}


def test_a_site_with_one_diagnosis_adds_nothing_and_is_named() -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    who = table.loc[table["group"] == "HC", "participant_id"].unique()[:12]
    moved = table.assign(site=table["site"].where(~table["participant_id"].isin(who), "D"))
    params = SMALL
    sites = analyse(moved, params)["sites"]
    told = sites.data["left_out"].set_index("part")["reason"]
    assert told["site D"] == "12 HC only: it adds nothing to a difference between groups"
    without = analyse(moved[moved["site"] != "D"], params)["sites"].results
    pair = sites.results["term"] == "MS - HC"
    # the site's own level takes its people out of the difference; they still help with the covariate
    np.testing.assert_allclose(
        sites.results.loc[pair, "estimate"], without.loc[without["term"] == "MS - HC", "estimate"], atol=0.25
    )


# ---- regions ----


def test_regions_after_combat_are_those_of_combat(study: Study) -> None:
    even = study["regions"].data["harmonised"].set_index("participant_id")
    people = study["participants"].data["points"].set_index("participant_id")
    names = [c for c in even if c.startswith("tsc_roi")]
    assert len(names) == 12
    kept = np.column_stack([people["group"] == g for g in ("HC", "RRMS", "SPMS")]).astype(float)
    want = combat(people[names], people["site"], np.column_stack([kept, people["bpf"]])).values
    np.testing.assert_allclose(even.loc[people.index, names], want, atol=1e-9)
    rows = study["regions"].results
    assert set(rows["model"]) == {"group + bpf + site (fixed)", "group + bpf, ComBat parametric"}
    assert (rows["p_adjusted"] >= rows["p"]).all()


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"combat": "nonparametric"}, {"parametric": False}),
        ({"combat": "mean-only"}, {"mean_only": True}),
        ({"combat_reference": "B"}, {"reference": "B"}),
        ({"region_covariates": ()}, {}),
    ],
)
def test_every_variant_of_combat_can_be_chosen(big: Cohort, settings: dict[str, Any], options: dict[str, Any]) -> None:
    params = replace(SMALL, **settings)
    view = ms._view(big.table, params, None, None)
    ledger = Ledger("regions", "Regions")
    found = regions(view, params, np.random.default_rng(0), ledger, Known())
    even = found.data["harmonised"].set_index("participant_id")
    names = [c for c in even if c.startswith("tsc_roi")]
    people = view.people
    kept = np.column_stack([people["group"] == g for g in ("HC", "RRMS", "SPMS")]).astype(float)
    if params.region_covariates:
        kept = np.column_stack([kept, people["bpf"]])
    want = combat(people[names], people["site"], kept, **options).values
    np.testing.assert_allclose(even.loc[people.index, names], want, atol=1e-9)
    told = f"ComBat {params.combat}" + (", reference B" if params.combat_reference else "")
    assert found.results["model"].str.endswith(told).sum() == 2 * len(names)


def test_combat_brings_region_effects_nearer_to_truth_than_ignoring_sites(big: Cohort, study: Study) -> None:
    rows = study["regions"].results
    rows = rows[rows["term"] == "SPMS - RRMS"]
    off: dict[str, float] = {}
    for model, part in rows.groupby("model"):
        truth = [
            big.true("region_effect", f"{name.split()[1]}:SPMS") - big.true("region_effect", f"{name.split()[1]}:RRMS")
            for name in part["outcome"]
        ]
        off[str(model)] = float(np.sqrt(np.mean((part["estimate"] - truth) ** 2)))
    alone = analyse(big.table.assign(site="A"), SMALL)["regions"].results
    alone = alone[alone["term"] == "SPMS - RRMS"].set_index("outcome")["estimate"]
    truth = [
        big.true("region_effect", f"{name.split()[1]}:SPMS") - big.true("region_effect", f"{name.split()[1]}:RRMS")
        for name in alone.index
    ]
    ignoring = float(np.sqrt(np.mean((alone - truth) ** 2)))
    assert max(off.values()) < ignoring


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (replace(FAST, combat_regions=13), "12 regions; ComBat learns its prior from 13 or more"),
        (replace(FAST, combat_site=70), "sites with fewer than 70 complete participants: "),
        (replace(FAST, combat_reference="Z"), "reference 'Z' is not among the sites A, B, C"),
    ],
)
def test_combat_without_its_conditions_is_left_out(big: Cohort, params: MsParams, words: str) -> None:
    regions = analyse(big.table, replace(params, disability=("edss",), cognition=()))["regions"]
    told = regions.data["left_out"]
    assert told.loc[told["part"] == "ComBat", "reason"].str.contains(words, regex=False).any()
    assert (regions.results["model"] == "group + bpf + site (fixed)").all()


def test_regions_of_the_region_table_are_read(big: Cohort) -> None:
    """The participant level writes regions of an atlas as roi rows, ``atlas:region``."""
    rois = big.table["tissue"].astype(str).str.startswith("roi")
    rows = big.table[rois].assign(
        roi="aal:" + big.table.loc[rois, "tissue"], contrast="tsc", ipsi=big.table.loc[rois, "tsc_mmol_l"], kept=1
    )
    written = pd.concat([big.table[~rois], rows.assign(tissue=np.nan, method=np.nan, tsc_mmol_l=np.nan)])
    params = SMALL
    a, b = (analyse(t, params)["regions"].results for t in (big.table, written))
    assert b["outcome"].iloc[0] == "TSC aal:roi001 (mmol/L)"
    np.testing.assert_allclose(a["estimate"], b["estimate"], rtol=1e-9)


# ---- sensitivity to the concentration of CSF ----


def test_other_concentrations_of_csf_move_the_partition_as_it_says() -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    slopes = {"csf_sensitivity_cgm": -0.08, "csf_sensitivity_dgm": -0.03, "csf_sensitivity_nawm": -0.01}
    rows = analyse(table.assign(**slopes), SMALL)["methods"].results
    at = rows.set_index(["model", "outcome", "term"])["estimate"]
    base = "pairwise dummy + gmf, method csf"
    # one slope for all moves every group alike, so that no difference moves
    for shift in ("-10", "+10"):
        key = (f"{base}, CSF {shift} mmol/L", label("tsc_cgm"), "MS - HC")
        assert at[key] == pytest.approx(at[base, label("tsc_cgm"), "MS - HC"], rel=1e-9)
    patients = table["group"] != "HC"
    steep = table.assign(**slopes).assign(csf_sensitivity_cgm=np.where(patients, -0.10, -0.05))
    moved = analyse(steep, SMALL)["methods"].results.set_index(["model", "outcome", "term"])["estimate"]
    change = moved[f"{base}, CSF +10 mmol/L", label("tsc_cgm"), "MS - HC"] - moved[base, label("tsc_cgm"), "MS - HC"]
    assert change == pytest.approx(10 * (-0.10 + 0.05), rel=1e-6)


def test_without_slopes_the_concentration_of_csf_is_left_out() -> None:
    told = analyse(ms_cohort(np.random.default_rng(5)).table, SMALL)["methods"].data["left_out"]
    assert "no column csf_sensitivity_cgm" in told.set_index("part").loc["concentration of CSF", "reason"]


# ---- EDSS ----


def test_ordered_edss_between_groups(study: Study) -> None:
    rows = study["joint"].results
    rows = rows[rows["model"] == "proportional odds by group"].set_index("term")
    assert list(rows.index) == ["RRMS - CIS", "SPMS - CIS", "SPMS - RRMS"]
    # one model, whichever group it is written against
    assert rows.loc["SPMS - CIS", "estimate"] == pytest.approx(
        rows.loc["SPMS - RRMS", "estimate"] + rows.loc["RRMS - CIS", "estimate"], rel=1e-6
    )


def test_complete_separation_of_the_edss_is_said() -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    edss = table["group"].map({"CIS": 0.0, "RRMS": 2.0, "SPMS": 6.0})
    joint = analyse(table.assign(edss=edss), SMALL)["joint"]
    told = joint.data["left_out"]
    reason = told.loc[told["part"] == "edss, proportional odds", "reason"].iloc[0]
    assert "separates the levels" in reason


# ---- what the data do not determine ----


def left_out(table: pd.DataFrame, params: MsParams, analysis: str) -> str:
    found = analyse(table, params)[analysis]
    if found.left_out:
        return found.left_out
    told = found.data["left_out"]
    return "; ".join(told["part"] + ": " + told["reason"])


def test_collinear_covariates_are_named_and_the_other_analyses_done() -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    params = replace(SMALL, forced_ms=("gmf", "wmf", "bpf"))
    told = left_out(table, params, "univariable")
    assert "edss, MS: the 7 columns have rank 6 in 78 rows" in told or "are collinear" in told
    assert "gmf, wmf, bpf are collinear" in told
    study = analyse(table, params)
    assert set(study["regressions"].results["subset"]) == {"patients"}
    assert not study["table2"].left_out


@pytest.mark.parametrize("decimals", [8, 3])
def test_fractions_that_add_up_are_collinear_whatever_digits_the_table_keeps(decimals: int) -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    for column in ("gmf", "wmf", "bpf"):
        table[column] = table[column].round(decimals)
    params = replace(SMALL, forced_all=("gmf", "wmf", "bpf"), forced_ms=("gmf", "wmf"))
    study = analyse(table, params)
    told = study["univariable"].data["left_out"]
    assert told["reason"].str.startswith("gmf, wmf, bpf are collinear in 96 rows").tolist() == [True]
    assert set(study["regressions"].results["subset"]) == {"MS"}


def test_fewer_people_than_the_model_needs_are_counted() -> None:
    table = ms_cohort(np.random.default_rng(5), (6, 4, 5, 3)).table
    told = left_out(table, SMALL, "univariable")
    assert "backward elimination of edss needs at least 12 complete rows, found 8" in told


def test_half_of_a_covariate_missing_halves_the_models_and_imputation_brings_them_back() -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    even = table["participant_id"].str[-3:].astype(int) % 2 == 0
    params = replace(SMALL, disability=(), cognition=("z_sdmt",), imputations=4)
    study = analyse(table.assign(nart_iq=table["nart_iq"].where(even)), params, np.random.default_rng(0))
    rows = study["imputation"].results
    assert set(rows.loc[rows["model"] == "complete cases", "n"]) <= {48.0, 39.0}
    assert set(rows.loc[rows["model"] == "multiple imputation", "n"]) <= {96.0, 78.0}
    missing = study["imputation"].data["missing"].set_index("subset")["missing"]
    assert missing["patients"] == 48


# ---- self-tests ----


SUMMARY = pd.DataFrame(
    [("RRMS", 2, 1.0, 0.5, 0.6, 1.4), ("SPMS", 3, 2.0, 1.0, 1.0, 3.0), ("MS", 5, 1.6, 0.92870878, 0.6, 3.0)],
    columns=["group", "n", "mean", "sd", "minimum", "maximum"],
).assign(variable="x")
POOLS = {"MS": ("RRMS", "SPMS")}


def test_subgroups_that_pool_pass() -> None:
    assert check_pools(SUMMARY, POOLS, where="t") is SUMMARY


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("n", 6, "n is 6, its parts make 5"),
        ("mean", 1.61, "mean is 1.61, its parts make 1.6"),
        ("sd", 1.0, "sd is 1, its parts make 0.9287"),  # the subgroup's SD that the MS paper printed for all
        ("minimum", 0.7, "minimum is 0.7"),
        ("maximum", 4.0, "maximum is 4"),
    ],
)
def test_subgroups_that_do_not_pool_stop(column: str, value: float, words: str) -> None:
    wrong = SUMMARY.astype({column: float}).copy()
    wrong.loc[2, column] = value
    with pytest.raises(InternalError, match=words):
        check_pools(wrong, POOLS, where="t")


@pytest.mark.parametrize(
    ("share", "n", "note", "words"),
    [
        (66.0, 34, "23 of 34", "23 of 34 is not 66 % of 34"),  # printed so in the MS paper
        (50.0, 10, "5 of 9", "5 of 9 is not 50 % of 10"),
        (50.0, 10, "", "without its counts"),
    ],
)
def test_shares_must_be_those_of_their_counts(share: float, n: int, note: str, words: str) -> None:
    ledger = Ledger("table1", "Table 1")
    ledger.add(model="share", term="women", estimate=share, n=n, note=note)
    with pytest.raises(InternalError, match=words):
        ledger.close()


def test_a_table_that_contradicts_itself_stops_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object) -> object:
        ledger = Ledger("table2", "Table 2")
        ledger.add(term="mean", estimate=1.0, ci_low=2.0, ci_high=3.0, n=5)
        return ledger.close()

    spoiled = tuple((name, title, wrong if name == "table2" else make) for name, title, make in ms._ANALYSES)
    monkeypatch.setattr(ms, "_ANALYSES", spoiled)
    study = analyse(ms_cohort(np.random.default_rng(5)).table, SMALL)
    assert study["table2"].left_out.startswith(SELF_TEST)
    assert "table2 / mean: estimate 1 lies outside its interval 2 to 3" in study["table2"].left_out
    assert study.contradictions == ("table2",)
    assert not study["table1"].left_out
    assert not study["comparisons"].left_out


def test_marks_of_both_tables_follow_the_paper() -> None:
    """The reference cohort has the paper's moments, so that its marks are known."""
    shared = Path(os.environ.get("BIDS_SODIUM_TEST_DATA", Path(__file__).parents[4] / "shared"))
    case = shared / "reference" / "stats" / "ms_cohort130"
    if not case.exists():
        pytest.skip(f"the reference results are not at {case}")
    data = pd.read_csv(case / "data.tsv", sep="\t", na_values="n/a", keep_default_na=False)
    tissues = {"CGM": "tsc_cgm", "DGM": "tsc_dgm", "NAWM": "tsc_nawm", "T1iso": "tsc_t1iso", "T1hypo": "tsc_t1hypo"}
    parts = [data.assign(tissue=t, tsc_mmol_l=data[c]) for t, c in {**tissues, "T2lesion": "tsc_t2les"}.items()]
    table = pd.concat(parts).drop(columns=[c for c in data if c.startswith("tsc_")]).assign(method="gtm")
    study = analyse(table.dropna(subset="tsc_mmol_l"), FAST)
    signs = {
        "table1": {"CIS": ("*", "†"), "RRMS": ("‡", "§")},
        "table2": {"HC": ("*", "§"), "CIS": ("†", "‡"), "RRMS": ("¶", "**")},
    }
    # the p values that R gives decide every mark
    found = json.loads((case / "expected_group_comparisons.json").read_text())["comparisons"]
    p = {(c["dep"].replace("t2les", "t2lesion"), c["a"], c["b"]): c["p"] for c in found}
    ranks = json.loads((case / "expected_edss_ranksum.json").read_text())["rank_sum"]
    p |= {("edss", c["a"], c["b"]): c["p_exact_ties"] for c in ranks}
    seen = 0
    for (variable, first, second), value in p.items():
        name = (
            "table2" if variable.startswith(("tsc_", "t1lv", "t2lv")) or variable in {"gmf", "wmf", "bpf"} else "table1"
        )
        layout = study[name].data["layout"]
        row = layout[layout["variable"].str.startswith(label(variable))]
        group = first.replace("RRMS+SPMS", "MS")
        if len(row) != 1 or second not in signs[name] or group == "CIS":
            continue
        marks = row.iloc[0][group].split(" | ")[0].split(") ", 1)[-1].split()
        strong, weak = signs[name][second]
        assert (strong in marks) == (value < 0.01), (variable, first, second)
        assert (weak in marks) == (0.01 <= value < 0.05), (variable, first, second)
        seen += 1
    assert seen >= 35
    assert "‡ p<0.01 compared with RRMS" in study["table1"].text
    assert study["table2"].data["layout"].set_index("variable").loc[label("tsc_t1hypo"), "SPMS"] == "57.45 (7.43)"


# ---- files and page ----


def test_every_column_of_every_file_is_described(study: Study, tmp_path: Path) -> None:
    _write_study(tmp_path, study, settings={})
    undescribed: list[tuple[str, str]] = []
    for path in sorted(tmp_path.glob("group_*.tsv")):
        entries = json.loads(path.with_suffix(".json").read_text())
        # the columns of the printed Table 3 say themselves what they are
        columns = path.read_text().split("\n", 1)[0].split("\t") if "table3_layout" not in path.name else []
        undescribed += [(path.name, c) for c in columns if entries[c]["Description"] in {c, ""}]
    assert undescribed == []


@pytest.mark.slow
def test_the_page_speaks_of_names_and_keeps_no_figure_of_an_earlier_run(study: Study, tmp_path: Path) -> None:
    _write_study(tmp_path, study, settings={})
    (tmp_path / "group_figures").mkdir()
    for old in ("regions_gone.svg", "regions_gone.png"):
        (tmp_path / "group_figures" / old).write_text("old")
    page = group_page(tmp_path).read_text()
    drawn = {path.name for path in (tmp_path / "group_figures").iterdir()}
    assert not {name for name in drawn if name.startswith("regions_gone")}
    # every figure of the page is there, and every one there is on the page
    shown = set(re.findall(r'src="group_figures/([^"]+)"', page))
    assert shown == {name for name in drawn if name.endswith(".svg")}
    assert {"comparisons_tsc.svg", "joint_tsc.svg", "meta_nawm.svg", "regressions_partial_ms.svg"} <= shown
    for heading in ("Table 1: ", "Table 2: ", "Table 3: "):
        assert f"<h2>{heading}" in page
    text = re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)  # settings have their own names
    cells = set(re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", text))
    assert not {
        cell for cell in cells if re.search(r"\b(tsc_cgm|gmf|wmf|nart_iq|sexn|t2lv_ml|ci_low|p_adjusted)\b", cell)
    }
    assert "&lt;0.001" in cells


def test_reasons_stand_once_with_all_that_they_cost() -> None:
    found = by_reason([("joint", "a", "few"), ("joint", "b", "few"), ("sites", "c", "few"), ("sites", "d", "none")])
    assert found == [("few", {"joint": ["a", "b"], "sites": ["c"]}), ("none", {"sites": ["d"]})]
    ledger = Ledger("x", "X")
    for part in "abcde":
        ledger.skip(part, "1 member; 3 are needed")
    ledger.skip("f", "no column")
    assert ledger.close().left_out == "a, b, c and 2 more: 1 member; 3 are needed; f: no column"


def test_labels_nobody_knows_are_counted_and_told_how_to_map() -> None:
    table = ms_cohort(np.random.default_rng(5), (6, 4, 5, 3)).table
    table["group"] = table["group"].replace({"SPMS": "progressive"})
    told = left_out(table, SMALL, "participants")
    assert "3 participants of a group that is none of HC, CIS, RRMS, SPMS" in told
    assert 'ms.group_aliases = [["progressive", "RRMS"]]' in told


def test_nobody_with_a_group_is_an_error() -> None:
    table = ms_cohort(np.random.default_rng(5), (6, 4, 5, 3)).table
    for change in (table.drop(columns="group"), table.assign(group="n/a")):
        with pytest.raises(DataError, match="nobody of 18 participants has a group"):
            analyse(change, SMALL)
