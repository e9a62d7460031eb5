"""The deformable step: symmetric-forces demons on images whose neighbourhoods have one mean and contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Grid, Volume
from bids_sodium.spatial.resampling import resample, to_itk_image
from bids_sodium.spatial.transforms import Affine, Warp

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

    from bids_sodium.spatial.registration import RegistrationParams

__all__ = ["demons", "grid_around", "normalised", "unlike"]


def grid_around(brain: NDArray[np.bool_], fixed: Grid, params: RegistrationParams) -> tuple[Grid, NDArray[np.bool_]]:
    """Return the finest grid of the deformable step, cut 12 mm around the brain, and the brain on it."""
    grid = fixed.with_voxel(params.demons_levels_mm[-1])
    found = grid.index(fixed.world(np.argwhere(brain).astype(np.float64)))
    room = 12.0 / np.array(grid.voxel_mm)
    low = np.floor(found.min(axis=0) - room)
    x, y, z = (int(n) for n in np.ceil(found.max(axis=0) + room) - low + 1)
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world(low)
    grid = Grid((x, y, z), affine)
    inner = resample(Volume(brain, fixed), grid, Affine.identity("fine", "fine"), "probability")
    return grid, np.asarray(np.asarray(inner.data) >= 0.5)


def normalised(
    image: NDArray[np.floating], weight: NDArray[np.float64], sigma: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the image with the mean 0 and contrast 1 of each neighbourhood: free of bias field and units."""
    from scipy import ndimage

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values * weight, sigma, truncate=3.0) / share)

    share = ndimage.gaussian_filter(weight, sigma, truncate=3.0) + 1e-3
    values = np.asarray(image, dtype=np.float64) / float(np.percentile(image[weight > 0], 99))
    mean = local(values)
    spread = np.sqrt(np.maximum(local(values**2) - mean**2, 0.0) + 0.02**2)
    return np.asarray((values - mean) / spread * weight, dtype=np.float32)


def unlike(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return the share of the variance that two images do not have in common."""
    return float(1.0 - np.corrcoef(first, second)[0, 1] ** 2)


def demons(
    fixed: NDArray[np.float32], moving: NDArray[np.float32], grid: Grid, params: RegistrationParams
) -> NDArray[np.float32]:
    """Return the displacement ``u`` on the grid for which ``moving(x + u(x))`` is like ``fixed(x)``."""
    import SimpleITK as sitk  # noqa: N813

    still = Affine.identity("fine", "fine")
    field: sitk.Image | None = None
    for voxel_mm, iterations in zip(params.demons_levels_mm, params.demons_iterations, strict=True):
        coarse = grid.with_voxel(voxel_mm)
        pair = [
            to_itk_image(np.asarray(resample(Volume(image, grid), coarse, still).data), coarse)
            for image in (fixed, moving)
        ]
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfThreads(1)
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(params.demons_smoothing_voxels)
        if field is None:
            field = demons.Execute(*pair)
        else:
            field = demons.Execute(*pair, sitk.Resample(field, pair[0], sitk.Transform(), sitk.sitkLinear, 0.0))
    assert field is not None  # noqa: S101 - the parameters have at least one level
    x, y, z = field.GetSize()
    values = np.asarray(sitk.GetArrayFromImage(field)).transpose(2, 1, 0, 3)
    fitted = Warp(values, Grid((x, y, z), grid.with_voxel(params.demons_levels_mm[-1]).affine), "moving", "fixed")
    nodes = grid.world(np.moveaxis(np.indices(grid.shape, dtype=np.float64), 0, -1))
    return np.asarray(fitted.apply(nodes) - nodes, dtype=np.float32)
