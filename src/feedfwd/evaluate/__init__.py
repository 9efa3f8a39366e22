"""How good a model is and how sure one may be of it: scores, intervals, calibration, and what a report shows."""

from feedfwd.evaluate.calibration import (
    calibration_error,
    expected_calibration_error_if_perfect,
    fit_temperature,
    reliability_bins,
)
from feedfwd.evaluate.evaluate import details
from feedfwd.evaluate.intervals import bootstrap_interval, wilson_interval
from feedfwd.evaluate.metrics import classification_scores, confusion_matrix, regression_scores

__all__ = [
    "bootstrap_interval",
    "calibration_error",
    "classification_scores",
    "confusion_matrix",
    "details",
    "expected_calibration_error_if_perfect",
    "fit_temperature",
    "regression_scores",
    "reliability_bins",
    "wilson_interval",
]
