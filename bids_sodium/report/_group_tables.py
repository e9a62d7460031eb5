"""Tables of the group page: columns worth a page, headings and names in words; files keep every column as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bids_sodium.group.ms import label
from bids_sodium.report import html

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["TABLES", "in_words", "readable"]

_LONG = 25
"""Rows beyond which a table is folded, so that it does not hide what follows it."""

_SHORT = {
    "tsc_cgm": "TSC CGM", "tsc_dgm": "TSC DGM", "tsc_gm": "TSC GM", "tsc_nawm": "TSC NAWM", "tsc_wm": "TSC WM",
    "tsc_t2lesion": "TSC T2 lesions", "tsc_t1iso": "TSC T1-isointense", "tsc_t1hypo": "TSC T1-hypointense",
    "t2lv_ml": "T2 lesion volume", "t1lv_ml": "T1 lesion volume", "gmf": "GMF", "wmf": "WMF", "bpf": "BPF",
    "nart_iq": "NART", "sexn": "sex", "disease_duration": "disease duration", "edss": "EDSS", "z9hpt": "z 9HPT",
    "walking_speed": "walking speed", "T1iso": "T1-isointense", "T1hypo": "T1-hypointense", "T2lesion": "T2 lesions",
    **{f"z_{name}": label(f"z_{name}") for name in ("pasat", "sdmt", "brixton", "hayling", "verbal", "visual")},
}  # fmt: skip
_NAMES = re.compile(rf"(?<![\w:.])({'|'.join(_SHORT)})(?![\w:]|\.\w)")
_HEADINGS = {
    "ci_low": "CI low", "ci_high": "CI high", "p_adjusted": "adjusted p", "r2": "R²", "adjusted_r2": "adjusted R²",
    "n_missing": "left out",
    "R2": "R²", "adjusted R2": "adj. R²", "omitted_significant": "omitted term with p ≤ limit",
    "vif_max": "largest VIF",
    "cook_max": "largest Cook", "cook_participant": "of", "leverage_max": "largest leverage",
    "shapiro_p": "p normal residuals", "koenker_p": "p even spread", "outlier_p": "p largest residual",
    "r2_forced": "R² covariates only", "r2_cv": "R² cross-validated", "r2_sd": "SD over splits",
    "r2_elimination": "R² elimination, in sample", "retained_by_elimination": "retained by the elimination",
    "se_hc3": "HC3 SE", "ci_low_hc3": "HC3 low", "ci_high_hc3": "HC3 high", "p_hc3": "HC3 p",
    "retained_share": "share of resamples", "n_folds": "folds", "n_repeats": "splits", "l1_ratio": "L1 ratio",
}  # fmt: skip
_MODELS = ("subset", "outcome", "n", "n_missing", "retained", "r2", "adjusted_r2", "omitted_significant", "vif_max",
           "cook_max", "cook_participant", "leverage_max", "shapiro_p", "koenker_p")  # fmt: skip
_NETS = ("subset", "outcome", "n", "kept", "retained_by_elimination", "r2_forced", "r2_cv", "r2_elimination")

TABLES: Mapping[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "table1": (("layout", "", ()),),
    "table2": (("layout", "", ()),),
    "table3": (("layout", "", ()),),
    "regressions": (
        ("models", "Final models and what may be wrong with them", _MODELS),
        ("robust", "Terms with errors that do not take the spread as even (HC3)", ()),
        ("path", "Path of every elimination", ()),
        ("selection", "How often resamples agree", ()),
    ),
    "penalised": (("models", "Cross-validated beside in-sample R²", _NETS),),
    "imputation": (("missing", "Missing values", ()),),
    "sites": (("counts", "Site by diagnosis", ()), ("factors", "Factors that made the sites equal", ())),
    "meta": (("forest", "Estimates of the sites", ()),),
    "sigmoid": (("quoted", "What to quote", ()),),
    "exclusions": (("excluded", "Every region that does not enter, and why", ()),),
    "prognosis": (("patients", "Every patient, predicted from the others", ()),),
}
"""Tables of an analysis that are shown beside its results: key, heading, and columns (all where none are named)."""


def in_words(text: str) -> str:
    """Return a text with the names of variables as a reader says them.

    Examples
    --------
    >>> in_words("group + gmf + site (fixed), tsc_cgm")
    'group + GMF + site (fixed), TSC CGM'
    """
    return _NAMES.sub(lambda found: _SHORT[found[1]], text)


def _cell(column: str, value: Any) -> Any:
    if isinstance(value, str):
        if column == "cook_participant":
            return value.replace("-", "\N{NON-BREAKING HYPHEN}")
        if column.endswith("95% CI"):  # an interval stays on one line
            return value.replace("-", "\N{MINUS SIGN}").replace(" to ", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}")
        return in_words(value)
    if (column == "p" or column.startswith("p_") or column.endswith("_p")) and value == value:  # noqa: PLR0124 - NaN
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    return value


def _headings(names: Sequence[str]) -> list[str]:
    """Return headings in words; what heads several columns, before a colon, stands over the first of them."""
    headings, before = [], ""
    for name in names:
        over, colon, own = name.rpartition(": ")
        words = _HEADINGS.get(own, own.replace("_", " "))
        headings.append(f"{over}: {words}" if colon and over != before else words)
        before = over
    return headings


def readable(frame: DataFrame, *, heading: str = "", folded: bool = False) -> str:
    """Return a table for a reader: headings and variables in words, p values as they are printed.

    Parameters
    ----------
    frame : DataFrame
        Table as its file holds it.
    heading : str
        What stands above it.
    folded : bool
        Whether it is folded; long ones always are.
    """
    shown = frame.astype(object)
    for column in shown.columns:
        shown[column] = [_cell(str(column), value) for value in frame[column]]
    headings = _headings([str(name) for name in shown.columns])
    table = f'<div class="wrap">{html.table(shown, headings=headings)}</div>'
    if folded or len(frame) > _LONG:
        return f"<details><summary>{html.escape(heading)}</summary>{table}</details>"
    return (f"<p>{html.escape(heading)}</p>" if heading else "") + table
