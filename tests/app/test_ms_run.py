"""The whole app on a simulated MS participant: raw k-space to tissue table, resume, reports and group tables.

The scan is a small one (cones at 6 mm): the paper's size is held to its truth under ``tests/science``.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_sodium.bidsio.files import read_transform
from bids_sodium.bidsio.validator import run_validator
from bids_sodium.core.tables import GROUP_RESULT, GROUP_TSC, QC, TISSUE_TSC

pytestmark = pytest.mark.slow

STEPS = {"template", "reconstruct", "align", "parcellate", "quantify", "extract"}
IMAGES = (
    "acq-23Na_desc-recon_PDw",
    "acq-23Na_part-real_desc-recon_PDw",
    "acq-23Na_desc-denoised_PDw",
    "acq-23Na_TSCmap",
    "acq-23Na_desc-se_TSCmap",
    "acq-23Na_space-T1w_TSCmap",
    "acq-23Na_space-MNI152NLin2009aSym_TSCmap",
    "acq-23Na_label-phantom40_mask",
    "acq-23Na_label-phantom80_mask",
    *(f"label-{name}_probseg" for name in ("CGM", "DGM", "NAWM", "CSF", "L")),
    *(f"acq-23Na_label-{name}_desc-psf_probseg" for name in ("CGM", "DGM", "NAWM", "CSF")),
    "label-T2lesion_desc-consensus_mask",
    "label-T1hypo_desc-consensus_mask",
    "desc-preproc_T1w",
    "desc-filled_T1w",
    "desc-brain_mask",
    "seg-tissue_dseg",
)
TRANSFORMS = (
    "from-23Na_to-T1w_mode-image_xfm.txt",
    "from-PDT2body_to-T1w_mode-image_xfm.txt",
    "from-PDT2head_to-T1w_mode-image_xfm.txt",
    "from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5",
)
TABLES = {"desc-tissue": TISSUE_TSC, "desc-qc": QC}


@pytest.fixture(scope="module")
def study(demo: Any) -> Any:
    """Return the dataset and the output of the demo's MS participant."""
    found = demo.study("ms")
    assert (found.output / "sub-01.html").is_file(), demo.done.err[-2000:]
    return found


@pytest.fixture
def copy(study: Any) -> Iterator[Path]:
    """Return a copy of the output, under the same name elsewhere, that a test may change."""
    place = study.output.parent / "copy" / study.output.name
    shutil.copytree(study.output, place)
    yield place
    shutil.rmtree(place.parent)


@pytest.fixture
def again(study: Any, copy: Path, command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs the participant level on the copy as the demo did, with further words."""
    words = [study.bids, copy, "participant", "--preset", "ms", "-d", study.rois, "--n-procs", "2", "-v"]
    return lambda *more: command(*words, *more)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def header_of(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text().partition("\n")[0].split("\t"))


def statuses(err: str) -> dict[str, set[str]]:
    """Return the steps by what became of them."""
    found: dict[str, set[str]] = {}
    for step, status in re.findall(r"^sub-01\.(\w+): (\w+), ", err, flags=re.MULTILINE):
        found.setdefault(status, set()).add(step)
    return found


# ---- what is written --------------------------------------------------------------------------------------------


def test_every_file_is_there_with_its_sidecar(study: Any) -> None:
    anat = study.output / "sub-01" / "anat"
    names = [*(f"{name}.nii.gz" for name in IMAGES), *TRANSFORMS, "seg-tissue_dseg.tsv"]
    names += [f"acq-23Na_{name}_tsc.tsv" for name in TABLES]
    missing = [name for name in names if not (anat / f"sub-01_{name}").is_file()]
    assert missing == []
    alone = [
        path.name
        for path in anat.iterdir()
        if path.suffix != ".json" and not path.with_name(path.name.partition(".")[0] + ".json").is_file()
    ]
    assert alone == []
    for name in ("dataset_description.json", ".bidsignore", "sub-01.html", "logs/CITATION.md", "logs/CITATION.bib"):
        assert (study.output / name).is_file(), name
    assert len(list((study.output / "sub-01" / "log").glob("*/config.toml"))) == 1


def test_the_page_begins_with_figure_1_of_the_ms_paper(study: Any) -> None:
    """Raw sodium image, concentration, T2- and T1-weighted image on the same sections."""
    page = (study.output / "sub-01.html").read_text()
    assert "sub-01_desc-overview_TSCmap.png" in page
    assert "raw sodium image, total sodium concentration and 1h images" in page.lower()
    assert (study.output / "sub-01" / "figures" / "sub-01_desc-overview_TSCmap.png").stat().st_size > 50_000


def test_sidecars_say_what_from_what_and_in_which_unit(study: Any) -> None:
    roots = {"": study.output, "raw": study.bids, "rois": study.bids / "derivatives" / "rois"}
    for path in sorted((study.output / "sub-01").rglob("*.json")):
        content = json.loads(path.read_text())
        table = path.name.endswith("_tsc.json")
        assert table or content["Description"], path
        assert table or content["SoftwareVersions"].startswith("bids_sodium "), path
        assert content["Sources"], path
        for uri in content["Sources"]:
            scheme, name, place = uri.split(":", 2)
            assert scheme == "bids", uri
            assert (roots[name] / place).is_file(), uri
        suffix = path.stem.rpartition("_")[2]
        if suffix == "TSCmap":
            assert content["Units"] == "mmol/L"
        if suffix in {"TSCmap", "PDw", "T1w"}:
            assert content["Units"]
            assert isinstance(content["SkullStripped"], bool)
        else:
            assert "SkullStripped" not in content
        if "space-T1w" in path.name:
            assert content["SpatialReference"] == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"


def test_tables_have_the_columns_of_their_schema(study: Any) -> None:
    for name, schema in TABLES.items():
        path = study.output / "sub-01" / "anat" / f"sub-01_acq-23Na_{name}_tsc.tsv"
        assert header_of(path) == schema.names
        dictionary = json.loads(path.with_suffix(".json").read_text())
        assert set(schema.names) <= set(dictionary)
    tissue = rows_of(study.output / "sub-01/anat/sub-01_acq-23Na_desc-tissue_tsc.tsv")
    assert {row["method"] for row in tissue} >= {"raw", "csf", "gtm", "glm"}
    expected = {"CGM", "DGM", "GM", "NAWM", "WM", "CSF", "T2lesion", "T1iso", "T1hypo"}
    for method in ("raw", "csf", "gtm", "glm"):
        assert sorted(row["tissue"] for row in tissue if row["method"] == method) == sorted(expected)


def test_no_output_names_a_folder_of_the_machine(demo: Any, study: Any) -> None:
    folders = [str(demo.folder).encode(), str(Path(__file__).resolve().parents[2]).encode()]
    for path in sorted(study.output.rglob("*")):
        if path.is_file() and ".bids_sodium" not in path.parts:
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            assert not any(folder in data for folder in folders), path


def test_the_output_is_a_valid_bids_dataset(study: Any) -> None:
    found = run_validator(study.output)
    if not found.ran:
        pytest.skip("bids-validator-deno is not installed")
    assert found.errors == ()


def test_nothing_is_left_between_files(study: Any) -> None:
    hidden = [path for path in study.output.rglob(".*") if path.name not in {".bids_sodium", ".bidsignore"}]
    assert hidden == []


# ---- what is true -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(study: Any) -> Mapping[str, Any]:
    """Return what the simulator knows of the participant."""
    path = study.bids / "derivatives" / "truth" / "sub-01" / "anat" / "sub-01_truth.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_sodium_is_placed_on_the_t1w_image(study: Any, truth: Mapping[str, Any]) -> None:
    points = np.array(truth["Landmarks"]["T1w"])
    na_from_t1w = np.linalg.inv(np.array(truth["t1w_from_na"]))
    in_sodium = points @ na_from_t1w[:3, :3].T + na_from_t1w[:3, 3]
    estimated = read_transform(study.output / "sub-01/anat/sub-01_from-23Na_to-T1w_mode-image_xfm.txt", "T1w", "23Na")
    error_mm = np.linalg.norm(estimated.apply(in_sodium) - points, axis=1)
    assert error_mm.mean() < 2.0


def test_t1w_is_placed_in_the_template(study: Any, truth: Mapping[str, Any]) -> None:
    name = "MNI152NLin2009aSym"
    path = study.output / f"sub-01/anat/sub-01_from-T1w_to-{name}_mode-image_xfm.h5"
    found = read_transform(path, name, "T1w").apply(np.array(truth["Landmarks"]["T1w"]))
    error_mm = np.linalg.norm(found - np.array(truth["Landmarks"][name]), axis=1)
    assert error_mm.mean() < 4.0


@pytest.mark.parametrize("tissue", ["CGM", "NAWM"])
def test_concentration_of_tissue(study: Any, truth: Mapping[str, Any], tissue: str) -> None:
    table = rows_of(study.output / "sub-01/anat/sub-01_acq-23Na_desc-tissue_tsc.tsv")
    (row,) = (row for row in table if (row["tissue"], row["method"]) == (tissue, "glm"))
    assert float(row["tsc_mmol_l"]) == pytest.approx(truth["Concentrations"][tissue], abs=4.0)


def test_concentration_of_the_vials(study: Any) -> None:
    import nibabel as nib

    anat = study.output / "sub-01" / "anat"
    tsc = nib.load(anat / "sub-01_acq-23Na_TSCmap.nii.gz").get_fdata()
    found = []
    for label in ("phantom40", "phantom80"):
        mask = nib.load(anat / f"sub-01_acq-23Na_label-{label}_mask.nii.gz").get_fdata() > 0
        found.append(float(np.percentile(tsc[mask], 90)))
    assert found[1] / found[0] == pytest.approx(2.0, rel=0.1)


# ---- the second run ---------------------------------------------------------------------------------------------


def test_nothing_is_done_twice(
    study: Any, copy: Path, again: Any, contents: Callable[..., Any], times: Callable[..., Any]
) -> None:
    def steps_only(files: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in files.items() if "/anat/" in name}

    raw, written, when = contents(study.bids), contents(copy), steps_only(times(copy))
    code, _, err = again()
    assert code == 0, err
    assert statuses(err) == {"skipped": STEPS}
    assert "1 of 1 participants complete; 0 steps done, 6 unchanged" in err
    assert steps_only(times(copy)) == when
    after = contents(copy)
    # The links to the input are relative, and the copy lies one folder deeper; the demo's last methods text is the
    # group's.
    changed = {name for name in written if after.get(name) != written[name]}
    assert changed <= {"dataset_description.json", "logs/CITATION.md", "logs/CITATION.bib"}
    assert contents(study.bids) == raw


def test_a_changed_parameter_runs_only_what_depends_on_it(
    study: Any, copy: Path, again: Any, contents: Callable[..., Any]
) -> None:
    raw = contents(study.bids)
    before = contents(copy)
    code, _, err = again("--csf-mmol-l", "120")
    assert code == 0, err
    assert statuses(err) == {"done": {"extract"}, "skipped": STEPS - {"extract"}}
    after = contents(copy)
    changed = {name for name in before if "/anat/" in name and after.get(name) != before[name]}
    assert "sub-01/anat/sub-01_acq-23Na_desc-tissue_tsc.tsv" in changed
    table = [rows_of(folder / "sub-01/anat/sub-01_acq-23Na_desc-tissue_tsc.tsv") for folder in (study.output, copy)]
    differ = {row["method"] for row, other in zip(*table, strict=True) if row["tsc_mmol_l"] != other["tsc_mmol_l"]}
    assert differ == {"csf"}
    assert contents(study.bids) == raw


def test_a_lost_output_is_made_again_as_it_was(copy: Path, again: Any, contents: Callable[..., Any]) -> None:
    before = contents(copy)
    lost = copy / "sub-01/anat/sub-01_acq-23Na_TSCmap.nii.gz"
    lost.unlink()
    code, _, err = again()
    assert code == 0, err
    assert statuses(err)["done"] == {"quantify"}
    same = {name for name in before if name.startswith("sub-01/anat/")}
    assert {name: contents(copy)[name] for name in same} == {name: before[name] for name in same}


def test_reports_only_restores_a_page(copy: Path, again: Any, contents: Callable[..., Any]) -> None:
    page = copy / "sub-01.html"
    text = page.read_text()
    page.unlink()
    shutil.rmtree(copy / "sub-01" / "figures")
    before = contents(copy)
    code, _, err = again("--reports-only")
    assert code == 0, err
    assert statuses(err) == {}
    assert page.read_text() == text
    after = contents(copy)
    assert {name for name in after if name not in before and "/figures/" not in name} == {"sub-01.html"}
    pictures = re.findall(r'src="([^"]+)"', text)
    assert pictures
    assert all((copy / picture).is_file() for picture in pictures)


def test_an_image_with_edges_of_the_t1w_image_is_shown_and_not_measured(study: Any, copy: Path, again: Any) -> None:
    """The map is the regularised one, with a warning; vials and tissue table stay those of the linear image."""
    import nibabel as nib

    code, _, err = again("--recon-method", "dtv")
    assert code == 0, err
    assert {"reconstruct", "regularise", "quantify"} <= statuses(err)["done"]
    anat = copy / "sub-01" / "anat"
    regularised, linear = (
        np.asarray(nib.load(anat / f"sub-01_acq-23Na_desc-{name}_PDw.nii.gz").dataobj) for name in ("dtv", "recon")
    )
    head = linear > 0.2 * linear.max()
    apart = np.linalg.norm((regularised - linear)[head]) / np.linalg.norm(linear[head])
    assert 0.01 < apart < 0.4
    maps = [nib.load(folder / "sub-01_acq-23Na_TSCmap.nii.gz").get_fdata() for folder in (anat, study_anat(study))]
    scale = np.vdot(regularised[head], maps[0][head]) / np.vdot(regularised[head], regularised[head])
    assert np.abs(maps[0] - scale * regularised)[head].max() < np.abs(maps[1] - scale * regularised)[head].max()
    table = "sub-01_acq-23Na_desc-tissue_tsc.tsv"
    for ours, theirs in zip(rows_of(anat / table), rows_of(study_anat(study) / table), strict=True):
        if ours["method"] != "raw":
            assert float(ours["tsc_mmol_l"]) == pytest.approx(float(theirs["tsc_mmol_l"]), rel=1e-3), ours["tissue"]
    assert "Read with care" in (copy / "sub-01.html").read_text()


def test_ventricles_set_the_scale_where_they_are_asked_to(study: Any, copy: Path, again: Any) -> None:
    """Without its vials the participant reads what it reads with them, and every output names the reference."""
    code, _, err = again("--calibration", "csf")
    assert code == 0, err
    assert statuses(err)["done"] == {"quantify", "extract"}
    anat = copy / "sub-01" / "anat"
    table = "sub-01_acq-23Na_desc-tissue_tsc.tsv"
    fluid, vials = (
        {row["tissue"]: float(row["tsc_mmol_l"]) for row in rows_of(folder / table) if row["method"] == "glm"}
        for folder in (anat, study_anat(study))
    )
    for tissue in ("CGM", "NAWM", "CSF"):
        assert fluid[tissue] == pytest.approx(vials[tissue], rel=0.05), tissue
    name = "internal reference: ventricular cerebrospinal fluid"
    (slope,) = (r for r in rows_of(anat / "sub-01_acq-23Na_desc-qc_tsc.tsv") if r["measure"] == "calibration_slope")
    assert name in slope["note"]
    assert float(slope["se"]) / float(slope["value"]) > 4.0 / 140.0
    measured = [*anat.glob("sub-01_*TSCmap.json"), anat / table.replace(".tsv", ".json")]
    assert len(measured) == 6
    for sidecar in measured:
        assert name in sidecar.read_text(), sidecar.name
    assert name in (copy / "sub-01.html").read_text()


def study_anat(study: Any) -> Path:
    """Return the folder of the demo's images."""
    return Path(study.output) / "sub-01" / "anat"


# ---- the group --------------------------------------------------------------------------------------------------


def test_group_tables_have_their_schema(study: Any) -> None:
    assert set(GROUP_TSC.names) <= set(header_of(study.output / "group_tsc.tsv"))
    rows = rows_of(study.output / "group_tsc.tsv")
    assert {row["participant_id"] for row in rows} == {"sub-01"}
    assert {row["group"] for row in rows} == {"RRMS"}
    assert all(0.5 < float(row["bpf"]) < 1.0 for row in rows)
    index = json.loads((study.output / "group_analyses.json").read_text())
    assert index["Study"] == "ms"
    done = [entry["Name"] for entry in index["Analyses"] if not entry["LeftOut"]]
    assert done
    for name in done:
        assert header_of(study.output / f"group_{name}.tsv") == GROUP_RESULT.names
        assert (study.output / f"group_{name}.json").is_file()
    # One participant is no group: what cannot be said is listed with its reason.
    assert all(entry["Reason"] for entry in index["LeftOut"])
    assert "comparisons" in {entry["Analysis"] for entry in index["LeftOut"]}
    assert (study.output / "group.html").is_file()


def test_group_tsc_alone_gives_the_same_results(study: Any, tmp_path: Path, command: Callable[..., Any]) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("group_tsc.tsv", "group_tsc.json"):
        shutil.copy(study.output / name, tables / name)
    (tables / "dataset_description.json").write_text('{"Name": "tables", "BIDSVersion": "1.10.0"}')
    code, _, err = command(tables, tmp_path / "out", "group", "--preset", "ms", "--study", "ms")
    assert code == 0, err
    names = sorted(path.name for path in study.output.glob("group_*.tsv"))
    assert len(names) > 3
    assert sorted(path.name for path in (tmp_path / "out").glob("group_*.tsv")) == names
    for name in names:
        assert (tmp_path / "out" / name).read_text() == (study.output / name).read_text(), name
