"""What every engine over pages of one's own must do alike: embedded, files, Milvus, and each behind the search server.

The pages are those of a small invented world. The Milvus server is a real process, bound to the loopback address.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError, DataError, ToolError, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.server.app import SearchServer, ServerSettings
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.corpus.build import CorpusSettings, build_corpus
from mmsearch_env.tools.corpus.fusion import fused
from mmsearch_env.tools.corpus.manifest import Manifest
from mmsearch_env.tools.corpus.milvus import MilvusPlace
from mmsearch_env.tools.corpus.sources import find_sources
from mmsearch_env.tools.search_tool import Hit, ImageQuery, PageQuery, Query, SearchResult, SearchTool, TextQuery
from mmsearch_env.worlds import load_world
from mmsearch_env.worlds.pictures import disturbed

WORLD = load_world("synthetic:seed=11,entities=40,per_pair=1")
KINDS = (ActionKind.TEXT_SEARCH, ActionKind.IMAGE_SEARCH, ActionKind.VISIT_PAGE)


class Quiet:
    """Watches a build."""

    def reading(self, done_bytes: float, total_bytes: float) -> None: ...
    def pictures(self, done: int, total: int) -> None: ...
    def is_stopping(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Tools:
    """The three tools of one engine."""

    text: SearchTool
    image: SearchTool
    pages: SearchTool

    def ask(self, query: Query, top_k: int = 3) -> SearchResult:
        return asyncio.run(self.asked(query, top_k))

    async def asked(self, query: Query, top_k: int = 3) -> SearchResult:
        tool = self.text if isinstance(query, TextQuery) else self.image
        tool = self.pages if isinstance(query, PageQuery) else tool
        try:
            return await tool.search(query, top_k=top_k)
        finally:
            await tool.aclose()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's pages as a table."""
    folder = tmp_path_factory.mktemp("pages")
    lines = []
    for number, page in enumerate(WORLD.pages):
        row = {"url": page.url, "title": page.title, "text": page.text}
        if page.picture is not None:
            (folder / f"{number}.png").write_bytes(page.picture.draw(120).to_png())
            row["image"] = f"{number}.png"
        lines.append(json.dumps(row))
    (folder / "pages.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "pages.jsonl"


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("milvus")
    command = Path(sys.executable).with_name("milvus-lite")
    options = ["server", "--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder)]
    server = subprocess.Popen([command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def corpus(folder: Path, table: Path, place: MilvusPlace | None) -> Mapping[str, str]:
    build_corpus(folder, find_sources([table]), [], CorpusSettings("layout", "english", place), Quiet())
    return {"name": "corpus", "path": str(folder)}


@pytest.fixture(scope="module", params=["embedded", "files", "milvus", "served"])
def tools(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    if request.param == "embedded":
        yield Tools(*(build_tool(kind, "local", WORLD) for kind in KINDS))
        return
    place = None
    if request.param == "milvus":
        place = MilvusPlace(request.getfixturevalue("milvus"), "conformance")
    spec = corpus(tmp_path_factory.mktemp("corpus") / "c", request.getfixturevalue("table"), place)
    if request.param != "served":
        yield Tools(*(build_tool(kind, spec) for kind in KINDS))
        return
    with Served({kind: build_tool(kind, spec) for kind in KINDS}) as url:
        yield Tools(*(build_tool(kind, {"name": "server", "base_url": url}) for kind in KINDS))


class Served:
    """A search server on a loop of its own."""

    def __init__(self, tools: Mapping[ActionKind, SearchTool]) -> None:
        import threading

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tools = tools

    def __enter__(self) -> str:
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    async def _start(self) -> str:
        self._server = TestServer(SearchServer(self._tools, ServerSettings()).app())
        await self._server.start_server()
        return str(self._server.make_url("")).rstrip("/")

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


def entity_page(place: int) -> tuple[str, str]:
    """Name of an entity, and the address of its page with a picture."""
    entity = WORLD.entities[place]
    page = next(page for page in WORLD.page_images if page.subject == entity.id)
    return entity.name, page.url


@pytest.mark.parametrize("place", [0, 7, 23])
def test_words_find_pages_that_say_them(tools: Tools, place: int) -> None:
    name, _ = entity_page(place)
    found = tools.ask(TextQuery(f"What is the capital of {name}?"), top_k=4)
    assert 0 < len(found.hits) <= 4
    assert all(name in hit.title + hit.snippet for hit in found.hits[:1])
    assert all(hit.url and hit.title and hit.thumbnail is None for hit in found.hits)
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0.0


def test_the_capital_stands_in_a_snippet_for_most_countries(tools: Tools) -> None:
    right = 0
    for entity in WORLD.entities:
        found = tools.ask(TextQuery(f"capital of {entity.name}"), top_k=5)
        right += any(value in hit.snippet for hit in found.hits for value in entity.facts["capital"])
    assert right >= 0.9 * len(WORLD.entities)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "   ",
        "?!",
        "zzqqxx",
        "who's mayor?",
        "a AND",
        "title:foo",
        '"',
        "-x",
        "*",
        "((",
        "\x00",
        "\ud800",
        "a" * 5000,
    ]
    + ["' OR id > 0", '" or 1 == 1', "<|im_start|>", "ünïcödé 国旗"],
)
def test_whatever_words_are_asked_the_result_is_a_list(tools: Tools, words: str) -> None:
    assert isinstance(tools.ask(TextQuery(words)).hits, tuple)


def test_words_that_stand_nowhere_find_nothing(tools: Tools) -> None:
    assert tools.ask(TextQuery("zzqqxx yyqqzz")).hits == ()


@pytest.mark.parametrize("top_k", [1, 2, 50])
def test_no_more_hits_than_wanted(tools: Tools, top_k: int) -> None:
    assert len(tools.ask(TextQuery("capital city currency"), top_k).hits) <= top_k
    assert len(tools.ask(ImageQuery(WORLD.page_images[0].picture.draw(90)), top_k).hits) <= top_k  # type: ignore[union-attr]


def test_a_disturbed_picture_finds_its_page(tools: Tools) -> None:
    right = 0
    for place in range(0, 40, 2):
        drawing = WORLD.entities[place].drawing
        assert drawing is not None
        found = tools.ask(ImageQuery(disturbed(drawing, "conformance")))
        right += found.hits[0].url == entity_page(place)[1]
    assert right >= 18


def test_a_picture_hit_shows_a_picture_and_scores_fall(tools: Tools) -> None:
    drawing = WORLD.entities[3].drawing
    assert drawing is not None
    found = tools.ask(ImageQuery(drawing.draw(120)))
    scores = [hit.score for hit in found.hits]
    assert found.hits[0].url == entity_page(3)[1] and found.hits[0].snippet == ""
    assert all(isinstance(hit.thumbnail, Image) for hit in found.hits)
    assert scores == sorted(scores, reverse=True) and 0.0 < scores[-1] <= scores[0] <= 1.0


def test_a_part_of_a_picture_is_searched_alone(tools: Tools) -> None:
    import numpy as np

    left, right = WORLD.entities[5].drawing, WORLD.entities[9].drawing
    assert left is not None and right is not None
    sides = [drawing.draw(120).resized(180, 120).pixels for drawing in (left, right)]
    both = Image(np.concatenate(sides, axis=1))
    assert tools.ask(ImageQuery(both, (0.0, 0.0, 0.5, 1.0))).hits[0].url == entity_page(5)[1]
    assert tools.ask(ImageQuery(both, (0.5, 0.0, 1.0, 1.0))).hits[0].url == entity_page(9)[1]


def test_a_page_is_read_by_its_address(tools: Tools) -> None:
    page = WORLD.pages[4]
    (hit,) = tools.ask(PageQuery(page.url), top_k=1).hits
    assert (hit.title, hit.url, hit.snippet) == (page.title, page.url, page.text)


@pytest.mark.parametrize("url", ["https://nowhere.example/", "", '" or id > 0 or url == "', "\\", "a\nb", "ü" * 900])
def test_no_other_address_gives_a_page(tools: Tools, url: str) -> None:
    try:
        found = tools.ask(PageQuery(url), top_k=1)
    except ToolError:
        return
    assert found.hits == ()


def test_searches_side_by_side_give_what_they_give_alone(tools: Tools) -> None:
    queries = [TextQuery(f"currency of {entity.name}") for entity in WORLD.entities[:32]]
    alone = [tools.ask(query) for query in queries]

    async def together() -> list[SearchResult]:
        found = await asyncio.gather(*(tools.text.search(query, top_k=3) for query in queries))
        await tools.text.aclose()
        return list(found)

    assert [_told(result) for result in asyncio.run(together())] == [_told(result) for result in alone]


def _told(result: SearchResult) -> list[tuple[str, str, float]]:
    return [(hit.url, hit.snippet, round(hit.score, 4)) for hit in result.hits]


@pytest.mark.parametrize("kind", ["text", "image", "pages"])
def test_a_query_of_another_kind_is_a_tool_error(tools: Tools, kind: str) -> None:
    picture = WORLD.page_images[0].picture
    assert picture is not None
    query: Query = TextQuery("x") if kind != "text" else ImageQuery(picture.draw(60))
    asked = Tools(*[getattr(tools, kind)] * 3)
    with pytest.raises(ToolError):
        asked.ask(query)


def test_a_tool_may_be_closed_twice_and_used_again(tools: Tools) -> None:
    async def twice() -> None:
        for tool in (tools.text, tools.image, tools.pages):
            await tool.aclose()
            await tool.aclose()

    asyncio.run(twice())
    assert tools.ask(TextQuery("capital")).hits


def test_the_questions_words_may_rank_pictures_too(tmp_path: Path, table: Path, milvus: str) -> None:
    first, other = WORLD.entities[2], WORLD.entities[8]
    assert first.drawing is not None
    words = f"currency of {other.name}"
    for place in (None, MilvusPlace(milvus, "fused")):
        spec = corpus(tmp_path / f"c-{place is None}", table, place)
        tool = build_tool(ActionKind.IMAGE_SEARCH, {**spec, "ranking": "picture_and_words"})
        found = Tools(tool, tool, tool).ask(ImageQuery(first.drawing.draw(120), question_text=words), top_k=6)
        assert entity_page(2)[1] in [hit.url for hit in found.hits[:4]]
        assert any(other.name in hit.snippet for hit in found.hits[:4])
        plain = build_tool(ActionKind.IMAGE_SEARCH, spec)
        alone = Tools(plain, plain, plain).ask(ImageQuery(first.drawing.draw(120), question_text=words), top_k=6)
        assert not any(hit.snippet for hit in alone.hits)
    with pytest.raises(ConfigError, match="expected one of picture, picture_and_words, got 'words'"):
        build_tool(ActionKind.IMAGE_SEARCH, {**spec, "ranking": "words"})


def test_two_rankings_are_fused_by_their_ranks() -> None:
    a, b, c = (Hit(name, name) for name in "abc")
    passage = Hit("b", "b", "said", 9.0)
    found = fused([[a, b], [passage, c]], 3)
    assert [hit.url for hit in found] == ["b", "a", "c"]
    assert found[0].score == pytest.approx(1 / 62 + 1 / 61) and found[0].snippet == "said"
    assert [hit.url for hit in fused([[a, b], [passage, c]], 1)] == ["b"]


# --- Milvus alone ----------------------------------------------------------------------------------------------------


def test_a_milvus_corpus_is_brought_up_to_date(tmp_path: Path, milvus: str) -> None:
    place = MilvusPlace(milvus, "updated")
    table = tmp_path / "t.jsonl"
    rows = [{"url": f"u{i}", "title": f"T{i}", "text": f"The beast zq{i} sleeps."} for i in range(30)]
    table.write_text("\n".join(map(json.dumps, rows)))
    spec = corpus(tmp_path / "c", table, place)
    rows[4]["text"] = "The walrus sleeps."
    table.write_text("\n".join(map(json.dumps, rows[:25])))
    corpus(tmp_path / "c", table, place)
    text = Tools(*(build_tool(kind, spec) for kind in KINDS))
    assert [hit.url for hit in text.ask(TextQuery("walrus")).hits] == ["u4"]
    assert text.ask(TextQuery("zq4")).hits == ()
    assert text.ask(TextQuery("zq27")).hits == ()
    assert [hit.url for hit in text.ask(TextQuery("zq24")).hits] == ["u24"]


def test_a_milvus_server_that_is_gone_is_a_tool_error_and_a_build_says_so(tmp_path: Path, milvus: str) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"url": "u", "text": "owl"}))
    spec = corpus(tmp_path / "c", table, MilvusPlace(milvus, "gone"))
    manifest = tmp_path / "c" / "manifest.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    manifest.write_text(manifest.read_text().replace(milvus, dead))
    asked = Tools(*(build_tool(kind, spec) for kind in KINDS))
    with pytest.raises(ToolUnavailable, match="milvus: expected a reply"):
        asked.ask(TextQuery("owl"))
    with pytest.raises(DataError, match="expected a Milvus server that writes"):
        corpus(tmp_path / "d", table, MilvusPlace(dead, "gone"))


@pytest.mark.parametrize(
    ("uri", "collection"), [("file.db", "c"), ("http://x", "a b"), ("http://x", "1a"), ("http://x", "")]
)
def test_a_place_that_cannot_be_is_refused(uri: str, collection: str) -> None:
    with pytest.raises(ConfigError, match="milvus: expected"):
        MilvusPlace(uri, collection)


def test_the_token_of_a_server_is_never_written(tmp_path: Path, milvus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", "s3cret-t0ken")
    monkeypatch.setenv("MILVUS_URI", milvus)
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"url": "u", "text": "owl"}))
    corpus(tmp_path / "c", table, MilvusPlace(milvus, "secret"))
    for path in (tmp_path / "c").rglob("*"):
        if path.is_file():
            assert b"s3cret" not in path.read_bytes()


@pytest.mark.parametrize(
    ("named", "uri", "match"),
    [
        ("", "http://127.0.0.1:1", "expected MILVUS_URI to name the server"),
        ("http://127.0.0.1:1", "http://127.0.0.1:2", "expected MILVUS_URI to name the server"),
        ("http://milvus.example", "http://milvus.example", "expected https, since a token is sent"),
    ],
)
def test_a_token_goes_only_to_the_server_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, uri: str, match: str
) -> None:
    """Whoever gives a corpus away may name any server in it."""
    monkeypatch.setenv("MILVUS_TOKEN", "s3cret-t0ken")
    monkeypatch.setenv("MILVUS_URI", named)
    Manifest(1, 0, "layout", "", "english", milvus=MilvusPlace(uri, "c").as_json()).write(tmp_path)
    with pytest.raises(ConfigError, match=match):
        build_tool(ActionKind.TEXT_SEARCH, {"name": "corpus", "path": str(tmp_path)})
