"""Time courses: sigmoid, its rivals, its mixed-effects form, and local-linear courses.

`fit_sigmoid` is the curve of the stroke paper with what its data can and cannot say, `compare_curves` holds it
against six others, `fit_random_asymptote` gives every subject an asymptote and `fit_two_random` a delay or rate as
well, `local_linear` assumes no form, and `fit_curve` minimises any sum of squares.
"""

from __future__ import annotations

from bids_sodium.stats._least_squares import FittedCurve, fit_curve
from bids_sodium.stats._local_linear import LocalLinear, local_linear
from bids_sodium.stats._profile import ProfileInterval
from bids_sodium.stats._random_asymptote import RandomAsymptote, RandomCurve, fit_random_asymptote
from bids_sodium.stats._rivals import CurveComparison, CurveModel, compare_curves
from bids_sodium.stats._sigmoid import SigmoidFit, fit_sigmoid
from bids_sodium.stats._time_course import CurveValue
from bids_sodium.stats._two_random import Second, TwoRandomCurve, fit_two_random

__all__ = [
    "CurveComparison",
    "CurveModel",
    "CurveValue",
    "FittedCurve",
    "LocalLinear",
    "ProfileInterval",
    "RandomAsymptote",
    "RandomCurve",
    "Second",
    "SigmoidFit",
    "TwoRandomCurve",
    "compare_curves",
    "fit_curve",
    "fit_random_asymptote",
    "fit_sigmoid",
    "fit_two_random",
    "local_linear",
]
