"""Quality of a sodium image: signal to noise, artefact in the air, clipping, and how well the vials lie on their line.

Every measure is a number with a unit and, where it has one, a standard error; the note says how it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.image.calibration import Scale
from bids_sodium.image.vials import VialSignals, saturation_of

__all__ = ["Measure", "measures"]

_NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One quality measure.

    Parameters
    ----------
    value : float
        Its value; NaN where the image does not determine it.
    unit : str
        Unit of the value.
    se : float
        Standard error, NaN where it has none.
    note : str
        How it was made, or what it warns of.
    """

    value: float
    unit: str
    se: float = _NAN
    note: str = ""


def measures(
    image: Volume,
    brain: NDArray[np.bool_],
    sigma: float,
    *,
    regions: Mapping[str, NDArray[np.bool_]] | None = None,
    air: NDArray[np.bool_] | None = None,
    vials: VialSignals | None = None,
    vial_masks: tuple[NDArray[np.bool_], ...] = (),
    scale: Scale | None = None,
    saturation: float | None = None,
) -> dict[str, Measure]:
    r"""Return the quality measures of an image.

    Parameters
    ----------
    image : Volume
        Magnitude image before denoising.
    brain : (nx, ny, nz) ndarray of bool
        Brain.
    sigma : float
        Noise per real component, in units of the image.
    regions : mapping of str to ndarray of bool, optional
        Further regions whose signal to noise is wanted.
    air : (nx, ny, nz) ndarray of bool, optional
        Voxels without any source of signal; where it is not given, those farther than 40 mm from the brain and 20 mm
        from a vial.
    vials : VialSignals, optional
        Measured vials.
    vial_masks : tuple of ndarray of bool, optional
        Masks of the vials, which the air leaves out.
    scale : Scale, optional
        Calibration.
    saturation : float, optional
        Value at which voxels are clipped; found where it is not given.

    Returns
    -------
    dict of str to Measure
        ``noise_sigma``, ``snr_brain``, ``snr_<region>``, ``artefact_ratio`` (root mean square of the air over that of
        noise alone, :math:`\sqrt{2}\sigma`; 1 where nothing but noise is there), ``brain_to_air``,
        ``saturated_fraction``, and with vials and scale ``vial<i>_signal``, ``calibration_slope``, ``calibration_r2``,
        ``calibration_residual`` and ``calibration_intercept``.

    Raises
    ------
    GeometryError
        If a mask has another shape than the image.
    DataError
        If sigma is not a positive number or the brain is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> brain = np.zeros((8, 8, 8), dtype=bool)
    >>> brain[2:6, 2:6, 2:6] = True
    >>> found = measures(Volume(40.0 * brain, Grid.centred((8, 8, 8), 4.0)), brain, 2.0)
    >>> found["snr_brain"].value
    20.0
    """
    data = np.abs(np.asarray(image.data)).astype(np.float64)
    masks = {"brain": brain, **(regions or {})}
    everywhere = [*masks.items(), *((f"vial {i}", mask) for i, mask in enumerate(vial_masks, 1))]
    for name, mask in everywhere if air is None else [*everywhere, ("air", air)]:
        if mask.shape != data.shape:
            raise GeometryError(f"mask {name} of shape {mask.shape} for an image of shape {data.shape}")
    if not (np.isfinite(sigma) and sigma > 0):
        raise DataError(f"the noise level is {sigma}", hint="give a standard deviation above zero")
    if not np.asarray(brain, dtype=bool).any():
        raise DataError("the brain mask is empty", hint="check the brain mask and its transform")
    found = {"noise_sigma": Measure(value=float(sigma), unit=image.unit, note="per real component")}
    for name, given in masks.items():
        values = data[np.asarray(given, dtype=bool)]
        note = f"mean of {values.size} voxels over the noise per real component" if values.size else "empty region"
        found[f"snr_{name}"] = Measure(
            value=float(values.mean() / sigma) if values.size else _NAN,
            unit="1",
            se=float(1 / np.sqrt(values.size)) if values.size else _NAN,
            note=note,
        )
    dark = data[_air(data, image, brain, vial_masks) if air is None else np.asarray(air, dtype=bool)]
    mean_square = float((dark**2).mean()) if dark.size else _NAN
    found["artefact_ratio"] = Measure(
        value=float(np.sqrt(mean_square / 2) / sigma),
        unit="1",
        # for pure noise the square has a standard deviation equal to its mean
        se=float(np.sqrt(mean_square / 2) / sigma / 2 / np.sqrt(dark.size)) if dark.size else _NAN,
        note=f"{dark.size} voxels of air; 1 for noise alone, more with ghosts or aliasing",
    )
    level = float(np.sqrt(mean_square))
    found["brain_to_air"] = Measure(
        value=float(data[np.asarray(brain, dtype=bool)].mean()) / level if level > 0 else _NAN,
        unit="1",
        note="mean of the brain over the root mean square of the air",
    )
    ceiling = saturation if saturation is not None else saturation_of(image.data)
    clipped = 0 if ceiling is None else int((data >= ceiling).sum())
    found["saturated_fraction"] = Measure(
        value=clipped / data.size,
        unit="1",
        note=f"{clipped} voxels clipped at {ceiling:g}" if ceiling is not None else "no voxel is clipped",
    )
    found.update(_of_calibration(image.unit, vials, scale))
    return found


def _air(
    data: NDArray[np.float64],
    image: Volume,
    brain: NDArray[np.bool_],
    vial_masks: tuple[NDArray[np.bool_], ...],
) -> NDArray[np.bool_]:
    from scipy import ndimage

    voxel = image.grid.voxel_mm
    far = ndimage.distance_transform_edt(~np.asarray(brain, dtype=bool), sampling=voxel) > 40
    for mask in vial_masks:
        if mask.any():
            far &= ndimage.distance_transform_edt(~np.asarray(mask, dtype=bool), sampling=voxel) > 20
    # exact zeros are padding
    return np.asarray(far & (data > 0))


def _of_calibration(unit: str, vials: VialSignals | None, scale: Scale | None) -> dict[str, Measure]:
    found = {}
    if vials is not None:
        for i in range(vials.signal.size):
            found[f"vial{i + 1}_signal"] = Measure(
                value=float(vials.signal[i]),
                unit=unit,
                se=float(vials.se[i]),
                note=f"{vials.method[i]}, {vials.n_voxels[i]} voxels, {vials.n_saturated[i]} clipped",
            )
    if scale is not None:
        found["calibration_slope"] = Measure(
            value=scale.slope, unit=f"mmol/L per {unit}", se=scale.slope_se, note=scale.note
        )
        found["calibration_r2"] = Measure(value=scale.r2, unit="1", note=f"line: {scale.line}")
        found["calibration_residual"] = Measure(
            value=scale.residual_mmol_l, unit="mmol/L", note="root mean square over the degrees of freedom"
        )
        found["calibration_intercept"] = Measure(
            value=scale.free_intercept_mmol_l,
            unit="mmol/L",
            se=scale.free_intercept_se,
            note="of a free line; far from 0 it tells of a noise floor, B1 or a wrong concentration",
        )
    return found
