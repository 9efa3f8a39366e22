"""Watching a training for what feed-forward networks are known to suffer from, and saying what to do about it.

Their weaknesses are the start (units that never fire or are saturated, activations that grow or fade with depth), the
gradient on its way through many layers, and the scale of the inputs; a training itself can stand still, climb, or learn
its examples by heart. A few times in a run `Health` passes a small batch through the network and looks at the gradients
and at what one update changes; in between it only keeps the losses. What it finds it says once, with advice.

Nothing here moves the training: the probe runs in evaluation mode, draws nothing and leaves gradients alone, so a run
with `train.health=false` ends in the same bits.

M examples or tokens of the probe, U units of a layer, F values that the first layer sees
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from feedfwd.ffn import plain
from feedfwd.ffn.activations import ACTIVATIONS
from feedfwd.ffn.gated import GatedLinear
from feedfwd.train.loop import Step

CHECKUPS = (0.0, 0.03, 0.1, 0.3, 0.6, 1.0)  # when, as shares of the updates
SETTLED = 0.03  # from here on gradients and updates are judged: a start from zeros needs a moment
PROBE, TOKENS = 128, 1024  # examples of the probe, and tokens where an example is a row of them
SAMPLE = 1 << 16  # entries of a matrix by which its change is judged
LOSSES = ("loss", "log_loss", "rmse")  # of the validation scores, the one that training lowers

IDLE, FLAT = 1e-3, 0.05  # slope below which a unit passes nothing on; share of the steepest that counts as saturated
MANY = 0.5  # share of a layer's units that makes a finding
LARGE_INPUT, SMALL_INPUT = 30.0, 0.01  # root mean square, where a start by Xavier or He assumes 1
GROWN = 1e3  # of activations from the first hidden layer to the last, either way
FADED, EXPLODED = 1e-4, 1e4  # of the first layer's gradient by the last's
RASH, IDLE_UPDATE = 0.3, 1e-8  # what one update changes, by the weights' size
CLIMBED = 1.5  # loss by what it began with
STILL = 0.9  # of what it began with: a loss below has fallen, however noisy it is
WORSE = 1.2  # held-out loss by its best
OUTLIERS = 12  # held-out losses as large as the first that a few examples may add up to
JUDGED = 30  # held-out examples from which on the answers to them are judged
PEAK = 0.1  # of the highest rate so far: below it, updates are small on purpose

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


def _sample(parameter: Tensor) -> Tensor:
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


def fallen(first: Sequence[float], last: Sequence[float]) -> bool:
    """Whether the losses of some updates lie below those of earlier ones by more than twice the standard error.

    >>> fallen([2.3, 2.31, 2.29, 2.3], [2.0, 1.9, 2.1, 1.95]), fallen([2.3, 2.31, 2.29, 2.3], [2.3, 2.29, 2.3, 2.31])
    (True, False)
    """
    error = math.sqrt(sum(statistics.variance(part) / len(part) for part in (first, last)))
    return statistics.fmean(first) - statistics.fmean(last) > 2 * error


# --- the watch --------------------------------------------------------------------------------------------------------


@dataclass
class Health:
    """Takes in every `Step` and every validation score, and gives what there is to say about them.

    `probe` is a batch's inputs (N, ...), of which a part is used; `held_out` the number of examples behind a validation
    score. `state_dict` is what a resumed run goes on with.
    """

    model: nn.Module
    probe: Tensor
    held_out: int = 1
    stops_early: bool = False  # then learning by heart is seen to already
    autocast: AbstractContextManager[Any] = field(default_factory=nullcontext)
    findings: list[Finding] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        n = PROBE if self.probe.is_floating_point() else max(1, TOKENS // max(1, self.probe[0].numel()))
        self.probe = self.probe[:n].clone()
        self._matrices = matrices(self.model)
        self._before: dict[str, Tensor] = {}
        self._unread: list[Tensor] = []
        self._losses: list[float] = []  # since this process began
        self._first: list[float] = []
        self._highest = 0.0  # rate
        self._total, self._due, self._awaited = 0, set[int](), set[int]()
        self._validation: list[tuple[int, float]] = []

    def update(self, step: Step, total: int) -> tuple[Checkup | None, list[Finding]]:
        """Take in an update just done, of `total`; a checkup where one is due, and what is new."""
        self._unread.append(step.loss)
        if step.lr > self._highest:
            self._highest = step.lr
        if self._total != total:  # it may change on the way
            self._total, self._due = total, {max(2, round(share * total)) for share in CHECKUPS}
            self._awaited = self._due | {n - 1 for n in self._due}
        if step.n not in self._awaited:
            return None, []
        found: Checkup | None = None
        new: list[Finding] = []
        if step.n in self._due and self._before:
            found = self._look(step.n)
            settled = step.n >= max(5, SETTLED * total)
            decayed = step.lr < PEAK * self._highest
            new = [*judge(found, step.lr, settled=settled, decayed=decayed), *self._course(step, total)]
        self._before = {}
        if step.n + 1 in self._due:
            self._before = {name: _sample(p).clone() for name, p in self._matrices.items()}
        return found, self._new(new)

    def validated(self, step: int, scores: Mapping[str, float]) -> list[Finding]:
        """Take in the scores of what is held back."""
        name = next((name for name in LOSSES if name in scores), None)
        if name is None or not math.isfinite(scores[name]):
            return []
        self._validation.append((step, scores[name]))
        worthless = self._worthless(step, scores, "held-out answers", self.held_out)
        return self._new([*worthless, *self._by_heart(step, scores[name])])

    def tested(self, step: int, scores: Mapping[str, float], examples: int) -> list[Finding]:
        """Take in the scores of so many test examples, where nothing was held back; they choose nothing."""
        return self._new([*self._worthless(step, scores, "answers to the test part", examples)])

    def _worthless(self, step: int, scores: Mapping[str, float], which: str, examples: int) -> Iterator[Finding]:
        """Whether, when all is done, an answer that looks at no input would do as well."""
        if step != self._total or step < 40 or examples < JUDGED:
            return
        r2, auroc = scores.get("r2", math.nan), scores.get("auroc", math.nan)
        if r2 < 0:
            what = f"worse than the mean of the targets (R² {r2:.2g})"
        elif auroc < 0.5 + 1 / math.sqrt(examples):  # 1.7 standard errors of balanced classes
            what = f"no better than chance (AUROC {auroc:.2f})"
        else:
            return
        yield Finding(
            "worthless",
            f"the {which} are {what}",
            "see that the targets belong to the inputs and can be told from them; try another optimizer.lr, or more "
            "updates",
            step,
        )

    def _by_heart(self, step: int, loss: float) -> Iterator[Finding]:
        best_step, best = min(self._validation, key=lambda pair: pair[1])
        if self.stops_early or len(self._validation) < 4 or loss < WORSE * best:
            return
        self._read()
        if len(self._losses) < 20:
            return
        began, now = statistics.fmean(self._first), statistics.fmean(self._losses[-10:])
        # a few examples of a small part can do as much
        noise = began * max(2 / math.sqrt(self.held_out), OUTLIERS / self.held_out)
        if loss < max(WORSE * best, best + noise) or now > min(0.5 * began, 0.8 * loss):
            return
        yield Finding(
            "by heart",
            f"it learns its examples by heart: the held-out loss rose from {best:.3g} (step {best_step:,}) to "
            f"{loss:.3g}, that in training fell to {now:.3g}",
            "stop where it was best (train.patience=3), train for less, or take more dropout, weight decay "
            "or data; see that the labels belong to the examples",
            step,
        )

    def _look(self, n: int) -> Checkup:
        with self.autocast:
            inputs, units = examine(self.model, self.probe)
        found = []
        for name, p in self._matrices.items():
            if p.grad is not None and not p.grad.is_sparse and name in self._before:
                before = self._before[name]
                size = float(before.norm())
                change = float((_sample(p) - before).norm()) / size if size > 0 else 0.0
                found.append(Matrix(name, float(p.grad.norm()), change))
        return Checkup(n, inputs, units, found)

    def _course(self, step: Step, total: int) -> Iterator[Finding]:
        """Whether the loss falls, by all its values so far."""
        self._read()
        few = max(5, total // 20)
        if step.n < 0.4 * total or step.n < 40 or len(self._losses) < few or len(self._first) < 5:
            return
        recent = self._losses[-few:]
        first, last = statistics.fmean(self._first), statistics.fmean(recent)
        if last > CLIMBED * first and first > 0:
            yield Finding(
                "climbed",
                f"the loss climbed from {first:.3g} to {last:.3g}",
                f"take a third of optimizer.lr ({step.lr:.3g} at this step), a longer schedule.warmup, or train.clip=1",
                step.n,
            )
        elif last > STILL * first and not fallen(self._first, recent):
            yield Finding(
                "plateau",
                f"the loss {'stands still' if last < 1.05 * first else 'does not fall'}: {first:.4g} at first, "
                f"{last:.4g} over the last {few} updates",
                f"try ten times and a tenth of optimizer.lr ({step.lr:.3g} at this step), and see that the targets "
                "belong to the inputs",
                step.n,
            )

    def _read(self) -> None:
        """The losses that have come in since, from the device at once."""
        if self._unread:
            self._losses += torch.stack(self._unread).float().tolist()
            self._unread.clear()
        if len(self._first) < 20:
            self._first = self._losses[:20]

    def _new(self, findings: list[Finding]) -> list[Finding]:
        known = {finding.kind.split()[0] for finding in self.findings}
        new = [finding for finding in findings if finding.kind.split()[0] not in known]
        new = list({finding.kind.split()[0]: finding for finding in reversed(new)}.values())[::-1]
        self.findings += new
        return new

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "first": self._first,
            "highest": self._highest,
            "validation": self._validation,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        self._first, self._highest = list(state["first"]), state["highest"]
        self._validation = [(step, loss) for step, loss in state["validation"]]
        self.findings = [Finding(**finding) for finding in state["findings"]]
        return self
