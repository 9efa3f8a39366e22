"""A trained language model with its tokenizer: what `ff.load` gives for a run of `feedfwd pretrain`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.corpus import Corpus
from feedfwd.data.decoding import lines
from feedfwd.data.tokenizer import TextTokenizer
from feedfwd.data.tokens import tokenize
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.evaluate.text import text_scores
from feedfwd.models.filling import Filling
from feedfwd.models.generate import BATCH, Sampling, complete, write
from feedfwd.models.transformer import Transformer, build
from feedfwd.recipes.console import Listener
from feedfwd.recipes.language import build_transformer, masking, saved_tokenizer
from feedfwd.recipes.verbs import opened
from feedfwd.report.words import number, word

TOKENIZER = "tokenizer.json"


class Writer:
    """`write`, `complete`, `score`; and `model`, a plain nn.Module from token ids (B, T) to logits (B, T, V)."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: TextTokenizer,
        config: PretrainConfig,
        run: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config, self.run = model, tokenizer, config, run
        self.about = about  # of the model that this one went on with, where it began with another's weights

    @classmethod
    def load(cls, path: Path) -> "Writer":
        run = opened(path, "pretrain")
        config = parse(PretrainConfig, run.settings())
        if not (path / TOKENIZER).is_file():
            raise RunError(f"{path} is incomplete: {TOKENIZER} is missing", hint="restore it from a copy of the run")
        about = run.read_json(run.preprocess_file) if config.pretrained is not None else None
        tokenizer = saved_tokenizer(run, about)
        weights = run.load_model()
        vocabulary = weights["embedding.weight"].shape[0] if "embedding.weight" in weights else None
        if about is not None:  # whose vocabulary may be larger than its tokenizer's
            vocabulary = None
        if vocabulary is not None and vocabulary != tokenizer.vocabulary:
            what = f"{path / TOKENIZER} has {tokenizer.vocabulary:,} tokens, and the model {vocabulary:,}"
            raise RunError(what, hint="restore the tokenizer that the model was trained with")
        model = build_transformer(config, tokenizer) if about is None else build(about["settings"])
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise run.misfit(error) from None
        return cls(model.eval(), tokenizer, config, path, about)

    @property
    def result(self) -> dict[str, Any]:
        """Scores, seconds and environment, as in result.json."""
        if self.run is None:
            raise RunError("this model was not loaded from a run", hint="use ff.load(run)")
        run = Run(self.run)
        return run.read_json(run.result_file)

    def encode(self, text: str) -> Tensor:
        """Token ids (1, T), for `model`."""
        return torch.tensor([self.tokenizer.encode(text)], device=self.model.embedding.weight.device)

    def unknown(self, text: str) -> list[str]:
        """The characters of a text, or else its words, that the tokenizer has no token for."""
        t = self.tokenizer
        if t.unknown is None or t.unknown not in t.encode(text):
            return []
        found = [part for parts in (text, text.split()) for part in dict.fromkeys(parts) if t.unknown in t.encode(part)]
        return [part for part in found if len(part) == 1] or found

    def write(
        self, prompt: str, *, most: int = 200, sampling: Sampling | None = None, stop: Sequence[str] = (), seed: int = 0
    ) -> Iterator[str]:
        """What the model writes after the prompt, piece by piece, to the end of the document or `most` tokens."""
        self._check_writes()
        end = self.tokenizer.end
        return write(self.model, self.tokenizer, prompt, most=most, sampling=sampling, end=end, stop=stop, seed=seed)

    def complete(
        self,
        prompts: Sequence[str],
        *,
        most: int = 200,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[str]:
        """What the model writes after each of the prompts."""
        self._check_writes()
        end = self.tokenizer.end
        return complete(
            self.model, self.tokenizer, prompts, most=most, sampling=sampling, end=end, stop=stop, seed=seed
        )

    def score(self, source: str) -> dict[str, float]:
        """`loss`, `bits_per_byte` and `perplexity` on all text of a source; see `evaluate.text.text_scores`."""
        corpus = Corpus([source], validation=0, column=self.config.data.column)
        parts = tokenize(corpus, self.tokenizer, "train")
        mask = masking(self.config, self.tokenizer)
        model = Filling(self.model) if self.model.head_kind == "masked" else self.model
        return text_scores(model, parts, self.config.data.row, self.config.train.batch_size, masking=mask)

    def _check_writes(self) -> None:
        if not self.model.causal:
            what = f"{self.run} was trained to fill in hidden tokens, seeing both sides of them, and can't write"
            raise ConfigError(
                what, hint="write with a run of train.objective=next; of this one take ff.load(run).model"
            )

    def __repr__(self) -> str:
        m = self.config.model
        return f"Writer({m.depth} layers, {m.width} wide, {self.tokenizer.vocabulary} tokens, run={str(self.run)!r})"


def generate_run(
    path: Path,
    prompt: str | None,
    prompts: Path | None,
    out: Callable[[str], object],
    *,
    most: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    seed: int = 0,
    note: Callable[[str], object] = lambda _: None,
) -> None:
    """`feedfwd generate`: a prompt with what follows as it comes, or a JSON line for each of a file of prompts.

    The lines come as a batch of prompts is done. `note` is told of what the user should know beside the text.
    """
    if (prompt is None) == (prompts is None):
        raise ConfigError("one prompt or a file of them is needed", hint='give "PROMPT" or --prompts FILE')
    if most < 1:
        raise ConfigError(f"--tokens {most} leaves nothing to write", hint="try --tokens 200")
    writer = Writer.load(path)
    if prompts is not None:
        asked = _lines(prompts)
        if strange := [line for line in asked if writer.unknown(line)]:
            said = f"{len(strange):,} of {len(asked):,} prompts hold characters that the tokenizer doesn't know"
            note(f"{said}, the first is {strange[0][:60]!r}")
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            texts = writer.complete(batch, most=most, sampling=sampling, stop=stop, seed=seed + start)
            for line, text in zip(batch, texts, strict=True):
                out(json.dumps({"prompt": line, "text": text}, ensure_ascii=False) + "\n")
        return
    assert prompt is not None
    if missing := writer.unknown(prompt):
        note(f"the tokenizer doesn't know {', '.join(map(repr, missing))}: the model sees an unknown token there")
    pieces = writer.write(prompt, most=most, sampling=sampling, stop=stop, seed=seed)
    out(prompt)
    for piece in pieces:
        out(piece)
    out("\n")


def _lines(file: Path) -> list[str]:
    try:
        found = lines(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} can't be read ({error})", hint="give a text file with a prompt on each line") from None
    if not found:
        raise DataError(f"{file} holds no prompt", hint="give a text file with a prompt on each line")
    return found


def evaluate_text(path: Path, source: str | None, listener: Listener) -> dict[str, float]:
    """Scores of a language model on a text; without one, those of its held-out text that its run has."""
    writer = Writer.load(path)
    scores = writer.result["validation"] if source is None else writer.score(source)
    listener.say(f"{path} on {'its held-out text' if source is None else source}")
    for key, value in scores.items():
        listener.say(f"  {word(key).label:<24}{number(value)}")
    return scores
