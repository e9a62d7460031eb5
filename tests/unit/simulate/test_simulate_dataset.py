"""The files of a simulated study."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bids_sodium.bidsio.files import read_table, read_volume
from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.simulate.brain import anatomy_of, healthy_head
from bids_sodium.simulate.dataset import (
    PROTOCOLS,
    Visit,
    Written,
    protocol_of,
    write,
    write_tables,
    write_visit,
)


@pytest.fixture(scope="module")
def stroke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stroke"), study="stroke", n_participants=1, seed=3, sloppy=True)


@pytest.fixture(scope="module")
def ms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ms"), study="ms", n_participants=2, seed=3, sloppy=True)


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_protocols_are_those_of_the_papers() -> None:
    stroke = PROTOCOLS["stroke"].acquired()
    assert (stroke.n_shots, stroke.n_samples, stroke.kind) == (6000, 384, "radial")
    assert stroke.k_max_per_mm == pytest.approx(0.125, rel=0.01)
    assert PROTOCOLS["stroke"].grid.fov_mm == (256.0, 256.0, 256.0)
    cones = PROTOCOLS["ms"].acquired()
    assert cones.kind == "cones"
    assert cones.k_max_per_mm == pytest.approx(1 / 6, rel=0.01)
    assert PROTOCOLS["ms"].grid.fov_mm == (240.0, 240.0, 240.0)
    with pytest.raises(DataError, match="unknown study 'epilepsy'"):
        protocol_of("epilepsy")


def test_stroke_study_has_its_sessions_and_scans(stroke: Path) -> None:
    found = names(stroke)
    for session in ("acute", "subacute"):
        stem = f"sub-01/ses-{session}/anat/sub-01_ses-{session}"
        assert {f"{stem}_acq-23Na_PDw.nii.gz", f"{stem}_acq-23Na_PDw.json", f"{stem}_T1w.nii.gz"} <= found
        assert f"sourcedata/{stem}_acq-23Na_PDw.h5" in found
        assert f"sourcedata/{stem}_acq-23Na_PDw.json" in found
        dwi = f"sub-01/ses-{session}/dwi/sub-01_ses-{session}_dwi"
        assert {f"{dwi}.nii.gz", f"{dwi}.json", f"{dwi}.bval", f"{dwi}.bvec"} <= found
        for label in ("ionic", "cytotoxic"):
            for rater in (1, 2):
                assert f"derivatives/rois/{stem}_label-{label}_desc-rater{rater}_mask.nii.gz" in found
    m3 = "sub-01/ses-m3/anat/sub-01_ses-m3"
    assert {f"{m3}_T1w.nii.gz", f"{m3}_FLAIR.nii.gz"} <= found
    assert f"derivatives/rois/{m3}_label-necrosis_desc-rater2_mask.nii.gz" in found
    assert not any("ses-m3" in name and "23Na" in name for name in found)


def test_ms_study_has_its_scans_and_scores(ms: Path) -> None:
    found = names(ms)
    for suffix in ("acq-23Na_PDw", "T1w", "FLAIR", "acq-32ch_PDT2", "acq-bodycoil_PDT2"):
        assert f"sub-01/anat/sub-01_{suffix}.nii.gz" in found
        assert f"sub-01/anat/sub-01_{suffix}.json" in found
    people = read_table(ms / "participants.tsv")
    assert list(people["group"]) == ["RRMS", "HC"]
    for tool, column in (("edss", "edss"), ("t25fw", "t25fw_s"), ("nhpt", "z9hpt"), ("sdmt", "z_sdmt")):
        table = read_table(ms / "phenotype" / f"{tool}.tsv")
        assert list(table["participant_id"]) == ["sub-01", "sub-02"]
        assert np.isfinite(table[column][0])
        assert np.isnan(table[column][1])
        assert column in json.loads((ms / "phenotype" / f"{tool}.json").read_text())
    assert "derivatives/rois/sub-01/anat/sub-01_label-T2lesion_mask.nii.gz" in found
    assert not any("sub-02" in name and "lesion" in name for name in found)


def test_sessions_are_timed_as_in_the_paper(stroke: Path) -> None:
    table = read_table(stroke / "sub-01" / "sub-01_sessions.tsv").set_index("session_id")
    assert table.loc["ses-acute", "onset_to_scan_h"] < 24
    assert 25 <= table.loc["ses-subacute", "onset_to_scan_h"] <= 70
    assert 80 * 24 < table.loc["ses-m3", "onset_to_scan_h"] < 100 * 24


def test_raw_data_and_image_tell_the_same(stroke: Path) -> None:
    raw = stroke / "sourcedata/sub-01/ses-acute/anat/sub-01_ses-acute_acq-23Na_PDw.h5"
    sidecar = json.loads(raw.with_suffix(".json").read_text())
    kspace = read_kspace(raw, sidecar)
    image = read_volume(stroke / "sub-01/ses-acute/anat/sub-01_ses-acute_acq-23Na_PDw.nii.gz")
    assert kspace.grid.same_as(image.grid)
    assert (kspace.te_ms, kspace.tr_ms, kspace.flip_deg) == pytest.approx((0.2, 100.0, 90.0))
    assert sidecar["ImagingFrequency"] / sidecar["MagneticFieldStrength"] == pytest.approx(11.262, abs=1e-3)
    assert [vial["Concentration"] for vial in sidecar["SodiumCalibration"]["Phantoms"]] == [40.0, 80.0]
    low, high = (
        image.data[
            read_volume(
                stroke
                / f"derivatives/truth/sub-01/ses-acute/anat/sub-01_ses-acute_acq-23Na_label-phantom{c}_mask.nii.gz"
            ).data
            > 0
        ].mean()
        for c in (40, 80)
    )
    assert high / low == pytest.approx(2.0, rel=0.08)


def test_two_raters_agree_but_are_not_the_same(stroke: Path) -> None:
    folder = stroke / "derivatives/rois/sub-01/ses-subacute/anat"
    one, two = (
        read_volume(folder / f"sub-01_ses-subacute_label-ionic_desc-rater{i}_mask.nii.gz").data > 0 for i in (1, 2)
    )
    truth = stroke / "derivatives/truth/sub-01/ses-subacute/anat/sub-01_ses-subacute_label-ionic_mask.nii.gz"
    true = read_volume(truth).data > 0
    for a, b in ((one, two), (one, true), (two, true)):
        assert 0.75 < 2 * (a & b).sum() / (a.sum() + b.sum()) < 1.0


def test_truth_tells_frames_and_concentrations(stroke: Path) -> None:
    truth = json.loads(
        (stroke / "derivatives/truth/sub-01/ses-subacute/anat/sub-01_ses-subacute_truth.json").read_text()
    )
    for name in ("na", "dwi", "reference"):
        matrix = np.array(truth[f"t1w_from_{name}"])
        assert np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-9)
        assert 0.1 < np.abs(matrix[:3, 3]).max() < 25
    assert len(truth["Landmarks"]["T1w"]) == len(truth["Landmarks"]["MNI152NLin2009aSym"]) == 200
    table = read_table(stroke / "derivatives/truth/truth_tissue.tsv")
    here = table[table["session_id"] == "ses-subacute"].set_index("tissue")
    assert here.loc["CGM", "tsc_mmol_l"] == pytest.approx(truth["Concentrations"]["CGM"], rel=1e-4)
    assert here.loc["ionic", "tsc_mmol_l"] > here.loc["cytotoxic", "tsc_mmol_l"] > here.loc["NAWM", "tsc_mmol_l"]


def test_true_fractions_lie_on_the_t1w(stroke: Path) -> None:
    for session in ("acute", "subacute"):
        t1w = read_volume(stroke / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz")
        stem = stroke / f"derivatives/truth/sub-01/ses-{session}/anat/sub-01_ses-{session}_label-"
        white, fluid = (read_volume(Path(f"{stem}{name}_probseg.nii.gz")) for name in ("NAWM", "CSF"))
        assert white.grid.same_as(t1w.grid)
        assert t1w.data[white.data > 0.95].mean() > 2.5 * t1w.data[fluid.data > 0.95].mean()


def test_same_seed_same_bytes_whoever_else_is_there_and_persons_differ(ms: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1) as pool:
        again = write(tmp_path, study="ms", n_participants=1, seed=3, sloppy=True, executor=pool)
    own = [name for name in names(ms) if "sub-01" in name and name.endswith((".nii.gz", ".json", ".tsv"))]
    assert len(own) > 20
    for name in own:
        assert (again / name).read_bytes() == (ms / name).read_bytes(), name
    one, other = (
        json.loads((ms / f"derivatives/truth/sub-{i}/anat/sub-{i}_truth.json").read_text()) for i in ("01", "02")
    )
    assert one["t1w_from_na"] != other["t1w_from_na"]
    assert one["Concentrations"]["CGM"] != other["Concentrations"]["CGM"]


def test_another_head_and_given_images_can_be_scanned(tmp_path: Path) -> None:
    grid = Grid.centred((60, 60, 60), 3.0)
    ball = ((np.stack(np.indices(grid.shape), -1) - 30) ** 2).sum(-1) < 20**2
    fractions = {
        "NAWM": Volume(0.8 * ball.astype(np.float32), grid),
        "CSF": Volume(0.2 * ball.astype(np.float32), grid),
    }
    t1w = Volume(np.arange(27).reshape(3, 3, 3), Grid.centred((3, 3, 3), 2.0))
    visit = Visit(participant="real", head=healthy_head(anatomy_of(fractions)), images={"t1w": t1w}, truth_images=False)
    protocol = replace(PROTOCOLS["ms-sloppy"], voxel_mm=8.0, matrix=30)
    tissues, regions = write_visit(tmp_path, visit, protocol, np.random.default_rng(0))
    write_tables(
        tmp_path, [Written(participant={"participant_id": "sub-real"}, tissues=tuple(tissues))], study="ms", seed=0
    )
    assert regions == []
    assert np.array_equal(read_volume(tmp_path / "sub-real/anat/sub-real_T1w.nii.gz").data, t1w.data)
    image = read_volume(tmp_path / "sub-real/anat/sub-real_acq-23Na_PDw.nii.gz")
    centre = image.grid.shape[0] // 2
    assert image.data[centre, centre, centre] > 10 * image.data[0, 0, 0]
    assert read_table(tmp_path / "participants.tsv")["participant_id"].tolist() == ["sub-real"]


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 participants"):
        write(tmp_path, study="ms", n_participants=0, seed=1)
    with pytest.raises(DataError, match="4 sessions"):
        write(tmp_path, study="stroke", n_participants=1, seed=1, n_sessions=4)
    visit = Visit(
        participant="01",
        head=healthy_head(anatomy_of({"NAWM": Volume(np.ones((4, 4, 4)), Grid.centred((4, 4, 4), 1.0))})),
        scans=("pet",),
    )
    with pytest.raises(DataError, match="unknown scan 'pet'"):
        write_visit(tmp_path, visit, PROTOCOLS["ms-sloppy"], np.random.default_rng(0))
