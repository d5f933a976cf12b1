"""What a search service has to say about itself: how a query becomes calls, and replies become rows.

An engine does no I/O. Its ``ask`` is a generator that yields calls, is sent their replies, and returns rows; whoever
drives it (:func:`converse`) owns connections, retries, budgets and caches. So an engine is tested without a network,
and looks the same to a fake server and to the real one.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from yarl import URL

from mmsearch_env.errors import ConfigError, ServiceCode, ServiceError
from mmsearch_env.net.client import Call, Reply, ServiceLimits
from mmsearch_env.net.secret import may_travel_to
from mmsearch_env.tools.search_tool import Query

MAX_TITLE_CHARACTERS = 300
MAX_SNIPPET_CHARACTERS = 2000
MAX_URL_CHARACTERS = 2048
_MARKUP = re.compile(r"<[^<>]{0,200}>")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a service's result.

    Attributes:
        title: of the page.
        url: where the page is; http or https.
        snippet: the passage that matched; "" if the service gives none.
        thumbnail_url: where the page's picture is; "" if there is none.
        score: the service's own; 0 if it gives none.
    """

    title: str
    url: str
    snippet: str = ""
    thumbnail_url: str = ""
    score: float = 0.0


Dialogue = Generator[Call, Reply, list[Row]]
"""Calls out, replies in, rows at the end."""


class Engine(Protocol):
    """A search service."""

    @property
    def name(self) -> str:
        """As in cache keys and messages, e.g. ``"serper"``."""
        ...

    @property
    def limits(self) -> ServiceLimits:
        """How the service may be used."""
        ...

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """The conversation for one query. Raises ServiceError for a reply that makes no sense."""
        ...

    def judge(self, reply: Reply) -> ServiceError | None:
        """What is wrong with a reply, in the one vocabulary; None if nothing is."""
        ...


async def converse(dialogue: Dialogue, send: Callable[[Call], Awaitable[Reply]]) -> list[Row]:
    """Carry a dialogue to its end. Raises what ``send`` raises."""
    try:
        call = next(dialogue)
        while True:
            call = dialogue.send(await send(call))
    except StopIteration as end:
        rows: list[Row] = end.value
        return rows
    finally:
        dialogue.close()


def status_error(reply: Reply) -> ServiceError | None:
    """What most services mean by an HTTP status; None for 200."""
    status = reply.status
    if status == 200:
        return None
    code = _BY_STATUS.get(status, ServiceCode.PROVIDER_FAILED)
    return ServiceError(f"expected status 200, got {status}", code=code, retry_after_s=retry_after(reply))


def retry_after(reply: Reply, *, most_s: float = 3600.0) -> float | None:
    """Seconds after which the service asks to be called again, at most ``most_s``; None if it does not say."""
    text = reply.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), most_s)


def lines(found: Any, *names: str) -> list[Mapping[str, Any]]:
    """The JSON objects in the list under the first of ``names`` that holds one; none if there is no such list."""
    for name in names:
        if isinstance(found, Mapping) and isinstance(listed := found.get(name), list):
            return [item for item in listed if isinstance(item, Mapping)]
    return []


def text(line: Mapping[str, Any], *names: str, most: int = MAX_SNIPPET_CHARACTERS) -> str:
    """The first text under ``names``, without markup, entities and doubled blanks; "" if there is none."""
    for name in names:
        if isinstance(found := line.get(name), str) and found.strip():
            bare = html.unescape(_MARKUP.sub("", found[: 4 * most]))
            return " ".join(bare.split())[:most]
    return ""


def title(line: Mapping[str, Any], *names: str) -> str:
    """The first title under ``names``; "" if there is none."""
    return text(line, *names, most=MAX_TITLE_CHARACTERS)


def link(line: Mapping[str, Any], *names: str) -> str:
    """The first http or https URL under ``names``; "" if there is none."""
    for name in names:
        if isinstance(found := line.get(name), str) and len(found) <= MAX_URL_CHARACTERS:
            try:
                url = URL(found)
            except ValueError:
                continue
            if url.scheme in ("http", "https") and url.host:
                return found
    return ""


def number(line: Mapping[str, Any], name: str) -> float:
    """The number under ``name``; 0 if there is no finite one."""
    found = line.get(name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        return 0.0
    return float(found)


def endpoint(base_url: str, path: str, *, with_key: bool) -> str:
    """The address of an API.

    Raises:
        ConfigError: no http(s) URL, or a key would travel unencrypted to another machine.
    """
    try:
        base = URL(base_url)
    except ValueError as error:
        raise ConfigError(f"base_url: expected a URL, got {base_url!r}") from error
    if base.scheme not in ("http", "https") or not base.host or base.query or base.user:
        raise ConfigError(f"base_url: expected http(s)://host without user or query, got {base_url!r}")
    if with_key and not may_travel_to(base):
        raise ConfigError(f"base_url: expected https, since a key is sent, got {base_url!r}")
    return str(base).rstrip("/") + path


_BY_STATUS = {
    400: ServiceCode.BAD_REQUEST,
    401: ServiceCode.AUTH,
    402: ServiceCode.QUOTA_EXHAUSTED,
    403: ServiceCode.AUTH,
    404: ServiceCode.BAD_REQUEST,
    405: ServiceCode.BAD_REQUEST,
    409: ServiceCode.BAD_REQUEST,
    410: ServiceCode.BAD_REQUEST,
    413: ServiceCode.BAD_REQUEST,
    415: ServiceCode.BAD_REQUEST,
    422: ServiceCode.BAD_REQUEST,
    429: ServiceCode.RATE_LIMITED,
}
