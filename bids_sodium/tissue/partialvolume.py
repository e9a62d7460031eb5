"""Partial-volume correction: a sodium image and tissue columns in, regional concentrations with standard errors out.

Nouns: a *column* is the image that one tissue at 1 mmol/L would give on the sodium grid (its fraction map through the
scan's point spread, or through its whole acquisition and reconstruction), the *image* is the real part of the
calibrated reconstruction, not denoised, in mmol/L, a *nuisance* is a column that nobody asks about (soft tissue, vials,
a constant) but that explains signal. The model is ``y = F c + noise`` with one row a voxel and one column a tissue.

Every method is a linear estimator ``c = W y + c0``, or is taken as the one that touches it, so that all of them share
one error propagation: ``cov(c) = W S W'`` with ``S`` the covariance of the noise, plus ``W D D' W'`` for every *doubt*,
a set of changes ``D`` of the image, each of one standard deviation, that moving or wrongly drawn tissue maps would make
(see `bids_sodium.tissue.doubts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import CSF_MMOL_L
from bids_sodium.core.data import Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.tissue import _estimators as estimators
from bids_sodium.tissue._corrected import Corrected, assembled, of_samples, pooled, shrunk
from bids_sodium.tissue._estimators import Estimator
from bids_sodium.tissue._local import local_least_squares
from bids_sodium.tissue._noise import Noise, noise_autocorrelation
from bids_sodium.tissue._samples import SampleMoments, moments

__all__ = [
    "FRACTION_METHODS",
    "METHODS",
    "Corrected",
    "Method",
    "PartialVolumeParams",
    "SampleMoments",
    "TissueColumns",
    "correct",
    "fit_samples",
    "moments",
    "noise_autocorrelation",
    "pooled",
    "regional",
    "shrunk",
]

Array: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal[
    "raw",
    "csf",
    "gtm",
    "glm",
    "local",
    "kspace",
    "kspace-density",
    "mg",
    "rbv",
    "iy",
    "labbe",
    "stc",
    "estc",
    "mlts",
    "paper",
]

METHODS: tuple[Method, ...] = (
    "raw",
    "csf",
    "gtm",
    "glm",
    "local",
    "kspace",
    "kspace-density",
    "mg",
    "rbv",
    "iy",
    "labbe",
    "stc",
    "estc",
    "mlts",
    "paper",
)
"""Names of the methods that `regional` knows."""

FRACTION_METHODS: frozenset[Method] = frozenset({"rbv", "iy", "labbe", "stc", "estc"})
"""Those that need the shares of the voxels without point spread."""

_OF_SAMPLES = frozenset({"kspace", "kspace-density"})
_NEEDS = {
    "voxel_mm": frozenset({"local", "labbe", "stc", "estc"}),
    "fractions": FRACTION_METHODS,
    "fwhm_mm": frozenset({"labbe", "stc", "estc"}),
    "samples": _OF_SAMPLES,
}


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

    methods: tuple[Method, ...] = ("raw", "csf", "gtm", "glm", "local", "kspace-density")
    """Methods to report, see `regional`; ``local`` is the one to quote, ``kspace-density`` needs raw data of one
    channel. Flat weights in k-space are for maps that are known exactly: with maps of a T1w image deep grey matter of
    a simulated stroke read 6.6 mmol/L too high, 1.3 with density weights."""

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

    least_share: float = 0.3
    """Share of a tissue below which ``mg`` divides no voxel by it; half of its largest for tissues that are smaller."""

    iterations: int = 10
    """Iterations of ``iy`` and ``stc`` (the default of PETPVC)."""

    mlts_voxels: int = 5
    """Edge of the cube of voxels that ``mlts`` fits around every voxel, odd; the paper does not state its own."""

    mlts_share: float = 0.75
    """Share of the cube's voxels that ``mlts`` keeps; the paper does not state its own."""

    paper_scale: float = 1.58
    """Width of the Gaussian of ``paper`` over the nominal voxel: 6.3 mm for cones of 4 mm (Riemer 2014,
    doi:10.1007/s10334-013-0395-2); the MS paper does not state its own."""

    registration_sd_mm: float = 0.35
    """Error of the place of the tissue maps, root mean square over the brain, where the registration states none."""

    least_motion_mm: float = 0.25
    """Maps are moved to where the sodium image would have them if that is farther, root mean square over the brain;
    ``inf`` for never. With maps from a T1w image the image told it within 0.1 mm at SNR 20."""

    boundary_sd_mm: float = 0.1
    """Standard deviation of the place of each boundary between tissues, in mm, for the standard error: thickness of
    cortex repeats within 0.12 mm (Han 2006, doi:10.1016/j.neuroimage.2006.02.051)."""

    deep_boundary_sd_mm: float = 0.3
    """The same for the boundaries of deep grey matter: labels carried over from a template overlap with the truth by a
    Dice of 0.90, which is 0.35 mm all round."""


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
    doubts: Mapping[str, NDArray[np.floating]] | None = None,
    voxel_mm: tuple[float, float, float] | None = None,
    fractions: NDArray[np.floating] | None = None,
    fwhm_mm: float | None = None,
    samples: SampleMoments | None = None,
) -> Corrected:
    """Estimate the concentration of each tissue with one method.

    ============== =====================================================================================================
    raw            ``sum(f_t y) / sum(f_t)``: the fraction-weighted mean, no correction
    csf            the same mean of ``(y - q C_csf) / (1 - q)`` over voxels with a CSF share ``q`` below a limit: right
                   where only CSF spoils a tissue and ``C_csf`` is known
    gtm            ``c = inv(omega) m`` with ``m_i`` the mean over region i, ``omega_ij`` that of column j
    glm            ``c = inv(F'F) F'y``: least squares over voxels; CSF and nuisances are estimated too
    local          the GLM in a Gaussian neighbourhood of every voxel, drawn to the global one: follows concentrations
                   that vary smoothly, where one value a tissue leaves the variation in its neighbours; the default
    kspace         least squares over the samples, all alike: the most precise (maximum likelihood); wants every source
                   of signal in the model and one phase for the image, and feels misregistration most
    kspace-density the same with density weights: little less precise, robust to misregistration
    mg             mean of ``(y - sum_other f C) / f`` with the other concentrations from the GLM
    rbv            mean of ``y s / (h * s)``, ``s`` the image of the GTM's values: voxels keep their tissue fractions,
                   so that thin tissues stay biased
    iy             the same with ``s`` from its own means, iterated: as biased, and slow to leave the plain mean
    labbe          least squares with one Gaussian for all tissues: what is lost without decay and negative lobes
    stc            each tissue in turn against all the rest, voxel by voxel, one Gaussian: for single compact targets
    estc           each tissue in turn against what is estimated for all others, until they agree, one Gaussian: linear,
                   and exact where every tissue is uniform (after the paper's abstract, which has no equations)
    mlts           trimmed local least squares: for images with few bad voxels; smooths over its cube
    paper          ``csf`` with the columns and the image that the MS paper took, which the caller gives: masks through
                   a Gaussian of ``paper_scale`` nominal voxels, and the denoised concentration map
    ============== =====================================================================================================

    A column that is empty, or a combination of the columns before it, is left out: its concentration is ``nan`` and
    its voxels are 0; the other columns are estimated without it. Standard errors of ``rbv``, ``iy`` and ``stc`` rest on
    their derivative at the image, those of ``mlts`` on the voxels that it kept.

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
    method : str
        One of `METHODS`.
    sigma : float, optional
        Standard deviation of the noise, in mmol/L (of a real part of a sample for fits to k-space). Never below that of
        the residual, which includes what the model does not explain and is used where none is given.
    mask : (nx, ny, nz) ndarray of bool, optional
        Voxels to use, by default all that any column reaches.
    autocorrelation : (mx, my, mz) ndarray, optional
        Spatial autocorrelation of the noise, odd shape, 1 at its centre (`noise_autocorrelation`). Where neither it
        nor ``variance_factor`` is given it is estimated from the residual of the GLM.
    variance_factor : float, optional
        Factor on the variance of the concentrations for correlated noise, instead of an autocorrelation: for noise
        that is white in k-space but filtered, about the volume of the noise correlation over that of a voxel; 1 is
        white noise.
    doubts : mapping of (m, nx, ny, nz) ndarray, optional
        Changes of the image, in mmol/L, that count one standard deviation each, by source (what the scan makes of
        `bids_sodium.tissue.doubts`); for fits to k-space the moments hold them.
    voxel_mm : tuple of float, optional
        Edge lengths of a voxel in mm; ``local``, ``labbe``, ``stc`` and ``estc`` need it.
    fractions : (n, nx, ny, nz) ndarray, optional
        Shares of the voxels without point spread, times the gain of the columns; ``rbv``, ``iy``, ``labbe``, ``stc``
        and ``estc`` need them.
    fwhm_mm : float, optional
        Full width at half maximum of the one Gaussian of ``labbe``, ``stc`` and ``estc``, in mm.
    samples : SampleMoments, optional
        Sums over k-space (`moments`), in the same units; ``kspace`` and ``kspace-density`` need them.

    Returns
    -------
    Corrected
        Concentrations with standard errors.

    Raises
    ------
    ConfigError
        If the method is unknown or lacks what it needs.
    DataError, GeometryError
        If image and columns do not fit, or the image is complex.
    EstimationError
        If no voxel or no column is left.

    References
    ----------
    csf: Meltzer 1990, doi:10.1097/00004728-199007000-00011; Paling 2013, doi:10.1093/brain/awt148.
    gtm: Rousset, Ma and Evans 1998, J Nucl Med 39:904. labbe: Labbe 1998, in Quantitative Functional Brain Imaging with
    Positron Emission Tomography. kspace: Hu 1988, doi:10.1002/mrm.1910080308 (spectra of compartments).
    mg: Muller-Gartner 1992, doi:10.1038/jcbfm.1992.81. rbv: Thomas 2011, doi:10.1007/s00259-011-1745-9.
    iy: Erlandsson 2012, doi:10.1088/0031-9155/57/21/R119. stc: Sari 2017, doi:10.1177/0271678X16656197.
    estc: Moller 2025, doi:10.1002/mrm.70208. mlts: Kim 2021, doi:10.1002/nbm.4448.

    Examples
    --------
    >>> grey = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    >>> columns = np.stack([grey, 1 - grey])
    >>> fit = regional(45 * grey + 30 * (1 - grey), columns, ("CGM", "NAWM"), method="glm", variance_factor=1.0)
    >>> fit.mmol_l.round(6)
    array([45., 30.])
    """
    p = PartialVolumeParams() if params is None else params
    given = {"voxel_mm": voxel_mm, "fractions": fractions, "fwhm_mm": fwhm_mm, "samples": samples}
    lacking = [what for what, value in given.items() if value is None and method in _NEEDS[what]]
    if method not in METHODS:
        raise ConfigError(f"unknown partial-volume method {method!r}", hint=f"use one of {', '.join(METHODS)}")
    if lacking:
        raise ConfigError(f"the method {method!r} lacks {', '.join(lacking)}", hint="give what it needs")
    if method in _OF_SAMPLES:
        assert samples is not None  # noqa: S101
        return of_samples(samples, names, method, sigma)
    y_all, F_all, inside = _checked(image, columns, names, mask)
    y = y_all[inside]
    kept = _kept(F_all, inside)
    F = F_all[kept][:, inside]
    glm = estimators.least_squares(y, F)
    left = y - (glm.W @ y) @ F
    # a residual at rounding error has no structure to measure
    left = left if (left**2).sum() > 1e-20 * (y**2).sum() else np.zeros_like(left)
    noise = Noise(sigma, autocorrelation, variance_factor).completed(
        left, len(y) - len(F), inside, p.autocorrelation_voxels
    )
    if method in FRACTION_METHODS:
        assert fractions is not None  # noqa: S101
        P = estimators.shares_of(fractions, F_all.shape)[kept]
        estimator, F = _with_fractions(method, y, F, P, inside, p, fwhm_mm=fwhm_mm, voxel_mm=voxel_mm)
    elif method == "raw":
        estimator = estimators.raw(y, F, p)
    elif method in {"csf", "paper"}:
        estimator = estimators.csf_partition(y, F, np.array([names[i] == p.csf_name for i in kept]), p)
    elif method == "gtm":
        estimator = estimators.geometric_transfer(y, F)
    elif method == "mg":
        estimator = estimators.muller_gartner(y, F, glm, p)
    elif method == "mlts":
        estimator = estimators.trimmed(y, F, inside, glm, p)
    elif method == "local":
        assert voxel_mm is not None  # noqa: S101
        weighing = Noise(noise.sigma if sigma is None else sigma, autocorrelation, variance_factor)
        estimator = local_least_squares(y, F, inside, glm, weighing, p, voxel_mm)
    else:
        estimator = glm
    changes = {name: np.asarray(change, dtype=np.float64)[:, inside] for name, change in (doubts or {}).items()}
    return assembled(names, kept, estimator, y=y, F=F, inside=inside, noise=noise, doubts=changes, method=method)


def correct(
    image: NDArray[np.floating] | Volume,
    columns: TissueColumns,
    params: PartialVolumeParams | None = None,
    *,
    method: Method = "glm",
    sigma: float | None = None,
    mask: NDArray[np.bool_] | None = None,
    autocorrelation: NDArray[np.floating] | None = None,
    variance_factor: float | None = None,
) -> Corrected:
    """Estimate the concentration of each tissue from an image and the columns of the reconstruction.

    Parameters
    ----------
    image : Volume or (nx, ny, nz) ndarray
        Sodium concentration, real part, not denoised, in mmol/L; ``local`` wants a `Volume`, whose voxels it knows.
    columns : TissueColumns
        Names and images of the tissues on the same grid.
    params, method, sigma, mask, autocorrelation, variance_factor
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
    return regional(
        np.asarray(image.data if isinstance(image, Volume) else image),
        np.asarray(columns.images),
        tuple(columns.names),
        params,
        method=method,
        sigma=sigma,
        mask=mask,
        autocorrelation=autocorrelation,
        variance_factor=variance_factor,
        voxel_mm=image.grid.voxel_mm if isinstance(image, Volume) else None,
    )


def fit_samples(
    samples: NDArray[np.complexfloating],
    columns_k: NDArray[np.complexfloating],
    weights: NDArray[np.floating] | None = None,
    *,
    names: Sequence[str] | None = None,
    sigma: float | None = None,
) -> Corrected:
    """Estimate concentrations straight from k-space, the methods ``kspace`` and, with weights, ``kspace-density``.

    Parameters
    ----------
    samples, columns_k : ndarray
        (n_shots, n_samples) and (n, n_shots, n_samples), as for `moments`.
    weights : (n_shots, n_samples) ndarray, optional
        Weights, not negative; flat by default, which is maximum likelihood for white noise.
    names : sequence of str, optional
        Names of the tissues, by default ``tissue1`` and so on.
    sigma : float, optional
        Standard deviation of the noise in the real part of a sample; from the residual where it is not given.

    Returns
    -------
    Corrected
        Concentrations with standard errors.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> A = rng.normal(size=(2, 30, 20)) + 1j * rng.normal(size=(2, 30, 20))
    >>> fit_samples(40 * A[0] + 30 * A[1], A).mmol_l.round(6)
    array([40., 30.])
    """
    labels = tuple(f"tissue{i + 1}" for i in range(len(columns_k))) if names is None else tuple(names)
    found = moments(samples, columns_k, labels, weights)
    return of_samples(found, labels, "kspace" if weights is None else "kspace-density", sigma)


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


def _kept(F_all: Array, inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    kept = estimators.independent(F_all[:, inside])
    if kept.size == 0:
        raise EstimationError("every tissue column is empty", hint="check that the tissue maps lie on the sodium image")
    if kept.size >= int(inside.sum()):
        raise EstimationError(f"{int(inside.sum())} voxels cannot determine {kept.size} concentrations")
    return kept


def _with_fractions(
    method: Method,
    y: Array,
    F: Array,
    P: Array,
    inside: NDArray[np.bool_],
    p: PartialVolumeParams,
    *,
    fwhm_mm: float | None,
    voxel_mm: tuple[float, float, float] | None,
) -> tuple[Estimator, Array]:
    """Return the estimator of a method that needs the shares ``P`` (n, nx, ny, nz), and its columns."""
    if method == "rbv":
        return estimators.region_voxel(y, F, P[:, inside], estimators.geometric_transfer(y, F)), F
    if method == "iy":
        return estimators.iterative_yang(y, F, P[:, inside], p.iterations), F
    assert fwhm_mm is not None and voxel_mm is not None  # noqa: S101,PT018
    if method == "stc":
        return estimators.single_target(
            y, P[:, inside], estimators.gaussian(inside, fwhm_mm, voxel_mm), p.iterations
        ), F
    blur = estimators.gaussian(np.ones_like(inside), fwhm_mm, voxel_mm)
    alike = np.stack([blur(row.ravel())[inside.ravel()] for row in P])
    if estimators.independent(alike).size < len(alike):
        raise EstimationError("with one Gaussian for all tissues two of them look alike", hint="merge them")
    if method == "estc":
        return estimators.estimated_targets(y, P[:, inside], alike), alike
    return estimators.least_squares(y, alike), alike
