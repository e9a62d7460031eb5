"""ComBat: site effects of many features shrunk towards each other; Harmonised, SiteEffects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._rows import as_matrix, labels_of

__all__ = ["Harmonised", "combat"]

Float = NDArray[np.float64]
_CONVERGED = 1e-4
"""Relative change at which the posterior iteration ends, as in sva 3.46."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Harmonised:
    """Features without their site effects."""

    values: Float
    """Harmonised features, shape (n, features)."""
    sites: tuple[str, ...]
    """Sites, in the order of the site effects."""
    n_per_site: NDArray[np.intp]
    """Rows of each site; ComBat wants at least 10."""
    shift: Float
    """Shrunken additive site effects in standard deviations, shape (sites, features)."""
    scale: Float
    """Shrunken multiplicative site effects (variance ratios), shape (sites, features)."""
    shift_raw: Float
    """Additive site effects before shrinking."""
    scale_raw: Float
    """Multiplicative site effects before shrinking."""
    pooled_sd: Float
    """Residual standard deviation of each feature, shape (features,)."""
    converged: bool
    """Whether the posterior iteration ended."""


def combat(
    Y: ArrayLike,
    site: Sequence[Any] | NDArray[Any],
    X: ArrayLike | None = None,
    *,
    parametric: bool = True,
    mean_only: bool = False,
    reference: str | None = None,
) -> Harmonised:
    """Remove site effects from many features by empirical Bayes.

    Y_ijg = a_g + X b_g + c_ig + d_ig e_ijg: shifts c and scales d of the features of a site share a prior. The standard
    errors of a later analysis do not know of the harmonisation; a model with sites is the better choice for few
    features.

    Parameters
    ----------
    Y : array_like
        Features, shape (n, features), none missing.
    site : sequence
        Site of each row, none missing.
    X : array_like, optional
        Covariates whose effects are kept, shape (n, k), without a column of ones.
    parametric : bool, optional
        Normal and inverse-gamma priors; otherwise the empirical distribution over features.
    mean_only : bool, optional
        Shift the sites, leave their variances.
    reference : str, optional
        Site that stays as it is and to which the others are brought.

    Returns
    -------
    Harmonised
        Harmonised features and site effects, equal to those of the R package sva.

    Raises
    ------
    DataError
        If a value is missing or the reference is not a site.
    EstimationError
        If there are fewer than 2 sites or features, a site has a single row, a feature does not vary within a site, or
        sites and covariates are confounded.

    References
    ----------
    Johnson WE, Li C, Rabinovic A. Adjusting batch effects in microarray expression data using empirical Bayes methods.
    Biostatistics 2007. https://doi.org/10.1093/biostatistics/kxj037
    Fortin JP, et al. Harmonization of multi-site diffusion tensor imaging data. NeuroImage 2017.
    https://doi.org/10.1016/j.neuroimage.2017.08.047

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Y = rng.normal(40, 3, size=(60, 8))
    >>> site = np.repeat(["a", "b"], 30)
    >>> Y[site == "b"] += 5
    >>> after = combat(Y, site).values
    >>> bool(abs(after[site == "a"].mean() - after[site == "b"].mean()) < 0.5)
    True
    """
    data = as_matrix(Y, "Y")
    codes, sites, missing = labels_of(site, "site")
    n, features = data.shape
    if codes.size != n:
        raise DataError(f"the columns differ in length: Y {n}, site {codes.size}")
    covariates = np.empty((n, 0)) if X is None else as_matrix(X, "X")
    if covariates.shape[0] != n:
        raise DataError(f"the columns differ in length: Y {n}, X {covariates.shape[0]}")
    gone = missing | np.isnan(data).any(axis=1) | np.isnan(covariates).any(axis=1)
    if gone.any():
        raise DataError(f"{int(gone.sum())} of {n} rows are incomplete", hint="harmonise the complete rows")
    if reference is not None and reference not in sites:
        raise DataError(f"the reference {reference!r} is not among the sites {', '.join(sites)}")
    k = sites.size
    size = np.bincount(codes, minlength=k)
    _check(data, codes, sites, size)

    ref = None if reference is None else int(np.flatnonzero(sites == reference)[0])
    member = (codes[:, None] == np.arange(k)).astype(np.float64)
    batch = member.copy()
    if ref is not None:
        batch[:, ref] = 1.0
    varying = covariates[:, np.ptp(covariates, axis=0) > 0] if covariates.shape[1] else covariates
    design = np.column_stack([batch, varying])
    scaled = design / np.linalg.norm(design, axis=0)
    if np.linalg.matrix_rank(scaled, tol=1e-10) < design.shape[1]:
        raise EstimationError(
            f"{k} sites and {varying.shape[1]} covariates are confounded in {n} rows, so that site effects cannot be "
            "told apart",
            hint="leave out the covariate that differs only between sites",
        )
    B = np.linalg.lstsq(design, data, rcond=None)[0]
    residual = data - design @ B
    if ref is None:
        grand = size / n @ B[:k]
        variance = np.mean(residual**2, axis=0)
    else:
        grand = B[ref]
        variance = np.mean(residual[codes == ref] ** 2, axis=0)
    sd = np.sqrt(variance)
    standing = grand + varying @ B[k:]
    z = (data - standing) / sd
    shift_raw = np.linalg.lstsq(batch, z, rcond=None)[0]
    scale_raw = np.ones((k, features))
    if not mean_only:
        scale_raw = np.array([z[codes == i].var(axis=0, ddof=1) for i in range(k)])
    shift, scale, converged = np.zeros((k, features)), np.ones((k, features)), True
    for i in range(k):
        if i == ref:
            continue
        rows = z[codes == i]
        if not parametric:
            shift[i], scale[i] = _empirical(rows, shift_raw[i], scale_raw[i])
        elif mean_only:
            spread = shift_raw[i].var(ddof=1)
            shift[i] = (spread * shift_raw[i] + shift_raw[i].mean()) / (spread + 1)
        else:
            shift[i], scale[i], done = _posterior(rows, shift_raw[i], scale_raw[i])
            converged &= done
    values = (z - batch @ shift) / np.sqrt(scale[codes]) * sd + standing
    if ref is not None:
        values[codes == ref] = data[codes == ref]
    return Harmonised(
        values=values,
        sites=tuple(str(s) for s in sites),
        n_per_site=size.astype(np.intp),
        shift=shift,
        scale=scale,
        shift_raw=shift_raw,
        scale_raw=scale_raw,
        pooled_sd=sd,
        converged=converged,
    )


def _check(data: Float, codes: NDArray[np.intp], sites: NDArray[Any], size: NDArray[np.intp]) -> None:
    if sites.size < 2 or data.shape[1] < 2:
        raise EstimationError(f"ComBat needs at least 2 sites and 2 features, found {sites.size} and {data.shape[1]}")
    if size.min() < 2:
        raise EstimationError(f"site {sites[int(size.argmin())]} has {int(size.min())} row, needs at least 2")
    for i, name in enumerate(sites):
        still = np.ptp(data[codes == i], axis=0) == 0
        if still.any():
            raise EstimationError(f"{int(still.sum())} of {data.shape[1]} features do not vary at site {name}")


def _posterior(rows: Float, shift: Float, scale: Float) -> tuple[Float, Float, bool]:
    """Iterate the posterior means of shift and scale under normal and inverse-gamma priors fitted by moments."""
    n = rows.shape[0]
    centre, spread = shift.mean(), shift.var(ddof=1)
    mean, variance = scale.mean(), scale.var(ddof=1)
    a, b = (2 * variance + mean**2) / variance, (mean * variance + mean**3) / variance
    old_shift, old_scale = shift, scale
    square, total = np.sum(rows**2, axis=0), rows.sum(axis=0)
    for _ in range(1000):
        new_shift = (spread * n * shift + old_scale * centre) / (spread * n + old_scale)
        left = square - 2 * new_shift * total + n * new_shift**2
        new_scale = (left / 2 + b) / (n / 2 + a - 1)
        # the signed denominator is sva's own: only increasing shifts hold the iteration open
        change = max(
            float(np.max(np.abs(new_shift - old_shift) / old_shift)),
            float(np.max(np.abs(new_scale - old_scale) / old_scale)),
        )
        old_shift, old_scale = new_shift, new_scale
        if change <= _CONVERGED:
            return old_shift, old_scale, True
    return old_shift, old_scale, False


def _empirical(rows: Float, shift: Float, scale: Float) -> tuple[Float, Float]:
    """Return posterior means over the other features' raw effects, each weighted by its likelihood."""
    n, features = rows.shape
    square, total = np.sum(rows**2, axis=0), rows.sum(axis=0)
    left = square[:, None] - 2 * total[:, None] * shift + n * shift**2
    log_weight = -n / 2 * np.log(2 * np.pi * scale) - left / (2 * scale)
    log_weight[np.arange(features), np.arange(features)] = -np.inf
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight @ shift, weight @ scale
