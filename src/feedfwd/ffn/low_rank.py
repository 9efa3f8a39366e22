"""One frozen linear map and its low-rank correction as a single differentiable product.

    y = gain ⊙ (x Wᵀ + scale · drop(x) Aᵀ Bᵀ) + bias

Plain autograd writes the correction beside the product, scales it, adds it, and keeps drop(x) and the dropout's mask.
Here the correction is added inside the product's own buffer, and the only things kept for backward are x and the
(N, R) product drop(x) Aᵀ: the mask is drawn again from its seed. The weight is frozen, so its gradient is never formed,
and every gradient of the correction goes through dY B, which is as narrow as the rank.

In a feed-forward layer x is what the activation made of the first product z. The map then takes z itself and keeps that
in x's place, for the activation's slope needs z anyway and x follows from it.
"""

# N tokens, D inputs, H outputs, R rank, G matrices stacked in one weight (1, or 2 for gate and up)

from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from feedfwd.ffn.kernels import pages, plan
from feedfwd.ffn.kernels.formulas import Dropout
from feedfwd.ffn.kernels.function import choose
from feedfwd.ffn.products import linear

STEPS = 2**16  # a dropout rate is a multiple of 1/STEPS


class Hidden(NamedTuple):
    """What stands between the two maps of a feed-forward layer: dropout(σ(z)), or dropout(σ(g) ⊙ u) for z = [g | u]."""

    gated: bool
    sigma: str
    dropout: Dropout | None

    @classmethod
    def of(cls, sigma: str, gated: bool, dropout: nn.Dropout, z: Tensor) -> Self:
        """With a mask of its own, where the dropout is on."""
        return cls(gated, sigma, Dropout.draw(dropout.p, z) if dropout.training and dropout.p else None)

    def forward(self, z: Tensor) -> Tensor:
        """z (N, M) -> x (N, D)."""
        passes = choose(self.sigma, z.dtype, z.device.type)[0]
        x = pages.empty((z.shape[0], z.shape[1] // 2 if self.gated else z.shape[1]), like=z)
        (passes.gated_forward if self.gated else passes.dense_forward)(z, x, self.dropout)
        return x

    def backward(self, z: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """dz and x, written over z and dx."""
        passes = choose(self.sigma, z.dtype, z.device.type)[0]
        (passes.gated_backward if self.gated else passes.dense_backward)(z, dx, self.dropout)
        return z, dx


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    scale: float = 1.0,
    *,
    dropout: float = 0.0,
    gain: Tensor | None = None,
    groups: int = 1,
    hidden: Hidden | None = None,
) -> Tensor:
    """gain ⊙ (x Wᵀ + scale · drop(x) Aᵀ Bᵀ) + bias, for x (…, D), weight (H, D), a (G·R, D), b (H, R).

    A weight of `groups` matrices has as many of a and b, stacked as the matrices are: the g-th block of rows of the
    weight is corrected by the g-th blocks of b and a, all of them seeing the same drop(x). `dropout` is the rate at
    which entries of x are left out of the correction, `gain` (H,) scales the rows (DoRA), and with a and b None there
    is no correction. With `hidden`, x is the product z that it acts on, and a second backward raises, z being used up.

    Gradients reach x, bias, a, b and gain; the weight has none. Where `runs_plain` gives a reason, `plain` runs.
    """
    if hidden is None and runs_plain(weight):
        return plain(x, weight, bias, a, b, scale, dropout=dropout, gain=gain, groups=groups)
    dtype = product_dtype(x)
    x = x.to(dtype)
    bias, a, b = (None if t is None else t.to(dtype) for t in (bias, a, b))
    growth = None if gain is None else (gain - 1).to(dtype)  # the gain is close to 1, where bf16 is coarse
    keep = max(1, round((1 - dropout) * STEPS)) / STEPS
    seed = int(torch.empty((), dtype=torch.int64).random_()) if keep < 1 else 0
    y: Tensor = _LowRankLinear.apply(x, weight, bias, a, b, growth, hidden, scale, groups, keep, seed)  # type: ignore[no-untyped-call]
    return y


def runs_plain(weight: Tensor) -> str:
    """Why the formula is left to autograd, or "" where it isn't."""
    if torch.compiler.is_compiling():
        return "the compiler fuses the plain formula by itself"
    if torch._C._get_tracing_state() is not None:
        return "the layer is being exported"
    if not plan._enabled:
        return "under feedfwd.ffn.plain()"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need each operation's own derivative"
    if weight.requires_grad:
        return "the base weight is being trained too"
    if type(weight) not in (Tensor, nn.Parameter):
        return f"a {type(weight).__name__} has its own operations"
    return ""


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    scale: float = 1.0,
    *,
    dropout: float = 0.0,
    gain: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """The same as `low_rank_linear`, as the formula reads; its dropout draws differently."""
    if a is None or b is None:
        return F.linear(x, weight, bias)
    dtype = product_dtype(x)
    z = F.linear(F.dropout(x, dropout), a.to(dtype))
    parts = zip(z.chunk(groups, -1), b.to(dtype).chunk(groups), strict=True)
    correction = torch.cat([F.linear(z_part, b_part) for z_part, b_part in parts], -1)
    if gain is None:
        return F.linear(x, weight, None if bias is None else bias.to(weight.dtype)) + scale * correction
    y = F.linear(x, weight) + scale * correction
    y = y + y * (gain - 1).to(dtype)
    return y if bias is None else y + bias.to(dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """The type products of x are taken in: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def keep_mask(x: Tensor, keep: float, seed: int) -> Tensor:
    """1 with probability `keep` and else 0, in x's shape and type; the same seed gives the same mask again.

    Sixteen random bits an entry, compared with a threshold: on a CPU a fifth of the time of torch's own dropout, and
    the same on any number of threads.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    words = pages.empty(((x.numel() + 3) // 4,), like=torch.empty(0, dtype=torch.int64, device=x.device))
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: x.numel()].view(x.shape)
    return torch.lt(bits, round(keep * STEPS) - STEPS // 2, out=pages.empty(x.shape, like=x))


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        growth: Tensor | None,
        hidden: Hidden | None,
        scale: float,
        groups: int,
        keep: float,
        seed: int,
    ) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        if hidden is not None:
            x_ND = hidden.forward(x_ND)
        z_NR = unscaled_NH = None
        if a is not None:
            z_NR = linear(_seen(x_ND, keep_mask(x_ND, keep, seed) if keep < 1 else None), a).mul_(scale / keep)
        # The weight is cast each time, as by autocast: keeping the cast one would double what the weights take.
        y_NH = linear(x_ND, weight, bias if growth is None else None)
        if z_NR is not None and b is not None:
            for y, z, b_HR in zip(y_NH.chunk(groups, 1), z_NR.chunk(groups, 1), b.chunk(groups), strict=True):
                y.addmm_(z, b_HR.t())
        if growth is not None:
            unscaled_NH = y_NH
            y_NH = torch.addcmul(y_NH, y_NH, growth)
            if bias is not None:
                y_NH.add_(bias)
        ctx.save_for_backward(x, weight, a, b, z_NR, growth, unscaled_NH)
        ctx.constants, ctx.spent = (hidden, scale, groups, keep, seed), False
        return y_NH.view(*x.shape[:-1], y_NH.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError("a second backward through the same adapted feed-forward layer: run its forward again")
        x, weight, a, b, z_NR, growth, unscaled_NH = ctx.saved_tensors
        hidden, scale, groups, keep, seed = ctx.constants
        needs_x, _, needs_bias, needs_a, needs_b, needs_growth, *_ = ctx.needs_input_grad
        dx: Any = None
        da = db = dbias = dgrowth = None
        dy_NH, x_ND = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if needs_bias:
            dbias = dy_NH.sum(0)
        if needs_growth:
            dgrowth = (dy_NH * unscaled_NH).sum(0)
        if growth is not None:
            dy_NH = torch.addcmul(dy_NH, dy_NH, growth)
        dy_parts = dy_NH.chunk(groups, 1)
        if needs_b:
            z_parts = z_NR.chunk(groups, 1)
            db = _stack([linear(z.t(), dy.t()).t() for dy, z in zip(dy_parts, z_parts, strict=True)], 0)
        if needs_x:
            dx = linear(dy_NH, weight.t())
        elif hidden is not None and needs_a:
            x_ND = hidden.forward(x_ND)
        if a is not None and (needs_x or needs_a):
            dz_parts = [linear(dy, b_HR.t()) for dy, b_HR in zip(dy_parts, b.chunk(groups), strict=True)]
            dz_NR = _stack(dz_parts, 1).mul_(scale / keep)
            mask_ND = keep_mask(x_ND if dx is None else dx, keep, seed) if keep < 1 else None
            if needs_x and mask_ND is not None:  # what dropout hid gets no gradient through the correction
                dx.addcmul_(linear(dz_NR, a.t()), mask_ND)
            elif needs_x:
                dx.addmm_(dz_NR, a)
        if needs_x and hidden is not None:
            ctx.spent = True
            dx, x_ND = hidden.backward(x_ND, dx)
        if needs_a:
            da = linear(dz_NR.t(), _seen(x_ND, mask_ND).t())
        return None if dx is None else dx.view(x.shape), None, dbias, da, db, dgrowth, *[None] * 5


def _seen(x_ND: Tensor, mask_ND: Tensor | None) -> Tensor:
    """What dropout leaves of x."""
    return x_ND if mask_ND is None else torch.mul(x_ND, mask_ND, out=pages.empty(x_ND.shape, like=x_ND))


def _stack(parts: list[Tensor], dim: int) -> Tensor:
    """The parts side by side; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
