"""The feed-forward layer as one operation with its own backward, which keeps only what the formula needs.

    z = x W₁ᵀ + b₁ (gate and up side by side where gated),   a = dropout(σ(z)) or dropout(σ(g) ⊙ u),   y = a W₂ᵀ + b₂

Kept for the backward: x and z, or x and a where σ' follows from a, or x alone. Backward: da = dy W₂ into one buffer;
one pointwise pass reads da and z, writes a into da's buffer and dz over z; then dW₂ = dyᵀa, dW₁ = dzᵀx, dx = dz W₁.
So z is used up, and a second backward through the same graph raises.
"""

# N tokens, D model width, H hidden width, M = 2H where gated and H where dense

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from feedfwd.ffn.kernels import native, pages
from feedfwd.ffn.kernels.formulas import FROM_OUTPUT, Dropout, Passes, TorchPasses


class Form(NamedTuple):
    """What a layer computes, tensors apart."""

    gated: bool
    sigma: str
    p: float  # dropout on the hidden activations
    recompute: bool  # keep x alone and take the first product again in the backward

    @property
    def from_output(self) -> bool:
        return not self.gated and self.sigma in FROM_OUTPUT


def choose(sigma: str, dtype: torch.dtype, device: torch.device) -> tuple[Passes, str]:
    """The pointwise passes for this device and precision, and why not better ones ("" where there are none)."""
    if device.type == "cuda":
        from feedfwd.ffn.kernels import gpu

        reason = gpu.why_not(sigma, dtype)
        return (TorchPasses(sigma), reason) if reason else (gpu.TritonPasses(sigma), "")
    if device.type == "cpu":
        compiled, reason = native.passes(sigma, dtype)
        return compiled or TorchPasses(sigma), reason
    return TorchPasses(sigma), f"nothing better is written for {device.type}"


def draw(form: Form, x: Tensor) -> Tensor | None:
    """Dropout's seed, from torch's own generator, as a tensor so that a GPU needn't wait for it."""
    return torch.empty((), dtype=torch.int64, device=x.device).random_() if form.p else None


def forward(
    x: Tensor,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    seed: Tensor | None,
    form: Form,
) -> tuple[Tensor, Tensor]:
    """y, and what the backward needs besides x: z, or a where σ' follows from it."""
    x_ND = x.reshape(-1, x.shape[-1])
    passes, dropout = _setting(form, x, seed)
    z_NM = _linear(x_ND, first, bias, pages.empty((len(x_ND), first.shape[0]), like=x))
    if form.gated:
        a_NH = pages.empty((len(x_ND), down.shape[1]), like=x)
        passes.gated_forward(z_NM, a_NH, dropout)
    else:
        a_NH = z_NM if form.from_output else pages.empty(z_NM.shape, like=x)
        passes.dense_forward(z_NM, a_NH, dropout)
    y = pages.empty((*x.shape[:-1], down.shape[0]), like=x)
    _linear(a_NH, down, down_bias, y.view(len(x_ND), down.shape[0]))
    return y, z_NM


def backward(
    dy: Tensor,
    x: Tensor,
    kept: Tensor | None,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    seed: Tensor | None,
    form: Form,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients of x, first, bias, down and down_bias, those that `needs` asks for. `kept` is overwritten."""
    x_ND, dy_ND = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]).contiguous()
    passes, dropout = _setting(form, x, seed)
    if kept is None:
        kept = _linear(x_ND, first, bias, pages.empty((len(x_ND), first.shape[0]), like=x))
        if form.from_output:
            passes.dense_forward(kept, kept, dropout)
    grads: list[Tensor | None] = [None] * 5
    da_NH = torch.mm(dy_ND, down, out=pages.empty((len(x_ND), down.shape[1]), like=x))
    if form.from_output:
        a_NH, dz_NM = kept, da_NH
        passes.output_backward(a_NH, dz_NM, dropout.scale if dropout else 1.0)
    else:
        a_NH, dz_NM = da_NH, kept
        (passes.gated_backward if form.gated else passes.dense_backward)(kept, da_NH, dropout)
    if needs[3]:
        grads[3] = torch.mm(dy_ND.t(), a_NH, out=pages.empty(down.shape, like=down))
    del a_NH, da_NH  # where it isn't dz, its memory serves dx
    if needs[4]:
        grads[4] = dy_ND.sum(0)
    if needs[2]:
        grads[2] = dz_NM.sum(0)
    if needs[1]:
        grads[1] = torch.mm(dz_NM.t(), x_ND, out=pages.empty(first.shape, like=first))
    if needs[0]:
        dx = grads[0] = pages.empty(x.shape, like=x)
        torch.mm(dz_NM, first, out=dx.view(x_ND.shape))
    return grads


def _setting(form: Form, x: Tensor, seed: Tensor | None) -> tuple[Passes, Dropout | None]:
    return choose(form.sigma, x.dtype, x.device)[0], None if seed is None else Dropout(form.p, seed)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    # The bias goes into the product's fp32 sum: added to a rounded product, it would flip the sign of some small z.
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


class FeedForward(torch.autograd.Function):
    """The eager form: z is overwritten by its own gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        form: Form,
    ) -> Tensor:
        x, seed = x.contiguous(), draw(form, x)
        y, kept = forward(x, first, bias, down, down_bias, seed, form)
        ctx.save_for_backward(x, None if form.recompute else kept, first, bias, down, seed)
        ctx.form, ctx.spent = form, False
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError(
                "a second backward through the same feed-forward layer: the first one overwrote what was kept; "
                "run the forward again, or under feedfwd.ffn.plain(), which keeps more"
            )
        ctx.spent = True
        x, kept, first, bias, down, seed = ctx.saved_tensors
        return *backward(dy, x, kept, first, bias, down, seed, ctx.form, ctx.needs_input_grad[:5]), None


@torch.library.custom_op("feedfwd::feed_forward", mutates_args=())
def _compiled_forward(
    x: Tensor,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    gated: bool,
    sigma: str,
    p: float,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The form for torch.compile, which sees it as one node: y, what was kept, the seed."""
    x, form = x.contiguous(), Form(gated, sigma, p, recompute)
    seed = draw(form, x)
    y, kept = forward(x, first, bias, down, down_bias, seed, form)
    return y, x.new_empty(0) if recompute else kept, x.new_empty(0, dtype=torch.int64) if seed is None else seed


@_compiled_forward.register_fake
def _(
    x: Tensor,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    gated: bool,
    sigma: str,
    p: float,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = x.numel() // x.shape[-1]
    kept = x.new_empty(0) if recompute else x.new_empty(tokens, first.shape[0])
    return x.new_empty(*x.shape[:-1], down.shape[0]), kept, x.new_empty(() if p else 0, dtype=torch.int64)


@torch.library.custom_op("feedfwd::feed_forward_backward", mutates_args=())
def _compiled_backward(
    dy: Tensor,
    x: Tensor,
    kept: Tensor,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    seed: Tensor,
    gated: bool,
    sigma: str,
    p: float,
    recompute: bool,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients that are needed, in order. Compiled code may not see its inputs change: z is copied first."""
    form = Form(gated, sigma, p, recompute)
    held = None if recompute else pages.empty(kept.shape, like=kept).copy_(kept)
    grads = backward(dy, x.contiguous(), held, first, bias, down, seed if p else None, form, tuple(needs))
    return [grad for grad in grads if grad is not None]


@_compiled_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    kept: Tensor,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    seed: Tensor,
    gated: bool,
    sigma: str,
    p: float,
    recompute: bool,
    needs: list[bool],
) -> list[Tensor]:
    shapes = (x.shape, first.shape, first.shape[:1], down.shape, down.shape[:1])
    return [x.new_empty(shape) for shape, need in zip(shapes, needs, strict=True) if need]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, first, bias, down, _, *form = inputs
    _, kept, seed = output
    ctx.save_for_backward(x, kept, first, bias, down, seed)
    ctx.form = form


def _differentiate(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    grads = iter(_compiled_backward(dy, *ctx.saved_tensors, *ctx.form, needs))
    return *(next(grads) if need else None for need in needs), None, None, None, None


_compiled_forward.register_autograd(_differentiate, setup_context=_keep)


def apply(x: Tensor, first: Tensor, bias: Tensor | None, down: Tensor, down_bias: Tensor | None, form: Form) -> Tensor:
    if torch.compiler.is_compiling():
        y: Tensor = _compiled_forward(x, first, bias, down, down_bias, *form)[0]
        return y
    result: Tensor = FeedForward.apply(x, first, bias, down, down_bias, form)  # type: ignore[no-untyped-call]
    return result
