"""Laws of the transforms and of the reconstruction as a linear map."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_sodium.core.constants import Decay
from bids_sodium.core.data import Grid, KSpace, Volume
from bids_sodium.recon.columns import operator_columns
from bids_sodium.recon.density import gain, kspace_filter, sample_weights
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.offresonance import FieldNufft
from bids_sodium.recon.regularised import total_variation
from bids_sodium.recon.solvers import Linear, ReconstructionParams, phase_corrected_real, reconstruct
from bids_sodium.recon.trajectory import density_adapted_radial

SPOKES = density_adapted_radial(600, 96, gradient_mt_m=1.5, readout_ms=20.0, voxel_mm=8.0)
CUBE = Grid.centred((32, 32, 32), 8.0)
UNEVEN = Grid((24, 20, 27), np.diag([8.0, 7.0, 6.0, 1.0]))


def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.mark.parametrize("grid", [CUBE, UNEVEN], ids=["cube", "uneven"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_adjoint_is_the_conjugate_transpose(grid: Grid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    operator = Nufft(SPOKES, grid, 1e-5)
    image, samples = noise(rng, grid.shape), noise(rng, (600, 96))
    left = np.vdot(samples.astype(complex), operator.forward(image).astype(complex))
    right = np.vdot(operator.adjoint(samples).astype(complex), image.astype(complex))
    size = np.linalg.norm(operator.forward(image)) * np.linalg.norm(samples)
    assert abs(left - right) / size < 1e-5


@pytest.mark.parametrize("grid", [CUBE, UNEVEN], ids=["cube", "uneven"])
def test_toeplitz_operator_equals_the_two_transforms(grid: Grid) -> None:
    rng = np.random.default_rng(1)
    operator, weights = Nufft(SPOKES, grid), sample_weights(SPOKES, grid)
    image = noise(rng, grid.shape)
    direct = operator.gridded(weights * operator.forward(image))
    assert np.linalg.norm(operator.toeplitz(weights)(image) - direct) < 1e-4 * np.linalg.norm(direct)


def test_toeplitz_operator_is_hermitian() -> None:
    rng = np.random.default_rng(2)
    normal = Nufft(SPOKES, UNEVEN).toeplitz(sample_weights(SPOKES, UNEVEN))
    a, b = noise(rng, UNEVEN.shape), noise(rng, UNEVEN.shape)
    assert np.vdot(a, normal(b)) == pytest.approx(np.conj(np.vdot(b, normal(a))), rel=1e-3, abs=1e-3)


def test_leading_axis_is_a_loop() -> None:
    rng = np.random.default_rng(3)
    operator, stack = Nufft(SPOKES, CUBE), noise(rng, (3, 600, 96))
    together = operator.adjoint(stack)
    for one, row in zip(stack, together, strict=True):
        assert np.linalg.norm(operator.adjoint(one) - row) < 1e-4 * np.linalg.norm(row)


@pytest.mark.parametrize("method", ["cg", "adjoint"])
def test_reconstruction_is_linear(method: str) -> None:
    rng = np.random.default_rng(4)
    recon = Linear(SPOKES, CUBE, ReconstructionParams(method=method))
    a, b = noise(rng, (600, 96)), noise(rng, (600, 96))
    together = recon((2.0 - 1.0j) * a + 3.0 * b)
    apart = (2.0 - 1.0j) * recon(a) + 3.0 * recon(b)
    assert np.linalg.norm(together - apart) < 1e-4 * np.linalg.norm(apart)


@pytest.mark.parametrize("method", ["cg", "adjoint"])
def test_reconstruction_in_a_field_is_linear(method: str) -> None:
    rng = np.random.default_rng(7)
    field_hz = np.linspace(-15.0, 15.0, 32)[:, None, None] * np.ones((1, 32, 32))
    recon = Linear(SPOKES, CUBE, ReconstructionParams(method=method, iterations=2), field_hz=field_hz)
    a, b = noise(rng, (600, 96)), noise(rng, (600, 96))
    apart = (1.0 + 2.0j) * recon(a) - recon(b)
    assert np.linalg.norm(recon((1.0 + 2.0j) * a - b) - apart) < 1e-4 * np.linalg.norm(apart)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit_hz=st.floats(0.0, 60.0))
def test_adjoint_in_a_field_is_the_conjugate_transpose(seed: int, limit_hz: float) -> None:
    rng = np.random.default_rng(seed)
    few = dataclasses.replace(SPOKES, k_per_mm=SPOKES.k_per_mm[::10], solid_angle_sr=None)
    operator = FieldNufft(Nufft(few, UNEVEN), rng.uniform(-limit_hz, limit_hz, UNEVEN.shape))
    image, samples = noise(rng, UNEVEN.shape), noise(rng, (60, 96))
    seen = operator.forward(image)
    difference = np.vdot(samples, seen) - np.vdot(operator.adjoint(samples), image)
    assert abs(difference) < 1e-4 * np.linalg.norm(samples) * np.linalg.norm(seen)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), turn=st.floats(-3.1, 3.1), scale=st.floats(0.1, 10.0))
def test_variation_is_a_seminorm(seed: int, turn: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = noise(rng, (7, 6, 5)), noise(rng, (7, 6, 5))
    assert total_variation(scale * np.exp(1j * turn) * a + 3.0) == pytest.approx(scale * total_variation(a), rel=1e-4)
    assert total_variation(a + b) <= (total_variation(a) + total_variation(b)) * (1.0 + 1e-5)
    assert total_variation(a.transpose(2, 0, 1)) == pytest.approx(total_variation(a), rel=1e-4)


def test_columns_add_up_to_the_image() -> None:
    """The scan of a mixture is the mixture of the columns, so that a linear fit recovers it exactly."""
    rng = np.random.default_rng(5)
    fine = CUBE.with_voxel(4.0)
    maps = {
        name: Volume(np.where(np.arange(64) % 3 == i, 1.0, 0.0) * rng.random(fine.shape), fine)
        for i, name in enumerate("abc")
    }
    decays = {"a": Decay(3.0, 20.0), "b": Decay(12.0, 53.0), "c": Decay(55.0, 55.0)}
    concentration = np.array([40.0, 50.0, 140.0])
    columns = operator_columns(maps, CUBE, SPOKES, decays, te_ms=0.5, keep_samples=True)
    samples = np.tensordot(concentration, columns.samples, axes=1)[None]
    image = reconstruct(KSpace(samples, SPOKES, CUBE)).image.real
    found = np.linalg.lstsq(columns.images.reshape(3, -1).T, image.ravel(), rcond=None)[0]
    assert found == pytest.approx(concentration, rel=1e-4)


@settings(max_examples=10, deadline=None)
@given(angles=st.lists(st.floats(-3.0, 3.0), min_size=4, max_size=4))
def test_smooth_phase_does_not_matter(angles: list[float]) -> None:
    x, y, z = np.meshgrid(*[(np.arange(32) - 16) / 16] * 3, indexing="ij")
    head = np.exp(-2.0 * (x**2 + y**2 + z**2)) * (1.0 + 0.3 * np.cos(9.0 * x))
    phase = angles[0] + angles[1] * x + angles[2] * y + angles[3] * z * z
    real = phase_corrected_real(head * np.exp(1j * phase), CUBE)
    assert np.abs(real - head).max() < 2e-3


def test_shifted_grid_shifts_the_image() -> None:
    rng = np.random.default_rng(6)
    samples = Nufft(SPOKES, CUBE).forward(np.pad(rng.random((12, 12, 12)), 10))
    affine = CUBE.affine.copy()
    affine[:3, 3] += CUBE.affine[:3, :3] @ [2, -1, 3]
    kspace = KSpace(samples[None], SPOKES, CUBE)
    params = ReconstructionParams(mode="paper")
    here = reconstruct(kspace, CUBE, params).image
    there = reconstruct(kspace, Grid(CUBE.shape, affine), params).image
    inner = (slice(8, 24),) * 3
    assert np.abs(there[inner] - np.roll(here, (-2, 1, -3), (0, 1, 2))[inner]).max() < 1e-3 * np.abs(here).max()


@settings(max_examples=8, deadline=None)
@given(offset_hz=st.floats(-50.0, 50.0))
def test_demodulation_undoes_an_offset(offset_hz: float) -> None:
    samples = Nufft(SPOKES, CUBE).forward(np.pad(np.ones((12, 12, 12)), 10))
    turned = samples * np.exp(2j * np.pi * offset_hz * SPOKES.t_ms / 1000.0)
    plain = reconstruct(KSpace(samples[None], SPOKES, CUBE), params=ReconstructionParams(mode="paper")).image
    params = ReconstructionParams(mode="paper", offset_hz=offset_hz)
    again = reconstruct(KSpace(turned[None], SPOKES, CUBE), params=params).image
    assert np.abs(again - plain).max() < 1e-4 * np.abs(plain).max()


@settings(max_examples=10, deadline=None)
@given(angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3))
def test_gain_is_blind_to_rotation(angles: tuple[float, float, float]) -> None:
    from scipy.spatial.transform import Rotation

    turned = SPOKES.k_per_mm @ Rotation.from_euler("xyz", angles).as_matrix().T
    rotated = dataclasses.replace(SPOKES, k_per_mm=turned)
    weights = sample_weights(SPOKES, CUBE)
    assert gain(rotated, weights) == pytest.approx(gain(SPOKES, weights), rel=1e-6)
    assert sample_weights(rotated, CUBE) == pytest.approx(weights, rel=2e-2)


@pytest.mark.parametrize("name", ["gaussian", "hamming", "hann"])
def test_filters_fall_from_one(name: str) -> None:
    values = kspace_filter(SPOKES, name, 0.9)
    assert values[:, 0] == pytest.approx(1.0, abs=1e-2)
    assert np.diff(values, axis=1).max() <= 1e-7
    assert (values >= 0).all()
