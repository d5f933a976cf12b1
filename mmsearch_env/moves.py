"""From what a player handed over to a move: its meaning, its text, and whether the rules allow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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
from mmsearch_env.episode import (
    ONE_PICTURE,
    EpisodeState,
    EpisodeView,
    Grounds,
    Outcome,
    RefusalCode,
    Rules,
    advance,
    refusal,
)
from mmsearch_env.errors import EpisodeError, ToolError
from mmsearch_env.images import FULL_FRAME, clean_bbox
from mmsearch_env.judge import FAILED as JUDGE_FAILED
from mmsearch_env.judge import Verdict
from mmsearch_env.messages import Message, writable
from mmsearch_env.protocols import Protocol
from mmsearch_env.spaces import to_action
from mmsearch_env.tools.search_tool import FREE, Cost, SearchResult


@dataclass(frozen=True, slots=True)
class Move:
    """A player's turn, understood and checked against the rules.

    Attributes:
        action: what it means.
        text: the completion as it stands in the conversation.
        well_formed: whether the completion kept the protocol's form.
        refused: why a search must not be carried out, or None.
        box_ignored: a part of the picture was asked for, the whole is searched.
    """

    action: Action
    text: str
    well_formed: bool
    refused: RefusalCode | None
    box_ignored: bool

    @property
    def searches(self) -> bool:
        """Whether a tool has to be asked."""
        return self.refused is None and isinstance(self.action, (ImageSearch, TextSearch, VisitPage))

    @property
    def text_of_answer(self) -> str:
        """What is answered; "" where it is no answer."""
        return self.action.text if isinstance(self.action, Answer) else ""

    @property
    def kind(self) -> str:
        """The action's name for ``info``; ``"malformed"`` when it meant nothing."""
        kind = kind_of(self.action)
        return "malformed" if kind is None else kind.value

    @property
    def outcome(self) -> Outcome:
        """What becomes of it when no tool is asked."""
        if isinstance(self.action, Answer):
            return Outcome.ANSWERED
        return Outcome.MALFORMED if isinstance(self.action, Malformed) else Outcome.REFUSED

    @property
    def error(self) -> str:
        """The stable code of what was wrong; "" when nothing was."""
        if isinstance(self.action, Malformed):
            return self.action.code.value
        return "" if self.refused is None else self.refused.value


@dataclass(frozen=True, slots=True)
class CameOf:
    """What came of a move.

    Attributes:
        outcome: for the rules.
        error: stable code of what went wrong; "" where nothing did.
        found: what a search found.
        cost: what asking took.
        verdict: a judge's word on an answer, in [0, 1].
    """

    outcome: Outcome
    error: str
    found: tuple[SearchResult, ...] = ()
    cost: Cost = FREE
    verdict: float = 0.0


def came_of(move: Move, result: SearchResult | Verdict | ToolError | None) -> CameOf:
    """What came of a move, by what a tool or a judge said where one was asked."""
    if isinstance(result, SearchResult):
        return CameOf(Outcome.SEARCHED, move.error, (result,), result.cost)
    if isinstance(result, Verdict):
        return CameOf(move.outcome, move.error, cost=result.cost, verdict=result.value)
    if isinstance(result, ToolError):
        return CameOf(Outcome.TOOL_FAILED, result.code) if move.searches else CameOf(move.outcome, JUDGE_FAILED)
    return CameOf(move.outcome, move.error)


def state_after(rules: Rules, state: EpisodeState, move: Move, came: CameOf) -> EpisodeState:
    """Where the episode stands after a move and what came of it."""
    after = advance(rules, state, move.action, came.outcome, well_formed=move.well_formed, cost=came.cost)
    return replace(after, verdict=came.verdict)


def kind_of(action: Action) -> ActionKind | None:
    """The kind of an action; None for one that means nothing."""
    if isinstance(action, Answer):
        return ActionKind.ANSWER
    if isinstance(action, ImageSearch):
        return ActionKind.IMAGE_SEARCH
    if isinstance(action, VisitPage):
        return ActionKind.VISIT_PAGE
    return ActionKind.TEXT_SEARCH if isinstance(action, TextSearch) else None


def understand(
    given: object, protocol: Protocol, rules: Rules, state: EpisodeState, grounds: Grounds = ONE_PICTURE
) -> Move:
    """The move a player makes with ``given``: model text, an action, or a member of the action space.

    ``grounds`` are what it may refer to.

    Raises:
        EpisodeError: ``given`` is none of the three (a mistake of the calling program, not of a player).
    """
    if isinstance(given, str):
        text = writable(given)
        action, well_formed = checked(protocol.parse(text)), protocol.well_formed(text)
    else:
        attempt = _attempt(given)
        action, well_formed = checked(attempt), True
        text = writable(protocol.format(attempt, reason=""))
    box_ignored = False
    if isinstance(action, ImageSearch) and action.bbox != FULL_FRAME and not rules.crop:
        box_ignored = True
        action = ImageSearch(index=action.index)
    return Move(action, text, well_formed, refusal(rules, state, action, grounds), box_ignored)


def reply(protocol: Protocol, move: Move, result: SearchResult | ToolError | None, view: EpisodeView) -> Message:
    """What the player is told after a move that did not end the episode."""
    kind = kind_of(move.action)
    if isinstance(move.action, Malformed):
        return protocol.malformed_message(move.action, view)
    if kind is None or kind is ActionKind.ANSWER:
        raise EpisodeError(f"expected a move that leaves the episode open, got {move.kind}")
    if move.refused is not None:
        return protocol.limit_message(kind, move.refused, view)
    if isinstance(result, SearchResult):
        return protocol.result_message(kind, result, view)
    return protocol.failure_message(kind, view)


def checked(action: Action) -> Action:
    """``action`` with tidy text and box, or :class:`Malformed` when its text is empty or too long."""
    if isinstance(action, ImageSearch):
        return ImageSearch(clean_bbox(action.bbox), action.index)
    if isinstance(action, Malformed):
        return action
    text = writable(_written(action)).strip()
    if not text:
        return Malformed(MalformedCode.EMPTY_ACTION, "the text was empty")
    if len(text) > MAX_ACTION_CHARS:
        return Malformed(MalformedCode.TOO_LONG, f"the text held more than {MAX_ACTION_CHARS} characters")
    if isinstance(action, VisitPage):
        return VisitPage(text)
    return Answer(text) if isinstance(action, Answer) else TextSearch(text)


def _written(action: Answer | TextSearch | VisitPage) -> str:
    """What the player wrote in an action."""
    if isinstance(action, VisitPage):
        return action.url
    return action.text if isinstance(action, Answer) else action.query


def _attempt(given: object) -> Action:
    if isinstance(given, (Answer, TextSearch, VisitPage)):
        text = _written(given)
        if not isinstance(text, str):
            raise EpisodeError(
                f"expected a text in {type(given).__name__}, got {type(text).__name__}; see env.action_space"
            )
        return given
    if isinstance(given, ImageSearch) and (isinstance(given.index, bool) or not isinstance(given.index, int)):
        raise EpisodeError(f"expected a whole number as index of ImageSearch, got {given.index!r}; count from 0")
    if isinstance(given, (ImageSearch, Malformed)):
        return given
    if isinstance(given, Mapping):
        member: Mapping[str, Any] = given
        return to_action(member)
    raise EpisodeError(f"expected model text, an action or a mapping of env.action_space, got {type(given).__name__}")
