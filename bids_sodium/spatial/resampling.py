"""Images on other grids: one interpolation through the whole chain of transforms.

Every voxel of the wanted grid asks the chain where it lies in the image, and the image is interpolated there once.
A point within half a voxel of the outermost voxel centres belongs to the image and takes the nearest edge value; beyond
that it takes the fill value. Where the wanted voxels are larger than those of the image, the image is averaged over
each of them, so that fractions and volumes are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.spatial.transforms import Affine, Chain, Transform, Warp

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

__all__ = ["Kind", "resample", "to_itk_image", "to_itk_transform"]

Kind: TypeAlias = Literal["intensity", "label", "probability"]
"""What the values are: intensities, labels (never mixed) or fractions between 0 and 1."""

_LARGEST_BLOCK = 12_000_000
"""Sub-voxels held at once, so that averaging stays below 0.1 GiB."""

_MOST_SUB_SAMPLES = 6
"""Along one axis; 4 mm voxels from an image of 0.7 mm."""


def resample(
    volume: Volume,
    grid: Grid,
    source_from_target: Transform,
    kind: Kind = "intensity",
    *,
    order: Literal[1, 3] = 1,
    fill: float = 0.0,
    average: bool = True,
) -> Volume:
    """Return an image on another grid, ``out(x) = in(source_from_target(x))``.

    Parameters
    ----------
    volume : Volume
        Image in the source frame; axes beyond the third are resampled one by one.
    grid : Grid
        Wanted lattice, in the target frame.
    source_from_target : Affine, Warp or Chain
        Takes points of the target frame to points of the source frame: the wanted grid's place in the image.
    kind : {"intensity", "label", "probability"}
        Intensities are interpolated and returned as float32 (or complex64). Labels take the nearest voxel, or the
        commonest label in a larger target voxel, and keep their type. Probabilities (booleans too) are interpolated
        linearly, kept between 0 and 1 and returned as float32.
    order : {1, 3}
        Linear, or cubic B-spline for intensities: sharper, with small overshoot at edges.
    fill : float
        Value outside of the image.
    average : bool
        Average over target voxels that are larger than the image's.

    Returns
    -------
    Volume
        The image on ``grid``, in the same unit.

    Raises
    ------
    GeometryError
        If no part of the wanted grid lies in the image.
    DataError
        If labels are not integers, or the kind or order is unknown.

    Examples
    --------
    >>> coarse = Grid.centred((8, 8, 8), 4.0)
    >>> image = Volume(np.ones((8, 8, 8), dtype=np.float32), coarse)
    >>> fine = resample(image, Grid.centred((4, 4, 4), 2.0), Affine.identity("t1w", "na"))
    >>> float(fine.data.min())
    1.0
    """
    _check(volume, kind, order)
    span = _span(volume.grid, grid, source_from_target)
    factors = tuple(_sub_samples(length) if average else 1 for length in span)
    frames = volume.data.reshape(*volume.grid.shape, -1)
    shape = (*grid.shape, *volume.data.shape[3:])
    out = np.empty((*grid.shape, frames.shape[3]), dtype=_type_of(volume.data.dtype, kind))
    transform = to_itk_transform(source_from_target)
    for lowest, slab in _slabs(grid, factors):
        place = (slice(None), slice(None), slice(lowest, lowest + slab.shape[2]))
        for frame in range(frames.shape[3]):
            out[(*place, frame)] = _frame(
                frames[..., frame], volume.grid, slab, transform, factors, kind=kind, order=order, fill=fill
            )
    return Volume(out.reshape(shape), grid, volume.unit)


def to_itk_image(data: NDArray[np.generic], grid: Grid) -> sitk.Image:
    """Return a SimpleITK image of real values whose physical space is the RAS+ world itself (not LPS).

    Parameters
    ----------
    data : (nx, ny, nz) ndarray
        Real values.
    grid : Grid
        Their lattice.
    """
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    return _placed(image, grid)


def to_itk_transform(transform: Transform) -> sitk.Transform:
    """Return the SimpleITK transform of the same points, in RAS+ mm.

    Parameters
    ----------
    transform : Affine, Warp or Chain
        Map of points.
    """
    import SimpleITK as sitk  # noqa: N813

    links = transform.links if isinstance(transform, Chain) else (transform,)
    parts = [_itk_affine(link) if isinstance(link, Affine) else _itk_field(link) for link in links]
    # ITK's composite applies the transform that was added last first, as a chain is written.
    return parts[0] if len(parts) == 1 else sitk.CompositeTransform(parts)


def _itk_affine(affine: Affine) -> sitk.Transform:
    import SimpleITK as sitk  # noqa: N813

    itk = sitk.AffineTransform(3)
    itk.SetMatrix(affine.matrix[:3, :3].ravel().tolist())
    itk.SetTranslation(affine.matrix[:3, 3].tolist())
    return itk


def _itk_field(warp: Warp) -> sitk.Transform:
    import SimpleITK as sitk  # noqa: N813

    values = np.ascontiguousarray(warp.displacement_mm.transpose(2, 1, 0, 3), dtype=np.float64)
    return sitk.DisplacementFieldTransform(_placed(sitk.GetImageFromArray(values, isVector=True), warp.grid))


def _placed(image: sitk.Image, grid: Grid) -> sitk.Image:
    image.SetSpacing(grid.voxel_mm)
    image.SetDirection((grid.affine[:3, :3] / np.array(grid.voxel_mm)).ravel().tolist())
    image.SetOrigin(grid.affine[:3, 3].tolist())
    return image


def _check(volume: Volume, kind: str, order: int) -> None:
    if kind not in {"intensity", "label", "probability"}:
        raise DataError(f"'{kind}' is no kind of image", hint="intensity, label or probability")
    if order not in {1, 3}:
        raise DataError(f"interpolation of order {order} is not offered", hint="1 (linear) or 3 (cubic B-spline)")
    dtype = volume.data.dtype
    if kind == "label" and not (dtype == np.bool_ or np.issubdtype(dtype, np.integer)):
        raise DataError(f"labels of type {dtype} are not integers", hint="convert the label image")
    if kind == "probability" and np.issubdtype(dtype, np.complexfloating):
        raise DataError(f"probabilities of type {dtype} are not real")


def _type_of(dtype: np.dtype[Any], kind: Kind) -> np.dtype[Any]:
    if kind == "label":
        return dtype
    return np.dtype(np.complex64 if np.issubdtype(dtype, np.complexfloating) else np.float32)


def _span(source: Grid, target: Grid, source_from_target: Transform) -> tuple[float, float, float]:
    """Return how many source voxels one target voxel spans along each target axis.

    Raises
    ------
    GeometryError
        If the target's box does not touch the source's.
    """
    edges = [np.linspace(-0.5, n - 0.5, min(n + 1, 12)) for n in target.shape]
    nodes = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1)
    index = source.index(source_from_target.apply(target.world(nodes)))
    low, high = index.min(axis=(0, 1, 2)), index.max(axis=(0, 1, 2))
    if (high < -0.5).any() or (low > np.array(source.shape) - 0.5).any():
        low_mm, high_mm = np.sort([source.world(low), source.world(high)], axis=0).round(0).tolist()
        raise GeometryError(
            f"the grid and the image do not overlap: seen from the image, which lies around "
            f"{source.origin_mm.round(0).tolist()} mm, the grid spans {low_mm} to {high_mm} mm",
            hint=f"check the transform {source_from_target.target}_from_{source_from_target.source}",
        )
    steps = [np.diff(index, axis=a) / (edges[a][1] - edges[a][0]) for a in range(3)]
    x, y, z = (float(np.median(np.linalg.norm(step, axis=-1))) for step in steps)
    return x, y, z


def _sub_samples(span: float) -> int:
    """Return how often a target voxel is sampled along one axis so that no source voxel is stepped over."""
    return int(np.clip(np.round(span + 0.01), 1, _MOST_SUB_SAMPLES))


def _slabs(grid: Grid, factors: tuple[int, ...]) -> list[tuple[int, Grid]]:
    """Cut a grid along its last axis so that no block of sub-samples is larger than it may be."""
    plane = int(np.prod(grid.shape[:2])) * int(np.prod(factors))
    thick = grid.shape[2] if max(factors) == 1 else max(1, _LARGEST_BLOCK // plane)
    slabs = []
    for lowest in range(0, grid.shape[2], thick):
        affine = grid.affine.copy()
        affine[:3, 3] = grid.world(np.array([0.0, 0.0, float(lowest)]))
        slabs.append((lowest, Grid((*grid.shape[:2], min(thick, grid.shape[2] - lowest)), affine)))
    return slabs


def _sub_grid(grid: Grid, factors: tuple[int, ...]) -> Grid:
    """Return the lattice of the sub-samples that fill each voxel evenly."""
    fine = np.array(factors, dtype=np.float64)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] / fine
    affine[:3, 3] = grid.world((1.0 / fine - 1.0) / 2.0)
    x, y, z = (int(n * f) for n, f in zip(grid.shape, factors, strict=True))
    return Grid((x, y, z), affine)


def _frame(
    data: NDArray[np.generic],
    source: Grid,
    target: Grid,
    transform: sitk.Transform,
    factors: tuple[int, ...],
    *,
    kind: Kind,
    order: int,
    fill: float,
) -> NDArray[np.generic]:
    """Resample one real or complex frame."""
    if np.issubdtype(data.dtype, np.complexfloating):
        real, imaginary = (
            _frame(part, source, target, transform, factors, kind=kind, order=order, fill=part_fill)
            for part, part_fill in ((data.real, fill), (data.imag, 0.0))
        )
        return np.asarray(real.astype(np.complex64) + np.complex64(1j) * imaginary.astype(np.complex64))
    fine = _sub_grid(target, factors)
    if kind == "label":
        stored = data.astype(np.uint8) if data.dtype == np.bool_ else data
        values = _interpolate(stored, source, fine, transform, order=0, fill=fill)
        return _commonest(values, factors).astype(data.dtype)
    order = 1 if kind == "probability" else order
    values = _interpolate(data.astype(np.float32), source, fine, transform, order=order, fill=fill)
    averaged = _blocks(values, factors).mean(axis=(1, 3, 5), dtype=np.float64) if max(factors) > 1 else values
    return np.asarray(np.clip(averaged, 0.0, 1.0) if kind == "probability" else averaged)


def _interpolate(
    data: NDArray[np.generic], source: Grid, target: Grid, transform: sitk.Transform, *, order: int, fill: float
) -> NDArray[np.generic]:
    import SimpleITK as sitk  # noqa: N813

    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    resampler.SetInterpolator({0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline3}[order])
    resampler.SetDefaultPixelValue(fill)
    resampler.SetTransform(transform)
    resampler.SetSize(target.shape)
    resampler.SetOutputSpacing(target.voxel_mm)
    resampler.SetOutputDirection((target.affine[:3, :3] / np.array(target.voxel_mm)).ravel().tolist())
    resampler.SetOutputOrigin(target.affine[:3, 3].tolist())
    return np.asarray(sitk.GetArrayFromImage(resampler.Execute(to_itk_image(data, source)))).T


def _blocks(values: NDArray[np.generic], factors: tuple[int, ...]) -> NDArray[Any]:
    """View sub-samples as (nx, fx, ny, fy, nz, fz)."""
    (fx, fy, fz), (nx, ny, nz) = factors, values.shape
    return values.reshape(nx // fx, fx, ny // fy, fy, nz // fz, fz)


def _commonest(values: NDArray[np.generic], factors: tuple[int, ...]) -> NDArray[np.generic]:
    """Return the label that most sub-samples of a voxel have; of equals the smallest."""
    if max(factors) == 1:
        return values
    blocks = _blocks(values, factors)
    labels = np.unique(values)
    winner = np.full(blocks.shape[::2], labels[0], dtype=values.dtype)
    most = np.zeros(winner.shape, dtype=np.int32)
    for label in labels:
        count = (blocks == label).sum(axis=(1, 3, 5), dtype=np.int32)
        winner[count > most] = label
        np.maximum(most, count, out=most)
    return winner
