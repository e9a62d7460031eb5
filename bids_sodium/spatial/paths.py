"""Ways from one image to another: every chain of estimated links, and the one that is known best.

A sodium image reaches its T1w directly, or from contrast to contrast within a coil and only then to the next. Which is
better differs from scan to scan; each way carries the standard errors of its links.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import EstimationError
from bids_sodium.spatial.registration import Registration
from bids_sodium.spatial.transforms import Transform, distance_mm

__all__ = ["Choice", "Path", "choose", "paths_between"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Path:
    """A way from one frame to another through estimated links.

    Parameters
    ----------
    frames : tuple of str
        Frames it passes, from source to target.
    transform : Affine, Warp or Chain
        ``target_from_source``, composed.
    target_error_mm : float
        Root of the summed squares of the links' standard errors, in mm; ``nan`` where one is not known.
    metric : float
        Largest unexplained share among the links.
    """

    frames: tuple[str, ...]
    transform: Transform
    target_error_mm: float
    metric: float

    @property
    def n_links(self) -> int:
        """Number of estimated links."""
        return len(self.frames) - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The way that is known best, and how far the others end from it.

    Parameters
    ----------
    path : Path
        The chosen way.
    others : tuple of Path
        The ways that were not chosen, best first.
    apart_mm : tuple of float
        Mean distance between where the chosen and each other way put a point, in mm.
    target_error_mm : float
        Standard error of the chosen way, in mm, widened where another way disagrees by more than both errors explain.
    note : str
        What a reader must know, empty where there is nothing.
    """

    path: Path
    others: tuple[Path, ...]
    apart_mm: tuple[float, ...]
    target_error_mm: float
    note: str


def paths_between(links: Iterable[Registration], target: str, source: str) -> tuple[Path, ...]:
    """Return every way from one frame to another that passes no frame twice.

    Parameters
    ----------
    links : iterable of Registration
        Estimated links, each usable in both directions.
    target, source : str
        Names of the frames.

    Returns
    -------
    tuple of Path
        Ways by rising standard error, of equals the one with fewer links first; empty where there is none.

    Examples
    --------
    >>> from bids_sodium.spatial.transforms import Affine
    >>> def link(target, source, error_mm):
    ...     return Registration(
    ...         transform=Affine.identity(target, source), metric=0.1, converged=True, target_error_mm=error_mm,
    ...         inverse_consistency_mm=0.0, overlap=1.0, n_starts=1, n_iterations=3, start_spread_mm=0.0,
    ...     )
    >>> links = [link("pd", "na", 0.3), link("t1w", "pd", 0.4), link("t1w", "na", 0.9)]
    >>> [(path.frames, round(path.target_error_mm, 2)) for path in paths_between(links, "t1w", "na")]
    [(('na', 'pd', 't1w'), 0.5), (('na', 't1w'), 0.9)]
    """
    steps: dict[str, list[tuple[str, Transform, Registration]]] = {}
    for link in links:
        steps.setdefault(link.transform.source, []).append((link.transform.target, link.transform, link))
        steps.setdefault(link.transform.target, []).append((link.transform.source, link.transform.inverse(), link))
    found: list[Path] = []

    def walk(frames: tuple[str, ...], whole: Transform | None, used: tuple[Registration, ...]) -> None:
        if frames[-1] == target and whole is not None:
            errors = np.array([link.target_error_mm for link in used])
            found.append(
                Path(
                    frames=frames,
                    transform=whole,
                    target_error_mm=float(np.sqrt((errors**2).sum())),
                    metric=max(link.metric for link in used),
                )
            )
            return
        for frame, step, link in steps.get(frames[-1], []):
            if frame not in frames:
                walk((*frames, frame), step if whole is None else step @ whole, (*used, link))

    walk((source,), None, ())
    return tuple(sorted(found, key=_rank))


def choose(paths: Sequence[Path], points_mm: ArrayLike) -> Choice:
    """Return the way with the smallest standard error.

    Ways whose errors differ by less than a tenth count as equal, and the one with fewer links is taken. Where another
    way ends farther away than three times both errors, one of the errors is too small: the distance then enters the
    standard error.

    Parameters
    ----------
    paths : sequence of Path
        Ways between the same frames.
    points_mm : (n, 3) array_like
        Points of the source frame at which they are compared, in mm.

    Returns
    -------
    Choice
        The way, the others and their distances.

    Raises
    ------
    EstimationError
        If there is none.

    Examples
    --------
    >>> from bids_sodium.spatial.transforms import Affine, rigid_from_parameters
    >>> near = rigid_from_parameters((0, 0, 0), (0.4, 0, 0), target="t1w", source="na")
    >>> paths = [
    ...     Path(frames=("na", "t1w"), transform=near, target_error_mm=0.6, metric=0.1),
    ...     Path(frames=("na", "pd", "t1w"), transform=Affine.identity("t1w", "na"), target_error_mm=0.3, metric=0.1),
    ... ]
    >>> choice = choose(paths, [[0.0, 0.0, 0.0]])
    >>> choice.path.frames, round(choice.apart_mm[0], 2), choice.note
    (('na', 'pd', 't1w'), 0.4, '')
    """
    if not paths:
        raise EstimationError("no way leads from the one image to the other", hint="give an image between them")
    ranked = sorted(paths, key=_rank)
    least = ranked[0].target_error_mm
    equal = [path for path in ranked if path.target_error_mm <= 1.1 * least] or ranked[:1]
    chosen = min(equal, key=lambda path: path.n_links)
    others = tuple(path for path in ranked if path is not chosen)
    points = np.asarray(points_mm, dtype=np.float64)
    apart = tuple(float(distance_mm(chosen.transform, path.transform, points).mean()) for path in others)
    far = [
        (path, distance)
        for path, distance in zip(others, apart, strict=True)
        if distance > 3.0 * float(np.hypot(chosen.target_error_mm, path.target_error_mm))
    ]
    error_mm, notes = chosen.target_error_mm, []
    for path, distance in far:
        # two answers know their mean to half of their distance
        error_mm = max(error_mm, float(np.hypot(chosen.target_error_mm, distance / 2.0)))
        notes.append(
            f"the way {' to '.join(path.frames)} ends {distance:.1f} mm away, stated errors "
            f"{chosen.target_error_mm:.1f} and {path.target_error_mm:.1f} mm"
        )
    return Choice(path=chosen, others=others, apart_mm=apart, target_error_mm=error_mm, note="; ".join(notes))


def _rank(path: Path) -> tuple[bool, NDArray[np.float64] | float, int]:
    """Known errors first, then small ones, then few links."""
    unknown = not np.isfinite(path.target_error_mm)
    return unknown, 0.0 if unknown else path.target_error_mm, path.n_links
