"""Asking a tool: nothing it does wrong leaves the one place where that is caught."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mmsearch_env import aio
from mmsearch_env.actions import TextSearch
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import EpisodeError, ToolError
from mmsearch_env.images import Image
from mmsearch_env.questions import QuestionSet
from mmsearch_env.searching import ask, ask_together
from mmsearch_env.tools.search_tool import Hit, Query, SearchResult, TextQuery
from mmsearch_env.vector_env import MMSearchVectorEnv

GOOD = SearchResult((Hit("Chad", "u", "snippet"),))
QUERIES = [TextQuery("one"), TextQuery("two")]


class Tool:
    """Answers with what a function makes; so does ``search_many``, if one is given."""

    name = "tool"

    def __init__(self, make: Callable[[], Any], many: Callable[[Sequence[Query]], Any] | None = None) -> None:
        self._make = make
        if many is not None:
            self.search_many = lambda queries, *, top_k: many(queries)

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        made: SearchResult = self._make()
        return made

    async def aclose(self) -> None: ...


def raising(error: BaseException) -> Callable[[], Any]:
    def make() -> Any:
        raise error

    return make


@pytest.mark.parametrize(
    "reply",
    [
        None,
        "text",
        SearchResult(None),  # type: ignore[arg-type]
        SearchResult([Hit("t", "u")]),  # type: ignore[arg-type]
        SearchResult(({"title": "t"},)),  # type: ignore[arg-type]
        SearchResult((Hit(None, "u"),)),  # type: ignore[arg-type]
        SearchResult((Hit("t", 5),)),  # type: ignore[arg-type]
        SearchResult((Hit("t", "u", None),)),  # type: ignore[arg-type]
        SearchResult((Hit("t", "u", score="high"),)),  # type: ignore[arg-type]
        SearchResult((Hit("t", "u", thumbnail=np.zeros((2, 2, 3), np.uint8)),)),  # type: ignore[arg-type]
    ],
)
def test_a_reply_of_another_form_is_a_failed_search(reply: Any) -> None:
    found = aio.run(ask(Tool(lambda: reply), QUERIES[0], top_k=3, timeout_s=1.0))
    assert isinstance(found, ToolError) and found.code == "bad_reply"
    both = aio.run(ask_together(Tool(lambda: reply, lambda q: [reply] * len(q)), QUERIES, top_k=3, timeout_s=1.0))
    assert [getattr(one, "code", "") for one in both] == ["bad_reply"] * 2


class Mute(Exception):
    """Cannot say what it is about."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Odd(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(1),
        GeneratorExit(),
        MemoryError(),
        RecursionError(),
        Mute(),
        Odd("x"),
        BaseExceptionGroup("both", [SystemExit()]),
    ],
)
def test_no_error_of_a_tool_stops_the_loop_of_the_process(error: BaseException) -> None:
    found = aio.run(ask(Tool(raising(error)), QUERIES[0], top_k=3, timeout_s=1.0))
    assert isinstance(found, ToolError) and found.code == "tool_error"
    assert aio.run(ask(Tool(lambda: GOOD), QUERIES[0], top_k=3, timeout_s=1.0)) == GOOD


@pytest.mark.parametrize("results", [[], [GOOD], [GOOD] * 3, None, 5])
def test_a_joint_search_of_another_length_is_made_one_by_one(results: Any) -> None:
    tool = Tool(lambda: GOOD, lambda queries: results)
    assert aio.run(ask_together(tool, QUERIES, top_k=3, timeout_s=1.0)) == [GOOD, GOOD]


def test_a_joint_search_has_its_time_and_holds_nobody_up() -> None:
    """It is slow on purpose; another coroutine of the loop goes on meanwhile."""
    ticks = []

    async def both() -> list[SearchResult | ToolError]:
        async def tick() -> None:
            while True:
                ticks.append(1)
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        found = await ask_together(Tool(lambda: GOOD, lambda q: time.sleep(0.3)), QUERIES, top_k=3, timeout_s=0.1)
        ticking.cancel()
        return found

    assert [getattr(one, "code", "") for one in aio.run(both())] == ["timeout", "timeout"]
    assert len(ticks) > 2


class SlowTool(Tool):
    """Waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(lambda: GOOD)
        self.go_on = asyncio.Event()

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        await self.go_on.wait()
        return GOOD


def test_while_the_vector_form_searches_nothing_else_may_happen(questions: QuestionSet) -> None:
    async def play() -> None:
        tool = SlowTool()
        envs = MMSearchVectorEnv(2, questions=questions, tools=tool, prompts="brief")
        envs.reset(seed=0)
        first = asyncio.create_task(envs.astep([TextSearch("a")] * 2))
        await asyncio.sleep(0)
        with pytest.raises(EpisodeError, match="within a turn"):
            await envs.astep([TextSearch("b")] * 2)
        with pytest.raises(EpisodeError, match="within a turn"):
            envs.reset(seed=1)
        tool.go_on.set()
        _, _, _, _, infos = await first
        assert infos["n_text_search"].tolist() == [1.0, 1.0]

    asyncio.run(play())


def test_no_state_is_set_within_a_turn(questions: QuestionSet, picture: Image) -> None:
    async def play() -> None:
        tool = SlowTool()
        env = MMSearchEnv(questions=questions, tools=tool, prompts="brief")
        env.reset(seed=0)
        state = env.get_state()
        turn = asyncio.create_task(env.astep(TextSearch("a")))
        await asyncio.sleep(0)
        with pytest.raises(EpisodeError, match="within a turn"):
            env.set_state(state)
        tool.go_on.set()
        await turn
        env.set_state(state)

    asyncio.run(play())
