"""A real MS anatomy (skull-stripped T1w, FLAIR, consensus lesion mask) with sodium k-space simulated on it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bids_sodium.bidsio.files import read_table, read_volume, write_volume
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.cli import main
from bids_sodium.core.data import HeadTemplate, Volume
from bids_sodium.simulate.brain import anatomy_of, healthy_head, rigid
from bids_sodium.simulate.dataset import Visit, Written, protocol_of, write_tables, write_visit
from bids_sodium.spatial.registration import register_deformable
from bids_sodium.spatial.resampling import resample
from bids_sodium.tissue.segmentation import segment

pytestmark = pytest.mark.paper_size

TRUE = {"CGM": 42.0, "DGM": 36.0, "NAWM": 34.0, "CSF": 140.0, "T1iso": 46.0}


@pytest.fixture(scope="module")
def study(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("real_ms")
    data, out = root / "bids", root / "out"
    source = test_data / "data" / "ms"
    t1w = read_volume(source / "T1w.nii.gz")
    lesions = np.asarray(read_volume(source / "lesion_mask.nii.gz").data) > 0.5
    template = load_head_template()
    whole = Volume(np.asarray(template.t1), template.grid)
    mni_from_t1w = register_deformable(whole, t1w, fixed_name="MNI", moving_name="t1w", fixed_mask=template.brain)

    def moved(array: np.ndarray) -> np.ndarray:
        volume = Volume(array.astype(np.float32), template.grid)
        return np.asarray(resample(volume, t1w.grid, mni_from_t1w.transform).data)

    arrays = {name: moved(getattr(template, name)) for name in ("t1", "gm", "wm", "csf", "deep")}
    prior = HeadTemplate(t1w.grid, **arrays, brain=moved(template.brain) > 0.5)
    found = segment(t1w, prior, lesions=lesions)
    names = {"L": "T1iso"}
    fractions = {names.get(name, name): Volume(array, t1w.grid, "1") for name, array in found.fractions.items()}
    head = healthy_head(anatomy_of(fractions), TRUE)
    t1w_from_na = rigid(np.array([4.0, -3.0, 5.0]), np.array([3.0, -12.0, 8.0]))
    visit = Visit(participant="01", head=head, scans=("t1w", "na"), t1w_from={"na": t1w_from_na}, images={"t1w": t1w})
    rng = np.random.default_rng(11)
    tissues, regions = write_visit(data, visit, protocol_of("ms"), rng, snr=20.0)
    person = {"participant_id": "sub-01", "age": 39, "sex": "F", "group": "RRMS", "site": "A"}
    write_tables(data, [Written(participant=person, tissues=tuple(tissues), regions=tuple(regions))], study="ms")
    shutil.copy(source / "FLAIR.nii.gz", data / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    (data / "sub-01" / "anat" / "sub-01_FLAIR.json").write_text(json.dumps({"MagneticFieldStrength": 3}))
    rois = data / "derivatives" / "rois" / "sub-01" / "anat" / "sub-01_label-T2lesion_mask.nii.gz"
    write_volume(rois, replace(t1w, data=lesions), dtype=np.uint8)
    command = [str(data), str(out), "participant", "--preset", "ms", "-d", f"rois={data}/derivatives/rois"]
    assert main([*command, "--n-procs", "1"]) == 0
    return data, out


def test_concentrations_on_a_real_anatomy(study: tuple[Path, Path]) -> None:
    _, out = study
    table = read_table(out / "sub-01" / "anat" / "sub-01_acq-23Na_desc-tissue_tsc.tsv")
    found = table[table["method"] == "glm"].set_index("tissue")["tsc_mmol_l"]
    for tissue in ("CGM", "DGM", "NAWM"):
        assert found[tissue] == pytest.approx(TRUE[tissue], abs=2.0), tissue
    assert found["CSF"] == pytest.approx(140.0, abs=8.0)


def test_volumes_of_a_real_brain_are_plausible(study: tuple[Path, Path]) -> None:
    _, out = study
    quality = read_table(out / "sub-01" / "anat" / "sub-01_acq-23Na_desc-qc_tsc.tsv").set_index("measure")["value"]
    assert 1100 < quality["tiv_ml"] < 1800
    assert 0.70 < quality["bpf"] < 0.92
    assert quality["t2lv_ml"] == pytest.approx(1.3, abs=0.3)  # published: 1.3 mL
    assert 20 < quality["volume_DGM"] < 45
