"""Episodes are packed into one row, a prompt that a group has in common once, and nothing else changes by it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import FAMILIES, adapted_policy, noise
from torch.nn.functional import scaled_dot_product_attention
from transformers import modeling_flash_attention_utils as flash

from agents.attention import Layer
from agents.engines.contract import SamplingLimits
from agents.inputs import InputBuilder, PackedInputs, Parted
from agents.layout import parted
from agents.lmm import LMMPolicy
from agents.packing import Packing
from agents.policy import Reply, Request
from agents.scorer import TokenScorer
from agents.trajectory import Completion, FinishReason, Trajectory, Turn
from mmsearch_env.errors import PolicyError, PolicyWarning
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


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6), (0, 5, 2, 6), (0, 4, 5), (0, 4)])
def test_scores_and_gradients_are_those_of_whole_rows(
    policy: LMMPolicy, episodes: list[Trajectory], chosen: tuple[int, ...]
) -> None:
    """One group, two groups, two groups mixed, a group beside an episode alone, episodes alone."""
    played = [episodes[number] for number in chosen]
    mask = mask_of(played)
    packed = policy.forward_inputs(played)
    assert isinstance(packed, PackedInputs)
    tokens = packed.packed["input_ids"].numel()
    prompts = {parted(one).beginning.key: len(one.turns[0].prompt_ids) for one in played}
    assert tokens == sum(prompts.values()) + sum(len(parted(one).rest.token_ids) for one in played)
    whole = policy.whole_inputs(played)
    (logprobs, entropy, slopes), (plain, plain_entropy, plain_slopes) = (
        scored(policy, inputs, mask) for inputs in (packed, whole)
    )
    torch.testing.assert_close(logprobs, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, plain_entropy, atol=1e-5, rtol=0)
    assert len(slopes) == len(plain_slopes) > 10
    for one, other in zip(slopes, plain_slopes, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())


def test_every_token_may_be_scored(policy: LMMPolicy, episodes: list[Trajectory]) -> None:
    """Those of a common prompt too, as in supervised training; and an episode may end with its prompt."""
    nothing = Completion("", (), (), FinishReason.STOP)
    ended = replace(episodes[1], turns=(replace(episodes[1].turns[0], completion=nothing),))
    played = [episodes[0], ended, episodes[4], episodes[2]]
    mask = mask_of(played)
    for row, one in enumerate(played):
        mask[row, 1 : len(one.loss_mask)] = True
    packed, whole = policy.forward_inputs(played), policy.whole_inputs(played)
    assert isinstance(packed, PackedInputs)
    (fast, fast_entropy, _), (plain, plain_entropy, _) = (scored(policy, inputs, mask) for inputs in (packed, whole))
    assert plain[mask].isfinite().any()
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(fast_entropy, plain_entropy, atol=1e-5, rtol=0)


def test_nothing_is_packed_where_the_tower_is_trained(policy: LMMPolicy, episodes: list[Trajectory]) -> None:
    tower = next(p for name, p in policy.model.named_parameters() if "vis" in name)
    tower.requires_grad_(True)
    try:
        assert not policy.packs(episodes)
        assert isinstance(policy.forward_inputs(episodes[:4]), dict)
    finally:
        tower.requires_grad_(False)


def cut(played: Trajectory, tokens: int) -> Trajectory:
    """The first turn alone, its completion so many tokens long."""
    said = played.turns[0].completion
    shorter = replace(said, token_ids=said.token_ids[:tokens], logprobs=said.logprobs[:tokens])
    return replace(played, turns=(replace(played.turns[0], completion=shorter),))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_rests_may_be_of_one_token_or_none(
    policy: LMMPolicy, episodes: list[Trajectory], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the masks of either device: those for CUDA are made into plain ones where its kernels are not at hand."""
    played = [cut(episodes[0], 1), episodes[1], cut(episodes[2], 0), cut(episodes[3], 2), cut(episodes[4], 1)]
    of = Packing.of
    monkeypatch.setattr(Packing, "of", lambda groups, device: replace(of(groups, device), device=torch.device(kind)))
    mask = mask_of(played)
    packed = policy.forward_inputs(played)
    assert isinstance(packed, PackedInputs)
    fast, plain = (scored(policy, inputs, mask) for inputs in (packed, policy.whole_inputs(played)))
    torch.testing.assert_close(fast[0], plain[0], atol=1e-5, rtol=0)
    for one, other in zip(fast[2], plain[2], strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())


def test_one_token_needs_no_mask() -> None:
    """Given one, transformers lays heads out as tokens, and kernels that know a mask by its kind take them for such."""
    for kind in ("cpu", "cuda"):
        packing = Packing.of([(5, 1, 3)], torch.device(kind))
        assert packing._mask(torch.zeros(1, 2, 1, 8), 5) is None
        mask = packing._mask(torch.zeros(1, 2, 3, 8), 5)
        assert mask is not None and mask.shape[-2:] == (3, 8)


def test_a_mask_of_another_shape_is_refused(policy: LMMPolicy, episodes: list[Trajectory]) -> None:
    for inputs in (policy.forward_inputs(episodes[:3]), policy.whole_inputs(episodes[:3])):
        for wrong in (mask_of(episodes[:3])[:, :-1], mask_of(episodes[:3])[:2]):
            with pytest.raises(ValueError, match=r"expected a loss_mask of shape \(3, "):
                policy.scorer(inputs, wrong)


def blind(packing: Packing, layer: Layer, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
    """Attention of a packed row as if all of it were one text."""
    return layer.attended(query, key, value, None)


@pytest.mark.parametrize("fault", ["positions", "attention", "error"])
def test_the_comparison_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=8))
    played = group(policy, 0, 3)
    build = InputBuilder.build_packed

    def shifted(self: InputBuilder, rows: Sequence[Parted]) -> PackedInputs:
        made = build(self, rows)
        places = made.packed["position_ids"].clone()
        places[..., -5:] += 1
        return replace(made, packed={**made.packed, "position_ids": places})

    def failing(self: InputBuilder, rows: Sequence[Parted]) -> PackedInputs:
        raise PolicyError("no")

    if fault == "attention":
        monkeypatch.setattr(Packing, "__call__", blind)
    else:
        monkeypatch.setattr(InputBuilder, "build_packed", shifted if fault == "positions" else failing)
    with pytest.warns(
        PolicyWarning, match="got .*(a gap of|PolicyError: no).*every episode is run by itself from now on"
    ):
        assert isinstance(policy.forward_inputs(played), dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PolicyWarning)
        assert isinstance(policy.forward_inputs(played), dict)  # said once
    assert not policy.packs(played)


def test_groups_are_compared_after_episodes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=8))
    played = [*group(policy, 0, 2), *group(policy, 1, 1)]
    assert isinstance(policy.forward_inputs(played[1:]), PackedInputs)
    build = Packing.of
    monkeypatch.setattr(Packing, "of", lambda groups, device: build([[sum(map(sum, groups))]], device))
    assert isinstance(policy.forward_inputs(played[1:]), PackedInputs)
    with pytest.warns(PolicyWarning, match="got a gap of"):
        assert isinstance(policy.forward_inputs(played), dict)


def test_much_longer_episodes_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a layer looks back only so far, and does not say so."""
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=8))
    played = group(policy, 0, 2)
    short = [cut(one, 2) for one in played]
    assert isinstance(policy.forward_inputs(short), PackedInputs)
    monkeypatch.setattr(Packing, "__call__", blind)
    assert isinstance(policy.forward_inputs(short), PackedInputs)
    size = len(short[0].token_ids)
    long = replace(played[0], turns=(played[0].turns[0], *[played[0].turns[1]] * (2 * size // 8)))
    assert len(long.token_ids) > 2 * size
    with pytest.warns(PolicyWarning, match="got a gap of"):
        assert isinstance(policy.forward_inputs([long, short[1]]), dict)


def test_attention_that_cannot_be_packed_is_told() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=8))
    played = group(policy, 0, 3)
    policy.model.get_base_model().set_attn_implementation({"text_config": "eager"})
    other = LMMPolicy(policy.model, policy.renderer.processor)
    with pytest.warns(PolicyWarning, match="expected a model whose attention can be told"):
        assert not other.packs(played)
    assert isinstance(other.forward_inputs(played), dict)  # said once


def test_a_sliding_window_is_not_packed() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=8))
    played = group(policy, 0, 3)
    policy.model.get_base_model().model.language_model.layers[1].self_attn.sliding_window = 4096
    with pytest.warns(PolicyWarning, match="got PolicyError: expected attention to all tokens before"):
        assert isinstance(policy.forward_inputs(played), dict)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_activations_that_are_made_anew_change_nothing(family: str) -> None:
    policy = adapted_policy(family, limits=SamplingLimits(max_new_tokens=8))
    played = [*group(policy, 0, 3), *group(policy, 1, 2)]
    mask = mask_of(played)
    kept = scored(policy, policy.forward_inputs(played), mask)
    policy.checkpoint_activations()
    packed = policy.forward_inputs(played)
    assert isinstance(packed, PackedInputs) and policy.packs(played)
    anew = scored(policy, packed, mask)
    torch.testing.assert_close(anew[0], kept[0], atol=1e-5, rtol=0)
    for one, other in zip(anew[2], kept[2], strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())
    assert [len(t.turns) for t in group(policy, 2, 2)] == [2, 2]  # sampling goes on as before


def varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0, deterministic: bool = False,
) -> torch.Tensor:  # fmt: skip
    """What ``flash_attn_varlen_func`` of flash-attn 2.1 and later does, without its kernel."""
    assert causal and q.dim() == 3 and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    ends, seen_ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert len(ends) == len(seen_ends) and ends[-1] == len(q) and seen_ends[-1] == len(k) == len(v)
    assert max_seqlen_q == max(b - a for a, b in pairwise(ends))
    assert max_seqlen_k == max(b - a for a, b in pairwise(seen_ends))
    parts = []
    for (start, end), (first, last) in zip(pairwise(ends), pairwise(seen_ends), strict=True):
        query, key, value = (one.transpose(0, 1) for one in (q[start:end], k[first:last], v[first:last]))
        seen = torch.ones(end - start, last - first, dtype=torch.bool).tril(last - first - end + start)
        part = scaled_dot_product_attention(query, key, value, seen, scale=softmax_scale, enable_gqa=True)
        parts.append(part.transpose(0, 1))
    return torch.cat(parts)


def test_kernels_for_unequal_lengths_are_told_them(
    policy: LMMPolicy, episodes: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the package flash-attn would be given, in one call for each layer."""
    calls: list[int] = []

    @wraps(varlen)
    def counted(*given: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return varlen(*given, **named)

    chosen = [episodes[number] for number in (0, 5, 2, 6, 4)]
    mask = mask_of(chosen)
    inputs = policy.forward_inputs(chosen)
    plain = scored(policy, inputs, mask)
    functions = (None, counted, None, None, None), (flash._lazy_define_process_function(counted), None)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda name: functions)
    text = policy.model.get_base_model().config.get_text_config()
    monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
    found = scored(policy, inputs, mask)
    assert len(calls) == text.num_hidden_layers
    torch.testing.assert_close(found[0], plain[0], atol=1e-5, rtol=0)
    for one, other in zip(found[2], plain[2], strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())


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
