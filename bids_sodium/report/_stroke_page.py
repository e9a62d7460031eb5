"""The figures of the stroke paper and diagnostics, from the group's tables and the participants' images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_table, read_volume
from bids_sodium.report import _stroke_figures as draw
from bids_sodium.report import figures, html

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from bids_sodium.core.data import Volume

__all__ = ["stroke_section"]

_LIMITS = {"TSC": (0.0, 120.0), "ADC": (0.0, 2.0e-3), "T1w": (0.0, 1.0)}
_SECTION_MM = 2.0
_MOST_PATIENTS = 40


def stroke_section(output: Path) -> tuple[str, str, str]:
    """Write the figures of the paper (SVG and PNG) and return their section of the group page.

    Parameters
    ----------
    output : Path
        Output dataset with the group tables; images of the participants are shown where they are there.
    """
    folder = output / "group_figures"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, caption, make in _PAPER:
        figure = make(output)
        if figure is None:
            continue
        for kind in ("svg", "png"):
            figures.save(figure, folder / f"paper_{name}.{kind}")
        kind = "png" if name == "figure1" else "svg"  # many small pictures make a heavy vector file
        parts.append(html.figure(f"group_figures/paper_{name}.{kind}", caption))
    return html.section("paper", "Figures of the stroke paper, from these data", *parts)


def _table(output: Path, name: str) -> DataFrame | None:
    path = output / f"group_{name}.tsv"
    return read_table(path) if path.is_file() else None


def _of(frame: DataFrame | None, **match: str) -> DataFrame | None:
    """Return the rows of a table that match; ``None`` where there is no table or no row."""
    if frame is None:
        return None
    for column, value in match.items():
        frame = frame[frame[column] == value]
    return frame if len(frame) else None


def _images(output: Path) -> Figure | None:
    """Figure 1: what every patient's scans show, largest necrosis first."""
    volumes = _table(output, "volumes_points")
    scans = _table(output, "exclusions_scans")
    if volumes is None or scans is None:
        return None
    order = volumes.groupby("participant_id")["necrosis"].max().sort_values(ascending=False).index
    people = [*order, *(p for p in dict.fromkeys(scans["participant_id"]) if p not in set(order))]
    rows = []
    for person in people[:_MOST_PATIENTS]:
        own = scans[scans["participant_id"] == person].sort_values("t_h")
        cells = _patient_cells(
            output / str(person), {str(w): str(s) for w, s in zip(own["window"], own["session_id"], strict=True)}
        )
        if any(cell is not None for cell in cells):
            rows.append((str(person).removeprefix("sub-"), cells))
    if not rows:
        return None
    columns = [
        (f"{contrast}, {window}", "viridis" if contrast == "TSC" else "gray", _LIMITS[contrast])
        for window in ("early", "late")
        for contrast in ("TSC", "ADC")
    ]
    columns.append(("T1w, follow-up", "gray", _LIMITS["T1w"]))
    return draw.patients_images(rows, columns)


def _patient_cells(folder: Path, sessions: Mapping[str, str]) -> list[Any]:
    """Return the sections of one patient, through the middle of the largest lesion mask, on one frame."""
    places = {
        "TSC": ("anat", "acq-23Na_space-T1w_TSCmap"),
        "ADC": ("dwi", "space-T1w_ADC"),
    }
    files: list[Path | None] = []
    masks: list[Path | None] = []
    necrosis = sorted(folder.glob("**/anat/*_label-necrosis_desc-consensus_mask.nii.gz"))
    for window in ("early", "late"):
        session = sessions.get(window)
        for contrast, label in (("TSC", "ionic"), ("ADC", "cytotoxic")):
            kind, name = places[contrast]
            for found, path in (
                (files, folder / str(session) / kind / f"{folder.name}_{session}_{name}.nii.gz"),
                (
                    masks,
                    folder
                    / str(session)
                    / "anat"
                    / f"{folder.name}_{session}_label-{label}_desc-consensus_mask.nii.gz",
                ),
            ):
                found.append(path if path.is_file() else None)
    anatomy = next(iter(necrosis[-1].parent.glob("*_desc-preproc_T1w.nii.gz")), None) if necrosis else None
    files.append(anatomy)
    masks.append(necrosis[-1] if necrosis else None)
    drawn = {path: read_volume(path) for path in masks if path is not None}
    images = {path: read_volume(path) for path in files if path is not None}
    if anatomy is not None:
        images[anatomy] = _to_one(images[anatomy])
    if not images:
        return [None] * len(files)
    centre = _centre(list(drawn.values()))
    return [
        None if image is None else _cell(images[image], drawn.get(mask) if mask is not None else None, centre)
        for image, mask in zip(files, masks, strict=True)
    ]


def _to_one(image: Volume) -> Volume:
    """Return an image without units on a scale from 0 to 1, its brightest voxels above."""
    data = np.asarray(image.data, dtype=np.float32)
    return replace(image, data=data / max(float(np.quantile(data, 0.995)), 1e-12))


def _centre(masks: list[Volume]) -> float | None:
    """Return the height in mm of the axial section with most lesion."""
    best, height = 0.0, None
    for mask in masks:
        inside = np.argwhere(np.asarray(mask.data) > 0.5)
        if len(inside):
            z = mask.grid.world(inside.astype(np.float64))[:, 2]
            count, edges = np.histogram(z, bins=np.arange(z.min() - 2, z.max() + 4, 3.0))
            if count.max() > best:
                best, height = float(count.max()), float(edges[int(np.argmax(count))] + 1.5)
    return height


def _cell(image: Volume, mask: Volume | None, height: float | None) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return one axial section, in world axes, the left of the patient on the left."""
    x, y = np.arange(-78.0, 79.0, _SECTION_MM), np.arange(-110.0, 81.0, _SECTION_MM)
    middle = image.grid.world((np.array(image.grid.shape) - 1.0) / 2.0)
    z = float(middle[2]) if height is None else height
    points = np.stack(np.meshgrid(x + middle[0], y + 15.0 + middle[1], [z], indexing="ij"), axis=-1)[:, :, 0]

    def sampled(volume: Volume) -> NDArray[Any]:
        index = np.rint(volume.grid.index(points)).astype(int)
        inside = np.all((index >= 0) & (index < np.array(volume.grid.shape)), axis=-1)
        safe = np.where(inside[..., None], index, 0)
        return np.where(inside, np.asarray(volume.data)[tuple(np.moveaxis(safe, -1, 0))], 0.0)

    return sampled(image), None if mask is None else sampled(mask) > 0.5


def _curves(output: Path) -> Figure | None:
    """Figure 2."""
    points = _of(_table(output, "sigmoid_points"), contrast="na")
    curve = _of(_table(output, "sigmoid_curves"), contrast="na", model="sigmoid, cluster-robust")
    if points is None or curve is None:
        return None
    words = _words(_of(_table(output, "sigmoid"), outcome="sodium signal change (%)"))
    fall = _table(output, "adc_points")
    course = _of(_table(output, "courses_curves"), contrast="adc", roi="cytotoxic")
    adc = None
    if fall is not None and course is not None:
        plateau = _of(_table(output, "adc"), term="plateau (%)")
        told = "" if plateau is None else f"plateau {plateau['estimate'].iloc[0]:.1f} ± {plateau['se'].iloc[0]:.1f} %"
        adc = (fall, course, f"local-linear; {told}")
    return draw.sodium_and_adc((points, curve, words), adc, last_h=float(points["t_h"].max()))


def _words(rows: DataFrame | None) -> str:
    value = _of(_of(rows, model="sigmoid, profile"), term="f(60 h) (%)")
    n = "" if rows is None else f"n = {rows['n'].max():.0f}; "
    if value is None:
        return n
    first = value.iloc[0]
    return f"{n}f(60 h) = {first['estimate']:.1f} % ({first['ci_low']:.1f} to {first['ci_high']:.1f})"


def _courses(output: Path) -> Figure | None:
    """Figure 3."""
    curves = _table(output, "courses_curves")
    if curves is None:
        return None
    regions = {
        "na": ("ionic", "ionic&necrosis", "ionic-necrosis", "necrosis-ionic"),
        "adc": ("cytotoxic", "cytotoxic&necrosis", "cytotoxic-necrosis", "necrosis-cytotoxic"),
    }
    shown = {
        name: rois for name, rois in regions.items() if _of(curves[curves["roi"].isin(rois)], contrast=name) is not None
    }
    return draw.courses_with_schemes(curves, shown) if shown else None


def _volumes(output: Path) -> Figure | None:
    """Figure 4."""
    volumes = _table(output, "volumes_points")
    return None if volumes is None or volumes["necrosis"].notna().sum() == 0 else draw.volume_dynamics(volumes)


def _patients(output: Path) -> Figure | None:
    """Figure 5, with the mixed model of lowest AIC."""
    points = _of(_table(output, "sigmoid_points"), contrast="na")
    subjects = _of(_table(output, "sigmoid_subjects"), contrast="na")
    results = _of(_table(output, "sigmoid"), outcome="sodium signal change (%)", term="AIC")
    if points is None or subjects is None or results is None:
        return None
    best = str(results.sort_values("estimate", kind="stable")["model"].iloc[0])
    curves = _of(subjects, model=best)
    return None if curves is None else draw.patients_curves(curves, points, _table(output, "adc_points"))


def _residuals(output: Path) -> Figure | None:
    points = _of(_table(output, "sigmoid_points"), contrast="na")
    curve = _of(_table(output, "sigmoid_curves"), contrast="na", model="sigmoid")
    if points is None or curve is None:
        return None
    fitted = np.interp(points["t_h"], curve["t_h"], curve["value"])
    return draw.residuals(fitted, points["percent"].to_numpy(dtype=float) - fitted, "sigmoid of the sodium rise")


def _prognosis(output: Path) -> Figure | None:
    results, roc = _table(output, "prognosis"), _of(_table(output, "prognosis_roc"), subset="all scans")
    bins = _of(_table(output, "prognosis_calibration"), subset="all scans")
    if results is None or roc is None or bins is None:
        return None
    rows = results[(results["term"] == "AUC") & (results["subset"] == "all scans")]
    told = {
        str(row.model): f"{row.model}: {row.estimate:.2f} ({row.ci_low:.2f} to {row.ci_high:.2f})"
        for row in rows.itertuples()
    }
    return draw.calibration_and_roc(roc, bins, told)


def _forecast(output: Path) -> Figure | None:
    patients = _of(_table(output, "prognosis_patients"), subset="all scans")
    return None if patients is None else draw.predicted_volumes(patients)


def _raters(output: Path) -> Figure | None:
    points = _table(output, "agreement_points")
    return None if points is None else draw.rater_differences(points)


_PAPER: tuple[tuple[str, str, Callable[[Path], Figure | None]], ...] = (
    (
        "figure1",
        (
            "Figure 1. Sodium concentration (mmol/L, 0 to 120) and ADC (0 to 0.002 mm2/s) of every patient in "
            "both windows and T1w image of the follow-up, the section with most lesion, outlines of ionic (on sodium) "
            "and cytotoxic oedema (on ADC) and of the final necrosis (on T1w); largest necrosis first."
        ),
        _images,
    ),
    (
        "figure2",
        (
            "Figure 2. Change of sodium and ADC in the cytotoxic region. Grey lines join the scans of a patient; "
            "bands are 95 % (cluster-robust; resampled patients); the curve is dashed beyond the last scan."
        ),
        _curves,
    ),
    (
        "figure3",
        (
            "Figure 3. What the regions are, and their local-linear courses with 95 % bands over resampled "
            "patients; grey where fewer than three patients lie within a bandwidth."
        ),
        _courses,
    ),
    (
        "figure4",
        (
            "Figure 4. A: volumes of every patient. B, C: oedema of each window against the final necrosis; the "
            "line is equality."
        ),
        _volumes,
    ),
    (
        "figure5",
        (
            "Figure 5. Every patient's empirical-Bayes curve (mixed model of lowest AIC), dashed outside the "
            "patient's own scans, and ADC."
        ),
        _patients,
    ),
    ("residuals", "Residuals of the sigmoid against fitted values and against a normal distribution.", _residuals),
    (
        "prognosis",
        (
            "Conversion to necrosis, every patient predicted from the others: receiver operating characteristic "
            "(area with 95 % interval) and calibration."
        ),
        _prognosis,
    ),
    ("forecast", "Necrotic volume predicted from the other patients against that observed.", _forecast),
    ("raters", "Differences of raters' volumes, with bias and 95 % limits of agreement.", _raters),
)
