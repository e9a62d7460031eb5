"""What holds for the source as a whole: who imports whom, what is documented, what the command costs to start."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bids_sodium import __version__

HEAVY = ("numpy", "scipy", "nibabel", "SimpleITK", "pandas", "statsmodels", "finufft", "h5py", "dipy", "matplotlib")


def program(name: str) -> str:
    """Return a development tool, or skip where it is not installed."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_imports_go_down_the_floors(repository: Path) -> None:
    done = subprocess.run(
        [program("lint-imports"), "--no-cache"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


@pytest.mark.parametrize("module", ["bids_sodium", "bids_sodium.cli", "bids_sodium.demo"])
def test_the_command_starts_without_heavy_imports(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_the_package_warns_of_nothing() -> None:
    code = (
        "import pkgutil, importlib, bids_sodium\n"
        "for found in pkgutil.walk_packages(bids_sodium.__path__, 'bids_sodium.'):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# ---- parameters -------------------------------------------------------------------------------------------------


def _classes(repository: Path) -> Iterator[tuple[str, ast.ClassDef]]:
    for path in sorted((repository / "bids_sodium").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield path.relative_to(repository).as_posix(), node


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_every_field_of_every_params_is_documented(repository: Path) -> None:
    bare, seen = [], 0
    for file, node in _classes(repository):
        if not node.name.endswith("Params"):
            continue
        seen += 1
        followers = [*node.body[1:], None]
        for statement, after in zip(node.body, followers, strict=True):
            if isinstance(statement, ast.AnnAssign) and not _is_text(after):
                bare.append(f"{file}: {node.name}.{ast.unparse(statement.target)}")
    assert seen > 12
    assert bare == []


def test_every_params_is_frozen_slotted_and_by_keyword(repository: Path) -> None:
    loose = []
    for file, node in _classes(repository):
        if node.name.endswith("Params"):
            options = {
                keyword.arg
                for decorator in node.decorator_list
                if isinstance(decorator, ast.Call)
                for keyword in decorator.keywords
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            }
            if not {"frozen", "slots", "kw_only"} <= options:
                loose.append(f"{file}: {node.name}")
    assert loose == []


def test_every_module_says_what_it_is_and_what_it_offers(repository: Path) -> None:
    silent = []
    for path in sorted((repository / "bids_sodium").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
        if not ast.get_docstring(tree) or ("__all__" not in names and path.name not in {"__init__.py", "__main__.py"}):
            silent.append(path.relative_to(repository).as_posix())
    assert silent == []


# ---- versions, read-me and CI -----------------------------------------------------------------------------------


def test_the_version_is_said_once_and_repeated_truly(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "bids_sodium/__init__.py"
    assert f"\nversion: {__version__}\n" in (repository / "CITATION.cff").read_text()
    assert f'"tool-version": "{__version__}"' in (repository / "boutiques.json").read_text()
    assert re.findall(r"^ARG VERSION=(.+)$", (repository / "Dockerfile").read_text(), re.MULTILINE) == [__version__]
    assert (
        __version__ in (repository / "CHANGELOG.md").read_text()
        or "Unreleased" in (repository / "CHANGELOG.md").read_text()
    )


def test_the_readme_has_two_set_up_commands_and_ci_runs_the_second(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    commands = re.findall(r"^python3 .+$", text, flags=re.MULTILINE)
    assert len(commands) == 2
    assert "bids-sodium-demo" in commands[0]
    assert "pytest" in commands[1]
    # As .ci/run takes it from the page.
    taken = re.search(r"^test_command=\$\((.+)\)$", (repository / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert taken is not None
    done = subprocess.run(["bash", "-c", taken[1]], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [commands[1]]


def test_ci_checks_style_types_and_imports_too(repository: Path) -> None:
    text = (repository / ".ci" / "run").read_text()
    for tool in ("ruff", "mypy", "lint-imports"):
        assert tool in text
    assert (repository / ".ci" / "run").stat().st_mode & 0o111
