"""Dropout of what a branch adds, for CPUs: torch draws its mask number after number, and keeps it for the backward."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from feedfwd.ffn import parts
from feedfwd.ffn.kernels import formulas, plan
from feedfwd.ffn.kernels.function import choose
from feedfwd.ffn.kernels.native import foreign


class Dropout(nn.Dropout):
    """`nn.Dropout` whose mask is drawn in one sweep, and again for the backward (see `formulas.Dropout`).

    >>> kept = Dropout(0.25)(torch.ones(100, 100))
    >>> sorted({round(value, 4) for value in kept.flatten().tolist()})
    [0.0, 1.3333]
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        plainly = x.device.type != "cpu" or x.ndim < 2 or self.inplace or not plan.enabled() or foreign((x,))
        if plainly or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return super().forward(x)
        return Dropped.apply(x, self.p)  # type: ignore[no-untyped-call]


class Dropped(torch.autograd.Function):
    """Of the mask its seed alone is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        drop = formulas.Dropout.draw(p, x)
        ctx.save_for_backward(drop.seed)
        ctx.p = p
        return masked(x, drop)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (seed,) = ctx.saved_tensors
        return masked(dy, formulas.Dropout(ctx.p, seed)), None


def masked(x: Tensor, drop: formulas.Dropout) -> Tensor:
    """What this mask leaves of x (..., D), times its scale."""
    y = torch.empty(x.shape, dtype=x.dtype)
    passes = choose("identity", x.dtype, "cpu")[0]
    passes.dense_forward(x.reshape(-1, x.shape[-1]).contiguous(), y.view(-1, x.shape[-1]), drop)
    return y


def dropout(p: float) -> Dropout:
    """With a probability that leaves something."""
    return Dropout(parts.dropout(p).p)
