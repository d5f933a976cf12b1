"""Supervised training: what it learns from, and that it learns."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))

from families import adapted_policy, qwen2_5_vl

from agents.lmm import LMMPolicy
from agents.trajectory import Completion, FinishReason, Trajectory, Turn
from mmsearch_env.images import Image
from mmsearch_env.messages import ImagePart, Message, TextPart
from training.engine import AdamSettings, Place
from training.sft import SupervisedPlan, fit, token_weights


def lesson(policy: LMMPolicy, asked: str, answer: str) -> Trajectory:
    """A picture, a question, an answer."""
    picture = Image(np.zeros((56, 56, 3), dtype=np.uint8))
    prompt = policy.renderer.prompt([Message("user", (ImagePart(picture), TextPart(asked)))])
    ids = tuple(policy.renderer.text_ids(answer))
    completion = Completion(answer, ids, (0.0,) * len(ids), FinishReason.STOP)
    turn = Turn(prompt.token_ids, prompt.images, completion, 0.0, "answer", True)
    return Trajectory("q", (turn,), True, False, "", 0.0, {}, {}, "")


@pytest.fixture
def policy() -> LMMPolicy:
    return adapted_policy("qwen2_5_vl")


def test_what_was_said_weighs_one_and_control_tokens_nothing(policy: LMMPolicy) -> None:
    example = lesson(policy, "what", "<answer>this</answer>")
    weights = token_weights(example, policy, 0.25)
    never = policy.renderer.control_ids - policy.renderer.end_ids
    for position, (token, said) in enumerate(zip(example.token_ids, example.loss_mask, strict=True)):
        wanted = 0.0 if token in never or position == 0 else 1.0 if said else 0.25
        assert weights[position] == wanted
    assert {0.0, 0.25, 1.0} == set(weights.tolist())


def test_nothing_read_is_learnt_by_default(policy: LMMPolicy) -> None:
    example = lesson(policy, "what", "<answer>this</answer>")
    weights = token_weights(example, policy, 0.0)
    assert (weights > 0).tolist() == list(example.loss_mask)


def test_it_learns_what_it_is_shown(place: Place) -> None:
    policy = LMMPolicy(*qwen2_5_vl())
    shown = [lesson(policy, "one", "<answer>eins</answer>"), lesson(policy, "two", "<answer>zwei</answer>")]
    losses: list[float] = []
    plan = SupervisedPlan(updates=60, learning_rate=5e-3, warmup=5)
    fit(policy, place, lambda update: shown, plan, adam=AdamSettings(), on_update=lambda n, loss: losses.append(loss))
    assert losses[0] > 3.0
    assert losses[-1] < 0.3


def test_small_forward_passes_give_the_same_updates(place: Place) -> None:
    found = []
    for budget in (4096, 40):
        policy = adapted_policy("qwen2_5_vl")
        shown = [lesson(policy, "one", "<answer>eins</answer>"), lesson(policy, "two two", "<answer>zwo</answer>")]
        losses: list[float] = []
        plan = SupervisedPlan(updates=4, learning_rate=1e-2, warmup=1, token_budget=budget, observed_weight=0.5)
        fit(
            policy, place, lambda u, s=shown: s, plan, adam=AdamSettings(), on_update=lambda n, x, k=losses: k.append(x)
        )
        found.append(losses)
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), atol=1e-5, rtol=1e-5)


def test_a_model_without_adapter_is_trained_whole(place: Place) -> None:
    """The tower too: its pictures are then encoded afresh in every pass."""
    policy = LMMPolicy(*qwen2_5_vl())
    shown = [lesson(policy, "one", "<answer>eins</answer>")]
    tower = next(p for name, p in policy.model.named_parameters() if "visual" in name)
    before = tower.detach().clone()
    fit(policy, place, lambda u: shown, SupervisedPlan(updates=3, learning_rate=1e-2, warmup=1), adam=AdamSettings())
    assert not torch.equal(before, tower.detach())
    assert policy.builder.vision.tower_calls == 0


def test_the_learning_rate_rises_and_falls() -> None:
    plan = SupervisedPlan(updates=100, learning_rate=1.0, warmup=10, decay_share=0.5)
    assert plan.rate(0) == pytest.approx(0.1)
    assert plan.rate(9) == plan.rate(50) == pytest.approx(1.0)
    assert plan.rate(75) == pytest.approx(0.55)
    assert plan.rate(99) == pytest.approx(0.1, abs=0.01)
    assert replace(plan, decay_share=0.0).rate(99) == pytest.approx(1.0)
