"""Maps of points from one named frame to another: Affine, Warp and their Chain.

A transform called ``t1w_from_na`` takes points (RAS+, mm) of the frame ``na`` to points of ``t1w``. Transforms compose
from right to left, ``t1w_from_na = t1w_from_pd @ pd_from_na``, and the names must meet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.data import Grid
from bids_sodium.core.errors import EstimationError, GeometryError

__all__ = ["Affine", "Chain", "Motion", "Transform", "Warp", "distance_mm", "renamed", "rigid_from_parameters"]


@dataclass(frozen=True, slots=True)
class Motion:
    """An affine map taken apart for people: how far it turns, shifts and stretches.

    Parameters
    ----------
    rotation_deg : tuple of float
        Turns about the x, y and z axes, in degrees, applied in that order.
    angle_deg : float
        The one turn about one axis that they amount to, in degrees.
    translation_mm : tuple of float
        Where the centre moves, in mm.
    distance_mm : float
        Length of that, in mm.
    stretch : tuple of float
        Principal stretches, from small to large; all 1 for a rigid map.
    """

    rotation_deg: tuple[float, float, float]
    angle_deg: float
    translation_mm: tuple[float, float, float]
    distance_mm: float
    stretch: tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """A linear map with a shift, ``y = M x + t``.

    Parameters
    ----------
    matrix : (4, 4) ndarray
        Homogeneous matrix acting on column vectors of RAS+ points, in mm.
    target, source : str
        Names of the frames it maps to and from.

    Raises
    ------
    GeometryError
        If the matrix is singular, not finite or not homogeneous.

    Examples
    --------
    >>> t1w_from_na = rigid_from_parameters((0.0, 0.0, 90.0), (1.0, 2.0, 3.0), target="t1w", source="na")
    >>> t1w_from_na.apply([1.0, 0.0, 0.0]).round(6).tolist()
    [1.0, 3.0, 3.0]
    >>> na_from_t1w = t1w_from_na.inverse()
    >>> na_from_t1w.target, na_from_t1w.source
    ('na', 't1w')
    """

    matrix: NDArray[np.float64]
    target: str
    source: str

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise GeometryError(f"the map {self._words} is not a finite 4 x 4 matrix but {matrix.shape}")
        if not np.allclose(matrix[3], [0.0, 0.0, 0.0, 1.0], atol=1e-9):
            raise GeometryError(f"the last row of the map {self._words} is {matrix[3].tolist()}, not 0 0 0 1")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise GeometryError(f"the map {self._words} is singular")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @property
    def _words(self) -> str:
        return f"{self.target}_from_{self.source}"

    @classmethod
    def identity(cls, target: str, source: str) -> Affine:
        """Return the map that leaves points where they are and only changes the frame's name."""
        return cls(np.eye(4), target, source)

    def apply(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return where points (..., 3) of the source frame lie in the target frame, in mm."""
        points = np.asarray(points_mm, dtype=np.float64)
        return np.asarray(points @ self.matrix[:3, :3].T + self.matrix[:3, 3])

    def inverse(self) -> Affine:
        """Return the map back."""
        return Affine(_homogeneous_inverse(self.matrix), target=self.source, source=self.target)

    @overload
    def __matmul__(self, other: Affine) -> Affine: ...

    @overload
    def __matmul__(self, other: Transform) -> Transform: ...

    def __matmul__(self, other: Transform) -> Transform:
        """Return this map after the other; their names must meet."""
        return _compose(self, other)

    def sqrt(self, midway: str = "midway") -> Affine:
        """Return the map half of the way, which applied twice is the whole.

        Parameters
        ----------
        midway : str
            Name of the frame in the middle.

        Returns
        -------
        Affine
            ``midway_from_source``; the same matrix maps from midway to the target.

        Raises
        ------
        GeometryError
            If there is no real half of the way (a mirror, or a turn by 180 degrees).

        Examples
        --------
        >>> whole = rigid_from_parameters((0.0, 0.0, 60.0), (4.0, 0.0, 0.0), target="b", source="a")
        >>> round(whole.sqrt().motion().angle_deg, 6)
        30.0
        """
        from scipy.linalg import sqrtm

        if np.real(np.linalg.eigvals(self.matrix[:3, :3])).min() < -1e-9:
            raise GeometryError(
                f"the map {self._words} mirrors or turns by about 180 degrees and so has no half of the way"
            )
        half = np.real(np.asarray(sqrtm(self.matrix)))
        if not np.allclose(half @ half, self.matrix, atol=1e-6 * max(1.0, float(np.abs(self.matrix).max()))):
            raise GeometryError(f"the map {self._words} has no real half of the way")
        return Affine(half, target=midway, source=self.source)

    def motion(self, centre_mm: ArrayLike = (0.0, 0.0, 0.0)) -> Motion:
        """Return rotation, translation and stretch, by polar decomposition ``M = R S``.

        Parameters
        ----------
        centre_mm : (3,) array_like
            Point of the source frame whose shift is called the translation, in mm; the middle of the head says more
            than the world's origin.

        Returns
        -------
        Motion
            Angles in degrees, shift in mm, principal stretches.

        Raises
        ------
        GeometryError
            If the map mirrors left and right.

        Examples
        --------
        >>> step = rigid_from_parameters((10.0, 0.0, 0.0), (0.0, 3.0, 4.0), target="b", source="a")
        >>> motion = step.motion()
        >>> round(motion.angle_deg, 6), round(motion.distance_mm, 6)
        (10.0, 5.0)
        """
        u, stretch, vt = np.linalg.svd(self.matrix[:3, :3])
        rotation = u @ vt
        if np.linalg.det(rotation) < 0:
            raise GeometryError(f"the map {self._words} mirrors left and right, so it is no motion")
        centre = np.asarray(centre_mm, dtype=np.float64)
        shift = self.apply(centre) - centre
        # Half-angle form: arccos of the trace loses all digits of small turns.
        sine = np.linalg.norm(rotation - rotation.T) / np.sqrt(8.0)
        angle = np.rad2deg(np.arctan2(sine, (np.trace(rotation) - 1.0) / 2.0))
        x = np.arctan2(rotation[2, 1], rotation[2, 2])
        y = np.arctan2(-rotation[2, 0], np.hypot(rotation[2, 1], rotation[2, 2]))
        z = np.arctan2(rotation[1, 0], rotation[0, 0])
        return Motion(
            rotation_deg=(float(np.rad2deg(x)), float(np.rad2deg(y)), float(np.rad2deg(z))),
            angle_deg=float(angle),
            translation_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
            distance_mm=float(np.linalg.norm(shift)),
            stretch=(float(stretch[2]), float(stretch[1]), float(stretch[0])),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Warp:
    """A smooth bend, ``y = x + u(x)``.

    Between grid points ``u`` is interpolated linearly; beyond half a voxel outside of the grid it is zero.

    Parameters
    ----------
    displacement_mm : (nx, ny, nz, 3) ndarray
        ``u`` on the grid, RAS+ components, in mm.
    grid : Grid
        Lattice in the source frame.
    target, source : str
        Names of the frames it maps to and from.
    inverse_displacement_mm : (mx, my, mz, 3) ndarray, optional
        Displacement of the map back, where an estimator knows it; otherwise `inverse` computes it.
    inverse_grid : Grid, optional
        Lattice of that in the target frame; the grid itself by default.

    Raises
    ------
    GeometryError
        If a field does not fit its grid or is not finite.

    Examples
    --------
    >>> grid = Grid.centred((9, 9, 9), 2.0)
    >>> shift = Warp(np.ones((9, 9, 9, 3)), grid, target="b", source="a")
    >>> shift.apply([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]]).tolist()
    [[1.0, 1.0, 1.0], [100.0, 0.0, 0.0]]
    """

    displacement_mm: NDArray[np.float32]
    grid: Grid
    target: str
    source: str
    inverse_displacement_mm: NDArray[np.float32] | None = None
    inverse_grid: Grid | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "displacement_mm", self._field(self.displacement_mm, self.grid))
        if self.inverse_displacement_mm is None:
            object.__setattr__(self, "inverse_grid", None)
            return
        grid = self.grid if self.inverse_grid is None else self.inverse_grid
        object.__setattr__(self, "inverse_grid", grid)
        object.__setattr__(self, "inverse_displacement_mm", self._field(self.inverse_displacement_mm, grid))

    def _field(self, values: ArrayLike, grid: Grid) -> NDArray[np.float32]:
        field = np.asarray(values, dtype=np.float32)
        if field.shape != (*grid.shape, 3):
            raise GeometryError(
                f"the warp {self.target}_from_{self.source} has a field of shape {field.shape} "
                f"on a grid of shape {grid.shape}"
            )
        if not np.isfinite(field).all():
            bad = int((~np.isfinite(field)).any(axis=-1).sum())
            raise GeometryError(f"the warp {self.target}_from_{self.source} is not finite at {bad} grid points")
        return field

    def apply(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return where points (..., 3) of the source frame lie in the target frame, in mm."""
        points = np.asarray(points_mm, dtype=np.float64)
        return np.asarray(points + _interpolated(self.displacement_mm, self.grid, points))

    def inverse(self) -> Warp:
        """Return the map back: the stored inverse field, or one found by fixed-point iteration.

        Raises
        ------
        EstimationError
            If the field folds, so that there is no way back.
        """
        field, grid = self.inverse_displacement_mm, self.inverse_grid
        if field is None or grid is None:
            field, grid = _inverse_field(self.displacement_mm, self.grid), self.grid
        return Warp(
            field,
            grid,
            target=self.source,
            source=self.target,
            inverse_displacement_mm=self.displacement_mm,
            inverse_grid=self.grid,
        )

    def with_inverse(self) -> Warp:
        """Return the same warp with its inverse field computed, so that both directions are at hand.

        Raises
        ------
        EstimationError
            If the field folds, so that there is no way back.
        """
        return self if self.inverse_displacement_mm is not None else self.inverse().inverse()

    def jacobian(self) -> NDArray[np.float64]:
        """Return the local volume ratio, target over source, on the grid; below zero the field folds.

        Returns
        -------
        (nx, ny, nz) ndarray
            Determinant of ``dy / dx``, by central differences.

        Examples
        --------
        >>> grid = Grid.centred((5, 5, 5), 2.0)
        >>> x = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
        >>> bool(np.allclose(Warp(0.1 * x, grid, target="b", source="a").jacobian(), 1.1**3))
        True
        """
        to_world = np.linalg.inv(self.grid.affine[:3, :3])
        along = np.stack([np.gradient(self.displacement_mm, axis=a) for a in range(3)], axis=-1).astype(np.float64)
        return np.asarray(np.linalg.det(np.eye(3) + along @ to_world))

    def __matmul__(self, other: Transform) -> Transform:
        """Return this map after the other; their names must meet."""
        return _compose(self, other)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Several maps, one after another.

    Parameters
    ----------
    links : tuple of Affine or Warp
        From left to right as they are written, so that the last one acts first.

    Raises
    ------
    GeometryError
        If it is empty or neighbours do not meet.

    Examples
    --------
    >>> grid = Grid.centred((9, 9, 9), 2.0)
    >>> bend = Warp(np.zeros((9, 9, 9, 3)), grid, target="mni", source="t1w")
    >>> move = rigid_from_parameters((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), target="t1w", source="na")
    >>> chain = bend @ move
    >>> chain.target, chain.source, chain.apply([0.0, 0.0, 0.0]).tolist()
    ('mni', 'na', [1.0, 0.0, 0.0])
    """

    links: tuple[Affine | Warp, ...]

    def __post_init__(self) -> None:
        if not self.links:
            raise GeometryError("a chain of transforms needs at least one link")
        for left, right in zip(self.links[:-1], self.links[1:], strict=True):
            _meet(left, right)

    @property
    def target(self) -> str:
        """Name of the frame that the chain maps to."""
        return self.links[0].target

    @property
    def source(self) -> str:
        """Name of the frame that the chain maps from."""
        return self.links[-1].source

    def apply(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return where points (..., 3) of the source frame lie in the target frame, in mm."""
        points = np.asarray(points_mm, dtype=np.float64)
        for link in reversed(self.links):
            points = link.apply(points)
        return points

    def inverse(self) -> Chain:
        """Return the chain back."""
        return Chain(tuple(link.inverse() for link in reversed(self.links)))

    def __matmul__(self, other: Transform) -> Transform:
        """Return this map after the other; their names must meet."""
        return _compose(self, other)


Transform: TypeAlias = Affine | Warp | Chain
"""Any map of points between frames."""


def rigid_from_parameters(
    rotation_deg: ArrayLike,
    translation_mm: ArrayLike,
    *,
    target: str,
    source: str,
    centre_mm: ArrayLike = (0.0, 0.0, 0.0),
) -> Affine:
    """Return ``y = Rz Ry Rx (x - c) + c + t``.

    Parameters
    ----------
    rotation_deg : (3,) array_like
        Turns about the x, y and z axes, in degrees, applied in that order.
    translation_mm : (3,) array_like
        Shift ``t`` of the centre, in mm.
    target, source : str
        Names of the frames it maps to and from.
    centre_mm : (3,) array_like
        Point ``c`` of the source frame that the turns leave in place, in mm.

    Returns
    -------
    Affine
        A rigid map; `Affine.motion` at the same centre gives the parameters back.

    Examples
    --------
    >>> step = rigid_from_parameters((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), target="b", source="a", centre_mm=(9, 0, 0))
    >>> step.apply([9.0, 0.0, 0.0]).tolist()
    [13.0, 5.0, 6.0]
    """
    x, y, z = np.deg2rad(np.asarray(rotation_deg, dtype=np.float64))
    cx, sx, cy, sy, cz, sz = np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(z), np.sin(z)
    rx = np.array([[1.0, 0.0, 0.0], [0.0, cx, -sx], [0.0, sx, cx]])
    ry = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
    rz = np.array([[cz, -sz, 0.0], [sz, cz, 0.0], [0.0, 0.0, 1.0]])
    centre = np.asarray(centre_mm, dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = rz @ ry @ rx
    matrix[:3, 3] = centre + np.asarray(translation_mm, dtype=np.float64) - matrix[:3, :3] @ centre
    return Affine(matrix, target=target, source=source)


def distance_mm(first: Transform, second: Transform, points_mm: ArrayLike) -> NDArray[np.float64]:
    """Return how far apart two maps of the same frames put each point, in mm.

    Parameters
    ----------
    first, second : Affine, Warp or Chain
        Maps between the same frames.
    points_mm : (..., 3) array_like
        Points of their source frame, in mm.

    Returns
    -------
    (...) ndarray
        Distances, in mm.

    Raises
    ------
    GeometryError
        If the maps do not share both frames.

    Examples
    --------
    >>> still = Affine.identity("b", "a")
    >>> moved = rigid_from_parameters((0.0, 0.0, 0.0), (3.0, 4.0, 0.0), target="b", source="a")
    >>> float(distance_mm(still, moved, [1.0, 1.0, 1.0]))
    5.0
    """
    if (first.target, first.source) != (second.target, second.source):
        raise GeometryError(
            f"{first.target}_from_{first.source} and {second.target}_from_{second.source} map between other frames"
        )
    return np.asarray(np.linalg.norm(first.apply(points_mm) - second.apply(points_mm), axis=-1))


def renamed(transform: Transform, *, target: str | None = None, source: str | None = None) -> Transform:
    """Return the same map between frames of other names.

    Parameters
    ----------
    transform : Affine, Warp or Chain
        Map.
    target, source : str, optional
        New names; ``None`` keeps the old one.

    Examples
    --------
    >>> renamed(Affine.identity("b", "a"), target="c").target
    'c'
    """
    links = list(_links(transform))
    if target is not None:
        links[0] = replace(links[0], target=target)
    if source is not None:
        links[-1] = replace(links[-1], source=source)
    return links[0] if len(links) == 1 else Chain(tuple(links))


def _meet(left: Transform, right: Transform) -> None:
    if left.source != right.target:
        raise GeometryError(
            f"{left.target}_from_{left.source} @ {right.target}_from_{right.source} does not meet: "
            f"the left maps from '{left.source}', the right maps to '{right.target}'",
            hint="put a transform between these frames, or invert one",
        )


def _links(transform: Transform) -> tuple[Affine | Warp, ...]:
    return transform.links if isinstance(transform, Chain) else (transform,)


def _compose(left: Transform, right: Transform) -> Transform:
    """Join two maps; neighbouring affine links become one."""
    _meet(left, right)
    joined: list[Affine | Warp] = []
    for link in (*_links(left), *_links(right)):
        last = joined[-1] if joined else None
        if isinstance(last, Affine) and isinstance(link, Affine):
            joined[-1] = Affine(last.matrix @ link.matrix, target=last.target, source=link.source)
        else:
            joined.append(link)
    return joined[0] if len(joined) == 1 else Chain(tuple(joined))


def _homogeneous_inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert keeping the last row exactly 0 0 0 1."""
    inverse = np.eye(4)
    inverse[:3, :3] = np.linalg.inv(matrix[:3, :3])
    inverse[:3, 3] = -inverse[:3, :3] @ matrix[:3, 3]
    return inverse


def _interpolated(field: NDArray[np.float32], grid: Grid, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate a vector field linearly; zero beyond half a voxel outside, as ITK does."""
    from scipy.ndimage import map_coordinates

    index = grid.index(points_mm).reshape(-1, 3).T
    top = np.array(grid.shape, dtype=np.float64)[:, None] - 0.5
    outside = np.any((index < -0.5) | (index >= top), axis=0)
    values = np.empty(index.shape)
    for axis in range(3):
        map_coordinates(field[..., axis], index, output=values[axis], order=1, mode="nearest")
    values[:, outside] = 0.0
    return values.T.reshape(points_mm.shape)


def _inverse_field(
    field: NDArray[np.float32], grid: Grid, *, tolerance_mm: float = 0.01, iterations: int = 60
) -> NDArray[np.float32]:
    """Solve ``v(y) = -u(y + v(y))`` on the grid; the step is halved where an iteration makes it worse.

    Raises
    ------
    EstimationError
        If more than one grid point in a thousand is left more than half a voxel from where it should be.
    """
    points = grid.world(np.moveaxis(np.indices(grid.shape, dtype=np.float64), 0, -1)).reshape(-1, 3)
    found = np.zeros_like(points)
    miss = np.zeros(len(points))
    active = np.arange(len(points))
    step = np.ones(len(points))
    worst = np.full(len(points), np.inf)
    for _ in range(iterations):
        change = -_interpolated(field, grid, points[active] + found[active]) - found[active]
        miss[active] = np.linalg.norm(change, axis=-1)
        step[active] = np.where(miss[active] > worst[active], step[active] / 2.0, step[active])
        worst[active] = np.minimum(worst[active], miss[active])
        found[active] += step[active, None] * change
        active = active[miss[active] > tolerance_mm]
        if active.size == 0:
            break
    half_voxel_mm = min(grid.voxel_mm) / 2.0
    share = float(np.mean(miss > half_voxel_mm))
    if share > 1e-3:
        raise EstimationError(
            f"the displacement field cannot be inverted: {100 * share:.2g} % of its grid points miss by more than "
            f"{half_voxel_mm:.2g} mm after {iterations} iterations (largest {miss.max():.2g} mm)",
            hint="register again with a smoother field",
        )
    return found.reshape(*grid.shape, 3).astype(np.float32)
