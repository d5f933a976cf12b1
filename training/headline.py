"""The headline, seed by seed: a policy trained to search on demand against fixed plans.

``python -m training.headline`` trains the recipe once per seed, plays the test questions under every workflow with the
untrained and the trained weights, and compares what came of it with the claims. Whatever has been trained or played is
kept, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents.evaluate import Outcome, evaluate
from agents.workflows import DIRECT, FIXED_RAG, ON_DEMAND, Workflow
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import DataError, MMSearchError
from training.claims import UNTRAINED, Claim, Played, claims
from training.compose import build_policy, env_keywords, evaluation_questions
from training.config import RunConfig
from training.config_file import read_config
from training.engine import join, leave
from training.folder import Folder
from training.report import outcomes_of

_PLANS: tuple[tuple[str, tuple[Workflow, ...]], ...] = (
    (UNTRAINED, (ON_DEMAND, DIRECT, FIXED_RAG)),
    ("trained", (ON_DEMAND, FIXED_RAG)),
)
_SEED = 20_26


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when every claim holds, 1 when one does not, 2 on a mistake that a message explains."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        held = _headline(options, console)
    except MMSearchError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False)
        return 2
    return 0 if held else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.headline", description=__doc__)
    parser.add_argument("--recipe", default="headline", help="recipe to train (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/headline"))
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="for training (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    return parser


def _headline(options: argparse.Namespace, console: Console) -> bool:
    configs = {seed: _config(options, seed) for seed in options.seeds}
    for seed, config in configs.items():
        console.rule(f"seed {seed}")
        _train(options, seed, config)
    join()
    try:
        played = _play(options.folder, configs, console)
    finally:
        leave()
    found = claims(played)
    console.print(_table(found))
    result = options.folder / "headline.json"
    result.write_text(json.dumps([claim.to_json() for claim in found], indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {result}", highlight=False)
    return all(claim.holds for claim in found)


def _config(options: argparse.Namespace, seed: int) -> RunConfig:
    return read_config(options.recipe, [*options.overrides, *_of_seed(options, seed)])


def _of_seed(options: argparse.Namespace, seed: int) -> list[str]:
    return [f"seed={seed}", f"output.folder={options.folder / f'seed-{seed}'}"]


def _train(options: argparse.Namespace, seed: int, config: RunConfig) -> None:
    """Train one seed in processes of its own; a finished one is only shown again.

    Raises:
        DataError: training did not come to its end.
    """
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={options.processes}", "-m"]
    command = [sys.executable, "-m", *launcher, "training", options.recipe, *options.overrides]
    status = subprocess.run([*command, *_of_seed(options, seed)], check=False).returncode
    if status or not Folder(Path(config.output.folder)).adapter.is_dir():
        raise DataError(f"seed {seed}: expected a finished run, got exit status {status}; the same command goes on")


def _play(folder: Path, configs: dict[int, RunConfig], console: Console) -> Played:
    """Every workflow with every set of weights, from file where it has been played already."""
    first = next(iter(configs.values()))
    questions = evaluation_questions(first)
    policy = build_policy(first, device=join().device)
    played: Played = {}
    for kind, workflows in _PLANS:
        for name in [UNTRAINED] if kind == UNTRAINED else [f"seed-{seed}" for seed in configs]:
            if name != UNTRAINED:
                policy.load_adapter(Folder(folder / name).adapter)
            for workflow in workflows:
                path = folder / f"{name}-{workflow.name}.json"
                if not path.exists():
                    settings = {**env_keywords(first.env), **workflow.rules, "questions": questions}
                    policy.limits = replace(policy.limits, temperature=first.evaluation.temperature)
                    make_env = partial(MMSearchEnv, **settings)
                    with console.status(f"{name} under {workflow.name}: {len(questions)} questions"):
                        found = evaluate(policy, make_env, questions, seed=_SEED, workflow=workflow)
                    path.write_text(json.dumps(found.to_json()) + "\n", encoding="utf-8")
                played[name, workflow.name] = _outcomes(path)
    return played


def _outcomes(path: Path) -> tuple[Outcome, ...]:
    return tuple(outcomes_of(json.loads(path.read_text(encoding="utf-8"))))


def _table(found: Sequence[Claim]) -> Table:
    table = Table(title="headline (test questions, 95 % intervals)")
    for column in ("claim", "bar", "measured", "holds"):
        table.add_column(column)
    for claim in found:
        table.add_row(claim.name, claim.bar, claim.measured, "[green]yes" if claim.holds else "[red]no")
    return table


if __name__ == "__main__":
    sys.exit(main())
