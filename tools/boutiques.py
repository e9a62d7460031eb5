"""Print boutiques.json, made from the parser of the command line: ``python tools/boutiques.py > boutiques.json``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bids_sodium import __version__
from bids_sodium.cli import build_parser

_FILES = {"bids_filter_file", "participants", "config_file", "dask_scheduler_file"}
_SKIPPED = {"help", "version", "list_presets"}


def _name(action: argparse.Action) -> str:
    return action.dest


def _input(action: argparse.Action) -> dict[str, Any]:
    flag = next((option for option in action.option_strings if option.startswith("--")), None)
    entry: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " "),
        "description": action.help or "",
        "value-key": f"[{action.dest.upper()}]",
    }
    if flag:
        entry |= {"command-line-flag": flag, "optional": True}
    kind = "String"
    if isinstance(action, (argparse._StoreTrueAction, argparse._CountAction)):
        kind = "Flag"
    elif action.dest in _FILES or action.dest in {"bids_dir"}:
        kind = "File"
    elif action.type in {int, float}:
        kind = "Number"
        entry["integer"] = action.type is int
    entry["type"] = kind
    if action.nargs == "+":
        entry["list"] = True
        # The words of a list go before the positionals, so one flag ends it.
    if action.choices:
        entry["value-choices"] = list(action.choices)
    return entry


def descriptor() -> dict[str, Any]:
    """Return the Boutiques descriptor of the app, both levels."""
    parser = build_parser()
    actions = [action for action in parser._actions if action.dest not in _SKIPPED]
    inputs = [_input(action) for action in actions]
    keys = " ".join(entry["value-key"] for entry in inputs)
    return {
        "name": "bids_sodium",
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "author": "The bids_sodium developers",
        "url": "https://github.com/bids-sodium/bids_sodium",
        "command-line": f"bids-sodium {keys}",
        "container-image": {"type": "docker", "image": f"bids_sodium:{__version__}", "entrypoint": False},
        "inputs": inputs,
        "output-files": [
            {
                "id": "output",
                "name": "output dataset",
                "description": "BIDS derivative dataset with tables, images and reports",
                "path-template": "[OUTPUT_DIR]",
                "optional": False,
            }
        ],
        "error-codes": [
            {"code": 1, "description": "some sessions failed; the others are complete"},
            {"code": 2, "description": "usage"},
            {"code": 65, "description": "the data cannot be used as they are"},
            {"code": 69, "description": "the data do not determine the answer"},
            {"code": 70, "description": "a bug, with a crash file"},
            {"code": 75, "description": "output is locked by another live run"},
            {"code": 78, "description": "configuration"},
        ],
        "suggested-resources": {"cpu-cores": 2, "ram": 4, "walltime-estimate": 600},
        "tags": {"domain": ["neuroinformatics", "mri", "sodium"]},
    }


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2, ensure_ascii=False))
