"""One update of the policy: from examples to an optimiser step, over any number of micro-batches and ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.trajectory import Completion, FinishReason, Group, Trajectory, Turn
from mmsearch_env.errors import PolicyError
from training.algorithms import Algorithm, StateValues, UpdateSize
from training.batch import (
    CriticTargets,
    Example,
    TokenBatch,
    collate,
    micro_batches,
    packed_micro_batches,
    tokens_run,
)
from training.engine import Engine
from training.learning_record import LearningRecord
from training.task import TokenScores, TrainablePolicy

_log = logging.getLogger(__name__)

_SAID = Completion("", (0,), (0.0,), FinishReason.STOP)
_IDLE = Example(
    Trajectory("", (Turn((0,), (), _SAID, 0.0, "", True),), True, False, "", 0.0, {}, {}, ""),
    np.zeros(2, dtype=np.float32),
    CriticTargets(np.zeros(2, dtype=np.float32), np.zeros(2, dtype=np.float32)),
)
"""Two tokens, for a pass that is made for other ranks' sake."""


MicroBatch = tuple[tuple[Example, ...], TokenBatch]
"""Examples and their tensors; one without examples is there for other ranks' sake."""


@dataclass(slots=True)
class TokenBudget:
    """How many tokens go through one forward pass; less where memory turned out to be short."""

    tokens: int
    is_short: bool = False

    def halve(self) -> None:
        """Memory was short."""
        self.tokens, self.is_short = max(1, self.tokens // 2), True
        _log.warning("memory is short: passes of at most %d tokens from now on", self.tokens)


@dataclass(frozen=True, slots=True)
class Learner:
    """Turns examples into updates.

    Attributes:
        policy: what learns.
        engine: what moves its weights.
        algorithm: what is made of the scores.
        temperature: of sampling, so that scores are those of the sampler.
        budget: tokens in one forward pass.
    """

    policy: TrainablePolicy
    engine: Engine
    algorithm: Algorithm
    temperature: float
    budget: TokenBudget

    def credit(self, groups: Mapping[int, Group]) -> dict[int, list[Example]]:
        """The examples of each group, under its key; every rank calls it."""
        played = list(groups.values())
        values = self._values(played) if self.algorithm.needs_values else None
        credited = self.algorithm.advantages(played, values=values, total=self.engine.total)
        return dict(zip(groups, credited, strict=True))

    def prepare(self, examples: Sequence[Example], *, updates: int) -> list[MicroBatch]:
        """Micro-batches of this rank, as many as on every other, with the scores that the algorithm asks for.

        Args:
            examples: of one update.
            updates: that the iteration has; only where there are several, the trainer's scores before the first one
                take a pass of their own.
        """
        collated = self._collated_together(examples)
        batches = [(part, self._scored_by_reference(batch)) for part, batch in collated]
        return [(part, self._corrected(batch)) for part, batch in batches] if updates > 1 else batches

    def update(
        self,
        prepared: list[MicroBatch],
        record: LearningRecord,
        *,
        learning_rate: float,
        measure_gap: bool,
    ) -> float | None:
        """One optimiser step.

        Args:
            prepared: this rank's micro-batches; those without examples are there for other ranks' sake. Where memory
                is short they become shorter, and stay so for later epochs.
            record: what is learnt about the update is added here.
            learning_rate: of this step.
            measure_gap: whether no update of this iteration has been applied yet.

        Returns:
            The gradient norm before clipping (infinite: the update was skipped); None when no rank had an example.
        """
        size = self._size([example for part, _ in prepared for example in part])
        if not size.tokens:
            return None
        if self.budget.is_short:
            prepared[:] = self._shortened(prepared)
        added = LearningRecord.of(self.algorithm)
        fits = self._backward(prepared, added, size=size, measure_gap=measure_gap)
        if self.engine.largest({"short": float(not fits)})["short"]:
            self.engine.drop_gradients()
            self._expect_divisible(prepared)
            self.budget.halve()
            return self.update(prepared, record, learning_rate=learning_rate, measure_gap=measure_gap)
        norm = self.engine.step(learning_rate)
        if not math.isfinite(norm) and not self.engine.largest({"suspects": float(len(added.suspects))})["suspects"]:
            # No loss on any rank; then it may be any of them.
            added.suspects += [example.trajectory for part, _ in prepared for example in part]
        record.include(added)
        return norm

    def _backward(
        self, prepared: Sequence[MicroBatch], record: LearningRecord, *, size: UpdateSize, measure_gap: bool
    ) -> bool:
        """The gradients of an update; whether memory sufficed."""
        try:
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
                if not torch.isfinite(terms.loss):
                    record.suspects += [example.trajectory for example in part]
        except RuntimeError as error:
            if not _is_shortage(error):
                raise
            if not self.engine.can_drop_gradients:
                raise PolicyError(
                    f"expected memory for passes of {self.budget.tokens} tokens, got too little: {error}; resume with "
                    "a smaller engine.micro_batch_tokens"
                ) from error
            return False
        return True

    def _expect_divisible(self, prepared: Sequence[MicroBatch]) -> None:
        """Raises PolicyError, on all ranks, where no rank has a micro-batch of more than one example."""
        largest = max((len(part) for part, _ in prepared), default=0)
        if self.engine.largest({"examples": float(largest)})["examples"] <= 1:
            longest = max((example.length for part, _ in prepared for example in part), default=0)
            raise PolicyError(
                f"expected memory for one episode of {longest} tokens, got too little; resume with "
                "engine.gradient_checkpointing=true"
            )

    def _shortened(self, prepared: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The same in parts that fit the budget, as far as single examples do."""
        waiting, fitting = list(reversed(prepared)), list[MicroBatch]()
        while waiting:
            part, batch = waiting.pop()
            packed = self.policy.packs([example.trajectory for example in part])
            if len(part) > 1 and tokens_run(part, packed=packed) > self.budget.tokens:
                waiting += reversed(_split(part, batch, self.policy))
            else:
                fitting.append((part, batch))
        return fitting

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

    def _cut(self, examples: Sequence[Example]) -> list[tuple[Example, ...]]:
        is_packed = self.policy.packs([example.trajectory for example in examples])
        cut_up = packed_micro_batches if is_packed else micro_batches
        return cut_up(examples, token_budget=self.budget.tokens)

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
        for part, batch in self._collated_together(plain):
            scores = self.engine.score(batch.inputs, batch.loss_mask, self.temperature, "values")
            rows = zip(part, scores.values.cpu(), scores.last_values.cpu(), batch.loss_mask.cpu(), strict=False)
            for example, values, last, mask in rows:
                found[id(example.trajectory)] = StateValues(values[mask].numpy(), float(last))
        return [[found[id(trajectory)] for trajectory in group.trajectories] for group in groups]

    def _collated_together(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """Batches of these examples, and of nothing, until this rank has as many as the one with most.

        Where parameters are spread over the ranks a pass needs all of them, so all make equally many.
        """
        if not self.engine.largest({"examples": float(len(examples))})["examples"]:
            return []
        with self.engine.gathered():  # pictures go through the tower here, and ways to lay out rows are compared
            parts = self._cut(examples)
            rounds = int(self.engine.largest({"rounds": float(len(parts))})["rounds"])
            padded = [*parts, *[()] * (rounds - len(parts))]
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


def _split(part: tuple[Example, ...], batch: TokenBatch, policy: TrainablePolicy) -> list[MicroBatch]:
    """A micro-batch in two; what was scored of it already is kept."""
    middle = len(part) // 2
    found: list[MicroBatch] = []
    for rows in (slice(0, middle), slice(middle, None)):
        inputs = policy.forward_inputs([example.trajectory for example in part[rows]])
        length = max(example.length for example in part[rows])
        found.append((part[rows], batch.rows(rows, length=length, inputs=inputs)))
    return found


def _is_shortage(error: RuntimeError) -> bool:
    # The CPU's allocator has no error of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
