"""One live run an output: whoever comes second is told who holds it.

Each run keeps a file that names what it works on and holds the operating system's lock on it; the lock dies with the
process, so a killed run leaves nothing to clean up. Runs over different participants may share an output.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bids_sodium.core.errors import LockedError

__all__ = ["output_lock"]


@contextmanager
def output_lock(folder: Path, names: Collection[str]) -> Iterator[None]:
    """Hold an output while the block runs.

    Parameters
    ----------
    folder : Path
        Where the lock files of an output lie; it is made.
    names : collection of str
        What this run works on, such as ``sub-01``; ``"*"`` is all of it.

    Raises
    ------
    LockedError
        If a live run works on one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = folder / f"{uuid.uuid4().hex[:12]}.lock"
    with (folder / "guard").open("a+", encoding="utf-8") as guard:
        _take(guard, wait=True)
        for other in sorted(folder.glob("*.lock")):
            _refuse(other, set(names))
        stream = mine.open("a+", encoding="utf-8")
        content = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time(), "names": sorted(names)}
        stream.write(json.dumps(content))
        stream.flush()
        _take(stream, wait=False)
    try:
        yield
    finally:
        mine.unlink(missing_ok=True)
        stream.close()


def _take(stream: IO[str], *, wait: bool) -> bool | None:
    """Lock a file; ``None`` where its file system has no locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}:
            return None
        raise
    return True


def _refuse(other: Path, names: set[str]) -> None:
    """Raise if a live run holds a lock file over the same names; remove the file of a dead one."""
    try:
        with other.open("r+", encoding="utf-8") as stream:
            taken = _take(stream, wait=False)
            holder = _holder(stream.read())
    except FileNotFoundError:
        return
    if taken or (taken is None and not _alive(holder)):
        other.unlink(missing_ok=True)
        return
    held = set(holder.get("names", ["*"]))
    shared = held if "*" in names else names if "*" in held else names & held
    if shared:
        what = ", ".join(sorted(shared)[:3])
        raise LockedError(
            f"process {holder.get('pid', '?')} on {holder.get('host', '?')} is working on {what}",
            where=str(other.parent),
            hint="wait until it has ended, or write to another folder",
        )


def _holder(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except PermissionError:
        return True
    return True
