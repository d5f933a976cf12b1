"""What was read in one turn is not read again in the next, and nothing else changes by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import adapted_policy, noise

from agents.engines import forked_attention
from agents.engines.contract import SamplingLimits
from agents.engines.kv_cache import RoomyLayer
from agents.engines.merging import MergedAdapter
from agents.engines.reading import Reader
from agents.inputs import InputBuilder
from agents.lmm import LMMPolicy
from agents.policy import Reply, Request
from agents.rollout import rollout
from agents.trajectory import Turn
from agents.vision import ByteCache
from agents.workflows import Script
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.messages import ImagePart, Message, TextPart
from mmsearch_env.worlds import load_world

LIMITS = SamplingLimits(max_new_tokens=10)


def said(text: str, *pictures: Any) -> Message:
    return Message("user", (*[ImagePart(picture) for picture in pictures], TextPart(text)))


def asked(row: int, turn: int, played: tuple[Turn, ...]) -> Request:
    """Three episodes of three turns: two of one question, other observations, pictures in some of them."""
    first = said("Which flag is this? " * (1 + row // 2), noise(row // 2))
    new = first if turn == 0 else said("hits " * (1 + 2 * row + turn), *([noise(50 + row, 84, 56)] if row != 1 else []))
    script = Script("<answer>", reason_end="</reason>") if row == 2 and turn == 1 else Script()
    return Request((), (new,), played, seed=10 * row + turn, script=script)


def replied(policy: LMMPolicy, requests: Sequence[Request]) -> list[Turn]:
    turns = []
    for reply in policy.generate(requests):
        assert isinstance(reply, Reply)
        turns.append(Turn(reply.prompt_ids, reply.images, reply.completion, 0.0, "answer", True))
    return turns


def assert_same(one: Sequence[Turn], other: Sequence[Turn]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert mine.completion.token_ids == theirs.completion.token_ids
        assert mine.completion.logprobs == pytest.approx(theirs.completion.logprobs, abs=1e-5)


def forget(policy: LMMPolicy) -> None:
    policy._sampler._reader._kept = ByteCache(1 << 30)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of every reading that is no single token."""
    seen: list[tuple[int, int]] = []
    built = InputBuilder._built

    def watched(self: InputBuilder, *arguments: Any) -> dict[str, Any]:
        made = built(self, *arguments)
        seen.append(tuple(made["input_ids"].shape))
        return made

    monkeypatch.setattr(InputBuilder, "_built", watched)
    return seen


def test_a_later_turn_reads_only_what_is_new(policy: LMMPolicy, widths: list[tuple[int, int]]) -> None:
    played: list[tuple[Turn, ...]] = [()] * 3
    for turn in range(3):
        widths.clear()
        requests = [asked(row, turn, played[row]) for row in range(3)]
        fast = replied(policy, requests)
        read = list(widths)
        forget(policy)
        assert_same(fast, replied(policy, requests))
        # The last token that was said has not been read yet.
        new = max(len(one.prompt_ids) + len(one.completion.forced_ids) for one in fast) + 1
        if turn:
            assert all(width <= new for _, width in read)
        forget(policy)
        played = [(*before, one) for before, one in zip(played, replied(policy, requests), strict=True)]


@pytest.mark.parametrize("forks_from", [1, None])
def test_new_episodes_and_old_ones_share_a_batch(
    policy: LMMPolicy, forks_from: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 0 and 1 have said something, row 2 begins; and in another order."""
    monkeypatch.setattr(policy._sampler._reader, "_forks_from", forks_from)
    forget(policy)
    begun = replied(policy, [asked(row, 0, ()) for row in range(2)])
    requests = [asked(0, 1, (begun[0],)), asked(2, 0, ()), asked(1, 1, (begun[1],))]
    fast = replied(policy, requests)
    assert_same(fast, [replied(policy, [request])[0] for request in requests])
    forget(policy)
    assert_same(fast, replied(policy, requests))


def test_what_rows_begin_with_alike_is_held_once(policy: LMMPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of three, two and one that end at different times, over three turns; beside it a copy for each row."""
    rows, calls = [0, 0, 0, 2, 2, 4], 0

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return one_token(*arguments)

    one_token = forked_attention._one_token
    monkeypatch.setattr(forked_attention, "_one_token", counted)
    reader = policy._sampler._reader

    def three_turns() -> list[tuple[Turn, ...]]:
        forget(policy)
        played: list[tuple[Turn, ...]] = [()] * len(rows)
        for turn in range(3):
            requests = [replace(asked(row, turn, played[n]), seed=10 * n + turn) for n, row in enumerate(rows)]
            played = [(*before, one) for before, one in zip(played, replied(policy, requests), strict=True)]
            assert (calls > 0) == (reader._forks_from == 1)
        return played

    monkeypatch.setattr(reader, "_forks_from", 1)
    forked = three_turns()
    monkeypatch.setattr(reader, "_forks_from", None)
    calls = 0
    plain = three_turns()
    forget(policy)
    for mine, theirs in zip(forked, plain, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_float32_is_forked(dtype: torch.dtype) -> None:
    policy = adapted_policy("qwen2_5_vl")
    policy.model.get_base_model().to(dtype)
    assert (Reader(policy.scorer, policy.builder)._forks_from is not None) == (dtype == torch.float32)


def test_what_other_weights_have_read_is_let_go() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=LIMITS)
    (first,) = replied(policy, [asked(0, 0, ())])
    request = asked(0, 1, (first,))
    (before,) = replied(policy, [request])
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.5)
    (after,) = replied(policy, [request])
    forget(policy)
    assert_same([after], replied(policy, [request]))
    assert after.completion.logprobs != pytest.approx(before.completion.logprobs, abs=1e-3)


def test_the_reference_policy_reads_for_itself() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=LIMITS)
    (first,) = replied(policy, [asked(0, 0, ())])
    request = asked(0, 1, (first,))
    with policy.reference():
        (fast,) = replied(policy, [request])
        forget(policy)
        assert_same([fast], replied(policy, [request]))


def test_without_room_everything_is_read_again(policy: LMMPolicy) -> None:
    begun = replied(policy, [asked(row, 0, ()) for row in range(3)])
    requests = [asked(row, 1, (begun[row],)) for row in range(3)]
    fast = replied(policy, requests)
    policy._sampler._reader._kept = ByteCache(1)
    assert_same(fast, replied(policy, requests))


def test_weights_are_what_they_were_after_sampling(policy: LMMPolicy) -> None:
    """While tokens are sampled the adapter is part of them."""
    before = {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}
    (fast,) = replied(policy, [asked(0, 0, ())])
    assert policy._sampler._adapter._sums
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    forget(policy)
    layers, policy._sampler._adapter._layers = policy._sampler._adapter._layers, []
    (plain,) = replied(policy, [asked(0, 0, ())])
    policy._sampler._adapter._layers = layers
    assert_same([fast], [plain])


def test_an_error_while_sampling_leaves_the_weights_alone(policy: LMMPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = replied(policy, [asked(0, 0, ())])
    with monkeypatch.context() as patch:
        patch.setattr(policy._sampler, "_draw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            policy.generate([asked(0, 0, ())])
    forget(policy)
    assert_same([before], replied(policy, [asked(0, 0, ())]))


def test_shorter_number_formats_are_not_merged() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=LIMITS)
    for name, parameter in policy.model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    assert MergedAdapter(policy.model)._layers == []


def test_tokens_are_written_into_their_places() -> None:
    """Nothing that is there is copied while there is room; rows are chosen with what they have."""
    layer, generator = RoomyLayer(), torch.Generator().manual_seed(0)
    new = [torch.randn(2, 3, size, 4, generator=generator) for size in (5, 1, 1)]
    layer.update(new[0], new[0] + 1)
    place = layer.keys.data_ptr()
    for one in new[1:]:
        keys, values = layer.update(one, one + 1)
    assert layer.keys.data_ptr() == place and layer.get_seq_length() == 7
    assert torch.equal(keys, torch.cat(new, dim=2)) and torch.equal(values, keys + 1)
    layer.batch_select_indices(torch.tensor([1, 0, 1]))
    assert torch.equal(layer.keys, keys[[1, 0, 1]]) and torch.equal(layer.values, layer.keys + 1)
    more = torch.randn(3, 3, 500, 4, generator=generator)
    assert torch.equal(layer.update(more, more)[0][:, :, 7:], more) and layer.get_seq_length() == 507


def test_what_an_episode_has_said_before_or_said_to_its_end_is_let_go(policy: LMMPolicy) -> None:
    kept = policy._sampler._reader._kept = ByteCache(1 << 30)
    played: list[tuple[Turn, ...]] = [()] * 3
    for turn in range(3):
        said_now = replied(policy, [asked(row, turn, played[row]) for row in range(3)])
        played = [(*before, one) for before, one in zip(played, said_now, strict=True)]
        assert len(kept._kept) == 3 * (turn + 1)  # nothing of the reasons that were sampled before a script
    policy.forget(played[1])
    assert len(kept._kept) == 6
    policy.forget(())
    for one in played:
        policy.forget(one)
    assert kept._kept == {} and kept._used == 0


def test_a_rollout_leaves_nothing_behind(policy: LMMPolicy) -> None:
    policy._sampler._reader._kept = ByteCache(1 << 30)
    groups = rollout(
        policy, lambda: MMSearchEnv(prompts="brief"), load_world("atlas").questions("test")[:2], group_size=2, seed=0
    )
    assert sum(len(one.turns) for group in groups for one in group.trajectories) > 4
    assert policy._sampler._reader._kept._kept == {}
