"""Evaluations as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from agents.evaluate import Evaluation, Scores
from agents.statistics import Estimate

_COLUMNS = ("n", "reward", "accuracy %", "search %", "calls", "valid")


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row for each workflow and below it one for each category of question, for a terminal of 80 columns."""
    table = Table(
        title="means over questions, with 95 % intervals",
        caption="search gap: search ratio where a search is required, minus where it is not",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("workflow", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for evaluation in evaluations:
        table.add_section()
        table.add_row(*_cells(evaluation.workflow, evaluation.overall), style="bold")
        for category, scores in evaluation.by_category.items():
            table.add_row(*_cells(f" {category.replace('_', ' ') or 'unlabelled'}", scores))
        if evaluation.search_gap is not None:
            table.add_row(" search gap", "", "", "", _percent(evaluation.search_gap))
    return table


def _cells(name: str, scores: Scores) -> tuple[str, ...]:
    return (
        name,
        str(scores.questions),
        f"{scores.reward.mean:.2f} [{scores.reward.low:.2f}, {scores.reward.high:.2f}]",
        _percent(scores.accuracy),
        _percent(scores.search_ratio),
        f"{scores.calls.mean:.2f}",
        f"{scores.valid.mean:.2f}",
    )


def _percent(share: Estimate) -> str:
    return f"{100 * share.mean:.0f} [{100 * share.low:.0f}, {100 * share.high:.0f}]"
