"""Sessions and settings → ordered tasks. Pure: no file is opened; ``--dry-run`` prints what comes out.

::

    reconstruct ──► align ──► (regularise) ──► quantify ─┐
    template ──┬──► align                                ├──► extract
               └──► parcellate ──────────────────────────┘        diffusion ──► align, extract

One anatomy serves all sessions of a participant: the T1w image of the last session after onset (the first session
where onset is not known). It alone is placed in the template and segmented; the sessions reach it by rigid links.
What a session cannot have is said in words in its quality table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_sodium.bidsio.names import output
from bids_sodium.bidsio.segmentations import choose
from bids_sodium.engine.tasks import Task, in_order
from bids_sodium.image.receive import ReceiveParams
from bids_sodium.steps import align, delineate, extract, mirror, parcellate, quantify, reconstruct, regularise
from bids_sodium.steps._atlas import table_of

if TYPE_CHECKING:
    from bids_sodium.bidsio.derivatives import Roots
    from bids_sodium.bidsio.layout import Scan, Session
    from bids_sodium.config import Config

__all__ = ["MS_LESIONS", "STROKE_REGIONS", "participants", "plan", "reference_session"]

SODIUM = extract.SODIUM
MS_LESIONS = ("T2lesion", "T1hypo")
STROKE_REGIONS = ("ionic", "cytotoxic", "necrosis")
_LATE = "necrosis"
_WEEK_H = 168.0
_XFM = {"fsl": ".mat", "lta": ".lta"}
_TISSUES = ("CGM", "DGM", "NAWM", "CSF", "L")
_SPACES_OF_DWI = frozenset({"dwi", "b1000", "b0", "ADC", "trace"})
_SPACES_OF_SODIUM = frozenset({"23Na", "na", "Na", "sodium", "PDw"})


def participants(sessions: Iterable[Session]) -> dict[str, list[Session]]:
    """Return usable sessions by participant, in order."""
    found: dict[str, list[Session]] = {}
    for session in sessions:
        if session.problem is None:
            found.setdefault(session.participant_id, []).append(session)
    return found


def reference_session(sessions: Sequence[Session], wanted: str = "") -> Session | None:
    """Return the session whose T1w image is the anatomy of all: the one wanted, the latest after onset, else the first.

    Parameters
    ----------
    sessions : sequence of Session
        Those of one participant.
    wanted : str
        Label of a session, with ``ses-`` or without; it is passed over where it has no T1w image.
    """
    with_t1w = [session for session in sessions if session.t1w is not None]
    chosen = [session for session in with_t1w if wanted and session.session_id == _ses(wanted)]
    if chosen:
        return chosen[0]
    timed = [session for session in with_t1w if session.onset_to_scan_h is not None]
    if timed:
        return max(timed, key=lambda session: session.onset_to_scan_h or 0.0)
    return with_t1w[0] if with_t1w else None


def _ses(label: str) -> str:
    return f"ses-{label.removeprefix('ses-')}"


def plan(sessions: Sequence[Session], config: Config, roots: Roots, work: Path) -> tuple[Task, ...]:
    """Return every task of the participant level in an order that can be run.

    Parameters
    ----------
    sessions : sequence of Session
        What the dataset offers; sessions with a problem are passed over.
    config : Config
        All settings.
    roots : Roots
        Where outputs go and how sources are named.
    work : Path
        Folder of the steps' records.

    Returns
    -------
    tuple of Task
        Tasks; each session ends with one named ``extract``.
    """
    tasks: list[Task] = []
    for members in participants(sessions).values():
        tasks += _Participant(members, config, roots, work).tasks()
    return tuple(in_order(tasks))


def _paths(value: Any) -> Iterable[Path]:
    """Return every path in a Files record, nested records and tuples included."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _paths(entry)
    elif hasattr(value, "__dataclass_fields__") and type(value).__name__ != "Roots":
        for entry in fields(value):
            yield from _paths(getattr(value, entry.name))


@dataclass(slots=True)
class _Participant:
    """The tasks of one participant."""

    sessions: Sequence[Session]
    config: Config
    roots: Roots
    work: Path

    def tasks(self) -> list[Task]:
        reference = reference_session(self.sessions, self.config.run.reference_session)
        made: list[Task] = []
        if reference is not None:
            made.append(self._template(reference))
        aligned: dict[str, Mapping[str, Path]] = {}
        for session in self.sessions:
            if _has_sodium(session):
                made.append(self._reconstruct(session))
            if session.dwi is not None:
                made.append(self._diffusion(session))
            task, transforms = self._align(session, reference)
            if task is not None:
                made.append(task)
                aligned[session.unit] = transforms
        regions: dict[tuple[str, str], Path] = {}
        if reference is not None:
            task, regions = self._parcellate(reference, aligned)
            made += [task, *self._mirror(reference)]
        delineated: dict[str, Task] = {}
        for session in self.sessions:
            if reference is None or session.unit not in aligned:
                continue
            task, proposed = self._delineate(session, reference, aligned[session.unit])
            if task is not None:
                delineated[session.unit] = task
                regions |= proposed
        for session in self.sessions:
            if self._regularised(session, aligned):
                made.append(self._regularise(session, reference, aligned))
            if _has_sodium(session):
                made.append(self._quantify(session, reference, aligned))
            if session.unit in delineated:
                made.append(delineated[session.unit])
            made.append(self._extract(session, reference, aligned, regions, delineated))
        return made

    def _place(self, session: Session, suffix: str, extension: str = ".nii.gz", **entities: str) -> Path:
        return self.roots.output / output(session, suffix=suffix, extension=extension, **entities)

    def _sodium(self, session: Session, suffix: str, **entities: str) -> Path:
        return self._place(session, suffix, ".nii.gz", acq=SODIUM, **entities)

    def _record(self, session: Session, step: str) -> Path:
        return self.work / session.unit / f"{step}.json"

    def _task(
        self,
        name: str,
        session: Session,
        function: Any,
        files: Any,
        params: Any,
        *,
        version: str,
        outputs: Iterable[Path | None],
        after: Iterable[str] = (),
        memory_gb: float = 1.0,
    ) -> Task:
        written = tuple(path for path in outputs if path is not None)
        made = set(written)
        raw = getattr(files, "kspace", None)
        beside = session.kspace.beside if raw is not None and session.kspace is not None else ()
        inputs = tuple(dict.fromkeys(path for path in (*_paths(files), *beside) if path not in made))
        return Task(
            name=name,
            unit=session.unit,
            group=session.participant_id,
            function=function,
            # a derivative dataset that this step does not read leaves its key alone
            files=replace(files, roots=self.roots.holding(inputs)),
            params=params,
            inputs=inputs,
            outputs=written,
            after=tuple(after),
            version=version,
            memory_gb=memory_gb,
        )

    def _template(self, session: Session) -> Task:
        assert session.t1w is not None  # noqa: S101
        files = align.TemplateFiles(
            t1w=session.t1w.path,
            transform=self._template_transform(session),
            brain=self._place(session, "mask", desc="template"),
            record=self._record(session, "template"),
            roots=self.roots,
        )
        return self._task(
            "template",
            session,
            align.run_template,
            files,
            align.Params(registration=self.config.registration),
            version=align.VERSION,
            outputs=(files.transform, files.brain, files.record),
            memory_gb=1.5,
        )

    def _compares_sides(self, reference: Session | None) -> bool:
        """Tell whether anything is read against the other side of the head."""
        if reference is None:
            return False
        drawn = {label for session in self.sessions for label in session.masks}
        proposed = any(self._undrawn(session, reference) for session in self.sessions)
        return proposed or bool(reference.atlases) or not drawn.isdisjoint(STROKE_REGIONS)

    def _mirror(self, session: Session) -> list[Task]:
        if not self._compares_sides(session):
            return []
        assert session.t1w is not None  # noqa: S101
        files = mirror.Files(
            t1w=session.t1w.path,
            brain=self._place(session, "mask", desc="template"),
            template_transform=self._template_transform(session),
            record=self._record(session, "mirror"),
            roots=self.roots,
        )
        task = self._task(
            "mirror",
            session,
            mirror.run,
            files,
            mirror.Params(mirror=self.config.mirror, registration=self.config.registration),
            version=mirror.VERSION,
            outputs=(files.record,),
            after=[f"{session.unit}.template"],
        )
        return [task]

    def _template_transform(self, session: Session) -> Path:
        return self._place(session, "xfm", ".h5", from_="T1w", to=align.TEMPLATE, mode="image")

    def _reconstruct(self, session: Session) -> Task:
        kspace, image = session.kspace, session.sodium
        fieldmap = session.fieldmap if kspace and self.config.reconstruction.field_map == "auto" else None
        files = reconstruct.Files(
            kspace=kspace.path if kspace else None,
            image=None if kspace else (image.path if image else None),
            reference=None if kspace or session.sodium_reference is None else session.sodium_reference.path,
            magnitude=self._sodium(session, "PDw", desc="recon"),
            real=self._sodium(session, "PDw", part="real", desc="recon") if kspace else None,
            record=self._record(session, "reconstruct"),
            roots=self.roots,
            echoes=() if kspace else tuple(echo.path for echo in session.sodium_echoes),
            fieldmap=None if fieldmap is None else fieldmap.path,
            field=self._field(session),
            series=self._series(session),
        )
        return self._task(
            "reconstruct",
            session,
            reconstruct.run,
            files,
            reconstruct.Params(
                reconstruction=self.config.reconstruction,
                receive=self.config.receive,
                metadata=_metadata(session),
                fieldmap={} if fieldmap is None else dict(fieldmap.sidecar),
            ),
            version=reconstruct.VERSION,
            outputs=(files.magnitude, files.real, files.field, files.series, files.record),
            memory_gb=_raw_gb(session),
        )

    def _field(self, session: Session) -> Path | None:
        used = session.kspace and session.fieldmap and self.config.reconstruction.field_map == "auto"
        return self._sodium(session, "fieldmap", desc="recon") if used else None

    def _series(self, session: Session) -> Path | None:
        times = _metadata(session).get("EchoTime")
        several = len(session.sodium_echoes) > 1 if session.kspace is None else isinstance(times, (list, tuple))
        return self._sodium(session, "PDw", desc="echoes") if several else None

    def _regularised(self, session: Session, aligned: Mapping[str, Mapping[str, Path]]) -> bool:
        """Tell whether a regularised image is made beside the linear one."""
        params = self.config.reconstruction
        if session.kspace is None or not params.regularised:
            return False
        return not params.needs_prior or SODIUM in aligned.get(session.unit, {})

    def _regularise(
        self, session: Session, reference: Session | None, aligned: Mapping[str, Mapping[str, Path]]
    ) -> Task:
        assert session.kspace is not None  # noqa: S101
        params = self.config.reconstruction
        prior, name = _anatomy(session, reference) if params.needs_prior else (None, "")
        files = regularise.Files(
            kspace=session.kspace.path,
            field=self._field(session),
            prior=prior,
            prior_name=name,
            transform=None if prior is None else aligned[session.unit][SODIUM],
            image=self._sodium(session, "PDw", desc=params.method),
            record=self._record(session, "regularise"),
            roots=self.roots,
        )
        return self._task(
            "regularise",
            session,
            regularise.run,
            files,
            regularise.Params(reconstruction=params, metadata=_metadata(session)),
            version=regularise.VERSION,
            outputs=(files.image, files.record),
            after=[f"{session.unit}.reconstruct", *([] if prior is None else [f"{session.unit}.align"])],
            memory_gb=_raw_gb(session),
        )

    def _diffusion(self, session: Session) -> Task:
        scan = session.dwi
        assert scan is not None  # noqa: S101
        files = quantify.DiffusionFiles(
            dwi=scan.path,
            bval=scan.bval,
            adc=self.roots.output / output(session, datatype="dwi", suffix="ADC", extension=".nii.gz"),
            trace=self._trace(session),
            b0=self.work / session.unit / "b0.nii.gz",
            record=self._record(session, "diffusion"),
            roots=self.roots,
        )
        return self._task(
            "diffusion",
            session,
            quantify.run_diffusion,
            files,
            quantify.DiffusionParams(diffusion=self.config.diffusion),
            version=quantify.VERSION,
            outputs=(files.adc, files.trace, files.b0, files.record),
        )

    def _trace(self, session: Session) -> Path:
        return self.roots.output / output(session, datatype="dwi", suffix="trace", extension=".nii.gz")

    def _align(self, session: Session, reference: Session | None) -> tuple[Task | None, dict[str, Path]]:
        anatomy, name = _anatomy(session, reference)
        if anatomy is None:
            return None, {}
        links: list[align.Link] = []
        after: list[str] = []
        brain = None
        own = "anatomy"
        if reference is not None:
            brain = self._place(reference, "mask", desc="template")
            after.append(f"{reference.unit}.template")
            if session.t1w is not None and session is not reference:
                links.append(align.Link(name=align.SESSION, image=session.t1w.path, to="anatomy"))
                own = align.SESSION
        if _has_sodium(session):
            target = own
            for step, scan in (("PDT2head", session.pdt2_head), ("PDT2body", session.pdt2_body)):
                if scan is not None and scan.path != anatomy:
                    links.append(align.Link(name=step, image=scan.path, to=target))
                    target = step
            links.append(align.Link(name=SODIUM, image=self._sodium(session, "PDw", desc="recon"), to=target))
            after.append(f"{session.unit}.reconstruct")
        frames = {_frame(mask) for masks in session.masks.values() for mask in masks}
        wanted = "FLAIR" in frames or "necrosis" in self._undrawn(session, reference)
        if session.flair is not None and wanted and session.flair.path != anatomy:
            links.append(align.Link(name="FLAIR", image=session.flair.path, to=own))
        if session.dwi is not None:
            links.append(align.Link(name="dwi", image=self.work / session.unit / "b0.nii.gz", to=own))
            after.append(f"{session.unit}.diffusion")
        elif session.adc is not None:
            links.append(align.Link(name="dwi", image=session.adc.path, to=own))
        if not links:
            return None, {}
        # a transform of another program goes from the image to the session's own T1w, past all images between
        links = [
            replace(link, given=session.transforms[link.name], to=own) if link.name in session.transforms else link
            for link in links
        ]
        transforms = {
            link.name: self._place(session, "xfm", ".txt", from_=link.name, to=name, mode="image") for link in links
        }
        files = align.Files(
            anatomy=anatomy,
            anatomy_name=name,
            brain=brain,
            links=tuple(links),
            transforms=tuple(transforms.items()),
            sodium=SODIUM if _has_sodium(session) else None,
            head=self._sodium(session, "mask", desc="head") if _has_sodium(session) else None,
            record=self._record(session, "align"),
            roots=self.roots,
            exports=tuple(
                (frame, place.with_suffix(_XFM[kind]))
                for frame, place in transforms.items()
                for kind in self.config.run.transform_formats
            ),
        )
        task = self._task(
            "align",
            session,
            align.run,
            files,
            align.Params(registration=self.config.registration),
            version=align.VERSION,
            outputs=(*transforms.values(), *(path for _, path in files.exports), files.head, files.record),
            after=after,
        )
        return task, transforms

    def _quantify(self, session: Session, reference: Session | None, aligned: Mapping[str, Mapping[str, Path]]) -> Task:
        metadata = _metadata(session)
        calibration = self.config.calibration
        labels = quantify.labels(metadata, calibration)
        given = {label: session.masks[label][0].path for label in labels if label in session.masks}
        has_head = session.unit in aligned
        regularised = self._regularised(session, aligned)
        fluid = self._fluid(session, reference, aligned)
        files = quantify.Files(
            magnitude=self._sodium(session, "PDw", desc="recon"),
            real=self._sodium(session, "PDw", part="real", desc="recon") if session.kspace else None,
            kspace=session.kspace.path if session.kspace else None,
            reconstruct_record=self._record(session, "reconstruct"),
            head=self._sodium(session, "mask", desc="head") if has_head else None,
            vials=tuple(given.items()),
            denoised=self._sodium(session, "PDw", desc="denoised"),
            tsc=self._sodium(session, "TSCmap"),
            tsc_se=self._sodium(session, "TSCmap", desc="se"),
            vial_masks=tuple(self._sodium(session, "mask", label=label) for label in labels),
            record=self._record(session, "quantify"),
            roots=self.roots,
            regularised=self._sodium(session, "PDw", desc=self.config.reconstruction.method) if regularised else None,
            series=self._series(session),
            fields=self._fields(session),
            corrected=self._corrected(session),
            fluid=fluid,
        )
        segmented = fluid is not None and reference is not None and calibration.source == "csf"
        return self._task(
            "quantify",
            session,
            quantify.run,
            files,
            quantify.Params(
                denoising=self.config.denoising,
                calibration=calibration,
                reference=self.config.reference,
                receive=self.config.receive if self._uses_receive(session) else ReceiveParams(),
                reconstruction=self.config.reconstruction,
                metadata=metadata,
            ),
            version=quantify.VERSION,
            outputs=(files.denoised, files.tsc, files.tsc_se, *files.vial_masks, files.corrected, files.record),
            after=[
                f"{session.unit}.reconstruct",
                *([f"{session.unit}.align"] if has_head else []),
                *([f"{session.unit}.regularise"] if regularised else []),
                *([f"{reference.unit}.parcellate"] if segmented and reference is not None else []),
            ],
        )

    def _fields(self, session: Session) -> quantify.FieldFiles:
        """Return the maps that the sodium image is corrected with; a volume coil stands for a receive map."""
        calibration = self.config.calibration
        divided = session.kspace is None and session.sodium_reference is not None
        receive = None if divided or calibration.receive == "off" else session.rb1map
        rb1map = None if receive is None else receive.path
        if calibration.transmit == "off":
            return quantify.FieldFiles(rb1map=rb1map)
        if session.tb1map is not None:
            sidecar = dict(session.tb1map.sidecar)
            return quantify.FieldFiles(tb1map=session.tb1map.path, rb1map=rb1map, tb1_sidecar=sidecar)
        pair, phases = (session.tb1_angles.get(part, ()) for part in ("mag", "phase"))
        return quantify.FieldFiles(
            angles=tuple(scan.path for scan in pair),
            phases=tuple(scan.path for scan in phases) if pair else (),
            rb1map=rb1map,
            tb1_sidecar=dict(pair[0].sidecar) if pair else {},
        )

    def _uses_receive(self, session: Session) -> bool:
        return self._fields(session).rb1map is not None or self.config.calibration.receive == "bias"

    def _corrected(self, session: Session) -> Path | None:
        """Return the place of the real part after the correction for fields, where there is one."""
        fields = self._fields(session)
        corrected = fields.tb1map or fields.angles or self._uses_receive(session)
        return self._sodium(session, "PDw", part="real", desc="corrected") if session.kspace and corrected else None

    def _fluid(
        self, session: Session, reference: Session | None, aligned: Mapping[str, Mapping[str, Path]]
    ) -> quantify.FluidFiles | None:
        """Return where the internal reference is drawn, if the scale is to stand on one."""
        source = self.config.calibration.source
        here = aligned.get(session.unit, {}).get(SODIUM)
        record = self._record(session, "align")
        masks = session.masks.get("vitreous", ())
        if source == "csf" and reference is not None and here is not None:
            return quantify.FluidFiles(
                fluid=self._place(reference, "probseg", label="CSF"),
                frame="T1w",
                transform=here,
                brain=self._place(reference, "mask", desc="brain"),
                align_record=record,
            )
        if source != "vitreous" or not masks:
            return None
        if _frame(masks[0]) == SODIUM:
            return quantify.FluidFiles(fluid=masks[0].path, frame=SODIUM, transform=None, brain=None, align_record=None)
        if reference is None or here is None:
            return None
        return quantify.FluidFiles(fluid=masks[0].path, frame="T1w", transform=here, brain=None, align_record=record)

    def _parcellate(
        self, reference: Session, aligned: Mapping[str, Mapping[str, Path]]
    ) -> tuple[Task, dict[tuple[str, str], Path]]:
        assert reference.t1w is not None  # noqa: S101
        masks: list[parcellate.MaskFile] = []
        after = {f"{reference.unit}.template"}
        regions: dict[tuple[str, str], Path] = {}
        for session in self.sessions:
            for label in (*MS_LESIONS, *STROKE_REGIONS):
                for scan in session.masks.get(label, ()):
                    name = _mask_frame(session, reference, scan)
                    transform = None if name == "T1w" else aligned.get(session.unit, {}).get(name)
                    if transform is None and name != "T1w":
                        continue
                    if transform is not None:
                        after.add(f"{session.unit}.align")
                    masks.append(
                        parcellate.MaskFile(
                            label=label, session=session.unit, path=scan.path, frame=name, transform=transform
                        )
                    )
                    regions[label, session.unit] = self._place(session, "mask", label=label, desc="consensus")
        # oedema of the first days is no lesion of the T1w image on which the necrosis was drawn
        stroke = [key for key in regions if key[0] in STROKE_REGIONS]
        shown = [key for key in stroke if key[1] == reference.unit] or stroke
        external, choice = choose(reference.segmentations)
        fractions = {name: self._place(reference, "probseg", label=name) for name in _TISSUES}
        filled = self._place(reference, "T1w", desc="filled") if masks else None
        files = parcellate.Files(
            t1w=reference.t1w.path,
            template_transform=self._template_transform(reference),
            masks=tuple(masks),
            external=external,
            preproc=self._place(reference, "T1w", desc="preproc"),
            filled=filled,
            brain=self._place(reference, "mask", desc="brain"),
            fractions=tuple(fractions.items()),
            consensus=tuple((label, unit, path) for (label, unit), path in regions.items()),
            elsewhere=tuple(key for key in stroke if key not in shown),
            dseg=self._place(reference, "dseg", seg="tissue"),
            dseg_table=self._place(reference, "dseg", ".tsv", seg="tissue"),
            raters=self._place(reference, "tsc", ".tsv", desc="raters") if len(masks) > len(regions) else None,
            record=self._record(reference, "parcellate"),
            roots=self.roots,
        )
        task = self._task(
            "parcellate",
            reference,
            parcellate.run,
            files,
            parcellate.Params(
                segmentation=self.config.segmentation,
                filling=self.config.filling,
                regions=self.config.regions,
                random_seed=self.config.run.random_seed,
                choice=choice,
            ),
            version=parcellate.VERSION,
            outputs=(
                files.preproc,
                files.filled,
                files.brain,
                *fractions.values(),
                *regions.values(),
                files.dseg,
                files.dseg_table,
                files.raters,
                files.record,
            ),
            after=sorted(after),
            memory_gb=1.5,
        )
        return task, regions

    def _undrawn(self, session: Session, reference: Session | None) -> tuple[str, ...]:
        """Return the regions of a session that are to be delineated automatically: wanted, seen, and drawn by nobody.

        The final necrosis is seen on the FLAIR of the latest session alone (without times, of the last by name), if
        that is not within a week after onset; oedema on every other one.
        """
        if reference is None:
            return ()
        hours = session.onset_to_scan_h
        timed = [s for s in self.sessions if s.onset_to_scan_h is not None]
        latest = max(timed, key=lambda s: s.onset_to_scan_h or 0.0) if timed else self.sessions[-1]
        last = session is latest and len(self.sessions) > 1 and (hours is None or hours > _WEEK_H)
        seen = {
            "ionic": _has_sodium(session) and not last,
            "cytotoxic": session.dwi is not None and not last,
            "necrosis": session.flair is not None and last,
        }
        return tuple(label for label in self.config.delineation.labels if seen[label] and label not in session.masks)

    def _delineate(
        self, session: Session, reference: Session, transforms: Mapping[str, Path]
    ) -> tuple[Task | None, dict[tuple[str, str], Path]]:
        frames = {"ionic": SODIUM, "cytotoxic": "dwi", "necrosis": "FLAIR"}
        images = {"ionic": self._sodium(session, "PDw", desc="denoised"), "cytotoxic": self._trace(session)}
        if session.flair is not None:
            images["necrosis"] = session.flair.path
        sources = [
            delineate.Source(
                label=label,
                image=images[label],
                frame=frames[label],
                transform=transforms[frames[label]],
                own=self._place(session, "mask", label=label, desc="auto"),
                common=self._place(session, "mask", label=label, desc="consensus"),
            )
            for label in self._undrawn(session, reference)
            if frames[label] in transforms
        ]
        if not sources:
            return None, {}
        assert reference.t1w is not None  # noqa: S101
        own = session.t1w if session is not reference else None
        files = delineate.Files(
            t1w=reference.t1w.path,
            brain=self._place(reference, "mask", desc="brain"),
            csf=self._place(reference, "probseg", label="CSF"),
            template_transform=self._template_transform(reference),
            mirror_record=self._record(reference, "mirror"),
            sources=tuple(sources),
            session_t1w=None if own is None else own.path,
            session_transform=None if own is None else transforms[align.SESSION],
            record=self._record(session, "delineate"),
            roots=self.roots,
        )
        labels = {source.label for source in sources}
        steps = {"ionic": (session, "quantify"), "cytotoxic": (session, "diffusion")}
        task = self._task(
            "delineate",
            session,
            delineate.run,
            files,
            delineate.Params(delineation=self.config.delineation),
            version=delineate.VERSION,
            outputs=(*(place for s in sources for place in (s.own, s.common)), files.record),
            after=[
                f"{reference.unit}.parcellate",
                f"{reference.unit}.mirror",
                f"{session.unit}.align",
                *(f"{steps[label][0].unit}.{steps[label][1]}" for label in sorted(labels & set(steps))),
            ],
        )
        return task, {(source.label, session.unit): source.common for source in sources}

    def _extract(
        self,
        session: Session,
        reference: Session | None,
        aligned: Mapping[str, Mapping[str, Path]],
        regions: Mapping[tuple[str, str], Path],
        delineated: Mapping[str, Task],
    ) -> Task:
        sodium = _has_sodium(session)
        whole = reference is not None
        here = aligned.get(session.unit, {})
        own = {label: path for (label, unit), path in regions.items() if unit == session.unit}
        stroke = {label: own[label] for label in STROKE_REGIONS if label in own}
        late = next((path for (label, _), path in regions.items() if label == _LATE), None)
        other_times = (_LATE,) if stroke and late is not None and _LATE not in stroke else ()
        if late is not None and stroke:
            stroke.setdefault(_LATE, late)
        lesions = {label: own[label] for label in MS_LESIONS if label in own}
        anatomy, anatomy_name = _anatomy(session, reference)
        spaces = list(self.config.run.output_spaces) if whole else [anatomy_name]
        if not sodium or SODIUM not in here:
            spaces = []
        adc = self.roots.output / output(session, datatype="dwi", suffix="ADC", extension=".nii.gz")
        adc_source = adc if session.dwi is not None else (session.adc.path if session.adc else None)
        adc_transform = here.get("dwi") if whole else None
        atlases = reference.atlases if reference is not None else ()
        tables = bool(stroke or atlases) and whole and (sodium or adc_transform is not None)
        expressions = (*stroke, *self.config.regions.expressions) if tables and stroke else ()
        fractions = _TISSUES if whole else ()
        files = extract.Files(
            kspace=session.kspace.path if session.kspace and whole else None,
            real=self._corrected(session) or self._sodium(session, "PDw", part="real", desc="recon")
            if session.kspace and whole
            else None,
            magnitude=self._sodium(session, "PDw", desc="recon") if sodium else None,
            denoised=self._sodium(session, "PDw", desc="denoised") if sodium else None,
            tsc=self._sodium(session, "TSCmap") if sodium else None,
            t1w=reference.t1w.path if reference and reference.t1w else None,
            brain=self._place(reference, "mask", desc="brain") if reference else None,
            anatomy=anatomy,
            anatomy_name=anatomy_name,
            sodium_transform=here.get(SODIUM),
            template_transform=self._template_transform(reference) if reference else None,
            fractions=tuple((name, self._place(reference, "probseg", label=name)) for name in fractions if reference),
            lesions=tuple(lesions.items()),
            regions=tuple(stroke.items()) if tables else (),
            adc=adc_source if tables else None,
            adc_transform=adc_transform if tables else None,
            records=(
                *((step, self._record(s, step)) for step, s in self._records(session, reference, aligned)),
                *((("delineate", self._record(session, "delineate")),) if session.unit in delineated else ()),
            ),
            maps=tuple((space, self._sodium(session, "TSCmap", space=space)) for space in spaces),
            spread=tuple(
                (name, self._sodium(session, "probseg", label=name, desc="psf"))
                for name in ("CGM", "DGM", "NAWM", "CSF")
                if whole and sodium
            ),
            lesion_fractions=tuple(
                (name, self._place(session, "probseg", label=name))
                for name in (("T1iso", "T1hypo") if "T1hypo" in lesions else ("T1iso",))
                if "T2lesion" in lesions and whole and sodium
            ),
            sodium_brain=self._sodium(session, "mask", desc="brain") if whole and sodium else None,
            corrected_map=self._sodium(session, "TSCmap", desc="pvc") if whole and sodium else None,
            mirrored=tuple(
                (name, self._place(session, "mask", label=_label(name), desc="contralateral"))
                for name in expressions
                if self._possible(name, stroke)
            ),
            atlases=tuple(
                (atlas, self._place(session, "dseg", space="T1w", atlas=re.sub(r"[^A-Za-z0-9]+", "", atlas.name)))
                for atlas in (atlases if tables else ())
            ),
            adc_map=self.roots.output / output(session, datatype="dwi", suffix="ADC", extension=".nii.gz", space="T1w")
            if tables and adc_source is not None and adc_transform is not None
            else None,
            tissue_table=self._place(session, "tsc", ".tsv", acq=SODIUM, desc="tissue") if whole and sodium else None,
            roi_table=self._place(session, "tsc", ".tsv", acq=SODIUM, desc="roi") if tables else None,
            fate_table=self._place(session, "tsc", ".tsv", acq=SODIUM, desc="fate") if tables and stroke else None,
            qc_table=self._place(session, "tsc", ".tsv", acq=SODIUM, desc="qc"),
            roots=self.roots,
        )
        params = extract.Params(
            participant_id=session.participant_id,
            session_id=session.session_id,
            onset_to_scan_h=session.onset_to_scan_h,
            omissions=(
                *_omissions(session, reference, stroke, lesions),
                *_not_the_one_wanted(reference, self.config.run.reference_session),
                *_unreached(session, reference, here),
                *self._unregularised(session, aligned),
            ),
            metadata=_metadata(session),
            reconstruction=self.config.reconstruction,
            partialvolume=self.config.partialvolume,
            regions=self.config.regions,
            other_times=other_times,
            fate=self.config.fate,
        )
        steps = [f"{s.unit}.{step}" for step, s in self._records(session, reference, aligned)]
        steps += [task.id for task in delineated.values() if set(task.outputs) & set(stroke.values())]
        return self._task(
            "extract",
            session,
            extract.run,
            files,
            params,
            version=extract.VERSION,
            outputs=(
                *(path for _, path in files.maps),
                *(path for _, path in files.spread),
                *(path for _, path in files.lesion_fractions),
                *(path for _, path in files.mirrored),
                *(place for _, image in files.atlases for place in (image, table_of(image))),
                files.sodium_brain,
                files.corrected_map,
                files.adc_map,
                files.tissue_table,
                files.roi_table,
                files.fate_table,
                files.qc_table,
            ),
            after=steps,
            memory_gb=1.5,
        )

    def _records(
        self, session: Session, reference: Session | None, aligned: Mapping[str, Mapping[str, Path]]
    ) -> list[tuple[str, Session]]:
        steps: list[tuple[str, Session]] = []
        if _has_sodium(session):
            steps.append(("reconstruct", session))
            if self._regularised(session, aligned):
                steps.append(("regularise", session))
            steps.append(("quantify", session))
        if session.dwi is not None:
            steps.append(("diffusion", session))
        if aligned.get(session.unit):
            steps.append(("align", session))
        if reference is not None:
            steps += [("template", reference), ("parcellate", reference)]
            if self._compares_sides(reference):
                steps.append(("mirror", reference))
        return steps

    def _unregularised(
        self, session: Session, aligned: Mapping[str, Mapping[str, Path]]
    ) -> tuple[tuple[str, str], ...]:
        params = self.config.reconstruction
        if not params.regularised or not _has_sodium(session) or self._regularised(session, aligned):
            return ()
        why = "no k-space of the sodium scan" if session.kspace is None else "no registered proton image as its prior"
        return ((f"reconstruction by {params.method}, the linear one stands in", why),)

    def _possible(self, expression: str, masks: Mapping[str, Path]) -> bool:
        from bids_sodium.tissue.rois import names_in

        return all(name in masks for name in names_in(expression))


def _has_sodium(session: Session) -> bool:
    return session.kspace is not None or session.sodium is not None


def _raw_gb(session: Session) -> float:
    """Return the memory that raw data need: what is stored, its sorted copy and what is worked out from it."""
    stored = 0 if session.kspace is None else session.kspace.size_bytes
    return max(1.0, 0.5 + 3.0 * stored / 2**30)


def _metadata(session: Session) -> Mapping[str, Any]:
    scan: Scan | None = session.kspace or session.sodium
    return {} if scan is None else dict(scan.sidecar)


def _anatomy(session: Session, reference: Session | None) -> tuple[Path | None, str]:
    if reference is not None and reference.t1w is not None:
        return reference.t1w.path, "T1w"
    if session.anatomy is None:
        return None, ""
    return session.anatomy.path, session.anatomy.entities["suffix"]


def _frame(mask: Scan) -> str:
    """Return the frame that a mask was drawn in: its space entity, the T1w image where it has none."""
    space = mask.entities.get("space", "T1w")
    if space in _SPACES_OF_DWI:
        return "dwi"
    return SODIUM if space in _SPACES_OF_SODIUM else space


def _mask_frame(session: Session, reference: Session, mask: Scan) -> str:
    """Return the same where the T1w image is that of the anatomy or of the session itself."""
    frame = _frame(mask)
    if frame not in {align.SESSION, "T1w"}:
        return frame
    return "T1w" if session is reference or session.t1w is None else align.SESSION


def _label(expression: str) -> str:
    words = {"&": "And", "|": "Or", "-": "Minus"}
    return "".join(words.get(letter, letter) for letter in expression if letter not in " ()")


def _unreached(session: Session, reference: Session | None, aligned: Mapping[str, Path]) -> tuple[tuple[str, str], ...]:
    """Return the masks of lesions and regions that lie in a frame that no image of the session has."""
    if reference is None:
        return ()
    return tuple(
        (f"region {label}", f"{scan.path.name} lies in the frame {frame}, of which the session has no image")
        for label in (*MS_LESIONS, *STROKE_REGIONS)
        for scan in session.masks.get(label, ())
        if (frame := _mask_frame(session, reference, scan)) != "T1w" and frame not in aligned
    )


def _not_the_one_wanted(reference: Session | None, wanted: str) -> tuple[tuple[str, str], ...]:
    if not wanted or reference is None or reference.session_id == _ses(wanted):
        return ()
    there = reference.session_id or "the only session"
    return (("chosen anatomy", f"{_ses(wanted)} has no T1w image of this participant; that of {there} is taken"),)


def _omissions(
    session: Session, reference: Session | None, stroke: Mapping[str, Path], lesions: Mapping[str, Path]
) -> tuple[tuple[str, str], ...]:
    """Return what the session's output lacks and why, in words."""
    found: list[tuple[str, str]] = [("file choice", note) for note in session.notes]
    if not _has_sodium(session):
        found.append(("sodium image, concentration and tissue table", "the session has no sodium scan"))
        return tuple(found)
    if reference is None:
        found.append(("tissue fractions, tissue table and template space", "the participant has no T1w image"))
        if session.anatomy is None:
            found.append(("registration of the sodium image", "the session has no proton image"))
    if not stroke and session.masks.keys().isdisjoint(STROKE_REGIONS):
        what = "delineated regions" if reference is not None and reference.atlases else "region table"
        found.append((what, "no masks of ionic, cytotoxic or necrosis were given with --derivatives"))
    elif stroke and _LATE not in stroke:
        found.append(("regions of final necrosis", "no mask of necrosis was given for any session"))
    if not lesions and session.masks.keys().isdisjoint(MS_LESIONS):
        found.append(("lesion classes of the tissue table", "no masks of T2lesion or T1hypo were given"))
    if session.dwi is None and session.adc is None:
        found.append(("ADC", "the session has no diffusion images"))
    return tuple(found)
