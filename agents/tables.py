"""Evaluations as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from agents.evaluate import Evaluation, Scores

_COLUMNS = ("reward", "accuracy", "search ratio", "calls", "valid")


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row for each workflow, and below it one for each category of question."""
    table = Table(title="means over questions, with 95 % intervals")
    table.add_column("workflow / category")
    table.add_column("questions", justify="right")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for evaluation in evaluations:
        table.add_row(evaluation.workflow, *_cells(evaluation.overall), style="bold")
        for category, scores in evaluation.by_category.items():
            table.add_row(f"  {category or 'unlabelled'}", *_cells(scores))
        if evaluation.search_gap is not None:
            table.add_row("  search gap", "", "", "", str(evaluation.search_gap), "", "", end_section=True)
    return table


def _cells(scores: Scores) -> tuple[str, ...]:
    shown = (scores.reward, scores.accuracy, scores.search_ratio, scores.calls)
    return (str(scores.questions), *(str(value) for value in shown), f"{scores.valid.mean:.3f}")
