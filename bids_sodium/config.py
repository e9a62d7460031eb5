"""Config: the frozen sum of every module's ``Params``, in layers.

Defaults < preset < TOML file < options of the command line. A section is the ``Params`` of one module, a key one of
its fields; both are checked by name and type, and what is unknown is met with the nearest that is known.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bids_sodium.core.errors import ConfigError, SodiumError
from bids_sodium.group.ms import MsParams
from bids_sodium.group.stroke import StrokeParams
from bids_sodium.image.calibration import CalibrationParams
from bids_sodium.image.denoising import DenoisingParams
from bids_sodium.image.diffusion import DiffusionParams
from bids_sodium.image.receive import ReceiveParams
from bids_sodium.image.reference import ReferenceParams
from bids_sodium.recon.solvers import ReconstructionParams
from bids_sodium.spatial.mirror import MirrorParams
from bids_sodium.spatial.registration import RegistrationParams
from bids_sodium.tissue.delineation import DelineationParams
from bids_sodium.tissue.fate import FateParams
from bids_sodium.tissue.filling import FillingParams
from bids_sodium.tissue.partialvolume import PartialVolumeParams
from bids_sodium.tissue.rois import RoiParams
from bids_sodium.tissue.segmentation import SegmentationParams

__all__ = ["SLOPPY", "Config", "RunParams", "load", "parse_setting", "preset", "presets"]

SLOPPY: Mapping[str, Mapping[str, Any]] = {
    "reconstruction": {"iterations": 2},
    "denoising": {"block_radius": 1},
    "stroke": {"n_resamples": 200},
    "ms": {"n_resamples": 200, "selection_resamples": 20},
}
"""What ``--sloppy`` makes cheaper; it stands right above the defaults, so that any layer may set it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParams:
    """What is run, and on how much of the machine."""

    study: Literal["", "stroke", "ms"] = ""
    """Analyses of the group level; empty where only the participant level is run."""

    output_spaces: tuple[Literal["T1w", "MNI152NLin2009aSym"], ...] = ("T1w", "MNI152NLin2009aSym")
    """Spaces that concentration maps are written in, beside their own."""

    reference_session: str = ""
    """Session whose T1w image is the anatomy of all; empty for the latest after onset, else the first."""

    transform_formats: tuple[Literal["fsl", "lta"], ...] = ()
    """Formats that linear transforms are written in beside ITK's: FLIRT matrices, FreeSurfer's LTA."""

    random_seed: int = 0
    """Seed of every random number generator."""

    sloppy: bool = False
    """Fewer iterations and resamples, for tests only: numbers are less accurate."""

    stop_on_first_crash: bool = False
    """Whether nothing more is started after a failure."""

    executor: Literal["local", "dask", "slurm"] = "local"
    """Where tasks run."""

    n_procs: int = 0
    """Tasks at a time; 0 is the number of cores this process may use."""

    omp_nthreads: int = 0
    """Threads of one task; 0 shares the cores among the tasks."""

    mem_gb: float = 0.0
    """Memory for all tasks together, in GiB; 0 is 90 % of what this process may use."""

    dask_address: str = ""
    """Address of the Dask scheduler."""

    dask_scheduler_file: str = ""
    """File that the Dask scheduler has written."""

    slurm_options: tuple[str, ...] = ()
    """Options of Slurm jobs as ``key=value`` of submitit: ``partition=short``, ``time=60`` (minutes)."""

    def __post_init__(self) -> None:
        for name in ("n_procs", "omp_nthreads", "mem_gb", "random_seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"run.{name} is {getattr(self, name)}", hint="give 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting of the app; each section is handed to the module that it belongs to, and to no other.

    Parameters
    ----------
    run : RunParams
        What is run, and on how much of the machine.
    reconstruction, receive, denoising, calibration, reference, diffusion : object
        Parameters of the images.
    registration, mirror, segmentation, filling, partialvolume, regions, delineation, fate : object
        Parameters of space and tissue.
    stroke, ms : object
        Parameters of the group level.

    Examples
    --------
    >>> load(settings=["calibration.vial_mmol_l=[30, 60]"]).calibration.vial_mmol_l
    (30.0, 60.0)
    """

    run: RunParams = field(default_factory=RunParams)
    reconstruction: ReconstructionParams = field(default_factory=ReconstructionParams)
    receive: ReceiveParams = field(default_factory=ReceiveParams)
    denoising: DenoisingParams = field(default_factory=DenoisingParams)
    calibration: CalibrationParams = field(default_factory=CalibrationParams)
    reference: ReferenceParams = field(default_factory=ReferenceParams)
    diffusion: DiffusionParams = field(default_factory=DiffusionParams)
    registration: RegistrationParams = field(default_factory=RegistrationParams)
    mirror: MirrorParams = field(default_factory=MirrorParams)
    segmentation: SegmentationParams = field(default_factory=SegmentationParams)
    filling: FillingParams = field(default_factory=FillingParams)
    partialvolume: PartialVolumeParams = field(default_factory=PartialVolumeParams)
    regions: RoiParams = field(default_factory=RoiParams)
    delineation: DelineationParams = field(default_factory=DelineationParams)
    fate: FateParams = field(default_factory=FateParams)
    stroke: StrokeParams = field(default_factory=StrokeParams)
    ms: MsParams = field(default_factory=MsParams)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return sections and keys as plain values, tuples as lists."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}

    def to_toml(self) -> str:
        """Return a TOML file that `load` reads back to the same settings; keys that are not set are left out."""
        return "\n".join(_section(name, values) for name, values in self.as_dict().items())


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _section(name: str, values: Mapping[str, Any]) -> str:
    simple = {key: value for key, value in values.items() if not isinstance(value, Mapping) and value is not None}
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"[{name}]", *(f"{key} = {_literal(value)}" for key, value in simple.items())]
    return "\n".join(["\n".join(lines) + "\n", *(_section(f"{name}.{key}", entry) for key, entry in nested.items())])


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(entry) for entry in value) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    # A JSON string is a TOML string.
    return json.dumps(str(value), ensure_ascii=False)


def presets() -> dict[str, str]:
    """Return the names of the presets, each with the first line of its description."""
    found = {}
    for entry in resources.files("bids_sodium").joinpath("presets").iterdir():
        if entry.name.endswith(".toml"):
            first = entry.read_text(encoding="utf-8").partition("\n")[0]
            found[entry.name.removesuffix(".toml")] = first.lstrip("# ")
    return dict(sorted(found.items()))


def preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    known = presets()
    if name not in known:
        raise ConfigError(f"no preset {name!r}{_near(name, known)}", hint=f"choose one of {', '.join(known)}")
    text = resources.files("bids_sodium").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def parse_setting(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``section.key=value``; the value is TOML, or text where it is not.

    Raises
    ------
    ConfigError
        If there is no section, key or equals sign.

    Examples
    --------
    >>> parse_setting("reconstruction.filter_width = 0.6")
    (('reconstruction', 'filter_width'), 0.6)
    >>> parse_setting("denoising.method=off")
    (('denoising', 'method'), 'off')
    """
    name, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in name.split("."))
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(f"{text!r} is no setting", where="--set", hint="write section.key=value")
    try:
        return parts, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return parts, value.strip()


def load(
    *,
    preset_name: str | None = None,
    file: Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Iterable[str] = (),
) -> Config:
    """Put the layers of settings together.

    Parameters
    ----------
    preset_name : str, optional
        Name of a preset.
    file : Path, optional
        TOML file.
    overrides : mapping, optional
        Sections with the keys that options of the command line set.
    settings : iterable of str
        ``section.key=value``, the last word.

    Returns
    -------
    Config
        All settings, checked.

    Raises
    ------
    ConfigError
        If a section, key or value is wrong, naming it, what was seen and what is expected.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if preset_name is not None:
        layers.append((f"preset {preset_name}", preset(preset_name)))
    if file is not None:
        layers.append((str(file), _read(file)))
    layers.append(("command line", overrides or {}))
    for text in settings:
        (*sections, key), value = parse_setting(text)
        nested: Any = {key: value}
        for section in reversed(sections):
            nested = {section: nested}
        layers.append(("--set", nested))
    said = [run["sloppy"] for _, layer in layers if isinstance(run := layer.get("run"), Mapping) and "sloppy" in run]
    if said and said[-1] is True:
        layers.insert(0, ("--sloppy", SLOPPY))
    config = Config()
    for where, layer in layers:
        config = _update(config, layer, where, "")
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(path), hint="check --config-file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not TOML ({error})", where=str(path), hint="write [section] and key = value") from error


_Record = TypeVar("_Record")


def _update(record: _Record, layer: Mapping[str, Any], where: str, name: str) -> _Record:
    """Return a record with the keys of a layer set, all of them checked."""
    hints = get_type_hints(type(record))
    changes: dict[str, Any] = {}
    for key, value in layer.items():
        full = f"{name}.{key}" if name else key
        if key not in hints:
            raise ConfigError(_unknown(key, name, hints), where=where, hint=f"use one of {', '.join(sorted(hints))}")
        now = getattr(record, key)
        if is_dataclass(now) and not isinstance(now, type):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{full} is {value!r}, expected a section", where=where, hint=f"write [{full}]")
            changes[key] = _update(now, value, where, full)
        else:
            changes[key] = _value(value, hints[key], full, where)
    try:
        return type(record)(**{entry.name: getattr(record, entry.name) for entry in fields(record)} | changes)  # type: ignore[arg-type]
    except SodiumError as error:
        raise ConfigError(error.what, where=error.where or f"{where}: [{name}]", hint=error.hint) from error


def _unknown(key: str, section: str, known: Iterable[str]) -> str:
    what = f"unknown key {key!r} in [{section}]" if section else f"unknown section [{key}]"
    elsewhere = [entry.name for entry in fields(Config) if key in get_type_hints(_kind(entry.name))] if section else []
    if elsewhere:
        return f"{what}; did you mean [{elsewhere[0]}] {key}?"
    return what + _near(key, known)


def _kind(section: str) -> Any:
    return get_type_hints(Config)[section]


def _near(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = [name for name in names if name.startswith(word)] or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _expected(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(value) for value in inner)
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"a list, each entry {_expected(inner[0])}"
        return f"a list of {len(inner)} entries"
    if origin in {Union, types.UnionType}:
        return " or ".join(_expected(entry) for entry in inner if entry is not type(None))
    return _WORDS.get(kind, str(kind))


def _value(value: Any, kind: Any, name: str, where: str) -> Any:
    """Return a value as the type of its key, or say what was expected."""
    origin, inner = get_origin(kind), get_args(kind)
    wrong = ConfigError(
        f"{name} is {value!r}, expected {_expected(kind)}", where=where, hint="correct the value or leave the key out"
    )
    if origin in {Union, types.UnionType}:
        for entry in inner:
            try:
                return _value(value, entry, name, where)
            except ConfigError:
                continue
        raise wrong
    if kind is type(None):
        if value is not None:
            raise wrong
        return None
    if origin is tuple:
        if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
            raise wrong
        kinds = inner[:1] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise wrong
        return tuple(_value(entry, k, name, where) for entry, k in zip(value, kinds, strict=True))
    if origin is Literal:
        if value not in inner or any(isinstance(value, bool) != isinstance(entry, bool) for entry in inner):
            near = _near(value, [entry for entry in inner if isinstance(entry, str)]) if isinstance(value, str) else ""
            raise ConfigError(f"{wrong.what}{near}", where=where, hint=wrong.hint)
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong
    return value
