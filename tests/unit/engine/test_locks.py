import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bids_sodium.core.errors import LockedError
from bids_sodium.engine import locks
from bids_sodium.engine.locks import output_lock

HOLD = """
import sys
from pathlib import Path
from bids_sodium.engine.locks import output_lock

with output_lock(Path(sys.argv[1]), sys.argv[2:]):
    print("held", flush=True)
    sys.stdin.read()
"""


def _no_locks(stream: object, *, wait: bool) -> None:
    """Stand for a file system without locks."""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Return a live process that holds sub-01 and sub-02."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "sub-01", "sub-02"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("names", [["sub-02", "sub-03"], ["*"]])
def test_the_second_is_told_who_holds_it(tmp_path: Path, other: subprocess.Popen[str], names: list[str]) -> None:
    with pytest.raises(LockedError, match=f"process {other.pid} on .* is working on sub-0") as caught, \
            output_lock(tmp_path, names):  # fmt: skip
        pass
    assert caught.value.exit_code == 75


def test_runs_over_other_participants_share_an_output(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with output_lock(tmp_path, ["sub-03"]):
        assert len(list(tmp_path.glob("*.lock"))) == 2
    assert other.poll() is None


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert len(list(tmp_path.glob("*.lock"))) == 1
    with output_lock(tmp_path, ["sub-01"]):
        assert len(list(tmp_path.glob("*.lock"))) == 1
    assert not list(tmp_path.glob("*.lock"))


def test_an_error_inside_frees_the_output(tmp_path: Path) -> None:
    with pytest.raises(KeyError), output_lock(tmp_path, ["*"]):
        raise KeyError
    with output_lock(tmp_path, ["*"]):
        pass


def test_where_the_disk_has_no_locks_the_process_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_take", _no_locks)
    host = locks.socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def leave(pid: int, host: str) -> None:
        (tmp_path / "x.lock").write_text(json.dumps({"pid": pid, "host": host, "names": ["sub-01"]}))

    leave(gone.pid, host)
    with output_lock(tmp_path, ["sub-01"]):
        pass
    for pid, place in ((os.getpid(), host), (gone.pid, "another-host")):
        leave(pid, place)
        with pytest.raises(LockedError), output_lock(tmp_path, ["sub-01"]):
            pass
