"""What the simulator states is what its scans hold."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.data import Grid, KSpace, Trajectory
from bids_sodium.recon.density import sample_weights
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.trajectory import density_adapted_radial
from bids_sodium.simulate.acquire import (
    VIALS,
    relaxation_in_head,
    simulate_kspace,
    to_scanner,
    vial_fraction,
)
from bids_sodium.simulate.brain import (
    Anatomy,
    AnatomyParams,
    Head,
    StrokeLesionParams,
    draw_anatomy,
    draw_stroke_lesion,
    ms_head,
    rigid,
    sodium_rise_percent,
    stroke_head,
)

TIMING = {"te_ms": 0.2, "tr_ms": 100.0, "flip_deg": 90.0}
GRID = Grid.centred((44, 44, 44), 6.0)
SPOKES = density_adapted_radial(4000, 96, gradient_mt_m=1.2, readout_ms=20.0, voxel_mm=6.0)
POSE = rigid(np.array([4.0, -3.0, 5.0]), np.array([5.0, -4.0, 3.0]))


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return draw_anatomy(np.random.default_rng(11), AnatomyParams(voxel_mm=2.0))


@pytest.fixture(scope="module")
def head(anatomy: Anatomy) -> Head:
    return ms_head(anatomy, np.random.default_rng(12), {"CGM": 43.0, "NAWM": 35.0}, lesion_ml=15.0)


def scan(head: Head, snr: float, seed: int = 0, **more: object) -> KSpace:
    options = {"trajectory": SPOKES, "grid": GRID, "na_from_fractions": POSE, **TIMING, **more}
    return simulate_kspace(head.fractions, head.mmol_l, snr=snr, rng=np.random.default_rng(seed), **options)


def factor(name: str) -> float:
    return relaxation_in_head(name).signal_fraction(**TIMING)


def test_signal_to_noise_is_as_stated(head: Head) -> None:
    weights = sample_weights(SPOKES, GRID)
    operator = Nufft(SPOKES, GRID)
    clean = operator.gridded(scan(head, np.inf).samples[0] * weights)
    white = to_scanner(np.asarray(head.fractions["NAWM"].data), head.grid, GRID, np.linalg.inv(POSE)) > 0.98
    assert white.sum() > 100
    signal = float(np.abs(clean[white]).mean())
    # Decay along the readout and the point spread cost a few percent of the signal that the ratio speaks of.
    assert signal == pytest.approx(35.0 * factor("NAWM"), rel=0.08)
    for snr in (10.0, 20.0):
        noise = operator.gridded(scan(head, snr).samples[0] * weights) - clean
        expected = 35.0 * factor("NAWM") / snr
        assert noise.real.std() == pytest.approx(expected, rel=0.02)
        assert noise.imag.std() == pytest.approx(expected, rel=0.02)


def test_total_sodium_stands_at_the_centre_of_kspace(head: Head) -> None:
    centre = Trajectory(np.zeros((1, 1, 3)), np.zeros(1))
    sample = scan(head, np.inf, trajectory=centre).samples[0, 0, 0]
    expected = sum(head.true_mmol_l(name) * head.volume_ml(name) * 1000.0 * factor(name) for name in head.fractions)
    expected += sum(
        v.mmol_l * np.pi * v.radius_mm**2 * v.length_mm * v.relaxation.signal_fraction(**TIMING) for v in VIALS
    )
    assert sample.real == pytest.approx(expected, rel=1e-4)
    assert abs(sample.imag) < 1e-4 * expected


def test_vials_read_their_concentration(head: Head) -> None:
    image = np.abs(Nufft(SPOKES, GRID).gridded(scan(head, np.inf).samples[0] * sample_weights(SPOKES, GRID)))
    signals = []
    for vial in VIALS:
        core = vial_fraction(vial, GRID) > 0.99
        assert core.sum() > 5
        signals.append(image[core].mean() / (vial.mmol_l * vial.relaxation.signal_fraction(**TIMING)))
    assert signals[0] == pytest.approx(signals[1], rel=0.03)
    assert signals[0] == pytest.approx(0.9, abs=0.12)


def test_true_concentrations_come_back_from_noisy_kspace(head: Head) -> None:
    # The forward model here is another one: fractions interpolated linearly onto a lattice of the sodium frame, and the
    # triangle of that interpolation taken out again in k-space.
    fine = GRID.with_voxel(2.0)
    operator = Nufft(SPOKES, fine)
    triangle = (np.sinc(2.0 * SPOKES.k_per_mm @ POSE[:3, :3]) ** 2).prod(axis=-1)
    names = ["CGM", "NAWM", "CSF", "T1iso", "soft", "vitreous", "vials"]
    columns = []
    for name in names:
        if name == "vials":
            density = sum(v.mmol_l * vial_fraction(v, fine) for v in VIALS)
            blur = np.sinc(2.0 * SPOKES.k_per_mm).prod(axis=-1)
            material = VIALS[0].relaxation
        else:
            parts = {"CGM": ("CGM", "DGM"), "T1iso": ("T1iso", "T1hypo")}.get(name, (name,))
            density = np.asarray(sum(np.asarray(head.fractions[part].data) for part in parts))
            density = to_scanner(density, head.grid, fine, np.linalg.inv(POSE))
            material, blur = relaxation_in_head(name), triangle
        steady = material.signal_fraction(te_ms=0.0, tr_ms=100.0, flip_deg=90.0)
        columns.append((operator.forward(density) / blur * steady * material.decay.at(0.2 + SPOKES.t_ms)).ravel())
    matrix = np.stack(columns, axis=-1)
    root = np.sqrt(sample_weights(SPOKES, GRID)).ravel()
    both = np.concatenate([(matrix * root[:, None]).real, (matrix * root[:, None]).imag])
    measured = scan(head, 20.0).samples[0].ravel() * root
    found = np.linalg.lstsq(both, np.concatenate([measured.real, measured.imag]), rcond=None)[0]
    got = dict(zip(names, found, strict=True))
    grey = ("CGM", "DGM")
    true_grey = sum(head.true_mmol_l(n) * head.volume_ml(n) for n in grey) / sum(head.volume_ml(n) for n in grey)
    assert got["CGM"] == pytest.approx(true_grey, abs=0.5)
    assert got["NAWM"] == pytest.approx(35.0, abs=0.3)
    assert got["CSF"] == pytest.approx(140.0, abs=1.0)
    assert got["soft"] == pytest.approx(25.0, abs=0.3)
    assert got["vials"] == pytest.approx(1.0, abs=0.01)
    lesions = [head.true_mmol_l(name) for name in ("T1iso", "T1hypo")]
    assert min(lesions) - 3 < got["T1iso"] < max(lesions) + 3


def test_ionic_oedema_rises_along_the_curve(anatomy: Anatomy) -> None:
    p = StrokeLesionParams(converting_factor=1.0)
    lesion = draw_stroke_lesion(anatomy, np.random.default_rng(1), p)
    for hours in (8.0, 20.0, 30.0, 60.0):
        head = stroke_head(anatomy, lesion, hours, params=p)
        core = np.asarray(head.fractions["ionic"].data) > 0.99
        concentration = np.asarray(head.mmol_l["ionic"])[core]
        healthy = (
            sum(anatomy.fractions[name][core] * c for name, c in (("CGM", 40.63), ("DGM", 34.83), ("NAWM", 32.03)))
            / anatomy.parenchyma[core]
        )
        rise = 100.0 * (concentration / healthy - 1.0)
        assert rise == pytest.approx(sodium_rise_percent(hours) * lesion.rise_factor, rel=1e-3)
        assert head.sodium_change_percent is not None
        assert head.adc_change_percent is not None
        assert head.adc_change_percent.min() == pytest.approx(lesion.adc_plateau_percent, rel=1e-5)


def test_moving_the_head_turns_the_phase_and_nothing_else(head: Head) -> None:
    moved = rigid(np.zeros(3), np.array([GRID.voxel_mm[0] / 2, 0.0, 0.0])) @ POSE
    still = scan(head, np.inf, vials=()).samples[0]
    shifted = scan(head, np.inf, vials=(), na_from_fractions=moved).samples[0]
    phase = np.exp(-2j * np.pi * SPOKES.k_per_mm[..., 0] * GRID.voxel_mm[0] / 2)
    assert np.linalg.norm(shifted - still * phase) < 1e-4 * np.linalg.norm(still)
