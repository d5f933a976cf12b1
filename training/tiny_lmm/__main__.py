"""Make the tiny LMM: ``python -m training.tiny_lmm OUT`` (also under torchrun, one process for each core)."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console

from training.engine import join, leave
from training.tiny_lmm.recipe import Recipe, make_tiny_lmm


def main() -> None:
    """Parse the command line and run the recipe."""
    parser = argparse.ArgumentParser(prog="python -m training.tiny_lmm", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the checkpoint")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of updates (for trials)")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    place = join()
    try:
        make_tiny_lmm(arguments.out, place, Recipe().scaled(arguments.scale), report=_reporter(place.rank))
    finally:
        leave()


def _reporter(rank: int) -> Callable[[str, dict[str, float]], None]:
    """Says on one line how a stage goes; only the first process does."""
    console = Console(quiet=rank != 0, soft_wrap=True, highlight=False)
    start = time.monotonic()

    def report(stage: str, values: dict[str, float]) -> None:
        said = "  ".join(f"{name} {value:g}" for name, value in values.items())
        console.print(f"{(time.monotonic() - start) / 60:6.1f} min  {stage:<10} {said}")

    return report


if __name__ == "__main__":
    main()
