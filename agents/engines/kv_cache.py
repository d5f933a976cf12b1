"""Keys and values: with room for more tokens, and with what rows begin with alike held once.

A token is written into its place, where transformers would copy all of them. Rows that were read together and are then
gone on with apart are *forked*: what they have read stays one for all of them, only what each reads from then on is its
own (:mod:`agents.engines.forked_attention` looks at both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Tokens for which there is room beyond those that are there, and a quarter of these."""

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """What rows have begun with alike.

    Attributes:
        layers: keys and values (heads, tokens, width) of each layer.
        rows: how many rows began with it.
    """

    layers: tuple[KeysValues, ...]
    rows: int

    @property
    def tokens(self) -> int:
        """How many."""
        return self.layers[0][0].shape[1]

    @property
    def bytes(self) -> int:
        """Of memory, all told."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)


@dataclass(frozen=True, slots=True, eq=False)
class Forks:
    """Which row has begun with what.

    Attributes:
        beginnings: P of them.
        which: (B,) the number of each row's.
        slots: (P * G,) rows in the order of their beginnings, G for each, row 0 where it has fewer.
        places: (B,) where each row stands in ``slots``.
        is_regular: whether both are 0, 1, 2, ..., so that nothing has to be moved.
    """

    beginnings: tuple[Beginning, ...]
    which: Tensor
    slots: Tensor
    places: Tensor
    is_regular: bool

    @classmethod
    def of(cls, beginnings: Sequence[Beginning], which: Sequence[int], device: torch.device) -> Forks:
        """Args: which: of each row the number of its beginning."""
        rows = [[row for row, one in enumerate(which) if one == number] for number in range(len(beginnings))]
        most = max(map(len, rows))
        slots = [row for those in rows for row in [*those, *[0] * (most - len(those))]]
        places = [one * most + rows[one].index(row) for row, one in enumerate(which)]
        return cls(
            beginnings=tuple(beginnings),
            which=torch.tensor(list(which), device=device),
            slots=torch.tensor(slots, device=device),
            places=torch.tensor(places, device=device),
            is_regular=slots == list(range(len(which))),
        )


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not annotated
    """One layer's keys and values (B, heads, tokens, width), at the front of larger tensors. Only without gradients.

    Attributes:
        begun: (P, heads, tokens, width) what rows have begun with, where they are forked.
    """

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def __init__(self) -> None:
        super().__init__()
        self._whole: KeysValues | None = None
        self.begun: KeysValues | None = None

    def get_seq_length(self) -> int:
        """Tokens of a row, with those it has begun with."""
        return self.own_length + (0 if self.begun is None else self.begun[0].shape[2])

    @property
    def own_length(self) -> int:
        """Tokens that are each row's own."""
        return self.keys.shape[2] if self.is_initialized else 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        """Add the keys and values of further tokens; all that are the rows' own come back."""
        size = self.own_length
        end = size + key_states.shape[2]
        if not self.is_initialized:
            self.replace(key_states[:, :, :0], value_states[:, :, :0])
        if self._whole is None or end > self._whole[0].shape[2]:
            self._whole = _roomier(self.keys, end), _roomier(self.values, end)
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, size:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        size = self.own_length
        keys, values = self._whole or (self.keys, self.values)
        whole = keys[indices], values[indices]
        self.replace(*(tensor[:, :, :size] for tensor in whole))
        self._whole = whole

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Other keys and values in place of all that are the rows' own."""
        self.keys, self.values, self._whole = keys, values, None
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True


class RoomyCache(DynamicCache):  # type: ignore[misc]  # transformers is not annotated
    """Keys and values of a batch of rows in all layers.

    Attributes:
        forks: which row has begun with what, where what rows have begun with lies apart.
    """

    layers: list[Any]

    def __init__(self, config: Any) -> None:
        """Args: config: of the text model; of its own layers, those that forget are left alone."""
        super().__init__(config=config)
        self.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]
        self.forks: Forks | None = None

    @property
    def remembers_all(self) -> bool:
        """Whether no layer forgets early tokens, as a sliding window does."""
        return all(isinstance(layer, RoomyLayer) for layer in self.layers)

    @property
    def begun_length(self) -> int:
        """Tokens that rows have begun with, the padding of shorter beginnings among them."""
        return 0 if self.forks is None else int(self.layers[0].begun[0].shape[2])

    def beginning(self, row: int) -> Beginning | None:
        """What a row has begun with, if that lies apart."""
        if self.forks is None:
            return None
        found = self.forks.beginnings[int(self.forks.which[row])]
        return found if found.tokens else None

    def fork(self, sizes: Sequence[int], which: Sequence[int]) -> None:
        """Go on with several rows for each that was read.

        Args:
            sizes: tokens of each row that was read; the rest of it, on the left, is padding.
            which: of each row to go on with, the number of the one that it begins with.
        """
        read = [(layer.keys, layer.values) for layer in self.layers]
        beginnings = [
            Beginning(tuple((keys[one][:, -size:], values[one][:, -size:]) for keys, values in read), which.count(one))
            for one, size in enumerate(sizes)
        ]
        for layer, (keys, values) in zip(self.layers, read, strict=True):
            layer.replace(*(whole[:1, :, :0].expand(len(which), -1, -1, -1) for whole in (keys, values)))
        self.begin(beginnings, which)

    def begin(self, beginnings: Sequence[Beginning], which: Sequence[int], *, at_least: int = 0) -> None:
        """Say what rows have begun with; ``at_least`` so many tokens, the padding among them."""
        length = max(at_least, *(one.tokens for one in beginnings))
        for number, layer in enumerate(self.layers):
            pairs = [one.layers[number] for one in beginnings]
            layer.begun = tuple(stacked([pair[side] for pair in pairs], length) for side in (0, 1))
        self.forks = Forks.of(beginnings, which, beginnings[0].layers[0][0].device)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order, and of what rows have begun with that which they need."""
        super().batch_select_indices(indices)
        if self.forks is None:
            return
        chosen = self.forks.which[indices].tolist()
        used = sorted(set(chosen))
        if len(used) < len(self.forks.beginnings):
            picked = torch.tensor(used, device=indices.device)
            for layer in self.layers:
                layer.begun = tuple(whole[picked] for whole in layer.begun)
        beginnings = [self.forks.beginnings[one] for one in used]
        self.forks = Forks.of(beginnings, [used.index(one) for one in chosen], indices.device)

    def append(self, other: RoomyCache) -> None:
        """Add the rows of another cache, which is used up."""
        is_forked = self.forks is not None or other.forks is not None
        begun_length = max(self.begun_length, other.begun_length)
        rows = [cache.layers[0].keys.shape[0] for cache in (self, other)]
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            pairs = (mine.keys, theirs.keys), (mine.values, theirs.values)
            length = max(mine.keys.shape[2], theirs.keys.shape[2])
            mine.replace(*(torch.cat([padded(tensor, length) for tensor in both]) for both in pairs))
        if is_forked:
            one, two = (cache._begun_with(count) for cache, count in zip((self, other), rows, strict=True))
            which = [*one[1], *(number + len(one[0]) for number in two[1])]
            self.begin([*one[0], *two[0]], which, at_least=begun_length)

    def _begun_with(self, rows: int) -> tuple[tuple[Beginning, ...], list[int]]:
        """What rows have begun with, and the number of each one's; with no token where they are not forked."""
        if self.forks is not None:
            return self.forks.beginnings, self.forks.which.tolist()
        empty = tuple((layer.keys[0][:, :0], layer.values[0][:, :0]) for layer in self.layers)
        return (Beginning(empty, rows),), [0] * rows


def padded(tensor: Tensor, length: int) -> Tensor:
    """(..., tokens, width) with zeros on the left, so that there are ``length`` tokens."""
    missing = length - tensor.shape[-2]
    return pad(tensor, (0, 0, missing, 0)) if missing else tensor


def stacked(tensors: Sequence[Tensor], length: int) -> Tensor:
    """(B, heads, length, width): each padded with zeros on the left; one alone is not copied."""
    whole = [padded(tensor, length) for tensor in tensors]
    return whole[0][None] if len(whole) == 1 else torch.stack(whole)


def _roomier(kept: Tensor, end: int) -> Tensor:
    rows, heads, size, width = kept.shape
    whole = kept.new_empty(rows, heads, end + end // 4 + _ROOM, width)
    whole[:, :, :size] = kept
    return whole
