"""What a step learned beside its images: measures, omissions, warnings and values for the steps after it.

A record is one JSON file in the work folder. `extract` gathers the records of a session into its quality table, so
that a number or a reason for leaving something out is said once, by the step that knows it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bids_sodium.bidsio.files import read_json, write_json

__all__ = ["Measure", "Omission", "Record", "read_record", "write_record"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number with its unit and how it was made.

    Parameters
    ----------
    name : str
        Name of the measure.
    value : float
        Its value.
    unit : str
        Its unit, ``"1"`` for counts and ratios.
    se : float or None
        Standard error, where it has one.
    note : str
        How it was made, or what it warns of.
    """

    name: str
    value: float
    unit: str = "1"
    se: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Omission:
    """Something that could not be computed, and why.

    Parameters
    ----------
    what : str
        What is missing from the output.
    reason : str
        Why.
    """

    what: str
    reason: str


@dataclass(slots=True)
class Record:
    """Measures, omissions and values of one step.

    Parameters
    ----------
    measures : list of Measure
        Numbers for the quality table.
    omissions : list of Omission
        What was left out.
    values : dict
        Plain values that later steps need.
    warnings : list of str
        What a reader of the numbers must know: sentences for the report.
    """

    measures: list[Measure] = field(default_factory=list)
    omissions: list[Omission] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def measure(self, name: str, value: float, unit: str = "1", *, se: float | None = None, note: str = "") -> None:
        """Add a number."""
        self.measures.append(Measure(name, float(value), unit, None if se is None else float(se), note))

    def omit(self, what: str, reason: str) -> None:
        """Add something that could not be computed."""
        self.omissions.append(Omission(what, reason))

    def warn(self, text: str) -> None:
        """Add a sentence that the report shows at its top."""
        self.warnings.append(text)


def write_record(path: Path, record: Record) -> Path:
    """Write a record as JSON, atomically."""
    return write_json(
        path,
        {
            "measures": [asdict(entry) for entry in record.measures],
            "left_out": [asdict(entry) for entry in record.omissions],
            "warnings": record.warnings,
            "values": record.values,
        },
    )


def read_record(path: Path) -> Record:
    """Read what `write_record` wrote; a number that was not finite comes back as NaN."""
    content = read_json(path)
    measures = [
        Measure(**{**entry, "value": float("nan") if entry["value"] is None else entry["value"]})
        for entry in content["measures"]
    ]
    left_out = [Omission(**entry) for entry in content["left_out"]]
    return Record(measures, left_out, content["values"], content["warnings"])
