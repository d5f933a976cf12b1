"""Searches written down once and replayed; FVQA's pickle read without running it."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from mmsearch_env.__main__ import main
from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError, DataError, ToolError, ToolTimeout, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.fake import FakeSearch
from mmsearch_env.tools.replay.fvqa_cache import import_fvqa_cache, read_cache
from mmsearch_env.tools.replay.record import Recorder
from mmsearch_env.tools.replay.replay import ReplaySearch
from mmsearch_env.tools.search_tool import Hit, ImageQuery, Query, SearchResult, TextQuery

RED = Image.from_pil(PIL.Image.new("RGB", (32, 24), "red"))
FOUND = SearchResult((Hit("Peru", "https://a.example/1", "The sol.", 2.5, RED), Hit("Sol", "https://a.example/2")))


def searched(tool: Any, *queries: Query, top_k: int = 2) -> list[Any]:
    async def run() -> list[Any]:
        found: list[Any] = []
        for query in queries:
            try:
                found.append(await tool.search(query, top_k=top_k))
            except ToolError as error:
                found.append(error)
        await tool.aclose()
        return found

    return asyncio.run(run())


def titles(result: SearchResult) -> list[str]:
    return [hit.title for hit in result.hits]


def test_what_is_asked_once_is_replayed_for_ever(tmp_path: Path) -> None:
    live = FakeSearch([FOUND, SearchResult(())])
    queries = (TextQuery("currency of Peru"), ImageQuery(RED), TextQuery(" currency  of Peru"))
    first = searched(ReplaySearch(tmp_path, miss="live", live=live), *queries)
    assert len(live.queries) == 2
    again = searched(build_tool(ActionKind.TEXT_SEARCH, {"name": "replay", "path": str(tmp_path)}), *queries)
    assert (
        [titles(result) for result in first]
        == [titles(result) for result in again]
        == [["Peru", "Sol"], [], ["Peru", "Sol"]]
    )
    assert again[0].hits[0].thumbnail is not None
    assert (again[0].hits[0].score, again[0].hits[0].snippet, again[0].hits[1].thumbnail) == (2.5, "The sol.", None)


@pytest.mark.parametrize(("miss", "kind"), [("error", ToolUnavailable), ("empty", SearchResult)])
def test_what_is_not_recorded(tmp_path: Path, miss: str, kind: type) -> None:
    Recorder(tmp_path).write(TextQuery("a"), FOUND, top_k=2)
    tool = build_tool(ActionKind.TEXT_SEARCH, {"name": "replay", "path": str(tmp_path), "miss": miss})
    (found,) = searched(tool, TextQuery("b"))
    assert isinstance(found, kind)


def test_a_failed_search_is_not_recorded(tmp_path: Path) -> None:
    tool = ReplaySearch(tmp_path, miss="live", live=FakeSearch([ToolTimeout("slow"), FOUND]))
    failed, found = searched(tool, TextQuery("a"), TextQuery("a"))
    assert isinstance(failed, ToolTimeout)
    assert titles(found) == ["Peru", "Sol"]


def test_more_hits_than_were_recorded_are_a_miss_unless_there_were_no_more(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(TextQuery("full"), FOUND, top_k=2)
    recorder.write(TextQuery("all"), FOUND, top_k=5)
    full, everything = searched(ReplaySearch(tmp_path), TextQuery("full"), TextQuery("all"), top_k=9)
    assert isinstance(full, ToolUnavailable) and "expected at most the 2 hits that were recorded" in str(full)
    assert titles(everything) == ["Peru", "Sol"]
    assert titles(searched(ReplaySearch(tmp_path), TextQuery("full"), top_k=1)[0]) == ["Peru"]


def test_what_is_recorded_meanwhile_is_found(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(TextQuery("a"), FOUND, top_k=2)
    replay = ReplaySearch(tmp_path)
    assert isinstance(searched(replay, TextQuery("b"), top_k=2)[0], ToolUnavailable)
    recorder.write(TextQuery("b"), FOUND, top_k=2)
    assert titles(searched(replay, TextQuery("b"), top_k=2)[0]) == ["Peru", "Sol"]


def test_a_picture_is_known_by_its_pixels_and_its_box_or_by_its_question(tmp_path: Path) -> None:
    Recorder(tmp_path).write(ImageQuery(RED, question_id="q1"), FOUND, top_k=2)
    blue = Image.from_pil(PIL.Image.new("RGB", (32, 24), "blue"))
    found = searched(
        ReplaySearch(tmp_path),
        ImageQuery(RED),
        ImageQuery(RED, (0.0, 0.0, 0.5, 1.0)),
        ImageQuery(blue, question_id="q1"),
        ImageQuery(blue, (0.0, 0.0, 0.5, 1.0), question_id="q1"),
        ImageQuery(blue, question_id="q2"),
    )
    assert [isinstance(item, SearchResult) for item in found] == [True, False, True, False, False]


def test_strange_line_ends_and_cut_lines_do_not_spoil_a_record(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    strange = SearchResult((Hit("a\u2028b\u0085c", "https://a.example/1"),))
    recorder.write(TextQuery("one"), strange, top_k=2)
    with (tmp_path / "calls.jsonl").open("ab") as file:
        file.write(b'{"question_id": "", "kind": "text_sea' + b"r" * 10_000)
    recorder.write(TextQuery("two"), FOUND, top_k=2)
    one, two = searched(ReplaySearch(tmp_path), TextQuery("one"), TextQuery("two"))
    assert titles(one) == ["a\u2028b\u0085c"] and titles(two) == ["Peru", "Sol"]


def test_a_line_cut_off_by_a_crash_is_left_out_and_one_amid_is_told(tmp_path: Path) -> None:
    Recorder(tmp_path).write(TextQuery("a"), FOUND, top_k=2)
    calls = tmp_path / "calls.jsonl"
    whole = calls.read_text()
    calls.write_text(whole + whole[:40])
    assert titles(searched(ReplaySearch(tmp_path), TextQuery("a"))[0]) == ["Peru", "Sol"]
    calls.write_text(whole[:40] + "\n" + whole)
    with pytest.raises(DataError, match="line 1: expected a recorded search"):
        ReplaySearch(tmp_path)


def test_a_record_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    Recorder(tmp_path).write(TextQuery("a"), FOUND, top_k=2)
    calls = tmp_path / "calls.jsonl"
    line = json.loads(calls.read_text())
    line["hits"][0]["picture"] = "../../secret.jpg"
    calls.write_text(json.dumps(line) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(DataError, match="expected the name of a picture"):
        ReplaySearch(tmp_path)


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    for settings, told in (
        ({"path": str(tmp_path / "nowhere")}, "expected a record with calls.jsonl"),
        ({"path": str(tmp_path), "miss": "maybe"}, "expected one of error, empty, live"),
        ({"path": str(tmp_path), "miss": "live"}, "expected a tool as live where miss is live"),
    ):
        with pytest.raises((ConfigError, DataError), match=told):
            build_tool(ActionKind.TEXT_SEARCH, {"name": "replay", **settings})


def published(path: Path, **entries: Any) -> Path:
    """A pickle as FVQA's: made by Pillow and pickle themselves."""
    path.write_bytes(pickle.dumps(entries))
    return path


def test_the_published_pickle_becomes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [
        PIL.Image.new(mode, (20, 10), 1 if mode == "1" else "red") for mode in ("RGB", "RGBA", "L", "1", "CMYK")
    ]
    pictures.append(PIL.Image.new("RGB", (20, 10), "red").convert("P"))
    opened = tmp_path / "red.png"
    pictures[0].save(opened)
    with PIL.Image.open(opened) as from_file:
        from_file.load()
        entry = {
            "tool_returned_web_title_list": ["Peru", "Sol"],
            "tool_returned_images_urls": [from_file, "https://a.example/x"],
        }
        path = published(
            tmp_path / "cache.pkl",
            fvqa_train_0=entry,
            fvqa_train_1={"tool_returned_web_title_list": ["a"] * 6, "tool_returned_images_urls": pictures},
            fvqa_train_2={"tool_returned_web_title_list": [], "tool_returned_images_urls": []},
            fvqa_train_3={"unexpected": 1},
        )
    assert main(["import-fvqa-cache", str(path), str(tmp_path / "record")]) == 0
    told = capsys.readouterr().out
    assert "3 questions, 7 thumbnails stored, 1 known by address only, 1 skipped" in told
    tool = build_tool(ActionKind.IMAGE_SEARCH, {"name": "replay", "path": str(tmp_path / "record")})
    known, many, none, missing = searched(
        tool, *(ImageQuery(RED, question_id=f"fvqa_train_{number}") for number in (0, 1, 2, 3)), top_k=5
    )
    assert titles(known) == ["Peru", "Sol"]
    assert known.hits[0].thumbnail.pixels[5, 5].tolist() == pytest.approx([254, 0, 0], abs=4)
    assert known.hits[1].url == "https://a.example/x"
    assert len(many.hits) == 5 and all(hit.thumbnail is not None for hit in many.hits)
    assert none.hits == ()
    assert isinstance(missing, ToolUnavailable)


class Hostile:
    """Runs something when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.call[0], self.call[1:])


@pytest.mark.parametrize(
    "call", [(os.system, "touch {}"), (eval, "open('{}', 'w')"), (open, "{}", "w"), (Path.touch, Path("{}"))]
)
def test_nothing_in_a_pickle_is_run(tmp_path: Path, call: tuple[Any, ...]) -> None:
    trace = tmp_path / "trace"
    filled = [Path(str(part).format(trace)) if isinstance(part, Path) else part for part in call]
    filled = [part.format(trace) if isinstance(part, str) else part for part in filled]
    path = published(tmp_path / "cache.pkl", fvqa_train_0=Hostile(*filled))
    with pytest.raises(DataError, match="do not trust it"):
        read_cache(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({1: {}}),
        pickle.dumps({"a": 1}),
        b"\x80\x04\x95" + b"\xff" * 8,
    ],
)
def test_what_is_no_such_pickle_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cache.pkl: expected a "):
        read_cache(path)


def test_a_picture_that_lies_about_itself_goes_without(tmp_path: Path) -> None:
    class Lying:
        def __init__(self, state: list[Any]) -> None:
            self.state = state

        def __reduce__(self) -> tuple[Any, ...]:
            return (PIL.Image.Image, (), self.state)

    states = [
        [{}, "RGB", (10**6, 10**6), None, b""],
        [{}, "RGB", (2, 2), None, b"short"],
        [{}, "XYZ", (1, 1), None, b"x"],
        [{}, "P", (1, 1), [999], b"x"],
        [{}, "RGB", (-1, 1), None, b""],
        "no list",
    ]
    entry = {"tool_returned_web_title_list": ["a"] * 6, "tool_returned_images_urls": [Lying(state) for state in states]}  # type: ignore[arg-type]
    found = import_fvqa_cache(published(tmp_path / "c.pkl", q=entry), tmp_path / "record")
    assert (found.questions, found.pictures, len(found.skipped)) == (1, 0, 6)
