"""Where tasks run: this process, local worker processes, Dask or Slurm, behind `concurrent.futures.Executor`.

`run` starts a task when all it waits for is done and its memory and threads fit the budget. A task that fails, or
whose process is killed, is a row of the `Report`; what depends on it is not run, and the others finish.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_objects
from pathlib import Path
from typing import Any, Literal

from bids_sodium.core.errors import ConfigError, SodiumError
from bids_sodium.engine.resources import cpu_count, memory_gb
from bids_sodium.engine.tasks import Stamps, Task, in_order

__all__ = [
    "DaskExecutor",
    "Event",
    "InlineExecutor",
    "LocalExecutor",
    "Outcome",
    "Report",
    "SlurmExecutor",
    "WorkerDiedError",
    "cluster",
    "run",
]

Status = Literal["done", "skipped", "failed", "not run"]

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one task.

    Parameters
    ----------
    task : Task
        The task.
    status : str
        ``"done"``, ``"skipped"`` (nothing had changed), ``"failed"`` or ``"not run"`` (something it needs failed).
    seconds : float
        Time it took.
    message : str
        One line: the error, or why it was not run.
    exit_code : int
        What the error stands for (see `bids_sodium.core.errors`), 0 without one.
    traceback : str
        Where it was raised, for the crash file.
    """

    task: Task
    status: Status
    seconds: float = 0.0
    message: str = ""
    exit_code: int = 0
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of all tasks.

    Parameters
    ----------
    outcomes : tuple of Outcome
        In the order of the plan.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Tasks that failed themselves."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def failed_units(self) -> tuple[str, ...]:
        """Units of which a task failed or was not run."""
        return tuple(dict.fromkeys(o.task.unit for o in self.outcomes if o.status in {"failed", "not run"}))

    @property
    def exit_code(self) -> int:
        """0 if all went well, 1 if some units failed; the error's own code if every unit failed for one reason."""
        if not self.failed_units:
            return 0
        codes = {outcome.exit_code for outcome in self.failed}
        units = {outcome.task.unit for outcome in self.outcomes}
        return codes.pop() if len(codes) == 1 and units == set(self.failed_units) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a task.

    Parameters
    ----------
    kind : str
        ``"start"`` or the status that the task has come to.
    task : Task
        The task.
    outcome : Outcome or None
        What became of it, ``None`` at its start.
    n_done, n_tasks : int
        Tasks that are finished in any way, and all tasks.
    n_running : int
        Tasks that are running now.
    left_s : float or None
        Estimated time to the end, in s; ``None`` before any is known.
    """

    kind: str
    task: Task
    outcome: Outcome | None = None
    n_done: int = 0
    n_tasks: int = 0
    n_running: int = 0
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a worker returns; it never raises, so that an error keeps its code and traceback on the way."""

    seconds: float
    message: str = ""
    exit_code: int = 0
    traceback: str = ""


class WorkerDiedError(Exception):
    """A worker process ended before it answered."""


def _perform(function: Callable[[Any, Any], Any], files: Any, params: Any) -> _Answer:
    started = time.monotonic()
    try:
        function(files, params)
    except SodiumError as error:
        return _Answer(time.monotonic() - started, str(error), error.exit_code, traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - a bug in one session must not stop the others; it is reported with exit 70
        first = " ".join(str(error).split())
        message = f"{type(error).__name__}: {first}" if first else type(error).__name__
        return _Answer(time.monotonic() - started, message, 70, traceback.format_exc())
    return _Answer(time.monotonic() - started)


class InlineExecutor(Executor):
    """Runs each call at once in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call and return its finished future."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _limit_threads(threads: int) -> None:
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))


def _work(connection: Connection, threads: int) -> None:
    """Serve calls in a worker process until its parent is gone."""
    _limit_threads(threads)
    # The parent decides what an interrupt means; it ends the workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        try:
            call = pickle.loads(connection.recv_bytes())  # noqa: S301 - it comes from the parent process
        except EOFError:
            return
        connection.send(call())


def _leave_with(sentinel: int) -> None:
    wait_for_objects([sentinel])
    os._exit(1)


class LocalExecutor(Executor):
    """Worker processes, each serving one call at a time.

    Unlike `concurrent.futures.ProcessPoolExecutor`, a worker that is killed takes only its own call with it.

    Parameters
    ----------
    threads : int
        Threads that numerical libraries may use in a worker.
    """

    def __init__(self, *, threads: int = 1) -> None:
        # A fresh interpreter inherits no locks or threads of numerical libraries, and looks alike on every system.
        self._context = multiprocessing.get_context("spawn")
        self._threads = threads
        self._idle: list[tuple[Any, Connection]] = []
        self._all: list[tuple[Any, Connection]] = []
        self._lock = threading.Lock()

    def _worker(self) -> tuple[Any, Connection]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_work, args=(theirs, self._threads), daemon=True)
            process.start()
            theirs.close()
            self._all.append((process, ours))
            return process, ours

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a call to an idle worker, or to a new one."""
        call = pickle.dumps(functools.partial(fn, *args, **kwargs))
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        threading.Thread(target=self._serve, args=(*self._worker(), call, future), daemon=True).start()
        return future

    def _serve(self, process: Any, connection: Connection, call: bytes, future: Future[Any]) -> None:
        try:
            connection.send_bytes(call)
            answer = connection.recv()
        except (EOFError, OSError):
            process.join()
            with self._lock:
                self._all.remove((process, connection))
            connection.close()
            future.set_exception(WorkerDiedError(_death(process.exitcode)))
            return
        with self._lock:
            self._idle.append((process, connection))
        future.set_result(answer)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers: at once where futures are cancelled, else when they are idle."""
        with self._lock:
            workers, self._idle = list(self._all), []
        for process, connection in workers:
            if cancel_futures:
                process.kill()
            else:
                connection.close()
        if wait:
            for process, _ in workers:
                process.join()


def _death(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"the process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = (
        "; most likely the memory ran out (try: a smaller --n-procs or a larger --mem-gb)" if name == "SIGKILL" else ""
    )
    return f"the process was ended by {name}{hint}"


class DaskExecutor(Executor):
    """Workers of a Dask cluster that runs already.

    Parameters
    ----------
    address : str
        Address of its scheduler, or empty.
    scheduler_file : str
        File that its scheduler has written, or empty.

    Raises
    ------
    ConfigError
        If Dask is not installed, neither is given or the cluster does not answer.
    """

    def __init__(self, *, address: str = "", scheduler_file: str = "") -> None:
        if not address and not scheduler_file:
            raise ConfigError("no Dask cluster is named", hint="give --dask-address or --dask-scheduler-file")
        try:
            import distributed
        except ImportError as error:
            raise ConfigError("Dask is not installed", hint="pip install 'bids_sodium[dask]'") from error
        connect: Any = distributed.Client
        try:
            self._client = connect(address) if address else connect(scheduler_file=scheduler_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the Dask scheduler does not answer ({error})",
                where=address or scheduler_file,
                hint="start the cluster first",
            ) from error
        # A task that kills its worker is a failed task: it must not take further workers along.
        self._executor: Executor = self._client.get_executor(pure=False, retries=0)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a call to the cluster."""
        return self._executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; the cluster itself goes on."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()


class SlurmExecutor(Executor):
    """Slurm jobs through submitit; it asks squeue, never sacct.

    Parameters
    ----------
    folder : Path
        Where submitit keeps calls, results and logs; every node must see it.
    parameters : mapping
        Slurm options as submitit names them: ``partition``, ``time``, ``mem``, ``array_parallelism`` ...
    poll_s : float
        Time between looks for results, in s.

    Raises
    ------
    ConfigError
        If submitit is not installed or a parameter is unknown to it.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, Any] | None = None, *, poll_s: float = 2.0) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("submitit is not installed", hint="pip install 'bids_sodium[slurm]'") from error
        try:
            self._executor: Any = submitit.SlurmExecutor(folder=str(folder))
            self._executor.update_parameters(**(parameters or {}))
        except (NameError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"submitit cannot use Slurm so ({error})", hint="check --slurm-option") from error
        self._poll_s = poll_s
        self._jobs: dict[Future[Any], Any] = {}
        self._pending: dict[Future[Any], Callable[[], Any]] | None = None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit one job, or keep it for the array of the batch."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        call = functools.partial(fn, *args, **kwargs)
        if self._pending is None:
            self._jobs[future] = self._executor.submit(call)
        else:
            self._pending[future] = call
        return future

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Submit all calls of the block as one job array."""
        self._pending = {}
        try:
            yield
        finally:
            pending, self._pending = self._pending, None
            if pending:
                self._jobs.update(zip(pending, self._executor.map_array(_call, list(pending.values())), strict=True))

    def _watch(self) -> None:
        gone: dict[str, int] = {}
        while not self._ended.wait(self._poll_s):
            open_jobs = list(self._jobs.items())
            queued = _queued() if open_jobs else set()
            for future, job in open_jobs:
                if job.paths.result_pickle.exists():
                    del self._jobs[future]
                    _settle(future, job)
                elif queued is not None and job.job_id not in queued and job.job_id.partition("_")[0] not in queued:
                    # A shared disk may show a result late: a job must be missed several times before it counts as dead.
                    gone[job.job_id] = gone.get(job.job_id, 0) + 1
                    if gone[job.job_id] > 5:
                        del self._jobs[future]
                        future.set_exception(WorkerDiedError(f"Slurm job {job.job_id} ended without a result"))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop watching; cancel the jobs where futures are cancelled."""
        if cancel_futures:
            for job in self._jobs.values():
                job.cancel(check=False)
        self._ended.set()
        if wait:
            self._watcher.join()


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _settle(future: Future[Any], job: Any) -> None:
    error = job.exception()
    if error is None:
        future.set_result(job.result())
    else:
        future.set_exception(WorkerDiedError(f"Slurm job {job.job_id} failed: {str(error).strip().splitlines()[-1]}"))


def _queued() -> set[str] | None:
    """Return the ids of all jobs in the queue, ``None`` when Slurm does not answer."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", "--me"],  # noqa: S607 - found on PATH as users have it
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return set(done.stdout.split())


def cluster(
    kind: str, *, folder: Path, dask_address: str = "", dask_scheduler_file: str = "", slurm_options: Iterable[str] = ()
) -> Executor | None:
    """Return the executor that a configuration names, ``None`` for local processes.

    Parameters
    ----------
    kind : str
        ``"local"``, ``"dask"`` or ``"slurm"``.
    folder : Path
        Where Slurm jobs keep calls and results; every node must see it.
    dask_address, dask_scheduler_file : str
        Where the Dask scheduler is found.
    slurm_options : iterable of str
        ``key=value`` of submitit.

    Raises
    ------
    ConfigError
        If the engine is unknown, not installed or refuses its options.
    """
    if kind == "dask":
        return DaskExecutor(address=dask_address, scheduler_file=dask_scheduler_file)
    if kind == "slurm":
        parameters: dict[str, Any] = {}
        for option in slurm_options:
            name, equals, value = option.partition("=")
            if not equals:
                raise ConfigError(f"{option!r} is not key=value", where="--slurm-option", hint="write partition=short")
            parameters[name] = int(value) if value.isdigit() else value
        return SlurmExecutor(folder, parameters)
    if kind != "local":
        raise ConfigError(f"no executor {kind!r}", hint="choose local, dask or slurm")
    return None


def run(
    tasks: Iterable[Task],
    *,
    stamps: Stamps,
    executor: Executor | None = None,
    n_procs: int | None = None,
    threads: int | None = None,
    memory: float | None = None,
    stop_on_first_crash: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Report:
    """Run tasks.

    Parameters
    ----------
    tasks : iterable of Task
        What to do; the order given is kept as far as dependencies and the budget allow.
    stamps : Stamps
        What earlier runs have done.
    executor : Executor, optional
        Where to run. By default in this process when ``n_procs`` is 1, else in local worker processes, within the
        budget of threads and memory; another executor's cluster minds its own memory.
    n_procs : int, optional
        Tasks that may run at a time, by default the cores of this process.
    threads : int, optional
        Threads of each task, by default the cores divided by ``n_procs``.
    memory : float, optional
        Memory for all tasks together, in GiB, by default 90 % of what this process may use.
    stop_on_first_crash : bool
        Whether to start nothing more after a failure.
    on_event : callable
        Called in this thread when a task starts or ends.

    Returns
    -------
    Report
        What became of every task.
    """
    cores = cpu_count()
    n_procs = n_procs or cores
    threads = threads or max(1, cores // n_procs)
    budget = float("inf") if executor is not None else memory or 0.9 * memory_gb()
    with contextlib.ExitStack() as stack:
        stack.callback(stamps.save)
        if executor is None:
            if n_procs == 1:
                executor = InlineExecutor()
                _limit_threads(threads)
            else:
                executor = LocalExecutor(threads=threads)
            stack.push(functools.partial(_close, executor))
        return _Run(
            in_order(tasks),
            stamps=stamps,
            executor=executor,
            n_procs=n_procs,
            memory=budget,
            stop=stop_on_first_crash,
            on_event=on_event,
        ).finish()


def _close(executor: Executor, kind: type[BaseException] | None, *_: object) -> None:
    """End an executor; on an interrupt without waiting for what runs."""
    executor.shutdown(wait=True, cancel_futures=kind is not None)


class _Run:
    """The state of one call of `run`."""

    def __init__(
        self,
        tasks: list[Task],
        *,
        stamps: Stamps,
        executor: Executor,
        n_procs: int,
        memory: float,
        stop: bool,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.tasks = tasks
        self.stamps = stamps
        self.executor = executor
        self.n_procs = n_procs
        self.memory = memory
        self.stop = stop
        self.on_event = on_event
        self.outcomes: dict[str, Outcome] = {}
        self.running: dict[Future[Any], tuple[Task, str, float]] = {}
        self.spent: dict[str, list[float]] = {}
        self.waiting = dict.fromkeys(tasks)
        self.planned = {path for task in tasks for path in task.outputs}

    def finish(self) -> Report:
        while self.waiting or self.running:
            self._start()
            if not self.running:
                continue
            ready, _ = wait(self.running, return_when=FIRST_COMPLETED)
            for future in ready:
                self._end(future)
        return Report(outcomes=tuple(self.outcomes[task.id] for task in self.tasks))

    def _start(self) -> None:
        """Settle every task that needs no running, and start those that fit."""
        batch = getattr(self.executor, "batch", contextlib.nullcontext)
        with batch():
            for task in list(self.waiting):
                before = [self.outcomes.get(name) for name in task.after]
                bad = next((o for o in before if o is not None and o.status in {"failed", "not run"}), None)
                if bad is not None:
                    why = bad.message if bad.status == "not run" else f"{bad.task.id} failed"
                    self._settle(Outcome(task=task, status="not run", message=why))
                elif self.stop and any(o.status == "failed" for o in self.outcomes.values()):
                    self._settle(Outcome(task=task, status="not run", message="stopped at the first failure"))
                elif None not in before and self._fits(task):
                    self._begin(task)

    def _fits(self, task: Task) -> bool:
        if not self.running:
            return True
        held = sum(other.memory_gb for other, _, _ in self.running.values())
        return len(self.running) < self.n_procs and held + task.memory_gb <= self.memory

    def _begin(self, task: Task) -> None:
        try:
            key = self.stamps.key(task)
        except SodiumError as error:
            self._settle(Outcome(task=task, status="failed", message=str(error), exit_code=error.exit_code))
            return
        if self.stamps.is_done(task, key):
            self._settle(Outcome(task=task, status="skipped"))
            return
        # the group level gathers every table that it finds, also one that nothing makes any more
        for table in set(self.stamps.forget(task)) - self.planned:
            table.unlink(missing_ok=True)
        for path in task.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        del self.waiting[task]
        self._tell("start", task, more=1)
        future = self.executor.submit(_perform, task.function, task.files, task.params)
        self.running[future] = (task, key, time.monotonic())

    def _end(self, future: Future[Any]) -> None:
        task, key, started = self.running.pop(future)
        error = future.exception()
        if error is not None:
            message = str(error) or type(error).__name__
            seconds = time.monotonic() - started
            self._settle(Outcome(task=task, status="failed", seconds=seconds, message=message, exit_code=70))
            return
        answer: _Answer = future.result()
        message, code = answer.message, answer.exit_code
        if not message:
            try:
                self.stamps.mark(task, key, seconds=answer.seconds)
            except SodiumError as missing:
                message, code = str(missing), missing.exit_code
        if message:
            self._settle(
                Outcome(
                    task=task,
                    status="failed",
                    seconds=answer.seconds,
                    message=message,
                    exit_code=code,
                    traceback=answer.traceback,
                )
            )
            return
        self.spent.setdefault(task.name, []).append(answer.seconds)
        self._settle(Outcome(task=task, status="done", seconds=answer.seconds))

    def _settle(self, outcome: Outcome) -> None:
        self.waiting.pop(outcome.task, None)
        self.outcomes[outcome.task.id] = outcome
        self._tell(outcome.status, outcome.task, outcome)

    def _tell(self, kind: str, task: Task, outcome: Outcome | None = None, *, more: int = 0) -> None:
        if self.on_event is None:
            return
        self.on_event(
            Event(
                kind=kind,
                task=task,
                outcome=outcome,
                n_done=len(self.outcomes),
                n_tasks=len(self.tasks),
                n_running=len(self.running) + more,
                left_s=self._left_s(),
            )
        )

    def _left_s(self) -> float | None:
        """Estimate the time to the end from what each step took so far, in this run or when it was last done."""
        if not self.spent:
            return None
        known = {name: sum(times) / len(times) for name, times in self.spent.items()}
        usual = sum(known.values()) / len(known)
        left = sum(known.get(task.name, usual) for task in self.waiting)
        now = time.monotonic()
        left += sum(max(0.0, known.get(task.name, usual) - (now - t)) for task, _, t in self.running.values())
        return left / max(1, min(self.n_procs, len(self.waiting) + len(self.running)))
