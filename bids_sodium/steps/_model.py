"""Tissue maps through the sodium scan: the model that regional concentrations are fitted with.

`scan_model` gathers what every method of partial-volume correction needs: columns and shares on the sodium grid, sums
over k-space, and the doubts behind the standard errors. Vials in the field of view are fitted together with the
tissues and taken off the image, since their signal rings and aliases into the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import Decay, Relaxation, relaxation_of
from bids_sodium.core.data import KSpace, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.recon.columns import Columns, map_samples, mtf_columns, operator_columns, vial_samples
from bids_sodium.recon.psf import PointSpread, gaussian_point_spread, point_spread
from bids_sodium.recon.solvers import Linear, ReconstructionParams
from bids_sodium.recon.trajectory import from_description
from bids_sodium.steps._pose import Pose, pose_from_fit
from bids_sodium.tissue.doubts import boundary_doubts, coarser, placing_doubts
from bids_sodium.tissue.partialvolume import (
    FRACTION_METHODS,
    Corrected,
    Method,
    PartialVolumeParams,
    SampleMoments,
    moments,
    regional,
)

__all__ = ["SOFT", "SOLID", "Machine", "Scan", "ScanModel", "VialPlace", "machine_of", "scan_model"]

SOFT = "soft"
"""Name of the signal outside the brain: scalp, fat and muscle."""

SOLID = ("CGM", "DGM", "NAWM")
"""Names of healthy tissues."""

_IN_BRAIN = 0.3
_OF_VIAL = 0.05
_OVERFULL = 1.05
_DOUBT_MM = 2.0
_THIN = 4
_ACCURACY = 1e-4
_OPERATOR = "operator columns: simulated on the scan's trajectory, decayed and reconstructed like the scan"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VialPlace:
    """Where a vial lies, as the quantify step found it.

    Parameters
    ----------
    label : str
        Its name.
    mmol_l : float
        Its sodium concentration.
    centre_mm, axis : (3,) ndarray
        Centre in the sodium frame (RAS+, mm) and direction.
    radius_mm, length_mm : float
        Inner radius and length.
    relaxation : Relaxation
        Of its gel.
    """

    label: str
    mmol_l: float
    centre_mm: NDArray[np.float64]
    axis: NDArray[np.float64]
    radius_mm: float
    length_mm: float
    relaxation: Relaxation

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> VialPlace:
        """Return a vial as the record of the quantify step states it."""
        gel = entry["relaxation"]
        return cls(
            label=str(entry["label"]),
            mmol_l=float(entry["mmol_l"]),
            centre_mm=np.array(entry["centre_mm"], dtype=np.float64),
            axis=np.array(entry["axis"], dtype=np.float64),
            radius_mm=float(entry["radius_mm"]),
            length_mm=float(entry["length_mm"]),
            relaxation=Relaxation(
                float(gel["t1_ms"]),
                Decay(float(gel["t2_fast_ms"]), float(gel["t2_slow_ms"]), float(gel["fraction_fast"])),
                str(gel["source"]),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """What is known of the scan.

    Parameters
    ----------
    image : Volume
        Sodium image in mmol/L of grey matter: the real part where there is one, not denoised.
    smooth : Volume
        The concentration map, denoised, which the chain of the MS paper starts from.
    kspace : KSpace or None
        Raw data, where there are some.
    fits_samples : bool
        Whether the samples show what the image shows: one channel, and an image that no map has corrected.
    reconstruction : ReconstructionParams
        How the image was made of them.
    offset_hz : float
        Off-resonance that was taken off.
    protocol : mapping
        ``NonCartesianTrajectory`` of the sidecar, where an image alone is known; empty where nothing is.
    timing : mapping of str to float
        ``te_ms``, ``tr_ms``, ``flip_deg``.
    vials : sequence of VialPlace
        Vials in the field of view.
    to_mmol_l : float
        Concentration of grey matter per signal.
    sigma : float
        Noise of a voxel, in mmol/L.
    fwhm_mm : float
        Width of the point spread.
    """

    image: Volume
    smooth: Volume
    kspace: KSpace | None
    fits_samples: bool
    reconstruction: ReconstructionParams
    offset_hz: float
    protocol: Mapping[str, Any]
    timing: Mapping[str, float]
    vials: Sequence[VialPlace]
    to_mmol_l: float
    sigma: float
    fwhm_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """What puts maps through a scan of which k-space is known, made once for all maps.

    Parameters
    ----------
    operator : Linear
        The map from samples to the image, as it made the image, to an accuracy that columns need.
    samples : (3 n, n_shots, n_samples) complex64 ndarray
        Samples of body and ends of each vial at 1 mmol/L.
    images : (3 n, nx, ny, nz) ndarray
        Their images.
    """

    operator: Linear
    samples: NDArray[np.complexfloating]
    images: NDArray[np.float64]


def machine_of(scan: Scan) -> Machine | None:
    """Return what puts maps through a scan, ``None`` without its k-space.

    Parameters
    ----------
    scan : Scan
        What is known of the scan.
    """
    if scan.kspace is None:
        return None
    grid = scan.image.grid
    accuracy = max(scan.reconstruction.accuracy, _ACCURACY)
    operator = Linear(scan.kspace.trajectory, grid, replace(scan.reconstruction, accuracy=accuracy))
    grey = relaxation_of("GM").signal_fraction(**scan.timing)
    bodies = [_vial_rows(vial, operator, scan.timing, grey) for vial in scan.vials]
    none = np.empty((0, *scan.kspace.trajectory.k_per_mm.shape[:2]), dtype=np.complex64)
    samples = np.concatenate([none, *bodies])
    images = np.array([operator(body).real for body in samples], dtype=np.float64).reshape(-1, *grid.shape)
    return Machine(operator, samples, images)


@dataclass(frozen=True, slots=True, eq=False)
class ScanModel:
    """What the scan would show of each tissue, and the image that it showed.

    Parameters
    ----------
    names : tuple of str
        Tissues.
    shares : (n, nx, ny, nz) ndarray
        Their columns at a gain of one: the share of each voxel as the scan sees it.
    columns : (n, nx, ny, nz) ndarray
        The same times the relaxation gain over grey matter.
    fractions : (n, nx, ny, nz) ndarray or None
        Shares without point spread, times the same gain, where a method asks for them.
    image : (nx, ny, nz) ndarray
        Sodium image in mmol/L of grey matter, vials taken off.
    mask : (nx, ny, nz) ndarray of bool
        Voxels of the brain as the scan sees it.
    doubts : dict of (m, nx, ny, nz) ndarray
        Changes of the image that count one standard deviation each, in mmol/L.
    samples : SampleMoments or None
        Sums over k-space, where a method asks for them and there is one channel.
    paper : tuple of ndarray or None
        Denoised concentration map and masks through a Gaussian, where the chain of the MS paper is asked for.
    sigma : float
        Noise of a voxel, in mmol/L.
    fwhm_mm : float
        Full width at half maximum of the point spread.
    voxel_mm : tuple of float
        Voxel of the sodium image, in mm.
    how : str
        How the columns were made.
    exact : bool
        Whether the point spread is the scan's own and not an assumed one.
    vial_mmol_l : dict of str to float
        Concentration of each vial as the fit of tissues and vials together reads it.
    pose : Pose
        Where the image would have the maps, and how far that is from where they were said to be.
    moved : bool
        Whether the columns were made there.
    """

    names: tuple[str, ...]
    shares: NDArray[np.float64]
    columns: NDArray[np.float64]
    fractions: NDArray[np.float64] | None
    image: NDArray[np.float64]
    mask: NDArray[np.bool_]
    doubts: dict[str, NDArray[np.float64]]
    samples: SampleMoments | None
    paper: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    sigma: float
    fwhm_mm: float
    voxel_mm: tuple[float, float, float]
    how: str
    exact: bool
    vial_mmol_l: dict[str, float]
    pose: Pose
    moved: bool

    def corrected(self, method: Method, params: PartialVolumeParams) -> Corrected:
        """Return the concentrations of one method."""
        image, columns = self.image, self.columns
        if method == "paper":
            assert self.paper is not None  # noqa: S101
            image, columns = self.paper
        return regional(
            image,
            columns,
            self.names,
            params,
            method=method,
            sigma=None if method.startswith("kspace") else self.sigma,
            mask=self.mask,
            doubts=self.doubts,
            voxel_mm=self.voxel_mm,
            fractions=self.fractions,
            fwhm_mm=self.fwhm_mm,
            samples=self.samples,
        )


def scan_model(
    maps: Mapping[str, Volume],
    na_from_maps: NDArray[np.floating],
    scan: Scan,
    params: PartialVolumeParams,
    *,
    target_error_mm: float,
    machine: Machine | None = None,
    pose: Pose | None = None,
    further: Mapping[str, Sequence[Volume]] | None = None,
    fullest: float = _OVERFULL,
) -> ScanModel:
    """Put tissue maps through the scan.

    Parameters
    ----------
    maps : mapping of str to Volume
        Tissue fractions on the lattice they were made on.
    na_from_maps : (4, 4) ndarray
        Takes points (RAS+, mm) of their frame to the sodium frame.
    scan : Scan
        What is known of the scan.
    params : PartialVolumeParams
        Methods wanted and their settings.
    target_error_mm : float
        Standard error of the registration, root mean square over the brain.
    machine : Machine, optional
        That of the scan, where there is one already.
    pose : Pose, optional
        Where the image would have the maps, where other maps of the same frame have told it already.
    further : mapping of str to sequence of Volume, optional
        Further changes of the signal that count one standard deviation, by source, in mmol/L.
    fullest : float
        Largest sum of the maps in a voxel: that of fractions, unless they hold more of one place than of another.

    Raises
    ------
    DataError
        If the maps add up to more than that, or are not finite.
    """
    _check(maps, fullest)
    grid = scan.image.grid
    matrix = np.asarray(na_from_maps, dtype=np.float64)
    material = {name: relaxation_of(name) for name in maps}
    grey = relaxation_of("GM").signal_fraction(**scan.timing)
    gain = {name: own.signal_fraction(**scan.timing) / grey for name, own in material.items()}
    machine = machine_of(scan) if machine is None else machine
    operator = None if machine is None else machine.operator
    pose = _pose(maps, matrix, gain, scan) if pose is None else pose
    known = scan.kspace is not None or bool(scan.protocol)
    moves = known and pose.settled and pose.moved_mm > params.least_motion_mm
    if moves:
        matrix, target_error_mm = pose.na_from_maps, params.registration_sd_mm
    elif target_error_mm > 0:
        # an image that would have the maps elsewhere belies an error that is stated smaller
        target_error_mm = max(target_error_mm, pose.moved_mm)
    of_samples = scan.fits_samples and any(method.startswith("kspace") for method in params.methods)
    columns, how, exact = _columns(maps, matrix, scan, operator, keep_samples=of_samples)
    gains = np.array([gain[name] for name in columns.names])[:, None, None, None]
    shares = np.asarray(columns.images, dtype=np.float64)
    mask = shares[[i for i, name in enumerate(columns.names) if name != SOFT]].sum(axis=0) > _IN_BRAIN
    image = np.asarray(scan.image.data, dtype=np.float64)
    read: dict[str, float] = {}
    if machine is not None and scan.vials:
        image, read = _without_vials(image, shares * gains, mask, machine.images, scan.vials)
    fractions = None
    if not FRACTION_METHODS.isdisjoint(params.methods):
        voxel = gaussian_point_spread(float(min(grid.voxel_mm)))
        sharp = mtf_columns(maps, grid, dict.fromkeys(maps, voxel), na_from_maps=matrix)
        fractions = np.clip(sharp.images.astype(np.float64), 0.0, 1.0) * gains
    model = ScanModel(
        names=columns.names,
        shares=shares,
        columns=shares * gains,
        fractions=fractions,
        image=image,
        mask=mask,
        doubts={},
        samples=None,
        paper=_paper(maps, matrix, scan, params) if "paper" in params.methods else None,
        sigma=scan.sigma,
        fwhm_mm=scan.fwhm_mm,
        voxel_mm=grid.voxel_mm,
        how=how,
        exact=exact,
        vial_mmol_l=read,
        pose=pose,
        moved=moves,
    )
    first = model.corrected("glm", params)
    signal = {name: gain[name] * first.of(name)[0] for name in columns.names}
    changes = {**_changes(maps, signal, target_error_mm, params), **(further or {})}
    model = replace(model, doubts={source: _seen(several, matrix, scan, mask) for source, several in changes.items()})
    if not of_samples or scan.kspace is None or machine is None or operator is None:
        return model
    assert columns.samples is not None  # noqa: S101
    turn = np.exp(-2e-3j * np.pi * scan.offset_hz * scan.kspace.trajectory.t_ms) * scan.to_mmol_l
    sums = moments(
        scan.kspace.samples[0] * turn.astype(np.complex64),
        [
            *(columns.samples[i] * np.float32(gain[name]) for i, name in enumerate(columns.names)),
            *machine.samples,
        ],
        [*columns.names, *(f"vial-{vial.label}{part}" for vial in scan.vials for part in ("", "-", "+"))],
        operator.weights,
        doubts={
            source: _sampled(several, operator, matrix, te_ms=float(scan.timing["te_ms"]))
            for source, several in changes.items()
        },
        thin=_THIN,
    )
    return replace(model, samples=sums)


def _check(maps: Mapping[str, Volume], fullest: float) -> None:
    for name, volume in maps.items():
        if not np.isfinite(np.asarray(volume.data)).all():
            raise DataError(f"the map of {name} holds NaN or infinite values", hint="check the segmentation")
    # maps may lie on lattices of their own: those on the same one are added up
    for shape in {volume.data.shape for volume in maps.values()}:
        most = float(np.max(sum(volume.data for volume in maps.values() if volume.data.shape == shape)))
        if most > fullest:
            raise DataError(
                f"the tissue maps add up to {most:.3g} in a voxel",
                hint="give fractions of each voxel: 0 to 1, together at most 1",
            )


def _columns(
    maps: Mapping[str, Volume],
    matrix: NDArray[np.float64],
    scan: Scan,
    operator: Linear | None,
    *,
    keep_samples: bool,
) -> tuple[Columns, str, bool]:
    """Return the columns, how they were made, and whether the point spread is the scan's own."""
    grid, te_ms = scan.image.grid, float(scan.timing["te_ms"])
    decays = {name: relaxation_of(name).decay for name in maps}
    if scan.kspace is not None and operator is not None:
        found = operator_columns(
            maps,
            grid,
            scan.kspace.trajectory,
            decays,
            na_from_maps=matrix,
            te_ms=te_ms,
            operator=operator,
            keep_samples=keep_samples,
        )
        return found, _OPERATOR, True
    spreads, how = _spreads(maps, scan)
    return mtf_columns(maps, grid, spreads, na_from_maps=matrix), how, bool(scan.protocol)


def _spreads(maps: Mapping[str, Volume], scan: Scan) -> tuple[dict[str, PointSpread], str]:
    """Return the point spread of each tissue as far as it is known, and how."""
    te_ms = float(scan.timing["te_ms"])
    if scan.kspace is None and not scan.protocol:
        how = f"Gaussian of {scan.fwhm_mm:.2f} mm for all tissues: neither k-space nor protocol is known"
        return dict.fromkeys(maps, gaussian_point_spread(scan.fwhm_mm)), how
    own = scan.reconstruction
    name, width = ("none", 1.0) if scan.kspace is None else (own.apodisation, own.filter_width)
    trajectory = from_description(scan.protocol) if scan.kspace is None else scan.kspace.trajectory
    decays = {tissue: relaxation_of(tissue).decay for tissue in maps}
    of_decay = {
        decay: point_spread(trajectory, decay=decay, te_ms=te_ms, filter=name, filter_width=width)
        for decay in dict.fromkeys(decays.values())
    }
    spreads = {tissue: of_decay[decay] for tissue, decay in decays.items()}
    return spreads, "modulation of the stated protocol by tissue, an unfiltered image assumed: no k-space"


def _pose(maps: Mapping[str, Volume], matrix: NDArray[np.float64], gain: Mapping[str, float], scan: Scan) -> Pose:
    """Return where the image would have the maps."""
    coarse = {name: coarser(volume, _DOUBT_MM) for name, volume in maps.items()}
    try:
        spreads, _ = _spreads(maps, scan)
    except DataError:  # Cartesian and other readouts that do not lead outwards have no one point spread
        spreads = dict.fromkeys(maps, gaussian_point_spread(scan.fwhm_mm))
    return pose_from_fit(
        {name: volume for name, volume in coarse.items() if name != SOFT},
        {name: volume for name, volume in coarse.items() if name == SOFT},
        gain,
        scan.image,
        spreads,
        matrix,
        mask_of=lambda shares: shares.sum(axis=0) > _IN_BRAIN,
    )


def _paper(
    maps: Mapping[str, Volume], matrix: NDArray[np.float64], scan: Scan, params: PartialVolumeParams
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return concentration map and columns of the MS paper: masks through a Gaussian of the scaled nominal voxel."""
    if scan.kspace is not None:
        nominal_mm = 0.5 / scan.kspace.trajectory.k_max_per_mm
    else:
        nominal_mm = float(scan.protocol.get("NominalVoxelSize", np.mean(scan.image.grid.voxel_mm)))
    spread = gaussian_point_spread(params.paper_scale * nominal_mm)
    found = mtf_columns(maps, scan.image.grid, dict.fromkeys(maps, spread), na_from_maps=matrix)
    return np.asarray(scan.smooth.data, dtype=np.float64), found.images.astype(np.float64)


def _without_vials(
    image: NDArray[np.float64],
    columns: NDArray[np.float64],
    mask: NDArray[np.bool_],
    rods: NDArray[np.float64],
    vials: Sequence[VialPlace],
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Fit tissues and vials together; return the image without vials, and what each vial reads, in mmol/L."""
    near = mask.copy()
    for body in rods[::3]:
        near |= body > _OF_VIAL * float(body.max())
    F = np.concatenate([columns[:, near], rods[:, near]])
    # an empty tissue has a column of zeros
    amplitude = np.linalg.lstsq(F.T, image[near], rcond=1e-6)[0][len(columns) :]
    off = image - np.tensordot(amplitude, rods, axes=1)
    return off, {vial.label: float(value) for vial, value in zip(vials, amplitude[::3], strict=True)}


def _changes(
    maps: Mapping[str, Volume], signal: Mapping[str, float], target_error_mm: float, params: PartialVolumeParams
) -> dict[str, Sequence[Volume]]:
    """Return the doubts about registration and segmentation as maps, on a lattice that is fine enough for them."""
    brain = {name: coarser(volume, _DOUBT_MM) for name, volume in maps.items() if name != SOFT}
    place_mm = {name: params.deep_boundary_sd_mm if name == "DGM" else params.boundary_sd_mm for name in brain}
    found: dict[str, Sequence[Volume]] = {"segmentation": list(boundary_doubts(brain, signal, place_mm).values())}
    if target_error_mm > 0:
        found["registration"] = placing_doubts(brain, signal, target_error_mm=target_error_mm)
    return {source: several for source, several in found.items() if several}


def _seen(
    several: Sequence[Volume], matrix: NDArray[np.float64], scan: Scan, mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return what the scan shows of changes in the brain, whose decay does not matter much."""
    numbered = {str(i): change for i, change in enumerate(several)}
    blur = dict.fromkeys(numbered, gaussian_point_spread(scan.fwhm_mm))
    return mtf_columns(numbered, scan.image.grid, blur, na_from_maps=matrix, where=mask).images.astype(np.float64)


def _vial_rows(
    vial: VialPlace, operator: Linear, timing: Mapping[str, float], grey: float
) -> NDArray[np.complexfloating]:
    """Return the samples of a vial at 1 mmol/L: body and ends."""
    rows = vial_samples(
        operator.grid,
        operator.trajectory,
        vial.relaxation.decay,
        centre_mm=vial.centre_mm,
        axis=vial.axis,
        radius_mm=vial.radius_mm,
        length_mm=vial.length_mm,
        end_mm=float(max(operator.grid.voxel_mm)),
        te_ms=float(timing["te_ms"]),
    )
    return np.asarray(rows * np.float32(vial.relaxation.signal_fraction(**timing) / grey))


def _sampled(
    changes: Sequence[Volume], operator: Linear, matrix: NDArray[np.float64], *, te_ms: float
) -> Iterator[NDArray[np.complexfloating]]:
    """Yield the samples of changes on some of the shots, all decaying like grey matter."""
    decay, whole = relaxation_of("GM").decay, operator.trajectory
    some = replace(
        whole,
        k_per_mm=whole.k_per_mm[::_THIN],
        solid_angle_sr=None if whole.solid_angle_sr is None else whole.solid_angle_sr[::_THIN],
    )
    left = (decay.at(te_ms + whole.t_ms) / decay.at(te_ms)).astype(np.float32)
    for change in changes:
        yield map_samples(change, some, operator.grid, matrix) * left
