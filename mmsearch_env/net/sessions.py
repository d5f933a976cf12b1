"""The connections to services: one session for each event loop, whoever calls through it.

Two tools of one service find each other's open connections, so that many episodes open no more than are in use at once.
"""

from __future__ import annotations

from weakref import WeakSet

import aiohttp

from mmsearch_env.net.per_loop import PerLoop

USER_AGENT = "mmsearch-env"
"""Said to every server that is called or fetched from."""


class _Shared:
    """A loop's session and who calls through it."""

    def __init__(self) -> None:
        self.users: WeakSet[object] = WeakSet()
        # How many calls are made at once is up to each caller, and so is the time-out of a call.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"},
        )


_SHARED = PerLoop(_Shared)


def session_for(user: object) -> aiohttp.ClientSession:
    """The running loop's session, without cookies, proxies from the environment or a limit of connections.

    Args:
        user: who calls through it, until it is released.
    """
    shared = _SHARED.get()
    shared.users.add(user)
    return shared.session


async def release(user: object) -> None:
    """Close the running loop's session unless somebody else calls through it; may be called twice."""
    if (shared := _SHARED.peek()) is None:
        return
    shared.users.discard(user)
    if not shared.users:
        _SHARED.pop()
        await shared.session.close()
