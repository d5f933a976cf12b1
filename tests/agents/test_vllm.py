"""The engine of vLLM, over a stand-in for the package: prompts, adapters, banned tokens, ends, log-probabilities."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import stand_in_vllm as stand_in
import torch
from families import FAMILIES, adapted_policy, noise
from test_lmm import CONVERSATIONS, play, replies, said, scored

from agents.engines import vllm
from agents.engines.contract import SamplingLimits, sampled
from agents.engines.vllm import VLLMSettings
from agents.lmm import LMMPolicy
from agents.policy import CannotReply, Reply, Request
from agents.rollout import RolloutLimits, rollout
from agents.trajectory import FinishReason, Turn
from agents.workflows import Script
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError, PolicyError
from mmsearch_env.worlds import load_world
from training import compose
from training.config.file import config_from_mapping, read_config

LIMITS = SamplingLimits(max_new_tokens=12)


@pytest.fixture(autouse=True)
def package() -> Iterator[None]:
    """The stand-in in the place of vllm."""
    with stand_in.installed():
        stand_in.MODELS.update(FAMILIES)
        yield


def policy_of(family: str = "qwen2_5_vl", *, rows: int = 256, **settings: Any) -> LMMPolicy:
    settings = {"limits": LIMITS, **settings}
    return adapted_policy(family, engine=VLLMSettings(model=family, rows=rows), **settings)


def engine() -> stand_in.LLMEngine:
    return stand_in.LLMEngine.started[-1]


def changed(policy: LMMPolicy) -> None:
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.5)


def requests(seeds: Sequence[int], message: int = 0) -> list[Request]:
    return [Request((), (CONVERSATIONS[seed % 3][message],), (), seed=seed) for seed in seeds]


def close_to_the_trainer(policy: LMMPolicy, played: Any) -> None:
    trainer, sampler, mask = scored(policy, played)
    assert mask.sum() > 60
    torch.testing.assert_close(trainer, sampler, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_trainer_scores_what_vllm_said(family: str, temperature: float) -> None:
    """Three turns with pictures in each, one row with a scripted beginning; and again with other weights."""
    policy = policy_of(family, limits=SamplingLimits(max_new_tokens=12, temperature=temperature))
    script = Script("<answer>", reason_end="</reason>")
    before = play(policy, script=script)
    close_to_the_trainer(policy, before)
    for said_now in (turn.completion for turn in before[1].turns):
        begun = policy.renderer.decode(said_now.forced_ids)
        assert begun.endswith("<answer>") and said_now.text.startswith(begun)
    changed(policy)
    after = play(policy, script=script)
    close_to_the_trainer(policy, after)
    assert [one.old_logprobs for one in before] != [one.old_logprobs for one in after]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_likeliest_words_are_those_of_transformers(family: str) -> None:
    """At temperature 0 both engines say the same, and give its log-probability at temperature 1."""
    greedy = SamplingLimits(max_new_tokens=12, temperature=0.0)
    ours, theirs = adapted_policy(family, limits=greedy), policy_of(family, limits=greedy)
    for one, other in zip(play(ours), play(theirs), strict=True):
        assert one.token_ids == other.token_ids
        assert one.old_logprobs == pytest.approx(other.old_logprobs, abs=1e-4)
        assert [t.completion.finish_reason for t in one.turns] == [t.completion.finish_reason for t in other.turns]


def test_pictures_are_given_unexpanded_under_their_digests() -> None:
    policy = policy_of()
    policy.generate(requests([0]))
    (prompt,) = engine().prompts
    image = CONVERSATIONS[0][0].images[0]
    (pad,) = policy.renderer.image_ids
    assert prompt["prompt_token_ids"].count(pad) == 1
    assert prompt["multi_modal_uuids"] == {"image": [image.digest]}
    assert prompt["multi_modal_data"]["image"][0].size == (image.width, image.height)
    policy.generate([Request((), (said("no picture"),), (), seed=0)])
    assert set(engine().prompts[-1]) == {"prompt_token_ids"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_two_pictures_side_by_side_are_folded_apart(family: str) -> None:
    policy = adapted_policy(family)
    prompt = policy.renderer.prompt([said("both", noise(2, 84, 56), noise(3, 112, 84))])
    folded = policy.renderer.folded(prompt.token_ids, prompt.images)
    slot = policy.renderer.tokenizer.encode(policy.renderer.image_slot, add_special_tokens=False)
    wide = [len(policy.renderer._image_ids(image)) for image in prompt.images]
    assert len(folded) == len(prompt.token_ids) - sum(wide) + 2 * len(slot)
    start = folded.index(slot[0])
    assert folded[start : start + 2 * len(slot)] == [*slot, *slot]
    first = prompt.token_ids[prompt.token_ids.index(policy.renderer._image_ids(prompt.images[0])[0])]
    assert policy.renderer.folded((first, *prompt.token_ids), prompt.images) == [first, *folded]
    with pytest.raises(ValueError, match="not in tuple"):
        policy.renderer.folded(prompt.token_ids, (*prompt.images, noise(4)))


def test_pictures_that_vllm_lays_out_differently_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    monkeypatch.setattr(policy.renderer, "folded", lambda token_ids, images: list(token_ids))
    with pytest.raises(PolicyError, match="expected vLLM to expand pictures into the"):
        policy.generate(requests([0]))


def test_the_engine_is_told_what_it_must_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    policy_of("qwen3_vl", rows=7, max_context_tokens=777)
    args = engine().args
    assert (args.logprobs_mode, args.generation_config) == ("processed_logprobs", "vllm")
    assert (args.dtype, args.max_model_len, args.max_num_seqs) == ("float32", 777, 7)
    assert (args.gpu_memory_utilization, args.max_lora_rank, args.distributed_executor_backend) == (0.4, 8, "uni")
    assert args.mm_processor_kwargs == {"size": {"shortest_edge": 64 * 64, "longest_edge": 160 * 160}}
    policy_of("internvl")
    assert engine().args.mm_processor_kwargs is None


def test_prompts_are_read_whole_where_random_numbers_cannot_be_wound_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, wanted in ((False, (False, 5000)), (True, (None, None))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        policy_of(max_context_tokens=5000)
        assert (engine().args.enable_chunked_prefill, engine().args.max_num_batched_tokens) == wanted


@pytest.mark.parametrize("rank", ["0", None])
def test_the_trainers_process_group_outlives_the_engine(monkeypatch: pytest.MonkeyPatch, rank: str | None) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    policy_of()
    assert engine().args.distributed_executor_backend == ("uni" if rank is None else "external_launcher")
    assert engine().engine_core._finalizer.alive == (rank is None)


def test_each_version_of_the_weights_has_an_adapter_of_its_own() -> None:
    policy = policy_of()
    policy.generate(requests([0, 1]))
    policy.generate(requests([2]))
    (first,) = engine().adapters.values()
    assert engine().events == ["adapter", "prefix", "encoder"]
    changed(policy)
    policy.generate(requests([0]))
    (second,) = engine().adapters.values()
    assert engine().events == ["adapter", "prefix", "encoder"] * 2
    assert first.lora_name != second.lora_name and first.lora_int_id != second.lora_int_id
    assert not Path(first.lora_path).exists() and not Path(second.lora_path).exists()


def test_the_reference_policy_samples_without_the_adapter() -> None:
    policy = policy_of()
    (adapted,) = replies(policy, requests([0]))
    with policy.reference():
        played = play(policy)
        close_to_the_trainer(policy, played)
    assert not engine().adapters
    assert replies(policy, requests([0]))[0].completion == adapted.completion


def test_an_adapter_that_could_not_be_loaded_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    with monkeypatch.context() as patch:
        patch.setattr(stand_in.LLMEngine, "add_lora", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            policy.generate(requests([0]))
    close_to_the_trainer(policy, play(policy))


def test_no_room_for_an_adapter_is_said_and_the_next_one_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    policy.generate(requests([0]))
    changed(policy)

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(policy._sampler, "_save_adapter", full)
        with pytest.raises(PolicyError, match=r"through .*No space left on device; make room there, or set TMPDIR"):
            policy.generate(requests([0]))
    close_to_the_trainer(policy, play(policy))
    assert len(engine().adapters) == 1


def test_control_and_picture_tokens_are_never_sampled() -> None:
    policy = policy_of(limits=SamplingLimits(max_new_tokens=64, temperature=2.0))
    played = play(policy)
    banned = policy.renderer.control_ids - policy.renderer.end_ids
    assert not banned & {token for one in played for turn in one.turns for token in turn.completion.token_ids}
    close_to_the_trainer(policy, played)


def leaning(policy: LMMPolicy, token: int) -> None:
    """Make a token likelier than what is likeliest at first, here and in the stand-in."""
    before, policy.limits = policy.limits, SamplingLimits(max_new_tokens=1, temperature=0.0)
    (reply,) = replies(policy, requests([0]))
    policy.limits = before
    for model in (policy.model.get_base_model(), engine()._model.get_base_model()):
        with torch.no_grad():
            model.lm_head.weight[token] = 1.5 * model.lm_head.weight[reply.completion.token_ids[0]]


def test_a_completion_ends_with_the_token_that_closes_a_tag() -> None:
    policy = policy_of()
    closing = policy.renderer.tokenizer.convert_tokens_to_ids("</answer>")
    leaning(policy, closing)
    found = [reply.completion for reply in replies(policy, requests(range(12)))]
    ended = [one for one in found if closing in one.token_ids]
    assert ended and len(ended) < len(found)
    assert all(one.token_ids.index(closing) == len(one.token_ids) - 1 for one in ended)
    assert all(one.text.endswith("</answer>") for one in ended)
    for one in found:
        stopped = one.token_ids[-1] in policy.renderer.end_ids or any(tag in one.text for tag in LIMITS.stop_tags)
        assert one.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)


def test_the_end_of_a_turn_is_kept_among_the_tokens_and_not_in_the_text() -> None:
    policy = policy_of()
    (end,) = policy.renderer.end_ids
    leaning(policy, end)
    found = [reply.completion for reply in replies(policy, requests(range(12)))]
    ended = [one for one in found if end in one.token_ids]
    assert ended
    for one in ended:
        assert one.token_ids.index(end) == len(one.token_ids) - 1 == len(one.logprobs) - 1
        assert one.finish_reason is FinishReason.STOP
        assert one.text == policy.renderer.decode(one.token_ids[:-1])


def test_a_completion_fills_what_room_is_left() -> None:
    request = Request((), (said("hi " * 40),), (), seed=0)
    limits = SamplingLimits(max_new_tokens=40)
    (free,) = replies(policy_of(limits=limits), [request])
    context = len(free.prompt_ids) + 20
    (cut,) = replies(policy_of(limits=limits, max_context_tokens=context), [request])
    assert cut.completion.token_ids == free.completion.token_ids[:20]
    assert engine().params[-1].max_tokens == 20


def test_nothing_else_ends_a_completion_and_no_tag_is_overlooked() -> None:
    """Neither the checkpoint's own end tokens do, nor is the text of a token left out because it is called special."""
    policy = policy_of()
    policy.generate(requests([0]))
    (params,) = engine().params
    assert (params.ignore_eos, params.skip_special_tokens) == (True, False)
    assert params.stop_token_ids == sorted(policy.renderer.end_ids) and params.stop == list(LIMITS.stop_tags)


def test_a_seed_decides_whatever_else_is_sampled() -> None:
    policy = policy_of(rows=2)
    together = [reply.completion for reply in replies(policy, requests(range(6)))]
    assert together == [replies(policy, [request])[0].completion for request in requests(range(6))]
    assert len({one.token_ids for one in together}) == 6


class Counter:
    """A desk at which one request waits, and a second and a third while the first is worked on."""

    def __init__(self) -> None:
        self.coming = [(number, request) for number, request in enumerate(requests([0, 1, 2]))]
        self.answers: dict[int, Reply | CannotReply] = {}
        self.begun: list[tuple[int, int]] = []

    def take(self, most: int) -> list[tuple[int, Request]]:
        taken = [self.coming.pop(0)] if self.coming and most > 0 else []
        self.begun += [(number, len(self.answers)) for number, _ in taken]
        return taken

    def answer(self, number: int, reply: Reply | CannotReply) -> None:
        self.answers[number] = reply

    def over(self) -> list[tuple[Turn, ...]]:
        return []


def test_requests_join_while_others_are_sampled() -> None:
    policy, desk = policy_of(), Counter()
    policy.serve(desk, most=2)
    alone = [reply.completion for reply in replies(policy, requests([0, 1, 2]))]
    served = [desk.answers[number] for number in range(3)]
    assert [one.completion for one in served if isinstance(one, Reply)] == alone
    assert desk.begun[:2] == [(0, 0), (1, 0)] and desk.begun[2][1] > 0


def test_an_episode_is_played_while_others_wait_for_their_searches() -> None:
    policy = policy_of(max_context_tokens=2048)
    groups = rollout(
        policy,
        lambda: MMSearchEnv(prompts="brief"),
        load_world("atlas").questions("test")[:2],
        group_size=2,
        seed=0,
        limits=RolloutLimits(batching="continuous"),
    )
    played = [one for group in groups for one in group.trajectories]
    assert sum(len(one.turns) for one in played) > 4
    close_to_the_trainer(policy, played)


def break_off(policy: LMMPolicy) -> None:
    """Raises ZeroDivisionError in the middle of a completion."""
    given = policy._asked(requests([0])[0])
    assert not isinstance(given, CannotReply)
    with policy._sampler.sampling(LIMITS) as sampling:
        sampling.add([given.sampled(0, policy.max_context_tokens)])
        sampling.step()
        raise ZeroDivisionError


def test_what_was_begun_is_given_up_after_an_error() -> None:
    policy = policy_of()
    with pytest.raises(ZeroDivisionError):
        break_off(policy)
    assert not engine().has_unfinished_requests()
    assert sampled(policy._sampler, [], LIMITS) == []


def test_a_completion_that_vllm_gave_up_is_no_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in.LLMEngine, "_reason", lambda *_: "error")
    with pytest.raises(PolicyError, match="that vLLM ended with 'error'"):
        policy_of().generate(requests([0]))


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_is_refused(temperature: float) -> None:
    policy = policy_of(limits=SamplingLimits(max_new_tokens=4, temperature=temperature))
    with pytest.raises(PolicyError, match=r"a temperature of 0 or from 0\.01 to 2\.0, got"):
        policy.generate(requests([0]))


def test_more_banned_tokens_than_vllm_takes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_MOST_BANNED", 3)
    with pytest.raises(PolicyError, match="expected at most 3 tokens that are never sampled, got 7"):
        policy_of()


def test_without_the_package_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(PolicyError, match=r"expected the package vllm.*pip install 'vllm==0\.33"):
        policy_of()


def test_an_engine_that_does_not_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(*_: Any) -> None:
        raise AttributeError("Failed to infer\n   device type" + 1000 * ".")

    monkeypatch.setattr(stand_in.LLMEngine, "__init__", no_gpu)
    with pytest.raises(PolicyError) as raised:
        policy_of(max_context_tokens=777)
    message = str(raised.value)
    assert message.startswith(
        "expected vLLM to start with 'qwen2_5_vl', got AttributeError: Failed to infer device type.."
    )
    assert "0.4 of the memory (rollout.engine_memory) for conversations of 777 tokens (rollout.max_con" in message
    assert len(message) < 700


def test_a_bare_model_is_refused() -> None:
    with pytest.raises(PolicyError, match="expected a model with a LoRA adapter, got a bare one"):
        LMMPolicy(*FAMILIES["qwen2_5_vl"](), engine=VLLMSettings("qwen2_5_vl"))


def test_a_recipe_chooses_the_engine() -> None:
    base = {"rollout": {"live_episodes": 9}}
    assert compose.sampling_engine(config_from_mapping(base)) is None
    chosen = {"rollout": {"live_episodes": 9, "engine": "vllm", "engine_memory": 0.25}, "policy": {"model": "a/b"}}
    assert compose.sampling_engine(config_from_mapping(chosen)) == VLLMSettings("a/b", 0.25, 9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("rollout.engine=sglang", r"rollout\.engine: expected 'hf' or 'vllm', got 'sglang'"),
        ("rollout.engine_memory=0.5", r"rollout\.engine_memory: expected 0\.4 with engine 'hf', got 0\.5"),
        ("rollout.engine=vllm rollout.staleness=1", r"rollout\.staleness: expected 0 with engine 'vllm', got 1"),
        (
            "rollout.engine=vllm policy.lora_rank=600",
            r"policy\.lora_rank: expected at most 512 with rollout",
        ),
        ("rollout.engine=vllm rollout.temperature=3", r"rollout\.temperature: expected a number from 0\.01 to 2 with"),
        ("rollout.engine=vllm evaluation.temperature=0.001", r"evaluation\.temperature: expected a number from 0\.01"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose.sampling_engine(read_config("qwen2_5_vl_7b", overrides.split()))
