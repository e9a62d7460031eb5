import numpy as np
import pytest

from bids_sodium.core.constants import Decay
from bids_sodium.core.data import Trajectory
from bids_sodium.core.errors import ConfigError, DataError
from bids_sodium.recon.psf import gaussian_point_spread, point_spread
from bids_sodium.recon.trajectory import cartesian, cones_3d, density_adapted_radial

STROKE = density_adapted_radial(50, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0)
NO_DECAY = Decay(np.inf, np.inf)


@pytest.mark.parametrize(
    ("decay", "fwhm_mm"),
    [
        (None, 6.36),
        (Decay(55.0, 55.0), 6.52),
        (Decay(3.0, 18.0), 7.47),
        (Decay(2.0, 20.0), 7.31),
        (Decay(3.9, 26.3), 7.25),
        (Decay(3.4, 23.5), 7.31),
    ],
)
def test_width_by_tissue(decay: Decay | None, fwhm_mm: float) -> None:
    assert point_spread(STROKE, decay=decay).fwhm_mm == pytest.approx(fwhm_mm, rel=0.01)


def test_a_hamming_filter_widens_it() -> None:
    spread = point_spread(STROKE, decay=Decay(3.0, 18.0), filter="hamming", filter_width=1.0)
    assert spread.fwhm_mm == pytest.approx(9.6, rel=0.01)


def test_cones_are_sharper_than_their_idealisation() -> None:
    cones = cones_3d(fov_mm=240.0, voxel_mm=3.0, readout_ms=20.0)
    assert point_spread(cones).fwhm_mm == pytest.approx(1.59 * 3.0, rel=0.01)
    assert point_spread(cones, decay=Decay(3.4, 23.5)).fwhm_mm == pytest.approx(5.4, rel=0.03)


def test_profile_is_that_of_a_sphere_of_k_space() -> None:
    spread = point_spread(STROKE)
    x = 2 * np.pi * 0.125 * spread.r_mm[1:]
    assert spread.profile[1:] == pytest.approx(3 * (np.sin(x) - x * np.cos(x)) / x**3, abs=2e-4)
    assert spread.profile[0] == pytest.approx(1.0)


def test_volume_says_what_it_means() -> None:
    sphere = point_spread(STROKE, decay=Decay(2.0, 20.0))
    assert sphere.definition == "sphere"
    assert sphere.volume_mm3 == pytest.approx(np.pi / 6 * sphere.fwhm_mm**3)
    assert sphere.volume_mm3 == pytest.approx(200.0, rel=0.03)
    integral = point_spread(STROKE, definition="integral")
    assert integral.volume_mm3 == pytest.approx(1.0 / (4 / 3 * np.pi * 0.125**3), rel=1e-3)


def test_modulation_falls_with_the_decay() -> None:
    spread = point_spread(STROKE, decay=Decay(3.4, 23.5))
    assert (np.diff(spread.mtf) <= 1e-12).all()
    assert spread.mtf[0] == pytest.approx(1.0, abs=0.01)
    assert spread.mtf[-1] == pytest.approx(Decay(3.4, 23.5).at(20.0), rel=0.01)


def test_later_echo_leaves_the_slow_component() -> None:
    early = point_spread(STROKE, decay=Decay(3.0, 1e6))
    late = point_spread(STROKE, decay=Decay(3.0, 1e6), te_ms=60.0)
    assert late.fwhm_mm == pytest.approx(point_spread(STROKE).fwhm_mm, rel=1e-3)
    assert early.fwhm_mm > late.fwhm_mm


def test_no_decay_is_infinite_time() -> None:
    assert point_spread(STROKE, decay=NO_DECAY).fwhm_mm == point_spread(STROKE).fwhm_mm


def test_gaussian_has_its_width_and_volume() -> None:
    spread = gaussian_point_spread(7.0, definition="integral")
    assert spread.fwhm_mm == pytest.approx(7.0, rel=1e-3)
    sd = 7.0 / np.sqrt(8 * np.log(2))
    assert spread.volume_mm3 == pytest.approx((2 * np.pi) ** 1.5 * sd**3, rel=1e-3)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(DataError, match="do not lead outwards"):
        point_spread(cartesian((16, 16, 16), voxel_mm=4.0, readout_ms=5.0))
    with pytest.raises(ConfigError, match="cube"):
        point_spread(STROKE, definition="cube")
    with pytest.raises(ConfigError, match="0 mm"):
        gaussian_point_spread(0.0)
    with pytest.raises(DataError, match="wider"):
        point_spread(Trajectory(STROKE.k_per_mm / 1000.0, STROKE.t_ms))
