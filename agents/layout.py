"""How trajectories are laid out for the scorer: packed into one row, or each by itself and padded.

The fast layout is compared with the plain one on the first real trajectories, and again when there are much longer ones
than any before; it is given up, loudly, where they differ.
"""

from __future__ import annotations

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
_MUCH_LONGER = 2
"""So many times as long as any that was compared."""


class RowLayout:
    """Lays out trajectories for one model."""

    def __init__(self, builder: InputBuilder, scorer: TokenScorer) -> None:
        """Args: builder: makes the model's keywords; scorer: is given them."""
        self._builder = builder
        self._scorer = scorer
        self._is_told = False
        self.forget_comparison()

    def forget_comparison(self) -> None:
        """The model works in another way from now on."""
        self._is_exact = True
        self._alike = self._longest = 0  # among the rows compared: how many began alike, 2 for more, and tokens

    def forward_inputs(self, trajectories: Sequence[Trajectory]) -> Mapping[str, Any] | PackedInputs:
        """What the scorer needs for whole trajectories: all in one row, what some have in common only once."""
        rows = [parted(trajectory) for trajectory in trajectories]
        return self._builder.build_packed(rows) if self._packs(rows) else self.whole_inputs(trajectories)

    def whole_inputs(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """The same with every trajectory by itself, right-padded."""
        return self._builder.build([Row(t.token_ids, t.images) for t in trajectories], padding="right")

    def packs(self, trajectories: Sequence[Trajectory]) -> bool:
        """Whether these are packed, a prompt that several have in common once. Compares both ways where that is due."""
        return self._packs([parted(trajectory) for trajectory in trajectories])

    def _packs(self, rows: Sequence[Parted]) -> bool:
        if not self._builder.can_pack:
            self._tell_once()
            return False
        if rows and self._is_exact:
            self._compare_if_due(rows)
        return self._is_exact

    def _tell_once(self) -> None:
        if not self._builder.heeds_attend and not self._is_told:
            self._is_told = True
            _warn(
                "expected a model whose attention can be told which tokens of one row belong together, got one that "
                "attends in its own way; every episode is run by itself, with prompt and padding, which is slower"
            )

    def _compare_if_due(self, rows: Sequence[Parted]) -> None:
        begun = [row.beginning.key for row in rows]
        common, alike = Counter(begun).most_common(1)[0]
        longest = max(range(len(rows)), key=lambda number: rows[number].tokens)
        if min(alike, 2) <= self._alike and rows[longest].tokens <= _MUCH_LONGER * self._longest:
            return
        self._alike, self._longest = max(self._alike, min(alike, 2)), max(self._longest, rows[longest].tokens)
        theirs = [number for number, key in enumerate(begun) if key == common]
        others = [number for number, key in enumerate(begun) if key != common]
        self._is_exact = self._compare([rows[number] for number in sorted({longest, *theirs[:2], *others[:1]})])

    @torch.no_grad()
    def _compare(self, rows: Sequence[Parted]) -> bool:
        """Whether rows score the same packed as each by itself. Warns if not."""
        plain = self._builder.build([row.whole for row in rows], padding="right")
        mask = torch.zeros_like(plain["input_ids"], dtype=torch.bool)
        for number, row in enumerate(rows):
            mask[number, len(row.beginning.token_ids) : row.tokens] = True
        allowed = _ALLOWED_GAP if next(self._scorer.model.parameters()).dtype == torch.float32 else _ALLOWED_HALF_GAP
        was_training = self._scorer.training
        self._scorer.train()  # as it will be called
        try:
            slow = self._scorer(plain, mask).logprobs
            fast = self._scorer(self._builder.build_packed(rows), mask).logprobs
            # A token that is never sampled has no log-probability.
            gap = float((fast - slow).nan_to_num(0.0).abs().max())
            found = "" if gap <= allowed else f"a gap of {gap:.2g} (allowed {allowed:g})"
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, PolicyError, RuntimeError, TypeError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
        finally:
            self._scorer.train(was_training)
        if found:
            _warn(
                f"expected the same log-probabilities with all episodes in one row, got {found}; every episode is run "
                "by itself from now on, with prompt and padding, which is slower"
            )
        return not found


def _warn(text: str) -> None:
    warnings.warn(text, PolicyWarning, stacklevel=2)


def parted(trajectory: Trajectory) -> Parted:
    """Before the first token that was said, and from there on."""
    size, pictures = len(trajectory.turns[0].prompt_ids), len(trajectory.turns[0].images)
    ids, images = trajectory.token_ids, trajectory.images
    return Parted(Row(ids[:size], images[:pictures]), Row(ids[size:], images[pictures:]))
