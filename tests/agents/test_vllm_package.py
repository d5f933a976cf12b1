"""The engine of vLLM with the package itself, where it is installed: any build will do, that for processors too.

The policy is loaded from a folder, as users load one, and so is vLLM's copy of it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import stand_in_vllm as stand_in
import torch
from families import FAMILIES
from test_lmm import play, replies, said
from test_vllm import LIMITS, Counter, break_off, changed, close_to_the_trainer, requests

from agents.engines.contract import SamplingLimits
from agents.engines.vllm import VLLMSettings
from agents.lmm import LMMPolicy
from agents.lora import LoRASettings
from agents.policy import Reply, Request
from agents.rollout import RolloutLimits, rollout
from agents.trajectory import FinishReason
from agents.workflows import Script
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import PolicyError
from mmsearch_env.worlds import load_world

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="the package vllm is not installed"),
    # vLLM and what it imports, not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


def loaded(folder: Path, engine: VLLMSettings | None = None) -> LMMPolicy:
    """A policy whose adapter already changes what the model says."""
    policy = LMMPolicy.load(
        folder, lora=LoRASettings(rank=4), seed=1, engine=engine, limits=LIMITS, max_context_tokens=1024
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return policy


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family."""
    folder = tmp_path_factory.mktemp(request.param)
    for part in FAMILIES[request.param]():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def started(folder: Path) -> LMMPolicy:
    """Started once for each family, all in this process."""
    # GiB. A build for processors would else count what the engines before took against this one's share.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    return loaded(folder, VLLMSettings(str(folder), memory=0.15, rows=8))


@pytest.fixture
def policy(started: LMMPolicy) -> Iterator[LMMPolicy]:
    """The same with the limits and weights it began with."""
    kept = [parameter.detach().clone() for parameter in started.trainable_parameters()]
    yield started
    started.limits = LIMITS
    with torch.no_grad():
        for parameter, before in zip(started.trainable_parameters(), kept, strict=True):
            parameter.copy_(before)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_trainer_scores_what_vllm_said(policy: LMMPolicy, temperature: float) -> None:
    """Three turns with pictures in each, one row with a scripted beginning; with other weights; with none."""
    policy.limits = SamplingLimits(max_new_tokens=12, temperature=temperature)
    script = Script("<answer>", reason_end="</reason>")
    before = play(policy, script=script)
    close_to_the_trainer(policy, before)
    changed(policy)
    after = play(policy, script=script)
    close_to_the_trainer(policy, after)
    assert [one.old_logprobs for one in before] != [one.old_logprobs for one in after]
    with policy.reference():
        close_to_the_trainer(policy, play(policy))


def test_likeliest_words_are_those_of_transformers(policy: LMMPolicy, folder: Path) -> None:
    ours = loaded(folder)
    ours.limits = policy.limits = SamplingLimits(max_new_tokens=12, temperature=0.0)
    for one, other in zip(play(ours), play(policy), strict=True):
        assert one.token_ids == other.token_ids
        assert one.old_logprobs == pytest.approx(other.old_logprobs, abs=1e-4)
        assert [t.completion.finish_reason for t in one.turns] == [t.completion.finish_reason for t in other.turns]


def test_more_is_asked_than_is_read_at_once(policy: LMMPolicy) -> None:
    """Eight different prompts of some 800 tokens; a seed is drawn from as where there is room for all."""
    asked = [Request((), (said(f"{seed} is it so? " * 90),), (), seed=seed) for seed in range(8)]
    together = [reply.completion.token_ids for reply in replies(policy, asked)]
    assert together == [replies(policy, [request])[0].completion.token_ids for request in asked]


def test_control_and_picture_tokens_are_never_sampled(policy: LMMPolicy) -> None:
    policy.limits = SamplingLimits(max_new_tokens=64, temperature=2.0)
    played = play(policy)
    banned = policy.renderer.control_ids - policy.renderer.end_ids
    assert not banned & {token for one in played for turn in one.turns for token in turn.completion.token_ids}
    close_to_the_trainer(policy, played)


def test_a_seed_decides_whatever_else_is_sampled(policy: LMMPolicy) -> None:
    together = [reply.completion.token_ids for reply in replies(policy, requests(range(6)))]
    alone = [replies(policy, [request])[0].completion.token_ids for request in requests(range(6))]
    assert together == alone
    assert len(set(together)) == 6


def test_requests_join_while_others_are_sampled(policy: LMMPolicy) -> None:
    desk = Counter()
    policy.serve(desk, most=2)
    alone = [reply.completion.token_ids for reply in replies(policy, requests([0, 1, 2]))]
    served = [desk.answers[number] for number in range(3)]
    assert [one.completion.token_ids for one in served if isinstance(one, Reply)] == alone
    assert desk.begun[:2] == [(0, 0), (1, 0)] and desk.begun[2][1] > 0


def test_what_was_begun_is_given_up_after_an_error(policy: LMMPolicy) -> None:
    with pytest.raises(ZeroDivisionError):
        break_off(policy)
    close_to_the_trainer(policy, play(policy))


def test_pictures_that_vllm_lays_out_differently_are_refused(
    policy: LMMPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy.renderer, "folded", lambda token_ids, images: list(token_ids))
    with pytest.raises(PolicyError, match="expected vLLM to expand pictures into the"):
        policy.generate(requests([0]))


@pytest.mark.parametrize("batching", ["together", "continuous"])
def test_episodes_are_played(batching: Literal["together", "continuous"], root: Path) -> None:
    """A trained model, which says the tags that end a completion; each episode as transformers plays it."""
    folder = root / "agents" / "checkpoints" / "atlas-tiny"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    greedy = SamplingLimits(max_new_tokens=64, temperature=0.0)
    played = []
    for engine in (VLLMSettings(str(folder), memory=0.15, rows=4), None):
        policy = loaded(folder, engine)
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter.mul_(0.2)  # or it would say nothing that can be read
        policy.limits = greedy
        groups = rollout(
            policy,
            lambda: MMSearchEnv(prompts="brief"),
            load_world("atlas").questions("test")[:12],
            group_size=1,
            seed=0,
            limits=RolloutLimits(batching=batching),
        )
        played.append([one for group in groups for one in group.trajectories])
    theirs, ours = played
    assert sum(len(one.turns) for one in theirs) > len(theirs)
    assert {turn.completion.finish_reason for one in theirs for turn in one.turns} == {FinishReason.STOP}
    assert [one.token_ids for one in theirs] == [one.token_ids for one in ours]
    assert [one.reward_terms for one in theirs] == [one.reward_terms for one in ours]


def test_the_stand_in_has_the_signatures_of_the_package() -> None:
    real = importlib.import_module("vllm")
    for name in ("EngineArgs", "SamplingParams"):
        theirs = inspect.signature(getattr(real, name)).parameters
        for item in dataclasses.fields(getattr(stand_in, name)):
            assert item.name in theirs, f"{name}.{item.name}"
    for name, method in inspect.getmembers(stand_in.LLMEngine, inspect.isfunction):
        if not name.startswith("_"):
            ours = list(inspect.signature(method).parameters)
            assert list(inspect.signature(getattr(real.LLMEngine, name)).parameters)[: len(ours)] == ours
