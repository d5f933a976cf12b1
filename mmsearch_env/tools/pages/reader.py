"""What a page reader does, and the two there are: on this machine, or by Jina Reader."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from mmsearch_env.errors import DataError, ServiceCode, ServiceError, ToolTimeout
from mmsearch_env.net.budget import Budget
from mmsearch_env.net.client import Call, HttpClient, Key, Reply, ServiceLimits
from mmsearch_env.net.fetch import PAGE_TYPES, Fetcher
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.pages.parsing import MAX_PAGE_CHARACTERS, PageParsers, PageText, ParsersGoneError
from mmsearch_env.tools.web.engine import endpoint, status_error

JINA_URL = "https://r.jina.ai"
_PARSE_TRIES = 3
"""How often a page is given to processes, which another page may end."""


class PageReader(Protocol):
    """Reads pages."""

    @property
    def name(self) -> str:
        """As in configurations and in cache keys."""
        ...

    async def read(self, url: str) -> PageText:
        """The page at ``url``. Raises ServiceError (``target_failed``, ``blocked_by_policy``, ...) or ToolTimeout."""
        ...

    async def aclose(self) -> None:
        """Free what it holds; may be called twice."""
        ...


class LocalReader:
    """Fetches a page under guard and takes its text out with trafilatura, in a process of its own.

    Parsing hostile HTML can take seconds, so it is given a time and done beside the event loop.
    """

    name = "local"

    def __init__(self, fetcher: Fetcher | None = None, *, parse_s: float = 10.0, processes: int = 2) -> None:
        """
        Args:
            fetcher: fetches under its policy.
            parse_s: seconds allowed for a page's parsing, the start of a process included.
            processes: pages parsed at once.
        """
        self._fetcher = fetcher or Fetcher()
        self._parse_s = parse_s
        self._processes = processes
        self._parsers: PageParsers | None = None

    async def read(self, url: str) -> PageText:
        """The page at ``url``."""
        found = await self._fetcher.fetch(url, types=PAGE_TYPES)
        markup = _decoded(found.body, found.charset)
        if found.content_type == "text/plain":
            return PageText("", markup[:MAX_PAGE_CHARACTERS])
        page = await self._parsed(markup)
        if not page.text:
            message = "expected a page with text, got none; another page may do"
            raise ServiceError(message, code=ServiceCode.TARGET_FAILED)
        return page

    async def aclose(self) -> None:
        """Close connections and processes; may be called twice."""
        await self._fetcher.aclose()
        if self._parsers is not None:
            self._end(self._parsers)

    async def _parsed(self, markup: str) -> PageText:
        for _ in range(_PARSE_TRIES):
            parsers = self._parsers = self._parsers or PageParsers(self._processes)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(parsers.submit(markup)), self._parse_s)
            except TimeoutError:
                self._end(parsers)
                wanted = f"expected a page that is parsed within {self._parse_s:g} s"
                raise ToolTimeout(f"{wanted}, got a longer one") from None
            except ParsersGoneError:  # perhaps with another page
                self._end(parsers)
            except DataError as error:
                raise ServiceError(f"{error}; another page may do", code=ServiceCode.TARGET_FAILED) from error
        message = "expected a page that can be parsed, got one that ends the parser; another page may do"
        raise ServiceError(message, code=ServiceCode.TARGET_FAILED)

    def _end(self, parsers: PageParsers) -> None:
        """End these processes, also one that is stuck in a page; the next page gets new ones."""
        parsers.end()
        if parsers is self._parsers:
            self._parsers = None


@dataclass(frozen=True, slots=True)
class JinaReader:
    """Jina Reader: the page as Markdown, rendered by a browser on their side.

    ``POST https://r.jina.ai/`` with the URL in the body. An empty account is answered with 402; a page that could not
    be loaded, with 422, 451 or a 503 of its own kind.

    Attributes:
        client: calls the service.
        secret: the key; None for anonymous use, which is limited to 20 pages a minute.
        base_url: where the service is.
    """

    client: HttpClient
    secret: Secret | None = None
    base_url: str = JINA_URL
    name: str = "jina"

    async def read(self, url: str) -> PageText:
        """The page at ``url``."""
        key = None if self.secret is None else Key(self.secret, "header", "Authorization", "Bearer ")
        headers = {"Accept": "application/json", "X-Retain-Images": "none", "X-Timeout": "10"}
        where = endpoint(self.base_url, "/", with_key=key is not None)
        reply = await self.client.send(Call("POST", where, headers=headers, body={"url": url}, key=key))
        data = reply.data.get("data")
        content = data.get("content") if isinstance(data, dict) else None
        if not isinstance(content, str) or not content.strip():
            raise ServiceError("jina: expected a page with text, got none", code=ServiceCode.TARGET_FAILED)
        heading = data.get("title") if isinstance(data, dict) else ""
        return PageText(str(heading or "")[:300], content.strip()[:MAX_PAGE_CHARACTERS])

    async def aclose(self) -> None:
        """Close connections; may be called twice."""
        await self.client.aclose()


def jina_client(budget: Budget | None = None, limits: ServiceLimits | None = None) -> HttpClient:
    """A client that knows what Jina's replies mean."""
    limits = limits or ServiceLimits(timeout_s=15.0, concurrency=8)
    return HttpClient("jina", judge=_judge_jina, limits=limits, budget=budget)


def _decoded(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset or "utf-8", "replace")
    except LookupError:
        return body.decode("utf-8", "replace")


def _judge_jina(reply: Reply) -> ServiceError | None:
    if reply.status in (422, 451) or (reply.status == 503 and b'"status":503' in reply.body.replace(b" ", b"")):
        return ServiceError(f"expected a page, got status {reply.status}", code=ServiceCode.TARGET_FAILED)
    return status_error(reply)
