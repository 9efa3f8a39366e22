"""BM25: how well the words alone find an answer. What every search by vectors has to beat."""

# Q queries, M candidates, V words

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from feedfwd.evaluate.arrays import Floats

# Scripts without spaces give single characters and pairs of them; others words.
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
WORD = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+")


def words(text: str) -> list[str]:
    """
    >>> words("Where's my 信用卡?")
    ['where', 's', 'my', '信', '用', '卡', '信用', '用卡']
    """
    found: list[str] = []
    for run in WORD.findall(text.casefold()):
        if re.match(rf"[{UNSPACED}]", run):
            found += [*run, *(run[i : i + 2] for i in range(len(run) - 1))]
        else:
            found.append(run)
    return found


class BM25:
    """Candidates that are looked up by words; Robertson & Zaragoza 2009, "The probabilistic relevance framework".

        score = Σ_w idf_w · n (k + 1) / (n + k (1 − b + b · length / mean length)),  n times that w is in the candidate
        idf_w = log(1 + (M − m + ½) / (m + ½)),  m candidates that have it

    >>> found = BM25(["a lost card", "a new account", "the exchange rate"]).scores(["card lost"])
    >>> int(found.argmax()), found[0, 1:].tolist()
    (0, [0.0, 0.0])
    """

    def __init__(self, candidates: Sequence[str], *, k: float = 1.2, b: float = 0.75) -> None:
        from scipy.sparse import csr_matrix

        self.place: dict[str, int] = {}
        for text in candidates:
            for word in words(text):
                self.place.setdefault(word, len(self.place))
        counts = self._counts(candidates)
        length_M = np.asarray(counts.sum(1)).ravel()
        norm_M = k * (1 - b + b * length_M / max(1e-9, float(length_M.mean())))
        holding_V = np.bincount(counts.indices, minlength=counts.shape[1])
        idf_V = np.log(1 + (counts.shape[0] - holding_V + 0.5) / (holding_V + 0.5))
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        worth = idf_V[counts.indices] * counts.data * (k + 1) / (counts.data + norm_M[rows])
        self.worth_VM = csr_matrix((worth, counts.indices, counts.indptr), shape=counts.shape).T.tocsr()

    def _counts(self, texts: Sequence[str]) -> Any:
        """How often each text has each known word, (N, V), sparse."""
        from scipy.sparse import csr_matrix

        ends, columns = [0], []
        for text in texts:
            columns += [self.place[word] for word in words(text) if word in self.place]
            ends.append(len(columns))
        found = csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(texts), max(1, len(self.place))))
        found.sum_duplicates()
        return found

    def scores(self, queries: Sequence[str]) -> Floats:  # -> (Q, M)
        """A word that a query repeats counts as often."""
        found: Floats = (self._counts(queries) @ self.worth_VM).toarray()
        return found
