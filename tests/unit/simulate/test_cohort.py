"""Simulated cohorts: their form, their truth, and what is missing from them."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import GROUP_TSC, ROI_TSC, TISSUE_TSC
from bids_sodium.simulate.cohort import MsCohortParams, StrokeCohortParams, ms_cohort, stroke_cohort


def test_stroke_table_has_the_columns_of_regions() -> None:
    table = stroke_cohort(np.random.default_rng(0)).table
    assert set(ROI_TSC.names) <= set(table)
    assert {"age", "sex", "nihss", "nihss_admission", "mrs"} <= set(table)
    assert set(table["contrast"]) == {"na", "tsc", "adc"}


def test_stroke_losses_are_those_of_the_paper() -> None:
    table = stroke_cohort(np.random.default_rng(0)).table
    scans = table.drop_duplicates(["participant_id", "session_id"])
    assert len(scans) == 28
    assert (scans.groupby("participant_id").size() == 1).sum() == 2
    assert scans["onset_to_scan_h"].between(0, 70).all()
    assert (scans.loc[scans["session_id"] == "ses-01", "onset_to_scan_h"] <= 24).all()
    moved = table[table["reason"] == "movement artefacts"]
    assert moved["participant_id"].nunique() == 2
    assert moved["percent_change"].isna().all()
    small = table[table["volume_ml"] < 1.0]
    assert (small["kept"] == 0).all()
    assert small["reason"].str.contains("below 1 mL|movement").all()
    assert (table.loc[table["kept"] == 1, "reason"] == "").all()


def test_percent_change_follows_from_the_two_sides() -> None:
    table = stroke_cohort(np.random.default_rng(3)).table.dropna(subset=["ipsi"])
    again = 100.0 * (table["ipsi"] - table["contra"]) / table["contra"]
    np.testing.assert_allclose(again, table["percent_change"], rtol=1e-9, atol=1e-9)


def test_volumes_of_overlaps_add_up() -> None:
    table = stroke_cohort(np.random.default_rng(4)).table
    wide = table[table["contrast"] == "na"].pivot(
        index=["participant_id", "session_id"], columns="roi", values="volume_ml"
    )
    for oedema in ("ionic", "cytotoxic"):
        np.testing.assert_allclose(wide[f"{oedema}&necrosis"] + wide[f"{oedema}-necrosis"], wide[oedema])
        np.testing.assert_allclose(wide[f"{oedema}&necrosis"] + wide[f"necrosis-{oedema}"], wide["necrosis"])


def test_mean_curve_of_many_patients_is_the_stated_one() -> None:
    cohort = stroke_cohort(np.random.default_rng(5), n=3000, complete=True)
    rows = cohort.table[(cohort.table["roi"] == "cytotoxic") & (cohort.table["contrast"] == "na")]
    t = rows["onset_to_scan_h"].to_numpy()
    expected = 91.0 * t**0.71 / (np.exp(2.3) + t**0.71)
    excess = rows["percent_change"].to_numpy() - expected
    assert abs(excess.mean()) < 4.0 * excess.std() / np.sqrt(3000)
    assert excess.std() == pytest.approx(15.8, abs=1.5)
    assert cohort.true("f(60)") == pytest.approx(58.9, abs=0.1)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_small_stroke_cohorts_lose_nothing(n: int) -> None:
    table = stroke_cohort(np.random.default_rng(6), n=n).table
    assert table.drop_duplicates(["participant_id", "session_id"]).shape[0] == 2 * n


def test_cohorts_repeat_with_the_seed_and_differ_without() -> None:
    one, two, other = (stroke_cohort(np.random.default_rng(s)).table for s in (1, 1, 2))
    assert one.equals(two)
    assert not one.equals(other)
    a, b = (ms_cohort(np.random.default_rng(s)).table for s in (1, 1))
    assert a.equals(b)


def test_ms_table_has_the_columns_of_tissues() -> None:
    table = ms_cohort(np.random.default_rng(0)).table
    assert set(TISSUE_TSC.names) <= set(table)
    assert {c.name for c in GROUP_TSC.columns} & set(table) >= {"bpf", "gmf", "wmf", "tiv_ml", "t2lv_ml", "t1lv_ml"}
    people = table.drop_duplicates("participant_id")
    assert people.groupby("group").size().to_dict() == {"HC": 34, "CIS": 18, "RRMS": 65, "SPMS": 13}
    assert people["site"].nunique() == 3
    assert set(table["method"]) == {"raw", "csf", "gtm", "glm"}
    lesions = table[table["tissue"].isin(["T2lesion", "T1iso", "T1hypo"])]
    assert set(lesions["group"]) == {"RRMS", "SPMS"}


def test_ms_moments_are_those_of_the_paper() -> None:
    cohort = ms_cohort(
        np.random.default_rng(0), (1500, 1500, 1500, 1500), params=MsCohortParams(measurement_error=False)
    )
    glm = cohort.table[cohort.table["method"] == "glm"]
    for (group, tissue), rows in glm[glm["tissue"] != "CSF"].groupby(["group", "tissue"]):
        mean, sd = cohort.true("mean", f"{tissue}:{group}"), cohort.true("sd", f"{tissue}:{group}")
        assert rows["tsc_mmol_l"].mean() == pytest.approx(mean, abs=5 * sd / np.sqrt(1500))
        assert rows["tsc_mmol_l"].std() == pytest.approx(sd, rel=0.1)
    people = glm.drop_duplicates("participant_id")
    for name in ("z_pasat", "z_sdmt", "z_brixton", "z9hpt", "gmf", "wmf", "nart_iq"):
        for group, rows in people.groupby("group"):
            if group == "HC" and name not in {"gmf", "wmf"}:
                assert rows[name].isna().all()
                continue
            sd = cohort.true("sd", f"{name}:{group}")
            assert rows[name].mean() == pytest.approx(
                cohort.true("mean", f"{name}:{group}"), abs=5 * sd / np.sqrt(1500)
            )
            assert rows[name].std() == pytest.approx(sd, rel=0.1)


def test_ms_values_are_possible() -> None:
    people = ms_cohort(np.random.default_rng(2), (100, 100, 300, 100)).table.drop_duplicates("participant_id")
    patients = people[people["group"] != "HC"]
    assert (patients["edss"] * 2 % 1 == 0).all()
    assert patients["edss"].between(0, 7).all()
    assert patients["t25fw_s"].between(2, 180).all()
    ms = people[people["group"].isin(["RRMS", "SPMS"])]
    assert (ms["t2lv_ml"] > 0).all()
    assert (ms["t1lv_ml"] < ms["t2lv_ml"]).all()
    assert ms["t2lv_ml"].skew() > 1.0
    np.testing.assert_allclose(people["bpf"], people["gmf"] + people["wmf"])


def test_cortical_sodium_predicts_disability_within_a_group() -> None:
    cohort = ms_cohort(np.random.default_rng(3), (0, 0, 4000, 0), params=MsCohortParams(measurement_error=False))
    wide = cohort.table[cohort.table["method"] == "glm"].pivot(
        index="participant_id", columns="tissue", values="tsc_mmol_l"
    )
    people = cohort.table.drop_duplicates("participant_id").set_index("participant_id").loc[wide.index]
    with_disability = np.corrcoef(wide["CGM"], people["z_sdmt"])[0, 1]
    # -0.60 times the correlation of the cortex with disability, and -0.20 * 0.20 through atrophy
    assert with_disability == pytest.approx(-0.60 * 0.59 - 0.04, abs=0.05)
    assert np.corrcoef(wide["CGM"], people["gmf"])[0, 1] == pytest.approx(0.20 * -0.75, abs=0.05)


def test_methods_differ_by_their_stated_bias() -> None:
    cohort = ms_cohort(np.random.default_rng(4), (30, 0, 0, 0))
    wide = cohort.table.pivot(index=["participant_id", "tissue"], columns="method", values="tsc_mmol_l")
    gap = (wide["gtm"] - wide["glm"]).groupby("tissue").mean()
    assert gap["CGM"] == pytest.approx(cohort.true("method_bias", "gtm:CGM"))


def test_sites_shift_what_they_are_told_to() -> None:
    params = MsCohortParams(sites=("A", "B"), site_shift_mmol_l=(0.0, 10.0), n=(400, 0, 0, 0))
    table = ms_cohort(np.random.default_rng(5), params=params).table
    cgm = table[(table["tissue"] == "CGM") & (table["method"] == "glm")].groupby("site")["tsc_mmol_l"].mean()
    assert cgm["B"] - cgm["A"] == pytest.approx(10.0, abs=1.0)


def test_impossible_requests_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="0 patients"):
        stroke_cohort(rng, n=0)
    with pytest.raises(DataError, match="group sizes"):
        ms_cohort(rng, (1, -1, 2, 3))
    with pytest.raises(DataError, match="2 sites have 1 shifts"):
        ms_cohort(rng, params=MsCohortParams(sites=("A", "B"), site_shift_mmol_l=(0.0,)))
    with pytest.raises(KeyError):
        stroke_cohort(rng, params=StrokeCohortParams(alpha_percent=50.0)).true("beta")
