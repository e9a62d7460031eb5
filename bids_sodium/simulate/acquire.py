"""The scan of a digital head: sodium k-space, and 1H images in their own, misaligned frames.

A sodium sample at ``k``, a time ``t`` after the start of the readout, is the sum over tissues and voxels

    s(k, t) = sum_q g_q D_q(TE + t) sum_x C_q(x) p_q(x) V exp(-2 pi i k.(r(x) - r0)) exp(2 pi i df t) + noise

with fraction p, concentration C, steady-state factor ``g = sin(a) (1 - E1) / (1 - cos(a) E1)``, decay D and voxel
volume V. The tissue maps stay on their own lattice, turned and shifted against the image grid, and are band-limited
to a coarser one in the Fourier domain: nothing is interpolated, and no voxel of the truth is a voxel of the image. A
vial is a cylinder whose transform is known in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import AGAR, GAMMA_BAR_MHZ_T, RELAXATION, Relaxation, relaxation_of
from bids_sodium.core.data import Grid, KSpace, Trajectory, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.recon.density import sample_weights
from bids_sodium.simulate.brain import PARENCHYMA, Head

__all__ = [
    "B_VALUE_S_MM2",
    "VIALS",
    "Diffusion",
    "Vial",
    "contrast",
    "diffusion",
    "noise_of_image",
    "relaxation_in_head",
    "scan_1h",
    "simulate_kspace",
    "to_scanner",
    "vial_fraction",
    "white_noise",
]

_Array = NDArray[np.float32]

# Half the sampling rate of the coarser lattice over k_max; the low-pass filter has room from 1 to here.
_OVERSAMPLING = 2.3

B_VALUE_S_MM2 = 1000.0
"""Diffusion weighting of the stroke paper, in s/mm2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vial:
    """A cylinder of agar, its axis along z of the sodium frame."""

    name: str
    """Label of its masks."""

    mmol_l: float
    """Sodium concentration, in mmol/L."""

    centre_mm: tuple[float, float, float]
    """Centre in the sodium frame, in mm."""

    radius_mm: float = 12.0
    """Inner radius, in mm."""

    length_mm: float = 60.0
    """Inner length, in mm."""

    relaxation: Relaxation = AGAR
    """Relaxation of the gel."""


VIALS = (
    Vial(name="phantom40", mmol_l=40.0, centre_mm=(-88.0, 68.0, 14.0)),
    Vial(name="phantom80", mmol_l=80.0, centre_mm=(88.0, 68.0, 14.0)),
)
"""Two vials in front of the temples, clear of every head that the simulator draws, within a field of view of 240 mm."""


def relaxation_in_head(name: str) -> Relaxation:
    """Return the relaxation of a class of the digital head; vitreous relaxes like cerebrospinal fluid.

    Raises
    ------
    DataError
        If the class has no relaxation times.

    Examples
    --------
    >>> relaxation_in_head("vitreous") is RELAXATION["CSF"]
    True
    """
    try:
        return relaxation_of("CSF" if name == "vitreous" else name)
    except KeyError as error:
        raise DataError(
            f"no relaxation times for the tissue '{name}'",
            hint=f"use one of {', '.join(RELAXATION)} or a lesion label, or pass relaxation=",
        ) from error


def noise_of_image(trajectory: Trajectory, grid: Grid, sigma_k: float) -> float:
    """Return the noise of the density-weighted adjoint image, ``sigma_k sqrt(sum w^2)``, in the real part."""
    return float(sigma_k * np.sqrt((sample_weights(trajectory, grid) ** 2).sum()))


def simulate_kspace(
    fractions: Mapping[str, Volume],
    mmol_l: Mapping[str, float | NDArray[np.floating]],
    *,
    trajectory: Trajectory,
    grid: Grid,
    te_ms: float,
    tr_ms: float,
    flip_deg: float,
    snr: float,
    rng: np.random.Generator,
    na_from_fractions: NDArray[np.floating] | None = None,
    vials: Sequence[Vial] = VIALS,
    relaxation: Mapping[str, Relaxation] | None = None,
    gain: float = 1.0,
    phase_rad: float = 0.0,
    off_resonance_hz: float = 0.0,
    field_t: float = 3.0,
    snr_tissue: str = "NAWM",
    threads: int = 1,
) -> KSpace:
    """Return the k-space of a digital head.

    Parameters
    ----------
    fractions : mapping of Volume
        Volume fraction of each tissue; every map may have its own lattice.
    mmol_l : mapping of float or ndarray
        Sodium concentration of each tissue, in mmol/L: one number, or one for each voxel of its map.
    trajectory : Trajectory
        Where and when k-space is sampled.
    grid : Grid
        The image grid: field of view, matrix and centre of the scan.
    te_ms, tr_ms, flip_deg : float
        Echo time (to the start of the readout) and repetition time, in ms, and flip angle, in degrees.
    snr : float
        Signal of ``snr_tissue`` over the standard deviation of the noise in the real part of the density-weighted
        adjoint image; ``inf`` for no noise.
    rng : numpy.random.Generator
        Source of the noise.
    na_from_fractions : (4, 4) ndarray, optional
        Maps points (RAS, mm) of the maps' frame to the sodium frame; the identity by default.
    vials : sequence of Vial
        Vials in the sodium frame.
    relaxation : mapping of Relaxation, optional
        Relaxation of tissues that differ from `relaxation_in_head`.
    gain : float
        Signal per mmol/L of fully relaxed, undecayed sodium.
    phase_rad : float
        Global phase, in rad.
    off_resonance_hz : float
        Offset of the centre frequency, in Hz.
    field_t : float
        Field strength, in T.
    snr_tissue : str
        Tissue that ``snr`` speaks of.
    threads : int
        Threads of the transform.

    Returns
    -------
    KSpace
        One coil.

    Raises
    ------
    DataError
        If a tissue has no concentration or relaxation, or ``snr`` is not positive.
    """
    if not snr > 0:
        raise DataError(f"a signal-to-noise ratio of {snr:g}", hint="give a positive number, or inf for no noise")
    missing = [name for name in fractions if name not in mmol_l]
    if missing:
        raise DataError(f"no sodium concentration for {', '.join(missing)}", hint="state it in mmol/L")
    own = {name: (relaxation or {}).get(name) or relaxation_in_head(name) for name in fractions}
    pose = np.eye(4) if na_from_fractions is None else np.asarray(na_from_fractions, dtype=np.float64)
    t_ms = trajectory.t_ms.astype(np.float64)
    steady = {name: _steady(own[name], tr_ms, flip_deg) for name in fractions}

    # Tissues with equal decay on one lattice share one transform.
    groups: dict[tuple[object, ...], tuple[Grid, Relaxation, _Array]] = {}
    for name, volume in fractions.items():
        data = np.asarray(volume.data, dtype=np.float32) * np.asarray(mmol_l[name], dtype=np.float32)
        key = (own[name].decay, volume.grid.shape, volume.grid.affine.tobytes())
        before = groups[key][2] if key in groups else np.float32(0.0)
        groups[key] = (volume.grid, own[name], np.asarray(before + np.float32(steady[name]) * data))

    samples = np.zeros((trajectory.n_shots, trajectory.n_samples), dtype=np.complex64)
    k_world = _along_world(trajectory, grid)
    for lattice, material, signal in groups.values():
        if signal.any():
            spectrum = _transform(signal, lattice, pose, k_world, grid, threads=threads)
            samples += spectrum.reshape(samples.shape) * material.decay.at(te_ms + t_ms).astype(np.float32)
    for vial in vials:
        strength = vial.mmol_l * _steady(vial.relaxation, tr_ms, flip_deg)
        decay = vial.relaxation.decay.at(te_ms + t_ms)
        samples += _cylinder(vial, k_world, grid).reshape(samples.shape) * (strength * decay).astype(np.float32)
    turn = np.exp(1j * (phase_rad + 2e-3 * np.pi * off_resonance_hz * t_ms)) * gain
    samples *= turn.astype(np.complex64)

    if np.isfinite(snr):
        if snr_tissue not in fractions:
            raise DataError(f"no tissue '{snr_tissue}' that the signal-to-noise ratio could speak of")
        level = mmol_l[snr_tissue]
        weight = np.asarray(fractions[snr_tissue].data, dtype=np.float64)
        mean = float((weight * level).sum() / weight.sum()) if isinstance(level, np.ndarray) else float(level)
        timing = {"te_ms": te_ms, "tr_ms": tr_ms, "flip_deg": flip_deg}
        sigma = gain * mean * own[snr_tissue].signal_fraction(**timing) / snr
        sigma_k = sigma / noise_of_image(trajectory, grid, 1.0)
        samples += np.float32(sigma_k) * white_noise(samples.shape, rng)
    return KSpace(
        samples[None],
        trajectory,
        grid,
        te_ms=te_ms,
        tr_ms=tr_ms,
        flip_deg=flip_deg,
        frequency_mhz=GAMMA_BAR_MHZ_T * field_t,
    )


def white_noise(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.complex64]:
    """Return complex Gaussian noise of unit standard deviation in each of its parts."""
    return rng.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]


def _steady(material: Relaxation, tr_ms: float, flip_deg: float) -> float:
    return material.signal_fraction(te_ms=0.0, tr_ms=tr_ms, flip_deg=flip_deg)


def _along_world(trajectory: Trajectory, grid: Grid) -> NDArray[np.float64]:
    """Return k along the world axes, (n, 3) in cycles/mm."""
    axes = grid.affine[:3, :3] / np.array(grid.voxel_mm)
    return np.asarray(trajectory.k_per_mm.reshape(-1, 3).astype(np.float64) @ axes.T)


def _transform(
    signal: _Array,
    lattice: Grid,
    pose: NDArray[np.float64],
    k_world: NDArray[np.float64],
    grid: Grid,
    *,
    threads: int,
) -> NDArray[np.complex64]:
    """Return ``sum_x signal(x) V exp(-2 pi i k.(r(x) - r0))`` of a map at every sample."""
    import finufft

    affine = pose @ lattice.affine
    k_max = float(np.sqrt((k_world**2).sum(axis=1).max()))
    signal, affine = _cropped(signal, affine)
    if k_max > 0:
        signal, affine = _band_limited(signal, affine, k_max)
    centre = affine @ [*(np.array(signal.shape) // 2), 1.0]
    points = 2.0 * np.pi * (k_world @ affine[:3, :3])
    values = finufft.nufft3d2(
        *(np.ascontiguousarray(points[:, axis], dtype=np.float32) for axis in range(3)),
        np.ascontiguousarray(signal, dtype=np.complex64),
        isign=-1,
        eps=1e-5,
        nthreads=threads,
        upsampfac=2.0,
    )
    away = np.exp(-2j * np.pi * (k_world @ (centre[:3] - grid.origin_mm)))
    scale = abs(np.linalg.det(affine[:3, :3]))
    return np.asarray(values * (scale * away), dtype=np.complex64)


def _cropped(signal: _Array, affine: NDArray[np.float64]) -> tuple[_Array, NDArray[np.float64]]:
    """Return the box that holds all signal."""
    filled = [np.flatnonzero(signal.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = tuple(slice(int(inside[0]), int(inside[-1]) + 1) for inside in filled)
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*(s.start for s in box), 1.0])[:3]
    return signal[box], moved


def _band_limited(
    signal: _Array, affine: NDArray[np.float64], k_max_per_mm: float
) -> tuple[_Array, NDArray[np.float64]]:
    """Return the map on a coarser lattice, its spectrum up to ``k_max`` changed by less than 1e-4.

    A low-pass filter of finite length (sinc with a Kaiser window of 90 dB) runs before the spectrum is cut, and the
    map is padded by its length, so that nothing wraps round.
    """
    from scipy import fft

    stop = _OVERSAMPLING * k_max_per_mm
    moved, shape, padded, response = affine.copy(), [], [], []
    for axis, n in enumerate(signal.shape):
        size = float(np.linalg.norm(affine[:3, axis]))
        half = int(np.ceil(2.9 / ((stop - k_max_per_mm) * size)))
        m = fft.next_fast_len(n + 2 * half, real=True)
        coarse = int(np.ceil(m * size * 2.0 * stop))
        while coarse % 2 == 0 or fft.next_fast_len(coarse, real=True) != coarse:
            coarse += 1
        if coarse >= m:
            return signal, affine
        tap = np.arange(-half, half + 1)
        cut = (stop + k_max_per_mm) * size
        taps = cut * np.sinc(cut * tap) * np.kaiser(2 * half + 1, 8.96)
        frequency = np.arange(coarse // 2 + 1) / m
        response.append((np.cos(2.0 * np.pi * frequency[:, None] * tap) @ taps / taps.sum()).astype(np.float32))
        moved[:3, 3] -= half * affine[:3, axis]
        moved[:3, axis] *= m / coarse
        shape.append(coarse)
        padded.append((half, m - n - half))
    full = np.pad(signal, padded)
    spectrum = fft.rfftn(full)[..., : shape[2] // 2 + 1]
    for axis in (0, 1):
        keep = shape[axis] // 2
        spectrum = np.take(spectrum, np.r_[0 : keep + 1, full.shape[axis] - keep : full.shape[axis]], axis=axis)
        both = np.concatenate([response[axis], response[axis][:0:-1]])
        spectrum *= both.reshape((-1, 1, 1) if axis == 0 else (-1, 1))
    spectrum *= response[2]
    gain = np.float32(np.prod(shape) / np.prod(full.shape))
    return np.asarray(fft.irfftn(spectrum, s=shape) * gain, dtype=np.float32), moved


def _cylinder(vial: Vial, k_world: NDArray[np.float64], grid: Grid) -> NDArray[np.complex64]:
    """Return the transform of a cylinder of unit signal, ``pi R^2 L jinc(R k_perp) sinc(L k_z)``."""
    from scipy.special import j1

    x = 2.0 * np.pi * vial.radius_mm * np.hypot(k_world[:, 0], k_world[:, 1])
    small = x < 1e-4
    jinc = np.where(small, 1.0, 2.0 * j1(x) / np.where(small, 1.0, x))
    body = np.pi * vial.radius_mm**2 * vial.length_mm * jinc * np.sinc(vial.length_mm * k_world[:, 2])
    away = np.exp(-2j * np.pi * (k_world @ (np.array(vial.centre_mm) - grid.origin_mm)))
    return np.asarray(body * away, dtype=np.complex64)


def vial_fraction(vial: Vial, grid: Grid, na_from_image: NDArray[np.floating] | None = None) -> _Array:
    """Return the share of every voxel that lies in a vial.

    Parameters
    ----------
    vial : Vial
        The vial, in the sodium frame.
    grid : Grid
        Lattice of the image.
    na_from_image : (4, 4) ndarray, optional
        Maps points of the image's frame to the sodium frame; the identity by default.

    Returns
    -------
    (nx, ny, nz) ndarray
        0 to 1, from points at most 0.5 mm apart.

    Examples
    --------
    >>> grid = Grid.centred((64, 64, 64), 4.0)
    >>> round(float(vial_fraction(VIALS[0], grid).sum()) * grid.voxel_ml, 1)
    27.1
    """
    pose = np.eye(4) if na_from_image is None else np.asarray(na_from_image, dtype=np.float64)
    reach = np.array([vial.radius_mm, vial.radius_mm, vial.length_mm / 2.0]) + 2.0
    corners = np.array(np.meshgrid(*([-1.0, 1.0],) * 3)).reshape(3, -1).T * reach + np.array(vial.centre_mm)
    corners = corners @ np.linalg.inv(pose)[:3, :3].T + np.linalg.inv(pose)[:3, 3]
    index = grid.index(corners)
    low, high = np.floor(index.min(axis=0)).astype(int), np.ceil(index.max(axis=0)).astype(int) + 1
    box = tuple(slice(max(int(a), 0), min(max(int(b), 0), n)) for a, b, n in zip(low, high, grid.shape, strict=True))
    out = np.zeros(grid.shape, dtype=np.float32)
    blocks = tuple(max(2, int(np.ceil(size / 0.5))) for size in grid.voxel_mm)
    fine = [
        (np.arange(s.start, s.stop)[:, None] + (np.arange(n) + 0.5) / n - 0.5).ravel()
        for s, n in zip(box, blocks, strict=True)
    ]
    if all(axis.size for axis in fine):
        points = grid.world(np.stack(np.meshgrid(*fine, indexing="ij"), axis=-1))
        points = points @ pose[:3, :3].T + pose[:3, 3] - np.array(vial.centre_mm)
        inside = (np.hypot(points[..., 0], points[..., 1]) <= vial.radius_mm) & (
            np.abs(points[..., 2]) <= vial.length_mm / 2.0
        )
        out[box] = _block_mean(inside.astype(np.float32), blocks)
    return out


def _block_mean(data: _Array, blocks: tuple[int, ...]) -> _Array:
    for axis, block in enumerate(blocks):
        if block > 1:
            shape = (*data.shape[:axis], data.shape[axis] // block, block, *data.shape[axis + 1 :])
            data = data.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    return data


_INTENSITY: dict[str, dict[str, float]] = {
    "T1w": {
        "CGM": 640.0, "DGM": 780.0, "NAWM": 1000.0, "CSF": 180.0, "T1iso": 890.0, "T1hypo": 520.0, "ionic": 720.0,
        "cytotoxic": 760.0, "necrosis": 330.0, "soft": 520.0, "vitreous": 160.0,
    },
    "FLAIR": {
        "CGM": 520.0, "DGM": 500.0, "NAWM": 400.0, "CSF": 60.0, "T1iso": 850.0, "T1hypo": 820.0, "ionic": 640.0,
        "cytotoxic": 560.0, "necrosis": 900.0, "soft": 300.0, "vitreous": 70.0,
    },
    "PD": {
        "CGM": 820.0, "DGM": 790.0, "NAWM": 690.0, "CSF": 740.0, "T1iso": 860.0, "T1hypo": 850.0, "ionic": 840.0,
        "cytotoxic": 830.0, "necrosis": 820.0, "soft": 560.0, "vitreous": 760.0,
    },
    "T2": {
        "CGM": 620.0, "DGM": 560.0, "NAWM": 460.0, "CSF": 1000.0, "T1iso": 800.0, "T1hypo": 860.0, "ionic": 640.0,
        "cytotoxic": 600.0, "necrosis": 850.0, "soft": 300.0, "vitreous": 950.0,
    },
    "INV1": {
        "CGM": -40.0, "DGM": 60.0, "NAWM": 230.0, "CSF": -620.0, "T1iso": 130.0, "T1hypo": -160.0, "ionic": 20.0,
        "cytotoxic": 40.0, "necrosis": -350.0, "soft": 100.0, "vitreous": -600.0,
    },
    "INV2": {
        "CGM": 640.0, "DGM": 640.0, "NAWM": 620.0, "CSF": 560.0, "T1iso": 630.0, "T1hypo": 640.0, "ionic": 640.0,
        "cytotoxic": 640.0, "necrosis": 620.0, "soft": 400.0, "vitreous": 560.0,
    },
    "b0": {
        "CGM": 620.0, "DGM": 560.0, "NAWM": 470.0, "CSF": 1500.0, "T1iso": 700.0, "T1hypo": 750.0, "ionic": 620.0,
        "cytotoxic": 600.0, "necrosis": 900.0, "soft": 120.0, "vitreous": 1400.0,
    },
}  # fmt: skip

_ADC_MM2_S: dict[str, float] = {
    "CGM": 0.80e-3, "DGM": 0.75e-3, "NAWM": 0.72e-3, "CSF": 3.0e-3, "T1iso": 0.95e-3, "T1hypo": 1.1e-3,
    "ionic": 0.76e-3, "cytotoxic": 0.76e-3, "necrosis": 1.6e-3, "soft": 1.2e-3, "vitreous": 2.6e-3,
}  # fmt: skip


_BACKGROUND = 50.0**2
"""Square of the signal below which a ratio of images is taken for background."""


def contrast(head: Head, name: str) -> _Array:
    """Return the noise-free 1H image of a head on its own lattice: fractions times class intensities.

    ``UNIT1`` is the T1-weighted image of two inversion times (MP2RAGE), a ratio in which tissues do not mix linearly:
    ``(S1 S2 - b) / (S1^2 + S2^2 + 2 b) + 0.5`` with ``b`` against the noise of the background.

    Parameters
    ----------
    head : Head
        The person.
    name : {"T1w", "UNIT1", "FLAIR", "PD", "T2", "INV1", "INV2", "b0"}
        Contrast.

    References
    ----------
    Marques et al. 2010, NeuroImage, doi:10.1016/j.neuroimage.2009.10.002; O'Brien et al. 2014, PLoS ONE,
    doi:10.1371/journal.pone.0099676.

    Raises
    ------
    DataError
        If the contrast is unknown.
    """
    if name == "UNIT1":
        first, second = contrast(head, "INV1"), contrast(head, "INV2")
        ratio = (first * second - _BACKGROUND) / (first**2 + second**2 + 2.0 * _BACKGROUND)
        return np.asarray(1000.0 * (ratio + 0.5), dtype=np.float32)
    if name not in _INTENSITY:
        raise DataError(f"unknown contrast '{name}'", hint=f"choose one of UNIT1, {', '.join(_INTENSITY)}")
    out = np.zeros(head.grid.shape, dtype=np.float32)
    for tissue, volume in head.fractions.items():
        out += np.float32(_INTENSITY[name].get(tissue, 0.0)) * np.asarray(volume.data, dtype=np.float32)
    return out


def to_scanner(
    data: _Array, grid: Grid, target: Grid, source_from_target: NDArray[np.floating] | None = None
) -> _Array:
    """Return an image on another lattice, every voxel the mean over its extent, interpolated linearly once.

    Parameters
    ----------
    data : (nx, ny, nz) ndarray
        Values on ``grid``.
    grid, target : Grid
        Lattice of the values and the one wanted.
    source_from_target : (4, 4) ndarray, optional
        Maps points (RAS, mm) of the target's frame to the frame of ``grid``.
    """
    from scipy import ndimage

    pose = np.eye(4) if source_from_target is None else np.asarray(source_from_target, dtype=np.float64)
    finest = min(grid.voxel_mm)
    blocks = tuple(max(1, round(size / finest)) for size in target.voxel_mm)
    fine = target.affine @ np.diag([*(1.0 / np.array(blocks)), 1.0])
    fine[:3, 3] = (target.affine @ [*((1.0 / np.array(blocks) - 1.0) / 2.0), 1.0])[:3]
    index = np.linalg.inv(grid.affine) @ pose @ fine
    shape = tuple(n * block for n, block in zip(target.shape, blocks, strict=True))
    sampled = ndimage.affine_transform(
        data, index[:3, :3], index[:3, 3], shape, order=1, mode="constant", output=np.float32
    )
    return _block_mean(sampled, blocks)


def scan_1h(
    image: _Array,
    rng: np.random.Generator,
    *,
    snr: float = 40.0,
    level: float = 1000.0,
    bias: float = 0.1,
) -> _Array:
    """Return an image with a smooth receive profile and Rician noise.

    Parameters
    ----------
    image : (nx, ny, nz, ...) ndarray
        Noise-free image; further axes are echoes, which share the profile.
    rng : numpy.random.Generator
        Source of randomness.
    snr : float
        ``level`` over the standard deviation of the noise; ``inf`` for none.
    level : float
        Signal that ``snr`` speaks of.
    bias : float
        Standard deviation of the logarithm of the receive profile.
    """
    out = np.array(image, dtype=np.float32)
    if bias > 0:
        x, y, z = (np.linspace(-1.0, 1.0, n, dtype=np.float32) for n in image.shape[:3])
        a = rng.standard_normal(9).astype(np.float32)
        log = a[0] * x[:, None, None] + a[1] * y[:, None] + a[2] * z + a[3] * (x**2)[:, None, None]
        log = log + a[4] * (y**2)[:, None] + a[5] * z**2 + a[6] * x[:, None, None] * y[:, None]
        log = log + a[7] * y[:, None] * z + a[8] * x[:, None, None] * z
        profile = np.exp(np.float32(bias) * (log - log.mean()) / np.float32(log.std() + 1e-6))
        out *= profile.reshape(profile.shape + (1,) * (out.ndim - 3))
    if np.isfinite(snr):
        sigma = np.float32(level / snr)
        real = out + sigma * rng.standard_normal(out.shape, dtype=np.float32)
        out = np.hypot(real, sigma * rng.standard_normal(out.shape, dtype=np.float32))
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Diffusion:
    """A diffusion series.

    Parameters
    ----------
    data : (nx, ny, nz, 4) ndarray
        One image without and three with diffusion weighting.
    bval_s_mm2 : (4,) ndarray
        Weighting, in s/mm2.
    bvec : (3, 4) ndarray
        Directions.
    """

    data: _Array
    bval_s_mm2: NDArray[np.float64]
    bvec: NDArray[np.float64]


def diffusion(
    head: Head,
    target: Grid,
    t1w_from_dwi: NDArray[np.floating],
    rng: np.random.Generator,
    *,
    snr: float = 40.0,
) -> Diffusion:
    """Return b = 0 and three images at `B_VALUE_S_MM2` in orthogonal directions; diffusion is isotropic.

    Parameters
    ----------
    head : Head
        The person; `Head.adc_change_percent` lowers the coefficient of the brain's tissue.
    target : Grid
        Lattice of the series.
    t1w_from_dwi : (4, 4) ndarray
        Maps points of the series' frame to the T1w frame.
    rng : numpy.random.Generator
        Source of randomness.
    snr : float
        Signal of white matter at b = 0 over the standard deviation of the noise.
    """
    b0 = contrast(head, "b0")
    b1000 = np.zeros_like(b0)
    change = head.adc_change_percent
    for name, volume in head.fractions.items():
        part = np.float32(_INTENSITY["b0"].get(name, 0.0)) * np.asarray(volume.data, dtype=np.float32)
        exponent = np.float32(-B_VALUE_S_MM2 * _ADC_MM2_S.get(name, 1e-3))
        if change is not None and name in (*PARENCHYMA, "ionic", "cytotoxic"):
            # Lesion classes hold whole lesion voxels, healthy classes the healthy share of edge voxels.
            b1000 += part * np.exp(exponent * (1.0 + 0.01 * change))
        else:
            b1000 += part * np.exp(exponent)
    images = [to_scanner(image, head.grid, target, t1w_from_dwi) for image in (b0, b1000)]
    series = [images[0], *[images[1]] * 3]
    noisy = [scan_1h(image, rng, snr=snr, level=470.0, bias=0.0) for image in series]
    bvec = np.concatenate([np.zeros((3, 1)), np.eye(3)], axis=1)
    return Diffusion(np.stack(noisy, axis=-1), np.array([0.0] + [B_VALUE_S_MM2] * 3), bvec)
