"""Actions as JSON calls, the way models with tool use are trained to write them.

    some thoughts, then exactly one of
        <tool_call>{"name": "image_search", "arguments": {}}</tool_call>               search with the whole picture
        <tool_call>{"name": "image_search", "arguments": {"bbox": [x0, y0, x1, y1]}}</tool_call>    with a part of it
        <tool_call>{"name": "image_search", "arguments": {"image": 2}}</tool_call>     with the second of several
        <tool_call>{"name": "text_search", "arguments": {"query": "..."}}</tool_call>
        <tool_call>{"name": "visit_page", "arguments": {"url": "..."}}</tool_call>
        <tool_call>{"name": "answer", "arguments": {"text": "..."}}</tool_call>

What a tool found comes back inside ``<tool_response>...</tool_response>``. Reading is lenient (capitals and spaces in a
tag, ``arguments`` left out), the form that earns the format point is strict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, assert_never

from mmsearch_env.actions import (
    MAX_ACTION_CHARS,
    Action,
    ActionKind,
    Answer,
    ImageSearch,
    Malformed,
    MalformedCode,
    TextSearch,
    VisitPage,
)
from mmsearch_env.images import FULL_FRAME, clean_bbox
from mmsearch_env.protocols.telling import MODEL_TAGS, Telling

_TAG_START = re.compile(rf"<(?=\s*(?:/\s*)?(?:{MODEL_TAGS})(?![a-z0-9_]))", re.IGNORECASE)
_THOUGHT = re.compile(r"<\s*think\s*>.*?<\s*/\s*think\s*>", re.IGNORECASE | re.DOTALL)
_CALL = re.compile(r"<\s*tool_call\s*>(.*?)<\s*/\s*tool_call\s*>", re.IGNORECASE | re.DOTALL)
_OPENING = re.compile(r"<\s*tool_call\s*>", re.IGNORECASE)
_STRICT = re.compile(r"(?:<think>[^<]*</think>)?[^<]*<tool_call>\s*(\{.*\})\s*</tool_call>\s*", re.DOTALL)
_MOST_IMAGES = 999
_ARGUMENT = {ActionKind.ANSWER: "text", ActionKind.TEXT_SEARCH: "query", ActionKind.VISIT_PAGE: "url"}
"""The one argument of each function that takes a text."""


@dataclass(frozen=True, slots=True)
class ToolCall(Telling):
    """JSON calls with a prompt set."""

    result_tags: ClassVar[tuple[str, str]] = ("<tool_response>", "</tool_response>")
    reason_end: ClassVar[str] = "</think>"

    def parse(self, text: str) -> Action:
        """What a completion means. Never raises."""
        body = _THOUGHT.sub("", text)
        openings = len(_OPENING.findall(body))
        if not openings:
            return Malformed(MalformedCode.NO_ACTION, "no tool call was found")
        if openings > 1:
            return Malformed(MalformedCode.SEVERAL_ACTIONS, f"{openings} tool calls were found, expected one")
        call = _CALL.search(body)
        if call is None:
            return Malformed(MalformedCode.UNCLOSED_TAG, "<tool_call> was not closed")
        if body[call.end() :].strip():
            return Malformed(MalformedCode.TRAILING_TEXT, "there was text after </tool_call>")
        return _action(call.group(1))

    def well_formed(self, text: str) -> bool:
        """Thoughts, then exactly one call in exact spelling, with its name and its arguments and nothing else."""
        strict = _STRICT.fullmatch(text)
        if strict is None or isinstance(self.parse(text), Malformed):
            return False
        call = json.loads(strict.group(1))
        if set(call) != {"name", "arguments"}:
            return False
        wanted = _ARGUMENT.get(call["name"])
        return set(call["arguments"]) <= {"bbox", "image"} if wanted is None else set(call["arguments"]) == {wanted}

    def format(self, action: Action, *, reason: str) -> str:
        """The canonical text of an action; coordinates of a box are given to six digits."""
        thought = f"<think>{self.neutralise(reason)}</think>" if reason else ""
        match action:
            case Answer(text):
                return thought + _call(ActionKind.ANSWER, {"text": self.neutralise(text)})
            case TextSearch(query):
                return thought + _call(ActionKind.TEXT_SEARCH, {"query": self.neutralise(query)})
            case VisitPage(url):
                return thought + _call(ActionKind.VISIT_PAGE, {"url": self.neutralise(url)})
            case ImageSearch(bbox, index):
                box = {} if bbox == FULL_FRAME else {"bbox": [round(side, 6) for side in bbox]}
                number = {"image": index + 1} if index else {}
                return thought + _call(ActionKind.IMAGE_SEARCH, {**number, **box})
            case Malformed():
                return thought
            case _:
                assert_never(action)

    def begun(self, kind: ActionKind) -> str:
        """How an action of this kind begins."""
        if kind is ActionKind.IMAGE_SEARCH:
            return _call(kind, {})
        return _call(kind, {_ARGUMENT[kind]: ""}).removesuffix('"}}</tool_call>')

    def neutralise(self, text: str) -> str:
        """``text`` with the ``<`` of every tag of the grammar turned into ``‹``, and nothing else changed."""
        return _TAG_START.sub("‹", text)


def _call(name: ActionKind, arguments: Mapping[str, Any]) -> str:
    return f"<tool_call>{json.dumps({'name': name.value, 'arguments': arguments}, ensure_ascii=False)}</tool_call>"


def _action(text: str) -> Action:
    """The action of what stood inside the tags."""
    if len(text) > 4 * MAX_ACTION_CHARS:
        return Malformed(MalformedCode.TOO_LONG, f"<tool_call> held more than {4 * MAX_ACTION_CHARS} characters")
    if not text.strip():
        return Malformed(MalformedCode.EMPTY_ACTION, "<tool_call> was empty")
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return Malformed(MalformedCode.BAD_ARGUMENT, "the tool call was not JSON")
    arguments = call.get("arguments", {}) if isinstance(call, dict) else None
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(arguments, dict) or name not in tuple(ActionKind):
        names = ", ".join(ActionKind)
        return Malformed(MalformedCode.BAD_ARGUMENT, f"the tool call must have a name of {names} and arguments")
    kind = ActionKind(name)
    return _image_search(arguments) if kind is ActionKind.IMAGE_SEARCH else _written(kind, arguments)


def _written(kind: ActionKind, arguments: Mapping[str, Any]) -> Action:
    value = arguments.get(_ARGUMENT[kind])
    if not isinstance(value, str):
        return Malformed(MalformedCode.BAD_ARGUMENT, f"{kind} takes one text, {_ARGUMENT[kind]}")
    if not value.strip():
        return Malformed(MalformedCode.EMPTY_ACTION, f"{_ARGUMENT[kind]} of {kind} was empty")
    if len(value) > MAX_ACTION_CHARS:
        detail = f"{_ARGUMENT[kind]} of {kind} held more than {MAX_ACTION_CHARS} characters"
        return Malformed(MalformedCode.TOO_LONG, detail)
    if kind is ActionKind.ANSWER:
        return Answer(value.strip())
    return TextSearch(value.strip()) if kind is ActionKind.TEXT_SEARCH else VisitPage(value.strip())


def _image_search(arguments: Mapping[str, Any]) -> Action:
    box, number = arguments.get("bbox"), arguments.get("image", 1)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _MOST_IMAGES:
        return Malformed(MalformedCode.BAD_ARGUMENT, "image must be the number of a picture, counted from 1")
    if box is None:
        return ImageSearch(index=number - 1)
    is_box = isinstance(box, list) and len(box) == 4
    if not is_box or not all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in box):
        return Malformed(MalformedCode.BAD_ARGUMENT, "bbox must be four numbers x0, y0, x1, y1")
    return ImageSearch(clean_bbox(box), number - 1)
