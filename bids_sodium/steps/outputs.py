"""Write an output with its sidecar: the one way that every step uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.bidsio.derivatives import Roots, sidecar, write_sidecar
from bids_sodium.bidsio.files import write_transform, write_volume
from bids_sodium.core.data import Volume

if TYPE_CHECKING:
    from bids_sodium.spatial.transforms import Transform

__all__ = ["save_image", "save_transform"]

_UNSTRIPPED = {"mask", "dseg", "probseg"}


def save_image(
    path: Path,
    image: Volume,
    *,
    roots: Roots,
    description: str,
    sources: Iterable[Path],
    units: str | None = None,
    kind: str = "image",
    dtype: Any = np.float32,
    skull_stripped: bool = False,
    spatial_reference: Path | str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write an image and its sidecar.

    Parameters
    ----------
    path : Path
        Place of the image.
    image : Volume
        Values.
    roots : Roots
        Datasets, for BIDS URIs of the sources.
    description : str
        What it is.
    sources : iterable of Path
        What it was made from.
    units : str, optional
        Unit of the values, by default the image's own.
    kind : {"image", "mask", "dseg", "probseg"}
        Masks and segmentations say nothing of skull stripping.
    dtype : dtype
        Type on disk.
    skull_stripped : bool
        Whether everything outside the brain was removed.
    spatial_reference : Path or str, optional
        Image that defines the space, where the name holds ``space-``.
    extra : mapping, optional
        Parameters and findings for the sidecar.

    Returns
    -------
    Path
        ``path``.
    """
    write_volume(path, image, dtype=dtype)
    plain = kind in _UNSTRIPPED
    content = sidecar(
        description=description,
        roots=roots,
        sources=sources,
        units=None if plain and units is None else (image.unit if units is None else units),
        skull_stripped=None if plain else skull_stripped,
        spatial_reference=spatial_reference,
        extra={**({"Type": "Brain"} if kind == "mask" and "desc-brain" in path.name else {}), **(extra or {})},
    )
    write_sidecar(path, content)
    return path


def save_transform(
    path: Path,
    transform: Transform,
    *,
    roots: Roots,
    description: str,
    sources: Iterable[Path],
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a transform in ITK's format and its sidecar.

    Parameters
    ----------
    path : Path
        Place of the transform, ``.txt`` for affine and ``.h5`` for deformable ones.
    transform : Transform
        Maps points of its source frame to its target frame.
    roots, description, sources, extra
        As for `save_image`.

    Returns
    -------
    Path
        ``path``.
    """
    write_transform(path, transform)
    note = "ITK resampling convention (LPS): the file maps points of the target image to the source image"
    content = sidecar(
        description=description,
        roots=roots,
        sources=sources,
        extra={"From": transform.source, "To": transform.target, "Convention": note, **(extra or {})},
    )
    write_sidecar(path, content)
    return path
