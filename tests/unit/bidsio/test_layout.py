import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bids_sodium.bidsio.layout import Dataset, index, read_rows
from bids_sodium.core.errors import ConfigError, DataError, UsageError

SODIUM = {
    "ResonantNucleus": "23Na",
    "ImagingFrequency": 33.786,
    "MagneticFieldStrength": 3.0,
    "EchoTime": 0.0003,
    "RepetitionTime": 0.12,
    "FlipAngle": 90,
}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes one file of a dataset: an empty one, an object as JSON, or text."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.10.0"}')

    def write(name: str = "", content: Mapping[str, Any] | str | None = None) -> Path:
        if name:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content) if isinstance(content, dict) else content or "")
        return root

    return write


def sodium(
    make: Make, where: str = "sub-01/anat/sub-01_acq-23Na_PDw", sidecar: Mapping[str, Any] | None = None
) -> Path:
    make(f"{where}.nii.gz")
    return make(f"{where}.json", dict(SODIUM if sidecar is None else sidecar))


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in SODIUM.items() if key not in keys} | changes


def only(dataset: Dataset) -> Any:
    (session,) = dataset.sessions
    return session


def test_every_kind_of_image_finds_its_place(make: Make) -> None:
    anat = "sub-01/ses-a/anat/sub-01_ses-a"
    sodium(make, f"{anat}_acq-23Na_PDw")
    sodium(make, f"{anat}_acq-23NaVolume_PDw")
    for name in ("T1w", "FLAIR", "T2w", "acq-bodycoil_PDT2", "acq-32ch_PDT2"):
        make(f"{anat}_{name}.nii.gz")
    dwi = "sub-01/ses-a/dwi/sub-01_ses-a"
    make(f"{dwi}_dwi.nii.gz")
    make("dwi.bval", "0 1000")
    make(f"{dwi}_dwi.bvec", "0 1\n0 0\n0 0")
    make(f"{dwi}_ADC.nii.gz")
    make("sub-01/ses-a/fmap/sub-01_ses-a_acq-23Na_TB1map.nii.gz")
    make("sub-01/ses-a/fmap/sub-01_ses-a_acq-1H_RB1map.nii.gz")
    make("sourcedata/sub-01/ses-a/anat/sub-01_ses-a_acq-23Na_PDw.h5")
    root = make("sub-01/sub-01_sessions.tsv", "session_id\tonset_to_scan_h\tnihss\nses-a\t4.5\tn/a\n")
    session = only(index(root))

    def place(scan: Any) -> str:
        return scan.path.name.removeprefix("sub-01_ses-a_")

    assert session.unit == "sub-01_ses-a"
    assert place(session.sodium) == "acq-23Na_PDw.nii.gz"
    assert place(session.sodium_reference) == "acq-23NaVolume_PDw.nii.gz"
    assert place(session.kspace) == "acq-23Na_PDw.h5"
    assert session.kspace.sidecar["RepetitionTime"] == 0.12
    found = {
        name: place(getattr(session, name))
        for name in ("t1w", "flair", "t2w", "pdt2_body", "pdt2_head", "anatomy", "dwi", "adc", "tb1map")
    }
    assert found == {
        "t1w": "T1w.nii.gz",
        "flair": "FLAIR.nii.gz",
        "t2w": "T2w.nii.gz",
        "pdt2_body": "acq-bodycoil_PDT2.nii.gz",
        "pdt2_head": "acq-32ch_PDT2.nii.gz",
        "anatomy": "T1w.nii.gz",
        "dwi": "dwi.nii.gz",
        "adc": "ADC.nii.gz",
        "tb1map": "acq-23Na_TB1map.nii.gz",
    }
    assert session.rb1map is None
    assert session.dwi.bval == root / "dwi.bval"
    assert session.dwi.bvec.name == "sub-01_ses-a_dwi.bvec"
    assert session.onset_to_scan_h == 4.5
    assert session.columns == {"session_id": "ses-a", "onset_to_scan_h": "4.5"}


@pytest.mark.parametrize(
    ("name", "sidecar"),
    [
        ("anat/sub-01_PDw", SODIUM),
        ("anat/sub-01_PDw", without("ResonantNucleus", ImagedNucleus="23Na")),
        ("anat/sub-01_PDw", without("ResonantNucleus")),
        ("anat/sub-01_acq-hiresNa_PDw", {"RepetitionTime": 0.1}),
        ("anat/sub-01_nuc-23Na_PDw", {"RepetitionTime": 0.1}),
        ("sodium/sub-01_acq-1_PDw", {"RepetitionTime": 0.1}),
    ],
)
def test_sodium_is_recognised_by_nucleus_frequency_name_or_folder(
    make: Make, name: str, sidecar: Mapping[str, Any]
) -> None:
    make("sub-01/anat/sub-01_acq-plain_PDw.nii.gz")
    session = only(index(sodium(make, f"sub-01/{name}", sidecar)))
    assert session.sodium.path.name.startswith(name.split("/")[1])


def test_metadata_are_those_of_pybids(make: Make) -> None:
    from bids.layout import BIDSLayout

    make("PDw.json", {"A": 0, "B": 0, "C": 0, "D": 0})
    make("acq-23Na_PDw.json", {"B": 1, "C": 1})
    make("sub-01/sub-01_PDw.json", {"C": 2})
    make("sub-02/sub-02_PDw.json", {"A": 9})
    make("sub-01/anat/sub-01_T1w.nii.gz")
    root = sodium(make, sidecar={**SODIUM, "D": 3})
    sodium(make, "sub-01/anat/sub-01_acq-23Na_run-2_PDw", {**SODIUM, "D": 4})
    session = only(index(root, participants=["01"]))
    layout = BIDSLayout(root, validate=False)
    assert session.sodium.sidecar == layout.get_metadata(str(session.sodium.path))
    assert [session.sodium.sidecar[key] for key in "ABCD"] == [0, 1, 2, 3]


def test_filter_file_asks_pybids_and_goes_before_every_rule(make: Make, tmp_path: Path) -> None:
    sodium(make)
    make("sub-01/anat/sub-01_acq-odd_PDw.nii.gz")
    make("sub-01/anat/sub-01_acq-odd_PDw.json", {"RepetitionTime": 0.1})
    make("sub-01/anat/sub-01_acq-a_T1w.nii.gz")
    root = make("sub-01/anat/sub-01_acq-a_rec-b_T1w.nii.gz")
    make("sub-02/anat/sub-02_acq-odd_PDw.nii.gz")
    filters = tmp_path / "filters.json"
    filters.write_text(
        json.dumps({"sodium": {"acq": "odd"}, "t1w": {"reconstruction": "*"}, "bold": {"task": "rest"}, "flair": {}})
    )
    for database in (None, tmp_path / "database", tmp_path / "database"):
        dataset = index(root, participants=["01"], filters=filters, database_dir=database)
        session = only(dataset)
        assert session.sodium.path.name == "sub-01_acq-odd_PDw.nii.gz"
        assert session.t1w.path.name == "sub-01_acq-a_rec-b_T1w.nii.gz"
        assert session.flair is None
        assert any("'bold'" in note for note in dataset.notes)


def test_a_kept_pybids_index_is_made_anew_when_it_lacks_a_file(make: Make, tmp_path: Path) -> None:
    root = sodium(make)
    filters = tmp_path / "filters.json"
    filters.write_text('{"t1w": {"acquisition": "new"}}')
    assert only(index(root, filters=filters, database_dir=tmp_path / "db")).t1w is None
    make("sub-01/anat/sub-01_acq-new_T1w.nii.gz")
    assert only(index(root, filters=filters, database_dir=tmp_path / "db")).t1w is not None


@pytest.mark.parametrize("text", ["[1]", "{", '{"t1w": "T1w"}', '{"t1w": {"flavour": "x"}}'])
def test_a_faulty_filter_file_is_a_configuration_error(make: Make, tmp_path: Path, text: str) -> None:
    filters = tmp_path / "filters.json"
    filters.write_text(text)
    with pytest.raises(ConfigError, match=r"filters\.json"):
        index(sodium(make), filters=filters)


def test_masks_segmentations_and_atlases_come_only_from_named_derivatives(make: Make, tmp_path: Path) -> None:
    root = sodium(make, "sub-01/ses-1/anat/sub-01_ses-1_acq-23Na_PDw")
    make("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    rois = tmp_path / "rois"
    for name in (
        "sub-01/ses-1/anat/sub-01_ses-1_label-L_desc-rater1_mask.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_label-L_desc-rater2_mask.nii.gz",
        "sub-01/anat/sub-01_label-L_mask.nii.gz",
        "sub-01/anat/sub-01_label-GM_probseg.nii.gz",
        "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_label-WM_probseg.nii.gz",
        "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz",
        "sub-01/anat/sub-01_atlas-lobes_dseg.nii.gz",
        "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_atlas-lobes_dseg.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_label-ionic_mask.nii.gz",
        "sub-02/anat/sub-02_label-L_mask.nii.gz",
    ):
        (rois / name).parent.mkdir(parents=True, exist_ok=True)
        (rois / name).touch()
    plain = only(index(root))
    assert not plain.masks
    assert not plain.segmentations
    assert not plain.atlases
    session = only(index(root, derivatives={"rois": rois}))
    assert {label: [m.entities.get("desc") for m in masks] for label, masks in session.masks.items()} == {
        "L": ["rater1", "rater2"],
        "brain": ["brain"],
    }
    (found,) = session.segmentations
    # grey matter alone is no segmentation, so that the labels are taken
    assert (found.name, found.kind) == ("rois", "labels")
    assert [path.name for path in found.paths] == ["sub-01_desc-aseg_dseg.nii.gz", "sub-01_desc-brain_mask.nii.gz"]
    assert [(atlas.name, atlas.space) for atlas in session.atlases] == [("lobes", "T1w")]
    with pytest.raises(DataError, match="not a folder"):
        index(root, derivatives={"rois": tmp_path / "nowhere"})


def test_transforms_of_others_are_found_by_the_frame_they_come_from(make: Make, tmp_path: Path) -> None:
    root = sodium(make, "sub-01/ses-1/anat/sub-01_ses-1_acq-23Na_PDw")
    make("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    for name in ("from-sodium_to-T1w", "from-dwi_to-T1w", "from-orig_to-T1w", "from-T1w_to-MNI152NLin2009aSym"):
        path = tmp_path / "xfms" / "sub-01" / "ses-1" / f"sub-01_ses-1_{name}_mode-image_xfm.lta"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = only(index(root, derivatives={"xfms": tmp_path / "xfms"})).transforms
    assert {frame: path.name for frame, path in found.items()} == {
        "23Na": "sub-01_ses-1_from-sodium_to-T1w_mode-image_xfm.lta",
        "dwi": "sub-01_ses-1_from-dwi_to-T1w_mode-image_xfm.lta",
    }


def test_atlases_of_the_command_line_lie_where_their_names_say(make: Make, tmp_path: Path) -> None:
    root = sodium(make, "sub-01/anat/sub-01_acq-23Na_PDw")
    names = {"a": "tpl-MNI152NLin2009aSym_dseg", "b": "tpl-MNI152NLin6Asym_dseg", "c": "mine", "d": "space-T1w_dseg"}
    for name in (*names.values(), "space-fsaverage_dseg"):
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "mine.tsv").touch()
    places = {key: tmp_path / f"{name}.nii.gz" for key, name in names.items()}
    found = only(index(root, atlases=list(places.items()))).atlases
    assert [atlas.space for atlas in found] == ["template", "template", "template", "T1w"]
    assert [atlas.table for atlas in found] == [None, None, tmp_path / "mine.tsv", None]
    assert "off by 2 to 5 mm" in found[1].note
    assert "states no space" in found[2].note
    for odd, kind, message in (
        ([("x", tmp_path / "none.nii.gz")], DataError, "no such atlas"),
        ([("x", tmp_path / "space-fsaverage_dseg.nii.gz")], DataError, "space fsaverage"),
        ([("x", places["a"]), ("x", places["b"])], UsageError, "two atlases are named x"),
    ):
        with pytest.raises(kind, match=message):
            index(root, atlases=odd)


def test_choice_of_participants_and_sessions(make: Make) -> None:
    for participant in ("01", "02", "03"):
        for session in ("a", "b"):
            root = sodium(make, f"sub-{participant}/ses-{session}/anat/sub-{participant}_ses-{session}_acq-23Na_PDw")
    units = [s.unit for s in index(root, participants=["sub-01", "03"], exclude=["03"], sessions=["ses-b"]).sessions]
    assert units == ["sub-01_ses-b"]
    with pytest.raises(DataError, match="no participant sub-04; there are sub-01, sub-02, sub-03"):
        index(root, participants=["04"])
    with pytest.raises(DataError, match="no participant has a session ses-c"):
        index(root, sessions=["c"])
    with pytest.raises(DataError, match="excluded"):
        index(root, participants=["01"], exclude=["01"])


def test_a_session_without_sodium_stays_for_its_anatomy(make: Make) -> None:
    sodium(make, "sub-01/ses-1/anat/sub-01_ses-1_acq-23Na_PDw")
    root = make("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz")
    first, second = index(root).sessions
    assert first.problem is None
    assert second.problem is None
    assert second.sodium is None
    assert second.t1w is not None


def test_one_bad_participant_leaves_the_others(make: Make) -> None:
    root = sodium(make)
    make("sub-02/anat/sub-02_T1w.nii.gz")
    dataset = index(root)
    assert [session.unit for session in dataset.usable] == ["sub-01"]
    (bad,) = [session for session in dataset.sessions if session.problem is not None]
    assert "no sodium image among 1 images (sub-02_T1w.nii.gz)" in str(bad.problem)
    with pytest.raises(DataError, match="no sodium image"):
        index(root, participants=["02"])


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        (without("RepetitionTime"), "has no RepetitionTime"),
        (without(RepetitionTime="120 ms"), "has the RepetitionTime '120 ms'"),
        (without(ImagingFrequency=127.73), r"127.73 MHz and 3 T: 42.58 MHz/T, that of 1H"),
        (without("ResonantNucleus", ImagingFrequency=51.7), r"17.23 MHz/T; sodium has 11.26"),
        (without(ResonantNucleus="1H"), "named as sodium but its sidecar states the nucleus '1H'"),
        (
            without(SodiumCalibration={"Phantoms": [{"Label": "p", "Concentration": "40"}]}),
            "of p has Concentration '40'",
        ),
        (without(SodiumCalibration={"Phantoms": "40, 80"}), "holds no list Phantoms"),
    ],
)
def test_a_sidecar_that_cannot_be_right_is_refused(make: Make, sidecar: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        index(sodium(make, sidecar=sidecar))
    assert "sub-01_acq-23Na_PDw" in caught.value.where
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_neither_nucleus_nor_name_is_no_sodium_image(make: Make) -> None:
    with pytest.raises(DataError, match=r"no sodium image among 1 images \(sub-01_PDw.nii.gz\).*ResonantNucleus"):
        index(sodium(make, "sub-01/anat/sub-01_PDw", {"RepetitionTime": 0.1}))


def test_repetition_time_may_stand_in_the_header_of_raw_data(make: Make) -> None:
    root = sodium(make, sidecar=without("RepetitionTime"))
    make("sourcedata/sub-01/anat/sub-01_acq-23Na_PDw.h5")
    assert only(index(root)).kspace is not None


def test_sessions_that_differ_in_case_only_are_refused(make: Make) -> None:
    sodium(make, "sub-01/ses-Acute/anat/sub-01_ses-Acute_acq-23Na_PDw")
    root = sodium(make, "sub-01/ses-acute/anat/sub-01_ses-acute_acq-23Na_PDw")
    sodium(make, "sub-02/anat/sub-02_acq-23Na_PDw")
    dataset = index(root)
    assert [session.unit for session in dataset.usable] == ["sub-02"]
    with pytest.raises(DataError, match="sub-01_ses-Acute and sub-01_ses-acute differ only in upper and lower case"):
        index(root, participants=["01"])


def test_dangling_link_is_told(make: Make) -> None:
    root = sodium(make)
    (root / "sub-01/anat/sub-01_T1w.nii.gz").symlink_to("../../.git/annex/objects/x")
    with pytest.raises(DataError, match=r"sub-01_T1w.nii.gz: .*git annex get"):
        index(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("participant_id\tage\nsub-01\t5\nsub-01\t6\n", "sub-01 stands in lines 2 and 3"),
        ("id\tage\nsub-01\t5\n", "no column participant_id, but id, age"),
        ("participant_id\tage\n\t5\n", "line 2 has no participant_id"),
        ("", "no column participant_id, but none"),
    ],
)
def test_faulty_participants_table(make: Make, text: str, message: str) -> None:
    sodium(make)
    with pytest.raises(DataError, match=message) as caught:
        index(make("participants.tsv", text))
    assert caught.value.where.endswith("participants.tsv")


def test_rows_leave_out_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(
        "\ufeffparticipant_id\tage\tsite\nsub-01\tn/a\t01\nsub-02\t\t02\n", encoding="utf-8"
    )
    assert read_rows(tmp_path / "t.tsv", "participant_id") == (
        {"participant_id": "sub-01", "site": "01"},
        {"participant_id": "sub-02", "site": "02"},
    )


def test_onset_that_is_no_number(make: Make) -> None:
    sodium(make, "sub-01/ses-1/anat/sub-01_ses-1_acq-23Na_PDw")
    root = make("sub-01/sub-01_sessions.tsv", "session_id\tonset_to_scan_h\nses-1\tearly\n")
    with pytest.raises(DataError, match="onset_to_scan_h is 'early'"):
        index(root)


def test_description_is_needed_only_when_the_dataset_is_validated(make: Make) -> None:
    root = sodium(make)
    (root / "dataset_description.json").write_text('{"Name": "x"}')
    assert any("BIDSVersion" in note for note in index(root).notes)
    with pytest.raises(DataError, match="has no BIDSVersion"):
        index(root, validate=True)


def test_folders_that_hold_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        index(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no folder sub-\*"):
        index(tmp_path)


def test_plainest_image_is_taken_and_the_choice_noted(make: Make) -> None:
    root = sodium(make, "sub-01/anat/sub-01_acq-23Na_run-2_PDw")
    sodium(make, "sub-01/anat/sub-01_acq-23Na_run-1_PDw")
    sodium(make, "sub-01/anat/sub-01_acq-23Na_part-phase_PDw")
    session = only(index(root))
    assert session.sodium.path.name == "sub-01_acq-23Na_run-1_PDw.nii.gz"
    assert any("run-2" in note for note in session.notes)


def test_cost_of_a_participant_does_not_grow_with_their_number(make: Make) -> None:
    def seconds(n: int) -> float:
        started = time.perf_counter()
        assert len(index(root, participants=[f"{i:03d}" for i in range(n)]).sessions) == n
        return time.perf_counter() - started

    for i in range(200):
        root = sodium(make, f"sub-{i:03d}/anat/sub-{i:03d}_acq-23Na_PDw")
    few, many = min(seconds(20) for _ in range(3)), min(seconds(200) for _ in range(3))
    assert many < 40 * few


@pytest.mark.parametrize(
    ("value", "units", "hours"),
    [("4.5", None, 4.5), ("270", "min", 4.5), ("90", "days", 2160.0), ("16200", "s", 4.5), ("12", "hours", 12.0)],
)
def test_onset_is_read_in_the_units_of_its_sidecar(make: Make, value: str, units: str | None, hours: float) -> None:
    sodium(make, "sub-01/ses-1/anat/sub-01_ses-1_acq-23Na_PDw")
    root = make("sub-01/sub-01_sessions.tsv", f"session_id\tonset_to_scan_h\nses-1\t{value}\n")
    if units is not None:
        make("sub-01/sub-01_sessions.json", json.dumps({"onset_to_scan_h": {"Units": units}}))
    (session,) = index(root).sessions
    assert session.onset_to_scan_h == pytest.approx(hours)


@pytest.mark.parametrize(
    ("value", "units", "match"),
    [
        ("-3", "h", "-3 h after onset"),
        ("0", "h", "0 h after onset"),
        ("40000", "h", "40000 h after onset"),
        ("5", "fortnights", "units 'fortnights'"),
    ],
)
def test_onset_that_cannot_be_is_refused(make: Make, value: str, units: str, match: str) -> None:
    sodium(make, "sub-01/ses-1/anat/sub-01_ses-1_acq-23Na_PDw")
    make("sessions.json", json.dumps({"onset_to_scan_h": {"Units": units}}))
    root = make("sub-01/sub-01_sessions.tsv", f"session_id\tonset_to_scan_h\nses-1\t{value}\n")
    with pytest.raises(DataError, match=match):
        index(root)
