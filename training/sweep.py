"""One recipe with several values of some setting and several seeds, and a table that compares them.

``python -m training.sweep quickstart --vary algorithm.name=grpo,rloo --seeds 0,1,2`` trains each value once per seed,
in processes of its own. What has been trained is kept, so the same command goes on after an interruption. Changes are
after training minus before, question by question and seed by seed, with 95 % intervals over questions.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from agents.evaluate import Outcome, gap_of
from agents.statistics import Estimate, Values, mean
from mmsearch_env.errors import ConfigError, MMSearchError
from training.checkpoint import write_text
from training.config.file import read_config
from training.folder import Folder
from training.launching import seeds_in, train_in_processes
from training.records import read_metrics
from training.report import read_outcomes


@dataclass(frozen=True, slots=True)
class Row:
    """One value of what is varied.

    Attributes:
        value: it.
        reward: change of the mean reward.
        accuracy: change of the accuracy.
        searched: change of the share of questions that were searched.
        gap: change of the search gap; none without labels.
        after: mean reward after training, by seed.
        seconds: of training, median over iterations, mean over seeds.
    """

    value: str
    reward: Estimate
    accuracy: Estimate
    searched: Estimate
    gap: Estimate | None
    after: tuple[float, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when everything is trained, 2 on a mistake that a message explains."""
    options = _parser().parse_intermixed_args(arguments)
    console = Console()
    try:
        rows = _swept(options, console)
    except MMSearchError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False)
        return 2
    console.print(table(rows, varied=options.vary.partition("=")[0], seeds=len(options.seeds)))
    result = options.folder / "sweep.json"
    write_text(result, json.dumps({"vary": options.vary, "rows": [row.to_json() for row in rows]}, indent=1) + "\n")
    console.print(f"written to {result}", highlight=False)
    return 0


def row_of(value: str, folders: Sequence[Folder]) -> Row:
    """What came of the runs of one value, one a seed. Raises DataError where a run is not finished."""
    sides = [(read_outcomes(folder.before), read_outcomes(folder.after)) for folder in folders]
    clusters = [outcome.cluster for outcome in sides[0][1]]
    searched = _changes(sides, lambda outcome: outcome.searched)
    seconds = [float(np.median([line["speed/iteration_s"] for line in read_metrics(f.metrics)])) for f in folders]
    return Row(
        value=value,
        reward=mean(_changes(sides, lambda outcome: outcome.reward), clusters),
        accuracy=mean(_changes(sides, lambda outcome: outcome.accuracy), clusters),
        searched=mean(searched, clusters),
        gap=gap_of(searched.tolist(), sides[0][1]),
        after=tuple(float(np.mean([outcome.reward for outcome in after])) for _, after in sides),
        seconds=float(np.mean(seconds)),
    )


def table(rows: Sequence[Row], *, varied: str, seeds: int) -> Table:
    """The rows for a terminal of 80 columns; a change that is sure is bold."""
    shown = Table(title=f"change by training, seeds: {seeds}, 95 % intervals", caption="s: seconds an iteration")
    shown.add_column(varied.rpartition(".")[2], no_wrap=True)
    for column in ("reward", "accuracy", "searched", "search gap", "s"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        gap = "" if row.gap is None else _cell(row.gap)
        shown.add_row(row.value, *map(_cell, (row.reward, row.accuracy, row.searched)), gap, f"{row.seconds:.1f}")
    return shown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.sweep", description=__doc__)
    parser.add_argument("recipe", help="recipe to train")
    parser.add_argument("--vary", required=True, metavar="section.key=A,B", help="a setting and its values")
    parser.add_argument("--seeds", type=seeds_in, default=[0, 1, 2], metavar="A,B", help="of the runs (0,1,2)")
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="for training (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    return parser


def _swept(options: argparse.Namespace, console: Console) -> list[Row]:
    key, _, values = options.vary.partition("=")
    if not values:
        raise ConfigError(f"--vary: expected section.key=A,B, got {options.vary!r}")
    for override in options.overrides:
        if override.startswith(("seed=", "output.folder=")):
            raise ConfigError(f"expected no {override!r}, since a sweep sets it for each run; use --seeds and --folder")
    plans: dict[str, list[list[str]]] = {}
    for value in values.split(","):
        folder = options.folder / value
        plans[value] = [[*options.overrides, f"{key}={value}", *_of_seed(folder, seed)] for seed in options.seeds]
    for runs in plans.values():  # every mistake before anything is trained
        for overrides in runs:
            read_config(options.recipe, overrides)
    rows = []
    for value, runs in plans.items():
        for overrides in runs:
            console.rule(" ".join(overrides[-3:-1]))
            train_in_processes(options.recipe, overrides, processes=options.processes)
        rows.append(row_of(value, [Folder(options.folder / value / str(seed)) for seed in options.seeds]))
    return rows


def _of_seed(folder: Path, seed: int) -> list[str]:
    return [f"seed={seed}", f"output.folder={folder / str(seed)}"]


def _changes(sides: Sequence[tuple[Sequence[Outcome], Sequence[Outcome]]], value: Callable[[Outcome], float]) -> Values:
    """After minus before: (seeds, questions)."""
    return np.array([[value(new) - value(old) for old, new in zip(*side, strict=True)] for side in sides])


def _cell(change: Estimate) -> str:
    mean_text = f"{change.mean:+.3f}"
    sure = change.low > 0 or change.high < 0
    return f"{f'[bold]{mean_text}[/]' if sure else mean_text}\n{change.low:+.2f}…{change.high:+.2f}"


if __name__ == "__main__":
    sys.exit(main())
