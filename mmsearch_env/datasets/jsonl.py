"""JSON lines: one question a line, pictures as files.

    {"question": "Which country has this flag?", "answers": ["Chad", "Tchad"], "image": "flags/td.png"}

``question``, ``answers`` and ``image`` are required; a relative picture path counts from the file's own folder, and a
question about several pictures has a list of paths.
``id``, ``category``, ``source`` and ``tags`` (texts by name) are optional. Blank lines are ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsearch_env.datasets.pictures import PictureFile
from mmsearch_env.datasets.rows import RowCollector, clean_answers, expect_text, json_object, shown
from mmsearch_env.errors import DataError
from mmsearch_env.questions import Question, QuestionSet

REQUIRED = ("question", "answers", "image")
OPTIONAL = ("id", "category", "source", "tags")
MAX_LINE_CHARS = 1_000_000
"""Longest line that is parsed, in characters; pictures do not belong inside."""


def read_jsonl(path: Path) -> QuestionSet:
    """Read a file; rows are line numbers.

    Raises:
        DataError: the file cannot be read or no line is usable.
    """
    rows = RowCollector(path)
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _take(rows, number, line)
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got {error.strerror}; check its permissions") from error
    return rows.close()


def _take(rows: RowCollector, number: int, line: str) -> None:
    try:
        rows.keep(number, _question(_parse(line), rows.path, number))
    except DataError as error:
        rows.skip(number, str(error))


def _parse(line: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_CHARS:
        raise DataError(f"expected at most {MAX_LINE_CHARS} characters, got {len(line)}; keep pictures in files")
    return json_object(line)


def _question(row: dict[str, Any], path: Path, number: int) -> Question:
    _check_columns(row)
    answers = [row["answers"]] if isinstance(row["answers"], str) else row["answers"]
    if not isinstance(answers, list):
        raise DataError(f"expected 'answers' to be a list of texts, got {shown(answers)}; write a list")
    pictures = _pictures(row["image"], path)
    return Question(
        id=expect_text(row.get("id"), "id") or f"{path.stem}-{number}",
        text=expect_text(row["question"], "question"),
        image=pictures[0],
        more_images=pictures[1:],
        answers=clean_answers(answers),
        category=expect_text(row.get("category"), "category"),
        source=expect_text(row.get("source"), "source") or path.stem,
        tags=_tags(row.get("tags")),
    )


def _pictures(value: object, path: Path) -> tuple[PictureFile, ...]:
    """Of a path, or of a list of paths."""
    if isinstance(value, list) and not all(isinstance(one, str) for one in value or [None]):
        raise DataError(f"expected 'image' to be a path or a list of paths, got {shown(value)}; mend the row")
    paths = value if isinstance(value, list) else [value]
    pictures = tuple(PictureFile(path.parent / expect_text(one, "image")) for one in paths)
    for picture in pictures:
        picture.check()
    return pictures


def _check_columns(row: dict[str, Any]) -> None:
    missing = [name for name in REQUIRED if name not in row]
    unknown = [name for name in row if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        problem = f"without {missing[0]!r}" if missing else f"with the unknown {shown(unknown[0])}"
        known = ", ".join((*REQUIRED, *(f"{name} (optional)" for name in OPTIONAL)))
        raise DataError(f"expected the columns {known}, got a row {problem}; rename or drop it")


def _tags(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(tag, str) for tag in value.values()):
        raise DataError(f"expected 'tags' to be texts by name, got {shown(value)}; quote the values")
    return dict(value)
