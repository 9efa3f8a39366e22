"""What a recipe says while it works: plain lines anywhere, a live bar in a terminal or a notebook.

Recipes talk to a `Listener` and never print, so that tests and other programs can listen in their own way.
"""

import sys
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Listener(Protocol):
    def say(self, text: str) -> None:
        """A line that stays."""

    def progress(self, step: int, total: int, text: str, unit: str = "step") -> None:
        """How far it is; called as often as the recipe likes. `unit` is what is counted."""


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None: ...

    def progress(self, step: int, total: int, text: str, unit: str = "step") -> None: ...


class Terminal:
    """Lines through rich; a bar where it can be redrawn, else a line each tenth of the way."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, file=sys.stdout)
        self.live = self.console.is_terminal or self.console.is_jupyter
        self._bar: Progress | None = None
        self._tenth = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def progress(self, step: int, total: int, text: str, unit: str = "step") -> None:
        if self.live:
            if self._bar is None:
                columns = TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}")
                self._bar = Progress(*columns, console=self.console, transient=True)
                self._bar.start()
                self._bar.add_task("", total=total)
            self._bar.update(self._bar.task_ids[0], completed=step, total=total, description=text)
        elif 10 * step // total > self._tenth:
            self.say(f"{unit} {step}/{total}  {text}")
        self._tenth = 10 * step // total
        if step >= total:
            self._close()

    def _close(self) -> None:
        self._tenth = -1
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
