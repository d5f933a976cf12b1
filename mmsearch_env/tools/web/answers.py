"""Answers of services, each asked for once: from the cache, from a call under way, or from a new call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mmsearch_env.cache.flight import SingleFlight
from mmsearch_env.cache.keys import canonical_key
from mmsearch_env.cache.tool_cache import ToolCache
from mmsearch_env.errors import ServiceCode, ServiceError

KEEP_S: Mapping[str, float] = {
    "rows": 30 * 86400.0,
    "page": 7 * 86400.0,
    "summary": 30 * 86400.0,
    "picture": 30 * 86400.0,
}
"""Seconds for which each kind of answer is good."""
KEEP_NOTHING_S = 3600.0
"""Seconds for which "nothing there" is believed."""
_FOUND, _NOTHING = b"+", b"-"


class Answers:
    """Answers by kind and request. An error is not kept, but for a page or picture that could not be had."""

    def __init__(self, cache: ToolCache | None) -> None:
        """Args: cache: where answers are kept; None keeps none, and still asks only once at a time."""
        self._cache = cache
        self._flight: SingleFlight[bytes] = SingleFlight()

    async def get(
        self,
        kind: str,
        request: Mapping[str, Any],
        make: Callable[[], Awaitable[bytes]],
        *,
        is_empty: Callable[[bytes], bool] = lambda body: not body,
    ) -> bytes:
        """The answer to a request.

        Args:
            kind: one of :data:`KEEP_S`.
            request: what is asked, JSON-able, without keys of services.
            make: asks the service.
            is_empty: whether an answer says that there is nothing; it is then kept for an hour only.

        Raises:
            ServiceError: what ``make`` raised, now or (``target_failed``, ``blocked_by_policy``) less than an hour ago.
            ToolError, BudgetError: what ``make`` raised.
        """
        key = canonical_key(kind, request)
        kept = None if self._cache is None else self._cache.get(key)
        if kept is None:
            kept = await self._flight.once(key, lambda: self._fetched(key, kind, request, make, is_empty))
        if kept[:1] == _NOTHING:
            code, _, message = kept[1:].decode().partition("\n")
            raise ServiceError(message, code=ServiceCode(code))
        return kept[1:]

    async def _fetched(
        self,
        key: str,
        kind: str,
        request: Mapping[str, Any],
        make: Callable[[], Awaitable[bytes]],
        is_empty: Callable[[bytes], bool],
    ) -> bytes:
        try:
            body = await make()
            kept, expire_s = _FOUND + body, KEEP_NOTHING_S if is_empty(body) else KEEP_S[kind]
        except ServiceError as error:
            if error.code not in (ServiceCode.TARGET_FAILED, ServiceCode.BLOCKED):
                raise
            kept, expire_s = _NOTHING + f"{error.code}\n{error}".encode(), KEEP_NOTHING_S
        if self._cache is not None:
            # A write may wait for other processes.
            await asyncio.to_thread(self._cache.put, key, kept, kind=kind, request=request, expire_s=expire_s)
        return kept
