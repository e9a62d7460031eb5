"""What a table says of vials and scanners reaches the sodium scans that it is about, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bids_sodium.bidsio.calibration import FACTOR_KEY, calibrated_by, scanner_of
from bids_sodium.bidsio.layout import Dataset, Scan, Session
from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.image.phantoms import phantoms


def session(number: str, *, site: str | None = None, **sidecar: Any) -> Session:
    return Session(
        participant_id=f"sub-{number}",
        sodium=Scan(Path(f"sub-{number}_acq-23Na_PDw.nii.gz"), {}, {"RepetitionTime": 0.1, **sidecar}),
        participant={} if site is None else {"site": site},
    )


def dataset(*sessions: Session) -> Dataset:
    return Dataset(root=Path("bids"), derivatives={}, sessions=sessions)


def table(folder: Path, text: str) -> Path:
    path = folder / "table.tsv"
    path.write_text(text.replace(" ", "\t"), encoding="utf-8")
    return path


def sidecar(found: Dataset, index: int = 0) -> dict[str, Any]:
    scan = found.sessions[index].sodium
    assert scan is not None
    return dict(scan.sidecar)


def test_without_tables_nothing_changes() -> None:
    given = dataset(session("01"))
    assert calibrated_by(given) is given


def test_vials_of_a_table_go_before_the_sidecar(tmp_path: Path) -> None:
    text = "label concentration inner_diameter t1 t2star\nlow 30 24 0.03 n/a\nhigh 90 n/a 0.04 0.02\n"
    given = session("01", SodiumCalibration={"Phantoms": [{"Concentration": 40}]})
    found = sidecar(calibrated_by(dataset(given), vials=table(tmp_path, text)))["SodiumCalibration"]["Phantoms"]
    vials = phantoms(found, where="x")
    assert [(vial.label, vial.mmol_l, vial.inner_radius_mm) for vial in vials] == [("low", 30, 12), ("high", 90, None)]
    assert vials[1].relaxation.decay.t2_slow_ms == pytest.approx(20)


def test_rows_are_for_whom_they_name(tmp_path: Path) -> None:
    text = "site concentration\nA 40\nA 80\nB 50\nn/a 120\n"
    found = calibrated_by(dataset(session("01", site="A"), session("02", site="B")), vials=table(tmp_path, text))
    stated = [[v["Concentration"] for v in sidecar(found, i)["SodiumCalibration"]["Phantoms"]] for i in range(2)]
    assert stated == [["40", "80", "120"], ["50", "120"]]


def test_a_session_without_a_row_or_with_a_bad_one_has_a_problem_and_the_others_go_on(tmp_path: Path) -> None:
    text = "participant_id concentration\nsub-01 40\nsub-02 0.04\n"
    found = calibrated_by(dataset(*(session(n) for n in ("01", "02", "03"))), vials=table(tmp_path, text))
    assert found.sessions[0].problem is None
    assert "looks like mol/L" in str(found.sessions[1].problem)
    assert "no row for sub-03" in str(found.sessions[2].problem)


def test_the_factor_of_the_scanner_reaches_its_sessions(tmp_path: Path) -> None:
    text = "scanner phantom measured_mmol_l measured_se true_mmol_l\nA p 50 1 55\nB p 55 1 55\n"
    found = calibrated_by(
        dataset(session("01", site="A"), session("02", StationName="B"), session("03", site="C")),
        scanners=table(tmp_path, text),
    )
    factors = [sidecar(found, i).get(FACTOR_KEY) for i in range(3)]
    assert factors[0] is not None
    assert factors[1] is not None
    assert factors[0]["Factor"] == pytest.approx(1.1)
    assert factors[1]["Factor"] == pytest.approx(1.0)
    assert factors[2] is None
    assert "sub-03 was scanned on C, the table has A, B" in str(found.sessions[2].problem)


def test_tables_name_the_scanner_before_the_device() -> None:
    assert scanner_of(session("01", site="A", StationName="B")) == "A"
    assert scanner_of(session("01", StationName="B")) == "B"
    assert scanner_of(session("01")) is None


def test_tables_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for text in ("", "concentration\n"):
        with pytest.raises(DataError, match="no rows"):
            calibrated_by(dataset(session("01")), vials=table(tmp_path, text))
    with pytest.raises(DataError, match="cannot be read"):
        calibrated_by(dataset(session("01")), vials=tmp_path / "none.tsv")
    with pytest.raises(EstimationError, match="do not determine"):
        calibrated_by(dataset(session("01")), scanners=table(tmp_path, "scanner measured_mmol_l\nA 40\n"))
