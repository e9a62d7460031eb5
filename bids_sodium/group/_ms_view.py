"""What every MS analysis shares: `MsParams`, the `View` of the cohort and its group comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.group._planning import TrialParams
from bids_sodium.group.results import listing, plural

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.stats.comparisons import RankSum
    from bids_sodium.stats.regression import Bca, Elimination, GroupDifference, Ols

__all__ = [
    "TSC_COVARIATE",
    "Comparison",
    "Known",
    "MsParams",
    "View",
    "compare",
    "course_pairs",
    "label",
    "planned",
    "ranks",
    "too_few",
    "without",
]


Array = NDArray[np.float64]


_LABEL = {
    "age": "Age (years)",
    "sexn": "Sex (woman)",
    "disease_duration": "Disease duration (years)",
    "edss": "EDSS",
    "walking_speed": "Walking speed (1/s)",
    "walking_speed_ft_s": "Walking speed (ft/s)",
    "z9hpt": "9-hole peg test (z)",
    "z_verbal": "Verbal memory (z)",
    "z_visual": "Visual memory (z)",
    "z_pasat": "PASAT (z)",
    "z_sdmt": "SDMT (z)",
    "z_brixton": "Brixton test (z)",
    "z_hayling": "Hayling test (z)",
    "fatigue": "Fatigue severity score",
    "nart_iq": "NART (IQ)",
    "bpf": "Brain parenchymal fraction",
    "gmf": "Grey matter fraction",
    "wmf": "White matter fraction",
    "t2lv_ml": "T2 lesion volume (mL)",
    "t1lv_ml": "T1 lesion volume (mL)",
    "tsc_cgm": "TSC cortical grey matter (mmol/L)",
    "tsc_dgm": "TSC deep grey matter (mmol/L)",
    "tsc_nawm": "TSC normal-appearing white matter (mmol/L)",
    "tsc_t2lesion": "TSC T2 lesions (mmol/L)",
    "tsc_t1iso": "TSC T1-isointense lesions (mmol/L)",
    "tsc_t1hypo": "TSC T1-hypointense lesions (mmol/L)",
}


_HEADS = {
    "HC": "Healthy controls",
    "CIS": "Patients with a clinically isolated syndrome",
    "MS": "Patients with MS",
    "RRMS": "Patients with relapsing-remitting MS",
    "SPMS": "Patients with secondary progressive MS",
}


_TISSUES = frozenset({*_LABEL, "tsc_gm", "tsc_wm", "tsc_csf"})


TSC_COVARIATE = {
    "tsc_cgm": "gmf",
    "tsc_dgm": "gmf",
    "tsc_nawm": "wmf",
    "tsc_t2lesion": "wmf",
    "tsc_t1iso": "wmf",
    "tsc_t1hypo": "wmf",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MsParams:
    """What the MS study compares, and how."""

    method: str = "auto"
    """Partial-volume method of the rows that enter, the same for all participants; ``auto`` takes local, glm, gtm, csf
    or raw, the first that is present."""

    controls: str = "HC"
    """Group of the healthy controls."""

    cis: str = "CIS"
    """Group of the patients who had one clinical event only."""

    ms_groups: tuple[str, ...] = ("RRMS", "SPMS")
    """Groups that together are the patients with MS; the last is compared with the first."""

    group_aliases: tuple[tuple[str, str], ...] = ()
    """Label in participants.tsv and the group it stands for, where the labels differ from the names above."""

    disability: tuple[str, ...] = ("edss", "walking_speed", "z9hpt", "fatigue")
    """Outcomes without a premorbid covariate."""

    cognition: tuple[str, ...] = ("z_pasat", "z_sdmt", "z_brixton", "z_hayling", "z_verbal", "z_visual")
    """Outcomes for which the premorbid intellect is a forced covariate."""

    premorbid: str = "nart_iq"
    """That covariate (National Adult Reading Test)."""

    candidates_all: tuple[str, ...] = ("tsc_cgm", "tsc_dgm", "tsc_nawm")
    """Candidates of the elimination over all patients (the MS paper)."""

    candidates_ms: tuple[str, ...] = (
        "tsc_cgm",
        "tsc_dgm",
        "tsc_nawm",
        "tsc_t1iso",
        "tsc_t1hypo",
        "t2lv_ml",
        "t1lv_ml",
    )
    """Candidates over patients with MS, who alone have lesions (the MS paper)."""

    forced_all: tuple[str, ...] = ("gmf",)
    """Covariates that every model over all patients holds."""

    forced_ms: tuple[str, ...] = ("gmf", "wmf")
    """Covariates that every model over patients with MS holds."""

    sensitivity: tuple[str, ...] = ("age", "sexn", "disease_duration")
    """Covariates added to the final models to see whether they change anything."""

    p_enter: float = 0.05
    """Univariable p value below which a candidate enters (the MS paper)."""

    p_remove: float = 0.08
    """p value above which a candidate is taken out (the MS paper)."""

    material_change: float = 0.10
    """Share by which a coefficient may change with those before the change counts as material: the change-in-estimate
    rule (Mickey and Greenland 1989, doi:10.1093/oxfordjournals.aje.a115101)."""

    impaired_z: float = -2.0
    """z score at or below which a cognitive test counts as impaired (the MS paper)."""

    minimum_group: int = 3
    """Fewest members of a group that is compared."""

    trial: TrialParams = field(default_factory=TrialParams)
    """The trial that is planned."""

    n_resamples: int = 10_000
    """Bootstrap resamples of the final models; the paper drew 1000."""

    selection_resamples: int = 200
    """Bootstrap resamples of the whole elimination."""

    imputations: int = 20
    """Times that missing values are drawn for the final models; 0 draws none."""

    penalised_repeats: int = 3
    """Times that the cross-validation of the elastic net splits anew; 0 fits none."""

    time: str = "auto"
    """Column of the time of a session in years; ``auto`` takes ``time_years``, else the days between ``acq_time``, else
    ``age``, the first that varies within people."""

    region_covariates: tuple[str, ...] = ("bpf",)
    """Covariates when regions of an atlas are compared."""

    csf_shift_mmol_l: tuple[float, ...] = (-10.0, 10.0)
    """Concentrations of CSF at which the CSF partition is looked at again, as differences from the one that it took, in
    mmol/L; measured ones run from 135 to 150 (Inglese 2010, doi:10.1093/brain/awp334)."""

    combat: Literal["parametric", "nonparametric", "mean-only", "off"] = "parametric"
    """How ComBat takes sites out of many regions, beside the models that hold the site."""

    combat_reference: str = ""
    """Site that ComBat brings the others to; empty for their mean."""

    combat_regions: int = 10
    """Fewest regions from which ComBat learns its prior."""

    combat_site: int = 10
    """Fewest participants of a site that ComBat harmonises."""

    travelling: bool = True
    """Whether people scanned at several sites make the sites' concentrations equal."""

    travelling_people: int = 3
    """Fewest of them that do."""

    site_factors: tuple[tuple[str, float], ...] = ()
    """Site and the factor that its concentrations are multiplied with, as a travelling phantom gives it; where factors
    are given, travelling people are not used."""

    confidence: float = 0.95
    """Level of all intervals."""


def label(variable: str) -> str:
    """Return the words for a variable in tables and figures.

    Examples
    --------
    >>> label("tsc_cgm")
    'TSC cortical grey matter (mmol/L)'
    """
    if variable in _HEADS:
        return _HEADS[variable]
    if variable.startswith("tsc_") and variable not in _LABEL:
        return f"TSC {variable.removeprefix('tsc_')} (mmol/L)"
    return _LABEL.get(variable, variable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two groups compared on one variable, or why they were not."""

    section: str
    variable: str
    first: str
    second: str
    covariates: tuple[str, ...]
    result: GroupDifference | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What every analysis reads."""

    long: pd.DataFrame
    people: pd.DataFrame
    method: str
    excluded: pd.DataFrame
    notes: tuple[str, ...]
    factors: pd.DataFrame
    comparisons: tuple[Comparison, ...] = field(default=())

    def members(self, name: str, p: MsParams) -> NDArray[np.bool_]:
        """Who belongs to a group; ``MS`` and ``patients`` are unions."""
        groups = self.people["group"].to_numpy()
        if name == "MS":
            return np.isin(groups, p.ms_groups)
        if name == "patients":
            return np.isin(groups, (p.cis, *p.ms_groups))
        return np.asarray(groups == name)

    def p_of(self, variable: str, first: str, second: str, p: MsParams) -> float:
        """P value of a published comparison, NaN where it was not made; the EDSS by rank sum."""
        if variable == "edss":
            if too_few(self, p, variable, (first, second)):
                return float("nan")
            try:
                test = ranks(self, p, variable, (first, second))
            except EstimationError:
                return float("nan")  # the comparisons say why
            return test.p_exact if np.isfinite(test.p_exact) else test.p_asymptotic
        for c in self.comparisons:
            if (c.variable, c.first, c.second) == (variable, first, second) and c.result is not None:
                return c.result.p
        return float("nan")

    @property
    def regions(self) -> tuple[str, ...]:
        """Columns with concentrations of regions of an atlas."""
        return tuple(str(c) for c in self.people if str(c).startswith("tsc_") and c not in _TISSUES)

    def column(self, name: str) -> Array:
        """Values of one variable, none where the column is absent."""
        if name not in self.people:
            return np.full(len(self.people), np.nan)
        return self.people[name].to_numpy(dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What earlier analyses hand to later ones, by subset and outcome."""

    eliminations: dict[tuple[str, str], Elimination[Ols]] = field(default_factory=dict)
    boots: dict[tuple[str, str], Bca] = field(default_factory=dict)


def without(names: Iterable[str]) -> str:
    """Return that columns are absent, as a reader calls them."""
    return f"no column {listing('sex that could be read' if name == 'sexn' else name for name in names)}"


def course_pairs(p: MsParams) -> list[tuple[str, str]]:
    """Return the pair of MS groups that is compared, last and first; none where there is one group only."""
    return [(p.ms_groups[-1], p.ms_groups[0])] if len(p.ms_groups) > 1 else []


def planned(p: MsParams) -> list[tuple[str, str, tuple[str, ...], list[tuple[str, str]]]]:
    """Section, variable, covariates and pairs of groups of every published comparison."""
    ms = ("MS", p.controls), ("MS", p.cis), (p.cis, p.controls)
    course = course_pairs(p)
    plan: list[tuple[str, str, tuple[str, ...], list[tuple[str, str]]]] = [
        ("brain volumes", variable, ("age", "sexn"), [*ms, *course]) for variable in ("gmf", "wmf", "bpf")
    ]
    plan += [("TSC", v, (TSC_COVARIATE[v],), [*ms, *course]) for v in ("tsc_cgm", "tsc_dgm", "tsc_nawm")]
    plan += [("lesions", v, (TSC_COVARIATE[v],), course) for v in ("tsc_t2lesion", "tsc_t1iso", "tsc_t1hypo")]
    plan += [("lesions", variable, (), course) for variable in ("t2lv_ml", "t1lv_ml")]
    scores = [v for v in (*p.disability, *p.cognition) if v != "edss"]
    plan += [("clinical", variable, (), [("MS", p.cis), *course]) for variable in scores]
    return plan


def too_few(view: View, p: MsParams, variable: str, groups: Iterable[str]) -> str:
    """Why groups cannot be compared on a variable, empty where they can."""
    if variable not in view.people:
        return f"no column {variable}"
    known = ~np.isnan(view.column(variable))
    for group in groups:
        count = int((view.members(group, p) & known).sum())
        if count < p.minimum_group:
            return f"{group} has {plural(count, 'member')} with a value; {p.minimum_group} are needed"
    return ""


def ranks(view: View, p: MsParams, variable: str, pair: tuple[str, str]) -> RankSum:
    """Compare two groups by rank sum."""
    from bids_sodium.stats.comparisons import rank_sum

    values = view.column(variable)
    return rank_sum(values[view.members(pair[0], p)], values[view.members(pair[1], p)], confidence=p.confidence)


def compare(view: View, p: MsParams) -> Iterable[Comparison]:
    from bids_sodium.stats.regression import group_difference

    for section, variable, covariates, pairs in planned(p):
        for first, second in pairs:
            plan: dict[str, Any] = {
                "section": section,
                "variable": variable,
                "first": first,
                "second": second,
                "covariates": covariates,
            }
            absent = [c for c in covariates if c not in view.people]
            reason = too_few(view, p, variable, (first, second)) or (without(absent) if absent else "")
            if reason:
                yield Comparison(**plan, result=None, reason=reason)
                continue
            try:
                result = group_difference(
                    view.column(variable),
                    view.members(first, p),
                    view.members(second, p),
                    np.column_stack([view.column(c) for c in covariates]) if covariates else None,
                    names=covariates,
                    confidence=p.confidence,
                )
            except (DataError, EstimationError) as error:
                yield Comparison(**plan, result=None, reason=error.what)
            else:
                yield Comparison(**plan, result=result)
