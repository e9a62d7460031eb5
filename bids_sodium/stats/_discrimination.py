"""How well predictions tell what happens from what does not, when units come from subjects: ClusteredAuc, Calibration.

AUC = P(prediction of a converted unit > that of another). Units of one subject are alike, so its variance comes from
the subjects' sums of structural components (Obuchowski 1997), here with weights and outcomes that are shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._rows import as_column, labels_of

__all__ = ["AucDifference", "Calibration", "ClusteredAuc", "auc_difference", "calibration", "clustered_auc"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusteredAuc:
    """Area under the receiver operating characteristic over all units."""

    auc: float
    """The area, 0.5 where predictions say nothing."""
    se: float
    """Standard error over subjects."""
    ci_low: float
    """Lower limit, on the logit scale with a t distribution of subjects - 1 degrees of freedom."""
    ci_high: float
    """Upper limit."""
    p: float
    """p value of an area of 0.5."""
    df: int
    """Degrees of freedom, subjects - 1."""
    subject: Float
    """Area within each subject, NaN where it has one outcome only; in the order of `labels`."""
    labels: tuple[str, ...]
    """Subjects."""
    n: int
    """Units."""
    n_subjects: int
    """Subjects."""
    influence: Float
    """Each subject's part in the error of the area; they sum to zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AucDifference:
    """Difference of two areas over the same units."""

    estimate: float
    """First minus second."""
    se: float
    """Standard error over subjects."""
    ci_low: float
    """Lower limit, t distribution."""
    ci_high: float
    """Upper limit."""
    p: float
    """p value of no difference."""
    df: int
    """Degrees of freedom, subjects - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Whether predictions may be read as probabilities."""

    slope: float
    """Slope of the outcome on the logit of the prediction; below 1 predictions are too extreme."""
    slope_se: float
    """Standard error, robust over subjects."""
    intercept: float
    """Shift of the logit that makes the mean prediction right; above 0 predictions are too low."""
    intercept_se: float
    """Standard error, robust over subjects."""
    brier: float
    """Mean squared difference of prediction and outcome."""
    brier_of_share: float
    """The same for a prediction of the overall share everywhere."""
    df: int
    """Degrees of freedom, subjects - 1."""


def clustered_auc(
    outcome: ArrayLike,
    prediction: ArrayLike,
    subjects: Sequence[Any] | NDArray[Any],
    *,
    weight: ArrayLike | None = None,
    confidence: float = 0.95,
) -> ClusteredAuc:
    """Return the area under the curve with the error that units of one subject leave.

    Parameters
    ----------
    outcome : array_like
        Shares between 0 and 1, shape (n,).
    prediction : array_like
        Anything that rises with the outcome, shape (n,).
    subjects : sequence
        Subject of every unit.
    weight : array_like, optional
        Weight of every unit.
    confidence : float, optional
        Level of the interval.

    Returns
    -------
    ClusteredAuc
        Area, error and the areas within subjects.

    Raises
    ------
    DataError
        If a value is missing or lengths differ.
    EstimationError
        If all outcomes are the same, or there are fewer than 2 subjects.

    References
    ----------
    Obuchowski NA. Nonparametric analysis of clustered ROC curve data. Biometrics 1997. doi:10.2307/2533958

    Examples
    --------
    >>> clustered_auc([0, 1, 0, 1], [0.2, 0.7, 0.4, 0.3], ["a", "a", "b", "b"]).auc
    0.75
    """
    from scipy.stats import t as student

    y, score = as_column(outcome, "outcome"), as_column(prediction, "prediction")
    w = np.ones(y.size) if weight is None else as_column(weight, "weight")
    codes, labels, missing = labels_of(subjects, "subjects")
    if not y.size == score.size == w.size == codes.size or missing.any():
        raise DataError(f"{y.size} outcomes, {score.size} predictions, {w.size} weights, {codes.size} subjects")
    if np.isnan(y).any() or np.isnan(score).any() or np.isnan(w).any():
        raise DataError("an outcome, prediction or weight is missing", hint="leave out incomplete units first")
    positive, negative = w * y, w * (1 - y)
    if positive.sum() <= 0 or negative.sum() <= 0:
        raise EstimationError(f"all {y.size} units have the same outcome, so there is nothing to tell apart")
    size = labels.size
    if size < 2:
        raise EstimationError(f"units of {size} subject; an error over subjects needs at least 2")
    area, above, below = _components(score, positive, negative)
    each = positive * (above - area) / positive.sum() + negative * (below - area) / negative.sum()
    influence = np.bincount(codes, each, minlength=size).astype(np.float64)
    se = float(np.sqrt(size / (size - 1) * np.sum(influence**2)))
    within = np.full(size, np.nan)
    for i in range(size):
        own = codes == i
        if positive[own].sum() > 0 and negative[own].sum() > 0:
            within[i] = _components(score[own], positive[own], negative[own])[0]
    reach = float(student.ppf(0.5 + confidence / 2, size - 1))
    bounded = min(max(area, 1e-9), 1 - 1e-9)
    logit, logit_se = np.log(bounded / (1 - bounded)), se / (bounded * (1 - bounded))
    low, high = (1 / (1 + np.exp(-np.clip(logit + sign * reach * logit_se, -500, 500))) for sign in (-1, 1))
    return ClusteredAuc(
        auc=area,
        se=se,
        ci_low=float(min(low, area)),
        ci_high=float(max(high, area)),
        p=float(2 * student.sf(abs(logit) / logit_se, size - 1)) if se > 0 else (1.0 if area == 0.5 else 0.0),
        df=size - 1,
        subject=within,
        labels=tuple(str(v) for v in labels),
        n=y.size,
        n_subjects=size,
        influence=influence,
    )


def _components(score: Float, positive: Float, negative: Float) -> tuple[float, Float, Float]:
    """Return the area, and for every unit the share of negatives below it and of positives above it, ties a half."""
    order = np.argsort(score, kind="stable")
    _, tie = np.unique(score[order], return_inverse=True)

    def below(mass: Float) -> Float:
        block = np.bincount(tie, mass[order])
        share = (np.cumsum(block) - block / 2) / block.sum()
        found = np.empty_like(mass)
        found[order] = share[tie]
        return found

    above = below(negative)
    under = 1 - below(positive)
    return float(positive @ above / positive.sum()), above, under


def auc_difference(first: ClusteredAuc, second: ClusteredAuc, *, confidence: float = 0.95) -> AucDifference:
    """Compare two predictions of the same units.

    Parameters
    ----------
    first, second : ClusteredAuc
        Areas over the same units and subjects.
    confidence : float, optional
        Level of the interval.

    Returns
    -------
    AucDifference
        First minus second.

    Raises
    ------
    DataError
        If the subjects differ.

    Examples
    --------
    >>> y, who = [0, 1, 0, 1, 0, 1], ["a", "a", "b", "b", "c", "c"]
    >>> a = clustered_auc(y, [0.1, 0.9, 0.3, 0.6, 0.2, 0.1], who)
    >>> auc_difference(a, a).estimate
    0.0
    """
    from scipy.stats import t as student

    if first.labels != second.labels:
        raise DataError(f"areas over {first.n_subjects} and {second.n_subjects} subjects, which are not the same")
    gap = first.influence - second.influence
    size = first.n_subjects
    se = float(np.sqrt(size / (size - 1) * np.sum(gap**2)))
    estimate = first.auc - second.auc
    reach = float(student.ppf(0.5 + confidence / 2, size - 1))
    return AucDifference(
        estimate=estimate,
        se=se,
        ci_low=estimate - reach * se,
        ci_high=estimate + reach * se,
        p=float(2 * student.sf(abs(estimate) / se, size - 1)) if se > 0 else 1.0,
        df=size - 1,
    )


def calibration(
    outcome: ArrayLike,
    probability: ArrayLike,
    subjects: Sequence[Any] | NDArray[Any],
    *,
    weight: ArrayLike | None = None,
) -> Calibration:
    """Return slope and intercept of the outcome on the logit of the predictions, and the Brier score.

    Parameters
    ----------
    outcome : array_like
        Shares between 0 and 1, shape (n,).
    probability : array_like
        Predictions of subjects that did not take part in their model, shape (n,).
    subjects : sequence
        Subject of every unit.
    weight : array_like, optional
        Weight of every unit.

    Returns
    -------
    Calibration
        Slope and intercept with errors over subjects, and the Brier score beside that of a constant.

    Raises
    ------
    EstimationError
        If the predictions do not vary or all outcomes are the same.

    References
    ----------
    Cox DR. Two further applications of a model for binary regression. Biometrika 1958. doi:10.2307/2333203

    Examples
    --------
    >>> p = np.tile([0.1, 0.3, 0.6, 0.9], 5)
    >>> found = calibration(p, p, np.repeat(list("abcde"), 4))
    >>> round(found.slope, 6), round(abs(found.intercept), 6)
    (1.0, 0.0)
    """
    from scipy.special import expit, logit

    y, p = as_column(outcome, "outcome"), as_column(probability, "probability")
    w = np.ones(y.size) if weight is None else as_column(weight, "weight")
    codes, labels, _ = labels_of(subjects, "subjects")
    x = logit(np.clip(p, 1e-9, 1 - 1e-9))
    share = float(w @ y / w.sum())
    if np.ptp(x) == 0 or not 0 < share < 1:
        raise EstimationError(f"predictions between {p.min():g} and {p.max():g} of a share of {share:g} do not vary")

    def fitted(design: Float, offset: Float) -> tuple[Float, Float]:
        beta = np.zeros(design.shape[1])
        for _ in range(100):
            q = expit(offset + design @ beta)
            curvature = design.T @ (design * (w * q * (1 - q))[:, None]) + 1e-12 * np.eye(beta.size)
            move = np.linalg.solve(curvature, design.T @ (w * (y - q)))
            beta = beta + move * min(1.0, 2.0 / max(float(np.abs(move).max()), 1e-300))
            if np.abs(move).max() < 1e-10:
                break
        score = np.zeros((labels.size, beta.size))
        np.add.at(score, codes, design * (w * (y - expit(offset + design @ beta)))[:, None])
        bread = np.linalg.inv(curvature)
        factor = labels.size / max(labels.size - 1, 1)
        return beta, np.sqrt(np.diag(factor * bread @ (score.T @ score) @ bread))

    both, both_se = fitted(np.column_stack([np.ones(y.size), x]), np.zeros(y.size))
    shift, shift_se = fitted(np.ones((y.size, 1)), x)
    return Calibration(
        slope=float(both[1]),
        slope_se=float(both_se[1]),
        intercept=float(shift[0]),
        intercept_se=float(shift_se[0]),
        brier=float(w @ (p - y) ** 2 / w.sum()),
        brier_of_share=float(w @ (share - y) ** 2 / w.sum()),
        df=labels.size - 1,
    )
