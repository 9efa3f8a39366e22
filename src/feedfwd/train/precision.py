"""In which number format the products run: chosen by rules and never by timing, so that a command repeats its bits.

Weights, gradients and optimizer state stay fp32; bf16 means that autocast runs the products of the forward pass and
their gradients in bfloat16.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from feedfwd.errors import ConfigError, nearest

# Forward and backward under autocast against fp32, on two cores with AVX-512 bf16 (products 4.5 times fp32's rate), one
# and two threads, MLPs 64 … 2048 wide, batches 16 … 2048: autocast broke even where the average product had 2.8 to 4.5
# million multiply-adds (64 wide: batch 600; 784-128-128-10: 50–100; 256: 40–65; 512: 16), gained 1.1–1.6 times at 5,
# 1.5–2.1 times at 10 and 3–4 times at 100 million.
PAYS_FROM = 5e6
# Where a small network's passes run in compiled C (models/mlp.c), fp32 is faster and the balance tips later: 256 wide
# at batch 64 (5.7 million) took .20 ms in fp32 and .31 in bf16, 784-128-128-10 at batch 256 (10 million) .38 and .39,
# at batch 512 (20 million) .76 and .56.
PAYS_FROM_IF_COMPILED = 12e6

# oneDNN's instruction sets with bf16 products; with less it converts and multiplies at a quarter of fp32's rate.
BF16_ISAS = (
    "AVX512_CORE_BF16",
    "AVX512_CORE_FP16",
    "AVX512_CORE_AMX",
    "AVX512_CORE_AMX_FP16",
    "AVX10_1_512",
    "AVX10_1_512_AMX",
    "AVX10_1_512_AMX_FP16",
    "DEFAULT",
    "ALL",
)
OTHER_ISAS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(frozen=True, slots=True)
class Precision:
    """A number format, and in one line why it was chosen."""

    name: str
    reason: str
    device: str = "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for forward passes; it may be entered any number of times, one after the other."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


FP32 = Precision("fp32", "the default")


def choose(
    request: str, device: torch.device | str, sizes: Iterable[tuple[int, int, int]], pays_from: float = PAYS_FROM
) -> Precision:
    """The precision for products of these sizes (rows, inputs, outputs) on this device.

    request: "auto", "fp32" or "bf16". `products` lists the sizes of a model. On a CPU, bf16 pays from so many
    multiply-adds on in the average product.

    >>> choose("auto", "cpu", [(64, 784, 128), (64, 128, 128), (64, 128, 10)]).name
    'fp32'
    >>> print(choose("fp32", "cpu", []))
    fp32 (asked for)
    """
    kind = torch.device(device).type
    if request not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"unknown precision {request!r}", hint=nearest(request, ("auto", "fp32", "bf16")))
    lack = lacks_bf16(kind)
    if request == "fp32":
        return Precision("fp32", "asked for", kind)
    if request == "bf16":
        return Precision("bf16", f"asked for, but expect it to be slow: {lack}" if lack else "asked for", kind)
    if lack:
        return Precision("fp32", lack, kind)
    if kind != "cpu":
        return Precision("bf16", "the GPU multiplies it natively", kind)
    macs = [rows * inputs * outputs for rows, inputs, outputs in sizes]
    mean = sum(macs) / len(macs) if macs else 0.0
    size = f"{mean / 1e6:.1f} million multiply-adds a product, where bf16 pays from {pays_from / 1e6:.0f} on"
    if mean < pays_from:
        return Precision("fp32", f"small products: {size}", kind)
    return Precision("bf16", f"this CPU multiplies it natively; {size}", kind)


def products(model: nn.Module, rows: int) -> list[tuple[int, int, int]]:
    """(rows, inputs, outputs) of the products of one forward pass, read off the matrices among the parameters.

    rows: examples, or tokens, a batch.

    >>> products(nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)), rows=64)
    [(64, 784, 128), (64, 128, 10)]
    """
    looked_up = {m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    return [(rows, p.shape[1], p.shape[0]) for p in model.parameters() if p.ndim == 2 and p not in looked_up]


def lacks_bf16(kind: str) -> str:
    """Why bf16 products would not be faster than fp32 on this kind of device; empty where they are."""
    match kind:
        case "cuda":
            return "" if torch.cuda.is_bf16_supported(including_emulation=False) else "this GPU has no bf16 products"
        case "cpu":
            if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
                return "this CPU has no bf16 products"
            if isa := _isa_limit():
                return f"oneDNN is limited to {isa}, which has no bf16 products"
            return ""
        case _:
            return f"bf16 on {kind} is not known to pay"


def _isa_limit() -> str:
    """The instruction set that the environment holds oneDNN to, if it lacks bf16 products.

    torch's own `_is_mkldnn_bf16_supported` still says yes under AVX512_CORE, where bf16 is already slower than fp32.
    ATEN_CPU_CAPABILITY doesn't touch the products.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    return limit if limit in OTHER_ISAS else ""
