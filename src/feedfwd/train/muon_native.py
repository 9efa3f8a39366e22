"""Muon's update in C, from a matrix's gradient to its step.

torch's operations hand every one of the dozen small products of a matrix to all threads; in C a matrix is one thread's
work and stays in its cache. `muon.c` is compiled at first use (see `ffn.kernels.compiler`).
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from feedfwd.ffn.kernels import plan
from feedfwd.ffn.kernels.native import multiplying

WIDEST = 1024  # of a matrix's shorter side: beyond, what a thread works on leaves its cache
ALONE = 1 << 21  # multiply-adds: below, waking a second thread costs more than it saves


class Job(NamedTuple):
    """`stacked` matrices, one below the other."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    stacked: int
    moment: Tensor | None = None  # (stacked, the longer side of one), where rows or columns are evened out

    @property
    def shape(self) -> tuple[int, int]:
        """Of one of them."""
        return self.weight.shape[0] // self.stacked, self.weight.shape[1]


def lacks(job: Job, dtype: torch.dtype) -> str | None:
    """Why the compiled update can't serve, its products in `dtype`; None where it does.

    >>> lacks(Job(*(torch.zeros(4, 4, dtype=torch.float64) for _ in range(3)), 1), torch.float32)
    'weights in float64 are not written in C'
    """
    if not plan.enabled():
        return plan.OFF
    for tensor in job[:3]:
        if tensor.device.type != "cpu":
            return f"Muon in C is for CPUs, not {tensor.device.type}"
        if tensor.dtype != torch.float32:
            return f"weights in {str(tensor.dtype).removeprefix('torch.')} are not written in C"
        if not tensor.is_contiguous():
            return "a matrix doesn't lie row by row"
    if min(job.shape) > WIDEST:
        return f"a matrix is more than {WIDEST:,} wide"
    return _compiled(dtype)[1] or None


class Matrix(ctypes.Structure):
    """`matrix` of muon.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "momentum", "gradient", "moment")),
        *((name, ctypes.c_long) for name in ("rows", "columns")),
        ("step", ctypes.c_float),
    )


class Settings(ctypes.Structure):
    """`settings` of muon.c."""

    _fields_ = (
        ("quintics", ctypes.c_void_p),
        ("quintic_count", ctypes.c_long),
        ("momentum", ctypes.c_float),
        ("decay", ctypes.c_float),
        ("smooth", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


@functools.cache
def _compiled(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    if dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None, "torch's fp32 products are as fast without AVX-512"
    found, reason = multiplying(Path(__file__).with_name("muon.c"), dtype)
    if found is not None:
        found.muon.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)
    return found, reason


def update(
    jobs: Sequence[Job],
    steps: Sequence[float],
    momentum: float,
    decay: float,
    smooth: float,
    quintics: Sequence[Sequence[float]],
    dtype: torch.dtype,
) -> None:
    """Momentum and weights of all `jobs`, each with its step; where `lacks` says nothing."""
    found, _ = _compiled(dtype)
    assert found is not None
    matrices: list[Matrix] = []
    for job, step in zip(jobs, steps, strict=True):
        rows, columns = job.shape
        for part in range(job.stacked):
            at = 4 * part * rows * columns
            pointers = (tensor.data_ptr() + at for tensor in (job.weight, job.momentum, job.gradient))
            moment = None if job.moment is None else job.moment[part].data_ptr()
            matrices.append(Matrix(*pointers, moment, rows, columns, step))
    largest_first = sorted(matrices, key=lambda matrix: -matrix.rows * matrix.columns)  # so that threads end together
    work = sum(matrix.rows * matrix.columns * min(matrix.rows, matrix.columns) for matrix in matrices)
    coefficients = (ctypes.c_float * 3 * len(quintics))(*((ctypes.c_float * 3)(*quintic) for quintic in quintics))
    threads = torch.get_num_threads() if work >= ALONE else 1
    settings = Settings(ctypes.addressof(coefficients), len(quintics), momentum, decay, smooth, threads)
    together = (Matrix * len(matrices))(*largest_first)
    if found.muon(ctypes.addressof(settings), ctypes.addressof(together), len(matrices)):
        raise MemoryError("Muon found no memory for what it works on")
