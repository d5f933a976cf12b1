"""``python -m training RECIPE [section.key=value ...]``: train a policy.

RECIPE is a YAML file or the name of a bundled recipe. Also under ``torchrun -m training`` and
``deepspeed --module training``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from mmsearch_env.errors import MMSearchError
from training.config import RunConfig
from training.config.file import read_config, to_mapping


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success and after a polite stop, 2 on a mistake that a message explains."""
    options = _parser().parse_intermixed_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    console = Console(quiet=rank != 0)
    try:
        config = read_config(options.recipe, options.overrides)
        if options.dry_run:
            _describe(config, options.processes or int(os.environ.get("WORLD_SIZE", "1")), console)
        else:
            _train(config, options.resume, console)
    except MMSearchError as error:
        place = f" (rank {rank})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        Console(stderr=True).print(f"[red]{type(error).__name__}[/]{place}: ", end="")
        Console(stderr=True, highlight=False, soft_wrap=True).print(str(error), markup=False)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("ended by Ctrl-C; the same command goes on from the last checkpoint")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train a policy by reinforcement learning.")
    parser.add_argument("recipe", help="YAML file, or the name of a bundled recipe (quickstart, headline, ...)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the recipe and its data, show both, train nothing"
    )
    parser.add_argument("--processes", type=int, default=0, help="for how many --dry-run counts memory (those started)")
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the newest checkpoint (default); never: move an old run aside and start anew",
    )
    # launchers add this; the rank is read from the environment
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def _train(config: RunConfig, resume: str, console: Console) -> None:
    from training import compose, run
    from training.engine import join, leave, wait_for_all
    from training.folder import Folder
    from training.interrupt import stop_on_signals

    if resume == "auto" and run.is_finished(config):
        if os.environ.get("RANK", "0") == "0":
            console.print(
                f"trained already: {config.output.folder} has {config.iterations} iterations or more",
                highlight=False,
                soft_wrap=True,
            )
            run.present(config, console)
        return
    place = join(timeout_s=config.engine.timeout_s)
    try:
        if resume == "never" and place.rank == 0:
            moved = Folder(Path(config.output.folder)).set_aside()
            console.print(f"the old run is kept in {moved}" if moved else "starting anew")
        wait_for_all()
        with stop_on_signals() as stop:
            run.execute(config, compose.build_parts(config, place), place, stop=stop, console=console)
        if place.rank == 0 and run.is_finished(config):
            run.present(config, console)
    finally:
        leave()


def _describe(config: RunConfig, processes: int, console: Console) -> None:
    from training import compose, memory

    console.print(yaml.safe_dump(to_mapping(config), sort_keys=False), highlight=False, markup=False)
    for line in (*compose.description(config), *memory.described(config, processes=processes)):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
