"""Every figure: data in, `matplotlib` figure out; matplotlib's only door.

Colours are the Okabe-Ito set, which stays apart for colour-blind readers; maps use perceptually uniform scales.
Axial sections are in neurological order, the left of the patient on the left of the picture, as the letters at the
edges say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = [
    "COLOURS",
    "calibration_line",
    "curve_with_points",
    "forest",
    "group_boxes",
    "montage",
    "paired_volumes",
    "point_spread_profile",
    "save",
    "scatter_panels",
    "strips",
    "time_courses",
    "tissue_dots",
    "trajectories",
]

COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#222222",
}
_CYCLE = [COLOURS[name] for name in ("blue", "red", "green", "orange", "purple", "sky", "black")]
_DISPLAY_MM = 1.5


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **kwargs)


def _plain(axis: Axes) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _log_ticks(*sides: Axis) -> None:
    """Label logarithmic axes with plain numbers, at 1, 2 and 5 where they span no more than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for side in sides:
        low, high = side.get_view_interval()
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high <= 100.0 * low else (1.0,)))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())


def _axial(volume: Volume) -> tuple[NDArray[np.generic], tuple[float, float, float]]:
    """Return the data with axes turned to R→L, P→A, I→S as nearly as the grid allows, and voxel sizes."""
    direction = volume.grid.affine[:3, :3] / np.array(volume.grid.voxel_mm)
    order = [int(np.argmax(np.abs(direction[axis]))) for axis in range(3)]
    if sorted(order) != [0, 1, 2]:
        order = [0, 1, 2]
    data = np.transpose(np.asarray(volume.data), order)
    for axis in range(3):
        if direction[axis, order[axis]] < 0:
            data = np.flip(data, axis)
    x, y, z = (volume.grid.voxel_mm[i] for i in order)
    return data, (x, y, z)


def _frame(plane: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the box around what is seen in any section, a little larger."""
    box = []
    for axis in (0, 1):
        places = np.flatnonzero(plane.any(axis=1 - axis))
        first, last = (int(places[0]), int(places[-1]) + 1) if places.size else (0, plane.shape[axis])
        margin = max(1, round(0.03 * (last - first)))
        box.append(slice(max(0, first - margin), min(plane.shape[axis], last + margin)))
    return box[0], box[1]


def _extent(side: slice) -> int:
    return int(side.stop - side.start)


def montage(
    rows: Sequence[tuple[str, Volume]],
    *,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    colours: str = "gray",
    outlines: Mapping[str, Volume] | None = None,
    title: str = "",
    n_sections: int = 7,
    focus: Volume | None = None,
) -> Figure:
    """Show axial sections of images on one grid, one image a row.

    Parameters
    ----------
    rows : sequence of (str, Volume)
        Label and image.
    unit : str
        Unit beside the colour bar.
    limits : (float, float), optional
        Values of black and white, by default 0 and the 99.7th percentile of each row.
    colours : str
        Colour map.
    outlines : mapping of str to Volume, optional
        Masks on the same grid, drawn as contours and named in the legend.
    title : str
        Heading.
    n_sections : int
        Sections shown.
    focus : Volume, optional
        Mask that sections are spread over, by default everything above 15 % of the maximum.

    Returns
    -------
    Figure
        The picture.
    """
    first, size = _axial(rows[0][1])
    signal = np.abs(np.nan_to_num(np.asarray(first, dtype=np.float64)))
    signal = signal > 0.1 * np.percentile(signal, 99.7)
    seen = np.asarray(_axial(focus)[0]) > 0 if focus is not None else signal
    levels = np.flatnonzero(seen.any(axis=(0, 1)))
    low, high = (int(levels[0]), int(levels[-1])) if levels.size else (0, first.shape[2] - 1)
    margin = 0.08 * (high - low)  # the outermost sections show next to nothing
    sections = np.unique(np.linspace(low + margin, high - margin, n_sections).round().astype(int))
    frame = _frame((seen | signal)[:, :, sections].any(axis=2))
    aspect = size[1] / size[0]
    cell = 1.55
    figure, axes = _figure(
        cell * len(sections) + 1.1,
        cell * aspect * _extent(frame[1]) / _extent(frame[0]) * len(rows) + 0.45,
        len(rows),
        len(sections),
        squeeze=False,
    )
    palette = _CYCLE[1:] + _CYCLE[:1]
    for line, (label, volume) in zip(axes, rows, strict=True):
        data = np.asarray(_axial(volume)[0], dtype=np.float64)
        shown = limits if limits is not None else (0.0, float(np.nanpercentile(data, 99.7)) or 1.0)
        picture = None
        for column, (axis, z) in enumerate(zip(line, sections, strict=True)):
            picture = axis.imshow(
                data[*frame, z].T,
                origin="lower",
                cmap=colours,
                vmin=shown[0],
                vmax=shown[1],
                aspect=aspect,
                interpolation="nearest",
            )
            for colour, mask in zip(palette, (outlines or {}).values(), strict=False):
                inside = np.asarray(_axial(mask)[0])[*frame, z].T > 0.5
                if inside.any() and not inside.all():
                    axis.contour(inside, levels=[0.5], colors=[colour], linewidths=0.8)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(label, fontsize=8)
                axis.text(0.02, 0.5, "L", transform=axis.transAxes, color="white", fontsize=7, va="center")
                axis.text(0.98, 0.5, "R", transform=axis.transAxes, color="white", fontsize=7, va="center", ha="right")
        if picture is not None:
            bar = figure.colorbar(picture, ax=list(line), shrink=0.85, pad=0.01)
            bar.ax.tick_params(labelsize=7)
            bar.set_label(unit or volume.unit, fontsize=8)
    if outlines:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=colour, label=name) for colour, name in zip(palette, outlines, strict=False)]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8, frameon=False
        )
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def point_spread_profile(profiles: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating], float]]) -> Figure:
    """Show the point spread of every tissue: name → (radius in mm, profile, FWHM in mm)."""
    figure, axis = _figure(5.2, 3.0)
    for colour, (name, (radius, profile, fwhm)) in zip(_CYCLE, profiles.items(), strict=False):
        axis.plot(radius, profile, color=colour, label=f"{name}: FWHM {fwhm:.2f} mm")
    axis.axhline(0.0, color="0.7", linewidth=0.8)
    axis.set_xlabel("distance (mm)")
    axis.set_ylabel("point spread (1)")
    axis.set_xlim(0, 20)
    axis.legend(frameon=False, fontsize=8)
    _plain(axis)
    return figure


def calibration_line(
    signal: NDArray[np.floating], se: NDArray[np.floating], mmol_l: NDArray[np.floating], slope: float, slope_se: float
) -> Figure:
    """Show vial signals against their concentrations, with the line through zero and its 95 % band."""
    figure, axis = _figure(4.2, 3.0)
    x = np.linspace(0, 1.15 * float(np.max(signal)), 50)
    axis.fill_between(
        x, (slope - 1.96 * slope_se) * x, (slope + 1.96 * slope_se) * x, color=COLOURS["sky"], alpha=0.3, linewidth=0
    )
    axis.plot(x, slope * x, color=COLOURS["blue"], label=f"{slope:.4g} ± {slope_se:.2g} mmol/L per a.u.")
    axis.errorbar(signal, mmol_l, xerr=1.96 * np.asarray(se), fmt="o", color=COLOURS["red"], capsize=3, label="vials")
    axis.set_xlabel("signal after noise floor (a.u.)")
    axis.set_ylabel("sodium concentration (mmol/L)")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)
    _plain(axis)
    return figure


def tissue_dots(table: DataFrame) -> Figure:
    """Show TSC with its 95 % interval by tissue and method, CSF on an axis of its own."""
    brain = table[table["tissue"] != "CSF"]
    figure, (left, right) = _figure(8.2, 3.2, 1, 2, width_ratios=(5, 1))
    methods = list(dict.fromkeys(table["method"]))
    for axis, part in ((left, brain), (right, table[table["tissue"] == "CSF"])):
        tissues = list(dict.fromkeys(part["tissue"]))
        for shift, method in enumerate(methods):
            rows = part[part["method"] == method].set_index("tissue").reindex(tissues)
            x = np.arange(len(tissues)) + (shift - (len(methods) - 1) / 2) * 0.8 / max(5, len(methods))
            axis.errorbar(
                x,
                rows["tsc_mmol_l"],
                yerr=1.96 * rows["tsc_se"],
                fmt="os^Dv"[shift // len(_CYCLE)],
                markersize=4,
                capsize=2,
                color=_CYCLE[shift % len(_CYCLE)],
                label=method,
            )
        axis.set_xticks(np.arange(len(tissues)), tissues)
        axis.margins(x=0.15)
        _plain(axis)
    left.set_ylabel("total sodium concentration (mmol/L)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)), fontsize=8, frameon=False)
    return figure


def curve_with_points(
    points: DataFrame,
    curve: DataFrame | None,
    *,
    x: str,
    y: str,
    xlabel: str,
    ylabel: str,
    subject: str = "participant_id",
) -> Figure:
    """Show points joined within participants, and a fitted curve with its band.

    ``curve`` has the columns ``x``'s name, ``estimate`` (or ``fit``), ``ci_low`` and ``ci_high``.
    """
    figure, axis = _figure(5.6, 3.6)
    if subject in points:
        for _, rows in points.sort_values(x).groupby(subject):
            axis.plot(rows[x], rows[y], color="0.75", linewidth=0.8, zorder=1)
    axis.plot(points[x], points[y], "o", color=COLOURS["blue"], markersize=4, zorder=3)
    if curve is not None and len(curve):
        axis.fill_between(curve[x], curve["ci_low"], curve["ci_high"], color=COLOURS["red"], alpha=0.18, linewidth=0)
        axis.plot(curve[x], curve["estimate"], color=COLOURS["red"], linewidth=2)
    axis.axhline(0.0, color="0.8", linewidth=0.8)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    _plain(axis)
    return figure


def time_courses(curves: DataFrame, *, x: str, by: str, xlabel: str, ylabel: str, panel: str | None = None) -> Figure:
    """Show smooth courses with bands, one colour a level of ``by``, one panel a level of ``panel``."""
    panels = list(dict.fromkeys(curves[panel])) if panel else [""]
    levels = list(dict.fromkeys(curves[by]))
    figure, axes = _figure(4.6 * len(panels), 3.6, 1, len(panels), squeeze=False)
    for axis, name in zip(axes[0], panels, strict=True):
        part = curves if panel is None else curves[curves[panel] == name]
        for i, level in enumerate(levels):
            rows = part[part[by] == level].sort_values(x)
            if rows.empty:
                continue
            colour, style = _CYCLE[i % len(_CYCLE)], ("-", "--", ":")[i // len(_CYCLE) % 3]
            axis.fill_between(rows[x], rows["ci_low"], rows["ci_high"], color=colour, alpha=0.12, linewidth=0)
            axis.plot(rows[x], rows["estimate"], color=colour, linestyle=style, label=str(level))
        axis.axhline(0.0, color="0.8", linewidth=0.8)
        axis.set_title(str(name), fontsize=9)
        axis.set_xlabel(xlabel)
        _plain(axis)
    axes[0][0].set_ylabel(ylabel)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))), fontsize=7, frameon=False
    )
    return figure


def paired_volumes(table: DataFrame, *, columns: Sequence[str], panel: str, ylabel: str = "volume (mL)") -> Figure:
    """Show volumes of several regions joined within participants, one panel a time window."""
    panels = list(dict.fromkeys(table[panel]))
    figure, axes = _figure(3.4 * len(panels), 3.4, 1, len(panels), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], panels, strict=True):
        part = table[table[panel] == name]
        values = part[list(columns)].to_numpy(dtype=float)
        for row in values:
            axis.plot(np.arange(len(columns)), row, "-", color="0.8", linewidth=0.8)
        for i in range(len(columns)):
            axis.plot(np.full(len(values), i), values[:, i], "o", color=_CYCLE[i], markersize=4)
            finite = values[:, i][np.isfinite(values[:, i])]
            if finite.size:
                axis.plot([i - 0.25, i + 0.25], [np.median(finite)] * 2, color=COLOURS["black"], linewidth=2)
            axis.annotate(
                f"n={finite.size}",
                (i, 0.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                fontsize=7,
                textcoords="offset points",
                ha="center",
            )
        axis.set_xticks(np.arange(len(columns)), columns, fontsize=8)
        axis.set_title(str(name), fontsize=9)
        if np.nanmin(values, initial=np.inf) > 0:
            axis.set_yscale("log")
            _log_ticks(axis.yaxis)
        _plain(axis)
    axes[0][0].set_ylabel(ylabel)
    return figure


def group_boxes(table: DataFrame, *, value: str, group: str, panel: str, ylabel: str, columns: int = 4) -> Figure:
    """Show every participant's value by group with medians and quartiles, one panel a tissue."""
    panels, groups = list(dict.fromkeys(table[panel])), list(dict.fromkeys(table[group]))
    rows = -(-len(panels) // columns)
    width = min(columns, len(panels))
    figure, axes = _figure(2.5 * width, 2.7 * rows, rows, width, squeeze=False)
    rng = np.random.default_rng(0)
    for axis, name in zip(axes.flat, panels, strict=False):
        here = set(table.loc[table[panel] == name, group])
        shown = [level for level in groups if level in here]
        for i, level in enumerate(shown):
            values = table[(table[panel] == name) & (table[group] == level)][value].dropna().to_numpy(dtype=float)
            if values.size == 0:
                continue
            axis.plot(
                i + rng.uniform(-0.14, 0.14, values.size),
                values,
                ".",
                color=_CYCLE[groups.index(level) % len(_CYCLE)],
                alpha=0.6,
                markersize=4,
            )
            low, middle, high = np.percentile(values, [25, 50, 75])
            axis.plot([i - 0.28, i + 0.28], [middle, middle], color=COLOURS["black"], linewidth=1.8)
            axis.plot([i, i], [low, high], color=COLOURS["black"], linewidth=1)
        axis.set_xticks(np.arange(len(shown)), shown, fontsize=7)
        axis.set_title(str(name), fontsize=9)
        _plain(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for line in axes:
        line[0].set_ylabel(ylabel, fontsize=8)
    return figure


def forest(
    rows: DataFrame,
    *,
    label: str,
    xlabel: str,
    reference: float | None = 0.0,
    combined: str = "",
    predicted: str = "",
) -> Figure:
    """Show estimates with their intervals, one line a row of results.

    ``reference`` is the value of no effect, ``None`` where there is none; ``combined`` names the line of a
    meta-analysis, ``predicted`` that of its prediction interval.
    """
    figure, axis = _figure(6.4, 0.6 + 0.26 * max(1, len(rows)))
    y = np.arange(len(rows))[::-1]
    estimate = rows["estimate"].to_numpy(dtype=float)
    low, high = rows["ci_low"].to_numpy(dtype=float), rows["ci_high"].to_numpy(dtype=float)
    finite = estimate[np.isfinite(estimate)]
    if reference is not None:  # an interval without end stops where the picture does
        reach = 4 * float(np.max(np.abs(finite - reference))) + 1e-12 if finite.size else 1.0
        low, high = (
            np.clip(low, reference - reach, reference + reach),
            np.clip(high, reference - reach, reference + reach),
        )
    names = rows[label].astype(str).to_numpy()
    for kind, colour, marker, style in (
        ((names != combined) & (names != predicted), "blue", "o", "-"),
        (names == combined, "red", "D", "-"),
        (names == predicted, "red", "", ":"),
    ):
        axis.hlines(y[kind], low[kind], high[kind], color=COLOURS[colour], linestyles=style)
        axis.plot(estimate[kind], y[kind], linestyle="", marker=marker, color=COLOURS[colour], markersize=4)
    if reference is not None:
        axis.axvline(reference, color="0.6", linewidth=0.8)
    axis.set_yticks(y, names, fontsize=7)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel(xlabel)
    _plain(axis)
    return figure


def trajectories(
    table: DataFrame,
    *,
    x: str,
    y: str,
    group: str,
    panel: str,
    xlabel: str,
    ylabel: str,
    subject: str = "participant_id",
    columns: int = 3,
) -> Figure:
    """Show every participant's line by group with the lines of the group means, one panel a tissue."""
    panels, groups = list(dict.fromkeys(table[panel])), list(dict.fromkeys(table[group]))
    width, rows = min(columns, len(panels)), -(-len(panels) // columns)
    figure, axes = _figure(3.2 * width, 2.7 * rows, rows, width, squeeze=False)
    for axis, name in zip(axes.flat, panels, strict=False):
        part = table[table[panel] == name].sort_values(x)
        for colour, level in zip(_CYCLE, groups, strict=False):
            of_group = part[part[group] == level]
            for _, line in of_group.groupby(subject):
                axis.plot(line[x], line[y], color=colour, linewidth=0.5, alpha=0.25)
            # times are those of a protocol, met within a few weeks
            mean = of_group.groupby((of_group[x] * 4).round() / 4)[y].agg(["mean", "size"])
            mean = mean[mean["size"] >= 3]
            axis.plot(mean.index, mean["mean"], "o-", color=colour, linewidth=2, markersize=4, label=str(level))
        axis.set_title(str(name), fontsize=9)
        axis.set_xlabel(xlabel, fontsize=8)
        _plain(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for line_of in axes:
        line_of[0].set_ylabel(ylabel, fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), fontsize=8, frameon=False)
    return figure


def strips(table: DataFrame, *, x: str, by: str, xlabel: str, band: float) -> Figure:
    """Show values as points, one line a level, with a band about zero that counts as small."""
    levels = list(dict.fromkeys(table[by]))[::-1]
    figure, axis = _figure(6.4, 0.9 + 0.4 * len(levels))
    axis.axvspan(-band, band, color=COLOURS["sky"], alpha=0.2, linewidth=0)
    axis.axvline(0.0, color="0.6", linewidth=0.8)
    rng = np.random.default_rng(0)
    for i, level in enumerate(levels):
        values = table[table[by] == level][x].to_numpy(dtype=float)
        axis.plot(values, i + rng.uniform(-0.2, 0.2, values.size), "o", color=COLOURS["blue"], markersize=3, alpha=0.7)
    axis.set_yticks(np.arange(len(levels)), levels, fontsize=8)
    axis.set_xlabel(xlabel)
    _plain(axis)
    return figure


def scatter_panels(
    panels: Sequence[tuple[str, DataFrame]], *, x: str, y: str, xlabel: str, ylabel: str, columns: int = 4
) -> Figure:
    """Show points with their least-squares line, one panel a pair of variables."""
    width, rows = min(columns, len(panels)), -(-len(panels) // columns)
    figure, axes = _figure(2.7 * width, 2.6 * rows, rows, width, squeeze=False)
    for axis, (title, points) in zip(axes.flat, panels, strict=False):
        a, b = points[x].to_numpy(dtype=float), points[y].to_numpy(dtype=float)
        axis.plot(a, b, "o", color=COLOURS["blue"], markersize=3, alpha=0.7)
        slope, intercept = np.polyfit(a, b, 1)
        ends = np.array([a.min(), a.max()])
        axis.plot(ends, slope * ends + intercept, color=COLOURS["red"])
        axis.set_title(title, fontsize=8)
        axis.set_xlabel(xlabel, fontsize=7)
        _plain(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for line in axes:
        line[0].set_ylabel(ylabel, fontsize=7)
    return figure


def save(figure: Figure, path: Any) -> None:
    """Write a figure to a file or buffer; the format follows the name, metadata carry no date."""
    kind = str(getattr(path, "suffix", ".png")).lstrip(".")
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(path, format=kind, metadata=metadata)
