"""What the settings of a language model make: its network, and what hides tokens from it."""

from collections.abc import Mapping
from typing import Any

from feedfwd.checkpoint import Run
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.packing import MaskTokens
from feedfwd.data.tokenizer import TextTokenizer
from feedfwd.errors import ConfigError, RunError
from feedfwd.models.transformer import Transformer


def masking(config: PretrainConfig, tokenizer: TextTokenizer) -> MaskTokens | None:
    """The transform of batches that the objective asks for."""
    if config.train.objective != "masked":
        return None
    if tokenizer.mask is None:
        raise RunError("the tokenizer has no mask token", hint="restore the tokenizer.json that the run began with")
    return MaskTokens(tokenizer.mask, tokenizer.end, tokenizer.vocabulary, config.train.masked)


def build_transformer(config: PretrainConfig, tokenizer: TextTokenizer) -> Transformer:
    """The network that the settings describe, for a tokenizer's vocabulary."""
    try:
        return Transformer(
            tokenizer.vocabulary,
            **config.model.given(),
            hidden=config.ffn.hidden,
            ffn=config.ffn.spec(),
            context=config.data.row,
            causal=config.train.objective == "next",
            end=tokenizer.end if config.data.separate else None,
        )
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        raise ConfigError(
            f"model.width={config.model.width} and model.depth={config.model.depth} do not fit into this memory",
            hint="take a smaller size",
        ) from None


def saved_tokenizer(run: Run, about: Mapping[str, Any] | None) -> TextTokenizer:
    """The tokenizer of a run, which ends a document as the model it went on with does."""
    tokenizer = TextTokenizer.load(run.path / "tokenizer.json")
    if about is not None:
        tokenizer.end = int(about["end"])
    return tokenizer
