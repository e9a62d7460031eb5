"""What the numbers and maps of other segmentation programs mean in tissues.

Nouns: a *tissue* is one of ``CGM`` (cortex, cerebellar cortex, hippocampus, amygdala), ``DGM`` (thalamus, caudate,
putamen, pallidum, accumbens), ``GM`` (grey matter that is not split), ``NAWM`` (white matter, brain stem), ``CSF``,
``ventricle`` (the part of CSF that every program labels) and ``none`` (outside the brain); *labels* are an image of
numbers, *maps* are shares or probabilities of a tissue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.errors import DataError, GeometryError

__all__ = [
    "BIDS",
    "FAST",
    "FREESURFER",
    "GIF",
    "check_contrast",
    "checked",
    "explained",
    "split",
    "tissue_of_name",
    "tissues_of",
]

Array: TypeAlias = NDArray[np.float32]


def _freesurfer() -> dict[int, str]:
    of = {
        "ventricle": (4, 5, 14, 15, 31, 43, 44, 63, 72),
        "CSF": (24, 30, 62, 257),
        "CGM": (3, 8, 17, 18, 19, 20, 42, 47, 53, 54, 55, 56, 96, 97, 172),
        "DGM": (9, 10, 11, 12, 13, 26, 27, 48, 49, 50, 51, 52, 58, 59),
        # lesions that a program found are white matter until a mask says otherwise
        "NAWM": (2, 7, 16, 25, 28, 41, 46, 57, 60, 77, 78, 79, 80, 81, 82, 85, 99, 173, 174, 175, 192, 5001, 5002),
        "none": (1, 6, 29, 40, 45, 61, 165, 258, 259),
    }  # fmt: skip
    spans = (
        ("CGM", 1000, 1035), ("CGM", 2000, 2035), ("CGM", 11100, 11175), ("CGM", 12100, 12175),
        ("NAWM", 250, 255), ("NAWM", 3000, 3035), ("NAWM", 4000, 4035), ("NAWM", 13100, 13175), ("NAWM", 14100, 14175),
        ("DGM", 8103, 8134), ("DGM", 8203, 8234),
    )  # fmt: skip
    numbers = {number: tissue for tissue, group in of.items() for number in group}
    return numbers | {number: tissue for tissue, first, last in spans for number in range(first, last + 1)}


FREESURFER: Mapping[int, str] = MappingProxyType(_freesurfer())
"""Tissue of the numbers of FreeSurfer's colour table, which FastSurfer, SynthSeg, SAMSEG and FIRST share."""

BIDS: Mapping[int, str] = MappingProxyType(
    {1: "GM", 2: "NAWM", 3: "CSF", 4: "none", 5: "none", 6: "none", 7: "NAWM", 8: "CGM", 9: "DGM", 10: "NAWM"}
)
"""Tissue of the numbers that BIDS derivatives give to common labels."""

FAST: Mapping[int, str] = MappingProxyType({1: "CSF", 2: "GM", 3: "NAWM"})
"""Tissue of the classes of FSL FAST on a T1w image, dark to bright."""

GIF: tuple[str, ...] = ("none", "CSF", "CGM", "NAWM", "DGM", "NAWM", "none", "none", "none")
"""Tissue of the volumes of a GIF segmentation: outer tissue, CSF, cortical grey, white, deep grey, brain stem, and (in
version 3) three classes outside the brain."""

_WORDS = (
    (
        "none",
        (
            "background|unknown|skull|scalp|bone|non ?brain|outer tissue|soft tissue|exterior|undetermined"
            r"|\bair\b|\beyes?\b|dura"
        ),
    ),
    ("ventricle", r"(?<!non )ventric|\bvent\b|choroid"),
    ("CSF", r"\bcsf\b|cerebro ?spinal|cerebral spinal|\bfluid\b|vessel"),
    (
        "NAWM",
        (
            r"^wm\b|white|\bna?wm\b|corpus ?callosum|^cc\b|brain ?stem|\bpons\b|midbrain|medulla|ventral ?dc|chiasm"
            "|fornix|hypointensit|lesion"
        ),
    ),
    (
        "DGM",
        (
            "thalamus|thalamic|caudate|putamen|pallid|accumbens|basal gangli|substan[tc]ia nigra|deep gr[ea]y"
            r"|sub ?cortical gr[ea]y|\bdgm\b|\bsc?gm\b"
        ),
    ),
    (
        "CGM",
        r"^ctx\b|cortex|cortical gr[ea]y|\bcgm\b|hippocamp|amygdala|insula|operculum|gyrus|sulcus|lobule|vermis",
    ),
    ("GM", r"gr[ea]y ?matter|\bgm\b"),
)


def tissue_of_name(name: str) -> str | None:
    """Return the tissue that a label's name speaks of, ``None`` where it names none.

    Examples
    --------
    >>> [tissue_of_name(n) for n in ("Left-Thalamus", "ctx-lh-insula", "WM", "Right-Inf-Lat-Vent", "GM", "blob")]
    ['DGM', 'CGM', 'NAWM', 'ventricle', 'GM', None]
    """
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()
    return next((tissue for tissue, pattern in _WORDS if re.search(pattern, words)), None)


def tissues_of(counts: Mapping[int, int], names: Mapping[int, str] | None = None) -> dict[int, str]:
    """Return the tissue of every number of a label image.

    Parameters
    ----------
    counts : mapping of int to int
        Voxels by number; 0 is background.
    names : mapping of int to str, optional
        Table of the labels; without it the numbers must be those of FreeSurfer.

    Returns
    -------
    dict of int to str
        Tissue by number.

    Raises
    ------
    DataError
        If a label's name says no tissue, or the numbers without a table are not recognised.

    Examples
    --------
    >>> tissues_of({0: 900, 2: 50, 3: 60, 41: 50, 42: 60, 10: 5, 4: 5})[10]
    'DGM'
    """
    present = {number: count for number, count in counts.items() if number != 0 and count > 0}
    total = sum(present.values())
    if total == 0:
        raise DataError("the label image is empty", hint="look at it in a viewer")
    if names is not None:
        found = {number: tissue_of_name(names[number]) if number in names else None for number in present}
    else:
        found = {number: FREESURFER.get(number) for number in present}
    odd = sorted((number for number, tissue in found.items() if tissue is None), key=lambda n: -present[n])
    share = sum(present[number] for number in odd) / total
    listing = ", ".join(f"{n} {names[n]!r}" if names is not None and n in names else str(n) for n in odd[:6])
    if names is not None and share > 0.005:
        raise DataError(
            f"{100 * share:.1f} % of the labelled voxels have labels whose tissue is unknown: {listing}",
            hint="name them in the table, for example 'left thalamus' or 'white matter'",
        )
    if names is None:
        white, grey = present.keys() & {2, 41}, [n for n in present if n in {3, 42} or FREESURFER.get(n) == "CGM"]
        fluid = present.keys() & {4, 43}
        if share > 0.005 or not (white and grey and fluid):
            seen = ", ".join(str(number) for number in sorted(present)[:8]) + (" ..." if len(present) > 8 else "")
            raise DataError(
                f"the label image has no table and its numbers ({seen}) are not FreeSurfer's",
                hint="put a table with the columns index and name beside it, with the ending _dseg.tsv",
            )
    return {number: tissue for number, tissue in found.items() if tissue is not None}


def _sum(arrays: Sequence[Array]) -> Array:
    return np.asarray(np.sum(np.stack(arrays), axis=0), dtype=np.float32)


def checked(maps: Mapping[str, NDArray[np.floating]]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return maps as shares between 0 and 1 that add up to at most 1, and notes on what was done to them.

    Parameters
    ----------
    maps : mapping of str to (nx, ny, nz) ndarray
        Maps of all tissues; 0 to 1, or 0 to 100 or 255 where their sum says so.

    Returns
    -------
    maps : dict of str to (nx, ny, nz) ndarray
        Shares, float32.
    notes : tuple of str
        What was rescaled.

    Raises
    ------
    DataError
        If there are values that are not finite, negative or too large, or the sum is not that of shares.

    Examples
    --------
    >>> whole, notes = checked({"GM": np.full((4, 4, 4), 153.0), "NAWM": np.full((4, 4, 4), 102.0)})
    >>> round(float(whole["GM"][0, 0, 0]), 2), notes
    (0.6, ('the maps add up to 255 and were divided by it',))
    """
    arrays = {name: np.asarray(data, dtype=np.float32) for name, data in maps.items()}
    for name, data in arrays.items():
        bad = int((~np.isfinite(data)).sum())
        if bad:
            raise DataError(
                f"the map of {name} has {bad} voxels ({100 * bad / data.size:.1f} %) that are NaN or infinite",
                hint="write zeros outside the brain",
            )
    total = _sum(list(arrays.values()))
    low, top = min(float(data.min()) for data in arrays.values()), float(total.max())
    if not top > 0.0:
        raise DataError("the tissue maps are empty", hint="look at them in a viewer")
    if low < -0.01 * top:
        raise DataError(f"the tissue maps go down to {low:.3g}", hint="give shares between 0 and 1")
    typical = float(np.median(total[total > 0.5 * top]))
    notes: tuple[str, ...] = ()
    for full in (255.0, 100.0):
        if abs(typical / full - 1.0) < 0.02 and top < 1.02 * full:
            arrays = {name: data / np.float32(full) for name, data in arrays.items()}
            total, typical, top = total / np.float32(full), typical / full, top / full
            notes = (f"the maps add up to {full:g} and were divided by it",)
    # rounding and interpolation make 1.01 or 1.02
    over = float((total > 1.05).sum()) / float((total > 0.5).sum() or 1)
    if typical > 1.05 or over > 0.01:
        raise DataError(
            f"the tissue maps add up to {typical:.3g} in most voxels and to {top:.3g} at most",
            hint="give shares of each voxel, or probabilities, that add up to 1",
        )
    scale = np.float32(1.0) / np.maximum(total, np.float32(1.0))
    return {name: np.asarray(np.clip(data, 0.0, 1.0) * scale, np.float32) for name, data in arrays.items()}, notes


def split(maps: Mapping[str, Array], deep: NDArray[np.floating]) -> dict[str, Array]:
    """Return CGM, DGM, NAWM and CSF of maps that may hold unsplit grey matter.

    Parameters
    ----------
    maps : mapping of str to (nx, ny, nz) ndarray
        Shares of ``CGM``, ``DGM``, ``GM``, ``NAWM``, ``CSF`` and ``ventricle``, as far as they are known.
    deep : (nx, ny, nz) ndarray
        Share of the tissue that is deep grey matter, 0 to 1; used where there is no map of DGM. A nucleus is one
        tissue: what of it passes for white matter (thalamus, pallidum) belongs to it too.

    Returns
    -------
    dict of str to (nx, ny, nz) ndarray
        The four tissues.

    Raises
    ------
    DataError
        If grey or white matter or CSF is missing.

    Examples
    --------
    >>> whole = np.ones((2, 2, 2), np.float32)
    >>> parts = split({"GM": 0.5 * whole, "NAWM": 0.3 * whole, "CSF": 0.2 * whole}, 0.5 * whole)
    >>> [round(float(parts[name][0, 0, 0]), 2) for name in ("CGM", "DGM", "NAWM", "CSF")]
    [0.25, 0.4, 0.15, 0.2]
    """
    grey = [maps[name] for name in ("CGM", "GM") if name in maps]
    fluid = [maps[name] for name in ("CSF", "ventricle") if name in maps]
    missing = [
        word for word, there in (("grey matter", grey), ("white matter", "NAWM" in maps), ("CSF", fluid)) if not there
    ]
    if missing:
        raise DataError(
            f"the external segmentation lacks {' and '.join(missing)}; it has {', '.join(sorted(maps)) or 'nothing'}",
            hint="give grey matter, white matter and CSF",
        )
    cortex, white, csf = _sum(grey), maps["NAWM"], _sum(fluid)
    if "DGM" in maps:
        return {"CGM": cortex, "DGM": maps["DGM"], "NAWM": white, "CSF": csf}
    share = np.asarray(deep, dtype=np.float32)
    return {
        "CGM": cortex * (1.0 - share),
        "DGM": (cortex + white) * share,
        "NAWM": white * (1.0 - share),
        "CSF": csf,
    }


def check_contrast(fractions: Mapping[str, Array], image: NDArray[np.floating]) -> None:
    """Refuse tissues that do not fit the T1w image they should be of: CSF dark, cortex between, white matter bright.

    Parameters
    ----------
    fractions : mapping of str to (nx, ny, nz) ndarray
        ``CGM``, ``NAWM`` and ``CSF``.
    image : (nx, ny, nz) ndarray
        T1-weighted image.

    Raises
    ------
    GeometryError
        If the mean intensities are in another order.

    Examples
    --------
    >>> x = np.arange(27.0).reshape(3, 3, 3) // 9
    >>> check_contrast({"CSF": x == 0, "CGM": x == 1, "NAWM": x == 2}, x)
    """
    y = np.nan_to_num(np.asarray(image, dtype=np.float64))
    means = {}
    for name in ("CSF", "CGM", "NAWM"):
        weight = np.asarray(fractions[name], dtype=np.float64)
        means[name] = float((weight * y).sum() / weight.sum()) if weight.sum() > 0 else float("nan")
    if not means["CSF"] < means["CGM"] < means["NAWM"]:
        seen = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        raise GeometryError(
            f"the external tissues do not fit the T1w image, whose mean intensities under them are {seen}",
            hint="check that they are of this image, in its space, and which map is which",
        )


def explained(maps: Sequence[NDArray[np.floating]], image: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """Return the share of an image's variance in a mask that a weighted sum of maps accounts for.

    Parameters
    ----------
    maps : sequence of (nx, ny, nz) ndarray
        Tissue fractions.
    image : (nx, ny, nz) ndarray
        Image; what is not finite counts as 0.
    mask : (nx, ny, nz) ndarray of bool
        Where to look.

    Returns
    -------
    float
        ``1 - |y - X b|^2 / |y - mean y|^2`` with ``b`` by least squares and ``X`` the maps and a constant.

    Examples
    --------
    >>> x = np.arange(27.0).reshape(3, 3, 3)
    >>> round(explained([x > 13], np.where(x > 13, 5.0, 2.0), x >= 0), 6)
    1.0
    """
    y = np.nan_to_num(np.asarray(image[mask], dtype=np.float64))
    y = y - y.mean()
    x = np.stack([np.asarray(data[mask], dtype=np.float64) for data in maps], axis=1)
    x = x - x.mean(axis=0)
    total = float(y @ y)
    if total == 0.0:
        raise DataError("the T1w image is constant where the brain should be")
    fit = x.T @ y
    return float(fit @ np.linalg.pinv(x.T @ x) @ fit) / total
