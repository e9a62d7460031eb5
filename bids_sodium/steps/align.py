"""Images → transforms: the anatomy to the template, the sodium scan and every other image to the anatomy.

Each link is estimated once. The chain sodium → body coil → head coil → T1w is composed, and later steps resample
through the whole of it with one interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, read_volume
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import Volume
from bids_sodium.spatial.registration import Registration, RegistrationParams, register, register_deformable
from bids_sodium.spatial.resampling import resample
from bids_sodium.steps.outputs import save_image, save_transform
from bids_sodium.steps.records import Record, write_record

if TYPE_CHECKING:
    from bids_sodium.spatial.transforms import Transform

__all__ = ["TEMPLATE", "VERSION", "Files", "Link", "Params", "TemplateFiles", "run", "run_template"]

VERSION = "1"
TEMPLATE = "MNI152NLin2009aSym"


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
    """

    name: str
    image: Path
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """One session's images, the anatomy they go to, and the transforms that are written.

    ``anatomy_name`` is the frame of the anatomy (``T1w``, or the suffix of what stands in for it). ``transforms`` has
    one place for each link: its frame to the anatomy's. ``head`` is a head mask on the sodium grid, ``sodium`` the
    name of the sodium link.
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


def run_template(files: TemplateFiles, params: Params) -> None:
    """Place the reference T1w in the symmetric template."""
    record = Record()
    template = load_head_template()
    t1w = read_volume(files.t1w)
    found = register_deformable(
        Volume(np.asarray(template.t1), template.grid),
        t1w,
        params.registration,
        fixed_name=TEMPLATE,
        moving_name="T1w",
        fixed_mask=template.brain,
    )
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
    save_image(
        files.brain,
        t1w.with_data(np.asarray(brain.data) >= 0.5, unit="1"),
        roots=files.roots,
        description="Brain mask of the template on the T1w image",
        sources=[files.t1w, files.transform],
        dtype=np.uint8,
        kind="mask",
    )
    write_record(files.record, record)


def run(files: Files, params: Params) -> None:
    """Estimate every link of a session and compose it with the rest of its chain."""
    record = Record()
    anatomy = read_volume(files.anatomy)
    brain = None if files.brain is None else read_volume(files.brain, dtype=np.uint8).data > 0
    links = {link.name: link for link in files.links}
    images = {link.name: _one(read_volume(link.image)) for link in files.links}
    steps: dict[str, Transform] = {}
    for link in files.links:
        direct = link.to == "anatomy"
        target = files.anatomy_name if direct else link.to
        fixed = anatomy if direct else images[link.to]
        found = register(
            fixed,
            images[link.name],
            params.registration,
            fixed_name=target,
            moving_name=link.name,
            fixed_mask=brain if direct else None,
        )
        _measure(record, f"{link.name}_to_{target}", found)
        steps[link.name] = found.transform
    places = dict(files.transforms)
    for name, link in links.items():
        whole, reached = steps[name], link.to
        path = [name]
        while reached != "anatomy":
            whole = steps[reached] @ whole
            path.append(reached)
            reached = links[reached].to
        save_transform(
            places[name],
            whole,
            roots=files.roots,
            description=" to ".join([*path, files.anatomy_name]) + ", each link estimated once and composed",
            sources=[*(links[step].image for step in path), files.anatomy],
            extra={"Registration": params.registration},
        )
        if name == files.sodium and files.head is not None:
            _write_head(files, anatomy, images[name], places[name], name)
    write_record(files.record, record)


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
            note="standard error of the place of a point of the brain, block jackknife",
        )
    if np.isfinite(found.inverse_consistency_mm):
        record.measure(
            f"registration_inverse_consistency_{name}",
            found.inverse_consistency_mm,
            "mm",
            note="distance between forward and backward estimate",
        )
