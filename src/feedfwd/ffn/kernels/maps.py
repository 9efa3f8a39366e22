"""The three products of a linear map under bf16 autocast on a CPU: y = x Wᵀ + b, ∂x = ∂y W, ∂W = ∂yᵀ x.

Libraries take a copy of W in bf16, lay it out anew for the processor's tiles (AMX) in every product, and give ∂W in
bf16, of which autograd makes fp32; for some hundred tokens the copies alone cost a tenth to a quarter of what the
products do. `maps.c` rounds and lays out W in one sweep, and writes ∂W as it was added up. For ∂W it also turns a
stretch of ∂y where it is needed, which libraries do at a half to two thirds of the rate of other products. `bent` and
`bent_back` are the two products of a feed-forward layer that its activation meets: they bend what they have added up
themselves. All is compiled at first use (see `compiler`), and only where there are tiles: without them torch is as
fast.
"""

# T tokens, N outputs, K inputs

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from feedfwd.ffn.kernels.compiler import library
from feedfwd.ffn.kernels.native import SIGMA, foreign, products, tiles

LEAST = 64  # tokens; of fewer torch's products are as fast
ALONE = 1 << 20  # multiply-adds: below, waking a second thread costs more than it saves
EVEN = 32  # what inputs and outputs must be multiples of
NO_MEMORY = "a linear map found no memory for what it works on"


def lacks(*factors: Tensor) -> str | None:
    """Why nothing here can serve for factors with a row a token, such as x (T, K) and ∂y (T, N); None where it does.

    >>> lacks(torch.zeros(8, 2))
    'fewer than 64 tokens'
    """
    return _unfit(factors) or _compiled()[1] or None


def lacks_linear(x: Tensor, weights: Sequence[Tensor]) -> str | None:
    """Why `linear` can't serve for x (T, K) and weights (N, K), as they lie or turned; None where it does."""
    if reason := _unfit((x,)) or foreign(weights):
        return reason
    for weight in weights:
        if weight.dtype != torch.float32:
            return f"maps in C take weights in fp32, not {_short(weight)}"
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            return "a weight doesn't lie row by row"
        if any(size % EVEN for size in weight.shape):
            return f"a weight {tuple(weight.shape)} is not of multiples of {EVEN}"
    return _compiled()[1] or None


def _unfit(factors: Sequence[Tensor]) -> str:
    if len(factors[0]) < LEAST:
        return f"fewer than {LEAST} tokens"
    if reason := foreign(factors):
        return reason
    for x in factors:
        if x.device.type != "cpu" or x.dtype != torch.bfloat16:
            return f"maps in C take tokens in bf16 on a CPU, not {_short(x)} on {x.device.type}"
        if x.stride(1) != 1:
            return "a factor doesn't lie row by row"
    return ""


def taken(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as products with x take them: as they are where `linear` serves, else in x's precision."""
    if lacks_linear(x, [weight]) is None:
        return weight, bias
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


class Stacked(ctypes.Structure):
    """`stacked` of maps.c."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("rows", ctypes.c_long))


@functools.cache
def _compiled(sigma: str = "") -> tuple[ctypes.CDLL | None, str]:
    """The products, or those that `sigma` meets; or why there are none."""
    definitions, reason = products(torch.bfloat16)
    if reason:
        return None, reason
    if not (faster := tiles(torch.bfloat16)):
        return None, "this CPU multiplies no tiles"
    bending = (f"-DSIGMA={sigma}",) if sigma else ()
    found, reason = library(Path(__file__).with_name("maps.c"), (*definitions, *faster, *bending))
    if found is not None:
        pointer, number, whole = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        sizes = (number, number, number, whole)
        if sigma:
            found.bent.argtypes = (pointer, number, pointer, pointer, whole, pointer, pointer, *sizes)
            found.bent_back.argtypes = (pointer, number, pointer, whole, pointer, pointer, *sizes)
        else:
            found.map.argtypes = (pointer, number, pointer, whole, pointer, *sizes)
            found.outer.argtypes = (pointer, number, pointer, number, pointer, whole, pointer, *sizes)
    return found, reason


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], out: Tensor) -> Tensor:
    """x weightᵀ + bias for x (T, K) of weights stacked, into `out` (T, N); where `lacks_linear` is silent.

    For ∂x = ∂y W the weights are Wᵀ, without biases: those that were stacked are then side by side.
    """
    found, _ = _compiled()
    assert found is not None and out.is_contiguous()
    as_it_lies = weights[0].is_contiguous()
    biases = [None if bias is None else bias.float().contiguous() for bias in biases]  # kept here until all is done
    parts = [
        Stacked(w.data_ptr(), None if b is None else b.data_ptr(), w.shape[0] if as_it_lies else w.shape[1])
        for w, b in zip(weights, biases, strict=True)
    ]
    together = (Stacked * len(parts))(*parts)
    (T, K), N = x.shape, out.shape[-1]
    where = x.data_ptr(), x.stride(0), ctypes.addressof(together), as_it_lies, out.data_ptr()
    if found.map(*where, T, K, N, _threads(T * K * N)):
        raise MemoryError(NO_MEMORY)
    return out


def bends(x: Tensor, weight: Tensor, hidden: int, sigma: str) -> bool:
    """Whether `bent` can serve for x, this weight and so wide an `a`, or `bent_back` for ∂y and this weight."""
    fit = sigma in SIGMA and hidden % EVEN == 0 and weight.is_contiguous() and lacks_linear(x, [weight]) is None
    return fit and _compiled(sigma)[0] is not None


def bent(x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor, a: Tensor, sigma: str) -> None:
    """z = x weightᵀ + bias into `z` (T, M), and σ(z) into `a` (T, H), where M = 2H σ(gate) ⊙ up of z = [gate | up]."""
    found, _ = _compiled(sigma)
    bias = None if bias is None else bias.float().contiguous()
    (T, K), H = x.shape, a.shape[1]
    factors = x.data_ptr(), x.stride(0), weight.data_ptr(), None if bias is None else bias.data_ptr()
    assert found is not None and z.is_contiguous() and a.is_contiguous() and weight.is_contiguous()
    if found.bent(*factors, z.shape[1] > H, z.data_ptr(), a.data_ptr(), T, K, H, _threads(T * K * z.shape[1])):
        raise MemoryError(NO_MEMORY)


def bent_back(dy: Tensor, weight: Tensor, z: Tensor, a: Tensor, sigma: str) -> None:
    """With ∂a = dy weight for dy (T, D) and weight (D, H): ∂z over `z` as `bent` left it, and `a` (T, H) once more."""
    found, _ = _compiled(sigma)
    (T, D), H = dy.shape, a.shape[1]
    assert found is not None and z.is_contiguous() and a.is_contiguous() and weight.is_contiguous()
    factors = dy.data_ptr(), dy.stride(0), weight.data_ptr()
    if found.bent_back(*factors, z.shape[1] > H, z.data_ptr(), a.data_ptr(), T, D, H, _threads(T * D * H)):
        raise MemoryError(NO_MEMORY)


def outer(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False, sums: Tensor | None = None) -> Tensor:
    """aᵀ b for a (T, N) and b (T, K), in fp32 into `out` (N, K) or added to it; where `lacks` is silent.

    `sums` (N,) takes those of a's columns: of ∂y, the bias's gradient.
    """
    found, _ = _compiled()
    assert found is not None and out.is_contiguous() and out.dtype == torch.float32
    (T, N), K = a.shape, b.shape[1]
    factors = a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(0)
    into = out.data_ptr(), add, None if sums is None else sums.data_ptr()
    if found.outer(*factors, *into, T, N, K, _threads(T * N * K)):
        raise MemoryError(NO_MEMORY)
    return out


def _threads(work: int) -> int:
    return torch.get_num_threads() if work >= ALONE else 1


def _short(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
