"""``bids-sodium-demo OUT``: the whole job on simulated data, from raw k-space to group reports.

Writes one participant of each study (raw k-space, proton images, delineated lesions), runs both levels of the app on
them through its command line, then the group level on a cohort that exists as tables only; the two studies run side by
side. The algorithms and the sizes are those of real use; only the number of participants is small.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bids_sodium import __version__

__all__ = ["main"]

_STUDIES = ("stroke", "ms")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bids-sodium-demo",
        description="Simulate a small dataset of each study and run both levels of bids-sodium on it.",
    )
    parser.add_argument("output", type=Path, help="folder that everything is written into")
    parser.add_argument(
        "--participants", type=int, default=1, metavar="N", help="participants of each study (default 1)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the simulation (default 1)")
    parser.add_argument("--n-procs", type=int, default=0, metavar="N", help="tasks at a time (default all cores)")
    parser.add_argument("--sloppy", action="store_true", help="small images, for a quick look")
    parser.add_argument("--version", action="version", version=f"bids_sodium {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Words after the program's name.

    Returns
    -------
    int
        0, or the exit code of the first command that failed.
    """
    options = _parser().parse_args(argv)
    started = time.monotonic()
    out: Path = options.output
    if options.participants < 1:
        print("bids-sodium-demo: --participants must be at least 1", file=sys.stderr)
        return 2

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", flush=True)

    from bids_sodium.engine.resources import cpu_count

    workers = min(options.n_procs or cpu_count(), len(_STUDIES) * options.participants)
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor,
        ThreadPoolExecutor(len(_STUDIES)) as threads,
    ):
        jobs = [threads.submit(_study, study, options, executor, say) for study in _STUDIES]
        jobs += [threads.submit(_cohort, study, options, say) for study in _STUDIES]
        codes = [job.result() for job in jobs]
    if any(codes):
        return next(code for code in codes if code)
    reports = [
        report for study in _STUDIES
        for derived in [out / study / "derivatives"]
        for report in (*sorted(derived.glob("sub-*.html")), derived / "group.html")
    ]  # fmt: skip
    reports += [out / f"cohort-{study}" / "derivatives" / "group.html" for study in _STUDIES]
    say("done; the reports are")
    for report in reports:
        print(f"  {report}")
    return 0


def _study(study: str, options: argparse.Namespace, executor: Executor, say: Callable[[str], None]) -> int:
    """Do the whole of one study and return the exit code of the first command that failed."""
    from bids_sodium.simulate.dataset import write

    folder: Path = options.output / study
    data, derived = folder / "bids", folder / "derivatives"
    if not (data / "dataset_description.json").is_file():
        say(f"{study}: simulating {options.participants} participant(s), raw k-space and proton images")
        write(
            data,
            study=study,
            n_participants=options.participants,
            seed=options.seed,
            sloppy=options.sloppy,
            executor=executor,
        )
    common = ["--preset", study, "-d", f"rois={data / 'derivatives' / 'rois'}"]
    procs = ["--n-procs", str(options.n_procs)] if options.n_procs else []
    say(f"{study}: participant level")
    code = _command([str(data), str(derived), "participant", *common, *procs], study)
    if code:
        return code
    say(f"{study}: group level")
    return _command([str(data), str(derived), "group", "--preset", study, "--study", study], study)


def _cohort(study: str, options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Run the group level on a cohort of tables and return its exit code."""
    import numpy as np

    from bids_sodium.bidsio.files import write_json
    from bids_sodium.bidsio.gather import write_group_table
    from bids_sodium.simulate.cohort import ms_cohort, stroke_cohort

    folder: Path = options.output / f"cohort-{study}"
    data, derived = folder / "tables", folder / "derivatives"
    data.mkdir(parents=True, exist_ok=True)
    draw = stroke_cohort if study == "stroke" else ms_cohort
    cohort = draw(np.random.default_rng(options.seed))
    write_json(
        data / "dataset_description.json",
        {"Name": f"Simulated {study} cohort, tables only", "BIDSVersion": "1.10.0", "DatasetType": "derivative"},
    )
    write_group_table(data, cohort.table, {})
    people = cohort.table["participant_id"].nunique()
    say(f"cohort of {people} {study} participants: group level from group_tsc.tsv alone")
    return _command([str(data), str(derived), "group", "--study", study], f"cohort of {people}")


def _command(words: Sequence[str], name: str) -> int:
    """Run the app as its users do, each line that it says behind a name, and return its exit code."""
    with subprocess.Popen(  # noqa: S603 - this very program
        [sys.executable, "-m", "bids_sodium", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as app:
        assert app.stdout is not None  # noqa: S101
        for line in app.stdout:
            print(f"{name}: {line}", end="", flush=True)
    return app.returncode


if __name__ == "__main__":
    sys.exit(main())
