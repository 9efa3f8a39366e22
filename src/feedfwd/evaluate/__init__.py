"""How a model does and how sure one may be of it: scores, intervals, calibration, when not to answer."""

from feedfwd.evaluate.abstain import Abstention, abstain_threshold, risk_coverage
from feedfwd.evaluate.calibration import (
    calibration_error,
    expected_calibration_error_if_perfect,
    fit_temperature,
    reliability_bins,
)
from feedfwd.evaluate.evaluate import details
from feedfwd.evaluate.intervals import bootstrap_interval, wilson_interval
from feedfwd.evaluate.label_errors import label_errors
from feedfwd.evaluate.metrics import classification_scores, confusion_matrix, regression_scores
from feedfwd.evaluate.retrieval import retrieval_scores
from feedfwd.evaluate.scope import energy, max_probability, neighbours, scope_threshold

__all__ = [
    "Abstention",
    "abstain_threshold",
    "bootstrap_interval",
    "calibration_error",
    "classification_scores",
    "confusion_matrix",
    "details",
    "energy",
    "expected_calibration_error_if_perfect",
    "fit_temperature",
    "label_errors",
    "max_probability",
    "neighbours",
    "regression_scores",
    "reliability_bins",
    "retrieval_scores",
    "risk_coverage",
    "scope_threshold",
    "wilson_interval",
]
