"""Token rows and pictures to the model's forward keywords: the one place where positions and padding are made.

Sampler and trainer both build their inputs here, so both see the same positions (mRoPE included, for pictures that
arrive mid-conversation) and the same vision features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from agents.renderer import ChatRenderer
from agents.vision import ImagePreparer, VisionCache, is_vision
from mmsearch_env.images import Image

_PASS_COST = 256
"""Tokens that could be run in the time that one more pass over few tokens takes."""


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
class Rests:
    """What follows the beginnings of rows, for rows of like length.

    Attributes:
        rows: (b,) their numbers.
        inputs: forward keywords, right-padded to S tokens; ``attention_mask`` (b, P + S) spans beginning and rest.
    """

    rows: torch.Tensor
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SharedInputs:
    """Rows that begin alike, with each beginning once: P + B·S tokens in place of B·(P + S).

    U beginnings of at most P tokens, B rows.

    Attributes:
        beginnings: forward keywords of the beginnings, left-padded, so that what follows one stands beside its end.
        rests: what follows, rows of like length together, so that next to nothing is padded.
        which: (B,) the beginning of each row.
        sizes: (B,) tokens of each row's beginning.
    """

    beginnings: Mapping[str, Any]
    rests: tuple[Rests, ...]
    which: torch.Tensor
    sizes: torch.Tensor


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """The same for a model that keeps no keys and values while it is trained: each group is one long row.

    A row is a beginning and all rests of its group, one behind the other; a token sees its beginning and its own rest.

    Attributes:
        packs: forward keywords of the long rows, right-padded; ``attention_mask`` is (U, 1, T, T), True where seen.
        which: (B,) the long row of each row.
        starts: (B,) where its rest begins in that.
        sizes: (B,) tokens of its beginning.
    """

    packs: Mapping[str, Any]
    which: torch.Tensor
    starts: torch.Tensor
    sizes: torch.Tensor


@dataclass(frozen=True, slots=True)
class Parted:
    """A row in two parts: ``beginning`` may be that of other rows too."""

    beginning: Row
    rest: Row

    @property
    def whole(self) -> Row:
        """Both parts as one row."""
        return Row((*self.beginning.token_ids, *self.rest.token_ids), (*self.beginning.images, *self.rest.images))


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
        self._preparer: ImagePreparer = ImagePreparer(renderer) if like is None else like._preparer
        self.vision: VisionCache = VisionCache(model, self._preparer) if like is None else like.vision

    @property
    def tower_is_frozen(self) -> bool:
        """Whether no parameter of the vision tower is trained, so that its features can be kept."""
        return not any(p.requires_grad for name, p in self._model.named_parameters() if is_vision(name))

    @property
    def can_share(self) -> bool:
        """Whether rows may be run in parts: not where a part must know the whole, or where the tower is trained."""
        return self.tower_is_frozen and not self._renderer.uses_token_types

    @property
    def is_checkpointed(self) -> bool:
        """Whether activations are made anew for the gradient; keys and values are not kept then."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self._model.modules())

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

    def build_shared(self, rows: Sequence[Parted]) -> SharedInputs:
        """Forward keywords for rows of which some begin alike. The tower must be frozen."""
        beginnings, which = distinct([row.beginning for row in rows])
        first = self.build(beginnings, padding="left")
        device = first["input_ids"].device
        chosen = torch.tensor(which, device=device)
        sizes = torch.tensor([len(row.beginning.token_ids) for row in rows], device=device)
        rests = []
        for numbers in of_like_length([len(row.rest.token_ids) for row in rows]):
            inputs = self.build_rests([rows[number] for number in numbers], padding="right")
            together = torch.tensor(numbers, device=device)
            begun = first["attention_mask"][chosen[together]]
            mask = torch.cat([begun, inputs["attention_mask"]], dim=1)
            rests.append(Rests(together, {**inputs, "attention_mask": mask}))
        return SharedInputs(first, tuple(rests), chosen, sizes)

    def build_packed(self, rows: Sequence[Parted]) -> PackedInputs:
        """The same rows, each group as one long row. The tower must be frozen."""
        beginnings, which = distinct([row.beginning for row in rows])
        members = [[number for number, group in enumerate(which) if group == pack] for pack in range(len(beginnings))]
        starts = [0] * len(rows)
        packs, places, segments = [], [], []
        for beginning, group in zip(beginnings, members, strict=True):
            ids, images = list(beginning.token_ids), list(beginning.images)
            where, segment = [self.positions(beginning)], [0] * len(ids)
            for order, number in enumerate(group, start=1):
                rest, starts[number] = rows[number].rest, len(ids)
                ids += rest.token_ids
                images += rest.images
                where.append(self.positions(rows[number].whole)[:, len(beginning.token_ids) :])
                segment += [order] * len(rest.token_ids)
            packs.append(Row(tuple(ids), tuple(images)))
            places.append(torch.cat(where, dim=1))
            segments.append(segment)
        inputs = self._built(packs, places, "right")
        device = inputs["input_ids"].device
        inputs["attention_mask"] = _seen(segments, inputs["input_ids"].shape[1]).to(device)
        sizes = torch.tensor([len(row.beginning.token_ids) for row in rows], device=device)
        return PackedInputs(inputs, torch.tensor(which, device=device), torch.tensor(starts, device=device), sizes)

    def build_rests(self, rows: Sequence[Parted], *, padding: Literal["left", "right"]) -> dict[str, Any]:
        """Forward keywords for what follows the beginnings, which the model has read."""
        places = [self.positions(row.whole)[:, len(row.beginning.token_ids) :] for row in rows]
        return self._built([row.rest for row in rows], places, padding)

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
    numbers: dict[tuple[tuple[int, ...], tuple[str, ...]], int] = {}
    which = [numbers.setdefault(row.key, len(numbers)) for row in rows]
    found = dict(zip(which, rows, strict=True))
    return [found[number] for number in range(len(numbers))], which


def of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """The numbers of rows in parts that are padded each to its longest, the shortest first, such that all cost least.

    A part costs as many tokens as are run, padding among them, and :data:`_PASS_COST` more.
    """
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    least, starts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        cost, start = min((least[start] + (end - start) * longest + _PASS_COST, start) for start in range(end))
        least.append(cost)
        starts.append(start)
    parts: list[list[int]] = []
    end = len(order)
    while end:
        parts.insert(0, order[starts[end] : end])
        end = starts[end]
    return parts


def _seen(segments: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """(U, 1, T, T) which token sees which: those before it that are of its own segment or of segment 0, and itself."""
    padded = torch.full((len(segments), length), -1)
    for number, segment in enumerate(segments):
        padded[number, : len(segment)] = torch.tensor(segment)
    same = padded[:, :, None] == padded[:, None, :]
    seen = (same | (padded[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
    return seen[:, None]
