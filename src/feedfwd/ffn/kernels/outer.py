"""Sums of outer products, aᵀ b for a (T, N) and b (T, K) with T long: a weight's gradient from those of T tokens.

Libraries lay out both factors anew for the processor's tiles (AMX), and for this form at a half to two thirds of the
rate of other products. `outer.c` turns a stretch of the one and packs a stretch of the other where they are needed. It
is compiled at first use (see `compiler`), and only where there are tiles: without them torch is as fast.
"""

# T tokens, N outputs, K inputs

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from feedfwd.ffn.kernels.compiler import library
from feedfwd.ffn.kernels.native import products, tiles

LEAST = 1024  # tokens; of fewer torch's product is as fast
ALONE = 1 << 20  # multiply-adds: below, waking a second thread costs more than it saves


def lacks(a: Tensor, b: Tensor) -> str | None:
    """Why the compiled product can't serve; None where it does.

    >>> lacks(torch.zeros(8, 2), torch.zeros(8, 3))
    'fewer than 1,024 tokens'
    """
    if len(a) < LEAST:
        return f"fewer than {LEAST:,} tokens"
    for x in (a, b):
        if x.device.type != "cpu" or x.dtype != torch.bfloat16:
            return f"the product in C is of bf16 on a CPU, not {x.dtype} on {x.device.type}"
        if x.ndim != 2 or x.stride(1) != 1:
            return "a factor doesn't lie row by row"
    return _compiled()[1] or None


@functools.cache
def _compiled() -> tuple[ctypes.CDLL | None, str]:
    definitions, reason = products(torch.bfloat16)
    if reason:
        return None, reason
    if not (faster := tiles(torch.bfloat16)):
        return None, "this CPU multiplies no tiles"
    found, reason = library(Path(__file__).with_name("outer.c"), (*definitions, *faster))
    if found is not None:
        found.outer.argtypes = ((ctypes.c_void_p,) * 3) + (ctypes.c_long,) * 5 + (ctypes.c_int,)
    return found, reason


def outer(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """aᵀ b, into `out` (N, K) where it is given; where `lacks` says nothing."""
    found, _ = _compiled()
    assert found is not None
    (T, N), K = a.shape, b.shape[1]
    out = torch.empty(N, K, dtype=a.dtype) if out is None else out
    threads = torch.get_num_threads() if T * N * K >= ALONE else 1
    pointers = a.data_ptr(), b.data_ptr(), out.data_ptr()
    if found.outer(*pointers, T, N, K, a.stride(0), b.stride(0), threads):
        raise MemoryError("a weight's gradient found no memory for what it works on")
    return out
