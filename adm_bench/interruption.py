"""SIGTERM and Ctrl-C as a wish: the step at hand is finished and saved before the process ends."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adm_bench.errors import AlreadySaidError

REPEATED_SEC = 2.0
"""Within so many seconds the same signal is the same wish: launchers hand on what the terminal already sent."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedWorkError(AlreadySaidError):
    """Work was stopped by a signal and kept, which has been said. Exit status as shells count: 143 for SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


class Interruption:
    """Whether somebody wants this process to end."""

    signal_number = 0
    """The first signal that came, or 0."""
    _received_sec = 0.0

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  what handlers are given
        now = time.monotonic()
        if number == signal.SIGINT and self.signal_number and now - self._received_sec > REPEATED_SEC:
            raise KeyboardInterrupt
        if not self.signal_number:
            self.signal_number, self._received_sec = number, now


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Note SIGTERM and Ctrl-C instead of ending; a second Ctrl-C, some seconds later, ends at once.

    Outside the main thread, where no signals are handled, nothing changes.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, interruption._receive) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
