"""One update of the policy: from examples to an optimiser step, over any number of micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from agents.trajectory import Completion, FinishReason, Group, Trajectory, Turn
from training.algorithms import Algorithm, StateValues, UpdateSize
from training.batch import CriticTargets, Example, TokenBatch, collate, micro_batches, micro_batches_of_groups
from training.engine import Engine
from training.losses import masked_sum
from training.task import TokenScores, TrainablePolicy

_SAID = Completion("", (0,), (0.0,), FinishReason.STOP)
_IDLE = Example(
    Trajectory("", (Turn((0,), (), _SAID, 0.0, "", True),), True, False, "", 0.0, {}, {}, ""),
    np.zeros(2, dtype=np.float32),
    CriticTargets(np.zeros(2, dtype=np.float32), np.zeros(2, dtype=np.float32)),
)
"""Two tokens, for a pass that is made for other ranks' sake."""


@dataclass(slots=True)
class LearningRecord:
    """What is known about the updates of one iteration, on this rank until ``engine.total``.

    Attributes:
        sums: metric of the algorithm -> sum over sampled tokens, over all updates.
        trained_tokens: sampled tokens that went into updates, each as often as it did.
        passed_tokens: tokens run through training passes, padding excluded.
        gap_sum: sum of |trainer - sampler| log-probability over the first update's sampled tokens.
        gap_tokens: how many these were.
        gap_max: the largest.
    """

    sums: dict[str, float]
    trained_tokens: float = 0.0
    passed_tokens: float = 0.0
    gap_sum: float = 0.0
    gap_tokens: float = 0.0
    gap_max: float = 0.0

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


@dataclass(frozen=True, slots=True)
class Learner:
    """Turns examples into updates.

    Attributes:
        policy: what learns.
        engine: what moves its weights.
        algorithm: what is made of the scores.
        temperature: of sampling, so that scores are those of the sampler.
        micro_batch_tokens: padded tokens in one forward pass.
    """

    policy: TrainablePolicy
    engine: Engine
    algorithm: Algorithm
    temperature: float
    micro_batch_tokens: int

    def credit(self, groups: Mapping[int, Group]) -> dict[int, list[Example]]:
        """The examples of each group, under its key; every rank calls it."""
        played = list(groups.values())
        values = self._values(played) if self.algorithm.needs_values else None
        credited = self.algorithm.advantages(played, values=values, total=self.engine.total)
        return dict(zip(groups, credited, strict=True))

    def prepare(self, examples: Iterable[Example], *, updates: int) -> list[tuple[tuple[Example, ...], TokenBatch]]:
        """Micro-batches of this rank, as many as on every other, with the scores that the algorithm asks for.

        Args:
            examples: of one update.
            updates: that the iteration has; only where there are several, the trainer's scores before the first one
                take a pass of their own.
        """
        collated = self._collated_together(self._cut(examples))
        batches = [(part, self._scored_by_reference(batch)) for part, batch in collated]
        return [(part, self._corrected(batch)) for part, batch in batches] if updates > 1 else batches

    def update(
        self,
        prepared: Sequence[tuple[tuple[Example, ...], TokenBatch]],
        record: LearningRecord,
        *,
        learning_rate: float,
        measure_gap: bool,
    ) -> float | None:
        """One optimiser step.

        Args:
            prepared: this rank's micro-batches; those without examples are there for other ranks' sake.
            record: what is learnt about the update is added here.
            learning_rate: of this step.
            measure_gap: whether no update of this iteration has been applied yet.

        Returns:
            The gradient norm before clipping (infinite: the update was skipped); None when no rank had an example.
        """
        size = self._size([example for part, _ in prepared for example in part])
        if not size.tokens:
            return None
        for part, batch in prepared:
            scores = self.engine.forward(batch.inputs, batch.loss_mask, self.temperature)
            if not part:
                self.engine.backward(_nothing(scores))
                continue
            if measure_gap:
                record.measure_gap(scores, batch)
            if self.algorithm.corrects and batch.weights is None:
                batch = self._weighted(batch, scores)
            terms = self.algorithm.loss(scores, batch, size=size)
            self.engine.backward(terms.loss)
            record.add({name: float(value) for name, value in terms.sums.items()}, part)
        return self.engine.step(learning_rate)

    def metrics(self, record: LearningRecord) -> dict[str, float]:
        """The algorithm's metrics, the sampler-trainer gap and the token count of an iteration, over all ranks."""
        counts = self.engine.total(
            {
                "trained": record.trained_tokens,
                "passed": record.passed_tokens,
                "gap": record.gap_sum,
                "gap_tokens": record.gap_tokens,
            }
        )
        sums = self.engine.total(record.sums)
        gap_max = self.engine.largest({"gap_max": record.gap_max})["gap_max"]
        if not counts["trained"]:
            return {"optimiser/tokens": 0.0}
        return {
            **{name: value / counts["trained"] for name, value in sums.items()},
            "policy/logprob_gap": counts["gap"] / counts["gap_tokens"],
            "policy/logprob_gap_max": gap_max,
            "optimiser/tokens": counts["passed"],
        }

    def _cut(self, examples: Iterable[Example]) -> list[tuple[Example, ...]]:
        cut_up = micro_batches_of_groups if self.policy.shares_prompts else micro_batches
        return cut_up(examples, token_budget=self.micro_batch_tokens)

    def _size(self, examples: Sequence[Example]) -> UpdateSize:
        """Of an update of which this rank has these examples."""
        sampled = [example.sampled_tokens for example in examples]
        counts = {"tokens": float(sum(sampled)), "trajectories": float(sum(count > 0 for count in sampled))}
        return UpdateSize(**self.engine.total(counts))

    def _values(self, groups: Sequence[Group]) -> list[list[StateValues]]:
        """What the critic thinks of every trajectory."""
        plain = [
            Example(trajectory, np.zeros(len(trajectory.loss_mask), dtype=np.float32))
            for group in groups
            for trajectory in group.trajectories
        ]
        found: dict[int, StateValues] = {}
        for part, batch in self._collated_together(self._cut(plain)):
            scores = self.engine.score(batch.inputs, batch.loss_mask, self.temperature, "values")
            rows = zip(part, scores.values.cpu(), scores.last_values.cpu(), batch.loss_mask.cpu(), strict=False)
            for example, values, last, mask in rows:
                found[id(example.trajectory)] = StateValues(values[mask].numpy(), float(last))
        return [[found[id(trajectory)] for trajectory in group.trajectories] for group in groups]

    def _collated_together(self, parts: Sequence[tuple[Example, ...]]) -> list[tuple[tuple[Example, ...], TokenBatch]]:
        """The batches of these parts, and of nothing, until this rank has as many as the one with most.

        Where parameters are spread over the ranks a pass needs all of them, so all make equally many.
        """
        rounds = int(self.engine.largest({"rounds": float(len(parts))})["rounds"])
        padded = [*parts, *[()] * (rounds - len(parts))]
        with self.engine.gathered() if rounds else nullcontext():  # pictures go through the tower here
            return [(part, self._collated(part or (_IDLE,))) for part in padded]

    def _collated(self, examples: Sequence[Example]) -> TokenBatch:
        return collate(examples, self.policy, device=self.engine.place.device)

    def _corrected(self, batch: TokenBatch) -> TokenBatch:
        if not self.algorithm.corrects:
            return batch
        return self._weighted(batch, self.engine.score(batch.inputs, batch.loss_mask, self.temperature))

    def _weighted(self, batch: TokenBatch, scores: TokenScores) -> TokenBatch:
        """The batch as sampled by the trainer's policy, of which ``scores`` are."""
        logprobs = scores.logprobs.detach()
        weights = self.algorithm.weights(logprobs, batch)
        return batch if weights is None else batch.corrected(logprobs, weights)

    def _scored_by_reference(self, batch: TokenBatch) -> TokenBatch:
        if not self.algorithm.needs_reference:
            return batch
        with self.policy.reference():
            scores: TokenScores = self.engine.score(batch.inputs, batch.loss_mask, self.temperature)
        return batch.with_reference(scores.logprobs)


def _nothing(scores: TokenScores) -> Tensor:
    """A loss of 0 that depends on all that is trained."""
    total = scores.logprobs.sum()
    return 0.0 * (total if scores.values is None else total + scores.values.sum())
