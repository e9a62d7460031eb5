"""The nouns that travel through the app: Grid, Volume, Trajectory, KSpace.

World coordinates are RAS+ in mm. A grid's voxel ``n // 2`` along each axis is the centre of its Fourier transform;
k-space axes are the axes of the grid, in cycles/mm. Times inside a readout are in ms from its first gradient.
All of them are frozen; arrays inside are to be treated as read-only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, GeometryError

__all__ = ["Grid", "HeadTemplate", "KSpace", "Trajectory", "Volume", "box_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A regular lattice of voxel centres in the world.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels (nx, ny, nz).
    affine : (4, 4) ndarray
        World position (RAS+, mm) of voxel index (i, j, k).

    Raises
    ------
    GeometryError
        If the affine is singular or not finite, or the shape is not three positive numbers.

    Examples
    --------
    >>> grid = Grid.centred((64, 64, 64), 4.0)
    >>> grid.fov_mm
    (256.0, 256.0, 256.0)
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"an image needs three axes of at least one voxel, got shape {tuple(self.shape)}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise GeometryError(
                "the affine is singular or not finite",
                hint="set a valid sform or qform in the image header",
            )
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)

    @classmethod
    def centred(cls, shape: tuple[int, int, int], voxel_mm: float) -> Grid:
        """Return an axis-aligned grid whose voxel ``n // 2`` lies at the world origin."""
        affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
        affine[:3, 3] = -voxel_mm * (np.array(shape) // 2)
        return cls(shape, affine)

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def fov_mm(self) -> tuple[float, float, float]:
        """Extent along each axis, in mm."""
        x, y, z = np.array(self.shape) * self.voxel_mm
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, in mL."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    @property
    def origin_mm(self) -> NDArray[np.float64]:
        """World position of voxel ``n // 2``, the centre of the Fourier transform."""
        return np.asarray((self.affine @ [*(np.array(self.shape) // 2), 1.0])[:3])

    def world(self, index: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return world coordinates (..., 3) in mm of voxel indices (..., 3)."""
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])

    def index(self, world_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return continuous voxel indices (..., 3) of world points (..., 3) in mm."""
        return np.asarray((world_mm - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T)

    def with_voxel(self, voxel_mm: float) -> Grid:
        """Return a grid with the same axes, origin and at least the same extent at another voxel size."""
        shape = tuple(int(np.ceil(fov / voxel_mm - 1e-6)) for fov in self.fov_mm)
        shape = tuple(n + n % 2 for n in shape)
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, :3] / np.array(self.voxel_mm) * voxel_mm
        affine[:3, 3] = self.origin_mm - affine[:3, :3] @ (np.array(shape) // 2)
        return Grid((shape[0], shape[1], shape[2]), affine)

    def cropped(self, box: tuple[slice, slice, slice]) -> Grid:
        """Return the lattice of a box of voxels, at its place.

        Examples
        --------
        >>> half = Grid.centred((8, 8, 8), 2.0).cropped((slice(4, 8), slice(0, 8), slice(0, 8)))
        >>> half.shape, half.affine[0, 3].item()
        ((4, 8, 8), 0.0)
        """
        x, y, z = (range(n)[part] for n, part in zip(self.shape, box, strict=True))
        affine = self.affine.copy()
        affine[:3, 3] = self.world(np.array([x.start, y.start, z.start], dtype=np.float64))
        return Grid((len(x), len(y), len(z)), affine)

    def same_as(self, other: Grid, *, tolerance_mm: float = 1e-3) -> bool:
        """Tell whether two grids have the same shape and lie at the same place."""
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, atol=tolerance_mm))


def box_of(mask: NDArray[np.bool_], margin: int | NDArray[np.int_] = 0) -> tuple[slice, slice, slice]:
    """Return the box of an image that holds a mask, so many voxels wider; the whole image for an empty mask.

    Examples
    --------
    >>> mask = np.zeros((9, 9, 9), dtype=bool)
    >>> mask[3:5, 0, 8] = True
    >>> box_of(mask, 1)
    (slice(2, 6, None), slice(0, 2, None), slice(7, 9, None))
    """
    spans = []
    for axis, more in enumerate(np.broadcast_to(margin, 3).tolist()):
        n = mask.shape[axis]
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        spans.append(slice(max(int(hit[0]) - more, 0), min(int(hit[-1]) + 1 + more, n)) if hit.size else slice(0, n))
    return spans[0], spans[1], spans[2]


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """An image on a grid.

    Parameters
    ----------
    data : (nx, ny, nz, ...) ndarray
        Values; further axes are echoes, directions or coils.
    grid : Grid
        Where the voxels lie.
    unit : str
        Unit of the values (``"mmol/L"``, ``"a.u."``, ``"1"`` for fractions).
    """

    data: NDArray[Any]
    grid: Grid
    unit: str = "a.u."

    def __post_init__(self) -> None:
        if tuple(self.data.shape[:3]) != self.grid.shape:
            raise GeometryError(f"data of shape {self.data.shape} on a grid of shape {self.grid.shape}")

    def cropped(self, box: tuple[slice, slice, slice]) -> Volume:
        """Return a box of voxels, at its place."""
        return Volume(self.data[box], self.grid.cropped(box), self.unit)

    def with_data(self, data: NDArray[Any], unit: str | None = None) -> Volume:
        """Return other values on the same grid."""
        return replace(self, data=data, unit=self.unit if unit is None else unit)


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Where and when k-space is sampled.

    Parameters
    ----------
    k_per_mm : (n_shots, n_samples, 3) ndarray
        Sample positions in cycles/mm along the axes of the image grid.
    t_ms : (n_samples,) ndarray
        Time of each sample from the start of the readout, in ms (centre of its dwell). Raw Cartesian data count from
        the centre of k-space, which is where their echo time lies, and begin below zero.
    solid_angle_sr : (n_shots,) ndarray or None
        Share of the sphere that each shot stands for, in sr; ``None`` where it is unknown.
    kind : str
        ``"radial"``, ``"cones"``, ``"twisted"``, ``"floret"``, ``"cartesian"`` or ``"imported"``.
    """

    k_per_mm: NDArray[np.floating]
    t_ms: NDArray[np.floating]
    solid_angle_sr: NDArray[np.floating] | None = None
    kind: str = "imported"

    def __post_init__(self) -> None:
        if self.k_per_mm.ndim != 3 or self.k_per_mm.shape[-1] != 3:
            raise DataError(f"a trajectory has shape (shots, samples, 3), got {self.k_per_mm.shape}")
        if self.t_ms.shape != (self.k_per_mm.shape[1],):
            raise DataError(
                f"{self.k_per_mm.shape[1]} samples in a shot but {self.t_ms.shape} sample times",
                hint="give one time for each sample of the readout",
            )

    @property
    def n_shots(self) -> int:
        """Number of readouts."""
        return int(self.k_per_mm.shape[0])

    @property
    def n_samples(self) -> int:
        """Number of samples in a readout."""
        return int(self.k_per_mm.shape[1])

    @property
    def k_max_per_mm(self) -> float:
        """Largest distance from the centre of k-space, in cycles/mm."""
        return float(np.sqrt((self.k_per_mm.astype(np.float64) ** 2).sum(-1).max()))


@dataclass(frozen=True, slots=True, eq=False)
class KSpace:
    """Raw data of one acquisition with all that reconstruction needs.

    Parameters
    ----------
    samples : (n_coils, n_shots, n_samples) complex ndarray
        Measured signal.
    trajectory : Trajectory
        Where and when it was sampled.
    grid : Grid
        The image grid that the scanner would reconstruct to (encoded matrix and field of view).
    te_ms, tr_ms : float
        Echo time (time zero of the trajectory) and repetition time, in ms; ``nan`` where the header does not say.
    flip_deg : float
        Flip angle, in degrees; ``nan`` where the header does not say.
    frequency_mhz : float
        Centre frequency, in MHz; ``nan`` where the header does not say.
    noise : (n_coils, n) complex ndarray or None
        Samples of a noise scan, brought to the bandwidth and averages of ``samples`` where the header tells both;
        without that only their correlation between channels, not their level, is that of the samples.
    n_averages : int
        Readouts that were averaged into each readout; noise measured from ``samples`` is that after averaging.
    n_echoes : int
        Echoes in the file, of which this is one.
    notes : tuple of str
        What was left out, assumed or averaged while reading.
    """

    samples: NDArray[np.complexfloating]
    trajectory: Trajectory
    grid: Grid
    te_ms: float = float("nan")
    tr_ms: float = float("nan")
    flip_deg: float = float("nan")
    frequency_mhz: float = float("nan")
    noise: NDArray[np.complexfloating] | None = None
    n_averages: int = 1
    n_echoes: int = 1
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples.ndim != 3:
            raise DataError(f"samples have shape (coils, shots, samples), got {self.samples.shape}")
        if self.samples.shape[1:] != self.trajectory.k_per_mm.shape[:2]:
            raise DataError(
                f"data of {self.samples.shape[1]} shots x {self.samples.shape[2]} samples but a trajectory of "
                f"{self.trajectory.n_shots} x {self.trajectory.n_samples}",
                hint="check that the trajectory belongs to this acquisition",
            )
        # Channel by channel, because raw data may fill most of the memory.
        bad = sum(int((~np.isfinite(channel)).sum()) for channel in self.samples)
        if bad:
            raise DataError(f"{bad} of {self.samples.size} k-space samples are NaN or infinite", hint="export it again")
        if self.noise is not None and (self.noise.ndim != 2 or self.noise.shape[0] != self.samples.shape[0]):
            raise DataError(
                f"noise of shape {self.noise.shape} for {self.samples.shape[0]} channels",
                hint="give noise as (coils, samples), one row for each channel of the data",
            )

    @property
    def n_coils(self) -> int:
        """Number of receive channels."""
        return int(self.samples.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class HeadTemplate:
    """The symmetric MNI152 head that priors, the mirror and the simulator share.

    All arrays live on ``grid`` (MNI152NLin2009aSym, 1 mm).

    Parameters
    ----------
    grid : Grid
        Lattice of every array.
    t1 : ndarray
        T1-weighted intensity of the whole head or brain.
    gm, wm, csf : ndarray
        Tissue fractions, 0 to 1.
    deep : ndarray
        Share of the brain tissue that is deep grey nuclei (thalamus, caudate, putamen, pallidum), 0 to 1.
    brain : ndarray of bool
        Brain mask.
    """

    grid: Grid
    t1: NDArray[np.float32]
    gm: NDArray[np.float32]
    wm: NDArray[np.float32]
    csf: NDArray[np.float32]
    deep: NDArray[np.float32]
    brain: NDArray[np.bool_] = field()
