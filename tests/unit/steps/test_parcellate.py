"""The anatomy step on a head of 4 mm: who segmented is said, lesions are their own, and wrong masks are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_json, read_volume, write_transform, write_volume
from bids_sodium.bidsio.segmentations import External
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import Grid, HeadTemplate, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.spatial.resampling import resample
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps import parcellate
from bids_sodium.steps.parcellate import Files, MaskFile, Params, run
from bids_sodium.steps.records import Record, read_record
from bids_sodium.tissue.segmentation import SegmentationParams

GRID = Grid.centred((48, 56, 48), 4.0)
NAMES = ("CGM", "DGM", "NAWM", "CSF", "L")
PARAMS = Params(segmentation=SegmentationParams(brain_mask="template"))


@pytest.fixture(scope="module")
def coarse() -> HeadTemplate:
    """Return the template at 4 mm, so that a run takes a second."""
    head = load_head_template()
    still = Affine.identity("MNI152NLin2009aSym", "T1w")

    def here(data: np.ndarray) -> np.ndarray:
        moved = resample(Volume(np.asarray(data, np.float32), head.grid), GRID, still, "probability")
        return np.asarray(moved.data)

    maps = {name: here(getattr(head, name)) for name in ("t1", "gm", "wm", "csf", "deep")}
    return HeadTemplate(GRID, **maps, brain=here(head.brain) > 0.5)


@pytest.fixture(autouse=True)
def _small(coarse: HeadTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcellate, "load_head_template", lambda: coarse)


@pytest.fixture(scope="module")
def truth(coarse: HeadTemplate) -> dict[str, np.ndarray]:
    gm, wm, deep = coarse.gm, coarse.wm, coarse.deep
    return {"CGM": gm * (1 - deep), "DGM": (gm + wm) * deep, "NAWM": wm * (1 - deep), "CSF": coarse.csf}


def t1w_of(truth: dict[str, np.ndarray]) -> np.ndarray:
    level = {"CGM": 600.0, "DGM": 660.0, "NAWM": 850.0, "CSF": 250.0}
    image = np.sum([level[name] * share for name, share in truth.items()], axis=0)
    return np.abs(image + np.random.default_rng(0).normal(0, 8, GRID.shape)) * (sum(truth.values()) > 0.3)


@pytest.fixture
def files(tmp_path: Path, truth: dict[str, np.ndarray]) -> Files:
    raw, out = tmp_path / "raw", tmp_path / "out"
    t1w = write_volume(raw / "sub-01_T1w.nii.gz", Volume(t1w_of(truth), GRID))
    xfm = write_transform(out / "sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt", Affine.identity("m", "T1w"))
    return Files(
        t1w=t1w,
        template_transform=xfm,
        masks=(),
        external=None,
        preproc=out / "sub-01_desc-preproc_T1w.nii.gz",
        filled=None,
        brain=out / "sub-01_desc-brain_mask.nii.gz",
        fractions=tuple((name, out / f"sub-01_label-{name}_probseg.nii.gz") for name in NAMES),
        consensus=(),
        elsewhere=(),
        dseg=out / "sub-01_seg-tissue_dseg.nii.gz",
        dseg_table=out / "sub-01_seg-tissue_dseg.tsv",
        raters=None,
        record=tmp_path / "parcellate.json",
        roots=Roots(output=out, raw=raw),
    )


def with_mask(files: Files, mask: np.ndarray, grid: Grid = GRID) -> Files:
    path = write_volume(files.t1w.with_name("sub-01_label-T2lesion_mask.nii.gz"), Volume(mask, grid), dtype=np.uint8)
    drawn = MaskFile(label="T2lesion", session="sub-01", path=path, frame="T1w", transform=None)
    place = files.brain.with_name("sub-01_label-T2lesion_desc-consensus_mask.nii.gz")
    return replace(
        files, masks=(drawn,), consensus=(("T2lesion", "sub-01", place),), filled=place.with_name("f.nii.gz")
    )


def fractions(files: Files) -> dict[str, np.ndarray]:
    return {name: np.asarray(read_volume(path).data) for name, path in files.fractions}


def measures(record: Record) -> dict[str, Any]:
    return {measure.name: measure for measure in record.measures}


def lesion_of(truth: dict[str, np.ndarray]) -> np.ndarray:
    mask = np.zeros(GRID.shape, bool)
    mask[30:34, 24:28, 28:31] = True
    return mask & (truth["NAWM"] > 0.7)


def test_embedded_segmentation_says_that_it_was_it(files: Files, truth: dict[str, np.ndarray]) -> None:
    mask = lesion_of(truth)
    files = with_mask(files, mask)
    run(files, PARAMS)
    found = fractions(files)
    np.testing.assert_array_equal(found["L"], mask)
    assert all((found[name][mask] == 0).all() for name in NAMES[:-1])
    for name in ("CGM", "NAWM", "CSF"):
        assert np.abs(found[name] - truth[name])[~mask & (sum(truth.values()) > 0.5)].mean() < 0.08
    record = read_record(files.record)
    known = measures(record)
    assert known["segmentation_external"].value == 0.0
    assert "; by bids_sodium (brain mask: " in known["segmentation_external"].note
    assert record.values["segmentation"].startswith("bids_sodium (brain mask: ")
    total = sum(known[f"volume_{name}"].value for name in NAMES)
    assert known["tiv_ml"].value == pytest.approx(total, rel=1e-6)
    assert known["bpf"].value == pytest.approx(1 - known["volume_CSF"].value / total, rel=1e-6)
    assert known["t2lv_ml"].value == pytest.approx(mask.sum() * 0.064, rel=1e-6)
    sidecar = read_json(files.fractions[0][1].with_suffix("").with_suffix(".json"))
    assert sidecar["BrainMaskSource"] in {"image", "template"}


def test_a_mask_of_another_time_is_kept_but_is_no_lesion_of_this_image(
    files: Files, truth: dict[str, np.ndarray]
) -> None:
    files = with_mask(files, lesion_of(truth))
    run(replace(files, elsewhere=(("T2lesion", "sub-01"),)), PARAMS)
    found = fractions(files)
    assert not found["L"].any()
    assert found["NAWM"][lesion_of(truth)].mean() > 0.7
    assert np.asarray(read_volume(files.consensus[0][2]).data).any()


def external(files: Files, maps: dict[str, np.ndarray]) -> External:
    places = []
    for name, data in maps.items():
        path = files.t1w.with_name(f"sub-01_label-{name}_probseg.nii.gz")
        places.append((name, write_volume(path, Volume(data.astype(np.float32), GRID))))
    return External(name="fmriprep", maps=tuple(places))


def test_external_tissues_go_before_the_embedded_ones(files: Files, truth: dict[str, np.ndarray]) -> None:
    mask = lesion_of(truth)
    files = with_mask(replace(files, external=external(files, truth)), mask)
    run(files, replace(PARAMS, choice=("tissue fractions are those of fmriprep (maps)", "not used: fast (maps)")))
    found = fractions(files)
    for name in NAMES[:-1]:
        np.testing.assert_allclose(found[name], np.where(mask, 0.0, truth[name]), atol=2e-3)
    record = read_record(files.record)
    known = measures(record)["segmentation_external"]
    assert known.value == 1.0
    assert known.note.endswith("; tissue fractions are those of fmriprep (maps); not used: fast (maps)")
    brain = np.asarray(read_volume(files.brain).data) > 0
    assert (brain == ((sum(truth.values()) > 0.5) | mask)).mean() > 0.999
    image = read_json(files.fractions[0][1].with_suffix("").with_suffix(".json"))
    assert image["Segmentation"] == "fmriprep (maps)"
    assert any("label-CGM_probseg" in source for source in image["Sources"])


def test_external_maps_that_are_no_shares_stop_the_step(files: Files, truth: dict[str, np.ndarray]) -> None:
    wrong = external(files, {name: 1.4 * share for name, share in truth.items()})
    with pytest.raises(DataError, match=r"probseg.nii.gz: the tissue maps add up to 1\.[34]"):
        run(replace(files, external=wrong), PARAMS)


def test_lesion_masks_that_cannot_be(files: Files, truth: dict[str, np.ndarray]) -> None:
    inside = sum(truth.values()) > 0.5
    with pytest.raises(DataError, match=r"label-T2lesion_mask.nii.gz: lesions of .* mL in a brain of"):
        run(with_mask(files, inside), PARAMS)
    outside = np.zeros(GRID.shape, bool)
    outside[:6, :6, :6] = True
    with pytest.raises(GeometryError, match=r"100 % of 13\.8 mL of lesions lie outside the brain"):
        run(with_mask(files, outside), PARAMS)
    other = Grid.centred((24, 28, 24), 8.0)
    with pytest.raises(GeometryError, match="draw it on the T1w image, or name its space"):
        run(with_mask(files, np.zeros(other.shape, bool), other), PARAMS)


def test_empty_lesion_mask_is_said_and_the_rest_is_done(files: Files) -> None:
    run(with_mask(files, np.zeros(GRID.shape, bool)), PARAMS)
    record = read_record(files.record)
    assert [(o.what, o.reason) for o in record.omissions] == [
        ("region T2lesion", "its mask is empty (sub-01_label-T2lesion_mask.nii.gz)")
    ]
    assert measures(record)["volume_NAWM"].value > 300


def test_t1w_of_several_volumes_is_refused(files: Files) -> None:
    write_volume(files.t1w, Volume(np.ones((*GRID.shape, 2)), GRID))
    with pytest.raises(DataError, match="keep one volume"):
        run(files, PARAMS)
