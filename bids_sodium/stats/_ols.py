"""Linear regression: Ols, its Diagnostics and LinearTest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._design import design_matrix, names_of
from bids_sodium.stats._rows import as_column, as_matrix, complete, is_constant, require_rows

__all__ = ["Coefficient", "Diagnostics", "LinearTest", "Ols", "ols"]

Float = NDArray[np.float64]
_SHAPIRO_ROWS = 5000
_ALONE = 1e-10
"""A row whose leverage falls short of one by less determines a coefficient alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """One coefficient."""

    name: str
    """Term."""
    estimate: float
    """Estimate."""
    se: float
    """Standard error."""
    statistic: float
    """t."""
    df: float
    """Degrees of freedom."""
    p: float
    """Two-sided p value."""
    ci_low: float
    """Lower confidence limit."""
    ci_high: float
    """Upper confidence limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTest:
    """Test of linear combinations of the coefficients."""

    estimate: float
    """The combination; NaN where there are several."""
    se: float
    """Its standard error."""
    ci_low: float
    """Lower confidence limit."""
    ci_high: float
    """Upper confidence limit."""
    statistic: float
    """F."""
    df_numerator: int
    """Independent combinations."""
    df: int
    """Residual degrees of freedom."""
    p: float
    """p value."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Diagnostics:
    """What may be wrong with a linear model."""

    vif: Float
    """Variance inflation of each coefficient; NaN for the column of ones."""
    leverage: Float
    """Leverage of each row."""
    cook: Float
    """Cook's distance of each row."""
    studentised: Float
    """Externally studentised residual of each row."""
    dffits: Float
    """DFFITS of each row."""
    shapiro_w: float
    """Shapiro-Wilk W of the residuals; NaN above 5000 rows, for which it is not made."""
    shapiro_p: float
    """Its p value."""
    koenker: float
    """Koenker's studentised Breusch-Pagan statistic."""
    koenker_p: float
    """Its p value."""
    outlier_p: float
    """Bonferroni p value of the largest studentised residual."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ols:
    """A linear model fitted by least squares; arrays follow ``names``."""

    names: tuple[str, ...]
    """Terms, in the order of the columns of X."""
    estimate: Float
    """Coefficients, shape (p,)."""
    se: Float
    """Standard errors."""
    statistic: Float
    """t values."""
    p: Float
    """Two-sided p values."""
    ci_low: Float
    """Lower confidence limits."""
    ci_high: Float
    """Upper confidence limits."""
    covariance: Float
    """Covariance of the coefficients, shape (p, p)."""
    se_hc3: Float
    """Heteroscedasticity-consistent standard errors HC3; NaN where a leverage is one."""
    se_hc4: Float
    """Heteroscedasticity-consistent standard errors HC4 (Cribari-Neto)."""
    r2: float
    """R², about the mean where X spans a constant, else about zero."""
    adjusted_r2: float
    """Adjusted R²."""
    sigma: float
    """Residual standard deviation."""
    df: int
    """Residual degrees of freedom."""
    f_statistic: float
    """F of all terms but the constant; NaN where there are none."""
    f_p: float
    """Its p value."""
    loglik: float
    """Gaussian log-likelihood."""
    aic: float
    """Akaike information criterion, s counted."""
    bic: float
    """Bayesian information criterion, s counted."""
    n: int
    """Rows used."""
    n_missing: int
    """Rows left out as incomplete."""
    rows: NDArray[np.intp]
    """Positions of the rows used."""
    confidence: float
    """Confidence level."""
    X: Float
    """Design used, shape (n, p)."""
    y: Float
    """Outcome used, shape (n,)."""
    residuals: Float
    """Residuals, shape (n,)."""

    def __getitem__(self, name: str) -> Coefficient:
        """Return the coefficient of that name."""
        if name not in self.names:
            raise KeyError(name)
        i = self.names.index(name)
        return Coefficient(
            name=name,
            estimate=float(self.estimate[i]),
            se=float(self.se[i]),
            statistic=float(self.statistic[i]),
            df=self.df,
            p=float(self.p[i]),
            ci_low=float(self.ci_low[i]),
            ci_high=float(self.ci_high[i]),
        )

    @property
    def standardised(self) -> Float:
        """Coefficients in standard deviations of y for one of the column; NaN for the column of ones."""
        spread = self.X.std(axis=0, ddof=1)
        scaled = self.estimate * spread / self.y.std(ddof=1)
        return np.where(spread > 0, scaled, np.nan)

    def test(self, L: ArrayLike) -> LinearTest:
        """Test that all combinations Lβ are zero.

        Parameters
        ----------
        L : array_like
            Weights, shape (p,) or (k, p).

        Returns
        -------
        LinearTest
            F test; for one combination also estimate and interval.

        Raises
        ------
        DataError
            If the weights do not fit the coefficients.
        """
        from scipy.stats import f as fisher
        from scipy.stats import t as student

        rows = np.atleast_2d(np.asarray(L, dtype=np.float64))
        if rows.shape[1] != len(self.names):
            raise DataError(f"the combinations have shape {rows.shape}, expected (k, {len(self.names)})")
        _, singular, right = np.linalg.svd(rows, full_matrices=False)
        rank = int(np.sum(singular > 1e-10 * singular.max(initial=0.0)))
        if rank == 0:
            raise DataError("all combinations to test are zero")
        basis = right[:rank]
        value = basis @ self.estimate
        f = float(value @ np.linalg.solve(basis @ self.covariance @ basis.T, value)) / rank
        estimate = se = low = high = np.nan
        if rows.shape[0] == 1:
            estimate, se = float(rows[0] @ self.estimate), float(np.sqrt(rows[0] @ self.covariance @ rows[0]))
            half = float(student.ppf(0.5 + self.confidence / 2, self.df)) * se
            low, high = estimate - half, estimate + half
        return LinearTest(
            estimate=estimate,
            se=se,
            ci_low=low,
            ci_high=high,
            statistic=f,
            df_numerator=rank,
            df=self.df,
            p=float(fisher.sf(f, rank, self.df)),
        )

    def diagnostics(self) -> Diagnostics:
        """Return leverage, influence, collinearity, normality and heteroscedasticity.

        Raises
        ------
        EstimationError
            If a row has leverage one or there are fewer than 2 residual degrees of freedom.
        """
        from scipy.stats import shapiro
        from scipy.stats import t as student
        from statsmodels.stats.diagnostic import het_breuschpagan

        n = self.n
        influence = _fit(self.X, self.y).get_influence()
        leverage = influence.hat_matrix_diag
        alone = leverage > 1 - _ALONE
        if alone.any() or self.df < 2:
            raise EstimationError(
                f"{int(alone.sum())} of {n} rows have leverage one and {self.df} degrees of freedom "
                "are left, so residuals cannot be studentised"
            )
        inner = influence.resid_studentized_internal
        # the closed form of statsmodels' leave-one-out fits, of which a cohort of thousands needs thousands a model
        left = np.maximum(self.df - inner**2, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):  # where the other rows fit perfectly it is infinite
            studentised = np.where(left > 0, inner * np.sqrt((self.df - 1) / left), np.sign(inner) * np.inf)
        varying = np.array([not is_constant(column) for column in self.X.T])
        slopes = np.column_stack([np.ones(n), self.X[:, varying]])
        koenker = koenker_p = np.nan
        if varying.any():
            koenker, koenker_p, *_ = het_breuschpagan(self.residuals, slopes)
        inflation = np.full(self.X.shape[1], np.nan)
        inflation[varying] = _inflation(slopes)
        # the p value of Shapiro and Wilk is made for 5000 rows at most
        normal = shapiro(self.residuals) if n <= _SHAPIRO_ROWS else None
        return Diagnostics(
            vif=inflation,
            leverage=leverage,
            cook=influence.cooks_distance[0],
            studentised=studentised,
            dffits=studentised * np.sqrt(leverage / (1 - leverage)),
            shapiro_w=np.nan if normal is None else float(normal.statistic),
            shapiro_p=np.nan if normal is None else float(normal.pvalue),
            koenker=float(koenker),
            koenker_p=float(koenker_p),
            outlier_p=float(min(1.0, n * 2 * student.sf(np.abs(studentised).max(), self.df - 1))),
        )


def ols(X: ArrayLike, y: ArrayLike, *, names: Sequence[str] | None = None, confidence: float = 0.95) -> Ols:
    """Fit y = Xβ + e by least squares.

    Parameters
    ----------
    X : array_like
        Design, shape (n, p), with its column of ones where the model has a constant.
    y : array_like
        Outcome, shape (n,). Rows with a missing value are left out and counted.
    names : sequence of str, optional
        Names of the columns of X.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    Ols
        Coefficients with intervals, fit, and robust standard errors.

    Raises
    ------
    EstimationError
        If there are fewer than p + 2 rows, the columns are collinear, or y does not vary.

    References
    ----------
    MacKinnon JG, White H. Some heteroskedasticity-consistent covariance matrix estimators with improved finite sample
    properties. J Econometrics 1985.
    Cribari-Neto F. Asymptotic inference under heteroskedasticity of unknown form. Comput Stat Data Anal 2004.

    Examples
    --------
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> fit = ols(np.column_stack([np.ones(5), x]), [1.1, 1.9, 3.2, 3.9, 5.1], names=["intercept", "x"])
    >>> fit.estimate.round(3), round(fit["x"].se, 4)
    (array([0.04, 1.  ]), 0.049)
    """
    design, outcome = as_matrix(X, "X"), as_column(y, "y")
    keep = complete(design, outcome, names=("X", "y"))
    rows = np.flatnonzero(keep)
    n_missing = int((~keep).sum())
    design, outcome = design[keep], outcome[keep]
    n, p = design.shape
    terms = names_of(names, p)
    require_rows(n, p + 2, f"a linear model of {p} coefficients", n_missing=n_missing)
    if is_constant(outcome):
        raise EstimationError(f"all {n} values of the outcome equal {outcome[0]:g}")
    design_matrix(design, terms)
    length = np.linalg.norm(design, axis=0)
    fit = _fit(design, outcome)
    with np.errstate(divide="ignore", invalid="ignore"):  # a perfect fit has infinite t, F and likelihood
        statistic, f, loglik = fit.tvalues, float(fit.fvalue), float(fit.llf)
        ci_low, ci_high = (fit.conf_int(1 - confidence) / length[:, None]).T
        p_values = fit.pvalues
    se_hc3, se_hc4 = _robust(fit)
    return Ols(
        names=terms,
        estimate=fit.params / length,
        se=fit.bse / length,
        statistic=statistic,
        p=p_values,
        ci_low=ci_low,
        ci_high=ci_high,
        covariance=fit.cov_params() / np.outer(length, length),
        se_hc3=se_hc3 / length,
        se_hc4=se_hc4 / length,
        r2=float(fit.rsquared),
        adjusted_r2=float(fit.rsquared_adj),
        sigma=float(np.sqrt(fit.mse_resid)),
        df=n - p,
        f_statistic=f,
        f_p=float(fit.f_pvalue),
        loglik=loglik,
        aic=2 * (p + 1) - 2 * loglik,
        bic=float(np.log(n) * (p + 1) - 2 * loglik),
        n=n,
        n_missing=n_missing,
        rows=rows,
        confidence=confidence,
        X=design,
        y=outcome,
        residuals=fit.resid,
    )


def _fit(X: Float, y: Float) -> Any:
    """Fit by statsmodels, with columns of length one so that their units cost no digits."""
    from statsmodels.regression.linear_model import OLS

    return OLS(y, X / np.linalg.norm(X, axis=0)).fit()


def _robust(fit: Any) -> tuple[Float, Float]:
    """Return HC3 and HC4 standard errors; statsmodels has no HC4, whose exponent of 1 - h is at most 4."""
    leverage = fit.get_influence().hat_matrix_diag
    if (leverage > 1 - _ALONE).any():
        return np.full(fit.params.size, np.nan), np.full(fit.params.size, np.nan)
    weight = fit.resid**2 / (1 - leverage) ** np.minimum(4.0, leverage / leverage.mean())
    return fit.HC3_se, np.asarray(np.sqrt(fit.model.pinv_wexog**2 @ weight))


def _inflation(X: Float) -> Float:
    """Return the variance inflation factors of all columns but the first, a column of ones."""
    from statsmodels.stats.outliers_influence import variance_inflation_factor

    with warnings.catch_warnings():
        # the factor says itself how collinear the columns are
        warnings.filterwarnings("ignore", "The design matrix is poorly conditioned", UserWarning)
        return np.array([variance_inflation_factor(X, i) for i in range(1, X.shape[1])])
