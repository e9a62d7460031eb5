"""Tables 1 and 2 of the MS paper: who took part, clinical scores, volumes and concentrations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import EstimationError
from bids_sodium.group._ms_view import TSC_COVARIATE, Known, MsParams, View, course_pairs, label
from bids_sodium.group.results import Analysis, Ledger, check_pools, listing, mean_of, plural, taken

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["participants", "table1", "table2"]


def participants(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Who entered, and what could not be read."""
    del rng, known
    names = [str(g) for g in dict.fromkeys(view.people["group"])]
    order = [g for g in (p.controls, p.cis, *p.ms_groups) if g in names]
    for group in [*order, *(g for g in names if g not in order)]:
        ledger.add(
            model="count",
            outcome="participants",
            term=group,
            estimate=int((view.people["group"] == group).sum()),
            n=len(view.people),
            note="" if group in order else "takes no part in the comparisons",
        )
        if group not in order:
            count = int((view.people["group"] == group).sum())
            known_as = listing((p.controls, p.cis, *p.ms_groups))
            ledger.skip(
                f"group {group}",
                f"{plural(count, 'participant')} of a group that is none of {known_as}, in no comparison: say what "
                f'it is by ms.group_aliases = [["{group}", "{p.ms_groups[0]}"]]',
            )
    for note in view.notes:
        ledger.skip("participants", note)
    for reason, count in view.excluded["reason"].value_counts().items():
        ledger.skip("participants", f"{count} did not enter: {reason}")
    return ledger.close(
        data={"excluded": view.excluded, "points": view.people.reset_index()},
        text=f"{plural(len(view.people), 'participant')} entered; concentrations are those of the partial-volume "
        f"method {view.method or 'of the table'}.",
    )


def _columns_of_table(view: View, p: MsParams) -> list[str]:
    return [g for g in dict.fromkeys((p.controls, p.cis, "MS", *p.ms_groups)) if view.members(g, p).any()]


def _mean_rows(view: View, p: MsParams, variables: Iterable[str], ledger: Ledger) -> None:
    """Mean with interval of every variable in every group."""
    for variable in variables:
        if variable not in view.people:
            ledger.skip(variable, f"no column {variable}")
            continue
        for group in _columns_of_table(view, p):
            values = view.column(variable)[view.members(group, p)]
            values = values[~np.isnan(values)]
            if not values.size:
                continue
            row: dict[str, Any] = {"subset": group, "outcome": label(variable), "term": "mean", "n": values.size}
            if values.size > 1 and np.ptp(values) > 0:
                mean = mean_of(values, p.confidence)
                row |= {name: mean[name] for name in ("se", "ci_low", "ci_high", "df")}
                row["note"] = f"SD {values.std(ddof=1):.4g}"
            ledger.add(model="mean", estimate=values.mean(), method="mean, t interval", **row)


def _summary(view: View, p: MsParams, variables: Iterable[str]) -> pd.DataFrame:
    """Count, mean, SD, median and range of every variable in every group."""
    import pandas as pd

    rows = []
    for variable in variables:
        for group in _columns_of_table(view, p):
            values = view.column(variable)[view.members(group, p)]
            values = values[~np.isnan(values)]
            if values.size:
                rows.append(
                    {
                        "variable": variable,
                        "label": label(variable),
                        "group": group,
                        "n": values.size,
                        "mean": values.mean(),
                        "sd": values.std(ddof=1) if values.size > 1 else np.nan,
                        "median": np.median(values),
                        "minimum": values.min(),
                        "maximum": values.max(),
                    }
                )
    return pd.DataFrame(rows)


_PRINTED = {
    name: place
    for place, name in enumerate(
        (
            "edss",
            "walking_speed",
            "z9hpt",
            "z_verbal",
            "z_visual",
            "z_pasat",
            "z_sdmt",
            "z_brixton",
            "z_hayling",
            "fatigue",
        )
    )
}
"""The paper's order of the scores."""

_FEMALE, _TREATED = "Female, n (%)", "Disease-modifying therapy, n (%)"
_Signs = dict[str, tuple[str, str]]


def _signs(p: MsParams, table: int) -> _Signs:
    """Return the footnote marks of p < 0.01 and p < 0.05 by the group compared with, as the paper prints them."""
    course = {p.ms_groups[0]: ("‡", "§") if table == 1 else ("¶", "**")} if len(p.ms_groups) > 1 else {}
    return {p.cis: ("*", "†"), **course} if table == 1 else {p.controls: ("*", "§"), p.cis: ("†", "‡"), **course}


def _marks(view: View, variable: str, group: str, p: MsParams, signs: _Signs) -> list[str]:
    """Return the footnote marks of one cell, from the p values of the comparisons."""
    found = []
    for first, second in (("MS", p.controls), ("MS", p.cis), *course_pairs(p)):
        if first != group or second not in signs:
            continue
        strong, weak = signs[second]
        value = view.p_of(variable, first, second, p)
        found += [strong] if value < 0.01 else [weak] if value < 0.05 else []
    return found


def _footnotes(signs: _Signs, used: Iterable[str]) -> str:
    """Return the meaning of the marks that a table uses."""
    seen = set(used)
    words = [
        f"{mark} p<{limit} compared with {group}"
        for group, marks in signs.items()
        for mark, limit in zip(marks, ("0.01", "0.05"), strict=True)
        if mark in seen
    ]
    return "; ".join(words) if words else "no difference reaches p<0.05"


def _cell(values: NDArray[np.float64], digits: int, *, median: bool) -> str:
    """Return mean (SD) or median (range) as a table prints it."""
    if not values.size:
        return ""
    if median:
        return f"{np.median(values):g} ({values.min():g}-{values.max():g})"
    spread = f"{values.std(ddof=1):.{digits}f}" if values.size > 1 else "n/a"
    return f"{values.mean():.{digits}f} ({spread})"


def _layout(
    view: View, p: MsParams, variables: Iterable[str], digits: dict[str, int], signs: _Signs
) -> tuple[list[dict[str, str]], list[str]]:
    """Return rows of a printed table, median (range) for the EDSS, and the footnote marks that they use."""
    rows, used = [], []
    for variable in variables:
        if variable not in view.people:
            continue
        z = variable in p.cognition
        row = {
            "variable": label(variable)
            + (", median (range)" if variable == "edss" else " | n impaired (%)" if z else "")
        }
        for group in _columns_of_table(view, p):
            values = view.column(variable)[view.members(group, p)]
            values = values[~np.isnan(values)]
            marks = _marks(view, variable, group, p, signs)
            text = _cell(values, digits.get(variable, 2), median=variable == "edss")
            used += marks
            if marks:
                text = f"{text} {' '.join(marks)}"
            if z and values.size:
                count = int((values <= p.impaired_z).sum())
                text = f"{text} | {count} ({100 * count / values.size:.0f})"
            row[group] = text
        rows.append(row)
    return rows, used


def _header(view: View, p: MsParams) -> dict[str, str]:
    return {"variable": "n", **{g: str(int(view.members(g, p).sum())) for g in _columns_of_table(view, p)}}


def _count_rows(
    view: View, p: MsParams, ledger: Ledger, *, name: str, words: str, hit: NDArray[np.float64]
) -> dict[str, str]:
    """Add how many have a property in each group; return the printed row."""
    row = {"variable": words}
    for group in _columns_of_table(view, p):
        values = hit[view.members(group, p)]
        values = values[~np.isnan(values)]
        if values.size:
            count, share = int(values.sum()), 100.0 * float(values.mean())
            ledger.add(
                model="share",
                subset=group,
                outcome=words,
                term=name,
                estimate=share,
                n=values.size,
                method="count over n, in %",
                note=f"{count} of {values.size}",
            )
            row[group] = f"{count} ({share:.0f})"
    return row


def table1(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Table 1 of the paper: demographic and clinical characteristics."""
    del rng, known
    import pandas as pd

    measured = sorted((*p.disability, *p.cognition), key=lambda name: _PRINTED.get(name, len(_PRINTED)))
    scores = ("age", "disease_duration", *measured, p.premorbid)
    _mean_rows(view, p, scores, ledger)
    rows = [_header(view, p)]
    if "sexn" in view.people:
        rows.append(_count_rows(view, p, ledger, name="women", words=_FEMALE, hit=view.column("sexn")))
    else:
        ledger.skip("sex", "no column sex that could be read")
    if "dmt" in view.people:
        rows.append(_count_rows(view, p, ledger, name="treated", words=_TREATED, hit=view.column("dmt")))
    signs = _signs(p, 1)
    digits = {"age": 1, "disease_duration": 1, "fatigue": 1, p.premorbid: 1}
    printed, used = _layout(view, p, scores, digits, signs)
    # the paper's order: age, sex, disease duration, therapy, then the scores
    place = {label("age"): 0, _FEMALE: 1, label("disease_duration"): 2, _TREATED: 3}
    rows = [rows[0], *sorted([*printed, *rows[1:]], key=lambda row: place.get(row["variable"], len(place)))]
    for name in p.cognition:
        if name not in view.people:
            continue
        values = view.column(name)
        hit = np.where(np.isnan(values), np.nan, (values <= p.impaired_z).astype(float))
        _count_rows(view, p, ledger, name="impaired", words=f"{label(name)}, impaired n (%)", hit=hit)
        for last, first in course_pairs(p):
            _impaired_row(view, p, ledger, name, hit=hit, pair=(last, first))
    summary = _summary(view, p, scores)
    check_pools(summary, {"MS": p.ms_groups}, where="table1")
    return ledger.close(
        data={"layout": pd.DataFrame(rows).fillna(""), "summary": summary},
        text="Values are mean (SD) unless otherwise indicated. Impaired: z score at or below "
        f"{p.impaired_z:g}. {_footnotes(signs, used)}.",
    )


def _impaired_row(
    view: View, p: MsParams, ledger: Ledger, name: str, *, hit: NDArray[np.float64], pair: tuple[str, str]
) -> None:
    from bids_sodium.stats.comparisons import fisher_exact

    first, second = pair
    with ledger.part(f"{name}, impaired, {first} against {second}"):
        groups = hit[view.members(first, p)], hit[view.members(second, p)]
        empty = [name for name, group in zip(pair, groups, strict=True) if np.isnan(group).all()]
        if empty:
            raise EstimationError(f"{listing(empty)}: no member with a value")
        counts = [[float(np.nansum(group)), float(np.nansum(1.0 - group))] for group in groups]
        (hits, well), (others, others_well) = counts
        sizes = f"{int(hits + well)} {first} and {int(others + others_well)} {second}"
        if hits + others == 0 or well + others_well == 0:
            raise EstimationError(f"{'nobody' if hits + others == 0 else 'everybody'} of {sizes} is impaired")
        test = fisher_exact(counts, confidence=p.confidence)
        ledger.add(
            model="Fisher's exact test",
            subset=f"{first} and {second}",
            outcome=f"{label(name)}, impaired",
            term=f"{first} / {second}",
            estimate=test.odds_ratio,
            **taken(test, "ci_low", "ci_high", "p", "n"),
            method="conditional odds ratio",
        )


def table2(view: View, p: MsParams, rng: np.random.Generator, ledger: Ledger, known: Known) -> Analysis:
    """Table 2 of the paper: brain and lesion volumes, total sodium concentrations."""
    del rng, known
    import pandas as pd

    variables = ("bpf", "gmf", "wmf", "t2lv_ml", "t1lv_ml", *TSC_COVARIATE)
    _mean_rows(view, p, variables, ledger)
    signs = _signs(p, 2)
    printed, used = _layout(view, p, variables, {"bpf": 3, "gmf": 3, "wmf": 3}, signs)
    summary = _summary(view, p, variables)
    check_pools(summary, {"MS": p.ms_groups}, where="table2")
    return ledger.close(
        data={"layout": pd.DataFrame([_header(view, p), *printed]).fillna(""), "summary": summary},
        text=f"Values are mean (SD), concentrations by the partial-volume method {view.method or 'of the table'}. "
        f"{_footnotes(signs, used)}.",
    )
