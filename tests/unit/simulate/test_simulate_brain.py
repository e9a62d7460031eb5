"""Digital heads: fractions, lesions, strokes."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.simulate.acquire import VIALS
from bids_sodium.simulate.brain import (
    PARENCHYMA,
    Anatomy,
    AnatomyParams,
    Head,
    StrokeLesion,
    StrokeLesionParams,
    anatomy_of,
    draw_anatomy,
    draw_stroke_lesion,
    healthy_head,
    ms_head,
    rigid,
    sodium_rise_percent,
    stroke_head,
)

COARSE = AnatomyParams(voxel_mm=3.0)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return draw_anatomy(np.random.default_rng(5), AnatomyParams(voxel_mm=2.0))


@pytest.fixture(scope="module")
def lesion(anatomy: Anatomy) -> StrokeLesion:
    return draw_stroke_lesion(anatomy, np.random.default_rng(6))


def total(head: Head) -> np.ndarray:
    return np.sum([volume.data for volume in head.fractions.values()], axis=0)


def test_fractions_are_fractions(anatomy: Anatomy) -> None:
    assert set(anatomy.fractions) == {"CGM", "DGM", "NAWM", "CSF", "vitreous", "soft"}
    assert min(float(array.min()) for array in anatomy.fractions.values()) >= 0
    assert float(sum(anatomy.fractions.values()).max()) <= 1.0 + 1e-5


def test_head_has_plausible_volumes_and_layers(anatomy: Anatomy) -> None:
    ml = {name: float(array.sum()) * anatomy.grid.voxel_ml for name, array in anatomy.fractions.items()}
    intracranial = sum(ml[name] for name in (*PARENCHYMA, "CSF"))
    assert 1150 < intracranial < 1950
    assert 0.4 < (ml["CGM"] + ml["DGM"]) / intracranial < 0.6
    assert 0.10 < ml["CSF"] / intracranial < 0.30
    assert 5 < ml["vitreous"] < 20
    # From the brain's centre outwards along x: brain, then bone (nothing), then scalp, then air.
    centre = tuple(n // 2 for n in anatomy.grid.shape)
    line = {name: array[centre[0] :, centre[1], centre[2]] for name, array in anatomy.fractions.items()}
    inside = sum(line[name] for name in (*PARENCHYMA, "CSF"))
    last_inside, scalp = np.flatnonzero(inside > 0.5)[-1], np.flatnonzero(line["soft"] > 0.5)
    assert scalp[0] - last_inside >= 2
    assert line["soft"][-1] == 0


@pytest.mark.parametrize("seed", range(6))
def test_heads_stay_in_their_frame_and_clear_of_the_vials(seed: int) -> None:
    person = draw_anatomy(np.random.default_rng(seed), COARSE)
    body = sum(person.fractions.values()) > 0.5
    assert not any(body[edge].any() for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1], np.s_[:, :, -1]))
    points = person.grid.world(np.argwhere(body).astype(float))
    for vial in VIALS:
        away = points - np.array(vial.centre_mm)
        gap = np.maximum(np.hypot(away[:, 0], away[:, 1]) - vial.radius_mm, np.abs(away[:, 2]) - vial.length_mm / 2)
        assert gap.min() > 3.0


def test_same_seed_same_person_and_persons_differ() -> None:
    first, again, other = (draw_anatomy(np.random.default_rng(seed), COARSE) for seed in (1, 1, 2))
    assert all(np.array_equal(first.fractions[name], again.fractions[name]) for name in first.fractions)
    assert np.abs(first.fractions["NAWM"] - other.fractions["NAWM"]).mean() > 0.01


def test_coordinates_map_without_folding(anatomy: Anatomy) -> None:
    assert anatomy.mni_mm is not None
    gradient = np.stack([np.gradient(anatomy.mni_mm.astype(float), 2.0, axis=axis) for axis in range(3)], axis=-1)
    jacobian = np.linalg.det(gradient)
    assert jacobian.min() > 0.3
    assert jacobian.max() < 3.0


def test_lesions_of_ms_come_out_of_white_matter(anatomy: Anatomy) -> None:
    healthy = healthy_head(anatomy)
    sick = ms_head(anatomy, np.random.default_rng(0), lesion_ml=8.0)
    assert np.allclose(total(sick), total(healthy), atol=1e-5)
    lost = healthy.volume_ml("NAWM") - sick.volume_ml("NAWM")
    assert lost == pytest.approx(sick.volume_ml("T1iso") + sick.volume_ml("T1hypo"), rel=1e-4)
    assert lost == pytest.approx(8.0, rel=0.25)
    assert 0 < sick.volume_ml("T1hypo") < sick.volume_ml("T1iso")
    assert not (sick.masks["T1hypo"] & ~sick.masks["T2lesion"]).any()
    for name in ("CGM", "DGM", "CSF"):
        assert np.array_equal(sick.fractions[name].data, healthy.fractions[name].data)


def test_lesions_of_ms_gather_round_the_ventricles(anatomy: Anatomy) -> None:
    assert anatomy.ventricle_mm is not None
    sick = [ms_head(anatomy, np.random.default_rng(seed), lesion_ml=15.0).masks["T2lesion"] for seed in range(4)]
    white = anatomy.fractions["NAWM"] > 0.8
    near = np.mean([np.median(anatomy.ventricle_mm[mask]) for mask in sick])
    assert near < 0.6 * np.median(anatomy.ventricle_mm[white])


def test_lesion_volume_asked_for_is_reached_over_its_range(anatomy: Anatomy) -> None:
    for wanted in (2.0, 20.0):
        head = ms_head(anatomy, np.random.default_rng(3), lesion_ml=wanted)
        assert head.volume_ml("T1iso") + head.volume_ml("T1hypo") == pytest.approx(wanted, rel=0.3)


def test_stroke_stays_on_its_side_and_overlaps_as_wanted(anatomy: Anatomy, lesion: StrokeLesion) -> None:
    assert anatomy.mni_mm is not None
    sign = -1.0 if lesion.side == "left" else 1.0
    dead = anatomy.parenchyma * lesion.necrosis >= 0.5
    for hours, visit in ((12.0, 0), (50.0, 1)):
        head = stroke_head(anatomy, lesion, hours)
        wet = head.masks["ionic"]
        for part in (wet & dead, wet & ~dead, dead & ~wet):
            assert part.sum() * anatomy.grid.voxel_ml >= 1.0
        for region in (wet, dead, head.masks["cytotoxic"]):
            assert (sign * anatomy.mni_mm[..., 0][region] > 0).all()
        assert head.masks["cytotoxic"].sum() > wet.sum()
        assert lesion.cytotoxic[visit].max() <= 1.0
    early, late = (stroke_head(anatomy, lesion, hours).masks["ionic"].sum() for hours in (12.0, 50.0))
    assert early < late


@pytest.mark.parametrize("side", ["left", "right"])
def test_side_can_be_chosen(anatomy: Anatomy, side: str) -> None:
    assert draw_stroke_lesion(anatomy, np.random.default_rng(0), side=side).side == side


def test_stroke_moves_volume_but_makes_none(anatomy: Anatomy, lesion: StrokeLesion) -> None:
    healthy = total(healthy_head(anatomy))
    for hours in (12.0, 50.0, 2160.0):
        assert np.allclose(total(stroke_head(anatomy, lesion, hours)), healthy, atol=1e-5)


def test_rise_is_the_papers_curve() -> None:
    p = StrokeLesionParams()
    half_h = float(np.exp(p.gamma / p.delta))
    assert sodium_rise_percent(half_h) == pytest.approx(p.alpha_percent / 2)
    assert sodium_rise_percent(1e9) == pytest.approx(p.alpha_percent, rel=1e-3)
    assert sodium_rise_percent(60.0) == pytest.approx(58.9, abs=0.1)


def test_rigid_is_a_rotation() -> None:
    matrix = rigid(np.array([10.0, -20.0, 30.0]), np.array([1.0, 2.0, 3.0]))
    assert np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3))
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0)


def test_given_fractions_make_a_head_and_wrong_ones_do_not() -> None:
    grid = Grid.centred((6, 6, 6), 2.0)
    half = Volume(np.full(grid.shape, 0.5, dtype=np.float32), grid, "1")
    head = healthy_head(anatomy_of({"NAWM": half, "CSF": half}), {"NAWM": 30.0})
    assert head.true_mmol_l("NAWM") == 30.0
    assert head.volume_ml("CSF") == pytest.approx(0.5 * 216 * 0.008)
    with pytest.raises(DataError, match="sum"):
        anatomy_of({"NAWM": half, "CSF": half, "CGM": half})
    with pytest.raises(DataError, match="lattices"):
        anatomy_of({"NAWM": half, "CSF": Volume(half.data, Grid.centred((6, 6, 6), 3.0), "1")})
    with pytest.raises(DataError, match="no sodium concentration for unknown"):
        healthy_head(anatomy_of({"unknown": half}))
    with pytest.raises(DataError, match="at least one"):
        anatomy_of({})
    with pytest.raises(DataError, match="no white matter"):
        ms_head(anatomy_of({"NAWM": half}), np.random.default_rng(0))
    with pytest.raises(DataError, match="MNI152"):
        draw_stroke_lesion(anatomy_of({"NAWM": half}), np.random.default_rng(0))
