"""Ending a run politely: the first SIGTERM or Ctrl-C lets the iteration finish and be saved, a later one kills."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_MOMENT_S = 2.0
_ECHO_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked the run to end."""

    def __init__(self) -> None:
        self.signal_name = ""

    @property
    def made(self) -> bool:
        """True once asked."""
        return bool(self.signal_name)

    def make(self, signal_name: str) -> None:
        """Ask the run to end after this iteration."""
        self.signal_name = signal_name


def _strike(number: int, frame: FrameType | None) -> None:
    """End now: threads that still play or save are waited for a moment, and then not any more."""
    last = threading.Timer(_MOMENT_S, os._exit, (128 + number,))
    last.daemon = True
    last.start()
    raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within it, SIGTERM and SIGINT make a request instead of ending the process; the same signal again ends it.

    A signal that comes again at once is an echo and is not counted: a batch system asks all processes of a job to end,
    and the launcher among them hands the signal on to the same workers.
    """
    request = StopRequest()
    asked_at: dict[int, float] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - asked_at.setdefault(number, now) < _ECHO_S:
            request.make(signal.Signals(number).name)
        elif number == signal.SIGINT:
            _strike(number, frame)
        else:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
