"""``bids-sodium-demo OUT``: the whole job on simulated data, from raw k-space to group reports.

Writes one participant of each study (raw k-space, proton images, delineated lesions), runs both levels of the app on
them through its command line, then the group level on two cohorts that exist as tables only. The algorithms and the
sizes are those of real use; only the number of participants is small.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
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

    reports: list[Path] = []
    for study in _STUDIES:
        code = _images(study, options, say, reports)
        if code:
            return code
    for study in _STUDIES:
        code = _tables(study, options.seed, out, say, reports)
        if code:
            return code
    say("done; the reports are")
    for report in reports:
        print(f"  {report}")
    return 0


def _images(study: str, options: argparse.Namespace, say: object, reports: list[Path]) -> int:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from bids_sodium.cli import main as bids_sodium
    from bids_sodium.engine.resources import cpu_count
    from bids_sodium.simulate.dataset import write

    assert callable(say)  # noqa: S101
    folder: Path = options.output / study
    data, derived = folder / "bids", folder / "derivatives"
    if not (data / "dataset_description.json").is_file():
        say(f"{study}: simulating {options.participants} participant(s), raw k-space and proton images")
        workers = min(options.n_procs or cpu_count(), options.participants)
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
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
    code = bids_sodium([str(data), str(derived), "participant", *common, *procs])
    if code:
        return code
    say(f"{study}: group level")
    code = bids_sodium([str(data), str(derived), "group", "--preset", study, "--study", study])
    reports += [*sorted(derived.glob("sub-*.html")), derived / "group.html"]
    return code


def _tables(study: str, seed: int, out: Path, say: object, reports: list[Path]) -> int:
    import numpy as np

    from bids_sodium.bidsio.files import write_json
    from bids_sodium.bidsio.gather import write_group_table
    from bids_sodium.cli import main as bids_sodium
    from bids_sodium.simulate.cohort import ms_cohort, stroke_cohort

    assert callable(say)  # noqa: S101
    folder = out / f"cohort-{study}"
    data, derived = folder / "tables", folder / "derivatives"
    data.mkdir(parents=True, exist_ok=True)
    draw = stroke_cohort if study == "stroke" else ms_cohort
    cohort = draw(np.random.default_rng(seed))
    write_json(
        data / "dataset_description.json",
        {"Name": f"Simulated {study} cohort, tables only", "BIDSVersion": "1.10.0", "DatasetType": "derivative"},
    )
    write_group_table(data, cohort.table, {})
    people = cohort.table["participant_id"].nunique()
    say(f"cohort of {people} {study} participants: group level from group_tsc.tsv alone")
    code = bids_sodium([str(data), str(derived), "group", "--study", study])
    reports.append(derived / "group.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
