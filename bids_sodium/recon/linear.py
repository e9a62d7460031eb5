"""One fixed linear map from k-space to an image, and its noise.

The recommended map is the weighted adjoint ``A^H W s`` with a filter over k-space. Weighted conjugate gradients on
``A^H W A x = A^H W s``, stopped early, take their steps from a head-sized object with noise on the same trajectory,
whatever the data. Either map is linear, its noise follows from the weights alone, and tissue maps can be put through
the very map that made the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import ConfigError
from bids_sodium.recon.coils import COMBINATIONS
from bids_sodium.recon.density import FILTERS, WeightParams, filter_response, gain, kspace_filter, sample_weights
from bids_sodium.recon.iteration import Steps, follow, steps_of
from bids_sodium.recon.nufft import Nufft, Toeplitz
from bids_sodium.recon.offresonance import FieldNufft, FieldToeplitz
from bids_sodium.recon.sampling import check_extent
from bids_sodium.recon.trajectory import delayed

__all__ = ["Linear", "ReconstructionParams"]

_MODES = ("recommended", "paper")
_SOLVERS = ("cg", "adjoint", "tv", "dtv")
_FREQUENCIES = ("auto", "off")
_NOISE_ACCURACY = 0.004


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionParams:
    """How k-space becomes an image."""

    mode: str = "recommended"
    """``recommended`` as set below; ``paper``: weighted adjoint without filter, the gridding of the stroke study (Nagel
    2009, doi:10.1002/mrm.22157) and of the MS study's 3D cones (Riemer 2014, doi:10.1007/s10334-013-0395-2)."""

    method: str = "adjoint"
    """``adjoint``: weighted adjoint (gridding); ``cg``: weighted conjugate gradients; ``tv``: total variation; ``dtv``:
    directional total variation, whose edges a 1H image tells. With refined weights the adjoint is nearer to the truth
    than five iterations on the stroke protocol (brain RMSE 3.63 against 3.80 mmol/L at SNR 20, filter as below), whose
    gaps between spokes conjugate gradients fill with zeros, and equal on 3 mm cones (4.21 and 4.20); see
    tests/bench/fidelity.py."""

    iterations: int = 5
    """Conjugate-gradient iterations; more of them amplify noise."""

    filter: str = "gaussian"
    """K-space filter against ringing: ``none``, ``gaussian``, ``hamming`` or ``hann``; ``tv`` and ``dtv`` use none."""

    filter_width: float = 0.7
    """Width of the filter as a share of k_max; the standard deviation of the Gaussian."""

    tv_weight: float = 1.0
    """Weight of the variation in ``tv`` and ``dtv``, in standard deviations of the weighted adjoint image's noise."""

    tv_reason: str = ""
    """Why ``tv_weight`` is above 1, which may hide lesions; it must then be said."""

    tv_iterations: int = 60
    """Most iterations of ``tv`` and ``dtv``."""

    tv_tolerance: float = 0.003
    """Change of the image, root mean square in standard deviations of the noise, at which ``tv`` and ``dtv`` end."""

    tv_edge: float = 0.05
    """Step of the 1H image between voxels that counts as an edge in ``dtv``, as a share of its 99th percentile."""

    coils: str = "adaptive"
    """Combination of receive channels: ``adaptive`` (Walsh 2000), ``sense`` (Pruessmann 2001, iterated as by ``cg``) or
    ``sos`` (sum of squares); ``tv`` and ``dtv`` use the sensitivities of ``sense``."""

    centre_frequency: str = "auto"
    """``auto``: the off-resonance of the object is estimated where ``offset_hz`` is 0; ``off``: it is not."""

    offset_hz: float = 0.0
    """Off-resonance of the object against the receiver's centre frequency, in Hz, where it is known."""

    field_map: str = "auto"
    """``auto``: off-resonance is corrected voxel by voxel where the session has a field map; ``off``: it is not."""

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
            ("estimate of the centre frequency", self.centre_frequency, _FREQUENCIES),
            ("use of the field map", self.field_map, _FREQUENCIES),
        ):
            if value not in known:
                raise ConfigError(f"unknown {what} '{value}'", hint=f"choose one of {', '.join(known)}")
        for name in ("iterations", "tv_iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", hint="give at least one")
        if self.filter != "none" and not self.filter_width > 0:
            raise ConfigError(f"a k-space filter of width {self.filter_width:g}", hint="give a share of k_max above 0")
        for name in ("tv_weight", "tv_tolerance", "tv_edge"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} is {getattr(self, name):g}", hint="give a number above 0")
        if self.tv_weight > 1.0 and not self.tv_reason.strip():
            raise ConfigError(
                f"tv_weight is {self.tv_weight:g}, which hides lesions",
                hint="give at most 1, or say in tv_reason why it is more",
            )

    @property
    def solver(self) -> str:
        """The method in use, mode considered."""
        return "adjoint" if self.mode == "paper" else self.method

    @property
    def apodisation(self) -> str:
        """The filter in use, mode and method considered."""
        return "none" if self.mode == "paper" or self.method in ("tv", "dtv") else self.filter

    @property
    def regularised(self) -> bool:
        """Whether the method in use is not linear, so that a linear image is made beside its own."""
        return self.solver in ("tv", "dtv")

    @property
    def needs_prior(self) -> bool:
        """Whether the method in use looks at a 1H image."""
        return self.solver == "dtv"

    @property
    def linear(self) -> ReconstructionParams:
        """The same with a linear method: the weighted adjoint in place of total variation."""
        return replace(self, method="adjoint") if self.method in ("tv", "dtv") else self


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
        Method, filter and weights; the adjoint in place of a method that is not linear.
    field_hz : (nx, ny, nz) ndarray, optional
        Off-resonance of sodium in each voxel, see `bids_sodium.recon.offresonance`.
    threads : int
        Threads of a transform.

    Attributes
    ----------
    nufft : Nufft or FieldNufft
        The transform between image and samples.

    Raises
    ------
    DataError
        If the trajectory does not fit the grid, which mostly means a wrong unit, or the field map does not.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
    >>> recon = Linear(spokes, Grid.centred((32, 32, 32), 8.0))
    >>> recon(np.zeros((500, 128), np.complex64)).shape
    (32, 32, 32)
    """

    def __init__(
        self,
        trajectory: Trajectory,
        grid: Grid,
        params: ReconstructionParams | None = None,
        *,
        field_hz: NDArray[np.floating] | None = None,
        threads: int = 1,
    ) -> None:
        self.params = (ReconstructionParams() if params is None else params).linear
        check_extent(trajectory, grid)
        self.trajectory = delayed(trajectory, self.params.delay_ms)
        self.grid = grid
        self.threads = threads
        self.field_hz = field_hz
        nufft = Nufft(self.trajectory, grid, self.params.accuracy, threads=threads)
        self.nufft: Nufft | FieldNufft = nufft if field_hz is None else FieldNufft(nufft, field_hz)

    def __call__(self, samples: NDArray[np.complexfloating]) -> NDArray[np.complex64]:
        """Return the image (..., nx, ny, nz) of samples (..., n_shots, n_samples); up to one leading axis."""
        if samples.ndim == 3:
            return np.stack([self.solve(one)[0] for one in samples])
        return self.solve(samples)[0]

    def solve(self, samples: NDArray[np.complexfloating]) -> tuple[NDArray[np.complex64], tuple[float, ...]]:
        """Return the image of one channel and the relative residual after each iteration."""
        if self.params.solver == "adjoint":
            return self.nufft.gridded(self._sample_factor * samples).astype(np.complex64, copy=False), ()
        image, residuals = follow(self.normal, self.weighted(samples), self.steps)
        return self.filtered(image), residuals

    def weighted(self, samples: NDArray[np.complexfloating]) -> NDArray[np.complex64]:
        """Return the weighted adjoint image ``A^H W s`` without the filter."""
        return self.nufft.gridded(self.weights.astype(np.float32) * samples).astype(np.complex64, copy=False)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Sample weights (n_shots, n_samples), in 1/mm3, without the filter."""
        return sample_weights(self.trajectory, self.grid, self.params.weights, threads=self.threads)

    @cached_property
    def normal(self) -> Toeplitz | FieldToeplitz:
        """The weighted normal operator."""
        return self.nufft.toeplitz(self.weights)

    @cached_property
    def steps(self) -> Steps:
        """Step lengths of conjugate gradients for a noisy ball of the size of a head."""
        return steps_of(self.normal, self.normal(self.probe()), self.params.iterations)

    def probe(self) -> NDArray[np.complex64]:
        """Return a ball of value one of the size of a head, in noise of 0.1."""
        noise = np.random.default_rng(0).standard_normal((2, *self.grid.shape), dtype=np.float32)
        ball = self.inside + np.float32(0.1) * (noise[0] + 1j * noise[1])
        return np.asarray(ball, dtype=np.complex64)

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """Voxels in a centred ball of the size of a head."""
        axes = [(np.arange(n) - n // 2) * step for n, step in zip(self.grid.shape, self.grid.voxel_mm, strict=True)]
        square = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True))
        return np.asarray(square < (self.params.weights.ball_mm / 2.0) ** 2)

    @cached_property
    def gain(self) -> float:
        """Response of a uniform ball under the sample weights."""
        return gain(self.trajectory, self.weights, self.params.weights.ball_mm)

    @cached_property
    def adjoint_gain(self) -> float:
        """Standard deviation of the weighted adjoint's real part per unit of that of the samples, without filter."""
        return float(np.sqrt((self.weights**2).sum()))

    @cached_property
    def noise_gain(self) -> float:
        """Standard deviation of the image's real part per unit of that of the samples, in 1/mm3.

        Exact for the adjoint; for conjugate gradients the root mean square over a centred ball of the images of white
        noise, with a relative standard error below half a percent.
        """
        if self.params.solver == "adjoint":
            return float(np.sqrt((self._sample_factor.astype(np.float64) ** 2).sum()))
        rng = np.random.default_rng(0)
        power = []
        for _ in range(self.noise_draws):
            noise = rng.standard_normal((*self.weights.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
            image = self.solve(noise)[0][self.inside]
            power.append(np.mean(np.abs(image).astype(np.float64) ** 2) / 2.0)
        return float(np.sqrt(np.mean(power)))

    @property
    def noise_draws(self) -> int:
        """Images of noise whose mean square over the ball is known well enough.

        One image holds as many independent values as there are cells of k-space, about half of them after the filter.
        """
        ball_mm3 = float(self.inside.sum()) * self.grid.voxel_ml * 1000.0
        cells = 0.5 * ball_mm3 * 4.0 / 3.0 * np.pi * self.trajectory.k_max_per_mm**3
        return max(1, int(np.ceil(0.25 / (cells * _NOISE_ACCURACY**2))))

    def filtered(self, image: NDArray[np.complexfloating]) -> NDArray[np.complex64]:
        """Return an image after the filter over k-space."""
        if self.params.apodisation == "none":
            return image.astype(np.complex64, copy=False)
        from scipy import fft

        spectrum = fft.fftn(image, workers=self.threads)
        spectrum *= self._image_filter
        return np.asarray(fft.ifftn(spectrum, workers=self.threads, overwrite_x=True), dtype=np.complex64)

    @cached_property
    def _sample_factor(self) -> NDArray[np.float32]:
        window = kspace_filter(self.trajectory, self.params.apodisation, self.params.filter_width)
        return (self.weights * window).astype(np.float32)

    @cached_property
    def _image_filter(self) -> NDArray[np.float32]:
        axes: list[NDArray[Any]] = [
            np.fft.fftfreq(n, step) for n, step in zip(self.grid.shape, self.grid.voxel_mm, strict=True)
        ]
        k = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
        share = k / self.trajectory.k_max_per_mm
        return filter_response(share, self.params.apodisation, self.params.filter_width).astype(np.float32)
