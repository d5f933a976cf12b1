"""An iteration with slow searches: completions together or continuously, in turn with learning or one iteration ahead.

    python tests/benchmarks/overlap.py --delay 1.0

The quickstart's recipe with the bundled model, in one process of one thread; every search of the embedded engine takes
``--delay`` seconds more, drawn evenly between half and one and a half of it. Wall seconds of an iteration, medians.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import note, report

from agents.trajectory import Group
from mmsearch_env.actions import ActionKind
from mmsearch_env.resources import resolve_tools
from mmsearch_env.tools.search_tool import Query, SearchResult, SearchTool
from training import compose
from training.acting import Actor
from training.config.file import read_config
from training.engine import Engine, join, leave
from training.learn import Learner, TokenBudget
from training.train import Run, train

_WARM_UP = 2


class Slow:
    """A tool that takes its time."""

    def __init__(self, tool: SearchTool, delay_s: float) -> None:
        self._tool, self._delay_s, self._rng = tool, delay_s, random.Random(0)
        self.name = tool.name

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """What the tool finds, later."""
        await asyncio.sleep(self._delay_s * self._rng.uniform(0.5, 1.5))
        return await self._tool.search(query, top_k=top_k)

    async def aclose(self) -> None:
        """The tool is shared."""


def seconds_of(batching: str, staleness: int, delay_s: float, iterations: int) -> list[float]:
    """Wall seconds of each iteration."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = read_config(
            "quickstart",
            [
                f"iterations={iterations + _WARM_UP}",
                f"output.folder={folder}",
                "output.save_every=1000",
                f"rollout.batching={batching}",
                f"rollout.staleness={staleness}",
            ],
        )
        place = join()
        parts = compose.build_parts(config, place)
        searched = (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH)
        found = resolve_tools(None, config.env.world)
        slow = {str(kind): Slow(found[kind], delay_s) for kind in searched}
        task = replace(parts.task, env={**parts.task.env, "tools": slow})  # type: ignore[type-var]
        engine = Engine(parts.policy.scorer, place=place, adam=parts.adam)
        actor = Actor(task, config, engine)
        learner = Learner(parts.policy, engine, parts.algorithm, 1.0, TokenBudget(config.engine.micro_batch_tokens))
        times: list[float] = []

        class Clock:
            def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
                times.append(values["speed/iteration_s"])

        run = Run(config, actor, learner, [Clock()], save=lambda counters: None, evaluate=lambda counters: {})
        train(run)
        actor.close()
        leave()
    return times[_WARM_UP:]


def main(arguments: Sequence[str]) -> None:
    """Each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--delay", type=float, default=1.0)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two ways, one iteration, no delay")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        batching, staleness, delay, iterations = given.one
        print(json.dumps(seconds_of(batching, int(staleness), float(delay), int(iterations))))
        return
    ways = list(itertools.product(("together", "continuous"), (0, 1)))
    if given.quick:
        ways, given.delay, given.iterations = [("continuous", 1)], 0.0, 1
    table: dict[str, Any] = {}
    for batching, staleness in ways:
        note(f"{batching}, staleness {staleness}")
        work = [batching, staleness, given.delay, given.iterations]
        command = [sys.executable, str(Path(__file__)), "--one", *map(str, work)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        seconds = json.loads(done.stdout.strip().splitlines()[-1])
        table[f"{batching}, staleness {staleness}"] = round(statistics.median(seconds), 2)
    report("overlap", {"delay": given.delay, "iterations": given.iterations}, ("torch", "transformers"), table=table)


if __name__ == "__main__":
    main(sys.argv[1:])
