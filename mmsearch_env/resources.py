"""What environments of one process share: questions and tools, resolved by name and built once."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

import numpy as np

from mmsearch_env import aio
from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError, DataError, ImageError, QuestionError
from mmsearch_env.images import Image
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.rendering import plain
from mmsearch_env.tools.search_tool import SearchTool

ToolSpec = str | Mapping[str, Any] | SearchTool
"""A tool's name (``"local"``), a JSON-able mapping for ``build_tool``, or the tool itself."""

SEARCH_KINDS = (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH, ActionKind.VISIT_PAGE)
"""Kinds of action that ask a tool."""

_CLOSING_S = 5.0

_log = logging.getLogger(__name__)


class QuestionDraw:
    """Draws questions; one whose picture is broken, or that has too many, is passed over, reported and remembered.

    Attributes:
        unusable: ids of the questions passed over, and why.
    """

    def __init__(self, questions: QuestionSet, max_images: int = 1) -> None:
        """Args: max_images: pictures that a question may have."""
        self.questions = questions
        self._max_images = max_images
        self.unusable: dict[str, str] = {}

    def draw(self, rng: np.random.Generator) -> tuple[Question, tuple[Image, ...]]:
        """A question, uniformly from the usable ones, and its pictures.

        Raises:
            DataError: no question can be used.
        """
        while len(self.unusable) < len(self.questions):
            question = self.questions[int(rng.integers(len(self.questions)))]
            if question.id in self.unusable:
                continue
            try:
                return question, question.load_images(self._max_images)
            except (ImageError, QuestionError) as error:
                self.unusable[question.id] = str(error)
                _log.warning("question %s is passed over: %s", plain(question.id), plain(str(error)))
        reason = next(iter(self.unusable.values()))
        raise DataError(f"{self.questions.name}: expected a usable question, got none; the first passed over: {reason}")


def resolve_questions(questions: str | QuestionSet | None, world: str, split: str) -> QuestionSet:
    """A set as it is, a question file, or the world's own questions of ``split``.

    Raises:
        ConfigError, DataError: unknown world or split, or a file that cannot be used.
    """
    if isinstance(questions, QuestionSet):
        return questions
    if questions is None:
        from mmsearch_env.worlds import load_world

        return load_world(world).questions(split)
    from mmsearch_env.datasets import load_questions

    return load_questions(questions)


def resolve_tools(tools: ToolSpec | Mapping[str, ToolSpec] | None, world: str) -> dict[ActionKind, SearchTool]:
    """One tool per kind of search.

    Args:
        tools: None for the embedded engine; one spec for both searches, and for page visits where it has pages as
            well; or a mapping from ``image_search``, ``text_search`` and ``visit_page`` to a spec each. A kind left
            out is the embedded engine.
        world: the spec of the world that embedded tools search.

    Raises:
        ConfigError: an unknown kind or a spec nobody can build.
    """
    if isinstance(tools, Mapping) and "name" not in tools:
        by_kind: Mapping[str, Any] = tools
    else:
        by_kind = dict.fromkeys(SEARCH_KINDS if has_pages(tools) else SEARCH_KINDS[:2], tools or "local")
    for name in by_kind:
        if name not in SEARCH_KINDS:
            raise ConfigError(f"tools: expected the keys {' and '.join(SEARCH_KINDS)}, got {name!r}; mend the setting")
    return {kind: _resolve_tool(kind, by_kind.get(kind, "local"), world) for kind in SEARCH_KINDS}


def has_pages(tools: object) -> bool:
    """Whether a tool that is named for both searches gives whole pages too; services on the web do not."""
    spec = {"name": tools} if isinstance(tools, str) else tools
    if not isinstance(spec, Mapping):
        return False
    if spec.get("name") == "replay":
        return "live" not in spec or has_pages(spec["live"])
    return spec.get("name") in ("local", "corpus", "server")


def _resolve_tool(kind: ActionKind, spec: Any, world: str) -> SearchTool:
    if isinstance(spec, SearchTool):
        return spec
    try:
        if not isinstance(spec, (str, Mapping)):
            raise TypeError("neither a name nor a mapping")
        text = json.dumps(spec, sort_keys=True)
    except TypeError as error:
        raise ConfigError(
            f"tools: expected a name, a JSON-able mapping or a tool (name, search, aclose) for {kind}, got {spec!r}"
        ) from error
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    # A scripted tool remembers where it is in its script, so each environment has its own.
    return _build_tool(kind, text, world) if name == "fake" else _shared_tool(kind, text, world)


def _build_tool(kind: ActionKind, spec: str, world: str) -> SearchTool:
    from mmsearch_env.tools import build_tool
    from mmsearch_env.worlds import load_world

    return build_tool(kind, json.loads(spec), load_world(world))


@cache
def _shared_tool(kind: ActionKind, spec: str, world: str) -> SearchTool:
    """Shared by the environments of this process, so none of them closes it."""
    tool = _build_tool(kind, spec, world)
    close_at_exit(tool)
    return tool


class Closable(Protocol):
    """What holds connections."""

    async def aclose(self) -> None:
        """Free them."""
        ...


def close_at_exit(held: Closable) -> None:
    """Close something at the end of the process, when nobody is left to be told of an error."""

    def close() -> None:
        with contextlib.suppress(Exception):
            aio.run(asyncio.wait_for(held.aclose(), _CLOSING_S))

    atexit.register(close)
