r"""Magnitudes of noisy signals: their mean, their spread, and the signal that belongs to a mean magnitude.

The magnitude of a complex signal ``A`` with Gaussian noise of standard deviation ``sigma`` in its real and in its
imaginary part follows a Rice distribution; a root sum of squares over ``L`` channels (the *order*) follows a
noncentral chi distribution. Either way ``E[M^2] = A^2 + 2 L sigma^2``: magnitudes do not fall below a floor.
Throughout, ``sigma`` is the deviation per real component.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError

__all__ = ["correct_noise_floor", "finite", "mean_magnitude", "sd_magnitude", "signal_of_mean"]

# Where the signal is beyond 20 sigma, or the channels are more than 32 and the hypergeometric function overflows, two
# terms of the expansion in 1 / E[M^2] are right to 1e-4 sigma.
_FAR = 20.0
_MANY = 32


def mean_magnitude(signal: NDArray[np.floating], sigma: float, *, order: int = 1) -> NDArray[np.float64]:
    r"""Return the mean magnitude :math:`\sqrt2\,\sigma\,\Gamma(L + 1/2)/\Gamma(L)\;{}_1F_1(-1/2; L; -A^2/2\sigma^2)`.

    Parameters
    ----------
    signal : ndarray
        Signal A, zero or more.
    sigma : float
        Noise per real component.
    order : int
        Channels of a root sum of squares; 1 for a single coil or an adaptive combination.

    References
    ----------
    Koay 2006, J Magn Reson 179:317, doi:10.1016/j.jmr.2006.01.016.

    Examples
    --------
    >>> round(float(mean_magnitude(np.array(0.0), 1.0)), 4)
    1.2533
    """
    from scipy import special

    if sigma == 0.0:
        return np.array(signal, dtype=np.float64)
    power = (np.asarray(signal, dtype=np.float64) / sigma) ** 2
    mean = np.sqrt(power + 2 * order - (power + order) / (power + 2 * order))
    if order <= _MANY:
        scale = np.sqrt(2.0) * np.exp(special.gammaln(order + 0.5) - special.gammaln(order))
        exact = scale * special.hyp1f1(-0.5, order, -np.minimum(power, _FAR**2) / 2)
        mean = np.where(power < _FAR**2, exact, mean)
    return np.asarray(sigma * mean)


def sd_magnitude(signal: NDArray[np.floating], sigma: float, *, order: int = 1) -> NDArray[np.float64]:
    """Return the standard deviation of a magnitude: ``sigma`` for strong signals, 0.655 of it in air for one channel.

    Examples
    --------
    >>> round(float(sd_magnitude(np.array(0.0), 1.0)), 3)
    0.655
    """
    power = (np.asarray(signal, dtype=np.float64) / sigma) ** 2 if sigma > 0 else np.asarray(signal) * 0.0
    spread = (power + order) / (power + 2 * order)
    if order <= _MANY:
        near = np.minimum(power, _FAR**2)
        exact = near + 2 * order - mean_magnitude(np.sqrt(near), 1.0, order=order) ** 2
        spread = np.where(power < _FAR**2, exact, spread)
    return np.asarray(sigma * np.sqrt(spread))


def signal_of_mean(magnitude: NDArray[np.floating], sigma: float, *, order: int = 1) -> NDArray[np.float64]:
    """Return the signal whose mean magnitude is given, the inverse of `mean_magnitude`; zero below the floor.

    Examples
    --------
    >>> signal = np.array([0.5, 3.0, 100.0])
    >>> np.allclose(signal_of_mean(mean_magnitude(signal, 1.0), 1.0), signal, atol=1e-4)
    True
    """
    if sigma == 0.0:
        return np.array(magnitude, dtype=np.float64)
    signal = np.linspace(0.0, _FAR, 4001)[:-1]
    mean = mean_magnitude(signal, 1.0, order=order)
    ratio = np.asarray(magnitude, dtype=np.float64) / sigma
    one = np.maximum(ratio, mean[-1]) ** 2 + 1.0
    far = np.sqrt((one + np.sqrt(one**2 - 4.0 * order)) / 2.0 - 2.0 * order)
    return np.asarray(sigma * np.where(ratio < mean[-1], np.interp(ratio, mean, signal, left=0.0), far))


def correct_noise_floor(volume: Volume, sigma: float, *, order: int = 1) -> Volume:
    r"""Take the noise floor off a magnitude image.

    The exact inverse of the mean magnitude gives the signal. For large signals it is
    :math:`\sqrt{M^2 - (2L - 1)\sigma^2}`, that is one :math:`\sigma^2` for a magnitude, where the root of a mean
    *square* would lose two. Magnitudes below the mean of pure noise become 0.

    Parameters
    ----------
    volume : Volume
        Magnitudes, best denoised or averaged with ``floor_removed`` false; any number of axes.
    sigma : float
        Noise per real component, in units of the image.
    order : int
        Channels in a root sum of squares; 1 for a single coil or an adaptive combination.

    Returns
    -------
    Volume
        Signal without its floor (float64).

    Raises
    ------
    DataError
        If the image is not made of finite magnitudes or ``sigma`` is negative.

    References
    ----------
    Koay 2006, J Magn Reson 179:317, doi:10.1016/j.jmr.2006.01.016.

    Examples
    --------
    >>> from bids_sodium.core.data import Grid
    >>> image = Volume(np.full((2, 2, 2), 1.2533), Grid.centred((2, 2, 2), 4.0))  # pure noise of sigma 1
    >>> float(correct_noise_floor(image, 1.0).data.max())
    0.0
    """
    data = finite(volume)
    if not (np.isfinite(sigma) and sigma >= 0) or order < 1:
        raise DataError(
            f"a noise level of {sigma} in {order} channel(s)", hint="give sigma >= 0 and one channel or more"
        )
    if data.min() < 0:
        raise DataError(
            f"{int((data < 0).sum())} of {data.size} magnitudes are negative",
            hint="the real part of an image has no noise floor",
        )
    return volume.with_data(signal_of_mean(data, sigma, order=order))


def finite(volume: Volume) -> NDArray[np.float64]:
    """Return real values in double precision.

    Raises
    ------
    DataError
        If they are complex, NaN or infinite.
    """
    if np.iscomplexobj(volume.data):
        raise DataError("the image is complex", hint="give its magnitude or its real part")
    data = np.asarray(volume.data, dtype=np.float64)
    if not np.isfinite(data).all():
        raise DataError(f"{int((~np.isfinite(data)).sum())} of {data.size} voxels are NaN or infinite")
    return data
