"""What every layer here is made of: a linear map that knows how it started, a normalisation, a dropout."""

import operator

from torch import Generator, nn

from feedfwd.errors import ConfigError, nearest
from feedfwd.ffn.init import initialize


class Linear(nn.Linear):
    """y = W x + b, started by a scheme of `initialize`; `init` says which one, where "auto" was asked for too."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        *,
        init: str = "auto",
        activation: str = "identity",
        depth: int = 1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.init = initialize(self.weight, init, activation=activation, depth=depth, generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, init={self.init}"


def watched(module: nn.Module) -> bool:
    """Whether a hook sits on it, which must see what passes there: then nothing may be computed past its `forward`.

    >>> layer = nn.Linear(1, 1)
    >>> watched(layer), layer.register_full_backward_pre_hook(lambda *_: None) is None, watched(layer)
    (False, False, True)
    """
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


def normalization(name: str | None, width: int, *, batch: bool = False) -> nn.Module:
    """Normalisation by name over the last axis; none at all for None. `batch` allows the one that mixes examples."""
    match name:
        case None | "none":
            return nn.Identity()
        case "layer":
            return nn.LayerNorm(width)
        case "rms":
            return nn.RMSNorm(width, eps=1e-6)
        case "batch" if batch:
            return nn.BatchNorm1d(width)
        case "batch":
            raise ConfigError(
                "norm='batch' mixes tokens, which a feed-forward layer must not", hint="take 'layer' or 'rms'"
            )
    raise ConfigError(f"unknown norm {name!r}", hint=nearest(name, ["none", "layer", "rms", "batch"]))


def dropout(p: float, name: str = "dropout") -> nn.Dropout:
    """Dropout with probability p, which must leave something: 0 ≤ p < 1."""
    if not 0 <= p < 1:
        raise ConfigError(f"{name}={p} is not a probability below 1", hint="take a number from 0 (off) to 0.9")
    return nn.Dropout(p)


def size(value: int, name: str) -> int:
    """A width, a whole number of at least 1."""
    try:
        number = operator.index(value)  # takes numpy's integers too, refuses 128.0
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not a whole number of at least 1", hint="try 128")
    return number
