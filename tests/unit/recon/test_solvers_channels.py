"""Several receive channels: whitening, sensitivities, what is left out, and the noise of the image."""

import dataclasses

import numpy as np
import pytest

from bids_sodium.core.data import Grid, KSpace
from bids_sodium.core.errors import DataError
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.sense import Sense, estimated_sensitivities
from bids_sodium.recon.solvers import Linear, ReconstructionParams, phase_corrected_real, reconstruct
from bids_sodium.recon.trajectory import density_adapted_radial

SPOKES = density_adapted_radial(1500, 128, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
GRID = Grid.centred((32, 32, 32), 8.0)
X, Y, Z = np.meshgrid(*[(np.arange(32) - 16) * 8.0] * 3, indexing="ij")
HEAD = ((X / 75) ** 2 + (Y / 90) ** 2 + (Z / 70) ** 2 < 1) * 40.0
INSIDE = (X / 65) ** 2 + (Y / 80) ** 2 + (Z / 60) ** 2 < 1
PLACES = ((90, 0, 20), (-90, 0, -20), (0, 110, -20), (0, -110, 20))
SIGMA_K = 4e5
"""Noise of the samples that gives the combined image a signal-to-noise ratio of about 20."""


def sensitivities() -> np.ndarray:
    """Four loops round the head, each with its phase."""
    maps = []
    for i, (x, y, z) in enumerate(PLACES):
        away = np.sqrt((X - x) ** 2 + (Y - y) ** 2 + (Z - z) ** 2)
        maps.append(np.exp(-away / 90.0 + 1j * (i + X * x / 2e4 + Y * y / 3e4)))
    return np.array(maps)


def mixing() -> np.ndarray:
    """Noise of channel i over independent noise: correlated and unequal."""
    rng = np.random.default_rng(9)
    mix = np.eye(4) + 0.3 * (rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))
    return mix * np.array([1.0, 2.0, 0.7, 1.4])[:, None]


def white(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    operator = Nufft(SPOKES, GRID)
    return np.stack([operator.forward(HEAD * one) for one in sensitivities()])


@pytest.fixture(scope="module")
def operator() -> Linear:
    return Linear(SPOKES, GRID)


def noisy(clean: np.ndarray, seed: int) -> KSpace:
    noise = np.tensordot(mixing(), white(np.random.default_rng(seed), clean.shape), axes=1)
    return KSpace((clean + SIGMA_K * noise).astype(np.complex64), SPOKES, GRID)


def profile(sigma_k: np.ndarray) -> np.ndarray:
    """What the combined image of a uniform object looks like: the channels' best signal at their mean noise."""
    inverse = np.linalg.inv(mixing() @ mixing().conj().T)
    seen = sensitivities()
    level = np.exp(np.mean(np.log(sigma_k))) / SIGMA_K
    return level * np.sqrt(np.einsum("cxyz,cd,dxyz->xyz", seen.conj(), inverse, seen).real)


@pytest.mark.parametrize("coils", ["adaptive", "sense"])
def test_stated_noise_is_that_of_correlated_channels(clean: np.ndarray, coils: str) -> None:
    operator = Linear(SPOKES, GRID)
    params = ReconstructionParams(coils=coils, iterations=2)
    scans = [reconstruct(noisy(clean, seed), params=params, operator=operator) for seed in (0, 1, 2, 3)]
    assert scans[0].sigma_k == pytest.approx(SIGMA_K * np.sqrt((np.abs(mixing()) ** 2).sum(axis=1)), rel=0.01)
    differences = [np.abs(a.image) - np.abs(b.image) for a, b in ((scans[0], scans[1]), (scans[2], scans[3]))]
    seen = np.sqrt(np.mean([np.mean(d[INSIDE] ** 2) for d in differences]) / 2.0)
    assert scans[0].sigma == pytest.approx(seen, rel=0.02)


@pytest.mark.parametrize("coils", ["adaptive", "sense", "sos"])
def test_channels_show_the_object_under_their_profile(clean: np.ndarray, operator: Linear, coils: str) -> None:
    found = reconstruct(noisy(clean, 0), params=ReconstructionParams(coils=coils), operator=operator)
    image = np.abs(found.image) / profile(found.sigma_k)
    core = (X / 45) ** 2 + (Y / 60) ** 2 + (Z / 40) ** 2 < 1
    assert image[core].mean() == pytest.approx(40.0, rel=0.02)
    if coils != "sos":
        real = phase_corrected_real(found.image, GRID) / profile(found.sigma_k)
        assert real[core].mean() == pytest.approx(40.0, rel=0.02)


def test_variation_is_penalised_in_the_image_of_all_channels(clean: np.ndarray) -> None:
    scan = noisy(clean, 0)
    found = reconstruct(scan, params=ReconstructionParams(method="tv"))
    plain = reconstruct(scan, params=ReconstructionParams(method="adjoint", filter="none"))
    shape = profile(found.sigma_k)
    core = (X / 45) ** 2 + (Y / 60) ** 2 + (Z / 40) ** 2 < 1
    errors = [np.std((np.abs(one.image) / shape)[core]) for one in (found, plain)]
    assert errors[0] < 0.5 * errors[1]
    assert found.converged


def test_sensitivities_are_found_up_to_a_phase(clean: np.ndarray, operator: Linear) -> None:
    found = estimated_sensitivities(clean, operator)
    assert (np.abs(found) ** 2).sum(axis=0) == pytest.approx(1.0, abs=1e-4)
    truth = sensitivities() / np.sqrt((np.abs(sensitivities()) ** 2).sum(axis=0))
    agreement = np.abs((found.conj() * truth).sum(axis=0))[INSIDE]
    assert np.median(agreement) > 0.997
    assert agreement.min() > 0.985


def test_one_even_channel_is_the_single_channel_solution(clean: np.ndarray) -> None:
    operator = Linear(SPOKES, GRID, ReconstructionParams(method="cg", iterations=3))
    sense = Sense(operator, np.ones((1, *GRID.shape), np.complex64))
    image, residuals = sense.solve(clean[:1])
    alone, history = operator.solve(clean[0])
    assert np.linalg.norm(image - alone) < 1e-5 * np.linalg.norm(alone)
    assert residuals == pytest.approx(history, rel=1e-3)
    assert sense.noise_gain == pytest.approx(operator.noise_gain, rel=1e-4)


def test_map_is_linear_once_sensitivities_are_given(clean: np.ndarray) -> None:
    operator = Linear(SPOKES, GRID, ReconstructionParams(method="cg", iterations=3))
    sense = Sense(operator, estimated_sensitivities(clean, operator))
    rng = np.random.default_rng(2)
    a, b = (1e6 * white(rng, clean.shape).astype(np.complex64) for _ in range(2))
    together = sense.solve(a - 2j * b)[0]
    apart = sense.solve(a)[0] - 2j * sense.solve(b)[0]
    assert np.linalg.norm(together - apart) < 1e-4 * np.linalg.norm(apart)


def test_empty_channel_is_named_and_left_out(clean: np.ndarray, operator: Linear) -> None:
    scan = noisy(clean, 0)
    samples = np.insert(scan.samples, 2, 0.0, axis=0)
    found = reconstruct(KSpace(samples, SPOKES, GRID), operator=operator)
    np.testing.assert_array_equal(found.image, reconstruct(scan, operator=operator).image)
    assert found.notes[0] == "channel(s) 2 of 5 hold zeros alone and were left out"
    assert found.sigma_k[2] == 0.0
    assert (found.sigma_k[[0, 1, 3, 4]] > 0).all()
    alone = np.zeros((2, *scan.samples.shape[1:]), np.complex64)
    alone[1] = scan.samples[0]
    single = reconstruct(KSpace(alone, SPOKES, GRID), operator=operator)
    assert single.sigma == pytest.approx(single.sigma_k[1] * single.noise_gain)


def test_constant_channel_is_refused(clean: np.ndarray, operator: Linear) -> None:
    samples = noisy(clean, 0).samples.copy()
    samples[1] = 7.0
    with pytest.raises(DataError, match=r"channel\(s\) 1 hold no noise"):
        reconstruct(KSpace(samples, SPOKES, GRID), operator=operator)


def test_noise_scan_of_any_bandwidth_tells_correlations(clean: np.ndarray, operator: Linear) -> None:
    scan = noisy(clean, 0)
    noise = 5.0 * SIGMA_K * mixing() @ white(np.random.default_rng(7), (4, 20000))
    found = reconstruct(dataclasses.replace(scan, noise=noise), operator=operator)
    plain = reconstruct(scan, operator=operator)
    assert found.sigma == pytest.approx(plain.sigma, rel=1e-6)
    size = np.abs(plain.image[INSIDE]).mean()
    assert 0.0 < np.abs(found.image - plain.image)[INSIDE].mean() < 0.02 * size
    wrong = reconstruct(dataclasses.replace(scan, noise=white(np.random.default_rng(7), (4, 20000))), operator=operator)
    assert np.abs(wrong.image - plain.image)[INSIDE].mean() > 0.05 * size
