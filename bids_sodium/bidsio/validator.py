"""The BIDS validator, run as a program where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bids_sodium.core.errors import DataError

__all__ = ["Validation", "run_validator"]


class Validation(NamedTuple):
    """What the BIDS validator says.

    Parameters
    ----------
    ran : bool
        Whether a validator was found and ran.
    errors : tuple of str
        Code and place of every error.
    n_warnings : int
        Number of warnings.
    """

    ran: bool
    errors: tuple[str, ...]
    n_warnings: int


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def run_validator(bids_dir: Path, *, find: Callable[[str], str | None] | None = None) -> Validation:
    """Run bids-validator-deno on a dataset, where it is installed.

    Parameters
    ----------
    bids_dir : Path
        Dataset.
    find : callable, optional
        Finds the program by its name; by default on the PATH, then beside this Python.

    Returns
    -------
    Validation
        ``ran`` is false where the validator is not installed.
    """
    program = (find or _find)("bids-validator-deno")
    if program is None:
        return Validation(ran=False, errors=(), n_warnings=0)
    done = subprocess.run([program, "--json", str(bids_dir)], capture_output=True, text=True, check=False)  # noqa: S603
    try:
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"the BIDS validator stopped with {done.returncode}: {done.stderr[-200:]}", where=str(bids_dir)
        ) from error
    errors = [
        f"{issue.get('location', '')}: {issue.get('code', '')}"
        + (f" ({issue['subCode']})" if issue.get("subCode") else "")
        for issue in issues
        if issue.get("severity") == "error"
    ]
    return Validation(ran=True, errors=tuple(errors), n_warnings=len(issues) - len(errors))
