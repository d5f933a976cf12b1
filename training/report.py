"""The end of a run: the table before → after."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from agents.evaluate import Evaluation, Outcome, difference, gap_of, paired, scores, search_gap
from agents.statistics import Estimate
from mmsearch_env.errors import DataError


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        about: the category it is about; "" for all questions.
        questions: how many it is a mean over.
        name: what is measured.
        before: the mean before training.
        after: the mean after training.
        change: after minus before, with its 95 % interval; None where nothing can be compared.
        percent: whether the numbers are shares, shown as percentages.
    """

    about: str
    questions: int
    name: str
    before: float
    after: float
    change: Estimate | None
    percent: bool


_MEASURES: tuple[tuple[str, Callable[[Outcome], float], bool], ...] = (
    ("mean reward", lambda outcome: outcome.reward, False),
    ("accuracy", lambda outcome: outcome.accuracy, True),
    ("search ratio", lambda outcome: outcome.searched, True),
    ("calls per question", lambda outcome: outcome.calls, False),
)


def compared(before: Sequence[Outcome], after: Sequence[Outcome]) -> list[Line]:
    """The lines of the table: all questions, the search gap, then each category."""
    lines = _lines("", before, after)
    gap, earlier, later = gap_change(before, after), search_gap(before), search_gap(after)
    if gap is not None and earlier is not None and later is not None:
        lines.append(Line("", len(after), "search gap", earlier.mean, later.mean, gap, True))
    for category in sorted({outcome.category for outcome in after} - {""}):
        mine = [[outcome for outcome in side if outcome.category == category] for side in (before, after)]
        lines += _lines(category, *mine)
    return lines


def gap_change(before: Sequence[Outcome], after: Sequence[Outcome]) -> Estimate | None:
    """How much the search gap has grown, paired by question.

    The gap is the search ratio on search-required minus that on search-free questions. None if a kind is missing.
    """
    pairs = paired(before, after)
    changes = [later.searched - earlier.searched for earlier, later in pairs]
    return gap_of([changes], [later for _, later in pairs])


def table(lines: Sequence[Line]) -> Table:
    """The lines for a terminal of 80 columns, a section for each category; a change that is sure is bold."""
    shown = Table(
        title=f"before → after training, {lines[0].questions} questions",
        caption="search gap: search ratio where a search is required, minus where it is not",
    )
    shown.add_column("")
    for column in ("before", "after", "change", "95 % interval"):
        shown.add_column(column, justify="right")
    about = ""
    for line in lines:
        if line.about != about:
            about = line.about
            shown.add_section()
            shown.add_row(f"[bold]{about.replace('_', ' ')}[/] ({line.questions})")
        number = _percent if line.percent else _plain
        cells = [number(line.before), number(line.after), "", ""]
        if line.change is not None:
            sure = line.change.low > 0 or line.change.high < 0
            cells[2] = (
                f"[bold]{number(line.change.mean, sign=True)}[/]" if sure else number(line.change.mean, sign=True)
            )
            cells[3] = f"{number(line.change.low, sign=True)} … {number(line.change.high, sign=True)}"
        shown.add_row(f"  {line.name}" if about else line.name, *cells)
    return shown


def outcomes_of(data: Mapping[str, Any]) -> list[Outcome]:
    """The outcomes in the JSON of an :class:`~agents.evaluate.Evaluation`."""
    return [Outcome(**row) for row in data["outcomes"]]


def read_outcomes(path: Path) -> list[Outcome]:
    """The outcomes of a stored evaluation. Raises DataError."""
    try:
        return outcomes_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a stored evaluation, got {error}; delete it to evaluate again") from error


def merged(parts: Sequence[Mapping[str, Any]]) -> Evaluation:
    """One evaluation of the JSON of several, made on every n-th question each: questions are put back in order."""
    rows = [outcomes_of(part) for part in parts]
    outcomes = tuple(row[place] for place in range(max(map(len, rows))) for row in rows if place < len(row))
    categories = sorted({outcome.category for outcome in outcomes})
    return Evaluation(
        workflow=str(parts[0]["workflow"]),
        overall=scores(outcomes),
        by_category={name: scores([item for item in outcomes if item.category == name]) for name in categories},
        search_gap=search_gap(outcomes),
        unplayed=sum(int(part["unplayed"]) for part in parts),
        truncated=sum(int(part["truncated"]) for part in parts),
        tool_errors=sum(int(part["tool_errors"]) for part in parts),
        outcomes=outcomes,
        trajectories=(),
    )


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """What of an evaluation is logged during training."""
    overall = evaluation.overall
    return {
        "evaluation/reward": overall.reward.mean,
        "evaluation/accuracy": overall.accuracy.mean,
        "evaluation/search_ratio": overall.search_ratio.mean,
    }


def ends(before: Sequence[Outcome], after: Sequence[Outcome], *, iterations: int) -> list[dict[str, float]]:
    """The scores before and after training as points of the curves, at iteration 0 and at the last."""
    return [
        {
            "iteration": iteration,
            "test/reward": overall.reward.mean,
            "test/accuracy": overall.accuracy.mean,
            "test/search_ratio": overall.search_ratio.mean,
        }
        for iteration, overall in ((0, scores(before)), (iterations, scores(after)))
    ]


def _lines(about: str, before: Sequence[Outcome], after: Sequence[Outcome]) -> list[Line]:
    return [
        Line(
            about,
            len(after),
            name,
            float(np.mean([value(outcome) for outcome in before])),
            float(np.mean([value(outcome) for outcome in after])),
            difference(before, after, value),
            percent,
        )
        for name, value, percent in _MEASURES
    ]


def _percent(value: float, *, sign: bool = False) -> str:
    return f"{100 * value:+.1f} pp" if sign else f"{100 * value:.1f} %"


def _plain(value: float, *, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.3f}"
