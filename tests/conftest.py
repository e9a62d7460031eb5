"""What tests share: the data folder, the command as a process, contents of folders, and one run of the demo.

The demo is run once for all worker processes: the first that asks for it runs it, the others wait for what it wrote.
Tests that change an output work on a copy of it; a copy keeps sizes and times, so that it resumes like the original.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
STATE = ".bids_sodium"


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


class Study(NamedTuple):
    """A simulated dataset of one participant and what the demo made of it."""

    name: str
    bids: Path
    output: Path

    @property
    def rois(self) -> str:
        """The option's value that names the delineations."""
        return f"rois={self.bids / 'derivatives' / 'rois'}"


class Demo(NamedTuple):
    """The demo as it ended, and where it wrote."""

    done: Done
    folder: Path

    def study(self, name: str) -> Study:
        """Return one of its two studies."""
        return Study(name, self.folder / name / "bids", self.folder / name / "derivatives")


def run(*words: object, module: str = "bids_sodium", timeout: float = 300.0, **environment: str) -> Done:
    """Run the command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **environment},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def hashes(folder: Path, *, state: bool = False) -> dict[str, str]:
    """Return the hash of every file under a folder by its path; the app's own state only when asked for."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (state or STATE not in path.parts)
    }


def moments(folder: Path) -> dict[str, int]:
    """Return when every file under a folder was last written, by its path; the app's own state left out."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and STATE not in path.parts
    }


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the source."""
    return REPOSITORY


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real data and reference results."""
    folder = Path(os.environ.get("BIDS_SODIUM_TEST_DATA", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set BIDS_SODIUM_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[..., Done]:
    """Return a function that runs ``bids-sodium`` with some words and returns exit code, output and messages."""
    return run


@pytest.fixture(scope="session")
def contents() -> Callable[..., Mapping[str, str]]:
    """Return a function that hashes every file of a folder."""
    return hashes


@pytest.fixture(scope="session")
def times() -> Callable[[Path], Mapping[str, int]]:
    """Return a function that tells when every file of a folder was written."""
    return moments


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Run ``bids-sodium-demo OUT --sloppy`` once, whatever the number of worker processes."""
    base = tmp_path_factory.getbasetemp()
    # Worker processes of pytest-xdist have a folder each inside that of the whole run.
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, result = shared / "demo", shared / "demo.json"
    with (shared / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            done = run(folder, "--sloppy", "--n-procs", "2", module="bids_sodium.demo", timeout=600)
            result.write_text(json.dumps(done))
    return Demo(Done(*json.loads(result.read_text())), folder)
