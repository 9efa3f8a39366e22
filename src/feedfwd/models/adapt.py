"""How a pretrained model is adapted: in full, its head alone, or by low-rank adapters, which `merge` puts into it.

`prepare` decides which parameters train, and puts the adapters in place. It follows from its arguments alone, so that a
model that was saved with adapters is made anew by the same call before its weights are loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Generator, nn

from feedfwd.errors import ConfigError, nearest
from feedfwd.ffn import lora
from feedfwd.models.transformer import Transformer

METHODS = ("full", "head", "lora", "dora")
WORDS = {
    "all": "blocks.*",
    "attention": "blocks.*.attention.*",
    "ffn": "blocks.*.ffn.*",
}  # of targets, and what they mean


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` did: which linear maps each target matched, and how many parameters train, of how many."""

    method: str
    trained: int
    total: int
    matched: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        maps = "".join(f"{target} matches {len(paths)}, " for target, paths in self.matched.items())
        share = f"{self.trained:,} of {self.total:,} parameters train ({self.trained / self.total:.2%})"
        return f"{self.method}: {maps}{share}"


def prepare(
    model: nn.Module,
    method: str,
    *,
    targets: Sequence[str] | None = None,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    frozen_embeddings: bool = False,
    generator: Generator | None = None,
) -> Prepared:
    """Say what trains of a Transformer and of what stands around it, in place; the latter always trains.

    `full`: everything, with `frozen_embeddings` all but the tables of tokens, positions and types. `head`: what stands
    around, and the Transformer's own classes and pooler. `lora` and `dora`: that and adapters of `rank` (`ffn.lora`) on
    the maps that `targets` name: "all" (also if None), "attention", "ffn", or a path or its end, such as "attention.q",
    "ffn.down", "blocks.0.*". Raises ConfigError for a target that matches no linear map.

    >>> model = Transformer(100, width=32, depth=2, heads=4, hidden=64)
    >>> print(prepare(model, "lora", targets=["attention.q", "ffn"], rank=4))
    lora: attention.q matches 2, ffn matches 4, 2,816 of 26,656 parameters train (10.56%)
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", hint=nearest(method, METHODS))
    if frozen_embeddings and method != "full":
        raise ConfigError(
            f"frozen embeddings are for method 'full': {method!r} freezes them anyway", hint="leave it out"
        )
    body = transformer_of(model)
    body.requires_grad_(method == "full")
    matched: dict[str, tuple[str, ...]] = {}
    if method in ("lora", "dora"):
        wanted = ["all"] if targets is None else list(targets)
        done = lora.adapt(
            body, [WORDS.get(target, target) for target in wanted],
            rank=rank, alpha=alpha, dropout=dropout, method=method, generator=generator,
        )  # fmt: skip
        matched = dict(zip(wanted, done.matched.values(), strict=True))
    elif targets is not None:
        raise ConfigError(f"targets are for the methods lora and dora, not for {method!r}", hint="leave them out")
    if method != "full" and body.head_kind == "classes":
        for part in filter(None, (body.head, body.pooler)):
            part.requires_grad_(True)
    if frozen_embeddings:
        for table in filter(None, (body.embedding, body.position_embedding, body.type_embedding)):
            table.requires_grad_(False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trained:
        raise ConfigError(f"method {method!r} leaves nothing to train", hint="give the model a head, or take lora")
    return Prepared(method, trained, sum(p.numel() for p in model.parameters()), matched)


def transformer_of(model: nn.Module) -> Transformer:
    """The Transformer in a model, or the model itself."""
    for module in model.modules():
        if isinstance(module, Transformer):
            return module
    raise ConfigError(f"{type(model).__name__} has no Transformer to adapt", hint="adapt it by ffn.lora.adapt")


def layer_rates(model: nn.Module, decay: float) -> Callable[[str], float]:
    """By a parameter's name, how many times the learning rate it learns at: `decay` less for each layer further down.

    What stands around the Transformer or above its last block learns at the rate itself, the last block too, the first
    of n at decay^(n-1), and the embeddings at decay^n (Howard & Ruder 2018, arXiv 1801.06146, divide by 2.6; Clark et
    al. 2020, arXiv 2003.10555, multiply by 0.8).

    >>> rate = layer_rates(Transformer(100, width=32, depth=2, heads=4, hidden=64), decay=0.5)
    >>> [rate(name) for name in ("norm.weight", "blocks.1.ffn.gate_up", "blocks.0.ffn.gate_up", "embedding.weight")]
    [1.0, 1.0, 0.5, 0.25]
    """
    if not 0 < decay <= 1:
        raise ConfigError(f"layer decay {decay} is not above 0 and at most 1", hint="try 0.9, or 1 for none")
    body = transformer_of(model)
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is body)
    depth = len(body.blocks)

    def rate(name: str) -> float:
        own = name.removeprefix(prefix) if name.startswith(prefix) else ""
        if own.startswith("blocks."):
            return decay ** (depth - 1 - int(own.split(".")[1]))
        bottom = ("embedding.", "position_embedding.", "type_embedding.", "embedding_norm.")
        return decay**depth if own.startswith(bottom) else 1.0

    return rate


def merge(model: nn.Module) -> nn.Module:
    """Put the active adapters into the weights, and take them away: layers and names are the model's own again.

    A model without adapters is left as it is.
    """
    if any(True for _ in lora.lora_layers(model)):
        lora.unwrap(lora.merge(model))
    return model
