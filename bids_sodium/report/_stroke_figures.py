"""The figures of the stroke study, from its tables: images, curves, courses, volumes, single patients, diagnostics.

One colour stands for one thing throughout: ionic oedema blue, cytotoxic oedema vermilion, necrosis green (Okabe-Ito).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.report.figures import COLOURS, _figure, _log_ticks, _plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = [
    "COURSE",
    "HOURS",
    "OF",
    "calibration_and_roc",
    "course",
    "courses_with_schemes",
    "joined_points",
    "patients_curves",
    "patients_images",
    "predicted_volumes",
    "rater_differences",
    "residuals",
    "shades",
    "sodium_and_adc",
    "volume_dynamics",
]

HOURS = "time after onset (h)"
OF = {"ionic": COLOURS["blue"], "cytotoxic": COLOURS["red"], "necrosis": COLOURS["green"]}
COURSE = {
    "ionic": (COLOURS["blue"], "-"),
    "ionic&necrosis": (COLOURS["black"], "-"),
    "ionic-necrosis": (COLOURS["sky"], "--"),
    "necrosis-ionic": (COLOURS["green"], ":"),
    "cytotoxic": (COLOURS["red"], "-"),
    "cytotoxic&necrosis": (COLOURS["purple"], "-"),
    "cytotoxic-necrosis": (COLOURS["orange"], "--"),
    "necrosis-cytotoxic": (COLOURS["green"], "-."),
    "necrosis": (COLOURS["green"], "-"),
}
_MODELS = {
    "sodium": COLOURS["blue"],
    "ADC": COLOURS["red"],
    "sodium + ADC": COLOURS["black"],
    "sodium + ADC + time": COLOURS["green"],
}


def joined_points(axis: Axes, points: DataFrame, y: str) -> None:
    """Draw points, those of a patient joined."""
    for _, rows in points.sort_values("t_h").groupby("participant_id"):
        axis.plot(rows["t_h"], rows[y], color="0.78", linewidth=0.8, zorder=1)
    axis.plot(points["t_h"], points[y], "o", color=COLOURS["black"], markersize=3.5, zorder=3)


def sodium_and_adc(
    sodium: tuple[DataFrame, DataFrame, str], adc: tuple[DataFrame, DataFrame, str] | None, *, last_h: float
) -> Figure:
    """Show the rise of sodium and the fall of ADC in the cytotoxic region with their curves and bands.

    Parameters
    ----------
    sodium, adc : (points, curve, words)
        Points with ``participant_id t_h percent``, a curve with ``t_h value ci_low ci_high``, and what to say of it.
    last_h : float
        Last scan; the curve is dashed beyond it.
    """
    panels = [("A  sodium", sodium, COLOURS["blue"])] + ([("B  ADC", adc, COLOURS["red"])] if adc is not None else [])
    figure, axes = _figure(4.6 * len(panels), 3.6, 1, len(panels), squeeze=False)
    for axis, (title, (points, curve, words), colour) in zip(axes[0], panels, strict=True):
        joined_points(axis, points, "percent")
        inside = curve["t_h"] <= last_h
        axis.fill_between(curve["t_h"], curve["ci_low"], curve["ci_high"], color=colour, alpha=0.15, linewidth=0)
        axis.plot(curve.loc[inside, "t_h"], curve.loc[inside, "value"], color=colour, linewidth=2)
        axis.plot(curve.loc[~inside, "t_h"], curve.loc[~inside, "value"], color=colour, linewidth=1.2, linestyle="--")
        low, high = float(points["percent"].min()), float(points["percent"].max())
        margin = 0.25 * max(high - low, 10.0)
        axis.set_ylim(min(low - margin, -margin), max(high + margin, margin))
        axis.axhline(0.0, color="0.8", linewidth=0.8)
        axis.set_title(title, fontsize=10, loc="left")
        axis.text(0.99, 0.02, words, transform=axis.transAxes, fontsize=7, ha="right", va="bottom", color="0.3")
        axis.set_xlabel(HOURS)
        axis.set_ylabel("change against the other side (%)")
        _plain(axis)
    return figure


def _scheme(axis: Axes, left: str, colour: str) -> None:
    """Draw two overlapping regions and the names of their parts."""
    from matplotlib.patches import Circle

    for x, name, own in ((-0.45, left, colour), (0.45, "necrosis", COLOURS["green"])):
        axis.add_patch(Circle((x, 0.0), 1.0, facecolor=own, alpha=0.25, edgecolor=own, linewidth=1.5))
        axis.text(2.0 * x, 1.12, name, ha="center", fontsize=8, color=own)
    for x, words in ((-0.98, f"{left}\n-necrosis"), (0.0, f"{left}\n&necrosis"), (0.98, f"necrosis\n-{left}")):
        axis.text(x, 0.0, words, ha="center", va="center", fontsize=6.5)
    axis.set_xlim(-1.7, 1.7)
    axis.set_ylim(-1.15, 1.4)
    axis.set_aspect("equal")
    axis.axis("off")


def course(axis: Axes, roi: str, rows: DataFrame) -> None:
    """Draw the course of a region with its band, grey where too few patients support it."""
    colour, style = COURSE.get(roi, (COLOURS["black"], "-"))
    good = rows["supported"].to_numpy(dtype=bool)
    value = rows["value"].to_numpy(dtype=float)
    axis.fill_between(rows["t_h"], rows["ci_low"], rows["ci_high"], where=good, color=colour, alpha=0.10, linewidth=0)
    axis.plot(rows["t_h"], np.where(good, np.nan, value), color="0.7", linestyle=style, linewidth=1.2)
    axis.plot(rows["t_h"], np.where(good, value, np.nan), color=colour, linestyle=style, label=roi)


def courses_with_schemes(curves: DataFrame, regions: Mapping[str, Sequence[str]]) -> Figure:
    """Show what the regions are, and their local-linear courses with bands; grey where fewer than three patients are.

    Parameters
    ----------
    curves : DataFrame
        ``contrast roi t_h value ci_low ci_high supported``.
    regions : mapping
        Regions of each contrast that is shown.
    """
    contrasts = [name for name in regions if (curves["contrast"] == name).any()]
    figure, axes = _figure(4.6 * len(contrasts), 5.4, 2, len(contrasts), squeeze=False, height_ratios=(1.0, 2.4))
    titles = {"na": "sodium signal", "tsc": "TSC", "adc": "ADC"}
    for column, contrast in enumerate(contrasts):
        base = next((name for name in ("cytotoxic", "ionic") if any(name in roi for roi in regions[contrast])), "ionic")
        _scheme(axes[0][column], base, OF[base])
        axis = axes[1][column]
        for roi in regions[contrast]:
            rows = curves[(curves["contrast"] == contrast) & (curves["roi"] == roi)].sort_values("t_h")
            if rows.empty:
                continue
            course(axis, roi, rows)
        axis.axhline(0.0, color="0.8", linewidth=0.8)
        axis.set_title(f"{'CDE'[column]}  {titles.get(contrast, contrast)}", fontsize=10, loc="left")
        axis.set_xlabel(HOURS)
        axis.set_ylabel("change against the other side (%)")
        axis.legend(frameon=False, fontsize=7)
        _plain(axis)
    return figure


def volume_dynamics(volumes: DataFrame) -> Figure:
    """Show every patient's volumes in both windows beside the final necrosis, and the windows against the necrosis.

    Parameters
    ----------
    volumes : DataFrame
        ``window participant_id ionic cytotoxic necrosis``.
    """
    order = volumes.groupby("participant_id")["necrosis"].max().sort_values(ascending=False)
    figure, axes = _figure(9.6, 6.2, 2, 2, height_ratios=(1.0, 1.1))
    grid = axes[0][0].get_gridspec()
    for axis in axes[0]:
        axis.remove()
    top = figure.add_subplot(grid[0, :])
    for i, person in enumerate(order.index):
        rows = volumes[volumes["participant_id"] == person].set_index("window")
        for name in ("cytotoxic", "ionic"):
            values = rows[name].reindex(["early", "late"]).to_numpy(dtype=float)
            top.plot([i - 0.25, i + 0.05], values, "o-", color=OF[name], markersize=3.5, linewidth=1.0)
        top.plot(i + 0.3, order[person], "s", color=OF["necrosis"], markersize=5)
    top.set_xticks(range(len(order)), [str(name).removeprefix("sub-") for name in order.index], fontsize=7)
    _positive_log(top, volumes)
    top.set_xlabel("patient: early and late window, then final necrosis")
    top.set_ylabel("volume (mL)")
    top.set_title("A", fontsize=10, loc="left")
    _plain(top)
    for axis, window, letter in zip(axes[1], ("early", "late"), "BC", strict=True):
        rows = volumes[volumes["window"] == window]
        for name in ("cytotoxic", "ionic"):
            axis.plot(rows[name], rows["necrosis"], "o", color=OF[name], markersize=4, label=name)
        both = rows[["ionic", "cytotoxic", "necrosis"]].to_numpy(dtype=float)
        both = both[np.isfinite(both) & (both > 0)]
        if both.size:
            ends = np.array([both.min() / 1.3, both.max() * 1.3])
            axis.plot(ends, ends, color="0.7", linewidth=0.8)
            axis.set_xscale("log")
            axis.set_yscale("log")
            _log_ticks(axis.xaxis, axis.yaxis)
        axis.set_title(f"{letter}  {window} window", fontsize=10, loc="left")
        axis.set_xlabel("volume of oedema (mL)")
        axis.set_ylabel("final necrosis (mL)")
        axis.legend(frameon=False, fontsize=8)
        _plain(axis)
    handles = [top.plot([], [], mark, color=OF[name], label=name)[0] for name, mark in _MARKS]
    top.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="upper right")
    return figure


_MARKS = (("cytotoxic", "o-"), ("ionic", "o-"), ("necrosis", "s"))


def _positive_log(axis: Axes, volumes: DataFrame) -> None:
    values = volumes[["ionic", "cytotoxic", "necrosis"]].to_numpy(dtype=float)
    if np.nanmin(values, initial=np.inf) > 0:
        axis.set_yscale("log")
        _log_ticks(axis.yaxis)


def patients_curves(sodium: DataFrame, points: DataFrame, adc: DataFrame | None) -> Figure:
    """Show every patient's empirical-Bayes sodium curve, dashed outside the patient's own scans, and the ADC.

    Parameters
    ----------
    sodium : DataFrame
        ``participant_id t_h value inside`` of one model.
    points : DataFrame
        Sodium points, ``participant_id t_h percent``.
    adc : DataFrame or None
        ADC points.
    """
    panels = 1 if adc is None else 2
    figure, axes = _figure(4.8 * panels, 4.0, 1, panels, squeeze=False)
    people = sorted(set(points["participant_id"]))
    tones = shades(len(people))
    axis = axes[0][0]
    for shade, person in zip(tones, people, strict=True):
        rows = sodium[sodium["participant_id"] == person].sort_values("t_h")
        inside = rows["inside"].to_numpy(dtype=bool)
        value = rows["value"].to_numpy(dtype=float)
        axis.plot(rows["t_h"], value, color=shade, linewidth=0.7, linestyle="--", alpha=0.7)
        axis.plot(rows["t_h"], np.where(inside, value, np.nan), color=shade, linewidth=2)
        own = points[points["participant_id"] == person]
        axis.plot(own["t_h"], own["percent"], "o", color=shade, markersize=4)
    axis.set_title("A  sodium, one curve a patient", fontsize=10, loc="left")
    if adc is not None:
        for shade, person in zip(tones, people, strict=True):
            own = adc[adc["participant_id"] == person].sort_values("t_h")
            axes[0][1].plot(own["t_h"], own["percent"], "o-", color=shade, markersize=4, linewidth=1)
        axes[0][1].set_title("B  ADC, scans of a patient joined", fontsize=10, loc="left")
    for panel in axes[0]:
        panel.axhline(0.0, color="0.8", linewidth=0.8)
        panel.set_xlabel(HOURS)
        panel.set_ylabel("change against the other side (%)")
        _plain(panel)
    return figure


def shades(count: int) -> NDArray[np.float64]:
    """Return colours of a perceptually uniform scale, the brightest left out."""
    from matplotlib import colormaps

    return np.asarray(colormaps["viridis"](np.linspace(0.0, 0.88, max(count, 1))))


def residuals(fitted: NDArray[np.floating], left: NDArray[np.floating], title: str) -> Figure:
    """Show residuals of a curve against fitted values, and their quantiles against a normal distribution."""
    from scipy.stats import norm

    figure, (one, two) = _figure(7.4, 3.2, 1, 2)
    one.axhline(0.0, color="0.7", linewidth=0.8)
    one.plot(fitted, left, "o", color=COLOURS["blue"], markersize=4)
    one.set_xlabel("fitted (%)")
    one.set_ylabel("residual (%)")
    one.set_title(title, fontsize=9, loc="left")
    expected = norm.ppf((np.arange(1, left.size + 1) - 0.5) / left.size) * float(np.std(left))
    two.plot(expected, expected, color="0.7", linewidth=0.8)
    two.plot(expected, np.sort(left), "o", color=COLOURS["blue"], markersize=4)
    two.set_xlabel("expected of a normal distribution (%)")
    two.set_ylabel("residual (%)")
    _plain(one)
    _plain(two)
    return figure


def calibration_and_roc(roc: DataFrame, calibration: DataFrame, areas: Mapping[str, str]) -> Figure:
    """Show the receiver operating characteristic and the calibration of every model, patients left out.

    Parameters
    ----------
    roc, calibration : DataFrame
        Curves and bins by ``model``.
    areas : mapping of str to str
        What the legend says of each model.
    """
    figure, (one, two) = _figure(8.4, 4.0, 1, 2)
    for axis in (one, two):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        axis.set_aspect("equal")
        _plain(axis)
    for name, colour in _MODELS.items():
        rows = roc[roc["model"] == name]
        if rows.empty:
            continue
        one.plot(rows["false_positive_rate"], rows["true_positive_rate"], color=colour, label=areas.get(name, name))
        bins = calibration[calibration["model"] == name].sort_values("predicted")
        two.plot(bins["predicted"], bins["observed"], "o-", color=colour, markersize=4, linewidth=1)
    one.set_xlabel("false positive rate")
    one.set_ylabel("true positive rate")
    one.legend(frameon=False, fontsize=7, loc="lower right")
    two.set_xlabel("predicted share of necrosis")
    two.set_ylabel("observed share")
    return figure


def predicted_volumes(patients: DataFrame) -> Figure | None:
    """Show the necrotic volume that the others predict against the one observed, one point a scan."""
    rows = patients.dropna(subset=["predicted_ml", "observed_ml"])
    if rows.empty:
        return None
    figure, axis = _figure(4.4, 4.0)
    top = 1.05 * float(np.nanmax(rows[["predicted_ml", "observed_ml"]].to_numpy(dtype=float)))
    axis.plot([0, top], [0, top], color="0.7", linewidth=0.8)
    for name in ("sodium", "ADC", "sodium + ADC"):
        part = rows[rows["model"] == name]
        axis.plot(part["observed_ml"], part["predicted_ml"], "o", color=_MODELS[name], markersize=4, label=name)
    axis.set_xlabel("necrosis observed in the cells (mL)")
    axis.set_ylabel("predicted from the other patients (mL)")
    axis.legend(frameon=False, fontsize=8)
    _plain(axis)
    return figure


def rater_differences(points: DataFrame) -> Figure:
    """Show differences of raters' volumes against their mean, with bias and limits, one panel a region."""
    labels = list(dict.fromkeys(points["label"]))
    figure, axes = _figure(3.2 * len(labels), 3.0, 1, len(labels), squeeze=False)
    for axis, label in zip(axes[0], labels, strict=True):
        rows = points[points["label"] == label]
        middle = 0.5 * (rows["volume_a_ml"] + rows["volume_b_ml"])
        gap = rows["volume_difference_ml"].to_numpy(dtype=float)
        axis.plot(middle, gap, "o", color=OF.get(str(label), COLOURS["black"]), markersize=4)
        bias, sd = float(np.mean(gap)), float(np.std(gap, ddof=1)) if gap.size > 1 else 0.0
        for level, style in ((bias, "-"), (bias - 1.96 * sd, "--"), (bias + 1.96 * sd, "--")):
            axis.axhline(level, color="0.5", linewidth=0.8, linestyle=style)
        axis.set_title(str(label), fontsize=9)
        axis.set_xlabel("mean volume (mL)")
        _plain(axis)
    axes[0][0].set_ylabel("second rater - first (mL)")
    return figure


def patients_images(rows: Sequence[tuple[str, Sequence[tuple[NDArray[Any], NDArray[Any] | None] | None]]],
                    columns: Sequence[tuple[str, str, tuple[float, float]]]) -> Figure:  # fmt: skip
    """Show one section a patient and contrast, with the outline of the lesion.

    Parameters
    ----------
    rows : sequence of (name, cells)
        Patients; each cell is a section and its lesion mask, left of the patient on the left, or ``None``.
    columns : sequence of (title, colour map, limits)
        Contrasts.
    """
    shape = next((cell[0].shape for _, cells in rows for cell in cells if cell is not None), (1, 1))
    wide = 1.25
    figure, axes = _figure(
        wide * len(columns) + 0.6, wide * shape[1] / shape[0] * len(rows) + 0.4, len(rows), len(columns), squeeze=False
    )
    for line, (name, cells) in zip(axes, rows, strict=True):
        for axis, cell, (_, colours, limits) in zip(line, cells, columns, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
            if cell is None:
                axis.text(0.5, 0.5, "n/a", transform=axis.transAxes, ha="center", va="center", fontsize=7, color="0.5")
                continue
            axis.imshow(cell[0].T, origin="lower", cmap=colours, vmin=limits[0], vmax=limits[1])
            if cell[1] is not None and cell[1].any() and not cell[1].all():
                axis.contour(cell[1].T, levels=[0.5], colors=[COLOURS["orange"]], linewidths=0.7)
        line[0].set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    for axis, (title, _, _) in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=8)
    return figure
