from __future__ import annotations

import io
import json
import logging
import os
import pickle
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsearch_env.datasets import load_questions, parquet
from mmsearch_env.errors import DataError, ImageError
from mmsearch_env.images import Image

Row = dict[str, Any]


def grey(level: int) -> Image:
    return Image(np.full((4, 6, 3), level, dtype=np.uint8))


def fvqa_row(level: int = 0, **changes: Any) -> Row:
    row = {
        "prompt": [{"content": "What is the capital?", "role": "user"}],
        "images": [{"bytes": grey(level).to_png(), "path": None}],
        "reward_model": {"candidate_answers": '["Paris", "City of Light"]', "ground_truth": "Paris", "style": "rule"},
        "data_source": "mmsearch_r1/test",
    }
    return row | changes


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Sequence[Row], *, rows_per_group: int = 1000) -> Path:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=rows_per_group)
        return path

    return write


@pytest.fixture
def write_jsonl(tmp_path: Path, picture: Image) -> Callable[..., Path]:
    (tmp_path / "flag.png").write_bytes(picture.to_png())

    def write(*lines: Row | str) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


GOOD = {"question": "Which country?", "answers": ["Chad", "Tchad"], "image": "flag.png"}


def test_published_rows_are_read_unchanged(real_rows: Path) -> None:
    questions = load_questions(real_rows)
    assert [question.text for question in questions] == [
        "What is the country of origin of this food?",
        "What is this building dedicated to?",
        "Who commissioned this building?",
        "What is this garden named after?",
        "Who is the owner of this place?",
    ]
    assert questions[0].answers == ("Spain", "Kingdom of Spain", "ESP", "🇪🇸", "ES")
    assert questions[0].source == "mmsearch_r1/infoseek_train_split"
    assert questions.skipped == ()
    sizes = [(image.width, image.height) for image in (question.load_image() for question in questions)]
    assert sizes == [(384, 512), (800, 531), (800, 600), (800, 600), (533, 800)]


def test_an_fvqa_row_becomes_a_question(write_parquet: Callable[..., Path]) -> None:
    prompt = [{"content": "<image>\nWhat is the capital? ", "role": "user"}]
    row = fvqa_row(7, data_id="fvqa_train_3", category="search_free", image_urls=None, prompt=prompt)
    question = load_questions(write_parquet([row]))[0]
    assert question.id == "fvqa_train_3"
    assert question.text == "What is the capital?"
    assert question.answers == ("Paris", "City of Light")
    assert question.category == "search_free"
    assert question.source == "mmsearch_r1/test"
    assert question.load_image() == grey(7)


def test_rows_without_an_id_are_numbered_from_one(write_parquet: Callable[..., Path]) -> None:
    assert load_questions(write_parquet([fvqa_row(), fvqa_row()])).ids == ("rows-1", "rows-2")


def answers(gold: str | None, candidates: str | None) -> Row:
    return {"candidate_answers": candidates, "ground_truth": gold, "style": "rule"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward_model": answers("", "[]")}, "expected an answer, got none"),
        ({"reward_model": answers(" ", '["", " "]')}, "expected an answer, got none"),
        ({"reward_model": answers("Paris", "[Paris")}, "expected 'candidate_answers' to be a JSON list, got '[Paris'"),
        ({"reward_model": answers("Paris", '{"a": 1}')}, "expected 'candidate_answers' to be a JSON list"),
        ({"reward_model": answers("Paris", "[1]")}, "expected answers to be texts, got 1"),
        ({"reward_model": None}, "expected 'reward_model' to hold the answers, got None"),
        ({"prompt": []}, "expected 'prompt' to be a list of messages, got []"),
        ({"prompt": [{"content": " ", "role": "user"}]}, "expected a text, got an empty one"),
        ({"images": []}, "expected one or more pictures, got 0 pictures"),
        ({"images": None}, "expected one or more pictures, got None"),
        ({"images": [{"bytes": None, "path": None}]}, "expected the picture's bytes in the file, got none"),
        ({"images": [{"bytes": b"junk", "path": None}]}, "its picture: expected a readable picture"),
    ],
)
def test_a_bad_row_is_skipped_with_file_row_and_reason(
    changes: Row, reason: str, write_parquet: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_parquet([fvqa_row(1), fvqa_row(2, **changes), fvqa_row(3)])
    with caplog.at_level(logging.WARNING):
        questions = load_questions(path)
    assert questions.ids == ("rows-1", "rows-3")
    assert questions[1].load_image() == grey(3)
    (skipped,) = questions.skipped
    assert skipped.row == 2
    assert skipped.reason.startswith(f"{path}, row 2: ")
    assert reason in skipped.reason
    assert caplog.messages == [f"1 of 3 rows skipped:\n  {skipped.reason}"]


def test_many_bad_rows_are_named_in_part_and_counted(
    write_parquet: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        questions = load_questions(write_parquet([fvqa_row(), *[fvqa_row(images=[])] * 8]))
    assert len(questions.skipped) == 8
    (message,) = caplog.messages
    assert message.startswith("8 of 9 rows skipped:\n")
    assert message.endswith("\n  ... and 3 more; QuestionSet.skipped has them all")


def test_a_second_row_with_an_id_is_skipped(write_parquet: Callable[..., Path]) -> None:
    questions = load_questions(write_parquet([fvqa_row(1, data_id="a"), fvqa_row(2, data_id="a")]))
    assert questions.ids == ("a",)
    assert "expected a new id, got 'a', which row 1 has" in questions.skipped[0].reason


def test_a_picture_cut_off_after_its_header_fails_when_it_is_loaded(write_parquet: Callable[..., Path]) -> None:
    data = grey(0).resized(64, 64).to_png()
    path = write_parquet([fvqa_row(images=[{"bytes": data[: len(data) // 2], "path": None}])])
    with pytest.raises(ImageError, match=r"rows\.parquet, row 1: expected a readable picture"):
        load_questions(path)[0].load_image()


def test_columns_are_checked(write_parquet: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"rows\.parquet: expected the columns prompt, .* got no column 'images'"):
        load_questions(write_parquet([{"prompt": [], "reward_model": None}]))
    with pytest.raises(DataError, match="got the unknown column 'catgory'; rename or drop it"):
        load_questions(write_parquet([fvqa_row(catgory="search_free")]))


def test_a_file_of_bad_rows_only_is_refused(write_parquet: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"expected at least one usable question, got none \(2 rows skipped, .*row 1"):
        load_questions(write_parquet([fvqa_row(images=[]), fvqa_row(images=[])]))


def test_a_damaged_file_is_refused(write_parquet: Callable[..., Path]) -> None:
    path = write_parquet([fvqa_row(level) for level in range(50)])
    whole = path.read_bytes()
    for broken in (b"", b"PAR1 nothing more", whole[:-20], whole[:100] + bytes(400) + whole[500:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"rows\.parquet: expected a sound parquet file, got .*; fetch it again"):
            load_questions(path)


@pytest.mark.parametrize("rows_per_group", [7, 1000])
def test_pictures_are_found_in_any_order(rows_per_group: int, write_parquet: Callable[..., Path]) -> None:
    questions = load_questions(write_parquet([fvqa_row(level) for level in range(40)], rows_per_group=rows_per_group))
    order = [*range(40), *random.Random(0).sample(range(40), 40), 3, 3, 39, 0]
    assert [int(questions[level].load_image().pixels[0, 0, 0]) for level in order] == order


def test_a_file_is_passed_over_once(write_parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[Sequence[str]] = []
    rows = parquet.ParquetTable.rows

    def counted(self: parquet.ParquetTable, columns: Sequence[str]) -> Any:
        passes.append(columns)
        return rows(self, columns)

    monkeypatch.setattr(parquet.ParquetTable, "rows", counted)
    questions = load_questions(write_parquet([fvqa_row(level) for level in range(5)]))
    for question in reversed(questions):
        question.load_image()
    assert passes == [["images"], ["prompt", "reward_model", "data_source"]]


def test_a_file_is_never_in_memory_as_a_whole(write_parquet: Callable[..., Path]) -> None:
    """20 MB in groups of 2 MB: what is held at once is a few groups at most."""
    noise = random.Random(0)
    rows = [fvqa_row(images=[{"bytes": noise.randbytes(200_000), "path": None}]) for _ in range(100)]
    table = parquet.ParquetTable(write_parquet(rows, rows_per_group=10))
    before = pa.total_allocated_bytes()
    held = max(pa.total_allocated_bytes() - before for _ in table.rows(["images"]))
    assert 0 < held < 12_000_000


def test_a_full_disk_is_named(write_parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_large_temporary_file", lambda: io.FileIO("/dev/full", "w"))
    with pytest.raises(DataError, match="expected room for its pictures in .*, got No space left on device; make room"):
        load_questions(write_parquet([fvqa_row()]))


def test_a_picture_of_a_file_that_changed_or_went_away_is_refused(write_parquet: Callable[..., Path]) -> None:
    path = write_parquet([fvqa_row(1), fvqa_row(2)])
    question = load_questions(path)[1]
    write_parquet([fvqa_row(3)])
    with pytest.raises(ImageError, match="row 2: expected at most 1 rows; the file has changed"):
        question.load_image()
    path.unlink()
    with pytest.raises(ImageError, match="expected a readable file, got No such file or directory; put it back"):
        question.load_image()


def test_threads_may_share_a_file(write_parquet: Callable[..., Path]) -> None:
    questions = load_questions(write_parquet([fvqa_row(level) for level in range(30)], rows_per_group=4))
    seen: dict[int, int] = {}

    def look(levels: Sequence[int]) -> None:
        for level in levels:
            seen[level] = int(questions[level].load_image().pixels[0, 0, 0])

    threads = [threading.Thread(target=look, args=(range(start, 30, 3),)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {level: level for level in range(30)}


def test_parquet_questions_survive_a_pickle(write_parquet: Callable[..., Path]) -> None:
    questions = pickle.loads(pickle.dumps(load_questions(write_parquet([fvqa_row(5)]))))
    assert questions[0].load_image() == grey(5)


def test_a_line_becomes_a_question(write_jsonl: Callable[..., Path], picture: Image) -> None:
    full = GOOD | {"id": "td", "category": "search_required", "source": "flags", "tags": {"continent": "Africa"}}
    questions = load_questions(write_jsonl(GOOD, "", full))
    first, second = questions
    assert (first.id, first.text, first.answers) == ("rows-1", "Which country?", ("Chad", "Tchad"))
    assert (first.category, first.source, dict(first.tags)) == ("", "rows", {})
    assert first.load_image() == picture
    assert (second.id, second.category, second.source) == ("td", "search_required", "flags")
    assert dict(second.tags) == {"continent": "Africa"}


def test_one_answer_may_stand_alone(write_jsonl: Callable[..., Path]) -> None:
    assert load_questions(write_jsonl(GOOD | {"answers": "Chad"}))[0].answers == ("Chad",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "expected a JSON object, got JSONDecodeError"),
        ("[1]", "expected a JSON object, got list"),
        ("[" * 100_000, "expected a JSON object, got RecursionError"),
        ({"question": "Which?", "image": "flag.png"}, "got a row without 'answers'"),
        (GOOD | {"answer": "Chad"}, "got a row with the unknown 'answer'"),
        (GOOD | {"answers": []}, "expected an answer, got none"),
        (GOOD | {"answers": 3}, "expected 'answers' to be a list of texts, got 3"),
        (GOOD | {"answers": [3]}, "expected answers to be texts, got 3"),
        (GOOD | {"question": 5}, "expected 'question' to be a text, got 5"),
        (GOOD | {"question": ""}, "expected a text, got an empty one"),
        (GOOD | {"image": "none.png"}, "none.png: expected a readable picture, got No such file or directory"),
        (GOOD | {"image": "rows.jsonl"}, "rows.jsonl: expected a readable picture"),
        (GOOD | {"image": "."}, "expected a readable picture, got Is a directory"),
        (GOOD | {"tags": {"a": 1}}, "expected 'tags' to be texts by name"),
    ],
)
def test_a_bad_line_is_skipped_with_file_line_and_reason(
    line: Row | str, reason: str, write_jsonl: Callable[..., Path]
) -> None:
    path = write_jsonl(GOOD, line, GOOD)
    questions = load_questions(path)
    assert questions.ids == ("rows-1", "rows-3")
    (skipped,) = questions.skipped
    assert skipped.row == 2
    assert skipped.reason.startswith(f"{path}, row 2: ")
    assert reason in skipped.reason


def test_text_in_another_encoding_is_no_reason_to_stop(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(GOOD)
    path.write_bytes(path.read_bytes() + b"\xff\xfe\x00\n" + path.read_bytes())
    questions = load_questions(path)
    assert questions.ids == ("rows-1", "rows-3")


def test_what_is_no_question_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").touch()
    for name, message in [
        ("missing.jsonl", "expected a readable question file, got No such file or directory; check the path"),
        ("questions.csv", "expected a file ending in .parquet, .pq, .jsonl, got 'questions.csv'; convert the file"),
        ("folder.jsonl", "expected a question file, got a directory; name a file in it"),
        ("empty.jsonl", "expected at least one usable question, got none"),
    ]:
        with pytest.raises(DataError) as caught:
            load_questions(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert message in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(GOOD)
    path.chmod(0)
    with pytest.raises(DataError, match="got Permission denied"):
        load_questions(path)


def test_a_file_is_read_once_until_it_changes(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(GOOD)
    first = load_questions(path)
    assert load_questions(str(path)) is first
    write_jsonl(GOOD, GOOD)
    assert len(load_questions(path)) == 2
