"""A model that gives texts vectors: what `ff.load` gives for a run of `finetune --task embed`."""

# N texts, Q queries, K found of each, W width

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_retrieval import EmbedConfig, NgramsConfig
from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.data.ngrams import ngrams
from feedfwd.data.ragged import Ragged
from feedfwd.errors import DataError, RunError
from feedfwd.models.similarity import BagVectors, TextVectors
from feedfwd.models.transformer import build
from feedfwd.recipes.classifier import TOKENIZER, Reader, TokenReader
from feedfwd.recipes.verbs import opened

PLACES = 2**14  # of tokens or n-grams at a time

Vectors = npt.NDArray[np.float32]


class NgramReader:
    """The n-grams of a text."""

    def __init__(self, config: NgramsConfig) -> None:
        self.config = config

    def rows(self, texts: Sequence[str]) -> Ragged:
        c = self.config
        return ngrams(texts, c.buckets, words=c.words, chars=(c.shortest, c.longest))


def passed(model: nn.Module, rows: Ragged, function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What a model makes of all rows, (N, ...), in evaluation mode; rows of about one length share a pass."""
    function, training, device = function or model, model.training, next(model.parameters()).device
    model.eval()
    order = rows.lengths.argsort(stable=True)
    starts, width = [0], 1
    for i, length in enumerate(rows.lengths[order].tolist()):  # lengths rise, so that a pass is as wide as its last row
        width = max(1, length)
        if (i + 1 - starts[-1]) * width > PLACES and i > starts[-1]:
            starts.append(i)
    try:
        with torch.inference_mode():
            parts = [function(rows.padded(part).to(device)).float().cpu() for part in order.tensor_split(starts[1:])]
    finally:
        model.train(training)
    joined = torch.cat(parts)
    found = torch.empty_like(joined)
    found[order] = joined
    return found.clone()  # no inference tensor, which autograd would refuse


class TextEncoder:
    """`encode` and `search`; `model`, a plain nn.Module from what `rows` gives, padded, to vectors; `result`."""

    def __init__(
        self, model: TextVectors | BagVectors, config: EmbedConfig, reader: Reader, run: Path | None = None
    ) -> None:
        self.model, self.config, self.reader, self.run = model, config, reader, run

    @classmethod
    def load(cls, path: Path) -> "TextEncoder":
        run = opened(path, "embed")
        config = parse(EmbedConfig, run.settings())
        model: TextVectors | BagVectors
        reader: Reader
        if config.pretrained is None:
            model, reader = BagVectors(config.bag.buckets, config.bag.width), NgramReader(config.bag)
        else:
            said, tokenizer = told(run)
            model = TextVectors(build(said["settings"]), pooling=said["pooling"])
            reader = TokenReader(tokenizer, int(said["longest"]))
        try:
            model.load_state_dict(run.load_model())
        except RuntimeError as error:
            raise run.misfit(error) from None
        return cls(model.eval(), config, reader, path)

    @property
    def result(self) -> dict[str, Any]:
        """Scores, seconds and environment, as in result.json."""
        if self.run is None:
            raise RunError("this model was not loaded from a run", hint="use ff.load(run)")
        run = Run(self.run)
        found: dict[str, Any] = run.read_json(run.result_file)
        return found

    def rows(self, texts: Sequence[str]) -> Ragged:
        """The texts as the network reads them."""
        return self.reader.rows(texts)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """A vector of length 1 for each text, (N, W): the nearer two texts, the larger the product of theirs."""
        found: Vectors = passed(self.model, self.rows(checked(texts, "encode"))).numpy()
        return found

    def search(
        self, queries: Sequence[str], texts: Sequence[str] | Vectors, k: int = 10
    ) -> tuple[npt.NDArray[np.int64], Vectors]:
        """For each query the places of the `k` nearest texts, (Q, K), nearest first, and their cosines, (Q, K).

        `texts` may be what `encode` gave for them, which is worth keeping where many searches follow.
        """
        if k < 1:
            raise DataError(f"k={k} finds nothing", hint="ask for at least one")
        vectors = texts if isinstance(texts, np.ndarray) else self.encode(texts)
        if not len(vectors):
            raise DataError("there are no texts to search", hint="give at least one")
        cosines = torch.from_numpy(self.encode(checked(queries, "search"))) @ torch.from_numpy(vectors).T
        found, places = cosines.sort(dim=1, descending=True, stable=True)
        return places[:, :k].numpy(), found[:, :k].numpy()

    def __repr__(self) -> str:
        return f"TextEncoder({type(self.model).__name__}, run={str(self.run)!r})"


def checked(texts: Sequence[str], verb: str) -> Sequence[str]:
    """A list of texts, at least one."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{verb} takes a list of texts", hint=f"write {verb}([text], …) for one")
    if not len(texts):
        raise DataError(f"{verb} got no texts", hint="give at least one")
    return texts


def told(run: Run) -> tuple[dict[str, Any], ModelTokenizer]:
    """What a run's preprocess.json says of the pretrained model that it carries, and the model's tokenizer."""
    if not (run.path / TOKENIZER).is_file():
        raise RunError(f"{run.path} is incomplete: {TOKENIZER} is missing", hint="restore it from a copy of the run")
    try:
        said = run.read_json(run.preprocess_file)["pretrained"]
        said["settings"], said["pooling"], said["longest"]
        text = run.read_text(run.path / TOKENIZER)
        return said, ModelTokenizer(text, said["special"], before=said["before"], after=said["after"])
    except (KeyError, TypeError) as error:
        what = f"{run.preprocess_file} doesn't tell of the pretrained model ({type(error).__name__}: {error})"
        raise RunError(what, hint="restore it from a copy, or train again") from None
