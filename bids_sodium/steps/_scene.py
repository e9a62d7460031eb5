"""Regions of one session, their mirror images and CSF: what the rows of the region table are read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import read_volume
from bids_sodium.core.data import Grid, Volume
from bids_sodium.spatial.mirror import contralateral_masks
from bids_sodium.spatial.resampling import resample
from bids_sodium.steps._model import SOLID

if TYPE_CHECKING:
    from bids_sodium.spatial.transforms import Transform
    from bids_sodium.steps._tissues import Inputs
    from bids_sodium.steps.extract import Files

__all__ = ["WITHOUT_CSF", "Scene", "scene_of"]

Mask = NDArray[np.bool_]

WITHOUT_CSF = 0.5
"""Share of CSF below which a voxel is tissue."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Regions of one session on the T1w grid, their mirror images, and where CSF lies on either side.

    All lie in a ``box`` of the ``whole`` T1w grid, outside which there is no brain. Regions of ``other_times`` were
    drawn on images of another session: what only they hold is no lesion here, not yet or no more. ``tissue_there`` are
    solid tissues of the other side, as far as they are known.
    """

    whole: Grid
    box: tuple[slice, slice, slice]
    masks: dict[str, Mask]
    mirrored: dict[str, Mask]
    lesion: Mask
    csf: NDArray[np.float32]
    csf_there: NDArray[np.float32]
    mirror: Transform
    other_times: frozenset[str] = frozenset()
    tissue_there: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        return self.whole.cropped(self.box)

    @property
    def healthy(self) -> Mask:
        return np.asarray(~self.lesion & (self.csf < WITHOUT_CSF))


def scene_of(files: Files, mirror: Transform, given: Inputs | None, other_times: frozenset[str]) -> Scene:
    """Return the regions of a session and their mirror images, in the box of the brain where one is given."""
    assert files.t1w is not None  # noqa: S101
    whole = read_volume(files.t1w).grid if given is None else given.grid
    box = (slice(None), slice(None), slice(None)) if given is None else given.box
    grid = whole.cropped(box)
    masks = {name: np.asarray(read_volume(path).data)[box] > 0.5 for name, path in files.regions}
    lesion = np.zeros(grid.shape, dtype=bool)
    for mask in masks.values():
        lesion |= mask
    csf = np.zeros(grid.shape, dtype=np.float32)
    for name, path in files.fractions:
        if name == "CSF":
            csf = np.asarray(read_volume(path).data, dtype=np.float32)[box]

    def there(data: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(resample(Volume(data, grid), grid, mirror, kind="intensity").data, dtype=np.float32)

    solid = {} if given is None or not masks else {name: given.shown[name] for name in SOLID if name in given.shown}
    return Scene(
        whole=whole,
        box=box,
        masks=masks,
        mirrored=contralateral_masks(masks, grid, mirror) if masks else {},
        lesion=lesion,
        csf=csf,
        csf_there=there(csf),
        mirror=mirror,
        other_times=other_times,
        tissue_there={name: there(np.asarray(volume.data, dtype=np.float32)) for name, volume in solid.items()},
    )
