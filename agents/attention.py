"""Attention in another way for the length of one call of a model, whatever its family.

In each layer transformers calls a function that it looks up by name. Behind the names below stand functions that do
what they always did, unless the model was called with the keyword ``attend``: then that does it, with queries, keys and
values of the layer.

    model(input_ids=..., attend=packing)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_SEEING_LESS = ("sliding_window", "attention_chunk_size", "index_topk")
"""What configurations call it that a token sees only some of those before it."""

PlainAttention = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer of attention, as transformers calls it.

    Attributes:
        module: the layer; ``layer_idx`` is its number.
        plain: how its attention is done as a rule.
        settings: ``scaling``, ``dropout`` and what else ``plain`` takes.
    """

    module: Any
    plain: PlainAttention
    settings: Mapping[str, Any]

    @property
    def takes_lengths(self) -> bool:
        """Whether ``plain`` takes stretches of unequal length: ``cu_seq_lens_q`` and its kin."""
        return self.plain is flash_attention_forward

    def attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any) -> Tensor:
        """(B, tokens, heads, width), as a rule; without a mask a token sees itself and those before it.

        Args:
            query: (B, heads, tokens, width).
            key: (B, fewer heads, all tokens, width).
            value: the same.
            mask: (B, 1, tokens, all tokens), true or 0 where one is seen.
            more: further settings.
        """
        return self.plain(self.module, query, key, value, mask, **self.settings, **more)[0]


class Attend(Protocol):
    """Does a layer's attention."""

    def __call__(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Arguments and result are those of :meth:`Layer.attended`."""


def takes_attend(model: Any) -> bool:
    """Whether all layers of a model's language model heed ``attend``, and see all tokens before when left alone.

    It is run on one token to see; what a layer's mask or index would leave out of longer rows its configuration says.

    Args:
        model: a transformers model with a language model in it.
    """
    text = model.config.get_text_config()
    if any(getattr(text, name, None) for name in _SEEING_LESS) or set(_kinds_of_layers(text)) - {"full_attention"}:
        return False
    token = torch.zeros((1, 1), dtype=torch.long, device=next(model.parameters()).device)
    seen = _Seen()
    try:
        with torch.no_grad():
            model.model(input_ids=token, position_ids=token, use_cache=False, attend=seen)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # a family that is called in another way
        return False
    return seen.layers == set(range(text.num_hidden_layers))


def _kinds_of_layers(text: Any) -> Sequence[str]:
    return getattr(text, "layer_types", None) or ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """Plain attention that notes who called."""

    layers: set[int] = field(default_factory=set)

    def __call__(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.layers.add(layer.module.layer_idx)
        return layer.attended(query, key, value, mask)


def _heeding(plain: PlainAttention) -> PlainAttention:
    """An implementation of attention that heeds ``attend``."""

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attend: Attend | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if attend is None:
            return plain(module, query, key, value, attention_mask, **settings)
        return attend(Layer(module, plain, settings), query, key, value, attention_mask), None

    return attention


AttentionInterface.register("sdpa", _heeding(sdpa_attention_forward))
AttentionInterface.register("flash_attention_2", _heeding(flash_attention_forward))
