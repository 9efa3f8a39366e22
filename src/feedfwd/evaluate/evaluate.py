"""What can be said of a model on one part of the data beyond its scores, as plain JSON for a report to show."""

# N examples, C classes, T targets

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from feedfwd.errors import DataError
from feedfwd.evaluate.arrays import Floats, Ints, Values, checked_predictions, checked_probabilities
from feedfwd.evaluate.calibration import reliability
from feedfwd.evaluate.intervals import bootstrap_interval, logit_normal_interval, wilson_interval
from feedfwd.evaluate.metrics import (
    brier_losses,
    confusion_matrix,
    log_losses,
    mean_auroc,
    per_class,
    r2,
)
from feedfwd.evaluate.pictures import data_uri

MATRIX_CLASSES = 30  # up to here the whole confusion matrix is kept, beyond only its largest entries
PAIRS = 20  # most confused pairs of classes
WORST = 20  # most wrong examples
CLASS_ROWS = 30  # classes in the table of precision and recall; beyond, those with the lowest F1
POINTS = 500  # predicted-against-true points of a regression


class Pictures(Protocol):
    """Images by position: a tensor, an array or a list of (height, width[, channels])."""

    def __getitem__(self, index: int, /) -> Any: ...


def details(
    outputs: Values,
    targets: Values,
    *,
    classes: Sequence[str] | None = None,
    images: Pictures | None = None,
    indices: Sequence[int] | Ints | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything a report shows of one part, JSON-able, bounded in size whatever N and C are.

    A classifier gives `classes`, the names of its C classes, with (N, C) probabilities and (N,) class numbers;
    a regression gives no classes, with predictions and targets (N,) or (N, T) in the targets' own units, and may give
    the T targets' `names`. `indices` are the examples' places in the user's own data (default: 0 to N − 1), `images`
    their pictures (see `pictures.data_uri`). Intervals are at 95 %; where chance enters, `seed` decides it.
    DataError when the inputs don't fit.

    >>> found = details([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], [0, 1, 1], classes=["cat", "dog"])
    >>> found["confusion"], found["most_wrong"][0]["true"], found["most_wrong"][0]["index"]
    ([[1, 0], [1, 1]], 'dog', 1)
    """
    if classes is None:
        p_NT, y_NT = checked_predictions(outputs, targets)
        index_N = _checked_indices(indices, len(y_NT))
        return _regression(p_NT, y_NT, index_N, _checked_names(names, y_NT.shape[1]), seed)
    p_NC, y_N = checked_probabilities(outputs, targets)
    if len(classes) != p_NC.shape[1]:
        raise DataError(f"{len(classes)} class names for {p_NC.shape[1]} columns", hint="one name for each column")
    return _classification(p_NC, y_N, _checked_indices(indices, len(y_N)), list(classes), images, seed)


def _checked_indices(indices: Sequence[int] | Ints | None, n: int) -> Ints:
    index_N = np.arange(n) if indices is None else np.asarray(indices, dtype=np.int64)
    if index_N.shape != (n,):
        raise DataError(f"indices of the shape {index_N.shape} for {n} examples", hint="one index for each example")
    return index_N


def _checked_names(names: Sequence[str] | None, targets: int) -> list[str]:
    if names is None:
        return ["target"] if targets == 1 else [f"target {t}" for t in range(targets)]
    if len(names) != targets:
        raise DataError(f"{len(names)} names for {targets} targets", hint="one name for each column")
    return list(names)


def _classification(
    p_NC: Floats, y_N: Ints, index_N: Ints, classes: list[str], images: Pictures | None, seed: int
) -> dict[str, Any]:
    answer_N, confidence_N = p_NC.argmax(1), p_NC.max(1)
    right_N = answer_N == y_N
    return {
        "kind": "classification",
        "n": len(y_N),
        "classes": classes,
        "right": int(right_N.sum()),
        "intervals": _classification_intervals(p_NC, y_N, answer_N, seed),
        "baseline": {"accuracy": float(np.bincount(y_N).max() / len(y_N))},  # always answering the commonest class
        "confusion": confusion_matrix(answer_N, y_N, len(classes)).tolist() if len(classes) <= MATRIX_CLASSES else None,
        "confused": _confused(answer_N, y_N, classes),
        "per_class": _class_rows(answer_N, y_N, classes),
        "reliability": reliability(confidence_N, right_N, seed),
        "most_wrong": _most_wrong(p_NC, y_N, answer_N, index_N, classes, images),
    }


def _classification_intervals(p_NC: Floats, y_N: Ints, answer_N: Ints, seed: int) -> dict[str, list[float]]:
    n, classes = p_NC.shape
    found: dict[str, list[float]] = {"accuracy": list(wilson_interval(int((answer_N == y_N).sum()), n))}
    found["macro_f1"] = _macro_f1_interval(answer_N, y_N, classes, seed)
    log_loss_N, brier_N = log_losses(p_NC, y_N), brier_losses(p_NC, y_N)
    low, high = bootstrap_interval(lambda *a: np.stack([e.mean(1) for e in a], 1), log_loss_N, brier_N, seed=seed)
    found |= {name: [float(low[k]), float(high[k])] for k, name in enumerate(("log_loss", "brier"))}
    if area_and_variance := mean_auroc(p_NC, y_N):
        area, variance = area_and_variance
        if 0 < area < 1 and variance > 0:  # at the ends the estimated variance is 0, which says nothing
            found["auroc"] = list(logit_normal_interval(area, variance))
    return found


def _macro_f1_interval(answer_N: Ints, y_N: Ints, classes: int, seed: int, resamples: int = 1000) -> list[float]:
    """Bootstrap from the counts alone: resampling examples draws their (true, answered) cells from a multinomial."""
    cells, counts = np.unique(y_N * classes + answer_N, return_counts=True)
    true, answered = np.divmod(cells, classes)
    drawn = np.random.default_rng(seed).multinomial(len(y_N), counts / len(y_N), resamples)  # (resamples, cells)
    one_hot = np.eye(classes, dtype=drawn.dtype)
    right = drawn[:, true == answered] @ one_hot[true[true == answered]]
    occurs = drawn @ (one_hot[true] + one_hot[answered])
    f1 = (2 * right / np.maximum(occurs, 1)).sum(1) / (occurs > 0).sum(1)
    return [float(q) for q in np.quantile(f1, [0.025, 0.975])]


def _confused(answer_N: Ints, y_N: Ints, classes: list[str]) -> list[dict[str, Any]]:
    """The commonest mistakes: what was taken for what, how often, and in what share of the true class."""
    wrong_N = answer_N != y_N
    pairs, counts = np.unique(y_N[wrong_N] * len(classes) + answer_N[wrong_N], return_counts=True)
    true_C = np.bincount(y_N, minlength=len(classes))
    return [
        {
            "true": classes[pairs[k] // len(classes)],
            "predicted": classes[pairs[k] % len(classes)],
            "n": int(counts[k]),
            "share": float(counts[k] / true_C[pairs[k] // len(classes)]),
        }
        for k in np.argsort(-counts, kind="stable")[:PAIRS]
    ]


def _class_rows(answer_N: Ints, y_N: Ints, classes: list[str]) -> list[dict[str, Any]]:
    precision_C, recall_C, f1_C = per_class(answer_N, y_N, len(classes))
    true_C = np.bincount(y_N, minlength=len(classes))
    shown = np.arange(len(classes))
    if len(classes) > CLASS_ROWS:
        shown = np.argsort(np.where(true_C > 0, f1_C, 2), kind="stable")[:CLASS_ROWS]  # classes without examples last
    return [
        {
            "class": classes[c],
            "n": int(true_C[c]),
            "precision": float(precision_C[c]),
            "recall": float(recall_C[c]),
            "f1": float(f1_C[c]),
        }
        for c in shown
    ]


def _most_wrong(
    p_NC: Floats, y_N: Ints, answer_N: Ints, index_N: Ints, classes: list[str], images: Pictures | None
) -> list[dict[str, Any]]:
    """Wrong answers, the one that gave the truth the least probability first."""
    p_true_N = p_NC[np.arange(len(y_N)), y_N]
    wrong = np.flatnonzero(answer_N != y_N)
    rows = []
    for i in wrong[np.argsort(p_true_N[wrong], kind="stable")][:WORST]:
        row: dict[str, Any] = {
            "index": int(index_N[i]),
            "true": classes[y_N[i]],
            "predicted": classes[answer_N[i]],
            "probability": float(p_NC[i, answer_N[i]]),
            "probability_true": float(p_true_N[i]),
        }
        if images is not None:
            row["image"] = data_uri(images[int(i)])
        rows.append(row)
    return rows


def _regression(p_NT: Floats, y_NT: Floats, index_N: Ints, names: list[str], seed: int) -> dict[str, Any]:
    error_NT = p_NT - y_NT
    spread_T = y_NT.std(0)
    relative_NT = np.abs(error_NT) / np.where(spread_T > 0, spread_T, 1)  # targets of different units, one ranking
    shown = np.sort(np.random.default_rng(seed).permutation(len(y_NT))[:POINTS])
    worst = np.argsort(-relative_NT.ravel(), kind="stable")[:WORST]
    return {
        "kind": "regression",
        "n": len(y_NT),
        "intervals": _regression_intervals(error_NT, y_NT, seed),
        # always answering the mean of this very part, which no constant can beat
        "baseline": {"rmse": float(spread_T.mean()), "mae": float(np.abs(y_NT - y_NT.mean(0)).mean())},
        "targets": [
            {
                "name": name,
                "rmse": float(np.sqrt((error_NT[:, t] ** 2).mean())),
                "mae": float(np.abs(error_NT[:, t]).mean()),
                "points": [[float(y), float(p)] for y, p in zip(y_NT[shown, t], p_NT[shown, t], strict=True)],
            }
            for t, name in enumerate(names)
        ],
        "largest_errors": [
            {
                "index": int(index_N[i]),
                "target": names[t],
                "true": float(y_NT[i, t]),
                "predicted": float(p_NT[i, t]),
                "error": float(error_NT[i, t]),
            }
            for i, t in (divmod(int(k), len(names)) for k in worst)
        ],
    }


def _regression_intervals(error_NT: Floats, y_NT: Floats, seed: int) -> dict[str, list[float]]:
    def scores(error_BNT: Floats, y_BNT: Floats) -> Floats:
        rmse_B, mae_B = np.sqrt((error_BNT**2).mean(1)).mean(1), np.abs(error_BNT).mean((1, 2))
        return np.stack([rmse_B, mae_B, r2(error_BNT, y_BNT, axis=1).mean(1)], axis=1)

    low, high = bootstrap_interval(scores, error_NT, y_NT, seed=seed)
    found = {name: [float(low[k]), float(high[k])] for k, name in enumerate(("rmse", "mae", "r2"))}
    if len(y_NT) < 2:
        del found["r2"]
    return found
