"""Batches of queries with their candidates, exact to the batch on resume."""

# B queries of a batch, M candidates of all of them, H hard negatives of a query, T texts

from collections.abc import Iterator

import torch
from torch import Tensor

from feedfwd.data.batches import Batch, derived_seed
from feedfwd.data.pairs import Judged
from feedfwd.data.ragged import Ragged
from feedfwd.errors import DataError


class PairBatches(Iterator[Batch]):
    """An endless stream of batches of queries, an answer of each, and what is known not to answer them.

    A batch's inputs are the queries' rows and below them the candidates', each once. Its targets (B, M) are 1 for the
    answer, −1 for the query's other answers and itself, which don't count, and 0 for all other candidates. Each pair
    comes once an epoch; of labelled texts each text does, with another of its class. What is drawn depends on (seed,
    epoch, position) alone. An epoch's batches are of one size, give or take one.
    """

    def __init__(
        self,
        rows: Ragged,
        known: Judged,
        batch_size: int,
        *,
        seed: int = 0,
        negatives: int = 4,
        mined: tuple[Tensor, Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows, self.known, self.negatives, self.device = rows, known, negatives, device
        if known.class_T is not None:
            self.query_P, self.answer_P = _with_company(known.class_T), None
        else:
            self.query_P, self.answer_P = known.answers
            # what is somewhat relevant is neither an answer to learn nor a wrong one
            some = known.relevance_J > 0
            self.right = (known.query_J[some] * len(known.texts) + known.candidate_J[some]).sort().values
        if not len(self.query_P):
            raise DataError("no query has an answer to learn", hint="check the relevances, or the labels")
        self.wrong = _by_query([known.wrong, *([] if mined is None else [mined])], len(known.texts))
        self.batches_per_epoch = -(-len(self.query_P) // batch_size)
        self.seed, self.epoch, self.position = seed, 0, 0
        self._order: tuple[Tensor, ...] | None = None

    def __next__(self) -> Batch:
        queries, candidates, targets = self.drawn()
        rows = torch.cat([queries, candidates])
        return Batch(self.rows.padded(rows).to(self.device), targets.to(self.device))

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch by the texts' places: queries (B,), candidates (M,), and the targets (B, M)."""
        if self.position == self.batches_per_epoch:
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        if self._order is None:
            drawing = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
            self._order = torch.randperm(len(self.query_P), generator=drawing).tensor_split(self.batches_per_epoch)
        chosen = self._order[self.position]
        drawing = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch, self.position))
        self.position += 1
        queries = self.query_P[chosen]
        if self.answer_P is None:
            assert self.known.class_T is not None
            answers = _company(self.known.class_T, queries, drawing)
        else:
            answers = self.answer_P[chosen]
        candidates = torch.unique(torch.cat([answers, self._wrong(queries, drawing)]))
        targets = self._ignored(queries, candidates).long().neg()
        targets[torch.arange(len(queries)), torch.searchsorted(candidates, answers)] = 1
        return queries, candidates, targets

    def _wrong(self, queries: Tensor, drawing: torch.Generator) -> Tensor:
        """Up to so many hard negatives of each query."""
        if not len(self.wrong):
            return queries[:0]
        found = []
        for row in self.wrong.padded(queries):
            row = row[row >= 0]
            found.append(row[torch.randperm(len(row), generator=drawing)[: self.negatives]])
        return torch.cat(found).long()

    def _ignored(self, queries: Tensor, candidates: Tensor) -> Tensor:  # (B,), (M,) -> (B, M)
        same = queries[:, None] == candidates
        if self.known.class_T is not None:
            return same | (self.known.class_T[queries][:, None] == self.known.class_T[candidates])
        keys = queries[:, None] * len(self.known.texts) + candidates
        return same | torch.isin(keys, self.right)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not 0 <= state["position"] <= self.batches_per_epoch:
            raise DataError(
                f"position {state['position']} in an epoch of {self.batches_per_epoch} batches",
                hint="resume with the data and train.batch_size that the run began with",
            )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._order = None


def _with_company(class_T: Tensor) -> Tensor:
    """The texts whose class has another one."""
    counts = torch.bincount(class_T.clamp(min=0)[class_T >= 0], minlength=1)
    return ((class_T >= 0) & (counts[class_T.clamp(min=0)] > 1)).nonzero()[:, 0]


def _company(class_T: Tensor, queries: Tensor, drawing: torch.Generator) -> Tensor:
    """For each of the texts another one of its class, drawn."""
    order = class_T.argsort(stable=True)
    rank = order.argsort()
    first = torch.searchsorted(class_T[order], class_T[queries])
    size = torch.searchsorted(class_T[order], class_T[queries], right=True) - first
    shift = (torch.rand(len(queries), generator=drawing) * (size - 1)).long().clamp(max=size - 2) + 1
    return order[first + (rank[queries] - first + shift) % size]


def _by_query(pairs: list[tuple[Tensor, Tensor]], texts: int) -> Ragged:
    """The candidates of each text as rows, most of them empty; nothing at all where there are none."""
    query, candidate = (torch.cat(part) for part in zip(*pairs, strict=True))
    if not len(query):
        return Ragged(query, query)
    order = query.argsort(stable=True)
    return Ragged(candidate[order], torch.bincount(query, minlength=texts))
