"""Which reader reads which file."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

from mmsearch_env.datasets.fvqa import read_fvqa
from mmsearch_env.datasets.jsonl import read_jsonl
from mmsearch_env.errors import DataError
from mmsearch_env.questions import QuestionSet

READERS: dict[str, Callable[[Path], QuestionSet]] = {
    ".parquet": read_fvqa,
    ".pq": read_fvqa,
    ".jsonl": read_jsonl,
}
"""File ending to reader."""

REPORTED_ROWS = 5
"""Skipped rows that are named in the log; the others are counted."""

_log = logging.getLogger(__name__)


def load_questions(spec: str | Path) -> QuestionSet:
    """The questions of a file. A file read before in this process, and not changed since, is not read again.

    Raises:
        DataError: the file is missing, corrupt, of an unknown kind, or holds no usable question. The message names
            the file; where rows are to blame it names the first of them.
    """
    path = _resolved(spec)
    if path.suffix.lower() not in READERS:
        raise DataError(f"{spec}: expected a file ending in {', '.join(READERS)}, got {path.name!r}; convert the file")
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{spec}: expected a readable question file, got {error.strerror}; check the path") from error
    if not path.is_file():
        raise DataError(f"{spec}: expected a question file, got a directory; name a file in it")
    return _read(path, state.st_mtime_ns, state.st_size)


def _resolved(spec: str | Path) -> Path:
    try:
        return Path(spec).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # no such user, a zero byte, links in a circle
        raise DataError(f"{spec}: expected the path of a question file, got {error}; check the path") from error


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified_ns: int, size_bytes: int) -> QuestionSet:
    """Read a file; the last two arguments are there to notice that it changed."""
    questions = READERS[path.suffix.lower()](path)
    if questions.skipped:
        _log.warning("%s", _report(questions))
    return questions


def _report(questions: QuestionSet) -> str:
    skipped = questions.skipped
    lines = [f"{len(skipped)} of {len(questions) + len(skipped)} rows skipped:"]
    lines += [row.reason for row in skipped[:REPORTED_ROWS]]
    if len(skipped) > REPORTED_ROWS:
        lines.append(f"... and {len(skipped) - REPORTED_ROWS} more; QuestionSet.skipped has them all")
    return "\n  ".join(lines)
