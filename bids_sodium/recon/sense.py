"""One image that explains the samples of all channels at once.

``x = argmin sum_c ||W^(1/2) (A S_c x - s_c)||^2`` with the sensitivities ``S_c`` of whitened channels, unit vectors in
each voxel. The normal operator applies that of one channel to one channel after the other. With sensitivities given,
the map from samples to image is linear.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Trajectory
from bids_sodium.recon.coils import sensitivities
from bids_sodium.recon.iteration import Steps, follow, steps_of
from bids_sodium.recon.linear import Linear
from bids_sodium.recon.nufft import Nufft

__all__ = ["Sense", "estimated_sensitivities"]

_LOW = 0.35


class Sense:
    """The linear map from the samples of several channels to one image.

    Parameters
    ----------
    linear : Linear
        The map of one channel.
    sensitivity : (n_coils, nx, ny, nz) complex ndarray
        Sensitivities of the whitened channels, unit vectors in each voxel.

    Examples
    --------
    >>> from bids_sodium.core.data import Grid
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> recon = Linear(spokes, Grid.centred((32, 32, 32), 8.0))
    >>> even = np.full((2, 32, 32, 32), np.sqrt(0.5), np.complex64)
    >>> Sense(recon, even).solve(np.ones((2, 500, 128), np.complex64))[0].shape
    (32, 32, 32)
    """

    def __init__(self, linear: Linear, sensitivity: NDArray[np.complexfloating]) -> None:
        self.linear = linear
        self.sensitivity = sensitivity

    def normal(self, image: NDArray[np.complexfloating]) -> NDArray[np.complexfloating]:
        """Return ``sum_c S_c^H A^H W A S_c x / V``."""
        total = np.zeros_like(image)
        for sensitivity in self.sensitivity:
            total += sensitivity.conj() * self.linear.normal(sensitivity * image)
        return total

    def weighted(self, channels: Iterable[NDArray[np.complexfloating]]) -> NDArray[np.complex64]:
        """Return ``sum_c S_c^H A^H W s_c`` of the samples (n_shots, n_samples) of one channel after the other."""
        total = np.zeros(self.linear.grid.shape, dtype=np.complex64)
        for sensitivity, samples in zip(self.sensitivity, channels, strict=True):
            total += sensitivity.conj() * self.linear.weighted(samples)
        return total

    def solve(self, channels: Iterable[NDArray[np.complexfloating]]) -> tuple[NDArray[np.complex64], tuple[float, ...]]:
        """Return the image and the relative residual after each iteration."""
        image, residuals = follow(self.normal, self.weighted(channels), self.steps)
        return self.linear.filtered(image), residuals

    @cached_property
    def steps(self) -> Steps:
        """Step lengths of conjugate gradients for a noisy ball of the size of a head."""
        return steps_of(self.normal, self.normal(self.linear.probe()), self.linear.params.iterations)

    @cached_property
    def noise_gain(self) -> float:
        """Root mean square of the noise of the image's real part over a ball, per unit of that of the samples."""
        rng = np.random.default_rng(0)
        power = []
        for _ in range(self.linear.noise_draws):
            noise = (
                rng.standard_normal((*self.linear.weights.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
                for _ in self.sensitivity
            )
            image = self.solve(noise)[0][self.linear.inside]
            power.append(np.mean(np.abs(image).astype(np.float64) ** 2) / 2.0)
        return float(np.sqrt(np.mean(power)))


def estimated_sensitivities(channels: Iterable[NDArray[np.complexfloating]], linear: Linear) -> NDArray[np.complex64]:
    """Return the sensitivities of whitened channels from the centre of k-space.

    Adjoint images of the samples within 0.35 k_max, faded out by a Hann window, are free of noise and of aliases that
    matter; `bids_sodium.recon.coils.sensitivities` makes unit vectors of them.

    Parameters
    ----------
    channels : iterable of (n_shots, n_samples) complex ndarray
        Whitened samples of each channel.
    linear : Linear
        The map of one channel, which knows trajectory, grid and weights.

    Returns
    -------
    (n_coils, nx, ny, nz) complex64 ndarray
        Sensitivities.
    """
    trajectory = linear.trajectory
    k = np.linalg.norm(trajectory.k_per_mm, axis=-1)
    edge = _LOW * trajectory.k_max_per_mm
    near = k < edge
    factor = (linear.weights[near] * (0.5 + 0.5 * np.cos(np.pi * k[near] / edge))).astype(np.float32)
    centre = Trajectory(trajectory.k_per_mm[near][None], np.arange(float(near.sum())))
    nufft = Nufft(centre, linear.grid, 1e-4, threads=linear.threads)
    images = [nufft.gridded((factor * samples[near])[None]) for samples in channels]
    return sensitivities(np.asarray(images, dtype=np.complex64))
