"""Attention: softmax(q kᵀ / √D) v for each head, over the keys that a query may see.

`formula` is the plain twin. `blocks` is for CPUs, where torch's own attention spends five times the time of its
products: it takes 128 queries at a time, skips the keys that none of them sees, and multiplies in the model's
precision. On other devices torch's `scaled_dot_product_attention` serves. `attend` chooses, `explain` says which and
why.
"""

# B rows, H query heads, K key and value heads, T tokens, D head width

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.ffn.kernels import pages

QUERIES = 128  # of a block: fewer skip more masked products, more make better ones
CACHED = 2**20  # scores that are worked on at a time, so that they stay in the processor's cache
KEEP_UP_TO = 1024  # tokens a row: beyond, the probabilities are taken again in the backward instead of being kept


@dataclass(frozen=True)
class Sight:
    """Which keys a query sees: all, or those up to itself, in a window, in its own document.

    `window` counts the query itself and what lies before it (to both sides where not causal). `documents` (B, T)
    numbers the documents; the numbers must differ where the documents do.

    >>> Sight(window=2).matrix(3)[0, 0].int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """

    causal: bool = True
    window: int | None = None
    documents: Tensor | None = None

    def matrix(self, tokens: int, device: torch.device | str = "cpu") -> Tensor:
        """(B or 1, 1, T, T): True where the query of this row sees the key of this column."""
        distance = torch.arange(tokens, device=device)[:, None] - torch.arange(tokens, device=device)
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window is not None:
            seen = seen & (distance.abs() < self.window)
        seen = seen[None, None]
        if self.documents is not None:
            seen = seen & (self.documents[:, None, :, None] == self.documents[:, None, None, :])
        return seen


def documents_of(ids_BT: Tensor, end: int) -> Tensor:
    """(B, T): the number of each token's document, where token `end` closes one and is an input of the next.

    What is predicted from the end token is the first word of a new document, so it counts there: with the old one,
    that word would be predicted with the old document in view.

    >>> documents_of(torch.tensor([[5, 0, 7, 8, 0, 9]]), end=0)
    tensor([[0, 1, 1, 1, 2, 2]])
    """
    return (ids_BT == end).cumsum(1)


def formula(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """q (B, H, T, D), k and v (B, K, T, D) -> (B, H, T, D). H is a multiple of K: query head h has key head h·K/H."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~sight.matrix(q.shape[2], q.device), -math.inf).softmax(-1) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """What `formula` gives, by the fastest way there is here."""
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if explain(q).name == "blocks":
        return blocks(q, k, v, sight)
    return by_torch(q, k, v, sight)


class Path(NamedTuple):
    """Which attention runs, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def explain(q: Tensor) -> Path:
    """The path for queries like these (B, H, T, D).

    >>> print(explain(torch.zeros(1, 2, 2048, 64)))
    blocks: 128 queries at a time; probabilities are taken again in the backward, the rows being longer than 1024
    """
    if q.device.type != "cpu":
        return Path("torch", f"scaled_dot_product_attention has kernels for {q.device.type}")
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return Path("torch", "the model is being exported")
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return Path("torch", "torch.func transforms need each operation's own derivative")
    kept = f"kept, the rows being no longer than {KEEP_UP_TO}"
    if q.shape[2] > KEEP_UP_TO:
        kept = f"taken again in the backward, the rows being longer than {KEEP_UP_TO}"
    return Path("blocks", f"{QUERIES} queries at a time; probabilities are {kept}")


def by_torch(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """By torch's own attention."""
    tokens = q.shape[2]
    plainly = sight.documents is None and (sight.window is None or sight.window >= tokens)
    mask = None if plainly else sight.matrix(tokens, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=sight.causal and plainly, enable_gqa=q.shape[1] != k.shape[1]
    )


def blocks(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """By blocks of queries; keeps q, k, v and the blocks of probabilities, or q, k and v alone."""
    times = q.shape[1] // k.shape[1]
    if times > 1:
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    q = q * (1 / math.sqrt(q.shape[-1]))
    graded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    keep = graded and q.shape[2] <= KEEP_UP_TO
    y: Tensor = _forward(q, k, v, sight.documents, sight.causal, sight.window or 0, keep)[0]
    return y


class Block(NamedTuple):
    """Queries start … stop, of which none sees a key outside low … high."""

    start: int
    stop: int
    low: int
    high: int

    @property
    def size(self) -> int:
        return (self.stop - self.start) * (self.high - self.low)


def plan(tokens: int, causal: bool, window: int) -> list[Block]:
    """The blocks of a row; window=0 means none.

    >>> [tuple(block) for block in plan(300, causal=True, window=100)]
    [(0, 128, 0, 128), (128, 256, 29, 256), (256, 300, 157, 300)]
    """
    found = []
    for start in range(0, tokens, QUERIES):
        stop = min(start + QUERIES, tokens)
        low = max(0, start - window + 1) if window else 0
        high = stop if causal else min(tokens, stop + window - 1) if window else tokens
        found.append(Block(start, stop, low, high))
    return found


class Part(NamedTuple):
    """A block of some rows: their `heads` among all B·H, what hides keys (0 or -∞), its place in `kept`."""

    block: Block
    heads: slice
    hidden: Tensor | None  # for the last of the keys; broadcasts over (rows, H, queries, keys)
    place: slice


def _parts(q: Tensor, documents: Tensor | None, causal: bool, window: int) -> Iterator[Part]:
    """All parts in the order in which they are worked on; the last queries of a row come first."""
    B, H, T, _ = q.shape
    found = plan(T, causal, window)
    many = max(1, CACHED // (H * max(block.size for block in found)))
    sight = Sight(causal, window or None)
    hidden = {block: _hidden(sight, block, q) for block in found}
    at = 0
    for row in range(0, B, many):
        rows = slice(row, min(row + many, B))
        for block in reversed(found):
            hides = hidden[block]
            if documents is not None:
                of_query, of_key = documents[rows, block.start : block.stop], documents[rows, block.low : block.high]
                other = of_query[:, None, :, None] != of_key[:, None, None, :]
                apart = torch.zeros(other.shape, dtype=q.dtype).masked_fill_(other, -math.inf)
                if hides is not None:
                    apart[..., -hides.shape[-1] :].add_(hides)
                hides = apart
            size = (rows.stop - rows.start) * H * block.size
            yield Part(block, slice(rows.start * H, rows.stop * H), hides, slice(at, at + size))
            at += size


def _hidden(sight: Sight, block: Block, like: Tensor) -> Tensor | None:
    """0 and -∞ for a block, or for the last of its keys where only these may be hidden; None where none is."""
    low = block.start if sight.causal and sight.window is None else block.low
    distance = torch.arange(block.start, block.stop)[:, None] - torch.arange(low, block.high)
    unseen = distance < 0 if sight.causal else torch.zeros_like(distance, dtype=torch.bool)
    if sight.window is not None:
        unseen |= distance.abs() >= sight.window
    return torch.zeros(unseen.shape, dtype=like.dtype).masked_fill_(unseen, -math.inf) if unseen.any() else None


def _probabilities(part: Part, q: Tensor, k: Tensor, heads: int, out: Tensor) -> Tensor:
    """(N, queries, keys), written to `out`; q and k are (B·H, T, D), q already divided by √D."""
    block, at = part.block, part.heads
    p = out.view(at.stop - at.start, block.stop - block.start, block.high - block.low)
    torch.bmm(q[at, block.start : block.stop], k[at, block.low : block.high].mT, out=p)
    if part.hidden is not None:
        p.view(-1, heads, *p.shape[1:])[..., -part.hidden.shape[-1] :].add_(part.hidden)
    return torch.softmax(p, -1, out=p)


@torch.library.custom_op("feedfwd::attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, causal: bool, window: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """The result and the probabilities of all blocks, one after the other, or nothing where they aren't kept."""
    (B, H, T, D), blocks_of = q.shape, plan(q.shape[2], causal, window)
    size = B * H * sum(block.size for block in blocks_of)
    kept = pages.empty((size,), like=q) if keep else q.new_empty(0)
    y = pages.empty((B, H, T, D), like=q)
    q_, k_, v_, y_ = (x.reshape(B * H, T, D) for x in (q, k, v, y))
    for part in _parts(q, documents, causal, window):
        block, at = part.block, part.heads
        place = kept[part.place] if keep else q.new_empty(part.place.stop - part.place.start)
        p = _probabilities(part, q_, k_, H, place)
        y_[at, block.start : block.stop] = torch.bmm(p, v_[at, block.low : block.high])
    return y, kept


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, causal: bool, window: int, keep: bool
) -> tuple[Tensor, Tensor]:
    B, H, T, _ = q.shape
    size = B * H * sum(block.size for block in plan(T, causal, window)) if keep else 0
    return q.new_empty(q.shape), q.new_empty(size)


@torch.library.custom_op("feedfwd::attention_backward", mutates_args=())
def _backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, documents: Tensor | None, causal: bool, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """∂q, ∂k, ∂v from dP = ∂y vᵀ and dS = P ⊙ (dP - rowsum(P ⊙ dP)); Dao et al. 2022, arXiv 2205.14135, B.2."""
    B, H, T, D = q.shape
    q_, k_, v_, dy_ = (x.reshape(B * H, T, D) for x in (q, k, v, dy))
    dq, dk, dv = (pages.empty((B, H, T, D), like=q) for _ in range(3))
    dq_, dk_, dv_ = (x.view(B * H, T, D) for x in (dq, dk, dv))
    for part in _parts(q, documents, causal, window):
        block, at = part.block, part.heads
        queries, keys = slice(block.start, block.stop), slice(block.low, block.high)
        if len(kept):
            p = kept[part.place].view(at.stop - at.start, block.stop - block.start, block.high - block.low)
        else:
            p = _probabilities(part, q_, k_, H, q.new_empty(part.place.stop - part.place.start))
        dp = torch.bmm(dy_[at, queries], v_[at, keys].mT)
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        dq_[at, queries] = torch.bmm(ds, k_[at, keys])
        for total, probabilities, x in ((dk_, ds, q_), (dv_, p, dy_)):
            if block.stop == T:  # the first block worked on writes, the others add
                total[at, : block.low] = 0
                torch.bmm(probabilities.mT, x[at, queries], out=total[at, keys])
            else:
                total[at, keys].baddbmm_(probabilities.mT, x[at, queries])
    return dq, dk, dv


@_backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, documents: Tensor | None, causal: bool, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, documents, ctx.causal, ctx.window, _ = inputs
    ctx.save_for_backward(q, k, v, output[1], documents)


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, kept, documents = ctx.saved_tensors
    return *_backward(dy, q, k, v, kept, documents, ctx.causal, ctx.window), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
