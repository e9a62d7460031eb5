"""The BIDS validator has nothing against a simulated study."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bids_sodium.simulate.dataset import write


def validator() -> str:
    beside = Path(sys.executable).with_name("bids-validator-deno")
    found = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if found is None:
        pytest.skip("bids-validator-deno is not installed")
    return found


def errors_of(folder: Path) -> list[str]:
    done = subprocess.run([validator(), "--json", str(folder)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i['code']} {i.get('location')}" for i in issues if i.get("severity") == "error"]


@pytest.mark.parametrize("study", ["stroke", "ms"])
def test_validator_reports_no_error(study: str, tmp_path: Path) -> None:
    validator()
    root = write(tmp_path / "data", study=study, n_participants=1, seed=2, sloppy=True)
    for folder in (root, root / "derivatives/truth", root / "derivatives/rois"):
        assert errors_of(folder) == [], folder


def test_validator_sees_what_is_wrong(tmp_path: Path) -> None:
    validator()
    (tmp_path / "sub-01/anat").mkdir(parents=True)
    (tmp_path / "sub-01/anat/sub-01_sodium.nii.gz").write_bytes(b"")
    assert errors_of(tmp_path)
