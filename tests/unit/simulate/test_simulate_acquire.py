"""The signal equation and the 1H images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bids_sodium.core.constants import RELAXATION, Decay, Relaxation
from bids_sodium.core.data import Grid, Trajectory, Volume
from bids_sodium.core.errors import DataError
from bids_sodium.recon.trajectory import density_adapted_radial
from bids_sodium.simulate.acquire import (
    VIALS,
    Vial,
    contrast,
    diffusion,
    relaxation_in_head,
    scan_1h,
    simulate_kspace,
    to_scanner,
    vial_fraction,
    white_noise,
)
from bids_sodium.simulate.brain import anatomy_of, healthy_head, rigid

GRID = Grid.centred((32, 32, 32), 8.0)
SPOKES = density_adapted_radial(60, 48, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=8.0)
FINE = Grid.centred((70, 80, 90), 1.5)
TIMING = {"te_ms": 0.2, "tr_ms": 100.0, "flip_deg": 90.0}
POSE = rigid(np.array([7.0, -5.0, 12.0]), np.array([6.0, -4.0, 3.0]))


def blob(kind: str) -> NDArray[np.float32]:
    i = np.stack(np.indices(FINE.shape), axis=-1) - np.array([30, 45, 40])
    if kind == "ball":
        return ((i**2).sum(-1) < 12**2).astype(np.float32)
    if kind == "voxel":
        return (np.abs(i).max(-1) == 0).astype(np.float32)
    out = np.zeros(FINE.shape, dtype=np.float32)
    out[20:34, 20:36, 30:45] = np.random.default_rng(0).random((14, 16, 15))
    return out


def scan(data: NDArray[np.float32], tissue: str = "CSF", trajectory: Trajectory = SPOKES, **more: object) -> object:
    options = {**TIMING, "snr": np.inf, "rng": np.random.default_rng(0), "vials": (), **more}
    return simulate_kspace(
        {tissue: Volume(data, FINE, "1")}, {tissue: 1.0}, trajectory=trajectory, grid=GRID, **options
    )


def directly(data: NDArray[np.float32], grid: Grid, pose: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The sum over voxels as it stands in the equation."""
    k = SPOKES.k_per_mm.reshape(-1, 3).astype(float) @ (grid.affine[:3, :3] / np.array(grid.voxel_mm)).T
    inside = np.argwhere(data > 0)
    points = FINE.world(inside.astype(float)) @ pose[:3, :3].T + pose[:3, 3] - grid.origin_mm
    values = data[tuple(inside.T)] * FINE.voxel_ml * 1000.0
    out = np.concatenate([np.exp(-2j * np.pi * (part @ points.T)) @ values for part in np.array_split(k, 40)])
    return out.reshape(SPOKES.k_per_mm.shape[:2])


@pytest.mark.parametrize("kind", ["ball", "voxel", "texture"])
def test_kspace_is_the_sum_over_voxels(kind: str) -> None:
    data = blob(kind)
    kspace = scan(data, na_from_fractions=POSE)
    material = RELAXATION["CSF"]
    expected = directly(data, GRID, POSE) * material.signal_fraction(te_ms=0.0, tr_ms=100.0, flip_deg=90.0)
    expected = expected * material.decay.at(0.2 + SPOKES.t_ms)
    assert np.linalg.norm(kspace.samples[0] - expected) < 2e-4 * np.linalg.norm(expected)


def test_oblique_image_grid_turns_kspace_with_it() -> None:
    turned = Grid(GRID.shape, rigid(np.array([20.0, 10.0, -15.0]), np.array([3.0, 0.0, -2.0])) @ GRID.affine)
    data = blob("ball")
    options = {**TIMING, "snr": np.inf, "rng": np.random.default_rng(0), "vials": ()}
    kspace = simulate_kspace({"CSF": Volume(data, FINE)}, {"CSF": 1.0}, trajectory=SPOKES, grid=turned, **options)
    material = RELAXATION["CSF"]
    expected = directly(data, turned, np.eye(4)) * material.signal_fraction(te_ms=0.0, tr_ms=100.0, flip_deg=90.0)
    expected = expected * material.decay.at(0.2 + SPOKES.t_ms)
    assert np.linalg.norm(kspace.samples[0] - expected) < 2e-4 * np.linalg.norm(expected)


def test_signal_is_linear_in_concentration_and_adds_over_tissues() -> None:
    ball, texture = blob("ball"), 0.5 * blob("texture")
    maps = {"CGM": Volume(ball, FINE), "CSF": Volume(texture, FINE)}
    options = {
        **TIMING, "trajectory": SPOKES, "grid": GRID, "snr": np.inf, "rng": np.random.default_rng(0), "vials": (),
    }  # fmt: skip
    both = simulate_kspace(maps, {"CGM": 40.0, "CSF": 140.0}, **options).samples
    first = simulate_kspace({"CGM": maps["CGM"]}, {"CGM": 40.0}, **options).samples
    second = simulate_kspace({"CSF": maps["CSF"]}, {"CSF": 140.0}, **options).samples
    assert np.allclose(both, first + second, atol=1e-4 * np.abs(both).max())
    as_map = {"CGM": np.full(FINE.shape, 40.0), "CSF": 140.0}
    assert np.allclose(simulate_kspace(maps, as_map, **options).samples, both, atol=1e-5 * np.abs(both).max())


def test_vial_in_closed_form_is_the_vial_in_voxels() -> None:
    vial = Vial(name="v", mmol_l=80.0, centre_mm=(10.1, -6.2, 4.3), radius_mm=12.0, length_mm=50.0)
    filled = vial_fraction(vial, FINE)
    assert filled.sum() * FINE.voxel_ml == pytest.approx(np.pi * 1.2**2 * 5.0, rel=2e-3)
    options = {
        **TIMING, "trajectory": SPOKES, "grid": GRID, "snr": np.inf, "rng": np.random.default_rng(0),
    }  # fmt: skip
    exact = simulate_kspace({}, {}, vials=(vial,), **options).samples
    voxels = simulate_kspace({"agar": Volume(filled, FINE)}, {"agar": 80.0}, vials=(), **options).samples
    assert np.linalg.norm(exact - voxels) < 0.01 * np.linalg.norm(exact)


def test_vials_follow_their_pose() -> None:
    grid = Grid.centred((60, 60, 60), 4.0)
    moved = vial_fraction(VIALS[0], grid, np.linalg.inv(POSE))
    centre = (np.stack(np.indices(grid.shape), -1) * moved[..., None]).sum((0, 1, 2)) / moved.sum()
    expected = POSE[:3, :3] @ np.array(VIALS[0].centre_mm) + POSE[:3, 3]
    assert grid.world(centre) == pytest.approx(expected, abs=0.3)
    assert not vial_fraction(VIALS[0], Grid.centred((4, 4, 4), 2.0)).any()


def test_decay_starts_at_the_echo_time() -> None:
    material = Relaxation(35.0, Decay(4.0, 25.0), "test")
    centre = Trajectory(np.zeros((1, 16, 3)), np.linspace(0.5, 20.0, 16))
    samples = scan(blob("ball"), "CGM", centre, relaxation={"CGM": material}).samples[0, 0]
    assert np.abs(samples[5] / samples[0]) == pytest.approx(
        float(material.decay.at(0.2 + centre.t_ms[5]) / material.decay.at(0.2 + 0.5)), rel=1e-4
    )


def test_phase_gain_and_off_resonance() -> None:
    plain = scan(blob("ball")).samples
    turned = scan(blob("ball"), gain=3.0, phase_rad=0.7, off_resonance_hz=15.0).samples
    expected = 3.0 * np.exp(1j * (0.7 + 2 * np.pi * 15.0 * SPOKES.t_ms * 1e-3))
    assert np.allclose(turned / plain, expected, rtol=1e-4)


def test_noise_is_complex_white_and_repeatable() -> None:
    noise = white_noise((200, 300), np.random.default_rng(1))
    assert noise.real.std() == pytest.approx(1.0, rel=0.01)
    assert noise.imag.std() == pytest.approx(1.0, rel=0.01)
    assert abs(np.corrcoef(noise.real.ravel(), noise.imag.ravel())[0, 1]) < 0.02
    assert np.array_equal(noise, white_noise((200, 300), np.random.default_rng(1)))


def test_bad_requests_say_what_is_wrong() -> None:
    data = blob("ball")
    with pytest.raises(DataError, match="signal-to-noise"):
        scan(data, snr=0.0)
    with pytest.raises(DataError, match="no relaxation times for the tissue 'cheese'"):
        scan(data, "cheese")
    with pytest.raises(DataError, match="no tissue 'NAWM'"):
        scan(data, snr=20.0)
    with pytest.raises(DataError, match="no sodium concentration for CSF"):
        simulate_kspace(
            {"CSF": Volume(data, FINE)},
            {},
            trajectory=SPOKES,
            grid=GRID,
            snr=1.0,
            rng=np.random.default_rng(),
            **TIMING,
        )
    with pytest.raises(DataError, match="no relaxation times"):
        relaxation_in_head("bone")


def test_resampling_keeps_constants_mass_and_position() -> None:
    data = blob("ball")
    coarse = Grid.centred((40, 40, 40), 4.5)
    there = to_scanner(data, FINE, coarse, np.linalg.inv(POSE))
    assert there.sum() * coarse.voxel_ml == pytest.approx(data.sum() * FINE.voxel_ml, rel=1e-2)
    centre = (np.stack(np.indices(coarse.shape), -1) * there[..., None]).sum((0, 1, 2)) / there.sum()
    expected = POSE[:3, :3] @ FINE.world(np.array([30.0, 45.0, 40.0])) + POSE[:3, 3]
    assert coarse.world(centre) == pytest.approx(expected, abs=0.05)
    same = to_scanner(data, FINE, FINE)
    assert np.allclose(same, data, atol=1e-6)


def test_rician_noise_has_the_stated_size_and_no_negative_values() -> None:
    image = np.full((30, 30, 30), 1000.0, dtype=np.float32)
    noisy = scan_1h(image, np.random.default_rng(0), snr=25.0, bias=0.0)
    assert noisy.std() == pytest.approx(40.0, rel=0.03)
    assert scan_1h(np.zeros_like(image), np.random.default_rng(0), snr=25.0).min() >= 0
    assert np.array_equal(scan_1h(image, np.random.default_rng(0), snr=np.inf, bias=0.0), image)


def test_contrasts_mix_linearly_and_order_tissues_as_they_should() -> None:
    grid = Grid.centred((5, 1, 1), 1.0)
    names = ("CGM", "DGM", "NAWM", "CSF", "T1hypo")
    one_each = {n: Volume(np.eye(5, dtype=np.float32)[i].reshape(5, 1, 1), grid, "1") for i, n in enumerate(names)}
    head = healthy_head(anatomy_of(one_each), {"T1hypo": 50.0})
    t1w = dict(zip(names, contrast(head, "T1w").ravel(), strict=True))
    assert t1w["CSF"] < t1w["T1hypo"] < t1w["CGM"] < t1w["DGM"] < t1w["NAWM"]
    flair = dict(zip(names, contrast(head, "FLAIR").ravel(), strict=True))
    assert flair["CSF"] < flair["NAWM"] < flair["CGM"] < flair["T1hypo"]
    with pytest.raises(DataError, match="unknown contrast"):
        contrast(head, "SWI")


def test_diffusion_gives_back_its_coefficient() -> None:
    grid = Grid.centred((8, 8, 8), 2.0)
    head = healthy_head(anatomy_of({"NAWM": Volume(np.ones(grid.shape, dtype=np.float32), grid, "1")}))
    series = diffusion(head, Grid.centred((4, 4, 4), 2.0), np.eye(4), np.random.default_rng(0), snr=np.inf)
    adc = -np.log(series.data[..., 1:] / series.data[..., :1]) / series.bval_s_mm2[1:]
    assert adc == pytest.approx(0.72e-3, rel=1e-4)
    assert np.allclose(np.linalg.norm(series.bvec[:, 1:], axis=0), 1.0)


def test_ratio_of_two_inversion_times_does_not_mix_linearly() -> None:
    names = ("CSF", "CGM", "NAWM", "mix")
    shares = np.array([[1.0, 0, 0, 0.5], [0, 1.0, 0, 0.5], [0, 0, 1.0, 0]], np.float32)
    grid = Grid.centred((4, 1, 1), 1.0)
    volumes = {n: Volume(shares[i].reshape(4, 1, 1), grid, "1") for i, n in enumerate(names[:3])}
    level = dict(zip(names, contrast(healthy_head(anatomy_of(volumes)), "UNIT1").ravel(), strict=True))
    assert 0 <= level["CSF"] < level["CGM"] < level["NAWM"] < 1000
    # half fluid, half cortex looks like 80 % fluid
    assert (level["mix"] - level["CSF"]) / (level["CGM"] - level["CSF"]) < 0.35
    nothing = {n: Volume(np.zeros((4, 1, 1), np.float32), grid, "1") for n in names[:3]}
    np.testing.assert_allclose(contrast(healthy_head(anatomy_of(nothing)), "UNIT1"), 0.0, atol=1e-3)
