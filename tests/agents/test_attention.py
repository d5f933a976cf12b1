"""Attention is as ever, unless a call says who is to do it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, adapted_policy
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from agents import attention
from agents.attention import Layer, takes_attend
from agents.scorer import base_model

IDS = torch.arange(20, 44)[None]


def hidden(model: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.model(input_ids=IDS, position_ids=torch.arange(24)[None], **more).last_hidden_state
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_the_keyword_nothing_is_changed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base_model(adapted_policy(family).model)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    ours = hidden(model)
    attention.AttentionInterface.register("sdpa", sdpa_attention_forward)
    try:
        assert torch.equal(ours, hidden(model))
        assert not takes_attend(model)
    finally:
        attention.AttentionInterface.register("sdpa", attention._heeding(sdpa_attention_forward))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_with_the_keyword_every_layer_asks(family: str) -> None:
    model = base_model(adapted_policy(family).model)
    assert takes_attend(model)
    asked: list[int] = []

    def half(layer: Layer, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        asked.append(layer.module.layer_idx)
        return 0.5 * layer.attended(query, key, value, mask)

    assert not torch.allclose(hidden(model), hidden(model, attend=half))
    assert asked == list(range(model.config.get_text_config().num_hidden_layers))


def test_a_layer_that_does_not_ask_is_noticed() -> None:
    model = base_model(adapted_policy("qwen2_5_vl").model)
    layer = model.model.language_model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *given, attend=None, **named: forward(*given, **named)
    assert not takes_attend(model)


@pytest.mark.parametrize(
    "limit", [{"sliding_window": 4096}, {"index_topk": 48}, {"layer_types": ["full_attention", "sliding_attention"]}]
)
def test_layers_that_see_less_than_all_do_not_heed_it(limit: dict[str, Any]) -> None:
    model = base_model(adapted_policy("qwen2_5_vl").model)
    for name, value in limit.items():
        setattr(model.config.get_text_config(), name, value)
    assert not takes_attend(model)


def test_a_model_that_is_called_in_another_way_does_not_heed_it() -> None:
    model = base_model(adapted_policy("qwen2_5_vl").model)
    model.model = None
    assert not takes_attend(model)
