"""Scores where an example may have several labels, each with a probability of its own."""

# N examples, C labels

from collections.abc import Sequence
from typing import Any

import numpy as np

from feedfwd.errors import DataError
from feedfwd.evaluate.arrays import Floats
from feedfwd.evaluate.intervals import wilson_interval
from feedfwd.evaluate.metrics import are_ranked, auroc

RESAMPLES = 1000
ROWS = 30  # labels in the table; beyond, those with the lowest F1


def label_scores(probabilities: Floats, targets: Floats) -> dict[str, float]:
    """Scores by name, from (N, C) probabilities and as many 0 and 1. A label is given from a probability of ½ on.

    - micro_f1: F1 of all decisions together; macro_f1: mean of the labels' F1, over those that occur or are given
    - exact: share of the examples whose labels are all right (subset accuracy)
    - log_loss: nats an example, summed over its labels
    - auroc: mean of the labels', unless the probabilities are more than ten million

    >>> label_scores(np.array([[0.9, 0.2], [0.4, 0.8]]), np.array([[1, 0], [1, 1]]))["exact"]
    0.5
    """
    p_NC, y_NC = _checked(probabilities, targets)
    given_NC = p_NC >= 0.5
    right_C, wrong_C = _counts(given_NC, y_NC)
    occurs_C = right_C + wrong_C > 0
    f1_C = _f1(right_C, wrong_C)
    kept = np.clip(p_NC, 1e-7, 1 - 1e-7)
    scores = {
        "micro_f1": float(_f1(right_C.sum(), wrong_C.sum())),
        "macro_f1": float(f1_C[occurs_C].mean()) if occurs_C.any() else 1.0,
        "exact": float((given_NC == (y_NC > 0.5)).all(1).mean()),
        "log_loss": float(-(y_NC * np.log(kept) + (1 - y_NC) * np.log1p(-kept)).sum(1).mean()),
    }
    if are_ranked(*p_NC.shape):
        areas = [auroc(p_NC[:, c], y_NC[:, c] > 0.5) for c in range(p_NC.shape[1]) if 0 < y_NC[:, c].sum() < len(y_NC)]
        if areas:
            scores["auroc"] = float(np.mean(areas))
    return scores


def label_details(probabilities: Floats, targets: Floats, classes: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """What a report shows: 95 % intervals, of F1 from resampled examples; and how each label does by itself.

    The baseline is giving every label to every example, which no constant answer beats in F1.
    """
    p_NC, y_NC = _checked(probabilities, targets)
    given_NC, true_NC = p_NC >= 0.5, y_NC > 0.5
    right_C, wrong_C = _counts(given_NC, y_NC)
    f1_C = _f1(right_C, wrong_C)
    exact = int((given_NC == true_NC).all(1).sum())
    intervals = {"exact": list(wilson_interval(exact, len(y_NC)))}
    if len(y_NC) <= 20_000:
        intervals |= _f1_intervals(given_NC, true_NC, seed)
    always_C = _f1(*_counts(np.ones_like(given_NC), y_NC))
    shown = np.arange(len(classes))
    if len(classes) > ROWS:
        shown = np.argsort(np.where(true_NC.any(0), f1_C, 2), kind="stable")[:ROWS]
    return {
        "kind": "labels",
        "n": len(y_NC),
        "classes": list(classes),
        "intervals": intervals,
        "baseline": {"macro_f1": float(always_C.mean())},
        "per_class": [
            {
                "class": classes[c],
                "n": int(true_NC[:, c].sum()),
                "precision": float(right_C[c] / max(given_NC[:, c].sum(), 1)),
                "recall": float(right_C[c] / max(true_NC[:, c].sum(), 1)),
                "f1": float(f1_C[c]),
                "accuracy": float((given_NC[:, c] == true_NC[:, c]).mean()),
                "auroc": auroc(p_NC[:, c], true_NC[:, c]) if 0 < true_NC[:, c].sum() < len(y_NC) else None,
            }
            for c in shown.tolist()
        ],
    }


def _f1_intervals(given_NC: np.ndarray, true_NC: np.ndarray, seed: int) -> dict[str, list[float]]:
    """Bootstrap: how often each example is drawn, times what it adds to the counts of its labels."""
    n, labels = given_NC.shape
    adds = np.concatenate([given_NC & true_NC, given_NC != true_NC], 1).astype(np.float32)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        times_N = np.bincount(generator.integers(n, size=n), minlength=n).astype(np.float32)
        drawn.append(times_N @ adds)
    right_BC, wrong_BC = np.split(np.stack(drawn), [labels], axis=1)
    occurs_BC = right_BC + wrong_BC > 0
    macro_B = np.where(occurs_BC, _f1(right_BC, wrong_BC), 0).sum(1) / np.maximum(occurs_BC.sum(1), 1)
    found = {"micro_f1": _f1(right_BC.sum(1), wrong_BC.sum(1)), "macro_f1": macro_B}
    return {name: [float(q) for q in np.quantile(values, [0.025, 0.975])] for name, values in found.items()}


def _checked(probabilities: Floats, targets: Floats) -> tuple[Floats, Floats]:
    p_NC, y_NC = np.asarray(probabilities, np.float64), np.asarray(targets, np.float64)
    if p_NC.shape != y_NC.shape or p_NC.ndim != 2 or not len(p_NC):
        what = f"probabilities of shape {p_NC.shape} for targets of shape {y_NC.shape}"
        raise DataError(what, hint="one of each for every label of every text")
    return p_NC, y_NC


def _counts(given_NC: np.ndarray, y_NC: Floats) -> tuple[Any, Any]:
    """Labels rightly given, and those wrongly given or left out, (C,) each."""
    true_NC = y_NC > 0.5
    return (given_NC & true_NC).sum(0), (given_NC != true_NC).sum(0)


def _f1(right: Any, wrong: Any) -> Any:
    return np.where(right + wrong > 0, 2 * right / np.maximum(2 * right + wrong, 1), 1.0)
