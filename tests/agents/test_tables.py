from __future__ import annotations

from io import StringIO

from rich.console import Console

from agents.evaluate import Evaluation, Scores
from agents.statistics import Estimate
from agents.tables import evaluation_table


def test_the_widest_numbers_fit_80_columns() -> None:
    every, reward, two = Estimate(1.0, 1.0, 1.0), Estimate(0.91, 0.9, 0.91), Estimate(2.0, 2.0, 2.0)
    scores = Scores(1248, reward, every, every, every, two, every, every, every)
    evaluation = Evaluation("on_demand", scores, {"image_required": scores}, every, 0, 0, 0, (), ())
    text = StringIO()
    Console(file=text, width=80).print(evaluation_table([evaluation]))
    shown = text.getvalue()
    assert "image required 1248 0.91 [0.90, 0.91] 100 [100, 100] 100 [100, 100]  2.00  1.00" in shown
    assert "search gap" in shown and "…" not in shown
