"""Where metrics go: ``metrics.jsonl``, TensorBoard, transcripts. Each is a watcher of the loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.trajectory import Group
from mmsearch_env.errors import DataError
from training.checkpoint import write_text
from training.metrics import check_names


class MetricsFile:
    """``metrics.jsonl``: one line of JSON per iteration, flushed at once; a number that is not finite becomes null."""

    def __init__(self, path: Path, *, after: int) -> None:
        """Go on after iteration ``after``: lines of later iterations, which a resumed run plays again, are dropped."""
        self._path = path
        kept = [line for line in read_metrics(path) if line["iteration"] <= after] if path.exists() else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
        """Append a line. Raises DataError when the disk is full, ValueError for a metric without documentation."""
        check_names(values)
        line = {"iteration": number, **{name: _finite(value) for name, value in values.items()}}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise DataError(f"{self._path}: expected to append metrics, got {error}; make room and resume") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line cut off by a crash is left out. Raises DataError."""
    lines: list[dict[str, Any]] = []
    texts = path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise DataError(f"{path}, line {number}: expected JSON, got {error}; delete the line") from error
    return lines


class TensorBoard:
    """TensorBoard event files."""

    def __init__(self, folder: Path, *, after: int) -> None:
        """Go on after iteration ``after``; what was written for later ones is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after + 1)

    def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
        """Write every number and flush."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()


class Transcripts:
    """``transcripts/000010.md``: the episodes of one group, every n iterations."""

    def __init__(self, folder: Path, *, every: int, render: Callable[[Group], str]) -> None:
        """Args: every: iterations between two files, 0 for none; render: a group as text for people."""
        self._folder, self._every, self._render = folder, every, render

    def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
        """Write the group whose returns differ most, if it is time."""
        if not self._every or number % self._every or not groups:
            return
        group = max(groups, key=_spread)
        heading = f"# Iteration {number}, question {group.question_id}"
        write_text(self._folder / f"{number:06d}.md", f"{heading}\n\n{self._render(group)}")


def _spread(group: Group) -> float:
    returns = [trajectory.episode_return for trajectory in group.trajectories]
    return max(returns) - min(returns)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
