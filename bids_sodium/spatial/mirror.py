"""The other side of the head: homologous points across the mid-sagittal plane.

Through a symmetric template the mirror follows the anatomy, ``image_from_template @ flip @ template_from_image``;
without one it is the plane about which the head is most like its own reflection. How far homologous points are missed
is read from the image itself: what still has to be moved to make it like its own mirror image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, EstimationError, GeometryError
from bids_sodium.spatial._demons import demons, grid_around, normalised
from bids_sodium.spatial.registration import Registration, RegistrationParams, register
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine, Transform

__all__ = [
    "Mirror",
    "MirrorParams",
    "contralateral",
    "contralateral_masks",
    "find_mirror",
    "homologous_error_mm",
    "mid_sagittal_mirror",
    "mirror_transform",
]

_DEFAULT = RegistrationParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorParams:
    """Which mirror is taken."""

    method: Literal["template", "plane", "best"] = "template"
    """``template``: through the symmetric template, the plane where there is none or where the template misses by more
    than ``doubtful_mm`` and the plane by less; ``plane``: the mid-sagittal plane; ``best``: the one that misses
    homologous points by less."""

    doubtful_mm: float = 3.0
    """Median miss of homologous points beyond which the other map is tried and a reader is told, in mm."""

    def __post_init__(self) -> None:
        if self.method not in ("template", "plane", "best"):
            raise ConfigError(f"the mirror {self.method!r} is unknown", hint="choose template, plane or best")
        if not self.doubtful_mm > 0:
            raise ConfigError(f"mirror.doubtful_mm is {self.doubtful_mm}", hint="give a positive number of mm")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mirror:
    """The map to the other side and how well it does.

    Parameters
    ----------
    transform : Affine or Chain
        ``image_from_image``.
    method : str
        ``"template"`` or ``"plane"``.
    median_mm, p95_mm : float
        Median and 95th percentile over the brain of the distance by which homologous points are missed, as the image
        shows it; in mm.
    note : str
        What a reader must know, empty where there is nothing.
    """

    transform: Transform
    method: str
    median_mm: float
    p95_mm: float
    note: str


def mirror_transform(template_from_image: Transform) -> Transform:
    """Return the map from each point of the image to its homologue on the other side.

    Parameters
    ----------
    template_from_image : Affine, Warp or Chain
        Place of the image in a template that is symmetric about ``x = 0``.

    Returns
    -------
    Affine or Chain
        ``image_from_image``, which is its own inverse as far as the warp is inverted exactly.

    Raises
    ------
    EstimationError
        If the warp cannot be inverted.

    Examples
    --------
    >>> shift = np.eye(4)
    >>> shift[0, 3] = 5.0
    >>> mirror_transform(Affine(shift, "mni", "t1w")).apply([10.0, 2.0, 3.0]).tolist()
    [-20.0, 2.0, 3.0]
    """
    flip = Affine(np.diag([-1.0, 1.0, 1.0, 1.0]), template_from_image.target, template_from_image.target)
    return template_from_image.inverse() @ (flip @ template_from_image)


def contralateral(mask: NDArray[np.bool_], grid: Grid, mirror: Transform) -> NDArray[np.bool_]:
    """Return the homologous region on the other side.

    Parameters
    ----------
    mask : (nx, ny, nz) ndarray of bool
        Region on one side.
    grid : Grid
        Lattice of the image.
    mirror : Affine or Chain
        ``image_from_image`` of `mirror_transform` or `mid_sagittal_mirror`.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        Voxels whose homologue lies in the region, at least half.

    Raises
    ------
    GeometryError
        If the mask does not fit the grid.
    EstimationError
        If nothing of the region has a homologue within the image.

    Examples
    --------
    >>> grid = Grid.centred((21, 21, 21), 2.0)
    >>> left = np.zeros(grid.shape, dtype=bool)
    >>> left[2:6, 8:12, 8:12] = True
    >>> right = contralateral(left, grid, Affine(np.diag([-1.0, 1.0, 1.0, 1.0]), "t1w", "t1w"))
    >>> bool((right == left[::-1]).all())
    True
    """
    if mask.shape != grid.shape:
        raise GeometryError(f"a mask of shape {mask.shape} on a grid of shape {grid.shape}")
    region = Volume(np.asarray(mask, dtype=np.bool_), grid)
    other = np.asarray(resample(region, grid, mirror, "probability", average=False).data) >= 0.5
    if mask.any() and not other.any():
        raise EstimationError(
            f"none of the {int(mask.sum())} voxels of the region has a homologue within the image",
            hint="check the transform to the template",
        )
    return other


def contralateral_masks(
    masks: Mapping[str, NDArray[np.bool_]], grid: Grid, mirror: Transform
) -> dict[str, NDArray[np.bool_]]:
    """Return the homologous regions of several masks, which may overlap, through one resampling of them all.

    Parameters
    ----------
    masks : mapping of str to (nx, ny, nz) ndarray of bool
        At most 31 regions.
    grid : Grid
        Lattice of the image.
    mirror : Affine or Chain
        As for `contralateral`.

    Returns
    -------
    dict of str to (nx, ny, nz) ndarray of bool
        Voxels whose homologue lies in the region; empty where no voxel has one.

    Raises
    ------
    GeometryError
        If a mask does not fit the grid, or there are more than 31.

    Examples
    --------
    >>> grid = Grid.centred((21, 21, 21), 2.0)
    >>> left = np.zeros(grid.shape, dtype=bool)
    >>> left[2:6, 8:12, 8:12] = True
    >>> flip = Affine(np.diag([-1.0, 1.0, 1.0, 1.0]), "t1w", "t1w")
    >>> both = contralateral_masks({"a": left, "b": left[:, ::-1]}, grid, flip)
    >>> bool((both["a"] == left[::-1]).all() and (both["b"] == left[::-1, ::-1]).all())
    True
    """
    if len(masks) > 31:
        raise GeometryError(f"{len(masks)} regions at once", hint="mirror at most 31 at a time")
    bits = np.zeros(grid.shape, dtype=np.int32)
    for bit, (name, mask) in enumerate(masks.items()):
        if mask.shape != grid.shape:
            raise GeometryError(f"mask {name} of shape {mask.shape} on a grid of shape {grid.shape}")
        bits |= np.asarray(mask, dtype=np.int32) << bit
    other = np.asarray(resample(Volume(bits, grid), grid, mirror, "label", average=False).data).astype(np.int32)
    return {name: (other >> bit & 1).astype(bool) for bit, name in enumerate(masks)}


def homologous_error_mm(
    image: Volume, mirror: Transform, brain: NDArray[np.bool_], params: RegistrationParams = _DEFAULT
) -> NDArray[np.float64]:
    """Return by how much homologous points are missed, as the image itself shows it.

    The image and its mirror image, each with one mean and contrast in every neighbourhood, are matched by demons: with
    a perfect mirror of a symmetric head nothing has to be moved. Natural asymmetry counts as a miss, since to the
    mirror it is one; lesions of one side are best masked out of ``brain`` or filled first.

    Parameters
    ----------
    image : Volume
        Head in which structures are seen, such as the T1w.
    mirror : Affine or Chain
        ``image_from_image``.
    brain : (nx, ny, nz) ndarray of bool
        Brain mask.
    params : RegistrationParams
        Levels and smoothing of the demons.

    Returns
    -------
    (n,) ndarray
        Distance at each point of the brain on a grid of the finest level, in mm.

    Raises
    ------
    GeometryError
        If the mask does not fit the image.
    EstimationError
        If the mask is empty.

    Examples
    --------
    >>> grid = Grid.centred((33, 37, 33), 4.0)
    >>> x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    >>> head = np.exp(-((x / 45) ** 4) - (y / 55) ** 4 - (z / 45) ** 4) * (2 + np.cos(x / 7) + np.sin(y / 8 + z / 9))
    >>> flip = Affine(np.diag([-1.0, 1.0, 1.0, 1.0]), "t1w", "t1w")
    >>> bool(np.median(homologous_error_mm(Volume(head, grid), flip, head > 0.5)) < 0.1)
    True
    """
    from scipy import ndimage

    if brain.shape != image.grid.shape:
        raise GeometryError(f"a mask of shape {brain.shape} on an image of shape {image.grid.shape}")
    if not brain.any():
        raise EstimationError("the brain mask is empty, so that nothing can be compared with its mirror image")
    still = Affine.identity(mirror.target, mirror.source)
    grid, inner = grid_around(brain, image.grid, params)
    outside_mm = ndimage.distance_transform_edt(~inner, sampling=grid.voxel_mm)
    weight = np.asarray(outside_mm <= params.demons_margin_mm, dtype=np.float64)
    sigma = params.neighbourhood_mm / np.array(grid.voxel_mm)
    plain = Volume(np.asarray(image.data, dtype=np.float32), image.grid)
    pair = [normalised(np.asarray(resample(plain, grid, place).data), weight, sigma) for place in (still, mirror)]
    field = demons(pair[0], pair[1], grid, params)
    return np.asarray(np.linalg.norm(field[inner].astype(np.float64), axis=-1))


def find_mirror(
    image: Volume,
    brain: NDArray[np.bool_],
    template_from_image: Transform | None,
    params: MirrorParams | None = None,
    registration: RegistrationParams = _DEFAULT,
    *,
    name: str = "image",
) -> Mirror:
    """Return the mirror of a head, through the template or about its mid-sagittal plane, with its error.

    Parameters
    ----------
    image : Volume
        Head, such as the T1w.
    brain : (nx, ny, nz) ndarray of bool
        Brain mask.
    template_from_image : Affine, Warp or Chain, optional
        Place of the image in a template that is symmetric about ``x = 0``; without it the plane is taken.
    params : MirrorParams, optional
        Which mirror.
    registration : RegistrationParams
        Levels and limits.
    name : str
        Name of the image's frame.

    Returns
    -------
    Mirror
        Map, method and homologous-point error.

    Raises
    ------
    EstimationError
        If the warp cannot be inverted, or the image is not like its reflection.
    """
    params = params or MirrorParams()
    tried: list[Mirror] = []
    if template_from_image is not None and params.method != "plane":
        tried.append(_judged(image, brain, mirror_transform(template_from_image), "template", registration))
    if params.method != "template" or not tried or tried[0].median_mm > params.doubtful_mm:
        plane = mid_sagittal_mirror(image, registration, name=name, mask=brain)
        tried.append(_judged(image, brain, plane.transform, "plane", registration))
    best = min(tried, key=lambda mirror: mirror.median_mm)
    notes = []
    if template_from_image is None and params.method != "plane":
        notes.append("no place in a symmetric template: the mid-sagittal plane stands for it")
    if best.median_mm > params.doubtful_mm:
        notes.append(f"homologous points are missed by {best.median_mm:.1f} mm: look at the contralateral regions")
    return replace(best, note="; ".join(notes))


def _judged(
    image: Volume, brain: NDArray[np.bool_], mirror: Transform, method: str, params: RegistrationParams
) -> Mirror:
    missed = homologous_error_mm(image, mirror, brain, params)
    middle, high = np.percentile(missed, [50, 95])
    return Mirror(transform=mirror, method=method, median_mm=float(middle), p95_mm=float(high), note="")


def mid_sagittal_mirror(
    image: Volume,
    params: RegistrationParams = _DEFAULT,
    *,
    name: str = "image",
    mask: NDArray[np.bool_] | None = None,
) -> Registration:
    """Return the reflection about the plane of best left-right symmetry.

    The image is registered rigidly to its own reflection; the nearest pure reflection is its mirror. Brains are not
    quite symmetric about a plane: a symmetric template finds homologues to 1-2 mm, a plane to 5-7 mm.

    Parameters
    ----------
    image : Volume
        Head; lesions of one side pull the plane little, because far residuals count less.
    params : RegistrationParams
        Levels and limits.
    name : str
        Name of the image's frame.
    mask : (nx, ny, nz) ndarray of bool, optional
        Brain mask.

    Returns
    -------
    Registration
        Its transform is an `Affine` of ``name`` to itself that is its own inverse.

    Raises
    ------
    EstimationError
        If the image is not like its reflection.

    Examples
    --------
    >>> grid = Grid.centred((33, 33, 33), 4.0)
    >>> x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    >>> half = np.abs(x - 6.0) / 40
    >>> head = np.exp(-(half**4) - (y / 50) ** 4 - (z / 45) ** 4) * (2 + np.cos(9 * half) + np.sin(y / 11 + z / 13))
    >>> plane = mid_sagittal_mirror(Volume(head, grid)).transform
    >>> bool(np.allclose(plane.apply([0.0, 10.0, 10.0]), [12.0, 10.0, 10.0], atol=0.1))
    True
    """
    affine = image.grid.affine.copy()
    middle = float(image.grid.origin_mm[0])
    affine[0] *= -1.0
    affine[0, 3] += 2.0 * middle
    reflected = Volume(image.data, Grid(image.grid.shape, affine), image.unit)
    found = register(image, reflected, params, fixed_name=name, moving_name=f"{name}-reflected", fixed_mask=mask)
    assert isinstance(found.transform, Affine)  # noqa: S101
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 2.0 * middle
    reflection = _nearest_reflection(found.transform.matrix @ flip)
    return replace(found, transform=Affine(reflection, target=name, source=name))


def _nearest_reflection(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the reflection about the plane that an improper rigid map reflects at, without its turn in that plane.

    Its normal ``n`` is the eigenvector ``R n = -n``, so that ``n . (R x + t) = -n . x + n . t`` for every point.
    """
    values, vectors = np.linalg.eigh((matrix[:3, :3] + matrix[:3, :3].T) / 2.0)
    if values[0] > -0.5:
        raise EstimationError(f"the map is no reflection: its lowest eigenvalue is {values[0]:.2f}, not -1")
    normal = vectors[:, 0]
    offset = float(normal @ matrix[:3, 3]) / 2.0
    reflection = np.eye(4)
    reflection[:3, :3] -= 2.0 * np.outer(normal, normal)
    reflection[:3, 3] = 2.0 * offset * normal
    return reflection
