"""The app between command line and files: who is chosen, how a run is concluded, and the group level on tables."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_sodium import app
from bids_sodium.bidsio.gather import write_group_table
from bids_sodium.bidsio.layout import Dataset, Session
from bids_sodium.cli import configure, parse
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, InternalError, LockedError, SodiumError
from bids_sodium.core.tables import GROUP_RESULT
from bids_sodium.engine.executors import Outcome, Report
from bids_sodium.engine.locks import output_lock
from bids_sodium.engine.tasks import Task
from bids_sodium.group import ms
from bids_sodium.group.results import Analysis, Ledger, Study, empty_results
from bids_sodium.simulate.cohort import ms_cohort, stroke_cohort


def nothing(files: Any, params: Any) -> None:
    """Do nothing."""


def outcome(unit: str, status: str, error: SodiumError | None = None) -> Outcome:
    task = Task(name="step", unit=unit, group=unit.partition("_")[0], function=nothing)
    code = 0 if error is None else error.exit_code
    return Outcome(task=task, status=status, message=str(error or ""), exit_code=code)  # type: ignore[arg-type]


def dataset(*sessions: Session) -> Dataset:
    return Dataset(root=Path("bids"), derivatives={}, sessions=sessions)


# ---- who --------------------------------------------------------------------------------------------------------


def chosen(words: str, tmp_path: Path, table: str = "") -> list[str] | None:
    (tmp_path / "list.tsv").write_text(table)
    return app._chosen(parse([*words.format(tmp_path).split(), "--", "bids", "out", "participant"]))


def test_participants_come_from_options_and_tables(tmp_path: Path) -> None:
    table = "participant_id\tage\nsub-03\t40\nsub-04\t50\n"
    assert chosen("", tmp_path) is None
    assert chosen("--participant-label 01 sub-02", tmp_path) == ["01", "02"]
    assert chosen("--participants {}/list.tsv", tmp_path, table) == ["sub-03", "sub-04"]
    assert chosen("--participants {}/list.tsv --participant-label 01", tmp_path, table) == ["01", "sub-03", "sub-04"]


def test_a_list_without_participants_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list\.tsv: no column participant_id, found subject"):
        chosen("--participants {}/list.tsv", tmp_path, "subject\n01\n")


# ---- how a run ends ---------------------------------------------------------------------------------------------


BROKEN = Session(participant_id="sub-02", problem=DataError("is broken", where="sub-02"))
SOUND = Session(participant_id="sub-01")


@pytest.mark.parametrize(
    ("sessions", "outcomes", "expected"),
    [
        ([SOUND], [outcome("sub-01", "done")], 0),
        ([SOUND], [outcome("sub-01", "skipped")], 0),
        ([SOUND], [outcome("sub-01", "failed", EstimationError("cannot tell"))], 69),
        ([SOUND, BROKEN], [outcome("sub-01", "done")], 1),
        ([SOUND, BROKEN], [outcome("sub-01", "failed", EstimationError("cannot tell"))], 1),
        ([BROKEN], [], 65),
    ],
    ids=["done", "nothing to do", "all failed alike", "one unreadable", "all failed differently", "all unreadable"],
)
def test_exit_code_of_a_run(
    capsys: pytest.CaptureFixture[str], sessions: list[Session], outcomes: list[Outcome], expected: int
) -> None:
    data, report = dataset(*sessions), Report(outcomes=tuple(outcomes))
    failures = app._failures(data, report)
    assert app._conclude(data, report, failures, Path("out")) == expected
    said = capsys.readouterr().err
    assert f"{len(sessions) - len(failures)} of {len(sessions)} participants complete" in said
    if BROKEN in sessions:
        assert "sub-02: sub-02: is broken" in said


def test_a_failure_is_listed_under_its_participant_with_step_and_message() -> None:
    report = Report(outcomes=(outcome("sub-01_ses-a", "failed", DataError("is broken")), outcome("sub-03", "done")))
    assert app._failures(dataset(SOUND, BROKEN), report) == {
        "sub-02": [("sub-02", "input", "sub-02: is broken")],
        "sub-01": [("sub-01_ses-a", "step", "is broken")],
    }


# ---- group level ------------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Return a folder that holds nothing but the table of a small stroke cohort."""
    (tmp_path / "tables").mkdir()
    write_group_table(tmp_path / "tables", stroke_cohort(np.random.default_rng(0), 6).table, {})
    return tmp_path / "tables"


@pytest.fixture
def group(cohort: Path, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs the group level on the cohort in this process."""

    def start(*words: str) -> int:
        options: argparse.Namespace = parse(
            [str(cohort), str(tmp_path / "out"), "group", *words, "--set", "stroke.n_resamples=20"]
        )
        return app.run(options, configure(options))

    return start


def test_group_writes_the_same_tables_index_and_page_each_time(
    group: Callable[..., int], cohort: Path, tmp_path: Path
) -> None:
    assert group("--study", "stroke") == 0
    out = tmp_path / "out"
    index = json.loads((out / "group_analyses.json").read_text())
    assert index["Study"] == "stroke"
    for entry in index["Analyses"]:
        path = out / f"group_{entry['Name']}.tsv"
        assert path.exists() == (not entry["LeftOut"])
        if not entry["LeftOut"]:
            assert tuple(pd.read_csv(path, sep="\t").columns) == GROUP_RESULT.names
            assert json.loads(path.with_suffix(".json").read_text())["Settings"]["n_resamples"] == 20
        assert all((out / f"group_{entry['Name']}_{key}.tsv").is_file() for key in entry["Data"])
    assert (out / "group.html").is_file()
    assert list((out / ".bids_sodium" / "locks").glob("*.lock")) == []
    assert sorted(path.name for path in cohort.iterdir()) == ["group_tsc.json", "group_tsc.tsv"]
    first = {path.name: path.read_text() for path in out.glob("group_*.tsv")}
    assert group("--study", "stroke") == 0
    assert {path.name: path.read_text() for path in out.glob("group_*.tsv")} == first


def test_group_dry_run_writes_nothing(
    group: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert group("--study", "stroke", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("group\tstroke\t6 participants\t")
    assert not (tmp_path / "out").exists()


def test_group_needs_a_study(group: Callable[..., int]) -> None:
    with pytest.raises(ConfigError, match="needs to know the study"):
        group()


def test_group_needs_the_whole_output(group: Callable[..., int], tmp_path: Path) -> None:
    with (
        output_lock(tmp_path / "out" / ".bids_sodium" / "locks", ["sub-01"]),
        pytest.raises(LockedError, match="is working on sub-01"),
    ):
        group("--study", "stroke")


def test_group_refuses_a_table_without_participants(group: Callable[..., int], cohort: Path) -> None:
    (cohort / "group_tsc.tsv").write_text("subject\ttissue\n1\tCGM\n")
    with pytest.raises(DataError, match=r"group_tsc\.tsv: missing column\(s\) participant_id"):
        group("--study", "stroke")


def test_boilerplate_only_writes_the_methods_text(group: Callable[..., int], tmp_path: Path) -> None:
    assert group("--study", "stroke", "--boilerplate-only") == 0
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"CITATION.md", "CITATION.bib"}


QUICK = (
    "--set", "ms.n_resamples=50", "ms.selection_resamples=0", "ms.penalised_repeats=0", "ms.imputations=0",
    'ms.disability=["edss"]', 'ms.cognition=["z_sdmt"]',
)  # fmt: skip


@pytest.fixture
def ms_group(tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs the group level on an MS cohort with a raw score instead of a z score."""
    table = ms_cohort(np.random.default_rng(0), (8, 8, 16, 8)).table
    raw = table.assign(sdmt=50.0 + 10.0 * table["z_sdmt"]).drop(columns="z_sdmt")
    (tmp_path / "ms").mkdir()
    write_group_table(tmp_path / "ms", raw, {})

    def start(*words: str) -> int:
        options = parse([str(tmp_path / "ms"), str(tmp_path / "out"), "group", "--study", "ms", *words, *QUICK])
        return app.run(options, configure(options))

    return start


def test_norms_turn_raw_scores_into_z(ms_group: Callable[..., int], tmp_path: Path) -> None:
    norms = tmp_path / "norms.tsv"
    norms.write_text("score\tmean\tsd\tage_low\tage_high\nsdmt\t50\t10\t18\t90\n")
    assert ms_group("--norms", str(norms)) == 0
    table1 = pd.read_csv(tmp_path / "out" / "group_table1_layout.tsv", sep="\t")
    assert "SDMT (z) | n impaired (%)" in set(table1["variable"])
    norms.write_text("test\tmean\tsd\nsdmt\t50\t10\n")
    with pytest.raises(DataError, match=r"norms\.tsv: missing column\(s\) score"):
        ms_group("--norms", str(norms))


def test_what_only_the_ms_study_reads_is_refused_for_stroke(group: Callable[..., int], tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("scanner\tfactor\nA\t1.02\n")
    with pytest.raises(ConfigError, match="--scanners at the group level makes concentrations of the MS study"):
        group("--study", "stroke", "--scanners", str(table))
    with pytest.raises(ConfigError, match="--norms turns scores of the MS study, --study is stroke"):
        group("--study", "stroke", "--norms", str(table))


def test_factors_of_sites_are_not_taken_twice(ms_group: Callable[..., int], tmp_path: Path) -> None:
    table = tmp_path / "scanners.tsv"
    table.write_text("site\tfactor\nA\t1.02\n")
    with pytest.raises(ConfigError, match=r"factors of A in ms\.site_factors and a table of --scanners") as caught:
        ms_group("--scanners", str(table), "--set", 'ms.site_factors=[["A", 1.02]]')
    assert caught.value.exit_code == 78


def test_what_cannot_be_computed_leaves_the_exit_code_of_a_run_that_worked(
    ms_group: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A score of another name, sexes in codes, one diagnosis at a site: each is told, the others are done."""
    place = tmp_path / "ms" / "group_tsc.tsv"
    table = pd.read_csv(place, sep="\t", na_values="n/a")
    table = table.assign(
        sex=table["sex"].map({"F": 1, "M": 2}), site=np.where(table["group"] == "SPMS", "X", "A"), z_sdmt="12 points"
    )
    write_group_table(tmp_path / "ms", table, {})
    assert ms_group() == 0
    index = json.loads((tmp_path / "out" / "group_analyses.json").read_text())
    told = {(entry["Analysis"], entry["Part"]): entry["Reason"] for entry in index["LeftOut"]}
    assert told["sites", "site X"] == "8 SPMS only: it adds nothing to a difference between groups"
    notes = " ".join(entry["Reason"] for entry in index["LeftOut"] if entry["Analysis"] == "participants")
    assert "sex could not be read: the values 1 (" in notes
    assert "z_sdmt could not be read" in notes
    assert (tmp_path / "out" / "group_comparisons.tsv").is_file()
    told_at_the_keyboard = capsys.readouterr().err
    assert "note: sex could not be read: the values 1 (" in told_at_the_keyboard
    assert "note: z_sdmt could not be read: " in told_at_the_keyboard
    assert "parts of table1, comparisons, joint: no column sex that could be read" in told_at_the_keyboard


def test_a_second_run_leaves_no_table_of_the_first(tmp_path: Path) -> None:
    def done(name: str) -> Analysis:
        ledger = Ledger(name, name)
        ledger.add(term="x", estimate=1.0)
        return ledger.close(data={"points": pd.DataFrame({"x": [1.0]})})

    first = Study(study="ms", analyses=(done("regions"), done("regions_time")))
    app._write_study(tmp_path, first, settings={})
    (tmp_path / "group_tsc.tsv").write_text("participant_id\n")
    left_out = Analysis(name="regions", title="regions", results=empty_results(), left_out="no region")
    app._write_study(tmp_path, Study(study="ms", analyses=(left_out, done("regions_time"))), settings={})
    assert {path.name for path in tmp_path.glob("*.tsv")} == {
        "group_tsc.tsv", "group_regions_time.tsv", "group_regions_time_points.tsv"
    }  # fmt: skip


def test_a_table_that_contradicts_itself_stops_alone_and_returns_the_code_of_a_bug(
    ms_group: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise InternalError("p is 1.2", where="table2 / mean")

    spoiled = tuple((name, title, wrong if name == "table2" else make) for name, title, make in ms._ANALYSES)
    monkeypatch.setattr(ms, "_ANALYSES", spoiled)
    assert ms_group() == 70
    index = json.loads((tmp_path / "out" / "group_analyses.json").read_text())
    reasons = {entry["Analysis"]: entry["Reason"] for entry in index["LeftOut"] if not entry["Part"]}
    assert reasons["table2"] == "stopped by its self-test: table2 / mean: p is 1.2"
    assert not (tmp_path / "out" / "group_table2.tsv").exists()
    assert (tmp_path / "out" / "group_table1.tsv").is_file()
