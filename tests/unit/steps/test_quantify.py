"""The step from a sodium image to mmol/L: what it writes, what it corrects and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_sodium.bidsio.calibration import FACTOR_KEY
from bids_sodium.bidsio.derivatives import Roots
from bids_sodium.bidsio.files import read_volume, write_volume
from bids_sodium.core.constants import AGAR
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.image.calibration import CalibrationParams
from bids_sodium.image.denoising import DenoisingParams
from bids_sodium.image.transmit import transmit_factor
from bids_sodium.steps import quantify
from bids_sodium.steps._fields import transmit_field
from bids_sodium.steps.records import Record, read_record, write_record

GRID = Grid.centred((36, 36, 28), 6.0)
X, Y, Z = np.moveaxis(GRID.world(np.moveaxis(np.indices(GRID.shape), 0, -1).astype(float)), -1, 0)
HEAD = (X / 60) ** 2 + (Y / 70) ** 2 + (Z / 70) ** 2 < 1
GAIN, SIGMA = 5.0, 2.0
TIMING = {"te_ms": 0.3, "tr_ms": 120.0, "flip_deg": 90.0}


def vial(centre_mm: float, *, along_mm: float = 0.0) -> np.ndarray:
    return np.asarray(((X - centre_mm) ** 2 + (Y - along_mm) ** 2 < 14.0**2) & (np.abs(Z) < 50))


LOW, HIGH = vial(-84.0), vial(84.0)
SCENE = np.where(HEAD, 40.0 * GAIN, 0.0) + np.where(LOW, 40.0 * GAIN, 0.0) + np.where(HIGH, 80.0 * GAIN, 0.0)
Run = Callable[..., tuple[dict[str, Any], np.ndarray, Record]]


def noisy(scene: np.ndarray, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    noise = SIGMA * (rng.standard_normal(scene.shape) + 1j * rng.standard_normal(scene.shape))
    return Volume(np.abs(scene + noise).astype(np.float32), GRID)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs the step on a scene and returns sidecar, map and record."""

    def step(
        scene: np.ndarray = SCENE,
        *,
        calibration: CalibrationParams | None = None,
        metadata: dict[str, Any] | None = None,
        masks: dict[str, np.ndarray] | None = None,
        maps: dict[str, Volume] | None = None,
        known: dict[str, Any] | None = None,
        **files: Any,
    ) -> tuple[dict[str, Any], np.ndarray, Record]:
        calibration = calibration or CalibrationParams()
        write_volume(tmp_path / "na.nii.gz", noisy(scene))
        values = {"sigma": SIGMA, "floor_removed": False, "fwhm_mm": 9.5, **TIMING, **(known or {})}
        write_record(tmp_path / "known.json", Record(values=values))
        write_volume(tmp_path / "head.nii.gz", Volume(HEAD, GRID), dtype=np.uint8)
        given = []
        for label, mask in (masks or {}).items():
            given.append((label, tmp_path / f"{label}.nii.gz"))
            write_volume(given[-1][1], Volume(mask, GRID), dtype=np.uint8)
        for name, image in (maps or {}).items():
            write_volume(tmp_path / f"{name}.nii.gz", image)
        labels = quantify.labels(metadata or {}, calibration)
        quantify.run(
            quantify.Files(
                magnitude=tmp_path / "na.nii.gz",
                real=None,
                kspace=None,
                reconstruct_record=tmp_path / "known.json",
                head=tmp_path / "head.nii.gz",
                vials=tuple(given),
                denoised=tmp_path / "denoised.nii.gz",
                tsc=tmp_path / "tsc.nii.gz",
                tsc_se=tmp_path / "se.nii.gz",
                vial_masks=tuple(tmp_path / f"found-{label}.nii.gz" for label in labels),
                record=tmp_path / "record.json",
                roots=Roots(output=tmp_path),
                fields=quantify.FieldFiles(
                    tb1map=tmp_path / "tb1.nii.gz" if maps and "tb1" in maps else None,
                    rb1map=tmp_path / "rb1.nii.gz" if maps and "rb1" in maps else None,
                    tb1_sidecar=files.pop("tb1_sidecar", {}),
                ),
                **files,
            ),
            quantify.Params(calibration=calibration, denoising=DenoisingParams(method="off"), metadata=metadata or {}),
        )
        sidecar = json.loads((tmp_path / "tsc.json").read_text(encoding="utf-8"))
        return sidecar, np.asarray(read_volume(tmp_path / "tsc.nii.gz").data), read_record(tmp_path / "record.json")

    return step


def measures(record: Record) -> dict[str, float]:
    return {measure.name: measure.value for measure in record.measures}


def phantoms(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"SodiumCalibration": {"Phantoms": list(rows)}}


INNER = HEAD & ((X / 45) ** 2 + (Y / 55) ** 2 + (Z / 55) ** 2 < 1)


def test_a_head_of_forty_reads_forty_and_says_how(run: Run) -> None:
    sidecar, tsc, record = run()
    assert np.median(tsc[INNER]) == pytest.approx(40.0, rel=0.02)
    told = sidecar["Calibration"]
    assert told["Source"] == "vials"
    assert told["VialsFrom"] == "found automatically"
    assert record.values["slope"] == pytest.approx(1 / GAIN, rel=0.02)
    assert measures(record)["vial_core_phantom40"] == pytest.approx(40 * GAIN, rel=0.05)
    assert record.warnings == []


def test_the_place_of_every_vial_is_written_for_the_steps_after(run: Run) -> None:
    rows = [{"Concentration": c, "InnerDiameter": d} for c, d in ((40, 28), (80, 28))]
    for metadata, origin in ((phantoms(*rows), "InnerDiameter"), ({}, "mask")):
        _, _, record = run(metadata=metadata)
        places = record.values["VialPlaces"]
        assert [place["label"] for place in places] == ["phantom40", "phantom80"]
        for place, centre in zip(places, (-84.0, 84.0), strict=True):
            assert np.allclose(place["centre_mm"], [centre, 0.0, 0.0], atol=4.0)
            assert abs(place["axis"][2]) > 0.99
            assert place["radius_mm"] == pytest.approx(14.0, abs=2.0)
            assert place["length_mm"] == pytest.approx(100.0, abs=13.0)
            assert place["radius_from"] == origin
            assert place["relaxation"]["t1_ms"] == AGAR.t1_ms


def test_a_scanner_factor_multiplies_concentrations_and_is_told(run: Run) -> None:
    _, plain, before = run()
    factor = {FACTOR_KEY: {"Scanner": "A", "Factor": 1.1, "StandardError": 0.03}}
    sidecar, tsc, record = run(metadata=factor)
    assert np.allclose(tsc[INNER], 1.1 * plain[INNER], rtol=1e-5)
    assert record.values["slope_se"] > before.values["slope_se"]
    assert sidecar["Calibration"]["ScannerFactor"]["scanner"] == "A"
    assert any("factor 1.1 of scanner A" in text for text in record.warnings)
    with pytest.raises(DataError, match="has the factor -1"):
        run(metadata={FACTOR_KEY: {"Factor": -1}})
    with pytest.raises(DataError, match=FACTOR_KEY):
        run(metadata={FACTOR_KEY: "1.1"})


FIELD = 1.0 + 0.15 * X / 100.0 - 0.1 * (Y / 100.0) ** 2


def seen_through(field: np.ndarray) -> np.ndarray:
    """Return the scene as a transmit field other than the nominal one makes it."""
    return SCENE / np.asarray(transmit_factor(field, t1_ms=35.0, tr_ms=TIMING["tr_ms"], flip_deg=90.0))


@pytest.mark.parametrize("unit", ["1", "percent", "degree"])
def test_a_transmit_map_takes_off_what_the_flip_angle_did(run: Run, unit: str) -> None:
    scale = {"1": 1.0, "percent": 100.0, "degree": 60.0}[unit]
    field = np.clip(FIELD - 0.35, 0.5, 1.0)
    sidecar, tsc, record = run(
        seen_through(field),
        maps={"tb1": Volume((scale * field).astype(np.float32), GRID)},
        tb1_sidecar={"Units": unit, "FlipAngle": 60},
    )
    assert np.abs(tsc[INNER] / 40.0 - 1.0).mean() < 0.03
    assert sidecar["Calibration"]["FieldCorrections"] == ["transmit map"]
    assert 0.5 < measures(record)["transmit_median"] < 1.0
    _, bent, _ = run(seen_through(field), calibration=CalibrationParams(transmit="off"))
    assert np.std(bent[INNER]) > 1.5 * np.std(tsc[INNER])


def test_two_flip_angles_make_a_transmit_map(run: Run, tmp_path: Path) -> None:
    field = np.clip(FIELD - 0.35, 0.5, 1.0)
    body = HEAD | LOW | HIGH
    for name, times in (("one", 1), ("two", 2)):
        signal = np.where(body, 100.0 * np.sin(times * np.deg2rad(45.0) * field), 0.0)
        write_volume(tmp_path / f"{name}.nii.gz", Volume(signal.astype(np.float32), GRID))
    angles = tuple(tmp_path / f"{name}.nii.gz" for name in ("one", "two"))
    fields = quantify.FieldFiles(angles=angles, tb1_sidecar={"FlipAngle": 45})
    found = transmit_field(fields, GRID)
    assert found is not None
    assert np.abs(found.relative / field - 1.0)[INNER].max() < 0.02
    with pytest.raises(DataError, match="FlipAngle is missing"):
        transmit_field(replace(fields, tb1_sidecar={}), GRID)


def test_two_phases_make_a_transmit_map(tmp_path: Path) -> None:
    field = np.clip(FIELD - 0.2, 0.6, 1.2)
    x = np.deg2rad(90.0 * field)
    for name, sign in (("one", 1.0), ("two", -1.0)):
        signal = np.where(HEAD, np.sin(x) * np.cos(2 * x) + sign * 1j * np.sin(2 * x), 0.0)
        write_volume(tmp_path / f"{name}-mag.nii.gz", Volume(np.abs(signal).astype(np.float32), GRID))
        write_volume(tmp_path / f"{name}-phase.nii.gz", Volume(np.angle(signal).astype(np.float32), GRID))
    fields = quantify.FieldFiles(
        angles=tuple(tmp_path / f"{name}-mag.nii.gz" for name in ("one", "two")),
        phases=tuple(tmp_path / f"{name}-phase.nii.gz" for name in ("one", "two")),
        tb1_sidecar={"FlipAngle": 90},
    )
    found = transmit_field(fields, GRID)
    assert found is not None
    assert np.abs(found.relative / field - 1.0)[INNER].max() < 0.02
    write_volume(tmp_path / "two-phase.nii.gz", Volume(np.where(HEAD, 4095.0, 0.0).astype(np.float32), GRID))
    with pytest.raises(DataError, match="runs over 4095"):
        transmit_field(fields, GRID)


def test_a_receive_map_flattens_the_image(run: Run) -> None:
    profile = np.exp(X / 150.0)
    coarse = Grid.centred((30, 30, 24), 8.0)
    x = coarse.world(np.moveaxis(np.indices(coarse.shape), 0, -1).astype(float))[..., 0]
    maps = {"rb1": Volume((7.0 * np.exp(x / 150.0)).astype(np.float32), coarse)}
    sidecar, tsc, _ = run(SCENE * profile, maps=maps)
    assert np.abs(tsc[INNER] / 40.0 - 1.0).mean() < 0.03
    assert sidecar["Calibration"]["FieldCorrections"] == ["receive map"]


def test_a_bias_is_read_from_the_image_and_its_doubt_is_carried(run: Run) -> None:
    profile = np.exp(X / 250.0 + (Y / 150.0) ** 2)
    plain = run(SCENE * profile)[1]
    sidecar, tsc, record = run(SCENE * profile, calibration=CalibrationParams(receive="bias"))
    assert np.std(tsc[INNER]) < 0.4 * np.std(plain[INNER])
    assert "from the image alone" in sidecar["Calibration"]["FieldCorrections"][0]
    assert any("smooth as a sensitivity" in text for text in record.warnings)


def test_a_short_repetition_time_is_told_with_the_size_of_the_error(run: Run) -> None:
    _, _, record = run(known={"tr_ms": 40.0})
    assert any("TR 40 ms is short against T1" in text and "% longer changes" in text for text in record.warnings)


def test_a_free_line_is_reported_with_its_intercept(run: Run) -> None:
    sidecar, _, record = run(SCENE + 50.0, calibration=CalibrationParams(line="intercept"))
    assert record.values["intercept"] == pytest.approx(-10.0, abs=1.5)
    assert measures(record)["calibration_intercept"] == pytest.approx(record.values["intercept"])
    assert sidecar["Calibration"]["Line"] == "intercept"


def test_clipped_voxels_are_counted_and_do_not_lower_the_scale(run: Run) -> None:
    clipped = np.argwhere(HIGH & (np.abs(Z) < 10) & (X > 84))
    scene = SCENE.copy()
    scene[tuple(clipped.T)] = 300.0
    _, _, record = run(scene, known={"clipped": clipped.tolist()})
    assert record.values["slope"] == pytest.approx(1 / GAIN, rel=0.03)
    assert measures(record)["vial_saturated_phantom80"] == len(clipped)


# ---- what cannot be right ---------------------------------------------------------------------------------------


def test_given_masks_must_be_of_every_vial_apart_and_not_swapped(run: Run) -> None:
    with pytest.raises(DataError, match="no mask for vial phantom80"):
        run(masks={"phantom40": LOW})
    with pytest.raises(DataError, match="phantom40 and phantom80 share"):
        run(masks={"phantom40": LOW, "phantom80": LOW | HIGH})
    with pytest.raises(EstimationError, match="vial of 40 mmol/L is brighter"):
        run(masks={"phantom40": HIGH, "phantom80": LOW})
    with pytest.raises(DataError, match="phantom40: the mask of vial 1 is empty"):
        run(masks={"phantom40": np.zeros_like(LOW), "phantom80": HIGH})
    sidecar, _, _ = run(masks={"phantom40": LOW, "phantom80": HIGH})
    assert sidecar["Calibration"]["VialsFrom"] == "mask given"


def test_three_named_and_two_found_is_refused_with_both_numbers(run: Run) -> None:
    with pytest.raises(EstimationError, match="3 vials are named but 2 found") as caught:
        run(calibration=CalibrationParams(vial_mmol_l=(40.0, 60.0, 80.0)))
    assert "--calibration csf" in caught.value.hint


def test_one_vial_missing_from_the_field_of_view_is_refused(run: Run) -> None:
    with pytest.raises(EstimationError, match="2 vials are named but 1 found"):
        run(np.where(HIGH, 0.0, SCENE))


def test_a_vial_at_the_border_is_told(run: Run) -> None:
    scene = np.where(HIGH, 0.0, SCENE) + np.where(vial(103.0), 80.0 * GAIN, 0.0)
    _, _, record = run(scene)
    assert any("phantom80 reaches the border" in text for text in record.warnings)


@pytest.mark.parametrize(
    ("concentration", "words"),
    [(0, "not a positive number"), (0.04, "looks like mol/L"), (2.3, "looks like per mille")],
)
def test_concentrations_that_are_none_are_refused(run: Run, concentration: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(metadata=phantoms({"Concentration": concentration}, {"Concentration": 80}))


def test_a_flat_image_is_refused(run: Run) -> None:
    with pytest.raises(DataError, match="SodiumCalibration has no list Phantoms"):
        run(metadata={"SodiumCalibration": {"Phantoms": []}})
    with pytest.raises(EstimationError, match="2 vials are named but 0 found"):
        run(np.full(GRID.shape, 100.0))


def test_an_internal_reference_needs_its_fluid(run: Run) -> None:
    for source, needs in (("csf", "a T1w image"), ("vitreous", "a mask label-vitreous_mask")):
        with pytest.raises(DataError, match=needs):
            run(calibration=CalibrationParams(source=source))  # type: ignore[arg-type]


def test_an_internal_reference_sets_the_scale_and_is_named_everywhere(run: Run, tmp_path: Path) -> None:
    eyes = ((X - 0.0) ** 2 + (Y - 20.0) ** 2 + Z**2) < 26.0**2
    scene = np.where(eyes, 146.7 * GAIN / 1.1, SCENE)
    write_volume(tmp_path / "eyes.nii.gz", Volume(eyes, GRID), dtype=np.uint8)
    fluid = quantify.FluidFiles(fluid=tmp_path / "eyes.nii.gz", frame="23Na", transform=None, brain=None,
                                align_record=None)  # fmt: skip
    params = CalibrationParams(source="vitreous")
    assert quantify.labels({}, params) == ()
    sidecar, tsc, record = run(scene, calibration=params, fluid=fluid)
    # CSF-like fluid recovers less than tissue: its signal is that of fewer mmol/L
    assert np.median(tsc[INNER & ~eyes]) == pytest.approx(40.0, rel=0.12)
    for text in (sidecar["Description"], sidecar["Calibration"]["Source"], record.values["calibration_source"]):
        assert "internal reference: vitreous body" in text
    assert any("internal reference" in text for text in record.warnings)
    assert record.values["slope_se"] / record.values["slope"] > 0.022
