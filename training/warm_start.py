"""A supervised warm start: an adapter trained to say what was said in recorded episodes.

``python -m training.warm_start quickstart RECORDING --folder OUT`` learns from the episodes of a recording (made by
``python -m agents evaluate --record RECORDING``) that earned at least ``--least-reward``: what was said, not what was
read. A killed command goes on where it was. Reinforcement learning begins from the result with
``policy.adapter=OUT/adapter``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents.recording import read_recording, to_json
from agents.trajectory import Trajectory
from mmsearch_env.errors import ConfigError, DataError, MMSearchError
from training import checkpoint
from training.compose import adam_settings, build_policy
from training.config import RunConfig
from training.config.file import read_config, to_mapping
from training.engine import Place, join, leave
from training.order import seed_of
from training.sft import SupervisedPlan, fit
from training.stages import Stage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when it is trained, 2 on a mistake that a message explains."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        config = read_config(options.recipe, options.overrides)
        if config.engine.zero_stage == 3:
            raise ConfigError("engine.zero_stage: expected at most 2 for a warm start, got 3")
        episodes = _chosen(read_recording(options.recording), least_reward=options.least_reward)
        place = join(timeout_s=config.engine.timeout_s)
        try:
            _trained(config, options, episodes, place)
        finally:
            leave()
    except MMSearchError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False)
        return 2
    return 0


def batch_at(update: int, *, episodes: int, size: int, seed: int, place: Place) -> list[int]:
    """Which episodes this rank learns from in an update, counted from 0; every pass goes over all in a new order."""
    numbers = range(update * size, (update + 1) * size)
    orders = {
        one: np.random.default_rng(seed_of(seed, 7, one)).permutation(episodes)
        for one in {number // episodes for number in numbers}
    }
    chosen = [int(orders[number // episodes][number % episodes]) for number in numbers]
    return chosen[place.rank :: place.world_size]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.warm_start", description=__doc__)
    parser.add_argument("recipe", help="whose policy, engine and optimiser are used, but for its schedule")
    parser.add_argument("recording", type=Path, help="folder of a recording")
    parser.add_argument("--folder", type=Path, required=True, help="where the adapter goes")
    parser.add_argument("--least-reward", type=float, default=0.5, help="of an episode worth learning (%(default)s)")
    parser.add_argument("--passes", type=float, default=3.0, help="over the episodes (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="episodes of one update (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    return parser


def _chosen(episodes: Sequence[Trajectory], *, least_reward: float) -> list[Trajectory]:
    chosen = [one for one in episodes if one.turns and any(one.loss_mask) and one.episode_return >= least_reward]
    if not chosen:
        raise DataError(
            f"expected episodes with a reward of {least_reward:g} or more, got none of {len(episodes)}; lower "
            "--least-reward"
        )
    return chosen


def _trained(config: RunConfig, options: argparse.Namespace, episodes: list[Trajectory], place: Place) -> None:
    policy = build_policy(config, device=place.device)
    size = max(options.batch, place.world_size)
    updates = max(1, round(options.passes * len(episodes) / size))
    plan = SupervisedPlan(
        updates=updates,
        learning_rate=config.optimiser.learning_rate,
        warmup=min(config.optimiser.warmup_steps, updates),
        token_budget=config.engine.micro_batch_tokens,
    )
    console = Console(quiet=place.rank != 0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{len(episodes)} episodes", total=updates)
        made = fit(
            policy,
            place,
            lambda update: [
                episodes[number]
                for number in batch_at(update, episodes=len(episodes), size=size, seed=config.seed, place=place)
            ],
            plan,
            adam=adam_settings(config),
            zero_stage=config.engine.zero_stage,
            stage=Stage(options.folder / "stage", made_of=_made_of(config, options, episodes), every=20),
            on_update=lambda update, loss: bar.update(
                task, completed=update + 1, description=f"{len(episodes)} episodes, {loss:.3f} nats a token"
            ),
        )
        bar.update(task, completed=updates)
    if place.rank == 0:
        checkpoint.write_folder(options.folder / "adapter", policy.save_adapter)
    said = "adapter written to" if made else "trained already, from the same episodes; the adapter is in"
    console.print(f"{said} {options.folder / 'adapter'}", highlight=False, soft_wrap=True)


def _made_of(config: RunConfig, options: argparse.Namespace, episodes: Sequence[Trajectory]) -> str:
    """All that the result depends on, so that nothing else is gone on with."""
    told = {name: to_mapping(config)[name] for name in ("policy", "optimiser", "seed")}
    state = hashlib.sha256(json.dumps([told, options.passes, options.batch], sort_keys=True).encode())
    for one in episodes:
        state.update(json.dumps(to_json(one), sort_keys=True).encode())
    return state.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
