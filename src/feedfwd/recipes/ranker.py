"""A model that reads a query and a candidate together: what `ff.load` gives for a run of `finetune --task rank`."""

# N pairs

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_retrieval import RankConfig
from feedfwd.data.pair_rows import PairRows
from feedfwd.errors import DataError, RunError
from feedfwd.evaluate.arrays import Floats
from feedfwd.models.similarity import PairReader
from feedfwd.models.transformer import build
from feedfwd.recipes.searcher import checked, passed, told
from feedfwd.recipes.verbs import opened


class Ranker:
    """`rank` and `scores`; `model`, a plain nn.Module from rows of two texts, padded, to scores (N, 1); `result`."""

    def __init__(self, model: PairReader, config: RankConfig, pairs: PairRows, run: Path | None = None) -> None:
        self.model, self.config, self.pairs, self.run = model, config, pairs, run

    @classmethod
    def load(cls, path: Path) -> "Ranker":
        run = opened(path, "rank")
        config = parse(RankConfig, run.settings())
        said, tokenizer = told(run)
        model = PairReader(build(said["settings"]), pooling=said["pooling"])
        try:
            model.load_state_dict(run.load_model())
        except RuntimeError as error:
            raise run.misfit(error) from None
        pairs = PairRows(tokenizer, int(said["longest"]), model.backbone.vocabulary)
        return cls(model.eval(), config, pairs, path)

    @property
    def result(self) -> dict[str, Any]:
        """Scores, seconds and environment, as in result.json."""
        if self.run is None:
            raise RunError("this model was not loaded from a run", hint="use ff.load(run)")
        run = Run(self.run)
        found: dict[str, Any] = run.read_json(run.result_file)
        return found

    def scores(self, queries: Sequence[str], candidates: Sequence[str]) -> Floats:
        """How well each candidate answers the query at its place, (N,): the larger the better.

        Where candidates were judged one by one it is their relevance, from 0 to 1; else it compares those of one query.
        """
        if len(checked(queries, "scores")) != len(checked(candidates, "scores")):
            what = f"{len(queries)} queries and {len(candidates)} candidates"
            raise DataError(what, hint="give one query for each candidate, or use rank")
        place = {text: i for i, text in enumerate(dict.fromkeys([*queries, *candidates]))}
        tokens = self.pairs.tokens(list(place))
        pairs = ((tokens[place[q]], tokens[place[c]]) for q, c in zip(queries, candidates, strict=True))
        found: Floats = passed(self.model, self.pairs.rows(pairs))[:, 0].double().numpy()
        return 1 / (1 + np.exp(-found)) if self.config.loss.name == "pointwise" else found

    def rank(self, query: str, candidates: Sequence[str], k: int | None = None) -> list[tuple[int, float]]:
        """Places of the candidates, the best first, with their scores; the first `k` alone, where it is given."""
        if not isinstance(query, str):
            raise DataError("rank takes one query", hint="write rank(query, [candidate, …])")
        found = self.scores([query] * len(checked(candidates, "rank")), candidates)
        return [(int(i), float(found[i])) for i in np.argsort(-found, kind="stable")[:k]]

    def __repr__(self) -> str:
        return f"Ranker({self.config.loss.name}, run={str(self.run)!r})"
