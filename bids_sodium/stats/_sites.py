"""Sites in one model: SiteEffect (fixed or random sites, with the interaction), PerSite and HeteroscedasticSites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.stats._design import design_matrix, names_of
from bids_sodium.stats._minimum import Minimum, minimum
from bids_sodium.stats._mixed import Mixed, mixed
from bids_sodium.stats._ols import Ols, ols
from bids_sodium.stats._rows import as_column, as_matrix, complete, labels_of, require_rows

__all__ = ["HeteroscedasticSites", "PerSite", "SiteEffect", "heteroscedastic_sites", "per_site", "site_effect"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerSite:
    """One term estimated at one site alone."""

    site: str
    """Site."""
    estimate: float
    """Coefficient; NaN where the site cannot estimate it."""
    se: float
    """Standard error."""
    df: int
    """Residual degrees of freedom."""
    n: int
    """Complete rows of the site."""
    reason: str
    """Why there is no estimate; empty where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteEffect:
    """One term of a linear model, with sites accounted for."""

    term: str
    """Term."""
    sites: str
    """"fixed" or "random"."""
    estimate: float
    """Coefficient of the term."""
    se: float
    """Standard error."""
    ci_low: float
    """Lower confidence limit."""
    ci_high: float
    """Upper confidence limit."""
    df: float
    """Degrees of freedom; Satterthwaite's for random sites."""
    p: float
    """Two-sided p value."""
    icc: float
    """Share of the variance between sites; NaN for fixed sites."""
    interaction_statistic: float
    """F of the term differing between sites (fixed sites); NaN where no site can add to it."""
    interaction_df_numerator: int
    """Its numerator degrees of freedom."""
    interaction_df: int
    """Its denominator degrees of freedom."""
    interaction_p: float
    """Its p value."""
    per_site: tuple[PerSite, ...]
    """The term at each site alone."""
    n: int
    """Rows used."""
    n_sites: int
    """Sites."""
    n_missing: int
    """Rows left out as incomplete."""
    model: Ols | Mixed
    """The fitted model."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeteroscedasticSites:
    """Random site intercept with a residual variance of its own for every site, by REML."""

    names: tuple[str, ...]
    """Terms, in the order of the columns of X."""
    estimate: Float
    """Fixed effects."""
    se: Float
    """Their standard errors."""
    site_names: tuple[str, ...]
    """Sites, in the order of ``sigma``."""
    sigma: Float
    """Residual standard deviation of each site."""
    sd_site: float
    """Standard deviation between sites."""
    loglik: float
    """REML log-likelihood."""
    converged: bool
    """Whether the likelihood is at a maximum."""
    n: int
    """Rows used."""
    n_missing: int
    """Rows left out as incomplete."""


def site_effect(
    y: ArrayLike,
    X: ArrayLike,
    site: Sequence[Any] | NDArray[Any],
    *,
    term: str,
    names: Sequence[str],
    sites: str = "auto",
    confidence: float = 0.95,
) -> SiteEffect:
    """Estimate a term over several sites.

    Parameters
    ----------
    y : array_like
        Outcome, shape (n,).
    X : array_like
        Design with its column of ones, shape (n, p); rows with a missing value are left out and counted.
    site : sequence
        Site of each row.
    term : str
        Name of the column of interest, such as the diagnosis.
    names : sequence of str
        Names of the columns of X.
    sites : {"auto", "fixed", "random"}, optional
        Site dummies or random intercept; "auto" takes dummies for 2 to 4 sites, a random intercept from 5.
    confidence : float, optional
        Confidence level.

    Returns
    -------
    SiteEffect
        The term, its interaction with sites and its estimates by site.

    Raises
    ------
    DataError
        If the term is not among the names, or the kind of sites is unknown.
    EstimationError
        If there are fewer than 2 sites, or the term does not vary within any site (confounded).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> site, dx = np.repeat(["a", "b", "c"], 20), np.tile([0.0, 1.0], 30)
    >>> y = 40 + 2 * dx + np.repeat([0.0, 3.0, -2.0], 20) + rng.normal(size=60)
    >>> effect = site_effect(y, np.column_stack([np.ones(60), dx]), site, term="dx", names=["intercept", "dx"])
    >>> effect.sites, bool(effect.ci_low < 2 < effect.ci_high)
    ('fixed', True)
    """
    outcome, design, codes, labels, n_missing = _rows(y, X, site)
    terms = names_of(names, design.shape[1])
    if term not in terms:
        raise DataError(f"no term {term!r} among {', '.join(terms)}")
    if sites not in {"auto", "fixed", "random"}:
        raise DataError(f"unknown kind of sites {sites!r}", hint="use auto, fixed or random")
    k, j = labels.size, terms.index(term)
    column = design[:, j]
    varies = [np.ptp(column[codes == i]) > 0 for i in range(k)]
    if not any(varies):
        raise EstimationError(f"{term} does not vary within any of {k} sites, so it is confounded with the sites")
    kind = ("random" if k >= 5 else "fixed") if sites == "auto" else sites
    # dummies span the constant; one column of ones may stay, the first dummy goes
    dummies = (codes[:, None] == np.arange(1, k)).astype(np.float64)
    site_names = tuple(f"site {name}" for name in labels[1:])
    full = ols(np.column_stack([design, dummies]), outcome, names=(*terms, *site_names), confidence=confidence)
    if kind == "fixed":
        model: Ols | Mixed = full
        c = full[term]
        numbers = (c.estimate, c.se, c.ci_low, c.ci_high, float(full.df), c.p, np.nan)
    else:
        model = fitted = mixed(outcome, design, labels[codes], names=terms, confidence=confidence)
        numbers = (
            float(fitted.estimate[j]),
            float(fitted.se[j]),
            float(fitted.ci_low[j]),
            float(fitted.ci_high[j]),
            float(fitted.df_satterthwaite[j]),
            float(fitted.p_satterthwaite[j]),
            fitted.icc,
        )
    statistic, extra, df, p = _interaction(full, column, codes, [i for i in range(k) if varies[i]])
    return SiteEffect(
        term=term,
        sites=kind,
        estimate=numbers[0],
        se=numbers[1],
        ci_low=numbers[2],
        ci_high=numbers[3],
        df=numbers[4],
        p=numbers[5],
        icc=numbers[6],
        interaction_statistic=statistic,
        interaction_df_numerator=extra,
        interaction_df=df,
        interaction_p=p,
        per_site=per_site(outcome, design, labels[codes], term=term, names=terms),
        n=outcome.size,
        n_sites=k,
        n_missing=n_missing,
        model=model,
    )


def per_site(
    y: ArrayLike, X: ArrayLike, site: Sequence[Any] | NDArray[Any], *, term: str, names: Sequence[str]
) -> tuple[PerSite, ...]:
    """Estimate a term at each site alone; a site that cannot says why.

    Parameters
    ----------
    y, X, site, term, names
        As for `site_effect`.

    Returns
    -------
    tuple of PerSite
        One entry a site, in order of name.

    Raises
    ------
    DataError
        If the term is not among the names.

    Examples
    --------
    >>> x = np.tile([0.0, 1.0, 2.0, 3.0], 2)
    >>> y = np.array([1.0, 2.1, 2.9, 4.0, 5.0, 7.1, 8.9, 11.0])
    >>> rows = per_site(y, np.column_stack([np.ones(8), x]), list("aaaabbbb"), term="x", names=["one", "x"])
    >>> [round(row.estimate, 2) for row in rows]
    [0.98, 1.98]
    """
    outcome, design, codes, labels, _ = _rows(y, X, site)
    terms = names_of(names, design.shape[1])
    if term not in terms:
        raise DataError(f"no term {term!r} among {', '.join(terms)}")
    found = []
    for i, label in enumerate(labels):
        rows = codes == i
        try:
            fit = ols(design[rows], outcome[rows], names=terms)
        except EstimationError as error:
            found.append(
                PerSite(site=str(label), estimate=np.nan, se=np.nan, df=0, n=int(rows.sum()), reason=error.what)
            )
            continue
        c = fit[term]
        found.append(PerSite(site=str(label), estimate=c.estimate, se=c.se, df=fit.df, n=fit.n, reason=""))
    return tuple(found)


def heteroscedastic_sites(
    y: ArrayLike, X: ArrayLike, site: Sequence[Any] | NDArray[Any], *, names: Sequence[str] | None = None
) -> HeteroscedasticSites:
    """Fit a random site intercept where sites differ in their residual variance.

    Parameters
    ----------
    y : array_like
        Outcome, shape (n,).
    X : array_like
        Design with its column of ones, shape (n, p).
    site : sequence
        Site of each row; every site needs at least 2 rows.
    names : sequence of str, optional
        Names of the columns of X.

    Returns
    -------
    HeteroscedasticSites
        Fixed effects weighted by the precision of each site.

    Raises
    ------
    EstimationError
        If there are too few rows or sites, or X is collinear.

    References
    ----------
    Pinheiro JC, Bates DM. Mixed-Effects Models in S and S-PLUS. Springer, 2000.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> site = np.repeat(["a", "b", "c"], 40)
    >>> y = rng.normal(size=120) * np.repeat([1.0, 2.0, 4.0], 40)
    >>> fit = heteroscedastic_sites(y, np.ones((120, 1)), site)
    >>> bool(fit.sigma[0] < fit.sigma[1] < fit.sigma[2])
    True
    """
    outcome, design, codes, labels, n_missing = _rows(y, X, site)
    n, p = design.shape
    terms = names_of(names, p)
    k = labels.size
    size = np.bincount(codes, minlength=k)
    require_rows(n, p + k + 2, f"a model of {p} effects and {k} site variances", n_missing=n_missing)
    if size.min() < 2:
        raise EstimationError(f"site {labels[int(size.argmin())]} has {int(size.min())} row, needs at least 2")
    basis = design_matrix(design, terms)
    Q, rest = basis.Q, basis.residual(outcome)
    C = np.array([Q[codes == i].T @ Q[codes == i] for i in range(k)])
    q = np.array([Q[codes == i].T @ rest[codes == i] for i in range(k)])
    b = np.array([Q[codes == i].sum(axis=0) for i in range(k)])
    c = np.array([rest[codes == i].sum() for i in range(k)])
    yy = np.array([rest[codes == i] @ rest[codes == i] for i in range(k)])

    def solve(v: Float) -> tuple[float, Float, Float]:
        """Return the deviance, the fixed effects and their covariance at ln s_i and w."""
        precision = np.exp(-2 * v[:k])
        w2 = v[k] ** 2
        shrink = w2 * precision**2 / (1 + w2 * size * precision)
        A = np.einsum("i,ijk->jk", precision, C) - np.einsum("i,ij,ik->jk", shrink, b, b)
        r = precision @ q - (shrink * c) @ b
        beta = np.linalg.solve(A, r)
        rss = float(precision @ yy - shrink @ c**2 - r @ beta)
        log_V = float(np.sum(2 * size * v[:k] + np.log1p(w2 * size * precision)))
        log_A = float(np.linalg.slogdet(A)[1]) + basis.log_determinant
        return (n - p) * float(np.log(2 * np.pi)) + rss + log_V + log_A, beta, np.linalg.inv(A)

    pooled = float(np.sqrt(rest @ rest / (n - p)))
    best = Minimum(x=np.zeros(k + 1), value=np.inf, slope=np.nan)
    for between in (0.05, 0.5):
        start = np.append(np.full(k, np.log(pooled)), between * pooled)
        found = minimum(lambda v: solve(v)[0], start, smooth=True, tolerance=1e-5)
        if found.value < best.value - 1e-9:
            best = found
    deviance, beta, covariance = solve(best.x)
    back = np.linalg.solve(basis.R, np.eye(p))
    return HeteroscedasticSites(
        names=terms,
        estimate=basis.coefficients(outcome) + back @ beta,
        se=np.sqrt(np.diag(back @ covariance @ back.T)),
        site_names=tuple(str(v) for v in labels),
        sigma=np.exp(best.x[:k]),
        sd_site=float(abs(best.x[k])),
        loglik=-deviance / 2,
        converged=best.slope < 1e-2,
        n=n,
        n_missing=n_missing,
    )


def _rows(
    y: ArrayLike, X: ArrayLike, site: Sequence[Any] | NDArray[Any]
) -> tuple[Float, Float, NDArray[np.intp], NDArray[Any], int]:
    outcome, design = as_column(y, "y"), as_matrix(X, "X")
    codes, labels, missing = labels_of(site, "site")
    if codes.size != outcome.size:
        raise DataError(f"the columns differ in length: y {outcome.size}, site {codes.size}")
    keep = complete(outcome, design, names=("y", "X")) & ~missing
    kept, codes = np.unique(codes[keep], return_inverse=True)
    if kept.size < 2:
        raise EstimationError(f"{int(keep.sum())} complete rows come from {kept.size} site, needs at least 2")
    return outcome[keep], design[keep], codes.astype(np.intp), labels[kept], int((~keep).sum())


def _interaction(full: Ols, column: Float, codes: NDArray[np.intp], able: list[int]) -> tuple[float, int, int, float]:
    """Return F, degrees of freedom and p of the term differing between the sites where it varies."""
    from scipy.stats import f as fisher

    added = np.column_stack([np.where(codes == i, column, 0.0) for i in able[1:]]) if len(able) > 1 else None
    if added is None or full.df - added.shape[1] < 1:
        return np.nan, 0, full.df, np.nan
    basis = design_matrix(full.X, full.names)
    rest = np.column_stack([basis.residual(v) for v in added.T])
    left, singular, _ = np.linalg.svd(rest, full_matrices=False)
    extra = int(np.sum(singular > 1e-9 * max(float(np.linalg.norm(added)), 1e-300)))
    df = full.df - extra
    if extra == 0 or df < 1:
        return np.nan, 0, full.df, np.nan
    gained = float(np.sum((left[:, :extra].T @ full.residuals) ** 2))
    statistic = (gained / extra) / ((float(full.residuals @ full.residuals) - gained) / df)
    return statistic, extra, df, float(fisher.sf(statistic, extra, df))
