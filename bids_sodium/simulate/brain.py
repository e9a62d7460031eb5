"""The digital head: tissues, lesions and their true sodium concentrations.

`Anatomy` is one person without lesions: volume fractions of cortical and deep grey matter, white matter,
cerebrospinal fluid, vitreous and soft tissue on one lattice (bone and air, which give no signal, are the rest).
`Head` is that person at one visit: fractions with lesions, concentrations, lesion masks and the change of the
diffusion coefficient. A person is the symmetric MNI152 head, ``p(x) = p_MNI(A x + u(x))``, with a random affine A and
a smooth random displacement u, interpolated once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.constants import CSF_MMOL_L
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError

__all__ = [
    "HEALTHY_MMOL_L",
    "PARENCHYMA",
    "Anatomy",
    "AnatomyParams",
    "Head",
    "MsLesionParams",
    "StrokeLesion",
    "StrokeLesionParams",
    "anatomy_of",
    "draw_anatomy",
    "draw_stroke_lesion",
    "healthy_head",
    "ms_head",
    "rigid",
    "sodium_rise_percent",
    "stroke_head",
]

_Array = NDArray[np.float32]
_Mask = NDArray[np.bool_]

HEALTHY_MMOL_L: dict[str, float] = {
    "CGM": 40.63,
    "DGM": 34.83,
    "NAWM": 32.03,
    "CSF": CSF_MMOL_L,
    "vitreous": 140.0,
    "soft": 25.0,
}
"""Sodium concentration of a healthy head, in mmol/L: brain from the healthy controls of Brownlee 2019, vitreous like
cerebrospinal fluid, soft tissue 20-30."""

PARENCHYMA = ("CGM", "DGM", "NAWM")
"""Tissues that lesions replace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnatomyParams:
    """How a person's anatomy is drawn from the template."""

    voxel_mm: float = 1.0
    """Voxel of the T1w frame that all truth lives on, in mm."""

    fov_mm: tuple[float, float, float] = (200.0, 232.0, 208.0)
    """Extent of the T1w frame, in mm; takes in the whole head."""

    centre_mni_mm: tuple[float, float, float] = (0.0, -16.0, 2.0)
    """MNI152 point that lies at the origin of the T1w frame before the random translation, in mm."""

    scale: tuple[float, float] = (0.87, 0.96)
    """Range of the size relative to MNI152, no unit; the template is larger than most people's brains."""

    anisotropy: float = 0.02
    """Standard deviation of the scale along each axis, no unit."""

    rotation_deg: float = 3.0
    """Standard deviation of the rotation about each axis, in degrees; drawn within two of them."""

    translation_mm: float = 2.5
    """Standard deviation of the translation along each axis, in mm; drawn within two of them."""

    displacement_mm: float = 2.0
    """Standard deviation of the smooth displacement along each axis, in mm."""

    smoothness_mm: float = 18.0
    """Standard deviation of the Gaussian that makes the displacement smooth, in mm."""

    csf_layer_mm: float = 1.2
    """Thickness of the fluid between brain mask and inner skull, in mm."""

    skull_mm: float = 6.0
    """Thickness of the skull, in mm."""

    scalp_mm: float = 5.0
    """Thickness of the scalp, in mm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MsLesionParams:
    """How white-matter lesions of multiple sclerosis are drawn."""

    volume_ml: tuple[float, float] = (2.0, 20.0)
    """Range of the T2 lesion volume, drawn log-uniformly, in mL (Brownlee 2019: 11 +- 12)."""

    t1hypo_share: float = 0.6
    """Probability that a lesion has a T1-hypointense core."""

    core_scale: float = 0.72
    """Size of that core relative to its lesion, no unit."""

    radius_mm: float = 3.6
    """Median radius of a lesion, in mm."""

    radius_spread: float = 0.4
    """Standard deviation of its logarithm."""

    periventricular_mm: float = 6.0
    """Distance from the ventricles over which lesions become e times rarer, in mm."""

    edge_mm: float = 1.0
    """Width of a lesion's edge, in mm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrokeLesionParams:
    """How a middle-cerebral-artery stroke is drawn and how its sodium evolves."""

    alpha_percent: float = 91.0
    """Asymptote of the sodium rise, in % (the stroke paper's fit)."""

    delta: float = 0.71
    """Exponent of time, no unit (the stroke paper's fit)."""

    gamma: float = 2.3
    """Logarithm of the half-rise constant, for time in h (the stroke paper's fit)."""

    rise_spread: float = 0.25
    """Standard deviation of the factor by which a person's rise differs, no unit."""

    converting_factor: float = 1.15
    """Factor of the rise where ionic oedema goes on to necrosis; the rest of the ionic oedema has 1."""

    cytotoxic_factor: float = 0.35
    """Factor of the rise in cytotoxic oedema outside the ionic oedema."""

    adc_plateau_percent: float = -45.0
    """Change of the diffusion coefficient in cytotoxic oedema, in % (the stroke paper)."""

    adc_spread_percent: float = 8.0
    """Its standard deviation between persons, in %."""

    radius_mm: float = 18.0
    """Median radius of the necrosis, in mm of MNI152."""

    radius_spread: float = 0.15
    """Standard deviation of its logarithm."""

    shift: float = 0.45
    """Distance between the centres of ionic oedema and necrosis, in radii."""

    ionic_scale: tuple[float, float] = (0.85, 1.0)
    """Size of the ionic oedema within 24 h and after, relative to the necrosis."""

    cytotoxic_scale: tuple[float, float] = (1.02, 1.15)
    """Size of the cytotoxic oedema within 24 h and after, relative to the necrosis."""

    minimum_ml: float = 1.0
    """Every overlap of ionic oedema and necrosis is at least this large, in mL (the stroke paper's 1 cm3)."""

    edge_mm: float = 1.5
    """Width of a region's edge, in mm."""


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """One person without lesions.

    Parameters
    ----------
    grid : Grid
        Lattice of the T1w frame.
    fractions : dict of ndarray
        Volume fraction of each tissue, 0 to 1, float32; their sum is at most 1.
    mni_mm : (nx, ny, nz, 3) ndarray or None
        MNI152 coordinates of every voxel, in mm; ``None`` for an anatomy that is not made from the template.
    ventricle_mm : ndarray or None
        Distance from the ventricles, in mm of MNI152.
    """

    grid: Grid
    fractions: dict[str, _Array]
    mni_mm: _Array | None = None
    ventricle_mm: _Array | None = None

    @property
    def parenchyma(self) -> _Array:
        """Fraction of brain tissue."""
        return np.asarray(sum(self.fractions[name] for name in PARENCHYMA if name in self.fractions), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """One person at one visit.

    Parameters
    ----------
    fractions : dict of Volume
        Volume fraction of each tissue and lesion class on the T1w lattice; their sum is at most 1.
    mmol_l : dict of float or ndarray
        Sodium concentration of each class, in mmol/L: one number, or one for each voxel.
    masks : dict of ndarray of bool
        Lesions as a perfect rater would draw them.
    sodium_change_percent, adc_change_percent : ndarray or None
        Change of sodium concentration and diffusion coefficient against the healthy tissue, in %.
    """

    fractions: dict[str, Volume]
    mmol_l: dict[str, float | _Array]
    masks: dict[str, _Mask]
    sodium_change_percent: _Array | None = None
    adc_change_percent: _Array | None = None

    @property
    def grid(self) -> Grid:
        """Lattice of the T1w frame."""
        return next(iter(self.fractions.values())).grid

    def true_mmol_l(self, name: str) -> float:
        """Return the mean concentration of a class, weighted by its fraction; NaN where the class is empty."""
        value = self.mmol_l[name]
        if not isinstance(value, np.ndarray):
            return float(value)
        weight = np.asarray(self.fractions[name].data, dtype=np.float64)
        return float((weight * value).sum() / weight.sum()) if weight.any() else float("nan")

    def volume_ml(self, name: str) -> float:
        """Return the volume of a class, in mL."""
        return float(np.asarray(self.fractions[name].data, dtype=np.float64).sum() * self.grid.voxel_ml)


@dataclass(frozen=True, slots=True, eq=False)
class StrokeLesion:
    """One stroke: memberships (0 to 1) of its regions within 24 h, after, and at three months.

    Parameters
    ----------
    ionic, cytotoxic : tuple of ndarray
        Membership within 24 h and from 25 to 70 h.
    necrosis : ndarray
        Membership at three months.
    rise_factor : float
        Factor of this person's sodium rise.
    adc_plateau_percent : float
        Change of the diffusion coefficient in cytotoxic oedema, in %.
    side : str
        ``"left"`` or ``"right"``.
    """

    ionic: tuple[_Array, _Array]
    cytotoxic: tuple[_Array, _Array]
    necrosis: _Array
    rise_factor: float
    adc_plateau_percent: float
    side: str


def rigid(rotation_deg: NDArray[np.floating], translation_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix that rotates about x, then y, then z (degrees) and then translates (mm).

    Examples
    --------
    >>> rigid(np.array([0.0, 0.0, 90.0]), np.array([1.0, 0.0, 0.0])).round(1)[:3, [0, 3]]
    array([[0., 1.],
           [1., 0.],
           [0., 0.]])
    """
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(rotation_deg)), np.sin(np.deg2rad(rotation_deg))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    matrix[:3, 3] = translation_mm
    return matrix


def sodium_rise_percent(t_h: float, params: StrokeLesionParams | None = None) -> float:
    """Return the sodium rise ``alpha t^delta / (e^gamma + t^delta)`` at time ``t_h`` after onset, in %.

    Examples
    --------
    >>> round(sodium_rise_percent(60.0), 1)
    58.9
    """
    p = params or StrokeLesionParams()
    return float(p.alpha_percent * t_h**p.delta / (np.exp(p.gamma) + t_h**p.delta))


@dataclass(frozen=True, slots=True, eq=False)
class _Shells:
    """Distances on a coarse lattice of MNI152, in mm: from the brain, and from the lateral ventricles."""

    grid: Grid
    outside_mm: _Array
    ventricle_mm: _Array


@cache
def _shells() -> _Shells:
    from scipy import ndimage

    template = load_head_template()
    low, high = np.array([-120.0, -150.0, -140.0]), np.array([120.0, 130.0, 140.0])
    shape = tuple(int(n) for n in (high - low) / 2.0 + 1.0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = low
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    to_template = np.linalg.inv(template.grid.affine) @ affine
    brain = ndimage.affine_transform(
        template.brain.astype(np.float32), to_template[:3, :3], to_template[:3, 3], grid.shape, order=1
    )
    fluid = ndimage.affine_transform(template.csf, to_template[:3, :3], to_template[:3, 3], grid.shape, order=1)
    inside = brain >= 0.5
    outside_mm = np.maximum(ndimage.distance_transform_edt(~inside, sampling=2.0) - 1.0, 0.0)
    depth_mm = ndimage.distance_transform_edt(inside, sampling=2.0)
    x, y, z = (np.arange(n) * 2.0 + low[a] for a, n in enumerate(grid.shape))
    central = (np.abs(x) < 40)[:, None, None] & ((y > -70) & (y < 45))[:, None] & ((z > 0) & (z < 40))
    ventricles = (fluid > 0.5) & (depth_mm > 22.0) & central
    ventricle_mm = ndimage.distance_transform_edt(~ventricles, sampling=2.0)
    return _Shells(grid, outside_mm.astype(np.float32), ventricle_mm.astype(np.float32))


def _smooth_field(grid: Grid, smoothness_mm: float, n: int, rng: np.random.Generator) -> _Array:
    """Return ``n`` Gaussian random fields (n, nx, ny, nz) of unit variance."""
    spacing = 0.75 * smoothness_mm
    bases = []
    for size, voxel in zip(grid.shape, grid.voxel_mm, strict=True):
        x = np.arange(size) * voxel
        nodes = np.arange(-3.0 * smoothness_mm, x[-1] + 3.0 * smoothness_mm, spacing)
        base = np.exp(-0.5 * ((x[:, None] - nodes) / smoothness_mm) ** 2)
        bases.append((base / np.sqrt((base**2).sum(axis=1, keepdims=True))).astype(np.float32))
    nodes_shape = (n, *(base.shape[1] for base in bases))
    field = rng.standard_normal(nodes_shape).astype(np.float32)
    for axis, base in enumerate(bases):
        field = np.moveaxis(np.tensordot(base, field, axes=(1, axis + 1)), 0, axis + 1)
    return np.ascontiguousarray(field)


def _soft_edge(signed_mm: NDArray[np.floating], width_mm: float) -> _Array:
    """Return 1 where ``signed_mm`` is well below zero and 0 well above, linear over the width."""
    return np.asarray(np.clip(0.5 - signed_mm / width_mm, 0.0, 1.0), dtype=np.float32)


def draw_anatomy(rng: np.random.Generator, params: AnatomyParams | None = None) -> Anatomy:
    """Draw one person.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    params : AnatomyParams, optional
        Lattice, size and shape.

    Returns
    -------
    Anatomy
        Tissues CGM, DGM, NAWM, CSF, vitreous and soft.
    """
    from scipy import ndimage

    p = params or AnatomyParams()
    template, shells = load_head_template(), _shells()
    shape = tuple(round(fov / p.voxel_mm) for fov in p.fov_mm)
    grid = Grid.centred((shape[0], shape[1], shape[2]), p.voxel_mm)
    stretch, rotation, translation = np.clip(rng.standard_normal((3, 3)), -2.0, 2.0)
    scale = rng.uniform(*p.scale) * (1.0 + p.anisotropy * stretch)
    t1w_from_mni = rigid(p.rotation_deg * rotation, p.translation_mm * translation)
    shift = np.eye(4)
    shift[:3, 3] = -np.array(p.centre_mni_mm)
    t1w_from_mni = t1w_from_mni @ np.diag([*scale, 1.0]) @ shift
    from_voxel = np.linalg.inv(t1w_from_mni) @ grid.affine
    displacement = _smooth_field(grid, p.smoothness_mm, 3, rng)
    mni = np.empty((*grid.shape, 3), dtype=np.float32)
    i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
    for axis in range(3):
        a = from_voxel[axis].astype(np.float32)
        mni[..., axis] = a[0] * i + a[1] * j + a[2] * k + a[3]
        mni[..., axis] += np.float32(p.displacement_mm) * displacement[axis]
    del displacement

    outside = _look_up(shells.outside_mm, shells.grid, mni)
    near = outside < 3.0
    points = mni[near]
    tissue = {
        name: np.clip(_look_up(array, template.grid, points), 0.0, 1.0)
        for name, array in (("gm", template.gm), ("wm", template.wm), ("deep", template.deep))
    }
    brain = tissue["gm"] + tissue["wm"]
    inside = np.maximum(_soft_edge(outside[near] - p.csf_layer_mm, 1.0), brain)
    values = {
        "CGM": tissue["gm"] * (1.0 - tissue["deep"]),
        "DGM": brain * tissue["deep"],
        "NAWM": tissue["wm"] * (1.0 - tissue["deep"]),
        "CSF": inside - brain,
    }
    fractions = {}
    for name, value in values.items():
        fractions[name] = np.zeros(grid.shape, dtype=np.float32)
        fractions[name][near] = value
    fractions["vitreous"], fractions["soft"] = _outer_head(mni, outside, p)
    within = sum(fractions[name] for name in values)
    room = np.maximum(1.0 - within, 0.0).astype(np.float32)
    fractions["vitreous"] = np.minimum(fractions["vitreous"], room)
    fractions["soft"] = np.minimum(fractions["soft"], room - fractions["vitreous"])
    ventricle = np.full(grid.shape, 1e3, dtype=np.float32)
    ventricle[near] = ndimage.map_coordinates(shells.ventricle_mm, _index(shells.grid, points), order=1, mode="nearest")
    return Anatomy(grid, fractions, mni, ventricle)


def _index(grid: Grid, points: _Array) -> _Array:
    return np.asarray(np.moveaxis(grid.index(points).astype(np.float32), -1, 0))


def _look_up(array: _Array, grid: Grid, points: _Array) -> _Array:
    from scipy import ndimage

    outside = 100.0 if grid is _shells().grid else 0.0
    return np.asarray(
        ndimage.map_coordinates(array, _index(grid, points), order=1, mode="constant", cval=outside), dtype=np.float32
    )


def _outer_head(mni: _Array, outside: _Array, p: AnatomyParams) -> tuple[_Array, _Array]:
    """Return vitreous and soft tissue: two eyes; scalp, face and neck as simple bodies in MNI152."""
    x, y, z = (mni[..., axis] for axis in range(3))
    eye = np.sqrt((np.abs(x) - 32.0) ** 2 + (y - 64.0) ** 2 + (z + 40.0) ** 2) - 12.0
    vitreous = _soft_edge(eye, 1.0) * (outside > 2.0)
    skull = p.csf_layer_mm + p.skull_mm
    scalp = outside - (skull + p.scalp_mm)
    face = (np.sqrt((x / 60.0) ** 2 + ((y - 38.0) / 50.0) ** 2 + ((z + 62.0) / 58.0) ** 2) - 1.0) * 50.0
    neck = np.maximum((np.sqrt((x / 56.0) ** 2 + ((y + 32.0) / 62.0) ** 2) - 1.0) * 56.0, z + 60.0)
    airway = np.sqrt((x / 9.0) ** 2 + ((y - 20.0) / 10.0) ** 2) * 9.0 - 9.0
    body = _soft_edge(np.minimum(np.minimum(scalp, face), neck), 1.0) * (1.0 - _soft_edge(outside - skull, 1.0))
    airless = 1.0 - _soft_edge(np.maximum(airway, z + 50.0), 1.0)
    return vitreous.astype(np.float32), (body * airless * (1.0 - vitreous)).astype(np.float32)


def anatomy_of(fractions: Mapping[str, Volume]) -> Anatomy:
    """Return an anatomy made of given tissue fractions, for example of a real person.

    Parameters
    ----------
    fractions : mapping of Volume
        Fractions on one lattice; names are those of `HEALTHY_MMOL_L` or lesion classes.

    Raises
    ------
    DataError
        If the lattices differ, or the fractions are negative or add up to more than one.
    """
    volumes = list(fractions.values())
    if not volumes:
        raise DataError("an anatomy needs at least one tissue", hint="give fractions by tissue name")
    grid = volumes[0].grid
    if not all(volume.grid.same_as(grid) for volume in volumes):
        raise DataError("the tissue fractions lie on different lattices", hint="resample them to one")
    arrays = {name: np.asarray(volume.data, dtype=np.float32) for name, volume in fractions.items()}
    total = np.asarray(sum(arrays.values()))
    lowest = min(float(array.min()) for array in arrays.values())
    if lowest < -1e-4 or float(total.max()) > 1.001:
        raise DataError(
            f"tissue fractions between {lowest:.3g} and a sum of {float(total.max()):.3g}",
            hint="fractions are 0 to 1 and add up to at most 1",
        )
    return Anatomy(grid, arrays)


def _head(
    anatomy: Anatomy, extra: Mapping[str, _Array], mmol_l: Mapping[str, float | _Array], masks: dict[str, _Mask]
) -> Head:
    arrays = {**anatomy.fractions, **extra}
    missing = [name for name in arrays if name not in mmol_l]
    if missing:
        raise DataError(f"no sodium concentration for {', '.join(missing)}", hint="state it in mmol/L")
    volumes = {name: Volume(array, anatomy.grid, "1") for name, array in arrays.items()}
    return Head(volumes, {name: mmol_l[name] for name in arrays}, masks)


def healthy_head(anatomy: Anatomy, mmol_l: Mapping[str, float] | None = None) -> Head:
    """Return a person without lesions.

    Parameters
    ----------
    anatomy : Anatomy
        The person.
    mmol_l : mapping, optional
        Concentrations that differ from `HEALTHY_MMOL_L`, in mmol/L.
    """
    return _head(anatomy, {}, {**HEALTHY_MMOL_L, **(mmol_l or {})}, {})


def ms_head(
    anatomy: Anatomy,
    rng: np.random.Generator,
    mmol_l: Mapping[str, float] | None = None,
    params: MsLesionParams | None = None,
    *,
    lesion_ml: float | None = None,
) -> Head:
    """Return a person with multiple sclerosis: T1-isointense and T1-hypointense white-matter lesions.

    Parameters
    ----------
    anatomy : Anatomy
        The person.
    rng : numpy.random.Generator
        Source of randomness.
    mmol_l : mapping, optional
        Concentrations that differ from `HEALTHY_MMOL_L`; ``T1iso`` and ``T1hypo`` default to 43.9 and 52.1 mmol/L.
    params : MsLesionParams, optional
        Number, size and place of the lesions.
    lesion_ml : float, optional
        T2 lesion volume; drawn where it is not given.

    Returns
    -------
    Head
        Classes ``T1iso`` and ``T1hypo`` take their fraction from NAWM; masks ``T2lesion`` (both) and ``T1hypo``.
    """
    p = params or MsLesionParams()
    target = lesion_ml if lesion_ml is not None else float(np.exp(rng.uniform(*np.log(p.volume_ml))))
    white = anatomy.fractions["NAWM"]
    candidates = np.flatnonzero(white > 0.8)
    if candidates.size == 0:
        raise DataError("the anatomy has no white matter to put lesions in", hint="check its NAWM fraction")
    if anatomy.ventricle_mm is None:
        weight = np.ones(candidates.size)
    else:
        weight = np.exp(-anatomy.ventricle_mm.ravel()[candidates] / p.periventricular_mm).astype(np.float64)
    weight /= weight.sum()
    lesion, core = np.zeros_like(white), np.zeros_like(white)
    volume = 0.0
    for _ in range(5000):
        if volume >= target:
            break
        left = (target - volume) * 1000.0
        radius = float(np.clip(p.radius_mm * np.exp(p.radius_spread * rng.standard_normal()), 1.8, 10.0))
        radius = min(radius, max(1.8, 1.2 * (3.0 * left / (4.0 * np.pi)) ** (1 / 3)))
        centre = np.array(np.unravel_index(int(rng.choice(candidates, p=weight)), white.shape))
        semi = radius * np.exp(0.2 * rng.standard_normal(3))
        turn = rigid(rng.uniform(0, 360, 3), np.zeros(3))[:3, :3]
        hypo = bool(rng.random() < p.t1hypo_share)
        box, offset_mm = _box(anatomy.grid, centre, float(semi.max()) + p.edge_mm)
        rho = np.sqrt((((offset_mm @ turn) / semi) ** 2).sum(axis=-1))
        before = lesion[box].copy()
        lesion[box] = np.maximum(before, _soft_edge((rho - 1.0) * radius, p.edge_mm))
        if hypo:
            core[box] = np.maximum(core[box], _soft_edge((rho - p.core_scale) * radius, p.edge_mm))
        volume += float(((lesion[box] - before) * white[box]).sum(dtype=np.float64)) * anatomy.grid.voxel_ml
    core = np.minimum(core, lesion)
    changed = replace(anatomy, fractions={**anatomy.fractions, "NAWM": white * (1.0 - lesion)})
    extra = {"T1iso": (lesion - core) * white, "T1hypo": core * white}
    masks = {"T2lesion": lesion * white >= 0.5, "T1hypo": core * white >= 0.5}
    return _head(changed, extra, {**HEALTHY_MMOL_L, "T1iso": 43.93, "T1hypo": 52.08, **(mmol_l or {})}, masks)


def _box(grid: Grid, centre: NDArray[np.integer], reach_mm: float) -> tuple[tuple[slice, ...], NDArray[np.float64]]:
    """Return the box round a voxel and the offsets of its voxels from it in mm."""
    steps = np.ceil(reach_mm / np.array(grid.voxel_mm)).astype(int) + 1
    box = tuple(
        slice(max(int(c - s), 0), min(int(c + s) + 1, n)) for c, s, n in zip(centre, steps, grid.shape, strict=True)
    )
    index = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), axis=-1)
    return box, np.asarray((index - centre) @ grid.affine[:3, :3].T)


def draw_stroke_lesion(
    anatomy: Anatomy, rng: np.random.Generator, params: StrokeLesionParams | None = None, *, side: str | None = None
) -> StrokeLesion:
    """Draw a stroke in the territory of one middle cerebral artery.

    Regions are ellipsoids with a randomly wavy surface, cut to one hemisphere; they grow until ionic & necrosis,
    necrosis - ionic and ionic - necrosis each reach the minimum volume at both early visits.

    Parameters
    ----------
    anatomy : Anatomy
        The person; made from the template.
    rng : numpy.random.Generator
        Source of randomness.
    params : StrokeLesionParams, optional
        Size, overlap and course.
    side : {"left", "right"}, optional
        Hemisphere; drawn where it is not given.

    Raises
    ------
    DataError
        If the anatomy does not know its MNI152 coordinates.
    EstimationError
        If the regions cannot be made large enough.
    """
    p = params or StrokeLesionParams()
    if anatomy.mni_mm is None:
        raise DataError("the anatomy has no MNI152 coordinates", hint="draw it from the template")
    side = side or ("left" if rng.random() < 0.6 else "right")
    sign = -1.0 if side == "left" else 1.0
    centre = np.array([42.0 * sign, -8.0, 18.0]) + rng.standard_normal(3) * [3.0, 9.0, 6.0]
    direction = rng.standard_normal(3) * [0.5, 1.0, 1.0]
    direction /= np.linalg.norm(direction)
    radius = float(np.clip(p.radius_mm * np.exp(p.radius_spread * rng.standard_normal()), 15.0, 25.0))
    wave = 0.10 * _smooth_field(anatomy.grid, 9.0, 1, rng)[0]
    rise = float(np.clip(1.0 + p.rise_spread * rng.standard_normal(), 0.4, 1.7))
    plateau = float(np.clip(p.adc_plateau_percent + p.adc_spread_percent * rng.standard_normal(), -75.0, -15.0))
    tissue = anatomy.parenchyma
    beyond = sign * anatomy.mni_mm[..., 0] > 3.0
    place = np.nonzero(beyond & (tissue > 0.05))
    points, wavy, share = anatomy.mni_mm[place], wave[place], tissue[place]
    shift = p.shift
    for _ in range(12):
        away = 0.5 * shift * radius * direction

        def member(offset: NDArray[np.floating], scale: float, r: float = radius) -> _Array:
            rho = np.sqrt((((points - centre - offset) / (r * np.array([1.0, 1.4, 1.15]))) ** 2).sum(axis=-1))
            return _soft_edge((rho / scale + wavy - 1.0) * r, p.edge_mm)

        necrosis = member(-away, 1.0)
        ionic = [member(away, scale) for scale in p.ionic_scale]
        cytotoxic = [member(0.2 * away, scale) for scale in p.cytotoxic_scale]
        dead = share * necrosis >= 0.5
        overlaps = [
            float(part.sum()) * anatomy.grid.voxel_ml
            for swollen in ionic
            for wet in [share * swollen >= 0.5]
            for part in (wet & dead, wet & ~dead, dead & ~wet)
        ]
        if min(overlaps) >= 1.2 * p.minimum_ml:
            break
        radius *= 1.04
        shift += 0.04
    else:
        raise EstimationError(
            f"the smallest overlap of ionic oedema and necrosis is {min(overlaps):.2f} mL, {p.minimum_ml:g} wanted",
            hint="draw again with another seed or a larger radius",
        )

    def everywhere(values: _Array) -> _Array:
        out = np.zeros(anatomy.grid.shape, dtype=np.float32)
        out[place] = values
        return out

    return StrokeLesion(
        (everywhere(ionic[0]), everywhere(ionic[1])),
        (everywhere(cytotoxic[0]), everywhere(cytotoxic[1])),
        everywhere(necrosis),
        rise,
        plateau,
        side,
    )


def stroke_head(
    anatomy: Anatomy,
    lesion: StrokeLesion,
    onset_h: float,
    mmol_l: Mapping[str, float] | None = None,
    params: StrokeLesionParams | None = None,
) -> Head:
    """Return a person some hours after a stroke.

    Up to 24 h the early oedemas are there, up to 100 h the late ones, after that the necrosis.

    Parameters
    ----------
    anatomy : Anatomy
        The person.
    lesion : StrokeLesion
        The stroke.
    onset_h : float
        Time from onset, in h.
    mmol_l : mapping, optional
        Concentrations of healthy tissue that differ from `HEALTHY_MMOL_L`.
    params : StrokeLesionParams, optional
        Course of the sodium rise.

    Returns
    -------
    Head
        Classes ``ionic`` and ``cytotoxic`` (outside the ionic), or ``necrosis``, take their fraction from grey and
        white matter in equal shares; their concentration is that of the tissue they replace times the rise. Masks
        ``ionic`` and ``cytotoxic``, or ``necrosis``, are those of the visit.
    """
    p = params or StrokeLesionParams()
    tissue = anatomy.parenchyma
    concentrations: dict[str, float | _Array] = {**HEALTHY_MMOL_L, **(mmol_l or {})}
    sodium = np.asarray(sum(np.float32(concentrations[name]) * anatomy.fractions[name] for name in PARENCHYMA))
    local = np.divide(sodium, tissue, out=np.zeros_like(sodium), where=tissue > 1e-3)
    if onset_h > 100.0:
        whole, change, adc = lesion.necrosis, None, None
        extra = {"necrosis": tissue * lesion.necrosis}
        concentrations["necrosis"] = (1.0 + 0.01 * p.alpha_percent * lesion.rise_factor) * local
        masks = {"necrosis": extra["necrosis"] >= 0.5}
    else:
        visit = 0 if onset_h <= 24.0 else 1
        ionic = lesion.ionic[visit]
        cytotoxic = np.maximum(lesion.cytotoxic[visit] - ionic, 0.0)
        whole = ionic + cytotoxic
        rise = sodium_rise_percent(onset_h, p) * lesion.rise_factor
        in_ionic = rise * (1.0 + (p.converting_factor - 1.0) * lesion.necrosis)
        in_cytotoxic = rise * p.cytotoxic_factor
        extra = {"ionic": tissue * ionic, "cytotoxic": tissue * cytotoxic}
        concentrations["ionic"] = (local * (1.0 + 0.01 * in_ionic)).astype(np.float32)
        concentrations["cytotoxic"] = (local * np.float32(1.0 + 0.01 * in_cytotoxic)).astype(np.float32)
        change = (in_ionic * ionic + in_cytotoxic * cytotoxic).astype(np.float32)
        adc = (lesion.adc_plateau_percent * lesion.cytotoxic[visit]).astype(np.float32)
        masks = {"ionic": tissue * ionic >= 0.5, "cytotoxic": tissue * lesion.cytotoxic[visit] >= 0.5}
    remaining = {name: anatomy.fractions[name] * (1.0 - whole) for name in PARENCHYMA}
    changed = replace(anatomy, fractions={**anatomy.fractions, **remaining})
    head = _head(changed, extra, concentrations, masks)
    return replace(head, sodium_change_percent=change, adc_change_percent=adc)
