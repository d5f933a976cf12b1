"""Tools without an engine, and tools by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError, ToolTimeout, ToolUnavailable
from mmsearch_env.tools import WEB_TOOLS, SearchTool, TextQuery, build_tool, tool_names
from mmsearch_env.tools.fake import FakeSearch
from mmsearch_env.tools.search_tool import Hit, SearchResult

TEXT = ActionKind.TEXT_SEARCH


def search(tool: SearchTool, text: str = "x", top_k: int = 3) -> SearchResult:
    return asyncio.run(tool.search(TextQuery(text), top_k=top_k))


def test_script_is_followed_repeated_and_recorded() -> None:
    one, two = SearchResult((Hit("one", "u1"), Hit("more", "u2"))), SearchResult((Hit("two", "u3"),))
    tool = FakeSearch([one, two])
    assert [search(tool, word, top_k=1).hits[0].title for word in ("a", "b", "c")] == ["one", "two", "one"]
    assert [query.text for query in tool.queries] == ["a", "b", "c"]  # type: ignore[union-attr]
    assert len(search(tool).hits) == 1


def test_scripted_fault_is_raised_and_recorded() -> None:
    tool = FakeSearch([ToolTimeout("slow"), SearchResult(())])
    with pytest.raises(ToolTimeout, match="slow"):
        search(tool)
    assert search(tool) == SearchResult(())
    assert len(tool.queries) == 2


def test_fake_is_built_from_json() -> None:
    spec = {"name": "fake", "script": [[{"title": "T", "url": "u", "snippet": "s"}], "timeout", "unavailable"]}
    tool = build_tool(TEXT, spec)
    assert search(tool).hits == (Hit("T", "u", "s"),)
    with pytest.raises(ToolTimeout):
        search(tool)
    with pytest.raises(ToolUnavailable):
        search(tool)


def test_empty_script_finds_nothing() -> None:
    assert search(build_tool(TEXT, "fake")) == SearchResult(())


def test_tool_that_is_switched_off_is_unavailable() -> None:
    tool = build_tool(TEXT, "none")
    with pytest.raises(ToolUnavailable, match="got the tool 'none'"):
        search(tool)
    asyncio.run(tool.aclose())


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        (TEXT, "google", "expected a name of local, corpus, fake, none, .* got 'google'"),
        (TEXT, {}, "expected a name of local, corpus, fake, none, .* got ''"),
        (TEXT, "local", "expected a world to search, got none"),
        (TEXT, {"name": "corpus"}, "expected the setting 'path', got none"),
        (TEXT, {"name": "replay", "miss": "empty"}, "expected the setting 'path', got none"),
        (TEXT, {"name": "none", "speed": 3}, "expected no settings, got 'speed'"),
        (TEXT, {"name": "local", "speed": 3}, "expected one of cache_dir, got 'speed'"),
        (TEXT, {"name": "fake", "speed": 3}, r"got \['speed'\] besides"),
        (TEXT, {"name": "fake", "script": ["explode"]}, "or a fault of timeout, unavailable, got 'explode'"),
        (TEXT, {"name": "fake", "script": [[{"url": "u"}]]}, "expected hits with title, url"),
        (ActionKind.ANSWER, "fake", "expected the kind image_search or text_search"),
    ],
)
def test_wrong_spec_is_refused_with_what_was_expected(kind: ActionKind, spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tool(kind, spec)


def test_names_are_listed() -> None:
    assert tool_names() == ("local", "corpus", "fake", "none", "replay", "reader", "server", *WEB_TOOLS)
