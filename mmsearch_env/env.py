"""The environment: one question is one episode, played by searching and answering."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium

from mmsearch_env import aio, spaces
from mmsearch_env.actions import ActionKind, Answer
from mmsearch_env.episode import Episode, EpisodeState, EpisodeView, Snapshot
from mmsearch_env.errors import ConfigError, EpisodeError, ToolError
from mmsearch_env.images import Image
from mmsearch_env.judge import JudgeSpec, Verdict, resolve_judge
from mmsearch_env.messages import Message, TextPart
from mmsearch_env.moves import Move, came_of, reply, state_after, understand
from mmsearch_env.protocols import load_protocol
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.resources import QuestionDraw, ToolSpec, resolve_questions, resolve_tools
from mmsearch_env.rewards import RewardTerms
from mmsearch_env.searching import ask, query_of
from mmsearch_env.settings import EnvSettings
from mmsearch_env.tools.search_tool import SearchResult

RENDER_MODES = ("ansi", "rgb_array", "human", "html")

StepReturn = tuple[dict[str, Any], float, bool, bool, dict[str, Any]]
"""observation, reward, terminated, truncated, info"""


class MMSearchEnv(gymnasium.Env[dict[str, Any], Any]):
    """Answer questions about pictures; search when your own knowledge does not suffice.

    At reset the player sees a picture and a question; in each round it answers, searches with the picture or searches
    with words (MMSearch-R1, arXiv 2506.20670). docs/environment.md has the whole contract.

    ## Action space
    ``Dict(kind=Discrete(3) [answer, image_search, text_search], text, bbox)``, and ``index`` where questions may have
    several pictures; ``step`` also takes an :data:`~mmsearch_env.actions.Action` and a model's raw text, which the
    protocol parses.

    ## Observation space
    ``Dict(content, speaker, round, image_searches_left, text_searches_left)``: ``content`` holds the new texts and
    pictures of this turn, or the whole conversation with ``history="episode"``.

    ## Rewards
    See :mod:`mmsearch_env.rewards`; ``info["reward_terms"]`` itemises the episode so far.

    ## Starting state
    A question drawn uniformly with ``np_random``, or the one named in ``options``.

    ## Episode end
    Terminated: ``answered``, or ``out_of_rounds`` without an answer. Never truncated by itself.

    ## Information
    Fixed keys: ``question_id, kind, valid, error, reward_terms, n_image_search, n_text_search, n_page_visit,
    n_tool_errors, n_malformed, n_service_calls, cost_usd, success, stop_reason, round``; numbers are floats, nothing
    depends on a clock.

    ## Version history
    v0: first version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  declared an instance variable by gymnasium.Env
        "render_modes": list(RENDER_MODES),
        "render_fps": 1,
    }

    def __init__(
        self,
        *,
        questions: str | QuestionSet | None = None,
        tools: ToolSpec | Mapping[str, ToolSpec] | None = None,
        judge: JudgeSpec | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """An environment; cheap once its world and tools were built in this process.

        Args:
            questions: a question file or a :class:`QuestionSet` to play instead of the world's own.
            tools: see :func:`~mmsearch_env.resources.resolve_tools`; None is the embedded engine.
            judge: who is asked about an answer that the metric does not give full marks; see
                :func:`~mmsearch_env.judge.resolve_judge`; None for nobody.
            render_mode: ``ansi``, ``rgb_array``, ``human``, ``html`` or None.
            settings: the fields of :class:`~mmsearch_env.settings.EnvSettings`.

        Raises:
            ConfigError: an argument is unknown or has a bad value.
            DataError: questions or world cannot be used.
        """
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ConfigError(f"render_mode: expected one of {', '.join(RENDER_MODES)} or None, got {render_mode!r}")
        self.settings = EnvSettings.of(settings)
        self.rules = self.settings.rules
        self.reward_rules = self.settings.reward_rules
        self.protocol = load_protocol(self.settings.protocol, self.settings.prompts)
        self.questions = resolve_questions(questions, self.settings.world, self.settings.split)
        self.tools = resolve_tools(tools, self.settings.world)
        self.judge = resolve_judge(judge)
        self.render_mode = render_mode
        self.action_space = spaces.action_space(self.rules)
        self.observation_space = spaces.observation_space(self.rules)
        self._draw = QuestionDraw(self.questions, self.rules.max_images)
        self._arguments = dict(questions=questions, tools=tools, judge=judge, render_mode=render_mode, **settings)
        self._episode: Episode | None = None
        self._searching = False

    # The episode -----------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: reseeds ``np_random``; None goes on with it.
            options: ``{"question_id": ...}`` or ``{"question": Question}`` to choose; None draws.

        Raises:
            ConfigError: an option is unknown.
            EpisodeError: a turn is under way.
            DataError: the question asked for does not exist, its picture is broken or it has too many, or no question
                can be used.
        """
        self._expect_rest()
        super().reset(seed=seed)
        question, images = self._choose(options or {})
        told = self.protocol.first_message(question, images, self.rules)
        self._episode = Episode(question, images, told, len(told))
        self._show(told)
        return self._observation(), self._info("", RewardTerms())

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """:meth:`reset` for callers that are coroutines."""
        return self.reset(seed=seed, options=options)

    def step(self, action: Any) -> StepReturn:
        """:meth:`astep` for callers that are not coroutines; a search runs on the process's background loop."""
        move = self.understand(action)
        return self.finish(move, aio.run(self.asked(move)) if self.asks(move) else None)

    async def astep(self, action: Any) -> StepReturn:
        """Take one turn.

        Args:
            action: a member of ``action_space``, an :data:`~mmsearch_env.actions.Action`, or a model's text.

        Returns:
            observation, reward, terminated, truncated (always False), info.

        Raises:
            EpisodeError: before reset, after the end, while another turn is under way, or for any other type.
        """
        move = self.understand(action)
        return self.finish(move, await self.asked(move) if self.asks(move) else None)

    def understand(self, action: Any) -> Move:
        """First third of a turn: what ``action`` means and whether it is allowed. Changes nothing."""
        if self.state.ended:
            raise EpisodeError("expected an episode that goes on, got one that ended; call reset first")
        self._expect_rest()
        return understand(action, self.protocol, self.rules, self.state, self.episode.grounds)

    def asks(self, move: Move) -> bool:
        """Whether a tool or the judge has to be asked."""
        return move.searches or self.is_judged(move)

    def is_judged(self, move: Move) -> bool:
        """Whether the judge is asked: there is one, and the metric gives an answer less than full marks."""
        if self.judge is None or not isinstance(move.action, Answer):
            return False
        return self.reward_rules.match(move.action.text, self.question.answers) < 1.0

    async def asked(self, move: Move) -> SearchResult | Verdict | ToolError:
        """Second third of a turn, for a move that ``asks``: ask the tool or the judge."""
        return await (self.search(move) if move.searches else self.judged(move.text_of_answer))

    async def judged(self, answer: str) -> Verdict | ToolError:
        """Ask the judge of an answer that ``is_judged``."""
        assert self.judge is not None
        question, timeout_s = self.question, self.settings.tool_timeout_s
        with self.turn():
            return await self.judge.of(question.text, question.answers, answer, timeout_s=timeout_s)

    async def search(self, move: Move) -> SearchResult | ToolError:
        """Ask the tool of a move that ``searches``."""
        query, kind = query_of(move.action, self.question, self.episode.images), ActionKind(move.kind)
        with self.turn():
            return await ask(self.tools[kind], query, top_k=self.top_k(kind), timeout_s=self.settings.tool_timeout_s)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, a tool is asked: no other turn, reset or change of state may come between.

        Raises:
            EpisodeError: a turn is under way already.
        """
        self._expect_rest()
        self._searching = True
        try:
            yield
        finally:
            self._searching = False

    def finish(self, move: Move, result: SearchResult | Verdict | ToolError | None) -> StepReturn:
        """Last third of a turn: enter what came of it, reward it, and say what the player is told."""
        before, came = self.episode, came_of(move, result)
        state = state_after(self.rules, before.state, move, came)
        view = EpisodeView(before.question, self.rules, state, move.box_ignored)
        spoken = Message("assistant", (TextPart(move.text),))
        told = () if state.ended or isinstance(result, Verdict) else (reply(self.protocol, move, result, view),)
        self._episode = before.after(state, spoken, told, came.found)
        self._show((spoken, *told))
        terms = self._terms(state)
        info = self._info(move.kind, terms, valid=not move.error, error=came.error)
        return self._observation(), terms.total - self._terms(before.state).total, state.ended, False, info

    def top_k(self, kind: ActionKind) -> int:
        """How many hits a search of this kind asks for."""
        if kind is ActionKind.VISIT_PAGE:
            return 1
        return self.settings.image_top_k if kind is ActionKind.IMAGE_SEARCH else self.settings.text_top_k

    # What may be looked at -------------------------------------------------------------------------------------

    @property
    def episode(self) -> Episode:
        """The episode being played. Raises EpisodeError before the first reset."""
        if self._episode is None:
            raise EpisodeError("expected an episode, got none yet; call reset first")
        return self._episode

    @property
    def question(self) -> Question:
        """The question being played."""
        return self.episode.question

    @property
    def state(self) -> EpisodeState:
        """Where the episode stands: counters, answer, stop reason."""
        return self.episode.state

    @property
    def view(self) -> EpisodeView:
        """The same with the question and the limits: what is still allowed."""
        return EpisodeView(self.question, self.rules, self.state)

    @property
    def unusable_questions(self) -> Mapping[str, str]:
        """Questions passed over because a picture is broken or they have too many, and why."""
        return self._draw.unusable

    @property
    def conversation(self) -> tuple[Message, ...]:
        """Everything said in this episode, the player's turns included."""
        return self.episode.conversation

    @property
    def new_messages(self) -> tuple[Message, ...]:
        """What was said since the player's last turn; empty after the end."""
        return self.episode.new_messages

    def render(self) -> Any:
        """The conversation as text, web page or picture; None in mode ``human``, which writes as it goes."""
        from mmsearch_env import rendering

        return rendering.rendered(self.conversation, self.render_mode)

    # Stopping and going on -------------------------------------------------------------------------------------

    def get_state(self) -> Snapshot:
        """The episode at rest, to be gone on with here or in another environment with the same settings."""
        self._expect_rest()
        return Snapshot(self.episode, self.np_random.bit_generator.state)

    def set_state(self, snapshot: Snapshot) -> dict[str, Any]:
        """Go on from ``snapshot``; returns the observation the player has to answer."""
        self._expect_rest()
        self._episode = snapshot.episode
        self.np_random.bit_generator.state = dict(snapshot.rng_state)
        return self._observation()

    def __getstate__(self) -> dict[str, Any]:
        """Arguments and episode; world and tools are resolved again where the pickle is opened."""
        return {
            "arguments": self._arguments,
            "spec": self.spec,
            "spaces": (self.action_space, self.observation_space),
            "rng": (self._np_random, self._np_random_seed),
            "episode": None if self._episode is None else self.get_state(),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(**saved["arguments"])  # type: ignore[misc]
        self.spec = saved["spec"]
        self.action_space, self.observation_space = saved["spaces"]
        self._np_random, self._np_random_seed = saved["rng"]
        if saved["episode"] is not None:
            self.set_state(saved["episode"])

    # Inside ----------------------------------------------------------------------------------------------------

    def _expect_rest(self) -> None:
        if self._searching:
            raise EpisodeError("expected an episode between two turns, got one within a turn; await the turn first")

    def _choose(self, options: Mapping[str, Any]) -> tuple[Question, tuple[Image, ...]]:
        """The question asked for, or a random one."""
        if unknown := set(options) - {"question", "question_id"}:
            raise ConfigError(f"options: expected 'question' or 'question_id', got {sorted(unknown)}; mend the call")
        if not options:
            return self._draw.draw(self.np_random)
        if not isinstance(options.get("question_id", ""), str):
            raise ConfigError(f"options: expected a text under 'question_id', got {options['question_id']!r}")
        question = options["question"] if "question" in options else self.questions.by_id(options["question_id"])
        if not isinstance(question, Question):
            raise ConfigError(f"options: expected a Question under 'question', got {type(question).__name__}")
        return question, question.load_images(self.rules.max_images)

    def _observation(self) -> dict[str, Any]:
        messages = self.conversation if self.settings.history == "episode" else self.new_messages
        return spaces.observation(messages, self.rules, self.state)

    def _info(self, kind: str, terms: RewardTerms, *, valid: bool = True, error: str = "") -> dict[str, Any]:
        return {
            "question_id": self.question.id,
            "kind": kind,
            "valid": float(valid),
            "error": error,
            "reward_terms": terms.as_dict(),
            "success": terms.metric,
            "stop_reason": self.state.stop_reason.value,
            **self.state.counts,
        }

    def _terms(self, state: EpisodeState) -> RewardTerms:
        return self.reward_rules.terms(state, self.question.answers)

    def _show(self, messages: tuple[Message, ...]) -> None:
        """In mode ``human``, write what was said just now."""
        if self.render_mode == "human":
            from mmsearch_env import rendering

            rendering.write_ansi(messages, sys.stdout)
