"""Clinical scores: speeds, z scores through the user's norms, and what is no z score."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_sodium.core.errors import DataError
from bids_sodium.group import ms
from bids_sodium.group._ms_clinical import scores, with_norms
from bids_sodium.group.ms import MsParams, analyse
from bids_sodium.simulate.cohort import ms_cohort

PEOPLE = pd.DataFrame(
    {
        "age": [25.0, 29.9, 45.0, 70.0],
        "sexn": [1.0, 0.0, 1.0, 0.0],
        "education": [10.0, 16.0, 16.0, 10.0],
        "sdmt": [40.0, 60.0, 50.0, 30.0],
        "9hpt_s": [20.0, 18.0, 30.0, 22.0],
    }
)


def norms(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_every_person_is_compared_with_their_own_stratum() -> None:
    table = norms(
        score=["sdmt"] * 3, mean=[60.0, 50.0, 45.0], sd=[10.0, 5.0, 5.0], age_low=[20, 30, 30], age_high=[29, 80, 80],
        sex=["n/a", "F", "M"],
    )  # fmt: skip
    z = with_norms(PEOPLE, table)[0]["z_sdmt"]
    # 29.9 years is 29, not 30
    np.testing.assert_allclose(z, [-2.0, 0.0, 0.0, -3.0])


def test_lower_is_better_turns_the_sign() -> None:
    table = norms(score=["9hpt_s"], mean=[20.0], sd=[2.0], better=["lower"])
    np.testing.assert_allclose(with_norms(PEOPLE, table)[0]["z9hpt"], [0.0, 1.0, -5.0, -1.0])


def test_education_and_a_name_of_ones_own() -> None:
    table = norms(
        score=["sdmt", "sdmt"], mean=[40.0, 50.0], sd=[10.0, 10.0], education_low=[0, 13], education_high=[12, 30],
        z=["z_symbols", "z_symbols"],
    )  # fmt: skip
    np.testing.assert_allclose(with_norms(PEOPLE, table)[0]["z_symbols"], [0.0, 1.0, 0.0, -1.0])


def test_people_outside_the_norms_have_no_score_and_are_counted() -> None:
    table = norms(score=["sdmt"], mean=[50.0], sd=[10.0], age_low=[18], age_high=[60])
    found, notes = with_norms(PEOPLE, table)
    assert found["z_sdmt"].isna().tolist() == [False, False, False, True]
    assert notes == ["1 value of sdmt fit no stratum of the norms and have no z score"]


@pytest.mark.parametrize(
    ("table", "people", "words"),
    [
        (norms(score=["sdmt"] * 2, mean=[50.0] * 2, sd=[1.0] * 2), PEOPLE, "4 people fit two strata"),
        (norms(score=["sdmt"], mean=[50.0], sd=[0.0]), PEOPLE, "SD is not positive"),
        (norms(score=["sdmt"], mean=["n/a"], sd=[1.0]), PEOPLE, "mean is missing"),
        (
            norms(score=["sdmt"], mean=[50.0], sd=[1.0], education_low=[12]),
            PEOPLE.drop(columns="education"),
            "differ by education, which the tables do not hold",
        ),
        (norms(score=["sdmt"], mean=[50.0], sd=[1.0], sex=["F"]), PEOPLE.drop(columns="sexn"), "differ by sex"),
        (norms(score=["sdmt"], mean=["50 points"], sd=[1.0]), PEOPLE, "'50 points'"),
    ],
)
def test_norms_that_cannot_be_used_leave_their_score_out(table: pd.DataFrame, people: pd.DataFrame, words: str) -> None:
    found, notes = with_norms(people, table)
    assert "z_sdmt" not in found
    assert len(notes) == 1
    assert words in notes[0]


def test_norms_without_their_columns_are_refused() -> None:
    with pytest.raises(DataError, match=r"missing column\(s\) sd"):
        with_norms(PEOPLE, norms(score=["sdmt"], mean=[1.0]))


def test_a_given_z_score_goes_before_the_norms() -> None:
    people = PEOPLE.assign(z_sdmt=0.5)
    found, notes = with_norms(people, norms(score=["sdmt"], mean=[50.0], sd=[10.0]))
    assert (found["z_sdmt"] == 0.5).all()
    assert "z_sdmt is given" in notes[0]


def test_raw_numbers_under_the_name_of_a_z_score_are_left_out() -> None:
    # scaled Brixton scores run from 1 to 10, so that none is beyond 10 SD
    people = pd.DataFrame({"z_brixton": [6.0, 7.0, 5.0, 6.0, 8.0], "z_sdmt": [-1.0, 0.5, -0.2, -11.0, 0.1]})
    found, notes = scores(people, MsParams(), None)
    assert "z_brixton" not in found
    assert any(
        "z_brixton runs from 5 to 8 with median 6 in 5 participants, which are no z scores" in note for note in notes
    )
    # one person far below the norms is no reason to lose the others
    assert "z_sdmt" in found
    assert any("z_sdmt: 1 value beyond 10 SD" in note for note in notes)


def test_z_scores_under_the_name_of_a_raw_score_are_left_out() -> None:
    people = pd.DataFrame({"sdmt": [-1.0, 0.5, -0.2, -2.0, 0.1], "age": 40.0})
    norms = pd.DataFrame({"score": ["sdmt"], "mean": [55.0], "sd": [9.0]})
    found, notes = scores(people, MsParams(), norms)
    assert "z_sdmt" not in found
    assert any("sdmt runs from -2 to 0.5 in 5 participants, by its norms -6.1 SD" in note for note in notes)


def test_other_names_of_the_walk_fatigue_and_premorbid_scores() -> None:
    people = pd.DataFrame({"twt_s": [5.0], "fss": [4.2], "nart": [30.0]})
    found, notes = scores(people, MsParams(), None)
    assert found[["walking_speed", "walking_speed_ft_s", "fatigue", "nart_iq"]].iloc[0].tolist() == [
        0.2,
        5.0,
        4.2,
        30.0,
    ]
    assert notes == ["nart stands for nart_iq, which the tables do not hold"]


def test_raw_scores_and_norms_give_the_study_of_the_z_scores() -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    params = MsParams(
        n_resamples=99, selection_resamples=0, penalised_repeats=0, disability=("edss",), cognition=("z_sdmt",)
    )
    raw = table.assign(sdmt=50.0 + 8.0 * table["z_sdmt"]).drop(columns="z_sdmt")
    user = norms(score=["sdmt"], mean=[50.0], sd=[8.0])
    a, b = analyse(table, params), analyse(raw, params, norms=user)
    for name in ("table1", "comparisons", "regressions"):
        left, right = (s[name].results for s in (a, b))
        np.testing.assert_allclose(left["estimate"], right["estimate"], rtol=1e-8, atol=1e-12)
    assert (a["table1"].data["layout"] == b["table1"].data["layout"]).all(axis=None)


def test_words_of_no_concern_are_not_told_and_scores_with_units_are() -> None:
    table = ms_cohort(np.random.default_rng(2), (6, 4, 5, 3)).table
    table = table.assign(handedness="R", scanner_software="R5.6", fatigue=table["fatigue"].map("{:.1f} points".format))
    notes = ms._view(table, MsParams(), None, None).notes
    assert [note.split(" could not be read")[0] for note in notes] == ["fatigue"]


def test_labels_of_groups_are_mapped_in_the_configuration() -> None:
    table = ms_cohort(np.random.default_rng(5)).table
    words = {"HC": "volunteer", "CIS": "one event", "RRMS": "relapsing", "SPMS": "progressive"}
    named = table.assign(group=table["group"].map(words))
    params = MsParams(
        n_resamples=99, selection_resamples=0, penalised_repeats=0, disability=("edss",), cognition=(),
        group_aliases=tuple((word, name) for name, word in words.items()),
    )  # fmt: skip
    rows = analyse(named, params)["table1"].data["layout"]
    assert rows.columns.tolist() == ["variable", "HC", "CIS", "MS", "RRMS", "SPMS"]
