"""Credit and loss of every algorithm, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bandit import GuessPolicy, GuessTask, Scores, guess_questions

from agents.trajectory import Completion, FinishReason, Group, Trajectory, Turn
from training.algorithms import PRESETS, Algorithm, StateValues, UpdateSize
from training.algorithms.credit import FatalFailures, Overlong
from training.algorithms.policy_gradient import Correction
from training.algorithms.presets import cispo, grpo, gspo, ppo, reinforce_pp, rloo
from training.batch import CriticBatch, Example, TokenBatch, collate


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


SIZE = UpdateSize(1.0, 1.0)


def alone(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums over the only rank."""
    return dict(sums)


def credited(algorithm: Algorithm, groups: Sequence[Group]) -> list[list[Example]]:
    """By an algorithm whose critic, if it has one, thinks nothing of anything."""
    worthless = [
        [StateValues(np.zeros(sum(one.loss_mask), dtype=np.float32), 0.0) for one in group.trajectories]
        for group in groups
    ]
    return algorithm.advantages(groups, values=worthless, total=alone)


SCORES = Scores(
    torch.tensor([[0.0, 0.55, 0.5], [0.0, 0.5, 0.0]]).clamp(min=1e-9).log().requires_grad_(),
    torch.tensor([[9.0, 0.3, 0.6], [9.0, 0.9, 9.0]]),
)


def test_credit_lies_on_sampled_tokens_only() -> None:
    (good, bad) = credited(grpo(advantage_scale="none"), [Group("q", (trajectory(1.0), trajectory(0.0)))])[0]
    assert good.advantages.tolist() == [0.0, 0.0, 0.5, 0.0, 0.5, 0.5]
    assert bad.advantages.tolist() == [0.0, 0.0, -0.5, 0.0, -0.5, -0.5]


def test_groups_are_credited_apart() -> None:
    groups = [Group("p", (trajectory(1.0), trajectory(0.0))), Group("q", (trajectory(5.0), trajectory(3.0)))]
    found = credited(grpo(advantage_scale="none"), groups)
    assert [[example.advantages.max() for example in group] for group in found] == [[0.5, 0.0], [1.0, 0.0]]


def test_loss_by_hand() -> None:
    terms = grpo().loss(SCORES, batch(), size=UpdateSize(4.0, 2.0))
    # ratios 1.1, 2 (clipped to 1.2) and 1: -(1.1 + 1.2 - 1) / 4
    assert terms.loss.item() == pytest.approx(-1.3 / 4)
    assert {name: value.item() for name, value in terms.sums.items()} == pytest.approx(
        {"loss/policy": -1.3, "loss/total": -1.3, "policy/clip_fraction": 1.0, "policy/entropy": 1.8}
    )


def test_loss_with_a_reference_by_hand() -> None:
    algorithm = grpo(kl_coefficient=0.5)
    same = SCORES.logprobs.detach()
    reference = torch.where(
        torch.tensor([[False, False, True], [False] * 3]), same + torch.log(torch.tensor(2.0)), same
    )
    terms = algorithm.loss(SCORES, batch(reference), size=UpdateSize(2.0, 2.0))
    # one token with d = ln 2
    assert terms.sums["policy/kl"].item() == pytest.approx(0.3068528, abs=1e-6)
    assert terms.loss.item() == pytest.approx((-1.3 + 0.5 * 0.3068528) / 2)


def test_loss_with_a_correction_by_hand() -> None:
    algorithm = grpo(correction=Correction("token", 1.5))
    weights = algorithm.weights(SCORES.logprobs, batch())
    # the trainer says them 1.1, 2 and 1 times as likely as the sampler
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.1, 1.5], [0.0, 1.0, 0.0]]))
    corrected = batch().corrected(SCORES.logprobs.detach(), weights)
    terms = algorithm.loss(SCORES, corrected, size=UpdateSize(4.0, 2.0))
    # every ratio to the trainer's own policy is 1: -(1.1 + 1.5 - 1) / 4
    assert terms.loss.item() == pytest.approx(-1.6 / 4)
    assert terms.sums["policy/importance_weight"].item() == pytest.approx(3.6)
    assert terms.sums["policy/importance_capped"].item() == 1.0
    assert grpo().weights(SCORES.logprobs, batch()) is None


def test_the_reference_is_asked_for_only_when_it_has_a_weight() -> None:
    assert not grpo().needs_reference
    assert grpo(kl_coefficient=0.01).needs_reference
    with pytest.raises(ValueError, match="ref_logprobs"):
        grpo(kl_coefficient=0.01).loss(SCORES, batch(), size=SIZE)


def test_what_is_logged_is_what_is_announced() -> None:
    for algorithm in (grpo(), grpo(kl_coefficient=0.1), grpo(correction=Correction("sequence")), ppo()):
        made = replace(batch(torch.zeros(2, 3)), critic=CriticBatch(torch.zeros(2, 3), torch.zeros(2, 3)))
        if (weights := algorithm.weights(SCORES.logprobs, made)) is not None:
            made = made.corrected(SCORES.logprobs.detach(), weights)
        terms = algorithm.loss(SCORES._replace(values=torch.zeros(2, 3)), made, size=SIZE)
        assert set(terms.sums) == set(algorithm.logged)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_one_batch_and_its_rows_give_the_same_loss_and_gradient(name: str) -> None:
    policy, algorithm = GuessPolicy(critic=True), PRESETS[name](kl_coefficient=0.1)
    questions = guess_questions()
    groups = GuessTask(policy, questions).rollout(questions, group_size=4, seed=1, earlier=[0] * len(questions))
    examples = [example for group in credited(algorithm, groups) for example in group]
    size = UpdateSize(float(sum(example.sampled_tokens for example in examples)), float(len(examples)))

    def gradient(parts: list[list[Example]]) -> torch.Tensor:
        policy.scorer.zero_grad()
        for part in parts:
            made = collate(part, policy, device=torch.device("cpu"))
            made = made.with_reference(made.old_logprobs - 0.1)
            scores = policy.scorer(made.inputs, made.loss_mask, 1.0)
            algorithm.loss(scores, made, size=size).loss.backward()
        slopes = [p.grad for p in policy.trainable_parameters() if p.grad is not None]
        return torch.cat([slope.flatten() for slope in slopes])

    whole = gradient([examples])
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close(whole, gradient([[example] for example in examples]), rtol=1e-4, atol=1e-6)


def played(*rewards: float, tokens: int = 1, failed: Sequence[int] = (), truncated: bool = False) -> Trajectory:
    """Turns of one observed token and some sampled ones, with these rewards; the tool failed in some."""
    turns = tuple(
        Turn(
            (1,),
            (),
            Completion("x", (2,) * tokens, (-0.5,) * tokens, FinishReason.STOP),
            reward,
            "x",
            True,
            k in failed,
        )
        for k, reward in enumerate(rewards)
    )
    return Trajectory("q", turns, not truncated, truncated, "answered", rewards[-1], {}, {}, "y")


def of_turns(example: Example) -> list[float]:
    """The advantage of each turn's last token."""
    ends = np.cumsum([len(turn) for turn in example.trajectory.turns]) - 1
    return [round(float(value), 5) for value in example.advantages[ends]]


def test_a_price_paid_for_an_earlier_search_does_not_weigh_on_what_is_said_after_it() -> None:
    """Searching costs 0.1 when it is done. With it the answer is right, without it wrong."""
    searched, guessed = played(-0.1, 1.0), played(0.0)
    ((one, other),) = credited(grpo(advantage_scale="none", returns="to_go"), [Group("q", (searched, guessed))])
    # returns 0.9 and 0, mean 0.45: the search is credited with 0.9 - 0.45, the answer with 1 - 0.45
    assert of_turns(one) == [0.45, 0.55]
    assert of_turns(other) == [-0.45]
    ((one, _),) = credited(grpo(advantage_scale="none"), [Group("q", (searched, guessed))])
    assert of_turns(one) == [0.45, 0.45]


def test_rewards_to_go_are_divided_as_the_advantage_is() -> None:
    ((one, other),) = credited(grpo(returns="to_go"), [Group("q", (played(-0.1, 1.0), played(0.0)))])
    deviation = 0.9 / 2**0.5 + 1e-6  # of 0.9 and 0, divisor 1
    assert of_turns(one) == pytest.approx([0.45 / deviation, 0.55 / deviation], abs=1e-5)
    assert of_turns(other) == pytest.approx([-0.45 / deviation], abs=1e-5)


def test_an_episode_is_compared_with_the_others_alone() -> None:
    ((a, b, c),) = credited(rloo(), [Group("q", (played(1.0), played(0.5), played(0.0)))])
    assert [of_turns(one) for one in (a, b, c)] == [[0.75], [0.0], [-0.75]]


def test_advantages_are_normalised_over_the_batch_but_for_groups_without_signal() -> None:
    groups = [
        Group("p", (played(1.0), played(0.0))),
        Group("q", (played(3.0), played(0.0))),
        Group("r", (played(1.0), played(1.0))),
    ]
    found = [[of_turns(one)[0] for one in group] for group in credited(reinforce_pp(), groups)]
    spread = ((0.5**2 + 1.5**2) / 2) ** 0.5
    assert found == [
        pytest.approx([0.5 / spread, -0.5 / spread], abs=1e-5),
        pytest.approx([1.5 / spread, -1.5 / spread], abs=1e-5),
        [0.0, 0.0],
    ]
    flat = [[of_turns(one)[0] for one in group] for group in credited(reinforce_pp(baseline="batch"), groups)]
    returns = np.array([1.0, 0.0, 3.0, 0.0, 1.0, 1.0])
    assert np.concatenate(flat) == pytest.approx((returns - returns.mean()) / returns.std(), abs=1e-5)
    # a group that earned nothing at all is below the mean like any other
    apart = [Group("p", (played(0.0), played(0.0))), Group("q", (played(1.0), played(1.0)))]
    found = [[of_turns(one)[0] for one in group] for group in credited(reinforce_pp(baseline="batch"), apart)]
    assert found == [pytest.approx([-1.0, -1.0], abs=1e-5), pytest.approx([1.0, 1.0], abs=1e-5)]


def test_a_long_episode_loses_up_to_one() -> None:
    overlong = Overlong(longest=10, margin=4)
    assert [overlong.reward(tokens) for tokens in (5, 6, 7, 8, 9, 10, 11)] == [0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0]
    algorithm = grpo(advantage_scale="none", overlong=overlong)
    ((short, long),) = credited(algorithm, [Group("q", (played(1.0), played(1.0, tokens=8)))])
    assert (of_turns(short), of_turns(long)) == ([0.25], [-0.25])


def test_searches_that_fail_again_and_again_are_not_held_against_the_policy() -> None:
    fatal = played(0.0, 0.0, 0.0, 0.0, failed=(0, 1))
    healthy = played(0.0, 0.0, 0.0, 1.0, failed=(0, 2))
    algorithm = grpo(advantage_scale="none", fatal=FatalFailures(2))
    ((spoilt, fine),) = credited(algorithm, [Group("q", (fatal, healthy))])
    assert of_turns(spoilt) == [0.0] * 4
    assert spoilt.mask.tolist() == [False, True, False, True, False, False, False, False]
    assert of_turns(fine) == [0.5] * 4 and fine.sampled_tokens == 4
    ((spoilt, _),) = credited(
        algorithm, [Group("q", (replace(fatal, turns=played(0, 0, 2.0, 0, failed=(0, 1)).turns), healthy))]
    )
    assert of_turns(spoilt) == [0.5] * 4  # what was good stays good; its last turns are left out of the loss
    assert spoilt.sampled_tokens == 2


def test_every_way_to_add_up_by_hand() -> None:
    """Rows with losses (-1.1, -1.2) and (1)."""
    size = UpdateSize(tokens=6.0, trajectories=4.0)

    def loss(**how: Any) -> float:
        return grpo(**how).loss(SCORES, batch(), size=size).loss.item()

    assert loss() == pytest.approx(-1.3 / 6)
    assert loss(aggregation="episode") == pytest.approx((-2.3 / 2 + 1.0) / 4)
    assert loss(aggregation="constant", episode_tokens=10.0) == pytest.approx(-1.3 / 40)


def test_one_ratio_for_an_episode_by_hand() -> None:
    size = UpdateSize(tokens=3.0, trajectories=2.0)
    terms = gspo(clip_low=0.1, clip_high=10.0).loss(SCORES, batch(), size=size)
    # ratios of the first row's tokens 1.1 and 2: their geometric mean weighs both
    ratio = (1.1 * 2.0) ** 0.5
    assert terms.loss.item() == pytest.approx((-ratio + 1.0) / 2)
    assert gspo(clip_low=0.1, clip_high=0.2).loss(SCORES, batch(), size=size).loss.item() == pytest.approx(
        (-1.2 + 1) / 2
    )


def test_the_gradient_of_a_sequence_ratio_is_that_of_its_definition() -> None:
    made = batch()
    ours, plain = (SCORES.logprobs.detach().clone().requires_grad_() for _ in range(2))
    size = UpdateSize(tokens=3.0, trajectories=2.0)
    gspo(clip_low=1.0, clip_high=9.0).loss(Scores(ours, SCORES.entropy), made, size=size).loss.backward()
    total = torch.zeros(())
    for row in range(2):
        mask = made.loss_mask[row]
        ratio = (plain[row][mask] - made.old_logprobs[row][mask]).mean().exp()
        total = total - ratio * made.advantages[row][mask][0] / 2
    total.backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_weighted_log_probabilities_by_hand() -> None:
    scores = Scores(SCORES.logprobs.detach().clone().requires_grad_(), SCORES.entropy)
    terms = cispo(clip_high=0.5).loss(scores, batch(), size=UpdateSize(3.0, 2.0))
    terms.loss.backward()
    # weights 1.1, 2 cut at 1.5, and 1; the cut token keeps its gradient
    assert scores.logprobs.grad is not None
    torch.testing.assert_close(scores.logprobs.grad, torch.tensor([[0.0, -1.1, -1.5], [0.0, 1.0, 0.0]]) / 3)
    assert float(terms.sums["policy/clip_fraction"]) == 1.0


def by_definition(
    rewards: Sequence[float], values: Sequence[float], last: float, steps: Sequence[tuple[float, float]]
) -> list[float]:
    """Σ over l of (product of the discounts and decays before) times the surprise at t + l."""
    following = [*values[1:], last]
    surprises = [r + g * n - v for r, g, n, v in zip(rewards, (g for g, _ in steps), following, values, strict=True)]
    found = []
    for start in range(len(values)):
        weight, total = 1.0, 0.0
        for place in range(start, len(values)):
            total += weight * surprises[place]
            weight *= steps[place][0] * steps[place][1]
        found.append(total)
    return found


@pytest.mark.parametrize("truncated", [False, True])
def test_credit_by_a_critic_is_that_of_the_definition(truncated: bool) -> None:
    """Two turns of two tokens each; 0.9 and 0.8 within a turn, 0.7 and 0.6 between them."""
    algorithm = ppo(token_discount=0.9, token_decay=0.8, turn_discount=0.7, turn_decay=0.6)
    episode = played(-0.1, 1.0, tokens=2, truncated=truncated)
    worth = StateValues(np.array([0.2, 0.3, 0.6, 0.7], dtype=np.float32), 0.5)
    ((example,),) = algorithm.advantages([Group("q", (episode,))], values=[[worth]], total=alone)
    within, across = (0.9, 0.8), (0.7, 0.6)
    # an episode that was cut goes on in the critic's eyes, one that ended does not
    expected = np.array(
        by_definition(
            [0.0, -0.1, 0.0, 1.0], [0.2, 0.3, 0.6, 0.7], 0.5 if truncated else 0.0, [within, across, within, across]
        )
    )
    assert example.critic is not None
    assert example.critic.returns[example.mask] == pytest.approx(expected + worth.sampled, abs=1e-6)
    assert example.critic.old_values[example.mask] == pytest.approx(worth.sampled)
    whitened = (expected - expected.mean()) / (expected.std() + 1e-6)
    assert example.advantages[example.mask] == pytest.approx(whitened, abs=1e-5)
    assert not example.advantages[~example.mask].any()


def test_the_loss_of_a_critic_by_hand() -> None:
    critic = CriticBatch(
        old_values=torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.5, 0.0]]),
        returns=torch.tensor([[9.0, 1.0, 1.0], [9.0, 0.0, 9.0]]),
    )
    values = torch.tensor([[7.0, 0.6, 0.9], [7.0, 0.4, 7.0]])
    terms = ppo(value_coefficient=0.5, value_clip=0.2).loss(
        SCORES._replace(values=values), replace(batch(), critic=critic), size=UpdateSize(3.0, 2.0)
    )
    # 0.9 moved further than 0.2 from 0.5: it counts as 0.7
    value_sum = 0.5 * (0.4**2 + 0.3**2 + 0.4**2)
    assert float(terms.sums["loss/value"]) == pytest.approx(value_sum)
    assert terms.loss.item() == pytest.approx((-1.3 + 0.5 * value_sum) / 3)
    assert float(terms.sums["critic/error_square"]) == pytest.approx(0.4**2 + 0.1**2 + 0.4**2)
    assert float(terms.sums["critic/value"]) == pytest.approx(1.9)


def test_a_critic_is_asked_for_where_it_is_missing() -> None:
    with pytest.raises(ValueError, match="expected a critic's values, got none"):
        ppo().advantages([Group("q", (played(1.0),))], values=None, total=alone)
    with pytest.raises(ValueError, match="load the policy with a critic"):
        ppo().loss(SCORES, batch(), size=SIZE)
