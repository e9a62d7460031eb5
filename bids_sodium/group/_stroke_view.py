"""What every stroke analysis shares: `StrokeParams`, words for outcomes and windows, and its first checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bids_sodium.core.errors import EstimationError
from bids_sodium.group._planning import TrialParams
from bids_sodium.group.results import listing, plural

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.group.rows import Scans

__all__ = ["WINDOW", "StrokeParams", "joined", "need", "need_points", "outcome", "per_subject"]


_OUTCOME = {"na": "sodium signal change (%)", "tsc": "TSC change (%)", "adc": "ADC change (%)"}


WINDOW = {"early": "early window", "late": "late window", "after": "later scans"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StrokeParams:
    """What the stroke study compares, and how."""

    method: str = "auto"
    """Partial-volume method of the rows that enter, the same for all participants; ``auto`` takes local, glm, gtm, csf
    or raw, the first that is present."""

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

    prior_sd: float = 2.5
    """Standard deviation of the prior of a log odds ratio in the prognosis, per standard deviation of its predictor
    (Gelman 2008)."""

    second_effects: tuple[Literal["delay", "rate"], ...] = ("delay", "rate")
    """What varies between subjects beside the asymptote, one model each: the delay (ln t50) or the rate (ln delta)."""

    quadrature_nodes: int = 15
    """Nodes of the adaptive Gauss-Hermite quadrature of curves with two random effects; 1 is Laplace's
    approximation."""

    trial: TrialParams = field(default_factory=TrialParams)
    """The trial that is planned."""

    n_resamples: int = 10_000
    """Resamples of subjects for bands, and permutations of subjects."""

    minimum_subjects: int = 3
    """Fewest subjects that an analysis needs."""

    confidence: float = 0.95
    """Level of all intervals."""


def need(count: int, least: int, what: str) -> None:
    if count < least:
        raise EstimationError(f"{plural(count, 'subject')} with {what}; {least} are needed")


def need_points(view: Scans) -> None:
    """Say how many rows were left out for which reason where none enters."""
    if len(view.points):
        return
    told = view.excluded["reason"].str.replace(r"-?\d+(\.\d+)?", "...", regex=True).value_counts()
    raise EstimationError(
        f"none of {len(view.excluded)} rows of regions enters: "
        + listing(f"{count} {reason}" for reason, count in told.items())
    )


def outcome(contrast: str) -> str:
    return _OUTCOME.get(contrast, f"{contrast} change (%)")


def per_subject(rows: pd.DataFrame, value: str = "percent") -> pd.Series:
    """One value a subject: the mean over its scans."""
    return rows.groupby("participant_id")[value].mean()


def joined(frames: Mapping[str, list[pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    import pandas as pd

    return {key: pd.concat(parts, ignore_index=True) for key, parts in frames.items() if parts}
