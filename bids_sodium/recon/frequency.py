"""The centre frequency of the object, told from the data.

Off-resonance by ``f`` turns a sample at time ``t`` by ``2 pi f t``. Readouts that leave the centre reach the shells of
k-space one after the other. Where the object's phase is smooth, the image of every shell has the phase of the image of
the centre, up to its sign: what it has turned further is off-resonance. With ``z = x_shell exp(-i arg x_centre)``, the
sum of ``z^2`` over the object has the angle ``4 pi f (t_shell - t_centre)``, whatever the phase of the receiver and
however the tissues decay.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.sampling import leaves_centre

__all__ = ["CentreFrequency", "centre_frequency"]

_CENTRE = 0.3
_SHELLS = 8
_OBJECT = 0.1
_RANGE_HZ = 150.0
_PHASE_ERROR_RAD = 0.03
_SIGNIFICANT_SHELL = 5.0
_LEAST_SHELLS = 3
_LEAST_OFFSET_HZ = 1.0


@dataclass(frozen=True, slots=True)
class CentreFrequency:
    """How far the object is off the receiver's centre frequency.

    Parameters
    ----------
    offset_hz : float
        Off-resonance of the object, the mean over it weighted by the power of its detail; NaN where it cannot be told.
    se_hz : float
        Standard error, from the noise, from what the shells disagree by, and from a phase of 0.03 rad that a shell may
        have for other reasons.
    """

    offset_hz: float
    se_hz: float

    @property
    def significant(self) -> bool:
        """Whether it is worth correcting: above two standard errors and above 1 Hz."""
        return bool(abs(self.offset_hz) > max(2.0 * self.se_hz, _LEAST_OFFSET_HZ))


def centre_frequency(
    channels: NDArray[np.complexfloating],
    trajectory: Trajectory,
    grid: Grid,
    weights: NDArray[np.floating],
    *,
    sigma_k: float,
    field_hz: NDArray[np.floating] | None = None,
    threads: int = 1,
) -> CentreFrequency:
    """Estimate the off-resonance of an object within 150 Hz.

    Parameters
    ----------
    channels : (n_coils, n_shots, n_samples) complex ndarray
        Samples of channels with equal and independent noise.
    trajectory : Trajectory
        Where and when k-space is sampled.
    grid : Grid
        Image lattice.
    weights : (n_shots, n_samples) ndarray
        Sample weights, in 1/mm3.
    sigma_k : float
        Noise of the real part of the samples.
    field_hz : (nx, ny, nz) ndarray, optional
        Known off-resonance of each voxel; the estimate is what comes on top.
    threads : int
        Threads of a transform.

    Returns
    -------
    CentreFrequency
        Offset and standard error; NaN where readouts do not leave the centre, or fewer than three shells show signal.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> lattice = Grid.centred((32, 32, 32), 8.0)
    >>> samples = Nufft(spokes, lattice).forward(np.pad(np.ones((14, 12, 13)), ((9, 9), (10, 10), (9, 10))))
    >>> turned = samples * np.exp(2e-3j * np.pi * 17.0 * spokes.t_ms)
    >>> from bids_sodium.recon.density import sample_weights
    >>> found = centre_frequency(turned[None], spokes, lattice, sample_weights(spokes, lattice), sigma_k=1e3)
    >>> bool(abs(found.offset_hz - 17.0) < 0.5)
    True
    """
    unknown = CentreFrequency(float("nan"), float("nan"))
    if not leaves_centre(trajectory):
        return unknown
    k = np.linalg.norm(trajectory.k_per_mm.astype(np.float64), axis=-1).mean(axis=0)
    t_ms = trajectory.t_ms.astype(np.float64)
    first = int(np.searchsorted(k, _CENTRE * k[-1]))
    # Of uneven length, so that no other frequency turns all of them alike.
    share_of_time = (np.arange(1, _SHELLS) / _SHELLS) ** 1.5
    edges = t_ms[first] + (t_ms[-1] - t_ms[first]) * share_of_time
    cuts = np.unique([0, first, *np.searchsorted(t_ms, edges), t_ms.size])
    if cuts.size < _LEAST_SHELLS + 2:
        return unknown
    floor = 1e-6 * float(np.abs(channels).max())
    sigma_k = max(sigma_k, floor)
    images = [_shell(channels, trajectory, grid, weights, cut, threads) for cut in pairwise(cuts)]
    size = np.sqrt((np.abs(images[0].image) ** 2).sum(axis=0))
    seen = size > max(_OBJECT * float(size.max()), 4.0 * sigma_k * images[0].noise)
    back = np.exp(-1j * np.angle(images[0].image[:, seen]))
    count = float(seen.sum()) * channels.shape[0]
    later, angle, weight = [], [], []
    edge_k = np.append(k, k[-1])
    for (start, stop), shell in zip(pairwise(cuts[1:]), images[1:], strict=True):
        dt = shell.t_ms - images[0].t_ms
        z = shell.image[:, seen] * back
        if field_hz is not None:
            z = z * np.exp(-2e-3j * np.pi * dt * np.asarray(field_hz)[seen])
        total = complex(np.sum(z.astype(np.complex128) ** 2))
        # A shell fills only this share of the lattice's k-space, and its noise is as much stronger there.
        share = min(1.0, 4.0 / 3.0 * np.pi * (edge_k[stop] ** 3 - k[start] ** 3) * grid.voxel_ml * 1000.0)
        power = (sigma_k * shell.noise) ** 2
        if abs(total) < _SIGNIFICANT_SHELL * 2.0 * power * np.sqrt(2.0 * count / share):
            continue
        later.append(dt)
        angle.append(np.angle(total))
        spread = power / (share * abs(total)) * (1.0 + count * power / abs(total))
        weight.append(1.0 / (spread + _PHASE_ERROR_RAD**2))
    if len(later) < _LEAST_SHELLS:
        return unknown
    return _fitted(np.array(later), np.array(angle), np.array(weight))


@dataclass(frozen=True, slots=True, eq=False)
class _Shell:
    """Images of the samples of some times, their mean time, and their noise per unit of that of the samples."""

    image: NDArray[np.complexfloating]
    t_ms: float
    noise: float


def _shell(
    channels: NDArray[np.complexfloating],
    trajectory: Trajectory,
    grid: Grid,
    weights: NDArray[np.floating],
    cut: tuple[int, int],
    threads: int,
) -> _Shell:
    start, stop = cut
    part = Trajectory(trajectory.k_per_mm[:, start:stop], trajectory.t_ms[start:stop])
    factor = weights[:, start:stop].astype(np.float32)
    nufft = Nufft(part, grid, 1e-3, threads=threads)
    image = np.stack([nufft.gridded(factor * one[:, start:stop]) for one in channels])
    power = (factor * np.abs(channels[:, :, start:stop]) ** 2).sum(axis=(0, 1), dtype=np.float64)
    return _Shell(image, float(np.average(part.t_ms, weights=power)), float(np.sqrt((factor.astype(float) ** 2).sum())))


def _fitted(later_ms: NDArray[np.float64], angle: NDArray[np.float64], weight: NDArray[np.float64]) -> CentreFrequency:
    """Return the slope of doubled phases over time: the best of a fine row of slopes, then least squares around it."""
    rad_per_hz = 2e-3 * np.pi * later_ms
    tried = np.arange(-_RANGE_HZ, _RANGE_HZ + 0.125, 0.25)
    score = np.cos(angle - 2.0 * tried[:, None] * rad_per_hz) @ weight
    best = float(tried[int(np.argmax(score))])
    left = np.angle(np.exp(1j * (angle - 2.0 * best * rad_per_hz))) / 2.0
    information = float((weight * rad_per_hz**2).sum())
    more = float((weight * rad_per_hz * left).sum()) / information
    misfit = float((weight * (left - more * rad_per_hz) ** 2).sum()) / (later_ms.size - 1)
    return CentreFrequency(best + more, float(np.sqrt(max(1.0, misfit) / information)))
