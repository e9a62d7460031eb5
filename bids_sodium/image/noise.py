"""Noise of an image without its k-space: from the air, from a repetition, from a series, or from the quiet of the head.

``sigma`` is the deviation per real component, the *order* the number of channels of a root sum of squares (see
`bids_sodium.image.magnitude`). Where k-space is at hand its noise is right to a fraction of a percent and all of this
is idle. Without it the sources differ in what fools them:

================  ======================================  ===========================================
source            how                                     error on the head phantom
================  ======================================  ===========================================
``repeated``      difference of two scans                 within 2 %
``series``        Marchenko-Pastur law, 8 or more images  within 6 %
``background``    Rice or chi law of the air              0 to +21 %; +46 % at SNR 40
``quiet``         least local variation within the head   +4 to +37 %, +61 % at SNR 40; of a brain without
                                                          its head 1.2 to 3.5 times too high
================  ======================================  ===========================================

The phantom is the MNI152 head through a radial and a cones acquisition, with and without filter, at an SNR of 5 to 20
in white matter. Aliasing, ghosts and a wrong order fill the air, anatomy the quiet, so both can hardly be too low:
where they disagree, the lower one is nearer to the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image.components import principal_components
from bids_sodium.image.magnitude import finite, sd_magnitude, signal_of_mean

__all__ = [
    "LEAST_VOLUMES",
    "Noise",
    "background_noise",
    "background_sigma",
    "estimate_noise",
    "quiet_noise",
    "repeated_noise",
    "series_noise",
]

_Array = NDArray[np.float64]

LEAST_VOLUMES = 8
"""Volumes from which on a series tells its noise and can be denoised by its principal components."""

_ERROR = {"repeated": 0.02, "series": 0.08, "background": 0.21, "quiet": 0.37}
# A masked image has lost the muscle that is quiet; this share of zeros tells.
_MASKED = 0.3
_ERROR_OF_MASKED = 2.5
_MAD_TO_SD = 1.4826022185056018
# Background and quiet of undisturbed images agree within this factor.
_DISAGREE = 1.6
_QUIET_WINDOW = 3
_QUIET_SHARE = 0.005
_LAG = 2
_LEAST_VOXELS = 500
_PATCHES = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise of an image.

    Parameters
    ----------
    sigma : float
        Noise per real component, in units of the image.
    order : int
        Channels of the root sum of squares, 1 for a single coil or an adaptive combination.
    source : str
        ``"background"``, ``"quiet"``, ``"repeated"`` or ``"series"``.
    relative_error : float
        How far off the source was on the head phantom at an SNR of 5 to 20.
    estimates : mapping of str to float
        Sigma by source, of all sources that were tried.
    """

    sigma: float
    order: int
    source: str
    relative_error: float
    estimates: Mapping[str, float] = field(default_factory=dict)

    @property
    def disagreement(self) -> float:
        """Largest over smallest estimate; 1 where there is only one."""
        values = list(self.estimates.values()) or [self.sigma]
        return max(values) / min(values)


def estimate_noise(
    volume: Volume,
    *,
    repeated: Volume | None = None,
    order: int | None = 1,
    mask: NDArray[np.bool_] | None = None,
) -> Noise:
    """Estimate the noise of an image from the best source there is.

    In this order: a second scan, the image's own series, the background, the quiet of the head. The background gives
    way to the quiet where it is missing or more than 1.6 times larger, which means aliasing, ghosts or a wrong order.

    Parameters
    ----------
    volume : Volume
        Image; with a fourth axis of 8 or more volumes (echoes, repetitions, coils), complex or magnitude, else
        magnitude.
    repeated : Volume, optional
        The same scan again, of the same shape.
    order : int or None
        Channels in a root sum of squares, 1 for a single coil or an adaptive combination; ``None`` finds the effective
        number from the air.
    mask : (nx, ny, nz) ndarray of bool, optional
        Head; found by its brightness where it is not given.

    Returns
    -------
    Noise
        Sigma, source, and the estimates of all sources that could be tried.

    Raises
    ------
    DataError
        If values are not finite or negative, or axes do not fit.
    EstimationError
        If no source determines the noise.

    Examples
    --------
    >>> from bids_sodium.core.data import Grid
    >>> rng = np.random.default_rng(0)
    >>> head = np.zeros((40, 40, 40))
    >>> head[8:32, 8:32, 8:32] = 50.0
    >>> noisy = np.abs(head + rng.normal(0, 5, head.shape) + 1j * rng.normal(0, 5, head.shape))
    >>> noise = estimate_noise(Volume(noisy, Grid.centred(head.shape, 4.0)))
    >>> noise.source, abs(noise.sigma - 5) < 0.3, noise.disagreement < 1.5
    ('background', True, True)
    """
    if repeated is not None:
        return repeated_noise(volume, repeated, order=order or 1, mask=mask)
    if volume.data.ndim > 3:
        return series_noise(volume, order=order or 1, mask=mask)
    air: Noise | None = None
    try:
        air = background_noise(volume, order=order)
    except EstimationError as error:
        no_air = error
    try:
        quiet = quiet_noise(volume, order=order or (1 if air is None else air.order), mask=mask)
    except EstimationError:
        if air is None:
            raise no_air from None
        return air
    if air is None:
        return quiet
    tried = {"background": air.sigma, "quiet": quiet.sigma}
    best = quiet if air.sigma > _DISAGREE * quiet.sigma else air
    return Noise(
        sigma=best.sigma, order=air.order, source=best.source, relative_error=best.relative_error, estimates=tried
    )


def repeated_noise(first: Volume, second: Volume, *, order: int = 1, mask: NDArray[np.bool_] | None = None) -> Noise:
    r"""Estimate the noise from two scans of the same object.

    Within the head the median absolute deviation of :math:`M_1 - g M_2`, over :math:`\sqrt{1 + |g|^2}` with the gain g
    between the scans (and their phase, if they are complex), is the spread of a magnitude; from it follows sigma at the
    signal of each voxel. Motion between the scans adds to it.

    Parameters
    ----------
    first, second : Volume
        Magnitudes, or complex images, of three axes on one grid.
    order : int
        Channels in a root sum of squares.
    mask : (nx, ny, nz) ndarray of bool, optional
        Head.

    Raises
    ------
    GeometryError
        If the two differ in shape.
    EstimationError
        If the head has fewer than 500 voxels.

    References
    ----------
    Dietrich 2007, J Magn Reson Imaging 26:375, doi:10.1002/jmri.20969.
    """
    one, two = (_complex(volume) for volume in (first, second))
    if one.ndim != 3:
        raise DataError(f"a scan has three axes, got shape {one.shape}", hint="choose one volume of each series")
    if one.shape != two.shape or np.iscomplexobj(first.data) != np.iscomplexobj(second.data):
        raise GeometryError(
            f"scans of shapes {first.data.shape} and {second.data.shape} are no repetition", hint="resample one of them"
        )
    head = _head(np.abs(one), mask)
    a, b = one[head], two[head]
    turn = np.angle(np.vdot(b, a))
    gain = np.sqrt(float(np.vdot(a, a).real) / max(float(np.vdot(b, b).real), 1e-300)) * np.exp(1j * turn)
    difference = (a - gain * b) / np.sqrt(1.0 + np.abs(gain) ** 2)
    if np.iscomplexobj(first.data):
        return _found("repeated", _mad(np.concatenate([difference.real, difference.imag])), order)
    mean = (a + gain * b).real / 2.0
    sigma = _settled(lambda spread: _mad(difference.real / spread(mean)), _mad(difference.real), order)
    return _found("repeated", sigma, order)


def series_noise(volume: Volume, *, order: int = 1, mask: NDArray[np.bool_] | None = None) -> Noise:
    """Estimate the noise from a series of echoes, repetitions or coils.

    Patches of a series hold few independent signals; the rest of their eigenvalues follows the Marchenko-Pastur law,
    whose scale is the noise. Voxels of a patch are two apart, so that a filter over k-space does not matter.

    Parameters
    ----------
    volume : Volume
        Magnitudes or complex values, volumes along the fourth axis.
    order : int
        Channels in a root sum of squares.
    mask : (nx, ny, nz) ndarray of bool, optional
        Head.

    Raises
    ------
    DataError
        If there is no fourth axis, or fewer than 8 volumes.
    EstimationError
        If the head has fewer than 500 voxels.

    References
    ----------
    Veraart 2016, NeuroImage 142:394, doi:10.1016/j.neuroimage.2016.08.016.
    """
    if volume.data.ndim != 4 or volume.data.shape[3] < LEAST_VOLUMES:
        raise DataError(
            f"a series has four axes and {LEAST_VOLUMES} or more volumes, got shape {volume.data.shape}",
            hint="give one of the volumes",
        )
    head = np.flatnonzero(_head(np.abs(_complex(volume)).mean(axis=3), mask))
    chosen = np.zeros(volume.grid.shape, dtype=bool)
    chosen.flat[head[:: max(1, head.size // _PATCHES)]] = True
    found = principal_components(volume.data, chosen)
    seen = np.isfinite(found.sigma)
    if not seen.any():
        raise EstimationError("no patch of the series lies within the head", hint=_GIVE)
    deviation = found.sigma[seen]
    sigma = float(np.median(deviation))
    if not np.iscomplexobj(volume.data):
        mean = np.asarray(found.data[seen])
        sigma = _settled(
            lambda spread: float(np.median(deviation / np.sqrt((spread(mean) ** 2).mean(axis=-1)))), sigma, order
        )
    return _found("series", sigma, order)


def quiet_noise(volume: Volume, *, order: int = 1, mask: NDArray[np.bool_] | None = None) -> Noise:
    """Estimate the noise from where the head varies least.

    Second differences over two voxels along each axis see little of smooth anatomy and nothing of the correlation
    between neighbours that filters over k-space leave. Their mean square over 3^3 voxels has a distribution; the lowest
    half percent of it within the head are set against those of white noise. Muscle is quiet, brain is not: without face
    and neck the result is too high.

    Parameters
    ----------
    volume : Volume
        Magnitude image of three axes, masked or not. An image that was interpolated to less than half its acquired
        voxel is too smooth: the result is then too low.
    order : int
        Channels in a root sum of squares.
    mask : (nx, ny, nz) ndarray of bool, optional
        Head.

    Raises
    ------
    EstimationError
        If the head has fewer than 500 voxels.

    References
    ----------
    Immerkaer 1996, Comput Vis Image Underst 64:300, doi:10.1006/cviu.1996.0060 (second differences).
    """
    data = _real(volume)
    head = _head(data, mask)
    energy = _detail(data)[head]
    if energy.size < _LEAST_VOXELS:
        raise EstimationError(f"a head of {energy.size} voxels is too small to tell noise from anatomy", hint=_GIVE)
    limit = np.quantile(energy, _QUIET_SHARE)
    deviation = float(np.sqrt(limit / _quiet_of_white_noise()))
    if not deviation > 0:
        raise EstimationError("the head does not vary at all", hint=_GIVE)
    quiet = data[head][energy <= limit]
    sigma = _settled(lambda spread: deviation / float(np.median(spread(quiet))), deviation, order)
    masked = bool(_padding(data).mean() > _MASKED)
    return replace(_found("quiet", sigma, order), relative_error=_ERROR_OF_MASKED if masked else _ERROR["quiet"])


def background_sigma(volume: Volume, *, order: int | None = 1) -> float:
    r"""Estimate the noise per real component from the air around the head.

    In air :math:`M^2 / 2\sigma^2` follows a Gamma distribution of shape L. The mode of all magnitudes starts a fixed
    point that uses only the lower 80 % of that distribution, out of reach of tissue. Ghosts and the aliasing of
    undersampled trajectories fill the air too, so that the result is an upper bound: where k-space is at hand, use its
    noise.

    Parameters
    ----------
    volume : Volume
        Magnitude image with air in it; integers are welcome, exact zeros of padding are left out.
    order : int or None
        Channels in a root sum of squares, 1 for a single coil or an adaptive combination; ``None`` finds the effective
        number by the best fit to the air.

    Returns
    -------
    float
        Sigma, in units of the image.

    Raises
    ------
    DataError
        If the image holds negative or other than finite values.
    EstimationError
        If fewer than 500 voxels are left or no air is found.

    Examples
    --------
    >>> from bids_sodium.core.data import Grid
    >>> rng = np.random.default_rng(0)
    >>> air = np.abs(rng.normal(0, 5, (32, 32, 32)) + 1j * rng.normal(0, 5, (32, 32, 32)))
    >>> abs(background_sigma(Volume(air, Grid.centred((32, 32, 32), 4.0))) - 5) < 0.1
    True
    """
    return background_noise(volume, order=order).sigma


def background_noise(volume: Volume, *, order: int | None = None) -> Noise:
    """Estimate the noise in air and the number of channels it was combined from; see `background_sigma`.

    Parameters
    ----------
    volume : Volume
        Magnitude image with air in it.
    order : int or None
        Channels where they are known; ``None`` finds the effective number.

    Returns
    -------
    Noise
        Sigma and channels.

    Raises
    ------
    DataError, EstimationError
        As `background_sigma`.
    """
    data = _real(volume)
    values = np.sort(data[~_padding(data)])
    if values.size < _LEAST_VOXELS:
        raise EstimationError(
            f"only {values.size} of {data.size} voxels are not zero padding, too few to see the noise of the air",
            hint=_GIVE,
        )
    whole = bool((values[: values.size // 2] == np.rint(values[: values.size // 2])).all())
    orders = (order,) if order is not None else tuple(range(1, 9)) + tuple(range(10, 65, 2))
    peak = _mode(_spread_ties(values) if whole else values)
    fits = [_fit_air(values, shape, peak=peak, whole=whole) for shape in orders]
    best = min(range(len(fits)), key=lambda i: fits[i][1])
    sigma, misfit = fits[best]
    if not np.isfinite(sigma) or not np.isfinite(misfit):
        raise EstimationError("the darkest voxels do not look like noise in air", hint=_GIVE)
    return _found("background", sigma, orders[best])


_GIVE = "give the noise level, or an image whose background is not masked"


def _found(source: str, sigma: float, order: int) -> Noise:
    return Noise(sigma=sigma, order=order, source=source, relative_error=_ERROR[source], estimates={source: sigma})


def _real(volume: Volume) -> _Array:
    if volume.data.ndim != 3:
        raise DataError(
            f"a single image has three axes, got shape {volume.data.shape}", hint="choose one of the volumes"
        )
    data = finite(volume)
    if data.min() < 0:
        raise DataError(
            f"{int((data < 0).sum())} of {data.size} values are negative, so this is no magnitude image",
            hint="give the noise level, or the magnitude",
        )
    return data


def _complex(volume: Volume) -> NDArray[np.complex128]:
    if np.iscomplexobj(volume.data):
        for part in (volume.data.real, volume.data.imag):
            finite(volume.with_data(part))
    else:
        finite(volume)
    return np.asarray(volume.data, dtype=np.complex128)


def _head(data: _Array, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return voxels with signal: half of the bright level, after a blur of 1.5 voxels."""
    from scipy import ndimage

    if mask is not None:
        if mask.shape != data.shape:
            raise GeometryError(f"a mask of shape {mask.shape} for an image of shape {data.shape}")
        head = np.asarray(mask, dtype=bool)
    else:
        smooth = ndimage.gaussian_filter(data, 1.5)
        head = smooth > 0.5 * np.median(smooth[smooth >= smooth.mean()])
    if int(head.sum()) < _LEAST_VOXELS:
        raise EstimationError(f"a head of {int(head.sum())} voxels is too small to tell its noise", hint=_GIVE)
    return np.asarray(head)


def _mad(values: _Array) -> float:
    return float(np.median(np.abs(values - np.median(values))) * _MAD_TO_SD)


def _settled(update: Callable[[Callable[[_Array], _Array]], float], sigma: float, order: int) -> float:
    """Return the sigma that stays as it is under an update, which is given the spread of magnitudes in units of it."""
    for _ in range(50):
        before = sigma

        def spread(mean: _Array, level: float = before) -> _Array:
            return sd_magnitude(signal_of_mean(mean, level, order=order) / level, 1.0, order=order)

        sigma = update(spread)
        if abs(sigma - before) <= 1e-4 * before:
            return sigma
    raise EstimationError(f"the noise level does not settle near {sigma:.4g}", hint=_GIVE)


def _detail(data: _Array) -> _Array:
    """Return the local mean square of second differences of unit gain for white noise."""
    from scipy import ndimage

    taps = np.zeros(2 * _LAG + 1)
    taps[[0, _LAG, -1]] = np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0)
    energy = sum((ndimage.convolve1d(data, taps, axis=axis) ** 2 / 3.0 for axis in range(3)), np.zeros(data.shape))
    return np.asarray(ndimage.uniform_filter(energy, _QUIET_WINDOW))


@cache
def _quiet_of_white_noise() -> float:
    white = np.random.default_rng(0).standard_normal((64, 64, 64))
    return float(np.quantile(_detail(white), _QUIET_SHARE))


def _padding(data: _Array) -> NDArray[np.bool_]:
    """Zeros that hang together in blocks; single zeros of an integer image are noise like any other value."""
    from scipy import ndimage

    labels, count = ndimage.label(data == 0)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    large = sizes > 27
    large[0] = False
    return np.asarray(large[labels])


def _mode(values: _Array) -> float:
    """Half-sample mode of sorted values, stopped where counting noise takes over."""
    while values.size > 200:
        half = values.size // 2
        start = int(np.argmin(values[half:] - values[:-half]))
        values = values[start : start + half]
    return float(values.mean())


def _spread_ties(values: _Array) -> _Array:
    """Spread equal whole numbers evenly over the interval that was rounded to them."""
    _, start, count = np.unique(values, return_index=True, return_counts=True)
    rank = np.arange(values.size) - np.repeat(start, count)
    return np.asarray(values + (rank + 0.5) / np.repeat(count, count) - 0.5)


def _fit_air(values: _Array, shape: int, *, peak: float, whole: bool) -> tuple[float, float]:
    """Return sigma of the air and the Kolmogorov distance of the air below its 80th percentile."""
    from scipy import special

    sigma = peak / np.sqrt(2 * shape - 1)
    edge = special.gammaincinv(shape, 0.8)
    for _ in range(60):
        cut = np.sqrt(2 * edge) * sigma
        cut = max(np.floor(cut), 2.0) + 0.5 if whole else cut
        air = values[: int(np.searchsorted(values, cut))]
        if air.size < 100 or sigma <= 0:
            return float("nan"), float("inf")
        limit = cut**2 / (2 * sigma**2)
        expected = shape * special.gammainc(shape + 1, limit) / special.gammainc(shape, limit)
        # rounding to whole numbers adds the variance 1/12 of a uniform error
        update = np.sqrt(max(float((air**2).mean()) - (1 / 12 if whole else 0.0), 1e-12) / (2 * expected))
        done = abs(update - sigma) < 1e-6 * sigma
        sigma = float(update)
        if done:
            break
    limit = cut**2 / (2 * sigma**2)
    theory = special.gammainc(shape, (air + (0.5 if whole else 0.0)) ** 2 / (2 * sigma**2))
    theory /= special.gammainc(shape, limit)
    seen = np.searchsorted(air, air, side="right") / air.size
    return sigma, float(np.abs(seen - theory).max())
