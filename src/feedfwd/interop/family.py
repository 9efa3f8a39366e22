"""What a row of `families` is: a family of Hugging Face's models, and what several of them share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from feedfwd.errors import ConfigError, DataError, nearest
from feedfwd.ffn.spec import is_gated
from feedfwd.models.transformer import Transformer

# σ by their names for it; the first one is written.
ACTIVATIONS = {
    "silu": ("silu", "swish"), "gelu": ("gelu",), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
    "relu": ("relu",), "relu2": ("relu2",), "mish": ("mish",), "sigmoid": ("sigmoid",), "tanh": ("tanh",),
    "identity": ("linear",),
}  # fmt: skip
OURS = {theirs: ours for ours, names in ACTIVATIONS.items() for theirs in names}
GATES = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu", "glu": "sigmoid", "bilinear": "identity"}
SCALINGS = {
    "original": "original_max_position_embeddings", "low": "low_freq_factor", "high": "high_freq_factor",
    "beta_fast": "beta_fast", "beta_slow": "beta_slow", "attention": "attention_factor",
}  # fmt: skip


class Pair(NamedTuple):
    """The same numbers here and there, {} standing for the block: `ours` one below the other are `theirs` so."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False


class Objection(NamedTuple):
    """A setting that a family can't express."""

    setting: str
    value: object


class Config(dict[str, Any]):
    """A config.json. What it must have and hasn't is a DataError."""

    def __missing__(self, key: str) -> Any:
        raise DataError(f"config.json has no {key!r}", hint="fetch the model again, or write config.json whole")


class Head(NamedTuple):
    """What a family calls a model with this head, and the tensors it has beside the body's."""

    architecture: str
    names: list[Pair]


@dataclass(frozen=True)
class Family:
    """A row. `heads` by the Transformer's word, `prefix` of the body's names, `offset` rows before position 0."""

    name: str
    prefix: str
    names: list[Pair]
    heads: dict[str, Head]
    objections: Callable[[Transformer], Iterator[Objection]]
    config: Callable[[Transformer], dict[str, Any]]  # of a Transformer, what config.json says
    settings: Callable[[Config], dict[str, Any]]  # of a config.json, what the Transformer takes but for the head
    plain: dict[str, Sequence[object]]  # settings of theirs that nothing here answers to, with what they may say
    ignored: tuple[str, ...] = ()  # patterns of tensors that say nothing or are said elsewhere
    same: Mapping[str, str] = field(default_factory=dict)  # other names of a tensor
    offset: int = 0

    def zero_biases(self, model: Transformer) -> bool:
        """Whether it has a bias of attention's output beside those of q, k and v, and the model has not."""
        return model.bias == "qkv" and bool(self.config(model).get("attention_bias"))

    def pairs(self, head: str) -> list[Pair]:
        return [*self.names, *self.heads[head].names]

    def unable(self, model: Transformer) -> list[Objection]:
        """What this family can't express of a model."""
        objections = list(self.objections(model))
        return objections + ([] if model.head_kind in self.heads else [Objection("model.head", model.head_kind)])


def linear(ours: str, theirs: Sequence[str] | str) -> list[Pair]:
    """Weight and bias of a linear map."""
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    return [Pair((f"{ours}.{kind}",), tuple(f"{name}.{kind}" for name in names)) for kind in ("weight", "bias")]


def activation(name: object) -> str:
    """Our name for theirs of σ."""
    if name not in OURS:
        raise ConfigError(f"config.json: activation {name!r} is not here", hint=nearest(str(name), OURS))
    return OURS[str(name)]


def wrong(model: Transformer, wanted: Mapping[str, object]) -> Iterator[Objection]:
    """The settings that are not as wanted."""
    for name, value in wanted.items():
        own = getattr(model, name)
        if own != value:
            yield Objection(f"model.{name}", own)


def dense_shape(model: Transformer) -> Iterator[Objection]:
    """What BERT and GPT-2 have in common."""
    wanted = {"norm_kind": "layer", "positions": "learned", "bias": "all", "qk_norm": False, "window": None}
    yield from wrong(model, wanted | {"kv_heads": model.heads, "head_width": model.width // model.heads})
    spec = model.ffn_spec
    if spec.kind != "dense" or is_gated(spec.kind, spec.activation):
        yield Objection("ffn.kind", "gated" if spec.kind == "dense" else spec.kind)
    elif spec.activation not in ACTIVATIONS:
        yield Objection("ffn.activation", spec.activation)
    elif not spec.bias:
        yield Objection("ffn.bias", False)
