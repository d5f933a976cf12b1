"""Proximal policy optimisation: credit by a learned critic, which is trained along with the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from agents.trajectory import Group, Trajectory
from training.advantages import Vector, generalised_advantages, whitened
from training.algorithms.contract import LossTerms, StateValues, Total, UpdateSize
from training.algorithms.credit import episode_rewards, spread
from training.algorithms.policy_gradient import PolicyGradient
from training.batch import CriticTargets, Example, TokenBatch, TokenCredit
from training.losses import masked_sum, value_loss
from training.task import TokenScores


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far credit reaches, on two scales: from token to token within a completion, and from turn to turn.

    Attributes:
        token_discount: γ within a completion.
        token_decay: λ within a completion.
        turn_discount: γ from a completion's last token to the next completion's first: a step of the environment.
        turn_decay: λ there.
    """

    token_discount: float = 1.0
    token_decay: float = 1.0
    turn_discount: float = 1.0
    turn_decay: float = 0.95


@dataclass(frozen=True, slots=True)
class PPO:
    """PPO, Schulman et al. 2017 (arXiv 1707.06347), over the tokens that were sampled.

        L = L_policy + c_V 1/N Σₜ L_V,t

    Advantages are :func:`~training.advantages.generalised_advantages` over sampled tokens: tokens that the environment
    wrote are no steps. A turn's reward falls on its last token. Where an episode was cut from outside, the critic's
    value of the state after the last token stands in for the rest; where it ended by a rule, there is no rest.
    Advantages are then whitened over all tokens of the iteration.

    Attributes:
        policy: the loss of the policy; its credit is not used.
        horizon: γ and λ.
        value_coefficient: c_V.
        value_clip: see :func:`~training.losses.value_loss`.
    """

    policy: PolicyGradient
    horizon: Horizon = Horizon()
    value_coefficient: float = 0.5
    value_clip: float = 0.2

    @property
    def needs_reference(self) -> bool:
        """As the policy's loss does."""
        return self.policy.needs_reference

    @property
    def needs_values(self) -> bool:
        """Always."""
        return True

    @property
    def corrects(self) -> bool:
        """As the policy's loss does."""
        return self.policy.corrects

    @property
    def logged(self) -> tuple[str, ...]:
        """The policy's numbers and the critic's."""
        return (*self.policy.logged, "loss/value", "critic/value", "critic/return", "critic/error_square")

    def weights(self, logprobs: Tensor, batch: TokenBatch) -> Tensor | None:
        """As the policy's loss has them."""
        return self.policy.weights(logprobs, batch)

    def advantages(
        self, groups: Sequence[Group], *, values: Sequence[Sequence[StateValues]] | None, total: Total
    ) -> list[list[Example]]:
        """Every sampled token gets its own advantage, and the critic what its value should have been."""
        if values is None:
            raise ValueError("expected a critic's values, got none; the loop adds them when needs_values is True")
        credited = [
            [self._credited(one, worth) for one, worth in zip(group.trajectories, worths, strict=True)]
            for group, worths in zip(groups, values, strict=True)
        ]
        tokens = [example.advantages[example.mask] for group in credited for example in group]
        mean, std = spread(np.concatenate(tokens) if tokens else np.zeros(0), total)
        return [[self.policy.fatal.applied(_whitened(example, mean, std)) for example in group] for group in credited]

    def loss(self, scores: TokenScores, batch: TokenBatch, *, size: UpdateSize) -> LossTerms:
        """The policy's loss and the critic's over one micro-batch."""
        terms = self.policy.loss(scores, batch, size=size)
        if scores.values is None or batch.critic is None:
            raise ValueError("expected scores and a batch with values, got none; load the policy with a critic")
        losses = value_loss(scores.values, batch.critic.old_values, batch.critic.returns, clip=self.value_clip)
        value_sum, mask = masked_sum(losses, batch.loss_mask), batch.loss_mask
        found = scores.values.detach()
        sums = {
            **terms.sums,
            "loss/value": value_sum.detach(),
            "loss/total": terms.sums["loss/total"] + self.value_coefficient * value_sum.detach(),
            "critic/value": masked_sum(found, mask),
            "critic/return": masked_sum(batch.critic.returns, mask),
            "critic/error_square": masked_sum((found - batch.critic.returns).square(), mask),
        }
        return LossTerms(terms.loss + self.value_coefficient * value_sum / size.tokens, sums)

    def _credited(self, trajectory: Trajectory, worth: StateValues) -> Example:
        rewards = episode_rewards(trajectory, self.policy.overlong)
        lengths = [len(turn.completion.token_ids) for turn in trajectory.turns]
        advantages = generalised_advantages(
            _at_ends(rewards, lengths),
            worth.sampled,
            last_value=worth.last if trajectory.truncated else 0.0,
            discounts=_steps(lengths, self.horizon.token_discount, self.horizon.turn_discount),
            decays=_steps(lengths, self.horizon.token_decay, self.horizon.turn_decay),
        )
        mask = np.asarray(trajectory.loss_mask, dtype=bool)
        values = worth.sampled.astype(np.float64)
        targets = CriticTargets(_spread_out(values, mask), _spread_out(values + advantages, mask))
        return Example(trajectory, _spread_out(advantages, mask), critic=targets)


def _whitened(example: Example, mean: float, std: float) -> Example:
    advantages = np.where(example.mask, whitened(example.advantages, mean=mean, std=std), 0.0)
    return replace(example, advantages=advantages.astype(np.float32))


def _at_ends(rewards: Vector, lengths: Sequence[int]) -> Vector:
    """(T,) each turn's reward at its last sampled token, or at the one before where it has none."""
    placed = np.zeros(sum(lengths))
    for reward, end in zip(rewards, np.cumsum(lengths), strict=True):
        placed[max(0, int(end) - 1)] += reward
    return placed


def _steps(lengths: Sequence[int], within: float, across: float) -> Vector:
    """(T,) one number within completions, another at their last tokens."""
    placed = np.full(sum(lengths), within)
    placed[np.cumsum(lengths)[[size > 0 for size in lengths]] - 1] = across
    return placed


def _spread_out(values: Vector, mask: np.ndarray) -> TokenCredit:
    """(T,) values on the sampled tokens, 0 elsewhere."""
    spread_out = np.zeros(len(mask), dtype=np.float32)
    spread_out[mask] = values
    return spread_out
