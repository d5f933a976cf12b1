"""Reading the pages of a world by their address."""

from __future__ import annotations

from collections.abc import Sequence

from mmsearch_env.errors import ToolUnavailable
from mmsearch_env.tools.search_tool import Hit, PageQuery, Query, SearchResult
from mmsearch_env.worlds.world import Page

MAX_PAGE_CHARACTERS = 8000
"""Longest text of a page that is shown."""


class LocalPages:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` that gives a page's whole text."""

    name = "local page reader"

    def __init__(self, pages: Sequence[Page]) -> None:
        """Args: pages: what can be read."""
        self._by_url = {page.url: page for page in pages}

    async def search(self, query: Query, *, top_k: int = 1) -> SearchResult:
        """The page; nothing where there is none. Raises ToolUnavailable for words and pictures."""
        if not isinstance(query, PageQuery):
            raise ToolUnavailable(f"{self.name}: expected an address, got {type(query).__name__}; use a search")
        page = self._by_url.get(query.url)
        if page is None:
            return SearchResult(())
        return SearchResult((Hit(page.title, page.url, page.text[:MAX_PAGE_CHARACTERS]),)[:top_k])

    async def aclose(self) -> None:
        """Nothing to free."""
