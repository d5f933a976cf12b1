"""Which episodes an iteration plays, with which weights."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from bandit import GuessPolicy, GuessTask, guess_questions
from test_train import lines, recipe, run_of, task_of, weights

from agents.trajectory import Group
from mmsearch_env.errors import BudgetError, ConfigError
from mmsearch_env.questions import Question
from training.acting import Actor
from training.advantages import has_signal
from training.config.file import read_config
from training.engine import Engine, Place
from training.order import seed_of
from training.train import train


class Twin(GuessTask):
    """Plays with a copy of the weights, which it renews when it is told to; knows in which threads it played."""

    def __init__(self, policy: GuessPolicy, questions: Sequence[Question]) -> None:
        super().__init__(policy, questions)
        self.trained, self.player = policy, GuessPolicy()
        self.threads: list[bool] = []

    def catch_up(self) -> None:
        self.player.scorer.load_state_dict(self.trained.scorer.state_dict())

    def rollout(self, *arguments: Any, **how: Any) -> list[Group]:
        self.threads.append(threading.current_thread() is threading.main_thread())
        self.policy = self.player
        try:
            return super().rollout(*arguments, **how)
        finally:
            self.policy = self.trained


def twin_run(place: Place, **sections: Any) -> Any:
    return run_of(recipe(**sections), place, Twin(GuessPolicy(), guess_questions()))


def test_an_iteration_is_played_while_the_one_before_it_is_learnt_from(place: Place) -> None:
    run = twin_run(
        place, iterations=6, rollout={"questions_per_iteration": 6, "staleness": 1}, output={"save_every": 4}
    )
    train(run)
    assert [line["policy/staleness"] for line in lines(run)] == [0, 1, 1, 1, 0, 1]
    assert task_of(run).threads == [True, False, False, False, True, False]
    # what sampled is one update behind what learns, and the ratio knows
    assert [line["policy/logprob_gap"] > 1e-4 for line in lines(run)] == [False, True, True, True, False, True]
    run.actor.close()


def test_without_staleness_nothing_is_played_ahead(place: Place) -> None:
    settings: dict[str, Any] = {"iterations": 4, "rollout": {"questions_per_iteration": 6}}
    run, plain = twin_run(place, **settings), run_of(recipe(**settings), place)
    train(run)
    train(plain)
    assert torch.equal(weights(run), weights(plain))
    assert task_of(run).threads == [True] * 4


def test_what_is_played_ahead_is_played_with_the_weights_of_then(place: Place) -> None:
    """Two runs that differ in nothing but how fast they play."""
    found = []
    for _ in range(2):
        run = twin_run(place, iterations=5, rollout={"questions_per_iteration": 6, "staleness": 1})
        train(run)
        found.append(weights(run))
    assert torch.equal(*found)


def test_a_policy_learns_from_weights_that_are_behind(place: Place) -> None:
    run = twin_run(
        place,
        iterations=60,
        rollout={"questions_per_iteration": 12, "group_size": 8, "staleness": 1},
        algorithm={"correction": "token"},
        optimiser={"learning_rate": 0.05, "schedule": "cosine"},
    )
    train(run)
    assert task_of(run).evaluate(guess_questions()).overall.reward.mean == pytest.approx(0.95, abs=0.06)


def test_a_spent_budget_ends_what_is_played_ahead(place: Place) -> None:
    class Spending(Twin):
        def rollout(self, questions: Sequence[Question], **how: Any) -> list[Group]:
            if how["seed"] == seed_of(0, 3, 2):
                raise BudgetError("budget: expected at most 9 calls, got one more; raise the limit")
            return super().rollout(questions, **how)

    config = recipe(iterations=5, rollout={"questions_per_iteration": 6, "staleness": 1})
    run = run_of(config, place, Spending(GuessPolicy(), guess_questions()))
    with pytest.raises(BudgetError, match="at most 9 calls"):
        train(run)
    assert len(lines(run)) == 2


def actor_of(place: Place, task: GuessTask, **rollout: Any) -> Actor:
    config = recipe(rollout={"questions_per_iteration": 6, "group_size": 4, **rollout})
    return Actor(task, config, Engine(task.policy.scorer, place=place))


class Dull(GuessTask):
    """Some questions go the same way every time, whoever plays them."""

    def __init__(self, dull: Sequence[str]) -> None:
        super().__init__(GuessPolicy(), guess_questions())
        self.dull = set(dull)
        self.asked: list[list[str]] = []

    def rollout(self, questions: Sequence[Question], **how: Any) -> list[Group]:
        self.asked.append([question.id for question in questions])
        groups = super().rollout(questions, **how)
        return [
            Group(group.question_id, (group.trajectories[0],) * len(group.trajectories))
            if group.question_id in self.dull
            else group
            for group in groups
        ]


def teaches(group: Group) -> bool:
    return has_signal([one.episode_return for one in group.trajectories])


def test_places_without_signal_are_filled_with_other_questions(place: Place) -> None:
    dull = [question.id for question in guess_questions()[:8]]
    task = Dull(dull)
    acted = actor_of(place, task, refills=4).act(0)
    assert len(task.asked) > 1
    assert all(len(later) <= len(earlier) for earlier, later in zip(task.asked, task.asked[1:], strict=False))
    # all that was played is counted, only what teaches is learnt from
    assert len(acted.groups) == sum(map(len, task.asked))
    assert set(acted.learnt_from) <= set(range(6)) and all(map(teaches, acted.learnt_from.values()))
    alone = Actor(task, recipe(rollout={"questions_per_iteration": 6, "group_size": 4}), actor_of(place, task)._engine)
    assert len(acted.learnt_from) > sum(map(teaches, alone.act(0).learnt_from.values()))


def test_nothing_is_played_again_where_everything_teaches(place: Place) -> None:
    class Lively(GuessTask):
        asked = 0

        def rollout(self, questions: Sequence[Question], **how: Any) -> list[Group]:
            self.asked += 1
            groups = super().rollout(questions, **{**how, "group_size": 60})
            assert all(map(teaches, groups))
            return groups

    task = Lively(GuessPolicy(), guess_questions())
    assert len(actor_of(place, task, refills=3).act(0).groups) == 6
    assert task.asked == 1


def test_questions_that_nobody_got_right_are_played_on(place: Place) -> None:
    plain = actor_of(place, GuessTask(GuessPolicy(), guess_questions())).act(0)
    more = actor_of(place, GuessTask(GuessPolicy(), guess_questions()), extra_episodes=5).act(0)
    wrong = [all(one.success == 0.0 for one in group.trajectories) for group in plain.groups]
    assert 0 < sum(wrong) < len(wrong)
    for was_wrong, before, after in zip(wrong, plain.groups, more.groups, strict=True):
        assert after.trajectories[:4] == before.trajectories
        assert len(after.trajectories) == (9 if was_wrong else 4)
        assert len({one.token_ids for one in after.trajectories}) > 1 or not was_wrong


def test_the_price_of_a_search_grows_from_a_bonus(place: Place) -> None:
    config = recipe(
        iterations=6,
        rollout={"questions_per_iteration": 12, "group_size": 8, "first_penalty": -0.1, "penalty_iterations": 4},
    )
    run = run_of(config, place)
    train(run)
    assert [line["reward/search_penalty"] for line in lines(run)] == pytest.approx([-0.1, -0.05, 0.0, 0.05, 0.1, 0.1])
    searched = [line["episode/search_ratio"] for line in lines(run)]
    wanted = [
        line["episode/accuracy"] - price * ratio
        for line, price, ratio in zip(lines(run), [-0.1, -0.05, 0.0, 0.05, 0.1, 0.1], searched, strict=True)
    ]
    assert [line["reward/mean"] for line in lines(run)] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("rollout.staleness=1 output.save_every=1", "rollout.staleness: expected 0 with output.save_every"),
        ("rollout.staleness=1 rollout.refills=1", "rollout.refills: expected 0 with rollout.staleness 1"),
        ("rollout.refills=1 algorithm.name=ppo", "rollout.refills: expected 0 where groups without"),
        ("rollout.refills=1 algorithm.drop_groups_without_signal=false", "rollout.refills: expected 0 where groups"),
        ("rollout.first_penalty=-0.1", "rollout.first_penalty: expected it together with rollout.penalty_iterations"),
        ("rollout.penalty_iterations=9", "rollout.first_penalty: expected it together with rollout.penalty_iterations"),
        (
            "rollout.first_penalty=-0.1 rollout.penalty_iterations=9 env.penalty_mode=none",
            "rollout.first_penalty: expected null with env.penalty_mode 'none'",
        ),
        ("algorithm.overlong_margin=9", "algorithm.overlong_margin: expected 64 with overlong_tokens 0, got 9"),
        ("algorithm.overlong_tokens=50", "algorithm.overlong_margin: expected at most overlong_tokens .50., got 64"),
        ("policy.attention=flash_attention_2", "policy.attention: expected 'sdpa' with policy.dtype 'float32'"),
        (
            "env.visit_penalty=0.1",
            "env.visit_penalty: expected 0.0, as it has no effect here, got 0.1; set",
        ),
        (
            "env.crop_penalty=0.1",
            "env.crop_penalty: expected None, .* set env.crop=true",
        ),
        ("evaluation.during_questions=6", "evaluation.during_questions: expected 64, .* set evaluation.every"),
        ("algorithm.returns=to_go", "algorithm.returns: expected 'episode', .* set env.reward=subtractive"),
        ("engine.offload=cpu", "engine.offload: expected 'none' at ZeRO stage 1"),
        ("rollout.staleness=1 engine.zero_stage=3", "rollout.staleness: expected 0 at ZeRO stage 3"),
        ("critic.value_clip=0.5", "critic: expected nothing with algorithm 'grpo'"),
    ],
)
def test_what_has_no_effect_is_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config("quickstart", overrides.split())
