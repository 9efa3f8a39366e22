"""The feed-forward layer as one operation with its own backward, which keeps only what the formula needs.

    z = x W₁ᵀ + b₁ (gate and up side by side where gated),   a = dropout(σ(z)) or dropout(σ(g) ⊙ u),   y = a W₂ᵀ + b₂

Kept for the backward: x and z, or x and a where σ' follows from a, or x alone. Backward: da = dy W₂ into one buffer;
one pointwise pass reads da and z, writes a into da's buffer and dz over z; then dW₂ = dyᵀa, dW₁ = dzᵀx, dx = dz W₁.
So z is used up, and a second backward through the same graph raises.
"""

# N tokens, D model width, H hidden width, M = 2H where gated and H where dense

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.ffn.kernels import gpu, maps, native, pages
from feedfwd.ffn.kernels.formulas import FROM_OUTPUT, Dropout, Passes, TorchPasses

FEW = 64  # tokens
aten = torch.ops.aten


class Form(NamedTuple):
    """What a layer computes, tensors apart."""

    gated: bool
    sigma: str
    p: float  # dropout on the hidden activations
    recompute: bool  # keep x alone and take the first product again in the backward

    @property
    def from_output(self) -> bool:
        return not self.gated and self.sigma in FROM_OUTPUT


@functools.cache
def choose(sigma: str, dtype: torch.dtype, device: str) -> tuple[Passes, str]:
    """The pointwise passes for this precision and kind of device, and why not faster ones ("" where there are none)."""
    if device == "cuda":
        reason = gpu.why_not(sigma, dtype)
        return (TorchPasses(sigma), reason) if reason else (gpu.TritonPasses(sigma), "")
    if device == "cpu":
        compiled, reason = native.passes(sigma, dtype)
        return compiled or TorchPasses(sigma), reason
    return TorchPasses(sigma), f"no faster ones are written for {device}"


def forward(
    x: Tensor,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    dropout: Dropout | None,
    form: Form,
) -> tuple[Tensor, Tensor]:
    """y (..., D), and what the backward needs besides x: z (N, M), or a where σ' follows from it."""
    passes = choose(form.sigma, x.dtype, x.device.type)[0]
    x_ND = _rows(x)
    if bends(x_ND, first, down, form):
        z_NM, a_NH = (pages.empty((len(x_ND), width), like=x) for width in (first.shape[0], down.shape[1]))
        maps.bent(x_ND, first, bias, z_NM, a_NH, form.sigma)
    elif form.gated:
        z_NM = _linear(x_ND, first, bias)
        a_NH = pages.empty((z_NM.shape[0], down.shape[1]), like=x)
        passes.gated_forward(z_NM, a_NH, dropout)
    else:
        z_NM = _linear(x_ND, first, bias)
        a_NH = z_NM if form.from_output else pages.empty(z_NM.shape, like=x)
        passes.dense_forward(z_NM, a_NH, dropout)
    return _linear(a_NH, down, down_bias, (*x.shape[:-1], down.shape[0])), z_NM


def backward(
    dy: Tensor,
    x: Tensor,
    kept: Tensor | None,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    dropout: Dropout | None,
    form: Form,
    needs: Sequence[bool],
    dtype: torch.dtype,
) -> list[Tensor | None]:
    """The gradients of x, first, bias, down and down_bias, those that `needs` asks for, all but x's in `dtype`.

    `kept` is overwritten.
    """
    passes = choose(form.sigma, x.dtype, x.device.type)[0]
    x_ND, dy_ND = _rows(x), _rows(dy).contiguous()
    if kept is None:
        kept = _linear(x_ND, first, bias)
        if form.from_output:
            passes.dense_forward(kept, kept, dropout)
    grads: list[Tensor | None] = [None] * 5
    if bends(dy_ND, down, down, form):
        a_NH, dz_NM = pages.empty((len(dy_ND), down.shape[1]), like=x), kept
        maps.bent_back(dy_ND, down, kept, a_NH, form.sigma)
    elif form.from_output:
        a_NH, dz_NM = kept, _product(dy_ND, down)
        passes.output_backward(a_NH, dz_NM, dropout.scale if dropout else 1.0)
    else:
        a_NH, dz_NM = _product(dy_ND, down), kept  # of which the first is da until the pass has read it
        (passes.gated_backward if form.gated else passes.dense_backward)(kept, a_NH, dropout)
    # Of few tokens, writing the weights' gradients is most of the work: memory that malloc has just got back from
    # anyone is likelier still in the cache than pages of our own.
    least = pages.LEAST if x_ND.shape[0] >= FEW else pages.HEAP
    if needs[3]:
        grads[3], grads[4] = _map_gradients(dy_ND, a_NH, dtype, least, needs[4])
    elif needs[4]:
        grads[4] = dy_ND.sum(0).to(dtype)
    del a_NH
    if needs[1]:
        grads[1], grads[2] = _map_gradients(dz_NM, x_ND, dtype, least, needs[2])
    elif needs[2]:
        grads[2] = dz_NM.sum(0).to(dtype)
    if needs[0]:
        grads[0] = _product(dz_NM, first, x.shape, slack=4)  # in da's memory where that is idle: the peak is here
    return grads


def bends(x: Tensor, weight: Tensor, down: Tensor, form: Form) -> bool:
    """Whether the product of x (N, ·), or of dy, with this weight bends what it adds up itself (see `maps`)."""
    plain = not form.p and not form.from_output and weight.dtype != x.dtype
    return plain and maps.bends(x, weight, down.shape[1], form.sigma)


def _rows(x: Tensor) -> Tensor:  # (..., D) -> (N, D)
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Sequence[int] = ()) -> Tensor:
    """x weightᵀ + bias. The bias goes into the fp32 sum: added to a rounded product it would flip small z's sign."""
    out = pages.warm(shape or (x.shape[0], weight.shape[0]), like=x)
    if weight.dtype != x.dtype:  # see `maps`
        out = x.new_empty(shape or (x.shape[0], weight.shape[0])) if out is None else out
        maps.linear(x, [weight], [bias], _rows(out))
        return out
    if out is None:
        return _shaped(F.linear(x, weight, bias), shape)
    if bias is None:
        torch.mm(x, weight.t(), out=_rows(out))
    else:
        torch.addmm(bias, x, weight.t(), out=_rows(out))
    return out


def _product(a: Tensor, b: Tensor, shape: Sequence[int] = (), least: int = pages.LEAST, slack: float = 0.25) -> Tensor:
    out = pages.warm(shape or (a.shape[0], b.shape[1]), a, least, slack)
    if b.dtype != a.dtype:  # see `maps`
        out = a.new_empty(shape or (a.shape[0], b.shape[1])) if out is None else out
        maps.linear(a, [b.t()], [None], _rows(out))
        return out
    if out is None:
        return _shaped(torch.mm(a, b), shape)
    torch.mm(a, b, out=_rows(out))
    return out


def _map_gradients(
    dy: Tensor, x: Tensor, dtype: torch.dtype, least: int, biased: bool
) -> tuple[Tensor, Tensor | None]:  # (N, A), (N, B) -> (A, B), (A,)
    """The gradients of a map's weight and bias."""
    if dtype != torch.float32 or maps.lacks(dy, x):
        return _product(dy.t(), x, least=least).to(dtype), dy.sum(0).to(dtype) if biased else None
    shape, like = (dy.shape[1], x.shape[1]), torch.empty(0, dtype=dtype)
    out = pages.warm(shape, like, least)
    sums = like.new_empty(shape[0]) if biased else None
    return maps.outer(dy, x, like.new_empty(shape) if out is None else out, sums=sums), sums


def _shaped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x in this shape, and no view: into a view made in here, autograd would let nobody write."""
    return x if not shape or x.shape == shape else aten._unsafe_view(x, shape)


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
        x, ctx.dtype = x.contiguous(), first.dtype
        if first.dtype != x.dtype:  # see `maps`
            first, bias = maps.taken(_rows(x), first, bias)
            down, down_bias = maps.taken(_rows(x), down, down_bias)
        dropout = Dropout.draw(form.p, x) if form.p else None
        y, kept = forward(x, first, bias, down, down_bias, dropout, form)
        seed = dropout.seed if dropout else None
        ctx.save_for_backward(x, None if form.recompute else kept, first, bias, down, seed)
        ctx.form, ctx.spent = form, False
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError(
                "a second backward through the same feed-forward layer: the first overwrote what was kept; "
                "run the forward again, or under feedfwd.ffn.plain()"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True through a feed-forward layer's kernels, which have no second derivative; "
                "run the forward under feedfwd.ffn.plain()"
            )
        ctx.spent = True
        x, kept, first, bias, down, seed = ctx.saved_tensors
        form = ctx.form
        dropout = Dropout(form.p, seed) if form.p else None
        return *backward(dy, x, kept, first, bias, down, dropout, form, ctx.needs_input_grad[:5], ctx.dtype), None


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
    dropout = Dropout.draw(p, x) if p else None
    y, kept = forward(x, first, bias, down, down_bias, dropout, form)
    return y, x.new_empty(0) if recompute else kept, dropout.seed if dropout else x.new_empty(0, dtype=torch.int64)


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


@torch.library.custom_op("feedfwd::feed_forward_backward", mutates_args=("kept",))
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients, empty where not needed. Compiled code is told that `kept` changes, and copies it where it must."""
    form = Form(gated, sigma, p, recompute)
    held, dropout = None if recompute else kept, Dropout(p, seed) if p else None
    grads = backward(dy, x.contiguous(), held, first, bias, down, dropout, form, needs, x.dtype)
    dx, dfirst, dbias, ddown, ddown_bias = (x.new_empty(0) if grad is None else grad for grad in grads)
    return dx, dfirst, dbias, ddown, ddown_bias


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = (x.shape, first.shape, first.shape[:1], down.shape, down.shape[:1])
    dx, dfirst, dbias, ddown, ddown_bias = (
        x.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True)
    )
    return dx, dfirst, dbias, ddown, ddown_bias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, first, bias, down, _, *form = inputs
    _, kept, seed = output
    ctx.save_for_backward(x, kept, first, bias, down, seed)
    ctx.form = form


def _differentiate(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    grads = _compiled_backward(dy, *ctx.saved_tensors, *ctx.form, needs)
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None, None


_compiled_forward.register_autograd(_differentiate, setup_context=_keep)


def apply(x: Tensor, first: Tensor, bias: Tensor | None, down: Tensor, down_bias: Tensor | None, form: Form) -> Tensor:
    if torch.compiler.is_compiling():
        y: Tensor = _compiled_forward(x, first, bias, down, down_bias, *form)[0]
        return y
    result: Tensor = FeedForward.apply(x, first, bias, down, down_bias, form)  # type: ignore[no-untyped-call]
    return result
