"""Time courses of a stroke cohort: the sigmoid of the sodium rise, the ADC plateau, and smooth courses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.group._stroke_view import StrokeParams, joined, need, need_points, outcome
from bids_sodium.group.results import Analysis, Ledger, plural, taken
from bids_sodium.group.rows import Scans

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.stats.curves import CurveValue, RandomCurve, Second, SigmoidFit

__all__ = ["adc", "courses", "sigmoid"]


_Array = NDArray[np.float64]
_NO_INTERVAL = "the likelihood has no inner maximum, so no interval is given"


def sigmoid(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
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
            _mixed_curves(rows, contrast, p, ledger, kept)
    analysis = ledger.close(
        data=joined(kept),
        text="f(t) = alpha t^delta / (e^gamma + t^delta) was fitted by variable projection from several starts; "
        "intervals are asymptotic, profiled, cluster-robust over subjects, and from mixed models in which the "
        "asymptote varies between subjects (exact maximum likelihood), and with it the delay t50 or the rate delta "
        "(adaptive Gauss-Hermite quadrature); subjects' curves are empirical-Bayes estimates; rival curves are "
        "compared by AICc.",
    )
    return _with_quoted(analysis)


def _with_quoted(analysis: Analysis) -> Analysis:
    """Add the rows that a reader should quote: profile intervals, residual errors and whether alpha may be read."""
    rows = analysis.results
    chosen = (rows["model"] == "sigmoid, profile") | rows["term"].isin(
        ["RMSE over n (%)", "RMSE over n - 3 (%)", "asymptote identifiable"]
    )
    quoted = rows.loc[chosen, ["outcome", "term", "estimate", "ci_low", "ci_high", "n", "note"]]
    return replace(analysis, data={**analysis.data, "quoted": quoted}) if len(quoted) else analysis


def _mixed_curves(
    rows: pd.DataFrame, contrast: str, p: StrokeParams, ledger: Ledger, kept: Mapping[str, list[pd.DataFrame]]
) -> None:
    """Add the curves that differ between subjects, their bands and every subject's own curve."""
    with ledger.part(f"{contrast}, random asymptote"):
        curve, subjects = _random_asymptote_rows(rows, contrast, p, ledger)
        kept["curves"].append(curve)
        kept["subjects"].append(subjects)
    for second in p.second_effects:
        with ledger.part(f"{contrast}, random asymptote and {second}"):
            curve, subjects = _two_random_rows(rows, contrast, second, p, ledger)
            kept["curves"].append(curve)
            kept["subjects"].append(subjects)


def _curve_points(view: Scans, contrast: str, p: StrokeParams) -> pd.DataFrame:
    points = view.points
    rows = points[(points["contrast"] == contrast) & (points["roi"] == p.curve_region)]
    need(rows["participant_id"].nunique(), p.minimum_subjects, f"{contrast} values of the region {p.curve_region}")
    return rows.sort_values(["t_h", "participant_id"])


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
    shared: dict[str, Any] = {"outcome": outcome(contrast), "subset": p.curve_region, "n": fit.n, "r2": fit.r2}
    plain = {**shared, "model": "sigmoid", "df": fit.df}
    robust = {**shared, "model": "sigmoid, cluster-robust", "df": fit.n_groups - 1}
    tail = 0.5 + p.confidence / 2
    reach, reach_robust = float(student.ppf(tail, fit.df)), float(student.ppf(tail, fit.n_groups - 1))
    for term, name in (("alpha", "alpha (%)"), ("delta", "delta"), ("gamma", "gamma")):
        value, se, se_robust = (float(getattr(fit, f"{term}{end}")) for end in ("", "_se", "_se_cluster"))
        if not np.isfinite(value):
            se = se_robust = np.nan  # at a limit the errors belong to other parameters
        of = {"term": name, "estimate": value, "note": note}
        ledger.add(**plain, **of, se=se, **_around(value, reach * se), method="least squares, asymptotic SE")
        ledger.add(
            **robust, **of, se=se_robust, **_around(value, reach_robust * se_robust),
            method=f"least squares, CR1 over {fit.n_groups} subjects",
        )  # fmt: skip
    if np.isfinite(fit.t50_se_h):
        spread = np.exp(min(reach * fit.t50_se_h / fit.t50_h, 700.0))
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
                note="; ".join(part for part in (note, _beyond(hour, rows)) if part),
            )
        _profile_value_row(fit, hour, rows, ledger, shared)
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


def _profile_value_row(
    fit: SigmoidFit, hour: float, rows: pd.DataFrame, ledger: Ledger, shared: Mapping[str, Any]
) -> None:
    with ledger.part(f"{shared['outcome']}, profile interval at {hour:g} h"):
        interval = fit.profile_value(hour, cluster=True)
        ledger.add(
            **shared,
            model="sigmoid, profile",
            term=f"f({hour:g} h) (%)",
            estimate=float(fit.value_at(hour, cluster=False).value),
            ci_low=interval.low,
            ci_high=interval.high,
            df=fit.n_groups - 1,
            method=f"profile likelihood, widened for {fit.n_groups} subjects; the interval to quote",
            note=_beyond(hour, rows),
        )


def _rival_rows(rows: pd.DataFrame, contrast: str, p: StrokeParams, ledger: Ledger) -> pd.DataFrame:
    from bids_sodium.stats.curves import compare_curves

    comparison = compare_curves(rows["t_h"], rows["percent"])
    for model in comparison.models:
        values = ", ".join(f"{key} = {value:.4g}" for key, value in model.parameters.items())
        ledger.add(
            model=model.name,
            subset=p.curve_region,
            outcome=outcome(contrast),
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
    """Add the curve whose asymptote varies between subjects; return its band and every subject's curve."""
    from bids_sodium.stats.curves import fit_random_asymptote

    who = rows["participant_id"].to_numpy()
    fit = fit_random_asymptote(rows["t_h"], rows["percent"], who, confidence=p.confidence)
    note = "" if fit.converged else _NO_INTERVAL
    shared: dict[str, Any] = {
        "model": "sigmoid, random asymptote",
        "subset": p.curve_region,
        "outcome": outcome(contrast),
        "n": fit.n,
    }
    method = f"exact maximum likelihood, {plural(fit.n_subjects, 'subject')}"
    if fit.converged:
        _add_typical(fit, shared, method, "", ledger)
        ledger.add(
            **shared,
            term="SD of the asymptote between subjects (%)",
            estimate=fit.sd_asymptote,
            statistic=fit.likelihood_ratio,
            p=fit.p_between,
            method=f"{method}; likelihood ratio against none, mixture of chi2 with 0 and 1 df",
            note="no variance between subjects is seen" if fit.singular else "",
        )
    else:
        _skip_parameters(fit, contrast, shared, ledger)
    ledger.add(**shared, term="SD within subjects (%)", estimate=fit.sigma, method=method)
    aic = 2 * (4 if fit.singular else 5) - 2 * fit.loglik
    ledger.add(**shared, term="AIC", estimate=aic, method=method, note=f"log-likelihood {fit.loglik:.4f}")
    _add_values(fit, rows, shared, method, note, p, ledger)
    grid = _grid(rows, p)
    model = str(shared["model"])
    curves = _own_curves(
        rows, contrast, model, fit, grid, value=[fit.subject_curve(name, grid) for name in fit.subjects]
    )
    return _random_band(contrast, model, fit, grid), curves


def _skip_parameters(fit: RandomCurve, contrast: str, shared: Mapping[str, Any], ledger: Ledger) -> None:
    ledger.skip(
        f"{contrast}, {str(shared['model']).removeprefix('sigmoid, ')}: asymptote, t50 and their spread",
        f"the likelihood of {plural(fit.n, 'value')} of {plural(fit.n_subjects, 'subject')} has no inner maximum; "
        "the cluster-robust curve serves instead",
    )


def _random_band(contrast: str, model: str, fit: RandomCurve, grid: _Array) -> pd.DataFrame:
    """Return the curve of the typical subject, without limits where the likelihood does not give any."""
    band = _band(contrast, model, fit.value_at(grid))
    return band if fit.converged else band.assign(ci_low=np.nan, ci_high=np.nan)


def _add_typical(fit: RandomCurve, shared: dict[str, Any], method: str, note: str, ledger: Ledger) -> None:
    """Add asymptote, t50 and steepness of the typical subject."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + fit.confidence / 2))
    ledger.add(
        **shared, term="mean asymptote (%)", estimate=fit.asymptote, se=fit.asymptote_se,
        **_around(fit.asymptote, z * fit.asymptote_se), method=method, note=note,
    )  # fmt: skip
    for term, value, log_se in (("t50 (h)", fit.t50_h, fit.log_t50_se), ("delta", fit.delta, fit.log_delta_se)):
        spread = np.exp(min(z * log_se, 700.0))
        ledger.add(
            **shared, term=term, estimate=value, se=value * log_se, ci_low=value / spread, ci_high=value * spread,
            method=f"{method}, Wald interval of the logarithm", note=note,
        )  # fmt: skip


def _add_values(
    fit: RandomCurve,
    rows: pd.DataFrame,
    shared: dict[str, Any],
    method: str,
    note: str,
    p: StrokeParams,
    ledger: Ledger,
) -> None:
    for hour in p.hours:
        at = fit.value_at(hour)
        ledger.add(
            **shared,
            term=f"f({hour:g} h) (%)",
            estimate=at.value,
            **(taken(at, "se", "ci_low", "ci_high") if fit.converged else {}),
            method=f"{method}, Wald interval",
            note="; ".join(part for part in (note, _beyond(hour, rows)) if part),
        )


def _own_curves(
    rows: pd.DataFrame,
    contrast: str,
    model: str,
    fit: RandomCurve,
    grid: _Array,
    *,
    value: list[Any],
    **limits: list[Any],
) -> pd.DataFrame:
    """Every subject's curve, one list entry a subject; ``inside`` marks times between the subject's own scans."""
    import pandas as pd

    own = rows.groupby("participant_id")["t_h"].agg(["min", "max"]).loc[list(fit.subjects)].to_numpy()
    known = fit.subject_asymptote if fit.converged else np.full(fit.n_subjects, np.nan)
    return pd.DataFrame(
        {
            "contrast": contrast,
            "model": model,
            "participant_id": np.repeat(fit.subjects, grid.size),
            "t_h": np.tile(grid, fit.n_subjects),
            "value": np.ravel(value),
            "inside": ((grid >= own[:, :1]) & (grid <= own[:, 1:])).astype(int).ravel(),
            **{name: np.ravel(values) for name, values in limits.items()},
            "asymptote_percent": np.repeat(known, grid.size),
        }
    )


def _two_random_rows(
    rows: pd.DataFrame, contrast: str, second: Second, p: StrokeParams, ledger: Ledger
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add the curve whose asymptote and delay or rate vary; return its band and every subject's curve."""
    from bids_sodium.stats.curves import fit_two_random

    fit = fit_two_random(
        rows["t_h"], rows["percent"], rows["participant_id"].to_numpy(), second=second, nodes=p.quadrature_nodes,
        confidence=p.confidence,
    )  # fmt: skip
    model = f"sigmoid, random asymptote and {second}"
    integral = f"adaptive Gauss-Hermite, {fit.nodes} nodes" if fit.nodes > 1 else "Laplace's approximation"
    method = f"maximum likelihood, {integral}, {plural(fit.n_subjects, 'subject')}"
    shared: dict[str, Any] = {
        "model": model, "subset": p.curve_region, "outcome": outcome(contrast), "n": fit.n
    }  # fmt: skip
    name = "ln t50" if second == "delay" else "ln delta"
    note = f"no variance of {name} between subjects is seen: as the random asymptote alone" if fit.singular else ""
    if fit.converged:
        _add_typical(fit, shared, method, note, ledger)
        ledger.add(**shared, term="SD of the asymptote between subjects (%)", estimate=fit.sd_asymptote, method=method)
        ledger.add(
            **shared, term=f"SD of {name} between subjects", estimate=fit.sd_second, statistic=fit.likelihood_ratio,
            p=fit.p_second, method=f"{method}; likelihood ratio against none, mixture of chi2 with 0 and 1 df",
            note=note,
        )  # fmt: skip
    else:
        note = _NO_INTERVAL
        _skip_parameters(fit, contrast, shared, ledger)
    ledger.add(**shared, term="SD within subjects (%)", estimate=fit.sigma, method=method)
    aic = 2 * (5 if fit.singular else 6) - 2 * fit.loglik
    ledger.add(**shared, term="AIC", estimate=aic, method=method, note=f"log-likelihood {fit.loglik:.4f}")
    _add_values(fit, rows, shared, method, note, p, ledger)
    grid = _grid(rows, p)
    at = [fit.subject_curve(subject, grid) for subject in fit.subjects]
    curves = _own_curves(
        rows, contrast, model, fit, grid, value=[own.value for own in at], ci_low=[own.ci_low for own in at],
        ci_high=[own.ci_high for own in at],
    )  # fmt: skip
    return _random_band(contrast, model, fit, grid), curves


def adc(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Level and slope of the ADC change once the plateau is reached, and the curves that describe it."""
    del rng
    import pandas as pd

    from bids_sodium.stats.comparisons import mixed

    rows = _curve_points(view, "adc", p)
    kept: dict[str, list[pd.DataFrame]] = {"points": [rows], "curves": [], "models": [], "subjects": [], "plateaus": []}
    shared: dict[str, Any] = {"subset": p.curve_region, "outcome": outcome("adc")}
    late = rows[rows["t_h"] >= p.plateau_from_h]
    with ledger.part("plateau"):
        need(late["participant_id"].nunique(), p.minimum_subjects, f"ADC values from {p.plateau_from_h:g} h on")
        level = mixed(
            late["percent"], np.ones((len(late), 1)), late["participant_id"].to_numpy(), names=["plateau"],
            confidence=p.confidence,
        )  # fmt: skip
        method = "REML, random intercept of the subject, Kenward-Roger"
        ledger.add_contrasts(level, ["plateau (%)"], np.ones((1, 1)), {**shared, "model": "plateau", "method": method})
        ledger.add(
            **shared,
            model="plateau",
            term="SD between subjects (%)",
            estimate=float(level.sd_random[0]),
            n=level.n_groups,
            method="REML",
            note="no variance between subjects is seen" if level.singular else "",
        )
        within = {"term": "SD within subjects (%)", "estimate": level.sigma, "n": level.n, "method": "REML"}
        ledger.add(**shared, model="plateau", **within)
        band = level.contrast(np.ones((1, 1)))
        hours = np.linspace(p.plateau_from_h, max(p.late_h[1], float(late["t_h"].max())), 65)
        limits = {"ci_low": band.ci_low_kenward_roger[0], "ci_high": band.ci_high_kenward_roger[0]}
        kept["curves"].append(
            pd.DataFrame({"contrast": "adc", "model": "plateau", "t_h": hours, "value": band.estimate[0], **limits})
        )
        blup = level.random_effects[:, 0] + level.estimate[0]
        kept["plateaus"].append(pd.DataFrame({"participant_id": level.groups, "plateau_percent": blup}))
    with ledger.part("slope on the plateau"):
        X = np.column_stack([np.ones(len(late)), late["t_h"] - late["t_h"].mean()])
        slope = mixed(
            late["percent"], X, late["participant_id"].to_numpy(), names=["level", "slope"], confidence=p.confidence
        )
        method = "REML, random intercept of the subject, Kenward-Roger"
        ledger.add_contrasts(
            slope, ["slope (%/h)"], np.array([[0.0, 1.0]]), {**shared, "model": "slope", "method": method}
        )
    with ledger.part("sigmoid"):
        kept["curves"] += _sigmoid_rows(rows, "adc", p, ledger)
    with ledger.part("comparison of curves"):
        kept["models"].append(_rival_rows(rows, "adc", p, ledger))
    _mixed_curves(rows, "adc", p, ledger, kept)
    return ledger.close(
        data=joined(kept),
        text=f"The plateau is the mean ADC change of scans from {p.plateau_from_h:g} h on, with a random intercept of "
        "the subject; its slope says whether it is one.",
    )


def courses(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Smooth course of every region and contrast, with bands over resampled subjects and no extrapolation."""
    import pandas as pd

    from bids_sodium.stats.curves import local_linear

    need_points(view)
    kept: dict[str, list[pd.DataFrame]] = {"points": [], "curves": []}
    for (contrast, roi), rows in view.points.groupby(["contrast", "roi"], sort=False):
        with ledger.part(f"{roi}, {contrast}"):
            need(rows["participant_id"].nunique(), p.minimum_subjects, "a value")
            low, high = float(rows["t_h"].min()), float(rows["t_h"].max())
            hours = [h for h in p.hours if low <= h <= high]
            grid = np.concatenate([np.linspace(low, high, 60), hours])
            course = local_linear(
                rows["t_h"],
                rows["percent"],
                grid,
                subjects=rows["participant_id"].to_numpy(),
                rng=rng,
                n_resamples=p.n_resamples,
                least_subjects=p.minimum_subjects,
                confidence=p.confidence,
            )
            for i, hour in enumerate(hours, start=60):
                ledger.add(
                    model="local linear",
                    subset=roi,
                    outcome=outcome(str(contrast)),
                    term=f"value at {hour:g} h",
                    estimate=course.value[i],
                    se=course.se[i],
                    ci_low=course.ci_low[i],
                    ci_high=course.ci_high[i],
                    n=course.n,
                    method=f"bootstrap of subjects, {course.n_resamples} resamples; Gaussian kernel of "
                    f"{course.bandwidth:.3g} h by leave-one-subject-out",
                    note="" if course.supported[i] else f"fewer than {p.minimum_subjects} subjects within a bandwidth",
                )
            kept["points"].append(rows)
            kept["curves"].append(
                pd.DataFrame(
                    {
                        "contrast": contrast,
                        "roi": roi,
                        "t_h": course.grid[:60],
                        "value": course.value[:60],
                        "ci_low": course.ci_low[:60],
                        "ci_high": course.ci_high[:60],
                        "n_subjects": course.n_subjects[:60],
                        "supported": course.supported[:60].astype(int),
                        "bandwidth_h": course.bandwidth,
                    }
                )
            )
    return ledger.close(
        data=joined(kept),
        text="Time courses are local-linear fits with a Gaussian kernel, its width chosen by leaving out one subject "
        "at a time; bands come from resampled subjects, and nothing is extrapolated.",
    )
