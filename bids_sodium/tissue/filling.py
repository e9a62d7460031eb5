"""Lesion filling: lesions of a T1w image replaced by the white matter that would be there.

Nouns: the *lesions* are a mask or probability, the *white* prior says where white matter belongs (from the template,
not from a segmentation that the lesions have misled), *normal-appearing white matter* is what the fill is made of; a
*patch* is a voxel with its 26 neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume, box_of
from bids_sodium.core.errors import DataError, EstimationError, GeometryError

__all__ = ["FillingParams", "check_lesions", "fill"]

Array: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

_LEAST_BESIDE = 50
_SURE = 3.0
_BEYOND_MM = 3.0
_PRIORS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FillingParams:
    """How lesions are filled."""

    method: Literal["convolution", "patch"] = "convolution"
    """``convolution``: local mean of the normal-appearing white matter plus one of its residuals; ``patch``: from the
    rim inwards the normal-appearing voxel nearby whose neighbours are most alike (as Prados 2016 did)."""

    sigma_mm: float = 4.0
    """Width (standard deviation) of the Gaussian that averages the normal-appearing white matter, in mm: wide against
    noise, narrow against residual bias fields."""

    guard_mm: float = 1.5
    """Distance from a lesion within which no voxel counts as normal-appearing, in mm, at least one voxel: its border is
    part lesion."""

    white_core: float = 0.9
    """Smallest white matter prior of normal-appearing white matter."""

    white_limit: float = 0.5
    """White matter prior from which on a lesion voxel is filled whole; below it the fill fades to the image."""

    other_tissue: float = 0.75
    """Share of what the prior holds for grey matter or fluid in a lesion voxel that is there: a lesion lies in white
    matter, so the rest is the registration's error. In simulated heads 0.73 to 0.80."""

    patch_candidates: int = 60
    """Number of nearest normal-appearing voxels that a patch is looked for among."""


def check_lesions(lesions: NDArray[np.generic], brain: Mask, voxel_ml: float) -> None:
    """Refuse a mask that cannot be of lesions of this brain; an empty one is none.

    Parameters
    ----------
    lesions : (nx, ny, nz) ndarray
        Mask, or probability between 0 and 1.
    brain : (nx, ny, nz) ndarray of bool
        Brain mask.
    voxel_ml : float
        Volume of a voxel, in mL.

    Raises
    ------
    GeometryError
        If the shapes differ, or most of the lesions lie outside the brain.
    DataError
        If there are values beyond 0 to 1, or lesions fill more than half of the brain.

    Examples
    --------
    >>> brain = np.ones((10, 10, 10), bool)
    >>> check_lesions(np.zeros((10, 10, 10)), brain, 0.001)
    >>> check_lesions(brain, brain, 0.001)
    Traceback (most recent call last):
    ...
    bids_sodium.core.errors.DataError: lesions of 1.0 mL in a brain of 1.0 mL (try: is the mask inverted, or the brain?)
    """
    if lesions.shape != brain.shape:
        raise GeometryError(f"the brain has shape {brain.shape} but the lesions {lesions.shape}")
    share = np.asarray(lesions, dtype=np.float32)
    low, high = float(share.min()), float(share.max())
    if not (low >= -1e-3 and high <= 1.001):
        raise DataError(
            f"lesion values run from {low:.3g} to {high:.3g}", hint="give a mask of 0 and 1 or a probability"
        )
    lesion_ml, brain_ml = float(share.sum(dtype=np.float64)) * voxel_ml, float(brain.sum()) * voxel_ml
    if lesion_ml == 0.0:
        return
    inside_ml = float(share[brain].sum(dtype=np.float64)) * voxel_ml
    if inside_ml < 0.5 * lesion_ml and lesion_ml <= 0.5 * brain_ml:
        raise GeometryError(
            f"{100.0 * (1.0 - inside_ml / lesion_ml):.0f} % of {lesion_ml:.1f} mL of lesions lie outside the brain",
            hint="was the mask drawn on another image?",
        )
    if lesion_ml > 0.5 * brain_ml:
        raise DataError(
            f"lesions of {lesion_ml:.1f} mL in a brain of {brain_ml:.1f} mL", hint="is the mask inverted, or the brain?"
        )


def fill(
    t1w: Volume,
    lesions: NDArray[np.generic],
    white: NDArray[np.generic],
    params: FillingParams,
    rng: np.random.Generator,
) -> Volume:
    """Fill lesions with white matter, and take off what they leave in the voxels beside their mask.

    With ``m`` the mask of normal-appearing white matter, ``p`` the prior, ``b`` how much darker a voxel without white
    matter is and ``G`` a Gaussian, the white matter is the normalised convolution
    ``s = G * m (y + b (1 - p)) / G * m``; a filled voxel is ``s - a b (1 - p)``, with ``a`` the share of other tissue
    that is there, plus one residual drawn from the normal-appearing white matter nearby, so that it has its noise.
    Where ``m`` is too far away the Gaussian is widened, twice as wide at a time. With patches the residual is that of
    the nearby voxel whose neighbours differ least from the known neighbours of the filled one.

    Parameters
    ----------
    t1w : Volume
        T1-weighted image.
    lesions : (nx, ny, nz) ndarray
        Mask, or probability between 0 and 1; a voxel is replaced by this share.
    white : (nx, ny, nz) ndarray
        Prior probability of white matter (from a template), 0 to 1.
    params : FillingParams
        How.
    rng : numpy.random.Generator
        Draws the residuals, and the order of a patch's candidates.

    Returns
    -------
    Volume
        The filled image; voxels farther from the lesions than the guard are untouched, as are those within it that
        lack no more than voxels of the same prior farther away.

    Raises
    ------
    GeometryError
        If the shapes differ.
    EstimationError
        If there is no normal-appearing white matter around the lesions.

    References
    ----------
    Knutsson and Westin 1993, Proceedings of CVPR (normalised convolution). Prados et al. 2016, NeuroImage,
    doi:10.1016/j.neuroimage.2016.05.053 (patches).

    Examples
    --------
    >>> from bids_sodium.core.data import Grid
    >>> data = np.full((32, 32, 32), 100.0, np.float32)
    >>> data[14:18, 14:18, 14:18] = 40.0
    >>> image = Volume(data, Grid.centred((32, 32, 32), 1.0))
    >>> filled = fill(image, data < 50, np.ones(data.shape), FillingParams(), np.random.default_rng(0))
    >>> round(float(filled.data.min()), 3)
    100.0
    """
    from scipy.ndimage import binary_dilation, distance_transform_edt

    share_all = np.clip(np.asarray(lesions, dtype=np.float32), 0.0, 1.0)
    for name, array in (("lesions", lesions), ("white matter prior", white)):
        if array.shape != t1w.grid.shape:
            raise GeometryError(f"T1w of shape {t1w.grid.shape} but {name} of shape {array.shape}")
    if not (share_all > 0).any():
        return t1w
    voxel_mm = np.array(t1w.grid.voxel_mm)
    box = box_of(share_all > 0, np.ceil((4.0 * params.sigma_mm + params.guard_mm) / voxel_mm).astype(int))
    share, prior = share_all[box], np.asarray(white, dtype=np.float32)[box]
    value = np.asarray(t1w.data, dtype=np.float32)[box]
    distance = np.asarray(distance_transform_edt(share <= 0, sampling=voxel_mm), dtype=np.float32)
    near = (distance <= params.guard_mm) | binary_dilation(share > 0)
    normal = (prior >= params.white_core) & ~near & np.isfinite(value) & (value > 0)
    normal &= _without_outliers(value, normal)
    if int(normal.sum()) < 50:
        raise EstimationError(
            f"only {int(normal.sum())} voxels of normal-appearing white matter lie around the lesions",
            hint="check that the white matter prior and the lesion mask lie on the T1w image",
        )
    target = share > 0
    darker = _darker_by(value, prior, normal, ~near, params)
    other = np.float32(darker) * (np.float32(1.0) - prior)
    around = distance <= max(params.guard_mm, *voxel_mm) + _BEYOND_MM
    white_here = np.where(normal, value + other, np.float32(0.0))
    smooth = _normalised_convolution(white_here, normal, around, params.sigma_mm / voxel_mm)
    # a few voxels of white matter by themselves have no mean, and so no residual
    normal &= np.isfinite(smooth)
    if params.method == "patch":
        # the guard lies between the lesion and what is known: the patches grow through it
        residual = _matched(white_here - smooth, near, normal, voxel_mm, params.patch_candidates, rng)
        # patches say the texture; what is a little dark at a lesion's rim they would carry inwards
        residual += (white_here - smooth)[normal].mean() - residual[target].mean()
    else:
        residual = np.zeros_like(smooth)
        residual[target] = rng.choice((white_here - smooth)[normal], size=int(target.sum()))
    expected = smooth - params.other_tissue * np.minimum(other, np.float32(darker * (1.0 - params.white_limit)))
    known = np.isfinite(value)
    change = _beside(
        np.where(known & around, smooth - value, np.float32(np.nan)), share, prior, near, distance, voxel_mm, params
    )
    lack = np.where(target & known, expected - value, np.float32(0.0))
    fade = np.clip(prior / np.float32(params.white_limit), 0.0, 1.0)
    change[target] = np.where(known, share * fade * (lack + residual), np.float32(0.0))[target]
    data = np.array(t1w.data, dtype=np.float32, copy=True)
    data[box] += change
    unknown = target & ~known
    data[box][unknown] = (expected + residual)[unknown]
    return t1w.with_data(data)


def _beside(
    lack: Array,
    share: Array,
    prior: Array,
    near: Mask,
    distance: Array,
    voxel_mm: NDArray[np.float64],
    params: FillingParams,
) -> Array:
    """Return what lesions take from the voxels beside their mask, whose border is drawn where it is half a lesion.

    As a share of what the lesions nearby lack, by distance from the mask and white matter prior: least squares of what
    such voxels lack more than those of the same prior a little farther away.
    """
    from scipy.ndimage import gaussian_filter

    inside = np.where((share > 0) & np.isfinite(lack), share, np.float32(0.0))
    sigma = params.guard_mm / voxel_mm
    around, weight = (gaussian_filter(a, sigma, truncate=3.0) for a in (inside * np.nan_to_num(lack), inside))
    nearby = around / np.maximum(weight, np.float32(1e-6))
    found = np.zeros_like(lack)
    known = np.isfinite(lack) & (share <= 0)
    beside, healthy = known & near, known & ~near
    step = np.round(distance, 2)
    for low, high in pairwise(_PRIORS):
        alike = (prior >= low) & (prior < high)
        if int((alike & healthy).sum()) < _LEAST_BESIDE:
            continue
        usual = lack[alike & healthy].mean()
        for far in np.unique(step[alike & beside]):
            these = alike & beside & (step == far)
            more, theirs = (lack[these] - usual).astype(np.float64), nearby[these].astype(np.float64)
            power = float((theirs**2).sum())
            size = float((more * theirs).sum()) / max(power, 1e-12)
            # noise alone is no sign of a lesion
            if len(more) >= _LEAST_BESIDE and size * np.sqrt(power) > _SURE * more.std():
                found[these] = min(size, 1.0) * nearby[these]
    return found


def _darker_by(value: Array, prior: Array, normal: Mask, healthy: Mask, params: FillingParams) -> float:
    """Return how much darker than white matter a voxel is that holds none.

    Least squares of ``white - y = b (1 - p)`` over healthy voxels whose white matter prior ``p`` lies between the limit
    and the core.
    """
    mixed = healthy & (prior >= params.white_limit) & (prior < params.white_core) & np.isfinite(value) & (value > 0)
    if int(mixed.sum()) < 200:
        return 0.0
    lack = (1.0 - prior[mixed]).astype(np.float64)
    white = float(np.median(value[normal]))
    return max(float((lack * (white - value[mixed])).sum() / (lack**2).sum()), 0.0)


def _matched(
    residual: Array,
    target: Mask,
    normal: Mask,
    voxel_mm: NDArray[np.float64],
    candidates: int,
    rng: np.random.Generator,
) -> Array:
    """Return residuals (nx, ny, nz), those of target voxels copied from the normal voxel whose neighbours fit best.

    The rim is filled first, one layer of voxels after the other; a layer's own values are known to the next. A donor
    ``d`` of target ``t`` has the least ``sum_k m_k (r_k(t) - r_k(d))^2`` over the neighbours ``k`` that are known
    (``m``) at the target, which without what all donors have in common is ``sum_k m_k r_k(d) (r_k(d) - 2 r_k(t))``.
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial import cKDTree

    pad, known, left = (np.pad(a, 1) for a in (np.where(normal, residual, np.float32(0.0)), normal, target))
    steps = np.stack(np.meshgrid(*([-1, 0, 1],) * 3, indexing="ij"), -1).reshape(-1, 3) @ np.array(
        [pad.shape[1] * pad.shape[2], pad.shape[2], 1]
    )
    flat, sure = pad.reshape(-1), known.reshape(-1)
    whole = np.asarray(binary_erosion(known, np.ones((3, 3, 3), dtype=bool)))
    donors = np.argwhere(whole if int(whole.sum()) >= candidates else known)
    tree = cKDTree(donors * voxel_mm)
    number = min(candidates, len(donors))
    donor_at = np.asarray(np.ravel_multi_index(tuple(donors.T), pad.shape))
    patches = flat[donor_at[:, None] + steps]
    place = np.argwhere(left)
    while len(place):
        at = np.asarray(np.ravel_multi_index(tuple(place.T), pad.shape))
        rim = ~left.reshape(-1)[at[:, None] + steps[[4, 10, 12, 14, 16, 22]]].all(axis=1)
        layer, at = place[rim], at[rim]
        values = np.empty(len(at), dtype=np.float32)
        for start in range(0, len(at), 1000):
            part = slice(start, start + 1000)
            nearest = np.asarray(tree.query(layer[part] * voxel_mm, k=number)[1]).reshape(-1, number)
            # among equals the first is taken, which no place of the image shall be
            nearest = rng.permuted(nearest, axis=1)
            around = at[part, None] + steps
            theirs = patches[nearest]
            unlike = np.einsum(
                "tdk,tdk,tk->td", theirs, theirs - 2.0 * flat[around][:, None, :], sure[around].astype(np.float32)
            )
            chosen = np.take_along_axis(nearest, unlike.argmin(axis=1)[:, None], axis=1)[:, 0]
            values[part] = flat[donor_at[chosen]]
        flat[at] = values
        sure[at] = True
        left.reshape(-1)[at] = False
        place = place[~rim]
    return np.asarray(pad[1:-1, 1:-1, 1:-1], dtype=np.float32)


def _without_outliers(value: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which voxels lie within 3 robust standard deviations of the median of the mask."""
    if not mask.any():
        return mask
    median = np.median(value[mask])
    spread = 1.4826 * np.median(np.abs(value[mask] - median))
    return np.asarray(np.abs(value - median) <= 3.0 * spread + 1e-6 * abs(median))


def _normalised_convolution(
    value: NDArray[np.float32],
    known: NDArray[np.bool_],
    wanted: NDArray[np.bool_],
    sigma: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Return the Gaussian-weighted mean of the known voxels around each voxel, float32, of the same shape.

    NaN where less than 2 % of the Gaussian is known: the mean of a few voxels is noise. Wanted voxels get a wider one:
    each step of a pyramid of halved images doubles the width.
    """
    from scipy.ndimage import gaussian_filter

    smooth = np.full(value.shape, np.nan, dtype=np.float32)
    total, share = np.where(known, value, np.float32(0.0)), known.astype(np.float32)
    left, step = np.ones_like(wanted), 1
    while left.any():
        if step > 2 * max(value.shape):
            smooth[left] = value[known].mean()
            break
        numerator, support = (gaussian_filter(a, sigma, truncate=3.0) for a in (total, share))
        mean = np.where(support >= 0.02, numerator / np.maximum(support, 1e-6), np.float32(np.nan))
        place = np.nonzero(left)
        smooth[place] = mean[tuple(axis // step for axis in place)]
        left = wanted & np.isnan(smooth)
        total, share, step = _halved(total), _halved(share), 2 * step
    return smooth


def _halved(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return means of 2 x 2 x 2 voxels; beyond the edge lies zero."""
    even = np.pad(a, [(0, n % 2) for n in a.shape])
    i, j, k = (n // 2 for n in even.shape)
    return np.asarray(even.reshape(i, 2, j, 2, k, 2).mean(axis=(1, 3, 5)), dtype=np.float32)
