"""What relaxation does to the signal of a vial against that of tissue, and how well that is known.

The signal of one mmol/L is ``g = sin(a) (1 - E1) / (1 - cos(a) E1) D(TE)`` with ``E1 = exp(-TR / T1)``; a concentration
read on the vials' scale is multiplied with ``g_vial / g_tissue``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bids_sodium.core.constants import Relaxation
from bids_sodium.core.errors import DataError

__all__ = ["RelaxationEffect", "relaxation_effect", "relaxation_factor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxationEffect:
    """What relaxation does to a concentration, and how much of it hangs on what is assumed.

    Parameters
    ----------
    factor : float
        What a concentration read on the vials' scale is multiplied with.
    recovered_vial, recovered_tissue : float
        Longitudinal magnetisation of the steady state that a pulse finds, over that of equilibrium, 0 to 1.
    se : float
        Standard error of the factor where each T1 and T2* is known to ``t1_percent`` and ``t2_percent``.
    note : str
        A warning with the size of the error where the repetition time is short against a T1; empty where it is not.
    """

    factor: float
    recovered_vial: float
    recovered_tissue: float
    se: float
    note: str


def relaxation_factor(vial: Relaxation, tissue: Relaxation, *, te_ms: float, tr_ms: float, flip_deg: float) -> float:
    """Return what a concentration read from the vials' scale is multiplied with for a tissue.

    The ratio of the spoiled steady-state signals of one mmol/L, vial over tissue.

    Parameters
    ----------
    vial, tissue : Relaxation
        Longitudinal and transverse relaxation.
    te_ms, tr_ms : float
        Echo and repetition time, in ms.
    flip_deg : float
        Flip angle, in degrees.

    Raises
    ------
    DataError
        If a sequence parameter is missing or leaves no signal.

    Examples
    --------
    >>> from bids_sodium.core.constants import AGAR, RELAXATION
    >>> round(relaxation_factor(AGAR, RELAXATION["CSF"], te_ms=0.2, tr_ms=100.0, flip_deg=90.0), 2)
    1.1
    """
    for name, value, low in (
        ("echo time", te_ms, 0.0),
        ("repetition time", tr_ms, 1e-9),
        ("flip angle", flip_deg, 1e-9),
    ):
        if not np.isfinite(value) or value < low:
            raise DataError(
                f"the {name} is {value}",
                hint="give EchoTime, RepetitionTime (s) and FlipAngle (degrees) in the sidecar",
            )
    of_vial = vial.signal_fraction(te_ms=te_ms, tr_ms=tr_ms, flip_deg=flip_deg)
    of_tissue = tissue.signal_fraction(te_ms=te_ms, tr_ms=tr_ms, flip_deg=flip_deg)
    if min(of_vial, of_tissue) <= 1e-6:
        raise DataError(
            f"TE {te_ms:g} ms, TR {tr_ms:g} ms and flip angle {flip_deg:g} degrees leave no signal",
            hint="check the units in the sidecar: seconds and degrees",
        )
    return of_vial / of_tissue


def relaxation_effect(
    vial: Relaxation,
    tissue: Relaxation,
    *,
    te_ms: float,
    tr_ms: float,
    flip_deg: float,
    t1_percent: float = 10.0,
    t2_percent: float = 10.0,
) -> RelaxationEffect:
    """Return the relaxation factor with its standard error, and a warning where TR is short against T1.

    Parameters
    ----------
    vial, tissue : Relaxation
        Longitudinal and transverse relaxation.
    te_ms, tr_ms : float
        Echo and repetition time, in ms.
    flip_deg : float
        Flip angle, in degrees.
    t1_percent, t2_percent : float
        Standard errors of the relaxation times, in percent; published values of one tissue differ by about 10 %
        (Madelin 2014, doi:10.1016/j.pnmrs.2014.02.001).

    Returns
    -------
    RelaxationEffect
        Factor, standard error, recovered magnetisation and warning.

    Raises
    ------
    DataError
        If a sequence parameter is missing or leaves no signal.

    Examples
    --------
    >>> from bids_sodium.core.constants import AGAR, RELAXATION
    >>> relaxation_effect(AGAR, RELAXATION["GM"], te_ms=0.2, tr_ms=160.0, flip_deg=90.0).note
    ''
    >>> relaxation_effect(AGAR, RELAXATION["CSF"], te_ms=0.2, tr_ms=30.0, flip_deg=90.0).note[:58]
    'TR 30 ms is short against T1 of 35 ms (vial) and 55 ms (ti'
    """
    sequence = {"te_ms": te_ms, "tr_ms": tr_ms, "flip_deg": flip_deg}
    factor = relaxation_factor(vial, tissue, **sequence)

    def longer(body: Relaxation, share: float, of: str) -> Relaxation:
        if of == "t1":
            return replace(body, t1_ms=body.t1_ms * (1 + share))
        fast, slow = body.decay.t2_fast_ms * (1 + share), body.decay.t2_slow_ms * (1 + share)
        return replace(body, decay=replace(body.decay, t2_fast_ms=fast, t2_slow_ms=slow))

    changes = []
    for of, percent in (("t1", t1_percent), ("t2", t2_percent)):
        share = percent / 100
        changes.append(relaxation_factor(longer(vial, share, of), tissue, **sequence) / factor - 1)
        changes.append(relaxation_factor(vial, longer(tissue, share, of), **sequence) / factor - 1)
    recovered = [_recovered(body, tr_ms, flip_deg) for body in (vial, tissue)]
    note = ""
    if min(recovered) < 0.9:
        note = (
            f"TR {tr_ms:g} ms is short against T1 of {vial.t1_ms:g} ms (vial) and {tissue.t1_ms:g} ms (tissue): "
            f"{100 * recovered[0]:.0f} and {100 * recovered[1]:.0f} % of the magnetisation recover, and a T1 of the "
            f"tissue that is {t1_percent:g} % longer changes the concentration by {100 * changes[1]:+.1f} %"
        )
    return RelaxationEffect(
        factor=factor,
        recovered_vial=recovered[0],
        recovered_tissue=recovered[1],
        se=factor * float(np.sqrt(np.sum(np.square(changes)))),
        note=note,
    )


def _recovered(body: Relaxation, tr_ms: float, flip_deg: float) -> float:
    """Return the longitudinal magnetisation before each pulse of the steady state."""
    e1 = np.exp(-tr_ms / body.t1_ms)
    return float((1 - e1) / (1 - np.cos(np.deg2rad(flip_deg)) * e1))
