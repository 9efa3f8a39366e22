"""Scores of a ranking: how high the right answers stand. Several answers of a query may be right, to any degree."""

# Q queries, M candidates, K places

from collections.abc import Sequence

import numpy as np

from feedfwd.errors import DataError
from feedfwd.evaluate.arrays import Floats, Values, floats


def retrieval_scores(scores: Values, relevance: Values, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Means over the queries that have a right answer, from (Q, M) scores and (Q, M) relevances (0: not right).

    - recall@k: share of a query's right answers among its first k
    - hit@k: whether one of its right answers is among its first k
    - mrr: 1 / place of the first right answer
    - ndcg@k: Σ relevance / log2(1 + place) over the first k, divided by that of the best order (Järvelin &
      Kekäläinen 2002, with the relevance itself as gain)

    Equal scores keep the candidates' order. DataError when the shapes differ or no query has a right answer.

    >>> retrieval_scores([[0.9, 0.8, 0.1], [0.2, 0.1, 0.3]], [[0, 1, 1], [1, 0, 0]], at=[2])
    {'recall@2': 0.75, 'hit@2': 1.0, 'mrr': 0.5, 'ndcg@2': 0.5088912804029996}
    """
    found_QK = ranking_scores(scores, relevance, at)
    return {name: float(values.mean()) for name, values in found_QK.items()}


def ranking_scores(scores: Values, relevance: Values, at: Sequence[int] = (1, 5, 10)) -> dict[str, Floats]:
    """The same query by query, (Q',) each, for intervals and comparisons."""
    s_QM, r_QM = floats(scores), floats(relevance)
    if s_QM.ndim != 2 or s_QM.shape != r_QM.shape or not s_QM.size:
        raise DataError(
            f"scores of the shape {s_QM.shape} and relevances of the shape {r_QM.shape}",
            hint="both are (queries, candidates)",
        )
    if not np.isfinite(s_QM).all() or not np.isfinite(r_QM).all() or (r_QM < 0).any():
        raise DataError("a score or a relevance is not finite, or a relevance is below 0", hint="0 means: not right")
    known = (r_QM > 0).any(1)
    if not known.any():
        raise DataError("no query has a right answer among the candidates", hint="mark at least one with 1")
    s_QM, r_QM = s_QM[known], r_QM[known]
    ranked_QM = np.take_along_axis(r_QM, np.argsort(-s_QM, axis=1, kind="stable"), 1)
    most = min(max(at), r_QM.shape[1])
    ideal_QK = -np.sort(np.partition(-r_QM, most - 1, axis=1)[:, :most], axis=1)
    worth_K = 1 / np.log2(np.arange(2, most + 2))
    right_QM = ranked_QM > 0
    found = {f"recall@{k}": right_QM[:, :k].sum(1) / right_QM.sum(1) for k in at}
    found |= {f"hit@{k}": right_QM[:, :k].any(1).astype(float) for k in at}
    found["mrr"] = 1 / (1.0 + right_QM.argmax(1))
    found |= {f"ndcg@{k}": ranked_QM[:, :k] @ worth_K[:k] / (ideal_QK[:, :k] @ worth_K[:k]) for k in at}
    return found
