"""Retrieval scores, against scikit-learn's and written out."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from feedfwd.errors import DataError
from feedfwd.evaluate import retrieval_scores
from feedfwd.evaluate.retrieval import ranking_scores

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 3, 50])
def test_they_are_the_formulas(k: int):
    scores, relevance = RNG.normal(size=(40, 12)), RNG.integers(0, 4, (40, 12)) * (RNG.random((40, 12)) < 0.3)
    relevance[0], relevance[1, 0] = 0, 1
    known = relevance.any(1)
    found = retrieval_scores(scores, relevance, at=[k])
    assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevance[known], scores[known], k=k))
    recall, first = [], []
    for s, r in zip(scores[known], relevance[known], strict=True):
        ranked = [bool(r[i]) for i in np.argsort(-s)]
        recall.append(sum(ranked[:k]) / sum(ranked))
        first.append(1 / (1 + ranked.index(True)))
    assert found[f"recall@{k}"] == pytest.approx(np.mean(recall)) and found["mrr"] == pytest.approx(np.mean(first))
    assert len(ranking_scores(scores, relevance)["mrr"]) == known.sum()


@pytest.mark.parametrize(
    ("scores", "relevance", "words"),
    [
        ([[1.0, 2.0]], [[0, 0]], "no query has a right answer"),
        ([[1.0, 2.0]], [[1]], "relevances of the shape"),
        ([[1.0, np.nan]], [[1, 0]], "not finite"),
        ([[1.0, 2.0]], [[1, -1]], "below 0"),
    ],
)
def test_bad_input_is_told(scores, relevance, words: str):
    with pytest.raises(DataError, match=words):
        retrieval_scores(scores, relevance)
