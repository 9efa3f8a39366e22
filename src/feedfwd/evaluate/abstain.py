"""When to answer and when to say "unsure": risk and coverage, and a threshold that keeps a promised error.

The promise is Learn-then-Test (Angelopoulos et al. 2021, arXiv 2110.01052) on the error among the answered, as in
Geifman & El-Yaniv 2017, arXiv 1705.08500: if the examples to come are like those held out, then with probability
`level` over the draw of the held-out ones, at most a share `error` of the answers given will be wrong.
"""

# N examples, K thresholds

from dataclasses import dataclass
from math import ceil, log

import numpy as np
import numpy.typing as npt

from feedfwd.errors import ConfigError, DataError
from feedfwd.evaluate.arrays import Floats

Right = npt.NDArray[np.bool_]

CURVE_POINTS = 200
STARTS = (0.0, 1 / 8, 1 / 4, 1 / 2)  # coverages from which the threshold is lowered; the level is shared among them


@dataclass(frozen=True, slots=True)
class Abstention:
    """Answer where the confidence is at least `threshold`; on the examples it was fitted to that gave these shares."""

    threshold: float  # above 1: answer nothing
    error: float  # the target
    level: float
    coverage: float  # share answered
    wrong: float  # share of the answered that was wrong; 0 where nothing was answered
    n: int

    @property
    def possible(self) -> bool:
        """Whether anything may be answered under the promise."""
        return self.coverage > 0


def risk_coverage(confidence_N: Floats, right_N: Right, points: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """(share answered, share of those wrong) as the threshold falls, at most `points` of them; ties answer together.

    >>> risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True]))
    [(0.25, 0.0), (0.5, 0.0), (0.75, 0.3333333333333333), (1.0, 0.25)]
    """
    answered_K, wrong_K, _ = _by_threshold(confidence_N, right_N)
    chosen = np.unique(np.linspace(0, len(answered_K) - 1, min(points, len(answered_K))).round().astype(int))
    return [(float(answered_K[k] / len(right_N)), float(wrong_K[k] / answered_K[k])) for k in chosen]


def area_under_risk(confidence_N: Floats, right_N: Right) -> float:
    """Mean error over all coverages: 0 is perfect, the overall error is what a coin as confidence would give.

    >>> round(area_under_risk(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])), 4)
    0.1458
    """
    answered_K, wrong_K, _ = _by_threshold(confidence_N, right_N)
    return float((np.diff(answered_K, prepend=0) * wrong_K / answered_K).sum() / len(right_N))


def abstain_threshold(
    confidence_N: Floats, right_N: Right, error: float = 0.05, level: float = 0.9, steps: int = 200
) -> Abstention:
    """The lowest threshold under which the error among the answered is at most `error`, with confidence `level`.

    Thresholds are tried from high to low at every 1/`steps` of coverage; each is tested with the exact binomial
    p-value of its mistakes, and the walk ends at the first that fails, so that no correction for many tests is due
    (fixed-sequence testing). Four walks begin at the surest and at an eighth, a quarter and half of the coverage and
    share 1 − `level` among them: a mistake among the surest few, from which nothing can be concluded, ends one walk
    only. The held-out examples must not have been trained on. Where no threshold can keep the promise, `threshold` lies
    above 1.

    >>> rng = np.random.default_rng(0)
    >>> confidence = rng.uniform(0.5, 1, 2000)
    >>> found = abstain_threshold(confidence, rng.random(2000) < confidence, error=0.1)
    >>> found.wrong < 0.1, 0.2 < found.coverage < 0.4
    (True, True)
    """
    if not 0 < error < 1 or not 0 < level < 1:
        raise ConfigError(f"error={error:g} and level={level:g}", hint="both are shares between 0 and 1")
    from scipy.stats import binom  # takes a while, and is needed once a run

    n = len(right_N)
    answered_K, wrong_K, threshold_K = _by_threshold(confidence_N, right_N)
    # Which thresholds are tested must not depend on the answers: the examples' confidences alone decide.
    tested = np.unique(np.searchsorted(answered_K, np.arange(1, steps + 1) * n / steps).clip(max=len(answered_K) - 1))
    passes = binom.cdf(wrong_K[tested], answered_K[tested], error) <= (1 - level) / len(STARTS)
    enough = ceil(log((1 - level) / len(STARTS)) / log(1 - error))  # fewer prove nothing even without a mistake
    reached = []
    for start in STARTS:
        first = int(np.searchsorted(answered_K[tested], max(enough, start * n)))
        walk = passes[first:]
        if held := len(walk) if walk.all() else int(walk.argmin()):
            reached.append(first + held - 1)
    if not reached:
        return Abstention(float(np.nextafter(1.0, 2.0)), error, level, 0.0, 0.0, n)
    k = tested[max(reached)]
    return Abstention(
        float(threshold_K[k]), error, level, float(answered_K[k] / n), float(wrong_K[k] / answered_K[k]), n
    )


def _by_threshold(confidence_N: Floats, right_N: Right) -> tuple[Floats, Floats, Floats]:
    """For each different confidence, falling: how many are answered at or above it, how many of them wrongly, it."""
    if confidence_N.shape != right_N.shape or confidence_N.ndim != 1 or not len(right_N):
        raise DataError(
            f"confidences of the shape {confidence_N.shape} and answers of the shape {right_N.shape}",
            hint="one of each for every example, and at least one example",
        )
    order = np.argsort(-confidence_N, kind="stable")
    falling, wrong = confidence_N[order], np.cumsum(~right_N[order])
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return (last + 1).astype(np.float64), wrong[last].astype(np.float64), falling[last]
