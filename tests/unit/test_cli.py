import argparse
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bids_sodium import __version__
from bids_sodium.cli import SETTINGS, build_parser, configure, container, main, overrides, parse
from bids_sodium.config import Config
from bids_sodium.core.errors import DataError, LockedError, UsageError

MANY = "--participant-label 01 sub-02"


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return a function that puts another application in the place of the real one."""

    def put(run: Any) -> None:
        module = types.ModuleType("bids_sodium.app")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bids_sodium.app", module)

    return put


@pytest.mark.parametrize(
    "line",
    [
        f"bids out participant {MANY}",
        f"{MANY} bids out participant",
        f"{MANY} bids out participant --n-procs 2",
        f"bids {MANY} out participant",
        f"bids out {MANY} participant",
        f"{MANY} -d rois=x bids out participant",
        f"-d rois=x {MANY} bids out participant",
        f"{MANY} -- bids out participant",
        f"bids {MANY} --dry-run out participant",
    ],
)
def test_positionals_survive_an_option_with_several_values(line: str) -> None:
    options = parse(line.split())
    assert (options.bids_dir, options.output_dir, options.analysis_level) == (Path("bids"), Path("out"), "participant")
    assert options.participant_label == ["01", "02"]


def test_a_folder_may_be_called_like_a_level() -> None:
    options = parse(f"{MANY} group participant group".split())
    assert (str(options.bids_dir), str(options.output_dir), options.analysis_level) == ("group", "participant", "group")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bids out", "required: analysis_level"),
        ("bids out both", "invalid choice: 'both'"),
        ("bids out participant --frobnicate", "--frobnicate"),
        (f"{MANY} bids out participant --frobnicate", "--frobnicate"),
        ("bids out participant --participant-label sub_01", "'sub_01' is not a label"),
        ("bids out participant --n-procs many", "invalid int value: 'many'"),
        ("bids out participant -d a=1 a=2", "same name"),
        ("bids out participant --particip 01", "--particip"),
        ("", "bids_dir, output_dir, analysis_level"),
    ],
)
def test_usage_errors_are_one_line_and_two(capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_dashes_and_underscores_are_the_same() -> None:
    line = "b o participant --participant_label 01 --session_label ses-a --bids_filter_file f --skip_bids_validation"
    assert vars(parse(line.split())) == vars(parse(line.replace("_", "-").split()))


def test_derivatives_are_a_mapping_and_a_bare_path_is_its_own_name() -> None:
    options = parse(["b", "o", "participant", "-d", "rois=x/y", "fmriprep=/z", "-d", "/data/derivatives/seg"])
    assert options.derivatives == {"rois": Path("x/y"), "fmriprep": Path("/z"), "seg": Path("/data/derivatives/seg")}


def test_state_is_kept_in_the_output_unless_told_otherwise() -> None:
    assert parse(["b", "o", "group"]).work_dir == Path("o/.bids_sodium")
    assert parse(["b", "o", "group", "-w", "w"]).work_dir == Path("w")


def test_options_that_are_not_given_set_nothing() -> None:
    assert overrides(parse(["b", "o", "participant"])) == {}
    assert configure(parse(["b", "o", "participant"])) == Config()


def values() -> dict[str, list[str]]:
    """Return for every option that stands for a setting a value that differs from the default."""
    found = {}
    for action in build_parser()._actions:
        if action.dest not in SETTINGS:
            continue
        section, key = SETTINGS[action.dest].split(".")
        default = getattr(getattr(Config(), section), key)
        if action.nargs == 0:
            words = []
        elif action.choices is not None:
            words = [str(next(choice for choice in action.choices if choice not in (default, *default[:1])))]
        else:
            words = [{"slurm_option": "k=7", "tv_weight": "0.7"}.get(action.dest, "7")]
        found[action.dest] = [action.option_strings[0], *words]
    return found


def test_every_setting_has_its_option() -> None:
    assert set(values()) == set(SETTINGS)


def test_every_partial_volume_method_can_be_asked_for() -> None:
    from bids_sodium.cli import PVC_METHODS
    from bids_sodium.tissue.partialvolume import METHODS

    assert PVC_METHODS == METHODS


@pytest.mark.parametrize("name", SETTINGS)
def test_every_named_option_reaches_its_setting(name: str) -> None:
    section, key = SETTINGS[name].split(".")
    changed = configure(parse(["b", "o", "participant", *values()[name]]))
    assert getattr(getattr(changed, section), key) != getattr(getattr(Config(), section), key)
    assert configure(parse(["b", "o", "participant", *values()[name], "--set", *dump(section, key)])) == Config()


def dump(section: str, key: str) -> list[str]:
    line = next(line for line in table(section) if line.startswith(f"{key} = "))
    return [f"{section}.{line}"]


def table(section: str) -> list[str]:
    return Config().to_toml().split(f"[{section}]\n")[1].split("\n\n")[0].split("\n")


@pytest.mark.parametrize("flag", ["--help", "--version", "--list-presets"])
def test_what_needs_no_data_leaves_with_zero(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert {"--help": "exit codes: 0 done", "--version": __version__, "--list-presets": "stroke"}[flag] in out


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_nothing_heavy_is_imported_before_the_arguments_are_understood(flag: str) -> None:
    script = (
        "import sys\nfrom bids_sodium.cli import main\n"
        f"code = main([{flag!r}])\n"
        "heavy = {'numpy', 'scipy', 'pandas', 'nibabel', 'bids', 'matplotlib', 'SimpleITK'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bids_sodium", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"bids_sodium {__version__}\n")


@pytest.mark.parametrize(
    ("folders", "code", "message"),
    [
        ("data data", 2, "the output folder is the BIDS dataset"),
        ("data data/out", 2, "the output folder is inside the BIDS dataset"),
        ("data data/sub-01/../x", 2, "inside the BIDS dataset"),
        ("data file", 2, "cannot be written"),
        ("data file/out", 2, "cannot be written"),
        ("nowhere out", 65, "no such folder"),
    ],
)
def test_folders_are_checked_before_anything_is_done(
    bids: Path,
    capsys: pytest.CaptureFixture[str],
    app: Any,
    *,
    folders: str,
    code: int,
    message: str,
) -> None:
    app(lambda *_, **__: pytest.fail("the app was started"))
    root = bids.parent
    (root / "file").touch()
    before = sorted(root.rglob("*"))
    assert main([*(str(root / folder) for folder in folders.split()), "participant"]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(root.rglob("*")) == before


def test_results_may_go_into_the_derivatives_of_the_dataset(bids: Path, app: Any) -> None:
    app(lambda *_, **__: 0)
    assert main([str(bids), str(bids / "derivatives" / "sodium"), "participant"]) == 0


def test_dry_run_and_validation_write_nothing(bids: Path, app: Any) -> None:
    app(lambda *_, **__: 0)
    for flag in ("--dry-run", "--validate-only"):
        assert main([str(bids), str(bids.parent / "out"), "participant", flag]) == 0
    assert not (bids.parent / "out").exists()


def test_app_gets_options_and_settings_and_its_code_is_returned(bids: Path, app: Any) -> None:
    seen: dict[str, Any] = {}

    def run(options: argparse.Namespace, config: Config, **others: Any) -> int:
        seen.update(
            options=options, config=config, **others, folder=os.environ["MPLCONFIGDIR"], tmp=os.environ["TMPDIR"]
        )
        return 1

    app(run)
    before = dict(os.environ)
    assert main([str(bids), str(bids.parent / "out"), "group", "--study", "ms"]) == 1
    assert seen["options"].analysis_level == "group"
    assert seen["config"].run.study == "ms"
    assert {"container", "progress", "clear"} <= set(seen)
    assert seen["folder"] == seen["tmp"] == str(bids.parent / "out" / ".bids_sodium" / "tmp")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("bad", where="x"), 65), (LockedError("held"), 75), (UsageError("u"), 2)]
)
def test_errors_are_one_line_and_their_code(
    bids: Path, app: Any, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def run(*_: Any, **__: Any) -> int:
        raise error

    app(run)
    assert main([str(bids), str(bids.parent / "out"), "participant"]) == code
    assert capsys.readouterr().err == f"bids-sodium: {error}\n"


def test_a_wrong_setting_is_78(bids: Path, app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    app(lambda *_, **__: 0)
    assert main([str(bids), str(bids.parent / "out"), "participant", "--set", "denoising.metod=nlm"]) == 78
    assert "did you mean 'method'?" in capsys.readouterr().err


def test_a_bug_leaves_a_crash_file_and_70(bids: Path, app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: Any, **__: Any) -> int:
        raise RuntimeError("deep inside")

    app(run)
    out = bids.parent / "out"
    assert main([str(bids), str(out), "participant"]) == 70
    (crash,) = (out / "logs").glob("crash-*.txt")
    assert "deep inside" in crash.read_text()
    error = capsys.readouterr().err
    assert "please report" in error
    assert crash.name in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_with_their_code(tmp_path: Path, bids: Path, number: int, code: int) -> None:
    script = (
        "import sys, time, types\n"
        "module = types.ModuleType('bids_sodium.app')\n"
        "def run(*_, **__):\n    print('running', flush=True)\n    time.sleep(60)\n"
        "module.run = run\nsys.modules['bids_sodium.app'] = module\n"
        "from bids_sodium.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", script, str(bids), str(tmp_path / "out"), "participant"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        time.sleep(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert "the same command goes on from here" in error
    assert error.count("\n") == 1


def test_container_is_what_the_build_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert container() == {}
    monkeypatch.setenv("BIDS_SODIUM_CONTAINER_TAG", "x/y:1")
    assert container() == {"Tag": "x/y:1"}
