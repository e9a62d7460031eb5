"""The local GLM: least squares in a Gaussian neighbourhood of every voxel, drawn to the global fit.

``c(x) = inv(G * f f' / s^2 + P) (G * f y / s^2 + P c_global)`` with ``G`` a Gaussian of peak 1, ``s`` the noise and
``P`` the precision of a local concentration around the global one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.tissue._estimators import Estimator, means

if TYPE_CHECKING:
    from bids_sodium.tissue._noise import Noise
    from bids_sodium.tissue.partialvolume import PartialVolumeParams

__all__ = ["local_least_squares"]

Array: TypeAlias = NDArray[np.float64]


def local_least_squares(
    y: Array,
    F: Array,
    inside: NDArray[np.bool_],
    glm: Estimator,
    noise: Noise,
    p: PartialVolumeParams,
    voxel_mm: tuple[float, float, float],
) -> Estimator:
    """Return the local fits and, as weights of the regional means, their adjoint plus that of the global fit.

    The regional value is the mean of the map weighted with ``f^2``.
    """
    from scipy.ndimage import gaussian_filter

    n = len(F)
    where = np.nonzero(inside)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in where)
    within = inside[box]
    c_global = glm.W @ y
    width = p.local_sigma_mm / np.array(voxel_mm)
    peak = float(np.prod(np.sqrt(2 * np.pi) * width))  # from unit integral to unit peak
    # what is left of the global fit holds the variation that the local one is to follow: its structure is not noise
    inflation = 1.0 if noise.variance_factor is None else noise.variance_factor
    if noise.autocorrelation is not None:
        inflation *= max(1.0, float(noise.autocorrelation.sum()))
    # a noise-free image still has a model error; 1e-3 of the image keeps the ridge finite
    s2 = max((noise.sigma or 0.0) ** 2 * inflation, (1e-3 * float(np.abs(c_global).max())) ** 2)
    volume = np.zeros(within.shape)

    def smooth(values: Array) -> Array:
        volume[within] = values
        return np.asarray(peak * gaussian_filter(volume, width, mode="constant", truncate=3.0))[within]

    normal = np.empty((len(y), n, n))
    right = np.empty((len(y), n))
    for i in range(n):
        right[:, i] = smooth(F[i] * y) / s2
        for j in range(i, n):
            normal[:, i, j] = normal[:, j, i] = smooth(F[i] * F[j]) / s2
    spread = p.local_spread * np.maximum(np.abs(c_global), 1e-3 * np.abs(c_global).max())
    precision = np.diag(1.0 / spread**2)
    inverse = np.linalg.inv(normal + precision)
    c = np.einsum("xij,xj->xi", inverse, right + precision @ c_global)

    strong = 0.5 * F.max(axis=1, keepdims=True) <= F
    u = means(np.where(F > 0, F, 0.0) ** 2)
    W = np.empty_like(F)
    for t in range(n):
        back = u[t][:, None] * inverse[:, t, :]
        row = (back @ precision).sum(axis=0) @ glm.W
        for i in range(n):
            row = row + F[i] * smooth(back[:, i]) / s2
        W[t] = row
    weight = np.where(strong, F**2, 0.0)
    return Estimator(W, np.zeros(n), weight, c.T, np.zeros(n), has_residual=True, has_maps=True)
