"""A trained classifier of texts, with what turns a text into its inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.data.ngrams import ngrams
from feedfwd.data.ragged import Ragged
from feedfwd.errors import DataError, RunError
from feedfwd.models.bag import Bag
from feedfwd.recipes.verbs import opened

CHUNK = 512  # texts at a time


def build_bag(config: FinetuneConfig, classes: int) -> Bag:
    """The network that the settings describe."""
    b, f = config.bag, config.ffn
    return Bag(
        b.buckets,
        b.width,
        b.hidden,
        classes,
        activation=f.activation,
        kind=f.kind,
        init=f.init,
        bias=f.bias,
        dropout=f.dropout,
        norm=None if b.norm == "none" else b.norm,
        residual=b.residual,
        input_dropout=b.input_dropout,
        options=f.options,
    )


class TextClassifier:
    """What `ff.load(run)` gives for a run of `finetune`: `predict`, `predict_proba`, `classes`, `model`, `result`."""

    def __init__(self, model: Bag, config: FinetuneConfig, classes: Sequence[str], run: Path | None = None) -> None:
        self.model, self.config, self.classes, self.run = model, config, tuple(classes), run

    @classmethod
    def load(cls, path: Path) -> "TextClassifier":
        run = opened(path, "finetune")
        config = parse(FinetuneConfig, run.settings())
        about = run.read_json(run.preprocess_file)
        classes = about.get("classes") if isinstance(about, dict) else None
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise RunError(f"{run.preprocess_file} names no classes", hint="restore it from a copy, or train again")
        model = build_bag(config, len(classes))
        try:
            model.load_state_dict(run.load_model())
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{run.model_file} doesn't fit config.toml: {reason}", hint="was one replaced?") from None
        return cls(model.eval(), config, classes, path)

    @property
    def result(self) -> dict[str, Any]:
        """Scores, seconds and environment, as in result.json."""
        if self.run is None:
            raise RunError("this classifier was not loaded from a run", hint="use ff.load(run)")
        run = Run(self.run)
        result: dict[str, Any] = run.read_json(run.result_file)
        return result

    def rows(self, texts: Sequence[str]) -> Ragged:
        """The texts as the network reads them."""
        b = self.config.bag
        return ngrams(texts, b.buckets, words=b.words, chars=(b.shortest, b.longest))

    def answers(self, rows: Ragged) -> np.ndarray:
        """Probabilities (N, C) for what `rows` gave, in evaluation mode; long texts share a pass, to pad little."""
        training, device = self.model.training, self.model.weights.device
        self.model.eval()
        order = rows.lengths.argsort(stable=True)
        try:
            with torch.inference_mode():
                parts = [self.model(rows.padded(part).to(device)).float().cpu() for part in _chunks(order)]
        finally:
            self.model.train(training)
        found = torch.zeros(len(rows), len(self.classes))
        if parts:
            found[order] = torch.cat(parts).softmax(1)
        return found.numpy()

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (N, C), one column for each of `classes`."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("predict takes a list of texts", hint="write predict([text]) for one")
        return self.answers(self.rows(texts))

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Class names (N,)."""
        return np.asarray(self.classes)[self.predict_proba(texts).argmax(1)]

    def __repr__(self) -> str:
        return f"TextClassifier({len(self.classes)} classes, run={str(self.run)!r})"


def _chunks(order: Tensor) -> list[Tensor]:
    return list(torch.split(order, CHUNK)) if len(order) else []
