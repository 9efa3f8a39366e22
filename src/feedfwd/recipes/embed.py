"""`feedfwd finetune --task embed`: texts learn vectors, near to each other where one answers the other."""

# Q queries, M candidates, W width

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from feedfwd.config import parse
from feedfwd.config_retrieval import EmbedConfig, preset
from feedfwd.data.pair_batches import PairBatches
from feedfwd.data.pairs import Judged
from feedfwd.data.ragged import Ragged
from feedfwd.errors import DataError
from feedfwd.evaluate.arrays import Floats
from feedfwd.evaluate.lexical import BM25
from feedfwd.evaluate.retrieval import ranking_scores
from feedfwd.models.similarity import BagVectors, TextVectors
from feedfwd.recipes.classifier import Reader, TokenReader
from feedfwd.recipes.console import Listener
from feedfwd.recipes.prepare import usable_device, use_threads
from feedfwd.recipes.pretrained import load_pretrained
from feedfwd.recipes.retrieval import (
    Measured,
    Parts,
    Prepared,
    Scores,
    adapt_encoder,
    cut_note,
    dry_run_config,
    parts,
    resume_run,
    run_config,
)
from feedfwd.recipes.searcher import NgramReader, TextEncoder, passed
from feedfwd.train.contrastive import contrastive
from feedfwd.train.losses import Loss
from feedfwd.train.precision import choose, products

AT_ONCE = 256  # queries that are scored against all candidates at a time
TIE = 1e-9  # an answer stands below what scores the same
LOOKED_AT = 500  # validation queries that a look on the way takes at most
SHARES = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")
HITS = ("hit@1", "hit@5", "hit@10", "mrr", "ndcg@10")
TOO_NEAR = 0.95  # share of an answer's cosine from which on a text looks like another answer


@dataclass
class PreparedVectors(Prepared):
    verb: ClassVar[str] = "embed"
    unit: ClassVar[str] = "pairs"

    rows: Ragged = field(default_factory=lambda: Ragged.concatenated([]))  # of all texts
    mined: tuple[Tensor, Tensor] | None = None
    before: Tensor | None = None  # vectors of all texts by the model as it came

    @property
    def vectors(self) -> TextVectors | BagVectors:
        assert isinstance(self.model, TextVectors | BagVectors)
        return self.model

    def batches(self) -> PairBatches:
        c = self.config
        return PairBatches(
            self.rows,
            self.data.train,
            c.train.batch_size,
            seed=c.seed,
            negatives=c.data.negatives,
            mined=self.mined,
            device=self.device,
        )

    def loss(self) -> Loss:
        return partial(contrastive, temperature=self.config.loss.temperature)

    @property
    def examples(self) -> int:
        return len(self.batches().query_P)

    @property
    def places(self) -> int:
        hard = self.config.data.negatives if len(self.batches().wrong) else 0
        return round(self.config.train.batch_size * (2 + hard) * float(self.rows.lengths.float().mean()))

    def measured(self, part: str) -> Measured:
        queries = self.data.queries[part]
        if part == "validation":
            queries = queries[:LOOKED_AT]
        return Measured.of_queries(found_by(self.data.known, queries, passed(self.model, self.rows)))

    def compared(self) -> dict[str, Scores]:
        known, queries = self.data.known, self.data.queries["test"]
        came = passed(self.model, self.rows) if self.before is None else self.before
        name = "untrained" if self.pretrained is None else "as it came"
        found = {name: found_by(known, queries, came), "BM25": found_by_words(known, queries)}
        return {name: Measured.of_queries(values).scores for name, values in found.items()}

    def about_model(self) -> list[str]:
        lengths = self.rows.lengths
        mean, model = float(lengths.float().mean()), self.model
        if isinstance(model, BagVectors):
            b = self.config.bag
            return [
                f"bag of n-grams ({mean:,.0f} a text) in {b.buckets:,} buckets; vectors {b.width} wide: "
                f"{model.parameter_count:,} parameters"
            ]
        assert isinstance(model, TextVectors) and self.pretrained is not None
        b = model.backbone
        kind = "decoder" if b.causal else "encoder"
        return [
            f"from {self.pretrained.name}: {self.pretrained.family or 'a run of ours'}, {kind} of {len(b.blocks)} "
            f"layers, {b.width} wide; {mean:,.0f} tokens a text, at most {int(lengths.max()):,}",
            f"{model.pooling} of the last states, scaled to length 1; {self.adapted}",
        ]

    def example(self) -> list[str]:
        """A query with its answer and what it is told apart from, and what the model sees of it."""
        queries, candidates, targets = self.batches().drawn()
        texts = self.data.known.texts
        answer = int(candidates[targets[0].argmax()])
        others = candidates[targets[0] == 0].tolist()
        lines = [f"an example: {short(texts[queries[0]])!r} → {short(texts[answer])!r}"]
        shown = ", ".join(repr(short(texts[one], 60)) for one in others[:2])
        apart = (targets == 0).sum(1).float().mean()
        lines.append(f"told apart from {len(others)} other texts of its batch, such as {shown or 'none'}")
        lines.append(f"on average {apart:,.0f} others a query; {int((targets < 0).sum()):,} in the batch don't count")
        if self.pretrained is not None:
            ids = next(iter(self.rows.select(queries[:1]))).tolist()
            seen = self.pretrained.tokenizer.decode(ids, special=True)
            lines.append(f"the model sees {len(ids)} tokens: {short(seen)!r}")
        return lines

    def keeper(self, run: Path) -> TextEncoder:
        return TextEncoder(self.vectors.eval(), self.config, self.reader, run)


def prepare_vectors(config: EmbedConfig, *, resolved: bool = False) -> PreparedVectors:
    """Read, split, encode, build. `resolved` settings come from a run and already carry their preset."""
    if not resolved:
        config = config.over(preset(config))
    use_threads(config.train.threads)
    data = parts(config)
    check(data.train)
    device = usable_device(config.train.device)
    torch.manual_seed(config.seed)
    pretrained, adapted, notes = None, "", []
    model: TextVectors | BagVectors
    reader: Reader
    if config.pretrained is None:
        model, reader = BagVectors(config.bag.buckets, config.bag.width), NgramReader(config.bag)
    else:
        e = config.encoder
        pretrained = load_pretrained(config.pretrained, dropout=e.dropout)
        model = TextVectors(pretrained.model, pooling=pretrained.pooling if e.pooling == "auto" else e.pooling)
        reader = TokenReader(pretrained.tokenizer, min(e.longest, pretrained.longest))
        adapted = adapt_encoder(model, config, pretrained)
        notes = cut_note(reader, data.known.texts)
    rows = reader.rows(data.known.texts)
    if isinstance(model, BagVectors):
        trained = data.train
        texts = torch.cat([trained.queries, trained.candidates]).unique()  # type: ignore[no-untyped-call]
        model.weigh(rows.select(texts).values, len(texts))
    model.to(device).train()  # all of it: a pretrained model comes in evaluation
    p = PreparedVectors(
        config=config,
        model=model,
        data=data,
        pretrained=pretrained,
        reader=reader,
        precision=choose(config.train.precision, device, []),
        device=device,
        adapted=adapted,
        notes=notes,
        rows=rows,
    )
    if config.data.mined:
        p.before = passed(model, rows)
        p.mined = mine(data, p.before, config.data.mined)
        notes.append(f"{len(p.mined[0]):,} hard negatives found by the model as it came")
    p.precision = choose(config.train.precision, device, products(model, p.places))
    return p


def check(train: Judged) -> None:
    """DataError where there is nothing to tell apart."""
    if train.class_T is not None:
        counts = torch.bincount(train.class_T[train.class_T >= 0], minlength=1)
        if int((counts > 0).sum()) < 2:
            raise DataError("all training texts have one label: nothing to tell apart", hint="give at least two labels")
        if int(counts.max()) < 2:
            what = "no label has two training texts, and texts of one label are what is brought near"
            raise DataError(what, hint="check which column holds the label: --target COLUMN")
        return
    queries, answers = train.answers
    if not len(queries):
        raise DataError("no training query has an answer", hint="a relevance above 0 marks one")
    if len(train.wrong[0]) == 0 and (len(torch.unique(answers)) < 2 or len(torch.unique(queries)) < 2):
        what = f"{len(queries)} training pair{'s' if len(queries) > 1 else ''} with one query or one answer alone"
        raise DataError(f"{what}: nothing to tell apart", hint="give pairs that differ, or negatives")


def found_by(known: Judged, queries: Tensor, vectors: Tensor) -> dict[str, Floats]:
    """Scores of a search by vectors (T, W) among all candidates, query by query."""
    pool = known.candidates
    return _scored(known, queries, lambda q: vectors[q] @ vectors[pool].T)


def found_by_words(known: Judged, queries: Tensor) -> dict[str, Floats]:
    """The same by BM25."""
    words = BM25([known.texts[i] for i in known.candidates.tolist()])
    return _scored(known, queries, lambda q: torch.from_numpy(words.scores([known.texts[i] for i in q.tolist()])))


def _scored(known: Judged, queries: Tensor, score: Any) -> dict[str, Floats]:
    """A text doesn't find itself. Of labelled texts every one of the class is an answer: shares of them say little."""
    pool, found = known.candidates, []
    for q in torch.split(queries, AT_ONCE):
        relevance = known.relevance(q, pool)
        if bool((relevance > 0).any()):
            scores = score(q).masked_fill(q[:, None] == pool, -1e9)
            found.append(ranking_scores(scores.double() - TIE * (relevance > 0), relevance))
    if not found:
        raise DataError("no test query has an answer among the candidates", hint="check the test part")
    kept = SHARES if known.class_T is None else HITS
    return {name: np.concatenate([one[name] for one in found]) for name in kept}


def mine(data: Parts, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of the texts nearest to each training query the first `count` that are no answer, as (query, candidate).

    What is nearer than `TOO_NEAR` of the way to the farthest of its answers is likely one that nobody marked, and left
    out (Moreira et al. 2024, NV-Retriever, arXiv 2407.15831).
    """
    train = data.train
    pool, found = train.candidates, []
    for q in torch.split(train.queries, AT_ONCE):
        cosines = vectors[q] @ vectors[pool].T
        right = train.relevance(q, pool) > 0
        least = cosines.masked_fill(~right, 1.0).amin(1, keepdim=True)
        out = right | (q[:, None] == pool) | (cosines > TOO_NEAR * least)
        nearest, place = cosines.masked_fill(out, -2.0).topk(min(count, len(pool)), 1)
        row, column = (nearest > -2).nonzero(as_tuple=True)
        found.append((q[row], pool[place[row, column]]))
    return torch.cat([q for q, _ in found]), torch.cat([c for _, c in found])


def short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[:most] + "…"


# --- the verb ---------------------------------------------------------------------------------------------------------


def embed_config(
    config: EmbedConfig,
    run_path: Path | None = None,
    listener: Listener | None = None,
    *,
    started: float | None = None,
) -> TextEncoder:
    """Train by `config` into a new run directory; returns the trained encoder."""
    found: TextEncoder = run_config(prepare_vectors, config, run_path, listener, started or time.perf_counter())
    return found


def dry_run(config: EmbedConfig, listener: Listener) -> Prepared:
    """Everything up to the first update, and what training would cost; nothing is written."""
    return dry_run_config(prepare_vectors, config, listener)


def resume(path: Path, listener: Listener | None = None, *, started: float | None = None) -> TextEncoder:
    """Continue an interrupted run, to the same bits on the same machine, versions and threads."""
    made = partial(parse, EmbedConfig)
    found: TextEncoder = resume_run(prepare_vectors, made, "embed", path, listener, started or time.perf_counter())
    return found
