"""Rows made to break a reader: each costs itself, a short reason, and nothing else."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsearch_env.datasets import load_questions
from mmsearch_env.datasets.rows import shown
from mmsearch_env.errors import DataError
from mmsearch_env.images import Image

Row = dict[str, Any]
WriteTable = Callable[[pa.Table], Path]

LONGEST_REASON = 1_500
"""In characters, with the path of the file."""


@pytest.fixture
def lines(tmp_path: Path, picture: Image) -> Callable[..., Path]:
    """Write a good line, a bad one made from it, and the good one again."""
    (tmp_path / "flag.png").write_bytes(picture.to_png())
    os.mkfifo(tmp_path / "pipe.png")

    def write(**changes: Any) -> Path:
        good = {"question": "Which?", "answers": ["Chad"], "image": "flag.png"}
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in (good, good | changes, good)))
        return path

    return write


@pytest.fixture
def write_table(tmp_path: Path) -> WriteTable:
    def write(table: pa.Table) -> Path:
        path = tmp_path / "rows.parquet"
        pq.write_table(table, path)
        return path

    return write


def fvqa_row(picture: Image, **changes: Any) -> Row:
    row = {
        "prompt": [{"content": "What is it?", "role": "user"}],
        "images": [{"bytes": picture.to_png(), "path": "a"}],
        "reward_model": {"candidate_answers": "[]", "ground_truth": "Chad"},
        "data_id": None,
    }
    return row | changes


def only_the_second_is_skipped(path: Path) -> str:
    questions = load_questions(path)
    assert questions.ids == ("rows-1", "rows-3")
    assert questions[1].load_image().width == 8
    (skipped,) = questions.skipped
    assert skipped.row == 2
    assert len(skipped.reason) < LONGEST_REASON
    return skipped.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": "a\0.png"}, "a␀.png: expected the path of a picture, got embedded null byte; check the path"),
        ({"image": "\ud800.png"}, "\ufffd.png: expected the path of a picture, got 'utf-8' codec can't encode"),
        ({"image": "pipe.png"}, "expected a file, got a pipe, a socket or a device; check the path"),
        ({"image": "x" * 100_000}, "expected a readable picture, got File name too long; check the path"),
        ({"image": "\x1b[2J\x07\n.png"}, "␛[2J␇␊.png: expected a readable picture, got No such file"),
        ({"answers": [["y" * 100_000] * 9]}, "expected answers to be texts, got ['yyy"),
        ({"answers": {"y" * 100_000: 1}}, "expected 'answers' to be a list of texts, got {'yyy"),
        ({"tags": ["y" * 100_000]}, "expected 'tags' to be texts by name, got ['yyy"),
        ({"z" * 100_000: 1}, "got a row with the unknown 'zzz"),
        ({"id": "z" * 100_000, "question": ""}, "expected a text, got an empty one; drop or mend the row"),
    ],
)
def test_a_hostile_line_costs_itself(changes: Row, reason: str, lines: Callable[..., Path]) -> None:
    assert reason in only_the_second_is_skipped(lines(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward_model": {"candidate_answers": "[" * 100_000, "ground_truth": "x"}}, "to be a JSON list, got '[[["),
        ({"prompt": [{"content": None, "role": "x" * 100_000}]}, "expected a text, got an empty one"),
        ({"data_id": "x" * 100_000, "prompt": []}, "expected 'prompt' to be a list of messages, got []"),
    ],
)
def test_a_hostile_row_costs_itself(changes: Row, reason: str, picture: Image, write_table: WriteTable) -> None:
    rows = [fvqa_row(picture), fvqa_row(picture, **changes), fvqa_row(picture)]
    assert reason in only_the_second_is_skipped(write_table(pa.Table.from_pylist(rows)))


@pytest.mark.parametrize("column", ["data_id", "images"])
def test_a_text_that_is_no_utf8_costs_its_row(column: str, picture: Image, write_table: WriteTable) -> None:
    table = pa.Table.from_pylist([fvqa_row(picture) for _ in range(3)])
    broken = pa.array([None, b"\xff", None], pa.binary()).cast(pa.string(), safe=False)
    if column == "images":
        paths = pa.array([b"a", b"\xff", b"a"]).cast(pa.string(), safe=False)
        data = pa.array([picture.to_png()] * 3)
        broken = pa.ListArray.from_arrays([0, 1, 2, 3], pa.StructArray.from_arrays([data, paths], ["bytes", "path"]))
    path = write_table(table.set_column(table.column_names.index(column), column, broken))
    reason = only_the_second_is_skipped(path)
    assert "expected text in UTF-8 and values in range, got 'utf-8' codec can't decode byte 0xff" in reason
    assert reason.endswith("; mend the row")


def test_pictures_outside_a_list_are_refused_in_few_words(picture: Image, write_table: WriteTable) -> None:
    bare = {"bytes": bytes(1_000_000), "path": "p" * 100_000}
    path = write_table(pa.Table.from_pylist([fvqa_row(picture, images=bare)] * 3))
    with pytest.raises(DataError, match=r"expected one or more pictures, got \{'bytes': <1000000 bytes>") as caught:
        load_questions(path)
    assert len(str(caught.value)) < LONGEST_REASON


def test_the_log_commands_no_terminal(lines: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_questions(lines(image="\x1b]0;owned\x07.png"))
    (message,) = caplog.messages
    assert "␛]0;owned␇.png" in message
    assert "\x1b" not in message


@pytest.mark.parametrize("spec", ["~nobody-has-this-name/x.jsonl", "a\0.jsonl", "\ud800.jsonl"])
def test_an_impossible_path_is_named(spec: str) -> None:
    with pytest.raises(DataError, match=r"expected the path of a question file, got .*; check the path"):
        load_questions(spec)


def test_a_value_is_shown_in_short() -> None:
    assert shown({"answer": ["Chad", None, 3]}) == "{'answer': ['Chad', None, 3]}"
    assert shown(b"abc") == "<3 bytes>"
    assert shown("\x1b") == r"'\x1b'"
    for value in ("x" * 1_000_000, ["x" * 1_000_000] * 9, {str(key) * 99: [b""] * 99 for key in range(99)}):
        assert len(shown(value)) <= 210
