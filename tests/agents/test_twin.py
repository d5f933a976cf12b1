"""A twin plays while its policy is trained."""

from __future__ import annotations

import threading

import pytest
import torch
from families import FAMILIES, adapted_policy
from test_packing import group, mask_of, scored

from agents.engines.contract import SamplingLimits
from agents.lmm import LMMPolicy


def changed(policy: LMMPolicy) -> None:
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))


def said_by(policy: LMMPolicy) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    return [(one.token_ids, one.old_logprobs) for one in group(policy, 0, 3)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_twin_keeps_its_weights_until_it_catches_up(family: str) -> None:
    policy = adapted_policy(family, limits=SamplingLimits(max_new_tokens=8))
    twin = policy.twin()
    before = said_by(policy)
    assert said_by(twin) == before
    changed(policy)
    after = said_by(policy)
    assert after != before
    assert said_by(twin) == before
    twin.catch_up(policy)
    assert said_by(twin) == after


def test_what_is_frozen_is_held_once() -> None:
    policy = adapted_policy("qwen2_5_vl")
    twin = policy.twin()
    theirs = dict(policy.model.named_parameters())
    for name, parameter in twin.model.named_parameters():
        assert (parameter.data_ptr() == theirs[name].data_ptr()) is not theirs[name].requires_grad, name
    assert twin.builder.vision is policy.builder.vision


def test_playing_and_training_at_once_is_playing_and_training() -> None:
    """The twin samples with its adapter merged into the weights; the policy must not notice."""
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=12))
    twin, played = policy.twin(), group(policy, 1, 4)
    mask, inputs = mask_of(played), policy.forward_inputs(played)
    wanted = scored(policy, inputs, mask)
    said, turns = said_by(twin), []
    worker = threading.Thread(target=lambda: turns.extend(said_by(twin) for _ in range(6)))
    worker.start()
    rounds = 0
    while worker.is_alive() or not rounds:
        logprobs, _, slopes = scored(policy, inputs, mask)
        torch.testing.assert_close(logprobs, wanted[0], atol=1e-6, rtol=0)
        for one, other in zip(slopes, wanted[2], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        rounds += 1
    worker.join()
    assert turns == [said] * 6 and rounds > 1
