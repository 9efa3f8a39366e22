"""A plain MLP's two passes in C: one call each, in place of an operation of torch's for every product and every slope.

784-128-128-10 at batch 64 multiplies for 80 µs an update; torch's operations, waking and gathering the threads at each,
make 200 of it. `mlp.c` is compiled at first use (see `ffn.kernels.compiler`).
"""

# N examples, I inputs and O outputs of a layer

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feedfwd.ffn.kernels.compiler import library
from feedfwd.models.mlp import MLP, PlainLayer

LARGEST = 1 << 20  # weights of a matrix, and
MOST = 512  # examples: with more, libraries that copy blocks of a matrix before they multiply are faster
ALONE = 1 << 18  # multiply-adds of a forward pass: below, waking a second thread costs more than it saves


def lacks(model: MLP, n: int) -> str | None:
    """Why the compiled passes don't serve a plain network on batches of n examples; None where they do.

    By sizes and never by timing: the same command, the same bits.

    >>> lacks(MLP([4, 8, 3], "tanh"), 16)
    'Tanh is not written in C'
    """
    for block in model.blocks:
        assert isinstance(block, PlainLayer)
        if _slope(block.activation) is None:
            return f"{type(block.activation).__name__} is not written in C"
        if block.dropout.p:
            return "dropout is not written in C"
    weight = model.head.weight
    if weight.dtype != torch.float32:
        return f"{str(weight.dtype).removeprefix('torch.')} is not written in C"
    if max(p.numel() for p in model.parameters()) > LARGEST:
        return f"a matrix has more than {LARGEST:,} weights"
    if n > MOST:
        return f"a batch has more than {MOST} examples"
    return _compiled()[1] or None


def _slope(activation: nn.Module) -> float | None:
    """σ(z) / z for z < 0, where that is a number."""
    match activation:
        case nn.ReLU():
            return 0.0
        case nn.LeakyReLU(negative_slope=slope):
            return float(slope)
        case nn.Identity():
            return 1.0
        case _:
            return None


class Net(ctypes.Structure):
    """`net` of mlp.c."""

    _fields_ = (
        ("layers", ctypes.c_int),
        ("n", ctypes.c_int),
        ("ld", ctypes.c_int),
        ("slope", ctypes.c_float),
        *(
            (name, ctypes.c_void_p)
            for name in ("sizes", "weight", "bias", "weight_gradient", "bias_gradient", "h", "d", "ht")
        ),
    )


@functools.cache
def _compiled() -> tuple[ctypes.CDLL | None, str]:
    found, reason = library(Path(__file__).with_name("mlp.c"))
    if found is not None:
        found.forward.argtypes = found.backward.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    return found, reason


class CompiledPasses:
    """Both passes for batches of n examples; weights and gradients stay where the tensors given have them."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        weight_gradients: Sequence[Tensor],
        bias_gradients: Sequence[Tensor | None],
        activation: nn.Module,
        n: int,
    ) -> None:
        compiled, reason = _compiled()
        assert compiled is not None, reason
        self._forward, self._backward = compiled.forward, compiled.backward
        width = ctypes.c_int.in_dll(compiled, "lanes").value

        def up(length: int) -> int:
            return -(-length // width) * width

        ld = up(n) + width * (n > 64 and up(n) % 64 == 0)
        inputs = weights[0].shape[1]
        sizes = [inputs, *map(len, weights)]
        h, d = ([torch.zeros(size, ld) for size in sizes] for _ in range(2))
        ht = [torch.zeros(n, up(size)) for size in sizes]
        tensors = (weights, biases, weight_gradients, bias_gradients, h, d, ht)
        tables: list[Any] = [(ctypes.c_int * len(sizes))(*sizes), *map(_pointers, tensors)]
        self._kept = tables, tensors
        slope = _slope(activation)
        assert slope is not None
        self._net = Net(len(weights), n, ld, slope, *(ctypes.addressof(table) for table in tables))
        self._at = ctypes.addressof(self._net)
        self._rows = None if ht[0].shape[1] == inputs else ht[0][:, :inputs]
        self._padded = None if h[-1].shape[1] == n else (h[-1][:, :n], d[-1][:, :n])
        self.outputs_ON, self.d_outputs_ON = h[-1], d[-1]
        if self._padded is not None:
            self.outputs_ON, self.d_outputs_ON = (torch.empty(sizes[-1], n) for _ in range(2))
        self._work = n * sum(w.numel() for w in weights)

    def forward(self, x_NI: Tensor) -> None:
        """From inputs to `outputs_ON`."""
        self._x = x_NI.contiguous() if self._rows is None else self._rows.copy_(x_NI)
        self._forward(self._at, self._x.data_ptr(), self._threads())
        if self._padded is not None:
            self.outputs_ON.copy_(self._padded[0])

    def backward(self) -> None:
        """From the inputs of the last `forward` and `d_outputs_ON` to the gradients, whatever they held."""
        if self._padded is not None:
            self._padded[1].copy_(self.d_outputs_ON)
        self._backward(self._at, self._x.data_ptr(), self._threads())
        del self._x

    def _threads(self) -> int:
        return torch.get_num_threads() if self._work >= ALONE else 1


def _pointers(tensors: Sequence[Tensor | None]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
