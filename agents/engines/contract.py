"""What a policy asks of the engine that samples for it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from agents.engines.reading import Prefix
from agents.inputs import Row
from agents.trajectory import Completion

STOP_TAGS = ("</search>", "</text_search>", "</visit>", "</answer>", "</tool_call>")
"""An action ends a turn, so sampling ends at the tag that closes one."""


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """How a completion is sampled.

    Attributes:
        max_new_tokens: tokens per completion at most.
        temperature: 0 takes the likeliest token; its log-probability is still the one at temperature 1.
        stop_tags: text that ends a completion.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    stop_tags: tuple[str, ...] = STOP_TAGS


@dataclass(frozen=True, slots=True)
class Asked:
    """A completion that is asked for.

    Attributes:
        row: what the model is given.
        forced: tokens that follow the row's own and count as said but not sampled.
        seed: of the stream of numbers from which its tokens are drawn.
        ended: where earlier turns of the row ended, so that what was read of them is found again.
        room: tokens that may be sampled at most, whatever the limits allow.
    """

    row: Row
    forced: tuple[int, ...]
    seed: int
    ended: tuple[Prefix, ...] = ()
    room: int = 2**31

    @property
    def whole(self) -> Row:
        """The row with what is forced."""
        return self.with_said(())

    def with_said(self, ids: Sequence[int]) -> Row:
        """The row with what is forced and what was sampled."""
        return Row((*self.row.token_ids, *self.forced, *ids), self.row.images)


class Sampling(Protocol):
    """Completions that are sampled together; others may join at any time."""

    def add(self, asked: Sequence[Asked]) -> Sequence[Hashable]:
        """Begin with these as well; a key for each, by which :meth:`step` names it."""
        ...

    def step(self) -> Sequence[tuple[Hashable, Completion]]:
        """Go on with all of them; those that ended with it."""
        ...


class Sampler(Protocol):
    """An engine: samples from the weights that the policy has when sampling begins."""

    def sampling(self, limits: SamplingLimits) -> AbstractContextManager[Sampling]:
        """Inside, completions can be sampled, and no weight may change; one at a time."""
        ...

    def forget(self, row: Row, ended: Sequence[Prefix]) -> None:
        """Let go of what was kept of a row for its next turn; ``ended`` is where its turns did."""
        ...


def sampled(sampler: Sampler, asked: Sequence[Asked], limits: SamplingLimits) -> list[Completion]:
    """One completion for each that is asked for, in order."""
    if not asked:
        return []
    done: dict[Hashable, Completion] = {}
    with sampler.sampling(limits) as sampling:
        keys = sampling.add(asked)
        while len(done) < len(keys):
            done.update(sampling.step())
    return [done[key] for key in keys]
