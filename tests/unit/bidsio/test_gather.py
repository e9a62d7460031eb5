"""What the group level gathers from participants' tables and the dataset's clinical tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from bids_sodium.bidsio.files import write_table
from bids_sodium.bidsio.gather import beside_group_table, gather, group_table, write_group_table
from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import FATE, QC, RATERS, ROI_TSC


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    output, raw = tmp_path / "out", tmp_path / "raw"
    for session, hours in (("ses-acute", 9.0), ("ses-subacute", 40.0)):
        folder = output / "sub-01" / session / "anat"
        folder.mkdir(parents=True)
        ids = {"participant_id": "sub-01", "session_id": session}
        stem = f"sub-01_{session}_acq-23Na"
        row = {**ids, "onset_to_scan_h": hours, "roi": "ionic", "contrast": "na", "method": "raw", "kept": 1}
        write_table(folder / f"{stem}_desc-roi_tsc.tsv", [row], ROI_TSC)
        write_table(folder / f"{stem}_desc-qc_tsc.tsv", [{**ids, "measure": "x", "value": 1.0}], QC)
        cell = {**ids, "onset_to_scan_h": hours, "cell": 1, "na_percent": 20.0, "adc_percent": -30.0}
        write_table(folder / f"{stem}_desc-fate_tsc.tsv", [cell], FATE)
    (raw / "sub-01").mkdir(parents=True)
    (raw / "sub-01" / "sub-01_sessions.tsv").write_text(
        "session_id\tonset_to_scan_h\tnihss\tmrs\n"
        "ses-acute\t540\t8\tn/a\nses-subacute\t2400\t5\tn/a\nses-m3\t129600\t2\t3\n"
    )
    (raw / "sessions.json").write_text(json.dumps({"onset_to_scan_h": {"Units": "min"}}))
    return output, raw


def test_the_rankin_score_of_a_visit_without_a_scan_follows_the_patient(folders: tuple[Path, Path]) -> None:
    table, *_ = gather(*folders)
    assert table["session_id"].tolist() == ["ses-acute", "ses-subacute"]
    assert table["mrs"].tolist() == [3.0, 3.0]


def test_a_score_taken_at_scans_stays_with_its_visit(folders: tuple[Path, Path]) -> None:
    table, *_ = gather(*folders)
    assert table["nihss"].tolist() == [8.0, 5.0]


def test_times_are_in_hours_whatever_the_sidecar_says(folders: tuple[Path, Path]) -> None:
    output, raw = folders
    for path in output.rglob("*_desc-roi_tsc.tsv"):
        pd.read_csv(path, sep="\t").assign(onset_to_scan_h="n/a").to_csv(path, sep="\t", index=False)
    table, *_ = gather(output, raw)
    assert table["onset_to_scan_h"].tolist() == [9.0, 40.0]


@pytest.mark.parametrize(("units", "factor"), [("min", 60.0), ("d", 1 / 24), ("h", 1.0), (None, 1.0)])
def test_times_of_a_given_group_table_are_in_hours(tmp_path: Path, units: str | None, factor: float) -> None:
    given, output = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    output.mkdir()
    ids = {"participant_id": "sub-01", "session_id": "ses-acute", "onset_to_scan_h": 9.0 * factor}
    write_table(given / "group_fate.tsv", [{**ids, "cell": 1}], FATE)
    write_group_table(given, pd.DataFrame([{**ids, "roi": "ionic"}]), {})
    for name in ("group_tsc", "group_fate"):
        content = json.loads((given / f"{name}.json").read_text())
        content["onset_to_scan_h"] = {"Units": units} if units else {}
        (given / f"{name}.json").write_text(json.dumps(content))
    table, dictionary, _ = group_table(output, given)
    assert table["onset_to_scan_h"].tolist() == pytest.approx([9.0])
    assert beside_group_table(output, given)["cells"]["onset_to_scan_h"].tolist() == pytest.approx([9.0])
    write_group_table(output, table, dictionary)
    for name in ("group_tsc", "group_fate"):
        assert json.loads((output / f"{name}.json").read_text())["onset_to_scan_h"]["Units"] == "h"
    # the output's own table is read again as it was written
    assert group_table(output, given)[0]["onset_to_scan_h"].tolist() == pytest.approx([9.0])


def test_units_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    write_group_table(tmp_path, pd.DataFrame([{"participant_id": "sub-01", "onset_to_scan_h": 9.0}]), {})
    (tmp_path / "group_tsc.json").write_text(json.dumps({"onset_to_scan_h": {"Units": "fortnight"}}))
    with pytest.raises(DataError, match="units 'fortnight'"):
        group_table(tmp_path, tmp_path)


@pytest.mark.parametrize("sessions", [True, False])
def test_factors_of_scanners_stay_with_their_scans(tmp_path: Path, sessions: bool) -> None:
    for number, factor in ((1, 1.1), (2, None)):
        who = f"sub-0{number}"
        for session in ("ses-a", "ses-b") if sessions else (None,):
            folder = tmp_path / "out" / who / (session or "") / "anat"
            folder.mkdir(parents=True)
            ids = {"participant_id": who, "session_id": session}
            row = {**ids, "roi": "ionic", "contrast": "tsc", "method": "raw", "kept": 1}
            write_table(folder / "x_acq-23Na_desc-roi_tsc.tsv", [row], ROI_TSC)
            measures = [{**ids, "measure": "bpf", "value": 0.8}]
            if factor and session != "ses-b":
                measures.append({**ids, "measure": "scanner_factor", "value": factor})
            write_table(folder / "x_acq-23Na_desc-qc_tsc.tsv", measures, QC)
    table, *_ = gather(tmp_path / "out", tmp_path / "raw")
    assert table["bpf"].tolist() == [0.8] * len(table)
    assert table["scanner_factor"].fillna(0.0).tolist() == ([1.1, 0.0, 0.0, 0.0] if sessions else [1.1, 0.0])


def test_tables_beside_the_long_one_are_gathered_and_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output, raw = folders
    found = beside_group_table(output, raw)
    assert set(found) == {"cells"}
    assert found["cells"]["session_id"].tolist() == ["ses-acute", "ses-subacute"]
    assert (output / "group_fate.tsv").is_file()
    alone = tmp_path / "alone"
    alone.mkdir()
    row = {"participant_id": "sub-01", "label": "ionic", "rater_a": "a", "rater_b": "b", "dice": 0.9}
    write_table(alone / "group_raters.tsv", [row], RATERS)
    assert set(beside_group_table(tmp_path / "none", alone)) == {"raters"}
