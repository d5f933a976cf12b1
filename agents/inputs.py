"""Token rows and pictures to the model's forward keywords: the one place where positions and padding are made.

Sampler and trainer both build their inputs here, so both see the same positions (mRoPE included, for pictures that
arrive mid-conversation) and the same vision features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from agents.attention import takes_attend
from agents.packing import Packing
from agents.renderer import ChatRenderer
from agents.vision import ImagePreparer, VisionCache, is_vision
from mmsearch_env.images import Image


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence: its tokens, and the pictures whose slots stand in them, in order."""

    token_ids: tuple[int, ...]
    images: tuple[Image, ...]

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Equal for rows that say and show the same."""
        return self.token_ids, tuple(image.digest for image in self.images)


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """B rows as one row of N tokens, without padding; what rows begin with alike stands there once.

    Attributes:
        packed: forward keywords of the one row; the :class:`~agents.packing.Packing` among them says who sees whom.
        shape: B and T, the tokens of the longest row.
        sizes: (B,) tokens of each row's beginning.
        starts: (B,) where its beginning stands.
        rests: (B,) where its rest stands.
    """

    packed: Mapping[str, Any]
    shape: tuple[int, int]
    sizes: torch.Tensor
    starts: torch.Tensor
    rests: torch.Tensor

    def places(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Where these columns of these rows stand in the one row."""
        after = columns - self.sizes[rows]
        return torch.where(after < 0, self.starts[rows] + columns, self.rests[rows] + after)


@dataclass(frozen=True, slots=True)
class Parted:
    """A row in two parts: ``beginning`` may be that of other rows too."""

    beginning: Row
    rest: Row

    @property
    def tokens(self) -> int:
        """Of both parts."""
        return len(self.beginning.token_ids) + len(self.rest.token_ids)

    @property
    def whole(self) -> Row:
        """Both parts as one row."""
        return _joined((self.beginning, self.rest))


class InputBuilder:
    """Builds forward keywords for one model."""

    def __init__(self, model: Any, renderer: ChatRenderer, *, like: InputBuilder | None = None) -> None:
        """
        Args:
            model: a transformers image-text-to-text model (without adapter wrapper).
            renderer: of its processor.
            like: the builder of a model with the same tower, whose features serve this one too.
        """
        self._model = model
        self._renderer = renderer
        self.heeds_attend: bool = takes_attend(model)
        self._preparer: ImagePreparer = ImagePreparer(renderer) if like is None else like._preparer
        self.vision: VisionCache = VisionCache(model, self._preparer) if like is None else like.vision

    @property
    def tower_is_frozen(self) -> bool:
        """Whether no parameter of the vision tower is trained, so that its features can be kept."""
        return not any(p.requires_grad for name, p in self._model.named_parameters() if is_vision(name))

    @property
    def can_part(self) -> bool:
        """Whether rows may be run in parts: not where a part must know the whole, or where the tower is trained."""
        return self.tower_is_frozen and not self._renderer.uses_token_types

    @property
    def can_pack(self) -> bool:
        """Whether rows may be run as one."""
        return self.heeds_attend and self.can_part

    @property
    def position_rows(self) -> int:
        """How many positions a token has: 3 with mRoPE (time, height, width), else 1."""
        return 3 if hasattr(getattr(self._model, "model", self._model), "get_rope_index") else 1

    def build(self, rows: Sequence[Row], *, padding: Literal["left", "right"]) -> dict[str, Any]:
        """Forward keywords for ``rows``.

        Returns ``input_ids`` and ``attention_mask`` (B, T), ``position_ids`` ((3, B, T) with mRoPE, else (B, T)) and
        what carries the pictures: kept features when the tower is frozen, else pixels.
        """
        return self._built(rows, [self.positions(row) for row in rows], padding)

    def build_packed(self, rows: Sequence[Parted]) -> PackedInputs:
        """Forward keywords for all rows as one, each beginning once."""
        groups = _alike([row.beginning for row in rows])
        stretches = [self._stretches([rows[number] for number in group]) for group in groups]
        in_order = [stretch for group in stretches for stretch in group]
        packed, positions = _joined([row for row, _ in in_order]), torch.cat([places for _, places in in_order], dim=1)
        inputs = self._built([packed], [positions], "right")
        device = inputs["input_ids"].device
        # With a mask of four dimensions transformers makes none of its own.
        inputs["attention_mask"] = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
        sizes = [[len(row.token_ids) for row, _ in group] for group in stretches]
        inputs["attend"] = Packing.of(sizes, device)
        shape = len(rows), max(row.tokens for row in rows)
        return PackedInputs(inputs, shape, *(one.to(device) for one in _places(groups, sizes)))

    def _stretches(self, alike: Sequence[Parted]) -> list[tuple[Row, torch.Tensor]]:
        """The beginning that these rows have in common, then the rest of each; with the positions of their tokens."""
        beginning = alike[0].beginning
        after = slice(len(beginning.token_ids), None)
        rests = [(row.rest, self.positions(row.whole)[:, after]) for row in alike]
        return [(beginning, self.positions(beginning)), *rests]

    def build_rests(self, rows: Sequence[Parted]) -> dict[str, Any]:
        """Forward keywords for what follows the beginnings, which the model has read; left-padded."""
        places = [self.positions(row.whole)[:, len(row.beginning.token_ids) :] for row in rows]
        return self._built([row.rest for row in rows], places, "left")

    def _built(
        self, rows: Sequence[Row], places: Sequence[torch.Tensor], padding: Literal["left", "right"]
    ) -> dict[str, Any]:
        """Forward keywords for rows whose tokens stand at these positions."""
        device = next(self._model.parameters()).device
        length = max(len(row.token_ids) for row in rows)
        pad = self._renderer.tokenizer.pad_token_id
        ids = torch.full((len(rows), length), pad, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        positions = torch.zeros((places[0].shape[0], len(rows), length), dtype=torch.long)
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            size = len(row.token_ids)
            span = slice(length - size, length) if padding == "left" else slice(0, size)
            ids[number, span] = torch.tensor(row.token_ids)
            mask[number, span] = 1
            positions[:, number, span] = place
        images = [image for row in rows for image in row.images]
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "position_ids": (positions if positions.shape[0] > 1 else positions[0]).to(device),
        }
        if self.tower_is_frozen:
            inputs |= self.vision.features(images)
        else:
            inputs |= {key: value.to(device) for key, value in self._preparer.many(images).items()}
        if self._renderer.uses_token_types:
            inputs["token_type_ids"] = torch.isin(ids, torch.tensor(sorted(self._renderer.image_ids))).long().to(device)
        return inputs

    def positions(self, row: Row) -> torch.Tensor:
        """Positions of one row without padding: (3, T) for a model with mRoPE, (1, T) for others."""
        inner = getattr(self._model, "model", self._model)
        if self.position_rows == 1:
            return torch.arange(len(row.token_ids))[None]
        ids = torch.tensor([row.token_ids])
        if not row.images:
            return torch.arange(ids.shape[1]).expand(3, -1)
        types = torch.isin(ids, torch.tensor(sorted(self._renderer.image_ids))).int()
        grids = self._preparer.grids(row.images)
        places, _ = inner.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grids)
        placed: torch.Tensor = places[:, 0]
        return placed


def distinct(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """The rows that differ, in order of their first appearance, and which of them each row is."""
    groups = _alike(rows)
    which = {number: group for group, numbers in enumerate(groups) for number in numbers}
    return [rows[numbers[0]] for numbers in groups], [which[number] for number in range(len(rows))]


def _alike(rows: Sequence[Row]) -> list[list[int]]:
    """The numbers of those that say and show the same."""
    groups: dict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.key, []).append(number)
    return list(groups.values())


def _places(groups: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]) -> torch.Tensor:
    """(3, B) tokens of each row's beginning, where that stands in a packed row, and where its rest does.

    Args:
        groups: the rows of each.
        sizes: tokens of each one's beginning, and of the rests behind it.
    """
    found = torch.zeros((3, sum(map(len, groups))), dtype=torch.long)
    end = 0
    for rows, (beginning, *rests) in zip(groups, sizes, strict=True):
        start, end = end, end + beginning
        for row, size in zip(rows, rests, strict=True):
            found[:, row] = torch.tensor([beginning, start, end])
            end += size
    return found


def _joined(rows: Sequence[Row]) -> Row:
    return Row(
        tuple(token for row in rows for token in row.token_ids), tuple(image for row in rows for image in row.images)
    )
