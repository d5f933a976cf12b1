"""What every reader does with a row: keep it as a question, or note why it was skipped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mmsearch_env.errors import DataError
from mmsearch_env.questions import Question, QuestionSet, SkippedRow


class RowCollector:
    """Questions and skipped rows of one file, in file order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._questions: list[Question] = []
        self._skipped: list[SkippedRow] = []
        self._row_of_id: dict[str, int] = {}

    def keep(self, row: int, question: Question) -> None:
        """Add a question, unless an earlier row has its id already."""
        first = self._row_of_id.setdefault(question.id, row)
        if first != row:
            self.skip(row, f"expected a new id, got {question.id!r}, which row {first} has; rename one")
            return
        self._questions.append(question)

    def skip(self, row: int, reason: str) -> None:
        """Note that a row cannot be used. Rows count from 1."""
        self._skipped.append(SkippedRow(row, f"{self.path}, row {row}: {reason}"))

    def close(self) -> QuestionSet:
        """The set. Raises DataError when no row could be used."""
        return QuestionSet(str(self.path), self._questions, self._skipped)


def clean_answers(*groups: Iterable[object]) -> tuple[str, ...]:
    """Accepted answers without blanks and repetitions, order kept.

    Raises:
        DataError: an answer is not a text.
    """
    answers: dict[str, None] = {}
    for group in groups:
        for answer in group:
            if not isinstance(answer, str):
                raise DataError(f"expected answers to be texts, got {answer!r}; quote it")
            if answer.strip():
                answers[answer.strip()] = None
    return tuple(answers)


def expect_text(value: object, name: str) -> str:
    """``value`` when it is a text, "" when it is missing.

    Raises:
        DataError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"expected {name!r} to be a text, got {value!r}; mend the row")
    return value
