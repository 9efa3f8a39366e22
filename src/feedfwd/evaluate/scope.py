"""Whether a text belongs to any of the classes at all: scores that are high inside the scope and low outside.

Compared on several data sets in Larson et al. 2019, "An evaluation dataset for intent classification and out-of-scope
prediction", and Podolskiy et al. 2021, arXiv 2101.03778 (distances in a fine-tuned encoder win).
"""

# N examples, C classes, D width of an embedding, M examples in memory, S scores

from collections.abc import Sequence
from math import floor

import numpy as np

from feedfwd.errors import ConfigError, DataError
from feedfwd.evaluate.arrays import Floats, Values, floats

NEIGHBOURS = 1  # of intents held out the nearest text told more than the mean of several (LOG.md)
AT_ONCE = 2**24  # similarities held at a time


def max_probability(logits: Values, temperature: float = 1.0) -> Floats:
    """The largest probability (N,): Hendrycks & Gimpel 2017, arXiv 1610.02136.

    >>> max_probability([[0.0, 0.0], [5.0, 0.0]]).round(3)
    array([0.5  , 0.993])
    """
    z_NC = floats(logits) / temperature
    return np.asarray(1 / np.exp(z_NC - z_NC.max(1, keepdims=True)).sum(1))


def energy(logits: Values, temperature: float = 1.0) -> Floats:
    """T log Σ exp(z / T), the negative energy (N,): Liu et al. 2020, arXiv 2010.03759, equation 4.

    >>> energy([[0.0, 0.0], [5.0, 0.0]]).round(3)
    array([0.693, 5.007])
    """
    z_NC = floats(logits) / temperature
    top_N = z_NC.max(1)
    return np.asarray(temperature * (top_N + np.log(np.exp(z_NC - top_N[:, None]).sum(1))))


def joint_energy(logits: Values, temperature: float = 1.0) -> Floats:
    """Σ_c T log(1 + exp(z_c / T)), where an example may have several labels (N,): Wang et al. 2021, arXiv 2111.12797.

    >>> joint_energy([[0.0, 0.0], [5.0, 0.0]]).round(3)
    array([1.386, 5.7  ])
    """
    return np.asarray(temperature * np.logaddexp(0, floats(logits) / temperature).sum(1))


def unit(vectors: Values) -> Floats:
    """The vectors scaled to length 1, a zero left as it is; (N, D)."""
    v_ND = floats(vectors)
    return np.asarray(v_ND / np.maximum(np.sqrt((v_ND**2).sum(1, keepdims=True)), 1e-12))


def nearest(embeddings: Values, memory: Values, k: int = NEIGHBOURS) -> tuple[Floats, np.ndarray]:
    """Cosines and places of the `k` nearest memories of each embedding, the nearest first: (N, k) both.

    >>> cosines, places = nearest([[1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0], [1.0, 1.0]], k=2)
    >>> cosines.round(3).tolist(), places.tolist()
    ([[1.0, 0.707]], [[1, 2]])
    """
    e_ND, m_MD = unit(embeddings), unit(memory)
    if e_ND.shape[1:] != m_MD.shape[1:] or not len(m_MD):
        raise DataError(f"embeddings {e_ND.shape} against a memory {m_MD.shape}", hint="both need the same width")
    k, rows = min(k, len(m_MD)), max(1, AT_ONCE // len(m_MD))
    cosines, places = [np.zeros((0, k))], [np.zeros((0, k), np.int64)]
    for i in range(0, len(e_ND), rows):
        near = e_ND[i : i + rows] @ m_MD.T
        best = np.argpartition(-near, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(near, best, 1)
        order = np.argsort(-found, axis=1, kind="stable")
        cosines.append(np.take_along_axis(found, order, 1))
        places.append(np.take_along_axis(best, order, 1))
    return np.concatenate(cosines), np.concatenate(places)


def neighbours(embeddings: Values, memory: Values, k: int = NEIGHBOURS) -> Floats:
    """Mean cosine with the `k` nearest memories (N,), the training texts': Sun et al. 2022, arXiv 2204.06507."""
    return np.asarray(nearest(embeddings, memory, k)[0].mean(1))


def standardized(score_N: Floats, mean: float, std: float) -> Floats:
    """In standard deviations from the mean of the held-out examples, so that scores of different kinds add up."""
    return (score_N - mean) / max(std, 1e-12)


def combined(scores: Sequence[Floats], spread: Sequence[tuple[float, float]]) -> Floats:
    """Mean of several scores (N,), each standardized by its (mean, standard deviation) on held-out examples.

    >>> combined([np.array([1.0, 3.0]), np.array([10.0, 10.0])], [(2, 1), (10, 5)]).tolist()
    [-0.5, 0.5]
    """
    return np.mean([standardized(s, *at) for s, at in zip(scores, spread, strict=True)], axis=0, dtype=np.float64)


def scope_threshold(score_N: Floats, false_reject: float = 0.05) -> float:
    """The score below which a text counts as out of scope; held-out texts inside the scope give `score_N`.

    The ⌊false_reject (N + 1)⌋-th smallest: a further text from inside falls below it with a probability of at most
    `false_reject`, on average over the held-out ones (split conformal prediction, Vovk et al. 2005). −∞, which
    rejects nothing, where there are too few.

    >>> scope_threshold(np.arange(1.0, 100.0), 0.05), scope_threshold(np.arange(3.0), 0.05)
    (5.0, -inf)
    """
    if not 0 < false_reject < 1:
        raise ConfigError(f"false_reject={false_reject:g}", hint="a share between 0 and 1, such as 0.05")
    rank = floor(false_reject * (len(score_N) + 1) + 1e-9)
    return float(np.sort(score_N)[rank - 1]) if rank else float("-inf")
