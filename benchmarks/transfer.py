"""Width transfer: loss against learning rate for several widths, the standard start beside mup, on MNIST or on text.

    OMP_NUM_THREADS=1 python benchmarks/transfer.py --data FOLDER [--text] [--optimizer adam] [--seeds 3] [--svg FILE]

FOLDER holds mnist/ (IDX files) or, for --text, shakespeare/input.txt. A network 784-w-w-w-10 sees batches of 64 images;
a Transformer of two layers, w wide, batches of 8 rows of 64 characters. Each is seen once, at a constant rate; the
score is the mean loss of the last quarter of `--steps` batches, before their updates, so on unseen examples. Every rate
of a grid of factor 2 is tried for every width, start and seed. Printed: the best rate of each width, and what the width
reaches at the narrowest one's best rate.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import time
from pathlib import Path

import torch

from feedfwd.data.batches import TensorBatches
from feedfwd.data.preprocess import Preprocessor
from feedfwd.data.readers import load
from feedfwd.errors import TrainingError
from feedfwd.ffn import FFNSpec
from feedfwd.models.mlp import MLP
from feedfwd.models.transformer import Transformer
from feedfwd.train.cross_entropy import Gradients
from feedfwd.train.loop import autograd, train
from feedfwd.train.losses import build_loss
from feedfwd.train.optimizers import build_optimizer

STARTS = {"standard": "auto", "mup": "mup"}
RATES = {"adam": range(-13, -3), "adamw": range(-13, -3), "muon": range(-12, -2), "sgd": range(-9, 3)}  # powers of 2
IMAGES, ROWS, ROW, HEAD = 64, 8, 64, 16  # of a batch, and tokens of a row; width of a head

Tensors = tuple[torch.Tensor, torch.Tensor]
Curves = dict[str, dict[int, dict[float, list[float]]]]  # losses of the seeds by start, width and rate


def images(folder: Path) -> Tensors:
    """Standardised pixels (N, 784) and digits (N,)."""
    raw, _ = load("mnist", data_dir=folder)
    preprocess = Preprocessor.fit(raw)
    return preprocess.inputs(raw.inputs), preprocess.targets(raw)


def rows(folder: Path) -> Tensors:
    """Rows of characters (N, ROW), and of those that follow."""
    text = (folder / "shakespeare" / "input.txt").read_text()
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([number[character] for character in text])
    count = (len(ids) - 1) // ROW
    return ids[: count * ROW].view(count, ROW), ids[1 : count * ROW + 1].view(count, ROW)


def network(data: Tensors, width: int, init: str, options: argparse.Namespace) -> MLP | Transformer:
    """At the narrowest width mup is the standard start."""
    outputs, base = int(data[1].max()) + 1, options.widths[0]
    if not options.text:
        return MLP([784, *[width] * 3, outputs], init=init, base_width=base)
    ffn = FFNSpec(activation="swiglu", bias=False, init=init)
    return Transformer(
        outputs, width=width, depth=2, heads=width // HEAD, hidden=2 * width, ffn=ffn, context=ROW, base_width=base
    )


def loss_of(data: Tensors, width: int, init: str, rate: float, seed: int, options: argparse.Namespace) -> float:
    """Mean loss of the last quarter of the batches; infinite where training broke off."""
    torch.manual_seed(seed)
    model = network(data, width, init, options)
    optimizer = build_optimizer(model, options.optimizer, rate, growth=model.growth)
    batches = TensorBatches(*data, ROWS if options.text else IMAGES, seed=seed)
    gradients = Gradients() if options.text else autograd
    steps = train(model, batches, build_loss("cross_entropy"), optimizer, steps=options.steps, gradients=gradients)
    try:
        losses = [float(step.loss) for step in steps]
    except TrainingError:
        return math.inf
    return statistics.mean(losses[-len(losses) // 4 :])


def measure(options: argparse.Namespace) -> Curves:
    data = (rows if options.text else images)(options.data)
    rates = [2.0**power for power in RATES[options.optimizer]]
    found: Curves = {}
    for start, width in itertools.product(STARTS, options.widths):
        began = time.perf_counter()
        curve = {
            rate: [loss_of(data, width, STARTS[start], rate, seed, options) for seed in range(options.seeds)]
            for rate in rates
        }
        found.setdefault(start, {})[width] = curve
        best = min(curve, key=lambda rate: statistics.mean(curve[rate]))
        print(
            f"  {start:8} {width:5}: best rate 2^{math.log2(best):.0f} ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
    return found


def show(found: Curves) -> None:
    """The table of the page."""
    print("\n| start | width | best rate | loss there (standard deviation) | at the narrowest width's best rate |")
    print("|---|---|---|---|---|")
    for start, by_width in found.items():
        taken = None
        for width, curve in by_width.items():
            best = min(curve, key=lambda rate: statistics.mean(curve[rate]))
            taken = best if taken is None else taken
            spread = statistics.stdev(curve[best]) if len(curve[best]) > 1 else math.nan
            there, here = statistics.mean(curve[best]), statistics.mean(curve[taken])
            print(f"| {start} | {width} | 2^{math.log2(best):.0f} | {there:.3f} ({spread:.3f}) | {here:.3f} |")


def draw(found: Curves, options: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "transfer"  # the same picture, the same file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(8, 3.4), sharey=True, layout="constrained")
    every = [statistics.mean(losses) for by in found.values() for curve in by.values() for losses in curve.values()]
    top = 3 * min(every)
    for axis, (start, by_width) in zip(axes, found.items(), strict=True):
        for i, (width, curve) in enumerate(by_width.items()):
            color = plt.get_cmap("viridis")(0.9 * i / max(1, len(by_width) - 1))
            means = [statistics.mean(losses) for losses in curve.values()]
            axis.plot(list(curve), means, color=color, label=str(width), linewidth=1.4)
            low = min(range(len(means)), key=means.__getitem__)
            axis.plot([list(curve)[low]], [means[low]], "o", color=color, markersize=5)
        axis.set(xscale="log", xlabel="learning rate", ylim=(0.9 * min(every), top), title=f"ffn.init={STARTS[start]}")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(f"loss, {'Shakespeare' if options.text else 'MNIST'}, {options.optimizer}")
    axes[-1].legend(title="width", fontsize=8)
    figure.savefig(options.svg, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("FEEDFWD_DATA"))
    parser.add_argument("--text", action="store_true", help="a Transformer on characters")
    parser.add_argument("--optimizer", choices=RATES, default="adam")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data FOLDER, or FEEDFWD_DATA, must name the folder that holds the data")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.optimizer}, {options.steps} updates")
    found = measure(options)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found))
    if options.svg:
        draw(found, options)


if __name__ == "__main__":
    main()
