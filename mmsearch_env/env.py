"""The environment: one question is one episode, played by searching and answering."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium

from mmsearch_env import aio, spaces
from mmsearch_env.actions import Action, ActionKind, Answer, ImageSearch, Malformed, TextSearch
from mmsearch_env.episode import EpisodeState, EpisodeView, Outcome, RefusalCode, Rules, advance, refusal
from mmsearch_env.errors import ConfigError, DataError, EpisodeError, ImageError, ToolError, ToolTimeout
from mmsearch_env.images import FULL_FRAME, Image
from mmsearch_env.messages import Message, TextPart
from mmsearch_env.protocols import load_protocol
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.resources import ToolSpec, resolve_questions, resolve_tools
from mmsearch_env.rewards import PenaltyMode, RewardForm, RewardRules, RewardTerms
from mmsearch_env.tools.search_tool import ImageQuery, Query, SearchResult, TextQuery

HISTORIES = ("turn", "episode")
RENDER_MODES = ("ansi", "rgb_array", "human", "html")

_log = logging.getLogger(__name__)


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
        return self.refused is None and isinstance(self.action, (ImageSearch, TextSearch))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode at rest: what :meth:`MMSearchEnv.get_state` gives and ``set_state`` takes.

    Attributes:
        question: the question being played.
        image: its picture.
        state: where the episode stands.
        conversation: everything said.
        n_new: how many messages at the end of it the player has not answered yet.
        rng_state: the state of ``np_random``.
    """

    question: Question
    image: Image
    state: EpisodeState
    conversation: tuple[Message, ...]
    n_new: int
    rng_state: Mapping[str, Any]


class MMSearchEnv(gymnasium.Env[dict[str, Any], Any]):
    """Answer questions about pictures; search when your own knowledge does not suffice.

    ## Description
    At reset the player sees a picture and a question. In each round it answers, searches with the picture or searches
    with words. MMSearch-R1 (arXiv 2506.20670) describes the task; :mod:`mmsearch_env.rewards` has the equations.

    ## Action space
    ``Dict(kind=Discrete(3) [answer, image_search, text_search], text, bbox)``. ``step`` also takes an
    :data:`~mmsearch_env.actions.Action` and the raw text of a model, which the protocol parses.

    ## Observation space
    ``Dict(content, speaker, round, image_searches_left, text_searches_left)``: ``content`` holds the new texts and
    pictures of this turn, or the whole conversation with ``history="episode"``.

    ## Rewards
    ``(1 - f) * metric * (1 - p if a search succeeded) + f * format`` at the end, or the ``subtractive`` form, which
    charges the step that searched. ``info["reward_terms"]`` itemises the episode so far.

    ## Starting state
    A question drawn uniformly with ``np_random``, or ``options={"question_id": ...}`` / ``{"question": Question}``.

    ## Episode end
    Terminated when an answer is given (``answered``) or the last round passed without one (``out_of_rounds``). Never
    truncated by itself.

    ## Information
    Fixed keys: ``question_id, kind, valid, error, reward_terms, n_image_search, n_text_search, n_tool_errors,
    n_malformed, success, stop_reason, round``; numbers are floats, nothing depends on a clock.

    ## Version history
    v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDER_MODES), "render_fps": 1}

    def __init__(
        self,
        *,
        world: str = "atlas",
        split: str = "train",
        questions: str | QuestionSet | None = None,
        tools: ToolSpec | Mapping[str, ToolSpec] | None = None,
        protocol: str = "mmsearch_r1",
        prompts: str = "standard",
        max_rounds: int = 3,
        max_image_searches: int = 1,
        max_text_searches: int = 2,
        crop: bool = False,
        reward: str = RewardForm.MULTIPLICATIVE,
        metric: str = "exact_match",
        format_weight: float = 0.1,
        search_penalty: float = 0.1,
        penalty_mode: str = PenaltyMode.ONCE,
        image_top_k: int = 5,
        text_top_k: int = 5,
        tool_timeout_s: float = 30.0,
        history: str = "turn",
        render_mode: str | None = None,
    ) -> None:
        """Every argument but ready-made ``questions`` and ``tools`` is JSON-able.

        Args:
            world: which embedded world (``"atlas"``, ``"synthetic:seed=0,entities=200"``).
            split: which of the world's questions (``"train"``, ``"validation"``, ``"test"``).
            questions: a question file or a :class:`QuestionSet` to play instead of the world's own.
            tools: see :func:`~mmsearch_env.resources.resolve_tools`; None is the embedded engine.
            protocol: how text means an action.
            prompts: the wording: ``"standard"``, ``"brief"`` or a folder.
            max_rounds, max_image_searches, max_text_searches, crop: see :class:`~mmsearch_env.episode.Rules`.
            reward, metric, format_weight, search_penalty, penalty_mode: see :class:`RewardRules`.
            image_top_k, text_top_k: hits asked for per search.
            tool_timeout_s: seconds after which a search counts as failed.
            history: whether an observation holds the ``turn`` or the whole ``episode``.
            render_mode: ``ansi``, ``rgb_array``, ``human``, ``html`` or None.

        Raises:
            ConfigError: an argument is unknown or has a bad value.
            DataError: questions or world cannot be used.
        """
        for name, value, known in (("history", history, HISTORIES), ("render_mode", render_mode, (None, *RENDER_MODES))):
            if value not in known:
                raise ConfigError(f"{name}: expected one of {', '.join(map(str, known))}, got {value!r}")
        for name, number in (("image_top_k", image_top_k), ("text_top_k", text_top_k), ("tool_timeout_s", tool_timeout_s)):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:
                raise ConfigError(f"{name}: expected a number above 0, got {number!r}")
        self._arguments = {name: value for name, value in locals().items() if name in _ARGUMENTS}
        self.rules = Rules(max_rounds, max_image_searches, max_text_searches, crop)
        self.reward_rules = RewardRules(
            RewardForm(reward), metric, format_weight, search_penalty, PenaltyMode(penalty_mode)
        )
