"""A consortium whose sites keep their rows: each exports summaries, the centre fits the models from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_sodium.simulate.cohort import ms_cohort


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three sites, each with its own table, and one with all of them."""
    root = tmp_path_factory.mktemp("consortium")
    table = ms_cohort(np.random.default_rng(3)).table.drop(columns="site")
    people = table["participant_id"].drop_duplicates()
    site = table["participant_id"].map(dict(zip(people, np.resize(["a", "b", "c"], len(people)), strict=True)))
    for name, rows in [*table.groupby(site), ("all", table)]:
        folder = root / str(name)
        folder.mkdir()
        (folder / "dataset_description.json").write_text('{"Name": "site", "BIDSVersion": "1.10.0"}')
        rows.to_csv(folder / "group_tsc.tsv", sep="\t", index=False, na_rep="n/a")
    return root


def test_the_centre_gets_the_models_of_all_rows(sites: Path, command: Callable[..., Any]) -> None:
    shared = sites / "shared"
    for name in "abc":
        out = sites / f"out_{name}"
        done = command(sites / name, out, "group", "--study", "ms", "--export-summaries", "--site", name)
        assert done.code == 0, done.err
        assert "summaries written" in done.err
        # nothing else is written: no table of rows, no report
        assert not (out / "group_tsc.tsv").exists()
        assert not (out / "group.html").exists()
        text = (out / "group_summaries.json").read_text()
        assert "sub-" not in text
        (shared / name).mkdir(parents=True)
        (shared / name / "group_summaries.json").write_text(text)
    done = command(sites / "all", sites / "centre", "group", "--study", "ms", "--from-summaries", shared)
    assert done.code == 0, done.err
    fast = ["--set", "ms.n_resamples=99", "ms.selection_resamples=0", "ms.penalised_repeats=0"]
    whole = command(sites / "all", sites / "pooled", "group", "--study", "ms", *fast)
    assert whole.code == 0, whole.err
    keys = ["model", "subset", "outcome", "term"]
    for table in ("comparisons", "univariable", "regressions"):
        a, b = (
            pd.read_csv(sites / folder / f"group_{table}.tsv", sep="\t", na_values="n/a").set_index(keys)
            for folder in ("pooled", "centre")
        )
        same = a.index.intersection(b.index)
        both = [key for key in same if a.loc[key, "n"] == b.loc[key, "n"]]
        assert len(both) > 5
        for column in ("estimate", "se", "ci_low", "ci_high", "p"):
            np.testing.assert_allclose(b.loc[both, column], a.loc[both, column], rtol=1e-6, atol=1e-9)
    page = (sites / "centre" / "group.html").read_text()
    assert "no rows" in page
    assert "by site, combined" in page
    assert (sites / "centre" / "group_figures" / "meta_cgm.svg").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--study", "ms", "--from-summaries", "{empty}"], 65, "no summaries in 0 JSON files"),
        (["--study", "stroke", "--export-summaries"], 78, "summaries are of the MS study"),
        (
            ["--study", "ms", "--from-summaries", "{empty}", "--scanners", "a.tsv"],
            78,
            "--scanners with --from-summaries",
        ),
    ],
)
def test_what_cannot_be_shared_is_said(
    sites: Path, command: Callable[..., Any], tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    done = command(sites / "all", tmp_path / "out", "group", *(word.format(empty=tmp_path) for word in words))
    assert done.code == code
    assert message in done.err
    assert done.err.count("\n") == 1


def test_summaries_of_another_version_are_refused(sites: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"SummaryVersion": 99, "Summaries": []}))
    done = command(sites / "all", tmp_path / "out", "group", "--study", "ms", "--from-summaries", tmp_path)
    assert done.code == 65
    assert "version 99" in done.err
