"""The methods of partial-volume correction on the image, each as a linear estimator of the concentrations.

An *estimator* is ``c = W y + c0``. Where a method is not linear (``rbv``, ``iy``, ``stc``), ``W`` is its derivative at
the image and ``c0`` the rest, so that noise and changes of the image propagate to first order. ``F`` are the columns
(n, voxels), ``P`` the shares of the voxels without point spread, ``y`` the image, all inside the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError

if TYPE_CHECKING:
    from bids_sodium.tissue.partialvolume import PartialVolumeParams

__all__ = [
    "Estimator",
    "csf_partition",
    "estimated_targets",
    "gaussian",
    "geometric_transfer",
    "independent",
    "iterative_yang",
    "least_squares",
    "means",
    "muller_gartner",
    "raw",
    "region_voxel",
    "shares_of",
    "single_target",
    "trimmed",
]

Array: TypeAlias = NDArray[np.float64]

_RIDGE = 0.01
_BATCH = 2000
_MOST_STEPS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Estimator:
    """A linear estimator ``c = W y + c0`` of the kept columns, and what it looked at.

    Parameters
    ----------
    W : (n, voxels) ndarray
        Weights.
    c0 : (n,) ndarray
        Constant part.
    weight : (n, voxels) ndarray
        How much a voxel counts towards the spread of a region, 0 where it does not.
    value : (n, voxels) ndarray
        What each voxel says about each region.
    csf_excluded : (n,) ndarray
        Share of the region that the CSF partition left out.
    has_residual : bool
        Whether ``y - c F`` means anything.
    has_maps : bool
        Whether ``value`` is a map of concentrations.
    """

    W: Array
    c0: Array
    weight: Array
    value: Array
    csf_excluded: Array
    has_residual: bool = False
    has_maps: bool = False


def independent(F: Array) -> NDArray[np.intp]:
    """Return the columns (rows of ``F``) that are neither empty nor a combination of the ones before them."""
    norm = np.sqrt((F**2).sum(axis=1))
    return independent_of(F @ F.T, norm)


def independent_of(gram: Array, norm: Array) -> NDArray[np.intp]:
    """Return the same for columns of which only the inner products are known."""
    # 1e-6: a column that holds less than one part in a million of the largest one is an empty tissue
    kept: list[int] = []
    for j in np.flatnonzero(norm > 1e-6 * max(float(norm.max(initial=0.0)), 1e-300)):
        if kept:
            inner = gram[np.ix_(kept, kept)]
            along = gram[kept, j] @ np.linalg.solve(inner, gram[kept, j])
            if gram[j, j] - along < 1e-8 * gram[j, j]:
                continue
        kept.append(int(j))
    return np.array(kept, dtype=np.intp)


def means(weight: Array) -> Array:
    """Return the rows that average with given weights, zero where all weights are."""
    total = weight.sum(axis=1, keepdims=True)
    return np.asarray(weight / np.where(total > 0, total, np.inf), dtype=np.float64)


def _cut(F: Array, threshold: float) -> Array:
    """Return the columns cut below a share of their largest value."""
    high = threshold * F.max(axis=1, keepdims=True) <= F
    return np.asarray(np.where(high, np.maximum(F, 0.0), 0.0), dtype=np.float64)


def raw(y: Array, F: Array, p: PartialVolumeParams) -> Estimator:
    """Return the mean weighted with the columns."""
    weight = _cut(F, p.weight_threshold)
    n = len(F)
    return Estimator(means(weight), np.zeros(n), weight, np.broadcast_to(y, F.shape), np.zeros(n))


def csf_partition(y: Array, F: Array, is_csf: NDArray[np.bool_], p: PartialVolumeParams) -> Estimator:
    """Return the same mean of ``(y - q C_csf) / (1 - q)`` where the CSF share ``q`` is below its limit."""
    q = np.clip(F[is_csf].sum(axis=0), 0.0, 1.0)
    weight = _cut(F, p.weight_threshold)
    allowed = q < p.csf_limit
    kept = np.where(is_csf[:, None] | allowed, weight, 0.0)
    total = weight.sum(axis=1)
    excluded = np.where(total > 0, 1.0 - kept.sum(axis=1) / np.where(total > 0, total, 1.0), 0.0)
    share = np.where(allowed, 1.0 - q, 1.0)
    partition = np.where(is_csf[:, None], y, (y - q * p.csf_mmol_l) / share)
    W = means(kept)
    c0 = -(W * np.where(is_csf[:, None], 0.0, q * p.csf_mmol_l / share)).sum(axis=1)
    return Estimator(W / np.where(is_csf[:, None], 1.0, share), c0, kept, partition, excluded)


def least_squares(y: Array, F: Array) -> Estimator:
    """Return ``c = inv(F F') F y``."""
    W = np.asarray(np.linalg.solve(F @ F.T, F), dtype=np.float64)
    residual = y - (W @ y) @ F
    # a voxel says c + r / f about a tissue, with weight f^2
    strong = 0.5 * F.max(axis=1, keepdims=True) <= F
    f = np.where(strong, F, 1.0)
    value = (W @ y)[:, None] + residual / f
    return Estimator(W, np.zeros(len(F)), np.where(strong, F**2, 0.0), value, np.zeros(len(F)), has_residual=True)


def geometric_transfer(y: Array, F: Array) -> Estimator:
    """Return ``c = inv(omega) m`` with ``m_i`` the mean of the image over region i, ``omega_ij`` that of column j."""
    region = np.zeros_like(F)
    winner = F.argmax(axis=0)
    positive = F.max(axis=0) > 0.5 * F.max()
    region[winner[positive], np.flatnonzero(positive)] = 1.0
    # a small lesion wins nowhere: its region is where it is at least half as strong as at its peak
    for i in np.flatnonzero(region.sum(axis=1) == 0):
        region[i] = F[i] >= 0.5 * F[i].max()
    M = means(region)
    omega = M @ F.T
    if np.linalg.cond(omega) > 1e8:
        raise EstimationError(
            f"the geometric transfer matrix of {len(F)} regions is singular", hint="merge regions that overlap"
        )
    W = np.asarray(np.linalg.solve(omega, M), dtype=np.float64)
    n = len(F)
    return Estimator(W, np.zeros(n), region, np.broadcast_to(y, F.shape), np.zeros(n), has_residual=True)


def muller_gartner(y: Array, F: Array, glm: Estimator, p: PartialVolumeParams) -> Estimator:
    """Return for each tissue the mean of ``(y - sum_other F C) / F`` where its share is large enough.

    The concentrations ``C`` of the other tissues are those of the least-squares fit, so that the whole is linear.
    """
    c = glm.W @ y
    enough = np.minimum(p.least_share, 0.5 * F.max(axis=1, keepdims=True)) <= F
    weight = np.where(enough, F, 0.0)
    f = np.where(enough, F, 1.0)
    value = c[:, None] + (y - c @ F) / f
    u = means(weight) / f
    spill = u @ F.T
    np.fill_diagonal(spill, 0.0)
    W = u - spill @ glm.W
    return Estimator(W, np.zeros(len(F)), weight, np.where(enough, value, np.nan), np.zeros(len(F)), has_maps=True)


def region_voxel(y: Array, F: Array, P: Array, regions: Estimator) -> Estimator:
    """Return the mean of ``y s / (h * s)``, where ``s`` is the image of the regional values without point spread."""
    return _rescaled(y, F, P, regions.W @ y + regions.c0, regions.W)


def iterative_yang(y: Array, F: Array, P: Array, iterations: int) -> Estimator:
    """Return the same mean with its regional values taken from itself, from the plain means on."""
    u = means(np.maximum(P, 0.0))
    c, W = u @ y, u
    for _ in range(iterations):
        step = _rescaled(y, F, P, c, W)
        c, W = step.W @ y + step.c0, step.W
    return _rescaled(y, F, P, c, W)


def _rescaled(y: Array, F: Array, P: Array, c: Array, W_c: Array) -> Estimator:
    """Return the regional means of ``y s(c) / b(c)``, ``s = c P``, ``b = c F``, and their derivative."""
    sharp, blurred = c @ P, c @ F
    # a tenth of the brightest: beyond, a small number divides another
    seen = blurred > 0.1 * float(np.median(np.abs(c)))
    below = np.where(seen, blurred, 1.0)
    factor = np.where(seen, sharp / below, 0.0)
    u = means(np.maximum(np.where(seen, P, 0.0), 0.0))
    image = y * factor
    # d(y s / b) = (s / b) dy + y (P / b - s F / b^2) dc
    slope = np.where(seen, y * (P - factor * F) / below, 0.0)
    W = u * factor + (u @ slope.T) @ W_c
    value = u @ image
    spread = np.broadcast_to(image, P.shape)
    return Estimator(W, value - W @ y, u, spread, np.zeros(len(P)), has_maps=True)


def single_target(y: Array, P: Array, blur: Callable[[Array], Array], iterations: int) -> Estimator:
    """Return the mean over each target after removal of what spills in from the rest and out to it, voxel by voxel.

    ``u <- (y - B max(u, 0)) / r`` from ``u = y`` with ``B = m H (1 - m) + (1 - m) H m``, ``m`` the target, ``H`` the
    point spread and ``r = m H m + (1 - m) H (1 - m)`` what either keeps of itself.
    """
    n = len(P)
    W, value, region = np.zeros_like(P), np.zeros_like(P), _targets(P)
    for t, target in enumerate(region):
        rest = 1.0 - target

        def spill(image: Array, target: Array = target, rest: Array = rest) -> Array:
            return target * blur(rest * image) + rest * blur(target * image)

        kept = target * blur(target) + rest * blur(rest)
        recovery = np.where(kept > 0.05, kept, np.inf)
        images = [y]
        for _ in range(iterations):
            images.append((y - spill(np.maximum(images[-1], 0.0))) / recovery)
        value[t] = images[-1]
        # the derivative of the mean by the adjoint of the iterations, last to first
        back = target / target.sum()
        row = np.zeros_like(y)
        for before in images[-2::-1]:
            back = back / recovery
            row += back
            back = -np.where(before > 0, spill(back), 0.0)
        W[t] = row + back
    c = (region * value).sum(axis=1) / region.sum(axis=1)
    return Estimator(W, c - W @ y, region, value, np.zeros(n), has_maps=True)


def estimated_targets(y: Array, P: Array, alike: Array) -> Estimator:
    """Return the mean over each target of ``(y - sum_other c H p) / H p``, the ``c`` of all targets those very means.

    Each target is corrected in turn with what is estimated for the others until nothing changes: that is the solution
    of ``A c = b`` with ``A_ts`` the mean of ``H p_s / H p_t`` over target ``t`` and ``b_t`` that of ``y / H p_t``.
    ``alike`` are the columns ``H p``.
    """
    # where little of the target reaches, a small number would divide noise
    enough = np.minimum(0.1, 0.5 * alike.max(axis=1, keepdims=True)) <= alike
    region = _targets(np.where(enough, P, 0.0))
    recovery = np.where(region > 0, alike, 1.0)
    u = means(region) / recovery
    A = u @ alike.T
    if np.linalg.cond(A) > 1e8:
        raise EstimationError(f"{len(P)} targets cannot be told apart", hint="merge regions that overlap")
    W = np.asarray(np.linalg.solve(A, u), dtype=np.float64)
    c = W @ y
    value = np.where(region > 0, c[:, None] + (y - c @ alike) / recovery, np.nan)
    n = len(P)
    return Estimator(W, np.zeros(n), region, value, np.zeros(n), has_maps=True)


def _targets(P: Array) -> Array:
    """Return the voxels of each region: where its share is the largest; a half of its peak where it nowhere is."""
    region = np.zeros_like(P)
    region[P.argmax(axis=0), np.arange(P.shape[1])] = P.max(axis=0) > 0
    for target, share in zip(region, P, strict=True):
        if not target.any():
            target[:] = share >= 0.5 * share.max()
    return region


def trimmed(y: Array, F: Array, inside: NDArray[np.bool_], glm: Estimator, p: PartialVolumeParams) -> Estimator:
    """Return the mean of local least-squares fits that leave out the voxels that fit worst.

    Around every voxel the columns that are there are fitted to a cube of voxels, the share of voxels with the smallest
    residuals is kept and fitted again until it stays the same (concentration steps). A weak ridge to the global fit
    decides where a cube holds one tissue only.
    """
    n, count = F.shape
    reach = p.mlts_voxels // 2
    number = np.full(tuple(s + 2 * reach for s in inside.shape), -1, dtype=np.intp)
    number[tuple(slice(reach, reach + s) for s in inside.shape)][inside] = np.arange(count)
    centre = np.argwhere(inside) + reach
    steps = np.indices((p.mlts_voxels,) * 3).reshape(3, -1).T - reach
    columns, image = np.column_stack([F, np.zeros(n)]), np.append(y, 0.0)
    prior = glm.W @ y
    values = np.empty((n, count))
    u = means(np.maximum(F, 0.0) ** 2)
    W = np.zeros((n, count + 1))
    back_to_prior = np.zeros((n, n))
    for start in range(0, count, _BATCH):
        batch = slice(start, min(start + _BATCH, count))
        where = number[tuple(np.moveaxis(centre[batch][:, None] + steps, -1, 0))]
        f, v = np.ascontiguousarray(np.moveaxis(columns[:, where], 0, 1)), image[where]
        there = where >= 0
        wanted = np.ceil(p.mlts_share * there.sum(axis=1)).astype(int)[:, None] - 1
        used = there
        for _ in range(_MOST_STEPS):
            c, inverse, ridge = _local_fits(f, v, used, prior)
            error = np.where(there, np.abs(v - np.matmul(c[:, None], f)[:, 0]), np.inf)
            again = error <= np.take_along_axis(np.sort(error, axis=1), wanted, axis=1)
            if (again == used).all():
                break
            used = again
        c, inverse, ridge = _local_fits(f, v, used, prior)
        values[:, batch] = c.T
        rows = u[:, batch, None] * np.moveaxis(inverse, 1, 0)
        back_to_prior += (rows * ridge).sum(axis=1)
        place = np.where(used, where, count).ravel()
        for t in range(n):
            each = np.matmul(rows[t][:, None], f)[:, 0] * used
            W[t] += np.bincount(place, each.ravel(), minlength=count + 1)
    whole = W[:, :count] + back_to_prior @ glm.W
    strong = 0.5 * F.max(axis=1, keepdims=True) <= F
    return Estimator(whole, np.zeros(n), np.where(strong, F**2, 0.0), values, np.zeros(n), True, True)


def _local_fits(f: Array, v: Array, used: NDArray[np.bool_], prior: Array) -> tuple[Array, Array, Array]:
    """Return the fit (x, n), the inverse of its normal matrix (x, n, n) and the ridge (x, n) of cubes of voxels."""
    masked = f * used[:, None]
    normal = np.matmul(masked, np.swapaxes(f, 1, 2))
    diagonal = np.arange(f.shape[1])
    size = normal[:, diagonal, diagonal]
    # a tissue with less than a twentieth of the cube's power is not looked for
    ridge = np.where(
        size > 0.05 * size.max(axis=1, keepdims=True), _RIDGE * size.mean(axis=1, keepdims=True), 1e3 * size.max()
    )
    normal[:, diagonal, diagonal] += np.maximum(ridge, 1e-12)
    inverse = np.linalg.inv(normal)
    right = np.matmul(masked, v[:, :, None])[..., 0] + ridge * prior
    return np.matmul(inverse, right[..., None])[..., 0], inverse, ridge


def shares_of(fractions: NDArray[np.floating], shape: tuple[int, ...]) -> Array:
    """Return the shares of the voxels, checked against the shape of the columns."""
    P = np.asarray(fractions, dtype=np.float64)
    if P.shape != shape:
        raise GeometryError(f"tissue fractions of shape {P.shape} for columns of shape {shape}")
    if not np.isfinite(P).all():
        raise DataError(f"{int((~np.isfinite(P)).sum())} values of the tissue fractions are NaN or infinite")
    return P


def gaussian(
    inside: NDArray[np.bool_], fwhm_mm: float, voxel_mm: tuple[float, float, float]
) -> Callable[[Array], Array]:
    """Return the convolution of values inside the mask, zero outside of it, with a Gaussian."""
    from scipy.ndimage import gaussian_filter

    if not fwhm_mm > 0:
        raise ConfigError(f"a point spread of {fwhm_mm} mm", hint="give a width above zero")
    width = fwhm_mm / np.sqrt(8.0 * np.log(2.0)) / np.array(voxel_mm)
    volume = np.zeros(inside.shape)

    def blur(values: Array) -> Array:
        volume[inside] = values
        return np.asarray(gaussian_filter(volume, width, mode="constant"))[inside]

    return blur
