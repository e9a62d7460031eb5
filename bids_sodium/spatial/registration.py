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
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.spatial._demons import demons, grid_around, normalised, unlike
from bids_sodium.spatial._exchange import exchanged
from bids_sodium.spatial._poses import (
    Kind,
    Pose,
    descend,
    different,
    distance_between,
    refined,
    refuse_upside_down,
    starts_of,
    target_error,
)
from bids_sodium.spatial._scenes import Scene, first_frame, flat, head_mask, scene_of
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine, Transform, Warp, renamed

__all__ = ["Registration", "RegistrationParams", "head_mask", "register", "register_deformable", "register_halfway"]


_SHARPER = 1.5
"""Ratio of voxel sizes beyond which one image is the sharper one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationParams:
    """How transforms are estimated."""

    path: Literal["best", "chain", "direct"] = "best"
    """Way of the sodium image to the anatomy: directly, through the images between them, or whichever is known
    better."""

    halfway: bool = False
    """Whether the T1w images of two sessions meet half-way, so that neither is preferred."""

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
    """Share of the moving image's variance that must be explained: the metric's threshold is one minus this. Noise
    reaches 0.02, heads 0.5 to 0.97."""

    profile_degree: int = 3
    """Degree of the polynomial coil profile that all classes share at the finest level; 1 for none beyond a plane. With
    the profile of an array of loops the target error is 0.2 mm with 3 and 0.7 mm with 1; it costs nothing without."""

    both_ways: bool = True
    """Whether a rigid pose is estimated once more over the voxels of the moving image; the transform lies half-way and
    their distance is the inverse consistency."""

    largest_target_error_mm: float = 3.0
    """Largest stated error of a point of the mask, in mm; beyond it masks and tissues are of the wrong place."""

    largest_inverse_error_mm: float = 4.0
    """Largest distance between the way there and the way back, in mm."""

    largest_turn_deg: float = 75.0
    """Largest turn against the headers, in degrees: heads turn by less than 30, a wrong header by 90 or 180."""

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
        if self.path not in ("best", "chain", "direct"):
            raise ConfigError(f"registration.path is {self.path!r}", hint="choose best, chain or direct")
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
        Standard error of the position of a point of the mask, root mean square, in mm: from leaving out one of 27
        blocks of the mask at a time, from how far the answer moves without the surroundings of the mask and with a
        coil profile of one more degree, and from half of the inverse consistency; ``nan`` where it is not known.
    inverse_consistency_mm : float
        Mean distance between where two estimates put a point, one summed over the points of the fixed image and one
        over the voxels of the moving image, in mm; the transform lies half-way. For deformable maps that of the warp
        and its inverse; ``nan`` where only one was made.
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
    kind: Kind = "rigid",
) -> Registration:
    """Return the rigid or affine transform ``fixed_from_moving``.

    The sharper image explains the other. Where that is the moving one and no mask is given they change places, so that
    exchanging the images gives the inverse.

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
    if fixed_mask is None and np.mean(fixed.grid.voxel_mm) > _SHARPER * np.mean(moving.grid.voxel_mm):
        first_guess = None if initial is None else initial.inverse()
        swapped = register(
            moving, fixed, params, fixed_name=moving_name, moving_name=fixed_name, initial=first_guess, kind=kind
        )
        return replace(swapped, transform=swapped.transform.inverse())
    mask = head_mask(fixed) if fixed_mask is None else np.asarray(fixed_mask, dtype=np.bool_)
    words = f"{moving_name} to {fixed_name}"
    first = None if initial is None else initial.inverse().matrix
    found = plain = _search(flat(fixed, 0.0), mask, moving, params, first=first, kind=kind)
    if 1.0 - found.pose.share < params.well_explained and params.flatten_mm > 0.0:
        other = _search(flat(fixed, params.flatten_mm), mask, moving, params, first=first, kind=kind)
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
        # an image upside down is explained badly, and so may have been flattened without need
        for search in (plain, *([] if found is plain else [found])):
            refuse_upside_down(search.coarsest, search.last, search.pose, kind, params, words)
    finest = scene_of(found.fixed, mask, moving, params, len(params.levels_mm) - 1)
    pose, weights, used = _finest(finest, found.pose.matrix, kind, params)
    error_mm = target_error(replace(finest, weights=weights), pose.matrix, kind, used)
    matrix, apart_mm = pose.matrix, float("nan")
    if params.both_ways and kind == "rigid":
        matrix, apart_mm = _between(found.fixed, mask, moving, pose.matrix, finest.points, used)
        error_mm = float(np.hypot(error_mm, 0.0 if np.isnan(apart_mm) else apart_mm / 2.0))
    result = Registration(
        transform=Affine(matrix, target=moving_name, source=fixed_name).inverse(),
        metric=pose.share,
        converged=pose.converged,
        target_error_mm=error_mm,
        inverse_consistency_mm=apart_mm,
        overlap=pose.overlap,
        n_starts=found.n_starts,
        n_iterations=pose.n_iterations,
        start_spread_mm=found.spread_mm,
    )
    _refuse_doubtful(result, finest.points.mean(axis=0), params, words)
    return result


def _finest(
    scene: Scene, start: NDArray[np.float64], kind: Kind, params: RegistrationParams
) -> tuple[Pose, NDArray[np.float64], RegistrationParams]:
    """Refine with a plane for the coil profile, and from there with its full degree where that explains more.

    From a start a millimetre off, a free profile can explain the head as one blob and lead away.
    """
    plain = replace(params, profile_degree=1)
    pose, weights = refined(scene, start, kind, plain)
    if params.profile_degree > 1:
        freer, freer_weights = refined(scene, pose.matrix, kind, params)
        if freer.share < pose.share:
            return freer, freer_weights, params
    return pose, weights, plain


def register_halfway(
    first: Volume,
    second: Volume,
    params: RegistrationParams = RegistrationParams(),
    *,
    first_name: str = "first",
    second_name: str = "second",
    first_mask: NDArray[np.bool_] | None = None,
) -> Registration:
    """Return the rigid transform ``first_from_second`` that prefers neither image, for sessions of one participant.

    Each image explains the other once; the transform lies half-way between the two answers. Exchanging the images gives
    its inverse. ``transform.sqrt()`` places the second image midway, its inverse the first, so that both are
    interpolated alike.

    Parameters
    ----------
    first, second : Volume
        Images of one contrast, such as the T1w of two sessions.
    params : RegistrationParams
        Levels, starts and limits.
    first_name, second_name : str
        Names of the two frames.
    first_mask : (nx, ny, nz) ndarray of bool, optional
        Brain mask on the first image; both heads where it is not given.

    Returns
    -------
    Registration
        ``inverse_consistency_mm`` is the distance between the two answers, of which a half enters
        ``target_error_mm``.

    Raises
    ------
    EstimationError
        As for `register`.
    GeometryError
        If the mask does not fit the image.

    References
    ----------
    Reuter M, Rosas HD, Fischl B. Highly accurate inverse consistent registration: a robust approach. NeuroImage
    2010;53:1181-1196, doi:10.1016/j.neuroimage.2010.07.020.

    Examples
    --------
    >>> grid = Grid.centred((32, 32, 32), 4.0)
    >>> x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    >>> head = np.exp(-((x / 40) ** 4) - (y / 50) ** 4 - (z / 45) ** 4) * (2 + np.sin(x / 9) + np.cos(y / 11 + z / 13))
    >>> moved = Volume(head, Grid(grid.shape, grid.affine + np.eye(4, k=3) * 5.0))
    >>> found = register_halfway(Volume(head, grid), moved, first_name="ses-1", second_name="ses-2")
    >>> bool(np.allclose(found.transform.sqrt().apply([0.0, 0.0, 0.0]), [-2.5, 0.0, 0.0], atol=0.1))
    True
    """
    one_way = replace(params, both_ways=False)
    there = register(first, second, one_way, fixed_name=first_name, moving_name=second_name, fixed_mask=first_mask)
    forward = there.transform
    mask = head_mask(first) if first_mask is None else np.asarray(first_mask, dtype=np.bool_)
    carried = head_mask(second) if first_mask is None else _carried(mask, first.grid, second.grid, forward)
    back = register(
        second,
        first,
        one_way,
        fixed_name=second_name,
        moving_name=first_name,
        fixed_mask=carried,
        initial=_affine(forward.inverse()),
    )
    apart = _affine(forward.inverse()) @ _affine(back.transform.inverse())
    points = second.grid.world(np.argwhere(carried)[:: max(1, int(carried.sum()) // 5000)].astype(np.float64))
    distance = np.linalg.norm(apart.apply(points) - points, axis=1)
    result = replace(
        there,
        transform=_affine(forward) @ apart.sqrt(second_name),
        metric=(there.metric + back.metric) / 2.0,
        converged=there.converged and back.converged,
        target_error_mm=float(
            np.sqrt((there.target_error_mm**2 + back.target_error_mm**2 + (distance**2).mean() / 2.0) / 2.0)
        ),
        inverse_consistency_mm=float(distance.mean()),
        overlap=min(there.overlap, back.overlap),
        n_iterations=there.n_iterations + back.n_iterations,
    )
    _refuse_doubtful(result, points.mean(axis=0), params, f"{second_name} to {first_name}")
    return result


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
    source = Volume(first_frame(moving) if moving_mask is None else first_frame(moving) * moving_mask, moving.grid)
    linear = register(
        fixed,
        source,
        # a head that is to be bent is not consistent under a stretch
        replace(params, both_ways=False, largest_target_error_mm=np.inf),
        fixed_name=fixed_name,
        moving_name=moving_name,
        fixed_mask=brain,
        initial=initial,
        kind="affine",
    )
    affine = linear.transform
    assert isinstance(affine, Affine)  # noqa: S101
    aligned = renamed(affine, target=f"{fixed_name}-affine")
    grid, inner = grid_around(brain, fixed.grid, params)
    outside_mm = ndimage.distance_transform_edt(~inner, sampling=grid.voxel_mm)
    still = Affine.identity(fixed_name, fixed_name)
    # what the participant's image does not cover pulls at nothing
    seen = resample(Volume(np.ones(source.grid.shape, dtype=np.bool_), source.grid), grid, aligned.inverse()).data > 0.5
    weight = np.asarray((outside_mm <= params.demons_margin_mm) & seen, dtype=np.float64)
    inner &= seen
    sigma = params.neighbourhood_mm / np.array(grid.voxel_mm)
    images = [
        normalised(np.asarray(resample(image, grid, place).data), weight, sigma)
        for image, place in ((Volume(first_frame(fixed), fixed.grid), still), (source, aligned.inverse()))
    ]
    field = demons(images[0], images[1], grid, params)
    bend = Warp(field, grid, target=aligned.target, source=fixed_name)
    bent = np.asarray(resample(Volume(images[1], grid), grid, bend, average=False).data)
    before, after = (unlike(images[0][inner], other[inner]) for other in (images[1], bent))
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


def _affine(transform: Transform) -> Affine:
    assert isinstance(transform, Affine)  # noqa: S101 - rigid and affine searches return nothing else
    return transform


def _carried(mask: NDArray[np.bool_], grid: Grid, other: Grid, grid_from_other: Transform) -> NDArray[np.bool_]:
    """Return a mask on the grid of the other image."""
    there = resample(Volume(mask, grid), other, grid_from_other, "probability")
    return np.asarray(np.asarray(there.data) > 0.5)


def _between(
    fixed: Volume,
    mask: NDArray[np.bool_],
    moving: Volume,
    matrix: NDArray[np.float64],
    points: NDArray[np.float64],
    params: RegistrationParams,
) -> tuple[NDArray[np.float64], float]:
    """Return the pose half-way to the one that is estimated over the voxels of the moving image, and their distance.

    On the phantom either is right to 0.12 mm and they lie 0.1 to 0.2 mm apart; at 7 T 0.7 to 1.3 mm apart, where the
    images of an array and of a volume coil are placed 1.1 mm apart too.
    """
    other = exchanged(fixed, mask, moving, matrix, params)
    if other is None:
        return matrix, float("nan")
    apart = other - matrix
    distance_mm = float(np.linalg.norm(points @ apart[:3, :3].T + apart[:3, 3], axis=1).mean())
    step = Affine(np.linalg.inv(matrix) @ other, target="fixed", source="fixed").sqrt("fixed")
    return np.asarray(matrix @ step.matrix), distance_mm


def _refuse_doubtful(
    found: Registration, centre_mm: NDArray[np.float64], params: RegistrationParams, words: str
) -> None:
    """Refuse a transform whose quality lies beyond a limit.

    Raises
    ------
    EstimationError
        If the turn, the stated error or the inverse consistency is too large.
    """
    turn = _affine(found.transform).motion(centre_mm).angle_deg
    if turn > params.largest_turn_deg:
        raise EstimationError(
            f"the moving image is turned by {turn:.0f} degrees against the headers, more than "
            f"{params.largest_turn_deg:g}",
            where=words,
            hint="the orientation in one of the headers is wrong: correct it, or raise registration.largest_turn_deg",
        )
    for value, limit, name in (
        (found.target_error_mm, params.largest_target_error_mm, "standard error of a point's place"),
        (found.inverse_consistency_mm, params.largest_inverse_error_mm, "distance between the way there and back"),
    ):
        if np.isfinite(value) and value > limit:
            raise EstimationError(
                f"the {name} is {value:.1f} mm, more than {limit:g} mm, with {100 * (1 - found.metric):.0f} % of the "
                "moving image's variance explained",
                where=words,
                hint="look at both images; correct the receive profile, or give a brain mask or another contrast",
            )


class _Search(NamedTuple):
    """Outcome of all levels but the finest."""

    fixed: Volume
    coarsest: Scene
    last: Scene
    pose: Pose
    n_starts: int
    spread_mm: float


def _search(
    fixed: Volume,
    mask: NDArray[np.bool_],
    moving: Volume,
    params: RegistrationParams,
    *,
    first: NDArray[np.float64] | None,
    kind: Kind,
) -> _Search:
    """Follow every start at the coarsest level, rigidly, and the finalists through the levels between."""
    scenes = [scene_of(fixed, mask, moving, params, level) for level in range(max(1, len(params.levels_mm) - 1))]
    starts = starts_of(scenes[0], moving, params) if first is None else [first]
    poses = sorted((descend(scenes[0], start, "rigid", params) for start in starts), key=lambda pose: pose.share)
    spread_mm = distance_between(scenes[0], poses[0].matrix, poses[1].matrix) if len(poses) > 1 else float("nan")
    for scene in scenes[1:]:
        chosen = different(scenes[0], poses, params.finalists)
        poses = sorted((descend(scene, pose.matrix, kind, params) for pose in chosen), key=lambda pose: pose.share)
    return _Search(fixed, scenes[0], scenes[-1], poses[0], len(starts), spread_mm)


def _check_image(image: Volume, name: str) -> None:
    data = first_frame(image)
    if not np.isfinite(data).all():
        raise DataError(
            f"{int((~np.isfinite(data)).sum())} voxels are NaN or infinite",
            where=name,
            hint="write 0 where nothing was measured",
        )
    if float(data.max()) <= float(data.min()):
        raise EstimationError(
            f"every voxel has the value {float(data.min()):.3g}",
            where=name,
            hint="look at the image, and export or convert it again",
        )


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
