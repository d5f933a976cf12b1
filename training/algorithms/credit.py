"""Credit: from the rewards of turns to an advantage for every turn, and from there to every sampled token.

A credit is a callable on the rewards of one iteration: ``rewards[g][i][k]`` is the reward of turn k of episode i of
group g, and so are its advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from agents.trajectory import Group, Trajectory
from training.advantages import Scale, Vector, group_relative, group_scale, has_signal, leave_one_out, whitened
from training.algorithms.contract import Total
from training.batch import Example, TokenCredit

TurnValues = Sequence[Sequence[Vector]]
"""Numbers of groups, episodes and turns: ``[g][i][k]``."""

Returns = Literal["episode", "to_go"]
"""What a turn is credited with: all rewards of its episode, or those from it on.

With ``"to_go"`` a price paid for an earlier search no longer weighs on what is said after it; the advantage of turn k:

    Âᵢₖ = Âᵢ - (rewards of episode i before turn k) / (what Âᵢ was divided by)
"""


class Credit(Protocol):
    """See the module."""

    def __call__(self, rewards: TurnValues, total: Total) -> TurnValues:
        """Advantages of turns."""
        ...


Baseline = Literal["group", "others", "none"]
"""What an episode's return is compared with: the mean of its group, the mean of the others in it, or nothing."""


@dataclass(frozen=True, slots=True)
class ByReturn:
    """Every turn of an episode is credited with how much better the episode did than what it is compared with.

    Attributes:
        baseline: see :data:`Baseline`.
        scale: with baseline ``"group"``, see :func:`~training.advantages.group_relative`.
        returns: see :data:`Returns`.
    """

    baseline: Baseline = "group"
    scale: Scale = "none"
    returns: Returns = "episode"

    def __call__(self, rewards: TurnValues, total: Total) -> TurnValues:
        """Advantages of turns."""
        return [self._group(group) for group in rewards]

    def _group(self, rewards: Sequence[Vector]) -> list[Vector]:
        episodes = np.array([float(one.sum()) for one in rewards])
        if self.baseline == "group":
            divisor = group_scale(episodes, self.scale) if has_signal(episodes) else 1.0
            return _over_turns(group_relative(episodes, scale=self.scale), rewards, self.returns, divisor)
        advantages = leave_one_out(episodes) if self.baseline == "others" else episodes
        return _over_turns(advantages, rewards, self.returns, 1.0)


@dataclass(frozen=True, slots=True)
class BatchNormalised:
    """Another credit's advantages, with mean and standard deviation over the whole iteration taken out.

    REINFORCE++, Hu et al. 2025 (arXiv 2501.03262), eq. 9.

    Attributes:
        of: the other credit.
        over: ``"signal"``: groups that the other credit gives nothing but zeros, because all their episodes did alike,
            have no part in it and keep their zeros; ``"all"``: a zero is a number like others.
    """

    of: Credit
    over: Literal["signal", "all"] = "signal"

    def __call__(self, rewards: TurnValues, total: Total) -> TurnValues:
        """Advantages of turns."""
        credited = self.of(rewards, total)
        # One number an episode, so that long episodes do not weigh more.
        counted = [self.over == "all" or _any(group) for group in credited]
        firsts = [float(one[0]) for group, counts in zip(credited, counted, strict=True) if counts for one in group]
        mean, std = spread(firsts, total)
        return [
            [whitened(episode, mean=mean, std=std) if counts else episode for episode in group]
            for group, counts in zip(credited, counted, strict=True)
        ]


def spread(values: Sequence[float] | Vector, total: Total) -> tuple[float, float]:
    """Mean and standard deviation over all ranks; 0 and 1 of nothing."""
    own = np.asarray(values, dtype=np.float64)
    sums = total({"count": float(own.size), "sum": float(own.sum()), "square": float((own * own).sum())})
    if not sums["count"]:
        return 0.0, 1.0
    mean = sums["sum"] / sums["count"]
    return mean, max(0.0, sums["square"] / sums["count"] - mean * mean) ** 0.5


@dataclass(frozen=True, slots=True)
class Overlong:
    """A gentle punishment for episodes that say too much, as a reward of their last turn.

    With n sampled tokens:

        0                       n <= longest - margin
        (longest - margin - n) / margin      in between
        -1                      n >= longest

    DAPO, Yu et al. 2025 (arXiv 2503.14476), eq. 13.

    Attributes:
        longest: tokens from which on the punishment is whole; 0 for no punishment.
        margin: tokens over which it grows.
    """

    longest: int = 0
    margin: int = 1

    def reward(self, sampled_tokens: int) -> float:
        """Of an episode with so many sampled tokens."""
        if not self.longest:
            return 0.0
        return -min(1.0, max(0.0, (sampled_tokens - self.longest + self.margin) / self.margin))


@dataclass(frozen=True, slots=True)
class FatalFailures:
    """Episodes whose searches fail again and again teach nothing from there on, and are not held against the policy.

    After ``limit`` turns in a row whose tool failed, tokens of later turns are left out of the loss, and advantages of
    the whole episode below 0 become 0. OpenSearch-VL (arXiv 2605.05185).

    Attributes:
        limit: failures in a row; 0 for none.
    """

    limit: int = 0

    def turns_before(self, trajectory: Trajectory) -> int | None:
        """Turns up to the last of these failures; None where there was no such row of failures."""
        row = 0
        for number, turn in enumerate(trajectory.turns, start=1):
            row = row + 1 if turn.tool_failed else 0
            if self.limit and row == self.limit:
                return number
        return None

    def applied(self, example: Example) -> Example:
        """The example without what such failures spoil."""
        kept = self.turns_before(example.trajectory)
        if kept is None:
            return example
        tokens = sum(len(turn) for turn in example.trajectory.turns[:kept])
        return example.cut_after(tokens, advantages=np.maximum(example.advantages, 0.0))


def turn_rewards(groups: Sequence[Group], overlong: Overlong) -> list[list[Vector]]:
    """What the environment paid for each turn, and the punishment of long episodes."""
    return [[episode_rewards(trajectory, overlong) for trajectory in group.trajectories] for group in groups]


def episode_rewards(trajectory: Trajectory, overlong: Overlong) -> Vector:
    """(turns,) of one episode."""
    rewards = np.array([turn.reward for turn in trajectory.turns], dtype=np.float64)
    rewards[-1] += overlong.reward(sum(trajectory.loss_mask))
    return rewards


def laid_on_tokens(
    groups: Sequence[Group], credited: TurnValues, finish: Callable[[Example], Example]
) -> list[list[Example]]:
    """The examples of each group: a turn's advantage on each of its sampled tokens."""
    return [
        [
            finish(Example(trajectory, on_sampled_tokens(trajectory, advantages)))
            for trajectory, advantages in zip(group.trajectories, per_turn, strict=True)
        ]
        for group, per_turn in zip(groups, credited, strict=True)
    ]


def on_sampled_tokens(trajectory: Trajectory, advantages: Sequence[float] | Vector) -> TokenCredit:
    """One number for each turn, laid on the tokens that were sampled in it, 0 elsewhere: (T,)."""
    credit = np.zeros(len(trajectory.loss_mask), dtype=np.float32)
    end = 0
    for turn, advantage in zip(trajectory.turns, advantages, strict=True):
        end += len(turn)
        credit[end - len(turn.completion.token_ids) : end] = advantage
    return credit


def _over_turns(episodes: Vector, rewards: Sequence[Vector], returns: Returns, divisor: float) -> list[Vector]:
    """(turns,) of each episode: its advantage, less what earlier turns had already been paid."""
    if returns == "episode" or not episodes.any():
        return [np.full(len(one), advantage) for advantage, one in zip(episodes, rewards, strict=True)]
    return [advantage - (np.cumsum(one) - one) / divisor for advantage, one in zip(episodes, rewards, strict=True)]


def _any(group: Sequence[Vector]) -> bool:
    return any(bool(episode.any()) for episode in group)
