"""Attention for rows that begin alike: keys and values of a beginning are read once for all rows that share it.

A step of sampling is one query for each row, and takes as long as reading all keys and values. With G rows that go on
from one prompt, their queries are looked at together,

    scores = [Q_group K_beginning^T, q_row K_own^T],    output = softmax(scores) [V_beginning, V_own],

which is attention over the whole row, summed in another order (Juravsky et al. 2024, "Hydragen", arXiv 2402.05099;
Athiwaratkun et al. 2024, "Bifurcated attention", arXiv 2403.08845).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.attention import Layer
from agents.engines.kv_cache import Forks, KeysValues, RoomyCache


@dataclass(frozen=True, slots=True, eq=False)
class ForkedAttention:
    """Attends to what rows have begun with, and to their own keys and values.

    Attributes:
        cache: what the model has read.
        forks: of that cache.
    """

    cache: RoomyCache
    forks: Forks

    def __call__(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """``key`` and ``value`` are the rows' own."""
        begun: KeysValues = self.cache.layers[layer.module.layer_idx].begun
        if query.shape[2] > 1:  # a turn is read: a few times in an episode
            pairs = zip(begun, (key, value), strict=True)
            keys, values = (torch.cat([one[self.forks.which], own], dim=2) for one, own in pairs)
            return layer.attended(query, keys, values, mask)
        scale = layer.settings.get("scaling") or query.shape[-1] ** -0.5
        return _one_token(query * scale, (key, value), begun, self.forks, mask)


def _one_token(query: Tensor, own: KeysValues, begun: KeysValues, forks: Forks, mask: Tensor | None) -> Tensor:
    rows, heads, _, width = query.shape
    fewer, before = own[0].shape[1], begun[0].shape[2]
    queries = query.view(rows, fewer, heads // fewer, width)
    scores = torch.cat(
        [_apart(_together(queries, forks) @ begun[0].mT, forks), queries @ own[0].mT], dim=-1
    )  # (B, fewer heads, heads for each, all tokens)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    seen = _apart(_together(weights[..., :before], forks) @ begun[1], forks) + weights[..., before:] @ own[1]
    return seen.reshape(rows, 1, heads, width)


def _together(rows: Tensor, forks: Forks) -> Tensor:
    """(B, fewer heads, heads for each, n) -> (P, fewer heads, G * heads for each, n), by what rows have begun with."""
    slots = rows if forks.is_regular else rows[forks.slots]
    return slots.reshape(len(forks.beginnings), -1, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)


def _apart(grouped: Tensor, forks: Forks) -> Tensor:
    """The way back."""
    count, fewer, together, width = grouped.shape
    most = len(forks.slots) // count
    slots = grouped.reshape(count, fewer, most, together // most, width).transpose(1, 2).flatten(0, 1)
    return slots if forks.is_regular else slots[forks.places]
