"""Volumes and scores of a stroke cohort: oedema against final necrosis, and what goes with what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group._stroke_view import WINDOW, StrokeParams, need
from bids_sodium.group.results import Analysis, Ledger, plural, taken
from bids_sodium.group.rows import Scans, numeric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["correlations", "prediction", "volumes"]


def _final_necrosis(view: Scans) -> pd.Series:
    """Volume of the necrosis at the last scan that has it, a subject; its mask is the follow-up's in every scan."""
    rows = view.volumes[view.volumes["roi"] == "necrosis"].sort_values("t_h")
    return rows.groupby("participant_id")["volume_ml"].last()


def _window_volumes(view: Scans) -> pd.DataFrame:
    """One row a subject and window: mean volumes of ionic and cytotoxic oedema beside the final necrosis, in mL."""
    found = view.volumes
    rows = found[found["roi"].isin(["ionic", "cytotoxic"]) & found["window"].isin(["early", "late"])]
    wide = rows.pivot_table(index=["window", "participant_id"], columns="roi", values="volume_ml").reset_index()
    wide.columns.name = None
    for roi in ("ionic", "cytotoxic"):
        if roi not in wide:
            wide[roi] = np.nan
    wide["necrosis"] = wide["participant_id"].map(_final_necrosis(view)).astype(float)
    return wide


def volumes(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Volumes of oedema against one another and the final necrosis, in either window."""
    del rng
    from bids_sodium.stats.comparisons import paired

    wide = _window_volumes(view)
    pairs = (("ionic", "necrosis"), ("cytotoxic", "necrosis"), ("ionic", "cytotoxic"))
    found = []
    for window in ("early", "late"):
        for a, b in pairs:
            rows = wide[(wide["window"] == window) & wide[a].notna() & wide[b].notna()]
            with ledger.part(f"{a} and {b}, {WINDOW[window]}"):
                need(len(rows), p.minimum_subjects, "both volumes")
                found.append((window, a, b, paired(rows[a], rows[b], confidence=p.confidence)))
    start = len(ledger)
    for window, a, b, test in found:
        ranks = test.signed_rank
        ledger.add(
            model="signed rank",
            subset=WINDOW[window],
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
                f"{a} / {b}, {WINDOW[window]}", "a volume is 0 mL or all ratios are equal, so none has a logarithm"
            )
            continue
        ledger.add(
            model="ratio",
            subset=WINDOW[window],
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


def prediction(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """How well the volume of an oedema stands for the final necrosis: more than a correlation."""
    from bids_sodium.stats.comparisons import agreement, spearman

    wide = _window_volumes(view)
    for window in ("early", "late"):
        for roi in ("cytotoxic", "ionic"):
            rows = wide[(wide["window"] == window) & wide[roi].notna() & wide["necrosis"].notna()]
            shared: dict[str, Any] = {"subset": WINDOW[window], "outcome": "final necrosis (mL)"}
            with ledger.part(f"{roi}, {WINDOW[window]}"):
                need(len(rows), max(4, p.minimum_subjects), "both volumes")
                _vary(rows[roi], f"{roi}_ml")
                _vary(rows["necrosis"], "necrosis_ml")
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
        data={"points": wide} if len(ledger) else None,
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


def _vary(values: pd.Series, measure: str) -> None:
    if values.nunique() < 2:
        raise EstimationError(f"all {len(values)} values of {_MEASURE[measure]} equal {values.iloc[0]:g}")


def correlations(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
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
            need(len(rows), max(4, p.minimum_subjects), "both measures")
            _vary(rows[a], a)
            _vary(rows[b], b)
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
            need(rows["participant_id"].nunique(), max(4, p.minimum_subjects), "both measures")
            _vary(rows[a], a)
            _vary(rows[b], b)
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
                note=f"scans taken as independent would give p {rank.p_asymptotic:.4g}; such p values are too small",
            )
    ledger.adjust(start)
    start = len(ledger)
    for a, b in (("adc_drop", "na_rise"), ("na_rise", "ionic_ml"), ("adc_drop", "cytotoxic_ml")):
        rows = acute[["participant_id", a, b]].dropna()
        with ledger.part(f"{_MEASURE[a]} and {_MEASURE[b]}, within subjects"):
            several = int((rows["participant_id"].value_counts() > 1).sum())
            need(several, p.minimum_subjects, "both measures in several scans")
            _vary(rows[a], a)
            _vary(rows[b], b)
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
        data={"subjects": subject.reset_index(), "scans": scan} if len(ledger) else None,
        text="Rank correlations use one value a subject (exact p for up to 9 subjects, permutations above); over "
        "scans, whole subjects were permuted; correlation within subjects is the repeated-measures correlation.",
    )
