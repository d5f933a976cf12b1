"""A policy playing the search environment: the :class:`~training.task.Task` of real runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from agents.evaluate import Evaluation, evaluate
from agents.lmm import LMMPolicy
from agents.rollout import RolloutLimits, rollout
from agents.trajectory import Group, Trajectory
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.questions import Question, QuestionSet

_EVALUATION_SEED = 20_25
"""Episodes of evaluations are seeded alike before, during and after training, so that differences are the policy's."""


@dataclass(frozen=True, slots=True)
class SearchTask:
    """What is played, bound to one policy.

    Attributes:
        policy: who is trained, and evaluated.
        player: who plays: the policy itself, or its twin where it plays while the policy is trained.
        questions: what is trained on.
        env: keywords of ``MMSearchEnv``.
        limits: how many episodes go on at once.
        evaluation_temperature: softmax temperature of evaluations; 0 takes the likeliest token.
    """

    policy: LMMPolicy
    player: LMMPolicy
    questions: QuestionSet
    env: dict[str, Any]
    limits: RolloutLimits
    evaluation_temperature: float

    def rollout(
        self,
        questions: Sequence[Question],
        *,
        group_size: int,
        seed: int,
        earlier: Sequence[int],
        search_penalty: float,
    ) -> list[Group]:
        """Play ``group_size`` episodes of each question."""
        return rollout(
            self.player,
            partial(self._make_env, search_penalty=search_penalty),
            questions,
            group_size=group_size,
            seed=seed,
            earlier=earlier,
            limits=self.limits,
        )

    def catch_up(self) -> None:
        """Play with the weights that the policy has now."""
        if self.player is not self.policy:
            self.player.catch_up(self.policy)

    def evaluate(self, questions: Sequence[Question]) -> Evaluation:
        """Play one episode of each question, the same way every time."""
        with self._at_temperature(self.evaluation_temperature):
            return evaluate(self.policy, self._make_env, questions, seed=_EVALUATION_SEED, limits=self.limits)

    def transcript(self, group: Group) -> str:
        """One question's episodes; those that went the same way are shown once."""
        question = self.questions.by_id(group.question_id)
        kind = f" It is {question.category.replace('_', ' ')}." if question.category else ""
        parts = [f"{question.text} Accepted: {', '.join(question.answers)}.{kind}\n"]
        alike: dict[str, list[int]] = {}
        for number, trajectory in enumerate(group.trajectories, start=1):
            alike.setdefault(self._episode(trajectory), []).append(number)
        parts += [f"## Episode {', '.join(map(str, numbers))}: {text}" for text, numbers in alike.items()]
        return "\n".join(parts)

    def _episode(self, trajectory: Trajectory) -> str:
        """What was seen and said, turn by turn; a long run of one token (a picture's slots) is shown once."""
        parts = [f"return {trajectory.episode_return:.3f}, {trajectory.stop_reason}\n"]
        for number, turn in enumerate(trajectory.turns, start=1):
            seen = self.policy.renderer.tokenizer.decode(_without_runs(turn.prompt_ids)).strip("\n")
            said = turn.completion.text.replace("\n", "\n> ")
            parts.append(
                f"```text\n{seen}\n```\n\n**Turn {number}** ({turn.kind}, reward {turn.reward:.3f})\n\n> {said}\n"
            )
        return "\n".join(parts)

    def _make_env(self, **changed: Any) -> MMSearchEnv:
        return MMSearchEnv(**{**self.env, **changed})

    @contextmanager
    def _at_temperature(self, temperature: float) -> Iterator[None]:
        kept = self.policy.limits
        self.policy.limits = replace(kept, temperature=temperature)
        try:
            yield
        finally:
            self.policy.limits = kept


def _without_runs(token_ids: Sequence[int]) -> list[int]:
    """The tokens, more than three equal ones in a row reduced to one."""
    runs = [list(run) for _, run in groupby(token_ids)]
    return [token for run in runs for token in (run if len(run) <= 3 else run[:1])]
