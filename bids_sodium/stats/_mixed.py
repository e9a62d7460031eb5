"""Linear mixed models by REML: Mixed, its MixedContrast and FTest.

y = Xβ + Z b_g + e with b_g ~ N(0, G) for each group and e ~ N(0, s²I); Z is a column of ones (random intercept) unless
given. With V_g = s²(I + Z Λ Λᵀ Zᵀ), everything follows from the cross-products of each group,

    V_g⁻¹ = (I - Z K Zᵀ)/s²,  K = Λ (I + Λᵀ ZᵀZ Λ)⁻¹ Λᵀ,

so that 10 000 observations in 50 groups take milliseconds. Degrees of freedom are Satterthwaite's (from the curvature
of the REML deviance in Λ and s, as in lmerTest) and Kenward and Roger's (as in pbkrtest).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._design import design_matrix, names_of
from bids_sodium.stats._minimum import minimum
from bids_sodium.stats._rows import as_column, as_matrix, complete, is_constant, labels_of, require_rows

__all__ = ["FTest", "Mixed", "MixedContrast", "mixed"]

Float = NDArray[np.float64]
_SINGULAR = 1e-4
"""Diagonal entry of Λ below which a random effect has no variance (as lme4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FTest:
    """Joint test of several linear combinations of the fixed effects."""

    statistic: float
    """F with the model-based covariance."""
    df_numerator: int
    """Independent combinations tested."""
    df_satterthwaite: float
    """Denominator degrees of freedom (Fai and Cornelius)."""
    p_satterthwaite: float
    """p value of ``statistic``."""
    statistic_kenward_roger: float
    """Scaled F with the adjusted covariance."""
    df_kenward_roger: float
    """Its denominator degrees of freedom."""
    p_kenward_roger: float
    """p value of ``statistic_kenward_roger``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedContrast:
    """Linear combinations of the fixed effects, one entry a row."""

    estimate: Float
    """Estimates, shape (k,)."""
    se: Float
    """Model-based standard errors."""
    df_satterthwaite: Float
    """Satterthwaite degrees of freedom."""
    p_satterthwaite: Float
    """Two-sided p values."""
    ci_low: Float
    """Lower confidence limits (Satterthwaite)."""
    ci_high: Float
    """Upper confidence limits (Satterthwaite)."""
    se_kenward_roger: Float
    """Kenward-Roger standard errors."""
    df_kenward_roger: Float
    """Kenward-Roger degrees of freedom."""
    p_kenward_roger: Float
    """Two-sided p values."""
    ci_low_kenward_roger: Float
    """Lower confidence limits (Kenward-Roger)."""
    ci_high_kenward_roger: Float
    """Upper confidence limits (Kenward-Roger)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixed:
    """A linear mixed model fitted by REML; arrays follow ``names``."""

    names: tuple[str, ...]
    """Fixed effects, in the order of the columns of X."""
    estimate: Float
    """Fixed effects, shape (p,)."""
    se: Float
    """Model-based standard errors."""
    df_satterthwaite: Float
    """Satterthwaite degrees of freedom."""
    p_satterthwaite: Float
    """Two-sided p values with Satterthwaite degrees of freedom."""
    ci_low: Float
    """Lower confidence limits (Satterthwaite)."""
    ci_high: Float
    """Upper confidence limits (Satterthwaite)."""
    se_kenward_roger: Float
    """Kenward-Roger standard errors."""
    df_kenward_roger: Float
    """Kenward-Roger degrees of freedom."""
    p_kenward_roger: Float
    """Two-sided p values with Kenward-Roger errors and degrees of freedom."""
    covariance: Float
    """Model-based covariance of the fixed effects, shape (p, p)."""
    covariance_kenward_roger: Float
    """Kenward-Roger covariance of the fixed effects, shape (p, p)."""
    random_covariance: Float
    """Covariance G of the random effects, shape (q, q); the variance of the intercept for q = 1."""
    sigma: float
    """Residual standard deviation."""
    loglik: float
    """REML log-likelihood."""
    icc: float
    """Share of the variance that lies between groups, for a random intercept; NaN otherwise."""
    singular: bool
    """Whether a random effect is estimated without variance; its inference is then that of the smaller model."""
    converged: bool
    """Whether the REML deviance is at a minimum."""
    groups: tuple[str, ...]
    """Groups, in the order of ``random_effects``."""
    random_effects: Float
    """Predicted random effects (BLUP), shape (groups, q)."""
    n: int
    """Rows used."""
    n_groups: int
    """Groups."""
    n_missing: int
    """Rows left out as incomplete."""
    confidence: float
    """Confidence level of the intervals."""
    inference: _Inference
    """What tests of further combinations need."""

    @property
    def sd_random(self) -> Float:
        """Standard deviations of the random effects, shape (q,)."""
        return np.asarray(np.sqrt(np.diag(self.random_covariance)))

    def contrast(self, L: ArrayLike) -> MixedContrast:
        """Estimate linear combinations of the fixed effects.

        Parameters
        ----------
        L : array_like
            Weights, shape (p,) or (k, p).

        Returns
        -------
        MixedContrast
            One entry a row of L.
        """
        rows = _rows_of(L, len(self.names))
        return _contrast(rows, self.estimate, self.inference, self.confidence)

    def test(self, L: ArrayLike) -> FTest:
        """Test that all combinations Lβ are zero.

        Parameters
        ----------
        L : array_like
            Weights, shape (p,) or (k, p).

        Returns
        -------
        FTest
            F statistics with Satterthwaite and Kenward-Roger degrees of freedom.

        Raises
        ------
        EstimationError
            If all rows of L are zero.
        """
        return _f_test(_rows_of(L, len(self.names)), self.estimate, self.inference)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Inference:
    """Derivatives that turn a combination into degrees of freedom."""

    covariance: Float
    gradient: Float  # of the covariance in (Λ, s), shape (m, p, p)
    parameter_covariance: Float  # of (Λ, s), shape (m, m)
    adjusted: Float  # Kenward-Roger covariance
    P: Float  # shape (r, p, p)
    W: Float  # covariance of the variance components, shape (r, r)


def mixed(
    y: ArrayLike,
    X: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    names: Sequence[str] | None = None,
    random: ArrayLike | None = None,
    correlated: bool = True,
    confidence: float = 0.95,
) -> Mixed:
    """Fit a linear mixed model by REML.

    Parameters
    ----------
    y : array_like
        Outcome, shape (n,).
    X : array_like
        Design of the fixed effects, shape (n, p), with its column of ones.
    groups : sequence
        Group (subject, site) of each row, shape (n,).
    names : sequence of str, optional
        Names of the columns of X.
    random : array_like, optional
        Design of the random effects, shape (n, q), by default a column of ones (random intercept).
    correlated : bool, optional
        Whether random effects of a group may be correlated.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    Mixed
        Fixed effects with Satterthwaite and Kenward-Roger inference, variance components, predictions.

    Raises
    ------
    EstimationError
        If there are fewer than 2 groups or p + 2 rows, no group has 2 rows, X is collinear or y is constant.

    References
    ----------
    Bates D, Mächler M, Bolker B, Walker S. Fitting linear mixed-effects models using lme4. J Stat Softw 2015.
    https://doi.org/10.18637/jss.v067.i01
    Kuznetsova A, Brockhoff PB, Christensen RHB. lmerTest package. J Stat Softw 2017.
    https://doi.org/10.18637/jss.v082.i13
    Kenward MG, Roger JH. Small sample inference for fixed effects from restricted maximum likelihood. Biometrics 1997.

    Examples
    --------
    >>> subject = np.repeat(["a", "b", "c", "d"], 2)
    >>> x = np.tile([0.0, 1.0], 4)
    >>> y = np.array([1.0, 2.1, 3.0, 3.8, 2.0, 3.2, 0.5, 1.4])
    >>> fit = mixed(y, np.column_stack([np.ones(8), x]), subject, names=["intercept", "x"])
    >>> fit.estimate.round(3), fit.df_satterthwaite.round(2)
    (array([1.625, 1.   ]), array([3.04, 3.  ]))
    """
    outcome, design = as_column(y, "y"), as_matrix(X, "X")
    Z = np.ones((outcome.size, 1)) if random is None else as_matrix(random, "random")
    keep = complete(outcome, design, Z, names=("y", "X", "random"))
    codes, labels, missing = labels_of(groups, "groups")
    if codes.size != outcome.size:
        raise DataError(f"the columns differ in length: y {outcome.size}, groups {codes.size}")
    keep &= ~missing
    n_missing = int((~keep).sum())
    outcome, design, Z = outcome[keep], design[keep], Z[keep]
    kept, codes = np.unique(codes[keep], return_inverse=True)
    labels = labels[kept]
    n, p = design.shape
    n_groups = labels.size
    terms = names_of(names, p)
    require_rows(n, p + 2, f"a mixed model of {p} fixed effects", n_missing=n_missing)
    if n_groups < 2:
        raise EstimationError(f"a mixed model needs at least 2 groups, found {n_groups} in {n} rows")
    if n_groups == n:
        raise EstimationError(f"all {n} groups have a single row, so groups and residuals cannot be told apart")
    if is_constant(outcome):
        raise EstimationError(f"all {n} values of the outcome equal {outcome[0]:g}")
    basis = design_matrix(design, terms)
    size = np.sqrt(np.mean(Z**2, axis=0))
    if not size.all():
        raise EstimationError(f"a column of the random effects is zero in all {n} rows")
    problem = _Problem(
        basis.Q,
        basis.residual(outcome),
        Z / size,
        codes=codes,
        n_groups=n_groups,
        log_determinant=basis.log_determinant,
        correlated=correlated,
    )
    if problem.yy <= 1e-24 * float(outcome @ outcome):
        raise EstimationError(f"the fixed effects reproduce all {n} values, so no variance is left to share out")
    theta, converged = _minimise(problem)
    state = problem.at(theta)
    sigma2 = state.rss / (n - p)
    inference = _inference(problem, theta, sigma2, basis.R)
    beta = basis.coefficients(outcome) + np.linalg.solve(basis.R, state.b)
    result = _contrast(np.eye(p), beta, inference, confidence)
    factor = problem.factor(theta)
    G = sigma2 * (factor @ factor.T) / np.outer(size, size)
    left = problem.c - problem.B @ state.b
    blup = np.einsum("gij,gj->gi", state.K, left) / size
    return Mixed(
        names=terms,
        estimate=beta,
        se=result.se,
        df_satterthwaite=result.df_satterthwaite,
        p_satterthwaite=result.p_satterthwaite,
        ci_low=result.ci_low,
        ci_high=result.ci_high,
        se_kenward_roger=result.se_kenward_roger,
        df_kenward_roger=result.df_kenward_roger,
        p_kenward_roger=result.p_kenward_roger,
        covariance=inference.covariance,
        covariance_kenward_roger=inference.adjusted,
        random_covariance=G,
        sigma=float(np.sqrt(sigma2)),
        loglik=-problem.deviance(theta) / 2,
        icc=float(G[0, 0] / (G[0, 0] + sigma2)) if random is None else np.nan,
        singular=bool(np.abs(np.diag(factor)).min() < _SINGULAR),
        converged=converged,
        groups=tuple(str(v) for v in labels),
        random_effects=blup,
        n=n,
        n_groups=n_groups,
        n_missing=n_missing,
        confidence=confidence,
        inference=inference,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _State:
    K: Float  # (groups, q, q)
    XVX: Float  # s² XᵀV⁻¹X in the orthonormal basis
    b: Float  # generalised least squares in the orthonormal basis
    rss: float
    log_det: float  # log |V/s²|


class _Problem:
    """Cross-products of every group: X orthonormal, y its residual."""

    def __init__(
        self,
        Q: Float,
        y: Float,
        Z: Float,
        *,
        codes: NDArray[np.intp],
        n_groups: int,
        log_determinant: float,
        correlated: bool,
    ) -> None:
        self.n, self.p = Q.shape
        self.q = Z.shape[1]
        self.cells = np.tril_indices(self.q) if correlated else np.diag_indices(self.q)
        self.size = np.bincount(codes, minlength=n_groups).astype(float)
        joint = np.concatenate([Z, Q, y[:, None]], axis=1)
        products = np.empty((n_groups, self.q, joint.shape[1]))
        for i in range(self.q):
            for j in range(joint.shape[1]):
                products[:, i, j] = np.bincount(codes, Z[:, i] * joint[:, j], minlength=n_groups)
        self.S = products[:, :, : self.q]
        self.B = products[:, :, self.q : -1]
        self.c = products[:, :, -1]
        self.yy = float(y @ y)
        self.log_determinant = log_determinant

    def factor(self, theta: Float) -> Float:
        """Return Λ, lower triangular."""
        factor = np.zeros((self.q, self.q))
        factor[self.cells] = theta
        return factor

    def at(self, theta: Float) -> _State:
        """Solve for the fixed effects at a relative covariance factor."""
        factor = self.factor(theta)
        M = np.eye(self.q) + factor.T @ self.S @ factor
        half = np.linalg.solve(M, np.broadcast_to(factor.T, M.shape))
        K = factor @ half
        KB = K @ self.B
        XVX = np.eye(self.p) - np.einsum("gij,gik->jk", self.B, KB)
        XVy = -np.einsum("gi,gij->j", self.c, KB)
        b = np.linalg.solve(XVX, XVy)
        rss = self.yy - float(np.einsum("gi,gij,gj->", self.c, K, self.c)) - float(XVy @ b)
        return _State(K=K, XVX=XVX, b=b, rss=rss, log_det=float(np.linalg.slogdet(M)[1].sum()))

    def deviance(self, theta: Float, sigma2: float | None = None) -> float:
        """Return -2 times the REML log-likelihood, s² at its optimum unless given."""
        state = self.at(theta)
        df = self.n - self.p
        variance = state.rss / df if sigma2 is None else sigma2
        log_X = float(np.linalg.slogdet(state.XVX)[1]) + self.log_determinant
        return float(df * np.log(2 * np.pi * variance) + state.rss / variance + state.log_det + log_X)


def _minimise(problem: _Problem) -> tuple[Float, bool]:
    """Minimise the deviance over Λ; its diagonal may have either sign, so that zero is an inner point."""
    from scipy.optimize import minimize_scalar

    q = problem.q
    if q == 1:
        grid = np.linspace(-7.0, 7.0, 15)
        values = [problem.deviance(np.exp([g])) for g in grid]
        best = int(np.argmin(values))
        found = minimize_scalar(
            lambda g: problem.deviance(np.exp([g])),
            bounds=(grid[best] - 1, grid[best] + 1),
            method="bounded",
            options={"xatol": 1e-9},
        )
        none = np.zeros(1)
        if problem.deviance(none) <= found.fun + 1e-9:
            return none, True
        return np.exp([float(found.x)]), bool(found.success and 0 < best < grid.size - 1)
    m = problem.cells[0].size
    diagonal = np.flatnonzero(problem.cells[0] == problem.cells[1])
    best_value, best_theta, success = np.inf, np.zeros(m), False
    for size in (0.1, 1.0, 5.0):
        start = np.zeros(m)
        start[diagonal] = size
        rough = minimum(problem.deviance, start, smooth=False, tolerance=1e-4, max_iterations=400 * q)
        fine = minimum(problem.deviance, rough.x, smooth=True, step=1e-4)
        if fine.value < best_value - 1e-9:
            best_value, best_theta, success = fine.value, fine.x, fine.slope < 1e-3
    theta = best_theta.copy()
    theta[diagonal] = np.where(np.abs(theta[diagonal]) < _SINGULAR, 0.0, theta[diagonal])
    if problem.deviance(theta) > best_value + 1e-6:
        theta = best_theta
    return theta, success


def _inference(problem: _Problem, theta: Float, sigma2: float, R: Float) -> _Inference:
    inverse = np.linalg.solve(R, np.eye(problem.p))
    sigma = float(np.sqrt(sigma2))
    point = np.append(theta, sigma)

    def back(covariance: Float) -> Float:
        return np.asarray(inverse @ covariance @ inverse.T)

    def deviance(v: Float) -> float:
        return problem.deviance(v[:-1], float(v[-1]) ** 2)

    def covariance(v: Float) -> Float:
        return np.asarray(float(v[-1]) ** 2 * np.linalg.inv(problem.at(v[:-1]).XVX))

    steps = np.append(2e-3 * np.maximum(np.abs(theta), 0.25), 2e-3 * sigma)
    hessian = _hessian(deviance, point, steps)
    gradient = np.array([back(_slope(covariance, point, steps, i)) for i in range(point.size)])
    P, W, adjusted = _kenward_roger(problem, problem.at(theta), sigma2)
    return _Inference(
        covariance=back(covariance(point)),
        gradient=gradient,
        parameter_covariance=np.asarray(2 * np.linalg.pinv(hessian, rcond=1e-10, hermitian=True), dtype=np.float64),
        adjusted=back(adjusted),
        P=R.T @ P @ R,
        W=W,
    )


def _slope(function: Callable[[Float], Float], point: Float, steps: Float, i: int) -> Float:
    """Fourth-order central difference in one parameter."""
    values = []
    for k in (-2, -1, 1, 2):
        moved = point.copy()
        moved[i] += k * steps[i]
        values.append(function(moved))
    return np.asarray((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * steps[i]))


def _hessian(function: Callable[[Float], float], point: Float, steps: Float) -> Float:
    """Second derivatives by fourth-order central differences."""
    m = point.size
    hessian = np.empty((m, m))
    centre = function(point)
    for i in range(m):
        values = []
        for k in (-2, -1, 1, 2):
            moved = point.copy()
            moved[i] += k * steps[i]
            values.append(function(moved))
        hessian[i, i] = (-values[0] + 16 * values[1] - 30 * centre + 16 * values[2] - values[3]) / (12 * steps[i] ** 2)
        for j in range(i):

            def slope(v: Float, j: int = j) -> Float:
                return _slope(lambda w: np.asarray(function(w)), v, steps, j)

            hessian[i, j] = hessian[j, i] = float(_slope(slope, point, steps, i))
    return hessian


def _kenward_roger(problem: _Problem, state: _State, sigma2: float) -> tuple[Float, Float, Float]:
    """Return P (r, p, p), the covariance W of the variance components and the adjusted covariance.

    Kenward and Roger (1997), with V linear in its components: the entries of G, and s².
    """
    q, K, S, B = problem.q, state.K, problem.S, problem.B
    T = np.eye(q) - K @ S  # V⁻¹Z = Z T / s²
    Tt = np.swapaxes(T, 1, 2)
    BtK = np.swapaxes(B, 1, 2) @ K
    S1 = S @ T / sigma2  # ZᵀV⁻¹Z
    S1 = (S1 + np.swapaxes(S1, 1, 2)) / 2
    B1 = Tt @ B / sigma2  # ZᵀV⁻¹X
    S2, B2 = Tt @ S1 / sigma2, Tt @ B1 / sigma2  # ZᵀV⁻²Z, ZᵀV⁻²X
    C1 = state.XVX / sigma2  # XᵀV⁻¹X
    C2 = (C1 - np.sum(BtK @ B1, axis=0)) / sigma2  # XᵀV⁻²X
    C3 = (C2 - np.sum(BtK @ B2, axis=0)) / sigma2  # XᵀV⁻³X
    KS = K @ S
    trace2 = (problem.n - 2 * np.trace(KS, axis1=1, axis2=2).sum() + np.einsum("gij,gji->", KS, KS)) / sigma2**2
    units = []
    for i, j in zip(*problem.cells, strict=True):
        unit = np.zeros((q, q))
        unit[i, j] = unit[j, i] = 1.0
        units.append(unit)
    r = len(units) + 1
    p = problem.p
    P, Q, trace = np.empty((r, p, p)), np.empty((r, r, p, p)), np.empty((r, r))
    B1t = np.swapaxes(B1, 1, 2)
    for a, Ea in enumerate(units):
        P[a] = -np.sum(B1t @ Ea @ B1, axis=0)
        Q[a, -1] = np.sum(B1t @ Ea @ B2, axis=0)
        Q[-1, a] = Q[a, -1].T
        trace[a, -1] = trace[-1, a] = np.einsum("ij,gji->", Ea, S2)
        for b, Eb in enumerate(units):
            Q[a, b] = np.sum(B1t @ Ea @ S1 @ Eb @ B1, axis=0)
            trace[a, b] = np.einsum("gij,jk,gkl,li->", S1, Ea, S1, Eb)
    P[-1], Q[-1, -1], trace[-1, -1] = -C2, C3, trace2
    phi = np.linalg.inv(C1)
    phi_P = phi @ P
    information = trace - 2 * np.einsum("ij,abji->ab", phi, Q) + np.einsum("aij,bji->ab", phi_P, phi_P)
    W = 2 * np.linalg.pinv((information + information.T) / 2, rcond=1e-12, hermitian=True)
    middle = np.einsum("ab,abij->ij", W, Q) - np.einsum("ab,aij,bjk->ik", W, P, phi_P)
    adjusted = phi + 2 * phi @ ((middle + middle.T) / 2) @ phi
    return P, W, adjusted


def _rows_of(L: ArrayLike, p: int) -> Float:
    rows = np.atleast_2d(np.asarray(L, dtype=np.float64))
    if rows.ndim != 2 or rows.shape[1] != p:
        raise DataError(f"the combinations have shape {rows.shape}, expected (k, {p})")
    return rows


def _satterthwaite(row: Float, inference: _Inference) -> float:
    variance = float(row @ inference.covariance @ row)
    gradient = np.einsum("i,mij,j->m", row, inference.gradient, row)
    spread = float(gradient @ inference.parameter_covariance @ gradient)
    return 2 * variance**2 / spread if spread > 0 else np.inf


def _kenward_roger_f(L: Float, inference: _Inference) -> tuple[float, float]:
    """Return the scale of F and the denominator degrees of freedom for rows L of full rank."""
    phi = inference.covariance
    rank = L.shape[0]
    M = L.T @ np.linalg.solve(L @ phi @ L.T, L)
    product = M @ phi @ inference.P @ phi
    trace = np.einsum("aii->a", product)
    A1 = float(trace @ inference.W @ trace)
    A2 = float(np.einsum("ab,aij,bji->", inference.W, product, product))
    spread = (A1 + 6 * A2) / (2 * rank)
    denominator = (rank + 2) * A2
    if denominator <= 0:
        return 1.0, np.inf
    g = ((rank + 1) * A1 - (rank + 4) * A2) / denominator
    base = 3 * rank + 2 * (1 - g)
    c1, c2, c3 = g / base, (rank - g) / base, (rank + 2 - g) / base
    # Kenward and Roger's rho with pbkrtest's care: 0/0 is one, a vanishing denominator leaves the limit of 4
    top, inner, outer = 1 - A2 / rank, 1 - c2 * spread, 1 - c3 * spread
    quotient = 1.0 if max(abs(top), abs(inner)) < 1e-14 else top / inner if inner else np.inf
    rho = quotient**2 * (1 + c1 * spread) / (rank * outer) if outer else np.inf
    excess = rank * rho - 1
    df = 4 + (rank + 2) / excess if excess else np.inf
    if not np.isfinite(df):
        return 1.0, np.inf
    return (1.0 if abs(df - 2) < 1e-2 else df * top / (df - 2)), df


def _contrast(rows: Float, beta: Float, inference: _Inference, confidence: float) -> MixedContrast:
    from scipy.stats import t as student

    estimate = rows @ beta
    se = np.sqrt(np.einsum("ki,ij,kj->k", rows, inference.covariance, rows))
    se_kr = np.sqrt(np.einsum("ki,ij,kj->k", rows, inference.adjusted, rows))
    df = np.array([_satterthwaite(row, inference) for row in rows])
    df_kr = np.array([_kenward_roger_f(row[None, :], inference)[1] for row in rows])
    half = student.ppf(0.5 + confidence / 2, df) * se
    half_kr = student.ppf(0.5 + confidence / 2, df_kr) * se_kr
    return MixedContrast(
        estimate=estimate,
        se=se,
        df_satterthwaite=df,
        p_satterthwaite=np.asarray(2 * student.sf(np.abs(estimate / se), df)),
        ci_low=estimate - half,
        ci_high=estimate + half,
        se_kenward_roger=se_kr,
        df_kenward_roger=df_kr,
        p_kenward_roger=np.asarray(2 * student.sf(np.abs(estimate / se_kr), df_kr)),
        ci_low_kenward_roger=estimate - half_kr,
        ci_high_kenward_roger=estimate + half_kr,
    )


def _f_test(rows: Float, beta: Float, inference: _Inference) -> FTest:
    from scipy.stats import f as fisher

    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    rank = int(np.sum(singular > 1e-10 * singular.max(initial=0.0)))
    if rank == 0:
        raise EstimationError(f"all {rows.shape[0]} combinations to test are zero")
    L = right[:rank]
    values, vectors = np.linalg.eigh(L @ inference.covariance @ L.T)
    rotated = vectors.T @ L
    t = rotated @ beta / np.sqrt(values)
    statistic = float(np.mean(t**2))
    each = np.array([_satterthwaite(row, inference) for row in rotated])
    if rank == 1:
        df = float(each[0])
    elif np.ptp(each) < 1e-8 * each.max():
        df = float(each.mean())
    else:
        expected = float(np.sum(np.where(each > 2, each / np.where(each > 2, each - 2, 1.0), 0.0)))
        df = 2 * expected / (expected - rank) if expected > rank else 2.0
    scale, df_kr = _kenward_roger_f(L, inference)
    combined = L @ beta
    f_kr = scale * float(combined @ np.linalg.solve(L @ inference.adjusted @ L.T, combined)) / rank
    return FTest(
        statistic=statistic,
        df_numerator=rank,
        df_satterthwaite=df,
        p_satterthwaite=float(fisher.sf(statistic, rank, df)),
        statistic_kenward_roger=f_kr,
        df_kenward_roger=df_kr,
        p_kenward_roger=float(fisher.sf(f_kr, rank, df_kr)),
    )
