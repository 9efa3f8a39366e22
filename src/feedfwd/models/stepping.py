"""A block as it reads one token of each text: bare tensors and few operations.

With one token a product is nothing but walking through a matrix, and at the size of a small model the operations
around it cost as much again. So matrices are laid out column by column, in which direction the walk is nearly twice as
fast; what follows an RMSNorm takes over its gain; sums ride on products; and a pair of numbers that turns together
stands side by side, so that one complex product turns queries and keys. What isn't a plain map (an adapted one, a layer
of one's own) is called as it is.
"""

# B texts, T tokens read so far, W width, H query heads, K key and value heads, D head width

import ctypes
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedfwd.ffn.dense import DenseFFN
from feedfwd.ffn.gated import GatedFFN
from feedfwd.ffn.kernels import pages
from feedfwd.ffn.kernels.compiler import library
from feedfwd.ffn.parts import Linear
from feedfwd.models.block import Block
from feedfwd.models.norms import RMSNorm
from feedfwd.models.transformer import Transformer

LARGE = 2**31  # bytes of a model whose matrices aren't copied to be laid out
ALONE = 2**15  # weights: below, waking a second thread costs more than it saves

Through = Callable[[Tensor], Tensor]  # (B, …) -> (B, …)
Onto = Callable[[Tensor, Tensor], Tensor]  # x (B, W), h -> x + what h becomes


class Moment(NamedTuple):
    """Where the texts stand: what the token at column `at` sees, and how it turns."""

    at: int
    low: int  # no text sees a column before
    unseen: Tensor | None  # (B·K, 1, columns from low): hidden from this text only
    turn: Tensor | None  # (B, H + 2K, D/2), complex; 1 for the values


def is_small(model: nn.Module) -> bool:
    """Whether a model's matrices may be copied."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) <= LARGE


def laid_out(weight: Tensor, gain: Tensor | None = None) -> Tensor:
    """Wᵀ (inputs, outputs), contiguous, with the gain of each input multiplied in."""
    columns = pages.empty((weight.shape[1], weight.shape[0]), like=weight)
    if gain is None:
        return columns.copy_(weight.t())
    return torch.mul(weight.t(), gain.unsqueeze(1), out=columns)


def product(x: Tensor, columns: Tensor, base: Tensor | None = None) -> Tensor:
    """base + x W for x (B, inputs), W (inputs, outputs) as `laid_out` gives it, base (outputs) or (B, outputs).

    For one text in fp32 on a CPU `stepping.c` walks through the matrix, in half the time of torch's product; without a
    compiler torch does.
    """
    if len(x) == 1 and x.dtype == columns.dtype == torch.float32 and x.device.type == "cpu" and _compiled() is not None:
        y = torch.empty(1, columns.shape[1])
        x, base = x.contiguous(), None if base is None else base.contiguous()
        pointers = x.data_ptr(), columns.data_ptr(), None if base is None else base.data_ptr(), y.data_ptr()
        _compiled()(*pointers, *columns.shape, torch.get_num_threads() if columns.numel() >= ALONE else 1)
        return y
    return torch.mm(x, columns) if base is None else torch.addmm(base, x, columns)


@functools.cache
def _compiled() -> Any:
    """`product` of stepping.c, or None."""
    found, _ = library(Path(__file__).with_name("stepping.c"))
    if found is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_long
    found.product.argtypes = (pointer, pointer, pointer, pointer, size, size, ctypes.c_int)
    found.product.restype = None
    return found.product


def mapped(weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> Through:
    """x -> (x ⊙ gain) Wᵀ + b."""
    columns = laid_out(weight, gain)
    return lambda x: product(x, columns, bias)


def added(layer: nn.Module, small: bool) -> Onto:
    """x, h -> x + layer(h)."""
    if not (small and type(layer) is Linear):
        return lambda x, h: x + layer(h)
    columns, bias = laid_out(layer.weight), layer.bias
    if bias is None:
        return lambda x, h: product(h, columns, x)
    return lambda x, h: product(h, columns, x).add_(bias)


def normed(norm: nn.Module, small: bool) -> tuple[Through, Tensor | None]:
    """The norm, and the gain left to the map that follows: x / √(|x|² + Wε) with √W g instead of x / √(mean x² + ε)."""
    if small and isinstance(norm, RMSNorm) and norm.weight.dtype in (torch.float32, torch.float64):
        assert norm.eps is not None
        least = torch.tensor(math.sqrt(norm.width * norm.eps)).to(norm.weight)
        length = torch.linalg.vector_norm
        return lambda x: x / torch.hypot(length(x, dim=-1, keepdim=True), least), norm.weight * math.sqrt(norm.width)
    return norm, None


def after(norm: nn.Module, weight: Tensor, bias: Tensor | None, small: bool) -> Through:
    """x -> norm(x) Wᵀ + b."""
    through, gain = normed(norm, small)
    if not small:
        return lambda x: F.linear(through(x), weight, bias)
    then = mapped(weight, bias, gain)
    return lambda x: then(through(x))


class AttentionStep:
    """x + attention(norm(x)), or norm(x + attention(x)), of one token, with the keys and values of those before it."""

    def __init__(self, model: Transformer, block: Block, small: bool) -> None:
        part = block.attention
        self.heads, self.kv_heads, self.width = part.heads, part.kv_heads, part.head_width
        self.order, self.qk_norm = None, None
        rows = torch.arange(part.head_width)
        if model.positions == "rope":  # the two halves of a head, interleaved
            rows = self.order = rows.view(2, -1).t().flatten()
        if isinstance(part.q_norm, RMSNorm) and isinstance(part.k_norm, RMSNorm):
            gains = [
                part.q_norm.weight[rows].expand(part.heads, -1),
                part.k_norm.weight[rows].expand(part.kv_heads, -1),
            ]
            self.qk_norm = normed(part.q_norm, True)[0], torch.cat(gains) * math.sqrt(part.head_width)
        self.qkv = self._first(block, small)
        self.out = added(part.out, small)
        self.norm = block.attention_norm if block.post else None

    def _first(self, block: Block, small: bool) -> Through:
        """x -> queries, keys and values, (B, (H + 2K) D), the turning pairs of the first two side by side."""
        part = block.attention
        norm = nn.Identity() if block.post else block.attention_norm
        packed = part.packed_map()
        whole = torch.arange((self.heads + 2 * self.kv_heads) * self.width).view(-1, self.width)
        if self.order is not None:
            whole[: -self.kv_heads] = whole[: -self.kv_heads, self.order]
        rows = whole.flatten().to(next(part.parameters()).device)
        if packed is None:
            return lambda x: torch.cat([m(norm(x)) for m in (part.q, part.k, part.v)], -1)[:, rows]
        weight, bias = packed
        return after(norm, weight[rows], None if bias is None else bias[rows], small)

    def start(self, k: Tensor, v: Tensor, capacity: int) -> None:
        """Remember the keys and values (B, K, T, D) of what was read at once, with room for `capacity` tokens."""
        B, K, T, D = k.shape
        self.memory = k.new_empty(2, B, K, capacity, D)
        self.memory[0, :, :, :T] = k if self.order is None else k[..., self.order]
        self.memory[1, :, :, :T] = v
        self.keys, self.values = self.memory.view(2, B * K, capacity, D)

    def __call__(self, x: Tensor, now: Moment) -> Tensor:  # (B, W) -> (B, W)
        B, H, K, D = len(x), self.heads, self.kv_heads, self.width
        qkv = self.qkv(x).view(B, H + 2 * K, D)
        if self.qk_norm is not None:
            norm, gains = self.qk_norm
            qkv = torch.cat((norm(qkv[:, : H + K]) * gains, qkv[:, H + K :]), 1)
        if now.turn is not None:
            wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))  # there are no complex numbers of 16 bits
            pairs = torch.view_as_complex(wide.view(B, H + 2 * K, D // 2, 2)) * now.turn
            qkv = torch.view_as_real(pairs).view(B, H + 2 * K, D).to(qkv.dtype)
        self.memory.select(3, now.at).copy_(qkv[:, H:].view(B, 2, K, D).transpose(0, 1))
        keys, values = (m.narrow(1, now.low, now.at + 1 - now.low) for m in (self.keys, self.values))
        # The queries that share a key head stand as its rows, each seeing all keys.
        scores = torch.bmm(qkv[:, :H].reshape(B * K, -1, D), keys.mT).mul_(D**-0.5)
        if now.unseen is not None:
            scores.masked_fill_(now.unseen, -math.inf)
        x = self.out(x, torch.bmm(scores.softmax(-1), values).view(B, H * D))
        return x if self.norm is None else self.norm(x)


def ffn_step(block: Block, small: bool) -> Through:
    """x + ffn(norm(x)), or norm(x + ffn(x)), of one token: (B, W) -> (B, W)."""
    ffn, norm = block.ffn, nn.Identity() if block.post else block.ffn_norm
    last: Through = block.ffn_norm if block.post else nn.Identity()
    if type(ffn) not in (GatedFFN, DenseFFN) or type(ffn.norm) is not nn.Identity or _watched(ffn):
        return lambda x: last(x + ffn(norm(x).unsqueeze(1)).squeeze(1))
    assert isinstance(ffn, GatedFFN | DenseFFN)
    onto, sigma = added(ffn.down, small), ffn.activation
    if isinstance(ffn, GatedFFN):
        gate_up = after(norm, ffn.gate_up, ffn.gate_up_bias, small)

        def gated(x: Tensor) -> Tensor:
            gate, up = gate_up(x).chunk(2, dim=-1)
            return onto(x, sigma(gate) * up)

        return (lambda x: last(gated(x))) if block.post else gated
    if type(ffn.up) is not Linear:
        return lambda x: last(onto(x, sigma(ffn.up(norm(x)))))
    up = after(norm, ffn.up.weight, ffn.up.bias, small)
    return lambda x: last(onto(x, sigma(up(x))))


def _watched(layer: nn.Module) -> bool:
    """Whether something looks on or was put in place of a parameter: then the module itself must be called."""
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    return hooks or not isinstance(getattr(layer, "gate_up", nn.Parameter()), nn.Parameter)
