"""The step that registers a session: which way is taken, what is said of it, and the mirror that is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_transform, write_volume
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.spatial.registration import Registration, RegistrationParams
from bids_sodium.spatial.transforms import Affine, rigid_from_parameters
from bids_sodium.steps import align
from bids_sodium.steps.records import Record, read_record

GRID = Grid.centred((32, 36, 32), 6.0)
POSES = {
    "PDT2head": rigid_from_parameters((2.0, -3.0, 4.0), (4.0, 2.0, -3.0), target="T1w", source="PDT2head"),
    "PDT2body": rigid_from_parameters((-3.0, 2.0, 5.0), (-2.0, 5.0, 4.0), target="T1w", source="PDT2body"),
    "23Na": rigid_from_parameters((5.0, -4.0, 3.0), (6.0, -5.0, 2.0), target="T1w", source="23Na"),
}
ERRORS_MM = {
    ("T1w", "PDT2head"): 0.3,
    ("PDT2head", "PDT2body"): 0.2,
    ("PDT2body", "23Na"): 0.2,
    ("PDT2head", "23Na"): 0.4,
    ("T1w", "23Na"): 0.9,
}
POINTS = np.random.default_rng(0).uniform(-45, 45, (60, 3))
Run = Callable[..., tuple[dict[str, Affine], Record]]


def head(pose: Affine | None = None, *, phase: float = 0.0) -> Volume:
    """Return a head as it lies in a frame, in a contrast of its own."""
    place = GRID.world(np.moveaxis(np.indices(GRID.shape, dtype=float), 0, -1))
    x, y, z = np.moveaxis(place if pose is None else pose.apply(place), -1, 0)
    edge = np.exp(-((x / 60) ** 8) - ((y / 75) ** 8) - ((z / 65) ** 8))
    inside = np.sin(x / 15 + 0.4) + np.cos(y / 19 + z / 23) + 0.5 * np.sin(z / 13)
    return Volume((edge * (3 + inside + phase * inside**2)).astype(np.float32), GRID)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """Make registrations know the answer and their error; a link without an error cannot be estimated."""
    errors = dict(ERRORS_MM)
    frames = {"T1w": Affine.identity("T1w", "T1w"), **POSES}

    def register(*_: Any, fixed_name: str, moving_name: str, **__: Any) -> Registration:
        if (fixed_name, moving_name) not in errors:
            where = f"{moving_name} to {fixed_name}"
            raise EstimationError("the images do not determine a transform", where=where, hint="look at them")
        matrix = frames[fixed_name].inverse().matrix @ frames[moving_name].matrix
        return Registration(
            transform=Affine(matrix, fixed_name, moving_name), metric=0.1, converged=True,
            target_error_mm=errors[fixed_name, moving_name], inverse_consistency_mm=0.1, overlap=1.0, n_starts=14,
            n_iterations=5, start_spread_mm=0.1,
        )  # fmt: skip

    monkeypatch.setattr(align, "register", register)
    return errors


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def step(images: dict[str, Volume], *, links: dict[str, str], **params: Any) -> tuple[dict[str, Affine], Record]:
        write_volume(tmp_path / "T1w.nii.gz", head())
        for name, image in images.items():
            write_volume(tmp_path / f"{name}.nii.gz", image)
        places = {name: tmp_path / f"{name}.txt" for name in images}
        align.run(
            align.Files(
                anatomy=tmp_path / "T1w.nii.gz",
                anatomy_name="T1w",
                brain=None,
                links=tuple(
                    align.Link(name=name, image=tmp_path / f"{name}.nii.gz", to=to) for name, to in links.items()
                ),
                transforms=tuple(places.items()),
                sodium="23Na" if "23Na" in images else None,
                head=tmp_path / "head.nii.gz" if "23Na" in images else None,
                record=tmp_path / "record.json",
                roots=Roots(output=tmp_path),
            ),
            align.Params(registration=RegistrationParams(levels_mm=(16.0, 10.0), rings_mm=(20.0, 10.0),
                                                         points=(1500, 4000), classes=(6, 8), **params)),
        )  # fmt: skip
        found = {name: read_transform(place, "T1w", name) for name, place in places.items()}
        return found, read_record(tmp_path / "record.json")  # type: ignore[return-value]

    return step


def missed(found: Affine, truth: Affine) -> float:
    return float(np.linalg.norm(found.apply(POINTS) - truth.apply(POINTS), axis=1).mean())


CHAIN = {"PDT2head": "anatomy", "PDT2body": "PDT2head", "23Na": "PDT2body"}


def measures(record: Record) -> dict[str, Any]:
    return {measure.name: measure for measure in record.measures}


def images_of(*names: str) -> dict[str, Volume]:
    return {name: head(POSES[name]) for name in names}


def test_the_way_that_is_known_best_is_taken_and_every_error_is_written(
    run: Run, known: dict[tuple[str, str], float]
) -> None:
    found, record = run(images_of(*CHAIN), links=CHAIN)
    told = measures(record)
    assert {"registration_metric_23Na_to_T1w", "registration_metric_23Na_to_PDT2body"} <= set(told)
    for name, pose in POSES.items():
        assert missed(found[name], pose) < 1e-5, name
    # three links of 0.3, 0.2 and 0.2 mm are better than one of 0.9 mm
    assert record.values["target_error_mm"]["23Na"] == pytest.approx(np.sqrt(0.17))
    assert "23Na to PDT2body to PDT2head to T1w" in told["registration_target_error_23Na"].note
    assert told["registration_apart_23Na_T1w"].value < 1e-5
    known["T1w", "23Na"] = 0.1
    _, record = run(images_of(*CHAIN), links=CHAIN)
    assert "way 23Na to T1w, chosen of 2" in measures(record)["registration_target_error_23Na"].note


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("path", "words"), [("chain", "23Na to PDT2body to PDT2head to T1w"), ("direct", "23Na to T1w")]
)
def test_a_way_may_be_asked_for(run: Run, path: str, words: str) -> None:
    _, record = run(images_of(*CHAIN), links=CHAIN, path=path)
    assert f"of the whole way {words}," in measures(record)["registration_target_error_23Na"].note


def test_a_broken_link_leaves_the_other_way(run: Run, known: dict[tuple[str, str], float]) -> None:
    links = {"PDT2head": "anatomy", "23Na": "PDT2head"}
    del known["PDT2head", "23Na"]
    found, record = run(images_of(*links), links=links)
    assert missed(found["23Na"], POSES["23Na"]) < 1e-5
    assert [omission.what for omission in record.omissions] == ["the way 23Na to PDT2head"]
    with pytest.raises(EstimationError, match="do not determine"):
        run(images_of(*links), links=links, path="chain")
    del known["T1w", "PDT2head"]
    with pytest.raises(EstimationError, match=r"PDT2head\.nii\.gz to T1w\.nii\.gz: the images do not determine .*look"):
        run(images_of(*links), links=links)


BROKEN = np.where(np.indices(GRID.shape)[0] < 1, np.nan, 1.0)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (np.full(GRID.shape, 7.0), EstimationError, r"every voxel has the value 7 \(try: look at the image"),
        (BROKEN, DataError, r"1152 voxels are NaN or infinite \(try: write 0 where nothing was measured"),
    ],
    ids=["flat", "not a number"],
)
def test_an_image_of_nothing_is_refused_by_the_name_of_its_file(
    run: Run, tmp_path: Path, data: np.ndarray, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=rf"^23Na\.nii\.gz: {words}"):
        run({"23Na": Volume(data, GRID)}, links={"23Na": "anatomy"})
    t1w = write_volume(tmp_path / "sub-01_T1w.nii.gz", Volume(data, GRID))
    files = align.TemplateFiles(
        t1w=t1w,
        transform=tmp_path / "xfm.h5",
        brain=tmp_path / "brain.nii.gz",
        record=tmp_path / "record.json",
        roots=Roots(output=tmp_path),
    )
    with pytest.raises(error, match=rf"^sub-01_T1w\.nii\.gz: {words}"):
        align.run_template(files, align.Params())


def test_sessions_meet_halfway_when_asked(run: Run) -> None:
    pose = rigid_from_parameters((4.0, -3.0, 6.0), (5.0, -4.0, 3.0), target="T1w", source="orig")
    for halfway in (False, True):
        found, record = run({"orig": head(pose)}, links={"orig": "anatomy"}, halfway=halfway)
        assert missed(found["orig"], pose) < 0.4
        assert record.values["target_error_mm"]["orig"] < 1.0
