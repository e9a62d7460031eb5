"""The group page: every analysis as a figure, a table and a sentence, made from the tables on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bids_sodium.bidsio.files import read_json, read_table, write_text
from bids_sodium.core.errors import DataError
from bids_sodium.group.results import READING, by_reason, listing, plural
from bids_sodium.report import figures, html
from bids_sodium.report._group_tables import TABLES, in_words, readable
from bids_sodium.report._stroke_page import stroke_section
from bids_sodium.report._stroke_sections import FIGURES as _STROKE_FIGURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["GROUP_INDEX", "group_page"]

GROUP_INDEX = "group_analyses.json"
"""File of the output that lists the analyses in the order of the report."""

_Data: TypeAlias = Mapping[str, "DataFrame"]
_KINDS = ("svg", "png")
_FOLD = 25
_SHOWN = (
    "model",
    "subset",
    "outcome",
    "term",
    "estimate",
    "se",
    "ci_low",
    "ci_high",
    "p",
    "p_adjusted",
    "n",
    "df",
    "r2",
    "method",
    "note",
)
_STUDIES = {"stroke": "Stroke study", "ms": "Multiple sclerosis study"}


def group_page(output: Path, *, methods: str = "", settings: str = "") -> Path:
    """Write ``group.html`` and the figures of all analyses.

    Parameters
    ----------
    output : Path
        Output dataset with the group tables.
    methods : str
        Methods text.
    settings : str
        Settings of the run, as TOML.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        If the group level has not been run.
    """
    if not (output / GROUP_INDEX).is_file():
        raise DataError("no group results", where=str(output / GROUP_INDEX), hint="run the group level first")
    content = read_json(output / GROUP_INDEX)
    for kind in _KINDS:  # those of an earlier run that this one may not draw again
        for path in (output / "group_figures").glob(f"*.{kind}"):
            path.unlink()
    sections = []
    summary = [_people(output), _left_out(content["LeftOut"])]
    sections.append(html.section("summary", "Summary", *summary))
    if content["Study"] == "stroke":
        sections.append(stroke_section(output))
    drawn = _STROKE_FIGURES if content["Study"] == "stroke" else _FIGURES
    for analysis in content["Analyses"]:
        sections.append(_analysis(output, analysis, drawn))  # noqa: PERF401 - the order of figures on disk is that of the page
    if methods:
        sections.append(html.section("methods", "Methods", f"<pre>{html.escape(methods)}</pre>"))
    if settings:
        text = f"<details><summary>All settings of this run</summary><pre>{html.escape(settings)}</pre></details>"
        sections.append(html.section("settings", "Settings", text))
    title = _STUDIES[content["Study"]]
    page = html.page(f"{title}: group level", "Sodium MRI: tables, figures and tests", sections)
    return write_text(output / "group.html", page)


def _left_out(entries: Sequence[Mapping[str, str]]) -> str:
    """Return what was left out, one line an analysis that is missing, and what other analyses lack by its reason."""
    notes = [
        entry["Reason"] if entry["Part"] == READING else f"{entry['Part']}: {entry['Reason']}"
        for entry in entries
        if entry["Analysis"] == READING and entry["Part"]
    ]
    whole = [f"{entry['Analysis']}: {in_words(_first(entry['Reason']))}" for entry in entries if not entry["Part"]]
    parts = [entry for entry in entries if entry["Part"] and entry["Analysis"] != READING]
    boxes = [html.box("How the tables were read", notes)] if notes else []
    boxes += [html.box("Analyses left out, and why", whole)] if whole else []
    if parts:
        found = by_reason((entry["Analysis"], entry["Part"], entry["Reason"]) for entry in parts)
        rows = "".join(
            f"<li>{html.escape(in_words(reason))}<br><small>"
            + "; ".join(html.escape(in_words(f"{name}: {listing(own)}")) for name, own in where.items())
            + "</small></li>"
            for reason, where in found
        )
        boxes.append(
            f"<details><summary>{plural(len(parts), 'part')} of other analyses left out, for "
            f"{plural(len(found), 'reason')}</summary><ul>{rows}</ul></details>"
        )
    return "".join(boxes)


def _first(reason: str, limit: int = 6) -> str:
    """Return the first of several reasons, and how many more there are."""
    reasons = reason.split("; ")
    rest = len(reasons) - limit
    return "; ".join(reasons[:limit]) + (f"; and {rest} more of the kind" if rest > 0 else "")


def _people(output: Path) -> str:
    if not (output / "group_tsc.tsv").is_file():
        return "<p>Made from what the sites share: cross-products and counts, no rows.</p>"
    table = read_table(output / "group_tsc.tsv")
    people = table.drop_duplicates("participant_id")
    words = f"<p>{len(people)} participants, {len(table)} rows of tissue and region values.</p>"
    if "group" in people and people["group"].notna().any():
        counts = people["group"].value_counts().rename_axis("group").reset_index(name="participants")
        words += html.table(counts)
    return words


def _analysis(
    output: Path, analysis: Mapping[str, Any], drawn: Mapping[str, tuple[tuple[str, str, _Draw], ...]]
) -> tuple[str, str, str]:
    name = analysis["Name"]
    if analysis["LeftOut"]:
        return html.section(name, analysis["Title"], html.box("Left out", [in_words(_first(analysis["LeftOut"]))]))
    results = read_table(output / f"group_{name}.tsv")
    data = {key: read_table(output / f"group_{name}_{key}.tsv", text=key == "layout") for key in analysis["Data"]}
    parts = [f"<p>{html.escape(in_words(analysis['Text']))}</p>" if analysis["Text"] else ""]
    for key, caption, draw in drawn.get(name, ()):
        figure = draw(data, results)
        if figure is None:
            continue
        folder = output / "group_figures"
        folder.mkdir(parents=True, exist_ok=True)
        for kind in _KINDS:
            figures.save(figure, folder / f"{name}_{key}.{kind}")
        parts.append(html.figure(f"group_figures/{name}_{key}.svg", caption))
    for key, heading, columns in TABLES.get(name, ()):
        if key in data:
            chosen = [column for column in columns if column in data[key]]
            parts.append(readable(_filled(data[key][chosen] if chosen else data[key]), heading=heading))
    shown = [column for column in _SHOWN if column in results and results[column].notna().any()]
    printed = "layout" in data  # the rows behind a printed table
    heading = f"All {len(results)} results (group_{name}.tsv)" if printed or len(results) > _FOLD else ""
    parts.append(readable(_filled(results[shown]), heading=heading, folded=printed))
    return html.section(name, analysis["Title"], *parts)


def _filled(frame: DataFrame) -> DataFrame:
    """Return a table whose gaps among words are empty; those among numbers stay gaps."""
    words = frame.select_dtypes(exclude="number").columns
    return frame.fillna(dict.fromkeys(words, ""))


def _by_site(outcome: str) -> Callable[[_Data, DataFrame], Figure | None]:
    def draw(data: _Data, results: DataFrame) -> Figure | None:
        del results
        rows = data.get("forest")
        rows = None if rows is None else rows[rows["outcome"].str.contains(outcome, regex=False)]
        if rows is None or rows.empty:
            return None
        term = rows["term"].iloc[0]
        return figures.forest(
            rows[rows["term"] == term],
            label="site",
            xlabel=f"{rows['outcome'].iloc[0]}: {term}, 95 % interval",
            combined="all sites",
            predicted="a new site (prediction)",
        )

    return draw


def _tissue_by_group(data: _Data, results: DataFrame) -> Figure | None:
    del results
    points = data.get("points")
    if points is None:
        return None
    columns = [column for column in _TISSUES if column in points]
    long = points.melt(id_vars=["participant_id", "group"], value_vars=columns, var_name="tissue", value_name="tsc")
    long = long.assign(tissue=long["tissue"].map(_TISSUES)).dropna(subset=["tsc"])
    if long.empty:
        return None
    order = {name: i for i, name in enumerate(("HC", "CIS", "RRMS", "SPMS"))}
    long = long.sort_values("group", key=lambda column: column.map(lambda name: order.get(name, 99)), kind="stable")
    return figures.group_boxes(long, value="tsc", group="group", panel="tissue", ylabel="TSC (mmol/L)")


def _partial(subset: str) -> Callable[[_Data, DataFrame], Figure | None]:
    def draw(data: _Data, results: DataFrame) -> Figure | None:
        del results
        partial = data.get("partial")
        if partial is None or partial.empty:
            return None
        panels = [
            (f"{in_words(str(outcome))} on {in_words(str(term))}", rows)
            for (outcome, term), rows in partial[partial["subset"] == subset].groupby(["outcome", "term"], sort=False)
        ]
        return (
            figures.scatter_panels(
                panels[:24], x="x", y="y", xlabel="term | others (mmol/L or mL)", ylabel="outcome | others"
            )
            if panels
            else None
        )

    return draw


def _tsc_differences(data: _Data, results: DataFrame) -> Figure | None:
    del data
    within = results["model"].astype(str).str.endswith("+ site").map({True: ", within sites", False: ""})
    return _of_tsc(results.assign(term=results["term"] + within), "term", "difference (mmol/L), 95 % interval")


def _adjusted_means(data: _Data, results: DataFrame) -> Figure | None:
    del data
    means = results[results["term"].astype(str).str.startswith("adjusted mean ")]
    named = means.assign(term=means["term"].str.removeprefix("adjusted mean "))
    return _of_tsc(named, "term", "adjusted mean (mmol/L), 95 % interval", reference=None)


def _by_method(data: _Data, results: DataFrame) -> Figure | None:
    del data
    first = results[results["term"] == results["term"].iloc[0]] if len(results) else results
    named = first.assign(method=first["model"].str.split(", method ").str[-1])
    named = named.sort_values("outcome", kind="stable")  # the methods of one tissue stand together
    return _of_tsc(named, "method", f"{first['term'].iloc[0]} (mmol/L), 95 % interval" if len(first) else "")


def _of_tsc(rows: DataFrame, name: str, xlabel: str, *, reference: float | None = 0.0) -> Figure | None:
    """Show rows of concentrations, one line each: tissue and ``name``."""
    rows = rows[rows["outcome"].astype(str).str.startswith("TSC ") & rows["ci_low"].notna()]
    if rows.empty:
        return None
    tissue = rows["outcome"].str.removeprefix("TSC ").str.removesuffix(" (mmol/L)")
    return figures.forest(rows.assign(label=tissue + ": " + rows[name]), label="label", xlabel=xlabel,
                          reference=reference)  # fmt: skip


def _limits(data: _Data, results: DataFrame) -> Figure | None:
    """Show both intervals of every retained term in units of its least-squares error."""
    del data
    keys = ["subset", "outcome", "term"]
    rows = results[results["ci_low"].notna()].copy()
    if rows.empty:
        return None
    scale = rows[rows["model"] == "OLS"].set_index(keys)["se"]
    se = [scale.get(tuple(key), float("nan")) for key in rows[keys].itertuples(index=False)]
    for column in ("estimate", "ci_low", "ci_high"):
        rows[column] = rows[column] / se
    rows["label"] = [in_words(f"{r.subset}, {r.outcome}: {r.term}, {r.model}") for r in rows.itertuples()]
    return figures.forest(rows.head(60), label="label", xlabel="coefficient (standard errors)")


def _visits(data: _Data, results: DataFrame) -> Figure | None:
    del results
    points = data.get("points")
    if points is None or points.empty:
        return None
    named = points.assign(tissue=points["tissue"].map(_TISSUES))
    return figures.trajectories(
        named, x="time_years", y="tsc_mmol_l", group="group", panel="tissue", xlabel="years", ylabel="TSC (mmol/L)"
    )


def _lesions(data: _Data, results: DataFrame) -> Figure | None:
    del data
    rows = results[~results["term"].isin(["wmf", "gmf"]) & results["ci_low"].notna()]  # a fraction has another scale
    if rows.empty:
        return None
    return figures.forest(rows, label="term", xlabel="difference (mmol/L), 95 % interval")


def _regions(data: _Data, results: DataFrame) -> Figure | None:
    del data
    if results.empty:
        return None
    rows = results[(results["term"] == results["term"].iloc[0]) & (results["model"] == results["model"].iloc[0])]
    rows = rows.reindex(rows["p"].sort_values(kind="stable").index).head(40)
    return figures.forest(
        rows, label="outcome", xlabel=f"{rows['term'].iloc[0]} (mmol/L), 95 % interval; {rows['model'].iloc[0]}"
    )


def _adjustment(data: _Data, results: DataFrame) -> Figure | None:
    del results
    changes = data.get("changes")
    if changes is None or changes.empty:
        return None
    words = changes["added"].str.replace("sexn", "sex").str.replace("_", " ")
    return figures.strips(
        changes.assign(added=words),
        x="change_percent",
        by="added",
        xlabel="change of a retained coefficient (%)",
        band=10.0,
    )


_TISSUES = {
    "tsc_cgm": "CGM",
    "tsc_dgm": "DGM",
    "tsc_gm": "GM",
    "tsc_nawm": "NAWM",
    "tsc_wm": "WM",
    "tsc_t2lesion": "T2 lesions",
    "tsc_t1iso": "T1-isointense",
    "tsc_t1hypo": "T1-hypointense",
}
_Draw: TypeAlias = Callable[[_Data, "DataFrame"], "Figure | None"]
_FIGURES: Mapping[str, tuple[tuple[str, str, _Draw], ...]] = {
    "participants": (
        ("tsc", "Total sodium concentration by group; bars are medians, lines quartiles.", _tissue_by_group),
    ),
    "meta": tuple(
        (key, f"{words.capitalize()} by site, combined, and where a new site is expected.", _by_site(words))
        for key, words in (
            ("cgm", "cortical grey matter"),
            ("dgm", "deep grey matter"),
            ("nawm", "normal-appearing white matter"),
        )
    ),
    "change": (
        ("visits", "Concentrations over time, sessions of one person joined; thick lines join the means.", _visits),
    ),
    "regions": (("differences", "Regions with the smallest p values.", _regions),),
    "adjustment": (
        (
            "changes",
            "How far age, sex and disease duration move the retained coefficients; the band is ±10 %.",
            _adjustment,
        ),
    ),
    "lesions": (
        (
            "differences",
            "Lesions against normal-appearing white matter.",
            _lesions,
        ),
    ),
    "regressions": (
        ("partial", "Partial regressions of the retained terms (all patients).", _partial("patients")),
        ("partial_ms", "Partial regressions of the retained terms (patients with MS).", _partial("MS")),
    ),
    "comparisons": (("tsc", "Differences of concentrations as published, adjusted for GMF or WMF.", _tsc_differences),),
    "joint": (("tsc", "Adjusted mean concentrations of the groups, one model a tissue.", _adjusted_means),),
    "methods": (("tsc", "The main differences by every partial-volume method and concentration of CSF.", _by_method),),
    "bootstrap": (("limits", "Least squares beside the bootstrap, in units of the least-squares error.", _limits),),
}
