"""The paper's tag grammar (MMSearch-R1, arXiv 2506.20670, table 3).

    <reason>...</reason> then exactly one of
        <search><img></search>                       search with the whole picture
        <search><img>x0,y0,x1,y1</search>            search with a part of it, as fractions of width and height
        <search><img>2</search>                      search with the second picture, where the question has several
        <search><img>2:x0,y0,x1,y1</search>          search with a part of that
        <text_search>...</text_search>               search with words
        <visit>...</visit>                           read a page that was found, by its address (beyond the paper)
        <answer>...</answer>                         answer and end the episode

What a tool found comes back inside ``<information>...</information>``. Reading is lenient (capitals, spaces inside a
tag, a missing reason), the form that earns the format point is strict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, assert_never

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

_NAMES = "reason|search|img|text_search|visit|information|answer"
# One expression reads tags and one disarms them; the second matches whatever the first does, and tags left open.
_TAG = re.compile(rf"<\s*(?:/\s*)?(?:{_NAMES})\s*>", re.IGNORECASE)
_TAG_START = re.compile(rf"<(?=\s*(?:/\s*)?(?:{_NAMES}|{MODEL_TAGS})(?![a-z0-9_]))", re.IGNORECASE)
_REASON_OPENING = re.compile(r"<\s*reason\s*>", re.IGNORECASE)
_REASON_CLOSING = re.compile(r"<\s*/\s*reason\s*>", re.IGNORECASE)
_OPENING = re.compile(r"<\s*(search|text_search|visit|answer)\s*>", re.IGNORECASE)
_IMAGE_ARGUMENT = re.compile(r"\s*<\s*img\s*>(?:\s*<\s*/\s*img\s*>)?\s*(.*)", re.IGNORECASE | re.DOTALL)
_NUMBERED = re.compile(r"\s*(?:([0-9]{1,3})\s*(?::|\Z))?\s*(.*)", re.DOTALL)

_FORMS = (
    ("<reason>", "</reason>", "<search>", "<img>", "</search>"),
    ("<reason>", "</reason>", "<text_search>", "</text_search>"),
    ("<reason>", "</reason>", "<visit>", "</visit>"),
    ("<reason>", "</reason>", "<answer>", "</answer>"),
)
_BEGUN = {
    ActionKind.ANSWER: "<answer>",
    ActionKind.IMAGE_SEARCH: "<search><img></search>",
    ActionKind.TEXT_SEARCH: "<text_search>",
    ActionKind.VISIT_PAGE: "<visit>",
}


@dataclass(frozen=True, slots=True)
class MMSearchR1(Telling):
    """The paper's grammar with a prompt set."""

    result_tags: ClassVar[tuple[str, str]] = ("<information>", "</information>")
    reason_end: ClassVar[str] = "</reason>"

    def parse(self, text: str) -> Action:
        """What a completion means. Never raises."""
        body = _without_reasons(text)
        openings = list(_OPENING.finditer(body))
        if not openings:
            return Malformed(MalformedCode.NO_ACTION, "no search and no answer was found")
        if len(openings) > 1:
            return Malformed(MalformedCode.SEVERAL_ACTIONS, f"{len(openings)} actions were found, expected one")
        name = openings[0].group(1).lower()
        closing = re.compile(rf"<\s*/\s*{name}\s*>", re.IGNORECASE).search(body, openings[0].end())
        if closing is None:
            return Malformed(MalformedCode.UNCLOSED_TAG, f"<{name}> was not closed")
        if body[closing.end() :].strip():
            return Malformed(MalformedCode.TRAILING_TEXT, f"there was text after </{name}>")
        return _action(name, body[openings[0].end() : closing.start()].strip())

    def well_formed(self, text: str) -> bool:
        """A reason, then exactly one action, in exact spelling, with nothing before, between or after."""
        tags = tuple(_TAG.findall(text))
        if tags not in _FORMS or isinstance(self.parse(text), Malformed):
            return False
        before, _reason, between, *_argument, after = _TAG.split(text)
        return not (before.strip() or between.strip() or after.strip())

    def format(self, action: Action, *, reason: str) -> str:
        """The canonical text of an action; coordinates of a box are given to six digits."""
        return f"<reason>{self.neutralise(reason)}</reason>{self._tagged(action)}"

    def _tagged(self, action: Action) -> str:
        match action:
            case Answer(text):
                return f"<answer>{self.neutralise(text)}</answer>"
            case TextSearch(query):
                return f"<text_search>{self.neutralise(query)}</text_search>"
            case VisitPage(url):
                return f"<visit>{self.neutralise(url)}</visit>"
            case ImageSearch(bbox, index):
                box = "" if bbox == FULL_FRAME else ",".join(f"{value:g}" for value in bbox)
                number = f"{index + 1}" if index else ""
                return f"<search><img>{':'.join(part for part in (number, box) if part)}</search>"
            case Malformed():
                return ""
            case _:
                assert_never(action)

    def begun(self, kind: ActionKind) -> str:
        """How an action of this kind begins."""
        return _BEGUN[kind]

    def neutralise(self, text: str) -> str:
        """``text`` with the ``<`` of every tag of the grammar turned into ``‹``, and nothing else changed."""
        return _TAG_START.sub("‹", text)


def _without_reasons(text: str) -> str:
    """``text`` without its closed reason blocks: an action a player only thinks about is not taken."""
    kept: list[str] = []
    position = 0
    while (opening := _REASON_OPENING.search(text, position)) is not None:
        closing = _REASON_CLOSING.search(text, opening.end())
        if closing is None:
            break
        kept.append(text[position : opening.start()])
        position = closing.end()
    return "".join((*kept, text[position:]))


def _action(name: str, argument: str) -> Action:
    """The action of a tag and what stood in it, spaces around it removed."""
    if not argument:
        return Malformed(MalformedCode.EMPTY_ACTION, f"<{name}> was empty")
    if len(argument) > MAX_ACTION_CHARS:
        return Malformed(MalformedCode.TOO_LONG, f"<{name}> held more than {MAX_ACTION_CHARS} characters")
    if name == "answer":
        return Answer(argument)
    if name == "text_search":
        return TextSearch(argument)
    if name == "visit":
        return VisitPage(argument)
    image = _IMAGE_ARGUMENT.fullmatch(argument)
    if image is None:
        return Malformed(MalformedCode.BAD_ARGUMENT, "<search> takes <img>; to search with words use <text_search>")
    return _image_search(image.group(1))


def _image_search(argument: str) -> Action:
    """Which picture, counted from 1, and which part of it; either may be left out."""
    numbered = _NUMBERED.fullmatch(argument)
    assert numbered is not None  # every part may be missing
    index, box = int(numbered[1] or 1) - 1, numbered[2]
    if index < 0:
        return Malformed(MalformedCode.BAD_ARGUMENT, "pictures are counted from 1")
    if not box:
        return ImageSearch(index=index)
    try:
        numbers = [float(number) for number in box.strip(" []()").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        return Malformed(MalformedCode.BAD_ARGUMENT, "the part of the picture must be four numbers x0,y0,x1,y1")
    return ImageSearch(clean_bbox(numbers), index)
