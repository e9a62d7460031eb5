"""The command line from outside: what it prints, what it refuses, who may write, and how it is interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_sodium import __version__
from bids_sodium.cli import build_parser
from bids_sodium.engine.locks import output_lock

SIDECAR = {"ResonantNucleus": "23Na", "EchoTime": 0.0003, "RepetitionTime": 0.12, "FlipAngle": 90}
N_VOXELS, VOXEL_MM = 40, 6.0


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Return a dataset of two participants with a head between two vials and nothing else."""
    place = (np.indices((N_VOXELS,) * 3) - N_VOXELS // 2) * VOXEL_MM
    x, y, z = place
    data = 200.0 * ((x / 65) ** 2 + (y / 80) ** 2 + (z / 80) ** 2 < 1)
    for centre_mm, signal_au in ((-96.0, 160.0), (96.0, 320.0)):
        data[((x - centre_mm) ** 2 + y**2 < 15.0**2) & (np.abs(z) < 50)] = signal_au
    data += np.abs(2.0 * np.random.default_rng(0).standard_normal(data.shape))
    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    affine[:3, 3] = -N_VOXELS // 2 * VOXEL_MM
    root = tmp_path / "bids"
    for participant in ("01", "02"):
        stem = root / f"sub-{participant}/anat/sub-{participant}_acq-23Na_PDw.nii.gz"
        stem.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), stem)
        stem.with_suffix("").with_suffix(".json").write_text(json.dumps(SIDECAR))
    (root / "dataset_description.json").write_text('{"Name": "spheres", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


Command = Callable[..., Any]


def test_help_names_every_option_and_exit_code(command: Command) -> None:
    code, text, err = command("--help")
    assert (code, err) == (0, "")
    for action in build_parser()._actions:
        assert all(option in text for option in action.option_strings)
    for exit_code in (0, 1, 2, 65, 69, 70, 75, 78, 130, 143):
        assert re.search(rf"\b{exit_code}\s+[a-z]", text.partition("exit codes:")[2])


def test_version(command: Command) -> None:
    assert command("--version") == (0, f"bids_sodium {__version__}\n", "")
    assert command("--version", module="bids_sodium.demo") == (0, f"bids_sodium {__version__}\n", "")


def test_presets_are_listed(command: Command) -> None:
    code, text, err = command("--list-presets")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in text.splitlines()] == ["ms", "stroke"]
    assert all(len(line.split()) > 3 for line in text.splitlines())


def test_dry_run_prints_the_plan_and_writes_nothing(command: Command, bids: Path, out: Path) -> None:
    code, text, _ = command(bids, out, "participant", "--dry-run")
    assert code == 0
    steps = [tuple(line.split("\t")[:2]) for line in text.splitlines()]
    assert steps == [(f"sub-{n}", step) for n in ("01", "02") for step in ("reconstruct", "quantify", "extract")]
    assert not out.exists()


def test_validate_only_writes_nothing(command: Command, bids: Path, out: Path) -> None:
    code, _, err = command(bids, out, "participant", "--validate-only")
    assert "2 of 2 sessions can be processed" in err
    assert code == 0
    assert not out.exists()


def test_boilerplate_only_writes_the_methods_and_nothing_else(command: Command, bids: Path, out: Path) -> None:
    code, _, _ = command(bids, out, "participant", "--boilerplate-only")
    assert code == 0
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {"logs/CITATION.md", "logs/CITATION.bib"}


@pytest.mark.parametrize(
    "before", [["--participant-label", "01", "sub-02"], ["-d", "rois={}", "--session-label", "a", "b"]]
)
def test_positionals_after_an_option_with_several_values(
    command: Command, bids: Path, out: Path, before: list[str]
) -> None:
    code, text, err = command(*(word.format(bids) for word in before), bids, out, "participant", "--dry-run")
    if "--session-label" in before:
        # The dataset has no sessions: that they were looked for shows that the words were understood.
        assert (code, err.count("\n")) == (65, 1)
        assert "no participant has a session ses-a, ses-b" in err
    else:
        assert code == 0, err
        assert {line.partition("\t")[0] for line in text.splitlines()} == {"sub-01", "sub-02"}


@pytest.mark.parametrize(
    ("toml", "words", "said"),
    [
        ("[reconstruction]\niteration = 3\n", [], "iterations"),
        ("[reconstrution]\niterations = 3\n", [], "reconstruction"),
        ("", ["--set", "calibration.lin=zero"], "line"),
        ("", ["--preset", "strok"], "stroke"),
    ],
    ids=["key", "section", "--set", "preset"],
)
def test_unknown_settings_are_met_with_the_nearest(
    command: Command, bids: Path, out: Path, toml: str, words: list[str], said: str
) -> None:
    file = bids.parent / "settings.toml"
    file.write_text(toml)
    code, _, err = command(bids, out, "participant", "--dry-run", "--config-file", file, *words)
    assert code == 78
    assert err.count("\n") == 1
    assert "did you mean" in err
    assert said in err.partition("did you mean")[2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], 2), (["participant", "--frobnicate"], 2), (["both"], 2), (["group"], 78), (["participant"], 65)],
    ids=["no level", "unknown option", "unknown level", "group without study", "nothing there"],
)
def test_exit_codes(command: Command, tmp_path: Path, words: list[str], expected: int) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = command(tmp_path / "empty", tmp_path / "out", *words)
    assert code == expected
    assert err.count("\n") == 1
    assert err.startswith("bids-sodium: ")


def test_group_without_a_study_says_so(command: Command, bids: Path, out: Path) -> None:
    code, _, err = command(bids, out, "group")
    assert code == 78
    assert "--study stroke or --study ms" in err


def test_group_before_any_participant_says_so(command: Command, bids: Path, out: Path) -> None:
    code, _, err = command(bids, out, "group", "--study", "ms")
    assert code == 65
    assert err.count("\n") == 1
    assert "participant" in err


def test_an_output_that_a_live_run_holds_is_refused(
    command: Command, bids: Path, out: Path, contents: Callable[..., dict[str, str]]
) -> None:
    with output_lock(out / ".bids_sodium" / "locks", ["sub-01"]):
        before = contents(out)
        code, _, err = command(bids, out, "participant")
        assert code == 75
        assert err.count("\n") == 1
        assert f"process {os.getpid()} on " in err
        assert "is working on sub-01" in err
        assert "wait until it has ended" in err
        assert contents(out) == before
        # Another participant of the same output is nobody's.
        code, _, err = command(bids, out, "participant", "--participant-label", "02", "--n-procs", "1")
        assert code == 0, err
    code, _, err = command(bids, out, "participant", "--n-procs", "1")
    assert code == 0, err


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_was_ended_goes_on_from_there(
    command: Command, bids: Path, out: Path, number: signal.Signals, expected: int
) -> None:
    words = [str(bids), str(out), "participant", "--n-procs", "1", "-v"]
    with subprocess.Popen(
        [sys.executable, "-m", "bids_sodium", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith("sub-01.reconstruct: done"), first
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == expected, rest
    assert rest.splitlines()[-1].endswith("the same command goes on from here")
    assert not list(out.glob("sub-*/**/.*.nii.gz"))
    _wait_for_nobody(process.pid)
    code, _, err = command(*words)
    assert code == 0, err
    assert "sub-01.reconstruct: skipped" in err
    assert "2 of 2 participants complete" in err


def _wait_for_nobody(group: int) -> None:
    """Fail if processes of a run outlive it."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the run has left processes behind")


def test_nothing_is_written_outside_output_and_work_folder(command: Command, bids: Path, out: Path) -> None:
    elsewhere = {name: bids.parent / name for name in ("home", "work")}
    elsewhere["home"].mkdir()
    environment = {name: str(elsewhere["home"]) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")}
    code, _, err = command(bids, out, "participant", "-w", elsewhere["work"], "--n-procs", "1", **environment)
    assert code == 0, err
    assert list(elsewhere["home"].iterdir()) == []
    assert (elsewhere["work"] / "stamps").is_dir()
    # What libraries cache for the next run lies in the work folder too.
    assert [path.name for path in (elsewhere["work"] / "tmp").glob("fontlist*.json")]


def test_progress_is_silent_when_it_is_no_terminal(command: Command, bids: Path, out: Path) -> None:
    code, text, err = command(bids, out, "participant", "--n-procs", "1", "--participant-label", "01")
    assert code == 0, err
    assert text == ""
    assert "\r" not in err
    assert "\033" not in err
