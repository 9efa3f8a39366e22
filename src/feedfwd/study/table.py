"""The study's table while it runs: a line for each variant, redrawn in a terminal, else said when a variant is done."""

from types import TracebackType
from typing import Self

import numpy as np
from rich.live import Live
from rich.table import Table

from feedfwd.recipes.console import Listener, Terminal
from feedfwd.report.words import duration, score, word
from feedfwd.study.plan import Plan
from feedfwd.study.shared import Row
from feedfwd.study.statistics import estimate

SHOWN = 24  # rows of a table that is redrawn: the best ones and those at work
MARKS = {"waiting": "", "running": "…", "done": "", "dropped": "dropped", "failed": "failed"}


class Board:
    """Shows rows as they come to be known."""

    def __init__(self, plan: Plan, listener: Listener) -> None:
        self.plan, self.listener = plan, listener
        self.live = (
            Live(console=listener.console, transient=True, auto_refresh=False)
            if isinstance(listener, Terminal) and listener.live
            else None
        )
        self._said: set[int] = set()

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, rows: list[Row]) -> None:
        if self.live is not None:
            self.live.update(self._table(rows), refresh=True)
            return
        for row in rows:
            if row.state in ("done", "dropped", "failed") and row.number not in self._said:
                self._said.add(row.number)
                self.listener.say(f"{len(self._said)}/{len(rows)}  {self.line(row)}")

    def line(self, row: Row) -> str:
        """One variant in words."""
        if row.state == "failed":
            return f"{row.label}: failed: {row.reason}"
        shown, seconds = self._score(row), sum(o["seconds"] for o in row.outcomes.values())
        if not row.outcomes:
            return f"{row.label}: dropped within the first training"
        seeds = len(row.outcomes)
        behind = f" after {seeds} seed{'s' * (seeds > 1)}: dropped" if row.state == "dropped" else ""
        return f"{row.label}: {word(self.plan.score).label} {shown}{behind}  ({duration(seconds)})"

    def _score(self, row: Row) -> str:
        values = row.scores(self.plan.score, self.plan.seeds)
        values = values[np.isfinite(values)]
        if not len(values):
            return ""
        found = estimate(values)
        around = f" ± {score(self.plan.score, found.high - found.mean, 1000)}" if len(values) > 1 else ""
        return score(self.plan.score, found.mean, 1000) + around

    def _table(self, rows: list[Row]) -> Table:
        plan = self.plan
        done = sum(row.state in ("done", "dropped", "failed") for row in rows)
        title = f"{done} of {len(rows)} variants"
        table = Table(title, word(plan.score).label, "seeds", "seconds", "", box=None, pad_edge=False)
        for column in table.columns[1:4]:
            column.justify = "right"
        sign = -1 if plan.higher else 1

        def place(row: Row) -> tuple[bool, float]:
            values = row.scores(plan.score, plan.seeds)
            return row.state != "running", sign * float(np.nanmean(values)) if row.outcomes else np.inf

        for row in sorted((r for r in rows if r.state != "waiting" or r.outcomes), key=place)[:SHOWN]:
            share = f"{row.share:.0%}" if row.state == "running" else MARKS[row.state]
            seconds = sum(o["seconds"] for o in row.outcomes.values())
            seeds = f"{len(row.outcomes)}/{len(plan.seeds)}"
            table.add_row(row.label, self._score(row), seeds, f"{seconds:.1f}" if seconds else "", share)
        return table
