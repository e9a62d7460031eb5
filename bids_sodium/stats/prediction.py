"""Prediction of an outcome that happens or not: logistic models, how well they tell, and how well calibrated they are.

`penalised_logistic` and `mixed_logistic` fit, `left_out_predictions` predicts every subject from the others,
`clustered_auc` and `auc_difference` say how well predictions discriminate when units come from subjects, and
`calibration` whether they may be read as probabilities.
"""

from __future__ import annotations

from bids_sodium.stats._discrimination import (
    AucDifference,
    Calibration,
    ClusteredAuc,
    auc_difference,
    calibration,
    clustered_auc,
)
from bids_sodium.stats._logistic import (
    LogisticFit,
    MixedLogistic,
    left_out_predictions,
    mixed_logistic,
    penalised_logistic,
)

__all__ = [
    "AucDifference",
    "Calibration",
    "ClusteredAuc",
    "LogisticFit",
    "MixedLogistic",
    "auc_difference",
    "calibration",
    "clustered_auc",
    "left_out_predictions",
    "mixed_logistic",
    "penalised_logistic",
]
