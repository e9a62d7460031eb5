"""Transmit field: the flip angle that was reached, from two images at nominal angles a and 2a.

With repetition times long against T1, ``S(2a) / S(a) = sin(2 x) / sin(x) = 2 cos(x)``, x the angle that was reached.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError, GeometryError

__all__ = ["double_angle", "transmit_factor"]


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


def transmit_factor(
    transmit: NDArray[np.floating], *, t1_ms: float, tr_ms: float, flip_deg: float
) -> NDArray[np.float64]:
    """Return what the signal is multiplied with to be that of the nominal flip angle.

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
