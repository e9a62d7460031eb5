"""The MS participant once more with what others have made: tissues, an atlas in the template and one on the T1w."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_sodium.bidsio.files import read_volume, write_volume
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import Volume

pytestmark = pytest.mark.slow


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


@pytest.fixture(scope="module")
def result(demo: Any, tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any]) -> tuple[Path, Path, str]:
    """Return the new output, the dataset's truth and the messages."""
    study = demo.study("ms")
    folder = tmp_path_factory.mktemp("given")
    out = folder / study.output.name
    shutil.copytree(study.output, out)
    head = load_head_template()
    x = head.grid.world(np.moveaxis(np.indices(head.grid.shape), 0, -1).astype(float))[..., 0]
    sides = np.where(x < 0, 1, 2) * (head.wm > 0.8)
    atlas = folder / "tpl-MNI152NLin2009aSym_seg-sides_dseg.nii.gz"
    write_volume(atlas, Volume(sides.astype(np.int16), head.grid), dtype=np.int16)
    atlas.with_name("tpl-MNI152NLin2009aSym_seg-sides_dseg.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    truth = study.bids / "derivatives" / "truth"
    own = folder / "parcels" / "sub-01" / "anat" / "sub-01_atlas-deep_dseg.nii.gz"
    deep = read_volume(truth / "sub-01" / "anat" / "sub-01_label-DGM_probseg.nii.gz")
    write_volume(own, deep.with_data((np.asarray(deep.data) > 0.5).astype(np.int16)), dtype=np.int16)
    code, _, err = command(
        study.bids, out, "participant", "--preset", "ms", "--n-procs", "2", "-v",
        "-d", study.rois, f"truth={truth}", f"parcels={folder / 'parcels'}", "--atlas", f"sides={atlas}",
    )  # fmt: skip
    assert code == 0, err
    return out, truth, err


def test_only_what_reads_from_the_new_datasets_is_made_again(result: tuple[Path, Path, str]) -> None:
    _, _, err = result
    done, skipped = (
        set(re.findall(rf"^sub-01\.(\w+): {how}, ", err, flags=re.MULTILINE)) for how in ("done", "skipped")
    )
    # the truth holds masks of the vials too, and regions of the atlas are read against the other side
    assert done == {"parcellate", "mirror", "quantify", "extract"}
    assert skipped == {"template", "reconstruct", "align"}


def test_given_tissues_are_taken_and_said(result: tuple[Path, Path, str]) -> None:
    out, truth, _ = result
    anat = out / "sub-01" / "anat"
    quality = {row["measure"]: row for row in rows_of(anat / "sub-01_acq-23Na_desc-qc_tsc.tsv")}
    assert float(quality["segmentation_external"]["value"]) == 1.0
    assert "truth (maps)" in quality["segmentation_external"]["note"]
    lesions = np.asarray(read_volume(anat / "sub-01_label-L_probseg.nii.gz").data)
    for name in ("CGM", "DGM", "NAWM", "CSF"):
        found = np.asarray(read_volume(anat / f"sub-01_label-{name}_probseg.nii.gz").data)
        true = np.asarray(read_volume(truth / "sub-01" / "anat" / f"sub-01_label-{name}_probseg.nii.gz").data)
        np.testing.assert_allclose(found, true * (1 - lesions), atol=0.01)
    sidecar = json.loads((anat / "sub-01_label-CGM_probseg.json").read_text())
    assert sidecar["Segmentation"] == "truth (maps)"
    assert any("label-CGM_probseg" in source for source in sidecar["Sources"])
    assert "truth (maps)" in (out / "sub-01.html").read_text()


def test_given_tissues_give_the_concentration(result: tuple[Path, Path, str]) -> None:
    out, truth, _ = result
    true = json.loads((truth / "sub-01/anat/sub-01_truth.json").read_text())["Concentrations"]
    table = rows_of(out / "sub-01" / "anat" / "sub-01_acq-23Na_desc-tissue_tsc.tsv")
    for tissue in ("CGM", "NAWM"):
        (row,) = (row for row in table if (row["tissue"], row["method"]) == (tissue, "glm"))
        assert float(row["tsc_mmol_l"]) == pytest.approx(true[tissue], abs=4.0)


def test_regions_of_both_atlases_have_rows(result: tuple[Path, Path, str]) -> None:
    out, _, _ = result
    anat = out / "sub-01" / "anat"
    rows = {(row["roi"], row["contrast"]): row for row in rows_of(anat / "sub-01_acq-23Na_desc-roi_tsc.tsv")}
    assert {roi for roi, _ in rows} == {"sides:left", "sides:right", "deep:1"}
    left, right = rows["sides:left", "tsc"], rows["sides:right", "tsc"]
    for row in (left, right):
        assert 20 < float(row["ipsi"]) < 60
        assert row["kept"] == "1"
        assert float(row["volume_ml"]) > 80
    # what is left of the one is the mirror image of the other
    assert float(left["contra"]) == pytest.approx(float(right["ipsi"]), rel=0.03)
    assert float(left["volume_ml"]) == pytest.approx(float(right["volume_ml"]), rel=0.1)
    assert 15 < float(rows["deep:1", "tsc"]["volume_ml"]) < 45
    here = read_volume(anat / "sub-01_space-T1w_atlas-sides_dseg.nii.gz")
    assert set(np.unique(np.asarray(here.data))) == {0, 1, 2}
    assert [row["name"] for row in rows_of(anat / "sub-01_space-T1w_atlas-sides_dseg.tsv")] == ["left", "right"]
