"""When to stop: after so many evaluations without a better score."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class EarlyStopping:
    """Remembers the best score and says when it hasn't improved for `patience` evaluations in a row.

    A score that isn't a number counts as no improvement.

    >>> stopping = EarlyStopping(patience=2, mode="max")
    >>> [(stopping.update(n, score), stopping.stop) for n, score in [(10, 0.8), (20, 0.7), (30, 0.8)]]
    [(True, False), (False, False), (False, True)]
    >>> stopping.best_step, stopping.best
    (10, 0.8)
    """

    patience: int
    mode: str = "min"  # "min": lower is better, "max": higher is
    best: float | None = field(default=None, init=False)
    best_step: int = field(default=0, init=False)
    bad: int = field(default=0, init=False)  # evaluations since the best

    def update(self, step: int, score: float) -> bool:
        """Take in the score of an evaluation after `step` updates; whether it is the best so far."""
        better = not math.isnan(score) and (
            self.best is None or (score < self.best if self.mode == "min" else score > self.best)
        )
        if better:
            self.best, self.best_step, self.bad = score, step, 0
        else:
            self.bad += 1
        return better

    @property
    def stop(self) -> bool:
        return self.bad >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "bad": self.bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step, self.bad = state["best"], state["best_step"], state["bad"]
