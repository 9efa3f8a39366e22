"""What a short trial settles before training: the learning rate, and how many updates fit into the minutes given.

Both work on a copy of the network, and what they find is written into the run's settings, so that resuming and
repeating don't depend on a clock.
"""

import copy
import time
from dataclasses import replace

from feedfwd.checkpoint import Run
from feedfwd.recipes.console import Listener
from feedfwd.recipes.engine import engine
from feedfwd.recipes.prepare import Prepared, optimizer_for
from feedfwd.train.loop import train
from feedfwd.train.progress import plan_steps, typical
from feedfwd.train.range_test import suggest_lr

WARMUP, TIMED = 5, 40  # updates tried to learn what one takes
EVALUATIONS = 40
LONGEST = 5.0  # seconds a trial may take


def plan(prepared: Prepared, run: Run, listener: Listener) -> Prepared:
    """The same with the rate and the number of updates settled in its settings."""
    c = prepared.config
    if c.optimizer.lr is None:
        found = suggest_lr(
            prepared.model,
            prepared.batches(),
            prepared.loss,
            lambda model, lr: optimizer_for(model, c, lr),
            precision=prepared.precision,
        )
        run.log({"event": "range_test", "lrs": found.lrs, "losses": found.losses, "suggested": found.lr})
        listener.say(f"learning-rate range test: {found.lr:.3g}")
        prepared = replace(prepared, config=c.with_("optimizer.lr", found.lr))
    if c.minutes is not None:
        steps = steps_within(prepared, 60 * c.minutes)
        listener.say(f"{steps:,} updates fit into {c.minutes:g} minutes")
        settled = prepared.config.with_("minutes", None).with_("train.steps", steps)
        prepared = replace(prepared, config=settled)
    return prepared


def steps_within(prepared: Prepared, seconds: float) -> int:
    """How many updates, with their evaluations, fit into `seconds`."""
    per_step, evaluation = tried(prepared)
    return plan_steps(seconds, per_step=per_step, per_evaluation=evaluation, evaluations=EVALUATIONS)


def tried(prepared: Prepared) -> tuple[float, float]:
    """Seconds that an update and an evaluation take here, from doing some on a copy of the network."""
    c = prepared.config
    trial = replace(prepared, predictor=copy.deepcopy(prepared.predictor))
    found = engine(trial, c.optimizer.lr or 1e-4)
    times, last = [], time.perf_counter()
    for _ in train(
        trial.model,
        trial.batches(),
        trial.loss,
        found.optimizer,
        steps=WARMUP + TIMED,
        accumulate=c.train.accumulate,
        clip=c.train.clip,
        precision=found.precision,
        gradients=found.gradients,
    ):
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if len(times) > WARMUP and sum(times) > LONGEST:
            break
    evaluation = 0.0
    if trial.validation is not None:
        trial.predictor.answers(trial.validation.inputs)
        evaluation = time.perf_counter() - last
    return typical(times, WARMUP), evaluation


def memory(prepared: Prepared) -> int:
    """Bytes that training holds at once, about: data, weights with gradients and two moments, activations.

    A layer keeps its input, what came before and after its activation, and their gradients pass through the same size.
    """
    p, c = prepared, prepared.config
    data = sum(part.inputs.nbytes + part.targets.nbytes for part in (p.train, p.validation, p.test) if part is not None)
    copies = 4 + bool(c.train.ema)
    weights = copies * 4 * p.model.parameter_count
    widths = sum(p.model.sizes) * (2 if p.precision.name == "bf16" else 4)
    return data + weights + 4 * c.train.batch_size * widths
