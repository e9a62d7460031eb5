"""The model of a scan: tissues and vials come back together, and what is not known is said."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from bids_sodium.core.constants import AGAR, relaxation_of
from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.recon.solvers import ReconstructionParams, phase_corrected_real, reconstruct
from bids_sodium.recon.trajectory import from_description
from bids_sodium.simulate.acquire import Vial, simulate_kspace
from bids_sodium.simulate.brain import rigid
from bids_sodium.steps._model import Scan, ScanModel, VialPlace, scan_model
from bids_sodium.steps._tissues import judge
from bids_sodium.steps.records import Record
from bids_sodium.tissue.partialvolume import PartialVolumeParams

PROTOCOL = {
    "Type": "DA-3DPR", "Spokes": 2600, "Samples": 128, "MaxGradient": 1.5, "ReadoutTime": 0.02,
    "NominalVoxelSize": 8.0, "SpokeOrder": "golden",
}  # fmt: skip
GRID = Grid.centred((32, 32, 32), 8.0)
TRUE = {"CGM": 40.0, "NAWM": 32.0, "CSF": 140.0}
POSE = rigid(np.array([4.0, -6.0, 9.0]), np.array([3.0, -5.0, 2.0]))
TIMING = {"te_ms": 0.3, "tr_ms": 100.0, "flip_deg": 90.0}
ROD = Vial(name="phantom80", mmol_l=80.0, centre_mm=(-92.0, 20.0, 6.0), radius_mm=14.0, length_mm=80.0)
METHODS = ("raw", "csf", "glm", "local", "kspace", "kspace-density", "paper")


def maps() -> dict[str, Volume]:
    lattice = Grid.centred((56, 64, 56), 2.5)
    points = lattice.world(np.indices(lattice.shape).transpose(1, 2, 3, 0).astype(float))
    r = np.sqrt((points**2 / np.array([55.0, 66.0, 52.0]) ** 2).sum(-1))
    hole = np.sqrt(((points - [0.0, 8.0, 4.0]) ** 2 / np.array([14.0, 26.0, 14.0]) ** 2).sum(-1))
    whole, inner, ventricle = r < 1.0, r < 0.75, hole < 1.0
    parts = {"CGM": whole & ~inner, "NAWM": inner & ~ventricle, "CSF": ventricle}
    return {name: Volume(part.astype(np.float32), lattice) for name, part in parts.items()}


@cache
def scan(**more: Any) -> Scan:
    trajectory = from_description(PROTOCOL)
    kspace = simulate_kspace(
        maps(), TRUE, trajectory=trajectory, grid=GRID, snr=30.0, rng=np.random.default_rng(0),
        na_from_fractions=POSE, vials=(ROD,), gain=5.0, phase_rad=1.0, **TIMING, **more,
    )  # fmt: skip
    solution = reconstruct(kspace)
    to_mmol_l = 1.0 / (5.0 * relaxation_of("GM").signal_fraction(**TIMING))
    real = phase_corrected_real(solution.image, GRID).astype(np.float64) * to_mmol_l
    return Scan(
        image=Volume(real, GRID, "mmol/L"),
        smooth=Volume(np.abs(solution.image) * to_mmol_l, GRID, "mmol/L"),
        kspace=kspace,
        fits_samples=True,
        reconstruction=ReconstructionParams(),
        offset_hz=solution.offset_hz,
        protocol={},
        timing=TIMING,
        vials=[
            VialPlace(
                label=ROD.name,
                mmol_l=ROD.mmol_l,
                centre_mm=np.add(ROD.centre_mm, [0.0, 0.0, 2.0]),  # its mask ends 4 mm too high
                axis=np.array([0.0, 0.0, 1.0]),
                radius_mm=ROD.radius_mm,
                length_mm=ROD.length_mm + 4.0,
                relaxation=AGAR,
            )
        ],
        to_mmol_l=to_mmol_l,
        sigma=solution.sigma * to_mmol_l,
        fwhm_mm=14.0,
    )


def model(known: Scan, **more: Any) -> ScanModel:
    params = PartialVolumeParams(methods=METHODS)
    return scan_model(maps(), POSE, known, params, target_error_mm=more.get("target_error_mm", 0.3))


@cache
def whole() -> ScanModel:
    return model(scan())


@pytest.mark.parametrize("method", ["glm", "local", "kspace", "kspace-density"])
def test_tissues_and_vials_come_back_together(method: str) -> None:
    here = whole()
    found = here.corrected(method, PartialVolumeParams())  # type: ignore[arg-type]
    for name, value in TRUE.items():
        assert abs(found.of(name)[0] - value) < 3.0 * np.sqrt(found.parts["noise"][found.names.index(name)] ** 2 + 0.1)
    assert here.vial_mmol_l["phantom80"] == pytest.approx(80.0, rel=0.02)
    assert here.exact


def test_every_doubt_widens_the_error() -> None:
    found = whole().corrected("glm", PartialVolumeParams())
    assert set(found.parts) == {"noise", "segmentation", "registration"}
    np.testing.assert_allclose(found.se**2, sum(part**2 for part in found.parts.values()))
    sure = model(replace(scan(), fits_samples=False), target_error_mm=0.0)
    assert "registration" not in sure.corrected("glm", PartialVolumeParams()).parts
    assert sure.samples is None


def test_maps_in_a_wrong_place_are_moved_or_doubted() -> None:
    off = POSE @ rigid(np.array([1.5, -2.0, 1.0]), np.array([2.5, -2.0, 3.0]))
    known = replace(scan(), fits_samples=False)
    stays = PartialVolumeParams(methods=("glm",), least_motion_mm=np.inf)
    right = model(known)
    moved = scan_model(maps(), off, known, PartialVolumeParams(methods=("glm",)), target_error_mm=0.3)
    kept = scan_model(maps(), off, known, stays, target_error_mm=0.3)
    assert (right.moved, moved.moved, kept.moved) == (False, True, False)
    assert right.pose.moved_mm < 0.5
    assert moved.pose.moved_mm == pytest.approx(np.linalg.norm([2.5, 2.0, 3.0]), rel=0.2)
    best, corrected, wrong = (each.corrected("glm", stays) for each in (right, moved, kept))
    for name in TRUE:
        assert corrected.of(name)[0] == pytest.approx(best.of(name)[0], abs=1.0), name
    assert abs(wrong.of("CSF")[0] - TRUE["CSF"]) > 3.0
    assert (wrong.parts["registration"] > 3.0 * best.parts["registration"]).all()


def test_a_carrier_off_the_centre_is_taken_off_the_samples() -> None:
    """The image is made after the shift; a fit to the samples must see them on the same carrier."""
    shifted = scan(off_resonance_hz=15.0)
    assert shifted.offset_hz == pytest.approx(15.0, abs=1.0)
    found = model(shifted).corrected("kspace", PartialVolumeParams())
    for name, value in TRUE.items():
        assert found.of(name)[0] == pytest.approx(value, abs=1.5), name


def test_images_alone_are_modelled_by_protocol_or_width() -> None:
    alone = replace(scan(), kspace=None, fits_samples=False, vials=())
    stated = model(replace(alone, protocol=PROTOCOL))
    guessed = model(alone)
    assert stated.exact
    assert "protocol" in stated.how
    assert not guessed.exact
    assert "Gaussian of 14.00 mm" in guessed.how
    error = {
        kind: abs(here.corrected("glm", PartialVolumeParams()).of("CSF")[0] - TRUE["CSF"])
        for kind, here in (("stated", stated), ("guessed", guessed))
    }
    assert error["stated"] < error["guessed"]
    known, unknown = Record(), Record()
    judge(stated, known)
    judge(guessed, unknown)
    assert [next(m.value for m in said.measures if m.name == "psf_known") for said in (known, unknown)] == [1.0, 0.0]
    assert not any("NonCartesianTrajectory" in text for text in known.warnings)
    assert any("mmol/L too low; state NonCartesianTrajectory in the sidecar" in text for text in unknown.warnings)


def test_the_chain_of_the_paper_is_its_own_columns_and_image() -> None:
    here = whole()
    assert here.paper is not None
    image, columns = here.paper
    assert not np.allclose(columns, here.shares)
    found = here.corrected("paper", PartialVolumeParams())
    by_hand = replace(here, image=image, columns=columns).corrected("csf", PartialVolumeParams())
    np.testing.assert_array_equal(found.mmol_l, by_hand.mmol_l)
    assert found.method == "paper"


def test_maps_that_are_no_fractions_are_refused() -> None:
    known = replace(scan(), kspace=None, fits_samples=False, vials=())
    for factor, said in ((1.4, "add up to 1.4"), (255.0, "add up to 255")):
        wrong = {name: part.with_data(np.asarray(part.data) * np.float32(factor)) for name, part in maps().items()}
        with pytest.raises(DataError, match=said):
            scan_model(wrong, POSE, known, PartialVolumeParams(), target_error_mm=0.3)
    holes = maps()
    holes["CSF"] = holes["CSF"].with_data(np.full_like(holes["CSF"].data, np.nan))
    with pytest.raises(DataError, match="the map of CSF holds NaN"):
        scan_model(holes, POSE, known, PartialVolumeParams(), target_error_mm=0.3)
