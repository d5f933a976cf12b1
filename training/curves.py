"""Metrics as a picture: what the policy earned, how often it searched, how the optimisation went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch_env.errors import DataError

_INK, _FAINT = "#22303c", "#d5dbe0"
_COLOURS = ("#1b6ca8", "#e07a1f", "#3a8f5c")
_HELD_OUT, _TEST = "validation questions", "test questions, before and after"


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        name: what is drawn.
        series: metric of every iteration -> what it is called here.
        test: metric of the two ends of the run; "" for none.
        shares: whether the numbers are shares, shown as percentages.
    """

    name: str
    series: Mapping[str, str]
    test: str = ""
    shares: bool = False


_PANELS = (
    Panel("Reward", {"reward/mean": "training", "evaluation/reward": _HELD_OUT}, "test/reward"),
    Panel("Accuracy", {"episode/accuracy": "training", "evaluation/accuracy": _HELD_OUT}, "test/accuracy", shares=True),
    Panel(
        "Searching",
        {"episode/search_ratio": "episodes that search", "episode/valid_actions": "valid actions"},
        "test/search_ratio",
        shares=True,
    ),
    Panel("Exploration", {"policy/entropy": "entropy (nats)", "policy/kl": "KL from the reference (nats)"}),
)


def draw(
    lines: Sequence[Mapping[str, Any]], path: Path, *, title: str, ends: Sequence[Mapping[str, float]] = ()
) -> None:
    """Draw the curves of ``lines`` (of ``metrics.jsonl``) as a PNG of 1600 x 1000 pixels.

    Every point is an iteration; the strong line is a running mean over a tenth of the run. ``ends`` are the scores on
    the test questions at the first and the last iteration, drawn as diamonds.

    Raises:
        DataError: there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not lines:
        raise DataError(f"{path}: expected metrics to draw, got none; train at least one iteration")
    figure = Figure(figsize=(10.67, 6.67), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=_INK, fontsize=14, fontweight="bold", x=0.01, ha="left")
    for axes, panel in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        _draw_panel(axes, panel, lines, ends)
    figure.savefig(path)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over the last ``width`` values at each position (fewer at the start)."""
    array = np.asarray(values, dtype=np.float64)
    return [float(array[max(0, end - width) : end].mean()) for end in range(1, len(array) + 1)]


def _draw_panel(
    axes: Any, panel: Panel, lines: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, float]]
) -> None:
    axes.set_title(panel.name, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel("iteration", color=_INK, fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    for (metric, label), colour in zip(panel.series.items(), _COLOURS, strict=False):
        _curve(axes, _points(lines, metric), label, colour)
    if tested := _points(ends, panel.test):
        axes.plot(*zip(*tested, strict=True), "D", color=_INK, markersize=6, label=_TEST)
    if panel.shares:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK, loc="best")


def _points(lines: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    return [(line["iteration"], line[metric]) for line in lines if line.get(metric) is not None]


def _curve(axes: Any, points: Sequence[tuple[int, float]], label: str, colour: str) -> None:
    if not points:
        return
    iterations, values = zip(*points, strict=True)
    width = max(1, len(points) // 10)
    axes.plot(iterations, values, ".", color=colour, alpha=0.3, markersize=4)
    axes.plot(iterations, running_mean(values, width), "-", color=colour, linewidth=2, label=label)
