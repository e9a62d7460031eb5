import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.engine.executors import DaskExecutor, Event, LocalExecutor, Report, SlurmExecutor, cluster, run
from bids_sodium.engine.tasks import Stamps, Task

# Functions that worker processes must find by name live in a module of their own.
WORKER = """
import os, signal, time
from pathlib import Path
from bids_sodium.core.errors import EstimationError

def write(files, params):
    Path(files[-1]).write_text("".join(Path(f).read_text() for f in files[:-1]) + str(params))

def fail(files, params):
    raise EstimationError("cannot tell", where="here", hint="something else")

def bug(files, params):
    return 1 // 0

def die(files, params):
    os.kill(os.getpid(), signal.SIGKILL)

def leave(files, params):
    os._exit(3)

def nothing(files, params):
    pass

def log(files, params):
    began = time.monotonic()
    time.sleep(params)
    Path(files[-1]).write_text(f"{began} {time.monotonic()} {os.environ['OMP_NUM_THREADS']} {os.getpid()}")

def wait_for_ever(files, params):
    Path(files[-1]).write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "sodium_test_worker.py").write_text(WORKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import sodium_test_worker  # type: ignore[import-not-found]

        yield sodium_test_worker


@dataclass
class Runner:
    """Plans tasks that write one file each into a folder and runs them."""

    work: Any
    folder: Path

    def task(self, function: str, unit: str, name: str = "step", **changes: Any) -> Task:
        out = self.folder / f"{unit}-{name}.txt"
        inputs = changes.pop("inputs", ())
        return Task(
            name=name, unit=unit, function=getattr(self.work, function), files=(*inputs, out), inputs=tuple(inputs),
            outputs=(out,), **changes,
        )  # fmt: skip

    def run(self, *tasks: Task, **options: Any) -> Report:
        return run(tasks, stamps=Stamps(self.folder / "stamps"), **{"n_procs": 1, "threads": 1, **options})


@pytest.fixture
def runner(work: Any, tmp_path: Path) -> Runner:
    return Runner(work, tmp_path)


def statuses(report: Report) -> dict[str, str]:
    return {outcome.task.id: outcome.status for outcome in report.outcomes}


def chain(runner: Runner, params: str = "x") -> list[Task]:
    first = runner.task("write", "s", "1", params=params)
    second = runner.task("write", "s", "2", params="y", inputs=first.outputs, after=("s.1",))
    return [first, second]


@pytest.mark.parametrize("n_procs", [1, 2])
def test_nothing_changed_means_nothing_is_done_again(runner: Runner, n_procs: int) -> None:
    assert statuses(runner.run(*chain(runner), n_procs=n_procs)) == {"s.1": "done", "s.2": "done"}
    assert (runner.folder / "s-2.txt").read_text() == "xy"
    assert statuses(runner.run(*chain(runner), n_procs=n_procs)) == {"s.1": "skipped", "s.2": "skipped"}
    assert statuses(runner.run(*chain(runner, "z"), n_procs=n_procs)) == {"s.1": "done", "s.2": "done"}
    assert (runner.folder / "s-2.txt").read_text() == "zy"


def test_a_table_that_nothing_makes_any_more_is_removed(runner: Runner) -> None:
    def writes(name: str, unit: str = "s") -> Task:
        out = runner.folder / name
        return Task(name="step", unit=unit, function=runner.work.write, files=(out,), params="x", outputs=(out,))

    runner.run(writes("one.tsv"))
    runner.run(writes("two.tsv"))
    assert not (runner.folder / "one.tsv").exists()
    # another step makes it now
    report = runner.run(writes("two.tsv", "other"), writes("three.tsv"))
    assert set(statuses(report).values()) == {"done"}
    assert (runner.folder / "two.tsv").read_text() == "x"
    assert (runner.folder / "three.tsv").read_text() == "x"


def test_a_step_made_anew_with_the_same_content_does_not_wake_the_next(runner: Runner) -> None:
    runner.run(*chain(runner))
    (runner.folder / "s-1.txt").unlink()
    assert statuses(runner.run(*chain(runner))) == {"s.1": "done", "s.2": "skipped"}


@pytest.mark.parametrize("n_procs", [1, 2])
def test_one_failure_stops_what_depends_on_it_and_nothing_else(runner: Runner, n_procs: int) -> None:
    report = runner.run(
        runner.task("fail", "a", "1"),
        runner.task("write", "a", "2", after=("a.1",)),
        runner.task("write", "a", "3", after=("a.2",)),
        runner.task("write", "b", "1"),
        n_procs=n_procs,
    )
    assert statuses(report) == {"a.1": "failed", "a.2": "not run", "a.3": "not run", "b.1": "done"}
    assert report.outcomes[2].message == "a.1 failed"
    assert report.failed[0].message == "here: cannot tell (try: something else)"
    assert report.failed[0].exit_code == 69
    assert "in fail" in report.failed[0].traceback
    assert report.failed_units == ("a",)
    assert report.exit_code == 1


def test_exit_code_is_the_errors_own_when_nothing_was_left(runner: Runner) -> None:
    assert runner.run(runner.task("fail", "a"), runner.task("fail", "b")).exit_code == 69
    assert runner.run(runner.task("fail", "a"), runner.task("bug", "b")).exit_code == 1
    assert runner.run(runner.task("write", "a")).exit_code == 0


def test_a_bug_is_reported_with_its_traceback(runner: Runner) -> None:
    (failed,) = runner.run(runner.task("bug", "a")).failed
    assert failed.exit_code == 70
    assert failed.message.startswith("ZeroDivisionError")
    assert "1 // 0" in failed.traceback


@pytest.mark.parametrize(("function", "said"), [("die", "SIGKILL; most likely the memory"), ("leave", "exit code 3")])
def test_a_killed_worker_takes_only_its_own_task_along(runner: Runner, function: str, said: str) -> None:
    others = [runner.task("write", f"b{i}", params=i) for i in range(4)]
    report = runner.run(runner.task(function, "a"), *others, n_procs=2)
    assert statuses(report) == {"a.step": "failed", **{f"b{i}.step": "done" for i in range(4)}}
    assert said in report.failed[0].message


def test_a_step_that_writes_nothing_has_failed(runner: Runner) -> None:
    (failed,) = runner.run(runner.task("nothing", "a")).failed
    assert "did not write a-step.txt" in failed.message


def test_a_missing_input_fails_its_task_alone(runner: Runner) -> None:
    report = runner.run(runner.task("write", "a", inputs=(runner.folder / "gone",)), runner.task("write", "b"))
    assert statuses(report) == {"a.step": "failed", "b.step": "done"}
    assert report.failed[0].exit_code == DataError.exit_code


def test_stop_on_first_crash_starts_nothing_more(runner: Runner) -> None:
    report = runner.run(runner.task("fail", "a"), runner.task("write", "b"), stop_on_first_crash=True)
    assert statuses(report) == {"a.step": "failed", "b.step": "not run"}


def spans(runner: Runner, n: int) -> list[tuple[float, float, int, int]]:
    texts = [(runner.folder / f"s{i}-step.txt").read_text().split() for i in range(n)]
    return [(float(a), float(b), int(threads), int(pid)) for a, b, threads, pid in texts]


def overlap(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[1] and two[0] < one[1]


def test_memory_budget_is_kept_and_workers_are_used_again(runner: Runner) -> None:
    tasks = [runner.task("log", f"s{i}", params=0.2, memory_gb=gb) for i, gb in enumerate((3.0, 3.0, 1.0, 99.0))]
    report = runner.run(*tasks, n_procs=2, threads=3, memory=4.0)
    assert report.exit_code == 0
    seen = spans(runner, 4)
    assert not overlap(seen[0], seen[1])
    assert overlap(seen[2], seen[0])
    assert not any(overlap(seen[3], other) for other in seen[:3]), "a task beyond the budget runs, but alone"
    assert {threads for _, _, threads, _ in seen} == {3}
    assert len({pid for *_, pid in seen}) == 2
    assert os.getpid() not in {pid for *_, pid in seen}


def test_events_count_up_and_estimate_the_time_left(runner: Runner) -> None:
    events: list[Event] = []
    runner.run(*[runner.task("log", f"s{i}", params=0.05) for i in range(4)], on_event=events.append)
    assert [event.kind for event in events] == ["start", "done"] * 4
    assert [event.n_done for event in events if event.kind == "done"] == [1, 2, 3, 4]
    assert events[0].left_s is None
    assert events[3].left_s == pytest.approx(0.1, abs=0.08)
    assert events[-1].left_s == 0.0


def test_results_do_not_depend_on_the_number_of_processes(runner: Runner) -> None:
    texts = []
    for n_procs in (1, 2):
        for path in runner.folder.glob("*.txt"):
            path.unlink()
        tasks = [runner.task("write", f"s{i}", params=i) for i in range(5)]
        assert runner.run(*tasks, n_procs=n_procs).exit_code == 0
        texts.append({path.name: path.read_text() for path in runner.folder.glob("*.txt")})
    assert texts[0] == texts[1]


def test_workers_leave_when_their_parent_is_killed(tmp_path: Path, work: Any) -> None:
    flag = tmp_path / "pid"
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(work.__file__).parent)!r})\n"
        "from bids_sodium.engine.executors import LocalExecutor\n"
        "import sodium_test_worker\n"
        "if __name__ == '__main__':\n"
        f"    LocalExecutor().submit(sodium_test_worker.wait_for_ever, ({str(flag)!r},), None).result()\n"
    )
    (tmp_path / "main.py").write_text(script)
    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py")])
    wait_until(lambda: flag.exists() and flag.read_text() != "")
    worker = int(flag.read_text())
    process.kill()
    process.wait()
    wait_until(lambda: not alive(worker))


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_an_interrupt_ends_the_workers(tmp_path: Path, work: Any) -> None:
    flag = tmp_path / "pid"
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(work.__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from bids_sodium.engine.executors import run\n"
        "from bids_sodium.engine.tasks import Stamps, Task\n"
        "import sodium_test_worker as w\n"
        "if __name__ == '__main__':\n"
        f"    task = Task(name='s', unit='u', function=w.wait_for_ever, files=({str(flag)!r},))\n"
        f"    run([task], stamps=Stamps(Path({str(tmp_path / 'stamps')!r})), n_procs=2, threads=1)\n"
    )
    (tmp_path / "main.py").write_text(script)
    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: flag.exists() and flag.read_text() != "")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in error
    wait_until(lambda: not alive(int(flag.read_text())))


def test_a_future_is_a_future_like_any_other() -> None:
    with LocalExecutor() as executor:
        assert sorted(f.result() for f in [executor.submit(pow, 2, n) for n in range(3)]) == [1, 2, 4]


def test_missing_cluster_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--dask-address"):
        cluster("dask", folder=tmp_path)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"bids_sodium\[dask\]"):
        cluster("dask", folder=tmp_path, dask_address="tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"bids_sodium\[slurm\]"):
        cluster("slurm", folder=tmp_path)
    with pytest.raises(ConfigError, match="'partition' is not key=value"):
        cluster("slurm", folder=tmp_path, slurm_options=["partition"])
    with pytest.raises(ConfigError, match="no executor 'pbs'"):
        cluster("pbs", folder=tmp_path)
    assert cluster("local", folder=tmp_path) is None


def test_slurm_jobs_are_arrays_watched_without_sacct(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    log = tmp_path / "calls"
    queue = tmp_path / "queue"
    queue.mkdir()
    # A Slurm of a few lines: sbatch starts every job of the array, except that job 1 is gone without an answer.
    sbatch = f"""#!{sys.executable}
import os, re, shlex, subprocess, sys
text = open(sys.argv[-1]).read()
open({str(log)!r}, "a").write("sbatch " + ("array" if "--array" in text else "single") + "\\n")
command = next(line for line in text.splitlines() if line.startswith("srun"))
words = shlex.split(command)[1:]
while words[0].startswith("-"):
    words = words[2:] if words[0] in ("--output", "--error") else words[1:]
n = int(re.search(r"--array=0-(\\d+)", text).group(1)) + 1 if "--array" in text else 1
for i in range(n):
    env = {{**os.environ, "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(i),
           "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n", "SLURM_PROCID": "0",
           "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SUBMITIT_EXECUTOR": "slurm"}}
    if n > 1 and i == 1:
        continue
    queued = {str(queue)!r} + f"/7_{{i}}"
    open(queued, "w").close()
    line = shlex.join(words) + "; rm " + shlex.quote(queued)
    subprocess.Popen(["sh", "-c", line], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
    for name, text in {
        "sbatch": sbatch,
        "squeue": f"#!/bin/sh\nls {queue}\n",
        "srun": "#!/bin/sh\n",
        "scontrol": "#!/bin/sh\necho n\n",
        "scancel": "#!/bin/sh\n",
        "sacct": f"#!/bin/sh\necho sacct >> {log}\nexit 1\n",
    }.items():
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(runner.work.__file__).parent))
    with SlurmExecutor(tmp_path / "jobs", {"time": 5}, poll_s=0.05) as executor:
        tasks = [runner.task("write", f"s{i}", params=i) for i in range(3)]
        report = runner.run(*tasks, executor=executor, n_procs=3)
    assert statuses(report) == {"s0.step": "done", "s1.step": "failed", "s2.step": "done"}
    assert "ended without a result" in report.failed[0].message
    assert log.read_text().split() == ["sbatch", "array"]


def test_dask_runs_the_same_tasks(runner: Runner) -> None:
    distributed = pytest.importorskip("distributed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        local = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
        try:
            with DaskExecutor(address=local.scheduler_address) as executor:
                report = runner.run(*chain(runner), runner.task("fail", "t"), executor=executor, n_procs=2)
        finally:
            local.close()
    assert statuses(report) == {"s.1": "done", "s.2": "done", "t.step": "failed"}
    assert report.failed[0].exit_code == 69


def test_progress_line_is_for_terminals() -> None:
    from bids_sodium.cli import ProgressLine

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    event = Event(kind="done", task=Task(name="n", unit="u", function=json.dumps), n_done=1, n_tasks=4, left_s=125.0)
    quiet, shown = io.StringIO(), Terminal()
    ProgressLine(quiet)(event)
    ProgressLine(shown)(event)
    assert quiet.getvalue() == ""
    assert "1/4 steps" in shown.getvalue()
    assert "about 2 min 05 s left" in shown.getvalue()
