"""The feed-forward layer's kernels: forward and backward that keep only what the formula needs.

`gated` and `dense` are the layers as functions of their tensors; `explain` says which path a layer takes and why,
`plain` turns the kernels off. What is kept and why, docs/feed-forward.md tells.
"""

from typing import Any

import torch
from torch import Tensor

from feedfwd.errors import ConfigError, nearest
from feedfwd.ffn.kernels import function, maps
from feedfwd.ffn.kernels.formulas import SIGMA
from feedfwd.ffn.kernels.function import Form
from feedfwd.ffn.kernels.pages import release
from feedfwd.ffn.kernels.plan import Path, explain, form_of, plain, report, why_plain

__all__ = ["Path", "dense", "explain", "feed_forward", "gated", "plain", "release"]


def gated(
    x: Tensor,
    gate_up: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str = "silu",
    dropout: float = 0.0,
    recompute: bool = False,
) -> Tensor:
    """dropout(σ(g) ⊙ u) · downᵀ + down_bias, where [g | u] = x · gate_upᵀ + bias.

    x (..., D), gate_up (2H, D), bias (2H,), down (D', H), down_bias (D',). Keeps x, g and u for the backward; with
    `recompute` x alone, and the backward takes the first product again. `dropout` is applied as given: pass 0 where
    the layer doesn't train. Under autocast all is cast to its precision, as torch's own linear maps do.

    >>> x, w, v = torch.ones(1, 2), torch.ones(6, 2), torch.ones(2, 3)
    >>> gated(x, w, None, v, None, activation="identity")
    tensor([[12., 12.]])
    """
    return _run(x, gate_up, bias, down, down_bias, Form(True, _known(activation), dropout, recompute))


def dense(
    x: Tensor,
    up: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str = "relu",
    dropout: float = 0.0,
    recompute: bool = False,
) -> Tensor:
    """dropout(σ(x · upᵀ + bias)) · downᵀ + down_bias; as `gated`, with up (H, D) and bias (H,).

    Keeps x and the hidden layer before σ, or after it for ReLU and ReLU², whose slope follows from their output.
    """
    return _run(x, up, bias, down, down_bias, Form(False, _known(activation), dropout, recompute))


def _known(activation: str) -> str:
    if activation not in SIGMA:
        raise ConfigError(f"no kernel is written for activation={activation!r}", hint=nearest(activation, SIGMA))
    return activation


def _run(x: Tensor, first: Tensor, bias: Tensor | None, down: Tensor, down_bias: Tensor | None, form: Form) -> Tensor:
    device = x.device.type
    if torch.is_autocast_enabled(device):
        # Outside the function, so that autograd casts the gradients back.
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
        x_ND = x.reshape(-1, x.shape[-1])
        if torch.compiler.is_compiling() or maps.lacks(x_ND) or first.dtype != down.dtype:
            first, down = first.to(dtype), down.to(dtype)
            bias = None if bias is None else bias.to(dtype)
            down_bias = None if down_bias is None else down_bias.to(dtype)
    return function.apply(x, first, bias, down, down_bias, form)


def feed_forward(layer: Any, x: Tensor) -> Tensor | None:
    """What `layer`, a DenseFFN or GatedFFN, makes of x after its norm; None where its plain formula must run.

    The log says why it must, once for each reason; `explain` says it at any time.
    """
    if reason := why_plain(layer, x):
        report(type(layer).__name__, reason)
        return None
    form, down = form_of(layer), layer._modules["down"]._parameters
    if form.gated:
        first, bias = layer._parameters["gate_up"], layer._parameters["gate_up_bias"]
    else:
        first, bias = layer.up.weight, layer.up.bias
    return _run(x, first, bias, down["weight"], down["bias"], form)
