"""What environments of one process share: questions and tools, resolved by name and built once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError
from mmsearch_env.questions import QuestionSet
from mmsearch_env.tools.search_tool import SearchTool

ToolSpec = str | Mapping[str, Any] | SearchTool
"""A tool's name (``"local"``), a JSON-able mapping for ``build_tool``, or the tool itself."""

SEARCH_KINDS = (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH)


def resolve_questions(questions: str | QuestionSet | None, world: str, split: str) -> QuestionSet:
    """A set as it is, a question file, or the world's own questions of ``split``.

    Raises:
        ConfigError, DataError: unknown world or split, or a file that cannot be used.
    """
    if isinstance(questions, QuestionSet):
        return questions
    if questions is None:
        return _world_questions(world, split)
    from mmsearch_env.datasets import load_questions

    return load_questions(questions)


def resolve_tools(tools: ToolSpec | Mapping[str, ToolSpec] | None, world: str) -> dict[ActionKind, SearchTool]:
    """One tool per kind of search.

    Args:
        tools: None for the embedded engine; one name for both kinds; or a mapping from ``image_search`` and
            ``text_search`` to a spec each. A kind left out is the embedded engine.

    Raises:
        ConfigError: an unknown kind or a spec nobody can build.
    """
    by_kind = tools if isinstance(tools, Mapping) else dict.fromkeys(SEARCH_KINDS, tools or "local")
    for name in by_kind:
        if name not in SEARCH_KINDS:
            raise ConfigError(f"tools: expected the keys {' and '.join(SEARCH_KINDS)}, got {name!r}; mend the setting")
    return {kind: _resolve_tool(kind, by_kind.get(kind, "local"), world) for kind in SEARCH_KINDS}


def _resolve_tool(kind: ActionKind, spec: Any, world: str) -> SearchTool:
    if isinstance(spec, SearchTool):
        return spec
    try:
        text = json.dumps(spec, sort_keys=True)
    except TypeError as error:
        raise ConfigError(f"tools: expected a tool, a name or a JSON-able mapping for {kind}, got {spec!r}") from error
    return _shared_tool(kind, text, world)


@lru_cache(maxsize=None)
def _world_questions(world: str, split: str) -> QuestionSet:
    from mmsearch_env.worlds import load_world

    return load_world(world).questions(split)


@lru_cache(maxsize=None)
def _shared_tool(kind: ActionKind, spec: str, world: str) -> SearchTool:
    from mmsearch_env.tools import build_tool
    from mmsearch_env.worlds import load_world

    build: Callable[..., SearchTool] = build_tool
    return build(kind, json.loads(spec), load_world(world))
