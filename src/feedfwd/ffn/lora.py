"""Low-rank adapters for a whole model: choose the linear maps, train, switch, merge.

    print(adapt(model, ["attention.*", "gate_up", "down"], rank=16, dropout=0.05))  # what matched, how much trains
    ...                                                   # only the adapter's tensors have gradients
    save_file(adapter_state(model), "adapter.safetensors")  # and only they need keeping
    unwrap(merge(model))                                  # W + s·BA in place of W: full speed, nothing left beside it

A weight that stacks several matrices, as `gate_up` does, gets an A and a B for each of them, just as the unpacked
projections would, and still runs as one product; dropout hides the same entries of x from all of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Generator, Tensor, nn

from feedfwd.errors import ConfigError, nearest
from feedfwd.ffn.adapted import ADAPTED, PLAIN
from feedfwd.ffn.lora_linear import KINDS, Adapter, LoRALinear


@dataclass(frozen=True, slots=True)
class Adapted:
    """What `adapt` did: which layers each target matched, and how many parameters train, of how many."""

    name: str
    adapter: Adapter
    matched: dict[str, tuple[str, ...]]
    trained: int
    total: int

    def __str__(self) -> str:
        counts = ", ".join(f"{pattern} matches {len(paths)}" for pattern, paths in self.matched.items())
        share = f"{self.trained:,} of {self.total:,} parameters train ({self.trained / self.total:.2%})"
        return f"{self.adapter.method} {self.name!r}, rank {self.adapter.rank}: {counts}; {share}"


def adapt(
    model: nn.Module,
    targets: Sequence[str],
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    method: str = "lora",
    bias: bool = False,
    name: str = "default",
    generator: Generator | None = None,
) -> Adapted:
    """Freeze a model, give the linear maps that `targets` match an adapter, make it the active one. In place.

    A target is a path or its end, with wildcards: "down", "blocks.0.*", "attention.?_proj"; "*" is every linear map,
    the head too. The packed weight of a gated layer is one map, `gate_up`. To give some maps another rank, adapt them
    by a second call with the same name. `bias` lets the adapter add a bias of its own. Raises ConfigError for a target
    that matches no linear map.

    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> print(adapt(model, ["0"], rank=4))
    lora 'default', rank 4: 0 matches 1; 160 of 514 parameters train (31.13%)
    """
    adapter = Adapter(rank, alpha, dropout, method, bias)
    if isinstance(targets, str):
        targets = [targets]
    known = linear_maps(model)
    matched = {target: tuple(path for path in known if matches(path, target)) for target in targets}
    for target, paths in matched.items():
        if not paths:
            raise ConfigError(f"targets: {target!r} matches no linear map", hint=_hint(model, target, known))
    if not matched:
        raise ConfigError("targets is empty", hint=_hint(model, "", known))
    add_adapters(model, name, {path: adapter for paths in matched.values() for path in paths}, generator)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Adapted(name, adapter, matched, trained, sum(p.numel() for p in model.parameters()))


def matches(path: str, target: str) -> bool:
    """Whether a target names a path or the end of one.

    >>> [matches("blocks.0.ffn.down", target) for target in ("down", "ffn.*", "blocks.*.down", "own")]
    [True, True, True, False]
    """
    return fnmatchcase(path, target) or fnmatchcase(path, f"*.{target}")


def add_adapters(
    model: nn.Module, name: str, adapters: Mapping[str, Adapter], generator: Generator | None = None
) -> None:
    """Give the linear maps at these paths adapter `name`, freeze all else, and make it the active one."""
    model.requires_grad_(False)
    for path, adapter in adapters.items():
        _wrap(model, path).add(name, adapter, generator)
    activate(model, name)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every adapted linear map with its path, each once."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoRALinear))


def activate(model: nn.Module, name: str | None) -> None:
    """Switch the whole model to adapter `name`, or to none. Layers that don't have it run as their base."""
    layers = [layer for _, layer in lora_layers(model)]
    known = {adapter for layer in layers for adapter in layer.adapters}
    if name is not None and name not in known:
        raise ConfigError(f"no adapter {name!r}", hint=nearest(name, known) if known else "adapt the model first")
    for layer in layers:
        layer.activate(name if name in layer.adapters else None)


def merge(model: nn.Module) -> nn.Module:
    """Put the active adapter into the weights: W + s·BA, or DoRA's m/‖·‖ times that. The old weights are kept aside."""
    layers = [layer for _, layer in lora_layers(model) if layer.active is not None]
    if not layers:
        raise ConfigError("nothing to merge", hint="activate an adapter first")
    for layer in layers:
        layer.merge()
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Bring back the weights as they were before `merge`, bit for bit."""
    layers = [layer for _, layer in lora_layers(model) if layer.merged]
    if not layers:
        raise ConfigError("nothing to unmerge", hint="no adapter is merged")
    for layer in layers:
        layer.unmerge()
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Take the adapters away; what is merged stays in the weights. Layers and names are the model's own again."""
    for path, layer in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(layer, LoRALinear):
            continue
        parent, leaf = _place(model, path)
        if leaf == "gate_up" and type(parent) in PLAIN:
            parent.gate_up, parent.gate_up_bias = layer.base.weight, layer.base.bias
        else:
            setattr(parent, leaf, layer.base)
    for module in model.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
    return model


def adapter_state(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The tensors of one adapter by path, such as "blocks.0.ffn.down.lora_A": all that training it changes."""
    state = {
        f"{path}.{kind}": getattr(layer, kind)[name].detach()
        for path, layer in lora_layers(model)
        for kind in KINDS
        if name in getattr(layer, kind)
    }
    if not state:
        activate(model, name)  # says which there are
    return state


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Fill adapter `name`, which the model must have, with what `adapter_state` gave."""
    own = adapter_state(model, name)
    if wrong := sorted(set(own) ^ set(state)) or sorted(k for k in own if own[k].shape != state[k].shape):
        raise ConfigError(
            f"the tensors of adapter {name!r} don't fit: {len(wrong)} differ, the first is {wrong[0]!r}",
            hint="adapt the model with the targets, rank, method and bias the adapter was made with",
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])


def linear_maps(model: nn.Module) -> list[str]:
    """The paths of all that can be adapted: linear layers, adapted ones, packed weights."""
    paths: list[str] = []
    for path, module in model.named_modules():
        if type(module) in (*ADAPTED, *PLAIN) and isinstance(getattr(module, "gate_up", None), nn.Parameter):
            paths.append(f"{path}.gate_up".lstrip("."))
        elif isinstance(module, LoRALinear) or (path and isinstance(module, nn.Linear) and not _read(module)):
            paths.append(path)
    inside = tuple(f"{path}.base" for path, _ in lora_layers(model))
    return [path for path in paths if path not in inside]


def _read(module: nn.Linear) -> bool:
    """Whether torch's MultiheadAttention owns this layer: it reads the weight and never calls the layer."""
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _hint(model: nn.Module, target: str, known: list[str]) -> str:
    """What a target that matches no linear map should have been."""
    others = [f"{path} is a {type(m).__name__}." for path, m in model.named_modules() if path and matches(path, target)]
    counts = Counter(path.rpartition(".")[2] for path in known)
    ends = {".".join(part for part in path.split(".") if not part.isdigit()).split(".", 1)[-1] for path in known}
    close = nearest(target, {*counts, *ends}).partition("known:")[0].strip()
    listing = ", ".join(f"{leaf} (×{count})" for leaf, count in counts.most_common(12)) or "nothing"
    return " ".join(filter(None, [*others[:1], close, f"the linear maps here end in {listing}"]))


def _wrap(model: nn.Module, path: str) -> LoRALinear:
    """The adapted map at a path, made from what is there."""
    parent, leaf = _place(model, path)
    found: Any = getattr(parent, leaf)
    if isinstance(found, LoRALinear):
        return found
    if isinstance(found, nn.Parameter):  # a packed weight: give it the face of a linear layer
        base = nn.Linear(found.shape[1], found.shape[0], bias=False, device="meta")
        base.weight, base.bias = found, parent.gate_up_bias
        layer = LoRALinear(base, groups=parent.packed[leaf])
        delattr(parent, leaf)
        parent.gate_up, parent.gate_up_bias = layer, None
    else:
        layer = LoRALinear(found)
        for other, module in list(model.named_modules(remove_duplicate=False)):
            if module is found:  # a layer may be used in several places
                setattr(*_place(model, other), layer)
    for module in model.modules():
        if type(module) in ADAPTED and any(isinstance(child, LoRALinear) for child in module.children()):
            module.__class__ = ADAPTED[type(module)]
    return layer.train(parent.training)


def _place(model: nn.Module, path: str) -> tuple[Any, str]:
    """The module that holds what is at a path, and the name it has there."""
    parent, _, leaf = path.rpartition(".")
    return model.get_submodule(parent), leaf
