"""The commands that search from the shell and look after the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsearch_env.__main__ import main
from mmsearch_env.cache.tool_cache import ToolCache
from mmsearch_env.worlds import load_world


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    peru = load_world("atlas").entity("peru")
    assert peru.drawing is not None
    (tmp_path / "flag.png").write_bytes(peru.drawing.load().to_png())
    return tmp_path / "flag.png"


def test_words_are_searched_for(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = told(capsys, "search", "currency of Peru", "--top-k", "2")
    assert status == 0
    assert "sol" in out and out.count("https://atlas.example/") == 2
    assert out.startswith("1. ") and "\n2. " in out


def test_a_picture_is_searched_for(capsys: pytest.CaptureFixture[str], flag: Path) -> None:
    status, out, _ = told(capsys, "search", "--image", str(flag), "--top-k", "1")
    assert status == 0
    assert "Peru" in out and "https://atlas.example/" in out
    status, out, _ = told(capsys, "search", "--image", str(flag), "--crop", "0", "0", "0.5", "1", "--json")
    assert status == 0
    assert {"title", "url", "snippet", "score"} == set(json.loads(out)[0])


def test_a_back_end_is_named_or_described(capsys: pytest.CaptureFixture[str]) -> None:
    spec = json.dumps({"name": "fake", "script": [[{"title": "a", "url": "https://a.example/", "snippet": "b"}]]})
    status, out, _ = told(capsys, "search", "x", "--backend", spec, "--json")
    assert (status, json.loads(out)[0]["title"]) == (0, "a")
    status, out, _ = told(capsys, "search", "x", "--backend", '{"name": "fake"}')
    assert (status, out.strip()) == (0, "nothing found")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search"], "expected either words or --image FILE"),
        (["search", "x", "--image", "y"], "expected either words or --image FILE"),
        (["search", "x", "--crop", "0", "0", "1", "1"], "expected --image beside it"),
        (["search", "x", "--top-k", "0"], "expected 1 or more, got 0"),
        (["search", "x", "--backend", "{"], "expected a name or JSON"),
        (["search", "x", "--backend", "altavista"], "expected a name of local"),
        (["search", "x", "--backend", "none"], "expected a search tool, got the tool 'none'"),
        (["search", "--image", "/nowhere.png"], "expected a picture file, got none"),
        (["cache", "stats", "/nowhere"], "expected the folder of a cache, got /nowhere"),
    ],
)
def test_a_mistake_is_told_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    status, _, err = told(capsys, *arguments)
    assert status == 2
    assert expected in err and "Traceback" not in err


def test_another_folder_is_no_cache_and_does_not_become_one(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("mine")
    assert main(["cache", "stats", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_the_cache_is_looked_after(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cache = ToolCache(tmp_path)
    for number in range(3):
        cache.put(str(number), b"body", kind="rows", request={"query": number}, expire_s=600)
    cache.close()
    _, out, _ = told(capsys, "cache", "stats", str(tmp_path))
    assert "answers" in out and "rows" in out and "3" in out
    assert "3 answers are sound" in told(capsys, "cache", "verify", str(tmp_path))[1]
    _, out, _ = told(capsys, "cache", "export", str(tmp_path))
    assert [json.loads(line)["request"] for line in out.splitlines()] == [{"query": number} for number in range(3)]
    _, out, _ = told(capsys, "cache", "export", str(tmp_path), "--out", str(tmp_path / "answers.jsonl"))
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3
    assert "0 answers removed" in told(capsys, "cache", "prune", str(tmp_path))[1]
    assert "3 answers removed" in told(capsys, "cache", "prune", str(tmp_path), "--older-than-days", "0")[1]
    assert ToolCache(tmp_path).stats().answers == 0
