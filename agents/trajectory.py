"""What was sampled, token by token.

Turn i of an episode is: the tokens the observation added (``prompt_ids``), then the tokens of the completion. The
token sequence of a trajectory is the concatenation over its turns; it is exactly what the sampler saw, and it is what
the trainer is given. Decoded text is never tokenised again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mmsearch_env.images import Image


class FinishReason(StrEnum):
    """Why sampling of a completion ended."""

    STOP = "stop"
    """An end token or an end tag was sampled."""
    LENGTH = "length"
    """The limit on new tokens was reached."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy said in one turn.

    Attributes:
        text: the decoded completion, ``forced_ids`` included, end-of-turn token excluded.
        token_ids: the sampled tokens, end-of-turn token included when it was sampled.
        logprobs: log-probability of each sampled token under the sampling distribution; same length.
        finish_reason: why sampling ended.
        forced_ids: what a workflow put in front, the reason included; seen by the model, never trained on.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    forced_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"expected one logprob per token, got {len(self.logprobs)} for {len(self.token_ids)}")


@dataclass(frozen=True, slots=True)
class Turn:
    """An observation and the completion answering it.

    Attributes:
        prompt_ids: tokens the observation added, chat scaffolding and image placeholders included.
        images: the pictures whose placeholders stand in ``prompt_ids``, in order.
        completion: what was sampled.
        reward: the environment's reward for this turn.
        kind: the action the environment understood (``"answer"``, ..., ``"malformed"``).
        valid: whether the environment accepted the action.
        tool_failed: whether the action's tool gave nothing because it failed.
    """

    prompt_ids: tuple[int, ...]
    images: tuple[Image, ...]
    completion: Completion
    reward: float
    kind: str
    valid: bool
    tool_failed: bool = False

    def __len__(self) -> int:
        """Tokens of the turn."""
        said = self.completion
        return len(self.prompt_ids) + len(said.forced_ids) + len(said.token_ids)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The record of one episode.

    Attributes:
        question_id: which question was played.
        turns: the turns; none when the episode could not begin.
        terminated: ended by a rule of the task.
        truncated: cut off from outside (context budget, time limit).
        stop_reason: the environment's word for the end, or the rollout's for a cut.
        success: the answer metric of the final answer, in [0, 1].
        reward_terms: the environment's itemised reward of the episode.
        counts: counters of the episode (``n_image_search``, ``n_text_search``, ``n_tool_errors``, ``n_malformed``,
            ``n_judge_errors``, ``n_service_calls``, ``cost_usd``).
        answer: the final answer's text; "" when none was given.
    """

    question_id: str
    turns: tuple[Turn, ...]
    terminated: bool
    truncated: bool
    stop_reason: str
    success: float
    reward_terms: Mapping[str, float]
    counts: Mapping[str, float]
    answer: str

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token in order, length T."""
        return tuple(
            token
            for turn in self.turns
            for part in (turn.prompt_ids, turn.completion.forced_ids, turn.completion.token_ids)
            for token in part
        )

    @property
    def loss_mask(self) -> tuple[bool, ...]:
        """True where a token was sampled, length T."""
        return tuple(
            flag
            for turn in self.turns
            for flag, count in (
                (False, len(turn.prompt_ids) + len(turn.completion.forced_ids)),
                (True, len(turn.completion.token_ids)),
            )
            for _ in range(count)
        )

    @property
    def old_logprobs(self) -> tuple[float, ...]:
        """Log-probabilities at sampling time, 0 where no token was sampled, length T."""
        return tuple(
            value
            for turn in self.turns
            for value in (
                *(0.0 for _ in (*turn.prompt_ids, *turn.completion.forced_ids)),
                *turn.completion.logprobs,
            )
        )

    @property
    def images(self) -> tuple[Image, ...]:
        """Every picture in the order of its placeholders."""
        return tuple(image for turn in self.turns for image in turn.images)

    @property
    def episode_return(self) -> float:
        """Sum of the rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def n_searches(self) -> float:
        """Searches of both kinds that were executed."""
        return self.counts["n_image_search"] + self.counts["n_text_search"]


@dataclass(frozen=True, slots=True)
class Group:
    """Trajectories of one question, compared with each other."""

    question_id: str
    trajectories: tuple[Trajectory, ...]
