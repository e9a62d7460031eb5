"""p values adjusted for their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError

__all__ = ["adjust"]

_METHODS = {"holm": "holm", "bh": "fdr_bh", "bonferroni": "bonferroni"}
"""What statsmodels calls them."""


def adjust(p: ArrayLike, method: str = "holm") -> NDArray[np.float64]:
    """Adjust p values for their number.

    Parameters
    ----------
    p : array_like
        p values, shape (m,); NaN stays NaN and does not count.
    method : {"holm", "bh", "bonferroni"}, optional
        Holm and Bonferroni hold the family-wise error, Benjamini-Hochberg the false discovery rate.

    Returns
    -------
    (m,) ndarray
        Adjusted p values, in the order given.

    Raises
    ------
    DataError
        If a p value lies outside [0, 1] or the method is unknown.

    References
    ----------
    Holm S. A simple sequentially rejective multiple test procedure. Scand J Stat 1979.
    Benjamini Y, Hochberg Y. Controlling the false discovery rate. J R Stat Soc B 1995.

    Examples
    --------
    >>> adjust([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    >>> adjust([0.01, 0.04, 0.03], "bh")
    array([0.03, 0.04, 0.04])
    """
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(p, dtype=np.float64)
    given = ~np.isnan(values)
    used = values[given]
    if values.ndim != 1:
        raise DataError(f"p values have {values.ndim} axes, expected one")
    if ((used < 0) | (used > 1)).any():
        raise DataError(f"p values run from {used.min():g} to {used.max():g}, outside [0, 1]")
    if method not in _METHODS:
        raise DataError(f"unknown adjustment {method!r}", hint="use holm, bh or bonferroni")
    adjusted = np.full(values.shape, np.nan)
    if used.size and method == "holm":
        # statsmodels collects garbage in every call of its Holm branch, which made a study twice as slow
        order = np.argsort(used)
        steps = np.minimum(np.maximum.accumulate(used[order] * np.arange(used.size, 0, -1)), 1.0)
        adjusted[np.flatnonzero(given)[order]] = steps
    elif used.size:
        adjusted[given] = multipletests(used, method=_METHODS[method])[1]
    return adjusted
