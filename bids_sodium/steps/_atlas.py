"""Regions of atlases → rows of the region table: each region against its mirror image, as the images show it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.atlases import Atlas, read_atlas
from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import write_table
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import GeometryError
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine, Transform
from bids_sodium.steps.outputs import save_image
from bids_sodium.steps.parcellate import DSEG
from bids_sodium.steps.records import Record
from bids_sodium.tissue.measures import Change, by_label, percent_change

__all__ = ["atlas_rows", "table_of"]


def atlas_rows(
    atlases: Iterable[tuple[Atlas, Path]],
    images: Mapping[str, NDArray[np.float64]],
    grid: Grid,
    *,
    mni_from_t1w: Transform,
    mirror: Transform,
    resolution_ml: Mapping[str, float],
    minimum_ml: float,
    roots: Roots,
    record: Record,
) -> list[dict[str, object]]:
    """Return one row a region and contrast, and write each atlas as it lies on the T1w image.

    Parameters
    ----------
    atlases : iterable of (Atlas, Path)
        Atlases and the places of their images on the T1w grid.
    images : mapping of str to (nx, ny, nz) ndarray
        Contrasts on the T1w grid.
    grid : Grid
        The T1w grid.
    mni_from_t1w : Transform
        Place of the T1w image in the template.
    mirror : Transform
        From each point of the T1w image to its homologue.
    resolution_ml : mapping of str to float
        Volume of the point spread of each contrast, in mL.
    minimum_ml : float
        Smallest region that is kept, in mL.
    roots : Roots
        Datasets, for the sidecars.
    record : Record
        Takes the notes on where an atlas lies.

    Returns
    -------
    list of dict
        Rows of the region table without the participant's columns; a region is called ``ATLAS:name``.
    """
    rows: list[dict[str, object]] = []
    for atlas, place in atlases:
        labels, names = read_atlas(atlas)
        to_atlas = mni_from_t1w if atlas.space == "template" else Affine.identity("T1w", "T1w")
        try:
            here = np.asarray(resample(labels, grid, to_atlas, "label").data, dtype=np.int32)
        except GeometryError as error:
            raise GeometryError(
                f"no part of the atlas lies in the T1w image ({error.what})",
                where=atlas.image.name,
                hint="say its space in its name (space-T1w, or tpl-MNI152NLin2009aSym)",
            ) from error
        if atlas.note:
            record.warn(f"atlas {atlas.name}: {atlas.note}")
        # before the image: both share one sidecar, which is the image's
        regions = [{"index": i, "name": name.partition(":")[2]} for i, name in enumerate(names, start=1)]
        write_table(table_of(place), regions, DSEG)
        save_image(
            place,
            Volume(here, grid, "1"),
            roots=roots,
            description=f"Regions of the atlas {atlas.name} on the T1w image",
            sources=[atlas.image],
            dtype=np.int32,
            kind="dseg",
        )
        try:
            there = np.asarray(resample(Volume(here, grid), grid, mirror, "label", average=False).data)
        except GeometryError:
            # an image of one hemisphere: the rows say that their mirror image has no value
            there = np.zeros_like(here)
        for contrast, image in images.items():
            size = {"voxel_ml": grid.voxel_ml, "resolution_ml": resolution_ml[contrast]}
            ipsi, contra = (by_label(image, side, len(names), **size) for side in (here, there))
            for name, a, b in zip(names, ipsi, contra, strict=True):
                both = a.n_voxels and b.n_voxels and b.mean
                change = percent_change(a, b) if both else Change(float("nan"), float("nan"))
                reason = _reason(a.volume_ml, minimum_ml)
                if not reason and not np.isfinite(change.percent):
                    reason = "no value in the region or its mirror image"
                rows.append(
                    {
                        "roi": name,
                        "contrast": contrast,
                        "ipsi": a.mean,
                        "contra": b.mean,
                        "percent_change": change.percent,
                        "percent_se": change.se,
                        "ipsi_sd": a.sd,
                        "contra_sd": b.sd,
                        "n_voxels": a.n_voxels,
                        "volume_ml": a.volume_ml,
                        "kept": int(not reason),
                        "reason": reason,
                    }
                )
    return rows


def table_of(image: Path) -> Path:
    """Return the place of the table of a label image.

    Examples
    --------
    >>> table_of(Path("sub-01_atlas-x_dseg.nii.gz")).name
    'sub-01_atlas-x_dseg.tsv'
    """
    return image.with_name(image.name.partition(".")[0] + ".tsv")


def _reason(volume_ml: float, minimum_ml: float) -> str:
    if volume_ml == 0.0:
        return "the region does not lie in the T1w image"
    return f"volume {volume_ml:.3g} mL is below {minimum_ml:g} mL" if volume_ml < minimum_ml else ""
