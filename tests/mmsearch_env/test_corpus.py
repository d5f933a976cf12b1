"""Corpora: what is read from files, what is kept of it, how it is brought up to date, and how it is searched."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pyarrow
import pyarrow.parquet
import pytest

from mmsearch_env.__main__ import main
from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError, DataError, ToolError, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.searching import ask
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.corpus import batches as batches_module
from mmsearch_env.tools.corpus import corpus as corpus_module
from mmsearch_env.tools.corpus import sources as sources_module
from mmsearch_env.tools.corpus import vectors as vectors_module
from mmsearch_env.tools.corpus.build import BuildReport, CorpusSettings, build_corpus
from mmsearch_env.tools.corpus.catalogue import Catalogue
from mmsearch_env.tools.corpus.encoders import LayoutEncoder
from mmsearch_env.tools.corpus.sift import SiftEncoder
from mmsearch_env.tools.corpus.sources import find_sources
from mmsearch_env.tools.corpus.vectors import Vectors, write_vectors
from mmsearch_env.tools.corpus.writer import FilesWriter
from mmsearch_env.tools.pages.parsing import PageParsers, PageText
from mmsearch_env.tools.search_tool import ImageQuery, PageQuery, SearchResult, TextQuery


class Quiet:
    """Watches a build; stops it after so many batches' worth of looks."""

    def __init__(self, looks: float = float("inf")) -> None:
        self.looks = looks

    def reading(self, done_bytes: float, total_bytes: float) -> None:
        assert 0 <= done_bytes <= total_bytes

    def pictures(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def is_stopping(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def built(
    into: Path, *paths: Path, settings: CorpusSettings | None = None, watcher: Quiet | None = None
) -> BuildReport:
    folders = [path.name for path in paths if path.is_dir()]
    chosen = settings or CorpusSettings(encoder="layout")
    return build_corpus(into, find_sources(paths), folders, chosen, watcher or Quiet())


def searched(into: Path, words: str, top_k: int = 3) -> SearchResult:
    tool = build_tool(ActionKind.TEXT_SEARCH, {"name": "corpus", "path": str(into)})
    return asyncio.run(tool.search(TextQuery(words), top_k=top_k))


def looked(into: Path, image: Image, top_k: int = 3) -> SearchResult:
    tool = build_tool(ActionKind.IMAGE_SEARCH, {"name": "corpus", "path": str(into)})
    return asyncio.run(tool.search(ImageQuery(image), top_k=top_k))


def page(into: Path, url: str) -> SearchResult:
    tool = build_tool(ActionKind.VISIT_PAGE, {"name": "corpus", "path": str(into)})
    return asyncio.run(tool.search(PageQuery(url), top_k=1))


def collage(seed: int, width: int = 240, height: int = 180) -> PIL.Image.Image:
    generator = np.random.default_rng(seed)
    picture = PIL.Image.new("RGB", (width, height), tuple(generator.integers(0, 255, 3).tolist()))
    pen = PIL.ImageDraw.Draw(picture)
    for _ in range(50):
        x, y, size = generator.integers(0, width), generator.integers(0, height), generator.integers(5, 45)
        draw = pen.rectangle if generator.random() < 0.5 else pen.ellipse
        draw([x, y, x + size, y + size // 2 + 3], fill=tuple(generator.integers(0, 255, 3).tolist()))
    return picture


def encoded(picture: PIL.Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def animals(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {
            "url": f"https://zoo.example/{i}",
            "title": f"Animal {i}",
            "text": f"The beast zq{i} eats food{i % 7} at night.",
        }
        for i in range(start, start + count)
    ]


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "zoo.jsonl", animals(50))


# --- what is read ----------------------------------------------------------------------------------------------------


def test_a_table_is_found_by_its_words(tmp_path: Path, zoo: Path) -> None:
    report = built(tmp_path / "c", zoo)
    assert (report.documents, report.read, report.skipped, report.is_whole) == (50, 50, 0, True)
    (first, *_) = searched(tmp_path / "c", "which beast is zq17?").hits
    assert (first.url, first.title) == ("https://zoo.example/17", "Animal 17")
    assert "zq17" in first.snippet


def test_a_stem_finds_other_forms_and_no_stemmer_does_not(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "t.jsonl", [{"url": "u", "title": "", "text": "Owls were hunting."}])
    built(tmp_path / "stems", table)
    built(tmp_path / "forms", table, settings=CorpusSettings("layout", stemmer=""))
    assert searched(tmp_path / "stems", "owl hunts").hits
    assert not searched(tmp_path / "forms", "owl hunts").hits
    assert searched(tmp_path / "forms", "hunting").hits


@pytest.mark.parametrize(
    "words", ["who's mayor?", "a AND", "title:foo", '"', "-word", "<|im_start|>", "*", "((", "\ud800"]
)
def test_no_query_is_a_mistake(tmp_path: Path, zoo: Path, words: str) -> None:
    built(tmp_path / "c", zoo)
    assert isinstance(searched(tmp_path / "c", words), SearchResult)


def test_rows_of_search_r1_have_their_title_in_the_first_line(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "wiki.jsonl", [{"id": "7", "contents": '"Barn owl"\nIt hunts at night.'}])
    built(tmp_path / "c", table)
    (hit,) = searched(tmp_path / "c", "night hunting").hits
    assert (hit.title, hit.url, hit.snippet) == ("Barn owl", "7", "It hunts at night.")


def test_a_row_without_an_address_is_found_under_its_place(tmp_path: Path) -> None:
    built(tmp_path / "c", jsonl(tmp_path / "t.jsonl", [{"title": "Owl"}, {"text": "An owl."}]))
    (hit,) = searched(tmp_path / "c", "owl").hits
    assert hit.url == "t.jsonl#2"


def test_a_folder_gives_pages_with_the_pictures_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    (folder / "birds").mkdir(parents=True)
    (folder / "birds" / "owl.md").write_text("# The barn owl\nIt hunts at night.")
    collage(1).save(folder / "birds" / "owl.png")
    collage(2).save(folder / "birds" / "king_fisher.jpg")
    (folder / "page.html").write_text(
        "<html><title>Bats</title><body><p>Bats hang in caves by day, and hunt insects after dusk.</p></body></html>"
    )
    (folder / ".hidden.txt").write_text("secret")
    (folder / "program.py").write_text("print()")
    report = built(tmp_path / "c", folder)
    assert (report.documents, report.pictures) == (3, 2)
    (owl,) = searched(tmp_path / "c", "barn owl").hits
    assert (owl.url, owl.title) == ("zoo/birds/owl.md", "The barn owl")
    assert searched(tmp_path / "c", "caves").hits[0].title == "Bats"
    best = looked(tmp_path / "c", Image.from_pil(collage(2))).hits[0]
    assert (best.url, best.title) == ("zoo/birds/king_fisher.jpg", "king fisher")
    assert best.thumbnail is not None and max(best.thumbnail.width, best.thumbnail.height) == 160
    assert not searched(tmp_path / "c", "secret").hits


def test_parquet_holds_pictures_as_bytes_or_in_lists(tmp_path: Path) -> None:
    cells = [[{"bytes": encoded(collage(i)), "path": None}] for i in range(3)]
    table = pyarrow.table({"id": ["a", "b", "c"], "title": ["A", "B", "C"], "image": cells, "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    report = built(tmp_path / "c", tmp_path / "t.parquet")
    assert report.pictures == 3
    assert looked(tmp_path / "c", Image.from_pil(collage(1))).hits[0].url == "b"


def test_bad_rows_are_counted_and_named_and_the_others_kept(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    table = tmp_path / "t.jsonl"
    rows = [
        json.dumps({"url": "ok", "text": "an owl"}),
        "{not json",
        "[1]",
        json.dumps({"url": "none"}),
        json.dumps({"url": ["x"], "text": "owl"}),
        json.dumps({"url": "ok", "text": "again"}),
        json.dumps({"url": "gone", "image": "gone.png"}),
        json.dumps({"url": "bad", "image": "bad.png"}),
        json.dumps({"url": "bad-2", "text": "an owl in the dark", "image": "bad.png"}),
        json.dumps({"url": "a\u0000b", "text": "owl"}),
        json.dumps({"url": "u" * 5000, "text": "owl"}),
        json.dumps({"url": 12, "text": "half a pair \ud800 owl"}),
    ]
    table.write_text("\n".join(rows) + "\n")
    report = built(tmp_path / "c", table)
    assert {hit.url for hit in searched(tmp_path / "c", "owl", 9).hits} == {"ok", "bad-2", "12"}
    assert report.skipped == 10
    assert [row for _, row, _ in report.problems] == list(range(2, 12))
    assert all(reason.startswith(("expected", "its picture: expected")) for _, _, reason in report.problems)


def test_a_line_beyond_the_limit_is_passed_over_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch_env.tools.corpus.sources.MAX_LINE_CHARACTERS", 100)
    long = json.dumps({"url": "long", "text": "owl " * 100})
    (tmp_path / "t.jsonl").write_text(long + "\n" + json.dumps({"url": "short", "text": "owl"}) + "\n")
    report = built(tmp_path / "c", tmp_path / "t.jsonl")
    assert [hit.url for hit in searched(tmp_path / "c", "owl").hits] == ["short"]
    assert report.skipped == 1


@pytest.mark.parametrize("name", ["none.jsonl", "words.docx"])
def test_a_source_of_no_known_kind_is_refused(tmp_path: Path, name: str) -> None:
    if name.endswith("docx"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match="expected a folder, or a file ending in"):
        find_sources([tmp_path / name])


def test_two_places_of_one_name_are_refused(tmp_path: Path) -> None:
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        jsonl(tmp_path / side / "t.jsonl", animals(1))
    with pytest.raises(DataError, match="'t.jsonl' twice"):
        find_sources([tmp_path / "a" / "t.jsonl", tmp_path / "b" / "t.jsonl"])


def test_a_folder_without_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected files ending in"):
        find_sources([tmp_path])


# --- bringing up to date ---------------------------------------------------------------------------------------------


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, zoo: Path) -> None:
    built(tmp_path / "c", zoo)
    again = built(tmp_path / "c", zoo)
    assert (again.read, again.written, again.unchanged, again.documents) == (0, 0, 1, 50)


def test_only_rows_that_differ_are_written_and_those_gone_are_removed(tmp_path: Path, zoo: Path) -> None:
    built(tmp_path / "c", zoo)
    rows = animals(50)
    rows[3]["text"] = "The beast is a walrus now."
    jsonl(zoo, rows[:-5] + animals(2, start=90))
    report = built(tmp_path / "c", zoo)
    assert (report.written, report.removed, report.documents) == (3, 5, 47)
    assert [hit.url for hit in searched(tmp_path / "c", "walrus").hits] == ["https://zoo.example/3"]
    assert not searched(tmp_path / "c", "zq3").hits
    assert not searched(tmp_path / "c", "zq48").hits
    assert searched(tmp_path / "c", "zq91").hits


def test_a_folder_is_mirrored_and_other_sources_stay(tmp_path: Path, zoo: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    for name in ("owl", "bat"):
        (folder / f"{name}.txt").write_text(f"The {name} of the night.")
        collage(len(name)).save(folder / f"{name}.png")
    built(tmp_path / "c", zoo, folder)
    (folder / "bat.txt").unlink()
    (folder / "bat.png").unlink()
    (folder / "fox.txt").write_text("The fox of the night.")
    report = built(tmp_path / "c", folder)
    assert (report.written, report.removed, report.documents, report.pictures) == (1, 1, 52, 1)
    assert {hit.title for hit in searched(tmp_path / "c", "night", 60).hits} >= {"owl", "fox"}
    assert [hit.title for hit in looked(tmp_path / "c", Image.from_pil(collage(3)), 5).hits] == ["owl"]


def test_a_changed_picture_replaces_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for number in (1, 2):
        collage(number).save(folder / f"{number}.png")
    built(tmp_path / "c", folder)
    collage(9).save(folder / "1.png")
    report = built(tmp_path / "c", folder)
    assert (report.written, report.pictures) == (1, 2)
    hits = looked(tmp_path / "c", Image.from_pil(collage(9))).hits
    assert hits[0].url == "f/1.png" and hits[0].score > 0.99
    assert looked(tmp_path / "c", Image.from_pil(collage(1))).hits[0].score < 0.9


def test_an_address_belongs_to_the_source_that_had_it_first(tmp_path: Path, zoo: Path) -> None:
    other = jsonl(tmp_path / "other.jsonl", [{"url": "https://zoo.example/1", "text": "a usurper"}])
    built(tmp_path / "c", zoo)
    report = built(tmp_path / "c", zoo, other)
    assert report.skipped == 1 and "zoo.jsonl has" in report.problems[0][2]
    assert not searched(tmp_path / "c", "usurper").hits


def test_a_corpus_keeps_the_settings_it_was_made_with(tmp_path: Path, zoo: Path) -> None:
    built(tmp_path / "c", zoo)
    with pytest.raises(ConfigError, match="stemmer: expected 'english', which it was made with, got ''"):
        built(tmp_path / "c", zoo, settings=CorpusSettings("layout", ""))
    with pytest.raises(ConfigError, match="encoder: expected sift, layout or neural:MODEL, got 'vgg'"):
        built(tmp_path / "d", zoo, settings=CorpusSettings("vgg"))


def test_a_stopped_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = jsonl(tmp_path / "t.jsonl", animals(1000))
    stopped = built(tmp_path / "c", table, watcher=Quiet(looks=300))
    assert not stopped.is_whole and 0 < stopped.documents < 1000
    with pytest.raises(DataError, match="got one whose build was stopped; run the same index command again"):
        searched(tmp_path / "c", "zq1")
    report = built(tmp_path / "c", table)
    assert report.read == 1000 - stopped.read
    assert report.documents == 1000


def test_a_reader_sees_what_a_build_published(tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path / "c", zoo)
    monkeypatch.setattr(corpus_module, "_LOOK_AGAIN_S", 0.0)
    tool = build_tool(ActionKind.TEXT_SEARCH, {"name": "corpus", "path": str(tmp_path / "c")})
    assert not asyncio.run(tool.search(TextQuery("walrus"), top_k=1)).hits
    jsonl(zoo, [*animals(50), {"url": "new", "text": "a walrus"}])
    built(tmp_path / "c", zoo)
    assert asyncio.run(tool.search(TextQuery("walrus"), top_k=1)).hits


_KILLED = """
import sys
from pathlib import Path
from mmsearch_env.tools.corpus import batches, build
batches.BATCH_ROWS = 200
sys.path.insert(0, {here!r})
class Quiet:
    def reading(self, done_bytes, total_bytes): print("reading", flush=True)
    def pictures(self, done, total): pass
    def is_stopping(self): return False
build.build_corpus(Path({into!r}), build_sources(), [], build.CorpusSettings("layout"), Quiet())
"""


def test_a_killed_build_loses_and_doubles_nothing(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "t.jsonl", animals(6000))
    code = (
        "from mmsearch_env.tools.corpus.sources import find_sources\nfrom pathlib import Path\n"
        f"build_sources = lambda: find_sources([Path({str(table)!r})])\n"
    ) + _KILLED.format(here=str(tmp_path), into=str(tmp_path / "c"))
    generator = np.random.default_rng(3)
    kills = 0
    for _ in range(30):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(float(generator.uniform(0.0, 0.25)))
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            process.wait()
        finally:
            process.stdout.close()
    report = built(tmp_path / "c", table)
    assert kills and report.documents == 6000
    tool = build_tool(ActionKind.TEXT_SEARCH, {"name": "corpus", "path": str(tmp_path / "c")})
    for number in range(0, 6000, 97):
        hits = asyncio.run(tool.search(TextQuery(f"zq{number}"), top_k=5)).hits
        assert [hit.url for hit in hits] == [f"https://zoo.example/{number}"]


def test_what_was_written_but_not_confirmed_is_taken_back(
    tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def committed_then_died(writer: FilesWriter) -> None:
        writer._text.commit()
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(FilesWriter, "commit", committed_then_died)
        with pytest.raises(Died):
            built(tmp_path / "c", zoo)
    jsonl(zoo, animals(60, start=10))  # the same ids will now mean other documents
    built(tmp_path / "c", zoo)
    for number in range(10, 70):
        hits = searched(tmp_path / "c", f"zq{number}").hits
        assert [hit.url for hit in hits] == [f"https://zoo.example/{number}"]
    assert not searched(tmp_path / "c", "zq3").hits


def test_a_lost_text_index_is_written_again(tmp_path: Path, zoo: Path) -> None:
    import shutil

    built(tmp_path / "c", zoo)
    shutil.rmtree(tmp_path / "c" / "text")
    with pytest.raises(ToolUnavailable, match="expected a text index"):
        searched(tmp_path / "c", "zq1")
    report = built(tmp_path / "c", zoo)
    assert (report.written, report.documents) == (50, 50)
    assert searched(tmp_path / "c", "zq1").hits


def test_an_address_that_stands_twice_in_a_table_belongs_to_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"url": "a", "text": "the first owl"},
        {"url": "b", "text": "a bat"},
        {"url": "a", "text": "the second owl"},
    ]
    for batch_rows in (1, 100):
        monkeypatch.setattr("mmsearch_env.tools.corpus.batches.BATCH_ROWS", batch_rows)
        into = tmp_path / f"c{batch_rows}"
        table = jsonl(tmp_path / "t.jsonl", rows)
        assert built(into, table).skipped == 1
        changed = jsonl(tmp_path / "t.jsonl", [*rows, {"url": "c", "text": "a fox"}])
        report = built(into, changed)
        assert (report.written, report.skipped) == (1, 1)
        assert searched(into, "owl").hits[0].snippet == "the first owl"


@pytest.mark.parametrize("how", ["the row goes", "the row goes while the other table changes", "the table goes"])
def test_an_address_that_its_owner_drops_is_the_next_ones(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    first = jsonl(folder / "a.jsonl", [{"url": "u1", "text": "the first owl"}, {"url": "u2", "text": "a bat"}])
    second = [{"url": "u1", "text": "the second owl"}]
    jsonl(folder / "b.jsonl", second)
    assert built(tmp_path / "c", folder).skipped == 1
    if how == "the table goes":
        first.unlink()
    else:
        jsonl(first, [{"url": "u2", "text": "a bat"}])
    if "changes" in how:
        jsonl(folder / "b.jsonl", [*second, {"url": "u3", "text": "a fox"}])
    report = built(tmp_path / "c", folder)
    assert (report.skipped, report.removed) == (0, 2 if how == "the table goes" else 1)
    assert [hit.snippet for hit in searched(tmp_path / "c", "owl").hits] == ["the second owl"]
    assert built(tmp_path / "c", folder).read == 0


def test_vectors_are_written_again_only_when_pictures_change(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    collage(1).save(folder / "1.png")
    (folder / "owl.txt").write_text("an owl")
    built(tmp_path / "c", folder)
    (first,) = (tmp_path / "c").glob("vectors-*")
    (folder / "bat.txt").write_text("a bat")
    built(tmp_path / "c", folder)
    assert list((tmp_path / "c").glob("vectors-*")) == [first]
    collage(2).save(folder / "2.png")
    built(tmp_path / "c", folder)
    (second,) = (tmp_path / "c").glob("vectors-*")
    assert second != first


def test_pictures_that_change_are_found_until_the_build_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers have the vectors that were published last, and those name pictures as they were then."""
    folder = tmp_path / "f"
    folder.mkdir()
    for number in range(6):
        collage(number).save(folder / f"{number}.png")
    built(tmp_path / "c", folder)
    old = Image.from_pil(collage(2))
    for number in range(6):
        collage(100 + number).save(folder / f"{number}.png")
    monkeypatch.setattr(batches_module, "BATCH_ROWS", 6)
    assert not built(tmp_path / "c", folder, watcher=Quiet(1)).is_whole
    for _ in range(2):  # also after a second build that was stopped
        (hit, *_) = looked(tmp_path / "c", old).hits
        assert hit.url == "f/2.png" and hit.score > 0.99
        built(tmp_path / "c", folder, watcher=Quiet(0))
    built(tmp_path / "c", folder)
    assert looked(tmp_path / "c", old).hits[0].score < 0.9
    assert looked(tmp_path / "c", Image.from_pil(collage(102))).hits[0].score > 0.99
    built(tmp_path / "c", folder)
    with closing(sqlite3.connect(tmp_path / "c" / "catalogue.sqlite")) as database:
        assert database.execute("SELECT COUNT(*) FROM pictures").fetchone() == (6,)


def test_a_reader_goes_on_when_what_it_was_about_to_open_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    collage(1).save(folder / "1.png")
    built(tmp_path / "c", folder)
    tool = build_tool(ActionKind.IMAGE_SEARCH, {"name": "corpus", "path": str(tmp_path / "c")})
    for number in (2, 3):
        collage(number).save(folder / f"{number}.png")
        built(tmp_path / "c", folder)
    assert len(asyncio.run(tool.search(ImageQuery(Image.from_pil(collage(3))), top_k=3)).hits) == 3


def test_a_full_disk_is_said_and_the_next_run_goes_on(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "t.jsonl", animals(30_000))
    command = [sys.executable, "-m", "mmsearch_env", "index", str(table), "--into", str(tmp_path / "c")]
    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=_little_room, check=False, timeout=120)
    assert full.returncode == 2 and "DataError" in full.stderr and "Traceback" not in full.stderr, full.stderr[-2000:]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "documents  30,000" in done.stdout
    assert [hit.url for hit in searched(tmp_path / "c", "zq29999").hits] == ["https://zoo.example/29999"]


def test_a_full_disk_while_vectors_are_written_is_said(tmp_path: Path) -> None:
    script = f"""
import numpy as np
from pathlib import Path
from mmsearch_env.errors import DataError
from mmsearch_env.tools.corpus.vectors import write_vectors
block = np.arange(2000), np.zeros((2000, 64), np.float32)
try:
    write_vectors(Path({str(tmp_path)!r}), [block], rows=2000, size=64)
except DataError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, preexec_fn=_little_room, check=True, timeout=60
    )
    assert "expected room for 0.5 MB of vectors" in done.stdout


def _little_room() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_a_damaged_table_costs_itself_and_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    jsonl(folder / "a.jsonl", animals(3))
    (folder / "b.parquet").write_bytes(b"PAR1 and nothing else")
    jsonl(folder / "c.jsonl", animals(3, start=10))
    for _ in range(2):
        report = built(tmp_path / "c", folder)
        assert (report.documents, report.skipped, report.is_whole) == (6, 1, True)
        ((source, _, reason),) = report.problems
        assert source == "f/b.parquet" and "expected a sound parquet file" in reason
    pyarrow.parquet.write_table(pyarrow.table({"url": ["u"], "text": ["a yak"]}), folder / "b.parquet")
    assert built(tmp_path / "c", folder).skipped == 0
    assert [hit.url for hit in searched(tmp_path / "c", "yak").hits] == ["u"]
    (folder / "b.parquet").write_bytes(b"PAR1 and nothing else")
    assert built(tmp_path / "c", folder).documents == 7  # what was read of it stays
    with pytest.raises(DataError, match="expected a sound parquet file"):
        built(tmp_path / "d", folder / "b.parquet")


def test_a_page_that_ends_the_parser_or_takes_too_long_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for name, seconds in (("a", 0.0), ("b", 30.0), ("c", 0.0)):
        (folder / f"{name}.html").write_text(f"<article><p>{name}: the owl sleeps {seconds} s by day.</p></article>")

    class Slow(PageParsers):
        def submit(self, markup: str) -> Future[PageText]:
            return self._pool.submit(time.sleep, 30.0) if "30.0" in markup else super().submit(markup)

    monkeypatch.setattr(sources_module, "_PARSE_S", 3.0)
    monkeypatch.setattr(sources_module, "PageParsers", Slow)
    sources_module._parsers.cache_clear()
    report = built(tmp_path / "c", folder)
    sources_module._parsers().end()
    sources_module._parsers.cache_clear()
    assert (report.documents, report.skipped) == (2, 1)
    assert "expected a page that is parsed within 3 s, got b.html" in report.problems[0][2]


def test_pages_without_text_or_of_another_encoding_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("Überall läßt man die Vögel für Übung zwölf Lieder üben. ".encode("latin-1"))
    (folder / "good.txt").write_text("a good yak")
    report = built(tmp_path / "c", folder)
    assert (report.documents, report.skipped) == (1, 2)
    assert "expected a page with text" in report.problems[0][2]
    assert "expected a page in UTF-8, got latin.txt" in report.problems[1][2]


def test_an_address_that_is_freed_while_a_table_is_half_read_goes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "BATCH_ROWS", 4)
    folder = tmp_path / "f"
    folder.mkdir()
    first = jsonl(folder / "a.jsonl", animals(3))
    built(tmp_path / "c", folder)
    jsonl(folder / "b.jsonl", [{"url": "https://zoo.example/2", "text": "a yak"}, *animals(9, start=10)])
    jsonl(first, animals(2))
    report = built(tmp_path / "c", folder)
    assert (report.skipped, report.removed) == (0, 1)
    assert [hit.url for hit in searched(tmp_path / "c", "yak").hits] == ["https://zoo.example/2"]


@pytest.mark.parametrize("options", [["--into", "f/inside"], ["--into", "f"], ["--into", "c", "--collection", "x"]])
def test_a_command_that_cannot_be_meant_is_refused(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "owl.txt").write_text("an owl")
    assert main(["index", "f", *options]) == 2
    assert "ConfigError" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["f", "owl.txt"]


def test_settings_bind_once_something_is_read(tmp_path: Path, zoo: Path) -> None:
    with pytest.raises(ConfigError, match="stemmer: expected one of arabic, .*got 'klingon'"):
        built(tmp_path / "c", zoo, settings=CorpusSettings(encoder="layout", stemmer="klingon"))
    assert built(tmp_path / "c", zoo).documents == 50
    with pytest.raises(ConfigError, match="stemmer: expected 'english', which it was made with"):
        built(tmp_path / "c", zoo, settings=CorpusSettings(encoder="layout", stemmer="german"))


def test_a_text_goes_without_a_picture_that_is_missing(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "t.jsonl", [{"url": "u", "text": "an owl", "image": "none.png"}, {"image": "none.png"}])
    report = built(tmp_path / "c", table)
    assert (report.documents, report.pictures, report.skipped) == (1, 0, 2)
    assert [row for _, row, _ in report.problems] == [1, 2]
    assert all("expected a picture at" in reason for _, _, reason in report.problems)


def test_one_build_at_a_time(tmp_path: Path, zoo: Path) -> None:
    seen: list[str] = []

    class Nested(Quiet):
        def reading(self, done_bytes: float, total_bytes: float) -> None:
            with pytest.raises(ConfigError, match="got one under way"):
                built(tmp_path / "c", zoo)
            seen.append("refused")

    built(tmp_path / "c", zoo, watcher=Nested())
    assert seen


# --- damage and security ---------------------------------------------------------------------------------------------


def test_what_is_no_corpus_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="python -m mmsearch_env index FILES --into"):
        searched(tmp_path, "owl")


@pytest.mark.parametrize("change", [{"version": 9}, {"vectors": "../../etc"}, {"more": 1}])
def test_a_manifest_that_was_tampered_with_is_refused(tmp_path: Path, zoo: Path, change: dict[str, object]) -> None:
    built(tmp_path / "c", zoo)
    path = tmp_path / "c" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match="expected"):
        searched(tmp_path / "c", "owl")


def test_vectors_of_another_encoder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    collage(1).save(folder / "1.png")
    built(tmp_path / "c", folder)
    path = tmp_path / "c" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder_identity": "layout:old"}))
    with pytest.raises(DataError, match="expected the encoder layout:old, got layout:"):
        looked(tmp_path / "c", Image.from_pil(collage(1)))


@pytest.mark.parametrize(
    "statements",
    [
        [
            "DROP TABLE pictures",
            "CREATE VIEW pictures AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id FROM n) SELECT id FROM n",
        ],
        ["CREATE TRIGGER planted AFTER INSERT ON documents BEGIN DELETE FROM documents; END"],
    ],
)
def test_what_a_catalogue_would_run_is_not_let_in(tmp_path: Path, zoo: Path, statements: list[str]) -> None:
    collage(1).save(tmp_path / "1.png")
    built(tmp_path / "c", zoo, tmp_path / "1.png")
    with closing(sqlite3.connect(tmp_path / "c" / "catalogue.sqlite")) as database:
        for statement in statements:
            database.execute(statement)
    with pytest.raises(DataError, match="expected a corpus's tables"):
        built(tmp_path / "c", zoo)
    with pytest.raises(ToolUnavailable, match="expected a corpus's tables"):
        looked(tmp_path / "c", Image.from_pil(collage(1)))


def test_a_catalogue_damaged_inside_is_said(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "t.jsonl", animals(2000))
    built(tmp_path / "c", table)
    path = tmp_path / "c" / "catalogue.sqlite"
    damaged = bytearray(path.read_bytes())
    damaged[3 * 4096 :] = os.urandom(len(damaged) - 3 * 4096)
    path.write_bytes(damaged)
    jsonl(table, animals(3000))
    with pytest.raises(DataError, match="build it anew"):
        built(tmp_path / "c", table)


def test_a_damaged_text_index_costs_a_search(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    rows = [{"url": str(number), "text": f"zebra stripes animal {number} " * 30} for number in range(300)]
    built(whole, jsonl(tmp_path / "t.jsonl", rows))
    told: list[str] = []
    for seed in range(12):
        into = shutil.copytree(whole, tmp_path / str(seed))
        for file in (into / "text").glob("*.idx"):
            if file.stat().st_size < 1000:  # of a thread that had little to do
                continue
            content = np.frombuffer(file.read_bytes(), np.uint8).copy()
            generator = np.random.default_rng(seed)
            places = generator.integers(
                0, len(content) - 200, max(1, len(content) // 50)
            )  # what stands last is checked
            content[places] = generator.integers(0, 256, len(places))
            file.write_bytes(content.tobytes())
        tool = build_tool(ActionKind.TEXT_SEARCH, {"name": "corpus", "path": str(into)})
        found = asyncio.run(ask(tool, TextQuery("zebra stripes animal"), top_k=3, timeout_s=5.0))
        told += [str(found)] if isinstance(found, ToolError) else []
    assert any("the files of the index are damaged" in text for text in told), told


def test_pipes_and_links_to_nowhere_are_passed_over_and_half_characters_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    os.mkfifo(folder / "pipe.md")
    (folder / "lost.md").symlink_to("/nowhere")
    (folder / "loop.md").symlink_to("loop.md")
    (folder / "t.jsonl").write_text('{"text": "good", "url": "g"}\n{"text": "w", "url": "s", "image": "\\ud800.png"}\n')
    report = built(tmp_path / "c", folder)
    assert (report.documents, report.skipped) == (2, 1)


def test_damaged_vectors_are_no_exception_for_an_episode(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    collage(1).save(folder / "1.png")
    built(tmp_path / "c", folder)
    (place,) = (tmp_path / "c").glob("vectors-*")
    (place / "vectors.npy").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ToolUnavailable, match="expected vectors"):
        looked(tmp_path / "c", Image.from_pil(collage(1)))


def test_a_catalogue_of_another_kind_is_refused(tmp_path: Path, zoo: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "catalogue.sqlite").write_text("no database at all, but long enough to be looked at" * 20)
    with pytest.raises(DataError, match="expected a corpus's catalogue"):
        built(tmp_path / "c", zoo)


def test_a_corpus_is_read_where_nothing_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    collage(1).save(folder / "1.png")
    built(tmp_path / "c", folder)
    real = sqlite3.connect

    def refusing(place: str, *arguments: object, **options: object) -> sqlite3.Connection:
        if "immutable" not in place:
            raise sqlite3.OperationalError("unable to open database file")
        return real(place, *arguments, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sqlite3, "connect", refusing)
    assert looked(tmp_path / "c", Image.from_pil(collage(1))).hits


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        (ActionKind.TEXT_SEARCH, PageQuery("u")),
        (ActionKind.IMAGE_SEARCH, TextQuery("u")),
        (ActionKind.VISIT_PAGE, TextQuery("u")),
    ],
)
def test_a_query_of_another_kind_is_refused(tmp_path: Path, zoo: Path, kind: ActionKind, query: TextQuery) -> None:
    built(tmp_path / "c", zoo)
    tool = build_tool(kind, {"name": "corpus", "path": str(tmp_path / "c")})
    with pytest.raises(ToolUnavailable, match="expected"):
        asyncio.run(tool.search(query, top_k=1))


def test_pages_are_read_whole_by_their_address(tmp_path: Path, zoo: Path) -> None:
    built(tmp_path / "c", zoo)
    (hit,) = page(tmp_path / "c", "https://zoo.example/7").hits
    assert (hit.title, hit.snippet) == ("Animal 7", "The beast zq7 eats food0 at night.")
    assert not page(tmp_path / "c", "https://zoo.example/777").hits


# --- pictures --------------------------------------------------------------------------------------------------------


def other_view(picture: PIL.Image.Image, seed: int) -> Image:
    """A turned crop of it, as a small JPEG."""
    generator = np.random.default_rng(1000 + seed)
    width, height = picture.size
    share = generator.uniform(0.7, 0.9)
    left, top = generator.uniform(0, 1 - share, 2) * (width, height)
    part = picture.crop((int(left), int(top), int(left + share * width), int(top + share * height)))
    return Image.from_bytes(encoded(part.rotate(generator.uniform(-8, 8), PIL.Image.Resampling.BICUBIC), "JPEG"))


def recall(encoder: LayoutEncoder | SiftEncoder, base: Sequence[Image], queries: Sequence[Image]) -> float:
    kept, asked = encoder.encode(base), encoder.encode(queries)
    gaps = np.square(asked[:, None] - kept[None]).sum(axis=-1)
    return float((gaps.argmin(axis=1) == np.arange(len(base))).mean())


def test_local_features_find_other_views_better_than_colours_by_place() -> None:
    pictures = [collage(seed) for seed in range(60)]
    base = [Image.from_pil(picture) for picture in pictures]
    queries = [other_view(picture, seed) for seed, picture in enumerate(pictures)]
    sift = recall(SiftEncoder.fitted(base), base, queries)
    assert sift >= 0.85
    assert sift >= recall(LayoutEncoder(), base, queries)


def test_a_fitted_encoder_is_the_same_when_it_is_opened_again(tmp_path: Path) -> None:
    base = [Image.from_pil(collage(seed)) for seed in range(8)]
    fitted = SiftEncoder.fitted(base)
    fitted.store(tmp_path)
    opened = SiftEncoder.stored(tmp_path)
    assert opened is not None and opened.identity == fitted.identity == SiftEncoder.fitted(base).identity
    assert np.array_equal(opened.encode(base), fitted.encode(base))
    (tmp_path / "sift.npz").write_bytes(b"junk")
    with pytest.raises(DataError, match="expected a fitted encoder"):
        SiftEncoder.stored(tmp_path)


def test_enough_pictures_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch_env.tools.corpus.sift.PROJECTED_SIZE", 16)
    pictures = [collage(seed) for seed in range(40)]
    base = [Image.from_pil(picture) for picture in pictures]
    encoder = SiftEncoder.fitted(base)
    assert encoder.size == 16 + LayoutEncoder.size
    assert recall(encoder, base, [other_view(picture, seed) for seed, picture in enumerate(pictures)]) >= 0.8


def test_a_picture_of_one_colour_has_a_vector_too() -> None:
    flat = Image(np.full((40, 60, 3), 200, np.uint8))
    vectors = SiftEncoder.fitted([flat]).encode([flat])
    assert np.isfinite(vectors).all() and 0 < np.linalg.norm(vectors) <= 1.0001


def test_a_corpus_with_the_default_encoder_finds_a_crop(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for seed in range(12):
        collage(seed).save(folder / f"{seed}.png")
    built(tmp_path / "c", folder, settings=CorpusSettings())
    tool = build_tool(ActionKind.IMAGE_SEARCH, {"name": "corpus", "path": str(tmp_path / "c")})
    frame = PIL.Image.new("RGB", (480, 180), "white")
    frame.paste(collage(7), (240, 0))
    whole = Image.from_pil(frame)
    found = asyncio.run(tool.search(ImageQuery(whole, (0.5, 0.0, 1.0, 1.0)), top_k=1))
    assert found.hits[0].url == "f/7.png" and found.hits[0].score > 0.9


def clusters(rows: int, size: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(rows // 20, size))
    found = centres[generator.integers(0, len(centres), rows)] + 0.4 * generator.normal(size=(rows, size))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def written(folder: Path, ids: np.ndarray, matrix: np.ndarray) -> Vectors:
    folder.mkdir(exist_ok=True)
    half = len(ids) // 2
    blocks = [(ids[:half], matrix[:half]), (ids[half:], matrix[half:])]
    write_vectors(folder, blocks, rows=len(ids), size=matrix.shape[1])
    return Vectors(folder)


def brute(ids: np.ndarray, matrix: np.ndarray, query: np.ndarray, count: int) -> list[int]:
    gaps = np.square(matrix.astype(np.float64) - query).sum(axis=1)
    return [int(ids[row]) for row in np.argsort(gaps, kind="stable")[:count]]


@pytest.mark.parametrize("count", [1, 5, 40, 5000])
def test_few_vectors_are_compared_exactly(tmp_path: Path, count: int) -> None:
    matrix, ids = clusters(1000, 24), np.arange(0, 3000, 3)
    found = written(tmp_path / "v", ids, matrix)
    assert found.coarse is None and len(found) == 1000
    for query in clusters(100, 24, seed=5)[:5]:
        assert [number for number, _ in found.nearest(query, count)] == brute(ids, matrix, query, count)


def test_many_vectors_are_found_through_faiss_nearly_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "EXACT_ROWS", 2000)
    matrix, ids = clusters(6000, 32), np.arange(1, 6001)
    found = written(tmp_path / "v", ids, matrix)
    assert found.coarse is not None and found.coarse.recall_at_5 >= 0.97
    shares = []
    noise = 0.05 * np.random.default_rng(9).normal(size=(200, 32)).astype(np.float32)
    for query in matrix[::30] + noise:
        near = found.nearest(query, 5)
        assert [gap for _, gap in near] == sorted(gap for _, gap in near)
        shares.append(len({number for number, _ in near} & set(brute(ids, matrix, query, 5))) / 5)
    assert np.mean(shares) >= 0.95


def test_later_vectors_are_found_and_gone_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "EXACT_ROWS", 2000)
    matrix, ids = clusters(3300, 16), np.arange(1, 3301)
    first = written(tmp_path / "v", ids[:3000], matrix[:3000])
    kept = (ids % 50 != 0) & (ids <= 3300)
    trained = (tmp_path / "v" / "coarse.faiss").read_bytes()
    second = written(tmp_path / "v", ids[kept], matrix[kept])
    assert first.coarse == second.coarse
    assert (tmp_path / "v" / "coarse.faiss").read_bytes() == trained
    assert second.nearest(matrix[3200], 1)[0][0] == 3201
    assert second.nearest(matrix[49], 1)[0][0] != 50
    third = written(tmp_path / "v", ids[:2500], matrix[:2500])
    assert third.coarse == first.coarse
    fourth = written(tmp_path / "v", ids[:2100], matrix[:2100])
    assert fourth.coarse is not None and fourth.coarse.rows == 2100


def test_a_picture_that_changed_is_found_among_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "EXACT_ROWS", 100)
    folder, into = tmp_path / "f", tmp_path / "c"
    folder.mkdir()
    for seed in range(200):
        collage(seed, 60, 45).save(folder / f"{seed}.png")
    built(into, folder)
    (old,) = into.glob("vectors-*/coarse.faiss")
    trained = old.read_bytes()
    changed = [collage(seed + 1000, 60, 45) for seed in range(10)]
    for seed, picture in enumerate(changed):
        picture.save(folder / f"{seed}.png")
    (folder / "199.png").unlink()
    collage(1199, 60, 45).save(folder / "new.png")
    built(into, folder)
    (new,) = into.glob("vectors-*/coarse.faiss")
    assert new.read_bytes() == trained  # it was not made anew
    for name, picture in [*enumerate(changed), ("new", collage(1199, 60, 45))]:
        assert looked(into, Image.from_pil(picture)).hits[0].url == f"f/{name}.png"


def test_without_faiss_many_pictures_are_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_module, "EXACT_ROWS", 10)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install mmsearch-env\[images\]"):
        written(tmp_path / "v", np.arange(40), clusters(40, 8))


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_a_vision_model_of_the_users_compares_pictures(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    text = {**small, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    makers: dict[str, Callable[[], object]] = {
        "clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        ),
        "siglip": lambda: transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**vision)),
    }
    processors = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "dinov2": "BitImageProcessor"}
    model: object = makers[family]()
    model.save_pretrained(tmp_path / "model")  # type: ignore[attr-defined]
    size = {"shortest_edge": 32} if family == "dinov2" else {"height": 32, "width": 32}
    settings = {
        "image_processor_type": processors[family],
        "do_resize": True,
        "size": size,
        "do_center_crop": family != "siglip",
        "crop_size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    folder = tmp_path / "f"
    folder.mkdir()
    for seed in range(20):
        collage(seed).save(folder / f"{seed}.png")
    settings_of = CorpusSettings(f"neural:{tmp_path / 'model'}")
    assert built(tmp_path / "c", folder, settings=settings_of).pictures == 20
    hits = looked(tmp_path / "c", Image.from_pil(collage(13)), 3).hits
    assert hits[0].url == "f/13.png" and hits[0].score > 0.99999 > hits[1].score


def test_a_model_that_is_none_is_said_to_be_none(tmp_path: Path, zoo: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="expected a folder, or a model of the Hugging Face hub"):
        built(tmp_path / "c", zoo, settings=CorpusSettings(f"neural:{tmp_path}/none"))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_builds_and_says_how_to_search(
    tmp_path: Path, zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(zoo), "--into", str(tmp_path / "c"), "--encoder", "layout"]) == 0
    said = capsys.readouterr().out
    assert "documents  50" in said and "search it:" in said
    backend = json.dumps({"name": "corpus", "path": str(tmp_path / "c")})
    assert main(["search", "zq9", "--backend", backend]) == 0
    assert "Animal 9" in capsys.readouterr().out


def test_ctrl_c_stops_the_command_and_the_next_run_ends_it(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "t.jsonl", animals(60_000))
    command = [sys.executable, "-m", "mmsearch_env", "index", str(table), "--into", str(tmp_path / "c")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_interruptible)
    deadline = time.monotonic() + 60.0
    while not (tmp_path / "c" / "text" / "meta.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in said
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert "documents  60,000" in done.stdout
    assert len(Catalogue(tmp_path / "c", mode="read").sources()) == 1


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
