"""Masks that several raters drew of one region → rows of the raters' table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_sodium.tissue.rois import agreement

__all__ = ["rater_names", "rater_rows"]

_DESC = re.compile(r"_desc-([A-Za-z0-9]+)")


def rater_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return what tells raters apart: the ``desc-`` of their masks, else their number in the order of names.

    Examples
    --------
    >>> rater_names([Path("a_label-ionic_desc-nm_mask.nii.gz"), Path("a_label-ionic_desc-mc_mask.nii.gz")])
    ('nm', 'mc')
    >>> rater_names([Path("a_run-1_label-ionic_mask.nii.gz"), Path("a_run-2_label-ionic_mask.nii.gz")])
    ('rater1', 'rater2')
    """
    found = [match.group(1) if (match := _DESC.search(path.name)) else "" for path in paths]
    if all(found) and len(set(found)) == len(found):
        return tuple(found)
    return tuple(f"rater{i}" for i in range(1, len(paths) + 1))


def rater_rows(
    label: str,
    unit: str,
    paths: Sequence[Path],
    masks: Sequence[NDArray[np.bool_]],
    voxel_mm: tuple[float, float, float],
) -> list[dict[str, object]]:
    """Return one row for each pair of raters of one region and session.

    Parameters
    ----------
    label : str
        Region.
    unit : str
        Session, such as ``sub-01_ses-acute``.
    paths : sequence of Path
        The masks' files.
    masks : sequence of (nx, ny, nz) ndarray of bool
        The masks on one grid.
    voxel_mm : tuple of float
        Its voxel, in mm.

    Returns
    -------
    list of dict
        Rows of `bids_sodium.core.tables.RATERS`; none for a single rater.
    """
    participant, _, session = unit.partition("_")
    rows: list[dict[str, object]] = []
    for (a, first), (b, second) in combinations(zip(rater_names(paths), masks, strict=True), 2):
        found = agreement(first, second, voxel_mm=voxel_mm)
        rows.append(
            {
                "participant_id": participant,
                "session_id": session or None,
                "label": label,
                "rater_a": a,
                "rater_b": b,
                "dice": found.dice,
                "hausdorff95_mm": found.hausdorff95_mm,
                "volume_a_ml": found.volume_a_ml,
                "volume_b_ml": found.volume_b_ml,
                "volume_difference_ml": found.volume_difference_ml,
            }
        )
    return rows
