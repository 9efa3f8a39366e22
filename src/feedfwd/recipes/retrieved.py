"""`feedfwd evaluate` and `feedfwd predict` for runs of `finetune --task embed` and `--task rank`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedfwd.checkpoint import Run, write_whole
from feedfwd.config import parse
from feedfwd.config_retrieval import EmbedConfig, RankConfig
from feedfwd.data.pairs import Judged, judged, read_pairs
from feedfwd.data.text_tables import folded
from feedfwd.errors import ConfigError
from feedfwd.recipes.console import Listener
from feedfwd.recipes.embed import found_by, found_by_words
from feedfwd.recipes.labelled import texts_of
from feedfwd.recipes.rank import by_words, of_lists, of_pairs, to_rank
from feedfwd.recipes.ranker import Ranker
from feedfwd.recipes.retrieval import Measured, parts, read_like
from feedfwd.recipes.searcher import TextEncoder, passed
from feedfwd.report.words import interval, score, word


def evaluate_pairs(path: Path, source: str | None, listener: Listener, verb: str) -> dict[str, float]:
    """Scores of a run on a file of the kind it was trained on, or on its own test part; beside them BM25's."""
    said = Run.open(path).settings()
    config = parse(EmbedConfig, said) if verb == "embed" else parse(RankConfig, said)
    if source is None:
        data = parts(config)
        known, queries, name = data.known, data.queries["test"], f"the test part of {config.test or config.source}"
    else:
        table = read_like(source, config)
        known, name = judged([table]), source
        queries = known.queries
        for note in (*table.notes, *known.notes):
            listener.say(f"note: {note}")
    measure = _found if isinstance(config, EmbedConfig) else _ranked
    measured, words = measure(path, known, queries)
    listener.say(f"{path} on {name}, {measured.n:,} queries")
    for key, value in measured.scores.items():
        ends = measured.intervals.get(key)
        around = "" if ends is None else f"  (95 %: {interval(key, ends, measured.n)})"
        beside = f"  BM25: {score(key, words.scores[key], measured.n)}"
        listener.say(f"  {word(key).label:<24}{score(key, value, measured.n)}{around}{beside}")
    return measured.scores


def _found(path: Path, known: Judged, queries: torch.Tensor) -> tuple[Measured, Measured]:
    encoder = TextEncoder.load(path)
    vectors = passed(encoder.model, encoder.rows(known.texts))
    both = found_by(known, queries, vectors), found_by_words(known, queries)
    return Measured.of_queries(both[0]), Measured.of_queries(both[1])


def _ranked(path: Path, known: Judged, queries: torch.Tensor) -> tuple[Measured, Measured]:
    ranker = Ranker.load(path)
    by_itself = ranker.config.loss.name == "pointwise"
    pairs = to_rank(known, queries, by_itself=by_itself)
    asked, given = ([known.texts[i] for i in part.tolist()] for part in pairs)
    measure = of_pairs if by_itself else of_lists
    return measure(known, pairs, ranker.scores(asked, given)), measure(known, pairs, by_words(known, *pairs))


def embed_file(path: Path, source: str, out: Path | None, listener: Listener) -> None:
    """Vectors of a file's texts, or of the one text that is no file's name, as a NumPy array (N, W) of float32."""
    if out is None or out.suffix != ".npy":
        what = "vectors are written to a file" if out is None else f"--out {out} is of no form for vectors"
        raise ConfigError(what, hint="name one: --out vectors.npy")
    encoder = TextEncoder.load(path)
    texts, _, notes = texts_of(source, encoder.config.text)
    found = encoder.encode(texts)
    with io.BytesIO() as buffer:
        np.save(buffer, found)
        data = buffer.getvalue()
    write_whole(out, lambda part: part.write_bytes(data))
    for note in notes:
        listener.say(f"note: {note}")
    listener.say(f"{out}: {len(found):,} vectors of length 1, {found.shape[1]} wide")


def rank_file(path: Path, source: str) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """A row for each pair of a file, query by query, the best candidate first; and what to know of the file."""
    ranker = Ranker.load(path)
    config = ranker.config
    table = read_pairs(source, text=config.text, candidate=config.data.candidate, other=True, labelled=False)
    scores = ranker.scores([j.query for j in table.judgements], [j.candidate for j in table.judgements])
    queries: dict[str, list[int]] = {}
    for i, j in enumerate(table.judgements):
        queries.setdefault(folded(j.query), []).append(i)
    rows = [
        {
            "example": table.judgements[i].row,
            "query": table.judgements[i].query,
            "place": place,
            "candidate": table.judgements[i].candidate,
            "score": round(float(scores[i]), 6),
        }
        for group in queries.values()
        for place, i in enumerate(sorted(group, key=lambda i: -scores[i]), 1)
    ]
    return rows, table.notes
