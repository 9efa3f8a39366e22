"""Schedules: torch's own as oracles, and promises that hold for all."""

import math

import pytest
import torch

from feedfwd.errors import ConfigError
from feedfwd.train.schedules import SCHEDULES, build_schedule, cosine, one_cycle, step


def torch_rates(make: object, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs() -> None:
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=50, eta_min=0.1), 50)
    assert [cosine(n, total=50, floor=0.1) for n in range(50)] == pytest.approx(theirs)


def test_step_is_torchs() -> None:
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=7, gamma=0.3), 30)
    assert [step(n, every=7, factor=0.3) for n in range(30)] == pytest.approx(theirs)


def test_one_cycle_is_torchs_but_for_where_the_ends_lie() -> None:
    """torch reaches its peak and its end one update earlier."""
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=101, pct_start=31 / 101), 101
    )
    ours = [one_cycle(n, total=100, warmup=30, floor=0.04 / 1e4) for n in range(101)]
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 7, 1000])
def test_all_stay_within_zero_and_one_and_reach_the_peak(name: str, total: int) -> None:
    schedule = build_schedule(name, total, warmup=0.25, floor=0.1)
    rates = [schedule(n) for n in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1.0)
    assert schedule(total + 5) > 0 or name == "step"


def test_floor_is_reached_just_after_the_last_update() -> None:
    for name in ("linear", "cosine", "one_cycle", "warmup_stable_decay"):
        schedule = build_schedule(name, 80, floor=0.25)
        assert schedule(80) == pytest.approx(0.25)
        assert schedule(79) > 0.25


def test_warmup_rises_in_equal_steps_to_the_peak() -> None:
    for name in ("constant", "linear", "cosine", "step", "warmup_stable_decay"):
        rates = [build_schedule(name, 100, warmup=0.1)(n) for n in range(11)]
        assert rates == pytest.approx([(n + 1) / 11 for n in range(11)])


def test_shares_mean_the_same_for_any_length() -> None:
    for name in SCHEDULES:
        short, long = (build_schedule(name, total, warmup=0.2, every=0.25) for total in (100, 10_000))
        assert all(math.isclose(short(n), long(100 * n), abs_tol=0.06) for n in range(100)), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("cosine", {"warmup": 1.5}, "schedule.warmup=1.5"),
        ("linear", {"floor": -0.1}, "schedule.floor=-0.1"),
        ("warmup_stable_decay", {"warmup": 0.6, "decay": 0.6}, "overlap"),
    ],
)
def test_bad_settings(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_schedule(name, 10, **options)
