"""Matrix products by the faster of the two libraries that torch carries.

In fp32 torch multiplies by MKL, which takes its AVX2 code on a processor that isn't Intel's; oneDNN, which torch has
too, takes AVX-512 there and is about twice as fast. Which one runs depends on the processor and the sizes alone and is
never timed, so that the same command gives the same bits.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from feedfwd.ffn.kernels import maps, pages, plan
from feedfwd.ffn.kernels.native import foreign
from feedfwd.ffn.parts import Linear, watched

LARGE = 2**21  # multiplications from which oneDNN's longer preparation pays


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for x (N, D), weight (H, D) of any strides. Not differentiable: for a backward pass of one's own.

    A weight of another precision is taken in x's.

    >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
    torch.Size([2, 4])
    """
    if weight.dtype != x.dtype:
        if maps.lacks_linear(x, [weight]) is None:
            return maps.linear(x, [weight], [bias], pages.empty((x.shape[0], weight.shape[0]), like=x))
        weight = weight.to(x.dtype)
    large = x.dtype == torch.float32 and x.shape[0] * weight.numel() >= LARGE
    if large and x.device.type == "cpu" and _dense(x) and _dense(weight) and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    out = pages.empty((x.shape[0], weight.shape[0]), like=x)
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def mapped(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """`F.linear` of x (..., D) by several maps (H, D), whose results (..., ΣH) lie side by side.

    All have a bias or none. In C where that is faster (see `kernels.maps`).

    >>> mapped(torch.ones(2, 3), [torch.ones(4, 3), torch.ones(5, 3)], [None, None]).shape
    torch.Size([2, 9])
    """
    recorded = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if plan.enabled() and torch.is_autocast_enabled(x.device.type) and not (recorded or _transformed()):
        x = x.to(torch.get_autocast_dtype(x.device.type))
        x_ND = x.reshape(-1, x.shape[-1])
        if maps.lacks(x_ND) is None and not foreign(weights):
            y: Tensor = Mapped.apply(x_ND, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]
            return y.view(*x.shape[:-1], y.shape[1])
    return F.linear(x, _stacked(weights), None if biases[0] is None else _stacked(biases))


def _transformed() -> bool:
    found: bool = torch._C._are_functorch_transforms_active()
    return found


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there)


def applied(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` makes of x: by `mapped` where it is a linear map that nothing watches."""
    if type(layer) is Linear and not watched(layer):
        return mapped(x, [layer.weight], [layer.bias])
    y: Tensor = layer(x)
    return y


class Mapped(torch.autograd.Function):
    """x Wᵀ + b and its gradients, x (N, D) in bf16, W and b in fp32, stacked of several."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, many: int, *parts: Tensor) -> Tensor:
        weights, biases = list(parts[:many]), list(parts[many:])
        ctx.rows, ctx.dtype = [len(weight) for weight in weights], weights[0].dtype
        if maps.lacks_linear(x, weights) is None:
            ctx.save_for_backward(x, *weights)
            return maps.linear(x, weights, biases, pages.empty((len(x), sum(ctx.rows)), like=x))
        weight = _stacked(weights).to(x.dtype)
        ctx.save_for_backward(x, weight)
        return linear(x, weight, None if biases[0] is None else _stacked(biases).to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        many, dy = len(ctx.rows), dy.contiguous()
        needs_x, _, *needs = ctx.needs_input_grad
        dx = None
        if needs_x and weights[0].dtype == x.dtype:
            dx = linear(dy, weights[0].t())
        elif needs_x:
            dx = maps.linear(dy, [w.t() for w in weights], [None] * len(weights), pages.empty(x.shape, like=x))
        gradients: list[Tensor | None] = [None] * (2 * many)
        for i, dy_part in enumerate(torch.split(dy, ctx.rows, 1)):
            if needs[i]:
                sums = torch.empty(ctx.rows[i]) if needs[many + i] else None
                dw = maps.outer(dy_part, x, torch.empty(ctx.rows[i], x.shape[1]), sums=sums)
                gradients[i], gradients[many + i] = dw.to(ctx.dtype), None if sums is None else sums.to(ctx.dtype)
            elif needs[many + i]:
                gradients[many + i] = dy_part.sum(0).to(ctx.dtype)
        return dx, None, *gradients


def _dense(matrix: Tensor) -> bool:
    """Whether its numbers lie side by side: for a part of a wider matrix oneDNN takes a path 500 times as slow."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


@cache
def onednn_is_faster() -> bool:
    """Whether fp32 products on this processor are left to oneDNN: where torch would take MKL, and it isn't Intel's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # torch's own name, without a promise to keep it
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
