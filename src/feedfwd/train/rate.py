"""How fast this machine multiplies matrices: what a training's speed is measured against."""

# N rows, I inputs, O outputs

import math
import time
from collections import Counter
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from feedfwd.train.precision import Precision

SECONDS = 0.05  # for each size of product
LEAST = 3  # times each


def matrix_rate(sizes: Iterable[tuple[int, int, int]], precision: Precision, device: torch.device | str) -> float:
    """FLOPs a second of the products (N, I) x (O, I)ᵀ of these sizes, one after the other, nothing between them.

    A multiply-add counts 2. They run on the threads that training has, in its number format, on memory that is warm;
    of each size the fastest of a few counts, so that what else the machine does hardly shows. It takes about 0.05 s for
    each size, or three times the product where that is longer. `precision.products` lists a model's sizes.

    >>> matrix_rate([(64, 64, 64)], Precision("fp32", "asked for"), "cpu") > 1e6
    True
    """
    dtype = torch.bfloat16 if precision.name == "bf16" else torch.float32
    flops = seconds = 0.0
    with torch.inference_mode():
        for (rows, inputs, outputs), times in Counter(sizes).items():
            x_NI = torch.full((rows, inputs), 0.5, dtype=dtype, device=device)
            w_OI = torch.full((outputs, inputs), 0.5, dtype=dtype, device=device)
            flops += times * 2 * rows * inputs * outputs
            seconds += times * _fastest(x_NI, w_OI)
    return flops / seconds


def _fastest(x_NI: torch.Tensor, w_OI: torch.Tensor) -> float:
    """Seconds of one product."""
    best, times, start = math.inf, 0, time.perf_counter()
    while times < LEAST or time.perf_counter() - start < SECONDS:
        began = time.perf_counter()
        F.linear(x_NI, w_OI)
        if x_NI.device.type == "cuda":
            torch.cuda.synchronize(x_NI.device)
        best, times = min(best, time.perf_counter() - began), times + 1
    return best
