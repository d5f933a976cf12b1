"""A circuit breaker: a service that fails again and again is left alone for a while.

::

    closed --failures prevail, or a fault that repeating cannot mend--> open --after a pause--> half open
    half open --the probe succeeds--> closed        half open --the probe fails--> open
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 20
"""Calls looked back on."""
FEWEST = 10
"""Calls below which nothing is concluded."""
FAILURE_SHARE = 0.5
"""Share of failed calls that opens the circuit."""
PAUSE_S = 15.0
"""Seconds for which an open circuit stays open."""
LONG_PAUSE_S = 300.0
"""The same after a wrong key or an exhausted quota."""


class Breaker:
    """The state of one service. ``clock`` gives seconds from any beginning."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._open_until = 0.0
        self._probing = False
        self._reason = ""

    def refusal(self) -> str | None:
        """Why a call must not be made now; None if it may. A caller that may must report how it went."""
        if not self._open_until:
            return None
        if self._clock() < self._open_until or self._probing:
            return self._reason
        self._probing = True
        return None

    def succeeded(self) -> None:
        """A call came through."""
        if self._open_until:
            self._recent.clear()
        self._open_until, self._probing = 0.0, False
        self._recent.append(True)

    def failed(self, reason: str) -> None:
        """A call failed in a way that speaks against the service."""
        self._recent.append(False)
        failures = self._recent.count(False)
        if self._probing or (len(self._recent) >= FEWEST and failures >= FAILURE_SHARE * len(self._recent)):
            self._open(reason, PAUSE_S)

    def trip(self, reason: str, pause_s: float | None = None) -> None:
        """A call failed in a way that will not mend itself soon."""
        self._open(reason, LONG_PAUSE_S if pause_s is None else pause_s)

    def abandoned(self) -> None:
        """A call was given up before its end: nothing is learnt from it."""
        self._probing = False

    def _open(self, reason: str, pause_s: float) -> None:
        self._open_until, self._probing, self._reason = self._clock() + pause_s, False, reason
