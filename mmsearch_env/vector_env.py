"""Many episodes side by side in one process: partial steps, and searches asked together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from mmsearch_env import aio
from mmsearch_env.actions import ActionKind
from mmsearch_env.env import RENDER_MODES, MMSearchEnv
from mmsearch_env.errors import ConfigError, EpisodeError, ToolError
from mmsearch_env.judge import Verdict
from mmsearch_env.moves import Move
from mmsearch_env.resources import SEARCH_KINDS
from mmsearch_env.searching import ask_together, query_of
from mmsearch_env.tools.search_tool import SearchResult, SearchTool

VectorStepReturn = tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""observations, rewards (n,) float64, terminations (n,) bool, truncations (n,) bool, infos"""

_OPTIONS = ("reset_mask", "question_ids", "questions")


class MMSearchVectorEnv(VectorEnv[Any, Any, np.ndarray]):
    """``num_envs`` environments stepped together; finished ones wait until they are reset (``DISABLED`` autoreset).

    * ``step(actions, mask=...)`` steps only where ``mask`` is True; the others keep their last observation, with
      reward 0.
    * ``reset(seed=[7] * 8)`` gives eight episodes of one question: a group.
    * ``reset(options={"reset_mask": ..., "question_ids": [...]})`` resets some and chooses their questions.
    * The searches of one step are asked together: one call to a tool that offers ``search_many``, else side by side.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  declared an instance variable by gymnasium
        "render_modes": list(RENDER_MODES),
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Environments with the same arguments.

        Args:
            num_envs: how many, at least 1.
            render_mode: as for :class:`MMSearchEnv`.
            arguments: those of :class:`MMSearchEnv`.

        Raises:
            ConfigError: an argument is unknown or has a bad value.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ConfigError(f"num_envs: expected a whole number of at least 1, got {num_envs!r}; mend the call")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.envs = tuple(MMSearchEnv(render_mode=render_mode, **arguments) for _ in range(num_envs))
        self.single_action_space = self.envs[0].action_space
        self.single_observation_space = self.envs[0].observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._seen: list[Any] = [None] * num_envs
        self._done = np.ones(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes.

        Args:
            seed: one seed per environment; an int s means s, s + 1, ...; None goes on.
            options: ``reset_mask`` (n,) bool; ``question_ids`` or ``questions``, one per environment.

        Raises:
            ConfigError: an option is unknown or not one per environment.
        """
        options = options or {}
        if unknown := set(options) - set(_OPTIONS):
            raise ConfigError(f"options: expected {', '.join(_OPTIONS)}, got {sorted(unknown)}; mend the call")
        seeds = [seed + number for number in range(self.num_envs)] if isinstance(seed, int) else seed
        seeds = self._one_each("seed", seeds, None)
        mask = self._mask(options.get("reset_mask"))
        ids = self._one_each("question_ids", options.get("question_ids"), None)
        questions = self._one_each("questions", options.get("questions"), None)
        infos: dict[str, Any] = {}
        for number in np.flatnonzero(mask).tolist():
            chosen = {"question_id": ids[number], "question": questions[number]}
            wanted = {name: value for name, value in chosen.items() if value is not None}
            self._seen[number], info = self.envs[number].reset(seed=seeds[number], options=wanted)
            infos = self._add_info(infos, info, number)
        if any(seen is None for seen in self._seen):
            raise EpisodeError("expected every environment to be reset at least once, got a mask that leaves some out")
        self._done[mask] = False
        return self._observations(), infos

    def step(self, actions: Any, mask: Sequence[bool] | np.ndarray | None = None) -> VectorStepReturn:
        """:meth:`astep` for callers that are not coroutines."""
        moves = self._understand(actions, mask)
        asking = any(self.envs[number].asks(move) for number, move in moves.items())
        return self._finish(moves, aio.run(self._asked(moves)) if asking else {})

    async def astep(self, actions: Any, mask: Sequence[bool] | np.ndarray | None = None) -> VectorStepReturn:
        """Take one turn in each environment where ``mask`` is True (everywhere without one).

        Args:
            actions: a member of ``action_space``, or a sequence with one action, mapping or model text per
                environment; what stands where ``mask`` is False is not looked at.
            mask: (n,) bool.

        Returns:
            observations, rewards (n,), terminations (n,), truncations (n,), infos.

        Raises:
            EpisodeError: an environment that is to be stepped has finished.
        """
        moves = self._understand(actions, mask)
        return self._finish(moves, await self._asked(moves))

    def render(self) -> tuple[Any, ...] | None:
        """One rendering per environment."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _understand(self, actions: Any, mask: Sequence[bool] | np.ndarray | None) -> dict[int, Move]:
        """Every move before any tool is asked: a misused environment leaves all of them as they were."""
        chosen = self._mask(mask)
        if (finished := np.flatnonzero(chosen & self._done)).size:
            raise EpisodeError(
                f"expected environments that go on, got {finished.tolist()} that ended; reset them or mask them out"
            )
        given = list(iterate(self.action_space, actions)) if isinstance(actions, Mapping) else list(actions)
        if len(given) != self.num_envs:
            raise EpisodeError(f"expected {self.num_envs} actions, got {len(given)}; give one per environment")
        return {int(number): self.envs[number].understand(given[number]) for number in np.flatnonzero(chosen)}

    async def _asked(self, moves: Mapping[int, Move]) -> dict[int, SearchResult | Verdict | ToolError]:
        """Every search and every verdict of this step."""
        judged = [number for number, move in moves.items() if self.envs[number].is_judged(move)]
        asked = (self.envs[number].judged(moves[number].text_of_answer) for number in judged)
        found, verdicts = await asyncio.gather(self._search(moves), asyncio.gather(*asked))
        return {**found, **dict(zip(judged, verdicts, strict=True))}

    async def _search(self, moves: Mapping[int, Move]) -> dict[int, SearchResult | ToolError]:
        """Every search of this step, asked together per kind: the environments share their tools and settings."""
        results: dict[int, SearchResult | ToolError] = {}
        for kind in SEARCH_KINDS:
            asking = {
                number: self.envs[number] for number, move in moves.items() if move.searches and move.kind == kind
            }
            for tool in {id(env.tools[kind]): env.tools[kind] for env in asking.values()}.values():
                numbers = [number for number, env in asking.items() if env.tools[kind] is tool]
                results.update(zip(numbers, await self._ask(tool, kind, numbers, moves), strict=True))
        return results

    async def _ask(
        self, tool: SearchTool, kind: ActionKind, numbers: Sequence[int], moves: Mapping[int, Move]
    ) -> list[SearchResult | ToolError]:
        episodes = [self.envs[number].episode for number in numbers]
        queries = [
            query_of(moves[number].action, episode.question, episode.images)
            for number, episode in zip(numbers, episodes, strict=True)
        ]
        timeout_s = self.envs[0].settings.tool_timeout_s
        with ExitStack() as turns:
            for number in numbers:
                turns.enter_context(self.envs[number].turn())
            return await ask_together(tool, queries, top_k=self.envs[0].top_k(kind), timeout_s=timeout_s)

    def _finish(
        self, moves: Mapping[int, Move], results: Mapping[int, SearchResult | Verdict | ToolError]
    ) -> VectorStepReturn:
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        infos: dict[str, Any] = {}
        for number, move in moves.items():
            env = self.envs[number]
            self._seen[number], rewards[number], ended, _, info = env.finish(move, results.get(number))
            self._done[number] = ended
            infos = self._add_info(infos, info, number)
        return self._observations(), rewards, self._done.copy(), np.zeros(self.num_envs, dtype=np.bool_), infos

    def _observations(self) -> Any:
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs)
        return deepcopy(concatenate(self.single_observation_space, self._seen, empty))

    def _mask(self, mask: Sequence[bool] | np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        chosen = np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_:
            raise ConfigError(f"mask: expected ({self.num_envs},) bool, got {chosen.shape} {chosen.dtype}")
        return chosen

    def _one_each(self, name: str, values: Sequence[Any] | None, default: Any) -> Sequence[Any]:
        if values is None:
            return [default] * self.num_envs
        if len(values) != self.num_envs:
            raise ConfigError(f"{name}: expected {self.num_envs}, one per environment, got {len(values)}")
        return values
