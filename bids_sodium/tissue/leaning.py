"""Regions that a scan hardly tells lean on their likes: healthy ones on tissue, parts of a lesion on one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import GeometryError
from bids_sodium.tissue.partialvolume import Corrected, shrunk
from bids_sodium.tissue.rois import RoiParams

__all__ = ["leaning"]


def leaning(
    fit: Corrected,
    made_of: Mapping[str, Mapping[str, float]],
    within_mmol_l: Mapping[str, float],
    lesions: Sequence[str],
    covariance: NDArray[np.floating],
    params: RoiParams | None = None,
) -> Corrected:
    """Return the fit where parts of regions lean on what they are like, as far as the scan leaves them open.

    Parameters
    ----------
    fit : Corrected
        Concentrations of tissues and parts.
    made_of : mapping of str to mapping of str to float
        Tissues that each healthy part was cut from, with their volumes: its concentration is their mean within so much.
    within_mmol_l : mapping of str to float
        Standard deviation of each healthy part about that mean, in mmol/L.
    lesions : sequence of str
        Parts of the lesion: what one has more than another has the stated covariance, and ``lesion_step_mmol_l`` a
        part; the mean of the lesion is free.
    covariance : (n, n) ndarray
        Covariance of the means of ``lesions``, in (mmol/L)^2, as `varied` tells it.
    params : RoiParams, optional
        Standard deviation of the steps between parts.

    Returns
    -------
    Corrected
        The same names with other concentrations and covariance, see `shrunk`.

    Raises
    ------
    GeometryError
        If the covariance does not fit the lesions.

    Examples
    --------
    >>> from bids_sodium.tissue.partialvolume import regional
    >>> share = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    >>> columns = np.stack([share, 1 - share])
    >>> fit = regional(60 * share + 50 * (1 - share), columns, ("a", "b"), method="glm", sigma=99.0)
    >>> near = leaning(fit, {}, {}, ("a", "b"), np.zeros((2, 2)), RoiParams(lesion_step_mmol_l=0.1))
    >>> fit.mmol_l.round(1), near.mmol_l.round(1)
    (array([60., 50.]), array([55., 55.]))
    """
    from scipy.linalg import block_diag

    p = RoiParams() if params is None else params
    if np.shape(covariance) != (len(lesions), len(lesions)):
        raise GeometryError(f"a covariance of shape {np.shape(covariance)} for {len(lesions)} parts of a lesion")
    place = {name: i for i, name in enumerate(fit.names) if np.isfinite(fit.mmol_l[i])}
    rows, blocks = [], []
    for name, shares in made_of.items():
        present = {tissue: share for tissue, share in shares.items() if tissue in place}
        if name in place and sum(present.values()) > 0:
            row = np.zeros(len(fit.names))
            row[place[name]] = 1.0
            for tissue, share in present.items():
                row[place[tissue]] -= share / sum(present.values())
            rows.append(row)
            blocks.append(np.array([[within_mmol_l[name] ** 2]]))
    known = [i for i, name in enumerate(lesions) if name in place]
    if len(known) > 1:
        # against the first of them, since the mean of the lesion is free
        apart = np.concatenate([-np.ones((len(known) - 1, 1)), np.eye(len(known) - 1)], axis=1)
        for row in apart:
            whole = np.zeros(len(fit.names))
            whole[[place[lesions[i]] for i in known]] = row
            rows.append(whole)
        between = covariance[np.ix_(known, known)] + p.lesion_step_mmol_l**2 * np.eye(len(known))
        blocks.append(apart @ between @ apart.T)
    return shrunk(fit, np.array(rows), block_diag(*blocks)) if rows else fit
