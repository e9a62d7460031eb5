"""A consortium is the cohort with more beside it, and its truth says with what."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError
from bids_sodium.simulate.cohort import Cohort, ms_cohort
from bids_sodium.simulate.consortium import ConsortiumParams, consortium


@pytest.fixture
def cohort() -> Cohort:
    return ms_cohort(np.random.default_rng(1), (10, 6, 12, 8))


def grown(cohort: Cohort, params: ConsortiumParams) -> Cohort:
    return consortium(cohort, np.random.default_rng(2), params)


def test_nothing_asked_for_changes_nothing(cohort: Cohort) -> None:
    pd.testing.assert_frame_equal(grown(cohort, ConsortiumParams()).table, cohort.table)


def test_the_table_given_stays_as_it_is(cohort: Cohort) -> None:
    before = cohort.table.copy()
    grown(cohort, ConsortiumParams(visits_years=(0.0, 1.0), n_regions=3, missing_share=0.2, travellers=2))
    pd.testing.assert_frame_equal(cohort.table, before)


def test_visits_move_at_the_stated_rate() -> None:
    cohort = ms_cohort(np.random.default_rng(1), (400, 0, 400, 0))
    table = grown(cohort, ConsortiumParams(visits_years=(0.0, 4.0))).table
    cgm = table[(table["tissue"] == "CGM") & (table["method"] == "glm")]
    wide = cgm.pivot(index="participant_id", columns="session_id", values="tsc_mmol_l")
    rate = (wide["ses-02"] - wide["ses-01"]) / 4.0
    group = cgm.drop_duplicates("participant_id").set_index("participant_id")["group"]
    for name, truth in (("HC", 0.0), ("RRMS", 0.4)):
        here = rate[group == name]
        assert abs(here.mean() - truth) < 4 * here.std() / np.sqrt(len(here))
        # slopes of 0.2 and two sessions of 0.8 about the line
        assert here.std() == pytest.approx(np.hypot(0.2, 0.8 * np.sqrt(2) / 4), rel=0.15)


def test_travellers_are_seen_once_at_every_site(cohort: Cohort) -> None:
    table = grown(cohort, ConsortiumParams(travellers=3)).table
    places = table.groupby("participant_id")["site"].nunique()
    assert (places == cohort.table["site"].nunique()).sum() == 3
    assert set(places) == {1, cohort.table["site"].nunique()}


def test_site_factors_multiply_and_unknown_sites_are_refused(cohort: Cohort) -> None:
    site = cohort.table["site"].iloc[0]
    found = grown(cohort, ConsortiumParams(site_factors=((site, 1.1),)))
    here = cohort.table["site"] == site
    np.testing.assert_allclose(found.table.loc[here, "tsc_mmol_l"], 1.1 * cohort.table.loc[here, "tsc_mmol_l"])
    assert found.true("site_factor", site) == 1.1
    with pytest.raises(DataError, match="factors of Z, sites are"):
        grown(cohort, ConsortiumParams(site_factors=(("Z", 1.0),)))


def test_regions_differ_by_the_stated_effects() -> None:
    cohort = ms_cohort(np.random.default_rng(1), (0, 0, 600, 600))
    found = grown(cohort, ConsortiumParams(n_regions=4, region_site_sd_mmol_l=0.0))
    for name in ("roi001", "roi004"):
        rows = found.table[found.table["tissue"] == name]
        means = rows.groupby("group")["tsc_mmol_l"].mean()
        truth = found.true("region_effect", f"{name}:SPMS") - found.true("region_effect", f"{name}:RRMS")
        assert abs(means["SPMS"] - means["RRMS"] - truth) < 4 * 3.0 * np.sqrt(2 / 600)


def test_gaps_are_commoner_where_disability_is_high() -> None:
    cohort = ms_cohort(np.random.default_rng(1), (0, 300, 300, 300))
    table = grown(cohort, ConsortiumParams(missing_share=0.2)).table.drop_duplicates("participant_id")
    gone = table["z_sdmt"].isna()
    assert gone.mean() == pytest.approx(0.2, abs=0.04)
    assert gone[table["group"] == "SPMS"].mean() > 2 * gone[table["group"] == "CIS"].mean()
