"""Physical constants of sodium MRI, each with unit, range and source.

The signal of a tissue a time ``t`` after excitation decays biexponentially,
``D(t) = f exp(-t / T2*_fast) + (1 - f) exp(-t / T2*_slow)``, because quadrupolar relaxation of the spin-3/2 nucleus
splits the transverse magnetisation 60 : 40.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AGAR",
    "CSF_MMOL_L",
    "FREQUENCY_RATIO_NA_TO_H",
    "GAMMA_BAR_MHZ_T",
    "PROTON_GAMMA_BAR_MHZ_T",
    "RELAXATION",
    "Decay",
    "Relaxation",
    "relaxation_of",
]

GAMMA_BAR_MHZ_T = 11.262
"""Gyromagnetic ratio of 23Na over 2 pi, in MHz/T (Harris 2001, doi:10.1351/pac200173111795)."""

PROTON_GAMMA_BAR_MHZ_T = 42.577
"""Gyromagnetic ratio of 1H over 2 pi, in MHz/T."""

FREQUENCY_RATIO_NA_TO_H = 0.2645
"""Off-resonance of 23Na over that of 1H in the same field."""

CSF_MMOL_L = 140.0
"""Sodium concentration of cerebrospinal fluid, in mmol/L (135-150; Inglese 2010, doi:10.1093/brain/awp334)."""


@dataclass(frozen=True, slots=True)
class Decay:
    """Biexponential T2* decay of one tissue.

    Parameters
    ----------
    t2_fast_ms, t2_slow_ms : float
        Fast and slow T2*, in ms. ``inf`` means no decay.
    fraction_fast : float
        Share of the fast component at time zero, 0.6 for isolated spin 3/2.
    """

    t2_fast_ms: float
    t2_slow_ms: float
    fraction_fast: float = 0.6

    def at(self, t_ms: NDArray[np.floating] | float) -> NDArray[np.float64]:
        """Return the remaining signal at time ``t_ms`` (ms), 1 at time zero.

        Examples
        --------
        >>> float(Decay(3.0, 20.0).at(0.0))
        1.0
        """
        t = np.asarray(t_ms, dtype=np.float64)
        fast, slow = np.exp(-t / self.t2_fast_ms), np.exp(-t / self.t2_slow_ms)
        return np.asarray(self.fraction_fast * fast + (1.0 - self.fraction_fast) * slow)


@dataclass(frozen=True, slots=True)
class Relaxation:
    """Longitudinal and transverse relaxation of one material.

    Parameters
    ----------
    t1_ms : float
        Longitudinal relaxation time, in ms.
    decay : Decay
        Transverse decay.
    source : str
        Where the numbers come from.
    """

    t1_ms: float
    decay: Decay
    source: str

    def signal_fraction(self, *, te_ms: float, tr_ms: float, flip_deg: float) -> float:
        """Return the spoiled steady-state signal per unit of concentration.

        ``sin(a) (1 - E1) / (1 - cos(a) E1) D(TE)`` with ``E1 = exp(-TR / T1)``.

        Examples
        --------
        >>> round(RELAXATION["CSF"].signal_fraction(te_ms=0.2, tr_ms=100.0, flip_deg=90.0), 3)
        0.835
        """
        angle = np.deg2rad(flip_deg)
        e1 = np.exp(-tr_ms / self.t1_ms)
        steady = np.sin(angle) * (1.0 - e1) / (1.0 - np.cos(angle) * e1)
        return float(steady * self.decay.at(te_ms))


_RIEMER = "T2* at 3 T: Riemer 2018, doi:10.1002/nbm.3899; T1 30-40 ms: Madelin 2014, doi:10.1016/j.pnmrs.2014.02.001"

RELAXATION: dict[str, Relaxation] = {
    "CGM": Relaxation(35.0, Decay(3.9, 26.3), _RIEMER),
    "DGM": Relaxation(35.0, Decay(3.9, 26.3), _RIEMER),
    "GM": Relaxation(35.0, Decay(3.9, 26.3), _RIEMER),
    "WM": Relaxation(35.0, Decay(3.4, 23.5), _RIEMER),
    "NAWM": Relaxation(35.0, Decay(3.4, 23.5), _RIEMER),
    "lesion": Relaxation(
        40.0, Decay(12.0, 53.0), "oedema 12/53 ms, compiled in Madelin 2014, doi:10.1016/j.pnmrs.2014.02.001"
    ),
    "CSF": Relaxation(55.0, Decay(55.0, 55.0), "Fleysher 2009, doi:10.1002/mrm.22133; T1 50-60 ms"),
    "agar": Relaxation(35.0, Decay(5.0, 20.0), "2 % agar gel; stated in the sidecar where it is known"),
    "soft": Relaxation(
        30.0, Decay(3.0, 18.0), "muscle and skin: Constantinides 2000, doi:10.1148/radiology.216.2.r00jl46559"
    ),
}
"""Relaxation by tissue name, at 3 T."""

AGAR = RELAXATION["agar"]
"""Relaxation of the calibration vials unless the sidecar states it."""

_LESIONS = frozenset({"L", "T2lesion", "T1iso", "T1hypo", "lesion", "ionic", "cytotoxic", "necrosis"})


def relaxation_of(tissue: str) -> Relaxation:
    """Return the relaxation of a tissue; every lesion label shares one entry.

    Parameters
    ----------
    tissue : str
        A key of `RELAXATION` or a lesion label of the file names (``L``, ``T1iso``, ``ionic`` ...); what follows a
        colon tells parts of one tissue apart and does not count (``lesion:2``).

    Raises
    ------
    KeyError
        If the tissue is unknown.

    Examples
    --------
    >>> relaxation_of("T1hypo") is RELAXATION["lesion"]
    True
    """
    kind = tissue.partition(":")[0]
    return RELAXATION["lesion" if kind in _LESIONS else kind]
