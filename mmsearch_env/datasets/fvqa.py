"""FVQA parquet, read as published (``lmms-lab/FVQA``; arXiv 2506.20670, section 3) and as verl-style files derive it.

One row is one question: ``prompt`` holds one user message, ``images`` a picture with its bytes (several are read too),
``reward_model`` the gold answer and a JSON list of further accepted ones. ``category`` (``search_free``,
``search_required``) exists in the training file only, ``image_urls`` is always null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsearch_env.datasets.parquet import ParquetPicture, ParquetTable, picture_column
from mmsearch_env.datasets.rows import RowCollector, clean_answers, expect_text, shown
from mmsearch_env.errors import DataError
from mmsearch_env.images import ImageSource
from mmsearch_env.questions import Question, QuestionSet

REQUIRED = ("prompt", "images", "reward_model")
OPTIONAL = ("data_source", "data_id", "category", "image_urls", "extra_info", "ability", "agent_name")
"""Columns that published files and the trainers around them carry; the last four are not used."""
PICTURES = "images"
IMAGE_MARK = "<image>"
"""Trainers put this into the prompt where the picture goes; the environment places the picture itself."""


def read_fvqa(path: Path) -> QuestionSet:
    """Read a file; rows count from 1. Every picture's header is looked at, none is decoded.

    Raises:
        DataError: the file is corrupt, its columns are not FVQA's, or no row is usable.
    """
    table = ParquetTable(path)
    _check_columns(path, table.columns)
    wanted = [
        name for name in ("prompt", "reward_model", "data_source", "data_id", "category") if name in table.columns
    ]
    rows = RowCollector(path)
    pictures = picture_column(path, PICTURES)
    for number, row in enumerate(table.rows(wanted), start=1):
        try:
            if number in pictures.problems:
                raise DataError(pictures.problems[number])
            if isinstance(row, DataError):
                raise row
            shown_in = [ParquetPicture(path, PICTURES, number, place) for place in range(pictures.count(number))]
            rows.keep(number, _question(row, shown_in, path, number))
        except DataError as error:
            rows.skip(number, str(error))
    return rows.close()


def _check_columns(path: Path, columns: tuple[str, ...]) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        problem = f"no column {missing[0]!r}" if missing else f"the unknown column {shown(unknown[0])}"
        known = ", ".join((*REQUIRED, *(f"{name} (optional)" for name in OPTIONAL)))
        raise DataError(f"{path}: expected the columns {known}, got {problem}; rename or drop it")


def _question(row: dict[str, Any], pictures: Sequence[ImageSource], path: Path, number: int) -> Question:
    return Question(
        id=expect_text(row.get("data_id"), "data_id") or f"{path.stem}-{number}",
        text=_question_text(row["prompt"]),
        image=pictures[0],
        more_images=tuple(pictures[1:]),
        answers=_answers(row["reward_model"]),
        category=expect_text(row.get("category"), "category"),
        source=expect_text(row.get("data_source"), "data_source"),
    )


def _question_text(prompt: object) -> str:
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[-1], dict):
        raise DataError(f"expected 'prompt' to be a list of messages, got {shown(prompt)}; mend the row")
    return expect_text(prompt[-1].get("content"), "content").replace(IMAGE_MARK, "").strip()


def _answers(reward_model: object) -> tuple[str, ...]:
    if not isinstance(reward_model, dict):
        raise DataError(f"expected 'reward_model' to hold the answers, got {shown(reward_model)}; mend the row")
    gold = expect_text(reward_model.get("ground_truth"), "ground_truth")
    further = reward_model.get("candidate_answers") or "[]"
    wrong = f"expected 'candidate_answers' to be a JSON list, got {shown(further)}; mend the row"
    try:
        candidates = json.loads(further) if isinstance(further, str) else list(further)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(wrong) from error
    if not isinstance(candidates, list):
        raise DataError(wrong)
    return clean_answers([gold], candidates)
