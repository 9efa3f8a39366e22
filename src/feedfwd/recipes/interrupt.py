"""Ctrl-C and SIGTERM, turned into a request that a recipe answers when its state is whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
            raise KeyboardInterrupt
        stop.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
