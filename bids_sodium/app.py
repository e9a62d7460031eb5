"""index → plan → execute → report: where everything meets; owns what is said on the terminal and in the logs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_sodium.bidsio.calibration import calibrated_by
from bids_sodium.bidsio.derivatives import Roots, write_description
from bids_sodium.bidsio.files import read_json, read_table, write_json, write_table, write_text
from bids_sodium.bidsio.layout import Dataset, index
from bids_sodium.core.errors import ConfigError, DataError, InternalError
from bids_sodium.core.tables import GROUP_RESULT, MS_DATA, NORMS, STROKE_DATA, Table
from bids_sodium.engine import executors
from bids_sodium.engine.executors import Event, Report
from bids_sodium.engine.locks import output_lock
from bids_sodium.engine.tasks import Stamps
from bids_sodium.report.groups import GROUP_INDEX, group_page

if TYPE_CHECKING:
    from bids_sodium.config import Config
    from bids_sodium.engine.tasks import Task
    from bids_sodium.group.results import Study

__all__ = ["SUMMARIES", "group", "participant", "run"]

_REASONS = 8
"""Reasons for what was left out that a run prints, those that cost most."""

SUMMARIES = "group_summaries.json"
"""File of the output that a site shares with the others of a consortium."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Terminal:
    """What the command line hands down beside options and settings."""

    container: Mapping[str, str]
    progress: Callable[[Event], None]
    clear: Callable[[], None]


def run(
    options: argparse.Namespace,
    config: Config,
    *,
    container: Mapping[str, str] | None = None,
    progress: Callable[[Event], None] = lambda _: None,
    clear: Callable[[], None] = lambda: None,
) -> int:
    """Do what the command line asks for.

    Parameters
    ----------
    options : argparse.Namespace
        Parsed command line, see `bids_sodium.cli.build_parser`.
    config : Config
        All settings.
    container : mapping, optional
        ``Type``, ``Tag`` and ``URI`` of the container image.
    progress, clear : callable
        Show an event of the engine; take that line away again.

    Returns
    -------
    int
        Exit code.
    """
    terminal = _Terminal(container=container or {}, progress=progress, clear=clear)
    level = group if options.analysis_level == "group" else participant
    return level(options, config, terminal)


# ---- participant level ------------------------------------------------------------------------------------------


def participant(options: argparse.Namespace, config: Config, terminal: _Terminal) -> int:
    """Run the participant level and return its exit code."""
    dataset = _dataset(options)
    output: Path = options.output_dir
    roots = Roots(output=output, raw=dataset.root, derivatives=tuple(dataset.derivatives.items()))
    if options.validate_only:
        return _validate(dataset)
    if options.boilerplate_only:
        _write_logs(output, config, "participant")
        _say(f"methods text written to {output / 'logs'}")
        return 0
    from bids_sodium.plan import plan
    from bids_sodium.steps.parcellate import write_labels

    tasks = plan(dataset.sessions, config, roots, options.work_dir)
    if options.dry_run:
        _print_plan(tasks, dataset)
        return 0
    people = sorted({session.participant_id for session in dataset.sessions})
    with output_lock(output / ".bids_sodium" / "locks", people):
        write_description(roots, container=terminal.container)
        write_labels(output / "dseg.tsv")
        methods = _write_logs(output, config, "participant")
        for note in dataset.notes:
            _say(f"note: {note}")
        report = Report(outcomes=())
        started = time.strftime("%Y%m%dT%H%M%S")
        if not options.reports_only:
            report = _execute(tasks, options, config, terminal)
        failures = _failures(dataset, report)
        _write_crashes(output, started, report, config, people)
        changed = {outcome.task.group for outcome in report.outcomes if outcome.status != "skipped"}
        stale = [
            person
            for person in people
            if options.reports_only
            or person in changed
            or person in failures
            or not (output / f"{person}.html").is_file()
        ]
        _write_pages(output, options.bids_dir, stale, failures, methods, config)
    return _conclude(dataset, report, failures, output)


def _dataset(options: argparse.Namespace) -> Dataset:
    dataset = index(
        options.bids_dir,
        participants=_chosen(options),
        sessions=options.session_label,
        exclude=options.exclude_participant_label or (),
        filters=options.bids_filter_file,
        derivatives=options.derivatives,
        atlases=options.atlas,
        database_dir=options.bids_database_dir,
        validate=not options.skip_bids_validation,
    )
    return calibrated_by(dataset, vials=options.vials, scanners=options.scanners)


def _chosen(options: argparse.Namespace) -> list[str] | None:
    if options.participants is None:
        labels: list[str] | None = options.participant_label
        return labels
    from bids_sodium.bidsio.files import read_table

    table = read_table(options.participants)
    if "participant_id" not in table:
        raise DataError(
            f"no column participant_id, found {', '.join(table.columns)}",
            where=str(options.participants),
            hint="list one participant a row under participant_id",
        )
    return [*(options.participant_label or []), *(str(label) for label in table["participant_id"])]


def _validate(dataset: Dataset) -> int:
    from bids_sodium.bidsio.validator import run_validator

    found = run_validator(dataset.root)
    if found.ran:
        _say(f"BIDS validator: {len(found.errors)} errors, {found.n_warnings} warnings")
        for error in found.errors:
            _say(f"  {error}")
    else:
        _say(
            "bids-validator-deno is not installed, so only the app's own checks were made "
            "(pip install bids_sodium[bids])"
        )
    problems = [session for session in dataset.sessions if session.problem is not None]
    for session in problems:
        _say(f"{session.unit}: {session.problem}")
    _say(f"{len(dataset.usable)} of {len(dataset.sessions)} sessions can be processed")
    return DataError.exit_code if found.errors or problems else 0


def _print_plan(tasks: Sequence[Task], dataset: Dataset) -> None:
    for session in dataset.sessions:
        if session.problem is not None:
            print(f"{session.unit}\tcannot be processed\t{session.problem}")  # noqa: T201 - the plan is the output
    for task in tasks:
        after = ", ".join(task.after) or "-"
        print(f"{task.unit}\t{task.name}\tafter {after}\twrites {len(task.outputs)} files")  # noqa: T201


def _execute(tasks: Sequence[Task], options: argparse.Namespace, config: Config, terminal: _Terminal) -> Report:
    settings = config.run

    def listen(event: Event) -> None:
        if event.outcome is not None and (options.verbose or event.kind == "failed"):
            terminal.clear()
            _say(f"{event.task.id}: {event.kind}, {event.outcome.message or f'{event.outcome.seconds:.1f} s'}")
        terminal.progress(event)

    if options.clean_workdir:
        shutil.rmtree(options.work_dir / "stamps", ignore_errors=True)
    cluster = executors.cluster(
        settings.executor,
        folder=options.work_dir / "slurm",
        dask_address=settings.dask_address,
        dask_scheduler_file=settings.dask_scheduler_file,
        slurm_options=settings.slurm_options,
    )
    with cluster or contextlib.nullcontext() as executor:
        report = executors.run(
            tasks,
            stamps=Stamps(options.work_dir / "stamps"),
            executor=executor,
            n_procs=settings.n_procs or None,
            threads=settings.omp_nthreads or None,
            memory=settings.mem_gb or None,
            stop_on_first_crash=settings.stop_on_first_crash,
            on_event=listen,
        )
    terminal.clear()
    return report


def _failures(dataset: Dataset, report: Report) -> dict[str, list[tuple[str, str, str]]]:
    """Return (unit, step, message) by participant: sessions that cannot be read and tasks that failed."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for session in dataset.sessions:
        if session.problem is not None:
            found.setdefault(session.participant_id, []).append((session.unit, "input", str(session.problem)))
    for outcome in report.outcomes:
        if outcome.status in {"failed", "not run"}:
            entry = (outcome.task.unit, outcome.task.name, outcome.message)
            found.setdefault(outcome.task.group, []).append(entry)
    return found


def _write_crashes(output: Path, run_name: str, report: Report, config: Config, people: Sequence[str]) -> None:
    active = {outcome.task.group for outcome in report.outcomes if outcome.status != "skipped"}
    for person in people:
        if person in active:
            write_text(output / person / "log" / run_name / "config.toml", config.to_toml())
            lines = [
                f"{o.task.id}\t{o.status}\t{o.seconds:.2f}\t{o.message}"
                for o in report.outcomes
                if o.task.group == person
            ]
            write_text(
                output / person / "log" / run_name / "steps.log",
                "\n".join(["task\tstatus\tseconds\tmessage", *lines]) + "\n",
            )
    for outcome in report.failed:
        text = f"{outcome.task.id}\nexit code {outcome.exit_code}\n{outcome.message}\n\n{outcome.traceback}"
        write_text(output / outcome.task.group / "log" / run_name / f"crash-{outcome.task.id}.txt", text)


def _write_pages(
    output: Path,
    raw: Path,
    people: Sequence[str],
    failures: Mapping[str, Sequence[tuple[str, str, str]]],
    methods: str,
    config: Config,
) -> None:
    from bids_sodium.report.participants import Failure, participant_page

    settings = config.to_toml()
    for person in people:
        listed = [Failure(*entry) for entry in failures.get(person, [])]
        participant_page(output, person, raw=raw, failures=listed, methods=methods, settings=settings)


def _conclude(
    dataset: Dataset, report: Report, failures: Mapping[str, Sequence[tuple[str, str, str]]], output: Path
) -> int:
    for entries in failures.values():
        for unit, step, message in entries:
            if step == "input":
                _say(f"{unit}: {message}")
    done = sum(outcome.status == "done" for outcome in report.outcomes)
    skipped = sum(outcome.status == "skipped" for outcome in report.outcomes)
    people = {session.participant_id for session in dataset.sessions}
    _say(
        f"{len(people) - len(failures)} of {len(people)} participants complete; {done} steps done, {skipped} unchanged"
    )
    _say(f"reports: {output}/sub-*.html")
    problems = [session.problem for session in dataset.sessions if session.problem is not None]
    if not problems:
        return report.exit_code
    if not dataset.usable:
        return problems[0].exit_code
    return 1


# ---- group level ------------------------------------------------------------------------------------------------


def group(options: argparse.Namespace, config: Config, terminal: _Terminal) -> int:
    """Run the group level and return its exit code."""
    from bids_sodium.bidsio.gather import group_table, write_group_table

    output: Path = options.output_dir
    study = config.run.study
    if not study:
        raise ConfigError("the group level needs to know the study", hint="give --study stroke or --study ms")
    if options.boilerplate_only:
        _write_logs(output, config, "group")
        return 0
    if options.from_summaries is not None:
        return _from_summaries(options, config, terminal)
    table, dictionary, not_joined = group_table(output, options.bids_dir)
    if options.dry_run or options.validate_only:
        people = table["participant_id"].nunique()
        print(f"group\t{study}\t{people} participants\t{len(table)} rows")  # noqa: T201
        return 0
    with output_lock(output / ".bids_sodium" / "locks", ["*"]):
        write_description(Roots(output=output, raw=options.bids_dir), container=terminal.container)
        methods = _write_logs(output, config, "group")
        if options.export_summaries:
            return _export_summaries(options, table, config)
        code = 0
        if not options.reports_only:
            write_group_table(output, table, dictionary)
            found = _analyse(study, table, config, options)
            _write_study(output, found, settings=dataclasses.asdict(getattr(config, study)), not_joined=not_joined)
            for name, reason in not_joined:
                _say(f"{name} was left out: {reason}")
            code = _say_left_out(found)
        page = group_page(output, methods=methods, settings=config.to_toml())
    _say(f"report: {page}")
    return code


def _norms(options: argparse.Namespace, config: Config) -> Any:
    """Return the user's norms of clinical scores, if there are any."""
    if options.norms is None:
        return None
    _only_ms(config, "--norms turns scores", "leave it out")
    norms = read_table(options.norms)
    NORMS.require(norms.columns, where=str(options.norms), columns=("score", "mean", "sd"))
    return norms


def _scanners(options: argparse.Namespace, config: Config) -> Any:
    """Return the table of a travelling phantom, if there is one."""
    if options.scanners is None:
        return None
    _only_ms(config, "--scanners at the group level makes concentrations", "changes in percent need no factor")
    return read_table(options.scanners)


def _export_summaries(options: argparse.Namespace, table: Any, config: Config) -> int:
    """Write what this site may share; no row leaves it."""
    from bids_sodium.group import ms

    _only_ms(config)
    found = ms.summarise(
        table,
        config.ms,
        default_site=options.site or options.bids_dir.absolute().name,
        norms=_norms(options, config),
        scanners=_scanners(options, config),
    )
    place = options.output_dir / SUMMARIES
    write_json(place, {"SummaryVersion": 1, "Study": "ms", "Summaries": [one.as_dict() for one in found]})
    withheld = sum(one.moments is None for one in found)
    _say(f"{len(found) - withheld} summaries written, {withheld} withheld or empty: {place}")
    return 0


def _only_ms(config: Config, what: str = "summaries are", hint: str = "share group_tsc.tsv of a stroke study") -> None:
    if config.run.study != "ms":
        raise ConfigError(f"{what} of the MS study, --study is {config.run.study}", hint=hint)


def _from_summaries(options: argparse.Namespace, config: Config, terminal: _Terminal) -> int:
    """Analyse what the sites have shared."""
    from bids_sodium.group import ms

    _only_ms(config)
    given = {
        "--norms": options.norms,
        "--scanners": options.scanners,
        "ms.site_factors": config.ms.site_factors or None,
    }
    late = [name for name, value in given.items() if value is not None]
    if late:
        raise ConfigError(
            f"{', '.join(late)} with --from-summaries: sums cannot be changed any more",
            hint="give it at the sites, with --export-summaries",
        )
    folder: Path = options.from_summaries
    places = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    shared: list[ms.Summary] = []
    for place in places:
        content = read_json(place)
        if "SummaryVersion" not in content:
            continue
        if content["SummaryVersion"] != 1:
            raise DataError(
                f"has version {content['SummaryVersion']} of the summaries, 1 is known",
                where=str(place),
                hint="use one version of bids_sodium at all sites",
            )
        try:
            shared += [ms.Summary.from_dict(entry) for entry in content.get("Summaries", ())]
        except DataError as error:
            raise DataError(error.what, where=str(place), hint=error.hint) from error
    if not shared:
        raise DataError(
            f"no summaries in {len(places)} JSON files",
            where=str(folder),
            hint="collect the group_summaries.json that the sites made with --export-summaries",
        )
    sites = {one.site for one in shared}
    if options.dry_run or options.validate_only:
        print(f"group\tms\t{len(sites)} sites\t{len(shared)} summaries")  # noqa: T201
        return 0
    output: Path = options.output_dir
    with output_lock(output / ".bids_sodium" / "locks", ["*"]):
        write_description(Roots(output=output, raw=options.bids_dir), container=terminal.container)
        methods = _write_logs(output, config, "group")
        code = 0
        if not options.reports_only:
            found = ms.analyse_summaries(shared, config.ms)
            _write_study(output, found, settings=dataclasses.asdict(config.ms))
            code = _say_left_out(found)
        page = group_page(output, methods=methods, settings=config.to_toml())
    _say(f"{len(sites)} sites; report: {page}")
    return code


def _say_left_out(study: Study) -> int:
    """Say what was left out; return the exit code, that of a bug where a table contradicted itself."""
    from bids_sodium.group.results import READING, by_reason, plural

    entries = [(str(a), str(p), str(r)) for a, p, r in study.left_out.itertuples(index=False)]
    for name, part, reason in entries:
        if not part:
            _say(f"left out: {name}: {_shortened(reason)}")
        elif name == READING:
            _say(f"note: {_shortened(reason)}")
    found = by_reason(entry for entry in entries if entry[1] and entry[0] != READING)
    for reason, where in found[:_REASONS]:
        count = sum(len(parts) for parts in where.values())
        _say(f"left out: {plural(count, 'part')} of {', '.join(where)}: {_shortened(reason)}")
    if len(found) > _REASONS:
        _say(f"left out: parts for {plural(len(found) - _REASONS, 'further reason')}")
    if entries:
        _say(f"the report and {GROUP_INDEX} list them all")
    return InternalError.exit_code if study.contradictions else 0


def _shortened(reason: str, limit: int = 240) -> str:
    return reason if len(reason) <= limit else f"{reason[:limit].rsplit(' ', 1)[0]} ..."


def _analyse(study: str, table: Any, config: Config, options: argparse.Namespace) -> Any:
    import numpy as np

    from bids_sodium.bidsio.gather import beside_group_table

    rng = np.random.default_rng(config.run.random_seed)
    norms, scanners = _norms(options, config), _scanners(options, config)
    if study == "stroke":
        from bids_sodium.group import stroke

        return stroke.analyse(table, config.stroke, rng, **beside_group_table(options.output_dir, options.bids_dir))
    from bids_sodium.group import ms

    return ms.analyse(table, config.ms, rng, norms=norms, scanners=scanners)


def _write_study(
    output: Path, study: Study, *, settings: Mapping[str, Any], not_joined: Iterable[tuple[str, str]] = ()
) -> None:
    """Write every analysis with its data, and the index that the report reads, in the place of an earlier run's."""
    from bids_sodium.group.ms import label
    from bids_sodium.group.results import READING

    if (output / GROUP_INDEX).is_file():
        for earlier in read_json(output / GROUP_INDEX)["Analyses"]:
            for name in (earlier["Name"], *(f"{earlier['Name']}_{key}" for key in earlier["Data"])):
                for ending in ("tsv", "json"):
                    (output / f"group_{name}.{ending}").unlink(missing_ok=True)
    listed = []
    known = (STROKE_DATA if study.study == "stroke" else MS_DATA).sidecar()
    for analysis in study.analyses:
        entry: dict[str, Any] = {
            "Name": analysis.name,
            "Title": analysis.title,
            "Text": analysis.text,
            "LeftOut": analysis.left_out,
            "Data": [],
        }
        if not analysis.left_out:
            place = output / f"group_{analysis.name}.tsv"
            sidecar = {"Description": f"{analysis.title}. {analysis.text}", "Settings": dict(settings)}
            write_table(place, analysis.results, GROUP_RESULT, sidecar=sidecar)
        for key, frame in analysis.data.items():
            place = output / f"group_{analysis.name}_{key}.tsv"
            table = Table(f"{analysis.name}_{key}", f"{analysis.title}: {key.replace('_', ' ')}", ())
            write_table(
                place, frame, table, extra={c: known.get(c, {"Description": label(str(c))}) for c in frame.columns}
            )
            entry["Data"].append(key)
        listed.append(entry)
    left = [{"Analysis": READING, "Part": name, "Reason": reason} for name, reason in not_joined]
    left += [
        {"Analysis": str(a), "Part": str(p), "Reason": str(r)} for a, p, r in study.left_out.itertuples(index=False)
    ]
    write_json(output / GROUP_INDEX, {"Study": study.study, "Analyses": listed, "LeftOut": left})


# ---- both -------------------------------------------------------------------------------------------------------


def _write_logs(output: Path, config: Config, level: str) -> str:
    from bids_sodium.bidsio.citations import boilerplate, write_boilerplate

    text = boilerplate(config.as_dict(), level=level)
    write_boilerplate(output / "logs", text)
    return text.markdown


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
