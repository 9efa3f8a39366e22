"""Labels that are likely wrong, by confident learning: Northcutt et al. 2021, arXiv 1911.00068."""

# N examples, C classes

from dataclasses import dataclass

import numpy as np

from feedfwd.evaluate.arrays import Values, checked_probabilities


@dataclass(frozen=True, slots=True)
class LikelyError:
    """The example at `place` bears the label `given`; the model, which never saw it, holds `likelier` for true."""

    place: int
    given: int
    likelier: int
    probability_given: float
    probability_likelier: float


def label_errors(probabilities: Values, labels: Values, most: int | None = None) -> list[LikelyError]:
    """Examples whose label another class contradicts, the clearest first; at most so many.

    `probabilities` (N, C) are of models that were not trained on the example (cross-validated or held out). A class
    claims an example where its probability is at least the class's mean over the examples that bear it, which puts
    up with a class of which the model is never sure; an example that another class claims, and claims more
    strongly, is listed (the paper's off-diagonal of the confident joint), ranked by how far the claim lies ahead.

    >>> p = [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]]
    >>> [(e.place, e.given, e.likelier) for e in label_errors(p, [0, 0, 1, 1, 1])]
    [(4, 1, 0)]
    """
    p_NC, y_N = checked_probabilities(probabilities, labels)
    n, classes = p_NC.shape
    there_C = np.bincount(y_N, minlength=classes)
    usual_C = np.bincount(y_N, p_NC[np.arange(n), y_N], minlength=classes) / np.maximum(there_C, 1)
    claims_NC = np.where((p_NC >= usual_C) & (there_C > 0), p_NC, -1.0)
    likelier_N = claims_NC.argmax(1)
    own_N = p_NC[np.arange(n), y_N]
    ahead_N = claims_NC[np.arange(n), likelier_N] - own_N
    found = np.flatnonzero((likelier_N != y_N) & (ahead_N > 0))
    return [
        LikelyError(
            int(i), int(y_N[i]), int(likelier_N[i]), float(own_N[i]), float(claims_NC[i, likelier_N[i]])
        )
        for i in found[np.argsort(-ahead_N[found], kind="stable")][:most]
    ]  # fmt: skip
