"""Partial-volume correction: a sodium image and tissue columns in, regional concentrations with standard errors out.

Nouns: a *column* is the image that one tissue at 1 mmol/L would give on the sodium grid (its fraction map through the
scan's point spread, or through its whole acquisition and reconstruction), the *image* is the real part of the
calibrated reconstruction, not denoised, in mmol/L, a *nuisance* is a column that nobody asks about (soft tissue, vials,
a constant) but that explains signal. The model is ``y = F c + noise`` with one row a voxel and one column a tissue.

Every method is a linear estimator ``c = W y + c0``, so all of them share one error propagation,
``cov(c) = W S W'``, with ``S`` the covariance of the noise. Noise that is white in k-space is correlated between
neighbouring voxels once it has been filtered: ``S = sigma^2 R`` with ``R`` the convolution with the autocorrelation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import CSF_MMOL_L
from bids_sodium.core.data import Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError

__all__ = [
    "METHODS",
    "Corrected",
    "PartialVolumeParams",
    "TissueColumns",
    "correct",
    "fit_samples",
    "local",
    "muller_gartner",
    "noise_autocorrelation",
    "pooled",
    "region_voxel",
    "regional",
]

Array: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["raw", "csf", "gtm", "glm", "local"]

METHODS: tuple[Method, ...] = ("raw", "csf", "gtm", "glm", "local")
"""Names of the methods that `regional` knows."""


class TissueColumns(Protocol):
    """Anything with names and images, such as the columns of the reconstruction."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the tissues."""

    @property
    def images(self) -> NDArray[np.floating]:
        """Columns on the sodium grid, (n, nx, ny, nz)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialVolumeParams:
    """How regional concentrations are freed of partial volume."""

    methods: tuple[Method, ...] = ("raw", "csf", "gtm", "glm")
    """Methods to report: ``raw`` (fraction-weighted mean), ``csf`` (CSF partition, then the same mean), ``gtm``
    (geometric transfer matrix; Rousset 1998), ``glm`` (least squares over voxels), ``local`` (smooth local GLM)."""

    csf_mmol_l: float = CSF_MMOL_L
    """Sodium concentration of CSF that the CSF partition subtracts, in mmol/L. The other methods estimate it."""

    csf_limit: float = 0.5
    """Largest CSF share of a voxel that the CSF partition keeps: beyond it noise and segmentation errors are more than
    doubled by the division by ``1 - q``."""

    csf_name: str = "CSF"
    """Name of the CSF column."""

    weight_threshold: float = 0.1
    """Share of a column's largest value below which a voxel does not count towards the means ``raw`` and ``csf``: above
    the ringing of the point spread (Gibbs lobes reach 9 %), so that air is not averaged in."""

    autocorrelation_voxels: int = 6
    """Reach of the noise autocorrelation that is estimated from the residual where none is given, in voxels."""

    local_sigma_mm: float = 6.0
    """Width (standard deviation) of the Gaussian neighbourhood of the local GLM, in mm: the sodium point spread."""

    local_spread: float = 0.2
    """Prior standard deviation of a local concentration, as a share of the global one: 20 %, wide against the 2-4 %
    repeatability of the method (Riemer 2019) and the 10-30 % of disease."""


@dataclass(frozen=True, slots=True, eq=False)
class Corrected:
    """Regional concentrations of one method.

    Parameters
    ----------
    names : tuple of str
        Names of the columns.
    mmol_l : (n,) ndarray
        Concentration of each, in mmol/L; ``nan`` where the column is empty or cannot be told from the others.
    se : (n,) ndarray
        Standard errors, from noise and residual alone (calibration not included).
    covariance : (n, n) ndarray
        Covariance of the concentrations, in (mmol/L)^2.
    sd : (n,) ndarray
        Weighted standard deviation of the voxels of each region, in mmol/L.
    n_voxels : (n,) ndarray of int
        Sodium voxels that count towards the region (k-space samples for `fit_samples`); 0 for an empty one.
    csf_excluded_fraction : (n,) ndarray
        Share of the region that the CSF partition left out; 0 for the other methods.
    residual : ndarray
        Image minus model, in mmol/L, 0 outside the mask; empty for ``raw`` and ``csf``, which have no model.
    sigma : float
        Standard deviation of the noise that the standard errors rest on.
    method : str
        Name of the method.
    maps : (n, nx, ny, nz) ndarray
        Voxelwise concentrations of the local GLM, in mmol/L; empty for the other methods.
    """

    names: tuple[str, ...]
    mmol_l: Array
    se: Array
    covariance: Array
    sd: Array
    n_voxels: NDArray[np.int64]
    csf_excluded_fraction: Array
    residual: NDArray[np.generic]
    sigma: float
    method: str
    maps: NDArray[np.float32]

    def of(self, name: str) -> tuple[float, float]:
        """Return concentration and standard error of one column, in mmol/L."""
        i = self.names.index(name)
        return float(self.mmol_l[i]), float(self.se[i])


@dataclass(frozen=True, slots=True, eq=False)
class _Noise:
    """What the caller knows of the noise, or what the residual of the GLM tells."""

    sigma: float | None
    autocorrelation: NDArray[np.floating] | None
    variance_factor: float | None

    def covariance(self, W: Array, inside: NDArray[np.bool_]) -> Array:
        """Return ``W S W'`` for stationary noise."""
        variance = (self.sigma or 0.0) ** 2 * (1.0 if self.variance_factor is None else self.variance_factor)
        if self.autocorrelation is None:
            return np.asarray(variance * (W @ W.T))
        from scipy.signal import fftconvolve

        blurred = np.empty_like(W)
        image = np.zeros(inside.shape)
        for i, row in enumerate(W):
            image[inside] = row
            blurred[i] = fftconvolve(image, self.autocorrelation, mode="same")[inside]
        covariance = variance * (W @ blurred.T)
        return np.asarray(0.5 * (covariance + covariance.T))


@dataclass(frozen=True, slots=True, eq=False)
class _Estimator:
    """A linear estimator ``c = W y + c0`` of the kept columns, and what it looked at."""

    W: Array
    c0: Array
    weight: Array  # (n, voxels) how much a voxel counts towards the spread of a region, 0 where it does not
    value: Array  # (n, voxels) what each voxel says about each region
    csf_excluded: Array
    has_residual: bool


def _checked(
    image: NDArray[np.generic], columns: NDArray[np.floating], names: Sequence[str], mask: NDArray[np.bool_] | None
) -> tuple[Array, Array, NDArray[np.bool_]]:
    if np.iscomplexobj(image):
        raise DataError(
            "the image is complex", hint="correct its phase and take the real part; the magnitude is biased by noise"
        )
    y, F = np.asarray(image, dtype=np.float64), np.asarray(columns, dtype=np.float64)
    if F.shape[1:] != y.shape or F.shape[0] != len(names):
        raise GeometryError(f"image of shape {y.shape}, {len(names)} names and columns of shape {F.shape} do not fit")
    if len(set(names)) != len(names):
        raise DataError(f"a tissue is named twice in {', '.join(names)}")
    if not np.isfinite(F).all():
        raise DataError(f"{int((~np.isfinite(F)).sum())} values of the tissue columns are NaN or infinite")
    if mask is None:
        # beyond the reach of every column the image tells nothing about a tissue
        largest = np.abs(F).max(axis=0)
        inside = largest > 1e-3 * max(float(largest.max(initial=0.0)), 1e-12)
    else:
        if mask.shape != y.shape:
            raise GeometryError(f"image of shape {y.shape} but mask of shape {mask.shape}")
        inside = np.asarray(mask, dtype=bool)
    inside = inside & np.isfinite(y)
    if not inside.any():
        raise EstimationError("no voxel to fit", hint="check that tissue maps, mask and sodium image overlap")
    return y, F, inside


def _independent(F: Array) -> NDArray[np.intp]:
    """Return the columns (rows of ``F``) that are neither empty nor a combination of the ones before them."""
    norm = np.sqrt((F**2).sum(axis=1))
    gram = F @ F.T
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


def _weights(F: Array, threshold: float) -> Array:
    """Return the columns cut below a share of their largest value."""
    high = threshold * F.max(axis=1, keepdims=True) <= F
    return np.asarray(np.where(high, np.maximum(F, 0.0), 0.0), dtype=np.float64)


def _means(weight: Array) -> Array:
    """Return the rows that average with given weights, zero where all weights are."""
    total = weight.sum(axis=1, keepdims=True)
    return np.asarray(weight / np.where(total > 0, total, np.inf), dtype=np.float64)


def _raw(y: Array, F: Array, p: PartialVolumeParams) -> _Estimator:
    weight = _weights(F, p.weight_threshold)
    n = len(F)
    return _Estimator(_means(weight), np.zeros(n), weight, np.broadcast_to(y, F.shape), np.zeros(n), False)


def _csf_partition(y: Array, F: Array, q: Array, is_csf: NDArray[np.bool_], p: PartialVolumeParams) -> _Estimator:
    weight = _weights(F, p.weight_threshold)
    allowed = q < p.csf_limit
    kept = np.where(is_csf[:, None] | allowed, weight, 0.0)
    total = weight.sum(axis=1)
    excluded = np.where(total > 0, 1.0 - kept.sum(axis=1) / np.where(total > 0, total, 1.0), 0.0)
    share = np.where(allowed, 1.0 - q, 1.0)
    partition = np.where(is_csf[:, None], y, (y - q * p.csf_mmol_l) / share)
    W = _means(kept)
    c0 = -(W * np.where(is_csf[:, None], 0.0, q * p.csf_mmol_l / share)).sum(axis=1)
    return _Estimator(W / np.where(is_csf[:, None], 1.0, share), c0, kept, partition, excluded, False)


def _gtm(y: Array, F: Array) -> _Estimator:
    region = np.zeros_like(F)
    winner = F.argmax(axis=0)
    positive = F.max(axis=0) > 0.5 * F.max()
    region[winner[positive], np.flatnonzero(positive)] = 1.0
    # a small lesion wins nowhere: its region is where it is at least half as strong as at its peak
    for i in np.flatnonzero(region.sum(axis=1) == 0):
        region[i] = F[i] >= 0.5 * F[i].max()
    M = _means(region)
    omega = M @ F.T
    if np.linalg.cond(omega) > 1e8:
        raise EstimationError(
            f"the geometric transfer matrix of {len(F)} regions is singular", hint="merge regions that overlap"
        )
    W = np.asarray(np.linalg.solve(omega, M), dtype=np.float64)
    return _Estimator(W, np.zeros(len(F)), region, np.broadcast_to(y, F.shape), np.zeros(len(F)), True)


def _glm(y: Array, F: Array) -> _Estimator:
    W = np.asarray(np.linalg.solve(F @ F.T, F), dtype=np.float64)
    residual = y - (W @ y) @ F
    # a voxel says c + r / f about a tissue, with weight f^2
    strong = 0.5 * F.max(axis=1, keepdims=True) <= F
    f = np.where(strong, F, 1.0)
    value = (W @ y)[:, None] + residual / f
    return _Estimator(W, np.zeros(len(F)), np.where(strong, F**2, 0.0), value, np.zeros(len(F)), True)


def noise_autocorrelation(
    noise: NDArray[np.floating], reach_voxels: int = 4, *, mask: NDArray[np.bool_] | None = None
) -> Array:
    """Estimate the spatial autocorrelation of noise.

    ``R(l) = sum n(x) n(x + l) / sum n(x)^2``, with each sum divided by its number of pairs and tapered with a Parzen
    window along each axis, which keeps the noise covariance positive.

    Parameters
    ----------
    noise : (nx, ny, nz) or (m, nx, ny, nz) ndarray
        One noise image or several, of zero mean: reconstructed noise, or the residual of a fit.
    reach_voxels : int
        Largest lag along each axis, in voxels.
    mask : (nx, ny, nz) ndarray of bool, optional
        Voxels that count, by default all.

    Returns
    -------
    (2 r + 1, 2 r + 1, 2 r + 1) ndarray
        Autocorrelation, 1 at its centre.

    Raises
    ------
    EstimationError
        If the noise is zero everywhere.

    Examples
    --------
    >>> white = np.random.default_rng(0).normal(size=(20, 20, 20))
    >>> kernel = noise_autocorrelation(white, 2)
    >>> kernel.shape, float(kernel[2, 2, 2]), bool(abs(kernel[1, 2, 2]) < 0.05)
    ((5, 5, 5), 1.0, True)
    """
    from scipy.fft import irfftn, next_fast_len, rfftn

    images = np.asarray(noise, dtype=np.float64)
    images = images[None] if images.ndim == 3 else images
    inside = np.ones(images.shape[1:], dtype=bool) if mask is None else mask
    full = tuple(next_fast_len(n + reach_voxels, real=True) for n in inside.shape)
    lag = np.arange(-reach_voxels, reach_voxels + 1)

    def correlate(image: Array) -> Array:
        spectrum = rfftn(image, full)
        return np.asarray(irfftn(np.abs(spectrum) ** 2, full)[np.ix_(lag, lag, lag)])

    pairs = np.maximum(correlate(inside.astype(np.float64)), 0.5)
    total = np.sum([correlate(np.where(inside, image, 0.0)) for image in images], axis=0) / pairs
    centre = (reach_voxels,) * 3
    if not total[centre] > 0:
        raise EstimationError("the noise is zero everywhere, so it has no autocorrelation")
    u = np.abs(lag) / (reach_voxels + 1)
    parzen = np.where(u <= 0.5, 1 - 6 * u**2 * (1 - u), 2 * (1 - u) ** 3)
    taper = parzen[:, None, None] * parzen[None, :, None] * parzen[None, None, :]
    return np.asarray(total / total[centre] * taper)


def _assembled(
    names: Sequence[str],
    kept: NDArray[np.intp],
    estimator: _Estimator,
    y: Array,
    *,
    covariance: Array,
    residual: NDArray[np.generic],
    sigma: float,
    method: str,
    maps: NDArray[np.float32] | None = None,
) -> Corrected:
    """Return the result for all columns, with nan where a column was left out."""
    n = len(names)

    def spread(values: Array, fill: float) -> Array:
        out = np.full(n, fill)
        out[kept] = values
        return out

    weight = estimator.weight
    total = weight.sum(axis=1)
    safe = np.where(total > 0, total, 1.0)
    mean = (weight * estimator.value).sum(axis=1) / safe
    variance = (weight * (estimator.value - mean[:, None]) ** 2).sum(axis=1) / safe
    empty = (weight > 0).sum(axis=1) == 0
    mmol_l = np.where(empty, np.nan, estimator.W @ y + estimator.c0)
    full = np.full((n, n), np.nan)
    full[np.ix_(kept, kept)] = covariance
    full[np.ix_(kept[empty], kept)] = np.nan
    full[np.ix_(kept, kept[empty])] = np.nan
    count = np.zeros(n, dtype=np.int64)
    count[kept] = (weight > 0).sum(axis=1)
    return Corrected(
        names=tuple(names),
        mmol_l=spread(mmol_l, np.nan),
        se=np.sqrt(np.maximum(np.diag(full), 0.0)),
        covariance=full,
        sd=spread(np.where(empty, np.nan, np.sqrt(variance)), np.nan),
        n_voxels=count,
        csf_excluded_fraction=spread(estimator.csf_excluded, 0.0),
        residual=residual,
        sigma=sigma,
        method=method,
        maps=np.empty((0, 0, 0, 0), dtype=np.float32) if maps is None else maps,
    )


def regional(
    image: NDArray[np.floating],
    columns: NDArray[np.floating],
    names: Sequence[str],
    params: PartialVolumeParams | None = None,
    *,
    method: Method,
    sigma: float | None = None,
    mask: NDArray[np.bool_] | None = None,
    autocorrelation: NDArray[np.floating] | None = None,
    variance_factor: float | None = None,
    voxel_mm: tuple[float, float, float] | None = None,
) -> Corrected:
    """Estimate the concentration of each tissue with one method.

    ======= ===========================================================================================
    raw     ``sum(f_t y) / sum(f_t)``: the fraction-weighted mean, no correction
    csf     the same mean of ``(y - q C_csf) / (1 - q)`` over voxels with a CSF share ``q`` below a limit
    gtm     ``c = inv(omega) m`` with ``m_i`` the mean over region i, ``omega_ij`` that of column j
    glm     ``c = inv(F'F) F'y``: least squares over voxels; CSF and nuisances are estimated too
    local   the GLM in a Gaussian neighbourhood of every voxel, drawn to the global one (see `local`)
    ======= ===========================================================================================

    A column that is empty, or a combination of the columns before it, is left out: its concentration is ``nan`` and
    its voxels are 0; the other columns are estimated without it.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Sodium concentration, real part, not denoised, in mmol/L. Voxels that are not finite are left out.
    columns : (n, nx, ny, nz) ndarray
        Signal of each tissue at 1 mmol/L, already through the point spread, dimensionless.
    names : sequence of str
        Names of the columns.
    params : PartialVolumeParams
        Settings of the methods.
    method : {"raw", "csf", "gtm", "glm", "local"}
        Method.
    sigma : float, optional
        Standard deviation of the noise, in mmol/L; from the residual of the GLM where it is not given, which then
        includes what the model does not explain.
    mask : (nx, ny, nz) ndarray of bool, optional
        Voxels to use, by default all that any column reaches.
    autocorrelation : (mx, my, mz) ndarray, optional
        Spatial autocorrelation of the noise, odd shape, 1 at its centre (`noise_autocorrelation`). Where neither it
        nor ``variance_factor`` is given it is estimated from the residual of the GLM.
    variance_factor : float, optional
        Factor on the variance of the concentrations for correlated noise, instead of an autocorrelation: for noise
        that is white in k-space but filtered, about the volume of the noise correlation over that of a voxel; 1 is
        white noise.
    voxel_mm : tuple of float, optional
        Edge lengths of a voxel in mm; only ``local`` needs it.

    Returns
    -------
    Corrected
        Concentrations with standard errors.

    Raises
    ------
    ConfigError
        If the method is unknown or ``local`` lacks ``voxel_mm``.
    DataError, GeometryError
        If image and columns do not fit, or the image is complex.
    EstimationError
        If no voxel or no column is left.

    References
    ----------
    Rousset, Ma and Evans 1998, Journal of Nuclear Medicine (geometric transfer matrix);
    Labbe 1998 (least squares); Paling 2013 (CSF partition).

    Examples
    --------
    >>> grey = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    >>> columns = np.stack([grey, 1 - grey])
    >>> fit = regional(45 * grey + 30 * (1 - grey), columns, ("CGM", "NAWM"), method="glm", variance_factor=1.0)
    >>> fit.mmol_l.round(6)
    array([45., 30.])
    """
    p = PartialVolumeParams() if params is None else params
    if method not in METHODS:
        raise ConfigError(f"unknown partial-volume method {method!r}", hint=f"use one of {', '.join(METHODS)}")
    if method == "local":
        if voxel_mm is None:
            raise ConfigError("the local GLM needs the voxel size", hint="give voxel_mm")
        return local(
            image, columns, names, p, voxel_mm=voxel_mm, sigma=sigma, mask=mask,
            autocorrelation=autocorrelation, variance_factor=variance_factor,
        )  # fmt: skip
    y_all, F_all, inside = _checked(image, columns, names, mask)
    y = y_all[inside]
    kept = _kept(F_all, inside)
    F = F_all[kept][:, inside]
    glm, level, noise = _noise(y, F, inside, _Noise(sigma, autocorrelation, variance_factor), p)
    if method == "raw":
        estimator = _raw(y, F, p)
    elif method == "csf":
        is_csf = np.array([names[i] == p.csf_name for i in kept])
        q = np.clip(F[is_csf].sum(axis=0), 0.0, 1.0)
        estimator = _csf_partition(y, F, q, is_csf, p)
    else:
        estimator = _gtm(y, F) if method == "gtm" else glm
    residual = np.zeros(inside.shape if estimator.has_residual else (0, 0, 0))
    if estimator.has_residual:
        residual[inside] = y - (estimator.W @ y + estimator.c0) @ F
    covariance = noise.covariance(estimator.W, inside)
    return _assembled(names, kept, estimator, y, covariance=covariance, residual=residual, sigma=level, method=method)


def _kept(F_all: Array, inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    kept = _independent(F_all[:, inside])
    if kept.size == 0:
        raise EstimationError("every tissue column is empty", hint="check that the tissue maps lie on the sodium image")
    if kept.size >= int(inside.sum()):
        raise EstimationError(f"{int(inside.sum())} voxels cannot determine {kept.size} concentrations")
    return kept


def _noise(
    y: Array, F: Array, inside: NDArray[np.bool_], given: _Noise, p: PartialVolumeParams
) -> tuple[_Estimator, float, _Noise]:
    """Return the GLM, the noise SD and the noise: what is not given comes from the residual of the GLM."""
    if given.sigma is not None and not (np.isfinite(given.sigma) and given.sigma >= 0):
        raise DataError(f"the noise standard deviation is {given.sigma}", hint="give a finite number in mmol/L")
    kernel = given.autocorrelation
    if kernel is not None and (kernel.ndim != 3 or any(n % 2 == 0 for n in kernel.shape)):
        raise DataError(f"the noise autocorrelation has shape {kernel.shape}, it needs three odd lengths")
    glm = _glm(y, F)
    r = y - (glm.W @ y) @ F
    sigma = float(np.sqrt((r**2).sum() / (len(y) - len(F)))) if given.sigma is None else float(given.sigma)
    # a residual at rounding error has no structure to measure
    if kernel is None and given.variance_factor is None and (r**2).sum() > 1e-20 * (y**2).sum():
        image = np.zeros(inside.shape)
        image[inside] = r
        kernel = noise_autocorrelation(image, p.autocorrelation_voxels, mask=inside)
    return glm, sigma, _Noise(sigma, kernel, given.variance_factor)


def correct(
    image: NDArray[np.floating] | Volume,
    columns: TissueColumns,
    params: PartialVolumeParams | None = None,
    *,
    sigma: float | None = None,
    mask: NDArray[np.bool_] | None = None,
    autocorrelation: NDArray[np.floating] | None = None,
    variance_factor: float | None = None,
) -> Corrected:
    """Estimate the concentration of each tissue by least squares over voxels (the method ``glm`` of `regional`).

    Parameters
    ----------
    image : Volume or (nx, ny, nz) ndarray
        Sodium concentration, real part, not denoised, in mmol/L.
    columns : TissueColumns
        Names and images of the tissues on the same grid.
    params, sigma, mask, autocorrelation, variance_factor
        As for `regional`.

    Returns
    -------
    Corrected
        Concentrations with standard errors.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> grey = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    >>> columns = SimpleNamespace(names=("CGM", "NAWM"), images=np.stack([grey, 1 - grey]))
    >>> correct(45 * grey + 30 * (1 - grey), columns, variance_factor=1.0).of("CGM")[0].__round__(6)
    45.0
    """
    data = image.data if isinstance(image, Volume) else image
    return regional(
        np.asarray(data),
        np.asarray(columns.images),
        tuple(columns.names),
        params,
        method="glm",
        sigma=sigma,
        mask=mask,
        autocorrelation=autocorrelation,
        variance_factor=variance_factor,
    )


def fit_samples(
    samples: NDArray[np.complexfloating],
    columns_k: NDArray[np.complexfloating],
    weights: NDArray[np.floating] | None = None,
    *,
    names: Sequence[str] | None = None,
    sigma: float | None = None,
) -> Corrected:
    """Estimate concentrations straight from k-space.

    Real ``c`` that minimises ``sum w |s - sum c_t a_t|^2``. Flat weights are maximum likelihood for white noise;
    density weights make the fit robust against misregistration. Noise is white in the samples whatever the weights,
    so ``cov(c) = sigma^2 inv(N) Re(A' W^2 A) inv(N)`` with ``N = Re(A' W A)``.

    Parameters
    ----------
    samples : (shots, samples) complex ndarray
        Measured signal, phase-corrected, scaled so that a column at 1 mmol/L has the size of ``columns_k``.
    columns_k : (n, shots, samples) complex ndarray
        Signal of each tissue at 1 mmol/L on the same trajectory.
    weights : (shots, samples) ndarray, optional
        Weights, not negative; flat by default.
    names : sequence of str, optional
        Names of the tissues, by default ``tissue1`` and so on.
    sigma : float, optional
        Standard deviation of the noise in the real part of a sample; from the residual where it is not given.

    Returns
    -------
    Corrected
        Concentrations with standard errors; ``residual`` has the shape of the samples.

    Raises
    ------
    DataError, GeometryError
        If shapes do not fit or a weight is negative.
    EstimationError
        If every column is empty.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> A = rng.normal(size=(2, 30, 20)) + 1j * rng.normal(size=(2, 30, 20))
    >>> fit_samples(40 * A[0] + 30 * A[1], A).mmol_l.round(6)
    array([40., 30.])
    """
    s, A = np.asarray(samples), np.asarray(columns_k)
    n = A.shape[0]
    labels = tuple(f"tissue{i + 1}" for i in range(n)) if names is None else tuple(names)
    if A.shape[1:] != s.shape or len(labels) != n:
        raise GeometryError(f"samples of shape {s.shape}, {len(labels)} names and columns of shape {A.shape}")
    w = np.ones(s.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != s.shape or not np.isfinite(w).all() or (w < 0).any():
        raise DataError(f"weights of shape {w.shape} with least value {w.min():.3g} on samples of shape {s.shape}")
    root = np.sqrt(w).ravel()
    flat = A.reshape(n, -1)
    stacked = np.concatenate([flat.real, flat.imag], axis=1).astype(np.float64)
    weighted = stacked * np.tile(root, 2)
    kept = _independent(weighted)
    if kept.size == 0:
        raise EstimationError("every tissue column is empty in k-space")
    a, aw = stacked[kept], weighted[kept]
    y = np.concatenate([s.real.ravel(), s.imag.ravel()]).astype(np.float64)
    W = np.linalg.solve(aw @ aw.T, aw * np.tile(root, 2))
    c = W @ y
    r = y - c @ a
    freedom = y.size - kept.size
    level = float(np.sqrt((r**2).sum() / freedom)) if sigma is None else float(sigma)
    covariance = level**2 * (W @ W.T)
    residual = (r[: s.size] + 1j * r[s.size :]).reshape(s.shape)
    value = np.broadcast_to(c[:, None], a.shape)
    estimator = _Estimator(W, np.zeros(kept.size), np.ones(a.shape), value, np.zeros(kept.size), True)
    result = _assembled(
        labels, kept, estimator, y, covariance=covariance, residual=residual, sigma=level, method="k-space"
    )
    n_samples = np.where(np.isfinite(result.mmol_l), s.size, 0).astype(np.int64)
    return replace(result, n_voxels=n_samples, sd=np.where(n_samples > 0, 0.0, np.nan))


def local(
    image: NDArray[np.floating],
    columns: NDArray[np.floating],
    names: Sequence[str],
    params: PartialVolumeParams | None = None,
    *,
    voxel_mm: tuple[float, float, float],
    sigma: float | None = None,
    mask: NDArray[np.bool_] | None = None,
    autocorrelation: NDArray[np.floating] | None = None,
    variance_factor: float | None = None,
) -> Corrected:
    """Fit the GLM in a Gaussian neighbourhood of every voxel.

    ``c(x) = inv(G * f f' / s^2 + P) (G * f y / s^2 + P c_global)`` with ``G`` a Gaussian of peak 1, ``s`` the noise and
    ``P`` the precision of a local concentration around the global one. The regional value is the mean of the map
    weighted with ``f^2``. It follows concentrations that vary smoothly over the brain, where one value a tissue would
    leave the variation in its neighbours.

    Parameters
    ----------
    image, columns, names, params, sigma, mask, autocorrelation, variance_factor
        As for `regional`.
    voxel_mm : tuple of float
        Edge lengths of a voxel, in mm.

    Returns
    -------
    Corrected
        Regional concentrations with standard errors, and voxelwise ``maps``.

    Examples
    --------
    >>> x = np.linspace(0, 1, 12)
    >>> grey = np.broadcast_to(np.sin(9 * x)[:, None, None] ** 2, (12, 12, 12))
    >>> columns = np.stack([grey, 1 - grey])
    >>> fit = local(45 * grey + 30 * (1 - grey), columns, ("CGM", "NAWM"), voxel_mm=(4, 4, 4), sigma=1.0)
    >>> fit.mmol_l.round(3)
    array([45., 30.])
    """
    from scipy.ndimage import gaussian_filter

    p = PartialVolumeParams() if params is None else params
    y_all, F_all, inside = _checked(image, columns, names, mask)
    kept = _kept(F_all, inside)
    n = kept.size
    f = np.where(inside, F_all[kept], 0.0)
    y3 = np.where(inside, y_all, 0.0)
    F, y = f[:, inside], y3[inside]
    glm, level, noise = _noise(y, F, inside, _Noise(sigma, autocorrelation, variance_factor), p)
    c_global = glm.W @ y
    width = p.local_sigma_mm / np.array(voxel_mm)
    peak = float(np.prod(np.sqrt(2 * np.pi) * width))  # from unit integral to unit peak
    # what is left of the global fit holds the variation that the local one is to follow: its structure is not noise
    inflation = 1.0 if variance_factor is None else variance_factor
    if autocorrelation is not None:
        inflation *= max(1.0, float(autocorrelation.sum()))
    # a noise-free image still has a model error; 1e-3 of the image keeps the ridge finite
    s2 = max(level**2 * inflation, (1e-3 * float(np.abs(c_global).max())) ** 2)

    def smooth(volume: Array) -> Array:
        return np.asarray(peak * gaussian_filter(volume, width, mode="constant", truncate=3.0))

    normal = np.empty((int(inside.sum()), n, n))
    right = np.empty((normal.shape[0], n))
    for i in range(n):
        right[:, i] = smooth(f[i] * y3)[inside] / s2
        for j in range(i, n):
            normal[:, i, j] = normal[:, j, i] = smooth(f[i] * f[j])[inside] / s2
    spread = p.local_spread * np.maximum(np.abs(c_global), 1e-3 * np.abs(c_global).max())
    precision = np.diag(1.0 / spread**2)
    inverse = np.linalg.inv(normal + precision)
    c = np.einsum("xij,xj->xi", inverse, right + precision @ c_global)

    strong = 0.5 * F.max(axis=1, keepdims=True) <= F
    u = _means(np.where(F > 0, F, 0.0) ** 2)
    # the regional mean is linear in y: its weights are the adjoint of the local fits plus those of the global one
    W = np.empty_like(F)
    volume = np.zeros(inside.shape)
    for t in range(n):
        back = u[t][:, None] * inverse[:, t, :]
        row = (back @ precision).sum(axis=0) @ glm.W
        for i in range(n):
            volume[inside] = back[:, i]
            row = row + F[i] * smooth(volume)[inside] / s2
        W[t] = row
    maps = np.full((len(names), *inside.shape), np.nan, dtype=np.float32)
    for t, k in enumerate(kept):
        maps[k][inside] = c[:, t]
    residual = np.zeros(inside.shape)
    residual[inside] = y - np.einsum("xi,ix->x", c, F)
    weight = np.where(strong, F**2, 0.0)
    estimator = _Estimator(W, np.zeros(n), weight, c.T, np.zeros(n), True)
    covariance = noise.covariance(W, inside)
    return _assembled(
        names, kept, estimator, y, covariance=covariance, residual=residual, sigma=level, method="local", maps=maps
    )


def region_voxel(
    image: NDArray[np.floating], columns: NDArray[np.floating], fractions: NDArray[np.floating], mmol_l: Array
) -> Array:
    """Return the region-based voxelwise image ``y s / (h * s)``, ``s`` the image of the regional values.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Sodium concentration, in mmol/L.
    columns, fractions : (n, nx, ny, nz) ndarray
        Tissue columns with, and tissue fractions without, the point spread.
    mmol_l : (n,) ndarray
        Regional concentrations, in mmol/L; columns whose value is not finite are left out.

    Returns
    -------
    (nx, ny, nz) ndarray
        Corrected image in mmol/L; 0 where the model gives less than a thousandth of its largest signal.

    References
    ----------
    Thomas 2011, European Journal of Nuclear Medicine and Molecular Imaging (region-based voxel-wise correction).
    """
    known = np.isfinite(mmol_l)
    sharp = np.tensordot(mmol_l[known], np.asarray(fractions, dtype=np.float64)[known], axes=1)
    blurred = np.tensordot(mmol_l[known], np.asarray(columns, dtype=np.float64)[known], axes=1)
    seen = blurred > 1e-3 * blurred.max(initial=0.0)
    return np.asarray(np.where(seen, image * sharp / np.where(seen, blurred, 1.0), 0.0))


def muller_gartner(
    image: NDArray[np.floating],
    columns: NDArray[np.floating],
    names: Sequence[str],
    mmol_l: Array,
    *,
    tissue: str,
    least_share: float = 0.3,
) -> Array:
    """Return the voxelwise concentration of one tissue, ``(y - sum_other f C) / f``.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Sodium concentration, in mmol/L.
    columns : (n, nx, ny, nz) ndarray
        Tissue columns.
    names : sequence of str
        Their names.
    mmol_l : (n,) ndarray
        Regional concentrations, in mmol/L; columns whose value is not finite are left out.
    tissue : str
        The tissue wanted.
    least_share : float
        Share of the tissue below which a voxel is not divided.

    Returns
    -------
    (nx, ny, nz) ndarray
        Concentration in mmol/L, ``nan`` where the tissue's share is too small.

    References
    ----------
    Muller-Gartner 1992, Journal of Cerebral Blood Flow and Metabolism.
    """
    if tissue not in names:
        raise DataError(f"no column of {tissue!r} among {', '.join(names)}")
    F = np.asarray(columns, dtype=np.float64)
    i = list(names).index(tissue)
    others = [j for j in range(len(names)) if j != i and np.isfinite(mmol_l[j])]
    f = F[i]
    enough = f >= least_share
    rest = np.tensordot(mmol_l[others], F[others], axes=1)
    return np.asarray(np.where(enough, (image - rest) / np.where(enough, f, 1.0), np.nan))


def pooled(corrected: Corrected, parts: Mapping[str, Sequence[str]], volume_ml: Mapping[str, float]) -> Corrected:
    """Append tissues made of others, such as grey matter of cortex and deep grey, as volume-weighted means.

    ``c = sum(V_t c_t) / sum(V_t)`` with its covariance; parts that have no value are left out of the sum.

    Parameters
    ----------
    corrected : Corrected
        Concentrations of the parts.
    parts : mapping of str to sequence of str
        Names of the parts of each new tissue, for example ``{"GM": ("CGM", "DGM"), "WM": ("NAWM", "L")}``.
    volume_ml : mapping of str to float
        Volume of each part, in mL.

    Returns
    -------
    Corrected
        The same with the new tissues behind; their ``sd`` spans spread within and between the parts.

    Examples
    --------
    >>> grey = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    >>> columns = np.stack([grey, 1 - grey])
    >>> fit = regional(45 * grey + 30 * (1 - grey), columns, ("CGM", "NAWM"), method="glm", variance_factor=1.0)
    >>> round(pooled(fit, {"brain": ("CGM", "NAWM")}, {"CGM": 600, "NAWM": 300}).of("brain")[0], 6)
    40.0
    """
    n = len(corrected.names)
    rows = [np.eye(n)]
    sd, count, excluded = list(corrected.sd), list(corrected.n_voxels), list(corrected.csf_excluded_fraction)
    known = np.isfinite(corrected.mmol_l)
    for members in parts.values():
        share = np.zeros(n)
        for member in members:
            if member in corrected.names and known[corrected.names.index(member)]:
                share[corrected.names.index(member)] = volume_ml.get(member, 0.0)
        if not share.sum() > 0:
            rows.append(np.full((1, n), np.nan))
            sd.append(np.nan)
            count.append(0)
            excluded.append(0.0)
            continue
        share = share / share.sum()
        use = share > 0
        mean = share[use] @ corrected.mmol_l[use]
        rows.append(share[None])
        sd.append(float(np.sqrt(share[use] @ (corrected.sd[use] ** 2 + (corrected.mmol_l[use] - mean) ** 2))))
        count.append(int(corrected.n_voxels[use].sum()))
        excluded.append(float(share[use] @ corrected.csf_excluded_fraction[use]))
    T = np.concatenate(rows)
    values = T @ np.where(known, corrected.mmol_l, 0.0)
    covariance = T @ np.where(known[:, None] & known[None, :], corrected.covariance, 0.0) @ T.T
    missing = np.concatenate([~known, np.isnan(T[n:]).any(axis=1)])
    values[missing] = np.nan
    covariance[missing, :] = np.nan
    covariance[:, missing] = np.nan
    return replace(
        corrected,
        names=(*corrected.names, *parts),
        mmol_l=values,
        se=np.sqrt(np.maximum(np.diag(covariance), 0.0)),
        covariance=covariance,
        sd=np.array(sd, dtype=np.float64),
        n_voxels=np.array(count, dtype=np.int64),
        csf_excluded_fraction=np.array(excluded, dtype=np.float64),
    )
