"""The group page: every analysis as a figure, a table and a sentence, made from the tables on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bids_sodium.bidsio.files import read_json, read_table, write_text
from bids_sodium.core.errors import DataError
from bids_sodium.group.ms import label
from bids_sodium.report import figures, html
from bids_sodium.report._stroke_page import stroke_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["GROUP_INDEX", "group_page"]

GROUP_INDEX = "group_analyses.json"
"""File of the output that lists the analyses in the order of the report."""

_Data: TypeAlias = Mapping[str, "DataFrame"]
_HOURS = "time after onset (h)"
_SHOWN = (
    "model",
    "subset",
    "outcome",
    "term",
    "estimate",
    "ci_low",
    "ci_high",
    "p",
    "p_adjusted",
    "n",
    "r2",
    "method",
    "note",
)
_STUDIES = {"stroke": "Stroke study", "ms": "Multiple sclerosis study"}
_CONTRASTS = {"na": "sodium signal", "tsc": "TSC", "adc": "ADC"}
_TABLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "table1": (("layout", ""),),
    "table2": (("layout", ""),),
    "table3": (("layout", ""),),
    "regressions": (
        ("models", "Final models and what may be wrong with them"),
        ("selection", "How often resamples agree"),
    ),
    "penalised": (("models", "Cross-validated beside in-sample R2"),),
    "imputation": (("missing", "Missing values"),),
    "sites": (("counts", "Site by diagnosis"), ("factors", "Factors that made the sites equal")),
}
"""Tables of an analysis that are shown beside its results, and their headings."""


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
    sections = []
    summary = [_people(output), _left_out(content["LeftOut"])]
    sections.append(html.section("summary", "Summary", *summary))
    if content["Study"] == "stroke":
        sections.append(stroke_section(output))
    for analysis in content["Analyses"]:
        sections.append(_analysis(output, analysis))  # noqa: PERF401 - the order of figures on disk is that of the page
    if methods:
        sections.append(html.section("methods", "Methods", f"<pre>{html.escape(methods)}</pre>"))
    if settings:
        text = f"<details><summary>All settings of this run</summary><pre>{html.escape(settings)}</pre></details>"
        sections.append(html.section("settings", "Settings", text))
    title = _STUDIES[content["Study"]]
    page = html.page(f"{title}: group level", "Sodium MRI: tables, figures and tests", sections)
    return write_text(output / "group.html", page)


def _left_out(entries: Sequence[Mapping[str, str]]) -> str:
    """Return what was left out, one line an analysis that is missing and one count an analysis that lacks parts."""
    whole = [f"{entry['Analysis']}: {_first(entry['Reason'])}" for entry in entries if not entry["Part"]]
    parts = [entry for entry in entries if entry["Part"]]
    boxes = [html.box("Analyses left out, and why", whole)] if whole else []
    if parts:
        rows = "".join(
            f"<li>{html.escape(entry['Analysis'])}, {html.escape(entry['Part'])}: {html.escape(entry['Reason'])}</li>"
            for entry in parts
        )
        boxes.append(
            f"<details><summary>{len(parts)} parts of analyses were left out</summary><ul>{rows}</ul></details>"
        )
    return "".join(boxes)


def _first(reason: str, limit: int = 3) -> str:
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


def _analysis(output: Path, analysis: Mapping[str, Any]) -> tuple[str, str, str]:
    name = analysis["Name"]
    if analysis["LeftOut"]:
        return html.section(name, analysis["Title"], html.box("Left out", [_first(analysis["LeftOut"])]))
    results = read_table(output / f"group_{name}.tsv")
    data = {key: read_table(output / f"group_{name}_{key}.tsv", text=key == "layout") for key in analysis["Data"]}
    parts = [f"<p>{html.escape(analysis['Text'])}</p>" if analysis["Text"] else ""]
    for key, caption, draw in _FIGURES.get(name, ()):
        figure = draw(data, results)
        if figure is None:
            continue
        folder = output / "group_figures"
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("svg", "png"):
            figures.save(figure, folder / f"{name}_{key}.{kind}")
        parts.append(html.figure(f"group_figures/{name}_{key}.svg", caption))
    for key, heading in _TABLES.get(name, ()):
        if key in data:
            shown_table = html.table(data[key].fillna(""))
            parts.append(
                f"<details><summary>{html.escape(heading)}</summary>{shown_table}</details>"
                if len(data[key]) > 25
                else (f"<p>{html.escape(heading)}</p>" if heading else "") + shown_table
            )
    shown = [column for column in _SHOWN if column in results and results[column].notna().any()]
    listed = results[shown].fillna({column: "" for column in ("method", "note", "subset", "term") if column in shown})
    table = html.table(listed)
    parts.append(
        table
        if len(results) <= 25  # a longer table would hide what follows it
        else f"<details><summary>All {len(results)} results (group_{html.escape(name)}.tsv)</summary>{table}</details>"
    )
    return html.section(name, analysis["Title"], *parts)


def _curve(contrast: str, model: str) -> Callable[[_Data, DataFrame], Figure | None]:
    def draw(data: _Data, results: DataFrame) -> Figure | None:
        del results
        if "points" not in data or "curves" not in data:
            return None
        points = data["points"][data["points"]["contrast"] == contrast]
        curves = data["curves"]
        curve = curves[(curves["contrast"] == contrast) & (curves["model"] == model)]
        if points.empty:
            return None
        return figures.curve_with_points(
            points,
            curve.rename(columns={"value": "estimate"}),
            x="t_h",
            y="percent",
            xlabel=_HOURS,
            ylabel=f"{_CONTRASTS[contrast]} change (%)",
        )

    return draw


def _plateau(data: _Data, results: DataFrame) -> Figure | None:
    if "curves" not in data:
        return None
    models = data["curves"]["model"].unique()
    return _curve("adc", str(models[0]))(data, results) if len(models) else None


def _courses(data: _Data, results: DataFrame) -> Figure | None:
    del results
    curves = data.get("curves")
    if curves is None or curves.empty:
        return None
    value = "estimate" if "estimate" in curves else "value"
    named = curves.rename(columns={value: "estimate"}).replace({"contrast": _CONTRASTS})
    return figures.time_courses(
        named, x="t_h", by="roi", panel="contrast", xlabel=_HOURS, ylabel="change against the contralateral side (%)"
    )


def _means(data: _Data, results: DataFrame) -> Figure | None:
    del results
    means = data.get("means")
    if means is None or means.empty:
        return None
    labelled = means.assign(label=[f"{r.contrast}: {r.roi}, {r.t_h:g} h" for r in means.itertuples()])
    return figures.forest(labelled, label="label", xlabel="estimated change (%), 95 % interval")


def _volumes(data: _Data, results: DataFrame) -> Figure | None:
    del results
    points = data.get("points")
    if points is None or points.empty:
        return None
    return figures.paired_volumes(points, columns=("ionic", "cytotoxic", "necrosis"), panel="window")


def _ratios(data: _Data, results: DataFrame) -> Figure | None:
    del data
    rows = results[results["model"] == "ratio"]
    if rows.empty:
        return None
    return figures.forest(
        rows.assign(label=rows["subset"] + ": " + rows["term"]),
        label="label",
        xlabel="ratio of volumes, 95 % interval",
        reference=1.0,
    )


def _forest(xlabel: str, *columns: str, limit: int = 40) -> Callable[[_Data, DataFrame], Figure | None]:
    def draw(data: _Data, results: DataFrame) -> Figure | None:
        del data
        rows = results[results["ci_low"].notna() & results["ci_high"].notna()].head(limit)
        if rows.empty:
            return None
        label = rows[list(columns)].fillna("").astype(str).agg(", ".join, axis=1)
        return figures.forest(rows.assign(label=label), label="label", xlabel=xlabel)

    return draw


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


def _partial(data: _Data, results: DataFrame) -> Figure | None:
    del results
    partial, models = data.get("partial"), data.get("models")
    if partial is None or models is None or partial.empty:
        return None
    kept = models[models["subset"] == models["subset"].iloc[0]]
    pairs = [
        (row.outcome, term.strip())
        for row in kept.itertuples()
        for term in str(row.retained).split(",")
        if term.strip().startswith("tsc_")
    ]
    panels = []
    for outcome, term in pairs[:8]:
        rows = partial[
            (partial["subset"] == kept["subset"].iloc[0]) & (partial["outcome"] == outcome) & (partial["term"] == term)
        ]
        panels.append((f"{label(str(outcome))} on {_TISSUES.get(term, term)}", rows))
    return (
        figures.scatter_panels(panels, x="x", y="y", xlabel="TSC | covariates (mmol/L)", ylabel="outcome | covariates")
        if panels
        else None
    )


def _areas(data: _Data, results: DataFrame) -> Figure | None:
    rows = results[results["term"] == "AUC"]
    return _forest("area under the curve, 95 % interval", "subset", "model")(data, rows)


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
    if results.empty:
        return None
    if "points" in data:  # those of a stroke cohort
        return _forest("change (%), 95 % interval", "subset", "outcome", "term")(data, results)
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
_SODIUM_CURVE = (
    "Change of the sodium signal in the cytotoxic region, scans of one participant joined, with the fitted sigmoid and "
    "its 95 % band (cluster-robust over participants)."
)
_VOLUMES = "Volumes of ionic and cytotoxic oedema in each window and of the final necrosis; bars are medians."
_FIGURES: Mapping[str, tuple[tuple[str, str, _Draw], ...]] = {
    "sigmoid": (
        ("na", _SODIUM_CURVE, _curve("na", "sigmoid, cluster-robust")),
        ("tsc", "The same for total sodium concentration.", _curve("tsc", "sigmoid, cluster-robust")),
    ),
    "adc": (("adc", "Change of the diffusion coefficient in the cytotoxic region with its 95 % band.", _plateau),),
    "courses": (("courses", "Local-linear time courses with 95 % bands from resampled participants.", _courses),),
    "regions_time": (("means", "Estimated marginal means of the mixed model.", _means),),
    "volumes": (
        ("volumes", _VOLUMES, _volumes),
        ("ratios", "Ratios of volumes with 95 % intervals.", _ratios),
    ),
    "correlations": (
        ("rho", "Rank correlations, 95 % intervals.", _forest("Spearman's rho", "subset", "outcome", "term")),
    ),
    "prognosis": (("auc", "Areas under the curve of left-out patients, 95 % intervals.", _areas),),
    "participants": (
        ("tsc", "Total sodium concentration by group; bars are medians, lines quartiles.", _tissue_by_group),
    ),
    "meta": tuple(
        (key, f"{words} by site, combined, and where a new site is expected.", _by_site(words))
        for key, words in (
            ("cgm", "cortical grey matter"),
            ("dgm", "deep grey matter"),
            ("nawm", "white matter (mmol/L"),
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
        ("partial", "Partial regressions of the retained sodium concentrations (all patients).", _partial),
    ),
}
