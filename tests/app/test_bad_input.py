"""Whatever is wrong with the input is said in one line that names the file, and earlier outputs stay as they are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from bids_sodium.bidsio.kspace import write_ismrmrd
from bids_sodium.core.data import Grid, KSpace
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.trajectory import density_adapted_radial

SIDECAR = {
    "ResonantNucleus": "23Na",
    "ImagingFrequency": 33.786,
    "MagneticFieldStrength": 3.0,
    "EchoTime": 0.0003,
    "RepetitionTime": 0.12,
    "FlipAngle": 90,
    "SodiumCalibration": {
        "Phantoms": [
            {"Label": "phantom40", "Concentration": 40, "Units": "mmol/L"},
            {"Label": "phantom80", "Concentration": 80, "Units": "mmol/L"},
        ]
    },
}
GRID = Grid.centred((40, 40, 40), 6.0)
NOISE = 2.0
IMAGE = "sub-{0}/anat/sub-{0}_acq-23Na_PDw"
RAW = "sourcedata/sub-{0}/anat/sub-{0}_acq-23Na_PDw.h5"


def phantom(*vials: tuple[float, float]) -> np.ndarray[Any, Any]:
    """Return a uniform head and, beside it, upright vials of given place (mm along x) and signal."""
    x, y, z = np.moveaxis(GRID.world(np.indices(GRID.shape).reshape(3, -1).T), -1, 0).reshape(3, *GRID.shape)
    data = 200.0 * ((x / 65) ** 2 + (y / 80) ** 2 + (z / 80) ** 2 < 1)
    for centre_mm, signal in vials:
        data[((x - centre_mm) ** 2 + y**2 < 15.0**2) & (np.abs(z) < 50)] = signal
    return data


HEAD = phantom((-96.0, 160.0), (96.0, 320.0))


def noisy(data: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    noise = NOISE * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape))
    return np.abs(data + noise).astype(np.float32)


@dataclass
class Case:
    """A copy of a good dataset with its outputs, in which a test spoils something and runs the command again."""

    root: Path
    command: Callable[..., Any]
    contents: Callable[..., dict[str, str]]

    @property
    def bids(self) -> Path:
        return self.root / "bids"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def path(self, name: str, participant: str = "01", ending: str = "") -> Path:
        return self.bids / (name.format(participant) + ending)

    def sidecar(self, *without: str, participant: str = "01", **changes: Any) -> None:
        path = self.path(IMAGE, participant, ".json")
        content = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
        path.write_text(json.dumps(content | changes))

    def image(self, data: np.ndarray[Any, Any], affine: Any = GRID.affine, participant: str = "01") -> Path:
        path = self.path(IMAGE, participant, ".nii.gz")
        image = nib.Nifti1Image(data, None)
        image.header.set_sform(affine, code=1)
        nib.save(image, path)
        return path

    def run(self, *words: object, out: Path | None = None) -> tuple[int, str]:
        """Return exit code and what stands on standard error; what the dataset held is as it was."""
        raw = self.contents(self.bids, state=True)
        code, _, err = self.command(self.bids, out or self.out, "participant", "--n-procs", "1", *words)
        assert self.contents(self.bids, state=True) == raw
        return code, err

    def refused(self, *words: object, out: Path | None = None) -> tuple[int, str]:
        """Return exit code and message of a run that says one line and changes nothing."""
        before = self.contents(self.out)
        code, err = self.run(*words, out=out)
        assert err.count("\n") == 1, err
        assert err.startswith("bids-sodium: ")
        assert self.contents(self.out) == before
        return code, err

    def _images_and_tables(self, step: str) -> dict[str, str]:
        # The steps before the failed one have run on what the input holds now.
        ahead = "desc-recon" if step == "quantify" else "no file"
        found = self.contents(self.out)
        return {path: text for path, text in found.items() if "/anat/" in path and ahead not in path}

    def failed(self, *words: object, step: str) -> tuple[int, str]:
        """Return exit code and message of a run in which a step of sub-01 failed; earlier images and tables stay."""
        kept = self._images_and_tables(step)
        assert kept
        code, err = self.run("--participant-label", "01", *words)
        lines = [line for line in err.splitlines() if line.startswith(f"sub-01.{step}: failed, ")]
        assert len(lines) == 1, err
        assert self._images_and_tables(step) == kept
        page = (self.out / "sub-01.html").read_text()
        assert "Not finished in this run" in page
        crashes = list((self.out / "sub-01" / "log").glob(f"*/crash-sub-01.{step}.txt"))
        assert len(crashes) == 1
        assert "Traceback" in crashes[0].read_text()
        return code, lines[0]


def write_base(bids: Path) -> None:
    bids.mkdir(parents=True)
    (bids / "dataset_description.json").write_text('{"Name": "spheres", "BIDSVersion": "1.10.0"}')
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-01\t40\nsub-02\t50\n")
    for seed, participant in enumerate(("01", "02")):
        path = bids / (IMAGE.format(participant) + ".nii.gz")
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(noisy(HEAD, seed), GRID.affine), path)
        (bids / (IMAGE.format(participant) + ".json")).write_text(json.dumps(SIDECAR))


def write_kspace(bids: Path) -> None:
    """Put raw data beside the images."""
    trajectory = density_adapted_radial(1200, 64, gradient_mt_m=2.0, readout_ms=10.0, voxel_mm=6.0)
    samples = Nufft(trajectory, GRID).forward(HEAD)
    for seed, participant in enumerate(("01", "02")):
        rng = np.random.default_rng(seed)
        size = float(np.abs(samples).mean())
        noise = 0.01 * size * (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape))
        path = bids / RAW.format(participant)
        path.parent.mkdir(parents=True)
        scan = KSpace((samples + noise)[None].astype(np.complex64), trajectory, GRID, 0.3, 120.0, 90.0, 33.786)
        write_ismrmrd(path, scan)


Make = Callable[[str], Case]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any]) -> Callable[[str], Path]:
    """Return a function that makes a dataset of images or of raw data and runs the app on it, once."""
    made: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            write_base(root / "bids")
            if kind == "kspace":
                write_kspace(root / "bids")
            code, _, err = command(root / "bids", root / "out", "participant", "--n-procs", "2")
            assert code == 0, err
            made[kind] = root
        return made[kind]

    return build


@pytest.fixture
def case(
    tmp_path: Path,
    good: Callable[[str], Path],
    command: Callable[..., Any],
    contents: Callable[..., dict[str, str]],
) -> Make:
    """Return a function that copies the good dataset of a kind, with its outputs."""

    def build(kind: str = "image") -> Case:
        shutil.copytree(good(kind), tmp_path / "case")
        return Case(tmp_path / "case", command, contents)

    return build


# ---- what makes the whole run impossible ------------------------------------------------------------------------


def test_no_sodium_image(case: Make) -> None:
    here = case()
    for participant in ("01", "02"):
        for ending in (".nii.gz", ".json"):
            path = here.path(IMAGE, participant, ending)
            path.rename(path.with_name(f"sub-{participant}_PDw{ending}"))
        path = here.bids / f"sub-{participant}/anat/sub-{participant}_PDw.json"
        path.write_text("{}")
    code, message = here.refused()
    assert code == 65
    assert "sub-01: no sodium image among 1 images (sub-01_PDw.nii.gz)" in message
    assert "acq-23Na" in message


def test_a_participant_that_does_not_exist(case: Make) -> None:
    code, message = case().refused("--participant-label", "01", "07")
    assert code == 65
    assert "no participant sub-07; there are sub-01, sub-02" in message
    assert "--participant-label" in message


def test_a_folder_that_does_not_exist(case: Make) -> None:
    here = case()
    code, _, err = here.command(here.root / "elsewhere", here.out, "participant")
    assert code == 65
    assert err.count("\n") == 1
    assert "elsewhere: no such folder" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("participant_id\tage\nsub-01\t40\nsub-01\t41\n", "sub-01 stands in lines 2 and 3"),
        ("subject\tage\nsub-01\t40\n", "has no column participant_id, but subject, age"),
    ],
    ids=["duplicate row", "missing column"],
)
def test_participants_table(case: Make, text: str, message: str) -> None:
    here = case()
    (here.bids / "participants.tsv").write_text(text)
    code, said = here.refused()
    assert code == 65
    assert f"participants.tsv: {message} (try: " in said


def test_output_is_the_dataset_or_inside_it(case: Make) -> None:
    here = case()
    for out, seen in ((here.bids, "the BIDS dataset"), (here.bids / "sub-01" / "out", "inside the BIDS dataset")):
        code, message = here.refused(out=out)
        assert code == 2
        assert f"{out}: the output folder is {seen}" in message
        assert "derivatives/" in message
    assert not (here.bids / "sub-01" / "out").exists()


def test_output_through_a_link_into_the_dataset(case: Make, tmp_path: Path) -> None:
    here = case()
    (tmp_path / "link").symlink_to(here.bids, target_is_directory=True)
    code, message = here.refused(out=tmp_path / "link")
    assert code == 2
    assert "is the BIDS dataset" in message


def test_output_that_cannot_be_written(case: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, message = case().refused(out=tmp_path / "file" / "out")
    assert code == 2
    assert f"{tmp_path / 'file' / 'out'}: cannot be written (Not a directory)" in message
    assert "a folder that you may write to" in message


def test_sessions_that_differ_in_case_only(case: Make) -> None:
    here = case()
    for session in ("A", "a"):
        for ending in (".nii.gz", ".json"):
            path = here.bids / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_acq-23Na_PDw{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here.path(IMAGE, "01", ending), path)
    shutil.rmtree(here.bids / "sub-01" / "anat")
    code, message = here.refused("--participant-label", "01")
    assert code == 65
    assert "sub-01_ses-A and sub-01_ses-a differ only in upper and lower case (try: rename one of them)" in message


# ---- what the sidecar says --------------------------------------------------------------------------------------


def _phantoms(concentration: object) -> dict[str, Any]:
    return {"SodiumCalibration": {"Phantoms": [{"Label": "phantom40", "Concentration": concentration}]}}


@pytest.mark.parametrize(
    ("without", "changes", "seen", "advice"),
    [
        (["RepetitionTime"], {}, "has no RepetitionTime", "state RepetitionTime in s"),
        ([], {"RepetitionTime": "0.12"}, "has the RepetitionTime '0.12'", "state RepetitionTime in s"),
        ([], _phantoms("40"), "phantom40 has Concentration '40'", "a positive number in mmol/L"),
        ([], _phantoms("forty"), "phantom40 has Concentration 'forty'", "a positive number in mmol/L"),
        ([], {"ImagingFrequency": 127.74}, "127.74 MHz and 3 T: 42.58 MHz/T, that of 1H", "ImagingFrequency"),
        ([], {"ResonantNucleus": "1H"}, "named as sodium but its sidecar states the nucleus '1H'", "rename it"),
    ],
    ids=["no TR", "TR as text", "concentration as text", "concentration in words", "frequency of 1H", "nucleus 1H"],
)
def test_sidecar(case: Make, without: list[str], changes: dict[str, Any], seen: str, advice: str) -> None:
    here = case()
    here.sidecar(*without, **changes)
    code, message = here.refused("--participant-label", "01")
    assert code == 65
    assert f"{here.path(IMAGE, '01', '.nii.gz')}: " in message
    assert seen in message
    assert advice in message.partition("(try: ")[2]


def test_nothing_says_sodium(case: Make) -> None:
    here = case()
    for ending in (".nii.gz", ".json"):
        here.path(IMAGE, "01", ending).rename(here.bids / f"sub-01/anat/sub-01_PDw{ending}")
    path = here.bids / "sub-01/anat/sub-01_PDw.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in {"ResonantNucleus", "ImagingFrequency"}}))
    code, message = here.refused("--participant-label", "01")
    assert code == 65
    assert "sub-01: no sodium image" in message
    assert "state ResonantNucleus 23Na in its sidecar" in message


@pytest.mark.parametrize("key", ["EchoTime", "FlipAngle"])
def test_image_without_timing(case: Make, key: str) -> None:
    here = case()
    here.sidecar(key)
    code, message = here.failed(step="reconstruct")
    assert code == 65
    assert f"sub-01_acq-23Na_PDw.nii.gz: {key} is missing (try: state {key}" in message


@pytest.mark.parametrize(
    ("words", "expected"), [(["--vial-mmol-l", "forty"], 2), (["--set", "calibration.vial_mmol_l=forty"], 78)]
)
def test_concentration_as_text_on_the_command_line(case: Make, words: list[str], expected: int) -> None:
    code, message = case().refused(*words)
    assert code == expected
    assert "'forty'" in message


# ---- what the files hold ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("affine", "seen"),
    [(np.zeros((4, 4)), "affine"), (np.diag([6.0, 6.0, 0.0, 1.0]), "affine")],
    ids=["zero", "singular"],
)
def test_affine(case: Make, affine: np.ndarray[Any, Any], seen: str) -> None:
    here = case()
    here.image(noisy(HEAD, 0), affine)
    code, message = here.failed(step="reconstruct")
    assert code == 65
    assert "sub-01_acq-23Na_PDw.nii.gz" in message
    assert seen in message
    assert "(try: " in message


def test_image_of_nothing(case: Make) -> None:
    here = case()
    here.image(np.zeros(GRID.shape, dtype=np.float32))
    code, message = here.failed(step="reconstruct")
    assert code == 65
    assert "sub-01_acq-23Na_PDw.nii.gz: every voxel is 0 (try: " in message


def test_image_with_nan(case: Make) -> None:
    here = case()
    data = noisy(HEAD, 0)
    data[3, 4, 5] = np.nan
    here.image(data)
    code, message = here.failed(step="reconstruct")
    assert code == 65
    assert "sub-01_acq-23Na_PDw.nii.gz: 1 voxels are NaN or infinite (try: " in message


@pytest.mark.parametrize(
    ("vials", "found"), [([], "0 found"), ([(96.0, 320.0)], "1 found")], ids=["no vial", "one vial"]
)
def test_vials(case: Make, vials: list[tuple[float, float]], found: str) -> None:
    here = case()
    here.image(noisy(phantom(*vials), 0))
    code, message = here.failed(step="quantify")
    assert code == 69
    assert f"sub-01_acq-23Na_desc-recon_PDw.nii.gz: 2 vials are named but {found} outside the head" in message
    assert "label-phantom40_mask" in message.partition("(try: ")[2]


def test_truncated_raw_data(case: Make) -> None:
    here = case("kspace")
    path = here.path(RAW)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, message = here.failed(step="reconstruct")
    assert code == 65
    assert f"{path}: cannot be read as raw data, it may be truncated" in message
    assert "copy or convert it again" in message


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    with h5py.File(path, "r+") as file:
        group = next(value for value in file.values() if isinstance(value, h5py.Group))
        records = group["data"][()]
        change(records)
        group["data"][...] = records


def test_trajectory_of_another_length(case: Make) -> None:
    here = case("kspace")
    path = here.path(RAW)

    def shorten(records: Any) -> None:
        records["traj"][5] = records["traj"][5][:-30]

    _edit(path, shorten)
    code, message = here.failed(step="reconstruct")
    assert code == 65
    assert f"{path}: readout 5 holds 162 trajectory values where its header says 192 (1 of 1200 readouts)" in message
    assert "the trajectory or data belongs to another acquisition" in message


def test_nan_in_raw_data(case: Make) -> None:
    here = case("kspace")
    path = here.path(RAW)

    def spoil(records: Any) -> None:
        records["data"][7][11] = np.nan

    _edit(path, spoil)
    code, message = here.failed(step="reconstruct")
    assert code == 65
    assert f"{path}: 1 of {1200 * 64} k-space samples are NaN or infinite (try: export it again)" in message


# ---- what is only told ------------------------------------------------------------------------------------------


def test_without_a_t1w_image_the_rest_is_made_and_the_gap_is_told(case: Make) -> None:
    here = case()
    table = (here.out / "sub-01/anat/sub-01_acq-23Na_desc-qc_tsc.tsv").read_text()
    gap = "tissue fractions, tissue table and template space: the participant has no T1w image"
    assert f"left_out\tn/a\tn/a\tn/a\t{gap}" in table
    page = (here.out / "sub-01.html").read_text()
    assert "the participant has no T1w image" in page
    tsc = nib.load(here.out / "sub-01/anat/sub-01_acq-23Na_TSCmap.nii.gz").get_fdata()
    vials = [
        tsc[nib.load(here.out / f"sub-01/anat/sub-01_acq-23Na_label-phantom{c}_mask.nii.gz").get_fdata() > 0]
        for c in (40, 80)
    ]
    factor = 0.99  # vial over brain relaxation at this TE, TR and flip angle, to a few per cent
    assert [float(np.median(values)) for values in vials] == pytest.approx([40 * factor, 80 * factor], rel=0.1)
    assert not (here.out / "sub-01/anat/sub-01_acq-23Na_desc-tissue_tsc.tsv").exists()


@pytest.mark.parametrize("kind", ["kspace", "image"])
def test_one_participant_fails_and_the_other_is_complete(case: Make, kind: str, tmp_path: Path) -> None:
    here = case(kind)
    if kind == "kspace":
        path = here.path(RAW)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        here.sidecar("RepetitionTime")
    out = tmp_path / "fresh"
    code, err = here.run(out=out)
    assert code == 1
    assert "1 of 2 participants complete" in err
    whole = {path for path in here.contents(here.out) if path.startswith("sub-02/anat/")}
    assert {path for path in here.contents(out) if path.startswith("sub-02/anat/")} == whole
    assert not list(out.glob("sub-01/anat/*_TSCmap.nii.gz"))
    first, second = ((out / f"sub-{participant}.html").read_text() for participant in ("01", "02"))
    assert "Not finished in this run" in first
    assert re.search(r"truncated|has no RepetitionTime", first)
    assert "Not finished in this run" not in second
    if kind == "kspace":
        (crash,) = out.glob("sub-01/log/*/crash-sub-01.reconstruct.txt")
        assert "exit code 65" in crash.read_text()


def test_a_run_with_what_was_repaired_goes_on(case: Make) -> None:
    here = case()
    good = here.path(IMAGE, "01", ".nii.gz").read_bytes()
    here.image(noisy(phantom(), 0))
    here.failed(step="quantify")
    here.path(IMAGE, "01", ".nii.gz").write_bytes(good)
    code, err = here.run("-v")
    assert code == 0
    assert "2 of 2 participants complete" in err
    assert "Not finished in this run" not in (here.out / "sub-01.html").read_text()
