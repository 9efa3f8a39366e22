"""RMSNorm on a CPU in C: one sweep over memory for the forward pass, one for the backward, where torch makes a dozen.

`norms.c` is compiled at first use (see `ffn.kernels.compiler`).
"""

# N rows, D numbers each

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from feedfwd.ffn.kernels import plan
from feedfwd.ffn.kernels.compiler import library
from feedfwd.ffn.kernels.native import ALONE, DTYPES, foreign

ROWS = 64  # as in norms.c


def lacks(x: Tensor, weight: Tensor, dtype: torch.dtype) -> str | None:
    """Why the compiled norm can't serve with results in `dtype`; None where it does.

    >>> lacks(torch.zeros(1, 4), torch.ones(4), torch.float16)
    'float16 is not written in C'
    """
    if not plan.enabled():
        return plan.OFF
    if reason := foreign((x, weight)):
        return reason
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return "the norm in C is for numbers in fp32 on a CPU"
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} is not written in C"
    return _compiled(dtype)[1] or None


@functools.cache
def _compiled(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    found, reason = library(Path(__file__).with_name("norms.c"), DTYPES[dtype])
    if found is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_long
        found.forward.argtypes = (*(pointer,) * 6, number, number, ctypes.c_float, ctypes.c_int)
        found.backward.argtypes = (*(pointer,) * 8, number, number, ctypes.c_int)
        found.layer_forward.argtypes = (*(pointer,) * 9, number, number, ctypes.c_float, ctypes.c_int)
        found.layer_backward.argtypes = (*(pointer,) * 10, number, number, ctypes.c_int)
    return found, reason


def forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x + branch, or x; y (..., D) in `dtype`; and 1 / √(mean(x²) + ε) of each row. x and the branch are contiguous."""
    found, _ = _compiled(dtype)
    assert found is not None
    D = x.shape[-1]
    N = x.numel() // D
    total, y, scale = x if branch is None else torch.empty_like(x), torch.empty(x.shape, dtype=dtype), torch.empty(N)
    pointers = (None if t is None else t.data_ptr() for t in (x, branch, total, weight.contiguous(), y, scale))
    found.forward(*pointers, N, D, eps, _threads(x))
    return total, y, scale


def backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of x, of the branch, and of the weight, where x is the sum. dy, dtotal and x are contiguous."""
    found, _ = _compiled(dy.dtype)
    assert found is not None
    D = x.shape[-1]
    N = x.numel() // D
    dx, shares = torch.empty_like(x), torch.empty(-(-N // ROWS), D)
    dbranch = None if dtotal is None else torch.empty_like(dy)
    tensors = dy, dtotal, x, weight.contiguous(), scale, dx, dbranch, shares
    found.backward(*(None if t is None else t.data_ptr() for t in tensors), N, D, _threads(x))
    return dx, dbranch, shares.sum(0)


def layer_forward(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """LayerNorm of x + branch in fp32 and in the branch's precision; and for the backward the sum, means and scales."""
    found, _ = _compiled(branch.dtype)
    assert found is not None
    D = x.shape[-1]
    N = x.numel() // D
    total, y, low = torch.empty_like(x), torch.empty_like(x), torch.empty_like(branch)
    mean, scale = torch.empty(N), torch.empty(N)
    tensors = x, branch, weight.contiguous(), bias.contiguous(), total, y, low, mean, scale
    found.layer_forward(*(t.data_ptr() for t in tensors), N, D, eps, _threads(x))
    return y, low, total, mean, scale


def layer_backward(
    dy: Tensor, dlow: Tensor | None, dtype: torch.dtype, total: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, of the branch in its `dtype`, of the weight and of the bias. dy and dlow are contiguous."""
    found, _ = _compiled(dtype)
    assert found is not None
    D = total.shape[-1]
    N = total.numel() // D
    dx, dbranch = torch.empty_like(total), torch.empty(total.shape, dtype=dtype)
    of_weight, of_bias = torch.empty(2, -(-N // ROWS), D)
    tensors = dy, dlow, total, weight.contiguous(), mean, scale, dx, dbranch, of_weight, of_bias
    found.layer_backward(*(None if t is None else t.data_ptr() for t in tensors), N, D, _threads(total))
    return dx, dbranch, of_weight.sum(0), of_bias.sum(0)


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= ALONE else 1
