"""The adapter added into the weights while tokens are sampled: a token then takes half as many small products.

Only float32 weights are merged: in shorter formats the sum would be rounded, and the sampler would no longer be the
trainer's model. The weights themselves are left alone; sums are kept beside them and take their place for a while, so
nothing drifts however often this is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from agents.linear import quick_to_read

_MOST_BYTES = 1 << 30
"""Sums larger than this are not kept: beside so large weights an adapter costs little."""


class MergedAdapter:
    """The sums of one model's weights and its adapter."""

    def __init__(self, model: nn.Module) -> None:
        """Args: model: with or without an adapter."""
        self._layers: list[Any] = [module for module in model.modules() if hasattr(module, "get_delta_weight")]
        weights = [layer.get_base_layer().weight for layer in self._layers]
        is_plain = all(isinstance(layer.get_base_layer(), nn.Linear) for layer in self._layers)
        is_exact = all(weight.dtype == torch.float32 for weight in weights)
        if not (is_plain and is_exact and sum(weight.nbytes for weight in weights) <= _MOST_BYTES):
            self._layers = []
        self._sums: list[Tensor] = []

    def forget(self) -> None:
        """The adapter has changed."""
        self._sums = []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the weights are the sums and the adapter is passed over."""
        layers = [layer for layer in self._layers if not layer.disable_adapters]
        if not layers:
            yield
            return
        if not self._sums:
            self._sums = [_sum(layer) for layer in layers]
        kept = [layer.get_base_layer().weight.data for layer in layers]
        try:
            for layer, total in zip(layers, self._sums, strict=True):
                layer.get_base_layer().weight.data = total
                layer.merged_adapters = list(layer.active_adapters)
            yield
        finally:
            for layer, weight in zip(layers, kept, strict=True):
                layer.get_base_layer().weight.data = weight
                layer.merged_adapters = []


@torch.no_grad()
def _sum(layer: Any) -> Tensor:
    total: Tensor = layer.get_base_layer().weight.detach().clone()
    for name in layer.active_adapters:
        total += layer.get_delta_weight(name)
    return quick_to_read(total)
