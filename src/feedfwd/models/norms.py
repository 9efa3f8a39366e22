"""Normalisation of each token by itself."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from feedfwd.errors import ConfigError, nearest
from feedfwd.ffn.kernels import plan
from feedfwd.ffn.parts import watched
from feedfwd.models import norms_native


class RMSNorm(nn.RMSNorm):
    """w x / √(mean(x²) + ε) over the last axis; Zhang & Sennrich 2019, arXiv 1910.07467.

    Under autocast the result is fp32, or, with `into_products`, what the products that take it would make of it.

    >>> RMSNorm(4, eps=0.0)(torch.full((1, 4), 3.0))
    tensor([[1., 1., 1., 1.]], grad_fn=<FastRMSNormBackward>)
    """

    def __init__(self, width: int, eps: float = 1e-6, into_products: bool = False) -> None:
        super().__init__(width, eps=eps)
        self.width, self.into_products = width, into_products

    def forward(self, x: Tensor) -> Tensor:
        if self.is_fast(x):
            return FastRMSNorm.apply(x, self.weight, self.eps, self.gives(x))  # type: ignore[no-untyped-call]
        # A weight of another precision would widen the result, and keep the fused kernels away.
        return F.rms_norm(x, (self.width,), self.weight.to(x.dtype), self.eps)

    def is_fast(self, x: Tensor) -> bool:
        """Whether `FastRMSNorm` takes x."""
        fast = x.dtype == self.weight.dtype and x.device.type == "cpu" and torch.is_grad_enabled() and plan.enabled()
        return fast and not torch.compiler.is_compiling()

    def gives(self, x: Tensor) -> torch.dtype:
        """The precision of the result."""
        narrow = self.into_products and torch.is_autocast_enabled(x.device.type)
        return torch.get_autocast_dtype(x.device.type) if narrow else x.dtype


class FastRMSNorm(torch.autograd.Function):
    """The same on a CPU, where torch writes the backward out in a dozen sweeps over memory: in C, or half by torch.

    LayerNorm's backward is one fused kernel. Told that the mean is 0, it gives the gradient of RMSNorm but for the
    term that subtracts the mean of w ∂y, which is put back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.in_c = norms_native.lacks(x, weight, dtype) is None
        if ctx.in_c:
            x, y, scale = norms_native.forward(x.contiguous(), None, weight, eps, dtype)
        else:
            y, scale = torch.ops.aten._fused_rms_norm(x, weight.shape, weight, eps)  # scale = 1 / √(mean(x²) + ε)
            y = y.to(dtype)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        dy = dy.contiguous()
        if ctx.in_c:
            dx, _, dweight = norms_native.backward(dy, None, x, weight, scale)
            return dx, dweight, None, None
        dy, zeros = dy.to(x.dtype), torch.zeros_like(scale)
        mask = [True, True, False]
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            dy, x.contiguous(), weight.shape, zeros, scale, weight, None, mask
        )
        return dx.add_((dy @ weight).unsqueeze(-1) * (scale / weight.numel())), dweight, None, None


def added(norm: nn.Module, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """x + branch, and `norm` of it: at one go in C where that serves and nothing watches the norm."""
    if type(norm) is RMSNorm and not watched(norm):
        dtype = norm.gives(x)
        alike = branch.dtype == dtype and branch.shape == x.shape
        if alike and norm.is_fast(x) and norms_native.lacks(x, norm.weight, dtype) is None:
            return AddedRMSNorm.apply(x, branch, norm.weight, norm.eps)  # type: ignore[no-untyped-call]
    x = x + branch
    return x, norm(x)


def of_sum(norm: nn.Module, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """`norm` of x + branch, as it is and as products take it: the same twice, but where C serves.

    That is LayerNorm under autocast, where nothing watches it.
    """
    if type(norm) is nn.LayerNorm and norm.bias is not None and not watched(norm):
        alike = x.dtype == torch.float32 and x.shape == branch.shape and branch.dtype == torch.bfloat16
        graded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if alike and graded and norms_native.lacks(x, norm.weight, branch.dtype) is None:
            return AddedLayerNorm.apply(x, branch, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    y = norm(x + branch)
    return y, y


class AddedLayerNorm(torch.autograd.Function):
    """LayerNorm of x + branch, in x's precision and in the branch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, low, *kept = norms_native.layer_forward(x.contiguous(), branch.contiguous(), weight, bias, eps)
        ctx.save_for_backward(weight, *kept)
        ctx.set_materialize_grads(False)
        ctx.low = low.dtype
        return y, low

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlow: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, total, mean, scale = ctx.saved_tensors
        dy = torch.zeros_like(total) if dy is None else dy.contiguous()
        dlow = None if dlow is None else dlow.contiguous()
        return *norms_native.layer_backward(dy, dlow, ctx.low, total, weight, mean, scale), None


class AddedRMSNorm(torch.autograd.Function):
    """x + branch and RMSNorm of it, in the branch's precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total, y, scale = norms_native.forward(x.contiguous(), branch.contiguous(), weight, eps, branch.dtype)
        ctx.save_for_backward(total, weight, scale)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dbranch, dweight = norms_native.backward(dy.contiguous(), dtotal.contiguous(), *ctx.saved_tensors)
        return dx, dbranch, dweight, None


def norm(name: str, width: int, eps: float, into_products: bool = False) -> nn.Module:
    """The norm of that name: "rms" or "layer"; `into_products` says that nothing but products take its result."""
    match name:
        case "rms":
            return RMSNorm(width, eps, into_products)
        case "layer":
            return nn.LayerNorm(width, eps)
    raise ConfigError(f"unknown model.norm={name!r}", hint=nearest(name, ["rms", "layer"]))
