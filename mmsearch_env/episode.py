"""The rules of one episode, as a pure state machine.

    playing --answer--------------------------------------------> answered
    playing --search, refused search, failed tool, malformed text--> playing, or out_of_rounds after the last round

Nothing here waits, draws or reads a clock: :func:`refusal` says whether an action is allowed, the environment carries
it out, :func:`advance` enters what came of it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mmsearch_env.actions import Action, ActionKind, Answer, ImageSearch, Malformed, TextSearch, VisitPage
from mmsearch_env.errors import ConfigError, EpisodeError
from mmsearch_env.images import FULL_FRAME, Image
from mmsearch_env.messages import Message
from mmsearch_env.questions import Question
from mmsearch_env.tools.search_tool import FREE, Cost, SearchResult


class StopReason(StrEnum):
    """Why an episode ended by its own rules. Both ends are terminations."""

    PLAYING = ""
    """It has not ended."""
    ANSWERED = "answered"
    """An answer was given."""
    OUT_OF_ROUNDS = "out_of_rounds"
    """The last round passed without an answer."""


class RefusalCode(StrEnum):
    """Why a well-formed search was not carried out. Stable: they appear in ``info`` and in logs."""

    IMAGE_SEARCH_LIMIT = "image_search_limit"
    TEXT_SEARCH_LIMIT = "text_search_limit"
    PAGE_VISIT_LIMIT = "page_visit_limit"
    UNKNOWN_IMAGE = "unknown_image"
    """The question has no picture of this number."""
    UNKNOWN_PAGE = "unknown_page"
    """No search of this episode found a page of this address."""
    ANSWER_REQUIRED = "answer_required"


class Outcome(StrEnum):
    """What became of an action."""

    ANSWERED = "answered"
    SEARCHED = "searched"
    TOOL_FAILED = "tool_failed"
    REFUSED = "refused"
    MALFORMED = "malformed"


_MADE = ("n_image_search", "n_text_search", "n_page_visit", "n_tool_errors", "n_malformed")
COUNTERS = (*_MADE, "n_service_calls", "cost_usd", "round")
"""Counters of an episode that ``info`` shows."""
_MOST = 2**31 - 1
"""No limit may be larger: it has to fit an observation's counter."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of an episode.

    Attributes:
        max_rounds: completions the player has, the answer included; at least 1.
        max_image_searches: successful image searches allowed; 0 forbids them.
        max_text_searches: successful text searches allowed; 0 forbids them.
        crop: whether an image search may look for a part of the picture; otherwise every box is the full frame.
        max_page_visits: pages that may be read; 0 forbids it, as in the paper.
        max_images: pictures that a question may have; 1 in the paper.
    """

    max_rounds: int = 3
    max_image_searches: int = 1
    max_text_searches: int = 2
    crop: bool = False
    max_page_visits: int = 0
    max_images: int = 1

    def __post_init__(self) -> None:
        least_of = {"max_rounds": 1, "max_image_searches": 0, "max_text_searches": 0, "max_page_visits": 0}
        least_of["max_images"] = 1
        for name, least in least_of.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
                raise ConfigError(f"{name}: expected a whole number of {least} to {_MOST}, got {value!r}")
        if not isinstance(self.crop, bool):
            raise ConfigError(f"crop: expected true or false, got {self.crop!r}; mend the setting")


@dataclass(frozen=True, slots=True)
class EpisodeState:
    """Where an episode stands.

    Attributes:
        round: completions so far.
        n_image_search: image searches that delivered a result.
        n_text_search: text searches that delivered a result.
        n_page_visit: pages that were read.
        n_tool_errors: searches whose tool failed; they count nowhere else.
        n_malformed: completions that meant no action.
        n_service_calls: calls to services that the searches took; none for what was kept or is embedded.
        cost_usd: their list price in US dollars.
        well_formed: every completion so far kept the protocol's form and was allowed.
        answer: the final answer; "" until there is one.
        stop_reason: why it ended; empty while it goes on.
        n_crop_search: those of the image searches that were made with a part of a picture.
        verdict: a judge's word on the answer, in [0, 1]; 0 without one.
    """

    round: int = 0
    n_image_search: int = 0
    n_text_search: int = 0
    n_page_visit: int = 0
    n_tool_errors: int = 0
    n_malformed: int = 0
    n_service_calls: int = 0
    cost_usd: float = 0.0
    well_formed: bool = True
    answer: str = ""
    stop_reason: StopReason = StopReason.PLAYING
    n_crop_search: int = 0
    verdict: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether the episode is over."""
        return self.stop_reason is not StopReason.PLAYING

    @property
    def counts(self) -> dict[str, float]:
        """The counters by name, as floats."""
        return {name: float(getattr(self, name)) for name in COUNTERS}

    @property
    def n_searches(self) -> int:
        """Searches of both kinds that delivered a result."""
        return self.n_image_search + self.n_text_search


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """What a protocol may look at when it writes to the player.

    Attributes:
        question: the question being played.
        rules: the limits.
        state: where the episode stands after the player's action.
        box_ignored: the player asked for a part of the picture and the whole was searched.
    """

    question: Question
    rules: Rules
    state: EpisodeState
    box_ignored: bool = False

    @property
    def rounds_left(self) -> int:
        """Completions the player still has."""
        return self.rules.max_rounds - self.state.round

    @property
    def image_searches_left(self) -> int:
        """Image searches still allowed."""
        return self.rules.max_image_searches - self.state.n_image_search

    @property
    def text_searches_left(self) -> int:
        """Text searches still allowed."""
        return self.rules.max_text_searches - self.state.n_text_search

    @property
    def page_visits_left(self) -> int:
        """Pages that may still be read."""
        return self.rules.max_page_visits - self.state.n_page_visit

    @property
    def must_answer(self) -> bool:
        """Whether only an answer is left."""
        tools_left = self.image_searches_left + self.text_searches_left + self.page_visits_left
        return self.rounds_left <= 1 or tools_left == 0

    def allows(self, kind: ActionKind) -> bool:
        """Whether an action of this kind would be accepted now."""
        if self.state.ended or kind is ActionKind.ANSWER:
            return not self.state.ended
        left = {
            ActionKind.IMAGE_SEARCH: self.image_searches_left,
            ActionKind.TEXT_SEARCH: self.text_searches_left,
            ActionKind.VISIT_PAGE: self.page_visits_left,
        }
        return self.rounds_left > 1 and left[kind] > 0


@dataclass(frozen=True, slots=True)
class Grounds:
    """What an action may refer to: whoever writes to a page, or to the player, chooses no address.

    Attributes:
        images: how many pictures the question has.
        urls: addresses that the searches so far have found, the only ones that may be visited.
    """

    images: int = 1
    urls: Container[str] = frozenset()


ONE_PICTURE = Grounds()
"""Of a question with one picture, before anything is found."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Everything about an episode at one moment; a new one is made by every turn.

    Attributes:
        question: the question being played.
        images: its pictures.
        conversation: everything said, the player's turns included.
        n_new: how many messages at the end of it the player has not answered yet.
        state: where the episode stands.
        results: what the tools delivered, in order.
    """

    question: Question
    images: tuple[Image, ...]
    conversation: tuple[Message, ...]
    n_new: int
    state: EpisodeState = EpisodeState()
    results: tuple[SearchResult, ...] = ()

    @property
    def new_messages(self) -> tuple[Message, ...]:
        """What was said since the player's last turn; empty after the end."""
        return self.conversation[len(self.conversation) - self.n_new :]

    @property
    def image(self) -> Image:
        """The picture, the first of several."""
        return self.images[0]

    @property
    def grounds(self) -> Grounds:
        """What an action may refer to now."""
        found = frozenset(hit.url for result in self.results for hit in result.hits)
        return Grounds(len(self.images), found)

    def after(
        self, state: EpisodeState, spoken: Message, told: tuple[Message, ...], found: tuple[SearchResult, ...]
    ) -> Episode:
        """The episode one turn later: the player said ``spoken`` and was told ``told``."""
        return Episode(
            self.question,
            self.images,
            (*self.conversation, spoken, *told),
            len(told),
            state,
            (*self.results, *found),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An environment at rest: what ``MMSearchEnv.get_state`` gives and ``set_state`` takes.

    Attributes:
        episode: the episode being played.
        rng_state: the state of ``np_random``.
    """

    episode: Episode
    rng_state: Mapping[str, Any]


def refusal(rules: Rules, state: EpisodeState, action: Action, grounds: Grounds = ONE_PICTURE) -> RefusalCode | None:
    """Why ``action`` must not be carried out, or None if it may be."""
    if not isinstance(action, (ImageSearch, TextSearch, VisitPage)):
        return None
    if state.round + 1 >= rules.max_rounds:
        return RefusalCode.ANSWER_REQUIRED
    if isinstance(action, ImageSearch):
        if state.n_image_search >= rules.max_image_searches:
            return RefusalCode.IMAGE_SEARCH_LIMIT
        return None if 0 <= action.index < grounds.images else RefusalCode.UNKNOWN_IMAGE
    if isinstance(action, VisitPage):
        if state.n_page_visit >= rules.max_page_visits:
            return RefusalCode.PAGE_VISIT_LIMIT
        return None if action.url in grounds.urls else RefusalCode.UNKNOWN_PAGE
    return RefusalCode.TEXT_SEARCH_LIMIT if state.n_text_search >= rules.max_text_searches else None


def advance(
    rules: Rules,
    state: EpisodeState,
    action: Action,
    outcome: Outcome,
    *,
    well_formed: bool = True,
    cost: Cost = FREE,
) -> EpisodeState:
    """The state after ``action`` came to ``outcome``. Every action costs a round.

    Args:
        rules: the limits.
        state: where the episode stood.
        action: what the player did.
        outcome: what came of it.
        well_formed: whether the completion that carried the action kept the protocol's form.
        cost: what the search, or the judge, cost.

    Raises:
        EpisodeError: the episode is over, or action and outcome do not belong together.
    """
    if state.ended:
        raise EpisodeError(f"expected an episode that goes on, got one that {state.stop_reason}; call reset first")
    if outcome not in _possible_outcomes(action):
        raise EpisodeError(f"expected an outcome of {type(action).__name__}, got {outcome!r}; pair them")
    searched = outcome is Outcome.SEARCHED
    after = replace(
        state,
        round=state.round + 1,
        n_image_search=state.n_image_search + (searched and isinstance(action, ImageSearch)),
        n_crop_search=state.n_crop_search + (searched and getattr(action, "bbox", FULL_FRAME) != FULL_FRAME),
        n_text_search=state.n_text_search + (searched and isinstance(action, TextSearch)),
        n_page_visit=state.n_page_visit + (searched and isinstance(action, VisitPage)),
        n_tool_errors=state.n_tool_errors + (outcome is Outcome.TOOL_FAILED),
        n_malformed=state.n_malformed + (outcome is Outcome.MALFORMED),
        n_service_calls=state.n_service_calls + cost.calls,
        cost_usd=state.cost_usd + cost.usd,
        well_formed=state.well_formed and well_formed and outcome not in (Outcome.REFUSED, Outcome.MALFORMED),
    )
    if isinstance(action, Answer):
        return replace(after, answer=action.text, stop_reason=StopReason.ANSWERED)
    if after.round >= rules.max_rounds:
        return replace(after, stop_reason=StopReason.OUT_OF_ROUNDS)
    return after


def _possible_outcomes(action: Action) -> tuple[Outcome, ...]:
    if isinstance(action, Answer):
        return (Outcome.ANSWERED,)
    if isinstance(action, Malformed):
        return (Outcome.MALFORMED,)
    return (Outcome.SEARCHED, Outcome.TOOL_FAILED, Outcome.REFUSED)
