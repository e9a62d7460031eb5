"""The stroke study, analysis by analysis: a long table of regions → `Study`.

Scans fall into an early (up to 24 h) and a late window (up to 70 h after onset). Nothing here is a statistic of its
own: each analysis chooses rows, calls `bids_sodium.stats` and states estimate, interval, p value and n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group.results import Analysis, Ledger, Study, empty_results, plural, taken
from bids_sodium.group.rows import Scans, numeric, scans

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.stats.comparisons import Mixed
    from bids_sodium.stats.curves import CurveValue, SigmoidFit

__all__ = ["StrokeParams", "analyse"]

_Array = NDArray[np.float64]
_OUTCOME = {"na": "sodium signal change (%)", "tsc": "TSC change (%)", "adc": "ADC change (%)"}
_WINDOW = {"early": "early window", "late": "late window", "after": "later scans"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StrokeParams:
    """What the stroke study compares, and how."""

    method: str = "auto"
    """Partial-volume method of the rows that enter; ``auto`` takes glm, gtm, csf or raw, the first that is present."""

    early_h: tuple[float, float] = (0.0, 24.0)
    """Early window, in h after onset: above the first number, up to the second (the stroke paper)."""

    late_h: tuple[float, float] = (24.0, 70.0)
    """Late window, in h after onset (25-70 h in the stroke paper)."""

    hours: tuple[float, ...] = (24.0, 48.0, 60.0, 70.0)
    """Times at which fitted curves are read, in h; the paper's "upper asymptote" is its f(60)."""

    curve_region: str = "cytotoxic"
    """Region of the sigmoid and of the ADC plateau (the stroke paper)."""

    minimum_ml: float = 1.0
    """Smallest region that enters, in mL (the stroke paper's 1 cm3)."""

    plateau_from_h: float = 6.0
    """From when on the ADC change counts as its plateau, in h (Hussain 2009: reached within the first hours)."""

    na_regions: tuple[str, ...] = ("ionic", "ionic&necrosis", "necrosis-ionic", "ionic-necrosis")
    """Regions whose sodium courses are compared (the stroke paper)."""

    adc_regions: tuple[str, ...] = ("cytotoxic", "cytotoxic&necrosis", "necrosis-cytotoxic", "cytotoxic-necrosis")
    """Regions whose ADC courses are compared (the stroke paper)."""

    marginal_h: tuple[float, ...] = (24.0, 48.0)
    """Times of the marginal means of the mixed models, in h."""

    equivalence_ratio: float = 1.25
    """Volumes within this ratio of each other count as equivalent, no unit (the 80-125 % rule of bioequivalence)."""

    n_resamples: int = 10_000
    """Resamples of subjects for bands, and permutations of subjects."""

    minimum_subjects: int = 3
    """Fewest subjects that an analysis needs."""

    confidence: float = 0.95
    """Level of all intervals."""


def analyse(table: pd.DataFrame, params: StrokeParams | None = None, rng: np.random.Generator | None = None) -> Study:
    """Run every analysis of the stroke study on a long table.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows in the form of ``group_tsc.tsv``; needed are ``participant_id session_id onset_to_scan_h roi contrast
        percent_change``, used where present ``volume_ml kept reason nihss nihss_admission mrs age sex``.
    params : StrokeParams, optional
        What is compared.
    rng : numpy.random.Generator, optional
        Source of resamples; one with a fixed seed where none is given.

    Returns
    -------
    Study
        ``exclusions``, ``regions``, ``sigmoid``, ``adc``, ``courses``, ``regions_time``, ``volumes``, ``prediction``
        and ``correlations``, each done or left out with its reason.

    Raises
    ------
    DataError
        If a column that every analysis needs is absent or holds no numbers, or no row belongs to a region.

    Examples
    --------
    >>> from bids_sodium.simulate.cohort import stroke_cohort
    >>> cohort = stroke_cohort(np.random.default_rng(7))
    >>> study = analyse(cohort.table, StrokeParams(n_resamples=99))
    >>> volumes = study["volumes"].results
    >>> volumes.loc[volumes["term"] == "ionic / necrosis", ["subset", "n"]].to_numpy().tolist()
    [['early window', 15.0], ['late window', 13.0]]
    """
    p = params or StrokeParams()
    generator = np.random.default_rng(0) if rng is None else rng
    view = scans(table, method=p.method, early_h=p.early_h, late_h=p.late_h, minimum_ml=p.minimum_ml)
    done = []
    for name, title, make in _ANALYSES:
        try:
            analysis = make(view, p, generator, Ledger(name, title, confidence=p.confidence))
        except (DataError, EstimationError) as error:
            analysis = Analysis(name=name, title=title, results=empty_results(), left_out=error.what)
        done.append(analysis)
    return Study(study="stroke", analyses=tuple(done))


def _need(count: int, least: int, what: str) -> None:
    if count < least:
        raise EstimationError(f"{plural(count, 'subject')} with {what}; {least} are needed")


def _outcome(contrast: str) -> str:
    return _OUTCOME.get(contrast, f"{contrast} change (%)")


def _exclusions(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Who was scanned when, and every region and scan that does not enter."""
    del rng
    times = view.clinical[["participant_id", "session_id", "t_h", "window"]]
    people = int(times["participant_id"].nunique())
    for window, words in _WINDOW.items():
        low, high = {"early": p.early_h, "late": p.late_h}.get(window, (p.late_h[1], np.inf))
        ledger.add(
            model="count",
            subset=words,
            outcome="participants",
            term="participants with a scan",
            estimate=times.loc[times["window"] == window, "participant_id"].nunique(),
            n=people,
            note=f"more than {low:g} h and up to {high:g} h after onset",
        )
    ledger.add(model="count", outcome="scans", term="scans", estimate=len(times), n=people)
    rows = len(view.excluded) + len(view.points)
    ledger.add(model="count", outcome="rows", term="region rows left out", estimate=len(view.excluded), n=rows)
    return ledger.close(
        data={"scans": times, "excluded": view.excluded},
        text=f"{plural(people, 'participant')} with {plural(len(times), 'scan')} entered; regions below "
        f"{p.minimum_ml:g} mL and scans outside the windows were left out, each with its reason.",
    )


def _per_subject(rows: pd.DataFrame, value: str = "percent") -> pd.Series:
    """One value a subject: the mean over its scans."""
    return rows.groupby("participant_id")[value].mean()


def _regions(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Mean change of every region, contrast and window, one value a subject, against zero."""
    del rng
    from bids_sodium.stats.comparisons import paired

    for (contrast, window), block in view.points.groupby(["contrast", "window"], sort=False):
        start = len(ledger)
        for roi, rows in block.groupby("roi", sort=False):
            values = _per_subject(rows).to_numpy()
            with ledger.part(f"{roi}, {contrast}, {_WINDOW[str(window)]}"):
                _need(values.size, p.minimum_subjects, "a value")
                ledger.add(
                    model="mean",
                    subset=_WINDOW[str(window)],
                    outcome=_outcome(str(contrast)),
                    term=roi,
                    **taken(paired(values, np.zeros(values.size), confidence=p.confidence)),
                    null=0.0,
                    method="one-sample t; Holm over the regions of a contrast and window",
                    note=f"partial-volume method {view.method}" if view.method else "",
                )
        ledger.adjust(start)
    return ledger.close(
        data={"points": view.points},
        text="The change of a region is (ipsi - contra) / contra x 100 %, averaged over the scans of a subject.",
    )


def _curve_points(view: Scans, contrast: str, p: StrokeParams) -> pd.DataFrame:
    points = view.points
    rows = points[(points["contrast"] == contrast) & (points["roi"] == p.curve_region)]
    _need(rows["participant_id"].nunique(), p.minimum_subjects, f"a {contrast} value of the region {p.curve_region}")
    return rows.sort_values(["t_h", "participant_id"])


def _joined(frames: Mapping[str, list[pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    import pandas as pd

    return {key: pd.concat(parts, ignore_index=True) for key, parts in frames.items() if parts}


def _sigmoid(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Sigmoid of the sodium rise, with everything the data say, and do not say, about it."""
    del rng
    kept: dict[str, list[pd.DataFrame]] = {"points": [], "curves": [], "models": [], "subjects": []}
    for contrast in ("na", "tsc"):
        with ledger.part(contrast):
            rows = _curve_points(view, contrast, p)
            kept["points"].append(rows)
            with ledger.part(f"{contrast}, sigmoid"):
                kept["curves"] += _sigmoid_rows(rows, contrast, p, ledger)
            with ledger.part(f"{contrast}, comparison of curves"):
                kept["models"].append(_rival_rows(rows, contrast, p, ledger))
            with ledger.part(f"{contrast}, random asymptote"):
                curve, subjects = _random_asymptote_rows(rows, contrast, p, ledger)
                kept["curves"].append(curve)
                kept["subjects"].append(subjects)
    return ledger.close(
        data=_joined(kept),
        text="f(t) = alpha t^delta / (e^gamma + t^delta) was fitted by variable projection from several starts; "
        "intervals are asymptotic, profiled, cluster-robust over subjects, and from a model in which the asymptote "
        "varies between subjects (exact maximum likelihood); rival curves are compared by AICc.",
    )


def _grid(rows: pd.DataFrame, p: StrokeParams) -> _Array:
    return np.linspace(0.5, max(p.late_h[1], float(rows["t_h"].max())), 140)


def _band(contrast: str, model: str, values: CurveValue) -> pd.DataFrame:
    import pandas as pd

    fields = {name: getattr(values, name) for name in ("t_h", "value", "ci_low", "ci_high")}
    return pd.DataFrame({"contrast": contrast, "model": model, **fields})


def _around(value: float, half: float) -> dict[str, float]:
    bounded = np.isfinite(value) and np.isfinite(half)
    return {"ci_low": value - half if bounded else np.nan, "ci_high": value + half if bounded else np.nan}


def _beyond(hour: float, rows: pd.DataFrame) -> str:
    last = float(rows["t_h"].max())
    return f"extrapolated beyond the last scan at {last:.1f} h" if hour > last else ""


def _sigmoid_rows(rows: pd.DataFrame, contrast: str, p: StrokeParams, ledger: Ledger) -> list[pd.DataFrame]:
    from scipy.stats import t as student

    from bids_sodium.stats.curves import fit_sigmoid

    fit = fit_sigmoid(rows["t_h"], rows["percent"], groups=rows["participant_id"].to_numpy(), confidence=p.confidence)
    note = f"no sigmoid minimises the residuals; the best curve is its limit, a {fit.limit} curve" if fit.limit else ""
    shared: dict[str, Any] = {"outcome": _outcome(contrast), "subset": p.curve_region, "n": fit.n, "r2": fit.r2}
    plain = {**shared, "model": "sigmoid", "df": fit.df}
    robust = {**shared, "model": "sigmoid, cluster-robust", "df": fit.n_groups - 1}
    tail = 0.5 + p.confidence / 2
    reach, reach_robust = float(student.ppf(tail, fit.df)), float(student.ppf(tail, fit.n_groups - 1))
    for term, name in (("alpha", "alpha (%)"), ("delta", "delta"), ("gamma", "gamma")):
        value, se, se_robust = (float(getattr(fit, f"{term}{end}")) for end in ("", "_se", "_se_cluster"))
        of = {"term": name, "estimate": value, "note": note}
        ledger.add(**plain, **of, se=se, **_around(value, reach * se), method="least squares, asymptotic SE")
        ledger.add(
            **robust, **of, se=se_robust, **_around(value, reach_robust * se_robust),
            method=f"least squares, CR1 over {fit.n_groups} subjects",
        )  # fmt: skip
    if np.isfinite(fit.t50_se_h):
        spread = np.exp(reach * fit.t50_se_h / fit.t50_h)
        ledger.add(
            **plain,
            term="t50 (h)",
            estimate=fit.t50_h,
            se=fit.t50_se_h,
            ci_low=fit.t50_h / spread,
            ci_high=fit.t50_h * spread,
            method="e^(gamma/delta), delta method on its logarithm",
        )
    for term, name in (("alpha", "alpha (%)"), ("delta", "delta"), ("gamma", "gamma"), ("t50_h", "t50 (h)")):
        _profile_row(fit, term, name, ledger, shared)
    for hour in p.hours:
        for common, cluster in ((plain, False), (robust, True)):
            at = fit.value_at(hour, cluster=cluster)
            ledger.add(
                **common,
                term=f"f({hour:g} h) (%)",
                estimate=at.value,
                **taken(at, "se", "ci_low", "ci_high"),
                method="fitted value, delta method",
                note=_beyond(hour, rows) or note,
            )
    ledger.add(**plain, term="RMSE over n (%)", estimate=fit.rmse_n, method="sqrt(RSS / n)")
    ledger.add(**plain, term="RMSE over n - 3 (%)", estimate=fit.rmse_df, method="sqrt(RSS / (n - 3))")
    ledger.add(
        **plain,
        term="asymptote identifiable",
        estimate=float(fit.asymptote_identifiable),
        statistic=fit.power_statistic,
        method=f"(RSS of the power law - RSS) / s2, against {fit.power_critical:.4g}",
        note="a power law, which has no asymptote, fits clearly worse"
        if fit.asymptote_identifiable
        else "a power law, which has no asymptote, fits as well: read f(t), not alpha",
    )
    grid = _grid(rows, p)
    return [
        _band(contrast, "sigmoid", fit.value_at(grid, cluster=False)),
        _band(contrast, "sigmoid, cluster-robust", fit.value_at(grid, cluster=True)),
    ]


def _profile_row(fit: SigmoidFit, term: str, name: str, ledger: Ledger, shared: Mapping[str, Any]) -> None:
    if term not in fit.profile:
        return
    interval = fit.profile[term]
    ends = {"lower": interval.unbounded_low, "upper": interval.unbounded_high}
    unbounded = " and ".join(end for end, is_open in ends.items() if is_open)
    ledger.add(
        **shared,
        model="sigmoid, profile",
        term=name,
        estimate=getattr(fit, term),
        ci_low=interval.low,
        ci_high=interval.high,
        df=fit.df,
        method="profile likelihood",
        note=f"{unbounded} limit unbounded" if unbounded else "",
    )


def _rival_rows(rows: pd.DataFrame, contrast: str, p: StrokeParams, ledger: Ledger) -> pd.DataFrame:
    from bids_sodium.stats.curves import compare_curves

    comparison = compare_curves(rows["t_h"], rows["percent"])
    for model in comparison.models:
        values = ", ".join(f"{key} = {value:.4g}" for key, value in model.parameters.items())
        ledger.add(
            model=model.name,
            subset=p.curve_region,
            outcome=_outcome(contrast),
            term="AICc",
            estimate=model.aicc,
            statistic=model.delta_aicc,
            n=comparison.n,
            method=f"least squares, {model.formula}",
            note=f"{model.delta_aicc:.2f} above the lowest, Akaike weight {model.weight:.3f}; {values}",
        )
    table = comparison.table()
    table.insert(0, "contrast", contrast)
    return table


def _random_asymptote_rows(
    rows: pd.DataFrame, contrast: str, p: StrokeParams, ledger: Ledger
) -> tuple[pd.DataFrame, pd.DataFrame]:
    raise EstimationError("todo")


def _adc(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Level and slope of the ADC change once the plateau is reached, and the curves that describe it."""
    del rng
    import pandas as pd

    from bids_sodium.stats.comparisons import mixed

    rows = _curve_points(view, "adc", p)
    kept: dict[str, list[pd.DataFrame]] = {"points": [rows], "curves": [], "models": [], "subjects": []}
    shared: dict[str, Any] = {"subset": p.curve_region, "outcome": _outcome("adc")}
    late = rows[rows["t_h"] >= p.plateau_from_h]
    with ledger.part("plateau"):
        _need(late["participant_id"].nunique(), p.minimum_subjects, f"an ADC value from {p.plateau_from_h:g} h on")
        level = mixed(
            late["percent"], np.ones((len(late), 1)), late["participant_id"].to_numpy(), names=["plateau"],
            confidence=p.confidence,
        )  # fmt: skip
        method = "REML, random intercept of the subject, Kenward-Roger"
        _mixed_rows(level, ["plateau (%)"], np.ones((1, 1)), ledger, {**shared, "model": "plateau"}, method)
        ledger.add(
            **shared,
            model="plateau",
            term="SD between subjects (%)",
            estimate=float(level.sd_random[0]),
            n=level.n_groups,
            method="REML",
            note="no variance between subjects is seen" if level.singular else "",
        )
        ledger.add(**shared, model="plateau", term="SD within subjects (%)", estimate=level.sigma, n=level.n)
        blup = level.random_effects[:, 0] + level.estimate[0]
        kept["subjects"].append(pd.DataFrame({"participant_id": level.groups, "plateau_percent": blup}))
    with ledger.part("slope on the plateau"):
        X = np.column_stack([np.ones(len(late)), late["t_h"] - late["t_h"].mean()])
        slope = mixed(
            late["percent"], X, late["participant_id"].to_numpy(), names=["level", "slope"], confidence=p.confidence
        )
        method = "REML, random intercept of the subject, Kenward-Roger"
        _mixed_rows(slope, ["slope (%/h)"], np.array([[0.0, 1.0]]), ledger, {**shared, "model": "slope"}, method)
    with ledger.part("sigmoid"):
        kept["curves"] += _sigmoid_rows(rows, "adc", p, ledger)
    with ledger.part("comparison of curves"):
        kept["models"].append(_rival_rows(rows, "adc", p, ledger))
    return ledger.close(
        data=_joined(kept),
        text=f"The plateau is the mean ADC change of scans from {p.plateau_from_h:g} h on, with a random intercept of "
        "the subject; its slope says whether it is one.",
    )


def _mixed_rows(
    fit: Mixed, terms: list[str], L: _Array, ledger: Ledger, shared: Mapping[str, Any], method: str
) -> None:
    """Add one row a combination, with Kenward-Roger inference; Satterthwaite's in the note."""
    c = fit.contrast(L)
    for i, term in enumerate(terms):
        note = f"Satterthwaite: SE {c.se[i]:.4g}, df {c.df_satterthwaite[i]:.4g}, p {c.p_satterthwaite[i]:.4g}"
        ledger.add(
            **shared,
            term=term,
            estimate=c.estimate[i],
            se=c.se_kenward_roger[i],
            ci_low=c.ci_low_kenward_roger[i],
            ci_high=c.ci_high_kenward_roger[i],
            statistic=c.estimate[i] / c.se_kenward_roger[i],
            df=c.df_kenward_roger[i],
            p=c.p_kenward_roger[i],
            n=fit.n,
            null=0.0,
            method=method,
            note=note + ("; no variance between subjects is seen" if fit.singular else ""),
        )


def _courses(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    raise EstimationError("todo")


def _regions_time(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Regions compared over time: a mixed model of any table, and the classical analysis of the complete part."""
    del rng
    kept: dict[str, list[pd.DataFrame]] = {"means": []}
    families = (("na", p.na_regions), ("tsc", p.na_regions), ("adc", p.adc_regions))
    for contrast, regions in families:
        points = view.points
        rows = points[(points["contrast"] == contrast) & points["roi"].isin(regions)]
        present = [roi for roi in regions if (rows["roi"] == roi).any()]
        with ledger.part(contrast):
            if len(present) < 2:
                raise EstimationError(f"{plural(len(present), 'region')} with {contrast} values; 2 are needed")
            _need(rows["participant_id"].nunique(), p.minimum_subjects, f"{contrast} values")
            kept["means"].append(_region_model(rows, present, contrast, p, ledger))
        with ledger.part(f"{contrast}, repeated-measures ANOVA"):
            _region_anova(rows, present, contrast, p, ledger)
    return ledger.close(
        data=_joined(kept),
        text="Regions were compared over time by percent ~ region x time + (1 | subject), fitted by REML, with "
        "Kenward-Roger inference and Holm's adjustment of the pairwise differences; a repeated-measures ANOVA with "
        "Greenhouse-Geisser correction stands beside it for the subjects with every region in both windows.",
    )


def _region_model(
    rows: pd.DataFrame, regions: list[str], contrast: str, p: StrokeParams, ledger: Ledger
) -> pd.DataFrame:
    import pandas as pd

    from bids_sodium.stats.comparisons import mixed

    k = len(regions)
    centre = float(np.mean(p.marginal_h))
    indicator = np.column_stack([(rows["roi"] == roi).to_numpy(float) for roi in regions])
    time = rows["t_h"].to_numpy() - centre
    names = [f"{roi} at {centre:g} h" for roi in regions] + [f"{roi} slope" for roi in regions]
    fit = mixed(
        rows["percent"],
        np.column_stack([indicator, indicator * time[:, None]]),
        rows["participant_id"].to_numpy(),
        names=names,
        confidence=p.confidence,
    )
    shared: dict[str, Any] = {
        "model": "region x time + (1 | subject)",
        "subset": f"{plural(fit.n_groups, 'subject')}, {plural(k, 'region')}",
        "outcome": _outcome(contrast),
    }
    differences = np.column_stack([-np.ones((k - 1, 1)), np.eye(k - 1)])
    none = np.zeros((k - 1, k))
    tests = {
        f"region, at {centre:g} h": np.hstack([differences, none]),
        "time, mean over regions": np.concatenate([np.zeros(k), np.full(k, 1.0 / k)])[None, :],
        "region x time": np.hstack([none, differences]),
    }
    for term, L in tests.items():
        f = fit.test(L)
        for name, statistic, df, p_value in (
            ("Kenward-Roger", f.statistic_kenward_roger, f.df_kenward_roger, f.p_kenward_roger),
            ("Satterthwaite", f.statistic, f.df_satterthwaite, f.p_satterthwaite),
        ):
            ledger.add(
                **shared,
                term=term,
                statistic=statistic,
                df=df,
                p=p_value,
                n=fit.n,
                method=f"REML, F({f.df_numerator}, df), {name}",
                note="no variance between subjects is seen" if fit.singular else "",
            )
    slopes = [f"slope of {roi} (%/h)" for roi in regions]
    _mixed_rows(fit, slopes, np.hstack([np.zeros((k, k)), np.eye(k)]), ledger, shared, "REML, Kenward-Roger")
    means = []
    for hour in p.marginal_h:
        L = np.hstack([np.eye(k), np.eye(k) * (hour - centre)])
        method = "marginal mean, REML, Kenward-Roger"
        _mixed_rows(fit, [f"{roi} at {hour:g} h" for roi in regions], L, ledger, shared, method)
        c = fit.contrast(L)
        means.append(
            pd.DataFrame(
                {
                    "contrast": contrast,
                    "roi": regions,
                    "t_h": hour,
                    "estimate": c.estimate,
                    "ci_low": c.ci_low_kenward_roger,
                    "ci_high": c.ci_high_kenward_roger,
                }
            )
        )
        start = len(ledger)
        pairs = list(combinations(range(k), 2))
        labels = [f"{regions[i]} - {regions[j]} at {hour:g} h" for i, j in pairs]
        method = f"pairwise difference, REML, Kenward-Roger; Holm over {len(pairs)} pairs"
        _mixed_rows(fit, labels, np.array([L[i] - L[j] for i, j in pairs]), ledger, shared, method)
        ledger.adjust(start)
    return pd.concat(means, ignore_index=True)


def _region_anova(rows: pd.DataFrame, regions: list[str], contrast: str, p: StrokeParams, ledger: Ledger) -> None:
    from bids_sodium.stats.comparisons import repeated_anova

    cells = rows[rows["window"].isin(["early", "late"])]
    cells = cells.groupby(["participant_id", "roi", "window"], as_index=False)["percent"].mean()
    cells = cells.rename(columns={"roi": "region", "window": "time"})
    full = cells.groupby("participant_id")["percent"].transform("size") == 2 * len(regions)
    people = cells.loc[full, "participant_id"].nunique()
    _need(people, p.minimum_subjects, f"all {len(regions)} regions in both windows")
    anova = repeated_anova(cells[full], outcome="percent", subject="participant_id", within=["region", "time"])
    for effect in anova.effects:
        ledger.add(
            model="repeated-measures ANOVA",
            subset=f"{plural(people, 'subject')} with every region in both windows",
            outcome=_outcome(contrast),
            term=effect.name.replace(":", " x "),
            statistic=effect.statistic,
            df=effect.error_df,
            p=effect.p_greenhouse_geisser,
            n=anova.n_subjects,
            method=f"F({effect.df}, df), Greenhouse-Geisser",
            note=f"epsilon {effect.greenhouse_geisser:.3f}; under sphericity p {effect.p:.4g}; "
            f"generalised eta squared {effect.ges:.3f}",
        )


def _final_necrosis(view: Scans) -> pd.Series:
    """Volume of the necrosis at the last scan that has it, a subject; its mask is the follow-up's in every scan."""
    rows = view.volumes[view.volumes["roi"] == "necrosis"].sort_values("t_h")
    return rows.groupby("participant_id")["volume_ml"].last()


def _window_volumes(view: Scans) -> pd.DataFrame:
    """One row a subject and window: mean volumes of ionic and cytotoxic oedema beside the final necrosis, in mL."""
    rows = view.volumes[
        view.volumes["roi"].isin(["ionic", "cytotoxic"]) & view.volumes["window"].isin(["early", "late"])
    ]
    wide = rows.pivot_table(index=["window", "participant_id"], columns="roi", values="volume_ml").reset_index()
    wide.columns.name = None
    for roi in ("ionic", "cytotoxic"):
        if roi not in wide:
            wide[roi] = np.nan
    wide["necrosis"] = wide["participant_id"].map(_final_necrosis(view)).astype(float)
    return wide


def _volumes(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Volumes of oedema against one another and the final necrosis, in either window."""
    del rng
    from bids_sodium.stats.comparisons import paired

    wide = _window_volumes(view)
    pairs = (("ionic", "necrosis"), ("cytotoxic", "necrosis"), ("ionic", "cytotoxic"))
    found = []
    for window in ("early", "late"):
        for a, b in pairs:
            rows = wide[(wide["window"] == window) & wide[a].notna() & wide[b].notna()]
            with ledger.part(f"{a} and {b}, {_WINDOW[window]}"):
                _need(len(rows), p.minimum_subjects, "both volumes")
                found.append((window, a, b, paired(rows[a], rows[b], confidence=p.confidence)))
    start = len(ledger)
    for window, a, b, test in found:
        ranks = test.signed_rank
        ledger.add(
            model="signed rank",
            subset=_WINDOW[window],
            outcome="volume (mL)",
            term=f"{a} - {b}",
            **taken(ranks, "estimate", "ci_low", "ci_high", "statistic", "n"),
            p=ranks.p_exact if np.isfinite(ranks.p_exact) else ranks.p_asymptotic,
            method="Hodges-Lehmann, exact signed rank; Holm over windows and pairs",
            note=f"{plural(ranks.n_zero, 'zero difference')} left out of the ranks" if ranks.n_zero else "",
        )
    ledger.adjust(start)
    start = len(ledger)
    for window, a, b, test in found:
        if not np.isfinite(test.p_log):
            ledger.skip(
                f"{a} / {b}, {_WINDOW[window]}", "a volume is 0 mL or all ratios are equal, so none has a logarithm"
            )
            continue
        ledger.add(
            model="ratio",
            subset=_WINDOW[window],
            outcome="ratio of volumes",
            term=f"{a} / {b}",
            estimate=test.ratio,
            se=abs(test.ratio * np.log(test.ratio) / test.statistic_log) if test.statistic_log else np.nan,
            ci_low=test.ratio_ci_low,
            ci_high=test.ratio_ci_high,
            statistic=test.statistic_log,
            df=test.df,
            p=test.p_log,
            n=test.n,
            null=1.0,
            method="paired t of the logarithms; Holm over windows and pairs",
        )
    ledger.adjust(start)
    return ledger.close(
        data={"points": wide},
        text="Volumes in each window were compared with the final necrosis by exact signed rank tests and by paired t "
        "tests of their logarithms (ratios); p values were adjusted by Holm's method.",
    )


def _prediction(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """How well the volume of an oedema stands for the final necrosis: more than a correlation."""
    from bids_sodium.stats.comparisons import agreement, spearman

    wide = _window_volumes(view)
    for window in ("early", "late"):
        for roi in ("cytotoxic", "ionic"):
            rows = wide[(wide["window"] == window) & wide[roi].notna() & wide["necrosis"].notna()]
            shared: dict[str, Any] = {"subset": _WINDOW[window], "outcome": "final necrosis (mL)"}
            with ledger.part(f"{roi}, {_WINDOW[window]}"):
                _need(len(rows), max(4, p.minimum_subjects), "both volumes")
                rank = spearman(
                    rows[roi], rows["necrosis"], rng=rng, n_permutations=p.n_resamples, confidence=p.confidence
                )
                ledger.add(
                    **shared, model="Spearman", term=roi, estimate=rank.rho,
                    **taken(rank, "ci_low", "ci_high", "statistic", "df", "p", "n"),
                    method=f"p over {rank.method}; Bonett-Wright interval",
                )  # fmt: skip
                found = agreement(
                    rows[roi], rows["necrosis"], ratio_margin=p.equivalence_ratio, confidence=p.confidence
                )
                ledger.add(
                    **shared, model="concordance", term=roi, estimate=found.concordance,
                    ci_low=found.concordance_ci_low, ci_high=found.concordance_ci_high, n=found.n,
                    method="Lin's concordance correlation",
                )  # fmt: skip
                ledger.add(
                    **shared, model="ratio to the necrosis", term=f"{roi} / necrosis", estimate=found.ratio,
                    ci_low=found.ratio_limit_low, ci_high=found.ratio_limit_high, n=found.n,
                    method="geometric mean with 95 % limits of agreement (not a confidence interval)",
                )  # fmt: skip
                ledger.add(
                    **shared, model="equivalence", term=f"{roi} / necrosis within {1 / p.equivalence_ratio:.2f} to "
                    f"{p.equivalence_ratio:.2f}", estimate=found.ratio, p=found.ratio_equivalence_p, n=found.n,
                    method="two one-sided t tests of the logarithm; a small p says equivalent",
                )  # fmt: skip
                ledger.add(
                    **shared, model="leave-one-out error", term=roi, estimate=found.prediction_rmse, n=found.n,
                    method="RMSE of ln necrosis predicted from ln volume; 0.10 is about 10 %",
                )  # fmt: skip
    return ledger.close(
        data={"points": wide},
        text="Whether an oedema predicts the final necrotic volume was judged by rank correlation, concordance, limits "
        "of agreement of the ratio, equivalence and leave-one-out error.",
    )


_PAIRS = (
    ("na_rise", "necrosis_ml"),
    ("adc_drop", "necrosis_ml"),
    ("adc_drop", "na_rise"),
    ("ionic_ml", "necrosis_ml"),
    ("cytotoxic_ml", "necrosis_ml"),
    ("nihss_admission", "necrosis_ml"),
    ("nihss_admission", "ionic_ml"),
    ("nihss_admission", "cytotoxic_ml"),
    ("nihss", "necrosis_ml"),
    ("nihss", "ionic_ml"),
    ("nihss", "cytotoxic_ml"),
    ("nihss", "na_rise"),
    ("mrs", "necrosis_ml"),
    ("mrs", "ionic_ml"),
    ("mrs", "cytotoxic_ml"),
    ("mrs", "na_rise"),
)
_MEASURE = {
    "na_rise": "sodium rise in ionic oedema (%)",
    "adc_drop": "ADC drop in cytotoxic oedema (%)",
    "ionic_ml": "ionic oedema (mL)",
    "cytotoxic_ml": "cytotoxic oedema (mL)",
    "necrosis_ml": "final necrosis (mL)",
    "nihss_admission": "NIHSS at admission",
    "nihss": "NIHSS at the scan",
    "mrs": "Rankin score",
}


def _measures(view: Scans) -> tuple[pd.DataFrame, list[str]]:
    """Return one row a scan with every measure of `_MEASURE`, and clinical columns that could not be read."""
    scan = view.clinical[["participant_id", "session_id", "t_h", "window"]].copy()
    keys = ["participant_id", "session_id"]
    points, volumes = view.points, view.volumes
    for name, roi, contrast, sign in (("na_rise", "ionic", "na", 1.0), ("adc_drop", "cytotoxic", "adc", -1.0)):
        rows = points[(points["roi"] == roi) & (points["contrast"] == contrast)].set_index(keys)["percent"] * sign
        scan = scan.join(rows.rename(name), on=keys)
    for roi in ("ionic", "cytotoxic"):
        scan = scan.join(volumes[volumes["roi"] == roi].set_index(keys)["volume_ml"].rename(f"{roi}_ml"), on=keys)
    scan["necrosis_ml"] = scan["participant_id"].map(_final_necrosis(view)).astype(float)
    unreadable = []
    for name in ("nihss_admission", "nihss", "mrs"):
        scan[name] = np.nan
        if name in view.clinical:
            try:
                scan[name] = numeric(view.clinical[name], where=f"column {name}").to_numpy()
            except DataError as error:
                unreadable.append(f"{name}: {error.what}")
    return scan, unreadable


def _correlations(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Rank correlations with one value a subject, over scans with subjects permuted, and within subjects."""
    from bids_sodium.stats.comparisons import rmcorr, spearman

    scan, unreadable = _measures(view)
    for reason in unreadable:
        ledger.skip("clinical columns", reason)
    acute = scan[scan["window"].isin(["early", "late"])]
    subject = acute.groupby("participant_id")[list(_MEASURE)].mean()
    last = scan.sort_values("t_h").groupby("participant_id")["mrs"].last()  # the score that follows the patient
    subject["mrs"] = last.reindex(subject.index)
    start = len(ledger)
    for a, b in _PAIRS:
        rows = subject[[a, b]].dropna()
        with ledger.part(f"{_MEASURE[a]} and {_MEASURE[b]}"):
            _need(len(rows), max(4, p.minimum_subjects), "both measures")
            rank = spearman(rows[a], rows[b], rng=rng, n_permutations=p.n_resamples, confidence=p.confidence)
            ledger.add(
                model="Spearman, one value a subject",
                subset="mean of the scans up to " + f"{p.late_h[1]:g} h",
                outcome=_MEASURE[b],
                term=_MEASURE[a],
                estimate=rank.rho,
                **taken(rank, "ci_low", "ci_high", "statistic", "df", "p", "n"),
                method=f"p over {rank.method}, Bonett-Wright interval; Holm",
            )
    ledger.adjust(start)
    start = len(ledger)
    for a, b in (("na_rise", "necrosis_ml"), ("adc_drop", "necrosis_ml"), ("adc_drop", "na_rise")):
        rows = acute[["participant_id", a, b]].dropna()
        with ledger.part(f"{_MEASURE[a]} and {_MEASURE[b]}, over scans"):
            _need(rows["participant_id"].nunique(), max(4, p.minimum_subjects), "both measures")
            rank = spearman(
                rows[a], rows[b], groups=rows["participant_id"].to_numpy(), rng=rng, n_permutations=p.n_resamples
            )
            ledger.add(
                model="Spearman over scans, subjects permuted",
                subset="scans",
                outcome=_MEASURE[b],
                term=_MEASURE[a],
                estimate=rank.rho,
                p=rank.p_permutation,
                n=rank.n,
                method=f"p over {rank.method}; Holm",
                note=f"pooled scans as if independent would give p {rank.p_asymptotic:.4g}, which is too small",
            )
    ledger.adjust(start)
    start = len(ledger)
    for a, b in (("adc_drop", "na_rise"), ("na_rise", "ionic_ml"), ("adc_drop", "cytotoxic_ml")):
        rows = acute[["participant_id", a, b]].dropna()
        with ledger.part(f"{_MEASURE[a]} and {_MEASURE[b]}, within subjects"):
            within = rmcorr(rows[a], rows[b], rows["participant_id"].to_numpy(), confidence=p.confidence)
            ledger.add(
                model="repeated-measures correlation",
                subset=plural(within.n_subjects, "subject") + " with several scans",
                outcome=_MEASURE[b],
                term=_MEASURE[a],
                estimate=within.r,
                **taken(within, "ci_low", "ci_high", "statistic", "df", "p", "n"),
                method="common within-subject slope, F(1, df), Fisher interval; Holm",
            )
    ledger.adjust(start)
    return ledger.close(
        data={"subjects": subject.reset_index(), "scans": scan},
        text="Rank correlations use one value a subject (exact p for up to 9 subjects, permutations above); over scans, "
        "whole subjects were permuted; correlation within subjects is the repeated-measures correlation.",
    )


_Make = Callable[[Scans, StrokeParams, np.random.Generator, Ledger], Analysis]
_ANALYSES: tuple[tuple[str, str, _Make], ...] = (
    ("exclusions", "Scans and regions that enter", _exclusions),
    ("regions", "Change of each region against the contralateral side", _regions),
    ("sigmoid", "Time course of the sodium signal", _sigmoid),
    ("adc", "Plateau of the diffusion coefficient", _adc),
    ("courses", "Local-linear time courses", _courses),
    ("regions_time", "Regions compared over time", _regions_time),
    ("volumes", "Volumes of oedema and final necrosis", _volumes),
    ("prediction", "Prediction of the final necrotic volume", _prediction),
    ("correlations", "Rank correlations", _correlations),
)
