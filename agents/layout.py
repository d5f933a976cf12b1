"""How trajectories are laid out for the scorer: packed into one row, or each whole and padded.

The fast layout is compared with the plain one on the first real micro-batch, and given up, loudly, where they differ.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from agents.inputs import InputBuilder, PackedInputs, Parted, Row
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
        self._most_alike = 0  # of the rows compared so far, so many began alike
        self._is_exact = True
        self._is_told = False

    def forward_inputs(self, trajectories: Sequence[Trajectory]) -> Mapping[str, Any] | PackedInputs:
        """What the scorer needs for whole trajectories: all in one row, what some have in common only once."""
        if not self.packs:
            self._tell_once()
            return self.whole_inputs(trajectories)
        rows = [parted(trajectory) for trajectory in trajectories]
        common, alike = Counter(row.beginning.key for row in rows).most_common(1)[0]
        if min(alike, 2) > self._most_alike:
            self._most_alike = alike
            theirs = [row for row in rows if row.beginning.key == common]
            others = [row for row in rows if row.beginning.key != common]
            self._is_exact = self._compare([*theirs[: _COMPARED_ROWS - 1], *others[:1]])
        return self._builder.build_packed(rows) if self._is_exact else self.whole_inputs(trajectories)

    def whole_inputs(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """The same with every trajectory by itself, right-padded."""
        return self._builder.build([Row(t.token_ids, t.images) for t in trajectories], padding="right")

    @property
    def packs(self) -> bool:
        """Whether trajectories are packed, a prompt that several have in common once."""
        return self._builder.can_pack and self._is_exact

    def forget_comparison(self) -> None:
        """The model works in another way from now on."""
        self._most_alike, self._is_exact = 0, True

    def _tell_once(self) -> None:
        if not self._builder.heeds_attend and not self._is_told:
            self._is_told = True
            warnings.warn(
                "expected a model whose attention can be told which tokens of one row belong together, got one that "
                "attends in its own way; every episode is run by itself, with prompt and padding, which is slower",
                PolicyWarning,
                stacklevel=3,
            )

    @torch.no_grad()
    def _compare(self, rows: Sequence[Parted]) -> bool:
        """Whether rows score the same packed as each by itself. Warns if not."""
        plain = self._builder.build([row.whole for row in rows], padding="right")
        mask = torch.zeros_like(plain["input_ids"], dtype=torch.bool)
        for number, row in enumerate(rows):
            mask[number, len(row.beginning.token_ids) : len(row.whole.token_ids)] = True
        was_training = self._scorer.training
        self._scorer.train()  # as it will be called
        try:
            fast, slow = (self._scorer(inputs, mask).logprobs for inputs in (self._builder.build_packed(rows), plain))
            # A token that is never sampled has no log-probability.
            gap = float((fast - slow).nan_to_num(0.0).abs().max())
        except PolicyError:
            gap = math.inf
        finally:
            self._scorer.train(was_training)
        allowed = _ALLOWED_GAP if next(self._scorer.model.parameters()).dtype == torch.float32 else _ALLOWED_HALF_GAP
        if gap > allowed:
            warnings.warn(
                f"expected the same log-probabilities with all episodes in one row, got a gap of {gap:.2g} (allowed "
                f"{allowed:g}); every episode is run by itself from now on, prompt and padding too: slower",
                PolicyWarning,
                stacklevel=3,
            )
        return gap <= allowed


def parted(trajectory: Trajectory) -> Parted:
    """Before the first token that was said, and from there on."""
    size, pictures = len(trajectory.turns[0].prompt_ids), len(trajectory.turns[0].images)
    ids, images = trajectory.token_ids, trajectory.images
    return Parted(Row(ids[:size], images[:pictures]), Row(ids[size:], images[pictures:]))
