"""The fluid of a head as the scan sees it: ventricles from the segmentation, eyes from a given mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_transform, read_volume
from bids_sodium.core.constants import RELAXATION
from bids_sodium.core.data import KSpace, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.image.reference import InternalReference, ReferenceParams, measure_reference
from bids_sodium.recon.columns import mtf_columns, operator_columns
from bids_sodium.recon.psf import gaussian_point_spread
from bids_sodium.recon.solvers import Linear
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps.records import read_record

__all__ = ["FluidFiles", "measured_fluid"]

_DEEP_MM = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidFiles:
    """Where the fluid is drawn.

    Parameters
    ----------
    fluid : Path
        Its fraction or mask.
    frame : str
        Frame of it: that of the anatomy, or ``23Na``.
    transform : Path or None
        Sodium to that frame; ``None`` on the sodium image itself.
    brain : Path or None
        Brain mask in that frame; fluid near the brain's surface is left out.
    align_record : Path or None
        Record of the registration, for its error.
    """

    fluid: Path
    frame: str
    transform: Path | None
    brain: Path | None
    align_record: Path | None


def measured_fluid(
    files: FluidFiles,
    image: Volume,
    params: ReferenceParams,
    *,
    kspace: KSpace | None,
    operator: Linear | None,
    te_ms: float,
    sigma: float,
    fwhm_mm: float,
    magnitude: bool,
    name: str,
) -> InternalReference:
    """Measure the fluid in the sodium image, the brain around it with its own point spread.

    Parameters
    ----------
    files : FluidFiles
        Where it is drawn.
    image : Volume
        Sodium image before denoising, its fields corrected.
    params : ReferenceParams
        Which fluid.
    kspace, operator : KSpace, Linear, optional
        The scan, whose own acquisition then blurs the fluid; else a Gaussian of ``fwhm_mm``.
    te_ms, sigma, fwhm_mm : float
        Echo time, noise of a voxel and width of the point spread.
    magnitude : bool
        Values are magnitudes with their noise floor.
    name : str
        Name of the sodium frame.
    """
    drawn = read_volume(files.fluid)
    fraction = drawn.with_data(np.asarray(drawn.data, dtype=np.float32))
    if float(fraction.data.max()) <= 0.0:
        raise DataError("the fluid's mask is empty", where=files.fluid.name, hint="draw it again")
    na_from_drawn, error_mm = _place(files, name)
    matrix = np.asarray(na_from_drawn.matrix)
    maps = {"CSF": fraction}
    brain = None if files.brain is None else read_volume(files.brain)
    if brain is not None and brain.grid.same_as(fraction.grid):
        inside = np.asarray(brain.data) > 0.5
        maps["GM"] = fraction.with_data(np.where(inside, 1.0 - np.asarray(fraction.data), 0.0).astype(np.float32))
    if kspace is not None and operator is not None:
        decays = {tissue: RELAXATION[tissue].decay for tissue in maps}
        columns = operator_columns(
            maps, image.grid, kspace.trajectory, decays, na_from_maps=matrix, te_ms=te_ms, operator=operator
        )
    else:
        blur = dict.fromkeys(maps, gaussian_point_spread(fwhm_mm))
        columns = mtf_columns(maps, image.grid, blur, na_from_maps=matrix)
    return measure_reference(
        image,
        # the point spread rings by a few percent
        np.clip(columns.images[0], -0.1, 1.1),
        params,
        sigma=sigma,
        surroundings=columns.images[1] if "GM" in maps else None,
        region=None if brain is None else _inner(brain, image, na_from_drawn),
        place_error_mm=error_mm,
        magnitude=magnitude,
        correlation_voxels=max(1.0, fwhm_mm**3 / float(np.prod(image.grid.voxel_mm))),
    )


def _place(files: FluidFiles, name: str) -> tuple[Affine, float]:
    """Return the way from the drawing to the sodium image, and its standard error."""
    if files.transform is None:
        return Affine.identity(name, files.frame), 0.0
    way = read_transform(files.transform, files.frame, name).inverse()
    assert isinstance(way, Affine)  # noqa: S101 - sessions are registered rigidly
    errors = {} if files.align_record is None else read_record(files.align_record).values.get("target_error_mm", {})
    error = errors.get(name)
    return way, 0.0 if error is None or not np.isfinite(error) else float(error)


def _inner(mask: Volume, image: Volume, na_from_drawn: Affine) -> NDArray[np.bool_]:
    """Return the middle of the brain, where fluid is that of ventricles."""
    from scipy import ndimage

    depth_mm = ndimage.distance_transform_edt(np.asarray(mask.data) > 0.5, sampling=mask.grid.voxel_mm)
    middle = mask.with_data(np.asarray(depth_mm > _DEEP_MM, dtype=np.float32))
    return np.asarray(np.asarray(resample(middle, image.grid, na_from_drawn.inverse(), "probability").data) > 0.5)
