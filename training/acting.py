"""Acting: which questions an iteration plays, on which rank, and when.

Every rank plays every world_size-th question. A place is a question's number in the whole iteration; what is learnt
from it is the same on any number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from agents.rollout import times_before
from agents.trajectory import Group
from mmsearch_env.errors import BudgetError
from mmsearch_env.questions import Question
from training.advantages import has_signal
from training.config import RunConfig
from training.engine import Engine
from training.interrupt import StopRequest
from training.metrics import is_played
from training.order import one_pass, positions_of, seed_of, spare_positions
from training.schedules import search_penalty_at
from training.task import Task

_PLAY, _EXTRA, _SPARE = 3, 5, 6
"""What a seed is for; see :func:`training.order.seed_of`."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What this rank played in one iteration.

    Attributes:
        groups: every group, in the order in which they were played.
        learnt_from: place -> the group that stands there; those that could not be played are left out.
        seconds: that playing took, whatever else was done meanwhile.
        staleness: iterations that the weights which played are behind those that learn now.
        search_penalty: price of a search in these episodes.
    """

    groups: tuple[Group, ...]
    learnt_from: Mapping[int, Group]
    seconds: float
    staleness: int = 0
    search_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class _Played:
    groups: tuple[Group, ...]
    seconds: float


class Actor:
    """Plays iterations in order, each when it is asked for or while the one before it is learnt from."""

    def __init__(self, task: Task, config: RunConfig, engine: Engine, stop: StopRequest | None = None) -> None:
        """
        Args:
            task: what is played.
            config: the recipe.
            engine: knows the other ranks.
            stop: whether somebody asked the run to end; then nothing more is played ahead.
        """
        self._stop = stop or StopRequest()
        self._task = task
        self._config = config
        self._engine = engine
        self._each_pass = one_pass(task.questions, config.rollout.repeats)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="acting") if config.rollout.staleness else None
        self._ahead: tuple[int, Future[_Played]] | None = None

    def act(self, iteration: int) -> Acted:
        """The episodes of one iteration, counted from 0; every rank calls it.

        Raises:
            BudgetError: on all ranks, when a search tool may not be asked any more on one of them.
        """
        staleness = int(self._ahead is not None and self._ahead[0] == iteration)
        with one_for_all(self._engine):
            played = self._awaited() if staleness else self._play_now(iteration)
        self._begin(iteration + 1)
        learnt_from = self._placed(played.groups)
        acted = Acted(played.groups, learnt_from, played.seconds, staleness, self._price(iteration))
        for draw in range(self._config.rollout.refills):
            acted = self._refilled(acted, iteration, draw)
        return acted

    def close(self) -> None:
        """Wait for what is still being played; nobody will ask for it."""
        if self._thread is not None:
            self._thread.shutdown()

    def questions(self, iteration: int) -> tuple[list[Question], list[int]]:
        """This rank's share of an iteration's questions, and how often each came before in it on any rank."""
        positions = positions_of(
            iteration,
            each_pass=self._each_pass,
            per_iteration=self._config.rollout.questions_per_iteration,
            seed=self._config.seed,
        )
        return self._at(positions)[self._mine], times_before(positions)[self._mine]

    @property
    def _mine(self) -> slice:
        return slice(self._engine.place.rank, None, self._engine.place.world_size)

    def _at(self, positions: Sequence[int]) -> list[Question]:
        return [self._task.questions[position] for position in positions]

    def _play_now(self, iteration: int) -> _Played:
        self._task.catch_up()
        with self._engine.gathered():
            return self._play(iteration)

    def _begin(self, iteration: int) -> None:
        """Start to play ahead, with the weights of now.

        Not across a checkpoint: the iteration after it is played with the weights it holds, so that a resumed run plays
        what the unbroken one does.
        """
        self._ahead = None
        is_saved = iteration % self._config.output.save_every == 0
        is_wanted = iteration < self._config.iterations and not self._stop.made
        if self._thread is not None and is_wanted and not is_saved:
            self._task.catch_up()
            self._ahead = (iteration, self._thread.submit(self._play, iteration))

    def _awaited(self) -> _Played:
        assert self._ahead is not None
        return self._ahead[1].result()

    def _play(self, iteration: int) -> _Played:
        """This rank's questions; asks no other rank, so that it may be done in any thread."""
        start = time.perf_counter()
        questions, earlier = self.questions(iteration)
        groups = self._groups(questions, seed_of(self._config.seed, _PLAY, iteration), earlier, iteration)
        return _Played(tuple(self._with_extra(questions, earlier, groups, iteration)), time.perf_counter() - start)

    def _groups(
        self, questions: Sequence[Question], seed: int, earlier: Sequence[int], iteration: int, group_size: int = 0
    ) -> list[Group]:
        size, price = group_size or self._config.rollout.group_size, self._price(iteration)
        found = self._task.rollout(questions, group_size=size, seed=seed, earlier=earlier, search_penalty=price)
        return list(found)

    def _price(self, iteration: int) -> float:
        rollout, last = self._config.rollout, self._config.env.search_penalty
        return search_penalty_at(
            iteration, first=rollout.first_penalty, last=last, iterations=rollout.penalty_iterations
        )

    def _with_extra(
        self, questions: Sequence[Question], earlier: Sequence[int], groups: list[Group], iteration: int
    ) -> list[Group]:
        """Groups without any right answer, played on for a few episodes more."""
        extra = self._config.rollout.extra_episodes
        wrong = [place for place, group in enumerate(groups) if extra and is_played(group) and _is_all_wrong(group)]
        if not wrong:
            return groups
        seed = seed_of(self._config.seed, _EXTRA, iteration)
        more = self._groups(
            [questions[place] for place in wrong],
            seed,
            [earlier[place] for place in wrong],
            iteration,
            group_size=extra,
        )
        for place, group in zip(wrong, more, strict=True):
            groups[place] = replace(groups[place], trajectories=groups[place].trajectories + group.trajectories)
        return groups

    def _placed(self, groups: Sequence[Group]) -> dict[int, Group]:
        place = self._engine.place
        return {
            number * place.world_size + place.rank: group for number, group in enumerate(groups) if is_played(group)
        }

    def _refilled(self, acted: Acted, iteration: int, draw: int) -> Acted:
        """Other questions played in the places of groups without signal (DAPO, arXiv 2503.14476, section 3.2)."""
        taught = {place for place, group in acted.learnt_from.items() if _teaches(group)}
        empty = self._empty_places(taught)
        if not empty:
            return acted
        start = time.perf_counter()
        positions = spare_positions(iteration, draw, each_pass=self._each_pass, seed=self._config.seed)[: len(empty)]
        seed = seed_of(self._config.seed, _SPARE, iteration, draw)
        with one_for_all(self._engine), self._engine.gathered():
            groups = self._groups(self._at(positions)[self._mine], seed, times_before(positions)[self._mine], iteration)
        better = {
            place: group
            for place, group in zip(empty[self._mine], groups, strict=False)
            if is_played(group) and _teaches(group)
        }
        return replace(
            acted,
            groups=(*acted.groups, *groups),
            learnt_from={place: acted.learnt_from[place] for place in taught} | better,
            seconds=acted.seconds + time.perf_counter() - start,
        )

    def _empty_places(self, taught: set[int]) -> list[int]:
        """Places from which nothing is learnt on any rank."""
        texts = self._engine.texts(",".join(map(str, sorted(taught))))
        everywhere = {int(number) for text in texts for number in text.split(",") if number}
        return sorted(set(range(self._config.rollout.questions_per_iteration)) - everywhere)


@contextmanager
def one_for_all(engine: Engine) -> Iterator[None]:
    """Where a budget ends playing on any rank, it ends on all. Raises BudgetError."""
    spent: BudgetError | None = None
    try:
        yield
    except BudgetError as error:
        spent = error
    if engine.largest({"spent": float(spent is not None)})["spent"]:
        raise spent or BudgetError("expected a budget for every process, got one that is spent; see its message")


def _teaches(group: Group) -> bool:
    return has_signal([trajectory.episode_return for trajectory in group.trajectories])


def _is_all_wrong(group: Group) -> bool:
    return all(trajectory.success == 0.0 for trajectory in group.trajectories)
