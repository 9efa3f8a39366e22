"""Matrix products by the faster of the two libraries that torch carries.

In fp32 torch multiplies by MKL, which takes its AVX2 code on a processor that isn't Intel's; oneDNN, which torch has
too, takes AVX-512 there and is about twice as fast. Which one runs depends on the processor and the sizes alone and is
never timed, so that the same command gives the same bits.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from feedfwd.ffn.kernels import maps, pages, plan
from feedfwd.ffn.parts import Linear

LARGE = 2**21  # multiplications from which oneDNN's longer preparation pays


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for x (N, D), weight (H, D) of any strides. Not differentiable: for a backward pass of one's own.

    A weight of another precision is taken in x's.

    >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
    torch.Size([2, 4])
    """
    if weight.dtype != x.dtype:
        if maps.lacks(x, weight) is None:
            return maps.linear(x, weight, bias, pages.empty((x.shape[0], weight.shape[0]), like=x))
        weight = weight.to(x.dtype)
    large = x.dtype == torch.float32 and x.shape[0] * weight.numel() >= LARGE
    if large and x.device.type == "cpu" and _dense(x) and _dense(weight) and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    out = pages.empty((x.shape[0], weight.shape[0]), like=x)
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def mapped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # (..., D), (H, D), (H,) -> (..., H)
    """`F.linear`, in C where that is faster (see `kernels.maps`).

    >>> mapped(torch.ones(2, 3), torch.ones(4, 3), None).shape
    torch.Size([2, 4])
    """
    if not (plan.enabled() and torch.is_autocast_enabled(x.device.type)):
        return F.linear(x, weight, bias)
    transformed = torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling() or transformed:
        return F.linear(x, weight, bias)
    x = x.to(torch.get_autocast_dtype(x.device.type))
    x_ND = x.reshape(-1, x.shape[-1])
    if maps.lacks_outer(x_ND, x_ND):
        return F.linear(x, weight, bias)
    y: Tensor = Mapped.apply(x_ND, weight, bias)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], len(weight))


def applied(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` makes of x: by `mapped` where it is a linear map that nothing watches."""
    if type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks):
        return mapped(x, layer.weight, layer.bias)
    y: Tensor = layer(x)
    return y


class Mapped(torch.autograd.Function):
    """x Wᵀ + b and its gradients, x (N, D) in bf16, W and b in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtype = weight.dtype
        weight, bias = maps.taken(x, weight, bias)
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            linear(dy, weight.t()) if needs_x else None,
            maps.outer(dy, x, torch.empty(weight.shape)).to(ctx.dtype) if needs_weight else None,
            dy.sum(0).to(ctx.dtype) if needs_bias else None,
        )


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
