"""How trajectories are laid out for the scorer: whole, or with the prompt of a group once for all of it.

The fast layouts are compared with the plain one on the first real micro-batch, and given up, loudly, where they differ.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from agents.inputs import InputBuilder, PackedInputs, Parted, Row, SharedInputs
from agents.scorer import TokenScorer
from agents.trajectory import Trajectory
from mmsearch_env.errors import PolicyError, PolicyWarning

_ALLOWED_GAP, _ALLOWED_HALF_GAP = 1e-4, 0.1
"""Differences of log-probabilities that come from the order of additions, in float32 and in shorter formats."""
_COMPARED_ROWS = 4


class RowLayout:
    """Lays out trajectories for one model."""

    def __init__(self, builder: InputBuilder, scorer: TokenScorer) -> None:
        """Args: builder: makes the model's keywords; scorer: is given them."""
        self._builder = builder
        self._scorer = scorer
        self._is_exact: bool | None = None  # not compared yet
        self.runs_once = False
        """Whether a pass calls the model once only, however rows are laid out."""

    def forward_inputs(self, trajectories: Sequence[Trajectory]) -> Mapping[str, Any] | SharedInputs | PackedInputs:
        """What the scorer needs for whole trajectories; where some have a prompt in common, that only once."""
        rows = [parted(trajectory) for trajectory in trajectories]
        alike = [row for row in rows if row.beginning.key == rows[0].beginning.key]
        is_shared = len({row.beginning.key for row in rows}) < len(rows)
        if is_shared and self._builder.can_share and self._is_exact is None and len(alike) > 1:
            self._is_exact = self._compare(alike[:_COMPARED_ROWS])
        if is_shared and self.shares_prompts:
            return self._together(rows)
        return self.whole_inputs(trajectories)

    def whole_inputs(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """The same with every trajectory whole, right-padded."""
        return self._builder.build([Row(t.token_ids, t.images) for t in trajectories], padding="right")

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt that trajectories have in common is run once for all of them."""
        return self._builder.can_share and self._is_exact is not False

    def forget_comparison(self) -> None:
        """The model works in another way from now on."""
        self._is_exact = None

    def _together(self, rows: Sequence[Parted]) -> SharedInputs | PackedInputs:
        if self.runs_once or self._builder.is_checkpointed:
            return self._builder.build_packed(rows)
        return self._builder.build_shared(rows)

    @torch.no_grad()
    def _compare(self, rows: Sequence[Parted]) -> bool:
        """Whether rows score the same with their common beginning run once. Warns if not."""
        plain = self._builder.build([row.whole for row in rows], padding="right")
        mask = torch.zeros_like(plain["input_ids"], dtype=torch.bool)
        for number, row in enumerate(rows):
            mask[number, len(row.beginning.token_ids) : len(row.whole.token_ids)] = True
        was_training = self._scorer.training
        self._scorer.train()  # as it will be called
        try:
            fast, slow = (self._scorer(inputs, mask).logprobs for inputs in (self._together(rows), plain))
            # A token that is never sampled has no log-probability.
            gap = float((fast - slow).nan_to_num(0.0).abs().max())
        except PolicyError:
            gap = math.inf
        finally:
            self._scorer.train(was_training)
        allowed = _ALLOWED_GAP if next(self._scorer.model.parameters()).dtype == torch.float32 else _ALLOWED_HALF_GAP
        if gap > allowed:
            warnings.warn(
                f"expected the same log-probabilities with a prompt run once for its group, got a gap of {gap:.2g} "
                f"(allowed {allowed:g}); every episode is run whole from now on, which is slower",
                PolicyWarning,
                stacklevel=3,
            )
        return gap <= allowed


def parted(trajectory: Trajectory) -> Parted:
    """Before the first token that was said, and from there on."""
    size, pictures = len(trajectory.turns[0].prompt_ids), len(trajectory.turns[0].images)
    ids, images = trajectory.token_ids, trajectory.images
    return Parted(Row(ids[:size], images[:pictures]), Row(ids[size:], images[pictures:]))
