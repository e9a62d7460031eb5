"""``bids-sodium-demo`` shows the whole job: both studies from raw data to report, then both cohorts from tables."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_ends_well_and_names_reports_that_exist(demo: Any) -> None:
    assert demo.done.code == 0, demo.done.err[-2000:]
    assert "done; the reports are" in demo.done.out
    reports = [Path(line.strip()) for line in demo.done.out.partition("the reports are\n")[2].splitlines()]
    assert [report.relative_to(demo.folder).as_posix() for report in reports] == [
        "stroke/derivatives/sub-01.html",
        "stroke/derivatives/group.html",
        "ms/derivatives/sub-01.html",
        "ms/derivatives/group.html",
        "cohort-stroke/derivatives/group.html",
        "cohort-ms/derivatives/group.html",
    ]
    for report in reports:
        text = report.read_text()
        assert text.lstrip().lower().startswith("<!doctype html>")
        assert text.rstrip().endswith("</html>")
        pictures = re.findall(r'(?:src|data)="([^"#:]+)"', text)
        assert pictures, report
        assert all((report.parent / picture).is_file() for picture in pictures)


def test_says_what_it_is_doing(demo: Any) -> None:
    steps = [line for line in demo.done.out.splitlines() if re.match(r"\[ *\d+ s\] ", line)]
    said = "\n".join(steps)
    for study in ("stroke", "ms"):
        assert f"{study}: simulating 1 participant(s)" in said
        assert f"{study}: participant level" in said
        assert f"{study}: group level" in said
    assert re.search(r"cohort of 15 stroke participants: group level from group_tsc.tsv alone", said)
    assert re.search(r"cohort of \d{3} ms participants: group level from group_tsc.tsv alone", said)


def test_reports_hold_no_script_and_load_nothing(demo: Any) -> None:
    pages = sorted(demo.folder.glob("*/derivatives/*.html"))
    assert len(pages) == 6
    for page in pages:
        text = page.read_text()
        assert "<script" not in text
        assert not re.search(r'(?:src|data|href)="(?:https?:)?//(?!doi\.org)', text)
        assert str(demo.folder) not in text


@pytest.mark.parametrize("study", ["stroke", "ms"])
def test_cohort_tables_hold_an_analysis_each(demo: Any, study: str) -> None:
    folder = demo.folder / f"cohort-{study}" / "derivatives"
    expected = {
        "stroke": {"regions", "sigmoid", "adc", "volumes", "correlations", "prediction", "exclusions"},
        "ms": {"table1", "table2", "comparisons", "lesions", "univariable", "regressions"},
    }[study]
    there = {path.stem.removeprefix("group_") for path in folder.glob("group_*.tsv")}
    assert expected <= there
    for name in expected:
        with (folder / f"group_{name}.tsv").open(newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        assert rows, name
        assert {row["analysis"] for row in rows} == {name}
