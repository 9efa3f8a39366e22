"""Ctrl-C and SIGTERM, turned into a request that a recipe answers when its state is whole."""

import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from feedfwd.checkpoint import Run

AGAIN = "nothing was kept: give the command again"


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and did so after saving; `code` is the exit status a shell expects."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class Stop:
    """Whether, and by which signal, a stop was asked for."""

    number: int | None = None


@contextmanager
def graceful() -> Iterator[Stop]:
    """While inside, the first SIGINT or SIGTERM only notes itself; a second one stops at once.

    Outside the main thread, where Python delivers no signals, nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.number is not None:
            raise Interrupted("", number)
        stop.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def going_on(verb: str, path: object) -> str:
    """How an interrupted run or study goes on, as it can be pasted.

    >>> going_on("fit", "my runs/1")
    "go on with: feedfwd fit --resume 'my runs/1'"
    """
    return "go on with: " + shlex.join(["feedfwd", verb, "--resume", str(path)])


@contextmanager
def told(how: Callable[[], str], *, instead: bool = False) -> Iterator[None]:
    """A stop in here, by SIGTERM too, becomes `Interrupted` that says `how` to go on.

    What was raised further in with words of its own keeps them, unless `instead`.
    """

    def stopped(number: int, frame: FrameType | None) -> None:
        raise Interrupted("", number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stopped) if main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        if str(stop) and not instead:
            raise
        number = stop.code - 128 if isinstance(stop, Interrupted) else signal.SIGINT
        raise Interrupted(f"stopped; {how()}", number) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def resumable(verb: str, run: Run) -> AbstractContextManager[None]:
    """`told` of a run, from its first file to its last: so that planning and scoring stop as training does."""

    def how() -> str:
        if run.finished:
            return f"{run.path} is finished"
        return going_on(verb, run.path) if run.config_file.is_file() else AGAIN

    return told(how)
