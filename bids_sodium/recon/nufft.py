"""The non-uniform Fourier transform between an image and its k-space samples, and its normal operator.

Forward: ``s_j = V sum_x rho(x) exp(-2 pi i k_j . r_x)`` with the voxel volume ``V`` in mm3 and ``r`` in mm from voxel
``n // 2`` along the axes of the grid. The adjoint is the exact conjugate transpose. The normal operator
``A^H W A / V`` is a convolution, so that it costs two fast Fourier transforms of twice the size and no gridding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.core.errors import DataError

__all__ = ["Nufft", "Toeplitz"]

_SINGLE_PRECISION_FLOOR = 1e-6
_SMALL_GRID_FLOOR = 1e-4


class Nufft:
    """Forward and adjoint transform of one trajectory and grid.

    Parameters
    ----------
    trajectory : Trajectory
        Where k-space is sampled.
    grid : Grid
        Image lattice.
    eps : float
        Relative accuracy. Below 1e-6 the transform runs in double precision.
    threads : int
        Threads of one transform.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import plain_radial
    >>> operator = Nufft(plain_radial(8, 16, readout_ms=5.0, voxel_mm=8.0), Grid.centred((16, 16, 16), 8.0))
    >>> operator.forward(np.ones((16, 16, 16))).shape
    (8, 16)
    """

    def __init__(self, trajectory: Trajectory, grid: Grid, eps: float = 1e-5, *, threads: int = 1) -> None:
        self.trajectory = trajectory
        self.grid = grid
        self.eps = float(eps)
        self.threads = int(threads)
        self.dtype: Any = np.complex64 if eps >= _SINGLE_PRECISION_FLOOR else np.complex128
        self._real: Any = np.float32 if self.dtype is np.complex64 else np.float64
        self._voxel_mm3 = grid.voxel_ml * 1000.0
        self._shape = (trajectory.n_shots, trajectory.n_samples)
        self._points: tuple[NDArray[Any], ...] | None = None
        self._plans: dict[tuple[int, int], Any] = {}

    def forward(self, image: NDArray[Any]) -> NDArray[np.complexfloating]:
        """Return the samples (..., n_shots, n_samples) of images (..., nx, ny, nz); up to one leading axis."""
        stack = np.asarray(image)
        self._check(stack.shape, self.grid.shape, "image")
        samples = self._execute(2, stack, self.grid.shape)
        return self._scaled(samples.reshape(stack.shape[:-3] + self._shape))

    def adjoint(self, samples: NDArray[Any]) -> NDArray[np.complexfloating]:
        """Return the conjugate transpose of `forward` on samples (..., n_shots, n_samples)."""
        stack = np.asarray(samples)
        self._check(stack.shape, self._shape, "samples")
        image = self._execute(1, stack, (self._shape[0] * self._shape[1],))
        return self._scaled(image.reshape(stack.shape[:-2] + self.grid.shape))

    def gridded(self, samples: NDArray[Any]) -> NDArray[np.complexfloating]:
        """Return ``sum_j s_j exp(+2 pi i k_j . r)``, the adjoint without the voxel volume.

        With samples times their weights (1/mm3) this is an image of gain one.
        """
        stack = np.asarray(samples)
        self._check(stack.shape, self._shape, "samples")
        return self._execute(1, stack, (self._shape[0] * self._shape[1],)).reshape(stack.shape[:-2] + self.grid.shape)

    def toeplitz(self, weights: NDArray[np.floating]) -> Toeplitz:
        """Return the normal operator ``A^H W A / V`` for real weights, of gain one where they compensate density."""
        return self.toeplitz_of([weights])[0]

    def toeplitz_of(self, weights: Iterable[NDArray[np.floating]]) -> list[Toeplitz]:
        """Return the normal operator of each of several weightings."""
        doubled = self.grid.shape[0] * 2, self.grid.shape[1] * 2, self.grid.shape[2] * 2
        # A kernel good to 1e-4 is a normal operator good to 2e-5: the error of the lattice is spread over its samples.
        eps = max(self.eps, _SMALL_GRID_FLOOR) if self.dtype is np.complex64 else self.eps
        lattice = Nufft(self.trajectory, Grid(doubled, self.grid.affine), eps, threads=self.threads)
        scale = self._real(self._voxel_mm3)
        return [Toeplitz(lattice.gridded(one) * scale, threads=self.threads) for one in weights]

    def _scaled(self, values: NDArray[Any]) -> NDArray[Any]:
        values *= self._real(self._voxel_mm3)
        return values

    def _check(self, shape: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
        leading = len(shape) - len(expected)
        if leading not in (0, 1) or tuple(shape[leading:]) != tuple(expected):
            raise DataError(f"{what} of shape {shape} where {expected} is expected")

    def _execute(self, kind: int, values: NDArray[Any], expected: tuple[int, ...]) -> NDArray[Any]:
        flat = np.ascontiguousarray(values, dtype=self.dtype).reshape(-1, *expected)
        n = flat.shape[0]
        result: NDArray[Any] = np.asarray(self._plan(kind, n).execute(flat if n > 1 else flat[0]))
        return result

    def _plan(self, kind: int, n: int) -> Any:
        if (kind, n) not in self._plans:
            import finufft

            if self._points is None:
                self._points = tuple(self._angles(axis) for axis in range(3))
            plan = finufft.Plan(
                kind,
                self.grid.shape,
                n_trans=n,
                eps=self.eps,
                isign=1 if kind == 1 else -1,
                dtype=np.dtype(self.dtype).name,
                nthreads=self.threads,
                # The small upsampled grid is four times faster, but not accurate below 1e-4 in single precision.
                upsampfac=1.25 if self.eps >= _SMALL_GRID_FLOOR else 2.0,
            )
            plan.setpts(*self._points)
            self._plans[kind, n] = plan
        return self._plans[kind, n]

    def _angles(self, axis: int) -> NDArray[Any]:
        """Return ``2 pi k`` times the voxel size along one axis, multiplied in double and rounded once."""
        angles = np.empty(self._shape, dtype=self._real)
        step = 2.0 * np.pi * self.grid.voxel_mm[axis]
        np.multiply(self.trajectory.k_per_mm[..., axis], step, out=angles, dtype=np.float64, casting="same_kind")
        return angles.ravel()


class Toeplitz:
    """A convolution with a Hermitian kernel on the doubled lattice, ``y = crop(F^-1[Q F(pad x)])``.

    Parameters
    ----------
    kernel : (2 nx, 2 ny, 2 nz) complex ndarray
        Kernel, its centre at index ``n`` along each axis.
    threads : int
        Threads of one transform.

    Notes
    -----
    Half of the lattice is padding: transforms run axis by axis and leave out the lines that are zero or not kept.
    """

    def __init__(self, kernel: NDArray[np.complexfloating], *, threads: int = 1) -> None:
        from scipy import fft

        self.threads = threads
        self.shape = (kernel.shape[0] // 2, kernel.shape[1] // 2, kernel.shape[2] // 2)
        # The outermost plane (difference -n) meets no voxel; without it the spectrum of a Hermitian kernel is real.
        kernel = kernel.copy()
        kernel[0], kernel[:, 0], kernel[:, :, 0] = 0.0, 0.0, 0.0
        spectrum = fft.fftn(fft.ifftshift(kernel), workers=threads, overwrite_x=True)
        self._spectrum = np.ascontiguousarray(spectrum.real)

    def __call__(self, image: NDArray[np.complexfloating]) -> NDArray[np.complexfloating]:
        """Return the convolution, cropped to the image (..., nx, ny, nz)."""
        from scipy import fft

        nx, ny, nz = self.shape
        values = fft.fft(image, 2 * nz, axis=-1, workers=self.threads)
        values = fft.fft(values, 2 * ny, axis=-2, workers=self.threads)
        values = fft.fft(values, 2 * nx, axis=-3, workers=self.threads)
        values *= self._spectrum
        values = fft.ifft(values, axis=-3, workers=self.threads, overwrite_x=True)[..., :nx, :, :]
        values = fft.ifft(values, axis=-2, workers=self.threads)[..., :ny, :]
        return np.asarray(fft.ifft(values, axis=-1, workers=self.threads)[..., :nz])
