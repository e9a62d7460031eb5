"""Which tissue becomes necrotic: conversion from sodium and ADC, every patient predicted from the others.

A *unit* is a piece of tissue of one early scan with its change of sodium and ADC and the share of it that was necrotic
in the end: a cell of a few millimetres where the participants' fate tables are there, else a region, split by outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.core.errors import DataError
from bids_sodium.group._stroke_view import WINDOW, StrokeParams, joined, need
from bids_sodium.group.results import Analysis, Ledger, mean_of, plural, taken
from bids_sodium.group.rows import Scans, numeric

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.stats.prediction import ClusteredAuc

__all__ = ["Units", "cell_units", "prognosis", "region_units"]

_MODELS: dict[str, tuple[str, ...]] = {
    "sodium": ("na",),
    "ADC": ("adc",),
    "sodium + ADC": ("na", "adc"),
    "sodium + ADC + time": ("na", "adc", "log_h"),
}
_WORDS = {"na": "sodium change (%)", "adc": "ADC change (%)", "log_h": "ln of the hours after onset"}
_MANY = 100_000
"""Units from which on patients are left out in ten groups and integrals over them have five nodes instead of fifteen:
of 15 patients with 2 500 cells that moves odds ratios by 4e-6 of their errors, and errors by 3e-7 of themselves."""
_ALL = "all scans"


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Pieces of tissue.

    Parameters
    ----------
    table : pandas.DataFrame
        ``participant_id session_id t_h window na adc log_h converted weight``; ``converted`` is NaN where the outcome
        is not known.
    kind : str
        ``cells`` or ``regions``.
    """

    table: pd.DataFrame
    kind: str


def cell_units(cells: pd.DataFrame, p: StrokeParams) -> Units:
    """Return the units of the participants' fate tables.

    Parameters
    ----------
    cells : pandas.DataFrame
        Rows of ``group_fate.tsv``.
    p : StrokeParams
        Windows and the contrast.

    Raises
    ------
    DataError
        If a column is absent or holds no numbers.
    """
    import pandas as pd

    named = {
        "onset_to_scan_h": "t_h", "na_percent": "na", "adc_percent": "adc", "necrosis_share": "converted",
        "volume_ml": "weight",
    }  # fmt: skip
    missing = [name for name in ("participant_id", "session_id", *named) if name not in cells]
    if missing:
        raise DataError(f"missing column(s) {', '.join(missing)}", where="fate table", hint="run the participant level")
    table = pd.DataFrame({"participant_id": cells["participant_id"], "session_id": cells["session_id"]})
    for column, name in named.items():
        table[name] = numeric(cells[column], where=f"column {column} of the fate table").to_numpy()
    return Units(table=_timed(table, p), kind="cells")


def region_units(view: Scans, p: StrokeParams) -> Units:
    """Return oedematous regions that became necrotic and those that did not, as units of weight one."""
    import pandas as pd

    parts = []
    for base in ("ionic", "cytotoxic"):
        for roi, converted in ((f"{base}&necrosis", 1.0), (f"{base}-necrosis", 0.0)):
            rows = view.points[view.points["roi"] == roi]
            wide = rows.pivot_table(index=["participant_id", "session_id", "t_h"], columns="contrast", values="percent")
            part = wide.reindex(columns=["na", "adc"]).reset_index()
            parts.append(part.assign(converted=converted, weight=1.0, roi=roi))
    table = pd.concat(parts, ignore_index=True)
    table.columns.name = None
    return Units(table=_timed(table, p), kind="regions")


def _timed(table: pd.DataFrame, p: StrokeParams) -> pd.DataFrame:
    inside = table["t_h"].between(0, p.late_h[1], inclusive="right") & table["na"].notna() & table["adc"].notna()
    kept = table[inside].reset_index(drop=True)
    early = kept["t_h"].between(*p.early_h, inclusive="right")
    return kept.assign(log_h=np.log(kept["t_h"]), window=np.where(early, "early", "late"))


def prognosis(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Conversion to necrosis from sodium and ADC: discrimination, calibration, odds ratios, and every patient."""
    del rng
    units = region_units(view, p) if view.cells is None or not len(view.cells) else cell_units(view.cells, p)
    known = units.table[units.table["converted"].notna()]
    kept: dict[str, list[pd.DataFrame]] = {"units": [], "roc": [], "calibration": [], "patients": []}
    for window in (_ALL, "early", "late"):
        rows = known if window == _ALL else known[known["window"] == window]
        with ledger.part(WINDOW.get(window, window)):
            need(rows["participant_id"].nunique(), p.minimum_subjects, f"{units.kind} of both contrasts and an outcome")
            for key, frame in _judged(rows.reset_index(drop=True), units, window, p, ledger).items():
                kept[key].append(frame)
    with ledger.part("odds ratios"):
        _odds(known, units, p, ledger)
    if units.kind == "cells":
        with ledger.part("patients without an outcome"):
            unknown = units.table[units.table["converted"].isna()]
            if len(unknown):
                kept["patients"].append(_forecast(known, unknown, p))
    pieces = (
        "cells of early lesions and their surroundings, each with the share that was necrotic in the end"
        if units.kind == "cells"
        else "regions of oedema that became necrotic or did not (no fate tables: regions were split by the outcome, so "
        "this says how far the contrasts tell them apart, not how well a new patient could be predicted)"
    )
    return ledger.close(
        data=joined(kept),
        text=f"Conversion to necrosis was modelled over {pieces}. Logistic models with a weak prior predicted every "
        "patient from the others; the area under the curve has a standard error over patients (Obuchowski), slope and "
        "intercept of the recalibration say whether predictions are probabilities, and odds ratios come from a mixed "
        "logistic model with an intercept of the patient and errors robust over patients.",
    )


def _named(model: str) -> tuple[str, ...]:
    return tuple(_WORDS[name] for name in _MODELS[model])


def _matrix(rows: pd.DataFrame, model: str) -> Any:
    return rows[list(_MODELS[model])].to_numpy(dtype=float)


def _judged(rows: pd.DataFrame, units: Units, window: str, p: StrokeParams, ledger: Ledger) -> dict[str, pd.DataFrame]:
    """Add discrimination and calibration of every model in one window; return predictions, curves and patients."""
    from bids_sodium.stats.prediction import calibration, clustered_auc, left_out_predictions

    y, weight, who = rows["converted"], rows["weight"] / rows["weight"].mean(), rows["participant_id"].to_numpy()
    people = rows["participant_id"].nunique()
    shared: dict[str, Any] = {"subset": WINDOW.get(window, window), "outcome": "conversion to necrosis", "n": len(rows)}
    found: dict[str, ClusteredAuc] = {}
    predicted = rows.assign(subset=shared["subset"])
    rocs, bins, patients = [], [], []
    for model in _MODELS:
        probability = left_out_predictions(
            y, _matrix(rows, model), who, weight=weight, prior_sd=p.prior_sd, names=_named(model),
            most_folds=10 if len(rows) > _MANY else 50,
        )  # fmt: skip
        predicted[f"p: {model}"] = probability
        area = clustered_auc(y, probability, who, weight=weight, confidence=p.confidence)
        found[model] = area
        ledger.add(
            **shared, model=model, term="AUC", estimate=area.auc, null=0.5,
            **taken(area, "se", "ci_low", "ci_high", "df", "p"),
            method=f"every one of {people} patients predicted from the others; Obuchowski's error, logit interval",
        )  # fmt: skip
        own = area.subject[np.isfinite(area.subject)]
        if own.size >= p.minimum_subjects and np.ptp(own) > 0:
            mean = mean_of(own - 0.5, p.confidence)
            mean = {**mean, **{key: mean[key] + 0.5 for key in ("estimate", "ci_low", "ci_high")}}
            mean["ci_high"] = min(mean["ci_high"], 1.0)
            ledger.add(
                **{**shared, **mean}, model=model, term="AUC within a patient", null=0.5,
                method="mean over patients with both outcomes, t interval cut at 1",
            )  # fmt: skip
        fit = calibration(y, probability, who, weight=weight)
        for term, value, se, null in (
            ("calibration slope", fit.slope, fit.slope_se, 1.0),
            ("calibration intercept", fit.intercept, fit.intercept_se, 0.0),
        ):
            ledger.add(**shared, model=model, term=term, null=null, **_wald(value, se, null, fit.df, p.confidence),
                       method="logistic recalibration of the left-out predictions, robust over patients")  # fmt: skip
        ledger.add(
            **shared, model=model, term="Brier score", estimate=fit.brier,
            r2=1 - fit.brier / fit.brier_of_share, method="mean squared error; r2 against the overall share",
        )  # fmt: skip
        rocs.append(_roc(probability, y, weight).assign(model=model, subset=shared["subset"]))
        bins.append(_bins(probability, y, weight).assign(model=model, subset=shared["subset"]))
        patients.append(_patients(rows, probability, area, units).assign(model=model, subset=shared["subset"]))
    _differences(found, shared, p, ledger)
    import pandas as pd

    whole = {"roc": rocs, "calibration": bins, "patients": patients}
    return {"units": predicted, **{key: pd.concat(parts, ignore_index=True) for key, parts in whole.items()}}


def _wald(value: float, se: float, null: float, df: int, confidence: float) -> dict[str, float]:
    from scipy.stats import t as student

    reach = float(student.ppf(0.5 + confidence / 2, df)) * se
    statistic = (value - null) / se if se > 0 else np.nan
    return {
        "estimate": value, "se": se, "ci_low": value - reach, "ci_high": value + reach, "df": df,
        "statistic": statistic, "p": float(2 * student.sf(abs(statistic), df)),
    }  # fmt: skip


def _differences(found: dict[str, ClusteredAuc], shared: dict[str, Any], p: StrokeParams, ledger: Ledger) -> None:
    from bids_sodium.stats.prediction import auc_difference

    start = len(ledger)
    for a, b in (("sodium", "ADC"), ("sodium + ADC", "ADC"), ("sodium + ADC", "sodium")):
        gap = auc_difference(found[a], found[b], confidence=p.confidence)
        ledger.add(
            **shared, model="difference of AUC", term=f"({a}) - ({b})", null=0.0, **taken(gap, "estimate", "se"),
            **taken(gap, "ci_low", "ci_high", "df", "p"), method="the same left-out patients, Obuchowski's error; Holm",
        )  # fmt: skip
    ledger.adjust(start)


def _odds(known: pd.DataFrame, units: Units, p: StrokeParams, ledger: Ledger) -> None:
    from bids_sodium.stats.prediction import mixed_logistic

    need(known["participant_id"].nunique(), p.minimum_subjects, f"{units.kind} of both contrasts and an outcome")
    for model in ("sodium + ADC", "sodium + ADC + time"):
        with ledger.part(f"odds ratios of {model}"):
            # units count by their volume, on average one
            weight = known["weight"] / known["weight"].mean()
            fit = mixed_logistic(
                known["converted"], _matrix(known, model), known["participant_id"].to_numpy(), names=_named(model),
                weight=weight, prior_sd=p.prior_sd, confidence=p.confidence, nodes=5 if len(known) > _MANY else 15,
            )  # fmt: skip
            for i, name in enumerate(fit.names):
                ratio = float(np.exp(fit.estimate[i]))
                ledger.add(
                    model=f"mixed logistic, {model}",
                    subset=_ALL,
                    outcome="odds of conversion to necrosis",
                    term=f"{name}, per SD of {fit.spread[i]:.3g}",
                    estimate=ratio,
                    se=ratio * float(fit.se[i]),
                    ci_low=float(np.exp(fit.ci_low[i])),
                    ci_high=float(np.exp(fit.ci_high[i])),
                    statistic=float(fit.estimate[i] / fit.se[i]),
                    df=fit.df,
                    p=float(fit.p[i]),
                    n=fit.n,
                    null=1.0,
                    method=f"random intercept of {plural(fit.n_subjects, 'patient')}, adaptive Gauss-Hermite; error "
                    "robust over patients",
                    note="no variance between patients is seen"
                    if fit.singular
                    else f"SD of the intercepts {fit.sd_subject:.3g}",
                )


def _roc(probability: Any, y: pd.Series, weight: pd.Series) -> pd.DataFrame:
    """Return at most 200 points of the curve."""
    import pandas as pd

    order = np.argsort(-probability, kind="stable")
    hit = np.cumsum((weight * y).to_numpy()[order])
    miss = np.cumsum((weight * (1 - y)).to_numpy()[order])
    last = np.append(np.diff(probability[order]) != 0, True)
    x, z = np.append(0.0, miss[last] / miss[-1]), np.append(0.0, hit[last] / hit[-1])
    chosen = np.unique(np.linspace(0, x.size - 1, 200).round().astype(int))
    return pd.DataFrame({"false_positive_rate": x[chosen], "true_positive_rate": z[chosen]})


def _bins(probability: Any, y: pd.Series, weight: pd.Series) -> pd.DataFrame:
    """Return predicted and observed shares in up to ten groups of like predictions."""
    import pandas as pd

    edges = np.unique(np.quantile(probability, np.linspace(0, 1, 11)))
    group = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, max(edges.size - 2, 0))
    frame = pd.DataFrame({"group": group, "w": weight, "p": weight * probability, "y": weight * y})
    sums = frame.groupby("group").sum()
    return pd.DataFrame(
        {"predicted": sums["p"] / sums["w"], "observed": sums["y"] / sums["w"], "weight": sums["w"]}
    ).reset_index(drop=True)


def _patients(rows: pd.DataFrame, probability: Any, area: ClusteredAuc, units: Units) -> pd.DataFrame:
    """Return every patient's area and, for cells, predicted and observed necrotic volume of every scan."""
    import pandas as pd

    frame = rows.assign(p=probability * rows["weight"], y=rows["converted"] * rows["weight"])
    sums = frame.groupby(["participant_id", "session_id", "t_h"], as_index=False)[["p", "y", "weight"]].sum()
    own = dict(zip(area.labels, area.subject, strict=True))
    cells = units.kind == "cells"
    return pd.DataFrame(
        {
            "participant_id": sums["participant_id"],
            "session_id": sums["session_id"],
            "t_h": sums["t_h"],
            "auc": sums["participant_id"].map(own),
            "predicted_ml": sums["p"] if cells else np.nan,
            "observed_ml": sums["y"] if cells else np.nan,
        }
    )


def _forecast(known: pd.DataFrame, unknown: pd.DataFrame, p: StrokeParams) -> pd.DataFrame:
    """Return the predicted necrotic volume of scans whose outcome is not known."""
    from bids_sodium.stats.prediction import penalised_logistic

    parts = []
    for model in _MODELS:
        fit = penalised_logistic(
            known["converted"],
            _matrix(known, model),
            weight=known["weight"] / known["weight"].mean(),
            prior_sd=p.prior_sd,
            names=_named(model),
        )
        frame = unknown.assign(predicted_ml=fit.predict(_matrix(unknown, model)) * unknown["weight"])
        sums = frame.groupby(["participant_id", "session_id", "t_h"], as_index=False)["predicted_ml"].sum()
        parts.append(sums.assign(auc=np.nan, observed_ml=np.nan, model=model, subset="no outcome"))
    import pandas as pd

    return pd.DataFrame(pd.concat(parts, ignore_index=True))
