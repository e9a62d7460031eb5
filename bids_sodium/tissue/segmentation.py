"""Tissue fractions from a T1w image: how much of each voxel is CSF, cortical grey, deep grey and white matter.

Nouns: the *prior* is the head template brought onto the T1w grid by a deformable registration, which leaves a
millimetre or two of error; a *mode* is the intensity of a voxel that holds one tissue only; a *fraction* is the share
of a voxel that a tissue fills, which is what a sodium voxel sums over. A posterior probability is not a fraction: it
says how sure one is of a label.

Intensity between the modes is read as a mixture. One intensity cannot tell three fractions apart, so the grey matter
share is ``g = rho g_max(y)`` with ``g_max`` the largest one that the intensity allows (the mixture of two
neighbouring tissues) and ``rho`` the share of it that the prior reaches: 1 in cortex, 0 on a ventricle's wall, where an
intensity like grey matter is CSF beside white matter. CSF and white matter follow from ``y`` and the sum of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import HeadTemplate, Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.tissue.bias import left_over_field, n4_field
from bids_sodium.tissue.brainmask import has_network, learned_mask, own_mask, trimmed
from bids_sodium.tissue.filling import check_lesions
from bids_sodium.tissue.smoothing import cosine_shrinkage

__all__ = ["LABELS", "Segmentation", "SegmentationParams", "correct_bias", "segment"]

Array: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

LABELS: Mapping[str, int] = MappingProxyType({"CSF": 1, "CGM": 2, "DGM": 3, "NAWM": 4, "L": 5})
"""Value of each tissue in a label image; 0 is outside the brain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationParams:
    """How a T1w image is split into tissue fractions."""

    bias_correction: bool = True
    """Remove the bias field with N4 (Tustison 2010, doi:10.1109/TMI.2010.2046908)."""

    bias_spline_mm: float = 120.0
    """Distance of the bias field's first spline knots, in mm; halved at each of the levels."""

    bias_iterations: tuple[int, ...] = (40, 30, 20)
    """Largest number of iterations of N4 at each level."""

    bias_voxel_mm: float = 4.0
    """Voxel that N4 works on, in mm: the field is smooth, and the time goes with the third power."""

    bias_refinement_mm: float = 20.0
    """Width (standard deviation) of the Gaussian that smooths what N4 leaves against the prior's expectation, in mm;
    0 leaves it."""

    denoising: float = 2.7
    """Smallest coefficient of the sliding cosine transform that is kept, in noise standard deviations; 0 leaves the
    noise. At 3 % noise it leaves 88 % of the error of non-local means in a quarter of the time."""

    brain_mask: Literal["auto", "template", "deepbet"] = "auto"
    """What finds the brain in a whole head: the registered template, the deepbet network (needs the extra
    ``brainmask``), or the network where it is installed. A skull-stripped image is its own mask."""

    prior_blur_mm: float = 0.9
    """Blur of the prior's grey matter purity, in mm: the error that a deformable registration leaves."""

    mode_csf_ml: float = 3.0
    """Volume of the surest CSF (in the ventricles) that its mode is read from, in mL."""

    mode_gm_ml: float = 50.0
    """Volume of the surest cortical grey matter that its mode is read from, in mL."""

    mode_wm_ml: float = 100.0
    """Volume of the surest white matter that its mode is read from, in mL."""

    mode_blur_mm: float = 1.5
    """Blur of the prior before the surest voxels are chosen, in mm: it prefers the middle of a structure."""

    deep_sigma_mm: float = 4.0
    """Neighbourhood in which the deep grey matter's own mode is read, in mm: a nucleus."""

    least_brain_ml: float = 500.0
    """Smallest plausible volume of brain tissue, in mL."""

    most_brain_ml: float = 2500.0
    """Largest plausible volume of brain tissue, in mL."""


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Tissue fractions and what they were made with.

    Parameters
    ----------
    fractions : dict of str to (nx, ny, nz) ndarray
        Share of each voxel that is ``CGM``, ``DGM``, ``NAWM``, ``CSF`` (and ``L`` where lesions are given), 0 to 1;
        they sum to 1 inside the brain and to 0 outside.
    brain : (nx, ny, nz) ndarray of bool
        Brain mask, ventricles and sulci included.
    bias_corrected : Volume
        T1w image without its bias field.
    labels : (nx, ny, nz) ndarray of int16
        Tissue that fills most of each voxel, coded as in `LABELS`.
    volume_ml : dict of str to float
        Volume of each tissue, in mL.
    tiv_ml : float
        Volume inside the brain mask, in mL.
    bpf, gmf, wmf : float
        Brain parenchymal (grey, white and lesions), grey and white matter (lesions included) share of ``tiv_ml``.
    modes : dict of str to float
        Intensity of pure ``CSF``, ``GM`` and ``WM`` in the bias-corrected image.
    noise : float
        Standard deviation of the noise, in units of the image.
    skull_stripped : bool
        True where the image came without skull and scalp.
    mask_source : str
        What the brain mask was made with: ``"image"`` (it came skull-stripped), ``"template"`` or ``"deepbet"``.
    notes : tuple of str
        What a reader should know of the image and the choices that were made.
    """

    fractions: dict[str, Array]
    brain: Mask
    bias_corrected: Volume
    labels: NDArray[np.int16]
    volume_ml: dict[str, float]
    tiv_ml: float
    bpf: float
    gmf: float
    wmf: float
    modes: dict[str, float]
    noise: float
    skull_stripped: bool
    mask_source: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Prior:
    """The prior cut to the box around the brain, with the distances (mm) from its mask and from all that is not it."""

    gm: Array
    wm: Array
    csf: Array
    deep: Array
    brain: Mask
    outside_mm: Array
    inside_mm: Array


def segment(
    t1w: Volume,
    prior: HeadTemplate,
    params: SegmentationParams | None = None,
    *,
    lesions: NDArray[np.generic] | None = None,
) -> Segmentation:
    """Split a T1w image into tissue fractions.

    N4 bias correction, brain mask, shrinkage of the noise, class modes read where the prior is surest, and linear
    mixing between the modes with the prior's grey matter purity (see the module).

    Parameters
    ----------
    t1w : Volume
        T1-weighted image, whole head or skull-stripped, grey matter between CSF and white matter in intensity.
    prior : HeadTemplate
        Head template, its arrays on the grid of the image.
    params : SegmentationParams
        How.
    lesions : (nx, ny, nz) ndarray, optional
        Lesion mask or fraction, 0 to 1; it is taken out of every class and becomes the class ``L``.

    Returns
    -------
    Segmentation
        Fractions, brain mask, bias-corrected image, labels and volumes.

    Raises
    ------
    GeometryError
        If image, prior and lesions do not lie on one grid.
    DataError
        If the image is empty, or the lesions cannot be lesions of this brain.
    ConfigError
        If the deepbet network is asked for and not installed.
    EstimationError
        If no brain is found, the modes are not in the order CSF, GM, WM, or the brain's volume is implausible.

    References
    ----------
    Tustison 2010, doi:10.1109/TMI.2010.2046908 (N4); Tohka, Zijdenbos and Evans 2004, NeuroImage,
    doi:10.1016/j.neuroimage.2004.05.007 (partial volume between class modes).

    Examples
    --------
    >>> from bids_sodium.core.data import Grid
    >>> x = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) * 5.0
    >>> wm, gm, csf = (x < 55), (x >= 55) & (x < 75), (x >= 75) & (x < 85)
    >>> data = np.where(wm, 900.0, np.where(gm, 600.0, np.where(csf, 250.0, 0.0)))
    >>> image = Volume(data, Grid.centred(data.shape, 5.0))
    >>> maps = [np.asarray(a, np.float32) for a in (data, gm, wm, csf, 0 * x)]
    >>> found = segment(image, HeadTemplate(image.grid, *maps, x < 85), SegmentationParams(bias_correction=False))
    >>> round(found.gmf, 2), round(float(gm.sum() / (x < 85).sum()), 2)
    (0.42, 0.42)
    """
    p = SegmentationParams() if params is None else params
    _check(t1w, prior, lesions)
    voxel_mm = np.array(t1w.grid.voxel_mm)
    box, cut = _cut(prior, voxel_mm)
    y = _finite(t1w, box)
    brain, source, notes = _brain(t1w, y, cut, box, p)
    notes += _at_the_edge(prior.brain, voxel_mm)
    if p.bias_correction:
        # one tissue: over two, N4 sharpens the histogram by flattening the difference between them
        gain = _field(y, brain & (cut.wm > 0.7) & (y > 0), voxel_mm, p)
        y = y / gain
    else:
        gain = np.ones_like(y)
    noise = _noise_sd(y, brain & (cut.wm > 0.5), voxel_mm)
    smooth = cosine_shrinkage(y, cut.outside_mm <= 6.0, noise, threshold=p.denoising) if p.denoising > 0 else y
    modes = _modes(smooth, cut, brain, voxel_mm, p)
    if p.bias_correction and p.bias_refinement_mm > 0:
        shares = {"CSF": cut.csf, "GM": cut.gm, "WM": cut.wm}
        shares = {name: _blur(share, p.mode_blur_mm, voxel_mm) for name, share in shares.items()}
        # deep grey matter has modes of its own, and CSF follows the skull more than the coil
        known = brain & (cut.deep < 0.1) & (shares["CSF"] < 0.1) & (shares["GM"] + shares["WM"] > 0.8)
        rest = left_over_field(smooth, shares, known, modes, voxel_mm=voxel_mm, sigma_mm=p.bias_refinement_mm)
        smooth, gain = smooth / rest, gain * rest
        modes = _modes(smooth, cut, brain, voxel_mm, p)
    if source == "template":
        brain = trimmed(smooth, brain, modes, noise=noise, outside_mm=cut.outside_mm, inside_mm=cut.inside_mm)
    grey_mode = _grey_mode(smooth, cut, modes, voxel_mm, p)
    csf, gm, wm = _mixture(smooth, grey_mode, cut, modes, voxel_mm=voxel_mm, blur_mm=p.prior_blur_mm)
    # a nucleus is one tissue: what of it is as bright as white matter (thalamus, pallidum) belongs to it too
    deep = np.asarray(cut.deep, dtype=np.float32)
    inside = {"CSF": csf, "CGM": gm * (1.0 - deep), "DGM": (gm + wm) * deep, "NAWM": wm * (1.0 - deep)}

    shape = t1w.grid.shape
    brain_full = np.zeros(shape, dtype=bool)
    brain_full[box] = brain
    lesion = None if lesions is None else np.clip(np.asarray(lesions, dtype=np.float32), 0.0, 1.0)
    if lesion is not None:
        brain_full |= lesion > 0.5
    healthy = brain_full.astype(np.float32)
    if lesion is not None:
        lesion = lesion * brain_full
        healthy -= lesion
    fractions = {}
    for name in ("CGM", "DGM", "NAWM", "CSF"):
        fractions[name] = np.zeros(shape, dtype=np.float32)
        fractions[name][box] = inside[name] * healthy[box]
    if lesion is not None:
        fractions["L"] = lesion
    corrected = np.array(t1w.data, dtype=np.float32)
    corrected[box] = corrected[box] / gain
    found = _described(t1w.with_data(corrected), fractions, brain_full, modes, noise=noise, source=source, notes=notes)
    tissue_ml = found.bpf * found.tiv_ml
    if not p.least_brain_ml <= tissue_ml <= p.most_brain_ml:
        raise EstimationError(
            f"brain tissue of {tissue_ml:.0f} mL is outside {p.least_brain_ml:g}-{p.most_brain_ml:g} mL",
            hint="check the registration to the template and the voxel size of the T1w image",
        )
    return found


def correct_bias(t1w: Volume, white: NDArray[np.floating], params: SegmentationParams | None = None) -> Volume:
    """Return a T1w image without its bias field, where white matter is known already.

    Parameters
    ----------
    t1w : Volume
        T1-weighted image.
    white : (nx, ny, nz) ndarray
        White matter fraction, 0 to 1.
    params : SegmentationParams
        How; without ``bias_correction`` the image comes back.

    Returns
    -------
    Volume
        Image divided by a field of mean 1 over the white matter.

    Raises
    ------
    GeometryError
        If the white matter lies on another grid.
    EstimationError
        If there is too little of it.

    Examples
    --------
    >>> from bids_sodium.core.data import Grid
    >>> grid = Grid.centred((40, 40, 40), 4.0)
    >>> ramp = np.exp(np.linspace(-0.1, 0.1, 40))[:, None, None] * np.full(grid.shape, 800.0)
    >>> flat = correct_bias(Volume(ramp, grid), np.ones(grid.shape))
    >>> bool(flat.data.std() < 0.2 * ramp.std())
    True
    """
    p = SegmentationParams() if params is None else params
    if white.shape != t1w.grid.shape:
        raise GeometryError(f"the T1w has shape {t1w.grid.shape} but the white matter {white.shape}")
    if not p.bias_correction:
        return t1w
    everywhere = (slice(None),) * 3
    y = _finite(t1w, everywhere)
    gain = _field(y, (white > 0.7) & (y > 0), np.array(t1w.grid.voxel_mm), p)
    return t1w.with_data(np.asarray(t1w.data, dtype=np.float32) / gain)


def _check(t1w: Volume, prior: HeadTemplate, lesions: NDArray[np.generic] | None) -> None:
    if not t1w.grid.same_as(prior.grid, tolerance_mm=1e-2):
        raise GeometryError(
            f"the T1w has shape {t1w.grid.shape} but the prior {prior.grid.shape}, or they lie apart",
            hint="resample the template onto the T1w grid",
        )
    if t1w.data.ndim != 3:
        raise GeometryError(f"the T1w has {t1w.data.ndim} axes instead of 3")
    if lesions is not None and lesions.shape != t1w.grid.shape:
        raise GeometryError(f"the T1w has shape {t1w.grid.shape} but the lesions {lesions.shape}")
    if not prior.brain.any():
        raise EstimationError(
            "the template's brain lies outside the T1w image", hint="check the registration to the template"
        )
    if not np.ptp(np.nan_to_num(t1w.data[prior.brain])) > 0:
        raise DataError("the T1w image is constant where the brain should be")
    if lesions is not None:
        check_lesions(lesions, prior.brain, t1w.grid.voxel_ml)


def _box(mask: Mask, margin: NDArray[np.int_]) -> tuple[slice, slice, slice]:
    spans = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        spans.append(slice(max(int(hit[0] - margin[axis]), 0), int(hit[-1] + 1 + margin[axis])))
    return spans[0], spans[1], spans[2]


def _blur(image: Array, sigma_mm: float, voxel_mm: NDArray[np.float64]) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(image, sigma_mm / voxel_mm, truncate=3.0), dtype=np.float32)


def _cut(prior: HeadTemplate, voxel_mm: NDArray[np.float64]) -> tuple[tuple[slice, slice, slice], _Prior]:
    """Return the box around the brain, 10 mm wider, and the prior in it."""
    from scipy.ndimage import distance_transform_edt

    box = _box(prior.brain, np.ceil(10.0 / voxel_mm).astype(int))
    brain = prior.brain[box]
    outside, inside = (
        np.asarray(distance_transform_edt(mask, sampling=voxel_mm), dtype=np.float32) for mask in (~brain, brain)
    )
    gm, wm, csf, deep = (np.asarray(getattr(prior, k)[box], dtype=np.float32) for k in ("gm", "wm", "csf", "deep"))
    return box, _Prior(gm, wm, csf, deep, brain, outside, inside)


def _finite(t1w: Volume, box: tuple[slice, ...]) -> Array:
    return np.nan_to_num(np.asarray(t1w.data[box], dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _brain(
    t1w: Volume, y: Array, prior: _Prior, box: tuple[slice, ...], p: SegmentationParams
) -> tuple[Mask, str, tuple[str, ...]]:
    """Return the first brain mask, what it was made with, and notes."""
    brain, stripped = own_mask(y, prior.brain, prior.outside_mm)
    if stripped:
        return brain, "image", ()
    if p.brain_mask == "template" or (p.brain_mask == "auto" and not has_network()):
        return brain, "template", ()
    learned = learned_mask(t1w)[box]
    overlap = 2.0 * float((learned & prior.brain).sum()) / float(learned.sum() + prior.brain.sum())
    # registration and network err in different ways; where they part, the template's mask fits the prior
    if overlap < 0.85:
        note = f"the brains of deepbet and of the template overlap by {overlap:.2f}: the template's is used"
        return brain, "template", (note,)
    return learned, "deepbet", ()


def _at_the_edge(brain: Mask, voxel_mm: NDArray[np.float64]) -> tuple[str, ...]:
    """Return a note where the image cuts the brain: more than the brain stem touches a face of the image."""
    notes = []
    for axis in range(3):
        area = float(np.prod(np.delete(voxel_mm, axis)))
        faces = (brain.take(0, axis), brain.take(-1, axis))
        touched = max(float(face.sum()) * area / 100.0 for face in faces)
        if touched > 20.0:
            notes.append(
                f"the T1w image cuts the brain: {touched:.0f} cm2 of it lie on a face of the image, "
                "so volumes and fractions are those of the part inside"
            )
    return tuple(notes)


def _field(y: Array, mask: Mask, voxel_mm: NDArray[np.float64], p: SegmentationParams) -> Array:
    return n4_field(
        y,
        mask,
        voxel_mm,
        spline_mm=p.bias_spline_mm,
        iterations=p.bias_iterations,
        coarse_mm=p.bias_voxel_mm,
    )


def _noise_sd(y: Array, mask: Mask, voxel_mm: NDArray[np.float64]) -> float:
    """Return the noise from second differences, ``1.4826 MAD(y[i-1] - 2 y[i] + y[i+1]) / sqrt(6)``."""
    # along the finest axis, and in white matter, which is flat: elsewhere anatomy would pass for noise
    finest = int(np.argmin(voxel_mm))
    y, mask = np.moveaxis(y, finest, 0), np.moveaxis(mask, finest, 0)
    second = y[:-2] - 2 * y[1:-1] + y[2:]
    use = mask[:-2] & mask[1:-1] & mask[2:]
    if int(use.sum()) < 100:
        raise EstimationError(
            f"only {int(use.sum())} white matter voxels to read the noise from", hint="check the registration"
        )
    return float(1.4826 * np.median(np.abs(second[use])) / np.sqrt(6.0))


def _mode(values: Array, what: str) -> float:
    """Return the peak of a histogram smoothed with a Gaussian of Silverman's robust width."""
    from scipy.ndimage import gaussian_filter1d

    if values.size < 30:
        raise EstimationError(
            f"only {values.size} voxels of pure {what}", hint="check that template and T1w image are registered"
        )
    low, high = np.percentile(values, [1, 99])
    if not high > low:
        return float(low)
    q1, q3 = np.percentile(values, [25, 75])
    width = max(0.9 * (q3 - q1) / 1.34 * values.size**-0.2, (high - low) / 200.0)
    counts, edges = np.histogram(values, bins=400, range=(float(low), float(high)))
    density = gaussian_filter1d(counts.astype(np.float64), 2.0 * width / (edges[1] - edges[0]))
    i = min(max(int(density.argmax()), 1), 398)
    # the vertex of a parabola: a mode shall not jump by a bin
    before, at, after = density[i - 1 : i + 2]
    bend = before - 2.0 * at + after
    shift = float(np.clip(0.5 * (before - after) / bend, -1.0, 1.0)) if bend < 0 else 0.0
    return float(edges[i] + (0.5 + shift) * (edges[1] - edges[0]))


def _modes(
    y: Array, prior: _Prior, brain: Mask, voxel_mm: NDArray[np.float64], p: SegmentationParams
) -> dict[str, float]:
    """Return the intensities of pure CSF, cortical grey and white matter, read where the prior is surest."""
    ml = float(np.prod(voxel_mm)) / 1000.0
    # in sulci CSF lies beside skull and dura, which are dark too; ventricles are the clean place
    inner = prior.inside_mm > 15.0
    cortex = np.where(prior.deep < 0.1, prior.gm, 0.0)

    def surest(share: Array, where: Mask, volume_ml: float) -> Mask:
        certain = _blur(share, p.mode_blur_mm, voxel_mm)
        candidates = where & (certain > 0.5)
        count = int(candidates.sum())
        wanted = max(round(volume_ml / ml), 30)
        if count <= wanted:
            return candidates
        level = np.partition(certain[candidates], count - wanted)[count - wanted]
        return np.asarray(candidates & (certain >= level))

    grey = _mode(y[surest(cortex.astype(np.float32), brain, p.mode_gm_ml)], "grey matter")
    white = _mode(y[surest(prior.wm, brain, p.mode_wm_ml)], "white matter")
    fluid = surest(prior.csf, brain & inner, p.mode_csf_ml)
    if int(fluid.sum()) < 200:
        fluid = surest(prior.csf, brain, p.mode_csf_ml)
    modes = {"CSF": _mode(y[fluid], "CSF"), "GM": grey, "WM": white}
    if not modes["CSF"] < modes["GM"] < modes["WM"]:
        seen = ", ".join(f"{name} {value:.4g}" for name, value in modes.items())
        raise EstimationError(
            f"intensities are not in the order of a T1w image: {seen}",
            hint="check that the image is T1-weighted and registered to the template",
        )
    return modes


def _grey_mode(
    y: Array, prior: _Prior, modes: Mapping[str, float], voxel_mm: NDArray[np.float64], p: SegmentationParams
) -> Array:
    """Return the intensity of pure grey matter at each voxel: deep nuclei are brighter than cortex.

    Local least squares of ``y - csf C - wm W = gm G`` over deep grey matter, drawn to the cortical mode.
    """
    cortex = np.float32(modes["GM"])
    span = modes["WM"] - modes["GM"]
    weight = np.where(prior.deep > 0.5, prior.gm, 0.0).astype(np.float32)
    if not weight.any():
        return np.full_like(y, cortex)
    expected = prior.csf * modes["CSF"] + prior.wm * modes["WM"] + prior.gm * cortex
    excess = np.clip(y - expected, -0.5 * span, span).astype(np.float32)
    # 0.005, a neighbourhood 7 % grey: with less of it the local mode stays at the cortex's
    local = _blur(weight * excess, p.deep_sigma_mm, voxel_mm) / (_blur(weight**2, p.deep_sigma_mm, voxel_mm) + 0.005)
    # grey matter as bright as white matter cannot be told from it by intensity
    local = np.clip(local, -0.2 * span, 0.7 * span)
    # the prior's edge is soft, its inside is not
    inside = np.clip((_deep_share(prior, voxel_mm) - 0.2) / 0.5, 0.0, 1.0)
    return np.asarray(cortex + inside * local, dtype=np.float32)


def _deep_share(prior: _Prior, voxel_mm: NDArray[np.float64]) -> Array:
    """Return the share of grey matter that is deep, carried a little beyond the prior's edge."""
    grey = _blur(prior.gm, 1.0, voxel_mm)
    share = _blur(prior.gm * prior.deep, 1.0, voxel_mm) / np.maximum(grey, 1e-3)
    return np.asarray(np.clip(share, 0.0, 1.0), dtype=np.float32)


def _largest_grey(y: Array, c: float, g: Array | float, w: float) -> Array:
    """Return the largest grey matter share that an intensity between the modes allows."""
    lesser = np.minimum((y - c) / (g - c), (w - y) / (w - g))
    return np.asarray(np.clip(lesser, 0.0, 1.0), dtype=np.float32)


def _mixture(
    y: Array,
    grey_mode: Array,
    prior: _Prior,
    modes: Mapping[str, float],
    *,
    voxel_mm: NDArray[np.float64],
    blur_mm: float,
) -> tuple[Array, Array, Array]:
    """Return CSF, GM and WM fractions from intensity and the prior's grey matter purity."""
    c, w = modes["CSF"], modes["WM"]
    expected = prior.csf * c + prior.gm * grey_mode + prior.wm * w
    possible = np.where(prior.brain, _largest_grey(expected, c, grey_mode, w), 0.0).astype(np.float32)
    reached = _blur(prior.gm, blur_mm, voxel_mm)
    purity = np.clip(reached / np.maximum(_blur(possible, blur_mm, voxel_mm), 0.02), 0.0, 1.0)
    level = np.clip(y, c, w)
    gm = purity * _largest_grey(level, c, grey_mode, w)
    wm = np.clip((level - c - gm * (grey_mode - c)) / (w - c), 0.0, 1.0 - gm)
    # bright voxels far from white matter are dura, vessels or fat, not white matter
    far = _blur(prior.wm, 3.0, voxel_mm) < 0.01
    wm = np.where(far, 0.0, wm)
    gm = np.where(far & (_blur(prior.gm, 3.0, voxel_mm) < 0.01), 0.0, gm)
    csf = 1.0 - gm - wm
    return csf.astype(np.float32), gm.astype(np.float32), wm.astype(np.float32)


def _described(
    corrected: Volume,
    fractions: dict[str, Array],
    brain: Mask,
    modes: dict[str, float],
    *,
    noise: float,
    source: str,
    notes: tuple[str, ...],
) -> Segmentation:
    """Return the result with labels and volumes."""
    ml = corrected.grid.voxel_ml
    volume_ml = {name: float(data.sum(dtype=np.float64)) * ml for name, data in fractions.items()}
    tiv_ml = float(brain.sum()) * ml
    grey = volume_ml["CGM"] + volume_ml["DGM"]
    white = volume_ml["NAWM"] + volume_ml.get("L", 0.0)
    names = [name for name in LABELS if name in fractions]
    stack = np.stack([fractions[name] for name in names])
    code = np.array([LABELS[name] for name in names], dtype=np.int16)
    labels = np.where(brain, code[stack.argmax(axis=0)], np.int16(0)).astype(np.int16)
    return Segmentation(
        fractions=fractions,
        brain=brain,
        bias_corrected=corrected,
        labels=labels,
        volume_ml=volume_ml,
        tiv_ml=tiv_ml,
        bpf=(grey + white) / tiv_ml,
        gmf=grey / tiv_ml,
        wmf=white / tiv_ml,
        modes=modes,
        noise=noise,
        skull_stripped=source == "image",
        mask_source=source,
        notes=notes,
    )
