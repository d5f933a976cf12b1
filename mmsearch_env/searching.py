"""Asking a tool: the one place where a tool's failure is caught."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mmsearch_env.actions import Action, ImageSearch, TextSearch, VisitPage
from mmsearch_env.errors import BudgetError, EpisodeError, ToolError, ToolTimeout
from mmsearch_env.images import Image
from mmsearch_env.net.metering import metered
from mmsearch_env.questions import Question
from mmsearch_env.rendering import plain
from mmsearch_env.tools.search_tool import Cost, Hit, ImageQuery, PageQuery, Query, SearchResult, SearchTool, TextQuery

_HIT_FIELDS: Mapping[str, tuple[type, ...]] = {
    "title": (str,),
    "url": (str,),
    "snippet": (str,),
    "score": (int, float),
    "thumbnail": (Image, type(None)),
}

_log = logging.getLogger(__name__)


def query_of(action: Action, question: Question, images: Sequence[Image]) -> Query:
    """What a search asks its tool. Raises EpisodeError for an action that is no search."""
    if isinstance(action, ImageSearch):
        question_id = "" if action.index else question.id  # a record may know the first picture by its question alone
        return ImageQuery(images[action.index], action.bbox, question_id, question.text)
    if isinstance(action, TextSearch):
        return TextQuery(action.query, question.id, question.text)
    if isinstance(action, VisitPage):
        return PageQuery(action.url, question.id, question.text)
    raise EpisodeError(f"expected a search, got {type(action).__name__}; finish the turn without a tool")


async def ask(tool: SearchTool, query: Query, *, top_k: int, timeout_s: float) -> SearchResult | ToolError:
    """The tool's answer, or the error that takes its place. Nothing a tool does ends an episode, but a BudgetError.

    Args:
        tool: whom to ask.
        query: what to ask.
        top_k: most hits kept.
        timeout_s: seconds the tool is given.
    """
    try:
        with metered() as meter:
            async with asyncio.timeout(timeout_s):
                result = await tool.search(query, top_k=top_k)
        return replace(checked(result, tool, top_k=top_k), cost=Cost(meter.calls, meter.usd))
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise  # somebody cancels the episode, not the tool itself
        return _failed(tool, ToolError(f"{tool.name}: expected a result, got a cancelled search", code="cancelled"))
    except BudgetError:
        raise  # it is meant to end the run
    except KeyboardInterrupt:
        raise
    # SystemExit and its like too: raised in a coroutine, they would stop the loop for every other episode.
    except BaseException as raised:  # noqa: BLE001
        return _failed(tool, raised, timeout_s=timeout_s)


async def ask_together(
    tool: SearchTool, queries: Sequence[Query], *, top_k: int, timeout_s: float
) -> list[SearchResult | ToolError]:
    """The answers to several queries, in order: in one call if the tool offers ``search_many``, else side by side.

    ``search_many(queries, *, top_k)`` is a plain function; it runs in a thread, so that it holds nobody up. Where the
    joint call fails, each query is asked alone, so that one bad query spoils no other.
    """
    search_many = getattr(tool, "search_many", None)
    if search_many is not None and len(queries) > 1:
        try:
            async with asyncio.timeout(timeout_s):
                results = await asyncio.to_thread(search_many, queries, top_k=top_k)
            if len(results) != len(queries):
                raise ToolError(f"{tool.name}: expected {len(queries)} results, got {len(results)}", code="bad_reply")
            return [checked(result, tool, top_k=top_k) for result in results]
        except BudgetError:
            raise
        except TimeoutError as raised:
            return [_failed(tool, raised, timeout_s=timeout_s) for _ in queries]
        except (Exception, SystemExit, GeneratorExit) as raised:  # noqa: BLE001  asking one by one finds out for whom
            _log.info("%s: joint search failed, asking one by one: %s", tool.name, plain(str(raised)))
    return await asyncio.gather(*(ask(tool, query, top_k=top_k, timeout_s=timeout_s) for query in queries))


def checked(result: object, tool: SearchTool, *, top_k: int) -> SearchResult:
    """What a tool returned, cut to ``top_k`` hits.

    Raises:
        ToolError: something in it is not of the type declared (``bad_reply``).
    """

    def expect(kinds: tuple[type, ...], what: str, value: object) -> None:
        if not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ToolError(f"{tool.name}: expected {wanted} as {what}, got {type(value).__name__}", code="bad_reply")

    expect((SearchResult,), "result", result)
    assert isinstance(result, SearchResult)
    expect((tuple,), "hits", result.hits)
    for hit in result.hits[:top_k]:
        expect((Hit,), "hit", hit)
        for name, kinds in _HIT_FIELDS.items():
            expect(kinds, f"{name} of a hit", getattr(hit, name))
    return SearchResult(result.hits[:top_k])


def _failed(tool: SearchTool, raised: BaseException, *, timeout_s: float = 0.0) -> ToolError:
    """The error that stands for whatever a tool did wrong."""
    if isinstance(raised, TimeoutError):
        raised = ToolTimeout(f"{tool.name}: expected a reply within {timeout_s:g} s, got none")
    if isinstance(raised, ToolError):
        _log.info("search failed: %s", plain(str(raised)))
        return raised
    reason = f"{type(raised).__name__}: {_said(raised)}"
    error = ToolError(f"{tool.name}: expected a result, got {reason}", code="tool_error")
    _log.warning("%s", plain(str(error)))
    return error


def _said(raised: BaseException) -> str:
    """An exception's own words, if it has any: a tool's may raise when it is asked."""
    try:
        return str(raised)
    except Exception:  # noqa: BLE001
        return "without words"
