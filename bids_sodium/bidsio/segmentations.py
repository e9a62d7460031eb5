"""Anatomy that another program has segmented → tissue fractions on the T1w grid.

Nouns: an `External` is what one derivative dataset offers for one participant, found by names alone: *maps* (one image
a tissue: fMRIPrep, sMRIPrep, FSL FAST), *volumes* (one 4-D image: GIF, BIDS ``LabelMap``) or *labels* (FreeSurfer,
FastSurfer, SynthSeg, any image with a BIDS table). `Tissues` is what comes of it.

Which is taken: datasets in the order in which they are named on the command line, the first that holds grey and white
matter. Within one, maps go before volumes and those before labels, because probabilities lie closer to fractions than
labels do. Labels still say which grey matter is deep: those of the same dataset, else of the next one that has any,
else the deformable prior.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.atlases import label_names
from bids_sodium.bidsio.files import read_json, read_transform, read_volume
from bids_sodium.bidsio.names import Entities, parse
from bids_sodium.core.data import HeadTemplate, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine, Transform
from bids_sodium.tissue.external import (
    BIDS,
    FAST,
    FREESURFER,
    GIF,
    check_contrast,
    checked,
    explained,
    split,
    tissue_of_name,
    tissues_of,
)

__all__ = ["External", "Finder", "Tissues", "choose", "read_tissues"]

Array: TypeAlias = NDArray[np.float32]

_IMAGES = (".nii.gz", ".nii", ".mgz")
_READ = (*_IMAGES, ".txt")
_NATIVE = frozenset({"T1w", "orig", "individual", "native", "anat", "scanner"})
_MAPS = {
    "GM": "GM",
    "CGM": "CGM",
    "WM": "NAWM",
    "NAWM": "NAWM",
    "CSF": "CSF",
    "DGM": "DGM",
    "SGM": "DGM",
    "SCGM": "DGM",
}
_NOT_ANATOMY = frozenset(
    {
        "func",
        "dwi",
        "fmap",
        "perf",
        "figures",
        "log",
        "logs",
        "surf",
        "label",
        "stats",
        "scripts",
        "touch",
        "tmp",
        "trash",
    }
)
_PVE = re.compile(r"(.*)_pve_([012])")
_FAST_LABELS = re.compile(r".*_pveseg|.*fast_seg|.*_T1w(_brain)?_seg")
_GIF = re.compile(r".*NeuroMorph_Segmentation")
_DEEP = re.compile(r".*(first|subcort)_?seg")
_LABELS = (
    re.compile(r".*_desc-aseg_dseg"),
    re.compile(r".*_desc-aparcaseg_dseg"),
    re.compile(r"aseg"),
    re.compile(r"aparc(\.DKTatlas)?\+aseg(\.deep|\.mapped)?"),
    re.compile(r"aseg\.auto(_noCCseg)?"),
    re.compile(r".*synthseg.*"),
    re.compile(r"(?!.*_atlas-).*_dseg"),
    _FAST_LABELS,
)
"""Stems of label images, the first of them first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """What one derivative dataset offers.

    Parameters
    ----------
    name : str
        Name of the dataset, as given on the command line.
    maps : tuple of (str, Path)
        Map of each tissue.
    volumes : Path or None
        One image with a volume for each tissue.
    labels : Path or None
        Label image.
    table : Path or None
        Table of the labels.
    deep : Path or None
        Label image of deep grey matter alone (FSL FIRST).
    brain : Path or None
        Brain mask.
    transform : Path or None
        ``from-orig_to-T1w``: from the raw T1w to the dataset's own.
    donor : External or None
        Another dataset, whose labels say which grey matter is deep.
    """

    name: str
    maps: tuple[tuple[str, Path], ...] = ()
    volumes: Path | None = None
    labels: Path | None = None
    table: Path | None = None
    deep: Path | None = None
    brain: Path | None = None
    transform: Path | None = None
    donor: External | None = None

    @property
    def kind(self) -> str:
        """What the fractions are made of: ``maps``, ``volumes``, ``labels``, or nothing."""
        return "maps" if self.maps else "volumes" if self.volumes else "labels" if self.labels else ""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file."""
        single = (self.volumes, self.labels, self.table, self.deep, self.brain, self.transform)
        own = (*(path for _, path in self.maps), *(path for path in single if path is not None))
        return own if self.donor is None else (*own, *self.donor.paths)


@dataclass(frozen=True, slots=True, eq=False)
class Tissues:
    """Fractions from an external segmentation.

    Parameters
    ----------
    fractions : dict of str to (nx, ny, nz) ndarray
        ``CGM``, ``DGM``, ``NAWM`` and ``CSF`` on the T1w grid, 0 to 1, their sum at most 1.
    brain : (nx, ny, nz) ndarray of bool
        Where they add up to more than a half.
    source : str
        Name of the dataset and what was read: ``"fmriprep (maps)"``.
    notes : tuple of str
        Choices and repairs.
    warnings : tuple of str
        Why the fractions may be wrong.
    """

    fractions: dict[str, Array]
    brain: NDArray[np.bool_]
    source: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    stem: str
    entities: Entities
    suffix: str
    session: str | None


@dataclass(slots=True)
class Finder:
    """Finds segmentations in one derivative dataset by the names of its files; its top folder is read once.

    Parameters
    ----------
    name : str
        Name of the dataset.
    root : Path
        The dataset.

    Examples
    --------
    >>> Finder("nothing", Path("no-such-folder")).find("sub-01", None) is None
    True
    """

    name: str
    root: Path
    _top: dict[str, list[str]] | None = field(default=None, init=False)

    def find(self, participant: str, session: str | None, anatomy: Entities | None = None) -> External | None:
        """Return what there is for a participant's session, or ``None`` where there is nothing.

        Parameters
        ----------
        participant : str
            With its ``sub-``.
        session : str or None
            With its ``ses-``; files of no session serve every session.
        anatomy : mapping, optional
            Entities of the T1w image, which pick the right ``from-orig_to-T1w`` of several.
        """
        files = [
            file
            for file in (_parsed(path, self.root) for path in self._files(participant, session))
            if file.session in {None, session} and file.entities.get("space", "T1w") in _NATIVE
        ]
        # files of the session before those of the participant, then the plainest name
        files.sort(key=lambda file: (file.session is None, len(file.entities), len(file.path.parts), file.stem))
        images = [file for file in files if file.path.name.endswith(_IMAGES)]
        labels = next((file for pattern in _LABELS for file in images if pattern.fullmatch(file.stem)), None)
        found = External(
            name=self.name,
            maps=tuple(_maps(images).items()),
            volumes=_first(images, lambda file: bool(_GIF.fullmatch(file.stem)) or _is_four_d(file)),
            labels=None if labels is None else labels.path,
            table=None if labels is None else self._table(labels),
            deep=_first(images, lambda file: bool(_DEEP.fullmatch(file.stem))),
            brain=_first(images, lambda file: file.suffix == "mask" and file.entities.get("desc") == "brain"),
            transform=_from_orig(files, anatomy or {}),
        )
        return found if found.kind or found.deep else None

    def _files(self, participant: str, session: str | None) -> Iterator[Path]:
        if self._top is None:
            self._top = {}
            for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
                named = re.match(r"sub-[A-Za-z0-9]+", path.name)
                if named is not None:
                    self._top.setdefault(named[0], []).append(path.name)
        for name in self._top.get(participant, ()):
            path = self.root / name
            # FreeSurfer and others name a folder for each session: sub-01_ses-1
            other = re.search(r"_(ses-[A-Za-z0-9]+)", name)
            if other is not None and other[1] != session:
                continue
            if path.is_dir():
                yield from _walk(path)
            elif name.endswith(_READ):
                yield path

    def _table(self, labels: _Found) -> Path | None:
        beside = labels.path.with_name(labels.stem + ".tsv")
        # by the inheritance principle fMRIPrep keeps desc-aseg_dseg.tsv at its top
        tail = "_".join(part for part in labels.stem.split("_") if part.startswith(("desc-", "seg-", "atlas-")))
        shared = self.root / (f"{tail}_{labels.suffix}.tsv" if tail else f"{labels.suffix}.tsv")
        return next((path for path in (beside, shared) if path.is_file()), None)


def choose(found: Sequence[External]) -> tuple[External | None, tuple[str, ...]]:
    """Return the segmentation that is taken, with labels for its deep grey matter, and notes.

    Parameters
    ----------
    found : sequence of External
        In the order of the command line.

    Returns
    -------
    chosen : External or None
        The first that has maps, volumes or labels; ``None`` where there is none.
    notes : tuple of str
        What was taken and what was not.

    Examples
    --------
    >>> fast = External(name="fast", maps=(("GM", Path("pve_1.nii.gz")),))
    >>> chosen, notes = choose([fast, External(name="freesurfer", labels=Path("aseg.mgz"))])
    >>> notes
    ('tissue fractions are those of fast (maps), deep grey matter that of freesurfer', 'not used: freesurfer (labels)')
    """
    whole = [external for external in found if external.kind]
    if not whole:
        return None, ()
    first = whole[0]
    text = f"tissue fractions are those of {first.name} ({first.kind})"
    if first.kind != "labels" and first.labels is None and first.deep is None:
        donor = next((other for other in found if other is not first and (other.deep or other.labels)), None)
        if donor is not None:
            first = replace(first, donor=donor)
            text += f", deep grey matter that of {donor.name}"
    others = ", ".join(f"{other.name} ({other.kind})" for other in whole[1:])
    return first, (text, f"not used: {others}") if others else (text,)


def read_tissues(external: External, t1w: Volume, prior: HeadTemplate) -> Tissues:
    """Read an external segmentation as tissue fractions on the T1w grid.

    Maps on another grid are resampled once: through ``from-orig_to-T1w`` where the dataset has it, else because both
    grids state the same world (FreeSurfer's conformed space does). What lies elsewhere is refused.

    Parameters
    ----------
    external : External
        Files.
    t1w : Volume
        The T1w image they are of.
    prior : HeadTemplate
        Head template on the T1w grid: deep grey matter where no labels say it, and the check of the place.

    Returns
    -------
    Tissues
        Fractions.

    Raises
    ------
    DataError
        If maps are no shares, labels are not understood, or a tissue is missing.
    GeometryError
        If it does not lie on the T1w image or does not fit its contrast.
    """
    notes: list[str] = []
    warnings: tuple[str, ...] = ()
    reader = _Reader(t1w, external.transform, notes)
    try:
        if external.kind == "labels":
            maps = _one_hot(external, reader)
            warnings = ("labels say one tissue a voxel: fractions at borders are those of resampling alone",)
        else:
            maps, rescaled = checked(_three_d(external.maps, reader) if external.maps else _four_d(external, reader))
            notes += rescaled
        if external.kind == "volumes":
            warnings = ("probabilities of a label are not shares of a voxel: fractions at borders are too sharp",)
        fractions = _whole(external, maps, reader, prior)
        _check_place(fractions, prior, t1w)
        check_contrast(fractions, t1w.data)
    except DataError as error:
        where = error.where or external.paths[0].name
        raise type(error)(error.what, where=where, hint=error.hint) from error
    brain = np.sum(list(fractions.values()), axis=0) > 0.5
    source = f"{external.name} ({external.kind})"
    return Tissues(fractions, np.asarray(brain), source, tuple(dict.fromkeys(notes)), warnings)


@dataclass(slots=True)
class _Reader:
    """Reads images of one dataset onto the T1w grid."""

    t1w: Volume
    transform: Path | None
    notes: list[str]

    def on_grid(self, data: NDArray[Any], image: Volume, path: Path) -> Array:
        """Return shares on the T1w grid through at most one interpolation."""
        share = np.asarray(data, dtype=np.float32)
        bad = int((~np.isfinite(share)).sum())
        if bad:
            raise DataError(
                f"{bad} voxels ({100 * bad / share.size:.1f} %) are NaN or infinite",
                where=path.name,
                hint="write zeros outside the brain",
            )
        theirs: Transform = Affine.identity("external", "T1w")
        if self.transform is not None:
            theirs = read_transform(self.transform, "external", "T1w")
        still = isinstance(theirs, Affine) and np.allclose(theirs.matrix, np.eye(4), atol=1e-3)
        if still and image.grid.same_as(self.t1w.grid, tolerance_mm=1e-2):
            return share
        self.notes.append(f"{path.name} lies on another grid and was resampled to the T1w image")
        try:
            moved = resample(image.with_data(share), self.t1w.grid, theirs, kind="intensity")
        except GeometryError as error:
            raise GeometryError(
                f"no part of it lies in the T1w image ({error.what})",
                where=path.name,
                hint="give a segmentation of this T1w image",
            ) from error
        return np.asarray(moved.data, dtype=np.float32)


def _three_d(maps: Iterable[tuple[str, Path]], reader: _Reader) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for tissue, path in maps:
        image = read_volume(path)
        data = np.asarray(image.data)
        if data.ndim != 3:
            raise DataError(f"a map of {tissue} with {data.ndim} axes", where=path.name, hint="give one volume a map")
        found[tissue] = reader.on_grid(data, image, path)
    return found


def _four_d(external: External, reader: _Reader) -> dict[str, Array]:
    path = external.volumes
    assert path is not None  # noqa: S101
    image = read_volume(path)
    data = np.asarray(image.data)
    count = data.shape[3] if data.ndim == 4 else 1
    sidecar = path.with_name(path.name.partition(".")[0] + ".json")
    names = read_json(sidecar).get("LabelMap") if sidecar.is_file() else None
    if names is not None:
        tissues = [tissue_of_name(str(name)) or "none" for name in names]
    elif _GIF.fullmatch(path.name.partition(".")[0]) and count in {6, 9}:
        tissues = list(GIF[:count])
    else:
        raise DataError(
            f"{count} volumes of which no table says the tissues",
            where=path.name,
            hint='name them in its sidecar, for example "LabelMap": ["CSF", "GM", "WM"]',
        )
    if len(tissues) != count:
        raise DataError(f"{count} volumes but a LabelMap of {len(tissues)} names", where=path.name)
    found: dict[str, Array] = {}
    for index, tissue in enumerate(tissues):
        if tissue != "none":
            share = reader.on_grid(data[..., index], image, path)
            found[tissue] = found[tissue] + share if tissue in found else share
    return found


def _labels(path: Path, table: Path | None) -> tuple[Volume, dict[int, str]]:
    """Return a label image and the tissue of each of its numbers."""
    image = read_volume(path)
    data = np.asarray(image.data)
    if data.ndim != 3 or not np.isfinite(data).all() or not np.array_equal(data, np.rint(data)):
        raise DataError("a label image holds one whole number a voxel", where=path.name, hint="was it interpolated?")
    numbers = data.astype(np.int32)
    values, counts = np.unique(numbers, return_counts=True)
    present = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    stem = path.name.partition(".")[0]
    try:
        if table is None and _FAST_LABELS.fullmatch(stem) and set(present) <= {0, *FAST}:
            return image.with_data(numbers), dict(FAST)
        if table is None and stem.endswith("_dseg") and set(present) <= {0, *BIDS}:
            return image.with_data(numbers), dict(BIDS)
        return image.with_data(numbers), tissues_of(present, label_names(table) if table is not None else None)
    except DataError as error:
        raise DataError(error.what, where=path.name, hint=error.hint) from error


def _one_hot(external: External, reader: _Reader) -> dict[str, Array]:
    assert external.labels is not None  # noqa: S101
    image, tissue = _labels(external.labels, external.table)
    found = {}
    for name in sorted(set(tissue.values()) - {"none"}):
        numbers = [number for number, other in tissue.items() if other == name]
        found[name] = reader.on_grid(np.isin(image.data, numbers), image, external.labels)
    return found


def _whole(external: External, maps: dict[str, Array], reader: _Reader, prior: HeadTemplate) -> dict[str, Array]:
    """Return the four tissues: deep grey matter split off, fluid completed."""
    deep = np.asarray(prior.deep, dtype=np.float32)
    if "DGM" not in maps:
        donor = external if external.kind != "labels" else External(name=external.name, deep=external.deep)
        found = _deep_labels(donor, reader)
        if found is None and external.donor is not None:
            found = _deep_labels(external.donor, replace(reader, transform=external.donor.transform))
        if found is None:
            reader.notes.append("deep grey matter is that of the registered template")
        else:
            deep = found
    loose_ml = float(np.sum(maps["CSF"])) * reader.t1w.grid.voxel_ml if "CSF" in maps else 0.0
    if "CSF" not in maps or (external.kind == "labels" and loose_ml < _LEAST_SULCAL_ML):
        inside, word = np.asarray(prior.brain, dtype=np.float32), "the registered template's brain"
        if external.brain is not None:
            mask = read_volume(external.brain)
            inside, word = reader.on_grid(np.asarray(mask.data) > 0.5, mask, external.brain), external.brain.name
        rest = np.clip(inside - np.sum(list(maps.values()), axis=0), 0.0, 1.0).astype(np.float32)
        maps = {**maps, "CSF": maps.get("CSF", np.float32(0.0)) + rest}
        reader.notes.append(f"CSF outside the ventricles is what {word} leaves")
    return split(maps, deep)


_LEAST_SULCAL_ML = 20.0
"""FreeSurfer's aseg labels 1-3 mL of CSF outside the ventricles, SynthSeg all of it, 150 mL and more."""


def _deep_labels(external: External, reader: _Reader) -> Array | None:
    """Return the share that labels call deep grey matter; ``None`` where there are none that do."""
    path = external.deep or external.labels
    if path is None:
        return None
    if external.deep is not None:
        # FSL FIRST labels nothing but nuclei, hippocampus, amygdala and brain stem, in FreeSurfer's numbers
        image = read_volume(path)
        tissue = {int(n): FREESURFER.get(int(n), "none") for n in np.unique(np.rint(np.asarray(image.data)))}
    else:
        image, tissue = _labels(path, external.table)
    numbers = [number for number, name in tissue.items() if name == "DGM"]
    if not numbers:
        return None
    reader.notes.append(f"deep grey matter is that of {path.name}")
    return reader.on_grid(np.isin(np.rint(np.asarray(image.data)), numbers), image, path)


def _check_place(fractions: Mapping[str, Array], prior: HeadTemplate, t1w: Volume) -> None:
    """Refuse a segmentation that lies beside the image: the registered template is the measure of both checks."""
    brain = np.sum(list(fractions.values()), axis=0) > 0.5
    overlap = 2.0 * float((brain & prior.brain).sum()) / max(float(brain.sum() + prior.brain.sum()), 1.0)
    if overlap < _LEAST_OVERLAP:
        raise GeometryError(
            f"the external brain overlaps the template's, registered to the T1w image, by {overlap:.2f} (Dice)",
            hint="give a segmentation of this T1w image, in its space",
        )
    theirs = explained([fractions[name] for name in ("CSF", "CGM", "DGM", "NAWM")], t1w.data, prior.brain)
    ours = explained([prior.csf, prior.gm, prior.wm], t1w.data, prior.brain)
    if theirs < _LEAST_EXPLAINED * ours:
        raise GeometryError(
            f"the external tissues account for {100 * theirs:.0f} % of the T1w image's contrast, the registered "
            f"template for {100 * ours:.0f} %",
            hint="check that they are of this image, in its space",
        )


_LEAST_OVERLAP = 0.8
"""Brain masks of programs differ by CSF: 0.90 to 0.97 against the template; a shift of 15 mm leaves 0.84."""

_LEAST_EXPLAINED = 0.8
"""A segmentation of the image itself accounts for more of its contrast than the template does, which is off by 2 mm."""


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if entry.name not in _NOT_ANATOMY:
                    yield from _walk(Path(entry.path))
            elif entry.name.endswith(_READ):
                yield Path(entry.path)


def _parsed(path: Path, root: Path) -> _Found:
    extension = next(end for end in _READ if path.name.endswith(end))
    stem = path.name[: len(path.name) - len(extension)]
    # names of other programs are no entities, but their folders may name the session
    stated = re.search(r"(?<![A-Za-z0-9])ses-[A-Za-z0-9]+", path.relative_to(root).as_posix())
    session = None if stated is None else stated[0]
    try:
        name = parse(stem)
    except DataError:
        return _Found(path, stem, {}, "", session)
    return _Found(path, stem, name.entities, name.suffix, session)


def _maps(images: Iterable[_Found]) -> dict[str, Path]:
    """Return the map of each tissue, of one program: BIDS names, else FSL FAST's."""
    named: dict[str, Path] = {}
    fast: dict[str, dict[str, Path]] = {}
    for file in images:
        label = file.entities.get("label", file.entities.get("class", ""))
        if file.suffix in {"probseg", "probtissue"} and label in _MAPS:
            named.setdefault(_MAPS[label], file.path)
        part = _PVE.fullmatch(file.stem)
        if part is not None:
            fast.setdefault(part[1], {})[FAST[int(part[2]) + 1]] = file.path
    if {"NAWM"} <= named.keys() and named.keys() & {"GM", "CGM"}:
        return named
    return next((maps for maps in fast.values() if len(maps) == 3), {})


def _is_four_d(file: _Found) -> bool:
    return file.suffix == "probseg" and "label" not in file.entities


def _first(files: Iterable[_Found], wanted: Callable[[_Found], bool]) -> Path | None:
    return next((file.path for file in files if wanted(file)), None)


def _from_orig(files: Iterable[_Found], anatomy: Entities) -> Path | None:
    """Return the transform of the raw T1w, or of the one of several whose other entities the T1w has."""
    apart = {"from", "to", "mode", "ses", "sub"}
    for file in files:
        if file.suffix != "xfm" or file.entities.get("from") != "orig" or file.entities.get("to") != "T1w":
            continue
        own = {key: value for key, value in file.entities.items() if key not in apart}
        if own.items() <= dict(anatomy).items():
            return file.path
    return None
