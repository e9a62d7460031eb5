"""One level of a registration: points of the fixed image in soft intensity classes, the moving image as a spline.

A class is a hat function of the fixed image's intensity, blurred to the resolution of the moving image, so that a point
between two tissues belongs to both as a sodium voxel does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import EstimationError
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine

if TYPE_CHECKING:
    from bids_sodium.spatial.registration import RegistrationParams

__all__ = ["Classes", "Scene", "blurred", "classes_of", "first_frame", "flat", "gram_of", "head_mask", "scene_of"]


def head_mask(image: Volume) -> NDArray[np.bool_]:
    """Return the head: what is brighter than Otsu's threshold of the blurred image, with holes filled.

    Parameters
    ----------
    image : Volume
        Image of a head.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        The largest bright component, filled slice by slice.

    Raises
    ------
    EstimationError
        If the image is empty.

    Examples
    --------
    >>> ball = np.hypot(*np.indices((20, 20, 20))[:2] - 10) < 6
    >>> bool((head_mask(Volume(ball.astype(float), Grid.centred((20, 20, 20), 4.0))) == ball).mean() > 0.8)
    True
    """
    from scipy import ndimage

    data = np.abs(np.nan_to_num(first_frame(image)))
    top = float(np.percentile(data, 99.5))
    if top <= 0.0:
        raise EstimationError("the image is empty, so that no head can be found in it")
    # Roots pull bright vials and fluid towards the rest of the head, which Otsu's two classes need.
    soft = ndimage.gaussian_filter(np.sqrt(np.minimum(data / top, 1.0)), 2.0 / np.array(image.grid.voxel_mm))
    bright = soft > _otsu(soft)
    labels, count = ndimage.label(bright)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    head = ndimage.binary_closing(np.pad(labels == int(sizes.argmax()), 3), iterations=3)[3:-3, 3:-3, 3:-3]
    for axis in range(3):
        planes = np.moveaxis(head, axis, 0)
        head = np.moveaxis(np.stack([ndimage.binary_fill_holes(plane) for plane in planes]), 0, axis)
    return np.asarray(head, dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One level: points of the fixed image with their classes, and the moving image as a spline.

    Parameters
    ----------
    points : (n, 3) ndarray
        World positions in the fixed image, in mm.
    inner : (n,) ndarray of bool
        Points within the mask itself, without the ring around it.
    classes : (n, m) ndarray
        Columns that are to explain the moving image.
    spline : (nx, ny, nz) ndarray
        Cubic spline coefficients of the moving image.
    slopes : tuple of (nx, ny, nz) ndarray
        Cubic spline coefficients of its derivative along each axis of the lattice, per voxel.
    grid : Grid
        Lattice of the moving image.
    weights : (n,) ndarray
        How much each point counts.
    """

    points: NDArray[np.float64]
    inner: NDArray[np.bool_]
    classes: NDArray[np.float64]
    spline: NDArray[np.float64]
    slopes: tuple[NDArray[np.float64], ...]
    grid: Grid
    weights: NDArray[np.float64]

    def only(self, chosen: NDArray[np.bool_]) -> Scene:
        """Return the scene of some of its points."""
        return replace(
            self,
            points=self.points[chosen],
            inner=self.inner[chosen],
            classes=self.classes[chosen],
            weights=self.weights[chosen],
        )


def gram_of(F: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``F' F`` with a ridge in proportion to each column: their units differ, and some may be empty."""
    gram = F.T @ F
    own = np.diag(gram)
    gram[np.diag_indices_from(gram)] = (1.0 + 1e-7) * own + 1e-14 * max(float(own.max()), 1e-300)
    return np.asarray(gram)


def _slopes(spline: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return splines of the derivatives, exact at the voxels, from the coefficients of a cubic spline."""
    from scipy.ndimage import correlate1d, spline_filter

    kernels = (np.array([-0.5, 0.0, 0.5]), np.array([1.0, 4.0, 1.0]) / 6.0)
    found = []
    for axis in range(3):
        part = spline
        for along in range(3):
            part = correlate1d(part, kernels[along != axis], axis=along, mode="mirror")
        found.append(np.asarray(spline_filter(part, order=3)))
    return tuple(found)


def first_frame(image: Volume) -> NDArray[np.float32]:
    """Return the magnitudes of an image, of its first frame where it has several."""
    data = image.data if image.data.ndim == 3 else image.data.reshape(*image.grid.shape, -1)[..., 0]
    return np.asarray(np.abs(data) if np.iscomplexobj(data) else data, dtype=np.float32)


def _otsu(values: NDArray[np.floating]) -> float:
    """Return the threshold that splits the values into the two most distinct classes."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2.0
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sum_below = np.cumsum(counts * middles)[:-1]
    sum_above = float((counts * middles).sum()) - sum_below
    between = below * above * (sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)) ** 2
    return float(edges[1 + int(between.argmax())])


class Classes(NamedTuple):
    """Soft intensity classes of the fixed image at one level, before they are blurred.

    ``maps`` are its hat functions on ``grid``; ``inner`` is the mask on it, ``region`` the mask with its ring;
    ``psf_voxels`` is the blur that the moving image needs.
    """

    grid: Grid
    maps: list[NDArray[np.float64]]
    inner: NDArray[np.bool_]
    region: NDArray[np.bool_]
    psf_voxels: NDArray[np.float64]


def classes_of(
    fixed: Volume, mask: NDArray[np.bool_], psf_mm: float, params: RegistrationParams, level: int
) -> Classes:
    """Split the fixed image into classes for a moving image of a resolution."""
    from scipy import ndimage

    fine_mm = max(params.levels_mm[level] / 2.0, min(fixed.grid.voxel_mm))
    still = Affine.identity("fine", "fine")
    grid = fixed.grid.with_voxel(fine_mm)
    image = np.asarray(resample(Volume(first_frame(fixed), fixed.grid), grid, still).data)
    inner = np.asarray(resample(Volume(mask, fixed.grid), grid, still, "probability").data) > 0.5
    if not inner.any():
        raise EstimationError(f"the mask of {int(mask.sum())} voxels vanishes at {fine_mm:.3g} mm")
    outside_mm = ndimage.distance_transform_edt(~inner, sampling=grid.voxel_mm)
    region = np.asarray(outside_mm <= params.rings_mm[level])
    # what is fixed has a resolution of its own: sodium that explains a proton image is blurred already
    own_mm = params.psf_voxels * float(np.mean(fixed.grid.voxel_mm))
    psf_voxels = float(np.sqrt(max(psf_mm**2 - own_mm**2, 0.0))) / np.array(grid.voxel_mm)
    maps = _hats(image, region, params.classes[level])
    if _is_bare(image, inner, region):
        maps = [np.where(inner, hat, 0.0) for hat in maps] + _shells(
            outside_mm, params.shell_mm, params.rings_mm[level]
        )
    return Classes(grid, maps, inner, region, psf_voxels)


def scene_of(fixed: Volume, mask: NDArray[np.bool_], moving: Volume, params: RegistrationParams, level: int) -> Scene:
    """Prepare one level: classes of the fixed image at its points, the moving image blurred to the level."""
    from scipy import ndimage

    source, psf_mm = blurred(moving, params.levels_mm[level], params)
    grid, maps, inner, region, psf_voxels = classes_of(fixed, mask, psf_mm, params, level)
    index = np.argwhere(region)
    index = index[:: int(np.ceil(len(index) / params.points[level]))]
    classes = _blurred_at(maps, index, psf_voxels)
    points = grid.world(index.astype(np.float64))
    if level == len(params.levels_mm) - 1:
        # Coil profiles of either image; at coarse levels a plane would explain head against air and so a wrong pose.
        along = (points - points.mean(axis=0)) / points.std(axis=0)
        classes = np.concatenate([classes, *(classes * along[:, [axis]] for axis in range(3))], axis=1)
    spline = np.asarray(ndimage.spline_filter(np.asarray(source.data, dtype=np.float64), order=3))
    return Scene(
        points=points,
        inner=np.asarray(inner[tuple(index.T)]),
        classes=classes,
        spline=spline,
        slopes=_slopes(spline),
        grid=source.grid,
        weights=np.ones(len(points)),
    )


def blurred(moving: Volume, resolution_mm: float, params: RegistrationParams) -> tuple[Volume, float]:
    """Return the moving image at a level's resolution, and the width that its points then have, FWHM in mm."""
    from scipy import ndimage

    image = Volume(first_frame(moving), moving.grid)
    voxel_mm = float(np.mean(image.grid.voxel_mm))
    if voxel_mm < resolution_mm / 2.0:
        voxel_mm = resolution_mm / 2.0
        image = resample(image, image.grid.with_voxel(voxel_mm), Affine.identity("fine", "fine"))
    own_mm = params.psf_voxels * voxel_mm
    if own_mm >= resolution_mm:
        return image, own_mm
    kernel_mm = float(np.sqrt(resolution_mm**2 - own_mm**2))
    sigma = kernel_mm / np.sqrt(8.0 * np.log(2.0)) / np.array(image.grid.voxel_mm)
    return image.with_data(ndimage.gaussian_filter(np.asarray(image.data), sigma)), resolution_mm


def flat(image: Volume, sigma_mm: float) -> Volume:
    """Return the first frame over its own smooth part: coil profiles fade, and noise in the air does not rise."""
    from scipy import ndimage

    data: NDArray[np.floating] = first_frame(image)
    if sigma_mm > 0.0:
        smooth = ndimage.gaussian_filter(data, sigma_mm / np.array(image.grid.voxel_mm), truncate=2.5)
        data = data / (np.maximum(smooth, 0.0) + 0.15 * float(np.percentile(data, 99)))
    return Volume(data, image.grid)


def _hats(image: NDArray[np.floating], region: NDArray[np.bool_], count: int) -> list[NDArray[np.float64]]:
    """Return hat functions of intensity, evenly spaced over the region's values; together they sum to one."""
    darkest, brightest = np.percentile(image[region], [0.5, 99.5])
    place = np.clip((image - darkest) / max(float(brightest - darkest), 1e-12) * (count - 1), 0, count - 1)
    return [np.maximum(1.0 - np.abs(place - member), 0.0) for member in range(count)]


def _is_bare(image: NDArray[np.floating], inner: NDArray[np.bool_], region: NDArray[np.bool_]) -> bool:
    """Tell whether the image shows nothing around its mask, as a template without skull does."""
    around = region & ~inner
    dark = 0.02 * float(np.percentile(image[inner], 99))
    return bool(around.any() and np.mean(image[around] > dark) < 0.1)


def _shells(outside_mm: NDArray[np.float64], thick_mm: float, ring_mm: float) -> list[NDArray[np.float64]]:
    """Return shells around the mask, which stand for skull, scalp and air that a bare brain does not show."""
    edges = np.arange(0.0, ring_mm, thick_mm)
    tops = [*edges[1:], np.inf]
    return [((outside_mm > low) & (outside_mm <= top)).astype(np.float64) for low, top in zip(edges, tops, strict=True)]


def _blurred_at(
    maps: list[NDArray[np.float64]], index: NDArray[np.intp], psf_voxels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return maps blurred by the point spread, at the points: shape (points, maps); maps of nothing are left out."""
    from scipy import ndimage

    sigma = psf_voxels / np.sqrt(8.0 * np.log(2.0))
    margin = np.ceil(3.0 * sigma).astype(int)
    low = np.maximum(index.min(axis=0) - margin, 0)
    box = tuple(slice(a, b) for a, b in zip(low, index.max(axis=0) + margin + 1, strict=True))
    here = tuple((index - low).T)
    columns = [ndimage.gaussian_filter(part[box].astype(np.float32), sigma, truncate=3.0)[here] for part in maps]
    kept = [column for column in columns if float(column.max()) > 0.02]
    return np.asarray(np.stack(kept, axis=1), dtype=np.float64)
