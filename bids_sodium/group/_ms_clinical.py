"""Clinical scores on one scale: timed walks as speeds, raw scores as z through the user's norms.

z = (raw - mean) / SD of the norms of a person's age, sex and education, turned round where a lower score is better, so
that a lower z is always worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import NORMS
from bids_sodium.group.results import listing, plural
from bids_sodium.group.rows import female, numeric

if TYPE_CHECKING:
    import pandas as pd

    from bids_sodium.group._ms_view import MsParams

__all__ = ["clinical", "columns", "scores", "with_norms"]

_FEET = 25.0  # length of the timed walk
_TYPICAL_Z = 4.0  # the middle of a column of z scores lies nearer to zero than this, even in progressive MS
_EXTREME_Z = 10.0  # a z score beyond this is worth a second look
_WALK = ("t25fw", "t25fw_time", "twt_s", "timed_walk_s")
_EDUCATION = ("education", "education_years", "years_of_education")
_PLAIN = ("age", "disease_duration", "dmt", "bpf", "gmf", "wmf", "tiv_ml", "t2lv_ml", "t1lv_ml", "t25fw_s")
_Z = {
    **dict.fromkeys(("9hpt", "9hpt_s", "nhpt", "nhpt_s"), "z9hpt"),
    **dict.fromkeys(("verbal", "verbal_memory"), "z_verbal"),
    **dict.fromkeys(("visual", "visual_memory"), "z_visual"),
    **dict.fromkeys(("fss", "fatigue"), "z_fatigue"),
    **dict.fromkeys(("nart", "nart_iq"), "z_nart"),
}


def columns(p: MsParams, norms: pd.DataFrame | None) -> frozenset[str]:
    """Return the columns of a person that the study reads as numbers.

    Parameters
    ----------
    p : MsParams
        Names of the scores, candidates and covariates.
    norms : pandas.DataFrame, optional
        Norms; their raw scores are read too.

    Examples
    --------
    >>> from bids_sodium.group._ms_view import MsParams
    >>> "fss" in columns(MsParams(), None), "handedness" in columns(MsParams(), None)
    (True, False)
    """
    named = (*p.disability, *p.cognition, p.premorbid, *p.candidates_all, *p.candidates_ms, *p.forced_all, *p.forced_ms)
    raw = [] if norms is None or "score" not in norms else [str(name) for name in norms["score"]]
    return frozenset((*named, *p.sensitivity, *p.region_covariates, *_PLAIN, *_WALK, *_EDUCATION, *_Z, *raw))


def clinical(people: pd.DataFrame) -> pd.DataFrame:
    """Return the table with timed walks as speeds and the fatigue score under one name.

    ``walking_speed`` in 1/s is the inverse of the timed 25-foot walk ``t25fw_s``, ``walking_speed_ft_s`` is 25 ft over
    it; a walk that cannot be done has speed 0 where it is written as ``inf``. ``fss`` is read as ``fatigue``.

    Parameters
    ----------
    people : pandas.DataFrame
        One row a participant.

    Raises
    ------
    DataError
        If a timed walk is not positive.

    Examples
    --------
    >>> import pandas as pd
    >>> clinical(pd.DataFrame({"t25fw_s": [5.0]}))[["walking_speed", "walking_speed_ft_s"]].iloc[0].tolist()
    [0.2, 5.0]
    """
    out = people.copy()
    if "t25fw_s" in out:
        walk = out["t25fw_s"]
        if (walk <= 0).any():
            raise DataError(
                f"{int((walk <= 0).sum())} timed walks are not positive (smallest {walk.min():g} s)",
                where="column t25fw_s",
                hint="write the seconds, and n/a where the walk was not timed",
            )
        if "walking_speed" not in out:
            out["walking_speed"] = 1.0 / walk
    if "walking_speed" in out:
        out["walking_speed_ft_s"] = _FEET * out["walking_speed"]
    if "fatigue" not in out and "fss" in out:
        out["fatigue"] = out["fss"]
    return out


def scores(people: pd.DataFrame, p: MsParams, norms: pd.DataFrame | None) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with every score that can be had, and what a reader must know of them.

    Parameters
    ----------
    people : pandas.DataFrame
        One row a participant, numbers as floats.
    p : MsParams
        Names of the scores.
    norms : pandas.DataFrame, optional
        Norms in the form of `bids_sodium.core.tables.NORMS`.

    Raises
    ------
    DataError
        If the norms cannot be used.
    """
    notes: list[str] = []
    walk = next((name for name in _WALK if name in people), None)
    if walk is not None and "t25fw_s" not in people:
        people = people.rename(columns={walk: "t25fw_s"})
    if norms is not None:
        people, notes = with_norms(people, norms)
    try:
        people = clinical(people)
    except DataError as error:
        notes.append(f"the timed walk was left out: {error.what}")
        people = clinical(people.drop(columns="t25fw_s"))
    for wanted, others in (("fatigue", ("z_fatigue",)), (p.premorbid, ("z_nart", "nart"))):
        found = next((name for name in others if name in people), None)
        if wanted not in people and found is not None:
            people = people.assign(**{wanted: people[found]})
            notes.append(f"{found} stands for {wanted}, which the tables do not hold")
    people, raw = _drop_raw(people, p)
    return people, [*notes, *raw]


def with_norms(people: pd.DataFrame, norms: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with z scores of every raw score that has norms, and notes on those that have none.

    Parameters
    ----------
    people : pandas.DataFrame
        One row a participant: the raw scores, and ``age``, ``sexn`` (1 woman), ``education`` in years where the norms
        ask for them.
    norms : pandas.DataFrame
        One row a stratum of `bids_sodium.core.tables.NORMS`.

    Raises
    ------
    DataError
        If the norms lack a column. A score whose norms cannot be used is left out with a note.

    Examples
    --------
    >>> import pandas as pd
    >>> norms = pd.DataFrame({"score": ["sdmt"], "mean": [50.0], "sd": [10.0], "age_low": [18], "age_high": [60]})
    >>> with_norms(pd.DataFrame({"sdmt": [30.0], "age": [45.5]}), norms)[0]["z_sdmt"].tolist()
    [-2.0]
    """
    NORMS.require(norms.columns, where="norms", columns=("score", "mean", "sd"))
    out, notes = people.copy(), []
    for name, strata in norms.groupby("score", sort=False):
        score = str(name)
        target = _target(strata, score)
        if score not in out:
            notes.append(f"norms of {score}: the tables hold no column {score}")
            continue
        if target in out:
            notes.append(f"{target} is given, so the norms of {score} were not used")
            continue
        try:
            z, without = _z(out, strata, score)
        except DataError as error:
            notes.append(f"the norms of {score} were not used: {error.what}")
            continue
        if np.isfinite(z).any() and abs(float(np.nanmedian(z))) > _TYPICAL_Z:
            raw = out[score].dropna()
            notes.append(
                f"{score} runs from {raw.min():g} to {raw.max():g} in {plural(len(raw), 'participant')}, by its norms "
                f"{np.nanmedian(z):.2g} SD from their mean on the middle: it is no raw score, or in another unit, and "
                f"{target} was left out"
            )
            continue
        out[target] = z
        if without:
            notes.append(f"{plural(without, 'value')} of {score} fit no stratum of the norms and have no z score")
    return out, notes


def _target(strata: pd.DataFrame, score: str) -> str:
    given = [str(v) for v in strata["z"].dropna().unique()] if "z" in strata else []
    given = [v for v in given if v not in {"", "n/a"}]
    if len(given) > 1:
        raise DataError(f"{score} becomes {listing(given)}", where="norms", hint="give one name in column z")
    return given[0] if given else _Z.get(score, f"z_{score}")


def _z(people: pd.DataFrame, strata: pd.DataFrame, score: str) -> tuple[np.ndarray[Any, Any], int]:
    """Return the z scores, NaN where no stratum fits, and how many that are."""
    raw = people[score].to_numpy(dtype=np.float64)
    z = np.full(raw.size, np.nan)
    hits = np.zeros(raw.size, dtype=int)
    numbers = {name: numeric(strata[name], where=f"norms, column {name}") for name in strata if name in _NUMBERS}
    if numbers["mean"].isna().any() or not (numbers["sd"] > 0).all():
        raise DataError(f"a mean is missing or an SD is not positive in the norms of {score}", where="norms")
    women = female(strata["sex"].replace({"both": "n/a", "any": "n/a"})) if "sex" in strata else None
    for i, (index, stratum) in enumerate(strata.iterrows()):
        inside = np.ones(raw.size, dtype=bool)
        for what in ("age", "education"):
            low, high = (numbers[f"{what}_{end}"].iloc[i] if f"{what}_{end}" in numbers else np.nan for end in _ENDS)
            if not (np.isnan(low) and np.isnan(high)):
                # strata are written in whole years, so that 29.6 belongs to 20-29
                years = np.floor(_years(people, what, score))
                inside &= (years >= (-np.inf if np.isnan(low) else low)) & (
                    years <= (np.inf if np.isnan(high) else high)
                )
        if women is not None and not np.isnan(women.iloc[i]):
            if "sexn" not in people:
                raise DataError(f"the norms of {score} differ by sex, which is not known", where="norms")
            inside &= people["sexn"].to_numpy(dtype=np.float64) == women.iloc[i]
        hits += inside
        if (hits > 1).any():
            raise DataError(
                f"{int((hits > 1).sum())} people fit two strata of the norms of {score}, the second in row {index}",
                where="norms",
                hint="let the ranges of age and education not overlap",
            )
        sign = -1.0 if "better" in strata and str(stratum["better"]).strip().lower() == "lower" else 1.0
        z[inside] = sign * (raw[inside] - numbers["mean"].iloc[i]) / numbers["sd"].iloc[i]
    return z, int((~np.isnan(raw) & np.isnan(z)).sum())


_ENDS = ("low", "high")
_NUMBERS = frozenset({"mean", "sd", *(f"{what}_{end}" for what in ("age", "education") for end in _ENDS)})


def _years(people: pd.DataFrame, what: str, score: str) -> np.ndarray[Any, Any]:
    found = next((name for name in (_EDUCATION if what == "education" else ("age",)) if name in people), None)
    if found is None:
        raise DataError(f"the norms of {score} differ by {what}, which the tables do not hold", where="norms")
    return people[found].to_numpy(dtype=np.float64)


def _drop_raw(people: pd.DataFrame, p: MsParams) -> tuple[pd.DataFrame, list[str]]:
    """Leave out columns named as z scores that cannot be any."""
    notes = []
    for name in (*p.cognition, *p.disability):
        if not name.startswith("z") or name not in people or not people[name].notna().any():
            continue
        values = people[name].dropna()
        low, high, middle = values.min(), values.max(), values.median()
        if abs(middle) > _TYPICAL_Z:
            notes.append(
                f"{name} runs from {low:g} to {high:g} with median {middle:g} in {plural(len(values), 'participant')}, "
                "which are no z scores; it was left out (write raw scores under another name, and give --norms)"
            )
            people = people.drop(columns=name)
        elif max(-low, high) > _EXTREME_Z:
            count = int((values.abs() > _EXTREME_Z).sum())
            notes.append(f"{name}: {plural(count, 'value')} beyond {_EXTREME_Z:g} SD, from {low:g} to {high:g}")
    return people, notes
