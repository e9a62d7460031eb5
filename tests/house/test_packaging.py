"""What surrounds the package agrees with it: image, Boutiques descriptor, brainlife entry, workflows.

Nothing here builds an image (``tools/image.sh check`` does); these are the promises that can be read from the files.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from bids_sodium import __version__
from bids_sodium.cli import LEVELS, build_parser, container, parse

ROOT = Path(__file__).resolve().parents[2]
BOSH = Path(sys.executable).with_name("bosh")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ANSWER_AND_LEAVE = {"help", "version", "list_presets"}

# One value for each kind of option; those of several values get two, so that a swallowed positional shows.
WORDS = {"participant_label": ["01", "02"], "exclude_participant_label": ["03", "04"], "session_label": ["1", "2"]}
WORDS |= {"derivatives": ["rois=a/b", "masks=c d"], "settings": ["run.n_procs=1", "run.sloppy=true"]}


def instructions() -> list[list[str]]:
    """Return the lines of the Dockerfile, continuations joined, one list a stage; the first is what precedes FROM."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: list[list[str]] = [[]]
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("FROM "):
            stages.append([])
        if line.strip():
            stages[-1].append(line.strip())
    return stages


def last(instruction: str) -> str:
    """Return the argument of an instruction's last use in the final stage."""
    return next(line.partition(" ")[2] for line in reversed(instructions()[-1]) if line.startswith(f"{instruction} "))


def image_environment() -> dict[str, str]:
    """Return the variables that the final stage sets, with its build arguments at their defaults."""
    stage = instructions()[-1]
    arguments = dict(line[4:].split("=", 1) for line in stage if line.startswith("ARG "))
    words = [word for line in stage if line.startswith("ENV ") for word in shlex.split(line[4:])]
    return {
        name: re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], value)
        for name, value in (word.split("=", 1) for word in words)
    }


def test_image_runs_the_app_isolated_and_as_nobody_special() -> None:
    assert re.fullmatch(r"[1-9]\d*:\d+", last("USER")), "a name cannot be checked by runAsNonRoot; 0 is root"
    python, *rest = json.loads(last("ENTRYPOINT"))
    assert python.startswith("/")
    assert rest == ["-I", "-B", "-u", "-m", "bids_sodium"]
    # Where these point, a read-only root or another user could not write; the command line sets them itself.
    assert not {"HOME", "MPLCONFIGDIR", "TMPDIR"} & set(image_environment())


def test_image_names_itself_as_the_command_line_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in image_environment().items():
        if name.startswith("BIDS_SODIUM_"):
            monkeypatch.setenv(name, value)
    assert container() == {"Type": "docker", "Tag": f"bids_sodium:{__version__}"}


def test_image_gets_every_file_that_it_copies() -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    ]
    copied = [
        source
        for stage in instructions()
        for line in stage
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / source).exists() for source in copied)


def test_image_installs_only_locked_versions() -> None:
    build = "\n".join(instructions()[2])
    assert "-c lock.txt" in build
    for tool in re.findall(r"\bpip install\b[^&\n]*", build):
        named = [word.strip('"') for word in tool.split()[2:] if not word.startswith("-")]
        assert all("==" in word or word in {"needed.txt", "dist/*.whl"} for word in named), tool


@pytest.mark.parametrize("name", ["Dockerfile", "tools/image.sh", ".ci/run"])
def test_no_registry_or_mirror_is_written_down(name: str) -> None:
    assert not re.search(r"https?://\w", (ROOT / name).read_text(encoding="utf-8"))


def test_image_script_is_sound_bash_and_says_what_it_does() -> None:
    subprocess.run(["bash", "-n", ROOT / "tools" / "image.sh"], check=True)
    done = subprocess.run(
        ["bash", ROOT / "tools" / "image.sh"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 2
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["build", "run", "check"]


@pytest.fixture(scope="module")
def descriptor() -> dict[str, Any]:
    return json.loads((ROOT / "boutiques.json").read_text(encoding="utf-8"))


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_boutiques", ROOT / "tools" / "boutiques.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_boutiques_is_what_the_parser_says(descriptor: dict[str, Any]) -> None:
    assert descriptor == generator().descriptor(), "python tools/boutiques.py > boutiques.json"


def test_boutiques_has_every_flag_and_no_other(descriptor: dict[str, Any]) -> None:
    actions = {action.dest: action for action in build_parser()._actions if action.dest not in ANSWER_AND_LEAVE}
    inputs = {entry["id"]: entry for entry in descriptor["inputs"]}
    assert inputs.keys() == actions.keys()
    for name, action in actions.items():
        entry = inputs[name]
        assert entry.get("command-line-flag") in (action.option_strings or [None])
        assert entry.get("optional", False) is bool(action.option_strings)
        assert entry.get("list", False) is (action.nargs == "+")
        assert entry.get("value-choices") == (list(action.choices) if action.choices else None)
        assert (entry["type"] == "Flag") is (action.nargs == 0)
        assert descriptor["command-line"].count(entry["value-key"]) == 1
    assert descriptor["tool-version"] == __version__
    assert descriptor["container-image"]["image"] == f"bids_sodium:{__version__}"
    assert {entry["code"] for entry in descriptor["error-codes"]} == {1, 2, 65, 69, 70, 75, 78, 130, 143}


def value_of(action: argparse.Action) -> Any:
    """Return a value of an option that the parser accepts, as an invocation holds it."""
    if action.nargs == 0:
        return True
    if action.dest in WORDS:
        return WORDS[action.dest]
    one: Any = (
        next(iter(action.choices)) if action.choices else action.type(3) if action.type in {int, float} else "x=y"
    )
    return [one, one] if action.nargs == "+" else one


def invocation(level: str, *, every: bool) -> dict[str, Any]:
    """Return what is asked of the app: the positionals, and each option once where ``every`` is set."""
    actions = [action for action in build_parser()._actions if action.dest not in ANSWER_AND_LEAVE]
    asked = {action.dest: value_of(action) for action in actions if every and action.option_strings}
    return asked | {"bids_dir": "some/bids", "output_dir": "some/out", "analysis_level": level}


def bosh(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    if not BOSH.exists():
        pytest.skip("boutiques is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [BOSH, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "PATH": path, "HOME": str(cwd), "OMP_NUM_THREADS": "1"},
    )


def test_boutiques_is_valid(tmp_path: Path) -> None:
    done = bosh("validate", ROOT / "boutiques.json", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "OK"), done.stderr


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("every", [False, True])
def test_the_parser_understands_what_boutiques_writes(level: str, every: bool, tmp_path: Path) -> None:
    asked = invocation(level, every=every)
    # bosh wants the files that it hands on to exist in its folder.
    (tmp_path / "some" / "bids").mkdir(parents=True)
    for name in ("x=y", "3"):
        (tmp_path / name).touch()
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    done = bosh("exec", "simulate", "-i", "asked.json", ROOT / "boutiques.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    program, *words = shlex.split(done.stdout.strip().splitlines()[-1])
    options = parse(words)
    assert program == "bids-sodium"
    assert (str(options.bids_dir), str(options.output_dir), options.analysis_level) == ("some/bids", "some/out", level)
    if every:
        assert options.participant_label == WORDS["participant_label"]
        assert list(options.derivatives) == ["rois", "masks"]
        assert options.vial_mmol_l == [3.0, 3.0]
        assert options.n_procs == 3
        assert options.dry_run


def test_boutiques_passes_the_exit_code_on(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    asked = {"bids_dir": "empty", "output_dir": "out", "analysis_level": "participant"}
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    done = bosh(
        "exec",
        "launch",
        "--no-container",
        "--skip-data-collection",
        ROOT / "boutiques.json",
        "asked.json",
        cwd=tmp_path,
    )
    assert done.returncode == 65, done.stdout + done.stderr
    assert "the data cannot be used as they are" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_boutiques_launches_both_levels(level: str, demo: Any, tmp_path: Path) -> None:
    study = demo.study("ms")
    out = study.output.name  # a copy resumes only under the same name
    shutil.copytree(study.output, tmp_path / out)
    asked: dict[str, Any] = {"bids_dir": str(study.bids), "output_dir": out, "analysis_level": level, "preset": "ms"}
    asked |= {"study": "ms"} if level == "group" else {"derivatives": [study.rois], "participant_label": ["01"]}
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    done = bosh(
        "exec",
        "launch",
        "--no-container",
        "--skip-data-collection",
        ROOT / "boutiques.json",
        "asked.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = "group.html (group_report" if level == "group" else "sub-01.html (participant_reports"
    assert f"{out}/{report}" in done.stdout


STAND_IN = """#!{python}
import json, pathlib, sys
pathlib.Path("words.json").write_text(json.dumps(sys.argv[1:]))
if not pathlib.Path(sys.argv[1]).exists():
    sys.stderr.write("a warning\\nbids-sodium: no such folder\\n")
    sys.exit(65)
figures = pathlib.Path("output/sub-01/figures")
figures.mkdir(parents=True)
for name in "abcde":
    (figures / f"sub-01_desc-{{name}}_T1w.png").write_bytes(name.encode())
(figures / "sub-01_TSCmap.png").write_bytes(b"map")
pathlib.Path("output/sub-01.html").touch()
"""


def brainlife(config: dict[str, Any], folder: Path) -> tuple[int, list[str], list[dict[str, str]]]:
    """Run the entry in a folder with a stand-in of the command; return its exit code, the words, the page."""
    commands = folder / "commands"
    commands.mkdir()
    (commands / "bids-sodium").write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    (commands / "bids-sodium").chmod(0o755)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "brainlife" / "main"],
        cwd=folder,
        check=False,
        capture_output=True,
        env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"},
    )
    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    return done.returncode, words, json.loads((folder / "product.json").read_text(encoding="utf-8"))["brainlife"]


def test_brainlife_hands_on_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    config = {
        "bids": "in",
        "rois": "in/rois",
        "participant_label": "01 sub-02",
        "preset": "ms",
        "n_procs": 2,
        "mem_gb": "",
    }
    code, words, page = brainlife(config, tmp_path)
    options = parse(words)
    assert code == 0
    assert (str(options.bids_dir), str(options.output_dir), options.analysis_level) == ("in", "output", "participant")
    assert options.participant_label == ["01", "02"]
    assert {name: str(path) for name, path in options.derivatives.items()} == {"rois": "in/rois"}
    assert (options.preset, options.n_procs, str(options.work_dir)) == ("ms", 2, "work")
    assert not hasattr(options, "mem_gb")
    assert page[0]["type"] == "success"
    assert "sub-01.html" in page[0]["msg"]
    assert [entry["name"] for entry in page[1:]] == ["sub-01_TSCmap", "sub-01_desc-a_T1w", "sub-01_desc-b_T1w"]
    assert base64.b64decode(page[1]["base64"]) == b"map"


def test_brainlife_runs_the_group_level(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    code, words, _ = brainlife({"bids": "in", "analysis_level": "group", "study": "ms"}, tmp_path)
    options = parse(words)
    assert (code, options.analysis_level, options.study) == (0, "group", "ms")


def test_brainlife_passes_on_exit_code_and_message(tmp_path: Path) -> None:
    code, _, page = brainlife({"bids": "nowhere"}, tmp_path)
    assert code == 65
    assert page == [{"type": "error", "msg": "exit code 65: bids-sodium: no such folder"}]


def test_brainlife_entry_can_be_executed() -> None:
    assert os.access(ROOT / "brainlife" / "main", os.X_OK)
    assert os.access(ROOT / "tools" / "image.sh", os.X_OK)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_pinned_and_may_only_read(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_workflows_test_every_python_that_is_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    promised = [line.removeprefix(prefix) for line in project["classifiers"] if line.startswith(prefix)]
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert {path.stem for path in WORKFLOWS} >= {"image", "quality", "tests"}
    assert tests["jobs"]["tests"]["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
