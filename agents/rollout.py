"""The interaction loop: a policy plays questions, and what was sampled is recorded token by token.

Episodes are coroutines. Each one alternates between waiting for a completion and waiting for its tools; completions
are generated for all waiting episodes at once, while the tools of the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agents.policy import CannotReply, Policy, Reply, Request
from agents.trajectory import Group, Trajectory, Turn
from agents.workflows import ON_DEMAND, Workflow
from mmsearch_env import aio
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import DataError
from mmsearch_env.judge import FAILED as JUDGE_FAILED
from mmsearch_env.questions import Question

_log = logging.getLogger(__name__)

MakeEnv = Callable[[], MMSearchEnv]
UNUSABLE = "unusable_question"
"""Stop reason of an episode that could not begin because its question's picture cannot be read."""
CUT = "cut"
"""Stop reason of an episode that the environment cut off without saying why."""
COUNTS = (
    *("n_image_search", "n_text_search", "n_page_visit", "n_tool_errors", "n_malformed"),
    *("n_service_calls", "cost_usd"),
)
"""The environment's counters kept in a trajectory."""
JUDGE_ERRORS = "n_judge_errors"
"""Beside them: 1 where the answer could not be judged."""


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """How many episodes go on at once.

    Attributes:
        live_episodes: episodes in play at the same time.
        batch_rows: completions sampled in one batch at most.
        patience_s: how long a batch waits for episodes whose tools are busy; with tools that answer at once it is
            never reached, and the composition of batches, hence the run, is reproducible.
        batching: ``"together"``: completions begin together, and the next begin when all have ended; or
            ``"continuous"``: each begins when its episode is ready, and goes to its tool as soon as it has ended. The
            latter is faster where tools are slow; which completions are sampled beside each other then depends on the
            clock, and so do the last digits of what is computed.
    """

    live_episodes: int = 256
    batch_rows: int = 256
    patience_s: float = 2.0
    batching: Literal["together", "continuous"] = "together"


def rollout(
    policy: Policy,
    make_env: MakeEnv,
    questions: Sequence[Question],
    *,
    group_size: int,
    seed: int,
    earlier: Sequence[int] | None = None,
    workflow: Workflow = ON_DEMAND,
    limits: RolloutLimits | None = None,
    on_episode: Callable[[Trajectory], None] = lambda trajectory: None,
) -> list[Group]:
    """Play every question ``group_size`` times.

    Args:
        policy: who plays.
        questions: what is played.
        group_size: episodes of each question.
        workflow: how the policy is used.
        limits: how many episodes go on at once.
        make_env: makes an environment; called once for each episode in play at the same time.
        seed: with the question's id and the member's number it seeds everything an episode draws.
        earlier: how often each question was given before under this seed, so that a repeated one is played afresh;
            by default as often as it stands at earlier positions here.
        on_episode: told of every finished episode, for progress bars.

    Returns:
        One group for each question, in order. A failed tool never ends a rollout; it is counted in the trajectory.
    """
    limits = limits or RolloutLimits()
    try:
        given = times_before([question.id for question in questions]) if earlier is None else earlier
        return aio.run(_rollout(policy, make_env, questions, group_size, seed, given, workflow, limits, on_episode))
    except BaseExceptionGroup as group:
        raise _first(group) from group


async def _rollout(
    policy: Policy,
    make_env: MakeEnv,
    questions: Sequence[Question],
    group_size: int,
    seed: int,
    earlier: Sequence[int],
    workflow: Workflow,
    limits: RolloutLimits,
    on_episode: Callable[[Trajectory], None],
) -> list[Group]:
    jobs = [(position, member) for position in range(len(questions)) for member in range(group_size)]
    remaining = iter(list(enumerate(jobs)))
    done: dict[tuple[int, int], Trajectory] = {}
    seats = min(limits.live_episodes, len(jobs))
    table = _Table(policy, limits, seats)

    async def seat() -> None:
        """Play episodes one after another until none is left."""
        env = make_env()
        try:
            for number, (position, member) in remaining:
                episode_seed = _seed_of(seed, questions[position], earlier[position], member)
                trajectory = await _play(env, table, number, questions[position], episode_seed, workflow)
                done[position, member] = trajectory
                table.over(trajectory)
                on_episode(trajectory)
        finally:
            table.leave()
            env.close()

    async with asyncio.TaskGroup() as group:
        group.create_task(table.serve())
        for _ in range(seats):
            group.create_task(seat())
    return [
        Group(question.id, tuple(done[position, member] for member in range(group_size)))
        for position, question in enumerate(questions)
    ]


async def _play(
    env: MMSearchEnv, table: _Table, number: int, question: Question, seeds: np.random.SeedSequence, workflow: Workflow
) -> Trajectory:
    """One episode from reset to its end."""
    try:
        _, info = await env.areset(seed=_draw(seeds, 0), options={"question": question})
    except DataError as error:
        _log.warning("question %s was skipped: %s", question.id, error)
        return _unplayed(question, UNUSABLE)
    turns: list[Turn] = []
    terminated = False
    while not terminated:
        script = workflow.script(len(turns), env.protocol)
        request = Request(env.conversation, env.new_messages, tuple(turns), _draw(seeds, 1 + len(turns)), script)
        reply = await table.reply(number, request)
        if isinstance(reply, CannotReply):
            _log.info("question %s was cut off: %s", question.id, reply.detail)
            return _trajectory(env, turns, info, reply.reason) if turns else _unplayed(question, reply.reason)
        failures = float(info["n_tool_errors"])
        _, reward, terminated, truncated, info = await env.astep(reply.completion.text)
        turns.append(_turn(reply, reward, info, tool_failed=float(info["n_tool_errors"]) > failures))
        if truncated:
            return _trajectory(env, turns, info, str(info["stop_reason"]) or CUT)
    return _trajectory(env, turns, info, "")


class _Table:
    """Where episodes wait for completions, which are generated for all of them at once."""

    def __init__(self, policy: Policy, limits: RolloutLimits, seats: int) -> None:
        self._policy = policy
        self._limits = limits
        self._seats = seats
        self._waiting: dict[int, tuple[Request, asyncio.Future[Reply | CannotReply]]] = {}
        self._changed = asyncio.Event()
        self._over: list[Trajectory] = []

    async def reply(self, number: int, request: Request) -> Reply | CannotReply:
        """The policy's reply to episode ``number``."""
        future: asyncio.Future[Reply | CannotReply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (request, future)
        self._changed.set()
        return await future

    def over(self, played: Trajectory) -> None:
        """An episode is over; the policy is told when it is not busy."""
        self._over.append(played)

    def leave(self) -> None:
        """A seat will ask no more."""
        self._seats -= 1
        self._changed.set()

    async def serve(self) -> None:
        """Generate batches until every seat has left."""
        if self._limits.batching == "continuous":
            await self._serve_continuously()
            return
        while self._seats:
            await self._gather()
            batch = sorted(self._waiting.items())[: self._limits.batch_rows]
            if not batch:
                continue
            for number, _ in batch:
                del self._waiting[number]
            self._let_go()
            replies = await asyncio.to_thread(self._policy.generate, [request for _, (request, _) in batch])
            for (_, (_, future)), reply in zip(batch, replies, strict=True):
                future.set_result(reply)
        self._let_go()

    async def _serve_continuously(self) -> None:
        """Have the policy serve whenever somebody waits, until every seat has left."""
        loop = asyncio.get_running_loop()
        while self._seats:
            self._changed.clear()
            if not self._waiting:
                await self._changed.wait()
                continue
            await asyncio.to_thread(self._policy.serve, _Desk(self, loop), most=self._limits.batch_rows)
        self._let_go()

    def _let_go(self) -> None:
        while self._over:
            self._policy.forget(self._over.pop().turns)

    async def _gather(self) -> None:
        """Wait until every seat waits here, a batch is full, or patience ends with somebody waiting."""
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while self._seats and len(self._waiting) < min(self._seats, self._limits.batch_rows):
            if self._waiting and deadline is None:
                deadline = loop.time() + self._limits.patience_s
            self._changed.clear()
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)


class _Desk:
    """The table as a policy sees it from its own thread.

    What the loop's thread adds and this one takes are single operations of dictionaries and lists, whole in themselves.
    """

    def __init__(self, table: _Table, loop: asyncio.AbstractEventLoop) -> None:
        self._table, self._loop = table, loop
        self._futures: dict[int, asyncio.Future[Reply | CannotReply]] = {}

    def take(self, most: int) -> list[tuple[int, Request]]:
        """See :class:`agents.policy.Desk`."""
        taken = []
        for number in sorted(self._table._waiting)[:most]:
            request, self._futures[number] = self._table._waiting.pop(number)
            taken.append((number, request))
        return taken

    def answer(self, number: int, reply: Reply | CannotReply) -> None:
        """See :class:`agents.policy.Desk`."""
        future = self._futures.pop(number)
        self._loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(reply))

    def over(self) -> list[tuple[Turn, ...]]:
        """See :class:`agents.policy.Desk`."""
        over = []
        while self._table._over:
            over.append(self._table._over.pop().turns)
        return over


def _seed_of(seed: int, question: Question, earlier: int, member: int) -> np.random.SeedSequence:
    """What seeds an episode: the question's own id and not its place, so that processes may share the work anyhow."""
    return np.random.SeedSequence([seed, zlib.crc32(question.id.encode()), earlier, member])


def times_before(values: Sequence[Hashable]) -> list[int]:
    """For each position, how often its value stands at earlier ones."""
    seen: Counter[Hashable] = Counter()
    times = []
    for value in values:
        times.append(seen[value])
        seen[value] += 1
    return times


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first: every episode of a rollout fails alike, and one error says more than hundreds."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _draw(seeds: np.random.SeedSequence, turn: int) -> int:
    """A seed for one turn of an episode."""
    return int(np.random.SeedSequence([*_entropy(seeds), turn]).generate_state(1)[0])


def _entropy(seeds: np.random.SeedSequence) -> list[int]:
    entropy = seeds.entropy
    return [int(value) for value in entropy] if isinstance(entropy, Sequence) else [int(entropy or 0)]


def _turn(reply: Reply, reward: float, info: Mapping[str, Any], *, tool_failed: bool) -> Turn:
    kind, valid = str(info["kind"]), bool(info["valid"])
    return Turn(reply.prompt_ids, reply.images, reply.completion, float(reward), kind, valid, tool_failed)


def _trajectory(env: MMSearchEnv, turns: Sequence[Turn], info: Mapping[str, Any], cut: str) -> Trajectory:
    """The record of an episode; ``cut`` says why it was cut off from outside, "" if it ended by its own rules."""
    return Trajectory(
        question_id=env.question.id,
        turns=tuple(turns),
        terminated=not cut,
        truncated=bool(cut),
        stop_reason=cut or str(info["stop_reason"]),
        success=float(info["success"]),
        reward_terms=dict(info["reward_terms"]),
        counts={**{name: float(info[name]) for name in COUNTS}, JUDGE_ERRORS: float(info["error"] == JUDGE_FAILED)},
        answer=env.state.answer,
    )


def _unplayed(question: Question, reason: str) -> Trajectory:
    """An episode in which nothing could be said."""
    return Trajectory(question.id, (), False, True, reason, 0.0, {}, dict.fromkeys((*COUNTS, JUDGE_ERRORS), 0.0), "")
