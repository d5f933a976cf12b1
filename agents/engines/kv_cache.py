"""Keys and values with room for more: a token is written into its place, where transformers would copy all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Tokens for which there is room beyond those that are there, and a quarter of these."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not annotated
    """One layer's keys and values (B, heads, tokens, width), at the front of larger tensors. Only without gradients."""

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def __init__(self) -> None:
        super().__init__()
        self._whole: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of further tokens; all of them come back."""
        size: int = self.get_seq_length()
        end = size + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        if self._whole is None or end > self._whole[0].shape[-2]:
            kept = (self.keys, self.values) if size else (key_states[:, :, :0], value_states[:, :, :0])
            self._whole = (_roomier(kept[0], end), _roomier(kept[1], end))
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, size:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        if self._whole is not None:
            size = self.get_seq_length()
            keys, values = self._whole
            self._whole = (keys[indices], values[indices])
            self.keys, self.values = (whole[:, :, :size] for whole in self._whole)

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Other keys and values in place of all that are there."""
        self._whole, self.is_initialized = None, False
        self.update(keys, values)


def _roomier(kept: Tensor, end: int) -> Tensor:
    rows, heads, size, width = kept.shape
    whole = kept.new_empty(rows, heads, end + end // 4 + _ROOM, width)
    whole[:, :, :size] = kept
    return whole


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache for a model with this text configuration; of its own layers, those that forget are left alone."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def remembers_all(cache: DynamicCache) -> bool:
    """Whether no layer forgets early tokens, as a sliding window does."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)
