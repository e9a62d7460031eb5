"""Internal reference: a fluid of known sodium in the head itself, where no vial was scanned.

Cerebrospinal fluid of the ventricles, or the vitreous body of the eyes. Both are small against the point spread, so
that only voxels deep inside count, and what their surroundings add is fitted and taken off:
``y = S_fluid f + S_around (1 - f)`` with ``f`` the fluid's share of each voxel behind the point spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import CSF_MMOL_L, RELAXATION, Relaxation
from bids_sodium.core.data import Volume
from bids_sodium.core.errors import ConfigError, DataError, EstimationError, GeometryError
from bids_sodium.image._vial_signals import variance_of
from bids_sodium.image.calibration import Scale
from bids_sodium.image.magnitude import signal_of_mean

__all__ = ["InternalReference", "ReferenceParams", "measure_reference", "reference_scale"]

_NAMES = {"csf": "ventricular cerebrospinal fluid", "vitreous": "vitreous body"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceParams:
    """How a fluid of the head stands in for a vial."""

    material: Literal["csf", "vitreous"] = "csf"
    """``csf``: fluid of the ventricles; ``vitreous``: of the eyes."""

    csf_mmol_l: float = CSF_MMOL_L
    """Sodium of cerebrospinal fluid, in mmol/L (135-150; Inglese 2010, doi:10.1093/brain/awp334)."""

    csf_se: float = 4.0
    """Standard deviation between people, in mmol/L: a quarter of that range."""

    vitreous_mmol_l: float = 146.7
    """Sodium of the vitreous body, in mmol/L (27 living eyes; Kokavec 2016, Clin Exp Ophthalmol 44:597)."""

    vitreous_se: float = 3.3
    """Standard deviation between people, in mmol/L (Kokavec 2016)."""

    deep: float = 0.8
    """Share of fluid, behind the point spread, from which a voxel counts as deep inside."""

    around: float = 0.3
    """Share of fluid from which voxels tell what their surroundings add."""

    least_ml: float = 0.5
    """Least volume of deep voxels, in mL."""

    def __post_init__(self) -> None:
        if self.material not in _NAMES:
            raise ConfigError(f"the internal reference {self.material!r} is unknown", hint="choose csf or vitreous")
        if not 0 <= self.around < self.deep < 1:
            raise ConfigError(
                f"deep is {self.deep} and around {self.around}", hint="shares of fluid: 0 <= around < deep < 1"
            )
        if min(self.csf_mmol_l, self.csf_se, self.vitreous_mmol_l, self.vitreous_se, self.least_ml) <= 0:
            raise ConfigError("a concentration, its standard deviation or a volume is not positive")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InternalReference:
    """Signal of a fluid of the head.

    Parameters
    ----------
    signal, se : float
        Signal of the undiluted fluid and its standard error, in units of the image: noise, misfit and misplacement.
    mmol_l, mmol_l_se : float
        Its assumed concentration and standard deviation between people, in mmol/L.
    relaxation : Relaxation
        Of the fluid.
    around : float
        Signal of what surrounds it.
    mask : (nx, ny, nz) ndarray of bool
        Deep voxels.
    n_voxels : int
        How many there are.
    source : str
        ``"internal reference: ..."``, for every place where the result is shown.
    """

    signal: float
    se: float
    mmol_l: float
    mmol_l_se: float
    relaxation: Relaxation
    around: float
    mask: NDArray[np.bool_]
    n_voxels: int
    source: str


def measure_reference(
    image: Volume,
    fraction: NDArray[np.floating],
    params: ReferenceParams | None = None,
    *,
    sigma: float,
    surroundings: NDArray[np.floating] | None = None,
    region: NDArray[np.bool_] | None = None,
    place_error_mm: float = 0.0,
    magnitude: bool = True,
    correlation_voxels: float = 1.0,
) -> InternalReference:
    """Measure the signal of a fluid from voxels deep inside it.

    Parameters
    ----------
    image : Volume
        Image before denoising, receive and transmit fields corrected.
    fraction : (nx, ny, nz) ndarray
        Share of fluid in each voxel behind the scan's point spread, 0 to 1; best from the scan's own operator.
    params : ReferenceParams, optional
        Fluid, depth and volume.
    sigma : float
        Noise of a voxel.
    surroundings : (nx, ny, nz) ndarray, optional
        Share of the tissue around it behind that tissue's own point spread; what the fluid leaves by default, which
        reads ventricles 6 % too bright where the tissue decays during the readout and so is blurred more.
    region : (nx, ny, nz) ndarray of bool, optional
        Where to look, such as the ventricles without sulci; the whole image where it is not given.
    place_error_mm : float
        Standard error of the fraction's place (of the registration), in mm; its effect is computed by shifting.
    magnitude : bool
        Values are magnitudes, whose noise floor is taken off.
    correlation_voxels : float
        Voxels that share one independent noise value, at least 1.

    Returns
    -------
    InternalReference
        Signal with standard error, concentration with standard deviation, and its name.

    Raises
    ------
    GeometryError
        If shapes differ.
    DataError
        If the image is not finite or the fraction lies outside of 0 to 1.
    EstimationError
        If too little lies deep inside the fluid, or its signal is not above the noise.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> grid = Grid.centred((24, 24, 24), 4.0)
    >>> r = np.linalg.norm(np.moveaxis(np.indices(grid.shape), 0, -1) - 12, axis=-1)
    >>> share = np.clip(1.5 - r / 8, 0, 1)
    >>> image = Volume(700.0 * share + 200.0 * (1 - share), grid)
    >>> found = measure_reference(image, share, sigma=2.0)
    >>> round(found.signal), found.source
    (700, 'internal reference: ventricular cerebrospinal fluid of 140 +- 4 mmol/L')
    """
    params = params or ReferenceParams()
    data = np.asarray(image.data, dtype=np.float64)
    share = np.asarray(fraction, dtype=np.float64)
    where = np.ones(data.shape, dtype=bool) if region is None else np.asarray(region, dtype=bool)
    other = 1.0 - share if surroundings is None else np.asarray(surroundings, dtype=np.float64)
    if not share.shape == where.shape == other.shape == data.shape:
        raise GeometryError(
            f"a fraction of shape {share.shape}, surroundings of shape {other.shape} and a region of shape "
            f"{where.shape} for an image of shape {data.shape}"
        )
    if data.ndim != 3 or np.iscomplexobj(image.data) or not np.isfinite(data).all():
        raise DataError(f"a reference is measured in one finite real image, got shape {data.shape}")
    if not np.isfinite(other).all():
        raise DataError("the share of what surrounds the fluid holds NaN or infinite values")
    if not np.isfinite(share).all() or share.min() < -0.2 or share.max() > 1.2:
        raise DataError(f"the share of fluid runs from {share.min():.3g} to {share.max():.3g}, not from 0 to 1")
    name = _NAMES[params.material]
    deep = where & (share >= params.deep)
    volume_ml = float(deep.sum()) * image.grid.voxel_ml
    if volume_ml < params.least_ml:
        deepest = float(share[where].max()) if where.any() else 0.0
        raise EstimationError(
            f"{volume_ml:.2g} mL of {name} lie deep inside (share of at least {params.deep:g}), "
            f"{params.least_ml:g} are asked for; the deepest voxel has {deepest:.2f}",
            hint="scan vials, use the other fluid, or lower reference.deep and read the standard error",
        )
    use = _near(deep, where & (share >= params.around), image.grid.voxel_mm)
    if magnitude and sigma > 0:
        data = np.where(use, signal_of_mean(np.maximum(data, 0.0), sigma), data)
    signal, around, weights, misfit = _fit(data, share, other, use)
    voxel = np.array(image.grid.voxel_mm)
    # misfit beyond noise is of the model, and as smooth as the point spread
    noise = max(float(sigma), misfit)
    variance = noise**2 * variance_of(weights, voxel, correlation_voxels)
    if place_error_mm > 0:
        variance += _of_place(data, share, other, use, place_error_mm, voxel, signal)
    se = float(np.sqrt(variance))
    if not signal > 3 * se:
        raise EstimationError(
            f"the {name} has signal {signal:.3g} with standard error {se:.3g}", hint="check the fluid's mask"
        )
    mmol_l, mmol_l_se = (
        (params.csf_mmol_l, params.csf_se) if params.material == "csf" else (params.vitreous_mmol_l, params.vitreous_se)
    )
    return InternalReference(
        signal=signal,
        se=se,
        mmol_l=mmol_l,
        mmol_l_se=mmol_l_se,
        # vitreous relaxes like cerebrospinal fluid within what is published of either
        relaxation=RELAXATION["CSF"],
        around=around,
        mask=deep,
        n_voxels=int(deep.sum()),
        source=f"internal reference: {name} of {mmol_l:g} +- {mmol_l_se:g} mmol/L",
    )


def reference_scale(reference: InternalReference) -> Scale:
    """Return the scale that an internal reference sets, named as such.

    The standard error of the slope holds that of the signal and the spread of the fluid's sodium between people.

    Parameters
    ----------
    reference : InternalReference
        Measured fluid.

    Returns
    -------
    Scale
        A line through zero; ``source`` names the reference.

    Examples
    --------
    >>> fluid = InternalReference(
    ...     signal=700.0, se=7.0, mmol_l=140.0, mmol_l_se=4.0, relaxation=RELAXATION["CSF"], around=200.0,
    ...     mask=np.ones((1, 1, 1), dtype=bool), n_voxels=1, source="internal reference: CSF",
    ... )
    >>> scale = reference_scale(fluid)
    >>> scale.slope, round(scale.slope_se / scale.slope, 3), scale.source
    (0.2, 0.03, 'internal reference: CSF')
    """
    slope = reference.mmol_l / reference.signal
    relative = float(np.hypot(reference.se / reference.signal, reference.mmol_l_se / reference.mmol_l))
    nothing = float("nan")
    return Scale(
        slope=slope,
        slope_se=slope * relative,
        intercept=0.0,
        intercept_se=0.0,
        covariance=0.0,
        r2=nothing,
        residual_mmol_l=nothing,
        residuals_mmol_l=(0.0,),
        chi2=nothing,
        degrees=0,
        free_intercept_mmol_l=nothing,
        free_intercept_se=nothing,
        kept=(True,),
        line="zero",
        note=f"{reference.source}; no vial: an error of its concentration is one of every concentration",
        source=reference.source,
    )


def _near(
    deep: NDArray[np.bool_], allowed: NDArray[np.bool_], voxel_mm: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """Return the allowed voxels that are connected to deep ones and within 15 mm of them."""
    from scipy import ndimage

    labels, _ = ndimage.label(allowed | deep)
    kept = np.isin(labels, np.unique(labels[deep])) & (labels > 0)
    return np.asarray(kept & (ndimage.distance_transform_edt(~deep, sampling=voxel_mm) <= 15.0))


def _fit(
    data: NDArray[np.float64], share: NDArray[np.float64], other: NDArray[np.float64], use: NDArray[np.bool_]
) -> tuple[float, float, NDArray[np.float64], float]:
    """Signals of fluid and surroundings, the weight of each voxel in the first, and the spread of the residuals."""
    y = data[use]
    design = np.stack([share[use], other[use]], axis=-1)
    # a vessel or a wall that the fraction does not know must not set the scale
    weight = np.ones_like(y)
    for _ in range(10):
        inverse = np.linalg.pinv(design.T @ (weight[:, None] * design))
        row = inverse @ (design.T * weight)
        away = np.abs(y - design @ (row @ y))
        limit = 1.345 * max(1.4826 * float(np.median(away)), 1e-12 * float(np.abs(y).max() + 1e-300))
        weight = np.minimum(1.0, limit / np.maximum(away, 1e-300))
    signal, around = row @ y
    weights = np.zeros(data.shape)
    weights[use] = row[0]
    degrees = max(y.size - 2, 1)
    misfit = float(np.sqrt((weight * (y - design @ (row @ y)) ** 2).sum() / degrees))
    return float(signal), float(around), weights, misfit


def _of_place(
    data: NDArray[np.float64],
    share: NDArray[np.float64],
    other: NDArray[np.float64],
    use: NDArray[np.bool_],
    place_error_mm: float,
    voxel: NDArray[np.float64],
    signal: float,
) -> float:
    """Variance of the signal for a fraction that lies off by a standard error in a direction that is not known."""
    from scipy import ndimage

    total = 0.0
    for axis in range(3):
        for sign in (1.0, -1.0):
            shift = np.zeros(3)
            shift[axis] = sign * place_error_mm / np.sqrt(3.0) / voxel[axis]
            fluid, rest = (ndimage.shift(one, shift, order=1, mode="nearest") for one in (share, other))
            total += 0.5 * (_fit(data, fluid, rest, use)[0] - signal) ** 2
    return total
