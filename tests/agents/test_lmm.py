"""Sampler and trainer must see the same model: tokens, positions, pictures, adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import adapted_policy, noise, pixels

from agents.engines.contract import SamplingLimits
from agents.lmm import LMMPolicy
from agents.lora import LoRASettings
from agents.policy import CONTEXT_FULL, UNREADABLE_PICTURE, CannotReply, Reply, Request
from agents.trajectory import FinishReason, Trajectory, Turn
from agents.workflows import FREE, Script
from mmsearch_env.errors import ConfigError, PolicyError
from mmsearch_env.messages import ImagePart, Message, TextPart


def said(text: str, *pictures: Any) -> Message:
    return Message("user", (*[ImagePart(picture) for picture in pictures], TextPart(text)))


CONVERSATIONS = (
    (said("Which flag is this?", noise(1)), said("two hits", noise(2, 84, 56), noise(3, 84, 56)), said("and more")),
    (said("A longer question about a picture", noise(4, 140, 112)), said("one hit", noise(5, 84, 84)), said("x")),
    (said("No picture at first"), said("late picture " * 4, noise(6, 84, 56)), said("a third", noise(7))),
)


def play(policy: LMMPolicy, *, script: Script = FREE) -> list[Trajectory]:
    """Three episodes of three turns in one batch: ragged, pictures arriving in every turn, one row with a script."""
    turns: list[tuple[Turn, ...]] = [()] * len(CONVERSATIONS)
    for number in range(3):
        requests = [
            Request(
                (), (messages[number],), turns[row], seed=10 * row + number, script=script if row == 1 else Script()
            )
            for row, messages in enumerate(CONVERSATIONS)
        ]
        for row, reply in enumerate(replies(policy, requests)):
            turns[row] = (*turns[row], Turn(reply.prompt_ids, reply.images, reply.completion, 0.0, "answer", True))
    return [trajectory(row) for row in turns]


def replies(policy: LMMPolicy, requests: Sequence[Request]) -> list[Reply]:
    found = policy.generate(requests)
    assert all(isinstance(reply, Reply) for reply in found)
    return [reply for reply in found if isinstance(reply, Reply)]


def trajectory(turns: Sequence[Turn]) -> Trajectory:
    return Trajectory("q", tuple(turns), True, False, "answered", 0.0, {}, {}, "")


def scored(policy: LMMPolicy, trajectories: Sequence[Trajectory]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The trainer's log-probabilities, the sampler's, and the mask."""
    inputs = policy.whole_inputs(trajectories)
    mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    sampled = torch.zeros(mask.shape)
    for row, played in enumerate(trajectories):
        mask[row, : len(played.loss_mask)] = torch.tensor(played.loss_mask)
        sampled[row, : len(played.old_logprobs)] = torch.tensor(played.old_logprobs)
    with torch.no_grad():
        return policy.scorer(inputs, mask, policy.limits.temperature).logprobs, sampled, mask


def test_the_trainer_scores_what_the_sampler_said(policy: LMMPolicy) -> None:
    trainer, sampler, mask = scored(policy, play(policy, script=Script("<answer>", reason_end="</reason>")))
    assert mask.sum() > 60
    torch.testing.assert_close(trainer, sampler, atol=1e-4, rtol=0)


def test_a_temperature_is_applied_on_both_sides() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=8, temperature=0.5))
    trainer, sampler, _ = scored(policy, play(policy))
    torch.testing.assert_close(trainer, sampler, atol=1e-4, rtol=0)


def test_scores_equal_the_plain_model_on_pixels(policy: LMMPolicy) -> None:
    """One unpadded forward pass of transformers' own, pixels in, its own positions: no cache, no adapter tricks."""
    model = policy.model.get_base_model()
    for played in play(policy):
        ids = torch.tensor([played.token_ids])
        types = torch.isin(ids, torch.tensor(sorted(policy.renderer.image_ids))).int()
        made = pixels(policy.renderer.processor, played.images)
        model.model.rope_deltas = None
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **made).logits
        plain = logits.index_fill(-1, policy.scorer.banned, float("-inf")).log_softmax(-1)[0, :-1]
        chosen = plain.gather(-1, ids[0, 1:, None])[:, 0]
        mask = torch.tensor(played.loss_mask[1:])
        torch.testing.assert_close(chosen[mask], torch.tensor(played.old_logprobs[1:])[mask], atol=1e-4, rtol=0)


def test_what_a_row_says_does_not_depend_on_the_others(policy: LMMPolicy) -> None:
    requests = [Request((), (messages[0],), (), seed=row) for row, messages in enumerate(CONVERSATIONS)]
    together = replies(policy, requests)
    alone = [replies(policy, [request])[0] for request in requests]
    assert [r.completion.token_ids for r in together] == [r.completion.token_ids for r in alone]


def test_a_prompt_that_rows_share_is_run_once(policy: LMMPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of three in one batch, their members mixed: two prompts are run, and each says what it says alone."""
    requests = [Request((), (CONVERSATIONS[seed % 2][0],), (), seed=seed) for seed in range(6)]
    alone = [replies(policy, [request])[0].completion for request in requests]
    built: list[int] = []
    build = policy.builder.build
    monkeypatch.setattr(policy.builder, "build", lambda rows, **how: built.append(len(rows)) or build(rows, **how))
    together = [reply.completion for reply in replies(policy, requests)]
    assert built == [2]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({c.token_ids for c in together}) == 6
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_control_and_picture_tokens_are_never_sampled() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=64, temperature=5.0))
    banned = policy.renderer.control_ids - policy.renderer.end_ids
    for played in play(policy):
        assert not banned & {token for turn in played.turns for token in turn.completion.token_ids}


def test_a_scripted_beginning_is_seen_but_not_trained(policy: LMMPolicy) -> None:
    played = play(policy, script=Script("<answer>", reason_end="</reason>"))[1]
    for turn in played.turns:
        begun = policy.renderer.decode(turn.completion.forced_ids)
        assert begun.endswith("<answer>") and turn.completion.text.startswith(begun)
    assert sum(played.loss_mask) == sum(len(turn.completion.token_ids) for turn in played.turns)


def test_a_scripted_action_follows_a_reason_of_the_policys_own() -> None:
    """The reason is sampled as in free play, up to its end; what the policy says after it is replaced."""
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=64, temperature=5.0))
    request = Request((), (CONVERSATIONS[0][0],), (), seed=0)
    ended = 0
    for seed in range(24):
        (free,) = replies(policy, [replace(request, seed=seed + 1)])
        scripted = [
            replies(policy, [replace(request, seed=seed, script=Script("<answer>", whole, "</reason>"))])[0].completion
            for whole in (False, True)
        ]
        reason, said, _ = free.completion.text.partition("</reason>")
        ended += bool(said)
        begun = f"{reason}</reason><answer>" if said else "<answer>"
        assert policy.renderer.decode(scripted[0].forced_ids) == scripted[1].text == begun
        assert scripted[0].text.startswith(begun) and scripted[0].token_ids and not scripted[1].token_ids
    assert 1 < ended < 24


def test_a_whole_script_samples_nothing(policy: LMMPolicy) -> None:
    request = Request(
        (), (CONVERSATIONS[0][0],), (), seed=0, script=Script("<search><img></search>", True, "</reason>")
    )
    (reply,) = replies(policy, [request])
    assert reply.completion.text == "<search><img></search>"
    assert reply.completion.token_ids == ()
    assert reply.completion.finish_reason is FinishReason.STOP


def test_sampling_ends_at_an_end_tag() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=12))
    closing = policy.renderer.tokenizer.convert_tokens_to_ids("</answer>")
    head = policy.model.get_base_model().lm_head.weight
    with torch.no_grad():
        head[closing] = 40 * head.mean(dim=0)
    request = Request((), (CONVERSATIONS[0][0],), (), seed=3)
    texts = [replies(policy, [replace(request, seed=seed)])[0].completion for seed in range(12)]
    ended = [completion for completion in texts if closing in completion.token_ids]
    assert ended
    assert all(c.token_ids.index(closing) == len(c.token_ids) - 1 for c in ended)
    assert all(c.finish_reason is FinishReason.STOP for c in ended)


def test_temperature_zero_takes_the_likeliest_token(policy: LMMPolicy) -> None:
    greedy = SamplingLimits(max_new_tokens=6, temperature=0.0)
    before, policy.limits = policy.limits, greedy
    try:
        request = Request((), (CONVERSATIONS[0][0],), (), seed=0)
        first, second = (replies(policy, [replace(request, seed=seed)])[0] for seed in (1, 2))
    finally:
        policy.limits = before
    assert first.completion.token_ids == second.completion.token_ids


def test_too_long_a_conversation_overflows_alone() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=4), max_context_tokens=60)
    long, short = said("word " * 80), said("hi")
    cut, fine = policy.generate([Request((), (message,), (), seed=0) for message in (long, short)])
    assert isinstance(cut, CannotReply)
    assert cut.reason == CONTEXT_FULL
    assert isinstance(fine, Reply)


def test_a_completion_fills_what_room_is_left_and_no_more() -> None:
    """Twenty tokens of room and forty allowed; the same completion, given all the room there is, goes on."""
    limits = SamplingLimits(max_new_tokens=40)
    request = Request((), (said("hi " * 40),), (), seed=0)
    (unhindered,) = replies(adapted_policy("qwen2_5_vl", limits=limits, max_context_tokens=4096), [request])
    room = 20
    assert len(unhindered.completion.token_ids) > room
    context = len(unhindered.prompt_ids) + room
    (reply,) = replies(adapted_policy("qwen2_5_vl", limits=limits, max_context_tokens=context), [request])
    assert len(reply.prompt_ids) + len(reply.completion.token_ids) == context
    assert reply.completion.token_ids == unhindered.completion.token_ids[:room]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_picture_the_model_refuses_is_cut_off_alone(family: str) -> None:
    """These families' processors refuse extreme proportions; the others in the batch still get their reply."""
    policy = adapted_policy(family, limits=SamplingLimits(max_new_tokens=12))
    odd, fine = said("look", noise(8, 6, 1800)), said("look", noise(9, 84, 56))
    cut, reply = policy.generate([Request((), (message,), (), seed=0) for message in (odd, fine)])
    assert isinstance(cut, CannotReply)
    assert cut.reason == UNREADABLE_PICTURE
    assert isinstance(reply, Reply)


def test_a_context_without_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected more than max_new_tokens"):
        adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=64), max_context_tokens=64)


def test_the_reference_is_the_model_without_its_adapter(policy: LMMPolicy) -> None:
    played = play(policy)
    adapted, _, mask = scored(policy, played)
    with policy.reference():
        bare, _, _ = scored(policy, played)
    again, _, _ = scored(policy, played)
    assert (adapted - bare)[mask].abs().max() > 1e-3
    torch.testing.assert_close(again, adapted, atol=0, rtol=0)


def test_only_the_language_model_is_trained(policy: LMMPolicy) -> None:
    named = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert named
    assert all("lora" in name and "visual" not in name for name in named)


def test_each_picture_goes_through_the_tower_once() -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=4))
    played = play(policy)
    scored(policy, played)
    scored(policy, played)
    distinct = {image.digest for t in played for image in t.images}
    assert policy.builder.vision.tower_calls == len(distinct)


def test_an_adapter_comes_back_from_disk(tmp_path: Path) -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=6))
    played = play(policy)
    wanted, _, _ = scored(policy, played)
    policy.save_adapter(tmp_path)
    other = adapted_policy("qwen2_5_vl", limits=policy.limits)
    with torch.no_grad():
        for parameter in other.trainable_parameters():
            parameter.zero_()
    other.load_adapter(tmp_path)
    found, _, _ = scored(other, played)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    assert LoRASettings.stored(tmp_path) == LoRASettings(rank=4)


def test_a_missing_adapter_and_a_missing_model_are_explained(tmp_path: Path) -> None:
    policy = adapted_policy("qwen2_5_vl")
    with pytest.raises(PolicyError, match="expected adapter weights"):
        policy.load_adapter(tmp_path)
    with pytest.raises(PolicyError, match="expected a processor"):
        LMMPolicy.load(tmp_path / "nowhere")


def test_kernels_that_are_not_installed_are_told(tmp_path: Path) -> None:
    policy = adapted_policy("qwen2_5_vl")
    policy.model.unload().save_pretrained(tmp_path)
    policy.renderer.processor.save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="expected what attention 'flash_attention_2' needs, got .*take 'sdpa'"):
        LMMPolicy.load(tmp_path, attention="flash_attention_2", dtype="bfloat16")


def test_a_checkpoint_folder_round_trips(tmp_path: Path) -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=6))
    with policy.reference():
        played = play(policy)
        wanted, _, _ = scored(policy, played)
    policy.model.unload().save_pretrained(tmp_path)
    policy.renderer.processor.save_pretrained(tmp_path)
    loaded = LMMPolicy.load(tmp_path, limits=policy.limits)
    assert [t.token_ids for t in play(loaded)] == [t.token_ids for t in played]
    found, _, _ = scored(loaded, played)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
