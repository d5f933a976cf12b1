"""The loop: act, credit, learn, measure, keep.

:func:`train` is the whole of it; what stands around it in this file is what its lines are made of. It runs the same on
every rank: a rank plays and learns from its share of an iteration's questions, and sums are shared where a number
concerns all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

from agents.trajectory import Group, Trajectory
from mmsearch_env.errors import BudgetError, PolicyError
from training.acting import Actor
from training.algorithms import Algorithm
from training.balance import balanced
from training.batch import Example
from training.config import RunConfig
from training.engine import Engine
from training.interrupt import StopRequest
from training.learn import Learner
from training.learning_record import LearningRecord
from training.metrics import episode_metrics, episode_sums
from training.order import seed_generators
from training.schedules import LearningRate

_SKIPS_ALLOWED = 5
"""Updates in a row whose gradient is not finite before the run gives up."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Where a run stands; what a checkpoint counts.

    Attributes:
        iteration: iterations completed.
        updates: optimiser steps tried, skipped ones included; drives the learning-rate schedule.
        skipped_in_row: updates skipped since the last one that was applied.
        episodes: episodes played, over all ranks.
    """

    iteration: int = 0
    updates: int = 0
    skipped_in_row: int = 0
    episodes: int = 0


class Watcher(Protocol):
    """Something that is told how the run goes; only rank 0 has watchers."""

    def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
        """An iteration, counted from 1, ended with these metrics; ``groups`` are those of rank 0."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """Everything the loop uses, ready made.

    Attributes:
        config: the recipe.
        actor: who plays.
        learner: policy, algorithm and engine.
        watchers: told about every iteration; empty on ranks other than 0.
        save: writes a checkpoint with these counters; called on every rank.
        evaluate: metrics of an evaluation during training, with these counters; called on every rank.
        set_aside: keeps trajectories of this rank whose update was skipped.
        stop: whether somebody asked the run to end.
        phase: entered around ``"rollout"`` and ``"learn"``, for progress displays.
    """

    config: RunConfig
    actor: Actor
    learner: Learner
    watchers: Sequence[Watcher]
    save: Callable[[Counters], None]
    evaluate: Callable[[Counters], Mapping[str, float]]
    set_aside: Callable[[Counters, Sequence[Trajectory]], None] = lambda counters, trajectories: None
    stop: StopRequest = field(default_factory=StopRequest)
    phase: Callable[[str], AbstractContextManager[object]] = nullcontext

    @property
    def engine(self) -> Engine:
        """The learner's engine."""
        return self.learner.engine

    @property
    def algorithm(self) -> Algorithm:
        """The learner's algorithm."""
        return self.learner.algorithm


def train(run: Run, counters: Counters = Counters()) -> Counters:
    """Iterate until the recipe's iterations are done or somebody asks to stop.

    Args:
        run: what the loop uses.
        counters: where to go on.

    Returns:
        Where the run stands; the last checkpoint holds exactly this.

    Raises:
        PolicyError: the gradient was not finite several updates in a row.
        BudgetError: a search tool may not be asked any more; everything up to the last iteration is saved.
    """
    config, engine = run.config, run.engine
    while counters.iteration < config.iterations:
        iteration, clock = counters.iteration, _Clock(run.phase)
        seed_generators(config.seed, 2, iteration, engine.place.rank)

        with clock.phase("rollout"), _saved_beyond_budget(run, counters):  # act
            acted = run.actor.act(iteration)
        with clock.phase("learn"):  # credit, learn
            credited = run.learner.credit(acted.learnt_from)
            counters, learnt = _learn(run, credited, counters)

        sums = engine.total(episode_sums(acted.groups))  # measure
        values = {**episode_metrics(sums), **learnt, "policy/staleness": float(acted.staleness)}
        values["reward/search_penalty"] = acted.search_penalty
        counters = replace(counters, iteration=iteration + 1, episodes=counters.episodes + int(sums["episodes"]))
        if _due(config.evaluation.every, counters.iteration):
            with _saved_beyond_budget(run, counters):
                values.update(run.evaluate(counters))
        for watcher in run.watchers:
            watcher.iteration(
                counters.iteration, {**values, **clock.metrics(sums, learnt, acted.seconds)}, acted.groups
            )

        stopping = engine.largest({"stop": float(run.stop.made)})["stop"] > 0  # keep
        at_end = stopping or counters.iteration == config.iterations
        if at_end or _due(config.output.save_every, counters.iteration):
            run.save(counters)
        if stopping:
            break
    return counters


@contextmanager
def _saved_beyond_budget(run: Run, counters: Counters) -> Iterator[None]:
    """Where a budget ends a rollout or an evaluation, what is learnt is saved first. Raises BudgetError."""
    try:
        yield
    except BudgetError:
        run.save(counters)
        raise


def _learn(
    run: Run, credited: Mapping[int, Sequence[Example]], counters: Counters
) -> tuple[Counters, dict[str, float]]:
    """All updates of one iteration, and what is known of them over all ranks.

    ``credited`` holds the examples of each question by its place in the iteration.
    """
    config, record, first_update = run.config, LearningRecord.of(run.algorithm), counters.updates
    parts = _updates(run, credited)
    count = len(parts) * config.algorithm.epochs
    updates = [run.learner.prepare(examples, updates=count) for examples in parts]
    rates, norms = learning_rate_of(config), list[float]()
    try:
        for _ in range(config.algorithm.epochs):
            for prepared in updates:
                norm = run.learner.update(
                    prepared,
                    record,
                    learning_rate=rates.at(counters.updates),
                    measure_gap=counters.updates == first_update,
                )
                if norm is not None:
                    norms.append(norm)
                    counters = _counted(counters, norm)
    finally:
        if record.suspects:
            run.set_aside(counters, record.suspects)
    applied = [norm for norm in norms if math.isfinite(norm)]
    return counters, {
        **run.learner.metrics(record),
        "optimiser/learning_rate": rates.at(max(0, counters.updates - 1)),
        "optimiser/grad_norm": max(applied, default=0.0),
        "optimiser/updates": float(len(applied)),
        "optimiser/skipped": float(len(norms) - len(applied)),
    }


def learning_rate_of(config: RunConfig) -> LearningRate:
    """The recipe's learning-rate schedule."""
    optimiser = config.optimiser
    return LearningRate(
        peak=optimiser.learning_rate,
        shape=optimiser.schedule,
        warmup_steps=optimiser.warmup_steps,
        total_steps=config.optimiser_steps,
        final_fraction=optimiser.final_fraction,
        centre=optimiser.decay_centre,
    )


def _counted(counters: Counters, norm: float) -> Counters:
    """One more update. Raises PolicyError after too many in a row that were skipped."""
    skipped = 0 if math.isfinite(norm) else counters.skipped_in_row + 1
    if skipped == _SKIPS_ALLOWED:
        raise PolicyError(
            f"expected a finite gradient, got {skipped} updates in a row without one, in iteration "
            f"{counters.iteration + 1}; their episodes are kept in the run's folder (skipped/). Begin a run with a "
            "smaller optimiser.learning_rate and policy.adapter=<the last checkpoint's adapter>"
        )
    return replace(counters, updates=counters.updates + 1, skipped_in_row=skipped)


def _updates(run: Run, credited: Mapping[int, Sequence[Example]]) -> list[list[Example]]:
    """This rank's examples of each update of one epoch.

    The question's place in the whole iteration decides, so that an update holds the same questions on any number of
    ranks. Groups without signal are left out if the recipe says so: they would only dilute the token count. What is
    left is spread evenly over the ranks.
    """
    config = run.config
    per_update = config.algorithm.questions_per_update or config.rollout.questions_per_iteration
    # A critic learns from every episode.
    keeps_all = run.algorithm.needs_values or not config.algorithm.drop_groups_without_signal
    parts: list[dict[int, Sequence[Example]]] = [{} for _ in range(config.updates_per_epoch)]
    for place, examples in credited.items():
        if keeps_all or any(item.advantages.any() for item in examples):
            parts[place // per_update][place] = examples
    return [[example for group in balanced(part, run.engine).values() for example in group] for part in parts]


def _due(every: int, iteration: int) -> bool:
    return bool(every) and iteration % every == 0


class _Clock:
    """Where the time of one iteration goes."""

    def __init__(self, announce: Callable[[str], AbstractContextManager[object]]) -> None:
        self._announce = announce
        self._start = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the iteration and announce it."""
        start = time.perf_counter()
        with self._announce(name):
            yield
        self._spent[name] = time.perf_counter() - start

    def metrics(self, sums: Mapping[str, float], learnt: Mapping[str, float], playing_s: float) -> dict[str, float]:
        """The ``speed/`` metrics, from this rank's times and all ranks' tokens."""
        whole = time.perf_counter() - self._start
        rollout, learn = self._spent["rollout"], self._spent["learn"]
        return {
            "speed/iteration_s": whole,
            "speed/rollout_share": rollout / whole,
            "speed/learn_share": learn / whole,
            "speed/other_share": max(0.0, 1.0 - (rollout + learn) / whole),
            "speed/sampled_tokens_per_s": sums["episode/sampled_tokens"] / playing_s,
            "speed/learnt_tokens_per_s": learnt["optimiser/tokens"] / learn,
        }
