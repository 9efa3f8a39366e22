"""`feedfwd pretrain --from MODEL`: more pretraining on another text, with the model's own tokenizer and sizes.

The model may be a run of ours or one of Hugging Face's. What it was trained for stays: the next token, or hidden ones.
What the settings say is checked against it before any text is read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from feedfwd.checkpoint import Run
from feedfwd.config import flat, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.tokenizer import TextTokenizer
from feedfwd.errors import ConfigError
from feedfwd.models.transformer import Transformer, build
from feedfwd.recipes.pretrained import Pretrained, load_pretrained
from feedfwd.recipes.verbs import verb_of

FREE = {"model.dropout", "model.recompute"}  # of the network's settings those that another training may change
LOWER = 0.5  # of the rate that one of our runs was trained at, which comes down from there once more
RATES = {"full": 2e-4, "lora": 1e-3, "dora": 1e-3}  # of AdamW, for other models and for adapters
EPOCHS = 4  # over the text at most; up to so many are worth about as much as new text (arXiv 2305.16264)
UPDATES = {"quick": 200, "standard": 1000, "best": 4000}
SCHEDULE = {"schedule.name": "warmup_stable_decay", "schedule.warmup": 0.05, "schedule.decay": 0.5}
ROW = 256  # tokens of a row at most, unless one says more


@dataclass(frozen=True)
class Base:
    """What is trained further, and the tokenizer as a stream of documents asks for it."""

    pretrained: Pretrained
    tokenizer: TextTokenizer

    @property
    def model(self) -> Transformer:
        return self.pretrained.model

    @property
    def objective(self) -> str:
        return "next" if self.model.causal else "masked"

    def about(self, model: Transformer) -> dict[str, Any]:
        """For preprocess.json: what beside the weights and tokenizer.json makes the model, and a reader of texts."""
        t, p = self.pretrained.tokenizer, self.pretrained
        return {
            "settings": model.settings,
            "end": self.tokenizer.end,
            "family": p.family,
            "special": t.special,
            "before": t.before,
            "after": t.after,
            "pooling": p.pooling,
            "normalize": p.normalize,
        }


def base_of(config: PretrainConfig, *, check: bool = True) -> Base:
    """The model that the settings name; `check`: ConfigError, naming both, where they contradict it."""
    assert config.pretrained is not None
    pretrained = load_pretrained(config.pretrained)
    if pretrained.model.head_kind == "classes":
        what = f"{config.pretrained} classifies texts, and pretraining goes on with a model of tokens"
        raise ConfigError(what, hint="give the model it was made from")
    tokenizer = TextTokenizer(Tokenizer.from_str(pretrained.tokenizer.text))
    t, special = pretrained.tokenizer, pretrained.tokenizer.special
    end = next((i for role in ("eos_token", "sep_token") if (i := t.id(special.get(role, ""))) is not None), None)
    tokenizer.end = tokenizer.end if end is None else end
    base = Base(pretrained, tokenizer)
    if tokenizer.vocabulary > pretrained.model.vocabulary:
        what = f"{config.pretrained} has no token that ends a document, and no room for one"
        raise ConfigError(what, hint="name its eos_token in tokenizer_config.json")
    if base.objective == "masked" and tokenizer.mask is None:
        raise ConfigError(f"{config.pretrained} has no mask token to hide others behind", hint="take another model")
    if check:
        _agree(config, base)
    return base


def _agree(config: PretrainConfig, base: Base) -> None:
    """Whether all that is said is true of the model."""
    name, said = config.pretrained, flat(config.said())
    if config.size is not None:
        what = f"--size {config.size} asks for a new network, and {name} has sizes of its own"
        raise ConfigError(what, hint="leave one out")
    for key in ("data.tokenizer", "data.vocabulary"):
        if key in said and said[key] != (base.tokenizer.vocabulary if key == "data.vocabulary" else "model"):
            what = f"{key}={said[key]} asks for another tokenizer than that of {name}, which its weights are for"
            raise ConfigError(what, hint="leave it out")
    own = described(base.model) | {"train.objective": base.objective}
    for key, value in said.items():
        ours = key.startswith(("model.", "ffn.")) or key == "train.objective"
        if ours and key not in FREE and value != own.get(key, value if value is None else None):
            what = f"{key}={value} contradicts {name}, of which {key}={own.get(key)} is true"
            raise ConfigError(what, hint="leave it out, or start without --from")
    row, context = config.data.row, base.model.context
    if base.model.positions == "learned" and "data.row" in said and row > context:
        raise ConfigError(f"data.row={row} is longer than the {context} positions of {name}", hint="set fewer")


def described(model: Transformer) -> dict[str, Any]:
    """A network as the settings of `pretrain` say it, by dotted key."""
    names = ("width", "heads", "kv_heads", "head_width", "norm_kind", "norm_place", "positions", "rope_base", "bias")
    found = {f"model.{name}": getattr(model, name) for name in (*names, "qk_norm", "window", "tied", "recompute")}
    spec = model.ffn_spec
    found |= {"model.depth": len(model.blocks), "model.dropout": model.dropout.p, "ffn.hidden": model.hidden_width}
    found |= {f"ffn.{name}": getattr(spec, name) for name in ("kind", "activation", "bias", "dropout", "options")}
    known = {key: value for key, value in (model.rope_scaling or {}).items() if key in ("kind", "factor", "original")}
    found |= {f"model.rope_scaling.{key}": value for key, value in known.items()}
    if model.base_width is not None:
        found |= {"model.base_width": model.base_width, "ffn.init": "mup"}
    return found


def settled(config: PretrainConfig, base: Base, tokens: int) -> PretrainConfig:
    """The settings with the model's own and the effort's beneath: a lower rate, risen to anew, over few epochs."""
    own = {key: value for key, value in described(base.model).items() if value is not None}
    row = min(base.model.context, ROW)
    own |= {"train.objective": base.objective, "data.tokenizer": "model", "data.row": row}
    own |= {"data.separate": base.model.end is not None, "train.clip": 1.0}
    before = _trained(config)
    if before is not None and config.method == "full" and (rate := before.optimizer.lr) is not None:
        o = before.optimizer
        rate *= LOWER if before.pretrained is None else 1.0  # lower already
        own |= {"optimizer.name": o.name, "optimizer.lr": rate, "optimizer.weight_decay": o.weight_decay}
        own |= {} if o.beta2 is None else {"optimizer.beta2": o.beta2}
    else:
        own |= {"optimizer.name": "adamw", "optimizer.lr": RATES[config.method], "optimizer.beta2": 0.99}
        own |= {"optimizer.weight_decay": 0.01 if config.method == "full" else 0.0}
    found = config.over(own | SCHEDULE)
    if config.minutes is None:
        per_update = found.data.row * found.train.batch_size * found.train.accumulate
        found = found.over({"train.steps": max(1, min(UPDATES[config.effort], round(EPOCHS * tokens / per_update)))})
    return found


def _trained(config: PretrainConfig) -> PretrainConfig | None:
    """How a run of `pretrain` was trained; None of other models."""
    path = Path(str(config.pretrained)).expanduser()
    if not (path / "config.toml").is_file() or verb_of(path) != "pretrain":
        return None
    return parse(PretrainConfig, Run.open(path).settings())


def network(config: PretrainConfig, base: Base) -> Transformer:
    """The model with its weights, as this training changes it; a body without a head gets a new one."""
    own = base.model
    settings = own.settings | {"dropout": config.model.dropout, "recompute": config.model.recompute}
    settings |= {"end": base.tokenizer.end if config.data.separate else None}
    if own.positions != "learned":
        settings["context"] = max(own.context, config.data.row)
    if own.head_kind == "none":
        settings |= {"head": "tokens" if own.causal else "masked", "tied": True}
    model = build(settings)
    model.load_state_dict(own.state_dict(), strict=own.head_kind != "none")
    return model


def notes(base: Base) -> list[str]:
    """What the user should know of it."""
    if base.model.head_kind != "none":
        return []
    return [f"{base.pretrained.name} came without a head for tokens: a new one is trained with it"]
