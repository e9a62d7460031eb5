"""Tables beside the regions of a stroke cohort: `fate_cells`, small pieces of tissue, and `rater_table`.

A cell of patient i converts with probability expit(b0 + u_i + b_na x_na + b_adc x_adc), x in the units of the truth;
a rater's volume is the true one times exp(shift + noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_sodium.simulate.cohort import Cohort

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FateParams", "fate_cells", "rater_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FateParams:
    """How the fate of tissue depends on what the scan shows."""

    per_na: float = 0.05
    """Log odds ratio of one percentage point of sodium rise."""

    per_adc: float = -0.04
    """Log odds ratio of one percentage point of ADC change; a drop raises the odds."""

    patient_sd: float = 0.6
    """Standard deviation of the patients' intercepts."""

    na_sd: float = 18.0
    """Spread of the sodium change over the cells of a scan, in percentage points."""

    adc_sd: float = 15.0
    """Spread of the ADC change over the cells of a scan, in percentage points."""

    cell_ml: float = 0.5
    """Volume of a cell, in mL."""

    most_cells: int = 150
    """Most cells of a scan."""


def fate_cells(rng: np.random.Generator, cohort: Cohort, params: FateParams | None = None) -> pd.DataFrame:
    """Return cells of every scan of a stroke cohort, in the form of ``group_fate.tsv``.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    cohort : Cohort
        Stroke cohort.
    params : FateParams, optional
        How cells convert.

    Returns
    -------
    pandas.DataFrame
        One row a cell.

    Examples
    --------
    >>> from bids_sodium.simulate.cohort import stroke_cohort
    >>> rng = np.random.default_rng(1)
    >>> cells = fate_cells(rng, stroke_cohort(rng, 3))
    >>> sorted(cells["necrosis_share"].unique().tolist())
    [0.0, 1.0]
    """
    import pandas as pd
    from scipy.special import expit

    p = params or FateParams()
    rows = cohort.table[(cohort.table["roi"] == "cytotoxic") & cohort.table["percent_change"].notna()]
    wide = rows.pivot_table(
        index=["participant_id", "session_id", "onset_to_scan_h", "volume_ml"],
        columns="contrast",
        values="percent_change",
    ).reset_index()
    own = {name: rng.normal(0.0, p.patient_sd) for name in wide["participant_id"].unique()}
    parts = []
    for scan in wide.dropna().to_dict("records"):
        n = int(np.clip(round(float(scan["volume_ml"]) / p.cell_ml), 2, p.most_cells))
        na, adc = rng.normal(0.6 * scan["na"], p.na_sd, n), rng.normal(0.6 * scan["adc"], p.adc_sd, n)
        linear = own[scan["participant_id"]] + p.per_na * (na - 25.0) + p.per_adc * (adc + 25.0)
        parts.append(
            pd.DataFrame(
                {
                    **{name: scan[name] for name in ("participant_id", "session_id", "onset_to_scan_h")},
                    "cell": np.arange(1, n + 1),
                    "volume_ml": p.cell_ml,
                    "na_percent": na,
                    "adc_percent": adc,
                    "necrosis_share": (rng.random(n) < expit(linear)).astype(float),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def rater_table(rng: np.random.Generator, cohort: Cohort, *, shift: float = 0.03, noise: float = 0.08) -> pd.DataFrame:
    """Return how two raters of every region agree, in the form of ``group_raters.tsv``.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    cohort : Cohort
        Stroke cohort.
    shift, noise : float, optional
        Shift and spread of the log of the second rater's volumes.

    Returns
    -------
    pandas.DataFrame
        One row a scan and region.
    """
    import pandas as pd

    rows = cohort.table[cohort.table["roi"].isin(["ionic", "cytotoxic", "necrosis"])]
    rows = rows.drop_duplicates(["participant_id", "session_id", "roi"])
    first = rows["volume_ml"].to_numpy() * np.exp(rng.normal(0.0, noise, len(rows)))
    second = rows["volume_ml"].to_numpy() * np.exp(rng.normal(shift, noise, len(rows)))
    return pd.DataFrame(
        {
            "participant_id": rows["participant_id"].to_numpy(),
            "session_id": rows["session_id"].to_numpy(),
            "label": rows["roi"].to_numpy(),
            "rater_a": "rater1",
            "rater_b": "rater2",
            "dice": np.clip(1.0 - np.abs(rng.normal(0.1, 0.03, len(rows))), 0.0, 1.0),
            "hausdorff95_mm": np.abs(rng.normal(3.0, 1.0, len(rows))),
            "volume_a_ml": first,
            "volume_b_ml": second,
        }
    )
