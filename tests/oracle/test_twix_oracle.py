"""A real file of a Siemens scanner, a proton image of a phantom, against twixtools' own array and a plain transform."""

from pathlib import Path

import numpy as np
import pytest
import twixtools

from bids_sodium.bidsio.kspace import read_kspace
from bids_sodium.core.data import KSpace
from bids_sodium.core.errors import DataError
from bids_sodium.recon.nufft import Nufft


@pytest.fixture(scope="module")
def file(test_data: Path) -> Path:
    return test_data / "data" / "twix" / "gre.dat"


@pytest.fixture(scope="module")
def kspace(file: Path) -> KSpace:
    return read_kspace(file, {"ResonantNucleus": "1H"})


@pytest.fixture(scope="module")
def images(kspace: KSpace) -> np.ndarray:
    """Return the image (coils, x, y) of each channel by the adjoint."""
    operator = Nufft(kspace.trajectory, kspace.grid)
    return np.stack([operator.gridded(channel) for channel in kspace.samples])[..., 0] / 160**2


def test_protons_are_refused_unless_asked_for(file: Path) -> None:
    with pytest.raises(DataError, match="nucleus is 1H, 23Na is expected"):
        read_kspace(file)


def test_the_protocol_is_read(kspace: KSpace) -> None:
    assert kspace.samples.shape == (2, 160, 160)
    assert kspace.grid.shape == (160, 160, 1)
    assert kspace.grid.voxel_mm == pytest.approx((1.25, 1.25, 4.0))
    assert (kspace.te_ms, kspace.tr_ms, kspace.flip_deg) == (3.0, 10.0, 15.0)
    assert kspace.frequency_mhz == pytest.approx(123.263034)
    # 320 samples of 11.6 us, the centre of k-space at the echo time.
    assert kspace.trajectory.t_ms[[0, 80]] == pytest.approx([-160 * 0.0116, 0.0])


def test_the_image_is_that_of_a_plain_transform(file: Path, images: np.ndarray) -> None:
    whole = twixtools.map_twix(twixtools.read_twix(str(file), verbose=False))[-1]["image"]
    whole.flags["squeeze_singletons"] = True
    lines = whole[:].transpose(1, 2, 0)
    expected = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(lines, axes=(1, 2))), axes=(1, 2))[:, 80:240]
    assert expected.shape == images.shape
    assert np.abs(images - expected).max() < 2e-4 * np.abs(expected).max()


def test_the_energy_is_where_the_phantom_is(images: np.ndarray) -> None:
    """A disc of 190 mm diameter: bright within, dark in the corners."""
    power = (np.abs(images) ** 2).sum(axis=0)
    x, y = np.meshgrid(*[(np.arange(160) - 79.5) * 1.25] * 2, indexing="ij")
    inside, outside = np.hypot(x, y) < 97.0, np.hypot(x, y) > 105.0
    assert power[inside].sum() > 0.95 * power.sum()
    assert np.median(power[inside]) > 50.0 * np.median(power[outside])


def test_air_rises_to_the_front(kspace: KSpace, images: np.ndarray) -> None:
    """The phantom lies like a patient on the back; its filling leaves a flat gap, which gravity puts in front."""
    size = np.sqrt((np.abs(images) ** 2).sum(axis=0))
    world = kspace.grid.world(np.stack(np.meshgrid(*map(np.arange, kspace.grid.shape), indexing="ij"), axis=-1))[
        :, :, 0
    ]
    middle = (world - kspace.grid.world(np.array([80.0, 80.0, 0.0])))[..., :2]
    strip = np.abs(middle[..., 0]) < 30.0
    front, back = (size[strip & (np.abs(side * middle[..., 1] - 87.0) < 2.0)].mean() for side in (1.0, -1.0))
    assert front < 0.3 * back
