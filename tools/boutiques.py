"""Print boutiques.json, made from the parser of the command line: ``python tools/boutiques.py > boutiques.json``.

The positionals come first on the command line, so that no option with several values can swallow them.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from bids_sodium import __version__
from bids_sodium.cli import build_parser

_READ = {"bids_dir", "bids_filter_file", "participants", "config_file", "dask_scheduler_file"}
_ANSWER_AND_LEAVE = {"help", "version", "list_presets"}
_ERRORS = {
    1: "some sessions failed; the others are complete",
    2: "usage",
    65: "the data cannot be used as they are",
    69: "the data do not determine the answer",
    70: "a bug, with a crash file",
    75: "output is locked by another live run",
    78: "configuration",
    130: "interrupted; the same command goes on",
    143: "terminated; the same command goes on",
}
_OUTPUTS = {
    "output": ("output dataset", "BIDS derivative dataset with tables, maps and reports", "[OUTPUT_DIR]"),
    "participant_reports": ("participant reports", "one page a participant", "[OUTPUT_DIR]/sub-*.html"),
    "group_table": ("group table", "sodium concentrations of all sessions", "[OUTPUT_DIR]/group_tsc.tsv"),
    "group_report": ("group report", "page of the group level", "[OUTPUT_DIR]/group.html"),
}


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
    elif action.dest in _READ:
        kind = "File"
    elif action.type in {int, float}:
        kind = "Number"
        entry["integer"] = action.type is int
    entry["type"] = kind
    if action.nargs == "+":
        entry["list"] = True
    if action.choices:
        entry["value-choices"] = list(action.choices)
    return entry


def descriptor() -> dict[str, Any]:
    """Return the Boutiques descriptor of the app, both levels."""
    parser = build_parser()
    actions = [action for action in parser._actions if action.dest not in _ANSWER_AND_LEAVE]
    inputs = [_input(action) for action in sorted(actions, key=lambda action: bool(action.option_strings))]
    keys = " ".join(entry["value-key"] for entry in inputs)
    return {
        "name": "bids_sodium",
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "author": "The bids_sodium developers",
        "url": "https://github.com/bids-sodium/bids_sodium",
        "command-line": f"bids-sodium {keys}",
        "container-image": {"type": "docker", "image": f"bids_sodium:{__version__}", "entrypoint": True},
        "inputs": inputs,
        "output-files": [
            # Optional, because a level does not write the other's files and a dry run writes none.
            {"id": key, "name": name, "description": text, "path-template": path, "optional": True}
            | ({"list": True} if "*" in path else {})
            for key, (name, text, path) in _OUTPUTS.items()
        ],
        "error-codes": [{"code": code, "description": text} for code, text in _ERRORS.items()],
        "suggested-resources": {"cpu-cores": 2, "ram": 4, "walltime-estimate": 600},
        "tags": {"domain": ["neuroinformatics", "mri", "sodium"]},
    }


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2, ensure_ascii=False))
