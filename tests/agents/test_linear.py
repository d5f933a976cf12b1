"""Linear layers through oneDNN are torch's own, forward and backward."""

from __future__ import annotations

import copy
from unittest.mock import Mock

import pytest
import torch
from families import adapted_policy
from torch import Tensor, nn

from agents import linear
from agents.linear import OneDNNLinear, multiply_with_onednn, quick_to_read


def pair(bias: bool = True, width: int = 20) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(48, width, bias=bias)
    fast = nn.Sequential(copy.deepcopy(plain))
    multiply_with_onednn(fast)
    assert type(fast[0]) is OneDNNLinear
    return plain, fast[0]


def gradients(layer: nn.Linear, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    layer(x).square().sum().backward()
    found = [x.grad, layer.weight.grad, *([layer.bias.grad] if layer.bias is not None else [])]
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]


@pytest.mark.parametrize("width", [20, 90])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (8, 48), (3, 70, 48), (2, 3, 5, 48)])
def test_products_and_gradients_are_the_same(shape: tuple[int, ...], bias: bool, width: int) -> None:
    plain, fast = pair(bias, width)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients(fast, x), gradients(plain, x), strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


def test_views_empty_batches_and_other_formats_are_fine() -> None:
    plain, fast = pair()
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast(x[:, ::2]), plain(x[:, ::2]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast(x[:1, :48].expand(4, -1)), plain(x[:1, :48].expand(4, -1)), rtol=1e-5, atol=1e-5)
    assert fast(x[:0, :48]).shape == (0, 20) and fast(x[0, :48]).shape == (20,)
    torch.testing.assert_close(fast.bfloat16()(x[:, :48].bfloat16()), plain.bfloat16()(x[:, :48].bfloat16()))


def test_without_the_operation_layers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (AttributeError, TypeError, RuntimeError):
        monkeypatch.setattr(linear, "_product", Mock(side_effect=error))
        layers = nn.Sequential(nn.Linear(4, 4))
        multiply_with_onednn(layers)
        assert type(layers[0]) is nn.Linear


def test_elsewhere_layers_are_left_alone() -> None:
    layers = nn.Sequential(nn.Linear(4, 4, device="meta"))
    multiply_with_onednn(layers)
    assert type(layers[0]) is nn.Linear


def test_what_is_frozen_keeps_nothing_for_the_gradient() -> None:
    _, fast = pair()
    fast.requires_grad_(False)
    kept: list[int] = []
    x = torch.randn(8, 48, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.data_ptr()) or one, lambda one: one):
        fast(x)
    assert kept == [fast.weight.data_ptr()]


def test_another_layout_is_the_same_weight() -> None:
    plain, fast = pair()
    x = torch.randn(8, 48)
    fast.weight.data = quick_to_read(plain.weight.data)
    assert torch.equal(fast.weight, plain.weight) and not fast.weight.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_every_linear_layer_of_a_policy_is_one(family: str) -> None:
    policy = adapted_policy(family)
    linear = [module for module in policy.model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) > 30 and all(type(module) is OneDNNLinear for module in linear)
    twin = copy.deepcopy(policy.model)
    assert all(type(module) is OneDNNLinear for module in twin.modules() if isinstance(module, nn.Linear))
