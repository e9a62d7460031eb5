"""Where the brain is, ventricles and sulci included.

Nouns: the *template's* mask came with the registration and is a millimetre or two off; the *learned* mask is that of
the deepbet network, for whole heads; a *stripped* image holds its own mask, because someone has cut the skull away.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import ConfigError, EstimationError

__all__ = ["has_network", "learned_mask", "own_mask", "trimmed"]

Array: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]


def has_network() -> bool:
    """Tell whether deepbet is installed; nothing is imported."""
    return find_spec("deepbet") is not None


def learned_mask(t1w: Volume) -> Mask:
    """Return deepbet's brain mask of a whole head.

    Parameters
    ----------
    t1w : Volume
        T1-weighted image with skull and scalp, in any orientation.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        Brain mask on the grid of the image: largest component, holes filled.

    Raises
    ------
    ConfigError
        If deepbet is not installed.
    EstimationError
        If the network finds no brain.

    References
    ----------
    Fisch et al. 2023, deepbet: fast brain extraction of T1-weighted MRI using convolutional neural networks,
    doi:10.48550/arXiv.2308.07003.
    """
    if not has_network():
        raise ConfigError("deepbet is not installed", hint="pip install 'bids_sodium[brainmask]', or ask for template")
    from deepbet import BrainExtraction

    order, signs = _canonical(t1w.grid.affine)
    turned = np.transpose(np.nan_to_num(np.asarray(t1w.data, dtype=np.float32)), order)[_flips(signs)]
    network = BrainExtraction(no_gpu=True)
    try:
        found = network.postprocess(network.run_model(np.ascontiguousarray(turned)) > 0.5)
    except (AssertionError, IndexError, ValueError) as error:
        raise EstimationError(
            f"deepbet finds no brain in the T1w image ({error})", hint="look at the image, or ask for the template"
        ) from error
    return np.ascontiguousarray(np.transpose(np.asarray(found, dtype=bool)[_flips(signs)], np.argsort(order)))


def own_mask(y: Array, brain: Mask, outside_mm: Array) -> tuple[Mask, bool]:
    """Return the mask that a skull-stripped image shows, or the template's, and whether the image came stripped.

    Parameters
    ----------
    y : (nx, ny, nz) ndarray
        T1-weighted image.
    brain : (nx, ny, nz) ndarray of bool
        Template's mask.
    outside_mm : (nx, ny, nz) ndarray
        Distance from the template's mask, in mm.

    Returns
    -------
    mask : (nx, ny, nz) ndarray of bool
        Brain mask.
    stripped : bool
        True where nothing is bright beyond 6 mm from the template's mask.

    Examples
    --------
    >>> radius = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    >>> ball = np.where(radius < 11, 100.0, 0.0).astype(np.float32)
    >>> mask, stripped = own_mask(ball, radius < 10, np.maximum(radius - 10, 0).astype(np.float32))
    >>> stripped, bool((mask == (radius < 11)).all())
    (True, True)
    """
    from scipy.ndimage import binary_closing, binary_fill_holes

    around = outside_mm <= 6.0
    level = 0.02 * float(np.percentile(y[brain], 95))
    stripped = bool((y[~around] <= level).mean() > 0.95) if not around.all() else False
    if not stripped:
        return brain, False
    own = (y > level) & around
    own = np.asarray(binary_fill_holes(binary_closing(own, iterations=2))) & around
    # a mask as large as the template's holds the sulci; a tighter one has cut CSF away, which the template gives back
    keeps_csf = own.sum() > 0.95 * brain.sum()
    return (own if keeps_csf else own | brain), True


def trimmed(
    y: Array,
    brain: Mask,
    modes: Mapping[str, float],
    *,
    noise: float,
    outside_mm: Array,
    inside_mm: Array,
) -> Mask:
    """Return the template's mask refined by intensity near its surface.

    Bright scalp is cut off, cortex that sticks out is added, and where the skull is darker than CSF by more than the
    noise the border follows the edge between the two: 2.5 mm inwards and, over dark skull, 3.5 mm outwards. Half way
    between the two is half way of the signals; a magnitude image shows ``sqrt(signal^2 + noise^2)``.

    Parameters
    ----------
    y : (nx, ny, nz) ndarray
        T1-weighted image, without bias and noise.
    brain : (nx, ny, nz) ndarray of bool
        Template's mask.
    modes : mapping of str to float
        Intensity of pure ``CSF``, ``GM`` and ``WM``.
    noise : float
        Standard deviation of the noise.
    outside_mm, inside_mm : (nx, ny, nz) ndarray
        Distances from the template's mask and from all that is not it, in mm.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        Brain mask of one component.
    """
    from scipy.ndimage import binary_closing, binary_fill_holes, binary_opening, label

    reach_mm = 2.5
    rim = brain & (inside_mm <= 2.5)
    fat = 2.0 * modes["WM"] - modes["GM"]
    refined = brain & ~(rim & (y > fat))
    cortex = 0.5 * (modes["CSF"] + modes["GM"])
    shell = ~brain & (outside_mm <= 6.0) & (y < cortex)
    bone = float(np.median(y[shell])) if shell.any() else modes["CSF"]
    floor = cortex
    if modes["CSF"] - bone > 2.0 * noise:
        half = 0.5 * (_signal(modes["CSF"], noise) + _signal(bone, noise))
        floor = float(np.hypot(half, noise))
        refined &= ~(rim & (y < floor))
        reach_mm = 3.5
    outer = ~brain & (outside_mm <= reach_mm)
    refined |= outer & (y > floor) & (y < fat)
    refined = np.asarray(binary_fill_holes(binary_closing(binary_opening(refined))))
    parts, count = label(refined)
    if count > 1:
        sizes = np.bincount(parts.ravel())[1:]
        refined = np.asarray(parts == 1 + int(sizes.argmax()))
    return refined


def _signal(mean: float, noise: float) -> float:
    """Return the signal behind the mean of a magnitude: nothing where the mean is that of noise alone."""
    # Rayleigh: mean^2 = pi/2 noise^2 without signal; Rice: signal^2 + noise^2 well above the noise
    beneath = 1.0 if mean > 2.0 * noise else 0.5 * np.pi
    return float(np.sqrt(max(mean**2 - beneath * noise**2, 0.0)))


def _canonical(affine: NDArray[np.float64]) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return which axis of the image runs along x, y and z, and whether it runs backwards (-1)."""
    from itertools import permutations

    cosine = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(permutations(range(3)), key=lambda axes: sum(abs(cosine[row, axis]) for row, axis in enumerate(axes)))
    return order, np.sign([cosine[row, axis] for row, axis in enumerate(order)])


def _flips(signs: NDArray[np.float64]) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if sign < 0 else 1) for sign in signs)
