"""The stroke study, analysis by analysis: a long table of regions → `Study`.

Scans fall into an early (up to 24 h) and a late window (up to 70 h after onset). Nothing here is a statistic of its
own: each analysis chooses rows, calls `bids_sodium.stats` and states estimate, interval, p value and n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bids_sodium.group._stroke_curves import adc, courses, sigmoid
from bids_sodium.group._stroke_prognosis import prognosis
from bids_sodium.group._stroke_raters import agreement
from bids_sodium.group._stroke_regions import exclusions, planning, regions, regions_time
from bids_sodium.group._stroke_view import StrokeParams
from bids_sodium.group._stroke_volumes import correlations, prediction, volumes
from bids_sodium.group.results import Analysis, Ledger, Study, attempted
from bids_sodium.group.rows import Scans, scans

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["StrokeParams", "analyse"]


def analyse(
    table: pd.DataFrame,
    params: StrokeParams | None = None,
    rng: np.random.Generator | None = None,
    *,
    cells: pd.DataFrame | None = None,
    raters: pd.DataFrame | None = None,
) -> Study:
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
    cells : pandas.DataFrame, optional
        Rows of ``group_fate.tsv``: small pieces of tissue with their outcome, for the prognosis.
    raters : pandas.DataFrame, optional
        Rows of ``group_raters.tsv``: how far raters agree.

    Returns
    -------
    Study
        ``exclusions``, ``regions``, ``sigmoid``, ``adc``, ``courses``, ``regions_time``, ``volumes``, ``prediction``,
        ``correlations``, ``prognosis``, ``agreement`` and ``planning``, each done or left out with its reason.

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
    view = replace(view, cells=cells, raters=raters)
    done = []
    for name, title, make in _ANALYSES:
        ledger = Ledger(name, title, confidence=p.confidence)
        done.append(attempted(name, title, partial(make, view, p, generator, ledger)))
    return Study(study="stroke", analyses=tuple(done))


_Make = Callable[[Scans, StrokeParams, np.random.Generator, Ledger], Analysis]
_ANALYSES: tuple[tuple[str, str, _Make], ...] = (
    ("exclusions", "Scans and regions that enter", exclusions),
    ("regions", "Change of each region against the contralateral side", regions),
    ("sigmoid", "Time course of the sodium signal", sigmoid),
    ("adc", "Plateau of the diffusion coefficient", adc),
    ("courses", "Local-linear time courses", courses),
    ("regions_time", "Regions compared over time", regions_time),
    ("volumes", "Volumes of oedema and final necrosis", volumes),
    ("prediction", "Prediction of the final necrotic volume", prediction),
    ("correlations", "Rank correlations", correlations),
    ("prognosis", "Conversion to necrosis, patient by patient", prognosis),
    ("agreement", "Agreement of raters", agreement),
    ("planning", "Size of a trial to come", planning),
)
