"""Measures of regions: mean, spread and volume, change against the other side, and brain fractions.

Nouns: a *region* is a mask or a map of weights, a *measure* what an image shows inside it, a *change* the difference
between a region and its mirror in percent, *brain fractions* are tissue volumes over the intracranial volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError, GeometryError

__all__ = [
    "BrainFractions",
    "Change",
    "CombinedChange",
    "Measure",
    "brain_fractions",
    "by_label",
    "combined_change",
    "percent_change",
    "regional",
]


@dataclass(frozen=True, slots=True)
class Measure:
    """What an image shows inside a region.

    Parameters
    ----------
    mean, sd : float
        Weighted mean and standard deviation of the voxels, in the unit of the image; ``nan`` where the region is empty.
    se : float
        Standard error of the mean: ``sd`` over the root of the number of resolution elements in the region.
    n_voxels : int
        Voxels with a finite value and a positive weight.
    volume_ml : float
        Volume of the region in mL, counting partly filled voxels by their weight.
    n_missing : int
        Voxels of the region whose value is NaN or infinite; they are left out.
    """

    mean: float
    sd: float
    se: float
    n_voxels: int
    volume_ml: float
    n_missing: int


@dataclass(frozen=True, slots=True)
class Change:
    """Change of a region against its mirror.

    Parameters
    ----------
    percent : float
        ``(ipsi - contra) / contra * 100``.
    se : float
        Its standard error, in percentage points.
    """

    percent: float
    se: float


@dataclass(frozen=True, slots=True)
class CombinedChange:
    """Change of a region that is made of several parts, each with an estimate.

    Parameters
    ----------
    ipsi, contra : float
        Weighted means of the parts of the region and of its mirror image.
    percent : float
        ``(ipsi - contra) / contra * 100``.
    se : float
        Its standard error from the covariance of all parts, in percentage points.
    """

    ipsi: float
    contra: float
    percent: float
    se: float


@dataclass(frozen=True, slots=True)
class BrainFractions:
    """Tissue volumes over the intracranial volume.

    Parameters
    ----------
    tiv_ml : float
        Total intracranial volume, in mL.
    bpf, gmf, wmf : float
        Brain parenchymal (grey + white + lesions), grey and white matter fraction; lesions count as white matter.
    """

    tiv_ml: float
    bpf: float
    gmf: float
    wmf: float


def regional(
    image: NDArray[np.floating],
    region: NDArray[np.generic],
    *,
    voxel_ml: float,
    resolution_ml: float | None = None,
) -> Measure:
    """Measure an image inside a region.

    ``mean = sum(w y) / sum(w)``, ``sd^2 = sum(w (y - mean)^2) / (sum(w) - sum(w^2) / sum(w))``,
    ``se = sd / sqrt(n)``, where ``n`` counts resolution elements, not voxels: neighbouring voxels share their noise.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Values.
    region : (nx, ny, nz) ndarray
        Mask, or weights between 0 and 1.
    voxel_ml : float
        Volume of a voxel, in mL.
    resolution_ml : float, optional
        Volume of the point spread, in mL; a voxel where it is not given or smaller than one.

    Returns
    -------
    Measure
        Mean, spread and size.

    Raises
    ------
    GeometryError
        If image and region differ in shape.
    DataError
        If a weight is negative.

    Examples
    --------
    >>> measure = regional(np.array([1.0, 2.0, 3.0, 9.0]), np.array([1, 1, 1, 0]), voxel_ml=0.001)
    >>> measure.mean, measure.sd, measure.n_voxels
    (2.0, 1.0, 3)
    """
    if image.shape != region.shape:
        raise GeometryError(f"image of shape {image.shape} but region of shape {region.shape}")
    weight = np.asarray(region, dtype=np.float64)
    if (weight < 0).any():
        raise DataError(f"a region has {int((weight < 0).sum())} negative weights, the least {weight.min():.3g}")
    inside = weight > 0
    value, w = np.asarray(image, dtype=np.float64)[inside], weight[inside]
    volume_ml = float(w.sum()) * voxel_ml
    finite = np.isfinite(value)
    n_missing = int((~finite).sum())
    value, w = value[finite], w[finite]
    if value.size == 0:
        nan = float("nan")
        return Measure(nan, nan, nan, 0, volume_ml, n_missing)
    total = w.sum()
    mean = float((w * value).sum() / total)
    freedom = total - (w**2).sum() / total
    sd = float(np.sqrt((w * (value - mean) ** 2).sum() / freedom)) if freedom > 1e-12 * total else float("nan")
    element_ml = max(voxel_ml, voxel_ml if resolution_ml is None else resolution_ml)
    n_elements = max(1.0, float(total**2 / (w**2).sum()) * voxel_ml / element_ml)
    return Measure(mean, sd, sd / float(np.sqrt(n_elements)), int(value.size), volume_ml, n_missing)


def by_label(
    image: NDArray[np.floating],
    labels: NDArray[np.integer],
    count: int,
    *,
    voxel_ml: float,
    resolution_ml: float | None = None,
) -> tuple[Measure, ...]:
    """Measure an image inside every region of a label image, in one pass.

    Parameters
    ----------
    image : (nx, ny, nz) ndarray
        Values.
    labels : (nx, ny, nz) ndarray of int
        0 outside, 1 to ``count`` inside.
    count : int
        Number of regions.
    voxel_ml, resolution_ml : float
        As for `regional`.

    Returns
    -------
    tuple of Measure
        One a region, as `regional` gives for the mask of each.

    Raises
    ------
    GeometryError
        If image and labels differ in shape.

    Examples
    --------
    >>> [m.mean for m in by_label(np.array([1.0, 2.0, 3.0, 9.0]), np.array([1, 1, 2, 0]), 2, voxel_ml=0.001)]
    [1.5, 3.0]
    """
    if image.shape != labels.shape:
        raise GeometryError(f"image of shape {image.shape} but labels of shape {labels.shape}")
    inside = labels > 0
    number, value = labels[inside], np.asarray(image[inside], dtype=np.float64)
    all_voxels = np.bincount(number, minlength=count + 1)
    finite = np.isfinite(value)
    number, value = number[finite], value[finite]
    n = np.bincount(number, minlength=count + 1)
    mean = np.bincount(number, value, minlength=count + 1) / np.where(n > 0, n, np.nan)
    squares = np.bincount(number, (value - mean[number]) ** 2, minlength=count + 1)
    sd = np.sqrt(squares / np.where(n > 1, n - 1.0, np.nan))
    element_ml = max(voxel_ml, voxel_ml if resolution_ml is None else resolution_ml)
    se = sd / np.sqrt(np.maximum(n * voxel_ml / element_ml, 1.0))
    return tuple(
        Measure(
            float(mean[k]),
            float(sd[k]),
            float(se[k]),
            int(n[k]),
            float(all_voxels[k]) * voxel_ml,
            int(all_voxels[k] - n[k]),
        )
        for k in range(1, count + 1)
    )


def percent_change(ipsi: Measure, contra: Measure) -> Change:
    """Return the change of a region against the mirrored one, with its standard error.

    ``100 (a - b) / b``; to first order, with independent errors,
    ``SE = 100 |a / b| sqrt((SE_a / a)^2 + (SE_b / b)^2) = 100 sqrt(SE_a^2 + (a / b)^2 SE_b^2) / |b|``.

    Parameters
    ----------
    ipsi, contra : Measure
        The region and its mirror.

    Returns
    -------
    Change
        Change in percent; ``nan`` where either region is empty.

    Raises
    ------
    EstimationError
        If the mean of the mirrored region is zero.

    Examples
    --------
    >>> a, b = Measure(60.0, 3.0, 0.5, 40, 2.5, 0), Measure(40.0, 2.0, 0.4, 40, 2.5, 0)
    >>> change = percent_change(a, b)
    >>> change.percent, round(change.se, 2)
    (50.0, 1.95)
    """
    if contra.mean == 0.0:
        raise EstimationError(
            f"the mirrored region has mean 0 over {contra.n_voxels} voxels, so a change in percent has no meaning",
            hint="check that the image covers both sides of the head",
        )
    ratio = ipsi.mean / contra.mean
    se = 100.0 * float(np.hypot(ipsi.se, ratio * contra.se)) / abs(contra.mean)
    return Change(100.0 * (ratio - 1.0), se)


def combined_change(
    estimate: NDArray[np.floating],
    covariance: NDArray[np.floating],
    ipsi: NDArray[np.floating],
    contra: NDArray[np.floating],
) -> CombinedChange:
    """Return the change between two weighted means of correlated estimates.

    With ``a = w'c`` and ``b = v'c``: ``100 (a / b - 1)``, to first order with variance ``100^2 g'Vg``,
    ``g = w / b - a v / b^2``.

    Parameters
    ----------
    estimate : (n,) ndarray
        Estimates of the parts; those of weight zero may be NaN.
    covariance : (n, n) ndarray
        Their covariance.
    ipsi, contra : (n,) ndarray
        Weights of the parts in the region and in its mirror image, not negative.

    Returns
    -------
    CombinedChange
        Both means and the change.

    Raises
    ------
    EstimationError
        If a side has no weight or the mirror image has mean zero.

    Examples
    --------
    >>> change = combined_change(np.array([60.0, 40.0]), np.diag([4.0, 1.0]), np.array([1, 0]), np.array([0, 1]))
    >>> change.percent, round(change.se, 2)
    (50.0, 6.25)
    """
    w, v = np.asarray(ipsi, dtype=np.float64), np.asarray(contra, dtype=np.float64)
    if not (w.sum() > 0 and v.sum() > 0):
        raise EstimationError("a region or its mirror image holds no part with an estimate")
    w, v = w / w.sum(), v / v.sum()
    used = (w > 0) | (v > 0)
    w, v, c = w[used], v[used], np.asarray(estimate, dtype=np.float64)[used]
    a, b = float(w @ c), float(v @ c)
    if b == 0.0:
        raise EstimationError("the mirrored region has mean 0, so a change in percent has no meaning")
    g = w / b - a * v / b**2
    variance = float(g @ np.asarray(covariance, dtype=np.float64)[np.ix_(used, used)] @ g)
    return CombinedChange(a, b, 100.0 * (a / b - 1.0), 100.0 * float(np.sqrt(max(variance, 0.0))))


def brain_fractions(volume_ml: Mapping[str, float], tiv_ml: float) -> BrainFractions:
    """Return parenchymal, grey and white matter fractions of the intracranial volume.

    Parameters
    ----------
    volume_ml : mapping of str to float
        Volumes in mL; grey matter is ``CGM + DGM`` (or ``GM``), white matter ``NAWM`` (or ``WM``) plus every other
        class except ``CSF``, which are lesions.
    tiv_ml : float
        Total intracranial volume, in mL.

    Returns
    -------
    BrainFractions
        The fractions.

    Raises
    ------
    DataError
        If the intracranial volume is not positive.

    Examples
    --------
    >>> f = brain_fractions({"CGM": 600.0, "DGM": 50.0, "NAWM": 540.0, "L": 10.0, "CSF": 300.0}, 1500.0)
    >>> round(f.bpf, 3), round(f.gmf, 3), round(f.wmf, 3)
    (0.8, 0.433, 0.367)
    """
    if not tiv_ml > 0:
        raise DataError(f"total intracranial volume is {tiv_ml:g} mL", hint="check the brain mask")
    grey = sum(volume_ml.get(name, 0.0) for name in ("CGM", "DGM", "GM"))
    white = sum(ml for name, ml in volume_ml.items() if name not in {"CGM", "DGM", "GM", "CSF"})
    return BrainFractions(tiv_ml, (grey + white) / tiv_ml, grey / tiv_ml, white / tiv_ml)
