"""States are valued alike however rows are laid out, and an episode's last state is valued too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import FAMILIES, adapted_policy
from test_packing import cut, group, mask_of

from agents.critic import CriticSettings
from agents.engines.contract import SamplingLimits
from agents.lmm import LMMPolicy
from agents.scorer import base_model
from agents.trajectory import Trajectory
from mmsearch_env.errors import PolicyError


def valuing(family: str, settings: CriticSettings | None = None) -> LMMPolicy:
    """A policy whose critic has an opinion."""
    policy = adapted_policy(family, limits=SamplingLimits(max_new_tokens=8), critic=settings or CriticSettings())
    assert policy.scorer.critic is not None
    torch.nn.init.normal_(policy.scorer.critic.outer.weight, std=0.3)
    return policy


def values_by_hand(policy: LMMPolicy, played: Trajectory) -> tuple[list[float], float]:
    """Of the states in which tokens were sampled, and of the one after the last."""
    inputs = policy.whole_inputs([played])
    hidden = base_model(policy.model).model(**inputs).last_hidden_state[0]
    assert policy.scorer.critic is not None
    found = policy.scorer.critic(hidden).tolist()
    sampled = [place for place, flag in enumerate(played.loss_mask) if flag]
    return [found[place - 1] for place in sampled], found[-1]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_values_are_those_of_every_row_alone(family: str) -> None:
    policy = valuing(family)
    played = [*group(policy, 0, 3), *group(policy, 1, 2)]
    played[1] = cut(played[1], 1)
    mask = mask_of(played)
    layouts = policy.forward_inputs(played), policy.whole_inputs(played)
    assert len({type(layout) for layout in layouts}) == 2
    by_hand = [values_by_hand(policy, one) for one in played]
    for layout in layouts:
        alone = policy.scorer(layout, mask, 1.0, "values")
        scores = policy.scorer(layout, mask, 1.0)
        assert alone.values is not None and alone.last_values is not None and scores.values is not None
        torch.testing.assert_close(scores.values, alone.values)
        assert not alone.logprobs.any() and not scores.values[~mask].any()
        for row, (sampled, last) in enumerate(by_hand):
            assert alone.values[row][mask[row]].tolist() == pytest.approx(sampled, abs=1e-5)
            assert float(alone.last_values[row]) == pytest.approx(last, abs=1e-5)


@pytest.mark.parametrize(("trunk", "reaches"), [("shared", True), ("detached", False)])
def test_whether_the_critic_trains_the_adapter(trunk: str, reaches: bool) -> None:
    policy = valuing("qwen2_5_vl", CriticSettings(trunk))  # type: ignore[arg-type]
    played = group(policy, 0, 3)
    scores = policy.scorer(policy.forward_inputs(played), mask_of(played), 1.0)
    scores.values.sum().backward()
    assert policy.scorer.critic is not None
    assert all(parameter.grad is not None for parameter in policy.scorer.critic.parameters())
    grads = [parameter.grad for parameter in policy.model.parameters() if parameter.requires_grad]
    assert any(grad is not None and bool(grad.any()) for grad in grads) is reaches


def test_a_critic_comes_back_from_disk(tmp_path: Path) -> None:
    policy, other = valuing("qwen2_5_vl"), adapted_policy("qwen2_5_vl", critic=CriticSettings())
    policy.save_adapter(tmp_path)
    other.load_adapter(tmp_path)
    assert policy.scorer.critic is not None and other.scorer.critic is not None
    for one, theirs in zip(policy.scorer.critic.parameters(), other.scorer.critic.parameters(), strict=True):
        assert torch.equal(one, theirs)
    (tmp_path / "critic.safetensors").write_bytes(b"broken")
    with pytest.raises(PolicyError, match="expected the weights of a critic"):
        other.load_adapter(tmp_path)


def test_an_adapter_without_a_critic_leaves_a_new_one_as_it_is(tmp_path: Path) -> None:
    adapted_policy("qwen2_5_vl").save_adapter(tmp_path)
    other = valuing("qwen2_5_vl")
    assert other.scorer.critic is not None
    before = other.scorer.critic.outer.weight.clone()
    other.load_adapter(tmp_path)
    assert torch.equal(other.scorer.critic.outer.weight, before)


def test_values_of_a_policy_without_a_critic_are_refused() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=4))
    played = [replace(one) for one in group(policy, 0, 2)]
    with pytest.raises(PolicyError, match="expected a policy with a critic"):
        policy.scorer(policy.whole_inputs(played), mask_of(played), 1.0, "values")
