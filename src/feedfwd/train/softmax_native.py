"""The softmax of the cross-entropy on a CPU in C, with what surrounds it; torch's operations are its twin.

`softmax.c` is compiled at first use (see `ffn.kernels.compiler`).
"""

# N tokens, V vocabulary

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from feedfwd.ffn.kernels import plan
from feedfwd.ffn.kernels.compiler import library
from feedfwd.ffn.kernels.native import ALONE, DTYPES, foreign, products


def lacks(logits: Tensor) -> str | None:
    """Why the compiled softmax can't serve for logits (N, V) in rows; None where it does.

    >>> lacks(torch.zeros(1, 4, dtype=torch.float16))
    'float16 is not written in C'
    """
    if not plan.enabled():
        return plan.OFF
    if reason := foreign((logits,)):
        return reason
    if logits.device.type != "cpu":
        return f"the softmax in C is for CPUs, not {logits.device.type}"
    if logits.dtype not in DTYPES:
        return f"{str(logits.dtype).removeprefix('torch.')} is not written in C"
    return _compiled(logits.dtype)[1] or None


@functools.cache
def _compiled(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    found, reason = library(Path(__file__).with_name("softmax.c"), products(dtype)[0] or DTYPES[dtype])
    if found is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_long
        found.softmax.argtypes = (pointer, number, *(pointer,) * 3, ctypes.c_float, number, number, ctypes.c_int)
    return found, reason


def softmax(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Puts p - [v = target] / (1 + 2 z lse) in place of the logits (N, V); gives lse and log p of the targets, (N,)."""
    found, _ = _compiled(logits.dtype)
    assert found is not None and logits.stride(1) == 1
    N, V = logits.shape
    if N and not 0 <= int(targets.min()) <= int(targets.max()) < V:  # C would write elsewhere
        raise IndexError(f"targets from {int(targets.min())} to {int(targets.max())} among {V} tokens")
    lse, log_p = torch.empty(N), torch.empty(N)
    threads = torch.get_num_threads() if logits.numel() >= ALONE else 1
    others = (x.data_ptr() for x in (targets.contiguous(), lse, log_p))
    found.softmax(logits.data_ptr(), logits.stride(0), *others, z_loss, N, V, threads)
    return lse, log_p
