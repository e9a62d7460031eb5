"""Denoising and noise estimates against phantoms of known noise: shells, a head, and a series of its echoes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.constants import relaxation_of
from bids_sodium.core.data import Grid, Volume
from bids_sodium.image.denoising import DenoisingParams, denoise
from bids_sodium.image.magnitude import correct_noise_floor
from bids_sodium.image.noise import background_noise, background_sigma, estimate_noise, quiet_noise, series_noise
from bids_sodium.recon.psf import point_spread
from bids_sodium.simulate.dataset import protocol_of

GRID = Grid.centred((44, 44, 44), 5.0)
HEAD = Grid.centred((64, 64, 64), 4.0)
MMOL_L = {"CGM": 40.6, "DGM": 34.8, "NAWM": 32.0, "CSF": 140.0, "lesion": 48.0, "soft": 25.0}


def phantom() -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
    radius = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - 22, axis=-1)
    mmol = np.zeros(GRID.shape)
    for edge, value in ((19, 40.0), (14, 32.0), (5, 140.0)):
        mmol[radius < edge] = value
    regions = {"GM": (radius < 18) & (radius > 15), "WM": (radius < 13) & (radius > 6), "CSF": radius < 4}
    return mmol, regions


def rician(mmol: NDArray[np.float64], sigma: float, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.abs(mmol + rng.normal(0, sigma, mmol.shape) + 1j * rng.normal(0, sigma, mmol.shape))


@cache
def fractions() -> dict[str, NDArray[np.float32]]:
    """Tissues of the MNI152 head in voxels of 2 mm, a lesion of 24 mm in its white matter, and the muscle of a face."""
    template = load_head_template()
    deep, tissue = template.deep, template.gm + template.wm
    maps = {
        "CGM": template.gm * (1 - deep),
        "DGM": tissue * deep,
        "NAWM": template.wm * (1 - deep),
        "CSF": template.csf,
    }
    for name, values in maps.items():
        even = np.pad(values, [(0, n % 2) for n in values.shape])
        half = even.reshape(sum(((n // 2, 2) for n in even.shape), ())).mean(axis=(1, 3, 5))
        room = [128 - n for n in half.shape]
        maps[name] = np.pad(half, [(n // 2, n - n // 2) for n in room])
    near = ndimage.binary_dilation(sum(maps.values()) > 0.1, iterations=3)
    where = np.moveaxis(np.indices((128, 128, 128), np.float32), 0, -1)
    inside = np.linalg.norm(where - np.float32((77, 64, 64)), axis=-1) < 6
    lesion = inside * (maps["CGM"] + maps["DGM"] + maps["NAWM"])
    face = (np.linalg.norm((where - np.float32((64, 90, 24))) / np.float32((28, 26, 26)), axis=-1) < 1) & ~near
    kept = {name: values * ~inside if name != "CSF" else values for name, values in maps.items()}
    return {**kept, "lesion": lesion, "soft": face.astype(np.float32)}


def on_the_scan(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return values.reshape(64, 2, 64, 2, 64, 2).mean(axis=(1, 3, 5))


@cache
def in_brain() -> NDArray[np.bool_]:
    return on_the_scan(sum(values for name, values in fractions().items() if name != "soft")) > 0.5


@cache
def k_per_mm() -> NDArray[np.float64]:
    axis = np.fft.fftfreq(64, 4.0)
    return np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)


@cache
def head(te_ms: tuple[float, ...] = (0.0,)) -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
    """Echoes of a radial scan of 4 mm of the head, without noise, and the voxels of more than 90 % of one tissue."""
    trajectory = protocol_of("stroke").acquired()
    keep = np.r_[0:32, 96:128]
    spectra = 0
    for name, values in fractions().items():
        decay = relaxation_of(name).decay
        spread = point_spread(trajectory, decay=decay)
        modulation = np.interp(k_per_mm(), spread.k_per_mm, spread.mtf, right=0.0)
        spectrum = np.fft.fftn(values)[np.ix_(keep, keep, keep)] / 8 * modulation
        spectra = spectra + MMOL_L[name] * spectrum[..., None] * decay.at(np.array(te_ms))
    echoes = np.fft.ifftn(spectra, axes=(0, 1, 2)).real
    pure = {name: on_the_scan(values) > 0.9 for name, values in fractions().items()}
    return echoes[..., 0] if len(te_ms) == 1 else echoes, pure


def radial_noise(rng: np.random.Generator) -> NDArray[np.complex128]:
    """Noise of unit deviation that fills the sphere of k-space that a radial scan covers."""
    white = rng.standard_normal(HEAD.shape) + 1j * rng.standard_normal(HEAD.shape)
    filled = np.fft.ifftn(np.fft.fftn(white) * (k_per_mm() <= 0.125))
    return filled / filled.real.std()


@pytest.mark.parametrize("sigma", [2.0, 4.0, 8.0])  # SNR 20, 10, 5 in grey matter
def test_no_tissue_mean_moves_by_more_than_one_percent(sigma: float) -> None:
    mmol, regions = phantom()
    noisy = rician(mmol, sigma)
    clean = denoise(Volume(noisy, GRID), sigma=sigma).image.data
    for name, mask in regions.items():
        assert clean[mask].mean() == pytest.approx(mmol[mask].mean(), rel=0.01), name
        assert (clean - mmol)[mask].std() < 0.6 * (noisy - mmol)[mask].std(), name


# Share of the error that is left in white matter: what each method is worth at SNR 5, 10 and 20.
@pytest.mark.parametrize("snr", [5.0, 10.0, 20.0])
@pytest.mark.parametrize(("method", "left"), [("recommended", 0.95), ("paper", 0.95), ("tv", 1.0)])
def test_no_tissue_of_a_head_moves_by_more_than_one_percent(method: str, left: float, snr: float) -> None:
    """Against the real part of the same noisy image, whose means are right."""
    truth, pure = head()
    sigma = MMOL_L["NAWM"] / snr
    noise = sigma * radial_noise(np.random.default_rng(0))
    noisy, real = np.abs(truth + noise), (truth + noise).real
    found = denoise(Volume(noisy, HEAD), DenoisingParams(method=method), sigma=sigma, mask=in_brain())
    clean = np.asarray(found.image.data, dtype=float)
    for name in ("CGM", "DGM", "NAWM", "CSF", "lesion"):
        mask = pure[name]
        assert clean[mask].mean() == pytest.approx(real[mask].mean(), abs=0.01 * truth[mask].mean()), name
    plain = np.asarray(correct_noise_floor(Volume(noisy, HEAD), sigma).data)

    def error(image: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.mean((image - truth)[pure["NAWM"]] ** 2)))

    assert error(clean) < left * error(plain) if snr < 20 else error(clean) < 1.01 * error(plain)
    assert found.floor_removed


def test_published_non_local_means_mixes_tissues_where_noise_is_strong() -> None:
    """Why means are kept by default: the filter as published moves white matter by several percent at SNR 5."""
    truth, pure = head()
    noise = MMOL_L["NAWM"] / 5 * radial_noise(np.random.default_rng(0))
    params = DenoisingParams(method="paper", keep_means=False)
    clean = denoise(Volume(np.abs(truth + noise), HEAD), params, sigma=MMOL_L["NAWM"] / 5, mask=pure["NAWM"])
    moved = np.asarray(clean.image.data, dtype=float)[pure["NAWM"]].mean() / (truth + noise).real[pure["NAWM"]].mean()
    assert 1.03 < moved < 1.12


def test_image_without_noise_is_left_as_it_is() -> None:
    mmol, _ = phantom()
    assert np.abs(denoise(Volume(mmol, GRID), sigma=0.01).image.data - mmol).max() < 0.02


def test_real_part_is_denoised_without_a_floor() -> None:
    mmol, regions = phantom()
    real = mmol + np.random.default_rng(0).normal(0, 4, mmol.shape)
    result = denoise(Volume(real, GRID), DenoisingParams(rician=False), sigma=4.0)
    assert not result.floor_removed
    for mask in regions.values():
        assert result.image.data[mask].mean() == pytest.approx(mmol[mask].mean(), rel=0.015)


@pytest.mark.parametrize("order", [1, 4, 16])
def test_noise_floor_of_a_mean_magnitude_is_taken_off_exactly(order: int) -> None:
    rng = np.random.default_rng(3)
    shape = (order, 2, 400_000)
    for signal in (0.5, 1.0, 2.0, 5.0, 15.0, 60.0):
        noise = rng.normal(0, 1, shape)
        noise[0, 0] += signal
        mean = np.sqrt((noise**2).sum((0, 1))).mean()
        volume = Volume(np.full((1, 1, 1), mean), Grid.centred((1, 1, 1), 4.0))
        tolerance = 0.02 * order / min(signal, 1.0)
        assert correct_noise_floor(volume, 1.0, order=order).data.item() == pytest.approx(signal, abs=tolerance)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 30.0])
@pytest.mark.parametrize("integers", [False, True])
def test_background_sigma_is_right_with_a_head_in_the_image(sigma: float, integers: bool) -> None:
    mmol, _ = phantom()
    noisy = rician(10 * mmol, sigma)
    noisy[:3], noisy[:, -2:] = 0, 0  # padding of the field of view
    data = np.rint(noisy).astype(np.int16) if integers else noisy
    assert background_sigma(Volume(data, GRID)) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("order", [4, 32])
def test_background_sigma_of_a_sum_of_squares(order: int) -> None:
    rng = np.random.default_rng(4)
    mmol, _ = phantom()
    square = (10 * mmol + rng.normal(0, 5, mmol.shape)) ** 2 + rng.normal(0, 5, mmol.shape) ** 2
    square += 25 * rng.chisquare(2 * (order - 1), mmol.shape)
    volume = Volume(np.sqrt(square), GRID)
    assert background_sigma(volume, order=order) == pytest.approx(5, rel=0.03)
    assert background_sigma(volume, order=None) == pytest.approx(5, rel=0.12)


def test_sigma_is_estimated_where_it_is_not_given() -> None:
    mmol, _ = phantom()
    result = denoise(Volume(rician(mmol, 3.0), GRID), DenoisingParams(method="off"))
    assert result.sigma == pytest.approx(3.0, rel=0.03)
    assert result.sigma_source == "background"


@pytest.mark.parametrize("snr", [5.0, 10.0, 20.0])
@pytest.mark.parametrize("radial", [True, False])
def test_quiet_of_the_head_tells_the_noise(snr: float, radial: bool) -> None:
    """Anatomy can only add to it; the correlation of radial noise does not matter."""
    truth, _ = head()
    rng = np.random.default_rng(1)
    sigma = MMOL_L["NAWM"] / snr
    white = rng.standard_normal(HEAD.shape) + 1j * rng.standard_normal(HEAD.shape)
    noisy = Volume(np.abs(truth + sigma * (radial_noise(rng) if radial else white)), HEAD)
    assert 0.95 < quiet_noise(noisy).sigma / sigma < 1.4
    found = estimate_noise(noisy)
    assert found.source == "background"
    assert found.sigma == pytest.approx(sigma, rel=0.05)


def test_noise_of_a_masked_brain_is_an_upper_bound_and_says_so() -> None:
    truth, _ = head()
    noisy = np.abs(truth + 3.2 * radial_noise(np.random.default_rng(1)))
    found = estimate_noise(Volume(np.where(in_brain(), noisy, 0.0), HEAD))
    assert found.source == "quiet"
    assert 1.0 < found.sigma / 3.2 < 1.0 + found.relative_error


def test_background_full_of_artefact_gives_way_to_the_quiet() -> None:
    """Aliasing of an undersampled scan fills the air with several times the noise."""
    truth, _ = head()
    rng = np.random.default_rng(2)
    artefact = 8.0 * radial_noise(rng) * (np.abs(truth) < 8.0)
    noisy = np.abs(truth + artefact + 2.0 * radial_noise(rng))
    assert background_noise(Volume(noisy, HEAD), order=1).sigma > 3.5 * 2.0
    found = estimate_noise(Volume(noisy, HEAD))
    assert found.source == "quiet"
    assert 0.95 < found.sigma / 2.0 < 1.4
    assert found.disagreement > 2.0


@pytest.mark.parametrize("snr", [5.0, 10.0, 40.0])
def test_two_scans_tell_the_noise(snr: float) -> None:
    truth, _ = head()
    rng = np.random.default_rng(3)
    sigma = MMOL_L["NAWM"] / snr
    one, two = (truth + sigma * radial_noise(rng) for _ in range(2))
    for first, second in ((np.abs(one), 1.03 * np.abs(two)), (one * np.exp(1j), two * np.exp(1j))):
        found = estimate_noise(Volume(first, HEAD), repeated=Volume(second, HEAD))
        assert found.source == "repeated"
        assert found.sigma == pytest.approx(sigma, rel=0.03)


TE_MS = tuple(np.linspace(0.3, 40.0, 12).round(3))


def t2_star(signal: NDArray[np.float64]) -> float:
    """Slow T2* in ms from the echoes after the fast component has gone."""
    late = np.array(TE_MS) > 12.0
    return float(-1.0 / np.polyfit(np.array(TE_MS)[late], np.log(signal[late]), 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["complex", "magnitude", "radial noise"])
def test_components_of_echoes_remove_noise_and_keep_the_decay(kind: str) -> None:
    truth, pure = head(TE_MS)
    slab = slice(24, 40)
    truth, pure = truth[:, :, slab], {name: mask[:, :, slab] for name, mask in pure.items()}
    grid = Grid(truth.shape[:3], HEAD.affine)
    rng, sigma = np.random.default_rng(4), MMOL_L["NAWM"] / 10.0
    noise = np.stack([radial_noise(rng)[:, :, slab] for _ in TE_MS], axis=-1)
    if kind != "radial noise":
        noise = rng.standard_normal(truth.shape) + 1j * rng.standard_normal(truth.shape)
    noisy = (truth + sigma * noise) * np.exp(0.5j)
    given = np.abs(noisy) if kind == "magnitude" else noisy
    mask = in_brain()[:, :, slab]
    result = denoise(Volume(given, grid), sigma=None if kind == "complex" else sigma, mask=mask)
    assert result.method == "mppca"
    assert result.sigma == pytest.approx(sigma, rel=0.03)
    clean = np.asarray(result.image.data)
    clean = clean if kind == "magnitude" else (clean * np.exp(-0.5j)).real
    real = (noisy * np.exp(-0.5j)).real
    assert (clean - truth)[mask].std() < (0.75 if kind == "radial noise" else 0.6) * (real - truth)[mask].std()
    for name in ("CGM", "NAWM", "CSF", "lesion"):
        expected, seen = truth[pure[name]].mean(axis=0), clean[pure[name]].mean(axis=0)
        # the noise of the mean itself
        chance = 2.0 * sigma / np.sqrt(pure[name].sum()) * (1.7 if kind == "radial noise" else 1.0)
        assert np.abs(seen - expected).max() < 0.01 * expected[0] + chance, name
        if name != "lesion":
            assert t2_star(seen) == pytest.approx(t2_star(expected), rel=0.03 + 2 * chance / expected[0]), name


@pytest.mark.parametrize("kind", ["complex", "magnitude"])
@pytest.mark.parametrize("snr", [5.0, 20.0])
def test_a_series_tells_its_noise(kind: str, snr: float) -> None:
    truth, _ = head(TE_MS)
    rng, sigma = np.random.default_rng(5), MMOL_L["NAWM"] / snr
    noisy = truth + sigma * (rng.standard_normal(truth.shape) + 1j * rng.standard_normal(truth.shape))
    found = series_noise(Volume(np.abs(noisy) if kind == "magnitude" else noisy, HEAD))
    assert found.sigma == pytest.approx(sigma, rel=0.08)
