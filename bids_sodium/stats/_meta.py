"""Sites that do not share rows: MetaAnalysis of their estimates, and Moments from which the pooled model follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._design import names_of
from bids_sodium.stats._ols import Coefficient
from bids_sodium.stats._rows import as_column, as_matrix, complete, require_rows

__all__ = ["MetaAnalysis", "Moments", "PooledModel", "fit_moments", "meta_analysis", "moments", "with_sites"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaAnalysis:
    """Estimates of several sites combined."""

    estimate: float
    """Combined estimate."""
    se: float
    """Standard error."""
    ci_low: float
    """Lower confidence limit."""
    ci_high: float
    """Upper confidence limit."""
    statistic: float
    """Estimate over standard error."""
    p: float
    """Two-sided p value."""
    tau2: float
    """Variance between sites."""
    i2: float
    """Share of the variance between sites, in %."""
    q: float
    """Cochran's Q."""
    q_p: float
    """Its p value."""
    prediction_low: float
    """Lower limit for the effect at a new site; NaN for the fixed-effect model."""
    prediction_high: float
    """Upper limit for the effect at a new site."""
    method: str
    """fixed, dl or reml, with "hksj" where the standard error is Hartung and Knapp's."""
    n_sites: int
    """Sites combined."""
    n_missing: int
    """Sites without an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """All that a site needs to share for a pooled linear model."""

    XtX: Float
    """XᵀX, shape (p, p)."""
    Xty: Float
    """Xᵀy, shape (p,)."""
    yty: float
    """yᵀy."""
    n: int
    """Rows."""

    def of(self, columns: Sequence[int]) -> Moments:
        """Return the moments of the same rows with some of the columns of X."""
        kept = list(columns)
        return Moments(XtX=self.XtX[np.ix_(kept, kept)], Xty=self.Xty[kept], yty=self.yty, n=self.n)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PooledModel:
    """The linear model of all rows, fitted without seeing them."""

    names: tuple[str, ...]
    """Terms."""
    estimate: Float
    """Coefficients."""
    se: Float
    """Standard errors."""
    p: Float
    """Two-sided p values."""
    ci_low: Float
    """Lower confidence limits."""
    ci_high: Float
    """Upper confidence limits."""
    sigma: float
    """Residual standard deviation."""
    r2: float
    """R² about the mean where the first column is the constant, else NaN."""
    df: int
    """Residual degrees of freedom."""
    n: int
    """Rows of all sites."""

    def __getitem__(self, name: str) -> Coefficient:
        """Return one coefficient."""
        i = self.names.index(name)
        estimate, se = float(self.estimate[i]), float(self.se[i])
        return Coefficient(
            name=name,
            estimate=estimate,
            se=se,
            statistic=estimate / se if se > 0 else float("nan"),
            df=float(self.df),
            p=float(self.p[i]),
            ci_low=float(self.ci_low[i]),
            ci_high=float(self.ci_high[i]),
        )


def meta_analysis(
    estimates: ArrayLike,
    se: ArrayLike,
    *,
    method: str = "reml",
    hksj: bool = True,
    confidence: float = 0.95,
) -> MetaAnalysis:
    """Combine the estimates of several sites.

    Parameters
    ----------
    estimates, se : array_like
        Estimate and standard error of each site, shape (k,); sites without one are left out and counted.
    method : {"reml", "dl", "fixed"}, optional
        Variance between sites: restricted maximum likelihood, DerSimonian and Laird, or none.
    hksj : bool, optional
        Whether to use Hartung and Knapp's standard error and t with k - 1 degrees of freedom.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    MetaAnalysis
        Combined estimate, heterogeneity and prediction interval.

    Raises
    ------
    DataError
        If a standard error is not positive or the method is unknown.
    EstimationError
        If fewer than 2 sites have an estimate.

    References
    ----------
    Viechtbauer W. Conducting meta-analyses in R with the metafor package. J Stat Softw 2010.
    https://doi.org/10.18637/jss.v036.i03
    IntHout J, Ioannidis JP, Borm GF. The Hartung-Knapp-Sidik-Jonkman method for random effects meta-analysis is
    straightforward. BMC Med Res Methodol 2014. https://doi.org/10.1186/1471-2288-14-25

    Examples
    --------
    >>> result = meta_analysis([1.0, 2.0, 1.5], [0.5, 0.5, 0.5], method="fixed", hksj=False)
    >>> round(result.estimate, 3), round(result.se, 3)
    (1.5, 0.289)
    """
    from scipy.stats import chi2, norm
    from scipy.stats import t as student

    b, s = as_column(estimates, "estimates"), as_column(se, "se")
    keep = complete(b, s, names=("estimates", "se"))
    n_missing = int((~keep).sum())
    b, s = b[keep], s[keep]
    k = b.size
    require_rows(k, 2, "a meta-analysis (as sites)", n_missing=n_missing)
    if (s <= 0).any():
        raise DataError(f"the standard errors run from {s.min():g}, expected positive numbers")
    if method not in {"reml", "dl", "fixed"}:
        raise DataError(f"unknown method {method!r}", hint="use reml, dl or fixed")
    v = s**2
    w = 1 / v
    q = float(np.sum(w * (b - np.sum(w * b) / w.sum()) ** 2))
    spread = float(w.sum() - np.sum(w**2) / w.sum())
    tau2 = {
        "fixed": lambda: 0.0,
        "dl": lambda: max(0.0, (q - (k - 1)) / spread),
        "reml": lambda: _reml(b, v),
    }[method]()
    weight = 1 / (v + tau2)
    centre = float(np.sum(weight * b) / weight.sum())
    variance = 1 / float(weight.sum())
    if hksj:
        variance *= float(np.sum(weight * (b - centre) ** 2)) / (k - 1)
        if variance <= 0:
            raise EstimationError(f"all {k} sites have the same estimate, so Hartung and Knapp's error is zero")
    error = float(np.sqrt(variance))
    factor = float(student.ppf(0.5 + confidence / 2, k - 1) if hksj else norm.ppf(0.5 + confidence / 2))
    z = centre / error
    typical = (k - 1) / spread
    i2 = 100 * max(0.0, (q - (k - 1)) / q) if method == "fixed" and q > 0 else 100 * tau2 / (tau2 + typical)
    reach = factor * float(np.sqrt(variance + tau2)) if method != "fixed" else np.nan
    return MetaAnalysis(
        estimate=centre,
        se=error,
        ci_low=centre - factor * error,
        ci_high=centre + factor * error,
        statistic=z,
        p=float(2 * (student.sf(abs(z), k - 1) if hksj else norm.sf(abs(z)))),
        tau2=tau2,
        i2=i2,
        q=q,
        q_p=float(chi2.sf(q, k - 1)),
        prediction_low=centre - reach,
        prediction_high=centre + reach,
        method=f"{method} hksj" if hksj else method,
        n_sites=k,
        n_missing=n_missing,
    )


def _reml(b: Float, v: Float) -> float:
    """Return the restricted maximum-likelihood variance between sites.

    The maximum is bracketed first, so that zero and local maxima are decided by the likelihood; the digits come from
    Fisher scoring from Hedges' estimate with metafor's end (a change of 1e-5, less where variances are below one).
    """
    from scipy.optimize import minimize_scalar

    def deviance(tau2: float) -> float:
        weight = 1 / (v + tau2)
        centre = np.sum(weight * b) / weight.sum()
        return float(np.sum(np.log(v + tau2)) + np.log(weight.sum()) + np.sum(weight * (b - centre) ** 2))

    top = 10 * float(np.var(b) + v.max())
    grid = np.concatenate([[0.0], np.geomspace(1e-6 * top, top, 80)])
    values = [deviance(float(g)) for g in grid]
    best = int(np.argmin(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    found = minimize_scalar(deviance, bounds=(low, high), method="bounded", options={"xatol": 1e-10 * top})
    if values[0] <= found.fun + 1e-12:
        return 0.0
    exact = float(found.x)
    tau2 = max(float(np.var(b, ddof=1) - v.mean()), 0.0)
    for _ in range(100):
        weight = 1 / (v + tau2)
        P = np.diag(weight) - np.outer(weight, weight) / weight.sum()
        step = float((b @ P @ P @ b - np.trace(P)) / np.sum(P * P))
        tau2 = max(tau2 + step, 0.0)
        if abs(step) <= 1e-5 * min(1.0, float(v.mean())):
            break
    return tau2 if abs(tau2 - exact) <= 1e-4 * exact else exact


def moments(X: ArrayLike, y: ArrayLike) -> Moments:
    """Return the cross-products of one site's complete rows.

    Parameters
    ----------
    X : array_like
        Design, shape (n, p), the same columns at every site.
    y : array_like
        Outcome, shape (n,).

    Returns
    -------
    Moments
        XᵀX, Xᵀy, yᵀy and n: no row can be read from them once n exceeds p.

    Examples
    --------
    >>> moments([[1.0, 0.0], [1.0, 2.0]], [1.0, 3.0]).Xty
    array([4., 6.])
    """
    design, outcome = as_matrix(X, "X"), as_column(y, "y")
    keep = complete(design, outcome, names=("X", "y"))
    design, outcome = design[keep], outcome[keep]
    return Moments(XtX=design.T @ design, Xty=design.T @ outcome, yty=float(outcome @ outcome), n=outcome.size)


def fit_moments(
    sites: Sequence[Moments], *, names: Sequence[str] | None = None, confidence: float = 0.95
) -> PooledModel:
    """Fit the linear model of all sites' rows from their moments.

    Parameters
    ----------
    sites : sequence of Moments
        Moments of each site.
    names : sequence of str, optional
        Names of the columns.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    PooledModel
        What `ols` gives on the stacked rows.

    Raises
    ------
    DataError
        If the sites differ in their columns or there are none.
    EstimationError
        If there are fewer than p + 2 rows or the columns are collinear.

    Examples
    --------
    >>> X = np.column_stack([np.ones(6), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    >>> y = np.array([1.0, 2.9, 5.1, 7.0, 9.1, 10.9])
    >>> fit_moments([moments(X[:3], y[:3]), moments(X[3:], y[3:])]).estimate.round(3)
    array([1., 2.])
    """
    from scipy.stats import t as student

    shapes = {site.XtX.shape for site in sites}
    if len(shapes) != 1:
        raise DataError(f"{len(sites)} sites with designs of shapes {sorted(shapes)}, expected one shape")
    XtX = np.sum([site.XtX for site in sites], axis=0)
    Xty = np.sum([site.Xty for site in sites], axis=0)
    yty, n = float(sum(site.yty for site in sites)), sum(site.n for site in sites)
    p = XtX.shape[0]
    require_rows(n, p + 2, f"a pooled model of {p} coefficients")
    terms = names_of(names, p)
    scale = np.sqrt(np.diag(XtX))
    if not scale.all() or np.linalg.cond(XtX / np.outer(scale, scale)) > 1e12:
        raise EstimationError(f"the {p} columns are collinear over {len(sites)} sites and {n} rows")
    inverse = np.linalg.inv(XtX / np.outer(scale, scale)) / np.outer(scale, scale)
    estimate = inverse @ Xty
    df = n - p
    sigma2 = max(yty - float(Xty @ estimate), 0.0) / df
    se = np.sqrt(sigma2 * np.diag(inverse))
    half = student.ppf(0.5 + confidence / 2, df) * se
    # A first column of ones has its count on the diagonal and the sum of y beside it.
    total = yty - float(Xty[0]) ** 2 / n if abs(float(XtX[0, 0]) - n) < 1e-9 * n else float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        pvalue = np.asarray(2 * student.sf(np.abs(estimate / se), df))
    return PooledModel(
        names=terms,
        estimate=estimate,
        se=se,
        p=pvalue,
        ci_low=estimate - half,
        ci_high=estimate + half,
        sigma=float(np.sqrt(sigma2)),
        r2=1.0 - sigma2 * df / total if total > 0 else float("nan"),
        df=df,
        n=n,
    )


def with_sites(sites: Sequence[Moments]) -> tuple[Moments, ...]:
    """Return the moments of the same rows with a dummy of every site but the first as further columns.

    A dummy is one for all rows of its site, so that its cross-products are the site's sums, which stand beside the
    constant in the first column.

    Parameters
    ----------
    sites : sequence of Moments
        Moments of each site, the first column of X a constant of one.

    Returns
    -------
    tuple of Moments
        Moments of each site, of p + k - 1 columns.

    Examples
    --------
    >>> both = [moments(np.ones((4, 1)), [1.0, 2.0, 3.0, 4.0]), moments(np.ones((4, 1)), [3.0, 4.0, 5.0, 6.0])]
    >>> fit_moments(with_sites(both)).estimate.round(3)
    array([2.5, 2. ])
    """
    extended = []
    for i, site in enumerate(sites):
        p, extra = site.XtX.shape[0], len(sites) - 1
        XtX, Xty = np.zeros((p + extra, p + extra)), np.zeros(p + extra)
        XtX[:p, :p], Xty[:p] = site.XtX, site.Xty
        if i > 0:
            XtX[:p, p + i - 1] = XtX[p + i - 1, :p] = site.XtX[0]
            XtX[p + i - 1, p + i - 1], Xty[p + i - 1] = site.n, site.Xty[0]
        extended.append(Moments(XtX=XtX, Xty=Xty, yty=site.yty, n=site.n))
    return tuple(extended)
