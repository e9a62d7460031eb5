"""From the long group table to what analyses need: `Scans` of a stroke cohort, `Persons` of an MS cohort.

Reading is where cohorts differ from one another: units, missing scans, words for a sex or a group. Whatever is left
out here is kept with its reason.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_sodium.core.errors import DataError
from bids_sodium.group.results import listing, plural

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "METHODS",
    "TISSUE_COLUMN",
    "Persons",
    "Scans",
    "choose_method",
    "female",
    "numeric",
    "of_method",
    "persons",
    "scans",
]

METHODS = ("local", "glm", "gtm", "csf", "raw")
"""Partial-volume methods, the first present is the one analysed by default: ``local`` is the one to quote at the
participant level, the regions of lesions have ``gtm`` and ``raw``; any further method is taken by name only."""

_WOMEN = frozenset({"f", "female", "woman", "w"})
_MEN = frozenset({"m", "male", "man"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scans:
    """Regions of a stroke cohort, one row a participant, scan, region and contrast.

    Parameters
    ----------
    points : pandas.DataFrame
        Rows that enter: ``participant_id session_id t_h window roi contrast percent volume_ml``.
    volumes : pandas.DataFrame
        One row a participant, scan and region, of any size: ``participant_id session_id t_h window roi volume_ml``.
    clinical : pandas.DataFrame
        One row a participant and scan with every clinical column.
    excluded : pandas.DataFrame
        Rows that do not enter: ``participant_id session_id roi contrast reason``.
    method : str
        Partial-volume method of the rows, empty where the table names none.
    cells : pandas.DataFrame or None
        Rows of the participants' fate tables.
    raters : pandas.DataFrame or None
        Rows of the participants' tables of raters.
    """

    points: pd.DataFrame
    volumes: pd.DataFrame
    clinical: pd.DataFrame
    excluded: pd.DataFrame
    method: str
    cells: pd.DataFrame | None = None
    raters: pd.DataFrame | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Persons:
    """An MS cohort, one row a participant.

    Parameters
    ----------
    table : pandas.DataFrame
        Index ``participant_id``; ``group``, ``sexn`` (1 woman, 0 man), ``site`` where known, every number of the long
        table, and ``tsc_<tissue>`` in mmol/L.
    method : str
        Partial-volume method of the concentrations.
    excluded : pandas.DataFrame
        ``participant_id reason`` of rows that do not enter.
    notes : tuple of str
        What a reader must know of how the table was read.
    """

    table: pd.DataFrame
    method: str
    excluded: pd.DataFrame
    notes: tuple[str, ...]


def numeric(values: pd.Series, *, where: str) -> pd.Series:
    """Return a column as floats; ``n/a`` is missing.

    Raises
    ------
    DataError
        If an entry is no number, with the first one seen.

    Examples
    --------
    >>> import pandas as pd
    >>> numeric(pd.Series(["1.5", "n/a"]), where="x").tolist()
    [1.5, nan]
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values):
        return values.astype(float)
    text = values.astype("object").where(values.notna(), None)
    text = text.map(lambda v: None if isinstance(v, str) and v.strip().lower() in {"", "n/a", "na", "nan"} else v)
    found = pd.to_numeric(text, errors="coerce").astype(float)
    bad = found.isna() & text.notna()
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(values)} entries are no numbers, the first is {text[bad].iloc[0]!r}",
            where=where,
            hint="write plain numbers, with the unit in the sidecar, and n/a where a value is missing",
        )
    return found


def female(values: pd.Series) -> pd.Series:
    """Return 1 for a woman, 0 for a man, NaN where nothing is said.

    Raises
    ------
    DataError
        If an entry is neither; codes such as 1 and 2 say nothing by themselves.

    Examples
    --------
    >>> import pandas as pd
    >>> female(pd.Series(["F", "male", "n/a"])).tolist()
    [1.0, 0.0, nan]
    """
    word = values.astype("object").where(values.notna(), "n/a").map(lambda v: str(v).strip().lower())
    counts = word[~word.isin([*_WOMEN, *_MEN, "n/a", "", "o", "other"])].value_counts(sort=False).sort_index()
    if len(counts):
        raise DataError(
            f"the values {listing(f'{value} ({count} of {len(word)})' for value, count in counts.items())} are not "
            "known",
            where="column sex",
            hint="write F or M in participants.tsv, or what the codes mean as Levels in participants.json",
        )
    code = {**dict.fromkeys(_WOMEN, 1.0), **dict.fromkeys(_MEN, 0.0)}
    return word.map(code).astype(float)


def choose_method(table: pd.DataFrame, wanted: str) -> str:
    """Return the partial-volume method whose rows enter, one for all participants, so that all are read alike.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows with a column ``method``.
    wanted : str
        A method, or ``auto`` for the first of `METHODS` that any participant has.

    Raises
    ------
    DataError
        If no row has the method that is wanted.
    """
    found = [str(m) for m in table["method"].dropna().unique()] if "method" in table else []
    if wanted != "auto":
        if wanted not in found:
            raise DataError(
                f"no row has method {wanted}; found {', '.join(sorted(found)) or 'none'}",
                where="group table",
                hint="choose one of those",
            )
        return wanted
    best = [m for m in METHODS if m in found] or sorted(found)
    return best[0] if best else ""


def _require(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [c for c in columns if c not in table]
    if missing:
        raise DataError(
            f"missing column(s) {', '.join(missing)}; found {', '.join(map(str, table.columns)) or 'none'}",
            where="group table",
            hint="run the participant level first, or add the columns to the table",
        )


def scans(
    table: pd.DataFrame, *, method: str, early_h: tuple[float, float], late_h: tuple[float, float], minimum_ml: float
) -> Scans:
    """Return the scans of a stroke cohort.

    Parameters
    ----------
    table : pandas.DataFrame
        Long table in the form of ``group_tsc.tsv``.
    method : str
        Partial-volume method, or ``auto``.
    early_h, late_h : tuple of float
        Windows after onset, in h: above the first number, up to the second.
    minimum_ml : float
        Smallest region that enters, in mL.

    Raises
    ------
    DataError
        If a column that every analysis needs is absent, or no row belongs to a region.
    """
    import pandas as pd

    _require(table, ("participant_id", "session_id", "roi", "contrast", "percent_change", "onset_to_scan_h"))
    every = table.copy()
    every["t_h"] = numeric(every["onset_to_scan_h"], where="column onset_to_scan_h")
    every["window"] = np.select(
        [
            every["t_h"].between(*early_h, inclusive="right"),
            every["t_h"].between(*late_h, inclusive="right"),
            every["t_h"] > late_h[1],
        ],
        ["early", "late", "after"],
        default="",
    )
    # regions of an atlas (ATLAS:name) are no lesions
    of_lesions = every["roi"].notna() & ~every["roi"].isin(["n/a", ""]) & ~every["roi"].str.contains(":", na=False)
    rows = every[of_lesions].copy()
    if not len(rows):
        raise DataError("no row belongs to a region of interest", where="group table", hint="give lesion masks with -d")
    rows["reason"] = rows["reason"].fillna("").astype(str) if "reason" in rows else ""
    rows, chosen, without = _of_method(rows, method)
    rows["percent"] = numeric(rows["percent_change"], where="column percent_change")
    rows["volume_ml"] = numeric(rows["volume_ml"], where="column volume_ml") if "volume_ml" in rows else np.nan
    rows["kept"] = numeric(rows["kept"], where="column kept") if "kept" in rows else 1.0
    repeated = rows.duplicated(_REGION)
    if repeated.any():
        first = rows[repeated].iloc[0]
        raise DataError(
            f"{int(repeated.sum())} rows occur twice, the first is {first['participant_id']} {first['session_id']} "
            f"{first['roi']} {first['contrast']}",
            where="group table",
            hint="keep one row a participant, session, region and contrast",
        )
    why = _why_out(rows, minimum_ml, late_h[1])
    keep = why == ""
    columns = ["participant_id", "session_id", "t_h", "window", "roi", "contrast", "percent", "volume_ml"]
    excluded = pd.concat([rows.assign(reason=why)[~keep], without])[[*_REGION, "reason"]]
    volumes = (
        rows[rows["volume_ml"].notna()]
        .drop_duplicates(["participant_id", "session_id", "roi"])[[*columns[:5], "volume_ml"]]
        .reset_index(drop=True)
    )
    clinical = every.drop_duplicates(["participant_id", "session_id"]).reset_index(drop=True)
    return Scans(
        points=pd.DataFrame(rows[keep][columns]).reset_index(drop=True),
        volumes=volumes,
        clinical=clinical,
        excluded=excluded.reset_index(drop=True),
        method=chosen,
    )


_REGION = ["participant_id", "session_id", "roi", "contrast"]


def _of_method(rows: pd.DataFrame, wanted: str) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """Return the rows of the wanted method, what it is in words, and one row of every region that lacks it.

    A contrast that no row has by the wanted method keeps its best one, as the ADC, which nothing corrects.
    """
    import pandas as pd

    if "method" not in rows or not rows["method"].notna().any():
        return rows, "", rows.iloc[:0]
    choose_method(rows, wanted)  # a method that no row has is an error
    parts, named, lost = [], {}, []
    for contrast, block in rows.groupby("contrast", sort=False):
        chosen = _or_best(block, wanted)
        named[str(contrast)] = chosen
        own = (block["method"] == chosen) | block["method"].isna()
        parts.append(block[own])
        rest = block[~own].drop_duplicates(_REGION).set_index(_REGION, drop=False)
        rest = rest[~rest.index.isin(block[own].set_index(_REGION).index)]
        lost.append(rest.assign(reason=rest["reason"].where(rest["reason"] != "", f"no value by method {chosen}")))
    different = set(named.values())
    words = "; ".join(f"{name} of {contrast}" for contrast, name in named.items())
    return pd.concat(parts), different.pop() if len(different) == 1 else words, pd.concat(lost)


def _or_best(rows: pd.DataFrame, wanted: str) -> str:
    """Return the wanted method where rows have it, else their best one; empty where they name none."""
    has = "method" in rows and (rows["method"] == wanted).any()
    return choose_method(rows, wanted if has else "auto")


def of_method(rows: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """Return the rows of the wanted method where they have it, else of their best one.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows, with a column ``method`` or without.
    wanted : str
        A method, or ``auto``.
    """
    chosen = _or_best(rows, wanted)
    return rows[rows["method"] == chosen] if chosen else rows


def _why_out(rows: pd.DataFrame, minimum_ml: float, last_h: float) -> pd.Series:
    """Reason why a row does not enter, empty where it does."""
    import pandas as pd

    given = rows["reason"].where(rows["reason"] != "", "left out at the participant level")
    small = rows["volume_ml"] < minimum_ml
    conditions = [
        rows["kept"] == 0,
        small,
        rows["percent"].isna(),
        rows["t_h"].isna(),
        rows["t_h"] <= 0,
        rows["t_h"] > last_h,
    ]
    reasons = [
        given,
        rows["volume_ml"].map(lambda v: f"volume {v:.2f} mL is below {minimum_ml:g} mL"),
        pd.Series("no percentage change", index=rows.index),
        pd.Series("no time from onset to scan", index=rows.index),
        rows["t_h"].map(lambda t: f"scanned {t:g} h after onset, which is not after onset"),
        rows["t_h"].map(lambda t: f"scanned {t:g} h after onset, later than {last_h:g} h"),
    ]
    return pd.Series(np.select(conditions, reasons, default=""), index=rows.index)


TISSUE_COLUMN = {
    "CGM": "tsc_cgm", "DGM": "tsc_dgm", "GM": "tsc_gm", "NAWM": "tsc_nawm", "WM": "tsc_wm", "CSF": "tsc_csf",
    "T2lesion": "tsc_t2lesion", "T1iso": "tsc_t1iso", "T1hypo": "tsc_t1hypo",
}  # fmt: skip
"""Tissue and the name of its concentration among a person's numbers."""

_ROW_COLUMNS = frozenset(
    {"tissue", "method", "tsc_mmol_l", "tsc_se", "sd_mmol_l", "n_voxels", "volume_ml", "csf_excluded_fraction", "roi",
     "contrast", "ipsi", "contra", "percent_change", "ipsi_sd", "contra_sd", "kept", "reason", "session_id"}
)  # fmt: skip
_WORDS = frozenset({"participant_id", "group", "sex", "site"})


def persons(
    table: pd.DataFrame,
    *,
    method: str,
    group_aliases: tuple[tuple[str, str], ...] = (),
    used: Collection[str] | None = None,
) -> Persons:
    """Return an MS cohort, one row a participant; of several sessions the first enters.

    Parameters
    ----------
    table : pandas.DataFrame
        Long table in the form of ``group_tsc.tsv``.
    method : str
        Partial-volume method, or ``auto``.
    group_aliases : tuple of (str, str)
        Label in the table and the name it stands for.
    used : collection of str, optional
        Columns that are told where they hold no numbers, all by default: a table may hold words of no concern here.

    Raises
    ------
    DataError
        If a column that every analysis needs is absent, no row belongs to a tissue, or one row occurs twice.
    """
    import pandas as pd

    _require(table, ("participant_id", "tissue", "tsc_mmol_l"))
    _require_groups(table)
    rows = table[table["tissue"].notna() & ~table["tissue"].isin(["n/a", ""])].copy()
    if not len(rows):
        raise DataError("no row belongs to a tissue", where="group table", hint="run the participant level first")
    chosen = choose_method(rows, method)
    left: list[tuple[str, str]] = []
    if chosen:
        own = rows["method"] == chosen
        other = rows[~rows["participant_id"].isin(rows.loc[own, "participant_id"])]
        for who, names in other.groupby("participant_id")["method"].unique().items():
            told = listing(sorted(str(name) for name in names))
            left.append((str(who), f"no concentration by method {chosen}; has {told}"))
        rows = rows[own]
    notes: list[str] = []
    if "session_id" in rows:
        earliest = _of_first_session(rows)
        later = rows.loc[~earliest, "participant_id"].nunique()
        if later:
            notes.append(f"only the first session of {plural(later, 'participant')} with several entered")
        rows = rows[earliest]
    repeated = rows.duplicated(["participant_id", "tissue"])
    if repeated.any():
        at = rows[repeated].iloc[0]
        raise DataError(
            f"{int(repeated.sum())} rows occur twice, the first is {at['participant_id']} {at['tissue']} {chosen}",
            where="group table",
            hint="keep one row a participant, session, tissue and method",
        )
    rows["tsc_mmol_l"] = numeric(rows["tsc_mmol_l"], where="column tsc_mmol_l")
    wide = rows.pivot_table(index="participant_id", columns="tissue", values="tsc_mmol_l", sort=True)
    wide = wide.rename(columns=lambda t: TISSUE_COLUMN.get(str(t), f"tsc_{str(t).lower()}"))
    wide.columns.name = None
    people = rows.drop_duplicates("participant_id").set_index("participant_id").sort_index()
    out = pd.DataFrame(index=people.index)
    out["group"] = _groups(people["group"], group_aliases)
    if "site" in people:
        out["site"] = people["site"].where(people["site"].notna() & (people["site"] != "n/a"))
    if "sex" in people:
        try:
            out["sexn"] = female(people["sex"])
        except DataError as error:
            notes.append(f"sex could not be read: {error.what} ({error.hint})")
    for column in people.columns.difference([*_ROW_COLUMNS, *_WORDS, *wide.columns], sort=False):
        try:
            out[column] = numeric(people[column], where=f"column {column}")
        except DataError as error:
            if used is None or column in used:
                notes.append(f"{column} could not be read: {error.what}")
    out = out.join(wide)
    atlas = _atlas(table, method)
    if len(atlas.columns):
        out = out.join(atlas)
    without = out["group"].isna()
    left += [(str(who), "no group in participants.tsv") for who in out.index[without]]
    excluded = pd.DataFrame(left, columns=["participant_id", "reason"])
    return Persons(table=out[~without].copy(), method=chosen, excluded=excluded, notes=tuple(notes))


def _require_groups(table: pd.DataFrame) -> None:
    if "group" not in table or not (table["group"].notna() & (table["group"] != "n/a")).any():
        raise DataError(
            f"nobody of {table['participant_id'].nunique()} participants has a group",
            where="group table",
            hint="name everyone's group in the column group of participants.tsv",
        )


def _of_first_session(rows: pd.DataFrame) -> pd.Series:
    """Return which rows belong to their participant's first session."""
    # numbers in the order of the names: groups of text are compared one by one
    order = rows["session_id"].fillna("n/a").astype(str).astype("category").cat.codes
    return order == order.groupby(rows["participant_id"]).transform("min")


def _atlas(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the concentrations of an atlas's regions, ``tsc_<atlas>:<region>``, of the first session."""
    import pandas as pd

    if not {"roi", "contrast", "ipsi"} <= set(table.columns):
        return pd.DataFrame()
    rows = table[(table["contrast"] == "tsc") & table["roi"].astype(str).str.contains(":", regex=False)]
    rows = of_method(rows, method)
    if not len(rows):
        return pd.DataFrame()
    rows = rows.assign(value=numeric(rows["ipsi"], where="column ipsi"))
    rows = rows[_of_first_session(rows)] if "session_id" in rows else rows
    if "kept" in rows:
        rows.loc[numeric(rows["kept"], where="column kept") == 0, "value"] = np.nan
    wide = rows.pivot_table(index="participant_id", columns="roi", values="value", aggfunc="first", sort=True)
    wide.columns = pd.Index([f"tsc_{roi}" for roi in wide.columns])
    return wide


_ALIASES = {
    "hc": "HC", "control": "HC", "controls": "HC", "healthy": "HC", "healthy control": "HC", "cis": "CIS",
    "rrms": "RRMS", "rr": "RRMS", "relapsing-remitting": "RRMS", "spms": "SPMS", "sp": "SPMS",
    "secondary progressive": "SPMS", "ppms": "PPMS", "ms": "MS",
}  # fmt: skip


def _groups(values: pd.Series, aliases: tuple[tuple[str, str], ...]) -> pd.Series:
    names = {**_ALIASES, **{label.strip().lower(): name for label, name in aliases}}
    word = values.where(values.notna() & (values != "n/a"))
    return word.map(lambda v: names.get(str(v).strip().lower(), str(v)), na_action="ignore")
