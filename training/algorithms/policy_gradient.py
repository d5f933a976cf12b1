"""Policy gradient without a critic: a credit, a surrogate and a way to add up tokens. Most algorithms are that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from agents.trajectory import Group
from training.algorithms.contract import LossTerms, StateValues, Total, UpdateSize
from training.algorithms.credit import Credit, FatalFailures, Overlong, laid_on_tokens, turn_rewards
from training.batch import Example, TokenBatch
from training.losses import Level, Surrogate, importance_weights, kl_k3, masked_sum
from training.task import TokenScores

Aggregation = Literal["token", "episode", "constant"]
"""How the losses of tokens become one number, for N tokens and B episodes in the update, nᵢ tokens in episode i:

    token      1/N Σ                      every token weighs the same (DAPO, arXiv 2503.14476, eq. 8)
    episode    1/B Σᵢ 1/nᵢ Σₜ             every episode weighs the same (GRPO, arXiv 2402.03300, eq. 3)
    constant   1/(B L) Σ                  the same whatever was said, L fixed (Dr. GRPO, arXiv 2503.20783, appendix A)
"""


class SurrogateLoss(Protocol):
    """A loss of :mod:`training.losses`: of each token, by how much likelier it has become."""

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        clip_low: float,
        clip_high: float,
    ) -> Surrogate:
        """(B, T)."""
        ...


@dataclass(frozen=True, slots=True)
class Clipped:
    """A surrogate with its bounds.

    Attributes:
        loss: ``clipped_surrogate``, ``sequence_surrogate`` or ``weighted_surrogate``.
        clip_low: ε_low.
        clip_high: ε_high.
    """

    loss: SurrogateLoss
    clip_low: float
    clip_high: float

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> Surrogate:
        """(B, T)."""
        sampled = (scores.logprobs, batch.old_logprobs, batch.advantages, batch.loss_mask)
        return self.loss(*sampled, clip_low=self.clip_low, clip_high=self.clip_high)


@dataclass(frozen=True, slots=True)
class Correction:
    """Truncated importance weights against a sampler that is not quite the trainer.

    Attributes:
        level: see :func:`~training.losses.importance_weights`.
        cap: largest weight.
    """

    level: Level = "token"
    cap: float = 2.0


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """An algorithm without a critic.

        L = Σ over sampled tokens t of aₜ [ wₜ Lₜ + β kₜ ]

    Lₜ the surrogate's loss with the credit's advantage, kₜ the k3 estimate of the divergence from the reference policy,
    wₜ = 1 or a truncated importance weight, aₜ by the aggregation. With weights, ratios are to the trainer's own policy
    before the iteration's updates, else to the sampler's.

    Attributes:
        credit: advantages of turns.
        surrogate: loss of tokens.
        aggregation: how these are added up.
        episode_tokens: L of the constant aggregation.
        kl_coefficient: β; 0 spares the reference pass.
        correction: of the sampler's distance from the trainer.
        overlong: punishment of long episodes.
        fatal: what is done about episodes whose searches fail again and again.
    """

    credit: Credit
    surrogate: Clipped
    aggregation: Aggregation = "token"
    episode_tokens: float = 1.0
    kl_coefficient: float = 0.0
    correction: Correction | None = None
    overlong: Overlong = Overlong()
    fatal: FatalFailures = FatalFailures()

    @property
    def needs_reference(self) -> bool:
        """True when the divergence has a weight."""
        return self.kl_coefficient > 0.0

    @property
    def needs_values(self) -> bool:
        """Never."""
        return False

    @property
    def corrects(self) -> bool:
        """True when there is a correction."""
        return self.correction is not None

    @property
    def logged(self) -> tuple[str, ...]:
        """The loss, its parts, and how far the policy has moved."""
        names = ["loss/total", "loss/policy", "policy/entropy", "policy/clip_fraction"]
        names += ["policy/kl"] if self.needs_reference else []
        return (*names, "policy/importance_weight", "policy/importance_capped") if self.corrects else tuple(names)

    def weights(self, logprobs: Tensor, batch: TokenBatch) -> Tensor | None:
        """Truncated importance weights of the correction's level."""
        if self.correction is None:
            return None
        sampled = (batch.sampler_logprobs, batch.loss_mask)
        return importance_weights(logprobs, *sampled, level=self.correction.level, cap=self.correction.cap)

    def advantages(
        self, groups: Sequence[Group], *, values: Sequence[Sequence[StateValues]] | None, total: Total
    ) -> list[list[Example]]:
        """Every sampled token gets the advantage of its turn."""
        credited = self.credit(turn_rewards(groups, self.overlong), total)
        return laid_on_tokens(groups, credited, self.fatal.applied)

    def loss(self, scores: TokenScores, batch: TokenBatch, *, size: UpdateSize) -> LossTerms:
        """The loss above over one micro-batch."""
        mask = batch.loss_mask
        surrogate = self.surrogate(scores, batch)
        losses = surrogate.losses if batch.weights is None else surrogate.losses * batch.weights
        sums = {
            "loss/policy": masked_sum(losses, mask),
            "policy/entropy": masked_sum(scores.entropy, mask),
            "policy/clip_fraction": masked_sum(surrogate.clipped.float(), mask),
        }
        if batch.weights is not None and self.correction is not None:
            sums["policy/importance_weight"] = masked_sum(batch.weights, mask)
            sums["policy/importance_capped"] = masked_sum((batch.weights >= self.correction.cap).float(), mask)
        if self.needs_reference:
            divergence = kl_k3(scores.logprobs, _reference(batch))
            sums["policy/kl"] = masked_sum(divergence, mask)
            losses = losses + self.kl_coefficient * divergence
        sums["loss/total"] = masked_sum(losses, mask)
        return LossTerms(self.added_up(losses, mask, size), {name: value.detach() for name, value in sums.items()})

    def added_up(self, losses: Tensor, mask: Tensor, size: UpdateSize) -> Tensor:
        """The losses (B, T) of a micro-batch as its part of the update's loss."""
        if self.aggregation == "token":
            return masked_sum(losses, mask) / size.tokens
        if self.aggregation == "constant":
            return masked_sum(losses, mask) / (size.trajectories * self.episode_tokens)
        per_episode = torch.where(mask, losses, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return per_episode.sum() / size.trajectories


def _reference(batch: TokenBatch) -> Tensor:
    if batch.ref_logprobs is None:
        raise ValueError(
            "expected a batch with ref_logprobs, got none; the loop adds them when needs_reference is True"
        )
    return batch.ref_logprobs
