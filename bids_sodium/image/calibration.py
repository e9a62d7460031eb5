"""From signal to concentration: the scale that the vials set, relaxation, and the TSC map.

A vial of concentration ``C`` gives the signal ``S = C / slope``; tissue relaxes otherwise than the vial, so that
``TSC = slope S g_vial / g_tissue``, with ``g`` the signal that one mmol/L of each gives in this sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError
from bids_sodium.image.phantoms import concentrations
from bids_sodium.image.receive import ReceiveParams, correct_receive, receive_ratio
from bids_sodium.image.relaxation import relaxation_factor
from bids_sodium.image.vials import (
    Cylinder,
    Vial,
    VialSignals,
    candidate_vials,
    find_vials,
    head_mask,
    measure_vials,
    modelled_signal,
)

__all__ = [
    "CalibrationParams",
    "Cylinder",
    "ReceiveParams",
    "Scale",
    "Vial",
    "VialSignals",
    "candidate_vials",
    "correct_receive",
    "find_vials",
    "fit_scale",
    "head_mask",
    "measure_vials",
    "modelled_signal",
    "receive_ratio",
    "relaxation_factor",
    "tsc",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationParams:
    """How vials are found and how their signals become a concentration scale."""

    vial_mmol_l: tuple[float, ...] = (40.0, 80.0)
    """Sodium concentration of each vial, in mmol/L (Brownlee 2019)."""

    source: Literal["vials", "csf", "vitreous"] = "vials"
    """What the scale stands on: vials, or as an internal reference the fluid of the ventricles or of the eyes."""

    transmit: Literal["auto", "off"] = "auto"
    """``auto``: corrected for the flip angle that was reached, where the session has a transmit map or the images of
    one."""

    receive: Literal["auto", "bias", "off"] = "auto"
    """``auto``: divided by the session's receive map, where it has one; ``bias``: without one, by a smooth sensitivity
    that the image itself shows, which takes smooth anatomy for sensitivity. An array image is divided by that of a
    volume coil before, whatever stands here."""

    line: Literal["zero", "intercept"] = "zero"
    """``zero``: a line through the origin, which an uncorrected B1 bends least; ``intercept``: a free line, for a
    signal whose noise floor was not taken off."""

    weights: Literal["noise", "huber"] = "noise"
    """``noise``: each vial weighs by its noise; ``huber``: with three vials or more, those far from the line weigh
    less (Huber 1964), as with vials of doubtful concentration or in an uneven field."""

    reject_z: float = 4.0
    """With three vials or more, one is left out that lies this many standard errors from the line of the others."""

    reject_percent: float = 10.0
    """... and at least this far from it, in percent of its signal."""

    minimum_ml: float = 4.0
    """Smallest volume of a vial with its blurred foot, in mL."""

    maximum_ml: float = 200.0
    """Largest volume of a vial, in mL."""

    head_margin_mm: float = 4.0
    """Distance from the head within which no vial is sought, in mm; the scalp is blurred outwards by about as much."""

    head_opening_mm: float = 30.0
    """Radius of the ball that must fit into the head and not into a vial, in mm, where no head mask is given."""

    edge_fraction: float = 0.5
    """Edge of a vial as a fraction of its peak: at half the signal a blurred edge keeps its place."""

    minimum_likeness: float = 0.5
    """Least product of contrast, fill of the ellipsoid of inertia, roundness and size; 0.6 to 0.9 for vials, most of
    face, neck and ears of a head at 7 T lie below 0.5."""

    core_fraction: float = 0.5
    """Share of the depth of a vial that is eroded to leave its core, 0 to 1."""

    noise_factor: float = 5.0
    """A vial is brighter than this many times the noise of the air."""

    minimum_brightness: float = 0.25
    """... and brighter than this fraction of the median of the head."""

    fit_tolerance: float = 0.2
    """Largest relative difference between cylinder fit and core; beyond it the core is believed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "vial_mmol_l", concentrations(self.vial_mmol_l))
        for name, value, known in (
            ("source", self.source, ("vials", "csf", "vitreous")),
            ("transmit", self.transmit, ("auto", "off")),
            ("receive", self.receive, ("auto", "bias", "off")),
        ):
            if value not in known:
                raise ConfigError(f"calibration.{name} is {value!r}", hint=f"choose {', '.join(known)}")
        if self.line not in ("zero", "intercept"):
            raise ConfigError(f"the calibration line {self.line!r} is unknown", hint="choose zero or intercept")
        if self.weights not in ("noise", "huber"):
            raise ConfigError(f"the weights {self.weights!r} of vials are unknown", hint="choose noise or huber")
        if not 0 < self.minimum_ml < self.maximum_ml:
            raise ConfigError(f"vials of {self.minimum_ml} to {self.maximum_ml} mL are sought")
        if not (0 < self.edge_fraction < 1 and 0 <= self.core_fraction < 1):
            raise ConfigError(
                f"edge_fraction is {self.edge_fraction} and core_fraction {self.core_fraction}",
                hint="fractions lie between 0 and 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scale:
    """The line ``mmol/L = intercept + slope signal``, and how well the vials lie on it.

    Parameters
    ----------
    slope, slope_se : float
        mmol/L per unit of signal.
    intercept, intercept_se : float
        mmol/L at signal zero; exactly 0 for a line through the origin.
    covariance : float
        Covariance of slope and intercept.
    r2 : float
        Share of the variance of the concentrations that the line explains; NaN with a single vial or where all
        concentrations are equal.
    residual_mmol_l : float
        Root mean square distance of the vials from the line over its degrees of freedom; NaN where there are none.
    residuals_mmol_l : tuple of float
        Distance of each vial from the line (line minus truth), the rejected ones too.
    chi2, degrees : float, int
        Sum of squared residuals in standard errors of the signals, and its degrees of freedom.
    widened : float
        Factor by which the standard errors of slope and intercept were widened because the vials disagree by more
        than their noise (p < 0.01); 1 where they do not.
    free_intercept_mmol_l, free_intercept_se : float
        Intercept of a free line through the same vials: far from 0 it tells of a noise floor, B1 or a wrong
        concentration. NaN with a single concentration.
    kept : tuple of bool
        The vials that were used.
    line : str
        ``"zero"`` or ``"intercept"``.
    note : str
        What a reader must know, empty where there is nothing.
    source : str
        What the scale stands on: ``"vials"``, or an internal reference named as such.
    """

    slope: float
    slope_se: float
    intercept: float
    intercept_se: float
    covariance: float
    r2: float
    residual_mmol_l: float
    residuals_mmol_l: tuple[float, ...]
    chi2: float
    degrees: int
    free_intercept_mmol_l: float
    free_intercept_se: float
    kept: tuple[bool, ...]
    line: str
    note: str
    widened: float = 1.0
    source: str = "vials"

    @property
    def slope_mmol_l(self) -> float:
        """The slope, in mmol/L per unit of signal."""
        return self.slope

    def concentration(self, signal: ArrayLike) -> NDArray[np.float64]:
        """Return mmol/L of a material that relaxes like the vials.

        Parameters
        ----------
        signal : array_like
            Signal in units of the vials' signal.
        """
        return np.asarray(self.intercept + self.slope * np.asarray(signal, dtype=np.float64))


def fit_scale(vial_signal: ArrayLike, vial_se: ArrayLike, params: CalibrationParams | None = None) -> Scale:
    r"""Fit the line between vial signal and concentration.

    Signals err, concentrations do not: :math:`S_i = a + g C_i` is fitted with weights :math:`1/\sigma_i^2` (a = 0 for
    a line through the origin) and turned round, slope = 1/g with :math:`\sigma_{slope} = \sigma_g / g^2`.

    Parameters
    ----------
    vial_signal : (n,) array_like
        Signal of each vial, in the order of ``params.vial_mmol_l``, its noise floor taken off.
    vial_se : (n,) array_like
        Standard errors; all zero for signals without noise, which then weigh alike.
    params : CalibrationParams, optional
        Concentrations, line and rejection.

    Returns
    -------
    Scale
        Slope, intercept, their standard errors and the quality of the line.

    Raises
    ------
    DataError
        If signals and standard errors are not one number a vial.
    EstimationError
        If fewer signals than concentrations are given, one of them is not above its noise, the concentrations are not
        enough for the line, or two vials are the wrong way round.

    References
    ----------
    Inglese 2010, Brain 133:847, doi:10.1093/brain/awp334 (vials in the field of view).

    Examples
    --------
    >>> scale = fit_scale([200.0, 400.0], [2.0, 2.0])
    >>> round(scale.slope, 3), scale.intercept, round(scale.r2, 3)
    (0.2, 0.0, 1.0)
    """
    params = params or CalibrationParams()
    truth = np.array(params.vial_mmol_l)
    signal, error = _signals(vial_signal, vial_se, truth)
    exact = not error.any()
    weight = np.ones_like(signal) if exact else 1 / error**2
    kept = np.ones(truth.size, dtype=bool)
    notes: list[str] = []
    while (bad := _outlier(signal, error, weight=weight, truth=truth, kept=kept, params=params)) is not None:
        kept[bad] = False
        notes.append(f"vial {bad + 1} ({truth[bad]:g} mmol/L) left out: it lies off the line of the others")
    _refuse_reversed(signal[kept], error[kept], truth[kept])
    used_signal, used_truth, used_weight = signal[kept], truth[kept], weight[kept]
    if params.weights == "huber" and used_signal.size > 2:
        used_weight = used_weight * _huber(used_signal, used_truth, used_weight, params.line, exact=exact)
    distinct = np.unique(used_truth).size
    free = _line(used_signal, used_truth, used_weight, "intercept", exact=exact) if distinct > 1 else None
    fitted = free if params.line == "intercept" else _line(used_signal, used_truth, used_weight, "zero", exact=exact)
    if fitted is None:
        raise EstimationError(
            f"{used_truth.size} vial(s) of one concentration do not determine a line with intercept",
            hint="use a line through zero, or a second concentration",
        )
    residuals = fitted.intercept + fitted.slope * signal - truth
    squares = float((residuals[kept] ** 2).sum())
    degrees = int(kept.sum()) - (2 if params.line == "intercept" else 1)
    chi2 = float("nan") if exact else float(((residuals[kept] / fitted.slope) ** 2 * used_weight).sum())
    widened = _widening(chi2, degrees)
    if widened > 1:
        notes.append(
            f"the vials lie {widened:.1f} times as far from the line as noise explains: standard errors are widened; "
            "check B1 and the concentrations"
        )
    if used_truth.size == 1:
        notes.append("one vial sets the scale: nothing tells whether the signal is linear")
    elif distinct == 1:
        notes.append("all vials have one concentration: nothing tells whether the signal is linear")
    total = float(((used_truth - used_truth.mean()) ** 2).sum())
    return Scale(
        slope=fitted.slope,
        slope_se=widened * fitted.slope_se,
        intercept=fitted.intercept,
        intercept_se=widened * fitted.intercept_se,
        covariance=widened**2 * fitted.covariance,
        r2=1 - squares / total if distinct > 1 else float("nan"),
        residual_mmol_l=float(np.sqrt(squares / degrees)) if degrees > 0 else float("nan"),
        residuals_mmol_l=tuple(float(value) for value in residuals),
        chi2=chi2,
        degrees=degrees,
        free_intercept_mmol_l=free.intercept if free else float("nan"),
        free_intercept_se=free.intercept_se if free else float("nan"),
        kept=tuple(bool(value) for value in kept),
        line=params.line,
        note="; ".join(notes),
        widened=widened,
    )


def _signals(
    vial_signal: ArrayLike, vial_se: ArrayLike, truth: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    signal = np.atleast_1d(np.asarray(vial_signal, dtype=np.float64))
    error = np.atleast_1d(np.asarray(vial_se, dtype=np.float64))
    if error.size == 1 and signal.size > 1:
        error = np.full(signal.shape, float(error[0]))
    if signal.ndim != 1 or signal.shape != error.shape:
        raise DataError(f"vial signals of shape {signal.shape} with standard errors of shape {error.shape}")
    if signal.size != truth.size:
        raise EstimationError(
            f"{signal.size} vial(s) measured but {truth.size} concentration(s) named "
            f"({', '.join(f'{value:g}' for value in truth)} mmol/L)",
            hint="name one concentration for each vial",
        )
    if not np.isfinite(error).all() or (error < 0).any() or (error.any() and not error.all()):
        raise DataError(
            f"standard errors of the vials are {', '.join(f'{value:.3g}' for value in error)}",
            hint="give one positive number for each vial",
        )
    for index, (value, se) in enumerate(zip(signal, error, strict=True)):
        if not np.isfinite(value) or value <= 3 * se or value <= 0:
            raise EstimationError(
                f"vial {index + 1} ({truth[index]:g} mmol/L) has signal {value:.3g} with standard error {se:.3g}",
                hint="check the vial mask, or name the vials in the sidecar's SodiumCalibration",
            )
    return signal, error


def _outlier(
    signal: NDArray[np.float64],
    error: NDArray[np.float64],
    *,
    weight: NDArray[np.float64],
    truth: NDArray[np.float64],
    kept: NDArray[np.bool_],
    params: CalibrationParams,
) -> int | None:
    """Index of the vial that lies farthest from the line of the others, if it is one too bad to keep."""
    index = np.flatnonzero(kept)
    if index.size < 3:
        return None
    if params.line == "intercept" and index.size < 4:
        return None  # a free line fits any two vials, so that each of three looks equally wrong
    # the bad vial is the one without which the others agree best
    fits = []
    for one in index.tolist():
        others = index[index != one]
        fits.append((one, *_predict(signal, weight, truth, others=others, left_out=one, line=params.line)))
    worst, predicted, variance, _ = min(fits, key=lambda fit: fit[3])
    spread = float(np.sqrt(variance + error[worst] ** 2)) if error.any() else 0.0
    off = abs(signal[worst] - predicted)
    far = off > params.reject_z * spread and off > params.reject_percent / 100 * abs(predicted)
    return worst if far else None


def _predict(
    signal: NDArray[np.float64],
    weight: NDArray[np.float64],
    truth: NDArray[np.float64],
    *,
    others: NDArray[np.intp],
    left_out: int,
    line: str,
) -> tuple[float, float, float]:
    """Signal of one vial from the line of the others, its variance and the chi square of those others."""
    columns = [truth] if line == "zero" else [truth, np.ones_like(truth)]
    design = np.stack(columns, -1)
    normal = design[others].T @ (weight[others, None] * design[others])
    inverse = np.linalg.pinv(normal)
    beta = inverse @ (design[others].T @ (weight[others] * signal[others]))
    leftover = float((weight[others] * (signal[others] - design[others] @ beta) ** 2).sum())
    row = design[left_out]
    return float(row @ beta), float(row @ inverse @ row), leftover


def _refuse_reversed(signal: NDArray[np.float64], error: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
    low, high = int(np.argmin(truth)), int(np.argmax(truth))
    if truth[high] > truth[low] and signal[low] - signal[high] > 3 * np.hypot(error[low], error[high]):
        raise EstimationError(
            f"the vial of {truth[low]:g} mmol/L is brighter ({signal[low]:.3g}) than that of {truth[high]:g} mmol/L "
            f"({signal[high]:.3g})",
            hint="check which vial is which and that none is saturated",
        )


class _Line(NamedTuple):
    """A line from signal to mmol/L, standard errors and covariance."""

    slope: float
    intercept: float
    slope_se: float
    intercept_se: float
    covariance: float


def _gain(
    signal: NDArray[np.float64], truth: NDArray[np.float64], weight: NDArray[np.float64], line: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Signal at zero and per mmol/L, and their covariance; the first is exactly 0 for a line through zero."""
    design = np.stack([np.ones_like(truth), truth], -1)[:, 1 if line == "zero" else 0 :]
    inverse = np.linalg.inv(design.T @ (weight[:, None] * design))
    beta, spread = np.zeros(2), np.zeros((2, 2))
    beta[-design.shape[1] :] = inverse @ (design.T @ (weight * signal))
    spread[-design.shape[1] :, -design.shape[1] :] = inverse
    return beta, spread


def _line(
    signal: NDArray[np.float64], truth: NDArray[np.float64], weight: NDArray[np.float64], line: str, *, exact: bool
) -> _Line:
    """Slope and intercept in mmol/L, their standard errors and covariance (delta method)."""
    (floor, gain), spread = _gain(signal, truth, weight, line)
    if gain <= 0:
        return _Line(*[float("nan")] * 5)
    jacobian = np.array([[0.0, -1 / gain**2], [-1 / gain, floor / gain**2]])
    spread = jacobian @ (np.zeros((2, 2)) if exact else spread) @ jacobian.T
    return _Line(
        slope=float(1 / gain),
        intercept=float(-floor / gain) if line == "intercept" else 0.0,
        slope_se=float(np.sqrt(spread[0, 0])),
        intercept_se=float(np.sqrt(spread[1, 1])),
        covariance=float(spread[0, 1]),
    )


def _huber(
    signal: NDArray[np.float64], truth: NDArray[np.float64], weight: NDArray[np.float64], line: str, *, exact: bool
) -> NDArray[np.float64]:
    """Weights that let vials far from the line count linearly (Huber 1964, doi:10.1214/aoms/1177703732)."""
    # starts from the median of the signals per mmol/L, which half of the vials cannot move
    beta = np.array([0.0, float(np.median(signal / truth))])
    share = np.ones_like(signal)
    for _ in range(50):
        away = np.abs(signal - beta[0] - beta[1] * truth) * np.sqrt(weight)
        spread = 1.4826 * float(np.median(away))
        spread = spread if exact else max(1.0, spread)
        limit = 1.345 * spread
        share = np.minimum(1.0, limit / np.maximum(away, 1e-12 * max(limit, 1e-300))) if limit > 0 else share
        new, _ = _gain(signal, truth, weight * share, line)
        if np.allclose(new, beta, rtol=1e-10, atol=0.0):
            break
        beta = new
    return np.asarray(share)


def _widening(chi2: float, degrees: int) -> float:
    """Factor on standard errors where the vials scatter by more than their noise (p < 0.01)."""
    from scipy.special import gammaincc

    # the survival function of the chi-square distribution
    if not np.isfinite(chi2) or degrees < 1 or gammaincc(degrees / 2, chi2 / 2) >= 0.01:
        return 1.0
    return float(np.sqrt(chi2 / degrees))


def tsc(
    image: Volume,
    scale: Scale,
    factor: float | NDArray[np.floating] = 1.0,
    *,
    sigma: float | NDArray[np.floating] = 0.0,
) -> tuple[Volume, Volume]:
    r"""Turn signal into total sodium concentration, with its standard error.

    :math:`C = f (a + b S)` and :math:`\sigma_C^2 = f^2 (b^2 \sigma^2 + S^2 \sigma_b^2 + \sigma_a^2 + 2 S \sigma_{ab})`.
    The calibration's part is common to all voxels: it does not average out over a region.

    Parameters
    ----------
    image : Volume
        Signal, in units of the vials' signal.
    scale : Scale
        Calibration.
    factor : float or ndarray
        Relaxation factor, or a map of it.
    sigma : float or ndarray
        Noise of a voxel of ``image``, in its units.

    Returns
    -------
    tsc, se : Volume
        mmol/L.

    Raises
    ------
    DataError
        If the factor is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> image = Volume(np.full((2, 2, 2), 175.0), Grid.centred((2, 2, 2), 4.0))
    >>> concentration, se = tsc(image, fit_scale([200.0, 400.0], [2.0, 2.0]), sigma=10.0)
    >>> round(float(concentration.data[0, 0, 0]), 3), round(float(se.data[0, 0, 0]), 2)
    (35.0, 2.01)
    """
    times = np.asarray(factor, dtype=np.float64)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise DataError("the relaxation factor is not a positive number", hint="check TE, TR and flip angle")
    signal = np.asarray(image.data, dtype=np.float64)
    concentration = times * scale.concentration(signal)
    variance = (scale.slope * np.asarray(sigma)) ** 2 + (signal * scale.slope_se) ** 2
    variance = variance + scale.intercept_se**2 + 2 * signal * scale.covariance
    error = np.broadcast_to(times * np.sqrt(np.maximum(variance, 0.0)), signal.shape)
    return image.with_data(concentration, "mmol/L"), image.with_data(np.array(error), "mmol/L")
