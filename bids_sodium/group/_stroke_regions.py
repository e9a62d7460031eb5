"""Regions of a stroke cohort: which enter, how far each departs from the other side, and how they differ over time."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.core.errors import EstimationError
from bids_sodium.group._planning import add_sizes
from bids_sodium.group._stroke_view import WINDOW, StrokeParams, joined, need, need_points, outcome, per_subject
from bids_sodium.group.results import Analysis, Ledger, mean_of, plural
from bids_sodium.group.rows import Scans

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["exclusions", "planning", "regions", "regions_time"]


def exclusions(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Who was scanned when, and every region and scan that does not enter."""
    del rng
    times = view.clinical[["participant_id", "session_id", "t_h", "window"]]
    people = int(times["participant_id"].nunique())
    for window, words in WINDOW.items():
        low, high = {"early": p.early_h, "late": p.late_h}.get(window, (p.late_h[1], np.inf))
        ledger.add(
            model="count",
            subset=words,
            outcome="participants",
            term="participants with a scan",
            estimate=times.loc[times["window"] == window, "participant_id"].nunique(),
            n=people,
            note=f"more than {low:g} h " + (f"and up to {high:g} h " if np.isfinite(high) else "") + "after onset",
        )
    ledger.add(model="count", outcome="scans", term="scans", estimate=len(times), n=people)
    rows = len(view.excluded) + len(view.points)
    ledger.add(model="count", outcome="rows", term="region rows left out", estimate=len(view.excluded), n=rows)
    return ledger.close(
        data={"scans": times, "excluded": view.excluded},
        text=f"{plural(people, 'participant')} with {plural(len(times), 'scan')} entered; regions below "
        f"{p.minimum_ml:g} mL and scans outside the windows were left out, each with its reason.",
    )


def regions(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Mean change of every region, contrast and window, one value a subject, against zero."""
    del rng
    need_points(view)
    for (contrast, window), block in view.points.groupby(["contrast", "window"], sort=False):
        start = len(ledger)
        for roi, rows in block.groupby("roi", sort=False):
            values = per_subject(rows).to_numpy()
            with ledger.part(f"{roi}, {contrast}, {WINDOW[str(window)]}"):
                need(values.size, p.minimum_subjects, "a value")
                ledger.add(
                    model="mean",
                    subset=WINDOW[str(window)],
                    outcome=outcome(str(contrast)),
                    term=roi,
                    **mean_of(values, p.confidence),
                    null=0.0,
                    method="one-sample t; Holm over the regions of a contrast and window",
                    note=f"partial-volume method {view.method}" if view.method else "",
                )
        ledger.adjust(start)
    return ledger.close(
        data={"points": view.points},
        text="The change of a region is (ipsi - contra) / contra x 100 %, averaged over the scans of a subject.",
    )


def regions_time(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """Regions compared over time: a mixed model of any table, and the classical analysis of the complete part."""
    del rng
    kept: dict[str, list[pd.DataFrame]] = {"means": []}
    families = (("na", p.na_regions), ("tsc", p.na_regions), ("adc", p.adc_regions))
    for contrast, regions in families:
        points = view.points
        rows = points[(points["contrast"] == contrast) & points["roi"].isin(regions)]
        present = [roi for roi in regions if (rows["roi"] == roi).any()]
        with ledger.part(contrast):
            if len(present) < 2:
                raise EstimationError(f"{plural(len(present), 'region')} with {contrast} values; 2 are needed")
            need(rows["participant_id"].nunique(), p.minimum_subjects, f"{contrast} values")
            with ledger.part(f"{contrast}, mixed model"):
                kept["means"].append(_region_model(rows, present, contrast, p, ledger))
            with ledger.part(f"{contrast}, repeated-measures ANOVA"):
                _region_anova(rows, present, contrast, p, ledger)
    return ledger.close(
        data=joined(kept),
        text="Regions were compared over time by percent ~ region x time + (1 | subject), fitted by REML, with "
        "Kenward-Roger inference and Holm's adjustment of the pairwise differences; a repeated-measures ANOVA with "
        "Greenhouse-Geisser correction stands beside it for the subjects with every region in both windows.",
    )


def _region_model(
    rows: pd.DataFrame, regions: list[str], contrast: str, p: StrokeParams, ledger: Ledger
) -> pd.DataFrame:
    import pandas as pd

    from bids_sodium.stats.comparisons import mixed

    k = len(regions)
    centre = float(np.mean(p.marginal_h))
    indicator = np.column_stack([(rows["roi"] == roi).to_numpy(float) for roi in regions])
    time = rows["t_h"].to_numpy() - centre
    names = [f"{roi} at {centre:g} h" for roi in regions] + [f"{roi} slope" for roi in regions]
    fit = mixed(
        rows["percent"],
        np.column_stack([indicator, indicator * time[:, None]]),
        rows["participant_id"].to_numpy(),
        names=names,
        confidence=p.confidence,
    )
    shared: dict[str, Any] = {
        "model": "region x time + (1 | subject)",
        "subset": f"{plural(fit.n_groups, 'subject')}, {plural(k, 'region')}",
        "outcome": outcome(contrast),
    }
    differences = np.column_stack([-np.ones((k - 1, 1)), np.eye(k - 1)])
    none = np.zeros((k - 1, k))
    tests = {
        f"region, at {centre:g} h": np.hstack([differences, none]),
        "time, mean over regions": np.concatenate([np.zeros(k), np.full(k, 1.0 / k)])[None, :],
        "region x time": np.hstack([none, differences]),
    }
    for term, L in tests.items():
        f = fit.test(L)
        for name, statistic, df, p_value in (
            ("Kenward-Roger", f.statistic_kenward_roger, f.df_kenward_roger, f.p_kenward_roger),
            ("Satterthwaite", f.statistic, f.df_satterthwaite, f.p_satterthwaite),
        ):
            ledger.add(
                **shared,
                term=term,
                statistic=statistic,
                df=df,
                p=p_value,
                n=fit.n,
                method=f"REML, F({f.df_numerator}, df), {name}",
                note="no variance between subjects is seen" if fit.singular else "",
            )
    slopes = [f"slope of {roi} (%/h)" for roi in regions]
    method = "REML, Kenward-Roger"
    ledger.add_contrasts(fit, slopes, np.hstack([np.zeros((k, k)), np.eye(k)]), {**shared, "method": method})
    means = []
    for hour in p.marginal_h:
        L = np.hstack([np.eye(k), np.eye(k) * (hour - centre)])
        method = "marginal mean, REML, Kenward-Roger"
        ledger.add_contrasts(fit, [f"{roi} at {hour:g} h" for roi in regions], L, {**shared, "method": method})
        c = fit.contrast(L)
        means.append(
            pd.DataFrame(
                {
                    "contrast": contrast,
                    "roi": regions,
                    "t_h": hour,
                    "estimate": c.estimate,
                    "ci_low": c.ci_low_kenward_roger,
                    "ci_high": c.ci_high_kenward_roger,
                }
            )
        )
        start = len(ledger)
        pairs = list(combinations(range(k), 2))
        labels = [f"{regions[i]} - {regions[j]} at {hour:g} h" for i, j in pairs]
        method = f"pairwise difference, REML, Kenward-Roger; Holm over {len(pairs)} pairs"
        ledger.add_contrasts(fit, labels, np.array([L[i] - L[j] for i, j in pairs]), {**shared, "method": method})
        ledger.adjust(start)
    return pd.concat(means, ignore_index=True)


def _region_anova(rows: pd.DataFrame, regions: list[str], contrast: str, p: StrokeParams, ledger: Ledger) -> None:
    from bids_sodium.stats.comparisons import repeated_anova

    acute = rows[rows["window"].isin(["early", "late"])].rename(columns={"roi": "region", "window": "time"})
    cells = acute.groupby(["participant_id", "region", "time"])["percent"].mean().reset_index()
    full = cells.groupby("participant_id")["percent"].transform("size") == 2 * len(regions)
    people = cells.loc[full, "participant_id"].nunique()
    need(people, p.minimum_subjects, f"all {len(regions)} regions in both windows")
    anova = repeated_anova(cells[full], outcome="percent", subject="participant_id", within=["region", "time"])
    for effect in anova.effects:
        ledger.add(
            model="repeated-measures ANOVA",
            subset=f"{plural(people, 'subject')} with every region in both windows",
            outcome=outcome(contrast),
            term=effect.name.replace(":", " x "),
            statistic=effect.statistic,
            df=effect.error_df,
            p=effect.p_greenhouse_geisser,
            n=anova.n_subjects,
            method=f"F({effect.df}, df), Greenhouse-Geisser",
            note=f"epsilon {effect.greenhouse_geisser:.3f}; under sphericity p {effect.p:.4g}; "
            f"generalised eta squared {effect.ges:.3f}",
        )


def planning(view: Scans, p: StrokeParams, rng: np.random.Generator, ledger: Ledger) -> Analysis:
    """How many patients a trial needs that wants to change a region's course."""
    del rng
    from bids_sodium.stats.comparisons import mixed

    for contrast, names in (("na", p.na_regions), ("tsc", p.na_regions), ("adc", p.adc_regions)):
        for roi in dict.fromkeys((p.curve_region, *names)):
            rows = view.points[(view.points["contrast"] == contrast) & (view.points["roi"] == roi)]
            with ledger.part(f"{roi}, {contrast}"):
                people = int(rows["participant_id"].nunique())
                need(people, p.minimum_subjects, f"{contrast} of {roi}")
                if len(rows) < people + 2:
                    raise EstimationError(
                        f"{plural(len(rows), 'scan')} of {plural(people, 'subject')} do not tell the spread of a scan "
                        "from that between subjects"
                    )
                time = rows["t_h"].to_numpy() - float(np.mean(p.marginal_h))
                fit = mixed(
                    rows["percent"],
                    np.column_stack([np.ones(len(rows)), time]),
                    rows["participant_id"].to_numpy(),
                    names=("mean", "slope"),
                    confidence=p.confidence,
                )
                between, within = float(fit.sd_random[0]), float(fit.sigma)
                add_sizes(
                    ledger,
                    {"subset": f"{roi}, one scan a patient", "outcome": outcome(contrast), "term": "effect of "},
                    effects=[(f"{effect:g} points", effect) for effect in p.trial.stroke_effects],
                    sd=float(np.hypot(between, within)),
                    sd_df=people - 1,
                    trial=p.trial,
                    confidence=p.confidence,
                    note=f"from {plural(people, 'subject')}: {between:.3g} between subjects, {within:.3g} within",
                )
    return ledger.close(
        text="The size of a trial of two equal arms follows from the spread of a scan at one time after onset: "
        "variance between subjects plus variance within, from percent ~ time + (1 | subject)."
    )
