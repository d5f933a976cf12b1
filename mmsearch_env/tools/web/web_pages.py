"""Reading pages of the web by their address, as a tool."""

from __future__ import annotations

import json
from dataclasses import asdict

from mmsearch_env.errors import ToolUnavailable
from mmsearch_env.tools.pages.parsing import PageText
from mmsearch_env.tools.pages.reader import PageReader
from mmsearch_env.tools.pages.summariser import Summariser
from mmsearch_env.tools.search_tool import Hit, PageQuery, Query, SearchResult
from mmsearch_env.tools.web.answers import Answers

MAX_SHOWN_CHARACTERS = 8000
"""Longest text of a page that is shown without a summary."""


class WebPages:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` that reads one page, and may summarise it."""

    def __init__(self, reader: PageReader, summariser: Summariser | None, answers: Answers) -> None:
        """
        Args:
            reader: reads the page.
            summariser: says what it says about the question; None gives its beginning.
            answers: where pages are kept.
        """
        self.name = f"{reader.name} page reader"
        self._reader, self._summariser, self._answers = reader, summariser, answers

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """The page as one hit. Raises ToolError if it cannot be read, ToolUnavailable for words and pictures."""
        if not isinstance(query, PageQuery):
            raise ToolUnavailable(f"{self.name}: expected an address, got {type(query).__name__}; use a search")

        async def read() -> bytes:
            return json.dumps(asdict(await self._reader.read(query.url))).encode()

        body = await self._answers.get("page", {"reader": self._reader.name, "url": query.url}, read)
        page = PageText(**json.loads(body))
        passage = page.text[:MAX_SHOWN_CHARACTERS]
        if self._summariser is not None:
            passage = await self._summariser.summarise(page, question=query.question_text, query="")
        return SearchResult((Hit(page.title, query.url, passage),)[:top_k])

    async def aclose(self) -> None:
        """Close connections; may be called twice."""
        await self._reader.aclose()
        if self._summariser is not None:
            await self._summariser.aclose()
