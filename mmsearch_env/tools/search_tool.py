"""The contract of a search tool.

A tool is a coroutine from a query to a ranked list of hits. It either returns a :class:`SearchResult` (which may hold
no hits) or raises a :class:`~mmsearch_env.errors.ToolError`; nothing else may leave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mmsearch_env.images import FULL_FRAME, BBox, Image


@dataclass(frozen=True, slots=True)
class TextQuery:
    """Words to search for. The question is known too, so that a tool can summarise with it in mind."""

    text: str
    question_id: str = ""
    question_text: str = ""


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """A picture, or the part of it inside ``bbox``, to search for.

    ``question_id`` stands for the question's first picture; a search with another one goes without it.
    """

    image: Image
    bbox: BBox = FULL_FRAME
    question_id: str = ""
    question_text: str = ""


@dataclass(frozen=True, slots=True)
class PageQuery:
    """A page to read. The result is one hit: its title, its address, and what it says as the snippet."""

    url: str
    question_id: str = ""
    question_text: str = ""


Query = TextQuery | ImageQuery | PageQuery
"""What a tool may be asked."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One page found.

    Attributes:
        title: the page's title.
        url: where it is.
        snippet: the passage that matched; "" for an image hit.
        score: the engine's own score, higher is better; comparable within one result only.
        thumbnail: the picture on the page; None for a text hit.
    """

    title: str
    url: str
    snippet: str = ""
    score: float = 0.0
    thumbnail: Image | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a search cost.

    Attributes:
        calls: calls to services; none for what was kept or is embedded.
        usd: their list price in US dollars.
    """

    calls: int = 0
    usd: float = 0.0


FREE = Cost()


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits for one query, best first. The environment enters the cost; tools leave it out."""

    hits: tuple[Hit, ...]
    cost: Cost = FREE


@runtime_checkable
class SearchTool(Protocol):
    """One way to search. ``name`` appears in logs; ``aclose`` frees what the tool holds and may be called twice."""

    name: str

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """At most ``top_k`` hits. Raises ToolError."""
        ...

    async def aclose(self) -> None:
        """Free what the tool holds; may be called twice."""
        ...
