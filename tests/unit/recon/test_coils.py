import numpy as np
import pytest

from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.recon import coils
from bids_sodium.recon.coils import combine, noise_covariance, noise_sigma, sensitivities, whitening


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def white(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def test_sigma_is_that_of_the_real_part(rng) -> None:
    noise = white(rng, (2, 3000, 128)) * np.array([1.0, 7.0])[:, None, None]
    assert noise_sigma(noise) == pytest.approx([1.0, 7.0], rel=0.005)


def test_sigma_ignores_slow_signal_and_spikes(rng) -> None:
    noise = white(rng, (1, 3000, 128))
    signal = 50.0 * np.exp(-np.linspace(0.0, 5.0, 128)) * np.exp(0.02j * np.arange(128))
    noise[0, ::100, 100] += 1e4
    assert noise_sigma(noise + signal) == pytest.approx(1.0, rel=0.01)


def test_whitening_makes_channels_independent_and_equal(rng) -> None:
    mixing = white(rng, (4, 4))
    noise = np.tensordot(mixing, white(rng, (4, 2000, 128)), axes=1)
    matrix = whitening(noise_covariance(noise))
    clean = np.tensordot(matrix, noise, axes=1).reshape(4, -1)
    covariance = clean @ clean.conj().T / clean.shape[1] / 2.0
    level = np.exp(np.mean(np.log(noise_sigma(noise)))) ** 2
    assert np.abs(covariance / level - np.eye(4)).max() < 0.02


def test_combination_recovers_the_object(rng) -> None:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    sensitivity = np.stack([np.exp(-((x - a) ** 2) - (y - b) ** 2 + 1j * a * z) for a in (-1, 1) for b in (-1, 1)])
    texture = 1.0 + 0.5 * np.cos(5 * x)
    found = combine(sensitivity * texture)
    total = np.sqrt((np.abs(sensitivity) ** 2).sum(axis=0))
    assert np.abs(found.image) == pytest.approx(total * texture, rel=0.02)
    assert (np.abs(found.sensitivity) ** 2).sum(axis=0) == pytest.approx(1.0, rel=1e-5)
    assert np.abs(combine(sensitivity * texture, "sos").image) == pytest.approx(total * texture, rel=1e-5)


def test_combination_keeps_the_noise_level(rng) -> None:
    noise = white(rng, (4, 24, 24, 24))
    signal = 100.0 * np.ones(4)[:, None, None, None]
    combined = combine(noise + signal).image
    assert combined.std() / np.sqrt(2.0) == pytest.approx(1.0, rel=0.03)


def test_one_channel_is_left_alone(rng) -> None:
    image = white(rng, (1, 4, 4, 4))
    np.testing.assert_array_equal(combine(image).image, image[0])


def test_noise_scan_tells_correlations_and_readouts_the_level(rng) -> None:
    mixing = white(rng, (3, 3))
    noise = np.tensordot(mixing, white(rng, (3, 1000, 128)), axes=1)
    scan = 7.0 * mixing @ white(rng, (3, 50000))
    found = noise_covariance(noise, scan)
    exact = mixing @ mixing.conj().T
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()
    scan[1] = 0.0
    with pytest.raises(DataError, match=r"channel\(s\) 1 hold no noise"):
        noise_covariance(noise, scan)


def test_slabs_do_not_show(rng, monkeypatch: pytest.MonkeyPatch) -> None:
    images = white(rng, (3, 13, 8, 9)) + 3.0
    whole = sensitivities(images)
    monkeypatch.setattr(coils, "_SLAB_VOXELS", 2 * 8 * 9)
    assert np.abs(sensitivities(images) - whole).max() < 1e-6


def test_empty_voxels_keep_unit_vectors() -> None:
    images = np.zeros((3, 8, 8, 8), np.complex64)
    images[:, :2] = np.array([1.0, 2.0j, -2.0])[:, None, None, None]
    found = sensitivities(images)
    assert (np.abs(found) ** 2).sum(axis=0) == pytest.approx(1.0, rel=1e-5)
    assert np.abs(found[:, 0, 4, 4]) == pytest.approx([1 / 3, 2 / 3, 2 / 3], rel=1e-5)


def test_phase_of_the_image_is_smooth_where_a_channel_is_deaf(rng) -> None:
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    seen = np.stack([np.exp(-4 * (x - a) ** 2 + 1j * a * y) for a in (-1.0, 0.0, 1.0)])
    combined = combine(seen * 50.0 + 0.2 * white(rng, seen.shape)).image
    steps = np.angle(combined[1:] * combined[:-1].conj())
    assert np.abs(steps).max() < 0.5


def test_bad_channels_are_named(rng) -> None:
    noise = white(rng, (3, 100, 64))
    noise[1] = 0.0
    with pytest.raises(DataError, match=r"channel\(s\) 1 hold no noise"):
        noise_covariance(noise)
    with pytest.raises(DataError, match="linearly dependent"):
        whitening(np.ones((2, 2)))
    with pytest.raises(DataError, match="2 samples"):
        noise_sigma(noise[..., :2])
    with pytest.raises(ConfigError, match="mean"):
        combine(np.ones((2, 4, 4, 4), complex), "mean")
