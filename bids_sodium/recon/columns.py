"""What each tissue alone would look like in the image: the columns of the partial-volume model.

An operator column puts a tissue's map through the scan itself: its samples on the scan's trajectory, decaying as the
tissue does, and then the very map that made the image, ``f_t = R(A_t p_t)``. An MTF column multiplies the map's
spectrum by the tissue's modulation and needs only a protocol. In both the signal at the echo time is one per unit of
fraction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import Decay
from bids_sodium.core.data import Grid, Trajectory, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.psf import PointSpread
from bids_sodium.recon.solvers import Linear, ReconstructionParams

__all__ = ["Columns", "cylinder_column", "mtf_columns", "operator_columns"]

_FORWARD_ACCURACY = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """One image a tissue, on the grid of the sodium image.

    Parameters
    ----------
    names : tuple of str
        Tissues.
    images : (n, nx, ny, nz) float32 ndarray
        Real part of each tissue's image at a concentration and gain of one.
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
    te_ms: float = 0.0,
    operator: Linear | None = None,
    keep_samples: bool = False,
    threads: int = 1,
) -> Columns:
    """Put tissue maps through an acquisition and its reconstruction.

    Parameters
    ----------
    fractions : mapping of str to Volume
        Tissue fractions on one fine grid with the axes and origin of ``grid``, see `Grid.with_voxel`.
    grid : Grid
        Grid of the sodium image.
    trajectory : Trajectory
        The scan's.
    decays : mapping of str to Decay
        Transverse decay of each tissue.
    params : ReconstructionParams, optional
        Those of the image.
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
        If the maps do not share a grid with the axes and origin of ``grid``.

    Examples
    --------
    >>> from bids_sodium.core.constants import relaxation_of
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> lattice = Grid.centred((32, 32, 32), 8.0)
    >>> fine = lattice.with_voxel(4.0)
    >>> brain = {"NAWM": Volume(np.zeros(fine.shape, np.float32), fine)}
    >>> operator_columns(brain, lattice, spokes, {"NAWM": relaxation_of("NAWM").decay}).images.shape
    (1, 32, 32, 32)
    """
    fine = _common_grid(fractions, grid)
    _require(fractions, decays, "decay")
    operator = Linear(trajectory, grid, params, threads=threads) if operator is None else operator
    forward = Nufft(operator.trajectory, fine, _FORWARD_ACCURACY, threads=threads)
    names = tuple(fractions)
    images = np.empty((len(names), *grid.shape), dtype=np.float32)
    kept = []
    for row, name in enumerate(names):
        left = decays[name].at(te_ms + trajectory.t_ms) / decays[name].at(te_ms)
        samples = forward.forward(np.asarray(fractions[name].data)) * left.astype(np.float32)
        images[row] = operator(samples).real
        if keep_samples:
            kept.append(samples)
    return Columns(names, images, np.stack(kept).astype(np.complex64, copy=False) if keep_samples else None)


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

    Its k-space is exact, ``2 pi a^2 L J1(x) / x sinc(L k_u) exp(-2 pi i k c)`` with ``x = 2 pi a k_perp`` and ``k_u``
    along its axis: a cylinder on a lattice has soft edges, which read vials 2 % too high.

    Parameters
    ----------
    grid : Grid
        Grid of the sodium image.
    trajectory : Trajectory
        The scan's.
    decay : Decay
        Transverse decay of the gel.
    params : ReconstructionParams, optional
        Those of the image.
    centre_mm, axis : (3,) ndarray
        Centre in the world (RAS+, mm) and direction.
    radius_mm, length_mm : float
        Inner radius and length.
    te_ms, operator, threads
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
    from scipy.special import j1

    operator = Linear(trajectory, grid, params, threads=threads) if operator is None else operator
    turn = grid.affine[:3, :3] / grid.voxel_mm
    centre = (np.asarray(centre_mm) - grid.origin_mm) @ turn
    direction = np.asarray(axis) @ turn
    k = np.asarray(operator.trajectory.k_per_mm, dtype=np.float64)
    along = k @ direction
    x = 2.0 * np.pi * radius_mm * np.sqrt(np.maximum((k**2).sum(-1) - along**2, 0.0))
    small = x < 1e-6
    disc = np.where(small, 0.5, j1(x) / np.where(small, 1.0, x))
    samples = 2.0 * np.pi * radius_mm**2 * length_mm * disc * np.sinc(length_mm * along)
    left = decay.at(te_ms + trajectory.t_ms) / decay.at(te_ms)
    return np.asarray(operator((samples * np.exp(-2j * np.pi * (k @ centre)) * left).astype(np.complex64)).real)


def mtf_columns(fractions: Mapping[str, Volume], grid: Grid, psf: Mapping[str, PointSpread]) -> Columns:
    """Blur tissue maps by each tissue's point spread and sample them at the voxels of the image.

    Parameters
    ----------
    fractions : mapping of str to Volume
        Tissue fractions on one fine grid with the axes and origin of ``grid``.
    grid : Grid
        Grid of the sodium image.
    psf : mapping of str to PointSpread
        Point spread of each tissue.

    Returns
    -------
    Columns
        Images.

    Raises
    ------
    DataError
        If a tissue has no point spread, a map is not finite, or there are no tissues.
    GeometryError
        If the maps do not share a grid with the axes and origin of ``grid``.

    Examples
    --------
    >>> from bids_sodium.recon.psf import gaussian_point_spread
    >>> lattice = Grid.centred((16, 16, 16), 8.0)
    >>> ones = Volume(np.ones((32, 32, 32), np.float32), lattice.with_voxel(4.0))
    >>> float(mtf_columns({"CSF": ones}, lattice, {"CSF": gaussian_point_spread(9.0)}).images[0, 8, 8, 8].round(3))
    1.0
    """
    fine = _common_grid(fractions, grid)
    _require(fractions, psf, "point spread")
    names = tuple(fractions)
    images = np.empty((len(names), *grid.shape), dtype=np.float32)
    for row, name in enumerate(names):
        # One matrix an axis takes the map to its spectrum up to the edge of the modulation, another to the image.
        modulation, edge = psf[name], float(psf[name].k_per_mm[-1])
        waves = [_waves(n, step, edge) for n, step in zip(fine.shape, fine.voxel_mm, strict=True)]
        k = np.sqrt(sum(a**2 for a in np.meshgrid(*(wave[0] for wave in waves), indexing="ij", sparse=True)))
        spectrum = _along_axes(np.asarray(fractions[name].data, dtype=np.float32), [wave[1] for wave in waves])
        spectrum *= np.interp(k, modulation.k_per_mm, modulation.mtf, right=0.0).astype(np.float32)
        back = [
            np.exp(2j * np.pi * np.outer((np.arange(n) - n // 2) * step, wave[0])).astype(np.complex64)
            for n, step, wave in zip(grid.shape, grid.voxel_mm, waves, strict=True)
        ]
        images[row] = _along_axes(spectrum, back).real
    return Columns(names, images)


def _waves(n: int, step_mm: float, edge: float) -> tuple[NDArray[np.float64], NDArray[np.complex64]]:
    """Return the frequencies of an axis up to the edge and the matrix that takes voxels to them."""
    k = np.fft.fftshift(np.fft.fftfreq(n, step_mm))
    k = k[np.abs(k) <= edge]
    phase = np.outer(k, (np.arange(n) - n // 2) * step_mm)
    return k, (np.exp(-2j * np.pi * phase) / n).astype(np.complex64)


def _along_axes(
    values: NDArray[np.float32] | NDArray[np.complex64], matrices: list[NDArray[np.complex64]]
) -> NDArray[np.complex64]:
    """Multiply each axis by its matrix, last axis first."""
    result = np.asarray(values, dtype=np.complex64) @ matrices[2].T
    result = matrices[1] @ result
    return np.asarray(np.tensordot(matrices[0], result, axes=(1, 0)))


def _require(fractions: Mapping[str, Volume], known: Mapping[str, object], what: str) -> None:
    missing = [name for name in fractions if name not in known]
    if missing:
        raise DataError(f"no {what} for {', '.join(missing)}", hint=f"give one for each of {', '.join(fractions)}")


def _common_grid(fractions: Mapping[str, Volume], grid: Grid) -> Grid:
    if not fractions:
        raise DataError("no tissue maps", hint="give at least one")
    fine = next(iter(fractions.values())).grid
    for name, volume in fractions.items():
        if not volume.grid.same_as(fine):
            raise GeometryError(f"the map of {name} lies on another grid than the first", hint="resample it")
        if not np.isfinite(volume.data).all():
            raise DataError(f"the map of {name} holds NaN or infinite values", hint="check the segmentation")
    axes = fine.affine[:3, :3] / fine.voxel_mm, grid.affine[:3, :3] / grid.voxel_mm
    shift = float(np.linalg.norm(fine.origin_mm - grid.origin_mm))
    if not np.allclose(*axes, atol=1e-4) or shift > 1e-2:
        raise GeometryError(
            f"the tissue maps are not aligned with the image (centre {shift:.3g} mm away, or other axes)",
            hint="resample them to grid.with_voxel(...)",
        )
    return fine
