"""The participant's page: every step in pictures, tables and words, made from what is on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_sodium.bidsio.files import read_json, read_table, read_transform, read_volume, write_text
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import Volume
from bids_sodium.report import figures, html
from bids_sodium.spatial.resampling import resample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Failure", "participant_page"]

_TEMPLATE = "MNI152NLin2009aSym"
_LABELS = {"CSF": 1, "CGM": 2, "DGM": 3, "NAWM": 4, "lesions": 5}
_BRAIN_LIMIT_MMOL_L = 100.0
_TISSUE_LIMIT_MMOL_L = 80.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that did not finish.

    Parameters
    ----------
    unit : str
        Session.
    step : str
        Step.
    message : str
        Error, one line.
    """

    unit: str
    step: str
    message: str


@dataclass(slots=True)
class _Session:
    """One session's outputs by the ends of their names, and where its figures go."""

    output: Path
    participant: str
    folder: Path
    stem: str

    def file(self, ending: str) -> Path:
        return self.folder / "anat" / f"{self.stem}_{ending}"

    def has(self, *endings: str) -> bool:
        return all(self.file(ending).is_file() for ending in endings)

    def volume(self, ending: str, unit: str = "a.u.") -> Volume:
        return read_volume(self.file(ending), unit=unit)

    def show(self, name: str, caption: str, draw: Callable[[], Figure], *, kind: str = "png") -> str:
        place = self.output / self.participant / "figures" / f"{self.stem}_{name}.{kind}"
        place.parent.mkdir(parents=True, exist_ok=True)
        figures.save(draw(), place)
        return html.figure(place.relative_to(self.output).as_posix(), caption)

    @property
    def title(self) -> str:
        return self.folder.name if self.folder.name.startswith("ses-") else "single session"


def participant_page(
    output: Path,
    participant: str,
    *,
    raw: Path | None = None,
    failures: Sequence[Failure] = (),
    methods: str = "",
    settings: str = "",
) -> Path:
    """Write ``sub-X.html`` and its figures.

    Parameters
    ----------
    output : Path
        Output dataset.
    participant : str
        With its ``sub-``.
    raw : Path, optional
        Input dataset, for the T2-weighted image beside the maps.
    failures : sequence of Failure
        Steps that failed in this run; the page is written all the same.
    methods : str
        Methods text.
    settings : str
        Settings of the run, as TOML.

    Returns
    -------
    Path
        The page.
    """
    sections: list[tuple[str, str, str]] = []
    if failures:
        lines = [f"{failure.unit}, {failure.step}: {failure.message}" for failure in failures]
        sections.append(html.section("failures", "Failures", html.box("Not finished in this run", lines, bad=True)))
    sessions = sorted(_sessions(output, participant), key=_hours)
    for session in sessions:
        sections += _session_sections(session, raw, many=len(sessions) > 1)
    if methods:
        sections.append(html.section("methods", "Methods", f"<pre>{html.escape(methods)}</pre>"))
    if settings:
        text = f"<details><summary>All settings of this run</summary><pre>{html.escape(settings)}</pre></details>"
        sections.append(html.section("settings", "Settings", text))
    subtitle = "Sodium MRI: from raw data to tissue sodium concentration"
    return write_text(output / f"{participant}.html", html.page(participant, subtitle, sections))


def _sessions(output: Path, participant: str) -> Iterator[_Session]:
    root = output / participant
    tables = sorted(root.glob("**/anat/*_acq-23Na_desc-qc_tsc.tsv"))
    for table in tables:
        yield _Session(output, participant, table.parent.parent, table.name.partition("_acq-23Na")[0])


def _hours(session: _Session) -> float:
    """Return the time after onset that a session was scanned, 0 where it is not known, so that order is kept."""
    quality = read_table(session.file("acq-23Na_desc-qc_tsc.tsv"))
    found = quality[quality["measure"] == "onset_to_scan"]["value"]
    return float(found.iloc[0]) if len(found) else 0.0


def _session_sections(session: _Session, raw: Path | None, *, many: bool) -> Iterator[tuple[str, str, str]]:
    mark = f"{session.title}: " if many else ""
    key = session.title.replace(" ", "-")
    for name, title, build in (
        ("summary", "Summary", _summary),
        ("overview", "Sodium and anatomy", lambda of: _overview(of, raw)),
        ("reconstruction", "Reconstruction", _reconstruction),
        ("calibration", "Calibration", _calibration),
        ("alignment", "Alignment", _alignment),
        ("tissue", "Segmentation", _tissue),
        ("partial-volume", "Partial volume", _partial_volume),
        ("regions", "Regions", _regions),
        ("quality", "Quality measures", _quality),
    ):
        yield html.section(f"{key}-{name}", f"{mark}{title}", build(session))


def _summary(session: _Session) -> str:
    quality = read_table(session.file("acq-23Na_desc-qc_tsc.tsv"))
    parts = []
    warnings = [str(note) for note in quality[quality["measure"] == "warning"]["note"]]
    if warnings:
        parts.append(html.box("Read with care", warnings, bad=True))
    left_out = [str(note) for note in quality[quality["measure"] == "left_out"]["note"]]
    if left_out:
        parts.append(html.box("Not computed", left_out))
    if session.has("acq-23Na_desc-tissue_tsc.tsv"):
        table = read_table(session.file("acq-23Na_desc-tissue_tsc.tsv"))
        parts.append(
            session.show(
                "desc-tissue_tsc",
                "Total sodium concentration of each tissue with its 95 % interval (noise, fit, registration, "
                "segmentation and calibration), by method of partial-volume correction: raw, none; csf, CSF partition; "
                "gtm, geometric transfer matrix; glm, least squares with the scan's own acquisition as the model; "
                "local, the same in a neighbourhood of every voxel, the one to quote; kspace, fits to the raw samples.",
                lambda: figures.tissue_dots(table),
                kind="svg",
            )
        )
        wide = table.assign(
            tsc=[f"{a:.1f} ± {b:.2f}" for a, b in zip(table["tsc_mmol_l"], table["tsc_se"], strict=True)]
        ).pivot_table(index="tissue", columns="method", values="tsc", aggfunc="first", sort=False)
        volume = table.drop_duplicates("tissue").set_index("tissue")["volume_ml"]
        wide.insert(0, "volume (mL)", volume.reindex(wide.index))
        parts.append(html.table(wide.reset_index()))
        parts.append(
            "<p>Concentrations in mmol/L ± standard error of noise, fit, registration, segmentation and calibration; "
            "the table's sidecar holds each part.</p>"
        )
    return "".join(parts)


_T2 = ("PDT2head", "T2w", "FLAIR", "PDT2body")
"""Frames of T2-weighted images, the one to show first."""


def _overview(session: _Session, raw: Path | None) -> str:
    """Figure 1 of the MS paper: raw sodium image, concentration, T2- and T1-weighted image on the same sections."""
    here = "from-23Na_to-T1w_mode-image_xfm.txt"
    anatomy = _anatomy_files(session)
    if anatomy is None or not session.has("acq-23Na_desc-recon_PDw.nii.gz", "acq-23Na_space-T1w_TSCmap.nii.gz", here):
        return ""
    where, labels = anatomy
    t1w = where.volume("desc-preproc_T1w.nii.gz")
    sodium = session.volume("acq-23Na_desc-recon_PDw.nii.gz")
    t1w_from_na = read_transform(session.file(here), "T1w", "23Na")
    rows = [
        ("sodium (a.u.)", resample(sodium, t1w.grid, t1w_from_na.inverse())),
        ("TSC (mmol/L)", session.volume("acq-23Na_space-T1w_TSCmap.nii.gz", "mmol/L")),
        *_t2_rows(session, raw, t1w),
        ("T1w (a.u.)", t1w),
    ]
    return session.show(
        "desc-overview_TSCmap",
        "Raw sodium image, total sodium concentration and 1H images on the same sections, one interpolation each.",
        lambda: figures.montage(rows, focus=labels.get("NAWM"), n_sections=5),
    )


def _t2_rows(session: _Session, raw: Path | None, t1w: Volume) -> list[tuple[str, Volume]]:
    """Return the T2-weighted image of the session on the T1w grid; its transform's sidecar names the file."""
    for frame in _T2:
        place = session.file(f"from-{frame}_to-T1w_mode-image_xfm.txt")
        sidecar = place.with_suffix(".json")
        if raw is None or not place.is_file() or not sidecar.is_file():
            continue
        sources = [str(source) for source in read_json(sidecar).get("Sources", ())]
        image = raw / sources[0].removeprefix("bids:raw:") if sources else raw
        if not sources or not sources[0].startswith("bids:raw:") or not image.is_file():
            continue
        found = read_volume(image)
        data = np.asarray(found.data)
        # of a PD/T2 pair the T2-weighted image is the last
        one = found if data.ndim == 3 else found.with_data(data.reshape(*data.shape[:3], -1)[..., -1])
        moved = resample(one, t1w.grid, read_transform(place, "T1w", frame).inverse())
        return [("T2w (a.u.)" if frame != "FLAIR" else "FLAIR (a.u.)", moved)]
    return []


def _reconstruction(session: _Session) -> str:
    if not session.has("acq-23Na_desc-recon_PDw.nii.gz"):
        return ""
    recon = session.volume("acq-23Na_desc-recon_PDw.nii.gz")
    rows = [("reconstructed", recon)]
    if session.has("acq-23Na_desc-denoised_PDw.nii.gz"):
        rows.append(("denoised", session.volume("acq-23Na_desc-denoised_PDw.nii.gz")))
    top = float(np.percentile(np.asarray(recon.data), 99.7))
    parts = [
        session.show(
            "desc-recon_PDw",
            "Sodium image before and after denoising, same scale.",
            lambda: figures.montage(rows, limits=(0.0, top), unit="signal (a.u.)"),
        )
    ]
    known = read_json(session.file("acq-23Na_desc-recon_PDw.json"))
    spreads = known.get("PointSpread")
    if spreads:
        profiles = {
            name: (np.array(entry["ProfileRadius"]), np.array(entry["Profile"]), float(entry["FWHM"]))
            for name, entry in spreads.items()
        }
        parts.append(
            session.show(
                "desc-psf_profile",
                "Point spread of the acquisition for each tissue's decay: trajectory, T2* over the readout and filter.",
                lambda: figures.point_spread_profile(profiles),
                kind="svg",
            )
        )
    return "".join(parts)


def _calibration(session: _Session) -> str:
    if not session.has("acq-23Na_TSCmap.nii.gz"):
        return ""
    recon = session.volume("acq-23Na_desc-recon_PDw.nii.gz")
    masks = {
        path.name.partition("label-")[2].partition("_")[0]: read_volume(path)
        for path in sorted((session.folder / "anat").glob(f"{session.stem}_acq-23Na_label-*_mask.nii.gz"))
    }
    parts = []
    if masks:
        union = recon.with_data(np.sum([np.asarray(mask.data) > 0 for mask in masks.values()], axis=0) > 0)
        parts.append(
            session.show(
                "desc-vials_mask",
                "Calibration vials on the sodium image, sections through the vials.",
                lambda: figures.montage([("sodium", recon)], outlines=masks, unit="signal (a.u.)", focus=union),
            )
        )
    found = read_json(session.file("acq-23Na_TSCmap.json")).get("Calibration", {})
    vials = found.get("Phantoms", [])
    if vials:
        signal, se, truth = (np.array([vial[key] for vial in vials]) for key in ("signal", "se", "mmol_l"))
        parts.append(
            session.show(
                "desc-calibration_line",
                f"Vial signals ({found['VialsFrom']}) and the line that turns signal into concentration, with its "
                "95 % band.",
                lambda: figures.calibration_line(signal, se, truth, found["Slope"], found["SlopeStandardError"]),
                kind="svg",
            )
        )
    tsc = session.volume("acq-23Na_TSCmap.nii.gz", "mmol/L")
    source = str(found.get("Source", "vials"))
    parts.append(
        session.show(
            "TSCmap",
            "Total sodium concentration" + ("." if source == "vials" else f", {source}."),
            lambda: figures.montage(
                [("TSC", tsc)], limits=(0.0, _BRAIN_LIMIT_MMOL_L), colours="viridis", unit="mmol/L"
            ),
        )
    )
    return "".join(parts)


def _anatomy_files(session: _Session) -> tuple[_Session, dict[str, Volume]] | None:
    """Return the participant's session that holds the segmentation: one serves all."""
    for other in (session, *_sessions(session.output, session.participant)):
        if other.has("seg-tissue_dseg.nii.gz", "desc-preproc_T1w.nii.gz"):
            labels = other.volume("seg-tissue_dseg.nii.gz")
            values = np.asarray(labels.data)
            return other, {
                name: labels.with_data(values == value) for name, value in _LABELS.items() if (values == value).any()
            }
    return None


def _alignment(session: _Session) -> str:
    parts = []
    if session.has("acq-23Na_desc-recon_PDw.nii.gz", "acq-23Na_desc-head_mask.nii.gz"):
        recon = session.volume("acq-23Na_desc-recon_PDw.nii.gz")
        head = session.volume("acq-23Na_desc-head_mask.nii.gz", "1")
        parts.append(
            session.show(
                "desc-head_mask",
                "Outline of the head from the registered proton image on the sodium image.",
                lambda: figures.montage([("sodium", recon)], outlines={"head": head}, unit="signal (a.u.)", focus=head),
            )
        )
    anatomy = _anatomy_files(session)
    if anatomy is not None and session.has("acq-23Na_space-T1w_TSCmap.nii.gz"):
        where, labels = anatomy
        t1w = where.volume("desc-preproc_T1w.nii.gz")
        tsc = session.volume("acq-23Na_space-T1w_TSCmap.nii.gz", "mmol/L")
        outlines: dict[str, Volume] = {name: labels[name] for name in ("NAWM", "CSF") if name in labels}
        parts.append(
            session.show(
                "space-T1w_TSCmap",
                "Sodium concentration on the T1w grid (one interpolation) with the outlines of white matter and CSF "
                "from the T1w image: CSF outlines should hold the bright ventricles.",
                lambda: figures.montage(
                    [("TSC", tsc)],
                    limits=(0.0, _BRAIN_LIMIT_MMOL_L),
                    colours="viridis",
                    unit="mmol/L",
                    outlines=outlines,
                    focus=labels.get("NAWM"),
                ),
            )
        )
        parts.append(
            session.show(
                "desc-outlines_T1w",
                "The same outlines on the T1w image.",
                lambda: figures.montage([("T1w", t1w)], outlines=outlines, focus=labels.get("NAWM")),
            )
        )
    paths = sorted((session.folder / "anat").glob(f"{session.stem}_acq-23Na_space-*_TSCmap.nii.gz"))
    parts += [_in_space(session, path) for path in paths if "space-T1w" not in path.name]
    return "".join(parts)


def _in_space(session: _Session, path: Path) -> str:
    space = path.name.partition("space-")[2].partition("_")[0]
    tsc = read_volume(path, unit="mmol/L")
    outlines = {}
    if space == _TEMPLATE:
        template = load_head_template()
        outlines = {
            "template white matter": Volume(template.wm > 0.5, template.grid),
            "template brain": Volume(template.brain, template.grid),
        }
    return session.show(
        f"space-{space}_TSCmap",
        f"Sodium concentration in the space of {space}, one interpolation.",
        lambda: figures.montage(
            [(space, tsc)], limits=(0.0, _BRAIN_LIMIT_MMOL_L), colours="viridis", unit="mmol/L", outlines=outlines
        ),
    )


def _tissue(session: _Session) -> str:
    if not session.has("seg-tissue_dseg.nii.gz", "desc-preproc_T1w.nii.gz"):
        return ""
    labels = _anatomy_files(session)
    assert labels is not None  # noqa: S101
    t1w = session.volume("desc-preproc_T1w.nii.gz")
    parts = [
        session.show(
            "seg-tissue_dseg",
            "Tissue classes on the T1w image.",
            lambda: figures.montage([("T1w", t1w)], outlines=labels[1], focus=labels[1].get("NAWM")),
        )
    ]
    names = [name for name in ("CGM", "DGM", "NAWM", "CSF", "L") if session.has(f"label-{name}_probseg.nii.gz")]
    maps = [(name, session.volume(f"label-{name}_probseg.nii.gz", "1")) for name in names]
    maps = [(name, volume) for name, volume in maps if float(np.asarray(volume.data).max()) > 0]
    parts.append(
        session.show(
            "desc-fractions_probseg",
            "Tissue fractions on the T1w grid.",
            lambda: figures.montage(maps, limits=(0.0, 1.0), unit="fraction (1)", focus=labels[1].get("NAWM")),
        )
    )
    if session.has("desc-filled_T1w.nii.gz"):
        filled = session.volume("desc-filled_T1w.nii.gz")
        lesions = labels[1].get("lesions")
        parts.append(
            session.show(
                "desc-filled_T1w",
                "T1w image with its lesions filled; the outlines are the lesion masks.",
                lambda: figures.montage(
                    [("filled", filled)], outlines={"lesions": lesions} if lesions is not None else None, focus=lesions
                ),
            )
        )
    return "".join(parts)


def _partial_volume(session: _Session) -> str:
    parts = []
    seen = [
        name for name in ("CGM", "DGM", "NAWM", "CSF") if session.has(f"acq-23Na_label-{name}_desc-psf_probseg.nii.gz")
    ]
    if seen:
        blurred = [(name, session.volume(f"acq-23Na_label-{name}_desc-psf_probseg.nii.gz", "1")) for name in seen]
        parts.append(
            session.show(
                "desc-psf_probseg",
                "Tissue fractions as the sodium scan sees them, on the sodium grid.",
                lambda: figures.montage(blurred, limits=(0.0, 1.0), unit="fraction (1)"),
            )
        )
    if session.has("acq-23Na_desc-pvc_TSCmap.nii.gz"):
        corrected = session.volume("acq-23Na_desc-pvc_TSCmap.nii.gz", "mmol/L")
        parts.append(
            session.show(
                "desc-pvc_TSCmap",
                "Sodium concentration of brain tissue: CSF and neighbours removed by the local least-squares fit.",
                lambda: figures.montage(
                    [("tissue TSC", corrected)], limits=(0.0, _TISSUE_LIMIT_MMOL_L), colours="viridis", unit="mmol/L"
                ),
            )
        )
    return "".join(parts)


def _regions(session: _Session) -> str:
    if not session.has("acq-23Na_desc-roi_tsc.tsv"):
        return ""
    table = read_table(session.file("acq-23Na_desc-roi_tsc.tsv"))
    folder = session.folder / "anat"
    masks: dict[str, Volume] = {}
    for label in ("ionic", "cytotoxic", "necrosis"):
        for side in ("consensus", "contralateral"):
            path = folder / f"{session.stem}_label-{label}_desc-{side}_mask.nii.gz"
            if path.is_file():
                masks[f"{label} ({'lesion' if side == 'consensus' else 'mirrored'})"] = read_volume(path)
    parts = []
    if masks:
        rows = []
        if session.has("acq-23Na_space-T1w_TSCmap.nii.gz"):
            rows.append(("TSC", session.volume("acq-23Na_space-T1w_TSCmap.nii.gz", "mmol/L")))
        focus = next(iter(masks.values()))
        union = focus.with_data(np.sum([np.asarray(mask.data) > 0 for mask in masks.values()], axis=0) > 0)
        if rows:
            parts.append(
                session.show(
                    "desc-regions_TSCmap",
                    "Delineated regions and their mirror images (lesions and CSF left out) on the TSC map.",
                    lambda: figures.montage(
                        rows,
                        limits=(0.0, _BRAIN_LIMIT_MMOL_L),
                        colours="gray",
                        unit="mmol/L",
                        outlines=masks,
                        focus=union,
                    ),
                )
            )
        adc = session.folder / "dwi" / f"{session.stem}_space-T1w_ADC.nii.gz"
        if adc.is_file():
            scaled = read_volume(adc)
            shown = scaled.with_data(np.asarray(scaled.data) * 1e3)
            parts.append(
                session.show(
                    "desc-regions_ADC",
                    "The same regions on the apparent diffusion coefficient.",
                    lambda: figures.montage(
                        [("ADC", shown)], limits=(0.0, 2.0), unit="ADC (10⁻³ mm²/s)", outlines=masks, focus=union
                    ),
                )
            )
    shown_columns = ["roi", "contrast", "method", "ipsi", "contra", "percent_change", "percent_se", "volume_ml"]
    shown_columns += ["kept", "reason"]
    parts.append(html.table(table, columns=shown_columns))
    return "".join(parts)


def _quality(session: _Session) -> str:
    quality = read_table(session.file("acq-23Na_desc-qc_tsc.tsv"))
    rows = quality[~quality["measure"].isin(["left_out", "warning"])]
    if rows.empty:
        return ""
    return html.table(rows.fillna({"note": "", "unit": ""}), columns=["measure", "value", "se", "unit", "note"])
