"""What the environment says; a protocol adds how an action is written and how results are marked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmsearch_env.actions import ActionKind, Malformed
from mmsearch_env.episode import EpisodeState, EpisodeView, RefusalCode, Rules
from mmsearch_env.images import Image
from mmsearch_env.messages import Message, Part, TextPart, writable
from mmsearch_env.protocols.prompt_set import Prompt, PromptSet, joined
from mmsearch_env.questions import Question
from mmsearch_env.tools.search_tool import Hit, SearchResult

MAX_TITLE_CHARS = 300
"""Longest page title shown, in characters."""
MAX_SNIPPET_CHARS = 8_000
"""Longest passage shown, in characters."""
MODEL_TAGS = "tool_call|tool_response|tools|think"
"""Tags that models are trained on outside any grammar of ours: harmless in retrieved text in every protocol."""


@dataclass(frozen=True, slots=True)
class Telling(ABC):
    """The messages of a protocol, from a prompt set.

    Attributes:
        prompts: the wording.
        result_tags: what stands before and after the results of a tool.
    """

    prompts: PromptSet
    result_tags: ClassVar[tuple[str, str]]

    @abstractmethod
    def neutralise(self, text: str) -> str:
        """``text`` with every tag of the grammar made harmless and nothing else changed."""

    def first_message(self, question: Question, images: Sequence[Image], rules: Rules) -> tuple[Message, ...]:
        """The instruction with question and pictures, as one user message; the system message is the template's own."""
        view = EpisodeView(question, rules, EpisodeState())
        counters = _counters(view)
        values = {
            **counters,
            "question": self.neutralise(question.text),
            "crop": "".join("\n" + text.fill(counters) for text in self._on_pictures(len(images), rules)),
            "visit": "\n" + self.prompts.visit.fill(counters) if rules.max_page_visits else "",
        }
        return (_user(*self.prompts.first.parts(values, images), *self._next_step(view, None)),)

    def _on_pictures(self, count: int, rules: Rules) -> Iterator[Prompt]:
        """How to search with one of several pictures, and with a part of one, as far as it is possible."""
        if count > 1:
            yield self.prompts.several
        if rules.crop:
            yield self.prompts.crop

    def result_message(self, kind: ActionKind, result: SearchResult, view: EpisodeView) -> Message:
        """The hits inside the result tags, then what to do next."""
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
        """One fixed sentence inside the result tags."""
        text = self.prompts.tool_failed.fill({**_counters(view), "kind": _spoken(kind)})
        return _user(*self._information([TextPart(text)]), *self._next_step(view, None))

    def malformed_message(self, malformed: Malformed, view: EpisodeView) -> Message:
        """What was wrong, and the grammar."""
        values = {**_counters(view), "code": malformed.code.value, "detail": malformed.detail}
        return _user(TextPart(self.prompts.malformed.fill(values)), *self._next_step(view, None))

    def limit_message(self, kind: ActionKind, code: RefusalCode, view: EpisodeView) -> Message:
        """The search was not carried out."""
        values = {**_counters(view), "code": code.value, "kind": _spoken(kind)}
        prompt = self.prompts.unknown_image if code is RefusalCode.UNKNOWN_IMAGE else self.prompts.limit
        return _user(TextPart(prompt.fill(values)), *self._next_step(view, None))

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
        return (*template.parts(values, () if hit.thumbnail is None else (hit.thumbnail,)), *address)

    def _information(self, body: list[Part]) -> tuple[Part, ...]:
        """The body between result tags; disarmed after joining, so that no two hits make a tag together."""
        harmless = (
            TextPart(self.neutralise(part.text)) if isinstance(part, TextPart) else part for part in joined(body)
        )
        opening, closing = self.result_tags
        return (TextPart(opening), *harmless, TextPart(closing))

    def _after(self, kind: ActionKind, view: EpisodeView) -> Prompt | None:
        """What is said after hits of this kind; nothing where it would invite to a search that is not allowed."""
        if kind in (ActionKind.TEXT_SEARCH, ActionKind.VISIT_PAGE):
            return self.prompts.after_text_search
        return self.prompts.after_image_search if view.allows(ActionKind.TEXT_SEARCH) else None

    def _next_step(self, view: EpisodeView, after: Prompt | None) -> tuple[Part, ...]:
        """What to do next: answer now, if nothing else is left."""
        step = self.prompts.answer_now if view.must_answer else after
        return () if step is None else (TextPart("\n" + step.fill(_counters(view))),)


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
        "images": view.question.n_images,
    }
