"""What a group study hands out: `Study`, its `Analysis` parts, and the `Ledger` that fills and checks their rows.

A row of results is an estimate with its standard error, interval, p value and where it came from
(`bids_sodium.core.tables.GROUP_RESULT`). No table leaves before `check_rows` has found every estimate inside its
interval, every p value in [0, 1], no p value that contradicts its interval and every share equal to its counts; for
tables of groups `check_pools` finds that subgroups pool to the total.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError, InternalError
from bids_sodium.core.tables import GROUP_RESULT

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.stats.comparisons import Mixed

__all__ = [
    "READING",
    "SELF_TEST",
    "Analysis",
    "Ledger",
    "Study",
    "attempted",
    "by_reason",
    "check_pools",
    "check_rows",
    "empty_results",
    "listing",
    "mean_of",
    "plural",
    "taken",
]

READING = "participants"
"""Analysis under which stands how the tables were read: notes for every reader, not parts of an analysis."""

SELF_TEST = "stopped by its self-test"
"""How the reason begins where a table contradicts itself, which is a bug."""

_TEXT = frozenset({"analysis", "model", "subset", "outcome", "term", "method", "note"})
_NUMBERS = tuple(name for name in GROUP_RESULT.names if name not in _TEXT)
_RESAMPLED = ("BCa", "bootstrap")
_POOLED = ("n", "mean", "sd", "minimum", "maximum")
_SLACK = 1e-7  # relative rounding that a limit or a p value may carry


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """One analysis of a study.

    Parameters
    ----------
    name : str
        Short name; the table is written as ``group_<name>.tsv``.
    title : str
        Heading of the report.
    results : pandas.DataFrame
        Rows with the columns of `GROUP_RESULT`; empty where the analysis was left out.
    data : mapping of str to pandas.DataFrame
        Points, curves, bands and layout tables that the figures need, by key; each is written as
        ``group_<name>_<key>.tsv``. The key ``left_out`` lists parts that could not be computed.
    left_out : str
        Why the whole analysis was left out, empty where it was done.
    text : str
        One sentence for the methods section.
    """

    name: str
    title: str
    results: pd.DataFrame
    data: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    left_out: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All analyses of one study, in the order of the report.

    Parameters
    ----------
    study : str
        ``stroke`` or ``ms``.
    analyses : tuple of Analysis
        Those done and those left out.
    """

    study: str
    analyses: tuple[Analysis, ...]

    def __getitem__(self, name: str) -> Analysis:
        """Return the analysis of that name.

        Raises
        ------
        KeyError
            If the study has none of that name.
        """
        for analysis in self.analyses:
            if analysis.name == name:
                return analysis
        raise KeyError(name)

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Names of the analyses that their self-test has stopped."""
        return tuple(a.name for a in self.analyses if a.left_out.startswith(SELF_TEST))

    @property
    def left_out(self) -> pd.DataFrame:
        """Everything that could not be computed: columns ``analysis``, ``part``, ``reason``."""
        import pandas as pd

        rows: list[tuple[str, str, str]] = []
        for analysis in self.analyses:
            if analysis.left_out:
                rows.append((analysis.name, "", analysis.left_out))
            elif "left_out" in analysis.data:
                parts = analysis.data["left_out"]
                rows += [
                    (analysis.name, str(part), str(reason))
                    for part, reason in zip(parts["part"], parts["reason"], strict=True)
                ]
        return pd.DataFrame(rows, columns=["analysis", "part", "reason"])


def empty_results() -> pd.DataFrame:
    """Return a table with the columns of `GROUP_RESULT` and no row.

    Examples
    --------
    >>> len(empty_results())
    0
    """
    return _frame([])


def _frame(rows: list[dict[str, Any]], extra: tuple[str, ...] = ()) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=[*GROUP_RESULT.names, *extra])
    for name in (*_NUMBERS, *extra):
        frame[name] = frame[name].astype(float)
    for name in _TEXT:
        frame[name] = ["" if pd.isna(value) else str(value) for value in frame[name]]
    return frame


def check_rows(table: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Return the table if every row agrees with itself.

    Checked: standard errors, degrees of freedom and counts are not negative; p values lie in [0, 1] and an adjusted
    one is not below its raw one; ``ci_low <= estimate <= ci_high`` (for methods that begin with ``BCa`` or
    ``bootstrap``, whose limits are quantiles of replicates, ``ci_low <= ci_high``); and, where the table has a column
    ``null`` (the value that the p value tests), ``p < 1 - confidence`` exactly when the interval leaves it out.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows with the columns of `GROUP_RESULT`, optionally ``null``: the value tested, NaN where p value and interval
        come from different procedures and need not agree.
    confidence : float
        Level of the intervals.

    Raises
    ------
    InternalError
        With the first row that fails and what is wrong with it.

    Examples
    --------
    >>> import pandas as pd
    >>> check_rows(pd.DataFrame([{"term": "a", "estimate": 1.0, "ci_low": 0.5, "ci_high": 1.5, "p": 0.01}])).shape
    (1, 5)
    """
    for record in table.to_dict("records"):
        row = {str(key): value for key, value in record.items()}
        problem = _problem(row, 1.0 - confidence)
        if problem:
            name = " / ".join(
                str(row[key]) for key in ("analysis", "model", "subset", "outcome", "term") if row.get(key)
            )
            raise InternalError(problem, where=name, hint="report this with the table of the participants' rows")
    return table


def check_pools(summary: pd.DataFrame, pools: Mapping[str, Sequence[str]], *, where: str) -> pd.DataFrame:
    """Return the summary if its subgroups pool to their totals in count, mean, spread and range.

    Parameters
    ----------
    summary : pandas.DataFrame
        Columns ``variable group n mean sd minimum maximum``, one row a variable and group.
    pools : mapping of str to sequence of str
        Group and the groups that it is made of.
    where : str
        Table, for the message.

    Raises
    ------
    InternalError
        With the first total that its parts do not make.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [("A", 2, 1.0, 0.0, 1.0, 1.0), ("B", 2, 3.0, 0.0, 3.0, 3.0), ("all", 4, 2.5, 1.2, 1.0, 3.0)]
    >>> table = pd.DataFrame(rows, columns=["group", "n", "mean", "sd", "minimum", "maximum"]).assign(variable="x")
    >>> check_pools(table, {"all": ("A", "B")}, where="table")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    bids_sodium.core.errors.InternalError: ...
    """
    for variable, rows in summary.groupby("variable", sort=False) if len(summary) else ():
        at = {str(row["group"]): {key: _number(row, key) for key in _POOLED} for row in rows.to_dict("records")}
        for total, parts in pools.items():
            found = [at[part] for part in parts if part in at]
            if total not in at or not found:
                continue
            n, mean, sd = (np.array([part[key] for part in found]) for key in ("n", "mean", "sd"))
            pooled = float(n @ mean / n.sum())
            squares = float((n - 1) @ np.nan_to_num(sd) ** 2 + n @ (mean - pooled) ** 2)
            whole = {
                "n": float(n.sum()),
                "mean": pooled,
                "sd": math.sqrt(squares / (n.sum() - 1)) if n.sum() > 1 else math.nan,
                "minimum": min(part["minimum"] for part in found),
                "maximum": max(part["maximum"] for part in found),
            }
            seen = at[total]
            size = max(abs(seen["minimum"]), abs(seen["maximum"]), seen["n"])
            for key, value in whole.items():
                if not (math.isnan(seen[key]) and math.isnan(value)) and not abs(seen[key] - value) <= _SLACK * size:
                    raise InternalError(
                        f"{key} is {seen[key]:.6g}, its parts make {value:.6g}",
                        where=f"{where} / {variable} / {total}",
                        hint="report this with the table of the participants' rows",
                    )
    return summary


def attempted(name: str, title: str, make: Callable[[], Analysis]) -> Analysis:
    """Return an analysis, or why the data do not allow it or its self-test has stopped it; the others go on.

    Parameters
    ----------
    name, title : str
        Those of the analysis.
    make : callable
        Makes it.

    Examples
    --------
    >>> def none():
    ...     raise EstimationError("2 subjects; 3 are needed")
    >>> attempted("volumes", "Volumes", none).left_out
    '2 subjects; 3 are needed'
    """
    try:
        return make()
    except (DataError, EstimationError) as error:
        reason = error.what
    except InternalError as error:
        reason = ": ".join(part for part in (SELF_TEST, error.where, error.what) if part)
    return Analysis(name=name, title=title, results=empty_results(), left_out=reason)


def _first(parts: Sequence[str], limit: int = 3) -> str:
    rest = len(parts) - limit
    return listing(parts) if rest < 2 else f"{listing(parts[:limit])} and {rest} more"


def _number(row: Mapping[Any, Any], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)


def _problem(row: Mapping[str, Any], alpha: float) -> str:
    for key in ("se", "df", "n"):
        if _number(row, key) < 0:
            return f"{key} is {_number(row, key):.6g}"
    p, adjusted = _number(row, "p"), _number(row, "p_adjusted")
    for key, value in (("p", p), ("p_adjusted", adjusted)):
        if not (math.isnan(value) or 0.0 <= value <= 1.0):
            return f"{key} is {value:.6g}"
    if adjusted < p - _SLACK:
        return f"adjusted p {adjusted:.6g} is below p {p:.6g}"
    return _share_problem(row) or _interval_problem(row, alpha)


def _share_problem(row: Mapping[str, Any]) -> str:
    """Say what is wrong with a share in %, whose note tells its counts."""
    if row.get("model") != "share":
        return ""
    counts = re.match(r"(\d+) of (\d+)", str(row.get("note", "")))
    share, n = _number(row, "estimate"), _number(row, "n")
    if counts is None:
        return f"a share of {share:.6g} % without its counts"
    count, total = int(counts[1]), int(counts[2])
    if total != n or not 0 <= count <= total or abs(share - 100.0 * count / total) > 1e-6:
        return f"{count} of {total} is not {share:.6g} % of {n:g}"
    return ""


def _interval_problem(row: Mapping[str, Any], alpha: float) -> str:
    estimate, low, high = (_number(row, key) for key in ("estimate", "ci_low", "ci_high"))
    if math.isnan(low) and math.isnan(high):
        return ""
    low, high = (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)
    if str(row.get("method", "")).startswith(_RESAMPLED):
        # quantiles of replicates need not enclose the estimate where the replicates are skewed
        return "" if low <= high else f"interval runs from {low:.6g} down to {high:.6g}"
    finite = [abs(v) for v in (estimate, low, high) if math.isfinite(v)]
    slack = _SLACK * max(finite, default=0.0)
    if not low - slack <= estimate <= high + slack:
        return f"estimate {estimate:.6g} lies outside its interval {low:.6g} to {high:.6g}"
    p, null = _number(row, "p"), _number(row, "null")
    if math.isnan(p) or math.isnan(null) or abs(p - alpha) < 1e-6:
        return ""
    outside = null < low - slack or null > high + slack
    on_edge = min(abs(null - low), abs(null - high)) <= slack
    if not on_edge and outside != (p < alpha):
        side = "excludes" if outside else "includes"
        return f"p is {p:.6g} but the interval {low:.6g} to {high:.6g} {side} {null:g}"
    return ""


class Ledger:
    """Collect the rows of one analysis, check them, and keep a list of what could not be computed.

    Parameters
    ----------
    name, title : str
        Those of the analysis.
    confidence : float
        Level of all its intervals.

    Examples
    --------
    >>> ledger = Ledger("volumes", "Volumes")
    >>> with ledger.part("ratio"):
    ...     raise EstimationError("2 pairs; 3 are needed")
    >>> analysis = ledger.close()
    >>> analysis.left_out
    'ratio: 2 pairs; 3 are needed'
    """

    __slots__ = ("_missing", "_rows", "confidence", "name", "title")

    def __init__(self, name: str, title: str, *, confidence: float = 0.95) -> None:
        self.name, self.title, self.confidence = name, title, confidence
        self._rows: list[dict[str, Any]] = []
        self._missing: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Return the number of rows so far."""
        return len(self._rows)

    def add(self, **values: Any) -> None:
        """Add a row; keywords are columns of `GROUP_RESULT`, and ``null``, the value that its p value tests.

        Raises
        ------
        InternalError
            If a keyword is no column.
        """
        unknown = set(values) - {*GROUP_RESULT.names, "null"}
        if unknown:
            raise InternalError(f"no column named {', '.join(sorted(unknown))}", where=self.name)
        self._rows.append({"analysis": self.name, **values})

    def add_contrasts(
        self, fit: Mixed, terms: Sequence[str], L: NDArray[np.float64], shared: Mapping[str, Any], note: str = ""
    ) -> None:
        """Add a row for each combination of a mixed model's effects, with Kenward-Roger inference.

        Parameters
        ----------
        fit : Mixed
            The model.
        terms : sequence of str
            Name of each combination.
        L : ndarray
            Weights, shape (len(terms), effects); each combination is tested against zero.
        shared : mapping
            Columns that all rows share.
        note : str
            What else to say; Satterthwaite's inference is added.
        """
        c = fit.contrast(L)
        singular = "no variance between groups is seen" if fit.singular else ""
        for i, term in enumerate(terms):
            other = f"Satterthwaite: SE {c.se[i]:.4g}, df {c.df_satterthwaite[i]:.4g}, p {c.p_satterthwaite[i]:.4g}"
            self.add(
                **shared,
                term=term,
                estimate=c.estimate[i],
                se=c.se_kenward_roger[i],
                ci_low=c.ci_low_kenward_roger[i],
                ci_high=c.ci_high_kenward_roger[i],
                statistic=c.estimate[i] / c.se_kenward_roger[i],
                df=c.df_kenward_roger[i],
                p=c.p_kenward_roger[i],
                n=fit.n,
                null=0.0,
                note="; ".join(part for part in (note, other, singular) if part),
            )

    def skip(self, part: str, reason: str) -> None:
        """Note that a part could not be computed."""
        self._missing.append((part, reason))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run the block; where the data do not allow it, note the reason and drop the rows it had begun.

        Parameters
        ----------
        name : str
            The part, for the list of what was left out.
        """
        before = len(self._rows)
        try:
            yield
        except (DataError, EstimationError, np.linalg.LinAlgError) as error:
            del self._rows[before:]
            self.skip(name, error.what if isinstance(error, DataError | EstimationError) else f"singular: {error}")

    def adjust(self, start: int = 0, *, method: str = "holm") -> None:
        """Adjust the p values of the rows from ``start`` on as one family.

        Parameters
        ----------
        start : int
            First row of the family.
        method : str
            ``holm``, ``bh`` or ``bonferroni``.
        """
        from bids_sodium.stats.comparisons import adjust

        family = self._rows[start:]
        adjusted = adjust([_number(row, "p") for row in family], method)
        for row, value in zip(family, adjusted, strict=True):
            row["p_adjusted"] = float(value)

    def close(self, *, data: Mapping[str, pd.DataFrame] | None = None, text: str = "") -> Analysis:
        """Check the rows and return the analysis; with no row at all it counts as left out.

        Parameters
        ----------
        data : mapping of str to pandas.DataFrame, optional
            What the figures need.
        text : str
            One sentence for the methods section.
        """
        import pandas as pd

        frame = check_rows(_frame(self._rows, ("null",)), confidence=self.confidence).drop(columns="null")
        frames = {key: value for key, value in (data or {}).items() if len(value)}
        if not len(frame) and not frames:
            reason = "; ".join(
                f"{_first(parts[self.name])}: {why}" if any(parts[self.name]) else why
                for why, parts in by_reason((self.name, part, why) for part, why in self._missing)
            )
            return Analysis(
                name=self.name, title=self.title, results=frame, left_out=reason or "no row of the table belongs to it"
            )
        if self._missing:
            frames["left_out"] = pd.DataFrame(self._missing, columns=["part", "reason"])
        return Analysis(name=self.name, title=self.title, results=frame, data=frames, text=text)


def taken(result: object, *names: str) -> dict[str, Any]:
    """Return fields of a result as a row takes them, by default estimate, interval, test and n.

    Parameters
    ----------
    result : object
        A frozen result of `bids_sodium.stats`.
    *names : str
        Fields; those that the result lacks are passed over.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> taken(SimpleNamespace(estimate=1.0, se=0.5, name="x"))
    {'estimate': 1.0, 'se': 0.5}
    """
    wanted = names or ("estimate", "se", "ci_low", "ci_high", "statistic", "df", "p", "n")
    return {name: getattr(result, name) for name in wanted if hasattr(result, name)}


def mean_of(values: NDArray[np.float64], confidence: float) -> dict[str, Any]:
    """Return mean, t interval and test against zero as a row takes them.

    Parameters
    ----------
    values : ndarray
        One value a subject, shape (n,), none missing.
    confidence : float
        Level of the interval.

    Raises
    ------
    EstimationError
        If there are fewer than 2 values or they do not vary.

    Examples
    --------
    >>> round(mean_of(np.array([1.0, 2.0, 3.0]), 0.95)["se"], 4)
    0.5774
    """
    from bids_sodium.stats.regression import ols

    if values.size < 2 or np.ptp(values) == 0:
        raise EstimationError(f"{plural(values.size, 'value')} without spread have no standard error")
    fit = ols(np.ones((values.size, 1)), values, names=("mean",), confidence=confidence)
    return {**taken(fit["mean"]), "n": fit.n}


def by_reason(left_out: Iterable[tuple[str, str, str]]) -> list[tuple[str, dict[str, list[str]]]]:
    """Return each reason with the parts it costs, by analysis; the reason that costs most comes first.

    Parameters
    ----------
    left_out : iterable of (str, str, str)
        Analysis, part and reason.

    Examples
    --------
    >>> by_reason([("a", "x", "few"), ("a", "y", "none"), ("b", "y", "none")])
    [('none', {'a': ['y'], 'b': ['y']}), ('few', {'a': ['x']})]
    """
    found: dict[str, dict[str, list[str]]] = {}
    for analysis, part, reason in left_out:
        found.setdefault(reason, {}).setdefault(analysis, []).append(part)
    return sorted(found.items(), key=lambda entry: -sum(len(parts) for parts in entry[1].values()))


def plural(count: int, noun: str) -> str:
    """Return the count with its noun.

    Examples
    --------
    >>> plural(1, "subject"), plural(2, "subject")
    ('1 subject', '2 subjects')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listing(names: Iterable[object]) -> str:
    """Return names joined by commas.

    Examples
    --------
    >>> listing(["a", "b"])
    'a, b'
    """
    return ", ".join(str(name) for name in names)
