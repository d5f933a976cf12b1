"""Single flight: while an answer is being fetched, whoever wants the same one waits for it instead of asking again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from mmsearch_env.net.per_loop import PerLoop

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """At most one call for each key at a time, in each event loop; an error reaches everyone who waits."""

    def __init__(self) -> None:
        self._flights: PerLoop[dict[str, asyncio.Task[T]]] = PerLoop(dict)

    async def once(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        """The result of ``make()``, or of the call for ``key`` that is already under way.

        The call goes on when someone who waits is cancelled: what is paid for is not thrown away.
        """
        flights = self._flights.get()
        task = flights.get(key)
        if task is None:
            task = flights[key] = asyncio.ensure_future(make())
            task.add_done_callback(lambda done: _landed(flights, key, done))
        return await asyncio.shield(task)


def _landed(flights: dict[str, asyncio.Task[T]], key: str, task: asyncio.Task[T]) -> None:
    del flights[key]
    if not task.cancelled():
        task.exception()  # looked at, so that an error nobody waited for is not reported as lost
