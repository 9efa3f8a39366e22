"""What a study is asked: which variants of which training, on which seeds, decided by what."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from feedfwd.config import Recipe, parse
from feedfwd.errors import ConfigError, FeedfwdError, nearest
from feedfwd.study.match import FORM, matched
from feedfwd.study.space import Axis, Choice, Variant, from_json, grid, label, settings, to_json
from feedfwd.study.trainings import Known, Training, higher_is_better, scored_by, training

SEARCHES = ("grid", "random", "tpe", "halving")
MATCHES = ("parameters", "flops", "seconds")
TRIALS = 20  # of a search, where nobody says


@dataclass(frozen=True)
class Plan:
    verb: str
    base: dict[str, Any]  # what was said of the settings, nested
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    search: str = "grid"
    trials: int | None = None  # None: every combination
    score: str = ""  # the one that decides; settled by `checked`
    match: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("search", self.search, SEARCHES), ("match", self.match, MATCHES)):
            if value is not None and value not in known:
                raise ConfigError(f"--{name} {value} is not known", hint=nearest(value, known))
        if len(self.seeds) < 1:
            raise ConfigError("--seeds 0 trains nothing", hint="take at least 2: differences need their spread")
        if self.trials is not None and self.trials < 2:
            raise ConfigError(f"--trials {self.trials} compares nothing", hint="take at least 2")
        if self.search == "grid" and self.trials is not None:
            raise ConfigError(
                "--trials is for searches, and a grid tries all", hint="add --search random, or leave it out"
            )

    # --- what it means ------------------------------------------------------------------------------------------------

    @cached_property
    def training(self) -> Training:
        return training(self.verb)

    @cached_property
    def config(self) -> Recipe:
        """The settings that all variants share."""
        return self.training.settled(parse(self.training.kind, self.base))

    @property
    def higher(self) -> bool:
        return higher_is_better(self.score)

    @cached_property
    def queue(self) -> list[Variant | None]:
        """What is tried, in this order; None: for the search to choose."""
        choices = [len(a.levels) for a in self.axes if isinstance(a, Choice)]
        few = len(choices) == len(self.axes) and prod(choices) <= (self.trials or TRIALS)
        if self.search == "grid" or few:  # a search that could try all tries each once
            return list(grid(self.axes))
        first = {a.name: next(iter(a.levels)) for a in self.axes if isinstance(a, Choice)}
        return [dict(first), *([None] * ((self.trials or TRIALS) - 1))]

    def label(self, variant: Variant) -> str:
        return label(self.axes, variant)

    def changes(self, variant: Variant) -> dict[str, Any]:
        """By dotted key: what makes this variant, widths solved for where it has to match."""
        found = settings(self.axes, variant)
        if self.match in ("parameters", "flops"):
            reference = self._changed(settings(self.axes, self._reference(variant)))
            found |= matched(self._changed(found), reference, self.match)
        return found

    def trial_config(self, variant: Variant, seed: int) -> Recipe:
        """The settings of one training: the test part's split is the same for all, all else goes by the seed."""
        config = self._changed(self.changes(variant)).with_("seed", seed)
        return config if self.verb == "pretrain" else config.with_("data.test_seed", self.config.seed)

    def winner_config(self, variant: Variant) -> Recipe:
        """What was said, and the variant's settings: none of what only the study needed."""
        config = parse(self.training.kind, self.base)
        for key, value in self.changes(variant).items():
            config = config.with_(key, value)
        return config

    def _changed(self, changes: dict[str, Any]) -> Recipe:
        config = self.config
        for key, value in changes.items():
            config = config.with_(key, value)
        return config

    def _reference(self, variant: Variant) -> Variant:
        """The same form of network with the first value of all else."""
        keeps = {
            axis.name
            for axis in self.axes
            if not isinstance(axis, Choice) or all(key.startswith(FORM) for of in axis.levels.values() for key in of)
        }
        return {a.name: variant[a.name] if a.name in keeps else next(iter(getattr(a, "levels", ()))) for a in self.axes}

    # --- before the first trial ---------------------------------------------------------------------------------------

    def checked(self, say: Callable[[str], None] = lambda text: None) -> tuple["Plan", dict[str, Known]]:
        """The plan with its score settled, and what is known of each variant (of a search: of each level alone).

        Everything that can't be trained is found here: FeedfwdError names the variant.
        """
        first = {a.name: next(iter(a.levels)) if isinstance(a, Choice) else a.low for a in self.axes}
        if self.search == "grid" and len(self.queue) <= 64:
            variants = [v for v in self.queue if v is not None]
        else:
            ends = {a.name: list(a.levels) if isinstance(a, Choice) else [a.low, a.high] for a in self.axes}
            variants = [first, *({**first, name: v} for name, of in ends.items() for v in of[1:])]
        known: dict[str, Known] = {}
        for variant in variants:
            try:
                known[self.label(variant)] = self.training.check(self.trial_config(variant, self.seeds[0]))
            except FeedfwdError as error:
                name = self.label(variant)
                raise type(error)(f"{name}: {error.message}" if known else error.message, hint=error.hint) from None
        scores = next(iter(known.values())).scores
        return replace(self, score=scored_by(self.score or None, scores)), known

    # --- as it is stored ----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        rest = {k: v for k, v in self.__dict__.items() if k in Plan.__dataclass_fields__ and k not in ("axes", "seeds")}
        return {**rest, "axes": to_json(self.axes), "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Plan":
        return cls(**{**row, "axes": tuple(from_json(row["axes"])), "seeds": tuple(row["seeds"])})

    @property
    def name(self) -> str:
        """The same for the same question, so that whoever asks it joins the same study."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return f"{self.verb}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
