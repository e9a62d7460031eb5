"""The point-spread function of a centre-out acquisition of a decaying tissue.

``P(r) = int_0^kmax k^2 S(k) sinc(2 k r) dk`` with the modulation ``S(k) = D(TE + t(k)) / D(TE)`` times the filter: the
further from the centre of k-space, the later the sample and the more has decayed. Tissues that decay differently
have different point spreads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import Decay
from bids_sodium.core.data import Trajectory
from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.recon.density import filter_response

__all__ = ["PointSpread", "gaussian_point_spread", "point_spread"]

_DEFINITIONS = ("sphere", "integral")
_N_K = 1024
_R_MM = np.arange(0.0, 60.0 + 1e-9, 0.05)


@dataclass(frozen=True, slots=True, eq=False)
class PointSpread:
    """A point-spread function that is the same in all directions.

    Parameters
    ----------
    fwhm_mm : float
        Full width at half maximum.
    volume_mm3 : float
        Effective volume of a voxel.
    definition : str
        ``"sphere"``: the volume of the sphere whose diameter is the FWHM; ``"integral"``: the integral of the
        function over its peak, ``S(0) / int 4 pi k^2 S dk``.
    r_mm, profile : ndarray
        Distances and values, one at the centre.
    k_per_mm, mtf : ndarray
        Distances from the centre of k-space and the modulation there; zero beyond the last.
    """

    fwhm_mm: float
    volume_mm3: float
    definition: str
    r_mm: NDArray[np.float64]
    profile: NDArray[np.float64]
    k_per_mm: NDArray[np.float64]
    mtf: NDArray[np.float64]


def point_spread(
    trajectory: Trajectory,
    *,
    decay: Decay | None = None,
    filter: str = "none",  # noqa: A002 - the word of the field
    filter_width: float = 0.7,
    te_ms: float = 0.0,
    definition: str = "sphere",
) -> PointSpread:
    """Return the point-spread function of a trajectory for a tissue.

    Parameters
    ----------
    trajectory : Trajectory
        Centre-out trajectory with sample times.
    decay : Decay, optional
        Transverse decay of the tissue, none by default.
    filter, filter_width
        K-space filter, see `bids_sodium.recon.density.filter_response`.
    te_ms : float
        Time from excitation to the start of the readout, in ms.
    definition : {"sphere", "integral"}
        What ``volume_mm3`` means.

    Returns
    -------
    PointSpread
        Width, volume, profile and modulation.

    Raises
    ------
    DataError
        If the readouts do not lead outwards from the centre.
    ConfigError
        If the filter or the definition is unknown.

    References
    ----------
    Nagel 2009, Magn Reson Med 62:1565.

    Examples
    --------
    >>> from bids_sodium.recon.trajectory import density_adapted_radial
    >>> spokes = density_adapted_radial(100, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0)
    >>> round(point_spread(spokes).fwhm_mm, 2)
    6.36
    """
    radius = np.sqrt((trajectory.k_per_mm.astype(np.float64) ** 2).sum(axis=-1))
    k_last = radius.max()
    if radius[:, 0].max() > 0.2 * k_last or np.diff(radius, axis=1).min() < -1e-3 * k_last:
        raise DataError(
            "the readouts do not lead outwards from the centre of k-space, so decay has no one point spread",
            hint="give the width of the point spread instead",
        )
    omega = np.ones(trajectory.n_shots) if trajectory.solid_angle_sr is None else trajectory.solid_angle_sr
    edge = float(np.average(radius[:, -1] + np.gradient(radius, axis=1)[:, -1] / 2.0, weights=omega))
    k = np.asarray((np.arange(_N_K) + 0.5) * (edge / _N_K), dtype=np.float64)
    mtf = filter_response(k / k_last, filter, filter_width)
    if decay is not None:
        mtf = mtf * _decayed(radius, trajectory.t_ms, omega, k=k, decay=decay, te_ms=te_ms)
    return _from_mtf(k, mtf, definition)


def gaussian_point_spread(fwhm_mm: float, *, definition: str = "sphere") -> PointSpread:
    """Return a Gaussian point spread, for images of which only a width is known.

    Parameters
    ----------
    fwhm_mm : float
        Full width at half maximum, in mm.
    definition : {"sphere", "integral"}
        What ``volume_mm3`` means.

    Returns
    -------
    PointSpread
        As from `point_spread`.

    Raises
    ------
    ConfigError
        If the width is not positive.

    Examples
    --------
    >>> round(gaussian_point_spread(6.0).fwhm_mm, 2)
    6.0
    """
    if not (np.isfinite(fwhm_mm) and fwhm_mm > 0):
        raise ConfigError(f"a point spread of {fwhm_mm:g} mm", hint="give a width above zero")
    sd_mm = fwhm_mm / np.sqrt(8.0 * np.log(2.0))
    edge = 5.0 / (2.0 * np.pi * sd_mm)
    k = np.asarray((np.arange(_N_K) + 0.5) * (edge / _N_K), dtype=np.float64)
    return _from_mtf(k, np.exp(-2.0 * (np.pi * sd_mm * k) ** 2), definition)


def _decayed(
    radius: NDArray[np.float64],
    t_ms: NDArray[np.floating],
    omega: NDArray[np.floating],
    *,
    k: NDArray[np.float64],
    decay: Decay,
    te_ms: float,
) -> NDArray[np.float64]:
    """Return ``D(TE + t(k)) / D(TE)``, averaged over the sphere."""
    left = decay.at(te_ms + t_ms.astype(np.float64)) / decay.at(te_ms)
    if np.ptp(radius, axis=0).max() < 1e-6 * radius.max():
        return np.interp(k, radius[0], left)
    # Shots on one cone share their speed, so that only a few of them differ.
    profiles, which = np.unique(np.round(radius, 7), axis=0, return_inverse=True)
    share = np.bincount(which.ravel(), weights=omega)
    curves = np.array([np.interp(k, np.maximum.accumulate(profile), left) for profile in profiles])
    return np.asarray(share @ curves / share.sum())


def _from_mtf(k: NDArray[np.float64], mtf: NDArray[np.float64], definition: str) -> PointSpread:
    if definition not in _DEFINITIONS:
        raise ConfigError(
            f"unknown definition of the voxel volume '{definition}'", hint=f"choose one of {', '.join(_DEFINITIONS)}"
        )
    shell = k**2 * mtf
    profile = np.sinc(2.0 * _R_MM[:, None] * k) @ shell / shell.sum()
    below = int(np.argmax(profile < 0.5))
    if below == 0:
        raise DataError(
            f"the point spread is wider than {2 * _R_MM[-1]:g} mm", hint="check the trajectory's unit and the filter"
        )
    slope = (profile[below] - profile[below - 1]) / (_R_MM[below] - _R_MM[below - 1])
    fwhm_mm = float(2.0 * (_R_MM[below - 1] + (0.5 - profile[below - 1]) / slope))
    step = k[1] - k[0]
    volume = np.pi / 6.0 * fwhm_mm**3 if definition == "sphere" else mtf[0] / (4.0 * np.pi * shell.sum() * step)
    return PointSpread(fwhm_mm, float(volume), definition, _R_MM, profile, k, mtf)
