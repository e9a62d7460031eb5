"""Regions of interest: set algebra on masks, consensus and agreement of raters, and the rule that admits a region.

Nouns: a *mask* is a boolean array, an *expression* a sentence of set algebra on names of masks
(``"necrosis - ionic"``), a *consensus* the one mask that several raters stand behind, an *agreement* how close two
raters are, a *verdict* whether a region is large enough to enter an analysis, with its reason.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import box_of
from bids_sodium.core.errors import ConfigError, DataError, GeometryError

__all__ = ["Agreement", "RoiParams", "Verdict", "agreement", "atoms", "combine", "consensus", "names_in", "screen"]

Mask: TypeAlias = NDArray[np.bool_]
Rule: TypeAlias = Literal["average", "majority", "intersection", "union", "staple"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiParams:
    """Which regions are made of the delineated ones, which are large enough, and how alike their parts are."""

    minimum_ml: float = 1.0
    """Smallest volume of a region that enters an analysis, in mL (1 cm3, about five resolution elements of a 4 mm
    sodium scan)."""

    expressions: tuple[str, ...] = (
        "ionic&necrosis",
        "necrosis-ionic",
        "ionic-necrosis",
        "cytotoxic&necrosis",
        "necrosis-cytotoxic",
        "cytotoxic-necrosis",
    )
    """Set expressions on the delineated regions that become regions of their own."""

    healthy_sd_mmol_l: float = 2.0
    """Standard deviation by which healthy tissue beside another place differs from what its composition of cortex, deep
    grey and white matter predicts, in mmol/L: the mirror image of a small region leans on the whole brain."""

    lesion_sd_mmol_l: float = 10.0
    """Standard deviation with which the concentration varies smoothly over a lesion, in mmol/L: what varies inside a
    region widens its error."""

    lesion_length_mm: float = 15.0
    """Distance at which the correlation of that variation has fallen to 1/e, in mm."""

    lesion_step_mmol_l: float = 20.0
    """Standard deviation of the steps between parts of a lesion, in mmol/L: a part of a few millilitres, or a rim
    thinner than the point spread, leans on the others."""

    consensus: Rule = "average"
    """How the masks of several raters become one: ``average`` (mean of the signed distances to their outlines),
    ``majority`` (more than half of the raters), ``intersection``, ``union`` or ``staple`` (each rater weighted by the
    sensitivity and specificity that the masks themselves tell; Warfield 2004)."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close the masks of two raters are.

    Parameters
    ----------
    dice : float
        Overlap, ``2 |A & B| / (|A| + |B|)``; ``nan`` where both are empty.
    volume_a_ml, volume_b_ml : float
        Volumes of the two masks, in mL.
    hausdorff95_mm : float
        95th percentile of the distances between the outlines, in mm; ``nan`` where a mask is empty.
    """

    dice: float
    volume_a_ml: float
    volume_b_ml: float
    hausdorff95_mm: float

    @property
    def volume_difference_ml(self) -> float:
        """Second volume minus the first, in mL."""
        return self.volume_b_ml - self.volume_a_ml


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a region enters the analyses.

    Parameters
    ----------
    kept : bool
        True where it does.
    reason : str
        Why it does not, empty where it does.
    n_voxels : int
        Number of voxels.
    volume_ml : float
        Volume, in mL.
    """

    kept: bool
    reason: str
    n_voxels: int
    volume_ml: float


_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z][A-Za-z0-9_]*)|(?P<sign>[&|()\-]))")


def _tokens(expression: str) -> list[tuple[str, int]]:
    tokens: list[tuple[str, int]] = []
    position, end = 0, len(expression.rstrip())
    while position < end:
        match = _TOKEN.match(expression, position)
        if match is None:
            at = position + len(expression[position:]) - len(expression[position:].lstrip())
            raise ConfigError(
                f"{expression[at]!r} at character {at + 1} does not belong in a region expression",
                where=f"expression {expression!r}",
                hint="use names, & (and), | (or), - (without) and parentheses",
            )
        tokens.append((match["name"] or match["sign"], match.end() - len(match["name"] or match["sign"])))
        position = match.end()
    return tokens


def names_in(expression: str) -> tuple[str, ...]:
    """Return the names of masks in an expression, each once, in order of appearance.

    Parameters
    ----------
    expression : str
        Set expression.

    Returns
    -------
    tuple of str
        Names.

    Raises
    ------
    ConfigError
        If a character is neither a name nor one of ``& | - ( )``.

    Examples
    --------
    >>> names_in("(ionic | cytotoxic) - necrosis")
    ('ionic', 'cytotoxic', 'necrosis')
    """
    return tuple(dict.fromkeys(text for text, _ in _tokens(expression) if text[0].isalpha()))


def _as_mask(mask: NDArray[np.generic]) -> Mask:
    array = np.asarray(mask)
    return array if array.dtype == np.bool_ else np.asarray(array > (0.5 if array.dtype.kind == "f" else 0))


class _Parser:
    """Recursive descent with Python's precedence for sets: ``-`` binds tighter than ``&``, ``&`` than ``|``."""

    def __init__(self, expression: str, masks: Mapping[str, NDArray[np.generic]]) -> None:
        self.expression = expression
        self.masks = masks
        self.tokens = _tokens(expression)
        self.next = 0

    def fail(self, expected: str) -> ConfigError:
        if self.next < len(self.tokens):
            text, at = self.tokens[self.next]
            seen = f"{text!r} at character {at + 1}"
        else:
            seen = "the end"
        return ConfigError(f"expected {expected} but found {seen}", where=f"expression {self.expression!r}")

    def peek(self) -> str:
        return self.tokens[self.next][0] if self.next < len(self.tokens) else ""

    def take(self, sign: str) -> bool:
        if self.peek() != sign:
            return False
        self.next += 1
        return True

    def union(self) -> Mask:
        mask = self.meet()
        while self.take("|"):
            mask = mask | self.meet()
        return mask

    def meet(self) -> Mask:
        mask = self.difference()
        while self.take("&"):
            mask = mask & self.difference()
        return mask

    def difference(self) -> Mask:
        mask = self.atom()
        while self.take("-"):
            mask = mask & ~self.atom()
        return mask

    def atom(self) -> Mask:
        if self.take("("):
            mask = self.union()
            if not self.take(")"):
                raise self.fail("')'")
            return mask
        name = self.peek()
        if not name or not name[0].isalpha():
            raise self.fail("a name or '('")
        if name not in self.masks:
            close = difflib.get_close_matches(name, self.masks, n=1)
            known = ", ".join(sorted(self.masks)) or "none"
            raise ConfigError(
                f"unknown region {name!r}; known regions: {known}",
                where=f"expression {self.expression!r}",
                hint=f"did you mean {close[0]!r}?" if close else "delineate it, or correct its name",
            )
        self.next += 1
        return _as_mask(self.masks[name])


def combine(masks: Mapping[str, NDArray[np.generic]], expression: str) -> Mask:
    """Return the mask that a set expression names.

    ``&`` is intersection, ``|`` union, ``-`` difference; as for Python's sets, ``-`` binds tighter than ``&`` and
    ``&`` tighter than ``|``; operators of one kind are read from left to right; parentheses go first.

    Parameters
    ----------
    masks : mapping of str to (nx, ny, nz) ndarray
        Masks by name, all of one shape. Floating-point masks are cut at 0.5.
    expression : str
        For example ``"necrosis - ionic"`` or ``"ionic & (necrosis | cytotoxic)"``.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        The region.

    Raises
    ------
    ConfigError
        If the expression is not well formed or names an unknown mask.
    GeometryError
        If the masks differ in shape.

    Examples
    --------
    >>> masks = {"ionic": np.array([1, 1, 0], bool), "necrosis": np.array([0, 1, 1], bool)}
    >>> combine(masks, "necrosis - ionic").astype(int)
    array([0, 0, 1])
    """
    used = [name for name in names_in(expression) if name in masks]
    _require_one_shape({name: np.asarray(masks[name]).shape for name in used})
    parser = _Parser(expression, masks)
    mask = parser.union()
    if parser.next < len(parser.tokens):
        raise parser.fail("&, |, - or the end")
    return mask.copy()


def atoms(masks: Mapping[str, NDArray[np.generic]]) -> dict[tuple[str, ...], Mask]:
    """Return the disjoint parts that masks cut each other into; every set expression is a union of some of them.

    Parameters
    ----------
    masks : mapping of str to (nx, ny, nz) ndarray
        Masks by name, at most 31, all of one shape.

    Returns
    -------
    dict of tuple of str to (nx, ny, nz) ndarray of bool
        Parts that are not empty, by the names of the masks that hold them.

    Raises
    ------
    GeometryError
        If the masks differ in shape.

    Examples
    --------
    >>> masks = {"ionic": np.array([1, 1, 0, 0], bool), "necrosis": np.array([0, 1, 1, 0], bool)}
    >>> {names: part.astype(int).tolist() for names, part in atoms(masks).items()}
    {('ionic',): [1, 0, 0, 0], ('necrosis',): [0, 0, 1, 0], ('ionic', 'necrosis'): [0, 1, 0, 0]}
    """
    _require_one_shape({name: np.asarray(mask).shape for name, mask in masks.items()})
    code: NDArray[np.int64] = np.sum([_as_mask(m).astype(np.int64) << i for i, m in enumerate(masks.values())], axis=0)
    return {
        tuple(name for i, name in enumerate(masks) if value >> i & 1): np.asarray(code == value)
        for value in np.unique(code[code > 0]).tolist()
    }


def _require_one_shape(shapes: Mapping[str, tuple[int, ...]]) -> None:
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise GeometryError(f"masks of different shapes: {listed}", hint="resample them onto one grid first")


def _signed_distance(mask: Mask, voxel_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the distance to the outline in mm, negative inside; the outline lies half way between voxels."""
    from scipy.ndimage import distance_transform_edt

    outside = distance_transform_edt(~mask, sampling=voxel_mm)
    inside = distance_transform_edt(mask, sampling=voxel_mm)
    half = 0.5 * min(voxel_mm)
    return np.asarray(np.where(mask, half - inside, outside - half))


def consensus(
    raters: Sequence[NDArray[np.generic]],
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    rule: Rule = "average",
) -> Mask:
    """Return the one mask that the masks of several raters stand for.

    ``average`` is the region inside the mean of the raters' signed distance maps: its outline runs half way between
    theirs, so two raters count alike and neither union nor intersection biases the volume. Where some rater drew
    nothing there is no distance to average and the majority decides.

    Parameters
    ----------
    raters : sequence of (nx, ny, nz) ndarray
        One mask a rater.
    voxel_mm : tuple of float
        Edge lengths of a voxel, in mm.
    rule : {"average", "majority", "intersection", "union", "staple"}
        How they become one; ``majority`` asks for more than half of the raters. ``staple`` is for three raters or more
        and takes the majority below that.

    Returns
    -------
    (nx, ny, nz) ndarray of bool
        The consensus.

    Raises
    ------
    DataError
        If there is no rater or the rule is unknown.
    GeometryError
        If the masks differ in shape.

    References
    ----------
    Rohlfing and Maurer 2007, IEEE Trans Image Process 16:153, doi:10.1109/TIP.2006.884936 (shape-based averaging).
    Warfield 2004, IEEE Trans Med Imaging 23:903, doi:10.1109/TMI.2004.828354 (STAPLE).

    Examples
    --------
    >>> small, large = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), bool)
    >>> small[4:8, 4:8, 4:8], large[2:10, 2:10, 2:10] = True, True
    >>> int(small.sum()), int(consensus([small, large]).sum()), int(large.sum())
    (64, 216, 512)
    """
    if not raters:
        raise DataError("no rater's mask to make a consensus of")
    masks = [_as_mask(rater) for rater in raters]
    _require_one_shape({f"rater {i + 1}": mask.shape for i, mask in enumerate(masks)})
    votes = np.sum(masks, axis=0)
    if rule == "union":
        return np.asarray(votes > 0)
    if rule == "intersection":
        return np.asarray(votes == len(masks))
    if rule == "staple" and len(masks) > 2 and votes.any():
        return _staple(masks, votes)
    if rule in {"majority", "staple"} or (rule == "average" and not all(mask.any() for mask in masks)):
        return np.asarray(votes > len(masks) / 2)
    if rule == "average":
        box = box_of(np.asarray(votes > 0), 1)
        mean = np.mean([_signed_distance(mask[box], voxel_mm) for mask in masks], axis=0)
        result = np.zeros(votes.shape, dtype=bool)
        result[box] = mean <= 0
        return result
    raise DataError(f"unknown consensus rule {rule!r}", hint="use average, majority, intersection, union or staple")


def _staple(masks: Sequence[Mask], votes: NDArray[np.int64]) -> Mask:
    """Return where a voxel more likely than not belongs to the region, given how well each rater draws.

    Raters differ at the outline: with the whole image as the field the empty background would make every rater
    specific, so only the neighbourhood of the masks counts.
    """
    import SimpleITK as sitk  # noqa: N813

    box = box_of(np.asarray(votes > 0), margin=2)
    images = [sitk.GetImageFromArray(mask[box].astype(np.uint8)) for mask in masks]
    likely = sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)) > 0.5
    result = np.zeros(votes.shape, dtype=bool)
    result[box] = likely
    return result


def agreement(
    a: NDArray[np.generic], b: NDArray[np.generic], *, voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Agreement:
    """Compare the masks of two raters.

    Parameters
    ----------
    a, b : (nx, ny, nz) ndarray
        The masks.
    voxel_mm : tuple of float
        Edge lengths of a voxel, in mm.

    Returns
    -------
    Agreement
        Dice overlap, volumes and 95 % Hausdorff distance.

    Raises
    ------
    GeometryError
        If the masks differ in shape.

    Examples
    --------
    >>> mask = np.zeros((8, 8, 8), bool)
    >>> mask[2:6, 2:6, 2:6] = True
    >>> result = agreement(mask, np.roll(mask, 1, axis=0))
    >>> result.dice, result.hausdorff95_mm
    (0.75, 1.0)
    """
    first, second = _as_mask(a), _as_mask(b)
    _require_one_shape({"first rater": first.shape, "second rater": second.shape})
    n_a, n_b, both = int(first.sum()), int(second.sum()), int((first & second).sum())
    ml = float(np.prod(voxel_mm)) / 1000.0
    dice = 2 * both / (n_a + n_b) if n_a + n_b else float("nan")
    hausdorff = float("nan")
    if n_a and n_b:
        box = box_of(first | second, 1)
        hausdorff = _hausdorff95(np.pad(first[box], 1), np.pad(second[box], 1), voxel_mm)
    return Agreement(dice, n_a * ml, n_b * ml, hausdorff)


def _hausdorff95(a: Mask, b: Mask, voxel_mm: tuple[float, float, float]) -> float:
    from scipy.ndimage import binary_erosion, distance_transform_edt

    rim_a, rim_b = a & ~binary_erosion(a), b & ~binary_erosion(b)
    to_b = distance_transform_edt(~rim_b, sampling=voxel_mm)[rim_a]
    to_a = distance_transform_edt(~rim_a, sampling=voxel_mm)[rim_b]
    return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def screen(mask: NDArray[np.generic], voxel_ml: float, params: RoiParams | None = None) -> Verdict:
    """Decide whether a region is large enough, and say why not.

    Parameters
    ----------
    mask : (nx, ny, nz) ndarray
        The region.
    voxel_ml : float
        Volume of a voxel, in mL.
    params : RoiParams
        Holds the smallest volume.

    Returns
    -------
    Verdict
        Kept or not, the reason, voxels and volume.

    Examples
    --------
    >>> screen(np.ones((5, 5, 5), bool), 0.001).reason
    'volume 0.125 mL is below 1 mL'
    """
    limit = (RoiParams() if params is None else params).minimum_ml
    n_voxels = int(_as_mask(mask).sum())
    volume_ml = n_voxels * voxel_ml
    if n_voxels == 0:
        return Verdict(False, "the region is empty", 0, 0.0)
    # a mask of exactly the limit is kept although its voxel volume may be rounded
    if volume_ml < limit * (1.0 - 1e-9):
        return Verdict(False, f"volume {volume_ml:.3g} mL is below {limit:g} mL", n_voxels, volume_ml)
    return Verdict(True, "", n_voxels, volume_ml)
