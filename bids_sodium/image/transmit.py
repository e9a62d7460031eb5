"""Transmit field: the flip angle that was reached over the nominal one, from a map, from two angles or from a phase.

*Double angle*: with repetition times long against T1, ``S(2a) / S(a) = 2 cos(x)``, x the angle that was reached.
*Phase-sensitive*: a pulse of 2a about one axis and one of a about the other leave the phase
``atan2(sin 2x, sin x cos 2x)``, and its negative with the first pulse reversed; it stands at any repetition time and
better than a ratio of magnitudes in noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, GeometryError

__all__ = ["double_angle", "phase_sensitive", "relative_transmit", "smooth_transmit", "transmit_factor"]


def double_angle(image: Volume, image_double: Volume, *, flip_deg: float, minimum: float = 0.0) -> NDArray[np.float64]:
    """Return the reached over the nominal flip angle.

    Parameters
    ----------
    image, image_double : Volume
        Images at the nominal angle and at twice that angle, on one grid; TR at least 5 T1.
    flip_deg : float
        Nominal angle of ``image``, in degrees; magnitudes determine reached angles up to 90 degrees.
    minimum : float
        Voxels of ``image`` at or below this are not determined.

    Returns
    -------
    (nx, ny, nz) ndarray
        Relative transmit field, 1 where the nominal angle was reached, NaN where it is not determined.

    Raises
    ------
    GeometryError
        If the images lie on different grids.
    DataError
        If the angle does not lie between 0 and 90 degrees.

    References
    ----------
    Insko & Bolinger 1993, J Magn Reson A 103:82, doi:10.1006/jmra.1993.1133.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> grid, x = Grid.centred((2, 2, 2), 8.0), np.deg2rad(54.0)
    >>> single = Volume(np.full(grid.shape, np.sin(x)), grid)
    >>> double = Volume(np.full(grid.shape, np.sin(2 * x)), grid)
    >>> round(float(double_angle(single, double, flip_deg=60.0)[0, 0, 0]), 3)
    0.9
    """
    if not image.grid.same_as(image_double.grid):
        raise GeometryError("the two images of the transmit map lie on different grids")
    if not 0 < flip_deg < 90:
        raise DataError(
            f"the smaller nominal flip angle is {flip_deg} degrees", hint="the double-angle method wants about 45 to 60"
        )
    single = np.asarray(image.data, dtype=np.float64)
    double = np.asarray(image_double.data, dtype=np.float64)
    ratio = np.divide(double, 2 * single, out=np.full(single.shape, np.nan), where=single > max(minimum, 0.0))
    known = np.isfinite(ratio) & (np.abs(ratio) <= 1)
    angle = np.full(single.shape, np.nan)
    angle[known] = np.rad2deg(np.arccos(ratio[known]))
    return angle / flip_deg


def phase_sensitive(
    first: Volume,
    second: Volume,
    *,
    flip_deg: float = 90.0,
    offset_hz: NDArray[np.floating] | float = 0.0,
    pulse_ms: float = 0.0,
    minimum: float = 0.0,
) -> NDArray[np.float64]:
    r"""Return the reached over the nominal flip angle, from the phase between two composite pulses.

    The first image follows a rectangular pulse of :math:`2\alpha` about x and one of :math:`\alpha` about -y, the
    second the same with the first pulse reversed. On resonance the phase between them is
    :math:`2\,\mathrm{atan2}(\sin 2\alpha, \sin\alpha \cos 2\alpha)`, which grows by 4 rad a rad near 90 degrees.
    Off resonance the pulses' rotations are computed and the phase is looked up. Where a scanner stores conjugate
    phases the two images change places; otherwise a field of 1.1 would read 0.9.

    Parameters
    ----------
    first, second : Volume
        Complex images on one grid; only the phase of ``first`` over ``second`` is used.
    flip_deg : float
        Nominal angle of the shorter pulse, in degrees; reached angles of 45 to 135 degrees are told apart.
    offset_hz : float or (nx, ny, nz) ndarray
        Off-resonance of 23Na, in Hz; beyond a tenth of a turn within the shorter pulse nothing is determined.
    pulse_ms : float
        Length of the shorter pulse, in ms; the longer one is twice as long. 0 for pulses too short for off-resonance.
    minimum : float
        Voxels whose smaller magnitude is at or below this are not determined.

    Returns
    -------
    (nx, ny, nz) ndarray
        Relative transmit field; NaN where it is not determined.

    Raises
    ------
    GeometryError
        If the images lie on different grids.
    DataError
        If the images are not complex or an argument is out of its range.

    References
    ----------
    Morrell 2008, Magn Reson Med 60:889, doi:10.1002/mrm.21729.
    Allen 2011, Magn Reson Med 65:1125, doi:10.1002/mrm.22700 (sodium).

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> grid, x = Grid.centred((2, 2, 2), 8.0), np.deg2rad(81.0)
    >>> signal = np.full(grid.shape, np.sin(x) * np.cos(2 * x) + 1j * np.sin(2 * x))
    >>> field = phase_sensitive(Volume(signal, grid), Volume(signal.conj(), grid), flip_deg=90.0)
    >>> round(float(field[0, 0, 0]), 3)
    0.9
    """
    if not first.grid.same_as(second.grid):
        raise GeometryError("the two images of the transmit map lie on different grids")
    pair = [np.asarray(image.data) for image in (first, second)]
    if not all(np.iscomplexobj(data) for data in pair):
        raise DataError("the phase-sensitive method got magnitudes", hint="give complex images, or part-phase ones")
    if not 0 < flip_deg <= 180 or pulse_ms < 0:
        raise DataError(f"a nominal flip angle of {flip_deg} degrees and a pulse of {pulse_ms} ms")
    product = pair[0] * pair[1].conj()
    turned = np.asarray(np.angle(product), dtype=np.float64) + 2 * np.pi
    offset = np.broadcast_to(np.asarray(offset_hz, dtype=np.float64), turned.shape)
    known = np.minimum(np.abs(pair[0]), np.abs(pair[1])) > max(minimum, 0.0)
    known &= np.abs(offset) * pulse_ms * 1e-3 <= 0.1
    angle = np.full(turned.shape, np.nan)
    angle[known] = _angle_of_phase(turned[known], 2 * np.pi * offset[known] * pulse_ms * 1e-3)
    return np.asarray(angle / np.deg2rad(flip_deg))


def _angle_of_phase(turned: NDArray[np.float64], off_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Look the reached angle up, between 45 and 135 degrees, for each phase difference and off-resonance turn."""
    angles = np.deg2rad(np.linspace(40.0, 140.0, 401))
    if not off_rad.any():
        return np.asarray(np.interp(turned, _phase_of_angle(angles, 0.0), angles, left=np.nan, right=np.nan))
    offs = np.linspace(off_rad.min(), off_rad.max(), 65)
    found = np.stack([np.interp(turned, _phase_of_angle(angles, off), angles) for off in offs])
    place = np.clip((off_rad - offs[0]) / max(float(offs[-1] - offs[0]), 1e-12) * 64, 0, 63.999999)
    low, at = place.astype(int), np.arange(turned.size)
    share = place - low
    return np.asarray((1 - share) * found[low, at] + share * found[low + 1, at])


def _phase_of_angle(angles: NDArray[np.float64], off_rad: float) -> NDArray[np.float64]:
    """Phase between the composite pulses, rising with the angle from pi; ``off_rad`` turns about z in the short one."""
    signals = []
    for sign in (1.0, -1.0):
        state = np.zeros((angles.size, 3))
        state[:, 2] = 1.0
        for axis, times in ((0, 2.0 * sign), (1, -1.0)):
            # the field of a pulse: its angle about x or y, and off-resonance about z for as long as it lasts
            field = np.zeros((angles.size, 3))
            field[:, axis] = times * angles
            field[:, 2] = abs(times) * off_rad
            state = _turned(state, field)
        signals.append(state[:, 0] + 1j * state[:, 1])
    phase = np.unwrap(np.angle(signals[0] * signals[1].conj()))
    middle = phase[angles.size // 2]
    return np.asarray(phase + 2 * np.pi * np.round((2 * np.pi - middle) / (2 * np.pi)))


def _turned(state: NDArray[np.float64], field: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate magnetisations about fields by the length of the field, left-handed as spins turn (Rodrigues)."""
    angle = np.linalg.norm(field, axis=1, keepdims=True)
    axis = field / np.maximum(angle, 1e-300)
    along = axis * (axis * state).sum(1, keepdims=True)
    return np.asarray(along + (state - along) * np.cos(angle) - np.cross(axis, state) * np.sin(angle))


def relative_transmit(image: Volume, *, unit: str | None = None, flip_deg: float | None = None) -> NDArray[np.float64]:
    """Return a transmit map as reached over nominal flip angle.

    Parameters
    ----------
    image : Volume
        TB1map on any grid; zero where nothing is known.
    unit : str, optional
        Its ``Units``: ``"1"`` or ``"arbitrary"`` for ratios, ``"percent"``, ``"degree"``.
    flip_deg : float, optional
        Nominal angle of the map's own scan, for a map in degrees.

    Returns
    -------
    (nx, ny, nz) ndarray
        Relative transmit field; NaN where the map is zero or not finite.

    Raises
    ------
    DataError
        If the unit is unknown, or is not stated and the values are no ratios.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> percent = Volume(np.full((2, 2, 2), 95.0), Grid.centred((2, 2, 2), 8.0))
    >>> float(relative_transmit(percent, unit="percent")[0, 0, 0])
    0.95
    """
    data = np.asarray(image.data, dtype=np.float64)
    field = np.where(np.isfinite(data) & (data != 0), data, np.nan)
    if not np.isfinite(field).any():
        raise DataError("the transmit map is empty", hint="check the TB1map")
    middle = float(np.nanmedian(field))
    name = (unit or "").strip().lower()
    if name in {"percent", "%"}:
        return field / 100.0
    if name in {"degree", "degrees", "deg"}:
        if flip_deg is None or not flip_deg > 0:
            raise DataError("a transmit map in degrees has no nominal flip angle", hint="add FlipAngle to its sidecar")
        return field / flip_deg
    if name not in {"", "1", "arbitrary", "a.u.", "au", "unitless", "ratio"}:
        raise DataError(f"the unit {unit!r} of the transmit map is unknown", hint="state Units: 1, percent or degree")
    if not 0.2 < middle < 3.0:
        raise DataError(
            f"the transmit map has the median {middle:.4g}, no ratio to the nominal flip angle",
            hint="state Units in its sidecar: percent or degree",
        )
    return field


def smooth_transmit(
    field: NDArray[np.floating], grid: Grid, *, weight: NDArray[np.floating] | None = None, fwhm_mm: float = 20.0
) -> NDArray[np.float64]:
    """Return a transmit field without noise and holes: smoothed where it is known, continued where it is not.

    Parameters
    ----------
    field : (nx, ny, nz) ndarray
        Relative transmit field; NaN where it is not determined.
    grid : Grid
        Its lattice.
    weight : (nx, ny, nz) ndarray, optional
        How much each voxel counts, such as the squared magnitude of the image it came from.
    fwhm_mm : float
        Full width at half maximum of the low-pass filter, in mm; transmit fields of volume coils vary over
        centimetres.

    Returns
    -------
    (nx, ny, nz) ndarray
        Field, finite everywhere.

    Raises
    ------
    GeometryError
        If shapes differ.
    DataError
        If no voxel is known.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> holes = np.full((8, 8, 8), 0.9)
    >>> holes[::2] = np.nan
    >>> bool(np.allclose(smooth_transmit(holes, Grid.centred((8, 8, 8), 8.0)), 0.9))
    True
    """
    from scipy import ndimage

    if field.shape != grid.shape or (weight is not None and weight.shape != grid.shape):
        raise GeometryError(f"a transmit field of shape {field.shape} on a grid of shape {grid.shape}")
    known = np.isfinite(field)
    if not known.any():
        raise DataError("the transmit field is determined nowhere", hint="check the images it was made from")
    mass = known.astype(np.float64) if weight is None else np.where(known, np.maximum(weight, 0.0), 0.0)
    values = np.where(known, field, 0.0)
    top, bottom = np.zeros(grid.shape), np.zeros(grid.shape)
    width_mm, share = fwhm_mm, 1.0
    # Gaussians of rising width and falling share: the wide ones reach where nothing is known
    while True:
        sigma = width_mm / 2.3548 / np.array(grid.voxel_mm)
        top += share * ndimage.gaussian_filter(values * mass, sigma, mode="constant")
        bottom += share * ndimage.gaussian_filter(mass, sigma, mode="constant")
        if width_mm > max(grid.fov_mm):
            break
        width_mm, share = 1.5 * width_mm, share / 30
    far = float((values * mass).sum() / mass.sum()) if mass.any() else float(np.nanmean(field))
    return np.asarray(np.divide(top, bottom, out=np.full(grid.shape, far), where=bottom > 0))


def transmit_factor(
    transmit: NDArray[np.floating], *, t1_ms: float, tr_ms: float, flip_deg: float
) -> NDArray[np.float64]:
    """Return what the signal is multiplied with to be that of the nominal flip angle.

    Vials and tissue differ in T1, so that each has a factor of its own: vials are measured in the image times the
    vials' factor, tissue is read from the image times that of tissue.

    Parameters
    ----------
    transmit : ndarray
        Relative transmit field; NaN gives the factor 1.
    t1_ms, tr_ms : float
        Longitudinal relaxation and repetition time, in ms.
    flip_deg : float
        Nominal flip angle of the sodium image, in degrees.

    Raises
    ------
    DataError
        If the field is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(transmit_factor(np.array(0.5), t1_ms=1e-3, tr_ms=100.0, flip_deg=90.0)), 4)  # 1 / sin 45
    1.4142
    """
    field = np.where(np.isnan(transmit), 1.0, transmit)
    if (field <= 0).any():
        raise DataError("the transmit field is not positive everywhere", hint="check the TB1map and its units")
    return np.asarray(_steady(np.deg2rad(flip_deg), t1_ms, tr_ms) / _steady(field * np.deg2rad(flip_deg), t1_ms, tr_ms))


def _steady(angle: float | NDArray[np.float64], t1_ms: float, tr_ms: float) -> NDArray[np.float64]:
    e1 = np.exp(-tr_ms / t1_ms)
    return np.asarray(np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1))
