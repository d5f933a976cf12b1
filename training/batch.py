"""Trajectories and their credit become token batches.

Example: two trajectories of 5 and 3 tokens, the last two of each sampled, advantages +1 and -1::

    loss_mask   F F F T T        advantages   0  0  0  1  1
                F T T F F                     0 -1 -1  0  0

Letters: B trajectories, T tokens (padded on the right to the longest of the batch).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.trajectory import Trajectory
from training.task import TrainablePolicy

TokenCredit = NDArray[np.float32]
"""(T,) one advantage per token of a trajectory, 0 where no token was sampled."""


@dataclass(frozen=True, slots=True)
class CriticTargets:
    """What a critic is trained towards, on the sampled tokens of a trajectory.

    Attributes:
        old_values: (T,) its values before the iteration's updates.
        returns: (T,) what they should have been.
    """

    old_values: TokenCredit
    returns: TokenCredit


@dataclass(frozen=True, slots=True)
class Example:
    """A trajectory and the credit of each of its tokens.

    Attributes:
        trajectory: T tokens.
        advantages: (T,).
        critic: what a critic learns from it.
        end: tokens from here on are left out of the loss; None for none.
    """

    trajectory: Trajectory
    advantages: TokenCredit
    critic: CriticTargets | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        tokens = len(self.trajectory.loss_mask)
        if self.advantages.shape != (tokens,):
            raise ValueError(
                f"{self.trajectory.question_id}: expected one advantage for each of {tokens} tokens, "
                f"got shape {self.advantages.shape}"
            )

    @property
    def length(self) -> int:
        """Tokens, prompt and observations included."""
        return len(self.advantages)

    @property
    def prompt(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Tokens and pictures before the first sampled token: equal for the episodes of one question."""
        first = self.trajectory.turns[0]
        return first.prompt_ids, tuple(image.digest for image in first.images)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(T,) True on the tokens that are trained on: those that were sampled, up to ``end``."""
        sampled = np.asarray(self.trajectory.loss_mask, dtype=bool)
        return sampled if self.end is None else sampled & (np.arange(len(sampled)) < self.end)

    @property
    def sampled_tokens(self) -> int:
        """Tokens that are trained on."""
        return int(self.mask.sum())

    def cut_after(self, tokens: int, *, advantages: TokenCredit) -> Self:
        """With other advantages, and only so many tokens trained on."""
        return replace(self, advantages=advantages, end=tokens)


@dataclass(frozen=True, slots=True)
class CriticBatch:
    """:class:`CriticTargets` of a batch.

    Attributes:
        old_values: (B, T).
        returns: (B, T).
    """

    old_values: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What one forward pass is given.

    Attributes:
        inputs: what the policy's scorer needs besides the loss mask; opaque here.
        loss_mask: (B, T) bool, True on sampled tokens.
        old_logprobs: (B, T) log-probabilities before the iteration's updates: the sampler's, or the trainer's own.
        advantages: (B, T) credit.
        ref_logprobs: (B, T) under the reference policy; None when the algorithm does not ask for them.
        weights: (B, T) importance weights of the tokens; None where sampler and trainer are taken for the same.
        corrected_from: (B, T) the sampler's log-probabilities where ``old_logprobs`` are the trainer's.
        critic: what a critic is trained towards; None without one.
    """

    inputs: Any
    loss_mask: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    weights: Tensor | None = None
    corrected_from: Tensor | None = None
    critic: CriticBatch | None = None

    @property
    def sampler_logprobs(self) -> Tensor:
        """(B, T) when the tokens were sampled."""
        return self.old_logprobs if self.corrected_from is None else self.corrected_from

    def with_reference(self, ref_logprobs: Tensor) -> TokenBatch:
        """The same batch, reference log-probabilities (B, T) added."""
        return replace(self, ref_logprobs=ref_logprobs)

    def rows(self, chosen: slice, *, length: int, inputs: Any) -> TokenBatch:
        """Some of its rows, of at most ``length`` tokens, and what the scorer needs for them."""
        parts: dict[str, Any] = {
            item.name: getattr(self, item.name)[chosen, :length]
            for item in fields(self)
            if isinstance(getattr(self, item.name), Tensor)
        }
        if self.critic is not None:
            values, returns = self.critic.old_values[chosen, :length], self.critic.returns[chosen, :length]
            parts["critic"] = CriticBatch(values, returns)
        return replace(self, inputs=inputs, **parts)

    def corrected(self, old_logprobs: Tensor, weights: Tensor) -> TokenBatch:
        """The same batch as if the trainer's policy had sampled it: its log-probabilities (B, T), tokens weighted."""
        return replace(self, old_logprobs=old_logprobs, weights=weights, corrected_from=self.sampler_logprobs)


def micro_batches(examples: Iterable[Example], *, token_budget: int) -> list[tuple[Example, ...]]:
    """Cut examples into batches of at most ``token_budget`` padded tokens (rows times the longest row).

    Examples of like length come together, longest first, so that little is padded. An example longer than the
    budget goes alone.
    """
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda item: -item.length):
        if batches and (len(batches[-1]) + 1) * batches[-1][0].length <= token_budget:
            batches[-1].append(example)
        else:
            batches.append([example])
    return [tuple(batch) for batch in batches]


def packed_micro_batches(examples: Iterable[Example], *, token_budget: int) -> list[tuple[Example, ...]]:
    """The same for a policy that packs: what examples cost is their tokens, a prompt that several have once.

    Examples with the same prompt come together. One that is longer than the budget goes alone.
    """
    batches: list[_Packed] = []
    for example in sorted(examples, key=lambda item: (-len(item.prompt[0]), item.prompt, -item.length)):
        if not batches or batches[-1].cost_with(example) > token_budget:
            batches.append(_Packed())
        batches[-1].add(example)
    return [tuple(batch.examples) for batch in batches]


def tokens_run(examples: Sequence[Example], *, packed: bool) -> int:
    """Tokens of one batch of these: packed, a prompt that several have once, or padded."""
    if not packed:
        return len(examples) * max((example.length for example in examples), default=0)
    batch = _Packed()
    for example in examples:
        batch.add(example)
    return batch.cost


class _Packed:
    """A batch that is being filled.

    Attributes:
        examples: in it.
        cost: its tokens.
    """

    def __init__(self) -> None:
        self.examples: list[Example] = []
        self.cost = 0
        self._prompts: set[tuple[tuple[int, ...], tuple[str, ...]]] = set()

    def cost_with(self, example: Example) -> int:
        """Tokens if this one came too; 0 for the first, which is taken whatever it costs."""
        return self.cost + self._added(example) if self.examples else 0

    def add(self, example: Example) -> None:
        """Take it."""
        self.cost += self._added(example)
        self.examples.append(example)
        self._prompts.add(example.prompt)

    def _added(self, example: Example) -> int:
        return example.length - (len(example.prompt[0]) if example.prompt in self._prompts else 0)


def collate(examples: Sequence[Example], policy: TrainablePolicy, *, device: torch.device) -> TokenBatch:
    """The batch of these examples, rows in order, tensors on ``device``."""
    length = max(example.length for example in examples)
    trajectories = [example.trajectory for example in examples]
    return TokenBatch(
        inputs=policy.forward_inputs(trajectories),
        loss_mask=_padded([example.mask for example in examples], length, torch.bool, device),
        old_logprobs=_padded([item.old_logprobs for item in trajectories], length, torch.float32, device),
        advantages=_padded([example.advantages for example in examples], length, torch.float32, device),
        critic=_critic_batch(examples, length, device),
    )


def _critic_batch(examples: Sequence[Example], length: int, device: torch.device) -> CriticBatch | None:
    targets = [example.critic for example in examples if example.critic is not None]
    if len(targets) < len(examples):
        return None
    return CriticBatch(
        old_values=_padded([target.old_values for target in targets], length, torch.float32, device),
        returns=_padded([target.returns for target in targets], length, torch.float32, device),
    )


def _padded(rows: Sequence[Any], length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(B, T) tensor of rows of unequal length, zeros on the right."""
    padded = torch.zeros((len(rows), length), dtype=dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.as_tensor(np.asarray(row), dtype=dtype)
    return padded.to(device)
