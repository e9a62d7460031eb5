"""Task: one step of one unit, with what it reads, how, and what it writes; and the stamps that let a re-run skip it.

A task's key is a hash of its name, version, parameters, file names and the *contents* of its inputs. When a task is
done its stamp holds the key and the size and time of every output; the next run skips the task while both still
hold. Contents are hashed once and remembered by path, size and modification time, so asking again costs one ``stat``.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from bids_sodium.core.errors import DataError, InternalError

__all__ = ["Stamps", "Task", "in_order"]

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One step of one unit.

    Parameters
    ----------
    name : str
        The step, for example ``"reconstruct"``.
    unit : str
        What it is done for, for example ``"sub-01_ses-acute"``.
    group : str
        What the unit belongs to, for example ``"sub-01"``.
    function : callable
        Module-level function called as ``function(files, params)``, in another process perhaps.
    files, params : object
        Frozen dataclasses that can be pickled; ``params`` enters the key whole, ``files`` by its names.
    inputs : tuple of Path
        Files whose contents enter the key.
    outputs : tuple of Path
        Files that the function must write.
    after : tuple of str
        Ids of the tasks that come first.
    version : str
        Raised whenever the step computes something else.
    memory_gb : float
        Peak memory to reserve.
    threads : int
        Threads to reserve.
    """

    name: str
    unit: str
    function: Callable[[Any, Any], Any]
    files: Any = None
    params: Any = None
    group: str = ""
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    after: tuple[str, ...] = ()
    version: str = "1"
    memory_gb: float = 1.0
    threads: int = 1

    @property
    def id(self) -> str:
        """Name of the task in a run: ``sub-01_ses-acute.reconstruct``."""
        return f"{self.unit}.{self.name}"


def in_order(tasks: Iterable[Task]) -> list[Task]:
    """Return tasks such that each stands after those it depends on, else in the given order.

    Raises
    ------
    InternalError
        If two tasks share an id or an output, one waits for an unknown task, or they wait for each other.
    """
    waiting = list(tasks)
    known = {task.id for task in waiting}
    if len(known) < len(waiting):
        twice = sorted({task.id for task in waiting if sum(other.id == task.id for other in waiting) > 1})
        raise InternalError(f"tasks planned twice: {', '.join(twice)}")
    owner: dict[Path, str] = {}
    for task in waiting:
        unknown = [name for name in task.after if name not in known]
        if unknown:
            raise InternalError(f"{task.id} waits for {', '.join(unknown)}, which is not planned")
        for path in task.outputs:
            if owner.setdefault(path, task.id) != task.id:
                raise InternalError(f"{task.id} and {owner[path]} both write {path.name}")
    ordered: list[Task] = []
    placed: set[str] = set()
    while waiting:
        rest = []
        for task in waiting:
            if placed.issuperset(task.after):
                ordered.append(task)
                placed.add(task.id)
            else:
                rest.append(task)
        if len(rest) == len(waiting):
            raise InternalError(f"tasks wait for each other: {', '.join(task.id for task in rest[:5])}")
        waiting = rest
    return ordered


def _plain(value: Any) -> Any:
    """Return a value as JSON types, the same in every run; paths by their names, so that a folder may move."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Path):
        return {"file": value.name}
    if isinstance(value, enum.Enum):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}}
    if isinstance(value, Mapping):
        return {"map": sorted([str(key), _plain(entry)] for key, entry in value.items())}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(json.dumps(_plain(entry)) for entry in value)}
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    tobytes = getattr(value, "tobytes", None)
    if tobytes is not None:
        digest = hashlib.blake2b(tobytes(), digest_size=16).hexdigest()
        return {"array": [digest, str(getattr(value, "dtype", "")), str(getattr(value, "shape", ""))]}
    raise InternalError(f"a parameter of type {type(value).__name__} cannot enter a task's key")


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


class Stamps:
    """What earlier runs have done, in a folder.

    Parameters
    ----------
    folder : Path
        Holds one JSON file a task and the remembered hashes of inputs.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stamps = Stamps(Path(folder))
    ...     task = Task(name="step", unit="sub-01", function=print)
    ...     before = stamps.is_done(task, stamps.key(task))
    ...     stamps.mark(task, stamps.key(task), seconds=1.0)
    ...     before, stamps.is_done(task, stamps.key(task))
    (False, True)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hashes_path = folder / "contents.json"
        self._hashes: dict[str, list[Any]] = self._read(self._hashes_path)
        self._changed = False

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        # A stamp that cannot be read is a stamp that is not there: its task runs again.
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)

    def content(self, path: Path) -> str:
        """Return the hash of a file's content.

        Raises
        ------
        DataError
            If the file is not there.
        """
        try:
            state = _state(path)
            known = self._hashes.get(str(path))
            if known is not None and known[:2] == state:
                return str(known[2])
            digest = hashlib.blake2b(digest_size=16)
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise DataError(
                f"an input cannot be read ({error.strerror})",
                where=str(path),
                hint="restore it, or run the step that makes it",
            ) from error
        # A file changed within the clock's grain of now could change again unseen; it is hashed again next time.
        if time.time_ns() - state[1] > 50_000_000:
            self._hashes[str(path)] = [*state, digest.hexdigest()]
            self._changed = True
        return digest.hexdigest()

    def key(self, task: Task) -> str:
        """Return the key of a task: what its result depends on.

        Raises
        ------
        DataError
            If an input is not there.
        """
        said = {
            "name": task.name,
            "version": task.version,
            "params": _plain(task.params),
            "files": _plain(task.files),
            "outputs": [path.name for path in task.outputs],
            "inputs": [[path.name, self.content(path)] for path in task.inputs],
        }
        return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _stamp(self, task: Task) -> Path:
        return self._folder / task.unit / f"{task.name}.json"

    def is_done(self, task: Task, key: str) -> bool:
        """Tell whether the task was done with this key and its outputs are as it left them."""
        stamp = self._read(self._stamp(task))
        if stamp.get("key") != key:
            return False
        try:
            return [_state(path) for path in task.outputs] == stamp.get("outputs")
        except OSError:
            return False

    def seconds(self, task: Task) -> float | None:
        """Return how long the task took when it was last done, ``None`` where that is unknown."""
        seconds = self._read(self._stamp(task)).get("seconds")
        return float(seconds) if isinstance(seconds, (int, float)) else None

    def forget(self, task: Task) -> tuple[Path, ...]:
        """Remove the stamp of a task that is about to run, so that a killed run leaves none behind.

        Returns
        -------
        tuple of Path
            Tables that the task wrote when it was last done and will not write now, with their dictionaries.
        """
        names = self._read(self._stamp(task)).get("names", [])
        self._stamp(task).unlink(missing_ok=True)
        written = {path.name for path in task.outputs}
        gone = [Path(name) for name in names if str(name).endswith(".tsv") and name not in written]
        folders = dict.fromkeys(path.parent for path in task.outputs)
        return tuple(folder / name for folder in folders for tsv in gone for name in (tsv, tsv.with_suffix(".json")))

    def mark(self, task: Task, key: str, *, seconds: float) -> None:
        """Record that the task is done.

        Raises
        ------
        InternalError
            If one of its outputs is not there.
        """
        missing = [path.name for path in task.outputs if not path.is_file()]
        if missing:
            raise InternalError(f"{task.id} did not write {', '.join(missing)}")
        outputs = [_state(path) for path in task.outputs]
        names = [path.name for path in task.outputs]
        self._write(self._stamp(task), {"key": key, "seconds": round(seconds, 3), "outputs": outputs, "names": names})

    def save(self) -> None:
        """Keep the hashes of inputs for the next run."""
        if self._changed:
            self._write(self._hashes_path, self._hashes)
            self._changed = False
