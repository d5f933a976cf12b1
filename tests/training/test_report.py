from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from bandit import GuessPolicy, GuessTask, guess_questions
from rich.console import Console

from agents.evaluate import Outcome
from mmsearch_env.errors import DataError
from training.report import compared, ends, evaluation_metrics, gap_change, merged, outcomes_of, read_outcomes, table


def outcome(number: int, category: str, reward: float, searches: float) -> Outcome:
    return Outcome(
        question_id=str(number),
        cluster=str(number),
        category=category,
        reward=reward,
        accuracy=float(reward > 0.5),
        searched=float(searches > 0),
        image_searches=0.0,
        text_searches=searches,
        valid=1.0,
        truncated=0.0,
    )


BEFORE = [
    *(outcome(number, "search_free", 0.0, 1.0) for number in range(20)),
    *(outcome(number, "search_required", 0.0, 0.0) for number in range(20, 40)),
]
AFTER = [
    *(outcome(number, "search_free", 1.0, 0.0) for number in range(20)),
    *(outcome(number, "search_required", 0.0, 1.0) for number in range(20, 40)),
]


def test_lines_by_hand() -> None:
    lines = {(line.about, line.name): line for line in compared(BEFORE, AFTER)}
    assert (lines["", "mean reward"].before, lines["", "mean reward"].after) == (0.0, 0.5)
    assert lines["", "calls per question"].after == 0.5
    gap = lines["", "search gap"]
    assert (gap.before, gap.after) == (-1.0, 1.0)
    assert gap.change is not None
    assert (gap.change.mean, gap.change.low, gap.change.high) == (2.0, 2.0, 2.0)
    free = lines["search_free", "search ratio"]
    assert free.change is not None
    assert (free.change.mean, free.questions) == (-1.0, 20)


def test_the_ends_of_the_curves_by_hand() -> None:
    first, last = ends(BEFORE, AFTER, iterations=60)
    assert first == {"iteration": 0, "test/reward": 0.0, "test/accuracy": 0.0, "test/search_ratio": 0.5}
    assert last == {"iteration": 60, "test/reward": 0.5, "test/accuracy": 0.5, "test/search_ratio": 0.5}


def test_the_gap_needs_both_kinds() -> None:
    assert gap_change(BEFORE[:20], AFTER[:20]) is None
    assert "search gap" not in {line.name for line in compared(BEFORE[:20], AFTER[:20])}


def test_the_gaps_interval_is_a_bootstrap_over_questions() -> None:
    after = [*AFTER[:20], *AFTER[20:30], *(outcome(number, "search_required", 0.0, 0.0) for number in range(30, 40))]
    change = gap_change(BEFORE, after)
    assert change is not None
    # 10 of 20 changed: the standard error of the mean is sqrt(0.25 / 20) = 0.112
    assert change.mean == pytest.approx(1.5)
    assert change.low == pytest.approx(1.5 - 1.96 * 0.112, abs=0.05)
    assert change.high == pytest.approx(1.5 + 1.96 * 0.112, abs=0.05)


def test_the_table_is_readable() -> None:
    console = Console(width=80, record=True, file=StringIO())
    console.print(table(compared(BEFORE, AFTER)))
    text = console.export_text()
    assert "before → after training, 40 questions" in text
    assert any("mean reward" in line and "0.000" in line and "+0.500" in line for line in text.splitlines())
    assert any("search gap" in line and "-100.0 %" in line and "+200.0 pp" in line for line in text.splitlines())
    assert any("search required (20)" in line for line in text.splitlines())


def test_outcomes_come_back_from_a_file(tmp_path: Path) -> None:
    evaluation = GuessTask(GuessPolicy(), guess_questions()).evaluate(guess_questions())
    path = tmp_path / "before.json"
    path.write_text(json.dumps(evaluation.to_json()))
    assert tuple(read_outcomes(path)) == evaluation.outcomes
    assert tuple(outcomes_of(evaluation.to_json())) == evaluation.outcomes
    assert evaluation_metrics(evaluation)["evaluation/reward"] == evaluation.overall.reward.mean


def test_evaluations_of_every_other_question_become_one() -> None:
    task, questions = GuessTask(GuessPolicy(), guess_questions()), guess_questions(11)
    whole = task.evaluate(questions)
    parts = [json.loads(json.dumps(task.evaluate(questions[rank::3]).to_json())) for rank in range(3)]
    assert merged(parts).to_json() == whole.to_json()


@pytest.mark.parametrize("text", ["{", "{}", '{"outcomes": [{"what": 1}]}'])
def test_a_file_that_is_no_evaluation_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "before.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"before\.json: expected a stored evaluation"):
        read_outcomes(path)
