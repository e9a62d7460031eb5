"""Segmentations of other programs are found by name, read as fractions, and refused where they cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_sodium.bidsio.files import write_transform, write_volume
from bids_sodium.bidsio.segmentations import External, Finder, Tissues, choose, read_tissues
from bids_sodium.core.data import Grid, HeadTemplate, Volume
from bids_sodium.core.errors import DataError, GeometryError
from bids_sodium.spatial.transforms import rigid_from_parameters

SHAPE, VOXEL_MM = (48, 48, 48), 4.0
GRID = Grid.centred(SHAPE, VOXEL_MM)
R = np.linalg.norm(GRID.world(np.moveaxis(np.indices(SHAPE), 0, -1).astype(float)), axis=-1)
DEEP = (R >= 24) & (R < 40) & (np.abs(np.indices(SHAPE)[0] - 24) < 4)
TRUTH: Mapping[str, np.ndarray] = {
    "CSF": (R < 24) | ((R >= 66) & (R < 72)),
    "CGM": (R >= 58) & (R < 66),
    "DGM": DEEP,
    "NAWM": (R >= 24) & (R < 58) & ~DEEP,
}
INTENSITY = {"CSF": 250.0, "CGM": 600.0, "DGM": 660.0, "NAWM": 850.0}
T1W = Volume(np.sum([INTENSITY[n] * TRUTH[n] for n in TRUTH], axis=0, dtype=np.float32), GRID)
NUMBERS = {"ventricle": 4, "CSF": 24, "CGM": 3, "DGM": 10, "NAWM": 2}
Put = Callable[..., Path]


def prior() -> HeadTemplate:
    grey, white = TRUTH["CGM"] | DEEP, TRUTH["NAWM"]
    maps = {"gm": grey, "wm": white, "csf": TRUTH["CSF"], "deep": DEEP}
    return HeadTemplate(GRID, T1W.data, brain=R < 72, **{k: v.astype(np.float32) for k, v in maps.items()})


def labels(numbers: Mapping[str, int] = NUMBERS, *, sulci: bool = True) -> np.ndarray:
    data = np.zeros(SHAPE, np.int16)
    for name in ("CGM", "DGM", "NAWM"):
        data[TRUTH[name]] = numbers[name]
    data[R < 24] = numbers["ventricle"]
    if sulci:
        data[(R >= 66) & (R < 72)] = numbers["CSF"]
    return data


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Return a function that writes an image into a dataset and returns the dataset."""

    def write(dataset: str, name: str, data: np.ndarray, grid: Grid = GRID) -> Path:
        path = tmp_path / dataset / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".mgz"):
            nib.save(nib.MGHImage(data.astype(np.int32), grid.affine), path)
        elif data.ndim == 4:
            nib.save(nib.Nifti1Image(data.astype(np.float32), grid.affine), path)
        else:
            write_volume(path, Volume(data, grid), dtype=data.dtype if data.dtype != bool else np.uint8)
        return tmp_path / dataset

    return write


def found_in(root: Path, session: str | None = None) -> External:
    found = Finder(root.name, root).find("sub-01", session)
    assert found is not None
    return found


def tissues(root: Path) -> Tissues:
    return read_tissues(found_in(root), T1W, prior())


def assert_is_truth(found: Tissues, *, deep: bool = True) -> None:
    for name, mask in TRUTH.items():
        share = found.fractions[name]
        assert share.dtype == np.float32
        if name != "DGM" or deep:
            np.testing.assert_allclose(share, mask, atol=1e-3, err_msg=name)
    total = np.sum(list(found.fractions.values()), axis=0)
    np.testing.assert_allclose(total[R < 72], 1.0, atol=1e-3)
    assert (found.brain == (R < 72)).all()


def test_fmriprep_maps_and_its_aseg_for_deep_grey_matter(put: Put) -> None:
    for label, mask in (("GM", TRUTH["CGM"] | DEEP), ("WM", TRUTH["NAWM"]), ("CSF", TRUTH["CSF"])):
        root = put("fmriprep", f"sub-01/anat/sub-01_label-{label}_probseg.nii.gz", mask.astype(np.float32))
    put("fmriprep", "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_label-GM_probseg.nii.gz", np.zeros_like(DEEP))
    put("fmriprep", "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz", labels())
    found = tissues(root)
    assert_is_truth(found)
    assert found.source == "fmriprep (maps)"
    assert "deep grey matter is that of sub-01_desc-aseg_dseg.nii.gz" in found.notes
    assert not found.warnings


def test_maps_in_space_of_the_derivative_come_back_through_its_transform(put: Put, tmp_path: Path) -> None:
    moved = rigid_from_parameters((0, 0, 0), (8.0, -4.0, 12.0), target="external", source="T1w")
    theirs = Grid(SHAPE, moved.matrix @ GRID.affine)
    for label, mask in (("GM", TRUTH["CGM"] | DEEP), ("WM", TRUTH["NAWM"]), ("CSF", TRUTH["CSF"])):
        root = put("smriprep", f"sub-01/anat/sub-01_label-{label}_probseg.nii.gz", mask.astype(np.float32), theirs)
    place = tmp_path / "smriprep/sub-01/anat/sub-01_from-orig_to-T1w_mode-image_xfm.txt"
    write_transform(place, moved)
    found = tissues(root)
    assert_is_truth(found)
    place.unlink()
    with pytest.raises(GeometryError, match=r"account for \d+ % of the T1w image's contrast, the registered template"):
        tissues(root)


def test_fast_maps(put: Put) -> None:
    masks = (TRUTH["CSF"], TRUTH["CGM"] | DEEP, TRUTH["NAWM"])
    for number, mask in enumerate(masks):
        root = put("fast", f"sub-01/T1_brain_pve_{number}.nii.gz", mask.astype(np.float32))
    found = tissues(root)
    assert_is_truth(found)
    assert "deep grey matter is that of the registered template" in found.notes


def test_freesurfer_labels_in_its_conformed_space(put: Put) -> None:
    data = labels(sulci=False)
    turned = np.ascontiguousarray(data[::-1].transpose(0, 2, 1))
    axes = np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    root = put("freesurfer", "sub-01_ses-a/mri/aseg.mgz", turned, Grid(SHAPE, GRID.affine @ axes))
    found = read_tissues(found_in(root, "ses-a"), T1W, prior())
    assert_is_truth(found)
    assert found.source == "freesurfer (labels)"
    assert "CSF outside the ventricles is what the registered template's brain leaves" in found.notes
    assert "one tissue a voxel" in found.warnings[0]
    assert Finder("freesurfer", root).find("sub-01", "ses-b") is None


def test_labels_with_a_table_and_without_a_known_one(put: Put, tmp_path: Path) -> None:
    mine = {"ventricle": 51, "CSF": 52, "CGM": 53, "DGM": 54, "NAWM": 55}
    root = put("own", "sub-01/anat/sub-01_seg-own_dseg.nii.gz", labels(mine))
    with pytest.raises(DataError, match=r"has no table and its numbers \(51, 52, 53, 54, 55\) are not FreeSurfer's"):
        tissues(root)
    table = tmp_path / "own/sub-01/anat/sub-01_seg-own_dseg.tsv"
    names = {51: "lateral ventricle", 52: "CSF", 53: "cortex", 54: "Left-Putamen", 55: "white matter"}
    table.write_text("index\tname\n" + "".join(f"{n}\t{name}\n" for n, name in names.items()))
    assert_is_truth(tissues(root))
    table.write_text("index\tname\n51\tblob\n" + "".join(f"{n}\t{names[n]}\n" for n in (52, 53, 54, 55)))
    with pytest.raises(DataError, match="whose tissue is unknown: 51 'blob'"):
        tissues(root)
    table.write_text("number\tname\n51\tblob\n")
    with pytest.raises(DataError, match="BIDS asks for index and name"):
        tissues(root)


def test_interpolated_labels_are_refused(put: Put) -> None:
    root = put("own", "sub-01/anat/sub-01_dseg.nii.gz", labels().astype(np.float32) * 0.5)
    with pytest.raises(DataError, match="one whole number a voxel"):
        tissues(root)


def test_gif_volumes_are_named_by_number_or_table(put: Put, tmp_path: Path) -> None:
    stack = np.stack([R >= 72, TRUTH["CSF"], TRUTH["CGM"], TRUTH["NAWM"], DEEP, 0 * DEEP], axis=-1)
    root = put("gif", "sub-01/T1_NeuroMorph_Segmentation.nii.gz", stack)
    found = tissues(root)
    assert_is_truth(found)
    assert "not shares of a voxel" in found.warnings[0]
    other = put("bids", "sub-01/anat/sub-01_probseg.nii.gz", stack[..., 1:5])
    with pytest.raises(DataError, match="4 volumes of which no table says the tissues"):
        tissues(other)
    sidecar = tmp_path / "bids/sub-01/anat/sub-01_probseg.json"
    sidecar.write_text(json.dumps({"LabelMap": ["CSF", "cortical grey", "white matter", "deep grey"]}))
    assert_is_truth(tissues(other))


@pytest.mark.parametrize(
    ("factor", "message"), [(1.4, "add up to 1.4 in most voxels"), (-1.0, "are empty"), (np.nan, "NaN or infinite")]
)
def test_maps_that_are_no_shares_are_refused(put: Put, factor: float, message: str) -> None:
    for label, mask in (("GM", TRUTH["CGM"] | DEEP), ("WM", TRUTH["NAWM"]), ("CSF", TRUTH["CSF"])):
        root = put("odd", f"sub-01/anat/sub-01_label-{label}_probseg.nii.gz", (factor * mask).astype(np.float32))
    with pytest.raises(DataError, match=message) as caught:
        tissues(root)
    assert caught.value.where.startswith("sub-01_label-")


def test_maps_of_255_are_rescaled_and_said(put: Put) -> None:
    for label, mask in (("GM", TRUTH["CGM"] | DEEP), ("WM", TRUTH["NAWM"]), ("CSF", TRUTH["CSF"])):
        root = put("spm", f"sub-01/anat/sub-01_label-{label}_probseg.nii.gz", (255 * mask).astype(np.uint8))
    found = tissues(root)
    assert_is_truth(found)
    assert "the maps add up to 255 and were divided by it" in found.notes


def test_segmentation_of_another_place_or_contrast_is_refused(put: Put) -> None:
    shift = np.array(GRID.affine)
    shift[0, 3] += 60.0
    away = put("away", "sub-01/aseg.mgz", labels(), Grid(SHAPE, shift))
    with pytest.raises(GeometryError, match=r"overlaps the template's, registered to the T1w image, by 0\.[0-7]"):
        tissues(away)
    swapped = put("swapped", "sub-01/aseg.mgz", labels({**NUMBERS, "CGM": 2, "NAWM": 3}))
    with pytest.raises(GeometryError, match="do not fit the T1w image"):
        tissues(swapped)


def test_white_matter_alone_is_not_enough(put: Put) -> None:
    root = put("part", "sub-01/anat/sub-01_label-GM_probseg.nii.gz", TRUTH["CGM"].astype(np.float32))
    assert Finder("part", root).find("sub-01", None) is None


def test_the_first_of_the_command_line_is_taken_and_another_splits_its_grey_matter(put: Put) -> None:
    for number, mask in enumerate((TRUTH["CSF"], TRUTH["CGM"] | DEEP, TRUTH["NAWM"])):
        fast = put("fast", f"sub-01/T1_pve_{number}.nii.gz", mask.astype(np.float32))
    surfer = put("freesurfer", "sub-01/mri/aseg.mgz", labels())
    chosen, notes = choose([found_in(fast), found_in(surfer)])
    assert chosen is not None
    assert notes[0] == "tissue fractions are those of fast (maps), deep grey matter that of freesurfer"
    assert notes[1] == "not used: freesurfer (labels)"
    found = read_tissues(chosen, T1W, prior())
    assert_is_truth(found)
    assert "deep grey matter is that of aseg.mgz" in found.notes
    assert {path.name for path in chosen.paths} == {"T1_pve_0.nii.gz", "T1_pve_1.nii.gz", "T1_pve_2.nii.gz", "aseg.mgz"}
    assert choose([]) == (None, ())


def test_session_before_participant_and_never_another_session(put: Put) -> None:
    for session in ("a", "b"):
        name = f"sub-01/ses-{session}/anat/sub-01_ses-{session}_desc-aseg_dseg.nii.gz"
        root = put("prep", name, labels())
    put("prep", "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz", labels())
    assert found_in(root, "ses-b").labels == root / "sub-01/ses-b/anat/sub-01_ses-b_desc-aseg_dseg.nii.gz"
    assert found_in(root, "ses-c").labels == root / "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz"
