"""Receive sensitivity of one image alone, where there is neither a map nor an image of a volume coil.

It is a polynomial in the logarithm, told from anatomy by classes of tissue or by what the image is expected to be, with
vials as anchors; its standard error says how little that is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.core.errors import DataError, EstimationError, GeometryError
from bids_sodium.image.receive import ReceiveParams

__all__ = ["ReceiveBias", "receive_bias"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReceiveBias:
    """A receive sensitivity that was read from one image.

    Parameters
    ----------
    field : (nx, ny, nz) ndarray
        Sensitivity, positive; its geometric mean over the head is 1.
    se : (nx, ny, nz) ndarray
        Relative standard error: of the fit, of what anatomy it leaves, and outside the head of how it goes on.
    span : tuple of float
        5th, 50th and 95th percentile of the field over the head.
    note : str
        What a reader must know.
    """

    field: NDArray[np.float64]
    se: NDArray[np.float64]
    span: tuple[float, float, float]
    note: str


def receive_bias(
    image: Volume,
    head: NDArray[np.bool_],
    params: ReceiveParams | None = None,
    *,
    sigma: float = 0.0,
    vials: Sequence[tuple[NDArray[np.bool_], float]] = (),
    expected: NDArray[np.floating] | None = None,
) -> ReceiveBias:
    r"""Return the smooth bias of one image, where there is neither a map nor a volume coil.

    In the head :math:`\log S = b(x) + \mu_k` with a polynomial :math:`b` and few tissue classes :math:`\mu_k`
    (expectation maximisation); with ``expected`` signals :math:`\mu` is their logarithm. Vials of known concentration
    add :math:`\log S_v = b(x_v) + \log C_v + \gamma`: two of them tell a difference, never what all have in common.
    Outside the head the bias goes on as it is at the nearest point inside; half of what the polynomial would add is
    the standard error there.

    Parameters
    ----------
    image : Volume
        Image of the array, noise floor taken off.
    head : (nx, ny, nz) ndarray of bool
        Head.
    params : ReceiveParams, optional
        Degree, classes and errors.
    sigma : float
        Noise of a voxel; voxels below eight times of it are not used.
    vials : sequence of (mask, mmol_l)
        Masks of the vials' cores with their concentrations, all of one gel.
    expected : (nx, ny, nz) ndarray, optional
        Expected signal of the head up to a factor, behind the point spread, such as tissue fractions times usual
        concentrations.

    Returns
    -------
    ReceiveBias
        Field, relative standard error and what it stands on.

    Raises
    ------
    GeometryError
        If shapes differ.
    DataError
        If the image is not finite or a vial has no signal.
    EstimationError
        If too little of the head has signal.

    References
    ----------
    Wells WM, Grimson WEL, Kikinis R, Jolesz FA. Adaptive segmentation of MRI data. IEEE Trans Med Imaging
    1996;15:429-442, doi:10.1109/42.511747.
    Van Leemput K, Maes F, Vandermeulen D, Suetens P. Automated model-based bias field correction of MR images of the
    brain. IEEE Trans Med Imaging 1999;18:885-896, doi:10.1109/42.811268.

    Examples
    --------
    >>> import numpy as np
    >>> from bids_sodium.core.data import Grid
    >>> grid = Grid.centred((24, 24, 24), 8.0)
    >>> x, y, z = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1).astype(float)), -1, 0)
    >>> head = x**2 + y**2 + z**2 < 80**2
    >>> image = Volume(head * 50.0 * np.exp(x / 200), grid)
    >>> bias = receive_bias(image, head)
    >>> bool(np.allclose(bias.field[head], np.exp(x[head] / 200), rtol=0.02))
    True
    """
    from scipy import ndimage

    params = params or ReceiveParams()
    data = np.asarray(image.data, dtype=np.float64)
    if data.ndim != 3 or not np.isfinite(data).all():
        raise DataError(f"a bias needs one finite image with three axes, got shape {data.shape}")
    for name, mask in (
        ("head", head),
        ("expected image", expected),
        *((f"vial {i}", v[0]) for i, v in enumerate(vials)),
    ):
        if mask is not None and mask.shape != data.shape:
            raise GeometryError(f"{name} of shape {mask.shape} for an image of shape {data.shape}")
    voxel = np.array(image.grid.voxel_mm)
    inside = np.asarray(ndimage.distance_transform_edt(head, sampling=voxel) > params.edge_mm)
    use = inside & (data > 8 * sigma) & (data > 0)
    if expected is not None:
        use &= expected > 0
    if int(use.sum()) < 500:
        raise EstimationError(
            f"{int(use.sum())} voxels of the head have signal, too few for a receive bias",
            hint="give a receive map, an image of a volume coil, or another head mask",
        )
    fit = _Polynomial.over(image.grid.world(np.argwhere(use).astype(np.float64)), params.degree)
    chosen = np.argwhere(use)[:: max(1, int(use.sum()) // 6000)]
    at = tuple(chosen.T)
    points = image.grid.world(chosen.astype(np.float64))
    log = np.log(data[at]) - (0.0 if expected is None else np.log(np.asarray(expected, dtype=np.float64)[at]))
    anchors = [_anchor(data, mask, mmol_l, params.vial_percent, sigma) for mask, mmol_l in vials]
    # coordinates that stop at the head's surface, so that the polynomial does not run away outside
    nearest = ndimage.distance_transform_edt(~head, return_distances=False, return_indices=True, sampling=voxel)
    everywhere = image.grid.world(np.moveaxis(np.indices(data.shape), 0, -1).reshape(-1, 3).astype(np.float64))
    held = image.grid.world(np.moveaxis(nearest, 0, -1).reshape(-1, 3).astype(np.float64))
    rows = [
        (fit.terms(held[mask.reshape(-1)]).mean(axis=0), value, se)
        for (mask, _), (value, se) in zip(vials, anchors, strict=True)
    ]
    basis, classes = fit.terms(points), 1 if expected is not None else params.classes
    beta, rest = _bias(basis, log, rows, classes)
    octant = (points > np.median(points, axis=0)) @ np.array([1, 2, 4])
    moves = (
        np.stack([_bias(basis[octant != k], log[octant != k], rows, classes, start=beta)[0] for k in range(8)]) - beta
    )
    held_terms = fit.terms(held)
    logs = (held_terms @ beta).reshape(data.shape)
    spread = np.sqrt(7 / 8 * ((held_terms @ moves.T) ** 2).sum(axis=1)).reshape(data.shape)
    beyond = 0.5 * ((fit.terms(everywhere) @ beta).reshape(data.shape) - logs)
    middle = float(logs[head].mean())
    field = np.exp(logs - middle)
    low, half, high = np.percentile(field[head], [5, 50, 95])
    told = "expected signals" if expected is not None else f"{classes} tissue class(es)"
    return ReceiveBias(
        field=field,
        se=np.sqrt(spread**2 + beyond**2 + _smooth_rms(rest, points) ** 2),
        span=(float(low), float(half), float(high)),
        note=f"receive bias from the image alone: {told} and {len(vials)} vial(s); anatomy that is as smooth as a "
        "sensitivity is taken for one",
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Polynomial:
    """Monomials of a world position, without the constant."""

    centre_mm: NDArray[np.float64]
    reach_mm: float
    degree: int

    @classmethod
    def over(cls, points: NDArray[np.float64], degree: int) -> _Polynomial:
        centre = points.mean(axis=0)
        return cls(centre, float(np.abs(points - centre).max()) or 1.0, degree)

    def terms(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        x = (points - self.centre_mm) / self.reach_mm
        columns = [
            np.prod(x[:, list(axes)], axis=1)
            for order in range(1, self.degree + 1)
            for axes in itertools.combinations_with_replacement(range(3), order)
        ]
        return np.stack(columns, axis=1)


def _anchor(
    data: NDArray[np.float64], mask: NDArray[np.bool_], mmol_l: float, percent: float, sigma: float
) -> tuple[float, float]:
    """Logarithm of a vial's signal over its concentration, and its standard error."""
    values = data[mask]
    signal = float(np.median(values)) if values.size else 0.0
    if signal <= 3 * sigma or mmol_l <= 0:
        raise DataError(
            f"a vial of {mmol_l:g} mmol/L with {values.size} voxels has signal {signal:.3g}",
            hint="check its mask and its concentration",
        )
    return float(np.log(signal / mmol_l)), float(np.hypot(percent / 100, sigma / signal / np.sqrt(values.size)))


def _bias(
    basis: NDArray[np.float64],
    log: NDArray[np.float64],
    anchors: Sequence[tuple[NDArray[np.float64], float, float]],
    classes: int,
    *,
    start: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients of the polynomial by expectation maximisation, and what is left of each voxel."""
    n, width = basis.shape
    beta = np.zeros(width) if start is None else start
    left = log - basis @ beta
    mean = np.quantile(left, (np.arange(classes) + 0.5) / classes)
    spread = np.full(classes, max(float(left.std()) / classes, 0.02))
    prior = np.full(classes, 1 / classes)
    for _ in range(60):
        left = log - basis @ beta
        score = np.log(prior) - np.log(spread) - 0.5 * ((left[:, None] - mean) / spread) ** 2
        belong = np.exp(score - score.max(axis=1, keepdims=True))
        belong /= belong.sum(axis=1, keepdims=True)
        count = belong.sum(axis=0)
        prior = np.maximum(count / n, 1e-3)
        mean = (belong * left[:, None]).sum(axis=0) / np.maximum(count, 1e-9)
        spread = np.sqrt((belong * (left[:, None] - mean) ** 2).sum(axis=0) / np.maximum(count, 1e-9) + 1e-4)
        weight = (belong / spread**2).sum(axis=1)
        target = log - (belong / spread**2) @ mean / weight
        # unknown: the polynomial, a constant of the head and one of the vials
        design = np.concatenate([basis, np.ones((n, 1)), np.zeros((n, 1))], axis=1)
        normal = design.T @ (weight[:, None] * design)
        normal[np.diag_indices(width + 2)] += 1e-6 * weight.sum()
        right = design.T @ (weight * target)
        for row, value, se in anchors:
            full = np.concatenate([row, [0.0, 1.0]])
            normal += np.outer(full, full) / se**2
            right += full * value / se**2
        new = np.linalg.solve(normal, right)[:width]
        done = float(np.abs(basis @ (new - beta)).max()) < 1e-4
        beta = new
        if done:
            break
    return beta, log - basis @ beta - belong @ mean


def _smooth_rms(rest: NDArray[np.float64], points: NDArray[np.float64]) -> float:
    """Root mean square of residuals averaged over cells of 20 mm: what is smooth in them, and so anatomy or bias."""
    cell = np.floor(points / 20.0).astype(int)
    _, member = np.unique(cell, axis=0, return_inverse=True)
    count = np.bincount(member.ravel())
    mean = np.bincount(member.ravel(), weights=rest) / count
    return float(np.sqrt((count * mean**2).sum() / count.sum()))
