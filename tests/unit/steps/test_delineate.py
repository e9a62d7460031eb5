"""The delineation step: what it writes is called automatic, lies where the session can edit it, and may come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_json, read_volume, write_json, write_transform, write_volume
from bids_sodium.bidsio.layout import index
from bids_sodium.core.data import Grid, Volume
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps.align import SESSION, TEMPLATE
from bids_sodium.steps.delineate import Files, Params, Source, run
from bids_sodium.steps.records import Record, read_record, write_record

GRID = Grid.centred((46, 52, 42), 4.0)
UNIT = "sub-01_ses-acute"
SHIFT = np.array([6.0, -4.0, 3.0])
"""Where the session's own T1w image lies against the anatomy, in mm."""


def world(grid: Grid) -> np.ndarray:
    return grid.world(np.moveaxis(np.indices(grid.shape), 0, -1).astype(float))


def inside(points: np.ndarray, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    return np.asarray((((points - centre) / radii) ** 2).sum(axis=-1) < 1)


HEAD = inside(world(GRID), (0, 0, 0), (68, 82, 64))
LESION = inside(world(GRID), (-32, 5, 6), (18, 24, 20))
VENTRICLES = inside(world(GRID), (0, 0, 5), (12, 25, 12))


def shifted(by: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


@pytest.fixture
def files(tmp_path: Path) -> Files:
    raw, out = tmp_path / "raw", tmp_path / "out"
    anat = out / "sub-01" / "ses-acute" / "anat"
    rng = np.random.default_rng(0)
    signal = 100.0 * HEAD * (1 + 0.5 * LESION + 1.0 * VENTRICLES) + rng.normal(0, 4, GRID.shape)
    session = Grid(GRID.shape, shifted(SHIFT) @ GRID.affine)

    def wrote(path: Path, data: np.ndarray, grid: Grid = GRID) -> Path:
        return write_volume(path, Volume(data.astype(np.float32), grid))

    still = write_transform(anat / f"{UNIT}_from-23Na_to-T1w_mode-image_xfm.txt", Affine.identity("T1w", "23Na"))
    return Files(
        t1w=wrote(out / "sub-01_ses-m3_desc-preproc_T1w.nii.gz", 500.0 * HEAD),
        brain=wrote(out / "sub-01_ses-m3_desc-brain_mask.nii.gz", HEAD),
        csf=wrote(out / "sub-01_ses-m3_label-CSF_probseg.nii.gz", VENTRICLES),
        template_transform=write_transform(
            out / "sub-01_ses-m3_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt", Affine.identity(TEMPLATE, "T1w")
        ),
        mirror_record=write_record(tmp_path / "mirror.json", Record(values={"method": "template", "matrix": None})),
        sources=(
            Source(
                label="ionic",
                image=wrote(anat / f"{UNIT}_acq-23Na_TSCmap.nii.gz", signal),
                frame="23Na",
                transform=still,
                own=anat / f"{UNIT}_label-ionic_desc-auto_mask.nii.gz",
                common=anat / f"{UNIT}_label-ionic_desc-consensus_mask.nii.gz",
            ),
        ),
        session_t1w=wrote(raw / "sub-01" / "ses-acute" / "anat" / f"{UNIT}_T1w.nii.gz", 500.0 * HEAD, session),
        session_transform=write_transform(
            anat / f"{UNIT}_from-orig_to-T1w_mode-image_xfm.txt", Affine(shifted(-SHIFT), "T1w", SESSION)
        ),
        record=tmp_path / "delineate.json",
        roots=Roots(output=out, raw=raw),
    )


def mask_of(path: Path) -> np.ndarray:
    return np.asarray(read_volume(path).data) > 0.5


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_mask_is_called_automatic_wherever_it_is_met(files: Files) -> None:
    run(files, Params())
    (source,) = files.sources
    for path in (source.own, source.common):
        sidecar = read_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"))
        assert "AUTOMATIC delineation against the other side, nobody drew it" in sidecar["Description"]
        assert sidecar["Delineation"]["minimum_ml"] == 1.0
    record = read_record(files.record)
    (warning,) = record.warnings
    assert "ionic was delineated automatically" in warning
    assert source.own.name in warning
    (volume,) = record.measures
    assert "delineated automatically" in volume.note
    assert volume.value == pytest.approx(mask_of(source.common).sum() * GRID.voxel_ml)


def test_it_is_the_lesion_without_csf_on_the_anatomy_and_on_the_own_image(files: Files) -> None:
    run(files, Params())
    (source,) = files.sources
    common, own = mask_of(source.common), mask_of(source.own)
    assert dice(common, LESION & HEAD) > 0.85
    assert not (common & VENTRICLES).any()
    # the same voxels, since the own image is the anatomy at another place
    assert files.session_t1w is not None
    np.testing.assert_allclose(read_volume(source.own).grid.affine, read_volume(files.session_t1w).grid.affine)
    np.testing.assert_array_equal(own, common)


def test_an_edited_mask_comes_back_as_a_drawn_one(files: Files, tmp_path: Path) -> None:
    run(files, Params())
    (source,) = files.sources
    assert files.session_t1w is not None
    raw, rois = files.roots.raw, tmp_path / "rois"
    stem = files.session_t1w.with_name(f"{UNIT}_acq-23Na_PDw")
    write_volume(stem.with_suffix(".nii.gz"), read_volume(source.image))
    content = {"ResonantNucleus": "23Na", "EchoTime": 0.0002, "RepetitionTime": 0.1, "FlipAngle": 90}
    write_json(stem.with_suffix(".json"), content)
    edited = mask_of(source.own)
    edited[:20] = False
    place = rois / "sub-01" / "ses-acute" / "anat" / source.own.name
    write_volume(place, Volume(edited, read_volume(source.own).grid), dtype=np.uint8)
    (session,) = index(raw, derivatives={"rois": rois}).sessions
    (drawn,) = session.masks["ionic"]
    assert drawn.path == place
    assert drawn.entities.get("desc") == "auto"


def test_nothing_that_stands_out_leaves_an_empty_mask_and_a_reason(files: Files) -> None:
    rng = np.random.default_rng(1)
    (source,) = files.sources
    write_volume(source.image, Volume((100.0 * HEAD + rng.normal(0, 4, GRID.shape)).astype(np.float32), GRID))
    run(files, Params())
    assert not mask_of(source.own).any()
    assert not mask_of(source.common).any()
    told = [(entry.what, entry.reason) for entry in read_record(files.record).omissions]
    assert told == [("region ionic", "nothing stands out against the other side")]
