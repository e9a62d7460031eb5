import numpy as np
import pytest

from bids_sodium.core.data import Grid, KSpace
from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.regularised import edge_direction, least_variation, total_variation
from bids_sodium.recon.solvers import Linear, ReconstructionParams, reconstruct
from bids_sodium.recon.trajectory import density_adapted_radial

SPOKES = density_adapted_radial(800, 96, gradient_mt_m=1.2, readout_ms=20.0, voxel_mm=10.0)
GRID = Grid.centred((24, 24, 24), 10.0)


def blocks(shape: tuple[int, int, int] = (24, 24, 24)) -> np.ndarray:
    image = np.zeros(shape)
    image[6:18, 6:18, 6:18] = 40.0
    image[9:13, 8:12, 10:14] = 140.0
    return image


@pytest.fixture(scope="module")
def scan() -> KSpace:
    rng = np.random.default_rng(0)
    clean = Nufft(SPOKES, GRID).forward(blocks())
    noise = rng.standard_normal((2, *clean.shape)) * 2e6
    return KSpace((clean + noise[0] + 1j * noise[1])[None], SPOKES, GRID)


def test_variation_of_a_block_is_its_surface() -> None:
    image = np.zeros((12, 12, 12))
    image[3:9, 3:9, 3:9] = 2.0
    # Six faces of 36 voxels; at three edges and a corner, differences along several axes meet in one voxel.
    shared = 3 * 5 * (np.sqrt(2.0) - 2.0) + (np.sqrt(3.0) - 3.0)
    assert total_variation(image) == pytest.approx(2.0 * (6 * 36 + shared), rel=1e-6)
    assert total_variation(3j * image + 5.0) == pytest.approx(3.0 * total_variation(image), rel=1e-6)


def test_variation_counts_millimetres() -> None:
    image = np.zeros((8, 8, 8))
    image[4:] = 1.0
    flat, tall = total_variation(image, (2.0, 4.0, 4.0)), total_variation(image, (4.0, 4.0, 2.0))
    assert flat == pytest.approx(2.0 * tall)


def test_edges_of_the_prior_are_free() -> None:
    image = blocks()
    direction = edge_direction(image, (10.0, 10.0, 10.0), edge=1e-3)
    assert total_variation(image, direction=direction) < 0.01 * total_variation(image)
    elsewhere = np.roll(image, (5, 5, 5), (0, 1, 2))
    assert total_variation(elsewhere, direction=direction) > 0.85 * total_variation(image)
    flat = edge_direction(np.ones_like(image), (10.0, 10.0, 10.0))
    assert total_variation(image, direction=flat) == pytest.approx(total_variation(image))


def test_nothing_near_the_solution_is_better(scan: KSpace) -> None:
    operator = Nufft(SPOKES, GRID)
    weights = Linear(SPOKES, GRID).weights
    normal, right = operator.toeplitz(weights), operator.gridded(weights * scan.samples[0])
    found = least_variation(normal, right, 2.0, unit=1.0, voxel_mm=GRID.voxel_mm, iterations=300, tolerance=1e-3)
    assert found.converged

    def objective(image: np.ndarray) -> float:
        fit = 0.5 * np.vdot(image, normal(image)).real - np.vdot(right, image).real
        return float(fit) + 2.0 * total_variation(image, GRID.voxel_mm)

    least = objective(found.image)
    assert least == pytest.approx(found.objective[-1], rel=1e-5)
    assert least <= min(found.objective) + 1e-5 * abs(least)
    rng = np.random.default_rng(1)
    for size in (0.3, 3.0):
        noise = rng.standard_normal((2, *GRID.shape))
        assert objective(found.image + size * (noise[0] + 1j * noise[1])) > least
    for factor in (0.97, 1.03):
        assert objective((factor * found.image).astype(np.complex64)) > least


def test_iteration_ends_at_the_tolerance_or_says_that_it_did_not(scan: KSpace) -> None:
    solution = reconstruct(scan, params=ReconstructionParams(method="tv"))
    assert solution.converged
    assert 5 < solution.iterations < 60
    assert solution.residuals[-1] < 0.003 <= min(solution.residuals[:-1])
    short = reconstruct(scan, params=ReconstructionParams(method="tv", tv_iterations=3))
    assert not short.converged
    assert short.iterations == 3


def test_weight_is_counted_in_the_noise_of_the_adjoint(scan: KSpace) -> None:
    plain = ReconstructionParams(method="adjoint", filter="none")
    found = reconstruct(scan, params=ReconstructionParams(method="tv"))
    assert found.sigma == pytest.approx(reconstruct(scan, params=plain).sigma, rel=1e-6)


def test_more_weight_less_variation(scan: KSpace) -> None:
    images = [
        reconstruct(scan, params=ReconstructionParams(method="tv", tv_weight=weight, tv_reason="a test")).image
        for weight in (0.3, 1.0, 3.0)
    ]
    variation = [total_variation(image) for image in images]
    assert variation[0] > 1.1 * variation[1] > 1.2 * variation[2]


def test_lesions_are_spoken_of(scan: KSpace) -> None:
    prior = blocks().astype(np.float32)
    assert "flattens small lesions" in " ".join(reconstruct(scan, params=ReconstructionParams(method="tv")).notes)
    heavy = ReconstructionParams(method="dtv", tv_weight=2.0, tv_reason="for a poster")
    notes = " ".join(reconstruct(scan, params=heavy, prior=prior).notes)
    assert "lesion that the 1H image does not show" in notes
    assert "weight of the variation is 2" in notes
    assert "for a poster" in notes
    assert not any("lesion" in note for note in reconstruct(scan).notes)


def test_linear_methods_do_not_see_a_prior(scan: KSpace) -> None:
    with_prior = reconstruct(scan, prior=np.ones(GRID.shape, np.float32))
    np.testing.assert_array_equal(with_prior.image, reconstruct(scan).image)


def test_linear_companion_of_a_choice() -> None:
    params = ReconstructionParams(method="dtv", filter_width=0.6)
    assert params.solver == "dtv"
    assert params.apodisation == "none"
    assert params.linear == ReconstructionParams(filter_width=0.6)
    assert params.linear.apodisation == "gaussian"
    assert ReconstructionParams(method="cg").linear.method == "cg"


def test_bad_choices_are_refused(scan: KSpace) -> None:
    with pytest.raises(ConfigError, match=r"tv_weight is 1.5") as caught:
        ReconstructionParams(method="tv", tv_weight=1.5)
    assert "tv_reason" in str(caught.value)
    for wrong in ({"tv_weight": 0.0}, {"tv_tolerance": -1.0}, {"tv_iterations": 0}, {"tv_edge": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ReconstructionParams(**wrong)
    directional = ReconstructionParams(method="dtv")
    with pytest.raises(ConfigError, match="without a 1H image"):
        reconstruct(scan, params=directional)
    with pytest.raises(DataError, match=r"prior of shape \(4, 4, 4\)"):
        reconstruct(scan, params=directional, prior=np.ones((4, 4, 4)))
    with pytest.raises(DataError, match="empty"):
        reconstruct(scan, params=directional, prior=np.zeros(GRID.shape))
    with pytest.raises(DataError, match="NaN"):
        edge_direction(np.full(GRID.shape, np.nan), GRID.voxel_mm)
    silent = KSpace(np.zeros_like(scan.samples) + 1.0, SPOKES, GRID)
    with pytest.raises(DataError, match="hold no noise"):
        reconstruct(silent, params=ReconstructionParams(method="tv"))
