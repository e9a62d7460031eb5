"""From k-space to an image: one fixed linear map, its noise, and everything that must hold before it is applied.

The recommended map is weighted conjugate gradients on ``A^H W A x = A^H W s``, stopped early, then a filter over
k-space. Conjugate gradients choose their steps from the data and so are not linear; here the steps are those for a
head-sized object with noise on the same trajectory, whatever the data. The map is then linear, its noise follows from
the weights alone, and tissue maps can be put through the very map that made the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.core.errors import ConfigError, DataError, GeometryError
from bids_sodium.recon.coils import COMBINATIONS, combine, noise_covariance, noise_sigma, whitening
from bids_sodium.recon.density import FILTERS, WeightParams, filter_response, gain, kspace_filter, sample_weights
from bids_sodium.recon.nufft import Nufft, Toeplitz
from bids_sodium.recon.trajectory import delayed

__all__ = ["Linear", "ReconstructionParams", "Solution", "coverage", "linear", "phase_corrected_real", "reconstruct"]

_MODES = ("recommended", "paper")
_SOLVERS = ("cg", "adjoint")
_LEAST_COVERAGE = 0.1
_NOISE_DRAWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionParams:
    """How k-space becomes an image."""

    mode: str = "recommended"
    """``recommended`` as set below; ``paper``: weighted adjoint without filter (Nagel 2009)."""

    method: str = "cg"
    """``cg``: weighted conjugate gradients; ``adjoint``: weighted adjoint (gridding)."""

    iterations: int = 5
    """Conjugate-gradient iterations; more of them amplify noise."""

    filter: str = "gaussian"
    """K-space filter against ringing: ``none``, ``gaussian``, ``hamming`` or ``hann``."""

    filter_width: float = 0.7
    """Width of the filter as a share of k_max; the standard deviation of the Gaussian."""

    coils: str = "adaptive"
    """Combination of receive channels: ``adaptive`` (Walsh 2000) or ``sos`` (sum of squares)."""

    offset_hz: float = 0.0
    """Off-resonance of the object against the receiver's centre frequency, in Hz; it is demodulated."""

    delay_ms: float = 0.0
    """Time by which the gradients lag the sampling beyond what the trajectory says, in ms."""

    accuracy: float = 1e-5
    """Relative accuracy of the non-uniform Fourier transform."""

    weights: WeightParams = field(default_factory=WeightParams)
    """Density compensation."""

    def __post_init__(self) -> None:
        for what, value, known in (
            ("reconstruction mode", self.mode, _MODES),
            ("reconstruction method", self.method, _SOLVERS),
            ("k-space filter", self.filter, FILTERS),
            ("coil combination", self.coils, COMBINATIONS),
        ):
            if value not in known:
                raise ConfigError(f"unknown {what} '{value}'", hint=f"choose one of {', '.join(known)}")
        if self.iterations < 1:
            raise ConfigError(f"{self.iterations} iterations", hint="give at least one")
        if self.filter != "none" and not self.filter_width > 0:
            raise ConfigError(f"a k-space filter of width {self.filter_width:g}", hint="give a share of k_max above 0")

    @property
    def solver(self) -> str:
        """The method in use, mode considered."""
        return "adjoint" if self.mode == "paper" else self.method

    @property
    def apodisation(self) -> str:
        """The filter in use, mode considered."""
        return "none" if self.mode == "paper" else self.filter


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A reconstructed image and what is known about it.

    Parameters
    ----------
    image : (nx, ny, nz) complex64 ndarray
        Image in the unit of the object; a uniform object has gain one.
    sigma : float
        Standard deviation of the noise in the real (= imaginary) part of the image.
    sigma_k : (n_coils,) ndarray
        Standard deviation of the noise in the real part of the samples of each channel.
    noise_gain : float
        ``sigma`` per unit of k-space noise, 1/mm3.
    gain : float
        Response of a uniform 190 mm ball under the sample weights; one is right.
    coverage : float
        Share of the cells of a Nyquist lattice within the sphere of k_max that hold a sample.
    iterations : int
        Iterations done; zero for the adjoint.
    residuals : tuple of float
        Residual of the normal equations relative to their right-hand side, after each iteration.
    converged : bool
        Whether the residual ended below a tenth of the right-hand side (always true for the adjoint).
    """

    image: NDArray[np.complex64]
    sigma: float
    sigma_k: NDArray[np.float64]
    noise_gain: float
    gain: float
    coverage: float
    iterations: int = 0
    residuals: tuple[float, ...] = ()
    converged: bool = True


class Linear:
    """The linear map from the samples of one channel to an image.

    Weights, transform plans, the kernel of the normal operator and the steps of the iteration are made once, when
    first needed.

    Parameters
    ----------
    trajectory : Trajectory
        Where k-space is sampled.
    grid : Grid
        Image lattice.
    params : ReconstructionParams, optional
        Method, filter and weights.
    threads : int
        Threads of a transform.

    Raises
    ------
    DataError
        If the trajectory does not fit the grid, which mostly means a wrong unit.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> recon = Linear(spokes, Grid.centred((32, 32, 32), 8.0))
    >>> recon(np.zeros((500, 128), np.complex64)).shape
    (32, 32, 32)
    """

    def __init__(
        self, trajectory: Trajectory, grid: Grid, params: ReconstructionParams | None = None, *, threads: int = 1
    ) -> None:
        self.params = ReconstructionParams() if params is None else params
        _check_extent(trajectory, grid)
        self.trajectory = delayed(trajectory, self.params.delay_ms)
        self.grid = grid
        self.threads = threads
        self.nufft = Nufft(self.trajectory, grid, self.params.accuracy, threads=threads)

    def __call__(self, samples: NDArray[np.complexfloating]) -> NDArray[np.complex64]:
        """Return the image (..., nx, ny, nz) of samples (..., n_shots, n_samples); up to one leading axis."""
        if samples.ndim == 3:
            return np.stack([self.solve(one)[0] for one in samples])
        return self.solve(samples)[0]

    def solve(self, samples: NDArray[np.complexfloating]) -> tuple[NDArray[np.complex64], tuple[float, ...]]:
        """Return the image of one channel and the relative residual after each iteration."""
        image = self.nufft.gridded(self._sample_factor * samples)
        residuals: tuple[float, ...] = ()
        if self.params.solver == "cg":
            image, residuals = _iterate(self.normal, image, self.steps)
            image = self._filtered(image)
        return image.astype(np.complex64, copy=False), residuals

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Sample weights (n_shots, n_samples), in 1/mm3, without the filter."""
        return sample_weights(self.trajectory, self.grid, self.params.weights, threads=self.threads)

    @cached_property
    def normal(self) -> Toeplitz:
        """The weighted normal operator."""
        return self.nufft.toeplitz(self.weights)

    @cached_property
    def steps(self) -> tuple[tuple[float, float], ...]:
        """Step lengths (alpha, beta) of conjugate gradients for a noisy ball of the size of a head."""
        distance = _radius(self.grid.shape, self.grid.voxel_mm)
        noise = np.random.default_rng(0).standard_normal((2, *self.grid.shape), dtype=np.float32)
        ball = (distance < self.params.weights.ball_mm / 2.0) + 0.1 * (noise[0] + 1j * noise[1])
        return _conjugate_gradient_steps(self.normal, self.normal(ball.astype(np.complex64)), self.params.iterations)

    @cached_property
    def gain(self) -> float:
        """Response of a uniform ball under the sample weights."""
        return gain(self.trajectory, self.weights, self.params.weights.ball_mm)

    @cached_property
    def noise_gain(self) -> float:
        """Standard deviation of the image's real part per unit of that of the samples, in 1/mm3.

        Exact for the adjoint; for conjugate gradients the root mean square over a centred ball of the images of white
        noise, with a relative standard error below half a percent.
        """
        if self.params.solver == "adjoint":
            return float(np.sqrt((self._sample_factor.astype(np.float64) ** 2).sum()))
        rng = np.random.default_rng(0)
        inside = _radius(self.grid.shape, self.grid.voxel_mm) < self.params.weights.ball_mm / 2.0
        power = []
        for _ in range(_NOISE_DRAWS):
            parts = rng.standard_normal((*self.weights.shape, 2), dtype=np.float32)
            image = self.solve(parts.view(np.complex64)[..., 0])[0][inside]
            power.append(np.mean(np.abs(image).astype(np.float64) ** 2) / 2.0)
        return float(np.sqrt(np.mean(power)))

    @cached_property
    def _sample_factor(self) -> NDArray[np.float32]:
        factor = self.weights
        if self.params.solver == "adjoint":
            factor = factor * kspace_filter(self.trajectory, self.params.apodisation, self.params.filter_width)
        return factor.astype(np.float32)

    @cached_property
    def _image_filter(self) -> NDArray[np.float32]:
        axes = [np.fft.fftfreq(n, step) for n, step in zip(self.grid.shape, self.grid.voxel_mm, strict=True)]
        k = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
        share = k / self.trajectory.k_max_per_mm
        return filter_response(share, self.params.apodisation, self.params.filter_width).astype(np.float32)

    def _filtered(self, image: NDArray[np.complexfloating]) -> NDArray[np.complexfloating]:
        if self.params.apodisation == "none":
            return image
        from scipy import fft

        spectrum = fft.fftn(image, workers=self.threads)
        return np.asarray(fft.ifftn(spectrum * self._image_filter, workers=self.threads, overwrite_x=True))


def linear(samples: NDArray[np.complexfloating], operator: Linear) -> NDArray[np.complex64]:
    """Return the image (..., nx, ny, nz) of single-channel samples (..., n_shots, n_samples) under an operator."""
    return operator(samples)


def reconstruct(
    kspace: KSpace,
    grid: Grid | None = None,
    params: ReconstructionParams | None = None,
    *,
    operator: Linear | None = None,
    threads: int = 1,
) -> Solution:
    """Reconstruct an image.

    Parameters
    ----------
    kspace : KSpace
        Raw data.
    grid : Grid, optional
        Image lattice, by default that of the data; its axes must be those of the data's grid.
    params : ReconstructionParams, optional
        Choices.
    operator : Linear, optional
        The map of this trajectory and grid where it exists already; its parameters win.
    threads : int
        Threads of a transform.

    Returns
    -------
    Solution
        Image, noise and convergence.

    Raises
    ------
    DataError
        If samples are not finite or all zero, if they cover too little of k-space, or the trajectory does not fit the
        grid.
    GeometryError
        If the grid has other axes than the data.

    References
    ----------
    Fessler 2005, IEEE Trans Signal Process 53:3393 (normal operator).

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> lattice = Grid.centred((32, 32, 32), 8.0)
    >>> point = np.zeros(lattice.shape); point[16, 16, 16] = 1.0
    >>> samples = Nufft(spokes, lattice).forward(point)
    >>> image = reconstruct(KSpace(samples[None], spokes, lattice)).image
    >>> np.unravel_index(abs(image).argmax(), image.shape) == (16, 16, 16)
    True
    """
    params = ReconstructionParams() if params is None else params
    grid = kspace.grid if grid is None else grid
    samples = kspace.samples
    if not np.isfinite(samples).all():
        raise DataError(f"{int((~np.isfinite(samples)).sum())} k-space samples are NaN or infinite")
    if not np.abs(samples).max() > 0:
        raise DataError("every k-space sample is zero", hint="check the receiver and the export")
    operator = Linear(kspace.trajectory, grid, params, threads=threads) if operator is None else operator
    covered = coverage(operator.trajectory, grid)
    if covered < _LEAST_COVERAGE:
        raise DataError(
            f"{kspace.trajectory.n_shots} shots of {kspace.trajectory.n_samples} samples reach "
            f"{100 * covered:.1f} % of the Nyquist cells of k-space",
            hint="check that the whole acquisition was exported",
        )
    factor = _demodulation(kspace, grid, operator.params.offset_hz)
    sigma_k = noise_sigma(samples)
    images, residuals = [], []
    level = float(sigma_k[0])
    for channel in _whitened(samples, sigma_k):
        image, residual = operator.solve(channel * factor)
        images.append(image)
        residuals.append(residual)
    if len(images) > 1:
        level = float(np.exp(np.mean(np.log(sigma_k))))
    image = combine(np.stack(images), operator.params.coils).image if len(images) > 1 else images[0]
    history = tuple(float(np.sqrt(np.mean(np.square(step)))) for step in zip(*residuals, strict=True))
    return Solution(
        image=image.astype(np.complex64, copy=False),
        sigma=level * operator.noise_gain,
        sigma_k=sigma_k,
        noise_gain=operator.noise_gain,
        gain=operator.gain,
        coverage=covered,
        iterations=len(history),
        residuals=history,
        converged=not history or history[-1] < 0.1,
    )


def phase_corrected_real(
    image: NDArray[np.complexfloating], grid: Grid, *, smooth_mm: float = 30.0
) -> NDArray[np.float32]:
    """Return the real part after removing the smooth phase of the image.

    First the quadratic phase that fits the phase steps between neighbours, weighted by their power, then three times
    the phase of ``|x| x`` blurred by a Gaussian. Unlike the magnitude, the result keeps zero-mean noise and negative
    lobes, so that linear models hold.

    Parameters
    ----------
    image : (nx, ny, nz) complex ndarray
        Image.
    grid : Grid
        Its lattice.
    smooth_mm : float
        Standard deviation of the blur, in mm.

    Returns
    -------
    (nx, ny, nz) float32 ndarray
        Real part.

    Examples
    --------
    >>> turned = np.ones((8, 8, 8)) * np.exp(0.5j)
    >>> bool(np.allclose(phase_corrected_real(turned, Grid.centred((8, 8, 8), 4.0)), 1.0, atol=1e-6))
    True
    """
    from scipy.ndimage import gaussian_filter

    image = image * np.exp(-1j * _quadratic_phase(image))
    widths = [smooth_mm / step for step in grid.voxel_mm]
    for _ in range(3):
        weighted = image * np.abs(image)
        smooth = gaussian_filter(weighted.real, widths) + 1j * gaussian_filter(weighted.imag, widths)
        size = np.abs(smooth)
        image = image * np.where(size > 0, smooth / np.where(size > 0, size, 1.0), 1.0).conj()
    return np.asarray(image.real, dtype=np.float32)


def _quadratic_phase(image: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    """Return the quadratic polynomial whose steps between neighbours fit those of the phase."""
    axes = [(np.arange(n) - n // 2) / n for n in image.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    terms = [np.broadcast_to(term, image.shape) for term in (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)]
    normal, right = np.zeros((9, 9)), np.zeros(9)
    for axis in range(3):
        if image.shape[axis] < 2:
            continue
        after = (slice(None),) * axis + (slice(1, None),)
        before = (slice(None),) * axis + (slice(None, -1),)
        product = image[after] * image[before].conj()
        weight = np.abs(product).ravel().astype(np.float64)
        slopes = np.stack([(term[after] - term[before]).ravel() for term in terms])
        normal += (slopes * weight) @ slopes.T
        right += (slopes * weight) @ np.angle(product).ravel()
    coefficients = np.linalg.lstsq(normal, right, rcond=None)[0]
    return np.asarray(sum(c * term for c, term in zip(coefficients, terms, strict=True)))


def coverage(trajectory: Trajectory, grid: Grid) -> float:
    """Return the share of Nyquist cells within the sphere of ``k_max`` that hold a sample.

    A cell has edges of one over the field of view.

    Parameters
    ----------
    trajectory : Trajectory
        Where k-space is sampled.
    grid : Grid
        Its field of view sets the cells.

    Returns
    -------
    float
        Share, 0 to 1.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import cartesian
    >>> coverage(cartesian((16, 16, 16), voxel_mm=4.0, readout_ms=5.0), Grid.centred((16, 16, 16), 4.0)) > 0.99
    True
    """
    extent = np.array(grid.fov_mm)
    half = np.ceil(trajectory.k_max_per_mm * extent).astype(int) + 1
    shape = 2 * half + 1
    cells = np.rint(trajectory.k_per_mm.reshape(-1, 3) * extent.astype(np.float32)).astype(np.int32) + half
    hit = np.zeros(int(shape.prod()), dtype=bool)
    hit[(cells[:, 0] * shape[1] + cells[:, 1]) * shape[2] + cells[:, 2]] = True
    axes = [(np.arange(n) - h) / fov for n, h, fov in zip(shape, half, extent, strict=True)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    limit = min(float(np.abs(trajectory.k_per_mm[..., axis]).max()) for axis in range(3))
    inside = distance <= limit
    return float(hit.reshape(shape)[inside].mean())


def _iterate(
    normal: Toeplitz, right: NDArray[np.complexfloating], steps: tuple[tuple[float, float], ...]
) -> tuple[NDArray[np.complexfloating], tuple[float, ...]]:
    """Follow conjugate gradients with given step lengths from zero."""
    image = np.zeros_like(right)
    residual, direction = right, right
    start = np.linalg.norm(right)
    history = []
    for alpha, beta in steps:
        image = image + np.float32(alpha) * direction
        residual = residual - np.float32(alpha) * normal(direction)
        direction = residual + np.float32(beta) * direction
        history.append(float(np.linalg.norm(residual) / start) if start > 0 else 0.0)
    return image, tuple(history)


def _conjugate_gradient_steps(
    normal: Toeplitz, right: NDArray[np.complexfloating], iterations: int
) -> tuple[tuple[float, float], ...]:
    residual, direction = right, right
    power = np.vdot(residual, residual).real
    steps = []
    for _ in range(iterations):
        mapped = normal(direction)
        alpha = power / np.vdot(direction, mapped).real
        residual = residual - np.float32(alpha) * mapped
        power, before = np.vdot(residual, residual).real, power
        beta = power / before
        direction = residual + np.float32(beta) * direction
        steps.append((float(alpha), float(beta)))
    return tuple(steps)


def _whitened(
    samples: NDArray[np.complexfloating], sigma_k: NDArray[np.float64]
) -> Iterator[NDArray[np.complexfloating]]:
    if samples.shape[0] == 1:
        yield samples[0]
        return
    if not (sigma_k > 0).all():
        empty = ", ".join(str(i) for i in np.flatnonzero(sigma_k <= 0))
        raise DataError(f"channel(s) {empty} hold no noise", hint="leave out channels that were switched off")
    for row in whitening(noise_covariance(samples)):
        yield np.tensordot(row.astype(np.complex64), samples, axes=(0, 0))


def _demodulation(kspace: KSpace, grid: Grid, offset_hz: float) -> NDArray[np.complex64] | np.float32:
    """Return what samples are multiplied by: the carrier of the object and the shift of the grid's centre."""
    ours, theirs = grid.affine[:3, :3] / grid.voxel_mm, kspace.grid.affine[:3, :3] / kspace.grid.voxel_mm
    if not np.allclose(ours, theirs, atol=1e-4):
        raise GeometryError(
            "the image grid has other axes than the raw data", hint="reconstruct on the grid of the acquisition"
        )
    shift = theirs.T @ (grid.origin_mm - kspace.grid.origin_mm)
    if offset_hz == 0.0 and np.abs(shift).max() < 1e-3:
        return np.float32(1.0)
    turns = kspace.trajectory.k_per_mm @ shift - offset_hz * kspace.trajectory.t_ms / 1000.0
    return np.asarray(np.exp(2j * np.pi * turns), dtype=np.complex64)


_UNITS = {
    1000.0: "cycles/m",
    2.0 * np.pi: "rad/mm",
    2000.0 * np.pi: "rad/m",
    10.0: "cycles/cm",
    20.0 * np.pi: "rad/cm",
}


def _check_extent(trajectory: Trajectory, grid: Grid) -> None:
    """Raise where the trajectory reaches beyond, or hardly into, the k-space of the grid."""
    voxel = np.array(grid.voxel_mm)
    reach = np.abs(trajectory.k_per_mm).max(axis=(0, 1)).astype(np.float64)
    if not np.isfinite(reach).all():
        raise DataError("the trajectory holds NaN or infinite positions", hint="export it again")
    ratio = float((reach * 2.0 * voxel).max())
    if 0.1 <= ratio <= 1.1:
        return
    guesses: dict[float, str] = {**_UNITS, float(voxel.min()): "units of the matrix (+-0.5)"}
    # A scan mostly reaches the Nyquist limit of its grid, so the factor nearest to the ratio is the likely one.
    distance, likely = min((abs(float(np.log(ratio / factor))), name) for factor, name in guesses.items())
    hint = f"positions are cycles/mm; these look like {likely}" if distance < 0.7 else "check unit and voxel size"
    raise DataError(
        f"the trajectory reaches {reach.max():.4g} cycles/mm, "
        f"a voxel of {voxel.min():.3g} mm resolves {0.5 / voxel.min():.4g}",
        hint=hint,
    )


def _radius(shape: tuple[int, int, int], voxel_mm: tuple[float, float, float]) -> NDArray[Any]:
    axes = [(np.arange(n) - n // 2) * step for n, step in zip(shape, voxel_mm, strict=True)]
    return np.asarray(np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True))))
