"""The pointwise passes in C, in one sweep over memory each.

torch's own operations (`formulas`) need seven sweeps where C needs one, which at a width of 512 is worth a tenth of the
layer's time. `pointwise.c` is compiled (see `compiler`) for one activation and precision.
"""

import ctypes
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedfwd.ffn.kernels.compiler import library
from feedfwd.ffn.kernels.formulas import FROM_OUTPUT, Dropout, blocks

SOURCE = Path(__file__).with_name("pointwise.c")
SIGMA = ("identity", "relu", "relu2", "sigmoid", "silu", "gelu", "gelu_tanh")
DTYPES = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
ALONE = 1 << 15  # elements: below, waking a second thread costs more than it saves

_p, _i, _l, _f = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float


class NativePasses:
    """The passes of one activation and precision, compiled."""

    name = "compiled C"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in ("gated_forward", "gated_backward", "dense_forward", "dense_backward"):
            getattr(library, name).argtypes = (_p, _p, _p, _i, _f, _l, _l, _i)
        if hasattr(library, "output_backward"):
            library.output_backward.argtypes = (_p, _p, _f, _l, _l, _i)

    def gated_forward(self, gu: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        self._sweep(self._library.gated_forward, gu, a, dropout)

    def gated_backward(self, gu: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        self._sweep(self._library.gated_backward, gu, da, dropout)

    def dense_forward(self, z: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        self._sweep(self._library.dense_forward, z, a, dropout)

    def dense_backward(self, z: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        self._sweep(self._library.dense_backward, z, da, dropout)

    def output_backward(self, a: Tensor, da: Tensor, scale: float) -> None:
        n, h = a.shape
        self._library.output_backward(a.data_ptr(), da.data_ptr(), scale, n, h, _threads(n * h))

    @staticmethod
    def _sweep(sweep: Any, z: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        n, h = a.shape
        if dropout is None:
            sweep(z.data_ptr(), a.data_ptr(), None, 0, 1.0, n, h, _threads(n * h))
            return
        for rows, drop in blocks(a, dropout):
            assert drop is not None
            n = len(drop.bits)
            pointers = z[rows].data_ptr(), a[rows].data_ptr(), drop.bits.data_ptr()
            sweep(*pointers, drop.threshold, drop.scale, n, h, _threads(n * h))


def foreign(tensors: Iterable[Tensor]) -> str:
    """Why C must not read these tensors' memory by itself, or "": a subclass may keep its numbers elsewhere.

    >>> foreign([torch.zeros(1), torch.nn.Parameter(torch.zeros(1))]), foreign([torch.nn.Buffer(torch.zeros(1))])
    ('', '')
    """
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"a {type(tensor).__name__} has its own operations"
    return ""


def _threads(elements: int) -> int:
    return torch.get_num_threads() if elements >= ALONE else 1


def passes(sigma: str, dtype: torch.dtype) -> tuple[NativePasses | None, str]:
    """The compiled passes, or None and why they can't serve."""
    if sigma not in SIGMA:
        return None, f"{sigma} is not written in C"
    if dtype not in DTYPES:
        return None, f"{str(dtype).removeprefix('torch.')} is not written in C"
    return _library(sigma, dtype)


@functools.cache
def _library(sigma: str, dtype: torch.dtype) -> tuple[NativePasses | None, str]:
    output = (f"-DOUTPUT={sigma}_output",) if sigma in FROM_OUTPUT else ()
    found, reason = library(SOURCE, (f"-DSIGMA={sigma}", *output, *DTYPES[dtype]))
    return None if found is None else NativePasses(found), reason


def products(dtype: torch.dtype) -> tuple[tuple[str, ...], str]:
    """The compiler's options for C that multiplies matrices in this precision (see lanes.c), or why there are none."""
    if dtype == torch.float32:
        return (), ""
    if dtype != torch.bfloat16:
        return (), f"{str(dtype).removeprefix('torch.')} is not written in C"
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.cpu._is_avx512_bf16_supported():
        return (), "this CPU has no bf16 products that C could use"
    return ("-DBF16", "-mavx512bf16"), ""


def multiplying(source: Path, dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    """`source`, which multiplies matrices in this precision by lanes.c, compiled, with tiles where there are some."""
    definitions, reason = products(dtype)
    if reason:
        return None, reason
    faster = tiles(dtype)
    found, reason = library(source, (*definitions, *faster))
    if found is None and faster:  # an older compiler doesn't know them
        found, reason = library(source, definitions)
    return found, reason


def tiles(dtype: torch.dtype) -> tuple[str, ...]:
    """Further options where the processor multiplies whole tiles of bf16 (AMX), and lets this process."""
    serves = dtype == torch.bfloat16 and not products(dtype)[1]
    if not serves or not torch.cpu._is_amx_tile_supported() or not torch.cpu._init_amx():
        return ()
    return "-DAMX", "-mamx-tile", "-mamx-bf16"
