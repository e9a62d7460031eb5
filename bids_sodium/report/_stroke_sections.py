"""The figure beside every table of the stroke study: scan times, changes, courses, plateau, volumes, trials, raters.

`FIGURES` says which figure stands in which section of the group page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from bids_sodium.report import figures
from bids_sodium.report._stroke_figures import COURSE, HOURS, OF, course, joined_points, shades
from bids_sodium.report.figures import COLOURS, _figure, _log_ticks, _plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["FIGURES"]

Data: TypeAlias = Mapping[str, "DataFrame"]
Draw: TypeAlias = Callable[[Data, "DataFrame"], "Figure | None"]
_CONTRASTS = {"na": "sodium signal", "tsc": "TSC", "adc": "ADC"}
_WINDOWS = (("early window", "orange", 0.17), ("late window", "blue", -0.17))
_FAMILIES = {
    "ionic": ("ionic", "ionic&necrosis", "ionic-necrosis", "necrosis-ionic"),
    "cytotoxic": ("cytotoxic", "cytotoxic&necrosis", "cytotoxic-necrosis", "necrosis-cytotoxic", "necrosis"),
}
_OTHER_SIDE = "change against the other side (%)"


def scan_times(data: Data, results: DataFrame) -> Figure | None:
    """Show when every patient was scanned, and the windows."""
    del results
    scans = data.get("scans")
    scans = None if scans is None else scans[scans["t_h"].between(0, 24 * 365 * 2, inclusive="neither")]
    if scans is None or scans.empty:
        return None
    people = list(dict.fromkeys(scans.sort_values("t_h", kind="stable")["participant_id"]))[::-1]
    figure, axis = _figure(6.4, min(0.9 + 0.16 * len(people), 9.0))
    place = {person: i for i, person in enumerate(people)}
    for _, own in scans.sort_values("t_h").groupby("participant_id"):
        axis.plot(own["t_h"], own["participant_id"].map(place), color="0.8", linewidth=0.8, zorder=1)
    marks = (("early", "orange", "o"), ("late", "blue", "s"), ("after", "green", "D"))
    for window, colour, mark in marks:
        rows = scans[scans["window"] == window]
        if len(rows):
            label = {"after": "later"}.get(window, f"{window} window")
            y = rows["participant_id"].map(place)
            axis.plot(rows["t_h"], y, mark, color=COLOURS[colour], markersize=4, label=label)
    axis.set_xscale("log")
    _log_ticks(axis.xaxis)
    few = len(people) <= 40
    axis.set_yticks(
        range(len(people)) if few else [], [str(p).removeprefix("sub-") for p in people] if few else [], fontsize=6
    )
    axis.set_ylabel("patient" if few else f"{len(people)} patients")
    axis.set_xlabel(HOURS)
    axis.legend(frameon=False, fontsize=7, loc="best")
    _plain(axis)
    return figure


def region_changes(data: Data, results: DataFrame) -> Figure | None:
    """Show the mean change of every region in both windows, one panel a contrast."""
    del data
    rows = results[results["ci_low"].notna() & results["ci_high"].notna()]
    panels = list(dict.fromkeys(rows["outcome"]))
    if not panels:
        return None
    regions = [roi for roi in COURSE if (rows["term"] == roi).any()]
    regions += [roi for roi in dict.fromkeys(rows["term"]) if roi not in regions]
    figure, axes = _figure(
        3.1 * len(panels) + 1.0, 0.9 + 0.36 * len(regions), 1, len(panels), squeeze=False, sharey=True
    )
    place = {roi: len(regions) - 1 - i for i, roi in enumerate(regions)}
    for axis, outcome in zip(axes[0], panels, strict=True):
        for window, colour, shift in _WINDOWS:
            part = rows[(rows["outcome"] == outcome) & (rows["subset"] == window)]
            y = part["term"].map(place) + shift
            axis.hlines(y, part["ci_low"], part["ci_high"], color=COLOURS[colour])
            axis.plot(part["estimate"], y, "o", color=COLOURS[colour], markersize=4, label=window)
        axis.axvline(0.0, color="0.6", linewidth=0.8)
        axis.set_xlabel(outcome)
        _plain(axis)
    axes[0][0].set_yticks(range(len(regions)), regions[::-1], fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def curve(contrast: str) -> Draw:
    """Show the scans of a contrast with the cluster-robust sigmoid, dashed beyond the last scan."""

    def draw(data: Data, results: DataFrame) -> Figure | None:
        del results
        if "points" not in data or "curves" not in data:
            return None
        points, curves = data["points"], data["curves"]
        points = points[points["contrast"] == contrast]
        fitted = curves[(curves["contrast"] == contrast) & (curves["model"] == "sigmoid, cluster-robust")]
        return None if points.empty else _with_curve(points, fitted, f"{_CONTRASTS[contrast]} change (%)")

    return draw


def plateau(data: Data, results: DataFrame) -> Figure | None:
    """Show the ADC with its plateau, from the time on that counts as one."""
    del results
    points, curves = data.get("points"), data.get("curves")
    if points is None or curves is None:
        return None
    level = curves[curves["model"] == "plateau"]
    return None if level.empty else _with_curve(points, level, "ADC change (%)")


def _with_curve(points: DataFrame, fitted: DataFrame, ylabel: str) -> Figure:
    figure, axis = _figure(5.2, 3.6)
    joined_points(axis, points, "percent")
    inside = fitted["t_h"] <= float(points["t_h"].max())
    axis.fill_between(fitted["t_h"], fitted["ci_low"], fitted["ci_high"], color=COLOURS["red"], alpha=0.18, linewidth=0)
    for part, style in ((inside, "-"), (~inside, "--")):
        axis.plot(
            fitted.loc[part, "t_h"], fitted.loc[part, "value"], color=COLOURS["red"], linewidth=2, linestyle=style
        )
    axis.axhline(0.0, color="0.8", linewidth=0.8)
    _limit(axis, points["percent"].to_numpy(dtype=float))
    axis.set_xlabel(HOURS)
    axis.set_ylabel(ylabel)
    _plain(axis)
    return figure


def _limit(axis: Axes, values: np.ndarray) -> None:
    """Let the points, not the widest end of a band, say how high a panel is."""
    low, high = min(float(np.nanmin(values)), 0.0), max(float(np.nanmax(values)), 0.0)
    margin = 0.3 * max(high - low, 10.0)
    axis.set_ylim(low - (margin if low < 0 else margin / 2), high + (margin if high > 0 else margin / 4))


def courses(data: Data, results: DataFrame) -> Figure | None:
    """Show the courses of every contrast, regions of ionic and of cytotoxic oedema apart."""
    del results
    curves = data.get("curves")
    if curves is None or curves.empty:
        return None
    contrasts = [name for name in _CONTRASTS if (curves["contrast"] == name).any()]
    figure, axes = _figure(8.8, 2.7 * len(contrasts) + 0.4, len(contrasts), 2, squeeze=False, sharex=True, sharey="row")
    for line, contrast in zip(axes, contrasts, strict=True):
        every = []
        for axis, regions in zip(line, _FAMILIES.values(), strict=True):
            for roi in regions:
                rows = curves[(curves["contrast"] == contrast) & (curves["roi"] == roi)].sort_values("t_h")
                if rows.empty:
                    continue
                course(axis, roi, rows)
                every += [rows["value"].to_numpy(dtype=float)]
            axis.axhline(0.0, color="0.8", linewidth=0.8)
            _plain(axis)
        if every:
            _limit(line[0], np.concatenate(every))
        line[0].set_ylabel(f"{_CONTRASTS[contrast]} change (%)")
    for axis in axes[-1]:
        axis.set_xlabel(HOURS)
    for axis in axes[0]:
        handles, labels = axis.get_legend_handles_labels()
        place: Literal["outside upper left", "outside upper right"] = (
            "outside upper left" if axis is axes[0][0] else "outside upper right"
        )
        figure.legend(handles, labels, loc=place, ncols=3, frameon=False, fontsize=7)
    return figure


def marginal_means(data: Data, results: DataFrame) -> Figure | None:
    """Show marginal means of the mixed model, one panel a contrast, one colour a time."""
    del results
    means = data.get("means")
    if means is None or means.empty:
        return None
    panels = list(dict.fromkeys(means["contrast"]))
    hours = sorted(set(means["t_h"]))
    most = int(means.groupby("contrast")["roi"].nunique().max())
    figure, axes = _figure(3.3 * len(panels) + 0.6, 1.0 + 0.4 * most, 1, len(panels), squeeze=False)
    for axis, contrast in zip(axes[0], panels, strict=True):
        part = means[means["contrast"] == contrast]
        regions = list(dict.fromkeys(part["roi"]))
        place = {roi: len(regions) - 1 - i for i, roi in enumerate(regions)}
        for shade, shift, hour in zip(shades(len(hours)), _shifts(len(hours)), hours, strict=True):
            rows = part[part["t_h"] == hour]
            y = rows["roi"].map(place) + shift
            axis.hlines(y, rows["ci_low"], rows["ci_high"], color=shade)
            axis.plot(rows["estimate"], y, "o", color=shade, markersize=4, label=f"{hour:g} h")
        axis.axvline(0.0, color="0.6", linewidth=0.8)
        axis.set_yticks(range(len(regions)), regions[::-1], fontsize=7)
        axis.set_xlabel(f"{_CONTRASTS.get(str(contrast), str(contrast))} change (%)")
        _plain(axis)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(hours), frameon=False, fontsize=8)
    return figure


def _shifts(count: int) -> Sequence[float]:
    return [float(v) for v in np.linspace(0.17, -0.17, count)] if count > 1 else [0.0]


def volumes(data: Data, results: DataFrame) -> Figure | None:
    """Show volumes joined within patients, one panel a window."""
    del results
    points = data.get("points")
    if points is None or points.empty:
        return None
    return figures.paired_volumes(points, columns=("ionic", "cytotoxic", "necrosis"), panel="window")


def ratios(model: str, xlabel: str) -> Draw:
    """Show ratios of volumes with their limits."""

    def draw(data: Data, results: DataFrame) -> Figure | None:
        del data
        rows = results[results["model"] == model]
        if rows.empty:
            return None
        named = rows.assign(label=rows["subset"] + ": " + rows["term"])
        return figures.forest(named, label="label", xlabel=xlabel, reference=1.0)

    return draw


def correlations(data: Data, results: DataFrame) -> Figure | None:
    """Show rank correlations between subjects and correlations within them."""
    del data
    rows = results[results["ci_low"].notna() & results["ci_high"].notna()]
    if rows.empty:
        return None
    within = rows["model"] == "repeated-measures correlation"
    label = rows["term"] + " and " + rows["outcome"] + within.map({True: ", within patients", False: ""})
    return figures.forest(rows.assign(label=label), label="label", xlabel="correlation, 95 % interval")


def areas(data: Data, results: DataFrame) -> Figure | None:
    """Show areas under the curve of left-out patients."""
    del data
    rows = results[(results["term"] == "AUC") & results["ci_low"].notna()]
    if rows.empty:
        return None
    named = rows.assign(label=rows["subset"] + ", " + rows["model"])
    return figures.forest(named, label="label", xlabel="area under the curve, 95 % interval", reference=0.5)


def overlaps(data: Data, results: DataFrame) -> Figure | None:
    """Show overlap and distance of raters' masks, one point a scan and pair of raters."""
    del results
    points = data.get("points")
    if points is None or points.empty:
        return None
    labels = list(dict.fromkeys(points["label"]))
    figure, axes = _figure(7.2, 2.8, 1, 2)
    rng = np.random.default_rng(0)
    for axis, column, words in zip(
        axes, ("dice", "hausdorff95_mm"), ("Dice overlap", "95 % Hausdorff distance (mm)"), strict=True
    ):
        for i, label in enumerate(labels):
            values = points.loc[points["label"] == label, column].dropna().to_numpy(dtype=float)
            if values.size == 0:
                continue
            x = i + rng.uniform(-0.12, 0.12, values.size)
            axis.plot(x, values, "o", color=OF.get(str(label), COLOURS["black"]), markersize=4, alpha=0.8)
            axis.plot([i - 0.25, i + 0.25], [np.median(values)] * 2, color=COLOURS["black"], linewidth=2)
        axis.set_xticks(range(len(labels)), labels, fontsize=8)
        axis.set_xlim(-0.5, len(labels) - 0.5)
        axis.set_ylabel(words)
        axis.set_ylim(0.0, 1.0 if column == "dice" else None)
        _plain(axis)
    return figure


def trial_sizes(data: Data, results: DataFrame) -> Figure | None:
    """Show patients in each arm at the lowest power that was asked for, one colour an effect, one panel a contrast."""
    del data
    found = results[results["estimate"].notna()]
    if found.empty:
        return None
    effect, power = found["term"].str.extract(r"^(.*), power (.*)$").to_numpy().T
    rows = found.assign(effect=effect, power=power)
    rows = rows[rows["power"] == rows["power"].iloc[0]]
    panels = list(dict.fromkeys(rows["outcome"]))
    rows = rows.assign(region=rows["subset"].str.replace(", one scan a patient", ""))
    effects = list(dict.fromkeys(rows["effect"]))
    most = int(rows.groupby("outcome")["region"].nunique().max())
    figure, axes = _figure(3.3 * len(panels) + 0.6, 1.1 + 0.4 * most, 1, len(panels), squeeze=False)
    for axis, outcome in zip(axes[0], panels, strict=True):
        part = rows[rows["outcome"] == outcome]
        regions = list(dict.fromkeys(part["region"]))
        place = {region: len(regions) - 1 - i for i, region in enumerate(regions)}
        for shade, shift, name in zip(shades(len(effects)), _shifts(len(effects)), effects, strict=True):
            own = part[part["effect"] == name]
            y = own["region"].map(place) + shift
            axis.hlines(y, own["ci_low"], own["ci_high"], color=shade)
            axis.plot(own["estimate"], y, "o", color=shade, markersize=4, label=name)
        axis.set_xscale("log")
        _log_ticks(axis.xaxis)
        axis.set_yticks(range(len(regions)), regions[::-1], fontsize=7)
        axis.set_title(outcome, fontsize=9)
        axis.set_xlabel(f"patients in each arm, power {rows['power'].iloc[0]}", fontsize=8)
        _plain(axis)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(effects), frameon=False, fontsize=8)
    return figure


FIGURES: Mapping[str, tuple[tuple[str, str, Draw], ...]] = {
    "exclusions": (("times", "When every patient was scanned; scans of one patient are joined.", scan_times),),
    "regions": (
        ("differences", "Mean change of every region in both windows, 95 % intervals over patients.", region_changes),
    ),
    "sigmoid": (
        (
            "na",
            (
                "Change of the sodium signal in the cytotoxic region, scans of one patient joined, with the fitted "
                "sigmoid and its 95 % band (cluster-robust over patients), dashed beyond the last scan."
            ),
            curve("na"),
        ),
        ("tsc", "The same for total sodium concentration.", curve("tsc")),
    ),
    "adc": (
        (
            "adc",
            (
                "Change of the diffusion coefficient in the cytotoxic region, scans of one patient joined, with its "
                "plateau and the 95 % interval of that."
            ),
            plateau,
        ),
    ),
    "courses": (
        (
            "courses",
            (
                "Local-linear time courses with 95 % bands over resampled patients; grey where fewer than three "
                "patients lie within a bandwidth."
            ),
            courses,
        ),
    ),
    "regions_time": (("means", "Estimated marginal means of the mixed model, 95 % intervals.", marginal_means),),
    "volumes": (
        (
            "volumes",
            "Volumes of ionic and cytotoxic oedema in each window and of the final necrosis; bars are medians.",
            volumes,
        ),
        ("ratios", "Ratios of volumes with 95 % intervals.", ratios("ratio", "ratio of volumes, 95 % interval")),
    ),
    "prediction": (
        (
            "ratios",
            "Oedema against the final necrosis: geometric mean of the ratio and where 95 % of patients lie.",
            ratios("ratio to the necrosis", "ratio of volumes, 95 % limits of agreement"),
        ),
    ),
    "correlations": (
        ("rho", "Rank correlations of one value a patient, and correlations within patients.", correlations),
    ),
    "prognosis": (("auc", "Areas under the curve of left-out patients, 95 % intervals.", areas),),
    "agreement": (("overlap", "Raters' masks: overlap and distance of outlines; bars are medians.", overlaps),),
    "planning": (
        (
            "sizes",
            "Patients that each arm of a trial needs, with the interval that the spread leaves open.",
            trial_sizes,
        ),
    ),
}
"""Figures of every section: name of the file, caption, and what draws it."""
