"""Elastic net with nested cross-validation: Penalised, what shrunken coefficients predict in people not seen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import EstimationError
from bids_sodium.stats._design import names_of
from bids_sodium.stats._rows import as_column, as_matrix, complete, is_constant, require_rows

__all__ = ["Penalised", "elastic_net"]

Float = NDArray[np.float64]
_MIXES = (0.2, 0.6, 1.0)
"""Shares of the lasso in the penalty that the inner cross-validation chooses from."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Penalised:
    """A penalised linear model; arrays follow ``names``."""

    names: tuple[str, ...]
    """Penalised terms."""
    estimate: Float
    """Shrunken coefficients of the fit to all rows, in units of y for one unit of the term; 0 where left out."""
    standardised: Float
    """The same for one standard deviation of the term left by the unpenalised ones, in standard deviations of y."""
    selected_share: Float
    """Share of the outer training sets in which the term is not left out."""
    alpha: float
    """Strength of the penalty, chosen by cross-validation."""
    l1_ratio: float
    """Share of the lasso in it."""
    r2_forced: float
    """Cross-validated R² of the unpenalised terms alone."""
    r2_cv: float
    """Cross-validated R² of all terms, in people that neither fit nor choice of penalty had seen."""
    r2_sd: float
    """Standard deviation of that R² between repetitions of the split."""
    n: int
    """Rows used."""
    n_missing: int
    """Rows left out as incomplete."""
    n_folds: int
    """Folds of the outer cross-validation."""
    n_repeats: int
    """Its repetitions."""


def elastic_net(
    X: ArrayLike,
    y: ArrayLike,
    forced: ArrayLike | None = None,
    *,
    rng: np.random.Generator,
    names: Sequence[str] | None = None,
    n_folds: int = 5,
    n_repeats: int = 3,
) -> Penalised:
    """Fit a linear model whose coefficients are shrunk, and test it on people it has not seen.

    The coefficients minimise ``|y - Zc - Xb|^2 / 2n + alpha (r |b|_1 + (1 - r) |b|^2 / 2)``, columns of X at unit
    variance; the constant and the forced columns Z carry no penalty. An inner cross-validation chooses ``alpha`` and
    ``r``, an outer one around it measures R², so that no person helps to choose what they are predicted with.

    Parameters
    ----------
    X : array_like
        Penalised columns, shape (n, k).
    y : array_like
        Outcome, shape (n,). Rows with a missing value are left out and counted.
    forced : array_like, optional
        Columns without penalty, shape (n, q), the constant not among them.
    rng : numpy.random.Generator
        Splits the rows.
    names : sequence of str, optional
        Names of the columns of X.
    n_folds, n_repeats : int, optional
        Outer folds, and how often they are split anew.

    Returns
    -------
    Penalised
        Coefficients, how often each is kept, and cross-validated R².

    Raises
    ------
    EstimationError
        If there are fewer than 20 complete rows, or the outcome or a column does not vary.

    References
    ----------
    Zou H, Hastie T. Regularization and variable selection via the elastic net. J R Stat Soc B 2005.
    https://doi.org/10.1111/j.1467-9868.2005.00503.x
    Varma S, Simon R. Bias in error estimation when using cross-validation for model selection. BMC Bioinformatics 2006.
    https://doi.org/10.1186/1471-2105-7-91

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(90, 4))
    >>> y = X[:, 0] + rng.normal(size=90)
    >>> fit = elastic_net(X, y, rng=rng, names=["a", "b", "c", "d"])
    >>> int(np.argmax(np.abs(fit.estimate))), bool(0.3 < fit.r2_cv < 0.6)
    (0, True)
    """
    design, outcome = as_matrix(X, "X"), as_column(y, "y")
    n, k = design.shape
    Z = np.ones((n, 1)) if forced is None else np.column_stack([np.ones(n), as_matrix(forced, "forced")])
    keep = complete(design, outcome, Z, names=("X", "y", "forced"))
    n_missing = int((~keep).sum())
    design, outcome, Z = design[keep], outcome[keep], Z[keep]
    n = outcome.size
    terms = names_of(names, k)
    require_rows(n, max(20, 2 * n_folds, k + Z.shape[1] + n_folds), f"an elastic net of {k} terms", n_missing=n_missing)
    if is_constant(outcome):
        raise EstimationError(f"all {n} values of the outcome equal {outcome[0]:g}")
    still = [name for name, column in zip(terms, design.T, strict=True) if is_constant(column)]
    if still:
        raise EstimationError(f"{', '.join(still)} does not vary in {n} rows", hint="leave it out")
    whole = _fit(design, outcome, Z, rng)
    chosen = np.zeros(k)
    r2: list[float] = []
    r2_forced: list[float] = []
    for _ in range(n_repeats):
        fold = rng.permutation(np.arange(n) % n_folds)
        error, error_forced, scale = 0.0, 0.0, 0.0
        for i in range(n_folds):
            train, test = fold != i, fold == i
            fit = _fit(design[train], outcome[train], Z[train], rng)
            chosen += fit.slopes != 0
            base = Z[test] @ fit.of_y
            left = outcome[test] - base
            error_forced += float(left @ left)
            left = left - (design[test] - Z[test] @ fit.of_x) @ fit.slopes
            error += float(left @ left)
            scale += float(np.sum((outcome[test] - outcome[train].mean()) ** 2))
        r2.append(1 - error / scale)
        r2_forced.append(1 - error_forced / scale)
    return Penalised(
        names=terms,
        estimate=whole.slopes,
        standardised=whole.slopes * whole.spread / outcome.std(),
        selected_share=chosen / (n_folds * n_repeats),
        alpha=whole.alpha,
        l1_ratio=whole.l1_ratio,
        r2_forced=float(np.mean(r2_forced)),
        r2_cv=float(np.mean(r2)),
        r2_sd=float(np.std(r2, ddof=1)) if n_repeats > 1 else float("nan"),
        n=n,
        n_missing=n_missing,
        n_folds=n_folds,
        n_repeats=n_repeats,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    """One fit: penalised slopes, and what the unpenalised columns say of y and of X."""

    slopes: Float
    of_y: Float
    of_x: Float
    spread: Float
    alpha: float
    l1_ratio: float


def _fit(X: Float, y: Float, Z: Float, rng: np.random.Generator) -> _Fit:
    """Choose the penalty by cross-validation and fit; unpenalised columns are regressed out of both sides first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import ElasticNetCV
    from sklearn.model_selection import KFold

    of_y: Float = np.asarray(np.linalg.lstsq(Z, y, rcond=None)[0], dtype=np.float64)
    of_x: Float = np.asarray(np.linalg.lstsq(Z, X, rcond=None)[0], dtype=np.float64)
    rest_y, rest_x = y - Z @ of_y, X - Z @ of_x
    spread = rest_x.std(axis=0)
    # a column that the forced ones determine has nothing left to say
    dead = spread <= 1e-9 * X.std(axis=0)
    scaled = rest_x / np.where(dead, 1.0, spread)
    scaled[:, dead] = 0.0
    size = float(rest_y.std()) or 1.0
    inner: Any = KFold(5, shuffle=True, random_state=int(rng.integers(2**31)))
    model = ElasticNetCV(
        l1_ratio=list(_MIXES), alphas=20, eps=1e-2, cv=inner, precompute=False, fit_intercept=False, max_iter=5000
    )
    with warnings.catch_warnings():
        # the weakest penalties may stop early; they are rarely chosen, and the outer folds would tell
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaled, rest_y / size)
    slopes = np.where(dead, 0.0, model.coef_ * size / np.where(dead, 1.0, spread))
    return _Fit(
        slopes=slopes, of_y=of_y, of_x=of_x, spread=spread, alpha=float(model.alpha_), l1_ratio=float(model.l1_ratio_)
    )
