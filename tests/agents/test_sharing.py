"""A prompt that a group has in common is run once, and nothing else changes by it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES, adapted_policy, noise
from transformers import DynamicCache

from agents import inputs as inputs_module
from agents import scorer as scorer_module
from agents.engines.contract import SamplingLimits
from agents.inputs import InputBuilder, PackedInputs, Parted, SharedInputs
from agents.layout import parted
from agents.lmm import LMMPolicy
from agents.policy import Reply, Request
from agents.scorer import TokenScorer
from agents.trajectory import Trajectory, Turn
from mmsearch_env.errors import PolicyWarning
from mmsearch_env.messages import ImagePart, Message, TextPart


def said(text: str, *pictures: Any) -> Message:
    return Message("user", (*[ImagePart(picture) for picture in pictures], TextPart(text)))


def group(policy: LMMPolicy, number: int, size: int) -> list[Trajectory]:
    """Episodes of one question with a picture; other observations, ragged, with pictures in some."""
    turns: list[tuple[Turn, ...]] = [()] * size
    first = said("Which flag is this? " * (1 + number), noise(number))
    for turn in range(2):
        new = [first] * size if turn == 0 else [later(row) for row in range(size)]
        requests = [Request((), (new[row],), turns[row], seed=100 * number + 10 * row + turn) for row in range(size)]
        for row, reply in enumerate(policy.generate(requests)):
            assert isinstance(reply, Reply)
            turns[row] = (*turns[row], Turn(reply.prompt_ids, reply.images, reply.completion, 0.0, "answer", True))
    return [Trajectory("q", played, True, False, "answered", 0.0, {}, {}, "") for played in turns]


def later(row: int) -> Message:
    return said("hits " * (1 + 3 * row), *([noise(100 + row, 84, 56)] if row % 2 == 0 else []))


def mask_of(trajectories: Sequence[Trajectory]) -> torch.Tensor:
    mask = torch.zeros((len(trajectories), max(len(t.loss_mask) for t in trajectories)), dtype=torch.bool)
    for row, played in enumerate(trajectories):
        mask[row, : len(played.loss_mask)] = torch.tensor(played.loss_mask)
    return mask


def scored(policy: LMMPolicy, inputs: Any, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Log-probabilities, entropies and the gradients of a weighted sum."""
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    policy.scorer.zero_grad()
    policy.scorer.train()
    scores = policy.scorer(inputs, mask, 0.9)
    (scores.logprobs * weights).sum().backward()
    policy.scorer.eval()
    gradients = [p.grad.clone() for p in policy.trainable_parameters() if p.grad is not None]
    return scores.logprobs.detach(), scores.entropy, gradients


@pytest.fixture(scope="module")
def episodes(policy: LMMPolicy) -> list[Trajectory]:
    """Groups of four and of three."""
    return [*group(policy, 0, 4), *group(policy, 1, 3)]


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6), (0, 5, 2, 6), (0, 4, 5)])
@pytest.mark.parametrize("layout", ["shared", "apart", "packed"])
def test_scores_and_gradients_are_those_of_whole_rows(
    policy: LMMPolicy,
    episodes: list[Trajectory],
    chosen: tuple[int, ...],
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One group, two groups, two groups mixed, and a group beside an episode alone; rests in one pass or in several."""
    monkeypatch.setattr(inputs_module, "_PASS_COST", 1 if layout == "apart" else 10**6)
    played = [episodes[number] for number in chosen]
    mask = mask_of(played)
    together = policy.forward_inputs(played)
    assert isinstance(together, SharedInputs)
    tokens = together.beginnings["input_ids"].numel() + sum(one.inputs["input_ids"].numel() for one in together.rests)
    assert (len(together.rests) > 1) == (layout == "apart")
    fast: SharedInputs | PackedInputs = together
    if layout == "packed":
        fast = policy.builder.build_packed([parted(one) for one in played])
        tokens = int((fast.packs["input_ids"] != policy.renderer.tokenizer.pad_token_id).sum())
    whole = policy.whole_inputs(played)
    assert tokens < whole["input_ids"].numel()
    (logprobs, entropy, slopes), (plain, plain_entropy, plain_slopes) = (
        scored(policy, inputs, mask) for inputs in (fast, whole)
    )
    torch.testing.assert_close(logprobs, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, plain_entropy, atol=1e-5, rtol=0)
    assert len(slopes) == len(plain_slopes) > 10
    for one, other in zip(slopes, plain_slopes, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())


@pytest.mark.parametrize(
    ("lengths", "cost", "parts"),
    [
        ([5, 50, 6, 48], 10, [[0, 2], [3, 1]]),
        ([5, 50, 6, 48], 0, [[0], [2], [3], [1]]),
        ([5, 50, 6, 48], 1000, [[0, 2, 3, 1]]),
        ([7, 7, 7], 1, [[0, 1, 2]]),
        ([9], 256, [[0]]),
    ],
)
def test_rows_of_like_length_are_run_together(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], cost: int, parts: list[list[int]]
) -> None:
    monkeypatch.setattr(inputs_module, "_PASS_COST", cost)
    assert inputs_module.of_like_length(lengths) == parts


def test_episodes_without_a_common_prompt_are_run_whole(policy: LMMPolicy, episodes: list[Trajectory]) -> None:
    assert isinstance(policy.forward_inputs([episodes[0], episodes[4]]), dict)


def test_nothing_is_shared_where_the_tower_is_trained(policy: LMMPolicy, episodes: list[Trajectory]) -> None:
    tower = next(p for name, p in policy.model.named_parameters() if "vis" in name)
    tower.requires_grad_(True)
    try:
        assert not policy.shares_prompts
        assert isinstance(policy.forward_inputs(episodes[:4]), dict)
    finally:
        tower.requires_grad_(False)


@pytest.mark.parametrize("fault", ["positions", "keys"])
def test_the_comparison_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=8))
    played = group(policy, 0, 3)
    build, keep = InputBuilder.build_shared, scorer_module._for_rows

    def fading(cache: DynamicCache, which: torch.Tensor) -> DynamicCache:
        chosen = keep(cache, which)
        for layer in chosen.layers:
            layer.keys = layer.keys * 0.9
        return chosen

    if fault == "keys":
        monkeypatch.setattr(scorer_module, "_for_rows", fading)
    else:

        def shifted(self: InputBuilder, rows: Sequence[Parted]) -> SharedInputs:
            made = build(self, rows)
            rests = [
                replace(one, inputs={**one.inputs, "position_ids": one.inputs["position_ids"] + 1})
                for one in made.rests
            ]
            return replace(made, rests=tuple(rests))

        monkeypatch.setattr(InputBuilder, "build_shared", shifted)
    with pytest.warns(PolicyWarning, match="got a gap of .*every episode is run whole from now on"):
        assert isinstance(policy.forward_inputs(played), dict)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_activations_that_are_made_anew_change_nothing(family: str) -> None:
    """Keys and values are not kept then, so each group becomes one long row."""
    policy = adapted_policy(family, limits=SamplingLimits(max_new_tokens=8))
    played = [*group(policy, 0, 3), *group(policy, 1, 2)]
    mask = mask_of(played)
    kept = scored(policy, policy.forward_inputs(played), mask)
    policy.checkpoint_activations()
    packed = policy.forward_inputs(played)
    assert isinstance(packed, PackedInputs) and policy.shares_prompts
    anew = scored(policy, packed, mask)
    torch.testing.assert_close(anew[0], kept[0], atol=1e-5, rtol=0)
    for one, other in zip(anew[2], kept[2], strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())
    assert [len(t.turns) for t in group(policy, 2, 2)] == [2, 2]  # sampling goes on as before


def test_keys_and_values_that_are_dropped_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers does, without a word to the caller, where activations are made anew."""
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=8))
    played = group(policy, 0, 3)
    policy.checkpoint_activations()
    monkeypatch.setattr(InputBuilder, "is_checkpointed", property(lambda self: False))
    with pytest.warns(PolicyWarning, match="got a gap of .*every episode is run whole from now on"):
        assert isinstance(policy.forward_inputs(played), dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PolicyWarning)
        assert isinstance(policy.forward_inputs(played), dict)  # said once
    assert not policy.shares_prompts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_head_gives_what_autograd_gives(dtype: torch.dtype) -> None:
    policy = adapted_policy("qwen2_5_vl")
    model = copy.deepcopy(policy.model.get_base_model()).to(dtype)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 64, generator=generator).to(dtype)
    targets = torch.randint(0, model.lm_head.weight.shape[0], (50,), generator=generator)
    targets[torch.isin(targets, policy.scorer.banned)] = 0
    assert 0 not in policy.scorer.banned
    weights = torch.randn(50, generator=generator)
    found = []
    for is_trained in (False, True):
        model.lm_head.weight.requires_grad_(is_trained)
        scorer = TokenScorer(model, policy.scorer.banned.tolist())
        start = hidden.clone().requires_grad_()
        logprobs, entropy = scorer._score(start, targets, 0.7)
        (logprobs * weights).sum().backward()
        assert start.grad is not None
        found.append((logprobs.detach(), entropy, start.grad.float()))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, atol=2e-5 if dtype == torch.float32 else 0.05, rtol=1e-4)


def test_a_frozen_head_keeps_no_logits(policy: LMMPolicy) -> None:
    hidden = torch.randn(30, 64, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        policy.scorer._score(hidden, torch.zeros(30, dtype=torch.long), 1.0)
    assert kept == [30 * 64]
