"""Question files: from a path to a :class:`~mmsearch_env.questions.QuestionSet`.

Two forms are read: FVQA parquet as it is published (:mod:`~mmsearch_env.datasets.fvqa`) and JSON lines with picture
paths (:mod:`~mmsearch_env.datasets.jsonl`). A row that cannot be used is skipped, counted and reported; a file that
cannot be used is a :class:`~mmsearch_env.errors.DataError`.
"""

from __future__ import annotations

from mmsearch_env.datasets.loading import load_questions

__all__ = ["load_questions"]
