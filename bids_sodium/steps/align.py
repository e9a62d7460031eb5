"""Images → transforms: the anatomy to the template, the sodium scan and every other image to the anatomy.

Each link is estimated once. The sodium scan reaches the anatomy directly and through the images between them (sodium →
body coil → head coil → T1w); the way that is known best is taken, composed, and later steps resample through the whole
of it with one interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume
from bids_sodium.bidsio.linear_transforms import read_any, write_flirt, write_lta
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.spatial.paths import Choice, choose, paths_between
from bids_sodium.spatial.registration import (
    Registration,
    RegistrationParams,
    head_mask,
    register,
    register_deformable,
    register_halfway,
)
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine, Transform
from bids_sodium.steps.outputs import save_image, save_transform
from bids_sodium.steps.records import Record, write_record

__all__ = [
    "SESSION",
    "TEMPLATE",
    "VERSION",
    "Files",
    "Link",
    "Params",
    "TemplateFiles",
    "run",
    "run_template",
]

VERSION = "4"
TEMPLATE = "MNI152NLin2009aSym"
SESSION = "orig"
"""Frame of the T1w image of a session that is not the anatomy itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How registrations are estimated."""

    registration: RegistrationParams = field(default_factory=RegistrationParams)
    """Metric, levels and starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFiles:
    """The reference T1w and what comes of placing it in the template."""

    t1w: Path
    transform: Path
    brain: Path
    record: Path
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One image that is registered to the next one of its chain.

    Parameters
    ----------
    name : str
        Frame of the image.
    image : Path
        The image; the last volume where it has several.
    to : str
        Frame it is registered to: another link's name or ``anatomy``.
    given : Path or None
        Transform of another program, which is taken as it is; ``None`` where it is estimated.
    """

    name: str
    image: Path
    to: str
    given: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """One session's images, the anatomy they go to, and the transforms that are written.

    ``anatomy_name`` is the frame of the anatomy (``T1w``, or the suffix of what stands in for it). ``transforms`` has
    one place for each link: its frame to the anatomy's. ``exports`` are places of the same in formats of other
    programs (frame, place; ``.mat`` for FSL, ``.lta`` for FreeSurfer). ``head`` is a head mask on the sodium grid,
    ``sodium`` the name of the sodium link.
    """

    anatomy: Path
    anatomy_name: str
    brain: Path | None
    links: tuple[Link, ...]
    transforms: tuple[tuple[str, Path], ...]
    sodium: str | None
    head: Path | None
    record: Path
    roots: Roots
    exports: tuple[tuple[str, Path], ...] = ()


def run_template(files: TemplateFiles, params: Params) -> None:
    """Place the reference T1w in the symmetric template."""
    record = Record()
    template = load_head_template()
    t1w = read_volume(files.t1w)
    try:
        found = register_deformable(
            Volume(np.asarray(template.t1), template.grid),
            t1w,
            params.registration,
            fixed_name=TEMPLATE,
            moving_name="T1w",
            fixed_mask=template.brain,
        )
    except (DataError, EstimationError) as error:
        raise _of_files(error, {"T1w": files.t1w}) from error
    _measure(record, f"T1w_to_{TEMPLATE}", found)
    save_transform(
        files.transform,
        found.transform,
        roots=files.roots,
        description=f"T1w to {TEMPLATE}, affine and deformable",
        sources=[files.t1w],
        extra={"Registration": params.registration},
    )
    brain = resample(
        Volume(template.brain.astype(np.float32), template.grid), t1w.grid, found.transform, kind="probability"
    )
    inside = np.asarray(brain.data) >= 0.5
    save_image(
        files.brain,
        t1w.with_data(inside, unit="1"),
        roots=files.roots,
        description="Brain mask of the template on the T1w image",
        sources=[files.t1w, files.transform],
        dtype=np.uint8,
        kind="mask",
    )
    write_record(files.record, record)


def run(files: Files, params: Params) -> None:
    """Estimate every link of a session and compose the best way of each image to the anatomy."""
    record = Record()
    anatomy = read_volume(files.anatomy)
    brain = None if files.brain is None else read_volume(files.brain, dtype=np.uint8).data > 0
    images = {link.name: _one(read_volume(link.image)) for link in files.links}
    session = _Session(files, params, record, anatomy, brain, images)
    links = [found for link in files.links if (found := session.link(link.name, link.to)) is not None]
    if files.sodium is not None:
        links += session.direct(files.sodium)
    places = dict(files.transforms)
    errors: dict[str, float] = {}
    for name, image in images.items():
        choice = session.way(name, links)
        errors[name] = choice.target_error_mm
        path = choice.path.frames
        save_transform(
            places[name],
            choice.path.transform,
            roots=files.roots,
            description=" to ".join(path) + ", each link estimated once and composed",
            sources=[*(link.image for link in files.links if link.name in path), files.anatomy],
            extra={"Registration": params.registration, "TargetError": choice.target_error_mm},
        )
        for frame, place in files.exports:
            if frame == name:
                _export(place, choice.path.transform, anatomy.grid, image.grid)
        if name == files.sodium and files.head is not None:
            _write_head(files, anatomy, image, places[name], name)
    record.values |= {"target_error_mm": errors}
    write_record(files.record, record)


@dataclass(frozen=True, slots=True, eq=False)
class _Session:
    """The images of a session while they are registered."""

    files: Files
    params: Params
    record: Record
    anatomy: Volume
    brain: NDArray[np.bool_] | None
    images: dict[str, Volume]
    failed: dict[str, EstimationError] = field(default_factory=dict)

    def link(self, name: str, to: str) -> Registration | None:
        """Return the link from one image to another; ``None`` with a note where another way may do."""
        direct = to == "anatomy"
        target = self.files.anatomy_name if direct else to
        given = next((link.given for link in self.files.links if link.name == name), None)
        if given is not None:
            return self._given(name, target, given, self.anatomy if direct else self.images[to])
        registration = self.params.registration
        try:
            if direct and name == SESSION and registration.halfway:
                found = register_halfway(
                    self.anatomy,
                    self.images[name],
                    registration,
                    first_name=target,
                    second_name=name,
                    first_mask=self.brain,
                )
            else:
                found = register(
                    self.anatomy if direct else self.images[to],
                    self.images[name],
                    registration,
                    fixed_name=target,
                    moving_name=name,
                    fixed_mask=self.brain if direct else None,
                )
        except (DataError, EstimationError) as error:
            images = {link.name: link.image for link in self.files.links}
            told = _of_files(error, {**images, self.files.anatomy_name: self.files.anatomy})
            if isinstance(told, DataError) or not self._has_another_way(name):
                raise told from error
            self.record.omit(f"the way {name} to {target}", error.what)
            self.failed[name] = told
            return None
        _measure(self.record, f"{name}_to_{target}", found)
        return found

    def direct(self, name: str) -> list[Registration]:
        """Return the direct link of an image that reaches the anatomy through others, where it is wanted."""
        chain = self._chain(name)
        if len(chain) < 2 or self.params.registration.path == "chain":
            return []
        # the session's own T1w image is no detour: it lies in the space of the anatomy but for one rigid link
        end = SESSION if SESSION in chain else "anatomy"
        given = any(link.given is not None for link in self.files.links if link.name == name)
        if chain[1] == end or given:
            return []
        found = self.link(name, end)
        return [] if found is None else [found]

    def way(self, name: str, links: list[Registration]) -> Choice:
        """Return the best way of an image to the anatomy."""
        target = self.files.anatomy_name
        paths = paths_between(links, target, name)
        if not paths and name in self.failed:
            raise self.failed[name]
        wanted = self.params.registration.path
        if name == self.files.sodium and wanted != "best" and len(paths) > 1:
            lengths = [path.n_links for path in paths]
            longest = max(lengths) if wanted == "chain" else min(lengths)
            paths = tuple(path for path in paths if path.n_links == longest)
        image = self.images[name]
        head = np.argwhere(head_mask(image))
        choice = choose(paths, image.grid.world(head[:: max(1, len(head) // 2000)].astype(np.float64)))
        if name == self.files.sodium and np.isfinite(choice.target_error_mm):
            self.record.measure(
                f"registration_target_error_{name}",
                choice.target_error_mm,
                "mm",
                note=f"of the whole way {' to '.join(choice.path.frames)}, chosen of {1 + len(choice.others)}",
            )
            for path, apart_mm in zip(choice.others, choice.apart_mm, strict=True):
                self.record.measure(
                    f"registration_apart_{'_'.join(path.frames)}",
                    apart_mm,
                    "mm",
                    note="distance between the ends of this way and of the chosen one",
                )
        if choice.note:
            self.record.warn(f"{name}: {choice.note}")
        return choice

    def _given(self, name: str, target: str, path: Path, fixed: Volume) -> Registration:
        """Return a link that another program has estimated; its error is not known."""
        found = read_any(path, target, name, target_grid=fixed.grid, source_grid=self.images[name].grid)
        if not isinstance(found, Affine):
            raise DataError("holds a deformation, a link is linear", where=path.name, hint="give a rigid transform")
        self.record.measure(
            f"registration_given_{name}_to_{target}",
            1.0,
            note=f"{path.name} as it is; its error is not known",
        )
        unknown = float("nan")
        return Registration(
            transform=found,
            metric=unknown,
            converged=True,
            target_error_mm=unknown,
            inverse_consistency_mm=unknown,
            overlap=unknown,
            n_starts=0,
            n_iterations=0,
            start_spread_mm=unknown,
        )

    def _has_another_way(self, name: str) -> bool:
        """Tell whether the sodium image may reach the anatomy without the link of this image."""
        if self.files.sodium is None or self.params.registration.path != "best" or name == SESSION:
            return False
        chain = self._chain(self.files.sodium)
        return name in chain and len([frame for frame in chain if frame != SESSION]) > 1

    def _chain(self, name: str) -> list[str]:
        """Return the frames that an image passes on its way, itself first, without the anatomy."""
        links = {link.name: link.to for link in self.files.links}
        chain = [name]
        while links[chain[-1]] != "anatomy":
            chain.append(links[chain[-1]])
        return chain


def _of_files(error: DataError | EstimationError, files: Mapping[str, Path]) -> DataError | EstimationError:
    """Return an error that names files where it named frames: ``T1w`` or ``23Na to T1w``."""
    where = " to ".join(files[frame].name if frame in files else frame for frame in error.where.split(" to "))
    return type(error)(error.what, where=where, hint=error.hint)


def _export(place: Path, transform: Transform, target_grid: Grid, source_grid: Grid) -> None:
    """Write a linear transform as FSL or FreeSurfer do."""
    assert isinstance(transform, Affine)  # noqa: S101 - links are linear
    write = write_lta if place.suffix == ".lta" else write_flirt
    write(place, transform, target_grid=target_grid, source_grid=source_grid)


def _write_head(files: Files, anatomy: Volume, sodium: Volume, place: Path, name: str) -> None:
    assert files.head is not None  # noqa: S101
    anatomy_from_na = read_transform(place, files.anatomy_name, name)
    inside = resample(
        anatomy.with_data(_head(np.asarray(anatomy.data, dtype=np.float32)).astype(np.float32)),
        sodium.grid,
        anatomy_from_na,
        kind="probability",
    )
    save_image(
        files.head,
        sodium.with_data(np.asarray(inside.data) > 0.2, unit="1"),
        roots=files.roots,
        description="Head on the sodium grid: the 1H anatomy above its background",
        sources=[files.anatomy, place],
        dtype=np.uint8,
        kind="mask",
    )


def _head(data: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return the largest bright component of a 1H image, holes filled."""
    from scipy import ndimage

    top = float(np.percentile(data, 99))
    bright = ndimage.binary_opening(data > 0.12 * top, iterations=1)
    labels, count = ndimage.label(bright)
    if count == 0:
        return np.asarray(data > 0.12 * top)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    head = ndimage.binary_closing(labels == int(sizes.argmax()), iterations=3)
    return np.asarray(ndimage.binary_fill_holes(head))


def _one(image: Volume) -> Volume:
    """Return the last volume: of a PD/T2 pair the T2-weighted one, in which CSF is bright as it is in sodium.

    At 6 mm the sodium image met a T2-weighted image within 0.2 mm, a PD-weighted one within 4.5 mm.
    """
    data = np.asarray(image.data)
    return image if data.ndim == 3 else image.with_data(data.reshape(*data.shape[:3], -1)[..., -1])


def _measure(record: Record, name: str, found: Registration) -> None:
    record.measure(
        f"registration_metric_{name}",
        found.metric,
        note="share of the variance of the fixed image left unexplained; lower is better",
    )
    record.measure(f"registration_converged_{name}", float(found.converged))
    if np.isfinite(found.target_error_mm):
        record.measure(
            f"registration_target_error_{name}",
            found.target_error_mm,
            "mm",
            note="standard error of the place of a point of the brain: jackknife, other models, inverse consistency",
        )
    if np.isfinite(found.inverse_consistency_mm):
        record.measure(
            f"registration_inverse_consistency_{name}",
            found.inverse_consistency_mm,
            "mm",
            note="distance between estimates over the points of either image; the transform lies half-way",
        )
