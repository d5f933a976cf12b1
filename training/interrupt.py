"""Ending a run politely: the first SIGTERM or Ctrl-C lets the iteration finish and be saved, the second kills."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_MOMENT_S = 2.0
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
    """Within it, SIGTERM and SIGINT make a request instead of ending the process; the same signal twice ends it."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        request.make(signal.Signals(number).name)
        signal.signal(number, _strike if number == signal.SIGINT else previous[signal.Signals(number)])

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
