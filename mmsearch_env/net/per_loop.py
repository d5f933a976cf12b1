"""Things that belong to one event loop: sessions, semaphores, rate limiters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One ``T`` for each event loop, made on first use inside it.

    ``aiohttp`` and ``asyncio`` bind what they make to the loop it is made in, and a forked child has a loop of its own,
    so nothing of that kind is made where its owner is made.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        """Args: make: called inside the loop that is to use it."""
        self._make = make
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self) -> T:
        """The running loop's own."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            # What is kept may know its loop, which then never goes by itself.
            for other in [other for other in self._by_loop if other.is_closed()]:
                self._by_loop.pop(other, None)
            self._by_loop[loop] = self._make()
        return self._by_loop[loop]

    def peek(self) -> T | None:
        """The running loop's own; None if there is none yet."""
        return self._by_loop.get(asyncio.get_running_loop())

    def pop(self) -> T | None:
        """The running loop's own, forgotten here; None if there is none."""
        return self._by_loop.pop(asyncio.get_running_loop(), None)
