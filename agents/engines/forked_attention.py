"""Attention for rows that begin alike: keys and values of a beginning are read once for all rows that share it.

A step of sampling is one query for each row, and takes as long as reading all keys and values. With G rows that go on
from one prompt, their queries are looked at together,

    scores = [Q_group K_beginning^T, q_row K_own^T],    output = softmax(scores) [V_beginning, V_own],

which is attention over the whole row, summed in another order (Juravsky et al. 2024, "Hydragen", arXiv 2402.05099;
Athiwaratkun et al. 2024, "Bifurcated attention", arXiv 2403.08845).

It is registered with transformers as an implementation of attention beside ``sdpa``, which it is itself whenever no
forked cache is in use, as in training.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agents.engines.kv_cache import Forks, KeysValues, RoomyCache

_NAME = "sdpa_forked"
_in_use = threading.local()


def can_fork(model: Any) -> bool:
    """Have a model attend to forked caches where it can; only in float32, where another order of sums is of no weight.

    Args:
        model: a transformers model with a text model in it.
    """
    text = model.config.get_text_config()
    if text._attn_implementation == _NAME:
        return True
    if text._attn_implementation != "sdpa" or any(one.dtype != torch.float32 for one in model.parameters()):
        return False
    model.set_attn_implementation({"text_config": _NAME})
    attending = [module.config for module in model.modules() if hasattr(module, "layer_idx") and _has_config(module)]
    if attending and all(config._attn_implementation == _NAME for config in attending):
        return True
    model.set_attn_implementation({"text_config": "sdpa"})
    return False


def _has_config(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")


@contextmanager
def attending(cache: RoomyCache) -> Iterator[None]:
    """Inside, this thread's model attends to this cache."""
    _in_use.cache = cache
    try:
        yield
    finally:
        _in_use.cache = None


def forked_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """What transformers calls in a layer of attention.

    Args:
        module: the layer.
        query: (B, heads, tokens, width).
        key: (B, fewer heads, tokens, width) the rows' own.
        value: the same.
        attention_mask: (B, 1, query tokens, all tokens), true where one is seen; None for all.
        settings: ``scaling`` and what else ``sdpa`` takes.

    Returns:
        (B, tokens, heads, width), and no weights.
    """
    cache: RoomyCache | None = getattr(_in_use, "cache", None)
    forks = None if cache is None else cache.forks
    if cache is None or forks is None:
        return _plain(module, query, key, value, attention_mask, settings)
    begun: KeysValues = cache.layers[module.layer_idx].begun
    if query.shape[2] > 1:  # a turn is read: a few times in an episode
        keys, values = (torch.cat([one[forks.which], own], dim=2) for one, own in zip(begun, (key, value), strict=True))
        return _plain(module, query, keys, values, attention_mask, settings)
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    return _one_token(query * scale, (key, value), begun, forks, attention_mask), None


def _plain(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, settings: dict[str, Any]
) -> tuple[Tensor, None]:
    seen: Tensor = sdpa_attention_forward(module, query, key, value, mask, **settings)[0]
    return seen, None


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


AttentionInterface.register(_NAME, forked_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
