"""What headers and sidecars state about raw data: times, nucleus, units of k and the grid; and where they contradict.

Numbers that nothing states are ``nan``. The sidecar gives times in s, this module returns ms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import FREQUENCY_RATIO_NA_TO_H, GAMMA_BAR_MHZ_T, PROTON_GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Grid
from bids_sodium.core.errors import DataError, GeometryError

__all__ = [
    "LPS_FROM_RAS",
    "agreed",
    "check_frequency",
    "check_memory",
    "check_nucleus",
    "dwell_ms",
    "dwell_offset",
    "echo_time_ms",
    "frequency_mhz",
    "grid_of",
    "nucleus_of",
    "positive_number",
    "reach_of",
    "repetition_time_ms",
    "share_of_edge",
    "stated_grid",
    "unit_factor",
]

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])

_GAMMA_BAR_MHZ_T = {
    "23Na": GAMMA_BAR_MHZ_T,
    "1H": PROTON_GAMMA_BAR_MHZ_T,
    "31P": 17.235,
    "19F": 40.078,
    "13C": 10.708,
    "7Li": 16.546,
    "2H": 6.536,
    "17O": -5.772,
    "35Cl": 4.176,
    "39K": 1.989,
}
"""Gyromagnetic ratios over 2 pi, in MHz/T (Harris 2001, doi:10.1351/pac200173111795)."""

_PER_MM = {
    "1/mm": 1.0,
    "1/cm": 0.1,
    "1/m": 1e-3,
    "rad/mm": 0.5 / np.pi,
    "rad/cm": 0.05 / np.pi,
    "rad/m": 0.5e-3 / np.pi,
}
_UNITS = (*_PER_MM, "unitless", "rad", "cycles/FOV")
_MEMORY_COPIES = 3
_BYTES = 8


def positive_number(sidecar: Mapping[str, Any], key: str) -> float:
    """Return a positive number of the sidecar, of a list the first, or nan where it is not there."""
    value = sidecar.get(key)
    if value is None:
        return math.nan
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise DataError(f"{key} is {value!r} in the sidecar", hint="state a positive number")
    return float(value)


def agreed(what: str, header: float, sidecar: object, scale: float, unit: str) -> float:
    """Return what header or sidecar state, and refuse where they differ by more than a tenth."""
    stated = positive_number({what: sidecar}, what) * scale
    if not (math.isfinite(header) and header > 0):
        return stated
    if math.isfinite(stated) and abs(stated - header) > 0.1 * header:
        raise DataError(
            f"the {what} is {header:g} {unit} in the header but {stated:g} {unit} in the sidecar",
            hint="correct the sidecar (BIDS times are in s)",
        )
    return header


def echo_time_ms(header_ms: Sequence[float], sidecar: Mapping[str, Any], echo: int, n_echoes: int) -> float:
    """Return the time of one echo; a single number stands for the first echo, or for the only one in the file."""
    stated = sidecar.get("EchoTime")

    def of_echo(values: Sequence[Any]) -> Any:
        if len(values) == n_echoes == 1:
            return values[0]
        return values[echo] if echo < len(values) else None

    header = of_echo(header_ms)
    listed = of_echo(stated if isinstance(stated, (list, tuple)) else [stated])
    return agreed("echo time", math.nan if header is None else header, listed, 1e3, "ms")


def repetition_time_ms(header_ms: float, sidecar: Mapping[str, Any], readout_ms: float) -> float:
    """Return TR, which cannot be shorter than the readout."""
    key = "RepetitionTime" if "RepetitionTime" in sidecar else "RepetitionTimeExcitation"
    tr_ms = agreed("repetition time", header_ms, sidecar.get(key), 1e3, "ms")
    if tr_ms < readout_ms:
        raise DataError(
            f"a repetition time of {tr_ms:g} ms is shorter than the readout of {readout_ms:.3g} ms",
            hint="write TR in ms in the header and in s in the sidecar",
        )
    return tr_ms


def dwell_ms(sample_time_us: float, sidecar: Mapping[str, Any], n: int) -> float:
    """Return the time between samples: of the header, else of the sidecar, else of the described readout."""
    if math.isfinite(sample_time_us) and sample_time_us > 0:
        return sample_time_us / 1000.0
    dwell = positive_number(sidecar, "DwellTime") * 1000.0
    description = sidecar.get("NonCartesianTrajectory")
    if not math.isfinite(dwell) and isinstance(description, Mapping):
        dwell = positive_number(description, "ReadoutTime") * 1000.0 / n
    if not math.isfinite(dwell):
        raise DataError("the time between samples is not stated", hint="state DwellTime in s in the sidecar")
    return dwell


def dwell_offset(sidecar: Mapping[str, Any]) -> float:
    """Return where within its dwell a sample lies: half a dwell after the start, or at the start."""
    convention = str(sidecar.get("DwellConvention", "centre"))
    if convention not in {"centre", "center", "start"}:
        raise DataError(f"DwellConvention is '{convention}'", hint="use 'centre' or 'start'")
    return 0.0 if convention == "start" else 0.5


def nucleus_of(stated: object) -> str:
    """Return a nucleus as mass number and symbol, whichever way round it is written; of a list the first."""
    if isinstance(stated, (list, tuple)) and stated:
        stated = stated[0]
    match = re.fullmatch(r"[\"'^\s]*(\d*)-?([A-Za-z]{1,2})-?(\d*)[\"'\s]*", str(stated))
    if match is None:
        return str(stated)
    symbol, mass = match[2].capitalize(), match[1] or match[3]
    return f"{mass}{symbol}" if mass else {"Na": "23Na", "H": "1H"}.get(symbol, symbol)


def check_nucleus(found: str, sidecar: Mapping[str, Any]) -> None:
    """Refuse raw data of another nucleus than the sidecar's ``ResonantNucleus``, 23Na where it states none."""
    wanted = nucleus_of(sidecar.get("ResonantNucleus", "23Na"))
    if nucleus_of(found) != wanted:
        raise DataError(
            f"the header says that the nucleus is {nucleus_of(found)}, {wanted} is expected",
            hint=f"choose the {wanted} raw data, or state ResonantNucleus '{nucleus_of(found)}' in the sidecar to read "
            "these all the same",
        )


def check_frequency(frequency: float, field_t: object, sidecar: Mapping[str, Any]) -> None:
    """Refuse a frequency that, in the field stated, is that of another nucleus."""
    field = float(field_t) if isinstance(field_t, (int, float)) else math.nan
    wanted = nucleus_of(sidecar.get("ResonantNucleus", "23Na"))
    ratio = frequency / field if field > 0 else math.nan
    # Scanners of a nominal 3 T have 2.89 T, so that the wanted nucleus gets the wider tolerance.
    if not math.isfinite(ratio) or _near(ratio, wanted, 0.05):
        return
    other = next((name for name in _GAMMA_BAR_MHZ_T if _near(ratio, name, 0.03)), None)
    if other is not None and wanted in _GAMMA_BAR_MHZ_T:
        raise DataError(
            f"{frequency:.2f} MHz at {field:g} T is the frequency of {other}, {wanted} resonates at "
            f"{field * abs(_GAMMA_BAR_MHZ_T[wanted]):.2f} MHz",
            hint="choose the sodium raw data, or state ResonantNucleus '23Na' or ImagingFrequency in the sidecar",
        )


def _near(ratio: float, nucleus: str, tolerance: float) -> bool:
    gamma_bar = abs(_GAMMA_BAR_MHZ_T.get(nucleus, math.nan))
    return abs(ratio / gamma_bar - 1.0) < tolerance


def frequency_mhz(header_mhz: float, header_t: float, sidecar: Mapping[str, Any]) -> float:
    """Return the frequency of the acquisition.

    The sidecar wins. A header that gives the proton frequency, as ISMRMRD names that field, is converted where the
    sidecar says that the nucleus is sodium.
    """
    stated = positive_number(sidecar, "ImagingFrequency")
    if math.isfinite(stated):
        return stated
    if not math.isfinite(header_mhz):
        return math.nan
    field_t = header_t if header_t > 0 else positive_number(sidecar, "MagneticFieldStrength")
    is_proton = math.isfinite(field_t) and _near(header_mhz / field_t, "1H", 0.03)
    if is_proton and nucleus_of(sidecar.get("ResonantNucleus")) == "23Na":
        return header_mhz * FREQUENCY_RATIO_NA_TO_H
    check_frequency(header_mhz, field_t, sidecar)
    return header_mhz


def grid_of(
    shape: Sequence[int],
    fov_mm: Sequence[float],
    axes_lps: NDArray[np.floating] | None = None,
    position_lps: NDArray[np.floating] | None = None,
) -> Grid:
    """Return the grid whose voxel ``n // 2`` lies at a position.

    Parameters
    ----------
    shape, fov_mm : three numbers
        Voxels and extent.
    axes_lps : (3, 3) ndarray, optional
        Read, phase and slice direction in its columns, in LPS; by default the axes of the world (RAS).
    position_lps : (3,) ndarray, optional
        Position in LPS, in mm.
    """
    axes = LPS_FROM_RAS if axes_lps is None else np.asarray(axes_lps, dtype=np.float64)
    lengths = np.linalg.norm(axes, axis=0)
    if (
        not np.isfinite(axes).all()
        or lengths.min() < 0.5
        or abs(np.linalg.det(axes / np.maximum(lengths, 1e-9))) < 0.99
    ):
        raise GeometryError(
            "read, phase and slice directions are not three perpendicular axes", hint="export the geometry again"
        )
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    affine = np.eye(4)
    affine[:3, :3] = LPS_FROM_RAS @ (axes / lengths) * (np.asarray(fov_mm, dtype=np.float64) / size)
    centre = np.zeros(3) if position_lps is None else LPS_FROM_RAS @ np.asarray(position_lps, dtype=np.float64)
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(size) // 2)
    return Grid(size, affine)


def stated_grid(sidecar: Mapping[str, Any]) -> tuple[tuple[int, int, int], tuple[float, float, float]] | None:
    """Return matrix and field of view of the sidecar's ``MatrixSize`` and ``AcquisitionVoxelSize``, or none."""
    if "MatrixSize" not in sidecar or "AcquisitionVoxelSize" not in sidecar:
        return None
    try:
        size, voxel = (
            np.broadcast_to(np.asarray(sidecar[key], dtype=float), 3) for key in ("MatrixSize", "AcquisitionVoxelSize")
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"MatrixSize is {sidecar['MatrixSize']!r}, AcquisitionVoxelSize {sidecar['AcquisitionVoxelSize']!r}",
            hint="state three numbers each, voxels in mm",
        ) from error
    if not (size >= 1).all() or not (voxel > 0).all():
        raise DataError(f"a matrix of {size.tolist()} voxels of {voxel.tolist()} mm", hint="state positive numbers")
    x, y, z = (int(n) for n in size)
    a, b, c = (float(n) for n in size * voxel)
    return (x, y, z), (a, b, c)


def reach_of(positions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the largest magnitude of positions (n_shots, n_samples, 3) along each axis.

    Raises
    ------
    DataError
        If a position is not finite.
    """
    # Over shots first: neighbours in memory then stand for different samples, which NumPy reduces ten times faster.
    extent = np.maximum(positions.max(axis=0), -positions.min(axis=0))
    reach = np.asarray(extent.max(axis=0), dtype=np.float64)
    if not np.isfinite(reach).all():
        raise DataError("the trajectory holds NaN or infinite positions", hint="export it again")
    return reach


def unit_factor(
    reach: NDArray[np.floating], grid: Grid, sidecar: Mapping[str, Any], *, assumed: str, source: str
) -> NDArray[np.float32]:
    """Return what takes positions to cycles/mm along each axis, once their extent fits the grid.

    Parameters
    ----------
    reach : (3,) ndarray
        Largest magnitude along each axis, in the unit of the file.
    grid : Grid
        Its voxels say where k-space ends.
    sidecar : mapping
        May state ``TrajectoryUnits``.
    assumed : str
        Unit where the sidecar states none.
    source : str
        The convention that ``assumed`` comes from, for the message.

    Raises
    ------
    DataError
        If the unit is unknown, or another one is likely: the trajectory must reach 0.3 to 1.1 of the edge of k-space,
        and 0.75 where another unit would take it to the edge and none was stated.
    """
    stated = sidecar.get("TrajectoryUnits")
    unit = assumed if stated is None else str(stated).replace("cycles/m", "1/m").replace("cycles/cm", "1/cm")
    if unit not in _UNITS:
        raise DataError(f"TrajectoryUnits is '{stated}'", hint=f"use one of {', '.join(_UNITS)}")
    shares = {name: float((reach * _factor(name, grid) * 2.0 * grid.voxel_mm).max()) for name in _UNITS}
    share = shares[unit]
    likely = sorted(
        (name for name in _UNITS if 0.8 <= shares[name] <= 1.1), key=lambda name: abs(math.log(shares[name]))
    )
    if 0.3 <= share <= 1.1 and (stated is not None or share >= 0.75 or not likely):
        return _factor(unit, grid)
    if not share > 0.0:
        raise DataError("every sample lies at the centre of k-space", hint="export the trajectory again")
    advice = f"state TrajectoryUnits {' or '.join(repr(name) for name in likely)} in the sidecar"
    if not likely:
        advice = f"state TrajectoryUnits ({', '.join(_UNITS)}), or correct matrix and field of view"
    raise DataError(
        f"the trajectory reaches {reach.max():.4g} where {source}; read in {unit} that is {share:.3g} of the edge of "
        f"k-space for voxels of {min(grid.voxel_mm):.4g} mm",
        hint=advice,
    )


def _factor(unit: str, grid: Grid) -> NDArray[np.float32]:
    if unit in _PER_MM:
        return np.full(3, _PER_MM[unit], np.float32)
    if unit == "cycles/FOV":
        return (1.0 / np.array(grid.fov_mm)).astype(np.float32)
    return ((1.0 if unit == "unitless" else 0.5 / np.pi) / np.array(grid.voxel_mm)).astype(np.float32)


def share_of_edge(reach_per_mm: NDArray[np.floating], grid: Grid) -> float:
    """Return how far a trajectory reaches as a share of the edge of k-space, and refuse one that cannot be meant.

    Parameters
    ----------
    reach_per_mm : (3,) ndarray
        Largest magnitude along each axis, in cycles/mm.
    grid : Grid
        Its voxels say where k-space ends.
    """
    share = float((np.asarray(reach_per_mm, dtype=np.float64) * 2.0 * grid.voxel_mm).max())
    if not 0.3 <= share <= 1.1:
        reach = float(np.max(reach_per_mm))
        raise DataError(
            f"the trajectory reaches {reach:.4g} cycles/mm, voxels of {0.5 / reach if reach > 0 else math.inf:.3g} mm, "
            f"but matrix {' x '.join(map(str, grid.shape))} and field of view have voxels of "
            f"{' x '.join(f'{v:.3g}' for v in grid.voxel_mm)} mm",
            hint="correct the nominal voxel size or the gradient of the trajectory, or matrix and field of view",
        )
    return share


def check_memory(n_values: float, memory_gb: float | None, what: str) -> None:
    """Refuse, before anything is read, what would not fit: three copies of the complex samples."""
    needed = _MEMORY_COPIES * _BYTES * n_values / 2**30
    if memory_gb is not None and needed > memory_gb:
        raise DataError(
            f"{what} need about {needed:.1f} GiB of memory, {memory_gb:.1f} GiB are available",
            hint="run where there is more memory, or export fewer channels, one echo or one repetition a file",
        )
