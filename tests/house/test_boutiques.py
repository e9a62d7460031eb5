"""The Boutiques descriptor is that of the parser, and bosh can read it, simulate both levels and launch one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bids_sodium.cli import build_parser

SKIPPED = {"help", "version", "list_presets"}


def bosh(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run bosh without a network: a proxy that nothing listens at would be asked for anything else."""
    beside = Path(sys.executable).with_name("bosh")
    found = str(beside) if beside.exists() else shutil.which("bosh")
    if found is None:
        pytest.skip("boutiques is not installed")
    nowhere = "http://127.0.0.1:9"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere, "HOME": str(cwd or "/")}
    return subprocess.run(
        [found, *map(str, words)], capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=120
    )


@pytest.fixture
def descriptor(repository: Path) -> Path:
    return repository / "boutiques.json"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a dataset whose plan can be made without opening an image."""
    root = tmp_path / "data"
    stem = root / "sub-01/anat/sub-01_acq-23Na_PDw"
    stem.parent.mkdir(parents=True)
    stem.with_suffix(".nii.gz").write_bytes(b"")
    stem.with_suffix(".json").write_text('{"ResonantNucleus": "23Na", "RepetitionTime": 0.12}')
    (root / "dataset_description.json").write_text('{"Name": "plan", "BIDSVersion": "1.10.0"}')
    return root


def invocation(folder: Path, **values: Any) -> Path:
    path = folder / "invocation.json"
    path.write_text(json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in values.items()}))
    return path


def test_descriptor_is_that_of_the_parser(repository: Path, descriptor: Path) -> None:
    spec = importlib.util.spec_from_file_location("boutiques_tool", repository / "tools" / "boutiques.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = json.loads(json.dumps(module.descriptor()))
    assert json.loads(descriptor.read_text()) == made, "run: python tools/boutiques.py > boutiques.json"


def test_every_option_of_the_parser_is_an_input(descriptor: Path) -> None:
    inputs = {entry["id"]: entry for entry in json.loads(descriptor.read_text())["inputs"]}
    actions = {action.dest: action for action in build_parser()._actions if action.dest not in SKIPPED}
    assert set(inputs) == set(actions)
    for name, action in actions.items():
        assert inputs[name].get("command-line-flag") in {*action.option_strings, None}
        assert bool(inputs[name].get("command-line-flag")) == bool(action.option_strings)
        assert inputs[name].get("value-choices") == (None if action.choices is None else list(action.choices))
        assert inputs[name].get("list", False) == (action.nargs == "+")


def test_bosh_accepts_the_descriptor(descriptor: Path, tmp_path: Path) -> None:
    done = bosh("validate", descriptor, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK" in done.stdout


@pytest.mark.parametrize(
    ("level", "more", "words"),
    [
        ("participant", {"participant_label": ["01", "02"], "preset": "ms", "sloppy": True}, "--participant-label 01 02"),
        ("group", {"study": "ms"}, "--study ms"),
    ],
)
def test_bosh_simulates_both_levels(
    descriptor: Path, dataset: Path, tmp_path: Path, level: str, more: dict[str, Any], words: str
) -> None:
    values = invocation(tmp_path, bids_dir=dataset, output_dir="out", analysis_level=level, **more)
    done = bosh("exec", "simulate", descriptor, "-i", values, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "bids-sodium " in line)
    assert f"bids-sodium {dataset} out {level}" in " ".join(line.split())
    assert words in line


def test_bosh_launches_a_plan(descriptor: Path, dataset: Path, tmp_path: Path) -> None:
    # The output folder is promised by the descriptor, and a plan makes none.
    (tmp_path / "out").mkdir()
    values = invocation(tmp_path, bids_dir=dataset, output_dir="out", analysis_level="participant", dry_run=True)
    done = bosh("exec", "launch", "--no-container", "--skip-data-collection", descriptor, values, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sub-01\treconstruct\t" in done.stdout


def test_bosh_passes_the_exit_code_on(descriptor: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    values = invocation(tmp_path, bids_dir=dataset, output_dir="out", analysis_level="group")
    done = bosh("exec", "launch", "--no-container", "--skip-data-collection", descriptor, values, cwd=tmp_path)
    assert done.returncode == 78
    assert "--study stroke or --study ms" in done.stdout + done.stderr
