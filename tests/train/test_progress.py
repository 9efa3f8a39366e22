"""Progress by a clock that stands still unless told: rates, time left, and how many updates fit."""

import math

import pytest
import torch

from feedfwd.train.loop import Step
from feedfwd.train.progress import WINDOW, Meter, clock, plan_steps, typical


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def step(n: int, loss: float = 1.0, examples: int = 32) -> Step:
    return Step(n, torch.tensor(loss), 0.1, examples, None)


def test_rate_and_time_left_are_of_the_last_updates() -> None:
    now = Clock()
    meter = Meter(total=1000, now=now)
    now.time += 60.0  # compiling
    meter.update(step(1))
    assert math.isnan(meter.read().examples_per_second) and math.isnan(meter.read().eta)
    for n in range(2, 200):
        now.time += 0.5
        meter.update(step(n))
    progress = meter.read()
    assert progress.examples_per_second == pytest.approx(64)
    assert progress.eta == pytest.approx(801 * 0.5)
    for n in range(200, 200 + WINDOW):
        now.time += 0.1
        meter.update(step(n))
    assert meter.read().examples_per_second == pytest.approx(320)


def test_time_aside_lowers_no_rate_but_is_expected_to_go_on() -> None:
    now = Clock()
    meter = Meter(total=100, now=now)
    for n in range(1, 51):
        now.time += 1.0
        meter.update(step(n))
        if n % 10 == 0:
            with meter.paused():
                now.time += 2.0
    progress = meter.read()
    assert progress.examples_per_second == pytest.approx(32)
    assert progress.eta == pytest.approx(50 * 1.0 * (1 + 10 / 50))


def test_a_resumed_run_knows_what_is_left() -> None:
    now = Clock()
    meter = Meter(total=100, now=now)
    for n in (91, 92):
        now.time += 1.0
        meter.update(step(n))
    assert meter.read().eta == pytest.approx(8.0)


def test_loss_is_smoothed_without_a_start_at_zero() -> None:
    meter = Meter(total=10, smoothing=0.5, now=Clock())
    meter.update(step(1, loss=4.0))
    assert meter.read().loss == pytest.approx(4.0)
    meter.update(step(2, loss=1.0))
    meter.update(step(3, loss=1.0))
    assert meter.read().loss == pytest.approx((4 * 0.125 + 1 * 0.25 + 1 * 0.5) / 0.875)
    assert meter.read().loss == meter.read().loss


def test_as_a_line() -> None:
    now = Clock()
    meter = Meter(total=3, now=now)
    meter.update(step(1, loss=0.25))
    assert str(meter.read()) == "loss 0.2500"
    now.time += 0.01
    meter.update(step(2, loss=0.25))
    assert str(meter.read()) == "loss 0.2500  3,200 examples/s  0 s left"


def test_clock() -> None:
    assert [clock(s) for s in (59.6, 61, 3599.4, 86400)] == ["1:00 min", "1:01 min", "59:59 min", "24:00 h"]


def test_typical_is_the_median_after_the_warm_up() -> None:
    assert typical([100.0, 1.0, 3.0, 2.0], warmup=1) == 2.0
    assert typical([5.0], warmup=3) == 5.0


def test_planned_steps_fit() -> None:
    steps = plan_steps(300, per_step=0.02, per_evaluation=1.5, evaluations=20)
    assert steps * 0.02 + 20 * 1.5 <= 300 * 0.95 < (steps + 1) * 0.02 + 20 * 1.5 + 1e-6
    assert plan_steps(1, per_step=60.0) == 1
    assert plan_steps(60, per_step=1.0, per_evaluation=100.0, evaluations=3) == 1
