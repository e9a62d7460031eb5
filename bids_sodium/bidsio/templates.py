"""Templates that come with an installed package: the symmetric MNI152 head of nilearn; nothing is downloaded."""

from __future__ import annotations

from functools import cache

import numpy as np

from bids_sodium.core.data import Grid, HeadTemplate
from bids_sodium.tissue.priors import deep_grey_prior

__all__ = ["TEMPLATE_GRID", "load_head_template"]

TEMPLATE_GRID = Grid(
    (197, 233, 189),
    np.array([[1.0, 0.0, 0.0, -98.0], [0.0, 1.0, 0.0, -134.0], [0.0, 0.0, 1.0, -72.0], [0.0, 0.0, 0.0, 1.0]]),
)
"""Lattice of the template at 1 mm, known without reading it."""


@cache
def load_head_template() -> HeadTemplate:
    """Return the symmetric MNI152 (2009a, nonlinear) head at 1 mm; read once in a process.

    Returns
    -------
    HeadTemplate
        T1 (0 to 1, brain only), grey and white matter, cerebrospinal fluid as the rest of the brain mask, the deep
        share of grey matter, and the brain mask, which takes in ventricles and sulci. The arrays are read-only.

    References
    ----------
    Fonov V et al. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage 2011;54:313-327,
    doi:10.1016/j.neuroimage.2010.07.033.

    Examples
    --------
    >>> head = load_head_template()
    >>> head.grid.shape, head.grid.voxel_mm
    ((197, 233, 189), (1.0, 1.0, 1.0))
    >>> head.grid.same_as(TEMPLATE_GRID)
    True
    """
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    from scipy import ndimage

    image = load_mni152_template(resolution=1)
    grid = Grid((image.shape[0], image.shape[1], image.shape[2]), np.asarray(image.affine))
    t1 = image.get_fdata(dtype=np.float32)
    gm = load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)
    wm = load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)

    # Closing by 3 mm takes in sulci and cisterns that the template's own mask cuts into.
    cross = ndimage.generate_binary_structure(3, 1)
    brain = ndimage.binary_closing(np.pad(t1 > 0, 4), cross, iterations=3)[4:-4, 4:-4, 4:-4]
    brain = np.asarray(ndimage.binary_fill_holes(brain | (t1 > 0)), dtype=np.bool_)
    gm, wm = np.clip(gm, 0.0, 1.0) * brain, np.clip(wm, 0.0, 1.0) * brain
    over = np.maximum(gm + wm, 1.0)
    gm, wm = (gm / over).astype(np.float32), (wm / over).astype(np.float32)
    csf = (np.clip(1.0 - gm - wm, 0.0, 1.0) * brain).astype(np.float32)
    deep = deep_grey_prior(gm, grid)
    for array in (t1, gm, wm, csf, deep, brain):
        array.setflags(write=False)
    return HeadTemplate(grid=grid, t1=t1, gm=gm, wm=wm, csf=csf, deep=deep, brain=brain)
