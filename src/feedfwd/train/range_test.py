"""The learning-rate range test: which peak rate to take, found by trying all of them within a hundred updates."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from feedfwd.data.batches import Batch
from feedfwd.errors import TrainingError
from feedfwd.train.loop import train
from feedfwd.train.losses import Loss
from feedfwd.train.optimizers import Optimizer
from feedfwd.train.precision import FP32, Precision

SMOOTHING = 0.9  # how much of the smoothed loss is kept at each update
FIRST = 10  # updates that tell the loss before anything is learnt
DIVERGED = 2.0  # times the highest of these first losses: the end of the test


class RangeTest(NamedTuple):
    lr: float  # suggested peak rate
    lrs: list[float]  # rates tried, rising
    losses: list[float]  # smoothed loss after an update at each


def suggest_lr(
    model: nn.Module,
    batches: Iterator[Batch],
    loss: Loss,
    make_optimizer: Callable[[nn.Module, float], Optimizer],
    *,
    low: float = 1e-6,
    high: float = 10.0,
    updates: int = 120,
    precision: Precision = FP32,
) -> RangeTest:
    """A peak rate for training `model`, from one short training whose rate rises exponentially from `low` to `high`.

    Smith 2017, arXiv 1506.01186. The suggestion is the rate at which the smoothed loss is lowest, divided by ten: at that
    rate itself progress already stops, and a schedule stays near its peak for long. Works on a copy: the model and torch's
    global generators are as before. The same arguments give the same suggestion. TrainingError where the loss is not
    finite even at `low`.
    """
    trial = copy.deepcopy(model)
    ratio = (high / low) ** (1 / (updates - 1))
    lrs: list[float] = []
    losses: list[float] = []
    mean, weight = 0.0, 0.0
    with torch.random.fork_rng():
        steps = train(
            trial,
            batches,
            loss,
            make_optimizer(trial, low),
            steps=updates,
            schedule=lambda n: ratio**n,
            precision=precision,
        )
        try:
            for step in steps:
                mean = SMOOTHING * mean + (1 - SMOOTHING) * float(step.loss)
                weight = SMOOTHING * weight + (1 - SMOOTHING)
                lrs.append(step.lr)
                losses.append(mean / weight)
                if len(losses) > FIRST and losses[-1] > DIVERGED * max(losses[:FIRST]):
                    break
        except TrainingError:
            if not losses:
                raise
    return RangeTest(_suggested(lrs, losses), lrs, losses)


def _suggested(lrs: list[float], losses: list[float]) -> float:
    """A tenth of the rate where the loss is lowest, to two digits."""
    lr = lrs[min(range(len(losses)), key=losses.__getitem__)] / 10
    digits = 1 - math.floor(math.log10(lr))
    return round(lr, digits)
