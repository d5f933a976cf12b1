"""What a search costs: every call to a service is entered with whoever asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Meter:
    """Calls and money spent for one search so far."""

    def __init__(self) -> None:
        self.calls = 0
        self.usd = 0.0


_meter: ContextVar[Meter | None] = ContextVar("mmsearch_meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter for the calls made inside, in tasks begun there as well.

    Of several searches that wait for one call, the one that began it is charged.
    """
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def enter(usd: float) -> None:
    """Enter one call with the meter of the search for which it is made, if there is one."""
    if (meter := _meter.get()) is not None:
        meter.calls += 1
        meter.usd += usd
