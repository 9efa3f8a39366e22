"""How far a training is: the arithmetic that recipes print from, and how many updates fit into a given time."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from feedfwd.train.loop import Step

WINDOW = 50  # updates over which rates are taken


@dataclass(frozen=True, slots=True)
class Progress:
    """What can be said after an update."""

    step: int
    total: int
    loss: float  # smoothed
    lr: float
    examples_per_second: float  # of training alone, over the last updates; nan before there are two
    eta: float  # seconds to the last update, with what is likely to be spent aside; nan before there are two

    def __str__(self) -> str:
        rate = "" if math.isnan(self.examples_per_second) else f"  {self.examples_per_second:,.0f} examples/s"
        eta = "" if math.isnan(self.eta) else f"  {clock(self.eta)} left"
        return f"loss {self.loss:.4f}{rate}{eta}"


@dataclass
class Meter:
    """Takes in every `Step` and works out a `Progress` when asked.

    `update` costs a microsecond: losses are read from the device only in `read`, all that have come in at once.

    >>> ticks = iter([0.0, 1.0, 2.0])
    >>> meter = Meter(total=10, now=lambda: next(ticks))
    >>> for n in (1, 2):
    ...     meter.update(Step(n=n, loss=torch.tensor(0.5), lr=0.1, examples=32, grad_norm=None))
    >>> str(meter.read())
    'loss 0.5000  32 examples/s  8 s left'
    """

    total: int
    smoothing: float = 0.95  # how much of the smoothed loss is kept at each update
    now: Callable[[], float] = time.perf_counter
    aside: float = field(default=0.0, init=False)  # seconds spent on evaluation, saving and the like

    def __post_init__(self) -> None:
        self._last: Step | None = None
        self._times: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)  # (training seconds, examples so far)
        self._losses: list[Tensor] = []
        self._sum = self._weight = 0.0
        self._examples = 0
        self._first: int | None = None
        self._started = self.now()

    def update(self, step: Step) -> None:
        """Take in an update that has just been done."""
        if self._first is None:
            self._first = step.n - 1
        self._last = step
        self._examples += step.examples
        self._times.append((self.now() - self._started - self.aside, self._examples))
        self._losses.append(step.loss)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is no training time."""
        begun = self.now()
        try:
            yield
        finally:
            self.aside += self.now() - begun

    def read(self) -> Progress:
        """The state after the last update."""
        assert self._last is not None and self._first is not None, "nothing to read before the first update"
        if self._losses:
            for loss in torch.stack(self._losses).tolist():
                self._sum = self.smoothing * self._sum + (1 - self.smoothing) * loss
                self._weight = self.smoothing * self._weight + (1 - self.smoothing)
            self._losses.clear()
        (begun, before), (ended, after) = self._times[0], self._times[-1]
        spans = len(self._times) - 1
        rate = (after - before) / (ended - begun) if spans and ended > begun else math.nan
        per_step = (ended - begun) / spans if spans else math.nan
        share = 1 + self.aside / ended if ended > 0 else 1.0
        eta = per_step * (self.total - self._last.n) * share
        return Progress(self._last.n, self.total, self._sum / self._weight, self._last.lr, rate, eta)


def clock(seconds: float) -> str:
    """
    >>> clock(8.2), clock(200), clock(7322)
    ('8 s', '3:20 min', '2:02 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def typical(durations: Sequence[float], warmup: int) -> float:
    """Seconds an update takes: the median after the first `warmup`, which allocate, compile and fill caches.

    >>> typical([9.0, 1.0, 1.2, 1.1, 5.0], warmup=1)
    1.15
    """
    return statistics.median(durations[warmup:] or durations)


def plan_steps(
    seconds: float, *, per_step: float, per_evaluation: float = 0.0, evaluations: int = 0, reserve: float = 0.05
) -> int:
    """How many updates fit into `seconds`, beside so many evaluations, with a share kept in reserve; at least 1.

    >>> plan_steps(60, per_step=0.01, per_evaluation=0.5, evaluations=10)
    5200
    """
    left = seconds * (1 - reserve) - evaluations * per_evaluation
    return max(1, int(left / per_step + 1e-9))
