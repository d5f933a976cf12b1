from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor

from training.losses import Surrogate, clipped_surrogate, importance_weights, kl_k3, masked_sum


def log(values: list[float]) -> torch.Tensor:
    return tensor([values]).log()


def everywhere(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **bounds: float) -> Surrogate:
    """Of tokens that were all sampled."""
    return clipped_surrogate(
        logprobs, old_logprobs, advantages, torch.ones_like(advantages, dtype=torch.bool), **bounds
    )


def test_surrogate_by_hand() -> None:
    # ratios 0.5, 1, 1.1, 2 against bounds 0.8 and 1.3
    surrogate = everywhere(
        log([0.1, 0.2, 0.22, 0.8]),
        log([0.2, 0.2, 0.2, 0.4]),
        tensor([[1.0, 1.0, -2.0, 1.0]]),
        clip_low=0.2,
        clip_high=0.3,
    )
    # the smaller of 0.5 and 0.8, 1, the smaller of -2.2 and -2.2, the smaller of 2 and 1.3; signs turned
    torch.testing.assert_close(surrogate.losses, tensor([[-0.5, -1.0, 2.2, -1.3]]))
    assert surrogate.clipped.tolist() == [[False, False, False, True]]


def test_a_bad_token_grown_rarer_than_the_bound_is_left_alone() -> None:
    logprobs = log([0.1]).requires_grad_()
    surrogate = everywhere(logprobs, log([0.4]), tensor([[-1.0]]), clip_low=0.2, clip_high=0.2)
    surrogate.losses.sum().backward()
    # -min(0.25 * -1, 0.8 * -1) = 0.8, and no gradient
    torch.testing.assert_close(surrogate.losses.detach(), tensor([[0.8]]))
    assert surrogate.clipped.item()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == 0.0


def test_on_policy_the_gradient_is_the_advantage() -> None:
    logprobs = log([0.3, 0.3]).requires_grad_()
    surrogate = everywhere(logprobs, logprobs.detach(), tensor([[2.0, -1.0]]), clip_low=0.2, clip_high=0.2)
    surrogate.losses.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, tensor([[-2.0, 1.0]]))


def test_an_absurd_ratio_does_not_overflow() -> None:
    surrogate = everywhere(tensor([[0.0]]), tensor([[-1e4]]), tensor([[-1.0]]), clip_low=0.2, clip_high=0.2)
    assert surrogate.losses.item() == pytest.approx(math.exp(20), rel=1e-5)


def test_importance_weights_by_hand() -> None:
    trainer, sampler = log([0.4, 0.1, 0.9, 0.3]), log([0.2, 0.2, 0.1, 0.2])
    mask = tensor([[True, True, False, True]])
    # ratios 2, 0.5, (9, not sampled) and 1.5, whose product is 1.5
    tokens = importance_weights(trainer, sampler, mask, level="token", cap=1.8)
    torch.testing.assert_close(tokens, tensor([[1.8, 0.5, 0.0, 1.5]]))
    rows = importance_weights(trainer, sampler, mask, level="sequence", cap=1.8)
    torch.testing.assert_close(rows, tensor([[1.5, 1.5, 0.0, 1.5]]))
    assert importance_weights(trainer, sampler, mask, level="sequence", cap=1.2).max().item() == pytest.approx(1.2)


def test_importance_weights_carry_no_gradient_and_survive_what_is_not_finite() -> None:
    trainer = tensor([[0.0, -1.0]]).requires_grad_()
    weights = importance_weights(trainer, tensor([[-math.inf, -1e5]]), tensor([[False, True]]), level="token", cap=5.0)
    assert not weights.requires_grad
    assert weights.tolist() == [[0.0, 5.0]]


def test_k3_by_hand() -> None:
    # d = ln 2: 2 - ln 2 - 1;  d = -ln 2: 0.5 + ln 2 - 1;  d = 0: 0
    kl = kl_k3(log([0.2, 0.4, 0.3]), log([0.4, 0.2, 0.3]))
    torch.testing.assert_close(kl, tensor([[0.3068528, 0.1931472, 0.0]]))


def test_masked_sum_ignores_what_stands_elsewhere_even_nan() -> None:
    values = tensor([[1.0, float("nan"), 3.0]], requires_grad=True)
    total = masked_sum(values, tensor([[True, False, True]]))
    total.backward()
    assert total.item() == 4.0
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0, 1.0]]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        kl_k3(torch.zeros(1, 3), torch.zeros(1, 2))


def test_only_sampled_tokens_count_as_clipped() -> None:
    mask = tensor([[True, False]])
    found = clipped_surrogate(log([0.8, 0.8]), log([0.2, 0.2]), tensor([[1.0, 1.0]]), mask, clip_low=0.2, clip_high=0.2)
    assert found.clipped.tolist() == [[True, False]]
