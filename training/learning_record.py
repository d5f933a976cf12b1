"""What is known about the updates of one iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from agents.trajectory import Trajectory
from training.algorithms import Algorithm
from training.batch import Example, TokenBatch
from training.losses import masked_sum
from training.task import TokenScores


@dataclass(slots=True)
class LearningRecord:
    """What is known about the updates of one iteration, on this rank until ``engine.total``.

    Attributes:
        sums: metric of the algorithm -> sum over sampled tokens, over all updates.
        trained_tokens: sampled tokens that went into updates, each as often as it did.
        passed_tokens: tokens of the episodes in training passes, a prompt for each, though it may be run once for all.
        gap_sum: sum of |trainer - sampler| log-probability over the first update's sampled tokens.
        gap_tokens: how many these were.
        gap_max: the largest.
        suspects: trajectories behind an update that was skipped because its gradient was not finite.
    """

    sums: dict[str, float]
    trained_tokens: float = 0.0
    passed_tokens: float = 0.0
    gap_sum: float = 0.0
    gap_tokens: float = 0.0
    gap_max: float = 0.0
    suspects: list[Trajectory] = field(default_factory=list)

    @classmethod
    def of(cls, algorithm: Algorithm) -> Self:
        """An empty record of the algorithm's metrics."""
        return cls(sums=dict.fromkeys(algorithm.logged, 0.0))

    def add(self, sums: Mapping[str, float], examples: Sequence[Example]) -> None:
        """Count one micro-batch."""
        for name, value in sums.items():
            self.sums[name] += value
        self.trained_tokens += sum(example.sampled_tokens for example in examples)
        self.passed_tokens += sum(example.length for example in examples)

    def measure_gap(self, scores: TokenScores, batch: TokenBatch) -> None:
        """Compare what the trainer and the sampler think of one micro-batch."""
        gap = (scores.logprobs.detach() - batch.sampler_logprobs).abs()
        self.gap_sum += float(masked_sum(gap, batch.loss_mask))
        self.gap_tokens += float(batch.loss_mask.sum())
        self.gap_max = max(self.gap_max, float(gap.masked_fill(~batch.loss_mask, 0.0).max()))

    def include(self, other: LearningRecord) -> None:
        """Add what another record knows."""
        for name, value in other.sums.items():
            self.sums[name] += value
        self.trained_tokens += other.trained_tokens
        self.passed_tokens += other.passed_tokens
        self.gap_sum += other.gap_sum
        self.gap_tokens += other.gap_tokens
        self.gap_max = max(self.gap_max, other.gap_max)
        self.suspects += other.suspects
