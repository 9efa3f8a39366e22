"""Low-rank adapted layers beside peft's: seconds forward and backward, and bytes kept for the backward.

    python benchmarks/lora.py                  # this machine as it is
    python benchmarks/lora.py --laptop         # as one without AVX-512 would run it
    python benchmarks/lora.py --compile        # with torch.compile of peft's layer as a further peer
    python benchmarks/lora.py --ffn            # a whole SwiGLU layer, all its maps adapted, in place of a linear one

The base is frozen and has a bias, dropout is on, rank 16, the input needs a gradient as inside a network. Both sides
run in one process, alternating, with gradients set to None before each round; the quotient is the median of the
rounds' quotients, with its quartiles. "peft" has adapters of the base's type, as ours; "peft default" leaves them in
fp32, as it does where the base is bf16. "products" are the base's matrix products alone, as torch takes them.
"""

import argparse
import os
import sys

if "--laptop" in sys.argv:  # read when torch is imported
    os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from feedfwd.ffn import GatedFFN
from feedfwd.ffn.lora import adapt

SIZES = [(4096, 512, 1408), (2048, 1024, 2816), (1024, 2048, 5632)]  # tokens, model width, hidden width
RANK, ALPHA, DROPOUT = 16, 32, 0.1


class Unpacked(nn.Module):
    """A SwiGLU layer as models have it that peft adapts."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def contenders(
    make_ours: Callable[[], nn.Module],
    make_theirs: Callable[[], nn.Module],
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> dict[str, nn.Module]:
    """The same adapted layer, ours and theirs, with B as if it were trained."""
    ours = nn.Sequential(make_ours()).to(dtype)
    adapt(ours, ["*"], rank=RANK, alpha=ALPHA, dropout=DROPOUT, method=options.method)
    made: dict[str, nn.Module] = {"feedfwd": ours.to(dtype)}

    def peft(adapters_in_fp32: bool) -> nn.Module:
        model = nn.Sequential(make_theirs()).to(dtype)
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        config = LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=DROPOUT,
            target_modules=linears,
            use_dora=options.method == "dora",
            use_rslora=options.method == "rslora",
        )
        return get_peft_model(model, config, autocast_adapter_dtype=adapters_in_fp32).base_model.model

    made["peft"] = peft(False)
    if dtype != torch.float32:
        made["peft default"] = peft(True)
    if options.compile:
        made["peft compiled"] = torch.compile(peft(False))
    for layer in made.values():
        for name, parameter in layer.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
    return made


def bytes_kept(layer: nn.Module, x: Tensor) -> int:
    """Of every storage that autograd keeps, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(size for at, size in sizes.items() if at not in own)


def rounds(runs: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of every run, alternating, each round beginning with another."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(count + 3):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[3:] for name, times in seconds.items()}


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None
    layer(x).backward(dy)


def products(x: Tensor, dy: Tensor, weights: list[Tensor]) -> None:
    """The products of the frozen base: through every weight and back."""
    for weight in weights:
        x = x[:, : weight.shape[1]] @ weight.t()
    for weight in reversed(weights):
        dy = torch.cat([dy, dy], 1) if dy.shape[1] < weight.shape[0] else dy
        dy = dy @ weight


def lines(options: argparse.Namespace) -> Iterator[str]:
    dtypes = [getattr(torch, name) for name in options.dtype or ["bfloat16", "float32"]]
    for dtype, (tokens, width, hidden), narrow in product(dtypes, SIZES, (False, True)):
        inputs, outputs = (hidden, width) if narrow else (width, hidden)
        torch.manual_seed(0)
        if options.ffn and narrow:
            continue
        if options.ffn:
            inputs = outputs = width
            what = f"SwiGLU {width} -> {hidden} -> {width}"
            ours, theirs = partial(GatedFFN, width, hidden, bias=True), partial(Unpacked, width, hidden)
            shapes = [(2 * hidden, width), (width, hidden)]
        else:
            what = f"{inputs} -> {outputs}"
            ours = theirs = partial(nn.Linear, inputs, outputs)
            shapes = [(outputs, inputs)]
        layers = contenders(ours, theirs, options, dtype)
        x = torch.randn(tokens, inputs, dtype=dtype, requires_grad=True)
        dy = torch.randn(tokens, outputs, dtype=dtype)
        weights = [torch.randn(shape).to(dtype) / shape[1] ** 0.5 for shape in shapes]
        runs: dict[str, Callable[[], object]] = {n: partial(step, layer, x, dy) for n, layer in layers.items()}
        seconds = rounds(runs | {"products": partial(products, x.detach(), dy, weights)}, options.rounds)
        kept = {name: bytes_kept(layer, x) / tokens for name, layer in layers.items() if "compiled" not in name}
        yield f"{str(dtype).removeprefix('torch.')}, {tokens} tokens, {what}"
        for name, times in seconds.items():
            low, middle, high = (1e3 * q for q in statistics.quantiles(times, n=4))
            text = f"  {name:<14}{middle:8.1f} ms ({low:.1f} to {high:.1f})"
            if name in kept:
                text += f"{kept[name]:10,.0f} bytes a token"
            if name.startswith("peft"):
                ratios = [theirs / ours for theirs, ours in zip(times, seconds["feedfwd"], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                text += f"   feedfwd is {middle:.2f} times as fast ({low:.2f} to {high:.2f})"
            yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--laptop", action="store_true", help="without AVX-512 and AMX")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], action="append")
    parser.add_argument("--method", choices=["lora", "rslora", "dora"], default="lora")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--compile", action="store_true", help="also compile peft's layer")
    parser.add_argument("--ffn", action="store_true", help="a whole SwiGLU layer")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    capability = "AVX2 (held back)" if options.laptop else torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {capability}, {options.method}")
    for line in lines(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
