"""The plan is pure, whole and consistent: sessions and settings go in, tasks that can be run come out."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bids_sodium.bidsio.atlases import Atlas
from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.layout import Scan, Session
from bids_sodium.bidsio.segmentations import External
from bids_sodium.config import Config, RunParams, load
from bids_sodium.core.errors import DataError
from bids_sodium.engine.tasks import Stamps, Task, in_order
from bids_sodium.plan import participants, plan, reference_session
from bids_sodium.steps.align import SESSION
from bids_sodium.tissue.delineation import DelineationParams

RAW, OUT, WORK = Path("/no/where/bids"), Path("/no/where/out"), Path("/no/where/work")
ROOTS = Roots(output=OUT, raw=RAW, derivatives=(("rois", RAW / "derivatives" / "rois"),))
SODIUM = {"ResonantNucleus": "23Na", "EchoTime": 0.0003, "RepetitionTime": 0.12, "FlipAngle": 90}


def scan(session: str, name: str, *, datatype: str = "anat", tree: str = "", **sidecar: Any) -> Scan:
    """Return a scan that exists in name only."""
    folder = RAW / tree / session.replace("_", "/") / datatype
    stem, _, _ = name.partition(".")
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in [*session.split("_"), *pairs])
    return Scan(folder / f"{session}_{name}", {**entities, "suffix": suffix, "datatype": datatype}, sidecar)


def ms(participant: str = "sub-01", **changes: Any) -> Session:
    masks = {
        label: (scan(participant, f"label-{label}_mask.nii.gz", tree="derivatives/rois"),)
        for label in ("T2lesion", "T1hypo")
    }
    return replace(
        Session(
            participant_id=participant,
            sodium=scan(participant, "acq-23Na_PDw.nii.gz", **SODIUM),
            kspace=scan(participant, "acq-23Na_PDw.h5", tree="sourcedata", **SODIUM),
            t1w=scan(participant, "T1w.nii.gz"),
            anatomy=scan(participant, "T1w.nii.gz"),
            flair=scan(participant, "FLAIR.nii.gz"),
            pdt2_body=scan(participant, "acq-bodycoil_PDT2.nii.gz"),
            pdt2_head=scan(participant, "acq-32ch_PDT2.nii.gz"),
            masks=masks,
        ),
        **changes,
    )


def image_only(participant: str = "sub-01") -> Session:
    return Session(participant_id=participant, sodium=scan(participant, "acq-23Na_PDw.nii.gz", **SODIUM))


def visit(label: str, onset_h: float | None, *, late: bool = False, **changes: Any) -> Session:
    session = f"sub-01_ses-{label}"
    regions = ("necrosis",) if late else ("ionic", "cytotoxic")
    masks = {
        name: tuple(scan(session, f"label-{name}_desc-rater{n}_mask.nii.gz", tree="derivatives/rois") for n in (1, 2))
        for name in regions
    }
    dwi = replace(scan(session, "dwi.nii.gz", datatype="dwi"), bval=RAW / f"{session}_dwi.bval")
    return replace(
        Session(
            participant_id="sub-01",
            session_id=f"ses-{label}",
            sodium=None if late else scan(session, "acq-23Na_PDw.nii.gz", **SODIUM),
            kspace=None if late else scan(session, "acq-23Na_PDw.h5", tree="sourcedata", **SODIUM),
            t1w=scan(session, "T1w.nii.gz"),
            anatomy=scan(session, "T1w.nii.gz"),
            dwi=None if late else dwi,
            masks=masks,
            onset_to_scan_h=onset_h,
        ),
        **changes,
    )


STROKE = (visit("acute", 8.0), visit("subacute", 40.0), visit("m3", 2160.0, late=True))
SURFER = (
    External(name="fast", maps=tuple((name, RAW / f"pve_{name}.nii.gz") for name in ("CSF", "GM", "NAWM"))),
    External(name="freesurfer", labels=RAW / "aseg.mgz"),
)
LOBES = (Atlas(name="my-lobes", image=RAW / "lobes.nii.gz", table=RAW / "lobes.tsv", space="template"),)
GIVEN = {"23Na": RAW / "sub-01_from-23Na_to-T1w_mode-image_xfm.lta"}
CASES: Mapping[str, Sequence[Session]] = {
    "ms": [ms()],
    "ms without masks": [ms(masks={})],
    "ms from an image": [ms(kspace=None)],
    "ms with an array and a volume coil": [
        ms(kspace=None, sodium_reference=scan("sub-01", "acq-23NaVolume_PDw.nii.gz"))
    ],
    "ms without anatomy": [image_only()],
    "ms without T1w": [ms(t1w=None, anatomy=scan("sub-01", "FLAIR.nii.gz"), masks={})],
    "stroke": STROKE,
    "stroke without the late visit": STROKE[:2],
    "stroke with the scanner's ADC": [replace(STROKE[0], dwi=None, adc=scan("sub-01_ses-acute", "ADC.nii.gz"))],
    "no sodium": [ms(sodium=None, kspace=None)],
    "ms with tissues, an atlas and a transform of others": [ms(segmentations=SURFER, atlases=LOBES, transforms=GIVEN)],
    "stroke with an atlas": [replace(visit, atlases=LOBES) for visit in STROKE],
    "two participants": [ms("sub-01"), ms("sub-02")],
}


def tasks_of(sessions: Sequence[Session], config: Config | None = None) -> tuple[Task, ...]:
    return plan(sessions, config or Config(), ROOTS, WORK)


def steps(tasks: Sequence[Task], unit: str) -> list[str]:
    return [task.name for task in tasks if task.unit == unit]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def tasks(request: pytest.FixtureRequest) -> tuple[Task, ...]:
    return tasks_of(request.param)


# ---- laws of every plan -----------------------------------------------------------------------------------------


def ancestors(task: Task, by_id: Mapping[str, Task]) -> Iterator[str]:
    for name in task.after:
        yield name
        yield from ancestors(by_id[name], by_id)


def test_whoever_reads_an_output_waits_for_its_maker(tasks: tuple[Task, ...]) -> None:
    by_id = {task.id: task for task in tasks}
    maker = {path: task.id for task in tasks for path in task.outputs}
    for task in tasks:
        before = set(ancestors(task, by_id))
        for path in task.inputs:
            assert path not in maker or maker[path] in before, (task.id, path.name)


def test_what_nobody_makes_is_input_and_what_is_made_is_not(tasks: tuple[Task, ...]) -> None:
    made = {path for task in tasks for path in task.outputs}
    for task in tasks:
        assert task.outputs
        assert not set(task.inputs) & set(task.outputs)
        for path in task.inputs:
            assert (path in made) != path.is_relative_to(RAW), (task.id, path)
    assert all(path.is_relative_to(OUT) or path.is_relative_to(WORK) for path in made)


def test_every_step_names_its_files_as_the_whole_run_does(tasks: tuple[Task, ...]) -> None:
    for task in tasks:
        for path in (*task.inputs, *task.outputs):
            assert task.files.roots.uri(path) == ROOTS.uri(path)


def test_a_plan_is_in_order_and_can_be_sent_to_another_process(tasks: tuple[Task, ...]) -> None:
    assert [task.id for task in in_order(tasks)] == [task.id for task in tasks]
    for task in tasks:
        assert pickle.loads(pickle.dumps(task)).id == task.id  # noqa: S301 - our own bytes


def test_every_session_ends_with_its_tables(tasks: tuple[Task, ...]) -> None:
    for unit in dict.fromkeys(task.unit for task in tasks):
        assert steps(tasks, unit)[-1] == "extract"
        (last,) = (task for task in tasks if task.id == f"{unit}.extract")
        assert any(path.name.endswith("_acq-23Na_desc-qc_tsc.tsv") for path in last.outputs)


def test_equal_input_makes_equal_plans() -> None:
    for sessions in CASES.values():
        one, two = tasks_of(sessions), tasks_of(sessions)
        assert [(t.id, t.inputs, t.outputs, t.params) for t in one] == [
            (t.id, t.inputs, t.outputs, t.params) for t in two
        ]


# ---- which steps ------------------------------------------------------------------------------------------------


def test_one_visit_has_every_step_once() -> None:
    assert sorted(steps(tasks_of([ms()]), "sub-01")) == sorted(
        ["template", "reconstruct", "align", "parcellate", "quantify", "extract"]
    )


def test_the_other_side_is_looked_for_where_something_is_read_against_it() -> None:
    assert "mirror" not in steps(tasks_of([ms()]), "sub-01")
    assert "mirror" in steps(tasks_of([replace(ms(), atlases=LOBES)]), "sub-01")
    tasks = {task.id: task for task in tasks_of(STROKE)}
    assert "sub-01_ses-m3.mirror" in tasks["sub-01_ses-acute.extract"].after


def test_only_what_the_anatomy_shows_is_its_lesion() -> None:
    """Oedema of the first days has gone when the necrosis is drawn; without that it is what is known."""

    def elsewhere(sessions: list[Session]) -> set[tuple[str, str]]:
        (task,) = (task for task in tasks_of(sessions) if task.name == "parcellate")
        return set(task.files.elsewhere)

    early = ("sub-01_ses-acute", "sub-01_ses-subacute")
    assert elsewhere(list(STROKE)) == {(label, unit) for label in ("ionic", "cytotoxic") for unit in early}
    assert elsewhere([*STROKE[:2], replace(STROKE[2], masks={})]) == set()
    assert elsewhere([ms()]) == set()


def test_three_visits_share_one_anatomy() -> None:
    tasks = tasks_of(STROKE)
    assert set(steps(tasks, "sub-01_ses-m3")) == {"template", "mirror", "parcellate", "extract"}
    for unit in ("sub-01_ses-acute", "sub-01_ses-subacute"):
        assert set(steps(tasks, unit)) == {"reconstruct", "diffusion", "align", "quantify", "extract"}
    (template,) = (task for task in tasks if task.name == "template")
    assert template.files.t1w == STROKE[2].t1w.path  # type: ignore[union-attr]
    (early,) = (task for task in tasks if task.id == "sub-01_ses-acute.extract")
    assert {name for name, _ in early.files.regions} == {"ionic", "cytotoxic", "necrosis"}
    assert early.params.other_times == ("necrosis",)  # is no lesion yet
    (late,) = (task for task in tasks if task.id == "sub-01_ses-m3.extract")
    assert late.params.other_times == ()


def test_without_any_proton_image_the_image_is_still_calibrated() -> None:
    tasks = tasks_of([image_only()])
    assert steps(tasks, "sub-01") == ["reconstruct", "quantify", "extract"]
    reasons = dict(tasks[-1].params.omissions)
    assert reasons["registration of the sodium image"] == "the session has no proton image"
    assert tasks[-1].files.tissue_table is None


def test_without_sodium_only_the_anatomy_is_made() -> None:
    tasks = tasks_of([ms(sodium=None, kspace=None)])
    assert not {"reconstruct", "quantify"} & set(steps(tasks, "sub-01"))
    assert "the session has no sodium scan" in dict(tasks[-1].params.omissions).values()


def test_a_given_adc_is_not_fitted_again() -> None:
    tasks = tasks_of(CASES["stroke with the scanner's ADC"])
    assert "diffusion" not in steps(tasks, "sub-01_ses-acute")
    assert tasks[-1].files.adc == scan("sub-01_ses-acute", "ADC.nii.gz").path


def test_raw_data_go_before_the_image() -> None:
    for session, kspace, image in ((ms(), True, False), (ms(kspace=None), False, True)):
        (task,) = (task for task in tasks_of([session]) if task.name == "reconstruct")
        assert (task.files.kspace is not None, task.files.image is not None) == (kspace, image)


def test_the_sodium_image_goes_through_the_body_coil_and_the_head_coil_to_the_t1w_image() -> None:
    (task,) = (task for task in tasks_of([ms()]) if task.name == "align")
    assert {link.name: link.to for link in task.files.links} == {
        "PDT2head": "anatomy",
        "PDT2body": "PDT2head",
        "23Na": "PDT2body",
    }


def test_an_internal_reference_waits_for_the_segmentation_and_draws_no_vials() -> None:
    config = load(settings=["calibration.source=csf"])
    (task,) = (task for task in tasks_of([ms()], config) if task.name == "quantify")
    assert "sub-01.parcellate" in task.after
    assert task.files.vial_masks == ()
    assert task.files.fluid.fluid.name == "sub-01_label-CSF_probseg.nii.gz"
    (task,) = (task for task in tasks_of([ms()]) if task.name == "quantify")
    assert "sub-01.parcellate" not in task.after
    assert task.files.fluid is None


def test_eyes_are_read_where_their_mask_was_drawn() -> None:
    config = load(settings=["calibration.source=vitreous"])
    for space, frame in (("", "T1w"), ("space-23Na_", "23Na")):
        mask = scan("sub-01", f"{space}label-vitreous_mask.nii.gz", tree="derivatives/rois")
        (task,) = (task for task in tasks_of([ms(masks={"vitreous": (mask,)})], config) if task.name == "quantify")
        assert (task.files.fluid.frame, task.files.fluid.transform is None) == (frame, frame == "23Na")


def test_maps_of_the_coil_reach_the_calibration_and_the_fit_reads_what_they_correct() -> None:
    maps = {name: scan("sub-01", f"acq-23Na_{name.upper().replace('MAP', 'map')}.nii.gz", datatype="fmap")
            for name in ("tb1map", "rb1map")}  # fmt: skip
    tasks = {task.name: task for task in tasks_of([ms(**maps)])}
    fields = tasks["quantify"].files.fields
    assert (fields.tb1map, fields.rb1map) == (maps["tb1map"].path, maps["rb1map"].path)
    assert tasks["quantify"].files.corrected.name == "sub-01_acq-23Na_part-real_desc-corrected_PDw.nii.gz"
    assert tasks["extract"].files.real == tasks["quantify"].files.corrected
    off = load(settings=["calibration.transmit=off", "calibration.receive=off"])
    plain = {task.name: task for task in tasks_of([ms(**maps)], off)}
    assert plain["quantify"].files.fields.rb1map is None
    assert plain["quantify"].files.corrected is None
    assert plain["extract"].files.real.name.endswith("part-real_desc-recon_PDw.nii.gz")
    coil = scan("sub-01", "acq-23NaVolume_PDw.nii.gz")
    divided = {task.name: task for task in tasks_of([ms(kspace=None, sodium_reference=coil, **maps)])}
    # the array image is divided by that of the volume coil already
    assert divided["quantify"].files.fields.rb1map is None


def test_a_mask_in_a_frame_that_no_image_has_is_told() -> None:
    drawn = scan("sub-01", "space-FLAIR_label-T2lesion_mask.nii.gz", tree="derivatives/rois")
    with_flair, without = (tasks_of([ms(masks={"T2lesion": (drawn,)}, **more)])[-1] for more in ({}, {"flair": None}))
    told = ("region T2lesion", f"{drawn.path.name} lies in the frame FLAIR, of which the session has no image")
    assert told not in with_flair.params.omissions
    assert told in without.params.omissions
    assert not any("were given" in reason and "lesion" in what for what, reason in without.params.omissions)


def test_a_session_with_a_problem_is_passed_over_and_the_others_go_on() -> None:
    bad = ms("sub-02", problem=DataError("is broken"))
    assert {task.group for task in tasks_of([ms("sub-01"), bad, ms("sub-03")])} == {"sub-01", "sub-03"}
    assert list(participants([ms("sub-01"), bad])) == ["sub-01"]


# ---- the anatomy ------------------------------------------------------------------------------------------------


def test_the_anatomy_is_that_of_the_latest_visit() -> None:
    assert reference_session(STROKE) is STROKE[2]
    assert reference_session([STROKE[2], STROKE[0]]) is STROKE[2]


def test_the_anatomy_may_be_chosen() -> None:
    for label in ("acute", "ses-acute"):
        assert reference_session(STROKE, label) is STROKE[0]
    assert reference_session(STROKE, "m12") is STROKE[2]
    config = Config(run=RunParams(reference_session="acute"))
    tasks = {task.id: task for task in tasks_of(STROKE, config)}
    assert "sub-01_ses-acute.parcellate" in tasks
    assert "sub-01_ses-m3.parcellate" not in tasks
    late = tasks["sub-01_ses-m3.align"].files
    assert late.anatomy == STROKE[0].t1w.path  # type: ignore[union-attr]
    assert [link.name for link in late.links if link.to == "anatomy"] == [SESSION]
    assert not any(what == "chosen anatomy" for what, _ in tasks["sub-01_ses-acute.extract"].params.omissions)
    other = tasks_of(STROKE, Config(run=RunParams(reference_session="m12")))[-1]
    told = "ses-m12 has no T1w image of this participant; that of ses-m3 is taken"
    assert ("chosen anatomy", told) in other.params.omissions


def test_the_final_necrosis_is_that_of_the_latest_visit_whatever_the_anatomy() -> None:
    chosen = replace(ALL, run=RunParams(reference_session="acute"))
    assert delineations(tasks_of(undrawn(), chosen)) == delineations(tasks_of(undrawn(), ALL))


def test_without_a_late_visit_every_scan_shows_oedema() -> None:
    both = ("ionic", "cytotoxic")
    early = [replace(session, flair=scan(session.unit, "FLAIR.nii.gz")) for session in undrawn()[:2]]
    assert delineations(tasks_of(early, ALL)) == {"acute": both, "subacute": both}
    # no time is told: the last visit is taken for the follow-up
    untimed = [replace(session, onset_to_scan_h=None) for session in undrawn()]
    assert delineations(tasks_of(untimed, ALL)) == {"acute": both, "subacute": both, "m3": ("necrosis",)}


def test_without_times_the_anatomy_is_that_of_the_first_visit() -> None:
    first, second = (visit(name, None) for name in ("a", "b"))
    assert reference_session([first, second]) is first


def test_a_visit_without_a_t1w_image_is_no_anatomy() -> None:
    assert reference_session([STROKE[0], replace(STROKE[2], t1w=None)]) is STROKE[0]
    assert reference_session([image_only()]) is None


# ---- what others have made ---------------------------------------------------------------------------------------


def named(tasks: Sequence[Task], name: str) -> Any:
    (task,) = (task for task in tasks if task.name == name)
    return task


def test_the_first_segmentation_is_taken_and_every_file_of_it_is_an_input() -> None:
    task = named(tasks_of([ms(segmentations=SURFER)]), "parcellate")
    assert task.files.external.name == "fast"
    assert {"pve_GM.nii.gz", "aseg.mgz"} <= {path.name for path in task.inputs}
    assert "deep grey matter that of freesurfer" in task.params.choice[0]
    assert named(tasks_of([ms()]), "parcellate").files.external is None


def test_an_atlas_makes_a_region_table_without_any_lesion() -> None:
    task = named(tasks_of([ms(atlases=LOBES)]), "extract")
    assert task.files.roi_table is not None
    assert {"lobes.nii.gz", "lobes.tsv"} <= {path.name for path in task.inputs}
    written = {path.name for path in task.outputs}
    assert {f"sub-01_space-T1w_atlas-mylobes_dseg{end}" for end in (".nii.gz", ".tsv")} <= written
    assert named(tasks_of([ms()]), "extract").files.roi_table is None


def test_a_given_transform_replaces_the_whole_way_of_its_image() -> None:
    links = {link.name: link for link in named(tasks_of([ms(transforms=GIVEN)]), "align").files.links}
    assert (links["23Na"].given, links["23Na"].to) == (GIVEN["23Na"], "anatomy")
    assert links["PDT2body"].given is None
    plain = {link.name: link for link in named(tasks_of([ms()]), "align").files.links}
    assert (plain["23Na"].given, plain["23Na"].to) == (None, "PDT2body")


def test_transforms_are_also_written_as_asked() -> None:
    task = named(tasks_of([ms()], load(settings=['run.transform_formats=["fsl", "lta"]'])), "align")
    assert {f"sub-01_from-23Na_to-T1w_mode-image_xfm{end}" for end in (".txt", ".mat", ".lta")} <= {
        path.name for path in task.outputs
    }


# ---- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("reconstruction.iterations=9", {"reconstruct", "quantify", "extract"}),
        ("receive.fwhm_mm=9.0", {"reconstruct"}),
        ("denoising.method=off", {"quantify"}),
        ("calibration.line=intercept", {"quantify"}),
        ("diffusion.same_shell_s_mm2=10.0", {"diffusion"}),
        ("registration.iterations=3", {"align", "template", "mirror"}),
        ("registration.path=chain", {"align", "template", "mirror"}),
        ("mirror.method=plane", {"mirror"}),
        ("reference.csf_mmol_l=145.0", {"quantify"}),
        ("partialvolume.csf_mmol_l=120.0", {"extract"}),
        ("regions.minimum_ml=2.0", {"parcellate", "extract"}),
        ("run.random_seed=3", {"parcellate"}),
        ("run.n_procs=3", set()),
        ("stroke.n_resamples=5", set()),
    ],
)
def test_a_setting_enters_the_steps_that_use_it_and_no_other(setting: str, expected: set[str]) -> None:
    changed = {
        before.name
        for before, after in zip(tasks_of(STROKE), tasks_of(STROKE, load(settings=[setting])), strict=True)
        if before.params != after.params
    }
    assert changed == expected


FAST = RAW / "derivatives" / "fast"


@pytest.mark.parametrize(
    ("segmentations", "expected"),
    [
        ((), set()),
        ((External(name="fast", maps=tuple((n, FAST / f"pve_{n}.nii.gz") for n in ("CSF", "GM", "NAWM"))),),
         {"parcellate"}),
    ],
    ids=["nothing of this participant", "tissues"],
)  # fmt: skip
def test_a_dataset_that_is_added_changes_the_steps_that_read_from_it_and_no_other(
    segmentations: tuple[External, ...], expected: set[str]
) -> None:
    more = replace(ROOTS, derivatives=(("fast", FAST), *ROOTS.derivatives))
    before = tasks_of([ms(), ms("sub-02")])
    after = plan([ms(segmentations=segmentations), ms("sub-02")], Config(), more, WORK)
    changed = {
        (one.unit, one.name)
        for one, other in zip(before, after, strict=True)
        if (one.files, one.params, one.inputs) != (other.files, other.params, other.inputs)
    }
    assert changed == {("sub-01", name) for name in expected}
    parcellate = next(task for task in after if task.id == "sub-01.parcellate")
    assert [name for name, _ in parcellate.files.roots.derivatives] == [*(["fast"] if expected else []), "rois"]


def test_keys_do_not_depend_on_where_the_folders_lie(tmp_path: Path) -> None:
    keys = []
    for place in ("one", "two"):
        roots = Roots(output=tmp_path / place / "out", raw=tmp_path / place / "bids")
        image = tmp_path / place / "bids" / "sub-01_acq-23Na_PDw.nii.gz"
        image.parent.mkdir(parents=True)
        image.write_bytes(b"the same")
        session = replace(image_only(), sodium=replace(image_only().sodium, path=image))  # type: ignore[type-var]
        (task, *_) = plan([session], Config(), roots, tmp_path / place / "work")
        keys.append(Stamps(tmp_path / place / "stamps").key(task))
    assert keys[0] == keys[1]


# ---- regions that nobody drew -----------------------------------------------------------------------------------

ALL = Config(delineation=DelineationParams(labels=("ionic", "cytotoxic", "necrosis")))


def undrawn(*keep: str) -> list[Session]:
    """Return the stroke visits, a FLAIR in each, without the masks of the regions that are not kept."""
    return [
        replace(
            session,
            flair=scan(session.unit, "FLAIR.nii.gz"),
            masks={label: masks for label, masks in session.masks.items() if label in keep},
        )
        for session in STROKE
    ]


def delineations(tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Return the regions that each session's task delineates."""
    return {
        task.unit.rpartition("ses-")[2]: tuple(source.label for source in task.files.sources)
        for task in tasks
        if task.name == "delineate"
    }


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ((), {"acute": ("ionic", "cytotoxic"), "subacute": ("ionic", "cytotoxic"), "m3": ("necrosis",)}),
        (("ionic",), {"acute": ("cytotoxic",), "subacute": ("cytotoxic",), "m3": ("necrosis",)}),
        (("ionic", "cytotoxic"), {"m3": ("necrosis",)}),
        (("ionic", "cytotoxic", "necrosis"), {}),
    ],
)
def test_only_what_nobody_drew_is_delineated(keep: tuple[str, ...], expected: dict[str, tuple[str, ...]]) -> None:
    assert delineations(tasks_of(undrawn(*keep), ALL)) == expected
    assert delineations(tasks_of(undrawn(*keep))) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dwi": None}, {"acute": ("ionic",), "subacute": ("ionic",), "m3": ("necrosis",)}),
        ({"flair": None}, {"acute": ("ionic", "cytotoxic"), "subacute": ("ionic", "cytotoxic")}),
        ({"sodium": None, "kspace": None}, {"acute": ("cytotoxic",), "subacute": ("cytotoxic",), "m3": ("necrosis",)}),
        ({"t1w": None, "anatomy": None}, {}),
    ],
)
def test_a_region_needs_the_image_that_shows_it(change: dict[str, Any], expected: dict[str, tuple[str, ...]]) -> None:
    assert delineations(tasks_of([replace(session, **change) for session in undrawn()], ALL)) == expected


def test_a_delineated_region_is_read_where_a_drawn_one_would_be() -> None:
    tasks = {task.id: task for task in tasks_of(undrawn(), ALL)}
    task, extract = tasks["sub-01_ses-acute.delineate"], tasks["sub-01_ses-acute.extract"]
    ionic, cytotoxic = task.files.sources
    align = dict(tasks["sub-01_ses-acute.align"].files.transforms)
    assert (ionic.frame, ionic.transform) == ("23Na", align["23Na"])
    assert (cytotoxic.frame, cytotoxic.transform) == ("dwi", align["dwi"])
    assert ionic.image in tasks["sub-01_ses-acute.quantify"].outputs
    assert cytotoxic.image in tasks["sub-01_ses-acute.diffusion"].outputs
    assert set(task.after) == {
        "sub-01_ses-m3.mirror", "sub-01_ses-m3.parcellate",
        *(f"sub-01_ses-acute.{name}" for name in ("align", "diffusion", "quantify")),
    }  # fmt: skip
    assert {place.name for place in task.outputs if place.suffix == ".gz"} == {
        f"sub-01_ses-acute_label-{label}_desc-{kind}_mask.nii.gz"
        for label in ("ionic", "cytotoxic")
        for kind in ("auto", "consensus")
    }
    # on the session's own T1w image, and from there on the participant's
    assert (task.files.session_t1w, task.files.session_transform) == (STROKE[0].t1w.path, align[SESSION])  # type: ignore[union-attr]
    late = tasks["sub-01_ses-m3.delineate"]
    assert (late.files.session_t1w, late.files.session_transform) == (None, None)
    assert late.files.sources[0].frame == "FLAIR"
    assert late.files.sources[0].transform == dict(tasks["sub-01_ses-m3.align"].files.transforms)["FLAIR"]
    # the early scans are read with their own oedema and the necrosis of the last
    assert dict(extract.files.regions) == {
        "ionic": ionic.common, "cytotoxic": cytotoxic.common, "necrosis": late.files.sources[0].common
    }  # fmt: skip
    assert {task.id, late.id} <= set(extract.after)
    assert ("delineate", task.files.record) in extract.files.records


def test_a_drawn_region_is_not_mixed_with_a_delineated_one() -> None:
    tasks = {task.id: task for task in tasks_of(undrawn("ionic"), ALL)}
    drawn = dict(tasks["sub-01_ses-acute.extract"].files.regions)
    assert drawn["ionic"] in tasks["sub-01_ses-m3.parcellate"].outputs
    assert drawn["cytotoxic"] in tasks["sub-01_ses-acute.delineate"].outputs
    outputs = [place for task in tasks.values() for place in task.outputs]
    assert len(outputs) == len(set(outputs))


def test_settings_of_the_delineation_change_it_and_what_follows() -> None:
    other = replace(ALL, delineation=replace(ALL.delineation, seed_z=6.0))
    before, after = tasks_of(undrawn(), ALL), tasks_of(undrawn(), other)
    changed = {task.name for task, same in zip(after, before, strict=True) if task.params != same.params}
    assert changed == {"delineate"}
