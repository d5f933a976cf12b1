"""What the loop asks of an algorithm: two methods and what it has to compute for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agents.trajectory import Group
from training.batch import Example, TokenBatch
from training.task import TokenScores

Total = Callable[[Mapping[str, float]], dict[str, float]]
"""Sums over all ranks; every rank calls it with the same names."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of one micro-batch and what is logged about it.

    Attributes:
        loss: scalar; the losses of all micro-batches of an update add up to the loss of the update.
        sums: one scalar without gradient for each name in the algorithm's ``logged``: the sum over sampled tokens.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class UpdateSize:
    """What an update is made of, over all its micro-batches and ranks.

    Attributes:
        tokens: sampled tokens that are trained on.
        trajectories: that have such tokens.
    """

    tokens: float
    trajectories: float


@dataclass(frozen=True, slots=True)
class StateValues:
    """What a critic thinks of an episode, before the iteration's updates.

    Attributes:
        sampled: (n,) of the states in which each of the n sampled tokens was sampled, in order.
        last: of the state after the last token.
    """

    sampled: NDArray[np.float32]
    last: float


class Algorithm(Protocol):
    """Credit for what was played, and a loss."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``loss`` reads ``batch.ref_logprobs``; if not, the pass is not made."""
        ...

    @property
    def needs_values(self) -> bool:
        """Whether ``advantages`` wants a critic's values, and ``loss`` its scores; if not, the pass is not made."""
        ...

    @property
    def corrects(self) -> bool:
        """Whether there are importance weights."""
        ...

    @property
    def logged(self) -> tuple[str, ...]:
        """Metrics that ``loss`` reports, each a mean over sampled tokens."""
        ...

    def weights(self, logprobs: Tensor, batch: TokenBatch) -> Tensor | None:
        """Importance weights (B, T) of a batch, by the trainer's log-probabilities before any update; None for none."""
        ...

    def advantages(
        self, groups: Sequence[Group], *, values: Sequence[Sequence[StateValues]] | None, total: Total
    ) -> list[list[Example]]:
        """Credit for every token of every trajectory: one list per group, in order. Every rank calls it.

        Args:
            groups: what this rank played.
            values: of their trajectories, where the algorithm needs them.
            total: sums over ranks.
        """
        ...

    def loss(self, scores: TokenScores, batch: TokenBatch, *, size: UpdateSize) -> LossTerms:
        """The loss of one micro-batch.

        Args:
            scores: of the policy being trained, (B, T), with gradient.
            batch: the micro-batch.
            size: of the whole update.
        """
        ...
