"""Learning-rate schedules: pure functions of the number of updates done so far.

Each returns what the base (peak) rate is multiplied by at update n = 0, 1, … total - 1. `warmup` updates come first, in
which the rate rises from near zero in equal steps; the peak is update n = warmup. `floor` is the multiplier that the
curve reaches at n = total, just after the last update: an update at rate zero would be wasted.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial

from feedfwd.errors import ConfigError, nearest

Schedule = Callable[[int], float]


def constant(n: int, *, warmup: int = 0) -> float:
    """The peak rate throughout.

    >>> [constant(n, warmup=3) for n in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return _rise(n, warmup)


def step(n: int, *, every: int, factor: float = 0.1, warmup: int = 0) -> float:
    """Multiplied by `factor` after every `every` updates, counted from the end of the warm-up.

    >>> [step(n, every=2, factor=0.5) for n in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    return _rise(n, warmup) if n < warmup else factor ** ((n - warmup) // every)


def linear(n: int, *, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Falls in equal steps.

    >>> [linear(n, total=4) for n in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return _rise(n, warmup) if n < warmup else 1 - (1 - floor) * _share(n, warmup, total)


def cosine(n: int, *, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Falls along half a cosine wave. Loshchilov & Hutter 2016, arXiv 1608.03983, without restarts.

    >>> [round(cosine(n, total=4, warmup=0), 3) for n in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return _rise(n, warmup) if n < warmup else _wave(1.0, floor, _share(n, warmup, total))


def one_cycle(n: int, *, total: int, warmup: int, floor: float = 0.0, start: float = 0.04) -> float:
    """Up from `start` to the peak, then down to `floor`, both along half a cosine wave.

    Smith & Topin 2017 (arXiv 1708.07120) rise and fall in straight lines and end far below the start; the rounded form
    is fastai's and torch's.

    >>> [round(one_cycle(n, total=8, warmup=2), 2) for n in range(9)]
    [0.04, 0.52, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07, 0.0]
    """
    return _wave(start, 1.0, n / warmup) if n < warmup else _wave(1.0, floor, _share(n, warmup, total))


def warmup_stable_decay(n: int, *, total: int, decay: int, warmup: int = 0, floor: float = 0.0) -> float:
    """The peak rate until the last `decay` updates, in which it falls in equal steps. Hu et al. 2024, arXiv 2404.06395.

    >>> [warmup_stable_decay(n, total=6, decay=2, warmup=1) for n in range(6)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]
    """
    return min(_rise(n, warmup), 1 - (1 - floor) * _share(n, total - decay, total))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "step": step,
    "linear": linear,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "warmup_stable_decay": warmup_stable_decay,
}


def build_schedule(
    name: str,
    total: int,
    *,
    warmup: float | None = None,
    floor: float = 0.0,
    decay: float = 0.2,
    every: float = 1 / 3,
    factor: float = 0.1,
) -> Schedule:
    """The schedule of that name over `total` updates; each reads what it has.

    `warmup` (not given: 0.3 for one_cycle, else 0), `decay` (of warmup_stable_decay) and `every` (of step) are shares
    of the updates, so that a setting means the same for a run of any length.

    >>> build_schedule("linear", 100, warmup=0.1, floor=0.5)(55)
    0.75
    """
    if name not in SCHEDULES:
        raise ConfigError(f"unknown schedule {name!r}", hint=nearest(name, SCHEDULES))
    if warmup is None:
        warmup = 0.3 if name == "one_cycle" else 0.0
    for option, value in (("warmup", warmup), ("decay", decay), ("every", every), ("floor", floor), ("factor", factor)):
        if not 0 <= value <= 1:
            raise ConfigError(f"schedule.{option}={value} can't be used", hint="give a share between 0 and 1")
    if name == "warmup_stable_decay" and warmup + decay > 1:
        raise ConfigError(
            f"schedule.warmup={warmup} and schedule.decay={decay} overlap", hint="give shares that sum to at most 1"
        )
    schedule = SCHEDULES[name]
    options = {
        "total": total,
        "warmup": round(warmup * total),
        "floor": floor,
        "decay": round(decay * total),
        "every": max(1, round(every * total)),
        "factor": factor,
    }
    taken = inspect.signature(schedule).parameters
    return partial(schedule, **{option: value for option, value in options.items() if option in taken})


def _rise(n: int, warmup: int) -> float:
    return min(1.0, (n + 1) / (warmup + 1))


def _share(n: int, first: int, last: int) -> float:
    """How much of first … last has passed, within 0 … 1."""
    return min(1.0, max(0.0, (n - first) / max(1, last - first)))


def _wave(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
