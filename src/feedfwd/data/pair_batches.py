"""Batches of queries with their candidates, exact to the batch on resume."""

# B queries of a batch, M candidates of all of them, H hard negatives of a query, T texts

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from feedfwd.data.batches import Batch, derived_seed
from feedfwd.data.pairs import Judged
from feedfwd.data.ragged import Ragged
from feedfwd.errors import DataError


class Stream(Iterator[Batch]):
    """Examples in an order drawn from (seed, epoch), each once an epoch, in batches of one size, give or take one."""

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self.examples, self.batches_per_epoch = examples, -(-examples // batch_size)
        self.seed, self.epoch, self.position = seed, 0, 0
        self._order: tuple[Tensor, ...] | None = None

    def place(self) -> tuple[Tensor, torch.Generator]:
        """The next batch's examples, and what draws for it, by (seed, epoch, position)."""
        if self.position == self.batches_per_epoch:
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        drawing = torch.Generator()
        if self._order is None:
            order = torch.randperm(self.examples, generator=drawing.manual_seed(derived_seed(self.seed, self.epoch)))
            self._order = order.tensor_split(self.batches_per_epoch)
        chosen = self._order[self.position]
        drawing.manual_seed(derived_seed(self.seed, self.epoch, self.position))
        self.position += 1
        return chosen, drawing

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


class PairBatches(Stream):
    """An endless stream of batches of queries, an answer of each, and what is known not to answer them.

    A batch's inputs are the queries' rows and below them the candidates', each once. Its targets (B, M) are 1 for the
    answer, −1 for the query's other answers and itself, which don't count, and 0 for all other candidates. Each pair
    comes once an epoch; of labelled texts each text does, with another of its class.
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
        super().__init__(len(self.query_P), batch_size, seed)

    def __next__(self) -> Batch:
        queries, candidates, targets = self.drawn()
        rows = torch.cat([queries, candidates])
        return Batch(self.rows.padded(rows).to(self.device), targets.to(self.device))

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch by the texts' places: queries (B,), candidates (M,), and the targets (B, M)."""
        chosen, drawing = self.place()
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


class ListBatches(Stream):
    """An endless stream of batches of queries, each with some of its candidates in one row with it.

    The judgements are those of `known` and `more`, which count as none. Inputs are the pairs' rows, query by query, and
    targets (B, K) their relevances, −1 where a query has fewer than K. Of more candidates than `candidates` as many
    are drawn, half of them answers if there are so many, by (seed, epoch, position). Each query comes once an epoch;
    those whose candidates are all alike teach nothing and are left out. With `pairs` a batch is of single judgements,
    targets (B, 1), relevances from 0 to 1.
    """

    def __init__(
        self,
        rows: Callable[[Tensor, Tensor], Ragged],
        known: Judged,
        batch_size: int,
        *,
        seed: int = 0,
        candidates: int = 8,
        more: tuple[Tensor, Tensor] | None = None,
        pairs: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows, self.candidates, self.pairs, self.device = rows, candidates, pairs, device
        extra = (known.query_J[:0], known.candidate_J[:0]) if more is None else more
        query = torch.cat([known.query_J, extra[0]])
        order = query.argsort(stable=True)
        self.query_J = query[order]
        self.candidate_J = torch.cat([known.candidate_J, extra[1]])[order]
        self.relevance_J = torch.cat([known.relevance_J, torch.zeros(len(extra[0]))])[order]
        _, counts = torch.unique_consecutive(self.query_J, return_counts=True)
        places = torch.arange(len(order)).split(counts.tolist())  # type: ignore[no-untyped-call]
        if pairs:
            self.relevance_J = self.relevance_J / self.relevance_J.max()
            self.groups = list(torch.arange(len(order))[:, None])
        else:
            self.groups = [one for one in places if len(torch.unique(self.relevance_J[one])) > 1]
        if not self.groups or (pairs and len(torch.unique(self.relevance_J)) < 2):
            what = "all candidates are equally relevant" if pairs else "no query has candidates of different relevance"
            raise DataError(f"{what}: nothing to rank", hint="give answers and others of a query, or data.mined=7")
        super().__init__(len(self.groups), batch_size, seed)

    def __next__(self) -> Batch:
        queries, candidates, targets = self.drawn()
        rows = self.rows(queries, candidates)
        return Batch(rows.padded(torch.arange(len(rows))).to(self.device), targets.to(self.device))

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch by the texts' places: queries and candidates (R,), and the targets (B, K)."""
        chosen, drawing = self.place()
        parts = [self._some(self.groups[i], drawing) for i in chosen.tolist()]
        targets = torch.full((len(parts), max(map(len, parts))), -1.0)
        for i, part in enumerate(parts):
            targets[i, : len(part)] = self.relevance_J[part]
        places = torch.cat(parts)
        return self.query_J[places], self.candidate_J[places], targets

    def _some(self, places: Tensor, drawing: torch.Generator) -> Tensor:
        if len(places) <= self.candidates:
            return places
        places = places[torch.randperm(len(places), generator=drawing)]
        right = self.relevance_J[places] > 0
        answers = places[right][: max(self.candidates // 2, self.candidates - int((~right).sum()))]
        return torch.cat([answers, places[~right][: self.candidates - len(answers)]])
