"""An update of small plain networks: feedfwd's loop beside nn.Sequential with torch.optim.Adam, alternating in one run.

    python benchmarks/small.py [--rounds 9] [--both] [--widths 32 64 128 256] [--batches 16 64 256]

Each network has 64 or 784 inputs, two hidden layers with ReLU and 10 outputs, in fp32. A round does as many updates on
each side as take about .1 s: a batch drawn at random from 20,000 examples, loss, gradients, Adam, and a look at whether
the loss is finite. Torch's Adam runs as it comes (foreach) and fused; the ratio is to the faster. `--both` adds the
column of a machine without AVX-512 and bf16 products.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice, pairwise

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
EXAMPLES = 20_000


def sequential(sizes: list[int], x, y, n: int, fused: bool) -> Callable[[int], None]:
    """What one writes by hand, at its best: data in memory, one index an update."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused or None), nn.CrossEntropyLoss()

    def updates(count: int) -> None:
        order, at = torch.randperm(len(x)), 0
        for _ in range(count):
            if at + n > len(order):
                order, at = torch.randperm(len(x)), 0
            rows = order[at : at + n]
            at += n
            optimizer.zero_grad()
            loss = criterion(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            if not loss.isfinite():
                raise ArithmeticError

    return updates


def feedfwd(sizes: list[int], x, y, n: int) -> Callable[[int], None]:
    from feedfwd.data.batches import TensorBatches
    from feedfwd.models.mlp import MLP
    from feedfwd.models.mlp_fast import FastMLP
    from feedfwd.train.lean import LeanAdam
    from feedfwd.train.loop import train
    from feedfwd.train.losses import build_loss
    from feedfwd.train.output_gradients import output_gradient

    model, loss = MLP(sizes), build_loss("cross_entropy")
    fast = FastMLP(model, output_gradient(loss))
    steps = train(
        model,
        TensorBatches(x, y, n, drop_last=True),
        loss,
        LeanAdam(fast.flat, 1e-3),
        steps=sys.maxsize,
        gradients=fast.gradients,
    )

    def updates(count: int) -> None:
        for _ in islice(steps, count):
            pass

    return updates


def measure(options: argparse.Namespace) -> None:
    import torch

    print(
        "| inputs, width, batch | feedfwd, µs | Sequential, µs | with fused Adam, µs | ratio |\n|---|---|---|---|---|"
    )
    for inputs in (64, 784):
        x, y = torch.rand(EXAMPLES, inputs), torch.randint(0, 10, (EXAMPLES,))
        for width in options.widths:
            for n in options.batches:
                sizes = [inputs, width, width, 10]
                sides = [
                    feedfwd(sizes, x, y, n),
                    sequential(sizes, x, y, n, fused=False),
                    sequential(sizes, x, y, n, fused=True),
                ]
                counts = []
                for updates in sides:
                    updates(20)
                    began = time.perf_counter()
                    updates(20)
                    counts.append(max(20, int(2 / (time.perf_counter() - began))))
                taken: list[list[float]] = [[] for _ in sides]
                for _ in range(options.rounds):
                    for times, updates, count in zip(taken, sides, counts, strict=True):
                        began = time.perf_counter()
                        updates(count)
                        times.append((time.perf_counter() - began) / count * 1e6)
                ratios = sorted(ours / min(theirs) for ours, *theirs in zip(*taken, strict=True))
                low, _, high = statistics.quantiles(ratios, n=4)
                medians = " | ".join(f"{statistics.median(times):.0f}" for times in taken)
                spread = f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"
                print(f"| {inputs}, {width}, {n} | {medians} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--both", action="store_true", help="also as a machine without AVX-512 and bf16 products")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    options = parser.parse_args()
    measure(options)
    if options.both:
        print("\nwithout AVX-512 and bf16:\n", flush=True)
        words = [word for word in sys.argv[1:] if word != "--both"]
        subprocess.run([sys.executable, __file__, *words], env=os.environ | AVX2, check=True)


if __name__ == "__main__":
    main()
