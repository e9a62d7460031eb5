import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bids_sodium import __version__
from bids_sodium.bidsio.citations import boilerplate, write_boilerplate
from bids_sodium.bidsio.derivatives import (
    BIDS_VERSION,
    Roots,
    sidecar,
    software_versions,
    write_description,
    write_sidecar,
)
from bids_sodium.bidsio.files import write_text, write_volume
from bids_sodium.bidsio.validator import run_validator
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    raw = tmp_path / "data"
    raw.mkdir()
    (raw / "dataset_description.json").write_text('{"Name": "study", "BIDSVersion": "1.10.0", "License": "CC0"}')
    return Roots(output=raw / "derivatives" / "sodium", raw=raw, derivatives=(("rois", tmp_path / "rois"),))


def test_files_are_named_by_the_innermost_dataset_that_holds_them(roots: Roots, tmp_path: Path) -> None:
    assert roots.raw is not None
    assert roots.uri(roots.output / "sub-01" / "x.nii.gz") == "bids::sub-01/x.nii.gz"
    assert roots.uri(roots.raw / "sub-01" / "x.nii.gz") == "bids:raw:sub-01/x.nii.gz"
    assert roots.uri(tmp_path / "rois" / "x.nii.gz") == "bids:rois:x.nii.gz"
    assert roots.uri(Path("/somewhere/else/x.nii.gz")) == "x.nii.gz"


def test_sidecar_says_what_how_and_from_what(roots: Roots) -> None:
    @dataclass(frozen=True)
    class Inner:
        width: float = 0.7

    @dataclass(frozen=True)
    class Params:
        method: str = "cg"
        inner: Inner = field(default_factory=Inner)

    content = sidecar(
        description="A map",
        roots=roots,
        sources=[roots.output / "a.nii.gz"],
        units="mmol/L",
        skull_stripped=False,
        spatial_reference=roots.output / "t1.nii.gz",
        resolution="4 mm",
        extra={"Reconstruction": Params(), "Shape": (1, 2)},
    )
    assert content == {
        "Description": "A map",
        "Sources": ["bids::a.nii.gz"],
        "Units": "mmol/L",
        "SkullStripped": False,
        "SpatialReference": "bids::t1.nii.gz",
        "Resolution": "4 mm",
        "Reconstruction": {"method": "cg", "inner": {"width": 0.7}},
        "Shape": [1, 2],
        "SoftwareVersions": "; ".join(f"{name} {version}" for name, version in software_versions().items()),
    }
    assert content["SoftwareVersions"].startswith(f"bids_sodium {__version__}; numpy {np.__version__};")
    assert set(sidecar(description="A", roots=roots)) == {"Description", "SoftwareVersions"}
    path = write_sidecar(roots.output / "sub-01_desc-x_PDw.nii.gz", content)
    assert path.name == "sub-01_desc-x_PDw.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(content))


def test_description_names_the_app_its_container_and_its_source(roots: Roots) -> None:
    path = write_description(roots, container={"Type": "docker", "Tag": "x/y:1", "URI": ""})
    content = json.loads(path.read_text())
    assert content["DatasetType"] == "derivative"
    assert content["BIDSVersion"] == BIDS_VERSION
    assert content["License"] == "CC0"
    assert content["GeneratedBy"][0]["Version"] == __version__
    assert content["GeneratedBy"][0]["Container"] == {"Type": "docker", "Tag": "x/y:1"}
    assert content["DatasetLinks"] == {"raw": "../..", "rois": "../../../rois"}
    assert "Container" not in json.loads(write_description(roots).read_text())["GeneratedBy"][0]


def test_nothing_written_names_a_folder_of_this_machine(roots: Roots, tmp_path: Path) -> None:
    write_description(roots)
    write_sidecar(
        roots.output / "x.nii.gz", sidecar(description="d", roots=roots, sources=[tmp_path / "elsewhere" / "y.nii.gz"])
    )
    for path in roots.output.rglob("*"):
        assert str(tmp_path) not in path.read_text()


def test_validator_accepts_what_the_app_writes(roots: Roots) -> None:
    image = Volume(np.ones((4, 4, 4), np.float32), Grid.centred((4, 4, 4), 4.0))
    anat = roots.output / "sub-01" / "anat"
    plain = {"description": "An image", "roots": roots}
    for name, extra in {
        "sub-01_acq-23Na_desc-recon_PDw": {"skull_stripped": False},
        "sub-01_acq-23Na_TSCmap": {"units": "mmol/L", "skull_stripped": False},
        "sub-01_acq-23Na_space-T1w_TSCmap": {"units": "mmol/L", "skull_stripped": False},
        "sub-01_desc-brain_mask": {},
        "sub-01_label-CGM_probseg": {},
    }.items():
        path = anat / f"{name}.nii.gz"
        kind = np.uint8 if name.endswith("mask") else np.float32
        write_volume(path, image, dtype=kind)
        content = sidecar(**plain, **extra)  # type: ignore[arg-type]
        write_sidecar(path, content | ({"Type": "Brain"} if name.endswith("mask") else {}))
    write_text(anat / "sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt", "#Insight Transform File V1.0\n")
    write_text(anat / "sub-01_acq-23Na_desc-tissue_tsc.tsv", "participant_id\ttissue\nsub-01\tCGM\n")
    write_text(roots.output / "sub-01" / "figures" / "sub-01_desc-recon_PDw.svg", "<svg/>")
    write_text(roots.output / "sub-01" / "log" / "20260101" / "config.toml", "[run]\n")
    for name in (
        "sub-01.html",
        "group.html",
        "group_tsc.tsv",
        "group_figures/x.svg",
        "logs/crash-1.txt",
        ".bids_sodium/x",
    ):
        write_text(roots.output / name, "x\n")
    write_description(roots, container={"Type": "docker", "Tag": "x/y:1"})
    write_boilerplate(roots.output / "logs", boilerplate({}))
    found = run_validator(roots.output)
    if not found.ran:
        pytest.skip("bids-validator-deno is not installed")
    assert found.errors == ()


def test_validator_tells_its_errors_and_its_absence(tmp_path: Path) -> None:
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "nonsense.nii.gz").touch()
    assert run_validator(tmp_path, find=lambda _: None).ran is False
    found = run_validator(tmp_path)
    if not found.ran:
        pytest.skip("bids-validator-deno is not installed")
    assert any("MISSING_DATASET_DESCRIPTION" in error for error in found.errors)
    false = tmp_path / "false"
    false.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    false.chmod(false.stat().st_mode | 0o100)
    with pytest.raises(DataError, match="stopped with 3: broken"):
        run_validator(tmp_path, find=lambda _: str(false))


def test_methods_text_follows_the_parameters() -> None:
    text = boilerplate(
        {
            "reconstruction": {"method": "cg", "iterations": 7, "filter": "hamming", "filter_width": 0.5},
            "denoising": {"method": "off"},
            "calibration": {"vial_mmol_l": (30.0, 60.0)},
            "partialvolume": {"methods": ("raw",)},
        }
    ).markdown
    for words in ("conjugate gradients, 7 iterations", "hamming filter of relative width 0.5", "30 and 60 mmol/L"):
        assert words in text
    for words in ("non-local means", "transfer matrix"):
        assert words not in text
    assert "of ms study" not in text
    assert "statsmodels" in boilerplate({"run": {"study": "ms"}}, level="group").markdown


@pytest.mark.parametrize("level", ["participant", "group"])
def test_every_reference_is_cited_and_every_citation_is_listed(level: str) -> None:
    text = boilerplate({}, level=level)
    body, references = text.markdown.split("## References")
    cited = re.findall(r"\[(\d+)\]", body)
    listed = re.findall(r"^(\d+)\.", references, flags=re.MULTILINE)
    assert listed == [str(number) for number in range(1, len(listed) + 1)]
    assert list(dict.fromkeys(cited)) == listed
    assert text.bibtex.count("@article{") == len(listed)
    assert "[@" not in text.markdown
