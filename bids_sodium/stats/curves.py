"""Time courses: the sigmoid and its rivals by least squares.

`fit_sigmoid` is the curve of the stroke paper with what its data can and cannot say, `compare_curves` holds it
against six others, and `fit_curve` minimises any sum of squares.
"""

from __future__ import annotations

from bids_sodium.stats._least_squares import FittedCurve, fit_curve
from bids_sodium.stats._rivals import CurveComparison, CurveModel, compare_curves
from bids_sodium.stats._sigmoid import CurveValue, ProfileInterval, SigmoidFit, fit_sigmoid

__all__ = [
    "CurveComparison",
    "CurveModel",
    "CurveValue",
    "FittedCurve",
    "ProfileInterval",
    "SigmoidFit",
    "compare_curves",
    "fit_curve",
    "fit_sigmoid",
]
