"""`feedfwd finetune --task rank`: a model reads query and candidate as one row and says how well one answers."""

# R pairs, Q queries, K candidates of one query at most, T texts

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from feedfwd.config import parse
from feedfwd.config_retrieval import RankConfig, preset
from feedfwd.data.pair_batches import ListBatches
from feedfwd.data.pair_rows import PairRows, Tokens
from feedfwd.data.pairs import Judged
from feedfwd.data.ragged import Ragged
from feedfwd.errors import DataError
from feedfwd.evaluate.arrays import Floats
from feedfwd.evaluate.intervals import bootstrap_interval
from feedfwd.evaluate.lexical import BM25
from feedfwd.evaluate.metrics import auroc
from feedfwd.evaluate.retrieval import ranking_scores
from feedfwd.models.similarity import PairReader, TextVectors
from feedfwd.models.transformer import build
from feedfwd.recipes.classifier import TokenReader
from feedfwd.recipes.console import Listener
from feedfwd.recipes.embed import LOOKED_AT, SHARES, TIE, short
from feedfwd.recipes.prepare import usable_device, use_threads
from feedfwd.recipes.pretrained import load_pretrained
from feedfwd.recipes.ranker import Ranker
from feedfwd.recipes.retrieval import (
    Measured,
    Prepared,
    Scores,
    adapt_encoder,
    dry_run_config,
    parts,
    resume_run,
    run_config,
)
from feedfwd.recipes.searcher import passed
from feedfwd.train.contrastive import listwise, pointwise
from feedfwd.train.losses import Loss
from feedfwd.train.precision import choose, products

RERANKED = 30  # candidates that BM25 finds for a test query without negatives
AT_ONCE = 256  # queries that BM25 scores at a time

Pairs = tuple[Tensor, Tensor]  # queries and candidates, (R,) each, by their places


@dataclass
class PreparedLists(Prepared):
    verb: ClassVar[str] = "rank"

    pairs: PairRows = field(kw_only=True)
    tokens: list[Tokens] = field(default_factory=list)  # of each text
    mined: Pairs | None = None  # for training queries without negatives
    tested: dict[str, Pairs] = field(default_factory=dict)  # what is ranked of each part

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "pairs" if self.by_itself else "queries"

    @property
    def by_itself(self) -> bool:
        """Whether candidates are judged one by one."""
        return bool(self.config.loss.name == "pointwise")

    def rows(self, queries: Tensor, candidates: Tensor) -> Ragged:
        couples = zip(queries.tolist(), candidates.tolist(), strict=True)
        return self.pairs.rows((self.tokens[q], self.tokens[c]) for q, c in couples)

    def batches(self) -> ListBatches:
        c = self.config
        return ListBatches(
            self.rows,
            self.data.train,
            c.train.batch_size,
            seed=c.seed,
            candidates=c.data.candidates,
            more=self.mined,
            pairs=self.by_itself,
            device=self.device,
        )

    def loss(self) -> Loss:
        return pointwise if self.by_itself else listwise

    @property
    def examples(self) -> int:
        return self.batches().examples

    @property
    def places(self) -> int:
        queries, candidates, _ = self.batches().drawn()
        return int(self.rows(queries, candidates).lengths.sum())

    def measured(self, part: str) -> Measured:
        queries, candidates = self.tested[part]
        return self._of(part, passed(self.model, self.rows(queries, candidates))[:, 0].double().numpy())

    def _of(self, part: str, scores_R: Floats) -> Measured:
        measure = of_pairs if self.by_itself else of_lists
        return measure(self.data.known, self.tested[part], scores_R)

    def compared(self) -> dict[str, Scores]:
        queries, candidates = self.tested["test"]
        assert isinstance(self.model, PairReader) and self.pretrained is not None
        vectors = passed(TextVectors(self.model.backbone, pooling=self.pretrained.pooling), self.alone())
        cosines = (vectors[queries] * vectors[candidates]).sum(1).double().numpy()
        found = {"its vectors as they came": self._of("test", cosines).scores}
        return found | {"BM25": self._of("test", by_words(self.data.known, queries, candidates)).scores}

    def alone(self) -> Ragged:
        """Each text as a row of its own."""
        assert self.pretrained is not None
        return TokenReader(self.pretrained.tokenizer, self.pairs.longest).rows(self.data.known.texts)

    def about_model(self) -> list[str]:
        assert isinstance(self.model, PairReader) and self.pretrained is not None
        b, (queries, candidates) = self.model.backbone, self.tested["test"]
        lengths = self.rows(queries[:1000], candidates[:1000]).lengths
        how = "each pair by itself" if self.by_itself else "softmax over a query's candidates"
        kind = "decoder" if b.causal else "encoder"
        return [
            f"from {self.pretrained.name}: {self.pretrained.family or 'a run of ours'}, {kind} of {len(b.blocks)} "
            f"layers, {b.width} wide; {float(lengths.float().mean()):,.0f} tokens a pair",
            f"{how}; the two texts' cosine, and a linear map of the {self.model.pooling} state; {self.adapted}",
        ]

    def example(self) -> list[str]:
        """A query with candidates of its batch, and a row as the model sees it."""
        queries, candidates, targets = self.batches().drawn()
        texts, many = self.data.known.texts, int((targets[0] >= 0).sum())
        lines = [f"an example: {short(texts[queries[0]])!r}"]
        for place, value in list(zip(candidates[:many].tolist(), targets[0].tolist(), strict=False))[:4]:
            lines.append(f"  relevance {value:.3g}: {short(texts[place], 100)!r}")
        row = next(iter(self.rows(queries[:1], candidates[:1]))).tolist()
        lines.append(f"the model sees {len(row)} tokens: {short(self.pairs.decode(row))!r}")
        return lines

    def keeper(self, run: Path) -> Ranker:
        assert isinstance(self.model, PairReader)
        return Ranker(self.model.eval(), self.config, self.pairs, run)


def prepare_lists(config: RankConfig, *, resolved: bool = False) -> PreparedLists:
    """Read, split, encode, build. `resolved` settings come from a run and already carry their preset."""
    if not resolved:
        config = config.over(preset(config))
    use_threads(config.train.threads)
    data = parts(config)
    if config.loss.name == "auto":
        config = config.with_("loss.name", "pointwise" if judged_alone(data.known) else "listwise")
    by_itself = config.loss.name == "pointwise"
    device, e = usable_device(config.train.device), config.encoder
    torch.manual_seed(config.seed)
    pretrained = load_pretrained(config.pretrained, dropout=e.dropout)
    backbone = pretrained.model
    if backbone.end is not None:  # the token that would tell two documents apart stands between the two texts
        backbone = build(pretrained.settings | {"end": None})
        backbone.load_state_dict(pretrained.model.state_dict())
    model = PairReader(backbone, pooling=pretrained.pooling if e.pooling == "auto" else e.pooling)
    adapted = adapt_encoder(model, config, pretrained)
    pairs = PairRows(pretrained.tokenizer, min(e.longest, pretrained.longest), backbone.vocabulary)
    p = PreparedLists(
        config=config,
        model=model.to(device).train(),  # all of it: a pretrained model comes in evaluation
        data=data,
        pretrained=pretrained,
        reader=TokenReader(pretrained.tokenizer, pairs.longest),
        precision=choose(config.train.precision, device, []),
        device=device,
        adapted=adapted,
        pairs=pairs,
        tokens=pairs.tokens(data.known.texts),
    )
    if by_itself:
        _centre(p)
    else:
        train = data.queries["train"]
        p.mined = Finder(data.known).beside(data.train, train, config.data.mined)
        if len(p.mined[0]):
            p.notes.append(
                f"queries without negatives get {config.data.mined} that BM25 finds, and in the test {RERANKED}"
            )
    for part, queries in data.queries.items():
        if part != "train":
            queries = queries[:LOOKED_AT] if part == "validation" else queries
            p.tested[part] = to_rank(data.known, queries, by_itself=by_itself)
    p.notes += _cut(p)
    p.precision = choose(config.train.precision, device, products(model, p.places))
    return p


def _centre(p: PreparedLists, most: int = 256) -> None:
    """Let the scores of the first training pairs be 0 on average, for a cosine of ½ would mean sure already."""
    queries, candidates = _judged(p.data.known, p.data.queries["train"])
    found = passed(p.model, p.rows(queries[:most], candidates[:most]))
    assert isinstance(p.model, PairReader)
    with torch.no_grad():
        p.model.mlp.head.bias.sub_(found.mean())


def judged_alone(known: Judged) -> bool:
    """Whether most queries have no two candidates to compare, and relevances differ all the same.

    >>> known = Judged(("a", "b", "c", "d"), torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([0.0, 1.0]))
    >>> judged_alone(known)
    True
    """
    if len(torch.unique(known.relevance_J)) < 2:
        return False
    queries = known.queries
    row = torch.searchsorted(queries, known.query_J)
    low = torch.full((len(queries),), torch.inf).scatter_reduce(0, row, known.relevance_J, "amin")
    high = torch.full((len(queries),), -torch.inf).scatter_reduce(0, row, known.relevance_J, "amax")
    return 2 * int((low < high).sum()) < len(queries)


def to_rank(known: Judged, queries: Tensor, *, by_itself: bool) -> Pairs:
    """What a test ranks: the judged candidates of each query, and what BM25 finds where none is known to be wrong."""
    given = _judged(known, queries)
    if by_itself:
        return given
    more = Finder(known).beside(known, queries, RERANKED)
    return torch.cat([given[0], more[0]]), torch.cat([given[1], more[1]])


def _judged(known: Judged, queries: Tensor) -> Pairs:
    part = known.of(queries)
    return part.query_J, part.candidate_J


def _cut(p: PreparedLists) -> list[str]:
    long = sum(len(p.tokens[q]) + len(p.tokens[c]) > p.pairs.room for q, c in zip(*_lists(p.data.known), strict=True))
    share = long / len(p.data.known.query_J)
    return [f"{share:.1%} of the pairs are longer than {p.pairs.longest} tokens and cut there"] if long else []


def _lists(known: Judged) -> tuple[list[int], list[int]]:
    return known.query_J.tolist(), known.candidate_J.tolist()


class Finder:
    """Candidates by BM25, for queries of which nothing is known to be wrong."""

    def __init__(self, known: Judged) -> None:
        self.known, self.pool = known, known.candidates
        self.words = BM25([known.texts[i] for i in self.pool.tolist()])

    def beside(self, known: Judged, queries: Tensor, count: int) -> Pairs:
        """The first `count` for each of the queries that has no judgement of 0, but for its answers and itself."""
        bare = queries[~torch.isin(queries, known.wrong[0])]
        found: list[Pairs] = []
        for q in torch.split(bare, AT_ONCE) if count else ():
            scores = torch.from_numpy(self.words.scores([known.texts[i] for i in q.tolist()]))
            out = (self.known.relevance(q, self.pool) > 0) | (q[:, None] == self.pool)
            best, place = scores.masked_fill(out, -1.0).topk(min(count, len(self.pool)), 1)
            row, column = (best >= 0).nonzero(as_tuple=True)
            found.append((q[row], self.pool[place[row, column]]))
        if not found:
            return bare[:0], bare[:0]
        return torch.cat([q for q, _ in found]), torch.cat([c for _, c in found])


def by_words(known: Judged, queries: Tensor, candidates: Tensor) -> Floats:
    """BM25's score of each pair, (R,)."""
    pool = known.candidates
    words, column = BM25([known.texts[i] for i in pool.tolist()]), torch.searchsorted(pool, candidates)
    found = np.zeros(len(queries))
    for q in torch.split(torch.unique(queries), AT_ONCE):
        scores = words.scores([known.texts[i] for i in q.tolist()])
        here = torch.isin(queries, q)
        found[here.numpy()] = scores[torch.searchsorted(q, queries[here]).numpy(), column[here].numpy()]
    return found


def of_lists(known: Judged, pairs: Pairs, scores_R: Floats) -> Measured:
    """Scores of each query's ranking among its own candidates."""
    queries, relevance_R = pairs[0], _relevance(known, pairs)
    order = queries.argsort(stable=True)
    asked, counts = torch.unique_consecutive(queries[order], return_counts=True)
    row = torch.arange(len(asked)).repeat_interleave(counts)
    column = torch.arange(len(order)) - (counts.cumsum(0) - counts)[row]
    scores = torch.full((len(asked), int(counts.max())), float(scores_R.min()) - 1.0, dtype=torch.float64)
    relevance = torch.zeros_like(scores)
    scores[row, column] = torch.from_numpy(scores_R)[order]
    relevance[row, column] = relevance_R[order].double()
    found = ranking_scores(scores - TIE * (relevance > 0), relevance)
    return Measured.of_queries({name: found[name] for name in SHARES})


def _relevance(known: Judged, pairs: Pairs) -> Tensor:
    """Of each pair, (R,); 0 where nothing is known."""
    many = len(known.texts)
    keys, order = (known.query_J * many + known.candidate_J).sort()
    asked = pairs[0] * many + pairs[1]
    place = torch.searchsorted(keys, asked).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == asked, known.relevance_J[order][place], 0.0)


def of_pairs(known: Judged, pairs: Pairs, scores_R: Floats) -> Measured:
    """How well scores tell relevance of pairs one by one: rank correlation, and of yes and no AUROC as well."""
    from scipy.stats import rankdata

    relevance_R = _relevance(known, pairs).double().numpy()
    if len(np.unique(relevance_R)) < 2:
        raise DataError("all test pairs are equally relevant: nothing to rank", hint="give another test part")
    ranks = np.stack([rankdata(scores_R), rankdata(relevance_R)], 1)
    low, high = bootstrap_interval(_correlation, ranks)
    scores = {"spearman": float(_correlation(ranks[None])[0])}
    if len(np.unique(relevance_R)) == 2:
        scores = {"auroc": auroc(scores_R, relevance_R > relevance_R.min())} | scores
    return Measured(scores, len(relevance_R), {"spearman": [float(low), float(high)]})


def _correlation(ranks: Floats) -> Floats:  # (B, R, 2) -> (B,)
    centred = ranks - ranks.mean(1, keepdims=True)
    spread = np.sqrt((centred**2).sum(1).prod(1))
    found: Floats = centred.prod(2).sum(1) / np.maximum(spread, 1e-12)
    return found


# --- the verb ---------------------------------------------------------------------------------------------------------


def rank_config(
    config: RankConfig, run_path: Path | None = None, listener: Listener | None = None, *, started: float | None = None
) -> Ranker:
    """Train by `config` into a new run directory; returns the trained ranker."""
    found: Ranker = run_config(prepare_lists, config, run_path, listener, started or time.perf_counter())
    return found


def dry_run(config: RankConfig, listener: Listener) -> Prepared:
    """Everything up to the first update, and what training would cost; nothing is written."""
    return dry_run_config(prepare_lists, config, listener)


def resume(path: Path, listener: Listener | None = None, *, started: float | None = None) -> Ranker:
    """Continue an interrupted run, to the same bits on the same machine, versions and threads."""
    made = partial(parse, RankConfig)
    found: Ranker = resume_run(prepare_lists, made, "rank", path, listener, started or time.perf_counter())
    return found
