"""How far raters agree on the regions they draw: overlap, distance of outlines, and volumes."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.core.errors import EstimationError
from bids_sodium.group._stroke_view import StrokeParams, joined, need
from bids_sodium.group.results import Analysis, Ledger, listing, mean_of, taken
from bids_sodium.group.rows import Scans, numeric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["agreement"]

_NUMBERS = ("dice", "hausdorff95_mm", "volume_a_ml", "volume_b_ml")


def agreement(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Dice, Hausdorff distance, intraclass correlation and Bland-Altman limits of every region."""
    del rng
    if view.raters is None or not len(view.raters):
        raise EstimationError("no region was drawn by more than one rater")
    table = view.raters.copy()
    for name in _NUMBERS:
        table[name] = numeric(table[name], where=f"column {name} of the raters' table")
    kept: dict[str, list[pd.DataFrame]] = {"points": []}
    for label, rows in table.groupby("label", sort=False):
        with ledger.part(str(label)):
            need(rows["participant_id"].nunique(), p.minimum_subjects, f"several raters of {label}")
            _overlap(rows, str(label), p, ledger)
            _volumes(rows, str(label), p, ledger)
            gap = rows["volume_b_ml"] - rows["volume_a_ml"]
            kept["points"].append(rows.assign(volume_difference_ml=gap))
    return ledger.close(
        data=joined(kept),
        text="Raters of one region were compared by Dice overlap, the 95th percentile of the distance between "
        "outlines, the intraclass correlation of volumes for absolute agreement, and Bland-Altman limits.",
    )


def _overlap(rows: pd.DataFrame, label: str, p: StrokeParams, ledger: Ledger) -> None:
    """Add mean overlap and distance, one value a patient."""
    for column, term in (("dice", "Dice overlap"), ("hausdorff95_mm", "95 % Hausdorff distance (mm)")):
        with ledger.part(f"{label}, {term}"):
            own = rows.groupby("participant_id")[column].mean().dropna().to_numpy()
            mean = {key: value for key, value in mean_of(own, p.confidence).items() if key not in {"statistic", "p"}}
            ledger.add(
                model="overlap", subset=label, outcome="masks of raters", term=term, **mean,
                method="mean over patients, one value each; t interval",
                note=f"median {np.median(own):.3g}, from {own.min():.3g} to {own.max():.3g}",
            )  # fmt: skip


def _volumes(rows: pd.DataFrame, label: str, p: StrokeParams, ledger: Ledger) -> None:
    """Add the intraclass correlation over scans and the limits of every pair of raters."""
    from bids_sodium.stats.comparisons import bland_altman, intraclass

    keys = ["participant_id", "session_id"]
    columns = ["rater", "volume_ml", *keys]
    import pandas as pd

    halves = [
        rows.rename(columns={f"rater_{end}": "rater", f"volume_{end}_ml": "volume_ml"})[columns] for end in ("a", "b")
    ]
    long = pd.concat(halves).drop_duplicates([*keys, "rater"])
    wide = long.assign(session_id=long["session_id"].fillna("n/a")).pivot(
        index=keys, columns="rater", values="volume_ml"
    )
    shared: dict[str, Any] = {"subset": label, "outcome": "volume (mL)"}
    with ledger.part(f"{label}, intraclass correlation"):
        icc = intraclass(wide.to_numpy(), confidence=p.confidence)
        ledger.add(
            **shared, model="intraclass correlation", term="ICC(A,1)", estimate=icc.icc,
            **taken(icc, "ci_low", "ci_high", "statistic", "df", "p", "n"),
            method=f"two-way random effects, absolute agreement, {icc.n_raters} raters",
            note=f"consistency {icc.consistency:.4g}; raters {listing(wide.columns)}",
        )  # fmt: skip
    for a, b in combinations(wide.columns, 2):
        with ledger.part(f"{label}, {a} and {b}"):
            limits = bland_altman(wide[a], wide[b], confidence=p.confidence)
            ledger.add(
                **shared, model="Bland-Altman", term=f"bias, {b} - {a}", estimate=limits.bias, se=limits.bias_se,
                ci_low=limits.bias_ci_low, ci_high=limits.bias_ci_high, df=limits.df, p=limits.p, n=limits.n,
                null=0.0 if limits.bias_se > 0 else np.nan, method="mean difference, t interval",
                note=f"slope on the mean {limits.slope:.3g}, p {limits.p_slope:.3g}",
            )  # fmt: skip
            ledger.add(
                **shared, model="Bland-Altman", term=f"limits of agreement, {b} - {a}", estimate=limits.bias,
                se=limits.limit_se, ci_low=limits.limit_low, ci_high=limits.limit_high, n=limits.n,
                method="bias ± 1.96 SD (limits of agreement, not a confidence interval); SE is that of a limit",
            )  # fmt: skip
