"""The training loop: a generator that does one update, yields what came of it, and knows nothing of what follows.

The caller's `for` body logs, evaluates, saves and stops. At every yield the loop stands between two updates: model,
optimizer, averages, batches and generators together are a state to resume from with `start`. `.grad` then still holds
the gradients of the update just done.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from feedfwd.data.batches import Batch
from feedfwd.errors import DataError
from feedfwd.train.averaging import EMA
from feedfwd.train.finite import Watch, clip_norm, diagnose, stopped
from feedfwd.train.losses import Loss
from feedfwd.train.optimizers import Optimizer
from feedfwd.train.precision import FP32, Precision
from feedfwd.train.schedules import Schedule


@dataclass(frozen=True, slots=True)
class Step:
    """One update, done."""

    n: int  # updates done so far: the first is 1
    loss: Tensor  # mean over the effective batch, before the update; without axes, detached, on the model's device
    lr: float  # rate of the first parameter group
    examples: int
    grad_norm: Tensor | None  # over all parameters, before clipping; None where no clipping was asked for


# (model, batch, loss, total weight) -> this batch's share of the mean loss; adds its gradients to every `.grad`
Gradients = Callable[[nn.Module, Batch, Loss, Tensor | float], Tensor]


def autograd(model: nn.Module, batch: Batch, loss: Loss, total_weight: Tensor | float) -> Tensor:
    """The plain way to the gradients; a faster one may take its place in `train`.

    The mean's derivative by each element's loss is known, so the backward pass starts from there.
    """
    losses = loss(model(batch.inputs), batch.targets)
    shares = shares_of(losses, batch.weights, total_weight)
    if torch.is_autocast_enabled(losses.device.type):  # a forward matter: what ran in fp32 has its gradient in fp32
        with torch.autocast(losses.device.type, enabled=False):
            torch.autograd.backward(losses, shares)
    else:
        torch.autograd.backward(losses, shares)
    return (losses.detach() * shares).sum()


def shares_of(losses: Tensor, weights: Tensor | None, total_weight: Tensor | float) -> Tensor:
    """What each element's loss counts in the mean: its weight / the total weight.

    losses: (N,), or (N, T) for N examples of T elements. weights: the same shape; or (N,), or None for ones, where an
    example's loss is the mean of its elements'.

    >>> shares_of(torch.zeros(2, 2), torch.tensor([1.0, 3.0]), total_weight=4.0)
    tensor([[0.1250, 0.1250],
            [0.3750, 0.3750]])
    """
    each = len(losses) / losses.numel() / total_weight  # an element's part of an example of weight 1
    if weights is None:
        return torch.full_like(losses, each) if isinstance(each, float) else torch.ones_like(losses) * each
    if weights.shape == losses.shape:
        return (weights / total_weight).to(losses.dtype)
    if weights.shape == losses.shape[:1]:
        return (weights * each).to(losses.dtype).view(-1, *[1] * (losses.ndim - 1)).expand_as(losses)
    raise DataError(
        f"weights of shape {tuple(weights.shape)} don't fit losses of shape {tuple(losses.shape)}",
        hint="give one weight an example, or one an element of the loss",
    )


def _weight(batch: Batch) -> Tensor | int:
    return len(batch.targets) if batch.weights is None else batch.weights.sum()


def train(
    model: nn.Module,
    batches: Iterator[Batch],
    loss: Loss,
    optimizer: Optimizer,
    *,
    steps: int,
    schedule: Schedule | None = None,
    start: int = 0,
    accumulate: int = 1,
    clip: float | None = None,
    precision: Precision = FP32,
    ema: EMA | None = None,
    gradients: Gradients = autograd,
) -> Iterator[Step]:
    """Do updates `start + 1` to `steps`, yielding each.

    An update takes `accumulate` batches as one: their losses are summed with their weights and divided by the total
    weight of all, so that loss and gradients are the same however the examples were split. Each group's rate is its
    base rate (`initial_lr`) times `schedule(n)`, n updates having been done. `clip` bounds the norm of the whole
    gradient.
    `gradients` runs inside `precision.autocast()`.

    A loss or gradient that isn't finite raises TrainingError, on a CPU as a rule before the update is done, on other
    devices within 16 (see `finite.Watch`).

    >>> model, batch = nn.Linear(1, 1), Batch(torch.ones(4, 1), torch.ones(4, 1))
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> losses = [float(s.loss) for s in train(model, iter([batch] * 9), lambda y, t: (y - t).square(), sgd, steps=9)]
    >>> losses[-1] < 0.1 * losses[0]
    True
    """
    groups = optimizer.param_groups
    rates = [group.setdefault("initial_lr", group["lr"]) for group in groups]
    parameters: list[Tensor] = [p for group in groups for p in group["params"]]
    watch = Watch(parameters)
    autocast = precision.autocast()
    for n in range(start, steps):
        if not model.training:
            model.train()
        parts = list(islice(batches, accumulate))
        if len(parts) < accumulate:
            raise DataError(f"the batches ended in update {n + 1} of {steps}", hint="give an endless stream of them")
        total = sum(map(_weight, parts))
        if schedule is not None:
            factor = schedule(n)
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * factor
        for parameter in parameters:
            parameter.grad = None
        with autocast:
            value = gradients(model, parts[0], loss, total)
            for batch in parts[1:]:
                value = value + gradients(model, batch, loss, total)
        found = [p.grad for p in parameters if p.grad is not None]
        norm = None if clip is None else clip_norm(found, clip)
        bad = watch.bad(n, value, found, norm, last=n + 1 == steps)
        if bad is not None:
            with autocast:
                diagnosis = diagnose(model, parts, loss, total, norm, groups[0]["lr"])
            if diagnosis:
                raise stopped(bad, steps, diagnosis)
        del found  # these gradients must be gone when the next are made, or memory doubles and is paged in anew
        optimizer.step()
        if ema is not None:
            ema.update()
        yield Step(n + 1, value, groups[0]["lr"], sum(len(batch.targets) for batch in parts), norm)
