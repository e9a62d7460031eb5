"""The command on real third-party images: 7 T sodium of one volunteer, and a real MS anatomy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_sodium.bidsio.files import read_table, read_volume
from bids_sodium.cli import main

PHANTOMS = [
    {"Label": "phantom50", "Concentration": 50, "Units": "mmol/L"},
    {"Label": "phantom100", "Concentration": 100, "Units": "mmol/L"},
]
SODIUM = {
    "ResonantNucleus": "23Na",
    "MagneticFieldStrength": 7,
    "ImagingFrequency": 78.8,
    "EchoTime": 0.0004,
    "RepetitionTime": 0.12,
    "FlipAngle": 90,
    "SodiumCalibration": {"Phantoms": PHANTOMS},
}


def _dataset(root: Path, source: Path, *, clip: bool) -> Path:
    """Arrange the 7 T images as BIDS; ``clip`` raises the array image so that its brightest voxels meet 4095."""
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "7 T", "BIDSVersion": "1.10.0"}))
    (root / "participants.tsv").write_text("participant_id\nsub-01\n")
    for name, acq, coil in (("c2p_naa_6", "23NaArray", "32ch array"), ("c2p_nav_7", "23NaVolume", "volume coil")):
        image = nib.load(source / f"{name}.nii.gz")
        data = np.asanyarray(image.dataobj)
        if clip and acq == "23NaArray":
            data = np.minimum(data.astype(np.int32) * 2, 4095).astype(np.int16)
        nib.save(nib.Nifti1Image(data, image.affine), anat / f"sub-01_acq-{acq}_PDw.nii.gz")
        (anat / f"sub-01_acq-{acq}_PDw.json").write_text(json.dumps({**SODIUM, "ReceiveCoilName": coil}))
    shutil.copy(source / "gre_2.nii.gz", anat / "sub-01_T2starw.nii.gz")
    (anat / "sub-01_T2starw.json").write_text(json.dumps({"MagneticFieldStrength": 7, "EchoTime": 0.004}))
    return root


def _quality(out: Path) -> dict[str, tuple[float, str]]:
    table = read_table(next(out.glob("sub-01/anat/*_desc-qc_tsc.tsv")))
    return {row.measure: (row.value, str(row.note)) for row in table[table["measure"] != "left_out"].itertuples()}


@pytest.fixture(scope="module")
def seven_tesla(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    root = tmp_path_factory.mktemp("na7t")
    data = _dataset(root / "bids", test_data / "data" / "na7t", clip=False)
    return root / "out", main([str(data), str(root / "out"), "participant", "--n-procs", "1"])


def test_array_and_volume_coil_become_a_concentration_map(seven_tesla: tuple[Path, int]) -> None:
    out, code = seven_tesla
    assert code == 0
    quality = _quality(out)
    assert 2.0 < quality["receive_ratio_median"][0] < 4.0
    assert quality["noise_channels"][0] > 4  # the air of a 32-channel array is not Rician
    tsc = read_volume(out / "sub-01" / "anat" / "sub-01_acq-23Na_TSCmap.nii.gz")
    head = read_volume(out / "sub-01" / "anat" / "sub-01_acq-23Na_desc-head_mask.nii.gz").data > 0
    assert 20 < float(np.median(tsc.data[head])) < 70
    assert json.loads((out / "sub-01" / "anat" / "sub-01_acq-23Na_TSCmap.json").read_text())["Units"] == "mmol/L"


def test_both_tubes_are_found_outside_the_head(seven_tesla: tuple[Path, int]) -> None:
    out, _ = seven_tesla
    anat = out / "sub-01" / "anat"
    masks = [read_volume(anat / f"sub-01_acq-23Na_label-phantom{c}_mask.nii.gz").data > 0 for c in (50, 100)]
    head = read_volume(anat / "sub-01_acq-23Na_desc-head_mask.nii.gz").data > 0
    assert all(mask.sum() >= 8 for mask in masks)
    assert not (masks[0] & masks[1]).any()
    assert not any((mask & head).any() for mask in masks)


def test_sodium_is_registered_to_the_gradient_echo(seven_tesla: tuple[Path, int]) -> None:
    out, _ = seven_tesla
    quality = _quality(out)
    assert quality["registration_converged_23Na_to_T2starw"][0] == 1
    assert quality["registration_target_error_23Na_to_T2starw"][0] < 1.0
    assert (out / "sub-01" / "anat" / "sub-01_acq-23Na_space-T2starw_TSCmap.nii.gz").is_file()


def test_what_is_missing_is_told_not_fatal(seven_tesla: tuple[Path, int]) -> None:
    out, _ = seven_tesla
    table = read_table(out / "sub-01" / "anat" / "sub-01_acq-23Na_desc-qc_tsc.tsv")
    told = " ".join(table[table["measure"] == "left_out"]["note"])
    assert "no T1w image" in told
    assert "no k-space" in told
    assert "no T1w image" in (out / "sub-01.html").read_text()


def test_clipped_voxels_are_reported_and_do_not_darken_the_vials(test_data: Path, tmp_path: Path) -> None:
    data = _dataset(tmp_path / "bids", test_data / "data" / "na7t", clip=True)
    assert main([str(data), str(tmp_path / "out"), "participant", "--n-procs", "1"]) == 0
    quality = _quality(tmp_path / "out")
    assert quality["saturated_voxels"][0] >= 2
    assert "4095" in quality["saturated_voxels"][1]
    assert quality["calibration_slope"][0] > 0
