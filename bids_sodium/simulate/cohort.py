"""Virtual patients at table level: `stroke_cohort` and `ms_cohort` return a `Cohort`, its table and its truth.

The tables have the form of ``group_tsc.tsv`` (`bids_sodium.core.tables.GROUP_TSC` and the columns of participants,
sessions and phenotype), so that the group level reads them as it reads real participants.

Stroke: the sodium signal of region r of patient i rises as ``scale_r A_i h(t)``,
``h(t) = t^delta / (e^gamma + t^delta)``, with ``A_i ~ N(alpha, sd^2)``; the diffusion coefficient falls to a plateau.
MS: group means and standard deviations of the paper, drawn through a factor model in which the concentration of the
cortical grey matter drives a latent disability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import GROUP_TSC

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cohort", "MsCohortParams", "StrokeCohortParams", "ms_cohort", "stroke_cohort"]

_Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """A simulated cohort.

    Parameters
    ----------
    table : pandas.DataFrame
        Long table in the form of ``group_tsc.tsv``.
    truth : pandas.DataFrame
        What the table was made from: columns ``parameter``, ``level`` (region, group or participant, empty for the
        whole cohort), ``value``, ``unit``.
    """

    table: pd.DataFrame
    truth: pd.DataFrame

    def true(self, parameter: str, level: str = "") -> float:
        """Return one true value.

        Raises
        ------
        KeyError
            If the truth has no such parameter or level.
        """
        rows = self.truth[(self.truth["parameter"] == parameter) & (self.truth["level"] == level)]
        if len(rows) != 1:
            raise KeyError((parameter, level))
        return float(rows["value"].iloc[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class StrokeCohortParams:
    """How the stroke cohort is made."""

    alpha_percent: float = 91.0
    """Mean asymptote of the sodium rise in the cytotoxic region, in % (the stroke paper's fit)."""

    delta: float = 0.71
    """Exponent of time, no unit (the stroke paper's fit)."""

    gamma: float = 2.3
    """Log of the half-rise constant for time in h (the stroke paper's fit)."""

    asymptote_sd_percent: float = 24.0
    """Standard deviation of the asymptote between patients, in %; with the two noises below it makes the paper's
    residual of 15.8 %."""

    scan_sd_percent: float = 8.0
    """Standard deviation that all regions of one scan share, in %."""

    region_sd_percent: float = 6.0
    """Standard deviation of one region of one scan, in %."""

    adc_plateau_percent: float = -45.0
    """Plateau of the ADC change in the cytotoxic region, in % (the stroke paper)."""

    adc_plateau_sd_percent: float = 12.0
    """Its standard deviation between patients, in %; the paper's patients span -10 to -75."""

    adc_tau_h: float = 3.0
    """Time constant of the ADC drop, in h: the plateau is reached before most first scans (Tsang 2011)."""

    adc_sd_percent: float = 5.0
    """Standard deviation of the ADC change of one region of one scan, in %."""

    rise_necrosis_correlation: float = 0.6
    """Correlation of the asymptote with the log of the final necrotic volume (the stroke paper: rank correlation of
    sodium rise and necrosis 0.66)."""

    minimum_ml: float = 1.0
    """Regions below this volume are kept out, in mL (the stroke paper's 1 cm3)."""


# region: (factor of the sodium rise, factor of the ADC plateau, further ADC change in %/h)
_REGIONS: dict[str, tuple[float, float, float]] = {
    "ionic": (1.15, 0.90, 0.0),
    "cytotoxic": (1.00, 1.00, 0.0),
    "necrosis": (0.90, 0.80, 0.0),
    "ionic&necrosis": (1.25, 1.05, 0.0),
    "necrosis-ionic": (0.25, 0.35, -0.15),
    "cytotoxic&necrosis": (1.10, 1.10, 0.0),
    "necrosis-cytotoxic": (0.35, 0.20, -0.30),
    "ionic-necrosis": (0.80, 0.45, 0.25),
    "cytotoxic-necrosis": (0.55, 0.70, 0.20),
}

# window: (log ratio to the final necrosis, its SD) of each oedema
_VOLUMES: dict[str, dict[str, tuple[float, float]]] = {
    "early": {"cytotoxic": (0.04, 0.25), "ionic": (-0.75, 0.35)},
    "late": {"cytotoxic": (0.40, 0.25), "ionic": (-0.03, 0.20)},
}


def stroke_cohort(
    rng: np.random.Generator, n: int = 15, *, params: StrokeCohortParams | None = None, complete: bool = False
) -> Cohort:
    """Return a stroke cohort scanned within 24 h and between 25 and 70 h after onset.

    As in the paper, two patients have no second scan, one lost the diffusion series and one the anatomical image of a
    scan to movement, and one has lesions below 1 mL: 15 patients make 28 scans. Cohorts of fewer than six patients,
    and complete ones, lose nothing.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    n : int
        Patients.
    params : StrokeCohortParams, optional
        How the cohort is made.
    complete : bool
        Whether no scan is missing and every lesion is large.

    Returns
    -------
    Cohort
        Rows: one a patient, scan, region and contrast (``na`` in a.u., ``tsc`` in mmol/L, ``adc`` in mm2/s).

    Raises
    ------
    DataError
        If ``n`` is below 1.

    Examples
    --------
    >>> cohort = stroke_cohort(np.random.default_rng(1))
    >>> cohort.table.groupby(["participant_id", "session_id"]).ngroups
    28
    >>> cohort.true("alpha")
    91.0
    """
    import pandas as pd

    if n < 1:
        raise DataError(f"a cohort of {n} patients was asked for", where="stroke_cohort", hint="use n of 1 or more")
    p = params or StrokeCohortParams()
    rows: list[dict[str, Any]] = []
    truth: list[tuple[str, str, float, str]] = [
        ("alpha", "", p.alpha_percent, "%"),
        ("delta", "", p.delta, ""),
        ("gamma", "", p.gamma, ""),
        ("t50", "", float(np.exp(p.gamma / p.delta)), "h"),
        ("asymptote_sd", "", p.asymptote_sd_percent, "%"),
        ("noise_sd", "", float(np.hypot(p.scan_sd_percent, p.region_sd_percent)), "%"),
        ("adc_plateau", "", p.adc_plateau_percent, "%"),
    ]
    truth += [(f"f({t})", "", float(p.alpha_percent * _rise(float(t), p)), "%") for t in (24, 48, 60, 70)]
    truth += [("na_scale", region, factors[0], "1") for region, factors in _REGIONS.items()]
    truth += [("adc_scale", region, factors[1], "1") for region, factors in _REGIONS.items()]
    lossy = n >= 6 and not complete
    no_second = {3, n - 2} if lossy else set()
    for i in range(n):
        name = f"sub-{i + 1:02d}"
        small = lossy and i == n - 1
        rise = float(rng.normal())
        asymptote = p.alpha_percent + p.asymptote_sd_percent * rise
        plateau = float(np.clip(rng.normal(p.adc_plateau_percent, p.adc_plateau_sd_percent), -80.0, -8.0))
        necrosis_ml = (
            float(rng.uniform(0.5, 0.9)) if small else float(np.clip(np.exp(rng.normal(3.0, 0.9)), 3.0, 200.0))
        )
        person = _patient(rng, name, necrosis_ml, asymptote, p)
        truth += [("asymptote", name, asymptote, "%"), ("necrosis", name, necrosis_ml, "mL")]
        for session, window in (("ses-01", "early"), ("ses-02", "late")):
            time_h = float(rng.uniform(5.0, 24.0) if window == "early" else rng.uniform(25.0, 70.0))
            volumes = _region_volumes(rng, necrosis_ml, window)
            lost = {"adc"} if lossy and i == (n * 2) // 3 - 1 and window == "late" else set()
            if lossy and i == n - 2:
                lost = {"na", "tsc", "adc"}
            if not (window == "late" and i in no_second):
                scan = {**person[window], "session_id": session, "onset_to_scan_h": round(time_h, 2)}
                rows += _scan_rows(rng, scan, volumes, asymptote=asymptote, plateau=plateau, lost=lost, p=p)
    table = pd.DataFrame(rows)
    order = [c for c in GROUP_TSC.names if c in table] + [c for c in table if c not in GROUP_TSC.names]
    return Cohort(table=table[order], truth=pd.DataFrame(truth, columns=["parameter", "level", "value", "unit"]))


def _rise(t_h: float, p: StrokeCohortParams) -> float:
    return float(t_h**p.delta / (np.exp(p.gamma) + t_h**p.delta))


def _patient(
    rng: np.random.Generator, name: str, necrosis_ml: float, asymptote: float, p: StrokeCohortParams
) -> dict[str, dict[str, Any]]:
    """Clinical columns of one patient at each window."""
    severity = 0.2 * (np.log(necrosis_ml) - 3.0) + 0.1 * (asymptote - p.alpha_percent) / p.asymptote_sd_percent
    admission = int(np.clip(np.round(10 + 6 * (severity + 0.9 * rng.normal())), 1, 30))
    first = int(np.clip(np.round(0.5 * admission + rng.normal(0, 1.5)), 0, admission))
    second = int(np.clip(np.round(0.8 * first + rng.normal(0, 1.0)), 0, 30))
    fixed = {
        "participant_id": name,
        "age": int(np.clip(np.round(rng.normal(68, 13)), 30, 95)),
        "sex": "F" if rng.random() < 7 / 15 else "M",
        "nihss_admission": admission,
        "mrs": int(np.clip(np.round(1.3 + 1.2 * (severity + rng.normal())), 0, 5)),
    }
    return {"early": {**fixed, "nihss": first}, "late": {**fixed, "nihss": second}}


def _region_volumes(rng: np.random.Generator, necrosis_ml: float, window: str) -> dict[str, float]:
    """Volumes of every region of one scan, in mL; overlaps obey ``|A & B| + |A - B| = |A|``."""
    volumes = {"necrosis": necrosis_ml}
    for name, (mean, sd) in _VOLUMES[window].items():
        volumes[name] = necrosis_ml * float(np.exp(rng.normal(mean, sd)))
        shared = min(volumes[name], necrosis_ml) * float(rng.uniform(0.65, 0.90))
        volumes[f"{name}&necrosis"] = shared
        volumes[f"necrosis-{name}"] = necrosis_ml - shared
        volumes[f"{name}-necrosis"] = volumes[name] - shared
    return volumes


def _scan_rows(
    rng: np.random.Generator,
    scan: dict[str, Any],
    volumes: dict[str, float],
    *,
    asymptote: float,
    plateau: float,
    lost: set[str],
    p: StrokeCohortParams,
) -> list[dict[str, Any]]:
    rows = []
    t = float(scan["onset_to_scan_h"])
    shared = rng.normal(0.0, p.scan_sd_percent)
    contra = {"na": rng.normal(400.0, 30.0), "tsc": rng.normal(38.0, 2.0), "adc": rng.normal(7.8e-4, 3e-5)}
    spread = {"na": 0.12, "tsc": 0.12, "adc": 0.15}
    for region, (rise, drop, drift) in _REGIONS.items():
        sodium = rise * asymptote * _rise(t, p) + shared + rng.normal(0.0, p.region_sd_percent)
        adc = drop * plateau * (1.0 - np.exp(-t / p.adc_tau_h)) + drift * (t - 35.0)
        change = {
            "na": sodium,
            "tsc": sodium + rng.normal(0.0, 1.0),
            "adc": max(adc + rng.normal(0.0, p.adc_sd_percent), -95.0),
        }
        volume = volumes[region]
        for contrast in ("na", "tsc", "adc"):
            ipsi = contra[contrast] * (1.0 + change[contrast] / 100.0)
            moved = contrast in lost
            kept = not moved and volume >= p.minimum_ml
            reason = "movement artefacts" if moved else f"volume {volume:.2f} mL is below {p.minimum_ml:g} mL"
            rows.append(
                {
                    **scan,
                    "roi": region,
                    "contrast": contrast,
                    "method": "raw",
                    "ipsi": np.nan if moved else ipsi,
                    "contra": np.nan if moved else contra[contrast],
                    "percent_change": np.nan if moved else change[contrast],
                    "percent_se": np.nan if moved else p.region_sd_percent,
                    "ipsi_sd": np.nan if moved else spread[contrast] * ipsi,
                    "contra_sd": np.nan if moved else spread[contrast] * contra[contrast],
                    "n_voxels": 0 if moved else round(volume * 1000.0 / 64.0),
                    "volume_ml": volume,
                    "kept": int(kept),
                    "reason": "" if kept else reason,
                }
            )
    return rows


_GROUPS = ("HC", "CIS", "RRMS", "SPMS")

# variable: (unit, mean and SD in HC, CIS, RRMS, SPMS; None where not measured), Tables 1 and 2 of the MS paper.
# Volumes of lesions and EDSS are made from their own distributions below.
_Moments = tuple[tuple[float, float] | None, ...]
_MS: dict[str, tuple[str, _Moments]] = {
    "age": ("year", ((35.5, 10.1), (49.0, 7.2), (46.8, 7.6), (47.8, 7.8))),
    "disease_duration": ("year", (None, (14.5, 2.1), (14.6, 2.4), (15.0, 2.8))),
    "walking_speed": ("1/s", (None, (0.24, 0.03), (0.20, 0.04), (0.09, 0.05))),
    "z9hpt": ("1", (None, (0.78, 0.70), (0.50, 0.61), (-1.16, 0.82))),
    "z_verbal": ("1", (None, (0.21, 0.60), (-0.27, 0.54), (-0.59, 0.74))),
    "z_visual": ("1", (None, (0.24, 0.49), (-0.01, 0.63), (-0.35, 0.76))),
    "z_pasat": ("1", (None, (0.21, 0.68), (-0.32, 0.99), (-1.32, 1.25))),
    "z_sdmt": ("1", (None, (0.31, 0.90), (-0.34, 1.18), (-2.12, 1.38))),
    "z_brixton": ("1", (None, (-0.19, 0.98), (-0.93, 1.09), (-1.74, 1.44))),
    "z_hayling": ("1", (None, (0.20, 0.86), (-0.56, 1.01), (-0.97, 1.15))),
    "fatigue": ("1", (None, (2.4, 1.3), (3.5, 1.8), (5.6, 1.5))),
    "nart_iq": ("1", (None, (111.0, 8.2), (111.0, 8.8), (111.0, 8.3))),
    "edss": ("1", (None, (0.2, 0.5), (2.1, 1.4), (5.6, 1.1))),
    "gmf": ("1", ((0.458, 0.009), (0.453, 0.006), (0.447, 0.012), (0.438, 0.014))),
    "wmf": ("1", ((0.310, 0.011), (0.314, 0.010), (0.303, 0.016), (0.293, 0.016))),
    "tiv_ml": ("mL", ((1450.0, 120.0), (1450.0, 120.0), (1450.0, 120.0), (1450.0, 120.0))),
    "t2lv_ml": ("mL", (None, None, (9.81, 11.60), (17.97, 12.28))),
    "t1lv_ml": ("mL", (None, None, (1.90, 2.91), (5.87, 4.53))),
    "CGM": ("mmol/L", ((40.63, 2.33), (40.68, 1.74), (42.30, 3.29), (45.45, 3.69))),
    "DGM": ("mmol/L", ((34.83, 2.79), (36.13, 1.69), (36.14, 3.47), (39.47, 3.98))),
    "NAWM": ("mmol/L", ((32.03, 3.44), (32.92, 2.43), (34.43, 3.95), (36.95, 4.04))),
    "T2lesion": ("mmol/L", (None, None, (44.27, 8.27), (51.99, 6.92))),
    "T1iso": ("mmol/L", (None, None, (42.87, 7.04), (49.30, 5.83))),
    "T1hypo": ("mmol/L", (None, None, (51.02, 11.56), (57.45, 7.43))),
}

# Loadings on the latent sodium factor s, atrophy factor a and disability factor d (within a group, unit variances);
# d itself is driven by the cortical concentration and the T1-hypointense lesions.
_LOADINGS: dict[str, tuple[float, float, float]] = {
    "CGM": (0.80, 0.20, 0.0),
    "DGM": (0.70, 0.10, 0.0),
    "NAWM": (0.70, 0.10, 0.0),
    "T2lesion": (0.75, 0.05, 0.0),
    "T1iso": (0.65, 0.05, 0.0),
    "T1hypo": (0.65, 0.05, 0.0),
    "gmf": (0.0, -0.75, 0.0),
    "wmf": (0.0, -0.55, 0.0),
    "t2lv_ml": (0.05, 0.40, 0.0),
    "edss": (0.0, 0.10, 0.75),
    "walking_speed": (0.0, -0.10, -0.75),
    "z9hpt": (0.0, -0.15, -0.70),
    "z_pasat": (0.0, -0.15, -0.55),
    "z_sdmt": (0.0, -0.20, -0.60),
    "z_brixton": (0.0, -0.10, -0.50),
    "z_hayling": (0.0, 0.0, -0.20),
    "z_verbal": (0.0, 0.0, -0.15),
    "z_visual": (0.0, 0.0, -0.15),
    "fatigue": (0.0, 0.0, 0.15),
}
_DISABILITY = {"CGM": 0.45, "T1hypo": 0.20, "atrophy": 0.15}

# Bias (mmol/L) of each correction as methods.md measured it on a phantom of this resolution, and its random error.
_METHOD_BIAS: dict[str, dict[str, float]] = {
    "raw": {"CGM": 7.1, "DGM": 7.7, "NAWM": 2.1, "T2lesion": -4.0, "T1iso": -3.5, "T1hypo": -4.5, "CSF": -27.0},
    "csf": {"CGM": -3.2, "DGM": 0.1, "NAWM": 0.9, "T2lesion": -1.9, "T1iso": -1.7, "T1hypo": -2.1, "CSF": -27.0},
    "gtm": {"CGM": 0.8, "DGM": 0.9, "NAWM": 0.0, "T2lesion": -0.1, "T1iso": -0.1, "T1hypo": -0.1, "CSF": -6.4},
    "glm": {"CGM": 0.0, "DGM": 0.0, "NAWM": 0.0, "T2lesion": 0.0, "T1iso": 0.0, "T1hypo": 0.0, "CSF": 0.0},
}
_SE: dict[str, float] = {
    "CGM": 0.3, "DGM": 0.6, "NAWM": 0.3, "T2lesion": 0.9, "T1iso": 1.0, "T1hypo": 1.4, "CSF": 1.5,
}  # fmt: skip
_SD: dict[str, float] = {
    "CGM": 6.0, "DGM": 5.0, "NAWM": 5.0, "T2lesion": 8.0, "T1iso": 8.0, "T1hypo": 9.0, "CSF": 15.0,
}  # fmt: skip
_RANGES = {"HC": (0.0, 0.0), "CIS": (0.0, 1.0), "RRMS": (0.0, 6.5), "SPMS": (3.5, 7.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MsCohortParams:
    """How the MS cohort is made."""

    n: tuple[int, int, int, int] = (34, 18, 65, 13)
    """Healthy controls, CIS, relapsing-remitting and secondary progressive patients (the MS paper)."""

    sites: tuple[str, ...] = ("A", "B", "C")
    """Names of the sites; participants are dealt to them at random."""

    site_shift_mmol_l: tuple[float, ...] = (0.0, 0.0, 0.0)
    """What each site adds to every concentration, in mmol/L."""

    measurement_error: bool = True
    """Whether each concentration carries the random error that its standard error states."""


def ms_cohort(
    rng: np.random.Generator, n: tuple[int, int, int, int] | None = None, *, params: MsCohortParams | None = None
) -> Cohort:
    """Return an MS cohort with the paper's group means and standard deviations.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    n : tuple of 4 int, optional
        Healthy controls, CIS, RRMS and SPMS, instead of those in ``params``.
    params : MsCohortParams, optional
        How the cohort is made.

    Returns
    -------
    Cohort
        Rows: one a participant, tissue and method (raw, csf, gtm, glm), with site, age, sex, disability and cognition
        beside them. The truth holds ``mean`` and ``sd`` of every variable in every group (level ``variable:group``)
        and the standardised effects on the latent disability.

    Raises
    ------
    DataError
        If a group has a negative count, or sites and their shifts differ in number.

    Notes
    -----
    Lesion volumes are log-normal, hence positive and skewed, and T1-hypointense lesions fill at most 90 % of the T2
    lesions (so that the mean of ``t1lv_ml`` is a little below the one stated); the timed walk is kept as seconds
    (``t25fw_s``) and capped at 180 s; EDSS goes in half steps within the range that the paper prints for the group.

    Examples
    --------
    >>> cohort = ms_cohort(np.random.default_rng(1))
    >>> cohort.table.drop_duplicates("participant_id").groupby("group").size().to_dict()
    {'CIS': 18, 'HC': 34, 'RRMS': 65, 'SPMS': 13}
    >>> cohort.true("mean", "CGM:SPMS")
    45.45
    """
    import pandas as pd

    p = params or MsCohortParams()
    counts = p.n if n is None else n
    if len(counts) != len(_GROUPS) or min(counts) < 0:
        raise DataError(f"group sizes are {counts}", where="ms_cohort", hint="give four counts of 0 or more")
    if len(p.sites) != len(p.site_shift_mmol_l) or not p.sites:
        raise DataError(
            f"{len(p.sites)} sites have {len(p.site_shift_mmol_l)} shifts",
            where="ms_cohort",
            hint="give one shift a site",
        )
    rows: list[dict[str, Any]] = []
    number = 0
    for g, (group, count) in enumerate(zip(_GROUPS, counts, strict=True)):
        scores = _latent(rng, count)
        values = {name: _scaled(name, moments[g], scores[name]) for name, (_, moments) in _MS.items()}
        for i in range(count):
            number += 1
            site = int(rng.integers(len(p.sites)))
            person = {
                "participant_id": f"sub-{number:03d}",
                "session_id": "n/a",
                "group": group,
                "site": p.sites[site],
                **_person(rng, group, {name: float(v[i]) for name, v in values.items()}),
            }
            rows += _tissue_rows(
                rng, person, {t: float(values[t][i]) for t in _tissues(group)}, p.site_shift_mmol_l[site], p
            )
    table = pd.DataFrame(rows)
    if len(table):
        order = [c for c in GROUP_TSC.names if c in table] + [c for c in table if c not in GROUP_TSC.names]
        table = table[order]
    return Cohort(table=table, truth=_ms_truth(p))


def _ms_truth(p: MsCohortParams) -> pd.DataFrame:
    import pandas as pd

    truth: list[tuple[str, str, float, str]] = []
    for name, (unit, moments) in _MS.items():
        for group, moment in zip(_GROUPS, moments, strict=True):
            if moment is not None:
                truth += [("mean", f"{name}:{group}", moment[0], unit), ("sd", f"{name}:{group}", moment[1], unit)]
    truth += [("effect_on_disability", name, value, "SD/SD") for name, value in _DISABILITY.items()]
    truth += [("site_shift", site, shift, "mmol/L") for site, shift in zip(p.sites, p.site_shift_mmol_l, strict=True)]
    truth += [
        ("method_bias", f"{method}:{tissue}", bias, "mmol/L")
        for method, biases in _METHOD_BIAS.items()
        for tissue, bias in biases.items()
    ]
    return pd.DataFrame(truth, columns=["parameter", "level", "value", "unit"])


def _latent(rng: np.random.Generator, count: int) -> dict[str, _Array]:
    """Standard-normal scores of every variable, correlated through sodium, atrophy and disability."""
    sodium, atrophy = rng.normal(size=count), rng.normal(size=count)

    def score(name: str, disability: _Array) -> _Array:
        s, a, d = _LOADINGS.get(name, (0.0, 0.0, 0.0))
        # s, a and d correlate, so the leftover variance is that of the common part taken away from one
        along_s, along_a = s + d * _disability_on("s"), a + d * _disability_on("a")
        common = along_s**2 + along_a**2 + d**2 * (1 - _disability_on("s") ** 2 - _disability_on("a") ** 2)
        return np.asarray(s * sodium + a * atrophy + d * disability + np.sqrt(1 - common) * rng.normal(size=count))

    none = np.zeros(count)
    scores = {name: score(name, none) for name, (_, _, d) in _LOADINGS.items() if d == 0.0}
    driven = (
        _DISABILITY["CGM"] * scores["CGM"] + _DISABILITY["T1hypo"] * scores["T1hypo"] + _DISABILITY["atrophy"] * atrophy
    )
    disability = driven + np.sqrt(1 - _driven_variance()) * rng.normal(size=count)
    scores |= {name: score(name, disability) for name, (_, _, d) in _LOADINGS.items() if d != 0.0}
    scores["nart_iq"] = -0.15 * disability + np.sqrt(1 - 0.15**2) * rng.normal(size=count)
    # T1-hypointense lesions lie within T2 lesions, so their volumes go together
    scores["t1lv_ml"] = 0.75 * scores["t2lv_ml"] + np.sqrt(1 - 0.75**2) * rng.normal(size=count)
    for name in _MS:
        if name not in scores:
            scores[name] = rng.normal(size=count)
    return scores


def _disability_on(factor: str) -> float:
    """Correlation of disability with the sodium (s) or atrophy (a) factor."""
    i = 0 if factor == "s" else 1
    total = _DISABILITY["CGM"] * _LOADINGS["CGM"][i] + _DISABILITY["T1hypo"] * _LOADINGS["T1hypo"][i]
    return total + (_DISABILITY["atrophy"] if factor == "a" else 0.0)


def _driven_variance() -> float:
    """Variance of the part of disability that concentrations and atrophy explain."""
    own = sum(_DISABILITY[t] ** 2 * (1 - _LOADINGS[t][0] ** 2 - _LOADINGS[t][1] ** 2) for t in ("CGM", "T1hypo"))
    return _disability_on("s") ** 2 + _disability_on("a") ** 2 + own


def _scaled(name: str, moment: tuple[float, float] | None, score: _Array) -> _Array:
    """Scores with the mean and SD of a group; log-normal for lesion volumes."""
    if moment is None:
        return np.full(score.shape, np.nan)
    mean, sd = moment
    if name in {"t2lv_ml", "t1lv_ml"}:
        log_var = np.log1p((sd / mean) ** 2)
        return np.asarray(np.exp(np.log(mean) - 0.5 * log_var + np.sqrt(log_var) * score))
    return np.asarray(mean + sd * score)


def _tissues(group: str) -> tuple[str, ...]:
    return (
        ("CGM", "DGM", "NAWM", "T2lesion", "T1iso", "T1hypo") if group in {"RRMS", "SPMS"} else ("CGM", "DGM", "NAWM")
    )


def _person(rng: np.random.Generator, group: str, values: dict[str, float]) -> dict[str, Any]:
    patient = group != "HC"
    women = {"HC": 23 / 34, "CIS": 12 / 18, "RRMS": 50 / 65, "SPMS": 9 / 13}[group]
    treated = {"HC": 0.0, "CIS": 0.0, "RRMS": 18 / 65, "SPMS": 4 / 13}[group]
    low, high = _RANGES[group]
    person: dict[str, Any] = {
        "age": round(float(np.clip(values["age"], 18.0, 80.0)), 1),
        "sex": "F" if rng.random() < women else "M",
        "disease_duration": round(values["disease_duration"], 1),
        "dmt": int(rng.random() < treated) if patient else np.nan,
        "edss": float(np.clip(np.round(2.0 * values["edss"]) / 2.0, low, high)) + 0.0 if patient else np.nan,
        "t25fw_s": float(1.0 / np.clip(values["walking_speed"], 1.0 / 180.0, 0.5)) if patient else np.nan,
        "fatigue": float(np.clip(values["fatigue"], 1.0, 7.0)) if patient else np.nan,
    }
    for name in ("z9hpt", "z_verbal", "z_visual", "z_pasat", "z_sdmt", "z_brixton", "z_hayling", "nart_iq"):
        person[name] = values[name]
    for name in ("gmf", "wmf", "tiv_ml", "t2lv_ml", "t1lv_ml"):
        person[name] = values[name]
    person["t1lv_ml"] = min(values["t1lv_ml"], 0.9 * values["t2lv_ml"]) if group in {"RRMS", "SPMS"} else np.nan
    person["bpf"] = values["gmf"] + values["wmf"]
    return person


def _tissue_rows(
    rng: np.random.Generator, person: dict[str, Any], mmol_l: dict[str, float], shift: float, p: MsCohortParams
) -> list[dict[str, Any]]:
    tiv = person["tiv_ml"]
    volumes = {
        "CGM": 0.93 * person["gmf"] * tiv,
        "DGM": 0.07 * person["gmf"] * tiv,
        "NAWM": person["wmf"] * tiv,
        "CSF": (1.0 - person["bpf"]) * tiv,
        "T2lesion": person["t2lv_ml"],
        "T1iso": person["t2lv_ml"] - person["t1lv_ml"],
        "T1hypo": person["t1lv_ml"],
    }
    rows = []
    for tissue, value in {**mmol_l, "CSF": float(rng.normal(140.0, 3.0))}.items():
        se = _SE[tissue]
        error = float(rng.normal(0.0, se)) if p.measurement_error else 0.0
        for method, bias in _METHOD_BIAS.items():
            # less tissue, more CSF in its voxels: what a weak correction leaves grows with atrophy
            atrophy = 1.0 + 4.0 * (0.45 - person["gmf"]) if method in {"raw", "csf"} else 1.0
            rows.append(
                {
                    **person,
                    "tissue": tissue,
                    "method": method,
                    "tsc_mmol_l": value + shift + error + bias[tissue] * atrophy,
                    "tsc_se": se,
                    "sd_mmol_l": _SD[tissue],
                    "n_voxels": round(volumes[tissue] * 1000.0 / 27.0),
                    "volume_ml": volumes[tissue],
                    "csf_excluded_fraction": 0.05 if method == "csf" and tissue == "CGM" else 0.0,
                }
            )
    return rows
