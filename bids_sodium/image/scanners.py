"""Scanner factors: what a travelling phantom says of scanners that read one concentration differently.

A phantom of known content read as ``m`` on a scanner gives the factor ``truth / m``; a scanner's concentrations are
multiplied with it. Where the content is not known, factors are relative to the mean of the scanners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bids_sodium.core.errors import DataError, EstimationError
from bids_sodium.image.calibration import Scale

__all__ = ["ScannerFactor", "scanner_factors", "with_scanner_factor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannerFactor:
    """What the concentrations of one scanner are multiplied with.

    Parameters
    ----------
    scanner : str
        Name of the scanner or site.
    factor, se : float
        Factor and its standard error.
    n : int
        Readings it stands on.
    source : str
        ``"known content"``, ``"relative to the mean of the scanners"`` or ``"table"``.
    """

    scanner: str
    factor: float
    se: float
    n: int
    source: str


def scanner_factors(rows: Sequence[Mapping[str, Any]], *, where: str) -> dict[str, ScannerFactor]:
    r"""Return the factor of every scanner from a table of a travelling phantom.

    Rows with ``factor`` (and ``factor_se``) are taken as they are. Rows with ``measured_mmol_l`` of a ``phantom`` are
    fitted, :math:`\log m_{sp} = \log c_p - \log F_s`, by weighted least squares; ``true_mmol_l`` fixes :math:`c_p`.

    Parameters
    ----------
    rows : sequence of mapping
        ``scanner`` (or ``site``) and either ``factor`` and ``factor_se``, or ``measured_mmol_l``, ``measured_se`` and,
        where they are known, ``phantom`` and ``true_mmol_l``.
    where : str
        File they were read from, for messages.

    Returns
    -------
    dict of str to ScannerFactor
        By name of the scanner.

    Raises
    ------
    DataError
        If a row has no scanner or no positive number.
    EstimationError
        If the readings do not determine the factors, as with a phantom of unknown content on one scanner only.

    References
    ----------
    Riemer F et al. Bias and precision in magnetic resonance imaging-based estimates of sodium between sites:
    repeatability 2-4 %, between sites 3 % (2019).

    Examples
    --------
    >>> rows = [{"scanner": "A", "phantom": "p", "measured_mmol_l": 50, "measured_se": 1, "true_mmol_l": 55}]
    >>> factor = scanner_factors(rows, where="scanners.tsv")["A"]
    >>> round(factor.factor, 3), round(factor.se, 3)
    (1.1, 0.022)
    """
    stated: dict[str, ScannerFactor] = {}
    readings: list[tuple[str, str, float, float, float]] = []
    for row in rows:
        scanner = _name(row.get("scanner", row.get("site")))
        if scanner is None:
            raise DataError("a row names no scanner", where=where, hint="add a column scanner or site")
        factor = _positive(row.get("factor"), "factor", where)
        if factor is not None:
            if scanner in stated:
                raise DataError(f"scanner {scanner} has two factors", where=where, hint="keep one row a scanner")
            se = _positive(row.get("factor_se"), "factor_se", where)
            stated[scanner] = ScannerFactor(scanner=scanner, factor=factor, se=se or 0.0, n=1, source="table")
            continue
        measured = _positive(row.get("measured_mmol_l"), "measured_mmol_l", where)
        if measured is None:
            raise DataError(
                f"scanner {scanner} has neither factor nor measured_mmol_l", where=where, hint="fill one of them in"
            )
        se = _positive(row.get("measured_se"), "measured_se", where) or float("nan")
        truth = _positive(row.get("true_mmol_l"), "true_mmol_l", where) or float("nan")
        readings.append((scanner, _name(row.get("phantom")) or "phantom", measured, se, truth))
    return {**_fitted(readings, where), **stated}


def _fitted(readings: list[tuple[str, str, float, float, float]], where: str) -> dict[str, ScannerFactor]:
    if not readings:
        return {}
    scanners = sorted({reading[0] for reading in readings})
    phantoms = sorted({phantom for _, phantom, _, _, truth in readings if not np.isfinite(truth)})
    errors = np.array([se / measured for _, _, measured, se, _ in readings])
    known = np.isfinite(errors)
    # readings without an error weigh like the middle of the others, or all alike
    errors = np.where(known, errors, np.median(errors[known]) if known.any() else 0.02)
    design = np.zeros((len(readings), len(scanners) + len(phantoms)))
    target = np.zeros(len(readings))
    for i, (scanner, phantom, measured, _, truth) in enumerate(readings):
        design[i, scanners.index(scanner)] = 1.0
        target[i] = -np.log(measured)
        if np.isfinite(truth):
            target[i] += np.log(truth)
        else:
            design[i, len(scanners) + phantoms.index(phantom)] = -1.0
    relative = len(phantoms) > 0 and not any(np.isfinite(truth) for *_, truth in readings)
    weighted, values = design / errors[:, None], target / errors
    if relative:
        # without any known content the factors' logarithms sum to zero
        row = np.zeros(design.shape[1])
        row[: len(scanners)] = 1.0
        weighted, values = np.vstack([weighted, 1e6 * row]), np.append(values, 0.0)
    if np.linalg.matrix_rank(weighted) < design.shape[1] or (relative and len(scanners) == 1):
        raise EstimationError(
            f"{len(readings)} readings of {len(scanners)} scanners do not determine their factors",
            where=where,
            hint="state true_mmol_l, or read the same phantom on every scanner",
        )
    covariance = np.linalg.inv(weighted.T @ weighted)
    beta = covariance @ (weighted.T @ values)
    degrees = len(readings) - design.shape[1] + int(relative)
    chi2 = float((((target - design @ beta) / errors) ** 2).sum())
    spread = np.sqrt(max(1.0, chi2 / degrees)) if degrees > 0 else 1.0
    source = "relative to the mean of the scanners" if relative else "known content"
    return {
        scanner: ScannerFactor(
            scanner=scanner,
            factor=float(np.exp(beta[i])),
            se=float(np.exp(beta[i]) * spread * np.sqrt(covariance[i, i])),
            n=sum(reading[0] == scanner for reading in readings),
            source=source,
        )
        for i, scanner in enumerate(scanners)
    }


def with_scanner_factor(scale: Scale, factor: ScannerFactor) -> Scale:
    """Return a scale whose concentrations are multiplied with a scanner's factor, its error carried on.

    Parameters
    ----------
    scale : Scale
        Calibration of one scan.
    factor : ScannerFactor
        Of its scanner.

    Examples
    --------
    >>> from bids_sodium.image.calibration import fit_scale
    >>> scale = fit_scale([200.0, 400.0], [2.0, 2.0])
    >>> factor = ScannerFactor(scanner="A", factor=1.1, se=0.02, n=3, source="table")
    >>> corrected = with_scanner_factor(scale, factor)
    >>> round(corrected.slope, 3), corrected.note
    (0.22, 'multiplied with the factor 1.1 of scanner A (table)')
    """
    f = factor.factor
    note = f"multiplied with the factor {f:.4g} of scanner {factor.scanner} ({factor.source})"
    spread = factor.se**2
    return replace(
        scale,
        slope=f * scale.slope,
        slope_se=float(np.hypot(f * scale.slope_se, scale.slope * factor.se)),
        intercept=f * scale.intercept,
        intercept_se=float(np.hypot(f * scale.intercept_se, scale.intercept * factor.se)),
        covariance=f**2 * scale.covariance + scale.slope * scale.intercept * spread,
        note="; ".join(part for part in (scale.note, note) if part),
    )


def _name(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return None if text.lower() in {"", "n/a", "nan", "none"} else text


def _positive(value: Any, name: str, where: str) -> float | None:
    text = _name(value)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if isinstance(value, bool) or not np.isfinite(number) or number <= 0:
        raise DataError(f"{name} is {value!r}", where=where, hint="write a positive number, or n/a")
    return number
