"""One update of the policy: from examples to an optimiser step, over any number of micro-batches and ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from training.algorithms import Algorithm
from training.batch import Example, TokenBatch, collate, micro_batches
from training.engine import Engine
from training.losses import masked_sum
from training.task import TokenScores, TrainablePolicy


@dataclass(slots=True)
class LearningRecord:
    """What is known about the updates of one iteration, on this rank until ``engine.total``.

    Attributes:
        sums: name -> sum over sampled tokens, over all updates.
        trained_tokens: sampled tokens that went into updates, each as often as it did.
        passed_tokens: tokens run through training passes, padding excluded.
        gap_sum: sum of |trainer - sampler| log-probability over the first update's sampled tokens.
        gap_tokens: how many these were.
        gap_max: the largest.
    """

    sums: Counter[str] = field(default_factory=Counter)
    trained_tokens: float = 0.0
    passed_tokens: float = 0.0
    gap_sum: float = 0.0
    gap_tokens: float = 0.0
    gap_max: float = 0.0

    def add(self, sums: Mapping[str, float], examples: Sequence[Example]) -> None:
        """Count one micro-batch."""
        self.sums.update(sums)
        self.trained_tokens += sum(example.sampled_tokens for example in examples)
        self.passed_tokens += sum(example.length for example in examples)

    def measure_gap(self, scores: TokenScores, batch: TokenBatch) -> None:
        """Compare what the trainer and the sampler think of one micro-batch."""
        gap = (scores.logprobs.detach() - batch.old_logprobs).abs()
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

    def prepare(self, examples: Iterable[Example]) -> list[tuple[tuple[Example, ...], TokenBatch]]:
        """Micro-batches of this rank, with reference scores when the algorithm asks for them."""
        cut = micro_batches(examples, token_budget=self.micro_batch_tokens)
        return [(part, self._scored_by_reference(self._collated(part))) for part in cut]

    def update(
        self,
        prepared: Sequence[tuple[tuple[Example, ...], TokenBatch]],
        spare: Example,
        record: LearningRecord,
        *,
        learning_rate: float,
        measure_gap: bool,
    ) -> float | None:
        """One optimiser step.

        Args:
            prepared: this rank's micro-batches; may be fewer than another rank's, or none.
            spare: any example of this rank, for backward calls that must be made and add nothing.
            record: what is learnt about the update is added here.
            learning_rate: of this step.
            measure_gap: whether no update of this iteration has been applied yet.

        Returns:
            The gradient norm before clipping (infinite: the update was skipped); None when no rank had an example.
        """
        tokens = float(sum(example.sampled_tokens for part, _ in prepared for example in part))
        token_count = self.engine.total({"tokens": tokens})["tokens"]
        if not token_count:
            return None
        for part, batch in prepared:
            scores = self.engine.forward(batch.inputs, batch.loss_mask, self.temperature)
            terms = self.algorithm.loss(scores, batch, token_count=token_count)
            self.engine.backward(terms.loss)
            record.add({name: float(value) for name, value in terms.sums.items()}, part)
            if measure_gap:
                record.measure_gap(scores, batch)
        self._keep_step(len(prepared), spare)
        return self.engine.step(learning_rate)

    def _keep_step(self, made: int, spare: Example) -> None:
        """Make the backward calls that other ranks make more than this one, with a loss of 0."""
        for _ in range(made, int(self.engine.largest({"rounds": float(made)})["rounds"])):
            batch = self._scored_by_reference(self._collated([spare]))
            scores = self.engine.forward(batch.inputs, batch.loss_mask, self.temperature)
            self.engine.backward(0.0 * self.algorithm.loss(scores, batch, token_count=1.0).loss)

    def _collated(self, examples: Sequence[Example]) -> TokenBatch:
        return collate(examples, self.policy, device=self.engine.place.device)

    def _scored_by_reference(self, batch: TokenBatch) -> TokenBatch:
        if not self.algorithm.needs_reference:
            return batch
        with self.policy.reference():
            scores: TokenScores = self.engine.score(batch.inputs, batch.loss_mask, self.temperature)
        return batch.with_reference(scores.logprobs)
