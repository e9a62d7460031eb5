"""The MS study, table by table: a long table of tissues → `Study`.

Every participant becomes one row (`bids_sodium.group.rows.persons`), sites are made equal where people travelled
between them, clinical scores are brought to the paper's scale, and each table is made twice where the paper's analysis
and the recommended one differ. A table that fails its self-test is not handed out; the others are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bids_sodium.group._ms_change import change
from bids_sodium.group._ms_checks import adjustment, imputation, penalised
from bids_sodium.group._ms_clinical import clinical, columns, scores
from bids_sodium.group._ms_federated import Summary, analyse_summaries, summaries
from bids_sodium.group._ms_groups import comparisons, joint, lesions, methods, planning
from bids_sodium.group._ms_regressions import bootstrap, ordinal, regressions, table3, univariable
from bids_sodium.group._ms_sites import meta, regions, sites, travelled
from bids_sodium.group._ms_tables import participants, table1, table2
from bids_sodium.group._ms_view import Known, MsParams, View, compare, label
from bids_sodium.group.results import Analysis, Ledger, Study, attempted
from bids_sodium.group.rows import persons

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MsParams", "Summary", "analyse", "analyse_summaries", "clinical", "label", "summarise"]


def analyse(
    table: pd.DataFrame,
    params: MsParams | None = None,
    rng: np.random.Generator | None = None,
    *,
    norms: pd.DataFrame | None = None,
    scanners: pd.DataFrame | None = None,
) -> Study:
    """Run every analysis of the MS study on a long table.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows in the form of ``group_tsc.tsv``; needed are ``participant_id tissue tsc_mmol_l group``, used where present
        ``method session_id site age sex`` and the brain fractions, lesion volumes and clinical scores that `MsParams`
        names.
    params : MsParams, optional
        What is compared.
    rng : numpy.random.Generator, optional
        Source of resamples; one with a fixed seed where none is given.
    norms : pandas.DataFrame, optional
        Norms of raw clinical scores in the form of `bids_sodium.core.tables.NORMS`.
    scanners : pandas.DataFrame, optional
        Readings or factors of a travelling phantom, see `bids_sodium.image.scanners.scanner_factors`.

    Returns
    -------
    Study
        ``participants``, ``table1``, ``table2``, ``comparisons``, ``joint``, ``lesions``, ``univariable``,
        ``regressions``, ``bootstrap``, ``table3``, ``adjustment``, ``ordinal``, ``penalised``, ``imputation``,
        ``change``, ``sites``, ``meta``, ``regions``, ``methods`` and ``planning``, each done or left out with its
        reason.

    Raises
    ------
    DataError
        If a column that every analysis needs is absent, no row belongs to a tissue, one row occurs twice, or factors
        and sites do not fit together.
    ConfigError
        If factors of a travelling phantom would be applied twice.

    Examples
    --------
    >>> from bids_sodium.simulate.cohort import ms_cohort
    >>> cohort = ms_cohort(np.random.default_rng(7))
    >>> study = analyse(cohort.table, MsParams(n_resamples=99, selection_resamples=9, penalised_repeats=0))
    >>> rows = study["comparisons"].results
    >>> rows.loc[(rows["term"] == "MS - HC") & rows["outcome"].str.contains("cortical"), "n"].tolist()
    [112.0]
    """
    p = params or MsParams()
    generator = np.random.default_rng(0) if rng is None else rng
    view = _view(table, p, norms, scanners)
    view = replace(view, comparisons=tuple(compare(view, p)))
    done = []
    known = Known()
    for name, title, make in _ANALYSES:
        ledger = Ledger(name, title, confidence=p.confidence)
        done.append(attempted(name, title, partial(make, view, p, generator, ledger, known)))
    return Study(study="ms", analyses=tuple(done))


def summarise(
    table: pd.DataFrame,
    params: MsParams | None = None,
    *,
    default_site: str,
    norms: pd.DataFrame | None = None,
    scanners: pd.DataFrame | None = None,
) -> tuple[Summary, ...]:
    """Return what a site may share instead of its rows.

    Parameters
    ----------
    table : pandas.DataFrame
        As for `analyse`.
    params : MsParams, optional
        What is compared.
    default_site : str
        Name of the site where the table has no column ``site``.
    norms, scanners : pandas.DataFrame, optional
        As for `analyse`.

    Returns
    -------
    tuple of Summary
        Cross-products of every linear model, cells of fewer than five people withheld.

    Raises
    ------
    DataError, ConfigError
        As `analyse`.
    """
    p = params or MsParams()
    if "site" not in table:
        table = table.assign(site=default_site)
    return summaries(_view(table, p, norms, scanners), p)


def _view(table: pd.DataFrame, p: MsParams, norms: pd.DataFrame | None, scanners: pd.DataFrame | None) -> View:
    table, factors, made_equal = travelled(table, p, scanners)
    read = persons(table, method=p.method, group_aliases=p.group_aliases, used=columns(p, norms))
    people, notes = scores(read.table, p, norms)
    return View(
        long=table,
        people=people,
        method=read.method,
        excluded=read.excluded,
        notes=(*read.notes, *made_equal, *notes),
        factors=factors,
    )


_Make = Callable[[View, MsParams, np.random.Generator, Ledger, Known], Analysis]
_ANALYSES: tuple[tuple[str, str, _Make], ...] = (
    ("participants", "Participants", participants),
    ("table1", "Table 1: demographic and clinical characteristics", table1),
    ("table2", "Table 2: volumes and total sodium concentrations", table2),
    ("comparisons", "Group comparisons as published", comparisons),
    ("joint", "Group comparisons in one model", joint),
    ("lesions", "Lesions against normal-appearing white matter", lesions),
    ("univariable", "Univariable regressions", univariable),
    ("regressions", "Independent associations with clinical scores", regressions),
    ("bootstrap", "Bootstrap of the final models", bootstrap),
    ("table3", "Table 3: concentrations that go with clinical measures", table3),
    ("adjustment", "Age, sex and disease duration added to the final models", adjustment),
    ("ordinal", "Proportional odds of the EDSS", ordinal),
    ("penalised", "Elastic net beside the elimination", penalised),
    ("imputation", "Missing values drawn beside complete cases", imputation),
    ("change", "Change of concentrations over time", change),
    ("sites", "Sites", sites),
    ("meta", "Meta-analysis of the sites' own estimates", meta),
    ("regions", "Regions of an atlas", regions),
    ("methods", "Sensitivity to the partial-volume correction", methods),
    ("planning", "Size of a trial to come", planning),
)
