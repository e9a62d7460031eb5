"""The map to the other side: chosen, judged, written, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import write_transform, write_volume
from bids_sodium.core.data import Grid, Volume
from bids_sodium.spatial.mirror import MirrorParams
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps import mirror
from bids_sodium.steps.align import TEMPLATE
from bids_sodium.steps.records import Record, read_record

SHIFT = np.eye(4)
SHIFT[0, 3] = 6.0
MNI_FROM_T1W = Affine(SHIFT, TEMPLATE, "T1w")


def test_the_chosen_mirror_is_read_back() -> None:
    template = Record(values={"method": "template", "matrix": None})
    assert mirror.chosen_mirror(template, MNI_FROM_T1W).apply([10.0, 2.0, 3.0]).tolist() == [-22.0, 2.0, 3.0]
    plane = Record(values={"method": "plane", "matrix": np.diag([-1.0, 1.0, 1.0, 1.0]).tolist()})
    assert mirror.chosen_mirror(plane, MNI_FROM_T1W).apply([10.0, 2.0, 3.0]).tolist() == [-10.0, 2.0, 3.0]


@pytest.mark.parametrize("method", ["template", "plane"])
def test_a_symmetric_head_has_its_other_side_where_it_is(tmp_path: Path, method: str) -> None:
    """A head that is symmetric about the plane 6 mm left of the middle of its image."""
    grid = Grid.centred((56, 56, 56), 3.0)
    x, y, z = np.moveaxis(grid.world(np.indices(grid.shape).transpose(1, 2, 3, 0).astype(float)), -1, 0)
    brain = ((x + 6.0) / 62.0) ** 2 + (y / 72.0) ** 2 + ((z - 0.1 * y) / 58.0) ** 2 < 1.0
    texture = gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), 2.0)
    # voxels on either side of the plane at x = -6 mm
    there = np.rint((-12.0 - x[:, 0, 0] - x[0, 0, 0]) / 3.0).astype(int).clip(0, 55)
    image = np.where(brain, 100.0 + 300.0 * (texture + texture[there]), 0.0).astype(np.float32)
    paths = {name: tmp_path / name for name in ("t1w.nii.gz", "brain.nii.gz", "xfm.txt", "mirror.json")}
    write_volume(paths["t1w.nii.gz"], Volume(image, grid))
    write_volume(paths["brain.nii.gz"], Volume(brain, grid), dtype=np.uint8)
    write_transform(paths["xfm.txt"], MNI_FROM_T1W)
    files = mirror.Files(
        t1w=paths["t1w.nii.gz"],
        brain=paths["brain.nii.gz"],
        template_transform=paths["xfm.txt"],
        record=paths["mirror.json"],
        roots=Roots(output=tmp_path),
    )
    mirror.run(files, mirror.Params(mirror=MirrorParams(method=method)))  # type: ignore[arg-type]
    record = read_record(paths["mirror.json"])
    measured = {m.name: m.value for m in record.measures}
    assert measured["mirror_error_median"] <= measured["mirror_error_p95"] < 2.0
    assert record.values["method"] == method
    found = mirror.chosen_mirror(record, MNI_FROM_T1W).apply([20.0, 10.0, 0.0])
    np.testing.assert_allclose(found, [-32.0, 10.0, 0.0], atol=1.0)
