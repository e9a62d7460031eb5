"""Laws of trajectories, of the gradients that make them and of the weights that undo them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_sodium.core.constants import GAMMA_BAR_MHZ_T
from bids_sodium.core.data import Grid, Trajectory
from bids_sodium.recon.density import WeightParams, gain, sample_weights
from bids_sodium.recon.gradients import from_directions, from_gradients, impulse_response_filtered
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.trajectory import (
    SCHEMES,
    cartesian,
    cartesian_echoes,
    cones_3d,
    delayed,
    density_adapted_radial,
    directions,
    floret,
    plain_radial,
    twisted_projections,
)

STROKE = {"gradient_mt_m": 4.6, "readout_ms": 20.0, "voxel_mm": 4.0}
COARSE = {"gradient_mt_m": 1.5, "readout_ms": 20.0, "voxel_mm": 8.0}
RASTER_MS = 0.01
T_MS = (np.arange(384) + 0.5) * (20.0 / 384)
GRID = Grid.centred((32, 32, 32), 8.0)


# ---- gradients and k-space --------------------------------------------------------------------------------------


def density_adapted_gradient(ramp_ms: float) -> np.ndarray:
    """G = G0 k0^2 / k^2 after ramp and plateau, at 0, 1, 2 ... raster times, by stepping dk = gamma G dt."""
    speed = GAMMA_BAR_MHZ_T * 4.6e-3
    # k0 from k_max: the root of k0^3 + 3 s k0^2 (T - k0 / s - tr / 2) = k_max^3 that lies on the way there.
    roots = np.roots([-2.0, 3.0 * speed * (20.0 - ramp_ms / 2.0), 0.0, -(0.125**3)])
    k0 = min(root.real for root in roots if abs(root.imag) < 1e-12 and 0.0 < root.real < 0.125)
    fine = 50
    dt, gradient, k = RASTER_MS / fine, [], 0.0
    for i in range(2001 * fine):
        ramp = min(1.0, i * dt / ramp_ms)
        if i % fine == 0:
            gradient.append(4.6 * ramp * min(1.0, (k0 / max(k, k0)) ** 2))
        ramp = min(1.0, (i + 0.5) * dt / ramp_ms)
        middle = k + 0.5 * dt * speed * ramp * min(1.0, (k0 / max(k, k0)) ** 2)
        k += dt * speed * ramp * min(1.0, (k0 / max(middle, k0)) ** 2)
    return np.array(gradient)


SPOKES = directions(12)
WAVES = SPOKES[:, None, :] * density_adapted_gradient(0.05)[None, :, None]


def integrated(gradient_mt_m: np.ndarray) -> Trajectory:
    return from_gradients(gradient_mt_m, raster_ms=RASTER_MS, t_ms=T_MS, raster_point="start")


def test_integrated_gradient_is_the_density_adapted_spoke() -> None:
    made = density_adapted_radial(12, 384, ramp_ms=0.05, **STROKE)
    assert np.abs(integrated(WAVES).k_per_mm - made.k_per_mm).max() < 2e-5 * made.k_max_per_mm


@settings(max_examples=20, deadline=None)
@given(
    a=st.floats(-3.0, 3.0), b=st.floats(-3.0, 3.0), seed=st.integers(0, 999), point=st.sampled_from(["centre", "start"])
)
def test_k_is_linear_in_the_gradient(a: float, b: float, seed: int, point: str) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.normal(0, 5, (2, 2, 60, 3))
    t = np.sort(rng.uniform(0.0, 0.6, 11))

    def k(gradient: np.ndarray) -> np.ndarray:
        return from_gradients(gradient, raster_ms=RASTER_MS, t_ms=t, raster_point=point).k_per_mm

    np.testing.assert_allclose(k(a * one + b * two), a * k(one) + b * k(two), atol=3e-7)


def test_unit_response_is_the_identity() -> None:
    played = impulse_response_filtered(WAVES, RASTER_MS, np.array([0.0, 10.0]), np.ones((2, 3), dtype=complex))
    np.testing.assert_allclose(played, WAVES, atol=1e-12)


@pytest.mark.parametrize("delay_ms", [(0.012, 0.012, 0.012), (0.004, -0.003, 0.015)])
def test_linear_phase_is_a_delay(delay_ms: tuple[float, float, float]) -> None:
    frequency = np.linspace(0.0, 50.0, 1001)
    response = np.exp(-2j * np.pi * frequency[:, None] * np.array(delay_ms))
    played = impulse_response_filtered(WAVES, RASTER_MS, frequency, response)
    filtered = integrated(played)
    built = density_adapted_radial(12, 384, ramp_ms=0.05, delay_ms=delay_ms, **STROKE)
    moved = delayed(density_adapted_radial(12, 384, ramp_ms=0.05, **STROKE), delay_ms)
    still = density_adapted_radial(12, 384, ramp_ms=0.05, **STROKE)
    effect = np.abs(built.k_per_mm - still.k_per_mm).max()
    assert np.abs(filtered.k_per_mm - built.k_per_mm).max() < 0.02 * effect
    # Between samples a path is not a straight line where the gradient ramps up; one sample on, it is.
    assert np.abs(filtered.k_per_mm - moved.k_per_mm)[:, 2:].max() < 0.02 * effect


def test_a_low_pass_rounds_the_ramp_and_keeps_the_end() -> None:
    """An exponential response of time constant tau lags by tau and is at the same place otherwise."""
    tau, frequency = 0.03, np.linspace(0.0, 50.0, 2001)
    response = np.repeat((1.0 / (1.0 + 2j * np.pi * frequency * tau))[:, None], 3, axis=1)
    played = impulse_response_filtered(WAVES, RASTER_MS, frequency, response)
    filtered = integrated(played)
    late = density_adapted_radial(12, 384, ramp_ms=0.05, delay_ms=tau, **STROKE)
    end = np.linalg.norm(filtered.k_per_mm[:, 200:], axis=-1) - np.linalg.norm(late.k_per_mm[:, 200:], axis=-1)
    assert np.abs(end).max() < 2e-5 * late.k_max_per_mm


# ---- time -------------------------------------------------------------------------------------------------------

READOUTS = {
    "density-adapted": lambda **more: density_adapted_radial(50, more.pop("n_samples", 256), **COARSE, **more),
    "plain": lambda **more: plain_radial(50, more.pop("n_samples", 256), readout_ms=20.0, voxel_mm=8.0, **more),
    "twisted": lambda **more: twisted_projections(50, more.pop("n_samples", 256), **COARSE, **more),
    "cones": lambda **more: cones_3d(fov_mm=120.0, voxel_mm=8.0, readout_ms=10.0, **{"n_samples": 256, **more}),
    "floret": lambda **more: floret(fov_mm=120.0, voxel_mm=8.0, readout_ms=10.0, **{"n_samples": 256, **more}),
}
EVERY_READOUT = pytest.mark.parametrize("make", READOUTS.values(), ids=list(READOUTS))


@EVERY_READOUT
def test_the_centre_of_a_dwell_is_the_start_of_a_half(make) -> None:
    centre, start = make(n_samples=256), make(n_samples=512, dwell="start")
    np.testing.assert_allclose(start.t_ms[1::2], centre.t_ms, atol=1e-12)
    np.testing.assert_allclose(start.k_per_mm[:, 1::2], centre.k_per_mm, atol=1e-7)
    assert np.abs(start.k_per_mm[:, 0]).max() == 0.0


@EVERY_READOUT
def test_a_delay_of_half_a_dwell_turns_one_convention_into_the_other(make) -> None:
    centre = make()
    start = make(dwell="start")
    late = make(delay_ms=float(centre.t_ms[0]))
    np.testing.assert_allclose(late.k_per_mm, start.k_per_mm, atol=1e-7)


@EVERY_READOUT
def test_each_axis_has_its_own_delay(make) -> None:
    apart = make(delay_ms=[0.01, -0.02, 0.03])
    for axis, delay_ms in enumerate((0.01, -0.02, 0.03)):
        np.testing.assert_array_equal(apart.k_per_mm[..., axis], make(delay_ms=delay_ms).k_per_mm[..., axis])


@EVERY_READOUT
def test_delays_that_are_one_after_the_other_add_up(make) -> None:
    still = make(n_samples=2048)
    twice = delayed(delayed(still, (0.02, 0.01, 0.03)), (0.01, 0.03, -0.01))
    once = delayed(still, (0.03, 0.04, 0.02))
    assert np.abs(twice.k_per_mm - once.k_per_mm)[:, 20:-20].max() < 2e-4 * still.k_max_per_mm


@settings(max_examples=20, deadline=None)
@given(delay_ms=st.floats(-0.05, 0.05))
def test_bipolar_echoes_shift_opposite_ways(delay_ms: float) -> None:
    there, back = cartesian_echoes(
        (16, 3, 2), n_echoes=2, voxel_mm=4.0, readout_ms=4.0, bipolar=True, delay_ms=delay_ms
    )
    still = cartesian((16, 3, 2), voxel_mm=4.0, readout_ms=4.0)
    shift = there.k_per_mm[..., 0] - still.k_per_mm[..., 0]
    np.testing.assert_allclose(shift, -delay_ms / 0.25 / 64.0, atol=1e-8)
    np.testing.assert_allclose(back.k_per_mm[:, ::-1, 0] - still.k_per_mm[..., 0], -shift, atol=1e-8)
    np.testing.assert_array_equal(back.k_per_mm[..., 1:], still.k_per_mm[..., 1:])
    np.testing.assert_allclose(delayed(still, delay_ms).k_per_mm, there.k_per_mm, atol=1e-8)


# ---- gain -------------------------------------------------------------------------------------------------------


def spectrum(k_per_mm: np.ndarray, semi_axes_mm: tuple[float, ...], centre_mm: tuple[float, ...]) -> np.ndarray:
    """The integral over an ellipsoid of value one, in closed form."""
    x = np.maximum(2 * np.pi * np.linalg.norm(k_per_mm * np.array(semi_axes_mm), axis=-1), 1e-2)
    ball = 4 * np.pi * np.prod(semi_axes_mm) * (np.sin(x) - x * np.cos(x)) / x**3
    return ball * np.exp(-2j * np.pi * (k_per_mm @ np.array(centre_mm)))


def core_mean(
    trajectory: Trajectory,
    weights: np.ndarray,
    grid: Grid = GRID,
    semi_axes_mm: tuple[float, ...] = (95.0, 95.0, 95.0),
    centre_mm: tuple[float, ...] = (0.0, 0.0, 0.0),
    sampled: Trajectory | None = None,
) -> float:
    """Gridded value within three quarters of a uniform ellipsoid, by the transform that makes images."""
    samples = spectrum((sampled or trajectory).k_per_mm.astype(float), semi_axes_mm, centre_mm)
    image = Nufft(trajectory, grid).gridded(weights * samples).real
    axes = [(np.arange(n) - n // 2) * step for n, step in zip(grid.shape, grid.voxel_mm, strict=True)]
    at = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = sum(((x - c) / a) ** 2 for x, c, a in zip(at, centre_mm, semi_axes_mm, strict=True)) < 0.75**2
    return float(image[inside].mean())


def imported(trajectory: Trajectory, kept: np.ndarray | slice = slice(None)) -> Trajectory:
    """What is left of a trajectory in a file that holds positions and times alone."""
    return Trajectory(trajectory.k_per_mm[kept], trajectory.t_ms)


def jittered(trajectory: Trajectory) -> Trajectory:
    rng = np.random.default_rng(3)
    noise = rng.normal(0.0, 3e-4, trajectory.k_per_mm.shape).astype(np.float32)
    return Trajectory(trajectory.k_per_mm + noise, trajectory.t_ms)


def through_the_centre(n_spokes: int) -> Trajectory:
    half = density_adapted_radial(2 * n_spokes, 128, **COARSE).k_per_mm[:n_spokes]
    return Trajectory(np.concatenate([-half[:, ::-1], half], axis=1), np.arange(256) + 0.5)


SOME = np.random.default_rng(4).permutation(1500)[:1350]
RADIAL = density_adapted_radial(1500, 128, **COARSE)
CENTRE_OUT = {
    **{scheme: density_adapted_radial(1500, 128, scheme=scheme, **COARSE) for scheme in SCHEMES},
    "start": density_adapted_radial(1500, 128, dwell="start", **COARSE),
    "late": density_adapted_radial(1500, 128, delay_ms=[0.003, -0.002, 0.005], **COARSE),
    "plain": plain_radial(1500, 128, readout_ms=20.0, voxel_mm=8.0),
    "twisted": twisted_projections(800, 192, **COARSE),
    "cones": cones_3d(fov_mm=240.0, voxel_mm=8.0, readout_ms=10.0),
    "cones, start": cones_3d(fov_mm=240.0, voxel_mm=8.0, readout_ms=10.0, dwell="start"),
    "one hub": floret(fov_mm=240.0, voxel_mm=8.0, readout_ms=10.0, hubs=1),
    "two hubs": floret(fov_mm=240.0, voxel_mm=8.0, readout_ms=10.0, hubs=2),
    "three hubs": floret(fov_mm=240.0, voxel_mm=8.0, readout_ms=10.0),
    "imported": imported(RADIAL),
    "imported, a tenth missing": imported(RADIAL, SOME),
    "imported, random directions": from_directions(
        np.random.default_rng(5).permutation(directions(9000, "golden-means"))[:1500],
        np.linalg.norm(RADIAL.k_per_mm[0], axis=-1),
        RADIAL.t_ms,
    ),
}
LATTICE = cartesian((32, 32, 32), voxel_mm=8.0, readout_ms=5.0)
OTHERS = {
    "lattice": (LATTICE, "auto"),
    "lattice, iterated": (LATTICE, "pipe-menon"),
    "lattice, read backwards": (
        cartesian((32, 32, 32), voxel_mm=8.0, readout_ms=5.0, polarity=-1, delay_ms=0.02),
        "auto",
    ),
    "imported, jittered": (jittered(RADIAL), "auto"),
    "through the centre": (through_the_centre(800), "auto"),
}
ITERATED = ("golden", "twisted", "cones", "three hubs", "imported, a tenth missing")


@pytest.mark.parametrize("method", ["analytic", "voronoi"])
@pytest.mark.parametrize("name", CENTRE_OUT)
def test_gain_of_a_ball_is_one(name: str, method: str) -> None:
    trajectory = CENTRE_OUT[name]
    weights = sample_weights(trajectory, GRID, WeightParams(method=method))
    assert core_mean(trajectory, weights) == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("name", ITERATED)
def test_gain_of_a_ball_is_one_by_iteration(name: str) -> None:
    trajectory = CENTRE_OUT[name]
    weights = sample_weights(trajectory, GRID, WeightParams(method="pipe-menon"))
    assert core_mean(trajectory, weights) == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("name", OTHERS)
def test_gain_of_a_ball_is_one_where_readouts_do_not_begin_at_the_centre(name: str) -> None:
    trajectory, method = OTHERS[name]
    weights = sample_weights(trajectory, GRID, WeightParams(method=method))
    assert core_mean(trajectory, weights) == pytest.approx(1.0, abs=0.005)


PAPER = {
    "stroke": (lambda: density_adapted_radial(6000, 384, **STROKE), Grid.centred((64, 64, 64), 4.0)),
    "stroke, imported": (
        lambda: imported(density_adapted_radial(6000, 384, **STROKE)),
        Grid.centred((64, 64, 64), 4.0),
    ),
    "plain": (lambda: plain_radial(6000, 384, readout_ms=20.0, voxel_mm=4.0), Grid.centred((64, 64, 64), 4.0)),
    "twisted": (lambda: twisted_projections(3000, 384, **STROKE), Grid.centred((64, 64, 64), 4.0)),
    "MS": (lambda: cones_3d(fov_mm=240.0, voxel_mm=3.0, readout_ms=20.0), Grid.centred((80, 80, 80), 3.0)),
    "FLORET": (lambda: floret(fov_mm=240.0, voxel_mm=3.0, readout_ms=20.0), Grid.centred((80, 80, 80), 3.0)),
}


@pytest.mark.slow
def test_gain_of_a_ball_is_one_at_the_size_of_the_papers() -> None:
    found = {}
    for name, (make, grid) in PAPER.items():
        trajectory = make()
        for method in ("analytic", "voronoi", "pipe-menon")[: 3 if name == "stroke" else 2]:
            weights = sample_weights(trajectory, grid, WeightParams(method=method))
            found[name, method] = core_mean(trajectory, weights, grid)
    assert {key: value for key, value in found.items() if abs(value - 1.0) > 0.005} == {}
    assert len(found) == 13


EGG = {"semi_axes_mm": (80.0, 60.0, 95.0), "centre_mm": (10.0, -15.0, 5.0)}


def gain_of_a_sphere_of_kspace(edge_per_mm: float) -> float:
    """What a densely sampled sphere of k-space shows of the ellipsoid: ringing moves the mean of its core a little."""
    step = 1.0 / 512.0
    axis = np.arange(-int(edge_per_mm / step) - 1, int(edge_per_mm / step) + 2) * step
    k = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    k = k[np.linalg.norm(k[:, 0], axis=-1) <= edge_per_mm]
    dense = Trajectory(k, np.zeros(1))
    return core_mean(dense, np.full((len(k), 1), step**3), **EGG)


@pytest.mark.parametrize(
    "name",
    [
        "golden",
        "rings",
        "golden-means",
        "late",
        "twisted",
        "cones",
        "three hubs",
        "imported, a tenth missing",
        "imported, random directions",
    ],
)
def test_gain_does_not_depend_on_the_shape(name: str) -> None:
    """A ball hides weights that are wrong by direction, an ellipsoid beside the centre does not."""
    trajectory = CENTRE_OUT[name]
    ideal = gain_of_a_sphere_of_kspace(0.0625)
    assert ideal == pytest.approx(1.0026, abs=5e-4)
    weights = sample_weights(trajectory, GRID)
    assert core_mean(trajectory, weights, **EGG) == pytest.approx(ideal, abs=0.002)


def test_unequal_delays_matter_and_are_undone() -> None:
    """Weights for equal delays on positions that have other ones: the very error that is undone."""
    fine = {"n_spokes": 1500, "n_samples": 384, **COARSE, "gradient_mt_m": 4.6}
    late = density_adapted_radial(**fine, delay_ms=[0.003, -0.002, 0.005])
    as_if = sample_weights(density_adapted_radial(**fine, delay_ms=0.002), GRID)
    ideal = gain_of_a_sphere_of_kspace(0.0625)
    wrong = core_mean(late, as_if, **EGG) - ideal
    right = core_mean(late, sample_weights(late, GRID), **EGG) - ideal
    assert abs(wrong) > 0.005
    assert abs(right) < 0.1 * abs(wrong)


def test_half_a_dwell_is_seen() -> None:
    """Samples of a decaying ball, taken at the centres of their dwells, read as if at the starts."""
    centre = density_adapted_radial(1500, 384, **COARSE)
    start = density_adapted_radial(1500, 384, dwell="start", **COARSE)
    errors = {}
    for name, trajectory in {"right": centre, "wrong": start}.items():
        weights = sample_weights(trajectory, GRID)
        errors[name] = abs(core_mean(trajectory, weights, sampled=centre) - 1.0)
    assert errors["right"] < 0.005
    assert errors["wrong"] > 0.03
    assert errors["wrong"] > 10.0 * errors["right"]


def test_gain_is_blind_to_the_axes_along_which_gradients_lag() -> None:
    """The coils' axes are not those of an oblique grid."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", [20.0, -35.0, 50.0], degrees=True).as_matrix()
    late = imported(CENTRE_OUT["late"])
    turned = dataclasses.replace(late, k_per_mm=late.k_per_mm @ turn.T)
    weights, others = sample_weights(late, GRID), sample_weights(turned, GRID)
    np.testing.assert_allclose(others, weights, rtol=2e-2, atol=1e-3 * weights.max())
    assert gain(turned, others) == pytest.approx(gain(late, weights), rel=1e-4)
