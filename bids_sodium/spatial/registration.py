"""Finding the transform between two images of one head, and from a head to the template.

The fixed image predicts the moving one. Let ``F(x)`` be the fixed image split into soft intensity classes, each blurred
to the moving image's resolution and, at the finest level, modulated by a plane to take up coil profiles. For a pose
``T`` the moving image at the mask's points is ``y = m(T x)`` and the metric is the share of its variance that no
combination of the classes explains,

    ``metric(T) = min_c |y - F c|^2 / |y - mean(y)|^2``.

The coefficients are projected out (variable projection) and the pose follows by damped Gauss-Newton steps, coarse to
fine from several starts. Blurring after the split is what a sodium voxel does to tissues, so that partial volume does
not pull the pose: on a phantom with bias field, vials and noise the target error is 0.06 mm, mutual information leaves
0.33 mm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.spatial.resampling import resample, to_itk_image
from bids_sodium.spatial.transforms import Affine, Transform, Warp, renamed, rigid_from_parameters

__all__ = ["Registration", "RegistrationParams", "head_mask", "register", "register_deformable"]

RegistrationKind: TypeAlias = Literal["rigid", "affine"]

_LEVER_MM = 70.0
"""Half a head: one unit of a turn or stretch moves its surface by 1 mm when divided by this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationParams:
    """How transforms are estimated."""

    levels_mm: tuple[float, ...] = (16.0, 10.0, 4.0)
    """Resolutions from coarse to fine, in mm; sodium images hold little below 4 mm."""

    rings_mm: tuple[float, ...] = (20.0, 10.0, 6.0)
    """How far around the mask each level looks, in mm: scalp and air widen the capture range, the brain is exact."""

    points: tuple[int, ...] = (1500, 4000, 40_000)
    """Most points at each level."""

    classes: tuple[int, ...] = (6, 8, 8)
    """Intensity classes of the fixed image at each level."""

    psf_voxels: float = 1.6
    """Resolution of the moving image over its voxel size: 1.59 for a sphere of k-space."""

    well_explained: float = 0.5
    """Where less of the moving image's variance is explained, the fixed image is tried once more without its bias."""

    flatten_mm: float = 30.0
    """Standard deviation of the Gaussian whose result the fixed image is then divided by, in mm; 0 for never. It finds
    the pose in gradient echoes of surface coils at 7 T, and costs 0.3 mm where it was not needed."""

    start_rotation_deg: float = 20.0
    """Turns of the starts about each axis, in degrees."""

    finalists: int = 3
    """Coarse solutions that are followed to the next level."""

    iterations: int = 25
    """Most steps at each level."""

    tolerance_mm: float = 0.02
    """A step shorter than this at the head's surface ends the search, in mm."""

    least_overlap: float = 0.5
    """Share of the mask that must lie within the moving image."""

    least_explained: float = 0.2
    """Share of the moving image's variance that must be explained; noise reaches 0.02, heads 0.5 to 0.97."""

    huber: float = 2.0
    """Residuals beyond so many robust standard deviations count linearly: lesions and vials do not pull."""

    shell_mm: float = 5.0
    """Thickness of the shells that stand for skull, scalp and air around a fixed image of a bare brain, in mm."""

    demons_levels_mm: tuple[float, ...] = (4.0, 2.0)
    """Voxel sizes of the deformable registration, from coarse to fine, in mm."""

    demons_iterations: tuple[int, ...] = (40, 30)
    """Steps at each of them."""

    demons_smoothing_voxels: float = 1.75
    """Standard deviation of the Gaussian that smooths the displacement after each step, in voxels."""

    demons_margin_mm: float = 2.0
    """How far around the template's brain the images are compared, in mm."""

    neighbourhood_mm: float = 6.0
    """Standard deviation of the Gaussian neighbourhood whose mean and contrast are made alike in both images, in mm:
    homologous points within 0.9 mm, where one smooth bias for the head leaves 1.7 mm."""

    def __post_init__(self) -> None:
        """Check that every level has its values.

        Raises
        ------
        ConfigError
            If lists that belong together differ in length.
        """
        together = (("levels_mm", "rings_mm", "points", "classes"), ("demons_levels_mm", "demons_iterations"))
        for names in together:
            lengths = {name: len(getattr(self, name)) for name in names}
            if len(set(lengths.values())) > 1 or 0 in lengths.values():
                counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
                raise ConfigError(f"registration levels need one value each, got {counts}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A transform with its quality.

    Parameters
    ----------
    transform : Affine, Warp or Chain
        ``fixed_from_moving``: takes points of the moving image to points of the fixed image.
    metric : float
        Share of the moving image's variance that the fixed one leaves unexplained, 0 (best) to 1.
    converged : bool
        Whether the last step was shorter than the tolerance.
    target_error_mm : float
        Standard error of the position of a point of the mask, root mean square, from leaving out one of 27 blocks of
        the mask at a time, in mm; ``nan`` where it is not known.
    inverse_consistency_mm : float
        Mean distance of points from where the way there and back takes them, in mm; ``nan`` for affine maps, whose
        inverse is exact.
    overlap : float
        Share of the mask within the moving image.
    n_starts : int
        Starts that were tried.
    n_iterations : int
        Steps at the finest level.
    start_spread_mm : float
        Distance between the best solution and the runner-up of the starts at the coarsest level, in mm: near zero where
        several starts agree; ``nan`` with one start.
    """

    transform: Transform
    metric: float
    converged: bool
    target_error_mm: float
    inverse_consistency_mm: float
    overlap: float
    n_starts: int
    n_iterations: int
    start_spread_mm: float


def register(
    fixed: Volume,
    moving: Volume,
    params: RegistrationParams = RegistrationParams(),
    *,
    fixed_name: str = "fixed",
    moving_name: str = "moving",
    fixed_mask: NDArray[np.bool_] | None = None,
    initial: Affine | None = None,
    kind: RegistrationKind = "rigid",
) -> Registration:
    """Return the rigid or affine transform ``fixed_from_moving``.

    Parameters
    ----------
    fixed : Volume
        Image that explains the other: the T1w.
    moving : Volume
        Image that is explained: sodium, FLAIR, diffusion ...
    params : RegistrationParams
        Levels, starts and limits.
    fixed_name, moving_name : str
        Names of the two frames.
    fixed_mask : (nx, ny, nz) ndarray of bool, optional
        Brain mask on the fixed image; the whole head where it is not given (0.2 mm instead of 0.06 mm).
    initial : Affine, optional
        A first guess of ``fixed_from_moving``, from which alone the search starts.
    kind : {"rigid", "affine"}
        Six or twelve parameters.

    Returns
    -------
    Registration
        The transform, how well it explains the moving image, its standard error.

    Raises
    ------
    EstimationError
        If the images share too little variance or do not overlap, or if one of them seems to lie upside down.
    GeometryError
        If the mask does not fit the image or the initial transform joins other frames.

    References
    ----------
    Golub GH, Pereyra V. The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
    separate. SIAM J Numer Anal 1973;10:413-432, doi:10.1137/0710036.
    Roche A, Malandain G, Pennec X, Ayache N. The correlation ratio as a new similarity measure for multimodal image
    registration. MICCAI 1998.

    Examples
    --------
    >>> grid = Grid.centred((32, 32, 32), 4.0)
    >>> x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    >>> head = np.exp(-((x / 40) ** 4) - (y / 50) ** 4 - (z / 45) ** 4) * (2 + np.sin(x / 9) + np.cos(y / 11 + z / 13))
    >>> moved = Volume(head, Grid(grid.shape, grid.affine + np.eye(4, k=3) * 5.0))
    >>> found = register(Volume(head, grid), moved, fixed_name="t1w", moving_name="na")
    >>> bool(np.allclose(found.transform.apply([0.0, 0.0, 0.0]), [-5.0, 0.0, 0.0], atol=0.2))
    True
    """
    for image, name in ((fixed, fixed_name), (moving, moving_name)):
        _check_image(image, name)
    _check_fit(fixed, fixed_mask, initial, (fixed_name, moving_name))
    mask = head_mask(fixed) if fixed_mask is None else np.asarray(fixed_mask, dtype=np.bool_)
    words = f"{moving_name} to {fixed_name}"
    first = None if initial is None else initial.inverse().matrix
    found = _search(_flat(fixed, 0.0), mask, moving, params, first=first, kind=kind)
    if 1.0 - found.pose.share < params.well_explained and params.flatten_mm > 0.0:
        other = _search(_flat(fixed, params.flatten_mm), mask, moving, params, first=first, kind=kind)
        found = min(found, other, key=lambda search: search.pose.share)
    explained = 1.0 - found.pose.share
    if explained < params.least_explained or found.pose.overlap < params.least_overlap:
        raise EstimationError(
            f"the images do not determine a transform: at most {100 * explained:.0f} % of the moving image's variance "
            f"is explained by the fixed image ({100 * params.least_explained:.0f} % are asked for) and "
            f"{100 * found.pose.overlap:.0f} % of the mask lies within it, after {found.n_starts} starts",
            where=words,
            hint="look at both images: other head, other orientation, or no signal",
        )
    if first is None:
        _refuse_upside_down(found.coarsest, found.pose, params, words)
    finest = _scene(found.fixed, mask, moving, params, len(params.levels_mm) - 1)
    pose = _descend(finest, found.pose.matrix, kind, params)
    n_iterations = pose.n_iterations
    for _ in range(2):
        finest = replace(finest, weights=_huber_weights(finest, pose.matrix, params))
        pose = _descend(finest, pose.matrix, kind, params)
        n_iterations += pose.n_iterations
    return Registration(
        transform=Affine(pose.matrix, target=moving_name, source=fixed_name).inverse(),
        metric=pose.share,
        converged=pose.converged,
        target_error_mm=_target_error(finest, pose.matrix, kind),
        inverse_consistency_mm=float("nan"),
        overlap=pose.overlap,
        n_starts=found.n_starts,
        n_iterations=n_iterations,
        start_spread_mm=found.spread_mm,
    )


def register_deformable(
    fixed: Volume,
    moving: Volume,
    params: RegistrationParams = RegistrationParams(),
    *,
    fixed_name: str = "fixed",
    moving_name: str = "moving",
    fixed_mask: NDArray[np.bool_] | None = None,
    moving_mask: NDArray[np.bool_] | None = None,
    initial: Affine | None = None,
) -> Registration:
    """Return the affine and deformable transform ``fixed_from_moving`` between images of one contrast.

    An affine registration is followed by symmetric-forces demons on the brain, on images whose neighbourhoods have
    been given one mean and contrast. Both directions of the warp are computed.

    Parameters
    ----------
    fixed : Volume
        Template, whole head or bare brain.
    moving : Volume
        Whole head or bare brain of the participant, in the same contrast.
    params : RegistrationParams
        Levels, iterations and smoothing.
    fixed_name, moving_name : str
        Names of the two frames.
    fixed_mask : (nx, ny, nz) ndarray of bool, optional
        Brain mask of the template; its head where it is not given.
    moving_mask : (mx, my, mz) ndarray of bool, optional
        Brain mask of the participant, where it is known.
    initial : Affine, optional
        A first guess of ``fixed_from_moving``.

    Returns
    -------
    Registration
        The transform is a chain ``warp @ affine``; ``metric`` is the share of the variance within the mask that the
        normalised images do not have in common after warping, ``inverse_consistency_mm`` the mean distance between
        brain points and where the way there and back takes them.

    Raises
    ------
    EstimationError
        If the affine step fails or the warp folds.
    GeometryError
        If a mask does not fit its image.

    References
    ----------
    Vercauteren T, Pennec X, Perchant A, Ayache N. Diffeomorphic demons: efficient non-parametric image registration.
    NeuroImage 2009;45:S61-S72, doi:10.1016/j.neuroimage.2008.10.040.
    """
    from scipy import ndimage

    if moving_mask is not None and moving_mask.shape != moving.grid.shape:
        raise GeometryError(f"a mask of shape {moving_mask.shape} on an image of shape {moving.grid.shape}")
    brain = head_mask(fixed) if fixed_mask is None else np.asarray(fixed_mask, dtype=np.bool_)
    source = Volume(_first_frame(moving) if moving_mask is None else _first_frame(moving) * moving_mask, moving.grid)
    linear = register(
        fixed,
        source,
        params,
        fixed_name=fixed_name,
        moving_name=moving_name,
        fixed_mask=brain,
        initial=initial,
        kind="affine",
    )
    affine = linear.transform
    assert isinstance(affine, Affine)  # noqa: S101
    aligned = renamed(affine, target=f"{fixed_name}-affine")
    grid, inner = _around(brain, fixed.grid, params)
    outside_mm = ndimage.distance_transform_edt(~inner, sampling=grid.voxel_mm)
    weight = np.asarray(outside_mm <= params.demons_margin_mm, dtype=np.float64)
    still = Affine.identity(fixed_name, fixed_name)
    sigma = params.neighbourhood_mm / np.array(grid.voxel_mm)
    images = [
        _normalised(np.asarray(resample(image, grid, place).data), weight, sigma)
        for image, place in ((Volume(_first_frame(fixed), fixed.grid), still), (source, aligned.inverse()))
    ]
    field = _demons(images[0], images[1], grid, params)
    bend = Warp(field, grid, target=aligned.target, source=fixed_name)
    bent = np.asarray(resample(Volume(images[1], grid), grid, bend, average=False).data)
    before, after = (_unlike(images[0][inner], other[inner]) for other in (images[1], bent))
    folded = float(np.mean(bend.jacobian()[inner] <= 0.0))
    if after > before or folded > 0.001:
        raise EstimationError(
            f"the deformable step failed: it changed the unexplained share from {before:.3f} to {after:.3f} and folds "
            f"{100 * folded:.2g} % of the brain",
            where=f"{moving_name} to {fixed_name}",
            hint="smooth it more, or check the affine step",
        )
    bend = bend.with_inverse()
    points = grid.world(np.argwhere(inner)[:: max(1, int(inner.sum()) // 20_000)].astype(np.float64))
    there_and_back = bend.inverse().apply(bend.apply(points))
    return replace(
        linear,
        transform=bend.inverse() @ aligned,
        metric=after,
        target_error_mm=float("nan"),
        inverse_consistency_mm=float(np.linalg.norm(there_and_back - points, axis=1).mean()),
        n_iterations=sum(params.demons_iterations),
    )


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

    data = np.abs(np.nan_to_num(_first_frame(image)))
    top = float(np.percentile(data, 99.5))
    if top <= 0.0:
        raise EstimationError("the image is empty, so that no head can be found in it")
    # Roots pull bright vials and fluid towards the rest of the head, which Otsu's two classes need.
    blurred = ndimage.gaussian_filter(np.sqrt(np.minimum(data / top, 1.0)), 2.0 / np.array(image.grid.voxel_mm))
    bright = blurred > _otsu(blurred)
    labels, count = ndimage.label(bright)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    head = ndimage.binary_closing(np.pad(labels == int(sizes.argmax()), 3), iterations=3)[3:-3, 3:-3, 3:-3]
    for axis in range(3):
        planes = np.moveaxis(head, axis, 0)
        head = np.moveaxis(np.stack([ndimage.binary_fill_holes(plane) for plane in planes]), 0, axis)
    return np.asarray(head, dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """One level: points of the fixed image with their classes, and the moving image as a spline."""

    points: NDArray[np.float64]
    classes: NDArray[np.float64]
    spline: NDArray[np.float64]
    grid: Grid
    weights: NDArray[np.float64]


class _Pose(NamedTuple):
    """One solution: ``moving_from_fixed`` and how it was reached."""

    matrix: NDArray[np.float64]
    share: float
    overlap: float
    converged: bool
    n_iterations: int


class _Search(NamedTuple):
    """Outcome of all levels but the finest."""

    fixed: Volume
    coarsest: _Scene
    pose: _Pose
    n_starts: int
    spread_mm: float


class _Slope(NamedTuple):
    """Metric at a pose; its residual (n,) and derivative (n, parameters) where they were asked for."""

    share: float
    overlap: float
    residual: NDArray[np.float64]
    derivative: NDArray[np.float64]
    inside: NDArray[np.bool_]


def _search(
    fixed: Volume,
    mask: NDArray[np.bool_],
    moving: Volume,
    params: RegistrationParams,
    *,
    first: NDArray[np.float64] | None,
    kind: RegistrationKind,
) -> _Search:
    """Follow every start at the coarsest level, rigidly, and the finalists through the levels between."""
    scenes = [_scene(fixed, mask, moving, params, level) for level in range(max(1, len(params.levels_mm) - 1))]
    starts = _starts(scenes[0], moving, params) if first is None else [first]
    poses = sorted((_descend(scenes[0], start, "rigid", params) for start in starts), key=lambda pose: pose.share)
    spread_mm = _distance(scenes[0], poses[0].matrix, poses[1].matrix) if len(poses) > 1 else float("nan")
    for scene in scenes[1:]:
        chosen = _different(scenes[0], poses, params.finalists)
        poses = sorted((_descend(scene, pose.matrix, kind, params) for pose in chosen), key=lambda pose: pose.share)
    return _Search(fixed, scenes[0], poses[0], len(starts), spread_mm)


def _check_image(image: Volume, name: str) -> None:
    data = _first_frame(image)
    if not np.isfinite(data).all():
        raise DataError(f"{int((~np.isfinite(data)).sum())} voxels are NaN or infinite", where=name)
    if float(data.max()) <= float(data.min()):
        raise EstimationError(f"every voxel has the value {float(data.min()):.3g}", where=name)


def _check_fit(
    fixed: Volume, fixed_mask: NDArray[np.bool_] | None, initial: Affine | None, names: tuple[str, str]
) -> None:
    if fixed_mask is not None and fixed_mask.shape != fixed.grid.shape:
        raise GeometryError(f"a mask of shape {fixed_mask.shape} on an image of shape {fixed.grid.shape}")
    if fixed_mask is not None and not fixed_mask.any():
        raise EstimationError("the mask of the fixed image is empty", where=names[0])
    if initial is not None and (initial.target, initial.source) != names:
        raise GeometryError(
            f"the first guess is {initial.target}_from_{initial.source}, not {names[0]}_from_{names[1]}",
            hint="invert it, or rename its frames",
        )


def _first_frame(image: Volume) -> NDArray[np.float32]:
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


def _scene(fixed: Volume, mask: NDArray[np.bool_], moving: Volume, params: RegistrationParams, level: int) -> _Scene:
    """Prepare one level: classes of the fixed image at its points, the moving image blurred to the level."""
    from scipy import ndimage

    resolution_mm = params.levels_mm[level]
    fine_mm = max(resolution_mm / 2.0, min(fixed.grid.voxel_mm))
    still = Affine.identity("fine", "fine")
    grid = fixed.grid.with_voxel(fine_mm)
    image = resample(Volume(_first_frame(fixed), fixed.grid), grid, still).data
    inner = np.asarray(resample(Volume(mask, fixed.grid), grid, still, "probability").data) > 0.5
    if not inner.any():
        raise EstimationError(f"the mask of {int(mask.sum())} voxels vanishes at {fine_mm:.3g} mm")
    outside_mm = ndimage.distance_transform_edt(~inner, sampling=grid.voxel_mm)
    region = np.asarray(outside_mm <= params.rings_mm[level])

    source, psf_mm = _blurred(moving, resolution_mm, params)
    psf_voxels = psf_mm / np.array(grid.voxel_mm)
    index = np.argwhere(region)
    index = index[:: int(np.ceil(len(index) / params.points[level]))]
    maps = _hats(np.asarray(image), region, params.classes[level])
    if _is_bare(np.asarray(image), inner, region):
        maps = [np.where(inner, hat, 0.0) for hat in maps] + _shells(
            outside_mm, params.shell_mm, params.rings_mm[level]
        )
    classes = _blurred_at(maps, index, psf_voxels)
    points = grid.world(index.astype(np.float64))
    if level == len(params.levels_mm) - 1:
        # Coil profiles of either image; at coarse levels a plane would explain head against air and so a wrong pose.
        along = (points - points.mean(axis=0)) / points.std(axis=0)
        classes = np.concatenate([classes, *(classes * along[:, [axis]] for axis in range(3))], axis=1)
    spline = np.asarray(ndimage.spline_filter(np.asarray(source.data, dtype=np.float64), order=3))
    return _Scene(points, classes, spline, source.grid, np.ones(len(points)))


def _blurred(moving: Volume, resolution_mm: float, params: RegistrationParams) -> tuple[Volume, float]:
    """Return the moving image at a level's resolution, and the width that its points then have, FWHM in mm."""
    from scipy import ndimage

    image = Volume(_first_frame(moving), moving.grid)
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


def _flat(image: Volume, sigma_mm: float) -> Volume:
    """Return the first frame over its own smooth part: coil profiles fade, and noise in the air does not rise."""
    from scipy import ndimage

    data: NDArray[np.floating] = _first_frame(image)
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


def _starts(scene: _Scene, moving: Volume, params: RegistrationParams) -> list[NDArray[np.float64]]:
    """Return poses ``moving_from_fixed`` to start from: headers as they are and middles matched, each turned 7 ways."""
    centre = scene.points.mean(axis=0)
    coarse, _ = _blurred(moving, params.levels_mm[0], params)
    head = coarse.grid.world(np.argwhere(head_mask(coarse)).astype(np.float64)).mean(axis=0)
    turn = params.start_rotation_deg
    turns = [np.zeros(3), *(sign * turn * np.eye(3)[axis] for axis in range(3) for sign in (1.0, -1.0))]
    return [
        rigid_from_parameters(rotation, shift, target="moving", source="fixed", centre_mm=centre).matrix
        for shift in (np.zeros(3), head - centre)
        for rotation in turns
    ]


def _slope(scene: _Scene, matrix: NDArray[np.float64], kind: RegistrationKind | None) -> _Slope:
    """Return the metric at a pose, with residual and derivative where a kind is given."""
    from scipy.ndimage import map_coordinates

    index = scene.grid.index(scene.points @ matrix[:3, :3].T + matrix[:3, 3]).T
    inside = np.all((index >= -0.5) & (index < np.array(scene.grid.shape)[:, None] - 0.5), axis=0)
    overlap = float(np.mean(inside))
    nothing = np.zeros((0, 0))
    if inside.sum() <= 2 * scene.classes.shape[1]:
        return _Slope(1.0, overlap, nothing[0:0].ravel(), nothing, inside)
    index, classes, weights = index[:, inside], scene.classes[inside], np.sqrt(scene.weights[inside])

    def at(place: NDArray[np.float64]) -> NDArray[np.float64]:
        values = map_coordinates(scene.spline, place, order=3, mode="nearest", prefilter=False, output=np.float64)
        return np.asarray(values * weights)

    F = classes * weights[:, None]
    gram = F.T @ F
    gram[np.diag_indices_from(gram)] += 1e-7 * np.trace(gram) / len(gram)
    y = at(index)
    level = weights * float(weights @ y / (weights @ weights))
    deviation = y - level
    size = float(np.sqrt(deviation @ deviation))
    if size <= 1e-12 * (1.0 + float(np.abs(level).max())):
        return _Slope(1.0, overlap, nothing[0:0].ravel(), nothing, inside)
    residual = y - F @ np.linalg.solve(gram, F.T @ y)
    share = float(residual @ residual) / size**2
    if kind is None:
        return _Slope(share, overlap, residual / size, nothing, inside)
    step = 0.1 * np.eye(3)
    along = np.stack([(at(index + step[:, [a]]) - at(index - step[:, [a]])) / 0.2 for a in range(3)], axis=1)
    gradient = along @ np.linalg.inv(scene.grid.affine[:3, :3])
    arm = (scene.points[inside] - scene.points.mean(axis=0)) @ matrix[:3, :3].T
    turning = (
        np.cross(arm, gradient) if kind == "rigid" else (gradient[:, :, None] * arm[:, None, :]).reshape(len(arm), 9)
    )
    dy = np.concatenate([turning / _LEVER_MM, gradient], axis=1)
    projected = dy - F @ np.linalg.solve(gram, F.T @ dy)
    derivative = (projected - np.outer(residual, deviation @ dy / size**2)) / size
    return _Slope(share, overlap, residual / size, derivative, inside)


def _moved(
    scene: _Scene, matrix: NDArray[np.float64], step: NDArray[np.float64], kind: RegistrationKind
) -> NDArray[np.float64]:
    """Return a pose after a small turn or stretch about the middle of the points and a shift."""
    from scipy.spatial.transform import Rotation

    centre = matrix[:3, :3] @ scene.points.mean(axis=0) + matrix[:3, 3]
    small = np.eye(4)
    if kind == "rigid":
        small[:3, :3] = Rotation.from_rotvec(step[:3] / _LEVER_MM).as_matrix()
    else:
        small[:3, :3] += step[:9].reshape(3, 3) / _LEVER_MM
    small[:3, 3] = centre + step[-3:] - small[:3, :3] @ centre
    return np.asarray(small @ matrix)


def _descend(scene: _Scene, start: NDArray[np.float64], kind: RegistrationKind, params: RegistrationParams) -> _Pose:
    """Follow the metric downhill by Levenberg-Marquardt steps of at most 15 mm."""
    matrix, damping = start, 1e-3
    here = _slope(scene, matrix, kind)
    for iteration in range(1, params.iterations + 1):
        if here.derivative.size == 0:
            return _Pose(matrix, 1.0, here.overlap, converged=False, n_iterations=iteration)
        curvature = here.derivative.T @ here.derivative
        downhill = here.derivative.T @ here.residual
        while True:
            scale = damping * np.diag(curvature) + 1e-12 * np.trace(curvature)
            step = np.asarray(-np.linalg.solve(curvature + np.diag(scale), downhill), dtype=np.float64)
            length = float(np.linalg.norm(step))
            step *= min(1.0, 15.0 / max(length, 1e-12))
            proposal = _moved(scene, matrix, step, kind)
            there = _slope(scene, proposal, None)
            accepted = there.share < here.share and there.overlap >= min(params.least_overlap, here.overlap)
            if accepted or length < params.tolerance_mm or damping > 1e4:
                break
            damping *= 10.0
        if accepted:
            matrix, damping = proposal, max(damping / 10.0, 1e-6)
            here = _slope(scene, matrix, kind)
        if length < params.tolerance_mm or not accepted:
            return _Pose(matrix, here.share, here.overlap, length < params.tolerance_mm, iteration)
    return _Pose(matrix, here.share, here.overlap, converged=False, n_iterations=params.iterations)


def _distance(scene: _Scene, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the mean distance between where two poses put the points, in mm."""
    difference = first - second
    return float(np.linalg.norm(scene.points @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


def _different(scene: _Scene, poses: list[_Pose], most: int) -> list[_Pose]:
    """Return the best poses that lie more than 5 mm apart."""
    chosen: list[_Pose] = []
    for pose in poses:
        if all(_distance(scene, pose.matrix, other.matrix) > 5.0 for other in chosen):
            chosen.append(pose)
    return chosen[:most]


def _refuse_upside_down(scene: _Scene, best: _Pose, params: RegistrationParams, words: str) -> None:
    """Try the best pose turned by half a turn about each axis, at the coarsest level.

    Raises
    ------
    EstimationError
        If one of these fits clearly better.
    """
    centre = scene.points.mean(axis=0)
    best = _descend(scene, best.matrix, "rigid", params)
    for axis, name in enumerate(("left-right", "back-front", "foot-head")):
        half = rigid_from_parameters(180.0 * np.eye(3)[axis], np.zeros(3), target="f", source="f", centre_mm=centre)
        turned = _descend(scene, best.matrix @ half.matrix, "rigid", params)
        if turned.share < 0.7 * best.share:
            raise EstimationError(
                f"turned by 180 degrees about the {name} axis the moving image leaves {100 * turned.share:.0f} % of "
                f"its variance unexplained, as it lies {100 * best.share:.0f} %",
                where=words,
                hint="the orientation in one of the headers is wrong: correct it",
            )


def _huber_weights(scene: _Scene, matrix: NDArray[np.float64], params: RegistrationParams) -> NDArray[np.float64]:
    """Return weights that make residuals beyond the limit count linearly."""
    here = _slope(replace(scene, weights=np.ones(len(scene.points))), matrix, None)
    size = np.abs(here.residual)
    spread = 1.4826 * float(np.median(size)) if size.size else 0.0
    weights = np.ones(len(scene.points))
    weights[here.inside] = np.minimum(1.0, params.huber * spread / np.maximum(size, 1e-12)) if spread > 0 else 1.0
    return weights


def _target_error(scene: _Scene, matrix: NDArray[np.float64], kind: RegistrationKind) -> float:
    """Return the standard error of a point's position over the mask, by a delete-one-block jackknife, in mm.

    Residuals are neighbours' business (misfit is smooth), so that the scatter of single voxels would promise too much.
    """
    here = _slope(scene, matrix, kind)
    if here.derivative.size == 0:
        return float("nan")
    points = scene.points[here.inside]
    third = np.stack([np.searchsorted(np.quantile(points[:, a], [1 / 3, 2 / 3]), points[:, a]) for a in range(3)])
    block = third[0] * 9 + third[1] * 3 + third[2]
    curvature = here.derivative.T @ here.derivative
    downhill = here.derivative.T @ here.residual
    steps = []
    for member in np.unique(block):
        J, r = here.derivative[block == member], here.residual[block == member]
        steps.append(-np.linalg.solve(curvature - J.T @ J, downhill - J.T @ r))
    moves = np.stack(steps)
    moves -= moves.mean(axis=0)
    covariance = (len(moves) - 1) / len(moves) * (moves.T @ moves)
    arm = (points - scene.points.mean(axis=0)) @ matrix[:3, :3].T / _LEVER_MM
    variance = 0.0
    for axis in range(3):
        unit = np.eye(3)[axis]
        turning = (
            np.cross(arm, np.broadcast_to(unit, arm.shape))
            if kind == "rigid"
            else (unit[None, :, None] * arm[:, None, :]).reshape(len(arm), 9)
        )
        jacobian = np.concatenate([turning, np.broadcast_to(unit, arm.shape)], axis=1)
        variance += float(np.einsum("ni,ij,nj->n", jacobian, covariance, jacobian).mean())
    return float(np.sqrt(variance))


def _around(brain: NDArray[np.bool_], fixed: Grid, params: RegistrationParams) -> tuple[Grid, NDArray[np.bool_]]:
    """Return the finest grid of the deformable step, cut 12 mm around the brain, and the brain on it."""
    grid = fixed.with_voxel(params.demons_levels_mm[-1])
    found = grid.index(fixed.world(np.argwhere(brain).astype(np.float64)))
    room = 12.0 / np.array(grid.voxel_mm)
    low = np.floor(found.min(axis=0) - room)
    x, y, z = (int(n) for n in np.ceil(found.max(axis=0) + room) - low + 1)
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world(low)
    grid = Grid((x, y, z), affine)
    inner = resample(Volume(brain, fixed), grid, Affine.identity("fine", "fine"), "probability")
    return grid, np.asarray(np.asarray(inner.data) >= 0.5)


def _normalised(
    image: NDArray[np.floating], weight: NDArray[np.float64], sigma: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the image with the mean 0 and contrast 1 of each neighbourhood: free of bias field and units."""
    from scipy import ndimage

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values * weight, sigma, truncate=3.0) / share)

    share = ndimage.gaussian_filter(weight, sigma, truncate=3.0) + 1e-3
    values = np.asarray(image, dtype=np.float64) / float(np.percentile(image[weight > 0], 99))
    mean = local(values)
    spread = np.sqrt(np.maximum(local(values**2) - mean**2, 0.0) + 0.02**2)
    return np.asarray((values - mean) / spread * weight, dtype=np.float32)


def _unlike(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return the share of the variance that two images do not have in common."""
    return float(1.0 - np.corrcoef(first, second)[0, 1] ** 2)


def _demons(
    fixed: NDArray[np.float32], moving: NDArray[np.float32], grid: Grid, params: RegistrationParams
) -> NDArray[np.float32]:
    """Return the displacement ``u`` on the grid for which ``moving(x + u(x))`` is like ``fixed(x)``."""
    import SimpleITK as sitk  # noqa: N813

    still = Affine.identity("fine", "fine")
    field: sitk.Image | None = None
    for voxel_mm, iterations in zip(params.demons_levels_mm, params.demons_iterations, strict=True):
        coarse = grid.with_voxel(voxel_mm)
        pair = [
            to_itk_image(np.asarray(resample(Volume(image, grid), coarse, still).data), coarse)
            for image in (fixed, moving)
        ]
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfThreads(1)
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(params.demons_smoothing_voxels)
        if field is None:
            field = demons.Execute(*pair)
        else:
            field = demons.Execute(*pair, sitk.Resample(field, pair[0], sitk.Transform(), sitk.sitkLinear, 0.0))
    assert field is not None  # noqa: S101 - the parameters have at least one level
    x, y, z = field.GetSize()
    values = np.asarray(sitk.GetArrayFromImage(field)).transpose(2, 1, 0, 3)
    fitted = Warp(values, Grid((x, y, z), grid.with_voxel(params.demons_levels_mm[-1]).affine), "moving", "fixed")
    nodes = grid.world(np.moveaxis(np.indices(grid.shape, dtype=np.float64), 0, -1))
    return np.asarray(fitted.apply(nodes) - nodes, dtype=np.float32)
