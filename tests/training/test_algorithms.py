from __future__ import annotations

import pytest
import torch
from bandit import GuessPolicy, GuessTask, Scores, guess_questions

from agents.trajectory import Completion, FinishReason, Group, Trajectory, Turn
from training.algorithms import GRPO
from training.batch import TokenBatch, collate


def trajectory(reward: float) -> Trajectory:
    """Two prompt tokens, one sampled, one observed, two sampled."""
    turns = (
        Turn((1, 2), (), Completion("x", (3,), (-0.1,), FinishReason.STOP), 0.0, "text_search", True),
        Turn((4,), (), Completion("y", (5, 6), (-0.2, -0.3), FinishReason.STOP), reward, "answer", True),
    )
    return Trajectory("q", turns, True, False, "answered", reward, {}, {}, "y")


def batch(ref_logprobs: torch.Tensor | None = None) -> TokenBatch:
    return TokenBatch(
        inputs={},
        loss_mask=torch.tensor([[False, True, True], [False, True, False]]),
        old_logprobs=torch.tensor([[0.0, 0.5, 0.25], [0.0, 0.5, 0.0]]).clamp(min=1e-9).log(),
        advantages=torch.tensor([[0.0, 1.0, 1.0], [0.0, -1.0, 0.0]]),
        ref_logprobs=ref_logprobs,
    )


SCORES = Scores(
    torch.tensor([[0.0, 0.55, 0.5], [0.0, 0.5, 0.0]]).clamp(min=1e-9).log().requires_grad_(),
    torch.tensor([[9.0, 0.3, 0.6], [9.0, 0.9, 9.0]]),
)


def test_credit_lies_on_sampled_tokens_only() -> None:
    (good, bad) = GRPO(advantage_scale="none").advantages([Group("q", (trajectory(1.0), trajectory(0.0)))])[0]
    assert good.advantages.tolist() == [0.0, 0.0, 0.5, 0.0, 0.5, 0.5]
    assert bad.advantages.tolist() == [0.0, 0.0, -0.5, 0.0, -0.5, -0.5]


def test_groups_are_credited_apart() -> None:
    groups = [Group("p", (trajectory(1.0), trajectory(0.0))), Group("q", (trajectory(5.0), trajectory(3.0)))]
    credited = GRPO(advantage_scale="none").advantages(groups)
    assert [[example.advantages.max() for example in group] for group in credited] == [[0.5, 0.0], [1.0, 0.0]]


def test_loss_by_hand() -> None:
    terms = GRPO(clip_low=0.2, clip_high=0.2).loss(SCORES, batch(), token_count=4.0)
    # ratios 1.1, 2 (clipped to 1.2) and 1: -(1.1 + 1.2 - 1) / 4
    assert terms.loss.item() == pytest.approx(-1.3 / 4)
    assert {name: value.item() for name, value in terms.sums.items()} == pytest.approx(
        {"loss/policy": -1.3, "loss/total": -1.3, "policy/clip_fraction": 1.0, "policy/entropy": 1.8}
    )


def test_loss_with_a_reference_by_hand() -> None:
    grpo = GRPO(kl_coefficient=0.5)
    same = SCORES.logprobs.detach()
    reference = torch.where(
        torch.tensor([[False, False, True], [False] * 3]), same + torch.log(torch.tensor(2.0)), same
    )
    terms = grpo.loss(SCORES, batch(reference), token_count=2.0)
    # one token with d = ln 2
    assert terms.sums["policy/kl"].item() == pytest.approx(0.3068528, abs=1e-6)
    assert terms.loss.item() == pytest.approx((-1.3 + 0.5 * 0.3068528) / 2)


def test_loss_with_a_correction_by_hand() -> None:
    grpo = GRPO(correction="token", correction_cap=1.5)
    weights = grpo.weights(SCORES.logprobs, batch())
    # the trainer says them 1.1, 2 and 1 times as likely as the sampler
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.1, 1.5], [0.0, 1.0, 0.0]]))
    corrected = batch().corrected(SCORES.logprobs.detach(), weights)
    terms = grpo.loss(SCORES, corrected, token_count=4.0)
    # every ratio to the trainer's own policy is 1: -(1.1 + 1.5 - 1) / 4
    assert terms.loss.item() == pytest.approx(-1.6 / 4)
    assert terms.sums["policy/importance_weight"].item() == pytest.approx(3.6)
    assert terms.sums["policy/importance_capped"].item() == 1.0
    assert GRPO().weights(SCORES.logprobs, batch()) is None


def test_the_reference_is_asked_for_only_when_it_has_a_weight() -> None:
    assert not GRPO().needs_reference
    assert GRPO(kl_coefficient=0.01).needs_reference
    with pytest.raises(ValueError, match="ref_logprobs"):
        GRPO(kl_coefficient=0.01).loss(SCORES, batch(), token_count=1.0)


def test_what_is_logged_is_what_is_announced() -> None:
    for grpo in (GRPO(), GRPO(kl_coefficient=0.1), GRPO(correction="sequence")):
        made = batch(torch.zeros(2, 3))
        if (weights := grpo.weights(SCORES.logprobs, made)) is not None:
            made = made.corrected(SCORES.logprobs.detach(), weights)
        terms = grpo.loss(SCORES, made, token_count=1.0)
        assert set(terms.sums) == set(grpo.logged)


def test_one_batch_and_its_rows_give_the_same_loss_and_gradient() -> None:
    policy = GuessPolicy()
    grpo = GRPO()
    groups = GuessTask(policy, guess_questions()).rollout(
        guess_questions(), group_size=4, seed=1, earlier=[0] * len(guess_questions())
    )
    examples = [example for group in grpo.advantages(groups) for example in group]
    count = float(sum(example.sampled_tokens for example in examples))

    def gradient(parts: list[list]) -> torch.Tensor:
        policy.scorer.zero_grad()
        for part in parts:
            made = collate(part, policy, device=torch.device("cpu"))
            grpo.loss(policy.scorer(made.inputs, made.loss_mask, 1.0), made, token_count=count).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in policy.trainable_parameters()])

    torch.testing.assert_close(gradient([examples]), gradient([[example] for example in examples]))
