"""Whether a probability means what it says: reliability bins, calibration error, temperature scaling.

Scheme, everywhere in feedfwd: *top-label* calibration in 15 bins of equal width. An example's confidence is its
largest probability, and bin k holds the confidences in (k/15, (k+1)/15]. Guo et al. 2017, "On calibration of modern
neural networks", arXiv 1706.04599, equations 2 to 5.
"""

# N examples, C classes, B bins, S simulations

from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch

from feedfwd.errors import DataError
from feedfwd.evaluate.arrays import Floats, Values, floats
from feedfwd.evaluate.intervals import DRAWS_AT_ONCE, wilson_interval

BINS = 15


class Bin(TypedDict):
    """One point of a reliability diagram, with the 95 % interval of its accuracy; None where no example fell."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None
    interval: tuple[float, float] | None


def _bin_of(confidence_N: Floats, bins: int) -> npt.NDArray[np.intp]:
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, bins - 1)


def reliability_bins(confidence_N: Floats, right_N: npt.NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """For each bin the mean confidence and the share that was right: equal, if the model is calibrated.

    >>> [b["n"] for b in reliability_bins(np.array([0.4, 0.9, 1.0]), np.array([True, True, False]), bins=5)]
    [0, 1, 0, 0, 2]
    """
    bin_N = _bin_of(confidence_N, bins)
    n_B = np.bincount(bin_N, minlength=bins)
    confidence_B = np.bincount(bin_N, confidence_N, minlength=bins) / np.maximum(n_B, 1)
    right_B = np.bincount(bin_N[right_N], minlength=bins)
    return [
        Bin(
            low=k / bins,
            high=(k + 1) / bins,
            n=int(n_B[k]),
            confidence=float(confidence_B[k]) if n_B[k] else None,
            accuracy=float(right_B[k] / n_B[k]) if n_B[k] else None,
            interval=wilson_interval(int(right_B[k]), int(n_B[k])) if n_B[k] else None,
        )
        for k in range(bins)
    ]


def calibration_error(confidence_N: Floats, right_N: npt.NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error: the bins' |accuracy − confidence|, weighted by their share of the examples.

    >>> calibration_error(np.full(4, 0.75), np.array([True, True, True, False]))
    0.0
    """
    gap_B = np.bincount(_bin_of(confidence_N, bins), right_N - confidence_N, minlength=bins)
    return float(np.abs(gap_B).sum() / len(confidence_N))


def expected_calibration_error_if_perfect(
    confidence_N: Floats, bins: int = BINS, simulations: int = 200, seed: int = 0
) -> tuple[float, float]:
    """What `calibration_error` would show by chance alone, were every confidence exact: its mean and 95th percentile.

    A finite test set never shows zero: each simulation draws who is right with the stated confidences. A measured
    error below the percentile is no evidence against the model's probabilities.
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(_bin_of(confidence_N, bins), kind="stable")
    sorted_N, bin_N = confidence_N[order], _bin_of(confidence_N, bins)[order]
    starts = np.flatnonzero(np.diff(bin_N, prepend=-1))  # where each bin that isn't empty begins
    errors = []
    block = max(1, DRAWS_AT_ONCE // len(sorted_N))
    for first in range(0, simulations, block):
        right_SN = generator.random((min(block, simulations - first), len(sorted_N))) < sorted_N
        gap_SB = np.add.reduceat(right_SN - sorted_N, starts, axis=1)
        errors.append(np.abs(gap_SB).sum(1) / len(sorted_N))
    error_S = np.concatenate(errors)
    return float(error_S.mean()), float(np.quantile(error_S, 0.95))


class Reliability(TypedDict):
    """What a report says of one part's confidences."""

    bins: list[Bin]
    ece: float
    confidence: float  # mean
    ece_if_perfect: float
    ece_if_perfect_95: float


def reliability(confidence_N: Floats, right_N: npt.NDArray[np.bool_], seed: int = 0) -> Reliability:
    """Bins, calibration error, and what exact confidences would show with so many examples."""
    expected, high = expected_calibration_error_if_perfect(confidence_N, seed=seed)
    return Reliability(
        bins=reliability_bins(confidence_N, right_N),
        ece=calibration_error(confidence_N, right_N),
        confidence=float(confidence_N.mean()),
        ece_if_perfect=expected,
        ece_if_perfect_95=high,
    )


def softmax(logits: Values, temperature: float = 1.0) -> Floats:
    """Probabilities (N, C) of softmax(z / T).

    >>> softmax([[1.0, 1.0]], 2.0).tolist()
    [[0.5, 0.5]]
    """
    z_NC = floats(logits) / temperature
    e_NC = np.exp(z_NC - z_NC.max(1, keepdims=True))
    return np.asarray(e_NC / e_NC.sum(1, keepdims=True))


def sigmoid(logits: Values, temperature: float = 1.0) -> Floats:
    """Probabilities (N, C), each by itself, of 1 / (1 + exp(−z / T)); for large |z| without overflow.

    >>> sigmoid([[0.0, 1000.0, -1000.0]]).tolist()
    [[0.5, 1.0, 0.0]]
    """
    return np.asarray(np.exp(-np.logaddexp(0, -floats(logits) / temperature)))


def fit_temperature(logits: Values, targets: Values, *, coldest: float = 0.05, hottest: float = 20.0) -> float:
    """The T for which softmax(logits / T) has the lowest log loss, on data that the model was not trained on.

    Guo et al. 2017, section 4.2. Above 1, the model was overconfident. It never changes which class is largest. The
    loss is convex in β = 1/T, with derivative mean(E[z] − z_target) under softmax(β z); bisection finds its root to
    nine digits without a rate or a tolerance to choose. Where every answer is right (or none is) the best T lies at
    an end, and `coldest` or `hottest` is returned. DataError when the shapes don't fit.

    >>> z = torch.tensor([[4.0, 0.0]] * 4)  # says 98 %, is right in 75 %: log 3 is what it should have said
    >>> round(fit_temperature(z, [0, 0, 0, 1]), 4)  # 4 / log 3
    3.641
    """
    z_NC = torch.from_numpy(floats(logits))
    y_N = torch.from_numpy(floats(targets)).long()
    if z_NC.ndim != 2 or y_N.shape != z_NC.shape[:1] or not len(y_N):
        raise DataError(
            f"logits of the shape {tuple(z_NC.shape)} and targets of the shape {tuple(y_N.shape)}",
            hint="temperature scaling needs (examples, classes) and (examples,)",
        )
    target = z_NC.gather(1, y_N[:, None]).mean()

    def slope(beta: float) -> float:
        return float((torch.softmax(beta * z_NC, 1) * z_NC).sum(1).mean() - target)

    low, high = np.log(1 / hottest), np.log(1 / coldest)
    if slope(float(np.exp(high))) <= 0:
        return coldest
    if slope(float(np.exp(low))) >= 0:
        return hottest
    for _ in range(35):  # halves log 400 to below 1e-9
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))
