"""Algorithms: each is a credit and a loss behind the same two methods. The loop does not know which one runs.

How GRPO here departs from the paper (DeepSeekMath, arXiv 2402.03300):

1. The loss is a sum over sampled tokens divided by the number of sampled tokens of the whole update, over all ranks
   and micro-batches, not a mean of per-trajectory means: a long episode is not discounted (DAPO, arXiv 2503.14476,
   eq. 8), and how a batch is cut has no influence.
2. The standard deviation has the divisor G - 1; "none" leaves it out (Dr. GRPO).
3. The upper clip bound may differ from the lower one (DAPO).
4. Tokens the environment wrote have no part in the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from agents.trajectory import Group, Trajectory
from training.advantages import Scale, group_relative
from training.batch import Example, TokenBatch, TokenCredit
from training.losses import Level, clipped_surrogate, importance_weights, kl_k3, masked_sum
from training.task import TokenScores


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of one micro-batch and what is logged about it.

    Attributes:
        loss: scalar; the losses of all micro-batches of an update add up to the loss of the update.
        sums: one scalar without gradient for each name in the algorithm's ``logged``: the sum over sampled tokens.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]


class Algorithm(Protocol):
    """What the loop asks of an algorithm."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``loss`` reads ``batch.ref_logprobs``; if not, the pass is not made."""
        ...

    def weights(self, logprobs: Tensor, batch: TokenBatch) -> Tensor | None:
        """Importance weights (B, T) of a batch, by the trainer's log-probabilities before any update; None for none."""
        ...

    @property
    def corrects(self) -> bool:
        """Whether there are such weights."""
        ...

    @property
    def logged(self) -> tuple[str, ...]:
        """Metrics that ``loss`` reports, each a mean over sampled tokens."""
        ...

    def advantages(self, groups: Sequence[Group]) -> list[list[Example]]:
        """Credit for every token of every trajectory: one list per group, in order."""
        ...

    def loss(self, scores: TokenScores, batch: TokenBatch, *, token_count: float) -> LossTerms:
        """The loss of one micro-batch.

        Args:
            scores: of the policy being trained, (B, T), with gradient.
            batch: the micro-batch.
            token_count: sampled tokens of the whole update, over all micro-batches and ranks.
        """
        ...


@dataclass(frozen=True, slots=True)
class GRPO:
    """Group relative policy optimisation.

        L = 1/N Σ over sampled tokens t of [ -wₜ min(rₜ Âₜ, clip(rₜ, 1 - ε_low, 1 + ε_high) Âₜ) + β kₜ ]

    N sampled tokens of the update, Âₜ the group-relative advantage of t's trajectory, kₜ the k3 estimate of the
    divergence from the reference policy, wₜ = 1 or a truncated importance weight. With weights the ratio rₜ is to the
    trainer's own policy before the iteration's updates, else to the sampler's.

    Attributes:
        clip_low: ε_low.
        clip_high: ε_high.
        kl_coefficient: β; 0 spares the reference pass.
        advantage_scale: see :func:`~training.advantages.group_relative`.
        correction: of the sampler's distance from the trainer; see :func:`~training.losses.importance_weights`.
        correction_cap: largest weight.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.0
    advantage_scale: Scale = "std"
    correction: Level | Literal["none"] = "none"
    correction_cap: float = 2.0

    @property
    def corrects(self) -> bool:
        """True when a correction is chosen."""
        return self.correction != "none"

    def weights(self, logprobs: Tensor, batch: TokenBatch) -> Tensor | None:
        """Truncated importance weights of the chosen level."""
        if self.correction == "none":
            return None
        sampled = (batch.sampler_logprobs, batch.loss_mask)
        return importance_weights(logprobs, *sampled, level=self.correction, cap=self.correction_cap)

    @property
    def needs_reference(self) -> bool:
        """True when the divergence has a weight."""
        return self.kl_coefficient > 0.0

    @property
    def logged(self) -> tuple[str, ...]:
        """The loss, its parts, and how far the policy has moved."""
        names = ["loss/total", "loss/policy", "policy/entropy", "policy/clip_fraction"]
        names += ["policy/kl"] if self.needs_reference else []
        return (*names, "policy/importance_weight", "policy/importance_capped") if self.corrects else tuple(names)

    def advantages(self, groups: Sequence[Group]) -> list[list[Example]]:
        """Every sampled token of a trajectory gets the group-relative advantage of its return."""
        return [self._credit(group) for group in groups]

    def loss(self, scores: TokenScores, batch: TokenBatch, *, token_count: float) -> LossTerms:
        """The loss above over one micro-batch."""
        mask = batch.loss_mask
        surrogate = clipped_surrogate(
            scores.logprobs,
            batch.old_logprobs,
            batch.advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        losses = surrogate.losses if batch.weights is None else surrogate.losses * batch.weights
        total = policy_loss = masked_sum(losses, mask)
        sums = {
            "loss/policy": policy_loss,
            "policy/entropy": masked_sum(scores.entropy, mask),
            "policy/clip_fraction": masked_sum(surrogate.clipped.float(), mask),
        }
        if batch.weights is not None:
            sums["policy/importance_weight"] = masked_sum(batch.weights, mask)
            sums["policy/importance_capped"] = masked_sum((batch.weights >= self.correction_cap).float(), mask)
        if self.needs_reference:
            sums["policy/kl"] = masked_sum(kl_k3(scores.logprobs, _reference(batch)), mask)
            total = total + self.kl_coefficient * sums["policy/kl"]
        sums["loss/total"] = total
        return LossTerms(total / token_count, {name: value.detach() for name, value in sums.items()})

    def _credit(self, group: Group) -> list[Example]:
        returns = [trajectory.episode_return for trajectory in group.trajectories]
        per_trajectory = group_relative(returns, scale=self.advantage_scale)
        return [
            Example(trajectory, on_sampled_tokens(trajectory, float(advantage)))
            for trajectory, advantage in zip(group.trajectories, per_trajectory, strict=True)
        ]


def on_sampled_tokens(trajectory: Trajectory, advantage: float) -> TokenCredit:
    """One number for the whole trajectory, laid on the tokens that were sampled, 0 elsewhere: (T,)."""
    return np.where(np.asarray(trajectory.loss_mask, dtype=bool), np.float32(advantage), np.float32(0.0))


def _reference(batch: TokenBatch) -> Tensor:
    if batch.ref_logprobs is None:
        raise ValueError(
            "expected a batch with ref_logprobs, got none; the loop adds them when needs_reference is True"
        )
    return batch.ref_logprobs
