"""Scores of predictions, as plain functions of arrays.

Written out in NumPy where the formula is short, and tested to equal scikit-learn's: importing scikit-learn's metrics
takes longer than a small model's training.
"""

# N examples, C classes, T targets

import numpy as np

from feedfwd.errors import DataError
from feedfwd.evaluate.arrays import Floats, Ints, Values, checked_predictions, checked_probabilities
from feedfwd.evaluate.calibration import calibration_error

FEW_CLASSES = 20  # up to here AUROC, which sorts every class's column, is among the scores in any case
RANKED = 10_000_000  # probabilities, up to which it is with more classes: they take about a second to sort


def classification_scores(probabilities: Values, targets: Values) -> dict[str, float]:
    """Scores by name, from (N, C) probabilities and (N,) class numbers; DataError when they don't fit.

    - accuracy: share of right answers
    - macro_f1: mean of the classes' F1, over the classes that occur among targets or answers
    - log_loss: mean of −log p(true class), in nats; p is kept above 2.2e-16
    - ece: expected calibration error, 15 equal-width bins (see `calibration`)
    - brier: mean squared distance to the one-hot truth, halved for two classes (so that it is (p − y)²)
    - auroc: area under the ROC curve; for 3 and more classes the mean of one-versus-rest over the classes that occur.
      Left out for more than 20 classes of more than ten million probabilities, and where only one class occurs

    >>> scores = classification_scores([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1])
    >>> round(scores["accuracy"], 3), round(scores["log_loss"], 3), scores["auroc"]
    (0.667, 0.415, 1.0)
    """
    p_NC, y_N = checked_probabilities(probabilities, targets)
    answer_N, classes = p_NC.argmax(1), p_NC.shape[1]
    right_N = answer_N == y_N
    scores = {
        "accuracy": float(right_N.mean()),
        "macro_f1": macro_f1(answer_N, y_N, classes),
        "log_loss": float(log_losses(p_NC, y_N).mean()),
        "ece": calibration_error(p_NC.max(1), right_N),
        "brier": float(brier_losses(p_NC, y_N).mean()),
    }
    if areas := [auroc(p_NC[:, c], y_N == c) for c in _ranked(y_N, classes)]:
        scores["auroc"] = float(np.mean(areas))
    return scores


def are_ranked(n: int, classes: int) -> bool:
    """Whether AUROC is worth its time.

    >>> are_ranked(10**9, 3), are_ranked(3080, 77), are_ranked(50_000, 1000)
    (True, True, False)
    """
    return classes <= FEW_CLASSES or n * classes <= RANKED


def _ranked(y_N: Ints, classes: int, fewest: int = 1) -> list[int]:
    """The classes whose AUROC counts: at least `fewest` examples bear it and as many don't."""
    columns = [1] if classes == 2 else range(classes) if are_ranked(len(y_N), classes) else []
    return [c for c in columns if fewest <= (y_N == c).sum() <= len(y_N) - fewest]


def mean_auroc(p_NC: Floats, y_N: Ints) -> tuple[float, float] | None:
    """`auroc` of `classification_scores` and its variance; None where there is none or an example stands alone.

    The mean over the classes is one sum over the examples, so that their covariance needs no term of its own.
    """
    columns = _ranked(y_N, p_NC.shape[1])
    if not columns or columns != _ranked(y_N, p_NC.shape[1], fewest=2):
        return None
    area = float(np.mean([auroc(p_NC[:, c], y_N == c) for c in columns]))
    share_N = np.zeros(len(y_N))
    for c in columns:
        share_N += _auroc_shares(p_NC[:, c], y_N == c)
    return area, float(((share_N / len(columns)) ** 2).sum())


def regression_scores(predictions: Values, targets: Values) -> dict[str, float]:
    """rmse and mae in the targets' own units, and r2; several targets (N, T) count equally. DataError as above.

    r2 is 1 − squared error / squared error of always answering the mean, left out below two examples. For a target
    that never varies it is 1 when every answer is exact and 0 otherwise, as in scikit-learn.

    >>> regression_scores([2.0, 4.0], [1.0, 5.0])
    {'rmse': 1.0, 'mae': 1.0, 'r2': 0.75}
    """
    p_NT, y_NT = checked_predictions(predictions, targets)
    error_NT = p_NT - y_NT
    scores = {
        "rmse": float(np.sqrt((error_NT**2).mean(0)).mean()),
        "mae": float(np.abs(error_NT).mean()),
    }
    if len(y_NT) > 1:
        scores["r2"] = float(r2(error_NT, y_NT).mean())
    return scores


def confusion_matrix(answers: Ints, targets: Ints, classes: int) -> Ints:
    """(C, C) counts, rows the truth, columns the answer.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return np.bincount(targets * classes + answers, minlength=classes * classes).reshape(classes, classes)


def per_class(answers: Ints, targets: Ints, classes: int) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of each class, (C,) each; 0 where the quotient has nothing below."""
    right_C = np.bincount(targets[answers == targets], minlength=classes)
    answered_C, true_C = np.bincount(answers, minlength=classes), np.bincount(targets, minlength=classes)
    precision_C, recall_C = right_C / np.maximum(answered_C, 1), right_C / np.maximum(true_C, 1)
    return precision_C, recall_C, 2 * right_C / np.maximum(answered_C + true_C, 1)


def macro_f1(answers: Ints, targets: Ints, classes: int) -> float:
    """Mean F1 over the classes that occur among the targets or the answers."""
    occurs_C = np.bincount(np.concatenate([answers, targets]), minlength=classes) > 0
    return float(per_class(answers, targets, classes)[2][occurs_C].mean())


def log_losses(p_NC: Floats, y_N: Ints) -> Floats:
    """−log p(true class) of each example, in nats."""
    p_N = p_NC[np.arange(len(y_N)), y_N]
    return -np.log(np.clip(p_N, np.finfo(np.float64).eps, 1.0))


def brier_losses(p_NC: Floats, y_N: Ints) -> Floats:
    """Squared distance to the one-hot truth of each example; half of it for two classes. Brier 1950."""
    squares_N = (p_NC**2).sum(1) - 2 * p_NC[np.arange(len(y_N)), y_N] + 1
    return squares_N / 2 if p_NC.shape[1] == 2 else squares_N


def r2(error: Floats, target: Floats, axis: int = 0) -> Floats:
    """Share of the target's variance that is explained, along `axis`, which disappears."""
    left = (error**2).sum(axis)
    spread = ((target - target.mean(axis, keepdims=True)) ** 2).sum(axis)
    varies = spread > 0
    return np.where(varies, 1 - left / np.where(varies, spread, 1), np.where(left > 0, 0.0, 1.0))


def _midranks(values: Floats) -> Floats:
    """Rank of each value from 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def auroc(score_N: Floats, positive_N: np.ndarray) -> float:
    """The chance that a positive example scores above a negative one, ties counting half.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if not positives or not negatives:
        raise DataError("AUROC needs both positive and negative examples", hint="only one class occurs in this part")
    rank_sum = _midranks(score_N)[positive_N].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def auroc_variance(score_N: Floats, positive_N: np.ndarray) -> float:
    """Variance of `auroc`: DeLong et al. 1988, by midranks as in Sun and Xu 2014; two examples or more on each side."""
    return float((_auroc_shares(score_N, positive_N) ** 2).sum())


def _auroc_shares(score_N: Floats, positive_N: np.ndarray) -> Floats:
    """How much each example moves `auroc` from its mean; the squares' sum is the variance."""
    rank_N, share_N = _midranks(score_N), np.zeros(len(score_N))
    for side_N, sign in ((positive_N, 1), (~positive_N, -1)):
        n, others = int(side_N.sum()), int((~side_N).sum())
        beats = (rank_N[side_N] - _midranks(score_N[side_N])) / others  # share of the other side that it lies above
        share_N[side_N] = sign * (beats - beats.mean()) / np.sqrt(n * (n - 1))
    return share_N
