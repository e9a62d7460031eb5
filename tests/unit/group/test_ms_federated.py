"""Sites that share cross-products get the models of the stacked rows, and no small cell leaves its site."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError
from bids_sodium.group import ms
from bids_sodium.group.ms import MsParams, Summary, analyse, analyse_summaries, summarise
from bids_sodium.simulate.cohort import ms_cohort

PARAMS = MsParams(n_resamples=99, selection_resamples=0, penalised_repeats=0)
_KEYS = ["subset", "outcome", "term"]


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    """Return a cohort spread over three sites, every group at every site."""
    table = ms_cohort(np.random.default_rng(3)).table
    people = table["participant_id"].drop_duplicates()
    sites = dict(zip(people, np.resize(["a", "b", "c"], len(people)), strict=True))
    return table.assign(site=table["participant_id"].map(sites))


@pytest.fixture(scope="module")
def whole(cohort: pd.DataFrame) -> ms.Study:
    return analyse(cohort, PARAMS)


@pytest.fixture(scope="module")
def shared(cohort: pd.DataFrame) -> list[Summary]:
    found: list[Summary] = []
    for name, rows in cohort.groupby("site"):
        # through text, as a file would carry it
        found += [
            Summary.from_dict(json.loads(json.dumps(one.as_dict())))
            for one in summarise(rows.drop(columns="site"), PARAMS, default_site=str(name))
        ]
    return found


def rows_of(study: ms.Study, name: str, model: str) -> pd.DataFrame:
    table = study[name].results
    kept = table[table["model"].str.fullmatch(model)]
    return kept.set_index(_KEYS).sort_index()


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("comparisons", r"pairwise dummy( \+ (gmf|wmf|age \+ sexn))?"),
        ("univariable", "univariable"),
        ("regressions", "backward elimination"),
        ("regressions", "re-test of an omitted term"),
    ],
)
def test_federated_results_are_those_of_the_stacked_rows(
    whole: ms.Study, shared: list[Summary], name: str, model: str
) -> None:
    parts = analyse_summaries(shared, PARAMS)
    a, b = rows_of(whole, name, model), rows_of(parts, name, model)
    common = a.index.intersection(b.index)
    withheld = {(one.subset, one.outcome) for one in shared if one.moments is None}
    assert len(common) == len(b) > 0
    compared = 0
    for key in common:
        left, right = a.loc[key], b.loc[key]
        if left["n"] != right["n"]:
            # a site withheld a small cell of this very comparison, and the note says so
            assert any(word in str(right["note"]) for word in ("withheld", "without"))
            assert withheld
            continue
        compared += 1
        for column in ("estimate", "se", "ci_low", "ci_high", "statistic", "df", "p"):
            assert right[column] == pytest.approx(left[column], rel=1e-9, abs=1e-12), (key, column)
    assert compared > 0.5 * len(b)


def test_no_cell_of_fewer_than_five_people_leaves_its_site(cohort: pd.DataFrame) -> None:
    few = cohort[
        (cohort["group"] != "SPMS")
        | cohort["participant_id"].isin(cohort.loc[cohort["group"] == "SPMS", "participant_id"].drop_duplicates()[:4])
    ]
    found = summarise(few.drop(columns="site"), PARAMS, default_site="x")
    course = [one for one in found if one.subset == "SPMS - RRMS"]
    assert course
    assert all(one.moments is None and one.n == 0 for one in course)
    assert all("fewer than 5" in one.reason for one in course if one.outcome == "tsc_cgm")
    for one in found:
        if one.moments is not None:
            assert one.n >= 5
            assert one.n > one.moments.XtX.shape[0]


def test_site_dummies_give_the_within_site_difference(cohort: pd.DataFrame) -> None:
    shift = cohort["site"].map({"a": 0.0, "b": 6.0, "c": -4.0})
    moved = cohort.assign(tsc_mmol_l=cohort["tsc_mmol_l"] + shift)
    result = {}
    for key, table in (("plain", cohort), ("moved", moved)):
        sites = [one for _, rows in table.groupby("site") for one in summarise(rows, PARAMS, default_site="?")]
        table_of = analyse_summaries(sites, PARAMS)["comparisons"].results
        row = table_of[
            (table_of["term"] == "MS - HC")
            & table_of["outcome"].str.contains("cortical")
            & table_of["model"].str.endswith("+ site")
        ]
        result[key] = float(row["estimate"].iloc[0])
    assert result["moved"] == pytest.approx(result["plain"], rel=1e-9)


def test_groups_that_never_meet_are_refused_with_the_counts_of_the_sites() -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    table["site"] = np.where(table["group"] == "HC", "A", "B")
    study = analyse_summaries(summarise(table, PARAMS, default_site="x"), PARAMS)
    told = study["comparisons"].data["left_out"].set_index("part")["reason"]
    words = "MS and HC never meet at one site (A: 0 MS, 34 HC; B: 78 MS, 0 HC): site and group are confounded"
    assert told["tsc_cgm, MS - HC"] == words
    assert words in study["meta"].left_out
    # groups of one site are compared
    assert "SPMS - RRMS" in set(study["comparisons"].results["term"])


def test_site_by_diagnosis_is_told_without_rows(shared: list[Summary], cohort: pd.DataFrame) -> None:
    counts = analyse_summaries(shared, PARAMS)["sites"].data["counts"].set_index("site")
    people = cohort.drop_duplicates("participant_id")
    true = pd.crosstab(people["site"], people["group"])
    for site in counts.index:
        few = true.loc[site, ["RRMS", "SPMS"]].min() < 5
        for group in ("HC", "CIS", "RRMS", "SPMS"):
            # with the few of one course the other's are withheld too: the difference to MS would tell them
            withheld = true.loc[site, group] < 5 or (few and group in {"RRMS", "SPMS"})
            assert np.isnan(counts.loc[site, group]) if withheld else counts.loc[site, group] == true.loc[site, group]
        assert counts.loc[site, "MS"] == true.loc[site, ["RRMS", "SPMS"]].sum()


def test_meta_analysis_has_one_line_a_site_and_a_prediction(shared: list[Summary]) -> None:
    forest = analyse_summaries(shared, PARAMS)["meta"].data["forest"]
    lines = forest[(forest["term"] == "MS - HC") & forest["outcome"].str.contains("cortical")]
    assert lines["site"].tolist() == ["a", "b", "c", "all sites", "a new site (prediction)"]
    whole, new = lines.iloc[3], lines.iloc[4]
    assert new["ci_low"] <= whole["ci_low"] < whole["estimate"] < whole["ci_high"] <= new["ci_high"]


def test_a_cell_shared_twice_and_a_broken_file_are_refused(shared: list[Summary]) -> None:
    with pytest.raises(DataError, match="twice"):
        analyse_summaries([*shared, shared[0]], PARAMS)
    with pytest.raises(DataError, match="no summaries"):
        analyse_summaries([], PARAMS)
    entry = next(one for one in shared if one.moments is not None).as_dict()
    with pytest.raises(DataError, match="cross-products of shape"):
        Summary.from_dict({**entry, "Candidates": []})
    with pytest.raises(DataError, match="no summary"):
        Summary.from_dict({"Site": "a"})


def test_sites_that_read_concentrations_differently_are_not_mixed(cohort: pd.DataFrame) -> None:
    a, b = (rows.drop(columns="site") for _, rows in [*cohort.groupby("site")][:2])
    found = [
        *summarise(a, PARAMS, default_site="a"),
        *summarise(b, replace(PARAMS, method="csf"), default_site="b"),
    ]
    with pytest.raises(DataError, match="different partial-volume methods: a glm, b csf"):
        analyse_summaries(found, PARAMS)


def test_factors_of_a_site_are_in_what_it_shares(cohort: pd.DataFrame) -> None:
    rows = cohort[cohort["site"] == "a"].drop(columns="site")
    phantom = pd.DataFrame({"scanner": ["x"], "factor": [1.1]})
    plain = summarise(rows, PARAMS, default_site="x")
    made = summarise(rows, PARAMS, default_site="x", scanners=phantom)
    given = summarise(rows, replace(PARAMS, site_factors=(("x", 1.1),)), default_site="x")
    one, two, three = (
        next(s.moments for s in found if s.outcome == "tsc_cgm" and s.moments is not None)
        for found in (plain, made, given)
    )
    np.testing.assert_allclose(two.Xty, 1.1 * one.Xty)
    np.testing.assert_allclose(three.Xty, 1.1 * one.Xty)


def test_a_column_that_one_site_lacks_leaves_that_site_out_and_says_so(cohort: pd.DataFrame) -> None:
    sites = []
    for name, rows in cohort.groupby("site"):
        table = rows.assign(nart_iq=np.nan) if name == "c" else rows
        sites += summarise(table, PARAMS, default_site="?")
    univariable = analyse_summaries(sites, PARAMS)["univariable"].results
    note = univariable[univariable["outcome"].str.contains("SDMT")]["note"].iloc[0]
    assert "2 sites" in note
    assert "c: no values of nart_iq" in note
