"""Text search in a corpus against bare tantivy, over the pages of an invented world.

Bare tantivy is what one writes first: the same documents with English stems in the fields title and text, the query
parsed by its own parser, the five best documents fetched. Both answer every query in turn. Also measured: how fast a
corpus is built, and what memory a process that searches it has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tantivy
from measuring import figures, in_turns, memory_mb, note, ratio, report

from mmsearch_env.actions import ActionKind
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.corpus.build import CorpusSettings, build_corpus
from mmsearch_env.tools.corpus.sources import find_sources
from mmsearch_env.tools.search_tool import SearchResult, TextQuery
from mmsearch_env.worlds import load_world

TOP_K = 5
PAGES_AN_ENTITY = 7
KINDS = ("capital of {}", "currency used in {}", "what is the official language of {}?", "which country borders {}")


class Quiet:
    """Watches a build."""

    def reading(self, done_bytes: float, total_bytes: float) -> None: ...
    def pictures(self, done: int, total: int) -> None: ...
    def is_stopping(self) -> bool:
        return False


def written(documents: int, folder: Path) -> tuple[Path, list[str]]:
    """A table of so many pages, and queries about them."""
    world = load_world(f"synthetic:seed=5,entities={documents // PAGES_AN_ENTITY + 1},per_pair=1")
    table = folder / f"pages-{documents}.jsonl"
    with table.open("w", encoding="utf-8") as file:
        for page in world.pages[:documents]:
            file.write(json.dumps({"url": page.url, "title": page.title, "text": page.text}) + "\n")
    names = [entity.name for entity in world.entities]
    chosen = random.Random(0).choices(names, k=400)
    return table, [KINDS[number % len(KINDS)].format(name) for number, name in enumerate(chosen)]


def built(table: Path, into: Path) -> dict[str, Any]:
    """Build a corpus and say how fast."""
    settings = CorpusSettings("layout")
    done = build_corpus(into, find_sources([table]), [], settings, Quiet())
    size = sum(file.stat().st_size for file in into.rglob("*") if file.is_file())
    return {
        "documents": done.documents,
        "build_s": round(done.seconds, 2),
        "documents_per_s": round(done.read / done.seconds),
        "disk_mb": round(size / 1e6, 1),
    }


def bare(table: Path, into: Path) -> tuple[Any, float]:
    """The plain index and the seconds it took."""
    begin = time.perf_counter()
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("url", stored=True, tokenizer_name="raw")
    builder.add_text_field("title", stored=True, tokenizer_name="en_stem")
    builder.add_text_field("text", stored=True, tokenizer_name="en_stem")
    into.mkdir()
    index = tantivy.Index(builder.build(), path=str(into))
    writer = index.writer(heap_size=192_000_000)
    with table.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            writer.add_document(tantivy.Document(**row))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return index, time.perf_counter() - begin


def bare_search(index: Any) -> Callable[[str], list[str]]:
    searcher = index.searcher()

    def search(text: str) -> list[str]:
        query = index.parse_query(" ".join(re.findall(r"\w+", text)), ["title", "text"])
        documents = [searcher.doc(address) for _, address in searcher.search(query, TOP_K).hits]
        return [f"{one.get_first('title')}{one.get_first('text')}{one.get_first('url')}" for one in documents]

    return search


def measured(documents: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Everything at one size."""
    note(f"writing {documents:,} pages")
    table, queries = written(documents, folder)
    place = folder / f"corpus-{documents}"
    note("building the corpus")
    size = built(table, place)
    note("building the bare index")
    index, bare_s = bare(table, folder / f"bare-{documents}")
    tool = build_tool(ActionKind.TEXT_SEARCH, {"name": "corpus", "path": str(place)})
    plain = bare_search(index)
    loop = asyncio.new_event_loop()
    note("searching")

    def ours(text: str) -> SearchResult:
        return loop.run_until_complete(tool.search(TextQuery(text), top_k=TOP_K))

    agreeing = sum(bool(set(_urls(ours(query))) & {_url(found) for found in plain(query)}) for query in queries[:100])
    taken = in_turns(
        {"ours": [lambda q=q: ours(q) for q in queries], "tantivy": [lambda q=q: plain(q) for q in queries]},  # type: ignore[misc]
        rounds,
    )
    begin = time.perf_counter()
    loop.run_until_complete(_together(tool, queries * rounds))
    qps = len(queries) * rounds / (time.perf_counter() - begin)
    loop.close()
    memory = json.loads(
        subprocess.run(
            [sys.executable, __file__, "--memory-of", str(place), "--query", *queries[:200]],
            check=True, capture_output=True, text=True,
        ).stdout
    )  # fmt: skip
    return {
        **size,
        "tantivy_documents_per_s": round(size["documents"] / bare_s),
        "ours": {**figures(taken["ours"]), "queries_per_s": round(qps), "process": memory},
        "tantivy": figures(taken["tantivy"]),
        "ratio": ratio(taken["ours"], taken["tantivy"]),
        "share_with_a_common_hit": agreeing / 100,
    }


def _urls(result: SearchResult) -> list[str]:
    return [hit.url for hit in result.hits]


def _url(found: str) -> str:
    return found[found.rindex("https://") :]


async def _together(tool: Any, queries: Sequence[str]) -> None:
    """64 at a time, as rollouts do."""
    for start in range(0, len(queries), 64):
        await asyncio.gather(*(tool.search(TextQuery(text), top_k=TOP_K) for text in queries[start : start + 64]))


def show_memory(place: str, queries: Sequence[str]) -> None:
    """In a process of its own: open, search, and say what memory that took."""
    tool = build_tool(ActionKind.TEXT_SEARCH, {"name": "corpus", "path": place})
    begin = time.perf_counter()
    asyncio.run(tool.search(TextQuery(queries[0]), top_k=TOP_K))
    first_s = time.perf_counter() - begin
    for query in queries:
        asyncio.run(tool.search(TextQuery(query), top_k=TOP_K))
    print(json.dumps({**memory_mb(), "first_search_ms": round(first_s * 1e3, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2,000 documents, 1 round")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--query", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        show_memory(given.memory_of, given.query)
        return
    sizes, rounds = ([2000], 1) if given.quick else (given.documents, given.rounds)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        by_size = {str(size): measured(size, rounds, Path(folder)) for size in sizes}
    report("text_search", {"rounds": rounds, "top_k": TOP_K}, ["tantivy"], by_documents=by_size)


if __name__ == "__main__":
    main()
