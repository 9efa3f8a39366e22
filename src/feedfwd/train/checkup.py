"""A look at a network during training, and what it shows: units, gradients, updates, and the scale of the inputs.

M examples or tokens of the probe, U units of a layer, F values that the first layer sees
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from feedfwd.ffn import plain
from feedfwd.ffn.activations import ACTIVATIONS
from feedfwd.ffn.gated import GatedLinear

SAMPLE = 1 << 16  # entries of a matrix by which its change is judged
IDLE, FLAT = 1e-3, 0.05  # slope below which a unit passes nothing on; share of the steepest that counts as saturated
MANY = 0.5  # share of a layer's units that makes a finding
LARGE_INPUT, SMALL_INPUT = 30.0, 0.01  # root mean square, where a start by Xavier or He assumes 1
GROWN = 1e3  # of activations from the first hidden layer to the last, either way
FADED, EXPLODED = 1e-4, 1e4  # of the first layer's gradient by the last's
RASH, IDLE_UPDATE = 0.3, 1e-8  # what one update changes, by the weights' size

_KINDS = tuple({type(make()) for name, make in ACTIVATIONS.items() if name != "identity"})
_NAMES = {type(make()): name for name, make in ACTIVATIONS.items()}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, in words, and what to do about it."""

    kind: str
    finding: str
    advice: str
    step: int

    def __str__(self) -> str:
        return f"{self.finding}: {self.advice}"


@dataclass(frozen=True, slots=True)
class Units:
    """A layer's activations over the probe."""

    layer: str  # the module's path
    activation: str
    units: int
    dead: float  # share of units that pass nothing on, for any example
    saturated: float  # share of units of a bounded σ that are nearly flat for nearly all examples
    scale: float  # root mean square of σ(z)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix and what an update does to it."""

    name: str
    gradient: float  # norm
    change: float  # ‖ΔW‖ / ‖W‖ by one update


@dataclass(frozen=True, slots=True)
class Checkup:
    """All that is looked at after one update."""

    step: int
    inputs: list[float]  # root mean square of each value that the first layer sees; empty for tokens
    units: list[Units]
    matrices: list[Matrix]

    @property
    def ratio(self) -> float | None:
        """Norm of the first matrix' gradient by the last's; None where there are fewer than three."""
        if len(self.matrices) < 3 or self.matrices[-1].gradient == 0:
            return None
        return self.matrices[0].gradient / self.matrices[-1].gradient

    def event(self) -> dict[str, Any]:
        """For the log."""
        inputs = {"largest": max(self.inputs), "mean": rms(self.inputs)} if self.inputs else None
        rows = {"layers": [asdict(u) for u in self.units], "matrices": [asdict(m) for m in self.matrices]}
        return {"event": "health", "step": self.step, "inputs": inputs, **rows, "gradient_ratio": self.ratio}


# --- looking ----------------------------------------------------------------------------------------------------------


def examine(model: nn.Module, inputs: Tensor) -> tuple[list[float], list[Units]]:
    """What the first layer sees, by value, and what each activation makes of it; nothing of the model is changed.

    >>> seen, (layer,) = examine(nn.Sequential(nn.Linear(2, 8), nn.ReLU()), torch.full((4, 2), 3.0))
    >>> seen, layer.units, layer.activation
    ([3.0, 3.0], 8, 'relu')
    """
    seen: list[float] = []
    units: dict[nn.Module, Units] = {}
    names = {module: name for name, module in model.named_modules()}

    def first(module: nn.Module, given: tuple[Any, ...]) -> None:
        if not seen:
            seen.extend(given[0].detach().float().flatten(0, -2).square().mean(0).sqrt().tolist())

    def after(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        if module not in units:
            units[module] = _units(names[module].rpartition(".")[0] or names[module], module, given[0])

    hooks = [m.register_forward_hook(after) for m in names if isinstance(m, _KINDS)]
    if inputs.is_floating_point():
        hooks += [m.register_forward_pre_hook(first) for m in names if isinstance(m, nn.Linear | GatedLinear)]
    try:
        with _evaluating(model), plain(), torch.no_grad():  # the kernels keep activations to themselves
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, list(units.values())


def _units(name: str, activation: nn.Module, z: Tensor) -> Units:
    z_MU = z.detach().float().flatten(0, -2).requires_grad_()
    with torch.enable_grad(), torch.autocast(z.device.type, enabled=False):
        a_MU = activation.forward(z_MU)
        (slope_MU,) = torch.autograd.grad(a_MU.sum(), z_MU)
    slope_MU.abs_()
    steepest = _steepest(activation)
    dead = saturated = 0.0
    if steepest is None:
        dead = float((slope_MU < IDLE).all(0).float().mean())
    else:
        saturated = float(((slope_MU < FLAT * steepest).float().mean(0) > 1 - FLAT).float().mean())
    scale = float(a_MU.detach().square().mean().sqrt())
    return Units(name, _NAMES[type(activation)], z_MU.shape[1], dead, saturated, scale)


def _steepest(activation: nn.Module) -> float | None:
    """The largest slope of a bounded σ; None of one that isn't bounded."""
    return {nn.Sigmoid: 0.25, nn.Tanh: 1.0}.get(type(activation))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, each part going back to its own afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained as a matrix, in the order of the forward pass; embeddings are looked up and left out."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    return {name: p for name, p in model.named_parameters() if p.ndim == 2 and p.requires_grad and id(p) not in tables}


def sample(parameter: Tensor) -> Tensor:
    """The entries by which a matrix' change is judged."""
    flat = parameter.detach().flatten()
    return flat[:: -(-len(flat) // SAMPLE)]


def rms(values: Sequence[float]) -> float:
    """
    >>> rms([3.0, 4.0]) == math.sqrt(12.5)
    True
    """
    return math.sqrt(statistics.fmean(value * value for value in values))


# --- judging: pure functions ------------------------------------------------------------------------------------------


def judge(checkup: Checkup, lr: float, *, settled: bool = True, decayed: bool = False) -> Iterator[Finding]:
    """What a checkup shows, at the rate `lr`.

    `settled`: some updates have been done, so that a start from zeros has passed. `decayed`: the rate is far below what
    it was, and updates are small on purpose.
    """
    if not settled:  # what a layer sees of embeddings moves with them later on
        yield from _inputs(checkup)
    yield from _layers(checkup, lr)
    if settled:
        yield from _gradients(checkup)
        if not decayed:
            yield from _updates(checkup, lr)


def _inputs(c: Checkup) -> Iterator[Finding]:
    if not c.inputs:
        return
    largest, mean = max(c.inputs), rms(c.inputs)
    if largest > LARGE_INPUT:
        where = c.inputs.index(largest)
        yield Finding(
            "inputs",
            f"value {where + 1} of {len(c.inputs)} that the first layer sees is about {largest:,.0f} in size, "
            f"the median {statistics.median(c.inputs):,.3g}",
            "scale the inputs to mean 0 and deviation 1",
            c.step,
        )
    elif mean < SMALL_INPUT:
        yield Finding(
            "inputs",
            f"what the first layer sees is about {mean:.2g} in size",
            "scale the inputs to mean 0 and deviation 1",
            c.step,
        )


def _layers(c: Checkup, lr: float) -> Iterator[Finding]:
    for number, layer in enumerate(c.units, 1):
        who = f"layer {number} of {len(c.units)} ({layer.layer})" if layer.layer else f"layer {number}"
        if layer.dead >= MANY:
            yield Finding(
                f"dead {number}",
                f"{who}: {layer.dead:.0%} of its {layer.units} {layer.activation} units never fire",
                f"halve optimizer.lr ({lr:.3g} at this step), take ffn.activation=leaky_relu or ffn.init=auto",
                c.step,
            )
        if layer.saturated >= MANY:
            yield Finding(
                f"saturated {number}",
                f"{who}: {layer.saturated:.0%} of its {layer.units} {layer.activation} units are saturated",
                "take ffn.activation=relu or gelu, ffn.init=auto, and scale the inputs",
                c.step,
            )
    if len(c.units) > 1:
        first, last = c.units[0].scale, c.units[-1].scale
        if first > 0 and not 1 / GROWN < last / first < GROWN:
            how = "grow" if last > first else "fade"
            yield Finding(
                f"activations {how}",
                f"activations {how} with depth: {first:.2g} in size in the first hidden layer, {last:.2g} in the last",
                "take ffn.init=auto, or normalise the layers (model.norm=layer)",
                c.step,
            )


def _gradients(c: Checkup) -> Iterator[Finding]:
    if (ratio := c.ratio) is None or FADED < ratio < EXPLODED:
        return
    first, last = c.matrices[0].name, c.matrices[-1].name
    if ratio <= FADED:
        much = f"1/{1 / ratio:,.0f} of" if ratio > 0 else "zero beside"
        yield Finding(
            "vanishing",
            f"the gradient vanishes on its way: in {first} it is {much} that in {last}",
            "take ffn.activation=relu or gelu with ffn.init=auto, model.residual=true, or fewer layers",
            c.step,
        )
    else:
        yield Finding(
            "exploding",
            f"the gradient explodes on its way: in {first} it is {ratio:,.0f} times that in {last}",
            "take ffn.init=auto, model.norm=layer, or bound it with train.clip=1",
            c.step,
        )


def _updates(c: Checkup, lr: float) -> Iterator[Finding]:
    if not c.matrices:
        return
    change = statistics.median(m.change for m in c.matrices)
    if change > RASH:
        yield Finding(
            "rash",
            f"one update changes a typical matrix by {change:.0%} of its size",
            f"take a tenth of optimizer.lr ({lr:.3g} at this step)",
            c.step,
        )
    elif lr > 0 and change < IDLE_UPDATE:
        yield Finding(
            "idle",
            f"one update changes a typical matrix by {change:.1g} of its size: next to nothing",
            f"raise optimizer.lr ({lr:.3g} at this step), and see that the layers pass their gradient on",
            c.step,
        )
