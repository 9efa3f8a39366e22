"""Matrix products by the faster of the two libraries that torch carries.

In fp32 torch multiplies by MKL, which takes its AVX2 code on a processor that isn't Intel's; oneDNN, which torch has
too, takes AVX-512 there and is about twice as fast. Which one runs depends on the processor and the sizes alone and is
never timed, so that the same command gives the same bits.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from feedfwd.ffn.kernels import pages

LARGE = 2**21  # multiplications from which oneDNN's longer preparation pays


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for x (N, D), weight (H, D) of any strides. Not differentiable: for a backward pass of one's own.

    >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
    torch.Size([2, 4])
    """
    large = x.dtype == torch.float32 and x.shape[0] * weight.numel() >= LARGE
    if large and x.device.type == "cpu" and _dense(x) and _dense(weight) and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    out = pages.empty((x.shape[0], weight.shape[0]), like=x)
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def _dense(matrix: Tensor) -> bool:
    """Whether its numbers lie side by side: for a part of a wider matrix oneDNN takes a path 500 times as slow."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


@cache
def onednn_is_faster() -> bool:
    """Whether fp32 products on this processor are left to oneDNN: where torch would take MKL, and it isn't Intel's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # torch's own name, without a promise to keep it
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
