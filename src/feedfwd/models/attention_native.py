"""Attention on a CPU in C, from the products that give queries, keys and values to the heads' results.

Rotary positions, scores, softmax and products of a head follow one another while all is in the processor's cache; for
the backward only each query's log-sum is kept beside the input and the result. `attention.c` is compiled at first use
(see `ffn.kernels.compiler`); `plain` is its twin.
"""

# B rows, H query heads, K key and value heads, T tokens, D head width

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from feedfwd.ffn.kernels import pages, plan
from feedfwd.ffn.kernels.native import multiplying
from feedfwd.models.attention import Sight, formula
from feedfwd.models.positions import rotate_plain

Turn = tuple[Tensor, Tensor] | None  # cosines and sines of the positions, (T, D/2) each
ALONE = 1 << 18  # multiply-adds: below, waking a second thread costs more than it saves


def plain(parts: Sequence[Tensor], heads: int, kv_heads: int, turn: Turn, sight: Sight) -> Tensor:
    """-> (B, T, H·D), as it is written. `parts`: q (B, T, H, D), k and v (B, T, K, D), or one (B, T, H + 2K, D)."""
    q, k, v = _split(parts, heads, kv_heads)
    q, k = (x.transpose(1, 2) if turn is None else rotate_plain(x, *turn) for x in (q, k))
    return formula(q, k, v.transpose(1, 2), sight).transpose(1, 2).flatten(2)


def attend_at_once(parts: Sequence[Tensor], heads: int, kv_heads: int, turn: Turn, sight: Sight) -> Tensor:
    """What `plain` gives, where `lacks` says nothing."""
    cos, sin = turn or (None, None)
    sees = sight.documents, sight.causal, sight.window or 0
    y: Tensor = Attended.apply(heads, kv_heads, cos, sin, *sees, *parts)  # type: ignore[no-untyped-call]
    return y


def lacks(parts: Sequence[Tensor]) -> str | None:
    """Why the compiled attention can't serve for products like these (see `plain`); None where it does.

    >>> lacks([torch.zeros(1, 4, 3, 8, dtype=torch.float64)])
    'float64 is not written in C'
    """
    x, *others = parts
    if not plan.enabled():
        return plan.OFF
    if x.device.type != "cpu":
        return f"attention in C is for CPUs, not {x.device.type}"
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return "the model is being compiled or exported"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need each operation's own derivative"
    if any(other.dtype != x.dtype for other in others):
        return "queries, keys and values differ in precision"
    if x.shape[-1] % 2:
        return f"head width {x.shape[-1]} is odd"
    return _compiled(x.dtype)[1] or None


def _split(parts: Sequence[Tensor], heads: int, kv_heads: int) -> Sequence[Tensor]:
    return parts if len(parts) == 3 else parts[0].split([heads, kv_heads, kv_heads], 2)  # type: ignore[no-untyped-call]


class Task(ctypes.Structure):
    """`task` of attention.c."""

    _fields_ = (
        ("from", ctypes.c_void_p * 3),
        ("stride", ctypes.c_long * 3),
        ("to", ctypes.c_void_p * 3),
        ("to_stride", ctypes.c_long * 3),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "documents")),
        *((name, ctypes.c_long) for name in ("rows", "tokens", "heads", "kv_heads", "width", "window")),
        ("causal", ctypes.c_int),
        ("threads", ctypes.c_int),
    )


@functools.cache
def _compiled(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    found, reason = multiplying(Path(__file__).with_name("attention.c"), dtype)
    if found is not None:
        found.forward.argtypes = (ctypes.c_void_p,) * 3
        found.backward.argtypes = (ctypes.c_void_p,) * 4
    return found, reason


def _run(name: str, qkv: Sequence[Tensor], to: Sequence[Tensor], sees: Sequence[Any], *more: Tensor) -> None:
    q, k, _ = qkv
    cos, sin, documents, causal, window = sees
    (B, T, H, D), K = q.shape, k.shape[2]
    threads = torch.get_num_threads() if B * H * T * T * D >= ALONE else 1
    none = (None, None, None)
    found, _ = _compiled(q.dtype)
    assert found is not None
    task = Task(
        (ctypes.c_void_p * 3)(*(x.data_ptr() for x in qkv)),
        (ctypes.c_long * 3)(*(x.stride(1) for x in qkv)),
        (ctypes.c_void_p * 3)(*([x.data_ptr() for x in to] or none)),
        (ctypes.c_long * 3)(*(x.stride(1) for x in to)),
        *(None if x is None else x.data_ptr() for x in (cos, sin, documents)),
        B, T, H, K, D, window, causal, threads,
    )  # fmt: skip
    if getattr(found, name)(ctypes.addressof(task), *(x.data_ptr() for x in more)):
        raise MemoryError("attention found no memory for what it works on")


def _in_rows(x: Tensor) -> Tensor:
    """x (B, T, ·, D), in whose memory a token's heads lie side by side, and tokens equally far from each other."""
    _, T, heads, D = x.shape
    lies = x.stride(3) == 1 and (heads == 1 or x.stride(2) == D) and (len(x) == 1 or x.stride(0) == T * x.stride(1))
    return x if lies else x.contiguous()


class Attended(torch.autograd.Function):
    """One call into C each way."""

    @staticmethod
    def forward(
        ctx: Any,
        heads: int,
        kv_heads: int,
        cos: Tensor | None,
        sin: Tensor | None,
        documents: Tensor | None,
        causal: bool,
        window: int,
        *parts: Tensor,
    ) -> Tensor:
        parts = tuple(map(_in_rows, parts))
        B, T, _, D = parts[0].shape
        y, lse = pages.empty((B, T, heads * D), like=parts[0]), torch.empty(B, heads, T)
        cos, sin = (x if x is None else x.float().contiguous() for x in (cos, sin))
        documents = documents if documents is None else documents.long().contiguous()
        _run("forward", _split(parts, heads, kv_heads), (), (cos, sin, documents, causal, window), y, lse)
        ctx.save_for_backward(*parts, y, lse, cos, sin, documents)
        ctx.rest = heads, kv_heads, causal, window
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *parts, y, lse, cos, sin, documents = ctx.saved_tensors
        heads, kv_heads, *rest = ctx.rest
        grads = [pages.empty(x.shape, like=x) for x in parts]
        qkv, to = (_split(x, heads, kv_heads) for x in (parts, grads))
        _run("backward", qkv, to, (cos, sin, documents, *rest), y, lse, dy.contiguous())
        return *[None] * 7, *grads
