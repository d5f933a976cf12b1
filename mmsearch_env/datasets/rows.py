"""What every reader does with a row: keep it as a question, or note why it was skipped."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmsearch_env.errors import DataError
from mmsearch_env.questions import Question, QuestionSet, SkippedRow

MAX_SHOWN_CHARS = 200
"""Most that a message repeats of one value of a row, in characters."""
MAX_REASON_CHARS = 1_000
"""Longest reason for which a row is skipped, in characters: ids and paths are as long as a file likes."""


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
            self.skip(row, f"expected a new id, got {shown(question.id)}, which row {first} has; rename one")
            return
        self._questions.append(question)

    def skip(self, row: int, reason: str) -> None:
        """Note that a row cannot be used. Rows count from 1. What is noted is short and harmless to a terminal."""
        from mmsearch_env.rendering import plain  # late: it costs more than the whole environment, and few rows are bad

        note = plain(f"{self.path}, row {row}: {_shortened(reason, MAX_REASON_CHARS)}")
        self._skipped.append(SkippedRow(row, note.replace("\n", "\u240a")))

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
                raise DataError(f"expected answers to be texts, got {shown(answer)}; quote it")
            if answer.strip():
                answers[answer.strip()] = None
    return tuple(answers)


def json_object(line: str | bytes) -> dict[str, Any]:
    """The object a line holds. Raises DataError for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected a JSON object, got {type(error).__name__}: {error}; mend the line") from error
    if not isinstance(row, dict):
        raise DataError(f"expected a JSON object, got {type(row).__name__}; write one object a line")
    return row


def expect_text(value: object, name: str) -> str:
    """``value`` when it is a text, "" when it is missing.

    Raises:
        DataError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"expected {name!r} to be a text, got {shown(value)}; mend the row")
    return value


def shown(value: object) -> str:
    """A value from a file, as a message may repeat it: its ``repr``, cut short before it is made."""
    return _shortened(_shortener.repr(value), MAX_SHOWN_CHARS)


def _shortened(text: str, limit: int) -> str:
    """``text`` without its middle when it is too long: the end of a message says what to do."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[: limit - half]} ... {text[-half:]}"


class _Shortener(reprlib.Repr):
    """Looks at a few items of a few levels only, and never into a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = MAX_SHOWN_CHARS // 2

    def repr_bytes(self, value: bytes, level: int) -> str:
        return f"<{len(value)} bytes>"


_shortener = _Shortener()
