"""Transmit and receive fields of one session on the sodium grid.

A field is read from a map, from images at two flip angles or with two phases, or, for the receive sensitivity, from the
sodium image itself. Maps share the scanner's coordinates with the sodium scan of their session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_volume
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.image.bias import receive_bias
from bids_sodium.image.calibration import ReceiveParams
from bids_sodium.image.transmit import double_angle, phase_sensitive, relative_transmit, smooth_transmit
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine

__all__ = ["FieldFiles", "ReceiveField", "TransmitField", "bias_of", "receive_field", "transmit_field"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldFiles:
    """Maps of a session, and what their sidecars say.

    ``angles`` are the magnitudes of a transmit measurement, at the nominal angle and twice it; with ``phases`` those of
    two images after phase-sensitive pulses. Both in the order ``flip-1``, ``flip-2``.
    """

    tb1map: Path | None = None
    angles: tuple[Path, ...] = ()
    phases: tuple[Path, ...] = ()
    rb1map: Path | None = None
    tb1_sidecar: Mapping[str, Any] = field(default_factory=dict)
    """Of the map, or of the first image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransmitField:
    """Reached over nominal flip angle on the sodium grid, and where it comes from."""

    relative: NDArray[np.float64]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReceiveField:
    """Receive sensitivity on the sodium grid, its relative standard error and where it comes from."""

    sensitivity: NDArray[np.float64]
    relative_se: NDArray[np.float64] | float
    source: str


def transmit_field(files: FieldFiles, grid: Grid) -> TransmitField | None:
    """Return the transmit field on the sodium grid, or ``None`` where nothing tells it.

    Raises
    ------
    DataError
        If a map is empty, its unit unknown or a flip angle missing.
    """
    sidecar = files.tb1_sidecar
    if files.tb1map is not None:
        image = read_volume(files.tb1map)
        flip = sidecar.get("FlipAngle")
        unit = sidecar.get("Units")
        relative = relative_transmit(
            image,
            unit=None if unit is None else str(unit),
            flip_deg=float(flip) if isinstance(flip, (int, float)) else None,
        )
        return TransmitField(relative=_on(relative, image.grid, grid), source="transmit map")
    if len(files.angles) != 2:
        return None
    flip = sidecar.get("FlipAngle")
    if isinstance(flip, bool) or not isinstance(flip, (int, float)):
        raise DataError(
            f"FlipAngle is {'missing' if flip is None else repr(flip)}",
            where=files.angles[0].name,
            hint="state the smaller nominal flip angle, in degrees, in the sidecar of flip-1",
        )
    first, second = (read_volume(path) for path in files.angles)
    weight = np.minimum(np.asarray(first.data), np.asarray(second.data)).astype(np.float64) ** 2
    least = 0.05 * float(np.percentile(first.data, 99))
    if len(files.phases) == 2:
        turned = [
            image.with_data(np.asarray(image.data) * np.exp(1j * _phase(path)))
            for image, path in zip((first, second), files.phases, strict=True)
        ]
        relative = phase_sensitive(turned[0], turned[1], flip_deg=float(flip), minimum=least)
        source = "phase-sensitive transmit measurement"
    else:
        relative = double_angle(first, second, flip_deg=float(flip), minimum=least)
        weight = np.asarray(first.data, dtype=np.float64) ** 2
        source = "double-angle transmit measurement"
    return TransmitField(relative=_on(relative, first.grid, grid, weight), source=source)


def receive_field(files: FieldFiles, grid: Grid, params: ReceiveParams) -> ReceiveField | None:
    """Return the sensitivity of a receive map on the sodium grid, or ``None`` without a map.

    Raises
    ------
    DataError
        If the map is nowhere positive.
    """
    if files.rb1map is None:
        return None
    image = read_volume(files.rb1map)
    data = np.asarray(image.data, dtype=np.float64)
    known = np.where(np.isfinite(data) & (data > 0), data, np.nan)
    if not np.isfinite(known).any():
        raise DataError("the receive map is nowhere positive", where=files.rb1map.name, hint="check the RB1map")
    sensitivity = _on(known, image.grid, grid)
    floor = params.floor * float(np.median(sensitivity))
    return ReceiveField(sensitivity=np.maximum(sensitivity, floor), relative_se=0.0, source="receive map")


def bias_of(
    image: Volume,
    head: NDArray[np.bool_],
    vials: Sequence[tuple[NDArray[np.bool_], float]],
    params: ReceiveParams,
    *,
    sigma: float,
) -> ReceiveField:
    """Return the sensitivity that the image itself shows, with vials as anchors."""
    found = receive_bias(image, head, params, sigma=sigma, vials=vials)
    return ReceiveField(sensitivity=found.field, relative_se=found.se, source=found.note)


def _on(
    values: NDArray[np.float64], grid: Grid, target: Grid, weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return a map with holes on another grid, smoothed where it is known and continued where it is not."""
    smooth = smooth_transmit(values, grid, weight=weight)
    still = Affine.identity("scanner", "scanner")
    inside = np.ones(grid.shape, dtype=np.float32)
    moved, share = (
        np.asarray(resample(Volume(part.astype(np.float32), grid), target, still, order=1, average=False).data)
        for part in (smooth, inside)
    )
    known = np.where(share > 0.99, moved, np.nan).astype(np.float64)
    there = np.isfinite(known)
    return known if there.all() else np.where(there, known, smooth_transmit(known, target))


def _phase(path: Path) -> NDArray[np.float64]:
    phase = np.asarray(read_volume(path).data, dtype=np.float64)
    widest = float(np.ptp(phase))
    if not 0.0 < widest <= 2.02 * np.pi:
        raise DataError(
            f"the phase runs over {widest:.4g}, not over up to 2 pi",
            where=path.name,
            hint="store it in rad, with the scaling in the image header",
        )
    return phase
