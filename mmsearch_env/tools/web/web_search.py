"""Search on the web as a tool: an engine, its connections, and what is done with the rows it finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from mmsearch_env.cache.keys import canonical_text
from mmsearch_env.errors import ImageError, ServiceCode, ServiceError, ToolError, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.net.client import HttpClient
from mmsearch_env.net.fetch import IMAGE_TYPES, Fetcher
from mmsearch_env.net.per_loop import PerLoop
from mmsearch_env.tools.pages.parsing import PageText
from mmsearch_env.tools.pages.reader import PageReader
from mmsearch_env.tools.pages.summariser import Summariser
from mmsearch_env.tools.search_tool import Hit, ImageQuery, Query, SearchResult, TextQuery
from mmsearch_env.tools.web.answers import Answers
from mmsearch_env.tools.web.engine import Engine, Row, converse
from mmsearch_env.tools.web.query_parts import as_jpeg

SPARE_ROWS = 5
"""Rows asked for beyond the hits wanted: some pages and pictures cannot be had."""
THUMBNAIL_BYTES = 200_000
_decoders = PerLoop(lambda: ThreadPoolExecutor(2, thread_name_prefix="mmsearch-pictures"))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    """An engine and what is shared by all that is asked of it.

    Attributes:
        engine: what it says about itself.
        client: its connections.
        answers: where its rows are kept.
    """

    engine: Engine
    client: HttpClient
    answers: Answers

    async def rows(self, query: Query, *, count: int) -> list[Row]:
        """Rows for a query. Raises ToolError, BudgetError."""

        async def ask() -> bytes:
            found = await converse(self.engine.ask(query, count), self.client.send)
            return json.dumps([asdict(row) for row in found], separators=(",", ":")).encode()

        request = {
            "engine": self.engine.name,
            "settings": _settings(self.engine),
            "query": _asked(query),
            "count": count,
        }
        body = await self.answers.get("rows", request, ask, is_empty=lambda rows: rows == b"[]")
        return [Row(**row) for row in json.loads(body)]

    async def aclose(self) -> None:
        """Close connections; may be called twice."""
        await self.client.aclose()


class WebImageSearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool`: pages that show a picture, with their thumbnails."""

    def __init__(self, service: Service, fetcher: Fetcher, *, thumbnail_s: float = 8.0) -> None:
        """
        Args:
            service: finds the pages.
            fetcher: fetches their pictures.
            thumbnail_s: seconds allowed for all thumbnails of a search; a page whose picture is late goes without.
        """
        self.name = f"{service.engine.name} image search"
        self._service, self._fetcher, self._thumbnail_s = service, fetcher, thumbnail_s

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """Pages in the service's order; one whose picture cannot be had gives way to one whose can."""
        rows = await self._service.rows(query, count=top_k + SPARE_ROWS)
        pictures = await gathered([self._thumbnail(row) for row in rows], deadline_s=self._thumbnail_s)
        order = sorted(range(len(rows)), key=lambda place: (pictures[place] is None, place))[:top_k]
        hits = [
            Hit(rows[place].title, rows[place].url, rows[place].snippet, rows[place].score, pictures[place])
            for place in sorted(order)
        ]
        return SearchResult(tuple(hits))

    async def aclose(self) -> None:
        """Close connections; may be called twice."""
        await self._service.aclose()
        await self._fetcher.aclose()

    async def _thumbnail(self, row: Row) -> Image | None:
        if not row.thumbnail_url:
            return None

        async def fetch() -> bytes:
            found = await self._fetcher.fetch(row.thumbnail_url, types=IMAGE_TYPES)
            try:
                return await _in_decoder(_reencoded, found.body)
            except (ImageError, ToolUnavailable) as error:
                raise ServiceError(str(error), code=ServiceCode.TARGET_FAILED) from error

        body = await self._service.answers.get("picture", {"url": row.thumbnail_url}, fetch)
        return await _in_decoder(Image.from_bytes, body)


class WebTextSearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool`: pages about some words, read and summarised.

    The pipeline of MMSearch-R1 (arXiv 2506.20670): the first k pages are read, cut and summarised with the question in
    mind; a page that fails is replaced by the next one, until there are k summaries or no more pages.
    """

    def __init__(
        self,
        service: Service,
        *,
        reader: PageReader | None = None,
        summariser: Summariser | None = None,
        reading_s: float = 20.0,
    ) -> None:
        """
        Args:
            service: finds the pages.
            reader: reads them; None gives the service's own snippets.
            summariser: says what they say; None gives the beginning of the page.
            reading_s: seconds allowed for reading and summarising; what is late is left out.
        """
        self.name = f"{service.engine.name} text search"
        self._service, self._reader, self._summariser, self._reading_s = service, reader, summariser, reading_s

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """Pages in the service's order."""
        rows = await self._service.rows(query, count=top_k if self._reader is None else top_k + SPARE_ROWS)
        if self._reader is None or not isinstance(query, TextQuery):
            return SearchResult(tuple(Hit(row.title, row.url, row.snippet, row.score) for row in rows[:top_k]))
        return SearchResult(tuple(await self._read(rows, query, top_k)))

    async def aclose(self) -> None:
        """Close connections; may be called twice."""
        await self._service.aclose()
        for part in (self._reader, self._summariser):
            if part is not None:
                await part.aclose()

    async def _read(self, rows: Sequence[Row], query: TextQuery, top_k: int) -> list[Hit]:
        """Hits of the first pages that could be read, at most ``top_k``. Raises ToolError if none could."""
        hits: dict[int, Hit] = {}
        waiting = list(enumerate(rows))
        stop = asyncio.get_running_loop().time() + self._reading_s
        while waiting and len(hits) < top_k and (left := stop - asyncio.get_running_loop().time()) > 0.0:
            wanted = top_k - len(hits)
            batch, waiting = waiting[:wanted], waiting[wanted:]
            found = await gathered([self._hit(row, query) for _, row in batch], deadline_s=left)
            hits |= {place: hit for (place, _), hit in zip(batch, found, strict=True) if hit is not None}
        if rows and not hits:
            message = f"{self.name}: expected at least one page that can be read, got none of {len(rows)}"
            raise ServiceError(message, code=ServiceCode.TARGET_FAILED)
        return [hits[place] for place in sorted(hits)]

    async def _hit(self, row: Row, query: TextQuery) -> Hit:
        page = await self._page(row.url)
        if self._summariser is None:
            passage = page.text[:_BEGINNING_CHARACTERS]
        else:
            passage = await self._summary(self._summariser, page, query)
        return Hit(row.title or page.title, row.url, passage, row.score)

    async def _page(self, url: str) -> PageText:
        assert self._reader is not None
        reader = self._reader

        async def read() -> bytes:
            return json.dumps(asdict(await reader.read(url))).encode()

        return PageText(
            **json.loads(await self._service.answers.get("page", {"reader": reader.name, "url": url}, read))
        )

    async def _summary(self, summariser: Summariser, page: PageText, query: TextQuery) -> str:
        async def summarise() -> bytes:
            return (await summariser.summarise(page, question=query.question_text, query=query.text)).encode()

        request = {
            "summariser": summariser.name,
            "settings": dict(summariser.settings),
            "page": asdict(page),
            "question": query.question_text,
            "query": canonical_text(query.text),
        }
        return (await self._service.answers.get("summary", request, summarise)).decode()


_BEGINNING_CHARACTERS = 500


async def gathered(work: Sequence[Awaitable[T | None]], *, deadline_s: float) -> list[T | None]:
    """What each piece of work gives, in order; None for one that failed or is late, which is then cancelled."""
    tasks = [asyncio.ensure_future(piece) for piece in work]
    if not tasks:
        return []
    try:
        await asyncio.wait(tasks, timeout=deadline_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [_outcome(task) for task in tasks]


def _outcome(task: asyncio.Future[T | None]) -> T | None:
    if task.cancelled():
        return None
    if (error := task.exception()) is None:
        return task.result()
    if isinstance(error, (ToolError, ImageError)):
        return None
    raise error


def _reencoded(body: bytes) -> bytes:
    """A picture as a small JPEG of our own making: what is kept holds nothing that was hidden in the file."""
    return as_jpeg(Image.from_bytes(body, name="thumbnail"), most_bytes=THUMBNAIL_BYTES)


async def _in_decoder(work: Callable[[bytes], T], body: bytes) -> T:
    return await asyncio.get_running_loop().run_in_executor(_decoders.get(), work, body)


def _asked(query: Query) -> Mapping[str, Any]:
    """A query as it is compared and kept."""
    if isinstance(query, ImageQuery):
        return {"image": query.image.digest, "bbox": [round(side, 4) for side in query.bbox]}
    if isinstance(query, TextQuery):
        return {"text": canonical_text(query.text)}
    return {"url": query.url}


def _settings(engine: Engine) -> Mapping[str, Any]:
    """What of an engine's settings its rows depend on; never its key."""
    names = ("base_url", "country", "language", "engines", "depth")
    return {name: getattr(engine, name) for name in names if hasattr(engine, name)}
