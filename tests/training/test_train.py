"""The loop, the real engine and a real small policy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bandit import PRICE, GuessPolicy, GuessScorer, GuessTask, guess_questions

from agents.trajectory import Group, Trajectory
from mmsearch_env.errors import BudgetError, PolicyError
from mmsearch_env.questions import Question
from training.acting import Actor
from training.algorithms import PRESETS, Algorithm, LossTerms
from training.algorithms.credit import ByReturn
from training.algorithms.policy_gradient import Clipped, Correction, PolicyGradient
from training.algorithms.presets import grpo
from training.batch import TokenBatch
from training.compose import build_algorithm
from training.config import RunConfig
from training.config.file import config_from_mapping
from training.engine import Engine, Place
from training.interrupt import StopRequest
from training.learn import Learner, TokenBudget
from training.learning_record import LearningRecord
from training.losses import clipped_surrogate
from training.metrics import check_names
from training.order import seed_of
from training.train import Counters, Run, train


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
        check_names(values)
        self.lines.append({"iteration": number, **values})


def recipe(**sections: Any) -> RunConfig:
    base: dict[str, Any] = {
        "iterations": 2,
        "rollout": {"questions_per_iteration": 6, "group_size": 4},
        "optimiser": {"learning_rate": 0.02},
    }
    return config_from_mapping({**base, **sections})


def run_of(config: RunConfig, place: Place, task: GuessTask | None = None, algorithm: Algorithm | None = None) -> Run:
    task = task or GuessTask(GuessPolicy(critic=config.algorithm.name == "ppo"), guess_questions())
    algorithm = algorithm or build_algorithm(config)
    engine = Engine(task.policy.scorer, place=place, zero_stage=config.engine.zero_stage)
    learner = Learner(
        task.policy, engine, algorithm, config.rollout.temperature, TokenBudget(config.engine.micro_batch_tokens)
    )
    actor = Actor(task, config, engine)
    return Run(config, actor, learner, watchers=[Notes()], save=lambda counters: None, evaluate=lambda counters: {})


def lines(run: Run) -> list[dict[str, float]]:
    notes = run.watchers[0]
    assert isinstance(notes, Notes)
    return notes.lines


def task_of(run: Run) -> GuessTask:
    task = run.actor._task
    assert isinstance(task, GuessTask)
    return task


def weights(run: Run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.learner.policy.trainable_parameters()])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_policy_learns_to_search_exactly_when_it_must(place: Place, name: str) -> None:
    config = recipe(
        iterations=60,
        rollout={"questions_per_iteration": 12, "group_size": 8},
        algorithm={"name": name},
        optimiser={"learning_rate": 0.05, "schedule": "cosine"},
    )
    run = run_of(config, place)
    train(run)
    after = task_of(run).evaluate(guess_questions())
    # the best policy: 1 on known questions, 0.9 on hidden ones
    assert after.overall.reward.mean == pytest.approx(0.95, abs=0.06)
    assert after.by_category["search_free"].search_ratio.mean == 0.0
    assert after.by_category["search_required"].search_ratio.mean == 1.0
    assert lines(run)[-1]["reward/mean"] > lines(run)[0]["reward/mean"] + 0.3


def test_a_critic_learns_what_states_are_worth(place: Place) -> None:
    run = run_of(recipe(iterations=40, algorithm={"name": "ppo"}, optimiser={"learning_rate": 0.05}), place)
    train(run)
    first, last = lines(run)[0], lines(run)[-1]
    assert first["critic/value"] == 0.0  # before the first update
    assert last["critic/error_square"] < 0.5 * first["critic/error_square"]
    assert last["critic/value"] == pytest.approx(last["critic/return"], abs=0.2)


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.05])
def test_how_a_batch_is_cut_makes_no_difference(place: Place, kl_coefficient: float) -> None:
    algorithm = {"kl_coefficient": kl_coefficient, "epochs": 2}
    whole = run_of(recipe(algorithm=algorithm, engine={"micro_batch_tokens": 10_000}), place)
    cut = run_of(recipe(algorithm=algorithm, engine={"micro_batch_tokens": 1}), place)
    train(whole)
    train(cut)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-5, atol=1e-6)
    for name in lines(whole)[-1].keys() - {name for name in lines(whole)[-1] if name.startswith("speed/")}:
        assert lines(cut)[-1][name] == pytest.approx(lines(whole)[-1][name], abs=1e-5), name


def test_sampler_and_trainer_agree(place: Place) -> None:
    run = run_of(recipe(algorithm={"epochs": 2, "questions_per_update": 2}), place)
    train(run)
    assert all(line["policy/logprob_gap_max"] < 1e-5 for line in lines(run))


class Misreporting(GuessTask):
    """Its sampler says of every token that it was half as likely as it was."""

    def rollout(self, *arguments: Any, **settings: Any) -> list[Group]:
        groups = super().rollout(*arguments, **settings)
        return [replace(group, trajectories=tuple(map(self._halved, group.trajectories))) for group in groups]

    @staticmethod
    def _halved(played: Trajectory) -> Trajectory:
        turns = [
            replace(
                turn,
                completion=replace(
                    turn.completion, logprobs=tuple(one - math.log(2) for one in turn.completion.logprobs)
                ),
            )
            for turn in played.turns
        ]
        return replace(played, turns=tuple(turns))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_sampler_that_differs_is_corrected(place: Place, epochs: int) -> None:
    """Every token has the weight 2, so one epoch's gradient is twice that of the honest sampler, before the clip."""
    config = recipe(iterations=1, algorithm={"epochs": epochs})
    honest = run_of(config, place)
    corrected = run_of(
        config, place, Misreporting(GuessPolicy(), guess_questions()), grpo(correction=Correction("token", 5.0))
    )
    train(honest)
    train(corrected)
    (line,), (plain,) = lines(corrected), lines(honest)
    assert line["policy/importance_weight"] == pytest.approx(2.0, abs=1e-4)
    assert line["policy/importance_capped"] == 0.0
    assert line["policy/logprob_gap"] == pytest.approx(math.log(2), abs=1e-4)
    if epochs == 1:
        assert line["policy/clip_fraction"] == 0.0  # the ratio is to the trainer's own policy
        assert line["optimiser/grad_norm"] == pytest.approx(2.0 * plain["optimiser/grad_norm"], rel=1e-3)


def test_updates_and_learning_rates_are_counted(place: Place) -> None:
    config = recipe(
        iterations=2,
        algorithm={"epochs": 2, "questions_per_update": 2, "drop_groups_without_signal": False},
        optimiser={"learning_rate": 0.01, "schedule": "linear"},
    )
    run = run_of(config, place)
    counters = train(run)
    assert counters == Counters(iteration=2, updates=12, skipped_in_row=0, episodes=48)
    assert [line["optimiser/updates"] for line in lines(run)] == [6.0, 6.0]
    # 12 steps in all; the last of the first iteration is number 5
    assert lines(run)[0]["optimiser/learning_rate"] == pytest.approx(0.01 * (1 - 5 / 12))


def test_going_on_from_counters_plays_only_the_rest(place: Place) -> None:
    run = run_of(recipe(iterations=3), place)
    train(run, Counters(iteration=2, updates=2))
    assert [line["iteration"] for line in lines(run)] == [3]


class Alike(GuessTask):
    """Every episode earns the same."""

    def _play(self, question: Any, seed: int | None, price: float = PRICE) -> Trajectory:
        return super()._play(question, None, price)


def played_by_two_ranks(config: RunConfig, questions: Sequence[Question]) -> list[tuple[Question, int]]:
    """Questions of the first iteration, and how often each came before."""
    task = SimpleNamespace(questions=questions)
    engines = [SimpleNamespace(place=Place(rank, 2, torch.device("cpu"))) for rank in range(2)]
    shares = [Actor(task, config, engine).questions(0) for engine in engines]
    return [pair for share in shares for pair in zip(*share, strict=True)]


def test_a_question_repeated_on_another_rank_is_played_afresh() -> None:
    """Three questions, seven places, two ranks: no rank plays what another one has played."""
    played = played_by_two_ranks(recipe(rollout={"questions_per_iteration": 7}), guess_questions()[:3])
    assert len({(question.id, before) for question, before in played}) == len(played) == 7


def test_a_pass_may_play_some_categories_more_often() -> None:
    questions = guess_questions()
    category = questions[0].category
    alike = sum(question.category == category for question in questions)
    whole = len(questions) + 2 * alike
    config = recipe(rollout={"questions_per_iteration": whole, "repeats": {category: 3}})
    times = Counter(question.id for question, _ in played_by_two_ranks(config, questions))
    assert 0 < alike < len(questions)
    assert all(times[question.id] == (3 if question.category == category else 1) for question in questions)


def test_without_signal_nothing_is_learnt(place: Place) -> None:
    run = run_of(recipe(), place, Alike(GuessPolicy(), guess_questions()))
    before = weights(run)
    counters = train(run)
    assert torch.equal(weights(run), before)
    assert counters.updates == 0
    assert lines(run)[0]["reward/signal"] == 0.0
    assert "loss/total" not in lines(run)[0]


class Unplayable(GuessTask):
    """Some questions cannot be played."""

    bad = frozenset({"1", "4"})

    def _play(self, question: Any, seed: int | None, price: float = PRICE) -> Trajectory:
        if question.id in self.bad:
            return Trajectory(question.id, (), False, True, "unusable_question", 0.0, {}, {}, "")
        return super()._play(question, seed, price)


def test_questions_that_cannot_be_played_are_passed_over(place: Place) -> None:
    run = run_of(recipe(), place, Unplayable(GuessPolicy(), guess_questions()))
    train(run)
    assert sum(line["episode/unplayed"] for line in lines(run)) == 8.0
    assert all(line["optimiser/updates"] == 1.0 for line in lines(run))


def test_an_iteration_in_which_nothing_could_be_played_is_survived(place: Place) -> None:
    task = Unplayable(GuessPolicy(), guess_questions())
    task.bad = frozenset(question.id for question in task.questions)
    run = run_of(recipe(), place, task)
    assert train(run).updates == 0


class Poisoned(PolicyGradient):
    """A loss that is not finite."""

    def loss(self, *arguments: Any, **keywords: Any) -> LossTerms:
        terms = super().loss(*arguments, **keywords)
        return LossTerms(terms.loss * math.nan, terms.sums)


def test_gradients_that_stay_broken_end_the_run_with_weights_intact(place: Place) -> None:
    run = run_of(
        recipe(iterations=9), place, algorithm=Poisoned(ByReturn("group", "std"), Clipped(clipped_surrogate, 0.2, 0.2))
    )
    before = weights(run)
    kept: list[int] = []
    with pytest.raises(PolicyError, match="5 updates in a row without one, in iteration 5"):
        train(replace(run, set_aside=lambda at, episodes: kept.append(len(episodes))))
    assert len(kept) == 5 and all(kept)
    assert torch.equal(weights(run), before)
    assert [line["optimiser/skipped"] for line in lines(run)] == [1.0] * 4


def test_episodes_of_an_update_that_was_skipped_are_kept(place: Place) -> None:
    class Once(PolicyGradient):
        """Of one question's episodes the first loss is not finite."""

        broken = ""

        def loss(self, scores: Any, batch: TokenBatch, **keywords: Any) -> LossTerms:
            terms = super().loss(scores, batch, **keywords)
            if not Once.broken:
                Once.broken = "made"
                return LossTerms(terms.loss * math.nan, terms.sums)
            return terms

    config = recipe(iterations=3, engine={"micro_batch_tokens": 20})
    algorithm = Once(ByReturn("group", "std"), Clipped(clipped_surrogate, 0.2, 0.2))
    run = run_of(config, place, algorithm=algorithm)
    kept: list[tuple[int, Sequence[Trajectory]]] = []
    train(replace(run, set_aside=lambda at, episodes: kept.append((at.iteration, episodes))))
    assert [line["optimiser/skipped"] for line in lines(run)] == [1.0, 0.0, 0.0]
    ((iteration, episodes),) = kept
    assert iteration == 0 and 0 < len(episodes) < 20 / 3


class Short(GuessScorer):
    """Its memory takes only so many rows; half of what it does before it notices is done."""

    rows = 3
    calls = 0

    def forward(self, inputs: Mapping[str, Any], *rest: Any) -> Any:
        self.calls += 1
        if torch.is_grad_enabled() and len(inputs["input_ids"]) > self.rows:
            raise torch.OutOfMemoryError("too many rows")
        return super().forward(inputs, *rest)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_where_memory_is_short_parts_are_halved_and_nothing_else_changes(
    place: Place, zero_stage: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = recipe(
        algorithm={"kl_coefficient": 0.05, "epochs": 2, "correction": "token"},
        engine={"zero_stage": zero_stage, "micro_batch_tokens": 60},
    )
    plain = run_of(config, place, GuessTask(GuessPolicy(), guess_questions()))
    train(plain)
    policy = GuessPolicy()
    policy.scorer = Short()
    short = run_of(config, place, GuessTask(policy, guess_questions()))
    train(short)
    assert "memory is short: passes of at most" in caplog.text
    assert short.learner.budget.tokens < 60
    with short.engine.gathered(), plain.engine.gathered():
        torch.testing.assert_close(weights(short), weights(plain), rtol=1e-5, atol=1e-6)
    names = [name for name in lines(plain)[0] if not name.startswith("speed/")]
    for one, other in zip(lines(plain), lines(short), strict=True):
        assert {name: other[name] for name in names} == pytest.approx({name: one[name] for name in names}, abs=1e-5)


def test_short_memory_shortens_what_is_left_of_an_iteration_once(place: Place) -> None:
    """Four updates with parts that are too long, twice over: the first failure is enough for all."""
    policy = GuessPolicy()
    policy.scorer = Short()
    policy.scorer.rows = 6
    config = recipe(
        iterations=1,
        rollout={"questions_per_iteration": 12, "group_size": 4},
        algorithm={"epochs": 2, "questions_per_update": 3, "drop_groups_without_signal": False},
        engine={"micro_batch_tokens": 36},
    )
    run = run_of(config, place, GuessTask(policy, guess_questions()))
    train(run)
    assert run.learner.budget.tokens == 18
    assert lines(run)[0]["optimiser/updates"] == 8.0


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_where_an_update_cannot_be_begun_anew_short_memory_ends_the_run(place: Place, zero_stage: int) -> None:
    policy = GuessPolicy()
    policy.scorer = Short()
    run = run_of(recipe(engine={"zero_stage": zero_stage}), place, GuessTask(policy, guess_questions()))
    with pytest.raises(PolicyError, match="resume with a smaller engine.micro_batch_tokens"):
        train(run)


def test_a_budget_spent_in_an_evaluation_loses_nothing(place: Place) -> None:
    saved: list[Counters] = []

    def spent(counters: Counters) -> Mapping[str, float]:
        raise BudgetError("budget: expected at most 9 calls, got one more; raise the limit")

    run = run_of(recipe(iterations=5, evaluation={"every": 3}), place)
    with pytest.raises(BudgetError, match="at most 9 calls"):
        train(replace(run, save=saved.append, evaluate=spent))
    assert [counters.iteration for counters in saved] == [3]


def test_a_critic_learns_from_episodes_that_went_alike(place: Place) -> None:
    known = [question for question in guess_questions() if question.category == "search_free"][:1]

    class Alike(GuessTask):
        def rollout(self, questions: Sequence[Question], **how: Any) -> list[Group]:
            (group, *_) = super().rollout(questions, **how)
            return [Group(group.question_id, (group.trajectories[0],) * 4)]

    config = recipe(iterations=3, rollout={"questions_per_iteration": 1, "group_size": 4}, algorithm={"name": "ppo"})
    run = run_of(config, place, Alike(GuessPolicy(critic=True), known))
    train(run)
    assert [line["optimiser/updates"] for line in lines(run)] == [1.0] * 3


def test_memory_for_not_even_one_episode_is_told(place: Place) -> None:
    policy = GuessPolicy()
    policy.scorer = Short()
    policy.scorer.rows = 0
    run = run_of(recipe(), place, GuessTask(policy, guess_questions()))
    with pytest.raises(PolicyError, match="expected memory for one episode of . tokens, got too little"):
        train(run)


def test_a_stop_request_ends_after_the_iteration_and_saves(place: Place) -> None:
    saved: list[Counters] = []
    stop = StopRequest()
    run = run_of(recipe(iterations=50), place)
    run = replace(run, save=saved.append, stop=stop)
    stop.make("SIGTERM")
    assert train(run).iteration == 1
    assert [counters.iteration for counters in saved] == [1]


def test_a_spent_budget_ends_the_run_and_what_was_learnt_is_saved(place: Place) -> None:
    class Spending(GuessTask):
        def rollout(self, questions: Sequence[Question], **how: Any) -> list[Group]:
            if how["seed"] == seed_of(0, 3, 2):
                raise BudgetError("budget: expected at most 9 calls, got one more; raise the limit")
            return super().rollout(questions, **how)

    saved: list[Counters] = []
    run = run_of(recipe(iterations=5), place, Spending(GuessPolicy(), guess_questions()))
    with pytest.raises(BudgetError, match="at most 9 calls"):
        train(Run(run.config, run.actor, run.learner, run.watchers, saved.append, lambda counters: {}))
    assert [counters.iteration for counters in saved] == [2]


def test_checkpoints_come_on_time_and_at_the_end(place: Place) -> None:
    saved: list[Counters] = []
    run = run_of(recipe(iterations=5, output={"save_every": 2}), place)
    train(Run(run.config, run.actor, run.learner, run.watchers, saved.append, lambda counters: {}))
    assert [counters.iteration for counters in saved] == [2, 4, 5]


def test_evaluations_come_on_time(place: Place) -> None:
    run = run_of(recipe(iterations=5, evaluation={"every": 2}), place)
    run = Run(run.config, run.actor, run.learner, run.watchers, run.save, lambda counters: {"evaluation/reward": 0.5})
    train(run)
    assert [line["iteration"] for line in lines(run) if "evaluation/reward" in line] == [2, 4]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_pass_for_other_ranks_sake_changes_nothing(place: Place, name: str) -> None:
    """As where this rank has nothing to learn from and another has."""
    run = run_of(recipe(algorithm={"name": name, "kl_coefficient": 0.1}), place)
    learner, before = run.learner, weights(run)
    record = LearningRecord.of(run.algorithm)
    largest = {"examples": 2.0, "rounds": 2.0}
    learner.engine.largest = lambda values: {name: largest.get(name, values[name]) for name in values}  # type: ignore
    prepared = learner.prepare([], updates=1)
    assert [part for part, _ in prepared] == [(), ()]
    learner.engine.total = lambda values: dict.fromkeys(values, 9.0)  # type: ignore[method-assign]
    assert learner.update(prepared, record, learning_rate=0.1, measure_gap=True) == 0.0
    assert torch.equal(weights(run), before)
    assert not record.trained_tokens and not record.gap_tokens and not any(record.sums.values())
