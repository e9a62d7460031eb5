"""The search for a pose: the metric and its slope, the way downhill, several starts, and how well the pose is known.

A pose is the matrix ``moving_from_fixed``. Its metric is the share of the moving image's variance that no combination
of the fixed image's classes explains; the coefficients are projected out (variable projection).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import EstimationError
from bids_sodium.spatial._scenes import Scene, blurred, gram_of, head_mask
from bids_sodium.spatial.transforms import rigid_from_parameters

if TYPE_CHECKING:
    from bids_sodium.spatial.registration import RegistrationParams

__all__ = [
    "Kind",
    "Pose",
    "Slope",
    "descend",
    "different",
    "distance_between",
    "huber_weights",
    "profiled",
    "refined",
    "refuse_upside_down",
    "slope_at",
    "starts_of",
    "target_error",
]

Kind: TypeAlias = Literal["rigid", "affine"]
"""Six or twelve parameters."""

_ROUNDS = 4
_LEVER_MM = 70.0
"""Half a head: one unit of a turn or stretch moves its surface by 1 mm when divided by this."""


class Pose(NamedTuple):
    """One solution: ``moving_from_fixed`` and how it was reached."""

    matrix: NDArray[np.float64]
    share: float
    overlap: float
    converged: bool
    n_iterations: int


class Slope(NamedTuple):
    """Metric at a pose; its residual (n,) and derivative (n, parameters) where they were asked for."""

    share: float
    overlap: float
    residual: NDArray[np.float64]
    derivative: NDArray[np.float64]
    inside: NDArray[np.bool_]


def starts_of(scene: Scene, moving: Volume, params: RegistrationParams) -> list[NDArray[np.float64]]:
    """Return poses ``moving_from_fixed`` to start from: headers as they are and middles matched, each turned 7 ways."""
    centre = scene.points.mean(axis=0)
    coarse, _ = blurred(moving, params.levels_mm[0], params)
    head = coarse.grid.world(np.argwhere(head_mask(coarse)).astype(np.float64)).mean(axis=0)
    turn = params.start_rotation_deg
    turns = [np.zeros(3), *(sign * turn * np.eye(3)[axis] for axis in range(3) for sign in (1.0, -1.0))]
    return [
        rigid_from_parameters(rotation, shift, target="moving", source="fixed", centre_mm=centre).matrix
        for shift in (np.zeros(3), head - centre)
        for rotation in turns
    ]


def slope_at(scene: Scene, matrix: NDArray[np.float64], kind: Kind | None) -> Slope:
    """Return the metric at a pose, with residual and derivative where a kind is given."""
    from scipy.ndimage import map_coordinates

    index = scene.grid.index(scene.points @ matrix[:3, :3].T + matrix[:3, 3]).T
    inside = np.all((index >= -0.5) & (index < np.array(scene.grid.shape)[:, None] - 0.5), axis=0)
    overlap = float(np.mean(inside))
    nothing = np.zeros((0, 0))
    if inside.sum() <= 2 * scene.classes.shape[1]:
        return Slope(1.0, overlap, nothing[0:0].ravel(), nothing, inside)
    index, classes, weights = index[:, inside], scene.classes[inside], np.sqrt(scene.weights[inside])

    def at(spline: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(map_coordinates(spline, index, order=3, mode="nearest", prefilter=False) * weights)

    F = classes * weights[:, None]
    gram = gram_of(F)
    y = at(scene.spline)
    level = weights * float(weights @ y / (weights @ weights))
    deviation = y - level
    size = float(np.sqrt(deviation @ deviation))
    if size <= 1e-12 * (1.0 + float(np.abs(level).max())):
        return Slope(1.0, overlap, nothing[0:0].ravel(), nothing, inside)
    residual = y - F @ np.linalg.solve(gram, F.T @ y)
    share = float(residual @ residual) / size**2
    if kind is None:
        return Slope(share, overlap, residual / size, nothing, inside)
    along = np.stack([at(part) for part in scene.slopes], axis=1)
    gradient = along @ np.linalg.inv(scene.grid.affine[:3, :3])
    arm = (scene.points[inside] - scene.points.mean(axis=0)) @ matrix[:3, :3].T
    turning = (
        np.cross(arm, gradient) if kind == "rigid" else (gradient[:, :, None] * arm[:, None, :]).reshape(len(arm), 9)
    )
    dy = np.concatenate([turning / _LEVER_MM, gradient], axis=1)
    projected = dy - F @ np.linalg.solve(gram, F.T @ dy)
    derivative = (projected - np.outer(residual, deviation @ dy / size**2)) / size
    return Slope(share, overlap, residual / size, derivative, inside)


def _values(scene: Scene, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the moving image at the points of a pose."""
    from scipy.ndimage import map_coordinates

    index = scene.grid.index(scene.points @ matrix[:3, :3].T + matrix[:3, 3]).T
    return np.asarray(map_coordinates(scene.spline, index, order=3, mode="nearest", prefilter=False))


def profiled(scene: Scene, matrix: NDArray[np.float64], degree: int) -> Scene:
    """Return the scene with a coil profile that all classes share, linearised about what explains the image here.

    ``y = (1 + q) F c`` with a polynomial ``q`` becomes the further columns ``q_j F c``; their linear terms are among
    the columns already. Without them the profile of a receive array pulls the pose by 0.4 to 0.9 mm, with a cubic by
    0.1 to 0.3 mm.
    """
    if degree < 2:
        return scene
    F = scene.classes * np.sqrt(scene.weights)[:, None]
    explained = scene.classes @ np.linalg.solve(gram_of(F), F.T @ (_values(scene, matrix) * np.sqrt(scene.weights)))
    along = (scene.points - scene.points.mean(axis=0)) / scene.points.std(axis=0)
    terms = [
        np.prod(along[:, list(axes)], axis=1)
        for order in range(2, degree + 1)
        for axes in itertools.combinations_with_replacement(range(3), order)
    ]
    return replace(scene, classes=np.concatenate([scene.classes, explained[:, None] * np.stack(terms, axis=1)], axis=1))


def _moved(scene: Scene, matrix: NDArray[np.float64], step: NDArray[np.float64], kind: Kind) -> NDArray[np.float64]:
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


def descend(scene: Scene, start: NDArray[np.float64], kind: Kind, params: RegistrationParams) -> Pose:
    """Follow the metric downhill by Levenberg-Marquardt steps of at most 15 mm."""
    matrix, damping = start, 1e-3
    here = slope_at(scene, matrix, kind)
    for iteration in range(1, params.iterations + 1):
        if here.derivative.size == 0:
            return Pose(matrix, 1.0, here.overlap, converged=False, n_iterations=iteration)
        curvature = here.derivative.T @ here.derivative
        downhill = here.derivative.T @ here.residual
        while True:
            scale = damping * np.diag(curvature) + 1e-12 * np.trace(curvature)
            step = np.asarray(-np.linalg.solve(curvature + np.diag(scale), downhill), dtype=np.float64)
            length = float(np.linalg.norm(step))
            step *= min(1.0, 15.0 / max(length, 1e-12))
            proposal = _moved(scene, matrix, step, kind)
            there = slope_at(scene, proposal, None)
            accepted = there.share < here.share and there.overlap >= min(params.least_overlap, here.overlap)
            if accepted or length < params.tolerance_mm or damping > 1e4:
                break
            damping *= 10.0
        if accepted:
            matrix, damping = proposal, max(damping / 10.0, 1e-6)
            here = slope_at(scene, matrix, kind)
        if length < params.tolerance_mm or not accepted:
            return Pose(matrix, here.share, here.overlap, length < params.tolerance_mm, iteration)
    return Pose(matrix, here.share, here.overlap, converged=False, n_iterations=params.iterations)


def distance_between(scene: Scene, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the mean distance between where two poses put the points, in mm."""
    difference = first - second
    return float(np.linalg.norm(scene.points @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


def different(scene: Scene, poses: list[Pose], most: int) -> list[Pose]:
    """Return the best poses that lie more than 5 mm apart."""
    chosen: list[Pose] = []
    for pose in poses:
        if all(distance_between(scene, pose.matrix, other.matrix) > 5.0 for other in chosen):
            chosen.append(pose)
    return chosen[:most]


def refuse_upside_down(
    coarse: Scene, scene: Scene, best: Pose, kind: Kind, params: RegistrationParams, words: str
) -> None:
    """Try half a turn about each axis: of the best pose of a scene, and of the image as its header has it.

    The best pose of an image upside down may be far from half a turn of the true one; a header that is wrong by half a
    turn turns the image about the middle of its lattice. Both are followed at the coarsest level, the better one at
    that of the best pose.

    Raises
    ------
    EstimationError
        If one of these fits clearly better.
    """
    centre, middle = coarse.points.mean(axis=0), coarse.grid.world((np.array(coarse.grid.shape) - 1) / 2.0)
    for axis, name in enumerate(("left-right", "back-front", "foot-head")):
        of_fixed, of_moving = (
            rigid_from_parameters(180.0 * np.eye(3)[axis], np.zeros(3), target="f", source="f", centre_mm=place).matrix
            for place in (centre, middle)
        )
        poses = [descend(coarse, start, "rigid", params) for start in (best.matrix @ of_fixed, of_moving)]
        turned = descend(scene, min(poses, key=lambda pose: pose.share).matrix, kind, params)
        if turned.share < 0.7 * best.share:
            raise EstimationError(
                f"turned by 180 degrees about the {name} axis the moving image leaves {100 * turned.share:.0f} % of "
                f"its variance unexplained, as it lies {100 * best.share:.0f} %",
                where=words,
                hint="the orientation in one of the headers is wrong: correct it",
            )


def huber_weights(scene: Scene, matrix: NDArray[np.float64], params: RegistrationParams) -> NDArray[np.float64]:
    """Return weights that make residuals beyond the limit count linearly."""
    here = slope_at(replace(scene, weights=np.ones(len(scene.points))), matrix, None)
    size = np.abs(here.residual)
    spread = 1.4826 * float(np.median(size)) if size.size else 0.0
    weights = np.ones(len(scene.points))
    weights[here.inside] = np.minimum(1.0, params.huber * spread / np.maximum(size, 1e-12)) if spread > 0 else 1.0
    return weights


def refined(
    scene: Scene, start: NDArray[np.float64], kind: Kind, params: RegistrationParams
) -> tuple[Pose, NDArray[np.float64]]:
    """Descend at the finest level, renewing weights and coil profile; return the pose and the last weights."""
    matrix, n_iterations = start, 0
    for round_ in range(_ROUNDS):
        pose = descend(profiled(scene, matrix, params.profile_degree), matrix, kind, params)
        moved_mm = distance_between(scene, matrix, pose.matrix)
        matrix, n_iterations = pose.matrix, n_iterations + pose.n_iterations
        if round_ == _ROUNDS - 1 or (round_ > 0 and moved_mm < params.tolerance_mm):
            break
        full = profiled(scene, matrix, params.profile_degree)
        scene = replace(scene, weights=huber_weights(full, matrix, params))
    return pose._replace(n_iterations=n_iterations), scene.weights


def target_error(scene: Scene, matrix: NDArray[np.float64], kind: Kind, params: RegistrationParams) -> float:
    """Return the standard error of a point's position over the mask, root mean square, in mm.

    Three parts are added in squares: leaving out one block of 27 at a time (misfit is smooth, so that the scatter of
    single voxels would promise too much), and how far one step leads when the model changes: without the ring around
    the mask, and with a coil profile of one more degree. Where the profile of an array is left out of the model, the
    first part says 0.1 to 0.3 mm, all three 0.4 to 0.8 mm, and the error seen is 0.4 to 0.9 mm.
    """
    full = profiled(scene, matrix, params.profile_degree)
    here = slope_at(full, matrix, kind)
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
    total = _mean_square_mm2(points, scene, matrix, covariance, kind)
    other = [profiled(scene, matrix, params.profile_degree + 1)]
    if 0 < scene.inner.sum() < scene.inner.size:
        other.append(full.only(scene.inner))
    for changed in other:
        slope = slope_at(changed, matrix, kind)
        if slope.derivative.size:
            J = slope.derivative
            step = np.asarray(-np.linalg.solve(J.T @ J, J.T @ slope.residual), dtype=np.float64)
            difference = _moved(changed, matrix, step, kind) - matrix
            total += float(((points @ difference[:3, :3].T + difference[:3, 3]) ** 2).sum(axis=1).mean())
    return float(np.sqrt(total))


def _mean_square_mm2(
    points: NDArray[np.float64],
    scene: Scene,
    matrix: NDArray[np.float64],
    covariance: NDArray[np.float64],
    kind: Kind,
) -> float:
    """Return the mean square displacement of points for a covariance of the parameters."""
    arm = (points - scene.points.mean(axis=0)) @ matrix[:3, :3].T / _LEVER_MM
    total = 0.0
    for axis in range(3):
        unit = np.eye(3)[axis]
        turning = (
            np.cross(arm, np.broadcast_to(unit, arm.shape))
            if kind == "rigid"
            else (unit[None, :, None] * arm[:, None, :]).reshape(len(arm), 9)
        )
        jacobian = np.concatenate([turning, np.broadcast_to(unit, arm.shape)], axis=1)
        total += float(np.einsum("ni,ij,nj->n", jacobian, covariance, jacobian).mean())
    return total
