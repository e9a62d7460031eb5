"""Vials of known place, size and concentration are found, and give back the scale that made the image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from bids_sodium.core.constants import AGAR, CSF_MMOL_L, RELAXATION
from bids_sodium.core.data import Grid, Volume
from bids_sodium.image.calibration import (
    CalibrationParams,
    candidate_vials,
    correct_receive,
    find_vials,
    fit_scale,
    head_mask,
    measure_vials,
    receive_ratio,
    relaxation_factor,
    tsc,
)

FWHM_MM = 7.0
GAIN = 5.0  # signal units per mmol/L


@dataclass
class Scene:
    image: Volume
    head: NDArray[np.bool_]
    vials: list[NDArray[np.bool_]]
    centres: list[NDArray[np.float64]]
    radius_mm: float
    sigma: float


def soft(distance_mm: NDArray[np.float64], voxel_mm: float) -> NDArray[np.float64]:
    """Fraction of a voxel inside a body, from the signed distance of its centre to the surface."""
    return np.clip(0.5 - distance_mm / voxel_mm, 0, 1)


def scene(
    seed: int,
    *,
    mmol_l: tuple[float, ...] = (40.0, 80.0),
    gap_mm: float | None = None,
    sigma: float = 10.0,
    radius_mm: float | None = None,
) -> Scene:
    """Head with scalp, ventricles and eyes, and vials around it, blurred and with Rician noise."""
    rng = np.random.default_rng(seed)
    voxel = 5.0
    grid = Grid.centred((56, 56, 40), voxel)
    x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1).astype(float)), -1, 0)
    wide, long = rng.uniform(68, 76), rng.uniform(84, 94)

    def ellipsoid(centre: tuple[float, ...], half: tuple[float, ...]) -> NDArray[np.float64]:
        scaled = [(axis - c) / h for axis, c, h in zip((x, y, z), centre, half, strict=True)]
        return soft((np.sqrt(sum(axis**2 for axis in scaled)) - 1) * min(half), voxel)

    middle = (0.0, 0.0, 0.0)
    outer, inner = ellipsoid(middle, (wide, long, 85)), ellipsoid(middle, (wide - 8, long - 8, 77))
    mmol = 45 * outer - 20 * inner + 12 * ellipsoid(middle, (wide - 14, long - 14, 70))
    mmol += 100 * ellipsoid((0, 5, 5), (12, 25, 12))
    for side in (-1, 1):
        mmol += 90 * ellipsoid((side * 32, long - 14, -20), (12, 12, 12))
    radius = rng.uniform(10, 18) if radius_mm is None else radius_mm
    vials, centres = [], []
    start = rng.uniform(0, 2 * np.pi)
    for i, concentration in enumerate(mmol_l):
        angle = start + 2 * np.pi * i / len(mmol_l) + rng.uniform(-0.2, 0.2)
        away = rng.uniform(0, 12) if gap_mm is None else gap_mm
        reach = 1 / np.hypot(np.cos(angle) / wide, np.sin(angle) / long) + away + radius
        centre = np.array([reach * np.cos(angle), reach * np.sin(angle), rng.uniform(-25, 25)])
        axis = np.array([*rng.uniform(-0.15, 0.15, 2), 1.0])
        axis /= np.linalg.norm(axis)
        offset = np.stack([x, y, z], -1) - centre
        along = offset @ axis
        across = np.sqrt(np.maximum((offset**2).sum(-1) - along**2, 0))
        # a soft edge around a curved surface holds more than half outside: the mean square radius grows by voxel^2 / 12
        edge = np.sqrt(radius**2 - voxel**2 / 12)
        body = soft(np.maximum(across - edge, np.abs(along) - rng.uniform(28, 45)), voxel)
        mmol = mmol * (1 - body) + concentration * body
        vials.append(body > 0.5)
        centres.append(centre)
    blurred = GAIN * ndimage.gaussian_filter(mmol, FWHM_MM / 2.3548 / voxel)
    noisy = np.abs(blurred + rng.normal(0, sigma, blurred.shape) + 1j * rng.normal(0, sigma, blurred.shape))
    return Scene(Volume(noisy, grid), outer > 0.5, vials, centres, radius, sigma)


def test_vials_are_found_in_every_scene_with_a_head_mask() -> None:
    for seed in range(20):
        truth = scene(seed)
        found = find_vials(truth.image, truth.head, CalibrationParams())
        for vial, centre in zip(found, truth.centres, strict=True):
            assert np.linalg.norm(np.array(vial.centre_mm)[:2] - centre[:2]) < 6.0, f"scene {seed}"


def test_vials_are_found_in_every_scene_without_a_head_mask() -> None:
    for seed in range(20, 40):
        truth = scene(seed)
        found = find_vials(truth.image, None, CalibrationParams())
        for vial, centre in zip(found, truth.centres, strict=True):
            assert np.linalg.norm(np.array(vial.centre_mm)[:2] - centre[:2]) < 6.0, f"scene {seed}"


def test_vials_that_touch_the_head_are_found() -> None:
    for seed in range(40, 50):
        truth = scene(seed, gap_mm=0.0)
        for head in (truth.head, None):
            found = find_vials(truth.image, head, CalibrationParams())
            for vial, centre in zip(found, truth.centres, strict=True):
                assert np.linalg.norm(np.array(vial.centre_mm)[:2] - centre[:2]) < 6.0, f"scene {seed}"


def test_four_vials_are_found_in_the_order_of_their_concentrations() -> None:
    mmol = (140.0, 30.0, 90.0, 60.0)
    truth = scene(3, mmol_l=mmol, radius_mm=14.0)
    found = find_vials(truth.image, truth.head, CalibrationParams(vial_mmol_l=mmol))
    for vial, centre in zip(found, truth.centres, strict=True):
        assert np.linalg.norm(np.array(vial.centre_mm)[:2] - centre[:2]) < 6.0


def slopes(*, cylinder: bool) -> NDArray[np.float64]:
    params = CalibrationParams()
    found = []
    for seed in range(20, 40):
        truth = scene(seed)
        vials = find_vials(truth.image, truth.head, params)
        signals = measure_vials(
            truth.image,
            [vial.mask for vial in vials],
            params,
            sigma=truth.sigma,
            inner_radius_mm=truth.radius_mm if cylinder else None,
            # the phantom's voxels average over their volume, which adds the variance of a box
            fwhm_mm=float(np.hypot(FWHM_MM, 2.3548 * 5.0 / np.sqrt(12))) if cylinder else None,
        )
        found.append(fit_scale(signals.signal, signals.se, params).slope)
    return np.array(found) * GAIN


def test_slope_from_cylinder_fits_is_within_two_percent() -> None:
    relative = slopes(cylinder=True)
    assert np.abs(relative - 1).max() < 0.02


def test_slope_from_cores_is_right_where_the_vial_is_wide_against_the_psf() -> None:
    params = CalibrationParams()
    for seed in range(8):
        truth = scene(seed, gap_mm=8.0, radius_mm=18.0)
        vials = find_vials(truth.image, truth.head, params)
        signals = measure_vials(truth.image, [vial.mask for vial in vials], params, sigma=truth.sigma)
        assert fit_scale(signals.signal, signals.se, params).slope * GAIN == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("cylinder", [False, True])
@pytest.mark.parametrize("correlated", [False, True])
def test_stated_error_of_a_vial_is_the_error_seen(cylinder: bool, correlated: bool) -> None:
    rng = np.random.default_rng(7)
    grid = Grid.centred((17, 17, 24), 4.0)
    x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1).astype(float)), -1, 0)
    body = soft(np.maximum(np.hypot(x, y) - 15, np.abs(z) - 36), 4.0)
    clean = 400 * ndimage.gaussian_filter(body, 6 / 2.3548 / 4.0)
    width = 0.8
    kernel = ndimage.gaussian_filter(np.pad([[[1.0]]], 6), width)
    shared = 1 / float((kernel**2).sum())  # sum of the autocorrelation over its value at zero
    signal, stated = [], []
    for _ in range(150):
        noise = rng.normal(0, 20, clean.shape)
        if correlated:
            noise = ndimage.gaussian_filter(noise, width, mode="wrap") / np.sqrt((kernel**2).sum())
        fit = measure_vials(
            Volume(clean + noise, grid),
            [body > 0.5],
            CalibrationParams(),
            sigma=20.0,
            magnitude=False,
            correlation_voxels=shared if correlated else 1.0,
            inner_radius_mm=15.0 if cylinder else None,
            fwhm_mm=6.0 if cylinder else None,
        )
        signal.append(fit.signal[0])
        stated.append(fit.se[0])
        assert fit.method == ("cylinder" if cylinder else "core",)
    # 150 draws know a standard deviation to 6 %
    assert np.mean(stated) == pytest.approx(np.std(signal), rel=0.18)


@pytest.mark.parametrize("line", ["zero", "intercept"])
def test_stated_error_is_the_error_seen(line: str) -> None:
    rng = np.random.default_rng(0)
    params = CalibrationParams(vial_mmol_l=(20.0, 40.0, 80.0), line=line)
    signal, se = np.array([100.0, 200.0, 400.0]), np.array([4.0, 5.0, 6.0])
    fits = [fit_scale(signal + rng.normal(0, se), se, params) for _ in range(4000)]
    assert np.mean([fit.slope_se for fit in fits]) == pytest.approx(
        np.std([fit.slope_mmol_l for fit in fits]), rel=0.05
    )
    assert np.mean([fit.slope for fit in fits]) == pytest.approx(0.2, rel=0.003)
    assert np.mean([fit.free_intercept_se for fit in fits]) == pytest.approx(
        np.std([fit.free_intercept_mmol_l for fit in fits]), rel=0.05
    )
    assert np.mean([not all(fit.kept) for fit in fits]) < 0.002


def test_a_bad_vial_is_left_out_and_a_good_one_is_not() -> None:
    rng = np.random.default_rng(1)
    params = CalibrationParams(vial_mmol_l=(20.0, 40.0, 80.0, 120.0))
    for bad in range(4):
        for _ in range(25):
            signal = 5 * np.array(params.vial_mmol_l) * (1 + rng.normal(0, 0.005, 4))
            signal[bad] *= 0.7
            fit = fit_scale(signal, np.full(4, 2.0), params)
            assert fit.kept == tuple(i != bad for i in range(4))
            assert fit.slope == pytest.approx(0.2, rel=0.02)


def test_tsc_error_is_the_error_seen() -> None:
    rng = np.random.default_rng(2)
    grid = Grid.centred((1, 1, 1), 4.0)
    params = CalibrationParams(vial_mmol_l=(20.0, 40.0, 80.0), line="intercept")
    signal, se = np.array([100.0, 200.0, 400.0]), np.array([4.0, 4.0, 4.0])
    seen, stated = [], []
    for _ in range(2000):
        fit = fit_scale(signal + rng.normal(0, se), se, params)
        image = Volume(np.full((1, 1, 1), 175 + rng.normal(0, 8.0)), grid)
        concentration, error = tsc(image, fit, 1.1, sigma=8.0)
        seen.append(concentration.data.item())
        stated.append(error.data.item())
    assert np.mean(seen) == pytest.approx(1.1 * 35, rel=0.01)
    assert np.mean(stated) == pytest.approx(np.std(seen), rel=0.06)


def test_csf_reads_its_concentration_with_relaxation_and_too_little_without() -> None:
    sequence = {"te_ms": 0.2, "tr_ms": 100.0, "flip_deg": 90.0}
    csf = CSF_MMOL_L * RELAXATION["CSF"].signal_fraction(**sequence)
    vials = np.array([40.0, 80.0]) * AGAR.signal_fraction(**sequence)
    fit = fit_scale(vials, [1e-3, 1e-3])
    assert 126 < fit.concentration(csf) < 131
    assert fit.concentration(csf) * relaxation_factor(AGAR, RELAXATION["CSF"], **sequence) == pytest.approx(
        140, rel=1e-6
    )


def test_receive_ratio_is_the_sensitivity_that_made_the_array_image() -> None:
    truth = scene(0, sigma=8.0)
    grid = truth.image.grid
    x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1).astype(float)), -1, 0)
    sensitivity = 2.0 + (x**2 + y**2 + z**2) / 60**2
    array = truth.image.with_data(np.asarray(truth.image.data) * sensitivity)
    ratio = receive_ratio(array, truth.image)
    inside = ndimage.binary_erosion(truth.head, iterations=2)
    assert np.abs(ratio / sensitivity - 1)[inside].mean() < 0.03
    assert ratio.min() > 0
    # corrected, the array image is the volume-coil image
    corrected = np.asarray(correct_receive(array, ratio).data)
    assert np.abs(corrected[inside].mean() / np.asarray(truth.image.data)[inside].mean() - 1) < 0.02
    # smooth to the border of the field of view: no step larger than a fifth from voxel to voxel
    assert max(np.abs(np.diff(np.log(ratio), axis=axis)).max() for axis in range(3)) < 0.2


DATA = Path(os.environ.get("BIDS_SODIUM_TEST_DATA", Path(__file__).parents[3] / "shared")) / "data" / "na7t"
TUBES = {(7, 10, 5), (29, 10, 5), (29, 31, 26), (7, 31, 25)}  # voxels, read off the images by eye


def real(name: str) -> Volume:
    nib = pytest.importorskip("nibabel")
    if not (DATA / f"{name}.nii.gz").is_file():
        pytest.skip(f"no {name}.nii.gz under {DATA}: set BIDS_SODIUM_TEST_DATA")
    image = nib.load(DATA / f"{name}.nii.gz")
    data = np.asanyarray(image.dataobj)
    return Volume(data, Grid(data.shape, image.affine))


@pytest.mark.parametrize("name", ["c2p_naa_6", "c2p_nav_7"])
@pytest.mark.parametrize("with_head", [True, False])
def test_tubes_of_a_real_head_at_7_t(name: str, with_head: bool) -> None:
    sodium, params = real(name), CalibrationParams()
    head = None
    if with_head:
        proton = real("gre_2")
        at = proton.grid.index(sodium.grid.world(np.indices(sodium.grid.shape).reshape(3, -1).T.astype(float)))
        mask = head_mask(proton, params).astype(float)
        head = ndimage.map_coordinates(mask, at.T, order=1).reshape(sodium.grid.shape) > 0.5

    def place(centre: tuple[float, float, float]) -> tuple[int, int, int]:
        i, j, k = sodium.grid.index(np.array(centre))
        return min(TUBES, key=lambda tube: np.linalg.norm(np.array(tube) - (i, j, k)))

    def off_mm(centre: tuple[float, float, float]) -> float:
        index = sodium.grid.index(np.array(centre))
        return float(np.linalg.norm(index - np.array(place(centre)))) * 6

    two = find_vials(sodium, head, params)
    assert two[0].signal < two[1].signal
    assert all(off_mm(vial.centre_mm) < 9 for vial in two)
    assert len({place(vial.centre_mm) for vial in two}) == 2
    # all four tubes are among what looks like a vial
    seen = [vial for vial in candidate_vials(sodium, head, params) if off_mm(vial.centre_mm) < 9]
    assert len(TUBES - {place(vial.centre_mm) for vial in seen}) == 0


def test_receive_ratio_of_a_real_array_spans_what_it_spans() -> None:
    array, coil = real("c2p_naa_6"), real("c2p_nav_7")
    ratio = receive_ratio(array, coil)
    head = head_mask(coil, CalibrationParams())
    low, middle, high = np.percentile(ratio[head], [5, 50, 95])
    assert low > 1
    assert high < 8
    assert high / middle > 1.5
