"""What each tissue or vial alone would look like in the image: the columns of the partial-volume model.

An operator column puts a body through the scan itself: its samples on the scan's trajectory, decaying as the tissue
does, and then the very map that made the image, ``f_t = R(A_t p_t)``. An MTF column multiplies the map's spectrum by
the tissue's modulation and needs only a protocol. In both the signal at the echo time is one per unit of fraction.

Maps stay on the lattice they were made on; their place in the scanner is a factor of k-space. Interpolated to a
lattice of half a sodium voxel first, they are blurred by a tenth at the edge of k-space, which the fit takes for 3
mmol/L of cerebrospinal fluid and half a mmol/L less of cortex.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import Decay
from bids_sodium.core.data import Grid, Trajectory, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.psf import PointSpread
from bids_sodium.recon.solvers import Linear, ReconstructionParams

__all__ = [
    "Columns",
    "cylinder_column",
    "cylinder_samples",
    "map_samples",
    "mtf_columns",
    "operator_columns",
    "vial_samples",
]

_FORWARD_ACCURACY = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """One image a tissue or vial, on the grid of the sodium image.

    Parameters
    ----------
    names : tuple of str
        Tissues or vials.
    images : (n, nx, ny, nz) float32 ndarray
        Real part of each one's image at a concentration and gain of one.
    samples : (n, n_shots, n_samples) complex64 ndarray or None
        Their k-space, for fits to the samples themselves.
    """

    names: tuple[str, ...]
    images: NDArray[np.float32]
    samples: NDArray[np.complex64] | None = None


def operator_columns(
    fractions: Mapping[str, Volume],
    grid: Grid,
    trajectory: Trajectory,
    decays: Mapping[str, Decay],
    params: ReconstructionParams | None = None,
    *,
    na_from_maps: NDArray[np.floating] | None = None,
    te_ms: float = 0.0,
    operator: Linear | None = None,
    keep_samples: bool = False,
    threads: int = 1,
) -> Columns:
    """Put tissue maps through an acquisition and its reconstruction.

    Parameters
    ----------
    fractions : mapping of str to Volume
        Tissue fractions, each on a lattice of its own, best the one they were made on.
    grid : Grid
        Grid of the sodium image.
    trajectory : Trajectory
        The scan's.
    decays : mapping of str to Decay
        Transverse decay of each tissue.
    params : ReconstructionParams, optional
        Those of the image.
    na_from_maps : (4, 4) ndarray, optional
        Takes points (RAS+, mm) of the maps' frame to the sodium frame; the identity by default.
    te_ms : float
        Time from excitation to the start of the readout, in ms.
    operator : Linear, optional
        The map that made the image, where it exists already; its parameters win.
    keep_samples : bool
        Whether the k-space of the columns is returned too.
    threads : int
        Threads of a transform.

    Returns
    -------
    Columns
        Images and, on request, samples.

    Raises
    ------
    DataError
        If a tissue has no decay, a map is not finite, or there are no tissues.
    GeometryError
        If the place of the maps is no invertible matrix, or their voxels are too large for the scan.

    Examples
    --------
    >>> from bids_sodium.core.constants import relaxation_of
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> lattice = Grid.centred((32, 32, 32), 8.0)
    >>> brain = {"NAWM": Volume(np.ones((40, 40, 40), np.float32), Grid.centred((40, 40, 40), 3.0))}
    >>> operator_columns(brain, lattice, spokes, {"NAWM": relaxation_of("NAWM").decay}).images.shape
    (1, 32, 32, 32)
    """
    _check(fractions, decays, "decay")
    operator = Linear(trajectory, grid, params, threads=threads) if operator is None else operator
    names = tuple(fractions)
    images = np.empty((len(names), *grid.shape), dtype=np.float32)
    kept = []
    for row, name in enumerate(names):
        left = decays[name].at(te_ms + trajectory.t_ms) / decays[name].at(te_ms)
        samples = map_samples(fractions[name], operator.trajectory, grid, na_from_maps, threads=threads)
        samples *= left.astype(np.float32)
        images[row] = operator(samples).real
        if keep_samples:
            kept.append(samples)
    return Columns(names, images, np.stack(kept) if keep_samples else None)


def map_samples(
    volume: Volume,
    trajectory: Trajectory,
    grid: Grid,
    na_from_map: NDArray[np.floating] | None = None,
    *,
    threads: int = 1,
) -> NDArray[np.complex64]:
    """Return the k-space of a map that does not decay, ``sum_x p(x) V exp(-2 pi i k (M x - r0))``.

    Nothing is interpolated: turning and shifting a map turns and shifts its k-space.

    Parameters
    ----------
    volume : Volume
        Signal of every voxel of any lattice.
    trajectory : Trajectory
        Where k-space is sampled, along the axes of ``grid``.
    grid : Grid
        Grid of the sodium image; its voxel ``n // 2`` is ``r0``.
    na_from_map : (4, 4) ndarray, optional
        Takes points (RAS+, mm) of the map's frame to the sodium frame, ``M``; the identity by default.
    threads : int
        Threads of the transform.

    Returns
    -------
    (n_shots, n_samples) complex64 ndarray
        In the unit of the map times mm3.

    Raises
    ------
    GeometryError
        If the place of the map is no invertible matrix, or its voxels are too large for the scan.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import plain_radial
    >>> spokes = plain_radial(8, 16, readout_ms=5.0, voxel_mm=8.0)
    >>> ball = Volume(np.ones((9, 9, 9)), Grid.centred((9, 9, 9), 2.0))
    >>> map_samples(ball, spokes, Grid.centred((16, 16, 16), 8.0)).shape
    (8, 16)
    """
    data, affine = _cropped(volume, _placed(volume.grid, na_from_map))
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    axes = grid.affine[:3, :3] / grid.voxel_mm
    # single precision: 1e-6 of a cycle at the edge of a head
    k = np.asarray(trajectory.k_per_mm, dtype=np.float32)
    along = k @ (axes.T @ (affine[:3, :3] / voxel_mm)).astype(np.float32)
    reach = float((np.abs(along).reshape(-1, 3).max(axis=0) * voxel_mm).max())
    if reach > 0.5:
        raise GeometryError(
            f"a map of {voxel_mm.max():.3g} mm cannot show what the scan sees: it reaches {reach:.2f} cycles a voxel",
            hint="give maps whose voxels are smaller than those of the sodium image",
        )
    lattice = Nufft(
        replace(trajectory, k_per_mm=along),
        Grid(data.shape, np.diag([*voxel_mm, 1.0])),
        _FORWARD_ACCURACY,
        threads=threads,
    )
    shape = np.abs(np.linalg.det(affine[:3, :3])) / float(np.prod(voxel_mm))  # 1 unless the map is sheared
    shift = axes.T @ ((affine @ [*(np.array(data.shape) // 2), 1.0])[:3] - grid.origin_mm)
    samples = np.asarray(lattice.forward(data), dtype=np.complex64)
    angle = k @ (-2.0 * np.pi * shift).astype(np.float32)
    turn = np.empty(angle.shape, dtype=np.complex64)
    turn.real, turn.imag = np.cos(angle), np.sin(angle)
    samples *= np.float32(shape) * turn
    return samples


def cylinder_samples(
    grid: Grid,
    trajectory: Trajectory,
    decay: Decay,
    *,
    centre_mm: NDArray[np.floating],
    axis: NDArray[np.floating],
    radius_mm: float,
    length_mm: float,
    te_ms: float = 0.0,
) -> NDArray[np.complex64]:
    """Return the k-space of a uniform cylinder, such as a calibration vial.

    It is exact, ``2 pi a^2 L J1(x) / x sinc(L k_u) exp(-2 pi i k c)`` with ``x = 2 pi a k_perp`` and ``k_u`` along its
    axis: a cylinder on a lattice has soft edges, which read vials 2 % too high.

    Parameters
    ----------
    grid : Grid
        Grid of the sodium image.
    trajectory : Trajectory
        The scan's.
    decay : Decay
        Transverse decay of the gel.
    centre_mm, axis : (3,) ndarray
        Centre in the world (RAS+, mm) and direction.
    radius_mm, length_mm : float
        Inner radius and length.
    te_ms : float
        Time from excitation to the start of the readout, in ms.

    Returns
    -------
    (n_shots, n_samples) complex64 ndarray
        Samples at a signal of one.

    Examples
    --------
    >>> from bids_sodium.core.constants import AGAR
    >>> from bids_sodium.recon.trajectory import plain_radial
    >>> spokes = plain_radial(8, 16, readout_ms=5.0, voxel_mm=8.0)
    >>> place = {"centre_mm": np.zeros(3), "axis": np.array([0.0, 0.0, 1.0])}
    >>> cylinder_samples(Grid.centred((16,) * 3, 8.0), spokes, AGAR.decay, radius_mm=9.0, length_mm=50.0, **place).shape
    (8, 16)
    """
    rod = _Rod(grid, trajectory, decay, axis=axis, radius_mm=radius_mm, te_ms=te_ms)
    return rod.samples(np.asarray(centre_mm, dtype=np.float64), length_mm)


class _Rod:
    """What cylinders of one radius and direction share in k-space."""

    def __init__(
        self,
        grid: Grid,
        trajectory: Trajectory,
        decay: Decay,
        *,
        axis: NDArray[np.floating],
        radius_mm: float,
        te_ms: float,
    ) -> None:
        from scipy.special import j1

        self._grid, self._turn = grid, grid.affine[:3, :3] / grid.voxel_mm
        self._k = np.asarray(trajectory.k_per_mm, dtype=np.float64)
        self._along = self._k @ (np.asarray(axis, dtype=np.float64) @ self._turn)
        x = 2.0 * np.pi * radius_mm * np.sqrt(np.maximum((self._k**2).sum(-1) - self._along**2, 0.0))
        small = x < 1e-6
        disc = np.where(small, 0.5, j1(x) / np.where(small, 1.0, x))
        self._body = 2.0 * np.pi * radius_mm**2 * disc * (decay.at(te_ms + trajectory.t_ms) / decay.at(te_ms))

    def samples(self, centre_mm: NDArray[np.float64], length_mm: float) -> NDArray[np.complex64]:
        """Return the k-space of one of them."""
        away = np.exp(-2j * np.pi * (self._k @ ((centre_mm - self._grid.origin_mm) @ self._turn)))
        return np.asarray(self._body * length_mm * np.sinc(length_mm * self._along) * away, dtype=np.complex64)


def cylinder_column(
    grid: Grid,
    trajectory: Trajectory,
    decay: Decay,
    params: ReconstructionParams | None = None,
    *,
    centre_mm: NDArray[np.floating],
    axis: NDArray[np.floating],
    radius_mm: float,
    length_mm: float,
    te_ms: float = 0.0,
    operator: Linear | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Put a uniform cylinder, such as a calibration vial, through an acquisition and its reconstruction.

    Parameters
    ----------
    grid, trajectory, decay, centre_mm, axis, radius_mm, length_mm, te_ms
        As for `cylinder_samples`.
    params, operator, threads
        As for `operator_columns`.

    Returns
    -------
    (nx, ny, nz) float32 ndarray
        Real part of its image at a signal of one.

    Examples
    --------
    >>> from bids_sodium.core.constants import AGAR
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> lattice = Grid.centred((32, 32, 32), 8.0)
    >>> place = {"centre_mm": np.zeros(3), "axis": np.array([0.0, 0.0, 1.0])}
    >>> image = cylinder_column(lattice, spokes, AGAR.decay, radius_mm=40.0, length_mm=120.0, **place)
    >>> bool(abs(image[16, 16, 16] - 1.0) < 0.1)
    True
    """
    operator = Linear(trajectory, grid, params, threads=threads) if operator is None else operator
    samples = cylinder_samples(
        grid,
        operator.trajectory,
        decay,
        centre_mm=centre_mm,
        axis=axis,
        radius_mm=radius_mm,
        length_mm=length_mm,
        te_ms=te_ms,
    )
    return np.asarray(operator(samples).real)


def vial_samples(
    grid: Grid,
    trajectory: Trajectory,
    decay: Decay,
    *,
    centre_mm: NDArray[np.floating],
    axis: NDArray[np.floating],
    radius_mm: float,
    length_mm: float,
    end_mm: float,
    te_ms: float = 0.0,
) -> NDArray[np.complex64]:
    """Return the k-space of a vial whose ends are not known well: its body and a slab across either end.

    A mask tells the length of a vial to a voxel; a body 4 mm too short reads its signal 2 % too high. A slab centred on
    an end takes up what is missing or too much there, ``amplitude x end_mm / body`` being the shift of the end.

    Parameters
    ----------
    grid, trajectory, decay, centre_mm, axis, radius_mm, length_mm, te_ms
        As for `cylinder_samples`.
    end_mm : float
        Thickness of the slabs, in mm; a voxel is about right.

    Returns
    -------
    (3, n_shots, n_samples) complex64 ndarray
        Body, the end that the axis comes from, the end that it points to, at a signal of one.

    Examples
    --------
    >>> from bids_sodium.core.constants import AGAR
    >>> from bids_sodium.recon.trajectory import plain_radial
    >>> spokes = plain_radial(8, 16, readout_ms=5.0, voxel_mm=8.0)
    >>> place = {"centre_mm": np.zeros(3), "axis": np.array([0.0, 0.0, 1.0]), "radius_mm": 12.0, "length_mm": 60.0}
    >>> vial_samples(Grid.centred((16, 16, 16), 8.0), spokes, AGAR.decay, end_mm=8.0, **place).shape
    (3, 8, 16)
    """
    centre, direction = np.asarray(centre_mm, dtype=np.float64), np.asarray(axis, dtype=np.float64)
    rod = _Rod(grid, trajectory, decay, axis=direction, radius_mm=radius_mm, te_ms=te_ms)
    bodies = ((0.0, length_mm), (-length_mm / 2.0, end_mm), (length_mm / 2.0, end_mm))
    return np.stack([rod.samples(centre + along * direction, length) for along, length in bodies])


def mtf_columns(
    fractions: Mapping[str, Volume],
    grid: Grid,
    psf: Mapping[str, PointSpread],
    *,
    na_from_maps: NDArray[np.floating] | None = None,
    where: NDArray[np.bool_] | None = None,
) -> Columns:
    """Blur tissue maps by each tissue's point spread and sample them at the voxels of the image.

    One matrix an axis of the map takes it to its spectrum as far as the modulation reaches; since that is the same in
    all directions, the spectrum may stay along the axes of the map and only the voxels of the image are turned.

    Parameters
    ----------
    fractions : mapping of str to Volume
        Tissue fractions, each on a lattice of its own, best the one they were made on.
    grid : Grid
        Grid of the sodium image.
    psf : mapping of str to PointSpread
        Point spread of each tissue.
    na_from_maps : (4, 4) ndarray, optional
        Takes points (RAS+, mm) of the maps' frame to the sodium frame; the identity by default.
    where : (nx, ny, nz) ndarray of bool, optional
        Voxels of ``grid`` that are wanted; the others stay 0. The brain alone is a tenth of the voxels.

    Returns
    -------
    Columns
        Images.

    Raises
    ------
    DataError
        If a tissue has no point spread, a map is not finite, or there are no tissues.
    GeometryError
        If the place of the maps is no rigid motion.

    Examples
    --------
    >>> from bids_sodium.recon.psf import gaussian_point_spread
    >>> lattice = Grid.centred((16, 16, 16), 8.0)
    >>> ones = Volume(np.ones((40, 40, 40), np.float32), Grid.centred((40, 40, 40), 4.0))
    >>> float(mtf_columns({"CSF": ones}, lattice, {"CSF": gaussian_point_spread(9.0)}).images[0, 8, 8, 8].round(3))
    1.0
    """
    _check(fractions, psf, "point spread")
    names = tuple(fractions)
    images = np.zeros((len(names), *grid.shape), dtype=np.float32)
    wanted = np.ones(grid.shape, dtype=np.bool_) if where is None else np.asarray(where, dtype=np.bool_)
    points = grid.world(np.argwhere(wanted).astype(np.float64))
    for row, name in enumerate(names):
        data, affine = _cropped(fractions[name], _placed(fractions[name].grid, na_from_maps))
        images[row][wanted] = _blurred(data, affine, points, psf[name])
    return Columns(names, images)


def _blurred(
    data: NDArray[np.float32], affine: NDArray[np.float64], points_mm: NDArray[np.float64], psf: PointSpread
) -> NDArray[np.float32]:
    """Return a blurred map at points (n, 3)."""
    import finufft

    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    turn = affine[:3, :3] / voxel_mm
    if not np.allclose(turn.T @ turn, np.eye(3), atol=1e-3):
        raise GeometryError(
            "the maps reach the sodium image by more than a rigid motion",
            hint="resample them to a lattice of their own",
        )
    edge = float(psf.k_per_mm[-1])
    centre = (affine @ [*(np.array(data.shape) // 2), 1.0])[:3]
    place = (points_mm - centre) @ turn
    # repeats of the map must stay clear of the image
    extent = np.abs(place).max(axis=0) + np.array(data.shape) * voxel_mm / 2.0 + 2.0 * psf.fwhm_mm
    waves = [np.arange(-int(edge * length), int(edge * length) + 1) / length for length in extent]
    # a map is real, so that half of its spectrum along one axis tells the other half
    waves[2] = waves[2][waves[2] >= 0.0]
    spectrum: NDArray[Any] = data
    for axis in (2, 1, 0):
        where = (np.arange(data.shape[axis]) - data.shape[axis] // 2) * voxel_mm[axis]
        matrix = np.exp(-2j * np.pi * np.outer(where, waves[axis])) * (voxel_mm[axis] / extent[axis])
        matrix = matrix.astype(np.complex64)
        if axis == 2:
            spectrum = (data @ matrix.real) + np.complex64(1j) * (data @ matrix.imag)
        else:
            spectrum = np.moveaxis(np.tensordot(spectrum, matrix, axes=(axis, 0)), -1, axis)
    k = np.sqrt(sum(a**2 for a in np.meshgrid(*waves, indexing="ij", sparse=True)))
    spectrum = spectrum * np.interp(k, psf.k_per_mm, psf.mtf, right=0.0).astype(np.float32)
    spectrum[..., 1:] *= 2.0
    # modes are counted from -m / 2; the missing ones of the last axis are a phase
    half = spectrum.shape[2] // 2
    angles = [np.ascontiguousarray(2.0 * np.pi * place[:, a] / extent[a], dtype=np.float32) for a in range(3)]
    image = finufft.nufft3d2(
        *angles, np.ascontiguousarray(spectrum), isign=1, eps=_FORWARD_ACCURACY, nthreads=1, upsampfac=1.25
    )
    image *= np.exp(1j * half * angles[2])
    return np.asarray(image.real, dtype=np.float32)


def _placed(lattice: Grid, na_from_map: NDArray[np.floating] | None) -> NDArray[np.float64]:
    """Return the affine of a lattice in the sodium frame."""
    if na_from_map is None:
        return lattice.affine
    matrix = np.asarray(na_from_map, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-6:
        raise GeometryError("the place of the tissue maps in the sodium frame is no invertible 4 x 4 matrix")
    return np.asarray(matrix @ lattice.affine)


def _cropped(volume: Volume, affine: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the box that holds all signal, and its affine."""
    data = np.asarray(volume.data, dtype=np.float32)
    # one pass over the whole map, the rest over what is left of it
    plane = np.asarray(data.any(axis=2))
    if not plane.any():
        return data[:1, :1, :1], affine
    x, y = (_span(np.asarray(plane.any(axis=1 - axis))) for axis in (0, 1))
    box = (x, y, _span(np.asarray(data[x, y].any(axis=(0, 1)))))
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*(part.start for part in box), 1.0])[:3]
    return data[box], moved


def _span(filled: NDArray[np.bool_]) -> slice:
    """Return the range from the first to the last that is true."""
    inside = np.flatnonzero(filled)
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _check(fractions: Mapping[str, Volume], known: Mapping[str, object], what: str) -> None:
    if not fractions:
        raise DataError("no tissue maps", hint="give at least one")
    missing = [name for name in fractions if name not in known]
    if missing:
        raise DataError(f"no {what} for {', '.join(missing)}", hint=f"give one for each of {', '.join(fractions)}")
    for name, volume in fractions.items():
        if not np.isfinite(volume.data).all():
            raise DataError(f"the map of {name} holds NaN or infinite values", hint="check the segmentation")
