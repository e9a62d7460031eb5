"""What volume of k-space each sample stands for, and filters over k-space.

For readouts that leave the centre, ``w = Omega k^2 (dk/dt) dt`` with the solid angle ``Omega`` of the shot: stated by
the trajectory (a cone's band, an equal share), the area of its Voronoi cell, or for shots of overlapping hubs one over
the sum of their densities. Where gradients lag differently along different axes the change of volume that this makes
is a factor more. The sum over samples replaces an integral, so its error near the centre, where a step is large against
the width of a head's spectrum, becomes an error of the image's gain. A smooth factor of ``k`` close to one, the
least-squares answer to "balls of 40 to 110 mm radius come out as a full sphere of k-space would show them", takes that
error away.

Other trajectories get weights by iteration (Pipe and Menon), until smoothed sampling is as dense as smoothed covered
k-space: one inside, less at its edge and over gaps, where weights would otherwise make up for what is not there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.recon._lag import without_lag

__all__ = ["FILTERS", "WeightParams", "filter_response", "gain", "kspace_filter", "sample_weights", "solid_angles"]

FILTERS = ("none", "gaussian", "hamming", "hann", "fermi")
_METHODS = ("auto", "analytic", "voronoi", "pipe-menon")
_BALL_RADII_MM = (40.0, 55.0, 70.0, 85.0, 95.0, 110.0)
_CORE = 0.75
_START = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightParams:
    """How samples are weighted."""

    method: str = "auto"
    """``analytic`` for centre-out readouts, with the solid angles that the trajectory states; ``voronoi`` for the same
    with those of Voronoi cells; ``pipe-menon`` for any trajectory; ``auto`` chooses."""

    refine: bool = True
    """Whether weights are corrected by a factor of k so that balls of any size have gain one."""

    smoothness: float = 0.1
    """Penalty on the correction's distance from one, per unit of relative image error."""

    ball_mm: float = 190.0
    """Diameter of the ball whose response is the gain, in mm; the size of a head."""

    iterations: int = 15
    """Iterations of Pipe and Menon's method."""

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ConfigError(f"unknown sample weighting '{self.method}'", hint=f"choose one of {', '.join(_METHODS)}")


def sample_weights(
    trajectory: Trajectory, grid: Grid, params: WeightParams | None = None, *, threads: int = 1
) -> NDArray[np.float64]:
    """Return the weight of each sample, in 1/mm3.

    Parameters
    ----------
    trajectory : Trajectory
        Where k-space is sampled.
    grid : Grid
        Image lattice; only Pipe and Menon's method needs it.
    params : WeightParams, optional
        Choices.
    threads : int
        Threads of a transform.

    Returns
    -------
    (n_shots, n_samples) ndarray
        Weights with which the gridded image of a uniform ball has gain one.

    Raises
    ------
    DataError
        If analytic weights are asked for a trajectory that does not leave the centre, or no sample lies off it.

    References
    ----------
    Pipe and Menon 1999, Magn Reson Med 41:179.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> weights = sample_weights(spokes, Grid.centred((32, 32, 32), 8.0))
    >>> abs(gain(spokes, weights) - 1.0) < 0.005
    True
    """
    params = WeightParams() if params is None else params
    k = _radii(trajectory)
    if not k.max() > 0:
        raise DataError("every sample lies at the centre of k-space", hint="check the trajectory")
    if params.method == "auto" and trajectory.kind == "cartesian" and (cell := _lattice_cell(trajectory)) is not None:
        return np.full(k.shape, cell)
    begins = k[:, 0].max() < _START * k.max()
    even = without_lag(trajectory) if begins and params.method != "pipe-menon" else None
    even_k = k if even is None or even[0] is trajectory else _radii(even[0])
    outward = even is not None and _leads_outwards(even_k)
    if params.method == "pipe-menon" or (params.method == "auto" and not outward):
        weights = _pipe_menon(trajectory, grid, params, threads)
        if params.refine:
            nodes = np.unique(np.quantile(k, np.linspace(0.0, 1.0, 200)))
            edge = float(np.cbrt(3.0 * weights.sum() / (4.0 * np.pi)))
            weights = _refined(k, weights, nodes, edge, params.smoothness)
        return np.asarray(weights / gain(trajectory, weights, params.ball_mm))
    if even is None or not outward:
        raise DataError(
            "the readouts do not lead from the centre to the edge of k-space, so they have no analytic weights",
            hint="use pipe-menon weights, or check the trajectory",
        )
    weights, omega = _shells(even[0], even_k, stated=params.method != "voronoi")
    weights = weights * even[1]
    if not params.refine:
        return weights
    nodes = np.unique(np.average(k, axis=0, weights=omega))
    if nodes.size > 400:
        # Steps matter near the centre; further out a factor at every fourth sample is smooth enough.
        nodes = np.unique(np.concatenate([nodes[:200], nodes[200 :: max(1, nodes.size // 200)], nodes[-1:]]))
    edge = float(np.average(1.5 * k[:, -1] - k[:, -2] / 2.0, weights=omega))
    return _refined(k, weights, nodes, edge, params.smoothness)


def gain(trajectory: Trajectory, weights: NDArray[np.floating], ball_mm: float = 190.0) -> float:
    """Return the mean response within the inner three quarters of the radius of a uniform ball of value one.

    Parameters
    ----------
    trajectory : Trajectory
        Where k-space is sampled.
    weights : (n_shots, n_samples) ndarray
        Weights, in 1/mm3, filters included.
    ball_mm : float
        Diameter of the ball, in mm.

    Returns
    -------
    float
        ``sum_j w_j B(k_j) M(k_j)`` with the spectrum ``B`` of the ball and the mean ``M`` of a wave over its core;
        exact for any trajectory because the core is a ball too.
    """
    k = _radii(trajectory)
    radius = ball_mm / 2.0
    core = _CORE * radius
    response = _ball_spectrum(k, radius) * _ball_spectrum(k, core) / (4.0 / 3.0 * np.pi * core**3)
    return float((weights * response).sum())


def solid_angles(trajectory: Trajectory, *, stated: bool = True) -> NDArray[np.float64]:
    """Return the share of the sphere of each shot, in sr; it sums to ``4 pi``.

    Where the trajectory does not state it, it is the area of the Voronoi cell of the end of the shot; shots that end
    at the same place share theirs.

    Parameters
    ----------
    trajectory : Trajectory
        Centre-out trajectory.
    stated : bool
        Whether what the trajectory states is taken.

    Returns
    -------
    (n_shots,) ndarray
        Solid angles.

    Raises
    ------
    DataError
        If fewer than four shots end at different places.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import directions
    >>> ends = directions(50)[:, None, :] * np.array([0.5, 1.0])[:, None]
    >>> round(float(solid_angles(Trajectory(ends, np.array([1.0, 2.0]))).sum() / np.pi), 6)
    4.0
    """
    if stated and trajectory.solid_angle_sr is not None:
        return np.asarray(trajectory.solid_angle_sr, dtype=np.float64)
    from scipy.spatial import SphericalVoronoi

    ends = trajectory.k_per_mm[:, -1].astype(np.float64)
    ends /= np.linalg.norm(ends, axis=-1, keepdims=True)
    unique, cell, count = np.unique(np.round(ends, 5), axis=0, return_inverse=True, return_counts=True)
    if len(unique) < 4:
        raise DataError(
            f"{trajectory.n_shots} shots in {len(unique)} directions do not cover k-space",
            hint="check that every readout was exported",
        )
    unique /= np.linalg.norm(unique, axis=-1, keepdims=True)
    areas = SphericalVoronoi(unique).calculate_areas()
    shares = areas[cell.ravel()] / count[cell.ravel()]
    return np.asarray(shares * (4.0 * np.pi / shares.sum()), dtype=np.float64)


def kspace_filter(trajectory: Trajectory, name: str, width: float, transition: float = 0.05) -> NDArray[np.float64]:
    """Return a filter's value at each sample, (n_shots, n_samples); see `filter_response`."""
    k = _radii(trajectory)
    return filter_response(k / k.max(), name, width, transition)


def filter_response(
    share: NDArray[np.floating], name: str, width: float, transition: float = 0.05
) -> NDArray[np.float64]:
    """Return a k-space filter as a function of ``k / k_max``.

    Parameters
    ----------
    share : ndarray
        ``k / k_max``.
    name : {"none", "gaussian", "hamming", "hann", "fermi"}
        ``exp(-share^2 / (2 width^2))``, ``0.54 + 0.46 cos(pi share / width)``, ``0.5 + 0.5 cos(pi share / width)``,
        ``1 / (1 + exp((share - width) / transition))``; the cosines are constant beyond ``share = width``, the last
        is divided by its value at the centre.
    width : float
        Width, as a share of ``k_max``; a Fermi filter has fallen to half there.
    transition : float
        Scale of the Fermi filter's edge, as a share of ``k_max``: from 0.9 to 0.1 it falls within 4.4 of it.

    Returns
    -------
    ndarray
        Values, one at the centre.

    Raises
    ------
    ConfigError
        If the name is unknown or the width, or the Fermi filter's transition, not positive.

    References
    ----------
    Harris 1978, Proc IEEE 66:51 (Hamming, Hann, Gaussian); Bernstein 2004, Handbook of MRI Pulse Sequences (Fermi).

    Examples
    --------
    >>> float(filter_response(np.array(0.7), "gaussian", 0.7).round(3))
    0.607
    """
    share = np.asarray(share, dtype=np.float64)
    if name not in FILTERS:
        raise ConfigError(f"unknown k-space filter '{name}'", hint=f"choose one of {', '.join(FILTERS)}")
    if name == "none":
        return np.ones_like(share)
    if not (np.isfinite(width) and width > 0):
        raise ConfigError(f"a k-space filter of width {width:g}", hint="give a share of k_max above zero, such as 0.7")
    if name == "gaussian":
        return np.asarray(np.exp(-0.5 * (share / width) ** 2))
    if name == "fermi":
        if not (np.isfinite(transition) and transition > 0):
            raise ConfigError(f"a Fermi filter with a transition of {transition:g}", hint="give a share of k_max, 0.05")
        # 1 / (1 + exp(x)) as a hyperbolic tangent does not overflow.
        return np.asarray(
            (1.0 - np.tanh((share - width) / transition / 2.0)) / (1.0 + np.tanh(width / transition / 2.0))
        )
    floor = 0.54 if name == "hamming" else 0.5
    return np.asarray(floor + (1.0 - floor) * np.cos(np.pi * np.minimum(share / width, 1.0)))


def _radii(trajectory: Trajectory) -> NDArray[np.float64]:
    k = trajectory.k_per_mm.astype(np.float64)
    return np.asarray(np.sqrt(np.einsum("ijk,ijk->ij", k, k)))


def _leads_outwards(k: NDArray[np.float64]) -> bool:
    """Tell whether every shot never turns back and ends at the common edge."""
    k_max = k.max()
    return bool((k[:, -1] > 0.9 * k_max).all() and np.diff(k, axis=1).min() > -1e-3 * k_max)


def _shells(
    trajectory: Trajectory, k: NDArray[np.float64], *, stated: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``Omega k^2 (dk/dt) dt`` of each sample and the solid angle of each shot."""
    shares = _shares_of_hubs(trajectory, k) if stated and trajectory.solid_angle_sr is None else None
    if shares is None:
        shares = solid_angles(trajectory, stated=stated)[:, None]
    return np.maximum(shares * k**2 * np.gradient(k, axis=1), 0.0), shares.mean(axis=1)


def _shares_of_hubs(trajectory: Trajectory, k: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the share of the sphere (n_shots, n_samples) of the samples of shots that wind round two axes or three.

    A shot of a hub keeps its latitude over the hub's equator while it turns. ``c`` shots a radian of latitude are
    ``c / (2 pi cos(latitude))`` shots a steradian; hubs overlap, so that these densities add up, and a sample's share
    is one over their sum. None where shots do not wind so (FLORET, Pipe 2011).
    """
    late = trajectory.k_per_mm[:, trajectory.n_samples // 2 :: max(1, trajectory.n_samples // 32)].astype(np.float64)
    late /= np.linalg.norm(late, axis=-1, keepdims=True)
    spread = np.ptp(late, axis=1)
    hub = spread.argmin(axis=1)
    axes = np.flatnonzero(np.bincount(hub, minlength=3) > 0.1 * hub.size)
    winds = np.median(spread.max(axis=1)) > 0.1 and spread.min(axis=1).max() < 0.02
    if not winds or axes.size < 2 or not np.isin(hub, axes).all():
        return None
    density = np.zeros(k.shape)
    for axis in axes:
        shots = np.sort(np.arcsin(late[hub == axis].mean(axis=1)[:, axis].clip(-1.0, 1.0)))
        cone = np.concatenate([[0], np.cumsum(np.diff(shots) > 1e-4)])
        count = np.bincount(cone)
        if count.size < 2:
            return None
        latitudes = np.bincount(cone, weights=shots) / count
        spacing = np.gradient(latitudes)
        height = np.divide(trajectory.k_per_mm[..., axis], k, out=np.zeros(k.shape), where=k > 0).clip(-1.0, 1.0)
        latitude = np.arcsin(height)
        outside = (latitude < latitudes[0] - spacing[0] / 2.0) | (latitude > latitudes[-1] + spacing[-1] / 2.0)
        circle = 2.0 * np.pi * np.maximum(np.cos(latitude), spacing.min() / 2.0)
        density += np.where(outside, 0.0, np.interp(latitude, latitudes, count / spacing) / circle)
    return np.asarray(1.0 / np.maximum(density, 1e-3 * density.max()))


def _lattice_cell(trajectory: Trajectory) -> float | None:
    """Return the cell of a full Cartesian lattice, in 1/mm3, or None where the samples are not one."""
    points = trajectory.k_per_mm.reshape(-1, 3).astype(np.float64)
    cell, count = 1.0, 1
    for axis in range(3):
        levels = np.unique(np.round(points[:, axis], 7))
        if levels.size < 2:
            return None
        cell *= (levels[-1] - levels[0]) / (levels.size - 1)
        count *= levels.size
    return cell if count == points.shape[0] else None


def _ball_spectrum(k: NDArray[np.floating], radius_mm: float) -> NDArray[np.float64]:
    """Return the Fourier transform of a ball of value one, in mm3."""
    x = np.maximum(2.0 * np.pi * k * radius_mm, 1e-2)
    return np.asarray(4.0 * np.pi * radius_mm**3 * (np.sin(x) - x * np.cos(x)) / x**3)


def _refined(
    k: NDArray[np.float64], weights: NDArray[np.float64], nodes: NDArray[np.float64], edge: float, smoothness: float
) -> NDArray[np.float64]:
    """Multiply by the factor of k, linear between nodes, that makes balls look as in a sphere up to the edge."""
    same = np.ptp(k, axis=0).max() < 1e-6 * edge
    radius, mass = (k[0], weights.sum(axis=0)) if same else (k.ravel(), weights.ravel())

    # Samples act through |k| alone: each is shared by two nodes (unknowns) and two fine bins (where waves are known).
    n_bins, n_nodes = 8192, nodes.size
    top = radius.max() * (1.0 + 1e-9)
    bin_at = radius / top * n_bins
    low_bin = bin_at.astype(int)
    node = np.clip(np.searchsorted(nodes, radius, side="right") - 1, 0, n_nodes - 2)
    share = np.clip((radius - nodes[node]) / (nodes[node + 1] - nodes[node]), 0.0, 1.0)
    table = np.zeros(n_nodes * (n_bins + 2))
    for row, of_node in ((node, 1.0 - share), (node + 1, share)):
        for column, of_bin in ((low_bin, 1.0 - (bin_at - low_bin)), (low_bin + 1, bin_at - low_bin)):
            table += np.bincount(row * (n_bins + 2) + column, weights=mass * of_node * of_bin, minlength=table.size)
    shared = table.reshape(n_nodes, n_bins + 2)
    used = shared.any(axis=0)
    shared, k_bin = shared[:, used], (np.arange(n_bins + 2) * (top / n_bins))[used]

    k_fine = np.asarray((np.arange(4096) + 0.5) * (edge / 4096))
    shell = 4.0 * np.pi * k_fine**2 * (edge / 4096)
    rows, targets = [], []
    for ball in _BALL_RADII_MM:
        r = (np.arange(48) + 0.5) / 48 * (ball + 20.0)
        seen = (np.sinc(2.0 * r[:, None] * k_bin) * _ball_spectrum(k_bin, ball)) @ shared.T
        ideal = np.sinc(2.0 * r[:, None] * k_fine) @ (shell * _ball_spectrum(k_fine, ball))
        volume = np.sqrt(r**2 / (r**2).sum())
        core = np.where(r < _CORE * ball, r**2, 0.0)
        # Three rows' worth of weight on the mean of the core, which is the gain that calibration sees.
        emphasis = np.vstack([np.diag(volume), 3.0 * core / core.sum()])
        rows.append(emphasis @ seen)
        targets.append(emphasis @ ideal)
    system = np.vstack([*rows, smoothness * np.eye(n_nodes)])
    target = np.concatenate([*targets, np.full(n_nodes, smoothness)])
    factor = np.linalg.lstsq(system, target, rcond=None)[0]
    return np.asarray(weights * np.maximum(np.interp(k, nodes, factor), 0.0))


def _pipe_menon(trajectory: Trajectory, grid: Grid, params: WeightParams, threads: int) -> NDArray[np.float64]:
    """Iterate ``w <- w A{c f} / Re A{c A^H w}`` with ``c = 1 - 1.5 r + 0.5 r^3``, the overlap of two balls.

    ``f`` is the transform of covered k-space, one in every cell with a sample and in holes narrower than two Nyquist
    cells. Without it weights at the edge double and the image rings.
    """
    from scipy import fft, ndimage

    from bids_sodium.recon.nufft import Nufft

    doubled = Grid((grid.shape[0] * 2, grid.shape[1] * 2, grid.shape[2] * 2), grid.affine)
    transform = Nufft(trajectory, doubled, 1e-3, threads=threads)
    axes = [(np.arange(2 * n) - n) * step for n, step in zip(grid.shape, grid.voxel_mm, strict=True)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    r = np.minimum(distance / min(grid.fov_mm), 1.0)
    window = (1.0 - 1.5 * r + 0.5 * r**3).astype(np.float32)

    shape = np.array(doubled.shape)
    cells = np.rint(trajectory.k_per_mm.reshape(-1, 3) * np.array(doubled.fov_mm)).astype(int) + shape // 2
    covered = np.zeros(doubled.shape, dtype=bool)
    covered[tuple(np.clip(cells, 0, shape - 1).T)] = True
    covered = ndimage.binary_closing(np.pad(covered, 2), np.ones((3, 3, 3), dtype=bool), iterations=2)[2:-2, 2:-2, 2:-2]
    spectrum = fft.fftshift(fft.ifftn(fft.ifftshift(covered.astype(np.float32)), norm="forward", workers=threads))
    wanted = transform.forward(window * spectrum).real / np.prod(doubled.fov_mm)

    weights = np.full(wanted.shape, 1.0)
    for _ in range(params.iterations):
        density = transform.forward(window * transform.gridded(weights)).real.astype(np.float64)
        weights *= np.maximum(wanted, 0.0) / np.maximum(density, 1e-6 * density.max())
    return weights
