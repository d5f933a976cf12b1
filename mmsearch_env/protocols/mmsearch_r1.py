"""The paper's tag grammar (MMSearch-R1, arXiv 2506.20670, table 3).

    <reason>...</reason> then exactly one of
        <search><img></search>                       search with the whole picture
        <search><img>x0,y0,x1,y1</search>            search with a part of it, as fractions of width and height
        <text_search>...</text_search>               search with words
        <visit>...</visit>                           read a page that was found, by its address (beyond the paper)
        <answer>...</answer>                         answer and end the episode

What a tool found comes back inside ``<information>...</information>``. Reading is lenient (capitals, spaces inside a
tag, a missing reason), the form that earns the format point is strict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

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
from mmsearch_env.episode import EpisodeState, EpisodeView, RefusalCode, Rules
from mmsearch_env.images import FULL_FRAME, Image, clean_bbox
from mmsearch_env.messages import Message, Part, TextPart, writable
from mmsearch_env.protocols.prompt_set import Prompt, PromptSet, joined
from mmsearch_env.questions import Question
from mmsearch_env.tools.search_tool import Hit, SearchResult

MAX_TITLE_CHARS = 300
"""Longest page title shown, in characters."""
MAX_SNIPPET_CHARS = 8_000
"""Longest passage shown, in characters."""

_NAMES = "reason|search|img|text_search|visit|information|answer"
# One expression reads tags and one disarms them; the second matches whatever the first does, and tags left open.
_TAG = re.compile(rf"<\s*(?:/\s*)?(?:{_NAMES})\s*>", re.IGNORECASE)
_TAG_START = re.compile(rf"<(?=\s*(?:/\s*)?(?:{_NAMES})(?![a-z0-9_]))", re.IGNORECASE)
_REASON_OPENING = re.compile(r"<\s*reason\s*>", re.IGNORECASE)
_REASON_CLOSING = re.compile(r"<\s*/\s*reason\s*>", re.IGNORECASE)
_OPENING = re.compile(r"<\s*(search|text_search|visit|answer)\s*>", re.IGNORECASE)
_IMAGE_ARGUMENT = re.compile(r"\s*<\s*img\s*>(?:\s*<\s*/\s*img\s*>)?\s*(.*)", re.IGNORECASE | re.DOTALL)

_FORMS = (
    ("<reason>", "</reason>", "<search>", "<img>", "</search>"),
    ("<reason>", "</reason>", "<text_search>", "</text_search>"),
    ("<reason>", "</reason>", "<visit>", "</visit>"),
    ("<reason>", "</reason>", "<answer>", "</answer>"),
)


@dataclass(frozen=True, slots=True)
class MMSearchR1:
    """The paper's grammar with a prompt set."""

    prompts: PromptSet

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
            case ImageSearch(bbox):
                box = "" if bbox == FULL_FRAME else ",".join(f"{value:g}" for value in bbox)
                return f"<search><img>{box}</search>"
            case Malformed():
                return ""
            case _:
                assert_never(action)

    def neutralise(self, text: str) -> str:
        """``text`` with the ``<`` of every tag of the grammar turned into ``‹``, and nothing else changed."""
        return _TAG_START.sub("‹", text)

    def first_message(self, question: Question, image: Image, rules: Rules) -> tuple[Message, ...]:
        """The instruction with question and picture, as one user message; the system message is the template's own."""
        view = EpisodeView(question, rules, EpisodeState())
        counters = _counters(view)
        values = {
            **counters,
            "question": self.neutralise(question.text),
            "crop": "\n" + self.prompts.crop.fill(counters) if rules.crop else "",
            "visit": "\n" + self.prompts.visit.fill(counters) if rules.max_page_visits else "",
        }
        return (_user(*self.prompts.first.parts(values, image), *self._next_step(view, None)),)

    def result_message(self, kind: ActionKind, result: SearchResult, view: EpisodeView) -> Message:
        """The hits inside the information tags, then what to do next."""
        template = {
            ActionKind.IMAGE_SEARCH: self.prompts.image_hit,
            ActionKind.VISIT_PAGE: self.prompts.page,
        }.get(kind, self.prompts.text_hit)
        body: list[Part] = []
        for rank, hit in enumerate(result.hits, start=1):
            body += [TextPart("\n")] if body else []
            body += self._hit(template, rank, hit, view)
        if not body:
            body.append(TextPart(self.prompts.no_hits.fill({**_counters(view), "kind": _spoken(kind)})))
        note = f"\n{self.prompts.crop_ignored.fill(_counters(view))}" if view.box_ignored else ""
        return _user(*self._information(body), TextPart(note), *self._next_step(view, self._after(kind, view)))

    def failure_message(self, kind: ActionKind, view: EpisodeView) -> Message:
        """One fixed sentence inside the information tags."""
        text = self.prompts.tool_failed.fill({**_counters(view), "kind": _spoken(kind)})
        return _user(*self._information([TextPart(text)]), *self._next_step(view, None))

    def malformed_message(self, malformed: Malformed, view: EpisodeView) -> Message:
        """What was wrong, and the grammar."""
        values = {**_counters(view), "code": malformed.code.value, "detail": malformed.detail}
        return _user(TextPart(self.prompts.malformed.fill(values)), *self._next_step(view, None))

    def limit_message(self, kind: ActionKind, code: RefusalCode, view: EpisodeView) -> Message:
        """The search was not carried out."""
        values = {**_counters(view), "code": code.value, "kind": _spoken(kind)}
        return _user(TextPart(self.prompts.limit.fill(values)), *self._next_step(view, None))

    def _hit(self, template: Prompt, rank: int, hit: Hit, view: EpisodeView) -> tuple[Part, ...]:
        values = {
            **_counters(view),
            "rank": rank,
            "title": _one_line(hit.title),
            "snippet": hit.snippet[:MAX_SNIPPET_CHARS],
            "url": _one_line(hit.url),
        }
        # Whoever may visit a page has to see its address.
        is_hidden = view.rules.max_page_visits > 0 and "$url" not in template.text
        address = (TextPart(f" ({values['url']})"),) if is_hidden else ()
        return (*template.parts(values, hit.thumbnail), *address)

    def _information(self, body: list[Part]) -> tuple[Part, ...]:
        """The body between information tags; disarmed after joining, so that no two hits make a tag together."""
        harmless = (
            TextPart(self.neutralise(part.text)) if isinstance(part, TextPart) else part for part in joined(body)
        )
        return (TextPart("<information>"), *harmless, TextPart("</information>"))

    def _after(self, kind: ActionKind, view: EpisodeView) -> Prompt | None:
        """What is said after hits of this kind; nothing where it would invite to a search that is not allowed."""
        if kind in (ActionKind.TEXT_SEARCH, ActionKind.VISIT_PAGE):
            return self.prompts.after_text_search
        return self.prompts.after_image_search if view.allows(ActionKind.TEXT_SEARCH) else None

    def _next_step(self, view: EpisodeView, after: Prompt | None) -> tuple[Part, ...]:
        """What to do next: answer now, if nothing else is left."""
        step = self.prompts.answer_now if view.must_answer else after
        return () if step is None else (TextPart("\n" + step.fill(_counters(view))),)


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


def _image_search(box: str) -> Action:
    if not box:
        return ImageSearch()
    try:
        numbers = [float(number) for number in box.strip(" []()").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        return Malformed(MalformedCode.BAD_ARGUMENT, "the part of the picture must be four numbers x0,y0,x1,y1")
    return ImageSearch(clean_bbox(numbers))


def _user(*parts: Part) -> Message:
    readable = (TextPart(writable(part.text)) if isinstance(part, TextPart) else part for part in parts)
    # Even where every prompt is empty something is said: an observation of no parts would join two turns of the player.
    return Message("user", joined(readable) or (TextPart(""),))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_TITLE_CHARS]


def _spoken(kind: ActionKind) -> str:
    return kind.value.replace("_", " ")


def _counters(view: EpisodeView) -> Mapping[str, object]:
    return {
        "max_rounds": view.rules.max_rounds,
        "max_image_searches": view.rules.max_image_searches,
        "max_text_searches": view.rules.max_text_searches,
        "rounds_left": view.rounds_left,
        "image_searches_left": view.image_searches_left,
        "text_searches_left": view.text_searches_left,
        "max_page_visits": view.rules.max_page_visits,
        "page_visits_left": view.page_visits_left,
    }
