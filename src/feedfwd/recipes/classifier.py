"""A trained reader of texts, with what turns a text into its inputs and its outputs into answers."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.data.ngrams import ngrams
from feedfwd.data.ragged import Ragged
from feedfwd.errors import DataError, RunError
from feedfwd.evaluate.arrays import Floats
from feedfwd.evaluate.scope import neighbours
from feedfwd.models.bag import Bag
from feedfwd.models.encoder import Encoder
from feedfwd.models.transformer import Transformer, build
from feedfwd.recipes.explain import Explanation, Memory, explain
from feedfwd.recipes.goals import Goal, goal_of
from feedfwd.recipes.judge import Judgement
from feedfwd.recipes.verbs import opened

CHUNK, NGRAMS = 512, 2**22  # texts of a bag at a time, and places for their n-grams
TOKENS = 16384  # tokens of an encoder at a time
FEATURES = 8192  # texts at a time whose vectors are there
TOKENIZER = "tokenizer.json"

Network = Bag | Encoder


def build_bag(config: FinetuneConfig, outputs: int) -> Bag:
    """The network over n-grams that the settings describe."""
    b, f = config.bag, config.ffn
    return Bag(
        b.buckets,
        b.width,
        b.hidden,
        outputs,
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


def build_encoder(
    config: FinetuneConfig, backbone: Transformer, pooling: str, outputs: int, longest: int | None = None
) -> Encoder:
    """A pretrained model with the head that the settings describe; `pooling` is what it was trained with, `longest` the
    tokens of a window."""
    e, f = config.encoder, config.ffn
    return Encoder(
        backbone,
        outputs,
        pooling=pooling if e.pooling == "auto" else e.pooling,
        hidden=e.hidden,
        window=longest if e.windows > 1 else None,
        bag=build_bag(config, outputs) if e.ngrams else None,
        activation=f.activation,
        kind=f.kind,
        init=f.init,
        bias=f.bias,
        dropout=f.dropout,
        input_dropout=e.input_dropout,
        options=f.options,
    )


class Reader(Protocol):
    """From texts to rows of numbers, as the network reads them."""

    def rows(self, texts: Sequence[str]) -> Ragged: ...


class BagReader:
    """The n-grams of a text."""

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config.bag

    def rows(self, texts: Sequence[str]) -> Ragged:
        b = self.config
        return ngrams(texts, b.buckets, words=b.words, chars=(b.shortest, b.longest), digits=b.digits)


class TokenReader:
    """The tokens of a text, by a pretrained model's own tokenizer; of a long one the first `longest`, or up to so many
    windows of that many end to end, each but the last one full. After them the buckets of its `ngrams`, if any, each
    plus the model's `vocabulary`."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        longest: int,
        windows: int = 1,
        ngrams: BagReader | None = None,
        vocabulary: int = 0,
    ) -> None:
        self.tokenizer, self.longest, self.windows = tokenizer, longest, windows
        self.ngrams, self.vocabulary = ngrams, vocabulary

    def rows(self, texts: Sequence[str]) -> Ragged:
        if self.windows > 1:
            parts = self.tokenizer.windows(texts, self.longest, self.windows)
            found = [[token for part in row for token in part] or [self.tokenizer.pad] for row in parts]
        else:
            found = [row or [self.tokenizer.pad] for row in self.tokenizer.encode(texts, longest=self.longest)]
        ids = torch.tensor([token for row in found for token in row], dtype=torch.int32)
        tokens = Ragged(ids, torch.tensor([len(row) for row in found], dtype=torch.int64))
        if self.ngrams is None:
            return tokens
        buckets = self.ngrams.rows(texts)
        return tokens.beside(Ragged(buckets.values + self.vocabulary, buckets.lengths))

    def lengths(self, rows: Ragged) -> Tensor:  # (N,)
        """Tokens of each row."""
        if self.ngrams is None:
            return rows.lengths
        owner = torch.arange(len(rows)).repeat_interleave(rows.lengths)
        return torch.bincount(owner[rows.values < self.vocabulary], minlength=len(rows))

    def buckets(self, rows: Ragged) -> Tensor:
        """Of all rows' n-grams, one after the other."""
        return rows.values[rows.values >= self.vocabulary] - self.vocabulary

    def cut(self, texts: Sequence[str], rows: Ragged) -> int:
        """How many of the texts are longer than their rows."""
        full = [texts[i] for i in (self.lengths(rows) >= self.windows * self.longest).nonzero()[:, 0].tolist()]
        if self.windows > 1:
            more = self.tokenizer.windows(full, self.longest, self.windows + 1)
            return sum(len(row) > self.windows for row in more)
        return sum(len(row) > self.longest for row in self.tokenizer.encode(full, longest=None))

    def about(self) -> dict[str, Any]:
        """For preprocess.json, beside tokenizer.json."""
        t = self.tokenizer
        return {"special": t.special, "before": t.before, "after": t.after, "longest": self.longest}


def token_reader(config: FinetuneConfig, tokenizer: ModelTokenizer, longest: int, vocabulary: int) -> TokenReader:
    """What reads texts for the encoder that the settings describe."""
    beside = BagReader(config) if config.encoder.ngrams else None
    return TokenReader(tokenizer, longest, config.encoder.windows, beside, vocabulary)


def load_encoder(path: Path, config: FinetuneConfig, about: Any, outputs: int) -> tuple[Encoder, TokenReader]:
    """The network of a run that started from a pretrained model, before its weights, and what reads texts for it."""
    run = Run.open(path)
    if not (path / TOKENIZER).is_file():
        raise RunError(f"{path} is incomplete: {TOKENIZER} is missing", hint="restore it from a copy of the run")
    try:
        said = about["pretrained"]
        tokenizer = ModelTokenizer(
            run.read_text(path / TOKENIZER), said["special"], before=said["before"], after=said["after"]
        )
        longest = int(said["longest"])
        encoder = build_encoder(config, build(said["settings"]), said["pooling"], outputs, longest)
        return encoder, token_reader(config, tokenizer, longest, encoder.backbone.vocabulary)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{run.preprocess_file} doesn't tell of the pretrained model ({type(error).__name__}: {error})"
        raise RunError(what, hint="restore it from a copy, or train again") from None


class TextClassifier:
    """What `ff.load(run)` gives for a run of `finetune`.

    `predict`, and as its goal has them `predict_proba` and `classes`; `embed` where it started from a pretrained model;
    `model`, a plain nn.Module from what `rows` gives, padded, to `outputs`; `result`.
    """

    def __init__(
        self, model: Network, config: FinetuneConfig, goal: Goal, reader: Reader, run: Path | None = None
    ) -> None:
        self.model, self.config, self.goal, self.reader, self.run = model, config, goal, reader, run
        self.verdict: Judgement | None = None  # temperature and thresholds, where held-out answers were judged

    @classmethod
    def load(cls, path: Path) -> "TextClassifier":
        run = opened(path, "finetune")
        config = parse(FinetuneConfig, run.settings())
        about = run.read_json(run.preprocess_file)
        goal = goal_of(about, run.preprocess_file)
        model: Network
        reader: Reader
        if config.pretrained is None:
            model, reader = build_bag(config, goal.outputs), BagReader(config)
        else:
            model, reader = load_encoder(path, config, about, goal.outputs)
        try:
            model.load_state_dict(run.load_model())
        except RuntimeError as error:
            raise run.misfit(error) from None
        found = cls(model.eval(), config, goal, reader, path)
        found.verdict = Judgement.of(run)
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        return self.goal.classes

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
        return self.reader.rows(texts)

    def outputs(self, rows: Ragged) -> Tensor:
        """The network's outputs (N, O), logits for labels, for what `rows` gave; in evaluation mode."""
        return self._passed(self.model, rows)

    def apart(self, rows: Ragged) -> tuple[Tensor, Tensor]:
        """Outputs (N, O) of the pretrained model, and of the bag of n-grams that stands beside it (encoder.ngrams)."""
        if isinstance(self.model, Bag) or self.model.bag is None:
            raise RunError("no bag of n-grams stands beside this network", hint="train one with encoder.ngrams=true")
        both = self._passed(self.model.both, rows)
        return both[:, 0], both[:, 1]

    def features(self, rows: Ragged) -> Tensor:
        """A vector for each text (N, W): what the head sees, where there is one."""
        if isinstance(self.model, Bag):
            return self.read(rows)[0]
        return self._passed(self.model.features, rows)

    def read(self, rows: Ragged) -> tuple[Tensor, Tensor]:
        """`features` (N, W) and `outputs` (N, O), the texts being read once."""
        model = self.model

        def both(x: Tensor) -> Tensor:
            h, z = model.read(x)
            return torch.cat([h.float(), z.float()], 1)

        found = self._passed(both, rows)
        if not len(rows):
            return torch.zeros(0, model.width), found
        return found[:, : -self.goal.outputs], found[:, -self.goal.outputs :]

    def headed(self, features: Tensor) -> Tensor | None:  # (N, W) -> (N, O)
        """The outputs from features that are there already; None where these don't tell them: a bag beside, or layers
        above the mean of windows."""
        model = self.model
        if isinstance(model, Encoder) and (model.bag is not None or (model.window and len(model.mlp.sizes) > 2)):
            return None
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                return torch.cat([model.mlp(part).float().cpu() for part in torch.split(features, FEATURES)])
        finally:
            model.train(training)

    def answers(self, rows: Ragged) -> Floats:
        """For what `rows` gave: probabilities (N, C), or numbers (N,)."""
        return self.answered(self.outputs(rows))

    def answered(self, outputs: Tensor) -> Floats:
        """The same from the network's outputs."""
        temperature = 1.0 if self.verdict is None else self.verdict.temperature
        return self.goal.answers(outputs / temperature)

    def predict_proba(self, texts: Sequence[str]) -> Floats:
        """Probabilities (N, C), one column for each of `classes`."""
        if not self.classes:
            raise DataError("numbers have no class probabilities", hint="use predict")
        return self.answers(self.rows(_checked(texts, "predict_proba")))

    def predict(self, texts: Sequence[str], *, abstain: bool = False) -> Any:
        """Class names (N,); a tuple of names for each text where it may have several; or numbers (N,).

        `abstain`: None instead of a name where the run's thresholds say not to answer (see `marks`).
        """
        rows = self.rows(_checked(texts, "predict"))
        if not abstain:
            return self.goal.predictions(self.answers(rows))
        features, outputs = self.read(rows)
        answers, marks = self.goal.predictions(self.answered(outputs)), self.marks(features, outputs)
        found = np.empty(len(marks), object)
        found[:] = [None if mark else name for name, mark in zip(answers, marks, strict=True)]
        return found

    def marks(self, features: Tensor, outputs: Tensor) -> list[str | None]:
        """Why not to give the answer, "unsure" or "out of scope", else None, for what `read` gave; RunError where no
        threshold was fitted."""
        if self.verdict is None:
            raise RunError("this classifier has no thresholds", hint="train it with texts held back: data.validation")
        return self.verdict.marks(outputs.double().numpy(), self.near(features))

    def near(self, features: Tensor) -> Floats | None:  # (N, W) -> (N,)
        """Mean cosine with the nearest training texts; None where the run kept none."""
        return None if self.memory is None else neighbours(features, self.memory.vectors)

    @cached_property
    def memory(self) -> Memory | None:
        """The training texts that the run kept."""
        return None if self.run is None else Memory.load(Run(self.run))

    def explain(self, text: str) -> Explanation:
        """The answer to a text, what of it carried the answer, and the training texts nearest to it."""
        return explain(self, _checked([text], "explain")[0])

    def embed(self, texts: Sequence[str]) -> Floats:
        """A vector of length 1 for each text, (N, W): the nearer two texts, the larger the product of theirs."""
        found = self.features(self.rows(_checked(texts, "embed")))
        unit: Floats = torch.nn.functional.normalize(found, dim=-1).numpy()
        return unit

    def _passed(self, function: Any, rows: Ragged) -> Tensor:
        """`function` of all rows, in evaluation mode; long texts share a pass, to pad little."""
        training, device = self.model.training, next(self.model.parameters()).device
        self.model.eval()
        order = rows.lengths.argsort(stable=True)
        try:
            with torch.inference_mode():
                parts = [function(rows.padded(part).to(device)).float().cpu() for part in self._chunks(rows, order)]
        finally:
            self.model.train(training)
        if not parts:
            return torch.zeros(0, self.goal.outputs)
        joined = torch.cat(parts)
        found = torch.empty_like(joined)
        found[order] = joined
        return found

    def _chunks(self, rows: Ragged, order: Tensor) -> list[Tensor]:
        most, places = (CHUNK, NGRAMS) if isinstance(self.model, Bag) else (len(order), TOKENS)
        found, start = [], 0
        lengths = rows.lengths[order].tolist()
        for i, length in enumerate(lengths):  # lengths rise, so that a chunk is as wide as its last
            if (i - start >= most or (i + 1 - start) * length > places) and i > start:
                found.append(order[start:i])
                start = i
        return [*found, order[start:]] if len(order) else []

    def __repr__(self) -> str:
        return f"TextClassifier({self.goal.what}, run={str(self.run)!r})"


def _checked(texts: Sequence[str], verb: str) -> Sequence[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{verb} takes a list of texts", hint=f"write {verb}([text]) for one")
    return texts
