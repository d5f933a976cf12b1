"""One event loop per process, in a thread of its own, for callers that are not coroutines.

``env.step`` is a façade on coroutines: whatever has to wait (a search) is handed to this loop, so that connections
and rate limits are shared by every environment of the process. A forked child starts a loop of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from mmsearch_env.errors import EpisodeError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The process's loop, started on first use."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="mmsearch-env-loop", daemon=True).start()
        return _loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` on the background loop and wait for its result.

    Raises:
        EpisodeError: called from the background loop itself, where waiting would never end.
    """
    loop = background_loop()
    try:
        inside = asyncio.get_running_loop() is loop
    except RuntimeError:
        inside = False
    if inside:
        coroutine.close()
        raise EpisodeError("expected a caller outside the environment's own loop, got one inside; await `astep`")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:  # the caller was interrupted: what it waited for has no one to report to any more
        future.cancel()
        raise


def _forget_loop() -> None:
    """A forked child has the parent's loop object but not its thread."""
    global _loop, _lock
    _lock = threading.Lock()
    _loop = None


os.register_at_fork(after_in_child=_forget_loop)
