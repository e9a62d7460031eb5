"""Principal components of a series: signals shared by neighbours are kept, what looks like pure noise is dropped.

The eigenvalues of a patch of pure noise follow the Marchenko-Pastur law; components within it are dropped, and its
scale is the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError

__all__ = ["Components", "principal_components"]

# Voxels of a patch lie two apart: filters over k-space correlate neighbours, and correlated noise looks like signal.
_APART = 2


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """A series without its noise components.

    Parameters
    ----------
    data : (nx, ny, nz, n) ndarray
        Denoised in the mask, as given elsewhere.
    sigma : (nx, ny, nz) ndarray
        Standard deviation of the values given (of each part, if they are complex); NaN outside the mask.
    """

    data: NDArray[Any]
    sigma: NDArray[np.float64]


def principal_components(data: NDArray[Any], mask: NDArray[np.bool_], *, radius: int = 2) -> Components:
    """Drop the components of a series that look like noise.

    Patches are those of voxels two apart: each of the eight interleaved lattices is treated on its own. With neighbours
    in the patch, noise that a filter over k-space had correlated kept 69 % of its deviation, with voxels two apart
    38 %; white noise 34 % and 38 % (12 echoes of the head phantom).

    Parameters
    ----------
    data : (nx, ny, nz, n) ndarray
        Real or complex values; the parts of complex ones are volumes of their own.
    mask : (nx, ny, nz) ndarray of bool
        Voxels whose patches are looked at.
    radius : int
        Half width of a patch, in voxels of a lattice.

    Returns
    -------
    Components
        Series and noise.

    Raises
    ------
    DataError
        If an axis is shorter than two patches.

    References
    ----------
    Veraart 2016, NeuroImage 142:394, doi:10.1016/j.neuroimage.2016.08.016 (threshold); Manjon 2013, PLoS ONE 8:e73021,
    doi:10.1371/journal.pone.0073021 (averaging of patches).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> decay = 50 * np.exp(-np.arange(12) / 4.0) * np.ones((10, 10, 10, 1))
    >>> found = principal_components(decay + rng.normal(0, 2, decay.shape), np.ones((10, 10, 10), bool))
    >>> bool(np.std(found.data - decay) < 1.0), abs(float(np.nanmedian(found.sigma)) - 2) < 0.1
    (True, True)
    """
    from dipy.denoise.localpca import mppca

    least = _APART * (2 * radius + 1)
    if min(data.shape[:3]) < least:
        raise DataError(
            f"a series of shape {data.shape} is too thin for patches of {least} voxels",
            hint="denoise its volumes one by one, with nlm",
        )
    is_complex = np.iscomplexobj(data)
    n = data.shape[3]
    out = np.array(data)
    sigma = np.full(data.shape[:3], np.nan)
    for start in np.ndindex(_APART, _APART, _APART):
        lattice = tuple(slice(first, None, _APART) for first in start)
        inside = mask[lattice]
        if not inside.any():
            continue
        part = data[lattice]
        values = np.concatenate([part.real, part.imag], axis=3) if is_complex else part
        values = values.astype(np.float64)
        # The library clips what it returns at zero; its patches have their mean removed, so that a shift is idle.
        shift = values.min() - np.ptp(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            clean, spread = mppca(
                values - shift, mask=inside, patch_radius=radius, return_sigma=True, suppress_warning=True
            )
        clean = clean + shift
        # Voxels on the rim that no patch covers come back as NaN.
        seen = inside & np.isfinite(clean).all(axis=3)
        result = clean[..., :n] + 1j * clean[..., n:] if is_complex else clean
        out[lattice][seen] = result[seen]
        sigma[lattice][seen] = spread[seen]
    return Components(out, sigma)
