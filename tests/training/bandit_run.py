"""A whole run of the guessing game in a process of its own: ``bandit_run.py FOLDER [--kill-at N] ...``."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from bandit import GuessPolicy, GuessTask, guess_questions
from rich.console import Console

from training import run
from training.algorithms.presets import grpo
from training.config.file import config_from_mapping
from training.engine import AdamSettings, join, leave
from training.interrupt import stop_on_signals

SETTINGS: dict[str, Any] = {
    "iterations": 6,
    "seed": 3,
    "rollout": {"questions_per_iteration": 6, "group_size": 4},
    "algorithm": {"kl_coefficient": 0.01, "questions_per_update": 3, "epochs": 2},
    "optimiser": {"learning_rate": 0.02},
    "engine": {"micro_batch_tokens": 30},
    "output": {"save_every": 2, "transcripts_every": 2},
}


class Signalled(GuessTask):
    """The game, during whose n-th rollout a signal strikes."""

    strikes: Mapping[int, signal.Signals] = {}
    played = 0

    def rollout(self, *arguments: Any, **keywords: Any) -> Any:
        self.played += 1
        if self.played in self.strikes:
            os.kill(os.getpid(), self.strikes[self.played])
        return super().rollout(*arguments, **keywords)


def _strike_while_saving(number: int) -> None:
    """Die in the n-th call that pushes something to the disk."""
    calls, push = itertools.count(1), os.fsync

    def counted(descriptor: int) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        push(descriptor)

    os.fsync = counted  # type: ignore[assignment]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--stop-at", type=int, default=0)
    parser.add_argument("--kill-at-sync", type=int, default=0, help="while something is pushed to the disk")
    parser.add_argument("--kill-rank", type=int, default=0, help="the rank that these options concern")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = config_from_mapping(
        {
            **SETTINGS,
            "iterations": options.iterations,
            "engine": {**SETTINGS["engine"], "zero_stage": options.zero_stage},
            "output": {**SETTINGS["output"], "folder": options.folder},
        }
    )
    place = join(timeout_s=60.0)
    policy = GuessPolicy()
    task = Signalled(policy, guess_questions())
    if place.rank == options.kill_rank:
        task.strikes = {options.kill_at: signal.SIGKILL, options.stop_at: signal.SIGTERM}
        _strike_while_saving(options.kill_at_sync)
    parts = run.Parts(
        policy=policy,
        task=task,
        algorithm=grpo(kl_coefficient=config.algorithm.kl_coefficient),
        adam=AdamSettings(),
        test_questions=task.questions,
        questions_during=[],
    )
    with stop_on_signals() as stop:
        run.execute(config, parts, place, stop=stop, console=Console(quiet=place.rank != 0))
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
