"""How a pretraining fills the minutes given: planned from a trial, and once more on the way from what it took so far.

The minutes run from the first update to the last score: updates, evaluations, samples and saving are in them; reading
the text, and the trial, are not. What is decided is written into the run's settings, so that resuming decides nothing
anew, and repeating the run by its settings gives the same bits.
"""

import time
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from feedfwd.config_pretrain import PretrainConfig
from feedfwd.evaluate.text import text_scores
from feedfwd.recipes.console import Listener
from feedfwd.recipes.samples import sample
from feedfwd.recipes.text import PreparedText, tried
from feedfwd.report.words import duration

EVALUATIONS = 10
ESTIMATE = 1 << 15  # held-out tokens that an evaluation on the way looks at
AGAIN = 0.4  # of the updates planned, which by then tell what the rest will take; the rate is still at its peak
FLAT = ("constant", "warmup_stable_decay")  # schedules that have a stretch whose length changes no rate before it
FEW = 20  # updates: fewer tell too little
LOOKING = 0.05  # of the minutes at most for evaluations on the way, unless their number is given
LAST = 0.25  # of the minutes at most for the last one; a longer one comes on top
SPARE = 0.01  # of the minutes, for what can't be foreseen


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds planned for, and those that an update, an evaluation on the way, the last one and saving take."""

    until: float
    update: float
    look: float
    final: float
    save: float = 0.0

    def updates(self, spent: float, look_every: float, save_every: int) -> int:
        """How many fit into what is left when `spent` seconds are over, with all that comes between; at least 1.

        >>> Pace(until=105, update=0.1, look=1.0, final=5.0).updates(spent=0, look_every=10, save_every=200)
        500
        """
        each = self.update + self.look / look_every + self.save / save_every
        return max(1, int((self.until - spent - self.last) / each + 1e-9))

    @property
    def last(self) -> float:
        """Seconds of the plan for the last evaluation."""
        return min(self.final, LAST * self.until)


@dataclass(frozen=True, slots=True)
class Look:
    """An evaluation on the way: an estimate of the scores, and a sample if the model writes, in so many seconds."""

    scores: dict[str, float]
    text: dict[str, Any] | None
    seconds: float
    final: float  # seconds that scoring all held-out text would take

    @classmethod
    def at(cls, p: PreparedText) -> "Look":
        begun = time.perf_counter()
        every = max(1, sum(map(len, p.held_out)) // ESTIMATE)
        scores = scored(p, every=every)
        final = every * (time.perf_counter() - begun)
        text = sample(p) if p.model.causal and isfinite(scores["loss"]) else None  # the next update says why not
        return cls(scores, text, time.perf_counter() - begun, final)


def scored(p: PreparedText, every: int = 1) -> dict[str, float]:
    """The scores on each `every`-th batch of the held-out text."""
    c = p.config
    return text_scores(
        p.predicting, p.held_out, c.data.row, c.train.batch_size, precision=p.precision, every=every, masking=p.masking
    )


def planned(p: PreparedText, listener: Listener) -> tuple[PreparedText, Pace | None]:
    """The same with the number of updates settled in its settings, and by what pace, where minutes were given."""
    c, minutes = p.config, p.config.minutes
    if minutes is None:
        return p, None
    look = Look.at(p)
    pace = Pace(60 * minutes * (1 - SPARE), tried(p), look.seconds, look.final)
    every = c.train.evaluate_every
    if every is None:
        looks = min(EVALUATIONS - 1, int(LOOKING * pace.until / look.seconds))
        steps = pace.updates(looks * look.seconds, inf, c.train.save_every)
        every = -(-steps // (looks + 1))
    else:
        steps = pace.updates(0, every, c.train.save_every)
    listener.say(f"about {steps:,} updates fit into {minutes:g} minutes")
    if pace.final > pace.last:
        beyond = duration(pace.final - pace.last)
        listener.say(f"scoring all held-out text will take {beyond} more; a smaller data.validation holds out less")
    settled = c.with_("minutes", None).with_("train.steps", steps).with_("train.evaluate_every", every)
    return replace(p, config=settled), pace


def again_at(config: PretrainConfig) -> int | None:
    """After which update the plan is made again: with the rate at its peak; None: never."""
    steps, schedule = config.train.steps or 1, config.schedule
    decay = round(schedule.decay * steps) if schedule.name == "warmup_stable_decay" else 0
    at = min(round(AGAIN * steps), steps - decay)
    possible = schedule.name in FLAT and at >= max(FEW, _warmup(config))
    return at if possible else None


def replanned(config: PretrainConfig, done: int, more: int) -> PretrainConfig:
    """The settings for `more` updates after those done, whose rates stay what they were.

    The decay keeps its share, but what is done can't be decayed any more.
    """
    steps, schedule = done + more, config.schedule
    found = config.with_("train.steps", steps).with_("schedule.warmup", _warmup(config) / steps)
    if schedule.name == "warmup_stable_decay" and round(schedule.decay * steps) > more:
        found = found.with_("schedule.decay", more / steps)
    return found


def _warmup(config: PretrainConfig) -> int:
    """Updates of it."""
    return round((config.schedule.warmup or 0.0) * (config.train.steps or 1))
