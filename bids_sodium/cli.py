"""The command line: arguments → checked options → exit code.

`build_parser` is the one source of the usage page and of the Boutiques descriptor. Nothing heavy is imported before
the arguments are understood, so that ``--help`` and ``--version`` are instant. The environment is read here and
nowhere else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from bids_sodium import __version__
from bids_sodium.core.errors import DataError, SodiumError, UsageError

if TYPE_CHECKING:
    from bids_sodium.config import Config

__all__ = ["ProgressLine", "build_parser", "configure", "container", "main", "overrides", "parse"]

LEVELS = ("participant", "group")
_STATE = ".bids_sodium"
PVC_METHODS = (
    "raw", "csf", "gtm", "glm", "local", "kspace", "kspace-density", "mg", "rbv", "iy", "labbe", "stc", "estc", "mlts",
    "paper",
)  # fmt: skip
"""The methods of `bids_sodium.tissue.partialvolume`, said here too, so that ``--help`` imports nothing."""

SETTINGS: Mapping[str, str] = {
    "study": "run.study",
    "output_spaces": "run.output_spaces",
    "reference_session": "run.reference_session",
    "transform_formats": "run.transform_formats",
    "random_seed": "run.random_seed",
    "sloppy": "run.sloppy",
    "stop_on_first_crash": "run.stop_on_first_crash",
    "executor": "run.executor",
    "n_procs": "run.n_procs",
    "omp_nthreads": "run.omp_nthreads",
    "mem_gb": "run.mem_gb",
    "dask_address": "run.dask_address",
    "dask_scheduler_file": "run.dask_scheduler_file",
    "slurm_option": "run.slurm_options",
    "recon_mode": "reconstruction.mode",
    "recon_method": "reconstruction.method",
    "recon_iterations": "reconstruction.iterations",
    "recon_filter": "reconstruction.filter",
    "recon_filter_width": "reconstruction.filter_width",
    "recon_delay_ms": "reconstruction.delay_ms",
    "recon_coils": "reconstruction.coils",
    "tv_weight": "reconstruction.tv_weight",
    "field_map": "reconstruction.field_map",
    "denoising": "denoising.method",
    "vial_mmol_l": "calibration.vial_mmol_l",
    "calibration": "calibration.source",
    "calibration_line": "calibration.line",
    "transmit_correction": "calibration.transmit",
    "receive_correction": "calibration.receive",
    "registration_path": "registration.path",
    "halfway": "registration.halfway",
    "mirror": "mirror.method",
    "pvc_methods": "partialvolume.methods",
    "csf_mmol_l": "partialvolume.csf_mmol_l",
    "brain_mask": "segmentation.brain_mask",
    "lesion_filling": "filling.method",
    "roi_minimum_ml": "regions.minimum_ml",
    "roi_consensus": "regions.consensus",
}
"""The setting that each named option stands for."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the program, so that there is one way out of `main`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


class _ListPresets(argparse.Action):
    """Prints the presets and leaves, as ``--version`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from bids_sodium.config import presets

        for name, description in presets().items():
            print(f"{name:<8} {description}")
        parser.exit()


def _label(prefix: str) -> Any:
    def strip(text: str) -> str:
        label = text.removeprefix(prefix)
        if not re.fullmatch(r"[A-Za-z0-9+]+", label):
            raise argparse.ArgumentTypeError(f"{text!r} is not a label of letters and digits")
        return label

    return strip


def _derivative(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        name, path = Path(text).name, text
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Returns
    -------
    argparse.ArgumentParser
        With one group of options for each heading of the usage page; options that are not given are absent from the
        namespace where they stand for a setting, so that the layers below them hold.
    """
    parser = _Parser(
        prog="bids-sodium",
        description="Sodium (23Na) MRI from raw k-space to total sodium concentration, tissue and group tables.",
        epilog="exit codes: 0 done, 1 some sessions failed, 2 usage, 65 data, 69 not determined by the data, 70 bug, "
        "75 output locked, 78 configuration, 130 interrupted, 143 terminated",
        allow_abbrev=False,
    )
    unset = argparse.SUPPRESS
    parser.add_argument("bids_dir", type=Path, help="BIDS dataset; it is only read")
    parser.add_argument("output_dir", type=Path, help="folder of the results, a BIDS derivative dataset")
    parser.add_argument("analysis_level", choices=LEVELS, help="level of the analysis")
    parser.add_argument("--version", action="version", version=f"bids_sodium {__version__}")

    select = parser.add_argument_group("which data")
    select.add_argument(
        "--participant-label", "--participant_label", nargs="+", type=_label("sub-"), metavar="LABEL",
        help="participants to process, with or without sub-; all by default",
    )  # fmt: skip
    select.add_argument(
        "--exclude-participant-label", "--exclude_participant_label", nargs="+", type=_label("sub-"), metavar="LABEL",
        default=[], help="participants to leave out",
    )  # fmt: skip
    select.add_argument(
        "--session-label", "--session_label", nargs="+", type=_label("ses-"), metavar="LABEL",
        help="sessions to process, with or without ses-; all by default",
    )  # fmt: skip
    select.add_argument(
        "--participants", type=Path, metavar="TSV", help="table whose participant_id column names the participants"
    )
    select.add_argument(
        "--bids-filter-file", "--bids_filter_file", type=Path, metavar="JSON",
        help="pybids queries that choose files, by sodium, kspace, fieldmap, t1w, flair, t2w, pdt2_body, pdt2_head, "
        "dwi, adc",
    )  # fmt: skip
    select.add_argument(
        "-d", "--derivatives", nargs="+", type=_derivative, metavar="NAME=PATH", default=[], action="extend",
        help="derivative datasets that masks, transforms and tissue segmentations (fMRIPrep, FreeSurfer, FSL FAST and "
        "others) are read from",
    )  # fmt: skip
    select.add_argument(
        "--atlas", nargs="+", type=_derivative, metavar="NAME=PATH", default=[], action="extend",
        help="label images in the template's space whose regions get rows in the region table",
    )  # fmt: skip
    select.add_argument(
        "--bids-database-dir", "--bids_database_dir", type=Path, metavar="DIR",
        help="folder where pybids keeps its index between runs",
    )  # fmt: skip
    select.add_argument(
        "--skip-bids-validation", "--skip_bids_validation", action="store_true", help="do not check the dataset first"
    )

    method = parser.add_argument_group("how")
    method.add_argument("--preset", metavar="NAME", help="settings of a study: stroke or ms")
    method.add_argument("--list-presets", action=_ListPresets, nargs=0, help="list the presets and leave")
    method.add_argument("--config-file", type=Path, metavar="TOML", help="settings, by section and key")
    method.add_argument(
        "--set", nargs="+", dest="settings", metavar="SECTION.KEY=VALUE", default=[], action="extend",
        help="any setting of the configuration; overrides all else",
    )  # fmt: skip
    method.add_argument("--study", choices=("stroke", "ms"), default=unset, help="analyses of the group level")
    method.add_argument(
        "--export-summaries", action="store_true",
        help="group level of the MS study: write the cross-products that a site may share, no rows, and leave",
    )  # fmt: skip
    method.add_argument(
        "--from-summaries", type=Path, metavar="DIR",
        help="group level of the MS study: fit the models of all sites from the summaries in this folder",
    )  # fmt: skip
    method.add_argument(
        "--norms", type=Path, metavar="TSV",
        help="group level of the MS study: norms that turn raw clinical scores into z scores",
    )  # fmt: skip
    method.add_argument("--site", metavar="NAME", help="name of this site in its summaries; the dataset's by default")
    method.add_argument(
        "--output-spaces", nargs="+", choices=("T1w", "MNI152NLin2009aSym"), default=unset, metavar="SPACE",
        help="spaces of the concentration maps beside their own: T1w, MNI152NLin2009aSym",
    )  # fmt: skip
    method.add_argument(
        "--reference-session", default=unset, metavar="LABEL",
        help="session whose T1w image is the anatomy of all; by default the latest after onset, else the first",
    )  # fmt: skip
    method.add_argument(
        "--transform-formats", nargs="+", choices=("fsl", "lta"), default=unset, metavar="FORMAT",
        help="formats that linear transforms are written in beside ITK's: fsl (FLIRT), lta (FreeSurfer)",
    )  # fmt: skip
    method.add_argument(
        "--recon-mode", choices=("recommended", "paper"), default=unset,
        help="reconstruction: as recommended, or the plain adjoint of the papers",
    )  # fmt: skip
    method.add_argument(
        "--recon-method", choices=("adjoint", "cg", "tv", "dtv"), default=unset,
        help="weighted adjoint, conjugate gradients, total variation, or total variation whose edges the proton image "
        "tells",
    )  # fmt: skip
    method.add_argument(
        "--recon-iterations", type=int, default=unset, metavar="N", help="conjugate-gradient iterations"
    )
    method.add_argument(
        "--recon-filter", choices=("none", "gaussian", "hamming", "hann", "fermi"), default=unset, help="k-space filter"
    )
    method.add_argument(
        "--recon-filter-width", type=float, default=unset, metavar="SHARE", help="width of the filter, share of k_max"
    )
    method.add_argument(
        "--recon-delay-ms", type=float, default=unset, metavar="MS", help="lag of the gradients behind the sampling"
    )
    method.add_argument(
        "--recon-coils", choices=("adaptive", "sense", "sos"), default=unset,
        help="how receive channels become one image: adaptive combination, SENSE, or root sum of squares",
    )  # fmt: skip
    method.add_argument(
        "--tv-weight", type=float, default=unset, metavar="SIGMA",
        help="weight of the total variation of tv and dtv, in standard deviations of the noise",
    )  # fmt: skip
    method.add_argument(
        "--field-map", choices=("auto", "off"), default=unset, help="correct off-resonance with the session's field map"
    )
    method.add_argument(
        "--denoising", choices=("recommended", "paper", "nlm", "tv", "mppca", "off"), default=unset,
        help="recommended, as in the papers, non-local means, total variation, principal components of a series, none",
    )  # fmt: skip
    method.add_argument(
        "--vial-mmol-l", nargs="+", type=float, default=unset, metavar="MMOL_L",
        help="sodium of the calibration vials from dim to bright, where the sidecar does not state it",
    )  # fmt: skip
    method.add_argument(
        "--vials", type=Path, metavar="TSV",
        help="table of the vials: concentration (mmol/L), label, inner_diameter (mm), t1, t2star (s); it goes "
        "before the sidecars",
    )  # fmt: skip
    method.add_argument(
        "--scanners", type=Path, metavar="TSV",
        help="table of a travelling phantom: scanner, and measured_mmol_l and true_mmol_l, or factor",
    )  # fmt: skip
    method.add_argument(
        "--calibration", choices=("vials", "csf", "vitreous"), default=unset,
        help="what sets the scale: vials, or as an internal reference the fluid of the ventricles or of the eyes",
    )  # fmt: skip
    method.add_argument(
        "--calibration-line",
        choices=("zero", "intercept"),
        default=unset,
        help="line through zero or with an intercept",
    )
    method.add_argument(
        "--transmit-correction", choices=("auto", "off"), default=unset,
        help="correct for the flip angle that was reached, where the session has a transmit map",
    )  # fmt: skip
    method.add_argument(
        "--receive-correction", choices=("auto", "bias", "off"), default=unset,
        help="divide by the session's receive map, or by a smooth sensitivity that the image itself shows",
    )  # fmt: skip
    method.add_argument(
        "--registration-path", choices=("best", "chain", "direct"), default=unset,
        help="way of the sodium image to the T1w image: whichever is known better, through the images between, direct",
    )  # fmt: skip
    method.add_argument(
        "--halfway", action="store_true", default=unset,
        help="register the T1w images of sessions half-way, so that neither is preferred",
    )  # fmt: skip
    method.add_argument(
        "--mirror", choices=("template", "plane", "best"), default=unset,
        help="map to the other side of the head: through the template, about the mid-sagittal plane, the better one",
    )  # fmt: skip
    method.add_argument(
        "--pvc-methods", nargs="+", choices=PVC_METHODS, default=unset, metavar="METHOD",
        help=f"partial-volume corrections to report: {', '.join(PVC_METHODS)}",
    )  # fmt: skip
    method.add_argument(
        "--csf-mmol-l", type=float, default=unset, metavar="MMOL_L", help="sodium of CSF that the CSF partition removes"
    )
    method.add_argument(
        "--brain-mask", choices=("auto", "template", "deepbet"), default=unset,
        help="what finds the brain in a whole head: the deepbet network where it is installed, or the template",
    )  # fmt: skip
    method.add_argument(
        "--lesion-filling", choices=("convolution", "patch"), default=unset,
        help="how lesions of the T1w image are filled: local mean of the white matter and its noise, or patches of it",
    )  # fmt: skip
    method.add_argument(
        "--roi-minimum-ml", type=float, default=unset, metavar="ML", help="smallest region that enters an analysis"
    )
    method.add_argument(
        "--roi-consensus", choices=("average", "majority", "intersection", "union", "staple"), default=unset,
        help="how the masks of several raters become one",
    )  # fmt: skip

    resources = parser.add_argument_group("resources")
    resources.add_argument(
        "-w", "--work-dir", type=Path, metavar="DIR", help="state between runs; OUTPUT_DIR/.bids_sodium by default"
    )
    resources.add_argument("--clean-workdir", action="store_true", help="forget earlier runs: every step runs again")
    resources.add_argument("--n-procs", "--nprocs", type=int, default=unset, metavar="N", help="tasks at a time")
    resources.add_argument("--omp-nthreads", type=int, default=unset, metavar="N", help="threads of one task")
    resources.add_argument("--mem-gb", type=float, default=unset, metavar="GIB", help="memory for all tasks together")
    resources.add_argument("--executor", choices=("local", "dask", "slurm"), default=unset, help="where tasks run")
    resources.add_argument("--dask-address", default=unset, metavar="URL", help="address of the Dask scheduler")
    resources.add_argument(
        "--dask-scheduler-file", default=unset, metavar="FILE", help="file that the Dask scheduler has written"
    )
    resources.add_argument(
        "--slurm-option", nargs="+", default=unset, metavar="KEY=VALUE", action="extend",
        help="options of Slurm jobs as submitit names them: partition=short time=60",
    )  # fmt: skip

    control = parser.add_argument_group("control")
    control.add_argument("--dry-run", action="store_true", help="print what would be done and leave")
    control.add_argument("--validate-only", action="store_true", help="check dataset and settings and leave")
    control.add_argument("--reports-only", action="store_true", help="write the reports of finished steps again")
    control.add_argument("--boilerplate-only", action="store_true", help="write the methods text and leave")
    control.add_argument(
        "--stop-on-first-crash", action="store_true", default=unset, help="start nothing after a failure"
    )
    control.add_argument("--random-seed", type=int, default=unset, metavar="N", help="seed of every random number")
    control.add_argument(
        "--sloppy", action="store_true", default=unset, help="cheaper and less accurate, for tests only"
    )
    control.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice for every step")
    return parser


def _recovered(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse, giving back to the positionals what an option with several values has swallowed of them.

    Argparse alone takes ``--participant-label 01 02 bids out participant`` as five participants. The level is the last
    of the three positionals, so the words up to it are taken off the option, as few as make the line whole.
    """
    try:
        return parser.parse_args(words)
    except UsageError as error:
        several = {
            name
            for action in parser._actions  # noqa: SLF001 - argparse has no public list of its options
            if action.nargs == "+"
            for name in action.option_strings
        }
        tried: list[UsageError] = []
        for end in (place for place in range(len(words) - 1, 0, -1) if words[place] in LEVELS):
            option = next((place for place in range(end, -1, -1) if words[place] in several), None)
            for n in (1, 2, 3):
                start = end - n + 1
                if option is None or start < option + 2:
                    continue
                line = [*words[:start], *words[end + 1 :], "--", *words[start : end + 1]]
                try:
                    return parser.parse_args(line)
                except UsageError as other:
                    tried.append(other)
        raise next((other for other in tried if "required" not in other.what), error) from None


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Words after the program's name.

    Returns
    -------
    argparse.Namespace
        One attribute an option; ``derivatives`` is a mapping, ``work_dir`` is set.

    Raises
    ------
    UsageError
        If it cannot be understood.

    Examples
    --------
    >>> options = parse(["--participant-label", "01", "sub-02", "data", "out", "participant"])
    >>> options.participant_label, str(options.bids_dir), options.analysis_level
    (['01', '02'], 'data', 'participant')
    """
    parser = build_parser()
    options = _recovered(parser, sys.argv[1:] if argv is None else argv)
    names = [name for name, _ in options.derivatives]
    if len(set(names)) < len(names):
        parser.error(f"two derivatives have the same name: {', '.join(names)}")
    options.derivatives = dict(options.derivatives)
    options.work_dir = options.work_dir or options.output_dir / _STATE
    return options


def overrides(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings that named options set, by section.

    Examples
    --------
    >>> overrides(parse(["data", "out", "participant", "--recon-iterations", "7"]))
    {'reconstruction': {'iterations': 7}}
    """
    found: dict[str, dict[str, Any]] = {}
    for name, setting in SETTINGS.items():
        if hasattr(options, name):
            section, key = setting.split(".")
            found.setdefault(section, {})[key] = getattr(options, name)
    return found


def configure(options: argparse.Namespace) -> Config:
    """Return the settings of a command line, all layers together.

    Raises
    ------
    ConfigError
        If a setting is unknown or has a wrong value.
    """
    from bids_sodium.config import load

    return load(
        preset_name=options.preset, file=options.config_file, overrides=overrides(options), settings=options.settings
    )


def container() -> dict[str, str]:
    """Return type, tag and URI of the container image, from the variables that its build sets; empty outside one."""
    names = {
        "Type": "BIDS_SODIUM_CONTAINER_TYPE",
        "Tag": "BIDS_SODIUM_CONTAINER_TAG",
        "URI": "BIDS_SODIUM_CONTAINER_URI",
    }
    return {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}


class ProgressLine:
    """One line on a terminal: how much is done and how long the rest will take; silent elsewhere.

    Parameters
    ----------
    stream : file object, optional
        Where it is shown, standard error by default.
    """

    def __init__(self, stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = bool(getattr(self._stream, "isatty", lambda: False)())
        self._started = time.monotonic()

    def __call__(self, event: Any) -> None:
        """Show an event of the engine."""
        if not self._shown:
            return
        share = event.n_done / max(1, event.n_tasks)
        bar = "#" * round(24 * share)
        left = "" if event.left_s is None else f", about {_duration(event.left_s)} left"
        passed = _duration(time.monotonic() - self._started)
        line = f"[{bar:<24}] {event.n_done}/{event.n_tasks} steps, {passed}{left}  {event.task.id}"
        self._stream.write(f"\r\033[K{line[:100]}")
        self._stream.flush()

    def clear(self) -> None:
        """Remove the line, so that a message can stand in its place."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _check_folders(options: argparse.Namespace) -> None:
    bids, out = options.bids_dir.resolve(), options.output_dir.resolve()
    if not bids.is_dir():
        raise DataError("no such folder", where=str(options.bids_dir), hint="give the folder of the BIDS dataset")
    inside = out.is_relative_to(bids) and not out.is_relative_to(bids / "derivatives")
    if out == bids or inside:
        raise UsageError(
            f"the output folder is {'the' if out == bids else 'inside the'} BIDS dataset {options.bids_dir}",
            where=str(options.output_dir),
            hint="write beside it, or into its folder derivatives/",
        )
    if options.dry_run or options.validate_only:
        return
    for folder in (options.output_dir, options.work_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UsageError(
                f"cannot be written ({error.strerror})", where=str(folder), hint="give a folder that you may write to"
            ) from error


@contextlib.contextmanager
def _quarters(options: argparse.Namespace) -> Iterator[None]:
    """Keep caches and temporary files of all libraries inside the work folder, and nothing in HOME."""
    if options.dry_run or options.validate_only:
        yield
        return
    scratch = options.work_dir.resolve() / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    before = {name: os.environ.get(name) for name in ("MPLCONFIGDIR", "TMPDIR")}
    os.environ.update(dict.fromkeys(before, str(scratch)))
    tempfile.tempdir = None
    try:
        yield
    finally:
        tempfile.tempdir = None
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Ending:
    """Remembers a signal that ends the run.

    An exception raised by a handler is lost where Python ignores exceptions (in a destructor, say), so that it is
    raised again at the next event of the engine. The first process of a container has no default action for signals:
    without a handler it would be killed.
    """

    def __init__(self) -> None:
        self._number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG002 - the signature of a handler
        self._number = number
        self._leave(number)

    def check(self) -> None:
        """Raise again what was received."""
        if self._number is not None:
            self._leave(self._number)

    @staticmethod
    def _leave(number: int) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def _crash_file(options: argparse.Namespace | None, text: str) -> Path | None:
    folders: list[Path] = (
        [] if options is None or options.output_dir is None else [options.output_dir / "logs", options.work_dir]
    )
    for folder in folders:
        path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(f"bids_sodium {__version__}, Python {sys.version}\n\n{text}", encoding="utf-8")
        except OSError:
            continue
        return path
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Words after the program's name, by default those of this process.

    Returns
    -------
    int
        See `bids_sodium.core.errors`; 130 and 143 where it was interrupted or terminated.
    """
    options: argparse.Namespace | None = None
    ending = _Ending()
    previous = {number: signal.signal(number, ending) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        options = parse(argv)
        return _run(options, ending)
    except SodiumError as error:
        print(f"bids-sodium: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bids-sodium: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except SystemExit as leaving:
        if leaving.code == 143:
            print("bids-sodium: terminated; the same command goes on from here", file=sys.stderr)
        return leaving.code if isinstance(leaving.code, int) else 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug becomes a crash file and exit 70
        path = _crash_file(options, traceback.format_exc())
        first = " ".join(f"{type(error).__name__}: {error}".split())
        where = f"; details in {path}" if path else f"\n{traceback.format_exc()}"
        print(f"bids-sodium: a bug, please report it: {first}{where}", file=sys.stderr)
        return 70
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(options: argparse.Namespace, ending: _Ending) -> int:
    _check_folders(options)
    with _quarters(options):
        # Numerical libraries read their number of threads once, when they are imported.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            if hasattr(options, "omp_nthreads") and options.omp_nthreads > 0:
                os.environ[name] = str(options.omp_nthreads)
        from bids_sodium.app import run

        line = ProgressLine()

        def show(event: Any) -> None:
            ending.check()
            line(event)

        return run(options, configure(options), container=container(), progress=show, clear=line.clear)
