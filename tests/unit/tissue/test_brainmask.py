"""Where the brain is: stripped images, trimmed borders, and the network's way in and out of an image's axes."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from bids_sodium.core.data import Grid, Volume
from bids_sodium.core.errors import ConfigError, EstimationError
from bids_sodium.spatial.transforms import rigid_from_parameters
from bids_sodium.tissue import brainmask
from bids_sodium.tissue.brainmask import learned_mask, own_mask, trimmed

SHAPE = (40, 40, 40)
R = np.linalg.norm(np.indices(SHAPE) - 19.5, axis=0)
MODES = {"CSF": 250.0, "GM": 600.0, "WM": 850.0}


def distances(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~mask).astype(np.float32), distance_transform_edt(mask).astype(np.float32)


def test_whole_head_is_not_taken_for_a_stripped_one() -> None:
    head = np.where(R < 18, 500.0, 5.0).astype(np.float32)
    mask, stripped = own_mask(head, R < 10, distances(R < 10)[0])
    assert not stripped
    assert (mask == (R < 10)).all()


def test_stripped_image_cut_to_the_tissue_gets_the_template_back() -> None:
    tight = np.where(R < 8, 500.0, 0.0).astype(np.float32)
    mask, stripped = own_mask(tight, R < 10, distances(R < 10)[0])
    assert stripped
    assert (mask == (R < 10)).all()


def test_trimming_follows_the_border_of_the_image_both_ways() -> None:
    truth = R < 11
    image = np.select([R < 9, truth, R < 14], [850.0, 600.0, 60.0], 1200.0).astype(np.float32)
    for radius in (10, 12):
        mask = radius > R
        outside, inside = distances(mask)
        found = trimmed(image, mask, MODES, noise=5.0, outside_mm=outside, inside_mm=inside)
        assert (found ^ truth).sum() < 0.02 * truth.sum()


@pytest.mark.parametrize("radius", [8.5, 11.0, 13.0])
def test_border_between_fluid_and_dark_skull_lies_half_way_of_the_signals(radius: float) -> None:
    """A magnitude image lifts what is dark, most where there is no signal: the border must not move inwards with it."""
    noise, modes = 35.0, {"CSF": 180.0, "GM": 640.0, "WM": 1000.0}
    edge = np.clip(11.5 - R, 0.0, 1.0)  # half way at 11 voxels
    signal = np.select([R < 7, R < 9], [1000.0, 640.0], 180.0 * edge)
    image = np.where(signal > 0, np.hypot(signal, noise), np.sqrt(np.pi / 2) * noise).astype(np.float32)
    mask = radius > R
    outside, inside = distances(mask)
    seen = modes | {"CSF": float(np.hypot(180.0, noise))}
    found = trimmed(image, mask, seen, noise=noise, outside_mm=outside, inside_mm=inside)
    truth = R < 11
    assert (found ^ truth).sum() < 0.02 * truth.sum()


class Network(ModuleType):
    """Stands in for deepbet: it finds what is bright, and only in an image whose axes run right, front and up."""

    class BrainExtraction:
        """The part of deepbet that is called."""

        def __init__(self, *, no_gpu: bool) -> None:
            assert no_gpu

        def run_model(self, data: np.ndarray) -> np.ndarray:
            assert data.flags.c_contiguous
            if not data.any():
                return data
            nose = np.unravel_index(int(data.argmax()), data.shape)
            centre = np.argwhere(data > 0.5).mean(0)
            # the nose is in front, a little to the right and low
            assert nose[0] > centre[0]
            assert nose[1] > centre[1] + 10
            assert nose[2] < centre[2]
            return np.where(data > 0.5, 0.9, 0.1)

        def postprocess(self, found: np.ndarray) -> np.ndarray:
            if not found.any():
                raise IndexError("index 0 is out of bounds")
            return found.astype(np.uint8)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brainmask, "has_network", lambda: True)
    monkeypatch.setitem(sys.modules, "deepbet", Network("deepbet"))


@pytest.mark.parametrize(
    ("order", "signs"),
    [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, 1, 1)), ((2, 0, 1), (1, -1, -1)), ((1, 2, 0), (-1, -1, 1))],
)
@pytest.mark.usefixtures("network")
def test_network_sees_the_head_upright_whatever_the_axes(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    world = np.zeros(SHAPE, np.float32)
    world[10:30, 10:30, 12:28] = 1.0
    world[24, 34, 15] = 2.0
    turned = np.transpose(world, order)[tuple(slice(None, None, s) for s in signs)]
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    for axis, (row, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[row, axis] = sign
    oblique = rigid_from_parameters((8.0, -5.0, 10.0), (0, 0, 0), target="w", source="i").matrix @ matrix
    found = learned_mask(Volume(np.ascontiguousarray(turned), Grid(SHAPE, oblique)))
    assert (found == (turned > 0.5)).all()


@pytest.mark.usefixtures("network")
def test_network_that_finds_nothing_says_so() -> None:
    with pytest.raises(EstimationError, match="deepbet finds no brain"):
        learned_mask(Volume(np.full(SHAPE, np.nan, np.float32), Grid.centred(SHAPE, 4.0)))


def test_absent_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brainmask, "has_network", lambda: False)
    with pytest.raises(ConfigError, match="deepbet is not installed"):
        learned_mask(Volume(np.ones(SHAPE, np.float32), Grid.centred(SHAPE, 4.0)))
