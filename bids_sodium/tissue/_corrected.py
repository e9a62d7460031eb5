"""Concentrations with standard errors: what a method of partial-volume correction returns, and sums of tissues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import GeometryError
from bids_sodium.tissue._estimators import Estimator
from bids_sodium.tissue._noise import Noise
from bids_sodium.tissue._samples import SampleMoments, fit_moments

__all__ = ["Corrected", "assembled", "of_samples", "pooled", "shrunk"]

Array: TypeAlias = NDArray[np.float64]


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
        Standard errors from noise, residual and all doubts (calibration not included).
    covariance : (n, n) ndarray
        Covariance of the concentrations, in (mmol/L)^2.
    sd : (n,) ndarray
        Weighted standard deviation of the voxels of each region, in mmol/L; 0 for fits to k-space, which have no
        voxels.
    n_voxels : (n,) ndarray of int
        Sodium voxels that count towards the region (samples for fits to k-space); 0 for an empty one.
    csf_excluded_fraction : (n,) ndarray
        Share of the region that the CSF partition left out; 0 for the other methods.
    residual : ndarray
        Image minus model, in mmol/L, 0 outside the mask; empty for methods that have no model of the image.
    sigma : float
        Standard deviation of the noise that the standard errors rest on.
    method : str
        Name of the method.
    maps : (n, nx, ny, nz) ndarray
        Voxelwise concentrations in mmol/L, ``nan`` where there is none; empty for methods of regions.
    parts : dict of ndarray
        Standard errors by source: ``noise`` (and residual), and the name of every doubt.
    """

    names: tuple[str, ...]
    mmol_l: Array
    se: Array
    covariance: Array
    sd: Array
    n_voxels: NDArray[np.int64]
    csf_excluded_fraction: Array
    residual: NDArray[np.floating]
    sigma: float
    method: str
    maps: NDArray[np.float32]
    parts: dict[str, Array] = field(default_factory=dict)

    def of(self, name: str) -> tuple[float, float]:
        """Return concentration and standard error of one column, in mmol/L."""
        i = self.names.index(name)
        return float(self.mmol_l[i]), float(self.se[i])


def of_samples(found: SampleMoments, names: Sequence[str], method: str, sigma: float | None) -> Corrected:
    """Return the fit to the moments; columns that are not asked for are nuisances."""
    missing = [name for name in names if name not in found.names]
    if missing:
        raise GeometryError(f"the k-space has no column of {', '.join(missing)}", hint="give one for every tissue")
    fit = fit_moments(found, density=method == "kspace-density", sigma=sigma)
    covariance = fit.covariance.copy()
    se_of = {"noise": np.sqrt(np.maximum(np.diag(covariance), 0.0))}
    for source, moved in fit.moved.items():
        covariance += moved @ moved.T
        se_of[source] = np.sqrt((moved**2).sum(axis=1))
    n = len(names)
    place = {name: i for i, name in enumerate(fit.names)}
    which = [place.get(name) for name in names]
    known = np.array([i is not None for i in which])
    take = np.array([i for i in which if i is not None], dtype=np.intp)
    full = np.full((n, n), np.nan)
    full[np.ix_(known, known)] = covariance[np.ix_(take, take)]

    def spread(values: Array) -> Array:
        out = np.full(n, np.nan)
        out[known] = values[take]
        return out

    return Corrected(
        names=tuple(names),
        mmol_l=spread(fit.c),
        se=np.sqrt(np.maximum(np.diag(full), 0.0)),
        covariance=full,
        sd=np.where(known, 0.0, np.nan),
        n_voxels=np.where(known, found.n_samples, 0).astype(np.int64),
        csf_excluded_fraction=np.zeros(n),
        residual=np.empty((0, 0, 0)),
        sigma=fit.sigma,
        method=method,
        maps=np.empty((0, 0, 0, 0), dtype=np.float32),
        parts={source: spread(values) for source, values in se_of.items()},
    )


def assembled(
    names: Sequence[str],
    kept: NDArray[np.intp],
    estimator: Estimator,
    *,
    y: Array,
    F: Array,
    inside: NDArray[np.bool_],
    noise: Noise,
    doubts: Mapping[str, Array],
    method: str,
) -> Corrected:
    """Return the result for all columns, with nan where a column was left out."""
    n = len(names)
    weight, value = estimator.weight, np.where(estimator.weight > 0, estimator.value, 0.0)
    total = weight.sum(axis=1)
    safe = np.where(total > 0, total, 1.0)
    mean = (weight * value).sum(axis=1) / safe
    variance = (weight * (value - mean[:, None]) ** 2).sum(axis=1) / safe
    empty = (weight > 0).sum(axis=1) == 0
    c = estimator.W @ y + estimator.c0
    covariance = noise.covariance(estimator.W, inside)
    se_of = {"noise": np.sqrt(np.maximum(np.diag(covariance), 0.0))}
    for source, change in doubts.items():
        moved = estimator.W @ change.T
        covariance = covariance + moved @ moved.T
        se_of[source] = np.sqrt((moved**2).sum(axis=1))
    full = np.full((n, n), np.nan)
    full[np.ix_(kept, kept)] = covariance
    full[kept[empty]], full[:, kept[empty]] = np.nan, np.nan

    def spread(values: Array, fill: float = np.nan) -> Array:
        out = np.full(n, fill)
        out[kept] = np.where(empty, fill, values)
        return out

    residual = np.zeros(inside.shape if estimator.has_residual else (0, 0, 0))
    if estimator.has_residual:
        local = estimator.has_maps and estimator.value.shape == F.shape
        residual[inside] = y - (np.einsum("ix,ix->x", estimator.value, F) if local else c @ F)
    maps = np.empty((0, 0, 0, 0), dtype=np.float32)
    if estimator.has_maps:
        maps = np.full((n, *inside.shape), np.nan, dtype=np.float32)
        for row, k in zip(estimator.value, kept, strict=True):
            maps[k][inside] = row
    count = np.zeros(n, dtype=np.int64)
    count[kept] = (weight > 0).sum(axis=1)
    return Corrected(
        names=tuple(names),
        mmol_l=spread(c),
        se=np.sqrt(np.maximum(np.diag(full), 0.0)),
        covariance=full,
        sd=spread(np.sqrt(variance)),
        n_voxels=count,
        csf_excluded_fraction=spread(estimator.csf_excluded, 0.0),
        residual=residual,
        sigma=float(noise.sigma or 0.0),
        method=method,
        maps=maps,
        parts={source: spread(values) for source, values in se_of.items()},
    )


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
        The same with the new tissues behind; their ``sd`` spans spread within and between the parts, and ``parts`` of
        the standard error are left out.

    Examples
    --------
    >>> from bids_sodium.tissue.partialvolume import regional
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
        parts={},
    )


def shrunk(corrected: Corrected, contrasts: NDArray[np.floating], covariance: NDArray[np.floating]) -> Corrected:
    """Return the concentrations given that contrasts of them are near nought, such as neighbours that are alike.

    With prior ``H c ~ N(0, S)`` the best linear predictor is ``c - K H c``, its covariance ``V - K H V``, with
    ``K = V H' (H V H' + S)^-1``: what the scan tells well stays, what it hardly tells leans on the others.

    Parameters
    ----------
    corrected : Corrected
        Concentrations ``c`` with covariance ``V``.
    contrasts : (m, n) ndarray
        Rows of ``H``; those that touch a concentration without a value do not count.
    covariance : (m, m) ndarray
        Covariance ``S`` of the contrasts between and within persons, in (mmol/L)^2.

    Returns
    -------
    Corrected
        The same with other concentrations, standard errors and covariance; ``parts`` are left out.

    Raises
    ------
    GeometryError
        If the shapes do not fit.

    References
    ----------
    Robinson GK. That BLUP is a good thing: the estimation of random effects. Statist Sci 1991;6:15-32,
    doi:10.1214/ss/1177011926.

    Examples
    --------
    >>> from bids_sodium.tissue.partialvolume import regional
    >>> share = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    >>> image = 45 * share + 30 * (1 - share)
    >>> fit = regional(image, np.stack([share, 1 - share]), ("a", "b"), method="glm", sigma=1.0)
    >>> alike = shrunk(fit, np.array([[1.0, -1.0]]), np.array([[1e-8]]))
    >>> round(alike.of("a")[0] - alike.of("b")[0], 3)
    0.0
    """
    n = len(corrected.names)
    H, S = np.asarray(contrasts, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if H.ndim != 2 or H.shape[1] != n or S.shape != (len(H), len(H)):
        raise GeometryError(f"contrasts of shape {H.shape} with a covariance of {S.shape} for {n} concentrations")
    known = np.isfinite(corrected.mmol_l)
    use = ~(H[:, ~known] != 0).any(axis=1)
    H, S = H[np.ix_(use, known)], S[np.ix_(use, use)]
    c, V = corrected.mmol_l.copy(), corrected.covariance.copy()
    within = V[np.ix_(known, known)]
    gain = np.linalg.solve(H @ within @ H.T + S, H @ within).T
    c[known] -= gain @ (H @ c[known])
    within = within - gain @ H @ within
    V[np.ix_(known, known)] = 0.5 * (within + within.T)
    return replace(corrected, mmol_l=c, se=np.sqrt(np.maximum(np.diag(V), 0.0)), covariance=V, parts={})
