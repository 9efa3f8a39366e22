"""A block of the Transformer: attention, then a feed-forward layer, each with its norm."""

# B rows, T tokens, W width, H query heads, K key and value heads, D head width

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from feedfwd.ffn.parts import Linear
from feedfwd.ffn.products import applied, mapped
from feedfwd.models import attention_native
from feedfwd.models.attention import Path, Sight, attend, explain
from feedfwd.models.dropout import dropout as branch_dropout
from feedfwd.models.norms import RMSNorm, added, of_sum
from feedfwd.models.positions import rotate

Turn = tuple[Tensor, Tensor] | None  # cosines and sines of the positions, (T, D/2) each


class Attention(nn.Module):
    """out(softmax(q kᵀ / √D) v) with grouped queries (Ainslie et al. 2023, arXiv 2305.13245).

    `bias` says which maps have one: "none", "qkv" or "all". `qk_norm` normalises every query and key head by RMSNorm
    before it is turned (Henry et al. 2020, arXiv 2010.04245).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        *,
        bias: str,
        qk_norm: bool,
        eps: float,
        depth: int,
        generator: Generator | None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        qkv = bias != "none"
        self.q = Linear(width, heads * head_width, qkv, generator=generator)
        self.k = Linear(width, kv_heads * head_width, qkv, generator=generator)
        self.v = Linear(width, kv_heads * head_width, qkv, generator=generator)
        self.q_norm: nn.Module = RMSNorm(head_width, eps) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(head_width, eps) if qk_norm else nn.Identity()
        self.out = Linear(
            heads * head_width, width, bias == "all", init="depth_scaled", depth=depth, generator=generator
        )

    def forward(self, x: Tensor, turn: Turn, sight: Sight) -> Tensor:  # (B, T, W) -> (B, T, W)
        parts = self.products(x)
        if attention_native.lacks(parts):
            return self.joined(attend(*self._turned(parts, turn), sight))
        return applied(self.out, attention_native.attend_at_once(parts, self.heads, self.kv_heads, turn, sight))

    def explain(self, x: Tensor) -> Path:
        """Which way such an input (B, T, W) takes through the heads, and why."""
        parts = self.products(x)
        lacking = attention_native.lacks(parts)
        if lacking is None:
            return Path("compiled C", "a head at a time, from its products to its result")
        name, reason = explain(self._turned(parts, None)[0])
        return Path(name, f"{reason}; not in C: {lacking}")

    def turned(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:  # (B, T, W) -> (B, H or K, T, D)
        """Queries, keys and values as the attention takes them."""
        return self._turned(self.products(x), turn)

    def _turned(self, parts: Sequence[Tensor], turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        if len(parts) == 1:
            parts = torch.split(parts[0], [self.heads, self.kv_heads, self.kv_heads], 2)
        q, k, v = parts
        if turn is None:
            return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return rotate(q, *turn), rotate(k, *turn), v.transpose(1, 2)

    def joined(self, y: Tensor) -> Tensor:  # (B, H, T, D) -> (B, T, W)
        """What the heads found, as the residual stream takes it."""
        return applied(self.out, y.transpose(1, 2).flatten(2))

    def products(self, x: Tensor) -> Sequence[Tensor]:  # (B, T, W) -> (B, T, H + 2K, D), or H, K and K heads apart
        """Queries, keys and values, from one product where that can be, and together where nothing parts them."""
        maps, shape = (self.q, self.k, self.v), (*x.shape[:2], -1, self.head_width)
        if any(type(m) is not Linear for m in maps):
            q, k, v = (m(x).view(shape) for m in maps)
        else:
            joint = mapped(x, [m.weight for m in maps], [m.bias for m in maps]).view(shape)
            if isinstance(self.q_norm, nn.Identity):
                return (joint,)
            q, k, v = torch.split(joint, [self.heads, self.kv_heads, self.kv_heads], 2)
        return self.q_norm(q), self.k_norm(k), v

    def packed_map(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the three maps as one; None where one was replaced, by an adapted one for instance."""
        maps = (self.q, self.k, self.v)
        if any(type(m) is not Linear for m in maps):
            return None
        bias = None if self.q.bias is None else torch.cat([m.bias for m in maps])
        return torch.cat([m.weight for m in maps]), bias


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); with post=True the norm comes after each sum instead.

    A sum and its norm are one sweep over memory where that can be (see `norms`).
    """

    def __init__(
        self, attention: Attention, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], post: bool, own: bool, p: float
    ):
        super().__init__()
        self.attention_norm, self.ffn_norm = norms
        self.attention, self.ffn = attention, ffn
        self.dropout = branch_dropout(p)
        self.post, self.own = post, own

    def forward(self, x: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:  # (B, T, W) -> (B, T, W)
        """`attention` is this block's, told what to look at."""
        if self.post:
            x, low = of_sum(self.attention_norm, x, self.dropout(attention(x)))
            return of_sum(self.ffn_norm, x, self.dropout(self.ffn(x if self.own else low)))[0]
        x, normed = added(self.ffn_norm, x, self.dropout(attention(self.attention_norm(x))))
        return x + self.dropout(self.ffn(normed))
