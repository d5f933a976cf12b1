"""Asking a tool: the one place where a tool's failure is caught."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from mmsearch_env.actions import Action, ImageSearch, TextSearch
from mmsearch_env.errors import EpisodeError, ToolError, ToolTimeout
from mmsearch_env.images import Image
from mmsearch_env.questions import Question
from mmsearch_env.tools.search_tool import ImageQuery, Query, SearchResult, SearchTool, TextQuery

_log = logging.getLogger(__name__)


def query_of(action: Action, question: Question, image: Image) -> Query:
    """What a search asks its tool. Raises EpisodeError for an action that is no search."""
    if isinstance(action, ImageSearch):
        return ImageQuery(image, action.bbox, question.id, question.text)
    if isinstance(action, TextSearch):
        return TextQuery(action.query, question.id, question.text)
    raise EpisodeError(f"expected a search, got {type(action).__name__}; finish the turn without a tool")


async def ask(tool: SearchTool, query: Query, *, top_k: int, timeout_s: float) -> SearchResult | ToolError:
    """The tool's answer, or the error that takes its place. Nothing a tool does ends an episode.

    Args:
        tool: whom to ask.
        query: what to ask.
        top_k: most hits kept.
        timeout_s: seconds the tool is given.
    """
    try:
        async with asyncio.timeout(timeout_s):
            result = await tool.search(query, top_k=top_k)
    except TimeoutError:
        error: ToolError = ToolTimeout(f"{tool.name}: expected a reply within {timeout_s:g} s, got none")
    except ToolError as raised:
        error = raised
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise  # somebody cancels the episode, not the tool itself
        error = ToolError(f"{tool.name}: expected a result, got a cancelled search", code="cancelled")
    except Exception as raised:  # noqa: BLE001  whatever a tool does wrong is a failed search, recorded as such
        error = ToolError(f"{tool.name}: expected a result, got {type(raised).__name__}: {raised}", code="tool_error")
        _log.warning("%s", error, exc_info=raised)
    else:
        if isinstance(result, SearchResult):
            return SearchResult(result.hits[:top_k])
        error = ToolError(f"{tool.name}: expected a SearchResult, got {type(result).__name__}", code="bad_reply")
    _log.info("search failed: %s", error)
    return error


async def ask_together(
    tool: SearchTool, queries: Sequence[Query], *, top_k: int, timeout_s: float
) -> list[SearchResult | ToolError]:
    """The answers to several queries, in order: in one call if the tool offers ``search_many``, else side by side.

    Where the joint call fails, each query is asked alone, so that one bad query spoils no other.
    """
    search_many = getattr(tool, "search_many", None)
    if search_many is not None and len(queries) > 1:
        try:
            return [SearchResult(result.hits[:top_k]) for result in search_many(queries, top_k=top_k)]
        except Exception as raised:  # noqa: BLE001  whatever went wrong, asking one by one finds out for whom
            _log.info("%s: joint search failed, asking one by one: %s", tool.name, raised)
    return await asyncio.gather(*(ask(tool, query, top_k=top_k, timeout_s=timeout_s) for query in queries))
