"""Which path a feed-forward layer takes for an input, and why: the layers obey this decision, `explain` tells it."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from feedfwd.ffn.activations import ReLU2
from feedfwd.ffn.kernels.formulas import SIGMA
from feedfwd.ffn.kernels.function import Form, bends, choose
from feedfwd.ffn.parts import Linear, watched

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_NAMES: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.SELU: "selu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Hardswish: "hard_swish",
    ReLU2: "relu2",
}
# Reasons that are somebody's own doing, of which no log need tell.
OFF, EXPORT, TRANSFORM = (
    "under feedfwd.ffn.plain()",
    "the layer is being exported",
    "torch.func transforms need each operation's own derivative",
)
_enabled = True


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Every feed-forward layer takes its plain formula here: for a second derivative, or to compare.

    >>> import torch
    >>> from feedfwd.ffn import GatedFFN, explain, plain
    >>> with plain():
    ...     print(explain(GatedFFN(8, 16), torch.zeros(1, 8)))
    plain formula: under feedfwd.ffn.plain()
    """
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def enabled() -> bool:
    """False under `plain()`."""
    return _enabled


def sigma_of(activation: Any) -> str | None:
    """The name of an activation module that the kernels know with these settings, or None.

    >>> sigma_of(nn.GELU(approximate="tanh")), sigma_of(nn.LeakyReLU(0.2))
    ('gelu_tanh', None)
    """
    kind = type(activation)
    if kind is nn.GELU:
        return "gelu" if activation.approximate == "none" else "gelu_tanh"
    if kind is nn.LeakyReLU:
        return "leaky_relu" if activation.negative_slope == 0.01 else None
    if kind is nn.ELU:
        return "elu" if activation.alpha == 1.0 else None
    if kind is nn.Softplus:
        return "softplus" if (activation.beta, activation.threshold) == (1.0, 20.0) else None
    return _NAMES.get(kind)


def why_plain(layer: Any, x: Tensor) -> str:
    """Why a DenseFFN or GatedFFN takes its plain formula for x, or "" where the kernels serve."""
    modules = layer._modules  # looked up here rather than as attributes, which costs a small layer its lead
    down, activation, dropout = modules["down"], modules["activation"], modules["dropout"]
    gated = "gate_up" in layer._parameters
    linears = (down,) if gated else (modules["up"], down)
    first, second = layer._parameters["gate_up"] if gated else modules["up"].weight, down.weight
    if not _enabled:
        return OFF
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return EXPORT
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return TRANSFORM
    if sigma_of(activation) is None:
        return f"no kernel is written for {activation}"
    if type(dropout) is not nn.Dropout:
        return f"no kernel is written for {type(dropout).__name__} as dropout"
    for linear in linears:
        if type(linear) not in (Linear, nn.Linear):
            return f"{type(linear).__name__} in place of a plain linear map"
    for part in (*linears, activation, dropout):
        if watched(part):
            return f"a hook sits on its {type(part).__name__}, and must see what passes there"
    for tensor in (x, first, second):
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"a {type(tensor).__name__} has its own operations"
    if not (x.dtype == first.dtype == second.dtype) and not torch.is_autocast_enabled(x.device.type):
        return f"x is {_short(x.dtype)} and the weights are {_short(first.dtype)}"
    if x.dtype not in DTYPES:
        return f"no kernel is written for {_short(x.dtype)}"
    return ""


def report(kind: str, reason: str) -> None:
    """Say in the log, once, that a kind of layer takes its plain formula, and why."""
    if reason not in (OFF, EXPORT, TRANSFORM) and not torch.compiler.is_compiling():
        _report(kind, reason)


@functools.cache
def _report(kind: str, reason: str) -> None:
    logging.getLogger("feedfwd.ffn").warning("%s takes its plain formula: %s", kind, reason)


class Path(NamedTuple):
    """What runs for a layer and an input: the kernels or the plain formula, by whose pointwise passes, and why."""

    fast: bool
    passes: str
    reason: str
    kept: str  # for the backward

    def __str__(self) -> str:
        if not self.fast:
            return f"plain formula: {self.reason}"
        why = f" ({self.reason})" if self.reason else ""
        return f"kernels, pointwise passes by {self.passes}{why}; kept for the backward: {self.kept}"


def explain(layer: Any, x: Tensor) -> Path:
    """Which path `layer` takes for `x` in its present mode (training, autocast, device, dtype), and why.

    >>> from feedfwd.ffn import DenseFFN
    >>> print(explain(DenseFFN(8, 32).double(), torch.zeros(4, 8, dtype=torch.float64)))
    kernels, pointwise passes by torch's operations (float64 is not written in C); kept for the backward: x and a
    """
    from feedfwd.ffn import DenseFFN, GatedFFN  # which themselves need this module

    if type(layer).forward not in (DenseFFN.forward, GatedFFN.forward):
        return Path(False, "", f"{type(layer).__name__} has a forward of its own", "")
    reason = why_plain(layer, x)
    if reason:
        return Path(False, "", reason, "what autograd keeps")
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    form = form_of(layer)
    passes, reason = choose(form.sigma, dtype, device)
    name, weights = passes.name, layer._parameters if form.gated else layer.up._parameters
    first = weights["gate_up" if form.gated else "weight"]
    if bends(x.new_empty(x.numel() // x.shape[-1], x.shape[-1], dtype=dtype), first, layer.down.weight, form):
        name += ", within the products"
    kept = "x" if form.recompute else "x and a" if form.from_output else "x, gate and up" if form.gated else "x and z"
    return Path(True, name, reason, kept)


def form_of(layer: Any) -> Form:
    """What a layer computes at this moment."""
    sigma, dropout = sigma_of(layer._modules["activation"]), layer._modules["dropout"]
    assert sigma in SIGMA
    p = dropout.p if dropout.training else 0.0
    return Form("gate_up" in layer._parameters, sigma, p, layer.recompute)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
